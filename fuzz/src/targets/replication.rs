//! One node's replication: what its data plane does, and peers that have the key and say anything.

use std::time::Duration;

use fwha_common::flow::{Flow, FlowEvent, FlowEventKind, FlowId, FlowKey, FlowState};
use fwha_proto::replication::{Buckets, Options, Output, Ownership, PeerOptions, Replication, rewrite};
use fwha_proto::seal::{Channel, Identity, Opened, Purpose};
use fwha_proto::time::Time;

use crate::input::Input;
use crate::sealing::key;

const ME: Identity = Identity { cluster: 1, node: 1, epoch: 11 };
const PEERS: [Identity; 2] = [Identity { node: 2, epoch: 22, ..ME }, Identity { node: 3, epoch: 33, ..ME }];
/// Few, so that the table fills.
const FLOWS_MAX: usize = 24;
const ZONES: u8 = 2;
const MTU: u16 = 1280;
/// Bytes of IPv4 and UDP headers.
const HEADERS: usize = 28;
/// Ticks that a node may ask for in 300 ms.
const TICKS_MAX: u32 = 10_000;

/// The node, and what is around it.
struct World {
    node: Replication,
    now: Time,
    peers: [(Identity, Channel); 2],
    /// The kernel's map.
    kernel: Vec<(FlowKey, Flow)>,
    /// Flows have changed without an event.
    blind: bool,
    owned: Buckets,
    term: u32,
    flows: u64,
    last: Vec<u8>,
}

/// Plays what the bytes say.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new();
    while !input.is_empty() {
        world.step(&mut input);
        world.check();
    }
    world.pass(Duration::from_millis(300));
    world.reconcile();
    world.check();
    world.check_digests();
}

fn options() -> Options {
    let peers = PEERS.map(|p| PeerOptions { node: p.node, name: format!("fw{}", p.node) });
    Options {
        peers: peers.into(),
        zones: (0..ZONES).map(u32::from).collect(),
        max_flows: FLOWS_MAX,
        mtu: MTU,
        queue_max: 16,
        ..Options::new(ME, key(), "fw1")
    }
}

