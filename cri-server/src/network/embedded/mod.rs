//! The embedded network: a bridge, addresses from the pod CIDR, masquerade and host ports.
//!
//! Attaching: the lease is written first, so that whatever is made afterwards is found after a
//! crash; then the links, the addresses, the host ports. Detaching goes the other way, and the lease
//! goes last: an address is free only when nothing leads to its old pod any more (threat M4).
//!
//! Locks, in this order: `table` (around decisions about rules and the change itself), `state`
//! (moments; a lease's file is written under it). Neither is held while links are made.

mod bridge;
mod ipam;
mod lease;
mod nft;
mod reaper;
mod veth;
mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::bridge::Link;
use self::ipam::Pool;
use self::lease::{Lease, Leases};
use self::nft::{Forward, Layout, Table};
use self::reaper::Reaper;
use self::watch::Watch;
use super::cidr::Cidr;
use super::hostport::{self, HostPort, Taken};
use super::netlink::Route;
use super::{Attachment, NetworkSettings, netns, ports};
use crate::failure::{Class, Failure};

/// The embedded network of the node.
#[derive(Debug)]
pub(super) struct Embedded {
    shared: Arc<Shared>,
    reaper: Reaper,
    _watch: Watch,
}

/// What the operations and the reaper share.
#[derive(Debug)]
struct Shared {
    settings: NetworkSettings,
    leases: Leases,
    state: Mutex<State>,
    /// The bridge's index once everything of the node's is set up.
    prepared: Mutex<Option<u32>>,
    table: Table,
    /// Whether answers from loopback connections are let in; only touched while `table` is held.
    localnet: Mutex<Option<bool>>,
}

/// Who has what.
#[derive(Debug)]
struct State {
    pools: Vec<Pool>,
    leases: HashMap<String, Lease>,
    taken: Taken,
}

impl State {
    fn new(leases: Vec<Lease>) -> Self {
        let mut state = Self {
            pools: Vec::new(),
            leases: HashMap::new(),
            taken: Taken::default(),
        };
        for lease in leases {
            if !lease.detaching
                && let Err(failure) = state.taken.claim(&lease.pod_id, &lease.claims())
            {
                tracing::warn!(pod = lease.pod_id, %failure, "two leases claim one host port");
            }
            state.leases.insert(lease.pod_id.clone(), lease);
        }
        state
    }

    /// Gives addresses from `ranges` from now on.
    fn set_ranges(&mut self, ranges: &[Cidr], cursors: &BTreeMap<Cidr, u64>) {
        self.pools = ranges
            .iter()
            .map(|range| {
                let mut pool =
                    Pool::new(*range, cursors.get(&range.network()).copied().unwrap_or(0));
                for address in self.leases.values().flat_map(|lease| &lease.addresses) {
                    pool.mark(address.address());
                }
                pool
            })
            .collect();
    }

    /// The gateways of the ranges in use: those addresses are given from, and those from before that
    /// pods still have addresses of.
    fn gateways(&self) -> Vec<Cidr> {
        let mut gateways: Vec<Cidr> = self.pools.iter().filter_map(Pool::gateway).collect();
        for gateway in self.leases.values().flat_map(|lease| &lease.gateways) {
            if !gateways.contains(gateway) {
                gateways.push(*gateway);
            }
        }
        gateways
    }

    fn forwards(&self) -> Vec<Forward> {
        self.leases
            .values()
            .filter(|lease| !lease.detaching)
            .flat_map(Lease::forwards)
            .collect()
    }

    fn wants_localnet(&self) -> bool {
        self.forwards()
            .iter()
            .any(|forward| forward.claim.covers_ipv4_loopback())
    }

    fn cursors(&self) -> BTreeMap<Cidr, u64> {
        self.pools
            .iter()
            .map(|pool| (pool.range(), pool.cursor()))
            .collect()
    }

    fn release(&mut self, addresses: &[Cidr]) {
        for address in addresses {
            for pool in &mut self.pools {
                pool.release(address.address());
            }
        }
    }
}

