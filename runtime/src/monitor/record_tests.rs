//! Tables of case O1 (lines without an end, exact lengths, odd bytes) and of losses.

use proptest::prelude::*;

use super::*;

/// All records of `pieces`, each pushed by itself, as (tag, content).
fn split(pieces: &[&[u8]]) -> Vec<(char, Vec<u8>)> {
    let mut splitter = Splitter::new(Stream::Stdout);
    let (mut stamp, mut out) = (Stamp::new(), Vec::new());
    for piece in pieces {
        let used = splitter.push(piece, &mut stamp, &mut out, usize::MAX);
        assert_eq!(used, piece.len());
    }
    splitter.finish(&mut stamp, &mut out);
    parse(&out)
}

fn parse(out: &[u8]) -> Vec<(char, Vec<u8>)> {
    let Some(out) = out.strip_suffix(b"\n") else {
        assert!(out.is_empty());
        return Vec::new();
    };
    out.split(|byte| *byte == b'\n')
        .map(|record| {
            assert_eq!(&record[STAMP..STAMP + 8], b" stdout ");
            assert_eq!(record[HEADER - 1], b' ');
            (char::from(record[HEADER - 2]), record[HEADER..].to_vec())
        })
        .collect()
}

#[test]
fn lines_become_records_as_case_o1_asks() {
    let full = vec![b'x'; MAX_CONTENT];
    let with_newline = [&full[..], b"\n"].concat();
    let with_crlf = [&full[..], b"\r\n"].concat();
    let long = vec![b'y'; 40_000];
    type Row<'a> = (&'a str, Vec<&'a [u8]>, Vec<(char, &'a [u8])>);
    let table: Vec<Row<'_>> = vec![
        ("nothing at all", vec![], vec![]),
        ("an unterminated line", vec![b"x"], vec![('F', b"x")]),
        ("a line", vec![b"x\n"], vec![('F', b"x")]),
        ("an empty line", vec![b"\n"], vec![('F', b"")]),
        (
            "carriage return and NUL and invalid UTF-8 stay",
            vec![b"a\r\n\0b\xff\n\r"],
            vec![('F', b"a\r"), ('F', b"\0b\xff"), ('F', b"\r")],
        ),
        (
            "exactly one record without its end",
            vec![&full],
            vec![('F', &full)],
        ),
        (
            "exactly one record with its end",
            vec![&with_newline],
            vec![('F', &full)],
        ),
        (
            "exactly one record, its end in the next piece",
            vec![&full, b"\n"],
            vec![('F', &full)],
        ),
        (
            "a CR beyond the cut",
            vec![&with_crlf],
            vec![('P', &full), ('F', b"\r")],
        ),
        (
            "40,000 bytes without an end",
            vec![&long],
            vec![
                ('P', &long[..MAX_CONTENT]),
                ('P', &long[..MAX_CONTENT]),
                ('F', &long[..40_000 - 2 * MAX_CONTENT]),
            ],
        ),
        (
            "a line in three pieces is one record",
            vec![b"a", b"b", b"c\nd"],
            vec![('F', b"abc"), ('F', b"d")],
        ),
    ];
    for (name, pieces, expected) in table {
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(tag, content)| (tag, content.to_vec()))
            .collect();
        assert_eq!(split(&pieces), expected, "{name}");
    }
}

#[test]
fn stamps_are_rfc3339_with_nine_digits() {
    let table = [
        ("the epoch", 0, 0, "1970-01-01T00:00:00.000000000Z"),
        (
            "a leap day",
            951_782_400,
            1,
            "2000-02-29T00:00:00.000000001Z",
        ),
        (
            "the day after",
            951_868_800,
            0,
            "2000-03-01T00:00:00.000000000Z",
        ),
        (
            "2100 has no leap day",
            4_107_542_400,
            0,
            "2100-03-01T00:00:00.000000000Z",
        ),
        (
            "the end of a year",
            1_798_761_599,
            999_999_999,
            "2026-12-31T23:59:59.999999999Z",
        ),
        (
            "beyond what can be said",
            u64::MAX,
            u32::MAX,
            "9999-12-31T23:59:59.999999999Z",
        ),
    ];
    for (name, second, nanos, expected) in table {
        let mut stamp = Stamp::new();
        stamp.set(second, nanos);
        assert_eq!(
            std::str::from_utf8(&stamp.text).unwrap(),
            expected,
            "{name}"
        );
    }
}

