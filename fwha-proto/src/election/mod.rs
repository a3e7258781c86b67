//! Who is Active for each group, and who takes over when that node is lost.
//!
//! One [`Election`] is this node's part in all groups of the cluster. It listens to three voices:
//! *heartbeats* on the sync links, sealed, with all authority; *VRRP* on the zones, which decides
//! only where no authenticated peer is heard; and *probes*, which a peer's data plane answers
//! without its daemon.
//!
//! # Driving it
//!
//! 1. Deliver all input that has arrived ([`Election::heartbeat_datagram`],
//!    [`Election::vrrp_packet`], [`Election::probe_reply`], [`Election::witness_reply`], [`Election::interface`] and so on), each
//!    with the time of its arrival. These times may lie a little before that of an earlier call.
//! 2. If [`Election::next_timeout`] is not later than now, call [`Election::tick`]. Roles change
//!    here only, so no timer is believed before the packets that had arrived were read.
//! 3. Drain [`Election::poll`] and do what it says, in order. What a takeover says comes as
//!    [`Output::Advertise`], [`Output::Own`], heartbeats, [`Output::AddVips`],
//!    [`Output::Announce`].
//! 4. Sleep until [`Election::next_timeout`] or input.
//!
//! An Active that is not ticked for as long as its lease gives up the role in the next tick, since
//! its data plane has stopped forwarding and a peer may have taken over.
//!
//! | room | holds |
//! |---|---|
//! | [`config`] | what the election is told once |
//! | `peer`, [`suspicion`] | one other node: channel, links, and whether it lives |
//! | `group`, `decide`, `act` | one group, the policy, and how it is carried out |
//! | [`trackers`] | what this node watches, and whether that counts |
//! | [`reach`] | who is better placed in a zone |
//! | [`witness`] | who tells a lost peer from a node that is cut off |
//! | `adverts` | VRRP: what is sent, what is heard, what it counts for |
//! | `reload` | another cluster file, under way |
//! | [`output`] | outputs, events, errors, counters |
//! | [`status`], [`explain`] | a snapshot for people; why it is so |

mod act;
mod adverts;
pub mod config;
mod decide;
pub mod explain;
mod group;
pub mod output;
mod peer;
pub mod reach;
mod reload;
pub mod status;
pub mod suspicion;
pub mod trackers;
pub mod witness;

#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fwha_common::probe::Probe;
use fwha_common::rule::name_hash;

pub use self::config::{
    Announce, Config, ConfigError, Effect, GroupConfig, GroupId, Instance, NodeConfig, Start, TrackerConfig,
};
use self::group::{Claim, Group};
pub use self::group::{FAST_ADVERT_CS, Refusal};
pub use self::output::{CommandError, Counters, Event, Output};
use self::peer::Peer;
pub use self::peer::{HELLO_INTERVAL, Link, RENEW_INTERVAL};
use self::reach::Reach;
use self::status::Stranger;
use self::witness::{BACK, Witnesses};
use crate::heartbeat::{GroupRecord, Heartbeat, Interface, NodeState, PeerState, Role, Via};
use crate::seal::{Header, KeyRing, OpenError, Opened};
use crate::time::Time;
use crate::tracker::{Report, State};
use crate::{NodeId, TERM_LEAP_MAX};

/// Between two events about refused datagrams with the same reason.
const REFUSED_EVENT_INTERVAL: Duration = Duration::from_secs(10);
/// Heartbeats that say goodbye, so that one lost datagram does not make a dead node of a leaving one.
const FAREWELLS: u8 = 3;
/// This node slept if it did nothing for so many heartbeats.
const SLEPT_BEATS: u32 = 5;

/// See the module.
pub struct Election {
    config: Config,
    /// The latest time that any call carried.
    clock: Time,
    node: NodeState,
    peers: Vec<Peer>,
    groups: Vec<Group>,
    out: VecDeque<Output>,
    counters: Counters,
    sequence: u64,
    heartbeat_due: Time,
    /// When what is due was done last.
    ticked: Option<Time>,
    /// A heartbeat goes out at the end of this tick, whatever its time.
    beat_due: bool,
    /// Something was learned that the next tick must judge.
    judge_due: bool,
    nonce: u64,
    /// Goodbyes still to be said; then the election is over.
    farewells: u8,
    stopped: bool,
    refused_at: BTreeMap<&'static str, Time>,
    stranger: Option<Stranger>,
    /// How each tracker of the config stands.
    reports: Vec<Report>,
    witnesses: Witnesses,
    /// A moment, and what a clock on the wall showed then, since 1970.
    wall: (Time, Duration),
    /// By zone, where it was ever compared.
    reaches: BTreeMap<u8, Reach>,
}

