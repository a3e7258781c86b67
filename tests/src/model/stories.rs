//! What becomes of packets, one after the other, at one node.

use std::collections::{BTreeMap, BTreeSet};

use super::environment::Environment;
use super::flow::{SECOND_NS, protocol};
use super::{Model, Ownership, Port, Prefix, Reason, Route, Rule, State, Table, Target, Verdict};
use crate::frames::{Ip, Tcp, ethernet, flag};

use Verdict::{Drop, Forward, Pass};

const LAN: usize = 0;
const WAN: usize = 1;
const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT: [u8; 4] = [192, 168, 0, 9];
const SERVER: [u8; 4] = [10, 0, 0, 9];
const NODE: [u8; 4] = [192, 168, 0, 1];
const MTU: usize = 1400;

const SYN: u8 = flag::SYN;
const SYN_ACK: u8 = flag::SYN | flag::ACK;
const ACK: u8 = flag::ACK;
const RST_ACK: u8 = flag::RST | flag::ACK;

fn node() -> Model {
    let via = |port| Route::Via { port, router: None, mtu: MTU };
    let node = |to| Rule { to: Some(to), ..Rule::accept_all() };
    Model::new(Environment {
        ports: vec![Port { zone: Some(1), mac: LAN_MAC }, Port { zone: Some(2), mac: WAN_MAC }],
        own: BTreeSet::from([NODE.into()]),
        routes: vec![
            (Prefix::new([192, 168, 0, 0], 24), via(LAN)),
            (Prefix::new([10, 0, 0, 0], 24), via(WAN)),
            (Prefix::new([10, 9, 0, 0], 16), Route::Nowhere),
        ],
        neighbours: BTreeSet::from([(LAN, CLIENT.into()), (WAN, SERVER.into())]),
        rules: Some(vec![
            Rule { from: Some(1), ..node(Target::Zone(2)) },
            Rule { protocol: Some(protocol::TCP), ports: 22..=22, ..node(Target::Node) },
        ]),
        ownership: BTreeMap::new(),
        owned_by_default: Ownership::Owned,
        owned_since_ns: 0,
        max_flows: 2,
        now_ns: 1000 * SECOND_NS,
    })
}

/// From the client to the server.
fn there() -> Ip {
    Ip::new((LAN_MAC, [4; 6]), CLIENT, SERVER)
}

/// From the server to the client.
fn back() -> Ip {
    Ip::new((WAN_MAC, [6; 6]), SERVER, CLIENT)
}

impl Model {
    fn tcp(&mut self, from_client: bool, flags: u8, seq: u32, ack: u32) -> Verdict {
        let (port, ip) = if from_client { (LAN, there()) } else { (WAN, back()) };
        let ports = if from_client { (4000, 22) } else { (22, 4000) };
        let segment = Tcp { ports, seq, ack, flags, window: 8192, ..Tcp::default() };
        self.judge(port, &ip.frame(protocol::TCP, &ip.tcp(&segment)))
    }

    fn open(&mut self, client: u32, server: u32) {
        assert_eq!(self.tcp(true, SYN, client, 0), Forward);
        assert_eq!(self.tcp(false, SYN_ACK, server, client + 1), Forward);
        assert_eq!(self.tcp(true, ACK, client + 1, server + 1), Forward);
    }

    fn udp(&mut self, from_client: bool, client: u16) -> Verdict {
        let (port, ip) = if from_client { (LAN, there()) } else { (WAN, back()) };
        let ports = if from_client { (client, 53) } else { (53, client) };
        self.judge(port, &ip.frame(protocol::UDP, &ip.udp(ports.0, ports.1, b"data")))
    }
}

fn states(table: &Table) -> Vec<State> {
    table.values().map(super::Flow::state).collect()
}

