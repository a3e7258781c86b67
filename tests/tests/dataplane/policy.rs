//! Policy: zones, rules, and what passes without any.

use std::net::Ipv6Addr;

use etherparse::PacketBuilder;
use fwha_common::drop::DropReason;
use fwha_common::flow::{FlowKey, proto};
use fwha_common::rule::{Action, Network, Query, Rule, Service, ZONE_ANY, ZONE_NODE};
use fwha_common::ruleset::{MAX_RULES, Ruleset};
use fwha_common::settings::Counter;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, End, NODE, SERVER, echo, edit_ip, ethernet, ip, tcp, udp};
use crate::rig::{LAN, LAN_MAC, Port, Rig, Verdict, WAN, accept, accept_service, at_both_hooks, with_action};

use Verdict::{Drop, Forward, Pass};

#[test]
fn a_forged_source_is_neither_admitted_nor_told() {
    needs_root!();
    at_both_hooks(|rig| {
        let port = |port, action, name| Rule {
            services: vec![Service { proto: 0, port_min: port, port_max: port }],
            ..with_action(action, name)
        };
        rig.load_rules(&[
            port(22, Action::Accept, "ssh"),
            port(23, Action::Reject, "telnet"),
            port(24, Action::Drop, "mail"),
        ]);
        // From nowhere, from the other side, from the node.
        for address in [[203, 0, 113, 7], SERVER.address, NODE.address] {
            let forged = End { address, ..CLIENT };
            for (port, reason) in [
                (22, DropReason::Spoofed),
                (23, DropReason::Spoofed),
                // Nobody looks where it comes from if it does not get in anyway.
                (24, DropReason::Rule),
                (25, DropReason::NoRule),
            ] {
                let server = End { port, address: [10, 0, 0, 77], ..SERVER };
                assert_eq!(rig.send(Port::Lan, &tcp(forged, server, "S")).verdict, Drop(reason), "{port}");
            }
        }
        assert_eq!(rig.counter(Counter::Rejected), 0);
    });
}

#[test]
fn the_first_rule_that_matches_decides() {
    needs_root!();
    at_both_hooks(|rig| {
        let network = |address: [u8; 4], len| vec![Network::new(address.into(), len)];
        let all = |proto| vec![Service::all(proto)];
        rig.load_rules(&[
            Rule { source: network([192, 168, 100, 101], 32), ..with_action(Action::Drop, "outcast") },
            Rule {
                destination: network([10, 0, 0, 0], 8),
                from: LAN,
                to: WAN,
                ..accept_service(proto::TCP, 20, 22, "tcp")
            },
            Rule { services: all(proto::UDP), from: LAN, ..with_action(Action::Drop, "no-udp") },
            Rule { services: all(proto::ICMP), to: WAN, ..accept("ping") },
            Rule { services: all(proto::UDP), ..accept("never reached from lan") },
        ]);
        let outcast = End { address: [192, 168, 100, 101], ..CLIENT };
        for (description, port, packet, verdict, rule) in [
            ("outcast", Port::Lan, tcp(outcast, SERVER, "S"), Drop(DropReason::Rule), Some(0)),
            ("port 22", Port::Lan, tcp(CLIENT, SERVER, "S"), Forward, Some(1)),
            ("port 20", Port::Lan, tcp(CLIENT, End { port: 20, ..SERVER }, "S"), Forward, Some(1)),
            (
                "port 19",
                Port::Lan,
                tcp(CLIENT, End { port: 19, ..SERVER }, "S"),
                Drop(DropReason::NoRule),
                None,
            ),
            (
                "port 23",
                Port::Lan,
                tcp(CLIENT, End { port: 23, ..SERVER }, "S"),
                Drop(DropReason::NoRule),
                None,
            ),
            (
                "from wan",
                Port::Wan,
                tcp(SERVER, End { port: 21, ..CLIENT }, "S"),
                Drop(DropReason::NoRule),
                None,
            ),
            ("udp", Port::Lan, udp(CLIENT, SERVER, b""), Drop(DropReason::Rule), Some(2)),
            ("ping", Port::Lan, echo(CLIENT, SERVER, false, 1), Forward, Some(3)),
            ("ping the node", Port::Lan, echo(CLIENT, NODE, false, 1), Drop(DropReason::NoRule), None),
            ("udp from wan", Port::Wan, udp(SERVER, CLIENT, b""), Forward, Some(4)),
        ] {
            let before: Vec<u64> = (0..5).map(|rule| rig.hits(rule)).collect();
            assert_eq!(rig.send(port, &packet).verdict, verdict, "{description}");
            for (i, before) in before.iter().enumerate() {
                let hit = u64::from(rule == Some(i));
                assert_eq!(rig.hits(i as u32) - before, hit, "{description}: rule {i}");
            }
        }
    });
}

