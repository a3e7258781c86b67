//! The table of flows that nobody has answered yet.

use std::thread;

use fwha_common::embryonic::{PLACES, Site};
use fwha_common::flow::proto;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, End, SERVER, key, tcp, udp};
use crate::rig::{LAST_SET, Port, Rig, SETTINGS, Table, Verdict, at_both_hooks};

use Verdict::Forward;

fn client(port: u16) -> End {
    End { port, ..CLIENT }
}

fn begin(rig: &mut Rig, port: u16) {
    assert_eq!(rig.send(Port::Lan, &udp(client(port), SERVER, b"")).verdict, Forward);
}

fn waits(rig: &Rig, port: u16) -> bool {
    rig.embryonic.flow(&key(client(port), SERVER, proto::UDP)).is_some()
}

#[test]
fn a_flood_pushes_out_only_what_waits_for_an_answer() {
    needs_root!();
    at_both_hooks(|rig| {
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S")).verdict, Forward);
        assert_eq!(rig.send(Port::Wan, &tcp(SERVER, CLIENT, "S.")).verdict, Forward);
        let capacity = (LAST_SET + 1) * PLACES;
        for port in 1..=4 * capacity as u16 {
            begin(rig, port);
            assert!(waits(rig, port) || port % 100 != 0, "the newest is there");
        }
        assert_eq!(rig.embryonic.flows().len(), capacity as usize, "every place is taken");
        rig.embryonic.check();
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, ".")).verdict, Forward);
    });
}

#[test]
fn in_a_full_set_goes_the_flow_that_was_not_used_for_the_longest_time() {
    needs_root!();
    at_both_hooks(|rig| {
        let set =
            |port| Site::new(key(client(port), SERVER, proto::UDP).hash(&SETTINGS.bucket_key), LAST_SET).set;
        let ports: Vec<u16> = (1..).filter(|port| set(*port) == set(1)).take(PLACES as usize + 2).collect();
        for port in &ports[..PLACES as usize] {
            begin(rig, *port);
        }
        begin(rig, ports[0]);
        begin(rig, ports[8]);
        begin(rig, ports[9]);
        let waiting: Vec<bool> = ports.iter().map(|port| waits(rig, *port)).collect();
        assert_eq!(waiting, [true, false, false, true, true, true, true, true, true, true]);
    });
}

#[test]
fn two_cpus_change_a_set_at_once() {
    needs_root!();
    at_both_hooks(|rig| {
        // Four times as many flows as there are places, and more answers than the main table has room for.
        let flows = 4 * ((LAST_SET + 1) * PLACES) as u16;
        let rig: &Rig = rig;
        thread::scope(|scope| {
            for first in [1, flows / 2] {
                scope.spawn(move || {
                    for n in 0..2 * flows {
                        let port = 1 + (first + n) % flows;
                        rig.run(Port::Lan, &udp(client(port), SERVER, b""));
                        rig.run(Port::Wan, &udp(SERVER, client(port), b""));
                        rig.run(Port::Lan, &udp(client(1 + n % 8), SERVER, b""));
                    }
                });
            }
        });
        rig.embryonic.check();
    });
}
