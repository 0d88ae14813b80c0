//! Owner, mode, extended attributes and times, in the order the kernel needs them.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, chownat, fchmod, fchown, utimensat,
};

use super::ground::refused;
use super::tar::{Entry, Kind, Time};
use super::xattr::{self, Verdict};
use crate::failure::{Doing as _, Failure};

/// Owner, then mode, then attributes: chown takes set-uid bits and capabilities away.
pub(super) fn attributes(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Failure> {
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
pub(super) fn own(parent: BorrowedFd<'_>, name: &CString, entry: &Entry) -> Result<(), Failure> {
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

pub(super) fn set_time(parent: BorrowedFd<'_>, name: &CString, time: Time) -> Result<(), Failure> {
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
