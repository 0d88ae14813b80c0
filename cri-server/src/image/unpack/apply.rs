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
    AtFlags, Dev, FileType, Mode, OFlags, ResolveFlags, chmodat, ftruncate, futimens, linkat,
    makedev, mkdirat, mknodat, openat, openat2, symlinkat,
};
use rustix::io::Errno;

use super::attributes::{attributes, own, set_time, timestamps};
use super::ground::{
    Existing, LOOK, c_name, components, dot_if_empty, full, mark_opaque, refused, reopen,
};
use super::limits::Limits;
use super::tar::{Archive, Content, Entry, Kind, Time};
use crate::failure::{Doing as _, Failure};

/// Prefix of a whiteout's name (image-spec).
const WHITEOUT: &[u8] = b".wh.";
/// The whiteout that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Left by the storage driver that whiteouts come from; they never meant a file.
const AUFS_REMAINS: [&[u8]; 3] = [b".wh..wh.aufs", b".wh..wh.orph", b".wh..wh.plnk"];

/// A layer's directory while it is filled.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(super) root: OwnedFd,
    /// Takes directories that a later entry of the same layer replaces.
    pub(super) discard: OwnedFd,
    pub(super) discarded: u64,
    /// The lowest layer: whiteouts mean nothing.
    bottom: bool,
    pub(super) limits: Limits,
    pub(super) directories: BTreeMap<Vec<u8>, Directory>,
    pub(super) links: Vec<Pending>,
    pub(super) remembered: usize,
    pub(super) opaque_root: bool,
    /// Disk space taken, rounded up to 4 KiB a file as most file systems do.
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    pub(super) unlooked: u64,
    pub(super) parent: Option<(Vec<u8>, Arc<OwnedFd>)>,
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
}

fn create(parent: BorrowedFd<'_>, name: &CString) -> rustix::io::Result<OwnedFd> {
    openat(
        parent,
        name,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )
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
