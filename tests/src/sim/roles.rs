//! Roles: the election thread of each node, and what must be true of it.
//!
//! It does around the machine of `fwha-proto` what the election thread of `fwha run` does: the data plane is told
//! at once, replication by letter. Heartbeats take the same links as replication; adverts and probes take the
//! zones, which are ways of the same network, behind the sync links.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use fwha_common::probe::{Probe, ProbeKind};
use fwha_proto::NodeId;
use fwha_proto::election::{
    Announce, Config, Effect as Failing, Election, Event, GroupConfig, Instance, NodeConfig, Output, Start,
    TrackerConfig,
};
use fwha_proto::heartbeat::{Cause, Interface, PeerState, Role, Via};
use fwha_proto::replication::SyncState;
use fwha_proto::seal::{ClusterKey, Identity, KeyRing, cluster_id};
use fwha_proto::time::Time;
use fwha_proto::tracker::{Report, State};
use fwha_proto::vrrp::packet::{Envelope, Version};

use super::kernel::Number;
use super::network::{Datagram, Voice, Way};
use super::node::Letter;
use super::world::{LEASE, Promised, World};
use super::{GROUPS, Group, Planted};

/// Zones that all nodes share.
pub const ZONES: u8 = 2;
/// Between heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(10);
/// Two owners that hear each other on a sync link are one within this time, losses included.
const SETTLED_WITHIN: Duration = Duration::from_millis(500);
/// Two that hear each other on the zones alone, by adverts.
const SETTLED_BY_ADVERTS: Duration = Duration::from_millis(1500);
/// For so long a node can be asked in a zone without a fault before a claim to what it owns is nobody's excuse: one that
/// was held for dead is asked again once a second, and adverts come as often.
const ASKED_WITHIN: Duration = Duration::from_millis(1500);
/// After the last fault, each group has one owner within this time: a cold start, where nobody can be asked.
pub const ELECTED_WITHIN: Duration = Duration::from_secs(5);

/// The election thread of a daemon.
pub struct Roles {
    /// The machine under test.
    pub election: Election,
    /// It does nothing before that.
    pub hung: Time,
    /// What replication said of each peer.
    in_sync: BTreeMap<NodeId, bool>,
    /// The ways of whose interface it was told that the carrier is gone.
    unplugged: BTreeSet<u8>,
    /// Verdicts of trackers that it has not read.
    verdicts: Vec<(u32, bool)>,
    /// Groups whose addresses are here.
    vips: [bool; GROUPS],
    /// Groups of which the neighbours have been told since they are here.
    announced: [bool; GROUPS],
    /// The highest term of each group in this life.
    highest: [u32; GROUPS],
    /// The cause of its latest takeover of each group.
    cause: [Option<Cause>; GROUPS],
}

/// The cluster's secret.
pub fn keys() -> KeyRing {
    ClusterKey::new([7; 32]).into()
}

fn mac(node: NodeId, way: u8) -> [u8; 6] {
    [2, 0, 0, node, 0, way]
}

fn address(node: NodeId, way: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, way, 0, node)
}

impl World {
    /// The way by which an interface is reached.
    fn way_of(&self, via: Via) -> u8 {
        match via {
            Via::Sync(link) => link,
            Via::Zone(zone) => self.shape.links + zone - 1,
        }
    }

    /// The interface at the end of a way.
    pub fn via_of(&self, way: u8) -> Via {
        if way < self.shape.links { Via::Sync(way) } else { Via::Zone(way - self.shape.links + 1) }
    }

    fn interface(&self, node: NodeId, via: Via, carrier: bool) -> (Via, Interface) {
        let way = self.way_of(via);
        let (mac, address) = (mac(node, way), address(node, way));
        (via, Interface { mac, address, link_local: Ipv6Addr::UNSPECIFIED, carrier })
    }

