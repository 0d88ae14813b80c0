//! What CDI devices need, put into the request: from here on it is treated as if it had been asked
//! for, checks included. Pure.

use std::path::Path;

use super::spec::{DeviceNode, Edits, Mount};
use crate::failure::Failure;
use crate::request::container::{ContainerRequest, EnvVar};
use crate::request::mount::{DeviceNumber, DeviceRequest, MountRequest, Propagation};

/// Adds variables (over the request's), devices and mounts to a request, and returns the groups its
/// process is to have besides.
pub fn merge(edits: &Edits, request: &mut ContainerRequest) -> Result<Vec<u32>, Failure> {
    for entry in &edits.env {
        set_variable(entry, &mut request.envs)?;
    }
    for node in &edits.device_nodes {
        let at = |failure: Failure| failure.context(format!("CDI device node {:?}", node.path));
        request.devices.push(device(node).map_err(at)?);
    }
    let own = request.mounts.len();
    for mount in &edits.mounts {
        let at =
            |failure: Failure| failure.context(format!("CDI mount on {:?}", mount.container_path));
        let new = bind(mount).map_err(at)?;
        let same = |other: &&MountRequest| other.container_path == new.container_path;
        match request
            .mounts
            .iter()
            .enumerate()
            .find(|(_, other)| same(other))
        {
            None => request.mounts.push(new),
            // Devices of one vendor often need the same.
            Some((index, other)) if index >= own && *other == new => {}
            Some(_) => return Err(at(Failure::invalid("something else is mounted there"))),
        }
    }
    Ok(edits.additional_gids.clone())
}

fn set_variable(entry: &str, envs: &mut Vec<EnvVar>) -> Result<(), Failure> {
    let pair = entry.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair
        .filter(|_| !entry.contains('\0'))
        .ok_or_else(|| Failure::invalid(format!("CDI variable {entry:?} is no assignment")))?;
    let new = EnvVar {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    match envs.iter_mut().find(|known| known.name == name) {
        Some(known) => *known = new,
        None => envs.push(new),
    }
    Ok(())
}

fn device(node: &DeviceNode) -> Result<DeviceRequest, Failure> {
    let host = node.host_path.as_deref().filter(|path| !path.is_empty());
    let host = host.unwrap_or(&node.path);
    let permissions = node.permissions.as_deref().unwrap_or_default();
    let mut device = DeviceRequest::new("device", host, &node.path, permissions)?;
    let block = match node.kind.as_deref() {
        None | Some("") => None,
        Some("b") => Some(true),
        Some("c" | "u") => Some(false),
        Some(other) => {
            return Err(Failure::invalid(format!(
                "type {other:?} is none of b, c, u"
            )));
        }
    };
    device.number = DeviceNumber {
        block,
        major: node.major,
        minor: node.minor,
    };
    device.mode = node.file_mode.map(|mode| mode & 0o777);
    device.uid = node.uid;
    device.gid = node.gid;
    Ok(device)
}

fn bind(mount: &Mount) -> Result<MountRequest, Failure> {
    if !matches!(mount.kind.as_deref(), None | Some("" | "none" | "bind")) {
        return Err(Failure::invalid(format!(
            "type {:?} is not bind",
            mount.kind
        )));
    }
    // A missing source of a request's mount is made; a vendor's is a fault of the vendor's.
    let mut new = MountRequest::new("mount", &mount.host_path, &mount.container_path)?;
    new.must_exist = true;
    for option in &mount.options {
        match option.as_str() {
            "bind" | "rbind" | "rw" | "private" | "rprivate" => {}
            "ro" => new.readonly = true,
            "slave" | "rslave" => new.propagation = Propagation::HostToContainer,
            "shared" | "rshared" => new.propagation = Propagation::Bidirectional,
            "noexec" | "nodev" | "nosuid" => {
                if !new.options.contains(option) {
                    new.options.push(option.clone());
                }
            }
            other => {
                return Err(Failure::invalid(format!(
                    "option {other:?} is not provided"
                )));
            }
        }
    }
    if new.container_path == Path::new("/dev") {
        return Err(Failure::invalid("/dev is the container's own"));
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::runtime::v1;
    use serde_json::json;

    use super::*;
    use crate::request;

    fn wanted(edits: serde_json::Value) -> Result<(ContainerRequest, Vec<u32>), Failure> {
        let metadata = v1::PodSandboxMetadata {
            name: "p".into(),
            ..Default::default()
        };
        let pod = v1::PodSandboxConfig {
            metadata: Some(metadata),
            ..Default::default()
        };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "c".into(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: "i".into(),
                ..Default::default()
            }),
            envs: vec![v1::KeyValue {
                key: "A".into(),
                value: b"own".to_vec(),
            }],
            mounts: vec![v1::Mount {
                container_path: "/own".into(),
                host_path: "/srv".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let pod = request::sandbox::parse(&pod, "")?;
        let mut request = request::container::parse(&config, &pod)?;
        let edits: Edits = serde_json::from_value(edits).unwrap();
        merge(&edits, &mut request).map(|groups| (request, groups))
    }

    #[test]
    fn edits_become_part_of_the_request() {
        let mount = json!({"hostPath": "/lib", "containerPath": "/v", "options": ["ro", "nosuid"]});
        let (request, groups) = wanted(json!({
            "env": ["A=vendor", "B=2"],
            "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "permissions": "r",
                             "type": "c", "major": 1, "minor": 3, "fileMode": 0o100_600, "uid": 7}],
            "mounts": [mount, mount],
            "additionalGids": [44],
        }))
        .unwrap();
        let envs: Vec<_> = request.envs.iter().map(|e| (&*e.name, &*e.value)).collect();
        assert_eq!(envs, [("A", "vendor"), ("B", "2")]);
        let device = &request.devices[0];
        assert_eq!(device.container_path, Path::new("/dev/x"));
        assert_eq!(
            (device.mode, device.uid, device.gid),
            (Some(0o600), Some(7), None)
        );
        assert_eq!(device.permissions, "r");
        assert_eq!(request.mounts.len(), 2);
        assert!(request.mounts[1].readonly && request.mounts[1].must_exist);
        assert_eq!(groups, [44]);
    }

    #[test]
    fn edits_pass_the_request_s_own_checks() {
        for edits in [
            json!({"env": ["=x"]}),
            json!({"deviceNodes": [{"path": "dev/x"}]}),
            json!({"deviceNodes": [{"path": "/dev/x", "permissions": "z"}]}),
            json!({"deviceNodes": [{"path": "/dev/x", "type": "p"}]}),
            json!({"mounts": [{"hostPath": "/lib", "containerPath": "/own"}]}),
            json!({"mounts": [{"hostPath": "/lib", "containerPath": "/"}]}),
            json!({"mounts": [{"hostPath": "/lib", "containerPath": "/a/../.."}]}),
            json!({"mounts": [{"hostPath": "/lib", "containerPath": "/v", "options": ["suid"]}]}),
            json!({"mounts": [{"hostPath": "x", "containerPath": "/v", "type": "tmpfs"}]}),
            json!({"mounts": [{"hostPath": "/a", "containerPath": "/v"},
                              {"hostPath": "/b", "containerPath": "/v"}]}),
        ] {
            assert!(wanted(edits.clone()).is_err(), "{edits}");
        }
    }
}
