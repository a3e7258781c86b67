//! Limits by source address.

use fwha_common::drop::DropReason;
use fwha_common::flow::{FlowKey, proto};
use fwha_common::limit::Limits;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, End, SERVER, key, tcp, udp};
use crate::rig::{Port, Rig, Table, Verdict, at_both_hooks};

use Verdict::{Drop, Forward};

fn client(n: u16) -> End {
    End { port: 50_000 + n, ..CLIENT }
}

fn begin(rig: &mut Rig, from: End) -> Verdict {
    rig.send(Port::Lan, &udp(from, SERVER, b"")).verdict
}

#[test]
fn a_source_opens_the_flows_of_a_second_and_no_more() {
    needs_root!();
    at_both_hooks(|rig| {
        // One in ten seconds on the average: the first is ahead of its time already.
        rig.set_limits(Limits { interval_ns: 10_000_000_000, ..Limits::default() });
        assert_eq!(begin(rig, client(0)), Drop(DropReason::SourceRate));
        // Five a second, so that five are admitted at once; the sixth only if the test took a fifth of one.
        rig.set_limits(Limits { interval_ns: 200_000_000, ..Limits::default() });
        let admitted = (0..20).filter(|n| begin(rig, client(*n)) == Forward).count();
        assert!((5..20).contains(&admitted), "{admitted}");
        let other = End { address: [192, 168, 100, 101], ..CLIENT };
        assert_eq!(begin(rig, other), Forward, "each source has its own");
        // A flow that is there goes on.
        assert_eq!(begin(rig, client(0)), Forward);
        rig.set_limits(Limits::default());
        assert_eq!(begin(rig, client(30)), Forward);
    });
}

#[test]
fn a_source_has_so_many_flows_until_some_are_counted_less() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.set_limits(Limits { flows: 2, ..Limits::default() });
        for n in 0..2 {
            assert_eq!(begin(rig, client(n)), Forward);
            let answer = udp(SERVER, client(n), b"");
            assert_eq!(rig.send(Port::Wan, &answer).verdict, Forward);
        }
        assert_eq!(begin(rig, client(2)), Drop(DropReason::SourceFlows));
        let address = FlowKey::mapped(u32::from_ne_bytes(CLIENT.address));
        let mut source = rig.sources.get(&address, 0).unwrap();
        assert_eq!(source.flows, 2);
        // As the daemon does when one of them has expired.
        source.flows = 1;
        rig.sources.insert(address, source, 0).unwrap();
        assert_eq!(begin(rig, client(2)), Forward);
    });
}

#[test]
fn of_many_begun_at_once_no_more_are_answered() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.set_limits(Limits { flows: 2, ..Limits::default() });
        for n in 0..4 {
            assert_eq!(
                rig.send(Port::Lan, &tcp(client(n), SERVER, "S")).verdict,
                Forward,
                "none is there yet"
            );
        }
        let answer = |rig: &mut Rig, n| rig.send(Port::Wan, &tcp(SERVER, client(n), "S.")).verdict;
        let answered = [0, 1, 2, 3].map(|n| answer(rig, n));
        let full = Drop(DropReason::SourceFlows);
        assert_eq!(answered, [Forward, Forward, full, full]);
        assert!(rig.embryonic.flow(&key(client(2), SERVER, proto::TCP)).is_some(), "it waits");
        assert_eq!(rig.send(Port::Lan, &tcp(client(2), SERVER, "S")).verdict, Forward);
        let address = FlowKey::mapped(u32::from_ne_bytes(CLIENT.address));
        let mut source = rig.sources.get(&address, 0).unwrap();
        assert_eq!(source.flows, 2);
        source.flows = 1;
        rig.sources.insert(address, source, 0).unwrap();
        assert_eq!([answer(rig, 2), answer(rig, 3)], [Forward, full]);
        rig.set_limits(Limits::default());
        assert_eq!(answer(rig, 3), Forward);
    });
}
