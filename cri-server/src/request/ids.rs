//! Id mappings: of a pod's user namespace, and of mounts.

use bulkhead_proto::runtime::v1;
use bulkhead_runtime::idmap::{IdMaps, IdRange};

use super::{enumeration, invalid, text};
use crate::failure::Failure;

/// The user namespace asked for: none with NODE, which is also what an absent message means. POD has
/// exactly one range of user and one of group ids, both from 0 inside and without the node's root.
pub(super) fn user_namespace(
    field: &str,
    options: Option<&v1::UserNamespace>,
) -> Result<Option<IdMaps>, Failure> {
    let Some(options) = options else {
        return Ok(None);
    };
    let mode = format!("{field}.mode");
    match enumeration(&mode, options.mode)? {
        v1::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        v1::NamespaceMode::Node => Err(invalid(field, "NODE takes no uids or gids")),
        v1::NamespaceMode::Pod => Ok(Some(IdMaps {
            uids: vec![one(&format!("{field}.uids"), &options.uids)?],
            gids: vec![one(&format!("{field}.gids"), &options.gids)?],
        })),
        v1::NamespaceMode::Container | v1::NamespaceMode::Target => {
            Err(invalid(&mode, "only POD and NODE are meant"))
        }
    }
}

fn one(field: &str, list: &[v1::IdMapping]) -> Result<IdRange, Failure> {
    let [mapping] = list else {
        return Err(invalid(
            field,
            format_args!("exactly one range is meant, {} are given", list.len()),
        ));
    };
    let at = |name: &str| format!("{field}[0].{name}");
    let range = range(mapping);
    if range.length == 0 {
        return Err(invalid(&at("length"), "at least one id is needed"));
    }
    if range.inside != 0 {
        return Err(invalid(
            &at("container_id"),
            "ids begin at 0: nothing runs without a root inside",
        ));
    }
    if range.outside == 0 {
        return Err(invalid(&at("host_id"), "0 is the node's root"));
    }
    if range.outside.checked_add(range.length).is_none() {
        return Err(invalid(
            &at("length"),
            "the range goes beyond 4294967294, the last id",
        ));
    }
    Ok(range)
}

/// The mappings of a mount: both lists, or none.
pub(super) fn mount(
    field: &str,
    uids: &[v1::IdMapping],
    gids: &[v1::IdMapping],
) -> Result<Option<IdMaps>, Failure> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    text::bounded(&format!("{field}.uidMappings"), uids)?;
    text::bounded(&format!("{field}.gidMappings"), gids)?;
    let maps = IdMaps {
        uids: uids.iter().map(range).collect(),
        gids: gids.iter().map(range).collect(),
    };
    maps.check(field)
        .map_err(|error| Failure::invalid(error.to_string()))?;
    Ok(Some(maps))
}

fn range(mapping: &v1::IdMapping) -> IdRange {
    IdRange {
        inside: mapping.container_id,
        outside: mapping.host_id,
        length: mapping.length,
    }
}

/// The maps of a pod's user namespace, of a request that was read before.
pub fn of_pod(config: &v1::PodSandboxConfig) -> Option<IdMaps> {
    let context = config.linux.as_ref()?.security_context.as_ref()?;
    let options = context.namespace_options.as_ref()?;
    user_namespace("", options.userns_options.as_ref())
        .ok()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container_id: u32, host_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping {
            container_id,
            host_id,
            length,
        }
    }

    #[test]
    fn user_namespaces_are_taken_as_the_contract_says() {
        let good = vec![id(0, 100_000, 65_536)];
        let node = v1::NamespaceMode::Node as i32;
        let of = |mode, uids: &[v1::IdMapping], gids: &[v1::IdMapping]| {
            let options = v1::UserNamespace {
                mode,
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            };
            user_namespace("u", Some(&options))
        };
        assert_eq!(user_namespace("u", None).unwrap(), None);
        assert_eq!(of(node, &[], &[]).unwrap(), None);
        let maps = of(0, &good, &[id(0, 7, 1)]).unwrap().unwrap();
        assert_eq!(maps.root("u").unwrap(), (100_000, 7));
        for (mode, ranges, fault) in [
            (node, good.clone(), "u: "),
            (1, good.clone(), "u.mode: "),
            (3, good.clone(), "u.mode: "),
            (7, good.clone(), "u.mode: unknown value 7"),
            (0, vec![], "u.uids: exactly one range is meant, 0 are given"),
            (
                0,
                vec![id(0, 1, 1), id(1, 5, 1)],
                "u.uids: exactly one range is meant, 2 are given",
            ),
            (0, vec![id(0, 100, 0)], "u.uids[0].length: "),
            (0, vec![id(1, 100, 10)], "u.uids[0].container_id: "),
            (0, vec![id(0, 0, 10)], "u.uids[0].host_id: "),
            (0, vec![id(0, 2, u32::MAX - 1)], "u.uids[0].length: "),
        ] {
            let failure = of(mode, &ranges, &good).unwrap_err();
            assert!(failure.message().starts_with(fault), "{failure}");
            if fault.starts_with("u.uids") {
                let failure = of(mode, &good, &ranges).unwrap_err();
                let fault = fault.replace("uids", "gids");
                assert!(failure.message().starts_with(&fault), "{failure}");
            }
        }
    }

    #[test]
    fn mappings_of_a_mount_come_in_pairs_and_without_contradiction() {
        let good = [id(0, 100_000, 65_536)];
        assert_eq!(mount("m", &[], &[]).unwrap(), None);
        assert!(mount("m", &good, &good).unwrap().is_some());
        for (uids, gids, fault) in [
            (&good[..], &[][..], "m.gidMappings: 0 ranges"),
            (&[], &good, "m.uidMappings: 0 ranges"),
            (&[id(0, 1, 0)], &good, "m.uidMappings[0]: no ids"),
            (
                &good,
                &[id(0, 1, 5), id(4, 9, 1)],
                "m.gidMappings[1]: maps an id twice",
            ),
        ] {
            let failure = mount("m", uids, gids).unwrap_err();
            assert!(failure.message().starts_with(fault), "{failure}");
        }
    }
}
