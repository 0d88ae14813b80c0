//! Manifests and layers: cases M2, L2, L6.

use anyhow::Result;
use bulkhead_conformance::images::{Blob, Compression, ImageBuilder, PackedLayer, catalog};
use bulkhead_conformance::node::pods::container;
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::tar::{Entry, Layer};
use serde_json::{Value, json};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

#[tokio::test]
async fn m2_the_slot_says_what_a_blob_is_and_its_bytes_how_it_is_compressed() -> Result<()> {
    let rig = Rig::start().await?;
    let layer =
        |name: &str, compression| PackedLayer::new(Layer::new().file(name, name), compression);
    let docker = ImageBuilder::new()
        .types(DOCKER_MANIFEST, "application/octet-stream")
        .packed(rig.base(catalog::BUSYBOX)?.typed(DOCKER_GZIP))
        .packed(layer("zstd", Compression::Zstd)?.typed(DOCKER_ZSTD))
        .packed(layer("plain", Compression::None)?.typed(DOCKER_GZIP))
        .build()?;
    let mut untyped = ImageBuilder::new()
        .packed(rig.base(catalog::BUSYBOX)?)
        .packed(layer("zstd", Compression::Zstd)?.typed(DOCKER_GZIP))
        .packed(layer("plain", Compression::None)?.typed(DOCKER_ZSTD))
        .build()?;
    let mut body: Value = serde_json::from_slice(&untyped.manifest.bytes)?;
    body.as_object_mut()
        .expect("a manifest is an object")
        .remove("mediaType");
    let media_type = untyped.manifest.media_type.clone();
    untyped.manifest = Blob::new(&media_type, serde_json::to_vec(&body)?);

    let pod = rig.pod("m2").await?;
    for (name, image) in [("m2/docker:1", &docker), ("m2/untyped:1", &untyped)] {
        let reference = rig.publish(name, image).await?;
        let word = name.replace(['/', ':'], "-");
        let command = ["cat", "/zstd", "/plain", "/etc/passwd"];
        let (code, text) = rig
            .run_in(&pod, &container(&word, &reference, &command))
            .await?;
        assert_eq!(code, 0, "{name}");
        assert!(text.starts_with("zstdplainroot:x:0:0:"), "{name}: {text}");
    }

    let noise = Blob::new("application/vnd.oci.image.layer.v1.tar", vec![b'n'; 4096]);
    let no_tar = PackedLayer {
        diff_id: noise.digest.clone(),
        blob: noise,
    };
    rig.registry.add(
        "m2/noise:1",
        &ImageBuilder::new().packed(no_tar.clone()).build()?,
    );
    let refused = rig.node.pull(&rig.registry.reference("m2/noise:1")).await;
    let message = refused
        .expect_err("this layer is no tar")
        .message()
        .to_owned();
    assert!(
        message.contains(&no_tar.blob.digest[..19]),
        "names the layer: {message}"
    );
    rig.finish().await
}

#[tokio::test]
async fn l2_hard_links_to_a_symlink_to_a_name_that_goes_and_across_layers() -> Result<()> {
    let rig = Rig::start().await?;
    let image = ImageBuilder::new()
        .packed(rig.base(catalog::BUSYBOX)?)
        .layer(
            Layer::new()
                .directory("l")
                .symlink("l/s", "/nowhere")
                .entry(Entry::hard_link("l/h", "l/s"))
                .file("l/a", "bytes of a")
                .entry(Entry::hard_link("l/b", "l/a")),
        )?
        .layer(Layer::new().file("l/.wh.a", ""))?
        .layer(Layer::new().entry(Entry::hard_link("l/c", "l/b")))?
        .build()?;
    let reference = rig.publish("l2/links:1", &image).await?;
    let pod = rig.pod("l2").await?;
    let script = "readlink /l/h; ls /l; cat /l/b; echo; cat /l/c; echo; \
                  test -e /nowhere && echo followed; true";
    let main = container("main", &reference, &["sh", "-c", script]);
    let (code, text) = rig.run_in(&pod, &main).await?;
    let want = "/nowhere\nb\nc\nh\ns\nbytes of a\nbytes of a\n";
    assert_eq!((code, text.as_str()), (0, want));
    rig.finish().await
}

#[tokio::test]
async fn l6_selinux_labels_in_a_layer_never_fail_a_pull() -> Result<()> {
    let rig = Rig::start().await?;
    let label = b"system_u:object_r:container_file_t:s0\0";
    let labelled = |entry: Entry| entry.xattr("security.selinux", label);
    let layer = Layer::new()
        .entry(labelled(Entry::directory("x")))
        .entry(labelled(Entry::file("x/file", "content")))
        .entry(labelled(Entry::symlink("x/link", "file")).xattr("user.foo", b"bar"))
        .entry(labelled(Entry::symlink("x/dangling", "nowhere")))
        .entry(labelled(Entry::hard_link("x/hard", "x/file")));
    let image = rig
        .busybox_with(layer)?
        .config("Env", json!(["PATH=/bin"]))
        .build()?;
    let reference = rig.publish("l6/labels:1", &image).await?;
    let pod = rig.pod("l6").await?;
    let script = "cat /x/file /x/link /x/hard; readlink /x/dangling";
    let config = container("main", &reference, &["sh", "-c", script]);
    let (code, text) = rig.run_in(&pod, &config).await?;
    assert_eq!((code, text.as_str()), (0, "contentcontentcontentnowhere\n"));
    rig.finish().await
}
