//! Usage of containers, read from their cgroups at most once a second whatever is asked, and every
//! period in the background so that a rate of the CPU exists before anyone asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bulkhead_runtime::cgroup::CgroupStats;

use crate::clock::now;
use crate::failure::{Doing, Failure};
use crate::node::NodeHandle;
use crate::records::{ContainerRecord, ContainerState};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);

/// One reading of a cgroup.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Wall clock, nanoseconds since the epoch.
    pub timestamp: i64,
    /// CPU rate between the last two readings, in billionths of a core.
    pub nano_cores: Option<u64>,
    /// The figures.
    pub cgroup: CgroupStats,
    read_at: Instant,
}

/// The last reading of each container.
#[derive(Clone, Debug, Default)]
pub struct StatsCache {
    readings: Arc<Mutex<HashMap<String, Usage>>>,
}

impl StatsCache {
    fn readings(&self) -> std::sync::MutexGuard<'_, HashMap<String, Usage>> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container is gone.
    pub fn forget(&self, container: &str) {
        self.readings().remove(container);
    }

    fn fresh(&self, container: &str) -> Option<Usage> {
        self.readings()
            .get(container)
            .filter(|usage| usage.read_at.elapsed() < FRESH)
            .cloned()
    }

    fn store(&self, container: &str, cgroup: CgroupStats) -> Usage {
        let mut readings = self.readings();
        let read_at = Instant::now();
        let nano_cores = readings.get(container).and_then(|last| {
            rate(
                last.cgroup.cpu_usage_ns,
                cgroup.cpu_usage_ns,
                read_at - last.read_at,
            )
        });
        let usage = Usage {
            timestamp: now(),
            nano_cores,
            cgroup,
            read_at,
        };
        readings.insert(container.to_owned(), usage.clone());
        usage
    }
}

/// Billionths of a core between two counters; none for a counter that went back.
fn rate(before: u64, after: u64, between: Duration) -> Option<u64> {
    let nanos = u128::from(after.checked_sub(before)?) * 1_000_000_000;
    u64::try_from(nanos.checked_div(between.as_nanos())?).ok()
}

/// The usage of one running container; `None` when it has no cgroup any more.
///
/// # Errors
/// When its cgroup can't be read.
pub async fn usage(
    node: &NodeHandle,
    container: &Arc<ContainerRecord>,
) -> Result<Option<Usage>, Failure> {
    if container.state != ContainerState::Running {
        return Ok(None);
    }
    if let Some(usage) = node.stats.fresh(&container.id) {
        return Ok(Some(usage));
    }
    let mut found = usages(node, vec![container.clone()]).await?;
    Ok(found.remove(&container.id))
}

/// The usage of many, in one go; those that vanish meanwhile are left out.
///
/// # Errors
/// When the reading itself broke down.
pub async fn usages(
    node: &NodeHandle,
    containers: Vec<Arc<ContainerRecord>>,
) -> Result<HashMap<String, Usage>, Failure> {
    let (cache, hierarchies) = (node.stats.clone(), node.hierarchies.clone());
    node.tasks
        .blocking(move || {
            containers
                .iter()
                .filter(|container| container.state == ContainerState::Running)
                .filter_map(|container| {
                    let id = container.id.clone();
                    if let Some(usage) = cache.fresh(&id) {
                        return Some((id, usage));
                    }
                    let cgroup = hierarchies.open(&container.cgroup).ok().flatten()?;
                    let usage = cache.store(&id, cgroup.stats().ok()?);
                    Some((id, usage))
                })
                .collect()
        })
        .await
        .doing("read usage")
}

/// Reads all running containers every `period`, until the daemon stops.
pub async fn sample(node: NodeHandle, period: Duration) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = node.tasks.stopping() => return,
        }
        let running: Vec<_> = node.records.snapshot().containers().cloned().collect();
        if let Err(failure) = usages(&node, running).await {
            tracing::warn!(%failure, "usage could not be sampled");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_counted_in_billionths_of_a_core() {
        let second = Duration::from_secs(1);
        for (case, before, after, between, expected) in [
            ("half a core", 0, 500_000_000, second, Some(500_000_000)),
            ("idle", 7, 7, second, Some(0)),
            ("a counter that went back", 8, 7, second, None),
            ("no time between", 0, 1, Duration::ZERO, None),
        ] {
            assert_eq!(rate(before, after, between), expected, "{case}");
        }
    }
}
