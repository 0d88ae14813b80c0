//! Which AppArmor profile a container runs under: the decision, by request and by what the node
//! has. [`profile`] has the default profile's text, [`load`] brings it into the kernel.

pub mod load;
pub mod profile;

use std::collections::BTreeSet;

pub use profile::DEFAULT_PROFILE;

use crate::failure::{Class, Failure};
use crate::request::security::Profile;

/// AppArmor on a node that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The profiles loaded.
    pub loaded: BTreeSet<String>,
    /// Whether the default profile is among them, and why not.
    pub default: DefaultProfile,
}

/// The state of the default profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultProfile {
    /// Containers that ask for no other get it.
    Loaded,
    /// The node has no parser, so it makes no use of AppArmor of its own accord: an operator who
    /// installs none wants none. Said at start and by `bulkhead check`.
    NoParser,
    /// It is due and could not be loaded; with the reason.
    Failed(String),
}

/// Decides for a container; `node` is none where there is no AppArmor. The result is the profile's
/// name; none is unconfined.
///
/// A layer asked for and not there is an error, and so is the default where it is due and missing.
pub fn decide(
    asked: Option<&Profile>,
    privileged: bool,
    node: Option<&Policy>,
) -> Result<Option<String>, Failure> {
    let missing = |what: String| {
        Err(Failure::new(
            Class::Precondition,
            format!("linux.security_context.apparmor: {what}"),
        ))
    };
    let Some(node) = node else {
        return match asked {
            None | Some(Profile::Unconfined) => Ok(None),
            Some(_) => missing(
                "this node has no AppArmor; leave the profile unset or Unconfined".to_owned(),
            ),
        };
    };
    match (asked, &node.default) {
        (Some(Profile::Unconfined), _) => Ok(None),
        // Also for privileged containers: they asked for it by name.
        (Some(Profile::Localhost(name)), _) if node.loaded.contains(name) => Ok(Some(name.clone())),
        (Some(Profile::Localhost(name)), _) => missing(format!(
            "profile \"{name}\" is not loaded on this node; load it with apparmor_parser"
        )),
        (None | Some(Profile::RuntimeDefault), _) if privileged => Ok(None),
        (_, DefaultProfile::Loaded) => Ok(Some(DEFAULT_PROFILE.to_owned())),
        (None, DefaultProfile::NoParser) => Ok(None),
        (_, DefaultProfile::NoParser) => missing(format!(
            "the default profile {DEFAULT_PROFILE} can't be loaded: {}",
            load::no_parser()
        )),
        (_, DefaultProfile::Failed(why)) => {
            missing(format!("the default profile {DEFAULT_PROFILE}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_follows_request_privilege_and_node() {
        use Profile::{Localhost, RuntimeDefault, Unconfined};
        let policy = |default| Policy {
            loaded: BTreeSet::from(["mine".to_owned()]),
            default,
        };
        let full = policy(DefaultProfile::Loaded);
        let bare = policy(DefaultProfile::NoParser);
        let broken = policy(DefaultProfile::Failed("line 1: syntax error".to_owned()));
        let mine = || Some(Localhost("mine".to_owned()));
        let gone = || Some(Localhost("gone".to_owned()));
        let (none, full, bare, broken) = (None, Some(&full), Some(&bare), Some(&broken));
        for (asked, privileged, node, expected) in [
            (None, false, none, Ok(None)),
            (None, false, full, Ok(Some(DEFAULT_PROFILE))),
            (None, false, bare, Ok(None)),
            (None, false, broken, Err("syntax error")),
            (None, true, full, Ok(None)),
            (None, true, broken, Ok(None)),
            (Some(Unconfined), false, none, Ok(None)),
            (Some(Unconfined), false, full, Ok(None)),
            (Some(Unconfined), false, broken, Ok(None)),
            (Some(RuntimeDefault), false, none, Err("no AppArmor")),
            (Some(RuntimeDefault), false, bare, Err("apparmor_parser")),
            (Some(RuntimeDefault), false, broken, Err("syntax error")),
            (Some(RuntimeDefault), false, full, Ok(Some(DEFAULT_PROFILE))),
            (Some(RuntimeDefault), true, full, Ok(None)),
            (Some(RuntimeDefault), true, none, Err("no AppArmor")),
            (mine(), false, none, Err("no AppArmor")),
            (mine(), false, bare, Ok(Some("mine"))),
            (mine(), true, broken, Ok(Some("mine"))),
            (gone(), false, full, Err("\"gone\" is not loaded")),
            (gone(), true, full, Err("\"gone\" is not loaded")),
        ] {
            let found = decide(asked.as_ref(), privileged, node);
            let case = format!("{asked:?} {privileged} {node:?}: {found:?}");
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{case}"),
                (Err(failure), Err(why)) => assert!(failure.message().contains(why), "{case}"),
                _ => panic!("{case}"),
            }
        }
    }
}
