//! The pause process of a pod that shares its PID namespace: that namespace's init, which only
//! reaps. No program is executed: it is straight-line code in a clone, under the rules of `child.rs`.
//!
//! It is seen by the pod's containers, so it has nothing of the node's: an empty read-only root, no
//! open files, no capabilities, no other user's rights (65534, the kernel's overflow id).

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;

use super::parent::{self, Channel};
use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::features::Features;
use crate::sys::clone::{self, CloneOptions, Cloned};
use crate::sys::fd::KeepList;
use crate::sys::{caps, fd, mount, pidfd, procfs};

/// As the peers': the last of a pod to be killed when memory runs out.
const OOM_SCORE_ADJ: &[u8] = b"-998";
/// Linux' overflow uid and gid (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65534;

/// A running pause process; killed when dropped, and reaped if it ends at once.
#[derive(Debug)]
pub(crate) struct Pause {
    pid: i32,
    pidfd: OwnedFd,
    namespace: OwnedFd,
}

impl Pause {
    /// Its process id on the node.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// A descriptor for it.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The PID namespace it is the init of.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        // All of its namespace die with it, but it ends only once they are reaped, and those that
        // are the caller's children are reaped by the caller, which then finds this one too.
        pidfd::kill_and_reap_soon(self.pidfd.as_fd(), 100);
    }
}

/// Starts one in a new PID namespace, in `cgroup`.
pub(crate) fn start(cgroup: Option<&Cgroup>, features: &Features) -> Result<Pause> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing(|| "become non-dumpable")?;
    let proc = procfs::open_host()?;
    let files = parent::join_files(cgroup)?;
    let Channel { parent, child: end } = Channel::new()?;
    let keep = KeepList::new([end.as_fd()]);
    let options = CloneOptions {
        namespaces: raw::CLONE_NEWPID | raw::CLONE_NEWNS,
        cgroup: cgroup.and_then(Cgroup::clone_into),
        sibling: false,
    };
    let (pid, pidfd) = match clone::clone3(options).doing(|| "clone the pause process")? {
        Cloned::Child => run(end.as_fd(), &files, &keep, features.last_capability),
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(end);
    let started = follow(parent.as_fd()).and_then(|()| {
        parent::set_oom_score(proc.as_fd(), pid, OOM_SCORE_ADJ)?;
        rustix::fs::openat(
            proc.as_fd(),
            format!("{pid}/ns/pid"),
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .doing(|| "open the pause process's PID namespace")
    });
    match started {
        Ok(namespace) => Ok(Pause {
            pid,
            pidfd,
            namespace,
        }),
        Err(error) => {
            pidfd::kill_and_reap(pidfd.as_fd());
            Err(error)
        }
    }
}

/// Waits for the child's errno: 0 once it is set up.
fn follow(channel: BorrowedFd<'_>) -> Result<()> {
    let mut bytes = [0; 4];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(channel, &mut bytes))
        .doing(|| "hear from the pause process")?;
    match (read, i32::from_ne_bytes(bytes)) {
        (4, 0) => Ok(()),
        (4, errno) => Err(Error::system(
            "set up the pause process",
            Errno::from_raw_os_error(errno),
        )),
        _ => Err(Error::new(
            ErrorKind::System,
            "the pause process was killed before it was set up",
        )),
    }
}

fn run(channel: BorrowedFd<'_>, cgroup: &[OwnedFd], keep: &KeepList, last: u32) -> ! {
    let Err(errno) = set_up(channel, cgroup, keep, last);
    // If the parent can't be told it still sees the process end.
    let _sent = rustix::io::write(channel, &errno.raw_os_error().to_ne_bytes());
    clone::exit(1)
}

fn set_up(
    channel: BorrowedFd<'_>,
    cgroup: &[OwnedFd],
    keep: &KeepList,
    last: u32,
) -> std::result::Result<Infallible, Errno> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    for file in cgroup {
        rustix::io::write(file, b"0")?;
    }
    fd::close_all_but(keep)?;
    rustix::mount::mount_change(
        c"/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?;
    let root = mount::empty_directory()?;
    mount::attach_on_root(root.as_fd())?;
    mount::pivot_into(root.as_fd())?;
    drop(root);
    rustix::process::setsid()?;
    clone::new_session_keyring().or_else(|errno| match errno {
        Errno::NOSYS => Ok(()),
        errno => Err(errno),
    })?;
    rustix::thread::set_name(c"pause")?;
    clone::reset_signals()?;
    clone::ignore_children()?;
    rustix::thread::set_no_new_privs(true)?;
    caps::limit_bounding(0, last)?;
    caps::set_ambient(0)?;
    rustix::thread::set_thread_groups(&[])?;
    let gid = rustix::process::Gid::from_raw(NOBODY);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = rustix::process::Uid::from_raw(NOBODY);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    caps::set(0, 0, 0)?;
    rustix::io::write(channel, &0_i32.to_ne_bytes())?;
    fd::close_all_but(&KeepList::default())?;
    clone::pause_forever()
}
