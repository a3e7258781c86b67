//! Proving to a peer that it holds what this node owns: digests out, agreement in.
//!
//! A digest is sent when no change of its bucket is queued, so it describes the bucket after
//! everything up to its own datagram (see `inbox` for how that is compared).

use std::time::Duration;

use fwha_common::BUCKETS;

use super::buckets::Buckets;
use super::core::Core;
use super::datagram::Datagram;
use super::flight::Control;
use super::wire::{DIGESTS_MAX, Record};
use crate::time::Time;

/// Changed digests are sent this often.
const EVERY: Duration = Duration::from_millis(100);
/// All digests are sent this often.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// A value of [`Proof::seen_changes`] that equals no count of changes.
const NONE_SEEN: u64 = u64::MAX;
/// Bytes of a DIGESTS record before the digests.
const HEADER: usize = 3 + Buckets::WIRE_LEN;

pub(super) struct Proof {
    /// Digest that each bucket had when it was last sent.
    told: Box<[u64; BUCKETS]>,
    told_valid: Buckets,
    /// To be sent now.
    due: Buckets,
    next: Time,
    refresh: Time,
    /// [`Core::changes`] when digests were last made.
    seen_changes: u64,
    /// Own buckets that the peer found equal when it last compared.
    pub(super) agreed: Buckets,
    /// Own buckets that the peer asked for and has not found equal since.
    pub(super) asked: Buckets,
    /// Next datagram when each bucket became ours: agreement on older digests does not count.
    gained: Box<[u64; BUCKETS]>,
    agreed_seq: u64,
}

impl Proof {
    pub(super) fn new(now: Time) -> Self {
        Self {
            told: Box::new([0; BUCKETS]),
            told_valid: Buckets::EMPTY,
            due: Buckets::EMPTY,
            next: now,
            refresh: now,
            seen_changes: NONE_SEEN,
            agreed: Buckets::EMPTY,
            asked: Buckets::EMPTY,
            gained: Box::new([0; BUCKETS]),
            agreed_seq: 0,
        }
    }

    /// Takes an AGREED that came in datagram `seq` of the peer, about digests up to `compared`.
    pub(super) fn agree(&mut self, core: &Core, seq: u64, compared: u64, buckets: Buckets) {
        if seq <= self.agreed_seq {
            return;
        }
        self.agreed_seq = seq;
        let current = core.owned.iter().filter(|&b| compared >= self.gained[usize::from(b)]).collect();
        self.agreed = buckets & current;
        self.asked = self.asked - self.agreed;
    }

    /// These buckets became ours before datagram `seq`.
    pub(super) fn gain(&mut self, now: Time, seq: u64, buckets: Buckets) {
        for bucket in buckets.iter() {
            self.gained[usize::from(bucket)] = seq;
        }
        self.agreed = self.agreed - buckets;
        self.told_valid = self.told_valid - buckets;
        self.next = now;
    }

    /// These buckets are not ours any more.
    pub(super) fn give_up(&mut self, buckets: Buckets) {
        self.agreed = self.agreed - buckets;
        self.asked = self.asked - buckets;
    }

    /// Nothing is known of what the peer holds now.
    pub(super) fn restart(&mut self, now: Time) {
        self.told_valid = Buckets::EMPTY;
        self.agreed = Buckets::EMPTY;
        self.next = now;
    }

    /// Digests are lost.
    pub(super) fn lost(&mut self, buckets: Buckets) {
        self.told_valid = self.told_valid - buckets;
        self.seen_changes = NONE_SEEN;
    }

    /// When [`Self::fill`] has something to say.
    pub(super) fn due(&self, core: &Core) -> Time {
        if core.owned.is_empty() {
            Time::NEVER
        } else if !self.due.is_empty() {
            Time::ZERO
        } else if core.changes != self.seen_changes || !self.agreed.covers(&core.owned) {
            self.next.min(self.refresh)
        } else {
            self.refresh
        }
    }

    /// Digests of the buckets that `open` does not name: of those some change is still to be sent.
    pub(super) fn fill(&mut self, core: &Core, now: Time, open: impl Fn(u8) -> bool, d: &mut Datagram<'_>) {
        if self.due(core) > now {
            return;
        }
        if self.next <= now || self.refresh <= now {
            self.make(core, now);
        }
        let open: Buckets = self.due.iter().filter(|&b| open(b)).collect();
        if !open.is_empty() {
            // Again at the next interval.
            self.seen_changes = NONE_SEEN;
        }
        self.due = (self.due & core.owned) - open - core.reconciling;
        while let Some(first) = self.due.first() {
            let mark = d.mark();
            let term = core.term(first);
            let room = if d.term(term) { d.w.room().saturating_sub(HEADER) / 8 } else { 0 };
            let of_term = self.due.iter().filter(|&b| core.term(b) == term);
            let digests: Vec<_> =
                of_term.take(room.min(DIGESTS_MAX)).map(|b| (b, core.table.digest(b))).collect();
            if digests.is_empty() {
                // The rest goes with the next datagram.
                d.reset(mark);
                return;
            }
            for &(bucket, digest) in &digests {
                self.told[usize::from(bucket)] = digest;
            }
            let set: Buckets = digests.iter().map(|d| d.0).collect();
            d.control(Control::Digests(set), &Record::Digests(digests));
            self.told_valid = self.told_valid | set;
            self.due = self.due - set;
        }
    }

    fn make(&mut self, core: &Core, now: Time) {
        if self.refresh <= now {
            self.told_valid = Buckets::EMPTY;
            self.refresh = now + REFRESH_EVERY;
        }
        let known = self.told_valid & self.agreed;
        let news = |b: &u8| !known.contains(*b) || self.told[usize::from(*b)] != core.table.digest(*b);
        self.due = core.owned.iter().filter(news).collect();
        self.next = now + EVERY;
        self.seen_changes = core.changes;
    }
}
