//! Mount options by name: attributes of the mount, of the file system, propagation, and the rest,
//! which is the file system's own.

use std::ffi::CString;

use crate::error::{Error, Result};
use crate::plan::c_string;
use crate::sys::mount::{self, Attributes};

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) attributes: Attributes,
    pub(super) recursive: Attributes,
    /// `MS_PRIVATE` and so on, and whether for the mounts below too.
    pub(super) propagation: Option<(u64, bool)>,
    /// A bind mount, and whether with the mounts below.
    pub(super) bind: Option<bool>,
    /// Id-mapped, and whether with the mounts below.
    pub(super) id_mapped: Option<bool>,
    /// For fsconfig: key and value, or a flag.
    pub(super) data: Vec<(CString, Option<CString>)>,
}

/// Attribute names: bits to set and bits to clear. The plain clearing forms (`rw`, `suid`, …)
/// are the default and change nothing: a bind of a read-only mount stays read-only.
const ATTRIBUTES: [(&str, u64, u64); 16] = [
    ("ro", mount::RDONLY, 0),
    ("rw", 0, mount::RDONLY),
    ("nosuid", mount::NOSUID, 0),
    ("suid", 0, mount::NOSUID),
    ("nodev", mount::NODEV, 0),
    ("dev", 0, mount::NODEV),
    ("noexec", mount::NOEXEC, 0),
    ("exec", 0, mount::NOEXEC),
    ("noatime", mount::NOATIME, mount::ATIME_MASK),
    ("relatime", 0, mount::ATIME_MASK),
    ("strictatime", mount::STRICTATIME, mount::ATIME_MASK),
    ("atime", 0, mount::ATIME_MASK),
    ("nodiratime", mount::NODIRATIME, 0),
    ("diratime", 0, mount::NODIRATIME),
    ("nosymfollow", mount::NOSYMFOLLOW, 0),
    ("symfollow", 0, mount::NOSYMFOLLOW),
];

const PROPAGATIONS: [(&str, u64); 4] = [
    ("private", libc::MS_PRIVATE),
    ("slave", libc::MS_SLAVE),
    ("shared", libc::MS_SHARED),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Flags of the file system, given to fsconfig by name.
const SUPERBLOCK_FLAGS: [&str; 5] = ["sync", "dirsync", "lazytime", "mand", "silent"];

/// Names that say what is so anyway.
const DEFAULTS: [&str; 9] = [
    "defaults",
    "async",
    "nolazytime",
    "nomand",
    "loud",
    "norelatime",
    "nostrictatime",
    "noiversion",
    "nofail",
];

/// What changes content or owners and is not honoured yet.
const REFUSED: [(&str, &str); 2] = [
    ("tmpcopyup", "not supported"),
    ("remount", "there is nothing to remount"),
];

impl Options {
    pub(super) fn parse(list: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for option in list {
            options.take(option)?;
        }
        Ok(options)
    }

    fn take(&mut self, option: &str) -> Result<()> {
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) {
            // A later opposite wins over an earlier word; clearing itself is left to new mounts' defaults.
            self.attributes.set = self.attributes.set & !clear | set;
            if *clear & mount::ATIME_MASK != 0 {
                self.attributes.clear |= mount::ATIME_MASK;
            }
            return Ok(());
        }
        if let Some(name) = option.strip_prefix('r')
            && let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(known, ..)| *known == name)
        {
            self.recursive.set = self.recursive.set & !clear | set;
            self.recursive.clear = self.recursive.clear & !set | clear;
            return Ok(());
        }
        for (name, flag) in PROPAGATIONS {
            if option == name || option.strip_prefix('r') == Some(name) {
                self.propagation = Some((flag, option != name));
                return Ok(());
            }
        }
        match option {
            "bind" => self.bind = Some(false),
            "rbind" => self.bind = Some(true),
            "idmap" => self.id_mapped = Some(false),
            "ridmap" => self.id_mapped = Some(true),
            flag if SUPERBLOCK_FLAGS.contains(&flag) => {
                self.data.push((c_string("option", flag)?, None));
            }
            default if DEFAULTS.contains(&default) => {}
            "" => return Err(Error::invalid("an empty mount option")),
            other => {
                if let Some((_, why)) = REFUSED.iter().find(|(name, _)| option_name(other) == *name)
                {
                    return Err(super::refused_option(other, why));
                }
                self.data.push(match other.split_once('=') {
                    Some((key, value)) => {
                        (c_string("option", key)?, Some(c_string("option", value)?))
                    }
                    None => (c_string("option", other)?, None),
                });
            }
        }
        Ok(())
    }

    /// The recursive part with the propagation in it. A bind is private unless asked otherwise,
    /// or mounts made inside would show on the node.
    pub(super) fn recursive_with_propagation(&self, bind: bool) -> Attributes {
        let propagation = match self.propagation {
            Some((flag, _)) => flag,
            None if bind => libc::MS_PRIVATE,
            None => 0,
        };
        Attributes {
            propagation,
            ..self.recursive
        }
    }
}

fn option_name(option: &str) -> &str {
    option.split('=').next().unwrap_or_default()
}
