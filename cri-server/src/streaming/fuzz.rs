//! The fuzz targets of what streaming clients send, by name. `make fuzz` runs them under libFuzzer;
//! the test here replays the corpus in the tree.

use std::time::Instant;

use http::header::{CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderMap, Method, Uri};

use super::Ticket;
use super::token::Tokens;
use super::upgrade::{self, Carrier, Verb};
use super::{remotecommand, spdy, websocket};

/// A target's name, which is its corpus' folder, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("spdy-frames", spdy::fuzz::frames),
    ("spdy-headers", spdy::fuzz::headers),
    ("spdy-session", spdy::fuzz::session),
    ("upgrade", upgrades),
    ("token", tokens),
    ("websocket-message", websocket::fuzz::message),
    ("terminal-sizes", remotecommand::fuzz::sizes),
];

/// Upgrades: a path, then header lines. What is accepted fits what was asked for and is answered
/// with one protocol; what is not is the client's fault.
fn upgrades(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let path = lines.next().unwrap_or_default();
    if let Ok(uri) = Uri::try_from(path)
        && let Some((verb, token)) = upgrade::route(&Method::POST, &uri)
    {
        assert_eq!(uri.path(), format!("/{}/{token}", verb.path()));
    }
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    upgrade::is_meant(&headers, ([127, 0, 0, 1], 4711).into());
    for verb in [Verb::Exec, Verb::Attach, Verb::PortForward] {
        match upgrade::negotiate(verb, &headers) {
            Err(refused) => assert!(refused.status.is_client_error(), "{refused:?}"),
            Ok(accepted) => check_accepted(verb, &accepted),
        }
    }
}

fn check_accepted(verb: Verb, accepted: &upgrade::Accepted) {
    let forwards = match accepted.carrier {
        Carrier::SpdyCommand { .. } | Carrier::Channels(_) => false,
        Carrier::SpdyForward | Carrier::ForwardChannels(_) | Carrier::Tunnel => true,
    };
    assert_eq!(forwards, verb == Verb::PortForward, "{accepted:?}");
    let count = |of: HeaderName| {
        let names = accepted.headers.iter().map(|(name, _)| name);
        names.filter(|name| **name == of).count()
    };
    assert_eq!((count(CONNECTION), count(UPGRADE)), (1, 1), "{accepted:?}");
    assert!(count(SEC_WEBSOCKET_ACCEPT) <= 1, "{accepted:?}");
    assert!(accepted.headers.len() <= 4, "{accepted:?}");
}

/// Tokens: nothing but a token is one, and trying others takes none away.
fn tokens(data: &[u8]) {
    let (tokens, now) = (Tokens::default(), Instant::now());
    let ticket = Ticket::PortForward {
        pod: "pod".to_owned(),
        ports: Vec::new(),
    };
    let token = tokens.give(ticket.clone(), now).expect("the first");
    let guess = String::from_utf8_lossy(data).into_owned();
    // One that is right but for its beginning, too.
    let rest = token.get(guess.len()..).unwrap_or_default();
    let spliced = format!("{guess}{rest}");
    for guess in [guess, spliced] {
        if guess != token {
            assert_eq!(tokens.take(&guess, now), None, "{guess:?}");
        }
    }
    assert_eq!(tokens.take(&token, now), Some(ticket));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn what_must_hold_for_any_bytes_holds_for_the_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let mut count = 0;
            for file in corpus.join(name).read_dir().expect(name) {
                let path = file.expect(name).path();
                println!("{}", path.display());
                target(&std::fs::read(&path).expect(name));
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }
}
