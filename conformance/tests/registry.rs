//! Registries off the happy path: cases G1, G2, G5, and registries that lie.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_conformance::images::{Blob, Image, ImageBuilder};
use bulkhead_conformance::registry::{Answer, Seen};
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::tar::Layer;
use bulkhead_proto::runtime::v1::AuthConfig;
use serde_json::json;

fn small(mark: &str) -> Result<Image> {
    ImageBuilder::new()
        .layer(Layer::new().file("mark", mark))?
        .build()
}

#[tokio::test]
async fn g1_challenges_of_every_shape_lead_to_a_token() -> Result<()> {
    let rig = Rig::start().await?;
    let realm = format!("http://{}/token", rig.registry.host());
    let bearer = format!("Bearer realm=\"{realm}\",service=\"s,t\"");
    let only_token = json!({"token": "T"});
    for (name, challenge, answer, query) in [
        (
            "plain",
            bearer.clone(),
            json!({"token": "T", "expires_in": 60}),
            "scope=repository",
        ),
        (
            "access",
            bearer.clone(),
            json!({"access_token": "T"}),
            "service=s",
        ),
        (
            "lower",
            format!("bearer realm={realm},service=s"),
            only_token.clone(),
            "service=s",
        ),
        (
            "basicfirst",
            format!("Basic realm=\"x\"\n{bearer}"),
            only_token.clone(),
            "scope=",
        ),
        (
            "scoped",
            format!("{bearer},scope=\"repository:g1/scoped:pull,push\""),
            only_token.clone(),
            "push",
        ),
        (
            "realmquery",
            format!("Bearer realm=\"{realm}?own=1\",service=\"s\""),
            only_token.clone(),
            "own=1",
        ),
    ] {
        let image = small(name)?;
        rig.registry.add(&format!("g1/{name}:1"), &image);
        let challenge = challenge.clone();
        rig.registry.script(move |seen| match seen.path.as_str() {
            "/token" => Some(Answer::json(&answer)),
            path if path.starts_with("/v2/") && seen.header("authorization") != "Bearer T" => {
                Some(Answer::unauthorized(&challenge))
            }
            _ => None,
        });
        rig.registry.take_log();
        let pulled = rig
            .node
            .pull(&rig.registry.reference(&format!("g1/{name}:1")))
            .await;
        let log = rig.registry.take_log();
        assert_eq!(
            pulled.with_context(|| format!("{name}: {log:#?}"))?,
            image.config.digest
        );
        let token = log
            .iter()
            .find(|seen| seen.path == "/token")
            .context("no token request")?;
        let asked = decoded(&token.query);
        assert!(asked.contains(query), "{name}: {asked}");
        let scope = format!("scope=repository:g1/{name}:pull");
        assert!(asked.contains(&scope), "{name}: {asked}");
    }
    rig.finish().await
}

/// Undoes the percent-encoding of the few characters a scope has.
fn decoded(query: &str) -> String {
    let mut text = query.to_owned();
    for (code, plain) in [
        ("%3A", ":"),
        ("%3a", ":"),
        ("%2F", "/"),
        ("%2f", "/"),
        ("%2C", ","),
    ] {
        text = text.replace(code, plain);
    }
    text
}

#[tokio::test]
async fn g2_resolving_needs_none_of_the_helpful_headers() -> Result<()> {
    type Twist = fn(&Seen, &Blob) -> Option<Answer>;
    let rig = Rig::start().await?;
    let twists: [(&str, Twist); 4] = [
        ("nodigest", |seen, manifest| {
            seen.path
                .contains("/manifests/")
                .then(|| Answer::blob(manifest).without("docker-content-digest"))
        }),
        ("nohead", |seen, _| {
            (seen.method == "HEAD").then(|| Answer::status(405))
        }),
        ("chunked", |seen, manifest| {
            (seen.method == "GET" && seen.path.contains("/manifests/")).then(|| {
                Answer::blob(manifest)
                    .without("docker-content-digest")
                    .chunked()
            })
        }),
        ("texttype", |seen, manifest| {
            (seen.method == "GET" && seen.path.contains("/manifests/"))
                .then(|| Answer::blob(manifest).header("content-type", "text/plain"))
        }),
    ];
    for (name, twist) in twists {
        let image = small(name)?;
        rig.registry.add(&format!("g2/{name}:1"), &image);
        let manifest = image.manifest.clone();
        rig.registry.script(move |seen| twist(seen, &manifest));
        let by_tag = rig.registry.reference(&format!("g2/{name}:1"));
        assert_eq!(
            rig.node.pull(&by_tag).await.context(name)?,
            image.config.digest
        );
        let by_digest = format!(
            "{}@{}",
            rig.registry.reference(&format!("g2/{name}")),
            image.manifest.digest
        );
        assert_eq!(
            rig.node.pull(&by_digest).await.context(name)?,
            image.config.digest
        );
    }

    let (image, other) = (small("hiccup")?, small("other")?);
    let wrong = other.manifest.clone();
    rig.registry.add("g2/hiccup:1", &image);
    rig.registry.script(move |seen| {
        seen.path
            .contains("/manifests/sha256")
            .then(|| Answer::blob(&wrong))
    });
    let by_digest = format!(
        "{}@{}",
        rig.registry.reference("g2/hiccup"),
        image.manifest.digest
    );
    let refused = rig.node.pull(&by_digest).await;
    assert!(
        refused.is_err(),
        "a digest reference is checked against the body"
    );

    let failures = Arc::new(Mutex::new(1));
    let manifest = image.manifest.clone();
    rig.registry.script(move |seen| {
        let mut left = failures.lock().expect("no test thread panicked");
        if seen.path.contains("/manifests/") && *left > 0 {
            *left -= 1;
            return Some(Answer::status(502));
        }
        // What a runtime must not be led astray by: the manifest's bytes as a blob.
        seen.path
            .ends_with(&format!("/blobs/{}", manifest.digest))
            .then(|| {
                Answer::body(manifest.bytes.clone())
                    .header("content-type", "application/octet-stream")
            })
    });
    rig.registry.take_log();
    // The first answer may end this pull; nothing of it may be remembered.
    if rig.node.pull(&by_digest).await.is_err() {
        rig.node.pull(&by_digest).await?;
    }
    let asked = rig.registry.take_log();
    let as_blob = format!("/blobs/{}", image.manifest.digest);
    assert!(
        asked.iter().all(|seen| !seen.path.ends_with(&as_blob)),
        "{asked:#?}"
    );
    assert_eq!(
        rig.node.image(&by_digest).await?.context("pulled")?.id,
        image.config.digest
    );
    rig.finish().await
}

