//! Ownership: only the Active node forwards, and only as long as its lease runs.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use fwha_common::drop::DropReason;
use fwha_common::flow::{Flow, FlowKey, FlowState, proto};
use fwha_common::group::{Group, Vip, VipKey};
use fwha_common::rule::{Rule, ZONE_NODE};
use fwha_tests::needs_root;
use nix::time::{ClockId, clock_gettime};

use crate::packets::{CLIENT, End, NODE, SERVER, ethernet, key, tcp};
use crate::rig::{self, Port, Rig, TERM, Verdict, accept_service, at_both_hooks};

use Verdict::{Drop, Forward, Pass};

const OWNER: Group = Group { lease_until_ns: u64::MAX, since_ns: 0, role: Group::ACTIVE, term: TERM };
const BACKUP: Group = Group { role: 0, ..OWNER };
const LAPSED: Group = Group { lease_until_ns: 1, ..OWNER };
const LEAVING: Group = Group { role: Group::LEAVING, ..OWNER };
const LEFT: Group = Group { role: Group::LEAVING, ..LAPSED };

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

fn establish(rig: &mut Rig) {
    for (port, packet) in [
        (Port::Lan, tcp(CLIENT, SERVER, "S")),
        (Port::Wan, tcp(SERVER, CLIENT, "S.")),
        (Port::Lan, tcp(CLIENT, SERVER, ".")),
    ] {
        assert_eq!(rig.send(port, &packet).verdict, Forward);
    }
}

/// Four bytes of data.
fn data(from: End, to: End, seq: u32, ack: u32) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(from.macs.0, from.macs.1).ipv4(from.address, to.address, 64);
    let mut frame = Vec::new();
    builder.tcp(from.port, to.port, seq, 8192).ack(ack).write(&mut frame, b"data").expect("a segment");
    frame
}

/// Makes the client's connection one that a peer has told of, and that nothing was seen of here.
fn inherit(rig: &mut Rig) {
    rig.edit(&key(CLIENT, SERVER, proto::TCP), |flow| {
        flow.ways = Default::default();
        flow.word = Flow::word(flow.state(), flow.flags() | Flow::INHERITED, flow.zones());
        flow.node = 2;
    });
}

#[test]
fn a_backup_and_a_node_whose_lease_ran_out_forward_nothing() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        rig.events();
        let before = rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).unwrap();
        for (group, reason) in
            [(BACKUP, DropReason::NotOwner), (LAPSED, DropReason::LeaseExpired), (LEFT, DropReason::NotOwner)]
        {
            rig.set_group(group);
            let fresh = crate::packets::End { port: 50_000, ..CLIENT };
            for (description, port, packet) in [
                ("an established flow", Port::Lan, tcp(CLIENT, SERVER, "F.")),
                ("its replies", Port::Wan, tcp(SERVER, CLIENT, "R")),
                ("a new flow", Port::Lan, tcp(fresh, SERVER, "S")),
                (
                    "an error about a flow",
                    Port::Wan,
                    crate::packets::icmp_error(SERVER, CLIENT, 3, &tcp(CLIENT, SERVER, ".")),
                ),
            ] {
                assert_eq!(rig.send(port, &packet).verdict, Drop(reason), "{description}");
            }
        }
        let after = rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).unwrap();
        assert_eq!(after, before, "what is not owned is not touched");
        assert!(rig.events().is_empty());
        assert_eq!(rig.hits(0), 1, "a Backup judges nothing");

        rig.set_group(OWNER);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "P.")).verdict, Forward);
    });
}

#[test]
fn what_still_comes_to_a_node_that_has_handed_over_is_forwarded_and_told_in_its_term() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.set_group(LEAVING);
        establish(rig);
        let told: Vec<_> = rig.events().iter().map(|event| (event.state, event.version >> 32)).collect();
        let states = [FlowState::SynRecv as u8, FlowState::Established as u8];
        assert_eq!(told, states.map(|state| (state, u64::from(TERM))));
        rig.set_group(LEFT);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "P.")).verdict, Drop(DropReason::NotOwner));
    });
}

#[test]
fn what_comes_to_a_node_that_has_handed_over_may_be_about_what_went_through_the_next() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        // The client's data went through the next owner; what the server says to it still comes here.
        let answer = data(SERVER, CLIENT, 1001, 500_000);
        assert_eq!(rig.send(Port::Wan, &answer).verdict, Drop(DropReason::TcpWindow));
        rig.set_group(LEAVING);
        assert_eq!(rig.send(Port::Wan, &answer).verdict, Forward);
        assert_eq!(rig.send(Port::Lan, &data(CLIENT, SERVER, 500_000, 1005)).verdict, Forward);
        rig.set_group(OWNER);
        assert_eq!(
            rig.send(Port::Wan, &answer).verdict,
            Drop(DropReason::TcpWindow),
            "it moved nothing here"
        );
    });
}

