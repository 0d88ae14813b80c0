//! What a client's HTTP request asks for, and what it is answered: paths, who may ask, and the
//! protocol both will speak. Pure.
//!
//! Sources: SPDY upgrades as `k8s.io/apimachinery` `pkg/util/httpstream` does them, WebSocket by
//! RFC 6455 section 4.2, the sub-protocols by `k8s.io/apimachinery` `pkg/util/remotecommand` and
//! `pkg/util/portforward`.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode, Uri};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::status::Format;

static STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
static ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The upgrade token of the SPDY version Kubernetes froze on.
const SPDY: &str = "SPDY/3.1";

/// What is done over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Exec,
    Attach,
    PortForward,
}

impl Verb {
    /// As it stands in a URL.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

/// How payload travels in a WebSocket message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Binary messages; the channel is the first byte.
    Binary,
    /// Text messages in base64; the channel is the first character, an ASCII digit.
    Base64,
}

/// The channels of a remote command over WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Channels {
    pub(super) encoding: Encoding,
    pub(super) format: Format,
    /// The client can half-close a channel (version 5).
    pub(super) close_signal: bool,
}

/// What both sides speak after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// A remote command over SPDY streams; with terminal sizes from version 3.
    SpdyCommand { format: Format, resize: bool },
    /// Port forwarding over SPDY streams.
    SpdyForward,
    /// A remote command over WebSocket channels.
    Channels(Channels),
    /// Port forwarding over WebSocket channels.
    ForwardChannels(Encoding),
    /// Port forwarding over SPDY inside WebSocket messages.
    Tunnel,
}

/// An answer of 101 and what follows it.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) carrier: Carrier,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

/// An answer that refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) message: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

/// All that is not to be known about looks like this.
pub(super) fn not_found() -> Refused {
    Refused {
        status: StatusCode::NOT_FOUND,
        message: "not found".to_owned(),
        headers: Vec::new(),
    }
}

fn bad(message: impl Into<String>) -> Refused {
    Refused {
        status: StatusCode::BAD_REQUEST,
        message: format!("unable to upgrade: {}", message.into()),
        headers: Vec::new(),
    }
}

/// `/exec/TOKEN`, `/attach/TOKEN`, `/portforward/TOKEN`, by GET or POST.
pub(super) fn route<'a>(method: &Method, uri: &'a Uri) -> Option<(Verb, &'a str)> {
    if method != Method::GET && method != Method::POST {
        return None;
    }
    let (verb, token) = uri.path().strip_prefix('/')?.split_once('/')?;
    [Verb::Exec, Verb::Attach, Verb::PortForward]
        .into_iter()
        .find(|known| known.path() == verb)
        .map(|known| (known, token))
}

/// Whether the request can't come from a web page that a browser on this node was made to open
/// (DNS rebinding, threat J4). The kubelet passes on its user's Host and Origin, whatever they are,
/// and says so by X-Forwarded-For, which no script can set on a WebSocket. Without that the client
/// has to mean this server, and not to be a page from elsewhere.
pub(super) fn is_meant(headers: &HeaderMap, own: SocketAddr) -> bool {
    if headers.contains_key(&FORWARDED_FOR) {
        return true;
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let names_us = hosts.next().is_none() && host.is_some_and(|host| is_own(host, own));
    names_us
        && headers.get_all(ORIGIN).iter().all(|origin| {
            let origin = origin.to_str().unwrap_or_default();
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some_and(|host| is_own(host, own))
        })
}

/// The host is the address listened on, or a name of loopback if that is listened on.
fn is_own(host: &str, own: SocketAddr) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(address) => address == own.ip() || (address.is_loopback() && own.ip().is_loopback()),
        Err(_) => own.ip().is_loopback() && host.eq_ignore_ascii_case("localhost"),
    }
}

/// Settles the protocol: the first the client names that is known here.
///
/// # Errors
/// The answer that refuses.
pub(super) fn negotiate(verb: Verb, headers: &HeaderMap) -> Result<Accepted, Refused> {
    if !lists(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(bad("missing upgrade headers in request"));
    }
    let wants =
        |protocol: &str| lists(headers, &UPGRADE).any(|word| word.eq_ignore_ascii_case(protocol));
    if wants("websocket") {
        websocket(verb, headers)
    } else if wants(SPDY) {
        spdy(verb, headers)
    } else {
        Err(bad(format!("Upgrade has to be {SPDY} or websocket")))
    }
}

