//! Records → response messages. Pure; how a record came about is nobody's business here.

pub mod container;
pub mod image;
pub mod sandbox;
pub mod stats;
