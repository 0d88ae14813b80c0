//! A remote command over SPDY: the client opens one stream for each of its ends and names them by
//! the header `streamType` (`k8s.io/kubelet` `pkg/cri/streaming/remotecommand`).

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::super::peer::Peer;
use super::super::spdy::{Acceptor, Connection, Limits, Stream};
use super::super::status::Format;
use super::super::{Ticket, creation, idle};
use super::{Client, run, wanted};
use crate::node::NodeHandle;
use crate::request::exec::StreamsRequest;

/// Serves a client that was answered 101.
pub(in super::super) async fn over_spdy<I>(
    node: &NodeHandle,
    ticket: Ticket,
    stream: I,
    peer: Peer,
    format: Format,
    resize: bool,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = Limits {
        idle: idle(node),
        ..Limits::default()
    };
    let mut acceptor = Connection::serve(stream, limits, &node.tasks);
    let gone = acceptor.closed();
    let Some(request) = wanted(&ticket) else {
        return;
    };
    let mut slots = Slots::new(request, resize);
    let limit = creation(node);
    let complete = tokio::time::timeout(limit, slots.fill(&mut acceptor)).await;
    // No more are taken; the connection ends with those there are.
    drop(acceptor);
    match complete {
        Ok(true) => {}
        Ok(false) => return tracing::debug!("a client left before it had opened its streams"),
        Err(_) => return tracing::debug!("a client didn't open its streams in {limit:?}"),
    }
    if let Some(client) = slots.client(format, gone, peer) {
        run(node, ticket, client).await;
    }
}

/// The streams a request needs, as far as they have come.
#[derive(Debug)]
struct Slots {
    error: Slot,
    stdin: Slot,
    stdout: Slot,
    stderr: Slot,
    resize: Slot,
}

#[derive(Debug)]
enum Slot {
    NotWanted,
    Wanted,
    Opened(Stream),
}

impl Slots {
    fn new(request: &StreamsRequest, resize: bool) -> Self {
        let slot = |wanted| match wanted {
            true => Slot::Wanted,
            false => Slot::NotWanted,
        };
        Self {
            error: Slot::Wanted,
            stdin: slot(request.stdin),
            stdout: slot(request.stdout),
            stderr: slot(request.stderr),
            resize: slot(request.tty && resize),
        }
    }

    /// Takes streams until all are there; false if the client leaves before. One that isn't wanted
    /// is reset by being dropped.
    async fn fill(&mut self, acceptor: &mut Acceptor) -> bool {
        while !self.is_complete() {
            let Some(incoming) = acceptor.accept().await else {
                return false;
            };
            let slot = match incoming.header("streamtype") {
                Some("error") => &mut self.error,
                Some("stdin") => &mut self.stdin,
                Some("stdout") => &mut self.stdout,
                Some("stderr") => &mut self.stderr,
                Some("resize") => &mut self.resize,
                _ => continue,
            };
            if matches!(slot, Slot::Wanted) {
                *slot = Slot::Opened(incoming.stream);
            }
        }
        true
    }

    fn is_complete(&self) -> bool {
        let all = [
            &self.error,
            &self.stdin,
            &self.stdout,
            &self.stderr,
            &self.resize,
        ];
        all.iter().all(|slot| !matches!(slot, Slot::Wanted))
    }

    fn client(self, format: Format, gone: CancellationToken, peer: Peer) -> Option<Client> {
        Some(Client {
            stdin: self.stdin.reader(),
            stdout: self.stdout.writer(),
            stderr: self.stderr.writer(),
            error: self.error.writer()?,
            format,
            resize: self.resize.reader(),
            gone,
            peer,
        })
    }
}

impl Slot {
    fn stream(self) -> Option<Stream> {
        match self {
            Self::Opened(stream) => Some(stream),
            Self::Wanted | Self::NotWanted => None,
        }
    }

    fn reader(self) -> Option<super::Reader> {
        self.stream()
            .map(|stream| Box::pin(stream) as super::Reader)
    }

    fn writer(self) -> Option<super::Writer> {
        self.stream()
            .map(|stream| Box::pin(stream) as super::Writer)
    }
}
