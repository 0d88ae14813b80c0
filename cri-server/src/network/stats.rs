//! Traffic counters of the interfaces in a network namespace (for pod statistics).

use std::os::fd::BorrowedFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::netlink::Route;
use super::netns;
use crate::failure::Failure;

/// What went through one interface since it exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// The interface's name in its namespace.
    pub name: String,
    /// Received.
    pub receive: Counters,
    /// Sent.
    pub transmit: Counters,
}

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// The counters of every interface in the namespace but the loopback, in the kernel's order.
/// Blocks for some tens of microseconds.
///
/// # Errors
/// The namespace cannot be entered or asked.
pub fn interface_stats(namespace: BorrowedFd<'_>) -> Result<Vec<InterfaceStats>, Failure> {
    let route = netns::inside(namespace, Route::open)?;
    let links = route.dump(
        "list interfaces",
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
    )?;
    let mut found = Vec::new();
    for link in links {
        if let RouteNetlinkMessage::NewLink(link) = link {
            let stats = parse(&link);
            if stats.name != "lo" {
                found.push(stats);
            }
        }
    }
    Ok(found)
}

fn parse(link: &LinkMessage) -> InterfaceStats {
    let mut stats = InterfaceStats::default();
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => stats.name.clone_from(name),
            LinkAttribute::Stats64(counters) => {
                stats.receive = Counters {
                    bytes: counters.rx_bytes,
                    packets: counters.rx_packets,
                    errors: counters.rx_errors,
                    dropped: counters.rx_dropped,
                };
                stats.transmit = Counters {
                    bytes: counters.tx_bytes,
                    packets: counters.tx_packets,
                    errors: counters.tx_errors,
                    dropped: counters.tx_dropped,
                };
            }
            _ => {}
        }
    }
    stats
}
