//! Terminal sizes as a client sends them: JSON objects `{"Width":w,"Height":h}`, one after the
//! other, as Go's encoder writes them (`k8s.io/client-go` `tools/remotecommand`).

#![warn(clippy::indexing_slicing)]

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use super::Reader;
use crate::container::stream::Size;

/// The most that is kept of an object that is not closed.
const MAX_OBJECT: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct Asked {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Sets each size that comes; of several at once only the last, so that a storm costs little.
/// Ends with the stream, or at what is no size.
pub(super) async fn follow(from: Option<&mut Reader>, size: Option<&Size>) {
    let (Some(from), Some(size)) = (from, size) else {
        return;
    };
    let mut sizes = Sizes::default();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        match sizes.last_of(buffer.get(..count).unwrap_or_default()) {
            Err(NotASize) => {
                tracing::debug!("the client sent a terminal size that is none");
                return;
            }
            Ok(None) => {}
            Ok(Some(asked)) => {
                if let Err(failure) = size.set(asked.width, asked.height).await {
                    tracing::debug!(%failure, "a terminal kept its size");
                }
            }
        }
    }
}

/// Splits the stream into objects.
#[derive(Debug, Default)]
struct Sizes {
    open: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
struct NotASize;

impl Sizes {
    /// The last whole size once `bytes` have come; one without extent is none.
    fn last_of(&mut self, bytes: &[u8]) -> Result<Option<Asked>, NotASize> {
        let mut last = None;
        // Neither name nor value can hold a brace, so each one closes an object.
        for part in bytes.split_inclusive(|byte| *byte == b'}') {
            if self.open.len().saturating_add(part.len()) > MAX_OBJECT {
                return Err(NotASize);
            }
            self.open.extend_from_slice(part);
            if part.ends_with(b"}") {
                let asked: Asked = serde_json::from_slice(&self.open).map_err(|_| NotASize)?;
                self.open.clear();
                if asked.width > 0 && asked.height > 0 {
                    last = Some(asked);
                }
            }
        }
        Ok(last)
    }
}

/// What must hold for any bytes.
#[cfg(any(test, feature = "_test-fuzz"))]
pub(in super::super) mod fuzz {
    use super::Sizes;

    /// However the bytes are cut, the last size is the same, and little is kept.
    pub(in super::super::super) fn sizes(bytes: &[u8]) {
        let mut whole = Sizes::default();
        let at_once = whole.last_of(bytes);
        let (mut cut, mut last) = (Sizes::default(), Ok(None));
        for byte in bytes {
            match cut.last_of(std::slice::from_ref(byte)) {
                Ok(None) => {}
                Ok(Some(size)) => last = Ok(Some(size)),
                Err(error) => {
                    last = Err(error);
                    break;
                }
            }
            assert!(cut.open.len() <= super::MAX_OBJECT);
        }
        assert_eq!(at_once, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_however_they_are_cut_and_the_last_one_counts() {
        let asked = |width, height| Ok(Some(Asked { width, height }));
        let endless = "{".repeat(300);
        for (case, parts, expected) in [
            ("one", &[r#"{"Width":80,"Height":24}"#][..], asked(80, 24)),
            (
                "with a line's end",
                &["{\"Width\":80,\"Height\":24}\n"],
                asked(80, 24),
            ),
            (
                "several",
                &[r#"{"Width":1,"Height":1}{"Width":2,"Height":2}"#],
                asked(2, 2),
            ),
            (
                "cut",
                &[r#"{"Wid"#, r#"th":80,"Height":24"#, "}"],
                asked(80, 24),
            ),
            ("none yet", &[r#"{"Width":80"#], Ok(None)),
            ("without extent", &[r#"{"Width":0,"Height":24}"#], Ok(None)),
            (
                "no numbers",
                &[r#"{"Width":"x","Height":24}"#],
                Err(NotASize),
            ),
            (
                "too wide",
                &[r#"{"Width":65536,"Height":24}"#],
                Err(NotASize),
            ),
            ("no end", &[&endless], Err(NotASize)),
            ("garbage", &["}"], Err(NotASize)),
        ] {
            let mut sizes = Sizes::default();
            let mut seen = Ok(None);
            for part in parts {
                seen = sizes.last_of(part.as_bytes());
            }
            assert_eq!(seen, expected, "{case}");
        }
    }
}