impl Embedded {
    /// Reads what is remembered and sets the node up. A node that cannot be set up is not an error
    /// here: [`Embedded::check`] says why, and each attach tries again.
    pub(super) fn open(settings: NetworkSettings) -> Result<Self, Failure> {
        let leases = Leases::open(&settings.state_dir)?;
        let ranges = leases
            .load_pod_cidr()?
            .unwrap_or_else(|| settings.pod_cidr.clone());
        let mut state = State::new(leases.load()?);
        state.set_ranges(&usable(&ranges), &leases.load_cursors());
        let doomed: Vec<String> = state
            .leases
            .values()
            .filter(|lease| lease.detaching)
            .map(|lease| lease.pod_id.clone())
            .collect();
        let shared = Arc::new(Shared {
            settings,
            leases,
            state: Mutex::new(state),
            prepared: Mutex::new(None),
            table: Table::open()?,
            localnet: Mutex::new(None),
        });
        if let Err(failure) = shared.prepare() {
            tracing::warn!(%failure, "the pod network cannot be set up yet");
        }
        if !bridge::can_answer_ipv6_loopback()? {
            tracing::info!(
                "host ports do not answer on ::1 while net.bridge.bridge-nf-call-ip6tables is 1"
            );
        }
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
        let route = Route::open()?;
        if self.shared.is_prepared() && Link::find(&route, &self.shared.settings.bridge)?.is_some()
        {
            return Ok(());
        }
        self.shared.prepare().map(|_| ())
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
        let dead: Vec<String> = self
            .shared
            .state()
            .leases
            .keys()
            .filter(|pod_id| !live.contains(*pod_id))
            .cloned()
            .collect();
        for pod_id in dead {
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

impl Shared {
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

    /// Sets up what all pods share, and says which link the bridge is.
    fn prepare(&self) -> Result<u32, Failure> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        *prepared = None;
        let gateways = self.state().gateways();
        let has = |ipv4| gateways.iter().any(|gateway| gateway.is_ipv4() == ipv4);
        let settings = &self.settings;
        let index = bridge::ensure(&Route::open()?, &settings.bridge, settings.mtu, &gateways)?;
        bridge::forward(has(true), has(false))?;
        self.assert_table()?;
        *prepared = Some(index);
        Ok(index)
    }

    /// The bridge, set up if it is not yet.
    fn bridge(&self) -> Result<u32, Failure> {
        let prepared = *self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        match prepared {
            Some(index) => Ok(index),
            None => self.prepare().map_err(|failure| {
                Failure::new(Class::Unavailable, failure.message())
                    .context("the pod network cannot be set up")
            }),
        }
    }

    /// Makes the table what the leases say.
    fn assert_table(&self) -> Result<(), Failure> {
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

    fn attach(
        &self,
        pod_id: &str,
        namespace: BorrowedFd<'_>,
        host_ports: &[HostPort],
    ) -> Result<Attachment, Failure> {
        netns::check_pod_id(pod_id)?;
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
        if state.leases.contains_key(pod_id) {
            return Err(Failure::precondition(format!(
                "pod {pod_id} is attached to the network already"
            )));
        }
        let mut lease = Lease {
            pod_id: pod_id.to_owned(),
            host_interface: veth::host_name(pod_id),
            addresses: Vec::new(),
            gateways: Vec::new(),
            host_ports: host_ports.to_vec(),
            detaching: false,
        };
        if state
            .leases
            .values()
            .any(|other| other.host_interface == lease.host_interface)
        {
            return Err(Failure::precondition(format!(
                "link {} is another pod's: two pod ids begin alike",
                lease.host_interface
            )));
        }
        let taken = take_addresses(&mut state.pools, &mut lease, ipv6);
        let outcome = taken
            .and_then(|()| check_host_ports(&lease))
            .and_then(|()| state.taken.claim(pod_id, &lease.claims()));
        if let Err(failure) = outcome {
            state.release(&lease.addresses);
            return Err(failure);
        }
        let saved = self
            .leases
            .save(&lease)
            .and_then(|()| self.leases.save_cursors(&state.cursors()));
        if let Err(failure) = saved {
            state.taken.release(pod_id, &lease.claims());
            state.release(&lease.addresses);
            return Err(failure);
        }
        state.leases.insert(pod_id.to_owned(), lease.clone());
        Ok(lease)
    }

    fn build(
        &self,
        lease: &Lease,
        bridge: u32,
        inside: &veth::Inside,
        namespace: BorrowedFd<'_>,
    ) -> Result<Attachment, Failure> {
        let forwards = lease.forwards();
        ports::probe(&lease.claims())?;
        let primary = primary(&lease.addresses)
            .ok_or_else(|| Failure::internal("a pod without an address"))?;
        let hardware_address = veth::hardware_address(primary);
        let route = Route::open()?;
        let mtu = self.settings.mtu;
        let name = &lease.host_interface;
        veth::create(&route, name, bridge, mtu, hardware_address, namespace)
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
    fn disconnect(&self, pod_id: &str) -> Result<bool, Failure> {
        let change = self.table.change();
        let (forwards, localnet) = {
            let mut state = self.state();
            let Some(lease) = state.leases.get_mut(pod_id) else {
                return Ok(false);
            };
            lease.detaching = true;
            let lease = lease.clone();
            self.leases.save(&lease)?;
            (lease.forwards(), state.wants_localnet())
        };
        if !change.delete(&forwards)? {
            // Never added, or someone flushed the rules: put right what others should have.
            self.assert_table_as(&change)?;
        }
        if !forwards.is_empty() {
            self.set_localnet(&change, localnet, false)?;
            let mut state = self.state();
            if let Some(claims) = state.leases.get(pod_id).map(Lease::claims) {
                state.taken.release(pod_id, &claims);
            }
        }
        Ok(true)
    }

    /// Deletes the pod's links, then its lease. Idempotent.
    fn demolish(&self, pod_id: &str) -> Result<(), Failure> {
        let Some((name, addresses)) = self
            .state()
            .leases
            .get(pod_id)
            .map(|lease| (lease.host_interface.clone(), lease.addresses.clone()))
        else {
            return Ok(());
        };
        veth::delete(&Route::open()?, &name)?;
        for address in addresses {
            self.table.change().forget_connections_of(address.address());
        }
        let mut state = self.state();
        self.leases.remove(pod_id)?;
        if let Some(lease) = state.leases.remove(pod_id) {
            state.release(&lease.addresses);
        }
        Ok(())
    }

    fn update_pod_cidr(&self, ranges: &[Cidr]) -> Result<(), Failure> {
        let ranges = usable(ranges);
        if ranges.is_empty() {
            return Err(Failure::precondition(
                "the pod CIDR has only IPv6 networks and this node has no IPv6",
            ));
        }
        {
            let mut state = self.state();
            if state
                .pools
                .iter()
                .map(Pool::range)
                .eq(ranges.iter().copied())
            {
                return Ok(());
            }
            self.leases.save_pod_cidr(&ranges)?;
            let cursors = self.leases.load_cursors();
            state.set_ranges(&ranges, &cursors);
        }
        self.prepare().map(|_| ())
    }

    /// Ends at the bridge whose lease is lost.
    fn delete_stray_links(&self) -> Result<(), Failure> {
        let route = Route::open()?;
        let Some(bridge) = Link::find(&route, &self.settings.bridge)? else {
            return Ok(());
        };
        let known: HashSet<String> = self
            .state()
            .leases
            .values()
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

fn take_addresses(pools: &mut [Pool], lease: &mut Lease, ipv6: bool) -> Result<(), Failure> {
    for pool in pools
        .iter_mut()
        .filter(|pool| pool.range().is_ipv4() || ipv6)
    {
        let address = pool.take().ok_or_else(|| {
            Failure::new(
                Class::Exhausted,
                format!("no address is free in pod CIDR {}", pool.range()),
            )
        })?;
        lease.addresses.push(address);
        lease.gateways.extend(pool.gateway());
    }
    if lease.addresses.is_empty() {
        return Err(Failure::precondition(
            "the pod CIDR has only IPv6 networks and the pod has IPv6 disabled",
        ));
    }
    Ok(())
}

fn check_host_ports(lease: &Lease) -> Result<(), Failure> {
    let has = |ipv4| {
        lease
            .addresses
            .iter()
            .any(|address| address.is_ipv4() == ipv4)
    };
    hostport::validate(&lease.host_ports, has(true), has(false))
}

/// The address CRI calls the pod's: the first IPv4 one, else the first.
pub(super) fn primary(addresses: &[Cidr]) -> Option<IpAddr> {
    addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or_else(|| addresses.first())
        .map(Cidr::address)
}

fn format_hardware_address(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}
