//! CPU weight, bandwidth and sets.

use oci_spec::runtime::LinuxCpu;

use super::{Controller, Place, Placement, Setting, Value, need, unsupported};
use crate::error::{Error, Result};

/// The bounds the kernel clamps `cpu.shares` to (`kernel/sched/sched.h`, MIN_SHARES, MAX_SHARES).
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

pub(super) fn plan(
    cpu: &LinuxCpu,
    node: &dyn Placement,
    settings: &mut Vec<Setting>,
) -> Result<()> {
    let shares = cpu.shares().filter(|shares| *shares != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let burst = cpu.burst();
    let idle = cpu.idle();
    let realtime_runtime = cpu.realtime_runtime().filter(|time| *time != 0);
    let realtime_period = cpu.realtime_period().filter(|time| *time != 0);
    let asks = shares.is_some()
        || quota.is_some()
        || period.is_some()
        || burst.is_some()
        || idle.is_some()
        || realtime_runtime.is_some()
        || realtime_period.is_some();
    if !asks {
        return Ok(());
    }
    let place = need(node, Controller::Cpu, "cpu")?;
    if place == Place::V2 && (realtime_runtime.is_some() || realtime_period.is_some()) {
        return Err(unsupported(
            "cpu.realtimeRuntime and cpu.realtimePeriod need cgroup v1",
        ));
    }
    let put = |file: &str, text: String| Setting::new(Controller::Cpu, file, text);
    if let Some(idle) = idle {
        settings.push(put("cpu.idle", idle.to_string()));
    }
    // An idle group has no weight: the kernel answers EINVAL.
    if let Some(shares) = shares.filter(|_| idle != Some(1)) {
        settings.push(match place {
            Place::V1 => put("cpu.shares", shares.to_string()),
            _ => put("cpu.weight", weight(shares).to_string()),
        });
    }
    match place {
        Place::V1 => plan_bandwidth_v1(quota, period, settings),
        _ => plan_bandwidth_v2(quota, period, settings),
    }
    if let Some(burst) = burst {
        settings.push(match place {
            Place::V1 => put("cpu.cfs_burst_us", burst.to_string()),
            _ => put("cpu.max.burst", burst.to_string()),
        });
    }
    if let Some(period) = realtime_period {
        settings.push(put("cpu.rt_period_us", period.to_string()).again());
    }
    if let Some(runtime) = realtime_runtime {
        settings.push(put("cpu.rt_runtime_us", runtime.to_string()));
    }
    Ok(())
}

/// The kernel compares quota/period with the parent after each write, so that a shorter period may
/// be refused until the quota is smaller: tried again after it.
fn plan_bandwidth_v1(quota: Option<i64>, period: Option<u64>, settings: &mut Vec<Setting>) {
    if let Some(period) = period {
        settings.push(Setting::new(Controller::Cpu, "cpu.cfs_period_us", period).again());
    }
    if let Some(quota) = quota {
        settings.push(Setting::new(Controller::Cpu, "cpu.cfs_quota_us", quota.max(-1)).again());
    }
}

/// Refused while it is smaller than the burst the group has: tried again after that.
fn plan_bandwidth_v2(quota: Option<i64>, period: Option<u64>, settings: &mut Vec<Setting>) {
    let quota = quota.map(|quota| u64::try_from(quota).map_or("max".to_owned(), |q| q.to_string()));
    let value = match (quota, period) {
        (Some(quota), Some(period)) => Value::Text(format!("{quota} {period}")),
        (Some(quota), None) => Value::Text(quota),
        (None, Some(period)) => Value::KeepQuota(period),
        (None, None) => return,
    };
    let setting = Setting::new(Controller::Cpu, "cpu.max", "");
    settings.push(Setting { value, ..setting }.again());
}

/// Shares to weight, so that v1's 1024 is v2's default of 100: ⌈10^((l² + 125·l)/612 − 7/34)⌉ with
/// l = log₂(shares). The formula of runc 1.3 and crun 1.23; older runtimes mapped the ranges
/// linearly, which made 1024 shares a weight of 39 (kubernetes/kubernetes#131216).
pub(super) fn weight(shares: u64) -> u32 {
    let shares = shares.clamp(*SHARES.start(), *SHARES.end());
    // Both bounds are given as they are: the formula is off by rounding there.
    if shares == *SHARES.start() {
        return 1;
    }
    if shares == *SHARES.end() {
        return 10_000;
    }
    let shares = u32::try_from(shares).unwrap_or(u32::MAX);
    let l = f64::from(shares).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    let weight = 10f64.powf(exponent).ceil().clamp(1.0, 10_000.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 1..=10000 in the line above"
    )]
    let weight = weight as u32;
    weight
}

pub(super) fn plan_set(
    cpu: &LinuxCpu,
    node: &dyn Placement,
    settings: &mut Vec<Setting>,
) -> Result<()> {
    let lists = [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())];
    for (file, list) in lists {
        let Some(list) = list.as_ref().filter(|list| !list.is_empty()) else {
            continue;
        };
        need(node, Controller::Cpuset, file)?;
        let plain = list.len() <= 4096
            && list
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b',' || byte == b'-');
        if !plain {
            return Err(Error::invalid(format!(
                "{file}: {list:?} is not a list like 0-3,7"
            )));
        }
        settings.push(Setting::new(Controller::Cpuset, file, list));
    }
    Ok(())
}
