//! What must hold for any bytes: bodies of fuzz targets, run by libFuzzer and, over the corpus, by
//! the tests. They panic where it doesn't hold.

mod session;

pub use session::session;

use super::error::Error;
use super::frame::{self, Control, Decoder, Item};
use super::headers::{self, Deflater, Inflater, MAX_BLOCK, MAX_PAIRS};

/// Frames: the same items however the bytes are cut; what is read is written back as it was read.
pub fn frames(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    let whole = decode(data, data.len().max(1));
    let pieces = decode(data, usize::from(*cut).max(1));
    assert_eq!(whole, pieces, "cutting changes what is read");
    for item in whole.0 {
        if let Owned::Control(control) = item {
            let mut out = Vec::new();
            frame::encode(&control, &mut out);
            let (again, error) = decode(&out, out.len());
            assert_eq!(error, None);
            assert_eq!(again, [Owned::Control(control)]);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Owned {
    Control(Control),
    Data {
        stream: u32,
        bytes: Vec<u8>,
        fin: bool,
    },
}

fn decode(data: &[u8], cut: usize) -> (Vec<Owned>, Option<Error>) {
    let mut decoder = Decoder::new();
    let mut items: Vec<Owned> = Vec::new();
    // A data frame not ended yet takes the pieces that follow.
    let mut open = false;
    for mut piece in data.chunks(cut) {
        loop {
            match decoder.next(&mut piece) {
                Err(error) => return (items, Some(error)),
                Ok(None) => break,
                Ok(Some(Item::Control(control))) => {
                    open = false;
                    items.push(Owned::Control(control));
                }
                Ok(Some(Item::Data { stream, bytes, fin })) => {
                    match items.last_mut() {
                        Some(Owned::Data {
                            stream: last,
                            bytes: before,
                            fin: ended,
                        }) if open && *last == stream => {
                            before.extend_from_slice(bytes);
                            *ended = fin;
                        }
                        _ => items.push(Owned::Data {
                            stream,
                            bytes: bytes.to_vec(),
                            fin,
                        }),
                    }
                    open = !fin && !bytes.is_empty();
                }
            }
        }
    }
    (items, None)
}

/// Header blocks: inflating is bounded, parsing is too, and what is written is read again.
pub fn headers(data: &[u8]) {
    let mut inflater = Inflater::new();
    for block in data.chunks(64) {
        let Ok(plain) = inflater.inflate(block) else {
            break;
        };
        assert!(plain.len() <= MAX_BLOCK + (8 << 10));
        drop(headers::parse(&plain));
    }
    let Ok(parsed) = headers::parse(data) else {
        return;
    };
    let mut names: Vec<&str> = parsed.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    assert!(names.len() <= MAX_PAIRS);
    // Values of one name stand together again, as the wire has them.
    let mut joined: Vec<(&str, String)> = Vec::new();
    for (name, value) in &parsed {
        match joined.last_mut() {
            Some((last, values)) if last == name => {
                values.push('\0');
                values.push_str(value);
            }
            _ => joined.push((name, value.clone())),
        }
    }
    let pairs: Vec<(&str, &str)> = joined
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    if data.len() > MAX_BLOCK {
        return;
    }
    let block = Deflater::default().deflate(&pairs).expect("a block");
    let plain = Inflater::new().inflate(&block).expect("our own block");
    assert_eq!(plain, data, "a block is written as it was read");
}
