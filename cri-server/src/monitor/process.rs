//! Ending a monitor by descriptor, and only the one that was recorded: process ids are reused.

use std::os::fd::OwnedFd;
use std::time::Duration;

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
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", monitor.pid)).unwrap_or_default();
    Ok((start_ticks(&stat) == Some(monitor.start_ticks)).then_some(descriptor))
}

/// Field 22 of proc_pid_stat(5); the second field, the name, may hold anything, so it is counted
/// from the last parenthesis.
fn start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        for (case, name, expected) in [
            ("plain", "sleep", Some(4242)),
            (
                "a name with a parenthesis and numbers",
                "a) S 1 2 (3",
                Some(4242),
            ),
        ] {
            assert_eq!(
                start_ticks(&format!("7 ({name}) {rest}")),
                expected,
                "{case}"
            );
        }
        assert_eq!(start_ticks(""), None);
    }

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
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let own = MonitorRecord {
            pid,
            start_ticks: start_ticks(&stat).unwrap(),
        };
        kill(own, Duration::from_secs(5)).unwrap();
        child.wait().unwrap();
    }
}