#[test]
fn a_flow_is_embryonic_until_it_is_answered() {
    let mut node = node();
    assert_eq!(node.tcp(true, ACK, 1, 1), Drop(Reason::NotSyn));
    assert_eq!(node.tcp(true, SYN, 1000, 0), Forward);
    assert_eq!((states(&node.embryonic), node.main.len()), (vec![State::SynSent], 0));
    assert_eq!(node.tcp(false, SYN_ACK, 5000, 1002), Drop(Reason::TcpWindow));
    assert_eq!(node.tcp(false, SYN_ACK, 5000, 1001), Forward);
    assert_eq!((node.embryonic.len(), states(&node.main)), (0, vec![State::SynRecv]));
    let flow = node.main.values().next().unwrap();
    assert_eq!((flow.packets, flow.bytes, flow.zones), ([1, 1], [40, 40], [Some(1), Some(2)]));
}

#[test]
fn a_refused_connection_leaves_nothing() {
    let mut node = node();
    node.tcp(true, SYN, 1000, 0);
    assert_eq!(node.tcp(false, RST_ACK, 0, 1001), Forward);
    assert!(node.embryonic.is_empty() && node.main.is_empty());
}

#[test]
fn a_full_table_refuses_the_answer_and_keeps_the_question() {
    let mut node = node();
    for port in [1, 2] {
        assert_eq!((node.udp(true, port), node.udp(false, port)), (Forward, Forward));
    }
    assert_eq!(node.udp(true, 3), Forward);
    assert_eq!(node.udp(false, 3), Drop(Reason::TableFull));
    let first = *node.main.keys().next().unwrap();
    node.main.remove(&first);
    assert_eq!(node.udp(false, 3), Forward);
}

#[test]
fn udp_becomes_a_stream() {
    let mut node = node();
    node.udp(true, 1);
    node.age(3 * SECOND_NS);
    node.udp(false, 1);
    assert_eq!(states(&node.main), [State::Replied], "the first answer");
    node.udp(true, 1);
    assert_eq!(states(&node.main), [State::Assured]);
    node.age(121 * SECOND_NS);
    assert_eq!(node.udp(false, 1), Drop(Reason::NoRule), "its time is over");
    assert_eq!(node.main.len(), 1, "its element is not");
}

#[test]
fn the_next_connection_between_the_same_ends() {
    let mut node = node();
    node.open(1000, 5000);
    let old = node.main.values().next().unwrap().clone();
    assert_eq!(node.tcp(true, SYN, 900_000, 0), Forward);
    assert_eq!(node.main.values().next(), Some(&old), "the flow is left alone");
    assert_eq!(node.tcp(false, SYN_ACK, 700_000, 5), Forward, "not the answer to it");
    assert_eq!(states(&node.main), [State::Established]);
    assert_eq!(node.tcp(false, SYN_ACK, 700_000, 900_001), Forward);
    let new = node.main.values().next().unwrap();
    assert_eq!((new.state(), node.embryonic.len()), (State::SynRecv, 0));
    assert!(new.identity > old.identity);
}

#[test]
fn the_next_connection_is_refused() {
    let mut node = node();
    node.open(1000, 5000);
    node.tcp(true, SYN, 900_000, 0);
    assert_eq!(node.tcp(false, RST_ACK, 0, 900_001), Forward);
    assert_eq!((states(&node.main), node.embryonic.len()), (vec![State::Close], 0));
    // From the other side the rules have a say.
    assert_eq!(node.tcp(false, SYN, 1, 0), Drop(Reason::NoRule));
}

#[test]
fn ownership_and_zones() {
    let mut node = node();
    node.open(1000, 5000);
    node.environment.owned_by_default = Ownership::NotOwned;
    assert_eq!(node.tcp(true, ACK, 1001, 5001), Drop(Reason::NotOwner));
    assert_eq!(node.udp(true, 1), Drop(Reason::NotOwner));
    node.environment.owned_by_default = Ownership::Lapsed;
    assert_eq!(node.tcp(true, ACK, 1001, 5001), Drop(Reason::LeaseExpired));
    node.environment.owned_by_default = Ownership::Owned;
    let ip = Ip { macs: back().macs, ..there() };
    let stray = ip.tcp(&Tcp { ports: (4000, 22), flags: ACK, ..Tcp::default() });
    assert_eq!(node.judge(WAN, &ip.frame(protocol::TCP, &stray)), Drop(Reason::WrongZone));
}

