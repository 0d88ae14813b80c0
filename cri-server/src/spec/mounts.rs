//! A container's mounts: the runtime's own, the pod's files, the image's volumes, and those asked
//! for, which go before all of these.

use std::path::{Component, Path, PathBuf};

use bulkhead_runtime::idmap::IdMaps;
use bulkhead_runtime::monitor::wire::PodPaths;
use oci_spec::runtime::Mount;

use super::mount_table::MountTable;
use crate::failure::Failure;
use crate::request::mount::{MountRequest, Propagation};

/// Files that exist once a pod.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// For `/etc/hostname`.
    pub hostname: &'a Path,
    /// For `/etc/hosts`.
    pub hosts: &'a Path,
    /// For `/etc/resolv.conf`.
    pub resolv_conf: &'a Path,
}

/// A volume of the image, to be seeded with what the image has at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVolume {
    /// Where it is in the container.
    pub destination: PathBuf,
    /// The directory on the node, of the container's own.
    pub source: PathBuf,
}

/// What decides the mounts.
#[derive(Clone, Copy, Debug)]
pub struct MountInputs<'a> {
    /// As asked for.
    pub requests: &'a [MountRequest],
    /// The host path of each request with its links resolved, in the same order.
    pub sources: &'a [PathBuf],
    /// The node's mounts.
    pub table: &'a MountTable,
    /// The pod's shared memory.
    pub paths: &'a PodPaths,
    /// The pod's files.
    pub files: Files<'a>,
    /// Volumes of the image, as its configuration names them.
    pub volumes: &'a [String],
    /// The directory for them.
    pub volumes_directory: &'a Path,
    /// Nothing is read-only, the node's devices are there.
    pub privileged: bool,
    /// The root file system can't be written, nor the pod's files.
    pub readonly_rootfs: bool,
    /// The pod's user namespace.
    pub user: Option<&'a IdMaps>,
    /// The pod is on the node's network.
    pub host_network: bool,
}

/// Mounts by depth (a mount must not hide one below it, whatever the request's order: case S5),
/// volumes, and the root's propagation.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// In the order they are to be made.
    pub mounts: Vec<Mount>,
    /// To be made and seeded before the start.
    pub volumes: Vec<ImageVolume>,
    /// `rootfsPropagation`: that of the strongest mount.
    pub root_propagation: Option<String>,
}

/// Decides the mounts.
pub fn plan(inputs: &MountInputs<'_>) -> Result<MountPlan, Failure> {
    let asked = asked(inputs)?;
    let replaced = |path: &Path| {
        inputs.requests.iter().any(|request| {
            let at = &request.container_path;
            // Whoever brings a whole /dev or /sys brings what is below, too.
            at == path || (is_tree(at) && path.starts_with(at))
        })
    };
    let mut mounts: Vec<Mount> = own(inputs)
        .into_iter()
        .filter(|mount| !replaced(mount.destination()))
        .collect();
    let mut volumes = Vec::new();
    for name in inputs.volumes {
        let destination = volume_path(name)?;
        let taken = |mount: &Mount| *mount.destination() == destination;
        if mounts.iter().any(taken) || asked.iter().any(taken) {
            continue;
        }
        let source = inputs.volumes_directory.join(volumes.len().to_string());
        let mount = bind(&destination, &source, &["rprivate", "rw"]);
        mounts.push(mapped(mount, inputs.user));
        volumes.push(ImageVolume {
            destination,
            source,
        });
    }
    mounts.extend(asked);
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(MountPlan {
        mounts,
        volumes,
        root_propagation: root_propagation(inputs.requests),
    })
}

fn is_tree(path: &Path) -> bool {
    path == Path::new("/dev") || path == Path::new("/sys")
}

