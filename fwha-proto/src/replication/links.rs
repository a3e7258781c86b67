//! The sync links to one peer: which of them work, and which one carries what this node sends.
//!
//! Every link is probed, used or not: a PROBE goes out, its answer comes back on the same link. What
//! counts is that the peer answers, not that an interface has a carrier; only a missing carrier is
//! believed at once. Data takes the most preferred link that works. It leaves that link when it is
//! down, lossy, or when a datagram on it is not acknowledged in time while another link works; and it
//! comes back only after [`STEADY`] probes in a row were answered, so that a link that flaps is not
//! followed. Each node chooses for what it sends; what arrives by another link changes nothing.
//!
//! Moving loses nothing: sequence numbers, acknowledgements and what is in flight belong to the
//! session, not to a link.

use std::time::Duration;

use super::status::{LinkCounters, LinkState, LinkStatus};
use crate::time::Time;

/// Between two probes of a link.
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(100);
/// A link on which nothing was answered for this long is down: three probes, and half an interval for
/// the answer to come.
const DOWN_AFTER: Duration = Duration::from_millis(350);
/// Probes answered in a row that make a link one to come back to.
const STEADY: u32 = 20;
/// Unanswered probes, per mille, that make a link lossy, and that make it good again.
const LOSSY: (u32, u32) = (100, 20);
/// Probes that loss is counted over.
const HISTORY: u32 = 50;

struct Link {
    carrier: bool,
    /// Number of the newest probe.
    probe: u64,
    /// Which of the last 64 probes were answered; bit 0 is the newest.
    answered: u64,
    /// When the probes of the last 64 numbers were sent, by number modulo 64.
    sent_at: Box<[Time; 64]>,
    answered_at: Option<Time>,
    /// Answers in a row.
    steady: u32,
    lossy: bool,
    /// Not trusted until a probe of at least this number is answered.
    suspect: Option<u64>,
    rtt: Option<Duration>,
    probe_at: Time,
    /// Probe of the peer that is to be answered.
    owed: Option<u64>,
    counters: LinkCounters,
}

impl Link {
    fn new(now: Time) -> Self {
        Self {
            carrier: true,
            probe: 0,
            answered: 0,
            sent_at: Box::new([Time::ZERO; 64]),
            answered_at: None,
            steady: 0,
            lossy: false,
            suspect: None,
            rtt: None,
            probe_at: now,
            owed: None,
            counters: LinkCounters::default(),
        }
    }

    fn state(&self, now: Time) -> LinkState {
        match self.answered_at {
            _ if !self.carrier => LinkState::Down,
            None if self.probe > 5 => LinkState::Down,
            None => LinkState::Unknown,
            Some(at) if now.since(at) > DOWN_AFTER => LinkState::Down,
            Some(_) if self.lossy => LinkState::Lossy,
            Some(_) => LinkState::Up,
        }
    }

    /// Unanswered probes, per mille, of the last [`HISTORY`], without those whose answer may be on
    /// its way. `None` as long as there are too few.
    fn loss(&self) -> Option<u32> {
        let under_way = 1 + self.rtt.map_or(1, |rtt| rtt.as_nanos().div_ceil(PROBE_EVERY.as_nanos()) as u32);
        let under_way = under_way.min(14);
        let of = u32::try_from(self.probe).unwrap_or(u32::MAX).saturating_sub(under_way).min(HISTORY);
        let answered = (self.answered >> under_way & ((1 << of) - 1)).count_ones();
        (of >= 10).then(|| (of - answered) * 1000 / of)
    }

    fn send_probe(&mut self, now: Time) -> u64 {
        // The one that leaves the history unanswered is lost.
        self.counters.probes_lost += u64::from(self.probe >= 64 && self.answered >> 63 == 0);
        if self.probe > 2 && self.answered >> 2 & 1 == 0 {
            self.steady = 0;
        }
        self.probe += 1;
        self.answered <<= 1;
        self.sent_at[self.probe as usize % 64] = now;
        self.probe_at = now + PROBE_EVERY;
        self.counters.probes_sent += 1;
        if let Some(loss) = self.loss() {
            self.lossy = loss > if self.lossy { LOSSY.1 } else { LOSSY.0 };
        }
        self.probe
    }

    fn take_answer(&mut self, now: Time, id: u64) {
        let Some(age) = self.probe.checked_sub(id).filter(|&age| age < 64 && id > 0) else { return };
        if self.answered & 1 << age != 0 {
            return;
        }
        self.answered |= 1 << age;
        self.steady = self.steady.saturating_add(1);
        self.answered_at = Some(now);
        if self.suspect.is_some_and(|since| id >= since) {
            self.suspect = None;
        }
        let sample = now.since(self.sent_at[id as usize % 64]);
        self.rtt = Some(self.rtt.map_or(sample, |smooth| (smooth * 7 + sample) / 8));
    }
}

