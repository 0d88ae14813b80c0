//! The state at one moment, and a draft of the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::store::Change;
use super::{ContainerKey, ContainerRecord, PodRecord};
use crate::failure::{Class, Failure};
use crate::request::sandbox::SandboxKey;

/// All pods and containers as of one commit.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pods: BTreeMap<String, Arc<PodRecord>>,
    containers: BTreeMap<String, Arc<ContainerRecord>>,
}

impl Snapshot {
    pub(super) fn insert_pod(&mut self, record: PodRecord) {
        self.pods.insert(record.id.clone(), Arc::new(record));
    }

    pub(super) fn insert_container(&mut self, record: ContainerRecord) {
        self.containers.insert(record.id.clone(), Arc::new(record));
    }

    /// Every pod, by id.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodRecord>> {
        self.pods.values()
    }

    /// Every container, by id.
    pub fn containers(&self) -> impl Iterator<Item = &Arc<ContainerRecord>> {
        self.containers.values()
    }

    /// The containers of one pod.
    pub fn containers_of<'a>(
        &'a self,
        pod: &'a str,
    ) -> impl Iterator<Item = &'a Arc<ContainerRecord>> {
        self.containers
            .values()
            .filter(move |container| container.pod == pod)
    }

    /// The pod with exactly this id.
    pub fn pod(&self, id: &str) -> Option<&Arc<PodRecord>> {
        self.pods.get(id)
    }

    /// The container with exactly this id.
    pub fn container(&self, id: &str) -> Option<&Arc<ContainerRecord>> {
        self.containers.get(id)
    }

    /// The pod that holds a name.
    pub fn pod_by_key(&self, key: &SandboxKey) -> Option<&Arc<PodRecord>> {
        self.pods.values().find(|pod| pod.key() == *key)
    }

    /// The container that holds a name in its pod.
    pub fn container_by_key(&self, key: &ContainerKey) -> Option<&Arc<ContainerRecord>> {
        self.containers
            .values()
            .find(|container| container.key() == *key)
    }

    /// The visible pod an id or an unambiguous prefix of one names.
    ///
    /// # Errors
    /// [`Class::NotFound`]; [`Class::Invalid`] when empty or ambiguous.
    pub fn find_pod(&self, id: &str) -> Result<&Arc<PodRecord>, Failure> {
        find("pod sandbox", &self.pods, id, |pod| pod.is_visible())
    }

    /// The visible container an id or an unambiguous prefix of one names.
    ///
    /// # Errors
    /// [`Class::NotFound`]; [`Class::Invalid`] when empty or ambiguous.
    pub fn find_container(&self, id: &str) -> Result<&Arc<ContainerRecord>, Failure> {
        find("container", &self.containers, id, |container| {
            container.is_visible()
        })
    }
}

fn find<'a, T>(
    kind: &str,
    records: &'a BTreeMap<String, Arc<T>>,
    id: &str,
    visible: impl Fn(&T) -> bool,
) -> Result<&'a Arc<T>, Failure> {
    if id.is_empty() {
        // NOT_FOUND rather than INVALID_ARGUMENT: the kubelet probes for support with an empty id.
        return Err(Failure::not_found(format!("{kind} \"\": no id given")));
    }
    let mut matches = records
        .range(id.to_owned()..)
        .take_while(|(full, _)| full.starts_with(id))
        .filter(|(_, record)| visible(record));
    match (matches.next(), matches.next()) {
        (Some((_, found)), None) => Ok(found),
        (Some((full, found)), Some(_)) if full == id => Ok(found),
        (Some(_), Some(_)) => Err(Failure::invalid(format!(
            "{kind} id prefix {id:?} is ambiguous; give more of the id"
        ))),
        (None, _) => Err(Failure::not_found(format!("{kind} {id:?} does not exist"))),
    }
}

/// The state an edit works on.
#[derive(Debug)]
pub struct Draft {
    state: Arc<Snapshot>,
    changes: Vec<Change>,
}

impl Draft {
    pub(super) fn new(state: Arc<Snapshot>) -> Self {
        Self {
            state,
            changes: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> (Arc<Snapshot>, Vec<Change>) {
        (self.state, self.changes)
    }

    /// The state so far, this draft's changes included.
    pub fn state(&self) -> &Snapshot {
        &self.state
    }

    /// Adds or replaces a pod.
    pub fn put_pod(&mut self, record: PodRecord) {
        let record = Arc::new(record);
        Arc::make_mut(&mut self.state)
            .pods
            .insert(record.id.clone(), record.clone());
        self.changes.push(Change::PutPod(record));
    }

    /// Adds or replaces a container.
    pub fn put_container(&mut self, record: ContainerRecord) {
        let record = Arc::new(record);
        Arc::make_mut(&mut self.state)
            .containers
            .insert(record.id.clone(), record.clone());
        self.changes.push(Change::PutContainer(record));
    }

    /// Records a container's OCI spec (JSON).
    pub fn put_spec(&mut self, container: &str, spec: Vec<u8>) {
        self.changes
            .push(Change::PutSpec(container.to_owned(), spec));
    }

    /// Changes a pod.
    ///
    /// # Errors
    /// [`Class::NotFound`], or what `change` returns; then nothing is kept.
    pub fn change_pod<T>(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut PodRecord) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut record = self
            .state
            .pod(id)
            .map(|found| (**found).clone())
            .ok_or_else(|| {
                Failure::new(
                    Class::NotFound,
                    format!("pod sandbox {id:?} does not exist"),
                )
            })?;
        let result = change(&mut record)?;
        self.put_pod(record);
        Ok(result)
    }

    /// Changes a container.
    ///
    /// # Errors
    /// [`Class::NotFound`], or what `change` returns; then nothing is kept.
    pub fn change_container<T>(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut ContainerRecord) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut record = self
            .state
            .container(id)
            .map(|found| (**found).clone())
            .ok_or_else(|| {
                Failure::new(Class::NotFound, format!("container {id:?} does not exist"))
            })?;
        let result = change(&mut record)?;
        self.put_container(record);
        Ok(result)
    }

    /// Forgets a pod; its containers are forgotten before.
    pub fn remove_pod(&mut self, id: &str) {
        Arc::make_mut(&mut self.state).pods.remove(id);
        self.changes.push(Change::RemovePod(id.to_owned()));
    }

    /// Forgets a container and its spec.
    pub fn remove_container(&mut self, id: &str) {
        Arc::make_mut(&mut self.state).containers.remove(id);
        self.changes.push(Change::RemoveContainer(id.to_owned()));
    }
}
