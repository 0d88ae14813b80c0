//! Taking a pod down, whatever of it stands: processes, cgroup, network, namespaces.
//!
//! Idempotent, and works without the monitor. The record says what may exist.

use std::path::Path;
use std::time::Duration;

use bulkhead_runtime::monitor::wire::{Reply, Request};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::supervise;
use crate::failure::{Doing, Failure};
use crate::monitor::process;
use crate::network::netns;
use crate::node::NodeHandle;
use crate::records::{MonitorRecord, PodRecord};

/// How long a monitor may take to kill what runs in its pod before it is killed itself.
const MONITOR_LIMIT: Duration = Duration::from_secs(20);

/// Ends everything of the pod but its record and its directory.
///
/// # Errors
/// The first step that failed; a repeat goes on from there.
pub async fn teardown(node: &NodeHandle, id: &str) -> Result<(), Failure> {
    let Some(pod) = node.records.snapshot().pod(id).cloned() else {
        return Ok(());
    };
    if pod.torn_down {
        return Ok(());
    }
    end_processes(node, &pod).await?;
    supervise::settle_containers(node, id).await?;
    node.network
        .detach(id)
        .await
        .map_err(|failure| failure.context("take down the pod's network"))?;
    netns::unbind(id)?;
    let id = id.to_owned();
    node.records
        .edit(move |draft| {
            draft.change_pod(&id, |pod| {
                pod.torn_down = true;
                Ok(())
            })
        })
        .await
}

/// Takes down whatever stands of a pod, then its directory and its record.
///
/// # Errors
/// The first step that failed; the record stays then.
pub async fn erase(node: &NodeHandle, id: &str) -> Result<(), Failure> {
    teardown(node, id).await?;
    remove_directory(node, id);
    let id = id.to_owned();
    node.records
        .edit(move |draft| {
            draft.remove_pod(&id);
            Ok(())
        })
        .await
}

async fn end_processes(node: &NodeHandle, pod: &PodRecord) -> Result<(), Failure> {
    if pod.boot_id == node.boot_id {
        if let Err(failure) = ask_monitor(node, &pod.id).await {
            tracing::debug!(pod = pod.id, %failure, "the monitor can't end the pod; killing it");
        }
        if let Some(monitor) = pod.monitor {
            kill_monitor(node, monitor).await?;
        }
    }
    node.monitors.forget(&pod.id);
    node.monitors.clean_up(&pod.id).await?;
    remove_cgroup(node, pod).await?;
    unmount_shm(&node.pod_directory(&pod.id))
}

/// Unmounts what a killed monitor left of the pod's `/dev/shm` below the pod's directory, where it
/// stands before Linux 6.15. Nothing there is success.
fn unmount_shm(directory: &Path) -> Result<(), Failure> {
    let path = directory.join("shm");
    match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error).doing(format!("unmount {}", path.display())),
    }
}

async fn ask_monitor(node: &NodeHandle, id: &str) -> Result<(), Failure> {
    let link = node.monitors.link(id)?;
    let ended = async {
        link.ask(Request::StopPod, &[]).await?;
        // Its exits are recorded from here, so that they stand before Stop returns.
        if let Reply::State(state) = link.ask(Request::Status, &[]).await?.reply {
            supervise::record_exits(node, state.exited).await?;
        }
        node.monitors.forget(id);
        link.ask(Request::Shutdown, &[]).await
    };
    tokio::time::timeout(MONITOR_LIMIT, ended)
        .await
        .map_err(|_| Failure::internal("the monitor did not end its pod in time"))?
        .map(|_| ())
}

/// Ends a monitor that is still there.
///
/// # Errors
/// When it can't be ended.
pub async fn kill_monitor(node: &NodeHandle, monitor: MonitorRecord) -> Result<(), Failure> {
    node.tasks
        .blocking(move || process::kill(monitor, MONITOR_LIMIT))
        .await
        .doing("kill the pod's monitor")?
}

/// Kills what is left in the pod's cgroup and removes it, with the parents made for it.
async fn remove_cgroup(node: &NodeHandle, pod: &PodRecord) -> Result<(), Failure> {
    let (hierarchies, path) = (node.hierarchies.clone(), pod.cgroup.clone());
    let removed = node.tasks.blocking(move || match hierarchies.open(&path)? {
        Some(cgroup) => cgroup.kill().and_then(|()| cgroup.remove()),
        None => Ok(()),
    });
    removed
        .await
        .doing("remove the pod's cgroup")?
        .map_err(Failure::from)
}

/// Removes the pod's directory. What can't be removed is reported and left to the next start.
pub fn remove_directory(node: &NodeHandle, id: &str) {
    let directory = node.pod_directory(id);
    if let Err(failure) = unmount_shm(&directory) {
        tracing::warn!(%failure, "it is left over");
    }
    match std::fs::remove_dir_all(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "could not be removed");
        }
    }
}
