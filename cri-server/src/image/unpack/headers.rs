//! Checks on headers and extension records that the parser lets pass and tools read differently.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use tar_core::{HEADER_SIZE, Header, PaxExtensions};

use crate::failure::Failure;

pub(super) fn malformed(why: &str) -> Failure {
    Failure::precondition(format!("the archive is malformed: {why}"))
}

pub(super) fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|b| *b == 0)
}

/// GNU tar stops at a single zero block, others go on: refused.
pub(super) fn refuse_lone_zero_block(input: &[u8]) -> Result<(), Failure> {
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
pub(super) fn check_headers(input: &[u8], consumed: usize) -> Result<(), Failure> {
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
pub(super) fn check_global(data: &[u8]) -> Result<(), Failure> {
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
pub(super) type Record<'a> = (&'a [u8], &'a [u8]);

/// Extension records, refusing what the parser's own iteration would silently end at.
pub(super) fn records(data: &[u8]) -> Result<Vec<Record<'_>>, Failure> {
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
