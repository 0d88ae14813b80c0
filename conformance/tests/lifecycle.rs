//! The end of containers and pods: the names of signals (case T2), and ending twice.

use anyhow::{Context, Result};
use bulkhead_conformance::images::{ImageBuilder, catalog};
use bulkhead_conformance::node::pods::{self, container};
use bulkhead_conformance::rig::Rig;
use bulkhead_proto::runtime::v1 as cri;
use serde_json::json;

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
