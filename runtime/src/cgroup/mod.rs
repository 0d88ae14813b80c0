//! Control groups: one [`Cgroup`] per pod, container or exec, on v2, v1 or the hybrid of both.
//!
//! Uses of the whole:
//! - `hierarchies.create(path)` makes a group; [`Cgroup::apply`] fills in limits and device rules;
//!   [`Cgroup::remove`] takes it away with the parents that were made for it.
//! - A process starts in it without ever being moved by its parent. [`Cgroup::clone_into`] is for
//!   clone3 (CLONE_INTO_CGROUP, 5.7). For the v1 hierarchies the child itself writes `0` to each of
//!   [`Cgroup::join_files`]: a single thread that moves itself takes no lock of all processes
//!   (kernel commit 9a3284fad42f, 5.6), where moving another waits for an RCU period, 10 ms and
//!   more, in each hierarchy. [`Cgroup::add`] is the slow way, for what can't do either.
//! - v2 gives controllers only to groups whose parent has no processes. So processes live in leaves
//!   of what [`Hierarchies::create`] makes: a pod's own process (pause) in a group below the pod's,
//!   never in it. A container's group is such a leaf; the sub-groups of its execs
//!   ([`Cgroup::child`]) have no controllers, so the rule doesn't touch them: what they use counts
//!   in the container's group.
//!
//! Which v1 hierarchies are used is decided in `hierarchy.rs`; one that is needed later (cpuset,
//! once the CPU manager speaks) is joined then. The group's name is the same in all of them.

mod apply;
mod file;
mod freeze;
mod hierarchy;
mod mounts;
mod path;
mod room;
mod stats;
mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use hierarchy::{Hierarchies, Mode};
use path::GroupPath;
use rustix::io::Errno;
pub use stats::{CgroupStats, Pressure, PressureLine, PressureStats};

use crate::error::{Doing, Error, ErrorKind, Result};
use crate::plan::cgroup::{Controller, Place, Placement};

/// The controllers a v2 tree hands down to each group.
const HANDED_DOWN: [Controller; 6] = [
    Controller::Cpu,
    Controller::Cpuset,
    Controller::Io,
    Controller::Memory,
    Controller::Pids,
    Controller::Hugetlb,
];

/// How long a removal waits for the last processes to be gone.
const BUSY: Duration = Duration::from_secs(2);

/// A control group that exists. Dropping it changes nothing.
#[derive(Debug)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    path: GroupPath,
    /// The group in the v2 tree, if one is mounted.
    unified: Option<Part>,
    /// The group in each v1 hierarchy, in the order of `hierarchies.v1`; set when used.
    v1: Vec<OnceLock<Part>>,
}

/// The group in one hierarchy.
#[derive(Debug)]
struct Part {
    directory: OwnedFd,
    /// Removed with the group; the sub-group of an exec borrows the container's.
    is_own: bool,
}

impl Part {
    fn own(directory: OwnedFd) -> Self {
        Self {
            directory,
            is_own: true,
        }
    }

    fn borrowed(&self) -> Result<Self> {
        let directory = rustix::io::dup(&self.directory).doing(|| "duplicate a descriptor")?;
        Ok(Self {
            directory,
            is_own: false,
        })
    }
}

/// Whether a group can have this path at all: absolute, of plain components.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(path: &str) -> Result<()> {
    GroupPath::parse(path).map(drop)
}

impl Hierarchies {
    /// Makes the group `path` (absolute, plain components) and what is missing of its parents.
    /// Also returns the parents that were made, outermost first, as `hierarchy:path`, for the
    /// records; [`Cgroup::remove`] finds them by itself. A group that exists is taken as it is.
    pub fn create(&self, path: &str) -> Result<(Cgroup, Vec<String>)> {
        let path = GroupPath::parse(path)?;
        let mut made = Vec::new();
        let mut cgroup = Cgroup::new(self, path);
        if let Err(error) = cgroup.make_parts(&mut made) {
            // The first error tells more than one of the clean-up.
            drop(cgroup.remove());
            return Err(error);
        }
        Ok((cgroup, made))
    }

