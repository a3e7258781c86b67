//! Links that carry nothing, in one direction or both, and what happens when they heal.

use super::*;
use crate::election::reach::Path;

#[test]
fn losing_the_sync_link_moves_nothing_and_quickens_the_adverts() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    rig.cut_both(SYNC);
    rig.run(ms(60_000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(rig.node(2).takeovers, []);
    for (n, peer) in [(1, 2), (2, 1)] {
        assert_eq!(rig.peer_state(n, peer), PeerState::SyncLost);
    }
    let adverts = rig.node(1).adverts.iter().filter(|(at, ..)| *at >= then).count();
    assert!((1150..=1250).contains(&adverts), "two zones at 100 ms for 60 s: {adverts}");
    rig.heal();
    rig.run(ms(5000));
    assert_eq!(rig.peer_state(1, 2), PeerState::Alive);
    let then = rig.now;
    rig.run(ms(10_000));
    let adverts = rig.node(1).adverts.iter().filter(|(at, ..)| *at >= then).count();
    assert_eq!(adverts, 20, "back to 1 s");
}

#[test]
fn a_node_that_dies_after_the_sync_link_is_replaced_within_450_ms() {
    for seed in 0..50 {
        let mut rig = Rig::pair(seed);
        rig.cut_both(SYNC);
        let phase = rig.rng.below(2_000_000_000);
        rig.run(ms(200) + Duration::from_nanos(phase));
        rig.kill(1);
        let took = rig.run_until(ms(2000), |r| r.actives(0) == [2]).expect("a takeover");
        assert!(took <= ms(450), "seed {seed}: {took:?}");
    }
}

#[test]
fn an_active_that_hangs_after_the_sync_link_is_replaced_when_its_lease_has_ended() {
    let mut rig = Rig::pair(1);
    rig.cut_both(SYNC);
    rig.run(ms(1000));
    rig.hang(1);
    let end = rig.now + ms(1300);
    while rig.step(end) {
        assert!(rig.actives(0).len() < 2);
    }
    assert_eq!(rig.actives(0), [2]);
    // It wakes up with the higher priority and hears of nothing but a lower one.
    rig.resume(1);
    let end = rig.now + ms(10_000);
    while rig.step(end) {
        assert_eq!(rig.actives(0), [2], "who slept past its lease has lost the role");
    }
}

#[test]
fn one_way_loss_on_the_sync_link_is_named_and_moves_nothing() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    rig.cut(1, 2, SYNC);
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(rig.peer_state(2, 1), PeerState::SyncLost);
    assert_eq!(rig.peer_state(1, 2), PeerState::Alive);
    assert!(rig.events(1, then).contains(&&Event::OneWay { peer: 2, lost: true }));
    rig.heal();
    rig.run(ms(500));
    assert!(rig.events(1, then).contains(&&Event::OneWay { peer: 2, lost: false }));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_handover_that_the_old_owner_does_not_hear_of_leaves_one_active() {
    let mut rig = Rig::pair(1);
    rig.command(1, |election, now| election.switchover(now, 0, None)).expect("an offer");
    rig.cut(2, 1, SYNC);
    let taken = rig.run_until(ms(100), |r| r.actives(0) == [1, 2]);
    taken.expect("it takes what it is offered, and its word does not get back");
    rig.run_until(ms(500), |r| r.actives(0) == [1]).expect("advertisements decide for both");
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    rig.heal();
    rig.run(ms(2000));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn losing_the_sync_link_moves_nothing_where_the_network_carries_no_probes() {
    let mut rig = Rig::new(2, 1, |_, _| {});
    rig.no_probes = [Via::Zone(1), LAN].into();
    rig.start(1);
    rig.start(2);
    rig.run(ms(6000));
    rig.cut_both(SYNC);
    rig.run(ms(60_000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(rig.node(2).takeovers, []);
    rig.kill(1);
    let took = rig.run_until(ms(2000), |r| r.actives(0) == [2]).expect("VRRP's silence decides");
    assert!(took <= ms(500), "{took:?}");
}

#[test]
fn losing_adverts_alone_moves_nothing_and_is_named() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    rig.cut(1, 2, LAN);
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [1]);
    let unheard = Event::AdvertsUnheard { group: 0, zone: 2, by: 2, lost: true };
    let way = |path| Event::Path { zone: 2, peer: 2, path };
    assert_eq!(rig.events(1, then), [&unheard, &way(Path::Unheard)]);
    rig.heal();
    rig.run(ms(2000));
    let heard = Event::AdvertsUnheard { group: 0, zone: 2, by: 2, lost: false };
    let mut events = rig.events(1, then).split_off(2);
    events.sort_by_key(|e| matches!(e, Event::Path { .. }));
    assert_eq!(events, [&heard, &way(Path::Both)]);
}

#[test]
fn an_active_that_loses_a_zones_carrier_gives_way_at_once() {
    let mut rig = Rig::pair(1);
    rig.carrier(1, LAN, false);
    let took = rig.run_until(ms(1000), |r| r.actives(0) == [2]).unwrap();
    assert!(took < ms(2), "{took:?}");
    assert_eq!(rig.role(1, 0), Some(Role::Fault));
    assert!(!rig.node(1).adverts.iter().any(|a| a.2 == 0), "an authentic peer takes over: no release");
    // Back before the news of the takeover got here: that must not make a second takeover.
    rig.carrier(1, LAN, true);
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [2], "and the incumbent stays");
    assert_eq!(rig.role(1, 0), Some(Role::Backup));
}

/// No node has a carrier in the LAN, the one a little earlier than the other.
fn dead_switch(rig: &mut Rig, first: NodeId, between: Duration) {
    rig.carrier(first, LAN, false);
    rig.run(between);
    rig.carrier(3 - first, LAN, false);
}

#[test]
fn a_switch_that_is_dead_for_both_leaves_one_of_them_active() {
    for (first, between) in [(1, ms(0)), (1, ms(3)), (1, ms(200)), (2, ms(0)), (2, ms(3)), (2, ms(200))] {
        let mut rig = Rig::pair(1);
        dead_switch(&mut rig, first, between);
        rig.run(ms(100));
        let actives = rig.actives(0);
        assert_eq!(actives.len(), 1, "{first} {between:?}");
        if first == 2 {
            assert_eq!(actives, [1], "the Backup's loss is none of the Active's");
        }
        rig.run(ms(30_000));
        assert_eq!(rig.actives(0), actives, "{first} {between:?}");
        let because = because(&mut rig, actives[0]);
        assert!(because.contains("zone lan has no carrier, which counts for nothing"), "{because}");
        // It comes back.
        let then = rig.now;
        (1..=2).for_each(|n| rig.carrier(n, LAN, true));
        rig.run(ms(10_000));
        assert_eq!(rig.actives(0), actives);
        let announced = &rig.node(actives[0]).announced;
        assert!(announced.iter().any(|(at, _)| *at >= then && at.since(then) < ms(5)), "{announced:?}");
    }
}

#[test]
fn a_switch_that_is_back_for_the_other_node_first_moves_the_group_without_a_gap() {
    let mut rig = Rig::pair(1);
    dead_switch(&mut rig, 2, ms(50));
    rig.run(ms(5000));
    assert_eq!((rig.actives(0), rig.role(2, 0)), (vec![1], Some(Role::Backup)));
    rig.carrier(2, LAN, true);
    let took = rig.run_until(ms(100), |r| r.actives(0) == [2]).expect("it has the LAN");
    assert!(took < ms(15), "{took:?}");
    let handed = |e: &&Event| matches!(e, Event::Role { to: Role::Active, reason, .. } if reason == "handed over by fw1");
    let then = Time::ZERO;
    assert!(rig.events(2, then).iter().any(handed), "{:?}", rig.events(2, then));
    rig.run(ms(20));
    assert_eq!(rig.role(1, 0), Some(Role::Fault));
    rig.carrier(1, LAN, true);
    rig.run(ms(10_000));
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![2], Some(Role::Backup)));
}

