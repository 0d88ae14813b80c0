//! The per-pod monitor process.

pub mod wire;
