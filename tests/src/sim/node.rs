//! A node: its kernel, and while it runs, its daemon. The daemon does around the machine of
//! `fwha-proto` what the replication thread of `fwha run` does, in the same order.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use fwha_common::flow::{Flow, FlowId, FlowKey};
use fwha_proto::NodeId;
use fwha_proto::replication::{Buckets, Output, Ownership, Replication, SyncState, stays};
use fwha_proto::time::Time;

use super::kernel::{Kernel, Number, key_of, number_of};
use super::roles::Roles;
use super::{GROUPS, Group, Planted, bucket_of, buckets_of, group_of};

/// The term in which each group is owned.
pub type Claims = [Option<u32>; GROUPS];

/// Events taken before datagrams and letters have their turn.
const EVENT_BURST: usize = 16;
/// Flows looked at in one turn of a comparison of replica and kernel.
const WALK_CHUNK: usize = 8;
/// From one chunk to the next.
const WALK_PAUSE: Duration = Duration::from_micros(200);
/// From the end of a comparison to the beginning of the next.
pub const WALK_INTERVAL: Duration = Duration::from_secs(1);

/// For how long after a change of ownership the former owner tells what it did, and the new one listens.
pub const STRAGGLERS_FOR: Duration = Duration::from_secs(1);

/// What other threads tell the replication thread.
#[derive(Clone, Copy, Debug)]
pub enum Letter {
    /// A group is owned.
    Owned(Group, u32),
    /// It is not any more.
    Disowned(Group),
    /// The sweeper has deleted a flow.
    Expired(Number, FlowId),
    /// Events of these buckets were lost.
    Reconcile(Buckets),
}

#[derive(Debug)]
struct Walk {
    at: Number,
    next: Time,
}

/// A life of the daemon.
pub struct Daemon {
    /// The machine under test.
    pub replication: Replication,
    /// What it knows of its own ownership.
    pub told: Claims,
    /// When it heard of that.
    pub told_at: [Time; GROUPS],
    /// What it owned before, and since when it knows that it does not any more.
    left: [Option<(u32, Time)>; GROUPS],
    /// Terms of which replication tells the election that they have been.
    pub past_terms: Vec<(Group, u32)>,
    /// Terms in which peers told replication that a group is theirs, for the election.
    pub claims: Vec<(Group, u32)>,
    /// The election, where it is not the storm that says who owns what.
    pub roles: Option<Roles>,
    /// It does nothing before that.
    pub stalled: Time,
    letters: VecDeque<Letter>,
    waiting: Buckets,
    walk: Option<Walk>,
    walk_due: Time,
    /// Flows that a peer spoke of while the data plane had them in use.
    deferred: BTreeSet<Number>,
}

/// What a daemon's machine wants done, with the time at which it said so.
pub enum Effect {
    /// A datagram to a peer.
    Transmit(NodeId, Option<u8>, Vec<u8>),
    /// A flow to write.
    Put(FlowKey, Flow),
    /// A flow to delete.
    Delete(FlowKey, FlowId, u64),
    /// Something for the log.
    Note(String),
    /// What must not be.
    Wrong(String),
    /// The machine has been told of a deletion, in the term in which it owned.
    Buried(FlowId, Option<u32>),
}

/// See the module.
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its clock shows so much more than the world's.
    pub offset: Duration,
    /// Its kernel; emptied when the node dies.
    pub kernel: Kernel,
    /// Its daemon, unless it is dead.
    pub daemon: Option<Daemon>,
    /// Counts lives of the daemon.
    pub life: u32,
    /// It has power: its kernel answers.
    pub powered: bool,
    /// A bug that it has.
    pub planted: Option<Planted>,
}

impl Daemon {
    /// A daemon that looks first at what is in the kernel.
    pub fn new(replication: Replication, roles: Option<Roles>) -> Self {
        Self {
            replication,
            roles,
            past_terms: Vec::new(),
            claims: Vec::new(),
            told: [None; GROUPS],
            told_at: [Time::ZERO; GROUPS],
            left: [None; GROUPS],
            stalled: Time::ZERO,
            letters: VecDeque::new(),
            waiting: Buckets::ALL,
            walk: None,
            walk_due: Time::ZERO,
            deferred: BTreeSet::new(),
        }
    }

    /// Tells the daemon something.
    pub fn tell(&mut self, letter: Letter) {
        self.letters.push_back(letter);
    }

    /// Whether kernel and replica are the same but for what peers are about to say.
    pub fn settled(&self) -> bool {
        self.letters.is_empty()
            && self.waiting.is_empty()
            && self.walk.is_none()
            && !self.replication.missed()
    }

    /// In which terms it may speak of each group: as its owner, or of what it did as its owner.
    pub fn speaks(&self, now: Time) -> Claims {
        std::array::from_fn(|g| {
            let left = self.left[g].filter(|&(_, since)| now <= since + STRAGGLERS_FOR);
            self.told[g].or(left.map(|(term, _)| term))
        })
    }

