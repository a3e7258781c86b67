//! Forgers, strangers, and peers with another key or file.

use super::*;
use crate::seal::{Channel, OpenError, Purpose};
use crate::vrrp::hmac::{self, Mode};

#[test]
fn a_forged_advert_moves_nothing_while_the_peer_is_alive() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    for n in [1, 2] {
        for priority in [0, 255] {
            let src = Ipv4Addr::new(10, 1, 0, 250).into();
            let addresses = vec![Ipv4Addr::new(10, 1, 1, 0).into()];
            let advert = Advert { vrid: 61, priority, interval_cs: 1, addresses };
            let bytes = advert.write(&Envelope::multicast(src), Checksum::Message);
            rig.forge(n, 1, src, 255, bytes);
        }
    }
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(role_causes(&rig, 1, then), []);
    assert_eq!(rig.counter(1, "vrrp_rx", "ignored"), 1);
    assert_eq!(rig.counter(2, "vrrp_rx", "ignored"), 2);
}

#[test]
fn each_discarded_packet_is_counted_by_its_reason() {
    let mut rig = Rig::pair(1);
    let src = IpAddr::from(zone_address(2, 1));
    let advert =
        Advert { vrid: 61, priority: 1, interval_cs: 100, addresses: vec![Ipv4Addr::LOCALHOST.into()] };
    let bytes = advert.write(&Envelope::multicast(src), Checksum::Message);
    let before = rig.counter(1, "vrrp_rx", "adverts");
    rig.forge(1, 1, src, 254, bytes.clone());
    rig.forge(1, 2, src, 255, bytes.clone());
    rig.forge(1, 1, zone_address(1, 1).into(), 255, bytes.clone());
    rig.forge(1, 1, src, 255, bytes[..9].to_vec());
    for name in ["ttl", "unknown_vrid", "own", "truncated"] {
        assert_eq!(rig.counter(1, "vrrp_discarded", name), 1, "{name}");
    }
    assert_eq!(rig.counter(1, "vrrp_rx", "adverts"), before);
    rig.forge(1, 1, src, 255, bytes);
    assert_eq!(rig.counter(1, "vrrp_rx", "adverts"), before + 1);
    assert_eq!(rig.counter(1, "vrrp_rx", "other_addresses"), 1);
}

/// The rig's pair with a virtual router for IPv6 beside each for IPv4, of the same number.
fn both_families(_: NodeId, config: &mut Config) {
    let instances = &mut config.groups[0].instances;
    let v6 = |i: &Instance| Instance {
        addresses: vec![
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, 1).into(),
            Ipv6Addr::new(0xfd00, 0, 0, i.zone.into(), 0, 0, 1, 1).into(),
        ],
        ..i.clone()
    };
    let more: Vec<Instance> = instances.iter().map(v6).collect();
    instances.extend(more);
}

/// RFC 9568, 1: a VRID of IPv4 and one of IPv6 are two virtual routers.
#[test]
fn each_family_has_a_virtual_router_of_its_own() {
    let mut rig = Rig::pair_with(1, both_families);
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    let heard = rig.election(2).status(Time::ZERO).counters.get("vrrp_rx", "adverts");
    assert!(heard >= 4 * 10, "{heard}");
    assert_eq!(rig.counter(2, "vrrp_rx", "other_addresses"), 0);
    assert_eq!(rig.counter(2, "vrrp_discarded", "unknown_vrid"), 0);
    // Only IPv4 may leave out the pseudo-header, so only there the reading is told.
    assert_eq!(rig.counter(2, "vrrp_rx", "checksum_pseudo_header"), 0);
    let v4 = rig.counter(2, "vrrp_rx", "checksum_message");
    assert_eq!(rig.counter(2, "vrrp_rx", "adverts"), 2 * v4);
}

