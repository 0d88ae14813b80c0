//! What a launch opens beforehand, in the parent: namespaces to join, the user namespace, the root, the
//! sources of mounts, and nodes where the child can't make them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use linux_raw_sys::general as raw;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{ImageVolume, Rootfs};
use crate::attic::{self, Attic};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::features::Features;
use crate::idmap::IdMaps;
use crate::plan::mounts::{MountPlan, Peer, Source};
use crate::plan::namespaces::{self, UserPlan};
use crate::plan::nodes::DeviceNode;
use crate::plan::{self, Plan};
use crate::rootfs::{self, Mapped};
use crate::sys::mount::{self, Attributes};
use crate::sys::{fd, procfs};
use crate::user_namespace;

/// The largest mount table read to judge a source's propagation, in bytes.
const MAX_MOUNT_TABLE: u64 = 16 << 20;

/// What a container is made of.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) user: Option<OwnedFd>,
    /// The detached root mount.
    pub(super) root: OwnedFd,
    /// Detached copies of bind sources, by the mount's place in the plan.
    pub(super) trees: Vec<Option<OwnedFd>>,
    /// Detached mounts of nodes, in the plan's order; none where the child makes them.
    pub(super) devices: Vec<OwnedFd>,
}

/// Opens and makes all of it.
pub(super) fn prepare(
    plan: &Plan,
    source: Rootfs<'_>,
    images: &[ImageVolume],
    features: &Features,
) -> Result<Prepared> {
    let user = match &plan.namespaces.user {
        Some(user) => Some(open_user(user)?),
        None => None,
    };
    let owner = match (&user, &plan.namespaces.user) {
        (Some(namespace), Some(plan)) => Some((namespace.as_fd(), &plan.maps)),
        _ => None,
    };
    let (root, devices) = match owner {
        Some(_) if !features.clone_detached => {
            attic::within(|attic| root_and_nodes(plan, source, owner, Some(attic), features))?
        }
        owner => root_and_nodes(plan, source, owner, None, features)?,
    };
    let mut maps = MapNamespaces {
        own: owner,
        made: Vec::new(),
    };
    let trees = plan
        .mounts
        .iter()
        .map(|mount| match image_at(mount, images)? {
            Some(image) => {
                let tree = open_image(image, owner, features)?;
                finish(mount, tree, &mut maps).map(Some)
            }
            None => open_source(mount, &mut maps),
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Prepared {
        user,
        root,
        trees,
        devices,
    })
}

fn open_user(user: &UserPlan) -> Result<OwnedFd> {
    match &user.path {
        Some(path) => open_namespace(raw::CLONE_NEWUSER, path),
        None => user_namespace::of_maps(&user.maps),
    }
}

fn root_and_nodes(
    plan: &Plan,
    source: Rootfs<'_>,
    owner: Option<(BorrowedFd<'_>, &IdMaps)>,
    attic: Option<&Attic>,
    features: &Features,
) -> Result<(OwnedFd, Vec<OwnedFd>)> {
    let mapped = match owner {
        Some((namespace, maps)) => Some(Mapped {
            namespace,
            root: maps.root("linux.uidMappings, gidMappings")?,
            attic,
        }),
        None => None,
    };
    let root = rootfs::build(source, plan.mount_label.as_deref(), mapped, features)?;
    let devices = match owner {
        Some((_, maps)) => nodes(&plan.nodes.devices, maps, attic)?,
        None => Vec::new(),
    };
    Ok((root, devices))
}

/// Makes nodes in a tmpfs of the node's own, each with the owner it has inside, and returns a detached mount
/// of each. A tmpfs of the container's user namespace would not let them be opened.
fn nodes(list: &[DeviceNode], maps: &IdMaps, attic: Option<&Attic>) -> Result<Vec<OwnedFd>> {
    let doing = || "make a file system for device nodes";
    let context = mount::open_filesystem(c"tmpfs").doing(doing)?;
    let inodes = plan::c_string("nr_inodes", (list.len() + 2).to_string())?;
    rustix::mount::fsconfig_set_string(context.as_fd(), c"nr_inodes", &inodes).doing(doing)?;
    let ground =
        mount::mount_detached(context.as_fd(), mount::NOSUID | mount::NOEXEC).doing(doing)?;
    if let Some(attic) = attic {
        attic.attach(ground.as_fd())?;
    }
    list.iter()
        .enumerate()
        .map(|(index, node)| make_node(ground.as_fd(), index, node, maps))
        .collect()
}

fn make_node(
    ground: BorrowedFd<'_>,
    index: usize,
    node: &DeviceNode,
    maps: &IdMaps,
) -> Result<OwnedFd> {
    let shown = || {
        let directory = node.directory.to_string_lossy();
        format!("make device /{directory}/{}", node.name.to_string_lossy())
    };
    let name = plan::c_string("device", index.to_string())?;
    let mode = Mode::from_raw_mode(node.mode);
    rustix::fs::mknodat(ground, &name, node.kind, mode, node.number).doing(shown)?;
    // Before the mode: a change of owner clears some bits of it.
    let owner = maps.outside_uid(node.uid).zip(maps.outside_gid(node.gid));
    if let Some((uid, gid)) = owner {
        rustix::fs::chownat(
            ground,
            &name,
            Some(rustix::fs::Uid::from_raw(uid)),
            Some(rustix::fs::Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .doing(shown)?;
    }
    // Whatever the umask.
    rustix::fs::chmodat(ground, &name, mode, AtFlags::empty()).doing(shown)?;
    mount::clone_tree(ground, &name, false).doing(shown)
}

/// The user namespaces id-mapped mounts need: the container's own for its maps, others made once each.
struct MapNamespaces<'a> {
    own: Option<(BorrowedFd<'a>, &'a IdMaps)>,
    made: Vec<(IdMaps, OwnedFd)>,
}

impl MapNamespaces<'_> {
    fn of(&mut self, maps: &IdMaps) -> Result<BorrowedFd<'_>> {
        if let Some((namespace, own)) = self.own
            && own == maps
        {
            return Ok(namespace);
        }
        let at = match self.made.iter().position(|(made, _)| made == maps) {
            Some(at) => at,
            None => {
                self.made
                    .push((maps.clone(), user_namespace::of_maps(maps)?));
                self.made.len() - 1
            }
        };
        match self.made.get(at) {
            Some((_, namespace)) => Ok(namespace.as_fd()),
            None => Err(Error::new(ErrorKind::System, "a user namespace got lost")),
        }
    }
}

/// Namespaces to join, opened.
#[derive(Default)]
pub(super) struct Joins {
    pub(super) pid: Option<OwnedFd>,
    /// By their `CLONE_NEW*` bits.
    pub(super) others: Vec<(u32, OwnedFd)>,
}

/// Opens the namespaces to join and checks their kinds; the PID namespace comes apart, as it is
/// entered differently.
pub(super) fn open_namespaces(join: &[(u32, PathBuf)]) -> Result<Joins> {
    let mut joins = Joins::default();
    for (kind, path) in join {
        let opened = open_namespace(*kind, path)?;
        if *kind == raw::CLONE_NEWPID {
            joins.pid = Some(opened);
        } else {
            joins.others.push((*kind, opened));
        }
    }
    Ok(joins)
}

fn open_namespace(kind: u32, path: &Path) -> Result<OwnedFd> {
    let name = namespaces::name(kind);
    let shown = path.display();
    let opened = rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| format!("open the {name} namespace {shown}"))?;
    match fd::namespace_kind(opened.as_fd()) {
        Ok(found) if found == kind => Ok(opened),
        Ok(found) => Err(Error::invalid(format!(
            "{shown} is a {} namespace, not a {name} namespace",
            namespaces::name(found)
        ))),
        Err(_) => Err(Error::invalid(format!("{shown} is not a namespace"))),
    }
}

