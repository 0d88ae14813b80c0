use super::*;
use crate::request::namespaces::Pid;

fn config() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "u1".into(),
            namespace: "shop".into(),
            attempt: 2,
        }),
        ..Default::default()
    }
}

fn context(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
}

fn node_network(config: &mut v1::PodSandboxConfig) {
    context(config).namespace_options = Some(v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        ..Default::default()
    });
}

#[test]
fn the_least_request_has_every_default() {
    let parsed = parse(&config(), "").unwrap();
    assert_eq!(parsed.key.name, "web");
    assert_eq!(parsed.key.attempt, 2);
    assert_eq!(parsed.hostname, None);
    assert_eq!(parsed.dns, None);
    assert_eq!(parsed.cgroup_parent, None);
    assert_eq!(parsed.namespaces.network, Sharing::Pod);
    assert_eq!(parsed.namespaces.pid, Pid::Pod);
    assert!(!parsed.privileged && parsed.ports.is_empty() && parsed.sysctls.is_empty());
}

#[test]
fn what_can_not_be_meant_is_refused_with_its_field() {
    type Edit = fn(&mut v1::PodSandboxConfig);
    let cases: &[(&str, Edit)] = &[
        ("metadata", |c| c.metadata = None),
        ("metadata.name", |c| {
            c.metadata.as_mut().unwrap().name.clear()
        }),
        ("metadata.name", |c| {
            c.metadata.as_mut().unwrap().name = "x".repeat(65_536)
        }),
        ("metadata.namespace", |c| {
            c.metadata.as_mut().unwrap().namespace = "a\0b".into()
        }),
        ("metadata.uid", |c| {
            c.metadata.as_mut().unwrap().uid = "a\nb".into()
        }),
        ("hostname", |c| c.hostname = "h".repeat(65)),
        ("hostname", |c| c.hostname = "a\n127.0.0.1 evil".into()),
        ("hostname", |c| c.hostname = "a b".into()),
        ("hostname", |c| c.hostname = "a:b".into()),
        ("log_directory", |c| c.log_directory = "logs".into()),
        ("log_directory", |c| {
            c.log_directory = "/var/log/../../etc".into()
        }),
        ("log_directory", |c| c.log_directory = "/a\0".into()),
        ("dns_config.servers[0]", |c| {
            c.dns_config = Some(v1::DnsConfig {
                servers: vec!["10.0.0.1\nnameserver 6.6.6.6".into()],
                ..Default::default()
            });
        }),
        ("dns_config.servers", |c| {
            c.dns_config = Some(v1::DnsConfig {
                servers: vec!["dns.example".into()],
                ..Default::default()
            });
        }),
        ("dns_config.options", |c| {
            c.dns_config = Some(v1::DnsConfig {
                options: vec!["ndots:5 attempts:9".into()],
                ..Default::default()
            });
        }),
        ("dns_config.searches[0]", |c| {
            c.dns_config = Some(v1::DnsConfig {
                searches: vec!["a\r".into()],
                ..Default::default()
            });
        }),
        ("port_mappings[0].protocol", |c| {
            c.port_mappings = vec![v1::PortMapping {
                protocol: 3,
                ..Default::default()
            }];
        }),
        ("port_mappings[0].host_port", |c| {
            c.port_mappings = vec![v1::PortMapping {
                host_port: 65_536,
                container_port: 1,
                ..Default::default()
            }];
        }),
        ("port_mappings[0].container_port", |c| {
            c.port_mappings = vec![v1::PortMapping {
                host_port: 80,
                container_port: 0,
                ..Default::default()
            }];
        }),
        ("port_mappings[0].host_ip", |c| {
            c.port_mappings = vec![v1::PortMapping {
                host_ip: "127.0.0.1;drop".into(),
                ..Default::default()
            }];
        }),
        ("linux.cgroup_parent", |c| {
            c.linux.get_or_insert_default().cgroup_parent = "../../x".into();
        }),
        ("linux.cgroup_parent", |c| {
            c.linux.get_or_insert_default().cgroup_parent = "/".into();
        }),
        ("linux.cgroup_parent", |c| {
            c.linux.get_or_insert_default().cgroup_parent = "a.slice\n[Service]".into();
        }),
        ("linux.cgroup_parent", |c| {
            c.linux.get_or_insert_default().cgroup_parent = "a b.slice".into();
        }),
        ("linux.sysctls[\"vm.swappiness\"]", |c| {
            c.linux
                .get_or_insert_default()
                .sysctls
                .insert("vm.swappiness".into(), "1".into());
        }),
        ("linux.sysctls[\"net.core.somaxconn\"]", |c| {
            node_network(c);
            c.linux
                .get_or_insert_default()
                .sysctls
                .insert("net.core.somaxconn".into(), "1".into());
        }),
        ("linux.security_context.run_as_group", |c| {
            context(c).run_as_group = Some(v1::Int64Value { value: 1 });
        }),
        ("linux.security_context.run_as_user", |c| {
            context(c).run_as_user = Some(v1::Int64Value { value: -1 });
        }),
        ("linux.security_context.seccomp", |c| {
            context(c).seccomp = Some(v1::SecurityProfile {
                profile_type: 2,
                localhost_ref: "relative.json".into(),
            });
        }),
        ("linux.resources.cpu_period", |c| {
            c.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
                cpu_period: -1,
                ..Default::default()
            });
        }),
        ("labels", |c| {
            c.labels.insert("a".into(), "x".repeat(2 << 20));
        }),
    ];
    for (field, edit) in cases {
        let mut given = config();
        edit(&mut given);
        let failure = parse(&given, "").expect_err(field);
        assert!(
            failure.message().starts_with(&format!("{field}: ")),
            "{field}: {failure}"
        );
        assert_eq!(failure.class(), crate::failure::Class::Invalid);
    }
    assert!(parse(&config(), "a\nb").is_err());
}

