//! Nodes that ask a witness before they take what a lost peer had.

use super::*;

const WITNESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

fn pair(seed: u64) -> Rig {
    Rig::pair_with(seed, |_, c| c.witnesses = vec![WITNESS, OTHER])
}

fn states(rig: &Rig, node: NodeId) -> Vec<State> {
    let status = rig.node(node).election.as_ref().expect("runs").status(rig.now);
    status.witnesses.iter().map(|w| w.state).collect()
}

#[test]
fn a_takeover_does_not_wait_for_a_witness_that_answers() {
    let took = |witnesses: &[IpAddr], seed| {
        let witnesses = witnesses.to_vec();
        let mut rig = Rig::pair_with(seed, move |_, c| c.witnesses.clone_from(&witnesses));
        let phase = rig.rng.below(1_000_000_000);
        rig.run(Duration::from_nanos(phase));
        rig.kill(1);
        rig.run_until(DEAD_LIMIT, |r| r.actives(0) == [2]).expect("a takeover")
    };
    for seed in 0..50 {
        assert_eq!(took(&[WITNESS, OTHER], seed), took(&[], seed), "seed {seed}");
    }
}

#[test]
fn of_two_nodes_that_are_cut_off_the_one_without_a_witness_claims_nothing() {
    let mut rig = pair(1);
    let then = rig.now;
    rig.isolate(2);
    rig.unwitnessed = [2].into();
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(rig.node(2).takeovers, []);
    let held = Event::ClaimHeld { group: 0, peers: vec![1] };
    assert_eq!(rig.events(2, then).into_iter().filter(|e| **e == held).count(), 1);
    assert_eq!(states(&rig, 2), [State::Down; 2]);
    let said = because(&mut rig, 2);
    assert!(said.contains("fw1 cannot be reached, and no witness answers"), "{said}");
    // It reaches one of them again, and nothing else.
    rig.unwitnessed.clear();
    rig.run(ms(200));
    let said = because(&mut rig, 2);
    assert!(said.contains("a witness answers again: fw1 is given a moment"), "{said}");
    let took = rig.run_until(ms(500), |rig| rig.actives(0) == [1, 2]).expect("it claims now");
    assert!(took <= ms(310), "{took:?}");
    rig.heal();
    rig.run(ms(1000));
    assert_eq!(rig.actives(0), [2]);
}

#[test]
fn a_witness_that_is_back_before_the_peer_gives_no_group() {
    for seed in 0..100 {
        let mut rig = pair(seed);
        rig.isolate(2);
        rig.unwitnessed = [2].into();
        let phase = rig.rng.below(1_000_000_000);
        rig.run(ms(4000) + Duration::from_nanos(phase));
        rig.unwitnessed.clear();
        rig.run(ms(seed * 3));
        rig.heal();
        rig.run(ms(2000));
        assert_eq!((rig.actives(0), rig.node(2).takeovers.len()), (vec![1], 0), "seed {seed}");
    }
}

#[test]
fn a_node_that_is_cut_off_claims_nothing_whenever_it_was_answered_last() {
    // The cut may come at any time between two requests, and at any time between two heartbeats.
    for seed in 0..200 {
        let mut rig = pair(seed);
        let phase = rig.rng.below(1_100_000_000);
        rig.run(Duration::from_nanos(phase));
        rig.isolate(2);
        rig.unwitnessed = [2].into();
        rig.run(ms(5000));
        assert_eq!(rig.actives(0), [1], "seed {seed}");
    }
}

#[test]
fn the_same_without_a_sync_link_before() {
    for seed in 0..100 {
        let mut rig = pair(seed);
        rig.cut_both(SYNC);
        let phase = rig.rng.below(2_000_000_000);
        rig.run(ms(300) + Duration::from_nanos(phase));
        rig.isolate(2);
        rig.unwitnessed = [2].into();
        rig.run(ms(5000));
        assert_eq!(rig.actives(0), [1], "seed {seed}");
        // And with a witness it takes what the dead one had, an answer later.
        rig.heal();
        rig.unwitnessed.clear();
        rig.cut_both(SYNC);
        rig.run(ms(2000));
        assert_eq!(rig.actives(0), [1], "seed {seed}");
        rig.kill(1);
        let took = rig.run_until(ms(2000), |r| r.actives(0) == [2]).expect("a takeover");
        assert!(took <= ms(455), "seed {seed}: {took:?}");
    }
}

