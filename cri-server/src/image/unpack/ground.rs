//! What entries stand on: the directories on their way, what is at a name already, free space.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, chmodat, fsetxattr, fstatvfs, mkdirat, openat, renameat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::apply::{Directory, Layer};
use super::xattr;
use crate::failure::{Class, Doing as _, Failure};
use crate::image::tree::open_in_root;

/// Bytes written between looks at the free space.
pub(super) const LOOK: u64 = 64 << 20;

impl Layer {
    /// Makes a non-directory, in place of what an earlier entry of this layer put there.
    pub(super) fn make<T>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, Failure> {
        match make() {
            Err(Errno::EXIST) => {
                self.clear(parent, name, path)?;
                make().doing("make it")
            }
            Err(Errno::NOSPC | Errno::DQUOT) => Err(full()),
            other => other.doing("make it"),
        }
    }

    /// Takes away what an earlier entry of this layer made; true if that was a whiteout.
    pub(super) fn clear(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
    ) -> Result<bool, Failure> {
        let found = self.existing(parent, name)?;
        if matches!(found, Existing::Directory) {
            self.parent = None;
            self.discarded = self.discarded.saturating_add(1);
            renameat(parent, name, &self.discard, self.discarded.to_string())
                .doing("replace a directory")?;
            let mut below = path.to_vec();
            below.push(b'/');
            let inside = |p: &[u8]| p == path || p.starts_with(&below);
            self.directories.retain(|p, _| !inside(p));
            self.links.retain(|link| !inside(&link.path));
        } else {
            // A link may be part of the remembered parent's path.
            self.parent = None;
            unlinkat(parent, name, AtFlags::empty()).doing("replace a file")?;
        }
        Ok(matches!(found, Existing::Whiteout))
    }

    /// What this layer has at a name; an error if nothing.
    pub(super) fn existing(
        &self,
        parent: BorrowedFd<'_>,
        name: &CString,
    ) -> Result<Existing, Failure> {
        let stat =
            statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).doing("look at what is there")?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Existing::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Existing::Whiteout,
            _ => Existing::Other,
        })
    }

    pub(super) fn open_parent(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_in_root(self.root.as_fd(), path, OFlags::PATH)
    }

    /// The directory `path`, with those on the way to it that aren't there yet.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, Failure> {
        if let Some((known, fd)) = &self.parent
            && known == path
        {
            return Ok(Arc::clone(fd));
        }
        let fd = match self.open_parent(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            Err(Errno::LOOP) => return Err(refused("links on its way lead in a circle")),
            Err(e) => return Err(e).doing("open its directory"),
        };
        let fd = Arc::new(fd);
        self.parent = Some((path.to_vec(), Arc::clone(&fd)));
        Ok(fd)
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<OwnedFd, Failure> {
        let mut current = self.open_parent(b"").doing("open the root")?;
        let mut done = Vec::with_capacity(path.len());
        for component in path.split(|b| *b == b'/') {
            let above = current;
            if !done.is_empty() {
                done.push(b'/');
            }
            done.extend_from_slice(component);
            current = match self.open_parent(&done) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let name = c_name(component)?;
                    let anew = match self.existing(above.as_fd(), &name) {
                        Ok(Existing::Whiteout) => self.clear(above.as_fd(), &name, &done)?,
                        Ok(_) => {
                            return Err(refused(&format!(
                                "{:?} on its way is no directory, or a link to none",
                                String::from_utf8_lossy(&done)
                            )));
                        }
                        Err(_) => false,
                    };
                    mkdirat(&above, &name, Mode::RWXU).doing("make its directory")?;
                    // What it keeps if it is reached behind a link; else settled in the last step.
                    let mode = Mode::from_raw_mode(0o755);
                    chmodat(&above, &name, mode, AtFlags::empty()).doing("set its mode")?;
                    self.added_directory();
                    self.remember(done.len())?;
                    let implied = if anew {
                        mark_opaque(reopen(above.as_fd(), &name)?.as_fd())?;
                        Directory::ImpliedAnew
                    } else {
                        Directory::Implied
                    };
                    self.directories.insert(done.clone(), implied);
                    self.open_parent(&done).doing("open its directory")?
                }
                Err(e) => return Err(e).doing("open a directory on its way"),
            };
        }
        Ok(current)
    }

    pub(super) fn added_directory(&mut self) {
        self.inodes = self.inodes.saturating_add(1);
        self.bytes = self.bytes.saturating_add(4096);
    }

    pub(super) fn remember(&mut self, bytes: usize) -> Result<(), Failure> {
        self.remembered = self.remembered.saturating_add(bytes).saturating_add(64);
        if self.remembered > self.limits.remembered {
            return Err(refused("its layer has too many directories or links"));
        }
        Ok(())
    }

    /// Notes bytes written, looking at the free space every now and then (threats D6, H5).
    pub(super) fn wrote(&mut self, bytes: u64) -> Result<(), Failure> {
        self.look_at_space(bytes)
    }

    pub(super) fn look_at_space(&mut self, bytes: u64) -> Result<(), Failure> {
        self.unlooked = self.unlooked.saturating_add(bytes);
        if self.unlooked < LOOK {
            return Ok(());
        }
        self.unlooked = 0;
        let stat = fstatvfs(&self.root).doing("ask for the free space")?;
        if stat.f_bavail.saturating_mul(stat.f_frsize) < self.limits.reserve.saturating_add(LOOK) {
            return Err(full());
        }
        Ok(())
    }
}

/// What a layer has at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Directory,
    Whiteout,
    Other,
}

pub(super) fn refused(why: &str) -> Failure {
    Failure::precondition(why)
}

pub(super) fn full() -> Failure {
    Failure::new(
        Class::Exhausted,
        "no space left on the file system of the image store",
    )
}

/// The components of an archive's path: a leading `/` and `.` mean nothing, `..` is refused (D1).
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    let mut found = Vec::new();
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(refused("its path holds `..`")),
            long if long.len() > 255 => return Err(refused("a name is longer than 255 bytes")),
            plain => found.push(plain),
        }
    }
    Ok(found)
}

pub(super) fn c_name(name: &[u8]) -> Result<CString, Failure> {
    CString::new(name).doing("read a name")
}

pub(super) fn dot_if_empty(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

/// Opens a directory for its attributes; a link is refused (D2).
pub(super) fn reopen(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Failure> {
    openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing("open the directory")
}

pub(super) fn mark_opaque(directory: BorrowedFd<'_>) -> Result<(), Failure> {
    fsetxattr(
        directory,
        xattr::OPAQUE,
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .doing("mark the directory opaque")
}
