//! CreateContainer: everything that can be decided is decided here, and every error that can come
//! comes here; no process is started.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bulkhead_proto::runtime::v1::{ContainerConfig, LinuxContainerResources};
use bulkhead_runtime::rootfs;
use bulkhead_runtime::users::{self, Identity};

use super::remove::erase;
use super::start::seccomp_program;
use super::{facts, images};
use crate::clock::now;
use crate::failure::{Doing, Failure};
use crate::image::{Image, seed_volume};
use crate::node::{NodeHandle, fresh_id};
use crate::pod::files::{self, PodFiles};
use crate::records::{ContainerRecord, ContainerState, Draft, PodRecord, Stored};
use crate::request::container::ContainerRequest;
use crate::request::sandbox::SandboxRequest;
use crate::request::signal::Signal;
use crate::security::apparmor::Policy;
use crate::security::seccomp;
use crate::spec::container::{ContainerInputs, ContainerSpec};
use crate::spec::mounts::Files;
use crate::spec::security::Settings;
use crate::{cdi, request, spec};

/// Makes the container and returns its id. An equal request gets the container that was made for
/// it until it is started: whether an answer arrived, nobody here can know.
///
/// # Errors
/// What went wrong; then nothing of the container remains, unless the message says so.
pub async fn create(
    node: NodeHandle,
    pod: String,
    config: ContainerConfig,
) -> Result<String, Failure> {
    let pod = node.records.snapshot().find_pod(&pod)?.clone();
    let sandbox = request::sandbox::parse(&pod.config, &pod.runtime_handler)?;
    let parsed = request::container::parse(&config, &sandbox)?;
    let image = find_image(&node, &parsed)?;
    let id = fresh_id();
    let volumes = images::find(&node, &parsed)?;
    let mut record = intent(&id, &pod, config, &image);
    record.images = images::recorded(&record.config, &parsed, &volumes);
    let cgroup = record.cgroup.clone();
    if let Some(existing) = take_name(&node, record).await? {
        return Ok(existing);
    }
    let work = Work {
        node: node.clone(),
        id: id.clone(),
        cgroup,
        pod,
        sandbox,
        request: parsed,
        image,
        image_volumes: volumes,
    };
    let pod = work.pod.id.clone();
    if let Err(failure) = make(work).await {
        undo(&node, &pod, &id).await;
        return Err(failure);
    }
    Ok(id)
}

fn find_image(node: &NodeHandle, request: &ContainerRequest) -> Result<Arc<Image>, Failure> {
    let name = &request.image.reference;
    node.images.find(name)?.ok_or_else(|| {
        Failure::not_found(format!("image {name:?} is not on this node; pull it first"))
    })
}

fn intent(id: &str, pod: &PodRecord, config: ContainerConfig, image: &Image) -> ContainerRecord {
    ContainerRecord {
        id: id.to_owned(),
        pod: pod.id.clone(),
        config: Stored(config),
        state: ContainerState::Creating,
        image_id: image.id.to_string(),
        image_ref: image
            .repo_digests
            .first()
            .cloned()
            .unwrap_or_else(|| image.id.to_string()),
        created_at: now(),
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        reason: None,
        message: String::new(),
        process: None,
        identity: Identity::default(),
        log_path: None,
        cgroup: format!("{}/{id}", pod.cgroup),
        stop_signal: Signal::TERM,
        resources: Stored::default(),
        images: std::collections::BTreeMap::new(),
    }
}

/// Takes the container's name. What an unfinished creation or removal left under it is cleared away
/// first, so that the kubelet's next try does not meet a reserved name (case T5); a request in
/// flight is not met here, it was joined.
async fn take_name(node: &NodeHandle, record: ContainerRecord) -> Result<Option<String>, Failure> {
    let key = record.key();
    let unfinished = |held: &&Arc<ContainerRecord>| {
        matches!(
            held.state,
            ContainerState::Creating | ContainerState::Removing
        )
    };
    let snapshot = node.records.snapshot();
    if let Some(left) = snapshot.container_by_key(&key).filter(unfinished) {
        let cleared = erase(node, &left.pod, &left.id).await;
        cleared.map_err(|failure| failure.context(format!("free the name of {key}")))?;
    }
    // Not written: of a container that was being made, start-up finds its writable layer, which no
    // record vouches for, and nothing else exists.
    let claimed = node.records.edit_in_memory(|draft| claim(draft, record));
    claimed.await
}

/// Takes the container's name, or finds the container an equal request made.
fn claim(draft: &mut Draft, record: ContainerRecord) -> Result<Option<String>, Failure> {
    if !draft
        .state()
        .pod(&record.pod)
        .is_some_and(|pod| pod.is_ready())
    {
        return Err(Failure::precondition(format!(
            "create {}: the pod sandbox is not ready",
            record.key()
        )));
    }
    if let Some(existing) = draft.state().container_by_key(&record.key()) {
        let same = existing.config == record.config;
        if same && existing.state == ContainerState::Created {
            return Ok(Some(existing.id.clone()));
        }
        return Err(Failure::taken(record.key(), &existing.id));
    }
    draft.put_container(record);
    Ok(None)
}

