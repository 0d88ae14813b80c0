//! Trees that others filled: taking them away and measuring them, without following anything.
//!
//! Containers and images decide what such a tree holds, so it is walked by descriptor, never
//! through links or onto other mounts, and never by recursion (threat B4: a tree 100,000 levels
//! deep, directories swapped for links while we look).

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, fstat, openat, openat2, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::failure::{Doing as _, Failure};

/// Depth to which a tree is measured; what lies deeper isn't counted. Each level costs a descriptor.
const MEASURED_DEPTH: usize = 128;
/// Hard-linked files remembered so that they count once; beyond it they may count twice.
const REMEMBERED_LINKS: usize = 1 << 20;

/// Opens the directory `name` in `parent`: no link, no mount point.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    openat2(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
}

/// Opens the directory that `path` leads to when `root` is taken for `/`: links and `..` stay inside.
///
/// The kernel says EAGAIN when anything anywhere was renamed or mounted while it went up by `..`
/// (openat2(2)); on a busy node that is no rare thing, so it is asked again, for a bounded time.
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    const TRIES: u32 = 1000;
    let path = if path.is_empty() { b"." } else { path };
    let mut tries = 0;
    loop {
        let opened = openat2(
            root,
            path,
            flags | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
        );
        match opened {
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            other => return other,
        }
        std::thread::yield_now();
    }
}

/// Opens a folder of ours by its host path.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd, Failure> {
    openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(format!("open {}", path.display()))
}

/// Calls `visit` with each entry's name and type (asked for where the file system doesn't tell).
pub(crate) fn each_entry(
    directory: BorrowedFd<'_>,
    mut visit: impl FnMut(&CStr, FileType) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        visit(name, kind)?;
    }
    Ok(())
}

/// Removes `name` in `parent`, whatever it is, with all below it.
///
/// Directories found inside are first moved up into `parent` under fresh names and emptied there,
/// so that depth costs neither stack nor descriptors. `parent` is a trash folder of ours.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut pending = vec![name.to_owned()];
    let mut fresh = 0_u64;
    while let Some(directory) = pending.pop() {
        match unlinkat(parent, &directory, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            // Linux says ISDIR; POSIX would say PERM.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
        let fd = match open_directory(parent, &directory) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        each_entry(fd.as_fd(), |entry, kind| {
            if kind != FileType::Directory {
                return ignore_absent(unlinkat(&fd, entry, AtFlags::empty()));
            }
            if unlinkat(&fd, entry, AtFlags::REMOVEDIR).is_ok() {
                return Ok(());
            }
            fresh = fresh.wrapping_add(1);
            let mut moved = name.to_bytes().to_vec();
            moved.extend_from_slice(format!(".{fresh}").as_bytes());
            let moved = CString::new(moved).map_err(io::Error::other)?;
            renameat(&fd, entry, parent, &moved)?;
            pending.push(moved);
            Ok(())
        })?;
        ignore_absent(unlinkat(parent, &directory, AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

fn ignore_absent(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Disk bytes and inodes of the tree below `root`, itself included.
pub(crate) fn measure(root: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let mut total = Total::default();
    total.add(&fstat(root)?);
    let first = open_directory(root, c".")?;
    let names = total.directory(first.as_fd())?;
    let mut levels = vec![(first, names)];
    while let Some((_, names)) = levels.last_mut() {
        let Some(name) = names.pop() else {
            levels.pop();
            continue;
        };
        if levels.len() >= MEASURED_DEPTH {
            continue;
        }
        let opened = levels
            .last()
            .map(|(fd, _)| open_directory(fd.as_fd(), &name));
        match opened {
            Some(Ok(child)) => {
                let names = total.directory(child.as_fd())?;
                levels.push((child, names));
            }
            // Gone, replaced or a mount meanwhile: somebody works in there.
            Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)) | None => {}
            Some(Err(e)) => return Err(e.into()),
        }
    }
    Ok((total.bytes, total.inodes))
}

#[derive(Default)]
struct Total {
    bytes: u64,
    inodes: u64,
    linked: HashSet<u64>,
}

impl Total {
    fn add(&mut self, stat: &rustix::fs::Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if stat.st_nlink > 1 && !directory {
            if self.linked.contains(&stat.st_ino) {
                return;
            }
            if self.linked.len() < REMEMBERED_LINKS {
                self.linked.insert(stat.st_ino);
            }
        }
        // st_blocks counts in 512 bytes on every file system.
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(512));
        self.inodes = self.inodes.saturating_add(1);
    }

    /// Counts the entries of a directory and returns the directories among them.
    fn directory(&mut self, fd: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
        let mut names = Vec::new();
        each_entry(fd, |name, kind| {
            match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.add(&stat),
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            if kind == FileType::Directory {
                names.push(name.to_owned());
            }
            Ok(())
        })?;
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open(path: &Path) -> OwnedFd {
        std::fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_tree_goes_whole_and_its_links_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let canary = folder.path().join("canary");
        std::fs::create_dir(&canary).unwrap();
        std::fs::write(canary.join("f"), "x").unwrap();
        let trash = folder.path().join("trash");
        let tree = trash.join("t");
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::write(tree.join("a/b/f"), "x").unwrap();
        symlink(&canary, tree.join("a/link")).unwrap();
        symlink("..", tree.join("a/b/up")).unwrap();
        remove(open(&trash).as_fd(), c"t").unwrap();
        remove(open(&trash).as_fd(), c"t").unwrap();
        assert_eq!(std::fs::read_dir(&trash).unwrap().count(), 0);
        assert!(canary.join("f").exists());
    }

    #[test]
    fn b4_depth_costs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut fd = open(folder.path());
        rustix::fs::mkdirat(&fd, c"t", Mode::RWXU).unwrap();
        fd = open_directory(fd.as_fd(), c"t").unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&fd, c"dddddddd", Mode::RWXU).unwrap();
            fd = open_directory(fd.as_fd(), c"dddddddd").unwrap();
        }
        drop(fd);
        let root = open(folder.path());
        let (_, inodes) = measure(root.as_fd()).unwrap();
        assert!(inodes >= 128, "{inodes}");
        remove(root.as_fd(), c"t").unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn hard_links_count_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), vec![1; 8192]).unwrap();
        std::fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
        let (bytes, inodes) = measure(open(folder.path()).as_fd()).unwrap();
        assert_eq!(inodes, 2);
        assert!((8192..16384 + 4096).contains(&bytes), "{bytes}");
    }
}
