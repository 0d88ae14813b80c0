//! Limits in control groups and their changes in place, seen in the files of the hierarchies. Case Q1.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bulkhead_conformance::node::pods::{container, host_network_pod, labels, pod as own_pod};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_proto::runtime::v1 as cri;
use tonic::Code;

const MB: i64 = 1 << 20;

fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A file of the container's group in the hierarchy of a controller; `None` if the process isn't in it.
fn file(pid: u32, controller: &str, name: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        if is_unified() && names.is_empty() {
            return Ok(PathBuf::from(format!("/sys/fs/cgroup{path}/{name}")));
        }
        if !is_unified() && names.split(',').any(|name| name == controller) {
            return Ok(PathBuf::from(format!(
                "/sys/fs/cgroup/{names}{path}/{name}"
            )));
        }
    }
    bail!("process {pid} has no group of {controller}:\n{text}")
}

fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path:?}"))?;
    Ok(text.trim().to_owned())
}

/// Memory, and memory and swap together, in bytes; -1 is none.
fn memory(pid: u32) -> Result<(i64, i64)> {
    let number = |text: String| -> Result<i64> {
        match text.as_str() {
            "max" => Ok(-1),
            text => Ok(text
                .parse::<i64>()
                .map(|n| if n > 1 << 60 { -1 } else { n })?),
        }
    };
    if is_unified() {
        let limit = number(read(&file(pid, "memory", "memory.max")?)?)?;
        let swap = number(read(&file(pid, "memory", "memory.swap.max")?)?)?;
        return Ok((limit, if swap < 0 { -1 } else { limit + swap }));
    }
    let limit = number(read(&file(pid, "memory", "memory.limit_in_bytes")?)?)?;
    let both = number(read(&file(pid, "memory", "memory.memsw.limit_in_bytes")?)?)?;
    Ok((limit, both))
}

fn pair(memory: i64, both: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: both,
        ..Default::default()
    }
}

fn limited(name: &str, image: &str, limits: cri::LinuxContainerResources) -> cri::ContainerConfig {
    let mut config = container(name, image, &["sleep", "1000"]);
    config.linux.get_or_insert_default().resources = Some(limits);
    config
}

async fn update(
    rig: &Rig,
    id: &str,
    limits: cri::LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(limits),
        ..Default::default()
    };
    let mut client = rig.node.runtime.clone();
    client.update_container_resources(request).await.map(|_| ())
}

/// The limits the status tells.
async fn told(rig: &Rig, id: &str) -> Result<cri::LinuxContainerResources> {
    let resources = rig.node.status(id).await?.resources;
    resources
        .and_then(|resources| resources.linux)
        .context("a status without limits")
}

async fn running(rig: &Rig, pod: &Pod, config: &cri::ContainerConfig) -> Result<(String, u32)> {
    let id = rig.start_in(pod, config).await?;
    let pid = rig.node.init_pid(&id).await?;
    Ok((id, pid))
}

#[tokio::test]
async fn q1_memory_and_swap_reach_every_valid_target_in_one_call() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("q1").await?;
    let start = pair(100 * MB, 200 * MB);
    let (id, pid) = running(&rig, &pod, &limited("main", image, start.clone())).await?;
    assert_eq!(memory(pid)?, (100 * MB, 200 * MB));
    // From wherever the row before left it: what is asked, and what is in force.
    for (memory_limit, both, expected) in [
        (400 * MB, 800 * MB, (400 * MB, 800 * MB)),
        (400 * MB, 0, (400 * MB, 800 * MB)),
        (50 * MB, 50 * MB, (50 * MB, 50 * MB)),
        (400 * MB, 0, (400 * MB, 400 * MB)),
        (0, -1, (400 * MB, -1)),
        (100 * MB, 200 * MB, (100 * MB, 200 * MB)),
        (-1, -1, (-1, -1)),
        (100 * MB, 200 * MB, (100 * MB, 200 * MB)),
    ] {
        update(&rig, &id, pair(memory_limit, both)).await?;
        assert_eq!(memory(pid)?, expected, "asked for {memory_limit} {both}");
        let told = told(&rig, &id).await?;
        let told = (told.memory_limit_in_bytes, told.memory_swap_limit_in_bytes);
        assert_eq!(told, expected, "the status after {memory_limit} {both}");
    }
    // Refused with the reason, and both values stay.
    let below = update(&rig, &id, pair(200 * MB, 100 * MB))
        .await
        .expect_err("swap below memory");
    assert_eq!(below.code(), Code::InvalidArgument, "{below:?}");
    ensure!(
        below.message().contains("memory_swap_limit_in_bytes"),
        "{below:?}"
    );
    assert_eq!(memory(pid)?, (100 * MB, 200 * MB));
    rig.finish().await
}

