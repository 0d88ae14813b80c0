//! The per-pod monitor process.

pub mod connection;
pub mod frame;
pub mod wire;
