//! The child's side, from clone to execve: straight-line code on a plan prepared beforehand.
//!
//! The child is a copy of a process it knows nothing about any more. Between clone and execve it
//! may call: `sys::{caps, clone, fd, mount, procfs::{open, write, is_procfs}, pty, seccomp}`, `launch::target`,
//! `launch::report::encode_*`, and rustix functions given C strings and descriptors (raw system
//! calls). It never allocates, takes a lock, panics, formats text, runs a destructor of the parent's, or
//! calls glibc beyond `syscall`, `ioctl` and `_exit`. Dropping a descriptor of its own (a close) is
//! fine. `tests/child_allocates_nothing.rs` runs all of it under an allocator that aborts.
//!
//! Order, and why: not dumpable first, so that a process of a shared PID namespace can't look in
//! (CVE-2016-9962); joined namespaces; the root, pivoted into before anything is mounted, so that the
//! node's files are out of reach from then on; only now, where one is joined, the PID namespace: a second
//! process is made there, which is never seen with the node's root; mounts, nodes, masks; the
//! identity; execve.

use std::cell::OnceCell;
use std::convert::Infallible;
use std::ffi::CStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::report::{self, Failure, Note, Stage};
use super::target::{self, Leaf};
use crate::plan::identity::SeccompOrder;
use crate::plan::mounts::{MountPlan, Source};
use crate::plan::{Plan, ProcessPlan};
use crate::sys::clone::{CloneOptions, Cloned};
use crate::sys::fd::KeepList;
use crate::sys::mount::{self, Attributes};
use crate::sys::{caps, clone, fd, procfs, pty, seccomp};

/// All a child needs.
#[derive(Debug)]
pub(super) struct Work<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) process: &'a ProcessPlan,
    pub(super) seccomp: Option<&'a seccomp::Program>,
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
    /// A process in a running container: its init's pidfd.
    Exec(BorrowedFd<'a>),
}

/// What a container's init needs on top.
#[derive(Debug)]
pub(super) struct ContainerWork<'a> {
    pub(super) plan: &'a Plan,
    /// The detached root mount.
    pub(super) root: BorrowedFd<'a>,
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
        Kind::Exec(init) => enter_running(work, *init)?,
    };
    streams(work, terminal.as_ref())?;
    drop(terminal);
    clone::reset_signals().at(Stage::Signals, 0)?;
    fd::close_all_on_exec().at(Stage::Streams, 0)?;
    become_user(work)?;
    if work.process.identity.seccomp == SeccompOrder::Last {
        load_filter(work)?;
    }
    send(work.channel, &report::encode_ready(), None).at(Stage::Prepare, 0)?;
    Err(execute(work.process, text, length))
}

/// A terminal's two ends.
struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

// ---- A new container ----

fn enter_container(work: &Running<'_>, container: &ContainerWork<'_>) -> Step<Option<Terminal>> {
    let plan = container.plan;
    for (index, (kind, namespace)) in container.joins.iter().enumerate() {
        clone::setns(namespace.as_fd(), *kind).at(Stage::Join, index)?;
    }
    if plan.namespaces.new_cgroup {
        // Not by clone3: its root would be the monitor's group instead of the container's.
        clone::unshare(raw::CLONE_NEWCGROUP).at(Stage::CgroupNamespace, 0)?;
    }
    take_root(container.root).at(Stage::Root, 0)?;
    if let Some(namespace) = container.pid_namespace {
        clone::setns(namespace, raw::CLONE_NEWPID).at(Stage::Fork, 0)?;
        wait(work.channel).at(Stage::Wait, 0)?;
        fork(work)?;
    }
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
    let made = mounts(container, root)?;
    nodes(plan, root)?;
    let terminal = match work.process.identity.terminal {
        Some(_) => Some(container_terminal(&made, root)?),
        None => None,
    };
    if !plan.sysctls.is_empty() {
        let private = match made.proc {
            Some(_) => None,
            None => Some(new_procfs()?),
        };
        let proc = made.proc.or(private.as_ref().map(|proc| proc.as_fd()));
        for (index, (path, value)) in plan.sysctls.iter().enumerate() {
            let written = proc.map_or(Err(Errno::NODEV), |proc| procfs::write(proc, path, value));
            written.at(Stage::Sysctl, index)?;
        }
    }
    label(work, made.proc)?;
    let cwd = target::ensure(root, &work.process.command.cwd, Leaf::Directory)
        .at(Stage::WorkingDirectory, 0)?;
    protect(container, root)?;
    if container.pid_namespace.is_none() {
        wait(work.channel).at(Stage::Wait, 0)?;
    }
    enter_directory(cwd.as_fd())?;
    Ok(terminal)
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

/// Mounts that are used again.
#[derive(Default)]
struct Made<'a> {
    proc: Option<BorrowedFd<'a>>,
    devpts: Option<BorrowedFd<'a>>,
}

