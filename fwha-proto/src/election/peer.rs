//! One other node: its channel, its links, what it last said, and whether it lives.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use fwha_common::probe::{Probe, ProbeKind};

use super::config::{Config, GroupId};
use super::suspicion::{Answer, Suspicion};
use crate::NodeId;
use crate::heartbeat::{GroupRecord, Heartbeat, Interface, NodeState, PeerState, Role, Via};
use crate::seal::{Channel, OpenError, Purpose};
use crate::time::Time;

/// Between hellos while the channel is closed or the peer is silent.
pub const HELLO_INTERVAL: Duration = Duration::from_millis(50);
/// Between two hellos that offer a peer the newest cluster key.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Hellos sent in answer to others within one interval: a flood of replayed ones must not be
/// answered one by one.
const HELLO_REPLIES: u8 = 8;
/// For so long after an advertisement from an address that is nobody's, members that were never heard are asked.
const SIGN_LASTS: Duration = Duration::from_secs(3);
/// Probes whose answers are awaited.
const PROBES_MAX: usize = 256;

/// A sync link as seen from here.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its number.
    pub link: u8,
    /// When the last heartbeat came over it.
    pub heard: Option<Time>,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Heartbeats received over it.
    pub received: u64,
    stamp: u64,
    stamp_at: Time,
}

pub(super) struct Peer {
    pub node: NodeId,
    pub channel: Channel,
    pub suspicion: Suspicion,
    pub links: Vec<Link>,
    /// The newest heartbeat.
    pub last: Option<Heartbeat>,
    sequence: u64,
    /// Our replica of its flows is complete; from replication.
    pub in_sync: bool,
    /// How much of its replication is applied here; from replication.
    pub applied: u64,
    /// Why its last datagram was refused, until one is accepted.
    pub refused: Option<OpenError>,
    pub hello_due: Time,
    /// When it is offered the newest cluster key again, if it has not shown it.
    pub renew_due: Time,
    hello_replies: u8,
    /// How it was lost when it was last: the state that says most, and in words.
    pub lost: Option<(PeerState, String)>,
    /// It says that it does not hear us.
    pub deaf: bool,
    /// The config hash that was reported as different.
    pub other_config: Option<u64>,
    /// When an advertisement was heard that may be its own, from an address that is nobody's.
    pub sign: Option<Time>,
    /// Nonce, interface, round and time of probes whose answers are awaited.
    probes: VecDeque<(u64, Via, u64, Time)>,
}

impl Peer {
    pub fn new(now: Time, config: &Config, node: NodeId) -> Self {
        let links = config.interfaces.iter().filter_map(|(via, _)| match *via {
            Via::Sync(link) => {
                Some(Link { link, heard: None, rtt: None, received: 0, stamp: 0, stamp_at: now })
            }
            Via::Zone(_) => None,
        });
        Self {
            node,
            channel: Channel::new(config.keys.clone(), Purpose::Heartbeat, config.identity, node),
            suspicion: Suspicion::new(now, config.heartbeat_interval),
            links: links.collect(),
            last: None,
            sequence: 0,
            in_sync: false,
            applied: 0,
            refused: None,
            hello_due: now,
            renew_due: now,
            hello_replies: 0,
            lost: None,
            deaf: false,
            other_config: None,
            sign: None,
            probes: VecDeque::new(),
        }
    }

    pub const fn state(&self) -> PeerState {
        self.suspicion.state()
    }

    pub fn alive(&self) -> bool {
        self.state() == PeerState::Alive
    }

    /// Whether it has another cluster file, as far as is known.
    pub fn config_differs(&self, hash: u64) -> bool {
        self.last.as_ref().is_some_and(|h| h.config_hash != hash)
    }

    /// Whether its data plane answers that it owns something, although no heartbeat gets here.
    pub fn owns(&self, now: Time) -> bool {
        self.state() == PeerState::SyncLost && !self.suspicion.lapsed(now)
    }

    /// What it last said of a group.
    pub fn group(&self, group: GroupId) -> Option<&GroupRecord> {
        self.last.as_ref()?.groups.iter().find(|g| g.group == group)
    }

