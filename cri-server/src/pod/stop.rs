//! StopPodSandbox: what runs is killed, network and namespaces go; the containers stay listed.

use super::teardown;
use crate::failure::Failure;
use crate::node::NodeHandle;
use crate::records::PodState;

/// Stops the pod. Repeats finish what an earlier attempt left.
///
/// # Errors
/// When something could not be taken down: the kubelet asks again, so no address leaks.
pub async fn stop(node: NodeHandle, id: String) -> Result<(), Failure> {
    let changed = id.clone();
    // Not written: a pod whose monitor has ended is found not to be ready at the next start.
    node.records
        .edit_in_memory(move |draft| {
            draft.change_pod(&changed, |pod| {
                if pod.state == PodState::Ready {
                    pod.state = PodState::NotReady;
                }
                Ok(())
            })
        })
        .await?;
    teardown::teardown(&node, &id).await
}
