//! Whose ids pods with user namespaces may have: within the node's range, and never those of another
//! live pod. The client allots them (the kubelet: 65,536 a pod); a mapping is taken or refused, since a pod
//! that shared another's ids could do with its files as it likes (threat N1).

use bulkhead_runtime::idmap::{IdMaps, IdRange};

use crate::config::UserNamespaces;
use crate::failure::{Class, Failure};
use crate::node::Node;
use crate::records::{PodRecord, Snapshot};
use crate::request::ids;

/// Whether this node has user namespaces and lets pods have these ids.
pub(super) fn check(node: &Node, maps: &IdMaps) -> Result<(), Failure> {
    if let Some(why) = &node.no_user_namespaces {
        return Err(Failure::new(
            Class::Unsupported,
            format!("userns_options: POD (hostUsers: false) can't be provided on this node: {why}"),
        ));
    }
    within(node.config.user_namespaces, maps)
}

fn within(allowed: UserNamespaces, maps: &IdMaps) -> Result<(), Failure> {
    let end = |first: u32, length: u32| u64::from(first) + u64::from(length);
    let last = end(allowed.first_id, allowed.ids);
    for (field, range) in ranges(maps) {
        if range.outside < allowed.first_id || end(range.outside, range.length) > last {
            return Err(Failure::invalid(format!(
                "userns_options.{field}[0]: {} ids from {} are not within the {} ids from {} that \
                 user-namespaces.first-id and user-namespaces.ids allow",
                range.length, range.outside, allowed.ids, allowed.first_id
            )));
        }
    }
    Ok(())
}

/// Refuses ids another live pod has. An earlier attempt of the same pod may have the same.
pub(super) fn claim(state: &Snapshot, record: &PodRecord) -> Result<(), Failure> {
    let Some(maps) = ids::of_pod(&record.config) else {
        return Ok(());
    };
    let own = record.key();
    for pod in state.pods().filter(|pod| !pod.torn_down) {
        let key = pod.key();
        let same = (&key.namespace, &key.name, &key.uid) == (&own.namespace, &own.name, &own.uid);
        let Some(theirs) = ids::of_pod(&pod.config).filter(|_| !same) else {
            continue;
        };
        if let Some(field) = shared(&maps, &theirs) {
            return Err(Failure::precondition(format!(
                "userns_options.{field}[0]: {key} has some of these ids as long as it lives; no two \
                 pods share ids"
            )));
        }
    }
    Ok(())
}

fn ranges(maps: &IdMaps) -> impl Iterator<Item = (&'static str, &IdRange)> {
    let uids = maps.uids.iter().map(|range| ("uids", range));
    uids.chain(maps.gids.iter().map(|range| ("gids", range)))
}

/// The kind of ids two pods would share.
fn shared(ours: &IdMaps, theirs: &IdMaps) -> Option<&'static str> {
    ranges(ours)
        .find(|(field, range)| {
            ranges(theirs).any(|(other, taken)| other == *field && range.overlaps_outside(taken))
        })
        .map(|(field, _)| field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(uid: u32, gid: u32, length: u32) -> IdMaps {
        let range = |outside| IdRange {
            inside: 0,
            outside,
            length,
        };
        IdMaps {
            uids: vec![range(uid)],
            gids: vec![range(gid)],
        }
    }

    #[test]
    fn ids_are_within_the_nodes_range() {
        let allowed = UserNamespaces {
            first_id: 1000,
            ids: 100,
        };
        for (uid, gid, length, fault) in [
            (1000, 1000, 100, None),
            (1099, 1000, 1, None),
            (999, 1000, 1, Some("userns_options.uids[0]")),
            (1000, 999, 1, Some("userns_options.gids[0]")),
            (1050, 1000, 51, Some("userns_options.uids[0]")),
            (u32::MAX - 1, 1000, 1, Some("userns_options.uids[0]")),
        ] {
            let result = within(allowed, &maps(uid, gid, length));
            match fault {
                None => result.unwrap(),
                Some(fault) => {
                    let failure = result.unwrap_err();
                    assert!(failure.message().starts_with(fault), "{failure}");
                }
            }
        }
        let default = UserNamespaces::default();
        within(default, &maps(1000, 4_294_836_224, 65_536)).unwrap();
        assert!(within(default, &maps(999, 1000, 1)).is_err());
    }

    #[test]
    fn user_ids_and_group_ids_are_compared_each_with_their_like() {
        let theirs = maps(1000, 5000, 100);
        for (uid, gid, length, expected) in [
            (1100, 5100, 100, None),
            (900, 4900, 100, None),
            (5000, 1000, 100, None),
            (1099, 9000, 10, Some("uids")),
            (9000, 4901, 100, Some("gids")),
            (0, 0, 10_000, Some("uids")),
        ] {
            assert_eq!(
                shared(&maps(uid, gid, length), &theirs),
                expected,
                "{uid} {gid}"
            );
        }
    }
}
