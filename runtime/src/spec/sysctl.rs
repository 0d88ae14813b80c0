//! Names of kernel parameters: which file they are and which namespace must be the container's own.
//!
//! Only namespaced ones are taken (Kubernetes' list: `kernel.shm*`, `kernel.msg*`, `kernel.sem`,
//! `fs.mqueue.*`, `net.*`); anything else would change the node. Grammar as sysctl(8): dots separate, and a
//! slash inside a part stands for a dot (`net.ipv4.conf.eth0/1.forwarding`); with a slash first it
//! is the other way round.

use std::ffi::CString;

use crate::error::{Error, Result};

/// The namespace a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The IPC namespace.
    Ipc,
    /// The network namespace.
    Network,
}

/// A parameter that may be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Path relative to procfs, `sys/…`.
    pub path: CString,
    /// Whose it is.
    pub scope: Scope,
}

/// Reads a name; refuses what is not namespaced and what is not plain (CVE-2022-0811).
pub fn parse(name: &str) -> Result<Sysctl> {
    let refuse = |why: &str| Err(Error::invalid(format!("sysctl {name:?}: {why}")));
    let slash_first = match (name.find('.'), name.find('/')) {
        (Some(dot), Some(slash)) => slash < dot,
        (None, Some(_)) => true,
        _ => false,
    };
    let (separator, inner) = if slash_first { ('/', '.') } else { ('.', '/') };
    let mut parts = Vec::new();
    for part in name.split(separator) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == inner;
        if part.is_empty() || !part.chars().all(plain) {
            return refuse("not a parameter's name");
        }
        let part = part.replace(inner, ".");
        if part.starts_with('.') {
            return refuse("not a parameter's name");
        }
        parts.push(part);
    }
    let scope = match parts
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["net", _, ..] => Scope::Network,
        ["fs", "mqueue", _] => Scope::Ipc,
        ["kernel", "sem"] => Scope::Ipc,
        ["kernel", name] if name.starts_with("shm") || name.starts_with("msg") => Scope::Ipc,
        _ => {
            return refuse(
                "not a namespaced parameter (kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*, net.*)",
            );
        }
    };
    let path = CString::new(format!("sys/{}", parts.join("/")))
        .map_err(|_| Error::invalid(format!("sysctl {name:?} holds a NUL byte")))?;
    Ok(Sysctl { path, scope })
}

/// Refuses a value that is more than one line.
pub fn check_value(name: &str, value: &str) -> Result<()> {
    if value.bytes().any(|byte| byte == b'\n' || byte == 0)
        || value.is_empty()
        || value.len() > 4096
    {
        return Err(Error::invalid(format!(
            "sysctl {name}: its value must be one line of 1 to 4096 bytes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaced_parameters_become_paths() {
        for (name, path, scope) in [
            (
                "net.ipv4.ip_forward",
                "sys/net/ipv4/ip_forward",
                Scope::Network,
            ),
            (
                "net/ipv4/ip_forward",
                "sys/net/ipv4/ip_forward",
                Scope::Network,
            ),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "sys/net/ipv4/conf/eth0.1/forwarding",
                Scope::Network,
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "sys/net/ipv4/conf/eth0.1/forwarding",
                Scope::Network,
            ),
            (
                "kernel.shm_rmid_forced",
                "sys/kernel/shm_rmid_forced",
                Scope::Ipc,
            ),
            ("kernel.msgmax", "sys/kernel/msgmax", Scope::Ipc),
            ("kernel.sem", "sys/kernel/sem", Scope::Ipc),
            ("fs.mqueue.msg_max", "sys/fs/mqueue/msg_max", Scope::Ipc),
        ] {
            let parsed = parse(name).unwrap();
            assert_eq!(
                (parsed.path.to_str().unwrap(), parsed.scope),
                (path, scope),
                "{name}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for name in [
            "",
            "net",
            "net.",
            ".net.x",
            "kernel.core_pattern",
            "kernel.shm/../core_pattern",
            "vm.swappiness",
            "kernel.shm_rmid_forced=1+kernel.core_pattern",
            "net/../kernel/core_pattern",
            "net.ipv4.../../x",
            "net.//x",
            "kernel.sem.x",
            "fs.mqueue",
            "fs.file-max",
            "net.ipv4.ip_forward\n",
            "net.ipv4.a b",
            "kernel.hostname",
            "kernel/shm/x",
        ] {
            assert!(parse(name).is_err(), "{name:?}");
        }
    }
}
