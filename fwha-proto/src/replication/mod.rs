//! Replication: what one node's data plane knows about flows gets to its peers, is acknowledged,
//! and is proved equal.
//!
//! [`Replication`] is one node's end, for all its peers. It holds the *replica*, one table of what
//! all nodes should agree on. The owner of a bucket feeds it from its data plane and sends what
//! changes; the others take that into their replicas and their kernel maps.
//!
//! | module | holds |
//! |---|---|
//! | `core` | the replica with its owners: whose word counts |
//! | `filter` | what is replicated, and what a peer is believed |
//! | `table`, `entry` | slots, index, lists and digests per bucket |
//! | `peer` | channel, session and status of one peer |
//! | `links` | the sync links to one peer: which of them work, which one is used |
//! | `handover` | what is on its way when a bucket changes its owner |
//! | `outbox`, `bulk`, `proof` | sending: changed flows, whole buckets, digests |
//! | `flight`, `datagram` | what is in flight, lost, allowed; a datagram being filled |
//! | `inbox`, `arrivals` | receiving: what has arrived, comparing, asking for what differs |
//! | `diff` | comparing flow by flow with a peer, when an operator asks |
//! | `wire` | the records |
//! | [`status`], `lag` | counters, states, events; how long changes take |
//!
//! **Contract.** Inputs are method calls; each carries `now`, the kernel's `CLOCK_MONOTONIC`, which
//! never goes back. After one or more inputs, and when [`Replication::next_timeout`] has come, call
//! [`Replication::tick`], then drain [`Replication::poll`]. Two orders matter:
//!
//! * On *gaining* buckets: [`Replication::set_ownership`], drain [`Output::Put`] and
//!   [`Output::Delete`] into the kernel map, then let the data plane own them. On *losing* them the
//!   other way round: data plane, drain its events, `set_ownership`. So a peer's record is never
//!   written over what the data plane has changed since.
//! * After a start with flows in the kernel map, and after lost events:
//!   [`Replication::reconcile_begin`], a walk of the map with [`Replication::reconcile_seen`],
//!   [`Replication::reconcile_end`]. At a start, begin before `set_ownership`: buckets under
//!   reconciliation are neither proved nor sent as a whole. What is owned still is said before anything
//!   of the data plane is told; and what events of an earlier life have told of may be gone: begin once
//!   more after them.

mod arrivals;
mod buckets;
mod bulk;
mod core;
mod datagram;
mod diff;
mod entry;
mod filter;
mod flight;
mod handover;
mod inbox;
mod lag;
mod links;
mod outbox;
mod peer;
mod proof;
pub mod status;
mod table;
mod wire;

#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;

use std::time::Duration;

use fwha_common::flow::{Flow, FlowEvent, FlowEventKind, FlowId, FlowKey};

pub use self::buckets::Buckets;
use self::core::{Core, Owner, Told};
pub use self::diff::{Difference, Failure, Found, Kind, Side, Summary};
use self::entry::Entry;
use self::filter::Young;
pub use self::filter::{Filter, Policy};
pub use self::handover::stays;
pub use self::lag::{Histogram, Lag};
use self::peer::Peer;
pub use self::status::{
    BulkProgress, Counters, Event, LinkCounters, LinkState, LinkStatus, LocalCounters, PeerStatus, SyncState,
    Unready, Warning,
};
pub use self::wire::{Hello, Malformed, rewrite};
use crate::NodeId;
use crate::seal::{Header, Identity, KeyRing};
use crate::time::Time;

/// Flows looked for at a time: what is known of them fits into the nearest cache.
const BATCH: usize = 64;

/// A peer, as the cluster file names it.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
}

/// Buckets that move together.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// The buckets.
    pub buckets: Buckets,
    /// The nodes that may own them. All nodes hold their flows.
    pub members: Vec<NodeId>,
}