fn spdy(verb: Verb, headers: &HeaderMap) -> Result<Accepted, Refused> {
    let command = |format, resize| Carrier::SpdyCommand { format, resize };
    let known: &[(&'static str, Carrier)] = match verb {
        Verb::Exec | Verb::Attach => &[
            ("v4.channel.k8s.io", command(Format::Json, true)),
            ("v3.channel.k8s.io", command(Format::Text, true)),
            ("v2.channel.k8s.io", command(Format::Text, false)),
            ("channel.k8s.io", command(Format::Text, false)),
        ],
        Verb::PortForward => &[("portforward.k8s.io", Carrier::SpdyForward)],
    };
    let mut offered = lists(headers, &STREAM_PROTOCOL).peekable();
    if offered.peek().is_none() {
        return Err(bad("X-Stream-Protocol-Version is required"));
    }
    let (name, carrier) = first_known(offered, known).ok_or_else(|| unknown(known))?;
    Ok(Accepted {
        carrier,
        headers: vec![
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (UPGRADE, HeaderValue::from_static(SPDY)),
            (STREAM_PROTOCOL.clone(), HeaderValue::from_static(name)),
        ],
    })
}

fn websocket(verb: Verb, headers: &HeaderMap) -> Result<Accepted, Refused> {
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .map(HeaderValue::as_bytes)
        != Some(b"13")
    {
        let mut refused = bad("Sec-WebSocket-Version has to be 13");
        refused.status = StatusCode::UPGRADE_REQUIRED;
        let version = HeaderValue::from_static("13");
        refused.headers.push((SEC_WEBSOCKET_VERSION, version));
        return Err(refused);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key
        .filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16))
        .ok_or_else(|| bad("Sec-WebSocket-Key has to be 16 bytes in base64"))?;
    let known = websocket_protocols(verb);
    let mut offered = lists(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
    let (name, carrier) = if offered.peek().is_none() {
        // The oldest clients name none, and mean the first version.
        let (_, carrier) = known.last().ok_or_else(|| unknown(known))?;
        (None, *carrier)
    } else {
        let (name, carrier) = first_known(offered, known).ok_or_else(|| unknown(known))?;
        (Some(name), carrier)
    };
    let accept = HeaderValue::try_from(derive_accept_key(key))
        .map_err(|_| bad("Sec-WebSocket-Key can't be answered"))?;
    let mut answer = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    if let Some(name) = name {
        answer.push((SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name)));
    }
    Ok(Accepted {
        carrier,
        headers: answer,
    })
}

/// The last one is what a client gets that names none.
fn websocket_protocols(verb: Verb) -> &'static [(&'static str, Carrier)] {
    const fn channels(encoding: Encoding, format: Format, close_signal: bool) -> Carrier {
        Carrier::Channels(Channels {
            encoding,
            format,
            close_signal,
        })
    }
    const COMMAND: &[(&str, Carrier)] = &[
        (
            "v5.channel.k8s.io",
            channels(Encoding::Binary, Format::Json, true),
        ),
        (
            "v4.channel.k8s.io",
            channels(Encoding::Binary, Format::Json, false),
        ),
        (
            "v4.base64.channel.k8s.io",
            channels(Encoding::Base64, Format::Json, false),
        ),
        (
            "base64.channel.k8s.io",
            channels(Encoding::Base64, Format::Text, false),
        ),
        (
            "channel.k8s.io",
            channels(Encoding::Binary, Format::Text, false),
        ),
    ];
    const FORWARD: &[(&str, Carrier)] = &[
        ("SPDY/3.1+portforward.k8s.io", Carrier::Tunnel),
        (
            "v4.base64.channel.k8s.io",
            Carrier::ForwardChannels(Encoding::Base64),
        ),
        (
            "v4.channel.k8s.io",
            Carrier::ForwardChannels(Encoding::Binary),
        ),
    ];
    match verb {
        Verb::Exec | Verb::Attach => COMMAND,
        Verb::PortForward => FORWARD,
    }
}

fn first_known<'a>(
    mut offered: impl Iterator<Item = &'a str>,
    known: &[(&'static str, Carrier)],
) -> Option<(&'static str, Carrier)> {
    offered.find_map(|name| known.iter().find(|(known, _)| *known == name).copied())
}

/// None of the client's protocols is known; it is told which are.
fn unknown(known: &[(&'static str, Carrier)]) -> Refused {
    Refused {
        status: StatusCode::FORBIDDEN,
        message: "unable to upgrade: none of the client's protocols is known here".to_owned(),
        headers: known
            .iter()
            .map(|(name, _)| (ACCEPTED_PROTOCOLS.clone(), HeaderValue::from_static(name)))
            .collect(),
    }
}

/// The words of a header that may be repeated and may hold comma-separated lists.
fn lists<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests;
