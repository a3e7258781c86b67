//! Flows: what they are known by, what state they are in, how long they live.

use std::net::IpAddr;

use super::environment::Zone;
use super::{sctp, tcp};

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// VRRP.
    pub const VRRP: u8 = 112;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// Which way a packet goes in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the originator to the responder.
    Original = 0,
    /// From the responder to the originator.
    Reply = 1,
}

impl Direction {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// An end of a flow: address, and port or what stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Address.
    pub address: IpAddr,
    /// Port; identifier of an ICMP query, at the end that asks; half of a GRE key; 0.
    pub port: u16,
}

/// What both directions of a flow have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The lower end.
    pub low: End,
    /// The higher end.
    pub high: End,
    /// IP protocol.
    pub protocol: u8,
}

/// The key of a packet, and which of its ends sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The key.
    pub key: Key,
    /// Whether the higher end sent it.
    pub from_high: bool,
}

impl Tuple {
    /// Of a packet from one end to another.
    pub fn new(source: End, destination: End, protocol: u8) -> Self {
        let (low, high) = (source.min(destination), source.max(destination));
        Self { key: Key { low, high, protocol }, from_high: source > destination }
    }

    /// Of keyed GRE: the key's halves, that of the lower address first.
    pub fn gre(source: IpAddr, destination: IpAddr, key: u32) -> Self {
        let low = End { address: source.min(destination), port: (key >> 16) as u16 };
        let high = End { address: source.max(destination), port: key as u16 };
        Self { key: Key { low, high, protocol: protocol::GRE }, from_high: source > destination }
    }
}

