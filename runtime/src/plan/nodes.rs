//! Device nodes and links of a container's `/dev`: the default ones of the OCI runtime
//! specification (config-linux.md, "Default Devices") and those of the spec.

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::FileType;

use super::{c_string, mounts, relative};
use crate::error::{Error, Result};

/// What is made in `/dev`.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodePlan {
    pub(crate) devices: Vec<DeviceNode>,
    /// Name in `/dev` and where it points to.
    pub(crate) links: Vec<(CString, CString)>,
}

/// A node to make.
#[derive(Clone, Debug)]
pub(crate) struct DeviceNode {
    /// Its directory, relative to the root.
    pub(crate) directory: CString,
    pub(crate) name: CString,
    pub(crate) kind: FileType,
    pub(crate) number: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Name, major and minor (Documentation/admin-guide/devices.txt); all 0666.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links that programs expect (config-linux.md, "Default Symbolic Links").
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

pub(crate) fn plan(spec: &Spec) -> Result<NodePlan> {
    let mut plan = NodePlan::default();
    let linux = spec.linux().as_ref();
    let asked = linux
        .and_then(|linux| linux.devices().as_deref())
        .unwrap_or_default();
    let at_dev =
        spec.mounts().iter().flatten().find(|mount| {
            relative(mount.destination()).is_ok_and(|path| path.as_c_str() == c"dev")
        });
    let borrowed = at_dev.is_some_and(mounts::is_bind);
    for (name, major, minor) in DEFAULT_DEVICES {
        let path = Path::new("/dev").join(name);
        if !borrowed && asked.iter().all(|device| *device.path() != path) {
            plan.devices.push(DeviceNode {
                directory: c"dev".to_owned(),
                name: c_string(name, name)?,
                kind: FileType::CharacterDevice,
                number: rustix::fs::makedev(major, minor),
                mode: 0o666,
                uid: 0,
                gid: 0,
            });
        }
    }
    for device in asked {
        plan.devices.push(node(device)?);
    }
    // Links only into a /dev of the container's own: an image's or the node's is left as it is.
    if at_dev.is_some() && !borrowed {
        for (name, target) in LINKS {
            plan.links
                .push((c_string(name, name)?, c_string(target, target)?));
        }
    }
    Ok(plan)
}

fn node(device: &LinuxDevice) -> Result<DeviceNode> {
    let shown = device.path().display();
    let invalid = |why: &str| Error::invalid(format!("linux.devices: {shown}: {why}"));
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(invalid("type \"a\" is for rules only")),
    };
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| invalid("its number is negative or too large"))
    };
    let (Some(directory), Some(name)) = (device.path().parent(), device.path().file_name()) else {
        return Err(invalid("not a file's path"));
    };
    Ok(DeviceNode {
        directory: relative(directory)?,
        name: c_string("linux.devices", name.as_encoded_bytes())?,
        kind,
        number: match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(number(device.major())?, number(device.minor())?),
        },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}
