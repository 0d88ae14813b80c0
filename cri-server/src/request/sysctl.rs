//! Which sysctls a pod may ask for, and how they may be spelled (threat I1).
//!
//! A name is dotted lower-case words, so it can't climb out of `/proc/sys`; a value is one line.
//! Only namespaced ones are taken, and only where that namespace is the pod's own: sysctl(8) writes
//! to a shared namespace would reach the node (Kubernetes, "Using sysctls in a cluster").

use std::collections::BTreeMap;

use super::invalid;
use crate::failure::Failure;

/// The System V and POSIX IPC sysctls the kernel keeps per IPC namespace (`ipc/ipc_sysctl.c`).
const IPC: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

/// The longest value: `net.ipv4.ip_local_reserved_ports` is a bitmap of 64 Ki ports in text.
const VALUE: usize = 65_536;

/// The namespace a sysctl belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The network namespace.
    Network,
    /// The IPC namespace.
    Ipc,
}

/// Whose the sysctl is; none for those of the whole node.
pub fn owner(name: &str) -> Option<Owner> {
    if name.starts_with("net.") {
        Some(Owner::Network)
    } else if IPC.iter().any(|prefix| is_ipc(name, prefix)) {
        Some(Owner::Ipc)
    } else {
        None
    }
}

/// `kernel.sem` alone, `kernel.shmmax` and its siblings, all of `fs.mqueue.`.
fn is_ipc(name: &str, prefix: &str) -> bool {
    match prefix {
        "kernel.sem" => name == prefix,
        _ => name
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && !rest.contains('.')),
    }
}

/// Checks `sysctls` for a pod whose own namespaces are given; names come out dotted.
pub(super) fn parse(
    field: &str,
    sysctls: &BTreeMap<String, String>,
    own_network: bool,
    own_ipc: bool,
) -> Result<BTreeMap<String, String>, Failure> {
    if sysctls.len() > super::text::LIST {
        return Err(invalid(field, "too many entries"));
    }
    let mut parsed = BTreeMap::new();
    for (given, value) in sysctls {
        let at = format!("{field}[{given:?}]");
        let name = dotted(given).ok_or_else(|| {
            invalid(
                &at,
                "a sysctl's name is words of a-z, 0-9, - and _ joined by dots",
            )
        })?;
        if value.len() > VALUE || !value.bytes().all(in_value) {
            return Err(invalid(
                &at,
                "a value is at most 65536 letters, digits, blanks and , - . _ : /",
            ));
        }
        match owner(&name) {
            Some(Owner::Network) if own_network => {}
            Some(Owner::Ipc) if own_ipc => {}
            Some(Owner::Network) => {
                return Err(invalid(
                    &at,
                    "the pod uses the node's network (hostNetwork)",
                ));
            }
            Some(Owner::Ipc) => {
                return Err(invalid(&at, "the pod uses the node's IPC (hostIPC)"));
            }
            None => {
                return Err(invalid(
                    &at,
                    "not namespaced: it would change the node; set it on the node itself",
                ));
            }
        }
        if parsed.insert(name, value.clone()).is_some() {
            return Err(invalid(&at, "given twice, once with / and once with ."));
        }
    }
    Ok(parsed)
}

/// What the values of namespaced sysctls are made of: numbers, lists and ranges of them, words.
fn in_value(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b" \t,-._:/".contains(&byte)
}

/// sysctl(8) takes slashes for dots, and then a dot is part of a word (an interface `eth0.1`): only
/// the form where it is not is taken.
fn dotted(given: &str) -> Option<String> {
    let name = match (given.find('/'), given.find('.')) {
        (Some(_), None) => given.replace('/', "."),
        (None, _) => given.to_owned(),
        (Some(_), Some(_)) => return None,
    };
    let word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
    };
    (name.len() <= 253 && name.split('.').count() > 1 && name.split('.').all(word)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_spelled_sysctls_of_own_namespaces_are_taken() {
        for (name, value, network, ipc, taken) in [
            ("net.ipv4.ip_unprivileged_port_start", "1", true, true, true),
            ("net/core/somaxconn", "777", true, true, true),
            ("net.core.somaxconn", "777", false, true, false),
            ("kernel.shm_rmid_forced", "1", true, true, true),
            ("kernel.shmmax", "1", true, true, true),
            ("kernel.msgmax", "1", true, true, true),
            ("kernel.sem", "1 2 3 4", true, true, true),
            ("kernel.semantics", "1", true, true, false),
            ("fs.mqueue.msg_max", "1", true, true, true),
            ("kernel.shm_rmid_forced", "1", true, false, false),
            ("kernel.core_pattern", "|/x", true, true, false),
            (
                "kernel.shm_rmid_forced",
                "1+kernel.core_pattern=x",
                true,
                true,
                false,
            ),
            (
                "net.ipv4.ip_local_port_range",
                "32768\t60999",
                true,
                true,
                true,
            ),
            (
                "kernel.shm_rmid_forced",
                "1\nkernel.core_pattern=x",
                true,
                true,
                false,
            ),
            ("net/../kernel/core_pattern", "x", true, true, false),
            ("net..x", "x", true, true, false),
            ("net", "x", true, true, false),
            ("net.IPV4.x", "x", true, true, false),
            ("net.ipv4.x=1", "x", true, true, false),
            ("vm.swappiness", "1", true, true, false),
            ("", "", true, true, false),
        ] {
            let given = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let parsed = parse("linux.sysctls", &given, network, ipc);
            assert_eq!(parsed.is_ok(), taken, "{name}={value:?}: {parsed:?}");
        }
    }

    #[test]
    fn one_sysctl_in_both_spellings_is_refused() {
        let twice = BTreeMap::from([
            ("net.core.somaxconn".to_owned(), "1".to_owned()),
            ("net/core/somaxconn".to_owned(), "2".to_owned()),
        ]);
        assert!(parse("linux.sysctls", &twice, true, true).is_err());
    }
}
