//! A pod's namespaces and sysctls.

use std::collections::BTreeMap;
use std::path::Path;

use bulkhead_runtime::monitor::wire::{CreatePod, NamespaceMode, PidMode};

use crate::request::SandboxRequest;
use crate::request::namespaces::{Pid, Sharing};

/// The size of a pod's `/dev/shm`, which its containers share: Docker's, and so everybody's.
const SHM_SIZE: u64 = 64 << 20;

/// Groups that may ping; all of them can't be said where most are not mapped (EINVAL).
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// Sysctls of a pod with its own network that asks for nothing else: ports below 1024 and ping
/// need no capability, since both are the pod's alone (containerd's defaults).
const NETWORK_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    (PING_GROUPS, "0 2147483647"),
];

/// What the pod with this id and state directory is made of.
pub fn plan(request: &SandboxRequest, id: &str, directory: &Path, cgroup: &str) -> CreatePod {
    let namespaces = &request.namespaces;
    let network = mode(namespaces.network);
    CreatePod {
        id: id.to_owned(),
        directory: directory.to_path_buf(),
        hostname: request.hostname.clone(),
        network,
        ipc: mode(namespaces.ipc),
        // The node's network brings the node's host name.
        uts: network,
        pid: match namespaces.pid {
            Pid::Pod => PidMode::Pod,
            Pid::Node => PidMode::Node,
            // `Target` is for containers only; the request was checked for it.
            Pid::Container | Pid::Target(_) => PidMode::Container,
        },
        user: namespaces.user.clone(),
        sysctls: sysctls(request),
        shm_size: (namespaces.ipc == Sharing::Pod).then_some(SHM_SIZE),
        cgroup: cgroup.to_owned(),
    }
}

fn mode(sharing: Sharing) -> NamespaceMode {
    match sharing {
        Sharing::Pod => NamespaceMode::New,
        Sharing::Node => NamespaceMode::Host,
    }
}

fn sysctls(request: &SandboxRequest) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    if request.namespaces.network == Sharing::Pod {
        for (name, value) in NETWORK_SYSCTLS {
            if name == PING_GROUPS && request.namespaces.user.is_some() {
                continue;
            }
            sysctls.insert(name.to_owned(), value.to_owned());
        }
    }
    sysctls.extend(request.sysctls.clone());
    sysctls
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::runtime::v1;

    use super::*;
    use crate::request::sandbox::parse;

    fn request(network: i32, pid: i32, ipc: i32) -> SandboxRequest {
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                ..Default::default()
            }),
            hostname: "web".into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        network,
                        pid,
                        ipc,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        parse(&config, "").unwrap()
    }

    #[test]
    fn namespaces_follow_the_request_and_the_host_name_the_network() {
        use NamespaceMode::{Host, New};
        for ((network, pid, ipc), expected, name) in [
            ((0, 0, 0), (New, PidMode::Pod, New, New), Some("web")),
            ((0, 1, 2), (New, PidMode::Container, Host, New), Some("web")),
            ((2, 2, 0), (Host, PidMode::Node, New, Host), None),
        ] {
            let plan = plan(
                &request(network, pid, ipc),
                "p1",
                Path::new("/run/p1"),
                "/c/p1",
            );
            assert_eq!((plan.network, plan.pid, plan.ipc, plan.uts), expected);
            assert_eq!(plan.hostname.as_deref(), name);
            assert_eq!(plan.shm_size.is_some(), plan.ipc == New);
            assert_eq!(plan.sysctls.len(), if plan.network == New { 2 } else { 0 });
        }
    }

    #[test]
    fn a_user_namespace_is_handed_on_and_has_no_range_of_all_groups() {
        let range = bulkhead_runtime::idmap::IdRange {
            inside: 0,
            outside: 100_000,
            length: 65_536,
        };
        let mut asked = request(0, 1, 0);
        asked.namespaces.user = Some(bulkhead_runtime::idmap::IdMaps {
            uids: vec![range],
            gids: vec![range],
        });
        let plan = plan(&asked, "p1", Path::new("/run/p1"), "/c/p1");
        assert_eq!(plan.user, asked.namespaces.user);
        let names: Vec<_> = plan.sysctls.into_keys().collect();
        assert_eq!(names, ["net.ipv4.ip_unprivileged_port_start"]);
    }

    #[test]
    fn asked_sysctls_go_over_the_defaults() {
        let mut asked = request(0, 0, 0);
        asked.sysctls = BTreeMap::from([
            ("net.ipv4.ip_unprivileged_port_start".into(), "1024".into()),
            ("kernel.shmmax".into(), "1".into()),
        ]);
        let plan = plan(&asked, "p1", Path::new("/run/p1"), "/c/p1");
        assert_eq!(
            plan.sysctls.into_iter().collect::<Vec<_>>(),
            [
                ("kernel.shmmax".to_owned(), "1".to_owned()),
                (
                    "net.ipv4.ip_unprivileged_port_start".to_owned(),
                    "1024".to_owned()
                ),
                (
                    "net.ipv4.ping_group_range".to_owned(),
                    "0 2147483647".to_owned()
                ),
            ]
        );
    }
}
