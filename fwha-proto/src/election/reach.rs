//! Who is better placed in a zone: heartbeats arrive, but advertisements or probes there do not.
//!
//! A path in a zone that is lost says nothing of which end is to blame. So both nodes ask the zone's
//! neighbours, the same ones, and tell each other by heartbeat ([`ZoneReach`]) whether any answers and
//! whom they hear there themselves.
//!
//! - An Active *begins* when a candidate does not hear its advertisements, or does not answer its probes
//!   in a zone where it has answered before. The others ask while one says that it has a reason to.
//! - Of [`FALL`] rounds without any answer a node concludes that it reaches nobody; of [`RISE`] with one
//!   that it is well. After having been unwell it takes [`RETURN`], and twice as many after each relapse.
//! - That counts as a fault, as a shared tracker's does (see [`super::trackers`]): only while another member is
//!   *known* to be well there, for a grace, and if the last round found nobody, either. If neither reaches anybody, or
//!   both do, nothing moves. A node that does not tell, because it is of an earlier version, is not known to be well.
//!
//! Neighbours are those that a node's kernel knows, IPv4 alone: a Backup knows few, so each tells the others of
//! some. Where nobody is known nothing is concluded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::Election;
use super::output::{Event, Output};
use super::peer::Peer;
use crate::NodeId;
use crate::heartbeat::{MAX_NEIGHBOURS, Via, ZoneReach};
use crate::time::Time;
use crate::tracker::State;

/// Between two rounds.
pub const ROUND: Duration = Duration::from_millis(300);
/// How long a round listens.
pub const LISTEN: Duration = Duration::from_millis(250);
/// Rounds without an answer after which a node is unwell.
pub const FALL: u32 = 3;
/// Rounds with an answer after which one that was not is well.
pub const RISE: u32 = 2;
/// The same after it was unwell.
pub const RETURN: u32 = 10;
/// The return is doubled this often at most.
const RELAPSES_MAX: u32 = 5;
/// After this long a relapse is forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// Whom a node has not heard for this long it does not hear: some rounds.
const HEARD: Duration = Duration::from_millis(1000);
/// Neighbours that are asked in a round.
const ASKED_MAX: usize = 8;

/// What a round found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Neighbours that this node knows by itself.
    pub neighbours: Vec<Ipv4Addr>,
    /// How many were asked.
    pub asked: usize,
    /// How many of them answered.
    pub answered: usize,
    /// The nodes that were heard.
    pub heard: Vec<NodeId>,
}

/// Which way frames go between this node and a peer in a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Both.
    Both,
    /// The peer does not hear this node.
    Unheard,
    /// This node does not hear the peer.
    Deaf,
    /// Neither.
    Cut,
}

impl Path {
    /// The name under which programs see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Unheard => "unheard",
            Self::Deaf => "deaf",
            Self::Cut => "cut",
        }
    }

    fn of(hears: bool, is_heard: bool) -> Self {
        match (hears, is_heard) {
            (true, true) => Self::Both,
            (true, false) => Self::Unheard,
            (false, true) => Self::Deaf,
            (false, false) => Self::Cut,
        }
    }
}

/// How this node is placed in a zone, while that is in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachStatus {
    /// The zone.
    pub zone: u8,
    /// Up if neighbours answer.
    pub state: State,
    /// Since when.
    pub since: Time,
    /// Neighbours asked in the last round, and those of them that answered.
    pub neighbours: (usize, usize),
    /// Peers, and which way frames go.
    pub paths: Vec<(NodeId, Path)>,
}

#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Rounds are made.
    surveys: bool,
    /// This node has a reason of its own.
    need: bool,
    began: Time,
    due: Time,
    state: State,
    since: Time,
    /// Rounds in a row that found the same.
    row: (bool, u32),
    relapses: u32,
    fell: Time,
    last: Survey,
    heard: BTreeMap<NodeId, Time>,
    /// What was told of each peer, and what the last round would tell.
    paths: BTreeMap<NodeId, (Path, Path)>,
}

impl Reach {
    fn take(&mut self, now: Time, good: bool) -> bool {
        self.row = if self.row.0 == good { (good, self.row.1 + 1) } else { (good, 1) };
        let back = RETURN << self.relapses.saturating_sub(1).min(RELAPSES_MAX);
        let to = match (self.state, self.row) {
            (State::Unknown | State::Up, (false, FALL..)) => State::Down,
            (State::Unknown, (true, RISE..)) => State::Up,
            (State::Down, (true, row)) if row >= back => State::Up,
            _ => return false,
        };
        if to == State::Down {
            self.relapses = if now.since(self.fell) < FORGET { self.relapses + 1 } else { 1 };
            self.fell = now;
        }
        (self.state, self.since) = (to, now);
        true
    }

    fn hears(&self, now: Time, node: NodeId) -> bool {
        self.heard.get(&node).is_some_and(|&at| now.since(at) < HEARD)
    }
}

