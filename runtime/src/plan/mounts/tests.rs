use std::path::Path;

use super::*;
use crate::plan::tests::{features, spec};

fn planned(mounts: serde_json::Value) -> Result<Vec<MountPlan>> {
    plan(
        &spec(serde_json::json!({"mounts": mounts})),
        None,
        None,
        &features(),
    )
}

fn destinations(plans: &[MountPlan]) -> Vec<&str> {
    plans
        .iter()
        .map(|plan| plan.destination.to_str().unwrap())
        .collect()
}

#[test]
fn mounts_go_by_depth_and_keep_the_lists_order_within_one() {
    let plans = planned(serde_json::json!([
        {"destination": "/cfg/custom/deep", "type": "tmpfs"},
        {"destination": "/b", "type": "tmpfs"},
        {"destination": "/cfg/./custom/", "type": "tmpfs"},
        {"destination": "//cfg", "type": "tmpfs"},
    ]))
    .unwrap();
    assert_eq!(
        destinations(&plans),
        ["b", "cfg", "cfg/custom", "cfg/custom/deep"]
    );
}

#[test]
fn a_read_only_volume_waits_for_the_volume_inside_it() {
    for list in [
        serde_json::json!([
            {"destination": "/cfg", "source": "/s", "options": ["rbind", "ro"]},
            {"destination": "/cfg/custom", "source": "/t", "options": ["rbind"]},
            {"destination": "/cfgx", "source": "/s", "options": ["rbind", "ro"]}]),
        serde_json::json!([
            {"destination": "/cfgx", "source": "/s", "options": ["rbind", "ro"]},
            {"destination": "/cfg/custom", "source": "/t", "options": ["rbind"]},
            {"destination": "/cfg", "source": "/s", "options": ["rbind", "ro"]}]),
    ] {
        let plans = planned(list).unwrap();
        for plan in plans {
            let (late, now) = match plan.destination.to_str().unwrap() {
                "cfg" => (true, 0),
                "cfgx" => (false, mount::RDONLY),
                _ => (false, 0),
            };
            assert_eq!(
                (plan.late_readonly, plan.attributes.set),
                (late, now),
                "{plan:?}"
            );
        }
    }
}

#[test]
fn options_become_attributes_propagation_and_data() {
    for (options, set, recursive, propagation) in [
        (&["rbind"][..], 0, 0, libc::MS_PRIVATE),
        (&["rbind", "rw"], 0, 0, libc::MS_PRIVATE),
        (
            &["rbind", "ro", "nosuid"],
            mount::RDONLY | mount::NOSUID,
            0,
            libc::MS_PRIVATE,
        ),
        (&["rbind", "ro", "rw"], 0, 0, libc::MS_PRIVATE),
        (&["rbind", "rro"], 0, mount::RDONLY, libc::MS_PRIVATE),
        (&["rbind", "rslave"], 0, 0, libc::MS_SLAVE),
        (
            &["bind", "rshared", "noexec", "nodev"],
            mount::NOEXEC | mount::NODEV,
            0,
            libc::MS_SHARED,
        ),
    ] {
        let plans = planned(serde_json::json!([
            {"destination": "/v", "source": "/s", "type": "bind", "options": options}]))
        .unwrap();
        let plan = plans.first().unwrap();
        assert_eq!(plan.attributes.set, set, "{options:?}");
        assert_eq!(plan.recursive.set, recursive, "{options:?}");
        assert_eq!(plan.recursive.propagation, propagation, "{options:?}");
    }
    let plans = planned(
        serde_json::json!([{"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "sync"]}]),
    )
    .unwrap();
    let plan = plans.first().unwrap();
    assert_eq!(plan.attributes.set, mount::NOSUID | mount::STRICTATIME);
    assert!(plan.real_directory);
    let Source::Filesystem { options, .. } = &plan.source else {
        panic!("{plan:?}")
    };
    let options: Vec<_> = options
        .iter()
        .map(|(key, value)| {
            (
                key.to_str().unwrap(),
                value.as_ref().map(|value| value.to_str().unwrap()),
            )
        })
        .collect();
    assert_eq!(
        options,
        [
            ("mode", Some("755")),
            ("size", Some("65536k")),
            ("sync", None)
        ]
    );
}

#[test]
fn these_are_refused() {
    for (mount, named) in [
        (
            serde_json::json!({"destination": "/v", "type": "bind"}),
            "needs a source",
        ),
        (
            serde_json::json!({"destination": "/v", "type": "bind", "source": "s"}),
            "not absolute",
        ),
        (
            serde_json::json!({"destination": "/v", "type": "bind", "source": "/s", "options": ["size=1"]}),
            "size",
        ),
        (
            serde_json::json!({"destination": "/v", "type": "bind", "source": "/s", "options": ["nonsense"]}),
            "nonsense",
        ),
        (
            serde_json::json!({"destination": "/v", "type": "tmpfs", "options": ["tmpcopyup"]}),
            "tmpcopyup",
        ),
        (
            serde_json::json!({"destination": "/v", "type": "bind", "source": "/s", "options": ["ridmap=0-1-2"]}),
            "ridmap",
        ),
        (serde_json::json!({"destination": "/v"}), "neither a type"),
        (
            serde_json::json!({"destination": "/v", "type": "tmpfs", "options": [""]}),
            "empty",
        ),
    ] {
        let error = planned(serde_json::json!([mount])).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("/v"), "{error}");
    }
}

#[test]
fn only_a_few_files_of_procfs_may_be_mounted_over() {
    for (destination, allowed) in [
        ("/proc/meminfo", true),
        ("//proc/./cpuinfo", true),
        ("/proc", false),
        ("/proc/sys", false),
        ("/proc/self/attr", false),
    ] {
        let plans = planned(serde_json::json!([
            {"destination": destination, "type": "bind", "source": "/s"}]))
        .unwrap();
        assert_eq!(
            plans.first().unwrap().on_proc_file,
            allowed,
            "{destination}"
        );
    }
}

#[test]
fn a_hybrid_node_gives_each_hierarchy_and_links_for_joint_ones() {
    let mut node = features();
    node.cgroup_mounts = [
        ("/sys/fs/cgroup/unified", &[][..]),
        ("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
        ("/sys/fs/cgroup/systemd", &["name=systemd"]),
    ]
    .into_iter()
    .map(|(path, controllers)| crate::features::CgroupMount {
        path: path.into(),
        controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
    })
    .collect();
    let json = serde_json::json!({
        "mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nosuid"]}],
        "linux": {"cgroupsPath": "/pods/c", "namespaces": [{"type": "mount"}]}});
    let plans = plan(&spec(json.clone()), None, None, &node).unwrap();
    assert_eq!(
        destinations(&plans),
        [
            "sys/fs/cgroup",
            "sys/fs/cgroup/unified",
            "sys/fs/cgroup/cpu,cpuacct",
            "sys/fs/cgroup/systemd"
        ]
    );
    let top = plans.first().unwrap();
    assert!(top.late_readonly && top.is("tmpfs"));
    assert_eq!(top.links.len(), 2);
    let Source::Bind { path, optional, .. } = &plans.last().unwrap().source else {
        panic!()
    };
    assert_eq!(
        (path.as_path(), *optional),
        (Path::new("/sys/fs/cgroup/systemd/pods/c"), true)
    );

    node.cgroup_mounts.truncate(1);
    let plans = plan(&spec(json), None, None, &node).unwrap();
    assert!(plans.len() == 1 && plans.first().unwrap().is("cgroup2"));
}

