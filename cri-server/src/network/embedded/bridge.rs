//! The bridge pods are attached to, its addresses, and the node's forwarding.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::failure::Failure;
use crate::network::cidr::Cidr;
use crate::network::netlink::{Request, Route};
use crate::network::netns::{read_sysctl, write_sysctl};

/// The bridge's own address. Without one of its own a bridge takes the lowest of its ports', which
/// changes as pods come and go, and with it what pods believe the gateway to be.
const HARDWARE_ADDRESS: [u8; 6] = [0x02, 0x62, 0, 0, 0, 1];

/// What IPv6 needs (RFC 8200), and the most a veth takes.
const SMALLEST_MTU: u32 = 1280;
const LARGEST_MTU: u32 = 65_535;

/// A link of the node or of a pod.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) controller: Option<u32>,
    mtu: u32,
    is_bridge: bool,
    is_running: bool,
}

impl Link {
    /// Whether packets pass it.
    pub(super) fn is_running(&self) -> bool {
        self.is_running
    }

    fn parse(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else {
            return None;
        };
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            controller: None,
            mtu: 0,
            is_bridge: false,
            is_running: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::OperState(state) => link.is_running = state == State::Up,
                LinkAttribute::LinkInfo(info) => {
                    link.is_bridge = info.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        Some(link)
    }

    /// Finds a link by name.
    pub(super) fn find(route: &Route, name: &str) -> Result<Option<Self>, Failure> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let found = route.get(
            &format!("look up link {name}"),
            RouteNetlinkMessage::GetLink(message),
        )?;
        Ok(found.and_then(Self::parse))
    }

    /// All links.
    pub(super) fn list(route: &Route) -> Result<Vec<Self>, Failure> {
        let all = route.dump(
            "list links",
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
        )?;
        Ok(all.into_iter().filter_map(Self::parse).collect())
    }
}

/// Makes the bridge exist, be up, and have exactly the addresses `gateways` beside its link-local
/// one. Returns its index.
pub(super) fn ensure(
    route: &Route,
    name: &str,
    mtu: Option<u32>,
    gateways: &[Cidr],
) -> Result<u32, Failure> {
    let link = match Link::find(route, name)? {
        Some(link) if !link.is_bridge => {
            return Err(Failure::precondition(format!(
                "link {name} exists and is no bridge: set network.bridge to another name"
            )));
        }
        Some(link) => link,
        None => {
            route.apply(vec![Request::create(
                format!("make bridge {name}"),
                new(name),
            )])?;
            Link::find(route, name)?
                .ok_or_else(|| Failure::internal(format!("bridge {name} vanished")))?
        }
    };
    if gateways.iter().any(|gateway| !gateway.is_ipv4()) {
        // The bridge is ours: a node whose default is without IPv6 may still have pods with it.
        write_sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        write_sysctl(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    }
    let mut up = LinkMessage::default();
    up.header.index = link.index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    up.attributes.extend(mtu.map(LinkAttribute::Mtu));
    let mut requests = vec![Request::change(
        format!("set bridge {name} up"),
        RouteNetlinkMessage::SetLink(up),
    )];
    let present = addresses(route, link.index)?;
    for stale in present.iter().filter(|present| !gateways.contains(present)) {
        requests.push(
            Request::change(
                format!("remove address {stale} from bridge {name}"),
                RouteNetlinkMessage::DelAddress(address_message(link.index, *stale)),
            )
            .tolerating(libc::EADDRNOTAVAIL),
        );
    }
    for gateway in gateways.iter().filter(|gateway| !present.contains(gateway)) {
        requests.push(Request::replace(
            format!("add address {gateway} to bridge {name}"),
            RouteNetlinkMessage::NewAddress(address_message(link.index, *gateway)),
        ));
    }
    if gateways.iter().any(|gateway| !gateway.is_ipv4()) {
        requests.push(Request::replace(
            format!("let answers to ::1 in from bridge {name}"),
            RouteNetlinkMessage::NewRoute(loopback_answers(link.index)),
        ));
    }
    route.apply(requests)?;
    Ok(link.index)
}

/// A route for answers of pods to connections of the node's own `::1`. For that address the kernel
/// only takes a route of the interface the packet came by (`rt6_need_strict`); this one loses to the
/// loopback's everywhere else. Nothing is exposed: a packet that arrives with `::1` in it is dropped
/// before (`ip6_rcv_core`), so only what connection tracking restored to it gets here.
fn loopback_answers(index: u32) -> RouteMessage {
    /// `RT_TABLE_LOCAL`.
    const LOCAL_TABLE: u8 = 255;
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.destination_prefix_length = 128;
    message.header.table = LOCAL_TABLE;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Local;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet6(Ipv6Addr::LOCALHOST)),
        RouteAttribute::Oif(index),
        RouteAttribute::Priority(2048),
    ];
    message
}