#[test]
fn records_read_together_have_distinct_rising_stamps() {
    let mut stamp = Stamp::new();
    stamp.set(59, 999_999_999);
    let mut out = Vec::new();
    Splitter::new(Stream::Stdout).push(b"a\nb\n", &mut stamp, &mut out, usize::MAX);
    let text = String::from_utf8(out).unwrap();
    let mut stamps = text.lines().map(|line| &line[..STAMP]);
    assert_eq!(stamps.next(), Some("1970-01-01T00:00:59.999999999Z"));
    assert_eq!(stamps.next(), Some("1970-01-01T00:01:00.000000000Z"));
}

#[test]
fn a_limit_bounds_what_short_lines_blow_up_to() {
    let input = vec![b'\n'; 10_000];
    let mut splitter = Splitter::new(Stream::Stderr);
    let (mut stamp, mut used, mut records) = (Stamp::new(), 0, 0);
    while used < input.len() {
        let mut out = Vec::new();
        used += splitter.push(&input[used..], &mut stamp, &mut out, 1000);
        assert!(out.len() <= 1000 + 2 * (HEADER + 1));
        records += out.split(|byte| *byte == b'\n').count() - 1;
    }
    assert_eq!(records, input.len());
}

#[test]
fn a_write_cut_short_says_what_is_there_and_what_is_lost() {
    let mut splitter = Splitter::new(Stream::Stdout);
    let (mut stamp, mut out) = (Stamp::new(), Vec::new());
    splitter.push(b"ab\ncdef\n", &mut stamp, &mut out, usize::MAX);
    let first = HEADER + 3;
    let table = [
        ("nothing written", 0, 0, None, 8),
        ("part of the first", 10, 10, None, 8),
        ("the first whole", first, 0, Some(false), 5),
        (
            "all but the last byte",
            out.len() - 1,
            HEADER + 4,
            Some(false),
            5,
        ),
        ("everything", out.len(), 0, Some(false), 0),
    ];
    for (name, written, torn, open, lost) in table {
        assert_eq!(landed(&out, written), Landed { torn, open, lost }, "{name}");
    }
}

#[test]
fn after_a_loss_an_open_record_is_closed_before_the_next() {
    let mut splitter = Splitter::new(Stream::Stdout);
    let (mut stamp, mut out) = (Stamp::new(), Vec::new());
    let long = vec![b'x'; MAX_CONTENT + 1];
    splitter.push(&long, &mut stamp, &mut out, usize::MAX);
    assert!(splitter.open());
    // The rest of that line is lost.
    let mut dropped = Vec::new();
    splitter.push(b"\nlost\n", &mut stamp, &mut dropped, usize::MAX);
    splitter.lost(landed(&dropped, 0).open.unwrap_or(true));
    splitter.push(b"next\n", &mut stamp, &mut out, usize::MAX);
    let tags: Vec<_> = parse(&out)
        .into_iter()
        .map(|(tag, content)| (tag, content.len()))
        .collect();
    assert_eq!(tags, [('P', MAX_CONTENT), ('F', 0), ('F', 4)]);
}

proptest! {
    #[test]
    fn joined_content_equals_what_was_written(
        lines in proptest::collection::vec((any::<u8>(), prop_oneof![0usize..40, 16_380usize..16_390, 30_000usize..33_000]), 0..8),
        terminated in any::<bool>(),
        size in 1usize..70_000,
    ) {
        let mut input = Vec::new();
        for (byte, length) in &lines {
            let byte = if *byte == b'\n' { b'n' } else { *byte };
            input.extend(std::iter::repeat_n(byte, *length));
            input.push(b'\n');
        }
        if !terminated {
            input.pop();
        }
        let pieces: Vec<_> = input.chunks(size).collect();
        let records = split(&pieces);
        let mut joined = Vec::new();
        for (tag, content) in &records {
            prop_assert!(content.len() <= MAX_CONTENT);
            joined.extend_from_slice(content);
            if *tag == 'F' {
                joined.push(b'\n');
            }
        }
        if let Some((tag, _)) = records.last() {
            prop_assert_eq!(*tag, 'F');
        }
        if input.last().is_some_and(|byte| *byte != b'\n') {
            joined.pop();
        }
        prop_assert_eq!(joined, input);
    }
}
