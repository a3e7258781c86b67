//! Ownership: only the Active node forwards, and only as long as its lease runs.

use etherparse::PacketBuilder;
use fwha_common::drop::DropReason;
use fwha_common::flow::{Flow, FlowState, proto};
use fwha_common::group::Group;
use fwha_common::rule::{Rule, ZONE_NODE};
use fwha_tests::needs_root;
use nix::time::{ClockId, clock_gettime};

use crate::packets::{CLIENT, End, NODE, SERVER, key, tcp};
use crate::rig::{Port, Rig, TERM, Verdict, accept, at_both_hooks};

use Verdict::{Drop, Forward, Pass};

const OWNER: Group = Group { lease_until_ns: u64::MAX, since_ns: 0, role: Group::ACTIVE, term: TERM };
const BACKUP: Group = Group { role: 0, ..OWNER };
const LAPSED: Group = Group { lease_until_ns: 1, ..OWNER };

fn clock_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("the clock");
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

#[test]
fn a_backup_and_a_node_whose_lease_ran_out_forward_nothing() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        rig.events();
        let before = rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).unwrap();
        for (group, reason) in [(BACKUP, DropReason::NotOwner), (LAPSED, DropReason::LeaseExpired)] {
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
fn a_takeover_goes_on_with_replicated_flows_under_its_own_term() {
    needs_root!();
    at_both_hooks(|rig| {
        establish(rig);
        // As a record from the peer would have it: another node's identity, never seen here, no next hops.
        rig.edit(&key(CLIENT, SERVER, proto::TCP), |flow| {
            flow.ways = Default::default();
            flow.word = Flow::word(flow.state(), flow.flags() | Flow::INHERITED, flow.zones());
            flow.node = 2;
        });
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
        let far = |from: End, to: End, seq: u32, ack: u32| {
            let builder =
                PacketBuilder::ethernet2(from.macs.0, from.macs.1).ipv4(from.address, to.address, 64);
            let mut frame = Vec::new();
            builder
                .tcp(from.port, to.port, seq, 8192)
                .ack(ack)
                .write(&mut frame, b"data")
                .expect("a segment");
            frame
        };
        let (beyond, back) =
            (far(CLIENT, SERVER, 900_000_000, 700_000_000), far(SERVER, CLIENT, 700_000_000, 900_000_000));
        assert_eq!(rig.send(Port::Lan, &beyond).verdict, Drop(DropReason::TcpWindow));
        // Another node has it for a while, and carries the connection on.
        rig.set_group(BACKUP);
        assert_eq!(rig.send(Port::Lan, &beyond).verdict, Drop(DropReason::NotOwner));
        let since_ns = clock_ns(ClockId::CLOCK_MONOTONIC);
        rig.set_group(Group { since_ns, term: TERM + 2, ..OWNER });
        assert_eq!(rig.send(Port::Lan, &beyond).verdict, Forward);
        assert_eq!(rig.send(Port::Wan, &back).verdict, Forward);
        assert_eq!(flow(rig).flags() & Flow::INHERITED, Flow::INHERITED);
        // A tick of the clock later both are seen as of this ownership, and held to it again.
        while clock_ns(ClockId::CLOCK_MONOTONIC_COARSE) <= since_ns {
            std::hint::spin_loop();
        }
        for (port, segment) in [(Port::Lan, &beyond), (Port::Wan, &back)] {
            assert_eq!(rig.send(port, segment).verdict, Forward);
        }
        assert_eq!(
            rig.send(Port::Lan, &far(CLIENT, SERVER, 901_000_000, 700_000_000)).verdict,
            Drop(DropReason::TcpWindow)
        );
    });
}

#[test]
fn a_backup_answers_on_its_own_addresses() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[Rule {
            to: ZONE_NODE,
            proto: proto::TCP,
            port_min: 22,
            port_max: 22,
            ..accept("ssh")
        }]);
        rig.set_group(BACKUP);
        let node = NODE;
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, node, "S")).verdict, Pass);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, node, ".")).verdict, Pass, "known from then on");
        let flow = rig.node_flows.get(&key(CLIENT, node, proto::TCP), 0).unwrap();
        assert_eq!(flow.zones(), [1, ZONE_NODE]);
        let telnet = crate::packets::End { port: 23, ..node };
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, telnet, "S")).verdict, Drop(DropReason::NoRule));
        assert!(rig.flows.keys().next().is_none() && rig.events().is_empty(), "never replicated");
    });
}
