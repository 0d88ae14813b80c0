//! The store against a scripted registry: what it asks, whom it tells what, what it accepts. Needs
//! root, for unpacking.

mod auth;
mod lies;
mod names;
mod script;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::script::{Content, Registry, Reply, gzip, host_arch, tar_of};
use super::*;
use crate::failure::Class;

/// A store in a folder of its own.
pub(super) struct Bench {
    pub folder: tempfile::TempDir,
    pub store: ImageStore,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(|_| ())
    }

    pub(super) fn with(change: impl FnOnce(&mut ImageSettings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = ImageSettings::new(folder.path().join("store"));
        settings.certs_d = vec![folder.path().join("certs.d")];
        settings.stall = Duration::from_secs(5);
        change(&mut settings);
        let store = ImageStore::open(settings).unwrap();
        Self { folder, store }
    }

    pub(super) async fn pull(&self, reference: &str) -> Result<Arc<Image>, Failure> {
        self.pull_as(reference, None).await
    }

    pub(super) async fn pull_as(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<Arc<Image>, Failure> {
        let reference = reference.to_owned();
        self.store.pull(PullRequest { reference, auth }).await
    }

    pub(super) fn hosts_toml(&self, host: &str, text: &str) {
        let folder = self.folder.path().join("certs.d").join(host);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
    }

    pub(super) fn count(&self, folder: &str) -> usize {
        let path = self.folder.path().join("store").join(folder);
        std::fs::read_dir(path).unwrap().count()
    }

    /// Nothing half-done or unreferenced is left; the trash is emptied in the background.
    pub(super) fn assert_clean(&self, layers: usize) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.count("trash") > 0 || self.count("layers") != layers {
            assert!(
                Instant::now() < end,
                "{} in the trash, {} layers instead of {layers}",
                self.count("trash"),
                self.count("layers")
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.count("staging"), 0);
    }
}

/// The future goes into tasks.
#[test]
fn a_pull_can_move_between_threads() {
    fn check<T: Send>(_: T) {}
    let bench = Bench::new();
    let request = PullRequest {
        reference: "x".into(),
        auth: None,
    };
    check(bench.store.pull(request));
}

#[tokio::test]
async fn a_pulled_image_is_listed_with_its_layers_and_config() {
    let registry = Registry::start();
    let content = Content::image(&[&[("a", "1"), ("dir/b", "2")], &[("c", "3")]]);
    registry.serve("x/a", "v1", &content);
    let bench = Bench::new();
    let image = bench.pull(&registry.name("x/a:v1")).await.unwrap();
    assert_eq!(image.id.to_string(), content.config_digest);
    assert_eq!(image.repo_tags, [registry.name("x/a:v1")]);
    let digest = registry.name(&format!("x/a@{}", content.digest));
    assert_eq!(image.repo_digests, [digest]);
    assert!(image.size > 0);
    assert_eq!(
        image.config.config().as_ref().unwrap().user().as_deref(),
        Some("7:8")
    );
    let lowers = bench.store.layers(&image.id).unwrap();
    assert_eq!(lowers.len(), 2);
    assert_eq!(std::fs::read(lowers[0].join("c")).unwrap(), b"3");
    assert_eq!(std::fs::read(lowers[1].join("dir/b")).unwrap(), b"2");
    assert!(bench.store.progress().is_empty());
    let info = bench.store.fs_info();
    assert!(info.used_bytes > 0 && info.inodes_used > 0 && info.timestamp_ns > 0);
    bench.assert_clean(2);
    for name in [
        "store",
        "store/layers",
        "store/staging",
        "store/trash",
        "store/writable",
    ] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(bench.folder.path().join(name))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o7777, 0o700, "{name}");
    }
}

