//! The sending half of a session: the queue of changed flows, bulk, digests, and everything that
//! must be sent again when a datagram is lost.
//!
//! The queue holds slots, not records: what goes out is always a flow's state at that moment, so
//! changes coalesce, and a lost datagram is answered by newer content in a new datagram, never by
//! a copy. Bulk walks a bucket's slots in whatever room live changes leave.
//!
//! **Bulk of a bucket.** Every flow of the bucket goes out once; when all these records are
//! acknowledged and no change of the bucket is queued, END follows with the number of the first
//! datagram of the walk. All that the owner has was mentioned in that datagram or later, so the
//! receiver deletes the rest. END needs no order: it is not sent before its truth is established.

use std::collections::VecDeque;
use std::time::Duration;

use fwha_common::BUCKETS;

use super::Options;
use super::buckets::Buckets;
use super::core::Core;
use super::flight::{Carried, Control, Flight, Sent};
use super::inbox::Inbox;
use super::status::{BulkProgress, Counters, Event};
use super::table::Peers;
use super::wire::{DIGESTS_MAX, Deletion, Hello, Record, VERSION, Writer};
use crate::NodeId;
use crate::time::Time;

/// A change waits this long for others to share its datagram.
const FLUSH_AFTER: Duration = Duration::from_millis(1);
/// This many changes fill a datagram.
const FLUSH_AT: usize = 24;
/// Changed digests are sent this often.
const DIGEST_EVERY: Duration = Duration::from_millis(100);
/// All digests are sent this often.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Something is sent this often, so that silence means something.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
/// Without acknowledgement for this long, a peer is silent: nothing is queued for it any more.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// A silent peer is asked for a sign of life this often.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Bulk sends in portions of at most this much of its rate.
const BULK_BURST: Duration = Duration::from_millis(10);
const BULK_TICK: Duration = Duration::from_millis(1);

/// A value of [`Outbox::seen_changes`] that equals no count of changes.
const NONE_SEEN: u64 = u64::MAX;

struct Queued {
    slot: u32,
    bucket: u8,
    since: Time,
}

struct Round {
    started: Time,
    flows_total: u64,
    flows: u64,
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

    // Bulk: a bucket goes from `wanted` to `walking`, `walked`, `ended`; it is `active` all along.
    wanted: Buckets,
    walking: Option<u8>,
    walked: Buckets,
    ended: Buckets,
    active: Buckets,
    /// First datagram of each bucket's walk.
    start: Box<[u64; BUCKETS]>,
    /// Records of each bucket's walks that are not acknowledged.
    pending: Box<[u32; BUCKETS]>,
    round: Option<Round>,
    credit: u64,
    credit_at: Time,

    hello_due: bool,
    claims_due: bool,
    begin_due: bool,

    /// Digest that each bucket had when it was last sent.
    told: Box<[u64; BUCKETS]>,
    told_valid: Buckets,
    digests_due: Buckets,
    digests_at: Time,
    refresh_at: Time,
    /// [`Core::changes`] when digests were last made.
    seen_changes: u64,
    /// Own buckets that the peer found equal when it last compared.
    pub(super) agreed: Buckets,
    /// Own buckets that the peer asked for and has not found equal since.
    pub(super) asked: Buckets,
    /// Next datagram when each bucket became ours: agreement on older digests does not count.
    gained: Box<[u64; BUCKETS]>,
    agreed_seq: u64,
    resync_seq: u64,

    settled: Vec<Sent>,
}

