//! Ports of the node that lead to pods, from everywhere they can be asked for.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use bulkhead_cri_server::failure::Class;
use bulkhead_cri_server::network::{HostPort, Protocol};

use crate::node::{
    NODE4, NODE6, OUTSIDE4, OUTSIDE6, Server, ask, ip, ip_of, on_node, silent, tcp, udp_round_trip,
    write_sysctl,
};

#[test]
fn a_host_port_answers_on_every_address_from_everywhere_at_once() {
    on_node(|node| {
        // With bridge netfilter on, the kernel has no way to ::1 (`bridge.rs`).
        write_sysctl("bridge/bridge-nf-call-ip6tables", "0");
        let network = node.open();
        let other = node.attach(&network, "bbbb", &[]);
        let pod = node.attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        let _server = Server::start(&pod.namespace, "a", 80);

        let local = |address: &str| ask(ip_of(address), 8080).unwrap_or_default();
        assert_eq!(
            local("127.0.0.1"),
            "a 10.88.0.1",
            "the node's loopback is hidden"
        );
        assert_eq!(local("127.1.2.3"), "a 10.88.0.1");
        assert_eq!(local("::1"), "a fd00:10:88::1");
        assert_eq!(local(NODE4), format!("a {NODE4}"));
        assert_eq!(local(NODE6), format!("a {NODE6}"));
        assert_eq!(local("10.88.0.1"), "a 10.88.0.1");

        let outside = |address: &str| {
            node.outside
                .run(|| ask(ip_of(address), 8080))
                .unwrap_or_default()
        };
        assert_eq!(
            outside(NODE4),
            format!("a {OUTSIDE4}"),
            "clients keep their address"
        );
        assert_eq!(outside(NODE6), format!("a {OUTSIDE6}"));

        for asker in [&other, &pod] {
            for address in [NODE4, NODE6, "10.88.0.1", "fd00:10:88::1"] {
                let answer = asker.namespace.run(|| ask(ip_of(address), 8080));
                let answer = answer.unwrap_or_else(|| panic!("{} to {address}", asker.id));
                assert!(answer.starts_with("a "), "{answer}");
            }
        }
        node.detach(&network, "aaaa");
        assert!(silent(ip_of("127.0.0.1"), 8080));
        assert!(node.outside.run(|| silent(ip_of(NODE4), 8080)));
    });
}

#[test]
fn with_bridge_netfilter_a_host_port_answers_everywhere_but_on_ipv6_loopback() {
    on_node(|node| {
        write_sysctl("bridge/bridge-nf-call-iptables", "1");
        write_sysctl("bridge/bridge-nf-call-ip6tables", "1");
        let network = node.open();
        let other = node.attach(&network, "bbbb", &[]);
        let pod = node.attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        let _server = Server::start(&pod.namespace, "a", 80);
        for address in ["127.0.0.1", NODE4, NODE6] {
            assert!(ask(ip_of(address), 8080).is_some(), "{address}");
        }
        for asker in [&other.namespace, &pod.namespace, &node.outside] {
            for address in [NODE4, NODE6] {
                assert!(
                    asker.run(|| ask(ip_of(address), 8080)).is_some(),
                    "{address}"
                );
            }
        }
    });
}

#[test]
fn udp_host_ports_answer_too() {
    on_node(|node| {
        let network = node.open();
        let port = HostPort {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: None,
        };
        let pod = node.attach(&network, "aaaa", &[port]);
        let server = pod.namespace.run(|| UdpSocket::bind("[::]:53").unwrap());
        for address in ["127.0.0.1", NODE4, NODE6] {
            assert!(
                udp_round_trip(&server, ip_of(address), 5353).is_some(),
                "{address}"
            );
        }
        let seen = node
            .outside
            .run(|| udp_round_trip(&server, ip_of(NODE6), 5353))
            .unwrap();
        assert_eq!(seen.ip(), ip_of(OUTSIDE6));
    });
}

/// Threat M4: a client that never stops sending is not bound to the dead pod.
#[test]
fn a_udp_client_that_goes_on_reaches_the_next_pod_with_the_port() {
    on_node(|node| {
        let network = node.open();
        let port = HostPort {
            protocol: Protocol::Udp,
            ..tcp(None, 5353, 53)
        };
        let client = node
            .outside
            .run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
        client.send_to(b"before any pod", (NODE4, 5353)).unwrap();
        for id in ["aaaa", "bbbb"] {
            let pod = node.attach(&network, id, &[port]);
            let server = pod.namespace.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
            server
                .set_read_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            client.send_to(id.as_bytes(), (NODE4, 5353)).unwrap();
            let mut buffer = [0; 16];
            let length = server.recv(&mut buffer).unwrap_or_default();
            assert_eq!(&buffer[..length], id.as_bytes());
            node.detach(&network, id);
        }
    });
}

