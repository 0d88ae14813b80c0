//! Exec, attach and port-forward as byte streams of a client.

#[cfg(any(test, feature = "_test-fuzz"))]
pub mod fuzz;
pub mod spdy;
