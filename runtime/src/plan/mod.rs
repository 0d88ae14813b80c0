//! From an OCI spec to what a launch will do, pure: decided, ordered, and every string already a C
//! string, so that the child only makes system calls.

pub mod cgroup;
pub(crate) mod command;
pub mod devices;
pub(crate) mod identity;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod nodes;
pub mod seccomp;

use std::ffi::CString;
use std::path::{Component, Path};

use oci_spec::runtime::{Process, Spec};

use crate::error::{Error, Result};
use crate::features::Features;
use crate::idmap::IdMaps;
use crate::spec::sysctl;

/// A launch, decided. Private to one build: never stored, never sent.
#[derive(Debug)]
pub struct Plan {
    pub(crate) namespaces: namespaces::NamespacePlan,
    pub(crate) mounts: Vec<mounts::MountPlan>,
    pub(crate) nodes: nodes::NodePlan,
    pub(crate) masked: Vec<CString>,
    pub(crate) readonly: Vec<CString>,
    pub(crate) sysctls: Vec<(CString, Vec<u8>)>,
    pub(crate) hostname: Option<Vec<u8>>,
    pub(crate) domainname: Option<Vec<u8>>,
    pub(crate) root_readonly: bool,
    pub(crate) root_propagation: u64,
    pub(crate) mount_label: Option<String>,
    pub(crate) process: ProcessPlan,
}

/// The part of a launch that an exec has too.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) identity: identity::IdentityPlan,
    pub(crate) command: command::CommandPlan,
}

/// Decides a container's launch. Also for trying a spec out before anything is made.
pub fn container(spec: &Spec, features: &Features) -> Result<Plan> {
    crate::spec::spec(spec)?;
    let (Some(process), Some(linux)) = (spec.process(), spec.linux()) else {
        return Err(Error::invalid("OCI spec: no process or linux section"));
    };
    let namespaces = namespaces::plan(linux)?;
    let own_uts = namespaces.makes(linux_raw_sys::general::CLONE_NEWUTS);
    let name = |text: &Option<String>| {
        text.as_ref()
            .filter(|text| own_uts && !text.is_empty())
            .map(|text| text.clone().into_bytes())
    };
    let mount_label = linux
        .mount_label()
        .clone()
        .filter(|label| !label.is_empty());
    if mount_label.is_some() && !features.selinux {
        return Err(identity::lsm_absent("linux.mountLabel", "SELinux"));
    }
    let paths = |list: &Option<Vec<String>>| -> Result<Vec<CString>> {
        list.iter()
            .flatten()
            .map(|path| relative(Path::new(path)))
            .collect()
    };
    let maps = namespaces.user.as_ref().map(|user| &user.maps);
    Ok(Plan {
        mounts: mounts::plan(spec, mount_label.as_deref(), maps, features)?,
        nodes: nodes::plan(spec)?,
        masked: paths(linux.masked_paths())?,
        readonly: paths(linux.readonly_paths())?,
        sysctls: sysctls(linux.sysctl().iter().flatten())?,
        hostname: name(spec.hostname()),
        domainname: name(spec.domainname()),
        root_readonly: spec.root().as_ref().and_then(|root| root.readonly()) == Some(true),
        root_propagation: mounts::root_propagation(linux.rootfs_propagation().as_deref())?,
        mount_label,
        process: self::process(process, maps, features)?,
        namespaces,
    })
}

/// Decides what a process becomes: a container's init or an exec. `maps` are those of the user
/// namespace it is in.
pub(crate) fn process(
    process: &Process,
    maps: Option<&IdMaps>,
    features: &Features,
) -> Result<ProcessPlan> {
    if let Some(maps) = maps {
        identity::check_mapped(process.user(), maps)?;
    }
    Ok(ProcessPlan {
        identity: identity::plan(process, features)?,
        command: command::plan(process)?,
    })
}

/// Paths and values of kernel parameters, in the order of their names.
pub(crate) fn sysctls<'a>(
    list: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<(CString, Vec<u8>)>> {
    let mut planned = list
        .map(|(name, value)| {
            sysctl::check_value(name, value)?;
            Ok((sysctl::parse(name)?.path, value.clone().into_bytes()))
        })
        .collect::<Result<Vec<_>>>()?;
    planned.sort();
    Ok(planned)
}

/// A container path as the child resolves it: relative to the root, without `.` or doubled slashes;
/// `.` for the root itself.
pub(crate) fn relative(path: &Path) -> Result<CString> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.as_encoded_bytes()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::invalid(format!("{} holds \"..\"", path.display())));
            }
        }
    }
    if parts.is_empty() {
        parts.push(b".");
    }
    c_string(&path.display().to_string(), parts.join(&b'/'))
}

/// A C string; `what` names it in the error.
pub(crate) fn c_string(what: &str, bytes: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid(format!("{what:?} holds a NUL byte")))
}

#[cfg(test)]
pub(crate) mod tests;
