//! The loaded programs in a network namespace of their own, with the interfaces and routes they ask for, and
//! their maps at hand.
//!
//! ```text
//!  client 192.168.100.100 ── lan 192.168.100.1 [node 1] wan 10.0.0.1 ── server 10.0.0.128
//!                                                   │    ├── 203.0.113.0/24 via 10.0.0.254, unresolved
//!                                             sync, no zone: 192.0.2.0/24
//!                                             trunk: nothing, until a test has it carry VLANs
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write as _;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{
    Program, ProgramError, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, Xdp, XdpMode,
};
use aya::{Ebpf, EbpfLoader, Pod};
use fwha_common::BUCKETS;
use fwha_common::bloom::{Bit, Word};
use fwha_common::capture::{Capture, DropSample};
use fwha_common::drop::DropReason;
use fwha_common::embryonic::{EmbryonicSet, EmbryonicTags, Site};
use fwha_common::flow::{Flow, FlowEvent, FlowKey, FlowState, proto};
use fwha_common::group::{Group, Vip, VipKey, VirtualMac, VirtualMacKey};
use fwha_common::limit::{Limits, Source};
use fwha_common::route::{PlainRoutes, Prefix};
use fwha_common::rule::{Action, Decision, Interface, InterfaceKey, Rule, Service, Tag, name_hash};
use fwha_common::ruleset::{self, Ruleset, RulesetMap};
use fwha_common::settings::{COUNTERS, Counter, Settings, Timeouts, name};
use fwha_tests::sys::{Feature, Received, ask_for_tags, empty_map, packet_socket, receive, set_feature};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

/// Zone numbers.
pub const LAN: u8 = 1;
pub const WAN: u8 = 2;

/// MACs of the node's interfaces and of its neighbours.
pub const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 100];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 128];

/// MTU on the server's side.
pub const WAN_MTU: usize = 1400;

/// Main table of the rig.
pub const MAX_FLOWS: u32 = 8;

/// Bytes of the ring of samples: one page.
pub const SAMPLES_LEN: u32 = 4096;

/// How long something may take that must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// The settings every rig begins with.
pub const SETTINGS: Settings = Settings {
    bucket_key: [1, 2],
    probe_key: [0x1234_5678, 4],
    cluster: 7,
    epoch: 9,
    route_generation: 1,
    ruleset_generation: 0,
    node: 1,
    vlans: 0,
    flags: 0,
    zero: [0; 5],
    bucket_group: [0; BUCKETS],
};

/// Bytes by which an answer may be longer than what it answers.
const GROWTH: usize = 64;

/// How a packet is counted: in, and out.
pub const EXITS: [Counter; 7] = [
    Counter::PacketsIn,
    Counter::Forwarded,
    Counter::Passed,
    Counter::Dropped,
    Counter::ProbesAnswered,
    Counter::SynAnswered,
    Counter::VipAnswered,
];

/// The group that has all buckets.
pub const TERM: u32 = 3;

/// Where a packet enters the firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    Tc,
}

/// An interface of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Lan,
    Wan,
    Sync,
    Trunk,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Forward,
    Pass,
    Answer,
    Drop(DropReason),
}

/// A packet after the programs had it.
pub struct Sent {
    pub verdict: Verdict,
    pub frame: Vec<u8>,
    /// Its mark, at tc.
    pub mark: u32,
}

/// `struct __sk_buff` of `linux/bpf.h`, as far as a test run lets one set it.
#[repr(C)]
#[derive(Default)]
struct SkBuff {
    len: u32,
    pkt_type: u32,
    mark: u32,
    queue_mapping: u32,
    protocol: u32,
    vlan: [u32; 3],
    priority: u32,
    ingress_ifindex: u32,
    ifindex: u32,
    rest: [u32; 30],
    gso_segs: u32,
    sk: u64,
    gso_size: u32,
    tstamp_type: u32,
    hwtstamp: u64,
}

/// `struct xdp_md` of `linux/bpf.h`.
#[repr(C)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

fn bytes<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl SkBuff {
    /// Bytes of the structure up to `hwtstamp`.
    fn context(&self) -> Vec<u8> {
        let mut context = bytes([self.len, self.pkt_type, self.mark, self.queue_mapping, self.protocol]);
        context.extend(bytes(self.vlan));
        context.extend(bytes([self.priority, self.ingress_ifindex, self.ifindex]));
        context.extend(bytes(self.rest));
        context.extend(bytes([self.gso_segs]));
        context.extend(self.sk.to_ne_bytes());
        context.extend(bytes([self.gso_size, self.tstamp_type]));
        context.extend(self.hwtstamp.to_ne_bytes());
        context
    }
}

/// What a test looks at in a [`FlowEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: u32,
    pub key: FlowKey,
    pub state: u8,
    pub version: u64,
    pub number: u64,
}

