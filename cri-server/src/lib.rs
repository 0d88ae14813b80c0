//! The daemon and the command line behind `bulkhead`: CRI services, images, network, records.

pub mod cdi;
pub mod cli;
pub mod clock;
pub mod config;
pub mod container;
pub mod failure;
pub mod image;
pub mod info;
pub mod monitor;
pub mod nearest;
pub mod network;
pub mod node;
pub mod ops;
pub mod pod;
pub mod records;
pub mod recover;
pub mod render;
pub mod request;
pub mod security;
pub mod server;
pub mod spec;
pub mod stats;
pub mod streaming;
pub mod telemetry;
