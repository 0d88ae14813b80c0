//! `securityContext` of pod and container. Pure.
//!
//! Where the manifest says nothing about seccomp, play asks for the default profile, as a kubelet
//! with `seccompDefault` does: on one's own machine nothing is gained by less.

use std::collections::BTreeMap;

use bulkhead_proto::runtime::v1;
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, PodSecurityContext, PodSpec, SELinuxOptions, SeccompProfile,
    SecurityContext,
};

use super::Checker;
use v1::security_profile::ProfileType;

/// What the kubelet hides from a container whose procMount is Default (`pkg/securitycontext`).
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// And what it makes read-only.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

pub(super) fn namespaces(spec: &PodSpec) -> v1::NamespaceOption {
    let mode = |host: Option<bool>, else_: v1::NamespaceMode| {
        i32::from(if host == Some(true) {
            v1::NamespaceMode::Node
        } else {
            else_
        })
    };
    let pid = if spec.share_process_namespace == Some(true) {
        v1::NamespaceMode::Pod
    } else {
        v1::NamespaceMode::Container
    };
    v1::NamespaceOption {
        network: mode(spec.host_network, v1::NamespaceMode::Pod),
        pid: mode(spec.host_pid, pid),
        ipc: mode(spec.host_ipc, v1::NamespaceMode::Pod),
        ..Default::default()
    }
}

pub(super) fn sandbox(
    spec: &PodSpec,
    checker: &mut Checker<'_>,
) -> v1::LinuxSandboxSecurityContext {
    if spec.host_pid == Some(true) && spec.share_process_namespace == Some(true) {
        checker.wrong("spec.shareProcessNamespace", "contradicts spec.hostPID");
    }
    let default = PodSecurityContext::default();
    let context = spec.security_context.as_ref().unwrap_or(&default);
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let privileged = all
        .filter_map(|container| container.security_context.as_ref())
        .any(|context| context.privileged == Some(true));
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec)),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        run_as_user: context.run_as_user.map(id),
        run_as_group: context.run_as_user.and(context.run_as_group).map(id),
        supplemental_groups: groups(context),
        supplemental_groups_policy: groups_policy(context, checker),
        privileged,
        seccomp: Some(runtime_default()),
        ..Default::default()
    }
}

pub(super) fn sysctls(spec: &PodSpec) -> BTreeMap<String, String> {
    let sysctls = spec
        .security_context
        .iter()
        .flat_map(|c| c.sysctls.iter().flatten());
    sysctls
        .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
        .collect()
}

/// A container's security, and whether it must not run as root.
pub(super) fn container(
    spec: &PodSpec,
    container: &Container,
    path: &str,
    checker: &mut Checker<'_>,
) -> (v1::LinuxContainerSecurityContext, bool) {
    let pod_default = PodSecurityContext::default();
    let pod = spec.security_context.as_ref().unwrap_or(&pod_default);
    let own_default = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&own_default);
    let path = format!("{path}.securityContext");
    let privileged = own.privileged == Some(true);
    let user = own.run_as_user.or(pod.run_as_user);
    let group = own.run_as_group.or(pod.run_as_group);
    for (field, value) in [("runAsUser", user), ("runAsGroup", group)] {
        if value.is_some_and(|id| u32::try_from(id).is_err()) {
            checker.wrong(&format!("{path}.{field}"), "is no id");
        }
    }
    let non_root = own.run_as_non_root.or(pod.run_as_non_root) == Some(true);
    if non_root && user == Some(0) {
        checker.wrong(&format!("{path}.runAsNonRoot"), "contradicts runAsUser: 0");
    }
    if privileged && own.allow_privilege_escalation == Some(false) {
        checker.wrong(
            &format!("{path}.allowPrivilegeEscalation"),
            "contradicts privileged: true",
        );
    }
    let unmasked = checker
        .choice(
            &format!("{path}.procMount"),
            own.proc_mount.as_deref().unwrap_or("Default"),
            &[("Default", false), ("Unmasked", true)],
        )
        .unwrap_or(false);
    let paths = |list: &[&str]| match privileged || unmasked {
        true => Vec::new(),
        false => list.iter().map(|&path| path.to_owned()).collect(),
    };
    let seccomp = match own
        .seccomp_profile
        .as_ref()
        .or(pod.seccomp_profile.as_ref())
    {
        _ if privileged => profile(ProfileType::Unconfined, String::new()),
        Some(given) => seccomp(given, &format!("{path}.seccompProfile"), checker),
        None => runtime_default(),
    };
    let apparmor = own
        .app_armor_profile
        .as_ref()
        .or(pod.app_armor_profile.as_ref());
    let context = v1::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|given| v1::Capability {
            add_capabilities: given.add.clone().unwrap_or_default(),
            drop_capabilities: given.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(spec)),
        selinux_options: own
            .se_linux_options
            .as_ref()
            .or(pod.se_linux_options.as_ref())
            .map(selinux),
        run_as_user: user.map(id),
        run_as_group: group.map(id),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod, checker),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp),
        apparmor: apparmor
            .map(|given| self::apparmor(given, &format!("{path}.appArmorProfile"), checker)),
        ..Default::default()
    };
    (context, non_root)
}