/// What [`Links::due`] wants sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) link: u8,
    pub(super) id: u64,
    pub(super) answer: bool,
}

pub(super) struct Links {
    links: Vec<Link>,
    /// The one that data takes.
    current: u8,
    /// The one that it takes as far as [`Links::moved`] has told.
    told: u8,
    /// The one by which data came last.
    heard: u8,
}

impl Links {
    pub(super) fn new(now: Time, links: u8) -> Self {
        Self { links: (0..links.max(1)).map(|_| Link::new(now)).collect(), current: 0, told: 0, heard: 0 }
    }

    fn get(&mut self, link: u8) -> Option<&mut Link> {
        self.links.get_mut(usize::from(link))
    }

    /// A session has opened over this link: nothing is known of the others.
    pub(super) fn open(&mut self, now: Time, link: u8) {
        for l in &mut self.links {
            let (carrier, counters) = (l.carrier, l.counters);
            *l = Link { carrier, counters, ..Link::new(now) };
        }
        if usize::from(link) < self.links.len() {
            self.current = link;
            self.told = link;
            self.heard = link;
        }
    }

    /// The interface of a link has gained or lost its carrier.
    pub(super) fn carrier(&mut self, link: u8, carrier: bool) {
        if let Some(l) = self.get(link) {
            if carrier && !l.carrier {
                l.answered_at = None;
                l.steady = 0;
                l.suspect = None;
                l.probe = 0;
                l.answered = 0;
                l.probe_at = Time::ZERO;
            }
            l.carrier = carrier;
        }
    }

    /// A datagram was not acknowledged in time. If it is the link's fault, its next probe will not
    /// be answered either: all links are probed at once.
    pub(super) fn timed_out(&mut self) {
        let current = usize::from(self.current);
        if self.links.len() < 2 || self.links[current].suspect.is_some() {
            return;
        }
        self.links[current].suspect = Some(self.links[current].probe + 1);
        for l in &mut self.links {
            l.probe_at = Time::ZERO;
        }
    }

    /// Takes a PROBE of the peer: a question, which is answered on the same link, or an answer.
    pub(super) fn take(&mut self, now: Time, link: u8, id: u64, answer: bool) {
        let Some(l) = self.get(link) else { return };
        if answer {
            l.take_answer(now, id);
        } else {
            l.owed = Some(id);
        }
    }

    pub(super) fn sent(&mut self, link: u8, bytes: usize) {
        if let Some(l) = self.get(link) {
            l.counters.datagrams_sent += 1;
            l.counters.bytes_sent += bytes as u64;
        }
    }

    pub(super) fn received(&mut self, link: u8, bytes: u64) {
        if let Some(l) = self.get(link) {
            l.counters.datagrams_received += 1;
            l.counters.bytes_received += bytes;
        }
    }

    /// When [`Self::due`] has something.
    pub(super) fn next(&self) -> Time {
        let at = |l: &Link| if l.owed.is_some() { Time::ZERO } else { l.probe_at };
        self.links.iter().map(at).min().unwrap_or(Time::NEVER)
    }

    /// The next probe or answer to send, if one is due.
    pub(super) fn due(&mut self, now: Time) -> Option<Probe> {
        for (link, l) in (0..).zip(&mut self.links) {
            if let Some(id) = l.owed.take() {
                return Some(Probe { link, id, answer: true });
            }
            if l.probe_at <= now {
                return Some(Probe { link, id: l.send_probe(now), answer: false });
            }
        }
        None
    }

    /// Data has come by this link.
    pub(super) fn heard(&mut self, link: u8) {
        if usize::from(link) < self.links.len() {
            self.heard = link;
        }
    }

    /// The link for an acknowledgement: the one by which data came, if it answers. The peer may have
    /// left another one before this node knows why.
    pub(super) fn back(&mut self, now: Time) -> u8 {
        let works =
            matches!(self.links[usize::from(self.heard)].state(now), LinkState::Up | LinkState::Lossy);
        if works { self.heard } else { self.pick(now) }
    }

    /// The link for the next datagram.
    pub(super) fn pick(&mut self, now: Time) -> u8 {
        let rank = |l: &Link| match l.state(now) {
            LinkState::Up if l.suspect.is_none() => 0,
            LinkState::Up | LinkState::Lossy => 1,
            LinkState::Unknown => 2,
            LinkState::Down => 3,
        };
        let current = &self.links[usize::from(self.current)];
        let now_at = rank(current);
        let better = |&(n, l): &(u8, &Link)| {
            rank(l) < now_at || (rank(l) == now_at && n < self.current && l.steady >= STEADY)
        };
        if let Some((n, _)) = (0..).zip(&self.links).filter(better).min_by_key(|(n, l)| (rank(l), *n)) {
            self.current = n;
        } else if now_at == 3 {
            // None works as far as is known: each is tried in turn.
            self.current = (self.current + 1) % self.links.len() as u8;
        }
        self.current
    }

