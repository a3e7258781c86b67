//! Samples of dropped packets.

use fwha_common::capture::{DropHook, DropSample, SNAP_LEN};
use fwha_common::drop::DropReason;
use fwha_common::settings::Counter;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, SERVER, ethernet, tcp, udp};
use crate::rig::{Hook, Port, Rig, SAMPLES_LEN, Verdict, at_both_hooks};

use Verdict::{Drop, Forward, Pass};

/// More than any test drops in a window.
const MANY: u32 = u32::MAX;

/// Asserts that there is one sample, of this packet.
fn assert_sampled(rig: &mut Rig, port: Port, hook: DropHook, reason: DropReason, frame: &[u8]) {
    let samples = rig.samples();
    let [sample] = &samples[..] else { panic!("{} samples of one packet", samples.len()) };
    let captured = frame.len().min(SNAP_LEN);
    let expected = DropSample {
        time_ns: sample.time_ns,
        ifindex: rig.ifindex(port),
        len: frame.len() as u32,
        captured: captured as u16,
        vlan_tci: 0,
        reason: reason as u8,
        hook: hook as u8,
        flags: 0,
        zero: 0,
        bytes: sample.bytes,
    };
    assert_eq!(*sample, expected);
    assert_eq!(sample.bytes[..captured], frame[..captured]);
}

fn ingress(rig: &Rig) -> DropHook {
    if rig.hook == Hook::Xdp { DropHook::Xdp } else { DropHook::Ingress }
}

#[test]
fn a_drop_that_is_asked_for_leaves_a_sample_and_no_other_packet_does() {
    needs_root!();
    at_both_hooks(|rig| {
        let hook = ingress(rig);
        let denied = tcp(SERVER, CLIENT, "S");
        let stray = tcp(CLIENT, SERVER, ".");
        assert_eq!(rig.send(Port::Wan, &denied).verdict, Drop(DropReason::NoRule));
        assert_eq!(rig.samples(), [], "no capture is on");

        rig.capture(&[DropReason::NoRule, DropReason::OtherStation], MANY);
        assert_eq!(rig.send(Port::Wan, &denied).verdict, Drop(DropReason::NoRule));
        assert_sampled(rig, Port::Wan, hook, DropReason::NoRule, &denied);
        assert_eq!(rig.send(Port::Lan, &stray).verdict, Drop(DropReason::NotSyn));
        let admitted = udp(CLIENT, SERVER, b"question");
        assert_eq!(rig.send(Port::Lan, &admitted).verdict, Forward);
        let arp = ethernet([0xff; 6], CLIENT.macs.0, 0x0806, &[0; 46]);
        assert_eq!(rig.send(Port::Lan, &arp).verdict, Pass);
        assert_eq!(rig.samples(), [], "another reason, and packets that are not dropped");

        // The highest bit in use, and the lengths around what a sample holds.
        for payload in [0, SNAP_LEN - 42 - 1, SNAP_LEN - 42, SNAP_LEN - 42 + 1, 1400] {
            let mut elsewhere = udp(CLIENT, SERVER, &vec![7; payload]);
            elsewhere[5] ^= 1;
            assert_eq!(rig.send(Port::Lan, &elsewhere).verdict, Drop(DropReason::OtherStation));
            assert_sampled(rig, Port::Lan, hook, DropReason::OtherStation, &elsewhere);
        }

        rig.capture(&[], MANY);
        assert_eq!(rig.send(Port::Wan, &denied).verdict, Drop(DropReason::NoRule));
        assert_eq!(rig.samples(), [], "the capture is over");
        assert_eq!((rig.counter(Counter::CaptureSkipped), rig.counter(Counter::CaptureLost)), (0, 0));
    });
}

#[test]
fn the_shortest_and_the_broken_are_sampled_as_they_are() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.capture(DropReason::ALL, MANY);
        let hook = ingress(rig);
        let short = ethernet(CLIENT.macs.1, CLIENT.macs.0, 0x0800, &[0x45]);
        // A test run at tc takes the Ethernet header for one of IPv4 behind it when the frame is shorter.
        if rig.hook == Hook::Xdp {
            assert_eq!(rig.send(Port::Lan, &short).verdict, Drop(DropReason::Truncated));
            assert_sampled(rig, Port::Lan, hook, DropReason::Truncated, &short);
        }
        let strange = ethernet(CLIENT.macs.1, CLIENT.macs.0, 0x1234, &[1; 40]);
        assert_eq!(rig.send(Port::Lan, &strange).verdict, Drop(DropReason::UnknownEtherType));
        assert_sampled(rig, Port::Lan, hook, DropReason::UnknownEtherType, &strange);
    });
}

#[test]
fn the_guard_and_the_sync_program_leave_samples_too() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.capture(DropReason::ALL, MANY);
        let segment = tcp(CLIENT, SERVER, ".");
        assert!(!rig.leave(Port::Wan, Some(Port::Lan), 0, &segment));
        assert_sampled(rig, Port::Wan, DropHook::Egress, DropReason::Unfiltered, &segment);
        let forged = ethernet([2, 0, 0, 0, 3, 1], [2; 6], fwha_common::probe::ETHERTYPE, &[0; 46]);
        assert_eq!(rig.send_sync(&forged).0, 2);
        assert_sampled(rig, Port::Sync, DropHook::Sync, DropReason::BadProbe, &forged);
    });
}

#[test]
fn what_is_not_sampled_is_counted() {
    needs_root!();
    at_both_hooks(|rig| {
        let denied = tcp(SERVER, CLIENT, "S");
        let (skipped, lost) = (Counter::CaptureSkipped, Counter::CaptureLost);
        rig.capture(DropReason::ALL, 1);
        for _ in 0..1000 {
            rig.run(Port::Wan, &denied);
        }
        let taken = rig.samples().len() as u64;
        assert!((1..1000).contains(&taken), "one in a window: {taken}");
        assert_eq!((taken + rig.counter(skipped), rig.counter(lost)), (1000, 0));

        let before = rig.counter(skipped);
        rig.capture(DropReason::ALL, MANY);
        for _ in 0..20 {
            rig.run(Port::Wan, &denied);
        }
        // A record has a header of 8 bytes.
        let room = SAMPLES_LEN as usize / (size_of::<DropSample>() + 8);
        assert_eq!(rig.samples().len(), room);
        assert_eq!((rig.counter(skipped), rig.counter(lost)), (before, 20 - room as u64));
    });
}
