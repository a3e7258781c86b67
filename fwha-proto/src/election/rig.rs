//! Several nodes in virtual time, with the network and the data planes between them.
//!
//! Everything follows from the seed: latencies, losses, the order of what happens at the same time.
//! The rig also checks, after every output, what must hold whatever happens: the order of a
//! takeover, that leases are renewed by owners only, and that terms rise.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use fwha_common::probe::{Probe, ProbeKind};

use super::reach::Survey;
use super::*;
use crate::seal::{ClusterKey, Identity, cluster_id};
use crate::vrrp::packet::{Advert, Envelope, Version};

/// What a socket buffer holds for a daemon that does not run.
const SOCKET_BUFFER: usize = 160;

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// SplitMix64: small, and good enough to draw faults.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Packet {
    Heartbeat {
        link: u8,
        bytes: Vec<u8>,
    },
    Vrrp {
        zone: u8,
        src: IpAddr,
        dst: IpAddr,
        ttl: u8,
        bytes: Vec<u8>,
    },
    /// A round of questions is over.
    Surveyed {
        zone: u8,
    },
    /// The answer of a witness.
    Echo {
        address: IpAddr,
        nonce: u64,
    },
    /// Kind, lease and nonce are all that the rig needs; the frame is made again at the receiver.
    Request {
        via: Via,
        from: NodeId,
        nonce: u64,
    },
    Reply {
        via: Via,
        from: NodeId,
        flags: u8,
        lease_ms: u32,
        nonce: u64,
    },
}

/// A machine: power, daemon, and the data plane that outlives the daemon.
pub struct Machine {
    pub election: Option<Election>,
    pub powered: bool,
    pub hung: bool,
    inbox: VecDeque<(Time, Packet)>,
    /// The data plane's ownership by group: term and end of lease.
    pub owned: BTreeMap<GroupId, (u32, Time)>,
    since: BTreeMap<GroupId, Time>,
    pub vips: BTreeSet<GroupId>,
    pub announced: Vec<(Time, GroupId)>,
    pub adverts: Vec<(Time, GroupId, u8)>,
    pub events: Vec<(Time, Event)>,
    pub takeovers: Vec<(Time, GroupId, u32)>,
    pub done: bool,
    epoch: u64,
    highest: BTreeMap<GroupId, u32>,
}

/// Changes a node's config before it starts.
type Shape = Box<dyn Fn(NodeId, &mut Config)>;

pub struct Rig {
    pub now: Time,
    pub rng: Rng,
    pub nodes: Vec<Machine>,
    pub loss_permille: u64,
    pub jitter: Duration,
    pub latency: Duration,
    /// Paths that carry nothing: from, to, interface.
    cuts: BTreeSet<(NodeId, NodeId, Via)>,
    /// Interfaces without carrier.
    down: BTreeSet<(NodeId, Via)>,
    /// Nodes that no witness answers.
    pub unwitnessed: BTreeSet<NodeId>,
    /// Nodes of which no frame gets out in a zone, although the carrier is there.
    pub mute: BTreeSet<(NodeId, u8)>,
    /// Zones whose neighbours are gone.
    pub deserted: BTreeSet<u8>,
    /// Nodes that ask nobody.
    pub no_surveys: BTreeSet<NodeId>,
    surveys: BTreeMap<(NodeId, u8), Time>,
    /// How long a witness takes to answer.
    pub witness_trip: Duration,
    /// Interfaces that carry everything but probes.
    pub no_probes: BTreeSet<Via>,
    /// Whether a daemon that hung reads kernel arrival stamps.
    pub stamps: bool,
    /// A replica is complete at once whenever both daemons run.
    pub replicate: bool,
    queue: BinaryHeap<Reverse<(Time, u64, NodeId, Packet)>>,
    order: u64,
    vias: Vec<Via>,
    shape: Shape,
}

pub fn key() -> ClusterKey {
    ClusterKey::new([7; 32])
}

pub fn zone_address(node: NodeId, zone: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, zone, 0, node)
}

/// As [`zone_address`], for IPv6.
pub fn zone_link_local(node: NodeId, zone: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, zone.into(), node.into())
}

fn mac(node: NodeId, via: Via) -> [u8; 6] {
    match via {
        Via::Sync(n) => [2, 0, 0, node, 0, n],
        Via::Zone(n) => [2, 0, 0, node, 1, n],
    }
}

