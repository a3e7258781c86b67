//! The programs and the model get the same packets, and must give the same verdict and keep the same flows.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fwha_common::flow::{Flow, FlowKey, FlowState, Way, octets};
use fwha_common::group::Group;
use fwha_common::rule::{self, Action, ZONE_NODE};
use fwha_common::settings::Timeouts;
use fwha_tests::frames::{Host, Random, random_frame};
use fwha_tests::model::environment::Environment;
use fwha_tests::model::flow::{SECOND_NS, Tracking, protocol};
use fwha_tests::model::{
    self, Key, Model, Ownership, Port, Prefix, Reason, Route, Rule, State, Target, Verdict,
};
use fwha_tests::needs_root;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
};

use crate::rig::{
    self, CLIENT_MAC, Hook, LAN_MAC, MAX_FLOWS, Rig, SERVER_MAC, TERM, Table, WAN_MAC, WAN_MTU,
    at_both_hooks, keys,
};
use crate::robustness::SHORTEST_AT_TC;
use crate::script::{Audience, Family, Mark, Say, Step, Tag, Twist, Who, play, scripts};

/// Scripts at each hook, unless `FWHA_MODEL_CASES` says how many.
const CASES: u64 = 200;

/// Random frames at each hook, unless `FWHA_MODEL_FRAMES` says how many.
const FRAMES: u64 = 10_000;

const MTU: usize = 1500;

/// As the rig lays it.
fn environment() -> Environment {
    let port = |zone, mac| Port { zone, mac };
    let addresses = |addresses: &[&str]| -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().expect("an address")).collect()
    };
    let via = |network: [u8; 4], length, port, mtu, router: Option<[u8; 4]>| {
        (Prefix::new(network, length), Route::Via { port, router: router.map(IpAddr::from), mtu })
    };
    let via_v6 =
        |network: [u16; 8], port, mtu| (Prefix::new(network, 64), Route::Via { port, router: None, mtu });
    let neighbour = |port, address: &str| (port, address.parse().expect("an address"));
    Environment {
        ports: vec![
            port(Some(rig::LAN), LAN_MAC),
            port(Some(rig::WAN), WAN_MAC),
            port(None, [2, 0, 0, 0, 3, 1]),
        ],
        own: addresses(&[
            "192.168.100.1",
            "192.168.100.255",
            "10.0.0.1",
            "10.0.0.255",
            "172.16.0.1",
            "172.16.0.255",
            "2001:db8:1::1",
            "2001:db8:2::1",
            // Anycast, of all routers on the link (RFC 4291, 2.6.1).
            "2001:db8:1::",
            "2001:db8:2::",
        ]),
        routes: vec![
            via([192, 168, 100, 0], 24, 0, MTU, None),
            via([10, 0, 0, 0], 24, 1, WAN_MTU, None),
            via([172, 16, 0, 0], 24, 2, MTU, None),
            via([203, 0, 113, 0], 24, 1, WAN_MTU, Some([10, 0, 0, 254])),
            via([192, 0, 2, 0], 24, 2, MTU, Some([172, 16, 0, 2])),
            (Prefix::new([198, 51, 100, 0], 24), Route::Nowhere),
            via_v6([0x2001, 0xdb8, 1, 0, 0, 0, 0, 0], 0, MTU),
            via_v6([0x2001, 0xdb8, 2, 0, 0, 0, 0, 0], 1, WAN_MTU),
        ],
        neighbours: BTreeSet::from([
            neighbour(0, "192.168.100.100"),
            neighbour(0, "192.168.100.101"),
            neighbour(1, "10.0.0.128"),
            neighbour(2, "172.16.0.2"),
            neighbour(0, "2001:db8:1::100"),
            neighbour(1, "2001:db8:2::128"),
        ]),
        rules: Some(rules()),
        ownership: BTreeMap::new(),
        owned_by_default: Ownership::Owned,
        owned_since_ns: 0,
        max_flows: MAX_FLOWS as usize,
        now_ns: uptime_ns(),
    }
}

