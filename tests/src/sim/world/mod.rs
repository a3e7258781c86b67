//! The world: nodes, network, clock, and a schedule of what is to happen. It looks at every write to a
//! kernel and at every status, and stops at the first thing that must not be.

mod checks;
mod writes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::time::Duration;

use fwha_common::flow::{Flow, FlowId, FlowKey};
use fwha_proto::NodeId;
use fwha_proto::replication::{
    GroupOptions, Options, PeerOptions, PeerStatus, Replication, SyncState, stays,
};
use fwha_proto::seal::{Identity, KeyRing, cluster_id};
use fwha_proto::time::Time;

use super::kernel::{Kernel, Number, number_of};
use super::network::{Datagram, Network, Voice};
use super::node::{Claims, Daemon, Effect, Letter, Node, STRAGGLERS_FOR};
use super::roles::{self, ZONES};
use super::{BUCKETS_USED, GROUPS, Group, Planted, Shape, bucket_of, buckets_of, group_of};
use crate::frames::Random;

/// How long the data plane forwards without its daemon.
pub const LEASE: Duration = Duration::from_secs(1);
/// Turns without any time passing that nothing explains.
const TURNS_MAX: u32 = 10_000;
/// Datagrams in flight to a peer at most, as the protocol promises.
const UNACKED_MAX: usize = 512;
/// Tombstones that are kept at most when there are few flows, and their share of the flows when
/// there are many: what the protocol promises, and one flow in use for each of them.
const TOMBSTONES_MIN: usize = 4096;
const TOMBSTONES_SHARE: usize = 4;

/// What is to happen at its time.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// A daemon starts; on a kernel of its own if the node was dead.
    Start(NodeId),
    /// The lease that this life of a daemon renewed last is over.
    LeaseEnds(NodeId, u32),
    /// The election hears of an owner in a higher term, or in the same one and with a better right.
    GiveUp(NodeId, Group, u32),
    /// The election's letter arrives.
    Told(NodeId, u32, Group, u32),
    /// The daemon sees that events were lost.
    Notice(NodeId),
    /// A link between two nodes, both ways, is cut or not.
    Link(NodeId, NodeId, u8, bool),
    /// A node's interface of a link has a carrier or not; it is told.
    Carrier(NodeId, u8, bool),
}

/// Flows of a group that a peer holds, as it and their owner have said.
#[derive(Default)]
pub struct Promised {
    /// All but those that have ended since.
    pub flows: Vec<(Number, FlowId)>,
    /// The owner's sums then: while they are the same, so are the flows.
    sums: [u64; BUCKETS_USED],
}

/// What is known of each node beyond what it knows itself.
#[derive(Default)]
struct Ledger {
    /// What was last written of each identity: the reign in which, and the version.
    written: HashMap<FlowId, (Reign, u64)>,
    /// Identities that this node has deleted because their owner had: the owner's term and node.
    buried: HashMap<FlowId, (u32, NodeId)>,
    /// Whose word was last taken about each bucket, in this life.
    heard: [Reign; BUCKETS_USED],
}

/// An owner as a node knows it. Two rivals of one term take turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reign {
    term: u32,
    node: NodeId,
    turn: u32,
}

