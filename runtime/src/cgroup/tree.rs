//! One mounted hierarchy: how a group is made and removed in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, Mode, XattrFlags, fgetxattr, fsetxattr, mkdirat, unlinkat};
use rustix::io::Errno;

use super::file;
use super::mounts::Mount;
use super::path::GroupPath;
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::plan::cgroup::Controller;

/// Marks directories that we made as parents of a group, so that whoever empties them last removes
/// them, and nobody removes those of others. Control groups take `trusted` attributes since 3.7.
const MARK: &str = "trusted.bulkhead";
/// How often making a path starts again because another removed a parent just then.
const RACES: usize = 16;
/// How deep groups below ours may be nested (by a privileged container) for us to remove them.
const MAX_NESTING: usize = 200;

/// One mounted tree of groups.
#[derive(Debug)]
pub(super) struct Hierarchy {
    /// `unified`, or the v1 controllers' names.
    name: String,
    mount: PathBuf,
    root: OwnedFd,
    pub(super) controllers: Vec<Controller>,
    v2: bool,
}

impl Hierarchy {
    pub(super) fn open(mount: Mount) -> Result<Self> {
        let path = mount.path;
        let root = file::open_directory(rustix::fs::CWD, &path.to_string_lossy())
            .doing(|| format!("open {}", path.display()))?;
        let v2 = mount.v1.is_none();
        let controllers = match mount.v1 {
            Some(controllers) => controllers,
            None => {
                let text = file::read(&root, "cgroup.controllers")
                    .doing(|| format!("read {}/cgroup.controllers", path.display()))?;
                named(&text)
            }
        };
        let name = match v2 {
            true => "unified".to_owned(),
            false => {
                let names: Vec<_> = controllers.iter().map(|c| c.v1_name()).collect();
                names.join(",")
            }
        };
        Ok(Self {
            name,
            mount: path,
            root,
            controllers,
            v2,
        })
    }

    /// How a group of this hierarchy is named in messages.
    pub(super) fn show(&self, path: &GroupPath) -> String {
        format!("cgroup {}{}", self.mount.display(), path.as_str())
    }

    pub(super) fn has(&self, path: &GroupPath) -> bool {
        matches!(self.open_group(path), Ok(Some(_)))
    }

