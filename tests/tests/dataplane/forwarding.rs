//! Forwarding: next hops, and what the kernel's stack has to do.

use std::net::Ipv6Addr;

use etherparse::PacketBuilder;
use fwha_common::drop::DropReason;
use fwha_common::flow::{FlowState, NextHop, proto};
use fwha_common::rule::{Action, Interface, Rule, ZONE_NODE};
use fwha_common::settings::Counter;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, End, NODE, SERVER, edit_ip, icmp_error, key, tcp, udp};
use crate::rig::{
    Hook, LAN, LAN_MAC, Port, Rig, Sent, Table, Verdict, WAN, WAN_MAC, WAN_MTU, accept, at_both_hooks, ip,
};

use Verdict::{Drop, Forward, Pass};

fn establish(rig: &mut Rig) {
    for (port, packet) in [
        (Port::Lan, tcp(CLIENT, SERVER, "S")),
        (Port::Wan, tcp(SERVER, CLIENT, "S.")),
        (Port::Lan, tcp(CLIENT, SERVER, ".")),
    ] {
        assert_eq!(rig.send(port, &packet).verdict, Forward);
    }
}

#[test]
fn the_next_hop_is_looked_up_once_per_direction_and_generation() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        assert_eq!(rig.counter(Counter::FibLookups), 2);
        ip(&["neighbour", "replace", "10.0.0.128", "lladdr", "02:00:00:00:02:81", "dev", "wan"], "");
        let packet = tcp(CLIENT, SERVER, "P.");
        assert_eq!(rig.send(Port::Lan, &packet).frame[5], 0x80, "as cached");
        assert_eq!(rig.counter(Counter::FibLookups), 2);
        rig.configure(|settings| settings.route_generation += 1);
        for _ in 0..2 {
            assert_eq!(rig.send(Port::Lan, &packet).frame[5], 0x81, "looked up again");
        }
        assert_eq!(rig.counter(Counter::FibLookups), 4, "there, and whether its source may be here");
        assert_eq!(rig.send(Port::Wan, &tcp(SERVER, CLIENT, ".")).verdict, Forward);
        assert_eq!(rig.counter(Counter::FibLookups), 4);
    });
}

/// Where the rig's hosts are.
const NETWORKS: [(&str, u8, Option<Port>); 2] =
    [("192.168.100.0", 24, Some(Port::Lan)), ("10.0.0.0", 24, Some(Port::Wan))];

/// Opens a new flow from a client, and says how many routes had to be looked up.
fn lookups_of_a_new_flow(rig: &mut Rig, client: [u8; 4], port: u16) -> u64 {
    let before = rig.counter(Counter::FibLookups);
    let syn = tcp(End { address: client, port, ..CLIENT }, SERVER, "S");
    assert_eq!(rig.send(Port::Lan, &syn).verdict, Forward);
    rig.counter(Counter::FibLookups) - before
}

#[test]
fn plain_routes_are_not_looked_up_for_each_flow() {
    needs_root!();
    at_both_hooks(|rig| {
        assert_eq!(lookups_of_a_new_flow(rig, CLIENT.address, 1), 2, "there and back");
        rig.set_plain_routes(&NETWORKS);
        // What a CPU knows it knows for a second, and this thread may move to another one.
        let spared = (2..100).find(|port| lookups_of_a_new_flow(rig, CLIENT.address, *port) == 0);
        assert!(spared.is_some());
        let answer = tcp(SERVER, End { port: 2, ..CLIENT }, "S.");
        assert_eq!(rig.send(Port::Wan, &answer).verdict, Forward, "by a way that was not looked up before");

        rig.set_plain_routes(&[("192.168.100.100", 32, None), NETWORKS[0], NETWORKS[1]]);
        for port in 100..110 {
            assert_ne!(lookups_of_a_new_flow(rig, CLIENT.address, port), 0, "the kernel is asked");
        }
        rig.set_plain_routes(&NETWORKS[..1]);
        for port in 110..120 {
            assert_eq!(lookups_of_a_new_flow(rig, CLIENT.address, port), 1, "not known, as it is not plain");
        }
    });
}

