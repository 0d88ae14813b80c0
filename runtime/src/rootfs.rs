//! Root file systems as detached mounts: an overlay of layers given by descriptor, which never shows
//! in the node's mount table.
//!
//! Overlay by fsopen since Linux 5.2 (overlay's own since 6.5), `lowerdir+` since 6.7, by descriptor since
//! 6.13; the fallbacks name layers as `/proc/self/fd/<n>`. Options: `redirect_dir=nofollow` and
//! `metacopy=off`, so that an attribute a layer brings can't point into another layer (D8;
//! CVE-2023-2640, CVE-2023-32629 for what trusting them costs).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{fsconfig_set_fd, fsconfig_set_string};
use serde::{Deserialize, Serialize};

use crate::attic::Attic;
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::features::Features;
use crate::sys::mount::{self, Attributes};
use crate::user_namespace;

/// The most lower layers overlay takes (OVL_MAX_STACK of fs/overlayfs/params.h).
const MAX_LAYERS: usize = 500;

/// What a root file system is made of.
#[derive(Clone, Copy, Debug)]
pub enum Rootfs<'a> {
    /// An overlay; without lower layers the upper directory alone.
    Overlay {
        /// Read-only layers, topmost first.
        lower: &'a [PathBuf],
        /// The writable layer.
        upper: &'a Path,
        /// Overlay's work directory, on the same file system as `upper`.
        work: &'a Path,
    },
    /// A directory as it is (an OCI bundle's).
    Directory(&'a Path),
}

/// An image whose files a container has as a volume (CRI `Mount.image`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// Where, in the container: the destination of one of the spec's mounts, whose options count and
    /// whose source doesn't.
    pub destination: PathBuf,
    /// The image's layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// What of it, instead of all; relative to its root.
    pub sub_path: Option<PathBuf>,
}

impl ImageVolume {
    /// The detached mount: read-only, without devices. Links in the sub path are followed inside the
    /// image. A part of a detached overlay can be had since Linux 6.15.
    pub fn build(&self, features: &Features) -> Result<OwnedFd> {
        self.build_for(None, features)
    }

    /// The same for a container, in a user namespace or not.
    pub(crate) fn build_for(
        &self,
        mapped: Option<Mapped<'_>>,
        features: &Features,
    ) -> Result<OwnedFd> {
        let attributes = mount::RDONLY | mount::NODEV;
        let Some(sub_path) = &self.sub_path else {
            return view(&self.lower, mapped, attributes, features);
        };
        let doing = || format!("find {} in the image", sub_path.display());
        let whole = match self.lower.as_slice() {
            [only] => open_layer(only)?,
            layers => view(layers, mapped, attributes, features)?,
        };
        let place = openat2(
            &whole,
            sub_path.as_path(),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
        .doing(doing)?;
        if self.lower.len() != 1 && !features.clone_detached {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{}: a part of an image of several layers needs Linux 6.15",
                    doing()
                ),
            ));
        }
        let tree = mount::clone_tree(place.as_fd(), c"", false).doing(doing)?;
        if let (Some(mapped), [_]) = (mapped, self.lower.as_slice()) {
            user_namespace::map_mount(tree.as_fd(), false, mapped.namespace, doing)?;
        }
        make_private(tree.as_fd(), attributes).doing(doing)?;
        Ok(tree)
    }
}

/// A detached view of layers that can't be written to, for reading users and seeding volumes.
pub fn read_only(lower: &[PathBuf], features: &Features) -> Result<OwnedFd> {
    let attributes = mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC;
    view(lower, None, attributes, features)
}

fn view(
    lower: &[PathBuf],
    mapped: Option<Mapped<'_>>,
    attributes: u64,
    features: &Features,
) -> Result<OwnedFd> {
    match lower {
        [] => {
            let context = mount::open_filesystem(c"tmpfs").doing(|| "open tmpfs")?;
            mount::mount_detached(context.as_fd(), attributes)
                .doing(|| "make the view of an image without layers")
        }
        [only] => {
            let tree = match mapped {
                Some(mapped) => map_layer(only, mapped)?,
                None => clone_directory(only)?,
            };
            make_private(tree.as_fd(), attributes)
                .doing(|| format!("make the view of layer {} read-only", only.display()))?;
            Ok(tree)
        }
        layers => overlay(layers, None, None, mapped, attributes, features),
    }
}

/// How an overlay's layers are given to a container in a user namespace: read through id-mapped mounts, so that
/// the image's content stays as it is. What is written lies in the upper directory with the node's
/// ids of who wrote it: overlay makes some of it as its mounter, whom a mapped upper layer would refuse.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped<'a> {
    /// The user namespace.
    pub(crate) namespace: BorrowedFd<'a>,
    /// The node's ids of its root.
    pub(crate) root: (u32, u32),
    /// Where layers are attached for kernels that need it.
    pub(crate) attic: Option<&'a Attic>,
}

fn make_private(tree: BorrowedFd<'_>, set: u64) -> std::result::Result<(), Errno> {
    let attributes = Attributes {
        set,
        clear: 0,
        propagation: libc::MS_PRIVATE,
    };
    mount::set_attributes(tree, false, attributes)
}

/// The detached root mount of a container. Written to until the caller makes it read-only.
pub(crate) fn build(
    rootfs: Rootfs<'_>,
    mount_label: Option<&str>,
    mapped: Option<Mapped<'_>>,
    features: &Features,
) -> Result<OwnedFd> {
    match rootfs {
        Rootfs::Overlay {
            lower: [],
            upper: directory,
            ..
        }
        | Rootfs::Directory(directory) => {
            if let (Rootfs::Overlay { .. }, Some(mapped)) = (rootfs, mapped) {
                give(open_layer(directory)?.as_fd(), directory, mapped.root)?;
            }
            let tree = clone_directory(directory)?;
            make_private(tree.as_fd(), 0)
                .doing(|| format!("make the root {} private", directory.display()))?;
            Ok(tree)
        }
        Rootfs::Overlay { lower, upper, work } => {
            overlay(lower, Some((upper, work)), mount_label, mapped, 0, features)
        }
    }
}

