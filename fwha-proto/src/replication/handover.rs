//! What is on its way when a bucket changes its owner.
//!
//! A change of ownership is one moment on each node, but not the same one on both: the former owner's data plane
//! judges packets until it knows, and forwards what still comes to it in a planned move; and what it told of the
//! last milliseconds is on its way. To refuse all that would be to lose the connections that were opened in that
//! moment. So for [`LATE`]:
//!
//! * The *former owner*, as soon as it knows who the new one is, tells that one what its data plane did in its own
//!   term, deletions excepted: when a flow ends is for the new owner to say.
//! * The *new owner* takes such a record as its own if it knows nothing newer: a key that it does not have, a
//!   higher version of an identity, or a flow that surely began after one which nothing has happened to under the
//!   new owner. It writes it into its kernel map and tells everybody, as if its own data plane had. It remembers
//!   what it has deleted for as long as such a record may come.
//!
//! Versions begin with the owner's term, so whatever the new owner's data plane has made of a flow is above all
//! that a former owner can say of it.

use std::time::Duration;

use fwha_common::BUCKETS;
use fwha_common::flow::{Flow, FlowKey};

use super::Output;
use super::core::{Core, Owner};
use super::entry::Entry;
use super::status::Counters;
use crate::NodeId;
use crate::time::Time;

/// For so long after a change of ownership the former owner's word counts where nothing newer is known.
pub(super) const LATE: Duration = Duration::from_secs(1);

/// What the former owner has just told is on its way to the new one, and back, for so long: enough for a lost
/// datagram to be sent again.
const SETTLING: Duration = Duration::from_millis(100);

/// An ownership that is over.
#[derive(Clone, Copy, Default)]
struct Former {
    owner: Owner,
    /// Until when what it did is told, or listened to.
    until: Time,
    /// Until when what was told last is on its way.
    settled: Time,
}

/// See the module.
pub(super) struct Handover {
    /// Whose bucket it was before this node got it.
    theirs: Box<[Former; BUCKETS]>,
    /// What this node has lost.
    ours: Box<[Former; BUCKETS]>,
    /// Slots of flows that were taken and that the peers do not know of yet.
    pub(super) taken: Vec<u32>,
    /// Slots that are to be told as soon as it is known whom.
    pub(super) untold: Vec<u32>,
}

impl Handover {
    pub(super) fn new() -> Self {
        let nobodys = [Former::default(); BUCKETS];
        Self { theirs: Box::new(nobodys), ours: Box::new(nobodys), taken: Vec::new(), untold: Vec::new() }
    }

    /// This node gets a bucket from `before`.
    pub(super) fn gain(&mut self, now: Time, bucket: u8, before: Owner) {
        self.theirs[usize::from(bucket)] = Former { owner: before, until: now + LATE, settled: now };
        self.ours[usize::from(bucket)] = Former::default();
    }

    /// This node loses a bucket that it owned as `before`.
    pub(super) fn lose(&mut self, now: Time, bucket: u8, before: Owner) {
        let (until, settled) = (now + LATE, now + SETTLING);
        self.ours[usize::from(bucket)] = Former { owner: before, until, settled };
    }

    /// This node tells once more what it did with a bucket that is not its own any more.
    pub(super) fn tell(&mut self, now: Time, bucket: u8) {
        self.ours[usize::from(bucket)].settled = now + SETTLING;
    }

    /// Whether the new owner may not have heard yet what this node did with its former bucket.
    pub(super) fn settling(&self, now: Time, bucket: u8) -> bool {
        now < self.ours[usize::from(bucket)].settled
    }

    /// The term in which this node still tells what it did with a bucket that is not its own any more.
    pub(super) fn term(&self, now: Time, bucket: u8) -> Option<u32> {
        let former = &self.ours[usize::from(bucket)];
        (now < former.until).then_some(former.owner.term)
    }

    /// Until when this node listens to the former owner of its bucket.
    pub(super) fn listens_until(&self, bucket: u8) -> Time {
        self.theirs[usize::from(bucket)].until
    }

    /// Whether this node, the owner of a bucket in term `own`, still listens to what `peer` did with it in `term`.
    pub(super) fn listens(&self, now: Time, bucket: u8, own: u32, peer: NodeId, term: u32) -> bool {
        let former = &self.theirs[usize::from(bucket)];
        let before = (former.owner.node, former.owner.term) == (peer, term);
        before && term < own && now < former.until
    }
}

/// Whether what the kernel map of an owner holds of a key stays, although its replica has taken `told` of the former
/// owner: a version of that flow that is no older, or a flow that did not begin before it. Those that began in one life
/// of a node are numbered in their order; when others began is known by the clock.
pub fn stays(there: &Flow, told: &Flow) -> bool {
    if there.id() == told.id() {
        there.version >= told.version
    } else if (there.node, there.epoch) == (told.node, told.epoch) {
        there.number > told.number
    } else {
        (there.created_ns(), there.number) >= (told.created_ns(), told.number)
    }
}

impl Core {
    /// Whether a slot is to be told although its bucket is not owned any more.
    pub(super) fn is_straggler(&self, i: u32) -> bool {
        let slot = self.table.at(i);
        slot.live
            && (slot.source == 0 || slot.strayed)
            && self.handover.term(self.now, slot.entry.bucket) == Some(Flow::term(slot.entry.version))
    }

    /// Who is to be told of a slot that is a straggler, if that is known.
    pub(super) fn successor(&self, i: u32) -> Option<NodeId> {
        let bucket = self.table.at(i).entry.bucket;
        let owner = self.owners[usize::from(bucket)];
        let later = self.handover.term(self.now, bucket).is_some_and(|term| owner.term > term);
        (later && owner.node != self.options.identity.node && owner.node != 0).then_some(owner.node)
    }

    /// Takes a FLOW of the former owner of an owned bucket, if nothing newer is known.
    pub(super) fn take_straggler(
        &mut self,
        peer: NodeId,
        term: u32,
        key: &FlowKey,
        entry: Entry,
        counters: &mut Counters,
    ) {
        if !self.welcome(key, &entry, counters) {
            return;
        }
        let found = self.table.find(key);
        // What has a version of a later term is of a later owner, who will claim the bucket.
        let former = Flow::term(entry.version) < self.term(entry.bucket);
        let newer = found.is_none_or(|i| {
            let slot = self.table.at(i);
            let old = &slot.entry;
            if old.id == entry.id {
                return slot.live && entry.version > old.version;
            }
            let untouched = !slot.live || Flow::term(old.version) < self.term(entry.bucket);
            let elsewhere = slot.live && old.bucket != entry.bucket;
            untouched && !elsewhere && entry.began_after(old) == Some(true)
        });
        if !former || !newer {
            counters.rejected_owned += 1;
            return;
        }
        let known = found.is_some_and(|i| self.table.at(i).live);
        if !known && self.table.live() >= self.options.max_flows {
            counters.rejected_full += 1;
            return;
        }
        counters.stragglers += 1;
        let i = match found {
            Some(i) => {
                self.table.replace(i, entry);
                i
            }
            None => self.table.insert(*key, entry),
        };
        let i = self.own(i);
        // Not the data plane's word: that may be on its way here, and say that the flow has ended.
        let slot = self.table.at_mut(i);
        (slot.source, slot.term) = (peer, term);
        self.outputs.push_back(Output::Put(*key, entry.to_flow(key)));
        self.handover.taken.push(i);
    }
}
