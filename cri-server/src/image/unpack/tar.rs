//! Reads a tar stream as a strict sequence of entries.
//!
//! The parser is tar-core's; the strictness is ours, because readers that disagree about an archive
//! let one of them see what another doesn't (CVE-2025-62518, CVE-2026-33055; threat D4). Where tools
//! of the field differ, the entry is refused rather than read one way: malformed extension records,
//! global records that change entries, a lone zero block, header-only types with a size, numbers
//! beyond their range, unknown types. PAX records win over headers, GNU long names over the name
//! field. Everything ends at the two zero blocks, or cleanly at the end of the stream.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::io::{self, Read};

use tar_core::parse::{Limits as ParserLimits, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, HEADER_SIZE, Header, PaxExtensions, SparseEntry};

use super::limits::Limits;
use super::xattr::Xattr;
use crate::failure::{Doing as _, Failure};

/// Bytes read at once; headers beyond it make the buffer grow, to a bound.
const CHUNK: usize = 128 << 10;

/// One entry, its names as the archive spells them.
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with set-uid, set-gid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub xattrs: Vec<Xattr>,
}

/// A time stamp: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Regular(Content),
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// What a regular file holds: `regions` of data that follow in the stream, in a file of `size`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub size: u64,
    /// (offset, length), ascending, not overlapping. A plain file is one region.
    pub regions: Vec<(u64, u64)>,
}

/// A tar stream.
pub(crate) struct Archive<R> {
    input: R,
    parser: Parser,
    limits: Limits,
    buffer: Vec<u8>,
    /// The part of `buffer` that is filled and not consumed.
    start: usize,
    end: usize,
    entries: u64,
    /// Content of the current entry not read yet, and the padding after it.
    content: u64,
    padding: u64,
    finished: bool,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(input: R, limits: &Limits) -> Self {
        let parser = Parser::new(ParserLimits {
            max_metadata_size: limits.metadata,
            max_path_len: Some(limits.path),
            max_sparse_entries: limits.sparse_regions,
            ..ParserLimits::default()
        });
        Self {
            input,
            parser,
            limits: limits.clone(),
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            entries: 0,
            content: 0,
            padding: 0,
            finished: false,
        }
    }

