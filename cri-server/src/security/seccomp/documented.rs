//! `docs/seccomp.md` says of every system call what the default profile does with it.

use std::collections::BTreeMap;

use caps::Capability;
use oci_spec::runtime::LinuxSeccompAction;

use super::default_profile;
use crate::security::capabilities::CapabilitySet;

const DOCUMENT: &str = include_str!("../../../../docs/seccomp.md");

/// Calls and the column "here".
fn documented() -> BTreeMap<&'static str, &'static str> {
    let mut found = BTreeMap::new();
    for line in DOCUMENT.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", calls, here, containerd, crio, why, ""] = cells.as_slice() else {
            continue;
        };
        for call in calls.split('`').skip(1).step_by(2) {
            assert!(found.insert(call, *here).is_none(), "{call} is there twice");
            let differs = here != containerd || here != crio;
            assert!(
                !differs || !why.is_empty(),
                "{call}: the difference isn't explained"
            );
        }
    }
    found
}

/// What the profile for these capabilities does with a call, in the document's words.
fn verdict(call: &str, capabilities: CapabilitySet) -> &'static str {
    let profile = default_profile(capabilities);
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let mut found = "EPERM";
    for rule in rules {
        if !rule.names().iter().any(|name| name == call) {
            continue;
        }
        found = match (rule.action(), rule.args()) {
            (LinuxSeccompAction::ScmpActAllow, None) => return "allowed",
            (LinuxSeccompAction::ScmpActAllow, Some(_)) => "by argument",
            _ => "ENOSYS",
        };
    }
    found
}

fn one(capability: &str) -> CapabilitySet {
    let capability: Capability = capability.parse().expect("a capability");
    [capability].into_iter().collect()
}

#[test]
fn the_table_of_calls_says_what_the_profile_does() {
    for (call, here) in documented() {
        let without = verdict(call, CapabilitySet::EMPTY);
        match here.strip_prefix("with ") {
            None => assert_eq!(without, here, "{call}"),
            Some(capabilities) => {
                assert_eq!(without, "EPERM", "{call}");
                for capability in capabilities.split(", ") {
                    let with = verdict(call, one(capability));
                    assert_eq!(with, "allowed", "{call} with {capability}");
                }
            }
        }
    }
}

#[test]
fn no_call_of_the_profile_is_missing_in_the_table() {
    let documented = documented();
    let profile = default_profile(CapabilitySet::from_mask(u64::MAX));
    for rule in profile.syscalls().iter().flatten() {
        for name in rule.names() {
            assert!(documented.contains_key(name.as_str()), "{name} has no row");
        }
    }
}
