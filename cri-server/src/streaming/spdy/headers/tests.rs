use proptest::prelude::*;

use super::*;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/spdy-headers");

fn block(pairs: &[(&str, &str)]) -> Vec<u8> {
    render(pairs)
}

fn owned(pairs: &[(&str, &str)]) -> Headers {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(pair).collect()
}

#[test]
fn the_usual_clients_first_block_is_read() {
    let bytes = std::fs::read(format!("{CORPUS}/exec-zlib")).unwrap();
    assert_eq!(
        bytes[..6],
        [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2],
        "zlib, and which dictionary"
    );
    let plain = Inflater::new().inflate(&bytes).unwrap();
    assert_eq!(parse(&plain), Ok(owned(&[("streamtype", "error")])));
}

#[test]
fn later_blocks_build_on_earlier_ones() {
    let (mut deflater, mut inflater) = (Deflater::default(), Inflater::new());
    let headers = [("streamtype", "data"), ("port", "8080"), ("requestid", "1")];
    let mut lengths = Vec::new();
    for _ in 0..3 {
        let bytes = deflater.deflate(&headers).unwrap();
        let plain = inflater.inflate(&bytes).unwrap();
        assert_eq!(parse(&plain), Ok(owned(&headers)));
        lengths.push(bytes.len());
    }
    assert!(lengths[1] < lengths[0] / 2, "{lengths:?}");
}

#[test]
fn a_name_with_several_values_stands_once_for_each() {
    let plain = block(&[("multi", "a\0b"), ("empty", "")]);
    let headers = owned(&[("multi", "a"), ("multi", "b"), ("empty", "")]);
    assert_eq!(parse(&plain), Ok(headers));
}

#[test]
fn blocks_that_are_none_are_refused() {
    let with_count = |count: u32, rest: &[u8]| [&count.to_be_bytes(), rest].concat();
    let one = &block(&[("a", "b")])[4..];
    let cases = [
        ("nothing", Vec::new()),
        ("a count without pairs", with_count(1, b"")),
        ("a count of 2^32 - 1", with_count(u32::MAX, one)),
        (
            "more pairs than the bound",
            with_count(129, &one.repeat(129)),
        ),
        (
            "bytes after the last pair",
            with_count(1, &[one, b"x"].concat()),
        ),
        (
            "a length beyond the end",
            with_count(1, b"\xff\xff\xff\xffa"),
        ),
        ("a name twice", with_count(2, &one.repeat(2))),
        ("an empty name", block(&[("", "b")])),
        ("a name in upper case", block(&[("streamType", "b")])),
        ("a value that isn't UTF-8", {
            let mut bytes = block(&[("a", "b")]);
            *bytes.last_mut().unwrap() = 0xff;
            bytes
        }),
    ];
    for (name, plain) in cases {
        assert_eq!(parse(&plain), Err(Malformed), "{name}");
    }
}

#[test]
fn a_block_that_inflates_without_end_is_refused_at_the_bound() {
    let bomb = std::fs::read(format!("{CORPUS}/bomb")).unwrap();
    assert!(bomb.len() < 2000, "a megabyte of zeros");
    assert_eq!(Inflater::new().inflate(&bomb), Err(Error::HeadersTooLong));
}

#[test]
fn a_block_of_the_greatest_size_is_read() {
    let value = "x".repeat(MAX_BLOCK - 4 - 4 - 1 - 4);
    let headers = [("a", value.as_str())];
    let bytes = Deflater::default().deflate(&headers).unwrap();
    let plain = Inflater::new().inflate(&bytes).unwrap();
    assert_eq!(
        (plain.len(), parse(&plain)),
        (MAX_BLOCK, Ok(owned(&headers)))
    );
}

#[test]
fn what_zlib_cannot_read_is_refused() {
    let good = Deflater::default().deflate(&[("a", "b")]).unwrap();
    let mut other_dictionary = good.clone();
    other_dictionary[5] ^= 1;
    let mut ended = Compress::new(Compression::fast(), true);
    ended.set_dictionary(&DICTIONARY).unwrap();
    let mut finished = Vec::with_capacity(100);
    ended
        .compress_vec(&block(&[]), &mut finished, FlushCompress::Finish)
        .unwrap();
    finished.extend_from_slice(b"more");
    let cases = [
        ("no zlib", b"GET / HTTP/1.1".to_vec()),
        ("another dictionary", other_dictionary),
        ("a stream that ends and goes on", finished),
    ];
    for (name, bytes) in cases {
        let result = Inflater::new().inflate(&bytes);
        assert_eq!(result, Err(Error::Compression), "{name}");
    }
}

proptest! {
    #[test]
    fn any_headers_come_back(
        pairs in prop::collection::hash_map("[a-z0-9-]{1,20}", "[^A]{0,100}", 0..30),
    ) {
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        crate::streaming::spdy::fuzz::headers(&render(&pairs));
    }
}