    /// The next entry; what is left of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Failure> {
        self.skip_rest()?;
        while !self.finished {
            match self.step()? {
                Step::Entry(entry) => return Ok(Some(entry)),
                Step::Again => {}
            }
        }
        Ok(None)
    }

    /// Reads of the current entry's content; zero at its end.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = out
            .len()
            .min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        if self.start == self.end && self.fill()? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends within a file",
            ));
        }
        let available = self.filled();
        let count = want.min(available.len());
        let (from, to) = (available.get(..count), out.get_mut(..count));
        if let (Some(from), Some(to)) = (from, to) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        self.content = self.content.saturating_sub(count as u64);
        Ok(count)
    }

    /// Reads what follows the end mark (padding to a tape block), so that digests cover all.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        self.start = 0;
        self.end = 0;
        while self.fill()? > 0 {
            self.start = 0;
            self.end = 0;
        }
        Ok(())
    }

    fn filled(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or(&[])
    }

    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Reads more behind what is there; zero at the end of the stream.
    fn fill(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        let space = self.buffer.get_mut(self.end..).unwrap_or(&mut []);
        let count = loop {
            match self.input.read(space) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.end = self.end.saturating_add(count);
        Ok(count)
    }

    fn skip_rest(&mut self) -> Result<(), Failure> {
        let mut rest = self.content.saturating_add(self.padding);
        self.content = 0;
        self.padding = 0;
        while rest > 0 {
            if self.start == self.end && self.fill().doing("read the archive")? == 0 {
                return Err(malformed("it ends within a file"));
            }
            let count = usize::try_from(rest)
                .unwrap_or(usize::MAX)
                .min(self.filled().len());
            self.consume(count);
            rest = rest.saturating_sub(count as u64);
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Step, Failure> {
        let input = self.buffer.get(self.start..self.end).unwrap_or(&[]);
        refuse_lone_zero_block(input)?;
        let event = self
            .parser
            .parse(input)
            .map_err(|e| malformed(&e.to_string()))?;
        let (consumed, entry) = match event {
            ParseEvent::NeedData { min_bytes } => {
                self.need(min_bytes)?;
                return Ok(Step::Again);
            }
            ParseEvent::End { consumed } => {
                self.consume(consumed);
                self.finished = true;
                return Ok(Step::Again);
            }
            ParseEvent::GlobalExtensions { consumed, pax_data } => {
                check_global(pax_data)?;
                self.consume(consumed);
                return Ok(Step::Again);
            }
            ParseEvent::Entry { consumed, entry } => {
                check_headers(input, consumed)?;
                let whole = vec![(0, entry.size)];
                let content = Content {
                    size: entry.size,
                    regions: if entry.size == 0 { Vec::new() } else { whole },
                };
                let size = entry.size;
                (consumed, convert(entry, content, size, &self.limits)?)
            }
            ParseEvent::SparseEntry {
                consumed,
                entry,
                sparse_map,
                real_size,
            } => {
                check_headers(input, consumed)?;
                let content = sparse_content(&entry, &sparse_map, real_size)?;
                let size = entry.size;
                (consumed, convert(entry, content, size, &self.limits)?)
            }
        };
        self.entries = self.entries.saturating_add(1);
        if self.entries > self.limits.entries {
            return Err(malformed(&format!(
                "it has more than {} entries",
                self.limits.entries
            )));
        }
        self.consume(consumed);
        let (entry, size) = entry;
        self.content = size;
        let block = HEADER_SIZE as u64;
        self.padding = size.wrapping_neg() & block.saturating_sub(1);
        Ok(Step::Entry(entry))
    }

    /// Provides at least `bytes` for the parser, or settles that the stream ended cleanly.
    fn need(&mut self, bytes: usize) -> Result<(), Failure> {
        let most = usize::try_from(self.limits.metadata)
            .unwrap_or(usize::MAX)
            .saturating_mul(2)
            .saturating_add(CHUNK);
        if bytes > most {
            return Err(malformed("the headers of one entry are too large"));
        }
        if bytes > self.buffer.len() {
            self.buffer.resize(bytes.next_multiple_of(CHUNK), 0);
        }
        while self.end.saturating_sub(self.start) < bytes {
            if self.fill().doing("read the archive")? > 0 {
                continue;
            }
            // Some writers leave out the end mark, or half of it.
            let rest = self.filled();
            if rest.is_empty() || (rest.len() == HEADER_SIZE && is_zero(rest)) {
                self.finished = true;
                return Ok(());
            }
            return Err(malformed("it ends within a header"));
        }
        Ok(())
    }
}

enum Step {
    Entry(Entry),
    Again,
}

fn malformed(why: &str) -> Failure {
    Failure::precondition(format!("the archive is malformed: {why}"))
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|b| *b == 0)
}

/// GNU tar stops at a single zero block, others go on: refused.
fn refuse_lone_zero_block(input: &[u8]) -> Result<(), Failure> {
    let (Some(first), Some(second)) = (
        input.get(..HEADER_SIZE),
        input.get(HEADER_SIZE..HEADER_SIZE.saturating_mul(2)),
    ) else {
        return Ok(());
    };
    if is_zero(first) && !is_zero(second) {
        return Err(malformed("a zero block stands between entries"));
    }
    Ok(())
}

/// Walks the extension headers in front of an entry, which the parser has accepted, for what it
/// lets pass: zero blocks in between, and numbers in base 256 that don't fit.
fn check_headers(input: &[u8], consumed: usize) -> Result<(), Failure> {
    let mut rest = input.get(..consumed).unwrap_or(input);
    loop {
        let Some(block) = rest.first_chunk::<HEADER_SIZE>() else {
            return Ok(());
        };
        if is_zero(block) {
            return Err(malformed("a zero block stands between headers"));
        }
        let header = Header::from_bytes(block);
        // The size field: twelve bytes, of which the last eight are read.
        if block.get(124).is_some_and(|b| b & 0x80 != 0)
            && (block.get(124) != Some(&0x80) || !block.get(125..128).is_some_and(is_zero))
        {
            return Err(malformed("a size is negative or out of range"));
        }
        let kind = header.entry_type();
        if !kind.is_gnu_longname() && !kind.is_gnu_longlink() && !kind.is_pax_local_extensions() {
            return Ok(());
        }
        let size = header.entry_size().map_err(|e| malformed(&e.to_string()))?;
        let skip = usize::try_from(size)
            .ok()
            .and_then(|s| s.checked_next_multiple_of(HEADER_SIZE))
            .and_then(|s| s.checked_add(HEADER_SIZE))
            .ok_or_else(|| malformed("a header's size is out of range"))?;
        rest = rest.get(skip..).unwrap_or(&[]);
    }
}

/// Global records would have to apply to all later entries; tools differ in whether they do.
fn check_global(data: &[u8]) -> Result<(), Failure> {
    for (key, _) in records(data)? {
        let harmless = matches!(key, b"comment" | b"charset" | b"hdrcharset")
            || !(key.starts_with(b"GNU.sparse.")
                || key.starts_with(b"SCHILY.")
                || key.iter().all(u8::is_ascii_lowercase));
        if !harmless {
            return Err(malformed(&format!(
                "a global record sets {:?}",
                String::from_utf8_lossy(key)
            )));
        }
    }
    Ok(())
}

/// Key and value of an extension record.
type Record<'a> = (&'a [u8], &'a [u8]);

/// Extension records, refusing what the parser's own iteration would silently end at.
fn records(data: &[u8]) -> Result<Vec<Record<'_>>, Failure> {
    let mut found = Vec::new();
    let mut length = 0_usize;
    for record in PaxExtensions::new(data) {
        let record = record.map_err(|e| malformed(&e.to_string()))?;
        let (key, value) = (record.key_bytes(), record.value_bytes());
        if key.is_empty() {
            return Err(malformed("an extension record has no key"));
        }
        // Blank, equals sign and newline, then the digits of the length itself.
        let body = key.len().saturating_add(value.len()).saturating_add(3);
        let mut whole = body;
        while whole != body.saturating_add(digits(whole)) {
            whole = body.saturating_add(digits(whole));
        }
        length = length.saturating_add(whole);
        found.push((key, value));
    }
    // Unequal as well where a length has leading zeros: nobody writes that.
    if length != data.len() {
        return Err(malformed("an extension record's length is wrong"));
    }
    Ok(found)
}