#[test]
fn plain_routes_hold_for_their_generation() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.set_plain_routes(&NETWORKS);
        lookups_of_a_new_flow(rig, CLIENT.address, 1);
        ip(&["neighbour", "replace", "10.0.0.128", "lladdr", "02:00:00:00:02:81", "dev", "wan"], "");
        rig.next_generation();
        let syn = tcp(End { port: 2, ..CLIENT }, SERVER, "S");
        assert_eq!(rig.send(Port::Lan, &syn).frame[5], 0x81, "as it is now");
        for port in 3..10 {
            assert_eq!(lookups_of_a_new_flow(rig, CLIENT.address, port), 2);
        }
        // Two generations later, the table of this one lies in the same place.
        rig.next_generation();
        for port in 10..20 {
            assert_eq!(lookups_of_a_new_flow(rig, CLIENT.address, port), 2);
        }
    });
}

#[test]
fn what_the_rules_drop_is_not_looked_up_by_a_plain_route() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[]);
        let syn = tcp(CLIENT, SERVER, "S");
        assert_eq!(rig.send(Port::Lan, &syn).verdict, Drop(DropReason::NoRule));
        assert_eq!(rig.counter(Counter::FibLookups), 1, "which zone it goes to");
        rig.set_plain_routes(&NETWORKS);
        assert_eq!(rig.send(Port::Lan, &syn).verdict, Drop(DropReason::NoRule));
        assert_eq!(rig.counter(Counter::FibLookups), 1);
    });
}

#[test]
fn a_flow_goes_to_the_zone_that_it_was_judged_for() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[Rule { from: LAN, to: LAN, ..accept("inside") }]);
        // As they were listed; the kernel's lead to the WAN by now.
        rig.set_plain_routes(&[NETWORKS[0], ("10.0.0.0", 24, Some(Port::Lan))]);
        let syn = tcp(CLIENT, SERVER, "S");
        assert_eq!(rig.send(Port::Lan, &syn).verdict, Drop(DropReason::NoRoute));
    });
}

#[test]
fn the_kernel_has_the_last_word_on_a_forged_source() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.set_plain_routes(&NETWORKS);
        let forged = tcp(End { address: [10, 0, 0, 77], ..CLIENT }, SERVER, "S");
        assert_eq!(rig.send(Port::Lan, &forged).verdict, Drop(DropReason::Spoofed));
        let unknown = tcp(End { address: [8, 8, 8, 8], ..CLIENT }, SERVER, "S");
        assert_eq!(rig.send(Port::Lan, &unknown).verdict, Drop(DropReason::Spoofed));
        // The node's own address is in the network, and left to the kernel.
        rig.set_plain_routes(&[("192.168.100.1", 32, None), NETWORKS[0], NETWORKS[1]]);
        let own = tcp(End { address: [192, 168, 100, 1], ..CLIENT }, SERVER, "S");
        assert_eq!(rig.send(Port::Lan, &own).verdict, Drop(DropReason::Spoofed));
    });
}

#[test]
fn the_interface_that_a_flow_leaves_by_is_not_taken_for_the_one_that_it_came_by() {
    needs_root!();
    at_both_hooks(|rig| {
        let zone = |zone, mac, flags| Interface { zone, mac, flags, ..Interface::default() };
        for loose in [Port::Wan, Port::Lan] {
            let flags = |port| if port == loose { Interface::LOOSE } else { 0 };
            rig.set_interface(Port::Lan, zone(LAN, LAN_MAC, flags(Port::Lan)));
            rig.set_interface(Port::Wan, zone(WAN, WAN_MAC, flags(Port::Wan)));
            rig.set_plain_routes(&NETWORKS);
            let foreign = tcp(End { address: [203, 0, 113, 7], ..CLIENT }, SERVER, "S");
            let wanted = if loose == Port::Lan { Forward } else { Drop(DropReason::Spoofed) };
            assert_eq!(rig.send(Port::Lan, &foreign).verdict, wanted, "{loose:?} takes all sources");
        }
        // The way back is looked up with the first packet, for the MTU there.
        rig.set_interface(Port::Lan, zone(LAN, LAN_MAC, 0));
        let mut rule = Rule { from: LAN, to: WAN, ..accept("lan-out") };
        rule.decision.mss = 1200;
        rig.load_rules(&[rule]);
        rig.set_plain_routes(&NETWORKS);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S")).verdict, Forward);
        assert_eq!(rig.send(Port::Wan, &tcp(SERVER, CLIENT, "S.")).verdict, Forward);
        let flow = rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).expect("it was answered");
        let ways = flow.ways.map(|way| way.out);
        assert_eq!(ways, [Port::Wan, Port::Lan].map(|port| NextHop::out(rig.ifindex(port), false, false)));
    });
}

