//! The test rig: nodes with a model of their kernel map each, a network with seeded faults, virtual
//! time. [`Rig::pair`] is the two-node cluster.
//!
//! A failing run names its seed; with `FWHA_TRACE` set, a run tells every step it takes.
//!
//! Safety is checked with every write to a kernel map: under one owner an identity's version never
//! goes back, and an identity that its owner has deleted never comes back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use fwha_common::flow::{Flow, FlowEvent, FlowEventKind, FlowId, FlowKey, FlowState};

use super::{Buckets, Event, Found, Options, Output, Ownership, PeerOptions, Replication, SyncState, stays};
use crate::NodeId;
use crate::seal::{ClusterKey, Identity, cluster_id};
use crate::time::Time;

/// Buckets in use: few, so that each holds several flows.
pub(super) const USED: u8 = 16;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// What the network does to a datagram, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) loss: u64,
    pub(super) duplicate: u64,
    pub(super) corrupt: u64,
    /// Additional latency of up to so much: what makes datagrams overtake each other.
    pub(super) jitter: Duration,
}

const LATENCY: Duration = Duration::from_micros(100);

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) up: bool,
    pub(super) replication: Replication,
    pub(super) kernel: HashMap<FlowKey, Flow>,
    pub(super) owned: Buckets,
    pub(super) term: u32,
    pub(super) events: Vec<Event>,
    pub(super) found: Vec<Found>,
    /// Events were lost since the last reconciliation.
    pub(super) blind: bool,
    /// A reconciliation was asked for.
    pub(super) stale: bool,
    epoch: u64,
    numbers: u64,
    /// Highest (owner's term, version) written of each identity.
    written: HashMap<FlowId, (u32, u64)>,
    /// Owner's term in which each identity was deleted.
    deleted: HashMap<FlowId, u32>,
}

/// From, to, sync link, datagram.
type InFlight = (NodeId, NodeId, u8, Vec<u8>);

pub(super) struct Rig {
    pub(super) now: Time,
    pub(super) rng: Rng,
    pub(super) nodes: Vec<Node>,
    pub(super) faults: Faults,
    /// Cut ways: from, to.
    pub(super) cut: Vec<(NodeId, NodeId)>,
    /// Sync links that carry nothing.
    pub(super) dead_links: Vec<u8>,
    /// Number of sync links.
    links: u8,
    /// Datagrams and bytes carried.
    pub(super) carried: (u64, u64),
    name: String,
    traced: bool,
    options: fn(&mut Options),
    air: BTreeMap<(Time, u64), InFlight>,
    sent: u64,
    epochs: u64,
    /// Identities that an owner has deleted.
    buried: HashSet<FlowId>,
}

impl Rig {
    pub(super) fn pair(seed: u64) -> Self {
        Self::new(2, seed, |_| {})
    }

    pub(super) fn new(nodes: u8, seed: u64, options: fn(&mut Options)) -> Self {
        let mut rig = Self {
            now: Time::from_millis(1000),
            rng: Rng(seed),
            nodes: Vec::new(),
            faults: Faults::default(),
            cut: Vec::new(),
            dead_links: Vec::new(),
            links: 1,
            carried: (0, 0),
            name: format!("seed {seed}"),
            traced: std::env::var_os("FWHA_TRACE").is_some(),
            options,
            air: BTreeMap::new(),
            sent: 0,
            epochs: 0,
            buried: HashSet::new(),
        };
        for id in 1..=nodes {
            let replication = rig.replication(id, nodes);
            rig.nodes.push(Node {
                id,
                up: true,
                replication,
                kernel: HashMap::new(),
                owned: Buckets::EMPTY,
                term: 0,
                events: Vec::new(),
                found: Vec::new(),
                blind: false,
                stale: false,
                epoch: rig.epochs,
                numbers: 0,
                written: HashMap::new(),
                deleted: HashMap::new(),
            });
        }
        rig
    }