fn digits(number: usize) -> usize {
    number
        .checked_ilog10()
        .and_then(|d| usize::try_from(d).ok())
        .unwrap_or(0)
        .saturating_add(1)
}

fn sparse_content(
    entry: &ParsedEntry<'_>,
    map: &[SparseEntry],
    real_size: u64,
) -> Result<Content, Failure> {
    let wrong = |why: &str| malformed(&format!("sparse file {:?}: {why}", entry.path_lossy()));
    if let Some(pax) = entry.pax {
        // The parser subtracts the map from the header's size and then lets this one win.
        if records(pax)?.iter().any(|(key, _)| *key == b"size") {
            return Err(wrong("its size is given twice"));
        }
    }
    let mut regions = Vec::with_capacity(map.len());
    let (mut position, mut stored) = (0_u64, 0_u64);
    for region in map {
        let end = region.offset.checked_add(region.length);
        match end {
            Some(end) if region.offset >= position && end <= real_size => position = end,
            _ => return Err(wrong("its regions overlap or leave the file")),
        }
        stored = stored.saturating_add(region.length);
        // The map ends with an empty region at the file's end.
        if region.length > 0 {
            regions.push((region.offset, region.length));
        }
    }
    if stored != entry.size {
        return Err(wrong("its regions and its size disagree"));
    }
    Ok(Content {
        size: real_size,
        regions,
    })
}

