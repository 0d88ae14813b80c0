//! A pod's pair of interfaces: `eth0` in its namespace, the other end at the bridge.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::bridge::{Link, address_message, has_ipv6};
use crate::failure::Failure;
use crate::network::cidr::Cidr;
use crate::network::netlink::{Request, Route};
use crate::network::netns;

/// The pod's interface (the name CRI and CNI users expect).
pub(super) const INTERFACE: &str = "eth0";

/// What the names of our ends at the bridge begin with.
const PREFIX: &str = "bh";

/// The loopback interface is the first of every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// How long a new port may take to pass packets: a work item of the kernel's, usually under 1 ms.
const DEADLINE: Duration = Duration::from_millis(200);

/// How long to leave the kernel to it before looking again.
const PAUSE: Duration = Duration::from_micros(50);

/// The name of a pod's end at the bridge: as much of the id as fits IFNAMSIZ.
pub(super) fn host_name(pod_id: &str) -> String {
    let id: String = pod_id.chars().take(13).collect();
    format!("{PREFIX}{id}")
}

/// Whether a link is a pod's end at the bridge, by name and place.
pub(super) fn is_ours(link: &Link, bridge: u32) -> bool {
    link.controller == Some(bridge) && link.name.starts_with(PREFIX)
}

/// The hardware address that belongs to a pod's address: an address given again answers to the same
/// one, so no neighbour cache is ever wrong.
pub(super) fn hardware_address(primary: IpAddr) -> [u8; 6] {
    let low = match primary {
        IpAddr::V4(v4) => v4.to_bits(),
        // The low half of a pool's addresses is what tells them apart.
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            u32::from_be_bytes([a, b, c, d])
        }
    };
    let [a, b, c, d] = low.to_be_bytes();
    [0x02, 0x62, a, b, c, d]
}

/// The inside of a pod's namespace.
pub(super) struct Inside {
    route: Route,
    /// Whether the pod can have IPv6 addresses.
    pub(super) ipv6: bool,
}

impl Inside {
    /// Opens a socket in the namespace and sets what new interfaces start with: router
    /// advertisements are not believed, so that no pod can make itself another's gateway (threat
    /// M2, CVE-2020-13401), and addresses work at once, undetected.
    pub(super) fn enter(namespace: BorrowedFd<'_>) -> Result<Self, Failure> {
        netns::inside(namespace, || {
            let mut ipv6 = has_ipv6();
            for scope in ["all", "default"] {
                let disabled = format!("ipv6/conf/{scope}/disable_ipv6");
                ipv6 &= netns::read_sysctl(&disabled)?.as_deref() == Some("0");
            }
            if ipv6 {
                netns::write_sysctl("ipv6/conf/default/accept_ra", "0")?;
                netns::write_sysctl("ipv6/conf/default/accept_dad", "0")?;
            }
            Ok(Self {
                route: Route::open()?,
                ipv6,
            })
        })
    }

    /// Sets the loopback up, which gives it its addresses.
    pub(super) fn loopback_up(&self) -> Result<(), Failure> {
        self.route.apply(vec![loopback_up()])
    }

    /// Gives `eth0` its addresses and makes the gateways the default routes.
    pub(super) fn configure(&self, addresses: &[Cidr], gateways: &[Cidr]) -> Result<(), Failure> {
        let link = Link::find(&self.route, INTERFACE)?
            .ok_or_else(|| Failure::internal("the pod's eth0 vanished"))?;
        let mut requests = vec![loopback_up(), up(link.index)];
        for address in addresses {
            requests.push(Request::create(
                format!("add address {address} to the pod's {INTERFACE}"),
                RouteNetlinkMessage::NewAddress(address_message(link.index, *address)),
            ));
        }
        for gateway in gateways {
            requests.push(Request::create(
                format!("add the pod's default route by {}", gateway.address()),
                RouteNetlinkMessage::NewRoute(default_route(link.index, gateway.address())),
            ));
        }
        self.route.apply(requests)
    }
}