    fn replication(&mut self, node: NodeId, nodes: u8) -> Replication {
        self.epochs += 1;
        let identity = Identity { cluster: cluster_id("edge"), node, epoch: self.epochs };
        let mut options = Options::new(identity, ClusterKey::new([7; 32]), &format!("fw{node}"));
        options.max_flows = 1000;
        options.zones = vec![11, 12];
        options.peers = (1..=nodes).map(|n| PeerOptions { node: n, name: format!("fw{n}") }).collect();
        (self.options)(&mut options);
        self.links = options.links;
        Replication::new(options)
    }

    pub(super) fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[usize::from(id) - 1]
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{} us: {}", self.now.as_nanos() / 1000, what());
        }
    }

    #[track_caller]
    pub(super) fn fail(&self, why: impl fmt::Display) -> ! {
        panic!("{} at {} ms: {why}", self.name, self.now.as_nanos() / 1_000_000)
    }

    // ---- The data plane ----------------------------------------------------------------------

    pub(super) fn key(n: u16) -> FlowKey {
        let (src, dst) = (u32::from_ne_bytes([192, 168, 100, 100]), u32::from_ne_bytes([10, 0, 0, 128]));
        FlowKey::v4(src, dst, n.to_be(), 22u16.to_be(), 6).0
    }

    pub(super) fn bucket(n: u16) -> u8 {
        (n % u16::from(USED)) as u8
    }

    pub(super) fn used() -> Buckets {
        (0..USED).collect()
    }

    /// A new connection of this key on a node that owns its bucket.
    pub(super) fn create(&mut self, id: NodeId, n: u16) {
        self.create_undrained(id, n);
        self.drain(id);
    }

    /// As [`Self::create`], and what follows waits.
    pub(super) fn create_undrained(&mut self, id: NodeId, n: u16) {
        let now = self.now;
        let node = self.node(id);
        let full = node.kernel.len() >= node.replication.core.options.max_flows
            && !node.kernel.contains_key(&Self::key(n));
        if !node.up || !node.owned.contains(Self::bucket(n)) || full {
            return;
        }
        node.numbers += 1;
        let mut flow = Flow {
            word: Flow::word(FlowState::Established, 0, [1, 2]),
            bucket: Self::bucket(n),
            version: Flow::next_version(0, node.term),
            delta: node.numbers as u32,
            ..Flow::of(FlowId {
                number: now.as_nanos() + node.numbers,
                epoch: node.epoch as u32,
                node: id,
                zero: [0; 3],
            })
        };
        flow.set_created_ns(now.as_nanos() + node.numbers);
        node.kernel.insert(Self::key(n), flow);
        self.event(id, FlowEventKind::Created, n);
    }

    pub(super) fn update(&mut self, id: NodeId, n: u16) {
        let node = self.node(id);
        let (term, owned) = (node.term, node.up && node.owned.contains(Self::bucket(n)));
        let Some(flow) = node.kernel.get_mut(&Self::key(n)).filter(|_| owned) else { return };
        flow.version = Flow::next_version(flow.version, term);
        flow.ways[0].packets += 1;
        self.event(id, FlowEventKind::Updated, n);
        self.drain(id);
    }

    /// A change of which the data plane's event is lost.
    pub(super) fn change_unseen(&mut self, id: NodeId, n: u16) {
        let node = self.node(id);
        if !node.up || !node.owned.contains(Self::bucket(n)) {
            return;
        }
        node.blind = true;
        let term = node.term;
        if n.is_multiple_of(2) {
            node.kernel.remove(&Self::key(n));
        } else if let Some(flow) = node.kernel.get_mut(&Self::key(n)) {
            flow.version = Flow::next_version(flow.version, term);
        }
    }

    /// The sweeper deletes a flow.
    pub(super) fn delete(&mut self, id: NodeId, n: u16) {
        let now = self.now;
        let node = self.node(id);
        if !node.up || !node.owned.contains(Self::bucket(n)) {
            return;
        }
        if let Some(flow) = node.kernel.remove(&Self::key(n)) {
            self.trace(|| format!("node {id} deletes {}", flow.number));
            let node = self.node(id);
            node.deleted.insert(flow.id(), node.term);
            self.buried.insert(flow.id());
            let node = self.node(id);
            node.replication.local_delete(now, &Self::key(n), &flow.id());
            self.drain(id);
        }
    }

    fn event(&mut self, id: NodeId, kind: FlowEventKind, n: u16) {
        let (now, key) = (self.now, Self::key(n));
        self.trace(|| {
            let flow = &self.nodes[usize::from(id) - 1].kernel[&key];
            format!("node {id} {kind:?} {} version {:x}", flow.number, flow.version)
        });
        let node = self.node(id);
        let event = FlowEvent { kind: kind as u32, cpu: 0, key, flow: node.kernel[&key] };
        node.replication.local(now, &event);
    }

    /// Compares a node's replica with its kernel map.
    pub(super) fn reconcile(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.node(id);
        loop {
            node.replication.reconcile_begin(Buckets::ALL);
            for (key, flow) in &node.kernel {
                node.replication.reconcile_seen(now, key, flow);
            }
            node.replication.reconcile_end(now);
            if !node.replication.missed() {
                break;
            }
        }
        node.blind = false;
        self.drain(id);
    }

    // ---- Roles and lives ---------------------------------------------------------------------

    /// A node takes buckets over in a new term. The others are not told.
    pub(super) fn promote(&mut self, id: NodeId, buckets: Buckets) {
        let now = self.now;
        let term = self.nodes.iter().map(|n| n.term).max().unwrap_or(0) + 1;
        self.trace(|| format!("node {id} owns {buckets:?} in term {term}"));
        let node = self.node(id);
        node.term = term;
        node.owned = node.owned | buckets;
        // One group per node: what it owns, it owns in its newest term.
        node.replication.set_ownership(now, node.owned, Ownership::Owned { term });
        self.drain(id);
    }

    pub(super) fn demote(&mut self, id: NodeId, buckets: Buckets) {
        let now = self.now;
        self.trace(|| format!("node {id} owns {buckets:?} no more"));
        let node = self.node(id);
        node.owned = node.owned - buckets;
        node.replication.set_ownership(now, buckets, Ownership::NotOwned);
        self.drain(id);
    }

    pub(super) fn kill(&mut self, id: NodeId) {
        self.trace(|| format!("node {id} dies"));
        self.node(id).up = false;
    }

    /// The node comes back as a Backup: after a reboot, or a mere restart of its daemon.
    pub(super) fn revive(&mut self, id: NodeId, rebooted: bool) {
        self.start(id, rebooted);
        self.reconcile(id);
    }

    fn start(&mut self, id: NodeId, rebooted: bool) {
        self.trace(|| format!("node {id} starts, rebooted {rebooted}"));
        let replication = self.replication(id, self.nodes.len() as u8);
        let epoch = self.epochs;
        let node = self.node(id);
        node.replication = replication;
        node.up = true;
        node.epoch = epoch;
        node.owned = Buckets::EMPTY;
        // Terms are not remembered over a restart, so neither is what was written under them.
        node.written.clear();
        node.deleted.clear();
        if rebooted {
            node.kernel.clear();
        }
    }

    /// The daemon of an owner restarts within its lease.
    pub(super) fn restart_owner(&mut self, id: NodeId) {
        let (now, owned) = (self.now, self.node(id).owned);
        self.start(id, false);
        let node = self.node(id);
        node.owned = owned;
        node.replication.reconcile_begin(Buckets::ALL);
        node.replication.set_ownership(now, owned, Ownership::Owned { term: node.term });
        self.reconcile(id);
    }

    // ---- The network and time ----------------------------------------------------------------

    /// Takes a node's outputs.
    pub(super) fn drain(&mut self, id: NodeId) {
        while let Some(output) = self.node(id).replication.poll() {
            match output {
                Output::Transmit { peer, link: Some(link), datagram } => self.send(id, peer, link, datagram),
                Output::Transmit { peer, link: None, datagram } => {
                    (0..self.links).for_each(|link| self.send(id, peer, link, datagram.clone()));
                }
                Output::Put(key, flow) => self.put(id, key, flow),
                Output::Delete(key, flow_id, _) => self.remove(id, key, flow_id),
                Output::Confirm(key, flow) => _ = self.node(id).kernel.entry(key).or_insert(flow),
                Output::Reconcile(_) => self.node(id).stale = true,
                Output::Event(event) => self.node(id).events.push(event),
                Output::Diff { found, .. } => self.node(id).found.push(found),
            }
        }
    }

    fn put(&mut self, id: NodeId, key: FlowKey, flow: Flow) {
        let node = &self.nodes[usize::from(id) - 1];
        let mut term = node.replication.core.owners[usize::from(flow.bucket)].term;
        let ours = node.owned.contains(flow.bucket) && node.term >= term;
        if ours {
            // What the former owner did before it knew: never over what came of the flow here.
            if Flow::term(flow.version) >= node.term {
                self.fail(format_args!("node {id} let a peer write to its bucket {}", flow.bucket));
            }
            if node.kernel.get(&key).is_some_and(|there| stays(there, &flow)) {
                return;
            }
            term = Flow::term(flow.version);
        }
        if let Some(&before) = node.written.get(&flow.id())
            && before > (term, flow.version)
        {
            self.fail(format_args!("node {id} went back from {before:x?} to {:x?}", (term, flow.version)));
        }
        // A sweep also takes flows whose mention found the table full; these may come again.
        let full = || node.replication.status(self.now).any(|s| s.counters.rejected_full > 0);
        if node.deleted.get(&flow.id()).is_some_and(|&t| t >= term) && !full() {
            self.fail(format_args!("node {id} resurrected {:?}", flow.id()));
        }
        self.trace(|| format!("node {id} puts {} version {:x} in term {term}", flow.number, flow.version));
        let node = self.node(id);
        if node.kernel.len() >= node.replication.core.options.max_flows && !node.kernel.contains_key(&key) {
            node.blind = true;
            return;
        }
        node.written.insert(flow.id(), (term, flow.version));
        node.kernel.insert(key, flow);
    }

    fn remove(&mut self, id: NodeId, key: FlowKey, flow_id: FlowId) {
        self.trace(|| format!("node {id} removes {}", flow_id.number));
        let node = self.node(id);
        // It may have deleted the flow itself, and say so once more; or events were lost.
        let Some(flow) = node.kernel.get(&key).filter(|f| f.id() == flow_id) else { return };
        let term = node.replication.core.owners[usize::from(flow.bucket)].term;
        node.kernel.remove(&key);
        // What its owner does not mention in a bulk it may hear of later, from its predecessor.
        if self.buried.contains(&flow_id) {
            self.node(id).deleted.insert(flow_id, term);
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, link: u8, datagram: Vec<u8>) {
        assert!(datagram.len() + 28 <= 1500, "fits the MTU");
        self.carried.0 += 1;
        self.carried.1 += datagram.len() as u64;
        let cut = self.cut.contains(&(from, to)) || self.dead_links.contains(&link);
        if cut || self.rng.percent(self.faults.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.percent(self.faults.duplicate));
        for _ in 0..copies {
            let mut datagram = datagram.clone();
            if self.rng.percent(self.faults.corrupt) {
                let at = self.rng.below(datagram.len() as u64) as usize;
                datagram[at] ^= 1 << self.rng.below(8);
                let len = datagram.len() as u64;
                if self.rng.percent(30) {
                    datagram.truncate(self.rng.below(len) as usize);
                }
            }
            let jitter = self.faults.jitter.as_nanos() as u64;
            let late = Duration::from_nanos(self.rng.below(jitter + 1));
            self.sent += 1;
            self.air.insert((self.now + LATENCY + late, self.sent), (from, to, link, datagram));
        }
    }

    /// Lets all that happens within `time` happen.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut idle_turns = 0;
        loop {
            let mut next = self.air.keys().next().map_or(Time::NEVER, |k| k.0);
            for node in self.nodes.iter().filter(|n| n.up) {
                next = next.min(node.replication.next_timeout());
            }
            let next = next.max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            idle_turns = if next == self.now { idle_turns + 1 } else { 0 };
            if idle_turns > 10_000 {
                self.fail("busy without end");
            }
            self.now = next;
            while let Some(entry) = self.air.first_entry()
                && entry.key().0 <= next
            {
                let (_, to, link, mut datagram) = entry.remove();
                let node = self.node(to);
                if node.up {
                    node.replication.datagram(next, link, &mut datagram);
                    self.drain(to);
                }
            }
            for i in 0..self.nodes.len() {
                if self.nodes[i].up && self.nodes[i].replication.next_timeout() <= next {
                    self.nodes[i].replication.tick(next);
                    self.drain(i as NodeId + 1);
                }
            }
        }
    }

    /// Runs until `done`, or fails after `limit`.
    pub(super) fn run_until(&mut self, limit: Duration, what: &str, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            if self.now >= end {
                self.fail(format_args!("not {what} within {limit:?}\n{self}"));
            }
            self.run(Duration::from_millis(5));
        }
    }

    pub(super) fn in_sync(&self) -> bool {
        self.nodes.iter().filter(|n| n.up).all(|n| {
            n.replication
                .status(self.now)
                .filter(|s| self.nodes[usize::from(s.peer) - 1].up)
                .all(|s| s.state == SyncState::InSync && s.lag.is_zero() && s.unacked == 0)
        })
    }

    /// No faults any more: every node must come to hold what the owners hold, and say so.
    pub(super) fn converge(&mut self, limit: Duration) {
        self.faults = Faults::default();
        self.cut.clear();
        self.run_until(limit, "in sync", |rig| {
            let tidy = |n: &Node| !n.up || n.replication.core.table.dead() == 0;
            rig.in_sync() && rig.difference().is_none() && rig.nodes.iter().all(tidy)
        });
    }

    /// The first thing in which a node that is up differs from the owners.
    pub(super) fn difference(&self) -> Option<String> {
        let up = || self.nodes.iter().filter(|n| n.up);
        for owner in up() {
            for bucket in owner.owned.iter() {
                let of = |node: &Node| {
                    let mut flows: Vec<_> = node.kernel.values().filter(|f| f.bucket == bucket).collect();
                    flows.sort_by_key(|f| (f.number, f.node, f.epoch));
                    flows.iter().map(|f| (f.id(), f.version, f.state(), f.zones())).collect::<Vec<_>>()
                };
                for node in up() {
                    if of(node) != of(owner) {
                        let (a, b) = (of(owner), of(node));
                        return Some(format!(
                            "bucket {bucket} of node {} in the kernel: {a:?}, {b:?}",
                            node.id
                        ));
                    }
                    if node.replication.digest(bucket) != owner.replication.digest(bucket) {
                        return Some(format!("bucket {bucket} of node {} in the replica", node.id));
                    }
                }
            }
        }
        None
    }
}

impl fmt::Display for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            writeln!(f, "node {} up {} owns {:?} flows {}", node.id, node.up, node.owned, node.kernel.len())?;
            for s in node.replication.status(self.now) {
                writeln!(
                    f,
                    "  to {}: {} for {:?} lag {:?} queued {} unacked {} match {} sending {:?} receiving {:?}",
                    s.peer,
                    s.state.as_str(),
                    s.state_for,
                    s.lag,
                    s.queued,
                    s.unacked,
                    s.digest_match,
                    s.sending,
                    s.receiving
                )?;
                let counters: Vec<_> = s.counters.iter().filter(|c| c.1 > 0).collect();
                writeln!(f, "    {counters:?}")?;
            }
        }
        write!(f, "difference: {:?}", self.difference())
    }
}
