//! Requests as a kubelet would fill them, with what a test changes left to struct update syntax.

use bulkhead_proto::runtime::v1 as cri;

use super::Node;

/// A pod with its own network, named `name`, logging below the node's scratch folder.
pub fn pod(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let uid = format!("uid-{name}");
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.clone(),
            namespace: "conformance".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: node.root().join("logs").join(uid).display().to_string(),
        labels: labels(&[("io.kubernetes.pod.name", name)]),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: "/bulkhead-conformance".to_owned(),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(cri::NamespaceMode::Pod)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same on the node's network: cheaper, and enough where the network is not the subject.
pub fn host_network_pod(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let mut config = pod(node, name);
    config.hostname.clear();
    if let Some(context) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        context.namespace_options = Some(namespaces(cri::NamespaceMode::Node));
    }
    config
}

/// Namespace options with this network mode; PID per container, IPC per pod.
pub fn namespaces(network: cri::NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// A container of `image` that runs `command` (the image's own if empty), log file `name/0.log`.
pub fn container(name: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(cri::ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}/0.log"),
        labels: labels(&[("io.kubernetes.container.name", name)]),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(context(cri::NamespaceMode::Pod)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The container's security context for a pod with this network mode.
pub fn context(network: cri::NamespaceMode) -> cri::LinuxContainerSecurityContext {
    cri::LinuxContainerSecurityContext {
        namespace_options: Some(namespaces(network)),
        ..Default::default()
    }
}

/// The container's security context, to change.
pub fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default()
}

/// A bind mount of a host path.
pub fn mount(host: &std::path::Path, container: &str, readonly: bool) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        readonly,
        ..Default::default()
    }
}

/// Pairs as a label or annotation map.
pub fn labels(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// The container's config with the namespace modes of its pod, as the kubelet sends them; a PID
/// mode the test has set itself stays.
pub fn fitting(config: &cri::ContainerConfig, pod: &cri::PodSandboxConfig) -> cri::ContainerConfig {
    let mut config = config.clone();
    let context = pod
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    if let Some(options) = context.and_then(|context| context.namespace_options.as_ref()) {
        let own = security(&mut config)
            .namespace_options
            .get_or_insert_default();
        own.network = options.network;
        own.ipc = options.ipc;
        if options.pid != i32::from(cri::NamespaceMode::Container) {
            own.pid = options.pid;
        }
    }
    config
}
