//! Our rules are those `nft` makes of the text a person would write for them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use bulkhead_cri_server::network::{HostPort, Protocol};

use crate::node::{Namespace, on_node, output, tcp};

const TEXT: &str = r#"
table inet bulkhead {
    map addresses4 { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }
    map ports4 {
        type inet_proto . inet_service : ipv4_addr . inet_service
        elements = { tcp . 8080 comment "aaaa" : 10.88.0.2 . 80 }
    }
    map addresses6 {
        type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service
        elements = { sctp . 2001:db8::1 . 8081 comment "aaaa" : fd00:10:88::2 . 81 }
    }
    map ports6 {
        type inet_proto . inet_service : ipv6_addr . inet_service
        elements = { tcp . 8080 comment "aaaa" : fd00:10:88::2 . 80 }
    }
    chain hostports {
        dnat ip to meta l4proto . ip daddr . th dport map @addresses4
        meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4
        dnat ip6 to meta l4proto . ip6 daddr . th dport map @addresses6
        meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6
    }
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump hostports
    }
    chain output {
        type nat hook output priority -100; policy accept;
        fib daddr type local jump hostports
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "bulkhead0" ip saddr 10.88.0.0/16 ct status dnat masquerade fully-random
        oifname "bulkhead0" ip6 saddr fd00:10:88::/64 ct status dnat masquerade fully-random
        oifname "bulkhead0" ip saddr 127.0.0.0/8 ct status dnat masquerade fully-random
        oifname "bulkhead0" ip6 saddr ::1 ct status dnat masquerade fully-random
        ip daddr 10.0.0.0/9 return
        ip saddr 10.88.0.0/16 oifname != "bulkhead0" masquerade fully-random
        ip6 saddr fd00:10:88::/64 oifname != "bulkhead0" masquerade fully-random
    }
    chain guard {
        type filter hook prerouting priority raw; policy accept;
        iifname "bulkhead0" ip daddr 127.0.0.0/8 drop
        iifname "bulkhead0" ip saddr 127.0.0.0/8 drop
    }
}
"#;

#[test]
fn our_table_equals_the_one_nft_makes_of_its_text() {
    on_node(|node| {
        let mut settings = node.settings.clone();
        settings.unmasqueraded = vec!["10.0.0.0/9".parse().unwrap()];
        let network = bulkhead_cri_server::network::Network::open(settings).unwrap();
        let sctp = HostPort {
            protocol: Protocol::Sctp,
            ..tcp(Some("2001:db8::1"), 8081, 81)
        };
        node.attach(&network, "aaaa", &[tcp(None, 8080, 80), sctp]);
        let ours = node.namespace.run(listing);
        let wanted = Namespace::new().run(|| {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            nft.stdin
                .take()
                .unwrap()
                .write_all(TEXT.as_bytes())
                .unwrap();
            assert!(nft.wait().unwrap().success());
            listing()
        });
        assert_eq!(ours.0, wanted.0, "as text");
        assert_eq!(ours.1, wanted.1, "as the kernel's expressions");
    });
}

/// The table as text, and as expressions without the handles, which depend on the order of making.
fn listing() -> (String, Vec<String>) {
    let expressions = output(
        "nft",
        &["--debug=netlink", "list", "table", "inet", "bulkhead"],
    );
    let expressions = expressions
        .lines()
        .map(str::trim_end)
        .filter(|line| line.starts_with("  ["))
        .map(str::to_owned)
        .collect();
    (
        output("nft", &["list", "table", "inet", "bulkhead"]),
        expressions,
    )
}
