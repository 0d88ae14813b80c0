//! Pod sandboxes as the CRI shows them.

use bulkhead_proto::runtime::v1::{
    LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp, PodSandbox, PodSandboxNetworkStatus,
    PodSandboxState, PodSandboxStatus,
};

use crate::records::{PodRecord, PodState};

/// READY only while namespaces and network stand.
pub fn state(pod: &PodRecord) -> PodSandboxState {
    match pod.state {
        PodState::Ready => PodSandboxState::SandboxReady,
        PodState::Creating | PodState::NotReady | PodState::Removing => {
            PodSandboxState::SandboxNotready
        }
    }
}

/// The pod in a list.
pub fn item(pod: &PodRecord) -> PodSandbox {
    PodSandbox {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: state(pod).into(),
        created_at: pod.created_at,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.runtime_handler.clone(),
    }
}

/// The pod in detail.
pub fn status(pod: &PodRecord) -> PodSandboxStatus {
    PodSandboxStatus {
        id: pod.id.clone(),
        metadata: pod.config.metadata.clone(),
        state: state(pod).into(),
        created_at: pod.created_at,
        network: Some(network(pod)),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: Some(namespace_options(pod)),
            }),
        }),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.runtime_handler.clone(),
    }
}

fn namespace_options(pod: &PodRecord) -> NamespaceOption {
    pod.config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        // Zero is POD in each.
        .unwrap_or_default()
}

/// The first IPv4 address is the pod's, the others follow in order; none after the teardown.
fn network(pod: &PodRecord) -> PodSandboxNetworkStatus {
    let attached = pod.network.as_ref().filter(|_| pod.is_ready());
    let Some(attached) = attached else {
        return PodSandboxNetworkStatus::default();
    };
    PodSandboxNetworkStatus {
        ip: attached
            .primary()
            .map(|ip| ip.to_string())
            .unwrap_or_default(),
        additional_ips: attached
            .additional()
            .map(|ip| PodIp { ip: ip.to_string() })
            .collect(),
    }
}
