//! Who should be Active, judged from the present state and nothing else.
//!
//! The judgement is made anew in every tick, so no event can be missed: whatever is true now
//! decides, and it is made after everything that had arrived was read. `Election::judge` is the
//! whole policy; the neighbouring room `act` carries it out.

use std::cmp::Reverse;

use super::Election;
use super::config::GroupId;
use super::peer::Peer;
use crate::NodeId;
use crate::heartbeat::{Cause, GroupRecord, NodeState, PeerState, Role};
use crate::time::Time;
use crate::vrrp::machine::{Want, active_down_interval};

/// Causes for which another Active is meant to give way: no split brain.
pub(super) const PLANNED: [Cause; 3] = [Cause::Preempted, Cause::Offered, Cause::LeaseEnded];

/// Causes for which a Backup takes a group that nobody gave it.
const CLAIMS: [Cause; 4] = [Cause::PeerDead, Cause::LeaseEnded, Cause::VrrpSilence, Cause::Vacant];

/// What is to be done with a group.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// Leave it as it is.
    Stay,
    /// Become Active.
    Take(Cause),
    /// Give up the role, if there is one, for this one.
    Be(Role, Cause),
    /// Active: offer the group to this node.
    Offer(NodeId),
    /// Active: the offer was not taken in time.
    Withdraw,
}

/// What a member other than this node means for a group.
#[derive(Clone, Copy)]
pub(super) enum Standing<'a> {
    /// It is Active, and says so.
    Active(&'a GroupRecord),
    /// It could be.
    Candidate(&'a GroupRecord),
    /// It lives and cannot or must not be, or it is surely not there.
    Out,
    /// It may be Active; its probes or its lease will tell soon.
    Pending,
    /// Nothing authentic is heard of it: VRRP decides. Since when, if it lost its sync link.
    Unheard(Option<Time>),
}

pub(super) fn standing(peer: &Peer, group: GroupId, now: Time) -> Standing<'_> {
    let record = peer.group(group);
    let was_active = record.is_some_and(|r| r.role == Role::Active);
    match peer.state() {
        PeerState::Alive => {
            let running = peer.last.as_ref().is_some_and(|h| h.node == NodeState::Running);
            match record {
                Some(r) if r.role == Role::Active => Standing::Active(r),
                Some(r) if r.role == Role::Backup && running => Standing::Candidate(r),
                _ => Standing::Out,
            }
        }
        PeerState::Dead | PeerState::Left => Standing::Out,
        PeerState::Suspect => Standing::Pending,
        PeerState::Silent if peer.suspicion.lapsed(now) => Standing::Out,
        PeerState::Silent => Standing::Pending,
        PeerState::SyncLost if was_active && peer.owns(now) => Standing::Pending,
        // It may not know yet that it is not heard, and advertise slowly.
        PeerState::SyncLost if peer.last.is_none() => Standing::Unheard(None),
        PeerState::SyncLost => Standing::Unheard(Some(peer.suspicion.since())),
        PeerState::Unknown => Standing::Unheard(None),
    }
}

/// Whether no way to a peer is left: neither heartbeats nor answers of its data plane come from it.
pub(super) fn unreached(peer: &Peer) -> bool {
    match peer.state() {
        PeerState::Dead | PeerState::Unknown => true,
        PeerState::SyncLost => !peer.suspicion.answers(),
        PeerState::Alive | PeerState::Suspect | PeerState::Silent | PeerState::Left => false,
    }
}

impl Election {
    /// Judges every group and carries the judgement out.
    pub(super) fn reconcile(&mut self) {
        let now = self.clock;
        for g in 0..self.groups.len() {
            if self.groups[g].place.is_none() {
                continue;
            }
            // The lease ended without being renewed: this thread did not run, and the data plane
            // has stopped forwarding. Whoever took over meanwhile is not to be disturbed.
            if self.groups[g].is_active() && now >= self.groups[g].lease_until {
                self.be(g, Role::Backup, Cause::LeaseLapsed);
            }
            self.remember_move(g);
            self.raise(g);
            self.yield_to_vrrp(g);
            self.note_splits(g);
            self.set_cadence(g);
            // One judgement may ask for the next: a fault is over, and the role is free.
            for _ in 0..3 {
                match self.judge(g) {
                    Judgement::Stay => break,
                    Judgement::Take(cause) => self.take(g, cause),
                    Judgement::Be(role, cause) => self.be(g, role, cause),
                    Judgement::Offer(to) => self.offer(g, to, false),
                    Judgement::Withdraw => self.withdraw(g),
                }
            }
        }
    }

