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
use tar_core::{EntryType, HEADER_SIZE, SparseEntry};

use super::headers::{
    Record, check_global, check_headers, is_zero, malformed, records, refuse_lone_zero_block,
};
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
mod tests;
