//! A model of what a node's kernel holds: the flow table, the data plane that owns groups and writes
//! flows, and the ring that tells the daemon of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fwha_common::flow::{Flow, FlowEvent, FlowEventKind, FlowId, FlowKey, FlowState};
use fwha_proto::NodeId;
use fwha_proto::replication::Buckets;
use fwha_proto::time::Time;

use super::{BUCKETS_USED, GROUPS, Group, bucket_of, group_of};

/// Events that the ring holds.
const RING: usize = 64;
/// Port of the other end of all flows.
const SERVICE: u16 = 22;
/// The first port of clients.
const FIRST_PORT: u16 = 1000;

/// The number of a flow's key: all that tells the model's keys apart.
pub type Number = u16;

/// The key with a number.
pub fn key_of(n: Number) -> FlowKey {
    let (client, server) = (u32::from_ne_bytes([192, 168, 100, 100]), u32::from_ne_bytes([10, 0, 0, 128]));
    FlowKey::v4(client, server, (FIRST_PORT + n).to_be(), SERVICE.to_be(), 6).0
}

/// The number of a key.
pub fn number_of(key: &FlowKey) -> Number {
    u16::from_be(key.port_a).max(u16::from_be(key.port_b)) - FIRST_PORT
}

/// See the module.
#[derive(Debug)]
pub struct Kernel {
    node: NodeId,
    epoch: u32,
    numbers: u64,
    max_flows: usize,
    flows: BTreeMap<Number, Flow>,
    sums: [u64; BUCKETS_USED],
    /// The term in which the data plane owns each group.
    pub owned: [Option<u32>; GROUPS],
    /// Until when, by this node's clock.
    pub lease: [Time; GROUPS],
    /// Since when.
    pub since: [Time; GROUPS],
    /// The term in which it owned each group last.
    pub terms: [u32; GROUPS],
    /// Groups handed over that it still forwards for: in which term, until when.
    pub leaving: [Option<(u32, Time)>; GROUPS],
    ring: VecDeque<FlowEvent>,
    /// So many of the next changes are not told.
    pub lose: usize,
    /// Buckets of which the daemon has missed something, and does not know yet.
    pub lost: Buckets,
}

