//! One group at this node: its role, its term, its virtual routers, and what is going on with it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::config::{Config, GroupConfig};
use super::trackers::Tracked;
use crate::NodeId;
use crate::heartbeat::{Cause, Role};
use crate::time::Time;
use crate::vrrp::hmac;
use crate::vrrp::machine::{Machine, centiseconds};

/// The advertise interval while no heartbeat reaches a peer that lives, centiseconds.
pub const FAST_ADVERT_CS: u16 = 10;

/// A handover that this node, Active, has offered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover {
    pub to: NodeId,
    pub deadline: Time,
    /// An operator wants the group to be there: the taker is not to be preempted.
    pub moved: bool,
}

/// An offer that was not taken.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When it was withdrawn.
    pub at: Time,
    /// Whom the group was offered to.
    pub by: NodeId,
    /// Why, with that node as the subject.
    pub reason: String,
}

/// Two nodes are Active; this one stays.
#[derive(Clone, Debug)]
pub(super) struct Split {
    pub peer: NodeId,
    /// When they met.
    pub since: Time,
    /// Since when both were, as far as known.
    pub began: Time,
    pub cause: String,
}

/// A better advertisement, and nobody on the channel to say whether it counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outranked {
    pub since: Time,
    /// Of which virtual router.
    pub instance: usize,
    pub interval_cs: u16,
    /// The member that it seems to come from; 0 for a router outside of the cluster.
    pub sender: Option<NodeId>,
}

/// A peer's claim of an ownership in a term that is higher than this node's.
#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub term: u32,
    /// When this node heard of it.
    pub at: Time,
}

/// A claim that waits for a witness.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub since: Time,
    /// It has waited for long, and an event has told so.
    pub told: bool,
    /// When a witness answered again.
    pub back: Option<Time>,
}

pub(super) struct Group {
    pub config: GroupConfig,
    /// This node's place among the members.
    pub place: Option<usize>,
    pub role: Role,
    pub since: Time,
    pub cause: Cause,
    pub reason: String,
    /// The highest term seen anywhere; that of the ownership while Active.
    pub term: u32,
    pub machines: Vec<Machine>,
    /// Numbers of signed advertisements, by zone, VRID and family.
    pub signed: BTreeMap<(u8, u8, bool), hmac::State>,
    /// What trackers and cables make of it.
    pub tracked: Tracked,
    pub lease_until: Time,
    /// The highest term that replication knows of.
    pub past_term: u32,
    /// Active: a peer told replication that the group is its own.
    pub claim: Option<Claim>,
    /// When to announce the addresses again, soonest first.
    pub announce: Vec<Time>,
    /// When to announce them whatever happened.
    pub refresh: Option<Time>,
    pub handover: Option<Handover>,
    /// The last offer that was not taken.
    pub refusal: Option<Refusal>,
    pub split: Option<Split>,
    /// How often there was one, and for how long in all.
    pub splits: (u64, Duration),
    /// An operator moved the group here.
    pub moved: bool,
    /// Backup: the Active to which an operator moved the group, and the term that it had said so in.
    pub moved_to: Option<(NodeId, u32)>,
    /// This node holds the flows of the last Active.
    pub warm: bool,
    /// The member that was last known to be Active, if not this one.
    pub last_active: Option<NodeId>,
    pub vacant_since: Option<Time>,
    /// When this node gave the role up.
    pub released: Option<Time>,
    /// Active: what was heard first.
    pub outranked: Option<Outranked>,
    /// A router outside of the cluster advertised better than this node, no peer being alive.
    pub foreign: bool,
    pub preempt_since: Option<Time>,
    /// A claim waits for a witness.
    pub held: Option<Held>,
    /// When this node or a peer last got other virtual routers, by a reload.
    pub reloaded: Time,
    /// By member and place of the virtual router: adverts that this member does not hear.
    pub unheard: BTreeMap<(NodeId, usize), Unheard>,
}

