//! Start-up: what the records say is met with what is there, before any request is served.
//!
//! Pods of this boot whose monitor answers go on. A pod whose monitor is gone is no longer ready,
//! and its containers end as its monitor recorded, or as killed. Intents are settled by the code
//! that serves requests: what was being made is undone, what was being removed is removed.

use std::collections::{BTreeMap, HashSet};

use bulkhead_runtime::monitor::wire::{PodState as Seen, Reply, Request};

use crate::clock::now;
use crate::container::remove as container;
use crate::failure::{Failure, gone_is_done};
use crate::node::NodeHandle;
use crate::pod::{supervise, teardown};
use crate::records::{ContainerState, ExitReason, PodRecord, PodState};

/// Settles everything. One pod's trouble is logged and doesn't keep the others from being served.
///
/// # Errors
/// When the records or stores themselves can't be used.
pub async fn recover(node: &NodeHandle) -> Result<(), Failure> {
    let snapshot = node.records.snapshot();
    for pod in snapshot.pods() {
        if let Err(failure) = recover_pod(node, pod).await {
            tracing::error!(pod = pod.id, %failure, "a pod could not be settled; Stop and Remove retry");
        }
    }
    for container in node.records.snapshot().containers() {
        if let Err(failure) = settle_container(node, &container.id).await {
            tracing::error!(container = container.id, %failure, "could not be settled");
        }
    }
    sweep(node).await
}

async fn recover_pod(node: &NodeHandle, pod: &PodRecord) -> Result<(), Failure> {
    let id = pod.id.as_str();
    match pod.state {
        PodState::Creating => {
            tracing::info!(pod = id, "undoing a pod that was being made");
            // Its monitor, if it came to one, is asked to end what it holds.
            let directory = node.pod_directory(id);
            if let Err(failure) = node.monitors.connect(id, &directory).await {
                tracing::debug!(pod = id, %failure, "no monitor answers");
            }
            teardown::erase(node, id).await
        }
        PodState::Removing => {
            tracing::info!(pod = id, "finishing a removal");
            crate::pod::remove::remove(node.clone(), id.to_owned()).await
        }
        PodState::Ready => meet(node, pod).await,
        PodState::NotReady => Ok(()),
    }
}

/// Connects to the pod's monitor and takes over what it knows.
async fn meet(node: &NodeHandle, pod: &PodRecord) -> Result<(), Failure> {
    if pod.boot_id == node.boot_id {
        let met = async {
            let link = node
                .monitors
                .connect(&pod.id, &node.pod_directory(&pod.id))
                .await?;
            link.ask(Request::Status, &[]).await
        };
        match met.await.map(|answer| answer.reply) {
            Ok(Reply::State(state)) if state.paths.is_some() => {
                return take_over(node, &pod.id, state).await;
            }
            Ok(other) => tracing::warn!(pod = pod.id, ?other, "its monitor holds no pod"),
            Err(failure) => tracing::warn!(pod = pod.id, %failure, "its monitor is gone"),
        }
    } else {
        tracing::info!(pod = pod.id, "the node was rebooted since the pod was made");
    }
    node.monitors.forget(&pod.id);
    supervise::lost(
        node,
        &pod.id,
        "the pod's monitor was gone when the daemon started",
    )
    .await
}

async fn take_over(node: &NodeHandle, pod: &str, state: Seen) -> Result<(), Failure> {
    supervise::record_exits(node, state.exited).await?;
    for (id, process) in state.running {
        let result = node
            .records
            .edit(move |draft| {
                draft.change_container(&id, |container| {
                    // A start is written only when its end is known.
                    if matches!(
                        container.state,
                        ContainerState::Created | ContainerState::Starting
                    ) {
                        container.started(process);
                    }
                    Ok(())
                })
            })
            .await;
        gone_is_done(result)?;
    }
    tracing::info!(pod, "met its monitor");
    Ok(())
}

/// Ends intents of containers: a start nobody heard the end of, a creation, a removal.
async fn settle_container(node: &NodeHandle, id: &str) -> Result<(), Failure> {
    let snapshot = node.records.snapshot();
    let Some(found) = snapshot.container(id) else {
        return Ok(());
    };
    match found.state {
        ContainerState::Creating => container::erase(node, &found.pod, id).await,
        ContainerState::Removing => container::remove(node.clone(), id.to_owned()).await,
        ContainerState::Starting => end(node, id, ExitReason::StartError, "interrupted").await,
        ContainerState::Running if node.monitors.link(&found.pod).is_err() => {
            end(node, id, ExitReason::Unknown, "its end was not seen").await
        }
        _ => Ok(()),
    }
}

async fn end(
    node: &NodeHandle,
    id: &str,
    reason: ExitReason,
    why: &'static str,
) -> Result<(), Failure> {
    let id = id.to_owned();
    let result = node
        .records
        .edit(move |draft| {
            draft.change_container(&id, |container| {
                container.ended(supervise::UNKNOWN_EXIT, reason, why.to_owned(), now());
                Ok(())
            })
        })
        .await;
    gone_is_done(result)
}

/// What no record vouches for is taken away: leases, writable layers, holds on images, folders.
async fn sweep(node: &NodeHandle) -> Result<(), Failure> {
    let snapshot = node.records.snapshot();
    let pods: HashSet<String> = snapshot
        .pods()
        .filter(|pod| !pod.torn_down)
        .map(|pod| pod.id.clone())
        .collect();
    node.network.gc(pods).await?;
    let mut holders = BTreeMap::new();
    for container in snapshot.containers() {
        holders.insert(container.id.clone(), container.image_id.parse()?);
        for (index, image) in container.images.values().enumerate() {
            let holder = format!("{}/{index}", container.id);
            holders.insert(holder, image.id.parse()?);
        }
    }
    node.images.gc(holders).await?;
    let folder = node.config.state.join("pods");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if snapshot.pod(&name).is_none() {
            tracing::info!(pod = name, "removing the directory of a pod nobody knows");
            teardown::remove_directory(node, &name);
        }
    }
    Ok(())
}
