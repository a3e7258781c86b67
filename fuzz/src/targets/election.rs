//! One node's election: peers that have the key and say anything, strangers on the zones, and an operator.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use fwha_common::probe::{Probe, ProbeKind};
use fwha_common::rule::name_hash;
use fwha_proto::election::reach::Survey;
use fwha_proto::election::{
    Announce, Config, Effect, Election, GroupConfig, Instance, NodeConfig, Output, Start, TrackerConfig,
};
use fwha_proto::heartbeat::{
    Cause, GroupRecord, Heartbeat, Interface, LEN_MAX, NodeState, PeerState, Role, Via, ZoneReach,
};
use fwha_proto::seal::{Channel, Identity, OVERHEAD, Opened, Purpose};
use fwha_proto::time::Time;
use fwha_proto::tracker::{Report, State};
use fwha_proto::vrrp::packet::{Advert, Auth, Checksum, Envelope, TTL, Version};

use super::vrrp::{sender, sum};
use crate::input::Input;
use crate::sealing::key;

const ME: Identity = Identity { cluster: 1, node: 1, epoch: 11 };
const PEERS: [Identity; 2] = [Identity { node: 2, epoch: 22, ..ME }, Identity { node: 3, epoch: 33, ..ME }];
const VIAS: [Via; 4] = [Via::Sync(0), Via::Sync(1), Via::Zone(1), Via::Zone(2)];
const WITNESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const HEARTBEAT: Duration = Duration::from_millis(10);
/// How long the node is let alone at the end.
const REST: Duration = Duration::from_millis(300);
/// Outputs of one call: some for each peer, link, group and virtual router.
const OUTPUTS_MAX: usize = 300;

/// The node, and what is around it.
struct World {
    election: Election,
    now: Time,
    peers: [Peer; 2],
    /// Groups that are owned: the end of the lease.
    owned: BTreeMap<u8, Time>,
    vips: BTreeSet<u8>,
    terms: BTreeMap<u8, u32>,
    /// The probe that was asked last, and by which way.
    asked: Option<(Via, Probe)>,
    /// The number that the witness was asked with last.
    witness_asked: Option<u64>,
    /// The zone in which it asked last.
    surveying: Option<u8>,
    done: bool,
}

struct Peer {
    identity: Identity,
    channel: Channel,
    sequence: u64,
    last: Vec<u8>,
}

impl Peer {
    fn new(identity: Identity) -> Self {
        let channel = Channel::new(key(), Purpose::Heartbeat, identity, ME.node);
        Self { identity, channel, sequence: 0, last: Vec::new() }
    }
}

/// Plays what the bytes say.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(&mut input);
    while !input.is_empty() && !world.done {
        world.step(&mut input);
    }
    world.pass(REST);
    if !world.done {
        world.election.shutdown(world.now);
        // However things are, it ends.
        world.pass(Duration::from_secs(1));
        assert!(world.done, "the shutdown does not end");
    }
}

fn interface(node: u8, via: Via) -> Interface {
    let (kind, n) = match via {
        Via::Sync(n) => (0, n),
        Via::Zone(n) => (1, n),
    };
    let address = Ipv4Addr::new(10, n, kind, node);
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, node.into());
    Interface { mac: [2, 0, 0, node, kind, n], address, link_local, carrier: true }
}

fn config(input: &mut Input<'_>) -> Config {
    let kind = input.u8();
    let v2 = kind & 0x41 == 0x40;
    let group = |group: u8| {
        let second = if kind & 1 == 0 {
            IpAddr::from(Ipv4Addr::new(10, 2, 1, group))
        } else {
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, group.into()).into()
        };
        let addresses = [IpAddr::from(Ipv4Addr::new(10, 1, 1, group)), second];
        let instance = |(zone, address)| Instance {
            zone,
            vrid: 10 * zone + group,
            addresses: vec![address],
            peers: vec![],
        };
        GroupConfig {
            group,
            name: format!("g{group}"),
            members: if kind & 2 == 0 {
                vec![(1, 150), (2, 100)]
            } else {
                vec![(3, 200), (2, 150), (1, 150)]
            },
            preempt: kind & 4 != 0,
            preempt_delay: Duration::from_millis(if kind & 8 != 0 { 50 } else { 0 }),
            advert_interval_cs: if v2 { 100 } else { 10 },
            hmac: None,
            version: if v2 { Version::V2 { auth: Auth::None } } else { Version::default() },
            announce: Announce::default(),
            instances: (1..).zip(addresses).map(instance).collect(),
            start: Start::default(),
        }
    };
    Config {
        identity: ME,
        keys: key().into(),
        probe_key: key().siphash_key("probe"),
        config_hash: 1,
        heartbeat_interval: HEARTBEAT,
        lease: Duration::from_millis(100),
        handover_timeout: Duration::from_millis(100),
        preempt_wait: Duration::from_millis(100),
        nodes: (1..=3).map(|node| NodeConfig { node, name: format!("fw{node}") }).collect(),
        zones: vec![(1, "inet".into()), (2, "lan".into())],
        interfaces: VIAS.map(|via| (via, interface(ME.node, via))).into(),
        groups: (0..if kind & 8 == 0 { 1 } else { 2 }).map(group).collect(),
        trackers: vec![tracker(1, Effect::Fault), tracker(2, Effect::Lowers(120)), tracker(3, Effect::Fault)],
        witnesses: if kind & 32 != 0 { vec![WITNESS] } else { vec![] },
        standby: kind & 16 != 0,
    }
}

