//! UpdatePodSandboxResources: the kubelet changed the pod's cgroup itself and tells the figures.

use bulkhead_proto::runtime::v1::UpdatePodSandboxResourcesRequest;

use crate::failure::Failure;
use crate::node::NodeHandle;
use crate::records::Stored;
use crate::request::Resources;

/// Records the figures; an absent part leaves what was told before.
///
/// # Errors
/// When a figure has no meaning, or the records can't be changed.
pub async fn record_resources(
    node: &NodeHandle,
    id: String,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<(), Failure> {
    // Both or neither: figures without a meaning are told the kubelet before anything is recorded.
    Resources::parse("overhead", request.overhead.as_ref())?;
    Resources::parse("resources", request.resources.as_ref())?;
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
