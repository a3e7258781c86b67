//! The receiving half of a session: taking an owner's records, comparing digests, asking for what
//! differs.
//!
//! A digest that the owner sent in datagram *s* describes its table after everything in datagrams
//! up to *s*. It can be compared exactly when all of these have arrived and nothing later has
//! touched the bucket. Datagrams that were lost and given up are why it carries the floor of its
//! time: what was lost before that has been sent again before the digest was made, what is lost
//! after it makes the digest void. The next one comes soon.

use std::collections::VecDeque;
use std::time::Duration;

use fwha_common::BUCKETS;

use super::arrivals::{Arrival, Arrivals};
use super::buckets::Buckets;
use super::core::{Admission, Core, Origin};
use super::entry::Entry;
use super::status::{BulkProgress, Counters, Event};
use super::wire::{Deletion, Hello};
use crate::NodeId;
use crate::time::Time;

/// Digest records that wait for datagrams before them.
const DIGESTS_WAITING_MAX: usize = 16;
/// Wait after the first attempt to heal a bucket; doubled with each that did not help.
const HEAL_AFTER: Duration = Duration::from_millis(200);
/// A bulk of which no bucket has come to its end for this long is asked for again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);
const HEAL_DOUBLINGS_MAX: u32 = 8;

/// Place of a record in its session.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) seq: u64,
    pub(super) floor: u64,
    pub(super) term: u32,
}

struct Waiting {
    place: Place,
    digests: Vec<(u8, u64)>,
}

struct Bulk {
    started: Time,
    buckets: Buckets,
    flows_total: u64,
    flows: u64,
    swept: u64,
    /// Whether the peer has lost some of it to another owner.
    cut: bool,
}

#[derive(Clone, Copy, Default)]
struct Heal {
    not_before: Time,
    attempts: u32,
}

pub(super) struct Inbox {
    peer: NodeId,
    /// Stamp of this session's datagram 0.
    base: u64,
    arrivals: Arrivals,
    /// Tombstones: slot, its change, datagram of the deletion.
    graves: VecDeque<(u32, u32, u64)>,
    /// Last datagram that touched each bucket.
    touched: Box<[u64; BUCKETS]>,
    /// What is older than this datagram says nothing any more about a bucket: the last complete bulk of it began here, or
    /// another owner of the same term has spoken since.
    counts_from: Box<[u64; BUCKETS]>,
    /// Datagram of the last END of each bucket.
    ended: Box<[u64; BUCKETS]>,
    waiting: VecDeque<Waiting>,
    heal: Box<[Heal; BUCKETS]>,
    bulk: Option<Bulk>,
    /// When a bulk was last asked for, or a bucket of it complete.
    progress_at: Time,
    claims_seq: u64,
    /// Buckets that the peer says it owns.
    pub(super) claims: Buckets,
    /// What the peer said of itself.
    pub(super) hello: Option<Hello>,
    /// This node's number of each of its zones; `None` if it knows no names: then numbers are the same.
    pub(super) zones: Option<Vec<Option<u8>>>,
    /// Of the peer's buckets, those that were equal when last compared.
    pub(super) verified: Buckets,
    /// And those that were not.
    pub(super) differing: Buckets,
    /// Newest digests compared.
    pub(super) compared_seq: u64,
    pub(super) agreed_due: bool,
    /// Buckets asked for, until their bulk is complete.
    pub(super) wanted: Buckets,
    pub(super) resync_due: bool,
}

impl Inbox {
    pub(super) fn new(peer: NodeId, base: u64) -> Self {
        Self {
            peer,
            base,
            arrivals: Arrivals::default(),
            graves: VecDeque::new(),
            touched: Box::new([0; BUCKETS]),
            counts_from: Box::new([0; BUCKETS]),
            ended: Box::new([0; BUCKETS]),
            waiting: VecDeque::new(),
            heal: Box::new([Heal::default(); BUCKETS]),
            bulk: None,
            progress_at: Time::ZERO,
            claims_seq: 0,
            claims: Buckets::EMPTY,
            hello: None,
            zones: None,
            verified: Buckets::EMPTY,
            differing: Buckets::EMPTY,
            compared_seq: 0,
            agreed_due: false,
            wanted: Buckets::EMPTY,
            resync_due: false,
        }
    }

