//! How a seccomp filter is loaded, beside its program: flags, and who is told of notifications.
//!
//! Sources: OCI runtime specification, config-linux.md "Seccomp"; seccomp(2), seccomp_unotify(2).

use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompFilterFlag as Flag, Spec};

/// SECCOMP_FILTER_FLAG_LOG, Linux 4.14.
const LOG: u32 = 1 << 1;
/// SECCOMP_FILTER_FLAG_SPEC_ALLOW, Linux 4.17.
const SPEC_ALLOW: u32 = 1 << 2;
/// SECCOMP_FILTER_FLAG_NEW_LISTENER, Linux 5.0.
const NEW_LISTENER: u32 = 1 << 3;
/// SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19; the kernel takes it with a listener only.
const WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// What of a spec's seccomp section the launcher looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// For seccomp(2).
    pub(crate) flags: u32,
    /// Where the notifications' descriptor goes.
    pub(crate) listener: Option<Listener>,
}

/// An agent that answers for the filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Its unix socket.
    pub(crate) path: PathBuf,
    /// Passed on to it.
    pub(crate) metadata: Option<String>,
}

impl FilterOptions {
    /// Of a container's spec. A listener is made only if some action notifies.
    pub fn of(spec: &Spec) -> Self {
        let seccomp = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().as_ref());
        let Some(seccomp) = seccomp else {
            return Self::default();
        };
        let notifies = seccomp
            .syscalls()
            .iter()
            .flatten()
            .any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
        let listener = seccomp
            .listener_path()
            .clone()
            .filter(|_| notifies)
            .map(|path| Listener {
                path,
                metadata: seccomp.listener_metadata().clone(),
            });
        let start = if listener.is_some() { NEW_LISTENER } else { 0 };
        let flags = seccomp.flags().iter().flatten();
        Self {
            flags: flags.fold(start, |flags, flag| flags | bit(flag)),
            listener,
        }
    }
}

fn bit(flag: &Flag) -> u32 {
    match flag {
        Flag::SeccompFilterFlagLog => LOG,
        Flag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => WAIT_KILLABLE_RECV,
        // Moot: the filter is loaded by a process of one thread, and a listener excludes it.
        Flag::SeccompFilterFlagTsync => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_are_the_kernel_s_and_a_listener_needs_an_action_that_notifies() {
        let rule = |action: &str| json!([{"names": ["mkdir"], "action": action}]);
        for (seccomp, flags, has_listener) in [
            (json!({"defaultAction": "SCMP_ACT_ALLOW"}), 0, false),
            (
                json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "flags": [
                        "SECCOMP_FILTER_FLAG_LOG",
                        "SECCOMP_FILTER_FLAG_TSYNC",
                        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    ],
                    "listenerPath": "/run/agent",
                    "syscalls": rule("SCMP_ACT_KILL"),
                }),
                LOG | SPEC_ALLOW,
                false,
            ),
            (
                json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
                    "listenerPath": "/run/agent",
                    "listenerMetadata": "m",
                    "syscalls": rule("SCMP_ACT_NOTIFY"),
                }),
                NEW_LISTENER | WAIT_KILLABLE_RECV,
                true,
            ),
        ] {
            let spec = json!({"ociVersion": "1.2.0", "linux": {"seccomp": seccomp}});
            let spec: Spec = serde_json::from_value(spec).unwrap();
            let options = FilterOptions::of(&spec);
            assert_eq!(options.flags, flags, "{seccomp}");
            assert_eq!(options.listener.is_some(), has_listener, "{seccomp}");
        }
    }
}
