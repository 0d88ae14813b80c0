//! What a connection's driver and its streams share: the session, and per stream what is received
//! and not read, and who waits for what. Not async itself; it keeps and calls wakers.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::error::Error;
use super::frame::Status;
use super::headers::Headers;
use super::limits::Limits;
use super::session::{Event, FRAME, Room, Session};
use super::turns::Turns;

/// A read buffer that has grown beyond this is given back when it is empty.
const KEPT: usize = 16 << 10;

/// Why a connection is over.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// Nothing was left to do.
    Done,
    /// The client has closed it, or the socket failed.
    Lost(String),
    /// The client broke the protocol.
    Broken(Error),
    /// Nothing moved for too long.
    Idle,
    /// The daemon stops.
    Stopping,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("it was finished"),
            Self::Lost(why) => f.write_str(why),
            Self::Broken(error) => write!(f, "the client sent {error}"),
            Self::Idle => f.write_str("it was idle for too long"),
            Self::Stopping => f.write_str("the daemon stops"),
        }
    }
}

/// A stream as its owner sees it.
#[derive(Debug)]
struct Channel {
    received: VecDeque<u8>,
    /// Nothing more will be received.
    finished: bool,
    /// Reset by either side.
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// When bytes came into the empty buffer, or some were last read.
    moved: Instant,
}

impl Channel {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()] {
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    session: Session,
    channels: HashMap<u32, Channel>,
    /// Opened by the client, not accepted yet.
    backlog: VecDeque<(u32, Headers)>,
    accepting: bool,
    acceptor: Option<Waker>,
    driver: Option<Waker>,
    turns: Turns,
    end: Option<End>,
    stalled: Option<Duration>,
}

/// For whoever drives the connection.
impl State {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            turns: Turns::new(limits.output / FRAME),
            stalled: limits.stalled,
            session: Session::new(limits),
            channels: HashMap::new(),
            backlog: VecDeque::new(),
            accepting: true,
            acceptor: None,
            driver: None,
            end: None,
        }
    }

    /// Whom to wake when there is something to send, or to receive again.
    pub(super) fn set_driver(&mut self, waker: &Waker) {
        self.driver = Some(waker.clone());
    }

    pub(super) fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Puts what came in where it belongs.
    pub(super) fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while let Some(event) = self.session.receive(&mut bytes)? {
            match event {
                Event::Opened {
                    stream,
                    headers,
                    fin,
                } => self.opened(stream, headers, fin),
                Event::Data { stream, bytes, fin } => {
                    let Some(channel) = self.channels.get_mut(&stream) else {
                        continue;
                    };
                    if channel.received.is_empty() {
                        channel.moved = Instant::now();
                    }
                    channel.received.extend(bytes);
                    channel.finished |= fin;
                    channel.reader.take().into_iter().for_each(Waker::wake);
                }
                Event::Reset { stream } => self.was_reset(stream),
                Event::Window => {
                    for channel in self.channels.values_mut() {
                        channel.writer.take().into_iter().for_each(Waker::wake);
                    }
                }
                Event::Left => self.acceptor.take().into_iter().for_each(Waker::wake),
            }
        }
        Ok(())
    }

    fn opened(&mut self, stream: u32, headers: Headers, fin: bool) {
        let channel = Channel {
            received: VecDeque::new(),
            finished: fin,
            reset: false,
            reader: None,
            writer: None,
            moved: Instant::now(),
        };
        self.channels.insert(stream, channel);
        self.backlog.push_back((stream, headers));
        self.acceptor.take().into_iter().for_each(Waker::wake);
    }

    fn was_reset(&mut self, stream: u32) {
        let waiting = self.backlog.len();
        self.backlog.retain(|(waiting, _)| *waiting != stream);
        if self.backlog.len() < waiting {
            self.discard(stream);
        } else if let Some(channel) = self.channels.get_mut(&stream) {
            channel.reset = true;
            channel.wake();
        }
    }

    /// Moves what is to be sent into `empty`, which makes room for those who wait to write.
    pub(super) fn take_output(&mut self, empty: &mut Vec<u8>) {
        std::mem::swap(self.session.output(), empty);
        if !empty.is_empty() {
            self.call_writers();
        }
    }

    /// Calls those whose turn it is to write; called now and then too, in case a called one never
    /// came and nothing is sent that would call the next.
    pub(super) fn call_writers(&mut self) {
        let channels = &self.channels;
        let called = self.turns.call(|stream| {
            let channel = channels.get(&stream);
            channel.is_some_and(|channel| channel.writer.is_some())
        });
        self.wake_writers(&called);
    }

    /// Whether nobody will want anything from this connection any more.
    pub(super) fn is_done(&self) -> bool {
        let no_more = !self.accepting || self.session.peer_left();
        no_more && self.channels.is_empty()
    }

    /// Resets the streams that keep all others from receiving and weren't read for too long.
    pub(super) fn reset_stalled(&mut self) {
        let Some(stalled) = self.stalled.filter(|_| self.session.crowded()) else {
            return;
        };
        let culprits: Vec<u32> = self
            .channels
            .iter()
            .filter(|(_, channel)| !channel.received.is_empty())
            .filter(|(_, channel)| channel.moved.elapsed() >= stalled)
            .map(|(stream, _)| *stream)
            .collect();
        for stream in culprits {
            tracing::debug!(stream, "a stream that nobody reads held up its connection");
            self.session.reset(stream, Status::FlowControlError);
            if let Some(channel) = self.channels.get_mut(&stream) {
                let unread = std::mem::take(&mut channel.received).len();
                self.session.consumed(stream, unread);
            }
            self.was_reset(stream);
        }
    }

    /// The connection is over; everyone who waits learns it.
    pub(super) fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.session.stop_accepting();
        self.acceptor.take().into_iter().for_each(Waker::wake);
        self.channels.values_mut().for_each(Channel::wake);
    }
}

