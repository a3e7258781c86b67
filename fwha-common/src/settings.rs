//! What user space tells the programs, and where it finds what they tell back.

use crate::BUCKETS;
use crate::flow::{FLOW_STATES, Flow, TIMEOUT_CLASSES, TimeoutClass, Way, proto};

/// The one element of the array map `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Key of the bucket hash, from the cluster key: the same on all nodes.
    pub bucket_key: [u64; 2],
    /// Key of probes, from the cluster key.
    pub probe_key: [u64; 2],
    /// First word of the cluster's id, as in every probe.
    pub cluster: u32,
    /// Low 32 bits of this daemon's boot epoch; goes into the identity of new flows.
    pub epoch: u32,
    /// Raised by user space with every change of a route, neighbour, address or link; next hops
    /// cached under another number are looked up again. Never 0.
    pub route_generation: u32,
    /// Generation of the ruleset in force: which of `RULESETS` it is, modulo [`crate::ruleset::GENERATIONS`]. 0: there is
    /// none, drop all.
    pub ruleset_generation: u32,
    /// This node, 1 to [`crate::MAX_NODES`].
    pub node: u8,
    /// 1 if an interface with a program carries VLANs: frames without a tag are then looked at, too, before
    /// they are judged.
    pub vlans: u8,
    /// Bits: [`Settings::SYN_PROXY`].
    pub flags: u8,
    /// Always zero.
    pub zero: [u8; 5],
    /// The group of each bucket.
    pub bucket_group: [u8; BUCKETS],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bucket_key: [0; 2],
            probe_key: [0; 2],
            cluster: 0,
            epoch: 0,
            route_generation: 0,
            ruleset_generation: 0,
            node: 0,
            vlans: 0,
            flags: 0,
            zero: [0; 5],
            bucket_group: [0; BUCKETS],
        }
    }
}

impl Settings {
    /// Flag: a rule in force has [`crate::rule::Decision::SYN_PROXY`], so that TCP of no flow may acknowledge a
    /// cookie.
    pub const SYN_PROXY: u8 = 1;
}

/// The one element of the array map `TIMEOUTS`: ns by protocol class and state, and what shortens them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// `ns[class][state]`.
    pub ns: [[u64; FLOW_STATES]; TIMEOUT_CLASSES],
    /// TCP, at most: one end has sent the same segment four times, and nothing came of it; or has said last that it
    /// takes no data.
    pub tcp_max_retrans_ns: u64,
    /// TCP, at most: there is data under way that is not acknowledged.
    pub tcp_unacknowledged_ns: u64,
}

impl Timeouts {
    /// The kernel's defaults (net/netfilter/nf_conntrack_proto_tcp.c, _udp.c, _icmp.c, _icmpv6.c, _sctp.c,
    /// _gre.c, _generic.c; _dccp.c up to Linux 6.16). A state that a protocol does not use has that
    /// protocol's shortest timeout.
    pub const KERNEL: Self = {
        use crate::flow::{FlowState as S, TimeoutClass as C};
        const fn class(shortest: u64, states: &[(S, u64)]) -> [u64; FLOW_STATES] {
            let mut ns = [shortest * 1_000_000_000; FLOW_STATES];
            let mut i = 0;
            while i < states.len() {
                ns[states[i].0 as usize] = states[i].1 * 1_000_000_000;
                i += 1;
            }
            ns
        }
        let mut ns = [[0; FLOW_STATES]; TIMEOUT_CLASSES];
        ns[C::Tcp as usize] = class(
            10,
            &[
                (S::SynSent, 120),
                (S::SynSent2, 120),
                (S::SynRecv, 60),
                (S::Established, 432_000),
                (S::FinWait, 120),
                (S::CloseWait, 60),
                (S::LastAck, 30),
                (S::TimeWait, 120),
            ],
        );
        ns[C::Udp as usize] = class(30, &[(S::Assured, 120)]);
        ns[C::Icmp as usize] = class(30, &[]);
        ns[C::Icmpv6 as usize] = class(30, &[]);
        ns[C::Sctp as usize] = class(3, &[(S::Close, 10), (S::Established, 210)]);
        ns[C::Dccp as usize] = class(240, &[(S::Replied, 480), (S::Assured, 43_200)]);
        ns[C::Gre as usize] = class(30, &[(S::Replied, 180), (S::Assured, 180)]);
        ns[C::Other as usize] = class(600, &[]);
        Self { ns, tcp_max_retrans_ns: 300_000_000_000, tcp_unacknowledged_ns: 300_000_000_000 }
    };

