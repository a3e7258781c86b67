//! Why a packet was dropped. This is the whole catalogue: index of the per-CPU array map `DROPS`,
//! text of `fwhactl stats drops`, label of the metric.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// A reason for a drop. Numbers are stable within an ABI version.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason with this number.
            pub const fn from_u32(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The name under which it is counted.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What it means, in a line.
            pub const fn explain(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// The packet ends before its headers do.
    Truncated = 0, "truncated";
    /// Header fields contradict each other (version, length, header length).
    Malformed = 1, "malformed";
    /// An EtherType that no zone takes.
    UnknownEtherType = 2, "unknown_ethertype";
    /// A VLAN tag that no zone takes, or none where only tags belong.
    Vlan = 3, "vlan";
    /// IPv6 extension headers: too many, out of order, cut, or a type 0 routing header.
    ExtensionHeader = 4, "extension_header";
    /// A fragment whose datagram's first fragment was not let through before.
    Fragment = 5, "fragment";
    /// The interface belongs to no zone.
    NoZone = 6, "no_zone";
    /// No ruleset is loaded.
    NoRuleset = 7, "no_ruleset";
    /// No rule admits the flow.
    NoRule = 8, "no_rule";
    /// A rule drops the flow.
    Rule = 9, "rule";
    /// TCP that belongs to no flow and is not a SYN.
    NotSyn = 10, "not_syn";
    /// TCP flags that no stack sends.
    TcpFlags = 11, "tcp_flags";
    /// A TCP segment that its flow's state does not allow.
    TcpState = 12, "tcp_state";
    /// An ICMP message that is neither an echo of a flow nor an error about one.
    Icmp = 13, "icmp";
    /// An ICMP error about a packet of no known flow.
    IcmpUnrelated = 14, "icmp_unrelated";
    /// The bucket is owned by another node.
    NotOwner = 15, "not_owner";
    /// This node is the owner, but its lease ran out: the daemon hangs or is gone.
    LeaseExpired = 16, "lease_expired";
    /// The main flow table is full.
    TableFull = 17, "table_full";
    /// A packet of a flow came in, or would leave, by an interface of another zone.
    WrongZone = 18, "wrong_zone";
    /// The route leads nowhere (blackhole, unreachable, prohibit).
    NoRoute = 19, "no_route";
    /// The route leads out of an interface of no zone.
    RouteNoZone = 20, "route_no_zone";
    /// Egress guard: forwarded by the kernel's stack without a flow that covers it.
    Unfiltered = 21, "unfiltered";
    /// A probe with a wrong key or of another cluster.
    BadProbe = 22, "bad_probe";
    /// The programs could not read their own settings.
    NoSettings = 23, "no_settings";
    /// A frame for another station, which a bridge flooded; TCP in a frame for many; a probe for another node.
    OtherStation = 24, "other_station";
    /// A first fragment without its whole L4 header, or one that would overwrite it.
    FragmentTiny = 25, "fragment_tiny";
    /// A fragment that overlaps another of its datagram, or one too many out of order.
    FragmentOverlap = 26, "fragment_overlap";
    /// A TCP segment outside of the windows of its connection.
    TcpWindow = 27, "tcp_window";
    /// A TCP reset with a sequence number below what was acknowledged.
    TcpReset = 28, "tcp_reset";
    /// An SCTP packet with a wrong verification tag.
    SctpTag = 29, "sctp_tag";
    /// SCTP chunks that do not go together, or that the association's state does not allow.
    SctpState = 30, "sctp_state";
    /// A source whose way back is not the interface that it came by, or an own address.
    Spoofed = 31, "spoofed";
    /// A source that no host has: multicast, loopback, reserved.
    Martian = 32, "martian";
    /// Source and destination are the same.
    Land = 33, "land";
    /// A rule rejects the flow; its sender is told, as often as the limit allows.
    Reject = 34, "reject";
    /// The source begins more new flows per second than it may.
    SourceRate = 35, "source_rate";
    /// The source has as many flows as it may.
    SourceFlows = 36, "source_flows";
    /// While a rule has a SYN proxy: TCP that belongs to no flow, is no SYN, and acknowledges no cookie.
    SynCookie = 37, "syn_cookie";
    /// For a virtual address itself, which the nodes of its group do not accept (`accept = false`).
    VipNotAccepted = 38, "vip_not_accepted";
    /// A new flow whose set in the embryonic table other CPUs were changing all the time.
    EmbryonicBusy = 39, "embryonic_busy";
}

/// Number of reasons.
pub const DROP_REASONS: usize = DropReason::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(!reason.explain().is_empty());
            assert_eq!(
                DropReason::ALL.iter().filter(|r| r.as_str() == reason.as_str()).count(),
                1,
                "{}",
                reason.as_str()
            );
        }
    }
}
