//! Frames to bytes.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use super::{
    BITS_24, BITS_31, CONTROL, Control, FIN, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
    SYN_REPLY, SYN_STREAM, VERSION, WINDOW_UPDATE,
};

/// Appends a control frame.
pub(in super::super) fn encode(control: &Control, out: &mut Vec<u8>) {
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
pub(in super::super) fn encode_data(stream: u32, fin: bool, bytes: &[u8], out: &mut Vec<u8>) {
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
