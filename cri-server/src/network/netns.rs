//! Network namespaces: the conventional bind mount below `/run/netns`, and work done inside one.
//!
//! A namespace is always given by descriptor. Its path is made in a directory of root's, with
//! O_EXCL and O_NOFOLLOW, and mounted on by descriptor, so that a link planted there leads nowhere
//! (threat M4).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::failure::{Doing as _, Failure};

/// Where network namespaces are conventionally found by name (ip-netns(8), CNI daemons).
pub const DIRECTORY: &str = "/run/netns";

/// What our names begin with, so that no one else's are touched.
const PREFIX: &str = "bulkhead-";

/// The path of a pod's namespace.
pub fn path(pod_id: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{PREFIX}{pod_id}"))
}

/// Opens the directory, making it if need be.
fn directory() -> Result<OwnedFd, Failure> {
    let doing = || format!("open {DIRECTORY}");
    let open = || {
        rustix::fs::open(
            DIRECTORY,
            OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY,
            Mode::empty(),
        )
    };
    let fd = match open() {
        Err(Errno::NOENT) => {
            match rustix::fs::mkdir(DIRECTORY, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).doing(doing()),
            }
            open().doing(doing())?
        }
        other => other.doing(doing())?,
    };
    let stat = rustix::fs::fstat(&fd).doing(doing())?;
    let writable_by_others = Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH);
    if stat.st_uid != 0 || writable_by_others {
        return Err(Failure::internal(format!(
            "{DIRECTORY} must belong to root and be writable by no one else"
        )));
    }
    Ok(fd)
}

fn name(pod_id: &str) -> Result<String, Failure> {
    check_pod_id(pod_id)?;
    Ok(format!("{PREFIX}{pod_id}"))
}

/// Pod ids become file names and parts of link names; ours are hexadecimal (threat I4).
pub(crate) fn check_pod_id(pod_id: &str) -> Result<(), Failure> {
    let fine = (1..=64).contains(&pod_id.len())
        && pod_id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fine {
        Ok(())
    } else {
        Err(Failure::invalid(format!("\"{pod_id}\" is no pod id")))
    }
}

/// Gives the namespace its conventional path, which keeps it alive until [`unbind`].
///
/// # Errors
/// Something is there already, or the kernel refuses the mount.
pub fn bind(pod_id: &str, namespace: BorrowedFd<'_>) -> Result<PathBuf, Failure> {
    let path = path(pod_id);
    let name = name(pod_id)?;
    let directory = directory()?;
    let doing = || format!("bind a network namespace to {}", path.display());
    let file = rustix::fs::openat(
        &directory,
        &name,
        OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY,
        Mode::RUSR,
    )
    .doing(doing())?;
    let mounted = mount_on(namespace, file.as_fd());
    if let Err(error) = mounted {
        if let Err(left) = rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
            tracing::warn!(path = %path.display(), error = %left, "an empty file is left");
        }
        return Err(error).doing(doing());
    }
    Ok(path)
}

fn mount_on(namespace: BorrowedFd<'_>, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // Kernel 5.2. A namespace's file lives on a mount of the kernel's own, which may be cloned.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(namespace, "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", file, "", flags)
}

/// Takes the path away again. Nothing there is success.
///
/// # Errors
/// The mount or the file cannot be removed.
pub fn unbind(pod_id: &str) -> Result<(), Failure> {
    let path = path(pod_id);
    check_pod_id(pod_id)?;
    match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Never mounted on, or gone with a reboot.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error).doing(format!("unmount {}", path.display())),
    }
    match rustix::fs::unlink(&path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).doing(format!("remove {}", path.display())),
    }
}

/// The ids of the pods whose namespaces have a path, for cleaning up after a crash.
///
/// # Errors
/// The directory cannot be read.
pub fn list() -> Result<Vec<String>, Failure> {
    let entries = match std::fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).doing(format!("list {DIRECTORY}")),
    };
    let mut pods = Vec::new();
    for entry in entries {
        let entry = entry.doing(format!("list {DIRECTORY}"))?;
        if let Some(pod) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
        {
            pods.push(pod.to_owned());
        }
    }
    Ok(pods)
}

/// Runs `work` in the network namespace, on a thread made for it which ends there: no thread that
/// does anything else is ever in a pod's namespace, so there is nothing to restore.
///
/// # Errors
/// The namespace cannot be entered, or what `work` fails with.
pub(crate) fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
                    .doing("enter a network namespace")?;
                work()
            })
            .doing("start a thread")?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Failure::internal("work in a network namespace panicked")))
    })
}

/// Reads a sysctl of the calling thread's network namespace; `None` if the kernel has no such.
pub(crate) fn read_sysctl(path: &str) -> Result<Option<String>, Failure> {
    let mut text = String::new();
    match File::open(format!("/proc/sys/net/{path}")) {
        Ok(file) => {
            // Values here are single numbers.
            file.take(64)
                .read_to_string(&mut text)
                .doing(format!("read sysctl net/{path}"))?;
            Ok(Some(text.trim_end().to_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(format!("read sysctl net/{path}")),
    }
}

/// Writes a sysctl of the calling thread's network namespace.
pub(crate) fn write_sysctl(path: &str, value: &str) -> Result<(), Failure> {
    File::options()
        .write(true)
        .open(format!("/proc/sys/net/{path}"))
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .doing(format!("write {value} to sysctl net/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_taken_for_names() {
        for (id, fine) in [
            ("0123456789abcdef", true),
            ("pod-a", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a\0b", false),
            ("a\n", false),
        ] {
            assert_eq!(check_pod_id(id).is_ok(), fine, "{id:?}");
        }
        assert!(check_pod_id(&"a".repeat(65)).is_err());
    }
}
