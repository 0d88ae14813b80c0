//! What is to happen when, pure: one time per key, and the earliest of all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Deadlines by key, on the monotonic clock.
#[derive(Debug)]
pub(super) struct Deadlines<K> {
    by_time: BTreeSet<(Instant, K)>,
    by_key: BTreeMap<K, Instant>,
}

impl<K: Clone + Ord> Deadlines<K> {
    pub(super) fn new() -> Self {
        Self {
            by_time: BTreeSet::new(),
            by_key: BTreeMap::new(),
        }
    }

    /// Sets or moves the deadline of `key`.
    pub(super) fn set(&mut self, key: K, when: Instant) {
        self.cancel(&key);
        self.by_time.insert((when, key.clone()));
        self.by_key.insert(key, when);
    }

    /// Whether `key` has a deadline.
    pub(super) fn is_set(&self, key: &K) -> bool {
        self.by_key.contains_key(key)
    }

    /// Forgets the deadline of `key`, if it has one.
    pub(super) fn cancel(&mut self, key: &K) {
        if let Some(when) = self.by_key.remove(key) {
            self.by_time.remove(&(when, key.clone()));
        }
    }

    /// How long until the earliest; `None` if there is none.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let (when, _) = self.by_time.first()?;
        Some(when.saturating_duration_since(now))
    }

    /// Takes one whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<K> {
        let (when, _) = self.by_time.first()?;
        if *when > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_due_in_order_once_and_can_be_moved_and_cancelled() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::new();
        assert_eq!(deadlines.wait(start), None);
        assert!(!deadlines.is_set(&"late"));
        deadlines.set("late", at(9));
        assert!(deadlines.is_set(&"late"));
        deadlines.set("early", at(1));
        deadlines.set("moved", at(2));
        deadlines.set("moved", at(5));
        deadlines.set("cancelled", at(3));
        deadlines.cancel(&"cancelled");
        deadlines.cancel(&"unknown");
        assert_eq!(deadlines.wait(start), Some(Duration::from_secs(1)));
        assert_eq!(deadlines.due(start), None);
        assert_eq!(deadlines.due(at(5)), Some("early"));
        assert_eq!(deadlines.due(at(5)), Some("moved"));
        assert_eq!(deadlines.due(at(5)), None);
        assert_eq!(deadlines.wait(at(10)), Some(Duration::ZERO));
        assert_eq!(deadlines.due(at(10)), Some("late"));
        assert_eq!(deadlines.wait(at(10)), None);
    }
}
