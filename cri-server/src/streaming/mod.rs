//! Exec, attach and port-forward as byte streams of a client.
//!
//! The RPC checks a request and answers with a URL that holds a token (`token.rs`); the client
//! connects there (`listen.rs`), both settle on a protocol (`upgrade.rs`), and its streams, SPDY's
//! or WebSocket's, are joined to a process (`remotecommand`) or to a port of a pod (`portforward`).

#[cfg(any(test, feature = "_test-fuzz"))]
pub mod fuzz;
mod listen;
mod peer;
mod portforward;
mod remotecommand;
pub mod spdy;
mod status;
mod tls;
mod token;
mod upgrade;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use listen::{Listener, serve};

use self::token::Tokens;
use self::upgrade::Verb;
use crate::failure::Failure;
use crate::node::Node;
use crate::request::exec::StreamsRequest;

/// How much is read from a process or connection at once.
const CHUNK: usize = 32 << 10;

/// What a token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ticket {
    /// A command in a container, by its full id.
    Exec(StreamsRequest),
    /// The streams of a container, by its full id.
    Attach(StreamsRequest),
    /// Ports of a pod, by its full id; over SPDY the client names them itself.
    PortForward { pod: String, ports: Vec<u16> },
}

impl Ticket {
    fn verb(&self) -> Verb {
        match self {
            Self::Exec(_) => Verb::Exec,
            Self::Attach(_) => Verb::Attach,
            Self::PortForward { .. } => Verb::PortForward,
        }
    }
}

/// A connection over which nothing went for so long is ended.
fn idle(node: &Node) -> Duration {
    Duration::from_secs(node.config.streaming.idle_seconds)
}

/// How long a client may take to open the streams it needs.
fn creation(node: &Node) -> Duration {
    Duration::from_secs(node.config.streaming.creation_seconds)
}

/// Gives out URLs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Streaming(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    scheme: &'static str,
    tokens: Tokens,
}

impl Streaming {
    fn new(address: SocketAddr, scheme: &'static str) -> Self {
        Self(Arc::new(Shared {
            address,
            scheme,
            tokens: Tokens::default(),
        }))
    }

    /// A URL for one client to run the command.
    ///
    /// # Errors
    /// While too many URLs wait for their clients; so do the others.
    pub fn exec(&self, request: StreamsRequest) -> Result<String, Failure> {
        self.url(Ticket::Exec(request))
    }

    /// A URL for one client to attach.
    ///
    /// # Errors
    /// See [`Self::exec`].
    pub fn attach(&self, request: StreamsRequest) -> Result<String, Failure> {
        self.url(Ticket::Attach(request))
    }

    /// A URL for one client to reach the pod's ports.
    ///
    /// # Errors
    /// See [`Self::exec`].
    pub fn port_forward(&self, pod: String, ports: Vec<u16>) -> Result<String, Failure> {
        self.url(Ticket::PortForward { pod, ports })
    }

    /// Built from nothing a client said (threat J5, CVE-2020-8559).
    fn url(&self, ticket: Ticket) -> Result<String, Failure> {
        let verb = ticket.verb().path();
        let token = self.0.tokens.give(ticket, Instant::now())?;
        let Shared {
            scheme, address, ..
        } = &*self.0;
        Ok(format!("{scheme}://{address}/{verb}/{token}"))
    }
}