impl Event {
    fn read(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), size_of::<FlowEvent>());
        let u16 = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two"));
        let u32 = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        let u64 = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let key = offset_of!(FlowEvent, key);
        let flow = offset_of!(FlowEvent, flow);
        Self {
            kind: u32(offset_of!(FlowEvent, kind)),
            key: FlowKey {
                addr_a: [0, 4, 8, 12].map(|i| u32(key + i)),
                addr_b: [16, 20, 24, 28].map(|i| u32(key + i)),
                port_a: u16(key + 32),
                port_b: u16(key + 34),
                proto: bytes[key + 36],
                zero: 0,
                zeros: 0,
            },
            state: Flow::state_of(u32(flow + offset_of!(Flow, word))),
            version: u64(flow + offset_of!(Flow, version)),
            number: u64(flow + offset_of!(Flow, number)),
        }
    }
}

/// Elements of `FRAGMENTS`: the programs keep them for themselves.
type DatagramKey = [u8; 40];
type Datagram = [u8; 56];

/// The number of the last set of embryonic flows: enough that no set is full.
pub const LAST_SET: u32 = 127;

/// The number of the last word of the filter of flows that there may be.
pub const LAST_WORD: u32 = 63;

/// The table of embryonic flows.
pub struct Embryonic(Array<MapData, EmbryonicSet>, Array<MapData, EmbryonicTags>);

impl Embryonic {
    fn sets(&self) -> impl Iterator<Item = (u32, EmbryonicSet)> {
        (0..self.0.len()).map(|n| (n, self.0.get(&n, 0).expect("a set")))
    }

    /// Holds what is known of the places against what is in them.
    pub fn check(&self) {
        let mut keys = HashSet::new();
        for (n, set) in self.sets() {
            let tags = self.1.get(&n, 0).expect("what is known of it");
            assert_eq!((tags.lock, tags.zero), Default::default());
            for (tag, place) in tags.tags.into_iter().zip(set.places) {
                assert_eq!(place.zeros, [0; 6]);
                assert_eq!(tag != 0, place.get().is_some(), "{:?} is marked as {tag:x}", place.key);
                if tag != 0 {
                    let site = Site::new(place.key.hash(&SETTINGS.bucket_key), LAST_SET);
                    assert_eq!((site.set, site.tag), (n, tag));
                    assert!(keys.insert(place.key), "{:?} is there twice", place.key);
                }
            }
        }
    }

    fn clear(&mut self) {
        let used: Vec<_> = self.sets().filter(|(_, set)| *set != EmbryonicSet::default()).collect();
        for (n, _) in used {
            self.0.set(n, EmbryonicSet::default(), 0).expect("a set");
            self.1.set(n, EmbryonicTags::default(), 0).expect("what is known of it");
        }
    }
}

/// A table of flows from user space.
pub trait Table {
    /// Its flows.
    fn flows(&self) -> Vec<(FlowKey, Flow)>;
    /// Changes a flow.
    fn change(&mut self, key: &FlowKey, flow: Flow);

    /// One of them.
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows().into_iter().find_map(|(found, flow)| (found == *key).then_some(flow))
    }
}

impl Table for HashMap<MapData, FlowKey, Flow> {
    fn flows(&self) -> Vec<(FlowKey, Flow)> {
        keys(self).into_iter().map(|key| (key, self.get(&key, 0).expect("a flow"))).collect()
    }
    fn change(&mut self, key: &FlowKey, flow: Flow) {
        self.insert(key, flow, 0).expect("a flow");
    }
}

impl Table for Embryonic {
    fn flows(&self) -> Vec<(FlowKey, Flow)> {
        let flows =
            |(_, set): (u32, EmbryonicSet)| set.flows().map(|(key, flow)| (*key, *flow)).collect::<Vec<_>>();
        self.sets().flat_map(flows).collect()
    }
    fn change(&mut self, key: &FlowKey, flow: Flow) {
        for (n, mut set) in self.sets().collect::<Vec<_>>() {
            if let Some(place) =
                set.places.iter_mut().find(|place| place.get().is_some() && place.key == *key)
            {
                place.flow = flow;
                return self.0.set(n, set, 0).expect("a set");
            }
        }
        panic!("no such flow");
    }
}

/// The loaded programs.
pub struct Rig {
    pub hook: Hook,
    bpf: Ebpf,
    /// Handles on all maps that the programs write, and on all that are written for them, by name.
    maps: BTreeMap<String, MapData>,
    pub flows: HashMap<MapData, FlowKey, Flow>,
    pub embryonic: Embryonic,
    bloom: Array<MapData, Word>,
    pub node_flows: HashMap<MapData, FlowKey, Flow>,
    fragments: HashMap<MapData, DatagramKey, Datagram>,
    interfaces: HashMap<MapData, InterfaceKey, Interface>,
    plain_routes: Array<MapData, PlainRoutes>,
    groups: Array<MapData, Group>,
    pub vips: HashMap<MapData, VipKey, Vip>,
    pub virtual_macs: HashMap<MapData, VirtualMacKey, VirtualMac>,
    rulesets: RulesetMap,
    settings: Array<MapData, Settings>,
    timeouts: Array<MapData, Timeouts>,
    counters: PerCpuArray<MapData, [u64; COUNTERS]>,
    drops: PerCpuArray<MapData, u64>,
    limits: Array<MapData, Limits>,
    pub sources: HashMap<MapData, [u32; 4], Source>,
    rule_hits: PerCpuArray<MapData, u64>,
    event_loss: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    capture: Array<MapData, Capture>,
    samples: RingBuf<MapData>,
    pub now: Settings,
    /// By [`Port`].
    ifindexes: [u32; 4],
}

