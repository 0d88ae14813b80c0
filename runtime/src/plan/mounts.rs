//! The mounts of a container, ordered and with their options sorted out.
//!
//! Options: OCI runtime specification, config.md "Mounts" (Linux mount options), names as mount(8).
//! Order: by depth of the destination, so that no mount hides one below it whatever the list's
//! order (S5); equal depths keep the list's order.

use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::{Mount, Spec};

use super::{c_string, relative};
use crate::error::{Error, ErrorKind, Result};
use crate::features::Features;
use crate::idmap::IdMaps;
use crate::sys::mount::{self, Attributes};

mod options;

use options::Options;

/// Files of procfs that may be mounted over: those that tell a container about its own resources
/// (lxcfs and the like). Anything else on procfs could undo its protection (CVE-2019-16884).
const PROC_FILES: [&str; 9] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "proc/sys/kernel/ns_last_pid",
];

/// One mount.
#[derive(Clone, Debug)]
pub(crate) struct MountPlan {
    /// Relative to the root.
    pub(crate) destination: CString,
    pub(crate) source: Source,
    /// Of the mount itself.
    pub(crate) attributes: Attributes,
    /// Of the mount and those below it in its source.
    pub(crate) recursive: Attributes,
    /// Made read-only when everything inside is in place.
    pub(crate) late_readonly: bool,
    /// The destination must be a real directory, not a link to one (A7).
    pub(crate) real_directory: bool,
    /// The destination may be this very file of procfs.
    pub(crate) on_proc_file: bool,
    /// Links to make at its top: name and target.
    pub(crate) links: Vec<(CString, CString)>,
    /// A bind mount whose files' ids are mapped.
    pub(crate) id_map: Option<IdMapPlan>,
}

/// How a bind mount is id-mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMapPlan {
    pub(crate) maps: IdMaps,
    /// The mounts below its source too.
    pub(crate) recursive: bool,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A file or directory of the node.
    Bind {
        path: PathBuf,
        recursive: bool,
        /// Left out if it doesn't exist.
        optional: bool,
        /// The propagation asked for needs the source to be in a peer group.
        needs: Option<Peer>,
    },
    /// A new mount of a file system type.
    Filesystem {
        kind: CString,
        source: Option<CString>,
        /// Keys with a value, and flags.
        options: Vec<(CString, Option<CString>)>,
    },
}

/// What the source's own propagation must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Shared.
    Shared,
    /// Shared or receiving.
    SharedOrSlave,
}

impl MountPlan {
    /// Whether this is a file system of the type.
    pub(crate) fn is(&self, wanted: &str) -> bool {
        matches!(&self.source, Source::Filesystem { kind, .. } if kind.as_bytes() == wanted.as_bytes())
    }

    /// For messages: what goes where.
    pub(crate) fn describe(&self) -> String {
        let at = self.destination.to_string_lossy();
        match &self.source {
            Source::Bind { path, .. } => format!("mount {} on /{at}", path.display()),
            Source::Filesystem { kind, .. } => format!("mount {} on /{at}", kind.to_string_lossy()),
        }
    }
}

/// Whether a mount binds something of the node.
pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind")
}

/// `user` are the maps of the container's user namespace.
pub(super) fn plan(
    spec: &Spec,
    label: Option<&str>,
    user: Option<&IdMaps>,
    features: &Features,
) -> Result<Vec<MountPlan>> {
    let mut plans = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let at = mount.destination().display();
        let plan =
            if matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) && !is_bind(mount) {
                cgroup(spec, mount, features)
            } else {
                one(mount, label, user).map(|plan| vec![plan])
            };
        plans.extend(plan.map_err(|error| error.context(format!("mount on {at}")))?);
    }
    plans.sort_by_key(|plan| depth(&plan.destination));
    let destinations: Vec<_> = plans.iter().map(|plan| plan.destination.clone()).collect();
    for plan in &mut plans {
        let nested = destinations
            .iter()
            .any(|other| is_below(other, &plan.destination));
        if nested && plan.attributes.set & mount::RDONLY != 0 {
            plan.attributes.set &= !mount::RDONLY;
            plan.late_readonly = true;
        }
        // A recursive read-only source stays so below; its top waits like any other.
        if nested && plan.recursive.set & mount::RDONLY != 0 {
            plan.late_readonly = true;
        }
    }
    Ok(plans)
}

