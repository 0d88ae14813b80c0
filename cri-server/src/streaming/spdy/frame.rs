//! Frames: bytes to frames and back. Pure; knows no streams, no header blocks' content.
//!
//! Layouts are those of the SPDY/3 draft, section 2. A control frame is gathered whole, so its
//! length is bounded; a data frame may have 16 MiB and is passed on in the pieces in which it
//! comes, so nothing of it is kept here.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use super::error::Error;

/// The longest control frame taken. The draft asks for 8 KiB at least; the headers of this field
/// take some hundred bytes.
pub(super) const MAX_CONTROL: usize = 16 << 10;

/// FLAG_FIN of SYN_STREAM, SYN_REPLY, HEADERS and data frames.
pub(super) const FIN: u8 = 1;
/// FLAG_UNIDIRECTIONAL of SYN_STREAM: the recipient sends nothing on it.
pub(super) const UNIDIRECTIONAL: u8 = 2;
/// SETTINGS_INITIAL_WINDOW_SIZE.
pub(super) const INITIAL_WINDOW_SIZE: u32 = 7;

const HEADER: usize = 8;
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

/// What the decoder found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    Control(Control),
    /// A piece of a data frame; `fin` stands on the last piece only.
    Data {
        stream: u32,
        bytes: &'a [u8],
        fin: bool,
    },
}

#[derive(Debug)]
enum Expect {
    Header,
    Control { kind: u16, flags: u8, length: usize },
    Skip { left: usize },
    Data { stream: u32, fin: bool, left: usize },
}

/// Cuts a stream of bytes into frames, however the bytes come.
#[derive(Debug)]
pub(super) struct Decoder {
    expect: Expect,
    gathered: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            expect: Expect::Header,
            gathered: Vec::new(),
        }
    }

    /// Takes bytes off `input` up to the end of the next item; `None`: all are taken and more are
    /// needed.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, Error> {
        loop {
            match self.expect {
                Expect::Header => {
                    if !self.gather(input, HEADER) {
                        return Ok(None);
                    }
                    self.expect = expectation(&self.gathered)?;
                    self.gathered.clear();
                    if let Expect::Data {
                        stream,
                        fin,
                        left: 0,
                    } = self.expect
                    {
                        self.expect = Expect::Header;
                        return Ok(Some(Item::Data {
                            stream,
                            bytes: &[],
                            fin,
                        }));
                    }
                }
                Expect::Control {
                    kind,
                    flags,
                    length,
                } => {
                    if !self.gather(input, length) {
                        return Ok(None);
                    }
                    self.expect = Expect::Header;
                    let control = parse(kind, flags, &self.gathered)?;
                    self.gathered.clear();
                    return Ok(Some(Item::Control(control)));
                }
                Expect::Skip { left } => {
                    let left = left.saturating_sub(take(input, left).len());
                    if left > 0 {
                        self.expect = Expect::Skip { left };
                        return Ok(None);
                    }
                    self.expect = Expect::Header;
                }
                Expect::Data { stream, fin, left } => {
                    let bytes = take(input, left);
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    let left = left.saturating_sub(bytes.len());
                    self.expect = match left {
                        0 => Expect::Header,
                        left => Expect::Data { stream, fin, left },
                    };
                    let fin = fin && left == 0;
                    return Ok(Some(Item::Data { stream, bytes, fin }));
                }
            }
        }
    }

    /// Whether `length` bytes are gathered, after taking from `input` what it has of them.
    fn gather(&mut self, input: &mut &[u8], length: usize) -> bool {
        let missing = length.saturating_sub(self.gathered.len());
        self.gathered.extend_from_slice(take(input, missing));
        self.gathered.len() == length
    }
}

/// Splits off the first `limit` bytes, or all there are.
fn take<'a>(input: &mut &'a [u8], limit: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at_checked(limit).unwrap_or((*input, &[]));
    *input = rest;
    taken
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    let (first, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_be_bytes(*first))
}

/// What follows a frame's first eight bytes.
fn expectation(mut header: &[u8]) -> Result<Expect, Error> {
    let (first, second) = (number(&mut header), number(&mut header));
    let (Some(first), Some(second)) = (first, second) else {
        return Ok(Expect::Header);
    };
    let [flags, ..] = second.to_be_bytes();
    let left = usize::try_from(second & BITS_24).unwrap_or(usize::MAX);
    if first & CONTROL == 0 {
        return Ok(Expect::Data {
            stream: first,
            fin: flags & FIN != 0,
            left,
        });
    }
    let [version_high, version_low, kind_high, kind_low] = first.to_be_bytes();
    let version = u16::from_be_bytes([version_high & 0x7f, version_low]);
    let kind = u16::from_be_bytes([kind_high, kind_low]);
    if version != VERSION {
        return Err(Error::Version(version));
    }
    match kind {
        SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE if left > MAX_CONTROL => {
            Err(Error::TooLong { kind, length: left })
        }
        SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE => Ok(Expect::Control {
            kind,
            flags,
            length: left,
        }),
        // "If an endpoint receives a control frame of a type it does not recognize, it MUST
        // ignore the frame" (2.2.1).
        _ => Ok(Expect::Skip { left }),
    }
}

