//! Flows: the key by which both directions of a connection find one map element, and the element.

use crate::siphash::siphash24;

/// IP protocol numbers that the engine tells apart.
pub mod proto {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// VRRP (RFC 9568).
    pub const VRRP: u8 = 112;
}

/// The key of a flow, the same for both directions.
///
/// The two ends are sorted, so a packet and its answer build the same key and one lookup serves
/// both. Which end began the connection is in the value ([`Flow::ORIGINATOR_IS_B`]).
///
/// ```text
///  0        16        32    34    36    37   40
///  +---------+---------+-----+-----+-----+----+
///  | addr a  | addr b  | p a | p b |proto| 0  |
///  +---------+---------+-----+-----+-----+----+
/// ```
///
/// ICMP echo has no ports: both port fields hold the identifier, as in the kernel's tracker.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Address of the lower end.
    pub addr_a: [u32; 4],
    /// Address of the higher end.
    pub addr_b: [u32; 4],
    /// Port of the lower end, network byte order.
    pub port_a: u16,
    /// Port of the higher end, network byte order.
    pub port_b: u16,
    /// IP protocol.
    pub proto: u8,
    /// Always zero: map keys are compared as bytes.
    pub zero: [u8; 3],
}

/// `::ffff:0:0/96` as the third word of an address.
pub const V4_MAPPED: u32 = u32::from_be(0x0000_ffff);

impl FlowKey {
    /// The key for an IPv4 packet, and whether its source is end B. All four in network byte order.
    #[inline(always)]
    pub fn v4(src: u32, dst: u32, sport: u16, dport: u16, proto: u8) -> (Self, bool) {
        let src_is_b = (u32::from_be(src), u16::from_be(sport)) > (u32::from_be(dst), u16::from_be(dport));
        let (a, b, port_a, port_b) =
            if src_is_b { (dst, src, dport, sport) } else { (src, dst, sport, dport) };
        let key = Self {
            addr_a: [0, 0, V4_MAPPED, a],
            addr_b: [0, 0, V4_MAPPED, b],
            port_a,
            port_b,
            proto,
            zero: [0; 3],
        };
        (key, src_is_b)
    }

    /// The key for any packet by its 16-byte addresses, and whether its source is end B. For user
    /// space: the kernel side has cheaper ways for each family.
    pub fn new(src: [u8; 16], dst: [u8; 16], sport: u16, dport: u16, proto: u8) -> (Self, bool) {
        let src_is_b = (src, sport) > (dst, dport);
        let (a, b, port_a, port_b) =
            if src_is_b { (dst, src, dport, sport) } else { (src, dst, sport, dport) };
        let key = Self {
            addr_a: words(a),
            addr_b: words(b),
            port_a: port_a.to_be(),
            port_b: port_b.to_be(),
            proto,
            zero: [0; 3],
        };
        (key, src_is_b)
    }

    /// Address and port (host byte order) of end A (`false`) or B (`true`).
    pub fn end(&self, b: bool) -> ([u8; 16], u16) {
        let (addr, port) = if b { (self.addr_b, self.port_b) } else { (self.addr_a, self.port_a) };
        (bytes(addr), u16::from_be(port))
    }

    /// The key as ten native words, as hashed.
    #[inline(always)]
    fn halves(&self) -> [u64; 5] {
        let w = |hi: u32, lo: u32| ((hi as u64) << 32) | lo as u64;
        [
            w(self.addr_a[1], self.addr_a[0]),
            w(self.addr_a[3], self.addr_a[2]),
            w(self.addr_b[1], self.addr_b[0]),
            w(self.addr_b[3], self.addr_b[2]),
            self.port_a as u64 | (self.port_b as u64) << 16 | (self.proto as u64) << 32,
        ]
    }

    /// The bucket of this flow under the cluster's secret hash key. Keyed, so that nobody outside
    /// can aim flows at one bucket.
    #[inline(always)]
    pub fn bucket(&self, key: &[u64; 2]) -> u8 {
        siphash24(key, &self.halves()) as u8
    }
}

