//! The same resources through the crate cgroups-rs and through ours: the files must be equal.

use bulkhead_runtime::cgroup::{Hierarchies, Mode};
use cgroups_rs::fs::cgroup_builder::CgroupBuilder;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::hierarchies;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use serde_json::json;

use crate::rig::{Group, content, nodes, resources, unique};

const MB: i64 = 1 << 20;

#[test]
fn another_implementation_writes_the_same() {
    // It takes the node as it is mounted.
    let Some(node) = nodes().pop() else {
        return;
    };
    let theirs = unique("theirs");
    let cgroup = CgroupBuilder::new(&theirs[1..])
        .cpu()
        .quota(25000)
        .period(50000)
        .cpus("0".to_owned())
        .done()
        .memory()
        .memory_hard_limit(80 * MB)
        .memory_soft_limit(40 * MB)
        .done()
        .pid()
        .maximum_number_of_processes(cgroups_rs::fs::MaxValue::Value(44))
        .done()
        .build(hierarchies::auto())
        .unwrap();
    for present in [
        cgroup.controller_of::<CpuController>().is_some(),
        cgroup.controller_of::<CpuSetController>().is_some(),
        cgroup.controller_of::<MemController>().is_some(),
        cgroup.controller_of::<PidController>().is_some(),
    ] {
        assert!(present);
    }

    let ours = Group::new(&node, &unique("ours"));
    let request = json!({
        "cpu": {"quota": 25000, "period": 50000, "cpus": "0"},
        "memory": {"limit": 80 * MB, "reservation": 40 * MB},
        "pids": {"limit": 44},
    });
    ours.apply(&resources(&request)).unwrap();
    compare(&node, &theirs, ours.path());
    cgroup.delete().unwrap();
}

fn compare(node: &Hierarchies, theirs: &str, ours: &str) {
    let files: &[&str] = match node.mode() {
        Mode::Unified => &[
            "cpu.max",
            "cpuset.cpus",
            "memory.max",
            "memory.low",
            "pids.max",
        ],
        _ => &[
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "cpuset.cpus",
            "memory.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "pids.max",
        ],
    };
    for file in files {
        let theirs = content(theirs, file);
        assert!(theirs.is_some(), "{file}");
        assert_eq!(theirs, content(ours, file), "{file}");
    }
}
