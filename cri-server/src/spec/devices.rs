//! Device nodes a container gets, and the rules of its device cgroup.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// A device of the node, resolved: a request's links are followed and its directories spread out by
/// the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Where it is made in the container.
    pub path: PathBuf,
    /// A block device, else a character device.
    pub block: bool,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// The node's file mode, permission bits only.
    pub mode: u32,
    /// The node's owner.
    pub uid: u32,
    /// The node's group.
    pub gid: u32,
    /// Some of `rwm`.
    pub permissions: String,
}

/// What every container may use: its default devices, its terminals, and making (not opening) any
/// node. Major and minor from `admin-guide/devices.txt`; the list is the OCI runtime
/// specification's, "Default Devices", with `/dev/console` and `/dev/ptmx`.
const ALWAYS: [(LinuxDeviceType, Option<i64>, Option<i64>, &str); 11] = [
    (LinuxDeviceType::C, None, None, "m"),
    (LinuxDeviceType::B, None, None, "m"),
    (LinuxDeviceType::C, Some(1), Some(3), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(5), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(7), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(8), "rwm"),
    (LinuxDeviceType::C, Some(1), Some(9), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(0), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(1), "rwm"),
    (LinuxDeviceType::C, Some(5), Some(2), "rwm"),
    (LinuxDeviceType::C, Some(136), None, "rwm"),
];

/// Nodes of the node's `/dev` a privileged container has its own of.
const OWN: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
];

/// Trees of the node's `/dev` that are mounts of their own.
const OTHER_MOUNTS: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/hugepages"];

/// The nodes to make. `node` are all of the node's, which only privileged containers get.
pub fn nodes(
    asked: &[HostDevice],
    node: &[HostDevice],
    privileged: bool,
) -> Option<Vec<LinuxDevice>> {
    let mut nodes: Vec<&HostDevice> = Vec::new();
    let all = node
        .iter()
        .filter(|device| privileged && !is_own(&device.path));
    for device in asked.iter().chain(all) {
        if nodes.iter().all(|known| known.path != device.path) {
            nodes.push(device);
        }
    }
    let nodes: Vec<_> = nodes.into_iter().map(linux_device).collect();
    (!nodes.is_empty()).then_some(nodes)
}

/// The rules, of which the last that matches decides.
pub fn rules(asked: &[HostDevice], privileged: bool) -> Vec<LinuxDeviceCgroup> {
    if privileged {
        return vec![rule(true, LinuxDeviceType::A, None, None, "rwm")];
    }
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, None, "rwm")];
    rules.extend(
        ALWAYS
            .iter()
            .map(|(kind, major, minor, access)| rule(true, *kind, *major, *minor, access)),
    );
    rules.extend(asked.iter().map(|device| {
        rule(
            true,
            kind(device),
            Some(device.major),
            Some(device.minor),
            &device.permissions,
        )
    }));
    rules
}

fn is_own(path: &Path) -> bool {
    OWN.iter().any(|own| path == Path::new(own))
        || OTHER_MOUNTS.iter().any(|mount| path.starts_with(mount))
}

fn kind(device: &HostDevice) -> LinuxDeviceType {
    if device.block {
        LinuxDeviceType::B
    } else {
        LinuxDeviceType::C
    }
}

fn linux_device(device: &HostDevice) -> LinuxDevice {
    let mut linux = LinuxDevice::default();
    linux
        .set_path(device.path.clone())
        .set_typ(kind(device))
        .set_major(device.major)
        .set_minor(device.minor)
        .set_file_mode(Some(device.mode & 0o7777))
        .set_uid(Some(device.uid))
        .set_gid(Some(device.gid));
    linux
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(kind))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, major: i64, minor: i64) -> HostDevice {
        HostDevice {
            path: path.into(),
            block: major == 8,
            major,
            minor,
            mode: 0o660,
            uid: 0,
            gid: 6,
            permissions: "rw".into(),
        }
    }

    #[test]
    fn a_privileged_container_has_the_node_s_devices_and_its_own_terminals() {
        let node = [
            device("/dev/null", 1, 3),
            device("/dev/pts/0", 136, 0),
            device("/dev/sda", 8, 0),
            device("/dev/fuse", 10, 229),
        ];
        let asked = [device("/dev/fuse", 10, 229)];
        let paths = |privileged| -> Vec<_> {
            let nodes = nodes(&asked, &node, privileged).unwrap();
            nodes.iter().map(|node| node.path().clone()).collect()
        };
        assert_eq!(paths(false), [PathBuf::from("/dev/fuse")]);
        assert_eq!(paths(true), ["/dev/fuse", "/dev/sda"].map(PathBuf::from));
        assert_eq!(nodes(&[], &node, false), None);
    }

    #[test]
    fn rules_deny_all_but_the_defaults_and_what_was_asked_for() {
        let rules = rules(&[device("/dev/sda", 8, 0)], false);
        assert!(!rules[0].allow() && rules[0].typ() == Some(LinuxDeviceType::A));
        assert!(rules[1..].iter().all(LinuxDeviceCgroup::allow));
        let last = rules.last().unwrap();
        assert_eq!(
            (last.typ(), last.major()),
            (Some(LinuxDeviceType::B), Some(8))
        );
        assert_eq!(last.access().as_deref(), Some("rw"));
        let open = super::rules(&[], true);
        assert_eq!(open.len(), 1);
        assert!(open[0].allow());
    }
}