    /// The election of a daemon that starts; it resumes what its data plane still owns.
    pub fn new_roles(&mut self, id: NodeId, epoch: u64) -> Roles {
        let node = &self.nodes[usize::from(id) - 1];
        let clock = node.clock(self.now);
        let highest = node.kernel.terms;
        let forgets = self.shape.planted == Some(Planted::TermsForgotten);
        let starts: Vec<Start> = (0..GROUPS)
            .map(|g| Start {
                term: if forgets { 0 } else { highest[g] },
                owned_since: node.kernel.owned[g].map(|_| node.kernel.since[g]),
            })
            .collect();
        let members = |g: usize| -> Vec<(NodeId, u8)> {
            let priority = |n: NodeId| if g == 0 { 200 - n * 30 } else { 50 + n * 30 };
            let members = self.ids().filter(|&n| self.shape.is_member(n, g as Group));
            let mut members: Vec<_> = members.map(|n| (n, priority(n))).collect();
            members.sort_by_key(|&(_, priority)| std::cmp::Reverse(priority));
            members
        };
        let group = |g: usize| GroupConfig {
            group: g as Group,
            name: format!("g{g}"),
            members: members(g),
            preempt: false,
            preempt_delay: Duration::ZERO,
            advert_interval_cs: 100,
            version: Version::default(),
            hmac: None,
            announce: Announce::default(),
            instances: (1..=ZONES)
                .map(|zone| Instance {
                    zone,
                    vrid: 60 + 10 * g as u8 + zone,
                    addresses: vec![Ipv4Addr::new(10, zone, 1, g as u8).into()],
                    peers: vec![],
                })
                .collect(),
            start: starts[g],
        };
        let tracker = |id, shared| TrackerConfig {
            id,
            name: format!("t{id}"),
            groups: vec![],
            effect: Failing::Fault,
            shared,
        };
        let ways = 0..self.network.links();
        let config = Config {
            identity: Identity { cluster: cluster_id("edge"), node: id, epoch },
            keys: self.keys.clone(),
            probe_key: self.probe_key,
            config_hash: 1,
            heartbeat_interval: HEARTBEAT,
            lease: LEASE,
            handover_timeout: Duration::from_millis(500),
            preempt_wait: Duration::from_secs(10),
            nodes: self.ids().map(|node| NodeConfig { node, name: format!("fw{node}") }).collect(),
            zones: (1..=ZONES).map(|zone| (zone, format!("zone{zone}"))).collect(),
            interfaces: ways.map(|way| self.interface(id, self.via_of(way), true)).collect(),
            groups: (0..GROUPS).map(group).collect(),
            witnesses: vec![],
            trackers: vec![tracker(1, None), tracker(2, Some(Duration::from_millis(1500)))],
            standby: false,
        };
        let election = Election::new(clock, config).expect("a good config");
        let active = |g: usize| {
            election.status(clock).groups.iter().any(|s| usize::from(s.group) == g && s.role == Role::Active)
        };
        let node = &mut self.nodes[usize::from(id) - 1];
        for g in (0..GROUPS).filter(|&g| !active(g)) {
            node.kernel.own(g as Group, None);
        }
        Roles {
            election,
            hung: Time::ZERO,
            in_sync: BTreeMap::new(),
            unplugged: BTreeSet::new(),
            verdicts: vec![],
            vips: [false; GROUPS],
            announced: [false; GROUPS],
            highest,
            cause: [None; GROUPS],
        }
    }

    /// The election of a node, if its daemon runs and does not hang.
    pub fn election(&mut self, id: NodeId) -> Option<&mut Election> {
        let now = self.now;
        let roles = self.node(id).daemon.as_mut()?.roles.as_mut()?;
        (roles.hung <= now).then_some(&mut roles.election)
    }

    /// Something for the election thread has arrived.
    pub fn hear(&mut self, mut datagram: Datagram) {
        let (now, to, from) = (self.now, datagram.to, datagram.from);
        let via = self.via_of(datagram.link);
        let node = &mut self.nodes[usize::from(to) - 1];
        if let Voice::Request(nonce) = datagram.voice {
            // The data plane answers.
            if node.powered {
                let left = node.kernel.longest_lease(node.clock(now));
                let (flags, lease_ms) =
                    if left.is_zero() { (0, 0) } else { (Probe::OWNS, left.as_millis() as u32 + 1) };
                self.speak(to, from, via, Voice::Reply { flags, lease_ms, nonce }, vec![]);
            }
            return;
        }
        let arrived = *datagram.arrived.get_or_insert(now);
        let clock = node.clock(arrived);
        let Some(roles) = node.daemon.as_mut().and_then(|d| d.roles.as_mut()) else { return };
        if roles.hung > now {
            let at = roles.hung;
            self.network.put(at, datagram);
            return;
        }
        let election = &mut roles.election;
        let alive = |election: &Election| {
            election.status(clock).peers.iter().any(|p| p.node == from && p.state == PeerState::Alive)
        };
        let ignored = self.shape.planted == Some(Planted::AnswersIgnored) && !alive(election);
        match datagram.voice {
            Voice::Heartbeat => election.heartbeat_datagram(clock, datagram.link, &mut datagram.bytes),
            Voice::Advert { zone, src, dst } => {
                election.vrrp_packet(
                    clock,
                    zone,
                    &Envelope { dst, ..Envelope::multicast(src) },
                    &datagram.bytes,
                );
            }
            Voice::Reply { .. } if ignored => {}
            Voice::Reply { flags, lease_ms, nonce } => {
                let key = self.probe_key;
                let mut reply = Probe::request(&key, cluster_id("edge"), from, to, nonce);
                (reply.kind, reply.flags) = (ProbeKind::Reply as u8, flags);
                reply.lease_ms = lease_ms.to_le_bytes();
                reply.seal(&key);
                election.probe_reply(clock, via, &reply);
            }
            Voice::Request(_) | Voice::Replication => {}
        }
    }

