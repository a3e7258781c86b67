//! What is known of one peer: from its heartbeats, and when they stop, from probes.
//!
//! ```text
//!           2.25 intervals without a heartbeat, or no sync link with a carrier
//!   Alive ------------------------------------------------------------------> Suspect
//!     ^                                                                          |
//!     |  a heartbeat, from any state                    a burst of ROUNDS probes |
//!     |                                                    begun at 1.5 or later v
//!     |     answers on a sync link:         Silent   its daemon hangs; its lease will end
//!     |     answers on zone interfaces:     SyncLost nothing moves
//!     |     answers nowhere:                Dead     replaced at once
//!     |     nobody could be asked:          Unknown  VRRP's timing decides
//! ```
//! The questions are asked while the second heartbeat is awaited, so that the answers, or none, are there when it is missing.
//!
//! Silence of probes proves death only if a zone interface that answered a moment ago is silent
//! now: in peace each interface is probed once a second to know. In a network that does not carry
//! probes, losing the sync link makes a peer SyncLost, not Dead, and VRRP's silence must confirm it.
//!
//! One that said goodbye (Left) is left alone for 15 s and then asked as a dead one is: it may be back and unheard, for its
//! sync link is broken or its key another.
//!
//! Who slept asks a dead one by a burst again before it believes what it knew: meanwhile that one may have come back, and
//! taken over.

use std::time::Duration;

use crate::heartbeat::{PeerState, Via};
use crate::time::Time;

/// Unanswered rounds of probes after which a peer is held for dead.
pub const ROUNDS: u64 = 4;
/// Probing in peace, and of the dead.
const SLOW: Duration = Duration::from_secs(1);
/// Between two rounds to one that is held for dead, however many signs of life there are.
const SOONEST: Duration = Duration::from_millis(100);
/// Probing while the sync link is lost.
const SYNC_LOST: Duration = Duration::from_millis(100);
/// The same while nothing answers and only advertisements speak for the peer.
const UNANSWERED: Duration = Duration::from_millis(50);
/// An interface whose last answer is older proves nothing by its silence: two lost and some slack.
const TRUST: Duration = Duration::from_millis(3200);

/// For so long after its goodbye a peer may still answer probes: its programs go last.
const GONE: Duration = Duration::from_secs(15);

/// The longest wait for an answer, however slow the network was.
const PATIENCE_MAX: Duration = Duration::from_millis(100);

/// What VRRP can say about whether a peer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adverts {
    /// Nothing: it would not be the one to advertise.
    NotExpected,
    /// Advertisements that may be its own arrive.
    Heard,
    /// They should and do not.
    Silent,
}

/// What a probe's reply says.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The round that it answers.
    pub round: u64,
    /// Where it came in.
    pub via: Via,
    /// How long it took.
    pub trip: Duration,
    /// How long the longest lease of the peer still runs; `None` if it owns nothing.
    pub lease: Option<Duration>,
}

/// See the module.
#[derive(Debug)]
pub struct Suspicion {
    state: PeerState,
    since: Time,
    heartbeat: Duration,
    probe: Duration,
    /// Smoothed round trip of probes and its mean deviation (RFC 6298).
    trip: Option<(Duration, Duration)>,
    heard: Option<Time>,
    /// Since when no sync link has a carrier.
    cut_off: Option<Time>,
    /// When the peer's lease has surely ended, as far as known.
    owned_until: Time,
    /// When its last answer came.
    answered_at: Time,
    /// The peer renewed its lease after its heartbeats stopped: its daemon lives.
    renewing: bool,
    round: u64,
    round_due: Time,
    /// When the last round went out.
    asked: Time,
    /// The burst asks one that was dead.
    was_dead: bool,
    /// The burst asks one that is Alive still.
    early: bool,
    /// The first round of the burst.
    burst: u64,
    /// When it began.
    burst_at: Time,
    /// The last rounds that were answered on a sync link and on a zone interface.
    answered: [Option<u64>; 2],
    /// When each zone interface answered last before the burst.
    zones: Vec<(u8, Time)>,
}

