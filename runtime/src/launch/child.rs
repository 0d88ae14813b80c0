//! The child's side, from clone to execve: straight-line code on a plan prepared beforehand.
//!
//! The child is a copy of a process it knows nothing about any more. Between clone and execve it
//! may call: `sys::{caps, clone, fd, mount, procfs::{open, write, is_procfs}, pty, seccomp}`, `launch::target`,
//! `launch::report::encode_*`, and rustix functions given C strings and descriptors (raw system
//! calls). `launch::relay` and `user_namespace::become_root` keep to this too. It never allocates, takes a lock, panics, formats text, runs a destructor of the parent's, or
//! calls glibc beyond `syscall`, `ioctl` and `_exit`. Dropping a descriptor of its own (a close) is
//! fine. `tests/kernel` runs all of it under an allocator that aborts.
//!
//! Order, and why: not dumpable first, so that a process of a shared PID namespace can't look in
//! (CVE-2016-9962); joined namespaces; the root, pivoted into before anything is mounted, so that the
//! node's files are out of reach from then on; only now, where one is joined, the PID namespace: a second
//! process is made there, which is never seen with the node's root; mounts, nodes, masks; the
//! identity; execve.

mod execute;
mod identity;
mod owned;
mod protect;
mod tree;

use std::cell::OnceCell;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;

use super::relay::{fork, send, wait};
use super::report::{self, Failure, Note, Stage};
use super::target::{self, Leaf};
use crate::plan::identity::SeccompOrder;
use crate::plan::{Plan, ProcessPlan};
use crate::sys::fd::KeepList;
use crate::sys::{clone, fd, mount, procfs, pty, seccomp};
use crate::user_namespace;

/// All a child needs.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) process: &'a ProcessPlan,
    pub(super) seccomp: Option<&'a seccomp::Program>,
    /// `SECCOMP_FILTER_FLAG_*`
    pub(super) filter_flags: u32,
    /// None with a terminal.
    pub(super) streams: Option<[BorrowedFd<'a>; 3]>,
    /// Files by which the process joins its cgroup where that isn't done by clone3.
    pub(super) cgroup: &'a [OwnedFd],
    /// All else is closed before a PID namespace others are in is entered.
    pub(super) keep: KeepList,
    pub(super) last_capability: u32,
}

/// What is launched.
#[derive(Debug)]
pub(super) enum Kind<'a> {
    Container(ContainerWork<'a>),
    /// A process in a running container.
    Exec {
        /// Its init's pidfd.
        init: BorrowedFd<'a>,
        /// It has a user namespace.
        user: bool,
    },
}

/// What a container's init needs on top.
#[derive(Debug)]
pub(super) struct ContainerWork<'a> {
    pub(super) plan: &'a Plan,
    /// The detached root mount.
    pub(super) root: BorrowedFd<'a>,
    /// The user namespace, which is entered before new ones are made.
    pub(super) user: Option<BorrowedFd<'a>>,
    /// The new ones to make then, as `CLONE_NEW*` bits; without a user namespace clone3 has made them.
    pub(super) new: u32,
    /// Where nodes can't be made: detached mounts of them, in the plan's order.
    pub(super) devices: &'a [OwnedFd],
    /// Namespaces to join, as the plan lists them, but the PID namespace.
    pub(super) joins: &'a [(u32, OwnedFd)],
    /// The PID namespace to join.
    pub(super) pid_namespace: Option<BorrowedFd<'a>>,
    /// Detached copies of bind sources, by the mount's place in the plan.
    pub(super) trees: &'a [Option<OwnedFd>],
    /// Room for the mounts the child makes, one each.
    pub(super) made: &'a [OnceCell<OwnedFd>],
    /// A detached mount of the node's `/dev/null`.
    pub(super) null: BorrowedFd<'a>,
}

type Step<T> = Result<T, Failure>;

