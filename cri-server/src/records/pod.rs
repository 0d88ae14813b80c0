//! What is recorded of a pod sandbox.

use std::path::PathBuf;

use bulkhead_proto::runtime::v1::{LinuxContainerResources, PodSandboxConfig, PodSandboxMetadata};
use bulkhead_runtime::monitor::wire::PodPaths;
use serde::{Deserialize, Serialize};

use super::Stored;
use crate::network::Attachment;
use crate::request::sandbox::SandboxKey;

/// Where a pod is in its life. `Creating` and `Removing` are intents: the next start of the daemon
/// undoes the one and finishes the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// Being made; not listed.
    Creating,
    /// Namespaces and network stand.
    Ready,
    /// Stopped, or its monitor is gone. Final.
    NotReady,
    /// Being removed.
    Removing,
}

/// The process that holds a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorRecord {
    /// Process id on the node.
    pub pid: i32,
    /// Start time in clock ticks since boot, to tell a recycled pid.
    pub start_ticks: u64,
}

/// A pod sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// 64 lower-case hexadecimal digits.
    pub id: String,
    /// As the client sent it.
    pub config: Stored<PodSandboxConfig>,
    /// The runtime handler asked for ("" is the default).
    pub runtime_handler: String,
    /// Where it is in its life.
    pub state: PodState,
    /// Wall clock, nanoseconds since the epoch.
    pub created_at: i64,
    /// The boot in which it was made; in another one its processes and namespaces are gone.
    pub boot_id: String,
    /// The pod's cgroup.
    pub cgroup: String,
    /// Its monitor, once started.
    pub monitor: Option<MonitorRecord>,
    /// Its namespaces, by the monitor's descriptors.
    pub paths: PodPaths,
    /// Where its network namespace is bound; none for the node's network.
    pub netns: Option<PathBuf>,
    /// The pod's network, once attached.
    pub network: Option<Attachment>,
    /// Nothing of it remains but the record: processes, network and namespaces are gone.
    pub torn_down: bool,
    /// Resources last told by UpdatePodSandboxResources.
    pub resources: Option<Stored<LinuxContainerResources>>,
    /// Overhead last told by UpdatePodSandboxResources.
    pub overhead: Option<Stored<LinuxContainerResources>>,
}

impl PodRecord {
    /// The metadata, which every recorded pod has.
    pub fn metadata(&self) -> PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// The key the name is unique by.
    pub fn key(&self) -> SandboxKey {
        let metadata = self.metadata();
        SandboxKey {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
        }
    }

    /// Whether lists show it.
    pub fn is_visible(&self) -> bool {
        self.state != PodState::Creating
    }

    /// Whether containers can be created and started in it.
    pub fn is_ready(&self) -> bool {
        self.state == PodState::Ready
    }
}
