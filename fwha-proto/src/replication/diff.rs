//! Comparing the flows of two nodes one by one, when an operator asks what differs.
//!
//! The asker goes through the buckets: a LIST_ASK with its digest, which the peer answers with "equal"
//! or with the flows of the bucket, a datagram at a time. The peer keeps one snapshot of one bucket
//! for that; both take no more of the window than a bulk, and wait for each other.
//!
//! While traffic flows, tables differ all the time by what is on its way. So there are two looks, the
//! second one at the buckets that differed, and not before what was on its way at the first must have
//! arrived. What differs in the same way both times is a difference; the rest was in flight.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use fwha_common::flow::{Flow, FlowId, FlowKey, FlowState};

use super::buckets::Buckets;
use super::core::Core;
use super::datagram::Datagram;
use super::entry::Entry;
use super::status::SyncState;
use super::wire::{Deletion, List, ListAsk, Listed, Record};
use crate::time::Time;

/// A question is asked again after this long.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Times that it is asked. A peer that acknowledges them all and answers none does not know them.
const ASK_MAX: u32 = 8;
/// Between the two looks, beside the lag of changes.
const SETTLE: Duration = Duration::from_millis(200);
/// A snapshot that is not asked for any more is kept this long.
const KEEP: Duration = Duration::from_secs(10);
/// Differences that are remembered between the looks, and told. Of more, only their number is.
const LISTED_MAX: usize = 100_000;
/// Flows that a list may have at most: ten times what a bucket of the largest table has.
const BUCKET_MAX: u64 = 4_000_000;

/// What one node has of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its identity.
    pub id: FlowId,
    /// Its version: the owner's term, and a count.
    pub version: u64,
    /// Its state.
    pub state: FlowState,
    /// Since its last change that this node knows of.
    pub age: Duration,
    /// End B of the key began it.
    pub originator_is_b: bool,
}

impl Side {
    fn new(id: FlowId, version: u64, state: u8, originator_is_b: bool) -> Self {
        let state = FlowState::from_u8(state).unwrap_or(FlowState::None);
        Self { id, version, state, age: Duration::ZERO, originator_is_b }
    }

    /// What it is, without its age.
    const fn what(&self) -> (FlowId, u64, u8) {
        (self.id, self.version, self.state as u8)
    }
}

/// How the two ends differ in a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only this node has it.
    OnlyHere,
    /// Only the peer has it.
    OnlyThere,
    /// Both have a flow of this key, but not the same one.
    Identity,
    /// Both have it, in different versions.
    Version,
    /// Both have it, in the same version and yet in different states.
    State,
}

impl Kind {
    /// The name that commands print.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OnlyHere => "only-here",
            Self::OnlyThere => "only-there",
            Self::Identity => "identity",
            Self::Version => "version",
            Self::State => "state",
        }
    }
}

/// A flow in which two nodes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its key.
    pub key: FlowKey,
    /// Its bucket.
    pub bucket: u8,
    /// What this node has.
    pub here: Option<Side>,
    /// What the peer has.
    pub there: Option<Side>,
    /// It differed at one of the two looks only, or otherwise: a change was on its way.
    pub in_flight: bool,
}

impl Difference {
    /// How they differ.
    pub fn kind(&self) -> Kind {
        match (&self.here, &self.there) {
            (_, None) => Kind::OnlyHere,
            (None, _) => Kind::OnlyThere,
            (Some(here), Some(there)) if here.id != there.id => Kind::Identity,
            (Some(here), Some(there)) if here.version != there.version => Kind::Version,
            _ => Kind::State,
        }
    }

    /// Whether both are the same difference.
    pub fn same(&self, other: &Self) -> bool {
        let what = |side: &Option<Side>| side.as_ref().map(Side::what);
        what(&self.here) == what(&other.here) && what(&self.there) == what(&other.there)
    }
}

