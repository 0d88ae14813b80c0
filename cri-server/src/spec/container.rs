//! A whole container's OCI spec, put together from its parts.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use bulkhead_runtime::idmap::IdMaps;
use bulkhead_runtime::monitor::wire::PodPaths;
use bulkhead_runtime::plan::cgroup::Placement;
use bulkhead_runtime::users::Identity;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Root, Spec};

use super::devices::{self, HostDevice};
use super::mount_table::MountTable;
use super::mounts::{self, Files, ImageVolume, MountInputs, MountPlan};
use super::process::{self, ProcessInputs};
use super::security::{self, Decided, Settings};
use super::{NodeFacts, resources};
use crate::config::Rlimits;
use crate::failure::{Class, Failure};
use crate::request::namespaces::{Pid, Sharing};
use crate::request::{ContainerRequest, SandboxRequest};

/// The version of the OCI runtime specification the spec is written to.
const OCI_VERSION: &str = "1.2.0";

/// Everything that decides a container's spec.
#[derive(Clone, Copy)]
#[expect(
    missing_debug_implementations,
    reason = "where controllers are is a trait without Debug"
)]
pub struct ContainerInputs<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The request.
    pub request: &'a ContainerRequest,
    /// The pod's id.
    pub pod_id: &'a str,
    /// The pod's request.
    pub sandbox: &'a SandboxRequest,
    /// The pod's namespaces.
    pub paths: &'a PodPaths,
    /// The pod's files.
    pub files: Files<'a>,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// The image's name, for node software.
    pub image_name: &'a str,
    /// Whom to run as, as resolved by [`process::user_spec`].
    pub identity: &'a Identity,
    /// The host name inside: the pod's, or the node's.
    pub hostname: &'a str,
    /// The container's cgroup, absolute.
    pub cgroup: &'a str,
    /// The host path of each mount of the request, links resolved, in the same order.
    pub sources: &'a [PathBuf],
    /// The devices of the request, resolved.
    pub devices: &'a [HostDevice],
    /// All devices of the node; used for privileged containers only.
    pub node_devices: &'a [HostDevice],
    /// The directory for the image's volumes, of the container's own.
    pub volumes_directory: &'a Path,
    /// The node's mounts.
    pub mount_table: &'a MountTable,
    /// The content of the seccomp profile's file, where the request names one.
    pub seccomp_file: Option<&'a [u8]>,
    /// The node.
    pub node: &'a NodeFacts,
    /// Where the node has its cgroup controllers.
    pub placement: &'a dyn Placement,
    /// The node's settings.
    pub settings: Settings,
    /// Open files, the node's setting.
    pub rlimits: Rlimits,
}

/// What comes out.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// The OCI runtime spec, its seccomp profile included.
    pub spec: Spec,
    /// Volumes to make and seed before the start.
    pub volumes: Vec<ImageVolume>,
    /// Names in the seccomp profile's file that no system call has here, for the log.
    pub unknown_syscalls: Vec<String>,
}

