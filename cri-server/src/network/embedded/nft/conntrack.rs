//! Connections the kernel remembers, forgotten where they lead to the wrong place. Pure encoding.
//!
//! A tracked connection keeps its translation, whatever the rules say since. TCP ends with its pod,
//! but a UDP client that goes on sending would reach a dead pod's address for ever, and never a new
//! pod that has the same host port (threat M4). Needs deleting by filter (about kernel 6.11; before,
//! the request names no whole connection and is refused, and the entries go when they time out).
//! Source: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use super::expression::family_number;
use super::message::{Attributes, octets, request};
use crate::network::hostport::Claim;

/// `(NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = (1 << 8) | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

/// Which parts of the tuple count (kernel: `CTA_FILTER_F_…`).
const FILTER_SOURCE: u32 = 1 << 0;
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;

/// Forgets the connections a pod's address answers.
pub(super) fn of_pod(address: IpAddr) -> Vec<u8> {
    const CTA_IP_V4_SRC: u16 = 1;
    const CTA_IP_V6_SRC: u16 = 3;
    let source = if address.is_ipv4() {
        CTA_IP_V4_SRC
    } else {
        CTA_IP_V6_SRC
    };
    let ip = Attributes::new().bytes(source, &octets(address));
    let tuple = Attributes::new().nest(CTA_TUPLE_IP, &ip);
    let filter = flags(CTA_FILTER_REPLY_FLAGS, FILTER_SOURCE);
    let message = Attributes::new()
        .nest(CTA_TUPLE_REPLY, &tuple)
        .nest(CTA_FILTER, &filter);
    request(DELETE, family_number(address.is_ipv4()), &message)
}

/// Forgets the connections to a host port.
pub(super) fn to_port(claim: &Claim) -> Vec<u8> {
    const CTA_PROTO_NUM: u16 = 1;
    const CTA_PROTO_DST_PORT: u16 = 3;
    let protocol = Attributes::new()
        .bytes(CTA_PROTO_NUM, &[claim.protocol.number()])
        .bytes(CTA_PROTO_DST_PORT, &claim.port.to_be_bytes());
    let tuple = Attributes::new().nest(CTA_TUPLE_PROTO, &protocol);
    let filter = flags(
        CTA_FILTER_ORIG_FLAGS,
        FILTER_PROTOCOL | FILTER_DESTINATION_PORT,
    );
    let message = Attributes::new()
        .nest(CTA_TUPLE_ORIG, &tuple)
        .nest(CTA_FILTER, &filter);
    request(DELETE, family_number(claim.address.is_ipv4()), &message)
}

/// Unlike everything else here the flags are in the machine's own byte order.
fn flags(kind: u16, value: u32) -> Attributes {
    Attributes::new().bytes(kind, &value.to_ne_bytes())
}