/// Checks and converts an entry; with it come the bytes of content in the stream.
fn convert(
    entry: ParsedEntry<'_>,
    content: Content,
    size: u64,
    limits: &Limits,
) -> Result<(Entry, u64), Failure> {
    let shown = entry.path_lossy().into_owned();
    let wrong = |why: String| malformed(&format!("entry {shown:?}: {why}"));
    let pax = match entry.pax {
        Some(data) => records(data)?,
        None => Vec::new(),
    };
    let type_byte = entry.header.as_bytes().get(156).copied().unwrap_or(0);
    let slash = entry.path.ends_with(b"/");
    let kind = match entry.entry_type {
        // Archives from before 1988 mark a directory by its name only.
        EntryType::Regular if slash && type_byte == 0 && size == 0 => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse if slash => {
            return Err(wrong("a file's name ends with a slash".into()));
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
            if content.size > limits.file {
                return Err(wrong(format!("it is larger than {} bytes", limits.file)));
            }
            Kind::Regular(content)
        }
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(target(&entry).map_err(wrong)?),
        EntryType::Link => Kind::HardLink(target(&entry).map_err(wrong)?),
        EntryType::Char | EntryType::Block => {
            let (Some(major), Some(minor)) = (entry.dev_major, entry.dev_minor) else {
                return Err(wrong("a device without numbers".into()));
            };
            if major > 0xfff || minor > 0xf_ffff {
                return Err(wrong(format!("device {major}:{minor} is out of range")));
            }
            if entry.entry_type == EntryType::Char {
                Kind::Character(major, minor)
            } else {
                Kind::Block(major, minor)
            }
        }
        EntryType::Fifo => Kind::Fifo,
        other => {
            return Err(wrong(format!(
                "its type {:?} is unknown",
                char::from(other.to_byte())
            )));
        }
    };
    if !matches!(kind, Kind::Regular(_)) && size != 0 {
        return Err(wrong(format!(
            "its type has no content, its size is {size}"
        )));
    }
    if entry.path.contains(&0) {
        return Err(wrong("its name holds NUL".into()));
    }
    let owner = |id: u64, what: &str| match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(wrong(format!("{what} {id} is out of range"))),
    };
    if entry.xattrs.len() > limits.xattrs {
        return Err(wrong(format!(
            "it has more than {} attributes",
            limits.xattrs
        )));
    }
    if let Some((name, _)) = entry.xattrs.iter().find(|(_, v)| v.len() > limits.xattr) {
        return Err(wrong(format!(
            "attribute {:?} is longer than {} bytes",
            String::from_utf8_lossy(name),
            limits.xattr
        )));
    }
    let converted = Entry {
        mode: entry.mode & 0o7777,
        uid: owner(entry.uid, "owner")?,
        gid: owner(entry.gid, "group")?,
        mtime: modified(&entry, &pax).map_err(wrong)?,
        kind,
        path: entry.path.into_owned(),
        xattrs: entry
            .xattrs
            .into_iter()
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect(),
    };
    Ok((converted, size))
}

fn target(entry: &ParsedEntry<'_>) -> Result<Vec<u8>, String> {
    match &entry.link_target {
        None => Err("a link without a target".into()),
        Some(target) if target.contains(&0) => Err("its link target holds NUL".into()),
        Some(target) => Ok(target.to_vec()),
    }
}

