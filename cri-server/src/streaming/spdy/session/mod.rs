//! The state machine of a connection: bytes in, events out; commands in, bytes out. Pure.
//!
//! **Flow control towards the client.** The drafts let us send 64 KiB per stream and per session
//! until the client announces more by WINDOW_UPDATE. The Go package behind the clients of this
//! field announces nothing, ever, so waiting for it would hang each exec that prints more than
//! 64 KiB. So a window holds us back from the first frame on in which the client shows that it
//! keeps it: SETTINGS with an initial window or WINDOW_UPDATE of a stream for those of streams,
//! WINDOW_UPDATE of stream 0 for the session's. All bytes are counted from the beginning. Until
//! then, and besides, what is not sent yet is bounded and the writers wait for the socket.
//!
//! **Flow control from the client.** Windows are announced and renewed as readers read, for clients
//! that keep them. One that doesn't is held back by its socket: [`Session::paused`] says when not
//! to read it. Nothing is reset for overrunning a window, since most clients would, and memory is
//! bounded anyway. A stream that holds up the others is the driver's to judge.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod command;
mod receive;

use std::collections::HashMap;

use super::frame::{self, Control, Decoder, GoAway, Status};
use super::headers::{Deflater, Headers, Inflater};
use super::limits::Limits;

/// What every window is before anyone says otherwise (SPDY/3 draft, 2.6.8; 3.1 for the session).
const INITIAL_WINDOW: u32 = 64 << 10;
const MAX_WINDOW: i64 = 0x7fff_ffff;
/// The most data in one frame: the granularity in which streams take turns.
pub(super) const FRAME: usize = 32 << 10;

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A new stream, to be replied to or reset.
    Opened {
        stream: u32,
        headers: Headers,
        /// Nothing will come on it.
        fin: bool,
    },
    /// Bytes of a stream, and whether they are the last. They count against the windows until
    /// [`Session::consumed`].
    Data {
        stream: u32,
        bytes: &'a [u8],
        fin: bool,
    },
    /// A stream is over in both directions, before its time.
    Reset { stream: u32 },
    /// A window has grown.
    Window,
    /// The client opens no more streams.
    Left,
}

/// Whether a stream can send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// That many bytes.
    Open(usize),
    /// Not before some output has left.
    Full,
    /// Not before the client's window grows.
    Window,
    /// Never again.
    Closed,
}

#[derive(Debug)]
struct Entry {
    /// The client may still send.
    receiving: bool,
    /// We may still send.
    sending: bool,
    /// What the client lets us send; below zero where it doesn't keep windows.
    window: i64,
    /// Received and not consumed.
    buffered: usize,
    /// Consumed and not yet told the client.
    credit: usize,
}

/// What the client keeps of flow control.
#[derive(Debug)]
struct Peer {
    initial: i64,
    window: i64,
    keeps_streams: bool,
    keeps_session: bool,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    limits: Limits,
    decoder: Decoder,
    inflater: Inflater,
    deflater: Deflater,
    streams: HashMap<u32, Entry>,
    /// How many streams have an owner, over or not: those count for the bound on streams, so that
    /// opening and resetting at speed makes no more owners than that.
    held: usize,
    /// The highest id the client has used.
    last: u32,
    accepting: bool,
    peer_left: bool,
    said_go_away: bool,
    peer: Peer,
    /// Received and not consumed, of all streams.
    buffered: usize,
    credit: usize,
    /// How many streams hold more than their window.
    behind: usize,
    last_ping: u32,
    output: Vec<u8>,
}

impl Session {
    /// A fresh session; its windows are its first output.
    pub(super) fn new(limits: Limits) -> Self {
        let mut output = Vec::new();
        let settings = vec![(frame::INITIAL_WINDOW_SIZE, limits.window)];
        frame::encode(&Control::Settings(settings), &mut output);
        let more = limits.session_window.saturating_sub(INITIAL_WINDOW);
        if more > 0 {
            let update = Control::WindowUpdate {
                stream: 0,
                delta: more,
            };
            frame::encode(&update, &mut output);
        }
        Self {
            limits,
            decoder: Decoder::new(),
            inflater: Inflater::new(),
            deflater: Deflater::default(),
            streams: HashMap::new(),
            held: 0,
            last: 0,
            accepting: true,
            peer_left: false,
            said_go_away: false,
            peer: Peer {
                initial: i64::from(INITIAL_WINDOW),
                window: i64::from(INITIAL_WINDOW),
                keeps_streams: false,
                keeps_session: false,
            },
            buffered: 0,
            credit: 0,
            behind: 0,
            last_ping: 0,
            output,
        }
    }

    /// Whether no more may be received for now: readers are behind, or the client makes us answer
    /// and doesn't read. Data alone can't fill the output so far.
    pub(super) fn paused(&self) -> bool {
        self.behind > 0
            || self.buffered > usize::try_from(self.limits.session_window).unwrap_or(usize::MAX)
            || self.output.len() > self.limits.output.saturating_add(FRAME.saturating_mul(2))
    }

    /// Whether readers that are behind keep all others from receiving: the socket isn't read, or a
    /// client that keeps windows has used up the session's.
    pub(super) fn crowded(&self) -> bool {
        self.behind > 0
            || self.buffered.saturating_add(self.credit)
                >= usize::try_from(self.limits.session_window).unwrap_or(usize::MAX)
    }

    /// From now on new streams are refused.
    pub(super) fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    /// Says the end, and nothing after it: the usual client wouldn't read it.
    pub(super) fn go_away(&mut self, why: GoAway) {
        self.accepting = false;
        self.say(&Control::GoAway {
            last: self.last,
            status: why as u32,
        });
        self.said_go_away = true;
    }

    /// Whether the client has said that it opens no more streams.
    pub(super) fn peer_left(&self) -> bool {
        self.peer_left
    }

    /// What is to be sent.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    fn say_reset(&mut self, stream: u32, status: Status) {
        let status = status as u32;
        self.say(&Control::RstStream { stream, status });
    }

    fn say(&mut self, control: &Control) {
        if !self.said_go_away {
            frame::encode(control, &mut self.output);
        }
    }

    fn remove_if_over(&mut self, stream: u32) {
        let entry = self.streams.get(&stream);
        if entry.is_some_and(|entry| !entry.receiving && !entry.sending) {
            self.remove(stream);
        }
    }

    /// Forgets a stream; its unread bytes still count for the session.
    fn remove(&mut self, stream: u32) -> bool {
        let Some(entry) = self.streams.remove(&stream) else {
            return false;
        };
        if entry.buffered > window_size(&self.limits) {
            self.behind = self.behind.saturating_sub(1);
        }
        true
    }
}

fn window_size(limits: &Limits) -> usize {
    usize::try_from(limits.window).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
