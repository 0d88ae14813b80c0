//! RunPodSandbox: intent, monitor, namespaces, network, files, Ready.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use bulkhead_proto::runtime::v1::PodSandboxConfig;
use bulkhead_runtime::monitor::wire::{CreatePod, PodPaths, Reply, Request};

use super::{files, scope, teardown, user_ids};
use crate::clock::now;
use crate::failure::{Doing, Failure, gone_is_done};
use crate::network::{AttachRequest, netns};
use crate::node::{NodeHandle, fresh_id};
use crate::records::{Draft, PodRecord, PodState, Stored};
use crate::request::sandbox::SandboxRequest;
use crate::spec;

/// Makes the pod and returns its id. An equal request gets the pod that was made for it, as long as
/// nothing is in it: whether an answer arrived, nobody here can know.
///
/// # Errors
/// What went wrong; then nothing of the pod remains, unless the message says so.
pub async fn run(
    node: NodeHandle,
    request: SandboxRequest,
    config: PodSandboxConfig,
) -> Result<String, Failure> {
    let id = fresh_id();
    let record = intent(&node, &id, &request, config)?;
    let plan = spec::sandbox::plan(&request, &id, &node.pod_directory(&id), &record.cgroup);
    if let Some(maps) = &request.namespaces.user {
        user_ids::check(&node, maps)?;
    }
    if let Some(existing) = take_name(&node, record).await? {
        return Ok(existing);
    }
    tracing::Span::current().record("pod", id.as_str());
    match make(&node, &id, &request, plan).await {
        Ok(()) => Ok(id),
        Err(failure) => {
            undo(&node, &id).await;
            Err(failure)
        }
    }
}

fn intent(
    node: &NodeHandle,
    id: &str,
    request: &SandboxRequest,
    config: PodSandboxConfig,
) -> Result<PodRecord, Failure> {
    Ok(PodRecord {
        id: id.to_owned(),
        config: Stored(config),
        runtime_handler: request.handler.clone(),
        state: PodState::Creating,
        created_at: now(),
        boot_id: node.boot_id.clone(),
        cgroup: spec::cgroup::path(request, &node.config.cgroup, id)?,
        monitor: None,
        paths: PodPaths::default(),
        netns: None,
        network: None,
        torn_down: false,
        resources: None,
        overhead: None,
    })
}

/// Takes the pod's name; a removal that failed is finished first, so that its name is free (case
/// T5).
async fn take_name(node: &NodeHandle, record: PodRecord) -> Result<Option<String>, Failure> {
    let key = record.key();
    let snapshot = node.records.snapshot();
    let left = snapshot.pod_by_key(&key);
    if let Some(left) = left.filter(|left| left.state == PodState::Removing) {
        let removed = super::remove::remove(node.clone(), left.id.clone()).await;
        gone_is_done(removed)
            .map_err(|failure| failure.context(format!("free the name of {key}")))?;
    }
    node.records.edit(|draft| claim(draft, record)).await
}

/// Takes the pod's name, or finds the pod an equal request made.
fn claim(draft: &mut Draft, record: PodRecord) -> Result<Option<String>, Failure> {
    if let Some(existing) = draft.state().pod_by_key(&record.key()) {
        let used = draft.state().containers_of(&existing.id).next().is_some();
        let same =
            existing.config == record.config && existing.runtime_handler == record.runtime_handler;
        if same && existing.is_ready() && !used {
            return Ok(Some(existing.id.clone()));
        }
        return Err(Failure::taken(record.key(), &existing.id));
    }
    user_ids::claim(draft.state(), &record)?;
    draft.put_pod(record);
    Ok(None)
}

async fn make(
    node: &NodeHandle,
    id: &str,
    request: &SandboxRequest,
    plan: CreatePod,
) -> Result<(), Failure> {
    let directory = plan.directory.clone();
    make_directories(&directory, request.log_directory.as_deref())?;
    let monitor = node.monitors.start(id, directory.clone()).await?;
    change(node, id, move |pod| pod.monitor = Some(monitor)).await?;
    if let Some(scope) = spec::cgroup::scope(&plan.cgroup) {
        scope::start(node, &scope, monitor.pid).await?;
    }
    let (paths, netns) = create(node, id, plan).await?;
    change(node, id, move |pod| pod.paths = paths).await?;
    if let Some(netns) = netns {
        attach(node, id, request, netns).await?;
    }
    files::write(&directory, request)?;
    node.records
        .edit({
            let id = id.to_owned();
            move |draft| {
                draft.change_pod(&id, |pod| {
                    if pod.state != PodState::Creating {
                        return Err(Failure::internal(
                            "the pod's monitor ended while it was made",
                        ));
                    }
                    pod.state = PodState::Ready;
                    Ok(())
                })
            }
        })
        .await
}

/// The pod's own directory is ours alone; its log directory is the kubelet's and node-wide.
fn make_directories(directory: &Path, logs: Option<&Path>) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .doing(format!("make {}", directory.display()))?;
    if let Some(logs) = logs {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(logs)
            .doing(format!("make the log directory {}", logs.display()))?;
    }
    Ok(())
}

async fn create(
    node: &NodeHandle,
    id: &str,
    plan: CreatePod,
) -> Result<(PodPaths, Option<OwnedFd>), Failure> {
    let isolated = plan.user.is_some();
    let answer = node
        .monitors
        .link(id)?
        .ask(Request::CreatePod(plan), &[])
        .await?;
    match answer.reply {
        // One that doesn't know user namespaces would have made a pod without.
        Reply::PodCreated(paths) if isolated && paths.user.is_none() => Err(Failure::internal(
            "the monitor made no user namespace: its executable is of an older version",
        )),
        Reply::PodCreated(paths) => Ok((paths, answer.descriptors.into_iter().next())),
        other => Err(Failure::internal(format!(
            "unexpected answer of the monitor: {other:?}"
        ))),
    }
}

async fn attach(
    node: &NodeHandle,
    id: &str,
    request: &SandboxRequest,
    netns: OwnedFd,
) -> Result<(), Failure> {
    let path = netns::bind(id, netns.as_fd())?;
    change(node, id, move |pod| pod.netns = Some(path)).await?;
    let attachment = node
        .network
        .attach(AttachRequest {
            pod_id: id.to_owned(),
            netns,
            host_ports: request.ports.clone(),
        })
        .await
        .map_err(|failure| failure.context("set up the pod's network"))?;
    change(node, id, move |pod| pod.network = Some(attachment)).await
}

/// A step of the making. Not yet written: what an end of the daemon leaves of a pod that was being
/// made, start-up finds by the pod's id alone.
async fn change(
    node: &NodeHandle,
    id: &str,
    change: impl FnOnce(&mut PodRecord) + Send + 'static,
) -> Result<(), Failure> {
    let id = id.to_owned();
    node.records
        .edit_in_memory(move |draft| {
            draft.change_pod(&id, |pod| {
                change(pod);
                Ok(())
            })
        })
        .await
}

/// Takes back a pod that could not be made. If that fails too, it is listed as not ready, so that
/// Stop and Remove can finish.
async fn undo(node: &NodeHandle, id: &str) {
    let Err(failure) = teardown::erase(node, id).await else {
        return;
    };
    tracing::error!(pod = id, %failure, "a pod that could not be made could not be undone");
    if let Err(failure) = change(node, id, |pod| pod.state = PodState::NotReady).await {
        tracing::error!(%failure, "the records could not be changed; the next start settles it");
    }
}
