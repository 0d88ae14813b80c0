//! One stream of a connection, as its owner uses it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::Status;
use super::state::State;

/// The state, between the driver and the streams. Locked for moments only, never over a wait.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that the client opened. Reading ends with the client's half-close and fails when the
/// stream was reset or the connection is over; what came before is read first. Writing waits while
/// the client, or the socket, takes no more. `poll_shutdown` ends our half. What is written leaves
/// by itself: flushing waits for nothing.
///
/// Dropped before both halves have ended, it is reset (CANCEL); what was written before still
/// leaves.
pub struct Stream {
    id: u32,
    shared: Shared,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(id: u32, shared: Shared) -> Self {
        Self { id, shared }
    }

    /// The id the client gave it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Ends both directions at once, saying why. After what was written.
    pub fn reset(self, status: Status) {
        self.shared.lock().close(self.id, status);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.lock().close(self.id, Status::Cancel);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.lock().poll_read(self.id, cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.shared.lock().poll_write(self.id, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shared.lock().shut_down(self.id))
    }
}
