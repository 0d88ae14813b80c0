//! How long to wait before a container is started again: the kubelet's own figures. Pure.

use std::time::Duration;

/// The first wait; each further one doubles.
const FIRST: Duration = Duration::from_secs(10);
/// No wait is longer.
const LONGEST: Duration = Duration::from_secs(300);
/// A run of this length makes the next failure a first one again.
const HEALTHY: Duration = Duration::from_secs(600);

/// The waits of one container.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// The wait after a run of this length. The first restart is at once.
    pub(super) fn next(&mut self, ran: Duration) -> Duration {
        let wait = match self.last {
            _ if ran >= HEALTHY => Duration::ZERO,
            None => Duration::ZERO,
            Some(Duration::ZERO) => FIRST,
            Some(last) => (last * 2).min(LONGEST),
        };
        self.last = Some(wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_five_minutes_and_start_over_after_a_healthy_run() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let waits: Vec<_> = (0..8).map(|_| backoff.next(short).as_secs()).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.next(HEALTHY).as_secs(), 0);
        assert_eq!(backoff.next(short).as_secs(), 10);
    }
}
