//! UpdateContainerResources: new limits in place, all of them or none.

use bulkhead_proto::runtime::v1::UpdateContainerResourcesRequest;
use bulkhead_runtime::error::ErrorKind;
use oci_spec::runtime::LinuxResources;

use crate::failure::{Class, Doing, Failure};
use crate::node::NodeHandle;
use crate::records::{ContainerRecord, ContainerState, Stored};
use crate::request::Resources;
use crate::spec;

/// Changes the limits of a container that runs, or will. Values repeated, as the CPU manager does
/// every ten seconds, write neither control groups nor records.
///
/// # Errors
/// In any other state, and when a limit can't be set; then all are what they were.
pub async fn update(
    node: NodeHandle,
    id: String,
    request: UpdateContainerResourcesRequest,
) -> Result<(), Failure> {
    let asked = Resources::parse("linux", request.linux.as_ref())?;
    // A start reads the spec that is changed here, and another update the limits.
    let _turn = node.turns.take(&id).await;
    let container = node.records.snapshot().find_container(&id)?.clone();
    let current = Resources::parse("resources in force", Some(&container.resources))?;
    let (changes, merged) = spec::resources::update(&current, &asked, &node.hierarchies)?;
    match container.state {
        ContainerState::Created => {}
        ContainerState::Running => apply(&node, &container, changes).await?,
        state => {
            return Err(Failure::precondition(format!(
                "update container {id}: it is {state:?}; only a created or running one has limits \
                 to change"
            )));
        }
    }
    if merged == current {
        return Ok(());
    }
    let recorded = record(&node, &id, &merged).await;
    if recorded.is_err() && container.state == ContainerState::Running {
        // Nobody would know of limits that aren't recorded.
        let before = spec::resources::undo(&current, &asked);
        if let Err(failure) = apply(&node, &container, before).await {
            tracing::error!(container = id, %failure, "limits that were not recorded stay in force");
        }
    }
    recorded
}

async fn apply(
    node: &NodeHandle,
    container: &ContainerRecord,
    changes: LinuxResources,
) -> Result<(), Failure> {
    let hierarchies = node.hierarchies.clone();
    let path = container.cgroup.clone();
    node.tasks
        .blocking(move || match hierarchies.open(&path)? {
            Some(group) => group.apply(&changes).map_err(|error| {
                let class = match error.kind() {
                    // Below what is in use: it may be less at another time.
                    ErrorKind::WrongState => Class::Precondition,
                    _ => Class::Invalid,
                };
                Failure::new(class, error.to_string())
            }),
            None => Err(Failure::precondition(format!("cgroup {path} is gone"))),
        })
        .await
        .doing("change a container's limits")?
        .map_err(|failure| failure.context(format!("update container {}", container.id)))
}

/// The limits, and the spec they are started with or shown by.
async fn record(node: &NodeHandle, id: &str, merged: &Resources) -> Result<(), Failure> {
    let text = spec::resources::in_spec(&node.records.spec(id)?, merged)?;
    let limits = Stored(merged.to_cri());
    let id = id.to_owned();
    node.records
        .edit(move |draft| {
            draft.put_spec(&id, text);
            draft.change_container(&id, |container| {
                container.resources = limits;
                Ok(())
            })
        })
        .await
}
