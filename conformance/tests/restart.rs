//! Kill and restart: the daemon, a monitor, the machine (N2), and the inherited socket.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::node::pods::{self, container};
use bulkhead_conformance::node::{Log, Options, monitor_of, signal, unmount_below};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_conformance::wait;
use bulkhead_proto::runtime::v1 as cri;
use rustix::process::Signal;

async fn logging(rig: &Rig, name: &str) -> Result<(Pod, String)> {
    let busybox = rig.busybox().await?;
    let pod = rig.networked_pod(name).await?;
    let command = [
        "sh",
        "-c",
        "i=0; while :; do echo $i; i=$((i+1)); usleep 10000; done",
    ];
    let id = rig
        .start_in(&pod, &container("main", busybox, &command))
        .await?;
    Ok((pod, id))
}

#[tokio::test]
async fn a_killed_daemon_finds_its_pods_running_and_the_exits_it_missed() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (pod, id) = logging(&rig, "killed").await?;
    let busybox = rig.busybox().await?;
    let script = "sleep 1; exit 9";
    let brief = rig
        .start_in(&pod, &container("brief", busybox, &["sh", "-c", script]))
        .await?;
    let created = rig
        .create_in(&pod, &container("created", busybox, &["true"]))
        .await?;
    let address = rig
        .node
        .pod_status(&pod.id)
        .await?
        .network
        .context("no network")?
        .ip;
    let path = rig.node.status(&id).await?.log_path;

    rig.node.kill()?;
    let killed = fs::metadata(&path)?.len();
    // Longer than "brief" runs, so that it ends while nobody is there.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let meanwhile = fs::metadata(&path)?.len();
    rig.node.launch().await?;

    let status = rig.node.pod_status(&pod.id).await?;
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(status.network.context("no network")?.ip, address);
    let states = [
        (&id, cri::ContainerState::ContainerRunning),
        (&brief, cri::ContainerState::ContainerExited),
        (&created, cri::ContainerState::ContainerCreated),
    ];
    for (container, state) in states {
        assert_eq!(
            rig.node.status(container).await?.state(),
            state,
            "{container}"
        );
    }
    assert_eq!(rig.node.status(&brief).await?.exit_code, 9);
    assert_eq!(rig.node.list_containers().await?.len(), 3);
    assert_eq!(rig.node.output(&id, &["echo", "back"]).await?, "back\n");
    rig.node.start_container(&created).await?;
    assert_eq!(rig.node.wait_exit(&created).await?.exit_code, 0);
    assert!(meanwhile > killed, "nothing was logged meanwhile");
    let numbers: Vec<usize> = Log::read(&path)?
        .stdout()
        .lines()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    assert!(
        numbers.len() > 100,
        "logging stopped: {} lines",
        numbers.len()
    );
    assert_eq!(
        numbers,
        (0..numbers.len()).collect::<Vec<_>>(),
        "lines lost or doubled"
    );
    rig.finish().await
}

/// However far it came, what was being made is afterwards either there or not there at all.
#[tokio::test]
async fn a_daemon_killed_while_it_makes_pods_and_containers_leaves_nothing_half_made() -> Result<()>
{
    let mut rig = Rig::start().await?;
    let busybox = rig.busybox().await?.to_owned();
    for (round, delay) in [2, 5, 9, 14, 20, 27, 35, 50, 80].into_iter().enumerate() {
        let config = pods::pod(&rig.node, &format!("half-{round}"));
        let (mut client, image) = (rig.node.runtime.clone(), busybox.clone());
        let making = async move {
            let request = cri::RunPodSandboxRequest {
                config: Some(config.clone()),
                runtime_handler: String::new(),
            };
            let pod = client.run_pod_sandbox(request).await?.into_inner();
            let request = cri::CreateContainerRequest {
                pod_sandbox_id: pod.pod_sandbox_id,
                config: Some(container("main", &image, &["sleep", "1000"])),
                sandbox_config: Some(config),
            };
            let made = client.create_container(request).await?.into_inner();
            let container_id = made.container_id;
            client
                .start_container(cri::StartContainerRequest { container_id })
                .await
        };
        tokio::pin!(making);
        // Whether it was done by then differs from round to round.
        drop(tokio::time::timeout(Duration::from_millis(delay), &mut making).await);
        rig.node.kill()?;
        rig.node.launch().await?;
        for pod in rig.node.list_pods().await? {
            let state = pod.state();
            assert_eq!(state, cri::PodSandboxState::SandboxReady, "round {round}");
            for found in rig.node.list_containers().await? {
                // Created, or running; a start is never half done.
                if found.state() == cri::ContainerState::ContainerRunning {
                    let answer = rig.node.output(&found.id, &["echo", "here"]).await?;
                    assert_eq!(answer, "here\n");
                } else {
                    assert_eq!(found.state(), cri::ContainerState::ContainerCreated);
                }
            }
            rig.node.stop_pod(&pod.id).await?;
            rig.node.remove_pod(&pod.id).await?;
        }
        assert!(rig.node.list_containers().await?.is_empty());
        // The folder itself comes with the first pod.
        let folders = fs::read_dir(rig.node.state().join("pods")).map_or(0, Iterator::count);
        assert_eq!(folders, 0, "round {round}");
    }
    rig.finish().await
}

