//! Who has which address and which host port: the decisions, remembered in memory. Pure.

use std::collections::{BTreeMap, HashMap};

use super::ipam::Pool;
use super::lease::Lease;
use super::nft::Forward;
use super::veth;
use crate::failure::{Class, Failure};
use crate::network::cidr::Cidr;
use crate::network::hostport::{self, HostPort, Taken};

/// Who has what.
#[derive(Debug)]
pub(super) struct State {
    pools: Vec<Pool>,
    leases: HashMap<String, Lease>,
    taken: Taken,
}

impl State {
    pub(super) fn new(leases: Vec<Lease>) -> Self {
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
    pub(super) fn set_ranges(&mut self, ranges: &[Cidr], cursors: &BTreeMap<Cidr, u64>) {
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
    pub(super) fn gateways(&self) -> Vec<Cidr> {
        let mut gateways: Vec<Cidr> = self.pools.iter().filter_map(Pool::gateway).collect();
        for gateway in self.leases.values().flat_map(|lease| &lease.gateways) {
            if !gateways.contains(gateway) {
                gateways.push(*gateway);
            }
        }
        gateways
    }

    pub(super) fn forwards(&self) -> Vec<Forward> {
        self.leases
            .values()
            .filter(|lease| !lease.detaching)
            .flat_map(Lease::forwards)
            .collect()
    }

    pub(super) fn wants_localnet(&self) -> bool {
        self.forwards()
            .iter()
            .any(|forward| forward.claim.covers_ipv4_loopback())
    }

    pub(super) fn cursors(&self) -> BTreeMap<Cidr, u64> {
        self.pools
            .iter()
            .map(|pool| (pool.range(), pool.cursor()))
            .collect()
    }

    /// The ranges addresses are given from.
    pub(super) fn ranges(&self) -> Vec<Cidr> {
        self.pools.iter().map(Pool::range).collect()
    }

    /// What a pod holds.
    pub(super) fn lease(&self, pod_id: &str) -> Option<&Lease> {
        self.leases.get(pod_id)
    }

    /// What all pods hold.
    pub(super) fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Decides what a new pod holds, and gives it that.
    pub(super) fn grant(
        &mut self,
        pod_id: &str,
        host_ports: &[HostPort],
        ipv6: bool,
    ) -> Result<Lease, Failure> {
        if self.leases.contains_key(pod_id) {
            return Err(Failure::precondition(format!(
                "pod {pod_id} is attached to the network already"
            )));
        }
        let host_interface = veth::host_name(pod_id);
        if let Some(other) = self
            .leases()
            .find(|lease| lease.host_interface == host_interface)
        {
            return Err(Failure::precondition(format!(
                "link {host_interface} is pod {}'s: the ids begin alike",
                other.pod_id
            )));
        }
        let mut lease = Lease {
            pod_id: pod_id.to_owned(),
            host_interface,
            addresses: Vec::new(),
            gateways: Vec::new(),
            host_ports: host_ports.to_vec(),
            detaching: false,
        };
        let granted = take_addresses(&mut self.pools, &mut lease, ipv6)
            .and_then(|()| check_host_ports(&lease))
            .and_then(|()| self.taken.claim(pod_id, &lease.claims()));
        if let Err(failure) = granted {
            self.release_addresses(&lease);
            return Err(failure);
        }
        self.leases.insert(pod_id.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Notes that a pod is going: its host ports count no more among those to forward. They stay
    /// taken until [`State::release_ports`]. `None` if it holds nothing.
    pub(super) fn begin_detach(&mut self, pod_id: &str) -> Option<Lease> {
        let lease = self.leases.get_mut(pod_id)?;
        lease.detaching = true;
        Some(lease.clone())
    }

    /// Lets others have a pod's host ports.
    pub(super) fn release_ports(&mut self, lease: &Lease) {
        self.taken.release(&lease.pod_id, &lease.claims());
    }

    /// Takes back all that a pod holds.
    pub(super) fn revoke(&mut self, pod_id: &str) {
        if let Some(lease) = self.leases.remove(pod_id) {
            self.release_ports(&lease);
            self.release_addresses(&lease);
        }
    }

    fn release_addresses(&mut self, lease: &Lease) {
        for address in &lease.addresses {
            for pool in &mut self.pools {
                pool.release(address.address());
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::hostport::Protocol;

    fn state(ranges: &[&str]) -> State {
        let ranges: Vec<Cidr> = ranges.iter().map(|text| text.parse().unwrap()).collect();
        let mut state = State::new(Vec::new());
        state.set_ranges(&ranges, &BTreeMap::new());
        state
    }

    fn addresses(lease: &Lease) -> Vec<String> {
        lease.addresses.iter().map(Cidr::to_string).collect()
    }

    fn tcp(port: u16) -> HostPort {
        HostPort {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: port,
            host_ip: None,
        }
    }

    #[test]
    fn a_refused_pod_holds_nothing() {
        let mut state = state(&["10.0.0.0/29"]);
        state.grant("a", &[tcp(80)], true).unwrap();
        for _ in 0..20 {
            assert!(state.grant("b", &[tcp(81), tcp(80)], true).is_err());
            assert!(state.grant("a", &[], true).is_err());
        }
        assert_eq!(state.leases().count(), 1);
        state.grant("c", &[tcp(81)], true).unwrap();
    }

    #[test]
    fn ports_are_free_before_the_address_is() {
        let mut state = state(&["10.0.0.0/30"]);
        let lease = state.grant("a", &[tcp(80)], true).unwrap();
        assert!(state.wants_localnet());
        state.begin_detach("a").unwrap();
        assert!(state.forwards().is_empty() && !state.wants_localnet());
        state.release_ports(&lease);
        assert!(
            state.grant("b", &[tcp(80)], true).is_err(),
            "no address yet"
        );
        state.revoke("a");
        assert_eq!(
            addresses(&state.grant("b", &[tcp(80)], true).unwrap()),
            ["10.0.0.2/30"]
        );
    }

    #[test]
    fn pods_get_an_address_of_each_family_they_can_have() {
        let mut state = state(&["10.0.0.0/24", "fd00::/64"]);
        let both = state.grant("a", &[], true).unwrap();
        assert_eq!(addresses(&both), ["10.0.0.2/24", "fd00::2/64"]);
        let one = state.grant("b", &[], false).unwrap();
        assert_eq!(addresses(&one), ["10.0.0.3/24"]);
        let mut six = self::state(&["fd00::/64"]);
        assert!(six.grant("c", &[], false).is_err());
    }

    #[test]
    fn an_old_range_keeps_its_gateway_while_a_pod_has_an_address_of_it() {
        let mut state = state(&["10.0.0.0/24"]);
        state.grant("a", &[], true).unwrap();
        state.set_ranges(&["10.1.0.0/24".parse().unwrap()], &BTreeMap::new());
        let gateways = |state: &State| -> Vec<String> {
            state.gateways().iter().map(Cidr::to_string).collect()
        };
        assert_eq!(gateways(&state), ["10.1.0.1/24", "10.0.0.1/24"]);
        state.revoke("a");
        assert_eq!(gateways(&state), ["10.1.0.1/24"]);
    }

    #[test]
    fn two_ids_that_begin_alike_do_not_share_a_link() {
        let mut state = state(&["10.0.0.0/24"]);
        let long = "a".repeat(20);
        state.grant(&format!("{long}1"), &[], true).unwrap();
        assert!(state.grant(&format!("{long}2"), &[], true).is_err());
    }
}
