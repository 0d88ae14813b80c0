//! `bpf(2)`: loading a device program and attaching it to a control group.
//!
//! `BPF_PROG_TYPE_CGROUP_DEVICE` since 4.15; several programs on one group (`ALLOW_MULTI`) likewise;
//! replacing one of them atomically (`REPLACE`) since 5.6. Needs CAP_BPF and CAP_NET_ADMIN, or
//! CAP_SYS_ADMIN. Before 5.11 programs count against RLIMIT_MEMLOCK.
//! An attached program lives as long as its group: nothing is to be undone.
#![expect(unsafe_code, reason = "bpf(2) has no wrapper in libc, nix or rustix")]

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::plan::devices::Instruction;

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;

const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// The part of `union bpf_attr` for BPF_PROG_LOAD up to the fields used; the kernel takes what
/// follows as zero.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// For BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// For BPF_PROG_QUERY.
#[repr(C)]
struct QueryAttributes {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// For BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct ByIdAttributes {
    id: u32,
    next: u32,
    open_flags: u32,
}

/// One call of `bpf(2)`.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> Result<libc::c_long, Errno> {
    let pointer = std::ptr::from_mut(attributes);
    // SAFETY: the pointer and size describe one live, exclusively borrowed structure whose layout
    // is a prefix of union bpf_attr for this command; the callers below keep whatever it points to
    // alive over the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) };
    if result < 0 {
        let raw = std::io::Error::last_os_error().raw_os_error();
        return Err(Errno::from_raw_os_error(raw.unwrap_or(libc::EIO)));
    }
    Ok(result)
}

fn owned(descriptor: libc::c_long) -> Result<OwnedFd, Errno> {
    let raw = i32::try_from(descriptor).map_err(|_| Errno::BADF)?;
    // SAFETY: bpf(2) has just returned this descriptor (close-on-exec), and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(object: &T) -> u64 {
    std::ptr::from_ref(object).addr() as u64
}

/// Loads a device program; the kernel verifies it.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let license = c"Apache-2.0";
    let mut name = [0; 16];
    name[..15].copy_from_slice(b"bulkhead_device");
    let mut attributes = LoadAttributes {
        program_type: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: address(program),
        license: address(license),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    owned(bpf(PROG_LOAD, &mut attributes)?)
}

/// Makes `program` the group's device program, beside those of its ancestors, all of which must
/// allow. One that the group has already is replaced in one step, so that no access slips through.
pub fn set_device_program(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let old = match attached(group)? {
        None => None,
        Some(id) => Some(by_id(id)?),
    };
    let mut attributes = AttachAttributes {
        target: number(group),
        program: number(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI | if old.is_some() { REPLACE } else { 0 },
        replaced: old.as_ref().map_or(0, |old| number(old.as_fd())),
    };
    bpf(PROG_ATTACH, &mut attributes).map(drop)
}

/// The id of the group's own device program. More than one is not ours: E2BIG.
pub fn attached(group: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    let mut ids = [0u32; 1];
    let mut attributes = QueryAttributes {
        target: number(group),
        attach_type: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: 1,
        padding: 0,
    };
    match bpf(PROG_QUERY, &mut attributes) {
        Ok(_) if attributes.count == 0 => Ok(None),
        Ok(_) => Ok(Some(ids[0])),
        Err(Errno::NOSPC) => Err(Errno::TOOBIG),
        Err(errno) => Err(errno),
    }
}

fn by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attributes = ByIdAttributes {
        id,
        next: 0,
        open_flags: 0,
    };
    owned(bpf(PROG_GET_FD_BY_ID, &mut attributes)?)
}
