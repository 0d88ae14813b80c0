//! Tables and properties of the frame codec: what we send comes back, what others send is bounded.

#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]

use proptest::prelude::*;

use super::*;
use crate::monitor::wire::{Event, Request};

/// Feeds `bytes` in pieces of the given sizes, as a socket would hand them over.
fn decode(bytes: &[u8], mut sizes: impl Iterator<Item = usize>) -> Result<Vec<(Header, Vec<u8>)>> {
    let mut decoder = Decoder::new();
    let (mut rest, mut frames) = (bytes, Vec::new());
    while !rest.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty());
        let count = sizes
            .next()
            .unwrap_or(1)
            .clamp(1, rest.len())
            .min(space.len());
        space[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        frames.extend(decoder.filled(count)?);
    }
    Ok(frames)
}

fn header(length: u32, version: u16, kind: u16, id: u32) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes
}

fn too_long() -> u32 {
    u32::try_from(MAX_FRAME).unwrap() + 1
}

#[test]
fn hostile_headers_are_refused_by_name() {
    let table: &[(&str, Vec<u8>, &str)] = &[
        (
            "a body one byte too long",
            header(too_long(), 1, 0, 1),
            "at most 4194304",
        ),
        (
            "the largest length there is",
            header(u32::MAX, 1, 0, 1),
            "frame of 4294967295 bytes",
        ),
        ("version zero", header(0, 0, 0, 1), "versions start at 1"),
        ("a kind nobody knows", header(0, 1, 3, 1), "unknown kind 3"),
    ];
    for (name, bytes, expected) in table {
        let error = decode(bytes, std::iter::repeat(HEADER)).expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}");
    }
}

#[test]
fn an_announced_length_allocates_nothing_before_its_bytes_come() {
    let mut decoder = Decoder::new();
    let bytes = header(too_long() - 1, 1, 0, 1);
    decoder.space().copy_from_slice(&bytes);
    assert!(decoder.filled(HEADER).unwrap().is_none());
    assert!(!decoder.idle());
    assert_eq!(decoder.space().len(), STEP);
}

#[test]
fn a_frame_may_be_empty_and_a_body_that_is_no_message_is_an_error() {
    let frames = decode(&header(0, 1, 1, 9), std::iter::empty()).unwrap();
    let (header, body) = frames.into_iter().next().unwrap();
    assert_eq!((header.kind, header.id), (Kind::Reply, 9));
    let frame = Frame {
        header,
        body,
        descriptors: Vec::new(),
    };
    assert_eq!(
        frame.parse::<Request>().unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn a_message_too_big_for_a_frame_is_refused_by_the_sender() {
    let message = "x".repeat(MAX_FRAME);
    let error = encode(Kind::Request, 1, &message).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
}

#[test]
fn a_raw_spec_inside_a_message_survives_byte_for_byte() {
    let spec = r#"{ "ociVersion":"1.2.0",  "x": [1, 2.50] }"#;
    let raw: Box<serde_json::value::RawValue> = serde_json::from_str(spec).unwrap();
    let bytes = encode(Kind::Request, 1, &raw).unwrap();
    let (header, body) = decode(&bytes, std::iter::repeat(7)).unwrap().remove(0);
    let frame = Frame {
        header,
        body,
        descriptors: Vec::new(),
    };
    let back: Box<serde_json::value::RawValue> = frame.parse().unwrap();
    assert_eq!(back.get(), spec);
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_whatever_the_pieces(
        ids in proptest::collection::vec(("[a-f0-9]{0,80}", any::<i32>(), any::<u32>()), 1..6),
        sizes in proptest::collection::vec(1usize..200, 1..40),
    ) {
        let mut bytes = Vec::new();
        for (id, exit_code, number) in &ids {
            let event = Event::ExecExited { id: id.clone(), exit_code: *exit_code, timed_out: false };
            bytes.extend(encode(Kind::Event, *number, &event).unwrap());
        }
        let frames = decode(&bytes, sizes.into_iter().cycle()).unwrap();
        prop_assert_eq!(frames.len(), ids.len());
        for ((header, body), (id, exit_code, number)) in frames.into_iter().zip(ids) {
            prop_assert_eq!(header, Header { version: VERSION, kind: Kind::Event, id: number });
            let frame = Frame { header, body, descriptors: Vec::new() };
            let event: Event = frame.parse().unwrap();
            prop_assert_eq!(event, Event::ExecExited { id, exit_code, timed_out: false });
        }
    }

    #[test]
    fn bytes_of_any_kind_never_panic_and_never_grow_past_the_bound(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        sizes in proptest::collection::vec(1usize..500, 1..20),
    ) {
        if let Ok(frames) = decode(&bytes, sizes.into_iter().cycle()) {
            for (header, body) in frames {
                prop_assert!(body.len() <= MAX_FRAME);
                let frame = Frame { header, body, descriptors: Vec::new() };
                // Any outcome but a panic is fine.
                let _parsed: Result<Request> = frame.parse();
            }
        }
    }

    #[test]
    fn text_that_is_nearly_a_request_never_panics(text in r#"[{}\[\]":,a-z_0-9 ]{0,200}"#) {
        let header = Header { version: 1, kind: Kind::Request, id: 1 };
        let frame = Frame { header, body: text.into_bytes(), descriptors: Vec::new() };
        let _parsed: Result<Request> = frame.parse();
    }
}
