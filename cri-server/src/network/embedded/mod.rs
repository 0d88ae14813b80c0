//! The embedded network: a bridge, addresses from the pod CIDR, masquerade and host ports.
//!
//! This file is what it does for the rest; `shared.rs` tells how, `state.rs` decides who gets what,
//! and the others each own one object of the kernel's.

mod bridge;
mod ipam;
mod lease;
mod nft;
mod reaper;
mod shared;
mod state;
mod veth;
mod watch;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use self::reaper::Reaper;
use self::shared::Shared;
use self::watch::Watch;
use super::cidr::Cidr;
use super::hostport::HostPort;
use super::{Attachment, NetworkSettings};
use crate::failure::Failure;

/// The embedded network of the node.
#[derive(Debug)]
pub(super) struct Embedded {
    shared: Arc<Shared>,
    reaper: Reaper,
    _watch: Watch,
}

impl Embedded {
    /// Reads what is remembered and sets the node up. A node that cannot be set up is not an error
    /// here: [`Embedded::check`] says why, and each attach tries again.
    pub(super) fn open(settings: NetworkSettings) -> Result<Self, Failure> {
        let (shared, doomed) = Shared::open(settings)?;
        let shared = Arc::new(shared);
        let watch = Watch::start(&shared)?;
        let reaper = Reaper::start(&shared)?;
        for pod_id in doomed {
            reaper.take(pod_id);
        }
        Ok(Self {
            shared,
            reaper,
            _watch: watch,
        })
    }

    /// Whether pods can be attached, and if not, why.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.shared.check()
    }

    /// Connects a pod.
    pub(super) fn attach(
        &self,
        pod_id: &str,
        namespace: BorrowedFd<'_>,
        host_ports: &[HostPort],
    ) -> Result<Attachment, Failure> {
        self.shared.attach(pod_id, namespace, host_ports)
    }

    /// Disconnects a pod: when this returns nothing leads to it and its ports are free. Its links go
    /// a little later, and its address is kept until they have gone.
    pub(super) fn detach(&self, pod_id: &str) -> Result<(), Failure> {
        if self.shared.disconnect(pod_id)? {
            self.reaper.take(pod_id.to_owned());
        }
        Ok(())
    }

    /// Waits until the links of all detached pods have gone.
    pub(super) fn settle(&self) {
        self.reaper.settle();
    }

    /// Gives addresses from other ranges from now on; pods keep what they have.
    pub(super) fn update_pod_cidr(&self, ranges: &[Cidr]) -> Result<(), Failure> {
        self.shared.update_pod_cidr(ranges)
    }

    /// Removes everything that belongs to no pod of `live`.
    pub(super) fn gc(&self, live: &HashSet<String>) -> Result<(), Failure> {
        for pod_id in self.shared.dead(live) {
            tracing::info!(pod = pod_id, "detaching a pod that is gone");
            self.detach(&pod_id)?;
        }
        self.shared.delete_stray_links()
    }
}

/// The loopback of a pod that has no other interface of ours.
pub(super) fn loopback_up(namespace: BorrowedFd<'_>) -> Result<(), Failure> {
    veth::Inside::enter(namespace)?.loopback_up()
}

/// The address CRI calls the pod's: the first IPv4 one, else the first.
pub(super) fn primary(addresses: &[Cidr]) -> Option<IpAddr> {
    addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or_else(|| addresses.first())
        .map(Cidr::address)
}