/// What [`Replication`] is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node.
    pub identity: Identity,
    /// The cluster's keys.
    pub keys: KeyRing,
    /// This node's name.
    pub name: String,
    /// All other nodes.
    pub peers: Vec<PeerOptions>,
    /// Which buckets move together, and between which nodes. None: all of them, between all nodes.
    pub groups: Vec<GroupOptions>,
    /// Hash of the cluster file.
    pub config_hash: u64,
    /// Hash of the rules.
    pub rules_hash: u64,
    /// [`fwha_common::rule::name_hash`] of the zones' names, in the order of their numbers. Zones of a
    /// peer are known by name; flows of others are refused.
    pub zones: Vec<u32>,
    /// Flows held at most, on all nodes alike.
    pub max_flows: usize,
    /// Whether to take part. If not, nothing is sent, and nothing that comes is looked at.
    pub enabled: bool,
    /// Number of sync links, 1 to [`crate::heartbeat::MAX_LINKS`]; the most preferred is number 0.
    pub links: u8,
    /// MTU of the sync links, in bytes, at least 1280. No datagram needs fragments.
    pub mtu: u16,
    /// A change waits this long for others to share its datagram. Zero if the caller gathers them.
    pub flush_after: Duration,
    /// Flow changes queued for a peer at most. What exceeds it is sent later, by whole buckets.
    pub queue_max: usize,
    /// Bulk transfers send no faster than this.
    pub bulk_bytes_per_s: u64,
    /// What is replicated, and what a peer is believed.
    pub filter: Filter,
}

impl Options {
    /// Options with the defaults of the cluster file.
    pub fn new(identity: Identity, keys: impl Into<KeyRing>, name: &str) -> Self {
        Self {
            identity,
            keys: keys.into(),
            name: name.into(),
            peers: Vec::new(),
            groups: Vec::new(),
            config_hash: 0,
            rules_hash: 0,
            zones: Vec::new(),
            max_flows: 1_000_000,
            enabled: true,
            links: 1,
            mtu: 1500,
            flush_after: Duration::from_millis(1),
            queue_max: 262_144,
            bulk_bytes_per_s: 20_000_000,
            filter: Filter::default(),
        }
    }
}

/// Those of the [`Options`] that may change under way.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Hash of the cluster file.
    pub config_hash: u64,
    /// Hash of the rules.
    pub rules_hash: u64,
    /// Bulk transfers send no faster than this.
    pub bulk_bytes_per_s: u64,
    /// What is replicated, and what a peer is believed.
    pub filter: Filter,
}

/// Whether this node owns a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It does, in this term, which is higher than any before.
    Owned {
        /// The group's term.
        term: u32,
    },
    /// It does not.
    NotOwned,
}

/// What the caller must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send a datagram to a peer: on one sync link, or on all of them.
    Transmit {
        /// The peer.
        peer: NodeId,
        /// The link, by its number in [`Replication::datagram`]; `None` is all.
        link: Option<u8>,
        /// The sealed datagram.
        datagram: Vec<u8>,
    },
    /// Write a flow into the kernel map, over any other of the same key. If the map refuses it,
    /// the bucket is to be reconciled, so that the replica does not claim what is not there.
    Put(FlowKey, Flow),
    /// Delete a flow from the kernel map. That it is not there is no error. The replica had it in this version: a data plane
    /// that owns its bucket by now may have gone on with it, in a higher one; then it stays, and its bucket is to be
    /// reconciled.
    Delete(FlowKey, FlowId, u64),
    /// A flow of this node's data plane, under whose key another one was deleted at that time: if the kernel map has none of
    /// this key, it was deleted in its place, and is to be written back.
    Confirm(FlowKey, Flow),
    /// Compare these buckets with the kernel map soon: it may hold flows that were never for the peers.
    Reconcile(Buckets),
    /// Something happened.
    Event(Event),
    /// A comparison with a peer has found something.
    Diff {
        /// The peer.
        peer: NodeId,
        /// What it is.
        found: Found,
    },
}

