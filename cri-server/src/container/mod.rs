//! Containers: one story per operation.

mod attach;
pub mod create;
pub mod exec;
mod facts;
mod images;
pub mod log;
mod process;
pub mod remove;
pub mod start;
pub mod stop;
pub mod stream;
mod terminal;
pub mod update;