#[tokio::test]
async fn a_limit_below_what_is_in_use_is_refused_and_nothing_else_changes() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("in-use").await?;
    let mut config = limited("main", image, pair(200 * MB, 200 * MB));
    // Pages of /dev/shm can't be reclaimed without swap.
    config.command = [
        "sh",
        "-c",
        "dd if=/dev/zero of=/dev/shm/f bs=1M count=40; sleep 1000",
    ]
    .map(str::to_owned)
    .to_vec();
    let (id, pid) = running(&rig, &pod, &config).await?;
    let current = match is_unified() {
        true => "memory.current",
        false => "memory.usage_in_bytes",
    };
    let current = file(pid, "memory", current)?;
    let limit = std::time::Duration::from_secs(20);
    bulkhead_conformance::wait::until("40 MB in use", limit, async || {
        let used: i64 = read(&current)?.parse()?;
        Ok((used > 40 * MB).then_some(()))
    })
    .await?;
    let asked = cri::LinuxContainerResources {
        cpu_shares: 512,
        ..pair(10 * MB, 10 * MB)
    };
    let refused = update(&rig, &id, asked).await.expect_err("below use");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    ensure!(refused.message().contains("in use"), "{refused:?}");
    assert_eq!(memory(pid)?, (200 * MB, 200 * MB));
    let shares = match is_unified() {
        true => ("cpu.weight", "100"),
        false => ("cpu.shares", "1024"),
    };
    if let Ok(path) = file(pid, "cpu", shares.0) {
        assert_eq!(
            read(&path)?,
            shares.1,
            "what was written before is taken back"
        );
    }
    assert_eq!(told(&rig, &id).await?.cpu_shares, 0);
    rig.finish().await
}

#[tokio::test]
async fn limits_change_before_the_start_and_while_running_and_never_after() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("update").await?;
    let id = rig
        .create_in(&pod, &limited("main", image, pair(64 * MB, 64 * MB)))
        .await?;
    let more = cri::LinuxContainerResources {
        cpu_shares: 2048,
        cpu_period: 50_000,
        cpu_quota: 25_000,
        oom_score_adj: 900,
        ..pair(128 * MB, 128 * MB)
    };
    update(&rig, &id, more).await?;
    rig.node.start_container(&id).await?;
    let pid = rig.node.init_pid(&id).await?;
    assert_eq!(memory(pid)?, (128 * MB, 128 * MB));
    let bandwidth = |quota: &str| match is_unified() {
        true => vec![("cpu.max", format!("{quota} 50000"))],
        false => vec![
            ("cpu.cfs_period_us", "50000".to_owned()),
            ("cpu.cfs_quota_us", quota.replace("max", "-1")),
        ],
    };
    for (name, expected) in bandwidth("25000") {
        assert_eq!(read(&file(pid, "cpu", name)?)?, expected, "{name}");
    }
    // The score is the start's alone.
    assert_eq!(read(Path::new(&format!("/proc/{pid}/oom_score_adj")))?, "0");
    let sets = cri::LinuxContainerResources {
        cpu_quota: -1,
        cpuset_cpus: "0".to_owned(),
        cpuset_mems: "0".to_owned(),
        ..Default::default()
    };
    // Twice: the CPU manager repeats itself.
    for _ in 0..2 {
        update(&rig, &id, sets.clone()).await?;
    }
    for (name, expected) in bandwidth("max") {
        assert_eq!(read(&file(pid, "cpu", name)?)?, expected, "{name}");
    }
    assert_eq!(read(&file(pid, "cpuset", "cpuset.cpus")?)?, "0");
    let inside = rig.node.output(&id, &["cat", "/proc/self/status"]).await?;
    ensure!(inside.contains("Cpus_allowed_list:\t0\n"), "{inside}");
    let told = told(&rig, &id).await?;
    assert_eq!(
        (told.cpu_shares, told.cpu_quota, told.cpuset_cpus.as_str()),
        (2048, -1, "0")
    );
    // One part refused, nothing done: there is no such CPU.
    let bad = cri::LinuxContainerResources {
        cpu_shares: 100,
        cpuset_cpus: "4095".to_owned(),
        ..Default::default()
    };
    update(&rig, &id, bad).await.expect_err("no such CPU");
    let shares = match is_unified() {
        true => "cpu.weight",
        false => "cpu.shares",
    };
    let expected = if is_unified() { "170" } else { "2048" };
    let seen = read(&file(pid, "cpu", shares)?)?;
    ensure!(
        seen == expected || is_unified() && seen != "11",
        "{shares}: {seen}"
    );
    assert_eq!(read(&file(pid, "cpuset", "cpuset.cpus")?)?, "0");
    rig.node.stop_container(&id, 0).await?;
    let late = update(&rig, &id, pair(64 * MB, 64 * MB))
        .await
        .expect_err("it has exited");
    assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
    let unknown = update(&rig, &"0".repeat(64), pair(64 * MB, 0))
        .await
        .expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound, "{unknown:?}");
    rig.finish().await
}

