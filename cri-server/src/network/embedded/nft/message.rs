//! nftables' netlink messages: attributes, and the batches that make a change all or nothing. Pure.
//! Sources: `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`. All numbers are big-endian.
//!
//! Ours rather than netlink-packet-netfilter's, which knows neither nat, masq, fib nor ct: one
//! encoder for a whole table reads better than two halves.

use std::net::IpAddr;

use crate::network::netlink::u16_at;

/// The family of a table that sees IPv4 and IPv6 (`NFPROTO_INET`).
const INET: u8 = 1;
/// The nftables part of nfnetlink (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Make what is not there.
pub(super) const CREATE: u16 = 0x400;
/// Put at the end.
pub(super) const APPEND: u16 = 0x800;

const NLA_F_NESTED: u16 = 0x8000;
/// A value within `NFTA_DATA_*` attributes.
const NFTA_DATA_VALUE: u16 = 1;

/// What a message does (`enum nf_tables_msg_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewElements = 12,
    DeleteElements = 14,
}

/// A list of attributes, encoded as it grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Nothing we build comes near 64 KiB: the largest is a message's worth of elements, which
        // `ruleset` bounds.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    #[must_use]
    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    #[must_use]
    pub(super) fn string(self, kind: u16, value: &str) -> Self {
        let mut text = value.as_bytes().to_vec();
        text.push(0);
        self.bytes(kind, &text)
    }

    #[must_use]
    pub(super) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// A value to compare with or to find in a set.
    #[must_use]
    pub(super) fn value(self, kind: u16, value: &[u8]) -> Self {
        self.nest(kind, &Self::new().bytes(NFTA_DATA_VALUE, value))
    }

    #[cfg(test)]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Changes that happen together or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    last: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            sequence: 0,
            last: 0,
        };
        batch.append(BATCH_BEGIN, 0, 0, SUBSYSTEM, &Attributes::new());
        batch
    }

    /// Adds a change.
    pub(super) fn push(&mut self, kind: Kind, flags: u16, attributes: &Attributes) {
        self.append((SUBSYSTEM << 8) | kind as u16, flags, INET, 0, attributes);
    }

    /// The datagram to send and the sequence number of the message whose acknowledgement means that
    /// all of it was done.
    pub(super) fn finish(mut self) -> (Vec<u8>, u32) {
        let acknowledged = self.sequence;
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            flags.copy_from_slice(&(flags_of(flags) | NLM_F_ACK).to_ne_bytes());
        }
        self.append(BATCH_END, 0, 0, SUBSYSTEM, &Attributes::new());
        (self.bytes, acknowledged)
    }

    fn append(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        attributes: &Attributes,
    ) {
        self.sequence += 1;
        self.last = self.bytes.len();
        let length = u32::try_from(16 + 4 + attributes.0.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        // struct nfgenmsg: family, version 0, resource id.
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(&attributes.0);
    }
}

/// One request of another part of netfilter, to be acknowledged.
pub(super) fn request(kind: u16, family: u8, attributes: &Attributes) -> Vec<u8> {
    let mut alone = Batch {
        bytes: Vec::new(),
        sequence: 0,
        last: 0,
    };
    alone.append(kind, NLM_F_ACK, family, 0, attributes);
    alone.bytes
}

/// The table a notification is about: its family, and the name which every kind of message about
/// something in a table has as attribute 1.
pub(super) fn is_about(message: &[u8], table: &str) -> bool {
    let Some((family, mut rest)) = message.get(16).zip(message.get(20..)) else {
        return false;
    };
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else {
            return false;
        };
        if kind == 1 {
            return *family == INET && value.strip_suffix(&[0]) == Some(table.as_bytes());
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn flags_of(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_ne_bytes)
}

/// An address as it stands in a packet.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_but_say_their_own_length() {
        let inner = Attributes::new().string(3, "ab").u32(2, 7);
        let outer = Attributes::new().nest(1, &inner);
        let mut expected = Vec::new();
        expected.extend([20, 0, 1, 0x80]);
        expected.extend([7, 0, 3, 0, b'a', b'b', 0, 0]);
        expected.extend([8, 0, 2, 0, 0, 0, 0, 7]);
        assert_eq!(outer.as_bytes(), expected);
    }

    #[test]
    fn a_notification_is_about_the_table_it_names() {
        let change = |family, attributes: &Attributes| request(0xa00, family, attributes);
        let named = |name: &str| Attributes::new().u32(9, 1).string(1, name);
        for (message, ours) in [
            (change(INET, &named("bulkhead")), true),
            (change(INET, &named("bulkhead2")), false),
            (change(2, &named("bulkhead")), false),
            (change(INET, &Attributes::new().u32(1, 7)), false),
            (change(INET, &Attributes::new()), false),
            (Vec::new(), false),
        ] {
            assert_eq!(is_about(&message, "bulkhead"), ours, "{message:?}");
        }
        let whole = change(INET, &named("bulkhead"));
        for length in 0..whole.len() {
            is_about(&whole[..length], "bulkhead");
        }
    }

    #[test]
    fn a_batch_asks_for_one_acknowledgement_of_its_last_change() {
        let mut batch = Batch::new();
        batch.push(Kind::NewTable, CREATE, &Attributes::new());
        batch.push(Kind::NewRule, CREATE | APPEND, &Attributes::new());
        let (bytes, acknowledged) = batch.finish();
        assert_eq!(acknowledged, 3);
        let heads: Vec<(u16, u16)> = bytes
            .chunks(20)
            .map(|message| {
                let field = |at: usize| u16::from_ne_bytes(message[at..at + 2].try_into().unwrap());
                (field(4), field(6))
            })
            .collect();
        assert_eq!(
            heads,
            [(0x10, 1), (0xa00, 0x401), (0xa06, 0xc05), (0x11, 1)],
            "kind and flags of each message"
        );
    }
}
