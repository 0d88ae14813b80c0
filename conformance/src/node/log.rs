//! A container's log file, held to the CRI log format: `TIME STREAM TAG CONTENT`, a line a record.

use anyhow::{Context, Result, ensure};

/// A container's log, taken apart.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// `(stream, tag, content)` in the file's order.
    pub records: Vec<(String, String, Vec<u8>)>,
}

impl Log {
    /// Reads and parses a log; a line that breaks the format is an error.
    pub fn read(path: &str) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("read {path}"))?;
        let mut log = Self::default();
        let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let (last, lines) = lines.split_last().context("no line")?;
        ensure!(last.is_empty(), "{path} ends without newline");
        for line in lines {
            let mut parts = line.splitn(4, |byte| *byte == b' ');
            let mut field = || {
                let part = parts.next().with_context(|| {
                    format!("{path}: short record {:?}", String::from_utf8_lossy(line))
                })?;
                Ok::<_, anyhow::Error>(String::from_utf8_lossy(part).into_owned())
            };
            let (time, stream, tag) = (field()?, field()?, field()?);
            ensure!(well_formed(&time), "{path}: time {time:?}");
            ensure!(
                stream == "stdout" || stream == "stderr",
                "{path}: stream {stream:?}"
            );
            ensure!(tag == "P" || tag == "F", "{path}: tag {tag:?}");
            let content = parts
                .next()
                .with_context(|| format!("{path}: no content"))?;
            log.records.push((stream, tag, content.to_vec()));
        }
        Ok(log)
    }

    /// A stream's bytes, joined: a newline after each full record.
    pub fn joined(&self, stream: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (_, tag, content) in self.records.iter().filter(|record| record.0 == stream) {
            bytes.extend_from_slice(content);
            if tag == "F" {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    /// stdout as text.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.joined("stdout")).into_owned()
    }
}

/// RFC 3339 with nine fractional digits, as the CRI log format asks.
fn well_formed(time: &str) -> bool {
    let fraction = time.split_once('.').map(|(_, rest)| rest);
    fraction.is_some_and(|rest| {
        rest.len() > 9 && rest.bytes().take(9).all(|byte| byte.is_ascii_digit())
    })
}