fn mounts<'a>(container: &ContainerWork<'a>, root: BorrowedFd<'_>) -> Step<Made<'a>> {
    let mut made = Made::default();
    let places = container.trees.iter().zip(container.made);
    for (index, (plan, (tree, slot))) in container.plan.mounts.iter().zip(places).enumerate() {
        if let Source::Filesystem {
            kind,
            source,
            options,
        } = &plan.source
        {
            let own = filesystem(index, plan, kind, source.as_deref(), options)?;
            // A slot is filled once, so this can't fail.
            let _filled = slot.set(own);
        }
        let Some(tree) = tree.as_ref().or(slot.get()).map(|tree| tree.as_fd()) else {
            continue; // an optional bind whose source doesn't exist
        };
        let place = mount_target(index, plan, tree, root)?;
        mount::attach(tree, place.as_fd()).at(Stage::Mount, index)?;
        for (name, to) in &plan.links {
            rustix::fs::symlinkat(to.as_c_str(), tree, name.as_c_str())
                .at(Stage::MountLink, index)?;
        }
        if plan.is("proc") && plan.destination.as_c_str() == c"proc" {
            made.proc = Some(tree);
        } else if plan.is("devpts") && made.devpts.is_none() {
            made.devpts = Some(tree);
        }
    }
    Ok(made)
}

fn filesystem(
    index: usize,
    plan: &MountPlan,
    kind: &CStr,
    source: Option<&CStr>,
    options: &[(std::ffi::CString, Option<std::ffi::CString>)],
) -> Step<OwnedFd> {
    let context = mount::open_filesystem(kind).at(Stage::Mount, index)?;
    if let Some(source) = source {
        rustix::mount::fsconfig_set_string(context.as_fd(), c"source", source)
            .at(Stage::MountOption, index)?;
    }
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(
                context.as_fd(),
                key.as_c_str(),
                value.as_c_str(),
            ),
            None => rustix::mount::fsconfig_set_flag(context.as_fd(), key.as_c_str()),
        }
        .at(Stage::MountOption, index)?;
    }
    let tree =
        mount::mount_detached(context.as_fd(), plan.attributes.set).at(Stage::Mount, index)?;
    if !plan.recursive.is_empty() {
        mount::set_attributes(tree.as_fd(), true, plan.recursive).at(Stage::MountOption, index)?;
    }
    Ok(tree)
}

/// Finds or makes what is mounted on, and refuses what must not be.
fn mount_target(
    index: usize,
    plan: &MountPlan,
    tree: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
) -> Step<OwnedFd> {
    let refuse = |note| Err(failure(Stage::MountTarget, index, Errno::INVAL, note));
    let leaf = if fd::is_directory(tree).at(Stage::MountTarget, index)? {
        Leaf::Directory
    } else {
        Leaf::File
    };
    let strict = plan.real_directory || plan.on_proc_file;
    let place = if strict {
        match target::find(
            root,
            &plan.destination,
            OFlags::empty(),
            ResolveFlags::NO_SYMLINKS,
        ) {
            Err(Errno::NOENT) => target::ensure(root, &plan.destination, leaf),
            Err(Errno::LOOP) => return refuse(Note::IsLink),
            other => other,
        }
    } else {
        target::ensure(root, &plan.destination, leaf)
    }
    .at(Stage::MountTarget, index)?;
    if plan.real_directory && !fd::is_directory(place.as_fd()).at(Stage::MountTarget, index)? {
        return refuse(Note::IsLink);
    }
    if procfs::is_procfs(place.as_fd()).at(Stage::MountTarget, index)? && !plan.on_proc_file {
        return refuse(Note::OnProcfs);
    }
    if target::same(place.as_fd(), root).at(Stage::MountTarget, index)? {
        return refuse(Note::IsRoot);
    }
    Ok(place)
}

