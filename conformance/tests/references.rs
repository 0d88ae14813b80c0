//! Names of images: cases R1 and R2, and the choice from an index, M1.

use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::images::{ImageBuilder, catalog};
use bulkhead_conformance::node::pods::container;
use bulkhead_conformance::rig::{self, Rig};
use bulkhead_conformance::tar::Layer;
use bulkhead_conformance::wait;
use bulkhead_proto::runtime::v1 as cri;
use serde_json::{Value, json};

fn marked(mark: &str) -> Result<bulkhead_conformance::images::Image> {
    ImageBuilder::new()
        .layer(Layer::new().file("mark", mark))?
        .build()
}

#[tokio::test]
async fn r1_a_digest_pull_invents_no_tag_and_a_moved_tag_leaves_no_placeholder() -> Result<()> {
    let rig = Rig::start().await?;
    let (one, two) = (marked("one")?, marked("two")?);
    rig.registry.add("a/b:v1", &one);
    let name = rig.registry.reference("a/b");
    let digested = format!("{name}@{}", one.manifest.digest);

    let (tag, both) = (
        format!("{name}:v1"),
        format!("{name}:v1@{}", one.manifest.digest),
    );

    let id = rig.node.pull(&digested).await?;
    assert_eq!(id, one.config.digest);
    shown(&rig, &[&digested, &both, &id], &id, &[], &[&digested]).await?;
    assert_eq!(rig.node.image(&tag).await?, None, "a tag nobody pulled");
    assert_eq!(rig.node.list_images().await?.len(), 1);

    assert_eq!(rig.node.pull(&both).await?, id);
    let forms = [digested.as_str(), &both, &id];
    let found = rig.node.image(&id).await?.context("by id")?;
    let tags: Vec<&str> = found.repo_tags.iter().map(String::as_str).collect();
    assert!(tags.is_empty() || tags == [tag.as_str()], "{tags:?}");
    shown(&rig, &forms, &id, &tags, &[&digested]).await?;
    assert_eq!(rig.node.list_images().await?.len(), 1);

    assert_eq!(rig.node.pull(&tag).await?, id);
    let forms = [digested.as_str(), &both, &id, &tag];
    shown(&rig, &forms, &id, &[&tag], &[&digested]).await?;
    rig.registry.add("a/b:v1", &two);
    let second = rig.node.pull(&tag).await?;
    assert_eq!(second, two.config.digest);
    shown(&rig, &[&digested, &both, &id], &id, &[], &[&digested]).await?;
    let digested = format!("{name}@{}", two.manifest.digest);
    let forms = [digested.as_str(), &second, &tag];
    shown(&rig, &forms, &second, &[&tag], &[&digested]).await?;
    assert_eq!(rig.node.list_images().await?.len(), 2);

    rig.node.remove_image(&id).await?;
    assert_eq!(rig.node.image(&id).await?, None);
    assert_eq!(rig.node.list_images().await?.len(), 1);
    rig.finish().await
}

/// Every form names the image with these tags and digests, and lists show the same.
async fn shown(rig: &Rig, forms: &[&str], id: &str, tags: &[&str], digests: &[&str]) -> Result<()> {
    let listed = rig.node.list_images().await?;
    let listed = listed.iter().find(|image| image.id == id);
    for form in forms {
        let image = rig.node.image(form).await?;
        let image = image.with_context(|| format!("by {form}"))?;
        assert_eq!(image.id, id, "by {form}");
        assert_eq!(image.repo_tags, tags, "by {form}");
        assert_eq!(image.repo_digests, digests, "by {form}");
        assert_eq!(listed, Some(&image), "in the list and by {form}");
    }
    Ok(())
}

async fn used_bytes(rig: &Rig) -> Result<u64> {
    let answer = rig
        .node
        .images
        .clone()
        .image_fs_info(cri::ImageFsInfoRequest {})
        .await?;
    let file_system = answer.into_inner().image_filesystems.into_iter().next();
    Ok(file_system
        .and_then(|usage| usage.used_bytes)
        .context("no used_bytes")?
        .value)
}