/// Adverts that a Backup does not hear.
#[derive(Clone, Copy, Debug)]
pub struct Unheard {
    pub since: Time,
    /// For longer than it may take: it was told.
    pub told: bool,
}

impl Group {
    pub fn new(now: Time, config: &Config, group: &GroupConfig) -> Self {
        let place = group.members.iter().position(|m| m.0 == config.identity.node);
        let priority = place.map_or(1, |p| group.members[p].1);
        let machine = || Machine::new(now, priority, group.advert_interval_cs, group.version);
        Self {
            place,
            role: Role::Init,
            since: now,
            cause: Cause::Started,
            reason: if place.is_some() { "started".into() } else { "not a member".into() },
            term: group.start.term,
            signed: BTreeMap::new(),
            machines: group.instances.iter().map(|_| machine()).collect(),
            tracked: Tracked::default(),
            lease_until: Time::ZERO,
            past_term: 0,
            claim: None,
            announce: Vec::new(),
            refresh: None,
            handover: None,
            refusal: None,
            split: None,
            splits: (0, Duration::ZERO),
            moved: false,
            moved_to: None,
            warm: false,
            last_active: None,
            vacant_since: None,
            released: None,
            outranked: None,
            foreign: false,
            preempt_since: None,
            held: None,
            reloaded: now,
            unheard: BTreeMap::new(),
            config: group.clone(),
        }
    }

    pub fn is_active(&self) -> bool {
        self.role == Role::Active
    }

    /// This node's priority, as its trackers leave it; 0 if it is no member.
    pub fn priority(&self) -> u8 {
        let lowered = self.tracked.lowered;
        self.place.map_or(0, |p| self.config.members[p].1.saturating_sub(lowered).max(1))
    }

    /// A node's place among the members; later than all for others.
    pub fn order(&self, node: NodeId) -> usize {
        self.config.members.iter().position(|m| m.0 == node).unwrap_or(usize::MAX)
    }

    /// The other members.
    pub fn others(&self) -> impl Iterator<Item = NodeId> + '_ {
        let place = self.place;
        self.config.members.iter().enumerate().filter(move |(i, _)| Some(*i) != place).map(|(_, m)| m.0)
    }

    /// Whether a node that owns the addresses (priority 255) has waited for long enough at its start: not
    /// at all when it is alone (RFC 9568, 6.4.1); else for one interval, in which an Active member is heard.
    pub fn owner_starts(&self, now: Time) -> bool {
        let interval = centiseconds(self.config.advert_interval_cs);
        self.config.members.len() == 1 || (self.heard(now) == 0 && now >= self.since + interval)
    }

    /// By virtual router, whether the Active's advertisements arrive.
    pub fn heard(&self, now: Time) -> u32 {
        self.machines.iter().enumerate().fold(0, |bits, (i, m)| bits | u32::from(m.hears(now)) << i)
    }

    /// When all virtual routers have been silent for long enough; `fast_from` reckons with
    /// [`FAST_ADVERT_CS`] from then on.
    pub fn silent_at(&self, fast_from: Option<Time>) -> Time {
        self.machines
            .iter()
            .map(|m| fast_from.map_or(m.next(), |from| m.silent_at(from, FAST_ADVERT_CS)))
            .max()
            .unwrap_or(Time::ZERO)
    }

    /// Milliseconds in the present role.
    pub fn age_ms(&self, now: Time) -> u32 {
        u32::try_from(now.since(self.since).as_millis()).unwrap_or(u32::MAX)
    }

    /// What forbids the role: source and text.
    pub fn forbidden_by(&self) -> impl Iterator<Item = (&String, &String)> {
        self.tracked.cut.iter().chain(&self.tracked.faults)
    }

    /// The same in one line.
    pub fn fault(&self) -> Option<String> {
        let texts: Vec<&str> = self.forbidden_by().map(|(_, text)| text.as_str()).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }
}