const fn words(b: [u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
        u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
    ]
}

fn bytes(w: [u32; 4]) -> [u8; 16] {
    let mut out = [0; 16];
    for (chunk, word) in out.chunks_exact_mut(4).zip(w) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    out
}

/// Who made a flow, and which of its flows this is. It never changes while the flow lives, wherever
/// it is replicated to; the same 5-tuple used again gets another identity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// Creation time of the flow on its node (`CLOCK_MONOTONIC` in ns), its low 8 bits replaced by
    /// the CPU: unique on a node and rising. Compared only between flows of one node.
    pub number: u64,
    /// Low 32 bits of the boot epoch of the daemon that had the data plane at that time.
    pub epoch: u32,
    /// The node, 1 to [`crate::MAX_NODES`].
    pub node: u8,
    /// Always zero.
    pub zero: [u8; 3],
}

/// The state of a flow, for all protocols. The names are those of `conntrack -L`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowState {
    /// No such state; never in a map.
    None = 0,
    /// TCP: the originator's SYN was seen.
    SynSent = 1,
    /// TCP: the SYN was answered.
    SynRecv = 2,
    /// TCP: three-way handshake complete.
    Established = 3,
    /// TCP: the first FIN was seen.
    FinWait = 4,
    /// TCP: the first FIN was acknowledged.
    CloseWait = 5,
    /// TCP: both FINs were seen.
    LastAck = 6,
    /// TCP: the last FIN was acknowledged.
    TimeWait = 7,
    /// TCP: reset.
    Close = 8,
    /// UDP and others: no answer yet.
    Unreplied = 9,
    /// UDP and others: answered.
    Replied = 10,
    /// UDP: answered, and more than one exchange: a stream.
    Assured = 11,
}

/// Number of [`FlowState`]s, the size of a timeout table.
pub const FLOW_STATES: usize = 12;

impl FlowState {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; FLOW_STATES] = [
        Self::None,
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::Unreplied,
        Self::Replied,
        Self::Assured,
    ];

    /// The state with this number.
    pub const fn from_u8(n: u8) -> Option<Self> {
        if (n as usize) < FLOW_STATES { Some(Self::ALL[n as usize]) } else { None }
    }

    /// The name that commands print.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SynSent => "syn-sent",
            Self::SynRecv => "syn-recv",
            Self::Established => "established",
            Self::FinWait => "fin-wait",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::TimeWait => "time-wait",
            Self::Close => "close",
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
            Self::Assured => "assured",
        }
    }
}

/// Protocol families that have a timeout table of their own; index into [`crate::settings::Timeouts`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutClass {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// ICMP echo.
    Icmp = 2,
    /// Everything else.
    Other = 3,
}

/// Number of [`TimeoutClass`]es.
pub const TIMEOUT_CLASSES: usize = 4;

impl TimeoutClass {
    /// The class of an IP protocol.
    #[inline(always)]
    pub const fn of(proto: u8) -> Self {
        match proto {
            proto::TCP => Self::Tcp,
            proto::UDP => Self::Udp,
            proto::ICMP | proto::ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }
}

/// Where packets of one direction leave: the cached result of a route and neighbour lookup. Valid
/// while `generation` equals [`crate::settings::Settings::route_generation`]; generation 0 is never
/// current, so a zeroed value is "not looked up".
///
/// ```text
///  0        4        8       14       20    22    24
///  | ifindex|  gen   | dmac   | smac   | mtu | 0   |
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Interface to leave by.
    pub ifindex: u32,
    /// Route generation at the time of the lookup.
    pub generation: u32,
    /// MAC of the next hop.
    pub dst_mac: [u8; 6],
    /// MAC of the interface.
    pub src_mac: [u8; 6],
    /// Largest L3 packet for this route, in bytes; 0 if unknown.
    pub mtu: u16,
    /// Always zero.
    pub zero: u16,
}

