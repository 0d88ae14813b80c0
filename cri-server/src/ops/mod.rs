//! How operations run: in their own tasks, to the end or back to the start.

pub mod inflight;
pub mod tasks;
pub mod turns;
