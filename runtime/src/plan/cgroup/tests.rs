//! Tables: resources as the OCI spells them, and the files they become.

use serde_json::json;

use super::*;

/// A node whose controllers are all in one place, but for some.
struct Node {
    everywhere: Place,
    except: Vec<(Controller, Place)>,
}

impl Placement for Node {
    fn place(&self, controller: Controller) -> Place {
        let except = self.except.iter().find(|(other, _)| *other == controller);
        except.map_or(self.everywhere, |(_, place)| *place)
    }

    fn is_unified(&self) -> bool {
        self.everywhere == Place::V2
    }
}

fn v1() -> Node {
    Node {
        everywhere: Place::V1,
        except: vec![],
    }
}

fn v2() -> Node {
    Node {
        everywhere: Place::V2,
        except: vec![],
    }
}

fn without(mut node: Node, controller: Controller) -> Node {
    node.except.push((controller, Place::Missing));
    node
}

fn planned(resources: &serde_json::Value, node: &Node) -> Result<Vec<String>> {
    let resources = serde_json::from_value(resources.clone()).unwrap();
    let show = |setting: Setting| {
        let value = match setting.value {
            Value::Text(text) => text,
            Value::KeepQuota(period) => format!("(quota) {period}"),
            Value::MemoryPair { limit, memsw } => format!(
                "{} / {}",
                limit.map_or("-".to_owned(), Limit::v1),
                memsw.map_or("-".to_owned(), Limit::v1)
            ),
        };
        let mark = if setting.absent == Absent::Skip {
            "?"
        } else {
            ""
        };
        format!("{}{mark}={value}", setting.file)
    };
    Ok(plan(&resources, node)?.into_iter().map(show).collect())
}

#[test]
fn shares_become_weights() {
    let table = [
        (2, 1),
        (1, 1),
        (3, 2),
        (100, 17),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (262_144, 10_000),
        (u64::MAX, 10_000),
    ];
    for (shares, expected) in table {
        assert_eq!(cpu::weight(shares), expected, "{shares} shares");
    }
    let mut last = 0;
    for shares in 2..=262_144 {
        let weight = cpu::weight(shares);
        assert!(
            weight >= last && weight <= 10_000,
            "{shares} shares: {weight} after {last}"
        );
        last = weight;
    }
}

