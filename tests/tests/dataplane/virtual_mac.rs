//! Virtual MACs (RFC 9568, 7.3), and virtual addresses that are not accepted.

use std::net::{Ipv4Addr, Ipv6Addr};

use fwha_common::drop::DropReason;
use fwha_common::flow::{FlowKey, octets, proto};
use fwha_common::group::{Claim, Group, Vip, VipKey, VirtualMac, VirtualMacKey};
use fwha_common::rule::{Rule, ZONE_NODE};
use fwha_common::settings::Counter;
use fwha_tests::frames::{Ip, ethernet};
use fwha_tests::needs_root;

use crate::packets::{CLIENT, End, NODE, SERVER, tcp};
use crate::rig::{
    self, CLIENT_MAC, LAN_MAC, Port, Rig, TERM, Verdict, accept, accept_service, at_both_hooks, clear, ip,
    keys,
};

use Verdict::{Answer, Drop, Forward, Pass};

const OWNER: Group = Group { lease_until_ns: u64::MAX, since_ns: 0, role: Group::ACTIVE, term: TERM };
const BACKUP: Group = Group { role: 0, ..OWNER };
const LAPSED: Group = Group { lease_until_ns: 1, ..OWNER };

const VRID: u8 = 62;
const MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, VRID];
const MAC6: [u8; 6] = [0, 0, 0x5e, 0, 2, VRID];
const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 12);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x12);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x12);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const BROADCAST: [u8; 6] = [0xff; 6];

/// Makes the addresses known to the programs, and their virtual routers with MACs of their own.
pub fn know(rig: &mut Rig, flags: u8) {
    for address in [VIP.into(), VIP6.into(), LINK_LOCAL.into()] {
        let address = FlowKey::address(octets(address));
        let zone = if VipKey::is_link_local(&address) { rig::LAN.into() } else { 0 };
        let vip = Vip { group: 0, zone: rig::LAN, vrid: VRID, flags };
        rig.vips.insert(VipKey { address, zone }, vip, 0).expect("an element");
    }
    for v6 in [false, true] {
        let key = VirtualMacKey::new(rig.ifindex(Port::Lan), VRID, v6);
        let value = VirtualMac { own: LAN_MAC, group: 0, zone: rig::LAN };
        rig.virtual_macs.insert(key, value, 0).expect("an element");
    }
}

fn arp(operation: u8, macs: ([u8; 6], [u8; 6]), sender: Ipv4Addr, target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(macs.1);
    packet.extend(sender.octets());
    packet.extend(target.0);
    packet.extend(target.1.octets());
    ethernet(macs.0, macs.1, 0x0806, &packet)
}

/// A neighbour solicitation (135) or advertisement (136), with its option if there is a MAC.
fn nd(ip: &Ip, kind: u8, flags: u8, target: Ipv6Addr, mac: Option<[u8; 6]>) -> Vec<u8> {
    let mut rest = vec![flags, 0, 0, 0];
    rest.extend(target.octets());
    if let Some(mac) = mac {
        rest.extend([if kind == 135 { 1 } else { 2 }, 1]);
        rest.extend(mac);
    }
    let ip = Ip { hops_left: 255, ..ip.clone() };
    ip.frame(proto::ICMPV6, &ip.icmp(kind, 0, &rest))
}

fn solicitation(source: Ipv6Addr, target: Ipv6Addr, mac: Option<[u8; 6]>) -> Vec<u8> {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x12);
    nd(&Ip::new(([0x33, 0x33, 0xff, 0, 0, 0x12], CLIENT_MAC), source, group), 135, 0, target, mac)
}

/// By ARP and by neighbour discovery: where is one of these addresses?
pub fn questions() -> [Vec<u8>; 2] {
    let by_arp = arp(1, (BROADCAST, CLIENT_MAC), CLIENT.address.into(), ([0; 6], VIP));
    [by_arp, solicitation(CLIENT6, VIP6, Some(CLIENT_MAC))]
}

