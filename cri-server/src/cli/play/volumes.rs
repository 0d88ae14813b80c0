//! Volumes on the host: made before the containers, removed after them.
//!
//! A sub path is resolved below its volume by descriptor and bound to a place no container can
//! reach, as whoever writes to the volume could put a link there (CVE-2017-1002101, CVE-2021-25741).

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags};

use super::plan::{ContainerPlan, Folder, HostPathKind, Plan, Volume, VolumeKind};

/// Makes the pod's folder and all its volumes.
pub(super) fn prepare(plan: &Plan, folder: &Folder) -> anyhow::Result<()> {
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700);
    for directory in [folder.volumes(), folder.sub_paths(), folder.logs()] {
        let made = private.create(&directory);
        made.with_context(|| format!("make {}", directory.display()))?;
    }
    for volume in &plan.volumes {
        prepare_volume(volume, folder, plan.fs_group)
            .with_context(|| format!("volume {}", volume.name))?;
    }
    Ok(())
}

fn prepare_volume(volume: &Volume, folder: &Folder, group: Option<u32>) -> anyhow::Result<()> {
    let path = volume.path(folder);
    match &volume.kind {
        VolumeKind::Host { path, kind } => return prepare_host(path, *kind),
        VolumeKind::Directory => fs::create_dir(&path).context("make its directory")?,
        VolumeKind::Memory { bytes } => {
            fs::create_dir(&path).context("make its directory")?;
            let size = bytes
                .map(|bytes| format!(",size={bytes}"))
                .unwrap_or_default();
            let options = std::ffi::CString::new(format!("mode=0777{size}"))?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            rustix::mount::mount("tmpfs", &path, "tmpfs", flags, options.as_c_str())
                .context("mount its tmpfs")?;
        }
    }
    // As the kubelet: writable by all; with a group, new files take it.
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    if let Some(group) = group {
        std::os::unix::fs::chown(&path, None, Some(group)).context("give it to fsGroup")?;
    }
    fs::set_permissions(&path, Permissions::from_mode(mode)).context("set its mode")
}

/// Checks what the manifest says is at a host path, or makes it.
fn prepare_host(path: &Path, kind: HostPathKind) -> anyhow::Result<()> {
    let shown = path.display();
    let found = match fs::metadata(path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("look at {shown}")),
    };
    let Some(found) = found else {
        return match kind {
            HostPathKind::DirectoryOrCreate => DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .with_context(|| format!("make {shown}")),
            HostPathKind::FileOrCreate => fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path)
                .map(drop)
                .with_context(|| format!("make {shown}")),
            _ => bail!("{shown} is not there"),
        };
    };
    let file_type = found.file_type();
    let (right, wanted) = match kind {
        HostPathKind::Anything => (true, "anything"),
        HostPathKind::DirectoryOrCreate | HostPathKind::Directory => {
            (found.is_dir(), "a directory")
        }
        HostPathKind::FileOrCreate | HostPathKind::File => (found.is_file(), "a file"),
        HostPathKind::Socket => (file_type.is_socket(), "a socket"),
        HostPathKind::CharDevice => (file_type.is_char_device(), "a character device"),
        HostPathKind::BlockDevice => (file_type.is_block_device(), "a block device"),
    };
    ensure!(right, "{shown} is not {wanted}");
    Ok(())
}

/// Binds the sub paths a container mounts; what is bound already stays.
pub(super) fn bind_sub_paths(container: &ContainerPlan, folder: &Folder) -> anyhow::Result<()> {
    for mount in &container.mounts {
        let Some(sub_path) = &mount.sub_path else {
            continue;
        };
        let target = mount.sub_path_target(folder);
        if target.symlink_metadata().is_ok() {
            continue;
        }
        bind_sub_path(&mount.volume_path(folder), sub_path, &target).with_context(|| {
            format!(
                "subPath {} of volume {}",
                sub_path.display(),
                mount.volume.name
            )
        })?;
    }
    Ok(())
}

fn bind_sub_path(volume: &Path, sub_path: &Path, target: &Path) -> anyhow::Result<()> {
    let root = pathrs::Root::open(volume).context("open the volume")?;
    let handle = match root.resolve(sub_path) {
        Ok(handle) => handle,
        // As the kubelet: what is missing is made as directories.
        Err(_) => root
            .mkdir_all(sub_path, &Permissions::from_mode(0o750))
            .context("make it")?,
    };
    let stat = rustix::fs::fstat(handle.as_fd()).context("look at it")?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).context("make its mount point")?;
    }
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        fs::create_dir(target).context("make its mount point")?;
    } else {
        fs::File::create_new(target).context("make its mount point")?;
    }
    let source = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    rustix::mount::mount_bind_recursive(source, target).context("bind it")
}

/// Unmounts and removes all a pod kept. Nothing is removed while anything is still mounted below:
/// a bind may lead to the host's own files.
pub(in crate::cli) fn remove(folder: &Folder) -> anyhow::Result<()> {
    let path = folder.path();
    let failed = || format!("remove {}", path.display());
    for mounted in mounted_below(path)?.iter().rev() {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(mounted, flags)
            .with_context(|| format!("unmount {}", mounted.display()))?;
    }
    if let Some(mounted) = mounted_below(path)?.first() {
        bail!("{} is still mounted", mounted.display());
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(failed),
        _ => Ok(()),
    }
}

/// Mount points below a path, in the order they were mounted.
fn mounted_below(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
    };
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    Ok(points.filter(|point| point.starts_with(&path)).collect())
}

/// Blanks and backslashes are octal in mountinfo (proc(5)).
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let octal = rest.get(..3).filter(|_| first == b'\\');
        let value =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                bytes = rest.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                bytes = rest;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_paths_are_unescaped() {
        for (text, path) in [
            ("/a/b", "/a/b"),
            ("/a\\040b", "/a b"),
            ("/a\\134040", "/a\\040"),
            ("/a\\04", "/a\\04"),
        ] {
            assert_eq!(unescape(text), PathBuf::from(path));
        }
    }

    #[test]
    fn a_host_path_of_the_wrong_kind_is_refused() {
        for (path, kind, right) in [
            ("/proc", HostPathKind::Directory, true),
            ("/proc/version", HostPathKind::File, true),
            ("/dev/null", HostPathKind::CharDevice, true),
            ("/proc", HostPathKind::Anything, true),
            ("/proc/version", HostPathKind::Directory, false),
            ("/dev/null", HostPathKind::File, false),
            ("/proc", HostPathKind::Socket, false),
            ("/proc/not-there", HostPathKind::Anything, false),
        ] {
            assert_eq!(
                prepare_host(Path::new(path), kind).is_ok(),
                right,
                "{path} {kind:?}"
            );
        }
    }
}
