//! What this node knows: the replica, who owns which bucket, and what the kernel map must be told.
//!
//! **Whose word counts.** Within a term exactly one node owns a bucket, and only owners speak. So
//! records about a bucket are ordered by term first, and within a term by their place in the
//! owner's stream (the *stamp*: datagrams may overtake each other, the order in which the owner
//! wrote them stays known). Versions confirm it: within one identity and one owner a lower version
//! is refused whatever its stamp says. A new owner's table is the truth even where its predecessor
//! had newer versions that did not get across: what was lost with the old owner stays lost on all
//! nodes alike.

use std::collections::VecDeque;
use std::time::Duration;

use fwha_common::BUCKETS;
use fwha_common::flow::{Flow, FlowId, FlowKey, FlowState};

use super::buckets::Buckets;
use super::entry::Entry;
use super::handover::Handover;
use super::status::{Counters, LocalCounters};
use super::table::{Peers, Table};
use super::wire::Deletion;
use super::{Options, Output};
use crate::time::Time;
use crate::{NodeId, TERM_LEAP_MAX};

/// A deletion by this node is remembered this long: an event that another CPU wrote before it may
/// be read after it.
const HOLD: Duration = Duration::from_millis(200);
/// Tombstones kept at most, in flows per flow of capacity. Beyond, peers learn of deletions by bulk.
const DEAD_SHARE: usize = 4;
/// The least number of tombstones that is always kept.
const DEAD_MIN: usize = 4096;

/// Who is known to own a bucket.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owner {
    /// The highest term heard of; 0 for none.
    pub(super) term: u32,
    /// Its owner.
    pub(super) node: NodeId,
}

pub(super) struct Core {
    pub(super) options: Options,
    pub(super) table: Table,
    pub(super) owners: [Owner; BUCKETS],
    /// Buckets that this node owns. One that a peer claims in a higher term is out of it at once: to
    /// speak on would be to speak of what the new owner says.
    pub(super) owned: Buckets,
    /// How often each bucket was got, counted from 1. No slot of an earlier ownership has this number.
    pub(super) gains: [u32; BUCKETS],
    /// Buckets that have just been lost in this way.
    pub(super) superseded: Buckets,
    /// Likewise, and the election has not been told.
    pub(super) claimed: Buckets,
    /// Buckets that this node's election holds, and that a peer has in a higher term: whose flows count is not
    /// decided before the election has answered.
    pub(super) disputed: Buckets,
    /// Buckets of which another node has just turned out to be the owner.
    pub(super) moved: Buckets,
    /// Buckets of which flows of the data plane have just proved an owner in a higher term than was known, or of which a
    /// peer has just spoken in a lower one.
    pub(super) past_terms: Buckets,
    /// Buckets of others, as it seems, with flows in the kernel map that are not for the peers, and that were left there
    /// because no other owner is known who does without them. To be looked at again when one is.
    pub(super) left: Buckets,
    /// Buckets that changed their owner a moment ago.
    pub(super) handover: Handover,
    /// The latest time that any call carried.
    pub(super) now: Time,
    /// Buckets whose flows are being compared with the kernel map.
    pub(super) reconciling: Buckets,
    /// The kernel map holds flows that the table had no room for.
    pub(super) missed: bool,
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: LocalCounters,
    /// Changes to owned buckets, of any kind.
    pub(super) changes: u64,
    pass: u32,
    /// Deletions by this node: slot, its change, until when.
    graves: VecDeque<(u32, u32, Time)>,
}

/// How the data plane tells of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// By an event: it has just begun.
    Created,
    /// By an event: it has changed.
    Changed,
    /// It is in the kernel map now, so no other of its key is.
    Seen,
}

/// Where a record comes from.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) peer: NodeId,
    pub(super) term: u32,
    /// Place in the peer's stream, over all its sessions.
    pub(super) stamp: u64,
    /// An older record may still come.
    pub(super) hold: bool,
}

/// What [`Core::admit`] says of a record's bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// From its owner, as known.
    Owner,
    /// From its owner, in a term that is news.
    NewTerm,
}

