//! Flows: the key by which both directions of a connection find one map element, and the element.

use core::net::IpAddr;

use crate::siphash::siphash13;

/// IP protocol numbers that the engine tells apart.
pub mod proto {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// GRE (RFC 2784).
    pub const GRE: u8 = 47;
    /// IPsec ESP (RFC 4303).
    pub const ESP: u8 = 50;
    /// IPsec AH (RFC 4302).
    pub const AH: u8 = 51;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// VRRP (RFC 9568).
    pub const VRRP: u8 = 112;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDPLITE: u8 = 136;

    /// Those that have a name in configs and in what commands print.
    pub const NAMES: [(u8, &str); 10] = [
        (ICMP, "icmp"),
        (TCP, "tcp"),
        (UDP, "udp"),
        (DCCP, "dccp"),
        (GRE, "gre"),
        (ESP, "esp"),
        (AH, "ah"),
        (ICMPV6, "icmpv6"),
        (SCTP, "sctp"),
        (UDPLITE, "udplite"),
    ];

    /// The name of a protocol, if it has one here.
    pub fn name(proto: u8) -> Option<&'static str> {
        NAMES.iter().find(|(number, _)| *number == proto).map(|(_, name)| *name)
    }

    /// The protocol of a name, or of a number from 1 to 255.
    pub fn from_name(text: &str) -> Option<u8> {
        let named = NAMES.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
        let number = || text.parse().ok().filter(|&n| n != 0 && text.bytes().all(|b| b.is_ascii_digit()));
        named.or_else(number)
    }

    /// Whether its packets carry a port of each end where TCP and UDP do.
    pub const fn has_ports(proto: u8) -> bool {
        matches!(proto, TCP | UDP | UDPLITE | SCTP | DCCP)
    }
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
/// Protocols without ports: an ICMP query (echo, timestamp) has its identifier as the port of who asks; a
/// GRE packet with a key has the key's halves in them, the higher one first; others have zero.
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
    /// Always zero: map keys are compared as bytes. (Not one array of three: its zeros would be written by
    /// a call.)
    pub zero: u8,
    /// As above.
    pub zeros: u16,
}

/// `::ffff:0:0/96` as the third word of an address.
pub const V4_MAPPED: u32 = u32::from_be(0x0000_ffff);

impl FlowKey {
    /// The key for a packet, and whether its source is end B. Addresses as in the key, ports in network
    /// byte order; `v6` if the addresses are more than mapped IPv4 ones.
    #[inline(always)]
    pub fn of(src: &[u32; 4], dst: &[u32; 4], sport: u16, dport: u16, proto: u8, v6: bool) -> (Self, bool) {
        let mut key = Self::default();
        let src_is_b = key.set(src, dst, sport, dport, proto, v6);
        (key, src_is_b)
    }

    /// Makes it the key that [`Self::of`] returns; whether the packet's source is end B.
    #[inline(always)]
    pub fn set(
        &mut self,
        src: &[u32; 4],
        dst: &[u32; 4],
        sport: u16,
        dport: u16,
        proto: u8,
        v6: bool,
    ) -> bool {
        let mut src_is_b = if src[3] == dst[3] {
            u16::from_be(sport) > u16::from_be(dport)
        } else {
            u32::from_be(src[3]) > u32::from_be(dst[3])
        };
        if v6 {
            let mut i = 3;
            while i > 0 {
                i -= 1;
                if src[i] != dst[i] {
                    src_is_b = u32::from_be(src[i]) > u32::from_be(dst[i]);
                }
            }
        }
        // GRE's key is of the packet, not of its ends.
        let swap = src_is_b && proto != proto::GRE;
        let mut i = 0;
        while i < 4 {
            let (from, to) = (src[i], dst[i]);
            self.addr_a[i] = if src_is_b { to } else { from };
            self.addr_b[i] = if src_is_b { from } else { to };
            i += 1;
        }
        self.port_a = if swap { dport } else { sport };
        self.port_b = if swap { sport } else { dport };
        (self.proto, self.zero, self.zeros) = (proto, 0, 0);
        src_is_b
    }

