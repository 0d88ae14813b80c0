//! One probe at start of what the kernel and the node offer, into plain values. Fallbacks are
//! decided and told here once, never chosen silently per call.
//!
//! The kernel must be 5.12 or newer: openat2 (5.6), mount_setattr (5.12), close_range with
//! CLOSE_RANGE_CLOEXEC (5.11), clone3 (5.3) and pidfds (5.4) are used without a fallback. Control
//! groups have their own probe in `cgroup`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, ErrorKind, Result};
use crate::sys;

/// The oldest kernel the launcher runs on.
const MINIMUM: (u32, u32) = (5, 12);

/// The most mount table read for control group hierarchies, in bytes.
const MAX_MOUNT_TABLE: u64 = 16 << 20;

/// A control group hierarchy's mount on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Version 1: its controllers or `name=…`; empty for version 2.
    pub controllers: Vec<String>,
}

/// What the kernel and the node offer, as the launcher needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Release of the running kernel, major and minor.
    pub kernel: (u32, u32),
    /// Overlay layers are given by descriptor (6.13). Otherwise as `/proc/self/fd/<n>`.
    pub overlay_descriptors: bool,
    /// Overlay lower layers are given one by one with `lowerdir+` (6.7). Otherwise joined by colons,
    /// at most 14 layers.
    pub overlay_append: bool,
    /// A detached mount can be cloned, and be a layer of an overlay (6.15). Otherwise a pod's `/dev/shm` is
    /// mounted below its directory, and id-mapped layers are attached in a mount namespace for the while.
    pub clone_detached: bool,
    /// User namespaces can be made.
    pub user_namespaces: bool,
    /// AppArmor is enabled.
    pub apparmor: bool,
    /// SELinux is enabled.
    pub selinux: bool,
    /// seccomp filters can be loaded.
    pub seccomp: bool,
    /// The caller holds CAP_SYS_RESOURCE: hard limits can be raised and OOM scores lowered.
    pub sys_resource: bool,
    /// The highest capability number the kernel knows.
    pub last_capability: u32,
    /// The capabilities the caller holds, a mask as in `/proc/<pid>/status`. It can't give others.
    pub held_capabilities: u64,
    /// Where control group hierarchies are mounted, for containers that see their own part of them.
    pub cgroup_mounts: Vec<CgroupMount>,
}

/// One line of `bulkhead check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureReport {
    /// The feature's name.
    pub name: String,
    /// Whether this node has it.
    pub present: bool,
    /// What it is used for, and what happens without.
    pub used_for: String,
    /// What it would take to have it.
    pub how_to_get: String,
}

impl Features {
    /// Asks the kernel. Fails on kernels that are too old, with what is needed.
    pub fn probe() -> Result<Self> {
        let kernel = kernel_release(&rustix::system::uname().release().to_string_lossy())?;
        if kernel < MINIMUM {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "kernel {}.{} is too old: {}.{} or newer is needed (mount_setattr, openat2, close_range)",
                    kernel.0, kernel.1, MINIMUM.0, MINIMUM.1
                ),
            ));
        }
        let proc = sys::procfs::open_host()?;
        let last = sys::procfs::read(proc.as_fd(), c"sys/kernel/cap_last_cap", 16)?;
        let mounts = sys::procfs::read(proc.as_fd(), c"self/mountinfo", MAX_MOUNT_TABLE)?;
        let effective = sys::caps::effective().doing(|| "read the own capabilities")?;
        let (overlay_append, overlay_descriptors) = probe_overlay();
        Ok(Self {
            kernel,
            overlay_descriptors,
            overlay_append,
            clone_detached: probe_clone_detached(),
            user_namespaces: most_user_namespaces(proc.as_fd()) > 0,
            apparmor: is_yes("/sys/module/apparmor/parameters/enabled"),
            selinux: std::path::Path::new("/sys/fs/selinux/enforce").exists(),
            seccomp: std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            sys_resource: effective & sys::caps::SYS_RESOURCE != 0,
            last_capability: last.trim().parse().unwrap_or(40),
            held_capabilities: effective,
            cgroup_mounts: cgroup_mounts(&mounts),
        })
    }

    /// What people are told by `bulkhead check`.
    pub fn reports(&self) -> Vec<FeatureReport> {
        let report = |name: &str, present, used_for: &str, how_to_get: &str| FeatureReport {
            name: name.to_owned(),
            present,
            used_for: used_for.to_owned(),
            how_to_get: how_to_get.to_owned(),
        };
        vec![
            report(
                "overlay layers by descriptor",
                self.overlay_descriptors,
                "root file systems; without it layers are named through /proc/self/fd",
                "Linux 6.13",
            ),
            report(
                "overlay layers one by one",
                self.overlay_append,
                "images of many layers; without it an image may have at most 14",
                "Linux 6.7",
            ),
            report(
                "cloning detached mounts",
                self.clone_detached,
                "a pod's /dev/shm outside the node's mount table; without it a tmpfs below the pod's directory",
                "Linux 6.15",
            ),
            report(
                "user namespaces",
                self.user_namespaces,
                "pods with hostUsers: false; without it such pods are refused",
                "CONFIG_USER_NS and a positive sysctl user.max_user_namespaces",
            ),
            report(
                "AppArmor",
                self.apparmor,
                "confining containers by profile; without it a request for a profile is refused",
                "CONFIG_SECURITY_APPARMOR and apparmor in the kernel's lsm= list",
            ),
            report(
                "SELinux",
                self.selinux,
                "labels on processes and mounts; without it they are not applied",
                "CONFIG_SECURITY_SELINUX, a policy, and selinux in the kernel's lsm= list",
            ),
            report(
                "seccomp",
                self.seccomp,
                "filtering system calls; without it a request for a profile is refused",
                "CONFIG_SECCOMP_FILTER",
            ),
            report(
                "CAP_SYS_RESOURCE",
                self.sys_resource,
                "raising hard limits and lowering OOM scores; without it both are clamped to what is allowed",
                "run the daemon with CAP_SYS_RESOURCE",
            ),
        ]
    }
}