macro_rules! states {
    ($($(#[doc = $doc:literal])+ $name:ident, $text:literal;)+) => {
        /// The state of a flow.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum State {
            $($(#[doc = $doc])+ $name,)+
        }

        impl State {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The name that commands print.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

states! {
    /// TCP: the originator's SYN was seen.
    SynSent, "syn-sent";
    /// TCP: both ends sent a SYN.
    SynSent2, "syn-sent2";
    /// TCP: the SYN was answered.
    SynRecv, "syn-recv";
    /// TCP: the handshake is complete. SCTP: the cookie was acknowledged.
    Established, "established";
    /// TCP: the first FIN was seen.
    FinWait, "fin-wait";
    /// TCP: the first FIN was acknowledged.
    CloseWait, "close-wait";
    /// TCP: both FINs were seen.
    LastAck, "last-ack";
    /// TCP: the last FIN was acknowledged.
    TimeWait, "time-wait";
    /// TCP: reset. SCTP: at its end.
    Close, "close";
    /// SCTP: INIT was seen.
    CookieWait, "cookie-wait";
    /// SCTP: the cookie came back.
    CookieEchoed, "cookie-echoed";
    /// SCTP: the originator shuts down.
    ShutdownSent, "shutdown-sent";
    /// SCTP: the responder shuts down.
    ShutdownRecd, "shutdown-recd";
    /// SCTP: the shutdown was acknowledged.
    ShutdownAckSent, "shutdown-ack-sent";
    /// Others: no answer yet.
    Unreplied, "unreplied";
    /// Others: answered.
    Replied, "replied";
    /// Others, but not ICMP: a stream.
    Assured, "assured";
}

/// After how long a UDP flow that is still used counts as a stream (`nf_conntrack_proto_udp.c`).
pub const STREAM_AFTER_NS: u64 = 2 * SECOND_NS;

/// A second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// How long a TCP connection lives at most if there is a [`tcp::Doubt`]: the kernel's default for each.
pub const DOUBTFUL_NS: u64 = 300 * SECOND_NS;

/// How long a flow lives after its last packet: the kernel's defaults, in ns.
pub fn timeout_ns(protocol: u8, state: State) -> u64 {
    use State::*;
    let seconds = match (protocol, state) {
        (protocol::TCP, SynSent | SynSent2) => 120,
        (protocol::TCP, SynRecv) => 60,
        (protocol::TCP, Established) => 432_000,
        (protocol::TCP, FinWait) => 120,
        (protocol::TCP, CloseWait) => 60,
        (protocol::TCP, LastAck) => 30,
        (protocol::TCP, TimeWait) => 120,
        (protocol::TCP, _) => 10,
        (protocol::UDP | protocol::UDP_LITE, Assured) => 120,
        (protocol::UDP | protocol::UDP_LITE, _) => 30,
        (protocol::ICMP | protocol::ICMPV6, _) => 30,
        (protocol::SCTP, Established) => 210,
        (protocol::SCTP, Close) => 10,
        (protocol::SCTP, _) => 3,
        (protocol::DCCP, Assured) => 43_200,
        (protocol::DCCP, Replied) => 480,
        (protocol::DCCP, _) => 240,
        (protocol::GRE, Unreplied) => 30,
        (protocol::GRE, _) => 180,
        _ => 600,
    };
    seconds * SECOND_NS
}

/// What is remembered of a protocol that has connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// TCP.
    Tcp(tcp::Connection),
    /// SCTP.
    Sctp(sctp::Association),
    /// Any other protocol: the state is all there is.
    Plain(State),
}

/// A flow. Pairs are by [`Direction`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Counts up with every flow: the same key used again is another flow.
    pub identity: u64,
    /// Whether the higher end of the key began it.
    pub originator_is_high: bool,
    /// Zones of the originator and of the responder; `None` is the node.
    pub zones: [Option<Zone>; 2],
    /// Its protocol's state.
    pub tracking: Tracking,
    /// From a peer.
    pub inherited: bool,
    /// When it began.
    pub created_ns: u64,
    /// When the last packet of each direction came, if any came here.
    pub seen_ns: [Option<u64>; 2],
    /// Packets of each direction.
    pub packets: [u64; 2],
    /// Bytes of each direction, at layer 3.
    pub bytes: [u64; 2],
}

impl Flow {
    /// Its state.
    pub fn state(&self) -> State {
        match &self.tracking {
            Tracking::Tcp(connection) => connection.state,
            Tracking::Sctp(association) => association.state,
            Tracking::Plain(state) => *state,
        }
    }

    /// Whether it lives on only for what is still under way.
    pub fn is_over(&self) -> bool {
        match &self.tracking {
            Tracking::Tcp(connection) => connection.is_over(),
            Tracking::Sctp(association) => association.state == State::Close,
            Tracking::Plain(_) => false,
        }
    }

    /// Whether its time is not over.
    pub fn lives(&self, protocol: u8, now_ns: u64, owned_since_ns: u64) -> bool {
        let seen = self.seen_ns.into_iter().flatten().fold(owned_since_ns, u64::max);
        // Those of the node itself: as long as the longest may.
        let of_node = self.zones.contains(&None);
        let timeout =
            if of_node { timeout_ns(protocol, State::Established) } else { self.timeout_ns(protocol) };
        now_ns < seen.saturating_add(timeout)
    }

    /// How long it lives after its last packet.
    pub fn timeout_ns(&self, protocol: u8) -> u64 {
        let by_state = timeout_ns(protocol, self.state());
        match &self.tracking {
            Tracking::Tcp(connection) if connection.doubt().is_some() => by_state.min(DOUBTFUL_NS),
            _ => by_state,
        }
    }

    /// Which way the packets of an end go.
    pub fn direction(&self, tuple: &Tuple) -> Direction {
        if tuple.from_high == self.originator_is_high { Direction::Original } else { Direction::Reply }
    }

    /// Counts a packet.
    pub fn count(&mut self, direction: Direction, bytes: usize, now_ns: u64) {
        if let Tracking::Tcp(connection) = &mut self.tracking {
            connection.heard(direction);
        }
        self.seen_ns[direction as usize] = Some(now_ns);
        self.packets[direction as usize] += 1;
        self.bytes[direction as usize] += bytes as u64;
    }

    /// Whether packets of both directions came here.
    pub fn seen_both_ways(&self) -> bool {
        self.seen_ns.iter().all(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_have_one_key() {
        let a = End { address: [10, 0, 0, 1].into(), port: 80 };
        let b = End { address: [9, 0, 0, 1].into(), port: 4000 };
        let same = End { port: 79, ..a };
        let key = |source, destination, protocol| Tuple::new(source, destination, protocol).key;
        assert_eq!(key(a, b, 6), key(b, a, 6));
        assert_ne!(key(a, b, 6), key(a, b, 17));
        assert_eq!(key(a, same, 6).low, same, "one address: the lower port is the lower end");
        assert!(Tuple::new(a, b, 6).from_high && !Tuple::new(b, a, 6).from_high);
        let gre = Tuple::gre(a.address, b.address, 0x0001_0002).key;
        assert_eq!(gre, Tuple::gre(b.address, a.address, 0x0001_0002).key);
        assert_eq!((gre.low.port, gre.high.port), (1, 2));
    }
}
