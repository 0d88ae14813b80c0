//! Whose turn it is to write when there is more to write than room. Pure.
//!
//! Writers that found the output full queue up. When room comes, the first of them are called, as
//! many as it holds frames for; each may write one frame and queues again behind the others. While
//! anyone is called or waits, nobody else writes, so a stream of a few bytes among a hundred that
//! never stop waits one round at most. A called writer that doesn't come (its owner does something
//! else now) loses its call with the next room.

use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Turns {
    /// How many are called at once.
    most: usize,
    called: Vec<u32>,
    waiting: VecDeque<u32>,
}

impl Turns {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            called: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Whether `stream` may write a frame now, if there is room.
    pub(super) fn may(&self, stream: u32) -> bool {
        self.called.contains(&stream) || self.called.is_empty() && self.waiting.is_empty()
    }

    /// `stream` waits for room.
    pub(super) fn wait(&mut self, stream: u32) {
        if !self.called.contains(&stream) && !self.waiting.contains(&stream) {
            self.waiting.push_back(stream);
        }
    }

    /// `stream` has written its frame, or can't or needn't write any. Returns who is called next.
    pub(super) fn pass(&mut self, stream: u32) -> Vec<u32> {
        let had = self.called.len();
        self.called.retain(|called| *called != stream);
        if had > 0 && self.called.is_empty() {
            return self.call(|_| true);
        }
        Vec::new()
    }

    /// There is room. `present` says whether a called writer is still there and waits. Returns who
    /// is called now.
    pub(super) fn call(&mut self, present: impl Fn(u32) -> bool) -> Vec<u32> {
        self.called.retain(|called| present(*called));
        let free = self.most.saturating_sub(self.called.len());
        let next = self.waiting.len().min(free);
        self.called.extend(self.waiting.drain(..next));
        self.called.clone()
    }

    /// `stream` is gone. Returns who is called next.
    pub(super) fn forget(&mut self, stream: u32) -> Vec<u32> {
        self.waiting.retain(|waiting| *waiting != stream);
        self.pass(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_so_anyone_may_write() {
        let turns = Turns::new(2);
        assert!(turns.may(1) && turns.may(3));
    }

    #[test]
    fn whoever_waits_longest_is_called_first_and_writes_once() {
        let mut turns = Turns::new(2);
        for stream in [1, 3, 5, 3] {
            turns.wait(stream);
        }
        assert!(!turns.may(7), "nobody goes before those who wait");
        assert_eq!(turns.call(|_| true), [1, 3]);
        assert!(turns.may(1) && turns.may(3) && !turns.may(5) && !turns.may(7));
        assert!(turns.pass(1).is_empty());
        assert!(!turns.may(1), "once");
        turns.wait(1);
        assert_eq!(turns.pass(3), [5, 1], "the next round");
    }

    #[test]
    fn a_called_writer_that_found_no_room_keeps_its_turn() {
        let mut turns = Turns::new(1);
        turns.wait(1);
        turns.wait(3);
        assert_eq!(turns.call(|_| true), [1]);
        turns.wait(1);
        assert_eq!(turns.call(|_| true), [1]);
    }

    #[test]
    fn one_that_does_not_come_holds_up_nobody() {
        let mut turns = Turns::new(1);
        turns.wait(1);
        turns.wait(3);
        assert_eq!(turns.call(|_| true), [1]);
        assert_eq!(turns.call(|stream| stream != 1), [3]);
        assert!(turns.forget(3).is_empty());
        assert!(turns.may(1));
    }
}
