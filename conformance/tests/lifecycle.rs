//! Names, times, signals: cases T2, T4, T5.

use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::images::{ImageBuilder, catalog};
use bulkhead_conformance::node::pods::{self, container};
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::tar::Layer;
use bulkhead_proto::runtime::v1 as cri;
use serde_json::json;
use tonic::{Code, Request};

/// Of a process that is not PID 1 and handles nothing, the exit code tells the signal.
#[tokio::test]
async fn t2_names_of_stop_signals() -> Result<()> {
    let rig = Rig::start().await?;
    let mut config = pods::host_network_pod(&rig.node, "t2");
    let context = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    let options = context.and_then(|context| context.namespace_options.as_mut());
    options.context("built with options")?.pid = cri::NamespaceMode::Pod.into();
    let pod = rig.run(config).await?;
    for (row, (word, code)) in [
        ("SIGRTMIN+3", 165),
        ("RTMIN+3", 165),
        ("37", 165),
        ("SIGRTMAX-1", 191),
        ("sigquit", 131),
        ("QUIT", 131),
        ("3", 131),
        ("", 143),
        ("NONSENSE", 143),
    ]
    .into_iter()
    .enumerate()
    {
        let image = ImageBuilder::new()
            .packed(rig.base(catalog::BUSYBOX)?)
            .config("StopSignal", json!(word))
            .config("Cmd", json!(["sleep", "1000"]))
            .build()?;
        let reference = rig.publish(&format!("t2/signal:{row}"), &image).await?;
        let created = rig
            .create_in(&pod, &container(&format!("c{row}"), &reference, &[]))
            .await;
        let id = match created {
            Ok(id) => id,
            // Nonsense may be refused here, by its name; never at stop.
            Err(refused) if word == "NONSENSE" && refused.message().contains(word) => continue,
            Err(refused) => return Err(refused.into()),
        };
        rig.node.start_container(&id).await?;
        rig.node
            .stop_container(&id, 20)
            .await
            .with_context(|| format!("stop by {word:?}"))?;
        assert_eq!(rig.node.status(&id).await?.exit_code, code, "{word:?}");
    }

    let image = ImageBuilder::new()
        .packed(rig.base(catalog::BUSYBOX)?)
        .config("StopSignal", json!("SIGUSR1"))
        .build()?;
    let reference = rig.publish("t2/both:1", &image).await?;
    let mut config = container("both", &reference, &["sleep", "1000"]);
    config.stop_signal = cri::Signal::Sigrtminplus3.into();
    let id = rig.start_in(&pod, &config).await?;
    assert_eq!(
        rig.node.status(&id).await?.stop_signal(),
        cri::Signal::Sigrtminplus3
    );
    rig.node.stop_container(&id, 20).await?;
    assert_eq!(
        rig.node.status(&id).await?.exit_code,
        165,
        "the request's signal wins"
    );
    rig.finish().await
}

#[tokio::test]
async fn t4_times_are_ordered_zero_when_unset_and_survive_a_restart() -> Result<()> {
    let mut rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("t4").await?;
    let id = rig
        .create_in(&pod, &container("main", busybox, &["sleep", "1000"]))
        .await?;
    let created = rig.node.status(&id).await?;
    // 2020 in nanoseconds: seconds or milliseconds would be far below.
    assert!(
        created.created_at > 1_577_836_800_000_000_000,
        "{created:?}"
    );
    assert_eq!(
        (created.started_at, created.finished_at),
        (0, 0),
        "{created:?}"
    );
    rig.node.start_container(&id).await?;
    let running = rig.node.status(&id).await?;
    assert!(
        running.started_at >= running.created_at && running.finished_at == 0,
        "{running:?}"
    );

    let broken = rig
        .create_in(&pod, &container("broken", busybox, &["/absent"]))
        .await?;
    assert!(rig.node.start_container(&broken).await.is_err());
    let mut ids = vec![broken];
    for row in 0..60 {
        let config = container(&format!("short{row}"), busybox, &["true"]);
        ids.push(rig.start_in(&pod, &config).await?);
    }
    let mut before = Vec::new();
    for short in &ids {
        let status = rig.node.wait_exit(short).await?;
        let (created, started, finished) =
            (status.created_at, status.started_at, status.finished_at);
        assert!(created > 0 && finished >= created, "{status:?}");
        assert!(
            started == 0 || (created <= started && started <= finished),
            "{status:?}"
        );
        before.push((created, started, finished));
    }
    rig.node.kill()?;
    rig.node.launch().await?;
    for (short, before) in ids.iter().zip(before) {
        let status = rig.node.status(short).await?;
        assert_eq!(
            (status.created_at, status.started_at, status.finished_at),
            before
        );
    }
    assert_eq!(rig.node.status(&id).await?.started_at, running.started_at);
    rig.finish().await
}

