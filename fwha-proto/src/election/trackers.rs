//! Trackers: what this node watches, and whether its failure counts.
//!
//! A tracker's verdict ([`crate::tracker`]) either forbids the role ([`Effect::Fault`]) or lowers the
//! node's priority ([`Effect::Lowers`]) in the groups that it matters for.
//!
//! - A *fault* always moves the group: to a candidate that takes it, and if none does in time, the
//!   node gives it up all the same.
//! - A *lowered priority* makes an Active hand over to a candidate whose priority is higher now,
//!   whether or not `preempt` is set: `preempt` is about a preferred node that returns, not about one
//!   that is unwell. The candidate must hold the flows, or the Active has waited for
//!   [`Config::preempt_wait`](super::Config::preempt_wait). A group that an operator moved here stays.
//!   When the tracker is well again, nothing moves back but by `preempt`.
//!
//! # Carriers
//!
//! A zone of a group without carrier is a fault as well, and no tracker needs to say so. It counts at once, unless every other
//! member is known to be no better off: a switch that is dead for both nodes takes its own zone away, not the others. Where
//! another member cannot be asked it counts, and where no zone of the group is left.
//!
//! # Shared verdicts
//!
//! What lies outside of the node may be dead for everybody, and then no node is better than another.
//! So heartbeats carry which trackers are not known to be well, and of a shared tracker
//!
//! - a fault counts only while another member, which could be Active, is unwell by *fewer* shared
//!   trackers of that kind. A number is compared, not a set, so two nodes never find each other better;
//! - a lower priority counts only while one is well by that tracker.
//!
//! And it must have been so without a break for the tracker's grace ([`TrackerConfig::shared`]): the
//! other nodes may find out a little later what this one has found. Nodes check once an interval and
//! need as many bad checks, so their verdicts on the same event differ by an interval and the time of
//! a check at most; a heartbeat carries them. That sum is the grace.
//!
//! A member that is dead, on standby or in fault cannot help. One whose heartbeats do not arrive can
//! not be compared with: with the sync link lost and the target dead, two nodes would push the role
//! to each other for ever, so they keep it where it is. Without other members there is nobody to
//! compare with, and the failure counts: a VRRP router outside of the cluster may do better.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::config::{Effect, TrackerConfig};
use super::decide::{Standing, standing};
use super::output::Event;
use super::reach::ROUND;
use super::status::TrackerStatus;
use super::{Election, Report, State};
use crate::NodeId;
use crate::heartbeat::{PeerState, Via};
use crate::time::Time;

/// What the trackers make of a group. Trackers are known by their id.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    /// Faults that count, by the tracker's name.
    pub faults: BTreeMap<String, String>,
    /// Zones without carrier here, if that counts and leaves no time to hand over.
    pub cut: BTreeMap<String, String>,
    /// Since some zone lost its carrier, no other node was known to be better off, or is.
    spared: bool,
    /// How much lower the priority is.
    pub lowered: u8,
    lowered_by: Vec<String>,
    lowered_since: Time,
    /// Since when a zone in which this node reaches nobody would count.
    unreached_since: BTreeMap<u8, Time>,
    /// Since when a tracker would count.
    worse_since: BTreeMap<u32, Time>,
    /// Those that do.
    counting: BTreeSet<u32>,
}

impl Tracked {
    /// What lowers the priority, in one line.
    pub fn lowered_by(&self) -> Option<String> {
        (!self.lowered_by.is_empty()).then(|| self.lowered_by.join(", "))
    }
}

impl Election {
    /// There are other trackers now. What is known of a tracker stays, by its id, until another report
    /// of it comes; what it counts for is judged from the beginning if that is what changed.
    pub(super) fn set_trackers(&mut self, trackers: Vec<TrackerConfig>) {
        let old = std::mem::replace(&mut self.config.trackers, trackers);
        let mut known: BTreeMap<u32, Report> =
            old.iter().map(|t| t.id).zip(std::mem::take(&mut self.reports)).collect();
        let report = |t: &TrackerConfig| known.remove(&t.id);
        let new = Report { since: self.clock, ..Report::default() };
        self.reports =
            self.config.trackers.iter().map(report).map(|r| r.unwrap_or_else(|| new.clone())).collect();
        let same: BTreeSet<u32> =
            self.config.trackers.iter().filter(|t| old.contains(t)).map(|t| t.id).collect();
        for Tracked { worse_since, counting, .. } in self.groups.iter_mut().map(|g| &mut g.tracked) {
            worse_since.retain(|id, _| same.contains(id));
            counting.retain(|id| same.contains(id));
        }
    }

