//! Flows: how they begin, live, and end.

use fwha_common::drop::DropReason;
use fwha_common::flow::{Flow, FlowEventKind, FlowState, proto};
use fwha_common::group::BucketRange;
use fwha_common::settings::Counter;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, End, SERVER, assert_hop, echo, echo_key, icmp_error, key, tcp, udp};
use crate::rig::{
    CLIENT_MAC, LAN, LAN_MAC, MAX_FLOWS, Port, Rig, SERVER_MAC, TERM, Table, Verdict, WAN, WAN_MAC, accept,
    at_both_hooks,
};

use FlowState::{Close, CloseWait, Established, FinWait, LastAck, SynRecv, TimeWait};
use Verdict::{Drop, Forward};

/// Sends the segments of a conversation, and checks verdict and state after each.
fn play(rig: &mut Rig, segments: &[(&str, Verdict, Option<FlowState>)]) {
    for &(segment, verdict, state) in segments {
        let (from_client, flags) = (segment.starts_with('>'), &segment[1..]);
        let sent = if from_client {
            rig.send(Port::Lan, &tcp(CLIENT, SERVER, flags))
        } else {
            rig.send(Port::Wan, &tcp(SERVER, CLIENT, flags))
        };
        assert_eq!(sent.verdict, verdict, "{segment}");
        assert_eq!(rig.state(&key(CLIENT, SERVER, proto::TCP)), state, "after {segment}");
    }
}

#[test]
fn a_tcp_connection_from_handshake_to_close() {
    needs_root!();
    at_both_hooks(|rig| {
        play(
            rig,
            &[
                (">S", Forward, None),
                (">S", Forward, None),
                ("<S.", Forward, Some(SynRecv)),
                (">.", Forward, Some(Established)),
                (">P.", Forward, Some(Established)),
                ("<P.", Forward, Some(Established)),
                (">F.", Forward, Some(FinWait)),
                ("<.", Forward, Some(CloseWait)),
                ("<F.", Forward, Some(LastAck)),
                (">.", Forward, Some(TimeWait)),
            ],
        );
        let flow = rig.flows.get(&key(CLIENT, SERVER, proto::TCP), 0).unwrap();
        assert_eq!(flow.packets(), [6, 4]);
        assert_eq!(flow.bytes(), [6 * 40 + 4, 4 * 40 + 4]);
        assert_eq!(flow.zones(), [LAN, WAN]);
        assert_eq!(flow.rule_hash, fwha_common::rule::name_hash("lan-out"));
        assert_eq!((flow.node, flow.epoch), (1, 9));
        assert_eq!(rig.counter(Counter::FlowsCreated), 1);
        assert_eq!(rig.counter(Counter::Embryonic), 1);
        assert!(rig.embryonic.flow(&flow_key()).is_none(), "promotion moves the flow");
    });
}

fn flow_key() -> fwha_common::flow::FlowKey {
    key(CLIENT, SERVER, proto::TCP)
}

#[test]
fn packets_are_rewritten_for_the_next_hop() {
    needs_root!();
    at_both_hooks(|rig| {
        let there = tcp(CLIENT, SERVER, "S");
        let sent = rig.send(Port::Lan, &there);
        assert_hop(&there, &sent.frame, WAN_MAC, SERVER_MAC);
        let back = tcp(SERVER, CLIENT, "S.");
        let sent = rig.send(Port::Wan, &back);
        assert_hop(&back, &sent.frame, LAN_MAC, CLIENT_MAC);
    });
}

#[test]
fn nothing_but_a_syn_begins_a_tcp_flow() {
    needs_root!();
    at_both_hooks(|rig| {
        for flags in [".", "P.", "F.", "R", "R.", "S."] {
            for (port, from, to) in [(Port::Lan, CLIENT, SERVER), (Port::Wan, SERVER, CLIENT)] {
                let sent = rig.send(port, &tcp(from, to, flags));
                assert_eq!(sent.verdict, Drop(DropReason::NotSyn), "{flags}");
            }
        }
        assert_eq!(rig.counter(Counter::Embryonic), 0);
    });
}

