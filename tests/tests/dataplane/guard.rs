//! The egress program: the node's own flows, and the guard against forwarding without a flow.

use fwha_common::drop::DropReason;
use fwha_common::flow::{Flow, FlowState, proto};
use fwha_common::rule::{Rule, ZONE_NODE};
use fwha_common::settings::Counter;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, End, NODE, SERVER, echo, ethernet, icmp_error, key, tcp, udp};
use crate::rig::{
    CLIENT_MAC, Hook, LAN, LAN_MAC, Port, Rig, Verdict, accept, accept_service, at_both_hooks, keys,
};

use Verdict::{Drop, Forward, Pass};

/// What the node sends from its own address.
const SELF: End = End { macs: (LAN_MAC, CLIENT_MAC), address: [192, 168, 100, 1], port: 33_000 };
const PEER: End = End { port: 53, ..CLIENT };

#[test]
fn answers_to_what_the_node_sent_are_let_in() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.set_group(Default::default());
        let cases = [
            (udp(SELF, PEER, b"question"), udp(PEER, SELF, b"answer"), proto::UDP, DropReason::NoRule),
            (tcp(SELF, PEER, "S"), tcp(PEER, SELF, "S."), proto::TCP, DropReason::NotSyn),
        ];
        for (question, answer, proto, reason) in cases {
            assert_eq!(rig.send(Port::Lan, &answer).verdict, Drop(reason), "not asked yet");
            assert!(rig.leave(Port::Lan, None, 0, &question));
            assert_eq!(rig.send(Port::Lan, &answer).verdict, Pass);
            let flow = rig.node_flows.get(&key(SELF, PEER, proto), 0).unwrap();
            assert_eq!(flow.zones(), [ZONE_NODE, LAN]);
            assert_eq!(flow.packets(), [1, 1]);
        }
        assert!(rig.leave(Port::Lan, None, 0, &echo(SELF, PEER, false, 5)));
        assert_eq!(rig.send(Port::Lan, &echo(PEER, SELF, true, 5)).verdict, Pass);
        assert_eq!(rig.send(Port::Lan, &icmp_error(PEER, SELF, 3, &udp(SELF, PEER, b""))).verdict, Pass);
        assert!(rig.flows.keys().next().is_none() && rig.events().is_empty(), "never replicated");
    });
}

#[test]
fn a_connection_older_than_the_programs_goes_on() {
    needs_root!();
    at_both_hooks(|rig| {
        let (there, back) = (tcp(CLIENT, NODE, "P."), tcp(NODE, CLIENT, "P."));
        assert_eq!(rig.send(Port::Lan, &there).verdict, Drop(DropReason::NotSyn));
        assert!(rig.leave(Port::Lan, None, 0, &back));
        assert_eq!(rig.send(Port::Lan, &there).verdict, Pass);
        let flow = rig.node_flows.get(&key(CLIENT, NODE, proto::TCP), 0).unwrap();
        assert_eq!(flow.state(), FlowState::Established);
    });
}

#[test]
fn the_nodes_own_protocols_leave() {
    needs_root!();
    at_both_hooks(|rig| {
        let group = End { macs: ([0; 6], [1, 0, 0x5e, 0, 0, 18]), address: [224, 0, 0, 18], port: 0 };
        let vrrp = crate::packets::ip(SELF, group, proto::VRRP, &[0; 12]);
        let frames = [
            vrrp,
            ethernet([0xff; 6], LAN_MAC, 0x0806, &[0; 46]),
            ethernet([0xff; 6], LAN_MAC, 0x88b5, &[0; 46]),
            ethernet([0x33; 6], LAN_MAC, 0x86dd, &[0; 46]),
            crate::packets::fragment(&udp(SELF, PEER, b"data"), 3, false),
        ];
        for settings in [true, false] {
            if !settings {
                rig.configure(|settings| *settings = Default::default());
            }
            for frame in &frames {
                assert!(rig.leave(Port::Lan, None, 0, frame));
                assert!(!rig.leave(Port::Lan, Some(Port::Wan), 0, frame), "but nobody else's");
            }
        }
    });
}

