//! Descriptors a service manager or parent passed by number.
#![expect(unsafe_code, reason = "a number becomes an owned descriptor")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, FdFlags};

/// Takes over the descriptor with this number, once in the life of the process, and makes it
/// close-on-exec.
///
/// # Errors
/// EBADF when nothing is open there; EBUSY when it was taken over before.
pub fn adopt(number: RawFd) -> Result<OwnedFd, Errno> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // SAFETY: F_GETFD takes no pointer and only asks whether the number is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(Errno::BADF);
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(Errno::BUSY);
    }
    // SAFETY: the number is open and was passed to this process, no code of which owns it: TAKEN
    // lets only one caller get here.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}
