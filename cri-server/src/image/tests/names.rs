//! Names of images and their removal: cases R1 and R2.

use super::*;

#[tokio::test]
async fn r1_a_digest_pull_invents_no_tag_and_a_moved_tag_leaves_no_placeholder() {
    let registry = Registry::start();
    let (one, two) = (
        Content::image(&[&[("a", "1")]]),
        Content::image(&[&[("a", "2")]]),
    );
    registry.serve("a/b", "v1", &one);
    let bench = Bench::new();
    let by_digest = registry.name(&format!("a/b@{}", one.digest));
    let both = registry.name(&format!("a/b:v1@{}", one.digest));
    let tag = registry.name("a/b:v1");
    let id = one.config_digest.clone();

    for name in [&by_digest, &both] {
        let image = bench.pull(name).await.unwrap();
        assert_eq!(image.id.to_string(), id);
        assert!(image.repo_tags.is_empty(), "{image:?}");
        assert_eq!(image.repo_digests, [by_digest.as_str()]);
        let hex = id.strip_prefix("sha256:").unwrap();
        for form in [&by_digest, &both, &id, hex, &hex[..12], &id[..20]] {
            let found = bench.store.find(form).unwrap().expect(form);
            assert_eq!(found.id.to_string(), id, "{form}");
        }
        assert!(
            bench.store.find(&tag).unwrap().is_none(),
            "nobody pulled the tag"
        );
    }

    bench.pull(&tag).await.unwrap();
    registry.serve("a/b", "v1", &two);
    let moved = bench.pull(&tag).await.unwrap();
    assert_eq!(moved.id.to_string(), two.config_digest);
    assert_eq!(moved.repo_tags, [tag.as_str()]);
    let old = bench.store.find(&id).unwrap().unwrap();
    assert!(old.repo_tags.is_empty());
    assert_eq!(old.repo_digests, [by_digest.as_str()]);
    assert_eq!(bench.store.list().len(), 2);
    bench.store.remove(&id).await.unwrap();
    assert_eq!(bench.store.list().len(), 1);
    bench.assert_clean(1);
}

#[tokio::test]
async fn r2_removal_takes_every_name_and_a_holder_does_not_notice() {
    let registry = Registry::start();
    let content = Content::image(&[&[("a", "1")]]);
    registry.serve("x/a", "1", &content);
    registry.serve("y/b", "1", &content);
    let bench = Bench::new();
    let before = bench.store.fs_info().used_bytes;
    let names = [registry.name("x/a:1"), registry.name("y/b:1")];
    for name in &names {
        bench.pull(name).await.unwrap();
    }
    let images = bench.store.list();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags.len(), 2);
    let id = images[0].id.clone();
    bench.store.hold(&id, "c1").unwrap();
    let lowers = bench.store.layers(&id).unwrap();
    let full = bench.store.fs_info().used_bytes;
    assert!(full > before);
    for _ in 0..2 {
        bench.store.remove(&id.to_string()).await.unwrap();
    }
    assert!(bench.store.list().is_empty());
    for name in &names {
        assert!(bench.store.find(name).unwrap().is_none());
        bench.store.remove(name).await.unwrap();
    }
    assert!(lowers[0].join("a").exists(), "held");
    assert_eq!(bench.store.layers(&id).unwrap(), lowers);
    assert_eq!(
        bench.store.fs_info().used_bytes,
        full,
        "not before the holder is gone"
    );
    bench.store.release("c1").await.unwrap();
    bench.store.release("c1").await.unwrap();
    assert_eq!(bench.store.fs_info().used_bytes, before);
    assert!(bench.store.layers(&id).is_err());
    bench.assert_clean(0);
}

#[tokio::test]
async fn a_removed_image_that_is_held_comes_back_by_a_pull_without_its_layers() {
    let registry = Registry::start();
    registry.serve("x/a", "1", &Content::image(&[&[("a", "1")]]));
    let bench = Bench::new();
    let image = bench.pull(&registry.name("x/a:1")).await.unwrap();
    bench.store.hold(&image.id, "c1").unwrap();
    bench.store.remove("sha256:").await.unwrap_err();
    bench.store.remove(&registry.name("x/a:1")).await.unwrap();
    registry.forget();
    bench.pull(&registry.name("x/a:1")).await.unwrap();
    assert!(registry.layer_requests().is_empty());
    bench.store.release("c1").await.unwrap();
    assert_eq!(bench.store.list().len(), 1);
    // Holders that died with the node.
    bench.store.hold(&image.id, "c2").unwrap();
    bench.store.remove(&image.id.to_string()).await.unwrap();
    bench.assert_clean(1);
    bench
        .store
        .gc(BTreeMap::from([("c2".to_owned(), image.id.clone())]))
        .await
        .unwrap();
    bench.assert_clean(1);
    bench.store.gc(BTreeMap::new()).await.unwrap();
    bench.assert_clean(0);
    let failure = bench.store.hold(&image.id, "c3").unwrap_err();
    assert_eq!(failure.class(), Class::NotFound);
}

#[tokio::test]
async fn i4_a_malformed_name_is_refused_and_an_unknown_one_is_absent() {
    let bench = Bench::new();
    for bad in ["", "../x", "x:", "a b", "UPPER", "x@sha256:1", "a\nb"] {
        assert_eq!(
            bench.store.find(bad).unwrap_err().class(),
            Class::Invalid,
            "{bad:?}"
        );
        assert_eq!(
            bench.pull(bad).await.unwrap_err().class(),
            Class::Invalid,
            "{bad:?}"
        );
    }
    for unknown in [
        "x",
        "r.io/x:1",
        "abcdef",
        &"a".repeat(64),
        &format!("sha256:{}", "a".repeat(64)),
    ] {
        assert!(bench.store.find(unknown).unwrap().is_none(), "{unknown}");
        bench.store.remove(unknown).await.unwrap();
    }
}
