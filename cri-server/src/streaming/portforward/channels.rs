//! Port forwarding over WebSocket channels: two for each port of the request, data and errors, each
//! beginning with the port, two bytes, the low one first (`k8s.io/kubelet`
//! `pkg/cri/streaming/portforward`).

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::super::peer::Peer;
use super::super::upgrade::Encoding;
use super::super::websocket::{ChannelReader, ChannelWriter, Switch};
use super::super::{Ticket, idle};
use super::{forward, message};
use crate::node::NodeHandle;

/// One port of the request.
struct Channel {
    port: u16,
    incoming: ChannelReader,
    outgoing: ChannelWriter,
    error: ChannelWriter,
}

/// Serves a client that was answered 101 until it has left.
pub(in super::super) async fn over_websocket<I>(
    node: &NodeHandle,
    ticket: Ticket,
    stream: I,
    peer: Peer,
    encoding: Encoding,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ticket::PortForward { pod, ports } = ticket else {
        return;
    };
    let mut switch = Switch::new(stream, encoding, false, peer.clone()).await;
    let gone = switch.gone();
    // Channels beyond what a digit or byte can number are not there.
    let numbers = match encoding {
        Encoding::Binary => 0..=u8::MAX,
        Encoding::Base64 => 0..=9,
    };
    let numbers = numbers.collect::<Vec<_>>();
    let open: FuturesUnordered<_> = ports
        .into_iter()
        .zip(numbers.chunks_exact(2))
        .filter_map(|(port, pair)| {
            let [data, error] = *pair else { return None };
            Some(Channel {
                port,
                incoming: switch.reader(data),
                outgoing: switch.writer(data),
                error: switch.writer(error),
            })
        })
        .map(|channel| serve(node, &pod, channel))
        .collect();
    let serving = async {
        tokio::select! {
            _ = open.collect::<Vec<()>>() => {}
            () = gone.cancelled() => {}
            () = peer.idle(idle(node)) => {}
            () = node.tasks.stopping() => {}
        }
    };
    tokio::join!(switch.run(), serving);
}

async fn serve(node: &NodeHandle, pod: &str, channel: Channel) {
    let Channel {
        port,
        incoming,
        mut outgoing,
        mut error,
    } = channel;
    let opening = port.to_le_bytes();
    let opened = async {
        outgoing.write_all(&opening).await?;
        error.write_all(&opening).await
    };
    if opened.await.is_err() {
        return;
    }
    if let Err(failure) = forward(node, pod, port, tokio::io::join(incoming, outgoing)).await {
        // A client that left isn't told.
        drop(error.write_all(message(port, &failure).as_bytes()).await);
    }
}
