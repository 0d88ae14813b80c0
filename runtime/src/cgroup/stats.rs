//! Reading what a group uses, in the same plain values whatever the hierarchy.
//!
//! A file that isn't there leaves its value at zero or `None`; only a group that is gone is an
//! error. Sources: the kernel's `admin-guide/cgroup-v2`, `cgroup-v1/memory`, `accounting/psi`.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::file::UNLIMITED;
use super::{Cgroup, file};
use crate::error::{Error, Result};
use crate::plan::cgroup::{Controller, Place, Placement};

/// What a group uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CgroupStats {
    /// CPU time in all, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Thereof in user mode.
    pub cpu_user_ns: u64,
    /// Thereof in the kernel.
    pub cpu_system_ns: u64,
    /// Periods of bandwidth control that passed.
    pub cpu_periods: u64,
    /// Thereof those in which the group was stopped.
    pub cpu_throttled_periods: u64,
    /// How long it was stopped, nanoseconds.
    pub cpu_throttled_ns: u64,
    /// Memory in use, page cache included, bytes.
    pub memory_usage: u64,
    /// Its limit; `None` without one.
    pub memory_limit: Option<u64>,
    /// Thereof page cache that is easily given up.
    pub inactive_file: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Swap in use, bytes.
    pub swap_usage: u64,
    /// Its limit (swap alone); `None` without one.
    pub swap_limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Thereof those that read from disk.
    pub major_page_faults: u64,
    /// Tasks (threads included).
    pub pids: u64,
    /// Pressure; `None` where the kernel doesn't tell (v1 alone, or before 4.20).
    pub pressure: Option<Pressure>,
}

/// Pressure stall information of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Waiting for CPU.
    pub cpu: PressureStats,
    /// Waiting for memory.
    pub memory: PressureStats,
    /// Waiting for I/O.
    pub io: PressureStats,
}

/// One resource's pressure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureStats {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited.
    pub full: PressureLine,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureLine {
    /// Share of the last 10 s, percent.
    pub avg10: f64,
    /// Share of the last 60 s, percent.
    pub avg60: f64,
    /// Share of the last 300 s, percent.
    pub avg300: f64,
    /// In all, nanoseconds.
    pub total_ns: u64,
}

impl Cgroup {
    /// Reads what the group uses now.
    pub fn stats(&self) -> Result<CgroupStats> {
        let mut stats = CgroupStats::default();
        self.read_cpu(&mut stats);
        match self.hierarchies.place(Controller::Memory) {
            Place::V2 => self.read_memory_v2(&mut stats)?,
            Place::V1 => self.read_memory_v1(&mut stats)?,
            Place::Missing => {}
        }
        stats.pids = match self.part(Controller::Pids) {
            Some(part) => file::number(&part.directory, "pids.current").unwrap_or(0),
            None => u64::try_from(self.pids()?.len()).unwrap_or(u64::MAX),
        };
        stats.pressure = self.read_pressure();
        Ok(stats)
    }

    fn read_cpu(&self, stats: &mut CgroupStats) {
        let unified = self.unified.as_ref();
        // Every v2 group counts CPU time, without the controller since 4.15.
        if let Some(text) = unified.and_then(|part| file::read(&part.directory, "cpu.stat").ok()) {
            parse_cpu(&text, stats);
        } else if let Some(part) = self.part(Controller::Cpuacct) {
            let number = |name| file::number(&part.directory, name).unwrap_or(0);
            stats.cpu_usage_ns = number("cpuacct.usage");
            stats.cpu_user_ns = number("cpuacct.usage_user");
            stats.cpu_system_ns = number("cpuacct.usage_sys");
        }
        if self.hierarchies.place(Controller::Cpu) == Place::V1
            && let Some(part) = self.part(Controller::Cpu)
            && let Ok(text) = file::read(&part.directory, "cpu.stat")
        {
            let value = |key| file::value(&text, key).unwrap_or(0);
            stats.cpu_periods = value("nr_periods");
            stats.cpu_throttled_periods = value("nr_throttled");
            stats.cpu_throttled_ns = value("throttled_time");
        }
    }

    /// The memory group's `memory.stat`, or that the group is gone.
    fn memory_stat(&self) -> Result<Option<String>> {
        let Some(part) = self.part(Controller::Memory) else {
            return Ok(None);
        };
        match file::read(&part.directory, "memory.stat") {
            Ok(text) => Ok(Some(text)),
            Err(Errno::NODEV | Errno::NOENT) => Err(self.gone()),
            Err(errno) => {
                let doing = format!("read memory.stat of cgroup {}", self.path());
                Err(Error::system(doing, errno))
            }
        }
    }

