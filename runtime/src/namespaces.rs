//! A pod's namespaces, made and held by descriptor: no process and no mount keeps them, but for a
//! pause process where the pod shares its PID namespace.
//!
//! The monitor, which has one thread, goes into new namespaces itself (unshare(2), setns(2)), sets the host
//! name and kernel parameters through its own procfs, which shows the caller's namespaces, and
//! comes back. What belongs to a user namespace is made by [`crate::user_namespace`] instead. Nothing of a
//! network namespace is brought up here. Why a pod wants which namespace is the caller's.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use linux_raw_sys::general as raw;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, UnmountFlags};

use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, Result};
use crate::features::Features;
use crate::idmap::IdMaps;
use crate::launch::pause::{self, Pause};
use crate::monitor::wire::{CreatePod, NamespaceMode, PidMode, PodPaths};
use crate::plan;
use crate::sys::{clone, fd, mount, procfs};
use crate::user_namespace::{self, Inside};

/// The namespaces of a pod, held until dropped.
#[derive(Debug)]
pub struct PodNamespaces {
    user: Option<OwnedFd>,
    network: Option<OwnedFd>,
    ipc: Option<OwnedFd>,
    uts: Option<OwnedFd>,
    pause: Option<Pause>,
    shm: Option<Shm>,
}

/// The tmpfs the pod's containers share as `/dev/shm`.
#[derive(Debug)]
enum Shm {
    /// Detached: gone with its descriptor and the last container's copy.
    Detached(OwnedFd),
    /// Mounted below the pod's directory, where the kernel can't copy a detached mount (before 6.15).
    Mounted(PathBuf),
}

impl Drop for Shm {
    fn drop(&mut self) {
        if let Self::Mounted(path) = self {
            // Lazily, and without an error to anyone: containers' copies live on by themselves.
            let _unmounted = rustix::mount::unmount(
                path.as_path(),
                UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
            );
        }
    }
}

impl PodNamespaces {
    /// Makes what `request` asks for. `network` is the one made ahead, with
    /// [`NamespaceMode::Descriptor`]; `cgroup` is where a pause process goes. On failure nothing remains.
    pub fn create(
        request: &CreatePod,
        network: Option<OwnedFd>,
        cgroup: Option<&Cgroup>,
        features: &Features,
    ) -> Result<Self> {
        let sysctls = plan::sysctls(request.sysctls.iter())?;
        check(request, network.is_some())?;
        let shm = match request.shm_size {
            Some(size) if request.ipc != NamespaceMode::Host => {
                Some(make_shm(size, request, features)?)
            }
            _ => None,
        };
        let made = match &request.user {
            Some(maps) => make_owned(request, maps, &sysctls)?,
            None => make(request, network, &sysctls, procfs::open_host()?.as_fd())?,
        };
        let user = made
            .user
            .as_ref()
            .map(AsFd::as_fd)
            .zip(request.user.as_ref());
        let pause = match request.pid {
            PidMode::Pod => Some(pause::start(cgroup, user, features)?),
            PidMode::Container | PidMode::Node => None,
        };
        Ok(Self { pause, shm, ..made })
    }

    /// Paths for OCI specs by which the monitor, `monitor` on the node, and its children find them.
    pub fn paths(&self, monitor: i32) -> PodPaths {
        let path =
            |fd: BorrowedFd<'_>| PathBuf::from(format!("/proc/{monitor}/fd/{}", fd.as_raw_fd()));
        let owned = |fd: &Option<OwnedFd>| fd.as_ref().map(|fd| path(fd.as_fd()));
        PodPaths {
            network: owned(&self.network),
            ipc: owned(&self.ipc),
            uts: owned(&self.uts),
            user: owned(&self.user),
            pid: self.pause.as_ref().map(|pause| path(pause.namespace())),
            shm: self.shm.as_ref().map(|shm| match shm {
                Shm::Detached(fd) => path(fd.as_fd()),
                Shm::Mounted(at) => at.clone(),
            }),
            pause: self.pause.as_ref().map(Pause::pid),
            created_cgroups: Vec::new(),
        }
    }

    /// The network namespace, unless it is the node's.
    pub fn network_fd(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(|fd| fd.as_fd())
    }

