//! VLANs on a trunk: zones by tag, tags on the way out, and what the kernel's stack gets.
//!
//! The kernel of a test machine may have no VLAN devices. To the programs one is an interface with routes that names
//! another one as its trunk: here `lan` and `wan` are. Frames go over the wire, because only there the kernel takes
//! tags off for tc.

use std::os::fd::AsFd as _;

use fwha_common::capture::DropSample;
use fwha_common::drop::DropReason;
use fwha_common::flow::{FlowState, proto};
use fwha_common::rule::{Action, Interface, Tag};
use fwha_common::settings::Counter;
use fwha_tests::needs_root;
use fwha_tests::sys::ask_for_tags;
use fwha_tests::sys::packet_socket;

use crate::packets::{CLIENT, End, NODE, SERVER, echo, edit_ip, ethernet, icmp_error, ip, key, tcp, udp};
use crate::rig::{
    LAN, LAN_MAC, Port, Rig, Verdict, WAN, WAN_MAC, WAN_MTU, Wire, accept, at_both_hooks, await_frame,
    with_action,
};

use Verdict::{Drop, Forward, Pass};

const NONE: Tag = Tag::NONE;
const LAN_TAG: Tag = Tag::new(Tag::CUSTOMER, 100);
const WAN_TAG: Tag = Tag::new(Tag::CUSTOMER, 200);
const OUTER: Tag = Tag::new(Tag::SERVICE, 300);
/// As [`LAN_TAG`], with a priority.
const URGENT: Tag = Tag::new(Tag::CUSTOMER, 0xa000 | 100);

const LAN_VLAN: Interface = vlan(LAN, LAN_MAC);
const WAN_VLAN: Interface = vlan(WAN, WAN_MAC);

const fn vlan(zone: u8, mac: [u8; 6]) -> Interface {
    Interface { zone, mac, flags: 0, device: 0, trunk: 0, tags: [NONE; 2], mtu: 0, zero: 0 }
}

/// A frame with tags, the outer first.
fn tagged(frame: &[u8], tags: &[Tag]) -> Vec<u8> {
    let bytes: Vec<u8> = tags.iter().flat_map(|tag| tag.0.to_ne_bytes()).collect();
    [&frame[..12], &bytes, &frame[12..]].concat()
}

/// What a frame has become when it is on its way to `to`.
fn hop(frame: &[u8], to: End, tags: &[Tag]) -> Vec<u8> {
    let frame = edit_ip(frame, |header| header.time_to_live -= 1);
    tagged(&[&to.macs.0, &to.macs.1, &frame[12..]].concat(), tags)
}

/// `lan` and `wan` are VLANs of one trunk.
fn one_trunk(rig: &mut Rig, lan: [Tag; 2], wan: [Tag; 2]) -> Wire {
    rig.set_vlan(Port::Lan, LAN_VLAN, lan);
    rig.set_vlan(Port::Wan, WAN_VLAN, wan);
    rig.wire(Port::Trunk)
}

/// Establishes a connection from client to server over two wires, and checks each frame that leaves.
fn establish(rig: &mut Rig, (lan, lan_tags): (&Wire, &[Tag]), (wan, wan_tags): (&Wire, &[Tag])) {
    for flags in ["S", "S.", ".", "P.", "."] {
        let answer = flags == "S.";
        let (from, to) = if answer { (SERVER, CLIENT) } else { (CLIENT, SERVER) };
        let packet = tcp(from, to, flags);
        let (there, back) = ((lan, lan_tags), (wan, wan_tags));
        let ((near, tags), (far, far_tags)) = if answer { (back, there) } else { (there, back) };
        assert_eq!(rig.send_by(near, &tagged(&packet, tags)), Forward, "{flags}");
        assert_eq!(far.receive(), hop(&packet, to, far_tags), "{flags}");
    }
    assert_eq!(rig.state(&key(CLIENT, SERVER, proto::TCP)), Some(FlowState::Established));
    assert_eq!(rig.counter(Counter::FibLookups), 2, "both ways are known from the first packet on");
}

#[test]
fn a_frame_is_tagged_anew_for_the_vlan_that_it_leaves_by() {
    needs_root!();
    at_both_hooks(|rig| {
        let trunk = one_trunk(rig, [LAN_TAG, NONE], [WAN_TAG, NONE]);
        establish(rig, (&trunk, &[LAN_TAG]), (&trunk, &[WAN_TAG]));
        // The sender's priority is its own affair.
        let packet = tcp(CLIENT, SERVER, ".");
        assert_eq!(rig.send_by(&trunk, &tagged(&packet, &[URGENT])), Forward);
        assert_eq!(trunk.receive(), hop(&packet, SERVER, &[WAN_TAG]));
        let error = icmp_error(SERVER, CLIENT, 3, &packet);
        assert_eq!(rig.send_by(&trunk, &tagged(&error, &[WAN_TAG])), Forward, "an error about it");
        assert_eq!(trunk.receive(), hop(&error, CLIENT, &[LAN_TAG]));
    });
}