    fn speak(&mut self, from: NodeId, to: NodeId, via: Via, voice: Voice, bytes: Vec<u8>) {
        let (now, link) = (self.now, self.way_of(via));
        let datagram = Datagram { from, to, link, bytes, voice, ..Datagram::default() };
        self.network.send(now, &mut self.random, datagram);
    }

    /// One turn of a node's election thread, without its sockets.
    pub fn elect(&mut self, id: NodeId) {
        let now = self.now;
        let clock = self.nodes[usize::from(id) - 1].clock(now);
        let peers: Vec<NodeId> = self.ids().filter(|&n| n != id).collect();
        let unplugged: BTreeSet<u8> =
            self.unplugged.iter().filter(|(node, _)| *node == id).map(|&(_, way)| way).collect();
        let links = self.shape.links;
        let Some(daemon) = &mut self.node(id).daemon else { return };
        let Some(roles) = daemon.roles.as_mut().filter(|roles| roles.hung <= now) else { return };
        // As the system says it is, also to one that hung meanwhile.
        for &way in roles.unplugged.symmetric_difference(&unplugged) {
            let via = if way < links { Via::Sync(way) } else { Via::Zone(way - links + 1) };
            roles.election.carrier(clock, via, !unplugged.contains(&way));
        }
        roles.unplugged = unplugged;
        for (tracker, up) in roles.verdicts.drain(..) {
            let state = if up { State::Up } else { State::Down };
            let text = format!("it is {}", state.as_str());
            let report = Report { state, since: clock, failure: text.clone(), text, ..Report::default() };
            roles.election.tracker(clock, tracker, report);
        }
        for peer in peers {
            let synced = daemon.replication.sync_state(peer) == Some(SyncState::InSync);
            if roles.in_sync.insert(peer, synced) != Some(synced) {
                roles.election.sync_status(clock, peer, synced, 0);
            }
        }
        for (group, term) in daemon.past_terms.drain(..) {
            roles.election.past_term(clock, group, term);
        }
        for (group, term) in daemon.claims.drain(..) {
            roles.election.claimed(clock, group, term);
        }
        if roles.election.next_timeout() <= clock {
            roles.election.tick(clock);
        }
        let mut outputs: Vec<Output> = iter::from_fn(|| roles.election.poll()).collect();
        if self.shape.planted == Some(Planted::AddressesFirst) {
            outputs.sort_by_key(|output| !matches!(output, Output::AddVips { .. }));
        }
        let mut advertised = [false; GROUPS];
        for output in outputs {
            self.execute(id, output, &mut advertised);
        }
    }

