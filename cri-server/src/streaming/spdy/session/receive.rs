//! What the client sends: frame by frame, what it means for the session.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use super::{Entry, Event, MAX_WINDOW, Session, window_size};
use crate::streaming::spdy::error::Error;
use crate::streaming::spdy::frame::{self, Control, FIN, Item, Status, UNIDIRECTIONAL};
use crate::streaming::spdy::headers;

impl Session {
    /// Takes bytes off `input` up to the next event; `None`: all are taken. After an error, which
    /// the output tells the client, nothing more can be received.
    pub(in super::super) fn receive<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Event<'a>>, Error> {
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
                if !id.is_multiple_of(2) {
                    self.say(&Control::Ping(id));
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
        if stream.is_multiple_of(2) || stream <= self.last {
            let last = self.last;
            return Err(Error::StreamId { stream, last });
        }
        self.last = stream;
        if !self.accepting || self.peer_left || self.held >= self.limits.streams {
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
        self.held = self.held.saturating_add(1);
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
            if stream.is_multiple_of(2) || stream > self.last {
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
}