/// A flow. One element serves both directions; index 0 is the original direction, 1 the reply.
///
/// Both directions may run on two CPUs at once. `last_seen_ns`, `packets`, `bytes` and `hops` are
/// indexed by direction and, with receive-side scaling by flow, have one writer each; should two
/// CPUs work on one direction, a count may miss a packet and nothing else happens. `state` and
/// `version` are changed by compare-and-exchange. The rest is written once, before the element is
/// in the map.
///
/// ```text
///   0  last_seen_ns[2]   16  packets[2]   32  bytes[2]
///  48  hops[2]           96  state flags bucket zones[2]
/// 104  version          112  id          128  created_ns
/// 136  rule_hash ruleset_generation     144
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// When the last packet of each direction was seen, coarse `CLOCK_MONOTONIC` in ns. 0 in a
    /// direction that this node has not seen.
    pub last_seen_ns: [u64; 2],
    /// Packets of each direction, on all nodes together. A super-packet counts as its segments.
    pub packets: [u64; 2],
    /// Bytes at L3 of each direction.
    pub bytes: [u64; 2],
    /// Where packets of each direction leave.
    pub hops: [NextHop; 2],
    /// A [`FlowState`]. Four bytes, because it is changed by 32-bit compare-and-exchange.
    pub state: u32,
    /// Bits: [`Flow::ORIGINATOR_IS_B`], [`Flow::INHERITED`].
    pub flags: u8,
    /// The bucket, of the original tuple.
    pub bucket: u8,
    /// Zone of the originator and of the responder.
    pub zones: [u8; 2],
    /// Term in the high half, a count of changes in the low one. A replica takes a record of the
    /// same identity only if its version is higher.
    pub version: u64,
    /// The identity.
    pub id: FlowId,
    /// When the flow began, in this node's `CLOCK_MONOTONIC` ns.
    pub created_ns: u64,
    /// Hash of the name of the rule that admitted it.
    pub rule_hash: u32,
    /// Generation of the ruleset that admitted it.
    pub ruleset_generation: u32,
}

impl Flow {
    /// Flag: end B of the key began the connection; otherwise end A.
    pub const ORIGINATOR_IS_B: u8 = 1;
    /// Flag: came from a peer. Window checks stay lenient until both directions were seen here.
    pub const INHERITED: u8 = 2;

    /// Whether end B began the connection.
    #[inline(always)]
    pub const fn originator_is_b(&self) -> bool {
        self.flags & Self::ORIGINATOR_IS_B != 0
    }

    /// The term of the last change.
    #[inline(always)]
    pub const fn term(version: u64) -> u32 {
        (version >> 32) as u32
    }

    /// The version that follows `old` when this node owns the bucket in `term`: one higher, and
    /// never below what the term begins with, so that a new owner's changes beat its predecessor's.
    #[inline(always)]
    pub const fn next_version(old: u64, term: u32) -> u64 {
        let floor = (term as u64) << 32;
        let next = old + 1;
        if next > floor { next } else { floor + 1 }
    }

    /// When this flow expires, in `CLOCK_MONOTONIC` ns: `timeout_ns` after the last packet of either
    /// direction, but never before `timeout_ns` after `since_ns`, the time at which this node got
    /// ownership (a flow inherited in a takeover gets a whole timeout, without a walk).
    #[inline(always)]
    pub const fn expires_ns(&self, since_ns: u64, timeout_ns: u64) -> u64 {
        let mut seen = since_ns;
        if self.last_seen_ns[0] > seen {
            seen = self.last_seen_ns[0];
        }
        if self.last_seen_ns[1] > seen {
            seen = self.last_seen_ns[1];
        }
        seen.saturating_add(timeout_ns)
    }
}

/// What a flow event tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEventKind {
    /// The flow is new in the main table (or took over a dead element of the same key).
    Created = 1,
    /// Its state changed.
    Updated = 2,
}

