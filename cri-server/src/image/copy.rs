//! Copies single files of an image with everything an image may bring: owner, mode, times,
//! attributes. By descriptor, links never followed, bounded by the caller's budget.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
    fchmod, fchown, fstat, futimens, mknodat, openat, readlinkat, symlinkat, utimensat,
};

use super::unpack::xattr;
use crate::failure::{Class, Doing as _, Failure};

/// What may still be copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub bytes: u64,
    pub entries: u64,
}

impl Budget {
    pub(crate) fn entry(&mut self) -> Result<(), Failure> {
        self.entries = self
            .entries
            .checked_sub(1)
            .ok_or_else(|| Failure::new(Class::Exhausted, "too many files to copy"))?;
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<(), Failure> {
        self.bytes = self
            .bytes
            .checked_sub(bytes)
            .ok_or_else(|| Failure::new(Class::Exhausted, "too many bytes to copy"))?;
        Ok(())
    }
}

/// Copies a non-directory; `stat` is the source's. A socket is left out: it means nothing without
/// its process.
pub(crate) fn node(
    from: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    to: BorrowedFd<'_>,
    to_name: &CStr,
    budget: &mut Budget,
) -> Result<(), Failure> {
    budget.entry()?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::RegularFile => return regular(from, name, to, to_name, budget),
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).doing("read the link")?;
            symlinkat(&target, to, to_name).doing("make the link")?;
        }
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
            mknodat(to, to_name, kind, Mode::empty(), stat.st_rdev).doing("make the node")?;
        }
        _ => return Ok(()),
    }
    chownat(
        to,
        to_name,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .doing("set the owner")?;
    if kind != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        chmodat(to, to_name, mode, AtFlags::empty()).doing("set the mode")?;
    }
    utimensat(to, to_name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).doing("set the time")
}

fn regular(
    from: BorrowedFd<'_>,
    name: &CStr,
    to: BorrowedFd<'_>,
    to_name: &CStr,
    budget: &mut Budget,
) -> Result<(), Failure> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = openat(from, name, flags, Mode::empty()).doing("open the file")?;
    let stat = fstat(&source).doing("look at the file")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Failure::precondition("it is no regular file any more"));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = openat(to, to_name, flags, Mode::RUSR | Mode::WUSR).doing("make the copy")?;
    let (source, mut copy) = (File::from(source), File::from(copy));
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    budget.take(size)?;
    // No more than it had when the budget was asked.
    std::io::copy(&mut (&source).take(size), &mut copy).doing("copy the content")?;
    attributes(source.as_fd(), &stat, copy.as_fd())?;
    futimens(&copy, &times(&stat)).doing("set the time")
}

/// Owner, mode, extended attributes; in this order, because chown takes set-uid bits away.
pub(crate) fn attributes(
    from: BorrowedFd<'_>,
    stat: &Stat,
    to: BorrowedFd<'_>,
) -> Result<(), Failure> {
    fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
    .doing("set the owner")?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).doing("set the mode")?;
    xattr::copy(from, to)
}

pub(crate) fn times(stat: &Stat) -> Timestamps {
    let stamp = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    };
    Timestamps {
        last_access: stamp,
        last_modification: stamp,
    }
}

/// Opens a directory to copy into or from.
pub(crate) fn folder(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Failure> {
    super::tree::open_directory(parent, name).doing("open the directory")
}