impl Election {
    /// The election at its start: in every group Backup, or what [`Start`] and faults make of it.
    ///
    /// # Errors
    /// See [`Config::check`].
    pub fn new(now: Time, config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let me = config.identity.node;
        let others = config.nodes.iter().map(|n| n.node).filter(|&n| n != me);
        let peers = others.map(|node| Peer::new(now, &config, node)).collect();
        let groups: Vec<Group> = config.groups.iter().map(|g| Group::new(now, &config, g)).collect();
        let mut election = Self {
            clock: now,
            node: if config.standby { NodeState::Standby } else { NodeState::Running },
            peers,
            groups,
            out: VecDeque::new(),
            counters: Counters::default(),
            sequence: 0,
            heartbeat_due: now,
            ticked: None,
            beat_due: false,
            judge_due: true,
            nonce: config.identity.epoch,
            farewells: FAREWELLS,
            stopped: false,
            refused_at: BTreeMap::new(),
            stranger: None,
            reports: vec![Report { since: now, ..Report::default() }; config.trackers.len()],
            witnesses: Witnesses::new(now, &config.witnesses),
            reaches: BTreeMap::new(),
            wall: (now, Duration::ZERO),
            config,
        };
        election.judge_trackers(now);
        for g in 0..election.groups.len() {
            if election.groups[g].config.start.owned_since.is_some() && election.groups[g].place.is_some() {
                election.resume(g);
            }
        }
        Ok(election)
    }

    /// A datagram arrived on the heartbeat port of sync link `link`. It is opened in place.
    pub fn heartbeat_datagram(&mut self, now: Time, link: u8, datagram: &mut [u8]) {
        self.advance(now);
        let header = match Header::parse(datagram) {
            Ok(header) => header,
            Err(error) => return self.strange(link, 0, error),
        };
        let Some(p) = self.peers.iter().position(|p| p.node == header.sender) else {
            return self.strange(link, header.sender, OpenError::Misdirected);
        };
        let peer = &mut self.peers[p];
        match peer.channel.open(datagram) {
            Ok(Opened::Data(payload)) => match Heartbeat::parse(payload).map(|heard| self.by_name(heard)) {
                Ok(heartbeat) if self.leaps(&heartbeat) => {
                    self.refused(link, header.sender, "term", "claims a term that cannot have come about");
                }
                Ok(heartbeat) => self.heartbeat(now, p, link, heartbeat),
                Err(_) => self.counters.count("heartbeat_rx", "malformed"),
            },
            Ok(Opened::Hello { reply, new_session }) => {
                self.counters.count("heartbeat_rx", "hellos");
                if new_session {
                    peer.new_session();
                    peer.refused = None;
                }
                if reply && peer.may_answer_hello(now) {
                    let (peer, bytes) = (peer.node, peer.channel.hello());
                    self.out.push_back(Output::Heartbeat { link, peer, bytes });
                }
                if new_session {
                    // The peer hears of our roles at once, not at our next heartbeat.
                    (self.beat_due, self.judge_due) = (true, true);
                }
            }
            Err(error) => {
                // One end may hold a session that the other lost: shake hands again.
                let astray = matches!(error, OpenError::UnknownEpoch | OpenError::Forged);
                if astray && now >= peer.hello_due {
                    peer.hello_sent(now);
                    let (peer, bytes) = (peer.node, peer.channel.hello());
                    self.out.push_back(Output::Heartbeat { link, peer, bytes });
                }
                if !matches!(error, OpenError::Replayed | OpenError::UnknownEpoch) {
                    self.peers[p].refused = Some(error);
                }
                self.cannot_open(link, header.sender, error);
            }
        }
    }

