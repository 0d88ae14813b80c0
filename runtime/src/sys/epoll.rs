//! Readiness of many descriptors (epoll(7)), keyed by a `u64` of the caller.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;

pub use rustix::event::epoll::EventFlags as Interest;

/// How many events one wait returns at most: a bound on the memory, not on what is watched.
const BATCH: usize = 64;

/// An epoll instance and the buffer its events are read into.
pub struct Epoll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl std::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Epoll").field(&self.epoll).finish()
    }
}

impl Epoll {
    /// A new instance that watches nothing.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Watches `source`; its events carry `key`. It must be removed before it is closed if
    /// another descriptor of the same open file lives on (epoll(7), questions 6 and 7).
    pub fn add(&self, source: impl AsFd, key: u64, interest: Interest) -> Result<(), Errno> {
        epoll::add(
            &self.epoll,
            source,
            epoll::EventData::new_u64(key),
            interest,
        )
    }

    /// Changes what is watched for; with edge triggering, also reports again what is ready now.
    pub fn modify(&self, source: impl AsFd, key: u64, interest: Interest) -> Result<(), Errno> {
        epoll::modify(
            &self.epoll,
            source,
            epoll::EventData::new_u64(key),
            interest,
        )
    }

    /// Stops watching `source`.
    pub fn remove(&self, source: impl AsFd) -> Result<(), Errno> {
        epoll::delete(&self.epoll, source)
    }

    /// Waits until something is ready or `timeout` is over (none: for ever), and appends keys and
    /// flags to `ready`. A signal ends the wait early, with nothing appended.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        ready: &mut Vec<(u64, Interest)>,
    ) -> Result<(), Errno> {
        self.events.clear();
        // A duration too long for a timespec is as good as none.
        let timeout = timeout.and_then(|timeout| rustix::fs::Timespec::try_from(timeout).ok());
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        ready.extend(self.events.iter().map(|event| {
            let (data, flags) = (event.data, event.flags);
            (data.u64(), flags)
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_carries_the_key_and_a_timeout_carries_nothing() {
        let mut epoll = Epoll::new().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        epoll.add(&read, 7, Interest::IN).unwrap();
        let mut ready = Vec::new();
        epoll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
        rustix::io::write(&write, b"x").unwrap();
        epoll.wait(None, &mut ready).unwrap();
        assert_eq!(ready, [(7, Interest::IN)]);
        epoll.remove(&read).unwrap();
        ready.clear();
        epoll.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
    }
}