    /// State of replication with a peer.
    pub fn sync_state(&self, peer: NodeId) -> Option<SyncState> {
        self.replication.sync_state(peer)
    }
}

impl Node {
    /// This node's clock.
    pub fn clock(&self, now: Time) -> Time {
        now + self.offset
    }

    /// Whether replica and kernel are the same but for what peers are about to say.
    pub fn settled(&self) -> bool {
        let told = self.daemon.as_ref().is_some_and(|d| d.settled() && d.told == self.kernel.owned);
        told && !self.kernel.has_events() && self.kernel.lost.is_empty()
    }

    /// When it has something to do.
    pub fn wakes(&self, now: Time) -> Time {
        let Some(daemon) = &self.daemon else { return Time::NEVER };
        let next = daemon.replication.next_timeout();
        let mut at = if next == Time::NEVER { next } else { next - self.offset };
        if self.kernel.has_events() || !daemon.letters.is_empty() {
            at = now;
        }
        match &daemon.walk {
            Some(walk) => at = at.min(walk.next),
            None if !daemon.waiting.is_empty() || daemon.replication.missed() => at = at.min(daemon.walk_due),
            None => {}
        }
        at.max(daemon.stalled).max(now)
    }

    /// When its election has something to do.
    pub fn elects(&self, now: Time) -> Time {
        let Some(roles) = self.daemon.as_ref().and_then(|d| d.roles.as_ref()) else { return Time::NEVER };
        let next = roles.election.next_timeout();
        let news = self.daemon.as_ref().is_some_and(|d| !d.past_terms.is_empty() || !d.claims.is_empty());
        let at = if next == Time::NEVER { next } else { next - self.offset };
        let at = if news { now } else { at };
        at.max(roles.hung).max(now)
    }

    /// A datagram comes in.
    pub fn receive(&mut self, now: Time, link: u8, bytes: &mut [u8], effects: &mut Vec<Effect>) {
        self.take_events(now);
        let clock = self.clock(now);
        if let Some(daemon) = &mut self.daemon {
            daemon.replication.datagram(clock, link, bytes);
            poll(daemon, effects);
        }
    }

    /// The daemon has started: what the ring still holds comes before what the table shows.
    pub fn begin(&mut self, now: Time) {
        while self.take_events(now) {}
    }

    /// One turn of the replication thread, without its sockets.
    pub fn turn(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let clock = self.clock(now);
        let Some(daemon) = &mut self.daemon else { return };
        if daemon.walk.is_none() && daemon.replication.missed() {
            daemon.waiting = Buckets::ALL;
        }
        if daemon.walk.is_none() && !daemon.waiting.is_empty() && now >= daemon.walk_due {
            daemon.replication.reconcile_begin(std::mem::take(&mut daemon.waiting));
            daemon.walk = Some(Walk { at: 0, next: now });
        }
        self.take_events(now);
        while let Some(letter) = self.daemon.as_mut().and_then(|d| d.letters.pop_front()) {
            self.read(now, letter, effects);
        }
        self.walk_on(now);
        if let Some(daemon) = &mut self.daemon {
            let proved = daemon.replication.take_past_terms();
            daemon.past_terms.extend(proved.into_iter().map(|(bucket, term)| (group_of(bucket), term)));
            let claims: BTreeSet<_> = daemon
                .replication
                .take_claims()
                .into_iter()
                .map(|(bucket, term)| (group_of(bucket), term))
                .collect();
            daemon.claims.extend(claims);
            daemon.replication.tick(clock);
            poll(daemon, effects);
        }
    }

    /// Whether there may be more.
    fn take_events(&mut self, now: Time) -> bool {
        let clock = self.clock(now);
        let Some(daemon) = &mut self.daemon else { return false };
        for _ in 0..EVENT_BURST {
            let Some(event) = self.kernel.event() else { return false };
            daemon.replication.local(clock, &event);
        }
        true
    }

