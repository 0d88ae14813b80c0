//! Frames: bytes ↔ header and body, pure. The layout is described in [`super::wire`].
//!
//! The decoder asks for no byte beyond the frame it is in. So a reader that fills exactly
//! [`Decoder::space`] gets the descriptors of a frame while it is in that frame and never those of
//! the next: the kernel hands them over with the first byte they were sent with.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::os::fd::OwnedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{MAX_DESCRIPTORS, MAX_FRAME, VERSION};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a header.
pub const HEADER: usize = 12;

/// A body is allocated in steps of this size, as its bytes come, whatever length was announced.
const STEP: usize = 64 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Daemon to monitor.
    Request,
    /// Monitor to daemon, one to each request, with its id.
    Reply,
    /// Monitor to daemon, unasked.
    Event,
}

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The protocol version of the sender's message; at least 1.
    pub version: u16,
    /// What the body is.
    pub kind: Kind,
    /// Pairs a reply with its request; 0 for events.
    pub id: u32,
}

impl Header {
    fn encode(self, length: u32) -> [u8; HEADER] {
        let kind: u16 = match self.kind {
            Kind::Request => 0,
            Kind::Reply => 1,
            Kind::Event => 2,
        };
        let [l0, l1, l2, l3] = length.to_le_bytes();
        let [v0, v1] = self.version.to_le_bytes();
        let [k0, k1] = kind.to_le_bytes();
        let [i0, i1, i2, i3] = self.id.to_le_bytes();
        [l0, l1, l2, l3, v0, v1, k0, k1, i0, i1, i2, i3]
    }

    fn decode(bytes: [u8; HEADER]) -> Result<(Self, usize)> {
        let [l0, l1, l2, l3, v0, v1, k0, k1, i0, i1, i2, i3] = bytes;
        let announced = u32::from_le_bytes([l0, l1, l2, l3]);
        let length = usize::try_from(announced)
            .ok()
            .filter(|length| *length <= MAX_FRAME)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "frame of {announced} bytes: at most {MAX_FRAME} are allowed"
                ))
            })?;
        let version = u16::from_le_bytes([v0, v1]);
        if version == 0 {
            return Err(Error::invalid("frame of version 0: versions start at 1"));
        }
        let kind = match u16::from_le_bytes([k0, k1]) {
            0 => Kind::Request,
            1 => Kind::Reply,
            2 => Kind::Event,
            other => return Err(Error::invalid(format!("frame of unknown kind {other}"))),
        };
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        Ok((Self { version, kind, id }, length))
    }
}

/// Renders one message as the bytes of a frame.
pub fn encode(kind: Kind, id: u32, message: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message)
        .map_err(|error| Error::invalid(format!("encode a message: {error}")))?;
    let length = bytes.len().saturating_sub(HEADER);
    let length = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_FRAME)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Exhausted,
                format!("message of {length} bytes: a frame holds {MAX_FRAME}"),
            )
        })?;
    let version = VERSION;
    let header = Header { version, kind, id }.encode(length);
    if let Some(place) = bytes.get_mut(..HEADER) {
        place.copy_from_slice(&header);
    }
    Ok(bytes)
}

/// A whole frame, with the descriptors that came with it.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its body, JSON.
    pub body: Vec<u8>,
    /// The descriptors that travelled with it, in the sender's order.
    pub descriptors: Vec<OwnedFd>,
}

impl Frame {
    /// Parses the body.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Error::invalid(format!("message of kind {:?}: {error}", self.header.kind))
        })
    }
}

/// Puts frames together from bytes in pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    header: Header,
    length: usize,
    /// Grown by [`Decoder::space`], so it may be longer than what is filled.
    bytes: Vec<u8>,
    filled: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// At the start of a frame.
    pub fn new() -> Self {
        Self {
            header: [0; HEADER],
            have: 0,
            body: None,
        }
    }

    /// True between frames: the stream may end here.
    pub fn idle(&self) -> bool {
        self.have == 0 && self.body.is_none()
    }

    /// Where the next bytes go: never empty, never reaching beyond the current frame.
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.body {
            None => self.header.get_mut(self.have..).unwrap_or_default(),
            Some(body) => {
                let end = body.filled.saturating_add(STEP).min(body.length);
                if body.bytes.len() < end {
                    body.bytes.resize(end, 0);
                }
                body.bytes.get_mut(body.filled..end).unwrap_or_default()
            }
        }
    }

    /// As [`Decoder::filled`], with the descriptors that have come since the last frame: they are
    /// the frame's when it is complete, and bounded while it is not.
    pub fn received(
        &mut self,
        count: usize,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Option<Frame>> {
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(Error::invalid(format!(
                "a frame came with more than {MAX_DESCRIPTORS} descriptors"
            )));
        }
        Ok(self.filled(count)?.map(|(header, body)| Frame {
            header,
            body,
            descriptors: std::mem::take(descriptors),
        }))
    }

    /// Notes that the first `count` bytes of [`Decoder::space`] were filled. Returns header and
    /// body when they complete a frame. After an error the stream is unusable.
    pub fn filled(&mut self, count: usize) -> Result<Option<(Header, Vec<u8>)>> {
        match &mut self.body {
            None => {
                self.have = self.have.saturating_add(count).min(HEADER);
                if self.have < HEADER {
                    return Ok(None);
                }
                let (header, length) = Header::decode(self.header)?;
                self.body = Some(Body {
                    header,
                    length,
                    bytes: Vec::new(),
                    filled: 0,
                });
            }
            Some(body) => {
                body.filled = body.filled.saturating_add(count).min(body.bytes.len());
            }
        }
        match self.body.take() {
            Some(mut body) if body.filled >= body.length => {
                self.have = 0;
                body.bytes.truncate(body.length);
                Ok(Some((body.header, body.bytes)))
            }
            unfinished => {
                self.body = unfinished;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
