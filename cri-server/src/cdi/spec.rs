//! One file of a vendor: YAML or JSON, bounded, every field known or the file refused. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::name::{is_device, is_kind};
use crate::failure::Failure;

/// The largest file read, in bytes. Generated ones for a dozen of GPUs have some 100 kB.
pub(super) const MAX_FILE: usize = 1 << 20;

/// The most devices of a file, and entries of each list of edits.
const MAX_ENTRIES: usize = 1024;

/// A file's devices.
#[derive(Clone, Debug)]
pub(super) struct Vendor {
    /// `vendor.com/class`.
    pub(super) kind: String,
    /// What any of the devices needs, once.
    pub(super) common: Edits,
    /// What each needs.
    pub(super) devices: BTreeMap<String, Edits>,
}

/// What a container needs for a device.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Edits {
    /// `NAME=VALUE`.
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) mounts: Vec<Mount>,
    /// Groups of the process.
    pub(super) additional_gids: Vec<u32>,
    hooks: Vec<IgnoredAny>,
    intel_rdt: Option<IgnoredAny>,
    net_devices: Vec<IgnoredAny>,
}

/// A device node. What isn't said is the node's own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    pub(super) host_path: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A bind mount.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) options: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default)]
    container_edits: Edits,
}

impl Edits {
    /// What of these can't be carried out, by its name in the file.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        match self {
            Self { hooks, .. } if !hooks.is_empty() => Some("hooks"),
            Self { intel_rdt, .. } if intel_rdt.is_some() => Some("intelRdt"),
            Self { net_devices, .. } if !net_devices.is_empty() => Some("netDevices"),
            _ => None,
        }
    }

    /// These and then others.
    pub(super) fn append(&mut self, more: &Self) {
        self.env.extend(more.env.iter().cloned());
        self.device_nodes.extend(more.device_nodes.iter().cloned());
        self.mounts.extend(more.mounts.iter().cloned());
        self.additional_gids.extend(&more.additional_gids);
    }

    fn longest_list(&self) -> usize {
        [
            self.env.len(),
            self.device_nodes.len(),
            self.mounts.len(),
            self.additional_gids.len(),
        ]
        .into_iter()
        .max()
        .unwrap_or(0)
    }
}

/// Reads a file's text. The caller adds which file it is.
pub(super) fn parse(text: &str, is_json: bool) -> Result<Vendor, Failure> {
    let file: File = if is_json {
        serde_json::from_str(text).map_err(|error| Failure::invalid(error.to_string()))?
    } else {
        serde_saphyr::from_str(text).map_err(|error| Failure::invalid(error.to_string()))?
    };
    if !["0.", "1."]
        .iter()
        .any(|major| file.cdi_version.starts_with(major))
    {
        return Err(Failure::invalid(format!(
            "cdiVersion {:?} is newer than 1.x, which is known here",
            file.cdi_version
        )));
    }
    if !is_kind(&file.kind) {
        return Err(Failure::invalid(format!(
            "kind {:?} is no vendor/class",
            file.kind
        )));
    }
    if file.devices.len() > MAX_ENTRIES {
        return Err(Failure::invalid(format!("more than {MAX_ENTRIES} devices")));
    }
    let mut devices = BTreeMap::new();
    let mut all = vec![(
        "containerEdits".to_owned(),
        file.container_edits.longest_list(),
    )];
    for device in file.devices {
        if !is_device(&device.name) {
            return Err(Failure::invalid(format!(
                "{:?} is no device's name",
                device.name
            )));
        }
        all.push((device.name.clone(), device.container_edits.longest_list()));
        if devices
            .insert(device.name.clone(), device.container_edits)
            .is_some()
        {
            return Err(Failure::invalid(format!(
                "device {:?} is there twice",
                device.name
            )));
        }
    }
    if let Some((name, count)) = all.iter().find(|(_, count)| *count > MAX_ENTRIES) {
        return Err(Failure::invalid(format!(
            "{name}: a list of {count} entries, at most {MAX_ENTRIES} are taken"
        )));
    }
    Ok(Vendor {
        kind: file.kind,
        common: file.container_edits,
        devices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "
cdiVersion: \"0.6.0\"
kind: vendor.com/gpu
annotations: {a: b}
containerEdits:
  env: [\"COMMON=1\"]
devices:
  - name: \"0\"
    containerEdits:
      deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw, fileMode: 438}]
      mounts: [{hostPath: /lib, containerPath: /vendor, options: [ro, rbind]}]
      additionalGids: [44]
  - name: hooked
    containerEdits:
      hooks: [{hookName: createContainer, path: /bin/x}]
";

    #[test]
    fn a_file_says_what_each_device_needs() {
        let vendor = parse(YAML, false).unwrap();
        assert_eq!(vendor.kind, "vendor.com/gpu");
        assert_eq!(vendor.common.env, ["COMMON=1"]);
        let edits = &vendor.devices["0"];
        assert_eq!(edits.device_nodes[0].file_mode, Some(438));
        assert_eq!(edits.mounts[0].options, ["ro", "rbind"]);
        assert_eq!(edits.unsupported(), None);
        assert_eq!(vendor.devices["hooked"].unsupported(), Some("hooks"));
    }

    #[test]
    fn what_is_not_known_or_too_much_is_refused() {
        let with = |device: &str| {
            format!(r#"{{"cdiVersion": "1.0.0", "kind": "v/c", "devices": [{device}]}}"#)
        };
        let many = vec!["{\"path\": \"/d\"}"; MAX_ENTRIES + 1].join(",");
        for (text, good) in [
            (with(r#"{"name": "a", "containerEdits": {}}"#), true),
            (
                with(r#"{"name": "a", "containerEdits": {"newEdit": 1}}"#),
                false,
            ),
            (with(r#"{"name": "a"}, {"name": "a"}"#), false),
            (with(r#"{"name": "../a"}"#), false),
            (
                with(&format!(
                    r#"{{"name": "a", "containerEdits": {{"deviceNodes": [{many}]}}}}"#
                )),
                false,
            ),
            (
                r#"{"cdiVersion": "2.0.0", "kind": "v/c", "devices": []}"#.to_owned(),
                false,
            ),
            (
                r#"{"cdiVersion": "1.0.0", "kind": "vc", "devices": []}"#.to_owned(),
                false,
            ),
            ("[]".to_owned(), false),
        ] {
            assert_eq!(parse(&text, true).is_ok(), good, "{text:.120}");
        }
    }
}
