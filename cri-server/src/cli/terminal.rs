//! What may reach a terminal: names and messages come from tenants, images and registries, and
//! an escape sequence among them can retitle a window, answer queries or hide lines (threat F6,
//! CVE-2017-5226 and its class).

use std::fmt::Write as _;
use std::io::{self, Write as _};

/// Prints a text that is already safe, and ends its last line.
pub(super) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Whether the failure is only that nobody reads standard output any more (`bulkhead … | head`).
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The text with every control character replaced by its escape, so that it stays in its line.
pub(super) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Beyond C0 and C1: marks that reorder text (CVE-2021-42574) and line separators.
        let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || reorders {
            write!(out, "{}", c.escape_default()).unwrap_or_default();
        } else {
            out.push(c);
        }
    }
    out
}

/// The line without escape sequences and control characters but tab.
pub(super) fn strip(line: &[u8]) -> Vec<u8> {
    let mut stripper = Stripper::default();
    let mut out = Vec::with_capacity(line.len());
    for &byte in line {
        stripper.step(byte, &mut out);
    }
    out
}

/// Reads a line byte by byte. Each line has its own, so that a sequence that is never closed
/// swallows no other.
#[derive(Debug, Default)]
struct Stripper {
    state: State,
}

/// Where in a sequence the stream is (ECMA-48, clauses 5.3 and 5.4).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence, until its final byte.
    Control,
    /// In a string (OSC, DCS, …), until BEL or ST.
    String,
    /// After ESC in a string: a backslash ends it.
    StringEscape,
    /// After the first byte of a two-byte UTF-8 C1 control.
    HighControl,
}

impl Stripper {
    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.state = match (self.state, byte) {
            (State::Text | State::Escape | State::Control, 0x1b) => State::Escape,
            // U+0080 to U+009F are encoded as C2 80 to C2 9F; other characters after C2 are text.
            (State::Text, 0xc2) => State::HighControl,
            (State::HighControl, 0x9b) => State::Control,
            (State::HighControl, 0x90 | 0x98 | 0x9d..=0x9f) => State::String,
            (State::HighControl, 0x80..=0x9f) => State::Text,
            (State::HighControl, _) => {
                out.push(0xc2);
                self.state = State::Text;
                return self.step(byte, out);
            }
            (State::Text, b'\t') => {
                out.push(byte);
                State::Text
            }
            (State::Text, 0x00..=0x1f | 0x7f) => State::Text,
            (State::Text, _) => {
                out.push(byte);
                State::Text
            }
            (State::Escape, b'[') => State::Control,
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            (State::Escape, 0x20..=0x2f) => State::Escape,
            (State::Escape, _) => State::Text,
            (State::Control, 0x40..=0x7e) => State::Text,
            (State::Control, _) => State::Control,
            (State::String, 0x07) => State::Text,
            (State::String | State::StringEscape, 0x1b) => State::StringEscape,
            (State::StringEscape, b'\\') => State::Text,
            (State::String | State::StringEscape, _) => State::String,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_drive_the_terminal_or_leave_its_line() {
        for (given, shown) in [
            ("web-1", "web-1"),
            ("größe", "größe"),
            ("a\nb\r", "a\\nb\\r"),
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("a\u{202e}b", "a\\u{202e}b"),
        ] {
            assert_eq!(safe(given), shown);
        }
    }

    #[test]
    fn log_text_loses_sequences_and_keeps_its_words() {
        for (case, given, kept) in [
            ("plain text stays", "hello\tworld", "hello\tworld"),
            ("colours go", "\u{1b}[1;31mred\u{1b}[0m", "red"),
            ("a title goes, ended by BEL", "a\u{1b}]0;t\u{7}b", "ab"),
            ("a title goes, ended by ST", "a\u{1b}]0;t\u{1b}\\b", "ab"),
            ("a device control string goes", "a\u{1b}Pq#0\u{1b}\\b", "ab"),
            ("a C1 control sequence goes", "a\u{9b}2Jb", "ab"),
            ("letters that share its first byte stay", "£5 §2", "£5 §2"),
            ("a charset choice goes", "a\u{1b}(Bb", "ab"),
            ("a query goes", "a\u{1b}[6nb", "ab"),
            ("bells and returns go", "a\u{7}\rb", "ab"),
            (
                "a sequence that is never closed takes its line",
                "a\u{1b}]0;b",
                "a",
            ),
            ("other scripts stay", "日本語", "日本語"),
        ] {
            let left = strip(given.as_bytes());
            assert_eq!(String::from_utf8_lossy(&left), kept, "{case}");
        }
    }
}
