//! The expressions rules are made of. Pure.
//! Sources: `include/uapi/linux/netfilter/nf_tables.h`, nft(8); the exact sequences are those that
//! `nft --debug=netlink` prints for the rule named in each caller.

use super::message::{Attributes, octets};
use crate::network::cidr::Cidr;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;

/// A register of 32 bits. The first sixteen bytes also have a name of their own, which is what `nft`
/// uses for them; it is the same memory.
#[derive(Clone, Copy)]
pub(super) struct Register(u32);

impl Register {
    /// Where everything starts (`NFT_REG_1`).
    pub(super) const FIRST: Self = Self(1);

    /// The register `bytes` behind the first (`NFT_REG32_00` is 8).
    pub(super) const fn behind(bytes: u32) -> Self {
        Self(8 + bytes / 4)
    }
}

/// The header of the packet a payload is read from (`enum nft_payload_bases`).
#[derive(Clone, Copy)]
pub(super) enum Header {
    Network = 1,
    Transport = 2,
}

/// A property of the packet outside its bytes (`enum nft_meta_keys`).
#[derive(Clone, Copy)]
pub(super) enum Meta {
    InputInterface = 6,
    OutputInterface = 7,
    NetworkProtocol = 15,
    TransportProtocol = 16,
}

/// How a comparison must come out for the rule to go on (`enum nft_cmp_ops`).
#[derive(Clone, Copy)]
pub(super) enum Compare {
    Equal = 0,
    Differs = 1,
}

/// Which address of a packet.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Source,
    Destination,
}

/// A rule's expressions, in order.
#[derive(Default)]
pub(super) struct Expressions(Attributes);

impl Expressions {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn attributes(&self) -> &Attributes {
        &self.0
    }

    fn push(mut self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::new()
            .string(NFTA_EXPR_NAME, name)
            .nest(NFTA_EXPR_DATA, data);
        self.0 = self.0.nest(NFTA_LIST_ELEM, &expression);
        self
    }

    /// Loads a property of the packet.
    pub(super) fn meta(self, key: Meta, to: Register) -> Self {
        self.push("meta", &Attributes::new().u32(1, to.0).u32(2, key as u32))
    }

    /// Loads bytes of the packet.
    pub(super) fn payload(self, header: Header, offset: u32, length: u32, to: Register) -> Self {
        self.push(
            "payload",
            &Attributes::new()
                .u32(1, to.0)
                .u32(2, header as u32)
                .u32(3, offset)
                .u32(4, length),
        )
    }

    /// Goes on only if the first register compares so.
    pub(super) fn compare(self, how: Compare, with: &[u8]) -> Self {
        self.push(
            "cmp",
            &Attributes::new()
                .u32(1, Register::FIRST.0)
                .u32(2, how as u32)
                .value(3, with),
        )
    }

    /// Keeps only the bits of `mask` in the first register.
    fn mask(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        let first = Register::FIRST.0;
        self.push(
            "bitwise",
            &Attributes::new()
                .u32(1, first)
                .u32(2, first)
                .u32(3, length)
                .value(4, mask)
                .value(5, &vec![0; mask.len()]),
        )
    }

    /// Finds what the key that starts at the first register leads to, or ends the rule.
    pub(super) fn look_up(self, map: &str) -> Self {
        let first = Register::FIRST.0;
        self.push(
            "lookup",
            &Attributes::new().string(1, map).u32(2, first).u32(3, first),
        )
    }

    /// Sends the connection to the address in the first register, the port in `port`.
    pub(super) fn dnat(self, family: u8, port: Register) -> Self {
        const NFT_NAT_DNAT: u32 = 1;
        self.push(
            "nat",
            &Attributes::new()
                .u32(1, NFT_NAT_DNAT)
                .u32(2, u32::from(family))
                .u32(3, Register::FIRST.0)
                .u32(5, port.0),
        )
    }

