//! How pods are connected and disconnected.
//!
//! Attaching: the lease is written first, so that whatever is made afterwards is found after a
//! crash; then the links, the addresses, the host ports. Detaching goes the other way, and the lease
//! goes last: an address is free only when nothing leads to its old pod any more (threat M4).
//!
//! Locks, in this order: `prepared`, `table` (around decisions about rules and the change itself),
//! `state` (moments; a lease's file is written under it). None is held while a pod's links are made.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bridge::{self, Link};
use super::lease::{Lease, Leases};
use super::nft::{self, Layout, Table};
use super::state::State;
use super::{primary, veth};
use crate::failure::{Class, Failure};
use crate::network::cidr::Cidr;
use crate::network::hostport::HostPort;
use crate::network::netlink::Route;
use crate::network::{Attachment, NetworkSettings, netns, ports};

/// What the operations and the reaper share.
#[derive(Debug)]
pub(super) struct Shared {
    settings: NetworkSettings,
    leases: Leases,
    state: Mutex<State>,
    /// Known once everything of the node's is set up.
    prepared: Mutex<Option<Prepared>>,
    pub(super) table: Table,
    /// Whether answers from loopback connections are let in; only touched while `table` is held.
    localnet: Mutex<Option<bool>>,
}

/// What pods are attached to.
#[derive(Clone, Copy, Debug)]
struct Prepared {
    /// The bridge.
    index: u32,
    mtu: Option<u32>,
}

