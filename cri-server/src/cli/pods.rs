//! The pods `bulkhead play` made, as the daemon lists them.

use std::collections::BTreeMap;

use anyhow::bail;
use bulkhead_proto::runtime::v1;

use super::client::{Asking as _, Client};
use super::play::{CONTAINER_NAME, PLAYED, POD_NAME, POD_NAMESPACE};

/// A played pod with the newest attempt of each of its containers.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) sandbox: v1::PodSandbox,
    pub(super) containers: Vec<v1::Container>,
}

impl Pod {
    pub(super) fn name(&self) -> &str {
        self.label(POD_NAME)
    }

    pub(super) fn namespace(&self) -> &str {
        self.label(POD_NAMESPACE)
    }

    pub(super) fn uid(&self) -> &str {
        self.sandbox
            .metadata
            .as_ref()
            .map_or("", |metadata| &metadata.uid)
    }

    fn label(&self, key: &str) -> &str {
        self.sandbox.labels.get(key).map_or("", String::as_str)
    }

    /// Whether `text` names this pod: `name`, or `namespace/name`.
    pub(super) fn is(&self, text: &str) -> bool {
        match text.split_once('/') {
            Some((namespace, name)) => self.namespace() == namespace && self.name() == name,
            None => self.name() == text,
        }
    }
}

/// The name a container has in its manifest.
pub(super) fn container_name(container: &v1::Container) -> &str {
    container
        .labels
        .get(CONTAINER_NAME)
        .map_or("", String::as_str)
}

fn attempt(container: &v1::Container) -> u32 {
    container
        .metadata
        .as_ref()
        .map_or(0, |metadata| metadata.attempt)
}

/// All played pods, oldest first.
pub(super) async fn list(client: &mut Client) -> anyhow::Result<Vec<Pod>> {
    let selector = BTreeMap::from([(PLAYED.to_owned(), "true".to_owned())]);
    let filter = v1::PodSandboxFilter {
        label_selector: selector.clone(),
        ..Default::default()
    };
    let request = v1::ListPodSandboxRequest {
        filter: Some(filter),
    };
    let sandboxes = client.runtime.list_pod_sandbox(request).await;
    let mut sandboxes = sandboxes.asking(|| "list pods".to_owned())?.items;
    sandboxes.sort_by_key(|sandbox| sandbox.created_at);
    let filter = v1::ContainerFilter {
        label_selector: selector,
        ..Default::default()
    };
    let request = v1::ListContainersRequest {
        filter: Some(filter),
    };
    let containers = client.runtime.list_containers(request).await;
    let containers = containers
        .asking(|| "list containers".to_owned())?
        .containers;
    let of = |sandbox: &v1::PodSandbox| newest(&containers, &sandbox.id);
    Ok(sandboxes
        .into_iter()
        .map(|sandbox| Pod {
            containers: of(&sandbox),
            sandbox,
        })
        .collect())
}

/// The newest attempt of each container of a sandbox, in order of creation of the first.
fn newest(containers: &[v1::Container], sandbox: &str) -> Vec<v1::Container> {
    let mut own: Vec<_> = containers
        .iter()
        .filter(|c| c.pod_sandbox_id == sandbox)
        .collect();
    own.sort_by_key(|container| (container.created_at, attempt(container)));
    let mut newest: Vec<v1::Container> = Vec::new();
    for container in own {
        match newest
            .iter_mut()
            .find(|c| container_name(c) == container_name(container))
        {
            Some(older) => *older = container.clone(),
            None => newest.push(container.clone()),
        }
    }
    newest
}

/// The pods that `names` name; each has to name exactly one.
pub(super) fn select(pods: Vec<Pod>, names: &[String]) -> anyhow::Result<Vec<Pod>> {
    for name in names {
        match pods.iter().filter(|pod| pod.is(name)).count() {
            1 => {}
            0 => bail!("no played pod {name}; `bulkhead ps` lists them"),
            _ => bail!("several pods are named {name}: say namespace/name"),
        }
    }
    Ok(pods
        .into_iter()
        .filter(|pod| names.iter().any(|name| pod.is(name)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, sandbox: &str, attempt: u32) -> v1::Container {
        v1::Container {
            id: format!("{name}-{attempt}"),
            pod_sandbox_id: sandbox.to_owned(),
            metadata: Some(v1::ContainerMetadata {
                name: name.to_owned(),
                attempt,
            }),
            labels: BTreeMap::from([(CONTAINER_NAME.to_owned(), name.to_owned())]),
            created_at: i64::from(attempt) * 1000 + i64::from(name.as_bytes()[0]),
            ..Default::default()
        }
    }

    #[test]
    fn only_the_newest_attempt_of_a_pods_own_containers_counts() {
        let all = [
            container("a", "p", 1),
            container("b", "p", 0),
            container("a", "p", 0),
            container("c", "q", 0),
        ];
        let ids: Vec<_> = newest(&all, "p").into_iter().map(|c| c.id).collect();
        assert_eq!(ids, ["a-1", "b-0"]);
    }
}
