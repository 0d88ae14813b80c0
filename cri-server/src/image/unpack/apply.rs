//! Places the entries of one layer into its own private directory.
//!
//! Everything is done by descriptor. Parents are found by `openat2` with RESOLVE_IN_ROOT (Linux
//! 5.6; `features` refuses kernels without it), so a link of the layer leads to a place inside the
//! layer at most; the last component is never followed, and modes, owners and attributes are set on
//! the descriptor just made (threats D1, D2). The directory belongs to this one unpacking (D3).
//!
//! Whiteouts become overlay's: a character device 0:0, and `trusted.overlay.opaque=y` for an opaque
//! directory. They hide what lies in layers below and nothing of their own layer, whatever the order
//! of entries (image-spec, "layer.md#whiteouts"; D7). In the lowest layer they hide nothing and are
//! left out.
//!
//! What can't be settled without the layers below is remembered for `finish.rs`: directories that
//! entries imply without listing them, and hard links to files of lower layers.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
    chmodat, chownat, fchmod, fchown, fsetxattr, fstatvfs, ftruncate, futimens, linkat, makedev,
    mkdirat, mknodat, openat, openat2, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::limits::Limits;
use super::tar::{Archive, Content, Entry, Kind, Time};
use super::xattr::{self, Verdict};
use crate::failure::{Class, Doing as _, Failure};
use crate::image::tree::open_in_root;

/// Prefix of a whiteout's name (image-spec).
const WHITEOUT: &[u8] = b".wh.";
/// The whiteout that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Left by the storage driver that whiteouts come from; they never meant a file.
const AUFS_REMAINS: [&[u8]; 3] = [b".wh..wh.aufs", b".wh..wh.orph", b".wh..wh.plnk"];
/// Bytes written between looks at the free space.
const LOOK: u64 = 64 << 20;

/// A layer's directory while it is filled.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(super) root: OwnedFd,
    /// Takes directories that a later entry of the same layer replaces.
    discard: OwnedFd,
    discarded: u64,
    /// The lowest layer: whiteouts mean nothing.
    bottom: bool,
    limits: Limits,
    pub(super) directories: BTreeMap<Vec<u8>, Directory>,
    pub(super) links: Vec<Pending>,
    remembered: usize,
    pub(super) opaque_root: bool,
    /// Disk space taken, rounded up to 4 KiB a file as most file systems do.
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    unlooked: u64,
    parent: Option<(Vec<u8>, Arc<OwnedFd>)>,
    buffer: Vec<u8>,
}

/// A directory of the layer, by its path, `/`-joined without a leading one; the root is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Directory {
    /// Listed with a time, set last because filling a directory changes it.
    Listed(Time),
    /// Implied by what lies in it: takes its attributes from the layers below.
    Implied,
    /// Implied, and a whiteout of this layer hides what is below: takes defaults.
    ImpliedAnew,
}

/// A hard link whose target isn't in this layer.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) path: Vec<u8>,
    pub(super) target: Vec<u8>,
}

impl Layer {
    /// Begins a layer in the empty directory `root`.
    pub(crate) fn new(root: OwnedFd, discard: OwnedFd, bottom: bool, limits: &Limits) -> Self {
        Self {
            root,
            discard,
            discarded: 0,
            bottom,
            limits: limits.clone(),
            directories: BTreeMap::from([(Vec::new(), Directory::Implied)]),
            links: Vec::new(),
            remembered: 0,
            opaque_root: false,
            bytes: 0,
            inodes: 1,
            unlooked: LOOK,
            parent: None,
            buffer: vec![0; 128 << 10],
        }
    }

    /// Places every entry of `archive`.
    pub(crate) fn apply<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<(), Failure> {
        while let Some(entry) = archive.next()? {
            let shown = String::from_utf8_lossy(&entry.path).into_owned();
            self.place(entry, archive)
                .map_err(|e| e.context(format!("entry {shown:?}")))?;
        }
        Ok(())
    }

