//! Mounts and devices of a container.

use std::path::PathBuf;

use bulkhead_proto::runtime::v1;
use bulkhead_runtime::idmap::IdMaps;

use super::{enumeration, ids, invalid, text, unsupported};
use crate::failure::Failure;

/// How mounts made on one side of a bind mount appear on the other (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// From the node into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A directory or file of the node to be seen in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// Where, inside: absolute and without `..`.
    pub container_path: PathBuf,
    /// What, on the node: absolute; symlinks in it are followed.
    pub host_path: PathBuf,
    /// Not writable at the top of the tree.
    pub readonly: bool,
    /// Not writable in the whole tree.
    pub recursive_read_only: bool,
    /// Relabel the source for SELinux; nothing to do on a node without it.
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// Whose ids the files' ids are shown as; none shows them as they are. Honoured or refused, never
    /// passed over.
    pub id_maps: Option<IdMaps>,
    /// `noexec`, `nodev`, `nosuid`, each at most once.
    pub options: Vec<String>,
}

impl MountRequest {
    pub(super) fn parse(field: &str, mount: &v1::Mount) -> Result<Self, Failure> {
        let at = |name: &str| format!("{field}.{name}");
        if mount.image.is_some() || !mount.image_sub_path.is_empty() {
            return Err(unsupported(
                &at("image"),
                "image volumes are not provided by this version; copy the files into the \
                 container's image or an emptyDir",
            ));
        }
        let container_path = text::container_path(&at("container_path"), &mount.container_path)?;
        if container_path.parent().is_none() {
            return Err(invalid(&at("container_path"), "the root is the image's"));
        }
        let host_path = text::host_path(&at("host_path"), &mount.host_path)?
            .ok_or_else(|| invalid(&at("host_path"), "is required"))?;
        let propagation = match enumeration(&at("propagation"), mount.propagation)? {
            v1::MountPropagation::PropagationPrivate => Propagation::Private,
            v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
            v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
        };
        if mount.recursive_read_only && !mount.readonly {
            return Err(invalid(&at("recursive_read_only"), "needs readonly"));
        }
        if mount.recursive_read_only && propagation != Propagation::Private {
            return Err(invalid(
                &at("recursive_read_only"),
                "needs propagation PROPAGATION_PRIVATE",
            ));
        }
        Ok(Self {
            container_path,
            host_path,
            readonly: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
            selinux_relabel: mount.selinux_relabel,
            propagation,
            id_maps: ids::mount(field, &mount.uid_mappings, &mount.gid_mappings)?,
            options: options(&at("mount_options"), &mount.mount_options)?,
        })
    }
}

fn options(field: &str, given: &[String]) -> Result<Vec<String>, Failure> {
    text::bounded(field, given)?;
    let mut options: Vec<String> = Vec::new();
    for option in given {
        if !["noexec", "nodev", "nosuid"].contains(&option.as_str()) {
            return Err(invalid(
                field,
                format_args!(
                    "\"{}\" is none of noexec, nodev, nosuid",
                    option.chars().take(32).collect::<String>()
                ),
            ));
        }
        if !options.contains(option) {
            options.push(option.clone());
        }
    }
    Ok(options)
}

/// A device of the node to be made in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Where, inside; for a directory of devices the root of what is below it.
    pub container_path: PathBuf,
    /// The device, a link to it, or a directory of devices.
    pub host_path: PathBuf,
    /// Some of `rwm`.
    pub permissions: String,
}

