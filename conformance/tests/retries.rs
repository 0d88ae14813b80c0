//! "Name is reserved" does not exist: case T5.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::images::{Image, ImageBuilder, catalog};
use bulkhead_conformance::node::pods::{self, container};
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::tar::Layer;
use bulkhead_proto::runtime::v1 as cri;
use rustix::mount::UnmountFlags;
use serde_json::json;
use tonic::{Code, Request};

/// How long a caller waits before it asks the same again: less than the second a kubelet under test
/// might, so that a fast disk does not make the creation too quick to be given up.
const DEADLINE: Duration = Duration::from_millis(200);

/// An image with a VOLUME of 2 GB, in layers of 256 MB so that neither side holds it whole.
fn voluminous(rig: &Rig) -> Result<Image> {
    let mut image = ImageBuilder::new().packed(rig.base(catalog::BUSYBOX)?);
    for layer in 0..8 {
        let files = (0..8).fold(Layer::new().directory("data"), |layer_so_far, file| {
            layer_so_far.file(&format!("data/{layer}-{file}"), vec![b'0'; 32 << 20])
        });
        image = image.layer(files)?;
    }
    image.config("Volumes", json!({"/data": {}})).build()
}

#[tokio::test]
async fn t5_a_slow_creation_asked_for_again_and_again_ends_in_one_container() -> Result<()> {
    let rig = Rig::start().await?;
    let reference = rig.publish("t5/slow:1", &voluminous(&rig)?).await?;
    let pod = rig.pod("t5").await?;
    let config = container(
        "main",
        &reference,
        &["sh", "-c", "du -sm /data; sleep 1000"],
    );
    let config = pods::fitting(&config, &pod.config);
    let mut given_up = 0;
    let id = loop {
        let mut request = Request::new(cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        });
        request.set_timeout(DEADLINE);
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
    let copies = std::fs::read_dir(rig.node.store("writable"))?.count();
    assert_eq!(copies, 1, "a second copy was made");
    let mut next = config.clone();
    next.metadata.get_or_insert_default().attempt = 1;
    next.image = container("", rig.busybox().await?, &[]).image;
    assert_ne!(rig.create_in(&pod, &next).await?, id);
    rig.finish().await
}

#[tokio::test]
async fn t5_a_pod_asked_for_with_short_deadlines_is_made_once() -> Result<()> {
    let rig = Rig::start().await?;
    let config = pods::pod(&rig.node, "t5-pod");
    let mut given_up = 0;
    let id = loop {
        let mut request = Request::new(cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        });
        request.set_timeout(Duration::from_millis(2 + given_up));
        match rig.node.runtime.clone().run_pod_sandbox(request).await {
            Ok(answer) => break answer.into_inner().pod_sandbox_id,
            Err(status) => {
                assert!(!status.message().contains("reserved"), "{status:?}");
                given_up += 1;
                assert!(given_up < 5000, "never ends: {status:?}");
            }
        }
    };
    let listed = rig.node.list_pods().await?;
    let ids: Vec<_> = listed.iter().map(|pod| pod.id.as_str()).collect();
    assert_eq!(ids, [id.as_str()]);
    rig.finish().await
}

#[tokio::test]
async fn t5_a_failed_creation_frees_the_name_and_the_next_attempt_is_another() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("t5").await?;
    let mut config = container("again", "registry.k8s.io/never-pulled:1", &["true"]);
    assert!(rig.create_in(&pod, &config).await.is_err());
    // Fails later, once its writable layer is there.
    config.image = container("", busybox, &[]).image;
    pods::security(&mut config).run_as_username = "nobody-knows".to_owned();
    assert!(rig.create_in(&pod, &config).await.is_err());
    pods::security(&mut config).run_as_username.clear();
    let first = rig
        .create_in(&pod, &config)
        .await
        .context("a failed creation frees the name")?;
    config.metadata.get_or_insert_default().attempt = 1;
    let second = rig
        .create_in(&pod, &config)
        .await
        .context("attempt + 1 is independent")?;
    assert_ne!(first, second);
    rig.finish().await
}

/// Something holds the container's files busy: a mount on their folder can't be moved away.
fn hold_busy(folder: &Path) -> Result<()> {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", folder, "tmpfs", flags, Some(c"size=1m"))
        .with_context(|| format!("mount on {}", folder.display()))
}

#[tokio::test]
async fn t5_a_removal_that_fails_once_keeps_no_name() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("t5").await?;
    let config = container("main", busybox, &["sleep", "1000"]);
    let first = rig.start_in(&pod, &config).await?;
    let folder = rig.node.store("writable").join(&first);
    hold_busy(&folder)?;
    let refused = rig.node.remove_container(&first).await;
    let refused = refused.expect_err("its files are held");
    assert!(refused.message().contains("busy"), "{refused:?}");

    let mut next = config.clone();
    next.metadata.get_or_insert_default().attempt = 1;
    let next = rig.start_in(&pod, &next).await;
    let next = next.context("the next attempt does not care")?;
    let again = rig.create_in(&pod, &config).await;
    let again = again.expect_err("its files are still held");
    assert!(again.message().contains("busy"), "says why: {again:?}");
    assert!(!again.message().contains("reserved"), "{again:?}");

    rustix::mount::unmount(&folder, UnmountFlags::empty())?;
    let again = rig.start_in(&pod, &config).await;
    let again = again.context("the name is free as soon as its files are")?;
    assert_ne!(again, first);
    let mut listed: Vec<_> = rig.node.list_containers().await?;
    listed.sort_by_key(|one| one.created_at);
    let ids: Vec<_> = listed.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, [next.as_str(), again.as_str()]);

    let folder = rig.node.store("writable").join(&again);
    hold_busy(&folder)?;
    rig.node.stop_pod(&pod.id).await?;
    assert!(rig.node.remove_pod(&pod.id).await.is_err());
    rustix::mount::unmount(&folder, UnmountFlags::empty())?;
    let renewed = rig.run(pod.config.clone()).await;
    let renewed = renewed.context("the pod's name is free as soon as its files are")?;
    assert_ne!(renewed.id, pod.id);
    assert_eq!(rig.node.list_pods().await?.len(), 1);
    rig.finish().await
}