fn clone_directory(path: &Path) -> Result<OwnedFd> {
    let directory = open_layer(path)?;
    mount::clone_tree(directory.as_fd(), c"", false)
        .doing(|| format!("take {} as a root", path.display()))
}

fn open_layer(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| format!("open layer {}", path.display()))
}

/// The kernel's uid and gid of what is not mapped (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65534;

/// A detached, id-mapped copy of a layer.
fn map_layer(path: &Path, mapped: Mapped<'_>) -> Result<OwnedFd> {
    let tree = clone_directory(path)?;
    user_namespace::map_mount(tree.as_fd(), false, mapped.namespace, || {
        format!("id-map layer {}", path.display())
    })?;
    if let Some(attic) = mapped.attic {
        attic.attach(tree.as_fd())?;
    }
    Ok(tree)
}

/// Gives the upper directory, which is the container's `/`, to the owner it has inside.
fn give(directory: BorrowedFd<'_>, path: &Path, (uid, gid): (u32, u32)) -> Result<()> {
    rustix::fs::chownat(
        directory,
        c"",
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
        rustix::fs::AtFlags::EMPTY_PATH,
    )
    .doing(|| format!("give {} to user {uid} and group {gid}", path.display()))
}

fn overlay(
    lower: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    label: Option<&str>,
    mapped: Option<Mapped<'_>>,
    attributes: u64,
    features: &Features,
) -> Result<OwnedFd> {
    if lower.len() > MAX_LAYERS {
        return Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "the image has {} layers; overlay takes at most {MAX_LAYERS}",
                lower.len()
            ),
        ));
    }
    let context = mount::open_filesystem(c"overlay").doing(|| "open overlay")?;
    let context = context.as_fd();
    let layers = lower
        .iter()
        .map(|path| match mapped {
            Some(mapped) => map_layer(path, mapped),
            None => open_layer(path),
        })
        .collect::<Result<Vec<_>>>()?;
    if features.overlay_append {
        for (layer, path) in layers.iter().zip(lower) {
            set_layer(context, "lowerdir+", layer.as_fd(), path, features)?;
        }
    } else {
        let joined: Vec<_> = layers
            .iter()
            .map(|layer| descriptor_path(layer.as_fd()))
            .collect();
        let joined = c_string(joined.join(":"))?;
        // fsconfig takes strings below 256 bytes (fs/fsopen.c): some 14 layers.
        fsconfig_set_string(context, c"lowerdir", &joined).doing(|| {
            format!(
                "stack {} overlay layers (more than 14 need Linux 6.7)",
                lower.len()
            )
        })?;
    }
    if let Some((upper, work)) = writable {
        let upper_fd = open_layer(upper)?;
        if let (Some(mapped), Some(top)) = (mapped, layers.first()) {
            let stat = rustix::fs::fstat(top).doing(|| "examine the topmost layer")?;
            let owner = [stat.st_uid, stat.st_gid];
            // The root directory's owner in the image, unless it isn't mapped.
            let owner = match owner.contains(&OVERFLOW) {
                true => mapped.root,
                false => (stat.st_uid, stat.st_gid),
            };
            give(upper_fd.as_fd(), upper, owner)?;
        }
        set_layer(context, "upperdir", upper_fd.as_fd(), upper, features)?;
        let work_fd = open_layer(work)?;
        set_layer(context, "workdir", work_fd.as_fd(), work, features)?;
    }
    for (key, value) in [(c"redirect_dir", c"nofollow"), (c"metacopy", c"off")] {
        fsconfig_set_string(context, key, value)
            .doing(|| format!("set overlay option {}", key.to_string_lossy()))?;
    }
    if let Some(label) = label {
        let label = c_string(label.to_owned())?;
        fsconfig_set_string(context, c"context", &label)
            .doing(|| "set overlay's SELinux context")?;
    }
    mount::mount_detached(context, attributes).map_err(|errno| {
        let top = lower.first().map(|path| path.display().to_string());
        Error::system(
            format_args!(
                "mount overlay of {} layers, topmost {}{}",
                lower.len(),
                top.unwrap_or_default(),
                kernel_message(context)
            ),
            errno,
        )
    })
}

fn set_layer(
    context: BorrowedFd<'_>,
    key: &str,
    layer: BorrowedFd<'_>,
    path: &Path,
    features: &Features,
) -> Result<()> {
    let key_c = c_string(key.to_owned())?;
    let result = if features.overlay_descriptors {
        fsconfig_set_fd(context, key_c.as_c_str(), layer)
    } else {
        let value = c_string(descriptor_path(layer))?;
        fsconfig_set_string(context, key_c.as_c_str(), value.as_c_str())
    };
    result.doing(|| {
        format!(
            "set overlay {key} to {}{}",
            path.display(),
            kernel_message(context)
        )
    })
}

/// What the kernel has to say about a failed configuration (read(2) of an fsopen descriptor), in parentheses.
pub(crate) fn kernel_message(context: BorrowedFd<'_>) -> String {
    let mut buffer = [0_u8; 512];
    match rustix::io::read(context, &mut buffer) {
        Ok(length) => {
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            format!(" ({})", text.trim().trim_start_matches("e "))
        }
        Err(_) => String::new(), // there is no message
    }
}

fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn c_string(text: String) -> Result<CString> {
    CString::new(text).map_err(|error| Error::invalid(format!("NUL byte in {error}")))
}