/// A detached copy of a bind mount's source with the attributes asked for. Links on the node are
/// followed, as CRI wants it; from here on the path is not looked at again (C2).
fn open_source(plan: &MountPlan, maps: &mut MapNamespaces<'_>) -> Result<Option<OwnedFd>> {
    let Source::Bind {
        path,
        recursive,
        optional,
        needs,
    } = &plan.source
    else {
        return Ok(None);
    };
    let name = plan::c_string("mounts: source", path.as_os_str().as_encoded_bytes())?;
    let tree = match mount::clone_tree(CWD, &name, *recursive) {
        Ok(tree) => tree,
        Err(Errno::NOENT) if *optional => return Ok(None),
        Err(errno) => return Err(Error::system(plan.describe(), errno)),
    };
    if plan.destination.as_c_str() == c"proc"
        && !procfs::is_procfs(tree.as_fd()).doing(|| plan.describe())?
    {
        return Err(Error::invalid(format!(
            "{}: only procfs may be there",
            plan.describe()
        )));
    }
    if let Some(needs) = needs {
        check_peer(path, *needs, plan)?;
    }
    finish(plan, tree, maps).map(Some)
}

/// Gives a detached copy the ids and attributes its mount is to have.
fn finish(plan: &MountPlan, tree: OwnedFd, maps: &mut MapNamespaces<'_>) -> Result<OwnedFd> {
    let Source::Bind { recursive, .. } = &plan.source else {
        return Ok(tree);
    };
    if let Some(id_map) = &plan.id_map {
        let namespace = maps.of(&id_map.maps)?;
        user_namespace::map_mount(tree.as_fd(), id_map.recursive, namespace, || {
            plan.describe()
        })?;
    }
    mount::set_attributes(tree.as_fd(), *recursive, plan.recursive).doing(|| plan.describe())?;
    let mut own = plan.attributes;
    if plan.late_readonly && plan.recursive.set & mount::RDONLY != 0 {
        own.clear |= mount::RDONLY; // set again by the child, when what goes inside is in place
    }
    if !own.is_empty() {
        mount::set_attributes(tree.as_fd(), false, own).doing(|| plan.describe())?;
    }
    Ok(tree)
}