impl Core {
    pub(super) fn new(options: Options) -> Self {
        let seeds = options.keys.siphash_key("replica");
        Self {
            table: Table::new(seeds, options.max_flows),
            owners: [Owner::default(); BUCKETS],
            owned: Buckets::EMPTY,
            gains: [1; BUCKETS],
            superseded: Buckets::EMPTY,
            claimed: Buckets::EMPTY,
            disputed: Buckets::EMPTY,
            moved: Buckets::EMPTY,
            past_terms: Buckets::EMPTY,
            left: Buckets::EMPTY,
            handover: Handover::new(),
            now: Time::ZERO,
            reconciling: Buckets::EMPTY,
            missed: false,
            outputs: VecDeque::new(),
            counters: LocalCounters::default(),
            changes: 0,
            pass: 0,
            graves: VecDeque::new(),
            options,
        }
    }

    /// The highest term known of a bucket: if this node owns it, its own.
    pub(super) const fn term(&self, bucket: u8) -> u32 {
        self.owners[bucket as usize].term
    }

    /// The term in which this node speaks about a bucket: as its owner, or about what it did as its owner.
    pub(super) fn speaks_in(&self, bucket: u8) -> u32 {
        let former = self.handover.term(self.now, bucket).filter(|_| !self.owned.contains(bucket));
        former.unwrap_or_else(|| self.term(bucket))
    }

    /// Whether a peer (or one of them) may have an entry of a slot's key.
    pub(super) fn may_have(&self, i: u32, peers: Peers) -> bool {
        let slot = self.table.at(i);
        slot.has & peers != 0 || slot.gain != self.gains[usize::from(slot.entry.bucket)]
    }

    /// Whether no more tombstones should be kept than must be.
    pub(super) fn crowded(&self) -> bool {
        self.table.dead() >= (self.options.max_flows / DEAD_SHARE).max(DEAD_MIN)
    }

    // ---- This node's data plane ------------------------------------------------------------

    /// Whether a flow of this key is in the replica.
    pub(super) fn knows(&self, key: &FlowKey) -> bool {
        self.table.find(key).is_some_and(|i| self.table.at(i).live)
    }

    /// Whether this node has deleted a flow of this key a moment ago.
    pub(super) fn has_deleted(&self, key: &FlowKey) -> bool {
        self.table.find(key).is_some_and(|i| self.table.at(i).is_deleted_here())
    }

    /// Whether another node is known to own a flow's bucket, in a term in which the flow has nothing of a later owner. If
    /// not, this node's data plane may own it, and the word of that be on its way here.
    pub(super) fn has_later_owner(&self, flow: &Flow) -> bool {
        let owner = self.owners[usize::from(flow.bucket)];
        let other = owner.node != 0 && owner.node != self.options.identity.node;
        other && owner.term >= Flow::term(flow.version)
    }

    /// Takes what the data plane says of a flow. The slot, if that is news.
    pub(super) fn learn(&mut self, key: &FlowKey, entry: Entry, told: Told) -> Option<u32> {
        self.counters.events += 1;
        if FlowState::from_u8(entry.state).is_none_or(|s| s == FlowState::None) {
            self.counters.events_invalid += 1;
            return None;
        }
        // A flow that outlived a restart proves that its term has been: no earlier owner counts. Or the data plane owns the
        // bucket by now, and this node is about to hear of it: what its former owner did is listened to from here on.
        let owner = &mut self.owners[usize::from(entry.bucket)];
        if !self.owned.contains(entry.bucket) && owner.term < Flow::term(entry.version) {
            let before = std::mem::replace(owner, Owner { term: Flow::term(entry.version), node: 0 });
            self.handover.gain(self.now, entry.bucket, before);
            self.past_terms.insert(entry.bucket);
        }
        let Some(i) = self.table.find(key) else {
            if self.full() {
                return None;
            }
            let i = self.table.insert(*key, entry);
            // An earlier life of this daemon may have told of another one, or of another of this key.
            if told == Told::Created && !self.reconciling.contains(entry.bucket) {
                self.table.at_mut(i).gain = self.gains[usize::from(entry.bucket)];
            }
            return Some(self.own(i));
        };
        let slot = self.table.at_mut(i);
        let old = slot.entry;
        // What the kernel map of a bucket's owner holds is the truth, also where its event told of an earlier state.
        let differs = told == Told::Seen && entry.version == old.version && entry.state != old.state;
        let newer = if old.id == entry.id {
            slot.live && (entry.version > old.version || differs && self.owned.contains(entry.bucket))
        } else {
            told == Told::Seen
                || entry.began_after(&old).unwrap_or_else(|| {
                    // The kernel map knows. Until it has been asked, what there is news of counts.
                    self.outputs.push_back(Output::Reconcile(Buckets::one(entry.bucket)));
                    true
                })
        };
        if slot.live && old.id == entry.id {
            slot.pass = self.pass;
        }
        if !newer {
            self.counters.events_old += 1;
            return None;
        }
        let deleted = told == Told::Created && slot.is_deleted_here();
        if !slot.live && self.full() {
            return None;
        }
        self.table.replace(i, entry);
        if deleted {
            self.outputs.push_back(Output::Confirm(*key, entry.to_flow(key)));
        }
        Some(self.own(i))
    }