    /// None of the main table's is shorter: 1 s.
    pub const LEAST_NS: u64 = 1_000_000_000;

    /// How long a flow is kept after its last packet, if this node owns it since `since_ns`; nothing for a state that
    /// there is not. The order in which TCP's are looked at is the kernel's (`nf_conntrack_tcp_packet`). What
    /// shortens them counts only if both ends were heard here since then: what was under way when another node
    /// took the flow over was acknowledged there, and nobody told.
    #[inline(always)]
    pub fn of(&self, protocol: u8, flow: &Flow, since_ns: u64) -> Option<u64> {
        let class = TimeoutClass::of(protocol);
        let ns = *self.ns[class as usize].get(Flow::state_of(flow.word) as usize)?;
        if protocol != proto::TCP || !flow.heard_since(since_ns) {
            return Some(ns);
        }
        let last = flow.ways[0].scale | flow.ways[1].scale;
        let most = if last & Way::REPEATS == Way::REPEATS {
            self.tcp_max_retrans_ns
        } else if flow.unacknowledged() {
            self.tcp_unacknowledged_ns
        } else if last & Way::SHUT != 0 {
            self.tcp_max_retrans_ns
        } else {
            ns
        };
        Some(if most < ns { most } else { ns })
    }
}

/// Answers to rejected packets that a CPU sends in [`REJECT_WINDOW_NS`], at most.
pub const REJECTS_PER_WINDOW: u64 = 100;
/// The window of [`REJECTS_PER_WINDOW`], in ns: a thousand answers a second, as `net.ipv4.icmp_msgs_per_sec`.
pub const REJECT_WINDOW_NS: u64 = 100_000_000;

/// What the one element of the per-CPU array map `COUNTERS` counts, a u64 each, in this order.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Packets that entered at a zone interface, and probes at any. A super-packet counts as its
    /// segments, here and in the next three. What entered was forwarded, passed, dropped, or a probe, a
    /// SYN or a question for a virtual address that was answered: exactly one of them is counted with it. Drops by the egress guard
    /// ([`crate::drop::DropReason::Unfiltered`]) come on top, they entered (and passed) before.
    PacketsIn = 0,
    /// Packets forwarded by the programs.
    Forwarded = 1,
    /// Packets handed to the kernel's stack (for this node, own protocols, slow path).
    Passed = 2,
    /// Packets dropped; equals the sum of all drop reasons.
    Dropped = 3,
    /// Probes answered.
    ProbesAnswered = 4,
    /// Events that found no room in the ring buffer; by bucket in `EVENT_LOSS`.
    EventsLost = 5,
    /// Flows created in the main table.
    FlowsCreated = 6,
    /// Flows created in the embryonic table.
    Embryonic = 7,
    /// Forwarded packets whose next hop had to be looked up.
    FibLookups = 8,
    /// Drops that a capture asked for and did not sample, because there were too many
    /// ([`crate::capture::Capture::samples_max`]). These two count super-packets as one.
    CaptureSkipped = 9,
    /// Samples that found no room in the ring buffer `DROP_SAMPLES`.
    CaptureLost = 10,
    /// Rejected packets whose senders were told. They count as dropped, too.
    Rejected = 11,
    /// SYNs that the SYN proxy answered with a cookie.
    SynAnswered = 12,
    /// Connections that the SYN proxy began for a valid cookie.
    SynProxied = 13,
    /// Questions for a virtual address that were answered with its virtual MAC (ARP, neighbour discovery).
    VipAnswered = 14,
    /// Times that somebody else said that he has a virtual address which this node owns (ARP, neighbour advertisements).
    VipClaimed = 15,
}

/// Number of [`Counter`]s.
pub const COUNTERS: usize = 16;

impl Counter {
    /// All counters, in the order of their numbers.
    pub const ALL: [Self; COUNTERS] = [
        Self::PacketsIn,
        Self::Forwarded,
        Self::Passed,
        Self::Dropped,
        Self::ProbesAnswered,
        Self::EventsLost,
        Self::FlowsCreated,
        Self::Embryonic,
        Self::FibLookups,
        Self::CaptureSkipped,
        Self::CaptureLost,
        Self::Rejected,
        Self::SynAnswered,
        Self::SynProxied,
        Self::VipAnswered,
        Self::VipClaimed,
    ];