#[tokio::test]
async fn what_is_here_is_not_fetched_again_and_the_registry_is_asked_every_time() {
    let registry = Registry::start();
    let content = Content::image(&[&[("a", "1")], &[("b", "2")]]);
    registry.serve("x/a", "v1", &content);
    registry.serve("y/b", "1", &Content::image(&[&[("a", "1")], &[("c", "3")]]));
    let bench = Bench::new();
    let first = bench.pull(&registry.name("x/a:v1")).await.unwrap();
    registry.forget();
    let again = bench.pull(&registry.name("x/a:v1")).await.unwrap();
    assert_eq!(first.id, again.id);
    let asked = registry.asked();
    assert_eq!(asked, ["HEAD /v2/x/a/manifests/v1"]);
    registry.forget();
    // Another image on the same base fetches what differs.
    bench.pull(&registry.name("y/b:1")).await.unwrap();
    let blobs = registry
        .asked()
        .iter()
        .filter(|a| a.contains("/blobs/"))
        .count();
    assert_eq!(blobs, 2, "config and one layer: {:?}", registry.asked());
    registry.answer("/v2/x/a/manifests/v1", |_| Reply::status(404));
    let failure = bench.pull(&registry.name("x/a:v1")).await.unwrap_err();
    assert_eq!(failure.class(), Class::NotFound);
    assert!(failure.message().contains("not found"), "{failure}");
    bench.assert_clean(3);
}

#[tokio::test]
async fn a_layer_asked_for_twice_at_once_is_fetched_once() {
    let registry = Registry::start();
    registry.serve("x/a", "1", &Content::image(&[&[("a", "1")], &[("b", "2")]]));
    let bench = Bench::new();
    let name = registry.name("x/a:1");
    let pulls = (0..8).map(|_| bench.pull(&name));
    let images = futures_util::future::join_all(pulls).await;
    let id = images[0].as_ref().unwrap().id.clone();
    assert!(images.iter().all(|i| i.as_ref().is_ok_and(|i| i.id == id)));
    let layers = registry.layer_requests();
    assert_eq!(layers.len(), 2, "{layers:?}");
    bench.assert_clean(2);
}

#[tokio::test]
async fn d3_the_same_layers_side_by_side_with_different_credentials_do_not_disturb_each_other() {
    let registry = Registry::start();
    registry.serve("x/a", "1", &Content::image(&[&[("a", "1")], &[("b", "2")]]));
    let bench = Bench::new();
    let name = registry.name("x/a:1");
    let pulls = (0..8).map(|i| {
        let auth = RegistryAuth {
            username: format!("u{i}"),
            ..Default::default()
        };
        bench.pull_as(&name, Some(auth))
    });
    for image in futures_util::future::join_all(pulls).await {
        let lowers = bench.store.layers(&image.unwrap().id).unwrap();
        assert_eq!(std::fs::read(lowers[1].join("a")).unwrap(), b"1");
    }
    bench.assert_clean(2);
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let registry = Registry::start();
    let content = Content::image(&[&[("a", "1")], &[("b", "2")]]);
    registry.serve("x/a", "1", &content);
    let slow = content.layers[1].clone();
    registry.answer(&format!("/v2/x/a/blobs/{}", slow.0), move |_| {
        Reply::ok(slow.1.clone()).stall_after(10)
    });
    let bench = Bench::new();
    let name = registry.name("x/a:1");
    let watched = async {
        // Until the second layer has begun and the first is there.
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let progress = bench.store.progress();
            let begun = progress.first().is_some_and(|p| {
                p.layers.len() == 2 && p.layers[0].done == p.layers[0].total && p.layers[1].done > 0
            });
            if begun && bench.count("layers") == 1 {
                break;
            }
        }
    };
    tokio::select! {
        result = bench.pull(&name) => panic!("{result:?}"),
        () = watched => {}
    }
    assert!(bench.store.progress().is_empty());
    bench.assert_clean(0);
    assert!(bench.store.list().is_empty());
}