    /// How the tracker of this id stands.
    pub fn tracker(&mut self, now: Time, id: u32, report: Report) {
        self.advance(now);
        let Some(t) = self.config.trackers.iter().position(|t| t.id == id) else { return };
        let to = report.state;
        let changed = self.reports[t].state != to;
        self.reports[t] = report;
        if changed {
            // The peers compare: they hear of it at once.
            (self.judge_due, self.beat_due) = (true, true);
            let tracker = self.config.trackers[t].name.clone();
            self.event(Event::Tracker { tracker, to, text: self.reports[t].text.clone() });
        }
    }

    /// The trackers that are not known to be well, for heartbeats.
    pub(super) fn unwell(&self) -> impl Iterator<Item = u32> {
        let both = self.config.trackers.iter().zip(&self.reports);
        both.filter(|(_, report)| report.state != State::Up).map(|(tracker, _)| tracker.id)
    }

    /// Judges what counts now, in every group.
    pub(super) fn judge_trackers(&mut self, now: Time) {
        for g in 0..self.groups.len() {
            if self.groups[g].place.is_some() {
                self.judge_group_trackers(g, now);
            }
        }
    }

    fn judge_group_trackers(&mut self, g: usize, now: Time) {
        let mut tracked = std::mem::take(&mut self.groups[g].tracked);
        let before = (tracked.lowered, std::mem::take(&mut tracked.counting));
        let faults = std::mem::take(&mut tracked.faults);
        (tracked.lowered, tracked.lowered_by) = Default::default();
        self.judge_carriers(g, &mut tracked);
        for t in self.of_group(g) {
            let tracker = &self.config.trackers[t];
            if !self.is_worse(g, t) {
                tracked.worse_since.remove(&tracker.id);
                continue;
            }
            let since = *tracked.worse_since.entry(tracker.id).or_insert(now);
            if now < since + tracker.shared.unwrap_or_default() {
                continue;
            }
            tracked.counting.insert(tracker.id);
            let text = format!("{}: {}", tracker.name, self.reports[t].failure);
            match tracker.effect {
                Effect::Fault => drop(tracked.faults.insert(tracker.name.clone(), text)),
                Effect::Lowers(by) => {
                    tracked.lowered = tracked.lowered.saturating_add(by);
                    tracked.lowered_by.push(text);
                }
            }
        }
        self.judge_reach(g, now, &mut tracked, &faults);
        if before.0 == 0 && tracked.lowered > 0 {
            tracked.lowered_since = now;
        }
        let changed: Vec<usize> = self
            .of_group(g)
            .filter(|&t| {
                let id = self.config.trackers[t].id;
                before.1.contains(&id) != tracked.counting.contains(&id)
            })
            .collect();
        self.groups[g].tracked = tracked;
        if before.0 != self.groups[g].tracked.lowered {
            let group = &mut self.groups[g];
            let priority = group.priority();
            group.machines.iter_mut().for_each(|machine| machine.set_priority(priority));
            self.beat_due = true;
        }
        for t in changed {
            let group = &self.groups[g];
            let TrackerConfig { id, name, .. } = &self.config.trackers[t];
            let (group, counts) = (group.config.group, group.tracked.counting.contains(id));
            let (tracker, effect) = (name.clone(), self.effect(g, t, now));
            self.event(Event::Tracked { group, tracker, counts, effect });
        }
    }

    /// A zone without carrier is a fault, unless every other member is known to be no better off.
    fn judge_carriers(&self, g: usize, tracked: &mut Tracked) {
        tracked.cut.clear();
        let cut: Vec<u8> = self.zones_of(g).filter(|zone| self.is_cut(self.me(), *zone)).collect();
        let counts = !cut.is_empty() && self.is_worse_off(g, &cut);
        tracked.spared = !cut.is_empty() && (tracked.spared || !counts);
        // Of a node that has just lost a zone, or has none, nothing is lost by giving up at once. What another one has back can
        // wait for the group to be handed over.
        let late = tracked.spared && cut.len() < self.zones_of(g).count();
        let faults = if late { &mut tracked.faults } else { &mut tracked.cut };
        for zone in cut.into_iter().filter(|_| counts) {
            let name = self.zone_name(zone);
            faults.insert(name.clone(), format!("{name} has no carrier"));
        }
    }

