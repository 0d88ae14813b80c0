//! User namespaces, and the namespaces that belong to one: made by a process that lives only for
//! that, as nobody comes back from a user namespace (setns(2)).
//!
//! The maps are written from outside, so `setgroups` stays allowed inside and any id may be mapped
//! (user_namespaces(7)). The process is straight-line code in a clone, under the rules of
//! `launch/child.rs`; it sets host name and kernel parameters, because those of an IPC namespace can be
//! written by its owner only (Linux 5.19, ipc_permissions of ipc/ipc_sysctl.c).

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Doing, Error, ErrorKind, Result};
use crate::idmap::{self, IdMaps};
use crate::plan::{self, namespaces};
use crate::sys::clone::{self, CloneOptions, Cloned};
use crate::sys::{fd, mount, pidfd, procfs};

/// What is made along with the namespace and belongs to it.
#[derive(Debug, Default)]
pub(crate) struct Inside<'a> {
    /// `CLONE_NEW*` bits of further namespaces.
    pub(crate) kinds: u32,
    /// The host name of a new UTS namespace.
    pub(crate) hostname: Option<&'a str>,
    /// Kernel parameters: path below `/proc` and value.
    pub(crate) sysctls: &'a [(CString, Vec<u8>)],
}

/// A user namespace and what belongs to it, held until dropped.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) user: OwnedFd,
    /// By their `CLONE_NEW*` bits.
    pub(crate) others: Vec<(u32, OwnedFd)>,
}

impl Made {
    /// Takes the namespace of a kind, if it was made.
    pub(crate) fn take(&mut self, kind: u32) -> Option<OwnedFd> {
        let at = self.others.iter().position(|(found, _)| *found == kind)?;
        Some(self.others.swap_remove(at).1)
    }
}

/// A user namespace alone: for id-mapped mounts, or for a container to join.
pub(crate) fn of_maps(maps: &IdMaps) -> Result<OwnedFd> {
    Ok(make(maps, &Inside::default())?.user)
}

