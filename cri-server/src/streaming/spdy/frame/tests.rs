use proptest::prelude::*;

use super::*;
use crate::streaming::spdy::error::Error;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn controls(bytes: &[u8]) -> Result<Vec<Control>, Error> {
    let mut decoder = Decoder::new();
    let (mut rest, mut controls) = (bytes, Vec::new());
    while let Some(item) = decoder.next(&mut rest)? {
        match item {
            Item::Control(control) => controls.push(control),
            Item::Data { .. } => panic!("data"),
        }
    }
    Ok(controls)
}

#[test]
fn control_frames_have_the_drafts_layout() {
    let block = vec![0xaa, 0xbb];
    let cases = [
        (
            "a new stream, with FIN",
            "80030001 0100000c 00000005 00000000 0000 aabb",
            Control::SynStream {
                stream: 5,
                flags: FIN,
                block: block.clone(),
            },
        ),
        (
            "a reply",
            "80030002 00000006 00000005 aabb",
            Control::SynReply {
                stream: 5,
                flags: 0,
                block: block.clone(),
            },
        ),
        (
            "a reset",
            "80030003 00000008 00000005 00000003",
            Control::RstStream {
                stream: 5,
                status: Status::RefusedStream as u32,
            },
        ),
        (
            "settings",
            "80030004 00000014 00000002 00000007 00010000 00000004 00000064",
            Control::Settings(vec![(INITIAL_WINDOW_SIZE, 0x10000), (4, 100)]),
        ),
        ("a ping", "80030006 00000004 00000001", Control::Ping(1)),
        (
            "going away",
            "80030007 00000008 00000009 00000001",
            Control::GoAway {
                last: 9,
                status: GoAway::ProtocolError as u32,
            },
        ),
        (
            "more headers",
            "80030008 01000006 00000005 aabb",
            Control::Headers {
                stream: 5,
                flags: FIN,
                block,
            },
        ),
        (
            "a window",
            "80030009 00000008 00000000 7fffffff",
            Control::WindowUpdate {
                stream: 0,
                delta: 0x7fff_ffff,
            },
        ),
    ];
    for (name, text, control) in cases {
        let mut out = Vec::new();
        encode(&control, &mut out);
        assert_eq!(out, hex(text), "{name}");
        assert_eq!(controls(&out), Ok(vec![control]), "{name}");
    }
}

#[test]
fn reserved_bits_flags_and_priorities_are_ignored() {
    let bytes = hex("80030001 0000000a 80000005 80000001 e007");
    let control = Control::SynStream {
        stream: 5,
        flags: 0,
        block: Vec::new(),
    };
    assert_eq!(controls(&bytes), Ok(vec![control]));
    let bytes = hex("80030004 0000000c 00000001 03000007 00000001");
    assert_eq!(controls(&bytes), Ok(vec![Control::Settings(vec![(7, 1)])]));
}

#[test]
fn unknown_control_frames_are_skipped() {
    let mut bytes = hex("80030005 00000003 010203 8003ffff 00000000 8003000a 00005000");
    bytes.extend_from_slice(&[0; 0x5000]);
    bytes.extend(hex("80030006 00000004 00000001"));
    assert_eq!(controls(&bytes), Ok(vec![Control::Ping(1)]));
}

#[test]
fn lies_are_refused_before_anything_is_kept_for_them() {
    let layout = |kind, length| Error::Layout { kind, length };
    let cases = [
        ("80020001 00000000", Error::Version(2)),
        ("ffff0001 00000000", Error::Version(0x7fff)),
        (
            "80030001 00ffffff",
            Error::TooLong {
                kind: 1,
                length: 0xff_ffff,
            },
        ),
        (
            "80030008 00004001",
            Error::TooLong {
                kind: 8,
                length: 0x4001,
            },
        ),
        ("80030001 00000009 00000001 00000000 00", layout(1, 9)),
        ("80030002 00000003 000000", layout(2, 3)),
        ("80030003 00000004 00000001", layout(3, 4)),
        (
            "80030003 0000000c 00000001 00000001 00000001",
            layout(3, 12),
        ),
        ("80030004 00000004 ffffffff", layout(4, 4)),
        (
            "80030004 0000000c 00000002 00000007 00000001",
            layout(4, 12),
        ),
        ("80030006 00000000", layout(6, 0)),
        ("80030007 00000004 00000000", layout(7, 4)),
        ("80030009 00000004 00000000", layout(9, 4)),
    ];
    for (text, error) in cases {
        assert_eq!(controls(&hex(text)), Err(error), "{text}");
    }
}

#[test]
fn data_is_passed_on_as_it_comes_and_fin_with_its_last_byte() {
    let mut decoder = Decoder::new();
    let mut header: &[u8] = &hex("00000003 01000005");
    assert_eq!(decoder.next(&mut header), Ok(None));
    for (mut bytes, fin) in [(&b"he"[..], false), (&b"ll"[..], false), (&b"o"[..], true)] {
        let item = Item::Data {
            stream: 3,
            bytes,
            fin,
        };
        assert_eq!(decoder.next(&mut bytes), Ok(Some(item)));
        assert_eq!(decoder.next(&mut bytes), Ok(None));
    }
    let mut out = Vec::new();
    encode_data(3, true, b"", &mut out);
    let item = Item::Data {
        stream: 3,
        bytes: b"",
        fin: true,
    };
    assert_eq!(decoder.next(&mut out.as_slice()), Ok(Some(item)));
}

proptest! {
    #[test]
    fn frames_survive_however_they_are_cut(
        frames in prop::collection::vec(frame(), 0..12),
        cut in 1_usize..40,
    ) {
        let mut bytes = vec![u8::try_from(cut).unwrap()];
        for (control, data) in frames {
            encode(&control, &mut bytes);
            encode_data(1, data.len() % 2 == 0, &data, &mut bytes);
        }
        crate::streaming::spdy::fuzz::frames(&bytes);
    }
}

fn frame() -> impl Strategy<Value = (Control, Vec<u8>)> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..100);
    let id = || 0..=BITS_31;
    let control = prop_oneof![
        (id(), any::<u8>(), bytes()).prop_map(|(stream, flags, block)| Control::SynStream {
            stream,
            flags,
            block
        }),
        (id(), any::<u8>(), bytes()).prop_map(|(stream, flags, block)| Control::SynReply {
            stream,
            flags,
            block
        }),
        (id(), any::<u32>()).prop_map(|(stream, status)| Control::RstStream { stream, status }),
        prop::collection::vec((0..=BITS_24, any::<u32>()), 0..10).prop_map(Control::Settings),
        any::<u32>().prop_map(Control::Ping),
        (id(), any::<u32>()).prop_map(|(last, status)| Control::GoAway { last, status }),
        (id(), id()).prop_map(|(stream, delta)| Control::WindowUpdate { stream, delta }),
    ];
    (control, bytes())
}