#[test]
fn segments_that_the_state_does_not_allow() {
    needs_root!();
    at_both_hooks(|rig| {
        play(
            rig,
            &[
                (">S", Forward, None),
                (">.", Drop(DropReason::TcpState), None),
                ("<F.", Drop(DropReason::TcpState), None),
                ("<.", Forward, None),
                ("<S.", Forward, Some(SynRecv)),
                (">S.", Forward, Some(SynRecv)),
                (">.", Forward, Some(Established)),
                (">S.", Drop(DropReason::TcpState), Some(Established)),
                ("<S", Drop(DropReason::TcpState), Some(Established)),
                (">S", Forward, Some(Established)),
                ("<R", Forward, Some(Close)),
            ],
        );
        for flags in ["", "SF", "SF.", "SR", "FR.", "F", "P", "U"] {
            let sent = rig.send(Port::Lan, &tcp(CLIENT, SERVER, flags));
            assert_eq!(sent.verdict, Drop(DropReason::TcpFlags), "{flags:?}");
        }
    });
}

#[test]
fn a_refused_connection_leaves_no_flow() {
    needs_root!();
    at_both_hooks(|rig| {
        play(
            rig,
            &[
                (">S", Forward, None),
                ("<R.", Forward, None),
                // The port opens, and the client tries again.
                (">S", Forward, None),
                ("<S.", Forward, Some(SynRecv)),
            ],
        );
        assert_eq!(rig.counter(Counter::Embryonic), 2);
    });
}

#[test]
fn a_closed_connection_can_be_opened_again() {
    needs_root!();
    at_both_hooks(|rig| {
        let open =
            [(">S", Forward, None), ("<S.", Forward, Some(SynRecv)), (">.", Forward, Some(Established))];
        play(rig, &open);
        play(rig, &[(">R", Forward, Some(Close))]);
        let first = rig.flows.get(&flow_key(), 0).unwrap();
        play(
            rig,
            &[
                (">S", Forward, Some(Close)),
                ("<S.", Forward, Some(SynRecv)),
                (">.", Forward, Some(Established)),
                (">P.", Forward, Some(Established)),
            ],
        );
        let second = rig.flows.get(&flow_key(), 0).unwrap();
        assert!(second.number > first.number, "another identity");
        assert_eq!(second.packets(), [3, 1]);
    });
}

#[test]
fn udp_becomes_replied_and_then_a_stream() {
    needs_root!();
    at_both_hooks(|rig| {
        let key = key(CLIENT, SERVER, proto::UDP);
        let (there, back) = (udp(CLIENT, SERVER, b"question"), udp(SERVER, CLIENT, b"answer"));
        assert_eq!(rig.send(Port::Wan, &back).verdict, Drop(DropReason::NoRule), "nothing to answer");
        for _ in 0..2 {
            assert_eq!(rig.send(Port::Lan, &there).verdict, Forward);
            assert_eq!(rig.state(&key), None, "unanswered");
        }
        assert_eq!(rig.send(Port::Wan, &back).verdict, Forward);
        assert_eq!(rig.state(&key), Some(FlowState::Replied));
        assert_eq!(rig.send(Port::Lan, &there).verdict, Forward);
        assert_eq!(rig.state(&key), Some(FlowState::Replied), "too young for a stream");
        rig.edit(&key, |flow| flow.set_created_ns(flow.created_ns().saturating_sub(3_000_000_000)));
        assert_eq!(rig.send(Port::Wan, &back).verdict, Forward);
        assert_eq!(rig.state(&key), Some(FlowState::Assured));
        assert_eq!(rig.flows.get(&key, 0).unwrap().packets(), [3, 2]);
    });
}

#[test]
fn an_echo_is_answered_and_never_the_other_way_round() {
    needs_root!();
    at_both_hooks(|rig| {
        let key = echo_key(CLIENT, SERVER, 77);
        assert_eq!(rig.send(Port::Wan, &echo(SERVER, CLIENT, true, 77)).verdict, Drop(DropReason::Icmp));
        assert_eq!(rig.send(Port::Lan, &echo(CLIENT, SERVER, false, 77)).verdict, Forward);
        assert_eq!(rig.send(Port::Wan, &echo(SERVER, CLIENT, true, 77)).verdict, Forward);
        assert_eq!(rig.state(&key), Some(FlowState::Replied));
        assert_eq!(rig.send(Port::Lan, &echo(CLIENT, SERVER, false, 77)).verdict, Forward);
        // With the same identifier the other one may ask, too; that is another flow, of which the rules decide.
        let back = echo_key(SERVER, CLIENT, 77);
        assert_ne!(key, back);
        assert_eq!(rig.send(Port::Lan, &echo(CLIENT, SERVER, true, 77)).verdict, Drop(DropReason::Icmp));
        rig.load_rules(&[accept("in")]);
        assert_eq!(rig.send(Port::Wan, &echo(SERVER, CLIENT, false, 77)).verdict, Forward);
        assert_eq!(rig.send(Port::Lan, &echo(CLIENT, SERVER, true, 77)).verdict, Forward);
        assert_eq!((rig.state(&key), rig.state(&back)), (Some(FlowState::Replied), Some(FlowState::Replied)));
        for (port, from, to, about) in [(Port::Wan, SERVER, CLIENT, key), (Port::Lan, CLIENT, SERVER, back)] {
            let before = rig.flows.get(&about, 0).unwrap().packets();
            assert_eq!(rig.send(port, &icmp_error(from, to, 3, &echo(to, from, false, 77))).verdict, Forward);
            assert_eq!(rig.flows.get(&about, 0).unwrap().packets(), before, "errors are not counted");
        }
    });
}