    /// The groups for which it last said to be Active.
    pub fn active_groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        let groups = self.last.iter().flat_map(|h| &h.groups);
        groups.filter(|g| g.role == Role::Active).map(|g| g.group)
    }

    pub fn interface(&self, via: Via) -> Option<&Interface> {
        self.last.as_ref()?.interfaces.iter().find(|(v, _)| *v == via).map(|(_, i)| i)
    }

    /// Whether it is known to send from `src` in `zone`; `None` if that is not known.
    pub fn sends_from(&self, zone: u8, src: IpAddr) -> Option<bool> {
        self.interface(Via::Zone(zone))?.source(src.is_ipv6()).map(|source| source == src)
    }

    /// The session is new: what it counts starts again.
    pub fn new_session(&mut self) {
        self.sequence = 0;
        for link in &mut self.links {
            link.stamp = 0;
        }
    }

    /// Whether one more hello may be sent in answer to one.
    pub fn may_answer_hello(&mut self, now: Time) -> bool {
        if now >= self.hello_due {
            self.hello_sent(now);
            return true;
        }
        self.hello_replies = self.hello_replies.saturating_add(1);
        self.hello_replies <= HELLO_REPLIES
    }

    pub fn hello_sent(&mut self, now: Time) {
        self.hello_due = now + HELLO_INTERVAL;
        self.hello_replies = 0;
    }

    /// Takes a heartbeat; false if a newer one came before it.
    pub fn heartbeat(&mut self, now: Time, link: u8, heartbeat: Heartbeat) -> bool {
        if heartbeat.sequence < self.sequence {
            return false;
        }
        if let Some(l) = self.links.iter_mut().find(|l| l.link == link) {
            l.heard = l.heard.max(Some(now));
            l.received += 1;
            l.stamp = heartbeat.stamp;
            l.stamp_at = now;
            let held = Duration::from_micros(u64::from(heartbeat.echo_held_us));
            let trip = now.since(Time::from_nanos(heartbeat.echo) + held);
            if heartbeat.echo != 0 && !trip.is_zero() && trip < Duration::from_secs(10) {
                l.rtt = Some(l.rtt.map_or(trip, |rtt| (rtt * 7 + trip) / 8));
            }
        }
        self.refused = None;
        if heartbeat.sequence > self.sequence || self.last.is_none() {
            self.sequence = heartbeat.sequence;
            let owns = heartbeat.groups.iter().any(|g| g.role == Role::Active);
            let lease = if owns { Duration::from_millis(heartbeat.lease_ms.into()) } else { Duration::ZERO };
            let interval = Duration::from_micros(heartbeat.interval_us.into());
            let left = heartbeat.node == NodeState::Leaving && !owns;
            self.suspicion.heartbeat(now, interval, lease, left);
            self.last = Some(heartbeat);
        }
        true
    }

    /// The stamp to send back on `link`, and for how long it was held.
    pub fn echo(&self, now: Time, link: u8) -> (u64, u32) {
        let found = self.links.iter().find(|l| l.link == link && l.stamp != 0);
        found.map_or((0, 0), |l| {
            (l.stamp, u32::try_from(now.since(l.stamp_at).as_micros()).unwrap_or(u32::MAX))
        })
    }

    /// The interfaces on which it can be asked, with its MAC addresses there: both ends know one,
    /// and ours has a carrier. One that was never heard is asked by broadcast in the zones, if something there
    /// may be its own.
    pub fn paths(&self, now: Time, own: &[(Via, Interface)]) -> Vec<(Via, [u8; 6])> {
        let lately = self.sign.is_some_and(|at| now.since(at) < SIGN_LASTS);
        let by_broadcast = self.last.is_none() && (lately || self.state() != PeerState::Unknown);
        let mac = |via| match (self.interface(via), via) {
            (None, Via::Zone(_)) if by_broadcast => Some([0xff; 6]),
            (interface, _) => interface.map(|i| i.mac),
        };
        own.iter()
            .filter(|(_, i)| i.carrier)
            .filter_map(|(via, _)| Some((*via, mac(*via)?)))
            .filter(|(_, mac)| *mac != [0; 6])
            .collect()
    }

    /// A probe for the present round.
    pub fn probe(&mut self, now: Time, config: &Config, via: Via, nonce: u64) -> Probe {
        if self.probes.len() == PROBES_MAX {
            self.probes.pop_front();
        }
        self.probes.push_back((nonce, via, self.suspicion.round(), now));
        let me = config.identity;
        Probe::request(&config.probe_key, me.cluster, me.node, self.node, nonce)
    }

    /// Takes a reply; false if it answers no probe of ours.
    pub fn reply(&mut self, now: Time, config: &Config, via: Via, reply: &Probe) -> bool {
        let me = config.identity;
        let nonce = u64::from_le_bytes(reply.nonce);
        let meant = reply.kind == ProbeKind::Reply as u8
            && (reply.from, reply.to) == (self.node, me.node)
            && reply.cluster == me.cluster.to_le_bytes()
            && reply.valid(&config.probe_key);
        let Some(at) = self.probes.iter().position(|p| (p.0, p.1) == (nonce, via)).filter(|_| meant) else {
            return false;
        };
        let Some((_, _, round, sent)) = self.probes.remove(at) else {
            return false;
        };
        let lease = Duration::from_millis(u32::from_le_bytes(reply.lease_ms).into());
        let lease = (reply.flags & Probe::OWNS != 0 && !lease.is_zero()).then_some(lease);
        self.suspicion.answer(now, Answer { round, via, trip: now.since(sent), lease });
        true
    }
}