/// Builds the spec.
pub fn build(inputs: &ContainerInputs<'_>) -> Result<ContainerSpec, Failure> {
    let request = inputs.request;
    let decided = security::decide(
        &request.security,
        inputs.sandbox,
        inputs.seccomp_file,
        inputs.node,
        inputs.settings,
    )?;
    let process = process::init(
        &ProcessInputs {
            request,
            image: inputs.image,
            identity: inputs.identity,
            hostname: inputs.hostname,
            rlimits: inputs.rlimits,
        },
        decided.capabilities.clone(),
        decided.apparmor.clone(),
    )?;
    if let Some(maps) = &inputs.sandbox.namespaces.user {
        check_mapped(inputs.identity, maps)?;
    }
    let plan = mount_plan(inputs)?;
    if inputs.node.selinux && request.mounts.iter().any(|mount| mount.selinux_relabel) {
        return Err(Failure::new(
            Class::Unsupported,
            "mounts: selinux_relabel: SELinux labels are not provided by this version",
        ));
    }
    let resources = resources::create(
        &request.resources,
        devices::rules(inputs.devices, request.security.privileged),
        inputs.placement,
    )?;
    let linux = linux(inputs, &decided, resources, plan.root_propagation.clone())?;
    let mut root = Root::default();
    // The path is the launcher's: the root is a mount by descriptor.
    root.set_path(PathBuf::from("rootfs"))
        .set_readonly(Some(request.security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(plan.mounts))
        .set_process(Some(process))
        // The pod's UTS namespace has its name already.
        .set_hostname(None)
        .set_domainname(None)
        .set_hooks(None)
        .set_annotations(Some(annotations(inputs)))
        .set_linux(Some(linux))
        .set_solaris(None)
        .set_windows(None)
        .set_vm(None)
        .set_zos(None);
    Ok(ContainerSpec {
        spec,
        volumes: plan.volumes,
        unknown_syscalls: decided.unknown_syscalls,
    })
}

/// Refuses a user the pod's user namespace doesn't have: the kernel would, at the start.
fn check_mapped(identity: &Identity, maps: &IdMaps) -> Result<(), Failure> {
    let refuse = |what: &str, id: u32| {
        Err(Failure::invalid(format!(
            "linux.security_context: {what} {id} is outside the ids of the pod's user namespace"
        )))
    };
    if maps.outside_uid(identity.uid).is_none() {
        return refuse("user", identity.uid);
    }
    let unmapped = |gid: &&u32| maps.outside_gid(**gid).is_none();
    match std::iter::once(&identity.gid)
        .chain(&identity.groups)
        .find(unmapped)
    {
        Some(gid) => refuse("group", *gid),
        None => Ok(()),
    }
}

fn mount_plan(inputs: &ContainerInputs<'_>) -> Result<MountPlan, Failure> {
    let config = inputs.image.config().as_ref();
    // A set, in an order that is always the same: volumes are numbered.
    let volumes: BTreeSet<String> = config
        .and_then(|config| config.volumes().clone())
        .into_iter()
        .flatten()
        .collect();
    let volumes: Vec<String> = volumes.into_iter().collect();
    mounts::plan(&MountInputs {
        requests: &inputs.request.mounts,
        sources: inputs.sources,
        table: inputs.mount_table,
        paths: inputs.paths,
        files: inputs.files,
        volumes: &volumes,
        volumes_directory: inputs.volumes_directory,
        privileged: inputs.request.security.privileged,
        readonly_rootfs: inputs.request.security.readonly_rootfs,
        user: inputs.sandbox.namespaces.user.as_ref(),
        host_network: inputs.sandbox.namespaces.network == Sharing::Node,
    })
}

fn linux(
    inputs: &ContainerInputs<'_>,
    decided: &Decided,
    resources: LinuxResources,
    root_propagation: Option<String>,
) -> Result<Linux, Failure> {
    let maps = inputs.sandbox.namespaces.user.as_ref();
    let (uids, gids) = maps.map(IdMaps::to_oci).unzip();
    let mut linux = Linux::default();
    linux
        .set_net_devices(None)
        .set_uid_mappings(uids)
        .set_gid_mappings(gids)
        // The pod's were written when its namespaces were made.
        .set_sysctl(None)
        .set_resources(Some(resources))
        .set_cgroups_path(Some(PathBuf::from(inputs.cgroup)))
        .set_namespaces(Some(namespaces(inputs)?))
        .set_devices(devices::nodes(
            inputs.devices,
            inputs.node_devices,
            inputs.request.security.privileged,
        ))
        .set_seccomp(decided.seccomp.clone())
        .set_rootfs_propagation(root_propagation)
        .set_masked_paths(decided.masked_paths.clone())
        .set_readonly_paths(decided.readonly_paths.clone())
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_memory_policy(None)
        .set_personality(None)
        .set_time_offsets(None);
    Ok(linux)
}

/// New ones, those of the pod by path, and none where the node's is meant.
fn namespaces(inputs: &ContainerInputs<'_>) -> Result<Vec<LinuxNamespace>, Failure> {
    use LinuxNamespaceType as Kind;
    let asked = &inputs.request.security.namespaces;
    let paths = inputs.paths;
    let mut list = vec![namespace(Kind::Mount, None)];
    let mut join = |kind, path: &Option<PathBuf>| match path {
        Some(path) => {
            list.push(namespace(kind, Some(path)));
            Ok(())
        }
        None => Err(Failure::internal(format!(
            "pod {} has no {kind} namespace to join",
            inputs.pod_id
        ))),
    };
    if inputs.sandbox.namespaces.user.is_some() {
        join(Kind::User, &paths.user)?;
    }
    if asked.network == Sharing::Pod {
        join(Kind::Network, &paths.network)?;
        join(Kind::Uts, &paths.uts)?;
    }
    if asked.ipc == Sharing::Pod {
        join(Kind::Ipc, &paths.ipc)?;
    }
    match &asked.pid {
        Pid::Pod => join(Kind::Pid, &paths.pid)?,
        // TARGET is joined by the monitor in place of the new one, so that losing the target can
        // never mean the node's.
        Pid::Container | Pid::Target(_) => list.push(namespace(Kind::Pid, None)),
        Pid::Node => {}
    }
    // On every cgroup version: the container sees its own part of the tree only (threat A9).
    if !inputs.request.security.privileged {
        list.push(namespace(Kind::Cgroup, None));
    }
    Ok(list)
}

fn namespace(kind: LinuxNamespaceType, path: Option<&PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path.cloned());
    namespace
}

/// What node monitors and hooks read, under the names containerd gave them. Annotations of the
/// request stay out: none has a meaning (threat I3).
fn annotations(inputs: &ContainerInputs<'_>) -> HashMap<String, String> {
    let sandbox = &inputs.sandbox.key;
    [
        ("container-type", "container"),
        ("sandbox-id", inputs.pod_id),
        ("sandbox-name", &sandbox.name),
        ("sandbox-namespace", &sandbox.namespace),
        ("sandbox-uid", &sandbox.uid),
        ("container-name", &inputs.request.key.name),
        ("image-name", inputs.image_name),
    ]
    .into_iter()
    .map(|(name, value)| (format!("io.kubernetes.cri.{name}"), value.to_owned()))
    .collect()
}

#[cfg(test)]
mod tests;