/// One node's end of replication. See the module for the contract.
pub struct Replication {
    core: Core,
    young: Young,
    peers: Vec<Peer>,
}

impl Replication {
    /// An empty replica, without sessions.
    pub fn new(options: Options) -> Self {
        let core = Core::new(options);
        let me = core.options.identity.node;
        let peers = core.options.peers.iter().filter(|p| p.node != me);
        let peers = peers.map(|p| Peer::new(&core, p.clone())).collect();
        Self { core, young: Young::default(), peers }
    }

    // ---- This node's data plane --------------------------------------------------------------

    /// Takes an event of the data plane.
    pub fn local(&mut self, now: Time, event: &FlowEvent) {
        let created = event.kind == FlowEventKind::Created as u32;
        self.learn(now, &event.key, &event.flow, if created { Told::Created } else { Told::Changed });
    }

    /// As [`Self::local`], of many events: cheaper than one by one.
    pub fn local_batch(&mut self, now: Time, events: &[FlowEvent]) {
        for events in events.chunks(BATCH) {
            self.core.table.expect(events.iter().map(|event| &event.key));
            for event in events {
                self.local(now, event);
            }
        }
    }

    /// This node has deleted a flow from its kernel map: it expired, or an operator wished it.
    pub fn local_delete(&mut self, now: Time, key: &FlowKey, id: &FlowId) {
        if self.young.forget(key, id) {
            self.core.counters.ended_young += 1;
            return;
        }
        if let Some(other) = self.young.get(key) {
            self.core.outputs.push_back(Output::Confirm(*key, *other));
        }
        if self.core.told(key, id) {
            self.core.outputs.push_back(Output::Delete(*key, *id, u64::MAX));
        }
        self.forget(now, key, id);
    }

    fn forget(&mut self, now: Time, key: &FlowKey, id: &FlowId) {
        if self.core.options.enabled
            && let Some(slot) = self.core.forget(now, key, id)
        {
            self.offer(now, slot);
            self.core.table.release(slot);
        }
    }

    /// As [`Self::local_delete`], of many flows: cheaper than one by one.
    pub fn local_delete_batch(&mut self, now: Time, flows: &[(FlowKey, FlowId)]) {
        for flows in flows.chunks(BATCH) {
            self.core.table.expect(flows.iter().map(|(key, _)| key));
            for (key, id) in flows {
                self.local_delete(now, key, id);
            }
        }
    }

    /// Starts comparing the replica with the kernel map, for these buckets. One comparison at a
    /// time; starting another drops the one before.
    pub fn reconcile_begin(&mut self, buckets: Buckets) {
        self.core.reconcile_begin(buckets);
    }

    /// A flow that the walk of the kernel map has met, whatever its bucket. All that [`Self::poll`] had
    /// for the map is to be written before it is looked at.
    pub fn reconcile_seen(&mut self, now: Time, key: &FlowKey, flow: &Flow) {
        if !self.core.reconciling.contains(flow.bucket) {
            return;
        }
        if self.learn(now, key, flow, Told::Seen) {
            self.core.counters.reconciled += 1;
        } else if let Some(newer) = self.core.newer(key, flow) {
            // It was not written when it was told.
            self.core.outputs.push_back(Output::Put(*key, newer));
            self.core.counters.reconciled += 1;
        }
    }

    /// The walk is over: what it has not met is gone. If [`Self::missed`] is true then, compare
    /// once more.
    pub fn reconcile_end(&mut self, now: Time) {
        for (key, id) in self.core.reconcile_end() {
            self.core.counters.vanished += 1;
            self.forget(now, &key, &id);
        }
    }

    /// Whether the kernel map holds flows that did not fit into the replica. That is so when the
    /// replica still has others that are gone: all buckets are to be compared.
    pub const fn missed(&self) -> bool {
        self.core.missed
    }