    /// The pause process: its id on the node and a pidfd. The caller watches it. Dropping this kills
    /// it and reaps it if it ends at once; it ends when the caller has reaped its own children in the
    /// namespace, and is then the caller's to reap.
    pub fn pause(&self) -> Option<(i32, BorrowedFd<'_>)> {
        self.pause
            .as_ref()
            .map(|pause| (pause.pid(), pause.pidfd()))
    }
}

fn check(request: &CreatePod, has_network: bool) -> Result<()> {
    if (request.network == NamespaceMode::Descriptor) != has_network {
        return Err(Error::invalid(
            "CreatePod: a network descriptor comes with the mode \"descriptor\" and only then",
        ));
    }
    for (name, mode) in [("ipc", request.ipc), ("uts", request.uts)] {
        if mode == NamespaceMode::Descriptor {
            return Err(Error::invalid(format!(
                "CreatePod: {name} can't be given by descriptor"
            )));
        }
    }
    if let Some(maps) = &request.user {
        check_user(request, maps)?;
    }
    let named = request
        .hostname
        .as_ref()
        .is_some_and(|name| !name.is_empty());
    if named && request.uts == NamespaceMode::Host {
        return Err(Error::invalid(
            "CreatePod: a host name needs a UTS namespace of the pod's own",
        ));
    }
    for name in request.sysctls.keys() {
        let (scope, mode) = match crate::spec::sysctl::parse(name)?.scope {
            crate::spec::sysctl::Scope::Ipc => ("IPC", request.ipc),
            crate::spec::sysctl::Scope::Network => ("network", request.network),
        };
        if mode == NamespaceMode::Host {
            return Err(Error::invalid(format!(
                "sysctl {name}: the {scope} namespace is the node's"
            )));
        }
    }
    Ok(())
}

/// A user namespace owns what its containers need: a procfs of the node's PID namespace or an mqueue of its
/// IPC namespace could not be mounted in it.
fn check_user(request: &CreatePod, maps: &IdMaps) -> Result<()> {
    maps.check("CreatePod: user")?;
    maps.root("CreatePod: user")?;
    let refused = if request.network == NamespaceMode::Descriptor {
        "a network namespace made before its user namespace"
    } else if request.pid == PidMode::Node {
        "the node's PID namespace"
    } else if request.ipc == NamespaceMode::Host {
        "the node's IPC namespace"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!(
        "CreatePod: a user namespace can't be combined with {refused}"
    )))
}

/// Where the caller comes back to.
struct Home(Vec<(u32, OwnedFd)>);

impl Home {
    fn remember(proc: BorrowedFd<'_>, kinds: u32) -> Result<Self> {
        let mut home = Vec::new();
        for kind in [raw::CLONE_NEWNET, raw::CLONE_NEWIPC, raw::CLONE_NEWUTS] {
            if kinds & kind != 0 {
                home.push((kind, open_own(proc, kind)?));
            }
        }
        Ok(Self(home))
    }

    fn go_back(&self) -> Result<()> {
        for (kind, namespace) in &self.0 {
            clone::setns(namespace.as_fd(), *kind).doing(|| {
                format!(
                    "return to the own {} namespace",
                    plan::namespaces::name(*kind)
                )
            })?;
        }
        Ok(())
    }
}