    /// What a clock on the wall shows now, since 1970: for signed advertisements ([`crate::vrrp::hmac`]), and nothing
    /// else. To be told as often as it may be set.
    pub fn wall_clock(&mut self, now: Time, wall: Duration) {
        self.wall = (now, wall);
    }

    pub(super) fn wall(&self) -> Duration {
        self.wall.1 + self.clock.since(self.wall.0)
    }

    /// A probe frame arrived by `via` that is not a request. Requests are for the data plane.
    pub fn probe_reply(&mut self, now: Time, via: Via, reply: &Probe) {
        self.advance(now);
        let before = self.states();
        let peer = self.peers.iter_mut().find(|p| p.node == reply.from);
        let good = peer.is_some_and(|p| p.reply(now, &self.config, via, reply));
        self.counters.count("probe_rx", if good { "replies" } else { "refused" });
        self.tell_states(&before);
        self.judge_due = true;
    }

    /// An interface of this node changed: carrier, MAC or primary address.
    pub fn interface(&mut self, now: Time, via: Via, interface: Interface) {
        self.advance(now);
        let Some((_, known)) = self.config.interfaces.iter_mut().find(|(v, _)| *v == via) else {
            return;
        };
        let before = std::mem::replace(known, interface).carrier;
        self.judge_due = true;
        if before == interface.carrier {
            return;
        }
        // The peers compare: they hear of it at once.
        self.beat_due = true;
        if let (Via::Zone(zone), true) = (via, interface.carrier) {
            // Whoever answered nowhere may do so there.
            self.peers.iter_mut().for_each(|peer| peer.suspicion.doubt(now));
            // What is behind the cable may have forgotten the addresses, or never heard of them.
            for g in (0..self.groups.len()).filter(|&g| self.groups[g].is_active()).collect::<Vec<_>>() {
                if self.zones_of(g).any(|z| z == zone) {
                    self.announce(g);
                }
            }
        }
    }

    /// The carrier of an interface came or went.
    pub fn carrier(&mut self, now: Time, via: Via, up: bool) {
        let known = self.config.interfaces.iter().find(|(v, _)| *v == via).map(|(_, i)| *i);
        if let Some(interface) = known {
            self.interface(now, via, Interface { carrier: up, ..interface });
        }
    }

    /// Replication knows of an owner of the group in `term`. If this node is Active in a lower one, it goes on in a
    /// higher one; otherwise its heartbeats say so to the one that is.
    pub fn past_term(&mut self, now: Time, group: GroupId, term: u32) {
        self.advance(now);
        if let Some(g) = self.groups.iter_mut().find(|g| g.config.group == group) {
            g.past_term = g.past_term.max(term);
            if !g.is_active() {
                g.term = g.term.max(term);
            }
            self.judge_due = true;
        }
    }

    /// A peer has claimed the group in `term`, in the eyes of replication, in which this node does not own it any more. If
    /// this node is Active it will hear from that peer; one that it has not given way to when it should have been heard
    /// is Active no more, and its term has been ([`Self::past_term`]).
    pub fn claimed(&mut self, now: Time, group: GroupId, term: u32) {
        self.advance(now);
        let Some(g) = self.groups.iter_mut().find(|g| g.config.group == group) else { return };
        if g.is_active() && term > g.term {
            g.claim = Some(Claim { term, at: now });
            return;
        }
        self.past_term(now, group, term);
    }

    /// How far the local replica of `peer`'s flows is: complete and proved by digests, and a number
    /// that is carried to the peer.
    pub fn sync_status(&mut self, now: Time, peer: NodeId, in_sync: bool, applied: u64) {
        self.advance(now);
        if let Some(p) = self.peers.iter_mut().find(|p| p.node == peer) {
            self.judge_due |= p.in_sync != in_sync;
            (p.in_sync, p.applied) = (in_sync, applied);
        }
    }

