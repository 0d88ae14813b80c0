//! Ending a monitor by descriptor, and only the one that was recorded: process ids are reused.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bulkhead_runtime::monitor::start::start_ticks;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::failure::{Class, Doing, Failure};
use crate::records::MonitorRecord;

/// Kills the monitor if it is still there, and waits until it has ended. Blocks.
///
/// # Errors
/// When it can't be killed, or doesn't end within `limit`.
pub fn kill(monitor: MonitorRecord, limit: Duration) -> Result<(), Failure> {
    let doing = || format!("kill the monitor {}", monitor.pid);
    let Some(descriptor) = open(monitor).doing(doing())? else {
        return Ok(());
    };
    match pidfd_send_signal(&descriptor, Signal::KILL) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).doing(doing()),
    }
    let limit = Timespec::try_from(limit)
        .map_err(|_| Failure::internal(format!("{}: the limit is out of range", doing())))?;
    let mut ended = [PollFd::new(&descriptor, PollFlags::IN)];
    match poll(&mut ended, Some(&limit)).doing(doing())? {
        0 => Err(Failure::new(
            Class::Deadline,
            format!("{}: it has not ended yet", doing()),
        )),
        _ => Ok(()),
    }
}

/// The start time is read after the descriptor was opened: if it is right then, the descriptor is
/// of the process meant.
fn open(monitor: MonitorRecord) -> Result<Option<OwnedFd>, Errno> {
    let Some(pid) = Pid::from_raw(monitor.pid) else {
        return Ok(None);
    };
    let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_meant = start_ticks(monitor.pid).is_ok_and(|ticks| ticks == monitor.start_ticks);
    Ok(is_meant.then_some(descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_start_time_is_left_alone() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let stranger = MonitorRecord {
            pid,
            start_ticks: 1,
        };
        kill(stranger, Duration::from_secs(1)).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        let own = MonitorRecord {
            pid,
            start_ticks: start_ticks(pid).unwrap(),
        };
        kill(own, Duration::from_secs(5)).unwrap();
        child.wait().unwrap();
    }
}
