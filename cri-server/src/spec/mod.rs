//! Domain request + image + facts of the node → what the launcher carries out: an OCI runtime spec,
//! or a pod's namespaces.
//!
//! Pure: whatever has to be read or resolved (users, devices, sources of mounts, profiles) comes in
//! as a value. Every field of the OCI types is set by name, because their `Default` fills in a
//! shell, limits, capabilities and mounts.

pub mod cgroup;
pub mod container;
pub mod devices;
pub mod mount_table;
pub mod mounts;
pub mod process;
pub mod resources;
pub mod sandbox;
pub mod security;

use crate::security::apparmor::Policy;

/// What the mapping has to know of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Release of the running kernel, major and minor.
    pub kernel: (u32, u32),
    /// AppArmor; none if the node has none.
    pub apparmor: Option<Policy>,
    /// SELinux is on.
    pub selinux: bool,
    /// Seccomp filters can be loaded.
    pub seccomp: bool,
    /// The highest capability number the kernel knows.
    pub last_capability: u32,
    /// The capabilities the daemon holds, as a mask; it can't give others.
    pub held_capabilities: u64,
}