    fn learn(&mut self, now: Time, key: &FlowKey, flow: &Flow, told: Told) -> bool {
        self.core.now = now;
        let filter = &self.core.options.filter;
        if !self.core.options.enabled {
            return false;
        }
        let owned = self.core.owned.contains(flow.bucket);
        if filter.policy.as_ref().is_some_and(|policy| !policy.replicates(key, flow)) {
            self.core.counters.not_chosen += 1;
            if !owned && self.core.has_later_owner(flow) {
                // Who owns its bucket does not know it and will never end it.
                self.core.outputs.push_back(Output::Delete(*key, flow.id(), flow.version));
            } else if !owned {
                self.core.left.insert(flow.bucket);
            }
            return false;
        }
        let grown = Time::from_nanos(flow.created_ns()) + filter.min_age;
        let waits = !filter.min_age.is_zero() && now < grown && owned && !self.core.knows(key);
        if waits && self.young.len() < self.core.options.max_flows {
            if told == Told::Created && self.core.has_deleted(key) {
                self.core.outputs.push_back(Output::Confirm(*key, *flow));
            }
            self.young.keep(grown, key, flow);
            return false;
        }
        let slot = self.core.learn(key, Entry::from_flow(key, flow), told);
        if let Some(slot) = slot {
            self.offer(now, slot);
        }
        slot.is_some()
    }

    fn offer(&mut self, now: Time, slot: u32) {
        let bucket = self.core.table.at(slot).entry.bucket;
        let owned = self.core.owned.contains(bucket);
        let straggler = !owned && self.core.is_straggler(slot);
        if straggler {
            self.core.handover.tell(now, bucket);
        }
        let successor = self.core.successor(slot).filter(|_| straggler);
        if straggler && successor.is_none() {
            self.core.handover.untold.push(slot);
        }
        for peer in self.peers.iter_mut().filter(|p| owned || Some(p.node()) == successor) {
            peer.offer(&mut self.core, now, slot);
        }
        if !owned {
            self.doubt(Buckets::one(bucket), None);
        }
    }

    /// The replica of these buckets is not what it was when peers' digests agreed with it.
    fn doubt(&mut self, buckets: Buckets, but_for: Option<NodeId>) {
        for peer in self.peers.iter_mut().filter(|p| Some(p.node()) != but_for) {
            peer.doubt(buckets);
        }
    }

    // ---- Roles -------------------------------------------------------------------------------

    /// This node has got or lost these buckets. Costs the same whatever they hold.
    ///
    /// The answer is those that cannot be owned, because there was an owner in a higher term
    /// ([`Self::term`]); the election is to hear of that, if it has not yet. Likewise a bucket that is owned here and that a peer
    /// claims in a higher term counts as lost at once.
    pub fn set_ownership(&mut self, now: Time, buckets: Buckets, ownership: Ownership) -> Buckets {
        self.core.now = now;
        let mut refused = Buckets::EMPTY;
        self.core.disputed = self.core.disputed - buckets;
        match ownership {
            Ownership::Owned { term } => {
                let node = self.core.options.identity.node;
                let mut gained = Buckets::EMPTY;
                for bucket in buckets.iter() {
                    let owner = &mut self.core.owners[usize::from(bucket)];
                    if owner.term > term {
                        refused.insert(bucket);
                    } else if self.core.owned.insert(bucket) || owner.term != term {
                        let before = std::mem::replace(owner, Owner { term, node });
                        // The data plane may have told of it already, see `Core::learn`.
                        if (before.node, before.term) != (0, term) {
                            self.core.handover.gain(now, bucket, before);
                        }
                        self.core.gains[usize::from(bucket)] += 1;
                        gained.insert(bucket);
                    }
                }
                self.core.disputed = self.core.disputed | refused;
                self.core.left = self.core.left - self.core.owned;
                for peer in &mut self.peers {
                    peer.gain(&mut self.core, now, gained);
                }
            }
            Ownership::NotOwned => {
                let lost = buckets & self.core.owned;
                self.core.owned = self.core.owned - lost;
                for bucket in lost.iter() {
                    self.core.handover.lose(now, bucket, self.core.owners[usize::from(bucket)]);
                }
                self.give_up(lost);
            }
        }
        refused
    }