fn reach(input: &mut Input<'_>) -> ZoneReach {
    let (kind, zone) = (input.u8(), 1 + input.u8() % 3);
    let neighbours = vec![Ipv4Addr::new(10, zone, 0, input.u8())];
    let state = State::ALL[usize::from(kind >> 1 & 3).min(2)];
    ZoneReach { zone, need: kind & 1 != 0, state, hears: input.u16(), neighbours }
}

/// The third is not shared.
fn tracker(id: u32, effect: Effect) -> TrackerConfig {
    let shared = (id < 3).then_some(Duration::from_millis(50));
    TrackerConfig { id, name: format!("t{id}"), groups: vec![], effect, shared }
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Time::from_millis(3_600_000);
        let mut world = Self {
            election: Election::new(now, config(input)).expect("a good config"),
            now,
            peers: PEERS.map(Peer::new),
            owned: BTreeMap::new(),
            vips: BTreeSet::new(),
            terms: BTreeMap::new(),
            asked: None,
            witness_asked: None,
            surveying: None,
            done: false,
        };
        (0..2).for_each(|p| world.hello(p));
        assert!(world.peers.iter().all(|peer| peer.channel.is_open()));
        world
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let now = self.now;
        match input.u8() % 16 {
            0..3 => {
                let p = usize::from(input.bool());
                let heartbeat = self.heartbeat(p, input);
                self.say(p, &heartbeat.write());
            }
            3 => {
                let p = usize::from(input.bool());
                self.say(p, input.long_piece());
            }
            4 => match input.u8() % 4 {
                n @ 0..2 => {
                    let identity = &mut self.peers[usize::from(n)].identity;
                    identity.epoch += 1;
                    let identity = *identity;
                    self.peers[usize::from(n)] = Peer::new(identity);
                    self.hello(n.into());
                }
                2 => self.deliver(0, self.peers[usize::from(input.bool())].last.clone()),
                _ => self.deliver(input.u8(), input.piece().to_vec()),
            },
            5 => {
                // An advertisement as it should be.
                let (v6, zone, node, group) = (input.bool(), 1 + input.u8() % 2, input.u8(), input.u8() % 2);
                let advert = Advert {
                    vrid: 10 * zone + group,
                    priority: input.u8(),
                    interval_cs: input.u16(),
                    addresses: vec![if v6 {
                        sender(true, group)
                    } else {
                        Ipv4Addr::new(10, zone, 1, group).into()
                    }],
                };
                let source = if v6 { sender(true, node) } else { Ipv4Addr::new(10, zone, 1, node).into() };
                let envelope = Envelope::multicast(source);
                let packet = if node & 0x80 != 0 {
                    advert.write_v2(Auth::None)
                } else {
                    advert.write(&envelope, Checksum::Message)
                };
                self.election.vrrp_packet(now, zone, &envelope, &packet);
            }
            6 => {
                let kind = input.u8();
                let envelope = Envelope {
                    ttl: if kind & 2 == 0 { TTL } else { input.u8() },
                    ..Envelope::multicast(sender(kind & 1 != 0, input.u8()))
                };
                let (zone, mut packet) = (input.u8(), input.piece().to_vec());
                if kind & 4 == 0 {
                    sum(&envelope, &mut packet);
                }
                self.election.vrrp_packet(now, zone, &envelope, &packet);
            }
            7 => {
                let (via, mut probe) = self.asked.unwrap_or_else(|| {
                    let nonce = input.u64();
                    (VIAS[2], Probe::request(&key().siphash_key("probe"), ME.cluster, ME.node, 2, nonce))
                });
                let forged = input.u8();
                (probe.from, probe.to) = (probe.to, probe.from);
                (probe.kind, probe.flags) = (ProbeKind::Reply as u8, input.u8());
                probe.lease_ms = input.array();
                if forged & 1 != 0 {
                    (probe.kind, probe.from, probe.cluster) = (input.u8(), input.u8(), input.array());
                }
                if forged & 2 == 0 {
                    probe.seal(&key().siphash_key("probe"));
                }
                self.election.probe_reply(now, via, &probe);
            }
            8 => {
                let (via, up) = (VIAS[usize::from(input.u8()) % VIAS.len()], input.bool());
                self.election.carrier(now, via, up);
            }
            9 => {
                let kind = input.u8();
                if kind & 1 == 0 {
                    let via = VIAS[usize::from(kind >> 2) % VIAS.len()];
                    self.election.carrier(now, via, kind & 2 != 0);
                } else {
                    let state = State::ALL[usize::from(kind >> 1 & 3).min(2)];
                    let report = Report { state, since: now, ..Report::default() };
                    self.election.tracker(now, u32::from(kind >> 3 & 3), report);
                }
            }
            10 => self.election.sync_status(now, input.u8() % 4, input.bool(), input.u64()),
            11 => {
                let to = Some(input.u8() % 4).filter(|&n| n != 0);
                let _ = self.election.switchover(now, input.u8() % 3, to);
            }
            12 => {
                let _ = self.election.standby(now, input.bool(), input.bool());
            }
            13 if input.u8() == 0xff => self.election.shutdown(now),
            13 if self.surveying.is_some() && input.bool() => {
                let (zone, found) = (self.surveying.take().unwrap_or(0), input.u8());
                let survey = Survey {
                    neighbours: vec![Ipv4Addr::new(10, zone, 0, 9)],
                    asked: usize::from(found & 3),
                    answered: usize::from(found >> 2 & 1),
                    heard: vec![found >> 3 & 3],
                };
                self.election.surveyed(now, zone, survey);
            }
            13 => self.election.witness_reply(now, WITNESS, self.witness_asked.unwrap_or(0)),
            14 => {
                // The daemon does not run for a while.
                self.now = now + Duration::from_millis(u64::from(input.u8()));
            }
            _ => self.pass(Duration::from_micros(u64::from(input.u8()).pow(2) * 4)),
        }
        self.settle();
    }

    /// A heartbeat as a peer may send it.
    fn heartbeat(&mut self, p: usize, input: &mut Input<'_>) -> Heartbeat {
        let peer = &mut self.peers[p];
        let kind = input.u8();
        // Mostly in order.
        peer.sequence = if kind & 1 == 0 { peer.sequence.wrapping_add(1) } else { input.u64() };
        let groups = (0..usize::from(kind >> 6)).map(|_| {
            let [role, flags, cause] = input.array();
            GroupRecord {
                group: flags >> 2 & 1,
                name: [None, Some(name_hash("g0")), Some(name_hash("g1")), Some(0)][usize::from(role >> 6)],
                role: Role::from_u8(role % 5).expect("a role"),
                priority: input.u8(),
                warm: flags & 1 != 0,
                moved: flags & 2 != 0,
                term: if flags & 8 == 0 { u32::from(input.u8()) } else { input.u32() },
                age_ms: input.u32(),
                heard: input.u8().into(),
                cause: Cause::from_u8(cause % 16).expect("a cause"),
                offered_to: Some(flags >> 4 & 3).filter(|&n| n != 0),
                hears: Some(flags >> 4 & 3).filter(|&n| n != 0),
            }
        });
        let groups: Vec<_> = groups.collect();
        let node = peer.identity.node;
        let interfaces = VIAS.into_iter().map(|via| (via, interface(node, via)));
        Heartbeat {
            sequence: peer.sequence,
            node: if kind & 2 == 0 {
                NodeState::Running
            } else {
                NodeState::from_u8(1 + input.u8() % 3).expect("a state")
            },
            in_sync: kind & 4 != 0,
            seen: if kind & 8 == 0 {
                PeerState::Alive
            } else {
                PeerState::from_u8(input.u8() % 7).expect("a state")
            },
            interval_us: if kind & 16 == 0 { 10_000 } else { input.u32() },
            lease_ms: if kind & 16 == 0 { 1000 } else { input.u32() },
            config_hash: 1,
            applied: 0,
            stamp: 1,
            echo: if kind & 16 == 0 { 0 } else { input.u64() },
            echo_held_us: 0,
            groups,
            reaches: if kind & 0x24 == 0x24 { vec![reach(input)] } else { vec![] },
            unwell: if kind & 9 == 9 { vec![input.u8().into(), input.u8().into()] } else { vec![] },
            interfaces: interfaces.filter(|_| kind & 32 == 0).collect(),
        }
    }

    fn hello(&mut self, p: usize) {
        let hello = self.peers[p].channel.hello();
        self.deliver(0, hello);
    }

    fn say(&mut self, p: usize, payload: &[u8]) {
        if let Some(datagram) = self.peers[p].channel.seal(payload) {
            self.peers[p].last.clone_from(&datagram);
            self.deliver(0, datagram);
        }
    }

    fn deliver(&mut self, link: u8, mut datagram: Vec<u8>) {
        self.election.heartbeat_datagram(self.now, link, &mut datagram);
        self.drain();
    }

    /// Lets time pass, in the node's steps.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while !self.done && self.election.next_timeout() <= end {
            self.now = self.election.next_timeout().max(self.now);
            self.settle();
        }
        self.now = end;
    }

    /// What the daemon does after input.
    fn settle(&mut self) {
        if !self.done && self.election.next_timeout() <= self.now {
            self.election.tick(self.now);
            assert!(self.election.next_timeout() > self.now, "a tick does all that is due");
        }
        self.drain();
        let _ = self.election.status(self.now);
    }

    /// Carries out what the node says, and checks its order.
    fn drain(&mut self) {
        let (mut hellos, mut outputs) = (Vec::new(), 0);
        while let Some(output) = self.election.poll() {
            outputs += 1;
            assert!(outputs <= OUTPUTS_MAX, "outputs without end");
            match output {
                Output::Heartbeat { peer, mut bytes, .. } => {
                    assert!(bytes.len() <= LEN_MAX + OVERHEAD);
                    let p = PEERS.iter().position(|i| i.node == peer).expect("a peer");
                    match self.peers[p].channel.open(&mut bytes) {
                        Ok(Opened::Data(payload)) => {
                            assert!(Heartbeat::parse(payload).is_ok(), "ours are good")
                        }
                        Ok(Opened::Hello { reply: true, .. }) => hellos.push(p),
                        _ => {}
                    }
                }
                Output::Advertise { zone, to, bytes, .. } => {
                    let source = if to.is_ipv6() {
                        sender(true, ME.node)
                    } else {
                        Ipv4Addr::new(10, zone, 1, ME.node).into()
                    };
                    let envelope = Envelope { dst: to, ..Envelope::multicast(source) };
                    let parsed = match bytes[0] >> 4 {
                        2 => Advert::parse_v2(&envelope, &bytes).map(drop),
                        _ => Advert::parse(&envelope, &bytes).map(drop),
                    };
                    assert_eq!(parsed, Ok(()), "ours are good");
                }
                Output::Survey { zone, .. } => self.surveying = Some(zone),
                Output::AskWitness { nonce, .. } => self.witness_asked = Some(nonce),
                Output::Probe { via, probe, .. } => self.asked = Some((via, probe)),
                Output::Own { group, term, since, until } => {
                    // An owner that raises its term has its addresses already.
                    let raised = self.owned.contains_key(&group);
                    assert!(raised || !self.vips.contains(&group), "ownership before addresses");
                    let highest = self.terms.entry(group).or_default();
                    // A peer that claims the last of the terms leaves none to follow it.
                    assert!(term > *highest || term == u32::MAX, "terms rise: {term} after {highest}");
                    assert!(since <= self.now && until > self.now);
                    *highest = term;
                    self.owned.insert(group, until);
                }
                Output::Disown { group, .. } => {
                    assert!(!self.vips.contains(&group), "addresses go before the ownership");
                    assert!(self.owned.remove(&group).is_some(), "what is given up was owned");
                }
                Output::RenewLease { group, until } => {
                    let lease = self.owned.get_mut(&group).expect("owners only renew");
                    assert!(until >= *lease, "a lease never ends earlier");
                    *lease = until;
                }
                Output::AddVips { group } => {
                    assert!(self.owned.contains_key(&group), "ownership before addresses");
                    self.vips.insert(group);
                }
                Output::RemoveVips { group } => assert!(self.vips.remove(&group), "there were some"),
                Output::Announce { group } => assert!(self.vips.contains(&group), "addresses first"),
                Output::Event(_) => {}
                Output::ShutdownComplete => {
                    assert!(self.owned.is_empty() && self.vips.is_empty(), "nothing is left behind");
                    self.done = true;
                }
            }
        }
        hellos.into_iter().for_each(|p| self.hello(p));
    }
}