    /// Hands a group to `to`, or to the best other node. Says whom it is offered to; the outcome
    /// comes as [`Event::Role`] or [`Event::HandoverFailed`].
    ///
    /// # Errors
    /// See [`CommandError`]; nothing has changed then.
    pub fn switchover(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<NodeId>,
    ) -> Result<NodeId, CommandError> {
        self.advance(now);
        if self.node == NodeState::Leaving {
            return Err(CommandError::Leaving);
        }
        let found = self.groups.iter().position(|g| g.config.group == group && g.place.is_some());
        let g = found.ok_or(CommandError::NotMember)?;
        let name = |node| self.config.node_name(node);
        if !self.groups[g].is_active() {
            let active = self.active_node(g).map(name);
            return Err(CommandError::NotActive { active });
        }
        if let Some(handover) = self.groups[g].handover {
            return Err(CommandError::Busy { to: name(handover.to) });
        }
        let to = match to {
            Some(node) if self.is_candidate(g, node) => node,
            Some(node) => {
                return Err(CommandError::NotCandidate { node: name(node), state: self.state_text(g, node) });
            }
            None => self.best_candidate(g).ok_or(CommandError::NoCandidate)?,
        };
        self.offer(g, to, true);
        self.judge_due = true;
        Ok(to)
    }

    /// Puts this node on standby, or back. Its groups are handed over first; one that nobody can
    /// take is given up, and only if `force` says so.
    ///
    /// # Errors
    /// [`CommandError::Leaving`], [`CommandError::LastEligible`].
    pub fn standby(&mut self, now: Time, on: bool, force: bool) -> Result<(), CommandError> {
        self.advance(now);
        match self.node {
            NodeState::Leaving => return Err(CommandError::Leaving),
            NodeState::Running if on && !force => self.check_dispensable()?,
            NodeState::Running | NodeState::Standby => {}
        }
        self.node = if on { NodeState::Standby } else { NodeState::Running };
        self.judge_due = true;
        Ok(())
    }

    /// Whether another node has, or could have, each group that this one could have.
    fn check_dispensable(&self) -> Result<(), CommandError> {
        for (g, group) in self.groups.iter().enumerate() {
            let eligible = group.place.is_some() && group.forbidden_by().next().is_none();
            let active = self.actives(g).next().is_some() || self.told_actives(g).next().is_some();
            if eligible && !active && self.candidates(g).next().is_none() {
                let others = group
                    .others()
                    .map(|node| format!("{} is {}", self.config.node_name(node), self.state_text(g, node)));
                let others = others.collect::<Vec<_>>().join(", ");
                let others = if others.is_empty() { "there is none".into() } else { others };
                return Err(CommandError::LastEligible { group: group.config.name.clone(), others });
            }
        }
        Ok(())
    }

    /// Begins to shut down: hands all groups over, gives up those that nobody takes in time, says
    /// goodbye, and ends with [`Output::ShutdownComplete`].
    pub fn shutdown(&mut self, now: Time) {
        self.advance(now);
        self.node = NodeState::Leaving;
        self.judge_due = true;
    }

    /// Does everything that is due: call it when [`Self::next_timeout`] has come, after all input
    /// that has arrived was delivered.
    pub fn tick(&mut self, now: Time) {
        self.advance(now);
        if self.stopped {
            return;
        }
        let now = self.clock;
        self.judge_due = false;
        let slept = self.ticked.is_some_and(|at| now >= at + self.config.heartbeat_interval * SLEPT_BEATS);
        self.ticked = Some(now);
        self.watch_peers(now, slept);
        self.survey_zones(now);
        self.judge_trackers(now);
        self.reconcile();
        self.watch_adverts(now);
        self.speak_vrrp(now);
        self.ask_witnesses(now);
        if now >= self.heartbeat_due {
            // Keep the rhythm, but do not catch up on what was missed.
            self.heartbeat_due = (self.heartbeat_due + self.config.heartbeat_interval).max(now);
            if self.heartbeat_due == now {
                self.heartbeat_due = now + self.config.heartbeat_interval;
            }
            self.renew_leases(now);
            self.say_hello(now);
            self.beat();
            self.say_goodbye();
        } else if self.beat_due {
            self.beat();
        }
    }