    /// Stamp with which the next session of this peer begins.
    pub(super) const fn end(&self) -> u64 {
        self.base + self.arrivals.highest() + 1
    }

    pub(super) const fn ack_due(&self) -> Option<Time> {
        self.arrivals.due()
    }

    pub(super) fn acknowledge(&mut self) -> Option<(u64, Vec<u8>)> {
        self.arrivals.acknowledge()
    }

    /// Takes note of a datagram; whether its records are to be used.
    pub(super) fn arrive(&mut self, now: Time, seq: u64, floor: u64, counters: &mut Counters) -> bool {
        match self.arrivals.arrive(now, seq, floor) {
            Arrival::New => return true,
            Arrival::Late => counters.late += 1,
            Arrival::OutOfRange => counters.malformed += 1,
        }
        false
    }

    pub(super) fn take_flow(
        &mut self,
        core: &mut Core,
        place: Place,
        key: &fwha_common::flow::FlowKey,
        mut entry: Entry,
        counters: &mut Counters,
    ) {
        for zone in &mut entry.zones {
            match self.zone(*zone) {
                Some(ours) => *zone = ours,
                None => {
                    counters.rejected_zone += 1;
                    self.doubt(Buckets::one(entry.bucket));
                    return;
                }
            }
        }
        if core.owned.contains(entry.bucket)
            && core.handover.listens(core.now, entry.bucket, core.term(entry.bucket), self.peer, place.term)
            && place.seq >= self.counts_from[usize::from(entry.bucket)]
        {
            core.take_straggler(self.peer, place.term, key, entry, counters);
        } else if let Some(from) = self.origin(core, place, entry.bucket, counters) {
            if let Some(bulk) = &mut self.bulk {
                bulk.flows += 1;
            }
            if !core.take_flow(from, key, entry, counters) {
                self.doubt(Buckets::one(entry.bucket));
            }
        }
    }

    fn zone(&self, theirs: u8) -> Option<u8> {
        match &self.zones {
            Some(zones) if theirs > 0 => *zones.get(usize::from(theirs) - 1)?,
            _ => Some(theirs),
        }
    }

    pub(super) fn take_delete(
        &mut self,
        core: &mut Core,
        place: Place,
        deletion: &Deletion,
        counters: &mut Counters,
    ) {
        if let Some(from) = self.origin(core, place, deletion.bucket, counters)
            && let Some((slot, change)) = core.take_delete(from, deletion, counters)
        {
            self.graves.push_back((slot, change, place.seq));
        }
    }

    fn origin(
        &mut self,
        core: &mut Core,
        place: Place,
        bucket: u8,
        counters: &mut Counters,
    ) -> Option<Origin> {
        self.admit(core, bucket, place.seq, place.term, counters)?;
        let b = usize::from(bucket);
        if place.seq < self.counts_from[b] {
            counters.rejected_old += 1;
            return None;
        }
        self.touched[b] = self.touched[b].max(place.seq);
        Some(Origin {
            peer: self.peer,
            term: place.term,
            stamp: self.base + place.seq,
            hold: self.arrivals.older_may_come(place.seq),
        })
    }

    fn admit(
        &mut self,
        core: &mut Core,
        bucket: u8,
        seq: u64,
        term: u32,
        counters: &mut Counters,
    ) -> Option<()> {
        let b = usize::from(bucket);
        // Owners of one term that do not hear each other take turns here. What one wrote before the last that was taken
        // of it is late, though the other has spoken since.
        let rival = core.owners[b].term == term && core.owners[b].node != self.peer;
        if rival && seq < self.touched[b] {
            counters.rejected_stale += 1;
            return None;
        }
        if core.admit(bucket, self.peer, term, counters)? == Admission::NewTerm {
            self.counts_from[b] = self.counts_from[b].max(self.touched[b]);
            self.verified.remove(bucket);
            self.differing.remove(bucket);
            self.heal[b] = Heal::default();
            // The owner of that term has not heard what was asked of its predecessor.
            self.expect_no_more(bucket);
        }
        Some(())
    }

    fn expect_no_more(&mut self, bucket: u8) {
        self.wanted.remove(bucket);
        if let Some(bulk) = &mut self.bulk {
            bulk.buckets.remove(bucket);
        }
    }

