//! From an OCI spec to ordered steps, pure.
