//! What is left after pods, crashes and other people's changes: nothing, or what should be.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bulkhead_cri_server::failure::Class;
use bulkhead_cri_server::network::AttachRequest;

use crate::node::{NODE4, Namespace, Server, ask, ip, ip_of, on_node, output, tcp};

#[test]
fn teardown_leaves_nothing_and_can_be_repeated() {
    on_node(|node| {
        let network = node.open();
        let before = node.picture();
        let pod = node.attach(
            &network,
            "aaaa",
            &[tcp(None, 8080, 80), tcp(Some(NODE4), 8081, 80)],
        );
        node.attach(&network, "bbbb", &[tcp(None, 8082, 80)]);
        assert_ne!(node.picture(), before);
        node.detach(&network, "bbbb");
        node.detach(&network, "aaaa");
        node.detach(&network, "aaaa");
        node.settle(&network);
        node.detach(&network, "aaaa");
        assert_eq!(node.picture(), before);
        assert_eq!(node.leases(), 0);
        let links = pod.namespace.run(|| output("ip", &["-br", "link"]));
        assert!(!links.contains("eth0"), "{links}");
    });
}

#[test]
fn a_pod_whose_namespace_is_gone_is_detached_all_the_same() {
    on_node(|node| {
        let network = node.open();
        let before = node.picture();
        let pod = node.attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        drop(pod);
        node.detach(&network, "aaaa");
        node.settle(&network);
        assert_eq!(node.picture(), before);
        assert_eq!(node.leases(), 0);
    });
}

#[test]
fn a_namespace_that_has_an_eth0_is_refused_and_left_alone() {
    on_node(|node| {
        let network = node.open();
        let before = node.picture();
        let namespace = Namespace::new();
        namespace.run(|| ip("link add eth0 type veth peer name other"));
        let request = AttachRequest {
            pod_id: "aaaa".to_owned(),
            netns: namespace.0.try_clone().unwrap(),
            host_ports: vec![tcp(None, 8080, 80)],
        };
        let failure = node.runtime.block_on(network.attach(request)).unwrap_err();
        assert!(
            failure.message().contains("bhaaaa and the pod's eth0"),
            "{failure}"
        );
        node.settle(&network);
        assert_eq!(node.picture(), before);
        assert_eq!(node.leases(), 0);
        assert!(
            namespace
                .run(|| output("ip", &["-br", "link"]))
                .contains("eth0")
        );
    });
}

#[test]
fn a_restart_keeps_pods_connected_and_gc_removes_the_dead() {
    on_node(|node| {
        let network = node.open();
        let before = node.picture();
        let live = node.attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        let _server = Server::start(&live.namespace, "a", 80);
        node.attach(&network, "bbbb", &[tcp(None, 8081, 80)]);
        let running = node.picture();
        drop(network);

        let network = node.open();
        assert_eq!(node.picture(), running, "opening again changes nothing");
        assert!(ask(ip_of("127.0.0.1"), 8080).is_some());
        assert!(
            node.try_attach(&network, "cccc", &[tcp(None, 8080, 80)])
                .is_err()
        );
        // A link whose lease was lost.
        ip("link add bhlost type veth peer name bhpeer");
        ip("link set bhlost master bulkhead0");
        node.runtime
            .block_on(network.gc(HashSet::from(["aaaa".to_owned()])))
            .unwrap();
        node.settle(&network);
        assert_eq!(node.leases(), 1);
        let after = node.picture();
        assert!(!after.contains("bhbbbb") && !after.contains("bhlost") && !after.contains("8081"));
        assert!(ask(ip_of("127.0.0.1"), 8080).is_some());
        let next = node.attach(&network, "dddd", &[]);
        assert_eq!(
            next.v4().to_string(),
            "10.88.0.5",
            "freed addresses come last"
        );
        node.runtime.block_on(network.gc(HashSet::new())).unwrap();
        node.settle(&network);
        assert_eq!(node.picture(), before);
    });
}