#[test]
fn tags_come_and_go_where_only_one_side_has_them() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.set_vlan(Port::Lan, LAN_VLAN, [LAN_TAG, NONE]);
        let (trunk, wan) = (rig.wire(Port::Trunk), rig.wire(Port::Wan));
        establish(rig, (&trunk, &[LAN_TAG]), (&wan, &[]));
    });
}

#[test]
fn two_tags_are_one_vlan() {
    needs_root!();
    at_both_hooks(|rig| {
        let trunk = one_trunk(rig, [OUTER, LAN_TAG], [OUTER, WAN_TAG]);
        establish(rig, (&trunk, &[OUTER, LAN_TAG]), (&trunk, &[OUTER, WAN_TAG]));
    });
}

#[test]
fn a_tag_that_no_zone_takes_is_dropped() {
    needs_root!();
    at_both_hooks(|rig| {
        let trunk = one_trunk(rig, [LAN_TAG, NONE], [OUTER, WAN_TAG]);
        let packet = tcp(CLIENT, SERVER, "S");
        let arp = ethernet([0xff; 6], CLIENT.macs.0, 0x0806, &[0; 46]);
        for (description, tags) in [
            ("another VLAN", &[Tag::new(Tag::CUSTOMER, 101)][..]),
            ("the inner one alone", &[WAN_TAG]),
            ("the outer one alone", &[OUTER]),
            ("the other kind of tag", &[Tag::new(Tag::SERVICE, 100)]),
            ("a second tag", &[LAN_TAG, LAN_TAG]),
            ("two tags, of another kind", &[Tag::new(Tag::CUSTOMER, 300), WAN_TAG]),
            ("three tags", &[OUTER, WAN_TAG, LAN_TAG]),
            ("four tags", &[OUTER, WAN_TAG, LAN_TAG, LAN_TAG]),
        ] {
            for frame in [&packet, &arp] {
                assert_eq!(
                    rig.send_by(&trunk, &tagged(frame, tags)),
                    Drop(DropReason::Vlan),
                    "{description}"
                );
            }
        }
        assert_eq!(rig.send_by(&trunk, &packet), Drop(DropReason::NoZone), "no tag");
        let foreign = tcp(SERVER, CLIENT, "S");
        assert_eq!(rig.send_by(&trunk, &tagged(&foreign, &[LAN_TAG])), Drop(DropReason::OtherStation));
        let spoofed = tcp(End { address: [203, 0, 113, 7], ..CLIENT }, SERVER, "S");
        assert_eq!(rig.send_by(&trunk, &tagged(&spoofed, &[LAN_TAG])), Drop(DropReason::Spoofed));
        // A frame that ends in its tags or behind them.
        for len in 14..22 {
            let frame = &tagged(&packet, &[OUTER, WAN_TAG])[..len];
            let verdict = rig.send(Port::Trunk, frame).verdict;
            assert!(matches!(verdict, Drop(DropReason::Truncated | DropReason::Vlan)), "{len}: {verdict:?}");
        }
        assert!(trunk.silent());
    });
}

#[test]
fn a_tag_that_carries_a_priority_only_is_no_vlan() {
    needs_root!();
    at_both_hooks(|rig| {
        let (lan, wan) = (rig.wire(Port::Lan), rig.wire(Port::Wan));
        let packet = udp(CLIENT, SERVER, b"query");
        assert_eq!(rig.send_by(&lan, &tagged(&packet, &[Tag::new(Tag::CUSTOMER, 0xa000)])), Forward);
        assert_eq!(wan.receive(), hop(&packet, SERVER, &[]));
    });
}