#[test]
fn flows_of_the_node_itself() {
    let mut node = node();
    node.environment.owned_by_default = Ownership::NotOwned;
    let ip = Ip { destination: NODE.into(), ..there() };
    let frame =
        |port, flags| ip.frame(protocol::TCP, &ip.tcp(&Tcp { ports: (4000, port), flags, ..Tcp::default() }));
    assert_eq!(node.judge(LAN, &frame(22, ACK)), Drop(Reason::NotSyn));
    assert_eq!(node.judge(LAN, &frame(22, SYN)), Pass);
    assert_eq!(node.judge(LAN, &frame(22, ACK)), Pass);
    assert_eq!(node.judge(LAN, &frame(23, SYN)), Drop(Reason::NoRule));
    assert_eq!((node.node.len(), node.embryonic.len()), (1, 0));
}

#[test]
fn first_packets_that_may_not_begin_a_flow() {
    let mut node = node();
    let mut judge = |ip: &Ip, ports: (u16, u16)| {
        node.judge(LAN, &ip.frame(protocol::UDP, &ip.udp(ports.0, ports.1, b"")))
    };
    let from = |source: [u8; 4]| Ip { source: source.into(), ..there() };
    let to = |destination: [u8; 4]| Ip { destination: destination.into(), ..there() };
    assert_eq!(judge(&from([10, 0, 0, 7]), (1, 2)), Drop(Reason::Spoofed));
    assert_eq!(judge(&from([8, 8, 8, 8]), (1, 2)), Drop(Reason::Spoofed), "reached by nothing");
    assert_eq!(judge(&from(NODE), (1, 2)), Drop(Reason::Spoofed), "the node's own");
    let to_node = Ip { destination: NODE.into(), ..from([8, 8, 8, 8]) };
    assert_eq!(judge(&to_node, (1, 2)), Drop(Reason::NoRule), "which no rule would admit anyway");
    assert_eq!(judge(&from([127, 0, 0, 1]), (1, 2)), Drop(Reason::Martian));
    assert_eq!(judge(&to(CLIENT), (9, 9)), Drop(Reason::Land));
    assert_eq!(judge(&to([10, 9, 1, 1]), (1, 2)), Drop(Reason::NoRoute));
    let discover =
        Ip { source: [0; 4].into(), destination: [255; 4].into(), macs: ([0xff; 6], [4; 6]), ..there() };
    assert_eq!(judge(&discover, (68, 67)), Drop(Reason::NoRule), "asked of the rules");
    assert_eq!(judge(&discover, (67, 68)), Drop(Reason::Martian));
    let flooded = Ip { macs: ([8; 6], [4; 6]), ..there() };
    assert_eq!(judge(&flooded, (1, 2)), Drop(Reason::OtherStation));
}

#[test]
fn what_the_stack_must_do() {
    let mut node = node();
    let datagram = |ip: &Ip, length: usize| ip.frame(protocol::UDP, &ip.udp(1, 53, &vec![0; length - 28]));
    let mut judge = |ip: Ip, length| node.judge(LAN, &datagram(&ip, length));
    assert_eq!(judge(there(), MTU), Forward);
    assert_eq!(judge(there(), MTU + 1), Pass);
    assert_eq!(judge(Ip { hops_left: 2, ..there() }, 100), Forward);
    assert_eq!(judge(Ip { hops_left: 1, ..there() }, 100), Pass);
    assert_eq!(judge(Ip { options: vec![1; 4], ..there() }, 100), Pass);
    assert_eq!(judge(Ip { destination: [10, 0, 0, 8].into(), ..there() }, 100), Pass, "not resolved");
}

