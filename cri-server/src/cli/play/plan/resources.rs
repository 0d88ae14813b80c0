//! Requests and limits as the kubelet turns them into CRI values. Pure.
//!
//! Sources: `pkg/kubelet/cm/helpers_linux.go` (shares, quota), `pkg/kubelet/qos/policy.go` (OOM
//! scores), `pkg/apis/core/v1/helper/qos` (classes) of Kubernetes 1.37.

use bulkhead_proto::runtime::v1;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

use super::{Checker, Node};
use crate::cli::play::quantity;

const PERIOD_MICROS: i64 = 100_000;
const MIN_QUOTA_MICROS: i64 = 1000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// Kubernetes' class of a pod, by what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// A container's quantities; zero where none is given.
#[derive(Clone, Copy, Debug, Default)]
struct Amounts {
    cpu_request: i64,
    cpu_limit: i64,
    memory_request: i64,
    memory_limit: i64,
}

pub(super) fn qos(spec: &PodSpec) -> Qos {
    let all = || {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    };
    let amounts = |c: &Container| amounts(c.resources.as_ref(), &mut |_, _| {});
    let nothing = |a: Amounts| a.cpu_request == 0 && a.memory_request == 0;
    let full = |a: Amounts| {
        a.cpu_limit > 0
            && a.memory_limit > 0
            && a.cpu_request == a.cpu_limit
            && a.memory_request == a.memory_limit
    };
    if all().all(|c| nothing(amounts(c))) {
        Qos::BestEffort
    } else if all().all(|c| full(amounts(c))) {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

/// The quantities, an absent request being the limit, as Kubernetes defaults it.
fn amounts(
    resources: Option<&ResourceRequirements>,
    wrong: &mut dyn FnMut(&str, String),
) -> Amounts {
    let mut read = |table: &str, name: &str, parse: fn(&str) -> Result<i64, String>| {
        let resources = resources?;
        let entries = match table {
            "limits" => resources.limits.as_ref(),
            _ => resources.requests.as_ref(),
        };
        let quantity = &entries?.get(name)?.0;
        match parse(quantity) {
            Ok(value) => Some(value),
            Err(why) => {
                wrong(&format!("{table}.{name}"), why);
                None
            }
        }
    };
    let cpu_limit = read("limits", "cpu", quantity::milli).unwrap_or(0);
    let memory_limit = read("limits", "memory", quantity::bytes).unwrap_or(0);
    let amounts = Amounts {
        cpu_request: read("requests", "cpu", quantity::milli).unwrap_or(cpu_limit),
        memory_request: read("requests", "memory", quantity::bytes).unwrap_or(memory_limit),
        cpu_limit,
        memory_limit,
    };
    for (name, request, limit) in [
        ("cpu", amounts.cpu_request, cpu_limit),
        ("memory", amounts.memory_request, memory_limit),
    ] {
        if limit > 0 && request > limit {
            wrong(
                &format!("requests.{name}"),
                format!("is above limits.{name}"),
            );
        }
    }
    amounts
}

/// One container's limits.
pub(super) fn container(
    container: &Container,
    qos: Qos,
    node: &Node,
    path: &str,
    checker: &mut Checker<'_>,
) -> v1::LinuxContainerResources {
    let amounts = amounts(container.resources.as_ref(), &mut |field, why| {
        checker.wrong(&format!("{path}.resources.{field}"), why);
    });
    v1::LinuxContainerResources {
        oom_score_adj: oom_score(qos, amounts.memory_request, node.memory_bytes),
        ..limits(amounts)
    }
}

fn limits(amounts: Amounts) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: PERIOD_MICROS,
        cpu_quota: quota(amounts.cpu_limit),
        cpu_shares: shares(amounts.cpu_request),
        memory_limit_in_bytes: amounts.memory_limit,
        // As much as memory alone: no swap.
        memory_swap_limit_in_bytes: amounts.memory_limit,
        ..Default::default()
    }
}

/// The sum of the long-running containers, which is information for the runtime.
pub(super) fn pod(spec: &PodSpec, checker: &mut Checker<'_>) -> v1::LinuxContainerResources {
    let mut sum = Amounts::default();
    let mut unlimited = Amounts::default();
    for (index, container) in spec.containers.iter().enumerate() {
        let amounts = amounts(container.resources.as_ref(), &mut |_, _| {});
        let mut overflow = false;
        let mut add = |into: &mut i64, value: i64| match into.checked_add(value) {
            Some(total) => *into = total,
            None => overflow = true,
        };
        add(&mut sum.cpu_request, amounts.cpu_request);
        add(&mut sum.cpu_limit, amounts.cpu_limit);
        add(&mut sum.memory_limit, amounts.memory_limit);
        unlimited.cpu_limit += i64::from(amounts.cpu_limit == 0);
        unlimited.memory_limit += i64::from(amounts.memory_limit == 0);
        if overflow {
            checker.wrong(
                &format!("spec.containers[{index}].resources"),
                "add up to too much",
            );
        }
    }
    if unlimited.cpu_limit > 0 {
        sum.cpu_limit = 0;
    }
    if unlimited.memory_limit > 0 {
        sum.memory_limit = 0;
    }
    v1::LinuxContainerResources {
        memory_swap_limit_in_bytes: 0,
        ..limits(sum)
    }
}

fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

fn quota(milli: i64) -> i64 {
    if milli == 0 {
        return 0;
    }
    (milli.saturating_mul(PERIOD_MICROS) / 1000).max(MIN_QUOTA_MICROS)
}

/// The more memory a burstable container asks for, the later it is killed.
fn oom_score(qos: Qos, memory_request: i64, node_memory: i64) -> i64 {
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let share = memory_request
                .saturating_mul(1000)
                .checked_div(node_memory)
                .unwrap_or(0);
            (1000 - share.min(1000)).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_quota_are_the_kubelets() {
        for (milli, shares_wanted, quota_wanted) in [
            (0, 2, 0),
            (1, 2, 1000),
            (100, 102, 10_000),
            (250, 256, 25_000),
            (1000, 1024, 100_000),
            (300_000, 262_144, 30_000_000),
        ] {
            assert_eq!(shares(milli), shares_wanted, "shares of {milli}");
            assert_eq!(quota(milli), quota_wanted, "quota of {milli}");
        }
    }

    #[test]
    fn oom_scores_are_the_kubelets() {
        let gib = 1 << 30;
        for (qos, request, node, score) in [
            (Qos::Guaranteed, gib, 4 * gib, -997),
            (Qos::BestEffort, 0, 4 * gib, 1000),
            (Qos::Burstable, 0, 4 * gib, 999),
            (Qos::Burstable, gib, 4 * gib, 750),
            (Qos::Burstable, 8 * gib, 4 * gib, 3),
            (Qos::Burstable, gib, 0, 999),
        ] {
            assert_eq!(
                oom_score(qos, request, node),
                score,
                "{qos:?} {request} of {node}"
            );
        }
    }
}