#[test]
fn what_passes_to_the_stack_keeps_its_tags() {
    needs_root!();
    at_both_hooks(|rig| {
        let trunk = one_trunk(rig, [LAN_TAG, NONE], [OUTER, WAN_TAG]);
        rig.load_rules(&[accept("all")]);
        let arp = ethernet([0xff; 6], CLIENT.macs.0, 0x0806, &[0; 46]);
        let vrrp = ip(SERVER, End { address: [224, 0, 0, 18], ..CLIENT }, proto::VRRP, &[0; 16]);
        // (Without a VLAN device the kernel says of such frames that they are another host's, and of others not.)
        let stack = |ethertype: u16| {
            let index = nix::net::if_::if_nametoindex("trunk").expect("the trunk");
            let socket = fwha::sys::socket::packet_socket(index, ethertype).expect("a packet socket");
            ask_for_tags(socket.as_fd()).expect("tags");
            socket
        };
        let (arps, packets, inner) = (stack(0x0806), stack(0x0800), stack(0x8100));
        const OTHER_HOST: u8 = libc::PACKET_OTHERHOST;
        for (frame, socket) in [(&arp, &arps), (&udp(CLIENT, NODE, b"query"), &packets)] {
            assert_eq!(rig.send_by(&trunk, &tagged(frame, &[URGENT])), Pass);
            let seen = await_frame(socket.as_fd());
            assert_eq!((&seen.frame, seen.kind), (frame, OTHER_HOST));
        }
        assert_eq!(rig.send_by(&trunk, &tagged(&arp, &[OUTER, WAN_TAG])), Pass);
        let seen = await_frame(inner.as_fd());
        assert_eq!((seen.frame, seen.kind), (tagged(&arp, &[WAN_TAG]), OTHER_HOST));
        let vrrp = [&[1, 0, 0x5e, 0, 0, 18], &vrrp[6..]].concat();
        assert_eq!(rig.send_by(&trunk, &tagged(&vrrp, &[OUTER, WAN_TAG])), Pass);
        assert_eq!(await_frame(inner.as_fd()).frame, tagged(&vrrp, &[WAN_TAG]));
        assert!(trunk.silent());
    });
}

#[test]
fn what_is_in_no_zone_on_a_trunk_is_left_alone() {
    needs_root!();
    at_both_hooks(|rig| {
        let trunk = one_trunk(rig, [LAN_TAG, NONE], [WAN_TAG, NONE]);
        let nobody = [0, 0, 0, 0, 1, 2, 3, 4];
        let junk = ethernet([2, 9, 9, 9, 9, 9], CLIENT.macs.0, 0x0800, &nobody);
        rig.set_interface(
            Port::Trunk,
            Interface { zone: Interface::NO_ZONE, flags: Interface::ALONE, ..vlan(0, [0; 6]) },
        );
        assert_eq!(rig.send_by(&trunk, &junk), Pass, "no tag");
        assert_eq!(
            rig.send_by(&trunk, &tagged(&junk, &[Tag::new(Tag::CUSTOMER, 0xa000)])),
            Pass,
            "only a priority"
        );
        let left = Interface { zone: Interface::NO_ZONE, flags: Interface::ALONE, ..vlan(0, [0; 6]) };
        rig.set_vlan(Port::Sync, left, [Tag::new(Tag::CUSTOMER, 7), NONE]);
        assert_eq!(rig.send_by(&trunk, &tagged(&junk, &[Tag::new(Tag::CUSTOMER, 7)])), Pass, "a VLAN");
        assert_eq!(
            rig.send_by(&trunk, &tagged(&junk, &[Tag::new(Tag::CUSTOMER, 8)])),
            Drop(DropReason::Vlan)
        );
        establish(rig, (&trunk, &[LAN_TAG]), (&trunk, &[WAN_TAG]));
    });
}

#[test]
fn a_vlan_without_a_device_is_the_trunk_itself() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.set_bare(Port::Lan, LAN_VLAN, [LAN_TAG, NONE]);
        rig.load_rules(&[accept("all")]);
        let (lan, wan) = (rig.wire(Port::Lan), rig.wire(Port::Wan));
        establish(rig, (&lan, &[LAN_TAG]), (&wan, &[]));

        // What the stack answers has the tag, too.
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        for part in [&CLIENT.macs.0[..], &CLIENT.address, &[0; 6], &NODE.address] {
            request.extend(part);
        }
        let request = ethernet([0xff; 6], CLIENT.macs.0, 0x0806, &request);
        assert_eq!(rig.send_by(&lan, &tagged(&request, &[LAN_TAG])), Pass);
        let answer = lan.receive();
        assert_eq!((&answer[..6], &answer[12..18]), (&CLIENT.macs.0[..], &[0x81, 0, 0, 100, 8, 6][..]));
        assert_eq!(rig.send_by(&lan, &tagged(&echo(CLIENT, NODE, false, 5), &[URGENT])), Pass);
        let answer = lan.receive();
        let expected = echo(NODE, CLIENT, true, 5);
        assert_eq!((&answer[..18], &answer[38..]), (&tagged(&expected, &[LAN_TAG])[..18], &expected[34..]));

        let lldp = ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], CLIENT.macs.0, 0x88cc, &[0; 46]);
        assert_eq!(rig.send_by(&lan, &lldp), Pass, "of the link, not of the VLAN");
        // So it is with what others on this machine send.
        let near = packet_socket("lan").expect("a packet socket");
        for (frame, sent) in [(&lldp, lldp.clone()), (&request, tagged(&request, &[LAN_TAG]))] {
            nix::unistd::write(&near, frame).expect("sent");
            assert_eq!(lan.receive(), sent);
        }
        for frame in [request, tcp(CLIENT, SERVER, "."), tagged(&lldp, &[WAN_TAG])] {
            assert_eq!(rig.send_by(&lan, &frame), Drop(DropReason::Vlan));
        }
        assert!(lan.silent() && wan.silent());
    });
}

