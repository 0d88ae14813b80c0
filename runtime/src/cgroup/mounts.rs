//! The control group mounts in a `mountinfo` file (proc_pid_mountinfo(5)). Pure.

use std::path::PathBuf;

use crate::plan::cgroup::Controller;

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) path: PathBuf,
    /// The v1 controllers that have a job here; `None` for v2. Empty for named hierarchies.
    pub(super) v1: Option<Vec<Controller>>,
}

/// Mounts of whole hierarchies; one of a part (a bind mount into some container) isn't usable,
/// because paths would mean something else in it.
pub(super) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    // id parent major:minor root mountpoint options [optional…] - type source superoptions
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let root = left.next()?;
    let path = unescape(left.next()?);
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    if root != "/" {
        return None;
    }
    match kind {
        "cgroup2" => Some(Mount { path, v1: None }),
        "cgroup" => {
            let named = |option: &str| {
                Controller::ALL
                    .into_iter()
                    .find(|controller| controller.v1_name() == option)
            };
            let controllers = options.split(',').filter_map(named).collect();
            Some(Mount {
                path,
                v1: Some(controllers),
            })
        }
        _ => None,
    }
}

/// Space, tab, newline and backslash are written as octal numbers.
fn unescape(text: &str) -> PathBuf {
    let table = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let replaced = table
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    PathBuf::from(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found() {
        use Controller::{Cpu, Cpuacct, Io};
        let table = [
            (
                "v2",
                "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate",
                Some(("/sys/fs/cgroup", None)),
            ),
            (
                "joined controllers",
                "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
                Some(("/sys/fs/cgroup/cpu,cpuacct", Some(vec![Cpu, Cpuacct]))),
            ),
            (
                "blkio is io",
                "33 31 0:30 / /blk\\040io rw - cgroup none rw,blkio",
                Some(("/blk io", Some(vec![Io]))),
            ),
            (
                "a named hierarchy has no controller",
                "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd",
                Some(("/sys/fs/cgroup/systemd", Some(vec![]))),
            ),
            (
                "a bind mount of a part",
                "9 8 0:26 /a /mnt rw - cgroup2 cgroup2 rw",
                None,
            ),
            (
                "something else",
                "9 8 0:26 / /tmp rw - tmpfs tmpfs rw",
                None,
            ),
            ("a torn line", "9 8 0:26 / /tmp", None),
        ];
        for (name, line, expected) in table {
            let expected = expected.map(|(path, v1)| Mount {
                path: path.into(),
                v1,
            });
            assert_eq!(parse_line(line), expected, "{name}");
        }
    }
}
