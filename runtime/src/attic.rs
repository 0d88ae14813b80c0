//! A mount namespace of the calling process's own for as long as something is prepared in it: before
//! Linux 6.15 neither a detached mount can be cloned nor can overlay take one as a layer ("failed
//! to clone lowerpath", seen on 6.12). Attached here they are ordinary mounts, and nothing shows on the
//! node. Drop when the minimum kernel is 6.15.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;

use crate::error::{Doing, Result};
use crate::sys::{clone, mount, procfs};

/// Where detached mounts are attached for the while.
#[derive(Debug)]
pub(crate) struct Attic {
    ground: OwnedFd,
    used: Cell<u32>,
}

impl Attic {
    /// Attaches a detached mount; its descriptor then names the attached one.
    pub(crate) fn attach(&self, tree: BorrowedFd<'_>) -> Result<()> {
        let doing = || "attach a mount for the while";
        let name = self.used.get().to_string();
        self.used.set(self.used.get() + 1);
        rustix::fs::mkdirat(&self.ground, &name, Mode::RWXU).doing(doing)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(&self.ground, &name, flags, Mode::empty()).doing(doing)?;
        mount::attach(tree, place.as_fd()).doing(doing)
    }
}

/// Runs `work` in a copy of the mount namespace and comes back, whatever happens in between. The caller
/// has one thread; its root and working directory are then those of its mount namespace (setns(2)).
pub(crate) fn within<T>(work: impl FnOnce(&Attic) -> Result<T>) -> Result<T> {
    let proc = procfs::open_host()?;
    let home = rustix::fs::openat(
        &proc,
        "thread-self/ns/mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| "open the own mount namespace")?;
    clone::unshare(raw::CLONE_NEWNS).doing(|| "make a mount namespace for the while")?;
    let done = prepare().and_then(|attic| work(&attic));
    clone::setns(home.as_fd(), raw::CLONE_NEWNS).doing(|| "return to the own mount namespace")?;
    done
}

fn prepare() -> Result<Attic> {
    let doing = || "prepare a mount namespace for the while";
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change(c"/", private).doing(doing)?;
    let context = mount::open_filesystem(c"tmpfs").doing(doing)?;
    let ground = mount::mount_detached(context.as_fd(), mount::NOSUID).doing(doing)?;
    mount::attach_on_root(ground.as_fd()).doing(doing)?;
    Ok(Attic {
        ground,
        used: Cell::new(0),
    })
}
