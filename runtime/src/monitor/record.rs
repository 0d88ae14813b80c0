//! CRI log records, pure: a stream of bytes → `<RFC3339Nano> <stdout|stderr> <P|F> <bytes>\n`.
//!
//! P says that the line goes on in the stream's next record, F that it ends. A line longer than
//! [`MAX_CONTENT`] is cut into P…P F. An unterminated line is held back until it is that long, its
//! end comes, or the stream ends; so each stream's last record is F, and an F without content
//! stands only for an empty line or to end an open P (the kubelet's log format, KEP "CRI: Log
//! Management for Container Stdout/Stderr Streams"; 16 KiB is containerd's cut).

/// The longest content of one record.
pub(super) const MAX_CONTENT: usize = 16 << 10;

/// What stands before the content: stamp, stream and tag, each followed by a space.
pub(super) const HEADER: usize = STAMP + 1 + 6 + 1 + 1 + 1;

/// `2006-01-02T15:04:05.000000000Z`: always nine fractional digits, always UTC.
const STAMP: usize = 30;

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// The time of a record, its text kept and changed where it differs from the last one.
#[derive(Debug)]
pub(super) struct Stamp {
    second: u64,
    nanos: u32,
    text: [u8; STAMP],
}

/// 9999-12-31T23:59:59Z, the last second the format can say.
const LAST_SECOND: u64 = 253_402_300_799;

impl Stamp {
    pub(super) fn new() -> Self {
        Self {
            second: 0,
            nanos: 0,
            text: *b"1970-01-01T00:00:00.000000000Z",
        }
    }

    /// Sets the time, as seconds and nanoseconds since the epoch.
    pub(super) fn set(&mut self, second: u64, nanos: u32) {
        let second = second.min(LAST_SECOND);
        if second != self.second {
            self.second = second;
            let (year, month, day) = date(second / 86_400);
            let of_day = second % 86_400;
            digits(&mut self.text[0..4], year);
            digits(&mut self.text[5..7], month);
            digits(&mut self.text[8..10], day);
            digits(&mut self.text[11..13], of_day / 3600);
            digits(&mut self.text[14..16], of_day / 60 % 60);
            digits(&mut self.text[17..19], of_day % 60);
        }
        self.nanos = nanos.min(999_999_999);
        digits(&mut self.text[20..29], u64::from(self.nanos));
    }

    /// One nanosecond later: records read together keep their order and stay distinct for
    /// collectors that take equal stamps for repetitions.
    fn step(&mut self) {
        match self.nanos {
            999_999_999.. => self.set(self.second + 1, 0),
            nanos => self.set(self.second, nanos + 1),
        }
    }
}

/// Writes `value` in decimal over all of `place`.
fn digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Days since 1970-01-01 → year, month, day, by eras of 400 years that begin on 1 March, so that
/// the leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153; // 0 is March
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Cuts one stream into records.
#[derive(Debug)]
pub(super) struct Splitter {
    stream: Stream,
    /// The beginning of a line whose end hasn't come; at most [`MAX_CONTENT`].
    held: Vec<u8>,
    /// The stream's last record in the log is a P.
    open: bool,
    /// Records were lost: what comes next doesn't continue the log's last record.
    gap: bool,
}

impl Splitter {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            held: Vec::new(),
            open: false,
            gap: false,
        }
    }

    /// True if the stream's last record is a P.
    pub(super) fn open(&self) -> bool {
        self.open
    }

    /// Appends the records of `input` to `out` and returns how many bytes of `input` were used:
    /// all, unless `out` reached `limit`, after which it grows by no more than two records.
    pub(super) fn push(
        &mut self,
        input: &[u8],
        stamp: &mut Stamp,
        out: &mut Vec<u8>,
        limit: usize,
    ) -> usize {
        let mut used = 0;
        while out.len() < limit {
            let rest = input.get(used..).unwrap_or_default();
            let room = MAX_CONTENT - self.held.len();
            let window = rest.get(..room).unwrap_or(rest);
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                self.emit(true, &window[..end], stamp, out);
                used += end + 1;
            } else if let Some(next) = rest.get(room) {
                // A full record; the byte after it says whether the line ends here.
                let ends = *next == b'\n';
                self.emit(ends, window, stamp, out);
                used += room + usize::from(ends);
            } else {
                self.held.extend_from_slice(window);
                return input.len();
            }
        }
        used
    }

    /// The stream ended: what is held becomes the last record.
    pub(super) fn finish(&mut self, stamp: &mut Stamp, out: &mut Vec<u8>) {
        if self.held.is_empty() {
            // The empty F that ends an open P needs no other before it.
            self.gap = false;
        }
        if !self.held.is_empty() || self.open {
            self.emit(true, &[], stamp, out);
        }
    }

    /// Records didn't reach the log; `open` says whether the last that did is a P.
    pub(super) fn lost(&mut self, open: bool) {
        self.open = open;
        self.gap = true;
    }

    /// One record of what is held and `content`.
    fn emit(&mut self, ends: bool, content: &[u8], stamp: &mut Stamp, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.gap) && self.open {
            self.header(true, stamp, out);
            out.push(b'\n');
        }
        self.header(ends, stamp, out);
        // Freed, not cleared: a quiet stream holds no memory.
        out.extend_from_slice(&std::mem::take(&mut self.held));
        out.extend_from_slice(content);
        out.push(b'\n');
        self.open = !ends;
    }

    fn header(&self, ends: bool, stamp: &mut Stamp, out: &mut Vec<u8>) {
        out.extend_from_slice(&stamp.text);
        stamp.step();
        out.extend_from_slice(match (self.stream, ends) {
            (Stream::Stdout, true) => b" stdout F ",
            (Stream::Stdout, false) => b" stdout P ",
            (Stream::Stderr, true) => b" stderr F ",
            (Stream::Stderr, false) => b" stderr P ",
        });
    }
}

/// What of a buffer of one stream's records is in the log after only `written` bytes of it were.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Landed {
    /// Bytes of the record that was cut, which should leave the log again.
    pub(super) torn: usize,
    /// Whether the last whole record is a P; `None` if there is none.
    pub(super) open: Option<bool>,
    /// Bytes of output in the records that aren't in the log.
    pub(super) lost: u64,
}

/// See [`Landed`]. A record's content holds no newline, so each line of the buffer is a record.
pub(super) fn landed(records: &[u8], written: usize) -> Landed {
    let (there, _) = records.split_at(written.min(records.len()));
    let boundary = there
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    let (whole, missing) = records.split_at(boundary);
    let tag = |record: &[u8]| record.get(HEADER - 2).copied();
    let open = whole
        .strip_suffix(b"\n")
        .and_then(|whole| whole.rsplit(|byte| *byte == b'\n').next())
        .map(|record| tag(record) == Some(b'P'));
    let lost = missing
        .split(|byte| *byte == b'\n')
        .filter(|record| record.len() >= HEADER)
        .map(|record| {
            let newline = usize::from(tag(record) == Some(b'F'));
            u64::try_from(record.len() - HEADER + newline).unwrap_or(u64::MAX)
        })
        .sum();
    Landed {
        torn: there.len() - boundary,
        open,
        lost,
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
