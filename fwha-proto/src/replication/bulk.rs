//! Sending whole buckets.
//!
//! Every flow of a bucket goes out once, in whatever room live changes leave. When all these
//! records are acknowledged and no change of the bucket is queued, END follows with the number of
//! the first datagram of the walk. All that the owner has was mentioned in that datagram or later,
//! so the receiver deletes the rest. END needs no order: it is not sent before its truth is
//! established.

use std::time::Duration;

use fwha_common::BUCKETS;

use super::buckets::Buckets;
use super::core::Core;
use super::datagram::Datagram;
use super::flight::{Carried, Control};
use super::status::{BulkProgress, Counters, Event};
use super::table::Peers;
use super::wire::Record;
use crate::NodeId;
use crate::time::Time;

/// Bulk is sent in portions of at most this much of its rate.
const BURST: Duration = Duration::from_millis(10);
const TICK: Duration = Duration::from_millis(1);

struct Round {
    started: Time,
    flows_total: u64,
    flows: u64,
    /// Whether something of it was given up.
    cut: bool,
}

/// The buckets that a peer is to get as a whole. A bucket goes from `wanted` to `walking`, `walked`
/// and `ended`; from its walk until its END is acknowledged it is `active`.
pub(super) struct Bulk {
    peer: NodeId,
    bit: Peers,
    pub(super) wanted: Buckets,
    pub(super) active: Buckets,
    walking: Option<u8>,
    walked: Buckets,
    ended: Buckets,
    /// First datagram of each bucket's walk.
    start: Box<[u64; BUCKETS]>,
    /// Records of each bucket's walks that are not acknowledged.
    pending: Box<[u32; BUCKETS]>,
    /// From the first bucket until none is left.
    round: Option<Round>,
    begin_due: bool,
    /// Bytes that may be sent now, as earned until `credit_at`. Below 0 is what the last datagram took beyond it.
    credit: i64,
    credit_at: Time,
}

impl Bulk {
    pub(super) fn new(now: Time, peer: NodeId, bit: Peers) -> Self {
        Self {
            peer,
            bit,
            wanted: Buckets::EMPTY,
            active: Buckets::EMPTY,
            walking: None,
            walked: Buckets::EMPTY,
            ended: Buckets::EMPTY,
            start: Box::new([0; BUCKETS]),
            pending: Box::new([0; BUCKETS]),
            round: None,
            begin_due: false,
            credit: 0,
            credit_at: now,
        }
    }

    /// Whether anything is left to do.
    pub(super) fn is_busy(&self) -> bool {
        !(self.active | self.wanted).is_empty()
    }

    /// How far it is, from the moment that it is wanted.
    pub(super) fn progress(&self, core: &Core, now: Time) -> Option<BulkProgress> {
        let left = self.active | self.wanted;
        let progress = BulkProgress { buckets_left: left.len(), ..BulkProgress::default() };
        match &self.round {
            Some(round) => Some(BulkProgress {
                flows_total: round.flows_total,
                flows_done: round.flows,
                elapsed: now.since(round.started),
                ..progress
            }),
            None if left.is_empty() => None,
            None => {
                let flows_total = left.iter().map(|b| u64::from(core.table.count(b))).sum();
                Some(BulkProgress { flows_total, ..progress })
            }
        }
    }

    /// Buckets of which something is still to be sent.
    pub(super) fn under_way(&self) -> Buckets {
        self.active - self.ended
    }

    /// Wants these buckets sent, as far as they are owned.
    pub(super) fn want(&mut self, core: &Core, buckets: Buckets) {
        self.wanted = self.wanted | (buckets & core.owned);
        self.begin_due |= !self.wanted.is_empty();
    }

    /// Stops sending these buckets.
    pub(super) fn cancel(&mut self, core: &mut Core, buckets: Buckets) {
        if self.walking.is_some_and(|b| buckets.contains(b)) {
            self.walking = None;
            core.table.stop(self.peer);
        }
        for set in [&mut self.wanted, &mut self.walked, &mut self.ended, &mut self.active] {
            *set = *set - buckets;
        }
    }

    /// These buckets are somebody else's to send.
    pub(super) fn give_up(&mut self, core: &mut Core, buckets: Buckets) {
        let lost = (self.wanted | self.active) & buckets;
        if let Some(round) = &mut self.round {
            round.cut |= !lost.is_empty();
        }
        self.cancel(core, buckets);
    }

    /// Begins anew with everything that is not complete: what was in flight is given up.
    pub(super) fn restart(&mut self, core: &mut Core) {
        let again = self.wanted | self.active;
        self.cancel(core, again);
        self.want(core, again);
        *self.pending = [0; BUCKETS];
    }

    /// A record of a walk is acknowledged, or needed no more.
    pub(super) fn settle(&mut self, bucket: u8) {
        let pending = &mut self.pending[usize::from(bucket)];
        *pending = pending.saturating_sub(1);
    }

    /// An END is acknowledged.
    pub(super) fn end_acknowledged(&mut self, bucket: u8, start: u64) {
        if self.start[usize::from(bucket)] == start && self.ended.remove(bucket) {
            self.active.remove(bucket);
        }
    }

    /// An END is lost.
    pub(super) fn end_lost(&mut self, bucket: u8, start: u64) {
        if self.start[usize::from(bucket)] == start && self.ended.remove(bucket) {
            self.walked.insert(bucket);
        }
    }

    /// A BEGIN is lost.
    pub(super) const fn begin_lost(&mut self) {
        self.begin_due = self.round.is_some();
    }