#[test]
fn a_syn_of_the_nodes_own_flow_passes_as_before() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[Rule { from: LAN, to: ZONE_NODE, ..accept("admin") }]);
        let syn = tcp(CLIENT, NODE, "S");
        assert_eq!(rig.send(Port::Lan, &syn).verdict, Pass);
        rig.load_rules(&[]);
        assert_eq!(rig.send(Port::Lan, &syn).verdict, Pass, "it comes again");
        let other = tcp(End { port: 40_001, ..CLIENT }, NODE, "S");
        assert_eq!(rig.send(Port::Lan, &other).verdict, Drop(DropReason::NoRule));
    });
}

#[test]
fn a_flow_does_not_follow_a_route_into_another_zone() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        ip(&["route", "add", "10.0.0.128/32", "via", "192.168.100.101"], "");
        rig.configure(|settings| settings.route_generation += 1);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, ".")).verdict, Drop(DropReason::WrongZone));
    });
}

#[test]
fn the_stack_gets_what_it_must_answer() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        let segment = tcp(CLIENT, SERVER, "P.");
        let datagram = |len: usize| udp(CLIENT, SERVER, &vec![0; len - 28]);
        for (description, packet, verdict) in [
            ("time to live 2", edit_ip(&segment, |header| header.time_to_live = 2), Forward),
            ("time to live 1", edit_ip(&segment, |header| header.time_to_live = 1), Pass),
            ("time to live 0", edit_ip(&segment, |header| header.time_to_live = 0), Pass),
            (
                "options",
                edit_ip(&segment, |header| {
                    header.options = [1, 1, 1, 0].into();
                    header.total_len += 4;
                }),
                Pass,
            ),
            ("as long as the MTU", datagram(WAN_MTU), Forward),
            ("longer than the MTU", datagram(WAN_MTU + 1), Pass),
            ("no neighbour", udp(CLIENT, End { address: [203, 0, 113, 1], ..SERVER }, b""), Pass),
        ] {
            let sent = rig.send(Port::Lan, &packet);
            assert_eq!(sent.verdict, verdict, "{description}");
            if verdict == Pass {
                assert_eq!(sent.frame, packet, "{description}: left as it is");
            }
        }
        // What was passed on is a flow like any other: the egress guard lets it out.
        assert!(
            rig.embryonic
                .flow(&key(CLIENT, End { address: [203, 0, 113, 1], ..SERVER }, proto::UDP))
                .is_some()
        );
    });
}

#[test]
fn xdp_leaves_to_the_stack_what_goes_where_nothing_of_it_is_sent() {
    needs_root!();
    at_both_hooks(|rig| {
        let wan = Interface { zone: WAN, mac: WAN_MAC, ..Interface::default() };
        rig.set_interface(Port::Wan, Interface { flags: Interface::NO_XMIT, ..wan });
        let (there, back) = match rig.hook {
            Hook::Xdp => (Pass, Forward),
            Hook::Tc => (Forward, Forward),
        };
        for (port, packet, verdict) in [
            (Port::Lan, tcp(CLIENT, SERVER, "S"), there),
            (Port::Wan, tcp(SERVER, CLIENT, "S."), back),
            (Port::Lan, tcp(CLIENT, SERVER, "."), there),
        ] {
            let sent = rig.send(port, &packet);
            assert_eq!(sent.verdict, verdict);
            assert!(verdict == Forward || sent.frame == packet, "left as it is");
        }
        let flow = rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).expect("the flow");
        assert_eq!((flow.state(), flow.packets()), (FlowState::Established, [2, 1]));
        // It has a program now, say.
        rig.set_interface(Port::Wan, wan);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, ".")).verdict, Forward);
    });
}

