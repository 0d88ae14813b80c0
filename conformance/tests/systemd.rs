//! The systemd cgroup driver, on a node whose init is systemd and that has cgroup v2, as
//! `make test-vm` provides; elsewhere the daemon refuses the driver with the reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use bulkhead_conformance::node::Options;
use bulkhead_conformance::node::pods::{container, pod};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_proto::runtime::v1 as cri;

const SLICE: &str = "bhtest-pods.slice";

fn options() -> Options {
    Options {
        config: format!("[cgroup]\ndriver = \"systemd\"\nparent = \"{SLICE}\"\n"),
        ..Default::default()
    }
}

/// A node with the driver; on a machine that can't have it, the proof that it says so.
async fn start() -> Result<Option<Rig>> {
    let can = Path::new("/run/systemd/system").exists()
        && Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    match Rig::start_with(options()).await {
        Ok(rig) if can => Ok(Some(rig)),
        Err(error) if !can => {
            let text = format!("{error:#}");
            ensure!(
                text.contains("cgroup.driver is systemd, but this node has"),
                "{text}"
            );
            eprintln!("SKIPPED: needs systemd and cgroup v2, which `make test-vm` has");
            Ok(None)
        }
        Ok(_) => bail!("the driver was taken on a node that can't have it"),
        Err(error) => Err(error),
    }
}

fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl")
        .args(arguments)
        .output()
        .context("run systemctl")?;
    ensure!(
        output.status.success(),
        "systemctl {arguments:?}: {output:?}"
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn limited(image: &str, command: &[&str]) -> cri::ContainerConfig {
    let mut config = container("main", image, command);
    config.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
        cpu_shares: 1024,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        unified: [("pids.max".to_owned(), "50".to_owned())].into(),
        ..Default::default()
    });
    config
}

/// What holds of a container that was started with [`limited`].
fn assert_limits(group: &Path) -> Result<()> {
    for (file, expected) in [
        ("cpu.weight", "100"),
        ("cpu.max", "20000 100000"),
        ("memory.max", "67108864"),
        ("pids.max", "50"),
    ] {
        let found = fs::read_to_string(group.join(file)).with_context(|| file.to_owned())?;
        assert_eq!(found.trim(), expected, "{file}");
    }
    Ok(())
}

struct Started {
    pod: Pod,
    container: String,
    group: PathBuf,
    scope: String,
}

async fn launch(rig: &Rig, name: &str, parent: &str, command: &[&str]) -> Result<Started> {
    let mut config = pod(&rig.node, name);
    parent.clone_into(&mut config.linux.get_or_insert_default().cgroup_parent);
    let pod = rig.run(config).await?;
    let container = rig
        .start_in(&pod, &limited(rig.busybox().await?, command))
        .await?;
    let pid = rig.node.init_pid(&container).await?;
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.trim().strip_prefix("0::").context("no v2 group")?;
    Ok(Started {
        scope: format!("cri-{}.scope", pod.id),
        group: PathBuf::from(format!("/sys/fs/cgroup{path}")),
        pod,
        container,
    })
}

/// Ends the pods, then the slices, which systemd keeps without anything in them.
async fn finish(rig: Rig) -> Result<()> {
    rig.node.remove_everything().await?;
    systemctl(&["stop", "bhtest.slice"])?;
    rig.finish().await
}

#[tokio::test]
async fn a_pod_is_a_delegated_scope_in_its_slice_and_its_limits_survive_a_reload() -> Result<()> {
    let Some(rig) = start().await? else {
        return Ok(());
    };
    let answer = rig
        .node
        .runtime
        .clone()
        .runtime_config(cri::RuntimeConfigRequest {})
        .await?;
    let linux = answer.into_inner().linux.context("no linux part")?;
    assert_eq!(linux.cgroup_driver(), cri::CgroupDriver::Systemd);
    // By the slice's name and by its whole path, as kubelets send it.
    for (name, parent) in [
        ("named", "bhtest-a.slice"),
        ("path", "/bhtest.slice/bhtest-a.slice"),
    ] {
        let started = launch(&rig, name, parent, &["sleep", "1000"]).await?;
        let expected = format!(
            "/sys/fs/cgroup/bhtest.slice/bhtest-a.slice/{}/pod/{}",
            started.scope, started.container
        );
        assert_eq!(started.group, Path::new(&expected));
        let shown = || {
            let properties = "Slice,Delegate,ActiveState,TasksMax";
            systemctl(&["show", "-p", properties, &started.scope])
        };
        let before = shown()?;
        for word in [
            "Slice=bhtest-a.slice",
            "Delegate=yes",
            "=active",
            "=infinity",
        ] {
            ensure!(before.contains(word), "{word} is not in {before}");
        }
        assert_limits(&started.group)?;
        systemctl(&["daemon-reload"])?;
        assert_eq!(shown()?, before);
        assert_limits(&started.group)?;
        // It can still be limited and entered.
        let done = rig
            .node
            .output(&started.container, &["cat", "/proc/self/cgroup"])
            .await?;
        ensure!(!done.is_empty(), "an exec sees its groups");
        rig.node.stop_pod(&started.pod.id).await?;
        ensure!(!started.group.exists(), "{:?} is left", started.group);
    }
    finish(rig).await
}

#[tokio::test]
async fn under_systemd_a_container_beyond_its_memory_is_reported_as_such() -> Result<()> {
    let Some(rig) = start().await? else {
        return Ok(());
    };
    // The default slice of the node's configuration.
    let started = launch(
        &rig,
        "oom",
        "",
        &["sh", "-c", "sleep 1; exec tail < /dev/zero"],
    )
    .await?;
    ensure!(
        started
            .group
            .starts_with("/sys/fs/cgroup/bhtest.slice/bhtest-pods.slice")
    );
    let status = rig.node.wait_exit(&started.container).await?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    finish(rig).await
}

#[tokio::test]
async fn with_the_systemd_driver_a_parent_that_is_no_slice_is_refused() -> Result<()> {
    let Some(rig) = start().await? else {
        return Ok(());
    };
    for parent in ["/kubepods/pod1", "/x.slice/bhtest-a.slice", "a--b.slice"] {
        let mut config = pod(&rig.node, "refused");
        parent.clone_into(&mut config.linux.get_or_insert_default().cgroup_parent);
        let refused = rig.node.run_pod(&config).await.expect_err(parent);
        ensure!(refused.message().contains(parent), "{refused}");
    }
    rig.finish().await
}
