//! Containers as the CRI shows them.

use bulkhead_proto::runtime::v1::{
    Container, ContainerResources, ContainerState as CriState, ContainerStatus, ContainerUser,
    ImageSpec, LinuxContainerUser, Mount,
};

use crate::records::{ContainerRecord, ContainerState};

/// The state the kubelet knows: guards of ours show as what they guard.
pub fn state(container: &ContainerRecord) -> CriState {
    match container.state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => {
            CriState::ContainerCreated
        }
        ContainerState::Running => CriState::ContainerRunning,
        ContainerState::Exited => CriState::ContainerExited,
        ContainerState::Removing if container.process.is_some() => CriState::ContainerRunning,
        ContainerState::Removing if container.finished_at == 0 => CriState::ContainerCreated,
        ContainerState::Removing => CriState::ContainerExited,
        ContainerState::Unknown => CriState::ContainerUnknown,
    }
}

/// The container in a list.
pub fn item(container: &ContainerRecord) -> Container {
    Container {
        id: container.id.clone(),
        pod_sandbox_id: container.pod.clone(),
        metadata: container.config.metadata.clone(),
        image: container.config.image.clone(),
        image_ref: container.image_ref.clone(),
        image_id: container.image_id.clone(),
        state: state(container).into(),
        created_at: container.created_at,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
    }
}

/// The container in detail. `image_name` is a tag of its image, if it still has one.
pub fn status(container: &ContainerRecord, image_name: Option<&str>) -> ContainerStatus {
    let asked = container.config.image.clone().unwrap_or_default();
    let image = ImageSpec {
        image: image_name.map_or(asked.image.clone(), str::to_owned),
        ..asked
    };
    ContainerStatus {
        id: container.id.clone(),
        metadata: container.config.metadata.clone(),
        state: state(container).into(),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: container.finished_at,
        exit_code: container.exit_code,
        image: Some(image),
        image_ref: container.image_ref.clone(),
        reason: container
            .reason
            .map(|reason| reason.as_str().to_owned())
            .unwrap_or_default(),
        message: container.message.clone(),
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        mounts: mounts(container),
        log_path: log_path(container),
        resources: Some(ContainerResources {
            linux: Some(container.resources.0.clone()),
            windows: None,
        }),
        image_id: container.image_id.clone(),
        user: Some(ContainerUser {
            linux: Some(user(container)),
        }),
        stop_signal: container.stop_signal.to_cri().into(),
    }
}

/// As asked for; an image by its id, which the kubelet compares with those of ListImages before it
/// removes one.
fn mounts(container: &ContainerRecord) -> Vec<Mount> {
    let mut mounts = container.config.mounts.clone();
    for mount in &mut mounts {
        let mounted = container.images.get(&mount.container_path);
        if let (Some(image), Some(mounted)) = (&mut mount.image, mounted) {
            image.image.clone_from(&mounted.id);
            image.image_ref.clone_from(&mounted.id);
        }
    }
    mounts
}

fn log_path(container: &ContainerRecord) -> String {
    container
        .log_path
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn user(container: &ContainerRecord) -> LinuxContainerUser {
    let identity = &container.identity;
    let mut groups: Vec<i64> = identity
        .groups
        .iter()
        .map(|group| i64::from(*group))
        .collect();
    let gid = i64::from(identity.gid);
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    LinuxContainerUser {
        uid: i64::from(identity.uid),
        gid,
        supplemental_groups: groups,
    }
}