    /// The key for an IPv4 packet, and whether its source is end B. All in network byte order.
    #[inline(always)]
    pub fn v4(src: u32, dst: u32, sport: u16, dport: u16, proto: u8) -> (Self, bool) {
        Self::of(&Self::mapped(src), &Self::mapped(dst), sport, dport, proto, false)
    }

    /// An IPv4 address (network byte order) as in a key.
    #[inline(always)]
    pub const fn mapped(address: u32) -> [u32; 4] {
        [0, 0, V4_MAPPED, address]
    }

    /// The key for a packet by its 16-byte addresses and ports in host byte order, for user space.
    pub fn new(src: [u8; 16], dst: [u8; 16], sport: u16, dport: u16, proto: u8) -> (Self, bool) {
        Self::of(&words(src), &words(dst), sport.to_be(), dport.to_be(), proto, true)
    }

    /// Source and destination, each as address and port (host byte order), of a packet whose source is
    /// end B (`true`) or A: what [`Self::new`] was given.
    pub fn ends(&self, src_is_b: bool) -> [([u8; 16], u16); 2] {
        let (a, b) = (bytes(self.addr_a), bytes(self.addr_b));
        let (port_a, port_b) = (u16::from_be(self.port_a), u16::from_be(self.port_b));
        match (src_is_b, self.proto == proto::GRE) {
            (false, _) => [(a, port_a), (b, port_b)],
            (true, false) => [(b, port_b), (a, port_a)],
            (true, true) => [(b, port_a), (a, port_b)],
        }
    }

    /// The hash that chooses the bucket, and the place in the tables, under the cluster's secret key: keyed, so that nobody
    /// outside can aim flows at one of them. SipHash-1-3 of both addresses, 16 bytes each, and of a word of ports and
    /// protocol; of IPv4 addresses 4 bytes each are taken, as every new flow waits for this.
    #[inline(always)]
    pub fn hash(&self, key: &[u64; 2]) -> u64 {
        let word = |low: u32, high: u32| low as u64 | (high as u64) << 32;
        let [a, b] = [&self.addr_a, &self.addr_b];
        let rest = self.port_a as u64 | (self.port_b as u64) << 16 | (self.proto as u64) << 32;
        if (a[0] | a[1] | b[0] | b[1]) == 0 && a[2] == V4_MAPPED && b[2] == V4_MAPPED {
            return siphash13(key, &[word(a[3], b[3]), rest]);
        }
        siphash13(key, &[word(a[0], a[1]), word(a[2], a[3]), word(b[0], b[1]), word(b[2], b[3]), rest])
    }
}

impl FlowKey {
    /// An IPv6 address, or an IPv4 address mapped into one, as a flow key has it.
    pub const fn address(octets: [u8; 16]) -> [u32; 4] {
        words(octets)
    }
}

/// The sixteen octets of an address, those of IPv4 mapped into IPv6 (RFC 4291, 2.5.5.2).
pub const fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
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
    /// TCP: both sides sent a SYN (simultaneous open).
    SynSent2 = 12,
    /// SCTP: the originator's INIT was seen.
    CookieWait = 13,
    /// SCTP: the COOKIE ECHO was seen.
    CookieEchoed = 14,
    /// SCTP: the originator sent SHUTDOWN.
    ShutdownSent = 15,
    /// SCTP: the responder sent SHUTDOWN.
    ShutdownRecd = 16,
    /// SCTP: a SHUTDOWN ACK was seen.
    ShutdownAckSent = 17,
}

/// Number of [`FlowState`]s, the size of a timeout table.
pub const FLOW_STATES: usize = 18;

impl FlowState {
    /// Whether a flow in it is on its way to its end.
    #[inline(always)]
    pub const fn ends(self) -> bool {
        matches!(
            self,
            Self::FinWait
                | Self::CloseWait
                | Self::LastAck
                | Self::TimeWait
                | Self::Close
                | Self::ShutdownSent
                | Self::ShutdownRecd
                | Self::ShutdownAckSent
        )
    }

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
        Self::SynSent2,
        Self::CookieWait,
        Self::CookieEchoed,
        Self::ShutdownSent,
        Self::ShutdownRecd,
        Self::ShutdownAckSent,
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
            Self::SynSent2 => "syn-sent2",
            Self::CookieWait => "cookie-wait",
            Self::CookieEchoed => "cookie-echoed",
            Self::ShutdownSent => "shutdown-sent",
            Self::ShutdownRecd => "shutdown-recd",
            Self::ShutdownAckSent => "shutdown-ack-sent",
        }
    }
}