    /// Whether data takes another link than this told last: from which, to which. While none works, and each is tried in
    /// turn, that is no news.
    pub(super) fn moved(&mut self, now: Time) -> Option<(u8, u8)> {
        let down = self.links[usize::from(self.current)].state(now) == LinkState::Down;
        let moved = self.current != self.told && !down;
        moved.then(|| (std::mem::replace(&mut self.told, self.current), self.current))
    }

    pub(super) fn status(&self, now: Time) -> Vec<LinkStatus> {
        let status = |(n, l): (u8, &Link)| LinkStatus {
            link: n,
            state: l.state(now),
            rtt: l.rtt.filter(|_| l.state(now) != LinkState::Down),
            loss_per_mille: l.loss(),
            used: n == self.current,
            counters: l.counters,
        };
        (0..).zip(&self.links).map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Links whose probes are answered after 1 ms, where `works` says so.
    fn run(links: &mut Links, now: &mut Time, time: Duration, works: impl Fn(u8) -> bool) {
        let end = *now + time;
        while links.next() <= end {
            *now = (*now).max(links.next());
            while let Some(probe) = links.due(*now) {
                if works(probe.link) {
                    links.take(*now + MS, probe.link, probe.id, true);
                }
            }
        }
        *now = end;
    }

    fn states(links: &Links, now: Time) -> Vec<LinkState> {
        links.status(now).iter().map(|l| l.state).collect()
    }

    #[test]
    fn data_leaves_a_dead_link_and_comes_back_when_it_is_steady() {
        let mut now = Time::from_millis(1000);
        let mut links = Links::new(now, 3);
        links.open(now, 1);
        assert_eq!(links.pick(now), 1, "the link that opened the session, before anything is known");
        run(&mut links, &mut now, 150 * MS, |_| true);
        assert_eq!((links.pick(now), states(&links, now)), (1, vec![LinkState::Up; 3]));
        run(&mut links, &mut now, 3000 * MS, |_| true);
        assert_eq!(links.pick(now), 0, "the most preferred");
        run(&mut links, &mut now, 400 * MS, |link| link != 0);
        assert_eq!((links.pick(now), states(&links, now)[0]), (1, LinkState::Down));
        run(&mut links, &mut now, 1000 * MS, |_| true);
        assert_eq!((links.pick(now), states(&links, now)[0]), (1, LinkState::Lossy), "its past is not over");
        run(&mut links, &mut now, 6000 * MS, |_| true);
        assert_eq!(links.pick(now), 0);
        assert_eq!(links.status(now)[0].rtt, Some(MS));
    }

    #[test]
    fn a_lossy_link_is_left_and_named() {
        let mut now = Time::from_millis(1000);
        let mut links = Links::new(now, 2);
        run(&mut links, &mut now, 3000 * MS, |_| true);
        assert_eq!((links.pick(now), links.status(now)[0].loss_per_mille), (0, Some(0)));
        for n in 0..50 {
            run(&mut links, &mut now, PROBE_EVERY, |link| link != 0 || n % 3 > 0);
        }
        let status = links.status(now);
        assert_eq!((status[0].state, links.pick(now)), (LinkState::Lossy, 1));
        assert!(status[0].loss_per_mille.is_some_and(|l| (250..400).contains(&l)), "{status:?}");
    }

    #[test]
    fn a_timeout_moves_data_at_once_and_a_probe_answers_for_the_link() {
        let mut now = Time::from_millis(1000);
        let mut links = Links::new(now, 2);
        run(&mut links, &mut now, 3000 * MS, |_| true);
        links.timed_out();
        assert_eq!(links.next(), Time::ZERO, "all are probed at once");
        assert_eq!(links.pick(now), 1);
        run(&mut links, &mut now, 5 * MS, |_| true);
        assert_eq!(links.pick(now), 0, "it was the peer, not the link");
        links.carrier(0, false);
        assert_eq!((links.pick(now), states(&links, now)[0]), (1, LinkState::Down), "believed at once");
        links.carrier(0, true);
        run(&mut links, &mut now, 3000 * MS, |_| true);
        assert_eq!(links.pick(now), 0);
        links.timed_out();
        links.carrier(0, false);
        links.carrier(0, true);
        run(&mut links, &mut now, 3000 * MS, |_| true);
        assert_eq!(links.pick(now), 0, "what was suspected before the carrier was gone is over");
    }

    #[test]
    fn without_a_working_link_each_is_tried_in_turn() {
        let mut now = Time::from_millis(1000);
        let mut links = Links::new(now, 3);
        run(&mut links, &mut now, 2000 * MS, |_| false);
        let picked: Vec<u8> = (0..6).map(|_| links.pick(now)).collect();
        assert_eq!(picked, [1, 2, 0, 1, 2, 0]);
        assert_eq!(states(&links, now), vec![LinkState::Down; 3]);
    }
}
