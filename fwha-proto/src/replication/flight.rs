//! The sender's side of sequence numbers: what is in flight, what is lost, how much may be sent.

use std::collections::VecDeque;
use std::time::Duration;

use super::buckets::Buckets;
use super::wire::ACK_SPAN;
use crate::time::Time;

/// Acknowledged datagrams after a missing one that make it lost (RFC 9002, 6.1.1).
const REORDER: u64 = 3;
const RTO_INITIAL: Duration = Duration::from_millis(100);
const RTO_MIN: Duration = Duration::from_millis(20);
const RTO_MAX: Duration = Duration::from_millis(500);
const WINDOW_MIN: usize = 16;
const WINDOW_INITIAL: usize = 64;
/// Well below the replay window of the sealed channel, so that no reordering within a window can
/// make a datagram look replayed.
const WINDOW_MAX: usize = 512;

/// One flow that a datagram carried.
#[derive(Clone, Copy)]
pub(super) struct Carried {
    pub(super) slot: u32,
    /// [`super::table::Slot::change`] when it was sent.
    pub(super) change: u32,
    pub(super) bucket: u8,
    pub(super) deletion: bool,
    /// A bulk counts on it.
    pub(super) bulk: bool,
    /// When it changed, if it is sent for that.
    pub(super) since: Option<Time>,
}

/// State that a datagram carried. If it is lost, the state as it is then is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Hello,
    Claims,
    Begin,
    End { bucket: u8, start: u64 },
    Digests(Buckets),
    Agreed,
    Resync,
}

/// A datagram in flight.
pub(super) struct Sent {
    pub(super) flows: Vec<Carried>,
    pub(super) controls: Vec<Control>,
    /// Age of the oldest change in it.
    pub(super) since: Option<Time>,
    at: Time,
}

impl Sent {
    /// A datagram that carries nothing yet.
    pub(super) const fn new(flows: Vec<Carried>) -> Self {
        Self { flows, controls: Vec::new(), since: None, at: Time::ZERO }
    }
}

pub(super) struct Flight {
    /// Number of the front of `sent`: everything below is acknowledged or given up.
    floor: u64,
    /// By number; `None` is acknowledged or given up.
    sent: VecDeque<Option<Sent>>,
    outstanding: usize,
    highest_acked: u64,
    /// When that one was sent.
    highest_acked_at: Time,
    /// Newest datagram that the peer is known to have received, or to need no more.
    newest: u64,
    /// Since when an acknowledgement is awaited: the first datagram sent after the last one.
    waiting: Option<Time>,
    window: usize,
    /// Above this the window grows slowly.
    threshold: usize,
    acked_in_window: usize,
    /// A loss below this number has been answered by a smaller window already.
    recovery: u64,
    rtt: Option<(Duration, Duration)>,
    backoff: u32,
    /// Emptied lists, to be used again.
    spare: Vec<Vec<Carried>>,
}

