//! Limits → OCI resources. Which cgroup version they become is the launcher's; what the node can't
//! give is refused here by asking for its plan, so that CreateContainer says so.

use std::collections::HashMap;

use bulkhead_runtime::error::ErrorKind;
use bulkhead_runtime::plan::cgroup::{self, Placement};
use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxResources,
};

use crate::failure::{Class, Failure};
use crate::request::Resources;

/// The resources of a new container, device rules included.
pub fn create(
    resources: &Resources,
    devices: Vec<LinuxDeviceCgroup>,
    node: &dyn Placement,
) -> Result<LinuxResources, Failure> {
    let mut linux = map(resources);
    linux.set_devices(Some(devices));
    check(&linux, node)?;
    Ok(linux)
}

/// The resources an update sets over those in force. Only what the update names is in the result,
/// but for swap: what is unset follows a new memory limit, so that "no swap" stays true.
pub fn update(
    current: &Resources,
    update: &Resources,
    node: &dyn Placement,
) -> Result<LinuxResources, Failure> {
    let merged = current.updated(update);
    if let (Some(memory), Some(swap)) = (merged.memory_limit, merged.memory_swap_limit)
        && swap != -1
        && (memory == -1 || swap < memory)
    {
        return Err(Failure::invalid(format!(
            "linux.memory_swap_limit_in_bytes: {swap} is memory and swap together, less than the \
             memory limit {memory}"
        )));
    }
    let linux = map(update);
    check(&linux, node)?;
    Ok(linux)
}

fn check(linux: &LinuxResources, node: &dyn Placement) -> Result<(), Failure> {
    cgroup::plan(linux, node).map(drop).map_err(|error| {
        let class = match error.kind() {
            ErrorKind::Unsupported => Class::Precondition,
            _ => Class::Invalid,
        };
        Failure::new(class, format!("linux.resources: {error}"))
    })
}

fn map(resources: &Resources) -> LinuxResources {
    let mut linux = LinuxResources::default();
    linux
        .set_devices(None)
        .set_memory(memory(resources))
        .set_cpu(cpu(resources))
        // No field asks for a limit on tasks: the kubelet limits the pod's cgroup.
        .set_pids(None)
        .set_block_io(None)
        .set_hugepage_limits(hugepages(resources))
        .set_network(None)
        .set_rdma(None)
        .set_unified(unified(resources));
    linux
}

/// With a limit and no swap limit there is no swap: memory and swap together are the limit.
fn memory(resources: &Resources) -> Option<LinuxMemory> {
    let swap = resources.memory_swap_limit.or(resources.memory_limit);
    swap?;
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(resources.memory_limit)
        .set_reservation(None)
        .set_swap(swap)
        .set_kernel_tcp(None)
        .set_swappiness(None)
        .set_disable_oom_killer(None)
        .set_use_hierarchy(None)
        .set_check_before_update(None);
    Some(memory)
}

fn cpu(resources: &Resources) -> Option<LinuxCpu> {
    let list = |list: &String| (!list.is_empty()).then(|| list.clone());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(resources.cpu_shares)
        .set_quota(resources.cpu_quota)
        .set_idle(None)
        .set_burst(None)
        .set_period(resources.cpu_period)
        .set_realtime_runtime(None)
        .set_realtime_period(None)
        .set_cpus(list(&resources.cpuset_cpus))
        .set_mems(list(&resources.cpuset_mems));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

fn hugepages(resources: &Resources) -> Option<Vec<LinuxHugepageLimit>> {
    let limits: Vec<_> = resources
        .hugepages
        .iter()
        .map(|(size, bytes)| {
            let mut limit = LinuxHugepageLimit::default();
            limit
                .set_page_size(size.clone())
                // More than 2⁶³ − 1 bytes is no limit, which the launcher writes as such.
                .set_limit(i64::try_from(*bytes).unwrap_or(-1));
            limit
        })
        .collect();
    (!limits.is_empty()).then_some(limits)
}

fn unified(resources: &Resources) -> Option<HashMap<String, String>> {
    let values = &resources.unified;
    (!values.is_empty()).then(|| values.clone().into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bulkhead_runtime::plan::cgroup::{Controller, Place};
    use serde_json::json;

    use super::*;

    /// A node of one cgroup version, without huge pages' controller.
    struct Node(Place);

    impl Placement for Node {
        fn place(&self, controller: Controller) -> Place {
            match controller {
                Controller::Hugetlb => Place::Missing,
                _ => self.0,
            }
        }

        fn is_unified(&self) -> bool {
            self.0 == Place::V2
        }
    }

    fn limited() -> Resources {
        Resources {
            memory_limit: Some(1 << 20),
            ..Resources::default()
        }
    }

    #[test]
    fn limits_become_resources_and_what_is_unset_is_absent() {
        for (given, expected) in [
            (Resources::default(), json!({})),
            (
                limited(),
                json!({"memory": {"limit": 1 << 20, "swap": 1 << 20}}),
            ),
            (
                Resources {
                    memory_swap_limit: Some(3 << 20),
                    ..limited()
                },
                json!({"memory": {"limit": 1 << 20, "swap": 3 << 20}}),
            ),
            (
                Resources {
                    memory_limit: Some(-1),
                    ..limited()
                },
                json!({"memory": {"limit": -1, "swap": -1}}),
            ),
            (
                Resources {
                    cpu_shares: Some(102),
                    cpu_quota: Some(10_000),
                    cpu_period: Some(100_000),
                    cpuset_cpus: "0-1".into(),
                    hugepages: BTreeMap::from([("2MB".into(), 0)]),
                    ..Resources::default()
                },
                json!({
                    "cpu": {"shares": 102, "quota": 10_000, "period": 100_000, "cpus": "0-1"},
                    "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
                }),
            ),
        ] {
            let linux = update(&Resources::default(), &given, &Node(Place::V1)).unwrap();
            assert_eq!(serde_json::to_value(&linux).unwrap(), expected);
        }
    }

    #[test]
    fn what_the_node_can_not_give_is_refused_at_creation() {
        let unified = Resources {
            unified: BTreeMap::from([("memory.oom.group".into(), "1".into())]),
            ..Resources::default()
        };
        assert!(create(&unified, Vec::new(), &Node(Place::V2)).is_ok());
        let failure = create(&unified, Vec::new(), &Node(Place::V1)).unwrap_err();
        assert_eq!(failure.class(), Class::Precondition, "{failure}");
        let hugepages = |limit| Resources {
            hugepages: BTreeMap::from([("2MB".into(), limit)]),
            ..Resources::default()
        };
        assert!(create(&hugepages(0), Vec::new(), &Node(Place::V2)).is_ok());
        assert!(create(&hugepages(1 << 21), Vec::new(), &Node(Place::V2)).is_err());
    }

    #[test]
    fn an_update_is_judged_with_what_is_in_force() {
        let current = Resources {
            memory_swap_limit: Some(1 << 20),
            ..limited()
        };
        let more = Resources {
            memory_limit: Some(2 << 20),
            ..Resources::default()
        };
        assert!(update(&current, &more, &Node(Place::V1)).is_err());
        let both = Resources {
            memory_swap_limit: Some(2 << 20),
            ..more
        };
        assert!(update(&current, &both, &Node(Place::V1)).is_ok());
    }
}
