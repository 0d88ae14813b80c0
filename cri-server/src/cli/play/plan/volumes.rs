//! Volumes and where containers mount them. Pure.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use bulkhead_proto::runtime::v1;
use k8s_openapi::api::core::v1::{Container, PodSpec, VolumeMount};

use super::{Checker, Facts, Folder};
use crate::cli::play::quantity;

/// A volume of the pod.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli::play) struct Volume {
    pub(in crate::cli::play) name: String,
    pub(in crate::cli::play) kind: VolumeKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli::play) enum VolumeKind {
    /// A directory of the pod's own.
    Directory,
    /// A tmpfs of the pod's own, at most this large.
    Memory { bytes: Option<u64> },
    /// Something of the host.
    Host { path: PathBuf, kind: HostPathKind },
}

/// What has to be at a host path, or is made there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::play) enum HostPathKind {
    Anything,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

const KINDS: [(&str, HostPathKind); 8] = [
    ("", HostPathKind::Anything),
    ("DirectoryOrCreate", HostPathKind::DirectoryOrCreate),
    ("Directory", HostPathKind::Directory),
    ("FileOrCreate", HostPathKind::FileOrCreate),
    ("File", HostPathKind::File),
    ("Socket", HostPathKind::Socket),
    ("CharDevice", HostPathKind::CharDevice),
    ("BlockDevice", HostPathKind::BlockDevice),
];

/// One volume in one container.
#[derive(Clone, Debug)]
pub(in crate::cli::play) struct MountPlan {
    pub(in crate::cli::play) volume: Volume,
    /// Relative path inside the volume, if not all of it.
    pub(in crate::cli::play) sub_path: Option<PathBuf>,
    /// Where the caller binds the sub path to, which nobody inside can redirect.
    index: usize,
    container: String,
    container_path: String,
    readonly: bool,
    recursive: Recursive,
    propagation: v1::MountPropagation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recursive {
    Disabled,
    IfPossible,
    Enabled,
}

pub(super) fn plan(spec: &PodSpec, checker: &mut Checker<'_>) -> Vec<Volume> {
    let mut volumes = Vec::new();
    let mut names = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{index}]");
        if !super::is_name(&volume.name, 63, false) {
            checker.wrong(
                &format!("{path}.name"),
                "has to be lower-case letters, digits and -",
            );
        }
        if !names.insert(&volume.name) {
            checker.wrong(
                &format!("{path}.name"),
                format!("is a second {:?}", volume.name),
            );
        }
        let kind = match (&volume.empty_dir, &volume.host_path) {
            (Some(empty), None) => empty_dir(empty, &format!("{path}.emptyDir"), checker),
            (None, Some(host)) => host_path(host, &format!("{path}.hostPath"), checker),
            // What Kubernetes does with a volume of no kind.
            (None, None) => Some(VolumeKind::Directory),
            (Some(_), Some(_)) => {
                checker.wrong(&path, "is of two kinds");
                None
            }
        };
        volumes.extend(kind.map(|kind| Volume {
            name: volume.name.clone(),
            kind,
        }));
    }
    volumes
}

fn empty_dir(
    given: &k8s_openapi::api::core::v1::EmptyDirVolumeSource,
    path: &str,
    checker: &mut Checker<'_>,
) -> Option<VolumeKind> {
    let medium = given.medium.as_deref().unwrap_or_default();
    let memory = checker.choice(
        &format!("{path}.medium"),
        medium,
        &[("", false), ("Memory", true)],
    )?;
    let limit = format!("{path}.sizeLimit");
    let bytes = match given
        .size_limit
        .as_ref()
        .map(|size| quantity::bytes(&size.0))
    {
        None => None,
        Some(Ok(bytes)) => u64::try_from(bytes).ok(),
        Some(Err(why)) => {
            checker.wrong(&limit, why);
            None
        }
    };
    if !memory && given.size_limit.is_some() {
        checker.wrong(&limit, "can only be kept for medium: Memory");
    }
    Some(if memory {
        VolumeKind::Memory { bytes }
    } else {
        VolumeKind::Directory
    })
}

fn host_path(
    given: &k8s_openapi::api::core::v1::HostPathVolumeSource,
    path: &str,
    checker: &mut Checker<'_>,
) -> Option<VolumeKind> {
    let kind = given.type_.as_deref().unwrap_or_default();
    let kind = checker.choice(&format!("{path}.type"), kind, &KINDS)?;
    let host = PathBuf::from(&given.path);
    if !host.is_absolute() || host.components().any(|part| part == Component::ParentDir) {
        checker.wrong(&format!("{path}.path"), "has to be absolute and without ..");
    }
    Some(VolumeKind::Host { path: host, kind })
}

