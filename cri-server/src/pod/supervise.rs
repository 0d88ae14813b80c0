//! What monitors tell unasked: exits of containers, and their own end.

use std::collections::BTreeMap;
use std::path::Path;

use bulkhead_runtime::monitor::wire::{Event, ExitRecord};
use tokio::sync::mpsc;

use super::teardown;
use crate::clock::now;
use crate::failure::{Class, Doing, Failure, gone_is_done};
use crate::monitor::Notice;
use crate::node::NodeHandle;
use crate::records::{ContainerState, ExitReason, PodState};

/// The most an exit record may hold; we write them, but a pod's directory is not taken on trust.
const MAX_EXIT_RECORD: u64 = 64 << 10;

/// Exit code of what was killed with its monitor (SIGKILL).
const KILLED: i32 = 137;
const WITH_MONITOR: &str = "killed with the pod's monitor";

/// Exit code where nobody knows how a container ended (containerd's and CRI-O's, too).
pub const UNKNOWN_EXIT: i32 = 255;

/// Records what is heard, until the daemon stops.
pub async fn listen(node: NodeHandle, mut notices: mpsc::Receiver<(String, Notice)>) {
    loop {
        let heard = tokio::select! {
            heard = notices.recv() => heard,
            () = node.tasks.stopping() => None,
        };
        let Some((pod, notice)) = heard else { return };
        let handled = match notice {
            Notice::Event(Event::ContainerExited(exit)) => record_exit(&node, exit).await,
            Notice::Event(Event::PauseExited) => lost(&node, &pod, "the pause process ended").await,
            Notice::Event(Event::ExecExited { .. } | Event::AttachEnded { .. }) => Ok(()),
            Notice::Lost => lost(&node, &pod, "the pod's monitor ended").await,
        };
        if let Err(failure) = handled {
            tracing::error!(pod, %failure, "what a monitor told could not be recorded");
        }
    }
}

/// Records how a container ended. An exit of an unknown container is no news: it was removed.
///
/// # Errors
/// When the records can't be changed.
pub async fn record_exit(node: &NodeHandle, exit: ExitRecord) -> Result<(), Failure> {
    let result = node
        .records
        .edit(move |draft| {
            draft.change_container(&exit.container.clone(), |container| {
                container.exited(&exit);
                Ok(())
            })
        })
        .await;
    gone_is_done(result)
}

/// Records the exits a monitor knows of.
///
/// # Errors
/// When the records can't be changed.
pub async fn record_exits(
    node: &NodeHandle,
    exits: BTreeMap<String, ExitRecord>,
) -> Result<(), Failure> {
    for exit in exits.into_values() {
        record_exit(node, exit).await?;
    }
    Ok(())
}

/// The pod lost its holder: what runs is killed, and both say so.
///
/// # Errors
/// When the records cannot be changed or the cgroup cannot be emptied.
pub async fn lost(node: &NodeHandle, pod: &str, why: &'static str) -> Result<(), Failure> {
    let id = pod.to_owned();
    let known = node
        .records
        .edit(move |draft| {
            draft.change_pod(&id, |pod| {
                if pod.state == PodState::Ready || pod.state == PodState::Creating {
                    pod.state = PodState::NotReady;
                }
                Ok(pod.torn_down)
            })
        })
        .await;
    match known {
        Err(failure) if failure.class() == Class::NotFound => return Ok(()),
        Err(failure) => return Err(failure),
        Ok(true) => return Ok(()),
        Ok(false) => {}
    }
    tracing::warn!(pod, why, "a pod is no longer ready");
    let snapshot = node.records.snapshot();
    let Some(record) = snapshot.pod(pod) else {
        return Ok(());
    };
    if let Some(monitor) = record.monitor {
        teardown::kill_monitor(node, monitor).await?;
    }
    let (hierarchies, cgroup) = (node.hierarchies.clone(), record.cgroup.clone());
    node.tasks
        .blocking(move || match hierarchies.open(&cgroup)? {
            Some(cgroup) => cgroup.kill(),
            None => Ok(()),
        })
        .await
        .doing("kill what runs in the pod")?
        .map_err(Failure::from)?;
    settle_containers(node, pod).await
}

/// Gives every container of a pod without processes its end: as its monitor recorded it, or as
/// killed with the monitor.
///
/// # Errors
/// When the records can't be changed.
pub async fn settle_containers(node: &NodeHandle, pod: &str) -> Result<(), Failure> {
    let exits = node.pod_directory(pod).join("exits");
    let snapshot = node.records.snapshot();
    for container in snapshot.containers_of(pod).filter(|c| c.finished_at == 0) {
        if !matches!(
            container.state,
            ContainerState::Running | ContainerState::Starting | ContainerState::Removing
        ) {
            continue;
        }
        let (code, reason, why) = match read_exit(&exits, &container.id) {
            Found::Record(exit) => {
                record_exit(node, exit).await?;
                continue;
            }
            Found::Nothing
                if container.process.is_none() && container.state == ContainerState::Removing =>
            {
                continue;
            }
            Found::Nothing => (KILLED, ExitReason::MonitorDied, WITH_MONITOR.to_owned()),
            Found::Unreadable(why) => (UNKNOWN_EXIT, ExitReason::Unknown, why),
        };
        let id = container.id.clone();
        node.records
            .edit(move |draft| {
                draft.change_container(&id, |container| {
                    container.ended(code, reason, why, now());
                    Ok(())
                })
            })
            .await?;
    }
    Ok(())
}

/// What there is of the durable record of an exit.
enum Found {
    Record(ExitRecord),
    Nothing,
    /// Something is there that says nothing; why.
    Unreadable(String),
}

/// The record its monitor wrote. One that was cut or spoilt is no record, but no proof that there
/// was none either (case T4).
fn read_exit(exits: &Path, container: &str) -> Found {
    let path = exits.join(format!("{container}.json"));
    match parse_exit(&path, container) {
        Ok(record) => Found::Record(record),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Nothing,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "an exit record can't be read");
            Found::Unreadable(format!("its exit record can't be read: {error}"))
        }
    }
}

fn parse_exit(path: &Path, container: &str) -> std::io::Result<ExitRecord> {
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_file() || found.len() > MAX_EXIT_RECORD {
        return Err(std::io::Error::other("not a file of the size of one"));
    }
    let record: ExitRecord = serde_json::from_slice(&std::fs::read(path)?)?;
    match record.container == container {
        true => Ok(record),
        false => Err(std::io::Error::other("it is another container's")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t4_a_spoilt_exit_record_is_neither_a_record_nor_none() {
        let folder = tempfile::tempdir().unwrap();
        let good = r#"{"container":"c","exit_code":7,"signal":null,"oom_killed":false,
            "started_at":1,"finished_at":2,"log_bytes_lost":0}"#;
        for (name, text, want) in [
            ("a whole one", Some(good), "record"),
            ("none", None, "nothing"),
            ("one of size zero", Some(""), "unreadable"),
            ("half of one", Some(&good[..40]), "unreadable"),
            ("another's", Some("{\"container\":\"d\"}"), "unreadable"),
        ] {
            let path = folder.path().join("c.json");
            match text {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let found = match read_exit(folder.path(), "c") {
                Found::Record(record) => {
                    assert_eq!(record.exit_code, 7);
                    "record"
                }
                Found::Nothing => "nothing",
                Found::Unreadable(_) => "unreadable",
            };
            assert_eq!(found, want, "{name}");
        }
    }
}