/// Rigs of tests that have ended well, as if freshly loaded: the verifier takes a second or more.
static FREE: Mutex<Vec<Rig>> = Mutex::new(Vec::new());

/// Runs `test` twice, with the programs at XDP and at tc, each time as if freshly loaded. The thread of each run has a
/// network namespace that ends with it.
pub fn at_both_hooks(test: impl Fn(&mut Rig) + Copy + Send + 'static) {
    for hook in [Hook::Xdp, Hook::Tc] {
        let run = thread::Builder::new().name(format!("{hook:?}")).spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            lay_interfaces();
            let mut rig = Rig::take(hook);
            rig.set_up();
            test(&mut rig);
            rig.check_bloom();
            rig.empty();
            FREE.lock().expect("nobody panics with it").push(rig);
        });
        if let Err(panic) = run.expect("a thread").join() {
            std::panic::resume_unwind(panic);
        }
    }
}

fn lay_interfaces() {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding");
    let commands = format!(
        "link add lan type veth peer name lan-peer
         link add wan type veth peer name wan-peer
         link add sync type veth peer name sync-peer
         link add trunk type veth peer name trunk-peer
         link set lan address 02:00:00:00:01:01 up
         link set wan address 02:00:00:00:02:01 mtu {WAN_MTU} up
         link set sync address 02:00:00:00:03:01 up
         link set lan-peer up
         link set wan-peer up
         link set sync-peer up
         address add 192.168.100.1/24 dev lan
         address add 10.0.0.1/24 dev wan
         address add 172.16.0.1/24 dev sync
         neighbour add 192.168.100.100 lladdr 02:00:00:00:01:64 dev lan
         neighbour add 192.168.100.101 lladdr 02:00:00:00:01:65 dev lan
         neighbour add 10.0.0.128 lladdr 02:00:00:00:02:80 dev wan
         neighbour add 172.16.0.2 lladdr 02:00:00:00:03:02 dev sync
         address add 2001:db8:1::1/64 dev lan nodad
         address add 2001:db8:2::1/64 dev wan nodad
         neighbour add 2001:db8:1::100 lladdr 02:00:00:00:01:64 dev lan
         neighbour add 2001:db8:2::128 lladdr 02:00:00:00:02:80 dev wan
         route add 203.0.113.0/24 via 10.0.0.254
         route add 192.0.2.0/24 via 172.16.0.2
         route add blackhole 198.51.100.0/24\n"
    );
    ip(&["-batch", "-"], &commands);
    for end in ["trunk", "trunk-peer"] {
        silence(end);
        ip(&["link", "set", end, "up"], "");
    }
}

/// Nobody but the tests speaks at an interface from now on: without IPv6 the kernel says nothing unasked.
fn silence(interface: &str) {
    fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1").expect("no IPv6");
}

/// Runs the program `ip` in the namespace of the calling thread.
pub fn ip(arguments: &[&str], input: &str) {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program ip");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("its input");
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
}

impl Rig {
    /// A rig for this hook, with nothing in its maps.
    fn take(hook: Hook) -> Self {
        let mut free = FREE.lock().expect("nobody panics with it");
        let found = free.iter().position(|rig| rig.hook == hook).map(|place| free.swap_remove(place));
        drop(free);
        found.unwrap_or_else(|| Self::load(hook))
    }