    pub(super) fn take_claims(
        &mut self,
        core: &mut Core,
        seq: u64,
        claims: &[(u32, Buckets)],
        counters: &mut Counters,
    ) {
        if seq < self.claims_seq {
            return;
        }
        self.claims_seq = seq;
        self.claims = Buckets::EMPTY;
        for (term, buckets) in claims {
            self.claims = self.claims | *buckets;
            for bucket in buckets.iter() {
                let _ = self.admit(core, bucket, seq, *term, counters);
            }
        }
        // What the peer does not own any more it will neither send nor prove.
        for set in [&mut self.verified, &mut self.differing, &mut self.wanted] {
            *set = *set & self.claims;
        }
        if let Some(bulk) = &mut self.bulk {
            bulk.cut |= !(bulk.buckets - self.claims).is_empty();
            bulk.buckets = bulk.buckets & self.claims;
        }
    }

    /// Whether the peer has said what it owns.
    pub(super) const fn has_claims(&self) -> bool {
        self.claims_seq != 0
    }

    pub(super) fn take_begin(
        &mut self,
        now: Time,
        seq: u64,
        buckets: Buckets,
        flows_total: u64,
        counters: &mut Counters,
    ) -> Option<Event> {
        // An END may overtake the BEGIN, and so may the loss of the bucket.
        let claimed = if self.has_claims() { buckets & self.claims } else { buckets };
        let left: Buckets = claimed.iter().filter(|&b| self.ended[usize::from(b)] < seq).collect();
        if left.is_empty() {
            return None;
        }
        if let Some(bulk) = &mut self.bulk {
            bulk.buckets = bulk.buckets | left;
            bulk.flows_total = bulk.flows_total.max(flows_total);
            return None;
        }
        counters.bulk_started += 1;
        self.progress_at = now;
        self.bulk = Some(Bulk { started: now, buckets: left, flows_total, flows: 0, swept: 0, cut: false });
        Some(Event::BulkReceiveStarted { peer: self.peer, buckets: left.len(), flows: flows_total })
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the record")]
    pub(super) fn take_end(
        &mut self,
        core: &mut Core,
        now: Time,
        place: Place,
        bucket: u8,
        start: u64,
        digest: u64,
        counters: &mut Counters,
    ) -> Option<Event> {
        let b = usize::from(bucket);
        if start > place.seq {
            counters.malformed += 1;
            return None;
        }
        // Refused or not: of this bucket no more will come.
        self.expect_no_more(bucket);
        self.ended[b] = self.ended[b].max(place.seq);
        self.progress_at = now;
        let admitted = self.admit(core, bucket, place.seq, place.term, counters).is_some();
        if !admitted || start < self.counts_from[b] {
            return self.finish(now, counters);
        }
        self.counts_from[b] = start;
        self.touched[b] = self.touched[b].max(place.seq);
        let swept = core.sweep(bucket, self.peer, self.base + start);
        counters.swept += swept;
        if swept > 0 {
            // There is room again: what did not heal for want of it may now.
            for b in self.differing.iter() {
                self.heal[usize::from(b)] = Heal::default();
            }
        }
        self.wait(place, vec![(bucket, digest)]);
        if let Some(bulk) = &mut self.bulk {
            bulk.swept += swept;
        }
        self.finish(now, counters)
    }

    /// Ends a bulk of which no bucket is left.
    pub(super) fn finish(&mut self, now: Time, counters: &mut Counters) -> Option<Event> {
        let bulk = self.bulk.take_if(|bulk| bulk.buckets.is_empty())?;
        if bulk.cut {
            return None;
        }
        counters.bulk_finished += 1;
        Some(Event::BulkReceived {
            peer: self.peer,
            flows: bulk.flows,
            swept: bulk.swept,
            took: now.since(bulk.started),
        })
    }

    pub(super) fn take_digests(
        &mut self,
        core: &mut Core,
        place: Place,
        digests: Vec<(u8, u64)>,
        counters: &mut Counters,
    ) {
        let mut admits = |bucket| self.admit(core, bucket, place.seq, place.term, counters).is_some();
        let admitted = digests.into_iter().filter(|d| admits(d.0)).collect();
        self.wait(place, admitted);
    }

    fn wait(&mut self, place: Place, digests: Vec<(u8, u64)>) {
        if self.waiting.len() == DIGESTS_WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting { place, digests });
    }