    /// The name under which it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PacketsIn => "packets_in",
            Self::Forwarded => "forwarded",
            Self::Passed => "passed",
            Self::Dropped => "dropped",
            Self::ProbesAnswered => "probes_answered",
            Self::EventsLost => "events_lost",
            Self::FlowsCreated => "flows_created",
            Self::Embryonic => "embryonic",
            Self::FibLookups => "fib_lookups",
            Self::CaptureSkipped => "capture_skipped",
            Self::CaptureLost => "capture_lost",
            Self::Rejected => "rejected",
            Self::SynAnswered => "syn_answered",
            Self::SynProxied => "syn_proxied",
            Self::VipAnswered => "vip_answered",
            Self::VipClaimed => "vip_claimed",
        }
    }
}

/// Names of maps and programs in the object.
pub mod name {
    /// Main flow table: HASH, [`crate::flow::FlowKey`] to [`crate::flow::Flow`], replicated.
    pub const FLOWS: &str = "FLOWS";
    /// New flows without an answer: ARRAY of [`crate::embryonic::EmbryonicSet`], not replicated.
    pub const EMBRYONIC: &str = "EMBRYONIC";
    /// When their places were used: ARRAY of [`crate::embryonic::EmbryonicUses`].
    pub const EMBRYONIC_USES: &str = "EMBRYONIC_USES";
    /// Their fingerprints: ARRAY of [`crate::embryonic::Fingerprints`].
    pub const FINGERPRINTS: &str = "FINGERPRINTS";
    /// Global u32: the number of the last of these sets, a power of two less 1.
    pub const EMBRYONIC_LAST: &str = "EMBRYONIC_LAST";
    /// Which TCP flows there may be in the main table, see [`crate::bloom`]: ARRAY of u64, which the daemon maps into its memory.
    pub const BLOOM: &str = "BLOOM";
    /// What was set there since its renewal began: the same.
    pub const BLOOM_RECENT: &str = "BLOOM_RECENT";
    /// Global u32: the number of the last word of these, a power of two less 1.
    pub const BLOOM_LAST: &str = "BLOOM_LAST";
    /// Flows of this node: those that it began, and the connections to it that are established. LRU_HASH, same types, never
    /// replicated.
    pub const NODE_FLOWS: &str = "NODE_FLOWS";
    /// Other flows to this node, which may be anybody's: the same.
    pub const NODE_GUESTS: &str = "NODE_GUESTS";
    /// Datagrams in fragments: LRU_HASH, kept by the programs for themselves.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Flow events: RINGBUF of [`crate::flow::FlowEvent`].
    pub const EVENTS: &str = "EVENTS";
    /// Events lost by bucket: PERCPU_ARRAY of u64, [`crate::BUCKETS`] elements.
    pub const EVENT_LOSS: &str = "EVENT_LOSS";
    /// ARRAY of one [`crate::sweep::Sweep`].
    pub const SWEEP: &str = "SWEEP";
    /// ARRAY of [`crate::group::Group`], [`crate::MAX_GROUPS`] elements.
    pub const GROUPS: &str = "GROUPS";
    /// ARRAY of [`crate::group::BucketRange`] by [`crate::group::BucketRange::index`].
    pub const ZONE_BUCKETS: &str = "ZONE_BUCKETS";
    /// HASH of [`crate::group::VipKey`] to [`crate::group::Vip`].
    pub const VIPS: &str = "VIPS";
    /// HASH of [`crate::group::VipKey`] to [`crate::group::Claim`], made by the programs.
    pub const CLAIMS: &str = "CLAIMS";
    /// HASH of [`crate::group::VirtualMacKey`] to [`crate::group::VirtualMac`].
    pub const VIRTUAL_MACS: &str = "VIRTUAL_MACS";
    /// ARRAY_OF_MAPS: rulesets by generation modulo [`crate::ruleset::GENERATIONS`], each an ARRAY of
    /// [`crate::ruleset::Block`].
    pub const RULESETS: &str = "RULESETS";
    /// PERCPU_ARRAY of u64: hits by [`crate::rule::Decision::index`], [`crate::ruleset::MAX_RULES`] elements.
    pub const RULE_HITS: &str = "RULE_HITS";
    /// HASH of [`crate::rule::InterfaceKey`] to [`crate::rule::Interface`].
    pub const INTERFACES: &str = "INTERFACES";
    /// ARRAY of [`crate::route::PlainRoutes`] by [`crate::route::PlainRoutes::index`].
    pub const PLAIN_ROUTES: &str = "PLAIN_ROUTES";
    /// ARRAY of one [`super::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// ARRAY of one [`super::Timeouts`].
    pub const TIMEOUTS: &str = "TIMEOUTS";
    /// ARRAY of one [`crate::limit::Limits`].
    pub const LIMITS: &str = "LIMITS";
    /// LRU_HASH of address, as in a flow key, to [`crate::limit::Source`].
    pub const SOURCES: &str = "SOURCES";
    /// PERCPU_ARRAY of one array of u64 by [`super::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// PERCPU_ARRAY of u64 by [`crate::drop::DropReason`].
    pub const DROPS: &str = "DROPS";
    /// ARRAY of one [`crate::capture::Capture`].
    pub const CAPTURE: &str = "CAPTURE";
    /// Dropped packets, while a capture is on: RINGBUF of [`crate::capture::DropSample`].
    pub const DROP_SAMPLES: &str = "DROP_SAMPLES";
    /// The XDP program for zone interfaces.
    pub const XDP_INGRESS: &str = "fwha_xdp";
    /// The tc (TCX) ingress program for zone interfaces.
    pub const TC_INGRESS: &str = "fwha_tc";
    /// The tc (TCX) egress program for zone interfaces.
    pub const TC_EGRESS: &str = "fwha_egress";
    /// The tc (TCX) ingress program for zone interfaces with XDP and virtual MACs, behind XDP.
    pub const HOST_INGRESS: &str = "fwha_host";
    /// The tc (TCX) ingress program for sync interfaces: answers probes, passes everything else.
    pub const SYNC_INGRESS: &str = "fwha_sync";
    /// The program that is run to delete the flows in `SWEEP`.
    pub const SWEEPER: &str = "fwha_sweep";
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, no padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Timeouts {}
}

