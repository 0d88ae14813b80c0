//! Our table: what is in it, and the batches that make and change it. Pure.
//!
//! ```text
//! table inet bulkhead {
//!     map ports4     { type inet_proto . inet_service : ipv4_addr . inet_service; }
//!     map ports6     { … ipv6_addr … }
//!     map addresses4 { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }
//!     map addresses6 { … ipv6_addr … }
//!     chain hostports { dnat ip to meta l4proto . ip daddr . th dport map @addresses4; … }
//!     chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump hostports }
//!     chain output { type nat hook output priority dstnat; fib daddr type local jump hostports }
//!     chain postrouting { type nat hook postrouting priority srcnat; … masquerade fully-random }
//!     chain guard { type filter hook prerouting priority raw; iifname BRIDGE ip daddr 127.0.0.0/8 drop; … }
//! }
//! ```
//! A host port is one element of a map: adding and removing a pod touches its own elements only,
//! each commented with the pod's id, and the cost of a packet does not grow with the ports. Names,
//! addresses and ports are bytes in attributes; there is no rule text to smuggle anything into
//! (threat I5). Needs NAT in the inet family: kernel 5.2.

use std::net::{IpAddr, SocketAddr};

use super::expression::{Compare, Expressions, Header, Meta, Register, Side, family_number};
use super::message::{APPEND, Attributes, Batch, CREATE, Kind, octets};
use crate::network::cidr::Cidr;
use crate::network::hostport::Claim;

/// The name of our table.
pub(super) const TABLE: &str = "bulkhead";

const HOST_PORTS: &str = "hostports";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";
const GUARD: &str = "guard";

/// Elements a message carries at most: at some hundred bytes each, well below the 64 KiB that an
/// attribute can be long.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// A host port of a pod: packets matching `claim` go to `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) claim: Claim,
    pub(crate) to: SocketAddr,
    pub(crate) pod_id: String,
}

/// What the rules depend on besides host ports.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The bridge's name.
    pub(crate) bridge: String,
    /// The networks pods have addresses of.
    pub(crate) ranges: Vec<Cidr>,
    /// Destinations pods are seen at with their own address.
    pub(crate) unmasqueraded: Vec<Cidr>,
}

/// One of the four maps.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Map {
    ipv4: bool,
    /// Whether the node's address is part of the key.
    by_address: bool,
}

impl Map {
    /// The order is that of the rules: an address of its own before any address.
    const ALL: [Self; 4] = [
        Self {
            ipv4: true,
            by_address: true,
        },
        Self {
            ipv4: true,
            by_address: false,
        },
        Self {
            ipv4: false,
            by_address: true,
        },
        Self {
            ipv4: false,
            by_address: false,
        },
    ];

    fn of(claim: &Claim) -> Self {
        Self {
            ipv4: claim.address.is_ipv4(),
            by_address: !claim.address.is_unspecified(),
        }
    }

    fn name(self) -> &'static str {
        match (self.by_address, self.ipv4) {
            (true, true) => "addresses4",
            (true, false) => "addresses6",
            (false, true) => "ports4",
            (false, false) => "ports6",
        }
    }

    fn address_length(self) -> u32 {
        if self.ipv4 { 4 } else { 16 }
    }

    /// How nft names the types, six bits each (nft's `datatype.h`); the kernel only keeps it.
    fn key_type(self) -> u32 {
        if self.by_address {
            (INET_PROTO << 12) | (self.address_type() << 6) | INET_SERVICE
        } else {
            (INET_PROTO << 6) | INET_SERVICE
        }
    }

    fn address_type(self) -> u32 {
        const IPV4_ADDR: u32 = 7;
        const IPV6_ADDR: u32 = 8;
        if self.ipv4 { IPV4_ADDR } else { IPV6_ADDR }
    }

    fn key_length(self) -> u32 {
        8 + if self.by_address {
            self.address_length()
        } else {
            0
        }
    }

    /// The key as the rule builds it in registers: each part fills whole registers.
    fn key(self, claim: &Claim) -> Vec<u8> {
        let mut key = vec![claim.protocol.number(), 0, 0, 0];
        if self.by_address {
            key.extend(octets(claim.address));
        }
        key.extend(claim.port.to_be_bytes());
        key.extend([0, 0]);
        key
    }
}

