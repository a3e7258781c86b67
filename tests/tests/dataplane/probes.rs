//! Probes: answered without the daemon, by those who know the key only.

use fwha_common::drop::DropReason;
use fwha_common::group::Group;
use fwha_common::probe::{ETHERTYPE, Probe};
use fwha_common::settings::Counter;
use fwha_tests::needs_root;

use crate::packets::ethernet;
use crate::rig::{CLIENT_MAC, LAN_MAC, Port, SETTINGS, TERM, Verdict, at_both_hooks};

use Verdict::{Answer, Drop, Pass};

const KEY: [u64; 2] = SETTINGS.probe_key;

fn payload(probe: &Probe) -> Vec<u8> {
    let mut bytes = probe.magic.to_vec();
    bytes.extend([probe.kind, probe.from, probe.to, probe.flags]);
    bytes.extend(probe.zero);
    bytes.extend(probe.cluster);
    bytes.extend(probe.lease_ms);
    bytes.extend(probe.nonce);
    bytes.extend(probe.tag);
    bytes
}

fn frame(destination: [u8; 6], probe: &Probe) -> Vec<u8> {
    ethernet(destination, CLIENT_MAC, ETHERTYPE, &payload(probe))
}

/// The answer of node 1 to `request`.
fn answer(request: &Probe, lease_ms: u32) -> Probe {
    let mut reply = *request;
    reply.kind = 2;
    (reply.from, reply.to) = (1, request.from);
    reply.flags = if lease_ms > 0 { Probe::OWNS } else { 0 };
    reply.lease_ms = lease_ms.to_le_bytes();
    reply.seal(&KEY);
    reply
}

#[test]
fn a_request_is_answered_in_place() {
    needs_root!();
    at_both_hooks(|rig| {
        let request = Probe::request(&KEY, SETTINGS.cluster, 2, 1, 0x0123_4567_89ab_cdef);
        for (group, lease_ms) in [
            (Group::default(), 0),
            (Group { role: Group::ACTIVE, lease_until_ns: 1, since_ns: 0, term: TERM }, 0),
            (Group { role: Group::ACTIVE, lease_until_ns: u64::MAX, since_ns: 0, term: TERM }, u32::MAX),
        ] {
            rig.set_group(group);
            for destination in [LAN_MAC, [0xff; 6]] {
                let sent = rig.send(Port::Lan, &frame(destination, &request));
                assert_eq!(sent.verdict, Answer);
                let expected =
                    ethernet(CLIENT_MAC, LAN_MAC, ETHERTYPE, &payload(&answer(&request, lease_ms)));
                assert_eq!(sent.frame, expected);
            }
        }
        // Without a ruleset, and padded to the least length of a frame.
        rig.configure(|settings| settings.ruleset_generation = 0);
        let mut padded = frame(LAN_MAC, &request);
        padded.resize(60, 0);
        assert_eq!(rig.send(Port::Lan, &padded).verdict, Answer);
    });
}

#[test]
fn a_reply_goes_to_the_daemon() {
    needs_root!();
    at_both_hooks(|rig| {
        let mut reply = Probe::request(&KEY, SETTINGS.cluster, 2, 1, 5);
        reply.kind = 2;
        reply.seal(&KEY);
        let frame = frame(LAN_MAC, &reply);
        let sent = rig.send(Port::Lan, &frame);
        assert_eq!((sent.verdict, sent.frame), (Pass, frame));
    });
}

#[test]
fn others_get_no_answer() {
    needs_root!();
    at_both_hooks(|rig| {
        let request = Probe::request(&KEY, SETTINGS.cluster, 2, 1, 5);
        let mut unknown = request;
        unknown.kind = 3;
        unknown.seal(&KEY);
        let mut short = frame(LAN_MAC, &request);
        short.pop();
        for (description, frame) in [
            ("wrong key", frame(LAN_MAC, &Probe::request(&[0, 0], SETTINGS.cluster, 2, 1, 5))),
            ("another cluster", frame(LAN_MAC, &Probe::request(&KEY, SETTINGS.cluster + 1, 2, 1, 5))),
            ("unknown kind", frame(LAN_MAC, &unknown)),
            ("cut", short),
        ] {
            assert_eq!(rig.send(Port::Lan, &frame).verdict, Drop(DropReason::BadProbe), "{description}");
        }
        let request = Probe::request(&KEY, SETTINGS.cluster, 2, 3, 5);
        for to in [LAN_MAC, [0xff; 6]] {
            let sent = rig.send(Port::Lan, &frame(to, &request));
            assert_eq!(sent.verdict, Drop(DropReason::OtherStation), "for another node, to {to:?}");
        }
        rig.configure(|settings| *settings = Default::default());
        let to_nobody = Probe::request(&[0, 0], 0, 0, 0, 5);
        assert_eq!(rig.send(Port::Lan, &frame(LAN_MAC, &to_nobody)).verdict, Drop(DropReason::BadProbe));
    });
}

#[test]
fn on_a_sync_link_probes_are_answered_and_all_else_passes() {
    needs_root!();
    at_both_hooks(|rig| {
        const NEXT: u32 = u32::MAX;
        let request = Probe::request(&KEY, SETTINGS.cluster, 2, 1, 5);
        let (code, sent) = rig.send_sync(&frame([2, 0, 0, 0, 3, 1], &request));
        assert_eq!((code, &sent[..6]), (7, &CLIENT_MAC[..]));
        let (code, _) = rig.send_sync(&frame(LAN_MAC, &Probe::request(&[0, 0], 7, 2, 1, 5)));
        assert_eq!(code, 2, "forged");
        assert_eq!(rig.counter(Counter::PacketsIn), 2);
        for other in [
            crate::packets::udp(crate::packets::CLIENT, crate::packets::SERVER, b""),
            ethernet([0xff; 6], CLIENT_MAC, 0x0806, &[0; 46]),
        ] {
            assert_eq!(rig.send_sync(&other), (NEXT, other));
        }
        assert_eq!(rig.counter(Counter::PacketsIn), 2, "not ours, not counted");
    });
}