#[test]
fn a_forged_segment_does_not_end_an_inherited_connection() {
    needs_root!();
    at_both_hooks(|rig| {
        let real =
            [(Port::Lan, data(CLIENT, SERVER, 1001, 1001)), (Port::Wan, data(SERVER, CLIENT, 1001, 1005))];
        let [forward, back] = &real;
        for (seq, ack) in [(900_000_000, 700_000_000), (3_000_000_000, 3_500_000_000), (1001, 3_500_000_000)]
        {
            for forged in
                [(Port::Lan, data(CLIENT, SERVER, seq, ack)), (Port::Wan, data(SERVER, CLIENT, seq, ack))]
            {
                for order in [
                    [&forged, forward, back],
                    [&forged, back, forward],
                    [forward, &forged, back],
                    [back, &forged, forward],
                ] {
                    establish(rig);
                    inherit(rig);
                    for (port, segment) in order.into_iter().chain([forward, back, forward]) {
                        assert_eq!(rig.send(*port, segment).verdict, Forward, "{seq} {ack}");
                    }
                    // Both ends were heard, and agree: what is far away is held against them.
                    let late = data(SERVER, CLIENT, 2_000_000_000, 2_000_000_000);
                    assert_eq!(
                        rig.send(Port::Wan, &late).verdict,
                        Drop(DropReason::TcpWindow),
                        "{seq} {ack}"
                    );
                    assert_eq!(rig.send(Port::Wan, &back.1).verdict, Forward);
                    rig::clear(&mut rig.flows);
                }
            }
        }
    });
}

#[test]
fn an_error_about_data_passes_before_the_other_end_was_heard() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        inherit(rig);
        let segment = data(CLIENT, SERVER, 1001, 1001);
        let too_big = crate::packets::icmp_error(SERVER, CLIENT, 3, &segment);
        assert_eq!(rig.send(Port::Lan, &segment).verdict, Forward);
        assert_eq!(
            rig.send(Port::Wan, &too_big).verdict,
            Forward,
            "nothing comes from the server until this is through"
        );
        assert_eq!(rig.send(Port::Wan, &data(SERVER, CLIENT, 1001, 1005)).verdict, Forward);
        let old = crate::packets::icmp_error(SERVER, CLIENT, 3, &data(CLIENT, SERVER, 900_000_000, 1001));
        assert_eq!(rig.send(Port::Wan, &old).verdict, Drop(DropReason::IcmpUnrelated));
    });
}

#[test]
fn a_takeover_goes_on_with_replicated_flows_under_its_own_term() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        // As a record from the peer would have it: another node's identity, never seen here, no next hops.
        inherit(rig);
        rig.events();
        rig.set_group(Group { since_ns: 1 << 62, term: TERM + 1, ..OWNER });
        // Nobody knows yet which reset is right: it goes on to whom it concerns, and closes nothing.
        for _ in 0..2 {
            assert_eq!(rig.send(Port::Wan, &tcp(SERVER, CLIENT, "R")).verdict, Forward);
        }
        assert_eq!(rig.send(Port::Wan, &tcp(SERVER, CLIENT, "P.")).verdict, Forward);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "F.")).verdict, Forward);
        let event = rig.events()[0];
        assert_eq!((event.state, event.version), (FlowState::FinWait as u8, u64::from(TERM + 1) << 32 | 1));
        assert_eq!(rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).unwrap().node, 2);
    });
}