fn nodes(plan: &Plan, root: BorrowedFd<'_>) -> Step<()> {
    for (index, node) in plan.nodes.devices.iter().enumerate() {
        let directory =
            target::ensure(root, &node.directory, Leaf::Directory).at(Stage::Device, index)?;
        if procfs::is_procfs(directory.as_fd()).at(Stage::Device, index)? {
            return Err(failure(Stage::Device, index, Errno::INVAL, Note::OnProcfs));
        }
        let mode = Mode::from_raw_mode(node.mode);
        match rustix::fs::mknodat(
            &directory,
            node.name.as_c_str(),
            node.kind,
            mode,
            node.number,
        ) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // Fine if it is the same device, as in a /dev bound from the node; a link is not.
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let stat = rustix::fs::statat(&directory, node.name.as_c_str(), flags)
                    .at(Stage::Device, index)?;
                if FileType::from_raw_mode(stat.st_mode) != node.kind || stat.st_rdev != node.number
                {
                    return Err(failure(Stage::Device, index, Errno::EXIST, Note::Mismatch));
                }
                continue;
            }
            Err(errno) => return Err(failure(Stage::Device, index, errno, Note::None)),
        }
        if node.uid != 0 || node.gid != 0 {
            rustix::fs::chownat(
                &directory,
                node.name.as_c_str(),
                Some(rustix::fs::Uid::from_raw(node.uid)),
                Some(rustix::fs::Gid::from_raw(node.gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .at(Stage::Device, index)?;
        }
    }
    if plan.nodes.links.is_empty() {
        return Ok(());
    }
    // Only planned for a /dev that is the container's own new mount.
    let dev = target::find(root, c"dev", OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
        .at(Stage::DeviceLink, 0)?;
    for (index, (name, to)) in plan.nodes.links.iter().enumerate() {
        match rustix::fs::symlinkat(to.as_c_str(), &dev, name.as_c_str()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failure(Stage::DeviceLink, index, errno, Note::None)),
        }
    }
    Ok(())
}

/// A terminal of the container's own devpts, its slave bound on `/dev/console`.
fn container_terminal(made: &Made<'_>, root: BorrowedFd<'_>) -> Step<Terminal> {
    let Some(devpts) = &made.devpts else {
        return Err(failure(Stage::Terminal, 0, Errno::NODEV, Note::None));
    };
    let (master, slave) = pty::open(devpts.as_fd()).at(Stage::Terminal, 0)?;
    let dev = match target::find(root, c"dev", OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS) {
        Ok(dev) => dev,
        Err(Errno::LOOP) => return Err(failure(Stage::Console, 0, Errno::LOOP, Note::IsLink)),
        Err(errno) => return Err(failure(Stage::Console, 0, errno, Note::None)),
    };
    // The target is a file just made, or what is there if that is no link (CVE-2025-52565).
    let create =
        OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(&dev, c"console", create, Mode::from_raw_mode(0o600)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(failure(Stage::Console, 0, errno, Note::None)),
    }
    let place = rustix::fs::openat(
        &dev,
        c"console",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Stage::Console, 0)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place).at(Stage::Console, 0)?.st_mode);
    let procfs = procfs::is_procfs(place.as_fd()).at(Stage::Console, 0)?;
    if procfs || !(kind.is_file() || kind.is_char_device()) {
        return Err(failure(Stage::Console, 0, Errno::INVAL, Note::Mismatch));
    }
    let tree = mount::clone_tree(slave.as_fd(), c"", false).at(Stage::Console, 0)?;
    mount::attach(tree.as_fd(), place.as_fd()).at(Stage::Console, 0)?;
    Ok(Terminal { master, slave })
}

/// A procfs of our own, mounted nowhere.
fn new_procfs() -> Step<OwnedFd> {
    let context = mount::open_filesystem(c"proc").at(Stage::Procfs, 0)?;
    let attributes = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    mount::mount_detached(context.as_fd(), attributes).at(Stage::Procfs, 0)
}

