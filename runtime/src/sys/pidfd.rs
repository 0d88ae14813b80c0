//! Processes by descriptor (pidfd_open(2), Linux 5.3; waitid(P_PIDFD), 5.4).

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

/// Kills a child and takes its status, so that nothing of it remains.
pub(crate) fn kill_and_reap(pidfd: BorrowedFd<'_>) {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        // ESRCH: it has ended by itself and only waits to be reaped.
        Ok(()) | Err(Errno::SRCH) => reap(pidfd),
        // Without a signal sent the wait could last for ever; a zombie is the lesser evil.
        Err(_) => {}
    }
}

/// Kills a child and takes its status if it ends within `milliseconds`. The init of a PID namespace ends
/// only when all others in it were reaped (zap_pid_ns_processes of kernel/pid_namespace.c), which may be
/// up to the caller.
pub(crate) fn kill_and_reap_soon(pidfd: BorrowedFd<'_>, milliseconds: i64) {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(_) => return,
    }
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: milliseconds.clamp(0, 999) * 1_000_000,
    };
    let mut polled = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    if let Ok(1..) = poll(&mut polled, Some(&timeout)) {
        reap(pidfd);
    }
}

/// Waits for a child that is about to end and takes its status.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            // ECHILD: reaped by somebody else, which is as good.
            Ok(_) | Err(_) => return,
        }
    }
}