#[test]
fn a_ruleset_may_be_as_long_as_promised_and_is_swapped_at_once() {
    needs_root!();
    at_both_hooks(|rig| {
        let never = Rule { services: vec![Service::all(99)], ..with_action(Action::Drop, "never") };
        let mut rules = vec![never; MAX_RULES];
        rules[MAX_RULES - 1] = accept("last");
        rig.load_rules(&rules);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S")).verdict, Forward);
        assert_eq!(rig.hits(MAX_RULES as u32 - 1), 1);
        rig.load_rules(&[]);
        let other = End { port: 50_000, ..CLIENT };
        assert_eq!(rig.send(Port::Lan, &tcp(other, SERVER, "S")).verdict, Drop(DropReason::NoRule));
        rig.load_rules(&rules);
        assert_eq!(rig.send(Port::Lan, &tcp(other, SERVER, "S")).verdict, Forward);
    });
}

/// The same numbers each time: a linear congruential generator (Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Thousands of rules that overlap, for flows between the LAN and the WAN.
fn thousands_of_rules(numbers: &mut Numbers) -> Vec<Rule> {
    let rule = |i: usize| {
        let v4 = |n: &mut Numbers, net: [u8; 2]| {
            let address = [net[0], net[1], n.below(256) as u8, n.below(256) as u8];
            Network::new(address.into(), 24 + n.below(9) as u8)
        };
        let v6 = |n: &mut Numbers, net: u128| {
            let address = 0x2001_0db8 << 96 | net << 80 | u128::from(n.below(256));
            Network::new(std::net::Ipv6Addr::from(address).into(), 120 + n.below(9) as u8)
        };
        let port = 1 + numbers.below(2_000) as u16;
        Rule {
            from: if i.is_multiple_of(7) { ZONE_ANY } else { LAN },
            to: if i.is_multiple_of(5) { ZONE_ANY } else { WAN },
            source: vec![v4(numbers, [192, 168]), v6(numbers, 1)],
            destination: vec![v4(numbers, [10, 0]), v6(numbers, 2)],
            services: vec![
                Service { proto: proto::TCP, port_min: port, port_max: port + numbers.below(300) as u16 },
                Service { proto: proto::UDP, port_min: port / 2, port_max: port },
            ],
            ..with_action(Action::Drop, "dropped")
        }
    };
    (0..12_000).map(rule).collect()
}

#[test]
fn of_thousands_of_rules_the_programs_find_the_first_that_matches() {
    needs_root!();
    at_both_hooks(|rig| {
        let mut numbers = Numbers(7);
        let mut rules = thousands_of_rules(&mut numbers);
        rig.load_rules(&rules);
        let (mut matched, mut missed) = (0, 0);
        for _ in 0..2_000 {
            // Mostly what a rule names, or what is beside it.
            let rule = &rules[numbers.below(rules.len() as u64) as usize];
            let family = numbers.below(2) as usize;
            let near = |network: &Network, numbers: &mut Numbers| {
                let end = if numbers.below(2) == 0 { network.first() } else { network.last() };
                end.wrapping_add_signed(
                    i128::from(numbers.below(3) as i64 - 1) * i128::from(numbers.below(2) as i64),
                )
            };
            let (src, dst) =
                (near(&rule.source[family], &mut numbers), near(&rule.destination[family], &mut numbers));
            let service = rule.services[numbers.below(2) as usize];
            let port = if numbers.below(2) == 0 {
                service.port_min
            } else {
                service.port_max + numbers.below(2) as u16
            };
            let query = Query {
                src: FlowKey::address(src.to_be_bytes()),
                dst: FlowKey::address(dst.to_be_bytes()),
                port,
                proto: service.proto,
                from: LAN,
                to: zone_towards(dst),
            };
            let expected = rules.iter().position(|rule| rule.matches(&query));
            let before = expected.map(|rule| rig.hits(rule as u32));
            let sent = rig.send(Port::Lan, &between(src, dst, service.proto, port)).verdict;
            let what = format!("{src:#x} to {dst:#x}, {} {port}", service.proto);
            match expected {
                Some(rule) => {
                    assert_eq!(sent, Drop(DropReason::Rule), "{what}");
                    assert_eq!(rig.hits(rule as u32), before.unwrap_or(0) + 1, "rule {rule} decides: {what}");
                    matched += 1;
                }
                None => {
                    assert_eq!(sent, Drop(DropReason::NoRule), "{what}");
                    missed += 1;
                }
            }
        }
        assert!(matched > 500 && missed > 100, "{matched} matched, {missed} did not");
        // One that matches all decides on what no other does.
        rules.push(accept("last"));
        rig.load_rules(&rules);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, End { port: 60_000, ..SERVER }, "S")).verdict, Forward);
        assert_eq!(rig.hits(12_000), 1);
    });
}