/// The time of change: PAX with its fraction, else the header, whose base-256 form may be negative.
fn modified(entry: &ParsedEntry<'_>, pax: &[Record<'_>]) -> Result<Time, String> {
    let record = pax.iter().rev().find(|(key, _)| *key == b"mtime");
    let field = entry.header.as_bytes().get(136..148).unwrap_or(&[]);
    if record.is_none() && field.first() == Some(&0xff) {
        let low: Option<[u8; 8]> = field.last_chunk().copied();
        return Ok(Time {
            seconds: low.map_or(0, i64::from_be_bytes),
            nanoseconds: 0,
        });
    }
    let seconds =
        i64::try_from(entry.mtime).map_err(|_| format!("time {} is out of range", entry.mtime))?;
    let mut nanoseconds = 0_u32;
    let fraction = record.and_then(|(_, value)| value.splitn(2, |b| *b == b'.').nth(1));
    let mut scale = 100_000_000_u32;
    for byte in fraction.unwrap_or(&[]) {
        if !byte.is_ascii_digit() {
            return Err("its time is no number".into());
        }
        let digit = u32::from(byte.saturating_sub(b'0'));
        nanoseconds = nanoseconds.saturating_add(digit.saturating_mul(scale));
        scale = scale.checked_div(10).unwrap_or(0);
    }
    Ok(Time {
        seconds,
        nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Entry>, Failure> {
        let mut archive = Archive::new(bytes, &Limits::default());
        let mut entries = Vec::new();
        while let Some(entry) = archive.next()? {
            entries.push(entry);
        }
        archive.drain().doing("drain")?;
        Ok(entries)
    }

    #[test]
    fn entries_follow_each_other_with_names_of_every_kind() {
        let long = format!("d/{}", "n".repeat(200));
        let archive = [
            entry(b'5', "d/").mode(0o1755).bytes(b""),
            entry(b'0', "d/f").owner(1, 2).bytes(b"hello"),
            pax(&[("path", long.as_bytes()), ("mtime", b"12.25")]),
            entry(b'0', "cut").bytes(b"long"),
            gnu_long(b'L', b"d/gnu\0"),
            entry(b'2', "cut").link("t").bytes(b""),
            entry(b'3', "null").device(1, 3).bytes(b""),
            end(),
        ]
        .concat();
        let entries = read(&archive).unwrap();
        let names: Vec<_> = entries
            .iter()
            .map(|e| String::from_utf8_lossy(&e.path).into_owned())
            .collect();
        assert_eq!(names, ["d/", "d/f", &long, "d/gnu", "null"]);
        assert_eq!(entries[0].mode, 0o1755);
        assert_eq!((entries[1].uid, entries[1].gid), (1, 2));
        let time = Time {
            seconds: 12,
            nanoseconds: 250_000_000,
        };
        assert_eq!(entries[2].mtime, time);
        assert!(matches!(&entries[3].kind, Kind::Symlink(t) if t == b"t"));
        assert!(matches!(entries[4].kind, Kind::Character(1, 3)));
    }

    #[test]
    fn an_archive_may_end_with_its_last_entry() {
        let one = entry(b'0', "f").bytes(b"x");
        assert_eq!(read(&one).unwrap().len(), 1);
        assert_eq!(
            read(&[one.clone(), vec![0; 512]].concat()).unwrap().len(),
            1
        );
        assert_eq!(read(b"").unwrap().len(), 0);
        let hidden = [one.clone(), end(), one.clone()].concat();
        assert_eq!(
            read(&hidden).unwrap().len(),
            1,
            "nothing after the end mark"
        );
    }

    #[test]
    fn d4_what_tools_read_differently_is_refused() {
        let file = entry(b'0', "f").bytes(b"x");
        let sized = |kind, size| {
            let mut header = entry(kind, "e").link("t").device(1, 3).bytes(b"");
            set_size(&mut header, size);
            header
        };
        let mut negative = entry(b'0', "f").bytes(b"");
        negative[124..136].copy_from_slice(&[0xff; 12]);
        set_checksum(&mut negative);
        let mut wide = entry(b'0', "f").bytes(b"");
        wide[124..136].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        set_checksum(&mut wide);
        let mut sum = file.clone();
        sum[0] = b'g';
        for (archive, why) in [
            ([vec![0; 512], file.clone()].concat(), "zero block"),
            (
                [pax(&[("path", b"p")]), vec![0; 512], file.clone()].concat(),
                "zero block",
            ),
            (raw_pax(b"12 path=abc\nzzz", &file), "record's length"),
            (raw_pax(b"012 path=ab\n", &file), "record's length"),
            (raw_pax(b"99 path=ab\n", &file), "alformed"),
            (raw_pax(b"10 pathab\n", &file), "alformed"),
            ([pax(&[("size", b"x")]), file.clone()].concat(), "size"),
            ([pax(&[("uid", b"-1")]), file.clone()].concat(), "uid"),
            (
                [pax(&[("uid", b"4294967295")]), file.clone()].concat(),
                "owner 4294967295",
            ),
            (
                [pax(&[("gid", b"4294967296")]), file.clone()].concat(),
                "group 4294967296",
            ),
            ([pax(&[("path", b"a\0b")]), file.clone()].concat(), "NUL"),
            ([pax(&[("path", b"a")]), end()].concat(), "metadata"),
            (global(&[("path", b"x")]), "global record"),
            (global(&[("SCHILY.xattr.user.x", b"y")]), "global record"),
            (sized(b'1', 5), "no content"),
            (sized(b'2', 5), "no content"),
            (sized(b'3', 5), "no content"),
            (sized(b'5', 5), "no content"),
            (sized(b'6', 5), "no content"),
            (entry(b'0', "f/").bytes(b""), "ends with a slash"),
            (entry(b'V', "label").bytes(b""), "type 'V'"),
            (entry(b'2', "l").bytes(b""), "without a target"),
            (negative, "invalid entry size"),
            (wide, "negative or out of range"),
            (sum, "checksum"),
            (file[..600].to_vec(), "ends within a file"),
            (file[..300].to_vec(), "ends within a header"),
            (vec![b'x'; 1024], "header error"),
        ] {
            let failure = read(&archive).expect_err(why);
            assert!(failure.message().contains(why), "{why}: {failure}");
        }
    }

    #[test]
    fn global_comments_are_let_through() {
        let archive = [
            global(&[("comment", b"0123")]),
            entry(b'0', "f").bytes(b"x"),
            end(),
        ]
        .concat();
        assert_eq!(read(&archive).unwrap().len(), 1);
    }

    #[test]
    fn d5_sizes_out_of_all_bounds_are_refused() {
        let file = entry(b'0', "f").bytes(b"x");
        let mut huge = entry(b'x', "x").bytes(b"");
        set_size(&mut huge, (8 << 30) - 1);
        let many: String = (0..20_000).map(|i| format!("{},1,", i * 2)).collect();
        let sparse = pax(&[
            ("GNU.sparse.map", many.trim_end_matches(',').as_bytes()),
            ("GNU.sparse.realsize", b"40000"),
        ]);
        let name = "n".repeat(4097);
        let value = vec![b'v'; (64 << 10) + 1];
        for (archive, why) in [
            (huge, "exceeds limit"),
            ([sparse, file.clone()].concat(), "sparse"),
            (
                [pax(&[("path", name.as_bytes())]), file.clone()].concat(),
                "path exceeds",
            ),
            (
                [pax(&[("SCHILY.xattr.user.x", &value)]), file.clone()].concat(),
                "longer than",
            ),
        ] {
            let failure = read(&archive).expect_err(why);
            assert!(failure.message().contains(why), "{why}: {failure}");
        }
    }

    #[test]
    fn sparse_files_come_as_regions_and_their_maps_must_fit() {
        let sparse = |map: &[u8], size: &[u8], data: &[u8]| {
            [
                pax(&[("GNU.sparse.map", map), ("GNU.sparse.realsize", size)]),
                entry(b'0', "f").bytes(data),
                end(),
            ]
            .concat()
        };
        let entries = read(&sparse(b"0,2,10,3,20,0", b"20", b"abcde")).unwrap();
        let Kind::Regular(content) = &entries[0].kind else {
            panic!("{entries:?}")
        };
        let expected = Content {
            size: 20,
            regions: vec![(0, 2), (10, 3)],
        };
        assert_eq!(content, &expected);
        for (map, size, why) in [
            (&b"0,2,1,3"[..], &b"20"[..], "overlap"),
            (b"10,2,0,3", b"20", "overlap"),
            (b"0,2,18,3", b"20", "leave the file"),
            (b"0,2,18446744073709551615,3", b"20", "leave the file"),
            (b"0,2", b"20", "disagree"),
        ] {
            let failure = read(&sparse(map, size, b"abcde")).expect_err(why);
            assert!(failure.message().contains(why), "{why}: {failure}");
        }
    }
}
