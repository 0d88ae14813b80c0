//! Loading a compiled seccomp program (seccomp(2), Linux 3.17). Compiling is the daemon's: it takes
//! 10 ms and a megabyte of heap.
#![expect(unsafe_code, reason = "seccomp(2) has no safe wrapper")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;

/// The most instructions the kernel takes (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// The one flag whose success is a descriptor.
const NEW_LISTENER: u32 = 1 << 3;

/// A program in the form the kernel reads, aligned as it needs.
#[derive(Debug)]
pub(crate) struct Program {
    instructions: Vec<libc::sock_filter>,
    length: u16,
}

impl Program {
    /// From the bytes of an array of `struct sock_filter` in this machine's byte order.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let (chunks, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return Err("its length is no multiple of 8 bytes");
        }
        if chunks.is_empty() {
            return Err("it is empty");
        }
        if chunks.len() > MAX_INSTRUCTIONS {
            return Err("it has more than 4096 instructions, the most the kernel takes");
        }
        let instructions = chunks
            .iter()
            .map(|[c0, c1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
                code: u16::from_ne_bytes([*c0, *c1]),
                jt: *jt,
                jf: *jf,
                k: u32::from_ne_bytes([*k0, *k1, *k2, *k3]),
            })
            .collect();
        let length = u16::try_from(chunks.len()).map_err(|_| "it is too long")?;
        Ok(Self {
            instructions,
            length,
        })
    }
}

/// Puts the filter on the calling thread. Needs CAP_SYS_ADMIN or no_new_privs. With
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` among the flags its notifications come by the descriptor, which
/// the kernel makes close-on-exec (seccomp_unotify(2), Linux 5.0).
pub(crate) fn load(program: &Program, flags: u32) -> Result<Option<OwnedFd>, Errno> {
    let header = libc::sock_fprog {
        len: program.length,
        filter: program.instructions.as_ptr().cast_mut(),
    };
    // SAFETY: the header names an array of `len` instructions that outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            ptr::from_ref(&header),
        )
    };
    let result = super::clone::check(result)?;
    if flags & NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = RawFd::try_from(result).map_err(|_| Errno::BADF)?;
    // SAFETY: with this flag the call returns a new descriptor, which nobody else has.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_bounded_programs_are_taken() {
        assert!(Program::parse(&[]).is_err());
        assert!(Program::parse(&[0; 7]).is_err());
        assert!(Program::parse(&[0; 8]).is_ok());
        assert!(Program::parse(&[0; 8 * 4096]).is_ok());
        assert!(Program::parse(&[0; 8 * 4097]).is_err());
    }
}
