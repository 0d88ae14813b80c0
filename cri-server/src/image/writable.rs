//! Writable layers: the upper and work directories of a container's overlay.
//!
//! `<root>/writable/<container id>/{upper,work}`. The upper directory's own mode and owner are those
//! of the container's `/`, so they are copied from the image's root; everything above it is 0700, so
//! nobody else on the node gets in (threat O1).

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, fchmod, fchown, fstat};
use rustix::process::{Gid, Uid};

use super::gc::{Meter, Trash};
use super::tree;
use super::types::{Usage, Writable};
use super::unpack::xattr;
use crate::clock::now;
use crate::failure::{Doing as _, Failure};

/// The folder of all writable layers.
#[derive(Debug)]
pub(crate) struct WritableLayers {
    folder: PathBuf,
    trash: Arc<Trash>,
    meter: Meter,
}

impl WritableLayers {
    pub(crate) fn open(folder: PathBuf, trash: Arc<Trash>) -> Result<Self, Failure> {
        let layers = Self {
            folder,
            trash,
            meter: Meter::start()?,
        };
        for id in layers.ids()? {
            // Measured as soon as somebody asks: its age is great.
            layers.meter.set(&id, Usage::default());
            layers.meter.get(&id, layers.upper(&id));
        }
        Ok(layers)
    }

    fn upper(&self, id: &str) -> PathBuf {
        self.folder.join(id).join("upper")
    }

    fn ids(&self) -> Result<Vec<String>, Failure> {
        let what = format!("read {}", self.folder.display());
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.folder).doing(&what)? {
            if let Ok(name) = entry.doing(&what)?.file_name().into_string() {
                ids.push(name);
            }
        }
        Ok(ids)
    }

    /// Where the two directories of `id` are.
    pub(crate) fn paths(&self, id: &str) -> Result<Writable, Failure> {
        check_id(id)?;
        let folder = self.folder.join(id);
        Ok(Writable {
            upper: folder.join("upper"),
            work: folder.join("work"),
        })
    }

    /// Makes the two directories for `id`, or finds them made; `root` is the image's topmost lower.
    pub(crate) fn create(&self, id: &str, root: &Path) -> Result<Writable, Failure> {
        let writable = self.paths(id)?;
        let folder = self.folder.join(id);
        make_private(&folder)?;
        make_private(&writable.work)?;
        make_private(&writable.upper)?;
        let what = format!(
            "copy the attributes of {} to the upper directory",
            root.display()
        );
        let from: OwnedFd = std::fs::File::open(root).doing(&what)?.into();
        let to: OwnedFd = std::fs::File::open(&writable.upper).doing(&what)?.into();
        let stat = fstat(&from).doing(&what)?;
        fchown(
            &to,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
        )
        .doing(&what)?;
        fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777)).doing(&what)?;
        xattr::copy(from.as_fd(), to.as_fd()).map_err(|e| e.context(&what))?;
        let usage = Usage {
            bytes: 4096,
            inodes: 1,
            timestamp_ns: now(),
        };
        self.meter.set(id, usage);
        Ok(writable)
    }

    /// Takes the layer away; absent is fine. Space comes back a little later.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Failure> {
        check_id(id)?;
        self.meter.forget(id);
        self.trash.take(&self.folder.join(id))
    }

    /// Removes the layers of containers that aren't alive.
    pub(crate) fn retain<T>(&self, live: &BTreeMap<String, T>) -> Result<(), Failure> {
        for id in self.ids()? {
            if !live.contains_key(&id) {
                self.meter.forget(&id);
                self.trash.take(&self.folder.join(&id))?;
            }
        }
        Ok(())
    }

    /// The last measurement, never waiting for one.
    pub(crate) fn usage(&self, id: &str) -> Option<Usage> {
        check_id(id).ok()?;
        self.meter.get(id, self.upper(id))
    }

    pub(crate) fn total(&self) -> (u64, u64) {
        self.meter.total()
    }
}

/// Ids are the daemon's own; one that could leave the folder is refused all the same (threat I4).
fn check_id(id: &str) -> Result<(), Failure> {
    let good = !id.is_empty()
        && id.len() <= 128
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if good {
        Ok(())
    } else {
        Err(Failure::invalid(format!("{id:?} is no container id")))
    }
}

/// Makes a directory with mode 0700 whatever the umask, and repairs the mode of an existing one.
pub(crate) fn make_private(path: &Path) -> Result<(), Failure> {
    let what = format!("make {}", path.display());
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).doing(&what),
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let parent: OwnedFd = std::fs::File::open(parent).doing(&what)?.into();
    let name = path
        .file_name()
        .map(|n| std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(n)))
        .transpose()
        .doing(&what)?
        .unwrap_or_default();
    // A link somebody planted is refused here (threat O2).
    let fd = tree::open_directory(parent.as_fd(), &name).doing(&what)?;
    fchmod(&fd, Mode::RWXU).doing(&what)
}
