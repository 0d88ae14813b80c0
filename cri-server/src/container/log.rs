//! ReopenContainerLog: the kubelet renamed the file and wants a new one at the old path.

use bulkhead_runtime::monitor::wire::Request;

use crate::failure::Failure;
use crate::node::NodeHandle;
use crate::records::ContainerState;

/// Opens the log anew. After the answer the old file gets nothing.
///
/// # Errors
/// Unless the container runs; when the file can't be opened.
pub async fn reopen(node: &NodeHandle, id: &str) -> Result<(), Failure> {
    let snapshot = node.records.snapshot();
    let container = snapshot.find_container(id)?;
    if container.state != ContainerState::Running {
        return Err(Failure::precondition(format!(
            "reopen the log of container {}: it is not running",
            container.id
        )));
    }
    let reopen = Request::ReopenLog {
        container: container.id.clone(),
    };
    node.monitors
        .link(&container.pod)?
        .ask(reopen, &[])
        .await
        .map(|_| ())
}
