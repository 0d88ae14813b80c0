//! The mounted hierarchies: found once by probing; which of them a group uses.
//!
//! Nodes come in three modes. *Unified*: all controllers in the v2 tree. *Legacy*: each in a v1
//! tree. *Hybrid*: both mounted, most controllers in v1; there the v2 tree still gives what every
//! v2 group has without a controller: `cgroup.kill` (5.14), freezing (5.2), device programs (4.15),
//! CPU time and pressure, and placing a process at its clone. So in hybrid mode v1's freezer,
//! devices and cpuacct have no job and cost nothing.

use std::fmt;
use std::sync::Arc;

use super::mounts::{self, Mount};
use super::path::GroupPath;
use super::tree::Hierarchy;
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::plan::cgroup::{Controller, Place, Placement};
use crate::plan::devices;
use crate::sys::bpf;

/// How the node's controllers are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All in the v2 tree.
    Unified,
    /// Controllers in v1 trees, a v2 tree beside them.
    Hybrid,
    /// v1 only.
    Legacy,
}

/// The node's hierarchies. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hierarchies(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    unified: Option<Hierarchy>,
    v1: Vec<Hierarchy>,
    device_programs: bool,
}

impl Hierarchies {
    /// Finds what is mounted. Once at start.
    pub fn probe() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/mountinfo")
            .doing(|| "read /proc/self/mountinfo")?;
        Self::from_mountinfo(&text)
    }

    /// As [`Hierarchies::probe`], from the text of a `mountinfo` file.
    pub fn from_mountinfo(text: &str) -> Result<Self> {
        let mut unified = None;
        let mut v1: Vec<Hierarchy> = Vec::new();
        for mount in mounts::parse(text) {
            match &mount {
                Mount { v1: None, .. } if unified.is_none() => {
                    unified = Some(Hierarchy::open(mount)?);
                }
                Mount {
                    v1: Some(controllers),
                    ..
                } if !controllers.is_empty() => {
                    let known = v1.iter().any(|other| other.controllers == *controllers);
                    if !known {
                        v1.push(Hierarchy::open(mount)?);
                    }
                }
                _ => {}
            }
        }
        let has_freezer = v1
            .iter()
            .any(|hierarchy| hierarchy.controllers.contains(&Controller::Freezer));
        if unified.is_none() && !has_freezer {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "neither the cgroup v2 tree nor v1's freezer is mounted: mount cgroup2 on \
                 /sys/fs/cgroup",
            ));
        }
        let device_programs =
            unified.is_some() && bpf::load_device_program(&devices::program(&[])).is_ok();
        Ok(Self(Arc::new(Inner {
            unified,
            v1,
            device_programs,
        })))
    }

    /// The v2 tree, if one is mounted.
    pub(super) fn unified(&self) -> Option<&Hierarchy> {
        self.0.unified.as_ref()
    }

    /// The v1 hierarchies with a controller that has a job.
    pub(super) fn v1(&self) -> &[Hierarchy] {
        &self.0.v1
    }

    /// How the controllers are mounted.
    pub fn mode(&self) -> Mode {
        match (&self.0.unified, self.0.v1.is_empty()) {
            (Some(_), true) => Mode::Unified,
            (Some(_), false) => Mode::Hybrid,
            (None, _) => Mode::Legacy,
        }
    }

    /// Device access is decided by eBPF programs; else by v1's `devices`, if there is one.
    pub fn has_device_programs(&self) -> bool {
        self.0.device_programs
    }

    /// Does a new group use this v1 hierarchy? Each one makes creating, joining and removing
    /// slower, so only those with a job: resources and evidence of each container (cpu, memory,
    /// pids), what the v2 tree would do if it were there, and hierarchies in which somebody (the
    /// kubelet) has made the parent, so that its limits hold.
    pub(super) fn is_used(&self, hierarchy: &Hierarchy, parent: Option<&GroupPath>) -> bool {
        hierarchy
            .controllers
            .iter()
            .any(|controller| match controller {
                Controller::Cpu | Controller::Memory | Controller::Pids => true,
                Controller::Freezer => self.unified().is_none(),
                Controller::Devices => !self.0.device_programs,
                Controller::Cpuacct if self.unified().is_none() => true,
                _ => parent.is_some_and(|parent| hierarchy.has(parent)),
            })
    }

    /// The v1 hierarchy with this controller, and its place in the list.
    pub(super) fn v1_with(&self, controller: Controller) -> Option<(usize, &Hierarchy)> {
        let mut list = self.v1().iter().enumerate();
        list.find(|(_, hierarchy)| hierarchy.controllers.contains(&controller))
    }
}

impl Placement for Hierarchies {
    fn place(&self, controller: Controller) -> Place {
        let in_unified = self
            .unified()
            .is_some_and(|unified| unified.controllers.contains(&controller));
        if in_unified {
            Place::V2
        } else if self.v1_with(controller).is_some() {
            Place::V1
        } else {
            Place::Missing
        }
    }

    fn is_unified(&self) -> bool {
        self.mode() == Mode::Unified
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unified => "cgroup v2",
            Self::Hybrid => "cgroup v1 with v2 beside it (hybrid)",
            Self::Legacy => "cgroup v1",
        })
    }
}