    /// The group `path`, if it exists.
    pub fn open(&self, path: &str) -> Result<Option<Cgroup>> {
        let mut cgroup = Cgroup::new(self, GroupPath::parse(path)?);
        let mut exists = false;
        if let Some(hierarchy) = self.unified()
            && let Some(directory) = hierarchy.open_group(&cgroup.path)?
        {
            cgroup.unified = Some(Part::own(directory));
            exists = true;
        }
        for (slot, hierarchy) in cgroup.v1.iter().zip(self.v1()) {
            if let Some(directory) = hierarchy.open_group(&cgroup.path)? {
                slot.get_or_init(|| Part::own(directory));
                exists = true;
            }
        }
        Ok(exists.then_some(cgroup))
    }
}

impl Cgroup {
    fn new(hierarchies: &Hierarchies, path: GroupPath) -> Self {
        Self {
            v1: hierarchies.v1().iter().map(|_| OnceLock::new()).collect(),
            hierarchies: hierarchies.clone(),
            unified: None,
            path,
        }
    }

    fn make_parts(&mut self, made: &mut Vec<String>) -> Result<()> {
        // In hybrid mode a controller of the v2 tree is handed down when a limit needs it.
        let enable: &[Controller] = match self.hierarchies.mode() {
            Mode::Unified => &HANDED_DOWN,
            Mode::Hybrid | Mode::Legacy => &[],
        };
        if let Some(hierarchy) = self.hierarchies.unified() {
            self.unified = Some(Part::own(hierarchy.make(&self.path, enable, made)?));
        }
        let parent = self.path.parent();
        for (slot, hierarchy) in self.v1.iter().zip(self.hierarchies.v1()) {
            if self.hierarchies.is_used(hierarchy, parent.as_ref()) {
                let directory = hierarchy.make(&self.path, &[], made)?;
                slot.get_or_init(|| Part::own(directory));
            }
        }
        Ok(())
    }

