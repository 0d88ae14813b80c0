//! What makes a container's tree as read-only and hidden as its spec says, in the child.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{At, ContainerWork, Step, failure};
use crate::launch::report::{Note, Stage};
use crate::launch::target;
use crate::sys::fd;
use crate::sys::mount::{self, Attributes};

/// What makes the tree as read-only and hidden as the spec says. Last, so that nothing is
/// mounted over a mask; any failure is fatal (CVE-2025-31133).
pub(super) fn protect(container: &ContainerWork<'_>, root: BorrowedFd<'_>) -> Step<()> {
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