/// The runtime's own mounts (OCI runtime specification, "Default Filesystems"; options as the
/// peers') and the pod's.
fn own(inputs: &MountInputs<'_>) -> Vec<Mount> {
    const SAFE: [&str; 3] = ["nosuid", "noexec", "nodev"];
    let mode = if inputs.privileged { "rw" } else { "ro" };
    let files_mode = if inputs.readonly_rootfs { "ro" } else { "rw" };
    let with =
        |more: &[&'static str]| -> Vec<&'static str> { SAFE.iter().chain(more).copied().collect() };
    let shm = inputs.paths.shm.as_deref();
    let mut mounts = vec![
        filesystem("/proc", "proc", "proc", &SAFE),
        filesystem(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        filesystem(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        filesystem("/dev/mqueue", "mqueue", "mqueue", &SAFE),
        if inputs.user.is_some() && inputs.host_network {
            // A sysfs shows a network namespace, and may be mounted by its owner only.
            bind(
                Path::new("/sys"),
                Path::new("/sys"),
                &with(&["rprivate", "rro"]),
            )
        } else {
            filesystem("/sys", "sysfs", "sysfs", &with(&[mode]))
        },
        filesystem(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &with(&["relatime", mode]),
        ),
        // With the node's IPC the node's, else the one the pod's containers share.
        bind(
            Path::new("/dev/shm"),
            shm.unwrap_or(Path::new("/dev/shm")),
            &with(&["rprivate", "rw"]),
        ),
    ];
    for (destination, source) in [
        ("/etc/hostname", inputs.files.hostname),
        ("/etc/hosts", inputs.files.hosts),
        ("/etc/resolv.conf", inputs.files.resolv_conf),
    ] {
        let options = with(&["rprivate", files_mode]);
        let mount = bind(Path::new(destination), source, &options);
        mounts.push(mapped(mount, inputs.user));
    }
    mounts
}

fn asked(inputs: &MountInputs<'_>) -> Result<Vec<Mount>, Failure> {
    if inputs.sources.len() != inputs.requests.len() {
        return Err(Failure::internal(format!(
            "{} sources for {} mounts",
            inputs.sources.len(),
            inputs.requests.len()
        )));
    }
    inputs
        .requests
        .iter()
        .zip(inputs.sources)
        .map(|(request, source)| one(request, source, inputs.table))
        .collect()
}

fn one(request: &MountRequest, source: &Path, table: &MountTable) -> Result<Mount, Failure> {
    let at = request.container_path.display();
    if request.container_path == Path::new("/proc") {
        return Err(Failure::invalid(
            "mounts: /proc is the container's own; mount the node's elsewhere, such as /host/proc",
        ));
    }
    if let Some(image) = &request.image {
        let mode = if request.recursive_read_only {
            "rro"
        } else {
            "ro"
        };
        let mut options = vec!["rprivate", mode];
        options.extend(request.options.iter().map(String::as_str));
        return Ok(bind(
            &request.container_path,
            &image_source(&image.reference),
            &options,
        ));
    }
    let peer = table.containing(source);
    let (shared, slave) = peer.map_or((false, false), |mount| (mount.shared, mount.slave));
    let needs = |what: &str, how: &str| {
        Failure::precondition(format!(
            "mounts: {at}: propagation {what}, but {} is on a mount that is not {how}; \
             make it so with mount --make-shared {}",
            source.display(),
            peer.map_or(source, |mount| &mount.path).display()
        ))
    };
    let propagation = match request.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer if shared || slave => "rslave",
        Propagation::HostToContainer => {
            return Err(needs("HostToContainer", "shared or a slave"));
        }
        Propagation::Bidirectional if shared => "rshared",
        Propagation::Bidirectional => return Err(needs("Bidirectional", "shared")),
    };
    let mode = match (request.readonly, request.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let mut options = vec![propagation, mode];
    options.extend(request.options.iter().map(String::as_str));
    let mount = bind(&request.container_path, source, &options);
    Ok(mapped(mount, request.id_maps.as_ref()))
}

/// The mount with its files' ids shown as these maps say.
fn mapped(mut mount: Mount, maps: Option<&IdMaps>) -> Mount {
    if let Some(maps) = maps {
        let (uids, gids) = maps.to_oci();
        mount
            .set_uid_mappings(Some(uids))
            .set_gid_mappings(Some(gids));
    }
    mount
}

/// What stands in the spec as the source of an image: a path that can't exist, so that a launcher
/// that is not told of the image mounts nothing else in its place.
fn image_source(reference: &str) -> PathBuf {
    PathBuf::from(format!("/dev/null/image/{reference}"))
}

/// Propagation inside the container's tree can't be stronger than the root's.
fn root_propagation(requests: &[MountRequest]) -> Option<String> {
    let any = |wanted| requests.iter().any(|request| request.propagation == wanted);
    if any(Propagation::Bidirectional) {
        Some("rshared".to_owned())
    } else if any(Propagation::HostToContainer) {
        Some("rslave".to_owned())
    } else {
        None
    }
}

/// A volume's place as an image names it; a relative one is meant from the root.
fn volume_path(name: &str) -> Result<PathBuf, Failure> {
    let fault = |why: &str| Failure::invalid(format!("the image's volume {name:?} {why}"));
    if name.len() > 4095 || name.contains('\0') {
        return Err(fault("is no path"));
    }
    let mut path = PathBuf::from("/");
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => return Err(fault("holds \"..\"")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if path.parent().is_none() {
        return Err(fault("is the root itself"));
    }
    Ok(path)
}

fn filesystem(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    mount(
        Path::new(destination),
        kind,
        Path::new(source),
        options,
        &[],
    )
}

fn bind(destination: &Path, source: &Path, options: &[&str]) -> Mount {
    mount(destination, "bind", source, &["rbind"], options)
}

fn mount(destination: &Path, kind: &str, source: &Path, first: &[&str], rest: &[&str]) -> Mount {
    let options = first.iter().chain(rest).map(|o| (*o).to_owned()).collect();
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_path_buf())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_path_buf()))
        .set_options(Some(options))
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    mount
}

#[cfg(test)]
mod tests;
