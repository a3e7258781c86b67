//! The table of flows that nobody has answered yet.

use std::collections::HashMap;
use std::thread;

use fwha_common::drop::DropReason;
use fwha_common::embryonic::{PLACES, Site};
use fwha_common::flow::{FLOW_STATES, TIMEOUT_CLASSES, proto};
use fwha_common::settings::{Counter, Timeouts};
use fwha_tests::needs_root;
use fwha_tests::root::skip_for_machine;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::packets::{CLIENT, End, SERVER, key, tcp, udp};
use crate::rig::{Hook, LAST_SET, MAX_FLOWS, Port, Rig, SETTINGS, Table, Verdict, at_both_hooks};

use Verdict::Forward;

/// Times that two CPUs begin flows at once, and flows that each begins.
const ROUNDS: u16 = 20;
const REPEATS: u32 = 10_000;

fn client(port: u16) -> End {
    End { port, ..CLIENT }
}

fn begin(rig: &mut Rig, port: u16) {
    assert_eq!(rig.send(Port::Lan, &udp(client(port), SERVER, b"")).verdict, Forward);
}

fn waits(rig: &Rig, port: u16) -> bool {
    rig.embryonic.flow(&key(client(port), SERVER, proto::UDP)).is_some()
}

/// Where the flow from a port of the client belongs.
fn site(port: u16) -> Site {
    Site::new(key(client(port), SERVER, proto::UDP).hash(&SETTINGS.bucket_key), LAST_SET)
}

/// Ports of the client whose flows belong into one set.
fn same_set(n: usize) -> Vec<u16> {
    (1..).filter(|port| site(*port).set == site(1).set).take(n).collect()
}

/// Ports of the client whose flows have one fingerprint in one set.
fn same_fingerprint(n: usize) -> Vec<u16> {
    let mut known: HashMap<_, Vec<u16>> = HashMap::new();
    let mut full = (1..=u16::MAX).filter_map(|port| {
        let Site { set, fingerprint } = site(port);
        let ports = known.entry((set, fingerprint)).or_default();
        ports.push(port);
        (ports.len() == n).then(|| ports.clone())
    });
    full.next().expect("so many of 65,535")
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
            assert!(port % 100 != 0 || waits(rig, port), "the newest is there");
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
        let ports = same_set(PLACES as usize + 2);
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
fn flows_of_one_fingerprint_are_told_apart() {
    needs_root!();
    at_both_hooks(|rig| {
        let ports = same_fingerprint(4);
        let answer = |port: u16| udp(SERVER, client(port), b"");
        begin(rig, ports[0]);
        // The first one is not its own.
        assert_eq!(rig.send(Port::Wan, &answer(ports[1])).verdict, Verdict::Drop(DropReason::NoRule));
        begin(rig, ports[1]);
        let created = rig.counter(Counter::Embryonic);
        for port in &ports[..2] {
            begin(rig, *port);
        }
        assert_eq!(rig.counter(Counter::Embryonic), created, "both are found");
        // There is room for two; a third one takes the place of the first.
        begin(rig, ports[2]);
        assert_eq!([0, 1, 2].map(|n| waits(rig, ports[n])), [false, true, true]);
        rig.embryonic.check();
        for port in &ports[1..3] {
            assert_eq!(rig.send(Port::Wan, &answer(*port)).verdict, Forward);
        }
        assert_eq!(rig.embryonic.flows().len(), 0);
        begin(rig, ports[3]);
        assert!(waits(rig, ports[3]));
    });
}

/// Two CPUs that this process may run on; if there are none, says so.
fn two_cpus() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the CPUs of this process");
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let two = cpus.next().zip(cpus.next());
    if two.is_none() {
        skip_for_machine("two CPUs");
    }
    two.map(|(one, other)| [one, other])
}

/// Runs `work` on both CPUs at once, with 0 and 1.
fn on_two_cpus(cpus: [usize; 2], work: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for (n, cpu) in cpus.into_iter().enumerate() {
            let work = &work;
            scope.spawn(move || {
                let mut cpus = CpuSet::new();
                cpus.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus)).expect("a CPU");
                work(n);
            });
        }
    });
}

