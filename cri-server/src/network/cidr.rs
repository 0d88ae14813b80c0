//! Addresses with a prefix length, as CRI's `pod_cidr` and interface addresses are written. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// An address and the length of its network prefix: `10.88.0.2/16`, `fd00::2/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// `None` when the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then_some(Self { address, prefix })
    }

    /// The address as written, host bits and all.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether this is IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// How many bits are left for hosts.
    pub fn host_bits(&self) -> u8 {
        (if self.is_ipv4() { 32 } else { 128 }) - self.prefix
    }

    /// The network: the same prefix with the host bits zero.
    #[must_use]
    pub fn network(&self) -> Self {
        let host_bits = u32::from(self.host_bits());
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Self {
            address,
            prefix: self.prefix,
        }
    }

    /// Whether `address` lies in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4()
            && Self {
                address,
                prefix: self.prefix,
            }
            .network()
                == self.network()
    }

    /// The `offset`-th address of the network, with its prefix; `None` past its end.
    pub fn nth(&self, offset: u64) -> Option<Self> {
        let host_bits = u32::from(self.host_bits());
        if host_bits < 64 && offset >> host_bits != 0 {
            return None;
        }
        let address = match self.network().address {
            IpAddr::V4(v4) => {
                let offset = u32::try_from(offset).ok()?;
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | offset))
            }
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | u128::from(offset))),
        };
        Some(Self {
            address,
            prefix: self.prefix,
        })
    }

    /// Which address of the network `address` is; `None` when it lies outside, or too far in.
    pub fn offset_of(&self, address: IpAddr) -> Option<u64> {
        if !self.contains(address) {
            return None;
        }
        match (address, self.network().address) {
            (IpAddr::V4(a), IpAddr::V4(base)) => Some(u64::from(a.to_bits() - base.to_bits())),
            (IpAddr::V6(a), IpAddr::V6(base)) => u64::try_from(a.to_bits() - base.to_bits()).ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = Failure;

    fn try_from(text: String) -> Result<Self, Failure> {
        text.parse()
    }
}

impl FromStr for Cidr {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bad = || Failure::invalid(format!("\"{text}\" is not an address and prefix length"));
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        // u8's own parser would take "+8".
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let address = address.parse().map_err(|_| bad())?;
        let prefix = prefix.parse().map_err(|_| bad())?;
        Self::new(address, prefix).ok_or_else(bad)
    }
}

/// Parses CRI's `pod_cidr`: one network, or one of each family with a comma between them.
///
/// # Errors
/// Names the part that cannot be a pod network: malformed, too small, two of one family.
pub fn parse_pod_cidr(text: &str) -> Result<Vec<Cidr>, Failure> {
    let mut ranges: Vec<Cidr> = Vec::new();
    // The text comes over the API: three parts are already one too many to look at.
    for part in text.splitn(3, ',') {
        let range = part
            .trim()
            .parse::<Cidr>()
            .map_err(|failure| failure.context("pod CIDR"))?
            .network();
        if range.host_bits() < 2 {
            return Err(Failure::invalid(format!(
                "pod CIDR {range} is too small: a network, a gateway and one pod need two host bits"
            )));
        }
        let address = range.address();
        if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
            return Err(Failure::invalid(format!(
                "pod CIDR {range} cannot hold pods"
            )));
        }
        if ranges
            .iter()
            .any(|other| other.is_ipv4() == range.is_ipv4())
        {
            return Err(Failure::invalid(format!(
                "pod CIDR \"{text}\" has two networks of one family"
            )));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_keeps_its_prefix_and_loses_its_host_bits() {
        for (given, network) in [
            ("10.88.3.4/16", "10.88.0.0/16"),
            ("10.88.3.4/32", "10.88.3.4/32"),
            ("10.88.3.4/0", "0.0.0.0/0"),
            ("10.213.0.77/26", "10.213.0.64/26"),
            ("fd00:1::5/64", "fd00:1::/64"),
            ("fd00:1::5/0", "::/0"),
        ] {
            assert_eq!(cidr(given).network(), cidr(network), "{given}");
        }
    }

    #[test]
    fn offsets_and_addresses_are_inverse_within_the_network_only() {
        let v4 = cidr("10.88.0.0/24");
        assert_eq!(v4.nth(5), Some(cidr("10.88.0.5/24")));
        assert_eq!(v4.nth(256), None);
        assert_eq!(v4.offset_of("10.88.0.255".parse().unwrap()), Some(255));
        assert_eq!(v4.offset_of("10.88.1.0".parse().unwrap()), None);
        assert_eq!(v4.offset_of("::1".parse().unwrap()), None);
        let v6 = cidr("fd00::/64");
        assert_eq!(v6.nth(1 << 20), Some(cidr("fd00::10:0/64")));
        assert_eq!(v6.offset_of("fd00::10:0".parse().unwrap()), Some(1 << 20));
    }

    #[test]
    fn pod_cidr_takes_one_network_or_one_of_each_family() {
        assert_eq!(
            parse_pod_cidr("10.213.0.9/24").unwrap(),
            [cidr("10.213.0.0/24")]
        );
        assert_eq!(
            parse_pod_cidr("10.213.0.0/24, fd00:5::/64").unwrap(),
            [cidr("10.213.0.0/24"), cidr("fd00:5::/64")]
        );
        for bad in [
            "",
            ",",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/31",
            "fd00::/127",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "10.0.0.0/24,10.1.0.0/24",
            "10.0.0.0/24,fd00::/64,10.1.0.0/24",
            "10.0.0.0/24;drop",
        ] {
            assert!(parse_pod_cidr(bad).is_err(), "{bad:?} was taken");
        }
    }
}