#[test]
fn id_maps_are_the_mounts_own_or_by_the_options_name_the_containers() {
    let range = |outside| crate::idmap::IdRange {
        inside: 0,
        outside,
        length: 10,
    };
    let maps = |outside| IdMaps {
        uids: vec![range(outside)],
        gids: vec![range(outside)],
    };
    let own = serde_json::json!([{"containerID": 0, "hostID": 7, "size": 10}]);
    let none = serde_json::json!([]);
    for (options, lists, user, wanted) in [
        (&["rbind"][..], &none, true, Ok(None)),
        (&["rbind"], &own, true, Ok(Some((7, true)))),
        (&["rbind"], &own, false, Ok(Some((7, true)))),
        (&["bind"], &own, true, Ok(Some((7, false)))),
        (&["rbind", "idmap"], &own, true, Ok(Some((7, false)))),
        (&["rbind", "idmap"], &none, true, Ok(Some((100, false)))),
        (&["bind", "ridmap"], &none, true, Ok(Some((100, true)))),
        (&["bind", "ridmap"], &none, false, Err("neither")),
        (&["nosuid"], &own, true, Err("bind mounts only")),
    ] {
        let mount = serde_json::json!({"destination": "/a", "source": "/s", "type": if options.contains(&"nosuid") { "tmpfs" } else { "bind" },
            "options": options, "uidMappings": lists, "gidMappings": lists});
        let json = serde_json::json!({"mounts": [mount]});
        let user = user.then(|| maps(100));
        let planned = plan(&spec(json), None, user.as_ref(), &features());
        match (planned, wanted) {
            (Ok(plans), Ok(wanted)) => {
                let found = plans[0].id_map.clone();
                let wanted = wanted.map(|(outside, recursive)| IdMapPlan {
                    maps: maps(outside),
                    recursive,
                });
                assert_eq!(found, wanted, "{options:?}");
            }
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
            (planned, _) => panic!("{options:?}: {planned:?}"),
        }
    }
}

#[test]
fn terminals_have_no_group_where_it_is_not_mapped() {
    let devpts = serde_json::json!({"mounts": [{"destination": "/dev/pts", "type": "devpts", "options": ["mode=0620", "gid=5"]}]});
    for (length, kept) in [(6, true), (5, false)] {
        let range = crate::idmap::IdRange {
            inside: 0,
            outside: 100,
            length,
        };
        let maps = IdMaps {
            uids: vec![range],
            gids: vec![range],
        };
        let plans = plan(&spec(devpts.clone()), None, Some(&maps), &features()).unwrap();
        let Source::Filesystem { options, .. } = &plans[0].source else {
            panic!("{plans:?}");
        };
        assert_eq!(options.len(), 1 + usize::from(kept), "{options:?}");
    }
}
