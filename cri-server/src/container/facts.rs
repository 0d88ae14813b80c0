//! What CreateContainer has to read of the node before its spec can be decided.

use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bulkhead_runtime::features::Features;

use crate::config::SeccompWhenUnset;
use crate::failure::{Doing, Failure};
use crate::request::container::ContainerRequest;
use crate::request::mount::{DeviceRequest, MountRequest};
use crate::security::apparmor::Policy;
use crate::security::seccomp::{self, MAX_FILE, SeccompChoice};
use crate::spec::NodeFacts;
use crate::spec::devices::HostDevice;
use crate::spec::mount_table::MountTable;

/// The most devices below a directory.
const MAX_DEVICES: usize = 4096;

/// How deep directories of devices are looked into.
const MAX_DEPTH: usize = 16;

/// The node as the mapping sees it.
pub(super) fn node(features: &Features, apparmor: Option<Policy>) -> NodeFacts {
    NodeFacts {
        kernel: features.kernel,
        apparmor,
        selinux: features.selinux,
        seccomp: features.seccomp,
        last_capability: features.last_capability,
        held_capabilities: features.held_capabilities,
    }
}

/// The node's mounts.
pub(super) fn mount_table() -> Result<MountTable, Failure> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(path).doing(format!("read {path}"))?;
    Ok(MountTable::parse(&text))
}

/// The source of each mount with the links of the node followed; empty for an image. A missing one
/// becomes a directory, as with the peers: pods rely on it.
pub(super) fn mount_sources(mounts: &[MountRequest]) -> Result<Vec<PathBuf>, Failure> {
    mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| {
            if mount.image.is_some() {
                return Ok(PathBuf::new());
            }
            let path = &mount.host_path;
            let doing = format!("mounts[{index}].host_path {}", path.display());
            match path.canonicalize() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !mount.must_exist => {
                    let mut builder = std::fs::DirBuilder::new();
                    builder
                        .recursive(true)
                        .mode(0o755)
                        .create(path)
                        .doing(&doing)?;
                    path.canonicalize().doing(&doing)
                }
                other => other.doing(&doing),
            }
        })
        .collect()
}

/// The devices asked for: links followed, a directory is all devices below.
pub(super) fn devices(requests: &[DeviceRequest]) -> Result<Vec<HostDevice>, Failure> {
    let mut found = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let field = format!("devices[{index}].host_path {}", request.host_path.display());
        let host = request.host_path.canonicalize().doing(&field)?;
        let before = found.len();
        collect(
            &host,
            &request.container_path,
            &request.permissions,
            MAX_DEPTH,
            &mut found,
        )
        .map_err(|failure| failure.context(&field))?;
        for device in found.iter_mut().skip(before) {
            changed(device, request);
        }
        if found.len() == before {
            return Err(Failure::invalid(format!(
                "{field}: neither a device nor a directory of some"
            )));
        }
    }
    Ok(found)
}

/// What a request says of a device goes before what the node has.
fn changed(device: &mut HostDevice, request: &DeviceRequest) {
    let number = request.number;
    device.block = number.block.unwrap_or(device.block);
    device.major = number.major.unwrap_or(device.major);
    device.minor = number.minor.unwrap_or(device.minor);
    device.mode = request.mode.unwrap_or(device.mode);
    device.uid = request.uid.unwrap_or(device.uid);
    device.gid = request.gid.unwrap_or(device.gid);
}

/// Every device of the node, for privileged containers.
pub(super) fn node_devices() -> Result<Vec<HostDevice>, Failure> {
    let mut found = Vec::new();
    collect(
        Path::new("/dev"),
        Path::new("/dev"),
        "rwm",
        MAX_DEPTH,
        &mut found,
    )?;
    Ok(found)
}

fn collect(
    host: &Path,
    inside: &Path,
    permissions: &str,
    depth: usize,
    found: &mut Vec<HostDevice>,
) -> Result<(), Failure> {
    let stat = match std::fs::symlink_metadata(host) {
        Ok(stat) => stat,
        // Devices come and go while a directory is read.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).doing(format!("look at {}", host.display())),
    };
    let kind = stat.file_type();
    if kind.is_dir() && depth > 0 {
        for entry in std::fs::read_dir(host).doing(format!("read {}", host.display()))? {
            let name = entry.doing(format!("read {}", host.display()))?.file_name();
            collect(
                &host.join(&name),
                &inside.join(&name),
                permissions,
                depth - 1,
                found,
            )?;
        }
    } else if kind.is_block_device() || kind.is_char_device() {
        if found.len() >= MAX_DEVICES {
            return Err(Failure::invalid(format!("more than {MAX_DEVICES} devices")));
        }
        found.push(HostDevice {
            path: inside.to_owned(),
            block: kind.is_block_device(),
            major: i64::from(rustix::fs::major(stat.rdev())),
            minor: i64::from(rustix::fs::minor(stat.rdev())),
            mode: stat.mode() & 0o777,
            uid: stat.uid(),
            gid: stat.gid(),
            permissions: permissions.to_owned(),
        });
    }
    Ok(())
}

/// The content of the profile a request names, if it names one.
pub(super) fn seccomp_file(
    request: &ContainerRequest,
    unset: SeccompWhenUnset,
) -> Result<Option<Vec<u8>>, Failure> {
    let security = &request.security;
    let choice = seccomp::choose(security.seccomp.as_ref(), security.privileged, unset);
    let SeccompChoice::Localhost(path) = choice else {
        return Ok(None);
    };
    let doing = format!("seccomp profile {path}");
    let file = std::fs::File::open(&path).doing(&doing)?;
    if !file.metadata().doing(&doing)?.is_file() {
        return Err(Failure::invalid(format!("{doing}: not a regular file")));
    }
    let most = u64::try_from(MAX_FILE).unwrap_or(u64::MAX - 1);
    let mut content = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut content)
        .doing(&doing)?;
    if content.len() > MAX_FILE {
        return Err(Failure::invalid(format!(
            "{doing}: larger than {MAX_FILE} bytes"
        )));
    }
    Ok(Some(content))
}