#[test]
fn a_datagram_in_pieces() {
    let mut node = node();
    let datagram = there().udp(1, 53, &[0; 48]);
    let piece = |offset: usize, length: usize, more| {
        let ip = Ip { piece: Some((7, (offset / 8) as u16, more)), ..there() };
        ip.frame(protocol::UDP, &datagram[offset..offset + length])
    };
    assert_eq!(node.judge(LAN, &piece(16, 16, true)), Drop(Reason::Fragment), "before the first");
    assert_eq!(node.judge(LAN, &piece(0, 16, true)), Forward);
    assert_eq!(node.judge(LAN, &piece(32, 16, false)), Forward, "in any order");
    assert_eq!(node.judge(LAN, &piece(24, 16, true)), Drop(Reason::FragmentOverlap));
    assert_eq!(node.judge(LAN, &piece(16, 16, true)), Forward);
    assert_eq!(node.judge(LAN, &piece(16, 16, true)), Drop(Reason::FragmentOverlap), "twice");
    assert_eq!(node.embryonic.values().next().unwrap().packets, [3, 0]);
    node.environment.now_ns += 29 * SECOND_NS;
    node.udp(true, 1);
    node.environment.now_ns += 2 * SECOND_NS;
    assert_eq!(node.judge(LAN, &piece(48, 8, false)), Drop(Reason::Fragment), "too late");
    node.embryonic.clear();
    node.environment.rules = Some(Vec::new());
    assert_eq!(node.judge(LAN, &piece(0, 16, true)), Drop(Reason::NoRule));
    assert_eq!(node.judge(LAN, &piece(16, 16, true)), Drop(Reason::Fragment), "the first did not go on");
}

#[test]
fn a_segment_in_pieces_moves_the_window_by_all_of_them() {
    let mut node = node();
    node.open(1000, 5000);
    let ip = there();
    let segment = Tcp { ports: (4000, 22), seq: 1001, ack: 5001, flags: ACK, length: 100, ..Tcp::default() };
    let packet = ip.tcp(&segment);
    let piece = |range: std::ops::Range<usize>, more| {
        let ip = Ip { piece: Some((7, (range.start / 8) as u16, more)), ..there() };
        ip.frame(protocol::TCP, &packet[range])
    };
    assert_eq!(node.judge(LAN, &piece(0..16, true)), Drop(Reason::FragmentTiny));
    assert_eq!(node.judge(LAN, &piece(8..16, true)), Drop(Reason::FragmentTiny));
    assert_eq!(node.judge(LAN, &piece(0..40, true)), Forward);
    assert_eq!(node.judge(LAN, &piece(40..120, false)), Forward);
    assert_eq!(node.tcp(false, ACK, 5001, 1102), Drop(Reason::TcpWindow), "one more than was sent");
    assert_eq!(node.tcp(false, ACK, 5001, 1101), Forward);
}

#[test]
fn errors_about_flows() {
    let mut node = node();
    node.open(1000, 5000);
    let about = |seq, ports| {
        let segment = there().tcp(&Tcp { ports, seq, ..Tcp::default() });
        there().frame(protocol::TCP, &segment)
    };
    let router = Ip { source: [10, 0, 0, 1].into(), ..back() };
    let mut judge = |port, kind, about: &[u8], length| {
        let ip = if port == WAN { router.clone() } else { Ip { destination: CLIENT.into(), ..there() } };
        node.judge(port, &ip.frame(protocol::ICMP, &ip.error(kind, about, length)))
    };
    for kind in [3, 11, 12] {
        assert_eq!(judge(WAN, kind, &about(1000, (4000, 22)), 28), Forward);
    }
    assert_eq!(judge(WAN, 5, &about(1000, (4000, 22)), 28), Drop(Reason::Icmp), "redirect");
    assert_eq!(judge(WAN, 3, &about(1000, (4000, 22)), 27), Drop(Reason::IcmpUnrelated), "too little");
    assert_eq!(judge(WAN, 3, &about(1000, (4000, 23)), 28), Drop(Reason::IcmpUnrelated), "no flow");
    assert_eq!(judge(WAN, 3, &about(1002, (4000, 22)), 28), Drop(Reason::IcmpUnrelated), "never sent");
    assert_eq!(judge(LAN, 3, &about(1000, (4000, 22)), 28), Drop(Reason::WrongZone));
    assert_eq!(states(&node.main), [State::Established]);
}

