//! Who should be Active, judged from the present state and nothing else.
//!
//! The judgement is made anew in every tick, so no event can be missed: whatever is true now
//! decides, and it is made after everything that had arrived was read. [`Election::judge`] is the whole policy; the rest of this room carries it out.

use std::cmp::Reverse;
use std::time::Duration;

use super::Election;
use super::config::GroupId;
use super::group::{FAST_ADVERT_CS, Handover, Split};
use super::output::{Event, Output};
use super::peer::Peer;
use super::suspicion::Adverts;
use crate::NodeId;
use crate::heartbeat::{Cause, GroupRecord, NodeState, PeerState, Role, Via};
use crate::time::Time;
use crate::vrrp::machine::{Want, active_down_interval};
use crate::vrrp::packet::{Advert, Envelope, PRIORITY_RELEASE};

/// After a takeover the addresses are announced at once and again after these times: the first
/// announcements may meet a switch port that still blocks, or the last ones of the loser.
const ANNOUNCE_AGAIN: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5)];

/// Causes for which another Active is meant to give way: no split brain.
const PLANNED: [Cause; 3] = [Cause::Preempted, Cause::Offered, Cause::LeaseEnded];

/// Between two answers to losing advertisements.
const LOSING_ANSWER: Duration = Duration::from_millis(10);

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
enum Standing<'a> {
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

