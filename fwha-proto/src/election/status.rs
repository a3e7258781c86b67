//! A snapshot of the election, for people and programs.

use std::time::Duration;

use super::Election;
use super::config::GroupId;
use super::group::Refusal;
use super::output::Counters;
use super::peer::{Link, Peer};
use super::reach::ReachStatus;
use super::witness::WitnessStatus;
use crate::NodeId;
use crate::heartbeat::{Cause, NodeState, PeerState, Role};
use crate::seal::OpenError;
use crate::time::Time;
use crate::tracker::Report;

/// Everything that [`Election::status`] tells.
#[derive(Clone, Debug)]
pub struct Status {
    /// What this node does as a whole.
    pub node: NodeState,
    /// The groups, all that are configured.
    pub groups: Vec<GroupStatus>,
    /// The other nodes.
    pub peers: Vec<PeerStatus>,
    /// The witnesses, in the order of the config.
    pub witnesses: Vec<WitnessStatus>,
    /// How this node is placed in zones where that is in question.
    pub reaches: Vec<ReachStatus>,
    /// The last datagram on a sync link that came from none of the peers.
    pub stranger: Option<Stranger>,
    /// Counters of heartbeats, probes and VRRP.
    pub counters: Counters,
}

/// A datagram on a sync link that belongs to no peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// When it arrived.
    pub at: Time,
    /// The sync link.
    pub link: u8,
    /// The node that its sender claims to be: this one, or none of the cluster; 0 if it says nothing.
    pub claims: NodeId,
    /// Why it was refused.
    pub error: OpenError,
}

/// A group, seen from this node.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// This node's role.
    pub role: Role,
    /// Since when.
    pub since: Time,
    /// Why.
    pub cause: Cause,
    /// Why, for people.
    pub reason: String,
    /// The nodes that are Active as far as known here, this one included. One, when all is well.
    pub active: Vec<NodeId>,
    /// The highest term seen.
    pub term: u32,
    /// This node's priority; 0 if it is no member.
    pub priority: u8,
    /// What forbids the role: source and text.
    pub faults: Vec<(String, String)>,
    /// Zones without carrier here that forbid nothing, as no other node is known to be better off.
    pub spared: Vec<u8>,
    /// The trackers that matter for it, in the order of the config.
    pub trackers: Vec<TrackerStatus>,
    /// This node holds the flows of the last Active.
    pub warm: bool,
    /// An operator moved the group here.
    pub moved: bool,
    /// Who could take it, the best first: that one gets it in a move to no node in particular.
    pub candidates: Vec<NodeId>,
    /// Whom the group is being handed to.
    pub handover: Option<NodeId>,
    /// The last offer of the group that was not taken.
    pub refusal: Option<Refusal>,
    /// Another node is Active, too, of those that hear each other.
    pub split: bool,
    /// Split brains so far, and how long they lasted in all.
    pub splits: (u64, Duration),
    /// This node would take it, but no witness answers.
    pub held: bool,
    /// By virtual router, in the order of the config: whether the Active's advertisements arrive.
    /// All false on the Active.
    pub hears: Vec<bool>,
}

/// A tracker, and what it means for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackerStatus {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub report: Report,
    /// It counts: it forbids the role, or lowers the priority.
    pub counts: bool,
    /// What it does, or why nothing.
    pub effect: String,
}

/// Another node, seen from this one.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The node.
    pub node: NodeId,
    /// What is known of it.
    pub state: PeerState,
    /// Since when.
    pub since: Time,
    /// It says that it does not hear our heartbeats.
    pub deaf: bool,
    /// Why its datagrams are refused, if they are.
    pub refused: Option<OpenError>,
    /// Its boot epoch, once proved.
    pub epoch: Option<u64>,
    /// What it says of itself as a whole.
    pub node_state: Option<NodeState>,
    /// It runs with another cluster file, of this hash.
    pub other_config: Option<u64>,
    /// It says that it holds our flows, and how much it has applied.
    pub in_sync: bool,
    /// See [`crate::heartbeat::Heartbeat::applied`].
    pub applied: u64,
    /// The sync links.
    pub links: Vec<LinkStatus>,
    /// Its roles, as it last said, with terms.
    pub roles: Vec<(GroupId, Role, u32)>,
}

/// A sync link to a peer.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// Its number.
    pub link: u8,
    /// Heartbeats arrive over it.
    pub up: bool,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Heartbeats received over it.
    pub received: u64,
}