/// Whether host ports can answer on `::1`. With bridge netfilter, packets from pods go through
/// connection tracking before the IPv6 layer drops those with a loopback address, answers included.
pub(super) fn can_answer_ipv6_loopback() -> Result<bool, Failure> {
    Ok(read_sysctl("bridge/bridge-nf-call-ip6tables")?.as_deref() != Some("1"))
}

fn new(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(HARDWARE_ADDRESS.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

/// The addresses of a link beside the link-local ones.
fn addresses(route: &Route, index: u32) -> Result<Vec<Cidr>, Failure> {
    let all = route.dump(
        "list addresses",
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
    )?;
    let mut found = Vec::new();
    for message in all {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && message.header.index == index
            && message.header.scope != AddressScope::Link
        {
            let prefix = message.header.prefix_len;
            found.extend(
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Cidr::new(*address, prefix),
                        _ => None,
                    }),
            );
        }
    }
    Ok(found)
}

/// An address for a link. IPv6 comes without duplicate address detection: the pool gives each
/// address once, and a pod must be reachable when its start returns, not a second later.
pub(super) fn address_message(index: u32, address: Cidr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    match address.address() {
        IpAddr::V4(_) => {
            message.header.family = AddressFamily::Inet;
            message
                .attributes
                .push(AddressAttribute::Local(address.address()));
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
        .attributes
        .push(AddressAttribute::Address(address.address()));
    message
}

/// The MTU of the interfaces the node's default routes go out of, the smallest; `None` without one.
/// What pods send then leaves the node as it is, on a network of jumbo frames or of tunnels alike.
pub(super) fn default_route_mtu(route: &Route) -> Result<Option<u32>, Failure> {
    let mut outward = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let routes = route.dump("list routes", RouteNetlinkMessage::GetRoute(message))?;
        outward.extend(routes.into_iter().filter_map(default_route_interface));
    }
    if outward.is_empty() {
        return Ok(None);
    }
    Ok(Link::list(route)?
        .into_iter()
        .filter(|link| outward.contains(&link.index))
        .map(|link| link.mtu)
        .filter(|mtu| (SMALLEST_MTU..=LARGEST_MTU).contains(mtu))
        .min())
}

fn default_route_interface(message: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    let default = header.destination_prefix_length == 0
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast;
    default.then_some(())?;
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

/// Whether the calling thread's network namespace has IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    fs::exists("/proc/sys/net/ipv6").unwrap_or(false)
}

/// Makes the node forward packets between pods and the world. Written only where it is off: this is
/// the one thing outside our own links and table that is changed, and is not undone, since others
/// may have come to rely on it.
pub(super) fn forward(ipv4: bool, ipv6: bool) -> Result<(), Failure> {
    if ipv4 && read_sysctl("ipv4/ip_forward")?.as_deref() == Some("0") {
        write_sysctl("ipv4/ip_forward", "1")?;
        tracing::info!("switched IPv4 forwarding on (net.ipv4.ip_forward)");
    }
    if ipv6 && read_sysctl("ipv6/conf/all/forwarding")?.as_deref() == Some("0") {
        keep_accepting_advertisements()?;
        write_sysctl("ipv6/conf/all/forwarding", "1")?;
        tracing::info!("switched IPv6 forwarding on (net.ipv6.conf.all.forwarding)");
    }
    Ok(())
}

/// A forwarding interface ignores router advertisements unless told 2, so a node that has its
/// default route from them would lose it (`Documentation/networking/ip-sysctl.rst`, `accept_ra`).
fn keep_accepting_advertisements() -> Result<(), Failure> {
    let Ok(interfaces) = fs::read_dir("/proc/sys/net/ipv6/conf") else {
        return Ok(());
    };
    for interface in interfaces.flatten() {
        let Ok(name) = interface.file_name().into_string() else {
            continue;
        };
        if matches!(name.as_str(), "all" | "default" | "lo") {
            continue;
        }
        let accept = format!("ipv6/conf/{name}/accept_ra");
        let forwarding = format!("ipv6/conf/{name}/forwarding");
        if read_sysctl(&accept)?.as_deref() == Some("1")
            && read_sysctl(&forwarding)?.as_deref() == Some("0")
        {
            write_sysctl(&accept, "2")?;
            tracing::info!(
                interface = name,
                "set accept_ra to 2, so that router advertisements stay accepted while forwarding"
            );
        }
    }
    Ok(())
}

/// Lets answers to connections of the node's loopback address in from the bridge, or no longer.
/// `nft/ruleset.rs` keeps everything else with such an address out.
pub(super) fn set_route_localnet(bridge: &str, on: bool) -> Result<(), Failure> {
    write_sysctl(
        &format!("ipv4/conf/{bridge}/route_localnet"),
        if on { "1" } else { "0" },
    )
}