/// A node's interface, up.
pub fn interface(node: NodeId, via: Via) -> (Via, Interface) {
    let net = match via {
        Via::Zone(zone) => zone,
        Via::Sync(link) => 100 + link,
    };
    let (mac, address, link_local) = (mac(node, via), zone_address(node, net), zone_link_local(node, net));
    (via, Interface { mac, address, link_local, carrier: true })
}

/// One group over two zones, all nodes members, the first preferred.
pub fn config(nodes: u8, node: NodeId, epoch: u64) -> Config {
    let members: Vec<_> = (1..=nodes).map(|n| (n, 200 - n * 50)).collect();
    let vias = [Via::Sync(0), Via::Zone(1), Via::Zone(2)];
    Config {
        identity: Identity { cluster: cluster_id("edge"), node, epoch },
        keys: key().into(),
        probe_key: key().siphash_key("probe"),
        config_hash: 1,
        heartbeat_interval: ms(10),
        lease: ms(1000),
        handover_timeout: ms(1000),
        preempt_wait: ms(10_000),
        nodes: (1..=nodes).map(|node| NodeConfig { node, name: format!("fw{node}") }).collect(),
        zones: vec![(1, "inet".into()), (2, "lan".into())],
        interfaces: vias.map(|via| interface(node, via)).into(),
        groups: vec![group(0, members)],
        trackers: vec![],
        witnesses: vec![],
        standby: false,
    }
}

pub fn group(id: GroupId, members: Vec<(NodeId, u8)>) -> GroupConfig {
    let instance = |zone: u8| Instance {
        zone,
        vrid: 60 + id * 10 + zone,
        addresses: vec![Ipv4Addr::new(10, zone, 1, id).into()],
        peers: vec![],
    };
    GroupConfig {
        group: id,
        name: format!("g{id}"),
        members,
        preempt: false,
        preempt_delay: Duration::ZERO,
        advert_interval_cs: 100,
        version: Version::default(),
        hmac: None,
        announce: Announce::default(),
        instances: vec![instance(1), instance(2)],
        start: Start::default(),
    }
}

impl Rig {
    /// `nodes` machines, all off. `shape` may change each node's config.
    pub fn new(nodes: u8, seed: u64, shape: impl Fn(NodeId, &mut Config) + 'static) -> Self {
        let mut sample = config(nodes, 1, 1);
        shape(1, &mut sample);
        let machine = |n: u8| Machine {
            election: None,
            powered: false,
            hung: false,
            inbox: VecDeque::new(),
            owned: BTreeMap::new(),
            since: BTreeMap::new(),
            vips: BTreeSet::new(),
            announced: vec![],
            adverts: vec![],
            events: vec![],
            takeovers: vec![],
            done: false,
            epoch: u64::from(n) << 32,
            highest: BTreeMap::new(),
        };
        Self {
            now: Time::from_millis(1_000_000),
            rng: Rng(seed),
            nodes: (1..=nodes).map(machine).collect(),
            loss_permille: 0,
            jitter: Duration::from_micros(100),
            latency: Duration::from_micros(100),
            cuts: BTreeSet::new(),
            down: BTreeSet::new(),
            unwitnessed: BTreeSet::new(),
            mute: BTreeSet::new(),
            deserted: BTreeSet::new(),
            no_surveys: BTreeSet::new(),
            surveys: BTreeMap::new(),
            witness_trip: ms(1),
            no_probes: BTreeSet::new(),
            stamps: true,
            replicate: true,
            queue: BinaryHeap::new(),
            order: 0,
            vias: sample.interfaces.iter().map(|(via, _)| *via).collect(),
            shape: Box::new(shape),
        }
    }

    /// Two nodes that have been up for long enough to have elected the first.
    pub fn pair(seed: u64) -> Self {
        Self::pair_with(seed, |_, _| {})
    }

    pub fn pair_with(seed: u64, shape: impl Fn(NodeId, &mut Config) + 'static) -> Self {
        let mut rig = Self::new(2, seed, shape);
        rig.start(1);
        rig.start(2);
        rig.run(ms(6000));
        assert_eq!(rig.actives(0), [1], "seed {seed}");
        rig
    }

    pub fn node(&self, n: NodeId) -> &Machine {
        &self.nodes[usize::from(n) - 1]
    }

    pub fn node_mut(&mut self, n: NodeId) -> &mut Machine {
        &mut self.nodes[usize::from(n) - 1]
    }

    /// Whether its daemon runs.
    pub fn runs(&self, n: NodeId) -> bool {
        self.node(n).election.is_some() && !self.node(n).hung
    }

