//! Pseudo-terminals of a container's own devpts. The slave comes by TIOCGPTPEER (Linux 4.13), so no
//! path of the container is looked up (CVE-2025-52565). Fit for a child.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;

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