#[tokio::test]
async fn r2_removal_by_id_takes_every_name_and_spares_the_running_container() -> Result<()> {
    let rig = Rig::start().await?;
    let filler: Vec<u8> = (0..4_000_000_u32)
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let image = rig
        .busybox_with(Layer::new().file("filler", filler))?
        .build()?;
    let empty = used_bytes(&rig).await?;
    let one = rig.publish("x/a:1", &image).await?;
    let two = rig.publish("y/b:1", &image).await?;
    let pod = rig.pod("r2").await?;
    let id = rig
        .start_in(&pod, &container("main", &one, &["sleep", "1000"]))
        .await?;

    rig.node.remove_image(&image.config.digest).await?;
    rig.node.remove_image(&image.config.digest).await?;
    for name in [&one, &two, &image.config.digest] {
        assert_eq!(rig.node.image(name).await?, None, "{name}");
    }
    // Not run before, so not in any cache of the container's.
    let sum = rig.node.output(&id, &["md5sum", "/filler"]).await?;
    assert!(sum.ends_with("/filler\n"), "{sum}");
    // The figure may be a few seconds old.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let held = used_bytes(&rig).await?;
    assert!(
        held > empty + 8_000_000,
        "freed under the container: {empty} then {held}"
    );

    rig.node.stop_container(&id, 0).await?;
    rig.node.remove_container(&id).await?;
    wait::until("the space freed", Duration::from_secs(15), async || {
        Ok((used_bytes(&rig).await? <= empty + 1_000_000).then_some(()))
    })
    .await?;
    rig.finish().await
}

#[tokio::test]
async fn m1_an_index_is_picked_by_platform_and_nothing_else_is_asked_for() -> Result<()> {
    let rig = Rig::start().await?;
    let ours = marked("ours")?;
    let elsewhere = match bulkhead_conformance::images::go_arch() {
        "arm64" => "amd64",
        _ => "arm64",
    };
    let other = ImageBuilder::new()
        .layer(Layer::new().file("mark", "other"))?
        .platform("linux", elsewhere)
        .build()?;
    let attestation = ImageBuilder::new()
        .layer(Layer::new().file("mark", "attestation"))?
        .platform("unknown", "unknown")
        .build()?;
    let platform = |os: &str, architecture: &str| json!({"os": os, "architecture": architecture});
    let note = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let mut entries = vec![
        (&attestation.manifest, platform("unknown", "unknown"), note),
        (&other.manifest, platform("linux", elsewhere), Value::Null),
        (
            &ours.manifest,
            platform("linux", bulkhead_conformance::images::go_arch()),
            Value::Null,
        ),
    ];
    for image in [&ours, &other, &attestation] {
        rig.registry.add("a/b", image);
    }
    let whole = rig::index(&entries);
    rig.registry.add_manifest("a/b:all", &whole);
    entries.truncate(2);
    rig.registry.add_manifest("a/b:none", &rig::index(&entries));

    let all = rig.registry.reference("a/b:all");
    assert_eq!(rig.node.pull(&all).await?, ours.config.digest);
    let image = rig.node.image(&all).await?.context("by tag")?;
    let by_index = format!("{}@{}", rig.registry.reference("a/b"), whole.digest);
    assert_eq!(image.repo_digests, [by_index]);
    for seen in rig.registry.take_log() {
        for image in [&other, &attestation] {
            let foreign = image.blobs().any(|blob| seen.path.ends_with(&blob.digest));
            assert!(!foreign, "asked for {}", seen.path);
        }
    }

    let refused = rig.node.pull(&rig.registry.reference("a/b:none")).await;
    let refused = refused.expect_err("nothing here is for this platform");
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused:?}");
    let message = refused.message();
    assert!(
        message.contains(&format!(
            "linux/{}",
            bulkhead_conformance::images::go_arch()
        )),
        "{message}"
    );
    assert_eq!(rig.node.list_images().await?.len(), 1);
    rig.finish().await
}

#[tokio::test]
async fn the_mirrors_of_other_hosts_serve_their_images_under_their_own_names() -> Result<()> {
    let rig = Rig::start().await?;
    let id = rig.node.pull("registry.k8s.io/pause:3.9").await?;
    assert_eq!(rig.node.pull("k8s.gcr.io/pause:3.9").await?, id);
    let image = rig
        .node
        .image("k8s.gcr.io/pause:3.9")
        .await?
        .context("pause")?;
    assert_eq!(image.repo_tags.len(), 2, "{:?}", image.repo_tags);
    assert!(rig.node.image(catalog::BUSYBOX).await?.is_none());
    rig.finish().await
}