/// See the module.
pub struct World {
    /// The time.
    pub now: Time,
    /// Where all chance comes from.
    pub random: Random,
    /// The nodes, by number from 1.
    pub nodes: Vec<Node>,
    /// The network.
    pub network: Network,
    /// What the cluster is like.
    pub shape: Shape,
    /// Highest term of each group so far.
    pub terms: [u32; GROUPS],
    /// Set while nothing is at fault but the network: how many differences had been found before. There are to be no others.
    pub differed: Option<u64>,
    /// What must not be, once it is.
    pub violation: Option<String>,
    /// Times at which two nodes said in-sync with nothing on its way, and their kernels were compared.
    pub proofs: u64,
    /// Flows that an owner took from its predecessor.
    pub stragglers: u64,
    /// Datagrams that arrived.
    pub arrived: u64,
    /// A hash of everything that happened: the same seed has the same.
    pub fingerprint: u64,
    /// Takeovers by elected nodes.
    pub takeovers: u64,
    /// Flows that were in sync with a node that took over.
    pub inherited: u64,
    /// Groups only move by an operator's will, and nothing fails: no connection is lost.
    pub planned_only: bool,
    /// Then, those that live.
    pub alive: BTreeMap<Number, FlowId>,
    /// When each group was taken last.
    pub moved: [Time; GROUPS],
    /// Keys whose client has sent to the owner since the group was taken then: it knows where that is.
    pub learned: BTreeMap<Number, Time>,
    /// Flows of each group that are in sync, by the peer that has them.
    pub promised: [BTreeMap<NodeId, Promised>; GROUPS],
    /// Since when two nodes own a group although they hear each other: on a sync link, or on the zones.
    pub overlaps: BTreeMap<(Group, NodeId, NodeId, bool), Time>,
    /// Since when two nodes, the greater first, have been able to ask each other in a zone without a fault.
    pub within_reach: BTreeMap<(NodeId, NodeId, u8), Time>,
    /// Interfaces that their nodes know to have no carrier.
    pub unplugged: BTreeSet<(NodeId, u8)>,
    /// The cluster's secret.
    pub keys: KeyRing,
    /// The key of probes, which follows from it.
    pub probe_key: [u64; 2],
    ledgers: Vec<Ledger>,
    /// Identities of which an owner's machine was told that they are deleted, with its term.
    buried: HashMap<FlowId, (u32, NodeId)>,
    /// Who owned each group in which term.
    pub reigned: BTreeSet<(Group, u32, NodeId)>,
    orders: BTreeMap<(Time, u64), Order>,
    ordered: u64,
    epochs: u64,
    touched: Vec<bool>,
    /// When each node's replication and its election have something to do.
    due: Vec<[Time; 2]>,
    /// Nodes whose next time is to be found anew: something has happened there.
    stirred: Vec<bool>,
    traced: bool,
}

impl World {
    /// A world of this shape in which nothing has happened yet.
    pub fn new(seed: u64, shape: Shape, traced: bool) -> Self {
        let keys = roles::keys();
        let mut world = Self {
            now: Time::from_millis(1000),
            probe_key: keys.siphash_key("probe"),
            keys,
            random: Random(seed),
            nodes: Vec::new(),
            network: Network::new(shape.nodes, shape.links + if shape.elected { ZONES } else { 0 }),
            terms: [0; GROUPS],
            differed: None,
            violation: None,
            proofs: 0,
            stragglers: 0,
            arrived: 0,
            fingerprint: 0,
            takeovers: 0,
            inherited: 0,
            planned_only: false,
            moved: [Time::ZERO; GROUPS],
            learned: BTreeMap::new(),
            alive: BTreeMap::new(),
            promised: Default::default(),
            overlaps: BTreeMap::new(),
            within_reach: BTreeMap::new(),
            unplugged: BTreeSet::new(),
            ledgers: Vec::new(),
            buried: HashMap::new(),
            reigned: BTreeSet::new(),
            orders: BTreeMap::new(),
            ordered: 0,
            epochs: 0,
            touched: vec![false; shape.nodes.into()],
            due: vec![[Time::NEVER; 2]; shape.nodes.into()],
            stirred: vec![true; shape.nodes.into()],
            traced,
            shape,
        };
        for id in 1..=world.shape.nodes {
            // No two machines were started at the same time.
            let offset = Duration::from_nanos(world.random.below(1_000_000_000_000_000) as u64);
            let kernel = Kernel::new(id, 0, world.shape.max_flows);
            let planted = shape.planted;
            world.nodes.push(Node { id, offset, kernel, daemon: None, life: 0, powered: false, planted });
            world.ledgers.push(Ledger::default());
            world.start(id);
        }
        world
    }

