//! Planned moves; more nodes and groups than a pair.

use super::*;

#[test]
fn a_switchover_never_leaves_the_group_without_an_owner() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    assert_eq!(rig.command(1, |e, now| e.switchover(now, 0, None)), Ok(2));
    let end = rig.now + ms(50);
    let mut overlap = Duration::ZERO;
    let mut last = rig.now;
    while rig.step(end) {
        let owners = rig.actives(0).len();
        assert!(owners > 0, "make before break");
        overlap += if owners > 1 { rig.now.since(last) } else { Duration::ZERO };
        last = rig.now;
    }
    assert_eq!(rig.actives(0), [2]);
    assert!(overlap < ms(1), "{overlap:?}");
    assert_eq!(role_causes(&rig, 2, then), [(Role::Active, Cause::Offered)]);
    let split = |e: &&Event| matches!(e, Event::SplitBrain { .. });
    assert!(!rig.events(1, then).iter().any(split) && !rig.events(2, then).iter().any(split));
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [2]);
}

#[test]
fn a_switchover_holds_against_preemption_until_its_node_is_lost() {
    let mut rig = Rig::pair_with(1, |_, c| c.groups[0].preempt = true);
    rig.command(1, |e, now| e.switchover(now, 0, Some(2))).unwrap();
    rig.run(ms(30_000));
    assert_eq!(rig.actives(0), [2]);
    rig.kill(2);
    rig.run(ms(1000));
    rig.start(2);
    rig.run(ms(1000));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_switchover_holds_although_the_daemon_that_got_the_group_is_restarted() {
    let mut rig = Rig::pair_with(1, |_, c| c.groups[0].preempt = true);
    rig.command(1, |e, now| e.switchover(now, 0, Some(2))).unwrap();
    rig.run(ms(1000));
    for _ in 0..2 {
        rig.kill_daemon(2);
        rig.run(ms(100));
        rig.start(2);
        rig.run(ms(30_000));
        assert_eq!(rig.actives(0), [2]);
        let now = rig.now;
        assert!(rig.election(2).status(now).groups[0].moved, "an operator is told of it");
    }
    // It is gone with the role.
    rig.command(2, |e, now| e.switchover(now, 0, None)).unwrap();
    rig.run(ms(1000));
    rig.kill(1);
    rig.run(ms(5000));
    rig.start(1);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn one_lost_heartbeat_of_three_nodes_does_not_disturb_a_move() {
    for preempt in [false, true] {
        for phase in 0..20 {
            // To the node before is told too late, or to the third.
            for (deaf, priorities) in [(1, [150, 120, 100]), (3, [120, 100, 150])] {
                let mut rig = Rig::new(3, phase, move |_, c| {
                    c.groups[0].members = (1..).zip(priorities).collect();
                    c.groups[0].preempt = preempt && deaf == 1;
                    c.groups[0].preempt_delay = ms(500);
                });
                (1..=3).for_each(|n| rig.start(n));
                rig.run(ms(8000));
                if rig.actives(0) != [1] {
                    let active = rig.actives(0)[0];
                    rig.command(active, |e, now| e.switchover(now, 0, Some(1))).unwrap();
                }
                rig.run(ms(2000) + Duration::from_micros(500 * phase));
                assert_eq!(rig.actives(0), [1]);
                let then = rig.now;
                rig.cut(2, deaf, SYNC);
                rig.command(1, |e, now| e.switchover(now, 0, Some(2))).unwrap();
                rig.run(ms(14));
                rig.heal();
                rig.run(ms(3000));
                let taken = |n| rig.events(n, then).iter().filter(|e| is_active(e)).count();
                assert_eq!((rig.actives(0), [1, 2, 3].map(taken)), (vec![2], [0, 1, 0]), "{phase} {deaf}");
            }
        }
    }
}

/// Whether a node has become Active, or says so anew.
fn is_active(event: &Event) -> bool {
    matches!(event, Event::Role { to: Role::Active, .. })
}

#[test]
fn a_planned_move_waits_for_a_taker_that_is_silent_for_a_moment() {
    for (offered, phase) in (0..10).flat_map(|phase| [(false, phase), (true, phase)]) {
        let mut rig = Rig::pair(phase);
        rig.run(ms(phase));
        let then = rig.now;
        if offered {
            rig.hang(2);
            rig.command(1, |e, now| e.shutdown(now));
            rig.run(ms(35));
        } else {
            rig.hang(2);
            rig.run(ms(27));
            assert_ne!(rig.peer_state(1, 2), PeerState::Alive);
            rig.command(1, |e, now| e.shutdown(now));
            rig.run(ms(8));
        }
        assert_eq!(rig.actives(0), [1], "{phase}");
        rig.resume(2);
        rig.run(ms(200));
        assert_eq!(rig.actives(0), [2], "{phase}");
        assert_eq!(role_causes(&rig, 2, then), [(Role::Active, Cause::Offered)], "{phase}");
    }
    // It is not waited for as long as it likes.
    let mut rig = Rig::pair(1);
    rig.hang(2);
    rig.run(ms(27));
    rig.command(1, |e, now| e.shutdown(now));
    let took = rig.run_until(ms(3000), |r| r.node(1).done).unwrap();
    assert!(took <= ms(1100), "{took:?}");
}

#[test]
fn a_switchover_that_cannot_be_is_refused_with_the_reason() {
    let mut rig = Rig::pair(1);
    let refused = rig.command(2, |e, now| e.switchover(now, 0, None)).unwrap_err();
    assert_eq!(refused, CommandError::NotActive { active: Some("fw1".into()) });
    assert_eq!(rig.command(1, |e, now| e.switchover(now, 9, None)), Err(CommandError::NotMember));
    let refused = rig.command(1, |e, now| e.switchover(now, 0, Some(1))).unwrap_err();
    assert!(matches!(refused, CommandError::NotCandidate { .. }));
    rig.carrier(2, LAN, false);
    rig.run(ms(20));
    let refused = rig.command(1, |e, now| e.switchover(now, 0, Some(2))).unwrap_err();
    assert_eq!(refused, CommandError::NotCandidate { node: "fw2".into(), state: "fault".into() });
    assert_eq!(rig.command(1, |e, now| e.switchover(now, 0, None)), Err(CommandError::NoCandidate));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_switchover_that_is_not_answered_fails_and_the_group_stays() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    rig.cut(1, 2, SYNC);
    rig.command(1, |e, now| e.switchover(now, 0, None)).unwrap();
    assert!(matches!(rig.command(1, |e, now| e.switchover(now, 0, None)), Err(CommandError::Busy { .. })));
    rig.run(ms(3000));
    assert_eq!(rig.actives(0), [1]);
    let refusal = rig.election(1).status(then).groups[0].refusal.clone().expect("it is remembered");
    assert_eq!(refusal.by, 2);
    let failed = Event::HandoverFailed { group: 0, to: 2, reason: refusal.reason };
    assert!(rig.events(1, then).contains(&&failed), "{failed:?}");
}

#[test]
fn standby_hands_over_and_ends_in_backup() {
    let mut rig = Rig::pair(1);
    let then = rig.now;
    rig.command(1, |e, now| e.standby(now, true, false)).unwrap();
    let end = rig.now + ms(50);
    while rig.step(end) {
        assert!(!rig.actives(0).is_empty(), "make before break");
    }
    assert_eq!(role_causes(&rig, 1, then), [(Role::Standby, Cause::Standby)]);
    assert_eq!(rig.actives(0), [2]);
    assert_eq!(rig.role(1, 0), Some(Role::Standby));
    rig.kill(2);
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), [], "an operator's word holds");
    let then = rig.now;
    rig.command(1, |e, now| e.standby(now, false, false)).unwrap();
    rig.run(ms(50));
    assert_eq!(role_causes(&rig, 1, then)[0], (Role::Backup, Cause::StandbyEnded));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn standby_of_the_last_eligible_node_needs_force() {
    let refused = |rig: &mut Rig, others: &str| {
        let error = rig.command(1, |e, now| e.standby(now, true, false)).unwrap_err();
        assert_eq!(error, CommandError::LastEligible { group: "g0".into(), others: others.into() });
        rig.run(ms(2000));
        assert_eq!(rig.actives(0), [1], "nothing has changed");
    };
    let mut rig = Rig::pair(1);
    rig.carrier(2, LAN, false);
    rig.run(ms(20));
    refused(&mut rig, "fw2 is fault");
    rig.carrier(2, LAN, true);
    rig.run(ms(20));
    // Two that stand by would leave nobody.
    rig.command(2, |e, now| e.standby(now, true, false)).unwrap();
    rig.run(ms(20));
    refused(&mut rig, "fw2 is standby");
    rig.kill(2);
    rig.run(ms(1000));
    refused(&mut rig, "fw2 is dead");
    rig.command(1, |e, now| e.standby(now, true, true)).unwrap();
    rig.run(ms(50));
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![], Some(Role::Standby)));
    rig.command(1, |e, now| e.standby(now, true, false)).expect("it is on standby already");
}