impl Suspicion {
    /// Nothing is known yet. `heartbeat` is the interval at which the peer is expected to be heard.
    pub fn new(now: Time, heartbeat: Duration) -> Self {
        Self {
            state: PeerState::Unknown,
            since: now,
            heartbeat,
            // 2 ms at the default of 10 ms.
            probe: (heartbeat / 5).clamp(Duration::from_millis(1), Duration::from_millis(10)),
            trip: None,
            heard: None,
            cut_off: None,
            owned_until: Time::ZERO,
            answered_at: Time::ZERO,
            renewing: false,
            round: 0,
            round_due: Time::ZERO,
            asked: Time::ZERO,
            was_dead: false,
            early: false,
            burst: 0,
            burst_at: now,
            answered: [None; 2],
            zones: Vec::new(),
        }
    }

    /// The present state.
    pub const fn state(&self) -> PeerState {
        self.state
    }

    /// Since when.
    pub const fn since(&self) -> Time {
        self.since
    }

    /// Since when the burst asks whether it lives; `None` if it does not.
    pub fn in_doubt(&self) -> Option<Time> {
        (self.early || self.state == PeerState::Suspect).then_some(self.burst_at)
    }

    /// When the last heartbeat arrived.
    pub const fn heard(&self) -> Option<Time> {
        self.heard
    }

    /// The number of the last round of probes.
    pub const fn round(&self) -> u64 {
        self.round
    }

    /// Whether its data plane answers: one of the last rounds was answered.
    pub fn answers(&self) -> bool {
        self.answered.iter().flatten().any(|round| self.round - round < ROUNDS)
    }

    /// Whether an interface of it that has answered before does not any more.
    pub fn is_quiet(&self, now: Time, zone: u8) -> bool {
        self.zones.iter().any(|&(z, at)| z == zone && now.since(at) > TRUST)
    }

    /// Whether the lease of a peer whose data plane answers has ended, and it was asked to the last: its daemon may have
    /// renewed it since, and who slept through that has not heard of it. Of one that does not answer, what it said last
    /// counts.
    pub fn lapsed(&self, now: Time) -> bool {
        let asked_every =
            if self.state == PeerState::SyncLost { SYNC_LOST } else { self.heartbeat.max(self.patience()) };
        let to_the_last = self.answered_at + asked_every * ROUNDS as u32 >= self.owned_until;
        let silent = self.state == PeerState::SyncLost && !self.answers();
        now >= self.owned_until && (to_the_last || silent)
    }

    /// An authenticated heartbeat arrived. Its sender beats every `interval`, holds what it owns for
    /// `lease` from now (zero if it owns nothing), and stays or has `left`.
    pub fn heartbeat(&mut self, now: Time, interval: Duration, lease: Duration, left: bool) {
        self.heard = self.heard.max(Some(now));
        // A peer may run slower than this node, and is then given its own time; never much more.
        self.heartbeat = interval.clamp(Duration::from_millis(1), Duration::from_secs(1));
        self.owned_until = now + lease.min(Duration::from_secs(60));
        self.renewing = false;
        self.early = false;
        if self.state != PeerState::Alive && self.state != PeerState::Left {
            self.round_due = now;
        }
        self.enter(now, if left { PeerState::Left } else { PeerState::Alive });
    }