#[test]
fn a_flow_that_comes_back_is_taken_as_its_next_packets_say() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        let flow = |rig: &Rig| rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).unwrap();
        let (beyond, back) =
            (data(CLIENT, SERVER, 900_000_000, 700_000_000), data(SERVER, CLIENT, 700_000_000, 900_000_000));
        assert_eq!(rig.send(Port::Lan, &beyond).verdict, Drop(DropReason::TcpWindow));
        // Another node has it for a while, and carries the connection on.
        rig.set_group(BACKUP);
        assert_eq!(rig.send(Port::Lan, &beyond).verdict, Drop(DropReason::NotOwner));
        let since_ns = now_ns();
        rig.set_group(Group { since_ns, term: TERM + 2, ..OWNER });
        assert_eq!(rig.send(Port::Lan, &beyond).verdict, Forward);
        assert_eq!(rig.send(Port::Wan, &back).verdict, Forward);
        assert_eq!(flow(rig).flags() & Flow::INHERITED, Flow::INHERITED);
        // Once the programs' clock, which is up to two ticks behind, has come to this ownership, both are seen as
        // of it, and held to it again.
        loop {
            for (port, segment) in [(Port::Lan, &beyond), (Port::Wan, &back)] {
                assert_eq!(rig.send(port, segment).verdict, Forward);
            }
            if flow(rig).ways.iter().all(|way| way.last_seen_ns >= since_ns) {
                break;
            }
        }
        assert_eq!(
            rig.send(Port::Lan, &data(CLIENT, SERVER, 901_000_000, 700_000_000)).verdict,
            Drop(DropReason::TcpWindow)
        );
        // Elsewhere more was sent than a comparison of sequence numbers spans.
        assert_eq!(flow(rig).ways.map(|way| way.maxack), [700_000_000, 900_000_000]);
        rig.set_group(BACKUP);
        let since_ns = now_ns() + 1_000_000_000;
        rig.set_group(Group { since_ns, term: TERM + 4, ..OWNER });
        for (port, segment) in [
            (Port::Lan, data(CLIENT, SERVER, 3_900_000_000, 700_000_500)),
            (Port::Wan, data(SERVER, CLIENT, 700_000_500, 3_900_000_000)),
        ] {
            assert_eq!(rig.send(port, &segment).verdict, Forward);
        }
        assert_eq!(flow(rig).ways.map(|way| way.maxack), [700_000_500, 3_900_000_000]);
    });
}

/// An ARP packet of the client.
fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(CLIENT.macs.0);
    packet.extend(sender);
    packet.extend([0; 6]);
    packet.extend(target);
    packet.resize(46, 0);
    ethernet([0xff; 6], CLIENT.macs.0, 0x0806, &packet)
}

/// A neighbour solicitation for an address of the link.
fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let from: Ipv6Addr = "fe80::100".parse().expect("an address");
    let multicast: Ipv6Addr = "ff02::1:ff00:12".parse().expect("an address");
    let mut body = vec![0; 4];
    body.extend(target.octets());
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT.macs.0, [0x33, 0x33, 0xff, 0, 0, 0x12])
        .ipv6(from.octets(), multicast.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut frame, &body[4..])
        .expect("a solicitation");
    frame
}

#[test]
fn nobody_is_told_where_an_address_is_whose_lease_is_over() {
    needs_root!();
    at_both_hooks(|rig| {
        let (vip, other) = ([192, 168, 100, 12], [192, 168, 100, 13]);
        let vip6: Ipv6Addr = "fe80::12".parse().expect("an address");
        let key = |address, zone| VipKey { address: FlowKey::address(address), zone };
        let known = Vip { zone: rig::LAN, ..Vip::default() };
        let v4 = key(Ipv4Addr::from(vip).to_ipv6_mapped().octets(), 0);
        for key in [v4, key(vip6.octets(), rig::LAN.into())] {
            rig.vips.insert(key, known, 0).expect("an element");
        }
        let client = CLIENT.address;
        for (group, answered) in [(OWNER, Pass), (BACKUP, Pass), (LAPSED, Drop(DropReason::LeaseExpired))] {
            rig.set_group(group);
            assert_eq!(rig.send(Port::Lan, &arp(1, client, vip)).verdict, answered, "{group:?}");
            assert_eq!(rig.send(Port::Lan, &solicitation(vip6)).verdict, answered, "{group:?}");
            for (name, frame) in [
                ("another address", arp(1, client, other)),
                ("a reply", arp(2, client, vip)),
                ("the new owner's announcement", arp(1, vip, vip)),
                ("another address of the link", solicitation("fe80::13".parse().expect("an address"))),
            ] {
                assert_eq!(rig.send(Port::Lan, &frame).verdict, Pass, "{name}, {group:?}");
            }
            // The stack would answer at any interface; but one of a link is somebody else's at another.
            assert_eq!(rig.send(Port::Wan, &arp(1, client, vip)).verdict, answered);
            assert_eq!(rig.send(Port::Wan, &solicitation(vip6)).verdict, Pass);
        }
    });
}

#[test]
fn a_backup_answers_on_its_own_addresses() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[Rule { to: ZONE_NODE, ..accept_service(proto::TCP, 22, 22, "ssh") }]);
        rig.set_group(BACKUP);
        let node = NODE;
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, node, "S")).verdict, Pass);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, node, ".")).verdict, Pass, "known from then on");
        let flow = rig.node_guests.get(&key(CLIENT, node, proto::TCP), 0).unwrap();
        assert_eq!(flow.zones(), [1, ZONE_NODE]);
        let telnet = crate::packets::End { port: 23, ..node };
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, telnet, "S")).verdict, Drop(DropReason::NoRule));
        assert!(rig.flows.keys().next().is_none() && rig.events().is_empty(), "never replicated");
    });
}
