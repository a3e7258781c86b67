//! Witnesses: hosts outside of the cluster that tell a lost peer from a node that is cut off itself.
//!
//! Two nodes between which no path is left see the same: the other one answers nowhere. Both would be
//! Active. With witnesses a node claims a group of a peer that it cannot reach at all only if a witness
//! answers it: *one* of them, whichever. More addresses make the witness redundant, they are no votes:
//! an answer says that this node is not alone, not that the other one is, so a majority would prove no more.
//!
//! What counts is an answer to a request that was sent *after* the peer fell silent: an older one may come
//! from before the cut. So the witnesses are asked
//!
//! - once a second in peace, to know and to tell how they are;
//! - in the moment in which a peer is suspected, and once a heartbeat interval from then on. Probes of the
//!   peer take longer than an answer from a witness near by, so a takeover does not wait for it;
//! - while a claim is held back because none has answered.
//!
//! A node that is Active stays so without a witness. It may be the witness that died, and an overlap of
//! two Actives is better than a moment with none. Who wants it otherwise adds a tracker of the same
//! address, which is not shared. A peer whose data plane answers, that said goodbye, or that hands over
//! is reached: no witness is asked about it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use super::Election;
use super::decide::unreached;
use super::group::{FAST_ADVERT_CS, Held};
use super::output::{Event, Output};
use crate::NodeId;
use crate::heartbeat::PeerState;
use crate::time::Time;
use crate::tracker::State;
use crate::vrrp::machine::active_down_interval;

/// Witnesses of a cluster at most.
pub const MAX_WITNESSES: usize = 8;

/// Asking in peace.
const PEACE: Duration = Duration::from_secs(1);
/// Without an answer for this long, two requests and the time of a third, it is down.
const DOWN_AFTER: Duration = Duration::from_millis(2500);
/// For how long a held claim asks once a heartbeat interval.
const URGENT: Duration = Duration::from_secs(1);
/// And how often from then on, if that is more.
const PATIENT: Duration = Duration::from_millis(100);
/// A claim that is held for less, because an answer is under way, is not worth an event; heartbeats.
const HELD_BEATS: u32 = 5;
/// No witness is so far away that the first answer takes so long.
const LATE: Duration = Duration::from_millis(500);
/// A witness answers again after [`LATE`]: a peer to which the way is back, too, is heard within this, by heartbeat,
/// by the answer to a probe or by one of three advertisements of an Active without sync link.
pub(super) const BACK: Duration = active_down_interval(0, FAST_ADVERT_CS);
/// Requests whose answers are awaited.
const ASKED_MAX: usize = 64;

/// How a witness stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessStatus {
    /// Its address.
    pub address: IpAddr,
    /// Whether it answers.
    pub state: State,
    /// Since when.
    pub since: Time,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Requests so far.
    pub requests: u64,
    /// Answers so far.
    pub answers: u64,
}

#[derive(Debug)]
struct Witness {
    status: WitnessStatus,
    /// Number and time of requests without an answer.
    asked: VecDeque<(u64, Time)>,
    /// When the latest request that was answered was sent.
    proved: Option<Time>,
    /// When the last answer came; at first the beginning.
    heard: Time,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Witnesses {
    list: Vec<Witness>,
    due: Time,
    /// From when on an answered request says something about whom is in doubt.
    doubt: Option<Time>,
    /// A claim waits for an answer; set by every judgement anew.
    held: bool,
}

impl Witnesses {
    pub fn new(now: Time, addresses: &[IpAddr]) -> Self {
        let status = |&address: &IpAddr| WitnessStatus {
            address,
            state: State::Unknown,
            since: now,
            rtt: None,
            requests: 0,
            answers: 0,
        };
        let witness =
            |address| Witness { status: status(address), asked: VecDeque::new(), proved: None, heard: now };
        Self { list: addresses.iter().map(witness).collect(), due: now, doubt: None, held: false }
    }

    /// Other addresses; those that stay are known as before.
    pub fn set(&mut self, now: Time, addresses: &[IpAddr]) {
        let mut new = Self::new(now, addresses);
        for witness in &mut new.list {
            if let Some(at) = self.list.iter().position(|w| w.status.address == witness.status.address) {
                *witness = self.list.swap_remove(at);
            }
        }
        self.list = new.list;
        self.due = now;
    }

    /// When they are asked next.
    pub fn next(&self) -> Time {
        if self.list.is_empty() { Time::NEVER } else { self.due }
    }

    pub fn status(&self) -> impl Iterator<Item = &WitnessStatus> {
        self.list.iter().map(|w| &w.status)
    }

    /// None of them answers, as far as is known.
    pub fn none_up(&self) -> bool {
        !self.list.is_empty() && self.list.iter().all(|w| w.status.state != State::Up)
    }