    /// A probe was answered.
    pub fn answer(&mut self, now: Time, answer: Answer) {
        let trip = answer.trip;
        self.trip = Some(self.trip.map_or((trip, trip / 2), |(mean, deviation)| {
            ((mean * 7 + trip) / 8, (deviation * 3 + mean.abs_diff(trip)) / 4)
        }));
        let class = match answer.via {
            Via::Sync(_) => 0,
            Via::Zone(_) if self.in_doubt().is_some() => 1,
            Via::Zone(zone) => {
                match self.zones.iter_mut().find(|(z, _)| *z == zone) {
                    Some((_, at)) => *at = now,
                    None => self.zones.push((zone, now)),
                }
                1
            }
        };
        let in_peace = self.state == PeerState::Alive && !self.early;
        if in_peace || self.leaves(now) || answer.round < self.burst {
            return;
        }
        self.answered[class] = self.answered[class].max(Some(answer.round));
        self.answered_at = now;
        let until = answer.lease.map_or(now, |lease| now + lease.min(Duration::from_secs(60)));
        // The lease that its last heartbeat renewed ends by then; more is a later renewal.
        let slack = self.heartbeat * 3 + Duration::from_millis(50);
        if answer.lease.is_some() && until > self.owned_until + slack && self.heard.is_some() {
            self.renewing = true;
        }
        self.owned_until = until;
        match self.state {
            PeerState::Silent if self.renewing => self.enter(now, PeerState::SyncLost),
            PeerState::Dead | PeerState::Unknown | PeerState::Left => {
                self.enter(now, if class == 0 { PeerState::Silent } else { PeerState::SyncLost });
                self.round_due = now + self.pace();
            }
            _ => {}
        }
    }

    /// Nothing was heard for too long, or nothing can be heard any more: it is asked by a burst, if it is not yet.
    fn suspect(&mut self, now: Time) {
        if !self.early {
            self.ask(now);
        }
        self.early = false;
        self.enter(now, PeerState::Suspect);
    }

    /// The burst begins.
    fn ask(&mut self, now: Time) {
        self.was_dead = self.state == PeerState::Dead;
        (self.burst, self.burst_at) = (self.round + 1, now);
        self.answered = [None; 2];
        self.round_due = now;
    }

    /// A sign of life that proves nothing, an advertisement, of a peer that is held for dead or was never heard: it is
    /// asked now, not at its next turn. Where the network carries no probes there is nothing to ask by, and
    /// advertisements must do of one that was held for dead.
    pub fn sign(&mut self, now: Time) {
        if !self.is_gone(now) {
            return;
        }
        if self.zones.is_empty() && self.state != PeerState::Unknown {
            self.enter(now, PeerState::SyncLost);
        }
        self.ask_soon(now);
    }

    /// Whether it is held for dead, was never heard, or has left a while ago.
    fn is_gone(&self, now: Time) -> bool {
        match self.state {
            PeerState::Dead | PeerState::Unknown => true,
            PeerState::Left => !self.leaves(now),
            PeerState::Alive | PeerState::Suspect | PeerState::Silent | PeerState::SyncLost => false,
        }
    }

    /// Whether it said goodbye a moment ago, and what it still answers says nothing.
    fn leaves(&self, now: Time) -> bool {
        self.state == PeerState::Left && now < self.gone_at()
    }

    fn gone_at(&self) -> Time {
        self.heard.unwrap_or(Time::ZERO) + GONE
    }

    /// One that is held for dead, or was never heard, is asked now, not at its next turn.
    pub fn ask_soon(&mut self, now: Time) {
        if self.is_gone(now) {
            self.round_due = self.round_due.min(now.max(self.asked + SOONEST));
        }
    }

    /// This node slept, or has another way to ask: one that is held for dead is asked by a burst again.
    pub fn doubt(&mut self, now: Time) {
        if self.state == PeerState::Dead {
            self.suspect(now);
        }
    }