#[test]
fn a_detach_that_a_crash_cut_short_is_finished_at_the_next_start() {
    on_node(|node| {
        let network = node.open();
        let before = node.picture();
        node.attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        drop(network);
        // As a crash right after the intent leaves it.
        let lease = node.settings.state_dir.join("leases/aaaa.json");
        let text = std::fs::read_to_string(&lease).unwrap();
        std::fs::write(
            &lease,
            text.replace("\"detaching\":false", "\"detaching\":true"),
        )
        .unwrap();
        let network = node.open();
        node.settle(&network);
        assert_eq!(node.picture(), before);
        assert_eq!(node.leases(), 0);
    });
}

#[test]
fn a_bridge_or_table_that_others_removed_comes_back() {
    on_node(|node| {
        let network = node.open();
        node.attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        node.detach(&network, "aaaa");
        node.settle(&network);
        ip("link del bulkhead0");
        let status = node.runtime.block_on(network.status());
        assert!(status.ready, "{status:?}");
        ip("link del bulkhead0");
        let failure = node
            .try_attach(&network, "bbbb", &[])
            .map(|_| ())
            .unwrap_err();
        assert!(failure.message().contains("bhbbbb"), "{failure}");
        output("nft", &["flush", "ruleset"]);
        let pod = node.attach(&network, "bbbb", &[tcp(None, 8080, 80)]);
        let _server = Server::start(&pod.namespace, "b", 80);
        assert!(ask(ip_of("127.0.0.1"), 8080).is_some());
    });
}

/// Threat M3: a firewall's reload.
#[test]
fn rules_that_others_flush_are_put_back_while_pods_run() {
    on_node(|node| {
        let network = node.open();
        let pod = node.attach(&network, "aaaa", &[tcp(None, 8080, 80)]);
        let _server = Server::start(&pod.namespace, "a", 80);
        let before = output("nft", &["list", "ruleset"]);
        for tampering in [
            "flush ruleset",
            "flush chain inet bulkhead guard",
            "delete table inet bulkhead",
        ] {
            output("nft", &tampering.split(' ').collect::<Vec<_>>());
            // The second correction waits for a second to have passed since the first.
            let deadline = Instant::now() + Duration::from_secs(5);
            while output("nft", &["list", "ruleset"]) != before {
                assert!(Instant::now() < deadline, "{tampering}: not put back");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(ask(ip_of("127.0.0.1"), 8080).is_some(), "{tampering}");
        }
        output("nft", &["add", "table", "inet", "other"]);
        output("nft", &["delete", "table", "inet", "other"]);
    });
}

#[test]
fn a_node_that_cannot_be_set_up_says_why_and_recovers() {
    on_node(|node| {
        ip("link add bulkhead0 type veth peer name other");
        let network = node.open();
        let status = node.runtime.block_on(network.status());
        assert_eq!(
            (status.ready, status.reason.as_str()),
            (false, "NetworkPluginNotReady")
        );
        assert!(
            status.message.contains("bulkhead0 exists and is no bridge"),
            "{status:?}"
        );
        let failure = node
            .try_attach(&network, "aaaa", &[])
            .map(|_| ())
            .unwrap_err();
        assert_eq!(failure.class(), Class::Unavailable);
        ip("link del bulkhead0");
        node.attach(&network, "aaaa", &[]);
        assert!(node.runtime.block_on(network.status()).ready);
    });
}

#[test]
fn a_full_range_is_said_and_addresses_come_back_only_after_the_links_have_gone() {
    on_node(|node| {
        let network = node.open();
        node.runtime
            .block_on(network.update_pod_cidr("10.9.0.0/30"))
            .unwrap();
        let first = node.attach(&network, "aaaa", &[]);
        assert_eq!(first.v4().to_string(), "10.9.0.2");
        let failure = node
            .try_attach(&network, "bbbb", &[])
            .map(|_| ())
            .unwrap_err();
        assert_eq!(failure.class(), Class::Exhausted);
        node.detach(&network, "aaaa");
        node.settle(&network);
        assert_eq!(node.attach(&network, "bbbb", &[]).v4(), first.v4());
    });
}