const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;

/// The whole table anew, in place of whatever is there, in one step: connections and ports of
/// running pods see no gap.
pub(super) fn replace(layout: &Layout, forwards: &[Forward]) -> Batch {
    let mut batch = Batch::new();
    let table = Attributes::new().string(1, TABLE);
    // Deleting one that is not there would fail the batch.
    batch.push(Kind::NewTable, CREATE, &table);
    batch.push(Kind::DeleteTable, 0, &table);
    batch.push(Kind::NewTable, CREATE, &table);
    for (id, map) in (1..).zip(Map::ALL) {
        batch.push(Kind::NewSet, CREATE, &new_map(map, id));
    }
    chains(&mut batch);
    for map in Map::ALL {
        rule(&mut batch, HOST_PORTS, &forward_rule(map));
    }
    for chain in [PREROUTING, OUTPUT] {
        rule(
            &mut batch,
            chain,
            &Expressions::new().destination_is_local().jump(HOST_PORTS),
        );
    }
    postrouting(&mut batch, layout);
    guard(&mut batch, layout);
    elements(&mut batch, Kind::NewElements, CREATE, forwards);
    batch
}

/// Adds host ports.
pub(super) fn add(forwards: &[Forward]) -> Batch {
    let mut batch = Batch::new();
    elements(&mut batch, Kind::NewElements, CREATE, forwards);
    batch
}

/// Removes host ports, all of which must be there.
pub(super) fn delete(forwards: &[Forward]) -> Batch {
    let mut batch = Batch::new();
    elements(&mut batch, Kind::DeleteElements, 0, forwards);
    batch
}

fn new_map(map: Map, id: u32) -> Attributes {
    const NFT_SET_MAP: u32 = 1 << 3;
    Attributes::new()
        .string(1, TABLE)
        .string(2, map.name())
        .u32(3, NFT_SET_MAP)
        .u32(4, map.key_type())
        .u32(5, map.key_length())
        .u32(6, (map.address_type() << 6) | INET_SERVICE)
        .u32(7, map.address_length() + 4)
        .u32(10, id)
}

fn chains(batch: &mut Batch) {
    // NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING; NF_IP_PRI_NAT_DST, …_SRC, …_RAW.
    let base: [(&str, &str, u32, i32); 4] = [
        (PREROUTING, "nat", 0, -100),
        (OUTPUT, "nat", 3, -100),
        (POSTROUTING, "nat", 4, 100),
        (GUARD, "filter", 0, -300),
    ];
    batch.push(
        Kind::NewChain,
        CREATE,
        &Attributes::new().string(1, TABLE).string(3, HOST_PORTS),
    );
    for (name, kind, hook, priority) in base {
        const NF_ACCEPT: u32 = 1;
        let hook = Attributes::new()
            .u32(1, hook)
            .u32(2, priority.cast_unsigned());
        batch.push(
            Kind::NewChain,
            CREATE,
            &Attributes::new()
                .string(1, TABLE)
                .string(3, name)
                .nest(4, &hook)
                .u32(5, NF_ACCEPT)
                .string(7, kind),
        );
    }
}

fn rule(batch: &mut Batch, chain: &str, expressions: &Expressions) {
    let rule = Attributes::new()
        .string(1, TABLE)
        .string(2, chain)
        .nest(4, expressions.attributes());
    batch.push(Kind::NewRule, CREATE | APPEND, &rule);
}

/// `dnat ip to meta l4proto . ip daddr . th dport map @addresses4`, or without the address.
fn forward_rule(map: Map) -> Expressions {
    const DESTINATION_PORT: u32 = 2;
    let destination = if map.ipv4 { 16 } else { 24 };
    let rule = Expressions::new()
        .family(map.ipv4)
        .meta(Meta::TransportProtocol, Register::FIRST);
    let (rule, port) = if map.by_address {
        let length = map.address_length();
        let at = Register::behind(4);
        (
            rule.payload(Header::Network, destination, length, at),
            Register::behind(4 + length),
        )
    } else {
        (rule, Register::behind(4))
    };
    rule.payload(Header::Transport, DESTINATION_PORT, 2, port)
        .look_up(map.name())
        .dnat(
            family_number(map.ipv4),
            Register::behind(map.address_length()),
        )
}

