//! What is known of a client's connection below any protocol: when bytes last went over it, and
//! whether the other side is still there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How often a connection nobody reads from is asked whether it still stands.
const LOOK: Duration = Duration::from_secs(1);

/// The other side of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
    /// The socket once more, so that it can be asked while a protocol owns the other.
    socket: OwnedFd,
}

impl Peer {
    fn touch(&self) {
        let now = u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(now, Ordering::Relaxed);
    }

    /// Resolves once nothing has come or gone for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.0.last.load(Ordering::Relaxed));
            let due = self.0.start + last + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }

    /// Resolves once the other side has closed its end, even if there is more to be read before.
    pub(super) async fn hung_up(&self) {
        while !self.has_hung_up() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn has_hung_up(&self) -> bool {
        let mut socket = [PollFd::from_borrowed_fd(
            self.0.socket.as_fd(),
            PollFlags::RDHUP,
        )];
        match poll(&mut socket, Some(&Timespec::default())) {
            Ok(0) => false,
            Ok(_) => true,
            // Only a signal or want of memory; it is asked again.
            Err(_) => false,
        }
    }
}

/// A connection whose traffic its [`Peer`] knows of.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    peer: Peer,
}

impl Watched {
    /// # Errors
    /// When the descriptor can't be duplicated.
    pub(super) fn new(stream: TcpStream) -> io::Result<(Self, Peer)> {
        let peer = Peer(Arc::new(Shared {
            start: Instant::now(),
            last: AtomicU64::new(0),
            socket: stream.as_fd().try_clone_to_owned()?,
        }));
        let watched = Self {
            stream,
            peer: peer.clone(),
        };
        Ok((watched, peer))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.peer.touch();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.peer.touch();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        if written.is_ready() {
            self.peer.touch();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Watched, Peer, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (watched, peer) = Watched::new(stream).unwrap();
        (watched, peer, client)
    }

    #[tokio::test]
    async fn a_peer_that_left_is_noticed_before_its_last_words_are_read() {
        let (_watched, peer, mut client) = pair().await;
        client.write_all(b"unread").await.unwrap();
        assert!(!peer.has_hung_up());
        drop(client);
        tokio::time::timeout(Duration::from_secs(5), peer.hung_up())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn traffic_puts_the_idle_limit_off() {
        let (mut watched, peer, mut client) = pair().await;
        let limit = Duration::from_millis(300);
        let begin = Instant::now();
        let traffic = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                client.write_all(b"x").await.unwrap();
                watched.read_u8().await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = peer.idle(limit) => {}
            () = traffic => {}
        }
        assert!(begin.elapsed() >= Duration::from_millis(750));
    }
}