    /// The zones of a group that have no carrier here, where that does not count.
    pub(super) fn spared_zones(&self, g: usize) -> impl Iterator<Item = u8> {
        let group = &self.groups[g];
        let cut = self.zones_of(g).filter(|zone| self.is_cut(self.me(), *zone));
        cut.filter(|zone| group.forbidden_by().all(|(source, _)| *source != self.zone_name(*zone)))
    }

    /// Whether another member is better off than this node, to which these zones are cut, or may be.
    fn is_worse_off(&self, g: usize, cut: &[u8]) -> bool {
        let (group, now) = (&self.groups[g], self.clock);
        let all = cut.len() == self.zones_of(g).count();
        if all || group.config.members.len() == 1 || group.foreign {
            return true;
        }
        let better = |node| self.troubles(g, node) < self.own_troubles(g);
        group.others().any(|node| {
            let Some(peer) = self.peer(node) else { return true };
            match standing(peer, group.config.group, now) {
                Standing::Active(_) | Standing::Candidate(_) | Standing::Pending => better(node),
                // Which of the two is cut off? Not the Active, nor one that had lost no more than the other.
                Standing::Out => peer.state() == PeerState::Dead && !group.is_active() && better(node),
                Standing::Unheard(_) => true,
            }
        })
    }

    /// Whether a zone is known to have no carrier at a node.
    pub(super) fn is_cut(&self, node: NodeId, zone: u8) -> bool {
        let own = || self.config.interfaces.iter().find(|(via, _)| *via == Via::Zone(zone)).map(|(_, i)| i);
        let interface = self.peer(node).map_or_else(own, |peer| peer.interface(Via::Zone(zone)));
        interface.is_some_and(|interface| !interface.carrier)
    }

    /// A zone in which this node reaches nobody is a fault where another node is known to do better. It is none yet while
    /// somebody answers again: neighbours that nobody reached are back, or the other node knows some that this one did not,
    /// and one that was well is well after fewer rounds.
    fn judge_reach(&self, g: usize, now: Time, tracked: &mut Tracked, before: &BTreeMap<String, String>) {
        let others = self.groups[g].config.members.len() > 1;
        let better = || {
            let mine = self.own_troubles(g);
            self.useful_others(g).any(|node| self.troubles(g, node) < mine)
        };
        let zones: Vec<u8> = self.unreached_zones(g).filter(|_| others && better()).collect();
        tracked.unreached_since.retain(|zone, _| zones.contains(zone));
        // The other one may find out one round later that it reaches nobody either.
        let grace = ROUND * 2 + self.config.heartbeat_interval * 3;
        for zone in zones {
            let late = now >= *tracked.unreached_since.entry(zone).or_insert(now) + grace;
            let name = self.zone_name(zone);
            if late && (before.contains_key(&name) || !self.is_answered(zone)) {
                tracked.faults.insert(name, self.reach_text(zone));
            }
        }
    }

    /// By how many shared faults this node fails, and in how many zones it has no carrier or reaches nobody.
    fn own_troubles(&self, g: usize) -> usize {
        self.shared_faults(g).filter(|&t| self.reports[t].state == State::Down).count()
            + self.bad_zones(g, self.me())
    }

    /// In how many zones of a group a node has no carrier, or is not known to reach anybody as this node does.
    fn bad_zones(&self, g: usize, node: NodeId) -> usize {
        let bad = |zone: &u8| self.is_cut(node, *zone) || self.is_badly_placed(node, *zone);
        self.zones_of(g).filter(bad).count()
    }

    /// The trackers that matter for a group.
    fn of_group(&self, g: usize) -> impl Iterator<Item = usize> {
        let group = self.groups[g].config.group;
        let matters = move |t: &TrackerConfig| t.groups.is_empty() || t.groups.contains(&group);
        self.config.trackers.iter().enumerate().filter(move |(_, t)| matters(t)).map(|(t, _)| t)
    }

    /// Whether a tracker fails, and by that another node is better.
    fn is_worse(&self, g: usize, t: usize) -> bool {
        let group = &self.groups[g];
        let TrackerConfig { id, effect, shared, .. } = self.config.trackers[t];
        if self.reports[t].state != State::Down {
            return false;
        }
        if shared.is_none() || group.config.members.len() == 1 || group.foreign {
            return true;
        }
        let mine = self.own_troubles(g);
        self.useful_others(g).any(|node| match effect {
            Effect::Fault => self.troubles(g, node) < mine,
            Effect::Lowers(_) => !self.is_unwell(node, id),
        })
    }

