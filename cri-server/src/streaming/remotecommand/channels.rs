//! A remote command over WebSocket channels: 0 stdin, 1 stdout, 2 stderr, 3 the outcome, 4 terminal
//! sizes (`k8s.io/apimachinery` `pkg/util/remotecommand`).

use tokio::io::{AsyncRead, AsyncWrite};

use super::super::Ticket;
use super::super::peer::Peer;
use super::super::upgrade::Channels;
use super::super::websocket::{ChannelWriter, Switch};
use super::{Client, run, wanted};
use crate::node::NodeHandle;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Serves a client that was answered 101.
pub(in super::super) async fn over_websocket<I>(
    node: &NodeHandle,
    ticket: Ticket,
    stream: I,
    peer: Peer,
    channels: Channels,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(request) = wanted(&ticket) else {
        return;
    };
    let Channels {
        encoding,
        format,
        close_signal,
    } = channels;
    let mut switch = Switch::new(stream, encoding, close_signal, peer.clone()).await;
    let output = |writer: ChannelWriter| Box::pin(writer) as super::Writer;
    let client = Client {
        stdin: request
            .stdin
            .then(|| Box::pin(switch.reader(STDIN)) as super::Reader),
        stdout: request.stdout.then(|| output(switch.writer(STDOUT))),
        stderr: request.stderr.then(|| output(switch.writer(STDERR))),
        error: output(switch.writer(ERROR)),
        format,
        resize: request
            .tty
            .then(|| Box::pin(switch.reader(RESIZE)) as super::Reader),
        gone: switch.gone(),
        peer,
    };
    switch.greet(match (request.stdout, request.stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => ERROR,
    });
    tokio::join!(switch.run(), run(node, ticket, client));
}