/// What makes the tree as read-only and hidden as the spec says. Last, so that nothing is
/// mounted over a mask; any failure is fatal (CVE-2025-31133).
fn protect(container: &ContainerWork<'_>, root: BorrowedFd<'_>) -> Step<()> {
    let plan = container.plan;
    let places = container.trees.iter().zip(container.made);
    for (index, (mount, (tree, slot))) in plan.mounts.iter().zip(places).enumerate() {
        // By descriptor: the path may lead elsewhere by now, through a volume others write to.
        if let (true, Some(tree)) = (mount.late_readonly, tree.as_ref().or(slot.get())) {
            set_readonly(tree.as_fd(), false).at(Stage::LateReadonly, index)?;
        }
    }
    for (index, path) in plan.readonly.iter().enumerate() {
        let Some(place) = existing(root, path).at(Stage::ReadonlyPath, index)? else {
            continue;
        };
        let tree = mount::clone_tree(place.as_fd(), c"", true).at(Stage::ReadonlyPath, index)?;
        set_readonly(tree.as_fd(), true).at(Stage::ReadonlyPath, index)?;
        mount::attach(tree.as_fd(), place.as_fd()).at(Stage::ReadonlyPath, index)?;
    }
    mask(container, root)?;
    if plan.root_readonly {
        set_readonly(root, false).at(Stage::RootReadonly, 0)?;
    }
    if plan.root_propagation != 0 {
        let attributes = Attributes {
            propagation: plan.root_propagation,
            ..Attributes::default()
        };
        mount::set_attributes(root, false, attributes).at(Stage::RootReadonly, 0)?;
    }
    Ok(())
}

/// Hides paths: files by the node's `/dev/null`, which the parent opened and checked, directories by one
/// empty tmpfs that can't be written to.
fn mask(container: &ContainerWork<'_>, root: BorrowedFd<'_>) -> Step<()> {
    let mut empty: Option<OwnedFd> = None;
    let mut null_used = false;
    for (index, path) in container.plan.masked.iter().enumerate() {
        let Some(place) = existing(root, path).at(Stage::MaskedPath, index)? else {
            continue;
        };
        if target::same(place.as_fd(), root).at(Stage::MaskedPath, index)? {
            return Err(failure(
                Stage::MaskedPath,
                index,
                Errno::INVAL,
                Note::IsRoot,
            ));
        }
        if fd::is_directory(place.as_fd()).at(Stage::MaskedPath, index)? {
            match &empty {
                Some(first) => {
                    attach_copy(first.as_fd(), place.as_fd()).at(Stage::MaskedPath, index)?
                }
                None => {
                    let tree = mount::empty_directory().at(Stage::MaskedPath, index)?;
                    mount::attach(tree.as_fd(), place.as_fd()).at(Stage::MaskedPath, index)?;
                    empty = Some(tree);
                }
            }
        } else if null_used {
            attach_copy(container.null, place.as_fd()).at(Stage::MaskedPath, index)?;
        } else {
            mount::attach(container.null, place.as_fd()).at(Stage::MaskedPath, index)?;
            null_used = true;
        }
    }
    Ok(())
}

/// A mount is attached once; what is attached in this namespace can be copied.
fn attach_copy(attached: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let copy = mount::clone_tree(attached, c"", false)?;
    mount::attach(copy.as_fd(), place)
}

fn set_readonly(tree: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    let attributes = Attributes {
        set: mount::RDONLY,
        ..Attributes::default()
    };
    mount::set_attributes(tree, recursive, attributes)
}

