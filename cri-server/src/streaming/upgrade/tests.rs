use super::*;

/// Headers from `name: value` lines.
fn headers(lines: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    headers
}

fn protocol(accepted: &Accepted, header: &HeaderName) -> Option<String> {
    let mut found = accepted.headers.iter().filter(|(name, _)| name == header);
    let value = found
        .next()
        .map(|(_, value)| value.to_str().unwrap().to_owned());
    assert!(found.next().is_none());
    value
}

#[test]
fn a_path_is_a_verb_and_a_token_and_nothing_else() {
    for (method, path, expected) in [
        ("GET", "/exec/T", Some((Verb::Exec, "T"))),
        ("POST", "/attach/T?x=y", Some((Verb::Attach, "T"))),
        ("POST", "/portforward/T", Some((Verb::PortForward, "T"))),
        ("PUT", "/exec/T", None),
        ("HEAD", "/exec/T", None),
        ("GET", "/exec", None),
        ("GET", "/", None),
        ("GET", "/Exec/T", None),
        ("GET", "//exec/T", None),
        ("GET", "/exec/T/", Some((Verb::Exec, "T/"))),
        ("GET", "/cri/exec/T", None),
    ] {
        let uri: Uri = path.parse().unwrap();
        let method: Method = method.parse().unwrap();
        assert_eq!(route(&method, &uri), expected, "{method} {path}");
    }
}

#[test]
fn a_web_page_from_elsewhere_is_refused_and_a_proxied_user_is_not() {
    let own: SocketAddr = "127.0.0.1:4242".parse().unwrap();
    for (case, lines, expected) in [
        ("crictl", &["host: 127.0.0.1:4242"][..], true),
        ("by name", &["host: localhost:4242"], true),
        ("no Host", &[], false),
        ("two Hosts", &["host: localhost", "host: localhost"], false),
        ("rebound", &["host: evil.example:4242"], false),
        ("user part", &["host: localhost@evil.example"], false),
        (
            "a name that begins so",
            &["host: localhost.evil.example"],
            false,
        ),
        ("page", &["host: 127.0.0.1:4242", "origin: http://x"], false),
        ("hidden", &["host: 127.0.0.1:4242", "origin: null"], false),
        (
            "local page",
            &["host: localhost", "origin: http://localhost:80"],
            true,
        ),
        (
            "through the kubelet",
            &[
                "host: api.example:6443",
                "origin: https://ui",
                "x-forwarded-for: 10.0.0.9",
            ],
            true,
        ),
    ] {
        assert_eq!(is_meant(&headers(lines), own), expected, "{case}");
    }
    let own: SocketAddr = "[fd00::5]:1".parse().unwrap();
    assert!(is_meant(&headers(&["host: [fd00::5]:1"]), own));
    assert!(!is_meant(&headers(&["host: localhost:1"]), own));
}

#[test]
fn over_spdy_the_first_protocol_known_here_is_taken() {
    let json = Carrier::SpdyCommand {
        format: Format::Json,
        resize: true,
    };
    let text = |resize| Carrier::SpdyCommand {
        format: Format::Text,
        resize,
    };
    for (verb, offered, expected) in [
        (
            Verb::Exec,
            &["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"][..],
            Ok(("v4.channel.k8s.io", json)),
        ),
        (
            Verb::Attach,
            &["v9.x, v3.channel.k8s.io ,v4.channel.k8s.io"],
            Ok(("v3.channel.k8s.io", text(true))),
        ),
        (
            Verb::Exec,
            &["v2.channel.k8s.io"],
            Ok(("v2.channel.k8s.io", text(false))),
        ),
        (
            Verb::Exec,
            &["channel.k8s.io"],
            Ok(("channel.k8s.io", text(false))),
        ),
        (
            Verb::PortForward,
            &["portforward.k8s.io"],
            Ok(("portforward.k8s.io", Carrier::SpdyForward)),
        ),
        (
            Verb::Exec,
            &["portforward.k8s.io"],
            Err(StatusCode::FORBIDDEN),
        ),
        (Verb::Exec, &[], Err(StatusCode::BAD_REQUEST)),
        (Verb::Exec, &[" , "], Err(StatusCode::BAD_REQUEST)),
    ] {
        let mut request = headers(&["connection: keep-alive, Upgrade", "upgrade: spdy/3.1"]);
        for line in offered {
            request.append(
                STREAM_PROTOCOL.clone(),
                HeaderValue::from_str(line).unwrap(),
            );
        }
        let answer = negotiate(verb, &request);
        let seen = answer
            .as_ref()
            .map(|a| (protocol(a, &STREAM_PROTOCOL).unwrap(), a.carrier))
            .map_err(|refused| refused.status);
        let expected = expected.map(|(name, carrier)| (name.to_owned(), carrier));
        assert_eq!(seen, expected, "{verb:?} {offered:?}");
    }
}

