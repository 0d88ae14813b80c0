//! Whether a group can take another process now, and if not, what stands in the way: asked before an
//! exec, so that it is refused with the reason instead of hanging in a frozen group, failing in
//! fork, or having the kernel kill something of the container's for lack of memory. Limits of the
//! groups above (the pod's) count as well.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::file::UNLIMITED;
use super::{Cgroup, file};
use crate::error::{Error, ErrorKind};
use crate::plan::cgroup::{Controller, Place, Placement};

/// Groups above that are looked at: as many as a path has components.
const LEVELS: usize = 32;

/// An exec is two processes for a moment: one that enters the namespaces, and the one in them.
const PROCESSES: u64 = 2;

/// What even a small static program needs until it runs: stack, page tables, what it writes to.
/// Also what the kernel charges a CPU at once (MEMCG_CHARGE_BATCH, 64 pages).
const MEMORY: u64 = 256 << 10;

/// Why a group takes no process now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It, or a group above, is frozen.
    Frozen,
    /// Its, or a group's above, limit of processes is reached.
    Processes { used: u64, limit: u64 },
    /// Its, or a group's above, memory limit is reached, and giving up page cache doesn't help.
    Memory { left: u64, limit: u64 },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frozen => f.write_str("it is frozen (paused), so nothing in it would run"),
            Self::Processes { used, limit } => write!(
                f,
                "it is at its pids limit: {used} of at most {limit} processes and threads exist, \
                 and starting one takes {PROCESSES}"
            ),
            Self::Memory { left, limit } => write!(
                f,
                "it is at its memory limit: {left} of {limit} bytes are left, so starting a \
                 process would make the kernel kill one of its processes"
            ),
        }
    }
}

impl From<Obstacle> for Error {
    fn from(obstacle: Obstacle) -> Self {
        let kind = match obstacle {
            Obstacle::Frozen => ErrorKind::WrongState,
            Obstacle::Processes { .. } | Obstacle::Memory { .. } => ErrorKind::Exhausted,
        };
        Error::new(kind, obstacle.to_string())
    }
}

impl Cgroup {
    /// What stands in the way of a process in the group now. What can't be read is no obstacle.
    pub(crate) fn obstacle(&self) -> Option<Obstacle> {
        if self.is_frozen() {
            return Some(Obstacle::Frozen);
        }
        let processes = self.part(Controller::Pids);
        let memory = self.part(Controller::Memory);
        processes
            .and_then(|part| upwards(part.directory.as_fd(), processes_at))
            .or_else(|| {
                let at = match self.hierarchies.place(Controller::Memory) {
                    Place::V2 => memory_at_v2,
                    Place::V1 | Place::Missing => memory_at_v1,
                };
                memory.and_then(|part| upwards(part.directory.as_fd(), at))
            })
    }

    /// What keeps a process that is in the group from running at all.
    pub(crate) fn standstill(&self) -> Option<Obstacle> {
        if self.is_frozen() {
            return Some(Obstacle::Frozen);
        }
        // v1 alone can be told to let processes wait for memory instead of killing one.
        let part = self.part(Controller::Memory)?;
        let text = file::read(&part.directory, "memory.oom_control").ok()?;
        let set = |key| file::value(&text, key) == Some(1);
        let limit = || file::number(&part.directory, "memory.limit_in_bytes").unwrap_or(0);
        (set("oom_kill_disable") && set("under_oom")).then(|| Obstacle::Memory {
            left: 0,
            limit: limit(),
        })
    }

    /// Frozen, or about to be, by whichever hierarchy can.
    fn is_frozen(&self) -> bool {
        let unified = self.unified.as_ref().is_some_and(|part| {
            // The first tells of the groups above too, the second is there before all has stopped.
            let events = file::read(&part.directory, "cgroup.events").unwrap_or_default();
            file::value(&events, "frozen") == Some(1)
                || file::number(&part.directory, "cgroup.freeze") == Some(1)
        });
        let freezer = self.hierarchies.v1_with(Controller::Freezer);
        let part = freezer.and_then(|(index, _)| self.v1.get(index)?.get());
        unified
            || part
                .and_then(|part| file::read(&part.directory, "freezer.state").ok())
                .is_some_and(|state| state.trim() != "THAWED")
    }
}

/// The first obstacle at the group or above it.
fn upwards(
    group: BorrowedFd<'_>,
    at: impl Fn(&Level<'_>) -> Result<Option<Obstacle>, Errno>,
) -> Option<Obstacle> {
    let mut above = String::new();
    for _ in 0..LEVELS {
        match at(&Level {
            group,
            above: &above,
        }) {
            Ok(Some(obstacle)) => return Some(obstacle),
            Ok(None) => above.push_str("../"),
            // The root has no limits.
            Err(_) => return None,
        }
    }
    None
}

/// A group and how many levels above it is meant.
struct Level<'a> {
    group: BorrowedFd<'a>,
    above: &'a str,
}