#[test]
fn icmp_errors_pass_only_for_a_flow_and_from_its_far_side() {
    needs_root!();
    at_both_hooks(|rig| {
        let router = End { address: [10, 0, 0, 254], ..SERVER };
        let about = tcp(CLIENT, SERVER, "S");
        let unreachable = icmp_error(router, CLIENT, 3, &about);
        assert_eq!(rig.send(Port::Wan, &unreachable).verdict, Drop(DropReason::IcmpUnrelated));

        rig.send(Port::Lan, &about);
        let sent = rig.send(Port::Wan, &unreachable);
        assert_eq!(sent.verdict, Forward, "about an embryonic flow");
        assert_hop(&unreachable, &sent.frame, LAN_MAC, CLIENT_MAC);

        play(rig, &[("<S.", Forward, Some(SynRecv)), (">.", Forward, Some(Established))]);
        let events = rig.events().len();
        assert_eq!(events, 2);
        for kind in [3, 11, 12] {
            assert_eq!(rig.send(Port::Wan, &icmp_error(router, CLIENT, kind, &about)).verdict, Forward);
        }
        let back = tcp(SERVER, CLIENT, ".");
        let inner_router = End { address: [192, 168, 100, 254], ..CLIENT };
        assert_eq!(rig.send(Port::Lan, &icmp_error(inner_router, SERVER, 11, &back)).verdict, Forward);
        assert_eq!(rig.state(&flow_key()), Some(Established), "errors change no state");
        assert!(rig.events().is_empty());

        for (description, port, packet, reason) in [
            ("wrong side", Port::Lan, icmp_error(inner_router, CLIENT, 3, &about), DropReason::WrongZone),
            (
                "not to the sender of what is inside",
                Port::Wan,
                icmp_error(router, End { address: [192, 168, 100, 101], ..CLIENT }, 3, &about),
                DropReason::IcmpUnrelated,
            ),
            (
                "about another port",
                Port::Wan,
                icmp_error(router, CLIENT, 3, &tcp(CLIENT, End { port: 23, ..SERVER }, "S")),
                DropReason::IcmpUnrelated,
            ),
            ("redirect", Port::Wan, icmp_error(router, CLIENT, 5, &about), DropReason::Icmp),
            ("source quench", Port::Wan, icmp_error(router, CLIENT, 4, &about), DropReason::Icmp),
            (
                "about an error",
                Port::Wan,
                icmp_error(router, CLIENT, 3, &unreachable),
                DropReason::IcmpUnrelated,
            ),
        ] {
            assert_eq!(rig.send(port, &packet).verdict, Drop(reason), "{description}");
        }
    });
}

#[test]
fn a_flow_whose_time_is_over_is_gone() {
    needs_root!();
    at_both_hooks(|rig| {
        play(
            rig,
            &[(">S", Forward, None), ("<S.", Forward, Some(SynRecv)), (">.", Forward, Some(Established))],
        );
        rig.edit(&flow_key(), |flow| {
            flow.word = Flow::with_state(flow.word, Close);
            flow.ways.iter_mut().for_each(|way| way.last_seen_ns = 1);
        });
        play(rig, &[(">.", Drop(DropReason::NotSyn), Some(Close))]);
        // A takeover a moment ago gives it a whole timeout.
        let group = fwha_common::group::Group {
            lease_until_ns: u64::MAX,
            since_ns: uptime_ns(),
            role: fwha_common::group::Group::ACTIVE,
            term: TERM + 1,
        };
        rig.set_group(group);
        play(rig, &[(">.", Forward, Some(Close))]);
    });
}