#[test]
fn a_group_of_which_no_zone_is_left_has_no_active() {
    let mut rig = Rig::pair(1);
    dead_switch(&mut rig, 1, ms(3));
    rig.run(ms(5000));
    for n in [1, 2] {
        rig.carrier(n, Via::Zone(1), false);
        rig.run(ms(100));
    }
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![], Some(Role::Fault)));
    rig.carrier(2, LAN, true);
    assert!(rig.run_until(ms(200), |r| r.actives(0) == [2]).is_some(), "one zone is better than none");
}

#[test]
fn the_last_node_keeps_the_group_when_a_zone_is_dead() {
    // The other one has left in order, stands by, has died, or dies while both have lost the zone.
    let away: [fn(&mut Rig); 3] = [
        |rig| rig.command(1, |e, now| e.shutdown(now)),
        |rig| rig.command(1, |e, now| e.standby(now, true, true)).unwrap(),
        |rig| rig.kill(1),
    ];
    for goes in away {
        let mut rig = Rig::pair(1);
        goes(&mut rig);
        rig.run(ms(3000));
        assert_eq!(rig.actives(0), [2]);
        rig.carrier(2, LAN, false);
        rig.run(ms(20_000));
        assert_eq!(rig.actives(0), [2]);
    }
    let mut rig = Rig::pair(1);
    dead_switch(&mut rig, 2, ms(50));
    rig.run(ms(1000));
    rig.kill(1);
    assert!(rig.run_until(DEAD_LIMIT, |r| r.actives(0) == [2]).is_some());
}

