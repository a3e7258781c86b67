//! The compiled ruleset: what user space writes into `RULES`, one generation beside the other.

/// Zone number of the firewall node itself.
pub const ZONE_NODE: u8 = 0;
/// Matches every zone in [`Rule::from`] and [`Rule::to`].
pub const ZONE_ANY: u8 = 0xff;

/// Rules of one generation at most. `RULES` holds two generations of this length.
pub const MAX_RULES: usize = 256;

/// What a rule does.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Silently drop; the default for what no rule matches.
    Drop = 0,
    /// Admit the flow.
    Accept = 1,
    /// Drop, and answer: TCP with a reset, anything else with an ICMP error.
    Reject = 2,
}

/// An element of `RULES`. A config rule with several sources, destinations or services becomes
/// several of these. The first that matches decides.
///
/// Addresses are as in a flow key; an IPv4 prefix of length n is a mapped prefix of length 96 + n.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Source network, network byte order as words; host bits are zero.
    pub src: [u32; 4],
    /// Mask of the source.
    pub src_mask: [u32; 4],
    /// Destination network.
    pub dst: [u32; 4],
    /// Mask of the destination.
    pub dst_mask: [u32; 4],
    /// Lowest destination port, host byte order.
    pub port_min: u16,
    /// Highest destination port, host byte order.
    pub port_max: u16,
    /// IP protocol; 0 is any.
    pub proto: u8,
    /// Zone the flow comes from, or [`ZONE_ANY`].
    pub from: u8,
    /// Zone the flow goes to, [`ZONE_NODE`] for the node itself, or [`ZONE_ANY`].
    pub to: u8,
    /// An [`Action`].
    pub action: u8,
    /// Hash of the rule's name, [`name_hash`].
    pub name_hash: u32,
    /// Its counter: index into `RULE_HITS`. Rules of one name have one, in the next generation too.
    pub index: u32,
    /// TCP: as [`crate::flow::Flow::mss`].
    pub mss: u16,
    /// Bits: [`Rule::SYN_PROXY`].
    pub flags: u16,
}

impl Rule {
    /// Flag: TCP connections are opened by way of the SYN proxy.
    pub const SYN_PROXY: u16 = 1;
}

/// A new flow, as rules see it.
pub struct Query {
    /// Source address, as in a flow key.
    pub src: [u32; 4],
    /// Destination address, as in a flow key.
    pub dst: [u32; 4],
    /// Destination port, host byte order; 0 for protocols without ports.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Zone it comes from.
    pub from: u8,
    /// Zone it goes to.
    pub to: u8,
}

impl Rule {
    /// Whether it matches a new flow.
    #[inline(always)]
    pub const fn matches(&self, query: &Query) -> bool {
        let mut differs = 0u32;
        let mut i = 0;
        while i < 4 {
            differs |= (query.src[i] ^ self.src[i]) & self.src_mask[i];
            differs |= (query.dst[i] ^ self.dst[i]) & self.dst_mask[i];
            i += 1;
        }
        differs == 0
            && (self.proto == 0 || self.proto == query.proto)
            && (self.from == ZONE_ANY || self.from == query.from)
            && (self.to == ZONE_ANY || self.to == query.to)
            && self.port_min <= query.port
            && query.port <= self.port_max
    }
}

/// FNV-1a, 32 bits, of a rule's name: how a rule is named in flows and between nodes.
pub const fn name_hash(name: &str) -> u32 {
    let bytes = name.as_bytes();
    let mut hash = 0x811c_9dc5u32;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    hash
}

/// Elements of `INTERFACES`: one for each interface with a program and each VLAN there, one more for a VLAN's device.
pub const MAX_INTERFACES: usize = 4096;

/// A key of the hash map `INTERFACES`: where a frame came in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceKey {
    /// Interface index.
    pub ifindex: u32,
    /// VLAN of its (outer) tag; 0 without one.
    pub vlan: u16,
    /// VLAN of a second tag behind the first; 0 without one.
    pub inner: u16,
}

impl InterfaceKey {
    /// Frames without tag at this interface.
    #[inline(always)]
    pub const fn untagged(ifindex: u32) -> Self {
        Self { ifindex, vlan: 0, inner: 0 }
    }
}

/// A VLAN tag as it stands in a frame: EtherType and TCI, network byte order. Zero is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag(pub u32);

impl Tag {
    /// No tag.
    pub const NONE: Self = Self(0);
    /// EtherType of a tag (IEEE 802.1Q), network byte order.
    pub const CUSTOMER: u16 = 0x8100u16.to_be();
    /// EtherType of a service tag, in front of another (IEEE 802.1ad), network byte order.
    pub const SERVICE: u16 = 0x88a8u16.to_be();

    /// A tag with this EtherType (network byte order) and TCI.
    #[inline(always)]
    pub const fn new(ethertype: u16, tci: u16) -> Self {
        Self(ethertype as u32 | (tci.to_be() as u32) << 16)
    }

    /// Whether an EtherType (network byte order) is that of a tag.
    #[inline(always)]
    pub const fn begins(ethertype: u16) -> bool {
        ethertype == Self::CUSTOMER || ethertype == Self::SERVICE
    }

    /// Its EtherType, network byte order.
    #[inline(always)]
    pub const fn ethertype(self) -> u16 {
        self.0 as u16
    }