    /// Whether the table has no room for a flow that the kernel map holds. It has again when
    /// deletions of which the events were lost are known.
    fn full(&mut self) -> bool {
        let full = self.table.live() >= self.options.max_flows;
        if full {
            self.counters.events_full += 1;
            self.missed = true;
        }
        full
    }

    /// Whether a peer spoke of this flow last. Its word may be on its way into the kernel map still.
    pub(super) fn told(&self, key: &FlowKey, id: &FlowId) -> bool {
        let slot = self.table.find(key).map(|i| self.table.at(i));
        slot.is_some_and(|slot| slot.live && slot.entry.id == *id && slot.source != 0)
    }

    /// A flow as the replica has it, if that is newer than what the kernel map has.
    pub(super) fn newer(&self, key: &FlowKey, flow: &Flow) -> Option<Flow> {
        let slot = self.table.find(key).map(|i| self.table.at(i)).filter(|slot| slot.live)?;
        let newer = slot.entry.id == flow.id() && slot.entry.version > flow.version;
        newer.then(|| slot.entry.to_flow(key))
    }

    /// Forgets a flow that this node has deleted from its kernel map. The slot, if it was there.
    pub(super) fn forget(&mut self, now: Time, key: &FlowKey, id: &FlowId) -> Option<u32> {
        let i = self.table.find(key)?;
        let slot = self.table.at(i);
        if !slot.live {
            return None;
        }
        if slot.entry.id != *id {
            if slot.source == 0 {
                self.outputs.push_back(Output::Confirm(*key, slot.entry.to_flow(key)));
            }
            return None;
        }
        self.table.kill(i);
        self.counters.deleted += 1;
        self.own(i);
        if !self.crowded() {
            let slot = self.table.at_mut(i);
            slot.held = true;
            let (change, bucket) = (slot.change, slot.entry.bucket);
            // Nor may the word of the bucket's former owner bring it back.
            let until = self.handover.listens_until(bucket).max(now + HOLD);
            self.graves.push_back((i, change, until));
        }
        Some(i)
    }

    pub(super) fn own(&mut self, i: u32) -> u32 {
        let slot = self.table.at_mut(i);
        if slot.live && self.owners[usize::from(slot.entry.bucket)].node != self.options.identity.node {
            // Its owner has mentioned it, and will set it right.
            slot.strayed = true;
        } else {
            slot.source = 0;
            slot.stamp = 0;
        }
        slot.pass = self.pass;
        self.changes += 1;
        i
    }

    /// Frees the tombstones whose time is over.
    pub(super) fn bury(&mut self, now: Time) {
        while let Some(&(i, change, until)) = self.graves.front()
            && until <= now
        {
            self.graves.pop_front();
            self.free(i, change);
        }
    }

    /// When [`Self::bury`] has something to do.
    pub(super) fn bury_at(&self) -> Option<Time> {
        self.graves.front().map(|g| g.2)
    }

    /// As [`Self::free`], of a deletion that `peer` told of, unless it has told of a later one since.
    pub(super) fn free_told(&mut self, i: u32, change: u32, peer: NodeId, stamp: u64) {
        let slot = self.table.at(i);
        if slot.source != peer || slot.stamp <= stamp {
            self.free(i, change);
        }
    }

