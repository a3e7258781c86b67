//! Rules of RFC 9568 that show in the whole of a router, at a group of one node: VRRP decides alone there.
//! `docs/vrrp-conformance.md` has the list of all rules, and where each is tested.

use super::*;
use crate::vrrp::machine::{active_down_interval, skew};

/// A router with this priority, and a second that the tests speak for.
fn router(priority: u8, preempt: bool) -> Rig {
    let mut rig = Rig::new(1, 1, move |_, c| {
        c.groups[0].members = vec![(1, priority)];
        c.groups[0].preempt = preempt;
        c.groups[0].instances.truncate(1);
    });
    rig.start(1);
    // Out of Init, in which it hears nothing.
    rig.run(Duration::ZERO);
    rig
}

/// The second router advertises.
fn advert(rig: &mut Rig, priority: u8, interval_cs: u16) {
    advert_from(rig, zone_address(77, 1), priority, interval_cs);
}

fn advert_from(rig: &mut Rig, src: Ipv4Addr, priority: u8, interval_cs: u16) {
    let addresses = vec![Ipv4Addr::new(10, 1, 1, 0).into()];
    let advert = Advert { vrid: 61, priority, interval_cs, addresses };
    rig.forge(1, 1, src.into(), 255, advert.write(&Envelope::multicast(src.into()), Checksum::Message));
}

fn silence(rig: &mut Rig) -> Duration {
    rig.run_until(ms(200_000), |r| r.actives(0) == [1]).expect("it is Active in the end")
}

/// The heartbeats' rhythm is the finest that roles are judged in.
const TURN: Duration = ms(10);

#[test]
fn rule_6_4_1_all_but_the_owner_begin_as_backup_and_wait_with_their_own_interval() {
    for priority in [1, 100, 254] {
        let took = silence(&mut router(priority, true));
        let down = active_down_interval(priority, 100);
        assert!(took >= down && took < down + TURN, "{priority}: {took:?}");
    }
    assert!(silence(&mut router(255, false)) < ms(1));
}

#[test]
fn rule_6_4_2_a_backup_waits_for_the_interval_that_the_active_advertises() {
    for interval_cs in [1, 10, 500, 4095] {
        let mut rig = router(100, true);
        advert(&mut rig, 200, interval_cs);
        let (took, down) = (silence(&mut rig), active_down_interval(100, interval_cs));
        assert!(took >= down && took < down + TURN, "{interval_cs} cs: {took:?}");
    }
}

#[test]
fn rule_6_4_2_priority_zero_leaves_the_skew_and_only_that() {
    for priority in [1, 128, 254] {
        let mut rig = router(priority, true);
        advert(&mut rig, 200.max(priority), 100);
        advert(&mut rig, 0, 100);
        let took = silence(&mut rig);
        assert!(took >= skew(priority, 100) && took < skew(priority, 100) + TURN, "{priority}: {took:?}");
    }
}

#[test]
fn rule_6_4_2_preemption_is_about_lower_priorities_alone() {
    for (preempt, priority, follows) in
        [(true, 99, false), (true, 100, true), (true, 101, true), (false, 1, true), (false, 101, true)]
    {
        let mut rig = router(100, preempt);
        for _ in 0..10 {
            advert(&mut rig, priority, 100);
            rig.run(ms(1000));
        }
        assert_eq!(rig.actives(0).is_empty(), follows, "preempt {preempt}, priority {priority}");
    }
}

#[test]
fn rule_6_4_2_the_advert_goes_first_then_the_addresses_come_then_their_announcement() {
    let now = Time::from_millis(1000);
    let mut config = crate::election::rig::config(1, 1, 1);
    config.groups[0].members = vec![(1, 255)];
    let mut election = Election::new(now, config).unwrap();
    election.tick(now);
    let outputs: Vec<Output> = std::iter::from_fn(|| election.poll()).collect();
    let place = |what: fn(&Output) -> bool| outputs.iter().position(what).expect("it is there");
    let advert = place(|o| matches!(o, Output::Advertise { .. }));
    let addresses = place(|o| matches!(o, Output::AddVips { .. }));
    let announcement = place(|o| matches!(o, Output::Announce { .. }));
    assert!(advert < addresses && addresses < announcement, "{outputs:?}");
}