pub(super) fn mounts(
    container: &Container,
    volumes: &[Volume],
    path: &str,
    checker: &mut Checker<'_>,
) -> Vec<MountPlan> {
    let mut targets = BTreeSet::new();
    let mut mounts = Vec::new();
    for (index, given) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if !targets.insert(&given.mount_path) {
            checker.wrong(&format!("{path}.mountPath"), "is used twice");
        }
        let Some(volume) = volumes.iter().find(|volume| volume.name == given.name) else {
            checker.wrong(
                &format!("{path}.name"),
                format!("is {:?}: there is no such volume", given.name),
            );
            continue;
        };
        mounts.extend(mount(container, volume, given, (index, &path), checker));
    }
    mounts
}

fn mount(
    container: &Container,
    volume: &Volume,
    given: &VolumeMount,
    (index, path): (usize, &str),
    checker: &mut Checker<'_>,
) -> Option<MountPlan> {
    let readonly = given.read_only == Some(true);
    if !given.mount_path.starts_with('/') {
        checker.wrong(&format!("{path}.mountPath"), "has to be absolute");
    }
    let sub_path = given
        .sub_path
        .as_deref()
        .filter(|sub| !sub.is_empty())
        .map(PathBuf::from);
    let inside = |sub: &Path| {
        sub.components()
            .all(|part| matches!(part, Component::Normal(_)))
    };
    if sub_path.as_deref().is_some_and(|sub| !inside(sub)) {
        checker.wrong(
            &format!("{path}.subPath"),
            "has to be relative and without ..",
        );
    }
    let propagation = checker.choice(
        &format!("{path}.mountPropagation"),
        given.mount_propagation.as_deref().unwrap_or("None"),
        &[
            ("None", v1::MountPropagation::PropagationPrivate),
            (
                "HostToContainer",
                v1::MountPropagation::PropagationHostToContainer,
            ),
            (
                "Bidirectional",
                v1::MountPropagation::PropagationBidirectional,
            ),
        ],
    )?;
    let privileged = container
        .security_context
        .as_ref()
        .is_some_and(|c| c.privileged == Some(true));
    if propagation == v1::MountPropagation::PropagationBidirectional && !privileged {
        checker.wrong(
            &format!("{path}.mountPropagation"),
            "needs a privileged container",
        );
    }
    let recursive = checker.choice(
        &format!("{path}.recursiveReadOnly"),
        given.recursive_read_only.as_deref().unwrap_or("Disabled"),
        &[
            ("Disabled", Recursive::Disabled),
            ("IfPossible", Recursive::IfPossible),
            ("Enabled", Recursive::Enabled),
        ],
    )?;
    let alone = propagation == v1::MountPropagation::PropagationPrivate;
    if recursive != Recursive::Disabled && !(readonly && alone) {
        checker.wrong(
            &format!("{path}.recursiveReadOnly"),
            "needs readOnly: true and no mountPropagation",
        );
    }
    Some(MountPlan {
        volume: volume.clone(),
        sub_path,
        index,
        container: container.name.clone(),
        container_path: given.mount_path.clone(),
        readonly,
        recursive,
        propagation,
    })
}

impl MountPlan {
    /// The root of the volume on the host.
    pub(in crate::cli::play) fn volume_path(&self, folder: &Folder) -> PathBuf {
        self.volume.path(folder)
    }

    /// Where the sub path is bound to.
    pub(in crate::cli::play) fn sub_path_target(&self, folder: &Folder) -> PathBuf {
        folder.sub_path(&self.container, self.index)
    }

    pub(super) fn mount(&self, facts: &Facts<'_>) -> v1::Mount {
        let host = match self.sub_path {
            Some(_) => self.sub_path_target(facts.folder),
            None => self.volume_path(facts.folder),
        };
        v1::Mount {
            container_path: self.container_path.clone(),
            host_path: host.to_string_lossy().into_owned(),
            readonly: self.readonly,
            selinux_relabel: !matches!(self.volume.kind, VolumeKind::Host { .. }),
            propagation: self.propagation.into(),
            recursive_read_only: match self.recursive {
                Recursive::Disabled => false,
                Recursive::IfPossible => facts.recursive_read_only,
                Recursive::Enabled => true,
            },
            ..Default::default()
        }
    }
}

impl Volume {
    /// Where the volume is on the host.
    pub(in crate::cli::play) fn path(&self, folder: &Folder) -> PathBuf {
        match &self.kind {
            VolumeKind::Host { path, .. } => path.clone(),
            VolumeKind::Directory | VolumeKind::Memory { .. } => folder.volume(&self.name),
        }
    }
}