    /// Active: learns from a Backup that an operator moved the group here before the daemon ended and came back.
    fn remember_move(&mut self, g: usize) {
        let group = &self.groups[g];
        let reminds = |r: &GroupRecord| r.moved && r.hears == Some(self.me()) && r.term == group.term;
        if group.is_active() && group.cause == Cause::Resumed && self.candidates(g).any(|(_, r)| reminds(r)) {
            self.groups[g].moved = true;
        }
    }

    /// The whole policy.
    fn judge(&mut self, g: usize) -> Judgement {
        let forbidden = self.forbidden(g);
        let role = self.groups[g].role;
        match (role, forbidden) {
            (Role::Active, forbidden) => self.judge_active(g, forbidden),
            (role, Some((wanted, _))) if role == wanted => Judgement::Stay,
            (_, Some((wanted, cause))) => Judgement::Be(wanted, cause),
            (Role::Init, None) => Judgement::Be(Role::Backup, Cause::Started),
            (Role::Fault, None) => Judgement::Be(Role::Backup, Cause::Recovered),
            (Role::Standby, None) => Judgement::Be(Role::Backup, Cause::StandbyEnded),
            (Role::Backup, None) => match self.judge_backup(g) {
                Judgement::Take(cause) if CLAIMS.contains(&cause) && self.lacks_witness(g) => Judgement::Stay,
                judgement => {
                    self.groups[g].held = None;
                    judgement
                }
            },
        }
    }

    /// What keeps this node from being Active, and the role it has then.
    pub(super) fn forbidden(&self, g: usize) -> Option<(Role, Cause)> {
        match self.node {
            NodeState::Leaving => Some((Role::Standby, Cause::Shutdown)),
            NodeState::Standby => Some((Role::Standby, Cause::Standby)),
            NodeState::Running if self.groups[g].forbidden_by().next().is_none() => None,
            NodeState::Running => Some((Role::Fault, Cause::Fault)),
        }
    }

    fn judge_active(&mut self, g: usize, forbidden: Option<(Role, Cause)>) -> Judgement {
        let now = self.clock;
        let group = &self.groups[g];
        let mine = (group.term, group.priority(), Reverse(group.order(self.me())));
        let better = self.actives(g).any(|(node, r)| (r.term, r.priority, Reverse(group.order(node))) > mine)
            || self.told_actives(g).any(|(_, term)| term >= group.term);
        if better {
            let offered = |node| group.handover.is_some_and(|h| h.to == node);
            let planned = self.actives(g).any(|(node, r)| offered(node) || PLANNED.contains(&r.cause))
                || self.told_actives(g).any(|(node, _)| offered(node));
            return match forbidden {
                Some((role, cause)) => Judgement::Be(role, cause),
                None if planned => Judgement::Be(Role::Backup, Cause::HandedOver),
                None => Judgement::Be(Role::Backup, Cause::Outranked),
            };
        }
        match (forbidden, group.handover) {
            // Its own link is gone, so nothing is lost by giving up at once. What only a tracker says
            // leaves the time to hand over.
            (Some((Role::Fault, cause)), _) if !group.tracked.cut.is_empty() => {
                Judgement::Be(Role::Fault, cause)
            }
            (Some((role, cause)), Some(h)) if now >= h.deadline => Judgement::Be(role, cause),
            // Who is to have it may be about to answer: that is worth a moment.
            (Some((Role::Fault, _)), _) if self.pending(g) => Judgement::Stay,
            (None, Some(h)) if now >= h.deadline || !self.is_candidate(g, h.to) => Judgement::Withdraw,
            (Some(_), Some(h)) if self.is_candidate(g, h.to) => Judgement::Stay,
            (Some((role, cause)), _) => match self.best_candidate(g) {
                Some(to) => Judgement::Offer(to),
                None if self.is_about_to_answer(g) => Judgement::Stay,
                None => Judgement::Be(role, cause),
            },
            (None, Some(_)) => Judgement::Stay,
            (None, None) => self.less_troubled(g).map_or(Judgement::Stay, Judgement::Offer),
        }
    }

