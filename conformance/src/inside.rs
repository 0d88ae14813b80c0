//! What the kernel says of a process: read from the host by its pid, or from text a container printed.

use std::fs;

use anyhow::{Context, Result};

/// The five capability sets by their names in status, in proc(5)'s order.
pub const CAPABILITY_SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// `/proc/<pid>/status`.
#[derive(Clone, Debug)]
pub struct ProcStatus(String);

impl ProcStatus {
    /// Of a process of the host.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(Self(text))
    }

    /// From its text.
    pub fn parse(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The words of a line; none if it isn't there.
    pub fn words(&self, name: &str) -> Vec<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
            .split_whitespace()
            .collect()
    }

    /// A line with one number.
    pub fn number(&self, name: &str) -> Result<u64> {
        let words = self.words(name);
        let word = words.first().with_context(|| format!("no {name}"))?;
        word.parse().with_context(|| format!("{name}: {word}"))
    }

    /// A capability set.
    pub fn mask(&self, name: &str) -> Result<u64> {
        let words = self.words(name);
        let word = words.first().with_context(|| format!("no {name}"))?;
        u64::from_str_radix(word, 16).with_context(|| format!("{name}: {word}"))
    }

    /// All five sets.
    pub fn capabilities(&self) -> Result<[u64; 5]> {
        let mut sets = [0; 5];
        for (set, name) in sets.iter_mut().zip(CAPABILITY_SETS) {
            *set = self.mask(name)?;
        }
        Ok(sets)
    }

    /// The numbers of a line, sorted.
    pub fn numbers(&self, name: &str) -> Vec<u64> {
        let mut numbers: Vec<u64> = self
            .words(name)
            .iter()
            .filter_map(|word| word.parse().ok())
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

/// The namespace of a process: what its link says, such as `net:[4026531840]`.
pub fn namespace(pid: u32, kind: &str) -> Result<String> {
    let path = format!("/proc/{pid}/ns/{kind}");
    let link = fs::read_link(&path).with_context(|| format!("read {path}"))?;
    Ok(link.display().to_string())
}

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Where.
    pub path: String,
    /// Options of the mount.
    pub options: Vec<String>,
    /// `shared:N` and the like.
    pub tags: Vec<String>,
    /// The file system's type.
    pub kind: String,
}

impl MountLine {
    /// Whether the mount has an option.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|own| own == option)
    }
}

/// The mounts of a process, in the order they were made.
pub fn mounts(pid: u32) -> Result<Vec<MountLine>> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(text.lines().filter_map(mount_line).collect())
}

/// The mount that lies on top at `path`.
pub fn mount_at<'a>(mounts: &'a [MountLine], path: &str) -> Option<&'a MountLine> {
    mounts.iter().rfind(|mount| mount.path == path)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw` (proc(5)).
fn mount_line(line: &str) -> Option<MountLine> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(4);
    Some(MountLine {
        path: fields.next()?.to_owned(),
        options: fields.next()?.split(',').map(str::to_owned).collect(),
        tags: fields.map(str::to_owned).collect(),
        kind: after.split(' ').next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_and_a_mount_are_read() {
        let status = ProcStatus::parse(
            "Uid:\t1\t2\t3\t4\nGroups:\t20 3 \nCapEff:\t00000000000000ff\nSeccomp:\t2\n",
        );
        assert_eq!(status.words("Uid"), ["1", "2", "3", "4"]);
        assert_eq!(status.numbers("Groups"), [3, 20]);
        assert_eq!(status.mask("CapEff").unwrap(), 0xff);
        assert_eq!(status.number("Seccomp").unwrap(), 2);
        assert!(status.words("Gid").is_empty());
        let line = mount_line("36 35 98:0 / /a rw,nosuid shared:1 - ext3 /dev/root rw").unwrap();
        assert!(line.has("nosuid") && line.tags == ["shared:1"] && line.kind == "ext3");
    }
}