    /// Whether one has answered since there was a doubt.
    fn answered(&self) -> bool {
        self.doubt.is_some_and(|doubt| self.list.iter().any(|w| w.proved >= Some(doubt)))
    }
}

impl Election {
    /// A witness answered the request of this number.
    pub fn witness_reply(&mut self, now: Time, address: IpAddr, nonce: u64) {
        self.advance(now);
        let witness = self.witnesses.list.iter_mut().find(|w| w.status.address == address);
        let asked = witness.and_then(|w| {
            let at = w.asked.iter().position(|(asked, _)| *asked == nonce)?;
            let (_, sent) = w.asked.remove(at)?;
            Some((w, sent))
        });
        let Some((witness, sent)) = asked else {
            return self.counters.count("witness_rx", "unasked");
        };
        self.counters.count("witness_rx", "replies");
        let trip = now.since(sent);
        let status = &mut witness.status;
        status.rtt = Some(status.rtt.map_or(trip, |rtt| (rtt * 7 + trip) / 8));
        status.answers += 1;
        witness.proved = witness.proved.max(Some(sent));
        witness.heard = witness.heard.max(now);
        if status.state != State::Up {
            (status.state, status.since) = (State::Up, now);
            self.event(Event::Witness { witness: address, to: State::Up });
        }
        // A claim may wait for it; and the way to those that are held for dead may be back, too.
        self.judge_due = true;
        if self.groups.iter().any(|group| group.held.is_some()) {
            for peer in &mut self.peers {
                peer.suspicion.ask_soon(now);
            }
        }
    }

    /// Asks the witnesses if it is time to: at the end of a tick, when everything is judged.
    pub(super) fn ask_witnesses(&mut self, now: Time) {
        if self.witnesses.list.is_empty() {
            return;
        }
        let held = std::mem::take(&mut self.witnesses.held);
        let before = self.witnesses.doubt;
        let doubted = || self.peers.iter().filter(|p| p.suspicion.in_doubt().is_some());
        // What is known since an older doubt is not made worthless by one that lives and is late.
        let suspected = doubted().filter(|p| before.is_none() || p.state() == PeerState::Suspect);
        let suspected = suspected.filter_map(|p| p.suspicion.in_doubt()).max();
        let doubt = match (before.max(suspected), doubted().next().is_some() || held) {
            (_, false) => None,
            (None, true) => Some(now),
            (since, true) => since,
        };
        self.witnesses.doubt = doubt;
        if doubt > before {
            self.witnesses.due = now;
        }
        if now < self.witnesses.due {
            return;
        }
        let beat = self.config.heartbeat_interval;
        self.witnesses.due = now
            + match doubt {
                None => PEACE,
                Some(since) if now.since(since) < URGENT => beat,
                Some(_) => beat.max(PATIENT),
            };
        for w in 0..self.witnesses.list.len() {
            self.nonce = self.nonce.wrapping_add(1);
            let witness = &mut self.witnesses.list[w];
            let (address, nonce) = (witness.status.address, self.nonce);
            if witness.asked.len() == ASKED_MAX {
                witness.asked.pop_front();
            }
            witness.asked.push_back((nonce, now));
            witness.status.requests += 1;
            let down = now.since(witness.heard) >= DOWN_AFTER && witness.status.state != State::Down;
            if down {
                (witness.status.state, witness.status.since) = (State::Down, now);
                self.event(Event::Witness { witness: address, to: State::Down });
            }
            self.counters.count("witness_tx", "requests");
            self.out.push_back(Output::AskWitness { address, nonce });
        }
    }

    /// The members that might have a group, that cannot be reached at all: its last Active, or if that is not known
    /// anybody.
    pub(super) fn unreached(&self, g: usize) -> impl Iterator<Item = NodeId> {
        let group = &self.groups[g];
        let last = group.last_active;
        group.others().filter(move |node| {
            last.is_none_or(|last| last == *node) && self.peer(*node).is_some_and(unreached)
        })
    }

    /// Whether a claim has to wait for a witness. An event tells of one that waits for long.
    pub(super) fn lacks_witness(&mut self, g: usize) -> bool {
        let now = self.clock;
        if self.witnesses.list.is_empty() || self.unreached(g).next().is_none() {
            self.groups[g].held = None;
            return false;
        }
        if self.witnesses.answered() {
            let late = |held: &&mut Held| held.back.is_some() || now >= held.since + LATE;
            let Some(held) = self.groups[g].held.as_mut().filter(late) else {
                self.groups[g].held = None;
                return false;
            };
            // The way to the witness is back; that to the peer may be a moment behind.
            if now >= *held.back.get_or_insert(now) + BACK {
                self.groups[g].held = None;
                return false;
            }
            self.witnesses.held = true;
            return true;
        }
        self.witnesses.held = true;
        let held = self.groups[g].held.get_or_insert(Held { since: now, told: false, back: None });
        held.back = None;
        if !held.told && now >= held.since + self.config.heartbeat_interval * HELD_BEATS {
            held.told = true;
            self.counters.count("witness", "claims_held");
            let (group, peers) = (self.groups[g].config.group, self.unreached(g).collect());
            self.event(Event::ClaimHeld { group, peers });
        }
        true
    }
}
