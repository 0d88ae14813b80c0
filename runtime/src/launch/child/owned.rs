//! Entering the namespaces of a container that has a user namespace, in the child.
//!
//! Order, and why: namespaces to join while the node's privileges are held; the user namespace, and
//! root in it; only then new namespaces, which so belong to it; the process of the PID namespace;
//! and its file systems while the node's mounts are still there, as procfs and sysfs are mounted in
//! a user namespace only where a whole one is visible (mount_too_revealing of fs/namespace.c). The node's
//! root is out of others' reach meanwhile: the process is not dumpable, and its memory belongs to
//! the node's user namespace until execve, so looking in takes CAP_SYS_PTRACE on the node.

use std::os::fd::{AsFd, BorrowedFd};

use linux_raw_sys::general as raw;

use super::{At, ContainerWork, Running, Step, identity, take_root, tree};
use crate::launch::relay;
use crate::launch::report::Stage;
use crate::sys::clone;
use crate::user_namespace;

/// Enters everything; "/" is then the container's root, and the parent has given the go-ahead.
pub(super) fn enter(
    work: &Running<'_>,
    container: &ContainerWork<'_>,
    user: BorrowedFd<'_>,
) -> Step<()> {
    let joined = container
        .pid_namespace
        .map(|namespace| (raw::CLONE_NEWPID, namespace));
    for (index, (kind, namespace)) in container
        .joins
        .iter()
        .map(|(kind, namespace)| (*kind, namespace.as_fd()))
        .chain(joined)
        .enumerate()
    {
        clone::setns(namespace, kind).at(Stage::Join, index)?;
    }
    identity::raise_limits(work.process);
    clone::setns(user, raw::CLONE_NEWUSER).at(Stage::UserNamespace, 0)?;
    user_namespace::become_root().at(Stage::UserNamespace, 0)?;
    clone::unshare(container.new & !raw::CLONE_NEWPID).at(Stage::UserNamespace, 0)?;
    if container.plan.namespaces.new_cgroup {
        clone::unshare(raw::CLONE_NEWCGROUP).at(Stage::CgroupNamespace, 0)?;
    }
    relay::wait(work.channel).at(Stage::Wait, 0)?;
    let new_pid = container.new & raw::CLONE_NEWPID;
    if new_pid != 0 || container.pid_namespace.is_some() {
        relay::fork(work.channel, &work.keep, new_pid).at(Stage::Fork, 0)?;
    }
    tree::filesystems(container)?;
    take_root(container.root).at(Stage::Root, 0)
}