impl Election {
    /// A round of questions in a zone is over.
    pub fn surveyed(&mut self, now: Time, zone: u8, survey: Survey) {
        self.advance(now);
        let Some(reach) = self.reaches.get_mut(&zone).filter(|r| r.surveys) else { return };
        for &node in &survey.heard {
            reach.heard.insert(node, now);
        }
        let (asked, good) = (survey.asked, survey.answered > 0);
        reach.last = survey;
        if asked > 0 && reach.take(now, good) {
            (self.judge_due, self.beat_due) = (true, true);
        }
        self.judge_paths(zone);
    }

    /// An advertisement of a peer came in.
    pub(super) fn heard_in(&mut self, zone: u8, node: NodeId) {
        let now = self.clock;
        if let Some(reach) = self.reaches.get_mut(&zone).filter(|r| r.surveys) {
            reach.heard.insert(node, now);
        }
    }

    /// What a peer says of a zone. It may have missed a beat.
    fn told_of(&self, node: NodeId, zone: u8) -> Option<&ZoneReach> {
        let lately = |at| self.clock.since(at) < HEARD;
        let peer = self.peer(node).filter(|p| p.alive() || p.suspicion.heard().is_some_and(lately))?;
        peer.last.as_ref()?.reaches.iter().find(|r| r.zone == zone)
    }

    /// Names paths that are lost one way, and those that are whole again. A change must show in two rounds.
    fn judge_paths(&mut self, zone: u8) {
        let (now, me) = (self.clock, self.me());
        let Some(reach) = self.reaches.get(&zone).filter(|r| now >= r.began + HEARD) else { return };
        let path = |node| {
            let told = self.told_of(node, zone)?;
            Some((node, Path::of(reach.hears(now, node), told.hears & 1 << me != 0)))
        };
        let found: Vec<_> = self.peers.iter().filter_map(|p| path(p.node)).collect();
        for (peer, path) in found {
            let Some(reach) = self.reaches.get_mut(&zone) else { return };
            let (told, last) = reach.paths.entry(peer).or_insert((Path::Both, Path::Both));
            let lasts = std::mem::replace(last, path) == path;
            if lasts && *told != path {
                *told = path;
                self.event(Event::Path { zone, peer, path });
            }
        }
    }

    /// The zones whose reach this node has a reason to compare.
    fn needed_surveys(&self, now: Time) -> BTreeSet<u8> {
        let mut zones = BTreeSet::new();
        for group in self.groups.iter().filter(|g| g.is_active()) {
            let lately = |at| now.since(at) < HEARD;
            let here = |p: &&Peer| p.alive() || p.suspicion.heard().is_some_and(lately);
            let others = || group.others().filter_map(|node| self.peer(node)).filter(here);
            for (i, instance) in group.config.instances.iter().enumerate() {
                let unheard = |node| group.unheard.get(&(node, i)).is_some_and(|unheard| unheard.told);
                if others().any(|p| unheard(p.node) || p.suspicion.is_quiet(now, instance.zone)) {
                    zones.insert(instance.zone);
                }
            }
        }
        zones.extend(
            self.reaches.iter().filter(|(_, r)| r.surveys && r.state == State::Down).map(|(z, _)| *z),
        );
        zones
    }

    /// Begins, goes on with and ends rounds of questions.
    pub(super) fn survey_zones(&mut self, now: Time) {
        let needed = self.needed_surveys(now);
        let told = |p: &Peer| p.last.as_ref().is_some_and(|heartbeat| !heartbeat.reaches.is_empty());
        if needed.is_empty() && self.reaches.is_empty() && !self.peers.iter().any(told) {
            return;
        }
        for (via, interface) in self.config.interfaces.clone() {
            let Via::Zone(zone) = via else { continue };
            let need = needed.contains(&zone);
            let told = self.peers.iter().any(|p| self.told_of(p.node, zone).is_some_and(|r| r.need));
            if !need && !told && !self.reaches.contains_key(&zone) {
                continue;
            }
            let reach = self.reaches.entry(zone).or_default();
            if reach.need != need || reach.surveys != (need || told) {
                self.beat_due = true;
            }
            reach.need = need;
            if !need && !told {
                if reach.surveys {
                    (reach.surveys, reach.state, reach.row) = (false, State::Unknown, (false, 0));
                    reach.heard.clear();
                    let lost =
                        std::mem::take(&mut reach.paths).into_iter().filter(|(_, p)| p.0 != Path::Both);
                    for (peer, _) in lost {
                        self.event(Event::Path { zone, peer, path: Path::Both });
                    }
                }
                continue;
            }
            if !reach.surveys {
                (reach.surveys, reach.began, reach.since, reach.due) = (true, now, now, now);
            }
            if now < reach.due || !interface.carrier {
                continue;
            }
            reach.due = now + ROUND;
            self.survey(zone);
        }
    }

