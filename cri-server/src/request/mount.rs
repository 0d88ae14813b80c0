//! Mounts and devices of a container.

use std::path::PathBuf;

use bulkhead_proto::runtime::v1;
use bulkhead_runtime::idmap::IdMaps;

use super::image::ImageRequest;
use super::{enumeration, ids, invalid, text};
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

/// An image to be seen in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSource {
    /// Its id or name.
    pub reference: String,
    /// What of it, relative to its root; none is all.
    pub sub_path: Option<PathBuf>,
}

/// A directory or file of the node, or an image, to be seen in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// Where, inside: absolute and without `..`.
    pub container_path: PathBuf,
    /// What, on the node: absolute; symlinks in it are followed. Empty for an image.
    pub host_path: PathBuf,
    /// An image instead.
    pub image: Option<ImageSource>,
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
    /// A missing source is an error instead of made.
    pub must_exist: bool,
}

impl MountRequest {
    /// A plain writable bind mount.
    pub fn new(field: &str, host: &str, container: &str) -> Result<Self, Failure> {
        let mount = v1::Mount {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            ..Default::default()
        };
        Self::parse(field, &mount)
    }

    pub(super) fn parse(field: &str, mount: &v1::Mount) -> Result<Self, Failure> {
        let at = |name: &str| format!("{field}.{name}");
        let container_path = text::container_path(&at("container_path"), &mount.container_path)?;
        if container_path.parent().is_none() {
            return Err(invalid(&at("container_path"), "the root is the image's"));
        }
        let image = image(field, mount)?;
        let host_path = match text::host_path(&at("host_path"), &mount.host_path)? {
            None if image.is_some() => PathBuf::new(),
            Some(_) if image.is_some() => {
                return Err(invalid(
                    &at("host_path"),
                    "excludes image: send one of the two",
                ));
            }
            None => return Err(invalid(&at("host_path"), "is required")),
            Some(path) => path,
        };
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
        if image.is_some() && propagation != Propagation::Private {
            return Err(invalid(
                &at("propagation"),
                "an image has nothing to propagate: PROPAGATION_PRIVATE is meant",
            ));
        }
        Ok(Self {
            container_path,
            host_path,
            image,
            readonly: mount.readonly,
            recursive_read_only: mount.recursive_read_only,
            selinux_relabel: mount.selinux_relabel,
            propagation,
            id_maps: ids::mount(field, &mount.uid_mappings, &mount.gid_mappings)?,
            options: options(&at("mount_options"), &mount.mount_options)?,
            must_exist: false,
        })
    }
}

/// The image of a mount, which is then read-only.
fn image(field: &str, mount: &v1::Mount) -> Result<Option<ImageSource>, Failure> {
    let at = |name: &str| format!("{field}.{name}");
    let sub_path = text::relative_path(&at("image_sub_path"), &mount.image_sub_path)?;
    let Some(spec) = &mount.image else {
        return match sub_path {
            Some(_) => Err(invalid(&at("image_sub_path"), "is meant only with image")),
            None => Ok(None),
        };
    };
    if !mount.readonly {
        return Err(invalid(
            &at("readonly"),
            "an image can only be mounted read-only",
        ));
    }
    let reference = ImageRequest::parse(&at("image"), spec)?.reference;
    Ok(Some(ImageSource {
        reference,
        sub_path,
    }))
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
    /// The number, as far as it isn't to be the node's.
    pub number: DeviceNumber,
    /// Permission bits other than the node's.
    pub mode: Option<u32>,
    /// Another owner than the node's.
    pub uid: Option<u32>,
    /// Another group than the node's.
    pub gid: Option<u32>,
}

/// What a device is, as far as it is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceNumber {
    /// A block device, else a character device.
    pub block: Option<bool>,
    /// Major number.
    pub major: Option<i64>,
    /// Minor number.
    pub minor: Option<i64>,
}

impl DeviceRequest {
    /// A device with the node's number, mode and owner.
    pub fn new(
        field: &str,
        host: &str,
        container: &str,
        permissions: &str,
    ) -> Result<Self, Failure> {
        let device = v1::Device {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            permissions: permissions.to_owned(),
        };
        Self::parse(field, &device)
    }

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
            number: DeviceNumber::default(),
            mode: None,
            uid: None,
            gid: None,
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
            ("m.image_sub_path", Class::Invalid, |m| {
                m.image_sub_path = "a".into();
            }),
        ];
        refuse_all(&cases, mount());
        let cases: [(&str, Class, Edit); 6] = [
            ("m.readonly", Class::Invalid, |m| m.readonly = false),
            ("m.host_path", Class::Invalid, |m| {
                m.host_path = "/srv".into()
            }),
            ("m.image.image", Class::Invalid, |m| {
                m.image = Some(v1::ImageSpec::default());
            }),
            ("m.image_sub_path", Class::Invalid, |m| {
                m.image_sub_path = "a/../b".into();
            }),
            ("m.image_sub_path", Class::Invalid, |m| {
                m.image_sub_path = "/a".into();
            }),
            ("m.propagation", Class::Invalid, |m| m.propagation = 1),
        ];
        refuse_all(&cases, image());
    }

    type Edit = fn(&mut v1::Mount);

    fn image() -> v1::Mount {
        v1::Mount {
            container_path: "/data".into(),
            readonly: true,
            image: Some(v1::ImageSpec {
                image: "sha256:1".into(),
                ..Default::default()
            }),
            image_sub_path: "a/b/".into(),
            ..Default::default()
        }
    }

    #[test]
    fn an_image_is_mounted_read_only_whole_or_in_part() {
        let parsed = MountRequest::parse("m", &image()).unwrap();
        let image = parsed.image.unwrap();
        assert_eq!(image.reference, "sha256:1");
        assert_eq!(image.sub_path, Some(PathBuf::from("a/b")));
        assert!(parsed.readonly && parsed.host_path.as_os_str().is_empty());
    }

    fn refuse_all(cases: &[(&str, Class, Edit)], good: v1::Mount) {
        for (field, class, edit) in cases {
            let mut given = good.clone();
            edit(&mut given);
            let failure = MountRequest::parse("m", &given).expect_err(field);
            assert!(
                failure.message().starts_with(&format!("{field}: ")),
                "{failure}"
            );
            assert_eq!(failure.class(), *class, "{failure}");
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