/// Major and minor of a release like `6.18.44-amd64`.
fn kernel_release(release: &str) -> Result<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the kernel's release {release:?} has no version number"),
        )),
    }
}

/// How many the caller may make; none without CONFIG_USER_NS.
fn most_user_namespaces(proc: BorrowedFd<'_>) -> u64 {
    sys::procfs::read(proc, c"sys/user/max_user_namespaces", 32)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn is_yes(path: &str) -> bool {
    std::fs::read(path).is_ok_and(|text| text.starts_with(b"Y"))
}

/// Whether overlay takes `lowerdir+`, and whether it takes it by descriptor. Nothing is mounted.
fn probe_overlay() -> (bool, bool) {
    let probe = |by_descriptor: bool| -> std::result::Result<(), rustix::io::Errno> {
        let context = sys::mount::open_filesystem(c"overlay")?;
        if by_descriptor {
            let root = rustix::fs::open(
                c"/",
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            rustix::mount::fsconfig_set_fd(context.as_fd(), c"lowerdir+", root.as_fd())
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), c"lowerdir+", c"/")
        }
    };
    (probe(false).is_ok(), probe(true).is_ok())
}

fn probe_clone_detached() -> bool {
    let probe = || -> std::result::Result<OwnedFd, rustix::io::Errno> {
        let first = sys::mount::clone_tree(CWD, c"/", false)?;
        sys::mount::clone_tree(first.as_fd(), c"", false)
    };
    probe().is_ok()
}

/// The hierarchies in a mount table (proc_pid_mountinfo(5)); of several mounts of one, the first.
fn cgroup_mounts(table: &str) -> Vec<CgroupMount> {
    let mut found: Vec<CgroupMount> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(3);
        let (Some("/"), Some(path)) = (left.next(), left.next()) else {
            continue; // only whole hierarchies, not parts of them
        };
        let mut right = right.split(' ');
        let controllers = match (right.next(), right.nth(1)) {
            (Some("cgroup2"), _) => Vec::new(),
            (Some("cgroup"), Some(options)) => options
                .split(',')
                .filter(|option| !NOT_CONTROLLERS.contains(option))
                .map(str::to_owned)
                .collect(),
            _ => continue,
        };
        // Mount points with blanks are escaped (\040); no distribution has such, so they are left out.
        if !path.contains('\\') && found.iter().all(|mount| mount.controllers != controllers) {
            found.push(CgroupMount {
                path: PathBuf::from(path),
                controllers,
            });
        }
    }
    found
}

/// Options of a v1 hierarchy that are not controllers (cgroup_show_options of kernel/cgroup/cgroup-v1.c).
const NOT_CONTROLLERS: [&str; 6] = [
    "rw",
    "ro",
    "clone_children",
    "noprefix",
    "xattr",
    "cpuset_v2_mode",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_up_to_the_minor_number() {
        for (release, wanted) in [
            ("6.18.44-fc-v669", Some((6, 18))),
            ("5.10-rc1", Some((5, 10))),
            ("6.1.0-13-amd64", Some((6, 1))),
            ("six", None),
            ("", None),
        ] {
            assert_eq!(kernel_release(release).ok(), wanted, "{release}");
        }
    }

    #[test]
    fn hierarchies_are_found_in_a_hybrid_mount_table() {
        let table = "\
22 1 0:5 / / rw - ext4 /dev/vda rw\n\
30 22 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:3 - cgroup2 cgroup2 rw\n\
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
34 30 0:28 /docker /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
35 30 0:28 / /again rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found: Vec<_> = cgroup_mounts(table)
            .into_iter()
            .map(|mount| {
                (
                    mount.path.display().to_string(),
                    mount.controllers.join("+"),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/unified".to_owned(), String::new()),
                (
                    "/sys/fs/cgroup/cpu,cpuacct".to_owned(),
                    "cpu+cpuacct".to_owned()
                ),
                (
                    "/sys/fs/cgroup/systemd".to_owned(),
                    "name=systemd".to_owned()
                ),
            ]
        );
    }
}