fn parse(kind: u16, flags: u8, payload: &[u8]) -> Result<Control, Error> {
    layout(kind, flags, payload).ok_or(Error::Layout {
        kind,
        length: payload.len(),
    })
}

fn layout(kind: u16, flags: u8, mut payload: &[u8]) -> Option<Control> {
    let bytes = &mut payload;
    let control = match kind {
        SYN_STREAM => {
            let stream = number(bytes)? & BITS_31;
            // The stream it belongs to, its priority and its credential: not used.
            number(bytes)?;
            let block = bytes.get(2..)?.to_vec();
            *bytes = &[];
            Control::SynStream {
                stream,
                flags,
                block,
            }
        }
        SYN_REPLY | HEADERS => {
            let stream = number(bytes)? & BITS_31;
            let block = std::mem::take(bytes).to_vec();
            if kind == SYN_REPLY {
                Control::SynReply {
                    stream,
                    flags,
                    block,
                }
            } else {
                Control::Headers {
                    stream,
                    flags,
                    block,
                }
            }
        }
        RST_STREAM => Control::RstStream {
            stream: number(bytes)? & BITS_31,
            status: number(bytes)?,
        },
        SETTINGS => Control::Settings(settings(bytes)?),
        PING => Control::Ping(number(bytes)?),
        GOAWAY => Control::GoAway {
            last: number(bytes)? & BITS_31,
            status: number(bytes)?,
        },
        WINDOW_UPDATE => Control::WindowUpdate {
            stream: number(bytes)? & BITS_31,
            delta: number(bytes)? & BITS_31,
        },
        _ => return None,
    };
    bytes.is_empty().then_some(control)
}

fn settings(bytes: &mut &[u8]) -> Option<Vec<(u32, u32)>> {
    let count = usize::try_from(number(bytes)?).ok()?;
    // The count is checked against the bytes there are before anything is allocated for it.
    if bytes.len() != count.checked_mul(8)? {
        return None;
    }
    let mut settings = Vec::with_capacity(count);
    while !bytes.is_empty() {
        settings.push((number(bytes)? & BITS_24, number(bytes)?));
    }
    Some(settings)
}

/// Appends a control frame.
pub(super) fn encode(control: &Control, out: &mut Vec<u8>) {
    match control {
        Control::SynStream {
            stream,
            flags,
            block,
        } => {
            header(out, SYN_STREAM, *flags, block.len().saturating_add(10));
            numbers(out, &[*stream, 0]);
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(block);
        }
        Control::SynReply {
            stream,
            flags,
            block,
        } => headers(out, SYN_REPLY, *flags, *stream, block),
        Control::RstStream { stream, status } => fixed(out, RST_STREAM, &[*stream, *status]),
        Control::Settings(settings) => {
            let count = u32::try_from(settings.len()).unwrap_or(u32::MAX);
            header(
                out,
                SETTINGS,
                0,
                settings.len().saturating_mul(8).saturating_add(4),
            );
            numbers(out, &[count]);
            for (id, value) in settings {
                numbers(out, &[*id, *value]);
            }
        }
        Control::Ping(id) => fixed(out, PING, &[*id]),
        Control::GoAway { last, status } => fixed(out, GOAWAY, &[*last, *status]),
        Control::Headers {
            stream,
            flags,
            block,
        } => headers(out, HEADERS, *flags, *stream, block),
        Control::WindowUpdate { stream, delta } => fixed(out, WINDOW_UPDATE, &[*stream, *delta]),
    }
}

/// Appends a data frame; `bytes` has at most 2²⁴ − 1.
pub(super) fn encode_data(stream: u32, fin: bool, bytes: &[u8], out: &mut Vec<u8>) {
    let flags = if fin { FIN } else { 0 };
    numbers(
        out,
        &[stream & BITS_31, flags_and_length(flags, bytes.len())],
    );
    out.extend_from_slice(bytes);
}

fn headers(out: &mut Vec<u8>, kind: u16, flags: u8, stream: u32, block: &[u8]) {
    header(out, kind, flags, block.len().saturating_add(4));
    numbers(out, &[stream]);
    out.extend_from_slice(block);
}

fn fixed(out: &mut Vec<u8>, kind: u16, payload: &[u32]) {
    header(out, kind, 0, payload.len().saturating_mul(4));
    numbers(out, payload);
}

fn header(out: &mut Vec<u8>, kind: u16, flags: u8, length: usize) {
    let first = CONTROL | u32::from(VERSION) << 16 | u32::from(kind);
    numbers(out, &[first, flags_and_length(flags, length)]);
}

fn flags_and_length(flags: u8, length: usize) -> u32 {
    debug_assert!(u32::try_from(length).is_ok_and(|length| length <= BITS_24));
    let length = u32::try_from(length).unwrap_or(BITS_24) & BITS_24;
    u32::from(flags) << 24 | length
}

fn numbers(out: &mut Vec<u8>, numbers: &[u32]) {
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
}