impl DeviceRequest {
    pub(super) fn parse(field: &str, device: &v1::Device) -> Result<Self, Failure> {
        let at = |name: &str| format!("{field}.{name}");
        let host_path = text::host_path(&at("host_path"), &device.host_path)?
            .ok_or_else(|| invalid(&at("host_path"), "is required"))?;
        let container_path = if device.container_path.is_empty() {
            text::container_path(&at("host_path"), &device.host_path)?
        } else {
            text::container_path(&at("container_path"), &device.container_path)?
        };
        let given = device.permissions.as_str();
        let permissions = if given.is_empty() { "rwm" } else { given };
        let once = |c: char| permissions.matches(c).count() <= 1;
        if !permissions.chars().all(|c| "rwm".contains(c) && once(c)) {
            return Err(invalid(
                &at("permissions"),
                "is made of r, w and m, each at most once",
            ));
        }
        Ok(Self {
            container_path,
            host_path,
            permissions: permissions.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;

    fn mount() -> v1::Mount {
        v1::Mount {
            container_path: "/data".into(),
            host_path: "/srv/data".into(),
            ..Default::default()
        }
    }

    #[test]
    fn options_of_a_mount_are_kept_each_once() {
        let given = v1::Mount {
            readonly: true,
            recursive_read_only: true,
            mount_options: ["noexec", "nosuid", "noexec"].map(str::to_owned).to_vec(),
            ..mount()
        };
        let parsed = MountRequest::parse("m", &given).unwrap();
        assert!(parsed.recursive_read_only);
        assert_eq!(parsed.options, ["noexec", "nosuid"]);
    }

    #[test]
    fn mounts_that_can_not_be_made_as_asked_are_refused() {
        type Edit = fn(&mut v1::Mount);
        let cases: [(&str, Class, Edit); 15] = [
            ("m.container_path", Class::Invalid, |m| {
                m.container_path.clear()
            }),
            ("m.container_path", Class::Invalid, |m| {
                m.container_path = "data".into()
            }),
            ("m.container_path", Class::Invalid, |m| {
                m.container_path = "/".into()
            }),
            ("m.container_path", Class::Invalid, |m| {
                m.container_path = "/a/../..".into()
            }),
            ("m.container_path", Class::Invalid, |m| {
                m.container_path = "/a\n".into()
            }),
            ("m.host_path", Class::Invalid, |m| m.host_path.clear()),
            ("m.host_path", Class::Invalid, |m| {
                m.host_path = "srv".into()
            }),
            ("m.host_path", Class::Invalid, |m| {
                m.host_path = "/a\0b".into()
            }),
            ("m.propagation", Class::Invalid, |m| m.propagation = 3),
            ("m.recursive_read_only", Class::Invalid, |m| {
                m.recursive_read_only = true
            }),
            ("m.recursive_read_only", Class::Invalid, |m| {
                m.readonly = true;
                m.recursive_read_only = true;
                m.propagation = 1;
            }),
            ("m.mount_options", Class::Invalid, |m| {
                m.mount_options = vec!["exec".into()]
            }),
            ("m.uidMappings[0]", Class::Invalid, |m| {
                m.uid_mappings = vec![v1::IdMapping::default()];
                m.gid_mappings = vec![v1::IdMapping::default()];
            }),
            ("m.uidMappings", Class::Invalid, |m| {
                m.gid_mappings = vec![v1::IdMapping::default()];
            }),
            ("m.image", Class::Unsupported, |m| {
                m.image = Some(v1::ImageSpec::default())
            }),
        ];
        for (field, class, edit) in cases {
            let mut given = mount();
            edit(&mut given);
            let failure = MountRequest::parse("m", &given).expect_err(field);
            assert!(
                failure.message().starts_with(&format!("{field}: ")),
                "{failure}"
            );
            assert_eq!(failure.class(), class, "{failure}");
        }
    }

    #[test]
    fn device_permissions_are_some_of_rwm() {
        for (permissions, expected) in [
            ("", Some("rwm")),
            ("r", Some("r")),
            ("mr", Some("mr")),
            ("rr", None),
            ("x", None),
        ] {
            let given = v1::Device {
                container_path: String::new(),
                host_path: "/dev/fuse".into(),
                permissions: permissions.into(),
            };
            let parsed = DeviceRequest::parse("d", &given).ok();
            assert_eq!(parsed.as_ref().map(|d| d.permissions.as_str()), expected);
            if let Some(device) = parsed {
                assert_eq!(device.container_path, device.host_path);
            }
        }
    }
}
