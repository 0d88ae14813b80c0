//! Host name, DNS and host ports of a pod. Pure.

use std::net::IpAddr;

use bulkhead_proto::runtime::v1;
use k8s_openapi::api::core::v1::{ContainerPort, PodSpec};

use super::{Checker, Node};

/// The pod's host name: as asked, else its own name cut to what a host name may have, as the
/// kubelet cuts it (`pkg/kubelet/util`, truncatePodHostnameIfNeeded).
pub(super) fn hostname(
    spec: &PodSpec,
    name: &str,
    node: &Node,
    checker: &mut Checker<'_>,
) -> String {
    if spec.host_network == Some(true) {
        return node.name.clone();
    }
    if let Some(hostname) = &spec.hostname {
        if !super::is_name(hostname, 63, false) {
            checker.wrong(
                "spec.hostname",
                "has to be at most 63 lower-case letters, digits and -",
            );
        }
        return hostname.clone();
    }
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// There is no cluster DNS here: ClusterFirst is the node's own, as it is for the kubelet where
/// none is configured. Nothing to say leaves the node's file as it is.
pub(super) fn dns(spec: &PodSpec, node: &Node, checker: &mut Checker<'_>) -> Option<v1::DnsConfig> {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let inherit = checker.choice(
        "spec.dnsPolicy",
        policy,
        &[
            ("ClusterFirst", true),
            ("ClusterFirstWithHostNet", true),
            ("Default", true),
            ("None", false),
        ],
    )?;
    let Some(given) = &spec.dns_config else {
        if !inherit {
            checker.wrong(
                "spec.dnsPolicy",
                "is None: spec.dnsConfig.nameservers is needed",
            );
        }
        return None;
    };
    let mut config = if inherit {
        node.resolv.clone()
    } else {
        v1::DnsConfig::default()
    };
    for (index, server) in given.nameservers.iter().flatten().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            let path = format!("spec.dnsConfig.nameservers[{index}]");
            checker.wrong(&path, format!("is {server:?}, no address"));
        }
        push_new(&mut config.servers, server);
    }
    for search in given.searches.iter().flatten() {
        push_new(&mut config.searches, search);
    }
    for (index, option) in given.options.iter().flatten().enumerate() {
        let Some(name) = option.name.as_deref().filter(|name| !name.is_empty()) else {
            checker.wrong(&format!("spec.dnsConfig.options[{index}]"), "has no name");
            continue;
        };
        // The pod's own option goes before the node's of that name.
        config
            .options
            .retain(|known| known.split(':').next() != Some(name));
        config.options.push(match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name.to_owned(),
        });
    }
    if config.servers.is_empty() {
        checker.wrong("spec.dnsConfig", "leaves the pod without a name server");
    }
    Some(config)
}

fn push_new(list: &mut Vec<String>, text: &str) {
    if !list.iter().any(|known| known == text) {
        list.push(text.to_owned());
    }
}

/// Host ports of all containers.
pub(super) fn ports(spec: &PodSpec, checker: &mut Checker<'_>) -> Vec<v1::PortMapping> {
    let mut mappings = Vec::new();
    let host_network = spec.host_network == Some(true);
    let inits = spec
        .init_containers
        .iter()
        .flatten()
        .map(|c| ("spec.initContainers", c));
    let mains = spec.containers.iter().map(|c| ("spec.containers", c));
    let mut index = [0_usize; 2];
    for (list, container) in inits.chain(mains) {
        let main = usize::from(list == "spec.containers");
        for (number, port) in container.ports.iter().flatten().enumerate() {
            let path = format!("{list}[{}].ports[{number}]", index[main]);
            if let Some(mapping) = mapping(port, host_network, &path, checker) {
                mappings.push(mapping);
            }
        }
        index[main] += 1;
    }
    mappings
}

fn mapping(
    port: &ContainerPort,
    host_network: bool,
    path: &str,
    checker: &mut Checker<'_>,
) -> Option<v1::PortMapping> {
    let protocol = checker.choice(
        &format!("{path}.protocol"),
        port.protocol.as_deref().unwrap_or("TCP"),
        &[
            ("TCP", v1::Protocol::Tcp),
            ("UDP", v1::Protocol::Udp),
            ("SCTP", v1::Protocol::Sctp),
        ],
    )?;
    let mut check = |field: &str, value: i32| {
        if !(1..=65_535).contains(&value) {
            checker.wrong(
                &format!("{path}.{field}"),
                format!("is {value}: 1 to 65535 is needed"),
            );
        }
    };
    check("containerPort", port.container_port);
    let host_port = port.host_port?;
    check("hostPort", host_port);
    if let Some(ip) = port
        .host_ip
        .as_deref()
        .filter(|ip| ip.parse::<IpAddr>().is_err())
    {
        checker.wrong(&format!("{path}.hostIP"), format!("is {ip:?}, no address"));
    }
    if host_network {
        if host_port != port.container_port {
            checker.wrong(
                &format!("{path}.hostPort"),
                "has to equal containerPort with spec.hostNetwork",
            );
        }
        return None;
    }
    Some(v1::PortMapping {
        protocol: protocol.into(),
        container_port: port.container_port,
        host_port,
        host_ip: port.host_ip.clone().unwrap_or_default(),
    })
}