    fn load(hook: Hook) -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fwha-ebpf/object/fwha.bpf.o");
        let object = fs::read(path).expect("the committed object");
        let mut bpf = EbpfLoader::new()
            .map_max_entries(name::FLOWS, MAX_FLOWS)
            .map_max_entries(name::EMBRYONIC, LAST_SET + 1)
            .map_max_entries(name::EMBRYONIC_TAGS, LAST_SET + 1)
            .override_global(name::EMBRYONIC_LAST, &LAST_SET, true)
            .map_max_entries(name::BLOOM, LAST_WORD + 1)
            .override_global(name::BLOOM_LAST, &LAST_WORD, true)
            .map_max_entries(name::EVENTS, 1 << 16)
            .map_max_entries(name::DROP_SAMPLES, SAMPLES_LEN)
            .load(&object)
            .expect("the object loads");
        let unused = if hook == Hook::Xdp { name::TC_INGRESS } else { name::XDP_INGRESS };
        for (_, program) in bpf.programs_mut().filter(|(name, _)| *name != unused) {
            // The verifier gives up with EAGAIN when a signal is pending, and may be asked again.
            let interrupted = |loaded: &Result<(), ProgramError>| {
                matches!(loaded, Err(ProgramError::LoadError { io_error, .. })
                    if io_error.kind() == std::io::ErrorKind::WouldBlock)
            };
            let mut load = || match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => panic!("a program of a kind that nobody asked for"),
            };
            let loaded = (0..5).map(|_| load()).find(|loaded| !interrupted(loaded));
            loaded.expect("the verifier comes to its end").expect("the verifier takes it");
        }
        let maps = bpf.maps().filter_map(|(name, map)| match map {
            // Emptied by whoever reads it.
            Map::RingBuf(_) => None,
            // Constants.
            Map::Array(_) if name.starts_with(".rodata") => None,
            Map::Array(map)
            | Map::ArrayOfMaps(map)
            | Map::HashMap(map)
            | Map::LruHashMap(map)
            | Map::PerCpuArray(map) => {
                assert!(!name.starts_with('.'), "{name} may begin with other values than zeros");
                let id = map.info().expect("a map").id();
                Some((name.to_owned(), MapData::from_id(id).expect("the map")))
            }
            other => panic!("{name} is a map of a kind that nobody asked for: {other:?}"),
        });
        let maps = maps.collect();
        macro_rules! take {
            ($name:expr) => {
                bpf.take_map($name).expect($name).try_into().expect($name)
            };
        }
        Self {
            hook,
            maps,
            flows: take!(name::FLOWS),
            embryonic: Embryonic(take!(name::EMBRYONIC), take!(name::EMBRYONIC_TAGS)),
            bloom: take!(name::BLOOM),
            node_flows: take!(name::NODE_FLOWS),
            fragments: take!(name::FRAGMENTS),
            interfaces: take!(name::INTERFACES),
            plain_routes: take!(name::PLAIN_ROUTES),
            groups: take!(name::GROUPS),
            vips: take!(name::VIPS),
            virtual_macs: take!(name::VIRTUAL_MACS),
            rulesets: take!(name::RULESETS),
            settings: take!(name::SETTINGS),
            timeouts: take!(name::TIMEOUTS),
            counters: take!(name::COUNTERS),
            drops: take!(name::DROPS),
            limits: take!(name::LIMITS),
            sources: take!(name::SOURCES),
            rule_hits: take!(name::RULE_HITS),
            event_loss: take!(name::EVENT_LOSS),
            events: take!(name::EVENTS),
            capture: take!(name::CAPTURE),
            samples: take!(name::DROP_SAMPLES),
            now: SETTINGS,
            ifindexes: [0; 4],
            bpf,
        }
    }

    /// Writes what every test begins with, for the interfaces of the present namespace.
    fn set_up(&mut self) {
        self.ifindexes = ["lan", "wan", "sync", "trunk"]
            .map(|name| nix::net::if_::if_nametoindex(name).expect("the interface"));
        self.now = SETTINGS;
        self.set_timeouts(Timeouts::KERNEL);
        self.configure(|_| {});
        for (port, zone, mac) in [
            (Port::Lan, LAN, LAN_MAC),
            (Port::Wan, WAN, WAN_MAC),
            (Port::Sync, Interface::NO_ZONE, [2, 0, 0, 0, 3, 1]),
        ] {
            self.set_interface(port, Interface { zone, mac, ..Interface::default() });
        }
        self.set_group(Group { lease_until_ns: u64::MAX, since_ns: 0, role: Group::ACTIVE, term: TERM });
        self.load_rules(&[Rule { from: LAN, to: WAN, ..accept("lan-out") }]);
    }

    /// Takes everything out of the maps.
    fn empty(&mut self) {
        for (name, map) in &self.maps {
            empty_map(map).unwrap_or_else(|error| panic!("{name} cannot be emptied: {error}"));
        }
        while self.events.next().is_some() {}
        while self.samples.next().is_some() {}
    }

    /// Sets how long flows are kept.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts.set(0, timeouts, 0).expect("timeouts");
    }

    /// Changes the settings.
    pub fn configure(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.now);
        self.settings.set(0, self.now, 0).expect("settings");
    }

    /// Puts a ruleset in force. The counter of each rule is its place.
    pub fn load_rules(&mut self, rules: &[Rule]) {
        let mut rules = rules.to_vec();
        for (i, rule) in rules.iter_mut().enumerate() {
            rule.decision.index = i as u32;
        }
        let compiled = Ruleset::compile(&rules).expect("a ruleset");
        let generation = self.now.ruleset_generation + 1;
        ruleset::load(&mut self.rulesets, generation, &compiled).expect("a ruleset");
        self.configure(|settings| {
            settings.ruleset_generation = generation;
            settings.flags = if compiled.has_syn_proxy() { Settings::SYN_PROXY } else { 0 };
        });
    }

    /// Does something again and again while these rulesets take turns, as the daemon puts them in force.
    pub fn while_reloading(&mut self, rulesets: &[Ruleset], times: usize, mut act: impl FnMut(&mut Self)) {
        let first = self.now.ruleset_generation;
        // Of its own: the settings have no other writer meanwhile.
        let [map, settings] = [name::RULESETS, name::SETTINGS].map(|name| {
            let id = self.maps[name].info().expect("a map").id();
            MapData::from_id(id).expect("the map")
        });
        let mut map: RulesetMap = Map::ArrayOfMaps(map).try_into().expect("rulesets");
        let mut settings: Array<_, Settings> = Map::Array(settings).try_into().expect("settings");
        let mut now = self.now;
        thread::scope(|scope| {
            let reloads = scope.spawn(move || {
                for ruleset in rulesets.iter().cycle().take(times) {
                    now.ruleset_generation += 1;
                    ruleset::load(&mut map, now.ruleset_generation, ruleset).expect("a ruleset");
                    settings.set(0, now, 0).expect("settings");
                    ruleset::retire(&mut map, now.ruleset_generation).expect("the one before goes");
                }
            });
            while !reloads.is_finished() {
                act(self);
            }
            reloads.join().expect("all are loaded");
        });
        self.now.ruleset_generation = first + times as u32;
    }

    /// Sets the state of the one group.
    pub fn set_group(&mut self, group: Group) {
        self.groups.set(0, group, 0).expect("group");
    }

    /// Sets the limits by source.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits.set(0, limits, 0).expect("limits");
    }

    /// Describes an interface to the programs; it leaves by itself.
    pub fn set_interface(&mut self, port: Port, interface: Interface) {
        let ifindex = self.ifindex(port);
        let interface = Interface { device: ifindex, trunk: ifindex, ..interface };
        self.interfaces.insert(InterfaceKey::untagged(ifindex), interface, 0).expect("interface");
        self.next_generation();
    }

    /// Says which plain routes there are in the present route generation; without a port the kernel is asked.
    pub fn set_plain_routes(&mut self, routes: &[(&str, u8, Option<Port>)]) {
        let generation = self.now.route_generation;
        for v6 in [false, true] {
            let mut plain = PlainRoutes { generation, ..PlainRoutes::NONE };
            let of_family = routes.iter().filter(|(address, ..)| address.contains(':') == v6);
            for ((address, len, port), prefix) in of_family.zip(&mut plain.prefixes) {
                let ifindex = port.map_or(0, |port| self.ifindex(port));
                *prefix = Prefix::new(address.parse().expect("an address"), *len, ifindex);
                plain.count += 1;
            }
            self.plain_routes.set(PlainRoutes::index(v6, generation), plain, 0).expect("plain routes");
        }
    }

    /// What programs remember of routes and interfaces is out of date.
    pub fn next_generation(&mut self) {
        self.configure(|settings| settings.route_generation += 1);
    }

    /// Makes an interface a VLAN of the trunk, as its device would be: what carries these tags there counts as its
    /// own, for routes and neighbours, too, and what it sends leaves there.
    pub fn set_vlan(&mut self, port: Port, interface: Interface, tags: [Tag; 2]) {
        let (device, trunk) = (self.ifindex(port), self.ifindex(Port::Trunk));
        let interface = Interface { device, trunk, tags, ..interface };
        let tagged = InterfaceKey { ifindex: trunk, vlan: tags[0].vlan(), inner: tags[1].vlan() };
        for key in [tagged, InterfaceKey::untagged(device)] {
            self.interfaces.insert(key, interface, 0).expect("interface");
        }
        self.configure(|settings| settings.vlans = 1);
        self.next_generation();
    }

    /// Makes an interface a trunk with one VLAN, for which the kernel has no device.
    pub fn set_bare(&mut self, port: Port, interface: Interface, tags: [Tag; 2]) {
        let ifindex = self.ifindex(port);
        let interface =
            Interface { device: ifindex, trunk: ifindex, tags, flags: Interface::BARE, ..interface };
        let tagged = InterfaceKey { ifindex, vlan: tags[0].vlan(), inner: tags[1].vlan() };
        for key in [tagged, InterfaceKey::untagged(ifindex)] {
            self.interfaces.insert(key, interface, 0).expect("interface");
        }
        self.configure(|settings| settings.vlans = 1);
        self.next_generation();
    }

    /// Takes an interface out of all zones.
    pub fn remove_interface(&mut self, port: Port) {
        self.interfaces.remove(&InterfaceKey::untagged(self.ifindex(port))).expect("interface");
        self.next_generation();
    }

    pub fn ifindex(&self, port: Port) -> u32 {
        self.ifindexes[port as usize]
    }

    /// Sends a frame in by `port`, and checks that exactly one exit was counted with it.
    pub fn send(&mut self, port: Port, frame: &[u8]) -> Sent {
        self.send_super(port, frame, 1, 0)
    }

    /// Sends a super-packet of `segments` segments with `segment_size` bytes each.
    pub fn send_super(&mut self, port: Port, frame: &[u8], segments: u32, segment_size: u32) -> Sent {
        let before = self.exits();
        let (code, frame, mark) = match self.hook {
            Hook::Xdp => {
                assert_eq!(segments, 1, "there are no super-packets at XDP");
                self.run_xdp(port, frame, 1)
            }
            Hook::Tc => {
                let gso = if segments == 1 { (0, 0) } else { (segments, segment_size) };
                self.run_tc(name::TC_INGRESS, port, Some(port), frame, 0, gso)
            }
        };
        let verdict = self.verdict_since(&before, segments.into());
        let expected = match (self.hook, verdict) {
            (Hook::Xdp, Verdict::Drop(_)) => 1,
            (Hook::Xdp, Verdict::Pass) => 2,
            (Hook::Xdp, Verdict::Answer | Verdict::Forward) => 4,
            (Hook::Tc, Verdict::Drop(_)) => 2,
            (Hook::Tc, Verdict::Pass) => u32::MAX,
            (Hook::Tc, Verdict::Answer | Verdict::Forward) => 7,
        };
        assert_eq!(code, expected, "the action fits the counters: {verdict:?}");
        Sent { verdict, frame, mark }
    }

    /// Sends a frame in by `port`, and looks at nothing.
    pub fn run(&self, port: Port, frame: &[u8]) {
        match self.hook {
            Hook::Xdp => self.run_xdp(port, frame, 1),
            Hook::Tc => self.run_tc(name::TC_INGRESS, port, Some(port), frame, 0, (0, 0)),
        };
    }

    /// Sends a frame in by `port` again and again, at XDP, and looks at nothing. It stays as it is if it is not
    /// forwarded.
    pub fn run_often(&self, port: Port, frame: &[u8], times: u32) {
        self.run_xdp(port, frame, times);
    }

    /// Sends a frame in by a sync interface, through its own program.
    pub fn send_sync(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let (code, frame, _) =
            self.run_tc(name::SYNC_INGRESS, Port::Sync, Some(Port::Sync), frame, 0, (0, 0));
        (code, frame)
    }

    /// Attaches the programs to an interface, as long as the wire is there. Packets then go the way that the kernel has
    /// for them; those of IPv6 have none.
    pub fn wire(&mut self, port: Port) -> Wire {
        let name = ["lan", "wan", "sync", "trunk"][port as usize];
        let peer = format!("{name}-peer");
        for end in [name, &peer] {
            silence(end);
        }
        let egress = self.attach_tc(name::TC_EGRESS, name, TcAttachType::Egress);
        let ingress = match self.hook {
            Hook::Tc => Ingress::Tc { _link: self.attach_tc(name::TC_INGRESS, name, TcAttachType::Ingress) },
            Hook::Xdp => {
                let program: &mut Xdp =
                    self.bpf.program_mut(name::XDP_INGRESS).expect("program").try_into().expect("XDP");
                let link = program.attach(name, XdpMode::Driver).expect("native XDP");
                Ingress::Xdp { _link: program.take_link(link).expect("a link") }
            }
        };
        // XDP hands frames over to an end that takes them so.
        set_feature(&peer, Feature::Gro, true).expect("GRO");
        let far = packet_socket(&peer).expect("a packet socket");
        ask_for_tags(far.as_fd()).expect("tags");
        Wire { far, _ingress: ingress, _egress: egress }
    }

    fn attach_tc(&mut self, program: &str, interface: &str, at: TcAttachType) -> SchedClassifierLink {
        let program: &mut SchedClassifier =
            self.bpf.program_mut(program).expect("program").try_into().expect("classifier");
        let link = program.attach(interface, at).expect("TCX");
        program.take_link(link).expect("a link")
    }

    /// Sends a frame in by a wire, and waits until it was judged.
    pub fn send_by(&mut self, wire: &Wire, frame: &[u8]) -> Verdict {
        let before = self.exits();
        wire.send(frame);
        let start = Instant::now();
        while self.exits()[1..EXITS.len()] == before[1..EXITS.len()] {
            assert!(start.elapsed() < PATIENCE, "nothing came of it");
            thread::yield_now();
        }
        self.verdict_since(&before, 1)
    }

    /// Has a frame leave by `port`. It entered this machine by `entered`, or was made here. Returns whether it may.
    pub fn leave(&mut self, port: Port, entered: Option<Port>, mark: u32, frame: &[u8]) -> bool {
        let before = self.drop_count(DropReason::Unfiltered);
        let (code, _, mark_after) = self.run_tc(name::TC_EGRESS, port, entered, frame, mark, (0, 0));
        let dropped = self.drop_count(DropReason::Unfiltered) - before;
        assert_eq!((code, dropped), if code == 2 { (2, 1) } else { (u32::MAX, 0) });
        assert!(code == 2 || mark_after == 0 || mark_after == mark && mark != self.egress_mark());
        code != 2
    }

    /// Has a frame that was made here leave by `port`, and returns it, if it does.
    pub fn depart(&mut self, port: Port, frame: &[u8]) -> Option<Vec<u8>> {
        let (code, frame, _) = self.run_tc(name::TC_EGRESS, port, None, frame, 0, (0, 0));
        (code != 2).then_some(frame)
    }

    /// The mark by which the egress program knows what the ingress program sends.
    pub fn egress_mark(&self) -> u32 {
        (self.now.probe_key[0] ^ self.now.bucket_key[1]) as u32 | 1
    }

    fn run_xdp(&self, port: Port, frame: &[u8], times: u32) -> (u32, Vec<u8>, u32) {
        let md = XdpMd {
            data: 0,
            data_end: frame.len() as u32,
            data_meta: 0,
            ingress_ifindex: self.ifindex(port),
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        let context = bytes([
            md.data,
            md.data_end,
            md.data_meta,
            md.ingress_ifindex,
            md.rx_queue_index,
            md.egress_ifindex,
        ]);
        let program: &Xdp = self.bpf.program(name::XDP_INGRESS).expect("program").try_into().expect("XDP");
        let mut out = vec![0; frame.len() + GROWTH];
        let run = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                repeat: times,
                ctx_in: Some(&context),
                ..Default::default()
            })
            .expect("a test run");
        out.truncate(run.data_size_out as usize);
        (run.return_value, out, 0)
    }

    fn run_tc(
        &self,
        program: &str,
        port: Port,
        entered: Option<Port>,
        frame: &[u8],
        mark: u32,
        (gso_segs, gso_size): (u32, u32),
    ) -> (u32, Vec<u8>, u32) {
        let context = SkBuff {
            mark,
            ingress_ifindex: entered.map_or(0, |port| self.ifindex(port)),
            ifindex: self.ifindex(port),
            gso_segs,
            gso_size,
            ..SkBuff::default()
        }
        .context();
        let program: &SchedClassifier =
            self.bpf.program(program).expect("program").try_into().expect("classifier");
        let (mut out, mut context_out) = (vec![0; frame.len() + GROWTH], vec![0; context.len()]);
        let run = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_out),
                ..Default::default()
            })
            .expect("a test run");
        out.truncate(run.data_size_out as usize);
        let mark = u32::from_ne_bytes(context_out[8..12].try_into().expect("four bytes"));
        (run.return_value, out, mark)
    }

    /// A counter, over all CPUs.
    pub fn counter(&self, counter: Counter) -> u64 {
        let of_cpus = self.counters.get(&0, 0).expect("the counters");
        of_cpus.iter().map(|counters| counters[counter as usize]).sum()
    }

    /// Drops for a reason, over all CPUs.
    pub fn drop_count(&self, reason: DropReason) -> u64 {
        sum(&self.drops, reason as u32)
    }

    /// Hits of a rule.
    pub fn hits(&self, rule: u32) -> u64 {
        sum(&self.rule_hits, rule)
    }

    /// Events that were lost in a bucket.
    pub fn lost(&self, bucket: u8) -> u64 {
        sum(&self.event_loss, bucket.into())
    }

    /// All drops, by reason.
    pub fn drops(&self) -> u64 {
        DropReason::ALL.iter().map(|&reason| self.drop_count(reason)).sum()
    }

    fn exits(&self) -> Vec<u64> {
        let counters = EXITS.iter().map(|&counter| self.counter(counter));
        counters.chain(DropReason::ALL.iter().map(|&reason| self.drop_count(reason))).collect()
    }

    fn verdict_since(&self, before: &[u64], packets: u64) -> Verdict {
        let after = self.exits();
        let rise: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let verdict = match rise[..EXITS.len()] {
            [_, n, 0, 0, 0, 0, 0] if n > 0 => Verdict::Forward,
            [_, 0, n, 0, 0, 0, 0] if n > 0 => Verdict::Pass,
            [_, 0, 0, 0, n, 0, 0] | [_, 0, 0, 0, 0, n, 0] | [_, 0, 0, 0, 0, 0, n] if n > 0 => Verdict::Answer,
            [_, 0, 0, n, 0, 0, 0] if n > 0 => {
                let reason = rise[EXITS.len()..].iter().position(|&n| n > 0).expect("a drop has a reason");
                Verdict::Drop(DropReason::ALL[reason])
            }
            ref other => panic!("not one exit for a packet: {other:?}"),
        };
        assert_eq!(rise[0], packets, "it entered once");
        assert_eq!(rise[1..EXITS.len()].iter().sum::<u64>(), packets, "and left once");
        assert_eq!(rise[EXITS.len()..].iter().sum::<u64>(), rise[3], "each drop has one reason");
        verdict
    }

    /// The events written since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.push(Event::read(&item));
        }
        events
    }

    /// Has drops for these reasons sampled: so many in a window on a CPU.
    pub fn capture(&mut self, reasons: &[DropReason], samples_max: u32) {
        let reasons = reasons.iter().fold(0, |bits, &reason| bits | Capture::bit(reason));
        self.capture.set(0, Capture { reasons, samples_max, zero: 0 }, 0).expect("capture");
    }

    /// The samples written since the last call.
    pub fn samples(&mut self) -> Vec<DropSample> {
        let mut samples = Vec::new();
        while let Some(item) = self.samples.next() {
            let (header, bytes) = item.split_at(offset_of!(DropSample, bytes));
            let u16 = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().expect("two"));
            let u32 = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four"));
            samples.push(DropSample {
                time_ns: u64::from_ne_bytes(header[..8].try_into().expect("eight")),
                ifindex: u32(8),
                len: u32(12),
                captured: u16(16),
                vlan_tci: u16(18),
                reason: header[20],
                hook: header[21],
                flags: header[22],
                zero: header[23],
                bytes: bytes.try_into().expect("a sample's bytes"),
            });
        }
        samples
    }

    /// What the filter says of the flow of a key: there may be one, and it was noted since the last renewal.
    pub fn noted(&self, key: &FlowKey) -> [bool; 2] {
        let bit = Bit::new(key.hash(&self.now.bucket_key), LAST_WORD);
        let word = self.bloom.get(&bit.word, 0).expect("a word");
        [word.known, word.recent].map(|bits| bits & bit.mask != 0)
    }

    /// Makes every word of the filter this.
    pub fn set_bloom(&mut self, word: Word) {
        (0..=LAST_WORD).for_each(|n| self.bloom.set(n, word, 0).expect("a word"));
    }

    /// Holds the filter of flows that there may be against those that there are.
    fn check_bloom(&self) {
        for (key, _) in self.flows.flows() {
            assert!(key.proto != proto::TCP || self.noted(&key)[0], "a SYN would not find {key:?}");
        }
    }

    /// Changes a flow of the main table from user space.
    pub fn edit(&mut self, key: &FlowKey, change: impl FnOnce(&mut Flow)) {
        let mut flow = self.flows.get(key, 0).expect("the flow");
        change(&mut flow);
        self.flows.insert(key, flow, 0).expect("the flow");
    }

    /// Removes all flows.
    pub fn clear_flows(&mut self) {
        clear(&mut self.flows);
        self.embryonic.clear();
        clear(&mut self.node_flows);
    }

    /// Forgets all datagrams in fragments.
    pub fn clear_fragments(&mut self) {
        clear(&mut self.fragments);
    }

    /// The state of a flow of the main table.
    pub fn state(&self, key: &FlowKey) -> Option<FlowState> {
        Some(self.flows.get(key, 0).ok()?.state())
    }
}