    pub fn ids(&self) -> Vec<NodeId> {
        (1..=self.nodes.len() as u8).collect()
    }

    pub fn election(&mut self, n: NodeId) -> &mut Election {
        self.node_mut(n).election.as_mut().expect("the daemon runs")
    }

    /// Starts the daemon; it resumes what its data plane still owns.
    pub fn start(&mut self, n: NodeId) {
        let (now, count) = (self.now, self.nodes.len() as u8);
        let m = self.node_mut(n);
        assert!(m.election.is_none());
        (m.powered, m.hung, m.done) = (true, false, false);
        m.epoch += 1;
        m.inbox.clear();
        let mut config = config(count, n, m.epoch);
        (self.shape)(n, &mut config);
        for (via, interface) in &mut config.interfaces {
            interface.carrier = !self.down.contains(&(n, *via));
        }
        let m = self.node_mut(n);
        for g in &mut config.groups {
            if let Some(&(term, until)) = m.owned.get(&g.group)
                && until > now
            {
                g.start = Start { term, owned_since: m.since.get(&g.group).copied() };
            } else {
                m.owned.remove(&g.group);
                m.vips.remove(&g.group);
            }
        }
        m.highest = config.groups.iter().map(|g| (g.group, g.start.term)).collect();
        let election = Election::new(now, config).expect("a good config");
        // What is not resumed is given up, as the daemon does at its start.
        for group in election.status(now).groups.iter().filter(|g| g.role != Role::Active) {
            m.owned.remove(&group.group);
            m.vips.remove(&group.group);
        }
        m.election = Some(election);
        self.drain(n);
        self.report_sync();
    }

    /// The power fails.
    pub fn kill(&mut self, n: NodeId) {
        let m = self.node_mut(n);
        (m.powered, m.election) = (false, None);
        (m.owned, m.vips, m.since) = Default::default();
        m.inbox.clear();
        self.report_sync();
    }

    /// The daemon dies; the data plane goes on with what it has.
    pub fn kill_daemon(&mut self, n: NodeId) {
        self.node_mut(n).election = None;
        self.node_mut(n).inbox.clear();
        self.report_sync();
    }

    pub fn hang(&mut self, n: NodeId) {
        self.node_mut(n).hung = true;
    }

    pub fn resume(&mut self, n: NodeId) {
        let (now, stamps) = (self.now, self.stamps);
        let m = self.node_mut(n);
        m.hung = false;
        for (at, packet) in std::mem::take(&mut m.inbox) {
            self.deliver(n, if stamps { at } else { now }, packet);
        }
        self.tell_carriers(n);
    }

    /// Nothing goes from `from` to `to` by `via` any more.
    pub fn cut(&mut self, from: NodeId, to: NodeId, via: Via) {
        self.cuts.insert((from, to, via));
    }

    pub fn cut_both(&mut self, via: Via) {
        for (a, b) in self.pairs() {
            self.cut(a, b, via);
        }
    }

    /// The node is alone; its carriers stay.
    pub fn isolate(&mut self, n: NodeId) {
        for (a, b) in self.pairs() {
            if a == n || b == n {
                for via in self.vias.clone() {
                    self.cut(a, b, via);
                }
            }
        }
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
        self.mute.clear();
        self.deserted.clear();
    }

    /// Whether two daemons run, and reach each other both ways by one of these interfaces.
    pub fn hear_each_other(&self, a: NodeId, b: NodeId, by: impl Fn(Via) -> bool) -> bool {
        let runs = |n| {
            let m = self.node(n);
            m.powered && !m.hung && m.election.is_some()
        };
        let open = |via: Via| !self.is_lost(a, b, via) && !self.is_lost(b, a, via);
        runs(a) && runs(b) && self.vias.iter().any(|&via| by(via) && open(via))
    }

    /// Whether any way to another machine is left.
    pub fn is_cut_off(&self, n: NodeId) -> bool {
        let open = |other: NodeId, via: Via| !self.is_lost(n, other, via) && !self.is_lost(other, n, via);
        let reaches =
            |other: NodeId| self.node(other).powered && self.vias.iter().any(|&via| open(other, via));
        !self.ids().into_iter().any(|other| other != n && reaches(other))
    }

    fn pairs(&self) -> Vec<(NodeId, NodeId)> {
        let ids = self.ids();
        ids.iter().flat_map(|&a| ids.iter().map(move |&b| (a, b))).filter(|(a, b)| a != b).collect()
    }