    fn read(&mut self, now: Time, letter: Letter, effects: &mut Vec<Effect>) {
        let clock = self.clock(now);
        if let Letter::Disowned(_) | Letter::Expired(..) = letter {
            while self.take_events(now) {}
        }
        let Some(daemon) = &mut self.daemon else { return };
        effects.push(Effect::Note(format!("reads {letter:?}")));
        match letter {
            Letter::Owned(group, term) => {
                let again = daemon.told[usize::from(group)].replace(term) == Some(term);
                daemon.told_at[usize::from(group)] = now;
                let owned = Ownership::Owned { term };
                let refused = daemon.replication.set_ownership(clock, buckets_of(group), owned);
                let known = refused.iter().map(|b| daemon.replication.term(b)).max();
                daemon.past_terms.extend(known.map(|term| (group, term)));
                let believed = daemon.replication.status(clock).find(|s| s.state == SyncState::InSync);
                if let Some(s) = believed.filter(|_| !again && refused.is_empty()) {
                    effects.push(Effect::Wrong(format!(
                        "owns group {group} from now on in term {term}, and calls fw{} in-sync for what that said before",
                        s.peer
                    )));
                }
                let kept = std::mem::take(&mut daemon.deferred).into_iter().map(bucket_of);
                daemon.waiting = daemon.waiting | kept.collect();
            }
            Letter::Disowned(group) => {
                let before = daemon.told[usize::from(group)].take();
                if let Some(term) = before {
                    daemon.left[usize::from(group)] = Some((term, now));
                }
                daemon.replication.set_ownership(clock, buckets_of(group), Ownership::NotOwned);
                let deferred = std::mem::take(&mut daemon.deferred).into_iter();
                let flows = deferred.map(|n| (n, daemon.replication.get(&key_of(n))));
                for (n, flow) in flows.collect::<Vec<_>>() {
                    match (flow, &mut self.daemon) {
                        (Some(flow), _) => self.write(n, flow),
                        (None, Some(daemon)) => _ = daemon.waiting.insert(bucket_of(n)),
                        (None, None) => {}
                    }
                }
            }
            Letter::Expired(n, id) => {
                let term = daemon.told[usize::from(group_of(bucket_of(n)))];
                daemon.replication.local_delete(clock, &key_of(n), &id);
                effects.push(Effect::Buried(id, term));
            }
            Letter::Reconcile(buckets) => daemon.waiting = daemon.waiting | buckets,
        }
    }

    fn walk_on(&mut self, now: Time) {
        let clock = self.clock(now);
        let Some(daemon) = &mut self.daemon else { return };
        let Some(walk) = daemon.walk.as_mut().filter(|walk| walk.next <= now) else { return };
        walk.next = now + WALK_PAUSE;
        let mut seen = 0;
        for (n, flow) in self.kernel.from(walk.at).take(WALK_CHUNK) {
            daemon.replication.reconcile_seen(clock, &key_of(n), flow);
            walk.at = n + 1;
            seen += 1;
        }
        if seen < WALK_CHUNK {
            let vanished = daemon.replication.counters().vanished;
            daemon.replication.reconcile_end(clock);
            daemon.walk = None;
            daemon.walk_due = now + WALK_INTERVAL;
            if daemon.replication.missed() && daemon.replication.counters().vanished > vanished {
                daemon.walk_due = now;
            }
        }
    }

    /// Writes what a peer told into the kernel, never over what the data plane made of it since.
    pub fn write(&mut self, n: Number, flow: Flow) {
        let bucket = flow.bucket;
        let ours = self.kernel.owned[usize::from(group_of(bucket))].is_some();
        let ahead = self.kernel.get(n).is_some_and(|there| stays(there, &flow));
        let ahead = ahead && self.planted != Some(Planted::StaleWritten);
        let Some(daemon) = &mut self.daemon else { return };
        if ours && ahead {
            daemon.deferred.insert(n);
        } else if !self.kernel.write(n, flow) {
            daemon.waiting.insert(bucket);
        }
    }

    /// Deletes what a peer told to delete; whether it was there. While this node has, or had a moment ago, the group,
    /// another flow of the same key stays; while it has it, also one with which the data plane has gone on since `version`.
    pub fn delete(&mut self, now: Time, key: &FlowKey, id: FlowId, version: u64) -> bool {
        let n = number_of(key);
        let Some(there) = self.kernel.get(n) else { return false };
        let (same, g) = (there.id() == id, usize::from(group_of(there.bucket)));
        if same && self.kernel.owned[g].is_some() && there.version > version {
            if let Some(daemon) = &mut self.daemon {
                daemon.deferred.insert(n);
            }
            return true;
        }
        if self.planted == Some(Planted::DeletesForgotten) {
            return true;
        }
        let lately = self.daemon.as_ref().is_some_and(|d| d.speaks(now)[g].is_some());
        if same || !(lately || self.kernel.owned[g].is_some()) {
            self.kernel.remove(n);
        }
        same
    }
}

fn poll(daemon: &mut Daemon, effects: &mut Vec<Effect>) {
    while let Some(output) = daemon.replication.poll() {
        effects.push(match output {
            Output::Reconcile(buckets) => {
                daemon.waiting = daemon.waiting | buckets;
                continue;
            }
            Output::Transmit { peer, link, datagram } => Effect::Transmit(peer, link, datagram),
            Output::Put(key, flow) => Effect::Put(key, flow),
            Output::Delete(key, id, version) => Effect::Delete(key, id, version),
            // The kernel of the simulator deletes what it means to.
            Output::Diff { .. } | Output::Confirm(..) => continue,
            Output::Event(event) => Effect::Note(format!("{event:?}")),
        });
    }
}
