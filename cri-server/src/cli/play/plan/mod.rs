//! From a manifest to what the daemon is asked for. Pure: the node's facts come in as values, and
//! what is only known later (ids, addresses) is filled in by [`Plan::sandbox`] and
//! [`ContainerPlan::config`].
//!
//! The values are those the kubelet computes from the same manifest; its source is named where a
//! formula is its own.

mod container;
mod env;
mod network;
mod resources;
mod security;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use bulkhead_proto::runtime::v1;
use k8s_openapi::api::core::v1::PodSpec;

pub(super) use container::{ContainerPlan, PullPolicy, Role};
pub(super) use env::Facts;
pub(super) use volumes::{HostPathKind, Volume, VolumeKind};

use super::document::{Lines, Problem};
use super::manifest::Manifest;

/// Label of sandboxes and containers that `bulkhead play` made: what `ps` and `down` look at.
pub(in crate::cli) const PLAYED: &str = "bulkhead.play";
/// The kubelet's own labels; tools that show pods read these.
pub(in crate::cli) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(in crate::cli) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(in crate::cli) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(in crate::cli) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: seconds a graceful stop of the pod may take, by the kubelet's name for it.
pub(in crate::cli) const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Kubernetes' default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// What the mapping has to know of this machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) memory_bytes: i64,
    /// The node's own resolv.conf.
    pub(super) resolv: v1::DnsConfig,
}

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Always,
    OnFailure,
    Never,
}

/// A pod, ready to be asked for.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) handler: String,
    pub(super) restart: Restart,
    pub(super) grace_seconds: i64,
    pub(super) fs_group: Option<u32>,
    pub(super) volumes: Vec<Volume>,
    /// Init containers and sidecars first, in the manifest's order.
    pub(super) containers: Vec<ContainerPlan>,
    sandbox: v1::PodSandboxConfig,
}

/// Where a played pod keeps its files.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Folder(PathBuf);

impl Folder {
    /// The folder of the pod with this uid, below the daemon's root.
    pub(in crate::cli) fn of(root: &Path, uid: &str) -> Self {
        Self(root.join("play").join(uid))
    }

    pub(in crate::cli) fn path(&self) -> &Path {
        &self.0
    }

    pub(in crate::cli) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    pub(in crate::cli) fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    pub(in crate::cli) fn sub_paths(&self) -> PathBuf {
        self.0.join("subpaths")
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name)
    }

    fn sub_path(&self, container: &str, index: usize) -> PathBuf {
        self.sub_paths().join(container).join(index.to_string())
    }
}

/// Collects what is wrong, with lines.
struct Checker<'a> {
    lines: &'a Lines,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn wrong(&mut self, path: &str, why: impl Display) {
        self.problems.push(Problem {
            line: self.lines.of(path),
            text: format!("{path} {why}"),
        });
    }

    /// One of the choices, or a complaint that lists them.
    fn choice<T: Copy>(&mut self, path: &str, given: &str, choices: &[(&str, T)]) -> Option<T> {
        let found = choices.iter().find(|(name, _)| *name == given);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.wrong(
                path,
                format!("is {given:?}: one of {} is needed", names.join(", ")),
            );
        }
        found.map(|(_, value)| *value)
    }
}

pub(super) fn plan(manifest: &Manifest, node: &Node) -> Result<Plan, Vec<Problem>> {
    let mut checker = Checker {
        lines: &manifest.lines,
        problems: Vec::new(),
    };
    let plan = plan_pod(manifest, node, &mut checker);
    let mut problems = checker.problems;
    if problems.is_empty() {
        return Ok(plan);
    }
    problems.sort();
    problems.dedup();
    Err(problems)
}

fn plan_pod(manifest: &Manifest, node: &Node, checker: &mut Checker<'_>) -> Plan {
    let metadata = &manifest.pod.metadata;
    let default = PodSpec::default();
    let spec = manifest.pod.spec.as_ref().unwrap_or(&default);
    let name = metadata.name.clone().unwrap_or_default();
    if !is_name(&name, 253, true) {
        checker.wrong(
            "metadata.name",
            "has to be lower-case letters, digits, - and .",
        );
    }
    let namespace = metadata
        .namespace
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    if !is_name(&namespace, 63, false) {
        checker.wrong(
            "metadata.namespace",
            "has to be lower-case letters, digits and -",
        );
    }
    let restart = spec.restart_policy.as_deref().unwrap_or("Always");
    let restart = checker
        .choice(
            "spec.restartPolicy",
            restart,
            &[
                ("Always", Restart::Always),
                ("OnFailure", Restart::OnFailure),
                ("Never", Restart::Never),
            ],
        )
        .unwrap_or(Restart::Never);
    let grace_seconds = spec
        .termination_grace_period_seconds
        .unwrap_or(DEFAULT_GRACE_SECONDS);
    if grace_seconds < 0 {
        checker.wrong("spec.terminationGracePeriodSeconds", "is negative");
    }
    let volumes = volumes::plan(spec, checker);
    let qos = resources::qos(spec);
    let containers = container::plan_all(spec, qos, node, &volumes, checker);
    let fs_group = spec
        .security_context
        .as_ref()
        .and_then(|c| c.fs_group)
        .and_then(|group| {
            let fits = u32::try_from(group).ok();
            if fits.is_none() {
                checker.wrong("spec.securityContext.fsGroup", "is no group id");
            }
            fits
        });
    let sandbox = sandbox(
        manifest,
        spec,
        node,
        (&name, &namespace, grace_seconds),
        checker,
    );
    Plan {
        handler: spec.runtime_class_name.clone().unwrap_or_default(),
        name,
        namespace,
        restart,
        grace_seconds,
        fs_group,
        volumes,
        containers,
        sandbox,
    }
}

fn sandbox(
    manifest: &Manifest,
    spec: &PodSpec,
    node: &Node,
    (name, namespace, grace_seconds): (&str, &str, i64),
    checker: &mut Checker<'_>,
) -> v1::PodSandboxConfig {
    let metadata = &manifest.pod.metadata;
    let mut labels = metadata.labels.clone().unwrap_or_default();
    labels.extend(own_labels(name, namespace));
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    annotations.insert(GRACE.to_owned(), grace_seconds.to_string());
    let resources = resources::pod(spec, checker);
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ..Default::default()
        }),
        hostname: network::hostname(spec, name, node, checker),
        dns_config: network::dns(spec, node, checker),
        port_mappings: network::ports(spec, checker),
        labels,
        annotations,
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(security::sandbox(spec, checker)),
            sysctls: security::sysctls(spec),
            resources: Some(resources),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn own_labels(name: &str, namespace: &str) -> BTreeMap<String, String> {
    [
        (POD_NAME, name),
        (POD_NAMESPACE, namespace),
        (PLAYED, "true"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// A DNS label or, with `dots`, subdomain (RFC 1123), as Kubernetes wants its names.
fn is_name(name: &str, most: usize, dots: bool) -> bool {
    let good = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= most
        && if dots {
            name.split('.').all(good)
        } else {
            good(name)
        }
}

impl Plan {
    /// The sandbox's configuration, for a pod with this uid and folder.
    pub(super) fn sandbox(&self, uid: &str, folder: &Folder) -> v1::PodSandboxConfig {
        let mut config = self.sandbox.clone();
        if let Some(metadata) = &mut config.metadata {
            metadata.uid = uid.to_owned();
        }
        config.labels.insert(POD_UID.to_owned(), uid.to_owned());
        config.log_directory = folder.logs().to_string_lossy().into_owned();
        config
    }
}