fn loopback_up() -> Request {
    up(LOOPBACK)
}

fn up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    let name = if index == LOOPBACK {
        "loopback"
    } else {
        INTERFACE
    };
    Request::change(
        format!("set the pod's {name} up"),
        RouteNetlinkMessage::SetLink(message),
    )
}

fn default_route(index: u32, gateway: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, gateway) = match gateway {
        IpAddr::V4(v4) => (AddressFamily::Inet, RouteAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, RouteAddress::Inet6(v6)),
    };
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(index)];
    message
}

/// Makes the pair, the pod's end straight in its namespace, the other up and at the bridge. The pod's
/// end can't be made up: it is made first, and refuses without the other (`veth_open`: ENOTCONN).
pub(super) fn create(
    route: &Route,
    host_name: &str,
    bridge: u32,
    mtu: Option<u32>,
    hardware_address: [u8; 6],
    namespace: BorrowedFd<'_>,
) -> Result<(), Failure> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(INTERFACE.to_owned()),
        LinkAttribute::Address(hardware_address.to_vec()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    peer.attributes.extend(mtu.map(LinkAttribute::Mtu));
    let mut pair = LinkMessage::default();
    pair.header.flags = LinkFlags::Up;
    pair.header.change_mask = LinkFlags::Up;
    pair.attributes = vec![
        LinkAttribute::IfName(host_name.to_owned()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    pair.attributes.extend(mtu.map(LinkAttribute::Mtu));
    route.apply(vec![Request::create(
        format!("make link {host_name} and the pod's {INTERFACE}"),
        RouteNetlinkMessage::NewLink(pair),
    )])
}

/// Sets the pod's end at the bridge up as a port.
pub(super) fn set_up_port(route: &Route, host_name: &str) -> Result<(), Failure> {
    route.apply(vec![Request::change(
        format!("set up link {host_name} as a port of the bridge"),
        RouteNetlinkMessage::NewLink(port(host_name)),
    )])
}

/// A port that sends back where a packet came from: with bridge netfilter on, that is the way from a
/// pod to its own host port.
fn port(host_name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(host_name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(
                true,
            )])),
        ]),
    ];
    message
}

/// Waits until packets pass these links: a port forwards once the kernel's link watch has seen that
/// its two ends are up, and only then does the first port bring the bridge up. Past the deadline it
/// is left to the kernel: the pod is not wrong, only slow to answer.
pub(super) fn wait_until_running(route: &Route, names: [&str; 2]) -> Result<(), Failure> {
    let start = Instant::now();
    for name in names {
        while Link::find(route, name)?.is_some_and(|link| !link.is_running()) {
            if start.elapsed() > DEADLINE {
                tracing::warn!(link = name, "a pod's link is not running yet");
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Deletes a pair by the name of its end at the bridge; none is fine. Takes the kernel some tens of
/// milliseconds, as it waits for all who may still see the links.
pub(super) fn delete(route: &Route, host_name: &str) -> Result<(), Failure> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(host_name.to_owned()));
    route.apply(vec![
        Request::change(
            format!("delete link {host_name}"),
            RouteNetlinkMessage::DelLink(message),
        )
        .tolerating(libc::ENODEV),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_fits_and_begins_with_the_pods_id() {
        let name = host_name(&"0123456789abcdef".repeat(4));
        assert_eq!(name, "bh0123456789abc");
        assert_eq!(name.len(), 15);
        assert_eq!(host_name("p1"), "bhp1");
    }

    #[test]
    fn a_hardware_address_follows_the_address_and_is_never_a_group_or_the_bridges() {
        assert_eq!(
            hardware_address("10.88.0.2".parse().unwrap()),
            [0x02, 0x62, 10, 88, 0, 2]
        );
        assert_eq!(
            hardware_address("fd00::2".parse().unwrap()),
            [0x02, 0x62, 0, 0, 0, 2]
        );
    }
}
