//! The daemon and the command line behind `bulkhead`: CRI services, images, network, records.

pub mod cli;
pub mod config;
pub mod failure;
pub mod image;
pub mod nearest;
pub mod network;
pub mod request;
pub mod security;
pub mod spec;