/// Makes a user namespace with these maps and, owned by it, what `inside` says.
pub(crate) fn make(maps: &IdMaps, inside: &Inside<'_>) -> Result<Made> {
    let proc = procfs::open_host()?;
    let (parent, end) = fd::socket_pair().doing(|| "make the socket to the namespace's process")?;
    let options = CloneOptions {
        namespaces: raw::CLONE_NEWUSER | inside.kinds,
        ..CloneOptions::default()
    };
    let (pid, process) = match clone::clone3(options).doing(|| "make a user namespace")? {
        Cloned::Child => {
            drop(parent);
            run(end.as_fd(), inside, proc.as_fd())
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(end);
    let made = follow(pid, maps, inside, proc.as_fd(), parent.as_fd());
    pidfd::kill_and_reap(process.as_fd());
    made
}

/// Writes the maps, lets the process do its part, and opens what was made.
fn follow(
    pid: i32,
    maps: &IdMaps,
    inside: &Inside<'_>,
    proc: BorrowedFd<'_>,
    channel: BorrowedFd<'_>,
) -> Result<Made> {
    for (file, ranges) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let path = plan::c_string(file, format!("{pid}/{file}"))?;
        procfs::write(proc, &path, &idmap::render(ranges))
            .doing(|| format!("write the {file} of a user namespace"))?;
    }
    rustix::io::write(channel, b"g").doing(|| "let the namespace's process go on")?;
    let mut bytes = [0; MESSAGE];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(channel, &mut bytes))
        .doing(|| "hear from the namespace's process")?;
    if read != MESSAGE {
        return Err(Error::new(
            ErrorKind::System,
            "the process of a user namespace was killed before it was set up",
        ));
    }
    explain(bytes, inside)?;
    let open = |kind| {
        let name = namespaces::name(kind);
        rustix::fs::openat(
            proc,
            format!("{pid}/ns/{name}"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .doing(|| format!("open the {name} namespace made"))
    };
    let mut others = Vec::new();
    for kind in [raw::CLONE_NEWNET, raw::CLONE_NEWIPC, raw::CLONE_NEWUTS] {
        if inside.kinds & kind != 0 {
            others.push((kind, open(kind)?));
        }
    }
    Ok(Made {
        user: open(raw::CLONE_NEWUSER)?,
        others,
    })
}

/// Step and errno, each an `i32`.
const MESSAGE: usize = 8;
/// Steps of the process; those from 0 are the kernel parameters by their place.
const IDS: i32 = -1;
const HOSTNAME: i32 = -2;

fn explain(bytes: [u8; MESSAGE], inside: &Inside<'_>) -> Result<()> {
    let [s0, s1, s2, s3, e0, e1, e2, e3] = bytes;
    let errno = i32::from_ne_bytes([e0, e1, e2, e3]);
    if errno == 0 {
        return Ok(());
    }
    let doing = match i32::from_ne_bytes([s0, s1, s2, s3]) {
        IDS => "become root of the user namespace".to_owned(),
        HOSTNAME => format!(
            "set the host name {:?}",
            inside.hostname.unwrap_or_default()
        ),
        index => {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let path = inside
                .sysctls
                .get(index)
                .map(|(path, _)| path.to_string_lossy());
            format!("write /proc/{}", path.unwrap_or_default())
        }
    };
    Err(Error::system(doing, Errno::from_raw_os_error(errno)))
}

/// The process: waits for the maps, sets up, tells, and waits to be killed.
fn run(channel: BorrowedFd<'_>, inside: &Inside<'_>, proc: BorrowedFd<'_>) -> ! {
    let (step, errno) = match set_up(channel, inside, proc) {
        Ok(()) => (0, 0),
        Err((step, errno)) => (step, errno.raw_os_error()),
    };
    let mut message = [0; MESSAGE];
    for (place, byte) in message
        .iter_mut()
        .zip(step.to_ne_bytes().into_iter().chain(errno.to_ne_bytes()))
    {
        *place = byte;
    }
    // If the parent can't be told it still sees the process end.
    if rustix::io::write(channel, &message).is_ok() {
        let mut byte = [0_u8; 1];
        let _gone = rustix::io::read(channel, &mut byte);
    }
    clone::exit(0)
}

fn set_up(
    channel: BorrowedFd<'_>,
    inside: &Inside<'_>,
    proc: BorrowedFd<'_>,
) -> std::result::Result<(), (i32, Errno)> {
    let ids = |errno| (IDS, errno);
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(ids)?;
    let mut byte = [0_u8; 1];
    match rustix::io::read(channel, &mut byte) {
        Ok(1) => {}
        Ok(_) => return Err(ids(Errno::PIPE)),
        Err(errno) => return Err(ids(errno)),
    }
    if inside.kinds == 0 {
        return Ok(()); // the maps of a mount need not have a root
    }
    become_root().map_err(ids)?;
    if let Some(name) = inside.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(|errno| (HOSTNAME, errno))?;
    }
    for (index, (path, value)) in (0..).zip(inside.sysctls) {
        procfs::write(proc, path, value).map_err(|errno| (index, errno))?;
    }
    Ok(())
}

/// Becomes root of the user namespace just entered, without groups: until then a process has ids
/// that are not mapped, and can't make a file. Fit for a child.
pub(crate) fn become_root() -> std::result::Result<(), Errno> {
    rustix::thread::set_thread_groups(&[])?;
    let gid = rustix::process::Gid::ROOT;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = rustix::process::Uid::ROOT;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // A change of ids sets what `fs.suid_dumpable` says.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
}

/// Makes a detached mount id-mapped. `what` is for the message.
pub(crate) fn map_mount(
    tree: BorrowedFd<'_>,
    recursive: bool,
    namespace: BorrowedFd<'_>,
    what: impl FnOnce() -> String,
) -> Result<()> {
    mount::set_id_map(tree, recursive, namespace).map_err(|errno| {
        let why = match errno {
            Errno::INVAL => "its file system, or one mounted below, can't be id-mapped",
            Errno::PERM => "it is id-mapped already, or its file system is not the node's",
            _ => return Error::system(what(), errno),
        };
        Error::system_words(
            ErrorKind::Unsupported,
            format!("{}: {why} ({}: {errno})", what(), filesystem(tree)),
            errno,
        )
    })
}

/// The type of the file system a mount is of, for messages.
fn filesystem(tree: BorrowedFd<'_>) -> String {
    /// Magic numbers of statfs(2) people meet here.
    const NAMES: [(u64, &str); 9] = [
        (0x8584_58f6, "ramfs"),
        (0x6969, "nfs"),
        (0x6573_5546, "fuse"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb2"),
        (0x0102_1997, "9p"),
        (0x794c_7630, "overlay"),
        (0x00c3_6400, "ceph"),
        (0x0102_1994, "tmpfs"),
    ];
    match fd::filesystem(tree) {
        Ok(magic) => NAMES.iter().find(|(known, _)| *known == magic).map_or_else(
            || format!("type {magic:#x}"),
            |(_, name)| (*name).to_owned(),
        ),
        Err(errno) => format!("type unknown: {errno}"),
    }
}

/// Whether what lies at `path` can be id-mapped: what holds images and pods must, for pods with user
/// namespaces.
pub fn probe(path: &std::path::Path) -> Result<()> {
    let doing = || format!("id-map {}", path.display());
    let name = plan::c_string("path", path.as_os_str().as_encoded_bytes())?;
    let tree = mount::clone_tree(CWD, &name, false).doing(doing)?;
    let range = idmap::IdRange {
        inside: 0,
        outside: 65_536,
        length: 65_536,
    };
    let namespace = of_maps(&IdMaps {
        uids: vec![range],
        gids: vec![range],
    })?;
    map_mount(tree.as_fd(), false, namespace.as_fd(), doing)
}
