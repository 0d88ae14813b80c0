//! A pod's control groups, from outside: limited, killed, and gone. On cgroup v1 or v2, as the
//! machine has it; `make test-vm` runs this on v2.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bulkhead_conformance::node::pods::{container, host_network_pod, security};
use bulkhead_conformance::rig::Rig;
use bulkhead_proto::runtime::v1 as cri;

const MB: i64 = 1 << 20;

/// Whether all controllers are in the v2 tree.
fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The container's directory in the hierarchy of a controller, found by its process.
fn directory(pid: u32, controller: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let mount = match is_unified() {
            true if names.is_empty() => "/sys/fs/cgroup".to_owned(),
            false if names.split(',').any(|name| name == controller) => {
                format!("/sys/fs/cgroup/{names}")
            }
            _ => continue,
        };
        return Ok(PathBuf::from(format!("{mount}{path}")));
    }
    bail!("process {pid} has no group of {controller}:\n{text}")
}

fn value(pid: u32, controller: &str, file: &str) -> Result<String> {
    let path = directory(pid, controller)?.join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path:?}"))?;
    Ok(text.trim().to_owned())
}

fn limited(name: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
    let mut config = container(name, image, command);
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(cri::LinuxContainerResources {
        cpu_shares: 1024,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 * MB,
        ..Default::default()
    });
    config
}

async fn assert_limits(rig: &Rig, id: &str) -> Result<()> {
    let pid = rig.node.init_pid(id).await?;
    let table: &[(&str, &str, &str)] = match is_unified() {
        true => &[
            ("cpu", "cpu.weight", "100"),
            ("cpu", "cpu.max", "20000 100000"),
            ("memory", "memory.max", "67108864"),
        ],
        false => &[
            ("cpu", "cpu.shares", "1024"),
            ("cpu", "cpu.cfs_quota_us", "20000"),
            ("memory", "memory.limit_in_bytes", "67108864"),
        ],
    };
    for (controller, file, expected) in table {
        assert_eq!(value(pid, controller, file)?, *expected, "{file}");
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_runs_is_limited_is_killed_and_leaves_nothing() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.networked_pod("limited").await?;
    // A shell that obeys no signal, with children that would go on without it.
    let script = "trap '' TERM; sleep 1000 & sleep 1000 & while :; do sleep 1; done";
    let config = limited("main", image, &["sh", "-c", script]);
    let id = rig.start_in(&pod, &config).await?;
    assert_limits(&rig, &id).await?;
    let pid = rig.node.init_pid(&id).await?;
    let group = directory(pid, "memory")?;
    ensure!(
        group.to_string_lossy().contains(&id),
        "{group:?} does not name its container"
    );
    // A process run in it is limited with it.
    let done = rig.node.output(&id, &["cat", "/proc/self/cgroup"]).await?;
    ensure!(!done.is_empty(), "an exec sees its groups");
    rig.node.stop_container(&id, 1).await?;
    assert_eq!(rig.node.status(&id).await?.exit_code, 137);
    rig.node.remove_container(&id).await?;
    ensure!(!group.exists(), "{group:?} is left");
    rig.finish().await
}

#[tokio::test]
async fn a_container_beyond_its_memory_is_reported_as_out_of_memory() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("oom").await?;
    // tail keeps all of one endless line.
    let config = limited("hungry", image, &["sh", "-c", "exec tail < /dev/zero"]);
    let id = rig.start_in(&pod, &config).await?;
    let status = rig.node.wait_exit(&id).await?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    rig.finish().await
}

#[tokio::test]
async fn a_pod_with_one_pid_namespace_has_its_pause_process_in_a_group() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let mut config = host_network_pod(&rig.node, "shared");
    let linux = config.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Pod.into();
    let pod = rig.run(config).await?;
    let mut main = limited("main", image, &["sleep", "1000"]);
    let own = security(&mut main)
        .namespace_options
        .get_or_insert_default();
    own.pid = cri::NamespaceMode::Pod.into();
    let id = rig.start_in(&pod, &main).await?;
    assert_limits(&rig, &id).await?;
    let first = rig.node.output(&id, &["cat", "/proc/1/comm"]).await?;
    ensure!(
        !first.contains("sleep"),
        "the pod's first process is {first}"
    );
    rig.finish().await
}

#[tokio::test]
async fn devices_are_denied_whatever_nodes_are_made() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("devices").await?;
    let mut config = container("main", image, &["sleep", "1000"]);
    security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: vec!["MKNOD".to_owned()],
        ..Default::default()
    });
    let id = rig.start_in(&pod, &config).await?;
    // Any node may be made, but /dev/kmsg (1:11) and /dev/mem (1:1) can't be opened.
    for (node, allowed) in [("c 1 3", true), ("c 1 11", false), ("c 1 1", false)] {
        let script = format!("rm -f /n && mknod /n {node} && : < /n");
        let done = rig.node.exec(&id, &["sh", "-c", &script]).await?;
        assert_eq!(done.code == 0, allowed, "{node}: {done:?}");
        if !allowed {
            ensure!(done.stderr.contains("not permitted"), "{node}: {done:?}");
        }
    }
    rig.finish().await
}

#[tokio::test]
async fn unified_settings_reach_a_v2_group_and_are_refused_on_v1() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("unified").await?;
    let mut config = limited("main", image, &["sleep", "1000"]);
    let resources = config
        .linux
        .get_or_insert_default()
        .resources
        .get_or_insert_default();
    resources.unified = [("memory.oom.group".to_owned(), "1".to_owned())].into();
    match rig.start_in(&pod, &config).await {
        Ok(id) => {
            ensure!(is_unified(), "v1 took a unified setting");
            let pid = rig.node.init_pid(&id).await?;
            assert_eq!(value(pid, "memory", "memory.oom.group")?, "1");
        }
        Err(error) => {
            ensure!(!is_unified(), "{error:#}");
            ensure!(format!("{error:#}").contains("unified"), "{error:#}");
        }
    }
    rig.finish().await
}