/// A neighbour whose address was another's: the kernel still knows that one's MAC, and would go on sending to it.
#[test]
fn the_stack_hears_of_a_neighbour_with_another_mac() {
    needs_root!();
    at_both_hooks(|rig| {
        know(rig, Vip::VIRTUAL_MAC);
        rig.set_group(OWNER);
        for question in questions() {
            assert_eq!(rig.send(Port::Lan, &question).verdict, Answer);
        }
        let other = [2, 0, 0, 0, 0, 0x77];
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x12);
        let by_nd = Ip::new(([0x33, 0x33, 0xff, 0, 0, 0x12], other), CLIENT6, group);
        let moved = [
            arp(1, (BROADCAST, other), CLIENT.address.into(), ([0; 6], VIP)),
            nd(&by_nd, 135, 0, VIP6, Some(other)),
        ];
        for question in &moved {
            let sent = rig.send(Port::Lan, question);
            assert_eq!((sent.verdict, &sent.frame), (Pass, question));
        }
        // Of whom the kernel knows nothing, it will learn by asking.
        let stranger = arp(1, (BROADCAST, other), Ipv4Addr::new(192, 168, 100, 77), ([0; 6], VIP));
        assert_eq!(rig.send(Port::Lan, &stranger).verdict, Answer);
    });
}

#[test]
fn questions_for_an_address_are_answered_with_its_virtual_mac_by_the_owner_alone() {
    needs_root!();
    at_both_hooks(|rig| {
        know(rig, Vip::VIRTUAL_MAC);
        let client = Ipv4Addr::from(CLIENT.address);
        let nobody = [0; 6];
        let question = |sender, target| arp(1, (BROADCAST, CLIENT_MAC), sender, (nobody, target));
        let reply = |to| arp(2, (CLIENT_MAC, MAC), VIP, (CLIENT_MAC, to));
        // Flags: router, solicited, override.
        let advertisement =
            |target| nd(&Ip::new((CLIENT_MAC, MAC6), target, CLIENT6), 136, 0xe0, target, Some(MAC6));
        let to_all = Ip::new(([0x33, 0x33, 0, 0, 0, 1], MAC6), VIP6, ALL_NODES);
        let dialogues = [
            ("ARP", question(client, VIP), reply(client)),
            (
                "ARP before an address is taken",
                question(Ipv4Addr::UNSPECIFIED, VIP),
                reply(Ipv4Addr::UNSPECIFIED),
            ),
            ("ARP to be sure", arp(1, (MAC, CLIENT_MAC), client, (MAC, VIP)), reply(client)),
            ("ND", solicitation(CLIENT6, VIP6, Some(CLIENT_MAC)), advertisement(VIP6)),
            (
                "ND of the link",
                solicitation(CLIENT6, LINK_LOCAL, Some(CLIENT_MAC)),
                advertisement(LINK_LOCAL),
            ),
            ("ND without a MAC", solicitation(CLIENT6, VIP6, None), advertisement(VIP6)),
            (
                "ND before an address is taken",
                solicitation(Ipv6Addr::UNSPECIFIED, VIP6, None),
                nd(&to_all, 136, 0xa0, VIP6, Some(MAC6)),
            ),
        ];
        for (name, question, answer) in &dialogues {
            rig.set_group(OWNER);
            let answered = rig.counter(Counter::VipAnswered);
            let sent = rig.send(Port::Lan, question);
            assert_eq!((sent.verdict, &sent.frame), (Answer, answer), "{name}");
            assert_eq!(rig.counter(Counter::VipAnswered), answered + 1);
            // In another zone the stack may say what it likes; link-local addresses are others there.
            if *name != "ARP to be sure" {
                assert_eq!(rig.send(Port::Wan, question).verdict, Pass, "{name}, elsewhere");
            }
            rig.set_group(LAPSED);
            assert_eq!(
                rig.send(Port::Lan, question).verdict,
                Drop(DropReason::LeaseExpired),
                "{name}, lapsed"
            );
            rig.set_group(BACKUP);
            let expected = if *name == "ARP to be sure" { Drop(DropReason::NotOwner) } else { Pass };
            assert_eq!(rig.send(Port::Lan, question).verdict, expected, "{name}, Backup");
        }
        rig.set_group(OWNER);
        let mut token_ring = question(client, VIP);
        token_ring[15] = 6;
        for (name, frame) in [
            ("another address", question(client, Ipv4Addr::new(192, 168, 100, 13))),
            ("another address of IPv6", solicitation(CLIENT6, CLIENT6, Some(CLIENT_MAC))),
            ("somebody's announcement", question(VIP, VIP)),
            ("a reply", arp(2, (LAN_MAC, CLIENT_MAC), client, (LAN_MAC, VIP))),
            ("ARP of another kind", token_ring),
            ("a short one", question(client, VIP)[..40].to_vec()),
        ] {
            assert_eq!(rig.send(Port::Lan, &frame).verdict, Pass, "{name}");
        }
    });
}