/// Where a packet from the LAN goes to: the network on the other side, but for the node's own addresses there, broadcast
/// and the anycast address of routers; without a route it ends here.
fn zone_towards(dst: u128) -> u8 {
    let host = match dst >> 32 {
        0xffff if dst as u32 >> 8 == 0x000a_0000 => dst & 0xff,
        0xffff => return ZONE_NODE,
        _ if dst >> 64 == 0x2001_0db8_0002_0000 => dst as u64 as u128,
        _ => return ZONE_NODE,
    };
    if matches!(host, 0 | 1) || dst as u32 == 0x0a00_00ff { ZONE_NODE } else { WAN }
}

/// The first packet of a flow from the LAN to the WAN, between addresses as numbers.
fn between(src: u128, dst: u128, protocol: u8, port: u16) -> Vec<u8> {
    let (from, to) = (End { port: 40_000, ..CLIENT }, End { port, ..SERVER });
    let v4 = |number: u128| (number as u32).to_be_bytes();
    if src >> 32 == 0xffff {
        let (from, to) = (End { address: v4(src), ..from }, End { address: v4(dst), ..to });
        return if protocol == proto::TCP { tcp(from, to, "S") } else { udp(from, to, b"") };
    }
    let builder =
        PacketBuilder::ethernet2(CLIENT.macs.0, LAN_MAC).ipv6(src.to_be_bytes(), dst.to_be_bytes(), 64);
    let mut frame = Vec::new();
    if protocol == proto::TCP {
        builder.tcp(from.port, port, 1, 1_000).syn().write(&mut frame, b"").expect("a frame");
    } else {
        builder.udp(from.port, port).write(&mut frame, b"").expect("a frame");
    }
    frame
}

#[test]
fn a_packet_is_judged_by_one_ruleset_while_another_takes_its_place() {
    needs_root!();
    at_both_hooks(|rig| {
        // In either ruleset one rule decides on all; a row of the one with another of the other finds none, or a wrong one.
        let ruleset = |port: u16, decides: usize| {
            let never = accept_service(proto::TCP, port + 1, port + 1, "never");
            let mut rules = vec![never; 200];
            rules[decides] = Rule {
                source: vec![Network::new(CLIENT.address.into(), 32)],
                services: vec![Service { proto: proto::TCP, port_min: port, port_max: port }],
                ..with_action(Action::Drop, "all")
            };
            Ruleset::compile(&rules).expect("a ruleset")
        };
        let rulesets = [ruleset(SERVER.port, 190), ruleset(SERVER.port, 3)];
        rig.load_rules(&[with_action(Action::Drop, "all")]);
        let frame = tcp(CLIENT, SERVER, "S");
        let before = rig.drop_count(DropReason::Rule);
        let mut sent = 0;
        rig.while_reloading(&rulesets, 40, |rig| {
            rig.run(Port::Lan, &frame);
            sent += 1;
        });
        assert!(sent > 0);
        assert_eq!(rig.drop_count(DropReason::Rule) - before, sent, "each by one of them");
    });
}

