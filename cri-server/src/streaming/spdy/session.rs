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

use std::collections::HashMap;

use super::error::Error;
use super::frame::{self, Control, Decoder, FIN, GoAway, Item, Status, UNIDIRECTIONAL};
use super::headers::{self, Deflater, Headers, Inflater};
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

    /// Takes bytes off `input` up to the next event; `None`: all are taken. After an error, which
    /// the output tells the client, nothing more can be received.
    pub(super) fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        let event = self.next_event(input);
        if let Err(error) = &event {
            self.go_away(error.status());
        }
        event
    }

    fn next_event<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        while let Some(item) = self.decoder.next(input)? {
            let event = match item {
                Item::Control(control) => self.control(control)?,
                Item::Data { stream, bytes, fin } => self.data(stream, bytes, fin)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn control(&mut self, control: Control) -> Result<Option<Event<'static>>, Error> {
        match control {
            Control::SynStream {
                stream,
                flags,
                block,
            } => self.syn_stream(stream, flags, &block),
            Control::SynReply {
                stream,
                flags,
                block,
            }
            | Control::Headers {
                stream,
                flags,
                block,
            } => self.more_headers(stream, flags, &block),
            Control::RstStream { stream, .. } => {
                let known = self.remove(stream);
                Ok(known.then_some(Event::Reset { stream }))
            }
            Control::Settings(settings) => self.settings(&settings),
            Control::Ping(id) => {
                // Even ids are ours, come back.
                if id % 2 == 1 {
                    frame::encode(&Control::Ping(id), &mut self.output);
                }
                Ok(None)
            }
            Control::GoAway { .. } => {
                self.peer_left = true;
                Ok(Some(Event::Left))
            }
            Control::WindowUpdate { stream, delta } => self.window_update(stream, delta),
        }
    }

    fn syn_stream(
        &mut self,
        stream: u32,
        flags: u8,
        block: &[u8],
    ) -> Result<Option<Event<'static>>, Error> {
        // Inflated whatever becomes of it: the next block builds on it.
        let block = self.inflater.inflate(block)?;
        if stream % 2 == 0 || stream <= self.last {
            let last = self.last;
            return Err(Error::StreamId { stream, last });
        }
        self.last = stream;
        if !self.accepting || self.peer_left || self.streams.len() >= self.limits.streams {
            self.say_reset(stream, Status::RefusedStream);
            return Ok(None);
        }
        let Ok(headers) = headers::parse(&block) else {
            self.say_reset(stream, Status::ProtocolError);
            return Ok(None);
        };
        let fin = flags & FIN != 0;
        let entry = Entry {
            receiving: !fin,
            sending: flags & UNIDIRECTIONAL == 0,
            window: self.peer.initial,
            buffered: 0,
            credit: 0,
        };
        self.streams.insert(stream, entry);
        self.remove_if_over(stream);
        Ok(Some(Event::Opened {
            stream,
            headers,
            fin,
        }))
    }

    /// SYN_REPLY, which answers nothing since we open no streams, and HEADERS, which no protocol
    /// above uses: read for zlib's sake and for the FIN they may carry.
    fn more_headers(
        &mut self,
        stream: u32,
        flags: u8,
        block: &[u8],
    ) -> Result<Option<Event<'static>>, Error> {
        let block = self.inflater.inflate(block)?;
        if !self.streams.contains_key(&stream) {
            return Ok(None);
        }
        if headers::parse(&block).is_err() {
            self.reset(stream, Status::ProtocolError);
            return Ok(Some(Event::Reset { stream }));
        }
        match flags & FIN {
            0 => Ok(None),
            _ => self.data(stream, &[], true),
        }
    }

    fn data<'a>(
        &mut self,
        stream: u32,
        bytes: &'a [u8],
        fin: bool,
    ) -> Result<Option<Event<'a>>, Error> {
        if stream == 0 {
            return Err(Error::StreamZero);
        }
        self.buffered = self.buffered.saturating_add(bytes.len());
        let Some(entry) = self.streams.get_mut(&stream) else {
            // Of a stream that is over: on its way when that was said. Of one that never was: not.
            if stream % 2 == 0 || stream > self.last {
                self.say_reset(stream, Status::InvalidStream);
            }
            self.consumed(stream, bytes.len());
            return Ok(None);
        };
        if !entry.receiving {
            self.reset(stream, Status::StreamAlreadyClosed);
            self.consumed(stream, bytes.len());
            return Ok(Some(Event::Reset { stream }));
        }
        let window = window_size(&self.limits);
        let was_behind = entry.buffered > window;
        entry.buffered = entry.buffered.saturating_add(bytes.len());
        if !was_behind && entry.buffered > window {
            self.behind = self.behind.saturating_add(1);
        }
        if fin {
            entry.receiving = false;
            self.remove_if_over(stream);
        }
        Ok(Some(Event::Data { stream, bytes, fin }))
    }

    fn settings(&mut self, settings: &[(u32, u32)]) -> Result<Option<Event<'static>>, Error> {
        let mut event = None;
        for (id, value) in settings {
            if *id != frame::INITIAL_WINDOW_SIZE {
                continue;
            }
            let initial = i64::from(*value);
            if initial > MAX_WINDOW {
                return Err(Error::Window);
            }
            let change = initial.saturating_sub(self.peer.initial);
            self.peer.initial = initial;
            self.peer.keeps_streams = true;
            for entry in self.streams.values_mut() {
                entry.window = entry.window.saturating_add(change);
            }
            event = Some(Event::Window);
        }
        Ok(event)
    }

    fn window_update(&mut self, stream: u32, delta: u32) -> Result<Option<Event<'static>>, Error> {
        let delta = i64::from(delta);
        if stream == 0 {
            self.peer.keeps_session = true;
            self.peer.window = self.peer.window.saturating_add(delta);
            return match self.peer.window > MAX_WINDOW {
                true => Err(Error::Window),
                false => Ok(Some(Event::Window)),
            };
        }
        self.peer.keeps_streams = true;
        let Some(entry) = self.streams.get_mut(&stream) else {
            return Ok(None);
        };
        entry.window = entry.window.saturating_add(delta);
        if entry.window > MAX_WINDOW {
            self.reset(stream, Status::FlowControlError);
            return Ok(Some(Event::Reset { stream }));
        }
        Ok(Some(Event::Window))
    }

    /// Accepts a stream; the usual client sends no data before.
    pub(super) fn reply(&mut self, stream: u32) -> Result<(), Error> {
        // A stream on which we may send nothing has no reply either (2.3.6).
        if !self.streams.get(&stream).is_some_and(|entry| entry.sending) {
            return Ok(());
        }
        let block = self.deflater.deflate(&[])?;
        let reply = Control::SynReply {
            stream,
            flags: 0,
            block,
        };
        frame::encode(&reply, &mut self.output);
        Ok(())
    }

    /// What [`Session::send`] would take.
    pub(super) fn room(&self, stream: u32) -> Room {
        let Some(entry) = self.streams.get(&stream).filter(|entry| entry.sending) else {
            return Room::Closed;
        };
        let mut room = FRAME;
        for (kept, window) in [
            (self.peer.keeps_streams, entry.window),
            (self.peer.keeps_session, self.peer.window),
        ] {
            if kept {
                room = room.min(usize::try_from(window).unwrap_or(0));
            }
        }
        if room == 0 {
            Room::Window
        } else if self.output.len() >= self.limits.output {
            Room::Full
        } else {
            Room::Open(room)
        }
    }

    /// Sends the first of `bytes`, as many as there is room for; says how many.
    pub(super) fn send(&mut self, stream: u32, bytes: &[u8]) -> usize {
        let Room::Open(room) = self.room(stream) else {
            return 0;
        };
        let bytes = bytes.get(..room).unwrap_or(bytes);
        frame::encode_data(stream, false, bytes, &mut self.output);
        let sent = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        self.peer.window = self.peer.window.saturating_sub(sent);
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.window = entry.window.saturating_sub(sent);
        }
        bytes.len()
    }

    /// Ends our direction of a stream.
    pub(super) fn finish(&mut self, stream: u32) {
        let Some(entry) = self.streams.get_mut(&stream).filter(|entry| entry.sending) else {
            return;
        };
        entry.sending = false;
        frame::encode_data(stream, true, &[], &mut self.output);
        self.remove_if_over(stream);
    }

    /// Ends a stream in both directions, if it hasn't ended so.
    pub(super) fn reset(&mut self, stream: u32, status: Status) {
        if self.remove(stream) {
            self.say_reset(stream, status);
        }
    }

    /// `count` bytes of a stream have left its buffer. Says whether there is something new for who
    /// drives the session: output, or the end of a pause.
    pub(super) fn consumed(&mut self, stream: u32, count: usize) -> bool {
        let (paused, had) = (self.paused(), self.output.len());
        self.buffered = self.buffered.saturating_sub(count);
        self.credit = self.credit.saturating_add(count);
        let session = usize::try_from(self.limits.session_window).unwrap_or(usize::MAX);
        if self.credit >= session / 2 {
            renew(0, &mut self.credit, &mut self.output);
        }
        let window = window_size(&self.limits);
        if let Some(entry) = self.streams.get_mut(&stream) {
            let was_behind = entry.buffered > window;
            entry.buffered = entry.buffered.saturating_sub(count);
            if was_behind && entry.buffered <= window {
                self.behind = self.behind.saturating_sub(1);
            }
            entry.credit = entry.credit.saturating_add(count);
            if entry.receiving && entry.credit >= window / 2 {
                renew(stream, &mut entry.credit, &mut self.output);
            }
        }
        self.output.len() != had || paused && !self.paused()
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

    /// Asks the client for a sign of life.
    pub(super) fn ping(&mut self) {
        self.last_ping = self.last_ping.wrapping_add(2).max(2);
        frame::encode(&Control::Ping(self.last_ping), &mut self.output);
    }

    /// From now on new streams are refused.
    pub(super) fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    /// Says the end. The usual client reads nothing after it.
    pub(super) fn go_away(&mut self, why: GoAway) {
        self.accepting = false;
        if !std::mem::replace(&mut self.said_go_away, true) {
            let last = self.last;
            let status = why as u32;
            frame::encode(&Control::GoAway { last, status }, &mut self.output);
        }
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
        frame::encode(&Control::RstStream { stream, status }, &mut self.output);
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

fn renew(stream: u32, credit: &mut usize, output: &mut Vec<u8>) {
    let delta = u32::try_from(std::mem::take(credit)).unwrap_or(u32::MAX);
    frame::encode(&Control::WindowUpdate { stream, delta }, output);
}