    /// Gives the connection the node's address. Source ports are random: clashes of two connections
    /// that take the same one at the same time lose packets (kernel 3.14).
    pub(super) fn masquerade(self) -> Self {
        const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
        self.push(
            "masq",
            &Attributes::new().u32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY),
        )
    }

    /// Goes on only if the destination is an address of the node.
    pub(super) fn destination_is_local(self) -> Self {
        const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
        const NFTA_FIB_F_DADDR: u32 = 1 << 1;
        /// `RTN_LOCAL` of rtnetlink.
        const LOCAL: u32 = 2;
        self.push(
            "fib",
            &Attributes::new()
                .u32(1, Register::FIRST.0)
                .u32(2, NFT_FIB_RESULT_ADDRTYPE)
                .u32(3, NFTA_FIB_F_DADDR),
        )
        .compare(Compare::Equal, &LOCAL.to_ne_bytes())
    }

    /// Goes on only if destination NAT was done to the connection.
    pub(super) fn destination_was_changed(self) -> Self {
        const NFT_CT_STATUS: u32 = 2;
        const IPS_DST_NAT: u32 = 1 << 5;
        self.push(
            "ct",
            &Attributes::new()
                .u32(1, Register::FIRST.0)
                .u32(2, NFT_CT_STATUS),
        )
        .mask(&IPS_DST_NAT.to_ne_bytes())
        .compare(Compare::Differs, &0u32.to_ne_bytes())
    }

    /// Goes on only if the interface has this name, or has another.
    pub(super) fn interface(self, which: Meta, how: Compare, name: &str) -> Self {
        // IFNAMSIZ, zero-filled.
        let mut padded = name.as_bytes().to_vec();
        padded.resize(16, 0);
        self.meta(which, Register::FIRST).compare(how, &padded)
    }

    /// Goes on only for packets of the family of `range` with that address in it.
    pub(super) fn address_in(self, side: Side, range: Cidr) -> Self {
        let network = octets(range.network().address());
        let offset = match (range.is_ipv4(), side) {
            (true, Side::Source) => 12,
            (true, Side::Destination) => 16,
            (false, Side::Source) => 8,
            (false, Side::Destination) => 24,
        };
        let rule = self.family(range.is_ipv4());
        // A prefix of whole bytes is compared as those bytes, as nft does.
        let whole = usize::from(range.prefix() / 8);
        if range.prefix().is_multiple_of(8) {
            if whole == 0 {
                return rule;
            }
            let length = u32::from(range.prefix() / 8);
            return rule
                .payload(Header::Network, offset, length, Register::FIRST)
                .compare(Compare::Equal, &network[..whole]);
        }
        let mut mask = vec![0xff; whole];
        mask.push(0xff << (8 - range.prefix() % 8));
        mask.resize(network.len(), 0);
        let length = u32::try_from(network.len()).unwrap_or(0);
        rule.payload(Header::Network, offset, length, Register::FIRST)
            .mask(&mask)
            .compare(Compare::Equal, &network)
    }

    /// Goes on only for packets of this family.
    pub(super) fn family(self, ipv4: bool) -> Self {
        self.meta(Meta::NetworkProtocol, Register::FIRST)
            .compare(Compare::Equal, &[family_number(ipv4)])
    }

    /// Goes through another chain's rules.
    pub(super) fn jump(self, chain: &str) -> Self {
        const NFT_JUMP: i32 = -3;
        self.verdict(
            &Attributes::new()
                .u32(1, NFT_JUMP.cast_unsigned())
                .string(2, chain),
        )
    }

    /// Leaves the chain: what follows does not concern the packet.
    pub(super) fn leave(self) -> Self {
        const NFT_RETURN: i32 = -5;
        self.verdict(&Attributes::new().u32(1, NFT_RETURN.cast_unsigned()))
    }

    /// Drops the packet.
    pub(super) fn drop(self) -> Self {
        const NF_DROP: u32 = 0;
        self.verdict(&Attributes::new().u32(1, NF_DROP))
    }

    fn verdict(self, verdict: &Attributes) -> Self {
        const NFT_REG_VERDICT: u32 = 0;
        const NFTA_DATA_VERDICT: u16 = 2;
        let data = Attributes::new().nest(NFTA_DATA_VERDICT, verdict);
        self.push(
            "immediate",
            &Attributes::new().u32(1, NFT_REG_VERDICT).nest(2, &data),
        )
    }
}

/// A family as netfilter numbers it.
pub(super) fn family_number(ipv4: bool) -> u8 {
    if ipv4 { 2 } else { 10 }
}
