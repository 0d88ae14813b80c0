//! `/proc` that is known to be procfs: a handle is checked before anything is read or written
//! through it (CVE-2019-16884, CVE-2025-52881: writes to `/proc` led to a fake or another file).

use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Doing, Error, ErrorKind, Result};

/// `PROC_SUPER_MAGIC` of statfs(2).
pub(crate) const PROC_MAGIC: u64 = 0x9fa0;

/// Whether a descriptor lies on procfs.
pub(crate) fn is_procfs(fd: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    super::fd::filesystem(fd).map(|magic| magic == PROC_MAGIC)
}

/// The caller's `/proc`, checked.
pub(crate) fn open_host() -> Result<OwnedFd> {
    let proc = rustix::fs::openat2(
        CWD,
        c"/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )
    .doing(|| "open /proc")?;
    if is_procfs(proc.as_fd()).doing(|| "examine /proc")? {
        Ok(proc)
    } else {
        Err(Error::new(
            ErrorKind::Unsupported,
            "/proc is not procfs on this node",
        ))
    }
}

/// Opens a file of the procfs mount `proc`: no link out of it, nothing mounted over it. Fit for a child.
pub(crate) fn open(
    proc: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let file = rustix::fs::openat2(
        proc,
        path,
        flags | OFlags::CLOEXEC | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS,
    )?;
    if is_procfs(file.as_fd())? {
        Ok(file)
    } else {
        Err(Errno::XDEV)
    }
}

/// Writes a value as one write, which is how procfs takes it. Fit for a child.
pub(crate) fn write(
    proc: BorrowedFd<'_>,
    path: &CStr,
    value: &[u8],
) -> std::result::Result<(), Errno> {
    let file = open(proc, path, OFlags::WRONLY)?;
    if rustix::io::write(&file, value)? == value.len() {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read(proc: BorrowedFd<'_>, path: &CStr, limit: u64) -> Result<String> {
    let name = path.to_string_lossy();
    let file = open(proc, path, OFlags::RDONLY).doing(|| format!("open /proc/{name}"))?;
    let mut text = String::new();
    std::fs::File::from(file)
        .take(limit)
        .read_to_string(&mut text)
        .doing(|| format!("read /proc/{name}"))?;
    Ok(text)
}

/// When a process started, in clock ticks since boot: with its id it names one process for good.
pub(crate) fn start_ticks(proc: BorrowedFd<'_>, pid: i32) -> Result<u64> {
    let path =
        CString::new(format!("{pid}/stat")).map_err(|_| Error::invalid("a NUL in a name"))?;
    let stat = read(proc, &path, 4096)?;
    parse_start_ticks(&stat).ok_or_else(|| {
        Error::new(
            ErrorKind::System,
            format!("/proc/{pid}/stat has an unknown form"),
        )
    })
}

/// Field 22 of a `/proc/<pid>/stat` line.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses and may hold anything, `)` too.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_ticks_is_field_22_whatever_the_name_holds() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["cat", "a b", "a) b (", ")", "a) S 1 2 (3"] {
            let line = format!("42 ({name}) {fields}\n");
            assert_eq!(parse_start_ticks(&line), Some(4711), "{name}");
        }
        for line in [
            "",
            "42 (cat",
            "42 (cat) S 1",
            "42 (cat) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x",
        ] {
            assert_eq!(parse_start_ticks(line), None, "{line}");
        }
    }

    #[test]
    fn a_path_that_leaves_procfs_is_refused() {
        let proc = open_host().unwrap();
        for path in [c"../etc/passwd", c"self/root", c"self/exe", c"/proc/stat"] {
            assert!(
                open(proc.as_fd(), path, OFlags::RDONLY).is_err(),
                "{path:?}"
            );
        }
        assert!(open(proc.as_fd(), c"self/stat", OFlags::RDONLY).is_ok());
    }
}