/// What a node and its links need to live.
fn own_protocols() -> Vec<(&'static str, Vec<u8>)> {
    let group = |address: [u8; 4]| End {
        macs: ([0; 6], [1, 0, 0x5e, address[1] & 0x7f, address[2], address[3]]),
        address,
        port: 0,
    };
    let multicast = |to: End, proto, payload: &[u8]| {
        ip(End { macs: (CLIENT.macs.0, to.macs.1), ..CLIENT }, to, proto, payload)
    };
    let near = |frame: Vec<u8>| edit_ip(&frame, |header| header.time_to_live = 255);
    let advert = [0x31, 61, 100, 1, 0, 100, 0, 0, 10, 0, 0, 12];
    let icmpv6 = |hop_limit: u8, next: u8, payload: &[u8]| {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, hop_limit];
        packet.extend([0; 32]);
        packet.extend(payload);
        ethernet([0x33, 0x33, 0, 0, 0, 1], CLIENT.macs.0, 0x86dd, &packet)
    };
    vec![
        ("ARP", ethernet([0xff; 6], CLIENT.macs.0, 0x0806, &[0; 46])),
        ("VRRP", near(multicast(group([224, 0, 0, 18]), proto::VRRP, &advert))),
        ("unicast VRRP", near(ip(CLIENT, NODE, proto::VRRP, &advert))),
        ("IGMP", multicast(group([224, 0, 0, 22]), 2, &[0x11, 0, 0, 0, 0, 0, 0, 0])),
        ("neighbour solicitation", icmpv6(255, 58, &[135, 0, 0, 0, 0, 0, 0, 0])),
        ("neighbour advertisement", icmpv6(255, 58, &[136, 0, 0, 0, 0, 0, 0, 0])),
        ("MLD", icmpv6(1, 0, &[58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0])),
        ("spanning tree", ethernet([1, 0x80, 0xc2, 0, 0, 0], CLIENT.macs.0, 38, &[0x42; 46])),
        ("LLDP", ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], CLIENT.macs.0, 0x88cc, &[0; 46])),
    ]
}

fn own_protocols_pass(rig: &mut Rig, when: &str) {
    for (name, frame) in own_protocols() {
        let sent = rig.send(Port::Lan, &frame);
        assert_eq!(sent.verdict, Pass, "{name} {when}");
        assert_eq!(sent.frame, frame, "{name} is left as it is");
    }
}

#[test]
fn what_goes_to_many_over_ipv6_is_held_against_the_route_to_its_source() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[Rule { to: ZONE_NODE, ..accept_service(proto::UDP, 547, 547, "dhcp") }]);
        let from = |address: &str, to: &str| {
            let [src, dst] = [address, to].map(|a| a.parse::<Ipv6Addr>().expect("an address").octets());
            let mac = if dst[0] == 0xff { [0x33, 0x33, 0, 1, 0, 3] } else { LAN_MAC };
            let builder = PacketBuilder::ethernet2(CLIENT.macs.0, mac).ipv6(src, dst, 8).udp(547, 547);
            let mut frame = Vec::new();
            builder.write(&mut frame, b"relayed").expect("a datagram");
            frame
        };
        for to in ["ff05::1:3", "ff02::1:2", "2001:db8:1::1"] {
            for (source, verdict) in [
                ("2001:db8:1::100", Pass),
                ("fe80::100", Pass),
                ("2001:db8:2::128", Drop(DropReason::Spoofed)),
                ("2001:db8:9::1", Drop(DropReason::Spoofed)),
            ] {
                assert_eq!(rig.send(Port::Lan, &from(source, to)).verdict, verdict, "{source} to {to}");
            }
        }
    });
}

#[test]
fn without_ruleset_settings_or_zone_only_own_protocols_pass() {
    needs_root!();
    at_both_hooks(|rig| {
        own_protocols_pass(rig, "with a ruleset");
        let syn = tcp(CLIENT, SERVER, "S");

        rig.configure(|settings| settings.ruleset_generation = 0);
        own_protocols_pass(rig, "without a ruleset");
        assert_eq!(rig.send(Port::Lan, &syn).verdict, Drop(DropReason::NoRuleset));
        rig.configure(|settings| settings.ruleset_generation = 1);

        rig.remove_interface(Port::Lan);
        own_protocols_pass(rig, "without a zone");
        assert_eq!(rig.send(Port::Lan, &syn).verdict, Drop(DropReason::NoZone));
        assert_eq!(rig.send(Port::Sync, &syn).verdict, Drop(DropReason::NoZone));

        rig.configure(|settings| *settings = Default::default());
        own_protocols_pass(rig, "without settings");
        assert_eq!(rig.send(Port::Lan, &syn).verdict, Drop(DropReason::NoSettings));
    });
}

