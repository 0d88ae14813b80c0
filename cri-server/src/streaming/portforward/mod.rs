//! Port forwarding: streams of a client joined to connections to ports of a pod.

mod channels;
mod spdy;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};

pub(super) use channels::over_websocket;
pub(super) use spdy::over_spdy;

use super::CHUNK;
use crate::failure::Failure;
use crate::node::NodeHandle;
use crate::pod::forward;

/// How long the client may go on sending to a server that has said all it had to say. The other
/// way round a server answers in its own time.
const GRACE: Duration = Duration::from_secs(1);

/// Connects to the port and copies both ways until both have ended, each half by itself.
///
/// # Errors
/// When nothing answers on the port.
async fn forward(
    node: &NodeHandle,
    pod: &str,
    port: u16,
    data: impl AsyncRead + AsyncWrite,
) -> Result<(), Failure> {
    let mut server = forward::connect(node, pod, port).await?;
    let (from_server, mut to_server) = server.split();
    let (from_client, mut to_client) = tokio::io::split(data);
    let up = async {
        let copied = copy(from_client, &mut to_server).await;
        if copied.is_ok() {
            // A server that is gone doesn't care.
            drop(to_server.shutdown().await);
        }
        copied
    };
    let down = async {
        // A server that resets the connection has ended it, too.
        drop(copy(from_server, &mut to_client).await);
        drop(to_client.shutdown().await);
    };
    tokio::pin!(up, down);
    tokio::select! {
        sent = &mut up => if sent.is_ok() {
            down.await;
        },
        () = &mut down => drop(tokio::time::timeout(GRACE, up).await),
    }
    Ok(())
}

async fn copy(
    from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<u64> {
    tokio::io::copy_buf(&mut BufReader::with_capacity(CHUNK, from), to).await
}

/// As the client shows it to its user.
fn message(port: u16, failure: &Failure) -> String {
    format!("error forwarding port {port}: {failure}")
}

/// A port as a client names it.
fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests;
