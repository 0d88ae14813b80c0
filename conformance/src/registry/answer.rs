//! An answer of the registry, well-formed or not.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::images::Blob;

/// What a request gets. The `Content-Length` is the body's unless another one is set or
/// [`Answer::chunked`] leaves it out; a declared length beyond the body cuts the connection there.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Bytes,
    pub(super) chunked: bool,
    pub(super) length: Option<usize>,
}

impl Answer {
    /// An answer without body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// 200 with a body.
    pub fn body(bytes: impl Into<Bytes>) -> Self {
        Self {
            status: 200,
            body: bytes.into(),
            ..Self::default()
        }
    }

    /// 200 with content and the headers that belong to it.
    pub fn blob(blob: &Blob) -> Self {
        Self::body(blob.bytes.clone())
            .header("content-type", &blob.media_type)
            .header("docker-content-digest", &blob.digest)
    }

    /// 401 with a challenge in `WWW-Authenticate`; a newline separates several header lines.
    pub fn unauthorized(challenge: &str) -> Self {
        Self::status(401).header("www-authenticate", challenge)
    }

    /// 200 with JSON.
    pub fn json(value: &serde_json::Value) -> Self {
        Self::body(value.to_string()).header("content-type", "application/json")
    }

    /// Sets a header; the name in lower case.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Drops a header.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// Sends the body in chunks, without a length.
    #[must_use]
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// Declares another length than the body has.
    #[must_use]
    pub fn length(mut self, length: usize) -> Self {
        self.length = Some(length);
        self
    }
}
