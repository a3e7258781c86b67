//! The receiver's side of sequence numbers: what has arrived, what is missing, when to acknowledge.

use std::time::Duration;

use super::wire::ACK_SPAN;
use crate::time::Time;

const WORDS: usize = ACK_SPAN as usize / 64;
/// An acknowledgement waits this long for company.
const ACK_DELAY: Duration = Duration::from_millis(2);
/// This many datagrams are acknowledged at once.
const ACK_EVERY: u32 = 8;

/// Which datagrams of a session have arrived.
///
/// The sender's *floor* says that it has given up on everything below: what those datagrams carried
/// it has sent again, with a higher number and its present content. So the cumulative number moves
/// over them, and should one come after all it is refused as late.
#[derive(Default)]
pub(super) struct Arrivals {
    /// Everything up to here has arrived or was given up.
    cumulative: u64,
    /// Ring: which of the [`ACK_SPAN`] numbers after `cumulative` have arrived.
    seen: [u64; WORDS],
    highest: u64,
    /// The highest number that was given up without having arrived.
    skipped: u64,
    /// Datagrams that wait for acknowledgement.
    pending: u32,
    due: Option<Time>,
}

/// What [`Arrivals::arrive`] says of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Use it.
    New,
    /// Given up by its sender, or here already.
    Late,
    /// No sender has so many in flight.
    OutOfRange,
}

impl Arrivals {
    /// The highest number heard of.
    pub(super) const fn highest(&self) -> u64 {
        self.highest
    }

    pub(super) const fn cumulative(&self) -> u64 {
        self.cumulative
    }

    /// Whether some datagram before `seq` may still arrive.
    pub(super) const fn older_may_come(&self, seq: u64) -> bool {
        self.cumulative + 1 < seq
    }

    /// Whether all from `from` to `to` have been here, none was given up.
    pub(super) const fn complete(&self, from: u64, to: u64) -> bool {
        self.cumulative >= to && self.skipped < from
    }

    pub(super) fn arrive(&mut self, now: Time, seq: u64, floor: u64) -> Arrival {
        self.give_up_below(floor);
        if seq <= self.cumulative || (seq <= self.highest && self.get(seq)) {
            self.ask(now, ACK_EVERY);
            return Arrival::Late;
        }
        if seq > self.cumulative + ACK_SPAN {
            return Arrival::OutOfRange;
        }
        let in_order = seq == self.cumulative + 1 && seq > self.highest;
        self.put(seq, true);
        self.highest = self.highest.max(seq);
        while self.get(self.cumulative + 1) {
            self.put(self.cumulative + 1, false);
            self.cumulative += 1;
        }
        // Out of order: the sender should hear of the gap, or of its end, at once.
        self.ask(now, if in_order { 1 } else { ACK_EVERY });
        Arrival::New
    }

    /// When an acknowledgement is due.
    pub(super) const fn due(&self) -> Option<Time> {
        self.due
    }

    /// The content of an acknowledgement, if one waits to be sent.
    pub(super) fn acknowledge(&mut self) -> Option<(u64, Vec<u8>)> {
        self.due.take()?;
        self.pending = 0;
        let span = self.highest.saturating_sub(self.cumulative);
        let mut bitmap = vec![0; span.div_ceil(8) as usize];
        for i in 0..span {
            if self.get(self.cumulative + 1 + i) {
                bitmap[i as usize / 8] |= 1 << (i % 8);
            }
        }
        Some((self.cumulative, bitmap))
    }

    fn ask(&mut self, now: Time, weight: u32) {
        self.pending += weight;
        let due = if self.pending >= ACK_EVERY { now } else { now + ACK_DELAY };
        self.due = Some(self.due.map_or(due, |d| d.min(due)));
    }

    fn give_up_below(&mut self, floor: u64) {
        let last = floor.saturating_sub(1);
        if last > self.cumulative + ACK_SPAN {
            self.seen = [0; WORDS];
            self.cumulative = last;
            self.skipped = last;
        }
        while self.cumulative < last || self.get(self.cumulative + 1) {
            self.cumulative += 1;
            if !self.get(self.cumulative) {
                self.skipped = self.cumulative;
            }
            self.put(self.cumulative, false);
        }
        self.highest = self.highest.max(self.cumulative);
    }

    const fn get(&self, seq: u64) -> bool {
        self.seen[(seq / 64) as usize % WORDS] & 1 << (seq % 64) != 0
    }

    const fn put(&mut self, seq: u64, seen: bool) {
        let (word, bit) = ((seq / 64) as usize % WORDS, 1 << (seq % 64));
        if seen {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const NOW: Time = Time::ZERO;

    #[test]
    fn gaps_are_told_at_once_and_order_after_a_while() {
        let mut a = Arrivals::default();
        assert_eq!(a.arrive(NOW, 1, 1), Arrival::New);
        assert_eq!(a.due(), Some(NOW + ACK_DELAY));
        assert_eq!(a.arrive(NOW, 4, 1), Arrival::New);
        assert_eq!(a.due(), Some(NOW));
        assert_eq!(a.acknowledge(), Some((1, vec![0b100])));
        assert_eq!(a.acknowledge(), None);
        assert!(a.older_may_come(4) && !a.older_may_come(2));
        assert_eq!(a.arrive(NOW, 3, 1), Arrival::New);
        assert_eq!(a.arrive(NOW, 3, 1), Arrival::Late);
        assert_eq!(a.arrive(NOW, 2, 1), Arrival::New);
        assert_eq!(a.acknowledge(), Some((4, vec![])));
        assert!(a.complete(1, 4));
    }

    #[test]
    fn the_floor_moves_over_what_was_given_up() {
        let mut a = Arrivals::default();
        a.arrive(NOW, 1, 1);
        assert_eq!(a.arrive(NOW, 5, 4), Arrival::New);
        assert_eq!(a.cumulative(), 3, "4 is still awaited");
        assert_eq!(a.arrive(NOW, 2, 1), Arrival::Late);
        assert_eq!(a.arrive(NOW, 4, 1), Arrival::New);
        assert_eq!(a.cumulative(), 5);
        assert!(a.complete(4, 5) && !a.complete(3, 5));
        assert_eq!(a.arrive(NOW, 5000, 1), Arrival::OutOfRange);
        assert_eq!(a.arrive(NOW, 5000, 4999), Arrival::New);
        assert_eq!(a.cumulative(), 4998);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_set(steps in proptest::collection::vec((0..3000u64, 0..40u64), 1..400)) {
            let (mut a, mut seen, mut gone) = (Arrivals::default(), BTreeSet::new(), 0);
            for (seq, back) in steps {
                let seq = gone + 1 + seq / 4;
                let floor = seq.saturating_sub(back).max(1);
                gone = gone.max(floor - 1);
                while seen.contains(&(gone + 1)) {
                    gone += 1;
                }
                let fresh = seq > gone && !seen.contains(&seq);
                let expected = match fresh {
                    false => Arrival::Late,
                    true if seq > gone + ACK_SPAN => Arrival::OutOfRange,
                    true => Arrival::New,
                };
                prop_assert_eq!(a.arrive(NOW, seq, floor), expected);
                if expected == Arrival::New {
                    seen.insert(seq);
                }
                while seen.contains(&(gone + 1)) {
                    gone += 1;
                }
                prop_assert_eq!(a.cumulative(), gone);
            }
        }
    }
}
