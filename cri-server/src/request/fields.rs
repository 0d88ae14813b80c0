//! What becomes of each field of a request: every one is honoured, refused by name, or has its reason
//! written here. Compared with the table the wire is generated from, so that a new field can't be
//! forgotten; `docs/cri.md` says the same to operators.

use std::collections::{BTreeMap, BTreeSet};

use Disposition::{Honoured, Information, NoMeaning, Refused, Unserved};

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disposition {
    /// It has its effect.
    Honoured,
    /// Refused with the field's path: what isn't provided yet.
    Refused(&'static str),
    /// Kept and shown, acted on by nobody.
    Information(&'static str),
    /// Passed over, for this reason.
    NoMeaning(&'static str),
    /// Its RPC answers UNIMPLEMENTED.
    Unserved,
}

/// A message and its fields by what becomes of them.
type Message = (
    &'static str,
    &'static [(Disposition, &'static [&'static str])],
);

/// All messages that can be in a request.
#[rustfmt::skip]
const MESSAGES: &[Message] = &[
    ("VersionRequest", &[
        (NoMeaning("the answer names the version whatever the caller has"), &["version"]),
    ]),
    ("RunPodSandboxRequest", &[
        (Honoured, &["config", "runtime_handler"]),
    ]),
    ("StopPodSandboxRequest", &[
        (Honoured, &["pod_sandbox_id"]),
    ]),
    ("RemovePodSandboxRequest", &[
        (Honoured, &["pod_sandbox_id"]),
    ]),
    ("PodSandboxStatusRequest", &[
        (Honoured, &["pod_sandbox_id", "verbose"]),
    ]),
    ("ListPodSandboxRequest", &[
        (Honoured, &["filter"]),
    ]),
    ("StreamPodSandboxesRequest", &[
        (Unserved, &["filter"]),
    ]),
    ("CreateContainerRequest", &[
        (Honoured, &["pod_sandbox_id", "config"]),
        (Information("the stored configuration of the sandbox counts"), &["sandbox_config"]),
    ]),
    ("StartContainerRequest", &[
        (Honoured, &["container_id"]),
    ]),
    ("StopContainerRequest", &[
        (Honoured, &["container_id", "timeout"]),
    ]),
    ("RemoveContainerRequest", &[
        (Honoured, &["container_id"]),
    ]),
    ("ListContainersRequest", &[
        (Honoured, &["filter"]),
    ]),
    ("StreamContainersRequest", &[
        (Unserved, &["filter"]),
    ]),
    ("ContainerStatusRequest", &[
        (Honoured, &["container_id", "verbose"]),
    ]),
    ("UpdateContainerResourcesRequest", &[
        (Honoured, &["container_id", "linux"]),
        (Information("unknown ones are passed over, and all are"), &["annotations"]),
        (NoMeaning("Windows"), &["windows"]),
    ]),
    ("ReopenContainerLogRequest", &[
        (Honoured, &["container_id"]),
    ]),
    ("ExecSyncRequest", &[
        (Honoured, &["container_id", "cmd", "timeout"]),
    ]),
    ("ExecRequest", &[
        (Unserved, &["container_id", "cmd", "tty", "stdin", "stdout", "stderr"]),
    ]),
    ("AttachRequest", &[
        (Unserved, &["container_id", "stdin", "tty", "stdout", "stderr"]),
    ]),
    ("PortForwardRequest", &[
        (Unserved, &["pod_sandbox_id", "port"]),
    ]),
    ("ContainerStatsRequest", &[
        (Honoured, &["container_id"]),
    ]),
    ("ListContainerStatsRequest", &[
        (Honoured, &["filter"]),
    ]),
    ("StreamContainerStatsRequest", &[
        (Unserved, &["filter"]),
    ]),
    ("PodSandboxStatsRequest", &[
        (Unserved, &["pod_sandbox_id"]),
    ]),
    ("ListPodSandboxStatsRequest", &[
        (Unserved, &["filter"]),
    ]),
    ("StreamPodSandboxStatsRequest", &[
        (Unserved, &["filter"]),
    ]),
    ("UpdateRuntimeConfigRequest", &[
        (Honoured, &["runtime_config"]),
    ]),
    ("StatusRequest", &[
        (Honoured, &["verbose"]),
    ]),
    ("CheckpointContainerRequest", &[
        (Unserved, &["container_id", "location", "timeout"]),
    ]),
    ("CheckpointPodRequest", &[
        (Unserved, &["pod_sandbox_id", "output_path", "container_ids", "options"]),
    ]),
    ("RestorePodRequest", &[
        (Unserved, &["checkpoint_path", "config", "runtime_handler", "options", "container_configs"]),
    ]),
    ("UpdatePodSandboxResourcesRequest", &[
        (Honoured, &["pod_sandbox_id"]),
        (Information("the kubelet owns the pod's cgroup"), &["overhead", "resources"]),
    ]),
    ("ListImagesRequest", &[
        (Honoured, &["filter"]),
    ]),
    ("StreamImagesRequest", &[
        (Unserved, &["filter"]),
    ]),
    ("ImageStatusRequest", &[
        (Honoured, &["image", "verbose"]),
    ]),
    ("PullImageRequest", &[
        (Honoured, &["image", "auth"]),
        (Information("for which pod; nothing depends on it yet"), &["sandbox_config"]),
    ]),
    ("RemoveImageRequest", &[
        (Honoured, &["image"]),
    ]),
    ("PodSandboxConfig", &[
        (Honoured, &["metadata", "hostname", "log_directory", "dns_config", "port_mappings", "labels", "linux"]),
        (Information("kept verbatim, none has a meaning to us"), &["annotations"]),
        (NoMeaning("Windows"), &["windows"]),
    ]),
    ("PodSandboxFilter", &[
        (Honoured, &["id", "state", "label_selector"]),
    ]),
    ("ContainerConfig", &[
        (Honoured, &["metadata", "image", "command", "args", "working_dir", "envs", "mounts", "devices", "CDI_devices", "labels", "log_path", "stdin", "stdin_once", "tty", "linux", "stop_signal"]),
        (Information("kept verbatim, none has a meaning to us"), &["annotations"]),
        (NoMeaning("Windows"), &["windows"]),
    ]),
    ("ContainerFilter", &[
        (Honoured, &["id", "state", "pod_sandbox_id", "label_selector"]),
    ]),
    ("LinuxContainerResources", &[
        (Honoured, &["cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "oom_score_adj", "cpuset_cpus", "cpuset_mems", "hugepage_limits", "unified", "memory_swap_limit_in_bytes"]),
    ]),
    ("WindowsContainerResources", &[
        (NoMeaning("Windows"), &["cpu_shares", "cpu_count", "cpu_maximum", "memory_limit_in_bytes", "rootfs_size_in_bytes", "affinity_cpus"]),
    ]),
    ("ContainerStatsFilter", &[
        (Honoured, &["id", "pod_sandbox_id", "label_selector"]),
    ]),
    ("PodSandboxStatsFilter", &[
        (Unserved, &["id", "label_selector"]),
    ]),
    ("RuntimeConfig", &[
        (Honoured, &["network_config"]),
    ]),
    ("ImageFilter", &[
        (Honoured, &["image"]),
    ]),
    ("ImageSpec", &[
        (Honoured, &["image", "runtime_handler"]),
        (Information("kept verbatim, none has a meaning to us"), &["annotations"]),
        (Information("what the user wrote; shown in statuses"), &["user_specified_image"]),
        (NoMeaning("an answer's field"), &["image_ref"]),
    ]),
    ("AuthConfig", &[
        (Honoured, &["username", "password", "auth", "server_address", "identity_token", "registry_token"]),
    ]),
    ("PodSandboxMetadata", &[
        (Honoured, &["name", "uid", "namespace", "attempt"]),
    ]),
    ("DNSConfig", &[
        (Honoured, &["servers", "searches", "options"]),
    ]),
    ("PortMapping", &[
        (Honoured, &["protocol", "container_port", "host_port", "host_ip"]),
    ]),
    ("LinuxPodSandboxConfig", &[
        (Honoured, &["cgroup_parent", "security_context", "sysctls"]),
        (Information("the kubelet owns the pod's cgroup"), &["overhead", "resources"]),
    ]),
    ("WindowsPodSandboxConfig", &[
        (NoMeaning("Windows"), &["security_context"]),
    ]),
    ("PodSandboxStateValue", &[
        (Honoured, &["state"]),
    ]),
    ("ContainerMetadata", &[
        (Honoured, &["name", "attempt"]),
    ]),
    ("KeyValue", &[
        (Honoured, &["key", "value"]),
    ]),
    ("Mount", &[
        (Honoured, &["container_path", "host_path", "readonly", "propagation", "recursive_read_only", "mount_options", "uidMappings", "gidMappings", "image", "image_sub_path"]),
        (Refused("on a node with SELinux; without it the CRI has it ignored"), &["selinux_relabel"]),
    ]),
    ("Device", &[
        (Honoured, &["container_path", "host_path", "permissions"]),
    ]),
    ("LinuxContainerConfig", &[
        (Honoured, &["resources", "security_context"]),
    ]),
    ("WindowsContainerConfig", &[
        (NoMeaning("Windows"), &["resources", "security_context"]),
    ]),
    ("CDIDevice", &[
        (Honoured, &["name"]),
    ]),
    ("ContainerStateValue", &[
        (Honoured, &["state"]),
    ]),
    ("HugepageLimit", &[
        (Honoured, &["page_size", "limit"]),
    ]),
    ("WindowsCpuGroupAffinity", &[
        (NoMeaning("Windows"), &["cpu_mask", "cpu_group"]),
    ]),
    ("NetworkConfig", &[
        (Honoured, &["pod_cidr"]),
    ]),
    ("LinuxSandboxSecurityContext", &[
        (Honoured, &["namespace_options", "privileged"]),
        (Refused("on a node with SELinux; without it the CRI has it ignored"), &["selinux_options"]),
        (NoMeaning("checked; the pause process is ours and runs no code of the pod"), &["run_as_user", "run_as_group", "readonly_rootfs", "supplemental_groups", "supplemental_groups_policy", "seccomp", "apparmor", "seccomp_profile_path"]),
    ]),
    ("WindowsSandboxSecurityContext", &[
        (NoMeaning("Windows"), &["run_as_username", "credential_spec", "host_process", "namespace_options"]),
    ]),
    ("IDMapping", &[
        (Honoured, &["host_id", "container_id", "length"]),
    ]),
    ("LinuxContainerSecurityContext", &[
        (Honoured, &["capabilities", "privileged", "namespace_options", "run_as_user", "run_as_group", "run_as_username", "readonly_rootfs", "supplemental_groups", "supplemental_groups_policy", "no_new_privs", "masked_paths", "readonly_paths", "seccomp", "apparmor", "apparmor_profile", "seccomp_profile_path"]),
        (Refused("on a node with SELinux; without it the CRI has it ignored"), &["selinux_options"]),
    ]),
    ("WindowsContainerSecurityContext", &[
        (NoMeaning("Windows"), &["run_as_username", "credential_spec", "host_process"]),
    ]),
    ("NamespaceOption", &[
        (Honoured, &["network", "pid", "ipc", "target_id", "userns_options"]),
    ]),
    ("SELinuxOption", &[
        (Refused("on a node with SELinux; without it the CRI has it ignored"), &["user", "role", "type", "level"]),
    ]),
    ("Int64Value", &[
        (Honoured, &["value"]),
    ]),
    ("SecurityProfile", &[
        (Honoured, &["profile_type", "localhost_ref"]),
    ]),
    ("WindowsNamespaceOption", &[
        (NoMeaning("Windows"), &["network"]),
    ]),
    ("Capability", &[
        (Honoured, &["add_capabilities", "drop_capabilities", "add_ambient_capabilities"]),
    ]),
    ("UserNamespace", &[
        (Honoured, &["mode", "uids", "gids"]),
    ]),
];

/// The table of the wire: kind, owner, name, number, type, label.
const WIRE: &str = include_str!("../../../proto/tests/cri-v1-fields.tsv");

/// Names and types of each message's fields, and the request message of each RPC.
#[expect(clippy::type_complexity, reason = "two maps, read once")]
fn wire() -> (
    BTreeMap<&'static str, Vec<(&'static str, &'static str)>>,
    Vec<&'static str>,
) {
    let mut messages: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    let mut requests = Vec::new();
    for line in WIRE.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        match columns.as_slice() {
            ["message", name, ..] => {
                messages.entry(name).or_default();
            }
            ["field", owner, name, _, kind, ..] => {
                messages.entry(owner).or_default().push((name, kind));
            }
            ["rpc", _, _, _, types, ..] => requests.extend(types.split(" -> ").next()),
            _ => {}
        }
    }
    (messages, requests)
}

#[test]
fn every_field_that_can_be_in_a_request_has_a_disposition() {
    let (messages, requests) = wire();
    let mut reachable = BTreeSet::new();
    let mut queue = requests;
    while let Some(name) = queue.pop() {
        if reachable.insert(name) {
            let kinds = messages[name].iter().map(|(_, kind)| *kind);
            queue.extend(kinds.filter(|kind| messages.contains_key(kind)));
        }
    }
    let expected: BTreeSet<(&str, &str)> = reachable
        .iter()
        .flat_map(|message| {
            messages[message]
                .iter()
                .map(|(field, _)| (*message, *field))
        })
        .collect();
    let listed: Vec<(&str, &str)> = MESSAGES
        .iter()
        .flat_map(|(message, groups)| {
            let fields = groups.iter().flat_map(|(_, fields)| *fields);
            fields.map(|field| (*message, *field))
        })
        .collect();
    let unique: BTreeSet<_> = listed.iter().copied().collect();
    assert_eq!(unique.len(), listed.len(), "a field is listed twice");
    let missing: Vec<_> = expected.difference(&unique).collect();
    let surplus: Vec<_> = unique.difference(&expected).collect();
    assert!(missing.is_empty(), "no disposition: {missing:?}");
    assert!(surplus.is_empty(), "not in a request: {surplus:?}");
    assert_eq!(listed.len(), 244);
}

#[test]
fn what_is_not_plainly_honoured_says_why() {
    for (message, groups) in MESSAGES {
        for (disposition, fields) in *groups {
            let why = match disposition {
                Honoured | Unserved => continue,
                Refused(why) | Information(why) | NoMeaning(why) => why,
            };
            assert!(!why.is_empty(), "{message} {fields:?}");
        }
    }
}
