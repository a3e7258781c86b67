//! The replica: one slot per flow, found by key, listed by bucket, summed up in a digest per bucket.
//!
//! Slots live in chunks that never move (but in a table smaller than one), so growing costs the same at a hundred thousand flows
//! and at a million. The index holds slot numbers only; everything about a flow is in its slot, so a change
//! costs one probe of the index and one slot.
//!
//! A slot is *live*, or *dead*: deleted, but kept as a tombstone while a message that is older than
//! the deletion may still arrive, or while a peer has not acknowledged it. Dead slots are in the
//! index, but neither in a list nor in a digest.

use fwha_common::flow::FlowKey;
use fwha_common::{BUCKETS, MAX_NODES};
use hashbrown::HashTable;

use super::entry::{Entry, Mix};
use crate::NodeId;

/// Number of no slot.
pub(super) const NONE: u32 = u32::MAX;

/// All numbers that an identity can have.
const NODES: usize = NodeId::MAX as usize + 1;

/// A chunk is some huge pages long: an allocator may use them.
const CHUNK_BITS: u32 = 15;
const CHUNK: usize = 1 << CHUNK_BITS;

/// A set of peers: bit n - 1 is node n.
pub(super) type Peers = u16;

const _: () = assert!(MAX_NODES <= Peers::BITS as usize);

pub(super) struct Slot {
    pub(super) key: FlowKey,
    pub(super) entry: Entry,
    /// Place in the stream of `source`: what it says later has a higher stamp.
    pub(super) stamp: u64,
    /// The term in which `source` said it.
    pub(super) term: u32,
    /// Number of the last change of any kind, unique over all slots.
    pub(super) change: u32,
    prev: u32,
    next: u32,
    /// Last reconciliation that saw it.
    pub(super) pass: u32,
    /// Peers in whose queue it is.
    pub(super) queued: Peers,
    /// Peers that may have an entry of this key, in the ownership `gain` of its bucket; in another one
    /// all may, whoever told them.
    pub(super) has: Peers,
    pub(super) gain: u32,
    /// Peers to which a bulk in progress still owes it.
    pub(super) owed: Peers,
    /// Dead: peers that have not acknowledged the deletion.
    pub(super) awaiting: Peers,
    /// The node that told of the last change; 0 is this node's data plane.
    pub(super) source: NodeId,
    /// This node's data plane has changed it since its owner, a peer, spoke of it.
    pub(super) strayed: bool,
    pub(super) live: bool,
    /// Dead: kept against messages that are older than the deletion.
    pub(super) held: bool,
}

impl Slot {
    /// It is a flow that this node has deleted a moment ago.
    pub(super) const fn is_deleted_here(&self) -> bool {
        !self.live && self.held && self.source == 0
    }
}

pub(super) struct Table {
    mix: Mix,
    index: HashTable<u32>,
    chunks: Vec<Vec<Slot>>,
    /// Slots that a chunk has room for at first: no more than there will be in a small table.
    chunk_room: usize,
    free: Vec<u32>,
    heads: [u32; BUCKETS],
    digests: [u64; BUCKETS],
    counts: [u32; BUCKETS],
    /// Live flows by the node at which they began.
    begun: [u32; NODES],
    live: usize,
    dead: usize,
    changes: u32,
    /// Next slot of each peer's walk; kept right while slots come and go.
    cursors: [u32; MAX_NODES],
}

impl Table {
    /// An empty table. The index is sized for `capacity` flows at once: rehashing a million would
    /// stop the daemon for a tenth of a second.
    pub(super) fn new(seeds: [u64; 2], capacity: usize) -> Self {
        Self {
            mix: Mix::new(seeds),
            index: HashTable::with_capacity(capacity),
            chunks: Vec::new(),
            chunk_room: capacity.min(CHUNK),
            free: Vec::new(),
            heads: [NONE; BUCKETS],
            digests: [0; BUCKETS],
            counts: [0; BUCKETS],
            begun: [0; NODES],
            live: 0,
            dead: 0,
            changes: 0,
            cursors: [NONE; MAX_NODES],
        }
    }

    pub(super) fn at(&self, slot: u32) -> &Slot {
        &self.chunks[(slot >> CHUNK_BITS) as usize][slot as usize % CHUNK]
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.chunks[(slot >> CHUNK_BITS) as usize][slot as usize % CHUNK]
    }

    /// Live flows.
    pub(super) const fn live(&self) -> usize {
        self.live
    }

    /// Live flows that began at `node`.
    pub(super) const fn begun(&self, node: NodeId) -> usize {
        self.begun[node as usize] as usize
    }

    /// Tombstones.
    pub(super) const fn dead(&self) -> usize {
        self.dead
    }

    /// Digest of a bucket: the sum of its entries' hashes, so order does not matter and one change
    /// costs the same in a bucket of any size.
    pub(super) const fn digest(&self, bucket: u8) -> u64 {
        self.digests[bucket as usize]
    }

    /// Live flows of a bucket.
    pub(super) const fn count(&self, bucket: u8) -> u32 {
        self.counts[bucket as usize]
    }