/// Protocol families that have a timeout table of their own; index into [`crate::settings::Timeouts`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutClass {
    /// TCP.
    Tcp = 0,
    /// UDP and UDP-Lite.
    Udp = 1,
    /// ICMP queries.
    Icmp = 2,
    /// ICMPv6 queries.
    Icmpv6 = 3,
    /// SCTP.
    Sctp = 4,
    /// DCCP.
    Dccp = 5,
    /// GRE.
    Gre = 6,
    /// Everything else.
    Other = 7,
}

/// Number of [`TimeoutClass`]es.
pub const TIMEOUT_CLASSES: usize = 8;

impl TimeoutClass {
    /// The class of an IP protocol.
    #[inline(always)]
    pub const fn of(proto: u8) -> Self {
        match proto {
            proto::TCP => Self::Tcp,
            proto::UDP | proto::UDPLITE => Self::Udp,
            proto::ICMP => Self::Icmp,
            proto::ICMPV6 => Self::Icmpv6,
            proto::SCTP => Self::Sctp,
            proto::DCCP => Self::Dccp,
            proto::GRE => Self::Gre,
            _ => Self::Other,
        }
    }
}

/// Where packets of one direction leave: the result of a route and neighbour lookup. Valid while
/// `generation` equals [`crate::settings::Settings::route_generation`]; generation 0 is never current,
/// so a zeroed value is "not looked up".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Interface to leave by; see [`NextHop::out`].
    pub out: u32,
    /// Route generation at the time of the lookup.
    pub generation: u32,
    /// MAC of the next hop.
    pub dst_mac: [u8; 6],
    /// MAC of the interface.
    pub src_mac: [u8; 6],
    /// Largest L3 packet for this route, in bytes; 0 if unknown.
    pub mtu: u16,
}

impl NextHop {
    /// Interface indices from here on do not fit beside what else [`Self::out`] says.
    pub const IFINDEX_LIMIT: u32 = 1 << 20;
    const TAGGED: u32 = Self::IFINDEX_LIMIT;
    const NO_XMIT: u32 = Self::IFINDEX_LIMIT << 1;

    /// An interface (index below [`Self::IFINDEX_LIMIT`]) as the kernel's routes name it; whether it is
    /// a VLAN: then `INTERFACES` knows by which other one frames leave, and with which tags; and whether it does not send
    /// what XDP redirects, as `Interface::NO_XMIT` says.
    #[inline(always)]
    pub const fn out(ifindex: u32, tagged: bool, no_xmit: bool) -> u32 {
        ifindex | if tagged { Self::TAGGED } else { 0 } | if no_xmit { Self::NO_XMIT } else { 0 }
    }

    /// The interface of [`Self::out`].
    #[inline(always)]
    pub const fn ifindex(out: u32) -> u32 {
        out & (Self::IFINDEX_LIMIT - 1)
    }

    /// Whether [`Self::out`] is a VLAN.
    #[inline(always)]
    pub const fn tagged(out: u32) -> bool {
        out & Self::TAGGED != 0
    }

    /// Whether the interface of [`Self::out`] does not send what XDP redirects.
    #[inline(always)]
    pub const fn no_xmit(out: u32) -> bool {
        out & Self::NO_XMIT != 0
    }
}

