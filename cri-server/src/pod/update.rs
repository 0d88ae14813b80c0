//! UpdatePodSandboxResources: the kubelet changed the pod's cgroup itself and tells the figures.

use bulkhead_proto::runtime::v1::UpdatePodSandboxResourcesRequest;

use crate::failure::Failure;
use crate::node::NodeHandle;
use crate::records::Stored;

/// Records the figures; an absent part leaves what was told before.
///
/// # Errors
/// When the records can't be changed.
pub async fn record_resources(
    node: &NodeHandle,
    id: String,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<(), Failure> {
    node.records
        .edit(move |draft| {
            draft.change_pod(&id, |pod| {
                if let Some(overhead) = request.overhead {
                    pod.overhead = Some(Stored(overhead));
                }
                if let Some(resources) = request.resources {
                    pod.resources = Some(Stored(resources));
                }
                Ok(())
            })
        })
        .await
}
