//! A container's tree, in the child: mounts in the plan's order, device nodes, links, the console.

use std::cell::OnceCell;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{At, ContainerWork, Step, Terminal, failure};
use crate::launch::report::{Note, Stage};
use crate::launch::target::{self, Leaf};
use crate::plan::Plan;
use crate::plan::mounts::{MountPlan, Source};
use crate::plan::nodes::DeviceNode;
use crate::sys::{fd, mount, procfs, pty};

/// Mounts that are used again.
#[derive(Default)]
pub(super) struct Made<'a> {
    pub(super) proc: Option<BorrowedFd<'a>>,
    devpts: Option<BorrowedFd<'a>>,
}

/// Makes the container's new file systems, mounted nowhere yet.
pub(super) fn filesystems(container: &ContainerWork<'_>) -> Step<()> {
    for (index, (plan, slot)) in container.plan.mounts.iter().zip(container.made).enumerate() {
        make_filesystem(index, plan, slot)?;
    }
    Ok(())
}

fn make_filesystem(index: usize, plan: &MountPlan, slot: &OnceCell<OwnedFd>) -> Step<()> {
    if let (
        None,
        Source::Filesystem {
            kind,
            source,
            options,
        },
    ) = (slot.get(), &plan.source)
    {
        let own = filesystem(index, plan, kind, source.as_deref(), options)?;
        // It was found empty, so this can't fail.
        let _filled = slot.set(own);
    }
    Ok(())
}

pub(super) fn mounts<'a>(container: &ContainerWork<'a>, root: BorrowedFd<'_>) -> Step<Made<'a>> {
    let mut made = Made::default();
    let places = container.trees.iter().zip(container.made);
    for (index, (plan, (tree, slot))) in container.plan.mounts.iter().zip(places).enumerate() {
        make_filesystem(index, plan, slot)?;
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
    options: &[(CString, Option<CString>)],
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

/// Makes the nodes, or puts `devices` in their places: in a user namespace no node can be made
/// (mknod(2) asks for CAP_MKNOD on the node).
pub(super) fn nodes(plan: &Plan, devices: &[OwnedFd], root: BorrowedFd<'_>) -> Step<()> {
    for (index, node) in plan.nodes.devices.iter().enumerate() {
        let directory =
            target::ensure(root, &node.directory, Leaf::Directory).at(Stage::Device, index)?;
        if procfs::is_procfs(directory.as_fd()).at(Stage::Device, index)? {
            return Err(failure(Stage::Device, index, Errno::INVAL, Note::OnProcfs));
        }
        let made = match devices.get(index) {
            Some(device) => bind_node(node, device.as_fd(), directory.as_fd()),
            None => make_node(node, directory.as_fd()),
        };
        match made {
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
            }
            Err(errno) => return Err(failure(Stage::Device, index, errno, Note::None)),
        }
    }
    links(plan, root)
}

fn make_node(node: &DeviceNode, directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(node.mode);
    let name = node.name.as_c_str();
    rustix::fs::mknodat(directory, name, node.kind, mode, node.number)?;
    if node.uid == 0 && node.gid == 0 {
        return Ok(());
    }
    rustix::fs::chownat(
        directory,
        name,
        Some(rustix::fs::Uid::from_raw(node.uid)),
        Some(rustix::fs::Gid::from_raw(node.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

fn bind_node(
    node: &DeviceNode,
    device: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let name = node.name.as_c_str();
    let create =
        OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    drop(rustix::fs::openat(directory, name, create, Mode::empty())?);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    mount::attach(device, place.as_fd())
}

fn links(plan: &Plan, root: BorrowedFd<'_>) -> Step<()> {
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
pub(super) fn container_terminal(made: &Made<'_>, root: BorrowedFd<'_>) -> Step<Terminal> {
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
pub(super) fn new_procfs() -> Step<OwnedFd> {
    let context = mount::open_filesystem(c"proc").at(Stage::Procfs, 0)?;
    let attributes = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    mount::mount_detached(context.as_fd(), attributes).at(Stage::Procfs, 0)
}