fn postrouting(batch: &mut Batch, layout: &Layout) {
    let to_pods =
        || Expressions::new().interface(Meta::OutputInterface, Compare::Equal, &layout.bridge);
    // A pod that reaches a pod through a port of the node (or a service address) would get its
    // answer over the bridge from an address it never asked; so the answer has to come back here.
    // The node's loopback address means nothing in a pod, so it is hidden too.
    for range in layout.ranges.iter().copied().chain(loopbacks()) {
        rule(
            batch,
            POSTROUTING,
            &to_pods()
                .address_in(Side::Source, range)
                .destination_was_changed()
                .masquerade(),
        );
    }
    for range in &layout.unmasqueraded {
        rule(
            batch,
            POSTROUTING,
            &Expressions::new()
                .address_in(Side::Destination, *range)
                .leave(),
        );
    }
    for range in &layout.ranges {
        rule(
            batch,
            POSTROUTING,
            &Expressions::new()
                .address_in(Side::Source, *range)
                .interface(Meta::OutputInterface, Compare::Differs, &layout.bridge)
                .masquerade(),
        );
    }
}

/// Answers from pods to connections of the node's loopback address are let in by `route_localnet`
/// on the bridge. Anything else that comes from a pod with such an address is an attempt at the
/// node's own listeners (threat M3, CVE-2020-8558); before connection tracking the answers still
/// carry the bridge's address. IPv6 has no such switch, and the kernel drops these itself.
fn guard(batch: &mut Batch, layout: &Layout) {
    let Some(loopback) = loopbacks().find(Cidr::is_ipv4) else {
        return;
    };
    for side in [Side::Destination, Side::Source] {
        rule(
            batch,
            GUARD,
            &Expressions::new()
                .interface(Meta::InputInterface, Compare::Equal, &layout.bridge)
                .address_in(side, loopback)
                .drop(),
        );
    }
}

fn loopbacks() -> impl Iterator<Item = Cidr> {
    [
        Cidr::new(IpAddr::from([127, 0, 0, 0]), 8),
        Cidr::new(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), 128),
    ]
    .into_iter()
    .flatten()
}

fn elements(batch: &mut Batch, kind: Kind, flags: u16, forwards: &[Forward]) {
    for map in Map::ALL {
        let of_map: Vec<&Forward> = forwards
            .iter()
            .filter(|forward| Map::of(&forward.claim) == map)
            .collect();
        for chunk in of_map.chunks(ELEMENTS_PER_MESSAGE) {
            let mut list = Attributes::new();
            for forward in chunk {
                list = list.nest(1, &element(map, forward, kind == Kind::NewElements));
            }
            let message = Attributes::new()
                .string(1, TABLE)
                .string(2, map.name())
                .nest(3, &list);
            batch.push(kind, flags, &message);
        }
    }
}

fn element(map: Map, forward: &Forward, with_data: bool) -> Attributes {
    let key = Attributes::new().value(1, &map.key(&forward.claim));
    if !with_data {
        return key;
    }
    let mut target = octets(forward.to.ip());
    target.extend(forward.to.port().to_be_bytes());
    target.extend([0, 0]);
    key.value(2, &target).bytes(6, &comment(&forward.pod_id))
}

/// A comment as nft keeps it in user data: type 0, length, text, NUL. The first twelve characters of
/// an id are how people name a pod.
fn comment(pod_id: &str) -> Vec<u8> {
    let text = pod_id.as_bytes();
    let text = &text[..text.len().min(12)];
    let mut comment = vec![0, u8::try_from(text.len() + 1).unwrap_or(0)];
    comment.extend(text);
    comment.push(0);
    comment
}
