//! Host ports: what a pod asks for, and who holds what already. Pure.
//!
//! Two claims collide when a packet could match both, which is the kernel's own rule for sockets
//! and the scheduler's for pods: same protocol and port, and the same address or one of them any.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure};

/// The most host ports one pod may ask for: one atomic batch of rules has to hold them.
pub(crate) const MAX_HOST_PORTS: usize = 1000;

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission control protocol.
    Tcp,
    /// User datagram protocol.
    Udp,
    /// Stream control transmission protocol.
    Sctp,
}

impl Protocol {
    /// The protocol's number in an IP header (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the node that leads to a port of the pod (CRI `PortMapping`, `host_port` > 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The port in the pod.
    pub container_port: u16,
    /// The port on the node.
    pub host_port: u16,
    /// The node's address it is reachable at; `None` is every address of both families.
    pub host_ip: Option<IpAddr>,
}

/// One address family's part of a host port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    /// The unspecified address is any address of its family.
    pub(crate) address: IpAddr,
}

impl Claim {
    /// Whether a connection to the node's loopback address may match.
    pub(crate) fn covers_ipv4_loopback(&self) -> bool {
        self.address.is_ipv4() && (self.address.is_unspecified() || self.address.is_loopback())
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on {}", self.port, self.protocol, self.address)
    }
}

impl HostPort {
    /// What it claims, for a pod that has addresses of these families.
    pub(crate) fn claims(&self, ipv4: bool, ipv6: bool) -> Vec<Claim> {
        let addresses: &[IpAddr] = match self.host_ip {
            // 0.0.0.0 and :: each mean their own family only, as for a socket.
            Some(address) => &[address],
            None => &[
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            ],
        };
        addresses
            .iter()
            .filter(|address| if address.is_ipv4() { ipv4 } else { ipv6 })
            .map(|address| Claim {
                protocol: self.protocol,
                port: self.host_port,
                address: *address,
            })
            .collect()
    }
}