/// One direction of a flow: what its packets were, where they leave, and how far they got. Written by
/// packets of this direction only, but for the exceptions named at the fields; read by both.
///
/// ```text
///  0        8        16       24   28   32     38     44   46    47    48   52   56     60     64
///  |last seen|packets| bytes  |out |gen |dst mac|src mac|mtu|scale|flags|end |edge|maxwin|maxack|
/// ```
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// When its last packet was seen, coarse `CLOCK_MONOTONIC` in ns. 0 if this node has seen none. TCP: the low
    /// bits ([`Way::MARK`], 65 µs) are a mark of the last segment by which it is known when it comes again.
    pub last_seen_ns: u64,
    /// Packets, on all nodes together. A super-packet counts as its segments.
    pub packets: u64,
    /// Bytes at L3.
    pub bytes: u64,
    /// As [`NextHop::out`].
    pub out: u32,
    /// As [`NextHop::generation`].
    pub generation: u32,
    /// As [`NextHop::dst_mac`].
    pub dst_mac: [u8; 6],
    /// As [`NextHop::src_mac`].
    pub src_mac: [u8; 6],
    /// As [`NextHop::mtu`].
    pub mtu: u16,
    /// TCP: the shift of the window scale option in its SYN, 0 to 14; counts only if both SYNs had one. Above
    /// it, of the last segment of the connection, if it is this way's: [`Way::REPEATS`], [`Way::SHUT`].
    pub scale: u8,
    /// Bits: [`Way::SCALE`], [`Way::SACK`], [`Way::ACKED`], [`Way::SEEN`], [`Way::ENDED`],
    /// [`Way::MET`].
    pub flags: u8,
    /// TCP: the highest sequence number sent, plus length. SCTP: the verification tag of its packets.
    /// Raised by the other direction while the flow is inherited.
    pub end: u32,
    /// TCP: the right edge of the window granted to the other side: highest acknowledgement plus window.
    /// The other side's SYN sets it to its own end: nothing is granted yet.
    pub edge: u32,
    /// TCP: the largest window granted to the other side, in bytes. Raised by the other side when it
    /// sends beyond the edge.
    pub maxwin: u32,
    /// TCP: the highest acknowledgement sent, if [`Way::ACKED`].
    pub maxack: u32,
}

impl Way {
    /// Flag: its SYN had the window scale option (RFC 7323).
    pub const SCALE: u8 = 1;
    /// Flag: its SYN had the SACK-permitted option (RFC 2018).
    pub const SACK: u8 = 2;
    /// Flag: an acknowledgement was sent.
    pub const ACKED: u8 = 4;
    /// Flag: this node has seen a packet of it, so that its window fields are of this node.
    pub const SEEN: u8 = 8;
    /// Flag: it sent a FIN, or is the originator's and sent the reset that closed. A SYN may then begin
    /// another connection in its place.
    pub const ENDED: u8 = 16;
    /// Flag, of the responder: its SYN met the originator's, in a simultaneous open (RFC 9293, 3.5).
    pub const MET: u8 = 32;
    /// In [`Way::scale`]: the shift.
    pub const SHIFT: u8 = 0xf;
    /// In [`Way::scale`]: how often the last segment had come before, [`Way::REPEAT`] for each time, up to all bits.
    pub const REPEATS: u8 = 0x30;
    /// One of [`Way::REPEATS`].
    pub const REPEAT: u8 = 0x10;
    /// In [`Way::scale`]: the last segment offered no window.
    pub const SHUT: u8 = 0x40;
    /// In [`Way::last_seen_ns`]: what is no time.
    pub const MARK: u64 = 0xffff;
    /// The flags that a replica keeps.
    pub const REPLICATED: u8 = Self::SCALE | Self::SACK;
}

