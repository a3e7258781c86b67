//! Broken, cut and random packets: each has one counted end.

use fwha_common::drop::DropReason;
use fwha_common::group::Vip;
use fwha_common::probe::{ETHERTYPE, Probe};
use fwha_common::rule::Decision;
use fwha_common::settings::Counter;
use fwha_tests::frames::{Random, mutate, random_frame};
use fwha_tests::needs_root;

use crate::model::{hosts, number};
use crate::packets::{CLIENT, End, NODE, SERVER, echo, ethernet, icmp_error, ip, tcp, udp};
use crate::rig::{EXITS, Hook, LAN_MAC, Port, Rig, SETTINGS, Verdict, accept, at_both_hooks};
use crate::virtual_mac;

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

/// Packets at both hooks together, unless `FWHA_PACKETS` says how many.
const PACKETS: u64 = 100_000;

/// So many packets later all flows are forgotten, and the counters looked at.
const ROUND: u64 = 2000;

/// A tag of 802.1Q or 802.1ad (IEEE 802.1Q, 9.5) behind the MACs of a frame.
fn tag(frame: &mut Vec<u8>, random: &mut Random) {
    let [type_high, type_low] = random.one_of(&[0x8100u16, 0x88a8]).to_be_bytes();
    frame.splice(12..12, [type_high, type_low, 0, random.below(8) as u8]);
}

/// IPv4 and IPv6, in pieces and with options, of TCP, UDP, SCTP, GRE and ICMP, and errors about them; own protocols, a
/// probe, VLANs: as they should be, and changed in a few places.
#[test]
fn random_and_mutated_packets_each_have_one_counted_end() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[accept("all")]);
        virtual_mac::know(rig, Vip::VIRTUAL_MAC);
        let [by_arp, by_nd] = virtual_mac::questions();
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
            tcp(SERVER, CLIENT, "S."),
            tcp(CLIENT, SERVER, "."),
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
            by_arp,
            by_nd,
        ];
        let hosts = hosts();
        let mut random = Random(1);
        let packets = number("FWHA_PACKETS", PACKETS) / 2;
        for sent in 1..=packets {
            let (port, mut packet) = if random.once_in(2) {
                random_frame(&mut random, &hosts)
            } else {
                let mut packet = seeds[random.below(seeds.len())].clone();
                // Mostly one or two changes, so that many still get deep into the engine.
                let changes = random.below(4);
                mutate(&mut packet, &mut random, changes, 15);
                (random.below(2), packet)
            };
            if random.once_in(16) {
                tag(&mut packet, &mut random);
            }
            if rig.hook == Hook::Tc && packet.len() < SHORTEST_AT_TC {
                packet.resize(SHORTEST_AT_TC, 0);
            }
            rig.run([Port::Lan, Port::Wan][port], &packet);
            if sent % ROUND == 0 {
                rig.clear_flows();
                assert_one_end_each(rig, sent);
                // Every other round is behind the SYN proxy.
                let mut rule = accept("all");
                rule.decision.flags = if sent / ROUND % 2 == 1 { Decision::SYN_PROXY } else { 0 };
                rig.load_rules(&[rule]);
            }
        }
        assert_one_end_each(rig, packets);
        for &counter in &EXITS[1..] {
            let n = rig.counter(counter);
            println!("{:?}: {} {n}", rig.hook, counter.as_str());
            assert!(n > packets / 200, "{}: the packets are too broken or too whole", counter.as_str());
        }
        for reason in DropReason::ALL {
            println!("{:?}: {} {}", rig.hook, reason.as_str(), rig.drop_count(*reason));
        }
    });
}

/// What came in went out by one way each, and was dropped for one reason each.
fn assert_one_end_each(rig: &Rig, sent: u64) {
    let n = |counter| rig.counter(counter);
    assert_eq!(n(Counter::PacketsIn), sent);
    assert_eq!(EXITS[1..].iter().map(|&exit| n(exit)).sum::<u64>(), sent);
    assert_eq!(n(Counter::Dropped), rig.drops());
}