impl Flight {
    pub(super) fn new() -> Self {
        Self {
            floor: 1,
            sent: VecDeque::new(),
            outstanding: 0,
            highest_acked: 0,
            highest_acked_at: Time::ZERO,
            newest: 0,
            waiting: None,
            window: WINDOW_INITIAL,
            threshold: WINDOW_MAX,
            acked_in_window: 0,
            recovery: 0,
            rtt: None,
            backoff: 0,
            spare: Vec::new(),
        }
    }

    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }

    /// Number of the next datagram.
    pub(super) fn next(&self) -> u64 {
        self.floor + self.sent.len() as u64
    }

    pub(super) const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether one more datagram may be sent; with `share` below 4, only that many quarters of the
    /// window count.
    pub(super) fn open(&self, share: usize) -> bool {
        self.outstanding < self.window * share / 4 && (self.sent.len() as u64) < ACK_SPAN / 2
    }

    /// Since when datagrams have gone without any acknowledgement.
    pub(super) const fn waiting(&self) -> Option<Time> {
        self.waiting
    }

    /// Smoothed round trip time.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt.map(|(smooth, _)| smooth)
    }

    /// Age of the oldest change in flight.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.sent.iter().flatten().filter_map(|s| s.since).min()
    }

    /// All flows in flight.
    pub(super) fn carried(&self) -> impl Iterator<Item = &Carried> {
        self.sent.iter().flatten().flat_map(|s| &s.flows)
    }

    /// An empty list of flows.
    pub(super) fn list(&mut self) -> Vec<Carried> {
        self.spare.pop().unwrap_or_default()
    }

    /// Gives a list back.
    pub(super) fn recycle(&mut self, mut flows: Vec<Carried>) {
        if self.spare.len() < WINDOW_MAX {
            flows.clear();
            self.spare.push(flows);
        }
    }

    /// The datagram with number [`Self::next`] has been sent.
    pub(super) fn send(&mut self, now: Time, sent: Sent) {
        self.waiting.get_or_insert(now);
        self.outstanding += 1;
        self.sent.push_back(Some(Sent { at: now, ..sent }));
    }

    /// Takes an acknowledgement: what it settles goes to `settled`. Whether the peer has received
    /// something since the last one; `None` if it speaks of what was never sent.
    pub(super) fn acknowledge(
        &mut self,
        now: Time,
        cumulative: u64,
        bitmap: &[u8],
        settled: &mut Vec<Sent>,
    ) -> Option<bool> {
        let bits = || {
            (0..bitmap.len() * 8)
                .filter(|i| bitmap[i / 8] & 1 << (i % 8) != 0)
                .map(|i| cumulative + 1 + i as u64)
        };
        let newest = cumulative.max(bits().next_back().unwrap_or(0));
        if newest >= self.next() {
            return None;
        }
        let before = settled.len();
        for seq in (self.floor..=cumulative).chain(bits()) {
            self.acknowledge_one(now, seq, settled);
        }
        self.grow(settled.len() - before);
        self.raise_floor();
        // What was given up may have arrived nevertheless.
        let news = newest > self.newest;
        if news {
            self.newest = newest;
            self.waiting = (self.outstanding > 0).then_some(now);
            self.backoff = 0;
        }
        Some(news)
    }

    fn acknowledge_one(&mut self, now: Time, seq: u64, settled: &mut Vec<Sent>) {
        let Some(sent) = self.take(seq) else { return };
        if seq > self.highest_acked {
            self.highest_acked = seq;
            self.highest_acked_at = sent.at;
            let sample = now.since(sent.at);
            self.rtt = Some(match self.rtt {
                None => (sample, sample / 2),
                Some((smooth, var)) => ((smooth * 7 + sample) / 8, (var * 3 + smooth.abs_diff(sample)) / 4),
            });
        }
        settled.push(sent);
    }

    /// Gives up what must be taken for lost now: it goes to `lost`. Whether a timeout says so.
    ///
    /// A peer that gets no processor for a moment has lost nothing. So the first timeout takes only the oldest datagram
    /// for lost: what it carried goes out again, and the answer to that tells of all the others. Without any answer the
    /// next timeout takes them all.
    pub(super) fn lose(&mut self, now: Time, lost: &mut Vec<Sent>) -> bool {
        let (before, rto) = (lost.len(), self.rto_without_backoff());
        for seq in self.floor..self.highest_acked {
            let overtaken = self.get(seq).is_some_and(|s| s.at + rto <= self.highest_acked_at);
            if overtaken || seq + REORDER <= self.highest_acked {
                lost.extend(self.take(seq));
            }
        }
        self.raise_floor();
        let timed_out = self.timeout().is_some_and(|t| t <= now);
        if timed_out && self.backoff == 0 {
            lost.extend(self.take(self.floor));
            self.backoff = 1;
        } else if timed_out {
            for seq in self.floor..self.next() {
                if self.get(seq).is_some_and(|s| now.since(s.at) >= rto) {
                    lost.extend(self.take(seq));
                }
            }
            self.backoff += 1;
            self.threshold = (self.window / 2).max(WINDOW_MIN);
            self.window = WINDOW_MIN;
        } else if lost.len() > before && self.floor >= self.recovery {
            self.recovery = self.next();
            self.window = (self.window / 2).max(WINDOW_MIN);
            self.threshold = self.window;
        }
        self.raise_floor();
        timed_out
    }

    /// Gives up everything in flight.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = Sent> + use<> {
        self.floor = self.next();
        self.outstanding = 0;
        self.backoff = 0;
        std::mem::take(&mut self.sent).into_iter().flatten()
    }

    /// When the oldest datagram in flight is to be taken for lost.
    pub(super) fn timeout(&self) -> Option<Time> {
        self.sent.iter().flatten().next().map(|s| s.at + self.rto())
    }

    fn rto(&self) -> Duration {
        (self.rto_without_backoff() * (1 << self.backoff.min(6))).min(RTO_MAX)
    }

    fn rto_without_backoff(&self) -> Duration {
        self.rtt.map_or(RTO_INITIAL, |(smooth, var)| (smooth + var * 4).max(RTO_MIN)).min(RTO_MAX)
    }

    fn grow(&mut self, acked: usize) {
        if self.window < self.threshold {
            self.window += acked;
        } else {
            self.acked_in_window += acked;
            if self.acked_in_window >= self.window {
                self.acked_in_window = 0;
                self.window += WINDOW_MIN / 4;
            }
        }
        self.window = self.window.min(WINDOW_MAX);
    }

    fn get(&self, seq: u64) -> Option<&Sent> {
        self.sent.get(usize::try_from(seq.checked_sub(self.floor)?).ok()?)?.as_ref()
    }

    fn take(&mut self, seq: u64) -> Option<Sent> {
        let sent = self.sent.get_mut(usize::try_from(seq.checked_sub(self.floor)?).ok()?)?.take()?;
        self.outstanding -= 1;
        Some(sent)
    }

    fn raise_floor(&mut self) {
        while matches!(self.sent.front(), Some(None)) {
            self.sent.pop_front();
            self.floor += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(n: u64) -> Flight {
        let mut f = Flight::new();
        for _ in 0..n {
            f.send(Time::ZERO, Sent::new(vec![]));
        }
        f
    }

    #[test]
    fn three_later_acknowledgements_make_a_loss() {
        let mut f = flight(6);
        let (mut settled, mut lost) = (vec![], vec![]);
        assert_eq!(f.acknowledge(Time::from_millis(1), 1, &[0b110], &mut settled), Some(true));
        f.lose(Time::from_millis(1), &mut lost);
        assert_eq!((settled.len(), lost.len(), f.floor()), (3, 0, 2), "2 may only be late");
        assert_eq!(f.acknowledge(Time::from_millis(1), 1, &[0b1000], &mut settled), Some(true));
        f.lose(Time::from_millis(1), &mut lost);
        assert_eq!((lost.len(), f.floor(), f.outstanding()), (1, 6, 1));
        assert_eq!(f.acknowledge(Time::from_millis(1), 1, &[0b1000], &mut settled), Some(false));
        assert_eq!(f.acknowledge(Time::from_millis(1), 7, &[], &mut settled), None, "7 was never sent");
        assert_eq!(f.acknowledge(Time::from_millis(1), 1, &[0, 0xff], &mut settled), None);
    }

    #[test]
    fn silence_is_answered_ever_more_slowly() {
        let mut f = flight(2);
        let mut waits = vec![];
        let mut now = Time::ZERO;
        for _ in 0..5 {
            let due = f.timeout().unwrap();
            waits.push(due.since(now).as_millis());
            now = due;
            let mut lost = vec![];
            f.lose(now, &mut lost);
            assert!(!lost.is_empty());
            f.send(now, Sent::new(vec![]));
        }
        assert_eq!(waits, [100, 100, 400, 500, 500]);
        assert_eq!(f.waiting(), Some(Time::ZERO));
    }

    #[test]
    fn a_peer_that_is_slow_is_asked_before_all_is_sent_again() {
        let asked = || {
            let (mut f, mut lost) = (flight(10), vec![]);
            assert!(f.lose(Time::from_millis(100), &mut lost));
            assert_eq!((lost.len(), f.outstanding(), f.window), (1, 9, WINDOW_INITIAL));
            f.send(Time::from_millis(100), Sent::new(vec![]));
            f
        };
        let (mut slow, mut settled, mut lost) = (asked(), vec![], vec![]);
        slow.acknowledge(Time::from_millis(110), 11, &[], &mut settled);
        assert!(!slow.lose(Time::from_millis(110), &mut lost));
        assert_eq!((settled.len(), lost.len()), (10, 0));
        // Another peer has received the first one, and then nothing but the question.
        let (mut deaf, mut settled) = (asked(), vec![]);
        deaf.acknowledge(Time::from_millis(110), 1, &[0, 0b10], &mut settled);
        assert!(!deaf.lose(Time::from_millis(110), &mut lost));
        assert_eq!((settled.len(), lost.len(), deaf.outstanding()), (1, 9, 0));
    }

    #[test]
    fn the_window_halves_once_per_loss_and_grows_again() {
        let mut f = flight(60);
        let (mut settled, mut lost) = (vec![], vec![]);
        assert!(f.open(4) && !f.open(3));
        f.acknowledge(Time::from_millis(1), 0, &[0b1111_0000], &mut settled);
        f.lose(Time::from_millis(1), &mut lost);
        assert_eq!((lost.len(), f.window), (4, 34));
        f.acknowledge(Time::from_millis(1), 8, &[0b1111_0000], &mut settled);
        f.lose(Time::from_millis(1), &mut lost);
        assert_eq!((lost.len(), f.window), (8, 34), "the same burst of losses");
    }
}