/// `CLOCK_MONOTONIC`, as the programs read it.
fn uptime_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() {
    needs_root!();
    at_both_hooks(|rig| {
        let client = |n: u16| End { port: 50_000 + n, ..CLIENT };
        for n in 0..MAX_FLOWS as u16 {
            assert_eq!(rig.send(Port::Lan, &udp(client(n), SERVER, b"")).verdict, Forward);
            assert_eq!(rig.send(Port::Wan, &udp(SERVER, client(n), b"")).verdict, Forward);
        }
        let late = client(99);
        assert_eq!(rig.send(Port::Lan, &udp(late, SERVER, b"")).verdict, Forward);
        assert_eq!(rig.send(Port::Wan, &udp(SERVER, late, b"")).verdict, Drop(DropReason::TableFull));
        for n in 0..MAX_FLOWS as u16 {
            assert_eq!(rig.send(Port::Wan, &udp(SERVER, client(n), b"")).verdict, Forward);
        }
        // Room is made, and the next answer finds it.
        rig.flows.remove(&key(client(0), SERVER, proto::UDP)).unwrap();
        assert_eq!(rig.send(Port::Lan, &udp(late, SERVER, b"")).verdict, Forward);
        assert_eq!(rig.send(Port::Wan, &udp(SERVER, late, b"")).verdict, Forward);
    });
}

#[test]
fn every_change_is_told_once_under_a_rising_version() {
    needs_root!();
    at_both_hooks(|rig| {
        play(
            rig,
            &[
                (">S", Forward, None),
                ("<S.", Forward, Some(SynRecv)),
                (">.", Forward, Some(Established)),
                (">P.", Forward, Some(Established)),
                (">F.", Forward, Some(FinWait)),
            ],
        );
        let events = rig.events();
        let told: Vec<_> = events.iter().map(|event| (event.kind, event.state)).collect();
        let (created, updated) = (FlowEventKind::Created as u32, FlowEventKind::Updated as u32);
        assert_eq!(told, [(created, SynRecv as u8), (updated, Established as u8), (updated, FinWait as u8)]);
        let floor = u64::from(TERM) << 32;
        assert_eq!(events.iter().map(|event| event.version - floor).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(events.iter().all(|event| event.key == flow_key() && event.number == events[0].number));
        assert_eq!(rig.flows.get(&flow_key(), 0).unwrap().version, floor + 3);
    });
}

#[test]
fn an_event_without_room_is_counted_for_its_bucket() {
    needs_root!();
    at_both_hooks(|rig| {
        let key = key(CLIENT, SERVER, proto::UDP);
        rig.send(Port::Lan, &udp(CLIENT, SERVER, b""));
        rig.send(Port::Wan, &udp(SERVER, CLIENT, b""));
        // Nobody reads. Back to `replied` again and again, so that each packet is a change.
        while rig.counter(Counter::EventsLost) == 0 {
            rig.edit(&key, |flow| {
                flow.word = Flow::with_state(flow.word, FlowState::Replied);
                flow.set_created_ns(0);
            });
            assert_eq!(rig.send(Port::Wan, &udp(SERVER, CLIENT, b"")).verdict, Forward, "the packet goes on");
            assert!(rig.flows.get(&key, 0).unwrap().packets()[1] < 2000, "the ring never fills");
        }
        let bucket = BucketRange::default().bucket(key.hash(&rig.now.bucket_key));
        assert_eq!(rig.flows.get(&key, 0).unwrap().bucket, bucket);
        assert_eq!(rig.lost(bucket), 1);
        assert_eq!((0..=255).map(|bucket| rig.lost(bucket)).sum::<u64>(), 1);
    });
}

#[test]
fn the_last_of_racing_events_tells_the_final_state() {
    needs_root!();
    at_both_hooks(|rig| {
        let key = flow_key();
        for _ in 0..200 {
            let _ = rig.flows.remove(&key);
            play(
                rig,
                &[(">S", Forward, None), ("<S.", Forward, Some(SynRecv)), (">.", Forward, Some(Established))],
            );
            // Both ends close at once, on two CPUs.
            let rig_ref: &Rig = rig;
            std::thread::scope(|scope| {
                for (port, from, to) in [(Port::Lan, CLIENT, SERVER), (Port::Wan, SERVER, CLIENT)] {
                    scope.spawn(move || rig_ref.run(port, &tcp(from, to, "F.")));
                }
            });
            let flow = rig.flows.get(&key, 0).unwrap();
            let last = rig.events().into_iter().max_by_key(|event| event.version).unwrap();
            assert_eq!((last.version, last.state), (flow.version, flow.state() as u8));
            assert_eq!(flow.state(), LastAck);
        }
    });
}