#[test]
fn a_rejected_sender_is_told_in_its_vlan() {
    needs_root!();
    at_both_hooks(|rig| {
        let reject = with_action(Action::Reject, "reject");
        let trunk = one_trunk(rig, [LAN_TAG, NONE], [WAN_TAG, NONE]);
        for (tags, sent) in [([LAN_TAG, NONE], &[URGENT][..]), ([OUTER, LAN_TAG], &[OUTER, URGENT])] {
            rig.set_vlan(Port::Lan, LAN_VLAN, tags);
            rig.load_rules(std::slice::from_ref(&reject));
            rig.capture(&[DropReason::Reject], u32::MAX);
            for (packet, answer_len) in [(tcp(CLIENT, SERVER, "S"), 54), (udp(CLIENT, SERVER, b"query"), 70)]
            {
                let packet = tagged(&packet, sent);
                assert_eq!(rig.send_by(&trunk, &packet), Drop(DropReason::Reject));
                let answer = trunk.receive();
                let head = 12 + 4 * sent.len();
                assert_eq!(answer[..12], [CLIENT.macs.0, CLIENT.macs.1].concat());
                assert_eq!(answer[12..head], packet[12..head], "as it was asked");
                assert_eq!(answer.len(), answer_len + 4 * sent.len());
                assert_eq!(sampled(rig), packet);
            }
        }
    });
}

/// The one sample that was taken, with its tag where it was.
fn sampled(rig: &mut Rig) -> Vec<u8> {
    let samples = rig.samples();
    let [sample] = &samples[..] else { panic!("{} samples of one packet", samples.len()) };
    let frame = sample.bytes[..sample.captured.into()].to_vec();
    let ethertype = if sample.flags & DropSample::SERVICE_TAG == 0 { Tag::CUSTOMER } else { Tag::SERVICE };
    if sample.flags & DropSample::TAGGED == 0 {
        frame
    } else {
        tagged(&frame, &[Tag::new(ethertype, sample.vlan_tci)])
    }
}

#[test]
fn a_capture_shows_dropped_frames_with_their_tags() {
    needs_root!();
    at_both_hooks(|rig| {
        let trunk = one_trunk(rig, [LAN_TAG, NONE], [OUTER, WAN_TAG]);
        rig.capture(&[DropReason::NotSyn, DropReason::Vlan, DropReason::NoRule], u32::MAX);
        for (frame, reason) in [
            (tagged(&tcp(CLIENT, SERVER, "."), &[URGENT]), DropReason::NotSyn),
            (tagged(&tcp(SERVER, CLIENT, "S"), &[OUTER, WAN_TAG]), DropReason::NoRule),
            (tagged(&tcp(SERVER, CLIENT, "S"), &[OUTER, LAN_TAG]), DropReason::Vlan),
        ] {
            assert_eq!(rig.send_by(&trunk, &frame), Drop(reason));
            assert_eq!(sampled(rig), frame);
        }
    });
}

#[test]
fn tags_do_not_count_into_the_mtu_of_a_route() {
    needs_root!();
    at_both_hooks(|rig| {
        let trunk = one_trunk(rig, [LAN_TAG, NONE], [WAN_TAG, NONE]);
        let datagram = |len: usize| udp(CLIENT, SERVER, &vec![0; len - 28]);
        let send = |rig: &mut Rig, len| rig.send_by(&trunk, &tagged(&datagram(len), &[LAN_TAG]));
        assert_eq!(send(rig, WAN_MTU), Forward);
        assert_eq!(trunk.receive(), hop(&datagram(WAN_MTU), SERVER, &[WAN_TAG]));
        assert_eq!(send(rig, WAN_MTU + 1), Pass);
        // Where the tags leave less room than the route says.
        rig.set_vlan(Port::Wan, Interface { mtu: WAN_MTU as u16 - 4, ..WAN_VLAN }, [WAN_TAG, NONE]);
        rig.configure(|settings| settings.route_generation += 1);
        assert_eq!(send(rig, WAN_MTU - 3), Pass);
        assert_eq!(send(rig, WAN_MTU - 4), Forward);
    });
}

#[test]
fn a_vlan_device_has_a_guard_of_its_own() {
    needs_root!();
    at_both_hooks(|rig| {
        let stray = tcp(CLIENT, SERVER, ".");
        assert!(!rig.leave(Port::Wan, Some(Port::Lan), 0, &stray));
        assert!(rig.leave(Port::Wan, Some(Port::Lan), 0, &tagged(&stray, &[WAN_TAG])), "it was judged there");
    });
}
