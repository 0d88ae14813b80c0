//! Listing, freezing and killing all processes of a group, by the one hierarchy that can: the v2
//! tree if it is mounted, else v1's freezer.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::hierarchy::Hierarchies;
use super::tree::{Hierarchy, subgroups};
use super::{Cgroup, Part, file};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::plan::cgroup::Controller;

/// How long freezing waits: a task in an uninterruptible sleep can't be frozen.
const FREEZE: Duration = Duration::from_millis(500);
/// How often the processes are listed and killed where they couldn't be frozen.
const ROUNDS: usize = 50;
/// How deep below the group processes are looked for.
const MAX_NESTING: usize = 200;
/// Between two looks at a state that can't be waited for.
const LOOK: Duration = Duration::from_millis(2);

impl Hierarchies {
    /// The hierarchy that lists, freezes and kills.
    pub(super) fn core(&self) -> Option<&Hierarchy> {
        let freezer = || {
            self.v1_with(Controller::Freezer)
                .map(|(_, freezer)| freezer)
        };
        self.unified().or_else(freezer)
    }
}

impl Cgroup {
    /// The group's directory in the hierarchy that lists, freezes and kills.
    fn core(&self) -> Result<(BorrowedFd<'_>, bool)> {
        let v2 = self.hierarchies.unified().is_some();
        let part: Option<&Part> = match v2 {
            true => self.unified.as_ref(),
            false => self
                .hierarchies
                .v1_with(Controller::Freezer)
                .and_then(|(index, _)| self.v1.get(index)?.get()),
        };
        let part = part.ok_or_else(|| self.gone())?;
        Ok((part.directory.as_fd(), v2))
    }

    /// The processes of the group and of all below it.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let (group, _) = self.core()?;
        let mut pids = Vec::new();
        list(group, MAX_NESTING, &mut pids)
            .doing(|| format!("list the processes of cgroup {}", self.path()))?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process of the group, frozen or not, forking or not. Returns once all have got
    /// the signal; [`Cgroup::wait_empty`] waits for their end.
    pub fn kill(&self) -> Result<()> {
        let (group, v2) = self.core()?;
        if v2 {
            match file::write(group, "cgroup.kill", "1") {
                Ok(()) | Err(Errno::NODEV) => return Ok(()),
                // Before 5.14: freeze, kill, thaw, as on v1.
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(Error::system(format!("kill cgroup {}", self.path()), errno));
                }
            }
        }
        self.kill_frozen()
    }

    /// Frozen processes neither fork nor exit, so one round reaches all of them and no pid can
    /// come to mean another process. If something can't be frozen, the round is repeated.
    fn kill_frozen(&self) -> Result<()> {
        for _ in 0..ROUNDS {
            let is_frozen = self.freeze().is_ok();
            let pids = self.pids()?;
            for pid in &pids {
                let pid = Pid::from_raw(*pid).filter(|_| is_frozen || self.still_holds(*pid));
                if let Some(pid) = pid {
                    match kill_process(pid, Signal::KILL) {
                        Ok(()) | Err(Errno::SRCH) => {}
                        Err(errno) => {
                            let doing = format!("kill process {}", pid.as_raw_nonzero());
                            drop(self.thaw());
                            return Err(Error::system(doing, errno));
                        }
                    }
                }
            }
            self.thaw()?;
            if is_frozen || pids.is_empty() {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "cgroup {} still has processes after {ROUNDS} rounds of SIGKILL",
                self.path()
            ),
        ))
    }

    /// Does the process belong to the group now?
    fn still_holds(&self, pid: i32) -> bool {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
            .any(|path| path == self.path() || path.starts_with(&format!("{}/", self.path())))
    }

    /// Stops all processes. An error if they don't all stop soon; then they may be half frozen, and
    /// [`Cgroup::thaw`] is due.
    pub fn freeze(&self) -> Result<()> {
        let (group, v2) = self.core()?;
        let doing = || format!("freeze cgroup {}", self.path());
        let deadline = Instant::now() + FREEZE;
        if v2 {
            file::write(group, "cgroup.freeze", "1").doing(doing)?;
            let is_frozen = |text: &str| file::value(text, "frozen") == Some(1);
            return match wait_event(group, deadline, is_frozen).doing(doing)? {
                true => Ok(()),
                false => Err(timed_out(doing())),
            };
        }
        loop {
            // Written again, because v1 may stay in FREEZING for a task that was just forked.
            file::write(group, "freezer.state", "FROZEN").doing(doing)?;
            if file::read(group, "freezer.state").doing(doing)?.trim() == "FROZEN" {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(timed_out(doing()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets all processes go on.
    pub fn thaw(&self) -> Result<()> {
        let (group, v2) = self.core()?;
        let (name, text) = match v2 {
            true => ("cgroup.freeze", "0"),
            false => ("freezer.state", "THAWED"),
        };
        file::write(group, name, text).doing(|| format!("thaw cgroup {}", self.path()))
    }

    /// Has it any process?
    pub fn is_populated(&self) -> Result<bool> {
        let (group, v2) = self.core()?;
        if !v2 {
            return Ok(!self.pids()?.is_empty());
        }
        let text = file::read(group, "cgroup.events")
            .doing(|| format!("read cgroup.events of cgroup {}", self.path()))?;
        Ok(file::value(&text, "populated") == Some(1))
    }

    /// Waits until no process is left; `false` if the time is up before.
    pub fn wait_empty(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let (group, v2) = self.core()?;
        if v2 {
            let is_empty = |text: &str| file::value(text, "populated") == Some(0);
            return wait_event(group, deadline, is_empty)
                .doing(|| format!("wait for the end of cgroup {}", self.path()));
        }
        while self.is_populated()? {
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(true)
    }
}

fn timed_out(doing: String) -> Error {
    let ms = FREEZE.as_millis();
    Error::new(
        ErrorKind::Exhausted,
        format!("{doing}: not done in {ms} ms"),
    )
}

/// Waits for a change of `cgroup.events` until `is_done` says so; `false` when the time is up.
fn wait_event(
    group: BorrowedFd<'_>,
    deadline: Instant,
    is_done: impl Fn(&str) -> bool,
) -> std::result::Result<bool, Errno> {
    // Opened before the first look, so that no change between look and poll is missed.
    let events = file::open(group, "cgroup.events")?;
    loop {
        let mut buffer = [0u8; 256];
        let length = rustix::io::pread(&events, &mut buffer, 0)?;
        if is_done(&String::from_utf8_lossy(&buffer[..length])) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn list(
    group: BorrowedFd<'_>,
    depth: usize,
    pids: &mut Vec<i32>,
) -> std::result::Result<(), Errno> {
    match file::read(group, "cgroup.procs") {
        // 0 is a process outside our PID namespace: it can't be named.
        Ok(text) => pids.extend(
            text.lines()
                .filter_map(|line| line.parse::<i32>().ok())
                .filter(|pid| *pid > 0),
        ),
        // A threaded group: its processes are listed above it. Or it is just being removed.
        Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    for below in subgroups(group)? {
        match file::open_directory(group, &below) {
            Ok(below) => list(below.as_fd(), depth - 1, pids)?,
            Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