#[test]
fn host_ports_of_zero_and_below_mean_none() {
    let mut given = config();
    for (host_port, protocol) in [(0, 0), (-1, 0), (8080, 1), (9090, 2)] {
        given.port_mappings.push(v1::PortMapping {
            protocol,
            container_port: 80,
            host_port,
            host_ip: "::1".into(),
        });
    }
    let ports = parse(&given, "").unwrap().ports;
    assert_eq!(ports.len(), 2);
    assert_eq!(ports[0].host_port, 8080);
    assert_eq!(ports[0].protocol, Protocol::Udp);
    assert_eq!(ports[0].host_ip, "::1".parse().ok());
    assert_eq!(ports[1].protocol, Protocol::Sctp);
}

#[test]
fn the_node_s_network_brings_the_node_s_host_name() {
    let mut given = config();
    given.hostname = "web".into();
    assert_eq!(parse(&given, "").unwrap().hostname.as_deref(), Some("web"));
    node_network(&mut given);
    assert_eq!(parse(&given, "").unwrap().hostname, None);
}

#[test]
fn resolv_conf_is_written_search_first() {
    let dns = Dns {
        servers: vec!["10.0.0.10".into(), "fe80::1%eth0".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into()],
    };
    assert_eq!(
        dns.render(),
        "search a.example b.example\nnameserver 10.0.0.10\nnameserver fe80::1%eth0\noptions ndots:5\n"
    );
    assert_eq!(Dns::default().render(), "");
}

#[test]
fn cgroup_parents_of_both_drivers_are_taken_as_they_are() {
    for parent in [
        "/kubepods/besteffort/pod1-2",
        "kubepods",
        "kubepods-besteffort-pod1_2.slice",
        "/kubepods.slice/kubepods-pod1.slice",
        "a\\x2db.slice",
    ] {
        let mut given = config();
        given.linux.get_or_insert_default().cgroup_parent = parent.to_owned();
        assert_eq!(
            parse(&given, "").unwrap().cgroup_parent.as_deref(),
            Some(parent)
        );
    }
}