#[test]
fn what_a_node_and_its_links_need_passes_before_all() {
    let mut node = node();
    node.environment.rules = None;
    node.environment.ports[LAN].zone = None;
    let icmpv6 = |hops_left, extensions: &[(u8, Vec<u8>)], kind| {
        let addresses = ["fe80::1", "ff02::1"].map(|a| a.parse::<std::net::IpAddr>().unwrap());
        let mut ip = Ip::new(([0x33, 0x33, 0, 0, 0, 1], [4; 6]), addresses[0], addresses[1]);
        (ip.hops_left, ip.extensions) = (hops_left, extensions.to_vec());
        ip.frame(protocol::ICMPV6, &ip.icmp(kind, 0, &[0; 20]))
    };
    let router_alert = [(0, vec![5, 2, 0, 0, 1, 0])];
    let group = |destination: [u8; 4]| Ip {
        macs: ([1, 0, 0x5e, 0, 0, 1], [4; 6]),
        destination: destination.into(),
        ..there()
    };
    let near = |ip: Ip| Ip { hops_left: 255, ..ip };
    for (name, frame, passes) in [
        ("ARP", ethernet([0xff; 6], [4; 6], 0x0806, &[]), true),
        ("LLDP", ethernet([1, 0x80, 0xc2, 0, 0, 14], [4; 6], 0x88cc, &[]), true),
        ("LLDP to somebody", ethernet([2; 6], [4; 6], 0x88cc, &[]), false),
        ("VRRP", near(group([224, 0, 0, 18])).frame(112, &[]), true),
        ("VRRP to another group", near(group([224, 0, 0, 19])).frame(112, &[]), false),
        ("VRRP from afar", group([224, 0, 0, 18]).frame(112, &[]), false),
        ("unicast VRRP", near(there()).frame(112, &[]), true),
        ("unicast VRRP from afar", Ip { hops_left: 254, ..there() }.frame(112, &[]), false),
        ("IGMP", group([224, 0, 0, 22]).frame(2, &[]), true),
        ("unicast IGMP", there().frame(2, &[]), false),
        ("neighbour solicitation", icmpv6(255, &[], 135), true),
        ("routed neighbour solicitation", icmpv6(254, &[], 135), false),
        ("neighbour solicitation with options", icmpv6(255, &[(60, vec![1, 4, 0, 0, 0, 0])], 135), true),
        ("MLD", icmpv6(1, &router_alert, 143), true),
        ("MLD without router alert", icmpv6(1, &[], 143), false),
        ("MLD from afar", icmpv6(2, &router_alert, 143), false),
    ] {
        assert_eq!(node.judge(LAN, &frame) == Pass, passes, "{name}");
    }
}

#[test]
fn an_inherited_flow_is_checked_once_both_ends_were_heard() {
    let mut node = node();
    node.open(1000, 5000);
    for flow in node.main.values_mut() {
        (flow.inherited, flow.seen_ns) = (true, [None; 2]);
    }
    node.environment.owned_since_ns = node.environment.now_ns;
    assert_eq!(node.tcp(true, ACK, 700_000, 800_000), Forward);
    assert_eq!(node.tcp(false, ACK, 800_000, 700_000), Forward);
    assert_eq!(node.tcp(false, ACK, 800_000, 700_001), Drop(Reason::TcpWindow));
    assert_eq!(states(&node.main), [State::Established]);
}
#[test]
fn a_flow_that_another_node_may_have_carried_on_is_checked_once_both_ends_were_heard_again() {
    let mut node = node();
    node.open(1000, 5000);
    assert_eq!(
        node.tcp(true, ACK, 700_000, 800_000),
        Drop(Reason::TcpWindow),
        "so far it is this node's alone"
    );
    node.environment.now_ns += 1;
    node.environment.owned_since_ns = node.environment.now_ns;
    assert_eq!(node.tcp(true, ACK, 700_000, 800_000), Forward);
    assert_eq!(node.tcp(false, ACK, 800_000, 700_000), Forward);
    assert_eq!(node.tcp(false, ACK, 800_000, 700_001), Drop(Reason::TcpWindow));
}
