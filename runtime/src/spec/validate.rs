//! Every refusal that needs no kernel: a spec that contradicts itself, and fields of the OCI
//! runtime specification that are not honoured yet. A field may be refused, never dropped.

use std::path::{Component, Path};

use oci_spec::runtime::{Hooks, Linux, LinuxNamespaceType, Mount, Process, Spec};

use super::sysctl;
use crate::error::{Error, ErrorKind, Result};
use crate::idmap::IdMaps;

/// The longest single argument or environment string execve takes (MAX_ARG_STRLEN, 32 pages, with its NUL).
const MAX_STRING: usize = 131_071;
/// The most mounts, devices, paths or strings of one kind.
const MAX_ENTRIES: usize = 16_384;
/// The longest path (PATH_MAX with its NUL).
const MAX_PATH: usize = 4095;

/// Checks a whole container's spec.
pub fn spec(spec: &Spec) -> Result<()> {
    let Some(process) = spec.process() else {
        return Err(Error::invalid("OCI spec: no process"));
    };
    exec_process(process)?;
    let Some(linux) = spec.linux() else {
        return Err(Error::invalid("OCI spec: no linux section"));
    };
    refuse_foreign(spec)?;
    refuse_unsupported(linux)?;
    namespaces(linux)?;
    host_name("hostname", spec.hostname().as_deref(), linux)?;
    host_name("domainname", spec.domainname().as_deref(), linux)?;
    sysctls(linux)?;
    for mount in spec.mounts().iter().flatten() {
        mount_entry(mount)?;
    }
    bounded("mounts", spec.mounts().as_ref().map_or(0, Vec::len))?;
    for (field, paths) in [
        ("maskedPaths", linux.masked_paths()),
        ("readonlyPaths", linux.readonly_paths()),
    ] {
        let paths = paths.as_deref().unwrap_or_default();
        bounded(field, paths.len())?;
        for path in paths {
            container_path(&format!("linux.{field}"), Path::new(path))?;
        }
    }
    let devices = linux.devices().as_deref().unwrap_or_default();
    bounded("devices", devices.len())?;
    for device in devices {
        container_path("linux.devices", device.path())?;
    }
    if process.terminal() == Some(true)
        && !spec
            .mounts()
            .iter()
            .flatten()
            .any(|mount| mount.typ().as_deref() == Some("devpts"))
    {
        return Err(Error::invalid(
            "process.terminal: the container has no devpts mount to make a terminal in",
        ));
    }
    Ok(())
}

/// Checks a process: a container's or an exec's.
pub fn exec_process(process: &Process) -> Result<()> {
    let arguments = process.args().as_deref().unwrap_or_default();
    if arguments.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("process.args: no command specified"));
    }
    let environment = process.env().as_deref().unwrap_or_default();
    bounded("args", arguments.len())?;
    bounded("env", environment.len())?;
    for (index, argument) in arguments.iter().enumerate() {
        exec_string(&format!("process.args[{index}]"), argument)?;
    }
    for assignment in environment {
        let name = assignment.split('=').next().unwrap_or_default();
        if name.is_empty() || name.len() == assignment.len() {
            return Err(Error::invalid(format!(
                "process.env: {name:?} is no assignment NAME=VALUE"
            )));
        }
        exec_string(&format!("process.env: {name}"), assignment)?;
    }
    container_path_or_root("process.cwd", process.cwd())?;
    if process.user().uid() == u32::MAX || process.user().gid() == u32::MAX {
        return Err(Error::invalid("process.user: 4294967295 is not a valid id"));
    }
    if process.user().umask().is_some_and(|umask| umask > 0o777) {
        return Err(Error::invalid("process.user.umask: more than 0777"));
    }
    let limits = process.rlimits().as_deref().unwrap_or_default();
    bounded("rlimits", limits.len())?;
    for (index, limit) in limits.iter().enumerate() {
        if limit.soft() > limit.hard() {
            return Err(Error::invalid(format!(
                "process.rlimits: {:?} has a soft limit above its hard limit",
                limit.typ()
            )));
        }
        if limits
            .iter()
            .take(index)
            .any(|other| other.typ() == limit.typ())
        {
            return Err(Error::invalid(format!(
                "process.rlimits: {:?} is given twice",
                limit.typ()
            )));
        }
    }
    unsupported("process.ioPriority", process.io_priority().is_some())?;
    unsupported("process.scheduler", process.scheduler().is_some())?;
    unsupported(
        "process.execCPUAffinity",
        process.exec_cpu_affinity().is_some(),
    )?;
    unsupported("process.commandLine", process.command_line().is_some())
}

fn refuse_foreign(spec: &Spec) -> Result<()> {
    unsupported("solaris", spec.solaris().is_some())?;
    unsupported("windows", spec.windows().is_some())?;
    unsupported("vm", spec.vm().is_some())?;
    unsupported("zos", spec.zos().is_some())?;
    unsupported("hooks", spec.hooks().as_ref().is_some_and(any_hook))
}

fn any_hook(hooks: &Hooks) -> bool {
    [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ]
    .into_iter()
    .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
}