#[test]
fn the_stack_forwards_nothing_that_no_flow_covers() {
    needs_root!();
    at_both_hooks(|rig| {
        let segment = tcp(CLIENT, SERVER, ".");
        assert!(!rig.leave(Port::Wan, Some(Port::Lan), 0, &segment), "no ingress program, no flow");
        assert!(!rig.leave(Port::Wan, Some(Port::Lan), 1, &segment), "somebody's mark");

        rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S"));
        assert!(rig.leave(Port::Wan, Some(Port::Lan), 0, &tcp(CLIENT, SERVER, "S")), "embryonic");
        rig.send(Port::Wan, &tcp(SERVER, CLIENT, "S."));
        assert!(rig.leave(Port::Wan, Some(Port::Lan), 0, &segment));
        let router = End { address: [10, 0, 0, 254], ..SERVER };
        assert!(rig.leave(Port::Lan, Some(Port::Wan), 0, &icmp_error(router, CLIENT, 11, &segment)));
        let unrelated = tcp(End { port: 1, ..CLIENT }, SERVER, ".");
        assert!(!rig.leave(Port::Lan, Some(Port::Wan), 0, &icmp_error(router, CLIENT, 11, &unrelated)));
        assert!(
            rig.leave(Port::Lan, None, 0, &icmp_error(NODE, CLIENT, 11, &segment)),
            "the stack's own error"
        );

        rig.set_group(Default::default());
        assert!(!rig.leave(Port::Wan, Some(Port::Lan), 0, &segment), "a flow, but not owned");
        assert_eq!(rig.counter(Counter::Dropped), rig.drops());
    });
}

/// The stack forwards it where the client's neighbour is not known, or its interface sends nothing by XDP.
#[test]
fn a_refusal_leaves_by_the_stack() {
    needs_root!();
    at_both_hooks(|rig| {
        let refusal = tcp(SERVER, CLIENT, "R.");
        assert!(!rig.leave(Port::Lan, Some(Port::Wan), 0, &refusal), "nobody asked");
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S")).verdict, Forward);
        assert_eq!(rig.send(Port::Wan, &refusal).verdict, Forward);
        assert!(rig.leave(Port::Lan, Some(Port::Wan), 0, &refusal));
        let about = icmp_error(SERVER, CLIENT, 3, &tcp(CLIENT, SERVER, "S"));
        assert!(!rig.leave(Port::Lan, Some(Port::Wan), 0, &about), "of a flow that is over");
        rig.set_group(Default::default());
        assert!(!rig.leave(Port::Lan, Some(Port::Wan), 0, &refusal), "a flow, but not owned");
    });
}

#[test]
fn what_comes_in_ends_no_flow_of_the_node() {
    needs_root!();
    at_both_hooks(|rig| {
        let state = |rig: &Rig| rig.node_flows.get(&key(SELF, PEER, proto::TCP), 0).unwrap().state();
        assert!(rig.leave(Port::Lan, None, 0, &tcp(SELF, PEER, "S")));
        assert_eq!(rig.send(Port::Lan, &tcp(PEER, SELF, "S.")).verdict, Pass);
        assert!(rig.leave(Port::Lan, None, 0, &tcp(SELF, PEER, ".")));
        assert_eq!(state(rig), FlowState::Established);
        // Whoever knows the ports may send these.
        for flags in ["R", "F.", "S"] {
            assert_eq!(rig.send(Port::Lan, &tcp(PEER, SELF, flags)).verdict, Pass, "{flags}");
            assert_eq!(state(rig), FlowState::Established, "{flags}");
        }
        assert!(rig.leave(Port::Lan, None, 0, &tcp(SELF, PEER, "F.")));
        assert_eq!(state(rig), FlowState::FinWait);
        assert!(rig.leave(Port::Lan, None, 0, &tcp(SELF, PEER, "R")));
        assert_eq!(state(rig), FlowState::Close);
        assert_eq!(rig.send(Port::Lan, &tcp(PEER, SELF, "S")).verdict, Pass);
        assert_eq!(state(rig), FlowState::SynSent, "the ports are used again");
    });
}

