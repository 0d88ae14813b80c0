//! The launcher: takes an OCI runtime spec and file descriptors, and turns them into kernel objects.
//! Knows nothing of CRI, gRPC, registries, Kubernetes or tokio.

mod attic;
pub mod cgroup;
pub mod error;
pub mod features;
pub mod idmap;
pub mod launch;
pub mod monitor;
pub mod namespaces;
pub mod plan;
pub mod rootfs;
pub mod spec;
pub mod sys;
pub mod user_namespace;
pub mod users;