fn rules() -> Vec<Rule> {
    let to = |zone| Some(Target::Zone(zone));
    let rule = Rule::accept_all;
    vec![
        Rule { source: Some(Prefix::new([192, 168, 100, 101], 32)), accept: false, ..rule() },
        Rule { from: Some(rig::LAN), to: to(rig::WAN), ..rule() },
        // So that a connection may be opened from both sides.
        Rule {
            from: Some(rig::WAN),
            to: to(rig::LAN),
            protocol: Some(protocol::TCP),
            ports: 40_001..=40_001,
            ..rule()
        },
        Rule { to: Some(Target::Node), protocol: Some(protocol::TCP), ports: 22..=22, ..rule() },
        Rule { to: Some(Target::Node), protocol: Some(protocol::UDP), ports: 67..=67, ..rule() },
    ]
}

/// A rule as it is compiled for the programs.
fn compiled(rule: &Rule) -> rule::Rule {
    let networks = |prefix: Option<Prefix>| {
        prefix.iter().map(|prefix| rule::Network::new(prefix.address, prefix.length as u8)).collect()
    };
    let action = if rule.accept { Action::Accept } else { Action::Drop } as u8;
    rule::Rule {
        from: rule.from.unwrap_or(rule::ZONE_ANY),
        to: match rule.to {
            None => rule::ZONE_ANY,
            Some(Target::Node) => ZONE_NODE,
            Some(Target::Zone(zone)) => zone,
        },
        source: networks(rule.source),
        destination: networks(rule.destination),
        services: vec![rule::Service {
            proto: rule.protocol.unwrap_or(0),
            port_min: *rule.ports.start(),
            port_max: *rule.ports.end(),
        }],
        decision: rule::Decision { action, ..rule::Decision::default() },
    }
}

/// A key as the programs have it.
fn flow_key(key: &Key) -> FlowKey {
    let (low, high) = (key.low, key.high);
    FlowKey::new(octets(low.address), octets(high.address), low.port, high.port, key.protocol).0
}

/// `CLOCK_MONOTONIC` as of the kernel's last tick, as the programs read it.
fn uptime_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    now.tv_sec() as u64 * SECOND_NS + now.tv_nsec() as u64
}

/// What is compared of a flow, in words.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    state: &'static str,
    originator_is_high: bool,
    zones: [u8; 2],
    packets: [u64; 2],
    bytes: [u64; 2],
    windows: Option<[Window; 2]>,
    timeout_ns: u64,
}

/// What is compared of one side of a TCP connection.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    end: u32,
    edge: u32,
    max_window: u32,
    max_ack: Option<u32>,
}

impl Seen {
    fn in_model(flow: &model::Flow, protocol: u8) -> Self {
        let windows = match &flow.tracking {
            // One side alone is kept in many ways.
            Tracking::Tcp(connection) if connection.sides.iter().all(|side| side.max_window > 0) => {
                Some(connection.sides.map(|side| Window {
                    end: side.end.0,
                    edge: side.edge.0,
                    max_window: side.max_window,
                    max_ack: side.max_ack.map(|ack| ack.0),
                }))
            }
            _ => None,
        };
        Self {
            state: flow.state().as_str(),
            originator_is_high: flow.originator_is_high,
            zones: flow.zones.map(|zone| zone.unwrap_or(ZONE_NODE)),
            packets: flow.packets,
            bytes: flow.bytes,
            windows,
            timeout_ns: flow.timeout_ns(protocol),
        }
    }

    fn in_kernel(flow: &Flow, protocol: u8) -> Self {
        let both_seen = flow.ways.iter().all(|way| way.maxwin > 0);
        let windows = (protocol == protocol::TCP && both_seen).then(|| {
            flow.ways.map(|way| Window {
                end: way.end,
                edge: way.edge,
                max_window: way.maxwin,
                max_ack: (way.flags & Way::ACKED != 0).then_some(way.maxack),
            })
        });
        Self {
            state: flow.state().as_str(),
            originator_is_high: flow.originator_is_b(),
            zones: flow.zones(),
            packets: flow.packets(),
            bytes: flow.bytes(),
            windows,
            timeout_ns: Timeouts::KERNEL.of(protocol, flow, 0).expect("a state"),
        }
    }
}

/// The programs and the model beside each other.
struct Pair<'a> {
    rig: &'a mut Rig,
    model: Model,
}