    /// The group's path, the same in every hierarchy.
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// The directory to hand to clone3 with CLONE_INTO_CGROUP; `None` where no v2 tree is mounted.
    /// On v1 and hybrid nodes [`Cgroup::join_files`] is needed as well.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|part| part.directory.as_fd())
    }

    /// The files by which a single-threaded child joins the group in its v1 hierarchies: it writes
    /// `0` to each, before it gives up root or changes its cgroup namespace. Empty on v2.
    pub fn join_files(&self) -> Result<Vec<OwnedFd>> {
        self.v1_parts()
            .map(|part| {
                file::open_to_write(&part.directory, "tasks")
                    .doing(|| format!("open tasks of cgroup {}", self.path()))
            })
            .collect()
    }

    /// Moves the calling thread alone into the group's v1 hierarchies; what it forks starts there.
    /// (v2 has no groups for single threads of a process: use [`Cgroup::clone_into`].)
    pub fn enter_thread(&self) -> Result<()> {
        for file in self.join_files()? {
            rustix::io::write(&file, b"0")
                .doing(|| format!("move a thread into cgroup {}", self.path()))?;
        }
        Ok(())
    }

    /// Moves a process into the group, in every hierarchy it spans. Slow on v1: see the top.
    pub fn add(&self, pid: i32) -> Result<()> {
        let doing = || format!("move process {pid} into cgroup {}", self.path());
        if let Some(part) = self.unified.as_ref().filter(|_| !self.holds(pid)) {
            write_pid(part, pid).doing(doing)?;
        }
        for part in self.v1_parts() {
            write_pid(part, pid).doing(doing)?;
        }
        Ok(())
    }

    /// Was the process cloned into the v2 group already? Moving it again would wait for nothing.
    fn holds(&self, pid: i32) -> bool {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.strip_prefix("0::"))
            .any(|path| path == self.path())
    }

    fn v1_parts(&self) -> impl Iterator<Item = &Part> {
        self.v1.iter().filter_map(OnceLock::get)
    }

    /// The part whose files a controller's settings are written to. `Ok(None)` if the node has the
    /// controller in v1 and the group doesn't use that hierarchy (yet).
    fn part(&self, controller: Controller) -> Option<&Part> {
        match self.hierarchies.place(controller) {
            Place::V2 => self.unified.as_ref(),
            Place::V1 => {
                let (index, _) = self.hierarchies.v1_with(controller)?;
                self.v1.get(index)?.get()
            }
            Place::Missing => None,
        }
    }

    /// As [`Cgroup::part`], made if it isn't there: the group's processes are moved into it.
    fn engage(&self, controller: Controller) -> Result<&Part> {
        if let Some(part) = self.part(controller) {
            let is_handed_down = self.hierarchies.is_unified() && HANDED_DOWN.contains(&controller);
            if !is_handed_down
                && self.hierarchies.place(controller) == Place::V2
                && let Some(unified) = self.hierarchies.unified()
            {
                unified.enable_for(&self.path, &[controller])?;
            }
            return Ok(part);
        }
        let Some((index, hierarchy)) = self.hierarchies.v1_with(controller) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "cgroup {} has no {} part",
                    self.path(),
                    controller.v1_name()
                ),
            ));
        };
        let directory = hierarchy.make(&self.path, &[], &mut Vec::new())?;
        let part = self.v1[index].get_or_init(|| Part::own(directory));
        self.move_all_into(part)?;
        Ok(part)
    }

    /// Repeats until nobody new was seen: what a process forks while it is being moved may start
    /// in the old group.
    fn move_all_into(&self, part: &Part) -> Result<()> {
        const ROUNDS: usize = 100;
        let mut moved = std::collections::BTreeSet::new();
        for _ in 0..ROUNDS {
            let mut is_new = false;
            for pid in self.pids()? {
                if moved.insert(pid) {
                    is_new = true;
                    match write_pid(part, pid) {
                        Ok(()) | Err(Errno::SRCH) => {}
                        Err(errno) => {
                            let doing = format!("move process {pid} into cgroup {}", self.path());
                            return Err(Error::system(doing, errno));
                        }
                    }
                }
            }
            if !is_new {
                return Ok(());
            }
        }
        Err(Error::new(
            ErrorKind::Exhausted,
            format!("cgroup {} forks faster than it can be moved", self.path()),
        ))
    }

    /// A sub-group for an exec, so that it and its descendants can be killed alone. It lies below
    /// the v2 group (v1: the freezer's) and shares the container's groups in all other hierarchies.
    pub fn child(&self, name: &str) -> Result<Self> {
        let mut child = Self::new(&self.hierarchies, self.path.child(name)?);
        let core = self.hierarchies.core().ok_or_else(|| self.gone())?;
        let directory = core.make(&child.path, &[], &mut Vec::new())?;
        let own = Part::own(directory);
        let freezer = match self.hierarchies.unified() {
            Some(_) => {
                child.unified = Some(own);
                None
            }
            None => self
                .hierarchies
                .v1_with(Controller::Freezer)
                .map(|(index, _)| {
                    child.v1[index].get_or_init(|| own);
                    index
                }),
        };
        for (index, slot) in self.v1.iter().enumerate() {
            if Some(index) != freezer
                && let Some(part) = slot.get()
            {
                let part = part.borrowed()?;
                child.v1[index].get_or_init(|| part);
            }
        }
        Ok(child)
    }

    fn gone(&self) -> Error {
        Error::new(
            ErrorKind::NotFound,
            format!("cgroup {} is gone", self.path()),
        )
    }

    /// Out-of-memory kills in the group so far. Readable after its processes are gone, until
    /// [`Cgroup::remove`].
    pub fn oom_kills(&self) -> Result<u64> {
        let Some(part) = self.part(Controller::Memory) else {
            return Ok(0);
        };
        // v1's line came with 4.13; before that there is no evidence to be had.
        let name = match self.hierarchies.place(Controller::Memory) {
            Place::V1 => "memory.oom_control",
            _ => "memory.events",
        };
        let text = file::read(&part.directory, name)
            .doing(|| format!("read {name} of cgroup {}", self.path()))?;
        Ok(file::value(&text, "oom_kill").unwrap_or(0))
    }

    /// Removes the group and all below it, then the parents that were made for it and are empty.
    /// Waits at most 2 s for processes that are being killed. Gone already is fine.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + BUSY;
        let mut result = Ok(());
        let unified = self
            .hierarchies
            .unified()
            .into_iter()
            .map(|h| (h, self.unified.as_ref()));
        let v1 = self.hierarchies.v1().iter().zip(&self.v1);
        let all = unified.chain(v1.map(|(h, slot)| (h, slot.get())));
        for (hierarchy, part) in all {
            match part {
                Some(part) if part.is_own => {
                    result = result.and(hierarchy.remove(&self.path, deadline));
                    hierarchy.remove_made(self.path.parent());
                }
                // Shared with the container.
                Some(_) => {}
                // It may have been made as the parent of a group that used this hierarchy.
                None => hierarchy.remove_made(Some(self.path.clone())),
            }
        }
        result
    }
}

fn write_pid(part: &Part, pid: i32) -> std::result::Result<(), Errno> {
    file::write(&part.directory, "cgroup.procs", &pid.to_string())
}
