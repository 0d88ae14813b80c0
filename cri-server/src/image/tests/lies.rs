//! Registries that lie, break off, redirect into the dark or never end: K2, K4, K5.

use super::script::ranged;
use super::*;

/// A registry with one image of one layer, whose blob is answered by `change`.
fn one_layer(
    change: impl Fn(&[u8], &script::Request) -> Reply + Send + Sync + 'static,
) -> (Registry, Content) {
    let registry = Registry::start();
    let text = "some text that compresses badly: 1a2b3c4d5e6f7g8h9i".repeat(20);
    let content = Content::image(&[&[("a", &text)]]);
    registry.serve("x/a", "1", &content);
    let (digest, bytes) = content.layers[0].clone();
    registry.answer(&format!("/v2/x/a/blobs/{digest}"), move |request| {
        change(&bytes, request)
    });
    (registry, content)
}

#[tokio::test]
async fn k4_a_cut_download_goes_on_where_it_stopped() {
    let (registry, _) = one_layer(|bytes, request| {
        if request.headers.contains_key("range") {
            ranged(bytes, request)
        } else {
            Reply::ok(bytes.to_vec()).cut_after(50)
        }
    });
    let bench = Bench::new();
    bench.pull(&registry.name("x/a:1")).await.unwrap();
    let log = registry.log();
    let range = log.iter().find_map(|r| r.headers.get("range")).unwrap();
    assert!(range.starts_with("bytes=50-"), "{range}");
    // A registry without ranges sends all of it again.
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let (registry, _) =
        one_layer(
            move |bytes, _| match tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Reply::ok(bytes.to_vec()).cut_after(50),
                _ => Reply::ok(bytes.to_vec()),
            },
        );
    let bench = Bench::new();
    bench.pull(&registry.name("x/a:1")).await.unwrap();
    bench.assert_clean(1);
}

#[tokio::test]
async fn k4_wrong_bytes_lengths_and_ranges_are_refused_and_leave_nothing() {
    type Change = fn(&[u8], &script::Request) -> Reply;
    let flipped: Change = |bytes, _| {
        let mut bytes = bytes.to_vec();
        bytes[20] ^= 1;
        Reply::ok(bytes)
    };
    let longer: Change = |bytes, _| Reply::ok([bytes, b"x"].concat());
    let longer_chunked: Change = |bytes, _| Reply::ok([bytes, b"x"].concat()).chunked();
    let shorter: Change = |bytes, _| Reply::ok(bytes[..bytes.len() - 1].to_vec());
    let other_range: Change = |bytes, request| {
        if request.headers.contains_key("range") {
            let mut reply = Reply::status(206);
            reply = reply.header("Content-Range", "bytes 0-9/100");
            reply
        } else {
            Reply::ok(bytes.to_vec()).cut_after(50)
        }
    };
    let wrong_rest: Change = |bytes, request| {
        let mut bytes = bytes.to_vec();
        if request.headers.contains_key("range") {
            bytes[70] ^= 1;
            ranged(&bytes, request)
        } else {
            Reply::ok(bytes).cut_after(50)
        }
    };
    for (change, why) in [
        (flipped, "its bytes have digest"),
        (longer, "more than"),
        (longer_chunked, "more than"),
        (shorter, "where the manifest says"),
        (other_range, "asked for"),
        (wrong_rest, "its bytes have digest"),
    ] {
        let (registry, content) = one_layer(change);
        let bench = Bench::new();
        let failure = bench.pull(&registry.name("x/a:1")).await.unwrap_err();
        assert!(failure.message().contains(why), "{why}: {failure}");
        let layer = format!("layer {}", content.layers[0].0);
        assert!(failure.message().contains(&layer), "{failure}");
        assert!(bench.store.list().is_empty());
        bench.assert_clean(0);
    }
}