    /// Does what is due. `paths` are the interfaces on which the peer can be asked now,
    /// `sync_carrier` says whether a sync link to it has a carrier. Returns true if a probe must go
    /// out on each path now.
    pub fn tick(&mut self, now: Time, paths: &[Via], sync_carrier: bool, adverts: Adverts) -> bool {
        self.cut_off = if sync_carrier { None } else { self.cut_off.or(Some(now)) };
        // What a link says of its carrier is a hint. A heartbeat that was sent since, not just under
        // way then, proves it wrong.
        let cut_off = self.cut_off.is_some_and(|at| self.heard <= Some(at + self.heartbeat / 2));
        if self.state == PeerState::Alive && (now >= self.silent_at() || cut_off) {
            self.suspect(now);
        } else if self.state == PeerState::Alive && !self.early && now >= self.missed_at() {
            self.ask(now);
            self.early = true;
        }
        if now < self.round_due || self.leaves(now) {
            return false;
        }
        let asked = self.round + 1 - self.burst >= ROUNDS;
        let answered = |class: usize| self.answered[class].is_some_and(|r| self.round - r < ROUNDS);
        let (sync, zone) = (answered(0), answered(1));
        let nowhere = asked && !sync && !zone;
        // Of one that lives a heartbeat may be on its way, whatever a carrier says.
        let silent = now >= self.silent_at();
        let answered_lately = |before: Time| {
            self.zones.iter().any(|&(zone, at)| paths.contains(&Via::Zone(zone)) && at + TRUST >= before)
        };
        match self.state {
            PeerState::Suspect if paths.is_empty() => self.enter(now, PeerState::Unknown),
            PeerState::Suspect if asked && sync && silent => self.enter(now, PeerState::Silent),
            PeerState::Suspect if asked && zone && silent => self.enter(now, PeerState::SyncLost),
            PeerState::Suspect if nowhere && (self.was_dead || answered_lately(self.since)) => {
                self.enter(now, PeerState::Dead);
            }
            PeerState::Suspect if nowhere && silent => self.enter(now, PeerState::SyncLost),
            PeerState::Silent if nowhere => self.enter(now, PeerState::Dead),
            PeerState::Silent if !sync && zone => self.enter(now, PeerState::SyncLost),
            PeerState::SyncLost if nowhere && adverts == Adverts::Silent => self.enter(now, PeerState::Dead),
            PeerState::SyncLost if nowhere && adverts == Adverts::NotExpected && answered_lately(now) => {
                self.enter(now, PeerState::Dead);
            }
            _ => {}
        }
        if paths.is_empty() {
            self.round_due = if self.early { self.silent_at() } else { now + SLOW };
            return false;
        }
        self.round += 1;
        self.asked = now;
        self.round_due = now + self.pace();
        true
    }

    /// When [`Self::tick`] has something to do.
    pub fn next(&self) -> Time {
        match self.state {
            PeerState::Left => self.round_due.max(self.gone_at()),
            PeerState::Alive if self.early => self.round_due.min(self.silent_at()),
            PeerState::Alive => self.round_due.min(self.missed_at()),
            _ => self.round_due,
        }
    }

    /// A heartbeat is missing, late by half an interval at least, and a burst from now on ends when the second is missing, too:
    /// not before, so that its answers are not old then. To be wrong costs a few probes.
    fn missed_at(&self) -> Time {
        let burst = self.probe * (ROUNDS as u32 - 1) + self.patience();
        let silence = (self.heartbeat * 9 / 4).saturating_sub(burst).max(self.heartbeat * 3 / 2);
        self.heard.unwrap_or(Time::ZERO) + silence
    }

    /// Two heartbeats are missing, and the second is late by a quarter of an interval.
    fn silent_at(&self) -> Time {
        self.heard.unwrap_or(Time::ZERO) + self.heartbeat * 9 / 4
    }

    /// How long after this round the next is due.
    fn pace(&self) -> Duration {
        let last = self.answered.iter().flatten().max();
        let unanswered = self.round - last.map_or(self.burst.saturating_sub(1), |&round| round);
        let in_doubt = self.in_doubt().is_some();
        // The round just sent cannot be answered yet.
        match (self.state, unanswered) {
            _ if in_doubt && self.round + 1 < self.burst + ROUNDS => self.probe,
            _ if in_doubt => self.patience(),
            (PeerState::Silent, 0..=1) => self.heartbeat.max(self.patience()),
            (PeerState::SyncLost, 0..=1) => SYNC_LOST,
            (PeerState::SyncLost, n) if n > ROUNDS => UNANSWERED,
            (PeerState::Silent | PeerState::SyncLost, _) => self.patience(),
            _ => SLOW,
        }
    }

    /// How long an answer may take: RFC 6298's reckoning, within bounds of our own.
    fn patience(&self) -> Duration {
        let usual = self.trip.map_or(Duration::ZERO, |(mean, deviation)| mean + deviation * 4);
        usual.clamp(self.probe, PATIENCE_MAX)
    }

    fn enter(&mut self, now: Time, state: PeerState) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }
}