impl Election {
    /// The present state.
    pub fn status(&self, now: Time) -> Status {
        Status {
            node: self.node,
            groups: (0..self.groups.len()).map(|g| self.group_status(g, now)).collect(),
            peers: self.peers.iter().map(|p| self.peer_status(p, now)).collect(),
            witnesses: self.witnesses.status().cloned().collect(),
            reaches: self.reach_status(),
            stranger: self.stranger,
            counters: self.counters.clone(),
        }
    }

    fn group_status(&self, g: usize, now: Time) -> GroupStatus {
        let group = &self.groups[g];
        let mut active: Vec<NodeId> = self.known_actives(g, now).collect();
        if group.is_active() {
            active.insert(0, self.me());
        }
        GroupStatus {
            group: group.config.group,
            role: group.role,
            since: group.since,
            cause: group.cause,
            reason: group.reason.clone(),
            active,
            term: group.term,
            priority: group.priority(),
            faults: group.forbidden_by().map(|(source, text)| (source.clone(), text.clone())).collect(),
            spared: self.spared_zones(g).collect(),
            trackers: self.trackers(g, now),
            warm: group.warm,
            moved: group.moved,
            candidates: self.best_candidates(g),
            handover: group.handover.map(|h| h.to),
            refusal: group.refusal.clone(),
            split: group.split.is_some(),
            splits: group.splits,
            held: group.held.is_some_and(|held| held.told),
            hears: group.machines.iter().map(|m| m.hears(now)).collect(),
        }
    }

    fn peer_status(&self, peer: &Peer, now: Time) -> PeerStatus {
        let last = peer.last.as_ref();
        let silence = self.config.heartbeat_interval * 5 / 2;
        let link = |l: &Link| LinkStatus {
            link: l.link,
            up: l.heard.is_some_and(|heard| now < heard + silence.max(Duration::from_millis(50))),
            rtt: l.rtt,
            received: l.received,
        };
        PeerStatus {
            node: peer.node,
            state: peer.state(),
            since: peer.suspicion.since(),
            deaf: peer.deaf,
            refused: peer.refused,
            epoch: peer.channel.peer_epoch(),
            node_state: last.map(|h| h.node),
            other_config: peer.other_config,
            in_sync: last.is_some_and(|h| h.in_sync),
            applied: last.map_or(0, |h| h.applied),
            links: peer.links.iter().map(link).collect(),
            roles: last
                .map_or_else(Vec::new, |h| h.groups.iter().map(|r| (r.group, r.role, r.term)).collect()),
        }
    }

    /// Other nodes that said they are Active, here or to a third one, and of which nothing else is known since.
    fn known_actives(&self, g: usize, now: Time) -> impl Iterator<Item = NodeId> {
        let group = self.groups[g].config.group;
        let lost = move |p: &Peer| match p.state() {
            PeerState::Dead | PeerState::Left | PeerState::Unknown => true,
            // Its data plane answers, and forwards no more: its daemon hangs, or is no more.
            PeerState::Silent | PeerState::SyncLost => p.suspicion.answers() && p.suspicion.lapsed(now),
            PeerState::Alive | PeerState::Suspect => false,
        };
        let said = move |p: &Peer| p.group(group).is_some_and(|r| r.role == Role::Active) && !lost(p);
        let told = move |p: &Peer| self.told_actives(g).any(|(node, _)| node == p.node);
        self.peers.iter().filter(move |p| said(p) || told(p)).map(|p| p.node)
    }

    /// The node that is Active for a group as far as known here.
    pub(super) fn active_node(&self, g: usize) -> Option<NodeId> {
        self.groups[g].is_active().then(|| self.me()).or_else(|| self.known_actives(g, self.clock).next())
    }

    /// Why a node cannot take a group, for people.
    pub(super) fn state_text(&self, g: usize, node: NodeId) -> String {
        let group = self.groups[g].config.group;
        let Some(peer) = self.peers.iter().find(|p| p.node == node) else {
            return "this node".into();
        };
        // One that is none may say which term has been.
        let member = self.groups[g].others().any(|other| other == node);
        match (peer.state(), peer.last.as_ref().map(|h| h.node), peer.group(group)) {
            (PeerState::Alive, Some(NodeState::Running), Some(record)) if member => record.role.to_string(),
            (PeerState::Alive, Some(NodeState::Running), _) => "not a member of the group".into(),
            (PeerState::Alive, Some(state), _) => state.to_string(),
            (state, ..) => state.to_string(),
        }
    }
}