#[test]
fn a_zone_that_is_cut_counts_where_the_other_node_cannot_be_asked() {
    // It may have the zone.
    let mut rig = Rig::pair(1);
    rig.cut_both(SYNC);
    rig.run(ms(2000));
    assert_eq!(rig.actives(0), [1]);
    rig.carrier(1, LAN, false);
    let took = rig.run_until(ms(2000), |r| r.actives(0) == [2]).expect("by VRRP");
    println!("{took:?}");
    // A node that has lost a zone, and all that the other one says, does not take its group.
    let mut rig = Rig::pair(1);
    rig.carrier(2, LAN, false);
    rig.run(ms(100));
    rig.isolate(2);
    rig.run(ms(20_000));
    assert_eq!((rig.actives(0), rig.role(2, 0)), (vec![1], Some(Role::Fault)));
}

#[test]
fn a_backup_that_lost_all_its_carriers_does_not_become_active() {
    let mut rig = Rig::pair(1);
    rig.isolate(2);
    for via in [SYNC, Via::Zone(1), LAN] {
        rig.carrier(2, via, false);
    }
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(rig.role(2, 0), Some(Role::Fault));
}

#[test]
fn a_healed_partition_leaves_the_higher_term_and_its_announcements() {
    let mut rig = Rig::pair(1);
    rig.isolate(1);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1, 2], "alone, each serves those that reach it");
    let then = rig.now;
    rig.heal();
    let took = rig.run_until(ms(1000), |r| r.actives(0) == [2]).unwrap();
    assert!(took < ms(100), "{took:?}");
    rig.run(ms(5));
    assert_eq!(rig.role(1, 0), Some(Role::Backup));
    let yielded = |e: &&Event| matches!(e, Event::Role { from: Role::Active, to: Role::Backup, term: 2, .. });
    let told = rig.events(1, then);
    assert!(told.into_iter().any(|e| yielded(&e)), "in the term to which it yields, from the first moment");
    let events = rig.events(2, then);
    assert!(
        events
            .iter()
            .any(|e| matches!(e, Event::SplitBrain { winner: 2, overlap, .. } if *overlap > ms(4000)))
    );
    let why =
        "no path between the nodes: heartbeats lost on sync link 0, no answer in zone inet and zone lan";
    let ended = |e: &&Event| matches!(e, Event::SplitBrainEnd { cause, lasted, .. } if cause == why && *lasted > ms(4000));
    assert!(events.iter().any(ended), "{events:?}");
    let status = rig.election(2).status(then).groups.remove(0);
    assert!(!status.split && status.splits.0 == 1 && status.splits.1 > ms(4000), "{status:?}");
    assert!(rig.node(2).announced.iter().any(|(at, _)| *at > then && at.since(then) < ms(100)));
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [2]);
}

#[test]
fn a_zone_that_is_whole_again_last_is_told_where_the_addresses_are() {
    let mut rig = Rig::pair(1);
    rig.isolate(1);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1, 2]);
    rig.heal();
    rig.cut_both(LAN);
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [2]);
    // Neighbours that were with node 1 have heard of nothing, and all announcements are over.
    let then = rig.now;
    assert!(rig.node(2).announced.iter().all(|(at, _)| then.since(*at) > ms(10_000)));
    rig.heal();
    rig.run(ms(100));
    assert!(rig.node(2).announced.iter().any(|(at, _)| *at > then), "{:?}", rig.node(2).announced);
}