/// RFC 9568, 6.4.3 and 7.1: its own advert, a stranger's, and the peer's, each known by its link-local address.
#[test]
fn the_sender_of_an_ipv6_advert_is_known_by_its_link_local_address() {
    let mut rig = Rig::pair_with(1, both_families);
    rig.run(ms(1000));
    let forge = |rig: &mut Rig, to: NodeId, src: Ipv6Addr| {
        let addresses = vec![Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, 1).into()];
        let advert = Advert { vrid: 61, priority: 254, interval_cs: 100, addresses };
        let bytes = advert.write(&Envelope::multicast(src.into()), Checksum::Message);
        rig.forge(to, 1, src.into(), 255, bytes);
    };
    forge(&mut rig, 1, zone_link_local(1, 1));
    assert_eq!(rig.counter(1, "vrrp_discarded", "own"), 1);
    let ignored = rig.counter(2, "vrrp_rx", "ignored");
    forge(&mut rig, 2, zone_link_local(1, 1));
    assert_eq!(rig.counter(2, "vrrp_rx", "ignored"), ignored, "from the Active");
    forge(&mut rig, 2, zone_link_local(9, 1));
    assert_eq!(rig.counter(2, "vrrp_rx", "ignored"), ignored + 1, "from a stranger");
    assert_eq!(rig.actives(0), [1]);
}

/// RFC 9568, 5.1.2.1: without a link-local address there is no source to advertise from.
#[test]
fn without_a_link_local_address_the_ipv6_router_is_silent_and_that_is_counted() {
    let mut rig = Rig::pair_with(1, |n, config| {
        both_families(n, config);
        for (_, interface) in &mut config.interfaces {
            interface.link_local = Ipv6Addr::UNSPECIFIED;
        }
    });
    rig.run(ms(3000));
    let sent = rig.counter(1, "vrrp_tx", "adverts");
    // It tries more often where it is not heard.
    assert!(sent > 0 && rig.counter(1, "vrrp_tx", "no_address") >= sent);
    assert_eq!(rig.counter(2, "vrrp_rx", "adverts"), rig.counter(2, "vrrp_rx", "checksum_message"));
}

/// RFC 3768, 7.1: version, authentication and interval must be those of this router.
#[test]
fn v2_takes_only_adverts_of_its_own_version_authentication_and_interval() {
    const OURS: Auth = Auth::Password(*b"sesame\0\0");
    let mut rig = Rig::pair_with(1, |_, config| {
        config.groups[0].version = Version::V2 { auth: OURS };
        config.groups[0].advert_interval_cs = 200;
    });
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    assert!(rig.counter(2, "vrrp_rx", "adverts") >= 2 * 5, "the pair hears itself");
    let discards = |rig: &mut Rig| {
        rig.election(2).status(Time::ZERO).counters.iter().filter(|c| c.0 == "vrrp_discarded").count()
    };
    assert_eq!(discards(&mut rig), 0);

    let src = IpAddr::from(zone_address(1, 1));
    let good =
        Advert { vrid: 61, priority: 1, interval_cs: 200, addresses: vec![Ipv4Addr::LOCALHOST.into()] };
    let before = rig.counter(2, "vrrp_rx", "adverts");
    rig.forge(2, 1, src, 255, good.write(&Envelope::multicast(src), Checksum::Message));
    rig.forge(2, 1, src, 255, good.write_v2(Auth::None));
    rig.forge(2, 1, src, 255, good.write_v2(Auth::Password(*b"mistaken")));
    rig.forge(2, 1, src, 255, Advert { interval_cs: 100, ..good.clone() }.write_v2(OURS));
    for name in ["version", "auth_type", "auth_data", "other_interval"] {
        assert_eq!(rig.counter(2, "vrrp_discarded", name), 1, "{name}");
    }
    assert_eq!(rig.counter(2, "vrrp_rx", "adverts"), before);
    rig.forge(2, 1, src, 255, good.write_v2(OURS));
    assert_eq!(rig.counter(2, "vrrp_rx", "adverts"), before + 1);
}