#[test]
fn frames_to_a_virtual_mac_are_taken_by_its_owner_alone() {
    needs_root!();
    at_both_hooks(|rig| {
        know(rig, Vip::VIRTUAL_MAC);
        let ssh = Rule { to: ZONE_NODE, ..accept_service(proto::TCP, 22, 22, "ssh") };
        rig.load_rules(&[Rule { from: rig::LAN, to: rig::WAN, ..accept("lan-out") }, ssh]);
        let by = |mac| End { macs: (CLIENT_MAC, mac), ..CLIENT };
        let syn = |mac| tcp(by(mac), SERVER, "S");
        for (group, reason) in [(BACKUP, DropReason::NotOwner), (LAPSED, DropReason::LeaseExpired)] {
            rig.set_group(group);
            assert_eq!(rig.send(Port::Lan, &syn(MAC)).verdict, Drop(reason));
        }
        rig.set_group(OWNER);
        for mac in [MAC, MAC6, LAN_MAC] {
            assert_eq!(rig.send(Port::Lan, &syn(mac)).verdict, Forward);
        }
        let [another_vrid, mut another_zone] = [[0, 0, 0x5e, 0, 1, VRID + 1], MAC];
        assert_eq!(rig.send(Port::Lan, &syn(another_vrid)).verdict, Drop(DropReason::OtherStation));
        another_zone[4] = 3;
        assert_eq!(rig.send(Port::Lan, &syn(another_zone)).verdict, Drop(DropReason::OtherStation));
        // What the stack gets is to the interface.
        let sent = rig.send(Port::Lan, &tcp(by(MAC), NODE, "S"));
        assert_eq!((sent.verdict, &sent.frame[..6]), (Pass, &LAN_MAC[..]));
    });
}

#[test]
fn what_leaves_in_the_name_of_an_address_has_its_virtual_mac() {
    needs_root!();
    at_both_hooks(|rig| {
        know(rig, Vip::VIRTUAL_MAC);
        let own = Ipv4Addr::from(NODE.address);
        let own6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
        let asks = |mac, sender| arp(1, (BROADCAST, mac), sender, ([0; 6], CLIENT.address.into()));
        let says = |mac, target| {
            nd(&Ip::new(([0x33, 0x33, 0, 0, 0, 1], mac), target, ALL_NODES), 136, 0xa0, target, Some(mac))
        };
        let looks =
            |mac, source| nd(&Ip::new((CLIENT_MAC, mac), source, CLIENT6), 135, 0, CLIENT6, Some(mac));
        let group = Ipv4Addr::new(224, 0, 0, 18);
        let advert = |mac, vrid| {
            Ip::new(([1, 0, 0x5e, 0, 0, 18], mac), own, group)
                .frame(proto::VRRP, &[0x31, vrid, 100, 0, 0, 100, 0, 0])
        };
        for (name, before, after) in [
            ("ARP", asks(LAN_MAC, VIP), asks(MAC, VIP)),
            ("an advertisement", says(LAN_MAC, VIP6), says(MAC6, VIP6)),
            ("one of the link", says(LAN_MAC, LINK_LOCAL), says(MAC6, LINK_LOCAL)),
            ("a solicitation", looks(LAN_MAC, VIP6), looks(MAC6, VIP6)),
            ("its own ARP", asks(LAN_MAC, own), asks(LAN_MAC, own)),
            ("its own solicitation", looks(LAN_MAC, own6), looks(LAN_MAC, own6)),
            ("VRRP", advert(LAN_MAC, VRID), advert(MAC, VRID)),
            ("another virtual router's", advert(LAN_MAC, VRID + 1), advert(LAN_MAC, VRID + 1)),
        ] {
            rig.set_group(OWNER);
            assert_eq!(rig.depart(Port::Lan, &before), Some(after), "{name}");
            assert_eq!(rig.depart(Port::Wan, &before), Some(before.clone()), "{name}, elsewhere");
            let speaks_for_it = !name.contains("own") && !name.contains("VRRP") && !name.contains("router");
            for (group, reason) in [(BACKUP, DropReason::NotOwner), (LAPSED, DropReason::LeaseExpired)] {
                rig.set_group(group);
                let drops = rig.drop_count(reason);
                assert_eq!(rig.depart(Port::Lan, &before).is_none(), speaks_for_it, "{name}, {group:?}");
                assert_eq!(rig.drop_count(reason), drops + u64::from(speaks_for_it));
            }
        }
    });
}

