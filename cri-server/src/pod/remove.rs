//! RemovePodSandbox: stop, remove the containers, forget. The log directory is the kubelet's.

use super::{stop, teardown};
use crate::container::remove as container;
use crate::failure::Failure;
use crate::node::NodeHandle;
use crate::records::PodState;

/// Removes the pod and its containers.
///
/// # Errors
/// When something could not be taken down or removed; the pod stays listed and a repeat goes on.
pub async fn remove(node: NodeHandle, id: String) -> Result<(), Failure> {
    stop::stop(node.clone(), id.clone()).await?;
    let marked = id.clone();
    node.records
        .edit(move |draft| {
            draft.change_pod(&marked, |pod| {
                pod.state = PodState::Removing;
                Ok(())
            })
        })
        .await?;
    let containers: Vec<String> = node
        .records
        .snapshot()
        .containers_of(&id)
        .map(|found| found.id.clone())
        .collect();
    for found in containers {
        container::remove(node.clone(), found).await?;
    }
    teardown::erase(&node, &id).await
}
