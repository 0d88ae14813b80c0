//! Credentials: every shape of challenge (G1), every form of AuthConfig (G5), and where they may go
//! (K1).

use base64::Engine as _;

use super::script::Request;
use super::*;

/// The registry wants a bearer token `t` for everything under /v2/.
fn guard(registry: &Registry, challenges: &[&str]) {
    let challenges: Vec<String> = challenges.iter().map(|c| (*c).to_owned()).collect();
    registry.gate(move |request| {
        let proven = request.headers.get("authorization").map(String::as_str);
        if !request.path.starts_with("/v2/") || proven == Some("Bearer t") {
            return None;
        }
        let reply = Reply::status(401);
        Some(
            challenges
                .iter()
                .fold(reply, |reply, c| reply.header("WWW-Authenticate", c)),
        )
    });
}

fn basic(user: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(user);
    format!("Basic {encoded}")
}

#[tokio::test]
async fn g1_every_shape_of_challenge_is_answered() {
    let expires = r#"{"access_token":"t","expires_in":1}"#;
    for (case, challenges, token, query) in [
        (
            "realm and service only",
            &[r#"Bearer realm="REALM",service="s""#][..],
            r#"{"token":"t"}"#,
            "service=s&scope=repository%3Aa%2Fb%3Apull",
        ),
        (
            "lower case, unquoted",
            &["bearer realm=REALM,service=s"],
            r#"{"access_token":"t"}"#,
            "service=s&scope=repository%3Aa%2Fb%3Apull",
        ),
        (
            "Basic before Bearer",
            &[r#"Basic realm="x""#, r#"Bearer realm="REALM""#],
            expires,
            "scope=repository%3Aa%2Fb%3Apull",
        ),
        (
            "scope with a comma",
            &[r#"Bearer realm="REALM",scope="repository:a/b:pull,push",service="s""#],
            r#"{"token":"t"}"#,
            "service=s&scope=repository%3Aa%2Fb%3Apull%2Cpush",
        ),
        (
            "realm with a query",
            &[r#"Bearer realm="REALM?k=v",service="s""#],
            r#"{"token":"","access_token":"t"}"#,
            "k=v&service=s&scope=repository%3Aa%2Fb%3Apull",
        ),
    ] {
        let registry = Registry::start();
        registry.serve("a/b", "1", &Content::image(&[&[("a", "1")]]));
        let realm = registry.url("/token");
        let challenges: Vec<String> = challenges
            .iter()
            .map(|c| c.replace("REALM", &realm))
            .collect();
        let challenges: Vec<&str> = challenges.iter().map(String::as_str).collect();
        guard(&registry, &challenges);
        registry.answer("/token", move |_| Reply::json(token));
        let bench = Bench::new();
        bench.pull(&registry.name("a/b:1")).await.expect(case);
        let log = registry.log();
        let tokens: Vec<&Request> = log.iter().filter(|r| r.path == "/token").collect();
        assert_eq!(tokens[0].query, query, "{case}");
        assert!(!tokens[0].headers.contains_key("authorization"), "{case}");
    }
}

#[tokio::test]
async fn g1_a_challenge_that_cannot_be_met_is_unauthorized() {
    for (challenges, token, why) in [
        (&["Negotiate"][..], "", "neither Basic nor Bearer"),
        (&[], "", "neither Basic nor Bearer"),
        (&[r#"Basic realm="x""#], "", "user and password"),
        (&["Bearer"], "", "no URL"),
        (
            &[r#"Bearer realm="REALM""#],
            r#"{"token":"wrong"}"#,
            "unauthorized",
        ),
        (
            &[r#"Bearer realm="REALM""#],
            r#"{"token":"a\nb"}"#,
            "sends no token",
        ),
        (&[r#"Bearer realm="REALM""#], "{}", "sends no token"),
        (&[r#"Bearer realm="REALM/absent""#], "", "404"),
        (&[r#"Bearer realm="ftp://x/""#], "", "no https"),
        (&[r#"Bearer realm="http://other.test/""#], "", "no https"),
    ] {
        let registry = Registry::start();
        registry.serve("a/b", "1", &Content::image(&[&[("a", "1")]]));
        let realm = registry.url("/token");
        let challenges: Vec<String> = challenges
            .iter()
            .map(|c| c.replace("REALM", &realm))
            .collect();
        let challenges: Vec<&str> = challenges.iter().map(String::as_str).collect();
        guard(&registry, &challenges);
        registry.answer("/token", move |_| Reply::json(token));
        let bench = Bench::new();
        let failure = bench.pull(&registry.name("a/b:1")).await.unwrap_err();
        assert!(failure.message().contains(why), "{why}: {failure}");
    }
}

#[tokio::test]
async fn g5_every_form_of_credentials_arrives() {
    let form = |change: fn(&mut RegistryAuth)| {
        let mut auth = RegistryAuth::default();
        change(&mut auth);
        auth
    };
    let user = basic("u:p:q");
    for (case, auth, at_basic, at_bearer) in [
        (
            "auth",
            form(|a| a.auth = "dTpwOnE=".into()),
            true,
            "GET basic",
        ),
        (
            "auth with NULs",
            form(|a| a.auth = "dTpwOnEAAA==".into()),
            true,
            "GET basic",
        ),
        (
            "user and password",
            form(|a| {
                a.username = "u".into();
                a.password = "p:q".into();
            }),
            true,
            "GET basic",
        ),
        (
            "identity token",
            form(|a| a.identity_token = "refresh".into()),
            false,
            "POST",
        ),
        (
            "registry token",
            form(|a| a.registry_token = "t".into()),
            false,
            "none",
        ),
    ] {
        let registry = Registry::start();
        registry.serve("a/b", "1", &Content::image(&[&[("a", "1")]]));
        let expected = user.clone();
        registry.gate(move |request| {
            let proven = request.headers.get("authorization") == Some(&expected);
            (!proven).then(|| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"r\""))
        });
        let result = Bench::new()
            .pull_as(&registry.name("a/b:1"), Some(auth.clone()))
            .await;
        assert_eq!(result.is_ok(), at_basic, "{case} at Basic: {result:?}");

        let registry = Registry::start();
        registry.serve("a/b", "1", &Content::image(&[&[("a", "1")]]));
        let challenge = format!("Bearer realm=\"{}\",service=\"s\"", registry.url("/token"));
        guard(&registry, &[&challenge]);
        registry.answer("/token", |_| Reply::json(r#"{"token":"t"}"#));
        let bench = Bench::new();
        bench
            .pull_as(&registry.name("a/b:1"), Some(auth))
            .await
            .expect(case);
        let log = registry.log();
        let asked = log.iter().find(|r| r.path == "/token");
        match at_bearer {
            "none" => assert!(asked.is_none(), "{case}"),
            "POST" => {
                let request = asked.unwrap();
                assert_eq!(request.method, "POST", "{case}");
                assert!(
                    request.body.contains("grant_type=refresh_token"),
                    "{}",
                    request.body
                );
                assert!(
                    request.body.contains("refresh_token=refresh"),
                    "{}",
                    request.body
                );
                assert!(!request.headers.contains_key("authorization"), "{case}");
            }
            _ => assert_eq!(
                asked.unwrap().headers.get("authorization"),
                Some(&user),
                "{case}"
            ),
        }
    }
    let registry = Registry::start();
    registry.serve("a/b", "1", &Content::image(&[&[("a", "1")]]));
    let bad = form(|a| a.auth = "!!".into());
    let failure = Bench::new()
        .pull_as(&registry.name("a/b:1"), Some(bad))
        .await
        .unwrap_err();
    assert!(failure.message().contains("not base64"), "{failure}");
    assert!(registry.asked().is_empty(), "never anonymous");
}

fn user() -> Option<RegistryAuth> {
    Some(RegistryAuth {
        username: "u".into(),
        password: "secret".into(),
        ..Default::default()
    })
}

/// No trace of what is secret in anything another host was sent.
fn assert_knows_nothing(registry: &Registry) {
    for request in registry.log() {
        for name in ["authorization", "cookie", "x-mirror-token"] {
            assert!(!request.headers.contains_key(name), "{request:?}");
        }
        let everything = format!("{request:?}");
        assert!(!everything.contains("secret"), "{everything}");
        assert!(!everything.contains(&basic("u:secret")), "{everything}");
    }
}

#[tokio::test]
async fn k1_credentials_do_not_follow_a_redirect() {
    let (registry, other) = (Registry::start(), Registry::start());
    let content = Content::image(&[&[("a", "1")]]);
    registry.serve("a/b", "1", &content);
    let (digest, bytes) = content.layers[0].clone();
    other.answer("/blob", move |_| Reply::ok(bytes.clone()));
    let target = other.url("/blob?signature=x");
    registry.answer(&format!("/v2/a/b/blobs/{digest}"), move |_| {
        Reply::redirect(&target).header("Set-Cookie", "secret=1")
    });
    registry.gate(|request| {
        let proven = request.headers.contains_key("authorization");
        (!proven).then(|| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"r\""))
    });
    let bench = Bench::new();
    bench
        .pull_as(&registry.name("a/b:1"), user())
        .await
        .unwrap();
    assert_eq!(other.asked(), ["GET /blob?signature=x"]);
    assert_knows_nothing(&other);

    // Where the redirect leads asks for credentials: it gets none.
    let bench = Bench::new();
    let realm = other.url("/token");
    other.answer("/blob", move |_| {
        Reply::status(401).header("WWW-Authenticate", &format!("Bearer realm=\"{realm}\""))
    });
    other.forget();
    let failure = bench
        .pull_as(&registry.name("a/b:1"), user())
        .await
        .unwrap_err();
    assert_eq!(failure.class(), Class::Denied, "{failure}");
    assert!(!failure.message().contains("signature"), "{failure}");
    assert_eq!(other.asked(), ["GET /blob?signature=x"]);
    assert_knows_nothing(&other);
    bench.assert_clean(0);
}

#[tokio::test]
async fn k1_credentials_go_to_no_unrelated_realm_and_to_no_mirror() {
    let (registry, other) = (Registry::start(), Registry::start());
    registry.serve("a/b", "1", &Content::image(&[&[("a", "1")]]));
    // Another name of the same node: related to nothing.
    let realm = other.url("/token").replace("127.0.0.1", "127.0.0.2");
    guard(&registry, &[&format!("Bearer realm=\"{realm}\"")]);
    let bench = Bench::new();
    let failure = bench
        .pull_as(&registry.name("a/b:1"), user())
        .await
        .unwrap_err();
    assert_eq!(failure.class(), Class::Denied);
    assert!(other.asked().is_empty());

    let (registry, mirror) = (Registry::start(), Registry::start());
    let content = Content::image(&[&[("a", "1")]]);
    registry.serve("a/b", "1", &content);
    mirror.gate(|_| Some(Reply::status(401).header("WWW-Authenticate", "Basic realm=\"r\"")));
    bench.hosts_toml(
        "r.test",
        &format!(
            "server = \"{}\"\n[host.\"{}\"]\n[host.\"{}\".header]\nx-own = \"1\"",
            registry.url(""),
            mirror.url(""),
            mirror.url("")
        ),
    );
    registry.gate(|request| {
        let proven = request.headers.get("authorization") == Some(&basic("u:secret"));
        (!proven).then(|| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"r\""))
    });
    bench.pull_as("r.test/a/b:1", user()).await.unwrap();
    assert!(!mirror.asked().is_empty());
    assert_knows_nothing(&mirror);
    assert!(
        mirror
            .log()
            .iter()
            .all(|r| r.headers.get("x-own").is_some_and(|v| v == "1"))
    );
    assert!(
        !registry
            .log()
            .iter()
            .any(|r| r.headers.contains_key("x-own"))
    );

    // Credentials that name a host go to that one only.
    let named = |address: &str| {
        user().map(|auth| RegistryAuth {
            server_address: address.into(),
            ..auth
        })
    };
    mirror.forget();
    registry.forget();
    let bench = Bench::new();
    let elsewhere = named("other.test");
    let failure = bench
        .pull_as(&registry.name("a/b:1"), elsewhere)
        .await
        .unwrap_err();
    assert!(failure.message().contains("none are given"), "{failure}");
    assert_knows_nothing(&registry);
}

#[tokio::test]
async fn one_pull_s_credentials_give_nothing_to_another() {
    let registry = Registry::start();
    registry.serve("a/b", "1", &Content::image(&[&[("a", "1")]]));
    registry.gate(|request| {
        let proven = request.headers.get("authorization") == Some(&basic("u:secret"));
        (!proven).then(|| Reply::status(401).header("WWW-Authenticate", "Basic realm=\"r\""))
    });
    let bench = Bench::new();
    let name = registry.name("a/b:1");
    bench.pull_as(&name, user()).await.unwrap();
    let failure = bench.pull(&name).await.unwrap_err();
    assert_eq!(failure.class(), Class::Denied, "though the image is here");
    assert!(failure.message().contains("unauthorized"), "{failure}");
}
