//! Drives one session over a socket, and hands out its streams.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::frame::GoAway;
use super::limits::Limits;
use super::state::{End, State};
use super::stream::{Shared, Stream};
use crate::ops::tasks::Tasks;

/// What is read from the socket at once.
const CHUNK: usize = 32 << 10;
/// How often time is looked at; while the socket isn't read, also how often the client is asked
/// for a sign of life, because one that has gone is then noticed by writing only.
const TICK: Duration = if cfg!(test) {
    Duration::from_millis(20)
} else {
    Duration::from_secs(5)
};
/// How long the owners of streams may take to end them when the daemon stops.
const OWNERS: Duration = if cfg!(test) {
    Duration::from_millis(20)
} else {
    Duration::from_secs(3)
};
/// How long an ended connection may take to say so and to see the client close: a socket closed
/// with something unread in it is reset, and the client might lose the last words.
const FAREWELL: Duration = Duration::from_secs(5);

/// A stream the client has opened, already replied to.
#[derive(Debug)]
pub struct IncomingStream {
    /// Odd, ascending.
    pub id: u32,
    /// Names in lower case, as they came; a name with several values stands once for each.
    pub headers: Vec<(String, String)>,
    /// Its bytes.
    pub stream: Stream,
}

impl IncomingStream {
    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Gives the client's streams out as they come. When it is dropped, new streams are refused, and
/// the connection is closed as soon as the last stream is dropped and all it wrote has left.
pub struct Acceptor {
    shared: Shared,
    closed: CancellationToken,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// The next stream, in the order of opening. `None`: there will be no more, since the client
    /// said so (GOAWAY; its open streams go on) or the connection is over.
    pub async fn accept(&mut self) -> Option<IncomingStream> {
        let (id, headers) = poll_fn(|cx| self.shared.lock().poll_accept(cx)).await?;
        let stream = Stream::new(id, self.shared.clone());
        Some(IncomingStream {
            id,
            headers,
            stream,
        })
    }

    /// A token that is cancelled when the connection is over, whatever ended it.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.shared.lock().stop_accepting();
    }
}

/// A connection that a client has upgraded to SPDY/3.1.
#[derive(Debug)]
pub struct Connection<T> {
    socket: T,
    shared: Shared,
    input: Box<[u8]>,
    sending: Vec<u8>,
    sent: usize,
    flushed: bool,
    tick: Interval,
    moved: Instant,
    idle: Duration,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<T> Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Serves `socket` in a task of its own, until the client or the streams' owner is done, the
    /// client breaks the protocol, nothing moves for too long, or the daemon stops.
    pub fn serve(socket: T, limits: Limits, tasks: &Tasks) -> Acceptor {
        let idle = limits.idle;
        let shared = Shared::new(State::new(limits));
        let closed = CancellationToken::new();
        let acceptor = Acceptor {
            shared: shared.clone(),
            closed: closed.clone(),
        };
        let watch = tasks.clone();
        drop(tasks.spawn("spdy connection", async move {
            let _closed = closed.drop_guard();
            let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let connection = Self {
                socket,
                shared,
                input: vec![0; CHUNK].into_boxed_slice(),
                sending: Vec::new(),
                sent: 0,
                flushed: true,
                tick,
                moved: Instant::now(),
                idle,
            };
            connection.run(&watch).await;
        }));
        acceptor
    }

    async fn run(mut self, tasks: &Tasks) {
        let end = tokio::select! {
            end = poll_fn(|cx| self.poll_serve(cx)) => end,
            () = stopping(tasks) => End::Stopping,
        };
        tracing::debug!(%end, "a client's connection ends");
        let lost = matches!(end, End::Lost(_));
        self.shared.lock().finish(end);
        if !lost {
            // Whoever doesn't listen to the last words loses nothing but them.
            drop(tokio::time::timeout(FAREWELL, self.say_farewell()).await);
        }
    }

    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.shared.lock().set_driver(cx.waker());
        while self.tick.poll_tick(cx).is_ready() {
            if self.moved.elapsed() >= self.idle {
                return Poll::Ready(End::Idle);
            }
            self.look_around();
        }
        loop {
            let sent = match self.poll_send(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => return Poll::Ready(lost("write to", &error)),
                Poll::Pending => false,
            };
            let received = match self.poll_receive(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => false,
            };
            if !sent && !received {
                break;
            }
            self.moved = Instant::now();
        }
        if self.sending.is_empty() && self.flushed && self.shared.lock().is_done() {
            return Poll::Ready(End::Done);
        }
        Poll::Pending
    }

    /// Sends some bytes; pending when there are none, or the socket takes none.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sending.is_empty() {
            self.shared.lock().take_output(&mut self.sending);
        }
        if self.sending.is_empty() {
            if !self.flushed {
                ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
                self.flushed = true;
            }
            return Poll::Pending;
        }
        let rest = self.sending.get(self.sent..).unwrap_or_default();
        let count = ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.flushed = false;
        self.sent = self.sent.saturating_add(count);
        if self.sent >= self.sending.len() {
            self.sending.clear();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Receives some bytes; pending when there are none, or more must not be received.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.shared.lock().session().paused() {
            return Poll::Pending;
        }
        let mut buffer = ReadBuf::new(&mut self.input);
        match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer)) {
            Err(error) => Poll::Ready(Err(lost("read from", &error))),
            Ok(()) if buffer.filled().is_empty() => {
                Poll::Ready(Err(End::Lost("the client has closed it".to_owned())))
            }
            Ok(()) => {
                let received = self.shared.lock().receive(buffer.filled());
                Poll::Ready(received.map_err(End::Broken))
            }
        }
    }

    fn look_around(&mut self) {
        let mut state = self.shared.lock();
        state.reset_stalled();
        state.call_writers();
        let session = state.session();
        // Nothing waits to be sent, so pings can't pile up.
        if session.paused() && session.output().is_empty() && self.sending.is_empty() {
            session.ping();
        }
        if self.sending.is_empty() {
            self.sending = Vec::new();
        }
    }

    async fn say_farewell(&mut self) -> io::Result<()> {
        self.shared.lock().session().go_away(GoAway::Ok);
        loop {
            let rest = self.sending.get(self.sent..).unwrap_or_default();
            self.socket.write_all(rest).await?;
            self.sending.clear();
            self.sent = 0;
            self.shared.lock().take_output(&mut self.sending);
            if self.sending.is_empty() {
                break;
            }
        }
        self.socket.shutdown().await?;
        while self.socket.read(&mut self.input).await? > 0 {}
        Ok(())
    }
}

/// The streams' owners see it first and end their streams in their own words.
async fn stopping(tasks: &Tasks) {
    tasks.stopping().await;
    tokio::time::sleep(OWNERS).await;
}

fn lost(doing: &str, error: &io::Error) -> End {
    End::Lost(format!("{doing} the client: {error}"))
}

#[cfg(test)]
mod tests;
