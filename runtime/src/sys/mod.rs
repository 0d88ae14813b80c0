//! System calls by family; the only place unsafe is allowed.

pub mod bpf;
pub mod memfd;
pub mod scm;