async fn make(work: Work) -> Result<(), Failure> {
    let (node, id) = (work.node.clone(), work.id.clone());
    node.images.hold(&work.image.id, &id)?;
    for (index, image) in &work.image_volumes {
        node.images.hold(&image.id, &format!("{id}/{index}"))?;
    }
    let writable = node.images.writable(&id, &work.image.id).await?;
    let layers = node.images.layers(&work.image.id)?;
    let volumes = writable.upper.with_file_name("volumes");
    let apparmor = node.apparmor.policy().await?;
    let made = node
        .tasks
        .blocking(move || work.decide(&layers, &volumes, apparmor))
        .await
        .doing("build the container")??;
    // Compiled now, so that a bad profile is an error of CreateContainer.
    let text = std::str::from_utf8(&made.spec).doing("encode the OCI spec")?;
    drop(seccomp_program(&node, seccomp::of_spec(text)?).await?);
    node.records
        .edit(move |draft| {
            draft.put_spec(&id, made.spec);
            draft.change_container(&id, |container| {
                container.state = ContainerState::Created;
                container.identity = made.identity;
                container.log_path = made.log_path;
                container.stop_signal = made.stop_signal;
                container.resources = made.resources;
                Ok(())
            })
        })
        .await
}

/// What is decided of a container from everything that has to be read first. Blocks.
struct Work {
    node: NodeHandle,
    id: String,
    cgroup: String,
    pod: Arc<PodRecord>,
    sandbox: SandboxRequest,
    request: ContainerRequest,
    image: Arc<Image>,
    /// Images to be mounted, by the mount's place in the request.
    image_volumes: images::Images,
}

struct Made {
    spec: Vec<u8>,
    identity: Identity,
    log_path: Option<PathBuf>,
    stop_signal: Signal,
    resources: Stored<LinuxContainerResources>,
}

impl Work {
    /// `layers` are the image's, topmost first; the image's volumes are made in `volumes`.
    fn decide(
        &self,
        layers: &[PathBuf],
        volumes: &Path,
        apparmor: Option<Policy>,
    ) -> Result<Made, Failure> {
        let root = rootfs::read_only(layers, &self.node.features)?;
        let user = spec::process::user_spec(&self.request, &self.image.config);
        let mut identity = users::resolve(root.as_fd(), &user)?;
        let mut request = self.request.clone();
        let devices = cdi::resolve(&self.node.config.cdi.directories, &request.cdi_devices)?;
        for group in cdi::merge(&devices, &mut request)? {
            if !identity.groups.contains(&group) {
                identity.groups.push(group);
            }
        }
        let built = self.build(&request, &identity, volumes, apparmor)?;
        images::try_out(&self.node, &self.request, &self.image_volumes)?;
        if !built.unknown_syscalls.is_empty() {
            tracing::warn!(names = ?built.unknown_syscalls, "the seccomp profile names unknown calls");
        }
        for volume in &built.volumes {
            std::fs::create_dir_all(volumes).doing("make the volumes' directory")?;
            seed_volume(root.as_fd(), &volume.destination, &volume.source)?;
        }
        Ok(Made {
            spec: serde_json::to_vec(&built.spec).doing("encode the OCI spec")?,
            identity,
            log_path: self.log_path(),
            stop_signal: self.stop_signal(),
            resources: Stored(self.request.resources.to_cri()),
        })
    }

    /// `request` is the client's with what its CDI devices need.
    fn build(
        &self,
        request: &ContainerRequest,
        identity: &Identity,
        volumes: &Path,
        apparmor: Option<Policy>,
    ) -> Result<ContainerSpec, Failure> {
        let node = &self.node;
        let shared = PodFiles::of(&node.pod_directory(&self.pod.id));
        let settings = Settings {
            capabilities: node.config.capabilities.default,
            seccomp_when_unset: node.config.seccomp.when_unset,
        };
        let privileged = request.security.privileged;
        let seccomp_file = facts::seccomp_file(request, settings.seccomp_when_unset)?;
        spec::container::build(&ContainerInputs {
            id: &self.id,
            request,
            pod_id: &self.pod.id,
            sandbox: &self.sandbox,
            paths: &self.pod.paths,
            files: Files {
                hostname: &shared.hostname,
                hosts: &shared.hosts,
                resolv_conf: &shared.resolv_conf,
            },
            image: &self.image.config,
            image_name: &request.image.reference,
            identity,
            hostname: &files::hostname(&self.sandbox),
            cgroup: &self.cgroup,
            sources: &facts::mount_sources(&request.mounts)?,
            devices: &facts::devices(&request.devices)?,
            node_devices: &if privileged {
                facts::node_devices()?
            } else {
                Vec::new()
            },
            volumes_directory: volumes,
            mount_table: &facts::mount_table()?,
            seccomp_file: seccomp_file.as_deref(),
            node: &facts::node(&node.features, apparmor),
            placement: &node.hierarchies,
            settings,
            rlimits: node.config.rlimits,
        })
    }

    /// Absolute, as statuses show it.
    fn log_path(&self) -> Option<PathBuf> {
        let directory = self.sandbox.log_directory.as_ref()?;
        Some(directory.join(self.request.log_path.as_ref()?))
    }

    /// The request's signal, else the image's, else SIGTERM. One the image misspelt is no reason
    /// not to run it, but somebody should know (case T2).
    fn stop_signal(&self) -> Signal {
        let image = self.image.config.config().as_ref();
        let named = image
            .and_then(|config| config.stop_signal().as_deref())
            .unwrap_or_default();
        self.request.stop_signal.unwrap_or_else(|| {
            if named.is_empty() {
                return Signal::TERM;
            }
            Signal::parse(named).unwrap_or_else(|failure| {
                tracing::warn!(%failure, "the image's StopSignal is ignored; SIGTERM is sent");
                Signal::TERM
            })
        })
    }
}

/// Takes back a container that could not be made. What can't be taken back now is at the next start.
async fn undo(node: &NodeHandle, pod: &str, id: &str) {
    if let Err(failure) = erase(node, pod, id).await {
        tracing::error!(container = id, %failure, "a container that could not be made is left over");
    }
}