#[test]
fn a_client_whose_protocols_are_unknown_is_told_the_known_ones() {
    let request = headers(&[
        "connection: Upgrade",
        "upgrade: SPDY/3.1",
        "x-stream-protocol-version: v9.channel.k8s.io",
    ]);
    let refused = negotiate(Verb::Exec, &request).unwrap_err();
    let told: Vec<_> = refused
        .headers
        .iter()
        .map(|(_, v)| v.to_str().unwrap())
        .collect();
    assert_eq!(
        told,
        [
            "v4.channel.k8s.io",
            "v3.channel.k8s.io",
            "v2.channel.k8s.io",
            "channel.k8s.io"
        ]
    );
}

#[test]
fn over_websocket_the_sub_protocol_decides_and_may_be_absent() {
    let channels = |encoding, format, close_signal| {
        Carrier::Channels(Channels {
            encoding,
            format,
            close_signal,
        })
    };
    for (verb, offered, expected) in [
        (
            Verb::Exec,
            Some("v5.channel.k8s.io"),
            Ok((
                Some("v5.channel.k8s.io"),
                channels(Encoding::Binary, Format::Json, true),
            )),
        ),
        (
            Verb::Attach,
            Some("x, v4.base64.channel.k8s.io"),
            Ok((
                Some("v4.base64.channel.k8s.io"),
                channels(Encoding::Base64, Format::Json, false),
            )),
        ),
        (
            Verb::Exec,
            None,
            Ok((None, channels(Encoding::Binary, Format::Text, false))),
        ),
        (Verb::Exec, Some("x"), Err(StatusCode::FORBIDDEN)),
        (
            Verb::PortForward,
            Some("SPDY/3.1+portforward.k8s.io"),
            Ok((Some("SPDY/3.1+portforward.k8s.io"), Carrier::Tunnel)),
        ),
        (
            Verb::PortForward,
            Some("v4.channel.k8s.io"),
            Ok((
                Some("v4.channel.k8s.io"),
                Carrier::ForwardChannels(Encoding::Binary),
            )),
        ),
        (
            Verb::PortForward,
            None,
            Ok((None, Carrier::ForwardChannels(Encoding::Binary))),
        ),
    ] {
        let mut request = headers(&[
            "connection: Upgrade",
            "upgrade: WebSocket",
            "sec-websocket-version: 13",
            "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        ]);
        if let Some(offered) = offered {
            request.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offered));
        }
        let answer = negotiate(verb, &request);
        let seen = answer
            .as_ref()
            .map(|a| (protocol(a, &SEC_WEBSOCKET_PROTOCOL), a.carrier))
            .map_err(|refused| refused.status);
        let expected = expected.map(|(name, carrier)| (name.map(str::to_owned), carrier));
        assert_eq!(seen, expected, "{verb:?} {offered:?}");
        if let Ok(accepted) = answer {
            // The example of RFC 6455, section 1.3.
            let accept = protocol(&accepted, &SEC_WEBSOCKET_ACCEPT);
            assert_eq!(accept.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        }
    }
}

#[test]
fn what_is_no_upgrade_is_refused() {
    for (lines, status) in [
        (&["upgrade: SPDY/3.1"][..], 400),
        (&["connection: close", "upgrade: SPDY/3.1"], 400),
        (&["connection: Upgrade", "upgrade: h2c"], 400),
        (&["connection: Upgrade", "upgrade: websocket"], 426),
        (
            &[
                "connection: Upgrade",
                "upgrade: websocket",
                "sec-websocket-version: 13",
            ],
            400,
        ),
        (
            &[
                "connection: Upgrade",
                "upgrade: websocket",
                "sec-websocket-version: 13",
                "sec-websocket-key: short",
            ],
            400,
        ),
    ] {
        let refused = negotiate(Verb::Exec, &headers(lines)).unwrap_err();
        assert_eq!(refused.status.as_u16(), status, "{lines:?}");
    }
}
