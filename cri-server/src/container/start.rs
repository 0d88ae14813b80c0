//! StartContainer: the monitor launches what CreateContainer recorded.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use bulkhead_runtime::monitor::wire::{
    LogTarget, ProcessInfo, Reply, Request, RootfsSource, Start,
};

use oci_spec::runtime::LinuxSeccomp;

use super::images;
use crate::clock::now;
use crate::failure::{Doing, Failure};
use crate::node::NodeHandle;
use crate::records::{ContainerRecord, ContainerState, Draft, ExitReason};
use crate::request;
use crate::security::seccomp;

/// Exit code the kubelet knows for a container that never ran.
const NEVER_STARTED: i32 = 128;

/// Starts a created container; returns after execve succeeded.
///
/// # Errors
/// In any other state than CREATED, and when the start fails: the container is EXITED then, with
/// reason `StartError`.
pub async fn start(node: NodeHandle, id: String) -> Result<(), Failure> {
    // Limits may be changing, which changes the spec.
    let _turn = node.turns.take(&id).await;
    let claimed = id.clone();
    // Not written: what came of a start that was interrupted, its monitor knows.
    let container = node
        .records
        .edit_in_memory(move |draft| claim(draft, &claimed))
        .await?;
    match launch(&node, &container).await {
        Ok(process) => {
            node.records
                .edit(move |draft| {
                    draft.change_container(&id, |container| {
                        running(container, process);
                        Ok(())
                    })
                })
                .await
        }
        Err(failure) => {
            record_failure(&node, id, &failure).await;
            Err(failure)
        }
    }
}

/// Only a created container of a ready pod starts, and only once.
fn claim(draft: &mut Draft, id: &str) -> Result<ContainerRecord, Failure> {
    let ready = draft
        .state()
        .container(id)
        .and_then(|container| draft.state().pod(&container.pod))
        .is_some_and(|pod| pod.is_ready());
    draft.change_container(id, |container| {
        if container.state != ContainerState::Created {
            return Err(Failure::precondition(format!(
                "start container {id}: it is {:?}, only a created one starts",
                container.state
            )));
        }
        if !ready {
            return Err(Failure::precondition(format!(
                "start container {id}: its pod sandbox {} is not ready",
                container.pod
            )));
        }
        container.state = ContainerState::Starting;
        Ok(container.clone())
    })
}

/// The exit of a short command may be recorded before the start is.
fn running(container: &mut ContainerRecord, process: ProcessInfo) {
    if container.state == ContainerState::Starting {
        container.started(process);
    }
}

async fn launch(node: &NodeHandle, container: &ContainerRecord) -> Result<ProcessInfo, Failure> {
    let spec = String::from_utf8(node.records.spec(&container.id)?).doing("read the OCI spec")?;
    let program = seccomp_program(node, seccomp::of_spec(&spec)?).await?;
    let start = Start {
        container: container.id.clone(),
        spec: serde_json::value::RawValue::from_string(spec).doing("read the OCI spec")?,
        rootfs: rootfs(node, container)?,
        images: images::of(node, container)?,
        log: log_target(node, container)?,
        stdin: container.config.stdin,
        stdin_once: container.config.stdin_once,
        pid_target: request::container::pid_target(&container.config),
        seccomp: program.is_some(),
    };
    let descriptors: Vec<_> = program.iter().map(AsFd::as_fd).collect();
    let link = node.monitors.link(&container.pod)?;
    match link.ask(Request::Start(start), &descriptors).await?.reply {
        Reply::Started(process) => Ok(process),
        other => Err(Failure::internal(format!(
            "unexpected answer of the monitor: {other:?}"
        ))),
    }
}

/// The compiled filter of a profile, as a descriptor; compiled at most once per profile.
///
/// # Errors
/// When the profile can't be compiled.
pub async fn seccomp_program(
    node: &NodeHandle,
    profile: Option<LinuxSeccomp>,
) -> Result<Option<OwnedFd>, Failure> {
    let Some(profile) = profile else {
        return Ok(None);
    };
    let cache = node.seccomp.clone();
    let program = node
        .tasks
        .blocking(move || cache.program(&profile))
        .await
        .doing("compile the seccomp profile")??;
    in_memory(&program)
        .doing("hand over the seccomp program")
        .map(Some)
}

/// A file without a name that holds `content`.
fn in_memory(content: &[u8]) -> std::io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

fn rootfs(node: &NodeHandle, container: &ContainerRecord) -> Result<RootfsSource, Failure> {
    let writable = node.images.writable_paths(&container.id)?;
    Ok(RootfsSource {
        lower: node.images.layers(&container.image_id.parse()?)?,
        upper: writable.upper,
        work: writable.work,
    })
}

fn log_target(
    node: &NodeHandle,
    container: &ContainerRecord,
) -> Result<Option<LogTarget>, Failure> {
    if container.config.log_path.is_empty() || container.log_path.is_none() {
        return Ok(None);
    }
    let snapshot = node.records.snapshot();
    let pod = snapshot.find_pod(&container.pod)?;
    Ok(Some(LogTarget {
        directory: pod.config.log_directory.clone().into(),
        path: container.config.log_path.clone().into(),
    }))
}

/// The container never ran: EXITED with the reason the kubelet shows users.
async fn record_failure(node: &NodeHandle, id: String, failure: &Failure) {
    let message = failure.message().to_owned();
    let recorded = node
        .records
        .edit(move |draft| {
            draft.change_container(&id, |container| {
                container.ended(NEVER_STARTED, ExitReason::StartError, message, now());
                Ok(())
            })
        })
        .await;
    if let Err(failure) = recorded {
        tracing::error!(%failure, "a failed start could not be recorded");
    }
}