    fn place<R: Read>(&mut self, entry: Entry, archive: &mut Archive<R>) -> Result<(), Failure> {
        let components = components(&entry.path)?;
        let Some((name, above)) = components.split_last() else {
            return self.place_root(&entry);
        };
        if above.iter().chain([name]).any(|c| AUFS_REMAINS.contains(c)) {
            return Ok(());
        }
        if above.iter().any(|c| c.starts_with(WHITEOUT)) {
            return Err(refused("a directory on its way is named like a whiteout"));
        }
        let parent_path = above.join(&b'/');
        let path = components.join(&b'/');
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&entry, &parent_path, name);
        }
        self.look_at_space(4096)?;
        let parent = self.parent(&parent_path)?;
        let name = c_name(name)?;
        match &entry.kind {
            Kind::Directory => return self.directory(&entry, parent.as_fd(), &name, path),
            Kind::HardLink(target) => {
                let target = target.clone();
                return self.hard_link(parent.as_fd(), &name, path, &target);
            }
            Kind::Regular(content) => {
                self.regular(&entry, content, archive, parent.as_fd(), &name, &path)?;
            }
            Kind::Symlink(target) => {
                if target.len() >= 4096 {
                    return Err(refused("its target is longer than 4095 bytes"));
                }
                let target = CString::new(target.as_slice()).doing("read the link's target")?;
                self.make(parent.as_fd(), &name, &path, || {
                    symlinkat(&target, &parent, &name)
                })?;
                own(parent.as_fd(), &name, &entry)?;
            }
            Kind::Character(0, 0) => {
                return Err(refused("a character device 0:0 would be a whiteout"));
            }
            Kind::Character(major, minor) => {
                let device = makedev(*major, *minor);
                self.node(
                    &entry,
                    FileType::CharacterDevice,
                    device,
                    &parent,
                    &name,
                    &path,
                )?;
            }
            Kind::Block(major, minor) => {
                let device = makedev(*major, *minor);
                self.node(&entry, FileType::BlockDevice, device, &parent, &name, &path)?;
            }
            Kind::Fifo => self.node(&entry, FileType::Fifo, 0, &parent, &name, &path)?,
        }
        self.inodes = self.inodes.saturating_add(1);
        Ok(())
    }

    fn place_root(&mut self, entry: &Entry) -> Result<(), Failure> {
        if !matches!(entry.kind, Kind::Directory) {
            return Err(refused("it names the root and is no directory"));
        }
        let root = reopen(self.root.as_fd(), c".")?;
        attributes(root.as_fd(), entry)?;
        self.directories
            .insert(Vec::new(), Directory::Listed(entry.mtime));
        Ok(())
    }

    fn directory(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: Vec<u8>,
    ) -> Result<(), Failure> {
        let mut anew = false;
        match mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => self.added_directory(),
            Err(Errno::EXIST) => match self.existing(parent, name)? {
                Existing::Directory => {}
                Existing::Whiteout | Existing::Other => {
                    anew = self.clear(parent, name, &path)?;
                    mkdirat(parent, name, Mode::RWXU).doing("make the directory")?;
                    self.added_directory();
                }
            },
            Err(e) => return Err(e).doing("make the directory"),
        }
        let directory = reopen(parent, name)?;
        attributes(directory.as_fd(), entry)?;
        if anew {
            mark_opaque(directory.as_fd())?;
        }
        self.remember(path.len())?;
        self.directories
            .insert(path, Directory::Listed(entry.mtime));
        Ok(())
    }

    fn regular<R: Read>(
        &mut self,
        entry: &Entry,
        content: &Content,
        archive: &mut Archive<R>,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
    ) -> Result<(), Failure> {
        let file = self.make(parent, name, path, || create(parent, name))?;
        for (offset, length) in &content.regions {
            let mut position = *offset;
            let end = offset.saturating_add(*length);
            while position < end {
                let most = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
                let size = self.buffer.len().min(most);
                let space = self.buffer.get_mut(..size).unwrap_or(&mut []);
                let count = archive.read(space).doing("read its content")?;
                if count == 0 {
                    return Err(refused("its content is shorter than its size"));
                }
                write_at(&file, self.buffer.get(..count).unwrap_or(&[]), position)?;
                position = position.saturating_add(count as u64);
                self.wrote(count as u64)?;
            }
        }
        self.complete(content, &file, entry)
    }

    fn complete(
        &mut self,
        content: &Content,
        file: &OwnedFd,
        entry: &Entry,
    ) -> Result<(), Failure> {
        let written = content
            .regions
            .last()
            .map_or(0, |(o, l)| o.saturating_add(*l));
        if written < content.size {
            ftruncate(file, content.size).doing("set its size")?;
        }
        let stored: u64 = content.regions.iter().map(|(_, length)| *length).sum();
        let blocks = stored.checked_next_multiple_of(4096).unwrap_or(stored);
        self.bytes = self.bytes.saturating_add(blocks);
        attributes(file.as_fd(), entry)?;
        futimens(file, &timestamps(entry.mtime)).doing("set its time")
    }

    fn node(
        &mut self,
        entry: &Entry,
        kind: FileType,
        device: Dev,
        parent: &OwnedFd,
        name: &CString,
        path: &[u8],
    ) -> Result<(), Failure> {
        self.make(parent.as_fd(), name, path, || {
            mknodat(parent, name, kind, Mode::empty(), device)
        })?;
        own(parent.as_fd(), name, entry)?;
        // No link: it is the node just made in a directory nobody else has.
        chmodat(
            parent,
            name,
            Mode::from_raw_mode(entry.mode),
            AtFlags::empty(),
        )
        .doing("set its mode")?;
        set_time(parent.as_fd(), name, entry.mtime)
    }

    fn hard_link(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: Vec<u8>,
        target: &[u8],
    ) -> Result<(), Failure> {
        let wanted = components(target)?;
        let Some((last, above)) = wanted.split_last() else {
            return Err(refused("a hard link to the root"));
        };
        if wanted.iter().any(|c| c.starts_with(WHITEOUT)) {
            return Err(refused("a hard link to a whiteout"));
        }
        let target = wanted.join(&b'/');
        if target == path {
            return Err(refused("a hard link to itself"));
        }
        let last = c_name(last)?;
        let source = match self.open_parent(&above.join(&b'/')) {
            Ok(directory) => match self.existing(directory.as_fd(), &last) {
                Ok(Existing::Other) => Some(directory),
                Ok(Existing::Directory) => return Err(refused("a hard link to a directory")),
                // Hidden by this layer, still there below, where it is meant.
                Ok(Existing::Whiteout) => None,
                Err(_) => None,
            },
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(e) => return Err(e).doing("find the link's target"),
        };
        let Some(source) = source else {
            // Takes the place of what was there; made in the last step.
            if self.existing(parent, name).is_ok() {
                self.clear(parent, name, &path)?;
            }
            self.remember(path.len().saturating_add(target.len()))?;
            self.links.push(Pending { path, target });
            return Ok(());
        };
        self.make(parent, name, &path, || {
            linkat(&source, &last, parent, name, AtFlags::empty())
        })
    }

    fn whiteout(&mut self, entry: &Entry, parent: &[u8], name: &[u8]) -> Result<(), Failure> {
        if !matches!(entry.kind, Kind::Regular(_) | Kind::HardLink(_)) {
            return Err(refused("a whiteout that is no file"));
        }
        let opaque = name == OPAQUE;
        let hidden = name.strip_prefix(WHITEOUT).unwrap_or(name);
        if !opaque && (matches!(hidden, b"" | b"." | b"..") || hidden.starts_with(WHITEOUT)) {
            return Err(refused("a whiteout of no plain name"));
        }
        if self.bottom {
            return Ok(());
        }
        if opaque && parent.is_empty() {
            self.opaque_root = true;
            return Ok(());
        }
        let directory = self.parent(parent)?;
        // Through a link it would hide something elsewhere than its name says.
        openat2(
            &self.root,
            dot_if_empty(parent),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
        .map_err(|_| refused("a whiteout behind a link"))?;
        if opaque {
            let directory = reopen(directory.as_fd(), c".")?;
            return mark_opaque(directory.as_fd());
        }
        let hidden = c_name(hidden)?;
        match self.existing(directory.as_fd(), &hidden) {
            Ok(Existing::Directory) => {
                let own = reopen(directory.as_fd(), &hidden)?;
                mark_opaque(own.as_fd())
            }
            // Its own file covers the one below already.
            Ok(Existing::Other | Existing::Whiteout) => Ok(()),
            Err(_) => {
                self.inodes = self.inodes.saturating_add(1);
                mknodat(
                    &directory,
                    &hidden,
                    FileType::CharacterDevice,
                    Mode::empty(),
                    0,
                )
                .doing("make the whiteout")
            }
        }
    }

    /// Makes a non-directory, in place of what an earlier entry of this layer put there.
    fn make<T>(
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
    fn clear(
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

    fn open_parent(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
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

    fn added_directory(&mut self) {
        self.inodes = self.inodes.saturating_add(1);
        self.bytes = self.bytes.saturating_add(4096);
    }

    fn remember(&mut self, bytes: usize) -> Result<(), Failure> {
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

    fn look_at_space(&mut self, bytes: u64) -> Result<(), Failure> {
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

fn full() -> Failure {
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

fn dot_if_empty(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"." } else { path }
}

fn create(parent: BorrowedFd<'_>, name: &CString) -> rustix::io::Result<OwnedFd> {
    openat(
        parent,
        name,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )
}

/// Opens a directory for its attributes; a link is refused (D2).
pub(super) fn reopen(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Failure> {
    openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing("open the directory")
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut position: u64) -> Result<(), Failure> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, position) {
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or(&[]);
                position = position.saturating_add(count as u64);
            }
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(full()),
            Err(e) => return Err(e).doing("write its content"),
        }
    }
    Ok(())
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

/// Owner, then mode, then attributes: chown takes set-uid bits and capabilities away.
fn attributes(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Failure> {
    fchown(
        fd,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )
    .doing("set its owner")?;
    fchmod(fd, Mode::from_raw_mode(entry.mode)).doing("set its mode")?;
    let directory = matches!(entry.kind, Kind::Directory);
    for (name, value) in &entry.xattrs {
        let verdict = xattr::judge(name, value).map_err(|why| refused(&why))?;
        if verdict == Verdict::Drop || (directory && name == xattr::CAPABILITY) {
            continue;
        }
        let shown = String::from_utf8_lossy(name);
        let kept =
            xattr::set(fd, name, value).doing(format!("set its extended attribute {shown:?}"))?;
        if !kept {
            tracing::debug!(name = %shown, "the file system keeps no such extended attribute");
        }
    }
    Ok(())
}

/// Owner and time of what isn't opened: links, devices, fifos. They take no `user.*` attributes
/// (xattr(7)), and labels are dropped anyway (case L6).
fn own(parent: BorrowedFd<'_>, name: &CString, entry: &Entry) -> Result<(), Failure> {
    chownat(
        parent,
        name,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .doing("set its owner")?;
    set_time(parent, name, entry.mtime)
}

fn set_time(parent: BorrowedFd<'_>, name: &CString, time: Time) -> Result<(), Failure> {
    utimensat(parent, name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW).doing("set its time")
}

pub(super) fn timestamps(time: Time) -> Timestamps {
    let stamp = Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds),
    };
    Timestamps {
        last_access: stamp,
        last_modification: stamp,
    }
}

/// Opens a folder of ours by its host path.
pub(crate) fn open_folder(path: &std::path::Path) -> Result<OwnedFd, Failure> {
    openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(format!("open {}", path.display()))
}