fn refuse_unsupported(linux: &Linux) -> Result<()> {
    unsupported(
        "linux.netDevices",
        linux
            .net_devices()
            .as_ref()
            .is_some_and(|devices| !devices.is_empty()),
    )?;
    unsupported("linux.intelRdt", linux.intel_rdt().is_some())?;
    unsupported("linux.memoryPolicy", linux.memory_policy().is_some())?;
    unsupported("linux.personality", linux.personality().is_some())?;
    unsupported(
        "linux.timeOffsets",
        linux
            .time_offsets()
            .as_ref()
            .is_some_and(|offsets| !offsets.is_empty()),
    )
}

fn namespaces(linux: &Linux) -> Result<()> {
    let list = linux.namespaces().as_deref().unwrap_or_default();
    for (index, namespace) in list.iter().enumerate() {
        let kind = namespace.typ();
        if list.iter().take(index).any(|other| other.typ() == kind) {
            return Err(Error::invalid(format!(
                "linux.namespaces: {kind} is given twice"
            )));
        }
        unsupported(
            &format!("linux.namespaces: {kind}"),
            kind == LinuxNamespaceType::Time,
        )?;
    }
    let maps = IdMaps::from_oci(
        "linux",
        linux.uid_mappings().as_ref(),
        linux.gid_mappings().as_ref(),
    )?;
    if maps.is_some() != has_namespace(linux, LinuxNamespaceType::User) {
        return Err(Error::invalid(
            "linux.uidMappings, gidMappings: come with a user namespace and only then",
        ));
    }
    let mount = list
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    match mount {
        Some(mount) if mount.path().is_none() => Ok(()),
        _ => Err(Error::invalid(
            "linux.namespaces: a new mount namespace is needed, without a path",
        )),
    }
}

fn has_namespace(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == kind)
}

fn host_name(field: &str, name: Option<&str>, linux: &Linux) -> Result<()> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    if name.len() > 64 || name.bytes().any(|byte| byte == 0 || byte == b'\n') {
        return Err(Error::invalid(format!(
            "{field}: at most 64 bytes, one line"
        )));
    }
    if !has_namespace(linux, LinuxNamespaceType::Uts) {
        return Err(Error::invalid(format!(
            "{field}: needs a UTS namespace, or it would change the node's"
        )));
    }
    Ok(())
}

fn sysctls(linux: &Linux) -> Result<()> {
    let list = linux.sysctl().iter().flatten();
    bounded("sysctl", list.clone().count())?;
    for (name, value) in list {
        sysctl::check_value(name, value)?;
        let needed = match sysctl::parse(name)?.scope {
            sysctl::Scope::Ipc => LinuxNamespaceType::Ipc,
            sysctl::Scope::Network => LinuxNamespaceType::Network,
        };
        if !has_namespace(linux, needed) {
            return Err(Error::invalid(format!(
                "sysctl {name}: the {needed} namespace is the node's"
            )));
        }
    }
    Ok(())
}

fn mount_entry(mount: &Mount) -> Result<()> {
    container_path("mounts: destination", mount.destination())?;
    let at = mount.destination().display();
    IdMaps::from_oci(
        &format!("mounts: {at}"),
        mount.uid_mappings().as_ref(),
        mount.gid_mappings().as_ref(),
    )?;
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    if source.as_os_str().len() > MAX_PATH || has_nul(source) {
        return Err(Error::invalid(format!(
            "mounts: the source of {at} is not a path"
        )));
    }
    bounded(
        "mount options",
        mount.options().as_ref().map_or(0, Vec::len),
    )
}

/// A path inside the container that is not its root: absolute, without `..`.
fn container_path(field: &str, path: &Path) -> Result<()> {
    container_path_or_root(field, path)?;
    if path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::CurDir))
    {
        return Err(Error::invalid(format!(
            "{field}: {} is the container's root",
            path.display()
        )));
    }
    Ok(())
}

fn container_path_or_root(field: &str, path: &Path) -> Result<()> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::invalid(format!(
            "{field}: {shown:?} is not absolute",
            shown = shown.to_string()
        )));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Error::invalid(format!("{field}: {shown} holds \"..\"")));
    }
    if path.as_os_str().len() > MAX_PATH || has_nul(path) {
        return Err(Error::invalid(format!("{field}: not a path")));
    }
    Ok(())
}

fn has_nul(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

fn exec_string(what: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::invalid(format!("{what} holds a NUL byte")));
    }
    if text.len() > MAX_STRING {
        return Err(Error::new(
            ErrorKind::CommandNotExecutable,
            format!(
                "{what} has {} bytes: argument list too long (the kernel takes {MAX_STRING} in one string)",
                text.len()
            ),
        ));
    }
    Ok(())
}

fn bounded(field: &str, count: usize) -> Result<()> {
    if count > MAX_ENTRIES {
        return Err(Error::invalid(format!(
            "{field}: {count} entries, at most {MAX_ENTRIES}"
        )));
    }
    Ok(())
}

fn unsupported(field: &str, asked: bool) -> Result<()> {
    if asked {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{field}: not supported yet"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