/// Puts the stage and the place in the plan to an errno.
trait At<T> {
    fn at(self, stage: Stage, index: usize) -> Step<T>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, stage: Stage, index: usize) -> Step<T> {
        self.map_err(|errno| failure(stage, index, errno, Note::None))
    }
}

fn failure(stage: Stage, index: usize, errno: Errno, note: Note) -> Failure {
    Failure {
        stage,
        index: u16::try_from(index).unwrap_or(u16::MAX),
        errno,
        note,
    }
}

/// The work and the child's end of the socket to the parent.
struct Running<'a> {
    work: &'a Work<'a>,
    channel: BorrowedFd<'a>,
}

impl<'a> std::ops::Deref for Running<'a> {
    type Target = Work<'a>;

    fn deref(&self) -> &Work<'a> {
        self.work
    }
}

/// Runs the child's side to its end.
pub(super) fn run(work: &Work<'_>, channel: BorrowedFd<'_>) -> ! {
    let mut text = [0; report::TEXT];
    let mut length = 0;
    let Err(failure) = launch(&Running { work, channel }, &mut text, &mut length);
    let text = text.get(..length).unwrap_or_default();
    // If even the report can't be sent the parent still sees the process end.
    let _sent = send(channel, &report::encode_failure(&failure, text), None);
    clone::exit(1)
}

fn launch(
    work: &Running<'_>,
    text: &mut [u8; report::TEXT],
    length: &mut usize,
) -> Step<Infallible> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .at(Stage::Prepare, 0)?;
    rustix::process::umask(Mode::empty());
    for (index, file) in work.cgroup.iter().enumerate() {
        rustix::io::write(file, b"0").at(Stage::Cgroup, index)?;
    }
    let terminal = match &work.kind {
        Kind::Container(container) => enter_container(work, container)?,
        Kind::Exec { init, user } => enter_running(work, *init, *user)?,
    };
    identity::streams(work, terminal.as_ref())?;
    drop(terminal);
    clone::reset_signals().at(Stage::Signals, 0)?;
    fd::close_all_on_exec().at(Stage::Streams, 0)?;
    identity::become_user(work)?;
    if work.process.identity.seccomp == SeccompOrder::Last {
        identity::load_filter(work)?;
    }
    send(work.channel, &report::encode_ready(), None).at(Stage::Prepare, 0)?;
    Err(execute::execute(work.process, text, length))
}

/// A terminal's two ends.
struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

// ---- A new container ----

fn enter_container(work: &Running<'_>, container: &ContainerWork<'_>) -> Step<Option<Terminal>> {
    let mut waited = true;
    match container.user {
        Some(user) => owned::enter(work, container, user)?,
        None => waited = enter(work, container)?,
    }
    let plan = container.plan;
    let root = open_root().at(Stage::Root, 0)?;
    let root = root.as_fd();
    for name in [
        plan.hostname.as_deref().map(rustix::system::sethostname),
        plan.domainname
            .as_deref()
            .map(rustix::system::setdomainname),
    ]
    .into_iter()
    .flatten()
    {
        name.at(Stage::Hostname, 0)?;
    }
    let made = tree::mounts(container, root)?;
    tree::nodes(plan, container.devices, root)?;
    let terminal = match work.process.identity.terminal {
        Some(_) => Some(tree::container_terminal(&made, root)?),
        None => None,
    };
    if !plan.sysctls.is_empty() {
        let private = match made.proc {
            Some(_) => None,
            None => Some(tree::new_procfs()?),
        };
        let proc = made.proc.or(private.as_ref().map(|proc| proc.as_fd()));
        for (index, (path, value)) in plan.sysctls.iter().enumerate() {
            let written = proc.map_or(Err(Errno::NODEV), |proc| procfs::write(proc, path, value));
            written.at(Stage::Sysctl, index)?;
        }
    }
    identity::label(work, made.proc)?;
    let cwd = target::ensure(root, &work.process.command.cwd, Leaf::Directory)
        .at(Stage::WorkingDirectory, 0)?;
    protect::protect(container, root)?;
    if !waited {
        wait(work.channel).at(Stage::Wait, 0)?;
    }
    enter_directory(cwd.as_fd())?;
    Ok(terminal)
}

