//! The shared handles given to every operation.

use std::path::PathBuf;
use std::sync::Arc;

use bulkhead_runtime::cgroup::Hierarchies;
use bulkhead_runtime::features::Features;

use crate::config::Config;
use crate::container::stop::Stops;
use crate::image::ImageStore;
use crate::monitor::Monitors;
use crate::network::Network;
use crate::ops::inflight::Inflight;
use crate::ops::tasks::Tasks;
use crate::ops::turns::Turns;
use crate::records::{ContainerKey, Records};
use crate::request::sandbox::SandboxKey;
use crate::security::apparmor::load::AppArmor;
use crate::security::seccomp::SeccompCache;
use crate::stats::StatsCache;
use crate::streaming::Streaming;

/// Everything an operation may need. Shared behind [`NodeHandle`].
#[derive(Debug)]
pub struct Node {
    /// The configuration in force.
    pub config: Config,
    /// What the kernel offers, probed once.
    pub features: Features,
    /// Why pods can't have user namespaces here; none if they can.
    pub no_user_namespaces: Option<String>,
    /// The cgroup hierarchies.
    pub hierarchies: Hierarchies,
    /// Pods and containers.
    pub records: Records,
    /// Images and writable layers.
    pub images: ImageStore,
    /// Addresses, routes and host ports of pods.
    pub network: Network,
    /// The pods' monitors.
    pub monitors: Monitors,
    /// All tasks of the daemon.
    pub tasks: Tasks,
    /// RunPodSandbox in flight, by name.
    pub runs: Inflight<SandboxKey, String>,
    /// CreateContainer in flight, by name.
    pub creations: Inflight<ContainerKey, String>,
    /// Graceful stops in progress.
    pub stops: Stops,
    /// Starts and changes of limits, one at a time per container.
    pub turns: Turns,
    /// Stopping and removing in flight, by verb and id.
    pub endings: Inflight<String, ()>,
    /// The default AppArmor profile and the list of those loaded.
    pub apparmor: AppArmor,
    /// Compiled seccomp programs.
    pub seccomp: SeccompCache,
    /// Usage last read.
    pub stats: StatsCache,
    /// URLs for the clients of exec, attach and port-forward.
    pub streaming: Streaming,
    /// Identifies this boot of the node.
    pub boot_id: String,
}

/// A shared [`Node`].
pub type NodeHandle = Arc<Node>;

impl Node {
    /// The state directory of a pod: its monitor's socket, exit records, files for its containers.
    /// Below `state`, which a reboot empties, as it does the pod.
    pub fn pod_directory(&self, pod: &str) -> PathBuf {
        self.config.state.join("pods").join(pod)
    }
}

/// A fresh id: 64 lower-case hexadecimal digits from the kernel's random source.
pub fn fresh_id() -> String {
    random().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 256 bits from the kernel's random source.
pub fn random() -> [u8; 32] {
    let mut bytes = [0_u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        // getrandom(2) can't fail with these flags but by a signal; then it is asked again.
        filled += rustix::rand::getrandom(
            bytes.get_mut(filled..).unwrap_or_default(),
            rustix::rand::GetRandomFlags::empty(),
        )
        .unwrap_or(0);
    }
    bytes
}