/// A flow. One element serves both directions; index 0 is the original direction, 1 the reply.
///
/// Element, key and value together are 256 bytes in the kernel's hash table (its own header is 48,
/// `struct htab_elem` in kernel/bpf/hashtab.c): the two directions are a cache line each, and what
/// every packet reads of the rest lies in one.
///
/// ```text
///   0  word: state | flags << 8 | zone of originator << 16 | zone of responder << 24
///   4  rule_hash      8  version      16  number   24  epoch   28  node  29  bucket  30  mss
///  32  created       36  delta      40  ways[2]     168
/// ```
///
/// What two CPUs may do to it at once is written at the top of `fwha-ebpf/src/flow.rs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// State, flags and zones, changed by 32-bit compare-and-exchange; see the accessors.
    pub word: u32,
    /// Hash of the name of the rule that admitted it.
    pub rule_hash: u32,
    /// Term in the high half, a count of changes in the low one. A replica takes a record of the
    /// same identity only if its version is higher.
    pub version: u64,
    /// [`FlowId::number`].
    pub number: u64,
    /// [`FlowId::epoch`].
    pub epoch: u32,
    /// [`FlowId::node`].
    pub node: u8,
    /// The bucket, of the original tuple.
    pub bucket: u8,
    /// TCP: the maximum segment size to clamp SYNs to; 0 for none, [`Flow::MSS_PMTU`] for the route's.
    pub mss: u16,
    /// When the flow began: the low half of [`Flow::created_ns`] in its unit.
    pub created: u32,
    /// TCP behind the SYN proxy: what the responder's sequence numbers are ahead of those that the originator
    /// was told, modulo 2^32. Windows are kept in the responder's own numbers. While the responder has not
    /// answered it counts as having begun with -1: a reset that refuses a SYN has the number 0. 0 without a
    /// proxy.
    pub delta: u32,
    /// Both directions.
    pub ways: [Way; 2],
}

impl Flow {
    /// Flag: end B of the key began the connection; otherwise end A.
    pub const ORIGINATOR_IS_B: u8 = 1;
    /// Flag: came from a peer. Windows are not checked until both directions were seen here.
    pub const INHERITED: u8 = 2;
    /// Flag, of the node's own flows: an operator has ended it. Nothing belongs to it any more; it only stays in its table so
    /// that the node's end, which may live on, does not bring it back.
    pub const ENDED: u8 = 4;
    /// [`Flow::mss`]: what fits the route's MTU.
    pub const MSS_PMTU: u16 = u16::MAX;
    /// Flags that are none: the bits of [`Flow::created_ns`] above [`Flow::created`].
    const CREATED_HIGH: u8 = 0xf0;
    /// The unit of [`Flow::created_ns`] is 2^20 ns, a millisecond: 36 bits of them are two years.
    const CREATED_SHIFT: u32 = 20;

    /// When the flow began, in this node's `CLOCK_MONOTONIC` ns, rounded down to the unit.
    #[inline(always)]
    pub const fn created_ns(&self) -> u64 {
        let high = (self.flags() & Self::CREATED_HIGH) as u64 >> 4;
        (high << 32 | self.created as u64) << Self::CREATED_SHIFT
    }

    /// Sets [`Flow::created_ns`], after the word.
    #[inline(always)]
    pub const fn set_created_ns(&mut self, ns: u64) {
        let units = ns >> Self::CREATED_SHIFT;
        self.created = units as u32;
        let high = (units >> 32) as u32 & 0xf;
        self.word = self.word & !((Self::CREATED_HIGH as u32) << 8) | high << 12;
    }

    /// The word for a flow.
    #[inline(always)]
    pub const fn word(state: FlowState, flags: u8, zones: [u8; 2]) -> u32 {
        u32::from_le_bytes([state as u8, flags, zones[0], zones[1]])
    }

    /// `word` with another state.
    #[inline(always)]
    pub const fn with_state(word: u32, state: FlowState) -> u32 {
        word & !0xff | state as u32
    }

    /// [`Self::word`] with [`Self::INHERITED`].
    #[inline(always)]
    pub const fn inherited(word: u32) -> u32 {
        word | (Self::INHERITED as u32) << 8
    }

    /// [`Self::word`] with [`Self::ENDED`].
    #[inline(always)]
    pub const fn ended(word: u32) -> u32 {
        word | (Self::ENDED as u32) << 8
    }

    /// The state in a word, a [`FlowState`].
    #[inline(always)]
    pub const fn state_of(word: u32) -> u8 {
        word as u8
    }

    /// The state.
    pub const fn state(&self) -> FlowState {
        match FlowState::from_u8(Self::state_of(self.word)) {
            Some(state) => state,
            None => FlowState::None,
        }
    }

    /// Whether it has [`Self::ENDED`].
    #[inline(always)]
    pub const fn is_ended(&self) -> bool {
        self.flags() & Self::ENDED != 0
    }