#[test]
fn a_node_that_starts_on_standby_resumes_nothing_and_takes_nothing() {
    let mut rig = Rig::pair_with(1, |node, c| c.standby = node == 1 && c.identity.epoch as u32 > 1);
    rig.kill_daemon(1);
    rig.run(ms(100));
    rig.start(1);
    rig.run(ms(100));
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![2], Some(Role::Standby)));
    rig.kill(2);
    rig.run(ms(10_000));
    assert_eq!(rig.actives(0), []);
}

#[test]
fn shutdown_moves_the_group_first_and_says_goodbye() {
    let mut rig = Rig::pair(1);
    rig.command(1, |e, now| e.shutdown(now));
    let took = rig.run_until(ms(1000), |r| r.node(1).done).unwrap();
    assert!(took < ms(60), "{took:?}");
    assert_eq!(rig.actives(0), [2]);
    assert!(!rig.node(1).adverts.iter().any(|a| a.2 == 0));
    rig.run(ms(2000));
    assert_eq!(rig.peer_state(2, 1), PeerState::Left);
}

#[test]
fn shutdown_without_a_successor_releases_the_role_by_vrrp_and_ends_in_time() {
    let mut rig = Rig::pair(1);
    rig.kill(2);
    rig.run(ms(1000));
    rig.command(1, |e, now| e.shutdown(now));
    rig.run_until(ms(1000), |r| r.node(1).done).unwrap();
    assert_eq!(rig.node(1).adverts.iter().filter(|a| a.2 == 0).count(), 2, "one in each zone");
    let mut rig = Rig::pair(2);
    rig.cut(1, 2, SYNC);
    rig.run(ms(5));
    rig.command(1, |e, now| e.shutdown(now));
    let took = rig.run_until(ms(3000), |r| r.node(1).done).unwrap();
    assert!(took <= ms(1100), "{took:?}");
    rig.run(ms(1500));
    assert_eq!(rig.actives(0), [2]);
}

