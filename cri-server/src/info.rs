//! What the daemon says about itself and, in verbose answers, about pods and containers (JSON that
//! node software reads).

use std::collections::BTreeMap;

use bulkhead_proto::runtime::v1::{
    CgroupDriver, LinuxContainerResources, LinuxRuntimeConfiguration, RuntimeCondition,
    RuntimeConfigResponse, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus,
    StatusResponse, VersionResponse,
};
use serde_json::json;

use crate::config;
use crate::node::NodeHandle;
use crate::records::{ContainerRecord, PodRecord};

/// Name and versions.
pub fn version() -> VersionResponse {
    VersionResponse {
        version: "0.1.0".to_owned(),
        runtime_name: "bulkhead".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// The cgroup driver, which the kubelet takes over.
pub fn runtime_config(node: &NodeHandle) -> RuntimeConfigResponse {
    let driver = match node.config.cgroup.driver {
        config::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        config::CgroupDriver::Systemd => CgroupDriver::Systemd,
    };
    RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration {
            cgroup_driver: driver.into(),
        }),
    }
}

/// Conditions, handlers and features; only what was probed is claimed.
pub async fn status(node: &NodeHandle, verbose: bool) -> StatusResponse {
    let network = node.network.status().await;
    let conditions = vec![
        RuntimeCondition {
            r#type: "RuntimeReady".to_owned(),
            status: true,
            ..Default::default()
        },
        RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: network.ready,
            reason: network.reason,
            message: network.message,
        },
    ];
    let mut response = StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: BTreeMap::new(),
        runtime_handlers: handlers(node),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: node.no_user_namespaces.is_none(),
            mount_options: true,
        }),
    };
    if verbose {
        response
            .info
            .insert("config".to_owned(), config(node).to_string());
        let pulls = serde_json::to_string(&node.images.progress());
        response
            .info
            .insert("pulls".to_owned(), pulls.unwrap_or_default());
    }
    response
}

/// The default handler under its name and under "", then the others.
fn handlers(node: &NodeHandle) -> Vec<RuntimeHandler> {
    let features = RuntimeHandlerFeatures {
        recursive_read_only_mounts: true,
        user_namespaces: node.no_user_namespaces.is_none(),
    };
    std::iter::once("")
        .chain(node.config.handlers.iter().map(String::as_str))
        .map(|name| RuntimeHandler {
            name: name.to_owned(),
            features: Some(features),
        })
        .collect()
}

fn config(node: &NodeHandle) -> serde_json::Value {
    let config = serde_json::to_value(&node.config).unwrap_or_default();
    json!({ "root": node.config.root, "state": node.config.state, "config": config })
}

/// Verbose information about a pod.
pub fn pod(pod: &PodRecord) -> String {
    json!({
        "pid": pod.monitor.map_or(0, |monitor| monitor.pid),
        "monitor": pod.monitor,
        "pausePid": pod.paths.pause,
        "netns": pod.netns,
        "network": pod.network,
        "cgroup": pod.cgroup,
        "runtimeHandler": pod.runtime_handler,
        "overhead": pod.overhead.as_ref().map(|figures| resources(figures)),
        "resources": pod.resources.as_ref().map(|figures| resources(figures)),
    })
    .to_string()
}

/// Figures as the CRI's JSON spells them; those that aren't set are left out.
fn resources(figures: &LinuxContainerResources) -> serde_json::Value {
    let numbers = [
        ("cpuPeriod", figures.cpu_period),
        ("cpuQuota", figures.cpu_quota),
        ("cpuShares", figures.cpu_shares),
        ("memoryLimitInBytes", figures.memory_limit_in_bytes),
        ("memorySwapLimitInBytes", figures.memory_swap_limit_in_bytes),
    ];
    let words = [
        ("cpusetCpus", &figures.cpuset_cpus),
        ("cpusetMems", &figures.cpuset_mems),
    ];
    let numbers = numbers.into_iter().filter(|(_, number)| *number != 0);
    let words = words.into_iter().filter(|(_, word)| !word.is_empty());
    numbers
        .map(|(name, number)| (name.to_owned(), json!(number)))
        .chain(words.map(|(name, word)| (name.to_owned(), json!(word))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Verbose information about a container; node software reads `pid` and `runtimeSpec`.
pub fn container(container: &ContainerRecord, spec: &[u8]) -> String {
    let spec: serde_json::Value = serde_json::from_slice(spec).unwrap_or_default();
    json!({
        "sandboxID": container.pod,
        "pid": container.process.as_ref().map_or(0, |process| process.pid),
        "privileged": privileged(container),
        "runtimeSpec": spec,
    })
    .to_string()
}

fn privileged(container: &ContainerRecord) -> bool {
    container
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .is_some_and(|context| context.privileged)
}
