//! The vendors' files of the node, read anew for each container: device plugins write them any time.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::name::DeviceName;
use super::spec::{self, Edits, MAX_FILE, Vendor};
use crate::failure::{Doing, Failure};

/// The most files of a directory looked at.
const MAX_FILES: usize = 256;

/// A vendor's file.
struct Found {
    path: PathBuf,
    /// The place of its directory in the list: a later one counts before an earlier one.
    directory: usize,
    vendor: Vendor,
}

/// What a container needs for all these devices, in their order. Reads only if there are some.
pub fn resolve(directories: &[PathBuf], devices: &[DeviceName]) -> Result<Edits, Failure> {
    let mut edits = Edits::default();
    if devices.is_empty() {
        return Ok(edits);
    }
    let mut faults = Vec::new();
    let files = read_all(directories, &mut faults);
    let mut used = BTreeSet::new();
    for (index, name) in devices.iter().enumerate() {
        let at = |failure: Failure| failure.context(format!("CDI_devices[{index}].name {name}"));
        let file = pick(&files, name, directories, &faults).map_err(at)?;
        let device = &file.vendor.devices[&name.device];
        let mut parts = vec![device];
        // The file's own edits are meant once, however many of its devices are used.
        if used.insert(&file.path) {
            parts.insert(0, &file.vendor.common);
        }
        for part in parts {
            if let Some(what) = part.unsupported() {
                return Err(at(Failure::new(
                    crate::failure::Class::Unsupported,
                    format!(
                        "{} asks for {what}, which is not provided",
                        file.path.display()
                    ),
                )));
            }
            edits.append(part);
        }
    }
    Ok(edits)
}

/// The file a device is taken from: of the last directory that has it, where it must be in one only.
fn pick<'a>(
    files: &'a [Found],
    name: &DeviceName,
    directories: &[PathBuf],
    faults: &[String],
) -> Result<&'a Found, Failure> {
    let having = |found: &&Found| {
        found.vendor.kind == name.kind && found.vendor.devices.contains_key(&name.device)
    };
    let last = files
        .iter()
        .filter(having)
        .map(|found| found.directory)
        .max();
    let mut candidates = files
        .iter()
        .filter(having)
        .filter(|found| Some(found.directory) == last);
    match (candidates.next(), candidates.next()) {
        (Some(found), None) => Ok(found),
        (Some(one), Some(other)) => Err(Failure::invalid(format!(
            "is in both {} and {}",
            one.path.display(),
            other.path.display()
        ))),
        (None, _) => {
            let list: Vec<_> = directories
                .iter()
                .map(|d| d.display().to_string())
                .collect();
            let mut message = format!("is in no file of {}", list.join(", "));
            for fault in faults.iter().take(3) {
                message.push_str(&format!("; {fault}"));
            }
            Err(Failure::invalid(message))
        }
    }
}

/// All files that can be read; why others can't is kept for the error of a device that isn't found.
fn read_all(directories: &[PathBuf], faults: &mut Vec<String>) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, directory) in directories.iter().enumerate() {
        for path in list(directory) {
            match read(&path) {
                Ok(vendor) => found.push(Found {
                    path,
                    directory: index,
                    vendor,
                }),
                Err(failure) => faults.push(format!("{}: {failure}", path.display())),
            }
        }
    }
    found
}

/// Files by their ends, as the specification has it; a directory that isn't there has none.
fn list(directory: &Path) -> BTreeSet<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_json(path).is_some())
        .take(MAX_FILES)
        .collect()
}

fn is_json(path: &Path) -> Option<bool> {
    match path.extension()?.to_str()? {
        "json" => Some(true),
        "yaml" => Some(false),
        _ => None,
    }
}

fn read(path: &Path) -> Result<Vendor, Failure> {
    let file = std::fs::File::open(path).doing("open")?;
    if !file.metadata().doing("look at it")?.is_file() {
        return Err(Failure::invalid("is not a regular file"));
    }
    let most = u64::try_from(MAX_FILE).unwrap_or(u64::MAX - 1);
    let mut text = String::new();
    file.take(most + 1)
        .read_to_string(&mut text)
        .doing("read")?;
    if text.len() > MAX_FILE {
        return Err(Failure::invalid(format!("is larger than {MAX_FILE} bytes")));
    }
    spec::parse(&text, is_json(path).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kind: &str, devices: &[(&str, &str)]) -> String {
        let devices: Vec<_> = devices
            .iter()
            .map(|(name, env)| serde_json::json!({"name": name, "containerEdits": {"env": [env]}}))
            .collect();
        serde_json::json!({
            "cdiVersion": "0.6.0", "kind": kind, "devices": devices,
            "containerEdits": {"env": ["COMMON=1"]},
        })
        .to_string()
    }

    #[test]
    fn a_device_is_taken_from_the_last_directory_and_must_be_there_once() {
        let root = tempfile::tempdir().unwrap();
        let [early, late] = ["early", "late"].map(|name| root.path().join(name));
        for (path, text) in [
            (
                early.join("a.json"),
                file("v/c", &[("0", "A=0"), ("1", "A=1")]),
            ),
            (
                late.join("b.json"),
                file("v/c", &[("0", "B=0"), ("2", "B=2")]),
            ),
            (late.join("c.json"), file("v/c", &[("2", "C=2")])),
            (late.join("broken.yaml"), "cdiVersion: [".to_owned()),
            (late.join("d.txt"), file("v/c", &[("3", "D=3")])),
        ] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let directories = [early, late, root.path().join("missing")];
        let resolved = |names: &[&str]| {
            let names: Vec<_> = names
                .iter()
                .map(|n| DeviceName::parse(n).unwrap())
                .collect();
            resolve(&directories, &names)
        };
        assert_eq!(resolved(&[]).unwrap(), Edits::default());
        assert_eq!(resolved(&["v/c=0"]).unwrap().env, ["COMMON=1", "B=0"]);
        let both = resolved(&["v/c=1", "v/c=0"]).unwrap().env;
        assert_eq!(both, ["COMMON=1", "A=1", "COMMON=1", "B=0"]);
        for (name, words) in [
            ("v/c=2", ["b.json", "c.json"]),
            ("v/c=3", ["CDI_devices[0].name v/c=3", "broken.yaml"]),
            ("w/c=0", ["w/c=0", "early"]),
        ] {
            let failure = resolved(&[name]).unwrap_err();
            for word in words {
                assert!(failure.message().contains(word), "{failure}");
            }
        }
    }
}