impl Kernel {
    /// An empty table.
    pub fn new(node: NodeId, epoch: u32, max_flows: usize) -> Self {
        Self {
            node,
            epoch,
            numbers: 0,
            max_flows,
            flows: BTreeMap::new(),
            sums: [0; BUCKETS_USED],
            owned: [None; GROUPS],
            lease: [Time::NEVER; GROUPS],
            since: [Time::ZERO; GROUPS],
            terms: [0; GROUPS],
            leaving: [None; GROUPS],
            ring: VecDeque::new(),
            lose: 0,
            lost: Buckets::EMPTY,
        }
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// A flow.
    pub fn get(&self, n: Number) -> Option<&Flow> {
        self.flows.get(&n)
    }

    /// Flows from this number on, ascending.
    pub fn from(&self, n: Number) -> impl Iterator<Item = (Number, &Flow)> {
        self.flows.range(n..).map(|(&n, flow)| (n, flow))
    }

    /// A hash of each bucket's identities and versions, of another kind than replication's digests.
    pub const fn sums(&self) -> &[u64; BUCKETS_USED] {
        &self.sums
    }

    /// Writes a flow; `false` if the table is full.
    pub fn write(&mut self, n: Number, flow: Flow) -> bool {
        if self.flows.len() >= self.max_flows && !self.flows.contains_key(&n) {
            return false;
        }
        self.remove(n);
        self.add(n, &flow);
        self.flows.insert(n, flow);
        true
    }

    /// Deletes a flow.
    pub fn remove(&mut self, n: Number) -> Option<Flow> {
        let flow = self.flows.remove(&n)?;
        let sum = &mut self.sums[usize::from(flow.bucket)];
        *sum = sum.wrapping_sub(hash(n, &flow));
        Some(flow)
    }

    fn add(&mut self, n: Number, flow: &Flow) {
        let sum = &mut self.sums[usize::from(flow.bucket)];
        *sum = sum.wrapping_add(hash(n, flow));
    }

    // ---- The data plane ------------------------------------------------------------------------

    /// The term in which it changes a flow.
    fn term_of(&self, now: Time, n: Number) -> Option<u32> {
        let g = usize::from(group_of(bucket_of(n)));
        let leaving = self.leaving[g].filter(|&(_, until)| now < until);
        self.owned[g].or(leaving.map(|(term, _)| term))
    }

    /// Whether it forwards packets of a group.
    pub fn forwards(&self, now: Time, group: Group) -> bool {
        let g = usize::from(group);
        self.owned[g].is_some() || self.leaving[g].is_some_and(|(_, until)| now < until)
    }

    /// What it owns whose lease is over, it does not own.
    pub fn fence(&mut self, now: Time) {
        for g in 0..GROUPS {
            if self.lease[g] <= now {
                self.owned[g] = None;
            }
        }
    }

    /// How long the longest lease still runs.
    pub fn longest_lease(&self, now: Time) -> Duration {
        let leases = (0..GROUPS).filter(|&g| self.owned[g].is_some()).map(|g| self.lease[g].since(now));
        leases.max().unwrap_or_default()
    }

    /// A new connection, also over one that has ended and still has its place.
    pub fn create(&mut self, now: Time, n: Number) -> Option<(FlowId, u64)> {
        let term = self.term_of(now, n)?;
        // A CPU in the low bits, as the data plane has it, keeps numbers of the same instant apart.
        self.numbers += 1;
        let mut flow = Flow {
            word: Flow::word(FlowState::Established, 0, [1, 2]),
            bucket: bucket_of(n),
            version: Flow::next_version(0, term),
            ..Flow::of(FlowId {
                number: now.as_nanos() + self.numbers,
                epoch: self.epoch,
                node: self.node,
                zero: [0; 3],
            })
        };
        flow.set_created_ns(now.as_nanos());
        self.write(n, flow).then(|| self.tell(FlowEventKind::Created, n))
    }

    /// A flow's state changes.
    pub fn update(&mut self, now: Time, n: Number) -> Option<(FlowId, u64)> {
        let term = self.term_of(now, n)?;
        let mut flow = self.remove(n)?;
        flow.version = Flow::next_version(flow.version, term);
        flow.ways[0].packets += 1;
        flow.ways[0].last_seen_ns = now.as_nanos();
        self.write(n, flow);
        Some(self.tell(FlowEventKind::Updated, n))
    }

    fn tell(&mut self, kind: FlowEventKind, n: Number) -> (FlowId, u64) {
        let flow = self.flows[&n];
        if self.lose > 0 || self.ring.len() == RING {
            self.lose = self.lose.saturating_sub(1);
            self.lost.insert(flow.bucket);
        } else {
            self.ring.push_back(FlowEvent { kind: kind as u32, cpu: 0, key: key_of(n), flow });
        }
        (flow.id(), flow.version)
    }

    /// The sweeper deletes a flow; `None` also if its daemon never hears of it.
    pub fn expire(&mut self, n: Number) -> Option<(FlowId, bool)> {
        self.owned[usize::from(group_of(bucket_of(n)))]?;
        let flow = self.remove(n)?;
        let told = self.lose == 0;
        if !told {
            self.lose -= 1;
            self.lost.insert(flow.bucket);
        }
        Some((flow.id(), told))
    }

    /// The next event of the ring.
    pub fn event(&mut self) -> Option<FlowEvent> {
        self.ring.pop_front()
    }

    /// Whether the ring holds something.
    pub fn has_events(&self) -> bool {
        !self.ring.is_empty()
    }

    /// A daemon starts: the flows to come carry its epoch, and it looks at the table itself.
    pub fn begin_epoch(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.lost = Buckets::EMPTY;
    }

    /// A group is owned by the data plane, in this term, or not.
    pub fn own(&mut self, group: Group, term: Option<u32>) {
        let g = usize::from(group);
        self.owned[g] = term;
        self.leaving[g] = None;
        self.terms[g] = term.unwrap_or(self.terms[g]);
    }
}

/// FNV-1a over what two tables must agree on.
fn hash(n: Number, flow: &Flow) -> u64 {
    let maker = u64::from(flow.epoch) << 8 | u64::from(flow.node);
    [u64::from(n), flow.number, maker, flow.version, u64::from(flow.state() as u8)]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
