//! What ends a connection: a peer that breaks the protocol so that its bytes can't be followed.

use super::frame::{GoAway, MAX_CONTROL};
use super::headers::MAX_BLOCK;

/// A violation that ends the connection; the peer is told by GOAWAY.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Framing.
    #[error("a control frame of SPDY version {0}, not 3")]
    Version(u16),
    /// Framing.
    #[error("a control frame of type {kind} with {length} bytes, more than {MAX_CONTROL}")]
    TooLong {
        /// The frame's type.
        kind: u16,
        /// The length it states.
        length: usize,
    },
    /// Framing.
    #[error("a control frame of type {kind} whose {length} bytes don't fit its layout")]
    Layout {
        /// The frame's type.
        kind: u16,
        /// The length it states.
        length: usize,
    },
    /// The one zlib stream of all header blocks is lost.
    #[error("a header block that zlib can't read")]
    Compression,
    /// A small block that inflates to a big one.
    #[error("a header block of more than {MAX_BLOCK} bytes")]
    HeadersTooLong,
    /// SYN_STREAM with an id that is even, zero or not above those before.
    #[error("a new stream with id {stream} after id {last}")]
    StreamId {
        /// The id.
        stream: u32,
        /// The highest before.
        last: u32,
    },
    /// A frame that belongs to a stream, with stream id 0.
    #[error("a frame of stream 0")]
    StreamZero,
    /// The session's window past 2³¹ − 1, or an initial window beyond it.
    #[error("a window beyond 2^31 - 1")]
    Window,
}

impl Error {
    /// What GOAWAY says of it.
    pub(super) fn status(&self) -> GoAway {
        GoAway::ProtocolError
    }
}
