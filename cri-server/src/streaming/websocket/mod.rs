//! WebSocket (RFC 6455) below the channels of a remote command or of port forwarding, and below
//! tunnelled SPDY.

mod switch;
mod tunnel;

pub(super) use switch::{ChannelReader, ChannelWriter, Switch};
pub(super) use tunnel::Tunnel;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// The largest message taken. Clients in Go send at most 32 KiB at once; some in other languages
/// send what they are given, in one message.
const MAX_MESSAGE: usize = 4 << 20;

/// What is read from the socket at once, and gathered before it is written.
const BUFFER: usize = 64 << 10;

/// Takes over a connection after the 101.
async fn open<I>(stream: I) -> WebSocketStream<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_write_buffer_size(4 * BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// What must hold for any message.
#[cfg(any(test, feature = "_test-fuzz"))]
pub(super) mod fuzz {
    use bytes::Bytes;
    use tokio_tungstenite::tungstenite::Message;

    use super::super::upgrade::Encoding;
    use super::switch::{Incoming, decode, encode};

    /// Read in each encoding; what carries data is the same once written again.
    pub(in super::super) fn message(bytes: &[u8]) {
        let binary = Message::Binary(Bytes::copy_from_slice(bytes));
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        for (encoding, message) in [
            (Encoding::Binary, binary),
            (Encoding::Base64, Message::Text(text.into())),
        ] {
            for close_signal in [false, true] {
                let read = decode(encoding, close_signal, message.clone());
                if let Incoming::Data(channel, payload) = &read {
                    let again = decode(encoding, close_signal, encode(encoding, *channel, payload));
                    assert_eq!(read, again);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