    /// The slot of `key`, live or dead.
    pub(super) fn find(&self, key: &FlowKey) -> Option<u32> {
        self.index.find(self.mix.key(key), |&i| self.at(i).key == *key).copied()
    }

    /// Touches what will soon be looked for. A slot found in a big table costs three waits for memory, one after the
    /// other; those of many keys go on at the same time.
    pub(super) fn expect<'a>(&self, keys: impl Iterator<Item = &'a FlowKey>) {
        // The first that may be it will do: to compare keys would be to wait for the slot.
        let found: Vec<u32> =
            keys.filter_map(|key| self.index.find(self.mix.key(key), |_| true)).copied().collect();
        for &i in &found {
            let slot = self.at(i);
            std::hint::black_box((slot.key.port_a, slot.entry.version, slot.change));
        }
    }

    /// A live slot for a key that has none.
    pub(super) fn insert(&mut self, key: FlowKey, entry: Entry) -> u32 {
        let slot = Slot {
            key,
            entry,
            stamp: 0,
            term: 0,
            change: 0,
            prev: NONE,
            next: NONE,
            pass: 0,
            queued: 0,
            has: 0,
            gain: 0,
            owed: 0,
            awaiting: 0,
            source: 0,
            strayed: false,
            live: false,
            held: false,
        };
        let i = if let Some(i) = self.free.pop() {
            *self.at_mut(i) = slot;
            i
        } else {
            if self.chunks.last().is_none_or(|c| c.len() == CHUNK) {
                self.chunks.push(Vec::with_capacity(self.chunk_room));
            }
            let number = self.chunks.len() - 1;
            self.chunks[number].push(slot);
            (number * CHUNK + self.chunks[number].len() - 1) as u32
        };
        let (mix, chunks) = (self.mix, &self.chunks);
        self.index.insert_unique(mix.key(&key), i, |&i| {
            mix.key(&chunks[(i >> CHUNK_BITS) as usize][i as usize % CHUNK].key)
        });
        self.link(i);
        i
    }

    /// Gives a slot another entry; a dead one lives again.
    pub(super) fn replace(&mut self, i: u32, entry: Entry) {
        let slot = self.at(i);
        let (live, moved) = (slot.live, slot.entry.bucket != entry.bucket);
        if live && !moved {
            let bucket = usize::from(entry.bucket);
            let old = self.mix.entry(&slot.key, &slot.entry);
            let new = self.mix.entry(&slot.key, &entry);
            self.begun[usize::from(slot.entry.id.node)] -= 1;
            self.begun[usize::from(entry.id.node)] += 1;
            self.digests[bucket] = self.digests[bucket].wrapping_sub(old).wrapping_add(new);
            let change = self.next_change();
            let slot = self.at_mut(i);
            slot.entry = entry;
            slot.change = change;
            return;
        }
        if live {
            self.unlink(i);
        } else {
            self.dead -= 1;
        }
        let slot = self.at_mut(i);
        slot.entry = entry;
        slot.awaiting = 0;
        slot.held = false;
        self.link(i);
    }

    /// Turns a live slot into a tombstone.
    pub(super) fn kill(&mut self, i: u32) {
        self.unlink(i);
        self.dead += 1;
    }

    /// Frees a dead slot that nothing holds any more.
    pub(super) fn release(&mut self, i: u32) {
        let slot = self.at(i);
        if slot.live || slot.held || slot.queued != 0 || slot.awaiting != 0 {
            return;
        }
        let key = slot.key;
        let change = self.next_change();
        if let Ok(found) = self.index.find_entry(self.mix.key(&key), |&j| j == i) {
            found.remove();
            self.at_mut(i).change = change;
            self.free.push(i);
            self.dead -= 1;
        }
    }

    /// The live slots of a bucket, as they are now.
    pub(super) fn bucket(&self, bucket: u8) -> Vec<u32> {
        let mut slots = Vec::with_capacity(self.count(bucket) as usize);
        let mut i = self.heads[usize::from(bucket)];
        while i != NONE {
            slots.push(i);
            i = self.at(i).next;
        }
        slots
    }

    /// Starts a peer's walk over a bucket. New flows come in before the cursor: the walk meets
    /// every flow that was there when it began and still is, and ends.
    pub(super) fn walk(&mut self, peer: NodeId, bucket: u8) {
        self.cursors[usize::from(peer) - 1] = self.heads[usize::from(bucket)];
    }

    /// The slot at a peer's cursor.
    pub(super) fn cursor(&self, peer: NodeId) -> Option<u32> {
        let i = self.cursors[usize::from(peer) - 1];
        (i != NONE).then_some(i)
    }

    /// Moves a peer's cursor to the next slot.
    pub(super) fn advance(&mut self, peer: NodeId) {
        if let Some(i) = self.cursor(peer) {
            self.cursors[usize::from(peer) - 1] = self.at(i).next;
        }
    }

    /// Ends a peer's walk.
    pub(super) fn stop(&mut self, peer: NodeId) {
        self.cursors[usize::from(peer) - 1] = NONE;
    }

    fn next_change(&mut self) -> u32 {
        self.changes = self.changes.wrapping_add(1);
        self.changes
    }

    fn link(&mut self, i: u32) {
        let change = self.next_change();
        let slot = self.at(i);
        let (bucket, node) = (usize::from(slot.entry.bucket), usize::from(slot.entry.id.node));
        let hash = self.mix.entry(&slot.key, &slot.entry);
        let head = self.heads[bucket];
        self.begun[node] += 1;
        self.heads[bucket] = i;
        self.digests[bucket] = self.digests[bucket].wrapping_add(hash);
        self.counts[bucket] += 1;
        self.live += 1;
        if head != NONE {
            self.at_mut(head).prev = i;
        }
        let slot = self.at_mut(i);
        (slot.prev, slot.next, slot.live, slot.change) = (NONE, head, true, change);
    }

    fn unlink(&mut self, i: u32) {
        let change = self.next_change();
        let slot = self.at(i);
        let (bucket, prev, next) = (usize::from(slot.entry.bucket), slot.prev, slot.next);
        let node = usize::from(slot.entry.id.node);
        let hash = self.mix.entry(&slot.key, &slot.entry);
        self.begun[node] -= 1;
        for cursor in &mut self.cursors {
            if *cursor == i {
                *cursor = next;
            }
        }
        self.digests[bucket] = self.digests[bucket].wrapping_sub(hash);
        self.counts[bucket] -= 1;
        self.live -= 1;
        if next != NONE {
            self.at_mut(next).prev = prev;
        }
        if prev == NONE {
            self.heads[bucket] = next;
        } else {
            self.at_mut(prev).next = next;
        }
        let slot = self.at_mut(i);
        (slot.prev, slot.next, slot.live, slot.change) = (NONE, NONE, false, change);
    }
}

