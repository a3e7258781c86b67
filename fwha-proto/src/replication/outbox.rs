//! The sending half of a session: the queue of changed flows, bulk, digests, and everything that
//! must be sent again when a datagram is lost.
//!
//! The queue holds slots, not records: what goes out is always a flow's state at that moment, so
//! changes coalesce, and a lost datagram is answered by newer content in a new datagram, never by
//! a copy. Bulk walks a bucket's slots in whatever room live changes leave.

use std::collections::VecDeque;
use std::time::Duration;

use fwha_common::BUCKETS;

use super::Options;
use super::buckets::Buckets;
use super::bulk::Bulk;
use super::core::Core;
use super::datagram::Datagram;
use super::diff::Diff;
use super::flight::{Carried, Control, Flight, Sent};
use super::inbox::Inbox;
use super::lag::Lag;
use super::proof::Proof;
use super::status::{Counters, Event};
use super::table::Peers;
use super::wire::{Hello, Record, VERSION, Writer};
use crate::NodeId;
use crate::time::Time;

/// This many changes fill a datagram.
const FLUSH_AT: usize = 24;
/// Something is sent this often, so that silence means something.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
/// Without acknowledgement for this long, a peer is silent: no change is queued for it any more.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// A silent peer is asked for a sign of life this often.
const PROBE_EVERY: Duration = Duration::from_millis(500);

struct Queued {
    slot: u32,
    bucket: u8,
    since: Time,
}

pub(super) struct Outbox {
    peer: NodeId,
    bit: Peers,
    pub(super) flight: Flight,
    queue: VecDeque<Queued>,
    queued: Box<[u32; BUCKETS]>,
    /// The queue was full, and has not been empty since.
    full: bool,
    silent: bool,
    /// Next sign of life: a probe of a silent peer, else a keepalive.
    alive_at: Time,

    pub(super) bulk: Bulk,
    /// Since when a change of each bucket is owed that was let go, and goes with the bucket as a whole.
    owed: Box<[Time; BUCKETS]>,
    pub(super) proof: Proof,
    hello_due: bool,
    claims_due: bool,
    /// Newest RESYNC taken.
    resync_seq: u64,
    pub(super) lag: Lag,
    pub(super) diff: Diff,

    settled: Vec<Sent>,
}

impl Outbox {
    pub(super) fn new(now: Time, peer: NodeId) -> Self {
        let bit = 1 << (peer - 1);
        Self {
            peer,
            bit,
            flight: Flight::new(),
            queue: VecDeque::new(),
            queued: Box::new([0; BUCKETS]),
            full: false,
            silent: false,
            alive_at: now + KEEPALIVE_EVERY,
            bulk: Bulk::new(now, peer, bit),
            owed: Box::new([Time::NEVER; BUCKETS]),
            proof: Proof::new(now),
            hello_due: true,
            claims_due: true,
            resync_seq: 0,
            lag: Lag::default(),
            diff: Diff::default(),
            settled: Vec::new(),
        }
    }

    pub(super) const fn silent(&self) -> bool {
        self.silent
    }

    /// When the peer has been silent for too long, should it stay so.
    pub(super) fn silent_at(&self) -> Time {
        match self.flight.waiting() {
            Some(since) if !self.silent => since + SILENT_AFTER,
            _ => Time::NEVER,
        }
    }

    pub(super) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// By bucket, flows of owned ones that the peer is not known to hold as they are: all where it has not found the
    /// digest equal, or a change was let go; else those with changes that it has not acknowledged.
    pub(super) fn at_risk(&self, core: &Core) -> [u64; BUCKETS] {
        let proved = (self.proof.agreed & core.owned) - self.owing().map(|(b, _)| b).collect();
        let mut flows = [0; BUCKETS];
        for bucket in core.owned.iter() {
            let b = usize::from(bucket);
            let queued = u64::from(self.queued[b]);
            flows[b] = if proved.contains(bucket) { queued } else { u64::from(core.table.count(bucket)) };
        }
        for c in self.flight.carried().filter(|c| c.since.is_some() && proved.contains(c.bucket)) {
            flows[usize::from(c.bucket)] += 1;
        }
        flows
    }