impl<'a> Pair<'a> {
    /// Both without flows.
    fn new(rig: &'a mut Rig) -> Self {
        rig.load_rules(&rules().iter().map(compiled).collect::<Vec<_>>());
        let mut pair = Self { rig, model: Model::new(environment()) };
        pair.own(Ownership::Owned);
        pair.forget_flows();
        pair.forget_fragments();
        pair
    }

    /// Removes all flows from both.
    fn forget_flows(&mut self) {
        self.rig.clear_flows();
        self.model.forget_flows();
    }

    /// Removes all datagrams in fragments from both.
    fn forget_fragments(&mut self) {
        self.rig.clear_fragments();
        self.model.forget_fragments();
    }

    fn compare(
        &self,
        table: &str,
        model: &model::Table,
        kernel: &[(FlowKey, Flow)],
    ) -> Result<(), TestCaseError> {
        for (key, flow) in model {
            let expected = Seen::in_model(flow, key.protocol);
            let found = kernel.iter().find(|(found, _)| *found == flow_key(key));
            let found = found.map(|(_, flow)| Seen::in_kernel(flow, key.protocol));
            if found.as_ref() != Some(&expected) {
                return Err(TestCaseError::fail(format!(
                    "{table}, {key:?}:\n  the model has    {expected:?}\n  the programs have {found:?}"
                )));
            }
        }
        // What closed before it was answered is gone, though its element may lie there.
        let gone = |flow: &Flow| table == "embryonic" && flow.state() == FlowState::Close;
        let (expected, found) = (model.len(), kernel.iter().filter(|(_, flow)| !gone(flow)).count());
        if expected != found {
            return Err(TestCaseError::fail(format!(
                "{table}: {expected} flows in the model, {found} in the programs"
            )));
        }
        Ok(())
    }
}

impl Audience for Pair<'_> {
    fn model(&self) -> &Model {
        &self.model
    }

    fn own(&mut self, ownership: Ownership) {
        self.model.environment.owned_by_default = ownership;
        let owner = Group { lease_until_ns: u64::MAX, since_ns: 0, role: Group::ACTIVE, term: TERM };
        self.rig.set_group(match ownership {
            Ownership::Owned => owner,
            Ownership::NotOwned => Group { role: 0, ..owner },
            Ownership::Lapsed => Group { lease_until_ns: 1, ..owner },
        });
    }

    fn wait(&mut self, ns: u64) {
        // What is no time in the time of a way stays what it is.
        let ns = ns & !Way::MARK;
        self.model.age(ns);
        // How long those of the node live is nothing that the model knows.
        self.model.node.clear();
        rig::clear(&mut self.rig.node_flows);
        rig::clear(&mut self.rig.node_guests);
        for table in [&mut self.rig.flows as &mut dyn Table, &mut self.rig.embryonic] {
            for (key, mut flow) in table.flows() {
                flow.set_created_ns(flow.created_ns().saturating_sub(ns));
                // 0 is never.
                for way in flow.ways.iter_mut().filter(|way| way.last_seen_ns != 0) {
                    way.last_seen_ns = way.last_seen_ns.saturating_sub(ns).max(1);
                }
                table.change(&key, flow);
            }
        }
    }

    fn send(&mut self, port: usize, frame: &[u8]) -> Result<Verdict, TestCaseError> {
        self.model.environment.now_ns = uptime_ns();
        let expected = self.model.judge(port, frame);
        let port = [rig::Port::Lan, rig::Port::Wan, rig::Port::Sync][port];
        let verdict = self.rig.send(port, frame).verdict;
        // Whether a header that does not fit is beyond the packet or beyond the frame hangs on what lies behind; and in
        // a chain of headers or chunks, several things may be wrong at once.
        let name = |reason: &'static str| match reason {
            "malformed" | "truncated" | "extension_header" | "sctp_state" | "sctp_tag" => {
                "drop: malformed".to_owned()
            }
            reason => format!("drop: {reason}"),
        };
        let expected_name = match expected {
            Verdict::Drop(reason) => name(reason.as_str()),
            other => format!("{other:?}"),
        };
        let verdict_name = match verdict {
            rig::Verdict::Drop(reason) => name(reason.as_str()),
            other => format!("{other:?}"),
        };
        if verdict_name != expected_name {
            return Err(TestCaseError::fail(format!(
                "the model says {expected_name}, the programs {verdict_name}"
            )));
        }
        self.compare("main", &self.model.main, &self.rig.flows.flows())?;
        self.compare("embryonic", &self.model.embryonic, &self.rig.embryonic.flows())?;
        let (model, kernel): (BTreeSet<_>, BTreeSet<_>) = (
            self.model.node.keys().map(|key| format!("{:?}", flow_key(key))).collect(),
            [&self.rig.node_flows, &self.rig.node_guests]
                .into_iter()
                .flat_map(keys)
                .map(|key| format!("{key:?}"))
                .collect(),
        );
        if model != kernel {
            return Err(TestCaseError::fail(format!("flows of the node: {model:?} and {kernel:?}")));
        }
        Ok(expected)
    }
}