#[test]
fn routes_that_lead_nowhere() {
    needs_root!();
    at_both_hooks(|rig| {
        let to = |address| udp(CLIENT, End { address, ..SERVER }, b"");
        assert_eq!(rig.send(Port::Lan, &to([198, 51, 100, 1])).verdict, Drop(DropReason::NoRoute));
        assert_eq!(rig.send(Port::Lan, &to([192, 0, 2, 1])).verdict, Drop(DropReason::RouteNoZone));
        // Without any route the stack could only say so; the rules for the node decide.
        assert_eq!(rig.send(Port::Lan, &to([8, 8, 8, 8])).verdict, Drop(DropReason::NoRule));
        assert_eq!(rig.counter(Counter::Embryonic), 0);
    });
}

/// A SYN over IPv6 from one address to another, by the client's cable.
fn syn_v6(from: &str, to: &str) -> Vec<u8> {
    let octets = |address: &str| address.parse::<Ipv6Addr>().expect("an address").octets();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT.macs.0, CLIENT.macs.1)
        .ipv6(octets(from), octets(to), 64)
        .tcp(40_000, 22, 1, 1000)
        .syn()
        .write(&mut frame, &[])
        .expect("a frame");
    frame
}

#[test]
fn a_router_that_is_not_resolved_has_the_way_that_it_has_when_it_is() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[Rule { from: LAN, to: WAN, ..accept("out") }]);
        // As router advertisements and routing daemons lay them; the last but one router is itself routed elsewhere.
        let routes = "route add 2001:db8:9::/64 via fe80::99 dev wan
             route add 198.18.0.0/16 via inet6 fe80::99 dev wan
             route add 198.19.0.0/16 via 192.168.100.77 dev wan onlink
             route add 203.0.113.128/25 mtu lock 1300 via 10.0.0.254\n";
        ip(&["-batch", "-"], routes);
        rig.configure(|settings| settings.route_generation += 1);
        let v4 = |address| tcp(CLIENT, End { address, ..SERVER }, "S");
        let syns = [
            syn_v6("2001:db8:1::100", "2001:db8:9::1"),
            v4([198, 18, 0, 1]),
            v4([198, 19, 0, 1]),
            v4([203, 0, 113, 200]),
        ];
        for syn in &syns {
            assert_eq!(rig.send(Port::Lan, syn).verdict, Pass, "the stack resolves it");
        }
        assert_eq!(rig.counter(Counter::Embryonic), syns.len() as u64);
        // The sources are behind it, too.
        let spoofed = syn_v6("2001:db8:9::1", "2001:db8:2::128");
        assert_eq!(rig.send(Port::Lan, &spoofed).verdict, Drop(DropReason::Spoofed));
        let spoofed = tcp(End { address: [198, 18, 0, 1], ..CLIENT }, SERVER, "S");
        assert_eq!(rig.send(Port::Lan, &spoofed).verdict, Drop(DropReason::Spoofed));
    });
}

#[test]
fn what_ended_here_for_want_of_a_route_is_forwarded_when_it_comes() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[accept("all")]);
        let far = End { address: [8, 8, 8, 8], ..SERVER };
        let packet = udp(CLIENT, far, b"");
        let key = key(CLIENT, far, proto::UDP);
        for _ in 0..2 {
            assert_eq!(rig.send(Port::Lan, &packet).verdict, Pass, "the stack says that there is no route");
        }
        assert_eq!(rig.node_guests.get(&key, 0).unwrap().packets(), [2, 0]);
        assert_eq!(rig.send(Port::Lan, &udp(CLIENT, NODE, b"")).verdict, Pass);
        ip(&["route", "add", "default", "via", "10.0.0.128"], "");
        rig.configure(|settings| settings.route_generation += 1);
        for _ in 0..2 {
            assert_eq!(rig.send(Port::Lan, &packet).verdict, Forward);
        }
        assert_eq!(rig.embryonic.flow(&key).unwrap().packets(), [2, 0]);
        let looked_up = rig.counter(Counter::FibLookups);
        for _ in 0..2 {
            assert_eq!(rig.send(Port::Lan, &udp(CLIENT, NODE, b"")).verdict, Pass);
        }
        assert_eq!(rig.counter(Counter::FibLookups), looked_up + 1, "once for all routes as they are");
    });
}