    /// Time of the oldest change that is not acknowledged: one on its way, or one that goes with its bucket.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.oldest_sent().into_iter().chain(self.owing().map(|(_, since)| since)).min()
    }

    /// Time of the oldest change that is queued or in flight.
    pub(super) fn oldest_sent(&self) -> Option<Time> {
        self.queue.front().map(|q| q.since).into_iter().chain(self.flight.oldest()).min()
    }

    /// The buckets of which a change is owed that was let go, and since when.
    fn owing(&self) -> impl Iterator<Item = (u8, Time)> + '_ {
        let left = self.bulk.wanted | self.bulk.active;
        left.iter().map(|b| (b, self.owed[usize::from(b)])).filter(|&(_, since)| since != Time::NEVER)
    }

    /// A change of this bucket that is so old is let go: the peer gets it with the bucket as a whole.
    fn owe(&mut self, core: &Core, bucket: u8, since: Time) {
        if core.owned.contains(bucket) {
            self.bulk.want(core, Buckets::one(bucket));
            let owed = &mut self.owed[usize::from(bucket)];
            *owed = since.min(*owed);
        }
    }

    /// Of buckets of which nothing is left to send nothing is owed.
    fn settle_debts(&mut self) {
        let left = self.bulk.wanted | self.bulk.active;
        for bucket in (Buckets::ALL - left).iter() {
            self.owed[usize::from(bucket)] = Time::NEVER;
        }
    }

    // ---- What is to be sent ------------------------------------------------------------------

    /// Queues a slot that has changed in an owned bucket.
    pub(super) fn offer(
        &mut self,
        core: &mut Core,
        now: Time,
        i: u32,
        counters: &mut Counters,
    ) -> Option<Event> {
        if self.silent {
            self.owe(core, core.table.at(i).entry.bucket, now);
            return None;
        }
        let (crowded, may_have) = (core.crowded(), core.may_have(i, self.bit));
        let slot = core.table.at_mut(i);
        let bucket = slot.entry.bucket;
        let (live, queued) = (slot.live, slot.queued & self.bit != 0);
        if !live && !may_have {
            counters.cancelled += u64::from(queued);
            return None;
        }
        if queued {
            counters.coalesced += 1;
        } else if self.queue.len() >= core.options.queue_max {
            counters.overflow += 1;
            self.owe(core, bucket, now);
            let news = !self.full;
            self.full = true;
            return news.then_some(Event::Overflow { peer: self.peer });
        } else if !live && crowded {
            counters.deletions_dropped += 1;
            self.owe(core, bucket, now);
            return None;
        } else {
            slot.queued |= self.bit;
            self.queue.push_back(Queued { slot: i, bucket, since: now });
            self.queued[usize::from(bucket)] += 1;
        }
        if !live {
            slot.awaiting |= self.bit;
        }
        None
    }

    pub(super) fn take_resync(&mut self, core: &Core, seq: u64, buckets: Buckets) {
        if seq > self.resync_seq {
            self.resync_seq = seq;
            self.proof.asked = self.proof.asked | (buckets & core.owned);
            // Where END has gone out, the peer may have taken it and still differ.
            let under_way = self.bulk.under_way();
            self.bulk.want(core, buckets - under_way);
        }
    }

    /// This node has got these buckets, or has got them anew.
    pub(super) fn gain(&mut self, core: &mut Core, now: Time, buckets: Buckets) {
        // What is on its way in an earlier term may arrive after the new one is known, and is
        // refused then, though acknowledged.
        let on_its_way: Buckets = self.flight.carried().map(|c| c.bucket).collect();
        let again = (on_its_way | self.bulk.active | self.bulk.wanted) & buckets;
        self.bulk.cancel(core, again);
        self.bulk.want(core, again);
        self.proof.gain(now, self.flight.next(), buckets);
        self.claims_due = true;
    }

    /// This node has lost these buckets.
    pub(super) fn give_up(&mut self, core: &mut Core, buckets: Buckets) {
        self.bulk.give_up(core, buckets);
        self.settle_debts();
        self.proof.give_up(buckets);
        self.claims_due = true;
    }

    // ---- What became of what was sent ----------------------------------------------------------

    /// Takes an acknowledgement.
    pub(super) fn acknowledge(
        &mut self,
        core: &mut Core,
        now: Time,
        cumulative: u64,
        bitmap: &[u8],
        counters: &mut Counters,
        events: &mut VecDeque<Event>,
    ) {
        let mut settled = std::mem::take(&mut self.settled);
        let news = self.flight.acknowledge(now, cumulative, bitmap, &mut settled);
        if news.is_none() {
            counters.malformed += 1;
        }
        if news == Some(true) && self.silent {
            self.silent = false;
            self.alive_at = now + KEEPALIVE_EVERY;
            self.proof.restart(now);
        }
        for sent in settled.drain(..) {
            for c in &sent.flows {
                if let Some(since) = c.since {
                    self.lag.record(now, since);
                }
                if c.bulk {
                    self.bulk.settle(c.bucket);
                }
                if c.deletion {
                    let slot = core.table.at_mut(c.slot);
                    if slot.change == c.change {
                        slot.awaiting &= !self.bit;
                        slot.has &= !self.bit;
                        core.table.release(c.slot);
                    }
                }
            }
            for control in &sent.controls {
                if let Control::End { bucket, start } = *control {
                    self.bulk.end_acknowledged(bucket, start);
                }
            }
            self.flight.recycle(sent.flows);
        }
        self.settled = settled;
        self.settle_debts();
        events.extend(self.bulk.finish(now, counters));
    }

    /// Finds what is lost and queues it again. Whether that is because of a timeout, and not because
    /// later datagrams were acknowledged.
    pub(super) fn lose(
        &mut self,
        core: &mut Core,
        inbox: &mut Inbox,
        now: Time,
        counters: &mut Counters,
    ) -> bool {
        let mut lost = std::mem::take(&mut self.settled);
        let timed_out = self.flight.lose(now, &mut lost);
        for sent in lost.drain(..).rev() {
            counters.lost += 1;
            for control in &sent.controls {
                match *control {
                    Control::Hello => self.hello_due = true,
                    Control::Claims => self.claims_due = true,
                    Control::Begin => self.bulk.begin_lost(),
                    Control::Agreed => inbox.agreed_due = true,
                    Control::Resync => inbox.resync_due = true,
                    Control::Digests(buckets) => self.proof.lost(buckets),
                    Control::End { bucket, start } => self.bulk.end_lost(bucket, start),
                }
            }
            for &c in sent.flows.iter().rev() {
                self.requeue(core, c, c.since.unwrap_or(now), counters);
            }
            self.flight.recycle(sent.flows);
        }
        self.settled = lost;
        timed_out
    }

    fn requeue(&mut self, core: &mut Core, c: Carried, since: Time, counters: &mut Counters) {
        let slot = core.table.at_mut(c.slot);
        let superseded = slot.change != c.change;
        // Whoever superseded it has queued it again; only a bulk must still be sure of it.
        if superseded && !(c.bulk && slot.live && slot.entry.bucket == c.bucket) {
            if c.bulk {
                self.bulk.settle(c.bucket);
            }
            return;
        }
        if slot.queued & self.bit == 0 {
            if self.queue.len() >= core.options.queue_max {
                // Nothing waits for it any more: its bucket goes as a whole.
                slot.awaiting &= !self.bit;
                core.table.release(c.slot);
                counters.overflow += 1;
                if c.since.is_some() {
                    self.owe(core, c.bucket, since);
                } else {
                    self.bulk.want(core, Buckets::one(c.bucket));
                }
                if c.bulk {
                    self.bulk.settle(c.bucket);
                }
                return;
            }
            slot.queued |= self.bit;
            self.queue.push_front(Queued { slot: c.slot, bucket: c.bucket, since });
            self.queued[usize::from(c.bucket)] += 1;
        }
        if c.bulk {
            if slot.owed & self.bit == 0 {
                slot.owed |= self.bit;
            } else {
                self.bulk.settle(c.bucket);
            }
        }
        counters.retransmitted += 1;
    }

    /// Whether the peer has just been silent for too long: then everything that waits for it is let
    /// go. The buckets of what it misses go to it as a whole, once it answers: that it found them equal
    /// before it may say still.
    pub(super) fn check_silence(&mut self, core: &mut Core, inbox: &mut Inbox, now: Time) {
        if self.silent_at() > now {
            return;
        }
        let queued = self.queue.iter().map(|q| (q.bucket, Some(q.since)));
        let on_its_way = queued.chain(self.flight.carried().map(|c| (c.bucket, c.since)));
        // What a bulk carried is no change.
        let missed: Vec<_> =
            on_its_way.map(|(bucket, since)| (bucket, since.unwrap_or(Time::NEVER))).collect();
        self.clear(core);
        for (bucket, since) in missed {
            self.owe(core, bucket, since);
        }
        self.silent = true;
        self.alive_at = now;
        self.hello_due = true;
        self.claims_due = true;
        inbox.agreed_due = true;
        inbox.resync_due = !inbox.wanted.is_empty();
    }

    /// The peer is told once more who this is.
    pub(super) fn tell_hello(&mut self) {
        self.hello_due = true;
    }

    /// Lets go of everything that is queued and in flight.
    pub(super) fn clear(&mut self, core: &mut Core) {
        for q in std::mem::take(&mut self.queue) {
            self.let_go(core, q.slot);
        }
        for sent in self.flight.abandon() {
            for c in sent.flows.iter().filter(|c| c.deletion) {
                if core.table.at(c.slot).change == c.change {
                    self.let_go(core, c.slot);
                }
            }
        }
        self.bulk.restart(core);
        self.full = false;
        *self.queued = [0; BUCKETS];
    }

    fn let_go(&self, core: &mut Core, i: u32) {
        let slot = core.table.at_mut(i);
        slot.queued &= !self.bit;
        slot.owed &= !self.bit;
        slot.awaiting &= !self.bit;
        core.table.release(i);
    }

    // ---- Sending -------------------------------------------------------------------------------

    /// The next moment at which [`Self::fill`] has something to say, if nothing else happens.
    pub(super) fn due(&self, core: &Core, inbox: &Inbox) -> Time {
        let mut due = self.alive_at;
        let mut at = |t: Time| due = due.min(t);
        if let Some(t) = self.flight.timeout() {
            at(t);
        }
        if self.silent || !self.flight.open(4) {
            return due;
        }
        if self.hello_due || self.claims_due || inbox.agreed_due || inbox.resync_due {
            at(Time::ZERO);
        }
        if let Some(front) = self.queue.front() {
            at(if self.full_datagram(core) { Time::ZERO } else { front.since + core.options.flush_after });
        } else if self.flight.open(3) && self.bulk.waits(core) {
            at(self.bulk.due());
        }
        if !self.ends(core).is_empty() {
            at(Time::ZERO);
        }
        at(self.proof.due(core));
        if self.flight.open(3) {
            at(self.diff.due());
        }
        due
    }

    /// Whether waiting for more changes saves no datagram.
    fn full_datagram(&self, core: &Core) -> bool {
        self.queue.len() >= FLUSH_AT || self.bulk.waits(core)
    }

    fn ends(&self, core: &Core) -> Buckets {
        let idle = self.queue.is_empty() && self.flight.outstanding() == 0;
        self.bulk.ends(core, idle, |b| self.queued[usize::from(b)] == 0)
    }

    /// Fills a datagram with what is due. `None` if nothing is; else what it carries.
    pub(super) fn fill(
        &mut self,
        core: &mut Core,
        inbox: &mut Inbox,
        now: Time,
        w: &mut Writer,
        counters: &mut Counters,
        events: &mut VecDeque<Event>,
    ) -> Option<Sent> {
        if !self.flight.open(4) || self.due(core, inbox) > now {
            return None;
        }
        if self.silent && self.alive_at > now {
            return None;
        }
        let mut d = Datagram::new(w, Sent::new(self.flight.list()));
        d.w.push(&Record::Sequence { seq: self.flight.next(), floor: self.flight.floor() });
        let header = d.w.len();
        if let Some((cumulative, bitmap)) = inbox.acknowledge() {
            d.w.push(&Record::Ack { cumulative, bitmap: &bitmap });
        }
        self.fill_controls(core, inbox, &mut d);
        if !self.silent {
            events.extend(self.bulk.fill_begin(core, now, &mut d, counters));
            if self.full_datagram(core)
                || self.queue.front().is_some_and(|f| f.since + core.options.flush_after <= now)
            {
                self.fill_live(core, &mut d, counters);
            }
            if self.queue.is_empty() && self.flight.open(3) {
                self.bulk.fill_flows(core, now, self.flight.next(), &mut d, counters);
            }
            let ends = self.ends(core);
            self.bulk.fill_ends(core, ends, &mut d);
            let unproved = self.bulk.wanted | self.bulk.active;
            let open = |b| self.queued[usize::from(b)] > 0 || unproved.contains(b);
            self.proof.fill(core, now, open, &mut d);
            if self.flight.open(3) {
                self.diff.fill(core, now, &mut d);
            }
        }
        let Datagram { w, sent, .. } = d;
        if w.len() == header && self.alive_at > now {
            self.flight.recycle(sent.flows);
            return None;
        }
        self.alive_at = now + if self.silent { PROBE_EVERY } else { KEEPALIVE_EVERY };
        Some(sent)
    }

    fn fill_controls(&mut self, core: &Core, inbox: &mut Inbox, d: &mut Datagram<'_>) {
        if self.hello_due {
            // Together and first: flows mean nothing without the zones.
            let mark = d.mark();
            let zones = d.w.push(&Record::Zones(core.options.zones.clone()));
            if zones && d.control(Control::Hello, &Record::Hello(hello(&core.options))) {
                self.hello_due = false;
            } else {
                d.reset(mark);
            }
        }
        if self.claims_due && d.control(Control::Claims, &Record::Claims(claims(core))) {
            self.claims_due = false;
        }
        if inbox.resync_due && d.control(Control::Resync, &Record::Resync(inbox.wanted)) {
            inbox.resync_due = false;
        }
        let agreed = Record::Agreed { seq: inbox.compared_seq, buckets: inbox.verified };
        if inbox.agreed_due && d.control(Control::Agreed, &agreed) {
            inbox.agreed_due = false;
        }
    }

    /// Changed flows, as they are now.
    fn fill_live(&mut self, core: &mut Core, d: &mut Datagram<'_>, counters: &mut Counters) {
        while let Some(q) = self.queue.front() {
            let (i, bucket, since) = (q.slot, q.bucket, q.since);
            let slot = core.table.at(i);
            let bulk = slot.owed & self.bit != 0;
            let owned = core.owned.contains(slot.entry.bucket);
            let may_have = core.may_have(i, self.bit);
            let deletion = !slot.live;
            let straggler = !owned && core.is_straggler(i);
            let successor = core.successor(i);
            let worth = owned && (slot.live || slot.awaiting & self.bit != 0)
                || straggler && successor == Some(self.peer);
            if straggler && successor.is_none() {
                core.handover.untold.push(i);
            }
            let slot = core.table.at(i);
            if worth {
                let carried =
                    Carried { slot: i, change: slot.change, bucket, deletion, bulk, since: Some(since) };
                if !d.flow(core, carried) {
                    return;
                }
                d.sent.since = Some(d.sent.since.map_or(since, |s| s.min(since)));
            } else if bulk {
                self.bulk.settle(bucket);
            }
            let slot = core.table.at_mut(i);
            slot.queued &= !self.bit;
            slot.owed &= !self.bit;
            if !worth {
                slot.awaiting &= !self.bit;
                core.table.release(i);
            } else if deletion {
                counters.deleted_sent += 1;
            } else if !may_have {
                slot.has |= self.bit;
                counters.created_sent += 1;
            } else {
                counters.updated_sent += 1;
            }
            self.queue.pop_front();
            self.queued[usize::from(bucket)] -= 1;
        }
        self.full = false;
    }
}

fn hello(options: &Options) -> Hello {
    Hello {
        version: VERSION,
        enabled: options.enabled,
        zones: options.zones.len() as u8,
        max_flows: options.max_flows as u64,
        config_hash: options.config_hash,
        rules_hash: options.rules_hash,
        name: options.name.clone(),
    }
}

/// The owned buckets by term.
fn claims(core: &Core) -> Vec<(u32, Buckets)> {
    let mut claims: Vec<(u32, Buckets)> = Vec::new();
    for bucket in core.owned.iter() {
        let term = core.term(bucket);
        match claims.iter_mut().find(|c| c.0 == term) {
            Some(claim) => _ = claim.1.insert(bucket),
            None => claims.push((term, Buckets::one(bucket))),
        }
    }
    claims
}