#[test]
fn resources_become_files() {
    let table = [
        ("nothing", json!({}), v2(), vec![]),
        (
            "zeros mean leave it",
            json!({"cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": ""},
                   "memory": {"limit": 0, "swap": 0}, "pids": {"limit": 0}}),
            without(v2(), Controller::Memory),
            vec![],
        ),
        (
            "cpu on v2",
            json!({"cpu": {"shares": 1024, "quota": 50000, "period": 100_000}}),
            v2(),
            vec!["cpu.weight=100", "cpu.max=50000 100000"],
        ),
        (
            "cpu on v1",
            json!({"cpu": {"shares": 1024, "quota": 50000, "period": 100_000, "burst": 10}}),
            v1(),
            vec![
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpu.cfs_burst_us=10",
            ],
        ),
        (
            "no quota on v2",
            json!({"cpu": {"quota": -1}}),
            v2(),
            vec!["cpu.max=max"],
        ),
        (
            "no quota on v1",
            json!({"cpu": {"quota": -1}}),
            v1(),
            vec!["cpu.cfs_quota_us=-1"],
        ),
        (
            "a period alone keeps the quota",
            json!({"cpu": {"period": 50000}}),
            v2(),
            vec!["cpu.max=(quota) 50000"],
        ),
        (
            "an idle group has no weight",
            json!({"cpu": {"shares": 5, "idle": 1}}),
            v2(),
            vec!["cpu.idle=1"],
        ),
        (
            "sets",
            json!({"cpu": {"cpus": "0-1", "mems": "0"}}),
            v1(),
            vec!["cpuset.cpus=0-1", "cpuset.mems=0"],
        ),
        (
            "memory without swap gets none, v2",
            json!({"memory": {"limit": 100}}),
            v2(),
            vec!["memory.max=100", "memory.swap.max?=0"],
        ),
        (
            "memory without swap gets none, v1",
            json!({"memory": {"limit": 100}}),
            v1(),
            vec!["memory.limit_in_bytes?=100 / 100"],
        ),
        (
            "swap is what exceeds memory on v2",
            json!({"memory": {"limit": 100, "swap": 250, "reservation": 50}}),
            v2(),
            vec!["memory.max=100", "memory.swap.max=150", "memory.low=50"],
        ),
        (
            "swap is memory and swap on v1",
            json!({"memory": {"limit": 100, "swap": 250, "reservation": 50, "swappiness": 10}}),
            v1(),
            vec![
                "memory.limit_in_bytes=100 / 250",
                "memory.soft_limit_in_bytes=50",
                "memory.swappiness=10",
            ],
        ),
        (
            "no limit takes swap's along",
            json!({"memory": {"limit": -1}}),
            v2(),
            vec!["memory.max=max", "memory.swap.max?=max"],
        ),
        (
            "unlimited swap beside limited memory",
            json!({"memory": {"limit": 100, "swap": -1}}),
            v2(),
            vec!["memory.max=100", "memory.swap.max?=max"],
        ),
        (
            "unlimited swap alone",
            json!({"memory": {"swap": -1}}),
            v1(),
            vec!["memory.limit_in_bytes?=- / -1"],
        ),
        (
            "pids",
            json!({"pids": {"limit": 7}}),
            v1(),
            vec!["pids.max=7"],
        ),
        (
            "any number of pids",
            json!({"pids": {"limit": -1}}),
            v2(),
            vec!["pids.max=max"],
        ),
        (
            "huge pages on v2",
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]}),
            v2(),
            vec!["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max?=4194304"],
        ),
        (
            "no huge pages, where the node has none",
            json!({"hugepageLimits": [{"pageSize": "1GB", "limit": 0}]}),
            without(v2(), Controller::Hugetlb),
            vec![],
        ),
        (
            "block I/O on v2",
            json!({"blockIO": {"weight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}}),
            v2(),
            vec![
                "io.weight=default 1",
                "io.weight=8:0 10000",
                "io.max=8:0 rbps=1024",
                "io.max=8:16 wiops=max",
            ],
        ),
        (
            "block I/O on v1",
            json!({"blockIO": {"weight": 100,
                "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]}}),
            v1(),
            vec![
                "blkio.bfq.weight=100",
                "blkio.throttle.write_bps_device=8:0 1024",
            ],
        ),
        (
            "unified comes last, whatever it says",
            json!({"unified": {"memory.oom.group": "1", "cpu.weight": "7"}, "cpu": {"shares": 2}}),
            v2(),
            vec!["cpu.weight=1", "cpu.weight=7", "memory.oom.group=1"],
        ),
        (
            "rdma",
            json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}),
            v2(),
            vec!["rdma.max=mlx5_1 hca_handle=3 hca_object=max"],
        ),
    ];
    for (name, resources, node, expected) in table {
        assert_eq!(planned(&resources, &node).unwrap(), expected, "{name}");
    }
}

#[test]
fn what_cannot_hold_is_refused_by_name() {
    use ErrorKind::{Invalid, Unsupported};
    let table = [
        (
            "swap below memory",
            json!({"memory": {"limit": 200, "swap": 100}}),
            v1(),
            Invalid,
            "memory.swap (100)",
        ),
        (
            "limited swap beside unlimited memory",
            json!({"memory": {"limit": -1, "swap": 100}}),
            v2(),
            Invalid,
            "can't be below memory.limit (max)",
        ),
        (
            "swap alone on v2",
            json!({"memory": {"swap": 100}}),
            v2(),
            Invalid,
            "needs memory.limit",
        ),
        (
            "a missing controller",
            json!({"memory": {"limit": 1}}),
            without(v2(), Controller::Memory),
            Unsupported,
            "controller memory",
        ),
        (
            "huge pages on a node without",
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}),
            without(v1(), Controller::Hugetlb),
            Unsupported,
            "limit for 2MB needs the cgroup controller hugetlb",
        ),
        (
            "a page size with a path",
            json!({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}),
            v2(),
            Invalid,
            "page size",
        ),
        (
            "real time on v2",
            json!({"cpu": {"realtimeRuntime": 5}}),
            v2(),
            Unsupported,
            "realtime",
        ),
        (
            "swappiness on v2",
            json!({"memory": {"swappiness": 5}}),
            v2(),
            Unsupported,
            "swappiness",
        ),
        (
            "kernel memory",
            json!({"memory": {"kernel": 5}}),
            v1(),
            Unsupported,
            "memory.kernel",
        ),
        (
            "net_cls",
            json!({"network": {"classID": 5}}),
            v1(),
            Unsupported,
            "net_cls",
        ),
        (
            "a list of CPUs with words",
            json!({"cpu": {"cpus": "all"}}),
            v2(),
            Invalid,
            "cpuset.cpus",
        ),
        (
            "unified on v1",
            json!({"unified": {"memory.high": "1"}}),
            v1(),
            Unsupported,
            "unified",
        ),
        (
            "unified path",
            json!({"unified": {"../memory.high": "1"}}),
            v2(),
            Invalid,
            "../memory",
        ),
        (
            "unified dots",
            json!({"unified": {"..": "1"}}),
            v2(),
            Invalid,
            "\"..\"",
        ),
        (
            "unified core file",
            json!({"unified": {"cgroup.procs": "1"}}),
            v2(),
            Invalid,
            "procs",
        ),
        (
            "unified NUL",
            json!({"unified": {"io.max": "a\u{0}b"}}),
            v2(),
            Invalid,
            "NUL",
        ),
        (
            "a weight of 5",
            json!({"blockIO": {"weight": 5}}),
            v2(),
            Invalid,
            "weight 5",
        ),
        (
            "rdma path",
            json!({"rdma": {"a b": {}}}),
            v2(),
            Invalid,
            "\"a b\"",
        ),
    ];
    for (name, resources, node, kind, expected) in table {
        let error = planned(&resources, &node).expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error}");
        assert_eq!(error.kind(), kind, "{name}");
    }
}
