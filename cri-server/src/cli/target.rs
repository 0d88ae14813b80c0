//! What a person names: a played pod, or the id of any container or pod on the node.

use anyhow::{Context as _, bail};
use bulkhead_proto::runtime::v1;
use serde::Deserialize;

use super::client::{Asking as _, Client};
use super::pods::{self, Pod, container_name};

/// The container: `wanted` of the pod named, or its first, or the one whose id this is.
pub(super) async fn container(
    client: &mut Client,
    target: &str,
    wanted: Option<String>,
) -> anyhow::Result<v1::Container> {
    if let Some(pod) = played(client, target).await? {
        let mut containers = pod.containers.into_iter();
        return match wanted {
            None => containers.next().context("the pod has no containers"),
            Some(name) => containers
                .find(|container| container_name(container) == name)
                .with_context(|| format!("pod {target} has no container {name}")),
        };
    }
    let filter = v1::ContainerFilter {
        id: target.to_owned(),
        ..Default::default()
    };
    let request = v1::ListContainersRequest {
        filter: Some(filter),
    };
    let answer = client.runtime.list_containers(request).await;
    let found = answer.asking(|| format!("look for {target}"))?.containers;
    let container = found.into_iter().next();
    container.with_context(|| format!("{target} is neither a played pod nor a container's id"))
}

/// The id of the pod named, or whose id this is.
pub(super) async fn sandbox(client: &mut Client, target: &str) -> anyhow::Result<String> {
    Ok(match played(client, target).await? {
        Some(pod) => pod.sandbox.id,
        // The daemon knows it, or says that it doesn't.
        None => target.to_owned(),
    })
}

async fn played(client: &mut Client, target: &str) -> anyhow::Result<Option<Pod>> {
    let mut pods = pods::list(client).await?;
    pods.retain(|pod| pod.is(target));
    if pods.len() > 1 {
        bail!("several pods are named {target}: say namespace/name");
    }
    Ok(pods.pop())
}

/// Whether the container was made with a terminal, as its verbose status says.
pub(super) async fn has_terminal(client: &mut Client, container: &str) -> anyhow::Result<bool> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(rename = "runtimeSpec")]
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Spec {
        process: Process,
    }
    #[derive(Deserialize)]
    struct Process {
        #[serde(default)]
        terminal: bool,
    }
    let request = v1::ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: true,
    };
    let answer = client.runtime.container_status(request).await;
    let info = answer
        .asking(|| format!("ask for container {container}"))?
        .info;
    let text = info.get("info").context("the daemon told no details")?;
    let info: Info = serde_json::from_str(text).context("read the container's details")?;
    Ok(info.spec.process.terminal)
}