#[test]
fn what_is_addressed_to_an_address_that_is_not_accepted_is_dropped_wherever_it_comes_from() {
    needs_root!();
    at_both_hooks(|rig| {
        ip(&["address", "add", &format!("{VIP}/24"), "dev", "lan"], "");
        rig.load_rules(&[Rule { to: ZONE_NODE, ..accept("to-node") }]);
        let vip = |port, local: End| End { address: VIP.octets(), port, ..local };
        let near = |port| tcp(CLIENT, vip(port, NODE), "S");
        let far = |port| tcp(SERVER, vip(port, NODE), "S");
        know(rig, 0);
        assert_eq!(rig.send(Port::Lan, &near(22)).verdict, Pass);
        assert_eq!(rig.send(Port::Wan, &far(22)).verdict, Pass);
        know(rig, Vip::NOT_ACCEPTED);
        let refused = Drop(DropReason::VipNotAccepted);
        assert_eq!(rig.send(Port::Lan, &near(23)).verdict, refused, "a new flow");
        assert_eq!(rig.send(Port::Wan, &far(23)).verdict, refused, "from another zone");
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, vip(22, NODE), ".")).verdict, refused, "one from before");
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, NODE, "S")).verdict, Pass, "an own address");
        // Neighbours are answered, by the stack here.
        let question = arp(1, (BROADCAST, CLIENT_MAC), CLIENT.address.into(), ([0; 6], VIP));
        assert_eq!(rig.send(Port::Lan, &question).verdict, Pass);
        let solicited = solicitation(CLIENT6, VIP6, Some(CLIENT_MAC));
        assert_eq!(rig.send(Port::Lan, &solicited).verdict, Pass);
    });
}

#[test]
fn who_claims_an_address_of_this_node_is_noted() {
    needs_root!();
    at_both_hooks(|rig| {
        know(rig, 0);
        let stranger = [2, 0, 0, 0, 9, 9];
        let announcement = |mac, address| arp(1, (BROADCAST, mac), address, ([0; 6], address));
        let advertisement = |mac, target| {
            nd(&Ip::new(([0x33, 0x33, 0, 0, 0, 1], mac), target, ALL_NODES), 136, 0x20, target, Some(mac))
        };
        let client = Ipv4Addr::from(CLIENT.address);
        let key = |octets, zone| VipKey { address: FlowKey::address(octets), zone };
        let claims = [
            (announcement(stranger, VIP), key(VIP.to_ipv6_mapped().octets(), 0)),
            (arp(1, (BROADCAST, stranger), VIP, ([0; 6], client)), key(VIP.to_ipv6_mapped().octets(), 0)),
            (
                arp(2, (CLIENT_MAC, stranger), VIP, (CLIENT_MAC, client)),
                key(VIP.to_ipv6_mapped().octets(), 0),
            ),
            (advertisement(stranger, VIP6), key(VIP6.octets(), 0)),
            (advertisement(stranger, LINK_LOCAL), key(LINK_LOCAL.octets(), rig::LAN.into())),
        ];
        for (group, noted) in [(OWNER, true), (BACKUP, false), (LAPSED, false)] {
            rig.set_group(group);
            for (n, (frame, key)) in claims.iter().enumerate() {
                clear(&mut rig.claims);
                let before = rig.counter(Counter::VipClaimed);
                assert_eq!(rig.send(Port::Lan, frame).verdict, Pass, "{n}");
                assert_eq!(rig.counter(Counter::VipClaimed) - before, u64::from(noted), "{n}, {group:?}");
                let Ok(claim) = rig.claims.get(key, 0) else {
                    assert!(!noted, "{n}");
                    continue;
                };
                assert!(claim.at_ns > 0);
                assert_eq!(
                    claim,
                    Claim { at_ns: claim.at_ns, mac: stranger, group: 0, zone: rig::LAN },
                    "{n}"
                );
            }
        }
        rig.set_group(OWNER);
        for frame in [
            // Of other addresses, of nobody's, and what this node has said itself.
            announcement(stranger, client),
            arp(1, (BROADCAST, stranger), Ipv4Addr::UNSPECIFIED, ([0; 6], VIP)),
            advertisement(stranger, CLIENT6),
            announcement(LAN_MAC, VIP),
            announcement(MAC, VIP),
            advertisement(LAN_MAC, VIP6),
            advertisement(MAC6, VIP6),
        ] {
            clear(&mut rig.claims);
            rig.send(Port::Lan, &frame);
            assert_eq!(keys(&rig.claims), []);
        }
        // Nor is it a conflict what a host of another zone says; a host with several addresses may ask in the name of any.
        rig.send(Port::Wan, &announcement(stranger, VIP));
        assert_eq!(keys(&rig.claims), []);
    });
}
