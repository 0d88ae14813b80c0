//! Pseudo-terminals of a container's own devpts. The slave comes by TIOCGPTPEER (Linux 4.13), so no
//! path of the container is looked up (CVE-2025-52565). Fit for a child.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::SpecialCodeIndex;

/// `DEVPTS_SUPER_MAGIC` of statfs(2).
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// A new terminal of the devpts mount `devpts` refers to: master and slave.
pub(crate) fn open(devpts: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd), Errno> {
    if super::fd::filesystem(devpts)? != DEVPTS_MAGIC {
        return Err(Errno::NODEV);
    }
    let master = rustix::fs::openat2(
        devpts,
        c"ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        master.as_fd(),
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    Ok((master, slave))
}

/// Tells who reads the terminal that the input ends, as its end-of-file character does (VEOF of
/// termios(3)); nothing where that is switched off. The master must be non-blocking.
pub(crate) fn end_input(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let settings = rustix::termios::tcgetattr(master)?;
    match settings.special_codes[SpecialCodeIndex::VEOF] {
        0 => Ok(()), // _POSIX_VDISABLE
        end => match rustix::io::write(master, &[end]) {
            // With the input full whoever reads it has something to read.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno),
        },
    }
}

/// Sets the window size in characters.
pub(crate) fn set_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> Result<(), Errno> {
    rustix::termios::tcsetwinsize(
        terminal,
        rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
}
