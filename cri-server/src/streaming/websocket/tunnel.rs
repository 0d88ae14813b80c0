//! A byte stream in WebSocket messages, as SPDY is tunnelled for port forwarding (KEP 4006). The
//! messages' bounds mean nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::super::CHUNK;

/// The stream.
#[derive(Debug)]
pub(in super::super) struct Tunnel<I> {
    socket: WebSocketStream<I>,
    /// Received and not read yet.
    rest: Bytes,
}

impl<I> Tunnel<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    pub(in super::super) async fn new(stream: I) -> Self {
        Self {
            socket: super::open(stream).await,
            rest: Bytes::new(),
        }
    }
}

impl<I> AsyncRead for Tunnel<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            let message = ready!(Pin::new(&mut self.socket).poll_next(context));
            match message.transpose().map_err(io::Error::other)? {
                None => return Poll::Ready(Ok(())),
                Some(Message::Binary(bytes)) => self.rest = bytes,
                Some(Message::Text(_)) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                // Answered by the crate.
                Some(_) => {}
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(self.rest.get(..count).unwrap_or_default());
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<I> AsyncWrite for Tunnel<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(context)).map_err(io::Error::other)?;
        let part = bytes.get(..CHUNK).unwrap_or(bytes);
        let message = Message::Binary(Bytes::copy_from_slice(part));
        Pin::new(&mut self.socket)
            .start_send(message)
            .map_err(io::Error::other)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_flush(context)
            .map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket)
            .poll_close(context)
            .map_err(io::Error::other)
    }
}