#[test]
fn a_host_port_on_one_address_is_not_exposed_wider() {
    on_node(|node| {
        let network = node.open();
        let ports = [tcp(Some("127.0.0.1"), 8081, 80), tcp(Some(NODE6), 8082, 80)];
        let pod = node.attach(&network, "aaaa", &ports);
        let _server = Server::start(&pod.namespace, "a", 80);
        assert!(ask(ip_of("127.0.0.1"), 8081).is_some());
        assert!(silent(ip_of("::1"), 8081));
        assert!(silent(ip_of(NODE4), 8081));
        assert!(node.outside.run(|| silent(ip_of(NODE4), 8081)));
        assert!(pod.namespace.run(|| silent(ip_of("10.88.0.1"), 8081)));
        assert!(node.outside.run(|| ask(ip_of(NODE6), 8082)).is_some());
        assert!(silent(ip_of("::1"), 8082));
        assert!(silent(ip_of(NODE4), 8082));
        // Another pod may have the same port of another address.
        let other = node.attach(&network, "bbbb", &[tcp(Some(NODE4), 8081, 80)]);
        let _server = Server::start(&other.namespace, "b", 80);
        assert_eq!(
            node.outside.run(|| ask(ip_of(NODE4), 8081)).unwrap(),
            format!("b {OUTSIDE4}")
        );
        assert_eq!(ask(ip_of("127.0.0.1"), 8081).unwrap(), "a 10.88.0.1");
    });
}

/// Threat M3, CVE-2020-8558: what listens on the node's loopback is for the node.
#[test]
fn host_ports_do_not_open_the_nodes_loopback_to_pods() {
    on_node(|node| {
        let network = node.open();
        let _secret = Server::start_at(
            &node.namespace,
            "secret",
            SocketAddr::new(ip_of("127.0.0.1"), 9000),
        );
        let read =
            || std::fs::read_to_string("/proc/sys/net/ipv4/conf/bulkhead0/route_localnet").unwrap();
        let pod = node.attach(&network, "aaaa", &[]);
        assert_eq!(read(), "0\n", "off while no port needs it");
        let _published = node.attach(&network, "bbbb", &[tcp(None, 8080, 80)]);
        assert_eq!(read(), "1\n");
        // A pod whose root has network administration sends packets to 127.0.0.1 out of eth0.
        pod.namespace.run(|| {
            write_sysctl("ipv4/conf/all/route_localnet", "1");
            ip("addr del 127.0.0.1/8 dev lo");
            ip("route add 127.0.0.1/32 via 10.88.0.1 dev eth0");
        });
        assert!(pod.namespace.run(|| silent(ip_of("127.0.0.1"), 9000)));
        // The trial is one: without the guard, and nobody to put it back, it gets through.
        drop(network);
        crate::node::output("nft", &["flush", "chain", "inet", "bulkhead", "guard"]);
        let unguarded = pod.namespace.run(|| ask(ip_of("127.0.0.1"), 9000));
        assert_eq!(
            unguarded.unwrap_or_default(),
            "secret 10.88.0.2",
            "the trial proves nothing"
        );
        let network = node.open();
        assert!(pod.namespace.run(|| silent(ip_of("127.0.0.1"), 9000)));
        node.detach(&network, "bbbb");
        assert_eq!(read(), "0\n");
    });
}

#[test]
fn a_port_that_is_taken_is_refused_by_the_name_of_its_holder() {
    on_node(|node| {
        let network = node.open();
        let _holder = node.attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        let before = node.picture();
        let refuse = |id: &str, ports: &[HostPort]| {
            let failure = node
                .try_attach(&network, id, ports)
                .map(|_| ())
                .unwrap_err();
            node.settle(&network);
            (failure.class(), failure.message().to_owned())
        };
        assert_eq!(
            refuse("bbbb", &[tcp(None, 8081, 80), tcp(Some(NODE4), 8080, 80)]),
            (
                Class::Precondition,
                format!("pod network: host port 8080/tcp on {NODE4} is already in use by pod aaaa")
            )
        );
        let listener = TcpListener::bind("127.0.0.1:8090").unwrap();
        assert_eq!(
            refuse("bbbb", &[tcp(None, 8090, 80)]),
            (
                Class::Precondition,
                "pod network: host port 8090/tcp on 0.0.0.0 is already in use by a process of the node"
                    .to_owned()
            )
        );
        let socket = UdpSocket::bind("[::]:8091").unwrap();
        let udp = HostPort {
            protocol: Protocol::Udp,
            ..tcp(Some(NODE6), 8091, 80)
        };
        assert!(refuse("bbbb", &[udp]).1.contains("8091/udp on 2001:db8::1"));
        let twice = refuse("bbbb", &[tcp(None, 8092, 80), tcp(None, 8092, 81)]);
        assert_eq!(twice.0, Class::Invalid);
        assert_eq!(node.picture(), before, "a refusal leaves nothing");
        assert_eq!(node.leases(), 1);
        drop((listener, socket));
        node.attach(&network, "bbbb", &[tcp(None, 8090, 80), udp]);
    });
}

#[test]
fn host_ports_are_refused_where_the_node_serves_none() {
    on_node(|node| {
        let mut settings = node.settings.clone();
        settings.host_ports = false;
        let network = bulkhead_cri_server::network::Network::open(settings).unwrap();
        let refused = node.try_attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        let failure = refused.map(|_| ()).unwrap_err();
        assert!(
            failure.message().contains("network.host-ports"),
            "{failure}"
        );
        node.attach(&network, "aaaa", &[]);
    });
}
