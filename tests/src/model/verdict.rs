//! What becomes of a packet.

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Sent on by the programs.
    Forward,
    /// Left to the node's stack.
    Pass,
    /// Answered where it came in. Only probes are, and no model is made of them.
    Answer,
    /// Dropped and counted.
    Drop(Reason),
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident, $text:literal;)+) => {
        /// Why a packet is dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name under which the programs count it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// The packet ends before its headers do.
    Truncated, "truncated";
    /// Header fields contradict each other.
    Malformed, "malformed";
    /// A chain of IPv6 headers that is too long, in the wrong order, or holds what no router should meet.
    ExtensionHeader, "extension_header";
    /// Neither IP nor ARP.
    UnknownEtherType, "unknown_ethertype";
    /// A fragment of a datagram whose first one did not come, or did not go on.
    Fragment, "fragment";
    /// A first fragment without the whole transport header, or one that would overwrite it.
    FragmentTiny, "fragment_tiny";
    /// A fragment of bytes that another one had, or one hole too many to remember.
    FragmentOverlap, "fragment_overlap";
    /// The port belongs to no zone.
    NoZone, "no_zone";
    /// No ruleset is loaded.
    NoRuleset, "no_ruleset";
    /// No rule matches.
    NoRule, "no_rule";
    /// A rule drops it.
    Rule, "rule";
    /// TCP that belongs to no flow and is not a SYN.
    NotSyn, "not_syn";
    /// TCP flags that no stack sends.
    TcpFlags, "tcp_flags";
    /// A segment that the flow's state does not allow.
    TcpState, "tcp_state";
    /// A segment outside the window.
    TcpWindow, "tcp_window";
    /// A RST older than what its sender has been acknowledged.
    TcpReset, "tcp_reset";
    /// An SCTP packet with a wrong verification tag.
    SctpTag, "sctp_tag";
    /// An SCTP packet that the association's state does not allow.
    SctpState, "sctp_state";
    /// An ICMP message that is neither a query of a flow nor an error.
    Icmp, "icmp";
    /// An ICMP error about a packet of no flow.
    IcmpUnrelated, "icmp_unrelated";
    /// Another node's.
    NotOwner, "not_owner";
    /// This node's, but its lease ran out.
    LeaseExpired, "lease_expired";
    /// The main table is full.
    TableFull, "table_full";
    /// In by, or out by, another zone than the flow's.
    WrongZone, "wrong_zone";
    /// The route leads nowhere.
    NoRoute, "no_route";
    /// The route leads out of a port of no zone.
    RouteNoZone, "route_no_zone";
    /// A frame for another station.
    OtherStation, "other_station";
    /// A source that is not reached by the port where it came in.
    Spoofed, "spoofed";
    /// A source that no host may have.
    Martian, "martian";
    /// From an end to itself.
    Land, "land";
}
