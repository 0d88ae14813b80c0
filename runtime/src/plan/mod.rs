//! From an OCI spec to ordered steps, pure.

pub mod cgroup;
pub mod devices;
