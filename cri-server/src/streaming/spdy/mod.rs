//! SPDY/3.1, the server's side, for exec, attach and port-forward.
//!
//! Layers, each knowing only the one before: `frame` cuts bytes into frames, `headers` reads header
//! blocks, [`session`] is the state machine of a connection. These three are pure: bytes in, events
//! out; commands in, bytes out. [`Connection`] drives a session over a socket and gives its streams
//! out as [`Stream`]s.
//!
//! Source: the SPDY drafts 3 and 3.1 of the Chromium project. The clients of this field are all
//! built on one Go package (`github.com/moby/spdystream`, read at v0.5.1), which differs from the
//! drafts; what of that matters here:
//! - It has no flow control: it never sends SETTINGS or WINDOW_UPDATE, ignores ours, and sends
//!   whatever it is given. See [`session`] for what follows.
//! - It drops DATA that comes before the SYN_REPLY of its stream, and reads nothing after a GOAWAY:
//!   ours is the last frame of a connection.
//! - It ends the connection on RST_STREAM with status 0, and on PING with flags.
//! - Its requests have none of the `:method`, `:path` headers the drafts require, so none is asked
//!   for; its SYN_REPLY has no header at all, so neither has ours.

mod connection;
mod dictionary;
mod error;
mod frame;
#[cfg(any(test, feature = "_test-fuzz"))]
pub mod fuzz;
mod headers;
mod limits;
mod session;
mod state;
mod stream;
#[cfg(any(test, feature = "_test-fuzz"))]
mod testing;
mod turns;

pub use connection::{Acceptor, Connection, IncomingStream};
pub use error::Error;
pub use frame::Status;
pub use limits::Limits;
pub use stream::Stream;