    /// Priority, drop eligibility and VLAN.
    #[inline(always)]
    pub const fn tci(self) -> u16 {
        ((self.0 >> 16) as u16).to_be()
    }

    /// The VLAN. 0 is none: such a tag carries a priority only.
    #[inline(always)]
    pub const fn vlan(self) -> u16 {
        self.tci() & 0xfff
    }

    /// The tag without priority and drop eligibility; no tag, if it carries nothing else.
    #[inline(always)]
    pub const fn plain(self) -> Self {
        if self.vlan() == 0 { Self::NONE } else { Self::new(self.ethertype(), self.vlan()) }
    }
}

/// An element of the hash map `INTERFACES`. Frames without tag are found by the interface's own index
/// alone; what is known of a VLAN is found by the index of its device, and by trunk and tags.
///
/// ```text
///  0    1     2          8      12      16          20          24    26
///  |zone|flags| MAC      |device| trunk | outer tag | inner tag | MTU | zero |
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// The zone; [`Interface::NO_ZONE`] on a sync interface, where only probes are looked at.
    pub zone: u8,
    /// Bits: [`Interface::LOOSE`], [`Interface::ALONE`], [`Interface::BARE`].
    pub flags: u8,
    /// Its MAC: new flows in frames to another station (a bridge floods them) are not taken, and
    /// probes are answered from it. All zero on an interface that has none: nothing is compared.
    pub mac: [u8; 6],
    /// Index of the interface by which the kernel's routes name it: its own, a VLAN device's.
    pub device: u32,
    /// Index of the interface by which frames leave: its own, or the one that a VLAN device lies on.
    pub trunk: u32,
    /// The tags that frames carry there, the outer first.
    pub tags: [Tag; 2],
    /// The longest L3 packet that fits into its frames beside their tags, in bytes, if that is less than
    /// the routes say; else 0.
    pub mtu: u16,
    /// Always zero.
    pub zero: u16,
}

impl Interface {
    /// [`Interface::zone`] of an interface that is in no zone.
    pub const NO_ZONE: u8 = 0xfe;
    /// Flag: sources are not held against the routes (strict reverse path, RFC 3704).
    pub const LOOSE: u8 = 1;
    /// Flag: it is in no zone, and has a program only because a VLAN of its trunk is in one: whatever
    /// comes passes to the kernel's stack.
    pub const ALONE: u8 = 2;
    /// Flag: a VLAN for which the kernel has no device. Its stack has these frames without their tags, as
    /// the trunk's own, and what it sends by the trunk is tagged.
    pub const BARE: u8 = 4;
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::Rule {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::InterfaceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Interface {}
}

const _: () = {
    assert!(size_of::<Rule>() == 84);
    assert!(size_of::<InterfaceKey>() == 8);
    assert!(size_of::<Interface>() == 28);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{V4_MAPPED, proto};

    fn mapped(a: [u8; 4]) -> [u32; 4] {
        [0, 0, V4_MAPPED, u32::from_ne_bytes(a)]
    }

    fn query() -> Query {
        Query {
            src: mapped([192, 168, 1, 7]),
            dst: mapped([10, 0, 0, 1]),
            port: 22,
            proto: proto::TCP,
            from: 1,
            to: 2,
        }
    }

    fn any() -> Rule {
        Rule { port_max: u16::MAX, from: ZONE_ANY, to: ZONE_ANY, ..Rule::default() }
    }

    #[test]
    fn a_rule_without_conditions_matches_all() {
        assert!(any().matches(&query()));
        assert!(any().matches(&Query { to: ZONE_NODE, port: 0, ..query() }));
    }

    #[test]
    fn each_condition_counts() {
        let rule = Rule {
            src: mapped([192, 168, 1, 0]),
            src_mask: [u32::MAX, u32::MAX, u32::MAX, u32::from_ne_bytes([255, 255, 255, 0])],
            dst: mapped([10, 0, 0, 1]),
            dst_mask: [u32::MAX; 4],
            port_min: 20,
            port_max: 22,
            proto: proto::TCP,
            from: 1,
            to: 2,
            ..Rule::default()
        };
        assert!(rule.matches(&query()));
        assert!(rule.matches(&Query { port: 20, ..query() }));
        for other in [
            Query { src: mapped([192, 168, 2, 7]), ..query() },
            Query { src: [0, 0, 0, query().src[3]], ..query() },
            Query { dst: mapped([10, 0, 0, 2]), ..query() },
            Query { port: 19, ..query() },
            Query { port: 23, ..query() },
            Query { proto: proto::UDP, ..query() },
            Query { from: 2, ..query() },
            Query { to: ZONE_NODE, ..query() },
        ] {
            assert!(!rule.matches(&other));
        }
    }

    #[test]
    fn a_tag_is_told_by_ethertype_and_vlan() {
        let tag = Tag::new(Tag::SERVICE, 0xa064);
        assert_eq!(tag.0.to_ne_bytes(), [0x88, 0xa8, 0xa0, 0x64], "as in the frame");
        assert_eq!((tag.ethertype(), tag.tci(), tag.vlan()), (Tag::SERVICE, 0xa064, 100));
        assert_eq!(tag.plain(), Tag::new(Tag::SERVICE, 100));
        assert_ne!(tag.plain(), Tag::new(Tag::CUSTOMER, 100));
        assert_eq!(Tag::new(Tag::CUSTOMER, 0xe000).plain(), Tag::NONE, "a priority only");
    }
}
