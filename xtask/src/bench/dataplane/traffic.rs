//! Kinds of packets, and how a conversation goes.
//!
//! A TCP conversation that a window tracker can follow, without a note of how far each flow has come: both sides
//! offer a window of 1 GiB (scale 14), each sends one segment [`LEAP`] bytes ahead, and from there on all flows move with
//! one clock, a few bytes a packet. A sender then acknowledges less than the other has sent, and sends less than the
//! other has room for, however long ago the flow had its last packet.

use std::ops::Range;

use fwha_common::flow::proto;

const SYN: u64 = 0x02;
const ACK: u64 = 0x10;

/// How far ahead both sides are once flows are established, in bytes: half a window.
pub const LEAP: u64 = 1 << 29;
/// Bytes of payload in a packet of a conversation.
const PAYLOAD: u64 = 6;

/// Number from which on no flow is established.
const STRANGERS: u64 = 1 << 25;
/// Number from which on each flow is new once: none of the strangers, or one of these might still be known.
const FRESH: u64 = 1 << 26;

/// Packets that differ in their flow only.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// 4 or 6.
    pub family: u64,
    /// IP protocol.
    pub proto: u64,
    /// TCP flags.
    pub flags: u64,
    /// From the server to the client.
    pub reply: bool,
    /// Number of the first flow.
    pub first: u64,
    /// Whether each packet is of a flow that never was before, and what the table of such flows then holds.
    pub fresh: Option<Embryonic>,
    /// Whether the conversation goes on with each packet.
    pub moving: bool,
    /// L4 payload in bytes.
    pub payload: u64,
    /// What the sender has sent of the sequence space.
    pub sent: u64,
    /// What it has heard of the other's.
    pub heard: u64,
    /// Whether the firewall forwards it; else it drops it.
    pub forwarded: bool,
}

/// What is in the table of new flows before one more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embryonic {
    /// Little: there is room.
    Room,
    /// So much that another flow has to go, as in a flood.
    Full,
}

/// Which flows get a packet.
#[derive(Clone, Debug)]
pub enum Place {
    /// Each of them, one.
    Sequence(Range<u32>),
    /// Some of the first `flows`, at random.
    Random {
        /// Of so many.
        flows: u32,
        /// Packets.
        packets: u32,
        /// With the same seed, the same flows in the same order.
        seed: u32,
    },
}

/// A step in the opening of a flow.
pub struct Opening {
    /// Its name; none where it only prepares.
    pub name: Option<&'static str>,
    /// The packet.
    pub traffic: Traffic,
}

/// Kinds of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
}

const STRANGER: Traffic = Traffic {
    family: 4,
    proto: proto::TCP as u64,
    flags: 0,
    reply: false,
    first: STRANGERS,
    fresh: None,
    moving: false,
    payload: 0,
    sent: 0,
    heard: 0,
    forwarded: false,
};

/// The first packet of a flow that is admitted.
pub const NEW: Traffic =
    Traffic { flags: SYN, first: FRESH, fresh: Some(Embryonic::Full), forwarded: true, ..STRANGER };

/// A packet that no rule admits, from outside.
pub const DENIED: Traffic = Traffic { flags: SYN, reply: true, ..STRANGER };

/// Packets of flows that are not established: a new one each time, in peace and in a flood; one that no rule admits,
/// from outside; one in the middle of a connection that nobody saw begin.
pub const OTHERS: [(&str, Traffic); 4] = [
    ("new flow (SYN)", Traffic { fresh: Some(Embryonic::Room), ..NEW }),
    ("the same, in a flood", NEW),
    ("denied (SYN)", DENIED),
    ("of no flow (ACK)", Traffic { flags: ACK, sent: 1, heard: 1, ..STRANGER }),
];

impl Kind {
    /// All kinds. UDP first: it has to wait for something.
    pub const ALL: [Self; 3] = [Self::Udp4, Self::Tcp4, Self::Tcp6];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp4 => "TCP, IPv4",
            Self::Tcp6 => "TCP, IPv6",
            Self::Udp4 => "UDP, IPv4",
        }
    }

    fn base(self) -> Traffic {
        let (family, proto) = match self {
            Self::Tcp4 => (4, proto::TCP),
            Self::Tcp6 => (6, proto::TCP),
            Self::Udp4 => (4, proto::UDP),
        };
        Traffic { family, proto: proto.into(), first: 0, forwarded: true, ..STRANGER }
    }

    /// The packets that open a flow and put it where [`Kind::both_ways`] goes on.
    pub fn opening(self) -> Vec<Opening> {
        let step = |name, traffic| Opening { name: Some(name), traffic };
        let base = self.base();
        let reply = Traffic { reply: true, ..base };
        if self == Self::Udp4 {
            return vec![step("first packet", base), step("answer", reply)];
        }
        let leap = Traffic { flags: ACK, payload: PAYLOAD, sent: 1 + LEAP, heard: 1, ..base };
        vec![
            step("SYN", Traffic { flags: SYN, ..base }),
            step("SYN+ACK", Traffic { flags: SYN | ACK, heard: 1, ..reply }),
            step("ACK", Traffic { flags: ACK, sent: 1, heard: 1, ..base }),
            // The responder first: the window in its SYN+ACK was not scaled yet.
            Opening { name: None, traffic: Traffic { reply: true, ..leap } },
            Opening { name: None, traffic: leap },
        ]
    }

    /// Packets of established flows, there and back.
    pub fn both_ways(self) -> [Traffic; 2] {
        let there = match self {
            Self::Udp4 => Traffic { payload: PAYLOAD, ..self.base() },
            _ => Traffic {
                flags: ACK,
                moving: true,
                payload: PAYLOAD,
                sent: 1 + LEAP,
                heard: 1,
                ..self.base()
            },
        };
        [there, Traffic { reply: true, ..there }]
    }
}