#[test]
fn an_active_keeps_the_role_without_a_witness_and_may_hand_it_over() {
    let mut rig = pair(1);
    let then = rig.now;
    rig.unwitnessed = [1, 2].into();
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1]);
    let down = |witness| Event::Witness { witness, to: State::Down };
    assert_eq!(rig.events(1, then), [&down(WITNESS), &down(OTHER)]);
    assert!(
        because(&mut rig, 1)
            .ends_with("no witness answers: it keeps the group, but would not take it like this")
    );
    assert!(because(&mut rig, 2).ends_with("it does not take the group if fw1 cannot be reached"));
    rig.command(1, |e, now| e.switchover(now, 0, None)).unwrap();
    rig.run(ms(100));
    assert_eq!(rig.actives(0), [2]);
    // A fault and a goodbye are words of a peer that is reached.
    rig.carrier(2, LAN, false);
    rig.run(ms(100));
    assert_eq!(rig.actives(0), [1]);
    rig.carrier(2, LAN, true);
    rig.run(ms(100));
    rig.command(1, |e, now| e.shutdown(now));
    rig.run(ms(200));
    assert_eq!(rig.actives(0), [2]);
    rig.isolate(2);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [2]);
}

#[test]
fn a_hung_daemon_is_replaced_without_a_witness_because_its_data_plane_answers() {
    let mut rig = pair(1);
    rig.unwitnessed = [2].into();
    rig.hang(1);
    assert!(rig.run_until(ms(1100), |rig| rig.actives(0) == [2]).is_some());
}

#[test]
fn one_node_alone_starts_with_a_witness_only() {
    let mut rig = Rig::new(2, 1, |_, c| c.witnesses = vec![WITNESS]);
    rig.unwitnessed = [1].into();
    rig.start(1);
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [] as [NodeId; 0]);
    // Both together need none.
    rig.start(2);
    assert!(rig.run_until(ms(500), |rig| rig.actives(0) == [1]).is_some());

    let mut rig = Rig::new(2, 1, |_, c| c.witnesses = vec![WITNESS]);
    rig.start(1);
    assert!(rig.run_until(ms(5000), |rig| rig.actives(0) == [1]).is_some());
}

#[test]
fn a_distant_witness_is_waited_for() {
    let mut rig = pair(1);
    rig.witness_trip = ms(80);
    rig.run(ms(2000));
    rig.kill(1);
    let took = rig.run_until(ms(500), |rig| rig.actives(0) == [2]).expect("a takeover");
    // Asked when the silence was noticed.
    assert!(took >= ms(80) && took <= ms(25 + 10 + 80 + 2), "{took:?}");
}

#[test]
fn a_node_that_stands_by_for_three_asks_about_the_last_active_only() {
    let mut rig = Rig::new(3, 1, |_, c| c.witnesses = vec![WITNESS]);
    (1..=3).for_each(|n| rig.start(n));
    rig.run(ms(6000));
    assert_eq!(rig.actives(0), [1]);
    rig.unwitnessed = [1, 2, 3].into();
    rig.kill(3);
    rig.run(ms(3000));
    rig.carrier(1, LAN, false);
    rig.run(ms(500));
    assert_eq!(rig.actives(0), [2], "fw1 says that it gave the group up");
}

#[test]
fn a_reload_brings_and_takes_witnesses() {
    let mut rig = Rig::pair(1);
    rig.unwitnessed = [2].into();
    let groups = rig.election(2).config.groups.clone();
    rig.command(2, |e, now| e.reload(now, 1, groups.clone(), vec![], vec![WITNESS])).unwrap();
    rig.kill(1);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [] as [NodeId; 0]);
    rig.command(2, |e, now| e.reload(now, 1, groups, vec![], vec![])).unwrap();
    assert!(rig.run_until(ms(100), |rig| rig.actives(0) == [2]).is_some());
}