/// The number that an environment variable says.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |n| n.parse().expect(variable))
}

fn hold_against_each_other(rig: &mut Rig) {
    let rig = RefCell::new(rig);
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dataplane/model.seeds");
    let config = Config {
        cases: number("FWHA_MODEL_CASES", CASES) as u32,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        ..Config::default()
    };
    // The same scripts each time, unless somebody asks for a number of them: those are others each time.
    let mut runner = match std::env::var_os("FWHA_MODEL_CASES") {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let outcome = runner.run(&scripts(1..=60), |steps| play(&steps, &mut Pair::new(&mut rig.borrow_mut())));
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_programs_do_what_the_model_says() {
    needs_root!();
    at_both_hooks(hold_against_each_other);
}

#[test]
fn the_programs_do_what_the_model_says_by_plain_routes() {
    needs_root!();
    at_both_hooks(|rig| {
        use rig::Port::{Lan, Sync, Wan};
        // As `ip route` has them in the rig, and a default route for all link-local addresses.
        rig.set_plain_routes(&[
            ("192.168.100.1", 32, None),
            ("192.168.100.255", 32, None),
            ("10.0.0.1", 32, None),
            ("10.0.0.255", 32, None),
            ("172.16.0.1", 32, None),
            ("172.16.0.255", 32, None),
            ("192.168.100.0", 24, Some(Lan)),
            ("10.0.0.0", 24, Some(Wan)),
            ("172.16.0.0", 24, Some(Sync)),
            ("203.0.113.0", 24, Some(Wan)),
            ("192.0.2.0", 24, Some(Sync)),
            ("198.51.100.0", 24, None),
            ("2001:db8:1::1", 128, None),
            ("2001:db8:1::", 128, None),
            ("2001:db8:2::1", 128, None),
            ("2001:db8:2::", 128, None),
            ("2001:db8:1::", 64, Some(Lan)),
            ("2001:db8:2::", 64, Some(Wan)),
            ("fe80::", 10, Some(Lan)),
        ]);
        let generation = rig.now.route_generation;
        hold_against_each_other(rig);
        assert_eq!(rig.now.route_generation, generation, "they were in force all the time");
    });
}

/// Scripts that went wrong once, or come up too seldom.
fn cases() -> Vec<(&'static str, Vec<Step>)> {
    let tcp = |who, say| Step::Tcp {
        family: Family::V4,
        connection: 1,
        who,
        say,
        window: 8192,
        twists: Vec::new(),
        lost: false,
    };
    let twisted = |who, say, twist| match tcp(who, say) {
        Step::Tcp { family, connection, who, say, window, lost, .. } => {
            Step::Tcp { family, connection, who, say, window, lost, twists: vec![twist] }
        }
        other => other,
    };
    let sctp = |who, chunk, tag, fresh| Step::Sctp { who, chunks: vec![chunk], tag, fresh };
    let (client, server) = (Who::Client, Who::Server);
    vec![
        (
            "an answer that finds the table full leaves the question where it was",
            vec![
                Step::Crowd(MAX_FLOWS as u16),
                tcp(client, Say::Next(1)),
                tcp(server, Say::Next(1)),
                Step::Error { back: 1, kind: 0, length: 28, to_sender: true, seq: None },
                Step::Wait { ms: 121_607 },
            ],
        ),
        (
            "the next connection takes the place of the old one in a full table",
            vec![
                tcp(client, Say::Next(1)),
                tcp(server, Say::Next(1)),
                tcp(client, Say::Next(1)),
                Step::Crowd(MAX_FLOWS as u16),
                tcp(client, Say::Syn(Some(100_000))),
                tcp(server, Say::SynAck),
            ],
        ),
        (
            "a reset from 0 while a connection opens",
            vec![tcp(client, Say::Next(1)), tcp(server, Say::Next(1)), tcp(client, Say::RstZero)],
        ),
        (
            "a reset beyond the window does not become exact when the window moves",
            vec![
                tcp(client, Say::Next(1)),
                tcp(server, Say::Next(1)),
                tcp(client, Say::Next(1)),
                twisted(server, Say::Rst, Twist::Seq(Mark::Edge, 1)),
                tcp(server, Say::Next(1000)),
                tcp(client, Say::Ack),
                // The window has moved by what was acknowledged: the same number.
                twisted(server, Say::Rst, Twist::Seq(Mark::Edge, 1 - 1000)),
                tcp(server, Say::Next(1)),
            ],
        ),
        (
            "a reset in the window does not become exact by coming twice",
            vec![
                tcp(client, Say::Next(1)),
                tcp(server, Say::Next(1)),
                tcp(client, Say::Next(1)),
                twisted(server, Say::Rst, Twist::Seq(Mark::End, 100)),
                twisted(server, Say::Rst, Twist::Seq(Mark::End, 100)),
                tcp(server, Say::Next(1)),
            ],
        ),
        (
            "a connection that only repeats itself is not kept long",
            [
                vec![tcp(client, Say::Next(1)), tcp(server, Say::Next(1)), tcp(client, Say::Next(1))],
                vec![tcp(client, Say::Ack); 3],
                vec![Step::Wait { ms: 303_097 }, tcp(server, Say::Next(1))],
            ]
            .concat(),
        ),
        (
            "it is kept if the other end says something in between",
            [
                vec![tcp(client, Say::Next(1)), tcp(server, Say::Next(1)), tcp(client, Say::Next(1))],
                vec![[tcp(client, Say::Ack), tcp(server, Say::Ack)]; 5].concat(),
                vec![Step::Wait { ms: 303_097 }, tcp(server, Say::Next(1))],
            ]
            .concat(),
        ),
        (
            "data that nobody acknowledges is not waited for",
            vec![
                tcp(client, Say::Next(1)),
                tcp(server, Say::Next(1)),
                tcp(client, Say::Next(1)),
                tcp(client, Say::Next(1000)),
                Step::Wait { ms: 303_097 },
                tcp(server, Say::Ack),
            ],
        ),
        (
            "nor for an end that takes no data",
            vec![
                tcp(client, Say::Next(1)),
                tcp(server, Say::Next(1)),
                twisted(client, Say::Ack, Twist::Window(0)),
                Step::Wait { ms: 303_097 },
                tcp(server, Say::Next(1)),
            ],
        ),
        (
            "what is bundled behind a cookie does not hide it",
            vec![
                sctp(client, 1, Tag::Zero, false),
                sctp(server, 2, Tag::Right, false),
                Step::Sctp { who: client, chunks: vec![10, 9], tag: Tag::Right, fresh: false },
                Step::Sctp { who: server, chunks: vec![3, 11], tag: Tag::Right, fresh: false },
                Step::Sctp { who: server, chunks: vec![11, 3, 0], tag: Tag::Right, fresh: false },
                sctp(client, 0, Tag::Right, false),
            ],
        ),
        (
            "an INIT of anybody leaves an association alone",
            vec![
                Step::NextSctp,
                Step::NextSctp,
                sctp(client, 1, Tag::Zero, true),
                Step::NextSctp,
                Step::NextSctp,
                sctp(client, 1, Tag::Zero, true),
                sctp(server, 0, Tag::Right, false),
                sctp(client, 0, Tag::Right, false),
            ],
        ),
        (
            "both ends begin an association, and one changes its mind",
            vec![
                sctp(client, 1, Tag::Zero, false),
                sctp(server, 2, Tag::Right, false),
                sctp(server, 1, Tag::Zero, false),
                sctp(client, 1, Tag::Zero, false),
                sctp(server, 1, Tag::Zero, true),
                sctp(client, 2, Tag::Right, true),
                sctp(server, 2, Tag::Right, true),
                sctp(server, 2, Tag::Right, false),
            ],
        ),
    ]
}

#[test]
fn the_programs_do_what_the_model_says_in_these_cases() {
    needs_root!();
    at_both_hooks(|rig| {
        let failed: Vec<String> = cases()
            .into_iter()
            .filter_map(|(name, steps)| {
                let error = play(&steps, &mut Pair::new(rig)).err()?;
                Some(format!("{name}: {error}"))
            })
            .collect();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    });
}

#[test]
fn random_frames_meet_the_end_that_the_model_says() {
    needs_root!();
    at_both_hooks(|rig| {
        let mut random = Random(1);
        let mut pair = Pair::new(rig);
        for i in 0..number("FWHA_MODEL_FRAMES", FRAMES) {
            // The table is not to be full.
            if i % 50 == 0 {
                pair.forget_flows();
            }
            // Nor is a datagram to grow so old that a tick of the clock decides.
            if i % 1000 == 0 {
                pair.forget_fragments();
            }
            let (port, mut frame) = random_frame(&mut random, &hosts());
            if pair.rig.hook == Hook::Tc && frame.len() < SHORTEST_AT_TC {
                frame.resize(SHORTEST_AT_TC, 0);
            }
            if let Err(error) = pair.send(port, &frame) {
                panic!("frame {i}, by port {port}: {error}\n{frame:02x?}");
            }
        }
    });
}

/// A client and a server, and what lies at the node's ends.
pub fn hosts() -> [Host; 2] {
    let addresses = |addresses: &[&str]| addresses.iter().map(|a| a.parse().expect("an address")).collect();
    [
        Host { macs: (LAN_MAC, CLIENT_MAC), addresses: addresses(&["192.168.100.100", "2001:db8:1::100"]) },
        Host {
            macs: (WAN_MAC, SERVER_MAC),
            addresses: addresses(&["10.0.0.128", "2001:db8:2::128", "10.0.0.1", "203.0.113.1"]),
        },
    ]
}

/// The model alone, and how often it came to which verdict and state.
struct Tally {
    model: Model,
    met: BTreeMap<String, u32>,
}

impl Audience for Tally {
    fn model(&self) -> &Model {
        &self.model
    }

    fn wait(&mut self, ns: u64) {
        self.model.age(ns);
    }

    fn own(&mut self, ownership: Ownership) {
        self.model.environment.owned_by_default = ownership;
    }

    fn send(&mut self, port: usize, frame: &[u8]) -> Result<Verdict, TestCaseError> {
        let verdict = self.model.judge(port, frame);
        let name = match verdict {
            Verdict::Drop(reason) => reason.as_str().to_owned(),
            other => format!("{other:?}"),
        };
        *self.met.entry(name).or_default() += 1;
        for flow in self.model.main.values().chain(self.model.embryonic.values()) {
            *self.met.entry(flow.state().as_str().to_owned()).or_default() += 1;
        }
        Ok(verdict)
    }
}

/// The scripts are worth playing: they come everywhere.
#[test]
fn scripts_meet_every_verdict_reason_and_state() {
    let mut runner = TestRunner::deterministic();
    let scripts = scripts(60..=60);
    let mut tally = Tally { model: Model::new(environment()), met: BTreeMap::new() };
    for _ in 0..1000 {
        tally.model = Model::new(environment());
        let steps = scripts.new_tree(&mut runner).expect("a script").current();
        play(&steps, &mut tally).expect("nothing to fail");
    }
    println!("{:#?}", tally.met);
    let names = Reason::ALL.iter().map(|reason| reason.as_str());
    let names = names.chain(State::ALL.iter().map(|state| state.as_str())).chain(["Forward", "Pass"]);
    // There is always a ruleset.
    for name in names.filter(|&name| name != Reason::NoRuleset.as_str()) {
        let met = tally.met.get(name).copied().unwrap_or(0);
        assert!(met >= 10, "{name} was met {met} times");
    }
    let forwarded = tally.met["Forward"];
    let all: u32 = Reason::ALL.iter().filter_map(|reason| tally.met.get(reason.as_str())).sum();
    assert!(forwarded > all, "{forwarded} forwarded, {all} dropped: too much goes wrong");
}
