//! What the monitor's epoll watches: the descriptors, and whose each is by its key.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::fd::AsFd;

use crate::error::{Doing, Result};
use crate::sys::epoll::{Epoll, Interest};

/// Keys of what is always watched; those from [`FIRST`] on are given out.
pub(super) const LISTENER: u64 = 0;
pub(super) const SIGNALS: u64 = 1;
pub(super) const ACTIVE: u64 = 2;
pub(super) const CANDIDATE: u64 = 3;
const FIRST: u64 = 16;

/// Whose descriptor is behind a key.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// An output of this container.
    Output(String),
    /// The stdin of this container, to be written to.
    Stdin(String),
    /// A stream of this attached client.
    Client(String),
    /// The terminal of this exec, whose reader is gone.
    Terminal(String),
}

/// The epoll and its keys.
#[derive(Debug)]
pub(super) struct Sources {
    epoll: Epoll,
    by_key: BTreeMap<u64, Source>,
    next: u64,
}

impl Sources {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new().doing(|| "make the monitor's epoll")?,
            by_key: BTreeMap::new(),
            next: FIRST,
        })
    }

    /// Watches a descriptor under a fixed key.
    pub(super) fn add_fixed(&self, source: impl AsFd, key: u64) -> Result<()> {
        let added = self.epoll.add(source, key, Interest::IN);
        added.doing(|| "watch one of the monitor's sources")
    }

    /// Watches a descriptor under a key of its own, which is returned.
    pub(super) fn add(
        &mut self,
        descriptor: impl AsFd,
        source: Source,
        interest: Interest,
    ) -> Result<u64> {
        let key = self.next;
        self.epoll
            .add(descriptor, key, interest)
            .doing(|| "watch a stream")?;
        self.next = key.saturating_add(1);
        self.by_key.insert(key, source);
        Ok(key)
    }

    /// Changes what is watched for; with edge triggering, also reports again what is ready now.
    pub(super) fn change(&self, descriptor: impl AsFd, key: u64, interest: Interest) -> Result<()> {
        self.epoll
            .modify(descriptor, key, interest)
            .doing(|| "watch a stream for something else")
    }

    /// Stops watching, with the key kept: a hang-up can't be ignored otherwise.
    pub(super) fn pause(&self, descriptor: impl AsFd) {
        // Fails only for what isn't watched.
        let _paused_already = self.epoll.remove(descriptor);
    }

    /// Watches again what was paused.
    pub(super) fn resume(&self, descriptor: impl AsFd, key: u64, interest: Interest) -> Result<()> {
        self.epoll
            .add(descriptor, key, interest)
            .doing(|| "watch a stream again")
    }

    /// Stops watching and gives the key up. To be called before the descriptor is closed: somebody
    /// else may have one of the same open file, which would keep it watched (epoll(7)).
    pub(super) fn remove(&mut self, descriptor: impl AsFd, key: u64) {
        self.pause(descriptor);
        self.by_key.remove(&key);
    }

    /// Whose descriptor it is; none if it was given up since it was reported.
    pub(super) fn of(&self, key: u64) -> Option<&Source> {
        self.by_key.get(&key)
    }

    /// See [`Epoll::wait`].
    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        ready: &mut Vec<(u64, Interest)>,
    ) -> Result<()> {
        self.epoll.wait(timeout, ready).doing(|| "wait for events")
    }
}
