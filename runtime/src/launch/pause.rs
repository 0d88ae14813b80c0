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

use super::channel::{Channel, Wait};
use super::parent;
use super::relay;
use super::report::{self, Failure, Message, Note, Stage};
use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::features::Features;
use crate::idmap::IdMaps;
use crate::sys::clone::{self, CloneOptions, Cloned};
use crate::sys::fd::KeepList;
use crate::sys::{caps, fd, mount, pidfd, procfs};
use crate::user_namespace;

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

/// Starts one in a new PID namespace, in `cgroup`; that of a pod with a user namespace belongs to it.
pub(crate) fn start(
    cgroup: Option<&Cgroup>,
    user: Option<(BorrowedFd<'_>, &IdMaps)>,
    features: &Features,
) -> Result<Pause> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing(|| "become non-dumpable")?;
    let proc = procfs::open_host()?;
    let files = parent::join_files(cgroup)?;
    let Channel { parent, child: end } = Channel::new()?;
    let keep = KeepList::new([end.as_fd()]);
    let own = raw::CLONE_NEWPID | raw::CLONE_NEWNS;
    let setup = Setup {
        channel: end.as_fd(),
        cgroup: &files,
        keep: &keep,
        user: user.map(|(namespace, _)| (namespace, own)),
        nobody: nobody(user.map(|(_, maps)| maps)),
        last_capability: features.last_capability,
    };
    let options = CloneOptions {
        namespaces: if user.is_some() { 0 } else { own },
        cgroup: cgroup.and_then(Cgroup::clone_into),
        sibling: false,
    };
    let (pid, pidfd) = match clone::clone3(options).doing(|| "clone the pause process")? {
        Cloned::Child => run(&setup),
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(end);
    let mut process = Process {
        pid,
        pidfd: Some(pidfd),
    };
    follow(parent.as_fd(), &mut process)?;
    parent::set_oom_score(proc.as_fd(), process.pid, OOM_SCORE_ADJ)?;
    let namespace = rustix::fs::openat(
        proc.as_fd(),
        format!("{}/ns/pid", process.pid),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .doing(|| "open the pause process's PID namespace")?;
    let pid = process.pid;
    match process.pidfd.take() {
        Some(pidfd) => Ok(Pause {
            pid,
            pidfd,
            namespace,
        }),
        None => Err(Error::new(
            ErrorKind::System,
            "the pause process came without a descriptor",
        )),
    }
}

/// Linux' overflow ids, or root's where a user namespace has no such: without a capability it is nobody too.
fn nobody(maps: Option<&IdMaps>) -> u32 {
    let mapped =
        |maps: &IdMaps| maps.outside_uid(NOBODY).is_some() && maps.outside_gid(NOBODY).is_some();
    match maps {
        Some(maps) if !mapped(maps) => 0,
        _ => NOBODY,
    }
}

/// A process that is killed and reaped unless it is let go.
struct Process {
    pid: i32,
    pidfd: Option<OwnedFd>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            pidfd::kill_and_reap(pidfd.as_fd());
        }
    }
}

/// Hears of the process until it is set up; where a second one goes on, that is `process` then.
fn follow(channel: BorrowedFd<'_>, process: &mut Process) -> Result<()> {
    let wait = Wait::new(channel, || Ok(()));
    loop {
        match wait.receive()? {
            (Some(Message::Forked(pid)), pidfd) => {
                let first = std::mem::replace(process, Process { pid, pidfd });
                // It ends by itself: reaped by the drop.
                drop(first);
            }
            (Some(Message::Ready), _) => return Ok(()),
            (Some(Message::Failed(failure, _)), _) => {
                return Err(Error::system("set up the pause process", failure.errno));
            }
            (Some(Message::Terminal | Message::Listener), _) => {}
            (None, _) => {
                return Err(Error::new(
                    ErrorKind::System,
                    "the pause process was killed before it was set up",
                ));
            }
        }
    }
}

/// All the process needs.
struct Setup<'a> {
    channel: BorrowedFd<'a>,
    cgroup: &'a [OwnedFd],
    keep: &'a KeepList,
    /// A user namespace to enter, and the namespaces to make in it.
    user: Option<(BorrowedFd<'a>, u32)>,
    nobody: u32,
    last_capability: u32,
}

fn run(setup: &Setup<'_>) -> ! {
    let Err(errno) = set_up(setup);
    let failure = Failure {
        stage: Stage::Prepare,
        index: 0,
        errno,
        note: Note::None,
    };
    // If the parent can't be told it still sees the process end.
    let _sent = relay::send(setup.channel, &report::encode_failure(&failure, &[]), None);
    clone::exit(1)
}

fn set_up(setup: &Setup<'_>) -> std::result::Result<Infallible, Errno> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    for file in setup.cgroup {
        rustix::io::write(file, b"0")?;
    }
    match setup.user {
        Some((user, namespaces)) => {
            clone::setns(user, raw::CLONE_NEWUSER)?;
            user_namespace::become_root()?;
            relay::fork(setup.channel, setup.keep, namespaces)?;
        }
        None => fd::close_all_but(setup.keep)?,
    }
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
    caps::limit_bounding(0, setup.last_capability)?;
    caps::set_ambient(0)?;
    rustix::thread::set_thread_groups(&[])?;
    let gid = rustix::process::Gid::from_raw(setup.nobody);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = rustix::process::Uid::from_raw(setup.nobody);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    caps::set(0, 0, 0)?;
    relay::send(setup.channel, &report::encode_ready(), None)?;
    fd::close_all_but(&KeepList::default())?;
    clone::pause_forever()
}