#[test]
fn a_partition_that_heals_on_the_zones_only_is_settled_by_vrrp() {
    let mut rig = Rig::pair(1);
    rig.isolate(1);
    rig.run(ms(5000));
    rig.heal();
    rig.cut_both(SYNC);
    let took = rig.run_until(ms(5000), |r| r.actives(0) == [1]).expect("the higher priority stays");
    assert!(took <= ms(1100), "{took:?}");
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    // What VRRP settled is over with the partition: the next death is noticed as any other.
    rig.heal();
    rig.run(ms(10_000));
    rig.kill(1);
    rig.run_until(DEAD_LIMIT, |r| r.actives(0) == [2]).expect("a takeover");
}

#[test]
fn equal_terms_are_settled_by_priority() {
    let mut rig = Rig::new(2, 1, |_, _| {});
    rig.isolate(1);
    rig.start(1);
    rig.start(2);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1, 2]);
    rig.heal();
    rig.run(ms(1000));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn one_of_two_sync_links_is_enough() {
    let mut rig = Rig::pair_with(1, |node, c| c.interfaces.push(interface(node, Via::Sync(1))));
    let then = rig.now;
    rig.cut_both(SYNC);
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!((rig.events(1, then), rig.events(2, then)), (vec![], vec![]), "no suspicion, no move");
    let now = rig.now;
    let up: Vec<_> = rig.election(2).status(now).peers[0].links.iter().map(|l| (l.link, l.up)).collect();
    assert_eq!(up, [(0, false), (1, true)]);
    rig.kill(1);
    rig.run_until(DEAD_LIMIT, |r| r.actives(0) == [2]).expect("a takeover");
}

#[test]
fn a_carrier_that_is_wrongly_told_to_be_lost_moves_nothing() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    for n in [1, 2] {
        rig.command(n, |e, now| e.carrier(now, SYNC, false));
    }
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1]);
    assert!(rig.events(2, then).len() <= 4, "it is believed no more than twice: {:?}", rig.events(2, then));
}

#[test]
fn an_active_goes_on_above_a_term_that_another_node_has_had_meanwhile() {
    let mut rig = Rig::pair(1);
    rig.isolate(2);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1, 2]);
    rig.carrier(2, LAN, false);
    rig.carrier(2, Via::Zone(1), false);
    assert_eq!((rig.actives(0), rig.node(1).owned[&0].0), (vec![1], 1));
    let before = rig.now;

    rig.heal();
    rig.run(ms(500));

    assert_eq!(
        (rig.actives(0), rig.node(1).owned[&0].0),
        (vec![1], 3),
        "2 has been, and nobody would believe 1"
    );
    assert!(rig.node(1).vips.contains(&0));
    let told = rig.events(1, before).into_iter().any(
        |e| matches!(e, Event::Role { from: Role::Active, to: Role::Active, term: 3, reason, .. } if reason == "term 2 has been"),
    );
    assert!(told);
    // The same if only replication knows, from flows that have outlived their owner.
    rig.command(1, |e, now| e.past_term(now, 0, 7));
    assert_eq!((rig.actives(0), rig.node(1).owned[&0].0), (vec![1], 8));
    rig.command(1, |e, now| e.past_term(now, 0, 7));
    assert_eq!(rig.node(1).owned[&0].0, 8, "once");
}

#[test]
fn an_active_goes_on_above_a_claim_that_only_replication_heard() {
    let mut rig = Rig::pair(1);
    // The one that claims is not Active when adverts would have told: it never was, or is none any more.
    rig.command(1, |e, now| e.claimed(now, 0, 7));
    rig.run(ms(30));
    assert_eq!(rig.node(1).owned[&0].0, 1, "it may be on its way");
    rig.run(ms(1000));
    assert_eq!((rig.actives(0), rig.node(1).owned[&0].0), (vec![1], 8));
    // One that is heard as Active in time has the role, and its term.
    rig.command(2, |e, now| e.claimed(now, 0, 11));
    rig.command(1, |e, now| e.claimed(now, 0, 11));
    rig.kill(1);
    rig.run(ms(3000));
    assert_eq!((rig.actives(0), rig.node(2).owned[&0].0), (vec![2], 12));
}