#[test]
fn a_flow_keeps_to_its_zones() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S"));
        let spoofed = End { macs: CLIENT.macs, ..SERVER };
        assert_eq!(rig.send(Port::Lan, &tcp(spoofed, CLIENT, "S.")).verdict, Drop(DropReason::WrongZone));
        assert_eq!(rig.send(Port::Wan, &tcp(SERVER, CLIENT, "S.")).verdict, Forward);
        let spoofed = End { macs: SERVER.macs, ..CLIENT };
        for generation in [1, 2] {
            // With and without a next hop that spares the lookup of the zone.
            rig.configure(|settings| settings.route_generation = generation);
            assert_eq!(rig.send(Port::Wan, &tcp(spoofed, SERVER, ".")).verdict, Drop(DropReason::WrongZone));
        }
        assert_eq!(rig.send(Port::Sync, &tcp(CLIENT, SERVER, ".")).verdict, Drop(DropReason::NoZone));
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, ".")).verdict, Forward);
    });
}

#[test]
fn frames_for_another_station_are_not_taken() {
    needs_root!();
    at_both_hooks(|rig| {
        let flooded = End { macs: (CLIENT.macs.0, [2, 9, 9, 9, 9, 9]), ..CLIENT };
        for flags in ["S", "."] {
            let verdict = rig.send(Port::Lan, &tcp(flooded, SERVER, flags)).verdict;
            let reason = if flags == "S" { DropReason::OtherStation } else { DropReason::NotSyn };
            assert_eq!(verdict, Drop(reason));
        }
        rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S"));
        rig.send(Port::Wan, &tcp(SERVER, CLIENT, "S."));
        assert_eq!(rig.send(Port::Lan, &tcp(flooded, SERVER, ".")).verdict, Drop(DropReason::OtherStation));
    });
}

#[test]
fn broadcast_is_for_the_node_if_a_rule_says_so() {
    needs_root!();
    at_both_hooks(|rig| {
        let everybody = End { address: [255; 4], port: 67, ..SERVER };
        let discover = udp(End { macs: (CLIENT.macs.0, [0xff; 6]), port: 68, ..CLIENT }, everybody, b"");
        assert_eq!(rig.send(Port::Lan, &discover).verdict, Drop(DropReason::NoRule));
        // Not even a flow that could be forwarded goes on in a broadcast frame.
        let broadcast = udp(End { macs: (CLIENT.macs.0, [0xff; 6]), ..CLIENT }, SERVER, b"");
        assert_eq!(rig.send(Port::Lan, &broadcast).verdict, Drop(DropReason::NoRule));
        rig.load_rules(&[accept("all")]);
        rig.send(Port::Lan, &udp(CLIENT, SERVER, b""));
        assert_eq!(
            rig.send(Port::Lan, &broadcast).verdict,
            Drop(DropReason::OtherStation),
            "of a known flow"
        );
        // And TCP begins none there, with anybody.
        let to_many = tcp(End { macs: (CLIENT.macs.0, [0xff; 6]), ..CLIENT }, SERVER, "S");
        assert_eq!(rig.send(Port::Lan, &to_many).verdict, Drop(DropReason::OtherStation));
        rig.load_rules(&[Rule { to: ZONE_NODE, ..accept_service(proto::UDP, 67, 67, "dhcp") }]);
        assert_eq!(rig.send(Port::Lan, &discover).verdict, Pass);
    });
}

#[test]
fn what_no_zone_takes_is_dropped_under_its_name() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[accept("all")]);
        for (description, frame, reason) in [
            ("address mask request", ip(CLIENT, SERVER, 1, &[17; 20]), DropReason::Icmp),
            ("redirect", ip(CLIENT, SERVER, 1, &[5; 36]), DropReason::Icmp),
            ("a VLAN tag", ethernet(LAN_MAC, CLIENT.macs.0, 0x8100, &[5; 46]), DropReason::Vlan),
            ("a service tag", ethernet(LAN_MAC, CLIENT.macs.0, 0x88a8, &[5; 46]), DropReason::Vlan),
            ("MPLS", ethernet(LAN_MAC, CLIENT.macs.0, 0x8847, &[0; 46]), DropReason::UnknownEtherType),
        ] {
            assert_eq!(rig.send(Port::Lan, &frame).verdict, Drop(reason), "{description}");
        }
    });
}
