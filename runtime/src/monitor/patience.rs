//! How long attached clients may hold a container's output back, pure.
//!
//! While a client's pipe is full the container's output isn't read, so that a burst reaches a client
//! whole that is merely slower than the container. The time for that is a budget of the container,
//! shared by all its clients: at most [`MOST`] at once, and one [`SHARE`]th of the time that passes
//! comes back. So clients slow a container by no more than a tenth, however many there are; those
//! that are still full when the budget is used up are dropped (threat F5).

use std::time::{Duration, Instant};

/// The whole budget.
pub(super) const MOST: Duration = Duration::from_millis(100);

/// In how much time a part of the budget comes back, in multiples of it.
const SHARE: u32 = 10;

/// The budget of one container.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    /// Since when the output is held back, or let go.
    since: Instant,
    held: bool,
}

impl Patience {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: MOST,
            since: now,
            held: false,
        }
    }

    /// The output is held back from now on, if it isn't already; returns when that must end.
    pub(super) fn hold(&mut self, now: Instant) -> Instant {
        if !self.held {
            let back = now.saturating_duration_since(self.since) / SHARE;
            self.left = self.left.saturating_add(back).min(MOST);
            (self.since, self.held) = (now, true);
        }
        self.since + self.left
    }

    /// The output flows again.
    pub(super) fn release(&mut self, now: Instant) {
        if self.held {
            let used = now.saturating_duration_since(self.since);
            self.left = self.left.saturating_sub(used);
            (self.since, self.held) = (now, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_used_while_output_is_held_back_and_comes_back_slowly() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut patience = Patience::new(start);
        assert_eq!(patience.hold(at(5)), at(105));
        assert_eq!(patience.hold(at(50)), at(105), "held already");
        patience.release(at(65));
        patience.release(at(70));
        // 60 ms are used; of the 100 that pass a tenth comes back.
        assert_eq!(patience.hold(at(165)), at(165 + 50));
        patience.release(at(500));
        assert_eq!(patience.hold(at(500)), at(500), "nothing is left");
        patience.release(at(500));
        assert_eq!(
            patience.hold(at(900_000)),
            at(900_100),
            "never more than all"
        );
    }

    #[test]
    fn a_clients_pauses_take_no_more_than_a_tenth_of_the_time() {
        let start = Instant::now();
        let (mut patience, mut now) = (Patience::new(start), start);
        let mut held = Duration::ZERO;
        // A client that is full again after each millisecond.
        for _ in 0..100_000 {
            now += Duration::from_millis(1);
            let until = patience.hold(now);
            held += until - now;
            now = until;
            patience.release(now);
        }
        let bound = (now - start) / 10 + MOST;
        assert!(held <= bound, "{held:?} of {:?}", now - start);
    }
}
