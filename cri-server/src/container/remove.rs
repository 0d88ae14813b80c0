//! RemoveContainer: what runs is killed; root file system, volumes and record go, the log stays.

use std::time::Duration;

use bulkhead_runtime::monitor::wire::Request;

use super::stop;
use crate::failure::{Class, Failure, gone_is_done};
use crate::node::NodeHandle;
use crate::records::ContainerState;

/// Removes the container.
///
/// # Errors
/// When it is just being started, or its processes don't end; a repeat goes on.
pub async fn remove(node: NodeHandle, id: String) -> Result<(), Failure> {
    gone_is_done(stop::stop(node.clone(), id.clone(), Duration::ZERO).await)?;
    let marked = id.clone();
    let pod = node
        .records
        .edit(move |draft| {
            draft.change_container(&marked, |container| {
                if matches!(
                    container.state,
                    ContainerState::Starting | ContainerState::Running
                ) {
                    return Err(Failure::precondition(format!(
                        "remove container {}: it was started again meanwhile",
                        container.id
                    )));
                }
                container.state = ContainerState::Removing;
                Ok(container.pod.clone())
            })
        })
        .await?;
    node.stats.forget(&id);
    erase(&node, &pod, &id).await
}

/// Takes away all that was made for a container, then its record: idempotent, in any state.
///
/// # Errors
/// The first step that failed; the record stays then.
pub async fn erase(node: &NodeHandle, pod: &str, id: &str) -> Result<(), Failure> {
    discard(node, pod, id).await?;
    let id = id.to_owned();
    node.records
        .edit(move |draft| {
            draft.remove_container(&id);
            Ok(())
        })
        .await
}

async fn discard(node: &NodeHandle, pod: &str, id: &str) -> Result<(), Failure> {
    if let Ok(link) = node.monitors.link(pod) {
        let forget = Request::Remove {
            container: id.to_owned(),
        };
        match link.ask(forget, &[]).await {
            Ok(_) => {}
            // Unavailable: the monitor is going, and takes what it holds with it.
            Err(failure) if matches!(failure.class(), Class::NotFound | Class::Unavailable) => {}
            Err(failure) => return Err(failure),
        }
    }
    node.images.remove_writable(id).await?;
    node.images.release(id).await
}
