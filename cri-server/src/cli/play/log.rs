//! Container logs on the terminal: CRI records back into lines, each with its container's name.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::super::terminal::{safe, strip};

/// A record without an end is passed on in pieces of this size: a line has no bound of its own.
const LONGEST: usize = 64 << 10;

/// Colours that can be read on dark and on light ground (ECMA-48 SGR).
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Where lines go, and how they are marked.
#[derive(Debug)]
pub(in crate::cli) struct Screen {
    terminal: bool,
    width: usize,
}

impl Screen {
    /// Standard output, for containers with these names.
    pub(in crate::cli) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            terminal: io::stdout().is_terminal() && !plain,
            width: names.map(|name| name.chars().count()).max().unwrap_or(0),
        }
    }

    fn prefix(&self, name: &str, index: usize) -> String {
        let name = format!("{:width$} |", safe(name), width = self.width);
        match COLOURS.get(index % COLOURS.len()) {
            Some(colour) if self.terminal => format!("\u{1b}[{colour}m{name}\u{1b}[0m "),
            _ => format!("{name} "),
        }
    }
}

/// Follows one container's log through its attempts.
#[derive(Debug)]
pub(in crate::cli) struct LogReader {
    path: PathBuf,
    file: Option<File>,
    prefix: String,
    strip: bool,
    records: Records,
}

impl LogReader {
    /// Reads the log at `path`, which may not be there yet.
    pub(in crate::cli) fn new(screen: &Screen, name: &str, index: usize, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            prefix: screen.prefix(name, index),
            strip: io::stdout().is_terminal(),
            records: Records::default(),
        }
    }

    /// Goes on with the log of the next attempt.
    pub(in crate::cli) fn switch(&mut self, path: &Path) -> io::Result<()> {
        if self.path != path {
            self.drain()?;
            self.path = path.to_owned();
            self.file = None;
            self.records = Records::default();
        }
        Ok(())
    }

    /// Prints what is there and not printed yet.
    pub(in crate::cli) fn drain(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let mut out = io::stdout().lock();
        let mut piece = vec![0; 32 << 10];
        loop {
            let count = file.read(&mut piece)?;
            let Some(read) = piece.get(..count).filter(|read| !read.is_empty()) else {
                return out.flush();
            };
            for line in self.records.push(read) {
                out.write_all(self.prefix.as_bytes())?;
                if self.strip {
                    out.write_all(&strip(&line))?;
                } else {
                    out.write_all(&line)?;
                }
                out.write_all(b"\n")?;
            }
        }
    }
}

/// CRI records, in pieces as they are read, back into lines: `TIME STREAM P|F TEXT`.
#[derive(Debug, Default)]
struct Records {
    pending: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Records {
    /// The lines that end in this piece.
    fn push(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(part);
            if part.ends_with(b"\n") || self.pending.len() > LONGEST {
                let record = std::mem::take(&mut self.pending);
                lines.extend(self.record(record.strip_suffix(b"\n").unwrap_or(&record)));
            }
        }
        lines
    }

    fn record(&mut self, record: &[u8]) -> Option<Vec<u8>> {
        let mut fields = record.splitn(4, |byte| *byte == b' ');
        let (_, stream, tag, text) = (fields.next()?, fields.next(), fields.next(), fields.next());
        let line = match stream {
            Some(b"stdout") => &mut self.stdout,
            Some(b"stderr") => &mut self.stderr,
            // Not a record: shown as it is rather than hidden.
            _ => return Some(record.to_owned()),
        };
        line.extend_from_slice(text.unwrap_or_default());
        let ends = tag.is_some_and(|tag| tag.starts_with(b"F")) || line.len() > LONGEST;
        ends.then(|| std::mem::take(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str]) -> Vec<String> {
        let mut records = Records::default();
        let all = pieces
            .iter()
            .flat_map(|piece| records.push(piece.as_bytes()));
        all.map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn records_become_lines_again_however_they_are_cut() {
        for (case, pieces, wanted) in [
            (
                "one record",
                vec!["t stdout F hello world\n"],
                vec!["hello world"],
            ),
            ("an empty line", vec!["t stdout F \n"], vec![""]),
            (
                "parts are joined",
                vec!["t stdout P hel\nt stdout F lo\n"],
                vec!["hello"],
            ),
            (
                "streams are kept apart",
                vec!["t stdout P a\nt stderr F x\nt stdout F b\n"],
                vec!["x", "ab"],
            ),
            (
                "a record read in pieces",
                vec!["t std", "out F he", "llo\n"],
                vec!["hello"],
            ),
            (
                "a record without its end waits",
                vec!["t stdout F hello"],
                vec![],
            ),
            (
                "what is no record is shown",
                vec!["nonsense\n"],
                vec!["nonsense"],
            ),
            (
                "tags may carry more",
                vec!["t stdout F:x hello\n"],
                vec!["hello"],
            ),
        ] {
            assert_eq!(lines(&pieces), wanted, "{case}");
        }
    }

    #[test]
    fn a_line_that_never_ends_is_shown_in_bounded_pieces() {
        let part = format!("t stdout P {}\n", "x".repeat(16 << 10));
        let pieces = vec![part.as_str(); 20];
        let shown = lines(&pieces);
        assert!(shown.len() >= 3);
        assert!(shown.iter().all(|line| line.len() <= LONGEST + (16 << 10)));
    }

    #[test]
    fn a_prefix_is_padded_and_safe() {
        let screen = Screen {
            terminal: false,
            width: 4,
        };
        assert_eq!(screen.prefix("a", 0), "a    | ");
        let screen = Screen {
            terminal: true,
            width: 1,
        };
        assert_eq!(
            screen.prefix("a\u{1b}", 0),
            "\u{1b}[36ma\\u{1b} |\u{1b}[0m "
        );
    }
}