    /// Plugs a cable in or out.
    pub fn carrier(&mut self, n: NodeId, via: Via, up: bool) {
        if up {
            self.down.remove(&(n, via));
        } else {
            self.down.insert((n, via));
        }
        if !self.node(n).hung {
            self.tell_carriers(n);
            self.settle(n);
        }
    }

    fn tell_carriers(&mut self, n: NodeId) {
        let now = self.now;
        let carriers: Vec<_> = self.vias.iter().map(|&via| (via, !self.down.contains(&(n, via)))).collect();
        if let Some(election) = &mut self.node_mut(n).election {
            for (via, up) in carriers {
                election.carrier(now, via, up);
            }
        }
    }

    /// A node's tracker has another verdict.
    pub fn track(&mut self, n: NodeId, id: u32, state: State) {
        let now = self.now;
        let text = format!("it is {}", state.as_str());
        let report = Report { state, since: now, failure: text.clone(), text, ..Report::default() };
        self.command(n, |e, _| e.tracker(now, id, report));
    }

    /// Gives a command and lets the node act on it.
    pub fn command<T>(&mut self, n: NodeId, command: impl FnOnce(&mut Election, Time) -> T) -> T {
        let now = self.now;
        let result = command(self.election(n), now);
        self.settle(n);
        result
    }

    /// Sends a VRRP packet to a node as if from `src`.
    pub fn forge(&mut self, to: NodeId, zone: u8, src: IpAddr, ttl: u8, bytes: Vec<u8>) {
        self.forge_in(to, zone, Envelope { ttl, ..Envelope::multicast(src) }, bytes);
    }

    /// The same with any envelope.
    pub fn forge_in(&mut self, to: NodeId, zone: u8, envelope: Envelope, bytes: Vec<u8>) {
        let Envelope { src, dst, ttl } = envelope;
        self.deliver(to, self.now, Packet::Vrrp { zone, src, dst, ttl, bytes });
        self.settle(to);
    }

    pub fn forge_heartbeat(&mut self, to: NodeId, bytes: Vec<u8>) {
        self.deliver(to, self.now, Packet::Heartbeat { link: 0, bytes });
        self.settle(to);
    }

    pub fn role(&self, n: NodeId, group: GroupId) -> Option<Role> {
        let status = self.node(n).election.as_ref()?.status(self.now);
        status.groups.iter().find(|g| g.group == group).map(|g| g.role)
    }

    pub fn peer_state(&self, n: NodeId, peer: NodeId) -> PeerState {
        let status = self.node(n).election.as_ref().expect("runs").status(self.now);
        status.peers.iter().find(|p| p.node == peer).expect("configured").state
    }

    pub fn counter(&self, n: NodeId, family: &str, name: &str) -> u64 {
        self.node(n).election.as_ref().expect("runs").status(self.now).counters.get(family, name)
    }

    /// Nodes whose data plane owns the group now.
    pub fn actives(&self, group: GroupId) -> Vec<NodeId> {
        let owns = |m: &Machine| m.powered && m.owned.get(&group).is_some_and(|&(_, until)| self.now < until);
        self.ids().into_iter().filter(|&n| owns(self.node(n))).collect()
    }

