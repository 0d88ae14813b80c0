//! `bulkhead play`: a Pod manifest run on this machine through the daemon's own CRI socket.

mod document;
mod manifest;
mod plan;
mod quantity;
