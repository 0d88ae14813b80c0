//! Containers: one story per operation.

pub mod create;
pub mod exec;
mod facts;
pub mod log;
pub mod remove;
pub mod start;
pub mod stop;