    fn judge_backup(&mut self, g: usize) -> Judgement {
        let now = self.clock;
        let me = self.me();
        let preempt_wait = self.config.preempt_wait;
        let top = self.top_active(g).map(|(node, r)| (node, *r));
        if let Some((node, record)) = top {
            self.groups[g].vacant_since = None;
            // Its daemon forgets that when it ends; it is reminded if it comes back within its lease.
            let owner = (node, record.term);
            let moved = record.moved && record.offered_to.is_none() || self.groups[g].moved_to == Some(owner);
            self.groups[g].moved_to = moved.then_some(owner);
            if record.offered_to == Some(me) {
                return Judgement::Take(Cause::Offered);
            }
            let group = &self.groups[g];
            let preferred =
                (group.priority(), Reverse(group.order(me))) > (record.priority, Reverse(group.order(node)));
            let best = self.candidates(g).all(|(other, r)| {
                (r.priority, Reverse(group.order(other))) < (group.priority(), Reverse(group.order(me)))
            });
            let untried = self.untried(g);
            let unconnected = self.unconnected(g, node);
            let active = self.peer(node);
            // With another file the Active may mean other addresses by the group: what moves then comes twice, or nowhere.
            let other_config = active.is_some_and(|p| p.config_differs(self.config.config_hash));
            let in_sync = active.is_some_and(|p| p.in_sync);
            if !group.config.preempt
                || !preferred
                || !best
                || untried
                || other_config
                || unconnected.is_some()
                || moved
                || record.offered_to.is_some()
            {
                self.groups[g].preempt_since = None;
                return Judgement::Stay;
            }
            let since = *self.groups[g].preempt_since.get_or_insert(now);
            let delay = self.groups[g].config.preempt_delay;
            let ready = in_sync || now >= since + preempt_wait;
            if ready && now >= since + delay {
                return Judgement::Take(Cause::Preempted);
            }
            return Judgement::Stay;
        }
        self.groups[g].preempt_since = None;
        if self.told_actives(g).next().is_some() || self.is_being_taken(g) {
            self.groups[g].vacant_since = None;
            return Judgement::Stay;
        }

        let group = &self.groups[g];
        let (mut unknown, mut sync_lost, mut alive) = (false, None, false);
        for peer in group.others().filter_map(|node| self.peer(node)) {
            alive |= peer.alive();
            match standing(peer, group.config.group, now) {
                Standing::Pending => return Judgement::Stay,
                // Which groups it owns is not known, but somebody advertised this one a moment ago.
                Standing::Unheard(None) if peer.owns(now) && self.advertised_lately(g) => {
                    return Judgement::Stay;
                }
                // The same if its daemon was heard before, and its data plane answers still.
                Standing::Unheard(Some(_))
                    if peer.owns(now) && peer.suspicion.answers() && self.advertised_lately(g) =>
                {
                    return Judgement::Stay;
                }
                Standing::Unheard(None) => unknown = true,
                Standing::Unheard(Some(since)) => sync_lost = sync_lost.max(Some(since)),
                _ => {}
            }
        }
        let mine = (Reverse(self.troubles(g, me)), group.warm, group.priority(), Reverse(group.order(me)));
        let best = self.candidates(g).all(|(node, r)| self.rank(g, node, r) < mine);
        let patience = active_down_interval(group.priority(), group.config.advert_interval_cs) * 2;
        let since = *self.groups[g].vacant_since.get_or_insert(now);
        let group = &self.groups[g];
        if !best && now < since + patience {
            return Judgement::Stay;
        }
        // A role that was just given up may be taken already by one that is not heard yet.
        let settling = group.released.is_some_and(|at| now < at + self.config.heartbeat_interval * 3);
        if settling && self.candidates(g).next().is_some() {
            return Judgement::Stay;
        }
        // No other fwha node is configured, or not all can be heard or proved to be gone: VRRP's
        // silence has to show that nobody is Active.
        let foreign = group.foreign && !alive;
        if unknown || sync_lost.is_some() || foreign || group.config.members.len() == 1 {
            let fast_from = if unknown || foreign { None } else { sync_lost };
            let owner = group.cause == Cause::Started
                && fast_from.is_none()
                && group.machines.iter().any(|m| m.start() == Want::Active)
                && group.owner_starts(now);
            return if now >= group.silent_at(fast_from) || owner {
                Judgement::Take(Cause::VrrpSilence)
            } else {
                Judgement::Stay
            };
        }
        let last = group.last_active.and_then(|node| self.peer(node));
        Judgement::Take(match last.map(Peer::state) {
            Some(PeerState::Dead) => Cause::PeerDead,
            Some(PeerState::Silent) => Cause::LeaseEnded,
            _ => Cause::Vacant,
        })
    }

    /// A zone that both this node and an Active have, and of which this one does not know that its frames get there: no
    /// advertisement of the Active arrives, and no neighbour is known to answer. A switch that has just had its cable
    /// plugged in may forward nothing for half a minute (IEEE 802.1D, forward delay).
    pub(super) fn unconnected(&self, g: usize, active: NodeId) -> Option<u8> {
        let group = &self.groups[g];
        let cut = |zone| self.is_cut(self.me(), zone) || self.is_cut(active, zone);
        let routers = group.config.instances.iter().zip(&group.machines);
        let mut deaf = routers.filter(|(_, machine)| !machine.hears(self.clock)).map(|(i, _)| i.zone);
        deaf.find(|&zone| !cut(zone) && !self.is_well_placed(zone))
    }

    /// Whether the lease of an Active may still run that advertised a group last and hung then.
    fn advertised_lately(&self, g: usize) -> bool {
        let until = self.groups[g].machines.iter().filter_map(|m| m.next_expected()).max();
        until.is_some_and(|expected| self.clock < expected + self.config.lease)
    }

