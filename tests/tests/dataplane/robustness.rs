//! Broken, cut and random packets: each has one counted end.

use fwha_common::drop::DropReason;
use fwha_common::probe::{ETHERTYPE, Probe};
use fwha_common::settings::Counter;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, End, NODE, SERVER, echo, ethernet, icmp_error, ip, tcp, udp};
use crate::rig::{Hook, LAN_MAC, Port, SETTINGS, Verdict, accept, at_both_hooks};

use Verdict::Drop;

/// Least length of an IPv4 frame that a test run takes.
fn shortest(hook: Hook) -> usize {
    match hook {
        Hook::Xdp => 15,
        // The Ethernet header and that of IPv4.
        Hook::Tc => 34,
    }
}

/// Least length of any frame that a test run takes at tc: one of IPv6 with its header.
pub const SHORTEST_AT_TC: usize = 54;

#[test]
fn a_packet_cut_anywhere_is_truncated() {
    needs_root!();
    at_both_hooks(|rig| {
        for packet in [tcp(CLIENT, SERVER, "S"), udp(CLIENT, SERVER, b"data"), echo(CLIENT, SERVER, false, 1)]
        {
            for len in shortest(rig.hook)..packet.len() {
                let verdict = rig.send(Port::Lan, &packet[..len]).verdict;
                assert_eq!(verdict, Drop(DropReason::Truncated), "{len} of {}", packet.len());
            }
        }
        let about = tcp(CLIENT, SERVER, "S");
        rig.send(Port::Lan, &about);
        let error = icmp_error(SERVER, CLIENT, 3, &about);
        for len in shortest(rig.hook)..error.len() {
            let verdict = rig.send(Port::Wan, &error[..len]).verdict;
            assert_eq!(verdict, Drop(DropReason::Truncated), "{len}");
        }
    });
}

#[test]
fn an_icmp_error_that_says_it_is_shorter_is_unrelated() {
    needs_root!();
    at_both_hooks(|rig| {
        let about = tcp(CLIENT, SERVER, "S");
        rig.send(Port::Lan, &about);
        let mut payload = vec![3, 1, 0, 0, 0, 0, 0, 0];
        payload.extend(&about[14..14 + 27]);
        let mut error = ip(SERVER, CLIENT, 1, &payload);
        // A byte more on the wire than in the packet.
        error.push(0);
        assert_eq!(rig.send(Port::Wan, &error).verdict, Drop(DropReason::IcmpUnrelated));
    });
}

/// A small generator of numbers (SplitMix64), so that a run can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[test]
fn a_hundred_thousand_mutated_packets_each_have_one_counted_end() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[accept("all")]);
        let probe = Probe::request(&SETTINGS.probe_key, SETTINGS.cluster, 2, 1, 5);
        let mut probe_bytes = probe.magic.to_vec();
        probe_bytes.extend([1, 2, 1, 0, 0, 0]);
        probe_bytes.extend(probe.cluster);
        probe_bytes.extend(probe.lease_ms);
        probe_bytes.extend(probe.nonce);
        probe_bytes.extend(probe.tag);
        let other = End { port: 50_000, ..CLIENT };
        let seeds = [
            tcp(CLIENT, SERVER, "S"),
            tcp(CLIENT, SERVER, "."),
            tcp(SERVER, CLIENT, "S."),
            tcp(SERVER, CLIENT, "F."),
            tcp(other, SERVER, "R"),
            tcp(CLIENT, NODE, "S"),
            udp(CLIENT, SERVER, b"some data"),
            udp(SERVER, CLIENT, b"more data"),
            echo(CLIENT, SERVER, false, 1),
            echo(SERVER, CLIENT, true, 1),
            icmp_error(SERVER, CLIENT, 3, &tcp(CLIENT, SERVER, "S")),
            icmp_error(CLIENT, SERVER, 11, &udp(SERVER, CLIENT, b"")),
            ethernet(LAN_MAC, CLIENT.macs.0, ETHERTYPE, &probe_bytes),
            ethernet([0xff; 6], CLIENT.macs.0, 0x0806, &[0; 46]),
        ];
        let mut random = Random(1);
        let packets = 50_000;
        for _ in 0..packets {
            let mut packet = seeds[random.below(seeds.len())].clone();
            // Mostly one or two changes, so that many still get deep into the engine.
            for _ in 0..random.below(4) {
                let at = random.below(packet.len());
                match random.below(8) {
                    0 => packet.truncate(at.max(15)),
                    1 => packet.extend(vec![random.next() as u8; random.below(40)]),
                    2 => packet[at] = random.next() as u8,
                    _ => packet[at] ^= 1 << random.below(8),
                }
            }
            if rig.hook == Hook::Tc && packet.len() < SHORTEST_AT_TC {
                packet.resize(SHORTEST_AT_TC, 0);
            }
            let port = if random.below(2) == 0 { Port::Lan } else { Port::Wan };
            rig.run(port, &packet);
        }
        let n = |counter| rig.counter(counter);
        assert_eq!(n(Counter::PacketsIn), packets);
        assert_eq!(
            n(Counter::PacketsIn),
            n(Counter::Forwarded) + n(Counter::Passed) + n(Counter::Dropped) + n(Counter::ProbesAnswered)
        );
        assert_eq!(n(Counter::Dropped), rig.drops());
        for counter in [Counter::Forwarded, Counter::Passed, Counter::Dropped, Counter::ProbesAnswered] {
            assert!(
                n(counter) > packets / 100,
                "{}: the packets are too broken or too whole",
                counter.as_str()
            );
        }
    });
}
