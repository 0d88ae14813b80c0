//! Packets between pods, the node and the outside.

use bulkhead_cri_server::network::interface_stats;
use std::os::fd::AsFd as _;

use crate::node::{NODE4, NODE6, OUTSIDE4, OUTSIDE6, Server, ask, ip, ip_of, on_node};

#[test]
fn pods_reach_each_other_and_the_node_reaches_them_as_soon_as_they_are_attached() {
    on_node(|node| {
        let network = node.open();
        let a = node.attach(&network, "aaaa", &[]);
        let _server = Server::start(&a.namespace, "a", 80);
        assert_eq!(ask(a.v4(), 80).unwrap(), "a 10.88.0.1");
        assert_eq!(ask(a.v6(), 80).unwrap(), "a fd00:10:88::1");
        let b = node.attach(&network, "bbbb", &[]);
        assert_eq!(
            b.namespace.run(|| ask(a.v4(), 80)).unwrap(),
            format!("a {}", b.v4())
        );
        assert_eq!(
            b.namespace.run(|| ask(a.v6(), 80)).unwrap(),
            format!("a {}", b.v6())
        );
        assert_eq!(a.attachment.addresses[0].to_string(), "10.88.0.2/16");
        assert_eq!(a.attachment.addresses[1].to_string(), "fd00:10:88::2/64");
        assert_eq!(a.attachment.primary(), Some(a.v4()));
    });
}

#[test]
fn a_pods_loopback_is_up_even_without_a_network() {
    on_node(|node| {
        let network = node.open();
        let pod = node.attach(&network, "aaaa", &[]);
        let _server = Server::start(&pod.namespace, "a", 80);
        assert_eq!(
            pod.namespace.run(|| ask(ip_of("127.0.0.1"), 80)).unwrap(),
            "a 127.0.0.1"
        );
        assert_eq!(
            pod.namespace.run(|| ask(ip_of("::1"), 80)).unwrap(),
            "a ::1"
        );
        let bare = crate::node::Namespace::new();
        node.runtime
            .block_on(network.loopback_up(bare.0.try_clone().unwrap()))
            .unwrap();
        let _server = Server::start(&bare, "bare", 80);
        assert_eq!(
            bare.run(|| ask(ip_of("127.0.0.1"), 80)).unwrap(),
            "bare 127.0.0.1"
        );
    });
}

#[test]
fn the_outside_sees_the_nodes_address_unless_told_not_to() {
    on_node(|node| {
        let _outside = Server::start(&node.outside, "outside", 80);
        let network = node.open();
        let a = node.attach(&network, "aaaa", &[]);
        let from_pod = |address: &str| a.namespace.run(|| ask(ip_of(address), 80)).unwrap();
        assert_eq!(from_pod(OUTSIDE4), format!("outside {NODE4}"));
        assert_eq!(from_pod(OUTSIDE6), format!("outside {NODE6}"));
        drop(network);

        let mut settings = node.settings.clone();
        settings.unmasqueraded = vec!["192.0.2.0/25".parse().unwrap()];
        let _network = bulkhead_cri_server::network::Network::open(settings).unwrap();
        node.outside
            .run(|| ip(&format!("route add 10.88.0.0/16 via {NODE4}")));
        assert_eq!(from_pod(OUTSIDE4), format!("outside {}", a.v4()));
        assert_eq!(from_pod(OUTSIDE6), format!("outside {NODE6}"));
    });
}

#[test]
fn router_advertisements_are_not_believed_and_addresses_are_not_probed() {
    on_node(|node| {
        let network = node.open();
        let a = node.attach(&network, "aaaa", &[]);
        let read = |path: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/eth0/{path}");
            a.namespace.run(|| std::fs::read_to_string(path).unwrap())
        };
        assert_eq!(read("accept_ra"), "0\n");
        assert_eq!(read("accept_dad"), "0\n");
        let addresses = a
            .namespace
            .run(|| crate::node::output("ip", &["-6", "addr"]));
        assert!(!addresses.contains("tentative"), "{addresses}");
    });
}

#[test]
fn a_pod_with_ipv6_disabled_gets_ipv4_only() {
    on_node(|node| {
        let network = node.open();
        let namespace = crate::node::Namespace::new();
        namespace.run(|| crate::node::write_sysctl("ipv6/conf/all/disable_ipv6", "1"));
        let request = bulkhead_cri_server::network::AttachRequest {
            pod_id: "aaaa".to_owned(),
            netns: namespace.0.try_clone().unwrap(),
            host_ports: vec![crate::node::tcp(None, 8080, 80)],
        };
        let attachment = node.runtime.block_on(network.attach(request)).unwrap();
        assert_eq!(attachment.addresses.len(), 1);
        assert!(attachment.addresses[0].is_ipv4());
    });
}

#[test]
fn counters_of_a_pods_interfaces_are_read_from_outside_it() {
    on_node(|node| {
        let network = node.open();
        let a = node.attach(&network, "aaaa", &[]);
        let _server = Server::start(&a.namespace, "a", 80);
        ask(a.v4(), 80).unwrap();
        let stats = interface_stats(a.namespace.0.as_fd()).unwrap();
        assert_eq!(stats.len(), 1);
        assert_eq!(stats[0].name, "eth0");
        assert!(
            stats[0].receive.packets >= 4 && stats[0].receive.bytes > 200,
            "{stats:?}"
        );
        assert!(stats[0].transmit.packets >= 4, "{stats:?}");
    });
}

#[test]
fn the_mtu_is_that_of_the_nodes_default_route_unless_set() {
    on_node(|node| {
        let mtu = |pod: &crate::node::Pod| {
            pod.namespace
                .run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu").unwrap())
        };
        ip("link set up0 mtu 1400");
        ip(&format!("route add default via {OUTSIDE4}"));
        let network = node.open();
        assert_eq!(mtu(&node.attach(&network, "aaaa", &[])), "1400\n");
        drop(network);
        let mut settings = node.settings.clone();
        settings.mtu = Some(1300);
        let network = bulkhead_cri_server::network::Network::open(settings).unwrap();
        assert_eq!(mtu(&node.attach(&network, "bbbb", &[])), "1300\n");
    });
}

#[test]
fn a_new_pod_cidr_serves_new_pods_and_leaves_running_ones_connected() {
    on_node(|node| {
        let network = node.open();
        let old = node.attach(&network, "aaaa", &[]);
        let _server = Server::start(&old.namespace, "old", 80);
        let update = |text: &str| node.runtime.block_on(network.update_pod_cidr(text));
        update("").unwrap();
        update("10.213.7.0/24").unwrap();
        update("10.213.7.0/24").unwrap();
        assert!(update("10.213.7.0").is_err());
        let new = node.attach(&network, "bbbb", &[]);
        assert_eq!(new.attachment.addresses.len(), 1);
        assert_eq!(new.v4().to_string(), "10.213.7.2");
        assert_eq!(ask(old.v6(), 80).unwrap(), "old fd00:10:88::1");
        assert_eq!(
            new.namespace.run(|| ask(old.v4(), 80)).unwrap(),
            "old 10.213.7.2"
        );
        drop(network);

        let network = node.open();
        let third = node.attach(&network, "cccc", &[]);
        assert_eq!(third.v4().to_string(), "10.213.7.3");
        assert_eq!(ask(old.v4(), 80).unwrap(), "old 10.88.0.1");
    });
}