const _: () = assert!(size_of::<Settings>() == 56 + BUCKETS);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowState;

    #[test]
    fn tcp_in_doubt_is_kept_no_longer_than_that_allows() {
        let timeouts = Timeouts { tcp_max_retrans_ns: 400, tcp_unacknowledged_ns: 500, ..Timeouts::KERNEL };
        let way = |end, maxack, flags, scale| Way { end, maxack, flags, scale, ..Way::default() };
        let kept = |state, ways| {
            let flow = Flow { word: Flow::word(state, 0, [1, 2]), ways, ..Flow::default() };
            (timeouts.of(proto::TCP, &flow, 0), timeouts.of(proto::UDP, &flow, 0))
        };
        let established = |ways| kept(FlowState::Established, ways).0;
        let of_state = Some(432_000_000_000_000);
        let calm = [way(10, 20, Way::ACKED, 7), way(20, 10, Way::ACKED, 7)];
        assert_eq!(established(calm), of_state);
        assert_eq!(established([way(11, 20, Way::ACKED, 7), calm[1]]), Some(500));
        assert_eq!(established([way(11, 20, Way::ACKED, 7), way(20, 10, 0, 7)]), of_state, "inherited");
        let repeated = |scale| [calm[0], way(20, 10, Way::ACKED, scale)];
        assert_eq!(established(repeated(Way::REPEATS - Way::REPEAT)), of_state);
        assert_eq!(established(repeated(Way::REPEATS)), Some(400));
        assert_eq!(established(repeated(Way::SHUT | 7)), Some(400));
        assert_eq!(kept(FlowState::Close, repeated(Way::REPEATS)).0, Some(400));
        assert_eq!(kept(FlowState::Assured, repeated(Way::REPEATS)).1, Some(120_000_000_000));
        // Not so, unless both ends were heard at this node since it has the flow.
        let since = |seen: [u64; 2]| {
            let [mut there, back] = repeated(Way::REPEATS);
            there.last_seen_ns = seen[0];
            let ways = [there, Way { last_seen_ns: seen[1], ..back }];
            let flow = Flow { word: Flow::word(FlowState::Established, 0, [1, 2]), ways, ..Flow::default() };
            timeouts.of(proto::TCP, &flow, 1000)
        };
        assert_eq!([since([999, 999]), since([2000, 999]), since([999, 2000])], [of_state; 3]);
        assert_eq!(since([1000, 1000]), Some(400));
        let nowhere = Flow { word: u32::from_le_bytes([FLOW_STATES as u8, 0, 0, 0]), ..Flow::default() };
        assert_eq!(timeouts.of(proto::TCP, &nowhere, 0), None);
    }
}
