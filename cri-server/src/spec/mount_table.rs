//! The node's mount table, as far as propagation needs it: which mount a path is on, and whether
//! that mount is shared or receives (proc_pid_mountinfo(5), mount_namespaces(7)).

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Mounts in the order of the table: later ones lie over earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable(Vec<MountPoint>);

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Where it is.
    pub path: PathBuf,
    /// In a peer group: what is mounted below it shows at the peers.
    pub shared: bool,
    /// Receives from a peer group.
    pub slave: bool,
}

impl MountTable {
    /// Reads `/proc/self/mountinfo`; lines that aren't of its form are passed over.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(line).collect())
    }

    /// The mount `path` is on. The path must have its links resolved.
    pub fn containing(&self, path: &Path) -> Option<&MountPoint> {
        self.0
            .iter()
            .filter(|mount| path.starts_with(&mount.path))
            // The last of the longest: what lies on top.
            .max_by_key(|mount| mount.path.as_os_str().len())
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw`
fn line(line: &str) -> Option<MountPoint> {
    let (before, _) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let path = unescape(fields.nth(4)?);
    let optional: Vec<&str> = fields.skip(1).collect();
    let has = |tag: &str| optional.iter().any(|field| field.starts_with(tag));
    Some(MountPoint {
        path,
        shared: has("shared:"),
        slave: has("master:"),
    })
}

/// Blank, tab, line feed and backslash come as `\` and three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
23 22 0:5 / /srv/a\\040b rw shared:5 - tmpfs tmpfs rw
24 22 0:6 / /srv rw,nosuid shared:7 master:3 propagate_from:2 - tmpfs tmpfs rw
25 22 0:7 / /srv rw master:9 - tmpfs tmpfs rw
broken line
26 22 0:8 / /srvx rw shared:8 - tmpfs tmpfs rw
";

    #[test]
    fn a_path_is_on_the_topmost_of_the_deepest_mounts_that_contain_it() {
        let table = MountTable::parse(TABLE);
        for (path, mount, shared, slave) in [
            ("/etc", "/", false, false),
            ("/srv/data", "/srv", false, true),
            ("/srv/a b/c", "/srv/a b", true, false),
            ("/srvx", "/srvx", true, false),
        ] {
            let found = table.containing(Path::new(path)).unwrap();
            assert_eq!(found.path, Path::new(mount), "{path}");
            assert_eq!((found.shared, found.slave), (shared, slave), "{path}");
        }
        assert_eq!(MountTable::default().containing(Path::new("/")), None);
    }
}