/// A record of the ring buffer `EVENTS`: the flow as it was right after the change.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowEvent {
    /// A [`FlowEventKind`].
    pub kind: u32,
    /// CPU that wrote it.
    pub cpu: u32,
    /// The key.
    pub key: FlowKey,
    /// The value.
    pub flow: Flow,
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, made of integers only, without padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowEvent {}
}

const _: () = {
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<FlowId>() == 16);
    assert!(size_of::<NextHop>() == 24);
    assert!(size_of::<Flow>() == 144);
    assert!(size_of::<FlowEvent>() == 192);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(a: [u8; 4]) -> u32 {
        u32::from_ne_bytes(a)
    }

    #[test]
    fn both_directions_build_one_key() {
        let (c, s) = (v4([192, 168, 100, 100]), v4([10, 0, 0, 128]));
        let (there, src_is_b) = FlowKey::v4(c, s, 40000u16.to_be(), 22u16.to_be(), proto::TCP);
        let (back, back_is_b) = FlowKey::v4(s, c, 22u16.to_be(), 40000u16.to_be(), proto::TCP);
        assert_eq!(there, back);
        assert!(src_is_b, "192.168.100.100 is the higher address");
        assert!(!back_is_b);
    }

    #[test]
    fn the_v4_way_and_the_general_way_agree() {
        let mapped = |a: [u8; 4]| {
            let mut m = [0; 16];
            m[10] = 0xff;
            m[11] = 0xff;
            m[12..].copy_from_slice(&a);
            m
        };
        for (src, dst, sport, dport) in [
            ([1, 2, 3, 4], [4, 3, 2, 1], 1, 2),
            ([4, 3, 2, 1], [1, 2, 3, 4], 1, 2),
            ([9, 9, 9, 9], [9, 9, 9, 9], 256, 1),
            ([9, 9, 9, 9], [9, 9, 9, 9], 1, 256),
        ] {
            let fast = FlowKey::v4(v4(src), v4(dst), u16::to_be(sport), u16::to_be(dport), proto::UDP);
            let general = FlowKey::new(mapped(src), mapped(dst), sport, dport, proto::UDP);
            assert_eq!(fast, general);
            assert_eq!(general.0.end(general.1), (mapped(src), sport));
            assert_eq!(general.0.end(!general.1), (mapped(dst), dport));
        }
    }

    #[test]
    fn a_new_owners_version_beats_its_predecessors() {
        let v = Flow::next_version(0, 3);
        assert_eq!((Flow::term(v), v as u32), (3, 1));
        let v = Flow::next_version(v, 3);
        assert_eq!((Flow::term(v), v as u32), (3, 2));
        assert!(Flow::next_version(v, 4) > v);
        assert_eq!(Flow::term(Flow::next_version(v, 2)), 3, "a version never goes back");
    }

    #[test]
    fn an_inherited_flow_gets_a_whole_timeout() {
        let flow = Flow { last_seen_ns: [5, 7], ..Flow::default() };
        assert_eq!(flow.expires_ns(0, 100), 107);
        assert_eq!(flow.expires_ns(1000, 100), 1100);
        assert_eq!(flow.expires_ns(0, u64::MAX), u64::MAX);
    }

    #[test]
    fn buckets_depend_on_the_key_and_spread() {
        let mut seen = [0u32; 256];
        let mut moved = 0;
        for port in 0..4096u16 {
            let (key, _) = FlowKey::v4(v4([10, 0, 0, 1]), v4([10, 0, 0, 2]), port, 80, proto::TCP);
            let bucket = key.bucket(&[1, 2]);
            seen[bucket as usize] += 1;
            moved += u32::from(bucket != key.bucket(&[3, 4]));
        }
        assert!(seen.iter().all(|&n| n > 0), "every bucket is used");
        assert!(moved > 3500);
    }
}
