//! Finding and making paths below the container's root, by descriptor. Part of the child: nothing
//! here allocates; paths are built in fixed buffers.
//!
//! Every look-up is an openat2 with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS, so an image's links
//! lead where the container would see them and never out (CVE-2024-45310, CVE-2024-21626). What is
//! missing is made in the directory found, never through a link (mkdirat; O_EXCL and O_NOFOLLOW).

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// The longest path (PATH_MAX).
const PATH: usize = 4096;
/// How many dangling links are followed, as many as the kernel follows live ones.
const LINKS: usize = 40;
/// How often a look-up is repeated that a rename elsewhere disturbed (EAGAIN of openat2(2)).
const RETRIES: usize = 128;

/// What the last part of a path is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    Directory,
    File,
}

/// Looks a path up below `root`; the result names it and can't be read from or written to.
pub(super) fn find(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut result = Err(Errno::AGAIN);
    for _ in 0..RETRIES {
        result = rustix::fs::openat2(
            root,
            path,
            flags | OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        match result {
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => break,
        }
    }
    result
}

/// Looks a path up below `root` and makes what is missing of it: directories 0755 and, if asked, a
/// last file 0644, all of the caller's. Links that lead nowhere are followed by making their targets.
pub(super) fn ensure(root: BorrowedFd<'_>, path: &CStr, leaf: Leaf) -> Result<OwnedFd, Errno> {
    match find(root, path, OFlags::empty(), ResolveFlags::empty()) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let mut buffer = Buffer::new(path.to_bytes())?;
    for _ in 0..LINKS {
        match make(root, &mut buffer, leaf)? {
            Made::Whole(fd) => return Ok(fd),
            Made::Rewritten => {}
        }
    }
    Err(Errno::LOOP)
}

enum Made {
    /// It exists now.
    Whole(OwnedFd),
    /// It led over a dangling link, which the buffer now has the target of.
    Rewritten,
}

fn make(root: BorrowedFd<'_>, path: &mut Buffer, leaf: Leaf) -> Result<Made, Errno> {
    let mut directory: Option<OwnedFd> = None;
    let mut start = 0;
    loop {
        let (begin, end) = path.component(start);
        if begin == end {
            // Nothing left: what was found last is it, or the root for an empty path.
            return match directory {
                Some(found) => Ok(Made::Whole(found)),
                None => find(root, c".", OFlags::empty(), ResolveFlags::empty()).map(Made::Whole),
            };
        }
        let last = path.component(end).0 == path.length;
        let base = directory.as_ref().map_or(root, |fd| fd.as_fd());
        let found = path.with_prefix(end, |prefix| {
            find(root, prefix, OFlags::empty(), ResolveFlags::empty())
        });
        let found = match found {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                let made = path.with_part(begin, end, |name| make_one(base, name, last, leaf));
                match made {
                    Ok(made) => made,
                    Err(Errno::EXIST) => {
                        path.follow_link(base, begin, end)?;
                        return Ok(Made::Rewritten);
                    }
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        };
        directory = Some(found);
        start = end;
    }
}

fn make_one(base: BorrowedFd<'_>, name: &CStr, last: bool, leaf: Leaf) -> Result<OwnedFd, Errno> {
    if last && leaf == Leaf::File {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(base, name, flags, Mode::from_raw_mode(0o644))?;
    } else {
        rustix::fs::mkdirat(base, name, Mode::from_raw_mode(0o755))?;
    }
    rustix::fs::openat(
        base,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// A path in a fixed buffer, relative, with its NUL.
struct Buffer {
    bytes: [u8; PATH],
    length: usize,
}

impl Buffer {
    fn new(path: &[u8]) -> Result<Self, Errno> {
        let mut buffer = Self {
            bytes: [0; PATH],
            length: 0,
        };
        buffer.push(path)?;
        Ok(buffer)
    }

    fn push(&mut self, part: &[u8]) -> Result<(), Errno> {
        let end = self.length + part.len();
        let place = self
            .bytes
            .get_mut(self.length..end)
            .ok_or(Errno::NAMETOOLONG)?;
        place.copy_from_slice(part);
        self.length = end;
        // The last byte stays free for the NUL.
        if self.length < PATH {
            Ok(())
        } else {
            Err(Errno::NAMETOOLONG)
        }
    }

    /// Where the next component at or after `start` begins and ends; both the length at the end.
    fn component(&self, start: usize) -> (usize, usize) {
        let path = self.bytes.get(..self.length).unwrap_or_default();
        let rest = path.get(start..).unwrap_or_default();
        let begin = rest
            .iter()
            .position(|byte| *byte != b'/')
            .map_or(self.length, |offset| start + offset);
        let rest = path.get(begin..).unwrap_or_default();
        let end = rest
            .iter()
            .position(|byte| *byte == b'/')
            .map_or(self.length, |offset| begin + offset);
        (begin, end)
    }

    /// Calls with the path up to `end`.
    fn with_prefix<T>(
        &mut self,
        end: usize,
        call: impl FnOnce(&CStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.with_part(0, end, call)
    }

    /// Calls with a part of the path, which is ended by a NUL for the while.
    fn with_part<T>(
        &mut self,
        begin: usize,
        end: usize,
        call: impl FnOnce(&CStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let place = self.bytes.get_mut(end).ok_or(Errno::NAMETOOLONG)?;
        let saved = std::mem::replace(place, 0);
        let part = self.bytes.get(begin..=end).unwrap_or_default();
        let result = match CStr::from_bytes_with_nul(part) {
            Ok(part) => call(part),
            Err(_) => Err(Errno::INVAL),
        };
        if let Some(place) = self.bytes.get_mut(end) {
            *place = saved;
        }
        result
    }

    /// Replaces the component by the target of the link it is, read in its directory `base`.
    fn follow_link(&mut self, base: BorrowedFd<'_>, begin: usize, end: usize) -> Result<(), Errno> {
        let mut target = [MaybeUninit::<u8>::uninit(); PATH];
        let target = self.with_part(begin, end, |name| {
            rustix::fs::readlinkat_raw(base, name, &mut target).map(|(target, _)| &*target)
        })?;
        let mut path = Self {
            bytes: [0; PATH],
            length: 0,
        };
        if target.first() != Some(&b'/') {
            path.push(self.bytes.get(..begin).unwrap_or_default())?;
        }
        path.push(target)?;
        path.push(b"/")?;
        path.push(self.bytes.get(end..self.length).unwrap_or_default())?;
        *self = path;
        Ok(())
    }
}

/// Whether two descriptors name the same file of the same mount.
pub(super) fn same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let identity = |fd| {
        let mask = StatxFlags::INO | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)?;
        Ok::<_, Errno>((stat.stx_mnt_id, stat.stx_ino))
    };
    Ok(identity(one)? == identity(other)?)
}

#[cfg(test)]
mod tests;
