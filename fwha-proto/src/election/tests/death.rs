//! Dead, hung, stalled and restarted nodes.

use super::*;

#[test]
fn a_dead_active_is_replaced_within_35_ms() {
    let mut worst = Duration::ZERO;
    for seed in 0..200 {
        let mut rig = Rig::pair(seed);
        let phase = rig.rng.below(10_000_000);
        rig.run(Duration::from_nanos(phase));
        let death = rig.now;
        rig.kill(1);
        let took = rig.run_until(ms(1000), |r| r.actives(0) == [2]).expect("a takeover");
        assert!(took <= DEAD_LIMIT, "seed {seed}: {took:?}");
        assert_eq!(role_causes(&rig, 2, death), [(Role::Active, Cause::PeerDead)]);
        worst = worst.max(took);
    }
    // From its last heartbeat: 1.5 intervals, four probes 2 ms apart, and the last one's answer.
    assert!(worst >= ms(23), "the probes were not waited for: {worst:?}");
}

#[test]
fn a_late_heartbeat_is_asked_after_and_nothing_else() {
    let probes =
        |rig: &Rig| rig.node(2).election.as_ref().expect("runs").counters.get("probe_tx", "requests");
    let mut asked = 0;
    for seed in 0..50 {
        let mut rig = Rig::pair(seed);
        let phase = rig.rng.below(1_000_000_000);
        rig.run(Duration::from_nanos(phase));
        let (then, before) = (rig.now, probes(&rig));
        rig.hang(1);
        rig.run(ms(11));
        rig.resume(1);
        rig.run(ms(50));
        assert!(rig.events(2, then).is_empty(), "seed {seed}");
        // At 15 ms of silence, and up to 21 ms, by three interfaces; and one as in peace.
        let probes = probes(&rig) - before;
        assert!(probes <= 3 * 5, "seed {seed}: {probes}");
        asked += u64::from(probes > 3);
    }
    assert!(asked > 10, "most of the silences are longer than 15 ms: {asked}");
}

#[test]
fn where_heartbeats_are_rare_the_burst_ends_when_the_second_is_missing() {
    let probes =
        |rig: &Rig| rig.node(2).election.as_ref().expect("runs").counters.get("probe_tx", "requests");
    for phase in 0..10 {
        let slow = |c: &mut Config| (c.heartbeat_interval, c.lease) = (ms(1000), ms(10_000));
        let mut rig = Rig::pair_with(1, move |_, c| slow(c));
        rig.run(ms(20_000 + 100 * phase));
        let (then, before) = (rig.now, probes(&rig));
        rig.hang(1);
        rig.run(ms(1000));
        rig.resume(1);
        rig.run(ms(1500));
        assert!(rig.events(2, then).is_empty(), "{:?}", rig.events(2, then));
        assert!(probes(&rig) - before <= 3 * 3, "as in peace");
        // The network stalls, for two heartbeats at some of the phases, and is well again before the second is missing.
        let then = rig.now;
        rig.isolate(1);
        rig.run(ms(1150));
        rig.heal();
        rig.run(ms(5000));
        assert_eq!(rig.actives(0), [1], "{:?}", rig.events(2, then));
        assert_eq!(rig.node(2).takeovers, []);
    }
}

#[test]
fn a_dead_active_is_replaced_sooner_when_the_sync_link_loses_its_carrier() {
    let mut rig = Rig::pair(1);
    rig.kill(1);
    rig.carrier(2, SYNC, false);
    let took = rig.run_until(ms(1000), |r| r.actives(0) == [2]).unwrap();
    assert!(took <= ms(15), "{took:?}");
}

#[test]
fn faster_heartbeats_make_faster_takeovers() {
    let mut rig = Rig::pair_with(1, |_, c| c.heartbeat_interval = ms(3));
    rig.kill(1);
    let took = rig.run_until(ms(1000), |r| r.actives(0) == [2]).unwrap();
    assert!(took <= ms(18), "{took:?}");
}

#[test]
fn a_network_that_loses_and_reorders_moves_nothing() {
    for seed in 0..5 {
        let mut rig = Rig::pair(seed);
        rig.loss_permille = 200;
        rig.jitter = ms(20);
        rig.run(ms(30_000));
        assert_eq!(rig.actives(0), [1], "seed {seed}");
        assert_eq!(rig.node(2).takeovers, [], "seed {seed}");
    }
}

#[test]
fn daemons_that_stall_again_and_again_move_nothing() {
    for seed in 0..5 {
        let mut rig = Rig::pair(seed);
        rig.stamps = seed % 2 == 0;
        for _ in 0..200 {
            let n = 1 + rig.rng.below(2) as u8;
            rig.hang(n);
            let stall = rig.rng.below(150);
            rig.run(ms(stall));
            rig.resume(n);
            let rest = rig.rng.below(30);
            rig.run(ms(rest));
        }
        assert_eq!(rig.actives(0), [1], "seed {seed}");
        assert_eq!(rig.node(2).takeovers, [], "seed {seed}");
    }
}

