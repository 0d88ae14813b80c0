//! Numbered channels over one WebSocket, each message one channel's (`k8s.io/apimachinery`
//! `pkg/util/httpstream/wsstream`).
//!
//! Nothing is buffered without bound: a channel that is not read holds back the connection, since
//! this protocol has no windows, and writers wait for the client.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::{CancellationToken, PollSender};

use super::super::CHUNK;
use super::super::peer::Peer;
use super::super::upgrade::Encoding;

/// Messages of one channel that wait for their reader.
const INCOMING: usize = 2;

/// Messages of all channels that wait for the client.
const OUTGOING: usize = 4;

/// The client's sign for the end of a channel (version 5).
const CLOSE_SIGNAL: u8 = 255;

/// How long the client may take to answer our goodbye. A socket closed before with something
/// unread in it is reset, and the client might lose the last words.
const FAREWELL: Duration = Duration::from_secs(5);

/// The channels of one connection.
#[derive(Debug)]
pub(in super::super) struct Switch<I> {
    socket: WebSocketStream<I>,
    encoding: Encoding,
    close_signal: bool,
    incoming: HashMap<u8, mpsc::Sender<Bytes>>,
    sender: mpsc::Sender<Message>,
    outgoing: mpsc::Receiver<Message>,
    gone: CancellationToken,
    peer: Peer,
}

impl<I> Switch<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    pub(in super::super) async fn new(
        stream: I,
        encoding: Encoding,
        close_signal: bool,
        peer: Peer,
    ) -> Self {
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        Self {
            socket: super::open(stream).await,
            encoding,
            close_signal,
            incoming: HashMap::new(),
            sender,
            outgoing,
            gone: CancellationToken::new(),
            peer,
        }
    }

    /// What the client sends on a channel. What it sends on one without a reader is thrown away.
    pub(in super::super) fn reader(&mut self, channel: u8) -> ChannelReader {
        let (sender, receiver) = mpsc::channel(INCOMING);
        self.incoming.insert(channel, sender);
        ChannelReader {
            receiver,
            rest: Bytes::new(),
            gone: self.gone.clone(),
        }
    }

    /// What the client gets on a channel.
    pub(in super::super) fn writer(&self, channel: u8) -> ChannelWriter {
        ChannelWriter {
            channel,
            encoding: self.encoding,
            sender: PollSender::new(self.sender.clone()),
        }
    }

    /// An empty message, by which clients know that the connection stands.
    pub(in super::super) fn greet(&self, channel: u8) {
        // The queue is empty before the switch runs.
        drop(self.sender.try_send(encode(self.encoding, channel, &[])));
    }

    /// Cancelled when the client has left.
    pub(in super::super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Carries messages until every writer is dropped and the client has what they wrote, or the
    /// client has left.
    pub(in super::super) async fn run(self) {
        let (mut sink, stream) = self.socket.split();
        // Only the writers hold it open.
        drop(self.sender);
        let gone = self.gone.clone();
        let receive = receive(
            stream,
            self.encoding,
            self.close_signal,
            self.incoming,
            &self.peer,
            &gone,
        );
        tokio::pin!(receive);
        let send = async {
            let sent = send(&mut sink, self.outgoing).await;
            if let Err(error) = &sent {
                tracing::debug!(%error, "a client takes no more");
                gone.cancel();
            }
            sent.is_ok()
        };
        let (all_sent, still_there) = tokio::select! {
            // Its writers are told by the token, so this doesn't wait for a client that left.
            () = &mut receive => (false, false),
            all_sent = send => (all_sent, true),
        };
        if all_sent && still_there {
            drop(tokio::time::timeout(FAREWELL, receive).await);
        }
    }
}

/// Sends what the writers write, as much at once as there is, and then says goodbye.
async fn send<I>(
    sink: &mut SplitSink<WebSocketStream<I>, Message>,
    mut outgoing: mpsc::Receiver<Message>,
) -> Result<(), Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = outgoing.recv().await {
        sink.feed(message).await?;
        while let Ok(message) = outgoing.try_recv() {
            sink.feed(message).await?;
        }
        sink.flush().await?;
    }
    let goodbye = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    sink.send(Message::Close(Some(goodbye))).await
}