/// The caller's own namespace of a kind, as it is now.
fn open_own(proc: BorrowedFd<'_>, kind: u32) -> Result<OwnedFd> {
    let name = plan::namespaces::name(kind);
    rustix::fs::openat(
        proc,
        format!("thread-self/ns/{name}"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| format!("open the own {name} namespace"))
}

/// `CLONE_NEW*` bits of the new ones.
fn new_kinds(request: &CreatePod) -> u32 {
    [
        (request.network, raw::CLONE_NEWNET),
        (request.ipc, raw::CLONE_NEWIPC),
        (request.uts, raw::CLONE_NEWUTS),
    ]
    .into_iter()
    .filter(|(mode, _)| *mode == NamespaceMode::New)
    .fold(0, |kinds, (_, kind)| kinds | kind)
}

/// Makes a user namespace and the others as its own.
fn make_owned(
    request: &CreatePod,
    maps: &IdMaps,
    sysctls: &[(CString, Vec<u8>)],
) -> Result<PodNamespaces> {
    let hostname = request.hostname.as_deref();
    let inside = Inside {
        kinds: new_kinds(request),
        hostname: hostname.filter(|_| request.uts == NamespaceMode::New),
        sysctls,
    };
    let mut made = user_namespace::make(maps, &inside)?;
    Ok(PodNamespaces {
        network: made.take(raw::CLONE_NEWNET),
        ipc: made.take(raw::CLONE_NEWIPC),
        uts: made.take(raw::CLONE_NEWUTS),
        user: Some(made.user),
        pause: None,
        shm: None,
    })
}

/// Goes into new namespaces and comes back, whatever happens in between.
fn make(
    request: &CreatePod,
    network: Option<OwnedFd>,
    sysctls: &[(CString, Vec<u8>)],
    proc: BorrowedFd<'_>,
) -> Result<PodNamespaces> {
    let new = new_kinds(request);
    let joined = if network.is_some() {
        raw::CLONE_NEWNET
    } else {
        0
    };
    let home = Home::remember(proc, new | joined)?;
    let made = enter_and_set(request, network, sysctls, proc, new);
    home.go_back()?;
    made
}

fn enter_and_set(
    request: &CreatePod,
    network: Option<OwnedFd>,
    sysctls: &[(CString, Vec<u8>)],
    proc: BorrowedFd<'_>,
    new: u32,
) -> Result<PodNamespaces> {
    if new != 0 {
        clone::unshare(new).doing(|| "make the pod's namespaces")?;
    }
    if let Some(network) = &network {
        let kind =
            fd::namespace_kind(network.as_fd()).doing(|| "examine the network namespace given")?;
        if kind != raw::CLONE_NEWNET {
            return Err(Error::invalid(
                "the descriptor given is not a network namespace",
            ));
        }
        clone::setns(network.as_fd(), kind).doing(|| "enter the network namespace given")?;
    }
    if let (Some(name), NamespaceMode::New) = (&request.hostname, request.uts) {
        rustix::system::sethostname(name.as_bytes())
            .doing(|| format!("set the host name {name:?}"))?;
    }
    for (path, value) in sysctls {
        procfs::write(proc, path, value)
            .doing(|| format!("write /proc/{}", path.to_string_lossy()))?;
    }
    let own = |mode, kind| match mode {
        NamespaceMode::New => open_own(proc, kind).map(Some),
        NamespaceMode::Host | NamespaceMode::Descriptor => Ok(None),
    };
    Ok(PodNamespaces {
        user: None,
        network: match network {
            Some(network) => Some(network),
            None => own(request.network, raw::CLONE_NEWNET)?,
        },
        ipc: own(request.ipc, raw::CLONE_NEWIPC)?,
        uts: own(request.uts, raw::CLONE_NEWUTS)?,
        pause: None,
        shm: None,
    })
}

fn make_shm(size: u64, request: &CreatePod, features: &Features) -> Result<Shm> {
    let doing = || "make the pod's shared memory";
    let context = mount::open_filesystem(c"tmpfs").doing(doing)?;
    let text = |number: String| plan::c_string("shm", number);
    // Root's, as it is inside.
    let root = request
        .user
        .as_ref()
        .map(|maps| maps.root("shm"))
        .transpose()?;
    let (uid, gid) = root.unwrap_or((0, 0));
    let (size, uid, gid) = (
        text(size.to_string())?,
        text(uid.to_string())?,
        text(gid.to_string())?,
    );
    for (key, value) in [
        (c"source", c"shm"),
        (c"mode", c"1777"),
        (c"size", size.as_c_str()),
        (c"uid", uid.as_c_str()),
        (c"gid", gid.as_c_str()),
    ] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value).doing(doing)?;
    }
    let attributes = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let tree = mount::mount_detached(context.as_fd(), attributes).doing(doing)?;
    if features.clone_detached {
        return Ok(Shm::Detached(tree));
    }
    let path = request.directory.join("shm");
    match rustix::fs::mkdirat(CWD, &path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(Error::system(format!("make {}", path.display()), errno)),
    }
    rustix::mount::move_mount(
        tree.as_fd(),
        c"",
        CWD,
        &path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .doing(|| format!("mount the pod's shared memory on {}", path.display()))?;
    Ok(Shm::Mounted(path))
}
