//! Control groups: one [`Cgroup`] per pod, container or exec, on v2, v1 or the hybrid of both.

use std::os::fd::BorrowedFd;

use crate::error::Result;

/// A control group that exists.
#[derive(Debug)]
pub struct Cgroup {}

impl Cgroup {
    /// On v2 the directory to hand to clone3 with CLONE_INTO_CGROUP; `None` on v1, where
    /// [`Cgroup::add`] moves the child before it goes on.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Moves a process into the group (every hierarchy it spans).
    pub fn add(&self, _pid: i32) -> Result<()> {
        Ok(())
    }
}