#[test]
fn two_cpus_take_flows_out_of_a_set_at_once() {
    needs_root!();
    let Some(cpus) = two_cpus() else { return };
    at_both_hooks(move |rig| {
        if rig.hook == Hook::Tc {
            return;
        }
        // The main table is full, so an answer claims its flow and lets it be.
        for port in 60_000..60_000 + MAX_FLOWS as u16 {
            begin(rig, port);
            assert_eq!(rig.send(Port::Wan, &udp(SERVER, client(port), b"")).verdict, Forward);
        }
        let ports = same_set(2);
        ports.iter().for_each(|port| begin(rig, *port));
        let full = rig.drop_count(DropReason::TableFull);
        let answers = [0, 1].map(|n| udp(SERVER, client(ports[n]), b""));
        on_two_cpus(cpus, |n| rig.run_often(Port::Wan, &answers[n], 100_000));
        assert_eq!(rig.drop_count(DropReason::NotSyn), 0, "none loses against the other CPU for good");
        assert_eq!(rig.drop_count(DropReason::TableFull) - full, 200_000);
        rig.embryonic.check();
        assert_eq!(rig.embryonic.flows().len(), 2);
    });
}

/// Without the one place at a time (`reserve` in `fwha-ebpf/src/embryonic.rs`, its look for `FILLED` left out) one CPU takes
/// another place than that which the other one is putting the flow into: the flow is there twice, at each of a few runs.
#[test]
fn two_cpus_put_a_flow_into_a_set_at_once() {
    needs_root!();
    let Some(cpus) = two_cpus() else { return };
    at_both_hooks(move |rig| {
        if rig.hook == Hook::Tc {
            return;
        }
        // A flow that is over at once is begun anew with each packet. Its host is no neighbour yet, so the stack gets them.
        rig.set_timeouts(Timeouts { ns: [[0; FLOW_STATES]; TIMEOUT_CLASSES], ..Timeouts::KERNEL });
        let nobody = End { address: [10, 0, 0, 77], ..SERVER };
        let (before, passed) = (rig.counter(Counter::Embryonic), rig.counter(Counter::Passed));
        for round in 0..ROUNDS {
            let frame = udp(client(round), nobody, b"");
            on_two_cpus(cpus, |_| rig.run_often(Port::Lan, &frame, REPEATS));
            rig.embryonic.check();
        }
        let begun = rig.counter(Counter::Embryonic) - before;
        assert!(begun > u64::from(ROUNDS) * u64::from(REPEATS), "{begun}: each by one CPU at least");
        // A CPU whose clock is a tick behind may find the other's flow alive.
        assert!(rig.counter(Counter::Passed) - passed >= begun);
    });
}

#[test]
fn a_syn_finds_the_established_flows_that_the_filter_knows() {
    needs_root!();
    at_both_hooks(|rig| {
        let flow = key(CLIENT, SERVER, proto::TCP);
        let began = |rig: &Rig| rig.counter(Counter::Embryonic);
        begin(rig, CLIENT.port);
        assert_eq!(rig.send(Port::Wan, &udp(SERVER, CLIENT, b"")).verdict, Forward);
        assert_eq!(rig.noted(&key(CLIENT, SERVER, proto::UDP)), [false; 2], "only TCP begins with a SYN");
        // A flow is found by its SYN before there is an answer, and known to the filter from then on.
        for again in [false, true] {
            let before = began(rig);
            assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S")).verdict, Forward);
            assert_eq!(began(rig), before + u64::from(!again));
        }
        assert_eq!(rig.noted(&flow), [false; 2]);
        let before = began(rig);
        assert_eq!(rig.send(Port::Wan, &tcp(SERVER, CLIENT, "S.")).verdict, Forward);
        assert_eq!(rig.noted(&flow), [true; 2]);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S")).verdict, Forward);
        assert_eq!(began(rig), before);
        // A SYN of one that the filter does not know is of none.
        rig.set_bloom(false);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, SERVER, "S")).verdict, Forward);
        assert_eq!(began(rig), before + 1);
        // As a renewal finds it.
        rig.set_bloom(true);
    });
}