impl Shared {
    /// Reads what is remembered and sets the node up. The second result are the pods whose detaching
    /// was begun and not finished.
    pub(super) fn open(settings: NetworkSettings) -> Result<(Self, Vec<String>), Failure> {
        let leases = Leases::open(&settings.state_dir)?;
        let ranges = leases
            .load_pod_cidr()?
            .unwrap_or_else(|| settings.pod_cidr.clone());
        let mut state = State::new(leases.load()?);
        state.set_ranges(&usable(&ranges), &leases.load_cursors());
        let doomed = state
            .leases()
            .filter(|lease| lease.detaching)
            .map(|lease| lease.pod_id.clone())
            .collect();
        let shared = Self {
            settings,
            leases,
            state: Mutex::new(state),
            prepared: Mutex::new(None),
            table: Table::open()?,
            localnet: Mutex::new(None),
        };
        if let Err(failure) = shared.prepare() {
            tracing::warn!(%failure, "the pod network cannot be set up yet");
        }
        if !bridge::can_answer_ipv6_loopback()? {
            tracing::info!(
                "host ports do not answer on ::1 while net.bridge.bridge-nf-call-ip6tables is 1"
            );
        }
        Ok((shared, doomed))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is changed under the lock is changed without a way to panic in between.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_prepared(&self) -> bool {
        self.prepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Sets up what all pods share.
    fn prepare(&self) -> Result<Prepared, Failure> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        *prepared = None;
        let gateways = self.state().gateways();
        let has = |ipv4| gateways.iter().any(|gateway| gateway.is_ipv4() == ipv4);
        let settings = &self.settings;
        let route = Route::open()?;
        let mtu = match settings.mtu {
            Some(mtu) => Some(mtu),
            None => bridge::default_route_mtu(&route)?,
        };
        let index = bridge::ensure(&route, &settings.bridge, mtu, &gateways)?;
        bridge::forward(has(true), has(false))?;
        self.assert_table()?;
        let now = Prepared { index, mtu };
        *prepared = Some(now);
        Ok(now)
    }

    /// The bridge, set up if it is not yet.
    fn bridge(&self) -> Result<Prepared, Failure> {
        let prepared = *self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        match prepared {
            Some(prepared) => Ok(prepared),
            None => self.prepare().map_err(|failure| {
                Failure::new(Class::Unavailable, failure.message())
                    .context("the pod network cannot be set up")
            }),
        }
    }

    /// Makes the table what the leases say.
    pub(super) fn assert_table(&self) -> Result<(), Failure> {
        self.assert_table_as(&self.table.change())
    }

    fn assert_table_as(&self, change: &nft::Change<'_>) -> Result<(), Failure> {
        let (layout, forwards, localnet) = {
            let state = self.state();
            let layout = Layout {
                bridge: self.settings.bridge.clone(),
                ranges: state.gateways().iter().map(Cidr::network).collect(),
                unmasqueraded: self.settings.unmasqueraded.clone(),
            };
            (layout, state.forwards(), state.wants_localnet())
        };
        change.replace(&layout, &forwards)?;
        // After the rules that guard it.
        self.set_localnet(change, localnet, true)
    }

    fn set_localnet(&self, _: &nft::Change<'_>, on: bool, again: bool) -> Result<(), Failure> {
        let mut set = self.localnet.lock().unwrap_or_else(PoisonError::into_inner);
        if again || *set != Some(on) {
            bridge::set_route_localnet(&self.settings.bridge, on)?;
            *set = Some(on);
        }
        Ok(())
    }

    pub(super) fn attach(
        &self,
        pod_id: &str,
        namespace: BorrowedFd<'_>,
        host_ports: &[HostPort],
    ) -> Result<Attachment, Failure> {
        netns::check_pod_id(pod_id)?;
        if !host_ports.is_empty() && !self.settings.host_ports {
            return Err(Failure::precondition(
                "this node serves no host ports (network.host-ports)",
            ));
        }
        let bridge = self.bridge()?;
        let inside = veth::Inside::enter(namespace)?;
        let lease = self.reserve(pod_id, host_ports, inside.ipv6)?;
        match self.build(&lease, bridge, &inside, namespace) {
            Ok(attachment) => Ok(attachment),
            Err(failure) => {
                if let Err(left) = self.disconnect(pod_id).and_then(|_| self.demolish(pod_id)) {
                    // The lease is still there, so detach, gc or the next start finish it.
                    tracing::warn!(pod = pod_id, failure = %left, "a failed attach is left half undone");
                }
                Err(failure)
            }
        }
    }

    /// Decides what the pod gets and writes it down, before anything is made.
    fn reserve(&self, pod_id: &str, host_ports: &[HostPort], ipv6: bool) -> Result<Lease, Failure> {
        let mut state = self.state();
        let lease = state.grant(pod_id, host_ports, ipv6)?;
        let saved = self
            .leases
            .save(&lease)
            .and_then(|()| self.leases.save_cursors(&state.cursors()));
        if let Err(failure) = saved {
            state.revoke(pod_id);
            return Err(failure);
        }
        Ok(lease)
    }

    fn build(
        &self,
        lease: &Lease,
        bridge: Prepared,
        inside: &veth::Inside,
        namespace: BorrowedFd<'_>,
    ) -> Result<Attachment, Failure> {
        let forwards = lease.forwards();
        ports::probe(&lease.claims())?;
        let primary = primary(&lease.addresses)
            .ok_or_else(|| Failure::internal("a pod without an address"))?;
        let hardware_address = veth::hardware_address(primary);
        let route = Route::open()?;
        let name = &lease.host_interface;
        let Prepared { index, mtu } = bridge;
        veth::create(&route, name, index, mtu, hardware_address, namespace)
            .inspect_err(|_| self.forget_bridge())?;
        inside.configure(&lease.addresses, &lease.gateways)?;
        veth::set_up_port(&route, name)?;
        if !forwards.is_empty() {
            let change = self.table.change();
            change.add(&forwards)?;
            change.forget_connections_to(&forwards);
            if forwards
                .iter()
                .any(|forward| forward.claim.covers_ipv4_loopback())
            {
                self.set_localnet(&change, true, false)?;
            }
        }
        veth::wait_until_running(&route, [name, &self.settings.bridge])?;
        Ok(Attachment {
            interface: veth::INTERFACE.to_owned(),
            host_interface: name.clone(),
            hardware_address: format_hardware_address(hardware_address),
            addresses: lease.addresses.clone(),
            gateways: lease.gateways.iter().map(Cidr::address).collect(),
        })
    }

    /// Somebody may have removed the bridge: the next attach looks again.
    fn forget_bridge(&self) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes away what leads to the pod; its links and lease are left to [`Shared::demolish`].
    /// `false` when the pod has nothing.
    pub(super) fn disconnect(&self, pod_id: &str) -> Result<bool, Failure> {
        let change = self.table.change();
        let (lease, localnet) = {
            let mut state = self.state();
            let Some(lease) = state.begin_detach(pod_id) else {
                return Ok(false);
            };
            self.leases.save(&lease)?;
            (lease, state.wants_localnet())
        };
        let forwards = lease.forwards();
        if !change.delete(&forwards)? {
            // Never added, or someone flushed the rules: put right what others should have.
            self.assert_table_as(&change)?;
        }
        if !forwards.is_empty() {
            self.set_localnet(&change, localnet, false)?;
            self.state().release_ports(&lease);
        }
        Ok(true)
    }

    /// Deletes the pod's links, then its lease. Idempotent.
    pub(super) fn demolish(&self, pod_id: &str) -> Result<(), Failure> {
        let Some(lease) = self.state().lease(pod_id).cloned() else {
            return Ok(());
        };
        veth::delete(&Route::open()?, &lease.host_interface)?;
        for address in &lease.addresses {
            self.table.change().forget_connections_of(address.address());
        }
        let mut state = self.state();
        self.leases.remove(pod_id)?;
        state.revoke(pod_id);
        Ok(())
    }

    /// The pods that hold something and are not among `live`.
    pub(super) fn dead(&self, live: &HashSet<String>) -> Vec<String> {
        self.state()
            .leases()
            .map(|lease| lease.pod_id.clone())
            .filter(|pod_id| !live.contains(pod_id))
            .collect()
    }

    /// Whether everything of the node's is there, set up anew if it is not.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.is_prepared() && Link::find(&Route::open()?, &self.settings.bridge)?.is_some() {
            return Ok(());
        }
        self.prepare().map(|_| ())
    }

    pub(super) fn update_pod_cidr(&self, ranges: &[Cidr]) -> Result<(), Failure> {
        let ranges = usable(ranges);
        if ranges.is_empty() {
            return Err(Failure::precondition(
                "the pod CIDR has only IPv6 networks and this node has no IPv6",
            ));
        }
        {
            let mut state = self.state();
            if state.ranges() == ranges {
                return Ok(());
            }
            self.leases.save_pod_cidr(&ranges)?;
            let cursors = self.leases.load_cursors();
            state.set_ranges(&ranges, &cursors);
        }
        self.prepare().map(|_| ())
    }

    /// Ends at the bridge whose lease is lost.
    pub(super) fn delete_stray_links(&self) -> Result<(), Failure> {
        let route = Route::open()?;
        let Some(bridge) = Link::find(&route, &self.settings.bridge)? else {
            return Ok(());
        };
        let known: HashSet<String> = self
            .state()
            .leases()
            .map(|lease| lease.host_interface.clone())
            .collect();
        for link in Link::list(&route)? {
            if veth::is_ours(&link, bridge.index) && !known.contains(&link.name) {
                tracing::info!(link = link.name, "deleting a link that belongs to no pod");
                veth::delete(&route, &link.name)?;
            }
        }
        Ok(())
    }
}

/// The ranges this kernel has the family of.
fn usable(ranges: &[Cidr]) -> Vec<Cidr> {
    let ipv6 = bridge::has_ipv6();
    let usable: Vec<Cidr> = ranges
        .iter()
        .copied()
        .filter(|range| range.is_ipv4() || ipv6)
        .collect();
    if usable.len() != ranges.len() {
        tracing::info!("this node has no IPv6: pods get IPv4 addresses only");
    }
    usable
}

fn format_hardware_address(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}
