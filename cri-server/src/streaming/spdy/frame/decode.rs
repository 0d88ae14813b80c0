//! Bytes to frames.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use super::{
    BITS_24, BITS_31, CONTROL, Control, FIN, GOAWAY, HEADERS, MAX_CONTROL, PING, RST_STREAM,
    SETTINGS, SYN_REPLY, SYN_STREAM, VERSION, WINDOW_UPDATE,
};
use crate::streaming::spdy::error::Error;

const HEADER: usize = 8;

/// What the decoder found.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Item<'a> {
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
pub(in super::super) struct Decoder {
    expect: Expect,
    gathered: Vec<u8>,
}

impl Decoder {
    pub(in super::super) fn new() -> Self {
        Self {
            expect: Expect::Header,
            gathered: Vec::new(),
        }
    }

    /// Takes bytes off `input` up to the end of the next item; `None`: all are taken and more are
    /// needed.
    pub(in super::super) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Item<'a>>, Error> {
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