#[tokio::test]
async fn t6_an_unclean_end_leaves_whole_images_and_nothing_else() {
    let registry = Registry::start();
    registry.serve("x/a", "1", &Content::image(&[&[("a", "1")], &[("b", "2")]]));
    registry.serve("x/b", "1", &Content::image(&[&[("c", "3")]]));
    let bench = Bench::new();
    bench.pull(&registry.name("x/a:1")).await.unwrap();
    let lost = bench.pull(&registry.name("x/b:1")).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    // What kill -9 leaves is what is on disk now.
    let from = bench.folder.path().join("store");
    let to = copy.path().join("store");
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([&from, &to])
        .status();
    assert!(status.unwrap().success());
    std::fs::create_dir_all(to.join("staging/half/fs/x")).unwrap();
    std::fs::create_dir_all(to.join("layers").join("0".repeat(64)).join("fs")).unwrap();
    std::fs::create_dir_all(to.join("trash/old/x")).unwrap();
    let chain = lost.chain_id.as_ref().unwrap();
    std::fs::remove_dir_all(to.join("layers").join(chain.hex())).unwrap();
    let store = ImageStore::open(ImageSettings::new(&to)).unwrap();
    let bench = Bench {
        folder: copy,
        store,
    };
    assert_eq!(
        bench.store.list().len(),
        1,
        "an image without its layer is gone"
    );
    assert!(bench.store.find(&registry.name("x/b:1")).unwrap().is_none());
    bench.assert_clean(2);
    // A pull repairs it.
    bench.pull(&registry.name("x/b:1")).await.unwrap();
    bench.assert_clean(3);
}

#[tokio::test]
async fn writable_layers_look_like_the_image_s_root_and_go_when_asked() {
    use std::os::unix::fs::MetadataExt as _;
    let registry = Registry::start();
    let root = super::unpack::testing::entry(b'5', "./")
        .mode(0o711)
        .owner(5, 6)
        .bytes(b"");
    registry.serve("x/a", "1", &Content::of_layers(vec![root]));
    let bench = Bench::new();
    let image = bench.pull(&registry.name("x/a:1")).await.unwrap();
    let writable = bench.store.writable("c1", &image.id).await.unwrap();
    let again = bench.store.writable("c1", &image.id).await.unwrap();
    assert_eq!(writable, again);
    let meta = std::fs::metadata(&writable.upper).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o711, 5, 6)
    );
    let above = std::fs::metadata(writable.upper.parent().unwrap()).unwrap();
    assert_eq!(above.mode() & 0o7777, 0o700);
    let usage = bench.store.writable_usage("c1").unwrap();
    assert!(usage.inodes > 0 && usage.timestamp_ns > 0);
    assert!(bench.store.writable_usage("other").is_none());
    for bad in ["", "..", "a/b", "../x", "a\0"] {
        let failure = bench.store.writable(bad, &image.id).await.unwrap_err();
        assert_eq!(failure.class(), Class::Invalid, "{bad:?}");
    }
    bench.store.writable("c2", &image.id).await.unwrap();
    bench.store.remove_writable("c1").await.unwrap();
    bench.store.remove_writable("c1").await.unwrap();
    assert!(!writable.upper.exists());
    bench.store.gc(BTreeMap::new()).await.unwrap();
    assert_eq!(bench.count("writable"), 0);
    bench.assert_clean(1);
}

#[tokio::test]
async fn an_image_without_layers_and_one_with_an_opaque_root_have_lower_directories() {
    use super::unpack::testing::entry;
    let registry = Registry::start();
    registry.serve("x/none", "1", &Content::of_layers(vec![]));
    let layers = vec![
        tar_of(&[("a", "1")]),
        [
            entry(b'0', ".wh..wh..opq").bytes(b""),
            entry(b'0', "b").bytes(b"2"),
        ]
        .concat(),
        tar_of(&[("c", "3")]),
    ];
    registry.serve("x/opaque", "1", &Content::of_layers(layers));
    let bench = Bench::new();
    let none = bench.pull(&registry.name("x/none:1")).await.unwrap();
    let lowers = bench.store.layers(&none.id).unwrap();
    assert_eq!(lowers.len(), 1);
    assert!(lowers[0].is_dir());
    let opaque = bench.pull(&registry.name("x/opaque:1")).await.unwrap();
    let lowers = bench.store.layers(&opaque.id).unwrap();
    assert!(!lowers.iter().any(|l| l.join("a").exists()));
    assert_eq!(std::fs::read(lowers[1].join("b")).unwrap(), b"2");
}