impl Outbox {
    pub(super) fn new(now: Time, peer: NodeId) -> Self {
        Self {
            peer,
            bit: 1 << (peer - 1),
            flight: Flight::new(),
            queue: VecDeque::new(),
            queued: Box::new([0; BUCKETS]),
            full: false,
            silent: false,
            alive_at: now + KEEPALIVE_EVERY,
            wanted: Buckets::EMPTY,
            walking: None,
            walked: Buckets::EMPTY,
            ended: Buckets::EMPTY,
            active: Buckets::EMPTY,
            start: Box::new([0; BUCKETS]),
            pending: Box::new([0; BUCKETS]),
            round: None,
            credit: 0,
            credit_at: now,
            hello_due: true,
            claims_due: true,
            begin_due: false,
            told: Box::new([0; BUCKETS]),
            told_valid: Buckets::EMPTY,
            digests_due: Buckets::EMPTY,
            digests_at: now,
            refresh_at: now,
            seen_changes: 0,
            agreed: Buckets::EMPTY,
            asked: Buckets::EMPTY,
            gained: Box::new([0; BUCKETS]),
            agreed_seq: 0,
            resync_seq: 0,
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

    /// Whether a bulk to the peer is going on, or to come.
    pub(super) fn in_bulk(&self) -> bool {
        !(self.active | self.wanted).is_empty()
    }

    /// Time of the oldest change that is not acknowledged.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.queue.front().map(|q| q.since).into_iter().chain(self.flight.oldest()).min()
    }

    pub(super) fn progress(&self, now: Time) -> Option<BulkProgress> {
        self.round.as_ref().map(|round| BulkProgress {
            flows_total: round.flows_total,
            flows_done: round.flows,
            buckets_left: (self.active | self.wanted).len(),
            elapsed: now.since(round.started),
        })
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
            // Its digests will tell, once it answers.
            return None;
        }
        let crowded = core.crowded();
        let slot = core.table.at_mut(i);
        let bucket = slot.entry.bucket;
        let (live, queued) = (slot.live, slot.queued & self.bit != 0);
        if !live && slot.has & self.bit == 0 {
            counters.cancelled += u64::from(queued);
            return None;
        }
        if queued {
            counters.coalesced += 1;
        } else if self.queue.len() >= core.options.queue_max || (!live && crowded) {
            counters.overflow += 1;
            self.want(core, Buckets::one(bucket));
            let news = !self.full;
            self.full = true;
            return news.then_some(Event::Overflow { peer: self.peer });
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

    /// Wants these buckets sent as a whole, as far as they are owned.
    pub(super) fn want(&mut self, core: &Core, buckets: Buckets) {
        self.wanted = self.wanted | (buckets & core.owned);
        self.begin_due |= !self.wanted.is_empty();
    }

    pub(super) fn take_resync(&mut self, core: &Core, seq: u64, buckets: Buckets) {
        if seq <= self.resync_seq {
            return;
        }
        self.resync_seq = seq;
        self.asked = self.asked | (buckets & core.owned);
        self.want(core, buckets - self.active);
    }

    pub(super) fn take_agreed(&mut self, core: &Core, seq: u64, compared: u64, buckets: Buckets) {
        if seq <= self.agreed_seq {
            return;
        }
        self.agreed_seq = seq;
        let current = core.owned.iter().filter(|&b| compared >= self.gained[usize::from(b)]).collect();
        self.agreed = buckets & current;
        self.asked = self.asked - self.agreed;
    }

    /// This node has got these buckets, or has got them anew.
    pub(super) fn gain(&mut self, core: &mut Core, now: Time, buckets: Buckets) {
        // What is on its way in an earlier term may arrive after the new one is known, and is
        // refused then, though acknowledged.
        let on_its_way: Buckets = self.flight.carried().map(|c| c.bucket).collect();
        let again = (on_its_way | self.active) & buckets;
        self.cancel(core, again);
        self.want(core, again);
        for bucket in buckets.iter() {
            self.gained[usize::from(bucket)] = self.flight.next();
        }
        self.agreed = self.agreed - buckets;
        self.told_valid = self.told_valid - buckets;
        self.digests_at = now;
        self.claims_due = true;
    }

    /// This node has lost these buckets.
    pub(super) fn give_up(&mut self, core: &mut Core, buckets: Buckets) {
        self.cancel(core, buckets);
        for set in [&mut self.wanted, &mut self.agreed, &mut self.asked] {
            *set = *set - buckets;
        }
        self.claims_due = true;
    }

    /// Stops the bulk of these buckets.
    fn cancel(&mut self, core: &mut Core, buckets: Buckets) {
        if self.walking.is_some_and(|b| buckets.contains(b)) {
            self.walking = None;
            core.table.stop(self.peer);
        }
        for set in [&mut self.walked, &mut self.ended, &mut self.active] {
            *set = *set - buckets;
        }
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
            self.told_valid = Buckets::EMPTY;
            self.agreed = Buckets::EMPTY;
            self.digests_at = now;
        }
        for sent in settled.drain(..) {
            for c in &sent.flows {
                if c.bulk {
                    self.settle_bulk(c.bucket);
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
                if let Control::End { bucket, start } = *control
                    && self.start[usize::from(bucket)] == start
                    && self.ended.remove(bucket)
                {
                    self.active.remove(bucket);
                }
            }
            self.flight.recycle(sent.flows);
        }
        self.settled = settled;
        if !self.in_bulk()
            && let Some(round) = self.round.take()
        {
            counters.bulk_finished += 1;
            let took = now.since(round.started);
            events.push_back(Event::BulkSent { peer: self.peer, flows: round.flows, took });
        }
    }

    /// Finds what is lost and queues it again.
    pub(super) fn lose(&mut self, core: &mut Core, inbox: &mut Inbox, now: Time, counters: &mut Counters) {
        let mut lost = std::mem::take(&mut self.settled);
        self.flight.lose(now, &mut lost);
        for sent in lost.drain(..).rev() {
            counters.lost += 1;
            for control in &sent.controls {
                match *control {
                    Control::Hello => self.hello_due = true,
                    Control::Claims => self.claims_due = true,
                    Control::Begin => self.begin_due = self.round.is_some(),
                    Control::Agreed => inbox.agreed_due = true,
                    Control::Resync => inbox.resync_due = true,
                    Control::Digests(buckets) => {
                        self.told_valid = self.told_valid - buckets;
                        self.seen_changes = NONE_SEEN;
                    }
                    Control::End { bucket, start } => {
                        if self.start[usize::from(bucket)] == start && self.ended.remove(bucket) {
                            self.walked.insert(bucket);
                        }
                    }
                }
            }
            let since = sent.since.unwrap_or(now);
            for &c in sent.flows.iter().rev() {
                self.requeue(core, c, since, counters);
            }
            self.flight.recycle(sent.flows);
        }
        self.settled = lost;
    }

    fn requeue(&mut self, core: &mut Core, c: Carried, since: Time, counters: &mut Counters) {
        let slot = core.table.at_mut(c.slot);
        let superseded = slot.change != c.change;
        // Whoever superseded it has queued it again; only a bulk must still be sure of it.
        if superseded && !(c.bulk && slot.live && slot.entry.bucket == c.bucket) {
            if c.bulk {
                self.settle_bulk(c.bucket);
            }
            return;
        }
        if slot.queued & self.bit == 0 {
            if self.queue.len() >= core.options.queue_max {
                // Nothing waits for it any more: its bucket goes as a whole.
                slot.awaiting &= !self.bit;
                core.table.release(c.slot);
                counters.overflow += 1;
                self.want(core, Buckets::one(c.bucket));
                if c.bulk {
                    self.settle_bulk(c.bucket);
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
                self.settle_bulk(c.bucket);
            }
        }
        counters.retransmitted += 1;
    }

    fn settle_bulk(&mut self, bucket: u8) {
        let pending = &mut self.pending[usize::from(bucket)];
        *pending = pending.saturating_sub(1);
    }

    /// Whether the peer has just been silent for too long: then everything that waits for it is let
    /// go. What it missed, digests will show.
    pub(super) fn check_silence(&mut self, core: &mut Core, inbox: &mut Inbox, now: Time) {
        if self.silent_at() > now {
            return;
        }
        self.clear(core);
        self.silent = true;
        self.alive_at = now;
        self.hello_due = true;
        self.claims_due = true;
        inbox.agreed_due = true;
        inbox.resync_due = !inbox.wanted.is_empty();
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
        core.table.stop(self.peer);
        self.full = false;
        self.walking = None;
        self.wanted = self.wanted | self.active;
        self.begin_due = !self.wanted.is_empty();
        for set in [&mut self.walked, &mut self.ended, &mut self.active] {
            *set = Buckets::EMPTY;
        }
        *self.queued = [0; BUCKETS];
        *self.pending = [0; BUCKETS];
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
            at(if self.full_datagram(core) { Time::ZERO } else { front.since + FLUSH_AFTER });
        } else if self.flight.open(3) && self.bulk_waits(core) {
            at(if self.credit > 0 { Time::ZERO } else { self.credit_at + BULK_TICK });
        }
        if self.ends(core).next().is_some() {
            at(Time::ZERO);
        }
        if !core.owned.is_empty() {
            at(self.refresh_at);
            if !self.digests_due.is_empty() {
                at(Time::ZERO);
            }
            if core.changes != self.seen_changes || !self.agreed.covers(&core.owned) {
                at(self.digests_at);
            }
        }
        due
    }

    /// Whether waiting for more changes saves no datagram.
    fn full_datagram(&self, core: &Core) -> bool {
        self.queue.len() >= FLUSH_AT || self.bulk_waits(core)
    }

    fn bulk_waits(&self, core: &Core) -> bool {
        self.walking.is_some() || !self.walkable(core).is_empty()
    }

    fn walkable(&self, core: &Core) -> Buckets {
        (self.wanted & core.owned) - core.reconciling
    }

    /// Buckets whose END can be sent.
    fn ends<'a>(&'a self, core: &'a Core) -> impl Iterator<Item = u8> + use<'a> {
        let idle = self.queue.is_empty() && self.flight.outstanding() == 0;
        let ready = self.walked - self.wanted - core.reconciling;
        ready.iter().filter(move |&b| {
            let b = usize::from(b);
            idle || (self.pending[b] == 0 && self.queued[b] == 0)
        })
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
        let mut d = Datagram { w, term: None, sent: Sent::new(self.flight.list()) };
        d.w.push(&Record::Sequence { seq: self.flight.next(), floor: self.flight.floor() });
        let header = d.w.len();
        if let Some((cumulative, bitmap)) = inbox.acknowledge() {
            d.w.push(&Record::Ack { cumulative, bitmap: &bitmap });
        }
        self.fill_controls(core, inbox, now, &mut d, counters, events);
        if !self.silent {
            if self.full_datagram(core) || self.queue.front().is_some_and(|f| f.since + FLUSH_AFTER <= now) {
                self.fill_live(core, &mut d, counters);
            }
            let before = d.sent.flows.len();
            self.fill_bulk(core, now, &mut d, counters);
            self.fill_ends(core, &mut d);
            self.fill_digests(core, now, &mut d);
            if d.sent.flows.len() > before {
                self.credit = self.credit.saturating_sub(d.w.len() as u64);
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

    fn fill_controls(
        &mut self,
        core: &Core,
        inbox: &mut Inbox,
        now: Time,
        d: &mut Datagram<'_>,
        counters: &mut Counters,
        events: &mut VecDeque<Event>,
    ) {
        if self.hello_due && d.control(Control::Hello, &Record::Hello(hello(&core.options))) {
            self.hello_due = false;
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
        if self.begin_due && !self.silent && self.bulk_waits(core) {
            let buckets = self.walkable(core) | self.active;
            let flows = buckets.iter().map(|b| u64::from(core.table.count(b))).sum();
            if !d.control(Control::Begin, &Record::Begin { flows, buckets }) {
                return;
            }
            self.begin_due = false;
            let round = self.round.get_or_insert_with(|| {
                counters.bulk_started += 1;
                let buckets = buckets.len();
                events.push_back(Event::BulkSendStarted { peer: self.peer, buckets, flows });
                Round { started: now, flows_total: flows, flows: 0 }
            });
            round.flows_total = round.flows_total.max(flows);
        }
    }

    /// Changed flows, as they are now.
    fn fill_live(&mut self, core: &mut Core, d: &mut Datagram<'_>, counters: &mut Counters) {
        while let Some(q) = self.queue.front() {
            let (i, bucket, since) = (q.slot, q.bucket, q.since);
            let slot = core.table.at(i);
            let bulk = slot.owed & self.bit != 0;
            let owned = core.owned.contains(slot.entry.bucket);
            let deletion = !slot.live;
            let worth = owned && (slot.live || slot.awaiting & self.bit != 0);
            if worth {
                let carried = Carried { slot: i, change: slot.change, bucket, deletion, bulk };
                if !d.flow(core, carried) {
                    return;
                }
                d.sent.since = Some(d.sent.since.map_or(since, |s| s.min(since)));
            } else if bulk {
                self.settle_bulk(bucket);
            }
            let slot = core.table.at_mut(i);
            slot.queued &= !self.bit;
            slot.owed &= !self.bit;
            if !worth {
                slot.awaiting &= !self.bit;
                core.table.release(i);
            } else if deletion {
                counters.deleted_sent += 1;
            } else if slot.has & self.bit == 0 {
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

    /// Flows of wanted buckets, while nothing live waits and the rate allows.
    fn fill_bulk(&mut self, core: &mut Core, now: Time, d: &mut Datagram<'_>, counters: &mut Counters) {
        let rate = core.options.bulk_bytes_per_s;
        let burst = rate * BULK_BURST.as_millis() as u64 / 1000 + u64::from(core.options.mtu);
        let earned = u64::try_from(u128::from(rate) * now.since(self.credit_at).as_nanos() / 1_000_000_000);
        if let Ok(earned @ 1..) = earned {
            self.credit = self.credit.saturating_add(earned).min(burst);
            self.credit_at = now;
        }
        if !self.queue.is_empty() || self.credit == 0 || !self.flight.open(3) || self.begin_due {
            return;
        }
        loop {
            let bucket = match self.walking {
                Some(bucket) => bucket,
                None => {
                    let Some(bucket) = self.walkable(core).first() else { return };
                    self.wanted.remove(bucket);
                    self.walked.remove(bucket);
                    self.ended.remove(bucket);
                    self.active.insert(bucket);
                    self.start[usize::from(bucket)] = self.flight.next();
                    core.table.walk(self.peer, bucket);
                    self.walking = Some(bucket);
                    bucket
                }
            };
            while let Some(i) = core.table.cursor(self.peer) {
                let slot = core.table.at(i);
                let carried = Carried { slot: i, change: slot.change, bucket, deletion: false, bulk: true };
                if !d.flow(core, carried) {
                    return;
                }
                core.table.at_mut(i).has |= self.bit;
                core.table.advance(self.peer);
                self.pending[usize::from(bucket)] += 1;
                counters.bulk_records_sent += 1;
                if let Some(round) = &mut self.round {
                    round.flows += 1;
                }
            }
            self.walking = None;
            self.walked.insert(bucket);
        }
    }

    fn fill_ends(&mut self, core: &Core, d: &mut Datagram<'_>) {
        let ready: Buckets = self.ends(core).collect();
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

    /// Digests of the buckets of which everything has been sent.
    fn fill_digests(&mut self, core: &Core, now: Time, d: &mut Datagram<'_>) {
        let refresh = self.refresh_at <= now;
        if refresh || self.digests_at <= now {
            if refresh {
                self.told_valid = Buckets::EMPTY;
                self.refresh_at = now + REFRESH_EVERY;
            }
            let known = |b: &u8| {
                self.told_valid.contains(*b)
                    && self.agreed.contains(*b)
                    && self.told[usize::from(*b)] == core.table.digest(*b)
            };
            self.digests_due = core.owned.iter().filter(|b| !known(b)).collect();
            self.digests_at = now + DIGEST_EVERY;
            self.seen_changes = core.changes;
        }
        let busy: Buckets = core.owned.iter().filter(|&b| self.queued[usize::from(b)] > 0).collect();
        if !(self.digests_due & busy).is_empty() {
            // Again at the next interval.
            self.seen_changes = NONE_SEEN;
        }
        self.digests_due =
            (self.digests_due & core.owned) - busy - core.reconciling - self.wanted - self.active;
        while let Some(first) = self.digests_due.first() {
            let term = core.term(first);
            let mark = d.mark();
            let room = if d.term(term) { d.w.room().saturating_sub(3 + Buckets::WIRE_LEN) / 8 } else { 0 };
            let some: Vec<_> = self
                .digests_due
                .iter()
                .filter(|&b| core.term(b) == term)
                .take(room.min(DIGESTS_MAX))
                .map(|b| (b, core.table.digest(b)))
                .collect();
            if some.is_empty() {
                // The rest goes with the next datagram.
                d.reset(mark);
                return;
            }
            for &(bucket, digest) in &some {
                self.told[usize::from(bucket)] = digest;
            }
            let set: Buckets = some.iter().map(|s| s.0).collect();
            d.control(Control::Digests(set), &Record::Digests(some));
            self.told_valid = self.told_valid | set;
            self.digests_due = self.digests_due - set;
        }
    }
}

/// A datagram being filled.
struct Datagram<'a> {
    w: &'a mut Writer,
    term: Option<u32>,
    sent: Sent,
}

impl Datagram<'_> {
    fn mark(&self) -> (usize, Option<u32>) {
        (self.w.len(), self.term)
    }

    fn reset(&mut self, mark: (usize, Option<u32>)) {
        self.w.truncate(mark.0);
        self.term = mark.1;
    }

    fn term(&mut self, term: u32) -> bool {
        if self.term == Some(term) {
            return true;
        }
        let fits = self.w.push(&Record::Term(term));
        if fits {
            self.term = Some(term);
        }
        fits
    }

    fn control(&mut self, control: Control, record: &Record<'_>) -> bool {
        let fits = self.w.push(record);
        if fits {
            self.sent.controls.push(control);
        }
        fits
    }

    fn flow(&mut self, core: &Core, carried: Carried) -> bool {
        let slot = core.table.at(carried.slot);
        let mark = self.mark();
        let fits = self.term(core.term(slot.entry.bucket))
            && if carried.deletion {
                self.w.push(&Record::Delete(Deletion {
                    key: slot.key,
                    originator_is_b: slot.entry.originator_is_b,
                    bucket: slot.entry.bucket,
                    id: slot.entry.id,
                    version: slot.entry.version,
                }))
            } else {
                self.w.push_flow(&slot.key, &slot.entry)
            };
        if fits {
            self.sent.flows.push(carried);
        } else {
            self.reset(mark);
        }
        fits
    }
}

fn hello(options: &Options) -> Hello {
    Hello {
        version: VERSION,
        enabled: options.enabled,
        zones: options.zones,
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