impl World {
    fn new() -> Self {
        let channel = |peer| (peer, Channel::new(key(), Purpose::Replication, peer, ME.node));
        let mut world = Self {
            node: Replication::new(options()),
            // A time that no unit divides.
            now: Time::from_nanos(3_600_000_123_456),
            peers: PEERS.map(channel),
            kernel: Vec::new(),
            blind: false,
            owned: Buckets::EMPTY,
            term: 0,
            flows: 0,
            last: Vec::new(),
        };
        (0..2).for_each(|p| world.hello(p));
        assert!(world.peers.iter().all(|(_, channel)| channel.is_open()));
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            // Records, each with its length right.
            0..4 => {
                let p = usize::from(input.bool());
                let mut payload = Vec::new();
                for _ in 0..=input.u8() % 8 {
                    let (kind, body) = (input.u8(), input.piece());
                    payload.push(kind);
                    payload.extend((body.len() as u16).to_le_bytes());
                    payload.extend(body);
                }
                self.say(p, &payload);
            }
            4 => {
                let p = usize::from(input.bool());
                self.say(p, input.long_piece());
            }
            5 => self.deliver(self.last.clone()),
            6 => self.deliver(input.piece().to_vec()),
            7 => {
                let p = usize::from(input.bool());
                let (identity, channel) = &mut self.peers[p];
                identity.epoch += 1;
                *channel = Channel::new(key(), Purpose::Replication, *identity, ME.node);
                self.hello(p);
            }
            8 => {
                let (buckets, owned) = (buckets(input.u8()), input.bool());
                self.own(buckets, owned, input.u8());
            }
            9 => self.create(input.u8()),
            10 => self.update(input.u8()),
            11 => self.delete(input.u8()),
            12 => {
                // The data plane's event is lost.
                let n = usize::from(input.u8());
                if n < self.kernel.len() && self.owned.contains(self.kernel[n].1.bucket) {
                    self.kernel.remove(n);
                    self.blind = true;
                }
            }
            13 => self.reconcile(),
            14 => match input.u8() {
                0 => drop(self.node.request_bulk(None)),
                1 => drop(self.node.request_resync(self.now, None)),
                // Whether there is a peer to ask is not the question here.
                2 => drop(self.node.diff(self.now, 2, false)),
                3 => drop(self.node.diff(self.now, 2, true)),
                n => drop(self.node.request_bulk(Some(n))),
            },
            _ => self.pass(Duration::from_micros(u64::from(input.u8()).pow(2) * 4)),
        }
        self.drain();
    }

    // ---- The network and time ----------------------------------------------------------------

    fn hello(&mut self, p: usize) {
        let hello = self.peers[p].1.hello();
        self.deliver(hello);
    }

    fn say(&mut self, p: usize, payload: &[u8]) {
        if let Some(datagram) = self.peers[p].1.seal(payload) {
            self.last.clone_from(&datagram);
            self.deliver(datagram);
        }
    }

    fn deliver(&mut self, mut datagram: Vec<u8>) {
        self.node.datagram(self.now, 0, &mut datagram);
        self.drain();
    }

    /// Lets time pass. A node that always wants to be called again is a busy one.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for tick in 0.. {
            let next = self.node.next_timeout().max(self.now);
            if next > end {
                break;
            }
            assert!(tick < TICKS_MAX, "busy without end");
            self.now = next;
            self.node.tick(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn drain(&mut self) {
        let mut hellos = Vec::new();
        while let Some(output) = self.node.poll() {
            match output {
                Output::Transmit { peer, datagram, .. } => {
                    let p = PEERS.iter().position(|i| i.node == peer).expect("a peer");
                    if self.receive(p, datagram) {
                        hellos.push(p);
                    }
                }
                Output::Put(key, flow) => {
                    assert!(flow.zones().iter().all(|&zone| zone <= ZONES));
                    self.kernel.retain(|(k, _)| *k != key);
                    self.kernel.push((key, flow));
                }
                Output::Delete(key, id, _) => self.kernel.retain(|(k, f)| (*k, f.id()) != (key, id)),
                Output::Confirm(..) | Output::Reconcile(_) | Output::Event(_) | Output::Diff { .. } => {}
            }
        }
        hellos.into_iter().for_each(|p| self.hello(p));
    }

    /// A peer gets a datagram. Whether it is to answer with a hello.
    fn receive(&mut self, p: usize, mut datagram: Vec<u8>) -> bool {
        assert!(datagram.len() + HEADERS <= MTU.into(), "{} bytes", datagram.len());
        match self.peers[p].1.open(&mut datagram) {
            Ok(Opened::Data(payload)) => {
                let records: Result<Vec<_>, _> = rewrite(payload, self.now).into_iter().collect();
                assert_eq!(records.map(|r| r.concat()).as_deref(), Ok(payload), "what is sent can be read");
                false
            }
            Ok(Opened::Hello { reply, .. }) => reply,
            Err(_) => false,
        }
    }

    // ---- The data plane ----------------------------------------------------------------------

    fn own(&mut self, buckets: Buckets, owned: bool, more: u8) {
        if !owned {
            self.node.set_ownership(self.now, buckets, Ownership::NotOwned);
            self.owned = self.owned - buckets;
        } else if let Some(term) = self.term.checked_add(1 + u32::from(more).pow(4)) {
            self.term = term;
            // One group: what it owns, it owns in its newest term.
            let all = self.owned | buckets;
            let refused = self.node.set_ownership(self.now, all, Ownership::Owned { term });
            self.owned = all - refused;
        }
    }

    fn create(&mut self, n: u8) {
        let (key, bucket) = (flow_key(n), n % 8);
        let known = self.kernel.iter().any(|(k, _)| *k == key);
        if known || !self.owned.contains(bucket) || self.kernel.len() == FLOWS_MAX {
            return;
        }
        self.flows += 1;
        let number = self.now.as_nanos() + self.flows;
        let id = FlowId { number, epoch: ME.epoch as u32, node: ME.node, zero: [0; 3] };
        let mut flow = Flow {
            word: Flow::word(FlowState::Established, 0, [1, 2]),
            bucket,
            version: Flow::next_version(0, self.term),
            ..Flow::of(id)
        };
        flow.set_created_ns(number);
        self.kernel.push((key, flow));
        self.event(FlowEventKind::Created, key, flow);
    }

    fn update(&mut self, n: u8) {
        let owned = self.owned;
        let Some((key, flow)) = self.kernel.get_mut(usize::from(n)) else { return };
        // The end of the count is not for a flow to reach.
        if owned.contains(flow.bucket) && flow.version as u32 != u32::MAX {
            flow.version = Flow::next_version(flow.version, self.term);
            flow.ways[0].packets = flow.ways[0].packets.wrapping_add(1);
            let (key, flow) = (*key, *flow);
            self.event(FlowEventKind::Updated, key, flow);
        }
    }

    fn delete(&mut self, n: u8) {
        let n = usize::from(n);
        if n < self.kernel.len() && self.owned.contains(self.kernel[n].1.bucket) {
            let (key, flow) = self.kernel.remove(n);
            self.node.local_delete(self.now, &key, &flow.id());
        }
    }

    fn event(&mut self, kind: FlowEventKind, key: FlowKey, flow: Flow) {
        self.node.local(self.now, &FlowEvent { kind: kind as u32, cpu: 0, key, flow });
    }

    fn reconcile(&mut self) {
        for round in 0.. {
            assert!(round < 3, "what did not fit fits when what is gone is known");
            self.node.reconcile_begin(Buckets::ALL);
            for (key, flow) in &self.kernel {
                self.node.reconcile_seen(self.now, key, flow);
            }
            self.node.reconcile_end(self.now);
            if !self.node.missed() {
                break;
            }
        }
        self.blind = false;
        self.drain();
    }

    // ---- What must hold ----------------------------------------------------------------------

    /// Replica and kernel map hold the same.
    fn check(&self) {
        assert!(self.node.len() <= FLOWS_MAX && self.kernel.len() <= FLOWS_MAX + usize::from(self.blind));
        if self.blind || self.node.missed() {
            return;
        }
        assert_eq!(self.node.len(), self.kernel.len(), "flows of replica and kernel map");
        for (key, flow) in &self.kernel {
            let same = |f: Flow| (f.id(), f.version, f.bucket, f.state());
            assert_eq!(self.node.get(key).map(same), Some(same(*flow)));
        }
    }

    /// The digests are those of a replica that has only ever known what is there now.
    fn check_digests(&self) {
        let mut fresh = Replication::new(options());
        fresh.reconcile_begin(Buckets::ALL);
        for (key, flow) in &self.kernel {
            fresh.reconcile_seen(self.now, key, flow);
        }
        fresh.reconcile_end(self.now);
        for bucket in 0..=u8::MAX {
            assert_eq!(self.node.digest(bucket), fresh.digest(bucket), "digest of bucket {bucket}");
        }
    }
}

/// Eight of the buckets, by bits.
fn buckets(bits: u8) -> Buckets {
    (0..8).filter(|bucket| bits >> bucket & 1 != 0).collect()
}

fn flow_key(n: u8) -> FlowKey {
    let (src, dst) = (u32::from_ne_bytes([192, 168, 100, 100]), u32::from_ne_bytes([10, 0, 0, 128]));
    FlowKey::v4(src, dst, u16::from(n).to_be(), 22u16.to_be(), 6).0
}
