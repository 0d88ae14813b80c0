//! Port forwarding over SPDY: for each connection the client opens a stream for errors and one for
//! data, joined by the header `requestID` (`k8s.io/kubelet` `pkg/cri/streaming/portforward`).

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use super::super::peer::Peer;
use super::super::spdy::{Connection, IncomingStream, Limits, Status, Stream};
use super::super::{Ticket, creation, idle};
use super::{forward, message, parse_port};
use crate::failure::Failure;
use crate::node::NodeHandle;

/// Serves a client that was answered 101 until it has left.
pub(in super::super) async fn over_spdy<I>(node: &NodeHandle, ticket: Ticket, stream: I, peer: Peer)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ticket::PortForward { pod, ports } = ticket else {
        return;
    };
    let limits = Limits {
        // A connection whose server doesn't read must not hold up the others for ever.
        stalled: Some(creation(node)),
        idle: idle(node),
        ..Limits::default()
    };
    let mut acceptor = Connection::serve(stream, limits, &node.tasks);
    let mut pairs = Pairs::new(ports, creation(node));
    let mut open = FuturesUnordered::new();
    let mut silent = pin!(peer.idle(idle(node)));
    loop {
        let due = pairs.due();
        tokio::select! {
            incoming = acceptor.accept() => {
                let Some(incoming) = incoming else { break };
                if let Some(pair) = pairs.add(incoming, Instant::now()) {
                    open.push(serve(node, &pod, pair));
                }
            }
            Some(()) = open.next(), if !open.is_empty() => {}
            () = sleep_until(due) => pairs.forget_late(Instant::now()).await,
            () = &mut silent => return,
            () = node.tasks.stopping() => return,
        }
    }
    // No more will be opened; those there are go on, as long as the connection does.
    drop(acceptor);
    tokio::select! {
        () = async { while open.next().await.is_some() {} } => {}
        () = silent => {}
        () = node.tasks.stopping() => {}
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// One connection of a client.
struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

/// The connection itself stays whatever becomes of the pair.
async fn serve(node: &NodeHandle, pod: &str, pair: Pair) {
    let Pair {
        port,
        mut data,
        mut error,
    } = pair;
    match forward(node, pod, port, &mut data).await {
        // Nothing on the error stream: all is well.
        Ok(()) => drop(error.shutdown().await),
        Err(failure) => {
            tell(&mut error, &message(port, &failure)).await;
            data.reset(Status::Cancel);
        }
    }
}

async fn tell(error: &mut Stream, text: &str) {
    let told = async {
        error.write_all(text.as_bytes()).await?;
        error.shutdown().await
    };
    if let Err(error) = told.await {
        tracing::debug!(%error, "a client was not told why its connection failed");
    }
}

/// The streams that wait for their twin.
struct Pairs {
    /// Those the request allowed; empty allows all.
    allowed: Vec<u16>,
    waiting: HashMap<String, Half>,
    /// How long one may wait.
    limit: Duration,
}

/// The stream that came first.
struct Half {
    kind: Kind,
    port: u16,
    stream: Stream,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// What a stream's headers say.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    kind: Kind,
    port: u16,
    request: String,
}

impl Pairs {
    fn new(allowed: Vec<u16>, limit: Duration) -> Self {
        Self {
            allowed,
            waiting: HashMap::new(),
            limit,
        }
    }

    /// The pair the stream completes. One that describes no connection is reset.
    fn add(&mut self, incoming: IncomingStream, now: Instant) -> Option<Pair> {
        let header = |name: &str| incoming.header(name);
        let Some(described) = describe(incoming.id, header) else {
            tracing::debug!("a client opened a stream that describes no connection");
            incoming.stream.reset(Status::ProtocolError);
            return None;
        };
        let Described {
            kind,
            port,
            request,
        } = described;
        if !self.allowed.is_empty() && !self.allowed.contains(&port) {
            tracing::debug!(port, "a client asked for a port its request didn't name");
            incoming.stream.reset(Status::RefusedStream);
            return None;
        }
        let stream = incoming.stream;
        match self.waiting.remove(&request) {
            None => {
                let half = Half {
                    kind,
                    port,
                    stream,
                    since: now,
                };
                self.waiting.insert(request, half);
                None
            }
            Some(first) if first.kind == kind || first.port != port => {
                first.stream.reset(Status::ProtocolError);
                stream.reset(Status::ProtocolError);
                None
            }
            Some(first) => Some(match kind {
                Kind::Data => Pair {
                    port,
                    data: stream,
                    error: first.stream,
                },
                Kind::Error => Pair {
                    port,
                    data: first.stream,
                    error: stream,
                },
            }),
        }
    }

    /// When the first of them has waited too long.
    fn due(&self) -> Option<Instant> {
        let since = self.waiting.values().map(|half| half.since).min()?;
        Some(since + self.limit)
    }

    async fn forget_late(&mut self, now: Instant) {
        let limit = self.limit;
        let late = |half: &Half| now.saturating_duration_since(half.since) >= limit;
        let all = std::mem::take(&mut self.waiting);
        for (request, mut half) in all {
            if !late(&half) {
                self.waiting.insert(request, half);
                continue;
            }
            let why = Failure::internal(format!("its other stream didn't come in {limit:?}"));
            if half.kind == Kind::Error {
                tell(&mut half.stream, &message(half.port, &why)).await;
            }
        }
    }
}

/// The kind, the port and the request of a stream. Clients from before `requestID` open the error
/// stream right before the data stream, whose ids then differ by two.
fn describe<'a>(id: u32, header: impl Fn(&str) -> Option<&'a str>) -> Option<Described> {
    let kind = match header("streamtype")? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let port = parse_port(header("port")?)?;
    let request = match (header("requestid"), kind) {
        (Some(request), _) => format!("by name {request}"),
        (None, Kind::Error) => format!("by id {id}"),
        (None, Kind::Data) => format!("by id {}", id.checked_sub(2)?),
    };
    Some(Described {
        kind,
        port,
        request,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_says_what_it_is_for() {
        let described = |kind, port, request: &str| {
            let request = request.to_owned();
            Some(Described {
                kind,
                port,
                request,
            })
        };
        for (case, id, headers, expected) in [
            (
                "data",
                5,
                &[("streamtype", "data"), ("port", "80"), ("requestid", "7")][..],
                described(Kind::Data, 80, "by name 7"),
            ),
            (
                "error of an old client",
                3,
                &[("streamtype", "error"), ("port", "80")],
                described(Kind::Error, 80, "by id 3"),
            ),
            (
                "data of an old client",
                5,
                &[("streamtype", "data"), ("port", "80")],
                described(Kind::Data, 80, "by id 3"),
            ),
            ("no type", 1, &[("port", "80"), ("requestid", "7")], None),
            (
                "another type",
                1,
                &[("streamtype", "stdin"), ("port", "80")],
                None,
            ),
            (
                "no port",
                1,
                &[("streamtype", "data"), ("requestid", "7")],
                None,
            ),
            ("port 0", 1, &[("streamtype", "data"), ("port", "0")], None),
            (
                "port too high",
                1,
                &[("streamtype", "data"), ("port", "65536")],
                None,
            ),
            (
                "first data of an old client",
                1,
                &[("streamtype", "data"), ("port", "80")],
                None,
            ),
        ] {
            let header = |name: &str| {
                let mut found = headers.iter().filter(|(known, _)| *known == name);
                found.next().map(|(_, value)| *value)
            };
            assert_eq!(describe(id, header), expected, "{case}");
        }
    }
}