    /// Ends the round if nothing is left to do.
    pub(super) fn finish(&mut self, now: Time, counters: &mut Counters) -> Option<Event> {
        if self.is_busy() {
            return None;
        }
        let round = self.round.take()?;
        if round.cut {
            return Some(Event::BulkCut { peer: self.peer, flows: round.flows });
        }
        counters.bulk_finished += 1;
        Some(Event::BulkSent { peer: self.peer, flows: round.flows, took: now.since(round.started) })
    }

    /// Whether flows wait to be sent.
    pub(super) fn waits(&self, core: &Core) -> bool {
        self.walking.is_some() || !self.walkable(core).is_empty()
    }

    /// When the rate allows the next flows.
    pub(super) fn due(&self) -> Time {
        if self.credit > 0 { Time::ZERO } else { self.credit_at + TICK }
    }

    fn walkable(&self, core: &Core) -> Buckets {
        (self.wanted & core.owned) - core.reconciling
    }

    /// Buckets whose END can be sent: no record of theirs is on its way. `quiet` says of which
    /// buckets no change is queued; when the peer is owed nothing at all, none can be pending.
    pub(super) fn ends(&self, core: &Core, idle: bool, quiet: impl Fn(u8) -> bool) -> Buckets {
        let ready = self.walked - self.wanted - core.reconciling;
        ready.iter().filter(|&b| idle || (self.pending[usize::from(b)] == 0 && quiet(b))).collect()
    }

    /// BEGIN, before anything else of a round.
    pub(super) fn fill_begin(
        &mut self,
        core: &Core,
        now: Time,
        d: &mut Datagram<'_>,
        counters: &mut Counters,
    ) -> Option<Event> {
        if !self.begin_due || !self.waits(core) {
            return None;
        }
        // Of a bucket whose END is on its way no more will come: one that has taken it already would
        // wait for another.
        let buckets = self.walkable(core) | self.under_way();
        let flows = buckets.iter().map(|b| u64::from(core.table.count(b))).sum();
        if !d.control(Control::Begin, &Record::Begin { flows, buckets }) {
            return None;
        }
        self.begin_due = false;
        if let Some(round) = &mut self.round {
            round.flows_total = round.flows_total.max(flows);
            return None;
        }
        counters.bulk_started += 1;
        self.round = Some(Round { started: now, flows_total: flows, flows: 0, cut: false });
        Some(Event::BulkSendStarted { peer: self.peer, buckets: buckets.len(), flows })
    }

    /// Flows, as far as the rate and the datagram allow. `seq` is the datagram's number.
    pub(super) fn fill_flows(
        &mut self,
        core: &mut Core,
        now: Time,
        seq: u64,
        d: &mut Datagram<'_>,
        counters: &mut Counters,
    ) {
        self.earn(core, now);
        if self.credit <= 0 || self.begin_due {
            return;
        }
        let before = d.sent.flows.len();
        while let Some(bucket) = self.walking.or_else(|| self.walk_next(core, seq)) {
            if !self.walk_on(core, bucket, d, counters) {
                break;
            }
            self.walking = None;
            self.walked.insert(bucket);
        }
        if d.sent.flows.len() > before {
            self.credit -= d.w.len() as i64;
        }
    }

    fn earn(&mut self, core: &Core, now: Time) {
        let rate = core.options.bulk_bytes_per_s;
        let most = rate * BURST.as_millis() as u64 / 1000 + u64::from(core.options.mtu);
        let earned = u128::from(rate) * now.since(self.credit_at).as_nanos() / 1_000_000_000;
        if earned > 0 {
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            let earned = i64::try_from(earned).unwrap_or(most);
            self.credit = self.credit.saturating_add(earned).min(most);
            self.credit_at = now;
        }
    }

    fn walk_next(&mut self, core: &mut Core, seq: u64) -> Option<u8> {
        let bucket = self.walkable(core).first()?;
        self.wanted.remove(bucket);
        self.walked.remove(bucket);
        self.ended.remove(bucket);
        self.active.insert(bucket);
        self.start[usize::from(bucket)] = seq;
        core.table.walk(self.peer, bucket);
        self.walking = Some(bucket);
        self.walking
    }

    /// Whether the walk has come to its end.
    fn walk_on(
        &mut self,
        core: &mut Core,
        bucket: u8,
        d: &mut Datagram<'_>,
        counters: &mut Counters,
    ) -> bool {
        while let Some(slot) = core.table.cursor(self.peer) {
            let change = core.table.at(slot).change;
            if !d.flow(core, Carried { slot, change, bucket, deletion: false, bulk: true, since: None }) {
                return false;
            }
            core.table.at_mut(slot).has |= self.bit;
            core.table.advance(self.peer);
            self.pending[usize::from(bucket)] += 1;
            counters.bulk_records_sent += 1;
            if let Some(round) = &mut self.round {
                round.flows += 1;
            }
        }
        true
    }

    /// END of each of these buckets.
    pub(super) fn fill_ends(&mut self, core: &Core, ready: Buckets, d: &mut Datagram<'_>) {
        for bucket in ready.iter() {
            let start = self.start[usize::from(bucket)];
            let (count, digest) = (u64::from(core.table.count(bucket)), core.table.digest(bucket));
            let mark = d.mark();
            if !d.term(core.term(bucket))
                || !d.control(Control::End { bucket, start }, &Record::End { bucket, start, count, digest })
            {
                d.reset(mark);
                return;
            }
            self.walked.remove(bucket);
            self.ended.insert(bucket);
        }
    }
}
