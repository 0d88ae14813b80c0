//! Which namespaces a container gets: new, joined by path, or the node's (namespaces(7)).

use std::path::PathBuf;

use linux_raw_sys::general as raw;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use crate::error::{Error, ErrorKind, Result};
use crate::idmap::IdMaps;

/// New ones and joined ones; the rest is the node's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamespacePlan {
    /// `CLONE_NEW*` bits for clone3. The cgroup namespace is not among them: it is made once the child is
    /// in its cgroup, or its root would be the monitor's.
    pub(crate) new: u32,
    /// Make a cgroup namespace.
    pub(crate) new_cgroup: bool,
    /// Joined by path: the kind as its `CLONE_NEW*` bit.
    pub(crate) join: Vec<(u32, PathBuf)>,
    /// The user namespace that owns the new ones.
    pub(crate) user: Option<UserPlan>,
}

/// A user namespace: entered first, so that all that is made belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserPlan {
    /// The one to join; a new one otherwise.
    pub(crate) path: Option<PathBuf>,
    /// Its maps. With a path they are what the maker says they are.
    pub(crate) maps: IdMaps,
}

impl NamespacePlan {
    /// Whether a new namespace of this kind is made.
    pub(crate) fn makes(&self, kind: u32) -> bool {
        self.new & kind != 0
    }
}

pub(crate) fn plan(linux: &Linux) -> Result<NamespacePlan> {
    let mut plan = NamespacePlan::default();
    for namespace in linux.namespaces().iter().flatten() {
        if namespace.typ() == LinuxNamespaceType::User {
            plan.user = Some(user(linux, namespace.path().clone())?);
            continue;
        }
        let kind = match namespace.typ() {
            LinuxNamespaceType::Mount => raw::CLONE_NEWNS,
            LinuxNamespaceType::Cgroup => raw::CLONE_NEWCGROUP,
            LinuxNamespaceType::Uts => raw::CLONE_NEWUTS,
            LinuxNamespaceType::Ipc => raw::CLONE_NEWIPC,
            LinuxNamespaceType::Pid => raw::CLONE_NEWPID,
            LinuxNamespaceType::Network => raw::CLONE_NEWNET,
            kind @ (LinuxNamespaceType::User | LinuxNamespaceType::Time) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("linux.namespaces: {kind}: not supported yet"),
                ));
            }
        };
        match namespace.path() {
            Some(path) => plan.join.push((kind, path.clone())),
            None if kind == raw::CLONE_NEWCGROUP => plan.new_cgroup = true,
            None => plan.new |= kind,
        }
    }
    Ok(plan)
}

fn user(linux: &Linux, path: Option<PathBuf>) -> Result<UserPlan> {
    let (uids, gids) = (linux.uid_mappings(), linux.gid_mappings());
    let maps = IdMaps::from_oci("linux", uids.as_ref(), gids.as_ref())?.ok_or_else(|| {
        Error::invalid("linux.namespaces: a user namespace needs uidMappings and gidMappings")
    })?;
    maps.root("linux.uidMappings, gidMappings")?;
    Ok(UserPlan { path, maps })
}

/// The kind's name in `/proc/<pid>/ns`.
pub(crate) fn name(kind: u32) -> &'static str {
    match kind {
        raw::CLONE_NEWNS => "mnt",
        raw::CLONE_NEWCGROUP => "cgroup",
        raw::CLONE_NEWUTS => "uts",
        raw::CLONE_NEWIPC => "ipc",
        raw::CLONE_NEWPID => "pid",
        raw::CLONE_NEWNET => "net",
        raw::CLONE_NEWUSER => "user",
        raw::CLONE_NEWTIME => "time",
        _ => "unknown",
    }
}