    /// When [`Self::tick`] has something to do; never later than one heartbeat interval ahead.
    pub fn next_timeout(&self) -> Time {
        if self.stopped {
            return Time::NEVER;
        }
        if self.judge_due || self.beat_due {
            return Time::ZERO;
        }
        let peers = self.peers.iter().map(|p| p.suspicion.next()).chain(self.survey_due());
        let groups =
            self.groups.iter().enumerate().filter(|(_, g)| g.place.is_some()).flat_map(|(g, group)| {
                let adverts = group.machines.iter().map(|m| m.next()).filter(|_| group.is_active());
                let silence = self.silence_due(g).filter(|&at| at > self.clock);
                let handover = group.handover.map(|h| h.deadline);
                let lease = group.is_active().then_some(group.lease_until);
                let announce = group.announce.first().copied().into_iter().chain(group.refresh);
                let claim = self.claim_settled(g);
                let held =
                    group.held.and_then(|held| held.back).map(|at| at + BACK).filter(|&at| at > self.clock);
                adverts.chain(announce).chain(silence).chain(handover).chain(lease).chain(claim).chain(held)
            });
        peers.chain(groups).min().unwrap_or(Time::NEVER).min(self.heartbeat_due).min(self.witnesses.next())
    }

    /// What to do next; `None` when all is done.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    fn advance(&mut self, now: Time) {
        self.clock = self.clock.max(now);
    }

    fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    /// A datagram that no peer is to blame for.
    fn strange(&mut self, link: u8, claims: NodeId, error: OpenError) {
        self.stranger = Some(Stranger { at: self.clock, link, claims, error });
        self.cannot_open(link, 0, error);
    }

    fn cannot_open(&mut self, link: u8, sender: NodeId, error: OpenError) {
        if error == OpenError::UnknownEpoch {
            // An epoch that is not proved yet belongs to every handshake.
            return self.counters.count("heartbeat_refused", error.as_str());
        }
        self.refused(link, sender, error.as_str(), &error.to_string());
    }

    fn refused(&mut self, link: u8, sender: NodeId, name: &'static str, reason: &str) {
        let now = self.clock;
        self.counters.count("heartbeat_refused", name);
        if self.refused_at.get(name).is_some_and(|&at| now < at + REFUSED_EVENT_INTERVAL) {
            return;
        }
        self.refused_at.insert(name, now);
        self.event(Event::Refused { link, sender, reason: reason.to_owned() });
    }

    /// Whether a heartbeat claims a term that is out of reach ([`TERM_LEAP_MAX`]).
    fn leaps(&self, heartbeat: &Heartbeat) -> bool {
        heartbeat.groups.iter().any(|record| {
            let group = self.groups.iter().find(|g| g.config.group == record.group);
            group.is_some_and(|g| record.term.saturating_sub(g.term) > TERM_LEAP_MAX)
        })
    }

    /// What a peer says of groups, by the numbers that they have here: in its file they may be in another order. What it
    /// says of groups that are not there is left out.
    fn by_name(&self, mut heartbeat: Heartbeat) -> Heartbeat {
        let number = |record: &GroupRecord| {
            let Some(name) = record.name else { return Some(record.group) };
            let same = |g: &&Group| name_hash(&g.config.name) == name;
            let mut named = self.groups.iter().filter(same).map(|g| g.config.group);
            // The same number first, should two names have one hash.
            named.clone().find(|group| *group == record.group).or_else(|| named.next())
        };
        heartbeat.groups.retain_mut(|record| number(record).map(|group| record.group = group).is_some());
        heartbeat
    }

    fn heartbeat(&mut self, now: Time, p: usize, link: u8, heartbeat: Heartbeat) {
        let before = self.states();
        let were_active: Vec<GroupId> = self.peers[p].active_groups().collect();
        let hash = heartbeat.config_hash;
        let deaf = matches!(heartbeat.seen, PeerState::Silent | PeerState::SyncLost | PeerState::Dead);
        let peer = &mut self.peers[p];
        if !peer.heartbeat(now, link, heartbeat) {
            return self.counters.count("heartbeat_rx", "late");
        }
        self.counters.count("heartbeat_rx", "heartbeats");
        let node = peer.node;
        let one_way = (peer.deaf != deaf).then_some(deaf);
        peer.deaf = deaf;
        let differs = (hash != self.config.config_hash).then_some(hash);
        let new_difference = differs != peer.other_config;
        if peer.other_config.is_some() && differs.is_none() {
            self.groups.iter_mut().for_each(|g| g.reloaded = now);
        }
        peer.other_config = differs;
        let records = peer.last.as_ref().map_or(&[][..], |h| &h.groups);
        for record in records {
            let Some(g) = self.groups.iter_mut().find(|g| g.config.group == record.group) else {
                continue;
            };
            // An Active keeps the term that it took the group with: a claim is compared, not copied.
            if !g.is_active() {
                g.term = g.term.max(record.term);
                if record.role == Role::Active {
                    g.last_active = Some(node);
                    g.warm = peer.in_sync;
                    // Whoever advertised before, the channel knows who has the role now.
                    g.foreign = false;
                }
            }
        }
        self.judge_due = true;
        self.tell_states(&before);
        self.note_late_splits(p, &were_active);
        if let Some(lost) = one_way {
            self.event(Event::OneWay { peer: node, lost });
        }
        if let (true, Some(theirs)) = (new_difference, differs) {
            self.event(Event::ConfigDiffers { peer: node, theirs });
        }
    }

    fn states(&self) -> Vec<PeerState> {
        self.peers.iter().map(Peer::state).collect()
    }

    /// Tells of every peer whose state is not what it was.
    fn tell_states(&mut self, before: &[PeerState]) {
        for (p, &from) in before.iter().enumerate() {
            let (peer, to) = (self.peers[p].node, self.peers[p].state());
            if from != to {
                if from == PeerState::Alive {
                    self.peers[p].lost = None;
                }
                // What is heard of one that comes back makes it no less lost before.
                let dead = self.peers[p].lost.as_ref().is_some_and(|(state, _)| *state == PeerState::Dead);
                if let Some(lost) = self.loss_text(peer, to).filter(|_| !dead) {
                    self.peers[p].lost = Some((to, lost));
                }
                let name = self.config.node_name(peer);
                let reason = match to {
                    PeerState::Unknown => format!("no way left to ask {name}"),
                    PeerState::Alive => format!("heartbeats of {name} arrive"),
                    PeerState::Suspect if from == PeerState::Dead => {
                        format!("this node did not run for a while: {name} is asked again")
                    }
                    PeerState::Suspect => format!("heartbeats of {name} stopped, probing"),
                    PeerState::Silent => format!("the daemon of {name} is silent, its data plane answers"),
                    PeerState::SyncLost => format!("{name} lives, but no heartbeat gets here"),
                    PeerState::Dead => format!("{name} answers nowhere"),
                    PeerState::Left => format!("{name} said goodbye"),
                };
                self.event(Event::Peer { peer, from, to, reason });
            }
        }
    }

    /// Runs every peer's suspicion, and sends the probes that it asks for.
    fn watch_peers(&mut self, now: Time, slept: bool) {
        let before = self.states();
        for p in 0..self.peers.len() {
            let due = now >= self.peers[p].suspicion.next() || self.peers[p].state() == PeerState::Alive;
            if !due && !slept {
                continue;
            }
            let paths = self.peers[p].paths(now, &self.config.interfaces);
            let vias: Vec<Via> = paths.iter().map(|(via, _)| *via).collect();
            if slept && !vias.is_empty() {
                self.peers[p].suspicion.doubt(now);
            }
            let carrier = self.config.interfaces.iter().any(|(v, i)| matches!(v, Via::Sync(_)) && i.carrier);
            let adverts = self.adverts_of(self.peers[p].node);
            if !self.peers[p].suspicion.tick(now, &vias, carrier, adverts) {
                continue;
            }
            for (via, mac) in paths {
                self.nonce = self.nonce.wrapping_add(1);
                let peer = &mut self.peers[p];
                let probe = peer.probe(now, &self.config, via, self.nonce);
                self.out.push_back(Output::Probe { peer: peer.node, via, mac, probe });
                self.counters.count("probe_tx", "requests");
            }
        }
        self.tell_states(&before);
    }

    fn renew_leases(&mut self, now: Time) {
        for group in self.groups.iter_mut().filter(|g| g.is_active()) {
            group.lease_until = now + self.config.lease;
            self.out.push_back(Output::RenewLease { group: group.config.group, until: group.lease_until });
        }
    }

    /// Holds these keys from now on; channels stay open.
    pub fn set_keys(&mut self, keys: &KeyRing) {
        for peer in &mut self.peers {
            peer.channel.set_keys(keys);
        }
    }

    fn say_hello(&mut self, now: Time) {
        for peer in &mut self.peers {
            if peer.channel.is_open() && peer.alive() {
                if !peer.channel.is_renewing() || now < peer.renew_due {
                    continue;
                }
                peer.renew_due = now + RENEW_INTERVAL;
            } else if now < peer.hello_due {
                continue;
            } else {
                peer.hello_sent(now);
            }
            for link in sync_links(&self.config) {
                let bytes = peer.channel.hello();
                self.out.push_back(Output::Heartbeat { link, peer: peer.node, bytes });
            }
        }
    }

    /// Sends a heartbeat to every peer on every link.
    fn beat(&mut self) {
        self.beat_due = false;
        self.sequence += 1;
        let now = self.clock;
        let mut heartbeat = Heartbeat {
            sequence: self.sequence,
            node: self.node,
            in_sync: false,
            seen: PeerState::Unknown,
            interval_us: self.config.heartbeat_interval.as_micros() as u32,
            lease_ms: u32::try_from(self.config.lease.as_millis()).unwrap_or(u32::MAX),
            config_hash: self.config.config_hash,
            applied: 0,
            stamp: now.as_nanos(),
            echo: 0,
            echo_held_us: 0,
            groups: self.records(),
            unwell: self.unwell().collect(),
            reaches: self.zone_reaches(),
            interfaces: self.config.interfaces.clone(),
        };
        for peer in self.peers.iter_mut().filter(|p| p.channel.is_open()) {
            (heartbeat.in_sync, heartbeat.applied) = (peer.in_sync, peer.applied);
            heartbeat.seen = peer.state();
            for link in sync_links(&self.config) {
                (heartbeat.echo, heartbeat.echo_held_us) = peer.echo(now, link);
                if let Some(bytes) = peer.channel.seal(&heartbeat.write()) {
                    self.counters.count("heartbeat_tx", "heartbeats");
                    self.out.push_back(Output::Heartbeat { link, peer: peer.node, bytes });
                }
            }
        }
    }

    /// What this node says of each group; of those of which it is no member, only of a term that has been and that no
    /// Active knows. All members may have forgotten it, and the replication here refuses flows of a lower one.
    fn records(&self) -> Vec<GroupRecord> {
        let speaks = |g: &usize| self.groups[*g].place.is_some() || self.knows_term(*g);
        let record = |g: usize| {
            let group = &self.groups[g];
            let in_term = self.top_active(g).filter(|(_, r)| r.term == group.term);
            GroupRecord {
                group: group.config.group,
                name: Some(name_hash(&group.config.name)),
                role: group.role,
                priority: group.priority(),
                warm: group.warm,
                moved: match group.handover {
                    Some(handover) => handover.moved,
                    None => group.moved || group.moved_to.is_some_and(|(_, term)| term == group.term),
                },
                term: group.term,
                age_ms: group.age_ms(self.clock),
                heard: if group.is_active() { 0 } else { group.heard(self.clock) },
                cause: group.cause,
                offered_to: group.handover.map(|h| h.to).filter(|_| group.is_active()),
                hears: in_term.map(|(node, _)| node).filter(|_| !group.is_active()),
            }
        };
        (0..self.groups.len()).filter(speaks).map(record).collect()
    }

    /// Whether this node knows of a higher term of a group than all Actives that it hears.
    fn knows_term(&self, g: usize) -> bool {
        let term = self.groups[g].term;
        term > 0 && self.actives(g).all(|(_, active)| active.term < term)
    }

    fn say_goodbye(&mut self) {
        if self.node != NodeState::Leaving || self.groups.iter().any(Group::is_active) {
            return;
        }
        self.farewells -= 1;
        if self.farewells == 0 {
            self.stopped = true;
            self.out.push_back(Output::ShutdownComplete);
        }
    }
}

fn sync_links(config: &Config) -> impl Iterator<Item = u8> + '_ {
    config.interfaces.iter().filter_map(|(via, _)| match *via {
        Via::Sync(link) => Some(link),
        Via::Zone(_) => None,
    })
}