    fn execute(&mut self, id: NodeId, output: Output, advertised: &mut [bool; GROUPS]) {
        match output {
            Output::Heartbeat { link, peer, bytes } => {
                self.speak(id, peer, Via::Sync(link), Voice::Heartbeat, bytes);
            }
            Output::Advertise { group, zone, to: dst, bytes, .. } => {
                advertised[usize::from(group)] = true;
                let src = IpAddr::V4(address(id, self.way_of(Via::Zone(zone))));
                for to in self.ids().filter(|&to| to != id) {
                    self.speak(id, to, Via::Zone(zone), Voice::Advert { zone, src, dst }, bytes.clone());
                }
            }
            Output::Probe { peer, via, probe, .. } => {
                let nonce = u64::from_le_bytes(probe.nonce);
                self.speak(id, peer, via, Voice::Request(nonce), vec![]);
            }
            Output::Own { group, term, since, until } => {
                self.own(id, group, term, since, until, advertised[usize::from(group)]);
            }
            Output::RenewLease { group, until } => {
                let kernel = &mut self.node(id).kernel;
                kernel.lease[usize::from(group)] = until;
            }
            Output::Disown { group, forward_until } => {
                self.trace(Some(id), || format!("gives group {group} up, forwards until {forward_until:?}"));
                if self.roles(id).vips[usize::from(group)] {
                    self.violate(format!("fw{id} gives group {group} up before its addresses"));
                }
                let node = self.node(id);
                let term = node.kernel.terms[usize::from(group)];
                node.kernel.own(group, None);
                node.kernel.leaving[usize::from(group)] = forward_until.map(|until| (term, until));
                if let Some(daemon) = &mut node.daemon {
                    daemon.tell(Letter::Disowned(group));
                }
            }
            Output::AddVips { group } => {
                if self.node(id).kernel.owned[usize::from(group)].is_none() {
                    self.violate(format!("fw{id} has addresses of group {group} before it owns it"));
                }
                self.roles(id).vips[usize::from(group)] =
                    self.shape.planted != Some(Planted::AddressesForgotten);
            }
            Output::RemoveVips { group } => {
                let roles = self.roles(id);
                let g = usize::from(group);
                (roles.vips[g], roles.announced[g]) = (false, false);
            }
            Output::Announce { group } => {
                let planted = self.shape.planted;
                if planted != Some(Planted::AddressesForgotten) && !self.roles(id).vips[usize::from(group)] {
                    self.violate(format!(
                        "fw{id} announces addresses of group {group} that it does not have"
                    ));
                }
                self.roles(id).announced[usize::from(group)] =
                    planted != Some(Planted::AnnouncementsForgotten);
            }
            // There is no witness, and no neighbour to tell who is better placed.
            Output::AskWitness { .. } | Output::Survey { .. } => {}
            Output::Event(event) => {
                if let Event::Role { group, to: Role::Active, cause, .. } = &event {
                    self.roles(id).cause[usize::from(*group)] = Some(*cause);
                }
                self.trace(Some(id), || format!("{event:?}"));
            }
            Output::ShutdownComplete => {
                self.trace(Some(id), || "has left".into());
                self.kill_node(id);
            }
        }
    }

    /// What is wrong with where the addresses of a group are.
    pub(super) fn misplaced(&self, group: Group) -> Option<String> {
        let g = usize::from(group);
        self.nodes.iter().find_map(|node| {
            let roles = node.daemon.as_ref()?.roles.as_ref()?;
            match (node.kernel.owned[g].is_some(), roles.vips[g], roles.announced[g]) {
                (true, false, _) => Some(format!("fw{} owns group {group} without its addresses", node.id)),
                (true, true, false) => {
                    Some(format!("fw{} tells nobody of the addresses of group {group}", node.id))
                }
                (false, true, _) => {
                    Some(format!("fw{} has addresses of group {group} that it does not own", node.id))
                }
                (true, true, true) | (false, false, _) => None,
            }
        })
    }

    fn roles(&mut self, id: NodeId) -> &mut Roles {
        self.node(id).daemon.as_mut().and_then(|d| d.roles.as_mut()).expect("its election speaks")
    }

    fn own(&mut self, id: NodeId, group: Group, term: u32, since: Time, until: Time, advertised: bool) {
        let g = usize::from(group);
        let clock = self.nodes[usize::from(id) - 1].clock(self.now);
        let resumed = since < clock;
        self.trace(Some(id), || format!("owns group {group} in term {term}, resumed {resumed}"));
        self.mark([self.now.as_nanos(), id.into(), group.into(), term.into()]);
        let roles = self.roles(id);
        let before = std::mem::replace(&mut roles.highest[g], term);
        let (vips, cause) = (roles.vips[g], roles.cause[g]);
        if !advertised {
            self.violate(format!("fw{id} owns group {group} without having said so"));
        }
        if vips && self.node(id).kernel.owned[g].is_none() {
            self.violate(format!("fw{id} has the addresses of group {group} before it owns it"));
        }
        if term < before || term == before && !resumed {
            self.violate(format!("fw{id} owns group {group} in term {term} after {before}"));
        }
        if !resumed {
            self.check_claim(id, group, cause);
        }
        self.check_inheritance(id, group, cause);
        self.terms[g] = self.terms[g].max(term);
        self.reigned.insert((group, term, id));
        self.takeovers += u64::from(!resumed);
        self.moved[g] = self.now;
        let node = self.node(id);
        node.kernel.own(group, Some(term));
        (node.kernel.since[g], node.kernel.lease[g]) = (since, until);
        if let Some(daemon) = &mut node.daemon {
            daemon.tell(Letter::Owned(group, term));
        }
    }