/// What is at a path, or nothing.
fn existing(root: BorrowedFd<'_>, path: &CStr) -> Result<Option<OwnedFd>, Errno> {
    match target::find(root, path, OFlags::empty(), ResolveFlags::empty()) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
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

fn enter_running(work: &Running<'_>, init: BorrowedFd<'_>) -> Step<Option<Terminal>> {
    wait(work.channel).at(Stage::Wait, 0)?;
    let all = raw::CLONE_NEWNS
        | raw::CLONE_NEWPID
        | raw::CLONE_NEWNET
        | raw::CLONE_NEWIPC
        | raw::CLONE_NEWUTS
        | raw::CLONE_NEWCGROUP;
    clone::setns(init, all).at(Stage::Enter, 0)?;
    fork(work)?;
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
    label(work, None)?;
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

/// Goes on as a new process in the PID namespace entered before: a child of the parent's, as this one is.
/// The caller tells the parent and ends. Only what is still needed stays open.
fn fork(work: &Running<'_>) -> Step<()> {
    fd::close_all_but(&work.keep).at(Stage::Prepare, 0)?;
    let options = CloneOptions {
        sibling: true,
        ..CloneOptions::default()
    };
    match clone::clone3(options).at(Stage::Fork, 0)? {
        Cloned::Child => Ok(()),
        Cloned::Parent { pid, pidfd } => {
            match send(
                work.channel,
                &report::encode_forked(pid),
                Some(pidfd.as_fd()),
            ) {
                Ok(()) => clone::exit(0),
                Err(_) => {
                    // The parent is gone: nobody would look after the new process.
                    let _sent =
                        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                    clone::exit(1)
                }
            }
        }
    }
}

// ---- Both ----

fn streams(work: &Running<'_>, terminal: Option<&Terminal>) -> Step<()> {
    rustix::process::setsid().at(Stage::Streams, 0)?;
    let identity = &work.process.identity;
    match (terminal, work.streams) {
        (Some(terminal), _) => {
            let slave = terminal.slave.as_fd();
            if let Some(Some((columns, rows))) = identity.terminal {
                pty::set_size(slave, columns, rows).at(Stage::Terminal, 0)?;
            }
            rustix::process::ioctl_tiocsctty(slave).at(Stage::Terminal, 0)?;
            give_away(slave, identity.uid)?;
            send(
                work.channel,
                &report::encode_terminal(),
                Some(terminal.master.as_fd()),
            )
            .at(Stage::Terminal, 0)?;
            fd::set_standard_streams([slave, slave, slave]).at(Stage::Streams, 0)
        }
        (None, Some(streams)) => {
            for stream in streams {
                give_away(stream, identity.uid)?;
            }
            fd::set_standard_streams(streams).at(Stage::Streams, 0)
        }
        (None, None) => Err(failure(Stage::Streams, 0, Errno::BADF, Note::None)),
    }
}

/// Lets the user open its streams again by `/dev/stdout` and the like: pipes and terminals belong to
/// their maker. What can't be changed stays, as in the peers.
fn give_away(stream: BorrowedFd<'_>, uid: u32) -> Step<()> {
    let stat = rustix::fs::fstat(stream).at(Stage::Streams, 0)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let null = kind.is_char_device() && stat.st_rdev == rustix::fs::makedev(1, 3);
    if stat.st_uid == uid || null || !(kind.is_char_device() || kind.is_fifo()) {
        return Ok(());
    }
    match rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None) {
        Ok(()) | Err(Errno::PERM | Errno::ROFS | Errno::INVAL | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(failure(Stage::Streams, 0, errno, Note::None)),
    }
}

/// Writes the label for the next execve, into a procfs that is known to be one (CVE-2019-19921).
fn label(work: &Running<'_>, proc: Option<BorrowedFd<'_>>) -> Step<()> {
    let Some((path, label)) = &work.process.identity.label else {
        return Ok(());
    };
    match proc {
        Some(proc) => procfs::write(proc, path, label).at(Stage::Label, 0),
        None => procfs::write(new_procfs()?.as_fd(), path, label).at(Stage::Label, 0),
    }
}

/// Limits, privileges and ids, in the only order in which each step still may (capabilities(7)).
fn become_user(work: &Running<'_>) -> Step<()> {
    let identity = &work.process.identity;
    match clone::new_session_keyring() {
        // ENOSYS: a kernel without keys has none to leak.
        Ok(()) | Err(Errno::NOSYS) => {}
        Err(errno) => return Err(failure(Stage::Keyring, 0, errno, Note::None)),
    }
    for (index, limit) in identity.limits.iter().enumerate() {
        set_limit(limit).at(Stage::Limit, index)?;
    }
    if identity.no_new_privileges {
        rustix::thread::set_no_new_privs(true).at(Stage::NoNewPrivileges, 0)?;
    }
    let wanted = &identity.capabilities;
    caps::limit_bounding(wanted.bounding, work.last_capability).at(Stage::Bounding, 0)?;
    caps::set_ambient(0).at(Stage::Ambient, 0)?;
    if identity.uid != 0 {
        // Else setuid would drop what the last steps need; execve clears it again.
        rustix::thread::set_keep_capabilities(true).at(Stage::Capabilities, 0)?;
    }
    rustix::thread::set_thread_groups(&identity.groups).at(Stage::Groups, 0)?;
    let gid = rustix::process::Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).at(Stage::Ids, 0)?;
    let uid = rustix::process::Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).at(Stage::Ids, 0)?;
    rustix::process::umask(Mode::from_raw_mode(identity.umask));
    if work.seccomp.is_some() && identity.seccomp == SeccompOrder::BeforeCapabilities {
        let held = caps::permitted().at(Stage::Capabilities, 0)?;
        let for_now = wanted.permitted | held & caps::SYS_ADMIN;
        caps::set(for_now, for_now, wanted.inheritable).at(Stage::Capabilities, 0)?;
        load_filter(work)?;
    }
    caps::set(wanted.effective, wanted.permitted, wanted.inheritable).at(Stage::Capabilities, 0)?;
    if wanted.ambient != 0 {
        caps::set_ambient(wanted.ambient).at(Stage::Ambient, 0)?;
    }
    Ok(())
}

