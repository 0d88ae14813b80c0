//! System calls by family; the only place unsafe is allowed.

pub mod bpf;
pub(crate) mod caps;
pub(crate) mod clone;
pub mod epoll;
pub(crate) mod fd;
pub mod heap;
pub mod inherit;
pub mod memfd;
pub(crate) mod mount;
pub(crate) mod pidfd;
pub(crate) mod procfs;
pub(crate) mod pty;
pub mod scm;
pub(crate) mod seccomp;
pub mod signals;