    pub(super) fn peer(&self, node: NodeId) -> Option<&Peer> {
        self.peers.iter().find(|p| p.node == node)
    }

    /// The other members that say they are Active.
    pub(super) fn actives(&self, g: usize) -> impl Iterator<Item = (NodeId, &GroupRecord)> {
        let (group, now) = (&self.groups[g], self.clock);
        group.others().filter_map(move |node| match standing(self.peer(node)?, group.config.group, now) {
            Standing::Active(record) => Some((node, record)),
            _ => None,
        })
    }

    /// The one of them with the best claim.
    pub(super) fn top_active(&self, g: usize) -> Option<(NodeId, &GroupRecord)> {
        self.actives(g).max_by_key(|(node, r)| (r.term, r.priority, Reverse(self.groups[g].order(*node))))
    }

    /// Members that are Active and are not heard here, but by another that is: which, and in which term. Whom this
    /// node hears itself, it knows better.
    pub(super) fn told_actives(&self, g: usize) -> impl Iterator<Item = (NodeId, u32)> {
        let group = &self.groups[g];
        let unheard = |node: NodeId| self.peer(node).is_some_and(|peer| !peer.alive());
        let alive = group.others().filter_map(|node| self.peer(node)).filter(|peer| peer.alive());
        let told = alive.filter_map(|peer| peer.group(group.config.group));
        told.filter_map(|r| Some((r.hears?, r.term))).filter(move |(node, _)| unheard(*node))
    }

    /// Whether a member that is heard here has taken the role in a term of which it has told another, and not this node yet:
    /// one heartbeat of it was lost.
    fn is_being_taken(&self, g: usize) -> bool {
        let group = &self.groups[g];
        let id = group.config.group;
        let record =
            |node: NodeId| self.peer(node).filter(|peer| peer.alive()).and_then(|peer| peer.group(id));
        let told = group.others().filter_map(&record);
        told.filter_map(|r| Some((r.term, record(r.hears?)?))).any(|(term, taker)| taker.term < term)
    }

    /// The other members that could be Active.
    pub(super) fn candidates(&self, g: usize) -> impl Iterator<Item = (NodeId, &GroupRecord)> {
        let (group, now) = (&self.groups[g], self.clock);
        group.others().filter_map(move |node| match standing(self.peer(node)?, group.config.group, now) {
            Standing::Candidate(record) => Some((node, record)),
            _ => None,
        })
    }

    /// Whether of a member it will soon be known what it is.
    fn pending(&self, g: usize) -> bool {
        let group = &self.groups[g];
        let mut others = group.others().filter_map(|node| self.peer(node));
        others.any(|peer| matches!(standing(peer, group.config.group, self.clock), Standing::Pending))
    }

    /// Whether a member that could be Active has just fallen silent: mostly its daemon could not run for a moment, and takes
    /// an offer when it can. It is waited for as long as for the answer to an offer.
    fn is_about_to_answer(&self, g: usize) -> bool {
        let (group, now) = (&self.groups[g], self.clock);
        let mut silent = group.others().filter_map(|node| self.peer(node)).filter(|peer| {
            matches!(peer.state(), PeerState::Suspect | PeerState::Silent)
                && now < peer.suspicion.since() + self.config.handover_timeout
        });
        let running = |peer: &Peer| peer.last.as_ref().is_some_and(|last| last.node == NodeState::Running);
        silent.any(|peer| {
            running(peer) && peer.group(group.config.group).is_some_and(|r| r.role == Role::Backup)
        })
    }

    pub(super) fn is_candidate(&self, g: usize, node: NodeId) -> bool {
        self.candidates(g).any(|(candidate, _)| candidate == node)
    }

    /// Those of them, the best first; one that says it does not hear this node would not hear an offer.
    pub(super) fn best_candidates(&self, g: usize) -> Vec<NodeId> {
        let hears = |node| self.peer(node).is_some_and(|peer| !peer.deaf);
        let ranked = self.candidates(g).map(|(node, r)| (hears(node), self.rank(g, node, r), node));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked.into_iter().map(|(.., node)| node).collect()
    }

    /// The best of them.
    pub(super) fn best_candidate(&self, g: usize) -> Option<NodeId> {
        self.best_candidates(g).first().copied()
    }

    /// By what candidates for a vacant group are told apart; the greatest is the best.
    fn rank(&self, g: usize, node: NodeId, r: &GroupRecord) -> (Reverse<usize>, bool, u8, Reverse<usize>) {
        (Reverse(self.troubles(g, node)), r.warm, r.priority, Reverse(self.groups[g].order(node)))
    }

    pub(super) fn me(&self) -> NodeId {
        self.config.identity.node
    }
}