#[cfg(test)]
mod tests {
    use fwha_common::flow::{Flow, FlowId};

    use super::*;

    fn key(n: u16) -> FlowKey {
        FlowKey::v4(1, 2, n, 80, 6).0
    }

    fn entry(bucket: u8, version: u64) -> Entry {
        let id = FlowId { number: version, epoch: 1, node: 1, zero: [0; 3] };
        Entry::from_flow(&key(1), &Flow { bucket, version, ..Flow::of(id) })
    }

    #[test]
    fn a_digest_depends_on_the_entries_and_not_on_their_history() {
        let mut a = Table::new([3, 4], 16);
        let mut b = Table::new([3, 4], 16);
        for n in 0..3000 {
            a.insert(key(n), entry((n % 2) as u8, 1));
        }
        for n in (0..3000).rev() {
            let i = b.insert(key(n), entry(1 - (n % 2) as u8, 9));
            b.replace(i, entry((n % 2) as u8, 1));
        }
        assert_eq!((a.digest(0), a.digest(1)), (b.digest(0), b.digest(1)));
        assert_eq!((a.count(0), a.live(), a.begun(1), a.begun(2)), (1500, 3000, 3000, 0));
        let i = b.find(&key(7)).unwrap();
        b.replace(i, entry(1, 2));
        assert_ne!(a.digest(1), b.digest(1), "another version is another digest");
        b.kill(i);
        b.release(i);
        let j = a.find(&key(7)).unwrap();
        a.kill(j);
        assert_eq!(a.digest(1), b.digest(1), "a tombstone is not in the digest");
        assert_eq!((a.find(&key(7)), b.find(&key(7))), (Some(j), None));
        assert_eq!((a.dead(), b.dead(), b.live(), b.begun(1)), (1, 0, 2999, 2999));
        assert_eq!(a.bucket(1).len(), 1499);
    }

    #[test]
    fn a_walk_survives_the_death_of_the_slot_it_stands_on() {
        let mut t = Table::new([3, 4], 16);
        let slots: Vec<_> = (0..10).map(|n| t.insert(key(n), entry(5, 1))).collect();
        t.walk(2, 5);
        assert_eq!(t.cursor(2), Some(slots[9]));
        t.advance(2);
        t.kill(slots[8]);
        t.kill(slots[7]);
        t.insert(key(99), entry(5, 1));
        let mut met = vec![];
        while let Some(i) = t.cursor(2) {
            met.push(i);
            t.advance(2);
        }
        assert_eq!(met, [6, 5, 4, 3, 2, 1, 0].map(|n| slots[n]));
    }

    #[test]
    fn a_slot_is_freed_when_nothing_holds_it() {
        let mut t = Table::new([3, 4], 16);
        let i = t.insert(key(1), entry(5, 1));
        t.release(i);
        assert!(t.at(i).live, "a live slot is never freed");
        t.kill(i);
        t.at_mut(i).awaiting = 1;
        t.release(i);
        assert_eq!(t.find(&key(1)), Some(i));
        t.at_mut(i).awaiting = 0;
        t.release(i);
        t.release(i);
        assert_eq!((t.find(&key(1)), t.dead()), (None, 0));
        assert_eq!(t.insert(key(2), entry(5, 1)), i, "and used again");
    }
}