#[tokio::test]
async fn g5_all_forms_of_credentials() -> Result<()> {
    let rig = Rig::start().await?;
    let basic = format!("Basic {}", STANDARD.encode("u:p:q"));
    let encoded = STANDARD.encode("u:p:q");
    let padded = STANDARD.encode("u:p:q\0\0");
    let with_auth = |auth: &str| AuthConfig {
        auth: auth.to_owned(),
        ..Default::default()
    };
    let named = AuthConfig {
        username: "u".to_owned(),
        password: "p:q".to_owned(),
        ..Default::default()
    };

    let image = small("basic")?;
    rig.registry.add("g5/basic:1", &image);
    let wanted = basic.clone();
    rig.registry.script(move |seen| {
        (seen.header("authorization") != wanted).then(|| Answer::unauthorized("Basic realm=\"r\""))
    });
    let reference = rig.registry.reference("g5/basic:1");
    for auth in [with_auth(&encoded), with_auth(&padded), named.clone()] {
        let id = rig.node.pull_with(&reference, Some(auth.clone())).await;
        assert_eq!(
            id.with_context(|| format!("{auth:?}"))?,
            image.config.digest
        );
        rig.node.remove_image(&image.config.digest).await?;
    }
    rig.registry.take_log();
    let broken = rig
        .node
        .pull_with(&reference, Some(with_auth("!!!not base64")))
        .await;
    assert!(broken.is_err(), "bad base64 is an error");
    assert!(
        rig.registry.take_log().is_empty(),
        "bad base64 is no anonymous pull"
    );
    let anonymous = rig.node.pull(&reference).await.expect_err("no credentials");
    assert!(!anonymous.message().contains("p:q"), "{anonymous:?}");

    let image = small("bearer")?;
    rig.registry.add("g5/bearer:1", &image);
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"s\"",
        rig.registry.host()
    );
    rig.registry.script(move |seen| {
        let given = seen.header("authorization");
        match (seen.path.as_str(), seen.method.as_str()) {
            ("/token", "GET") if given == basic => Some(Answer::json(&json!({"token": "T"}))),
            ("/token", "POST")
                if seen.body.contains("grant_type=refresh_token")
                    && seen.body.contains("refresh_token=I") =>
            {
                Some(Answer::json(&json!({"access_token": "T"})))
            }
            ("/token", _) => Some(Answer::status(401)),
            _ => (given != "Bearer T").then(|| Answer::unauthorized(&realm)),
        }
    });
    let reference = rig.registry.reference("g5/bearer:1");
    let identity = AuthConfig {
        identity_token: "I".to_owned(),
        ..Default::default()
    };
    let direct = AuthConfig {
        registry_token: "T".to_owned(),
        ..Default::default()
    };
    for auth in [with_auth(&encoded), named, identity, direct] {
        let id = rig.node.pull_with(&reference, Some(auth.clone())).await;
        assert_eq!(
            id.with_context(|| format!("{auth:?}"))?,
            image.config.digest
        );
        rig.node.remove_image(&image.config.digest).await?;
    }
    rig.finish().await
}

#[tokio::test]
async fn a_registry_that_lies_about_digest_or_size_gets_nothing_listed() -> Result<()> {
    let rig = Rig::start().await?;
    let image = small("honest")?;
    rig.registry.add("lies/a:1", &image);
    let reference = rig.registry.reference("lies/a:1");
    let layer = image.layers[0].clone();
    for lie in ["other bytes", "too long", "cut"] {
        let layer = layer.clone();
        rig.registry.script(move |seen| {
            if !seen.path.ends_with(&layer.digest) {
                return None;
            }
            let mut bytes = layer.bytes.to_vec();
            let length = bytes.len();
            Some(match lie {
                "other bytes" => {
                    bytes[length / 2] ^= 1;
                    Answer::body(bytes)
                }
                "too long" => {
                    bytes.extend_from_slice(&[0; 4096]);
                    Answer::body(bytes)
                }
                _ => Answer::body(bytes[..length / 2].to_vec()).length(length),
            })
        });
        let refused = rig.node.pull(&reference).await.expect_err(lie);
        assert!(
            refused.message().contains(&layer_name(&image)),
            "{lie}: {refused:?}"
        );
        assert!(!refused.message().contains('\n'), "one line: {refused:?}");
        assert_eq!(rig.node.list_images().await?.len(), 0, "{lie}");
    }
    rig.registry.script(|_| None);
    assert_eq!(rig.node.pull(&reference).await?, image.config.digest);
    rig.finish().await
}

/// Enough of a layer's digest to recognise it in a message.
fn layer_name(image: &Image) -> String {
    image.layers[0].digest["sha256:".len()..][..12].to_owned()
}
