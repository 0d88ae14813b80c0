//! Our nftables table in the kernel, by netlink. No executable is run.

mod expression;
mod message;
mod ruleset;

use std::sync::{Mutex, MutexGuard, PoisonError};

use netlink_sys::protocols;

use self::message::Batch;
pub(crate) use self::ruleset::{Forward, Layout};
use crate::failure::{Doing as _, Failure};
use crate::network::netlink::{Netlink, Refusal};

/// The table. One socket, one change at a time: the kernel takes them one by one anyway.
#[derive(Debug)]
pub(super) struct Table {
    netlink: Mutex<Netlink>,
}

/// The right to change the table.
pub(super) struct Change<'a> {
    netlink: MutexGuard<'a, Netlink>,
}

impl Table {
    /// Opens a socket in the calling thread's network namespace; changes nothing yet.
    pub(super) fn open() -> Result<Self, Failure> {
        let netlink =
            Netlink::open(protocols::NETLINK_NETFILTER).doing("open a netfilter netlink socket")?;
        Ok(Self {
            netlink: Mutex::new(netlink),
        })
    }

    /// Waits for the table. Whoever decides by other state what is to be in the table does so after
    /// this, so that decisions and changes keep the same order.
    pub(super) fn change(&self) -> Change<'_> {
        // Nothing is left half done by a panic: a batch is whole or not sent.
        Change {
            netlink: self.netlink.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Change<'_> {
    /// Makes the table hold exactly this.
    pub(super) fn replace(&self, layout: &Layout, forwards: &[Forward]) -> Result<(), Failure> {
        self.send(ruleset::replace(layout, forwards))
            .doing("talk to nftables")?
            .doing("make nftables table inet bulkhead")
    }

    /// Adds host ports.
    pub(super) fn add(&self, forwards: &[Forward]) -> Result<(), Failure> {
        if forwards.is_empty() {
            return Ok(());
        }
        self.send(ruleset::add(forwards))
            .doing("talk to nftables")?
            .doing("add host ports to nftables table inet bulkhead")
    }

    /// Removes host ports; `false` when the table does not hold all of them, and none was removed.
    pub(super) fn delete(&self, forwards: &[Forward]) -> Result<bool, Failure> {
        if forwards.is_empty() {
            return Ok(true);
        }
        match self
            .send(ruleset::delete(forwards))
            .doing("talk to nftables")?
        {
            Err(refusal) if refusal.errno == libc::ENOENT => Ok(false),
            other => other
                .doing("remove host ports from nftables table inet bulkhead")
                .map(|()| true),
        }
    }

    fn send(&self, batch: Batch) -> std::io::Result<Result<(), Refusal>> {
        let (datagram, acknowledged) = batch.finish();
        let mut done = false;
        for answer in self.netlink.exchange(&datagram)? {
            match answer.outcome {
                Some(Err(refusal)) => return Ok(Err(refusal)),
                Some(Ok(())) if answer.sequence == acknowledged => done = true,
                _ => {}
            }
        }
        if done {
            Ok(Ok(()))
        } else {
            Err(std::io::Error::other(
                "the kernel did not acknowledge the change",
            ))
        }
    }
}
