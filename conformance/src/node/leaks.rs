//! What a run leaves behind: mounts, namespaces, links, firewall rules, cgroups, processes, files.
//!
//! A [`Snapshot`] is taken before the daemon starts; afterwards nothing may have been added to it
//! but what the daemon keeps for its own life ([`KEPT`]). Clearing up goes on in the background
//! after an answer, so the comparison waits for it, with a bound.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// How long background clearing may take; deleting a veth pair alone waits some 35 ms.
const PATIENCE: Duration = Duration::from_secs(10);

/// What stays on purpose while the daemon is installed: its bridge, the skeleton of its nftables
/// table, the parents of its cgroups. Text as in the snapshot; `*` ends a prefix.
const KEPT: &[&str] = &[
    "link bhtest0",
    "rule bulkhead/skeleton*",
    "cgroup /bulkhead",
    "cgroup /bulkhead/monitors",
    "cgroup /bulkhead-conformance",
];

/// The nftables table in which the embedded network keeps its rules and host ports.
const OWN_TABLE: &str = "inet bulkhead";

/// The machine's state in the respects that a pod touches, one text line each.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the machine.
    pub fn take() -> Result<Self> {
        let mut lines = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
        for line in mounts.lines() {
            // proc_pid_mountinfo(5): the mount point is the fifth field.
            let point = line.split(' ').nth(4).unwrap_or_default();
            lines.insert(format!("mount {point}"));
        }
        for (kind, folder) in [("netns", "/run/netns"), ("link", "/sys/class/net")] {
            for name in names(Path::new(folder)) {
                lines.insert(format!("{kind} {name}"));
            }
        }
        firewall(&mut lines)?;
        for hierarchy in cgroup_roots() {
            cgroups(&hierarchy, &hierarchy, &mut lines);
        }
        processes(&mut lines);
        Ok(Self { lines })
    }

    /// What is there now and was not then.
    fn added(&self) -> Result<Vec<String>> {
        let now = Self::take()?;
        Ok(now
            .lines
            .difference(&self.lines)
            .filter(|line| !kept(line))
            .cloned()
            .collect())
    }

    /// Waits until nothing is added and `empty` folders hold nothing.
    pub async fn compare_until_equal(&self, empty: Vec<PathBuf>) -> Result<()> {
        let begin = Instant::now();
        loop {
            let mut left = self.added()?;
            for folder in &empty {
                let held = names(folder);
                left.extend(
                    held.iter()
                        .map(|name| format!("file {}/{name}", folder.display())),
                );
            }
            if left.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                bail!("left behind after {PATIENCE:?}:\n  {}", left.join("\n  "));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// After a failed test: ends added processes and undoes added mounts and namespaces, as far as
    /// they are below the node's folders or in our cgroups. Best effort, for the next test's sake.
    pub(super) fn sweep(&self, root: &Path, state: &Path) {
        let added = self.added().unwrap_or_default();
        for line in &added {
            if let Some(pid) = line
                .strip_prefix("process ")
                .and_then(|text| text.split(' ').next())
                && owned(pid, state)
                && let Some(pid) = pid.parse().ok().and_then(Pid::from_raw)
            {
                // It may have ended by itself.
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
        sweep_cgroups(&added);
        for line in added.iter().rev() {
            let point = line.strip_prefix("mount ").map(PathBuf::from);
            let point = point.or_else(|| {
                line.strip_prefix("netns ")
                    .map(|name| Path::new("/run/netns").join(name))
            });
            let Some(point) = point else { continue };
            let named = point.starts_with("/run/netns");
            if named || point.starts_with(root) || point.starts_with(state) {
                rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH).ok();
                if named {
                    fs::remove_file(&point).ok();
                }
            }
        }
    }
}

/// Unmounts everything at and below a folder, the newest first.
pub fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Path::new);
    let below: Vec<&Path> = points.filter(|point| point.starts_with(folder)).collect();
    for point in below.into_iter().rev() {
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

/// Removes the added cgroups of pods and monitors, deepest first: a path sorts before those below.
fn sweep_cgroups(added: &[String]) {
    for path in added
        .iter()
        .rev()
        .filter_map(|line| line.strip_prefix("cgroup "))
    {
        let is_ours = ["/bulkhead-conformance/", "/bulkhead/"]
            .iter()
            .any(|p| path.starts_with(p));
        for root in cgroup_roots().iter().filter(|_| is_ours) {
            let folder = root.join(path.trim_start_matches('/'));
            // What was killed a moment ago still counts.
            for _ in 0..100 {
                if !folder.exists() || fs::remove_dir(&folder).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn kept(line: &str) -> bool {
    KEPT.iter().any(|keep| match keep.strip_suffix('*') {
        Some(prefix) => line.starts_with(prefix),
        None => line == *keep,
    })
}

/// A process of this node: its command line names the state folder, or it is in a pod's cgroup.
fn owned(pid: &str, state: &Path) -> bool {
    let folder = Path::new("/proc").join(pid);
    let command = fs::read(folder.join("cmdline")).unwrap_or_default();
    let cgroup = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains(&state.display().to_string())
        || cgroup.contains("/bulkhead-conformance")
        || cgroup.contains("/bulkhead/")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Elements and rules of every table, without counters. Of the product's own table only what its
/// maps hold counts: tables, chains and rules are its skeleton, which stays.
fn firewall(lines: &mut BTreeSet<String>) -> Result<()> {
    let output = Command::new("nft").args(["-s", "list", "ruleset"]).output();
    let output = output.context("run nft, of package nftables")?;
    let (mut table, mut elements) = (String::new(), false);
    for line in String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::trim)
    {
        if let Some(name) = line.strip_prefix("table ") {
            name.trim_end_matches(" {").clone_into(&mut table);
        }
        elements |= line.starts_with("elements = {");
        let name = match table.as_str() {
            OWN_TABLE if !elements => "bulkhead/skeleton",
            name => name,
        };
        lines.insert(format!("rule {name}: {line}"));
        elements &= !line.contains('}');
    }
    Ok(())
}

/// Where hierarchies are mounted: each v1 controller, and v2.
fn cgroup_roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
    of_cgroups
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect()
}

fn cgroups(root: &Path, folder: &Path, lines: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            let inside = path.strip_prefix(root).unwrap_or(&path);
            lines.insert(format!("cgroup /{}", inside.display()));
            cgroups(root, &path, lines);
        }
    }
}

/// Processes in another PID, mount or network namespace than this one, and executables of ours.
fn processes(lines: &mut BTreeSet<String>) {
    let namespaces = |folder: &Path| {
        ["pid", "mnt", "net"].map(|kind| fs::read_link(folder.join("ns").join(kind)).ok())
    };
    let own = namespaces(Path::new("/proc/self"));
    for pid in names(Path::new("/proc")) {
        let folder = Path::new("/proc").join(&pid);
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        let theirs = namespaces(&folder);
        let elsewhere = theirs.iter().all(Option::is_some) && theirs != own;
        if elsewhere || name.starts_with("bulkhead-monit") {
            lines.insert(format!("process {pid} {}", name.trim()));
        }
    }
}
