#![expect(
    unsafe_code,
    reason = "pidfd_send_signal with any number has no safe wrapper"
)]
//! Signals as data: blocked, and read from a descriptor (signalfd(2)). A blocked signal is neither
//! lost nor deadly; the launcher's child restores an empty mask and the default dispositions.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;

/// Signals this process asked to read instead of suffer.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// Blocks `signals` for this thread (call it before any other thread exists) and opens a
    /// non-blocking, close-on-exec descriptor they are read from.
    pub fn block(signals: &[Signal]) -> std::io::Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            descriptor: SignalFd::with_flags(&set, flags)?,
        })
    }

    /// Takes everything that is pending; true if `wanted` was among it. Signals merge: one may
    /// stand for many.
    pub fn take(&self, wanted: Signal) -> bool {
        let mut found = false;
        // Each read takes one; a signal number is pending at most once, so this ends.
        while let Ok(Some(info)) = self.descriptor.read_signal() {
            found |= i32::try_from(info.ssi_signo) == Ok(wanted as i32);
        }
        found
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Sends a signal by its number, real-time ones included, to the process of a pidfd
/// (pidfd_send_signal(2), Linux 5.1): it can't meet a recycled process id.
pub fn send(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: takes no pointer but a null one; the descriptor is borrowed for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0_u32,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