/// What a comparison has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A flow that differs.
    Difference(Difference),
    /// That was all.
    Done(Summary),
    /// It came to no end.
    Failed(Failure),
}

/// The end of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Buckets compared: all.
    pub buckets: u64,
    /// Those of them whose flows were listed, because digests differed or all were asked for.
    pub buckets_listed: u64,
    /// Flows of the peer that were compared one by one.
    pub flows_listed: u64,
    /// Flows that differ.
    pub differences: u64,
    /// Flows of which a change was on its way.
    pub in_flight: u64,
    /// Differences that were too many to be remembered and told one by one, as the first look saw them.
    pub untold: u64,
}

/// Why a comparison came to no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The peer does not know the question.
    TooOld,
    /// The peer does not answer at all any more, or its daemon was started anew.
    Lost(SyncState),
    /// The kernel's table could not be read.
    Unreadable,
}

/// The looks at the peer's flows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    First,
    /// Waiting until what was on its way has arrived.
    Settling(Time),
    Second,
}

struct Asking {
    look: Look,
    /// List also what has equal digests.
    all: bool,
    left: Buckets,
    /// The bucket asked for, and what has come of it.
    ask: Option<ListAsk>,
    flows: Vec<Listed>,
    ask_at: Time,
    asked: u32,
    /// What the first look found.
    suspects: HashMap<FlowKey, Difference>,
    summary: Summary,
}

struct Snapshot {
    number: u64,
    bucket: u8,
    flows: Vec<Listed>,
    until: Time,
}

/// Both roles in a comparison with one peer.
#[derive(Default)]
pub(super) struct Diff {
    asking: Option<Asking>,
    numbers: u64,
    snapshot: Option<Snapshot>,
    /// The answer that is due.
    answer: Option<List>,
    found: VecDeque<Found>,
}

impl Diff {
    /// Begins a comparison; one that is going on is forgotten.
    pub(super) fn begin(&mut self, now: Time, all: bool) {
        self.asking = Some(Asking {
            look: Look::First,
            all,
            left: Buckets::ALL,
            ask: None,
            flows: Vec::new(),
            ask_at: now,
            asked: 0,
            suspects: HashMap::new(),
            summary: Summary { buckets: Buckets::ALL.len() as u64, ..Summary::default() },
        });
        self.found.clear();
    }

    /// Ends it without a word.
    pub(super) fn stop(&mut self) {
        self.asking = None;
        self.found.clear();
    }

    /// Ends it, if there is one, because the peer is gone.
    pub(super) fn fail(&mut self, failure: Failure) {
        if self.asking.take().is_some() {
            self.found.push_back(Found::Failed(failure));
        }
    }

