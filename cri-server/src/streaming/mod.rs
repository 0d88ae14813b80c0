//! Exec, attach and port-forward as byte streams of a client.

pub mod spdy;