    /// The events of a node since the given time.
    pub fn events(&self, n: NodeId, since: Time) -> Vec<&Event> {
        self.node(n).events.iter().filter(|(at, _)| *at >= since).map(|(_, e)| e).collect()
    }

    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.step(end) {}
    }

    /// Runs until the condition holds; how long that took, or `None` after `limit`.
    pub fn run_until(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        let end = start + limit;
        loop {
            if holds(self) {
                return Some(self.now.since(start));
            }
            if !self.step(end) {
                return None;
            }
        }
    }

    /// Goes to the next moment at which anything happens, at most to `end`; false if that is reached.
    pub fn step(&mut self, end: Time) -> bool {
        let timers = self.nodes.iter().filter(|m| m.powered && !m.hung);
        let timers = timers.filter_map(|m| m.election.as_ref()).map(Election::next_timeout);
        let arrival = self.queue.peek().map(|Reverse((at, ..))| *at);
        let next = timers.chain(arrival).min().unwrap_or(Time::NEVER).max(self.now);
        if next > end {
            self.now = end;
            return false;
        }
        self.now = next;
        let mut touched = BTreeSet::new();
        while let Some(Reverse((at, ..))) = self.queue.peek()
            && *at <= self.now
        {
            let Some(Reverse((at, _, to, packet))) = self.queue.pop() else { break };
            self.deliver(to, at, packet);
            touched.insert(to);
        }
        for n in self.ids() {
            let m = self.node(n);
            let due = m.election.as_ref().is_some_and(|e| e.next_timeout() <= next);
            if m.powered && !m.hung && (due || touched.contains(&n)) {
                self.settle(n);
            }
        }
        true
    }

    /// What the shell does after input: tick if it is due, then carry out the outputs.
    fn settle(&mut self, n: NodeId) {
        let now = self.now;
        let m = self.node_mut(n);
        if m.hung || !m.powered {
            return;
        }
        if let Some(election) = &mut m.election {
            election.wall_clock(now, now.since(Time::ZERO));
            if election.next_timeout() <= now {
                election.tick(now);
                assert!(election.next_timeout() > now, "a tick must do all that is due");
            }
            self.drain(n);
        }
    }

    fn deliver(&mut self, n: NodeId, at: Time, packet: Packet) {
        let now = self.now;
        let m = self.node_mut(n);
        if !m.powered {
            return;
        }
        if let Packet::Request { via, from, nonce } = packet {
            let until = m.owned.values().map(|&(_, until)| until).max().unwrap_or(Time::ZERO);
            let left = until.since(now).as_millis() as u32;
            let flags = if until > now { Probe::OWNS } else { 0 };
            return self.send(n, from, via, Packet::Reply { via, from: n, flags, lease_ms: left, nonce });
        }
        if m.hung {
            if m.inbox.len() < SOCKET_BUFFER {
                m.inbox.push_back((at, packet));
            }
            return;
        }
        if let Packet::Surveyed { zone } = packet {
            return self.surveyed(n, at, zone);
        }
        let Some(election) = &mut m.election else { return };
        match packet {
            Packet::Heartbeat { link, mut bytes } => election.heartbeat_datagram(at, link, &mut bytes),
            Packet::Vrrp { zone, src, dst, ttl, bytes } => {
                election.vrrp_packet(at, zone, &Envelope { src, dst, ttl }, &bytes);
            }
            Packet::Reply { via, from, flags, lease_ms, nonce } => {
                let key = key().siphash_key("probe");
                let mut reply = Probe::request(&key, cluster_id("edge"), from, n, nonce);
                (reply.kind, reply.flags) = (ProbeKind::Reply as u8, flags);
                reply.lease_ms = lease_ms.to_le_bytes();
                reply.seal(&key);
                election.probe_reply(at, via, &reply);
            }
            Packet::Echo { address, nonce } => election.witness_reply(at, address, nonce),
            Packet::Request { .. } | Packet::Surveyed { .. } => {}
        }
    }

    /// What a node finds that asked in a zone just now. It has one neighbour there.
    fn surveyed(&mut self, n: NodeId, at: Time, zone: u8) {
        let via = Via::Zone(zone);
        let asked_lately = |p| self.surveys.get(&(p, zone)).is_some_and(|&asked| at.since(asked) < ms(400));
        let hears = |p: &NodeId| *p != n && asked_lately(*p) && !self.is_lost(*p, n, via);
        let heard = self.ids().into_iter().filter(hears).collect();
        let well = !self.mute.contains(&(n, zone))
            && !self.down.contains(&(n, via))
            && !self.deserted.contains(&zone);
        let neighbours = vec![Ipv4Addr::new(10, zone, 0, 200)];
        let survey = Survey { neighbours, asked: 1, answered: usize::from(well), heard };
        if let Some(election) = &mut self.node_mut(n).election {
            election.surveyed(at, zone, survey);
        }
    }

    /// Whether a path carries nothing.
    fn is_lost(&self, from: NodeId, to: NodeId, via: Via) -> bool {
        let mute = matches!(via, Via::Zone(zone) if self.mute.contains(&(from, zone)));
        let down = self.down.contains(&(from, via)) || self.down.contains(&(to, via));
        mute || down || self.cuts.contains(&(from, to, via))
    }

    fn send(&mut self, from: NodeId, to: NodeId, via: Via, packet: Packet) {
        let probe = matches!(packet, Packet::Request { .. } | Packet::Reply { .. });
        if self.is_lost(from, to, via) || (probe && self.no_probes.contains(&via)) {
            return;
        }
        if self.loss_permille > 0 && self.rng.chance(self.loss_permille) {
            return;
        }
        let jitter = self.rng.below(self.jitter.as_nanos() as u64 + 1);
        self.order += 1;
        let at = self.now + self.latency + Duration::from_nanos(jitter);
        self.queue.push(Reverse((at, self.order, to, packet)));
    }

    /// Carries out what a node says, and checks it.
    fn drain(&mut self, n: NodeId) {
        let now = self.now;
        let mut advertised = BTreeSet::new();
        while let Some(output) = self.node_mut(n).election.as_mut().and_then(Election::poll) {
            let m = self.node_mut(n);
            match output {
                Output::Heartbeat { link, peer, bytes } => {
                    self.send(n, peer, Via::Sync(link), Packet::Heartbeat { link, bytes });
                }
                Output::Advertise { group, zone, to: dst, bytes, .. } => {
                    advertised.insert(group);
                    let (_, from) = interface(n, Via::Zone(zone));
                    let src = from.source(dst.is_ipv6()).expect("the rig's nodes have both");
                    let envelope = Envelope { dst, ..Envelope::multicast(src) };
                    let parsed = match bytes[0] >> 4 {
                        2 => Advert::parse_v2(&envelope, &bytes).map(|(advert, _)| advert),
                        _ => Advert::parse(&envelope, &bytes).map(|(advert, _)| advert),
                    };
                    let advert = parsed.expect("our own adverts are good");
                    m.adverts.push((now, group, advert.priority));
                    let has = |to| interface(to, Via::Zone(zone)).1.source(dst.is_ipv6()) == Some(dst);
                    let ids = self.ids().into_iter();
                    for to in ids.filter(|&to| to != n && (dst.is_multicast() || has(to))) {
                        let packet = Packet::Vrrp { zone, src, dst, ttl: 255, bytes: bytes.clone() };
                        self.send(n, to, Via::Zone(zone), packet);
                    }
                }
                Output::Probe { peer, via, mac: to, probe } => {
                    assert!(to == mac(peer, via) || to == [0xff; 6]);
                    let nonce = u64::from_le_bytes(probe.nonce);
                    self.send(n, peer, via, Packet::Request { via, from: n, nonce });
                }
                Output::Survey { zone, .. } => {
                    if self.no_surveys.contains(&n) {
                        continue;
                    }
                    self.surveys.insert((n, zone), now);
                    self.order += 1;
                    let at = now + super::reach::LISTEN;
                    self.queue.push(Reverse((at, self.order, n, Packet::Surveyed { zone })));
                }
                Output::AskWitness { address, nonce } => {
                    if !self.unwitnessed.contains(&n) {
                        self.order += 1;
                        let (at, order) = (self.now + self.witness_trip, self.order);
                        self.queue.push(Reverse((at, order, n, Packet::Echo { address, nonce })));
                    }
                }
                Output::Own { group, term, since, until } => {
                    assert!(advertised.contains(&group), "advert before ownership");
                    assert!(
                        !m.vips.contains(&group) || m.owned.contains_key(&group),
                        "ownership before addresses"
                    );
                    let resumed = since < now && m.owned.contains_key(&group);
                    let highest = m.highest.entry(group).or_default();
                    assert!(term > *highest || (resumed && term == *highest), "terms rise");
                    *highest = term;
                    m.owned.insert(group, (term, until));
                    m.since.insert(group, since);
                    m.takeovers.push((now, group, term));
                }
                Output::Disown { group, .. } => {
                    assert!(!m.vips.contains(&group), "addresses go before the ownership");
                    assert!(m.owned.remove(&group).is_some());
                    m.since.remove(&group);
                }
                Output::RenewLease { group, until } => {
                    m.owned.get_mut(&group).expect("owners only renew").1 = until;
                }
                Output::AddVips { group } => {
                    assert!(m.owned.contains_key(&group), "ownership before addresses");
                    m.vips.insert(group);
                }
                Output::RemoveVips { group } => assert!(m.vips.remove(&group)),
                Output::Announce { group } => {
                    assert!(m.vips.contains(&group), "addresses before their announcement");
                    m.announced.push((now, group));
                }
                Output::Event(event) => m.events.push((now, event)),
                Output::ShutdownComplete => {
                    assert!(m.owned.is_empty() && m.vips.is_empty(), "nothing is left behind");
                    m.done = true;
                }
            }
        }
        if self.node(n).done {
            self.kill_daemon(n);
        }
    }

    /// What replication would say: replicas of running peers are complete.
    fn report_sync(&mut self) {
        let now = self.now;
        for (a, b) in self.pairs() {
            let in_sync = self.replicate && self.node(b).election.is_some();
            if let Some(election) = &mut self.node_mut(a).election {
                election.sync_status(now, b, in_sync, 0);
            }
        }
    }
}