    /// What was found since the last call.
    pub(super) fn take_found(&mut self) -> impl Iterator<Item = Found> + use<'_> {
        self.found.drain(..)
    }

    // ---- Time and sending ----------------------------------------------------------------------

    /// When [`Self::tick`] or [`Self::fill`] has something to do.
    pub(super) fn due(&self) -> Time {
        let answer = if self.answer.is_some() { Time::ZERO } else { Time::NEVER };
        let asking = self.asking.as_ref().map_or(Time::NEVER, |a| match a.look {
            Look::Settling(until) => until,
            _ => a.ask_at,
        });
        let keep = self.snapshot.as_ref().map_or(Time::NEVER, |s| s.until);
        answer.min(asking).min(keep)
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now: Time) {
        self.snapshot.take_if(|s| s.until <= now);
        let Some(asking) = &mut self.asking else { return };
        match asking.look {
            Look::Settling(until) if until <= now => {
                asking.look = Look::Second;
                asking.left = asking.suspects.values().map(|d| d.bucket).collect();
                asking.ask_at = now;
            }
            Look::First | Look::Second if asking.asked >= ASK_MAX && asking.ask_at <= now => {
                self.fail(Failure::TooOld);
            }
            _ => {}
        }
    }

    /// The answer and the question that are due, as far as there is room.
    pub(super) fn fill(&mut self, core: &Core, now: Time, d: &mut Datagram<'_>) {
        if let Some(answer) = &self.answer {
            let flows = self.snapshot.as_ref().filter(|_| !answer.equal).map_or(&[][..], |s| &s.flows);
            let rest = &flows[(answer.offset as usize).min(flows.len())..];
            if d.w.push_list(answer, rest).is_some() {
                self.answer = None;
            }
        }
        let Some(asking) = &mut self.asking else { return };
        if matches!(asking.look, Look::Settling(_)) || asking.ask_at > now {
            return;
        }
        if asking.ask.is_none() {
            let Some(bucket) = asking.left.first() else { return };
            self.numbers += 1;
            asking.ask = Some(ListAsk { number: self.numbers, bucket, offset: 0, digest: None });
        }
        if let Some(ask) = &mut asking.ask {
            ask.offset = asking.flows.len() as u64;
            // Of a list that has begun, the rest is wanted, whatever has become equal meanwhile.
            let digest = (!asking.all && ask.offset == 0).then(|| core.table.digest(ask.bucket));
            ask.digest = digest;
            if d.w.push(&Record::ListAsk(*ask)) {
                asking.ask_at = now + ASK_AGAIN_AFTER;
                asking.asked += 1;
            }
        }
    }

    // ---- Receiving -----------------------------------------------------------------------------

    /// Takes a question.
    pub(super) fn take_ask(&mut self, core: &Core, now: Time, ask: &ListAsk) {
        let ListAsk { number, bucket, offset, digest } = *ask;
        let answer = List { number, bucket, equal: false, offset, total: 0, flows: Vec::new() };
        if digest == Some(core.table.digest(bucket)) {
            self.answer = Some(List { equal: true, ..answer });
            return;
        }
        let held = self.snapshot.take().filter(|s| (s.number, s.bucket) == (number, bucket));
        // One that is not held any more begins anew, and the answer says so.
        let offset = if held.is_some() { offset } else { 0 };
        let flows = held.map_or_else(|| list(core, bucket), |s| s.flows);
        self.answer = Some(List { offset, total: flows.len() as u64, ..answer });
        self.snapshot = Some(Snapshot { number, bucket, flows, until: now + KEEP });
    }

    /// Takes an answer. `lag` is the age of the oldest change on its way to the peer.
    pub(super) fn take_list(&mut self, core: &Core, now: Time, lag: Duration, list: List) {
        let Some(asking) = &mut self.asking else { return };
        if asking.ask.is_none_or(|ask| (ask.number, ask.bucket) != (list.number, list.bucket)) {
            return;
        }
        if list.offset == 0 {
            asking.flows.clear();
        }
        // A copy of what has come before, or what no node can have.
        if list.offset != asking.flows.len() as u64 || list.total > BUCKET_MAX {
            return;
        }
        let more = asking.flows.len() + list.flows.len() < list.total as usize && !list.equal;
        if more && list.flows.is_empty() {
            return;
        }
        asking.asked = 0;
        asking.ask_at = now;
        asking.flows.extend(list.flows);
        if more {
            return;
        }
        let theirs = std::mem::take(&mut asking.flows);
        asking.ask = None;
        asking.left.remove(list.bucket);
        asking.summary.buckets_listed += u64::from(!list.equal && asking.look == Look::First);
        asking.summary.flows_listed += if asking.look == Look::First { theirs.len() as u64 } else { 0 };
        let differing = if list.equal { Vec::new() } else { compare(core, now, list.bucket, &theirs) };
        if asking.look == Look::First {
            asking.suspect(differing);
        } else {
            let told = asking.judge(list.bucket, differing);
            self.found.extend(told.into_iter().map(Found::Difference));
        }
        if asking.left.is_empty() {
            if asking.look == Look::First && !asking.suspects.is_empty() {
                asking.look = Look::Settling(now + SETTLE + lag);
            } else {
                self.found.push_back(Found::Done(asking.summary));
                self.asking = None;
            }
        }
    }
}