    fn survey(&mut self, zone: u8) {
        let mut own: Vec<Ipv4Addr> = Vec::new();
        let known = self.config.interfaces.iter().filter(|(via, _)| *via == Via::Zone(zone));
        own.extend(known.map(|(_, i)| i.address));
        let instances = self.groups.iter().flat_map(|g| &g.config.instances).filter(|i| i.zone == zone);
        own.extend(instances.flat_map(|i| &i.addresses).filter_map(|a| match a {
            IpAddr::V4(a) => Some(*a),
            IpAddr::V6(_) => None,
        }));
        let mut peers = Vec::new();
        let mut ask = BTreeSet::new();
        for peer in &self.peers {
            if let Some(interface) = peer.interface(Via::Zone(zone)) {
                own.push(interface.address);
                peers.push((peer.node, interface.mac));
            }
            ask.extend(self.told_of(peer.node, zone).into_iter().flat_map(|r| &r.neighbours).copied());
        }
        let ask = ask.into_iter().filter(|a| !own.contains(a)).take(ASKED_MAX).collect();
        self.counters.count("reach", "rounds");
        self.out.push_back(Output::Survey { zone, ask, own, peers });
    }

    /// When a round is due.
    pub(super) fn survey_due(&self) -> Option<Time> {
        let carrier = |zone| self.config.interfaces.iter().any(|(v, i)| *v == Via::Zone(zone) && i.carrier);
        self.reaches.iter().filter(|(zone, r)| r.surveys && carrier(**zone)).map(|(_, r)| r.due).min()
    }

    /// For heartbeats.
    pub(super) fn zone_reaches(&self) -> Vec<ZoneReach> {
        let now = self.clock;
        let one = |(&zone, reach): (&u8, &Reach)| ZoneReach {
            zone,
            need: reach.need,
            state: reach.state,
            hears: reach.heard.keys().filter(|n| reach.hears(now, **n)).fold(0, |bits, n| bits | 1 << n),
            neighbours: reach.last.neighbours.iter().copied().take(MAX_NEIGHBOURS).collect(),
        };
        self.reaches.iter().filter(|(_, r)| r.surveys).map(one).collect()
    }

    /// The zones of a group in which this node reaches nobody, although it has a carrier.
    pub(super) fn unreached_zones(&self, g: usize) -> impl Iterator<Item = u8> {
        self.zones_of(g).filter(|zone| self.is_unreached(*zone))
    }

    fn is_unreached(&self, zone: u8) -> bool {
        let down = self.reaches.get(&zone).is_some_and(|r| r.state == State::Down);
        down && !self.is_cut(self.me(), zone)
    }

    /// Whether the last round in a zone found somebody.
    pub(super) fn is_answered(&self, zone: u8) -> bool {
        self.reaches.get(&zone).is_some_and(|reach| reach.row.0)
    }

    /// The zones of a group, each once.
    pub(super) fn zones_of(&self, g: usize) -> impl Iterator<Item = u8> {
        let instances = &self.groups[g].config.instances;
        let first = |&(i, zone): &(usize, u8)| instances[..i].iter().all(|before| before.zone != zone);
        instances.iter().map(|i| i.zone).enumerate().filter(first).map(|(_, zone)| zone)
    }

    /// Whether this node is known to reach somebody in a zone.
    pub(super) fn is_well_placed(&self, zone: u8) -> bool {
        self.reaches.get(&zone).is_some_and(|r| r.state == State::Up)
    }

    /// Whether a node reaches nobody in a zone, or is another one that is not known to be better placed than this one.
    pub(super) fn is_badly_placed(&self, node: NodeId, zone: u8) -> bool {
        match self.told_of(node, zone).map(|r| r.state) {
            Some(State::Down) => true,
            Some(State::Up) => false,
            _ => self.is_unreached(zone),
        }
    }

    /// What is to be said of a zone in which this node reaches nobody.
    pub(super) fn reach_text(&self, zone: u8) -> String {
        let asked = self.reaches.get(&zone).map_or(0, |r| r.last.asked);
        format!("{}: none of {asked} neighbours answers, and another node reaches some", self.zone_name(zone))
    }

    pub(super) fn zone_name(&self, zone: u8) -> String {
        self.config.via_name(Via::Zone(zone))
    }

    /// How this node is placed where that is in question.
    pub(super) fn reach_status(&self) -> Vec<ReachStatus> {
        let one = |(&zone, reach): (&u8, &Reach)| ReachStatus {
            zone,
            state: reach.state,
            since: reach.since,
            neighbours: (reach.last.asked, reach.last.answered),
            paths: reach.paths.iter().map(|(&node, &(told, _))| (node, told)).collect(),
        };
        self.reaches.iter().filter(|(_, r)| r.surveys).map(one).collect()
    }
}
