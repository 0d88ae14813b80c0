//! Port forwarding: both loopback families (case X5), many connections at once.

use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::clients::client_go;
use bulkhead_conformance::node::Log;
use bulkhead_conformance::node::pods::{self, container, labels};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_conformance::wait;
use bulkhead_proto::runtime::v1 as cri;
use serde_json::Value;

/// A pod with a container that echoes on these addresses.
async fn echoing(rig: &Rig, config: cri::PodSandboxConfig, addresses: &[&str]) -> Result<Pod> {
    let busybox = rig.busybox().await?;
    let pod = rig.run(config).await?;
    let command: Vec<&str> = ["probe", "echo"].iter().chain(addresses).copied().collect();
    let id = rig
        .start_in(&pod, &container("main", busybox, &command))
        .await?;
    let path = rig.node.status(&id).await?.log_path;
    wait::until("the server", Duration::from_secs(10), async || {
        Ok(Log::read(&path)?
            .stdout()
            .contains("listening")
            .then_some(()))
    })
    .await?;
    Ok(pod)
}

async fn forward(rig: &Rig, pod: &str, port: i32, more: &[&str]) -> Result<Value> {
    let url = rig.node.forward_url(pod, &[port]).await?;
    let port = port.to_string();
    let mut arguments = vec!["forward", "-port", &port];
    arguments.extend(more);
    arguments.push(&url);
    client_go(&arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn x5_the_pods_localhost_has_two_families() -> Result<()> {
    let rig = Rig::start().await?;
    let with_sysctls = |name: &str, sysctls: &[(&str, &str)]| {
        let mut config = pods::pod(&rig.node, name);
        config.linux.get_or_insert_default().sysctls = labels(sysctls);
        config
    };
    for (name, sysctls, addresses) in [
        ("v6", &[][..], &["[::1]:8080"][..]),
        ("v4", &[], &["127.0.0.1:8080"]),
        ("both", &[], &["127.0.0.1:8080", "[::1]:8080"]),
        ("any", &[], &["[::]:8080"]),
        ("v6only", &[("net.ipv6.bindv6only", "1")], &["[::]:8080"]),
        (
            "without-v6",
            &[("net.ipv6.conf.all.disable_ipv6", "1")],
            &["127.0.0.1:8080"],
        ),
    ] {
        let pod = echoing(&rig, with_sysctls(name, sysctls), addresses).await?;
        for protocol in ["spdy", "websocket"] {
            let done = forward(&rig, &pod.id, 8080, &["-protocol", protocol]).await?;
            assert_eq!(done["completed"], 1, "{name}, {protocol}: {done}");
            let took = done["milliseconds"].as_u64().context("no time")?;
            assert!(took < 1000, "{name}, {protocol}: {took} ms");
        }
        rig.node.stop_pod(&pod.id).await?;
        rig.node.remove_pod(&pod.id).await?;
    }
    let host = pods::host_network_pod(&rig.node, "host");
    let host = echoing(&rig, host, &["127.0.0.1:18080"]).await?;
    let done = forward(&rig, &host.id, 18080, &[]).await?;
    assert_eq!(done["completed"], 1, "host network: {done}");
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn x5_a_refused_port_and_a_stopped_pod_are_errors_on_the_stream_at_once() -> Result<()> {
    let rig = Rig::start().await?;
    let pod = rig.run(pods::pod(&rig.node, "refused")).await?;
    for protocol in ["spdy", "websocket"] {
        let done = forward(&rig, &pod.id, 9, &["-protocol", protocol]).await?;
        let reported = done["reported"].as_str().unwrap_or_default();
        assert!(reported.contains("refused"), "{protocol}: {done}");
        assert!(
            done["milliseconds"]
                .as_u64()
                .is_some_and(|took| took < 2000)
        );
    }
    let url = rig.node.forward_url(&pod.id, &[8080]).await?;
    rig.node.stop_pod(&pod.id).await?;
    let begin = std::time::Instant::now();
    // The upgrade may fail already, or the connection may bring the error.
    if let Ok(done) = client_go(&["forward", "-port", "8080", &url]).await {
        let reported = done["reported"].as_str().unwrap_or_default();
        assert!(done["completed"] == 0 && !reported.is_empty(), "{done}");
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "it hung");
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections_at_once_over_one_session() -> Result<()> {
    let rig = Rig::start().await?;
    let pod = echoing(&rig, pods::pod(&rig.node, "many"), &["127.0.0.1:8080"]).await?;
    for protocol in ["spdy", "websocket"] {
        let more = [
            "-protocol",
            protocol,
            "-connections",
            "200",
            "-bytes",
            "100000",
        ];
        let done = forward(&rig, &pod.id, 8080, &more).await?;
        assert_eq!(done["completed"], 200, "{protocol}: {done}");
    }
    rig.finish().await
}