#[tokio::test]
async fn m1_an_index_is_read_by_platform() {
    let registry = Registry::start();
    let good = Content::image(&[&[("a", "1")]]);
    let foreign = Content::image(&[&[("foreign", "1")]]);
    registry.serve("x/a", "good", &good);
    registry.serve("x/a", "foreign", &foreign);
    let entry = |content: &Content, os: &str, arch: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{},
                "platform":{{"os":"{os}","architecture":"{arch}"}},
                "annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}"#,
            content.digest,
            content.manifest.len()
        )
    };
    let other = if host_arch() == "arm64" {
        "amd64"
    } else {
        "arm64"
    };
    let attestation = entry(&foreign, "unknown", "unknown");
    let wrong = entry(&foreign, "linux", other);
    let index = |entries: &[&String]| {
        let entries: Vec<&str> = entries.iter().map(|e| e.as_str()).collect();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}]}}"#,
            entries.join(",")
        )
    };
    let whole = index(&[&attestation, &wrong, &entry(&good, "linux", host_arch())]);
    let index_digest = Digest::of(whole.as_bytes());
    registry.document("x/a", "all", whole.as_bytes());
    registry.document("x/a", "two", index(&[&attestation, &wrong]).as_bytes());
    let bench = Bench::new();
    registry.forget();
    let image = bench.pull(&registry.name("x/a:all")).await.unwrap();
    assert_eq!(image.id.to_string(), good.config_digest);
    let digests = [registry.name(&format!("x/a@{index_digest}"))];
    assert_eq!(
        image.repo_digests, digests,
        "the digest asked for is the index's"
    );
    let foreign_blobs: Vec<&String> = foreign.layers.iter().map(|l| &l.0).collect();
    let asked = registry.asked();
    assert!(
        !asked
            .iter()
            .any(|a| foreign_blobs.iter().any(|b| a.contains(*b))),
        "{asked:?}"
    );
    let failure = bench.pull(&registry.name("x/a:two")).await.unwrap_err();
    assert_eq!(failure.class(), Class::NotFound);
    let wanted = format!("no image for linux/{}", host_arch());
    assert!(failure.message().contains(&wanted), "{failure}");
    assert_eq!(bench.store.list().len(), 1);
}