    pub(super) fn open_group(&self, path: &GroupPath) -> Result<Option<OwnedFd>> {
        match file::open_directory(&self.root, path.relative()) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::system(format!("open {}", self.show(path)), errno)),
        }
    }

    /// Makes the group and what is missing of its parents; names of made parents go to `made`.
    /// Undoes its work on failure.
    pub(super) fn make(
        &self,
        path: &GroupPath,
        enable: &[Controller],
        made: &mut Vec<String>,
    ) -> Result<OwnedFd> {
        for _ in 0..RACES {
            let mut fresh = Vec::new();
            match self.make_once(path, enable, &mut fresh) {
                Ok(directory) => {
                    fresh.retain(|parent| parent != path.as_str());
                    made.extend(fresh.iter().map(|parent| format!("{}:{parent}", self.name)));
                    return Ok(directory);
                }
                Err(error) => {
                    for path in fresh.iter().rev() {
                        // Another may use it by now, which is as good.
                        unlinkat(&self.root, &path[1..], AtFlags::REMOVEDIR).ok();
                    }
                    if error.errno() != Some(Errno::NOENT.raw_os_error()) {
                        return Err(error);
                    }
                }
            }
        }
        Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "make {}: its parents vanish again and again",
                self.show(path)
            ),
        ))
    }

    fn make_once(
        &self,
        path: &GroupPath,
        enable: &[Controller],
        fresh: &mut Vec<String>,
    ) -> Result<OwnedFd> {
        let mut walked = String::new();
        let mut parent = rustix::io::dup(&self.root).doing(|| "duplicate a descriptor")?;
        for name in path.components() {
            let doing = |walked: &str| format!("make cgroup {}{walked}", self.mount.display());
            if self.v2 {
                self.enable(parent.as_fd(), &walked, enable)?;
            }
            walked = format!("{walked}/{name}");
            let is_new = match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(Error::system(doing(&walked), errno)),
            };
            let group = file::open_directory(&parent, name).doing(|| doing(&walked))?;
            if is_new {
                fresh.push(walked.clone());
                if walked != path.as_str() {
                    // Without the mark (no CAP_SYS_ADMIN) the parent stays behind, empty.
                    fsetxattr(&group, MARK, b"1", XattrFlags::empty()).ok();
                }
            }
            if self.controllers.contains(&Controller::Cpuset) && !self.v2 {
                inherit_sets(parent.as_fd(), group.as_fd()).doing(|| doing(&walked))?;
            }
            parent = group;
        }
        Ok(parent)
    }

    /// v2: hands controllers down to the groups below `group`. Those that can't be (cpu, while
    /// real-time processes live in inner groups) are missed when a limit needs them.
    fn enable(&self, group: BorrowedFd<'_>, walked: &str, wanted: &[Controller]) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let show = || format!("cgroup {}{walked}", self.mount.display());
        let have = file::read(group, "cgroup.subtree_control")
            .map(|text| named(&text))
            .doing(|| format!("read cgroup.subtree_control of {}", show()))?;
        let missing: Vec<_> = wanted
            .iter()
            .filter(|controller| self.controllers.contains(controller))
            .filter(|controller| !have.contains(controller))
            .filter_map(|controller| controller.v2_name())
            .map(|name| format!("+{name}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        // Together first: given one by one, those that can govern threads would be accepted in a
        // group with processes and make it a threaded one, which then refuses the others.
        let together = missing.join(" ");
        let names = std::iter::once(together.as_str()).chain(missing.iter().map(String::as_str));
        for name in names {
            match file::write(group, "cgroup.subtree_control", name) {
                Ok(()) if name == together => return Ok(()),
                Err(Errno::BUSY | Errno::OPNOTSUPP) => {
                    return Err(Error::new(
                        ErrorKind::WrongState,
                        format!(
                            "{} has processes of its own, so the kernel gives no controllers to \
                             groups below it: move them into a group beside",
                            show()
                        ),
                    ));
                }
                // Missed when a limit needs it.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Hands controllers down to an existing group.
    pub(super) fn enable_for(&self, path: &GroupPath, wanted: &[Controller]) -> Result<()> {
        let mut walked = String::new();
        let mut group = rustix::io::dup(&self.root).doing(|| "duplicate a descriptor")?;
        for name in path.components() {
            self.enable(group.as_fd(), &walked, wanted)?;
            walked = format!("{walked}/{name}");
            group = file::open_directory(&group, name)
                .doing(|| format!("open cgroup {}{walked}", self.mount.display()))?;
        }
        Ok(())
    }

    /// Removes the group with all below it; gone already is fine. Until the deadline it waits for
    /// processes that are being killed.
    pub(super) fn remove(&self, path: &GroupPath, deadline: Instant) -> Result<()> {
        let mut pause = Duration::from_micros(200);
        loop {
            match remove_tree(self.root.as_fd(), path.relative(), MAX_NESTING) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // A killed process counts until it has exited, and on v1 nothing can be waited
                // for. Usually one round.
                Err(Errno::BUSY) if Instant::now() < deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                Err(errno) => {
                    let processes = self.open_group(path).ok().flatten();
                    let processes =
                        processes.and_then(|group| file::read(group, "cgroup.procs").ok());
                    let processes = processes.unwrap_or_default();
                    let list: Vec<_> = processes.split_whitespace().take(8).collect();
                    let doing = format!(
                        "remove {} (processes in it: {})",
                        self.show(path),
                        if list.is_empty() {
                            "none".to_owned()
                        } else {
                            list.join(", ")
                        }
                    );
                    return Err(Error::system(doing, errno));
                }
            }
        }
    }

    /// Removes the groups from `path` upwards that we made as parents and that are empty.
    pub(super) fn remove_made(&self, path: Option<GroupPath>) {
        let mut next = path;
        while let Some(path) = next {
            let Ok(Some(group)) = self.open_group(&path) else {
                return;
            };
            let mut value = [0u8; 8];
            let is_ours = fgetxattr(&group, MARK, &mut value[..]).is_ok();
            if !is_ours || unlinkat(&self.root, path.relative(), AtFlags::REMOVEDIR).is_err() {
                return;
            }
            next = path.parent();
        }
    }
}

/// The controllers we know in a list of v2 names.
fn named(text: &str) -> Vec<Controller> {
    let known = |name: &str| {
        Controller::ALL
            .into_iter()
            .find(|controller| controller.v2_name() == Some(name))
    };
    text.split_whitespace().filter_map(known).collect()
}

/// v1: a new cpuset group is empty, and no process can join it until it has CPUs and nodes.
fn inherit_sets(parent: BorrowedFd<'_>, group: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if file::read(group, name)?.trim().is_empty() {
            file::write(group, name, file::read(parent, name)?.trim())?;
        }
    }
    Ok(())
}

fn remove_tree(at: BorrowedFd<'_>, name: &str, depth: usize) -> std::result::Result<(), Errno> {
    match unlinkat(at, name, AtFlags::REMOVEDIR) {
        // The usual case, without looking inside. With groups below it is EBUSY too.
        Ok(()) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    let group = file::open_directory(at, name)?;
    for below in subgroups(group.as_fd())? {
        match remove_tree(group.as_fd(), &below, depth - 1) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    unlinkat(at, name, AtFlags::REMOVEDIR)
}

/// The names of the groups directly below.
pub(super) fn subgroups(group: BorrowedFd<'_>) -> std::result::Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(group)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == rustix::fs::FileType::Directory && name != "." && name != ".." {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}
