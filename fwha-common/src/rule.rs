//! Rules and zones. How the programs look rules up is told in [`crate::ruleset`].

/// Zone number of the firewall node itself.
pub const ZONE_NODE: u8 = 0;
/// Matches every zone in [`Rule::from`] and [`Rule::to`].
pub const ZONE_ANY: u8 = 0xff;

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

/// What a rule says of the flows that it matches, as the programs read it: two words of the ruleset, from the lowest
/// bit of the first on.
///
/// ```text
///  0           32      64    80       88      96  128
///  | name_hash | index | mss | action | flags | zero |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Hash of the rule's name, [`name_hash`].
    pub name_hash: u32,
    /// Its counter: index into `RULE_HITS`. Rules of one name have one, in the next ruleset too.
    pub index: u32,
    /// TCP: as [`crate::flow::Flow::mss`].
    pub mss: u16,
    /// An [`Action`].
    pub action: u8,
    /// Bits: [`Decision::SYN_PROXY`].
    pub flags: u8,
}

impl Decision {
    /// Flag: TCP connections are opened by way of the SYN proxy.
    pub const SYN_PROXY: u8 = 1;

    /// Whether [`Decision::SYN_PROXY`] is set.
    #[inline(always)]
    pub const fn syn_proxy(&self) -> bool {
        self.flags & Self::SYN_PROXY != 0
    }

    /// As the two words of a ruleset.
    pub const fn words(self) -> [u64; 2] {
        [
            self.name_hash as u64 | (self.index as u64) << 32,
            self.mss as u64 | (self.action as u64) << 16 | (self.flags as u64) << 24,
        ]
    }

    /// From the two words of a ruleset.
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self {
            name_hash: words[0] as u32,
            index: (words[0] >> 32) as u32,
            mss: words[1] as u16,
            action: (words[1] >> 16) as u8,
            flags: (words[1] >> 24) as u8,
        }
    }
}

/// A new flow, as rules see it.
#[derive(Clone, Copy)]
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

/// An address, as in a flow key, as a number: its high and its low half.
#[inline(always)]
pub const fn halves(address: &[u32; 4]) -> [u64; 2] {
    let [a, b, c, d] = *address;
    [
        (u32::from_be(a) as u64) << 32 | u32::from_be(b) as u64,
        (u32::from_be(c) as u64) << 32 | u32::from_be(d) as u64,
    ]
}

/// An address, as in a flow key, as a number.
pub const fn number(address: &[u32; 4]) -> u128 {
    let [high, low] = halves(address);
    (high as u128) << 64 | low as u128
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
    /// Bits: [`Interface::LOOSE`], [`Interface::ALONE`], [`Interface::BARE`], [`Interface::NO_XMIT`].
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
    /// Flag: its driver does not send frames that XDP redirects to it (`ndo_xdp_xmit`). What comes by XDP leaves by it
    /// through the kernel's stack.
    pub const NO_XMIT: u8 = 8;
}

/// Rules as user space has them: what the ruleset is compiled from.
#[cfg(feature = "user")]
mod user {
    use std::net::IpAddr;

    use super::{Decision, Query, ZONE_ANY, number};
    use crate::flow::{V4_MAPPED, octets};

    /// A network, of one family: those of IPv4 are of mapped addresses, as in a flow key, and are in no network of
    /// IPv6, not in `::/0` either.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Network {
        first: u128,
        last: u128,
    }

    impl Network {
        /// All of IPv4.
        pub const V4: Self =
            Self { first: number(&[0, 0, V4_MAPPED, 0]), last: number(&[0, 0, V4_MAPPED, u32::MAX]) };

        /// The network of the first `len` bits of an address; all bits of it if there are no more.
        pub fn new(address: IpAddr, len: u8) -> Self {
            let len = if address.is_ipv4() { len.min(32) + 96 } else { len.min(128) };
            let hosts = u128::MAX.checked_shr(len.into()).unwrap_or(0);
            let address = u128::from_be_bytes(octets(address));
            Self { first: address & !hosts, last: address | hosts }
        }

        /// Its first address, as [`number`] makes it.
        pub const fn first(&self) -> u128 {
            self.first
        }

        /// Its last address, as [`number`] makes it.
        pub const fn last(&self) -> u128 {
            self.last
        }

        /// Whether it is one of IPv4.
        pub const fn is_v4(&self) -> bool {
            Self::V4.first <= self.first && self.last <= Self::V4.last
        }

        /// Whether an address, as in a flow key, is of it.
        pub const fn contains(&self, address: &[u32; 4]) -> bool {
            let address = number(address);
            let v4 = Self::V4.first <= address && address <= Self::V4.last;
            v4 == self.is_v4() && self.first <= address && address <= self.last
        }
    }

    /// A protocol and its destination ports.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Service {
        /// IP protocol; 0 is any.
        pub proto: u8,
        /// Lowest destination port, host byte order.
        pub port_min: u16,
        /// Highest destination port, host byte order.
        pub port_max: u16,
    }

    impl Service {
        /// All of a protocol; 0 is any.
        pub const fn all(proto: u8) -> Self {
            Self { proto, port_min: 0, port_max: u16::MAX }
        }

        /// Whether it is of a protocol.
        pub const fn is_of(&self, proto: u8) -> bool {
            self.proto == 0 || self.proto == proto
        }

        /// Whether it has this protocol and destination port.
        pub const fn contains(&self, proto: u8, port: u16) -> bool {
            self.is_of(proto) && self.port_min <= port && port <= self.port_max
        }
    }

    /// A rule: what it matches, and its decision. Of several that match the first decides.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Rule {
        /// Zone the flow comes from, or [`ZONE_ANY`].
        pub from: u8,
        /// Zone the flow goes to, [`super::ZONE_NODE`] for the node itself, or [`ZONE_ANY`].
        pub to: u8,
        /// Networks the flow comes from; empty for all.
        pub source: Vec<Network>,
        /// Networks the flow goes to; empty for all.
        pub destination: Vec<Network>,
        /// Protocols and ports; empty for all.
        pub services: Vec<Service>,
        /// What it says.
        pub decision: Decision,
    }

    impl Rule {
        /// A rule that matches all.
        pub const fn all(decision: Decision) -> Self {
            Self {
                from: ZONE_ANY,
                to: ZONE_ANY,
                source: Vec::new(),
                destination: Vec::new(),
                services: Vec::new(),
                decision,
            }
        }

        /// Whether it matches a new flow: what [`crate::ruleset`] is held against.
        pub fn matches(&self, query: &Query) -> bool {
            let within = |networks: &[Network], address| {
                networks.is_empty() || networks.iter().any(|network| network.contains(address))
            };
            (self.from == ZONE_ANY || self.from == query.from)
                && (self.to == ZONE_ANY || self.to == query.to)
                && within(&self.source, &query.src)
                && within(&self.destination, &query.dst)
                && (self.services.is_empty()
                    || self.services.iter().any(|service| service.contains(query.proto, query.port)))
        }
    }
}
#[cfg(feature = "user")]
pub use user::{Network, Rule, Service};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::InterfaceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Interface {}
}