#[test]
fn a_dead_backup_changes_nothing() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    rig.kill(2);
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(role_causes(&rig, 1, then), []);
    assert_eq!(rig.peer_state(1, 2), PeerState::Dead);
}

#[test]
fn a_takeover_announces_at_once_and_again() {
    let mut rig = Rig::pair(1);
    rig.kill(1);
    rig.run_until(ms(1000), |r| r.actives(0) == [2]).unwrap();
    let took = rig.now;
    rig.run(ms(10_000));
    let times: Vec<_> = rig.node(2).announced.iter().map(|(at, _)| at.since(took).as_millis()).collect();
    assert_eq!(times, [0, 100, 1000, 5000]);
}

#[test]
fn a_hung_active_keeps_the_group_until_its_lease_ends_and_never_two_own_it() {
    for seed in 0..20 {
        let mut rig = Rig::pair(seed);
        rig.stamps = seed % 2 == 0;
        let then = rig.now;
        rig.hang(1);
        let mut owned_by = vec![];
        let end = rig.now + ms(1500);
        while rig.step(end) {
            let now = rig.actives(0);
            assert!(now.len() < 2, "seed {seed}: two owners");
            if owned_by.last() != Some(&now) {
                owned_by.push(now);
            }
        }
        assert_eq!(owned_by.first(), Some(&vec![1]));
        assert_eq!(owned_by.last(), Some(&vec![2]));
        assert_eq!(role_causes(&rig, 2, then), [(Role::Active, Cause::LeaseEnded)]);
        let at = rig.node(2).takeovers[0].0;
        assert!(at.since(then) < ms(1050), "seed {seed}: {:?}", at.since(then));
        rig.resume(1);
        rig.run(ms(3000));
        assert_eq!(rig.actives(0), [2], "seed {seed}: the sleeper does not come back");
        assert_eq!(rig.role(1, 0), Some(Role::Backup));
        assert_eq!(rig.node(1).takeovers.len(), 1);
    }
}

#[test]
fn an_active_that_hangs_for_less_than_its_lease_stays() {
    let mut rig = Rig::pair(1);
    rig.hang(1);
    rig.run(ms(700));
    rig.resume(1);
    rig.run(ms(3000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(rig.node(2).takeovers, []);
}

#[test]
fn a_daemon_that_restarts_within_its_lease_keeps_the_group() {
    let mut rig = Rig::pair(1);
    rig.kill_daemon(1);
    rig.run(ms(400));
    let then = rig.now;
    rig.start(1);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(role_causes(&rig, 1, then)[0], (Role::Active, Cause::Resumed));
    assert_eq!(rig.node(2).takeovers, []);
    assert_eq!(rig.peer_state(2, 1), PeerState::Alive);
}

#[test]
fn a_node_alone_that_slept_past_its_lease_serves_again_soon() {
    let mut rig = Rig::pair(1);
    rig.kill(2);
    rig.run(ms(100));
    rig.hang(1);
    rig.run(ms(2000));
    assert_eq!(rig.actives(0), []);
    rig.resume(1);
    let took = rig.run_until(ms(5000), |r| r.actives(0) == [1]).unwrap();
    assert!(took < ms(50), "{took:?}");
}

#[test]
fn who_slept_while_a_silent_peer_came_back_asks_before_it_takes_over() {
    for seed in 0..20 {
        let mut rig = Rig::pair(seed);
        rig.kill_daemon(1);
        let silent = rig.run_until(ms(200), |r| r.peer_state(2, 1) == PeerState::Silent);
        silent.expect("its data plane answers");
        rig.hang(2);
        rig.run(ms(400));
        rig.start(1);
        assert_eq!(rig.role(1, 0), Some(Role::Active), "resumed within its lease");
        rig.run(ms(1000));
        rig.resume(2);
        let end = rig.now + ms(5000);
        while rig.step(end) {
            assert_eq!(rig.actives(0), [1], "seed {seed}");
        }
    }
}

#[test]
fn who_hangs_or_was_killed_and_has_lost_its_lease_is_active_no_more_for_status() {
    for fell in [Rig::hang, Rig::kill_daemon] {
        let mut rig = Rig::pair(1);
        let known = |rig: &mut Rig| rig.command(2, |e, now| e.status(now).groups[0].active.clone());
        assert_eq!(known(&mut rig), [1]);
        fell(&mut rig, 1);
        rig.run(ms(500));
        assert_eq!((rig.peer_state(2, 1), known(&mut rig)), (PeerState::Silent, vec![1]), "its lease runs");
        let took = rig.run_until(ms(2000), |r| r.role(2, 0) == Some(Role::Active));
        took.expect("its lease ends");
        for _ in 0..50 {
            rig.run(ms(100));
            assert_eq!((rig.peer_state(2, 1), known(&mut rig)), (PeerState::Silent, vec![2]));
        }
    }
}
