//! Memory and processor time of a runtime, seen from /proc.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};

/// The pid at the other end of a unix socket: the daemon that listens (SO_PEERCRED, unix(7)).
pub fn daemon(socket: &Path) -> Result<u32> {
    let stream = UnixStream::connect(socket).context("connect to the runtime")?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    Ok(u32::try_from(peer.pid.as_raw_nonzero().get())?)
}

/// Every process there is.
pub fn processes() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// A process and all below it.
pub fn family(of: u32) -> BTreeSet<u32> {
    let mut members = BTreeSet::from([of]);
    loop {
        let more: Vec<u32> = processes()
            .into_iter()
            .filter(|pid| !members.contains(pid))
            .filter(|pid| stat(*pid, 1).is_some_and(|parent| members.contains(&parent)))
            .collect();
        if more.is_empty() {
            return members;
        }
        members.extend(more);
    }
}

/// What runtimes keep beside a pod's containers, by the beginning of the program's name: on a
/// machine where others work too, "every new process" would count their compilers.
const HELPERS: [&str; 4] = ["bulkhead-monitor", "containerd-shim", "conmon", "pause"];

/// Whether a process is a runtime's helper: by its first argument or, for one executed from a
/// memory file, by that file's name.
pub fn is_helper(pid: u32) -> bool {
    let folder = format!("/proc/{pid}");
    let command = fs::read(format!("{folder}/cmdline")).unwrap_or_default();
    let first = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let first = String::from_utf8_lossy(first).into_owned();
    let file = fs::read_link(format!("{folder}/exe")).unwrap_or_default();
    [first.as_str(), &file.to_string_lossy()]
        .iter()
        .any(|path| {
            let name = path.rsplit(['/', ':']).next().unwrap_or_default();
            HELPERS.iter().any(|helper| name.starts_with(helper))
        })
}

/// Proportional set size in MB; a process that has gone counts nothing.
pub fn pss(pid: u32) -> f64 {
    kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:") / 1024.0
}

/// Resident set size in MB.
pub fn rss(pid: u32) -> f64 {
    kilobytes(&format!("/proc/{pid}/status"), "VmRSS:") / 1024.0
}

/// Processor time so far, in milliseconds; clock ticks are 10 ms each (`USER_HZ`, time(7)).
pub fn cpu(pid: u32) -> f64 {
    let ticks = |field| stat(pid, field).map_or(0.0, f64::from);
    (ticks(11) + ticks(12)) * 10.0
}

fn kilobytes(path: &str, field: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0.0)
}

/// A field of proc_pid_stat(5) after the name, from 0 (the state).
fn stat(pid: u32, field: usize) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?
        .1
        .split(' ')
        .nth(field)?
        .parse()
        .ok()
}
