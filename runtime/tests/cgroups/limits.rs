//! Limits as the kernel shows and enforces them; what groups use.

use bulkhead_runtime::cgroup::{Hierarchies, Mode};
use bulkhead_runtime::error::ErrorKind;
use bulkhead_runtime::plan::cgroup::{Controller, Place, Placement};
use serde_json::{Value, json};

use crate::rig::{Group, Held, content, nodes, resources, unique};

const MB: u64 = 1 << 20;

fn is_v1(node: &Hierarchies) -> bool {
    node.place(Controller::Memory) == Place::V1
}

/// Writes that many megabytes of memory and keeps them.
fn eater(megabytes: u32) -> String {
    format!("x=$(head -c {megabytes}000000 /dev/zero | tr '\\0' x); echo kept; read more")
}

#[test]
fn limits_are_set() {
    for node in nodes() {
        let group = Group::new(&node, &unique("limits"));
        let request = json!({
            "cpu": {"shares": 2048, "quota": 20000, "period": 50000, "cpus": "0"},
            "memory": {"limit": 64 * MB, "reservation": 32 * MB},
            "pids": {"limit": 33},
        });
        group.apply(&resources(&request)).unwrap();
        let expected: &[(&str, &str)] = match is_v1(&node) {
            true => &[
                ("cpu.shares", "2048"),
                ("cpu.cfs_quota_us", "20000"),
                ("cpu.cfs_period_us", "50000"),
                ("cpuset.cpus", "0"),
                ("memory.limit_in_bytes", "67108864"),
                ("memory.soft_limit_in_bytes", "33554432"),
                ("pids.max", "33"),
            ],
            false => &[
                ("cpu.weight", "174"),
                ("cpu.max", "20000 50000"),
                ("cpuset.cpus", "0"),
                ("memory.max", "67108864"),
                ("memory.low", "33554432"),
                ("pids.max", "33"),
            ],
        };
        for (file, value) in expected {
            assert_eq!(
                content(group.path(), file).as_deref(),
                Some(*value),
                "{file}"
            );
        }
        // Zeros leave all of it; −1 takes limits away.
        let zeros = json!({"cpu": {"shares": 0, "quota": 0}, "memory": {"limit": 0}});
        group.apply(&resources(&zeros)).unwrap();
        for (file, value) in expected {
            assert_eq!(
                content(group.path(), file).as_deref(),
                Some(*value),
                "{file} after zeros"
            );
        }
        let none = json!({"cpu": {"quota": -1}, "memory": {"limit": -1}, "pids": {"limit": -1}});
        group.apply(&resources(&none)).unwrap();
        assert_eq!(group.stats().unwrap().memory_limit, None);
        assert_eq!(content(group.path(), "pids.max").as_deref(), Some("max"));
    }
}

/// Case Q1, and the same on v2: each valid target in one call, a refused one changes nothing.
#[test]
fn memory_and_swap_move_together() {
    let m = |n: u64| json!(n * MB);
    /// The memory limit and the swap limit after it, in megabytes; `None` if it is refused.
    type After = Option<(u64, Option<u64>)>;
    let table: &[(&str, Value, After)] = &[
        (
            "a beginning",
            json!({"limit": m(100), "swap": m(200)}),
            Some((100, Some(100))),
        ),
        (
            "both grow",
            json!({"limit": m(400), "swap": m(800)}),
            Some((400, Some(400))),
        ),
        (
            "both shrink",
            json!({"limit": m(50), "swap": m(50)}),
            Some((50, Some(0))),
        ),
        (
            "only memory is given",
            json!({"limit": m(400)}),
            Some((400, Some(0))),
        ),
        (
            "any swap",
            json!({"limit": m(400), "swap": -1}),
            Some((400, None)),
        ),
        (
            "swap below memory",
            json!({"limit": m(300), "swap": m(200)}),
            None,
        ),
        (
            "back",
            json!({"limit": m(100), "swap": m(200)}),
            Some((100, Some(100))),
        ),
        (
            "below what is in use",
            json!({"limit": m(2), "swap": m(3)}),
            None,
        ),
    ];
    for node in nodes() {
        let group = Group::new(&node, &unique("q1"));
        let mut held = Held::new(&eater(10));
        group.add(held.pid()).unwrap();
        held.go();
        crate::rig::until("memory in use", || group.stats().unwrap().rss > 9_000_000);
        let has_swap = content(group.path(), "memory.memsw.limit_in_bytes").is_some()
            || content(group.path(), "memory.swap.max").is_some();
        let mut last = (0, None);
        for (name, memory, expected) in table {
            let result = group.apply(&resources(&json!({"memory": memory})));
            match expected {
                Some(expected) => {
                    result.unwrap_or_else(|error| panic!("{name}: {error}"));
                    last = *expected;
                }
                None => drop(result.expect_err(name)),
            }
            let stats = group.stats().unwrap();
            assert_eq!(stats.memory_limit, Some(last.0 * MB), "{name}");
            if has_swap {
                assert_eq!(stats.swap_limit, last.1.map(|n| n * MB), "{name}");
            }
        }
    }
}