/// Refuses what no rule could carry out.
///
/// # Errors
/// Port zero, too many, or a host address of a family the pod has no address of.
pub(crate) fn validate(ports: &[HostPort], ipv4: bool, ipv6: bool) -> Result<(), Failure> {
    if ports.len() > MAX_HOST_PORTS {
        return Err(Failure::invalid(format!(
            "{} host ports asked for, the most is {MAX_HOST_PORTS}",
            ports.len()
        )));
    }
    for port in ports {
        if port.container_port == 0 || port.host_port == 0 {
            return Err(Failure::invalid(format!(
                "host port {}/{} to container port {}: a port is 1 to 65535",
                port.host_port, port.protocol, port.container_port
            )));
        }
        if port.claims(ipv4, ipv6).is_empty() {
            return Err(Failure::invalid(format!(
                "host port {}/{} on {}: the pod network has no address of that family",
                port.host_port,
                port.protocol,
                port.host_ip.map(|ip| ip.to_string()).unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// Who holds which host port.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    by_port: HashMap<(Protocol, u16), Vec<(IpAddr, String)>>,
}

impl Taken {
    /// Claims all of `claims` for `pod`, or none of them.
    ///
    /// # Errors
    /// Names the port and its holder.
    pub(crate) fn claim(&mut self, pod: &str, claims: &[Claim]) -> Result<(), Failure> {
        for (index, claim) in claims.iter().enumerate() {
            if let Some(holder) = self.holder(claim) {
                let failure = if holder == pod {
                    Failure::invalid(format!("host port {claim} is asked for twice"))
                } else {
                    Failure::new(
                        Class::Precondition,
                        format!("host port {claim} is already in use by pod {holder}"),
                    )
                };
                self.release(pod, &claims[..index]);
                return Err(failure);
            }
            self.by_port
                .entry((claim.protocol, claim.port))
                .or_default()
                .push((claim.address, pod.to_owned()));
        }
        Ok(())
    }

    /// Gives `pod`'s claims back; those it does not hold are left alone.
    pub(crate) fn release(&mut self, pod: &str, claims: &[Claim]) {
        for claim in claims {
            let key = (claim.protocol, claim.port);
            if let Some(holders) = self.by_port.get_mut(&key) {
                holders.retain(|(address, holder)| {
                    *address != claim.address || holder.as_str() != pod
                });
                if holders.is_empty() {
                    self.by_port.remove(&key);
                }
            }
        }
    }

    fn holder(&self, claim: &Claim) -> Option<&str> {
        self.by_port
            .get(&(claim.protocol, claim.port))?
            .iter()
            .find(|(address, _)| {
                address.is_ipv4() == claim.address.is_ipv4()
                    && (address == &claim.address
                        || address.is_unspecified()
                        || claim.address.is_unspecified())
            })
            .map(|(_, holder)| holder.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: &str, protocol: Protocol, host_port: u16) -> HostPort {
        HostPort {
            protocol,
            container_port: 80,
            host_port,
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        }
    }

    #[test]
    fn claims_collide_when_a_packet_could_match_both() {
        use Protocol::{Tcp, Udp};
        // (held, asked, collide)
        let table = [
            (port("", Tcp, 80), port("", Tcp, 80), true),
            (port("", Tcp, 80), port("", Udp, 80), false),
            (port("", Tcp, 80), port("", Tcp, 81), false),
            (port("", Tcp, 80), port("127.0.0.1", Tcp, 80), true),
            (port("127.0.0.1", Tcp, 80), port("", Tcp, 80), true),
            (
                port("127.0.0.1", Tcp, 80),
                port("192.0.2.1", Tcp, 80),
                false,
            ),
            (port("0.0.0.0", Tcp, 80), port("::", Tcp, 80), false),
            (port("::1", Tcp, 80), port("::", Tcp, 80), true),
            (port("0.0.0.0", Tcp, 80), port("::1", Tcp, 80), false),
        ];
        for (held, asked, collide) in table {
            let mut taken = Taken::default();
            taken.claim("a", &held.claims(true, true)).unwrap();
            let outcome = taken.claim("b", &asked.claims(true, true));
            assert_eq!(outcome.is_err(), collide, "{held:?} then {asked:?}");
        }
    }

    #[test]
    fn a_refused_claim_names_the_holder_and_leaves_nothing_behind() {
        let mut taken = Taken::default();
        taken
            .claim("a", &port("", Protocol::Tcp, 80).claims(true, false))
            .unwrap();
        let mut wanted = port("", Protocol::Tcp, 81).claims(true, false);
        wanted.extend(port("", Protocol::Tcp, 80).claims(true, false));
        let failure = taken.claim("b", &wanted).unwrap_err();
        assert_eq!(
            failure.message(),
            "host port 80/tcp on 0.0.0.0 is already in use by pod a"
        );
        taken
            .claim("c", &port("", Protocol::Tcp, 81).claims(true, false))
            .unwrap();
    }

    #[test]
    fn release_frees_only_what_the_pod_holds() {
        let claims = port("", Protocol::Tcp, 80).claims(true, true);
        let mut taken = Taken::default();
        taken.claim("a", &claims).unwrap();
        taken.release("b", &claims);
        assert!(taken.claim("b", &claims).is_err());
        taken.release("a", &claims);
        taken.claim("b", &claims).unwrap();
    }

    #[test]
    fn ports_nothing_can_serve_are_refused() {
        assert!(validate(&[port("::1", Protocol::Tcp, 80)], true, false).is_err());
        assert!(validate(&[port("", Protocol::Tcp, 0)], true, true).is_err());
        assert!(validate(&vec![port("", Protocol::Tcp, 1); 1001], true, true).is_err());
        assert!(validate(&[port("", Protocol::Sctp, 80)], true, false).is_ok());
    }
}
