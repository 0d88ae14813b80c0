//! Many at once, and how long one takes (printed; run with `--nocapture` to see it).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bulkhead_cri_server::network::AttachRequest;

use crate::node::{Namespace, on_node, tcp};

#[test]
fn fifty_pods_come_and_go_at_once_and_leave_nothing() {
    const PODS: u16 = 50;
    on_node(|node| {
        let network = node.open();
        let before = node.picture();
        let namespaces: Vec<Namespace> = (0..PODS).map(|_| Namespace::new()).collect();
        let attachments = node.runtime.block_on(async {
            let attaching = (0..PODS).zip(&namespaces).map(|(index, namespace)| {
                network.attach(AttachRequest {
                    pod_id: format!("pod{index}"),
                    netns: namespace.0.try_clone().unwrap(),
                    host_ports: vec![tcp(None, 20_000 + index, 80)],
                })
            });
            futures_util::future::join_all(attaching).await
        });
        let addresses: HashSet<_> = attachments
            .into_iter()
            .flat_map(|attachment| attachment.unwrap().addresses)
            .collect();
        assert_eq!(addresses.len(), 2 * usize::from(PODS));
        assert_eq!(node.leases(), usize::from(PODS));
        let table = node.picture();
        for index in 0..PODS {
            assert!(
                table.contains(&format!("tcp . {}", 20_000 + index)),
                "port of pod {index}"
            );
        }
        node.runtime.block_on(async {
            let names: Vec<String> = (0..PODS).map(|index| format!("pod{index}")).collect();
            let detaching = names.iter().map(|name| network.detach(name));
            for outcome in futures_util::future::join_all(detaching).await {
                outcome.unwrap();
            }
        });
        node.settle(&network);
        assert_eq!(node.picture(), before);
        assert_eq!(node.leases(), 0);
    });
}

#[test]
fn attach_and_detach_take_milliseconds() {
    on_node(|node| {
        let network = node.open();
        node.attach(&network, "warm", &[]);
        for (what, ports) in [
            ("no host ports", vec![]),
            ("a host port", vec![tcp(None, 8080, 80)]),
        ] {
            let (mut attached, mut detached) = (Vec::new(), Vec::new());
            for index in 0..30 {
                let namespace = Namespace::new();
                let request = AttachRequest {
                    pod_id: format!("pod{index}"),
                    netns: namespace.0.try_clone().unwrap(),
                    host_ports: ports.clone(),
                };
                let start = Instant::now();
                node.runtime.block_on(network.attach(request)).unwrap();
                attached.push(start.elapsed());
                let start = Instant::now();
                node.detach(&network, &format!("pod{index}"));
                detached.push(start.elapsed());
                node.settle(&network);
            }
            let (attached, detached) = (median(attached), median(detached));
            println!("{what}: attach {attached:?}, detach {detached:?} (medians of 30)");
            // Far above what it takes, far below what waiting for anything would.
            assert!(attached < Duration::from_millis(100) && detached < Duration::from_millis(30));
        }
    });
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}
