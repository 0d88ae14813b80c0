//! Fills an image's VOLUME: an anonymous directory that begins as a copy of what the image has there
//! (case M7; threat C4).

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, futimens, mkdirat, statat};
use rustix::io::Errno;

use super::copy::{self, Budget};
use super::tree::{each_entry, open_folder, open_in_root};
use super::unpack::limits::Limits;
use super::writable::make_private;
use crate::failure::{Doing as _, Failure};

/// Directories within each other; each costs two descriptors.
const MAX_DEPTH: usize = 200;

/// Makes `destination` and copies into it what the image has at `path`: content, owners, modes,
/// times, attributes, those of the directory itself included. `root` is a read-only view of the
/// image's root, which is never left: links resolve inside it. What the image doesn't have is an
/// empty directory of root's, mode 0755. Blocking.
///
/// On failure part of the copy can be there; whoever owns `destination` removes it whole.
pub fn seed_volume(root: BorrowedFd<'_>, path: &Path, destination: &Path) -> Result<(), Failure> {
    let what = format!("fill volume {}", path.display());
    seed(root, path, destination).map_err(|e| e.context(what))
}

fn seed(root: BorrowedFd<'_>, path: &Path, destination: &Path) -> Result<(), Failure> {
    // `..` is clamped at the root when the path is resolved, so it may lead to the root as well.
    if !path.components().any(|c| matches!(c, Component::Normal(_))) {
        return Err(Failure::invalid("a volume cannot be the root"));
    }
    make_private(destination)?;
    let target = open_folder(destination)?;
    let source = open_in_root(root, path.as_os_str().as_bytes(), OFlags::RDONLY);
    let source = match source {
        Ok(source) => source,
        Err(Errno::NOENT) => {
            return rustix::fs::fchmod(&target, Mode::from_raw_mode(0o755)).doing("set its mode");
        }
        Err(Errno::NOTDIR) => {
            return Err(Failure::precondition("it is no directory in the image"));
        }
        Err(e) => return Err(e).doing("open it in the image"),
    };
    let (stat, top) = (
        fstat(&source).doing("look at it")?,
        fstat(root).doing("look at the root")?,
    );
    if (stat.st_dev, stat.st_ino) == (top.st_dev, top.st_ino) {
        return Err(Failure::invalid("a volume cannot be the root"));
    }
    let limits = Limits::default();
    let mut budget = Budget {
        bytes: limits.bytes,
        entries: limits.entries,
    };
    tree(source, target, &mut budget)
}

/// One directory being copied.
struct Level {
    from: OwnedFd,
    to: OwnedFd,
    /// Directories in it still to come.
    names: Vec<CString>,
}

fn tree(from: OwnedFd, to: OwnedFd, budget: &mut Budget) -> Result<(), Failure> {
    let names = files(&from, &to, budget)?;
    let mut levels = vec![Level { from, to, names }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            // Filled, so that its time stays.
            let stat = fstat(&level.from).doing("look at a directory")?;
            copy::attributes(level.from.as_fd(), &stat, level.to.as_fd())?;
            futimens(&level.to, &copy::times(&stat)).doing("set a directory's time")?;
            levels.pop();
            continue;
        };
        budget.entry()?;
        mkdirat(&level.to, &name, Mode::RWXU).doing("make a directory")?;
        let from = copy::folder(level.from.as_fd(), &name)?;
        let to = copy::folder(level.to.as_fd(), &name)?;
        if levels.len() >= MAX_DEPTH {
            return Err(Failure::precondition(format!(
                "more than {MAX_DEPTH} directories lie within each other"
            )));
        }
        let names = files(&from, &to, budget)?;
        levels.push(Level { from, to, names });
    }
    Ok(())
}

/// Copies what isn't a directory and returns the names of those.
fn files(from: &OwnedFd, to: &OwnedFd, budget: &mut Budget) -> Result<Vec<CString>, Failure> {
    let mut found = Vec::new();
    each_entry(from.as_fd(), |name, kind| {
        found.push((name.to_owned(), kind));
        Ok(())
    })
    .doing("read a directory")?;
    let mut directories = Vec::new();
    for (name, kind) in found {
        if kind == FileType::Directory {
            directories.push(name);
            continue;
        }
        let stat = statat(from, &name, AtFlags::SYMLINK_NOFOLLOW).doing("look at a file")?;
        copy::node(from.as_fd(), &name, &stat, to.as_fd(), &name, budget)
            .map_err(|e| e.context(format!("copy {:?}", name.to_string_lossy())))?;
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

    #[test]
    fn m7_a_volume_has_the_image_s_owner_mode_and_content() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("data/sub")).unwrap();
        std::fs::write(root.join("data/f"), "x").unwrap();
        symlink("/etc/passwd", root.join("data/sub/l")).unwrap();
        for name in ["data", "data/f"] {
            chown(root.join(name), Some(65534), Some(65534)).unwrap();
        }
        let mode = std::fs::Permissions::from_mode(0o750);
        std::fs::set_permissions(root.join("data"), mode).unwrap();
        let fd = open_folder(&root).unwrap();
        let volume = folder.path().join("v");
        seed_volume(fd.as_fd(), Path::new("/data"), &volume).unwrap();
        let meta = std::fs::metadata(&volume).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (65534, 65534));
        assert_eq!(meta.mode() & 0o7777, 0o750);
        assert_eq!(std::fs::metadata(volume.join("f")).unwrap().uid(), 65534);
        assert_eq!(std::fs::read(volume.join("f")).unwrap(), b"x");
        let link = std::fs::read_link(volume.join("sub/l")).unwrap();
        assert_eq!(link, Path::new("/etc/passwd"));

        let absent = folder.path().join("absent");
        seed_volume(fd.as_fd(), Path::new("/absent"), &absent).unwrap();
        let meta = std::fs::metadata(&absent).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o755));
    }

    #[test]
    fn c4_a_volume_never_leaves_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let canary = folder.path().join("canary");
        std::fs::create_dir(&canary).unwrap();
        std::fs::write(canary.join("secret"), "x").unwrap();
        symlink(&canary, root.join("absolute")).unwrap();
        symlink("../canary", root.join("relative")).unwrap();
        symlink("/", root.join("top")).unwrap();
        std::fs::write(root.join("file"), "x").unwrap();
        let fd = open_folder(&root).unwrap();
        for (at, path, refused) in [
            ("a", "/../../canary", false),
            ("b", "/absolute", false),
            ("c", "/relative", false),
            ("d", "/top", true),
            ("e", "/", true),
            ("f", "", true),
            ("g", "/..", true),
            ("h", "/file", true),
        ] {
            let volume = folder.path().join(at);
            let result = seed_volume(fd.as_fd(), Path::new(path), &volume);
            assert_eq!(result.is_err(), refused, "{path}: {result:?}");
            if !refused {
                assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0, "{path}");
            }
        }
    }
}
