//! Limits → OCI resources. Which cgroup version they become is the launcher's; what the node can't
//! give is refused here by asking for its plan, so that CreateContainer says so.

use std::collections::HashMap;

use bulkhead_runtime::error::ErrorKind;
use bulkhead_runtime::plan::cgroup::{self, Placement};
use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxResources, Spec,
};

use crate::failure::{Class, Doing as _, Failure};
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

/// What an update changes, and the limits that are in force then. Swap that was never limited by
/// itself goes with memory ("no swap" stays true), and one that a raised memory limit would exceed is
/// raised with it; v1's order of writes is the launcher's (case Q1).
pub fn update(
    current: &Resources,
    update: &Resources,
    node: &dyn Placement,
) -> Result<(LinuxResources, Resources), Failure> {
    let mut merged = current.updated(update);
    if let (Some(memory), Some(swap)) = (merged.memory_limit, merged.memory_swap_limit)
        && is_more(memory, swap)
    {
        if update.memory_swap_limit.is_some() {
            return Err(Failure::invalid(format!(
                "linux.memory_swap_limit_in_bytes: {swap} is memory and swap together, less than \
                 the memory limit {memory}"
            )));
        }
        merged.memory_swap_limit = Some(memory);
    }
    let linux = map(&with_both_memory_limits(update, &merged));
    check(&linux, node)?;
    Ok((linux, merged))
}

/// What takes an update back: the limits that were in force, or none where there was none. CPU sets
/// that were never set stay: there is no word for "all".
pub fn undo(current: &Resources, update: &Resources) -> LinuxResources {
    const NONE: i64 = -1;
    const SHARES: u64 = 1024;
    const PERIOD: u64 = 100_000;
    let back = Resources {
        cpu_period: update.cpu_period.and(current.cpu_period.or(Some(PERIOD))),
        cpu_quota: update.cpu_quota.and(current.cpu_quota.or(Some(NONE))),
        cpu_shares: update.cpu_shares.and(current.cpu_shares.or(Some(SHARES))),
        memory_limit: update.memory_limit.and(current.memory_limit.or(Some(NONE))),
        memory_swap_limit: update.memory_swap_limit.and(
            current
                .memory_swap_limit
                .or(current.memory_limit)
                .or(Some(NONE)),
        ),
        cpuset_cpus: current.cpuset_cpus.clone(),
        cpuset_mems: current.cpuset_mems.clone(),
        hugepages: current.hugepages.clone(),
        unified: current.unified.clone(),
        oom_score_adj: current.oom_score_adj,
    };
    map(&back)
}

/// Both limits of memory, if one of them is to change: each depends on the other.
fn with_both_memory_limits(update: &Resources, merged: &Resources) -> Resources {
    let mut both = update.clone();
    if update.memory_limit.or(update.memory_swap_limit).is_some() {
        both.memory_limit = merged.memory_limit;
        both.memory_swap_limit = merged.memory_swap_limit.or(merged.memory_limit);
    }
    both
}

/// Whether a limit lies above another; -1 is the largest.
fn is_more(limit: i64, other: i64) -> bool {
    other != -1 && (limit == -1 || limit > other)
}

/// A container's OCI spec (JSON) with these limits; its device rules stay.
pub fn in_spec(spec: &[u8], resources: &Resources) -> Result<Vec<u8>, Failure> {
    let mut spec: Spec = serde_json::from_slice(spec).doing("read an OCI spec")?;
    let linux = spec.linux_mut().as_mut();
    let linux = linux.ok_or_else(|| Failure::internal("an OCI spec without a linux section"))?;
    let rules = linux
        .resources()
        .as_ref()
        .and_then(|known| known.devices().clone());
    let mut limits = map(resources);
    limits.set_devices(rules);
    linux.set_resources(Some(limits));
    serde_json::to_vec(&spec).doing("write an OCI spec")
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
            let (linux, _) = update(&Resources::default(), &given, &Node(Place::V1)).unwrap();
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
    fn memory_and_swap_of_an_update_are_judged_with_what_is_in_force() {
        const MB: i64 = 1 << 20;
        let pair = |memory: i64, swap: i64| Resources {
            memory_limit: (memory != 0).then_some(memory),
            memory_swap_limit: (swap != 0).then_some(swap),
            ..Resources::default()
        };
        // In force, asked for, and what is written: memory, memory and swap; none is refused.
        for (current, asked, written) in [
            (
                pair(MB, 2 * MB),
                pair(4 * MB, 8 * MB),
                Some((4 * MB, 8 * MB)),
            ),
            // Swap has to give way, or the kernel would refuse (case Q1).
            (pair(MB, 2 * MB), pair(4 * MB, 0), Some((4 * MB, 4 * MB))),
            (
                pair(4 * MB, 8 * MB),
                pair(2 * MB, 0),
                Some((2 * MB, 8 * MB)),
            ),
            (pair(MB, 0), pair(4 * MB, 0), Some((4 * MB, 4 * MB))),
            (pair(MB, 2 * MB), pair(0, -1), Some((MB, -1))),
            (pair(MB, 2 * MB), pair(-1, 0), Some((-1, -1))),
            (pair(2 * MB, 2 * MB), pair(0, MB), None),
            (pair(0, 0), pair(MB, MB), Some((MB, MB))),
        ] {
            let found = update(&current, &asked, &Node(Place::V1)).map(|(linux, _)| {
                let memory = linux.memory().unwrap();
                (memory.limit().unwrap(), memory.swap().unwrap())
            });
            assert_eq!(found.ok(), written, "{current:?} {asked:?}");
        }
    }

    #[test]
    fn an_update_that_could_not_be_recorded_is_taken_back() {
        let current = limited();
        let asked = Resources {
            cpu_shares: Some(2),
            cpu_quota: Some(1000),
            memory_limit: Some(2 << 20),
            ..Resources::default()
        };
        assert_eq!(
            serde_json::to_value(undo(&current, &asked)).unwrap(),
            json!({
                "cpu": {"shares": 1024, "quota": -1},
                "memory": {"limit": 1 << 20, "swap": 1 << 20},
            })
        );
    }

    #[test]
    fn limits_in_a_spec_change_and_device_rules_stay() {
        let text = json!({
            "ociVersion": "1.2.0",
            "linux": {"resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 5},
            }},
        });
        let changed = in_spec(text.to_string().as_bytes(), &limited()).unwrap();
        let changed: serde_json::Value = serde_json::from_slice(&changed).unwrap();
        assert_eq!(changed["linux"]["resources"]["memory"]["limit"], 1 << 20);
        let rules = &changed["linux"]["resources"]["devices"];
        assert_eq!(rules.as_array().unwrap().len(), 1, "{rules}");
    }
}