impl Level<'_> {
    fn read(&self, name: &str) -> Result<String, Errno> {
        file::read(self.group, &format!("{}{name}", self.above))
    }

    /// None for `max`.
    fn number(&self, name: &str) -> Result<Option<u64>, Errno> {
        Ok(self.read(name)?.trim().parse().ok())
    }
}

fn processes_at(level: &Level<'_>) -> Result<Option<Obstacle>, Errno> {
    let Some(limit) = level.number("pids.max")? else {
        return Ok(None);
    };
    let used = level.number("pids.current")?.unwrap_or(0);
    let full = used.saturating_add(PROCESSES) > limit;
    Ok(full.then_some(Obstacle::Processes { used, limit }))
}

fn memory_at_v2(level: &Level<'_>) -> Result<Option<Obstacle>, Errno> {
    let limit = level.number("memory.max")?;
    let used = level.number("memory.current")?;
    // Without a file there is no swap; what may be swapped out is no obstacle.
    let swaps = level
        .number("memory.swap.max")
        .is_ok_and(|max| max != Some(0));
    memory_at(level, limit, used, swaps, "")
}

fn memory_at_v1(level: &Level<'_>) -> Result<Option<Obstacle>, Errno> {
    let limit = level
        .number("memory.limit_in_bytes")?
        .filter(|limit| *limit < UNLIMITED);
    let used = level.number("memory.usage_in_bytes")?;
    let both = level.number("memory.memsw.limit_in_bytes");
    let swaps = both.is_ok_and(|both| both > limit);
    memory_at(level, limit, used, swaps, "total_")
}

fn memory_at(
    level: &Level<'_>,
    limit: Option<u64>,
    used: Option<u64>,
    swaps: bool,
    prefix: &str,
) -> Result<Option<Obstacle>, Errno> {
    let (Some(limit), Some(used)) = (limit, used) else {
        return Ok(None);
    };
    if used.saturating_add(MEMORY) <= limit || swaps && node_swaps() {
        return Ok(None);
    }
    let stat = level.read("memory.stat")?;
    let cache: u64 = ["inactive_file", "active_file"]
        .iter()
        .filter_map(|name| file::value(&stat, &format!("{prefix}{name}")))
        .sum();
    let left = limit.saturating_sub(used.saturating_sub(cache));
    Ok((left < MEMORY).then_some(Obstacle::Memory { left, limit }))
}

/// The node has swap space in use: `/proc/swaps` has a line below its heading.
fn node_swaps() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder that looks like a group and one below it.
    fn groups(files: &[(&str, &str)]) -> (std::path::PathBuf, rustix::fd::OwnedFd) {
        let root = std::env::temp_dir().join(format!(
            "bulkhead-room-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        fs::create_dir_all(root.join("pod/container")).unwrap();
        for (path, text) in files {
            fs::write(root.join(path), text).unwrap();
        }
        let directory = file::open_directory(
            rustix::fs::CWD,
            root.join("pod/container").to_str().unwrap(),
        );
        (root, directory.unwrap())
    }

    #[test]
    fn limits_of_the_group_and_of_those_above_count() {
        let mib = |n: u64| (n << 20).to_string();
        let cache = format!(
            "anon 1\ninactive_file {}\nactive_file {}\n",
            1 << 20,
            1 << 20
        );
        let processes = |used, limit| Some(Obstacle::Processes { used, limit });
        // pids.max and current of pod and container; memory.max, current and stat of the container.
        type Row<'a> = ([&'a str; 4], [&'a str; 3], Option<Obstacle>);
        let table: [Row<'_>; 8] = [
            (["max", "9", "max", "3"], ["max", "9", ""], None),
            (["20", "9", "10", "8"], ["max", "9", ""], None),
            (["20", "9", "10", "9"], ["max", "9", ""], processes(9, 10)),
            (
                ["20", "19", "max", "3"],
                ["max", "9", ""],
                processes(19, 20),
            ),
            (
                ["20", "25", "max", "3"],
                ["max", "9", ""],
                processes(25, 20),
            ),
            (["max", "9", "max", "3"], [&mib(20), &mib(19), ""], None),
            (
                ["max", "9", "max", "3"],
                [&mib(20), &mib(20), "anon 7\n"],
                Some(Obstacle::Memory {
                    left: 0,
                    limit: 20 << 20,
                }),
            ),
            (["max", "9", "max", "3"], [&mib(20), &mib(20), &cache], None),
        ];
        for (number, (pids, memory, expected)) in table.into_iter().enumerate() {
            let (root, group) = groups(&[
                ("pod/pids.max", pids[0]),
                ("pod/pids.current", pids[1]),
                ("pod/container/pids.max", pids[2]),
                ("pod/container/pids.current", pids[3]),
                ("pod/container/memory.max", memory[0]),
                ("pod/container/memory.current", memory[1]),
                ("pod/container/memory.swap.max", "0"),
                ("pod/container/memory.stat", memory[2]),
            ]);
            let found = upwards(group.as_fd(), processes_at)
                .or_else(|| upwards(group.as_fd(), memory_at_v2));
            assert_eq!(found, expected, "row {number}");
            fs::remove_dir_all(root).unwrap();
        }
    }
}