#[test]
fn v3_discards_version_2() {
    let mut rig = Rig::pair(1);
    let src = IpAddr::from(zone_address(2, 1));
    let advert = Advert { vrid: 61, priority: 1, interval_cs: 100, addresses: vec![src] };
    rig.forge(1, 1, src, 255, advert.write_v2(Auth::None));
    assert_eq!(rig.counter(1, "vrrp_discarded", "version"), 1);
}

/// The sync link is lost: version 3 advertises faster then, version 2 cannot.
#[test]
fn v2_keeps_its_interval_whatever_happens_to_the_sync_link() {
    let mut rig = Rig::pair_with(1, |_, config| config.groups[0].version = Version::V2 { auth: Auth::None });
    rig.run(ms(3000));
    rig.cut_both(SYNC);
    let before = rig.node(1).adverts.len();
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    let sent = rig.node(1).adverts.len() - before;
    assert!((2 * 9..=2 * 11).contains(&sent), "{sent}");
    assert_eq!(rig.counter(2, "vrrp_discarded", "other_interval"), 0);
}

#[test]
fn a_losing_advert_is_answered_at_once_but_not_each_of_a_flood() {
    let mut rig = Rig::pair(1);
    rig.run(ms(500));
    let src = IpAddr::from(Ipv4Addr::new(10, 1, 0, 250));
    let advert =
        Advert { vrid: 61, priority: 1, interval_cs: 100, addresses: vec![Ipv4Addr::LOCALHOST.into()] };
    let bytes = advert.write(&Envelope::multicast(src), Checksum::Message);
    let before = rig.node(1).adverts.len();
    rig.forge(1, 1, src, 255, bytes.clone());
    assert_eq!(rig.node(1).adverts.len(), before + 1);
    for _ in 0..50 {
        rig.forge(1, 1, src, 255, bytes.clone());
    }
    rig.run(ms(100));
    assert_eq!(rig.node(1).adverts.len(), before + 2);
}

#[test]
fn without_a_living_peer_vrrps_rules_hold() {
    let mut rig = Rig::pair(1);
    rig.kill(2);
    rig.run(ms(1000));
    let src = IpAddr::from(Ipv4Addr::new(10, 1, 0, 250));
    let advert =
        Advert { vrid: 61, priority: 151, interval_cs: 50, addresses: vec![Ipv4Addr::LOCALHOST.into()] };
    let bytes = advert.write(&Envelope::multicast(src), Checksum::Message);
    let then = rig.now;
    rig.forge(1, 1, src, 255, bytes);
    rig.run(ms(60));
    assert_eq!(rig.role(1, 0), Some(Role::Backup));
    assert_eq!(role_causes(&rig, 1, then)[0], (Role::Backup, Cause::VrrpOutranked));
}

#[test]
fn a_wrong_key_is_refused_and_named() {
    let mut rig = Rig::new(2, 1, |n, c| {
        if n == 2 {
            c.keys = crate::seal::ClusterKey::new([9; 32]).into();
        }
    });
    rig.start(1);
    rig.start(2);
    rig.run(ms(2000));
    let status = rig.election(1).status(Time::ZERO);
    assert_eq!(status.peers[0].state, PeerState::Unknown);
    assert!(status.peers[0].refused.is_some_and(|r| r.as_str() == "other_key"));
    assert!(status.counters.get("heartbeat_refused", "other_key") > 10);
    let told = rig.node(1).events.iter().filter(|(_, e)| matches!(e, Event::Refused { .. })).count();
    assert_eq!(told, 1, "an event per reason, not per datagram");
}

