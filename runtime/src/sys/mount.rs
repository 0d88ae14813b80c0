//! Mounts by descriptor: what rustix lacks (mount_setattr) and the narrow forms of what it has.
//!
//! fsopen, fsmount, open_tree and move_mount are in Linux since 5.2, mount_setattr since 5.12; the
//! features' probe refuses older kernels. Children call these: nothing allocates as long as names
//! are C strings.
#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

/// `MOUNT_ATTR_*` bits to set and clear (mount_setattr(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Bits to set.
    pub(crate) set: u64,
    /// Bits to clear.
    pub(crate) clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave the propagation.
    pub(crate) propagation: u64,
}

impl Attributes {
    /// Nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Read-only mounts.
pub(crate) const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Set-uid bits and file capabilities are without effect.
pub(crate) const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device nodes can't be opened.
pub(crate) const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Programs can't be executed.
pub(crate) const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
/// The bits that say how access times are kept; cleared together.
pub(crate) const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;
/// Access times are not kept.
pub(crate) const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
/// Access times are always kept.
pub(crate) const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
/// Access times of directories are not kept.
pub(crate) const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
/// Symbolic links are not followed.
pub(crate) const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Changes the attributes of the mount `tree` refers to, and of those below if `recursive`.
pub(crate) fn set_attributes(
    tree: BorrowedFd<'_>,
    recursive: bool,
    attributes: Attributes,
) -> Result<(), Errno> {
    change(
        tree,
        recursive,
        &libc::mount_attr {
            attr_set: attributes.set,
            attr_clr: attributes.clear,
            propagation: attributes.propagation,
            userns_fd: 0,
        },
    )
}

fn change(tree: BorrowedFd<'_>, recursive: bool, attr: &libc::mount_attr) -> Result<(), Errno> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path ends with NUL, and `attr` is a whole struct of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(attr),
            size_of_val(attr),
        )
    };
    super::clone::check(result).map(|_| ())
}

/// Makes the detached mount `tree` refers to, and those below if `recursive`, id-mapped by a user
/// namespace (MOUNT_ATTR_IDMAP, Linux 5.12; by file system: ext4 5.12, xfs 5.12, btrfs 5.15, tmpfs 6.3).
pub(crate) fn set_id_map(
    tree: BorrowedFd<'_>,
    recursive: bool,
    namespace: BorrowedFd<'_>,
) -> Result<(), Errno> {
    change(
        tree,
        recursive,
        &libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(|_| Errno::BADF)?,
        },
    )
}

/// A configuration context for a file system type.
pub(crate) fn open_filesystem(kind: &CStr) -> Result<OwnedFd, Errno> {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
}

/// The detached mount of a configured context, with `MOUNT_ATTR_*` bits.
pub(crate) fn mount_detached(context: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd, Errno> {
    rustix::mount::fsconfig_create(context)?;
    let attributes = u32::try_from(attributes).map_err(|_| Errno::INVAL)?;
    rustix::mount::fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(attributes),
    )
}

/// A detached copy of the mount at `path` below `directory` (`path` empty: of what `directory` refers to).
pub(crate) fn clone_tree(
    directory: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    rustix::mount::open_tree(directory, path, flags)
}

/// Puts a detached mount onto what `target` refers to. Both by descriptor: no path is looked up.
pub(crate) fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::mount::move_mount(
        tree,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Puts a detached mount on top of the caller's root, from where it can be pivoted into.
pub(crate) fn attach_on_root(tree: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(c"/", flags, Mode::empty())?;
    attach(tree, root.as_fd())
}

/// A detached empty directory that nobody can write to: its file system is read-only from the start.
pub(crate) fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = open_filesystem(c"tmpfs")?;
    rustix::mount::fsconfig_set_flag(context.as_fd(), c"ro")?;
    rustix::mount::fsconfig_set_string(context.as_fd(), c"nr_inodes", c"2")?;
    mount_detached(context.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC)
}

/// Makes the mount `new_root` refers to, which is attached somewhere, the root of the mount
/// namespace and lets go of the old one: pivot_root(".", ".") and a lazy unmount, pivot_root(2).
pub(crate) fn pivot_into(new_root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(new_root)?;
    rustix::process::pivot_root(c".", c".")?;
    // The old root now lies on top of the new one and is what "." resolves to.
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}