fn id(value: i64) -> v1::Int64Value {
    v1::Int64Value { value }
}

/// Supplemental groups with the volumes' group, as the kubelet joins them.
fn groups(context: &PodSecurityContext) -> Vec<i64> {
    let given = context.supplemental_groups.iter().flatten();
    given.chain(&context.fs_group).copied().collect()
}

fn groups_policy(context: &PodSecurityContext, checker: &mut Checker<'_>) -> i32 {
    let given = context
        .supplemental_groups_policy
        .as_deref()
        .unwrap_or("Merge");
    checker
        .choice(
            "spec.securityContext.supplementalGroupsPolicy",
            given,
            &[
                ("Merge", v1::SupplementalGroupsPolicy::Merge),
                ("Strict", v1::SupplementalGroupsPolicy::Strict),
            ],
        )
        .unwrap_or_default()
        .into()
}

fn selinux(given: &SELinuxOptions) -> v1::SeLinuxOption {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    v1::SeLinuxOption {
        user: text(&given.user),
        role: text(&given.role),
        r#type: text(&given.type_),
        level: text(&given.level),
    }
}

fn profile(kind: ProfileType, localhost_ref: String) -> v1::SecurityProfile {
    v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref,
    }
}

fn runtime_default() -> v1::SecurityProfile {
    profile(ProfileType::RuntimeDefault, String::new())
}

const TYPES: [(&str, ProfileType); 3] = [
    ("RuntimeDefault", ProfileType::RuntimeDefault),
    ("Unconfined", ProfileType::Unconfined),
    ("Localhost", ProfileType::Localhost),
];

fn seccomp(given: &SeccompProfile, path: &str, checker: &mut Checker<'_>) -> v1::SecurityProfile {
    let localhost = given.localhost_profile.clone();
    let profile = typed(&given.type_, localhost, path, checker);
    // The kubelet puts its own folder in front of a relative path; here there is none.
    if profile.profile_type() == ProfileType::Localhost && !profile.localhost_ref.starts_with('/') {
        checker.wrong(
            &format!("{path}.localhostProfile"),
            "has to be an absolute path here",
        );
    }
    profile
}

fn apparmor(given: &AppArmorProfile, path: &str, checker: &mut Checker<'_>) -> v1::SecurityProfile {
    typed(&given.type_, given.localhost_profile.clone(), path, checker)
}

fn typed(
    kind: &str,
    localhost: Option<String>,
    path: &str,
    checker: &mut Checker<'_>,
) -> v1::SecurityProfile {
    let kind = checker
        .choice(&format!("{path}.type"), kind, &TYPES)
        .unwrap_or_default();
    if (kind == ProfileType::Localhost) != localhost.is_some() {
        checker.wrong(
            path,
            "needs localhostProfile with type Localhost, and only then",
        );
    }
    profile(kind, localhost.unwrap_or_default())
}