    /// Lets go of a tombstone, unless its slot has changed since.
    pub(super) fn free(&mut self, i: u32, change: u32) {
        let slot = self.table.at_mut(i);
        if slot.change == change && !slot.live {
            slot.held = false;
            self.table.release(i);
        }
    }

    /// Starts a comparison of these buckets with the kernel map.
    pub(super) fn reconcile_begin(&mut self, buckets: Buckets) {
        self.pass = self.pass.wrapping_add(1);
        self.reconciling = buckets;
        self.missed = false;
    }

    /// Ends it: the flows of these buckets that neither the walk nor an event has shown.
    pub(super) fn reconcile_end(&mut self) -> Vec<(FlowKey, FlowId)> {
        let mut gone = Vec::new();
        for bucket in std::mem::take(&mut self.reconciling).iter() {
            for i in self.table.bucket(bucket) {
                let slot = self.table.at(i);
                if slot.pass != self.pass {
                    gone.push((slot.key, slot.entry.id));
                }
            }
        }
        gone
    }

    // ---- A peer -----------------------------------------------------------------------------

    /// Whether `peer` may speak about a bucket in `term`.
    pub(super) fn admit(
        &mut self,
        bucket: u8,
        peer: NodeId,
        term: u32,
        counters: &mut Counters,
    ) -> Option<Admission> {
        let owner = &mut self.owners[usize::from(bucket)];
        if self.owned.contains(bucket) && term <= owner.term {
            counters.rejected_owned += 1;
            return None;
        }
        if term < owner.term {
            counters.rejected_stale += 1;
            self.past_terms.insert(bucket);
            return None;
        }
        if term == owner.term && peer == owner.node {
            return Some(Admission::Owner);
        }
        if term - owner.term > TERM_LEAP_MAX {
            counters.rejected_term += 1;
            return None;
        }
        let before = std::mem::replace(owner, Owner { term, node: peer });
        self.moved.insert(bucket);
        if self.owned.remove(bucket) {
            self.handover.lose(self.now, bucket, before);
            self.superseded.insert(bucket);
            self.claimed.insert(bucket);
            self.disputed.insert(bucket);
        }
        Some(Admission::NewTerm)
    }

    /// Takes an admitted FLOW; `false` if its sender has it and this node cannot.
    pub(super) fn take_flow(
        &mut self,
        from: Origin,
        key: &FlowKey,
        entry: Entry,
        counters: &mut Counters,
    ) -> bool {
        if !self.welcome(key, &entry, counters) {
            return false;
        }
        let full = self.table.live() >= self.options.max_flows || self.has_share(from.peer);
        let Some(i) = self.table.find(key) else {
            if full {
                counters.rejected_full += 1;
                return false;
            }
            let i = self.table.insert(*key, entry);
            counters.created_received += 1;
            self.mirror(i, from, true);
            return true;
        };
        let slot = self.table.at_mut(i);
        if slot.source == from.peer {
            let known = slot.live && !slot.strayed && slot.term == from.term && slot.entry.id == entry.id;
            let regress = known && entry.version < slot.entry.version;
            if from.stamp < slot.stamp || regress {
                counters.rejected_old += 1;
                return true;
            }
        }
        if slot.entry.bucket != entry.bucket && slot.live && self.owned.contains(slot.entry.bucket) {
            counters.rejected_owned += 1;
            return false;
        }
        // What a data plane made of it that is the owner's no more may have the version of something else that the owner did;
        // and an owner may find another state in its kernel map than it has told.
        let known = (slot.entry.id, slot.entry.version, slot.entry.state);
        let same = slot.live && !slot.strayed && known == (entry.id, entry.version, entry.state);
        if same && slot.entry.bucket == entry.bucket {
            counters.unchanged_received += 1;
            self.mirror(i, from, false);
            return true;
        }
        if !slot.live && full {
            counters.rejected_full += 1;
            return false;
        }
        let counter = if slot.live { &mut counters.updated_received } else { &mut counters.created_received };
        *counter += 1;
        self.table.replace(i, entry);
        self.mirror(i, from, true);
        true
    }

    /// Whether a flow of a peer is one that this node can have.
    pub(super) fn welcome(&self, key: &FlowKey, entry: &Entry, counters: &mut Counters) -> bool {
        if entry.zones.iter().any(|&z| usize::from(z) > self.options.zones.len()) {
            counters.rejected_zone += 1;
            return false;
        }
        if !self.admits(key, entry) {
            counters.rejected_policy += 1;
            return false;
        }
        true
    }

