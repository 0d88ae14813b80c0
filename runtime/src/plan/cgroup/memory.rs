//! Memory and swap. The OCI's `swap` is memory plus swap, as on v1; v2 limits swap alone.

use oci_spec::runtime::LinuxMemory;

use super::{Absent, Controller, Limit, Place, Placement, Setting, Value, need, unsupported};
use crate::error::{Error, Result};

pub(super) fn plan(
    memory: &LinuxMemory,
    node: &dyn Placement,
    settings: &mut Vec<Setting>,
) -> Result<()> {
    refuse_unsupported(memory)?;
    let limit = Limit::parse(memory.limit());
    let swap = Limit::parse(memory.swap());
    let reservation = Limit::parse(memory.reservation());
    let swappiness = memory.swappiness();
    let no_killer = memory.disable_oom_killer() == Some(true);
    let asks = limit.is_some()
        || swap.is_some()
        || reservation.is_some()
        || swappiness.is_some()
        || no_killer;
    if !asks {
        return Ok(());
    }
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap < limit
    {
        return Err(Error::invalid(format!(
            "memory.swap ({}) is memory and swap together, so it can't be below memory.limit ({})",
            swap.v2(),
            limit.v2()
        )));
    }
    match need(node, Controller::Memory, "memory")? {
        Place::V1 => {
            plan_v1(limit, swap, settings);
            if let Some(value) = reservation {
                settings.push(put("memory.soft_limit_in_bytes", value.v1()));
            }
            if let Some(swappiness) = swappiness {
                settings.push(put("memory.swappiness", swappiness.to_string()));
            }
            if no_killer {
                settings.push(put("memory.oom_control", "1".to_owned()));
            }
        }
        _ => {
            if swappiness.is_some() || no_killer {
                return Err(unsupported(
                    "memory.swappiness and memory.disableOOMKiller need cgroup v1",
                ));
            }
            plan_v2(limit, swap, settings)?;
            if let Some(value) = reservation {
                settings.push(put("memory.low", value.v2()));
            }
        }
    }
    Ok(())
}

fn put(file: &str, text: String) -> Setting {
    Setting::new(Controller::Memory, file, text)
}

fn refuse_unsupported(memory: &LinuxMemory) -> Result<()> {
    // Removed from the kernel (5.16, v2 never had them): a limit would not hold.
    if memory.kernel().is_some_and(|bytes| bytes > 0)
        || memory.kernel_tcp().is_some_and(|bytes| bytes > 0)
    {
        return Err(unsupported(
            "memory.kernel and memory.kernelTCP are not supported: memory.limit covers the kernel's",
        ));
    }
    if memory.use_hierarchy() == Some(false) {
        return Err(unsupported(
            "memory.useHierarchy can't be false: groups are always hierarchical",
        ));
    }
    if memory.swappiness().is_some_and(|value| value > 100) {
        return Err(Error::invalid("memory.swappiness is at most 100"));
    }
    Ok(())
}

/// Memory+swap where only memory is given: a limited container gets no swap, an unlimited one is
/// not limited in swap either.
fn implied_swap(limit: Option<Limit>, swap: Option<Limit>) -> Option<Limit> {
    swap.or(limit)
}

fn plan_v1(limit: Option<Limit>, swap: Option<Limit>, settings: &mut Vec<Setting>) {
    let memsw = implied_swap(limit, swap);
    if limit.is_none() && memsw.is_none() {
        return;
    }
    settings.push(Setting {
        value: Value::MemoryPair { limit, memsw },
        absent: absent_swap(limit, swap),
        ..put("memory.limit_in_bytes", String::new())
    });
}

/// Without swap accounting (`swapaccount=0`, a kernel without swap) only a request that really
/// allows some swap is an error.
fn absent_swap(limit: Option<Limit>, swap: Option<Limit>) -> Absent {
    match swap {
        None | Some(Limit::Max) => Absent::Skip,
        some if some == limit => Absent::Skip,
        Some(_) => Absent::Error,
    }
}

fn plan_v2(limit: Option<Limit>, swap: Option<Limit>, settings: &mut Vec<Setting>) -> Result<()> {
    if let Some(value) = limit {
        settings.push(put("memory.max", value.v2()));
    }
    let swap_max = match (limit, implied_swap(limit, swap)) {
        (_, None) => return Ok(()),
        (_, Some(Limit::Max)) => Limit::Max,
        (Some(Limit::Bytes(memory)), Some(Limit::Bytes(both))) => Limit::Bytes(both - memory),
        (_, Some(Limit::Bytes(_))) => {
            return Err(Error::invalid(
                "memory.swap is memory and swap together: it needs memory.limit",
            ));
        }
    };
    settings.push(Setting {
        absent: absent_swap(limit, swap),
        ..put("memory.swap.max", swap_max.v2())
    });
    Ok(())
}