#[test]
fn a_flood_to_the_node_pushes_out_none_of_its_sessions() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[accept("all")]);
        let session = key(CLIENT, NODE, proto::TCP);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, NODE, "S")).verdict, Pass);
        assert!(rig.leave(Port::Lan, None, 0, &tcp(NODE, CLIENT, "S.")));
        assert!(rig.node_flow(&session).unwrap().1, "nobody is known to be there");
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, NODE, ".")).verdict, Pass);
        assert!(!rig.node_flow(&session).unwrap().1);
        let question = (udp(SELF, PEER, b"question"), udp(PEER, SELF, b"answer"));
        assert!(rig.leave(Port::Lan, None, 0, &question.0));
        rig.load_rules(&[Rule { to: ZONE_NODE, ..accept_service(proto::TCP, 22, 22, "ssh") }]);
        let guest = |n: u16| End { address: [192, 168, 100, 101], port: n, ..CLIENT };
        for n in 1..=2 * 16_384 {
            assert_eq!(rig.send(Port::Lan, &tcp(guest(n), NODE, "S")).verdict, Pass);
            if n % 16 == 1 {
                // It is answered; who cannot hear that acknowledges nothing that was sent.
                assert!(rig.leave(Port::Lan, None, 0, &tcp(NODE, guest(n), "S.")));
                let mut forged = tcp(guest(n), NODE, ".");
                forged[42] ^= n as u8 | 1;
                assert_eq!(rig.send(Port::Lan, &forged).verdict, Pass);
            }
            if n % 16 == 0 {
                // What the node says again, when its guest was pushed out long ago.
                assert!(rig.leave(Port::Lan, None, 0, &tcp(NODE, guest(n / 4), "S.")));
            }
        }
        assert!(keys(&rig.node_guests).len() > 1000);
        assert_eq!(keys(&rig.node_flows).len(), 2);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, NODE, "P.")).verdict, Pass, "a session");
        assert_eq!(rig.send(Port::Lan, &question.1).verdict, Pass, "an answer to the node");
    });
}

#[test]
fn what_an_operator_has_ended_goes_on_only_anew() {
    needs_root!();
    at_both_hooks(|rig| {
        // As the daemon does.
        let end = |rig: &mut Rig, proto| {
            let key = key(CLIENT, NODE, proto);
            let (mut flow, guest) = rig.node_flow(&key).unwrap();
            flow.word = Flow::ended(flow.word);
            let table = if guest { &mut rig.node_guests } else { &mut rig.node_flows };
            table.insert(key, flow, 0).unwrap();
        };
        let come = |rig: &mut Rig, flags| rig.send(Port::Lan, &tcp(CLIENT, NODE, flags)).verdict;
        let leave = |rig: &mut Rig, flags| assert!(rig.leave(Port::Lan, None, 0, &tcp(NODE, CLIENT, flags)));
        let begin = |rig: &mut Rig| {
            rig.load_rules(&[accept("all")]);
            assert_eq!(come(rig, "S"), Pass);
            leave(rig, "S.");
            assert_eq!(come(rig, "P."), Pass);
            rig.load_rules(&[]);
        };
        begin(rig);
        end(rig, proto::TCP);
        for flags in ["P.", ".", "F."] {
            assert_eq!(come(rig, flags), Drop(DropReason::NotSyn), "{flags}");
            leave(rig, flags);
            assert_eq!(come(rig, flags), Drop(DropReason::NotSyn), "{flags}: the node's end lives on");
            assert_eq!(come(rig, "S"), Drop(DropReason::NoRule));
        }
        let quoted = icmp_error(CLIENT, NODE, 3, &tcp(NODE, CLIENT, "P."));
        assert_eq!(rig.send(Port::Lan, &quoted).verdict, Drop(DropReason::IcmpUnrelated));
        begin(rig);
        end(rig, proto::TCP);
        leave(rig, "S");
        assert_eq!(come(rig, "S."), Pass, "the node has begun it");

        // What has no beginning begins with each packet: by the rules, or by the node.
        let (there, back) = (udp(CLIENT, NODE, b"there"), udp(NODE, CLIENT, b"back"));
        rig.load_rules(&[accept("all")]);
        assert_eq!(rig.send(Port::Lan, &there).verdict, Pass);
        end(rig, proto::UDP);
        assert_eq!(rig.send(Port::Lan, &there).verdict, Pass);
        rig.load_rules(&[]);
        assert_eq!(rig.send(Port::Lan, &there).verdict, Pass, "as it began anew");
        end(rig, proto::UDP);
        assert_eq!(rig.send(Port::Lan, &there).verdict, Drop(DropReason::NoRule));
        assert!(rig.leave(Port::Lan, None, 0, &back));
        assert_eq!(rig.send(Port::Lan, &there).verdict, Pass);
    });
}

#[test]
fn what_tc_sends_on_passes_the_guard_by_its_mark() {
    needs_root!();
    at_both_hooks(|rig: &mut Rig| {
        if rig.hook == Hook::Xdp {
            return;
        }
        let sent = rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S"));
        assert_eq!(sent.verdict, Forward);
        assert_eq!(sent.mark, rig.egress_mark());
        rig.set_group(Default::default());
        assert!(rig.leave(Port::Wan, Some(Port::Lan), sent.mark, &sent.frame));
        // The mark that others use means nothing, and is left alone.
        assert!(rig.leave(Port::Wan, None, 42, &sent.frame));
    });
}
