//! Frames, and bytes to frames and back. Pure; knows no streams, no header blocks' content.
//!
//! Layouts are those of the SPDY/3 draft, section 2. A control frame is gathered whole, so its
//! length is bounded; a data frame may have 16 MiB and is passed on in the pieces in which it
//! comes, so nothing of it is kept here.

mod decode;
mod encode;

pub(super) use decode::{Decoder, Item};
pub(super) use encode::{encode, encode_data};

/// The longest control frame taken. The draft asks for 8 KiB at least; the headers of this field
/// take some hundred bytes.
pub(super) const MAX_CONTROL: usize = 16 << 10;

/// FLAG_FIN of SYN_STREAM, SYN_REPLY, HEADERS and data frames.
pub(super) const FIN: u8 = 1;
/// FLAG_UNIDIRECTIONAL of SYN_STREAM: the recipient sends nothing on it.
pub(super) const UNIDIRECTIONAL: u8 = 2;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub(super) const INITIAL_WINDOW_SIZE: u32 = 7;

const CONTROL: u32 = 1 << 31;
const VERSION: u16 = 3;
/// Stream ids, ids of last good streams and window deltas have 31 bits.
const BITS_31: u32 = 0x7fff_ffff;
const BITS_24: u32 = 0x00ff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset (RST_STREAM; SPDY/3 draft, 2.6.3). Never 0: the usual client ends the
/// connection on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// The peer broke the protocol on this stream.
    ProtocolError = 1,
    /// A frame for a stream that never was.
    InvalidStream = 2,
    /// Not taken, nothing done.
    RefusedStream = 3,
    /// No longer wanted.
    Cancel = 5,
    /// Our own failure.
    InternalError = 6,
    /// The windows were broken, or a reader held up everyone else.
    FlowControlError = 7,
    /// Data after the end.
    StreamAlreadyClosed = 9,
}

/// Why a connection ends (GOAWAY; SPDY/3 draft, 2.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum GoAway {
    Ok = 0,
    ProtocolError = 1,
}

/// One control frame. Header blocks are still compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    SynStream {
        stream: u32,
        flags: u8,
        block: Vec<u8>,
    },
    SynReply {
        stream: u32,
        flags: u8,
        block: Vec<u8>,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    /// (id, value); the flags, about values kept over connections, mean nothing here.
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        flags: u8,
        block: Vec<u8>,
    },
    /// Stream 0 is the session (3.1).
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
}

#[cfg(test)]
mod tests;