/// Hands out what the client sends, until it leaves.
async fn receive<I>(
    mut stream: SplitStream<WebSocketStream<I>>,
    encoding: Encoding,
    close_signal: bool,
    mut incoming: HashMap<u8, mpsc::Sender<Bytes>>,
    peer: &Peer,
    gone: &CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = stream.next().await {
        match decode(encoding, close_signal, message) {
            Incoming::Data(channel, bytes) => {
                let Some(reader) = incoming.get(&channel) else {
                    continue;
                };
                tokio::select! {
                    // One that is not wanted any more is thrown away.
                    _ = reader.send(bytes) => {}
                    // While nobody reads the socket, its end would not be noticed otherwise.
                    () = peer.hung_up() => break,
                }
            }
            Incoming::End(channel) => drop(incoming.remove(&channel)),
            Incoming::Nothing => {}
            Incoming::Broken => break,
        }
    }
    // Before the channels end, so that readers know it is not the client's wish.
    gone.cancel();
}

/// What a message means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Data(u8, Bytes),
    /// The channel has ended.
    End(u8),
    Nothing,
    /// The connection can't go on.
    Broken,
}

pub(super) fn decode(encoding: Encoding, close_signal: bool, message: Message) -> Incoming {
    let (channel, payload) = match (encoding, message) {
        (Encoding::Binary, Message::Binary(mut bytes)) => {
            if bytes.is_empty() {
                return Incoming::Nothing;
            }
            (bytes.get_u8(), bytes)
        }
        (Encoding::Base64, Message::Text(text)) => {
            let mut bytes = Bytes::from(text);
            if bytes.is_empty() {
                return Incoming::Nothing;
            }
            let channel = bytes.get_u8().wrapping_sub(b'0');
            match STANDARD.decode(&bytes) {
                Ok(payload) if channel < 10 => (channel, Bytes::from(payload)),
                _ => return Incoming::Broken,
            }
        }
        (_, Message::Binary(_) | Message::Text(_)) => return Incoming::Broken,
        // Answered by the crate.
        (_, Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => {
            return Incoming::Nothing;
        }
    };
    if close_signal && channel == CLOSE_SIGNAL {
        return match payload.as_ref() {
            [closed] => Incoming::End(*closed),
            _ => Incoming::Broken,
        };
    }
    if payload.is_empty() {
        return Incoming::Nothing;
    }
    Incoming::Data(channel, payload)
}

pub(super) fn encode(encoding: Encoding, channel: u8, payload: &[u8]) -> Message {
    match encoding {
        Encoding::Binary => {
            let mut bytes = BytesMut::with_capacity(payload.len() + 1);
            bytes.put_u8(channel);
            bytes.put_slice(payload);
            Message::Binary(bytes.freeze())
        }
        Encoding::Base64 => {
            let mut text = String::with_capacity(payload.len().div_ceil(3) * 4 + 1);
            text.push(char::from(channel.wrapping_add(b'0')));
            STANDARD.encode_string(payload, &mut text);
            Message::Text(text.into())
        }
    }
}

/// One channel from the client. It ends when the client says so, and fails when the client leaves.
#[derive(Debug)]
pub(in super::super) struct ChannelReader {
    receiver: mpsc::Receiver<Bytes>,
    rest: Bytes,
    gone: CancellationToken,
}

impl AsyncRead for ChannelReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.receiver.poll_recv(context)) {
                Some(bytes) => self.rest = bytes,
                None if self.gone.is_cancelled() => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// One channel to the client. There is no end of a channel in this direction but the connection's.
#[derive(Debug)]
pub(in super::super) struct ChannelWriter {
    channel: u8,
    encoding: Encoding,
    sender: PollSender<Message>,
}

impl AsyncWrite for ChannelWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.sender.poll_reserve(context)).map_err(closed)?;
        let part = bytes.get(..CHUNK).unwrap_or(bytes);
        let message = encode(self.encoding, self.channel, part);
        self.sender.send_item(message).map_err(closed)?;
        Poll::Ready(Ok(part.len()))
    }

    /// What is in the queue leaves by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
