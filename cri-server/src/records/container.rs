//! What is recorded of a container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bulkhead_proto::runtime::v1::{ContainerConfig, ContainerMetadata, LinuxContainerResources};
use bulkhead_runtime::monitor::wire::{ExitRecord, ProcessInfo};
use bulkhead_runtime::users::Identity;
use serde::{Deserialize, Serialize};

use super::Stored;
use crate::request::signal::Signal;

/// Where a container is in its life. `Creating`, `Starting` and `Removing` are intents and guards:
/// only one of them holds at a time, and the next start of the daemon settles them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Being made; not listed.
    Creating,
    /// Made, not started.
    Created,
    /// Being started.
    Starting,
    /// Its process runs.
    Running,
    /// Its process ended, or never could start.
    Exited,
    /// A restart of the daemon could not tell.
    Unknown,
    /// Being removed.
    Removing,
}

/// Why a container ended; spelled as the kubelet and users know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code, or a signal.
    Error,
    /// The kernel killed something in its cgroup for lack of memory.
    OOMKilled,
    /// It never started.
    StartError,
    /// Its monitor died, and the container was killed with it.
    MonitorDied,
    /// A restart of the daemon or the node could not tell how it ended.
    Unknown,
}

impl ExitReason {
    /// The word in `ContainerStatus.reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OOMKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::MonitorDied => "MonitorDied",
            Self::Unknown => "Unknown",
        }
    }
}

/// A container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// 64 lower-case hexadecimal digits.
    pub id: String,
    /// The pod it belongs to.
    pub pod: String,
    /// As the client sent it.
    pub config: Stored<ContainerConfig>,
    /// Where it is in its life.
    pub state: ContainerState,
    /// The image's id; what its root file system is made of.
    pub image_id: String,
    /// A repository digest of the image, or its id.
    pub image_ref: String,
    /// Wall clock, nanoseconds since the epoch.
    pub created_at: i64,
    /// 0 until started.
    pub started_at: i64,
    /// 0 until exited.
    pub finished_at: i64,
    /// Exit status, or 128 + signal.
    pub exit_code: i32,
    /// Why it ended.
    pub reason: Option<ExitReason>,
    /// For people: what went wrong.
    pub message: String,
    /// Its init, while it runs.
    pub process: Option<ProcessInfo>,
    /// User, group and supplementary groups, resolved once.
    pub identity: Identity,
    /// The log file, absolute; none discards the output.
    pub log_path: Option<PathBuf>,
    /// Its cgroup.
    pub cgroup: String,
    /// The signal StopContainer sends first.
    pub stop_signal: Signal,
    /// The limits in force.
    pub resources: Stored<LinuxContainerResources>,
    /// Images mounted as volumes, by the path in the container as the client sent it.
    #[serde(default)]
    pub images: BTreeMap<String, MountedImage>,
}

/// An image mounted as a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedImage {
    /// The image's id.
    pub id: String,
    /// Where, in the container.
    pub destination: PathBuf,
    /// What of it; none is all.
    pub sub_path: Option<PathBuf>,
}

/// What makes a container unique among those of its pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerKey {
    /// The pod's id.
    pub pod: String,
    /// The container's name.
    pub name: String,
    /// How often it was made.
    pub attempt: u32,
}

impl std::fmt::Display for ContainerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "container {} attempt {} of pod {}",
            self.name, self.attempt, self.pod
        )
    }
}

impl ContainerRecord {
    /// The metadata, which every recorded container has.
    pub fn metadata(&self) -> ContainerMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// The key the name is unique by.
    pub fn key(&self) -> ContainerKey {
        let metadata = self.metadata();
        ContainerKey {
            pod: self.pod.clone(),
            name: metadata.name,
            attempt: metadata.attempt,
        }
    }

    /// Whether lists show it.
    pub fn is_visible(&self) -> bool {
        self.state != ContainerState::Creating
    }

    /// The process runs, so it started: CREATED → RUNNING.
    pub fn started(&mut self, process: ProcessInfo) {
        self.state = ContainerState::Running;
        // The clock may have been set back since the creation (case T4).
        self.started_at = process.started_at.max(self.created_at);
        self.process = Some(process);
    }

    /// The process ended as its monitor recorded.
    pub fn exited(&mut self, exit: &ExitRecord) {
        let reason = match (exit.oom_killed, exit.exit_code) {
            (true, _) => ExitReason::OOMKilled,
            (false, 0) => ExitReason::Completed,
            (false, _) => ExitReason::Error,
        };
        if self.started_at == 0 {
            self.started_at = exit.started_at.max(self.created_at);
        }
        self.ended(exit.exit_code, reason, String::new(), exit.finished_at);
    }

    /// The end of the container, however it came; the first one recorded stands.
    pub fn ended(&mut self, exit_code: i32, reason: ExitReason, message: String, now: i64) {
        if self.state == ContainerState::Exited || self.finished_at != 0 {
            return;
        }
        if self.state != ContainerState::Removing {
            self.state = ContainerState::Exited;
        }
        self.exit_code = exit_code;
        self.reason = Some(reason);
        self.message = message;
        self.finished_at = now.max(self.started_at).max(self.created_at);
        self.process = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(at: i64) -> ContainerRecord {
        ContainerRecord {
            id: "c".to_owned(),
            pod: "p".to_owned(),
            config: Stored::default(),
            state: ContainerState::Starting,
            image_id: String::new(),
            image_ref: String::new(),
            created_at: at,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: None,
            message: String::new(),
            process: None,
            identity: Identity::default(),
            log_path: None,
            cgroup: String::new(),
            stop_signal: Signal::TERM,
            resources: Stored::default(),
            images: BTreeMap::new(),
        }
    }

    #[test]
    fn t4_times_stay_in_order_whenever_the_clock_is_set_back() {
        for (name, start, end, want) in [
            ("never", Some(20), 30, (10, 20, 30)),
            ("before the start", Some(5), 6, (10, 10, 10)),
            ("after the start", Some(20), 12, (10, 20, 20)),
            ("to before the creation", Some(20), 3, (10, 20, 20)),
            ("before a start nobody saw", None, 3, (10, 10, 10)),
        ] {
            let mut record = created(10);
            if let Some(started_at) = start {
                record.started(ProcessInfo {
                    pid: 7,
                    start_ticks: 1,
                    started_at,
                });
            }
            record.exited(&ExitRecord {
                container: "c".to_owned(),
                exit_code: 0,
                signal: None,
                oom_killed: false,
                started_at: start.unwrap_or(2),
                finished_at: end,
                log_bytes_lost: 0,
            });
            let times = (record.created_at, record.started_at, record.finished_at);
            assert_eq!(times, want, "set back {name}");
        }
    }
}
