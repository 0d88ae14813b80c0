//! The namespaces of pods and containers.

use bulkhead_proto::runtime::v1;
use bulkhead_runtime::idmap::IdMaps;

use super::{enumeration, ids, invalid, text};
use crate::failure::Failure;

/// Network, IPC or UTS: the pod's own, or the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One for all containers of the pod.
    Pod,
    /// The node's.
    Node,
}

/// The PID namespace asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pid {
    /// One for all containers of the pod, with a pause process as its init.
    Pod,
    /// Each container its own.
    Container,
    /// The node's.
    Node,
    /// That of this running container of the pod; on containers only.
    Target(String),
}

/// The namespaces of a pod, or those a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// The network namespace; the UTS namespace follows it (`NODE` means the node's host name too).
    pub network: Sharing,
    /// The IPC namespace.
    pub ipc: Sharing,
    /// The PID namespace.
    pub pid: Pid,
    /// The user namespace, by its maps; none is the node's. It owns those the pod has for itself.
    pub user: Option<IdMaps>,
}

/// Which kind of object the options belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Sandbox,
    Container,
}

impl Namespaces {
    /// The enum's zero, POD, for what is absent.
    pub(super) fn parse(
        field: &str,
        options: Option<&v1::NamespaceOption>,
        of: Of,
    ) -> Result<Self, Failure> {
        let Some(options) = options else {
            return Ok(Self {
                network: Sharing::Pod,
                ipc: Sharing::Pod,
                pid: Pid::Pod,
                user: None,
            });
        };
        let pid_field = format!("{field}.pid");
        let target = text::plain(
            &format!("{field}.target_id"),
            &options.target_id,
            text::NAME,
        )?;
        let pid = match enumeration(&pid_field, options.pid)? {
            v1::NamespaceMode::Pod => Pid::Pod,
            v1::NamespaceMode::Container => Pid::Container,
            v1::NamespaceMode::Node => Pid::Node,
            v1::NamespaceMode::Target if of == Of::Sandbox => {
                return Err(invalid(&pid_field, "TARGET is for containers only"));
            }
            v1::NamespaceMode::Target if target.is_empty() => {
                return Err(invalid(&pid_field, "TARGET needs target_id"));
            }
            v1::NamespaceMode::Target => Pid::Target(target.clone()),
        };
        if !target.is_empty() && !matches!(pid, Pid::Target(_)) {
            return Err(invalid(
                &format!("{field}.target_id"),
                "is meant only with pid TARGET",
            ));
        }
        let user = ids::user_namespace(
            &format!("{field}.userns_options"),
            options.userns_options.as_ref(),
        )?;
        if user.is_some() && pid == Pid::Node {
            return Err(invalid(
                &pid_field,
                "NODE can't be combined with a user namespace: it could mount no procfs",
            ));
        }
        let ipc = sharing(&format!("{field}.ipc"), options.ipc)?;
        if user.is_some() && ipc == Sharing::Node {
            return Err(invalid(
                &format!("{field}.ipc"),
                "NODE can't be combined with a user namespace: it could mount no mqueue",
            ));
        }
        Ok(Self {
            network: sharing(&format!("{field}.network"), options.network)?,
            ipc,
            pid,
            user,
        })
    }
}

fn sharing(field: &str, value: i32) -> Result<Sharing, Failure> {
    match enumeration(field, value)? {
        v1::NamespaceMode::Pod => Ok(Sharing::Pod),
        v1::NamespaceMode::Node => Ok(Sharing::Node),
        v1::NamespaceMode::Container => Err(invalid(field, "CONTAINER is for pid only")),
        v1::NamespaceMode::Target => Err(invalid(field, "TARGET is for pid only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(network: i32, pid: i32, ipc: i32, target: &str) -> v1::NamespaceOption {
        v1::NamespaceOption {
            network,
            pid,
            ipc,
            target_id: target.to_owned(),
            userns_options: None,
        }
    }

    fn isolated(network: i32, pid: i32, ipc: i32) -> v1::NamespaceOption {
        let ids = vec![v1::IdMapping {
            host_id: 1 << 20,
            container_id: 0,
            length: 65_536,
        }];
        v1::NamespaceOption {
            userns_options: Some(v1::UserNamespace {
                mode: v1::NamespaceMode::Pod.into(),
                uids: ids.clone(),
                gids: ids,
            }),
            ..options(network, pid, ipc, "")
        }
    }

    #[test]
    fn namespace_modes_are_taken_where_they_have_a_meaning() {
        for (given, of, fault) in [
            (options(0, 1, 0, ""), Of::Sandbox, None),
            (options(2, 2, 2, ""), Of::Sandbox, None),
            (options(1, 0, 0, ""), Of::Sandbox, Some("n.network: ")),
            (options(0, 0, 3, ""), Of::Sandbox, Some("n.ipc: ")),
            (options(0, 3, 0, "x"), Of::Sandbox, Some("n.pid: ")),
            (options(0, 3, 0, "x"), Of::Container, None),
            (options(0, 3, 0, ""), Of::Container, Some("n.pid: ")),
            (options(0, 1, 0, "x"), Of::Container, Some("n.target_id: ")),
            (isolated(0, 1, 0), Of::Sandbox, None),
            (isolated(2, 0, 0), Of::Sandbox, None),
            (isolated(0, 2, 0), Of::Sandbox, Some("n.pid: NODE can't")),
            (isolated(0, 1, 2), Of::Sandbox, Some("n.ipc: NODE can't")),
            (
                options(9, 0, 0, ""),
                Of::Container,
                Some("n.network: unknown value 9"),
            ),
        ] {
            let parsed = Namespaces::parse("n", Some(&given), of);
            match fault {
                None => {
                    parsed.unwrap();
                }
                Some(prefix) => {
                    let failure = parsed.unwrap_err();
                    assert!(failure.message().starts_with(prefix), "{failure}");
                }
            }
        }
    }
}
