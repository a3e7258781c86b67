//! The loaded programs in a network namespace of their own, with the interfaces and routes they ask for, and
//! their maps at hand.
//!
//! ```text
//!  client 192.168.100.100 ── lan 192.168.100.1 [node 1] wan 10.0.0.1 ── server 10.0.0.128
//!                                                   │    ├── 203.0.113.0/24 via 10.0.0.254, unresolved
//!                                             sync, no zone: 192.0.2.0/24
//!                                             trunk: nothing, until a test has it carry VLANs
//! ```

mod run;
mod settings;
mod tables;
mod wire;

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
use fwha_common::bloom::Bit;
use fwha_common::capture::{Capture, DropSample};
use fwha_common::drop::DropReason;
use fwha_common::embryonic::{EmbryonicSet, EmbryonicUses, Fingerprints, Site};
use fwha_common::flow::{Flow, FlowEvent, FlowKey, FlowState, proto};
use fwha_common::group::{Claim, Group, Vip, VipKey, VirtualMac, VirtualMacKey};
use fwha_common::limit::{Limits, Source};
use fwha_common::route::{PlainRoutes, Prefix};
use fwha_common::rule::{Action, Decision, Interface, InterfaceKey, Rule, Service, Tag, name_hash};
use fwha_common::ruleset::{self, Ruleset, RulesetMap};
use fwha_common::settings::{COUNTERS, Counter, Settings, Timeouts, name};
use fwha_tests::sys::{Feature, Received, ask_for_tags, empty_map, packet_socket, receive, set_feature};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

pub use run::Sent;
pub use settings::{accept, accept_service, with_action};
pub use tables::{Embryonic, Table, clear, keys};
pub use wire::{Wire, await_frame};

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

/// Elements of `FRAGMENTS`: the programs keep them for themselves.
type DatagramKey = [u8; 40];
type Datagram = [u8; 56];

/// The number of the last set of embryonic flows: enough that no set is full.
pub const LAST_SET: u32 = 127;

/// The number of the last word of the filter of flows that there may be.
pub const LAST_WORD: u32 = 63;

/// The loaded programs.
pub struct Rig {
    pub hook: Hook,
    bpf: Ebpf,
    /// Handles on all maps that the programs write, and on all that are written for them, by name.
    maps: BTreeMap<String, MapData>,
    pub flows: HashMap<MapData, FlowKey, Flow>,
    pub embryonic: Embryonic,
    /// Known and recent bits.
    bloom: [Array<MapData, u64>; 2],
    pub node_flows: HashMap<MapData, FlowKey, Flow>,
    pub node_guests: HashMap<MapData, FlowKey, Flow>,
    fragments: HashMap<MapData, DatagramKey, Datagram>,
    interfaces: HashMap<MapData, InterfaceKey, Interface>,
    plain_routes: Array<MapData, PlainRoutes>,
    groups: Array<MapData, Group>,
    pub vips: HashMap<MapData, VipKey, Vip>,
    pub claims: HashMap<MapData, VipKey, Claim>,
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
            lay_interfaces(if hook == Hook::Xdp { 64 } else { 1 });
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

/// Index of an interface.
const LAN_INDEX: u32 = 100;

/// `apart` are the indices of the two between which packets go. If it is 64, what a CPU knows of the one has the place of what it
/// knows of the other (`KNOWN_INTERFACES`), as on a machine with many.
fn lay_interfaces(apart: u32) {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding");
    let commands = format!(
        "link add lan index {LAN_INDEX} type veth peer name lan-peer
         link add wan index {} type veth peer name wan-peer
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
         route add blackhole 198.51.100.0/24\n",
        LAN_INDEX + apart
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
            .map_max_entries(name::EMBRYONIC_USES, LAST_SET + 1)
            .map_max_entries(name::FINGERPRINTS, LAST_SET + 1)
            .override_global(name::EMBRYONIC_LAST, &LAST_SET, true)
            .map_max_entries(name::BLOOM, LAST_WORD + 1)
            .map_max_entries(name::BLOOM_RECENT, LAST_WORD + 1)
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
            let loaded = (0..20).map(|_| load()).find(|loaded| !interrupted(loaded));
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
            embryonic: Embryonic {
                sets: take!(name::EMBRYONIC),
                uses: take!(name::EMBRYONIC_USES),
                fingerprints: take!(name::FINGERPRINTS),
            },
            bloom: [take!(name::BLOOM), take!(name::BLOOM_RECENT)],
            node_flows: take!(name::NODE_FLOWS),
            node_guests: take!(name::NODE_GUESTS),
            fragments: take!(name::FRAGMENTS),
            interfaces: take!(name::INTERFACES),
            plain_routes: take!(name::PLAIN_ROUTES),
            groups: take!(name::GROUPS),
            vips: take!(name::VIPS),
            claims: take!(name::CLAIMS),
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

    pub fn ifindex(&self, port: Port) -> u32 {
        self.ifindexes[port as usize]
    }
}
