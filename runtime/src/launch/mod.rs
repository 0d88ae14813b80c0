//! Launching: prepare, clone, the parent's side, the child's side, ready.
//!
//! The caller has one thread (the monitor, the OCI command line): clone3 copies only the calling thread, and
//! a child of a threaded process may find locks held for ever. Success means that execve succeeded.
//! On failure nothing remains: the child is killed and reaped here, and mounts that were never attached
//! vanish with their descriptors. The cgroup and the directories are the caller's.

mod channel;
mod child;
mod exec;
mod listener;
mod parent;
pub(crate) mod pause;
mod prepare;
mod relay;
mod report;
mod target;

use std::os::fd::{BorrowedFd, OwnedFd};

use oci_spec::runtime::{Process, Spec};

use crate::cgroup::Cgroup;
use crate::error::Result;
use crate::features::Features;
use crate::idmap::IdMaps;
pub use crate::plan::seccomp::FilterOptions;
pub use crate::rootfs::{ImageVolume, Rootfs};

/// A process's standard streams.
#[derive(Debug)]
pub enum Stdio {
    /// These, which the process gets as 0, 1 and 2.
    Descriptors {
        /// Read from.
        stdin: OwnedFd,
        /// Written to.
        stdout: OwnedFd,
        /// Written to.
        stderr: OwnedFd,
    },
    /// A new terminal of the container's own devpts; its master is in [`Launched::terminal`].
    Terminal,
}

/// A container to launch.
#[derive(Debug)]
pub struct LaunchInput<'a> {
    /// For messages.
    pub id: &'a str,
    /// The OCI runtime spec. Its root path, its cgroup resources and the rules of its seccomp section are
    /// not looked at: `rootfs`, `cgroup` and `seccomp` are what counts.
    pub spec: &'a Spec,
    /// What the node offers.
    pub features: &'a Features,
    /// The root file system.
    pub rootfs: Rootfs<'a>,
    /// Images that are mounted at destinations of the spec's mounts.
    pub images: &'a [ImageVolume],
    /// The standard streams; a terminal if and only if the spec's process asks for one.
    pub stdio: Stdio,
    /// A compiled seccomp program: an array of `struct sock_filter`.
    pub seccomp: Option<&'a [u8]>,
    /// Where the container is placed before it runs.
    pub cgroup: Option<&'a Cgroup>,
    /// A PID namespace to join instead of what the spec says (nsfs descriptor or pidfd).
    pub pid_namespace: Option<BorrowedFd<'a>>,
}

/// A process to launch in a running container.
#[derive(Debug)]
pub struct ExecInput<'a> {
    /// For messages.
    pub id: &'a str,
    /// What to run, as whom.
    pub process: &'a Process,
    /// The container's init, whose namespaces are entered (pidfd).
    pub init: BorrowedFd<'a>,
    /// The maps of the container's user namespace, if it has one.
    pub user: Option<&'a IdMaps>,
    /// What the node offers.
    pub features: &'a Features,
    /// The standard streams; a terminal if and only if `process` asks for one.
    pub stdio: Stdio,
    /// A compiled seccomp program.
    pub seccomp: Option<&'a [u8]>,
    /// How it is loaded: as the container's.
    pub filter: &'a FilterOptions,
    /// Where the process is placed before it runs.
    pub cgroup: Option<&'a Cgroup>,
}

/// A process that runs.
#[derive(Debug)]
pub struct Launched {
    /// As the caller's PID namespace numbers it. A child of the caller's.
    pub pid: i32,
    /// A descriptor for it.
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// When it started, in clock ticks since boot, to tell a recycled pid.
    pub start_ticks: u64,
}

/// Creates a container and starts its program.
pub fn create(input: LaunchInput<'_>) -> Result<Launched> {
    parent::create(input)
}

/// Starts a program in a running container.
pub fn exec(input: ExecInput<'_>) -> Result<Launched> {
    exec::exec(input)
}