#[tokio::test]
async fn m2_media_types_on_nobody_s_list_are_no_matter() {
    let registry = Registry::start();
    let tars = [
        tar_of(&[("a", "1")]),
        tar_of(&[("b", "2")]),
        tar_of(&[("c", "3")]),
    ];
    let blobs = vec![
        gzip(&tars[0]),
        zstd::encode_all(tars[1].as_slice(), 3).unwrap(),
        tars[2].clone(),
    ];
    let docker = Content::of_blobs(&tars, blobs.clone(), |manifest| {
        manifest
            .replace(
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.docker.distribution.manifest.v2+json",
            )
            .replace(
                "application/vnd.oci.image.config.v1+json",
                "application/octet-stream",
            )
            .replacen(
                "LAYER",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                1,
            )
            .replacen(
                "LAYER",
                "application/vnd.docker.image.rootfs.diff.tar.zstd",
                1,
            )
            .replacen(
                "LAYER",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                1,
            )
    });
    let oci = Content::of_blobs(&tars, blobs, |manifest| {
        manifest
            .replace(
                r#""mediaType":"application/vnd.oci.image.manifest.v1+json","#,
                "",
            )
            .replace("LAYER", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    });
    registry.serve("x/docker", "1", &docker);
    registry.serve("x/oci", "1", &oci);
    let zip = b"PK\x03\x04 this is no tar archive".repeat(40);
    let none = Content::of_blobs(std::slice::from_ref(&zip), vec![zip.clone()], str::to_owned);
    registry.serve("x/none", "1", &none);
    let bench = Bench::new();
    for name in ["x/docker:1", "x/oci:1"] {
        let image = bench.pull(&registry.name(name)).await.unwrap();
        let lowers = bench.store.layers(&image.id).unwrap();
        for (lower, file) in lowers.iter().zip(["c", "b", "a"]) {
            assert!(lower.join(file).exists(), "{name} {file}");
        }
    }
    let failure = bench.pull(&registry.name("x/none:1")).await.unwrap_err();
    let layer = format!("layer {}", none.layers[0].0);
    assert!(failure.message().contains(&layer), "{failure}");
    assert!(failure.message().contains("malformed"), "{failure}");
    bench.assert_clean(3);
}

#[tokio::test]
async fn g2_resolving_works_without_helpful_headers() {
    let registry = Registry::start();
    let content = Content::image(&[&[("a", "1")]]);
    registry.serve("x/a", "1", &content);
    let manifest = content.manifest.clone();
    let digest = content.digest.clone();
    for (case, method, reply) in [
        ("HEAD without digest", "HEAD", Reply::ok(vec![])),
        ("HEAD not allowed", "HEAD", Reply::status(405)),
        (
            "GET without length",
            "GET",
            Reply::ok(manifest.clone()).chunked(),
        ),
        (
            "GET as text",
            "GET",
            Reply::ok(manifest.clone()).header("Content-Type", "text/plain"),
        ),
    ] {
        let bench = Bench::new();
        bench.pull(&registry.name("x/a:1")).await.unwrap();
        for target in ["1".to_owned(), digest.clone()] {
            let reply = reply.clone();
            registry.answer(&format!("/v2/x/a/manifests/{target}"), {
                let manifest = manifest.clone();
                move |request| match &request.method {
                    m if m == method => reply.clone(),
                    m if m == "HEAD" => Reply::status(404),
                    _ => Reply::ok(manifest.clone()),
                }
            });
        }
        registry.forget();
        let image = bench.pull(&registry.name("x/a:1")).await.expect(case);
        assert_eq!(image.id.to_string(), content.config_digest, "{case}");
        let by_digest = registry.name(&format!("x/a@{digest}"));
        bench.pull(&by_digest).await.expect(case);
        assert!(
            !registry
                .asked()
                .iter()
                .any(|a| a.contains(&format!("blobs/{digest}"))),
            "{case}"
        );
    }
    // A hiccup, while the registry would answer the same digest as a blob.
    let bench = Bench::new();
    let tries = std::sync::atomic::AtomicUsize::new(0);
    registry.answer("/v2/x/a/manifests/1", move |_| {
        match tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Reply::status(502),
            _ => Reply::ok(manifest.clone()),
        }
    });
    registry.forget();
    bench.pull(&registry.name("x/a:1")).await.unwrap();
    assert!(
        !registry
            .asked()
            .iter()
            .any(|a| a.contains(&format!("blobs/{digest}")))
    );
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable_and_says_so_first() {
    let bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let failure = bench
        .pull(&format!("127.0.0.1:{port}/x/a:1"))
        .await
        .unwrap_err();
    assert_eq!(failure.class(), Class::Reasoned);
    assert!(
        failure
            .message()
            .starts_with("RegistryUnavailable: pull 127.0.0.1:"),
        "{failure}"
    );
    let registry = Registry::start();
    registry.answer("/v2/x/a/manifests/1", |_| Reply::status(503));
    let failure = bench.pull(&registry.name("x/a:1")).await.unwrap_err();
    assert!(
        failure.message().starts_with("RegistryUnavailable: "),
        "{failure}"
    );
    assert!(failure.message().contains("503"), "{failure}");
    assert_eq!(registry.asked().len(), 3, "tried three times");
}

#[tokio::test]
async fn k3_a_host_that_is_not_loopback_is_never_asked_in_plain_text() {
    // The name leads to this node, where plain HTTP is served; TLS must be tried, and fail.
    let registry = Registry::start();
    registry.serve("x/a", "1", &Content::image(&[&[("a", "1")]]));
    let bench = Bench::new();
    bench.hosts_toml(
        "r.test",
        &format!("server = \"https://{}\"", registry.host()),
    );
    let failure = bench.pull("r.test/x/a:1").await.unwrap_err();
    assert!(
        failure.message().starts_with("RegistryUnavailable: "),
        "{failure}"
    );
    assert!(registry.asked().is_empty(), "{:?}", registry.asked());
    bench.hosts_toml(
        "r.test",
        &format!("server = \"http://{}\"", registry.host()),
    );
    let image = bench.pull("r.test/x/a:1").await.unwrap();
    assert_eq!(image.repo_tags, ["r.test/x/a:1"]);
    let asked = registry.asked();
    assert!(asked.iter().all(|a| a.ends_with("?ns=r.test")), "{asked:?}");
}