#[test]
fn rule_6_4_3_the_active_gives_way_to_a_higher_priority_and_by_address_to_an_equal_one() {
    let (above, below) = (zone_address(77, 1), zone_address(0, 1));
    for (priority, from, gives_way) in
        [(101, above, true), (101, below, true), (100, above, true), (100, below, false), (99, above, false)]
    {
        let mut rig = router(100, false);
        silence(&mut rig);
        rig.run(ms(500));
        let before = rig.node(1).adverts.len();
        advert_from(&mut rig, from, priority, 700);
        rig.run(TURN);
        assert_eq!(rig.actives(0).is_empty(), gives_way, "{priority} from {from}");
        let answers = rig.node(1).adverts.len() - before;
        assert_eq!(
            answers,
            usize::from(!gives_way),
            "a losing advert is answered at once, a winning one is not"
        );
        if gives_way {
            let (took, down) = (silence(&mut rig) + TURN, active_down_interval(100, 700));
            assert!(took >= down && took < down + TURN * 2, "it has learned the winner's interval: {took:?}");
        }
    }
}

#[test]
fn rule_6_4_3_the_active_answers_priority_zero_and_stays() {
    let mut rig = router(100, true);
    silence(&mut rig);
    rig.run(ms(500));
    let before = rig.node(1).adverts.len();
    advert(&mut rig, 0, 100);
    rig.run(TURN);
    assert_eq!((rig.actives(0), rig.node(1).adverts.len()), (vec![1], before + 1));
}

#[test]
fn rule_6_4_3_shutdown_sends_priority_zero_if_it_was_active_and_nothing_if_not() {
    for active in [true, false] {
        let mut rig = router(100, true);
        if active {
            silence(&mut rig);
        }
        let before = rig.node(1).adverts.len();
        rig.command(1, |e, now| e.shutdown(now));
        rig.run(ms(2000));
        let last: Vec<u8> = rig.node(1).adverts[before..].iter().map(|a| a.2).collect();
        assert_eq!(last, if active { vec![0] } else { vec![] });
    }
}

/// Errata 8298 too: it is not for the owner to discard what it hears.
#[test]
fn rule_7_1_another_interval_other_addresses_and_being_the_owner_are_no_reasons_to_discard() {
    for priority in [100, 255] {
        let mut rig = router(priority, true);
        let src = IpAddr::from(zone_address(77, 1));
        let addresses = vec![Ipv4Addr::new(10, 1, 1, 200).into()];
        let advert = Advert { vrid: 61, priority: 200, interval_cs: 30, addresses };
        rig.forge(1, 1, src, 255, advert.write(&Envelope::multicast(src), Checksum::Message));
        for name in ["adverts", "other_interval", "other_addresses"] {
            assert_eq!(rig.counter(1, "vrrp_rx", name), 1, "{priority}: {name}");
        }
        let status = rig.election(1).status(Time::ZERO);
        assert!(status.counters.iter().all(|(family, ..)| family != "vrrp_discarded"), "{priority}");
    }
}

/// Each is better than the router, so it would move something if it were taken.
#[test]
fn rule_7_1_what_is_discarded_moves_nothing() {
    let src = IpAddr::from(zone_address(77, 1));
    let envelope = Envelope::multicast(src);
    let good = Advert { vrid: 61, priority: 200, interval_cs: 100, addresses: vec![src] }
        .write(&envelope, Checksum::Message);
    let resum = |mut bytes: Vec<u8>| {
        bytes[6..8].fill(0);
        let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |&b| b.into()));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        resum(bytes)
    };
    let sum_broken = [&good[..6], &[!good[6], good[7]], &good[8..]].concat();
    let rows = [
        ("ttl", 254, good.clone()),
        ("version", 255, changed(0, 0x41)),
        ("type", 255, changed(0, 0x32)),
        ("truncated", 255, good[..good.len() - 1].to_vec()),
        ("trailing", 255, [&good[..], &[0]].concat()),
        ("checksum", 255, sum_broken),
        ("unknown_vrid", 255, changed(1, 99)),
        ("no_addresses", 255, resum([&good[..3], &[0], &good[4..8]].concat())),
        ("zero_interval", 255, changed(5, 0)),
    ];
    for (name, ttl, bytes) in rows {
        let mut rig = router(100, true);
        silence(&mut rig);
        rig.forge(1, 1, src, ttl, bytes);
        rig.run(TURN);
        assert_eq!(rig.counter(1, "vrrp_discarded", name), 1, "{name}");
        assert_eq!(rig.actives(0), [1], "{name}");
    }
    let mut rig = router(100, true);
    silence(&mut rig);
    rig.forge(1, 1, src, 255, good);
    rig.run(TURN);
    assert_eq!(rig.actives(0), [], "without a fault it moves the role");
}