#[tokio::test]
async fn k4_a_lying_mirror_is_passed_over() {
    let (registry, mirror) = (Registry::start(), Registry::start());
    let good = Content::image(&[&[("a", "1")]]);
    let evil = Content::image(&[&[("a", "evil")]]);
    registry.serve("x/a", "1", &good);
    // By digest, the mirror answers with something else, of the same length where it matters.
    let manifest = evil.manifest.clone();
    mirror.answer(&format!("/v2/x/a/manifests/{}", good.digest), move |_| {
        Reply::ok(manifest.clone())
    });
    for (digest, bytes) in good.layers.clone() {
        mirror.answer(&format!("/v2/x/a/blobs/{digest}"), move |_| {
            let mut bytes = bytes.clone();
            bytes[30] ^= 1;
            Reply::ok(bytes)
        });
    }
    let config = evil.config.clone();
    mirror.answer(
        &format!("/v2/x/a/blobs/{}", good.config_digest),
        move |_| Reply::ok(config.clone()),
    );
    let bench = Bench::new();
    let file = format!(
        "server = \"{}\"\n[host.\"{}\"]",
        registry.url(""),
        mirror.url("")
    );
    bench.hosts_toml("r.test", &file);
    let name = format!("r.test/x/a@{}", good.digest);
    let image = bench.pull(&name).await.unwrap();
    assert_eq!(image.id.to_string(), good.config_digest);
    assert_eq!(mirror.asked().len(), 3, "{:?}", mirror.asked());
    let lowers = bench.store.layers(&image.id).unwrap();
    assert_eq!(std::fs::read(lowers[0].join("a")).unwrap(), b"1");
    // Without the registry itself there is nobody left.
    let bench = Bench::new();
    bench.hosts_toml("r.test", &format!("server = \"{}\"", mirror.url("")));
    let failure = bench.pull(&name).await.unwrap_err();
    assert!(failure.message().contains("not to be trusted"), "{failure}");
    bench.assert_clean(0);
}

#[tokio::test]
async fn k4_the_config_s_diff_ids_decide() {
    let registry = Registry::start();
    let (a, b) = (script::tar_of(&[("a", "1")]), script::tar_of(&[("b", "2")]));
    // The manifest's layer is whole and fits its digest; the config promises another.
    let swapped = Content::of_blobs(&[b], vec![script::gzip(&a)], str::to_owned);
    registry.serve("x/a", "1", &swapped);
    let missing = Content::of_blobs(std::slice::from_ref(&a), vec![], str::to_owned);
    registry.serve("x/b", "1", &missing);
    let bench = Bench::new();
    let failure = bench.pull(&registry.name("x/a:1")).await.unwrap_err();
    assert!(failure.message().contains("the config says"), "{failure}");
    let failure = bench.pull(&registry.name("x/b:1")).await.unwrap_err();
    assert!(failure.message().contains("1 diff ids"), "{failure}");
    bench.assert_clean(0);
}

#[tokio::test]
async fn k2_k3_redirects_are_bounded_and_lead_nowhere_forbidden() {
    for (to, why) in [
        ("SELF", "more than 5 times"),
        ("", "redirects without saying where"),
        ("http://", "no URL"),
        ("ftp://x/", "scheme ftp"),
        ("file:///etc/passwd", "redirects to"),
        ("http://registry.test/x", "plain HTTP at registry.test"),
        ("https://127.0.0.1:1/x", "RegistryUnavailable"),
    ] {
        let registry = Registry::start();
        registry.serve("x/a", "1", &Content::image(&[&[("a", "1")]]));
        let target = match to {
            "SELF" => registry.url("/v2/x/a/manifests/1"),
            other => other.to_owned(),
        };
        registry.answer("/v2/x/a/manifests/1", move |_| match target.as_str() {
            "" => Reply::status(307),
            target => Reply::redirect(target),
        });
        let bench = Bench::new();
        let failure = bench.pull(&registry.name("x/a:1")).await.unwrap_err();
        assert!(failure.message().contains(why), "{why}: {failure}");
    }
}

#[tokio::test]
async fn k5_endless_and_huge_answers_are_cut() {
    let registry = Registry::start();
    registry.answer("/v2/x/big/manifests/1", |_| Reply::ok(vec![b' '; 5 << 20]));
    registry.answer("/v2/x/chunked/manifests/1", |_| {
        Reply::ok(vec![b' '; 5 << 20]).chunked()
    });
    registry.answer("/v2/x/error/manifests/1", |_| {
        let mut reply = Reply::ok(vec![b'x'; 1 << 20]);
        reply = reply.header("X-Long", &"y".repeat(1000));
        reply
    });
    let bench = Bench::with(|settings| {
        settings.stall = Duration::from_millis(300);
        settings.no_progress = Duration::from_millis(600);
    });
    for name in ["x/big:1", "x/chunked:1"] {
        let failure = bench.pull(&registry.name(name)).await.unwrap_err();
        assert!(
            failure.message().contains("more than 4194304 bytes"),
            "{failure}"
        );
    }
    let failure = bench.pull(&registry.name("x/error:1")).await.unwrap_err();
    assert!(failure.message().len() < 1000, "{failure}");
    let (registry, _) = one_layer(|bytes, _| Reply::ok(bytes.to_vec()).stall_after(50));
    let begun = Instant::now();
    let failure = bench.pull(&registry.name("x/a:1")).await.unwrap_err();
    assert!(
        failure.message().starts_with("RegistryUnavailable: "),
        "{failure}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    bench.assert_clean(0);
}
