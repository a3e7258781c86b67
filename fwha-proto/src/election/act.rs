//! What a change of role does, in which order, and what is told of it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use super::Election;
use super::config::{Announce, GroupId};
use super::decide::PLANNED;
use super::group::{Handover, Refusal, Split};
use super::output::{Event, Output};
use super::peer::Peer;
use crate::NodeId;
use crate::heartbeat::{Cause, GroupRecord, Interface, PeerState, Role, Via};
use crate::time::Time;
use crate::vrrp::machine::active_down_interval;
use crate::vrrp::packet::PRIORITY_RELEASE;

/// How long a data plane forwards what still comes to it after a planned move. The first announcement is repeated
/// after 100 ms, should it be lost.
const LINGER: Duration = Duration::from_millis(500);

/// Heartbeats until one that took a role has said so.
const CLAIM_BEATS: u32 = 5;

impl Election {
    /// Becomes Active: advert, buckets, heartbeat, addresses, announcement.
    pub(super) fn take(&mut self, g: usize, cause: Cause) {
        let (now, lease) = (self.clock, self.config.lease);
        let moved = cause == Cause::Offered
            && self.actives(g).any(|(_, r)| r.offered_to == Some(self.me()) && r.moved);
        let id = self.groups[g].config.group;
        let known = self.told_term(g);
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
        group.held = None;
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

    /// The highest term in which a peer last said that this group is.
    fn told_term(&self, g: usize) -> u32 {
        let id = self.groups[g].config.group;
        self.peers.iter().filter_map(|p| p.group(id)).map(|r| r.term).max().unwrap_or(0)
    }

    /// When the peer that claimed a group would have been heard, if it were Active: by heartbeat if all others are, else
    /// by advertisement.
    pub(super) fn claim_settled(&self, g: usize) -> Option<Time> {
        let group = &self.groups[g];
        let at = group.claim?.at;
        let alive = group.others().all(|node| self.peer(node).is_some_and(Peer::alive));
        let beats = self.config.heartbeat_interval * CLAIM_BEATS;
        Some(at + if alive { beats } else { active_down_interval(0, group.config.advert_interval_cs) })
    }

    /// Holds the role in a term above all that are known, if there was an owner in a higher one than ours: one that
    /// is Active no more, and of which we knew nothing when we took the role. In its term nobody would take what we
    /// say of our flows.
    pub(super) fn raise(&mut self, g: usize) {
        let now = self.clock;
        let settled = self.claim_settled(g).is_some_and(|at| at <= now);
        let group = &mut self.groups[g];
        if let Some(claim) = group.claim.take_if(|_| settled) {
            group.past_term = group.past_term.max(claim.term);
        }
        let group = &self.groups[g];
        let id = group.config.group;
        // Of a term whose Active this node hears that one tells it itself, or has left it already.
        let told = |r: &&GroupRecord| r.hears.and_then(|node| self.peer(node)).is_some_and(Peer::alive);
        let heard = self.peers.iter().filter(|p| p.alive()).filter_map(|p| p.group(id));
        let heard = heard.filter(|r| !told(r)).map(|r| r.term);
        let known = heard.max().unwrap_or(0).max(group.past_term);
        let other = self.actives(g).next().is_some() || self.told_actives(g).next().is_some();
        if !group.is_active() || known <= group.term || other {
            return;
        }
        let group = &mut self.groups[g];
        group.term = known.saturating_add(1);
        let (term, since, until, cause) = (group.term, group.since, group.lease_until, group.cause);
        for instance in 0..self.groups[g].machines.len() {
            self.advertise(g, instance, None);
        }
        self.out.push_back(Output::Own { group: id, term, since, until });
        let reason = format!("term {known} has been");
        self.event(Event::Role { group: id, from: Role::Active, to: Role::Active, term, cause, reason });
        self.beat();
    }

    /// Resumes the ownership that an earlier life of this node left behind.
    pub(super) fn resume(&mut self, g: usize) {
        if self.forbidden(g).is_none() {
            self.take(g, Cause::Resumed);
        }
    }

    /// Takes a role other than Active. An Active's addresses go first, so that it has stopped
    /// answering for them when the successor announces them.
    pub(super) fn be(&mut self, g: usize, role: Role, cause: Cause) {
        self.be_after(g, role, cause, None);
    }

    /// As [`Self::be`]; an advertisement on `heard.0` with interval `heard.1` made it so.
    pub(super) fn be_after(&mut self, g: usize, role: Role, cause: Cause, heard: Option<(usize, u16)>) {
        let now = self.clock;
        let was_active = self.groups[g].is_active();
        if was_active {
            let active = self.actives(g).next().is_some() || self.told_actives(g).next().is_some();
            let successor = active || self.best_candidate(g).is_some();
            if !successor && cause != Cause::VrrpOutranked {
                for instance in 0..self.groups[g].machines.len() {
                    self.advertise(g, instance, Some(PRIORITY_RELEASE));
                }
            }
            let group = self.groups[g].config.group;
            self.out.push_back(Output::RemoveVips { group });
            // Neighbours send here until the successor's announcement has reached them.
            let planned = |r: &GroupRecord| matches!(r.cause, Cause::Offered | Cause::Preempted);
            let handed_over = self.actives(g).any(|(_, r)| planned(r));
            let forward_until = handed_over.then(|| self.groups[g].lease_until.min(now + LINGER));
            self.out.push_back(Output::Disown { group, forward_until });
        }
        let told = self.told_term(g);
        let group = &mut self.groups[g];
        if was_active {
            group.released = Some(now);
            // An Active kept its own term; from here on the group's is the successor's.
            group.term = group.term.max(told);
        }
        group.announce.clear();
        group.refresh = None;
        group.handover = None;
        (group.moved, group.moved_to) = (false, None);
        group.vacant_since = None;
        if let Some(claim) = group.claim.take() {
            group.term = group.term.max(claim.term);
        }
        (group.preempt_since, group.held) = (None, None);
        if was_active || role == Role::Backup {
            let normal = group.config.advert_interval_cs;
            for (i, machine) in group.machines.iter_mut().enumerate() {
                let learned = heard.filter(|(at, _)| *at == i).map(|(_, interval)| interval);
                machine.become_backup(now, learned, normal);
            }
        }
        self.set_role(g, role, cause);
        self.beat_due = true;
    }

    pub(super) fn set_role(&mut self, g: usize, to: Role, cause: Cause) {
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
    pub(super) fn reason(&self, g: usize, cause: Cause) -> String {
        let group = &self.groups[g];
        let heard = self.actives(g).map(|(node, _)| node);
        let active = heard.chain(self.told_actives(g).map(|(node, _)| node)).next().or(group.last_active);
        let name = active.map_or_else(|| "no node".into(), |node| self.config.node_name(node));
        match cause {
            Cause::PeerDead => format!("{name} answers nowhere"),
            Cause::LeaseEnded => format!("{name} was silent until its lease ended"),
            Cause::Offered => format!("handed over by {name}"),
            Cause::Preempted => format!("preferred over {name}"),
            Cause::HandedOver => match group.tracked.lowered_by() {
                Some(text) => format!("handed over to {name}: {text}"),
                None => format!("handed over to {name}"),
            },
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

    /// Takes an offer back that was not taken.
    pub(super) fn withdraw(&mut self, g: usize) {
        let Some(Handover { to, .. }) = self.groups[g].handover.take() else { return };
        let reason = if self.is_candidate(g, to) {
            "did not take it in time".into()
        } else {
            format!("cannot take it any more: it is {}", self.state_text(g, to))
        };
        let group = &mut self.groups[g];
        group.refusal = Some(Refusal { at: self.clock, by: to, reason: reason.clone() });
        let group = group.config.group;
        self.event(Event::HandoverFailed { group, to, reason });
    }

    /// Announces the group's addresses now and a few times more.
    pub(super) fn announce(&mut self, g: usize) {
        let group = &mut self.groups[g];
        let (now, Announce { repeat, refresh }) = (self.clock, &group.config.announce);
        group.announce = repeat.iter().map(|&after| now + after).collect();
        group.refresh = refresh.map(|rhythm| now + rhythm);
        self.out.push_back(Output::Announce { group: group.config.group });
    }

    /// How it came that this node and a peer are Active both.
    fn split_cause(&self, g: usize, peer: NodeId) -> String {
        let group = &self.groups[g];
        let Some((_, lost)) = self.peer(peer).and_then(|p| p.lost.as_ref()) else {
            let name = self.config.node_name(peer);
            return format!(
                "heartbeats were never lost: this node or {name} did not run for a while, or was restarted"
            );
        };
        if group.cause != Cause::VrrpSilence {
            return lost.clone();
        }
        let zones: BTreeSet<String> = group.config.instances.iter().map(|i| self.zone_name(i.zone)).collect();
        format!("{lost}; adverts lost in {}", zones.into_iter().collect::<Vec<_>>().join(" and "))
    }

    /// How a peer was lost, told when it is: by which ways nothing comes any more.
    pub(super) fn loss_text(&self, peer: NodeId, state: PeerState) -> Option<String> {
        let of = |kind: fn(&Via) -> bool| {
            let interfaces = self.config.interfaces.iter().filter(move |(via, _)| kind(via));
            let name = |(via, i): &(Via, Interface)| {
                format!("{}{}", self.config.via_name(*via), if i.carrier { "" } else { " (no carrier)" })
            };
            interfaces.map(name).collect::<Vec<_>>().join(" and ")
        };
        let heartbeats = format!("heartbeats lost on {}", of(|via| matches!(via, Via::Sync(_))));
        let probes = of(|via| matches!(via, Via::Zone(_)));
        match state {
            PeerState::Dead => {
                Some(format!("no path between the nodes: {heartbeats}, no answer in {probes}"))
            }
            PeerState::SyncLost => Some(heartbeats),
            PeerState::Silent => Some(format!("the daemon of {} was silent", self.config.node_name(peer))),
            PeerState::Unknown => Some(format!("{heartbeats}, and no way left to ask")),
            PeerState::Alive | PeerState::Suspect | PeerState::Left => None,
        }
    }

    /// Tells of other Actives that this node did not hand the group to.
    pub(super) fn note_splits(&mut self, g: usize) {
        let now = self.clock;
        let group = &self.groups[g];
        let id = group.config.group;
        if let Some(split) = group.split.clone() {
            let other = self.actives(g).any(|(node, _)| node == split.peer)
                || self.told_actives(g).any(|(node, _)| node == split.peer);
            if other && group.is_active() {
                return;
            }
            let stays = group.is_active();
            self.groups[g].split = None;
            let (lasted, after) = (now.since(split.began), now.since(split.since));
            self.groups[g].splits.1 += lasted;
            self.event(Event::SplitBrainEnd {
                group: id,
                peer: split.peer,
                after,
                lasted,
                cause: split.cause,
            });
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
        let heard = self.actives(g).find(|(_, r)| !PLANNED.contains(&r.cause)).map(|(peer, record)| {
            let mine = (group.term, group.priority(), Reverse(group.order(self.me())));
            let theirs = (record.term, record.priority, Reverse(group.order(peer)));
            (peer, Duration::from_millis(record.age_ms.into()), if theirs > mine { peer } else { self.me() })
        });
        // Of another's word only the term is known: that of one that was lost, and took over since. A lower term may be
        // of a node that has died meanwhile.
        let told = self.told_actives(g).find(|&(node, term)| {
            term >= group.term && group.handover.is_none_or(|handover| handover.to != node)
        });
        let told = told
            .and_then(|(node, _)| self.peer(node))
            .map(|p| (p.node, now.since(p.suspicion.since()), p.node));
        if let Some((peer, age, winner)) = heard.or(told) {
            let overlap = age.min(Duration::from_millis(group.age_ms(now).into()));
            let cause = self.split_cause(g, peer);
            self.groups[g].split =
                Some(Split { peer, since: now, began: now - overlap, cause: cause.clone() });
            self.groups[g].splits.0 += 1;
            self.event(Event::SplitBrain { group: id, peer, overlap, winner, cause });
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
                let cause = self.split_cause(g, peer);
                let splits = &mut self.groups[g].splits;
                *splits = (splits.0 + 1, splits.1 + overlap);
                self.event(Event::SplitBrain { group: id, peer, overlap, winner, cause: cause.clone() });
                let after = Duration::ZERO;
                self.event(Event::SplitBrainEnd { group: id, peer, after, lasted: overlap, cause });
                self.announce(g);
            }
        }
    }
}