    fn give_up(&mut self, lost: Buckets) {
        if lost.is_empty() {
            return;
        }
        for peer in &mut self.peers {
            peer.give_up(&mut self.core, lost);
        }
        // What the next owner has not been told of is gone on all nodes.
        for (key, id) in self.young.take(lost) {
            self.core.outputs.push_back(Output::Delete(key, id, u64::MAX));
        }
        if self.core.options.filter.policy.is_some() {
            self.core.outputs.push_back(Output::Reconcile(lost));
        }
    }

    /// Sends all owned buckets as a whole, to one peer or to all. How many these are, by peer.
    pub fn request_bulk(&mut self, peer: Option<NodeId>) -> Vec<(NodeId, Result<usize, Unready>)> {
        let asked = self.peers.iter_mut().filter(|p| peer.is_none_or(|n| n == p.node()));
        asked.map(|p| (p.node(), p.request_bulk(&self.core))).collect()
    }

    /// Asks one peer or all for all that they own. How many buckets these are, by peer.
    pub fn request_resync(
        &mut self,
        now: Time,
        peer: Option<NodeId>,
    ) -> Vec<(NodeId, Result<usize, Unready>)> {
        let asked = self.peers.iter_mut().filter(|p| peer.is_none_or(|n| n == p.node()));
        asked.map(|p| (p.node(), p.request_resync(&self.core, now))).collect()
    }

    /// Compares all flows with those of a peer, one by one; [`Output::Diff`] tells what differs, and the
    /// end. One comparison at a time with each peer; another one takes its place. Without `all`,
    /// buckets with equal digests are not looked into.
    ///
    /// # Errors
    /// There is no such peer that could be asked.
    pub fn diff(&mut self, now: Time, peer: NodeId, all: bool) -> Result<(), Unready> {
        let peer = self.peers.iter_mut().find(|p| p.node() == peer);
        peer.ok_or(Unready::State(SyncState::Down))?.diff(&self.core, now, all)
    }

    /// In what the replica differs from what the kernel map has of a flow (`there`). A flow that is not to be
    /// replicated, or is too young, is not missed in the replica.
    pub fn differs(&self, now: Time, key: &FlowKey, there: Option<&Flow>) -> Option<Difference> {
        let difference = diff::from_kernel(&self.core, now, key, there)?;
        let policy = self.core.options.filter.policy.as_ref();
        let kept_out = |flow: &Flow| {
            policy.is_some_and(|policy| !policy.replicates(key, flow)) || self.young.knows(key, &flow.id())
        };
        let meant = difference.here.is_none() && there.is_some_and(kept_out);
        (!meant).then_some(difference)
    }

    /// The keys of the flows of a bucket in the replica.
    pub fn keys(&self, bucket: u8) -> Vec<FlowKey> {
        let table = &self.core.table;
        table.bucket(bucket).into_iter().map(|i| table.at(i).key).collect()
    }