/// A volume of 200 MB to copy makes CreateContainer slow.
#[tokio::test]
async fn t5_a_slow_creation_joined_again_and_again_ends_in_one_container() -> Result<()> {
    let rig = Rig::start().await?;
    let mut layer = Layer::new().directory("data");
    for number in 0..100 {
        layer = layer.file(&format!("data/{number}"), vec![b'0'; 2 << 20]);
    }
    let image = rig
        .busybox_with(layer)?
        .config("Volumes", json!({"/data": {}}))
        .build()?;
    let reference = rig.publish("t5/slow:1", &image).await?;
    let pod = rig.pod("t5").await?;
    let config = pods::fitting(
        &container("main", &reference, &["sleep", "1000"]),
        &pod.config,
    );
    let mut given_up = 0;
    let id = loop {
        let mut request = Request::new(cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        });
        request.set_timeout(Duration::from_millis(20));
        match rig.node.runtime.clone().create_container(request).await {
            Ok(answer) => break answer.into_inner().container_id,
            Err(status) => {
                let code = status.code();
                assert!(
                    matches!(code, Code::Cancelled | Code::DeadlineExceeded),
                    "{status:?}"
                );
                given_up += 1;
                assert!(given_up < 1000, "never ends");
            }
        }
    };
    assert!(given_up > 0, "it was not slow, so nothing is shown");
    let listed = rig.node.list_containers().await?;
    assert_eq!(
        listed.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(),
        [id.as_str()]
    );

    let pod_config = pods::pod(&rig.node, "t5-pod");
    let (mut pod_ids, mut given_up) = (Vec::new(), 0);
    while pod_ids.is_empty() {
        let mut request = Request::new(cri::RunPodSandboxRequest {
            config: Some(pod_config.clone()),
            runtime_handler: String::new(),
        });
        request.set_timeout(Duration::from_millis(2 + given_up));
        match rig.node.runtime.clone().run_pod_sandbox(request).await {
            Ok(answer) => pod_ids.push(answer.into_inner().pod_sandbox_id),
            Err(status) => {
                assert!(!status.message().contains("reserved"), "{status:?}");
                given_up += 1;
                assert!(given_up < 5000, "never ends: {status:?}");
            }
        }
    }
    let named = rig.node.list_pods().await?;
    let named = named.iter().filter(|pod| {
        pod.metadata
            .as_ref()
            .is_some_and(|metadata| metadata.name == "t5-pod")
    });
    assert_eq!(
        named.map(|pod| &pod.id).collect::<Vec<_>>(),
        pod_ids.iter().collect::<Vec<_>>()
    );

    let busybox = rig.busybox().await?;
    let mut broken = container("again", "registry.k8s.io/never-pulled:1", &["true"]);
    assert!(rig.create_in(&pod, &broken).await.is_err());
    broken.image = container("", busybox, &[]).image;
    let first = rig
        .create_in(&pod, &broken)
        .await
        .context("a failed creation frees the name")?;
    broken.metadata.get_or_insert_default().attempt = 1;
    let second = rig
        .create_in(&pod, &broken)
        .await
        .context("attempt + 1 is independent")?;
    assert_ne!(first, second);
    rig.finish().await
}

#[tokio::test]
async fn stop_and_remove_are_idempotent_and_lists_agree_with_statuses() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.networked_pod("twice").await?;
    let id = rig
        .start_in(&pod, &container("main", busybox, &["sleep", "1000"]))
        .await?;
    for _ in 0..2 {
        rig.node.stop_pod(&pod.id).await?;
        let status = rig.node.pod_status(&pod.id).await?;
        assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
        assert_eq!(
            rig.node.status(&id).await?.state(),
            cri::ContainerState::ContainerExited
        );
        assert_eq!(rig.node.list_pods().await?[0].state(), status.state());
    }
    for _ in 0..2 {
        rig.node.remove_container(&id).await?;
        rig.node.remove_pod(&pod.id).await?;
        rig.node.stop_container(&id, 1).await?;
        rig.node.stop_pod(&pod.id).await?;
    }
    rig.finish().await
}
