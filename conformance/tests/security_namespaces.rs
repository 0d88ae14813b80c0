//! Which namespaces a container is in, by the host's view of its process.

use anyhow::{Result, ensure};
use bulkhead_conformance::inside::namespace;
use bulkhead_conformance::node::pods::{self, container, security};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_proto::runtime::v1 as cri;
use cri::NamespaceMode::{Container, Node, Pod as Shared, Target};

const KINDS: [&str; 7] = ["net", "uts", "ipc", "pid", "mnt", "cgroup", "user"];

/// A pod with these modes of network, IPC and PID.
async fn pod(rig: &Rig, name: &str, modes: [cri::NamespaceMode; 3]) -> Result<Pod> {
    let [network, ipc, pid] = modes;
    let mut config = match network {
        Node => pods::host_network_pod(&rig.node, name),
        _ => pods::pod(&rig.node, name),
    };
    let linux = config.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    let options = context.namespace_options.get_or_insert_default();
    options.ipc = ipc.into();
    options.pid = pid.into();
    rig.run(config).await
}

/// The namespaces of two containers of a pod, in the order of [`KINDS`].
async fn two(rig: &Rig, pod: &Pod, image: &str) -> Result<[Vec<String>; 2]> {
    let mut both = [Vec::new(), Vec::new()];
    for (index, seen) in both.iter_mut().enumerate() {
        let config = container(&format!("c{index}"), image, &["sleep", "1000"]);
        let id = rig.start_in(pod, &config).await?;
        let pid = rig.node.init_pid(&id).await?;
        *seen = KINDS
            .iter()
            .map(|kind| namespace(pid, kind))
            .collect::<Result<_>>()?;
    }
    Ok(both)
}

#[tokio::test]
async fn namespaces_are_the_pod_s_the_container_s_or_the_node_s_as_asked() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let own = std::process::id();
    let host: Vec<String> = KINDS
        .iter()
        .map(|kind| namespace(own, kind))
        .collect::<Result<_>>()?;
    // Modes of network, IPC and PID; for net, uts, ipc and pid: the node's, or the same in both.
    for (name, modes, node, shared) in [
        (
            "own",
            [Shared, Shared, Container],
            [false; 4],
            [true, true, true, false],
        ),
        ("shared", [Shared, Shared, Shared], [false; 4], [true; 4]),
        (
            "net",
            [Node, Shared, Container],
            [true, true, false, false],
            [true, true, true, false],
        ),
        (
            "ipc",
            [Shared, Node, Node],
            [false, false, true, true],
            [true; 4],
        ),
        ("all", [Node, Node, Node], [true; 4], [true; 4]),
    ] {
        let pod = pod(&rig, name, modes).await?;
        let [first, second] = two(&rig, &pod, image).await?;
        for (index, kind) in KINDS.iter().take(4).enumerate() {
            assert_eq!(
                first[index] == host[index],
                node[index],
                "{name}: {kind} of the node"
            );
            assert_eq!(
                first[index] == second[index],
                shared[index],
                "{name}: {kind} shared"
            );
        }
        for (index, kind) in [(4, "mnt"), (5, "cgroup")] {
            ensure!(
                first[index] != host[index],
                "{name}: {kind} is the container's own"
            );
            ensure!(
                first[index] != second[index],
                "{name}: {kind} is each one's own"
            );
        }
        assert_eq!(first[6], host[6], "{name}: no user namespace was asked for");
    }
    rig.finish().await
}

#[tokio::test]
async fn a_target_s_processes_are_seen_and_what_is_no_target_is_refused() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = pod(&rig, "target", [Node, Shared, Container]).await?;
    let main = rig
        .start_in(&pod, &container("main", image, &["sleep", "12345"]))
        .await?;
    let aimed = |name: &str, target: &str| {
        let mut config = container(name, image, &["sleep", "1000"]);
        let options = security(&mut config)
            .namespace_options
            .get_or_insert_default();
        options.pid = Target.into();
        options.target_id = target.to_owned();
        config
    };
    let debugger = rig.start_in(&pod, &aimed("debugger", &main)).await?;
    let pids = (
        rig.node.init_pid(&main).await?,
        rig.node.init_pid(&debugger).await?,
    );
    assert_eq!(namespace(pids.0, "pid")?, namespace(pids.1, "pid")?);
    let seen = rig
        .node
        .output(&debugger, &["cat", "/proc/1/cmdline"])
        .await?;
    assert_eq!(seen, "sleep\u{0}12345\u{0}");

    let other = rig.pod("other").await?;
    let foreign = rig
        .start_in(&other, &container("main", image, &["sleep", "1000"]))
        .await?;
    for target in ["", "0123456789", foreign.as_str()] {
        let config = aimed("bad", target);
        let refused = match rig.create_in(&pod, &config).await {
            Ok(id) => rig
                .node
                .start_container(&id)
                .await
                .expect_err("no target of the pod"),
            Err(refused) => refused,
        };
        ensure!(
            refused.message().contains("target") || refused.message().contains(target),
            "{target:?}: {refused:?}"
        );
        // Whatever was made under this name goes before the next row.
        for left in rig.node.list_containers().await? {
            if left.metadata.is_some_and(|metadata| metadata.name == "bad") {
                rig.node.remove_container(&left.id).await?;
            }
        }
    }
    rig.finish().await
}