#[tokio::test]
async fn a_pod_s_figures_are_recorded_or_refused_as_one() -> Result<()> {
    let rig = Rig::start().await?;
    let pod = rig.pod("figures").await?;
    let ask = async |overhead: i64, resources: i64| {
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            overhead: Some(pair(overhead, 0)),
            resources: Some(pair(resources, 0)),
        };
        let mut client = rig.node.runtime.clone();
        client.update_pod_sandbox_resources(request).await
    };
    let verbose = async || -> Result<serde_json::Value> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: true,
        };
        let answer = rig
            .node
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        let info = answer.info.get("info").context("no info")?;
        Ok(serde_json::from_str(info)?)
    };
    ask(MB, 64 * MB).await?;
    let first = verbose().await?;
    assert_eq!(first["overhead"]["memoryLimitInBytes"], MB);
    assert_eq!(first["resources"]["memoryLimitInBytes"], 64 * MB);
    let refused = ask(2 * MB, -5).await.expect_err("no such limit");
    ensure!(
        refused
            .message()
            .contains("resources.memory_limit_in_bytes"),
        "{refused:?}"
    );
    assert_eq!(
        verbose().await?["overhead"],
        first["overhead"],
        "none of it was taken"
    );
    rig.finish().await
}

#[tokio::test]
async fn a_child_killed_for_lack_of_memory_is_reported_too() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("oom-child").await?;
    // The child is killed; the first process survives it and ends as if nothing were.
    let script = "probe eat 200; exit $?";
    let mut config = limited("main", image, pair(32 * MB, 32 * MB));
    config.command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let id = rig.start_in(&pod, &config).await?;
    let status = rig.node.wait_exit(&id).await?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    rig.finish().await
}

#[tokio::test]
async fn huge_pages_are_limited_or_refused_and_zeroes_pass() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let pod = rig.pod("huge").await?;
    let with = |limit: u64| cri::LinuxContainerResources {
        hugepage_limits: vec![cri::HugepageLimit {
            page_size: "2MB".to_owned(),
            limit,
        }],
        ..Default::default()
    };
    let (_, pid) = running(&rig, &pod, &limited("zero", image, with(0))).await?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(!groups.is_empty(), "a process without groups");
    match rig
        .create_in(&pod, &limited("some", image, with(4 << 20)))
        .await
    {
        Ok(id) => {
            rig.node.start_container(&id).await?;
            let pid = rig.node.init_pid(&id).await?;
            // On a hybrid node the controller may be in the version 2 tree.
            let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            let own = text
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .unwrap_or("");
            let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
            let v2 = places.map(|top| PathBuf::from(format!("{top}{own}/hugetlb.2MB.max")));
            let found = v2.iter().find(|path| path.exists());
            let limit = match found {
                Some(path) => read(path)?,
                None => read(&file(pid, "hugetlb", "hugetlb.2MB.limit_in_bytes")?)?,
            };
            assert_eq!(limit, "4194304");
        }
        Err(refused) => ensure!(refused.message().contains("hugetlb"), "{refused:?}"),
    }
    rig.finish().await
}

#[tokio::test]
async fn kernel_parameters_are_the_pod_s_own_and_others_are_refused() -> Result<()> {
    let rig = Rig::start().await?;
    let image = rig.busybox().await?;
    let host = std::fs::read_to_string("/proc/sys/kernel/shmmax")?;
    let mut config = own_pod(&rig.node, "sysctls");
    config.linux.get_or_insert_default().sysctls = labels(&[
        ("kernel.shmmax", "1234567"),
        ("net.ipv4.ip_local_port_range", "40000 40100"),
    ]);
    let pod = rig.run(config).await?;
    let id = rig
        .start_in(&pod, &container("main", image, &["sleep", "1000"]))
        .await?;
    for (name, expected) in [
        ("kernel/shmmax", "1234567"),
        ("net/ipv4/ip_local_port_range", "40000\t40100"),
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv4/ping_group_range", "0\t2147483647"),
    ] {
        let path = format!("/proc/sys/{name}");
        let seen = rig.node.output(&id, &["cat", &path]).await?;
        assert_eq!(seen.trim_end(), expected, "{name}");
    }
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/shmmax")?,
        host,
        "the host's stays"
    );
    for name in ["kernel.shmmax", "net.core.somaxconn", "vm.swappiness"] {
        let mut config = host_network_pod(&rig.node, "bad");
        let linux = config.linux.get_or_insert_default();
        linux.sysctls = labels(&[(name, "1")]);
        let context = linux.security_context.get_or_insert_default();
        let options = context.namespace_options.get_or_insert_default();
        options.ipc = cri::NamespaceMode::Node.into();
        let refused = rig.node.run_pod(&config).await.expect_err(name);
        ensure!(refused.message().contains(name), "{refused:?}");
    }
    rig.finish().await
}
