//! Which AppArmor profile a container runs under. The default profile's text comes with a later
//! version; here is the decision, by request and by what the node has.

use std::collections::BTreeSet;

use crate::failure::{Class, Failure};
use crate::request::security::Profile;

/// The name the default profile is loaded under.
pub const DEFAULT_PROFILE: &str = "bulkhead-default";

/// Decides for a container. `loaded` are the profiles the node has loaded, none if it has no
/// AppArmor. The result is the profile's name; none is unconfined.
///
/// Without AppArmor only what asks for nothing passes: a layer asked for and not there is an error.
pub fn decide(
    asked: Option<&Profile>,
    privileged: bool,
    loaded: Option<&BTreeSet<String>>,
) -> Result<Option<String>, Failure> {
    const FIELD: &str = "linux.security_context.apparmor";
    let missing = |what: String| Failure::new(Class::Precondition, format!("{FIELD}: {what}"));
    let has = |name: &str| loaded.is_some_and(|loaded| loaded.contains(name));
    match asked {
        Some(Profile::Unconfined) => Ok(None),
        // Nothing was asked for: the default if it is there.
        None if privileged || !has(DEFAULT_PROFILE) => Ok(None),
        None => Ok(Some(DEFAULT_PROFILE.to_owned())),
        Some(Profile::RuntimeDefault | Profile::Localhost(_)) if loaded.is_none() => Err(missing(
            "this node has no AppArmor; leave the profile unset or Unconfined".to_owned(),
        )),
        Some(Profile::RuntimeDefault) if privileged => Ok(None),
        Some(Profile::RuntimeDefault) if has(DEFAULT_PROFILE) => {
            Ok(Some(DEFAULT_PROFILE.to_owned()))
        }
        Some(Profile::RuntimeDefault) => Err(missing(format!(
            "the default profile {DEFAULT_PROFILE} is not loaded on this node"
        ))),
        // Also for privileged containers: they asked for it by name.
        Some(Profile::Localhost(name)) if has(name) => Ok(Some(name.clone())),
        Some(Profile::Localhost(name)) => Err(missing(format!(
            "profile \"{name}\" is not loaded on this node"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_follows_request_privilege_and_node() {
        use Profile::{Localhost, RuntimeDefault, Unconfined};
        let with_default = BTreeSet::from([DEFAULT_PROFILE.to_owned(), "mine".to_owned()]);
        let without = BTreeSet::from(["mine".to_owned()]);
        let mine = || Some(Localhost("mine".to_owned()));
        let gone = || Some(Localhost("gone".to_owned()));
        let (none, full, bare) = (None, Some(&with_default), Some(&without));
        for (asked, privileged, node, expected) in [
            (None, false, none, Ok(None)),
            (None, false, full, Ok(Some(DEFAULT_PROFILE))),
            (None, false, bare, Ok(None)),
            (None, true, full, Ok(None)),
            (Some(Unconfined), false, none, Ok(None)),
            (Some(Unconfined), false, full, Ok(None)),
            (Some(RuntimeDefault), false, none, Err(())),
            (Some(RuntimeDefault), false, bare, Err(())),
            (Some(RuntimeDefault), false, full, Ok(Some(DEFAULT_PROFILE))),
            (Some(RuntimeDefault), true, full, Ok(None)),
            (mine(), false, none, Err(())),
            (mine(), false, bare, Ok(Some("mine"))),
            (mine(), true, bare, Ok(Some("mine"))),
            (gone(), false, full, Err(())),
            (gone(), true, full, Err(())),
        ] {
            let found = decide(asked.as_ref(), privileged, node).map_err(|_| ());
            assert_eq!(
                found,
                expected.map(|name| name.map(str::to_owned)),
                "{asked:?} {privileged}"
            );
        }
    }
}