/// Enters the namespaces of a container without a user namespace of its own; "/" is then its root.
/// True if the parent has given the go-ahead.
fn enter(work: &Running<'_>, container: &ContainerWork<'_>) -> Step<bool> {
    for (index, (kind, namespace)) in container.joins.iter().enumerate() {
        clone::setns(namespace.as_fd(), *kind).at(Stage::Join, index)?;
    }
    if container.plan.namespaces.new_cgroup {
        // Not by clone3: its root would be the monitor's group instead of the container's.
        clone::unshare(raw::CLONE_NEWCGROUP).at(Stage::CgroupNamespace, 0)?;
    }
    take_root(container.root).at(Stage::Root, 0)?;
    let Some(namespace) = container.pid_namespace else {
        return Ok(false);
    };
    clone::setns(namespace, raw::CLONE_NEWPID).at(Stage::Fork, 0)?;
    wait(work.channel).at(Stage::Wait, 0)?;
    fork(work.channel, &work.keep, 0).at(Stage::Fork, 0)?;
    Ok(true)
}

/// Makes the detached mount the root of the mount namespace, nothing of the node's left in it.
fn take_root(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::mount::mount_change(
        c"/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?;
    mount::attach_on_root(tree)?;
    mount::pivot_into(tree)
}

fn open_root() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/", flags, Mode::empty())
}

/// Enters a directory and makes sure that it lies within the root (CVE-2024-21626).
fn enter_directory(directory: BorrowedFd<'_>) -> Step<()> {
    rustix::process::fchdir(directory).at(Stage::WorkingDirectory, 0)?;
    let mut buffer = [0; 4096];
    let path = clone::getcwd(&mut buffer).at(Stage::WorkingDirectory, 0)?;
    if path.to_bytes().first() == Some(&b'/') {
        Ok(())
    } else {
        // "(unreachable)/…", getcwd(2)
        Err(failure(
            Stage::WorkingDirectory,
            0,
            Errno::INVAL,
            Note::Outside,
        ))
    }
}

// ---- A process in a running container ----

fn enter_running(work: &Running<'_>, init: BorrowedFd<'_>, user: bool) -> Step<Option<Terminal>> {
    wait(work.channel).at(Stage::Wait, 0)?;
    let mut all = raw::CLONE_NEWNS
        | raw::CLONE_NEWPID
        | raw::CLONE_NEWNET
        | raw::CLONE_NEWIPC
        | raw::CLONE_NEWUTS
        | raw::CLONE_NEWCGROUP;
    if user {
        // Not otherwise: the own user namespace can't be entered again (setns(2)).
        all |= raw::CLONE_NEWUSER;
        identity::raise_limits(work.process);
    }
    clone::setns(init, all).at(Stage::Enter, 0)?;
    if user {
        user_namespace::become_root().at(Stage::UserNamespace, 0)?;
    }
    fork(work.channel, &work.keep, 0).at(Stage::Fork, 0)?;
    let root = open_root().at(Stage::Enter, 0)?;
    let terminal = match work.process.identity.terminal {
        Some(_) => {
            let path = c"dev/pts";
            let devpts = target::find(
                root.as_fd(),
                path,
                OFlags::DIRECTORY,
                ResolveFlags::NO_SYMLINKS,
            )
            .at(Stage::Terminal, 0)?;
            let (master, slave) = pty::open(devpts.as_fd()).at(Stage::Terminal, 0)?;
            Some(Terminal { master, slave })
        }
        None => None,
    };
    identity::label(work, None)?;
    let cwd = target::find(
        root.as_fd(),
        &work.process.command.cwd,
        OFlags::DIRECTORY,
        ResolveFlags::empty(),
    )
    .at(Stage::WorkingDirectory, 0)?;
    enter_directory(cwd.as_fd())?;
    Ok(terminal)
}