    /// The flags: [`Self::ORIGINATOR_IS_B`], [`Self::INHERITED`], [`Self::ENDED`]; above them, bits of [`Self::created_ns`].
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        (self.word >> 8) as u8
    }

    /// Zone of the originator and of the responder.
    #[inline(always)]
    pub const fn zones(&self) -> [u8; 2] {
        [(self.word >> 16) as u8, (self.word >> 24) as u8]
    }

    /// A flow of this identity, of which nothing else is known.
    pub fn of(id: FlowId) -> Self {
        Self { number: id.number, epoch: id.epoch, node: id.node, ..Self::default() }
    }

    /// What a direction (`reply` or not) told at the handshake, for a replica: of TCP the scale and the
    /// flags [`Way::REPLICATED`], of SCTP the verification tag, else 0.
    pub const fn handshake(&self, proto: u8, reply: bool) -> u32 {
        let way = &self.ways[reply as usize];
        match proto {
            proto::TCP => (way.scale & Way::SHIFT) as u32 | ((way.flags & Way::REPLICATED) as u32) << 8,
            proto::SCTP => way.end,
            _ => 0,
        }
    }

    /// Takes up what [`Self::handshake`] gave on another node.
    pub const fn set_handshake(&mut self, proto: u8, reply: bool, told: u32) {
        let way = &mut self.ways[reply as usize];
        match proto {
            proto::TCP => {
                way.scale = told as u8 & Way::SHIFT;
                way.flags = (told >> 8) as u8 & Way::REPLICATED;
            }
            proto::SCTP => way.end = told,
            _ => {}
        }
    }

    /// Packets of both directions.
    pub const fn packets(&self) -> [u64; 2] {
        [self.ways[0].packets, self.ways[1].packets]
    }

    /// Bytes of both directions.
    pub const fn bytes(&self) -> [u64; 2] {
        [self.ways[0].bytes, self.ways[1].bytes]
    }

    /// The identity.
    #[inline(always)]
    pub const fn id(&self) -> FlowId {
        FlowId { number: self.number, epoch: self.epoch, node: self.node, zero: [0; 3] }
    }

    /// Whether end B began the connection.
    #[inline(always)]
    pub const fn originator_is_b(&self) -> bool {
        self.flags() & Self::ORIGINATOR_IS_B != 0
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

    /// When a packet of either direction was last seen, in `CLOCK_MONOTONIC` ns; 0 for never.
    #[inline(always)]
    pub const fn last_seen_ns(&self) -> u64 {
        let [original, reply] = [self.ways[0].last_seen_ns, self.ways[1].last_seen_ns];
        if original > reply { original } else { reply }
    }

    /// Whether packets of both directions were seen here at `since_ns` or later.
    #[inline(always)]
    pub const fn heard_since(&self, since_ns: u64) -> bool {
        self.ways[0].last_seen_ns >= since_ns && self.ways[1].last_seen_ns >= since_ns
    }

    /// When this flow expires, in `CLOCK_MONOTONIC` ns: `timeout_ns` after the last packet of either
    /// direction, but never before `timeout_ns` after `since_ns`, the time at which this node got
    /// ownership (a flow inherited in a takeover gets a whole timeout, without a walk).
    #[inline(always)]
    pub const fn expires_ns(&self, since_ns: u64, timeout_ns: u64) -> u64 {
        let seen = self.last_seen_ns();
        let seen = if since_ns > seen { since_ns } else { seen };
        seen.saturating_add(timeout_ns)
    }

    /// TCP: whether one end has sent what the other, which was heard here, has not acknowledged.
    #[inline(always)]
    pub const fn unacknowledged(&self) -> bool {
        let [there, back] = &self.ways;
        back.flags & Way::ACKED != 0 && back.maxack != there.end
            || there.flags & Way::ACKED != 0 && there.maxack != back.end
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
    assert!(size_of::<Way>() == 64);
    // With a header of 48 and the key, four cache lines in the kernel's table.
    assert!(48 + size_of::<FlowKey>() + size_of::<Flow>() == 256);
    assert!(size_of::<FlowEvent>() == 216);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::BucketRange;

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
            assert_eq!(general.0.ends(general.1), [(mapped(src), sport), (mapped(dst), dport)]);
        }
    }

    #[test]
    fn ipv6_addresses_are_ordered_by_all_their_bits() {
        let address = |at: usize| {
            let mut a = [0; 16];
            a[at] = 1;
            a
        };
        for at in 0..15 {
            let (high, low) = (address(at), address(at + 1));
            let (there, src_is_b) = FlowKey::new(high, low, 1, 2, proto::UDP);
            let (back, back_is_b) = FlowKey::new(low, high, 2, 1, proto::UDP);
            assert_eq!(there, back);
            assert!(src_is_b && !back_is_b, "byte {at}");
            assert_eq!(there.ends(true), [(high, 1), (low, 2)]);
        }
    }

    #[test]
    fn a_gre_key_is_the_same_both_ways() {
        let (a, b) = ([1; 16], [2; 16]);
        let (there, src_is_b) = FlowKey::new(b, a, 0x1234, 0x5678, proto::GRE);
        let (back, _) = FlowKey::new(a, b, 0x1234, 0x5678, proto::GRE);
        assert_eq!(there, back);
        assert_eq!(there.ends(src_is_b), [(b, 0x1234), (a, 0x5678)]);
        assert_eq!(there.ends(!src_is_b), [(a, 0x1234), (b, 0x5678)]);
    }

    #[test]
    fn the_word_holds_state_flags_and_zones() {
        let flow = Flow { word: Flow::word(FlowState::TimeWait, Flow::INHERITED, [3, 4]), ..Flow::default() };
        assert_eq!(
            (flow.state(), flow.flags(), flow.zones()),
            (FlowState::TimeWait, Flow::INHERITED, [3, 4])
        );
        let word = Flow::with_state(flow.word, FlowState::Close);
        assert_eq!(word, Flow::word(FlowState::Close, Flow::INHERITED, [3, 4]));
    }

    #[test]
    fn the_time_of_a_flow_is_good_for_two_years() {
        let mut flow =
            Flow { word: Flow::word(FlowState::Close, Flow::INHERITED, [3, 4]), ..Flow::default() };
        let day = 86_400_000_000_000;
        for ns in [0, 5_000_000, 60 * day, 2 * 365 * day] {
            flow.set_created_ns(ns);
            assert!(ns - flow.created_ns() < 1 << 20, "{ns}");
            assert_eq!(flow.state(), FlowState::Close);
            assert_eq!((flow.flags() & 0xf, flow.zones()), (Flow::INHERITED, [3, 4]));
        }
    }

    #[test]
    fn a_way_out_says_what_its_interface_is() {
        for (tagged, no_xmit) in [(false, false), (false, true), (true, false), (true, true)] {
            let out = NextHop::out(NextHop::IFINDEX_LIMIT - 1, tagged, no_xmit);
            assert_eq!(NextHop::ifindex(out), NextHop::IFINDEX_LIMIT - 1);
            assert_eq!((NextHop::tagged(out), NextHop::no_xmit(out)), (tagged, no_xmit));
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
        let way = |last_seen_ns| Way { last_seen_ns, ..Way::default() };
        let flow = Flow { ways: [way(5), way(7)], ..Flow::default() };
        assert_eq!(flow.expires_ns(0, 100), 107);
        assert_eq!(flow.expires_ns(1000, 100), 1100);
        assert_eq!(flow.expires_ns(0, u64::MAX), u64::MAX);
    }

    #[test]
    fn buckets_depend_on_the_key_and_spread() {
        let bucket = |key: &FlowKey, secret| BucketRange::default().bucket(key.hash(secret));
        let mut seen = [0u32; 256];
        let mut moved = 0;
        for port in 0..4096u16 {
            let (key, _) = FlowKey::v4(v4([10, 0, 0, 1]), v4([10, 0, 0, 2]), port, 80, proto::TCP);
            let (bucket, other) = (bucket(&key, &[1, 2]), bucket(&key, &[3, 4]));
            seen[bucket as usize] += 1;
            moved += u32::from(bucket != other);
        }
        assert!(seen.iter().all(|&n| n > 0), "every bucket is used");
        assert!(moved > 3500);
    }
}