#[test]
fn of_three_nodes_the_next_best_takes_over_and_only_that_one() {
    for seed in 0..20 {
        let mut rig = Rig::new(3, seed, |_, c| c.groups[0].members = vec![(1, 150), (2, 100), (3, 50)]);
        for n in 1..=3 {
            rig.start(n);
        }
        rig.run(ms(6000));
        for dead in [1, 2] {
            rig.kill(dead);
            let took = rig.run_until(ms(1000), |r| r.actives(0) == [dead + 1]).expect("a takeover");
            assert!(took <= DEAD_LIMIT, "seed {seed}: {took:?}");
            rig.run(ms(2000));
        }
        assert_eq!(rig.node(3).takeovers.len(), 1);
    }
}

#[test]
fn groups_move_on_their_own() {
    let shape = |_: NodeId, c: &mut Config| {
        c.groups = vec![group(0, vec![(1, 150), (2, 100)]), group(1, vec![(2, 150), (1, 100)])];
    };
    let mut rig = Rig::new(2, 1, shape);
    rig.start(1);
    rig.start(2);
    rig.run(ms(6000));
    assert_eq!((rig.actives(0), rig.actives(1)), (vec![1], vec![2]));
    rig.command(1, |e, now| e.switchover(now, 0, None)).unwrap();
    rig.run(ms(100));
    assert_eq!((rig.actives(0), rig.actives(1)), (vec![2], vec![2]));
    rig.kill(2);
    rig.run_until(DEAD_LIMIT, |r| r.actives(0) == [1] && r.actives(1) == [1]).expect("both move");
}

#[test]
fn a_group_of_one_node_follows_vrrp_alone() {
    let mut rig = Rig::new(1, 1, |_, c| c.groups[0].members = vec![(1, 255)]);
    rig.start(1);
    let took = rig.run_until(ms(5000), |r| r.actives(0) == [1]).unwrap();
    assert!(took < ms(1), "the owner of the addresses does not wait: {took:?}");
}

#[test]
fn round_trips_are_measured() {
    let mut rig = Rig::pair(1);
    let now = rig.now;
    let status = rig.election(2).status(now);
    let rtt = status.peers[0].links[0].rtt.expect("measured");
    assert!(rtt >= Duration::from_micros(200) && rtt <= Duration::from_micros(401), "{rtt:?}");
    assert!(status.peers[0].links[0].up);
}