fn standing(peer: &Peer, group: GroupId, now: Time) -> Standing<'_> {
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
        PeerState::Silent if peer.suspicion.fenced(now) => Standing::Out,
        PeerState::Silent => Standing::Pending,
        PeerState::SyncLost if was_active && !peer.suspicion.fenced(now) => Standing::Pending,
        PeerState::SyncLost => Standing::Unheard(Some(peer.suspicion.since())),
        PeerState::Unknown => Standing::Unheard(None),
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
                    Judgement::Withdraw => {
                        if let Some(handover) = self.groups[g].handover.take() {
                            let group = self.groups[g].config.group;
                            self.event(Event::HandoverFailed { group, to: handover.to });
                        }
                    }
                }
            }
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
            (Role::Fault | Role::Standby, None) => Judgement::Be(Role::Backup, Cause::Recovered),
            (Role::Backup, None) => self.judge_backup(g),
        }
    }

    /// What keeps this node from being Active, and the role it has then.
    fn forbidden(&self, g: usize) -> Option<(Role, Cause)> {
        match self.node {
            NodeState::Leaving => Some((Role::Standby, Cause::Shutdown)),
            NodeState::Standby => Some((Role::Standby, Cause::Standby)),
            NodeState::Running if self.groups[g].faults.is_empty() => None,
            NodeState::Running => Some((Role::Fault, Cause::Fault)),
        }
    }

    fn judge_active(&mut self, g: usize, forbidden: Option<(Role, Cause)>) -> Judgement {
        let now = self.clock;
        let group = &self.groups[g];
        let mine = (group.term, group.priority(), Reverse(group.order(self.me())));
        let better = self.actives(g).any(|(node, r)| (r.term, r.priority, Reverse(group.order(node))) > mine);
        if better {
            let planned = self
                .actives(g)
                .any(|(node, r)| group.handover.is_some_and(|h| h.to == node) || PLANNED.contains(&r.cause));
            return match forbidden {
                Some((role, cause)) => Judgement::Be(role, cause),
                None if planned => Judgement::Be(Role::Backup, Cause::HandedOver),
                None => Judgement::Be(Role::Backup, Cause::Outranked),
            };
        }
        match (forbidden, group.handover) {
            (Some((Role::Fault, cause)), _) => Judgement::Be(Role::Fault, cause),
            (Some((role, cause)), Some(h)) if now >= h.deadline => Judgement::Be(role, cause),
            (None, Some(h)) if now >= h.deadline || !self.is_candidate(g, h.to) => Judgement::Withdraw,
            (Some(_), Some(h)) if self.is_candidate(g, h.to) => Judgement::Stay,
            (Some((role, cause)), _) => match self.best_candidate(g) {
                Some(to) => Judgement::Offer(to),
                None => Judgement::Be(role, cause),
            },
            (None, _) => Judgement::Stay,
        }
    }

    fn judge_backup(&mut self, g: usize) -> Judgement {
        let now = self.clock;
        let me = self.me();
        let preempt_wait = self.config.preempt_wait;
        let top = self
            .actives(g)
            .max_by_key(|(node, r)| (r.term, r.priority, Reverse(self.groups[g].order(*node))))
            .map(|(node, r)| (node, *r));
        if let Some((node, record)) = top {
            self.groups[g].vacant_since = None;
            if record.offered_to == Some(me) {
                return Judgement::Take(Cause::Offered);
            }
            let group = &self.groups[g];
            let preferred =
                (group.priority(), Reverse(group.order(me))) > (record.priority, Reverse(group.order(node)));
            let best = self.candidates(g).all(|(other, r)| {
                (r.priority, Reverse(group.order(other))) < (group.priority(), Reverse(group.order(me)))
            });
            if !group.config.preempt || !preferred || !best || record.moved || record.offered_to.is_some() {
                self.groups[g].preempt_since = None;
                return Judgement::Stay;
            }
            let in_sync = self.peer(node).is_some_and(|p| p.in_sync);
            let since = *self.groups[g].preempt_since.get_or_insert(now);
            if in_sync || now >= since + preempt_wait {
                return Judgement::Take(Cause::Preempted);
            }
            return Judgement::Stay;
        }
        self.groups[g].preempt_since = None;

        let group = &self.groups[g];
        let (mut unknown, mut sync_lost, mut alive) = (false, None, false);
        for peer in group.others().filter_map(|node| self.peer(node)) {
            alive |= peer.alive();
            match standing(peer, group.config.group, now) {
                Standing::Pending => return Judgement::Stay,
                Standing::Unheard(None) => unknown = true,
                Standing::Unheard(Some(since)) => sync_lost = sync_lost.max(Some(since)),
                _ => {}
            }
        }
        let mine = (group.warm, group.priority(), Reverse(group.order(me)));
        let best =
            self.candidates(g).all(|(node, r)| (r.warm, r.priority, Reverse(group.order(node))) < mine);
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
            let owner =
                group.config.members.len() == 1 && group.machines.iter().any(|m| m.start() == Want::Active);
            return if now >= group.silent_at(fast_from) || (owner && group.cause == Cause::Started) {
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

    fn peer(&self, node: NodeId) -> Option<&Peer> {
        self.peers.iter().find(|p| p.node == node)
    }

    /// The other members that say they are Active.
    fn actives(&self, g: usize) -> impl Iterator<Item = (NodeId, &GroupRecord)> {
        let (group, now) = (&self.groups[g], self.clock);
        group.others().filter_map(move |node| match standing(self.peer(node)?, group.config.group, now) {
            Standing::Active(record) => Some((node, record)),
            _ => None,
        })
    }

    /// The other members that could be Active.
    pub(super) fn candidates(&self, g: usize) -> impl Iterator<Item = (NodeId, &GroupRecord)> {
        let (group, now) = (&self.groups[g], self.clock);
        group.others().filter_map(move |node| match standing(self.peer(node)?, group.config.group, now) {
            Standing::Candidate(record) => Some((node, record)),
            _ => None,
        })
    }

    pub(super) fn is_candidate(&self, g: usize, node: NodeId) -> bool {
        self.candidates(g).any(|(candidate, _)| candidate == node)
    }

    /// The best other member.
    pub(super) fn best_candidate(&self, g: usize) -> Option<NodeId> {
        let group = &self.groups[g];
        self.candidates(g)
            .max_by_key(|(node, r)| (r.warm, r.priority, Reverse(group.order(*node))))
            .map(|(node, _)| node)
    }

    /// When a Backup would take the group because of VRRP's silence.
    pub(super) fn silence_due(&self, g: usize) -> Option<Time> {
        let group = &self.groups[g];
        if group.role != Role::Backup {
            return None;
        }
        let since = group.others().filter_map(|node| {
            let p = self.peer(node)?;
            (p.state() == PeerState::SyncLost).then_some(p.suspicion.since())
        });
        let fast = since.max();
        Some(fast.map_or(group.silent_at(None), |from| group.silent_at(Some(from))))
    }

    /// What VRRP says of `node`: about the groups in which it might be the one that is Active.
    pub(super) fn adverts_of(&self, node: NodeId) -> Adverts {
        let now = self.clock;
        let since = self.peer(node).map(|p| p.suspicion.since());
        let mut said = Adverts::NotExpected;
        for (g, group) in self.groups.iter().enumerate() {
            let might = group.place.is_some()
                && !group.is_active()
                && !group.machines.is_empty()
                && group.others().any(|n| n == node)
                && self.actives(g).next().is_none();
            if might && now < group.silent_at(since) {
                return Adverts::Heard;
            }
            if might {
                said = Adverts::Silent;
            }
        }
        said
    }

    /// A better advertisement takes the role, unless it comes from a peer: then both are back from a
    /// partition, and the channel, which knows the terms, gets a moment to open and decide.
    fn yield_to_vrrp(&mut self, g: usize) {
        let now = self.clock;
        let group = &self.groups[g];
        let Some((since, instance, interval_cs)) = group.outranked.filter(|_| group.is_active()) else {
            self.groups[g].outranked = None;
            return;
        };
        let peers = group.others().filter_map(|node| self.peer(node));
        let (mut alive, mut count) = (false, 0);
        for peer in peers {
            alive |= peer.alive();
            count += 1;
        }
        if alive {
            self.groups[g].outranked = None;
            self.counters.count("vrrp_rx", "ignored");
        } else if count == 0 || now >= since + self.config.heartbeat_interval * 5 {
            self.groups[g].outranked = None;
            self.groups[g].foreign = true;
            self.be_after(g, Role::Backup, Cause::VrrpOutranked, Some((instance, interval_cs)));
        }
    }

    /// While a peer that lives cannot hear our heartbeats, advertisements have to be quick.
    fn set_cadence(&mut self, g: usize) {
        let group = &self.groups[g];
        let quick = group
            .others()
            .filter_map(|node| self.peer(node))
            .any(|p| p.state() == PeerState::SyncLost || (p.alive() && p.deaf));
        let normal = group.config.advert_interval_cs;
        let interval = if quick { normal.min(FAST_ADVERT_CS) } else { normal };
        for i in 0..self.groups[g].machines.len() {
            if self.groups[g].machines[i].set_interval(interval) {
                self.advertise(g, i, None);
            }
        }
    }

    /// Tells of other Actives that this node did not hand the group to.
    fn note_splits(&mut self, g: usize) {
        let now = self.clock;
        let group = &self.groups[g];
        let id = group.config.group;
        if let Some(split) = group.split {
            if self.actives(g).any(|(node, _)| node == split.peer) && group.is_active() {
                return;
            }
            let stays = group.is_active();
            self.groups[g].split = None;
            self.event(Event::SplitBrainEnd { group: id, peer: split.peer, after: now.since(split.since) });
            if stays {
                // The loser's last announcement may have come after our first.
                self.announce(g);
            }
            return;
        }
        if !group.is_active() {
            return;
        }
        // The loser of a planned move has not read of it yet.
        if PLANNED.contains(&group.cause) && now < group.since + self.config.handover_timeout {
            return;
        }
        let other = self.actives(g).find(|(_, r)| !PLANNED.contains(&r.cause)).map(|(node, r)| (node, *r));
        if let Some((peer, record)) = other {
            let mine = (group.term, group.priority(), Reverse(group.order(self.me())));
            let theirs = (record.term, record.priority, Reverse(group.order(peer)));
            let overlap = Duration::from_millis(record.age_ms.min(group.age_ms(now)).into());
            let winner = if theirs > mine { peer } else { self.me() };
            self.groups[g].split = Some(Split { peer, since: now });
            self.event(Event::SplitBrain { group: id, peer, overlap, winner });
        }
    }

    /// A peer that was Active before this node took over lives, and gave way before it was heard
    /// as an Active again.
    pub(super) fn note_late_splits(&mut self, p: usize, were_active: &[GroupId]) {
        let (now, peer) = (self.clock, self.peers[p].node);
        for g in 0..self.groups.len() {
            let group = &self.groups[g];
            let id = group.config.group;
            let yielded = self.peers[p]
                .group(id)
                .is_some_and(|r| r.cause == Cause::Outranked && r.role != Role::Active);
            if group.is_active() && group.split.is_none() && were_active.contains(&id) && yielded {
                let (overlap, winner) = (now.since(group.since), self.me());
                self.event(Event::SplitBrain { group: id, peer, overlap, winner });
                self.event(Event::SplitBrainEnd { group: id, peer, after: Duration::ZERO });
                self.announce(g);
            }
        }
    }

    /// Becomes Active: advert, buckets, heartbeat, addresses, announcement.
    fn take(&mut self, g: usize, cause: Cause) {
        let (now, lease) = (self.clock, self.config.lease);
        let moved = cause == Cause::Offered
            && self.actives(g).any(|(_, r)| r.offered_to == Some(self.me()) && r.moved);
        let id = self.groups[g].config.group;
        let known = self.peers.iter().filter_map(|p| p.group(id)).map(|r| r.term).max().unwrap_or(0);
        let group = &mut self.groups[g];
        let since = match (cause, group.config.start.owned_since.take()) {
            (Cause::Resumed, Some(since)) => since,
            _ => {
                group.term = group.term.max(known).saturating_add(1);
                now
            }
        };
        group.lease_until = now + lease;
        (group.moved, group.warm, group.foreign) = (moved, true, false);
        (group.vacant_since, group.preempt_since, group.released) = (None, None, None);
        let (term, until) = (group.term, group.lease_until);
        for machine in &mut group.machines {
            machine.become_active(now);
        }
        self.set_role(g, Role::Active, cause);
        for instance in 0..self.groups[g].machines.len() {
            self.advertise(g, instance, None);
        }
        self.out.push_back(Output::Own { group: id, term, since, until });
        self.beat();
        self.out.push_back(Output::AddVips { group: id });
        self.announce(g);
        self.groups[g].last_active = None;
    }

    /// Resumes the ownership that an earlier life of this node left behind.
    pub(super) fn resume(&mut self, g: usize) {
        if self.forbidden(g).is_none() {
            self.take(g, Cause::Resumed);
        }
    }

    /// Takes a role other than Active. An Active's addresses go first, so that it has stopped
    /// answering for them when the successor announces them.
    fn be(&mut self, g: usize, role: Role, cause: Cause) {
        self.be_after(g, role, cause, None);
    }

    /// As [`Self::be`]; an advertisement on `heard.0` with interval `heard.1` made it so.
    fn be_after(&mut self, g: usize, role: Role, cause: Cause, heard: Option<(usize, u16)>) {
        let now = self.clock;
        let was_active = self.groups[g].is_active();
        if was_active {
            let successor = self.actives(g).next().is_some() || self.best_candidate(g).is_some();
            if !successor && cause != Cause::VrrpOutranked {
                for instance in 0..self.groups[g].machines.len() {
                    self.advertise(g, instance, Some(PRIORITY_RELEASE));
                }
            }
            let group = self.groups[g].config.group;
            self.out.push_back(Output::RemoveVips { group });
            self.out.push_back(Output::Disown { group });
        }
        let group = &mut self.groups[g];
        if was_active {
            group.released = Some(now);
        }
        group.announce.clear();
        group.handover = None;
        group.moved = false;
        group.vacant_since = None;
        group.preempt_since = None;
        if was_active || role == Role::Backup {
            for (i, machine) in group.machines.iter_mut().enumerate() {
                machine.become_backup(now, heard.filter(|(at, _)| *at == i).map(|(_, interval)| interval));
            }
        }
        self.set_role(g, role, cause);
        self.beat_due = true;
    }

    fn set_role(&mut self, g: usize, to: Role, cause: Cause) {
        let reason = self.reason(g, cause);
        let now = self.clock;
        let group = &mut self.groups[g];
        let from = group.role;
        (group.role, group.cause, group.since) = (to, cause, now);
        group.reason.clone_from(&reason);
        let (id, term) = (group.config.group, group.term);
        self.event(Event::Role { group: id, from, to, term, cause, reason });
    }

    /// The cause, with names.
    fn reason(&self, g: usize, cause: Cause) -> String {
        let group = &self.groups[g];
        let active = self.actives(g).map(|(node, _)| node).next().or(group.last_active);
        let name = active.map_or_else(|| "no node".into(), |node| self.config.node_name(node));
        match cause {
            Cause::PeerDead => format!("{name} answers nowhere"),
            Cause::LeaseEnded => format!("{name} was silent until its lease ended"),
            Cause::Offered => format!("handed over by {name}"),
            Cause::Preempted => format!("preferred over {name}"),
            Cause::HandedOver => format!("handed over to {name}"),
            Cause::Outranked => format!("{name} is active with a better claim"),
            Cause::Fault => group.fault().unwrap_or_else(|| cause.to_string()),
            Cause::Standby | Cause::Shutdown if group.is_active() && active.is_some() => {
                format!("{cause}, handed over to {name}")
            }
            _ => cause.to_string(),
        }
    }

    /// Offers the group to `to`, which takes it as soon as it reads that.
    pub(super) fn offer(&mut self, g: usize, to: NodeId, moved: bool) {
        // A successor that did not answer does not lengthen the wait for the next.
        let deadline = self.groups[g].handover.map(|h| h.deadline);
        let deadline = deadline.unwrap_or(self.clock + self.config.handover_timeout);
        self.groups[g].handover = Some(Handover { to, deadline, moved });
        self.beat_due = true;
    }

    /// Announces the group's addresses now and a few times more.
    fn announce(&mut self, g: usize) {
        let group = &mut self.groups[g];
        group.announce = ANNOUNCE_AGAIN.map(|after| self.clock + after).into();
        self.out.push_back(Output::Announce { group: group.config.group });
    }

    /// Sends the advertisement of one virtual router, with another priority than its own if given.
    pub(super) fn advertise(&mut self, g: usize, instance: usize, priority: Option<u8>) {
        let now = self.clock;
        let group = &mut self.groups[g];
        let (machine, config) = (&mut group.machines[instance], &group.config.instances[instance]);
        machine.advertised(now);
        let own = self.config.interfaces.iter().find(|(via, _)| *via == Via::Zone(config.zone));
        let Some((_, interface)) = own.filter(|(_, i)| i.carrier) else {
            return;
        };
        let v6 = config.addresses.first().is_some_and(|a| a.is_ipv6());
        if v6 {
            // The primary address of an interface is its IPv4 one so far.
            self.counters.count("vrrp_tx", "no_address");
            return;
        }
        let advert = Advert {
            vrid: config.vrid,
            priority: priority.unwrap_or(machine.priority()),
            interval_cs: machine.interval_cs(),
            addresses: config.addresses.clone(),
        };
        let bytes = advert.write(&Envelope::multicast(interface.address.into()), group.config.checksum);
        let (group, zone, vrid) = (group.config.group, config.zone, config.vrid);
        self.counters.count("vrrp_tx", "adverts");
        self.out.push_back(Output::Advertise { group, zone, vrid, v6, bytes });
    }

    /// What a checked advertisement of a virtual router of ours moves. `sender` is the member that
    /// it seems to come from.
    pub(super) fn heard_advert(
        &mut self,
        at: (usize, usize),
        advert: &Advert,
        greater: bool,
        sender: Option<NodeId>,
    ) {
        let (g, instance) = at;
        let now = self.clock;
        let authority = self.groups[g].others().filter_map(|node| self.peer(node)).any(Peer::alive);
        let active = self.actives(g).map(|(node, _)| node).next();
        let group = &mut self.groups[g];
        if !group.is_active() && authority && active.is_some() && sender != active && sender.is_some() {
            self.counters.count("vrrp_rx", "ignored");
            return;
        }
        // With peers of our own, the channel decides on preference; VRRP only tells who is there.
        let preempt = group.config.preempt && group.config.members.len() == 1;
        let others = group.config.members.len() > 1;
        match group.machines[instance].advert(now, advert, greater, preempt) {
            Want::Backup if authority => self.counters.count("vrrp_rx", "ignored"),
            Want::Backup => {
                group.outranked.get_or_insert((now, instance, advert.interval_cs));
            }
            Want::Advertise => {
                group.machines[instance].hasten(now, LOSING_ANSWER);
                if others
                    && !authority
                    && self.groups[g].announce.is_empty()
                    && advert.priority != PRIORITY_RELEASE
                {
                    // Another router answers for the addresses: win the neighbours back.
                    self.groups[g].announce = vec![now + ANNOUNCE_AGAIN[0], now + ANNOUNCE_AGAIN[1]];
                }
            }
            Want::Active | Want::Nothing => {}
        }
    }

    pub(super) fn me(&self) -> NodeId {
        self.config.identity.node
    }
}