    /// Ends the comparison with a peer; nothing more is told of it.
    pub fn diff_stop(&mut self, peer: NodeId) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.node() == peer) {
            peer.diff_stop();
        }
    }

    // ---- The network and time ----------------------------------------------------------------

    /// The term of each bucket of which flows of the data plane have proved, since this was asked last, that it had an
    /// owner in a higher term than was known; or of which a peer has spoken in a lower one. An owner in a lower one is
    /// refused here until it knows: the election is to tell it.
    pub fn take_past_terms(&mut self) -> Vec<(u8, u32)> {
        std::mem::take(&mut self.core.past_terms)
            .iter()
            .map(|bucket| (bucket, self.core.term(bucket)))
            .collect()
    }

    /// The term of each owned bucket that a peer has claimed in a higher one since this was asked last. It counts as lost
    /// here; the election is to be told, as it may not hear that peer.
    pub fn take_claims(&mut self) -> Vec<(u8, u32)> {
        let claimed = std::mem::take(&mut self.core.claimed);
        claimed.iter().map(|bucket| (bucket, self.core.term(bucket))).collect()
    }

    /// A datagram that came in on sync link `link`. It is decrypted in place.
    pub fn datagram(&mut self, now: Time, link: u8, datagram: &mut [u8]) {
        self.core.now = now;
        if !self.core.options.enabled {
            self.core.counters.disabled += 1;
            return;
        }
        let Ok(header) = Header::parse(datagram) else {
            self.core.counters.garbage += 1;
            return;
        };
        match self.peers.iter_mut().find(|p| p.node() == header.sender) {
            Some(peer) => peer.receive(&mut self.core, now, link, datagram),
            None => self.core.counters.unknown_peer += 1,
        }
        let lost = std::mem::take(&mut self.core.superseded);
        self.give_up(lost);
        for slot in std::mem::take(&mut self.core.handover.taken) {
            self.offer(now, slot);
        }
        let moved = std::mem::take(&mut self.core.moved);
        if !moved.is_empty() {
            self.doubt(moved, Some(header.sender));
            let left = moved & self.core.left;
            if !left.is_empty() {
                self.core.left = self.core.left - left;
                self.core.outputs.push_back(Output::Reconcile(left));
            }
            for slot in std::mem::take(&mut self.core.handover.untold) {
                if self.core.is_straggler(slot) {
                    self.offer(now, slot);
                }
            }
        }
    }

    /// The cluster file was read again: sessions and flows stay. If `chosen` says that other flows are
    /// chosen than before, that holds for those of owned buckets that are there as well;
    /// [`Output::Reconcile`] asks for what it takes.
    pub fn reload(&mut self, now: Time, settings: Settings, chosen: bool) {
        let Settings { config_hash, rules_hash, bulk_bytes_per_s, filter } = settings;
        let options = &mut self.core.options;
        (options.config_hash, options.rules_hash) = (config_hash, rules_hash);
        options.bulk_bytes_per_s = bulk_bytes_per_s;
        options.filter = filter;
        for peer in &mut self.peers {
            peer.reload(&self.core);
        }
        // How old a flow must be may be less now.
        for (key, flow) in self.young.drain() {
            self.learn(now, &key, &flow, Told::Created);
        }
        if chosen && !self.core.owned.is_empty() {
            self.core.outputs.push_back(Output::Reconcile(self.core.owned));
        }
    }

    /// Holds these keys from now on; sessions go on.
    pub fn set_keys(&mut self, keys: &KeyRing) {
        for peer in &mut self.peers {
            peer.set_keys(keys);
        }
    }

    /// The interface of sync link `link` has gained or lost its carrier.
    pub fn carrier(&mut self, link: u8, carrier: bool) {
        for peer in &mut self.peers {
            peer.carrier(link, carrier);
        }
    }

    /// Lets time pass and makes the datagrams that are due.
    pub fn tick(&mut self, now: Time) {
        self.core.now = now;
        self.core.bury(now);
        while let Some((key, flow)) = self.young.grown(now) {
            self.learn(now, &key, &flow, Told::Created);
        }
        if self.core.options.enabled {
            for peer in &mut self.peers {
                peer.tick(&mut self.core, now);
            }
        }
    }

    /// When [`Self::tick`] must be called, if nothing else happens before. May be in the past.
    pub fn next_timeout(&self) -> Time {
        let peers = self.peers.iter().filter(|_| self.core.options.enabled);
        let next = peers.map(|p| p.next_timeout(&self.core)).min().unwrap_or(Time::NEVER);
        next.min(self.core.bury_at().unwrap_or(Time::NEVER)).min(self.young.next())
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.core.outputs.pop_front()
    }

    // ---- Status ------------------------------------------------------------------------------

    /// Flows in the replica.
    pub const fn len(&self) -> usize {
        self.core.table.live()
    }

    /// Flows in the kernel map as far as this node has heard of them: those that began here, and all others. `None` if
    /// the replica does not hold all of them. Costs the same whatever there is.
    pub fn census(&self) -> Option<[usize; 2]> {
        let core = &self.core;
        let whole = core.options.enabled && core.options.filter.policy.is_none();
        let heard = core.reconciling.is_empty() && !core.missed;
        let here = core.table.begun(core.options.identity.node);
        (whole && heard).then(|| [here + self.young.len(), core.table.live() - here])
    }

    /// Flows that peers will hear of when they are old enough ([`Filter::min_age`]).
    pub fn young(&self) -> usize {
        self.young.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Deleted flows of which something is kept still: a peer has not acknowledged the deletion, or an
    /// older message may come.
    pub const fn tombstones(&self) -> usize {
        self.core.table.dead()
    }

    /// Digest of a bucket: equal on two nodes if, and but for a chance of 2^-64 only if, they hold
    /// the same identities in the same versions.
    pub const fn digest(&self, bucket: u8) -> u64 {
        self.core.table.digest(bucket)
    }

    /// The flow of this key in the replica.
    pub fn get(&self, key: &FlowKey) -> Option<Flow> {
        let slot = self.core.table.at(self.core.table.find(key)?);
        slot.live.then(|| slot.entry.to_flow(&slot.key))
    }

    /// All flows of a bucket.
    pub fn flows(&self, bucket: u8) -> impl Iterator<Item = (FlowKey, Flow)> + use<'_> {
        self.core.table.bucket(bucket).into_iter().map(|i| {
            let slot = self.core.table.at(i);
            (slot.key, slot.entry.to_flow(&slot.key))
        })
    }

    /// The highest term known of a bucket; 0 for none.
    pub const fn term(&self, bucket: u8) -> u32 {
        self.core.term(bucket)
    }

    /// Where replication with each peer stands.
    pub fn status(&self, now: Time) -> impl Iterator<Item = PeerStatus<'_>> {
        self.peers.iter().map(move |p| p.status(&self.core, now))
    }

    /// State of replication with one peer.
    pub fn sync_state(&self, peer: NodeId) -> Option<SyncState> {
        self.peers.iter().find(|p| p.node() == peer).map(|p| p.sync_state(&self.core))
    }

    /// Owned flows that no peer which answers, and may own their group ([`Options::groups`]), is known to hold as they
    /// are: at most so many are lost or fall back to an earlier state if this node is lost now.
    pub fn at_risk(&self) -> u64 {
        let core = &self.core;
        let peers: Vec<_> = self.peers.iter().filter_map(|p| Some((p.node(), p.at_risk(core)?))).collect();
        let of_group = |buckets: Buckets, members: Option<&[NodeId]>| -> u64 {
            let owned = core.owned & buckets;
            let members =
                peers.iter().filter(|(node, _)| members.is_none_or(|members| members.contains(node)));
            let least = members.map(|(_, flows)| owned.iter().map(|b| flows[usize::from(b)]).sum()).min();
            least.unwrap_or_else(|| owned.iter().map(|b| u64::from(core.table.count(b))).sum())
        };
        if core.options.groups.is_empty() {
            return of_group(Buckets::ALL, None);
        }
        core.options.groups.iter().map(|group| of_group(group.buckets, Some(&group.members))).sum()
    }

    /// Counters that belong to no peer.
    pub const fn counters(&self) -> &LocalCounters {
        &self.core.counters
    }
}