    /// A node.
    pub fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[usize::from(id) - 1]
    }

    /// All numbers of nodes.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        1..=self.shape.nodes
    }

    /// Tells what happens, if somebody listens.
    pub fn trace(&self, node: Option<NodeId>, what: impl FnOnce() -> String) {
        if self.traced {
            let at = self.now.as_nanos() / 1000;
            let who = node.map_or_else(|| "world".into(), |n| format!("fw{n}"));
            println!("{:>5}.{:06} {who:<5} {}", at / 1_000_000, at % 1_000_000, what());
        }
    }

    /// Something happened that must not.
    pub fn violate(&mut self, what: impl Into<String>) {
        if self.violation.is_none() {
            let what = what.into();
            self.trace(None, || format!("VIOLATION: {what}"));
            self.violation = Some(what);
        }
    }

    /// Makes this a part of the fingerprint.
    pub fn mark(&mut self, words: [u64; 4]) {
        for word in words {
            self.fingerprint = (self.fingerprint ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
        }
    }

    // ---- Lives -----------------------------------------------------------------------------------

    /// Lets something happen after some time.
    pub fn order(&mut self, after: Duration, order: Order) {
        self.ordered += 1;
        self.orders.insert((self.now + after, self.ordered), order);
    }

    /// Everything that is still to happen happens now.
    pub fn hurry(&mut self) {
        for order in std::mem::take(&mut self.orders).into_values() {
            self.obey(order);
        }
    }

    fn obey(&mut self, order: Order) {
        self.trace(None, || format!("{order:?}"));
        match order {
            Order::Start(id) => self.start(id),
            Order::LeaseEnds(id, life) => {
                let node = self.node(id);
                if node.daemon.is_none() && node.life == life {
                    node.kernel.owned = [None; GROUPS];
                }
            }
            Order::GiveUp(id, group, term) => {
                let node = self.node(id);
                if node.kernel.owned[usize::from(group)] == Some(term) {
                    self.disown(id, group);
                }
            }
            Order::Told(id, life, group, term) => {
                let node = self.node(id);
                // Letters keep their order: this one is followed by that of a later move, if there was any.
                if node.life == life
                    && node.kernel.owned[usize::from(group)] == Some(term)
                    && let Some(daemon) = &mut node.daemon
                {
                    daemon.tell(Letter::Owned(group, term));
                }
            }
            Order::Notice(id) => {
                let node = self.node(id);
                let lost = std::mem::take(&mut node.kernel.lost);
                let ignored = node.planted == Some(Planted::LossesIgnored);
                if let Some(daemon) = node.daemon.as_mut().filter(|_| !ignored) {
                    daemon.tell(Letter::Reconcile(lost));
                }
            }
            Order::Carrier(id, link, carrier) => {
                if carrier {
                    self.unplugged.remove(&(id, link));
                } else {
                    self.unplugged.insert((id, link));
                }
                for other in self.ids() {
                    self.network.way(id, other, link).cut = !carrier;
                    self.network.way(other, id, link).cut = !carrier;
                }
                if link < self.shape.links
                    && let Some(daemon) = &mut self.node(id).daemon
                {
                    daemon.replication.carrier(link, carrier);
                }
                self.elect(id);
            }
            Order::Link(a, b, link, cut) => {
                self.network.way(a, b, link).cut = cut;
                self.network.way(b, a, link).cut = cut;
            }
        }
    }

    /// A daemon starts, unless one runs.
    pub fn start(&mut self, id: NodeId) {
        if self.node(id).daemon.is_some() {
            return;
        }
        self.epochs += 1;
        let epoch = self.epochs;
        let replication = Replication::new(self.options(id, epoch));
        let now = self.now;
        self.fence();
        let roles = self.shape.elected.then(|| self.new_roles(id, epoch));
        let node = self.node(id);
        node.life += 1;
        node.powered = true;
        let kernel = &mut node.kernel;
        kernel.begin_epoch(epoch as u32);
        let mut daemon = Daemon::new(replication, roles);
        // Within its lease it goes on as what it was.
        let elected = daemon.roles.is_some();
        for (group, term) in kernel.owned.iter().enumerate() {
            if let Some(term) = term.filter(|_| !elected) {
                daemon.tell(Letter::Owned(group as Group, term));
            }
        }
        node.daemon = Some(daemon);
        node.begin(now);
        self.elect(id);
        for heard in &mut self.ledgers[usize::from(id) - 1].heard {
            *heard = Reign { turn: heard.turn + 1, ..Reign::default() };
        }
    }

    fn options(&self, id: NodeId, epoch: u64) -> Options {
        let identity = Identity { cluster: cluster_id("edge"), node: id, epoch };
        let mut options = Options::new(identity, self.keys.clone(), &format!("fw{id}"));
        options.zones = vec![11, 12];
        options.peers = self.ids().map(|n| PeerOptions { node: n, name: format!("fw{n}") }).collect();
        let group = |group| GroupOptions {
            buckets: buckets_of(group),
            members: self.ids().filter(|&n| self.shape.is_member(n, group)).collect(),
        };
        options.groups = (0..GROUPS as Group).map(group).collect();
        options.max_flows = self.shape.max_flows;
        options.queue_max = self.shape.queue_max;
        options.links = self.shape.links;
        options.mtu = self.shape.mtu;
        options.bulk_bytes_per_s = self.shape.bulk_bytes_per_s;
        options
    }

    /// The daemon dies; the data plane goes on while the lease lasts.
    pub fn kill_daemon(&mut self, id: NodeId) {
        let node = self.node(id);
        node.daemon = None;
        let life = node.life;
        if !self.shape.elected {
            self.order(LEASE, Order::LeaseEnds(id, life));
        }
    }

    /// The node dies, with its kernel.
    pub fn kill_node(&mut self, id: NodeId) {
        let max_flows = self.shape.max_flows;
        let node = self.node(id);
        node.daemon = None;
        node.powered = false;
        node.kernel = Kernel::new(id, 0, max_flows);
        self.promised.iter_mut().for_each(|flows| _ = flows.remove(&id));
        self.ledgers[usize::from(id) - 1] = Ledger::default();
    }

    // ---- Roles -----------------------------------------------------------------------------------

    /// A node takes a group over, in a term above all others or, as a rival, in the present one. The
    /// others are not told. The data plane owns at once and its daemon hears of it `lag` later; without
    /// a lag, the daemon has been told before.
    pub fn take_over(&mut self, id: NodeId, group: Group, rival: bool, lag: Option<Duration>) {
        let g = usize::from(group);
        if self.node(id).daemon.is_none() {
            return;
        }
        self.terms[g] += u32::from(!rival || self.terms[g] == 0);
        let term = self.terms[g];
        self.reigned.insert((group, term, id));
        let letter = Letter::Owned(group, term);
        match lag {
            Some(lag) => {
                self.node(id).kernel.own(group, Some(term));
                let life = self.node(id).life;
                self.order(lag, Order::Told(id, life, group, term));
            }
            None => {
                let node = self.node(id);
                if let Some(daemon) = &mut node.daemon {
                    daemon.tell(letter);
                    daemon.stalled = Time::ZERO;
                }
                self.turn(id);
                self.node(id).kernel.own(group, Some(term));
            }
        }
    }

    /// A node gives a group up: the data plane first.
    pub fn disown(&mut self, id: NodeId, group: Group) {
        let node = self.node(id);
        node.kernel.own(group, None);
        if let Some(daemon) = &mut node.daemon {
            daemon.tell(Letter::Disowned(group));
        }
    }

    /// Whose flows of a group are the truth: the only node that owns it in the highest term.
    fn owner(&self, group: Group) -> Option<&Node> {
        let g = usize::from(group);
        // Elected nodes may all have left, and forgotten the terms with them.
        let term = if self.shape.elected {
            self.nodes.iter().filter_map(|n| n.kernel.owned[g]).max()?
        } else {
            self.terms[g]
        };
        let mut owners = self.nodes.iter().filter(|n| n.kernel.owned[g] == Some(term));
        let owner = owners.next()?;
        owners.next().is_none().then_some(owner)
    }

    // ---- Time ------------------------------------------------------------------------------------

    /// Lets all that happens within `time` happen.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Lets things happen until `done`, asked whenever something has happened, or until `end`. Whether
    /// it is done.
    pub fn run_until(&mut self, end: Time, done: impl Fn(&Self) -> bool) -> bool {
        let mut turns = 0;
        self.stirred.fill(true);
        while self.violation.is_none() {
            let orders = self.orders.first_key_value().map_or(Time::NEVER, |(key, _)| key.0);
            let mut next = orders.min(self.network.next()).max(self.now);
            for i in 0..self.nodes.len() {
                let [wakes, elects] = self.due(i);
                next = next.min(wakes).min(elects);
            }
            if next > end {
                self.now = end;
                return false;
            }
            turns = if next == self.now { turns + 1 } else { 0 };
            if turns > TURNS_MAX {
                self.violate("busy without end");
                return false;
            }
            self.now = next;
            self.step();
            if done(self) {
                return true;
            }
        }
        false
    }

    /// When a node has something to do: its replication, and its election.
    fn due(&mut self, i: usize) -> [Time; 2] {
        if std::mem::take(&mut self.stirred[i]) {
            let node = &self.nodes[i];
            self.due[i] = [node.wakes(self.now), node.elects(self.now)];
        }
        self.due[i].map(|at| at.max(self.now))
    }

    fn step(&mut self) {
        while let Some(entry) = self.orders.first_entry()
            && entry.key().0 <= self.now
        {
            let order = entry.remove();
            self.obey(order);
            self.stirred.fill(true);
        }
        self.fence();
        if self.shape.elected {
            self.note_reach();
        }
        while let Some(datagram) = self.network.arrival(self.now) {
            self.stirred[usize::from(datagram.to) - 1] = true;
            match datagram.voice {
                Voice::Replication => self.deliver(datagram),
                _ => self.hear(datagram),
            }
        }
        for i in 0..self.nodes.len() {
            let id = self.nodes[i].id;
            if self.nodes[i].daemon.is_some() && self.due(i)[0] <= self.now {
                self.turn(id);
                self.stirred[i] = true;
            }
            if self.due(i)[1] <= self.now {
                self.elect(id);
                self.stirred[i] = true;
            }
        }
        self.check();
        if self.shape.elected {
            self.check_overlap();
        }
    }

    fn deliver(&mut self, mut datagram: Datagram) {
        let (now, to) = (self.now, datagram.to);
        let node = self.node(to);
        let Some(daemon) = &node.daemon else { return };
        if daemon.stalled > now {
            // It waits in the socket.
            let at = daemon.stalled;
            self.network.put(at, datagram);
            return;
        }
        self.arrived += 1;
        self.mark([now.as_nanos(), datagram.from.into(), to.into(), datagram.bytes.len() as u64]);
        let mut effects = Vec::new();
        self.node(to).receive(now, datagram.link, &mut datagram.bytes, &mut effects);
        self.trace(Some(to), || {
            format!("gets {} bytes of fw{} on link {}", datagram.bytes.len(), datagram.from, datagram.link)
        });
        self.apply(to, Some((datagram.from, datagram.claims)), effects);
    }

    fn turn(&mut self, id: NodeId) {
        let now = self.now;
        let mut effects = Vec::new();
        self.node(id).turn(now, &mut effects);
        self.apply(id, None, effects);
    }

    // ---- What nodes do ---------------------------------------------------------------------------

    /// Applies what a node's machine said, after a datagram of `origin`, or without one.
    fn apply(&mut self, id: NodeId, origin: Option<(NodeId, Claims)>, effects: Vec<Effect>) {
        self.touched[usize::from(id) - 1] = true;
        for effect in effects {
            match effect {
                Effect::Transmit(peer, link, bytes) => self.transmit(id, peer, link, bytes),
                Effect::Put(key, flow) => self.put(id, origin, &key, flow),
                Effect::Delete(key, flow, version) => self.delete(id, origin, &key, flow, version),
                Effect::Note(note) => self.trace(Some(id), || note),
                Effect::Wrong(what) => self.violate(format!("fw{id} {what}")),
                Effect::Buried(flow, term) => {
                    self.trace(Some(id), || format!("has deleted {}", name(flow)));
                    let reign = (term.unwrap_or(0), id);
                    let before = self.buried.entry(flow).or_insert(reign);
                    *before = reign.max(*before);
                }
            }
        }
    }

    fn transmit(&mut self, from: NodeId, to: NodeId, link: Option<u8>, bytes: Vec<u8>) {
        if bytes.len() + 28 > usize::from(self.shape.mtu) {
            self.violate(format!("fw{from} sends {} bytes at an MTU of {}", bytes.len(), self.shape.mtu));
        }
        let now = self.now;
        let claims = self.node(from).daemon.as_ref().map_or([None; GROUPS], |d| d.speaks(now));
        let links = link.map_or(0..self.shape.links, |link| link..link + 1);
        for link in links {
            let datagram = Datagram { from, to, link, bytes: bytes.clone(), claims, ..Datagram::default() };
            let (now, length) = (self.now, bytes.len());
            let fate = self.network.send(now, &mut self.random, datagram);
            self.trace(Some(from), || format!("sends {length} bytes to fw{to} on link {link} {fate}"));
        }
    }
}

fn name(flow: FlowId) -> String {
    format!("flow {}.{}.{}", flow.node, flow.epoch, flow.number)
}

/// A flow, for people.
pub fn named(n: Number, flow: FlowId) -> String {
    format!("key {n} {}", name(flow))
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for node in &self.nodes {
            let owned = node.kernel.owned;
            writeln!(text, "fw{}: {} flows in the kernel, owns {owned:?}", node.id, node.kernel.len())?;
            let Some(daemon) = &node.daemon else { continue };
            for s in daemon.replication.status(node.clock(self.now)) {
                let counters: Vec<_> = s.counters.iter().filter(|c| c.1 > 0).collect();
                writeln!(
                    text,
                    "  fw{}: {} for {:?}, lag {:?}, queued {}, unacked {}, sending {:?}, receiving {:?}\n    {counters:?}",
                    s.peer,
                    s.state.as_str(),
                    s.state_for,
                    s.lag,
                    s.queued,
                    s.unacked,
                    s.sending,
                    s.receiving
                )?;
            }
        }
        f.write_str(text.trim_end())
    }
}