    /// A node that nobody gave a group does not take it from one that owns it, and could have been asked for a while: it
    /// would serve the same clients.
    fn check_claim(&mut self, id: NodeId, group: Group, cause: Option<Cause>) {
        if !matches!(cause, Some(Cause::PeerDead | Cause::LeaseEnded | Cause::VrrpSilence | Cause::Vacant)) {
            return;
        }
        // One whose lease has just ended owns nothing.
        self.fence();
        let now = self.now;
        let clock = self.nodes[usize::from(id) - 1].clock(now);
        // Of whom it has never heard by heartbeat, it does not know whom to ask: then VRRP alone decides.
        let peers = self.roles(id).election.status(clock).peers;
        let known = |other: &NodeId| peers.iter().any(|p| p.node == *other && p.state != PeerState::Unknown);
        let owns = |other: &NodeId| {
            let node = &self.nodes[usize::from(*other) - 1];
            let g = usize::from(group);
            node.kernel.owned[g].is_some() && node.clock(now).since(node.kernel.since[g]) >= ASKED_WITHIN
        };
        let could_be_asked = |other: &NodeId| {
            (1..=ZONES).any(|zone| {
                let since = self.within_reach.get(&(id.max(*other), id.min(*other), zone));
                since.is_some_and(|&since| now.since(since) >= ASKED_WITHIN)
            })
        };
        let robbed = self.ids().filter(known).filter(owns).find(could_be_asked);
        if let Some(other) = robbed {
            self.violate(format!(
                "fw{id} claims group {group} ({cause:?}), which fw{other} owns within reach"
            ));
        }
    }

    /// What a node and the owner before it called in sync is there when it takes over.
    fn check_inheritance(&mut self, id: NodeId, group: Group, cause: Option<Cause>) {
        let promised = std::mem::take(&mut self.promised[usize::from(group)]);
        let Some(Promised { flows, .. }) = promised.get(&id) else { return };
        let kernel = &self.node(id).kernel;
        let missing = flows.iter().find(|(n, flow)| kernel.get(*n).is_none_or(|there| there.id() != *flow));
        self.inherited += flows.len() as u64;
        if let Some((n, flow)) = missing {
            let missing = super::world::named(*n, *flow);
            self.violate(format!(
                "fw{id} takes group {group} over ({cause:?}) without {missing}, which was in sync"
            ));
        }
    }

    /// While groups only moved by an operator's will, every connection that has not ended is where its group is.
    pub fn check_alive(&mut self) {
        let lost = self.alive.iter().find(|&(&n, &flow)| {
            let g = usize::from(super::group_of(super::bucket_of(n)));
            let mut owners = self.nodes.iter().filter(|node| node.kernel.owned[g].is_some());
            !owners.any(|node| node.kernel.get(n).is_some_and(|there| there.id() == flow))
        });
        if let Some((n, flow)) = lost {
            let lost = super::world::named(*n, *flow);
            self.violate(format!("{lost} is lost, and its group was only moved"));
        }
    }

    /// A flow is no more, by the will of its owner.
    pub fn ended(&mut self, group: Group, n: Number, node: NodeId) {
        let Some(flow) = self.node(node).kernel.get(n).map(fwha_common::flow::Flow::id) else { return };
        let promised = self.promised[usize::from(group)].values_mut().map(|promised| &mut promised.flows);
        for flows in promised {
            flows.retain(|&(m, id)| m != n || id != flow);
        }
        self.alive.retain(|&m, &mut id| m != n || id != flow);
    }

    /// Data planes whose lease is over own nothing.
    pub fn fence(&mut self) {
        for node in &mut self.nodes {
            let clock = node.clock(self.now);
            node.kernel.fence(clock);
        }
    }