/// For the acceptor and the streams.
impl State {
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<(u32, Headers)>> {
        if self.end.is_some() {
            return Poll::Ready(None);
        }
        if let Some((stream, headers)) = self.backlog.pop_front() {
            if let Err(error) = self.session.reply(stream) {
                self.finish(End::Broken(error));
            }
            self.wake_driver();
            return Poll::Ready(Some((stream, headers)));
        }
        if self.session.peer_left() {
            return Poll::Ready(None);
        }
        self.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Streams not accepted are refused, and all that come.
    pub(super) fn stop_accepting(&mut self) {
        self.accepting = false;
        self.session.stop_accepting();
        for (stream, _) in std::mem::take(&mut self.backlog) {
            self.session.reset(stream, Status::RefusedStream);
            self.discard(stream);
        }
        self.wake_driver();
    }

    pub(super) fn poll_read(
        &mut self,
        stream: u32,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(channel) = self.channels.get_mut(&stream) else {
            return Poll::Ready(Ok(()));
        };
        if channel.received.is_empty() {
            return match &self.end {
                _ if channel.finished => Poll::Ready(Ok(())),
                _ if channel.reset => Poll::Ready(Err(reset())),
                Some(end) => Poll::Ready(Err(over(io::ErrorKind::ConnectionReset, end))),
                None => {
                    channel.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let (first, _) = channel.received.as_slices();
        let count = first.len().min(buffer.remaining());
        buffer.put_slice(first.get(..count).unwrap_or(first));
        channel.received.drain(..count);
        channel.moved = Instant::now();
        if channel.received.is_empty() && channel.received.capacity() > KEPT {
            channel.received = VecDeque::new();
        }
        if self.session.consumed(stream, count) {
            self.wake_driver();
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_write(
        &mut self,
        stream: u32,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(end) = &self.end {
            return Poll::Ready(Err(over(io::ErrorKind::BrokenPipe, end)));
        }
        match self.session.room(stream) {
            Room::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Room::Open(_) if self.turns.may(stream) => {
                let count = self.session.send(stream, bytes);
                self.pass(stream);
                self.wake_driver();
                Poll::Ready(Ok(count))
            }
            room => {
                match room {
                    Room::Window => self.pass(stream),
                    _ => self.turns.wait(stream),
                }
                if let Some(channel) = self.channels.get_mut(&stream) {
                    channel.writer = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    /// Ends the stream's sending direction.
    pub(super) fn shut_down(&mut self, stream: u32) -> io::Result<()> {
        if let Some(end) = &self.end {
            return Err(over(io::ErrorKind::BrokenPipe, end));
        }
        self.session.finish(stream);
        self.wake_driver();
        Ok(())
    }

    /// The stream's owner is done with it: if it isn't over by itself, it is reset.
    pub(super) fn close(&mut self, stream: u32, status: Status) {
        self.session.reset(stream, status);
        self.discard(stream);
        self.wake_driver();
    }

    fn discard(&mut self, stream: u32) {
        if let Some(channel) = self.channels.remove(&stream) {
            self.session.release();
            self.session.consumed(stream, channel.received.len());
        }
        let called = self.turns.forget(stream);
        self.wake_writers(&called);
    }

    fn pass(&mut self, stream: u32) {
        let called = self.turns.pass(stream);
        self.wake_writers(&called);
    }

    fn wake_writers(&mut self, streams: &[u32]) {
        for stream in streams {
            if let Some(channel) = self.channels.get_mut(stream) {
                channel.writer.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    fn wake_driver(&mut self) {
        self.driver.take().into_iter().for_each(Waker::wake);
    }
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the stream was reset")
}

fn over(kind: io::ErrorKind, end: &End) -> io::Error {
    io::Error::new(kind, format!("the client's connection is over: {end}"))
}