/// The other end of an interface that has the programs.
pub struct Wire {
    far: OwnedFd,
    _ingress: Ingress,
    _egress: SchedClassifierLink,
}

/// The program where packets enter by a wire is attached as long as this is there.
enum Ingress {
    Tc { _link: SchedClassifierLink },
    Xdp { _link: XdpLink },
}

impl Wire {
    /// Sends a frame towards the node.
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.far, frame).expect("it is sent"), frame.len());
    }

    /// The next frame that comes from the node, which must come.
    pub fn receive(&self) -> Vec<u8> {
        await_frame(self.far.as_fd()).frame
    }

    /// Whether nothing more has come. (What the node was to answer at once is there when it was judged.)
    pub fn silent(&self) -> bool {
        receive(self.far.as_fd()).expect("a packet socket").is_none()
    }
}

/// The next frame at a packet socket, which must come.
pub fn await_frame(socket: BorrowedFd<'_>) -> Received {
    let timeout = PollTimeout::try_from(PATIENCE).expect("a timeout");
    let mut ready = [PollFd::new(socket, PollFlags::POLLIN)];
    assert_eq!(poll(&mut ready, timeout).expect("poll"), 1, "no frame came");
    receive(socket).expect("a packet socket").expect("a frame")
}

/// The keys of a table.
pub fn keys<K: Pod, V: Pod>(table: &HashMap<MapData, K, V>) -> Vec<K> {
    table.keys().map(|key| key.expect("a key")).collect()
}

/// Removes all elements of a table.
pub fn clear<K: Pod, V: Pod>(table: &mut HashMap<MapData, K, V>) {
    for key in keys(table) {
        table.remove(&key).expect("an element");
    }
}

fn sum(counters: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    counters.get(&index, 0).expect("a counter").iter().sum()
}

/// A rule that admits everything.
pub fn accept(name: &str) -> Rule {
    with_action(Action::Accept, name)
}

/// A rule that does this with everything.
pub fn with_action(action: Action, name: &str) -> Rule {
    Rule::all(Decision { action: action as u8, name_hash: name_hash(name), ..Decision::default() })
}

/// A rule that accepts ports of a protocol.
pub fn accept_service(proto: u8, port_min: u16, port_max: u16, name: &str) -> Rule {
    Rule { services: vec![Service { proto, port_min, port_max }], ..accept(name) }
}