    /// Nodes that forward packets of a group.
    pub fn forwarding(&mut self, group: Group) -> Vec<NodeId> {
        self.fence();
        let now = self.now;
        let forwards = |id: &NodeId| {
            let node = &self.nodes[usize::from(*id) - 1];
            node.kernel.forwards(node.clock(now), group)
        };
        self.ids().filter(forwards).collect()
    }

    /// No two nodes own a group for longer than it takes them to hear of each other.
    pub fn check_overlap(&mut self) {
        for group in 0..GROUPS {
            let owns = |id: &NodeId| self.nodes[usize::from(*id) - 1].kernel.owned[group].is_some();
            let owners: Vec<NodeId> = self.ids().filter(owns).collect();
            if owners.len() < 2 && self.overlaps.is_empty() {
                continue;
            }
            for a in self.ids() {
                for b in 1..a {
                    let both = owners.contains(&a) && owners.contains(&b);
                    for (on_sync, limit) in [(true, SETTLED_WITHIN), (false, SETTLED_BY_ADVERTS)] {
                        let key = (group as Group, a, b, on_sync);
                        if !both || !self.hear_each_other(a, b, on_sync) {
                            self.overlaps.remove(&key);
                            continue;
                        }
                        let now = self.now;
                        let lasts = now.since(*self.overlaps.entry(key).or_insert(now));
                        if lasts >= limit {
                            self.violate(format!(
                                "fw{a} and fw{b} own group {group} for {lasts:?} within earshot"
                            ));
                        }
                    }
                }
            }
        }
    }

    /// Notes since when nodes can ask each other in a zone, without a fault.
    pub fn note_reach(&mut self) {
        let now = self.now;
        for a in self.ids() {
            for b in 1..a {
                let powered = [a, b].iter().all(|&n| self.nodes[usize::from(n) - 1].powered);
                for zone in 1..=ZONES {
                    let way = self.way_of(Via::Zone(zone));
                    let good = |way: &Way| !way.cut && way.faults.loss == 0;
                    let plugged = [a, b].iter().all(|&n| !self.unplugged.contains(&(n, way)));
                    let clear = good(self.network.way(a, b, way))
                        && good(self.network.way(b, a, way))
                        && plugged
                        && powered;
                    if clear {
                        self.within_reach.entry((a, b, zone)).or_insert(now);
                    } else {
                        self.within_reach.remove(&(a, b, zone));
                    }
                }
            }
        }
    }

    fn hear_each_other(&mut self, a: NodeId, b: NodeId, on_sync: bool) -> bool {
        let now = self.now;
        let runs = |n: NodeId| {
            let daemon = self.nodes[usize::from(n) - 1].daemon.as_ref();
            daemon.and_then(|d| d.roles.as_ref()).is_some_and(|r| r.hung <= now)
        };
        if !runs(a) || !runs(b) {
            return false;
        }
        let mut ways = if on_sync { 0..self.shape.links } else { self.shape.links..self.network.links() };
        ways.any(|way| !self.network.way(a, b, way).cut && !self.network.way(b, a, way).cut)
    }

    /// An operator moves a group away from a node.
    pub fn switch_over(&mut self, id: NodeId, group: Group) {
        let clock = self.nodes[usize::from(id) - 1].clock(self.now);
        let moved = self.election(id).and_then(|e| e.switchover(clock, group, None).ok());
        self.trace(Some(id), || format!("is to move group {group}: {moved:?}"));
        self.elect(id);
    }

    /// An operator lets a node stand by, or not.
    pub fn stand_by(&mut self, id: NodeId, on: bool, force: bool) {
        let clock = self.nodes[usize::from(id) - 1].clock(self.now);
        // A node that must not, or is leaving, says so; then nothing has changed.
        let _ = self.election(id).map(|e| e.standby(clock, on, force));
        self.elect(id);
    }

    /// A node is told to end.
    pub fn shut_down(&mut self, id: NodeId) {
        let clock = self.nodes[usize::from(id) - 1].clock(self.now);
        if let Some(election) = self.election(id) {
            election.shutdown(clock);
        }
        self.elect(id);
    }

    /// A tracker of a node has another verdict.
    pub fn track(&mut self, id: NodeId, tracker: u32, up: bool) {
        if let Some(roles) = self.node(id).daemon.as_mut().and_then(|daemon| daemon.roles.as_mut()) {
            roles.verdicts.push((tracker, up));
        }
        self.elect(id);
    }
}