    /// Whether the policy lets a flow of a peer in: asked once for each identity.
    fn admits(&self, key: &FlowKey, entry: &Entry) -> bool {
        let Some(policy) = &self.options.filter.policy else { return true };
        let known = |i| {
            let slot = self.table.at(i);
            slot.live && slot.entry.id == entry.id
        };
        self.table.find(key).is_some_and(known) || policy.admits(key, &entry.to_flow(key))
    }

    /// Whether the buckets of a peer hold as much as they may.
    fn has_share(&self, peer: NodeId) -> bool {
        let most = self.options.filter.peer_flows_max;
        if most >= self.options.max_flows || self.table.live() < most {
            return false;
        }
        let of_peer = (0..=u8::MAX).filter(|&b| self.owners[usize::from(b)].node == peer);
        of_peer.map(|b| self.table.count(b) as usize).sum::<usize>() >= most
    }

    fn mirror(&mut self, i: u32, from: Origin, write: bool) {
        let slot = self.table.at_mut(i);
        slot.source = from.peer;
        slot.term = from.term;
        slot.stamp = from.stamp;
        slot.strayed = false;
        if write {
            // What was said again is no proof that the kernel map has it: it may have been full.
            slot.pass = self.pass;
        }
        // What the other peers have is not known: a deletion must reach them.
        slot.gain = 0;
        if write {
            self.outputs.push_back(Output::Put(slot.key, slot.entry.to_flow(&slot.key)));
        }
    }

    /// Takes an admitted DELETE. A tombstone that must be kept until older messages cannot come
    /// any more: its slot and change.
    pub(super) fn take_delete(
        &mut self,
        from: Origin,
        d: &Deletion,
        counters: &mut Counters,
    ) -> Option<(u32, u32)> {
        let Some(i) = self.table.find(&d.key) else {
            if !from.hold || self.crowded() {
                return None;
            }
            let i = self.table.insert(d.key, d.tombstone());
            return self.tombstone(i, from);
        };
        let slot = self.table.at_mut(i);
        if slot.source == from.peer && from.stamp < slot.stamp {
            counters.rejected_old += 1;
            return None;
        }
        if slot.live && slot.entry.id != d.id && slot.entry.bucket != d.bucket {
            // Another flow of this key, begun from its other end: another owner's, perhaps.
            counters.rejected_old += 1;
            return None;
        }
        if slot.live {
            // When its owner wrote this it had no flow of this key at all: it may have used the key
            // again and again, and told neither of the end of this one nor of those after it.
            counters.deleted_received += 1;
            let (id, version) = (slot.entry.id, slot.entry.version);
            self.outputs.push_back(Output::Delete(d.key, id, version));
            self.tombstone(i, from)
        } else {
            if !from.hold {
                return None;
            }
            // The key has been used and deleted again since: what told of that may come after this.
            slot.source = from.peer;
            slot.stamp = from.stamp;
            slot.held = true;
            Some((i, slot.change))
        }
    }

    fn tombstone(&mut self, i: u32, from: Origin) -> Option<(u32, u32)> {
        self.table.kill(i);
        let slot = self.table.at_mut(i);
        slot.source = from.peer;
        slot.stamp = from.stamp;
        slot.held = from.hold;
        let change = slot.change;
        self.table.release(i);
        from.hold.then_some((i, change))
    }

    /// Removes the flows of a bucket that its owner has not mentioned since `stamp`. How many.
    pub(super) fn sweep(&mut self, bucket: u8, peer: NodeId, stamp: u64) -> u64 {
        let mut swept = 0;
        for i in self.table.bucket(bucket) {
            let slot = self.table.at(i);
            if slot.source == peer && slot.stamp >= stamp {
                continue;
            }
            if self.handover.settling(self.now, bucket) && self.is_straggler(i) {
                continue;
            }
            self.outputs.push_back(Output::Delete(slot.key, slot.entry.id, slot.entry.version));
            self.table.kill(i);
            self.table.release(i);
            swept += 1;
        }
        swept
    }
}