#[test]
fn a_failed_update_leaves_everything_as_it_was() {
    for node in nodes() {
        let group = Group::new(&node, &unique("rollback"));
        let before = json!({"cpu": {"shares": 512}, "memory": {"limit": 64 * MB}});
        group.apply(&resources(&before)).unwrap();
        let files = [
            "cpu.shares",
            "cpu.weight",
            "memory.limit_in_bytes",
            "memory.max",
        ];
        let values = files.map(|file| content(group.path(), file));
        // No machine has a CPU of this number.
        let update = json!({
            "cpu": {"shares": 2048, "cpus": "70000"}, "memory": {"limit": 128 * MB},
        });
        let error = group.apply(&resources(&update)).unwrap_err();
        assert!(error.to_string().contains("cpuset.cpus"), "{error}");
        assert_eq!(files.map(|file| content(group.path(), file)), values);
    }
}

#[test]
fn a_set_that_comes_later_moves_what_runs() {
    for node in nodes() {
        let group = Group::new(&node, &unique("set"));
        let held = Held::new("grep Cpus_allowed_list /proc/self/status");
        group.add(held.pid()).unwrap();
        group
            .apply(&resources(&json!({"cpu": {"cpus": "1", "mems": "0"}})))
            .unwrap();
        let (line, _) = held.finish();
        assert_eq!(line.split_whitespace().last(), Some("1"), "{line}");
    }
}

#[test]
fn an_oom_kill_is_counted_until_the_group_is_removed() {
    for node in nodes() {
        let group = Group::new(&node, &unique("oom"));
        group
            .apply(&resources(&json!({"memory": {"limit": 24 * MB}})))
            .unwrap();
        assert_eq!(group.oom_kills().unwrap(), 0);
        let held = Held::new(&eater(100));
        group.add(held.pid()).unwrap();
        drop(held.finish());
        assert!(group.oom_kills().unwrap() >= 1);
        let again = node.open(group.path()).unwrap().unwrap();
        assert_eq!(again.oom_kills().unwrap(), group.oom_kills().unwrap());
    }
}

#[test]
fn the_pids_limit_holds() {
    for node in nodes() {
        let group = Group::new(&node, &unique("pids"));
        group
            .apply(&resources(&json!({"pids": {"limit": 1}})))
            .unwrap();
        let held = Held::new("(true) || echo refused");
        group.add(held.pid()).unwrap();
        let (_, code) = held.finish();
        assert_ne!(code, 0);
    }
}

#[test]
fn what_a_group_uses_is_read() {
    for node in nodes() {
        let group = Group::new(&node, &unique("stats"));
        let quota = json!({"cpu": {"quota": 10000, "period": 100_000}});
        group.apply(&resources(&quota)).unwrap();
        let mut held = Held::new(&eater(20));
        group.add(held.pid()).unwrap();
        held.go();
        crate::rig::until("usage", || {
            let stats = group.stats().unwrap();
            stats.rss > 19_000_000 && stats.cpu_usage_ns > 1_000_000 && stats.cpu_throttled_ns > 0
        });
        let stats = group.stats().unwrap();
        assert!(stats.memory_usage >= stats.rss, "{stats:?}");
        assert!(stats.page_faults > 1000, "{stats:?}");
        assert!(stats.pids >= 1, "{stats:?}");
        assert!(stats.cpu_usage_ns >= stats.cpu_user_ns, "{stats:?}");
        assert!(stats.cpu_throttled_periods > 0, "{stats:?}");
        assert_eq!(stats.pressure.is_some(), node.mode() != Mode::Legacy);
        group.kill().unwrap();
        assert!(group.wait_empty(crate::rig::LIMIT).unwrap());
        assert!(group.stats().unwrap().cpu_usage_ns >= stats.cpu_usage_ns);
    }
}

#[test]
fn huge_pages_are_limited_or_refused_by_name() {
    for node in nodes() {
        let group = Group::new(&node, &unique("huge"));
        let limit = |n: u64| json!({"hugepageLimits": [{"pageSize": "2MB", "limit": n}]});
        group.apply(&resources(&limit(0))).unwrap();
        let result = group.apply(&resources(&limit(4 * MB)));
        if node.place(Controller::Hugetlb) == Place::Missing {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("hugetlb"), "{error}");
            continue;
        }
        result.unwrap();
        let value = content(group.path(), "hugetlb.2MB.max")
            .or_else(|| content(group.path(), "hugetlb.2MB.limit_in_bytes"));
        assert_eq!(value.as_deref(), Some("4194304"));
    }
}

#[test]
fn unified_is_written_last_on_v2_and_refused_elsewhere() {
    for node in nodes() {
        let group = Group::new(&node, &unique("unified"));
        let request = json!({
            "cpu": {"shares": 1024},
            "unified": {"memory.oom.group": "1", "cpu.weight": "7"},
        });
        let result = group.apply(&resources(&request));
        if node.mode() != Mode::Unified {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
            continue;
        }
        result.unwrap();
        assert_eq!(content(group.path(), "cpu.weight").as_deref(), Some("7"));
        assert_eq!(
            content(group.path(), "memory.oom.group").as_deref(),
            Some("1")
        );
        let unknown = json!({"unified": {"memory.nothing": "1"}});
        let error = group.apply(&resources(&unknown)).unwrap_err();
        assert!(
            error.to_string().contains("memory.nothing is not there"),
            "{error}"
        );
    }
}