#[test]
fn garbage_on_the_heartbeat_port_is_counted_and_moves_nothing() {
    let mut rig = Rig::pair(1);
    for len in 0..200 {
        let bytes = (0..len).map(|_| rig.rng.next() as u8).collect();
        rig.forge_heartbeat(1, bytes);
    }
    rig.run(ms(1000));
    assert_eq!(rig.counter(1, "heartbeat_refused", "garbage"), 200);
    let stranger = rig.election(1).status(Time::ZERO).stranger.unwrap();
    assert_eq!((stranger.claims, stranger.error), (0, OpenError::Garbage));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_term_out_of_reach_is_refused_and_named() {
    let mut rig = Rig::pair(1);
    rig.election(2).groups[0].term = u32::MAX;
    rig.run(ms(1000));
    assert!(rig.counter(1, "heartbeat_refused", "term") > 10);
    let told = rig.node(1).events.iter().filter(|(_, e)| matches!(e, Event::Refused { .. })).count();
    assert_eq!(told, 1, "an event per reason, not per heartbeat");
    assert_eq!((rig.actives(0), rig.election(1).groups[0].term), (vec![1], 1));
}

#[test]
fn another_node_of_our_own_name_is_named() {
    let mut rig = Rig::pair(1);
    let config = &rig.election(1).config;
    let mut twin = Channel::new(config.keys.clone(), Purpose::Heartbeat, config.identity, 2);
    rig.forge_heartbeat(1, twin.hello());
    rig.run(ms(10));
    assert_eq!(rig.election(1).status(Time::ZERO).stranger.unwrap().claims, 1);
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_peer_with_another_config_is_reported_once() {
    let mut rig = Rig::pair_with(1, |n, c| c.config_hash = n.into());
    rig.run(ms(1000));
    let told: Vec<_> =
        rig.node(1).events.iter().filter(|(_, e)| matches!(e, Event::ConfigDiffers { .. })).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(rig.election(1).status(Time::ZERO).peers[0].other_config, Some(2));
}

#[test]
fn a_new_key_reaches_the_nodes_one_by_one_and_nobody_notices() {
    use crate::seal::{ClusterKey, KeyRing};
    let mut rig = Rig::new(2, 1, |_, _| {});
    rig.start(1);
    rig.start(2);
    rig.run(ms(3000));
    let roles = [rig.role(1, 0), rig.role(2, 0)];
    let both = KeyRing::new(ClusterKey::new([9; 32]), Some(crate::election::rig::key()), None);
    let then = rig.now;
    for node in [1, 2] {
        rig.election(node).set_keys(&both);
        rig.run(ms(3000));
        for node in [1, 2] {
            assert_eq!(rig.election(node).status(Time::ZERO).peers[0].state, PeerState::Alive, "node {node}");
        }
    }
    for node in [1, 2] {
        rig.election(node).set_keys(&ClusterKey::new([9; 32]).into());
    }
    rig.run(ms(3000));
    assert_eq!([rig.role(1, 0), rig.role(2, 0)], roles);
    assert!(role_causes(&rig, 1, then).is_empty() && role_causes(&rig, 2, then).is_empty());
    assert_eq!(rig.election(1).status(Time::ZERO).peers[0].state, PeerState::Alive);
}

/// The rig's pair, by unicast, with a router more in zone 1 that is none of its nodes.
fn unicast(_: NodeId, config: &mut Config) {
    both_families(0, config);
    config.groups[0].version = Version::V3 { checksum: Checksum::PseudoHeader };
    for instance in &mut config.groups[0].instances {
        let zone = instance.zone;
        instance.peers = if instance.addresses[0].is_ipv6() {
            [1, 2].map(|n| zone_link_local(n, zone).into()).into()
        } else {
            [1, 2, 77].map(|n| zone_address(n, zone).into()).into()
        };
    }
}

/// The destination is part of the sum of a pseudo-header, so each peer's advert has its own.
#[test]
fn unicast_goes_to_each_peer_and_is_heard_by_it() {
    let mut rig = Rig::pair_with(1, unicast);
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    let now = rig.now;
    assert_eq!(rig.election(2).status(now).groups[0].hears, [true; 4]);
    for name in ["checksum", "multicast", "not_peer", "own"] {
        assert_eq!(rig.counter(2, "vrrp_discarded", name), 0, "{name}");
    }
    let sent = rig.counter(1, "vrrp_tx", "adverts");
    let heard = rig.counter(2, "vrrp_rx", "adverts");
    assert!(heard > 40 && sent.abs_diff(heard * 6 / 4) <= 6, "none to itself: {sent} {heard}");
}

#[test]
fn unicast_is_taken_from_named_peers_alone_and_multicast_is_not() {
    let mut rig = Rig::pair_with(1, unicast);
    let peer = IpAddr::from(zone_address(77, 1));
    let envelope = Envelope { dst: zone_address(1, 1).into(), ..Envelope::multicast(peer) };
    let forge = |rig: &mut Rig, envelope: Envelope| {
        let addresses = vec![Ipv4Addr::new(10, 1, 1, 0).into()];
        let advert = Advert { vrid: 61, priority: 1, interval_cs: 100, addresses };
        rig.forge_in(1, 1, envelope, advert.write(&envelope, Checksum::PseudoHeader));
    };
    let heard = rig.counter(1, "vrrp_rx", "adverts");
    forge(&mut rig, Envelope::multicast(peer));
    forge(&mut rig, Envelope { src: zone_address(78, 1).into(), ..envelope });
    forge(&mut rig, Envelope { ttl: 254, ..envelope });
    for name in ["multicast", "not_peer", "ttl"] {
        assert_eq!(rig.counter(1, "vrrp_discarded", name), 1, "{name}");
    }
    assert_eq!(rig.counter(1, "vrrp_rx", "adverts"), heard);
    forge(&mut rig, envelope);
    assert_eq!(rig.counter(1, "vrrp_rx", "adverts"), heard + 1);

    // Without peers it is the other way round.
    let mut rig = Rig::pair(1);
    forge(&mut rig, envelope);
    assert_eq!(rig.counter(1, "vrrp_discarded", "not_peer"), 1);
    forge(&mut rig, Envelope::multicast(peer));
    assert_eq!(rig.counter(1, "vrrp_rx", "adverts"), 1);
}

fn signing(mode: Mode) -> hmac::Config {
    hmac::Config { keys: vec![hmac::Key::new(1, &[7; 32]).unwrap()], mode, window: Duration::from_secs(5) }
}

/// A pair of which each node authenticates so; both ends of the roll-out may be met.
fn signed_pair(modes: [Option<Mode>; 2]) -> Rig {
    let mut rig = Rig::new(2, 1, move |node, c| {
        c.groups[0].hmac = modes[usize::from(node) - 1].map(signing);
        // IPv6 in one zone: its checksum covers the trailer.
        c.groups[0].instances[1].addresses = vec!["fe80::1".parse().unwrap()];
    });
    rig.start(1);
    rig.start(2);
    rig.run(ms(6000));
    assert_eq!(rig.actives(0), [1]);
    rig
}

#[test]
fn signed_advertisements_are_heard_at_every_step_of_a_roll_out() {
    use Mode::{Enforce, Permissive, ReceiveOnly};
    for (modes, heard, counter) in [
        ([None, None], true, None),
        ([None, Some(ReceiveOnly)], true, Some(("vrrp_rx", "hmac_missing"))),
        ([Some(ReceiveOnly), Some(ReceiveOnly)], true, Some(("vrrp_rx", "hmac_missing"))),
        ([Some(Permissive), Some(ReceiveOnly)], true, Some(("vrrp_rx", "hmac_good"))),
        ([Some(Permissive), Some(Enforce)], true, Some(("vrrp_rx", "hmac_good"))),
        ([Some(Enforce), Some(Enforce)], true, Some(("vrrp_rx", "hmac_good"))),
        ([Some(ReceiveOnly), Some(Enforce)], false, Some(("vrrp_discarded", "hmac_missing"))),
        ([Some(Permissive), None], false, Some(("vrrp_discarded", "trailing"))),
    ] {
        let rig = signed_pair(modes);
        let status = rig.node(2).election.as_ref().unwrap().status(rig.now);
        assert_eq!(status.groups[0].hears, [heard; 2], "{modes:?}");
        if let Some((family, name)) = counter {
            assert!(rig.counter(2, family, name) > 0, "{modes:?}: {family}.{name}");
        }
        assert_eq!(rig.counter(2, "vrrp_discarded", "checksum"), 0);
    }
}

#[test]
fn an_advertisement_that_is_forged_or_replayed_takes_nothing_where_adverts_are_signed() {
    for enforced in [false, true] {
        let mut rig = signed_pair([Some(if enforced { Mode::Enforce } else { Mode::Permissive }); 2]);
        // Nobody is there whom the channel knows: adverts decide.
        rig.kill(2);
        rig.run(ms(2000));
        let advert = Advert {
            vrid: 61,
            priority: 255,
            interval_cs: 100,
            addresses: vec![Ipv4Addr::new(10, 1, 1, 0).into()],
        };
        let src = IpAddr::from(Ipv4Addr::new(10, 1, 0, 99));
        let message = advert.write(&Envelope::multicast(src), Checksum::Message);
        for key in [None, Some(8u8)] {
            let bound = hmac::Bound { version: 3, vrid: 61, source: src };
            let key = key.map(|byte| hmac::Key::new(1, &[byte; 32]).unwrap());
            let number = (rig.now.since(Time::ZERO).as_secs()) << 32;
            let trailer = key.map(|key| hmac::sign(&key, bound, &message, number).to_vec());
            let packet = [message.clone(), trailer.unwrap_or_default()].concat();
            rig.forge(1, 1, src, 255, packet);
            rig.run(ms(200));
            if enforced {
                assert_eq!(rig.actives(0), [1]);
            }
        }
        assert_eq!(rig.actives(0).is_empty(), !enforced, "an unsigned one counts while that is permitted");
        assert!(rig.counter(1, "vrrp_discarded", "hmac_bad") > 0);
        assert_eq!(rig.counter(1, "vrrp_discarded", "hmac_missing") > 0, enforced);
    }
}

#[test]
fn a_node_that_is_no_member_remembers_a_term_that_all_members_have_forgotten() {
    let mut rig = Rig::new(3, 1, |_, config| config.groups[0].members.truncate(2));
    (1..=3).for_each(|n| rig.start(n));
    rig.run(ms(6000));
    assert_eq!((rig.actives(0), rig.node(1).owned[&0].0), (vec![1], 1));
    let says = |rig: &Rig| {
        let heard = rig.node(1).election.as_ref().unwrap().status(rig.now).peers;
        heard.into_iter().find(|p| p.node == 3).unwrap().roles
    };
    assert_eq!(says(&rig), [], "it is no member");
    // Its replication refuses flows of a lower term.
    rig.command(3, |e, now| e.past_term(now, 0, 7));
    rig.run(ms(50));
    assert_eq!((rig.actives(0), rig.node(1).owned[&0].0), (vec![1], 8));
    assert_eq!(says(&rig), [], "the Active knows by now");
    // Both members lose their power, and what they knew.
    (1..=2).for_each(|n| rig.kill(n));
    rig.run(ms(1000));
    (1..=2).for_each(|n| rig.start(n));
    rig.run(ms(6000));
    assert_eq!((rig.actives(0), rig.node(1).owned[&0].0), (vec![1], 9));
    assert_eq!(says(&rig), []);
    let now = rig.now;
    let refused = rig.election(1).switchover(now, 0, Some(3));
    assert!(
        matches!(refused, Err(CommandError::NotCandidate { state, .. }) if state == "not a member of the group")
    );
}