    /// The other members that could be Active and can be compared with.
    fn useful_others(&self, g: usize) -> impl Iterator<Item = NodeId> {
        let (group, now) = (&self.groups[g], self.clock);
        let useful = move |node: &NodeId| {
            let standing = self.peer(*node).map(|peer| standing(peer, group.config.group, now));
            matches!(standing, Some(Standing::Active(_) | Standing::Candidate(_) | Standing::Pending))
        };
        group.others().filter(useful)
    }

    fn is_unwell(&self, node: NodeId, id: u32) -> bool {
        match self.peer(node) {
            Some(peer) => peer.last.as_ref().is_none_or(|heartbeat| heartbeat.unwell.contains(&id)),
            None => self.unwell().any(|unwell| unwell == id),
        }
    }

    fn shared_faults(&self, g: usize) -> impl Iterator<Item = usize> {
        let shared = |t: &TrackerConfig| t.shared.is_some() && t.effect == Effect::Fault;
        self.of_group(g).filter(move |&t| shared(&self.config.trackers[t]))
    }

    /// By how many shared faults of a group a node is unwell, and in how many zones it is badly off.
    pub(super) fn troubles(&self, g: usize, node: NodeId) -> usize {
        let unwell = |&t: &usize| self.is_unwell(node, self.config.trackers[t].id);
        self.shared_faults(g).filter(unwell).count() + self.bad_zones(g, node)
    }

    /// Whether a tracker of a group has no verdict yet: too early to take the group from another node.
    pub(super) fn untried(&self, g: usize) -> bool {
        self.of_group(g).any(|t| self.reports[t].state == State::Unknown)
    }

    /// Active: the candidate that a lowered priority makes it hand over to.
    pub(super) fn less_troubled(&self, g: usize) -> Option<NodeId> {
        let (group, now) = (&self.groups[g], self.clock);
        if group.tracked.lowered == 0 || group.moved {
            return None;
        }
        let wait = self.config.preempt_wait;
        let patient = now >= group.tracked.lowered_since + wait;
        let refused = |node| group.refusal.as_ref().is_some_and(|r| r.by == node && now < r.at + wait);
        let holds_flows = |node| {
            let last = self.peer(node).and_then(|peer| peer.last.as_ref());
            last.is_some_and(|heartbeat| heartbeat.in_sync)
        };
        self.candidates(g)
            .filter(|(node, r)| r.priority > group.priority() && !refused(*node))
            .filter(|(node, _)| patient || holds_flows(*node))
            .max_by_key(|(node, r)| (r.priority, Reverse(group.order(*node))))
            .map(|(node, _)| node)
    }

    /// How the trackers of a group stand.
    pub(super) fn trackers(&self, g: usize, now: Time) -> Vec<TrackerStatus> {
        let one = |t: usize| TrackerStatus {
            name: self.config.trackers[t].name.clone(),
            report: self.reports[t].clone(),
            counts: self.groups[g].tracked.counting.contains(&self.config.trackers[t].id),
            effect: self.effect(g, t, now),
        };
        self.of_group(g).map(one).collect()
    }

    /// What a tracker does to a group, or why nothing.
    fn effect(&self, g: usize, t: usize, now: Time) -> String {
        let tracked = &self.groups[g].tracked;
        let TrackerConfig { id, effect, shared, .. } = self.config.trackers[t];
        let held = self.reports[t].held_until.filter(|&until| until > now);
        let held = held.map_or(String::new(), |until| {
            format!(", held for {:.0} s: it fell too often", until.since(now).as_secs_f64())
        });
        match (self.reports[t].state, effect) {
            (State::Unknown, _) => "none yet".into(),
            (State::Up, _) => "none".into(),
            (State::Down, Effect::Fault) if tracked.counting.contains(&id) => {
                format!("forbids the role{held}")
            }
            (State::Down, Effect::Lowers(by)) if tracked.counting.contains(&id) => {
                format!("lowers the priority by {by}{held}")
            }
            (State::Down, _) => match tracked.worse_since.get(&id) {
                Some(&since) => {
                    let left = (since + shared.unwrap_or_default()).since(now);
                    format!("counts in {:.1} s unless other nodes fail it too{held}", left.as_secs_f64())
                }
                None if self.useful_others(g).next().is_some() => {
                    format!("none: no node that could be active is better off{held}")
                }
                None => format!("none: no other node is heard that could be active{held}"),
            },
        }
    }
}
