//! Where a pod's cgroup is, by the node's driver. Pure.
//!
//! With cgroupfs it is a child of the request's parent. With systemd the parent is a slice and the
//! pod has a scope in it, delegated to us (systemd.resource-control(5), `Delegate=`): in the scope
//! lie the monitor's group and the pod's, and below that those of its containers. systemd leaves
//! alone what is below a delegated unit, at a daemon-reload too.

use crate::config::{Cgroup, CgroupDriver};
use crate::failure::Failure;
use crate::request::SandboxRequest;

const FIELD: &str = "linux.cgroup_parent";

/// The pod's group within its scope; beside it lies the monitor's.
const POD: &str = "pod";

/// A pod's systemd scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The unit.
    pub name: String,
    /// The slice it is in.
    pub slice: String,
    /// Its cgroup.
    pub path: String,
}

/// The cgroup of the pod with this id: below the request's parent or, if it names none, the node's.
/// Absolute within each hierarchy, and one that can be made: a pod recorded with another could not
/// be taken down.
pub fn path(request: &SandboxRequest, node: &Cgroup, id: &str) -> Result<String, Failure> {
    let parent = request.cgroup_parent.as_deref().unwrap_or(&node.parent);
    let path = match node.driver {
        CgroupDriver::Cgroupfs => below(parent, id)?,
        CgroupDriver::Systemd => format!("{}/{}/{POD}", slice_path(parent)?, scope_name(id)),
    };
    let checked = bulkhead_runtime::cgroup::check_path(&path);
    checked.map_err(|error| Failure::from(error).context(FIELD))?;
    Ok(path)
}

/// The scope a pod's cgroup is in, if it was made with the systemd driver.
pub fn scope(path: &str) -> Option<Scope> {
    let path = path.strip_suffix(POD)?.strip_suffix('/')?;
    let (parent, name) = path.rsplit_once('/')?;
    let (_, slice) = parent.rsplit_once('/')?;
    let is_scope = name.starts_with("cri-") && name.ends_with(".scope");
    (is_scope && slice.ends_with(".slice")).then(|| Scope {
        name: name.to_owned(),
        slice: slice.to_owned(),
        path: path.to_owned(),
    })
}

fn scope_name(id: &str) -> String {
    format!("cri-{id}.scope")
}

fn below(parent: &str, id: &str) -> Result<String, Failure> {
    let parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| part.ends_with(".slice")) {
        return Err(Failure::invalid(format!(
            "{FIELD}: \"{parent}\" is a systemd slice, but this node's cgroup driver is cgroupfs; \
             the kubelet asks for the driver by RuntimeConfig, or set its cgroupDriver to cgroupfs"
        )));
    }
    Ok(format!("/{}/{id}", parts.join("/")))
}

/// The cgroup of a slice, given by name or by that cgroup. A slice's name is its path: `a-b.slice`
/// lies in `a.slice` (systemd.slice(5)).
pub fn slice_path(parent: &str) -> Result<String, Failure> {
    let refused = |why: &str| Err(Failure::invalid(format!("{FIELD}: \"{parent}\" {why}")));
    let trimmed = parent.trim_matches('/');
    let name = trimmed.rsplit('/').next().unwrap_or(trimmed);
    let Some(stem) = name.strip_suffix(".slice") else {
        return refused(
            "is no systemd slice, but this node's cgroup driver is systemd; the kubelet asks for \
             the driver by RuntimeConfig, or set its cgroupDriver to systemd",
        );
    };
    if stem.is_empty() || stem.split('-').any(str::is_empty) {
        return refused("is no slice's name: systemd.slice(5) has its form");
    }
    let ends = stem.match_indices('-').map(|(at, _)| at);
    let path: String = ends
        .chain(std::iter::once(stem.len()))
        .map(|end| format!("/{}.slice", &stem[..end]))
        .collect();
    match trimmed == name || path == format!("/{trimmed}") {
        true => Ok(path),
        false => refused("is not where a slice of that name lies"),
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::runtime::v1;

    use super::*;
    use crate::request::sandbox::parse;

    fn asked(parent: Option<&str>) -> SandboxRequest {
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                ..Default::default()
            }),
            hostname: "web".into(),
            ..Default::default()
        };
        SandboxRequest {
            cgroup_parent: parent.map(str::to_owned),
            ..parse(&config, "").unwrap()
        }
    }

    #[test]
    fn the_pod_s_cgroup_is_below_its_parent_as_the_driver_has_it() {
        let cgroupfs = Cgroup::default();
        let systemd = Cgroup {
            driver: CgroupDriver::Systemd,
            parent: "bulkhead-pods.slice".to_owned(),
        };
        for (node, parent, expected) in [
            (&cgroupfs, None, Some("/bulkhead/pods/p1")),
            (&cgroupfs, Some("/kubepods/pod1"), Some("/kubepods/pod1/p1")),
            (
                &cgroupfs,
                Some("kubepods//pod1/"),
                Some("/kubepods/pod1/p1"),
            ),
            (&cgroupfs, Some("/kubepods.slice/pod1.slice"), None),
            (&cgroupfs, Some("kubepods-pod1.slice"), None),
            (&cgroupfs, Some("/kubepods/cgroup.procs"), None),
            (&cgroupfs, Some("/kubepods/a:b"), None),
            (
                &systemd,
                None,
                Some("/bulkhead.slice/bulkhead-pods.slice/cri-p1.scope/pod"),
            ),
            (&systemd, Some("a.slice"), Some("/a.slice/cri-p1.scope/pod")),
            (
                &systemd,
                Some("/a.slice/a-b.slice"),
                Some("/a.slice/a-b.slice/cri-p1.scope/pod"),
            ),
            (&systemd, Some("/kubepods/pod1"), None),
            (&systemd, Some("/x.slice/a-b.slice"), None),
            (&systemd, Some("a--b.slice"), None),
            (&systemd, Some("-.slice"), None),
            (&systemd, Some(".slice"), None),
        ] {
            let path = path(&asked(parent), node, "p1");
            assert_eq!(
                path.ok().as_deref(),
                expected,
                "{:?} {parent:?}",
                node.driver
            );
        }
    }

    #[test]
    fn a_scope_is_known_by_its_path() {
        let found = scope("/a.slice/a-b.slice/cri-p1.scope/pod").unwrap();
        assert_eq!(found.name, "cri-p1.scope");
        assert_eq!(found.slice, "a-b.slice");
        assert_eq!(found.path, "/a.slice/a-b.slice/cri-p1.scope");
        for other in [
            "/bulkhead/pods/p1",
            "/kubepods/pod",
            "/cri-p1.scope/pod",
            "/a/cri-p1.scope/pod",
        ] {
            assert_eq!(scope(other), None, "{other}");
        }
    }
}
