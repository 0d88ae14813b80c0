//! The path of a control group: checked once, so that nothing below has to doubt it (threat I2).

use crate::error::{Error, Result};

/// The deepest path taken; the kubelet's have four parts.
const MAX_DEPTH: usize = 32;
/// The longest component (NAME_MAX).
const MAX_NAME: usize = 255;

/// An absolute path of plain components, the same in every hierarchy; never the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupPath(String);

impl GroupPath {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let Some(relative) = text.strip_prefix('/') else {
            return Err(refused(text, "it must be absolute"));
        };
        let relative = relative.strip_suffix('/').unwrap_or(relative);
        if relative.is_empty() {
            return Err(refused(text, "the root itself can't be used"));
        }
        if relative.split('/').count() > MAX_DEPTH {
            return Err(refused(text, "it has more than 32 components"));
        }
        for part in relative.split('/') {
            check_name(part).map_err(|reason| refused(text, reason))?;
        }
        Ok(Self(format!("/{relative}")))
    }

    /// A group directly below this one.
    pub(super) fn child(&self, name: &str) -> Result<Self> {
        check_name(name).map_err(|reason| refused(name, reason))?;
        Ok(Self(format!("{}/{name}", self.0)))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Relative to a hierarchy's root.
    pub(super) fn relative(&self) -> &str {
        &self.0[1..]
    }

    pub(super) fn components(&self) -> impl Iterator<Item = &str> {
        self.relative().split('/')
    }

    /// `None` for a group directly below the root.
    pub(super) fn parent(&self) -> Option<Self> {
        let (parent, _) = self.0.rsplit_once('/')?;
        (!parent.is_empty()).then(|| Self(parent.to_owned()))
    }
}

fn refused(text: &str, reason: &str) -> Error {
    Error::invalid(format!("cgroup path {text:?} is refused: {reason}"))
}

fn check_name(name: &str) -> std::result::Result<(), &'static str> {
    match name {
        "" => Err("it has an empty component"),
        "." | ".." => Err("it has a component . or .."),
        // Such a name is a file of the parent group.
        _ if name.starts_with("cgroup.") || name == "tasks" => {
            Err("a component is the name of a control file")
        }
        _ if name.contains(':') => Err("a component has a colon, as in slice:prefix:name"),
        _ if name.len() > MAX_NAME => Err("a component is longer than 255 bytes"),
        _ if name.chars().any(char::is_control) => Err("it has a control character"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_paths_are_taken() {
        for (text, parent) in [
            ("/a", None),
            ("/a/", None),
            ("/kubepods/burstable/pod1", Some("/kubepods/burstable")),
            ("/a/b..c", Some("/a")),
        ] {
            let path = GroupPath::parse(text).unwrap();
            assert_eq!(
                path.parent().as_ref().map(GroupPath::as_str),
                parent,
                "{text}"
            );
        }
    }

    #[test]
    fn bad_paths_say_why() {
        let long = format!("/{}", "a".repeat(256));
        let deep = "/a".repeat(33);
        for (text, reason) in [
            ("", "absolute"),
            ("a/b", "absolute"),
            ("/", "root"),
            ("//", "root"),
            ("/a//b", "empty"),
            ("/a/../../b", ".."),
            ("/./a", ". or .."),
            ("/a\nb", "control character"),
            ("/a/cgroup.procs", "control file"),
            (&long, "255"),
            (&deep, "32"),
            ("kubepods-pod1.slice", "absolute"),
            ("/system.slice:cri:1", "colon"),
        ] {
            let error = GroupPath::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
