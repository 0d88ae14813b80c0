//! Which address of a range a pod gets. Pure: what is remembered across restarts is `lease.rs`'s.
//!
//! Addresses go round: the next one is sought after the last one given, so that an address just
//! freed is the last to be given again and packets still under way to its old pod meet nobody
//! (threat M4).

use std::collections::HashSet;
use std::net::IpAddr;

use crate::network::cidr::Cidr;

/// The offset of the gateway in its range: the first host address.
const GATEWAY: u64 = 1;

/// The largest offset given out in a range that has more (IPv6): all pods that ever could be.
const LARGEST: u64 = u32::MAX as u64;

/// The addresses of one range.
#[derive(Debug)]
pub(super) struct Pool {
    range: Cidr,
    last: u64,
    used: HashSet<u64>,
    /// The offset given most recently.
    cursor: u64,
}

impl Pool {
    /// The pool of `range`, going on after `cursor`.
    pub(super) fn new(range: Cidr, cursor: u64) -> Self {
        let range = range.network();
        let bits = u32::from(range.host_bits()).min(32);
        let mut last = ((1u64 << bits) - 1).min(LARGEST);
        if range.is_ipv4() {
            // The highest address is the broadcast address.
            last -= 1;
        }
        let cursor = if cursor > last {
            GATEWAY
        } else {
            cursor.max(GATEWAY)
        };
        Self {
            range,
            last,
            used: HashSet::new(),
            cursor,
        }
    }

    /// The range.
    pub(super) fn range(&self) -> Cidr {
        self.range
    }

    /// The offset given most recently.
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The bridge's address.
    pub(super) fn gateway(&self) -> Option<Cidr> {
        self.range.nth(GATEWAY)
    }

    /// The next free address, with the range's prefix length; `None` when all are in use.
    pub(super) fn take(&mut self) -> Option<Cidr> {
        let pods = self.last.checked_sub(GATEWAY)?;
        // Of one more than are in use, one is free, unless that is more than there are.
        let tries = u64::try_from(self.used.len())
            .ok()?
            .checked_add(1)?
            .min(pods);
        for _ in 0..tries {
            self.cursor = if self.cursor >= self.last {
                GATEWAY + 1
            } else {
                self.cursor + 1
            };
            if self.used.insert(self.cursor) {
                return self.range.nth(self.cursor);
            }
        }
        None
    }

    /// Notes that a pod has `address` since before a restart; one outside the range is ignored.
    pub(super) fn mark(&mut self, address: IpAddr) {
        if let Some(offset) = self.range.offset_of(address) {
            self.used.insert(offset);
        }
    }

    /// Gives an address back; one outside the range is ignored.
    pub(super) fn release(&mut self, address: IpAddr) {
        if let Some(offset) = self.range.offset_of(address) {
            self.used.remove(&offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(range: &str, cursor: u64) -> Pool {
        Pool::new(range.parse().unwrap(), cursor)
    }

    fn take(pool: &mut Pool) -> String {
        pool.take()
            .map_or_else(|| "none".to_owned(), |cidr| cidr.to_string())
    }

    #[test]
    fn a_freed_address_is_the_last_to_be_given_again() {
        let mut pool = pool("10.0.0.0/29", 0);
        let first = pool.take().unwrap();
        assert_eq!(first.to_string(), "10.0.0.2/29");
        pool.release(first.address());
        for expected in ["10.0.0.3/29", "10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29"] {
            assert_eq!(take(&mut pool), expected);
        }
        assert_eq!(take(&mut pool), "10.0.0.2/29");
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_given_and_exhaustion_is_said() {
        let mut small = pool("10.0.0.0/30", 0);
        assert_eq!(small.gateway().unwrap().to_string(), "10.0.0.1/30");
        assert_eq!(take(&mut small), "10.0.0.2/30");
        assert_eq!(take(&mut small), "none");
        small.release("10.0.0.2".parse().unwrap());
        assert_eq!(take(&mut small), "10.0.0.2/30");

        let mut six = pool("fd00::/126", 0);
        assert_eq!(take(&mut six), "fd00::2/126");
        assert_eq!(take(&mut six), "fd00::3/126");
        assert_eq!(take(&mut six), "none");
    }

    #[test]
    fn a_restart_goes_on_after_the_last_address_and_keeps_what_pods_have() {
        let mut pool = pool("10.0.0.0/24", 9);
        pool.mark("10.0.0.10".parse().unwrap());
        pool.mark("192.0.2.1".parse().unwrap());
        assert_eq!(take(&mut pool), "10.0.0.11/24");
        // A cursor from a larger range starts over.
        assert_eq!(take(&mut self::pool("10.0.0.0/24", 70_000)), "10.0.0.2/24");
        assert_eq!(take(&mut self::pool("10.0.0.0/24", 254)), "10.0.0.2/24");
    }

    #[test]
    fn every_address_of_a_range_is_given_once() {
        let mut pool = pool("10.0.0.0/24", 100);
        let mut seen = HashSet::new();
        while let Some(address) = pool.take() {
            assert!(seen.insert(address), "{address} twice");
        }
        assert_eq!(seen.len(), 253);
    }

    #[test]
    fn a_large_ipv6_range_counts_from_its_start() {
        let mut pool = pool("fd00:1::/64", 70_000);
        assert_eq!(take(&mut pool), "fd00:1::1:1171/64");
    }
}