impl Asking {
    fn suspect(&mut self, differing: Vec<Difference>) {
        for d in differing {
            if self.suspects.len() < LISTED_MAX {
                self.suspects.insert(d.key, d);
            } else {
                self.summary.untold += 1;
            }
        }
    }

    /// What of a bucket is to be told after the second look.
    fn judge(&mut self, bucket: u8, differing: Vec<Difference>) -> Vec<Difference> {
        let mut told = Vec::new();
        for d in differing {
            match self.suspects.remove(&d.key) {
                Some(before) if before.same(&d) => {
                    self.summary.differences += 1;
                    told.push(d);
                }
                // One of those that could not be remembered.
                None if self.summary.untold > 0 => {}
                _ => told.push(Difference { in_flight: true, ..d }),
            }
        }
        // Those that differ no more.
        let settled = self.suspects.extract_if(|_, d| d.bucket == bucket);
        told.extend(settled.map(|(_, d)| Difference { in_flight: true, ..d }));
        self.summary.in_flight += told.iter().filter(|d| d.in_flight).count() as u64;
        let words = |addr: [u32; 4]| addr.map(u32::from_be);
        told.sort_by_key(|Difference { key: k, in_flight, .. }| {
            (*in_flight, words(k.addr_a), words(k.addr_b), k.port_a.to_be(), k.port_b.to_be(), k.proto)
        });
        told
    }
}

/// All flows of a bucket, as an answer lists them.
fn list(core: &Core, bucket: u8) -> Vec<Listed> {
    let slots = core.table.bucket(bucket).into_iter().map(|i| core.table.at(i));
    slots
        .map(|slot| Listed {
            flow: Deletion {
                key: slot.key,
                originator_is_b: slot.entry.originator_is_b,
                bucket,
                id: slot.entry.id,
                version: slot.entry.version,
            },
            state: slot.entry.state,
            changed_ns: changed_ns(&slot.entry),
        })
        .collect()
}

/// When a flow last changed, as far as its packets tell.
fn changed_ns(entry: &Entry) -> u64 {
    entry.last_seen_ns.into_iter().fold(entry.created_ns, u64::max)
}

/// What a node has, as an entry says.
fn side(now: Time, e: &Entry) -> Side {
    let age = now.since(Time::from_nanos(changed_ns(e)));
    Side { age, ..Side::new(e.id, e.version, e.state, e.originator_is_b) }
}

/// In what the replica differs from what the kernel map has of a flow, which counts as the other end.
pub(super) fn from_kernel(core: &Core, now: Time, key: &FlowKey, there: Option<&Flow>) -> Option<Difference> {
    let slot = core.table.find(key).map(|i| core.table.at(i)).filter(|slot| slot.live);
    let here = slot.map(|slot| side(now, &slot.entry));
    let bucket = slot.map(|slot| slot.entry.bucket).or(there.map(|flow| flow.bucket))?;
    let there = there.map(|flow| side(now, &Entry::from_flow(key, flow)));
    let same = here.as_ref().map(Side::what) == there.as_ref().map(Side::what);
    (!same).then_some(Difference { key: *key, bucket, here, there, in_flight: false })
}