fn depth(path: &CString) -> usize {
    path.as_bytes().iter().filter(|byte| **byte == b'/').count()
}

fn is_below(path: &CString, parent: &CString) -> bool {
    path.as_bytes()
        .strip_prefix(parent.as_bytes())
        .is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn one(mount: &Mount, label: Option<&str>, user: Option<&IdMaps>) -> Result<MountPlan> {
    let mut options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
    let destination = relative(mount.destination())?;
    if let Some(maps) = user {
        leave_out_unmapped_group(mount, maps, &mut options);
    }
    let id_map = id_map(mount, &options, user)?;
    let source = if is_bind(mount) {
        bind(mount, &options)?
    } else {
        filesystem(mount, &options, label)?
    };
    Ok(MountPlan {
        real_directory: is_vital(&destination),
        on_proc_file: PROC_FILES
            .iter()
            .any(|file| destination.as_bytes() == file.as_bytes()),
        destination,
        attributes: options.attributes,
        recursive: options.recursive_with_propagation(is_bind(mount)),
        source,
        late_readonly: false,
        links: Vec::new(),
        id_map,
    })
}

/// The maps of the mount itself; with the option `idmap` or `ridmap` alone those of the container
/// (OCI runtime specification, config.md "Mounts"). Without either option the mounts below are mapped
/// if they are there: never a part of what was asked for.
fn id_map(mount: &Mount, options: &Options, user: Option<&IdMaps>) -> Result<Option<IdMapPlan>> {
    let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
    let own = IdMaps::from_oci("mounts", uids.as_ref(), gids.as_ref())?;
    let maps = match (own, options.id_mapped) {
        (None, None) => return Ok(None),
        (Some(own), _) => own,
        (None, Some(_)) => user.cloned().ok_or_else(|| {
            Error::invalid("id mapping: neither the mount nor the container has id mappings")
        })?,
    };
    if !is_bind(mount) {
        return Err(Error::invalid("id mappings are for bind mounts only"));
    }
    let recursive = options.id_mapped.or(options.bind) != Some(false);
    Ok(Some(IdMapPlan { maps, recursive }))
}

/// The group of terminals, where it has no id inside: the kernel would refuse the mount.
fn leave_out_unmapped_group(mount: &Mount, maps: &IdMaps, options: &mut Options) {
    if mount.typ().as_deref() == Some("devpts") {
        options.data.retain(|(key, value)| {
            let gid = value
                .as_ref()
                .and_then(|value| value.to_str().ok()?.parse().ok());
            key.as_c_str() != c"gid" || gid.is_none_or(|gid| maps.outside_gid(gid).is_some())
        });
    }
}

/// Directories whose replacement by a link would move the runtime's own work elsewhere.
fn is_vital(destination: &CString) -> bool {
    ["proc", "sys", "dev"]
        .iter()
        .any(|vital| destination.as_bytes() == vital.as_bytes())
}

fn bind(mount: &Mount, options: &Options) -> Result<Source> {
    if let Some((key, _)) = options.data.first() {
        return Err(Error::invalid(format!(
            "option {:?} is not for bind mounts",
            key.to_string_lossy()
        )));
    }
    let Some(path) = mount
        .source()
        .clone()
        .filter(|path| !path.as_os_str().is_empty())
    else {
        return Err(Error::invalid("a bind mount needs a source"));
    };
    if !path.is_absolute() {
        return Err(Error::invalid(format!(
            "source {} is not absolute",
            path.display()
        )));
    }
    let needs = match options.propagation {
        Some((libc::MS_SHARED, _)) => Some(Peer::Shared),
        Some((libc::MS_SLAVE, _)) => Some(Peer::SharedOrSlave),
        _ => None,
    };
    Ok(Source::Bind {
        path,
        recursive: options.bind == Some(true) || options.bind.is_none(),
        optional: false,
        needs,
    })
}

fn filesystem(mount: &Mount, options: &Options, label: Option<&str>) -> Result<Source> {
    let Some(kind) = mount
        .typ()
        .as_deref()
        .filter(|kind| !kind.is_empty() && *kind != "none")
    else {
        return Err(Error::invalid("neither a type nor a bind mount"));
    };
    let mut data = options.data.clone();
    if let (Some(label), "tmpfs" | "devpts" | "mqueue") = (label, kind) {
        data.push((
            c"context".to_owned(),
            Some(c_string("linux.mountLabel", label)?),
        ));
    }
    let source = match mount.source() {
        Some(source) if !source.as_os_str().is_empty() => {
            Some(c_string("source", source.as_os_str().as_encoded_bytes())?)
        }
        _ => None,
    };
    Ok(Source::Filesystem {
        kind: c_string("type", kind)?,
        source,
        options: data,
    })
}

/// A container's view of control groups. With version 2 alone the file system itself, whose root
/// is that of the cgroup namespace. With version 1 a tmpfs with the container's own directory of each
/// hierarchy, and links for controllers mounted together, as systemd lays the node's out.
fn cgroup(spec: &Spec, mount: &Mount, features: &Features) -> Result<Vec<MountPlan>> {
    let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
    let hybrid = features
        .cgroup_mounts
        .iter()
        .any(|mount| !mount.controllers.is_empty());
    let base = MountPlan {
        destination: relative(mount.destination())?,
        source: Source::Filesystem {
            kind: c"cgroup2".to_owned(),
            source: Some(c"cgroup".to_owned()),
            options: Vec::new(),
        },
        attributes: options.attributes,
        recursive: Attributes::default(),
        late_readonly: false,
        real_directory: false,
        on_proc_file: false,
        links: Vec::new(),
        id_map: None,
    };
    if !hybrid || mount.typ().as_deref() == Some("cgroup2") {
        return Ok(vec![base]);
    }
    let mut top = base.clone();
    top.source = Source::Filesystem {
        kind: c"tmpfs".to_owned(),
        source: Some(c"tmpfs".to_owned()),
        options: vec![
            (c"mode".to_owned(), Some(c"755".to_owned())),
            (c"size".to_owned(), Some(c"64k".to_owned())),
        ],
    };
    let own = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone());
    let mut plans = Vec::new();
    for hierarchy in &features.cgroup_mounts {
        let (Some(own), Some(name)) = (&own, hierarchy.path.file_name()) else {
            continue;
        };
        for controller in &hierarchy.controllers {
            if hierarchy.controllers.len() > 1 && name != controller.as_str() {
                top.links.push((
                    c_string("controller", controller.as_str())?,
                    c_string("hierarchy", name.as_encoded_bytes())?,
                ));
            }
        }
        plans.push(MountPlan {
            destination: relative(&mount.destination().join(name))?,
            source: Source::Bind {
                path: hierarchy.path.join(own.strip_prefix("/").unwrap_or(own)),
                recursive: false,
                optional: true,
                needs: None,
            },
            recursive: Attributes {
                propagation: libc::MS_PRIVATE,
                ..Attributes::default()
            },
            ..base.clone()
        });
    }
    plans.insert(0, top);
    Ok(plans)
}

/// `linux.rootfsPropagation` as the flag for the root mount; 0 leaves it private. Volumes have
/// their own.
pub(super) fn root_propagation(text: Option<&str>) -> Result<u64> {
    match text {
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => Ok(0),
        Some("shared" | "rshared") => Ok(libc::MS_SHARED),
        Some("unbindable" | "runbindable") => Ok(libc::MS_UNBINDABLE),
        Some(other) => Err(Error::invalid(format!(
            "linux.rootfsPropagation: unknown value {other:?}"
        ))),
    }
}

fn refused_option(option: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("mount option {option:?}: {why}"),
    )
}

#[cfg(test)]
mod tests;
