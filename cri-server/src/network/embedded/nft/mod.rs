//! Our nftables table in the kernel, by netlink. No executable is run.

mod conntrack;
mod expression;
mod message;
mod ruleset;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use netlink_sys::protocols;

use self::message::Batch;
pub(crate) use self::ruleset::{Forward, Layout};
use crate::failure::{Doing as _, Failure};
use crate::network::hostport::Protocol;
use crate::network::netlink::{Netlink, Refusal, u32_at};

/// Whether a notification of the kernel's says that someone who is not `ours` changed our table.
pub(super) fn is_foreign_change(message: &[u8], ours: u32) -> bool {
    u32_at(message, 12) != Some(ours) && message::is_about(message, ruleset::TABLE)
}

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

    /// The number that says of a change that it was made here.
    pub(super) fn port(&self) -> std::io::Result<u32> {
        self.change().netlink.port()
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

    /// Makes the kernel forget which pods connections to these ports led to before. Best effort: what
    /// it knows better times out.
    pub(super) fn forget_connections_to(&self, forwards: &[Forward]) {
        for forward in forwards {
            // TCP begins anew by itself, and a flood of deletions for a pod of many ports is dear.
            if forward.claim.protocol == Protocol::Udp {
                self.forget(&conntrack::to_port(&forward.claim));
            }
        }
    }

    /// The same for all connections an address answers.
    pub(super) fn forget_connections_of(&self, address: IpAddr) {
        self.forget(&conntrack::of_pod(address));
    }

    fn forget(&self, request: &[u8]) {
        let outcome = self.netlink.exchange(request);
        for answer in outcome.into_iter().flatten() {
            if let Some(Err(refusal)) = answer.outcome
                && refusal.errno != libc::ENOENT
            {
                tracing::debug!(%refusal, "the kernel does not forget connections by filter");
            }
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