    /// After the records of a datagram: compares what can be compared now, frees tombstones that no
    /// datagram can reach any more. The number of buckets that have been asked for.
    pub(super) fn settle(&mut self, core: &mut Core, now: Time, counters: &mut Counters) -> usize {
        let cumulative = self.arrivals.cumulative();
        while let Some(&(slot, change, seq)) = self.graves.front()
            && seq <= cumulative
        {
            self.graves.pop_front();
            core.free_told(slot, change, self.peer, self.base + seq);
        }
        let mut asked = 0;
        for _ in 0..self.waiting.len() {
            let Some(w) = self.waiting.pop_front() else { break };
            if w.place.seq > cumulative {
                self.waiting.push_back(w);
            } else if self.arrivals.complete(w.place.floor, w.place.seq) {
                asked += self.compare(core, now, &w, counters);
            }
        }
        asked
    }

    fn compare(&mut self, core: &Core, now: Time, w: &Waiting, counters: &mut Counters) -> usize {
        let mut asked = 0;
        for &(bucket, digest) in &w.digests {
            let b = usize::from(bucket);
            let owner = core.owners[b];
            let comparable = (owner.node, owner.term) == (self.peer, w.place.term)
                && self.claims.contains(bucket)
                && self.touched[b] <= w.place.seq
                && !self.wanted.contains(bucket);
            if !comparable {
                continue;
            }
            if core.reconciling.contains(bucket) || core.handover.settling(now, bucket) {
                // What differs may be found by the walk, or heard by its owner. But it is not what was agreed on before.
                if core.table.digest(bucket) != digest {
                    self.doubt(Buckets::one(bucket));
                }
                continue;
            }
            self.compared_seq = self.compared_seq.max(w.place.seq);
            self.agreed_due = true;
            let heal = &mut self.heal[b];
            if core.table.digest(bucket) == digest {
                counters.digest_equal += 1;
                *heal = Heal::default();
                self.differing.remove(bucket);
                self.verified.insert(bucket);
                continue;
            }
            counters.digest_differs += 1;
            self.verified.remove(bucket);
            self.differing.insert(bucket);
            if heal.not_before <= now {
                heal.not_before = now + HEAL_AFTER * (1 << heal.attempts);
                heal.attempts = (heal.attempts + 1).min(HEAL_DOUBLINGS_MAX);
                self.want(now, Buckets::one(bucket));
                asked += 1;
            }
        }
        asked
    }

    /// These buckets are not what they were when they were last compared.
    pub(super) fn doubt(&mut self, buckets: Buckets) {
        self.agreed_due |= !(self.verified & buckets).is_empty();
        self.verified = self.verified - buckets;
    }

    /// Asks for a bulk of these buckets.
    pub(super) fn want(&mut self, now: Time, buckets: Buckets) {
        if !self.in_bulk() {
            self.progress_at = now;
        }
        self.wanted = self.wanted | buckets;
        self.resync_due = true;
    }

    /// When a bulk that makes no progress is asked for again.
    pub(super) fn ask_again_at(&self) -> Time {
        if self.in_bulk() { self.progress_at + ASK_AGAIN_AFTER } else { Time::NEVER }
    }

    /// Asks again for a bulk that makes no progress.
    pub(super) fn ask_again(&mut self, now: Time) {
        if self.ask_again_at() <= now {
            self.progress_at = now;
            let left = self.bulk.as_ref().map_or(Buckets::EMPTY, |bulk| bulk.buckets);
            self.want(now, left);
        }
    }

    /// Whether a bulk from the peer is going on, or asked for.
    pub(super) fn in_bulk(&self) -> bool {
        self.bulk.is_some() || !self.wanted.is_empty()
    }

    /// How far a bulk is, from the moment that it is asked for.
    pub(super) fn progress(&self, now: Time) -> Option<BulkProgress> {
        let asked = BulkProgress { buckets_left: self.wanted.len(), ..BulkProgress::default() };
        match &self.bulk {
            Some(bulk) => Some(BulkProgress {
                flows_total: bulk.flows_total,
                flows_done: bulk.flows,
                buckets_left: (bulk.buckets | self.wanted).len(),
                elapsed: now.since(bulk.started),
            }),
            None => self.in_bulk().then_some(asked),
        }
    }

    /// Ends the session: no older datagram can come any more.
    pub(super) fn close(&mut self, core: &mut Core) {
        for (slot, change, _) in self.graves.drain(..) {
            core.free(slot, change);
        }
    }
}