/// Three nodes of which the first two have no way to each other.
fn apart(rig: &mut Rig) {
    for via in [SYNC, Via::Zone(1), LAN] {
        rig.cut(1, 2, via);
        rig.cut(2, 1, via);
    }
}

fn three(seed: u64) -> Rig {
    let mut rig = Rig::new(3, seed, |_, _| {});
    (1..=3).for_each(|n| rig.start(n));
    rig.run(ms(6000));
    assert_eq!(rig.actives(0), [1]);
    rig
}

#[test]
fn a_group_is_offered_to_a_node_that_would_hear_of_it() {
    let mut rig = three(1);
    rig.cut(1, 2, SYNC);
    rig.run(ms(2000));
    assert_eq!((rig.actives(0), rig.peer_state(2, 1)), (vec![1], PeerState::SyncLost));
    assert_eq!(rig.command(1, |election, now| election.switchover(now, 0, None)), Ok(3));
    rig.run_until(ms(1000), |r| r.actives(0) == [3]).expect("a move");
}

#[test]
fn a_node_takes_nothing_from_an_active_that_a_third_one_hears() {
    let mut rig = three(1);
    apart(&mut rig);
    rig.run(ms(10_000));
    assert_eq!(rig.peer_state(2, 1), PeerState::Dead);
    assert_eq!((rig.actives(0), rig.node(2).takeovers.len()), (vec![1], 0));
    let now = rig.now;
    let because = rig.election(2).explain(now).remove(0).because;
    assert_eq!(because, ["fw1 is active in term 1: another node hears it"]);
    assert_eq!(rig.election(2).status(now).groups[0].active, [1]);
    rig.kill(1);
    rig.run_until(DEAD_LIMIT, |r| r.actives(0) == [2]).expect("it is told no longer");
}

#[test]
fn of_two_actives_that_only_a_third_one_hears_the_higher_term_stays() {
    let mut rig = three(1);
    rig.isolate(2);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1, 2]);
    rig.heal();
    apart(&mut rig);
    let before = rig.now;
    let took = rig.run_until(ms(200), |r| r.actives(0) == [2]).expect("one is told of the other");
    assert!(took <= ms(100), "{took:?}");
    rig.run(ms(10_000));
    assert_eq!((rig.actives(0), rig.node(2).owned[&0].0), (vec![2], 2), "nobody raises a term");
    let events = rig.events(1, before);
    let split = |e: &&Event| matches!(e, Event::SplitBrain { .. } | Event::SplitBrainEnd { .. });
    let split: Vec<_> = events.iter().copied().filter(split).collect();
    let [Event::SplitBrain { peer: 2, winner: 2, overlap, .. }, Event::SplitBrainEnd { peer: 2, .. }] =
        split[..]
    else {
        panic!("{split:?}")
    };
    assert!((ms(3000)..ms(5200)).contains(overlap), "{overlap:?}");
}

#[test]
fn a_backup_that_slept_without_a_sync_link_asks_before_it_takes_over() {
    for phase in 0..10 {
        let mut rig = Rig::pair(1);
        rig.cut_both(SYNC);
        // It knows of no peer now, and advertises as slowly as ever.
        rig.kill_daemon(1);
        rig.run(ms(100));
        rig.start(1);
        rig.run(ms(3000 + phase * 100));
        rig.hang(2);
        rig.run(ms(2000));
        rig.resume(2);
        rig.run(ms(3000));
        assert_eq!((rig.actives(0), rig.node(2).takeovers.len()), (vec![1], 0), "{phase}");
    }
}