/// The image that is mounted there instead of a source on the node.
fn image_at<'a>(plan: &MountPlan, images: &'a [ImageVolume]) -> Result<Option<&'a ImageVolume>> {
    for image in images {
        if plan::relative(&image.destination)? == plan.destination {
            return Ok(Some(image));
        }
    }
    Ok(None)
}

/// A detached mount of an image, with the ids its files have in the container's user namespace.
fn open_image(
    image: &ImageVolume,
    owner: Option<(BorrowedFd<'_>, &IdMaps)>,
    features: &Features,
) -> Result<OwnedFd> {
    let build = |attic: Option<&Attic>| {
        let mapped = match owner {
            Some((namespace, maps)) => Some(Mapped {
                namespace,
                root: maps.root("linux.uidMappings, gidMappings")?,
                attic,
            }),
            None => None,
        };
        image.build_for(mapped, features)
    };
    let built = match owner {
        Some(_) if !features.clone_detached => attic::within(|attic| build(Some(attic))),
        _ => build(None),
    };
    built.map_err(|error| error.context(format!("image at {}", image.destination.display())))
}

/// Whether the mount a source lies on is shared, or receives, as the propagation asked for needs.
fn check_peer(path: &Path, needs: Peer, plan: &MountPlan) -> Result<()> {
    let source = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing(|| plan.describe())?;
    let proc = procfs::open_host()?;
    let info = plan::c_string("fdinfo", format!("self/fdinfo/{}", source.as_raw_fd()))?;
    let info = procfs::read(proc.as_fd(), &info, 4096)?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(str::trim);
    let table = procfs::read(proc.as_fd(), c"self/mountinfo", MAX_MOUNT_TABLE)?;
    let line = table.lines().find(|line| line.split(' ').next() == id);
    let has = |tag: &str| {
        let fields = line
            .and_then(|line| line.split(" - ").next())
            .unwrap_or_default();
        fields
            .split(' ')
            .skip(6)
            .any(|field| field.starts_with(tag))
    };
    let (fits, wanted) = match needs {
        Peer::Shared => (has("shared:"), "shared"),
        Peer::SharedOrSlave => (has("shared:") || has("master:"), "shared or slave"),
    };
    if fits {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "{}: the propagation asked for needs a {wanted} mount at {}",
            plan.describe(),
            path.display()
        )))
    }
}

/// A detached mount of `/dev/null`, checked to be that device: never an image's (CVE-2025-31133).
pub(super) fn open_null() -> Result<OwnedFd> {
    let doing = || "open the node's /dev/null";
    let null = rustix::fs::openat(
        CWD,
        c"/dev/null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(doing)?;
    if !fd::is_character_device(null.as_fd(), 1, 3).doing(doing)? {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the node's /dev/null is not the null device",
        ));
    }
    let tree = mount::clone_tree(null.as_fd(), c"", false).doing(doing)?;
    let private = Attributes {
        propagation: libc::MS_PRIVATE,
        ..Attributes::default()
    };
    mount::set_attributes(tree.as_fd(), false, private).doing(doing)?;
    Ok(tree)
}