    fn read_memory_v2(&self, stats: &mut CgroupStats) -> Result<()> {
        let (Some(text), Some(part)) = (self.memory_stat()?, self.part(Controller::Memory)) else {
            return Ok(());
        };
        let number = |name| file::number(part.directory.as_fd(), name);
        let value = |key| file::value(&text, key).unwrap_or(0);
        stats.memory_usage = number("memory.current").unwrap_or(0);
        stats.memory_limit = number("memory.max");
        stats.swap_usage = number("memory.swap.current").unwrap_or(0);
        stats.swap_limit = number("memory.swap.max");
        stats.inactive_file = value("inactive_file");
        stats.rss = value("anon");
        stats.page_faults = value("pgfault");
        stats.major_page_faults = value("pgmajfault");
        Ok(())
    }

    fn read_memory_v1(&self, stats: &mut CgroupStats) -> Result<()> {
        let (Some(text), Some(part)) = (self.memory_stat()?, self.part(Controller::Memory)) else {
            return Ok(());
        };
        let number = |name| file::number(part.directory.as_fd(), name);
        // `total_` counts the groups below too, as v2 always does.
        let value = |key| file::value(&text, key).unwrap_or(0);
        let limit = |bytes: &u64| *bytes < UNLIMITED;
        stats.memory_usage = number("memory.usage_in_bytes").unwrap_or(0);
        stats.memory_limit = number("memory.limit_in_bytes").filter(limit);
        stats.swap_usage = value("total_swap");
        stats.swap_limit = number("memory.memsw.limit_in_bytes")
            .filter(limit)
            .map(|both| both.saturating_sub(stats.memory_limit.unwrap_or(0)));
        stats.inactive_file = value("total_inactive_file");
        stats.rss = value("total_rss");
        stats.page_faults = value("total_pgfault");
        stats.major_page_faults = value("total_pgmajfault");
        Ok(())
    }

    fn read_pressure(&self) -> Option<Pressure> {
        let part = self.unified.as_ref()?;
        let read = |name| {
            file::read(&part.directory, name)
                .ok()
                .map(|text| parse_pressure(&text))
        };
        Some(Pressure {
            cpu: read("cpu.pressure")?,
            memory: read("memory.pressure")?,
            io: read("io.pressure")?,
        })
    }
}

/// v2's `cpu.stat`, in microseconds.
fn parse_cpu(text: &str, stats: &mut CgroupStats) {
    let value = |key| file::value(text, key).unwrap_or(0);
    let ns = |key| value(key).saturating_mul(1000);
    stats.cpu_usage_ns = ns("usage_usec");
    stats.cpu_user_ns = ns("user_usec");
    stats.cpu_system_ns = ns("system_usec");
    stats.cpu_periods = value("nr_periods");
    stats.cpu_throttled_periods = value("nr_throttled");
    stats.cpu_throttled_ns = ns("throttled_usec");
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`, in percent and microseconds.
fn parse_pressure(text: &str) -> PressureStats {
    let line = |wanted: &str| {
        let mut line = PressureLine::default();
        let text = text.lines().find_map(|line| line.strip_prefix(wanted));
        for (key, value) in text
            .unwrap_or_default()
            .split(' ')
            .filter_map(|f| f.split_once('='))
        {
            match key {
                "avg10" => line.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => line.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => line.avg300 = value.parse().unwrap_or(0.0),
                "total" => {
                    line.total_ns = value.parse::<u64>().unwrap_or(0).saturating_mul(1000);
                }
                _ => {}
            }
        }
        line
    };
    PressureStats {
        some: line("some "),
        full: line("full "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microseconds_become_nanoseconds() {
        let mut stats = CgroupStats::default();
        parse_cpu(
            "usage_usec 5\nuser_usec 2\nsystem_usec 3\nthrottled_usec 7\n",
            &mut stats,
        );
        assert_eq!((stats.cpu_usage_ns, stats.cpu_throttled_ns), (5000, 7000));
    }

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\n\
                    full avg10=0.10 avg60=0.00 avg300=0.00 total=7\n";
        let stats = parse_pressure(text);
        assert!((stats.some.avg10 - 1.5).abs() < 1e-9 && (stats.full.avg10 - 0.1).abs() < 1e-9);
        assert_eq!((stats.some.total_ns, stats.full.total_ns), (42_000, 7_000));
        assert_eq!(
            parse_pressure("some avg10=x total=\n"),
            PressureStats::default()
        );
    }
}