fn load_filter(work: &Running<'_>) -> Step<()> {
    match work.seccomp {
        Some(program) => seccomp::load(program).at(Stage::Seccomp, 0),
        None => Ok(()),
    }
}

/// Sets a limit; where its hard part can't be raised, as near as allowed.
fn set_limit(limit: &crate::plan::identity::Limit) -> Result<(), Errno> {
    match rustix::process::setrlimit(limit.resource, limit.limit) {
        Err(Errno::PERM) => {
            let present = rustix::process::getrlimit(limit.resource).maximum;
            let lower = |wanted: Option<u64>| match (wanted, present) {
                (Some(wanted), Some(present)) => Some(wanted.min(present)),
                (None, present) => present,
                (wanted, None) => wanted,
            };
            let clamped = rustix::process::Rlimit {
                current: lower(limit.limit.current),
                maximum: lower(limit.limit.maximum),
            };
            rustix::process::setrlimit(limit.resource, clamped)
        }
        other => other,
    }
}

/// Tries each candidate as execvp(3) does. Returns why none could be executed.
fn execute(process: &ProcessPlan, text: &mut [u8; report::TEXT], length: &mut usize) -> Failure {
    let command = &process.command;
    let mut denied = None;
    for candidate in &command.candidates {
        let errno = clone::execve(candidate, &command.arguments, &command.environment);
        match errno {
            Errno::NOENT if exists(candidate) => {
                *length = beginning(candidate, text).unwrap_or(0);
                return failure(Stage::Execute, 0, errno, Note::Interpreter);
            }
            Errno::NOENT | Errno::NOTDIR if command.searched => {}
            Errno::ACCESS if is_directory(candidate) => {
                denied = denied.or(Some(Note::Directory));
            }
            Errno::ACCESS => denied = Some(Note::None),
            errno => return failure(Stage::Execute, 0, errno, Note::None),
        }
    }
    match denied {
        // A directory of the program's name on PATH is passed over, as shells do.
        Some(Note::Directory) if command.searched => {
            failure(Stage::Execute, 0, Errno::NOENT, Note::None)
        }
        Some(note) => failure(Stage::Execute, 0, Errno::ACCESS, note),
        None => failure(Stage::Execute, 0, Errno::NOENT, Note::None),
    }
}

fn exists(path: &CStr) -> bool {
    rustix::fs::statat(rustix::fs::CWD, path, AtFlags::empty()).is_ok()
}

fn is_directory(path: &CStr) -> bool {
    rustix::fs::statat(rustix::fs::CWD, path, AtFlags::empty())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// The first bytes of a program; it was found to be a file that execve opened.
fn beginning(path: &CStr, text: &mut [u8]) -> Result<usize, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::io::read(&file, text)
}

fn send(
    channel: BorrowedFd<'_>,
    message: &[u8],
    attached: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = attached.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !ancillary.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(Errno::NOBUFS);
    }
    if fds.is_none() {
        // A plain write: a filter that is loaded by now surely allows it.
        return rustix::io::write(channel, message).map(|_| ());
    }
    sendmsg(
        channel,
        &[IoSlice::new(message)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(|_| ())
}

/// Waits for the parent's byte. End of file: the parent gave up.
fn wait(channel: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0_u8; 1];
    loop {
        match rustix::io::read(channel, &mut byte) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(Errno::PIPE),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