const _: () = {
    assert!(size_of::<InterfaceKey>() == 8);
    assert!(size_of::<Interface>() == 28);
};

#[cfg(test)]
mod tests {
    use super::*;

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

#[cfg(all(test, feature = "user"))]
mod rule_tests {
    use super::*;
    use crate::flow::{FlowKey, octets, proto};

    fn network(text: &str, len: u8) -> Network {
        Network::new(text.parse().unwrap(), len)
    }

    fn address(text: &str) -> [u32; 4] {
        FlowKey::address(octets(text.parse().unwrap()))
    }

    fn query() -> Query {
        Query {
            src: address("192.168.1.7"),
            dst: address("10.0.0.1"),
            port: 22,
            proto: proto::TCP,
            from: 1,
            to: 2,
        }
    }

    #[test]
    fn a_network_is_of_one_family() {
        let [all4, all6] = [network("0.0.0.0", 0), network("::", 0)];
        assert!(all4.contains(&address("10.0.0.1")) && !all4.contains(&address("2001:db8::1")));
        assert!(all6.contains(&address("2001:db8::1")) && !all6.contains(&address("10.0.0.1")));
        assert!(!network("::", 64).contains(&address("255.255.255.255")));
    }

    #[test]
    fn a_rule_without_conditions_matches_all() {
        let any = Rule::all(Decision::default());
        assert!(any.matches(&query()));
        assert!(any.matches(&Query { to: ZONE_NODE, port: 0, ..query() }));
    }

    #[test]
    fn each_condition_counts() {
        let rule = Rule {
            source: vec![network("172.16.0.0", 12), network("192.168.1.0", 24)],
            destination: vec![network("10.0.0.1", 32)],
            services: vec![
                Service::all(proto::ICMP),
                Service { proto: proto::TCP, port_min: 20, port_max: 22 },
            ],
            from: 1,
            to: 2,
            decision: Decision::default(),
        };
        assert!(rule.matches(&query()));
        assert!(rule.matches(&Query { port: 20, ..query() }));
        assert!(rule.matches(&Query { port: 0, proto: proto::ICMP, ..query() }));
        assert!(rule.matches(&Query { src: address("172.31.0.1"), ..query() }));
        for other in [
            Query { src: address("192.168.2.7"), ..query() },
            Query { src: [0, 0, 0, query().src[3]], ..query() },
            Query { dst: address("10.0.0.2"), ..query() },
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
    fn a_network_begins_and_ends_with_its_bits() {
        let all = network("::", 0);
        assert_eq!((all.first(), all.last()), (0, u128::MAX));
        let host = network("2001:db8::7", 128);
        assert_eq!(
            (host.first(), host.last()),
            (number(&address("2001:db8::7")), number(&address("2001:db8::7")))
        );
        let net = network("2001:db8::7", 32);
        assert!(net.contains(&address("2001:db8::")) && net.contains(&address("2001:db8:ffff::1")));
        assert!(!net.contains(&address("2001:db9::")) && !net.contains(&address("2001:db7:ffff::")));
        let v4 = network("10.9.8.7", 8);
        assert!(v4.contains(&address("10.0.0.0")) && v4.contains(&address("10.255.255.255")));
        assert!(!v4.contains(&address("11.0.0.0")) && !v4.contains(&address("a00::")));
    }

    #[test]
    fn a_verdict_comes_back_from_its_words() {
        let decision =
            Decision { name_hash: 0x8123_4567, index: 0xfedc_ba98, mss: 1460, action: 2, flags: 1 };
        assert_eq!(Decision::from_words(decision.words()), decision);
    }
}