#[test]
fn a_restarted_active_asks_a_member_that_it_never_heard_when_an_unknown_one_advertises() {
    let mut rig = three(1);
    rig.isolate(1);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1, 2]);
    rig.kill_daemon(2);
    rig.run(ms(100));
    rig.start(2);
    rig.run(ms(1000));
    assert_eq!((rig.actives(0), rig.peer_state(2, 1)), (vec![1, 2], PeerState::Unknown));
    assert_eq!(rig.peer_state(2, 3), PeerState::Alive);
    rig.heal();
    for n in [2, 3] {
        rig.cut(1, n, SYNC);
        rig.cut(n, 1, SYNC);
    }
    rig.run_until(ms(1500), |r| r.actives(0) == [1]).expect("its data plane lives, so advertisements decide");
    assert_eq!(rig.peer_state(2, 1), PeerState::SyncLost);
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn an_active_that_was_never_heard_and_hangs_is_replaced_when_its_lease_has_ended() {
    let mut rig = three(1);
    for n in [2, 3] {
        rig.cut(1, n, SYNC);
        rig.cut(n, 1, SYNC);
    }
    rig.run(ms(1000));
    rig.kill(2);
    rig.run(ms(500));
    rig.start(2);
    rig.run(ms(3000));
    assert_eq!((rig.actives(0), rig.peer_state(2, 1)), (vec![1], PeerState::SyncLost));
    rig.kill(3);
    rig.run(ms(500));
    rig.hang(1);
    let end = rig.now + ms(3000);
    while rig.step(end) {
        assert!(rig.actives(0).len() < 2);
    }
    assert_eq!(rig.actives(0), [2]);
}

#[test]
fn who_slept_asks_one_that_it_held_for_dead_before_it_claims_anything() {
    let mut rig = Rig::pair(1);
    rig.isolate(1);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1, 2]);
    let takeovers = rig.node(1).takeovers.len();
    rig.hang(1);
    rig.run(ms(3000));
    assert_eq!(rig.role(2, 0), Some(Role::Active));
    // The network is whole again in the moment in which it wakes up: nothing has arrived yet.
    let then = rig.now;
    rig.heal();
    rig.resume(1);
    rig.run(ms(1000));
    assert_eq!(rig.actives(0), [2]);
    assert_eq!(rig.node(1).takeovers.len(), takeovers, "{:?}", rig.events(1, then));
}

/// A restart while no heartbeat gets through: the other node knows no more than that it said goodbye.
#[test]
fn one_that_left_and_came_back_unheard_is_found() {
    let left = || {
        let mut rig = Rig::pair(1);
        rig.command(2, |e, now| e.shutdown(now));
        rig.run(ms(500));
        assert!(rig.node(2).done);
        rig.kill_daemon(2);
        rig.cut_both(SYNC);
        rig.start(2);
        rig.run(ms(5000));
        assert_eq!(
            (rig.peer_state(1, 2), rig.actives(0)),
            (PeerState::Left, vec![1]),
            "its programs may go last"
        );
        rig.run(ms(15_000));
        assert_eq!((rig.peer_state(1, 2), rig.actives(0)), (PeerState::SyncLost, vec![1]));
        rig
    };
    // The Active loses a zone: the other one has it still.
    let mut rig = left();
    rig.carrier(1, LAN, false);
    rig.run_until(ms(5000), |r| r.actives(0) == [2]).expect("a move");
    // It loses all zones for a while: the other one took the group, and keeps it.
    let mut rig = left();
    for zone in [Via::Zone(1), LAN] {
        rig.carrier(1, zone, false);
    }
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [2]);
    for zone in [Via::Zone(1), LAN] {
        rig.carrier(1, zone, true);
    }
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [2]);
    // One that is really gone stays so, and is asked for nothing.
    let mut rig = Rig::pair(1);
    rig.command(2, |e, now| e.shutdown(now));
    rig.run(ms(500));
    rig.kill(2);
    rig.run(ms(60_000));
    assert_eq!((rig.peer_state(1, 2), rig.actives(0)), (PeerState::Left, vec![1]));
}

/// Without a cable it heard nobody, and that proves nothing of the other one, which heartbeats do not reach.
#[test]
fn one_that_had_no_cable_at_all_takes_nothing_when_it_is_back() {
    let mut rig = Rig::pair(1);
    rig.cut_both(SYNC);
    rig.run(ms(2000));
    for zone in [Via::Zone(1), LAN] {
        rig.carrier(1, zone, false);
    }
    rig.run(ms(5000));
    assert_eq!((rig.actives(0), rig.peer_state(1, 2)), (vec![2], PeerState::SyncLost));
    for zone in [Via::Zone(1), LAN] {
        rig.carrier(1, zone, true);
    }
    let then = rig.now;
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [2]);
    assert!(rig.node(1).takeovers.iter().all(|(at, ..)| *at < then), "not for a moment");
}