#[test]
fn no_default_route_leads_to_an_address_of_many_or_none() {
    needs_root!();
    at_both_hooks(|rig| {
        let mut refuse = Rule { to: ZONE_NODE, ..accept("refused") };
        refuse.decision.action = Action::Reject as u8;
        rig.load_rules(&[Rule { from: LAN, to: WAN, ..accept("out") }, refuse]);
        ip(&["route", "add", "default", "via", "10.0.0.128"], "");
        rig.configure(|settings| settings.route_generation += 1);
        for plain in [false, true] {
            if plain {
                rig.set_plain_routes(&[("0.0.0.0", 0, Some(Port::Wan)), NETWORKS[0]]);
            }
            for address in [[224, 0, 0, 251], [239, 1, 2, 3], [255; 4], [0, 1, 2, 3]] {
                let frame = udp(CLIENT, End { address, ..SERVER }, b"");
                let outcome = rig.send(Port::Lan, &frame);
                assert_eq!(
                    outcome.verdict,
                    Drop(DropReason::Reject),
                    "{address:?}: to nobody, and no answer from there"
                );
            }
            let frame = udp(CLIENT, End { address: [240, 0, 0, 1], ..SERVER }, b"");
            assert_eq!(rig.send(Port::Lan, &frame).verdict, Forward);
        }
    });
}

#[test]
fn an_error_leaves_no_way_in_its_flow() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        // What a router says goes elsewhere.
        let rules = "rule add from 10.0.0.254 lookup 77
             route add 192.168.100.0/24 via 192.168.100.101 dev lan table 77\n";
        ip(&["-batch", "-"], rules);
        rig.configure(|settings| settings.route_generation += 1);
        let router = End { address: [10, 0, 0, 254], ..SERVER };
        let error = icmp_error(router, CLIENT, 3, &tcp(CLIENT, SERVER, "."));
        let hop = |sent: Sent| (sent.verdict, sent.frame[5]);
        assert_eq!(hop(rig.send(Port::Wan, &error)), (Forward, 0x65));
        assert_eq!(hop(rig.send(Port::Wan, &tcp(SERVER, CLIENT, "."))), (Forward, 0x64));
        assert_eq!(hop(rig.send(Port::Wan, &error)), (Forward, 0x64), "which it takes when it is known");
    });
}

#[test]
fn a_super_packet_counts_as_its_segments() {
    needs_root!();
    at_both_hooks(|rig| {
        if rig.hook == Hook::Xdp {
            return;
        }
        establish(rig);
        let mut frame = tcp(CLIENT, SERVER, ".");
        frame.extend(vec![0; 3000]);
        let frame = edit_ip(&frame, |header| header.total_len += 3000);
        assert_eq!(
            rig.send_super(Port::Lan, &frame, 3, 1000).verdict,
            Forward,
            "longer than the MTU, as a whole"
        );
        let flow = rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).unwrap();
        assert_eq!(flow.packets(), [2 + 3, 1]);
        assert_eq!(flow.bytes(), [40 + 40 + 3040, 40]);
        let too_long = WAN_MTU as u32 - 40 + 1;
        assert_eq!(rig.send_super(Port::Lan, &frame, 3, too_long).verdict, Pass);
        assert_eq!(rig.send_super(Port::Lan, &frame, 3, too_long - 1).verdict, Forward);
        // More than 64 KiB: no length in the header (BIG TCP).
        let big = edit_ip(&frame, |header| header.total_len = 0);
        assert_eq!(rig.send_super(Port::Lan, &big, 3, 1000).verdict, Forward);
        assert_eq!(rig.send(Port::Lan, &big).verdict, Drop(DropReason::Malformed));
    });
}