/// In what the bucket differs from a list of the peer's.
fn compare(core: &Core, now: Time, bucket: u8, theirs: &[Listed]) -> Vec<Difference> {
    let age = |ns: u64| now.since(Time::from_nanos(ns));
    let ours = |i: u32| side(now, &core.table.at(i).entry);
    let mut differing = Vec::new();
    let mut listed = HashSet::with_capacity(theirs.len());
    for l in theirs {
        let f = &l.flow;
        listed.insert(f.key);
        let there = Side { age: age(l.changed_ns), ..Side::new(f.id, f.version, l.state, f.originator_is_b) };
        let here = core.table.find(&f.key).filter(|&i| core.table.at(i).live).map(ours);
        if here.is_none_or(|here| here.what() != there.what()) {
            differing.push(Difference { key: f.key, bucket, here, there: Some(there), in_flight: false });
        }
    }
    for i in core.table.bucket(bucket) {
        let key = core.table.at(i).key;
        if !listed.contains(&key) {
            differing.push(Difference { key, bucket, here: Some(ours(i)), there: None, in_flight: false });
        }
    }
    differing
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::flight::Sent;
    use super::super::wire::{Writer, records};
    use super::*;
    use crate::seal::{ClusterKey, Identity};

    const T0: Time = Time::from_millis(1000);

    fn core() -> Core {
        let identity = Identity { cluster: 1, node: 1, epoch: 1 };
        Core::new(Options::new(identity, ClusterKey::new([7; 32]), "fw1"))
    }

    /// The question that is asked now.
    fn asked(diff: &mut Diff, core: &Core, now: Time) -> Option<ListAsk> {
        let mut w = Writer::new(vec![], 1400, now);
        diff.tick(now);
        diff.fill(core, now, &mut Datagram::new(&mut w, Sent::new(vec![])));
        match records(w.payload(), now).next()?.unwrap() {
            Record::ListAsk(ask) => Some(ask),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peer_that_never_answers_is_too_old() {
        let (core, mut diff) = (core(), Diff::default());
        diff.begin(T0, false);
        let mut now = T0;
        let mut asks = Vec::new();
        while diff.due() < Time::NEVER {
            now = diff.due();
            asks.extend(asked(&mut diff, &core, now));
        }
        assert_eq!(asks.len(), ASK_MAX as usize);
        assert!(asks.iter().all(|ask| *ask == asks[0]), "the same question each time");
        assert_eq!(now, T0 + ASK_AGAIN_AFTER * ASK_MAX);
        assert_eq!(diff.take_found().collect::<Vec<_>>(), [Found::Failed(Failure::TooOld)]);
    }

    #[test]
    fn an_answer_that_tells_nothing_or_something_else_moves_nothing() {
        let (core, mut diff) = (core(), Diff::default());
        diff.begin(T0, false);
        let ask = asked(&mut diff, &core, T0).unwrap();
        let good = List { number: ask.number, bucket: 0, equal: true, offset: 0, total: 0, flows: vec![] };
        for bad in [
            List { number: 9, ..good.clone() },
            List { bucket: 1, ..good.clone() },
            List { offset: 1, ..good.clone() },
            List { total: BUCKET_MAX + 1, equal: false, ..good.clone() },
            List { total: 5, equal: false, ..good.clone() },
        ] {
            diff.take_list(&core, T0, Duration::ZERO, bad.clone());
            assert_eq!(diff.due(), T0 + ASK_AGAIN_AFTER, "{bad:?}");
        }
        diff.take_list(&core, T0, Duration::ZERO, good);
        assert_eq!(asked(&mut diff, &core, T0).map(|ask| (ask.number, ask.bucket)), Some((2, 1)));
    }

    #[test]
    fn a_snapshot_is_of_one_bucket_and_not_for_ever() {
        let (core, mut diff) = (core(), Diff::default());
        let ask = ListAsk { number: 1, bucket: 3, offset: 0, digest: None };
        diff.take_ask(&core, T0, &ask);
        diff.take_ask(&core, T0, &ListAsk { number: 2, bucket: 4, ..ask });
        assert_eq!(diff.snapshot.as_ref().map(|s| s.bucket), Some(4));
        let late = ListAsk { offset: 40, ..ask };
        diff.take_ask(&core, T0, &late);
        assert_eq!(diff.answer.as_ref().map(|a| a.offset), Some(0), "it begins anew");
        diff.tick(T0 + KEEP);
        assert!(diff.snapshot.is_none());
    }
}