#[tokio::test]
async fn a_killed_monitor_takes_its_containers_with_it_and_says_so() -> Result<()> {
    let rig = Rig::start().await?;
    let (pod, id) = logging(&rig, "monitor").await?;
    let (other, survivor) = logging(&rig, "survivor").await?;
    let init = rig.node.init_pid(&id).await?;
    signal(monitor_of(init)?, Signal::KILL)?;
    let status = rig.node.wait_exit(&id).await?;
    assert_ne!(status.exit_code, 0);
    assert!(!status.reason.is_empty(), "{status:?}");
    assert!(
        status.message.to_lowercase().contains("monitor"),
        "{status:?}"
    );
    let process = format!("/proc/{init}");
    wait::until(
        "the end of its container",
        Duration::from_secs(10),
        async || Ok((!Path::new(&process).exists()).then_some(())),
    )
    .await?;
    let state = rig.node.pod_status(&pod.id).await?.state();
    assert_eq!(state, cri::PodSandboxState::SandboxNotready);
    assert_eq!(
        rig.node.pod_status(&other.id).await?.state(),
        cri::PodSandboxState::SandboxReady
    );
    assert_eq!(
        rig.node.output(&survivor, &["echo", "here"]).await?,
        "here\n"
    );
    rig.finish().await
}

/// A reboot, as far as it can be had: processes, pinned namespaces and the state folder are gone.
/// The range of six addresses, one of them the bridge's, shows whether the pod's is freed.
#[tokio::test]
async fn n2_pods_can_be_torn_down_after_a_reboot() -> Result<()> {
    let mut rig = Rig::start_with(Options {
        pod_cidrs: "\"10.231.9.0/29\"",
        ..Default::default()
    })
    .await?;
    let (pod, id) = logging(&rig, "n2").await?;
    let links = || -> Result<usize> { Ok(fs::read_dir("/sys/class/net")?.count()) };
    let pinned: Vec<_> = fs::read_dir("/run/netns")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains(&pod.id))
        .collect();
    assert_eq!(pinned.len(), 1, "{pinned:?}");
    let init = rig.node.init_pid(&id).await?;
    let monitor = monitor_of(init)?;
    rig.node.kill()?;
    signal(monitor, Signal::KILL)?;
    signal(init, Signal::KILL)?;
    for path in &pinned {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)?;
        fs::remove_file(path)?;
    }
    unmount_below(rig.node.state())?;
    fs::remove_dir_all(rig.node.state())?;
    fs::create_dir(rig.node.state())?;
    let with_link = links()?;
    rig.node.launch().await?;

    let listed = rig.node.list_pods().await?;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state(), cri::PodSandboxState::SandboxNotready);
    assert_eq!(listed[0].metadata, pod.config.metadata);
    let status = rig.node.status(&id).await?;
    assert_ne!(status.state(), cri::ContainerState::ContainerRunning);
    for _ in 0..2 {
        rig.node.stop_pod(&pod.id).await?;
    }
    for _ in 0..2 {
        rig.node.remove_pod(&pod.id).await?;
    }
    assert!(links()? <= with_link);
    for number in 0..5 {
        let again = rig.networked_pod(&format!("n2-{number}")).await;
        again.context("the lease was not freed")?;
    }
    let beyond = rig.networked_pod("beyond").await;
    beyond.expect_err("the range has no more than five");
    rig.finish().await
}

#[tokio::test]
async fn an_inherited_socket_outlives_the_daemon_and_holds_its_callers() -> Result<()> {
    let mut rig = Rig::start_with(Options {
        activated: true,
        ..Default::default()
    })
    .await?;
    let pod = rig.pod("activated").await?;
    rig.node.stop().await?;
    assert!(
        rig.node.socket().exists(),
        "the daemon removed a socket it did not make"
    );
    // A call made while nobody is there waits in the backlog and is answered by the next daemon.
    let waiting = rig.node.runtime.clone();
    let call = tokio::task::LocalSet::new();
    let early = call.run_until(async {
        let version = tokio::task::spawn_local(async move {
            let mut client = waiting;
            client.version(cri::VersionRequest::default()).await
        });
        // The call is to be made before the daemon is there; nothing can be seen of it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        rig.node.launch().await?;
        anyhow::Ok(version.await?)
    });
    assert_eq!(early.await??.into_inner().runtime_api_version, "v1");
    let state = rig.node.pod_status(&pod.id).await?.state();
    assert_eq!(state, cri::PodSandboxState::SandboxReady);
    rig.finish().await
}
