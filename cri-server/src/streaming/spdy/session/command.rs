//! What we do: the commands of those who own the streams.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use super::{FRAME, Room, Session, window_size};
use crate::streaming::spdy::error::Error;
use crate::streaming::spdy::frame::{self, Control, Status};

impl Session {
    /// Accepts a stream; the usual client sends no data before.
    pub(in super::super) fn reply(&mut self, stream: u32) -> Result<(), Error> {
        // A stream on which we may send nothing has no reply either (2.3.6).
        if !self.streams.get(&stream).is_some_and(|entry| entry.sending) {
            return Ok(());
        }
        let block = self.deflater.deflate(&[])?;
        self.say(&Control::SynReply {
            stream,
            flags: 0,
            block,
        });
        Ok(())
    }

    /// What [`Session::send`] would take.
    pub(in super::super) fn room(&self, stream: u32) -> Room {
        let entry = self.streams.get(&stream).filter(|entry| entry.sending);
        let Some(entry) = entry.filter(|_| !self.said_go_away) else {
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
    pub(in super::super) fn send(&mut self, stream: u32, bytes: &[u8]) -> usize {
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
    pub(in super::super) fn finish(&mut self, stream: u32) {
        let Some(entry) = self.streams.get_mut(&stream).filter(|entry| entry.sending) else {
            return;
        };
        entry.sending = false;
        if !self.said_go_away {
            frame::encode_data(stream, true, &[], &mut self.output);
        }
        self.remove_if_over(stream);
    }

    /// Ends a stream in both directions, if it hasn't ended so.
    pub(in super::super) fn reset(&mut self, stream: u32, status: Status) {
        if self.remove(stream) {
            self.say_reset(stream, status);
        }
    }

    /// A stream that was opened has no owner any more.
    pub(in super::super) fn release(&mut self) {
        self.held = self.held.saturating_sub(1);
    }

    /// `count` bytes of a stream have left its buffer. Says whether there is something new for who
    /// drives the session: output, or the end of a pause.
    pub(in super::super) fn consumed(&mut self, stream: u32, count: usize) -> bool {
        let (paused, had) = (self.paused(), self.output.len());
        self.buffered = self.buffered.saturating_sub(count);
        self.credit = self.credit.saturating_add(count);
        let session = usize::try_from(self.limits.session_window).unwrap_or(usize::MAX);
        if self.credit >= session / 2 {
            let delta = take_credit(&mut self.credit);
            self.say(&Control::WindowUpdate { stream: 0, delta });
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
                let delta = take_credit(&mut entry.credit);
                self.say(&Control::WindowUpdate { stream, delta });
            }
        }
        self.output.len() != had || paused && !self.paused()
    }

    /// Asks the client for a sign of life.
    pub(in super::super) fn ping(&mut self) {
        self.last_ping = self.last_ping.wrapping_add(2).max(2);
        self.say(&Control::Ping(self.last_ping));
    }
}

fn take_credit(credit: &mut usize) -> u32 {
    u32::try_from(std::mem::take(credit)).unwrap_or(u32::MAX)
}
