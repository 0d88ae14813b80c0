//! Header blocks: name and value pairs, compressed by one zlib stream per direction of a session.
//!
//! Source: SPDY/3 draft, 2.6.10. The stream starts from a dictionary both sides know, and each
//! block ends with a sync flush. A block is bounded before it is inflated (by the frame) and while
//! it is (here), and the state of zlib by its window: 40 KiB to read, 200 KiB to write.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::collections::HashSet;
use std::fmt;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY, DICTIONARY_ID};
use super::error::Error;

/// The most bytes a block may have when inflated.
pub(super) const MAX_BLOCK: usize = 64 << 10;
/// The most pairs a block may have.
pub(super) const MAX_PAIRS: usize = 128;
/// What is made room for at each step of inflation.
const STEP: usize = 4 << 10;
/// 2 KiB: the dictionary fits, and what is ever written (replies without headers) needs no more.
const WINDOW_BITS: u8 = 11;

/// Names and values, as they came; a name with several values stands once for each.
pub(super) type Headers = Vec<(String, String)>;

/// A block that inflates and yet is none: the stream's error, not the session's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The client's header blocks.
pub(super) struct Inflater(Decompress);

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inflater")
    }
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Inflates one block. After an error the session can't be read on.
    pub(super) fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        loop {
            if out.len() > MAX_BLOCK {
                return Err(Error::HeadersTooLong);
            }
            out.reserve_exact(STEP);
            let (before, had) = (self.0.total_in(), out.len());
            let state = match self
                .0
                .decompress_vec(block, &mut out, FlushDecompress::Sync)
            {
                Ok(state) => state,
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| Error::Compression)?;
                    Status::Ok
                }
                Err(_) => return Err(Error::Compression),
            };
            let taken = usize::try_from(self.0.total_in().saturating_sub(before));
            block = taken
                .ok()
                .and_then(|taken| block.get(taken..))
                .ok_or(Error::Compression)?;
            match state {
                // Nothing in front of zlib and room behind it: it has no more to give.
                _ if block.is_empty() && out.len() < out.capacity() => return Ok(out),
                Status::StreamEnd => return Err(Error::Compression),
                Status::BufError if out.len() == had => return Err(Error::Compression),
                Status::Ok | Status::BufError => {}
            }
        }
    }
}

/// Reads an inflated block: a count, then as many lengths and strings in turn.
pub(super) fn parse(mut block: &[u8]) -> Result<Headers, Malformed> {
    let count = length(&mut block)?;
    if count > MAX_PAIRS {
        return Err(Malformed);
    }
    let mut names = HashSet::new();
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = string(&mut block)?;
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Malformed);
        }
        if !names.insert(name) {
            return Err(Malformed);
        }
        for value in string(&mut block)?.split('\0') {
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    block.is_empty().then_some(headers).ok_or(Malformed)
}

fn length(block: &mut &[u8]) -> Result<usize, Malformed> {
    let (number, rest) = block.split_first_chunk::<4>().ok_or(Malformed)?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*number)).map_err(|_| Malformed)
}

fn string<'a>(block: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let length = length(block)?;
    let (string, rest) = block.split_at_checked(length).ok_or(Malformed)?;
    *block = rest;
    std::str::from_utf8(string).map_err(|_| Malformed)
}

/// Our own header blocks. zlib's state is made with the first.
#[derive(Default)]
pub(super) struct Deflater(Option<Compress>);

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deflater")
    }
}

impl Deflater {
    /// One block, ready for a frame.
    pub(super) fn deflate(&mut self, headers: &[(&str, &str)]) -> Result<Vec<u8>, Error> {
        let mut zlib = match self.0.take() {
            Some(zlib) => zlib,
            None => first_state()?,
        };
        let plain = render(headers);
        let mut rest = plain.as_slice();
        let mut out = Vec::new();
        loop {
            out.reserve(STEP);
            let before = zlib.total_in();
            zlib.compress_vec(rest, &mut out, FlushCompress::Sync)
                .map_err(|_| Error::Compression)?;
            let taken = usize::try_from(zlib.total_in().saturating_sub(before));
            rest = taken
                .ok()
                .and_then(|taken| rest.get(taken..))
                .ok_or(Error::Compression)?;
            if rest.is_empty() && out.len() < out.capacity() {
                self.0 = Some(zlib);
                return Ok(out);
            }
        }
    }
}

fn first_state() -> Result<Compress, Error> {
    let mut zlib = Compress::new_with_window_bits(Compression::fast(), true, WINDOW_BITS);
    zlib.set_dictionary(&DICTIONARY)
        .map_err(|_| Error::Compression)?;
    Ok(zlib)
}

/// The plain form of a block.
fn render(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&length(headers.len()));
    for (name, value) in headers {
        for string in [name, value] {
            out.extend_from_slice(&length(string.len()));
            out.extend_from_slice(string.as_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests;
