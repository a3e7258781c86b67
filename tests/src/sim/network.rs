//! The network: one way for each pair of nodes, direction and sync link, with faults of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use fwha_proto::NodeId;
use fwha_proto::time::Time;

use super::node::Claims;
use crate::frames::{Random, mutate};

/// What a datagram needs at least.
const LATENCY: Duration = Duration::from_micros(100);
/// Of the copies that a way makes, one in so many is a recording that is played back later.
const RECORDING_ONE_IN: usize = 8;
/// How much later at most.
pub const RECORDING_AGE_MAX: Duration = Duration::from_secs(3);

/// What a way does to datagrams. Chances are in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Datagrams that do not arrive.
    pub loss: usize,
    /// Datagrams that arrive twice.
    pub duplicate: usize,
    /// Datagrams with changed bits, bytes or length.
    pub corrupt: usize,
    /// Additional latency of up to so much: what makes datagrams overtake each other.
    pub jitter: Duration,
}

/// One direction of one link between two nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// Nothing gets through.
    pub cut: bool,
    /// What happens to the rest.
    pub faults: Faults,
}

/// What a datagram is, and what belongs to it beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Voice {
    /// Replication.
    #[default]
    Replication,
    /// Heartbeats.
    Heartbeat,
    /// VRRP.
    Advert {
        /// The zone.
        zone: u8,
        /// From this address.
        src: IpAddr,
        /// To this one.
        dst: IpAddr,
    },
    /// A probe with this nonce. What else is in the frame is made again at its receiver.
    Request(u64),
    /// The answer to a probe.
    Reply {
        /// Its flags.
        flags: u8,
        /// How long the longest lease still runs.
        lease_ms: u32,
        /// The nonce of the request.
        nonce: u64,
    },
}

/// A datagram on its way.
#[derive(Clone, Debug, Default)]
pub struct Datagram {
    /// Sender.
    pub from: NodeId,
    /// Receiver.
    pub to: NodeId,
    /// Sync link.
    pub link: u8,
    /// What it carries.
    pub bytes: Vec<u8>,
    /// What the sender owned when it sent it: the authority of what it says.
    pub claims: Claims,
    /// What it is.
    pub voice: Voice,
    /// When it arrived, if it has waited in a socket since.
    pub arrived: Option<Time>,
}

/// See the module.
#[derive(Debug)]
pub struct Network {
    nodes: u8,
    links: u8,
    ways: Vec<Way>,
    air: BTreeMap<(Time, u64), Datagram>,
    sent: u64,
}

impl Network {
    /// A network without faults.
    pub fn new(nodes: u8, links: u8) -> Self {
        let ways = vec![Way::default(); usize::from(nodes) * usize::from(nodes) * usize::from(links)];
        Self { nodes, links, ways, air: BTreeMap::new(), sent: 0 }
    }

    /// Links of each pair.
    pub const fn links(&self) -> u8 {
        self.links
    }

    /// The way from one node to another over a link.
    pub fn way(&mut self, from: NodeId, to: NodeId, link: u8) -> &mut Way {
        let pair = usize::from(from - 1) * usize::from(self.nodes) + usize::from(to - 1);
        &mut self.ways[pair * usize::from(self.links) + usize::from(link)]
    }

    /// All ways.
    pub fn ways(&mut self) -> impl Iterator<Item = &mut Way> {
        self.ways.iter_mut()
    }

    /// Takes a datagram; what becomes of it.
    pub fn send(&mut self, now: Time, random: &mut Random, datagram: Datagram) -> &'static str {
        let way = *self.way(datagram.from, datagram.to, datagram.link);
        if way.cut {
            return "cut";
        }
        let faults = way.faults;
        if random.below(100) < faults.loss {
            return "lost";
        }
        let twice = random.below(100) < faults.duplicate;
        let mut fate = if twice { "twice" } else { "" };
        let second = twice.then(|| datagram.clone());
        for (copy, mut datagram) in [Some(datagram), second].into_iter().flatten().enumerate() {
            let sealed = matches!(datagram.voice, Voice::Replication | Voice::Heartbeat);
            if random.below(100) < faults.corrupt {
                if !sealed {
                    // Its checksum, or its frame's, is wrong.
                    fate = "garbled";
                    continue;
                }
                let changes = 1 + random.below(3);
                mutate(&mut datagram.bytes, random, changes, 1);
                fate = "garbled";
            }
            let late = if copy == 1 && sealed && random.once_in(RECORDING_ONE_IN) {
                RECORDING_AGE_MAX
            } else {
                faults.jitter
            };
            let late = Duration::from_nanos(random.below(late.as_nanos() as usize + 1) as u64);
            self.put(now + LATENCY + late, datagram);
        }
        fate
    }

    /// Puts a datagram into the air, to arrive then.
    pub fn put(&mut self, at: Time, datagram: Datagram) {
        self.sent += 1;
        self.air.insert((at, self.sent), datagram);
    }

    /// When the next datagram arrives.
    pub fn next(&self) -> Time {
        self.air.first_key_value().map_or(Time::NEVER, |(key, _)| key.0)
    }

    /// The next datagram that has arrived by now.
    pub fn arrival(&mut self, now: Time) -> Option<Datagram> {
        let entry = self.air.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}
