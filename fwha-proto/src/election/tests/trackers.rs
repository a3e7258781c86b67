//! What nodes watch, and when that moves a group.

use super::*;
use State::{Down, Up};

/// Of the shared trackers.
const GRACE: Duration = ms(1500);
/// A verdict on its way, and a handover.
const SOON: Duration = ms(50);
/// Time for anything to flap that would.
const LONG: Duration = ms(30_000);

fn tracker(id: u32, effect: Effect, shared: Option<Duration>) -> TrackerConfig {
    TrackerConfig { id, name: format!("t{id}"), groups: vec![], effect, shared }
}

/// Nodes with these trackers, all well.
fn rig(nodes: u8, trackers: &[TrackerConfig], shape: impl Fn(&mut Config) + 'static) -> Rig {
    let theirs = trackers.to_vec();
    let mut rig = Rig::new(nodes, 1, move |_, c| {
        c.trackers.clone_from(&theirs);
        shape(c);
    });
    for n in 1..=nodes {
        rig.start(n);
        trackers.iter().for_each(|t| rig.track(n, t.id, Up));
    }
    rig.run(ms(6000));
    assert_eq!(rig.actives(0), [1]);
    rig
}

fn priority(rig: &Rig, n: NodeId) -> u8 {
    rig.node(n).election.as_ref().expect("runs").status(rig.now).groups[0].priority
}

/// What status says of the first tracker at a node.
fn effect(rig: &Rig, n: NodeId) -> (bool, String) {
    let status = rig.node(n).election.as_ref().expect("runs").status(rig.now);
    let tracker = &status.groups[0].trackers[0];
    (tracker.counts, tracker.effect.clone())
}

/// Runs; the group must have one owner at least, and [`SOON`] two at most.
fn run_without_a_gap(rig: &mut Rig, span: Duration) {
    let (end, mut last, mut both) = (rig.now + span, rig.now, Duration::ZERO);
    while rig.step(end) {
        let owners = rig.actives(0).len();
        assert!(owners > 0, "make before break");
        both += if owners > 1 { rig.now.since(last) } else { Duration::ZERO };
        last = rig.now;
    }
    assert!(both < ms(5), "{both:?}");
}

fn takeovers(rig: &Rig) -> usize {
    rig.nodes.iter().map(|m| m.takeovers.len()).sum()
}

#[test]
fn a_fault_moves_the_group_without_a_gap_and_does_not_bring_it_back() {
    let mut rig = rig(2, &[tracker(1, Effect::Fault, None)], |_| {});
    let then = rig.now;
    rig.track(1, 1, Down);
    run_without_a_gap(&mut rig, SOON);
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![2], Some(Role::Fault)));
    let reason = rig.events(1, then).iter().find_map(|e| match e {
        Event::Role { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reason.as_deref(), Some("t1: it is down"));
    rig.track(1, 1, Up);
    rig.run(LONG);
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![2], Some(Role::Backup)));
}

#[test]
fn a_fault_waits_a_moment_for_a_candidate_that_is_suspected() {
    for lives in [true, false] {
        let mut rig = rig(2, &[tracker(1, Effect::Fault, None)], |_| {});
        rig.hang(2);
        assert!(rig.run_until(ms(40), |rig| rig.peer_state(1, 2) == PeerState::Suspect).is_some());
        rig.track(1, 1, Down);
        assert_eq!(rig.actives(0), [1]);
        if lives {
            rig.resume(2);
            run_without_a_gap(&mut rig, SOON);
            assert_eq!(rig.actives(0), [2]);
        } else {
            rig.kill(2);
            assert!(rig.run_until(DEAD_LIMIT * 2, |rig| rig.actives(0).is_empty()).is_some());
        }
    }
}

#[test]
fn a_fault_of_its_own_forbids_the_role_even_if_nobody_else_can_have_it() {
    let mut rig = rig(2, &[tracker(1, Effect::Fault, None)], |_| {});
    rig.track(2, 1, Down);
    rig.run(SOON);
    rig.track(1, 1, Down);
    rig.run(ms(1100));
    assert_eq!(rig.actives(0), [] as [NodeId; 0]);
    rig.track(2, 1, Up);
    assert!(rig.run_until(ms(5000), |rig| rig.actives(0) == [2]).is_some());
}

#[test]
fn a_shared_target_that_is_dead_for_all_demotes_nobody() {
    let mut rig = rig(2, &[tracker(1, Effect::Fault, Some(GRACE))], |_| {});
    let before = takeovers(&rig);
    // The two find out as far apart as they may.
    rig.track(1, 1, Down);
    rig.run(GRACE - SOON);
    assert!(!effect(&rig, 1).0 && effect(&rig, 1).1.starts_with("counts in 0"), "{:?}", effect(&rig, 1));
    rig.track(2, 1, Down);
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
    assert_eq!(effect(&rig, 1), (false, "none: no node that could be active is better off".into()));
    // It comes back for the other one a little earlier.
    rig.track(2, 1, Up);
    rig.run(GRACE - SOON);
    rig.track(1, 1, Up);
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
}

#[test]
fn a_node_of_which_nobody_knows_is_no_better_but_takes_what_nobody_has() {
    let mut rig = rig(2, &[tracker(1, Effect::Fault, Some(GRACE))], |_| {});
    rig.track(1, 1, Down);
    rig.run(GRACE + SOON);
    assert_eq!(rig.actives(0), [2]);
    rig.track(2, 1, Down);
    rig.run(LONG);
    let before = takeovers(&rig);
    rig.track(1, 1, State::Unknown);
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![2], before));
    rig.kill(2);
    assert!(rig.run_until(DEAD_LIMIT * 2, |rig| rig.actives(0) == [1]).is_some());
}

#[test]
fn a_shared_target_that_is_dead_for_one_moves_the_group_after_the_grace() {
    let mut rig = rig(2, &[tracker(1, Effect::Fault, Some(GRACE))], |_| {});
    let then = rig.now;
    rig.track(1, 1, Down);
    rig.run(GRACE - SOON);
    assert_eq!(rig.actives(0), [1]);
    run_without_a_gap(&mut rig, SOON * 2);
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![2], Some(Role::Fault)));
    // Now it is dead for the new Active, too: it stays, and the old one may have the role again.
    rig.track(2, 1, Down);
    rig.run(LONG);
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![2], Some(Role::Backup)));
    // One heals.
    rig.track(1, 1, Up);
    rig.run(GRACE + SOON);
    assert_eq!((rig.actives(0), rig.role(2, 0)), (vec![1], Some(Role::Fault)));
    rig.track(2, 1, Up);
    rig.run(LONG);
    assert_eq!(rig.actives(0), [1]);
    let told: Vec<String> = rig
        .events(1, then)
        .iter()
        .filter_map(|e| match e {
            Event::Tracker { tracker, to, .. } => Some(format!("{tracker} {}", to.as_str())),
            Event::Tracked { effect, .. } => Some(effect.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        told,
        ["t1 down", "forbids the role", "none: no node that could be active is better off", "t1 up"]
    );
}

#[test]
fn a_shared_fault_does_not_keep_the_last_node_from_the_role() {
    let mut rig = rig(2, &[tracker(1, Effect::Fault, Some(GRACE))], |_| {});
    rig.track(2, 1, Down);
    rig.run(GRACE + SOON);
    assert_eq!(rig.role(2, 0), Some(Role::Fault));
    rig.kill(1);
    assert!(rig.run_until(DEAD_LIMIT, |rig| rig.actives(0) == [2]).is_some());
    assert_eq!(effect(&rig, 2).1, "none: no other node is heard that could be active");
    // The other one returns, well.
    rig.start(1);
    rig.track(1, 1, Up);
    rig.run(GRACE + ms(1000));
    assert_eq!((rig.actives(0), rig.role(2, 0)), (vec![1], Some(Role::Fault)));
}

#[test]
fn a_node_that_starts_while_the_target_is_dead_for_all_gets_nothing() {
    for effect in [Effect::Fault, Effect::Lowers(120)] {
        let mut rig = rig(2, &[tracker(1, effect, Some(GRACE))], |_| {});
        (1..=2).for_each(|n| rig.track(n, 1, Down));
        rig.run(LONG);
        rig.kill_daemon(2);
        rig.run(ms(2000));
        rig.start(2);
        // It has no verdict yet, which does not make it the better one.
        rig.run(GRACE * 2);
        assert_eq!(rig.actives(0), [1], "{effect:?}");
        rig.track(2, 1, Down);
        rig.run(LONG);
        assert_eq!(rig.actives(0), [1], "{effect:?}");
    }
}

#[test]
fn a_target_that_dies_for_all_without_a_sync_link_moves_nothing() {
    let mut rig = rig(2, &[tracker(1, Effect::Fault, Some(GRACE))], |_| {});
    let before = takeovers(&rig);
    rig.cut_both(SYNC);
    rig.run(ms(3000));
    (1..=2).for_each(|n| rig.track(n, 1, Down));
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
    rig.heal();
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
}

#[test]
fn two_nodes_that_fail_different_shared_targets_keep_their_roles() {
    let trackers = [1, 2].map(|id| tracker(id, Effect::Fault, Some(GRACE)));
    let mut rig = rig(2, &trackers, |_| {});
    let before = takeovers(&rig);
    rig.track(1, 1, Down);
    rig.track(2, 2, Down);
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
    rig.track(1, 2, Down);
    rig.run(LONG);
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![2], Some(Role::Fault)));
}

#[test]
fn of_three_nodes_the_one_that_reaches_the_target_gets_the_group() {
    for effect in [Effect::Fault, Effect::Lowers(120)] {
        let mut rig = rig(3, &[tracker(1, effect, Some(GRACE))], |_| {});
        rig.track(1, 1, Down);
        rig.run(ms(300));
        rig.track(2, 1, Down);
        run_without_a_gap(&mut rig, LONG);
        assert_eq!(rig.actives(0), [3], "{effect:?}");
        let before = takeovers(&rig);
        rig.track(3, 1, Down);
        rig.run(LONG);
        assert_eq!((rig.actives(0), takeovers(&rig)), (vec![3], before), "{effect:?}");
    }
}

#[test]
fn a_lowered_priority_hands_the_group_over_whether_or_not_it_preempts() {
    for preempt in [false, true] {
        let mut rig = rig(2, &[tracker(1, Effect::Lowers(60), None)], move |c| c.groups[0].preempt = preempt);
        let then = rig.now;
        rig.track(1, 1, Down);
        run_without_a_gap(&mut rig, ms(1100));
        assert_eq!((rig.actives(0), priority(&rig, 1)), (vec![2], 90));
        assert!(role_causes(&rig, 1, then).starts_with(&[(Role::Backup, Cause::HandedOver)]));
        // The new Active fails it, too: it is the lesser one again.
        rig.track(2, 1, Down);
        run_without_a_gap(&mut rig, ms(1100));
        assert_eq!((rig.actives(0), priority(&rig, 2)), (vec![1], 40));
        assert!(rig.node(1).adverts.iter().any(|(at, _, priority)| *at > then && *priority == 90));
        rig.track(2, 1, Up);
        run_without_a_gap(&mut rig, ms(1100));
        assert_eq!(rig.actives(0), [2]);
        rig.track(1, 1, Up);
        run_without_a_gap(&mut rig, LONG);
        assert_eq!(rig.actives(0), if preempt { [1] } else { [2] }, "it is `preempt` that brings it back");
    }
}

#[test]
fn a_lowered_priority_that_is_still_the_higher_moves_nothing() {
    let mut rig = rig(2, &[tracker(1, Effect::Lowers(49), None)], |_| {});
    rig.track(1, 1, Down);
    rig.run(LONG);
    assert_eq!((rig.actives(0), priority(&rig, 1)), (vec![1], 101));
    assert_eq!(effect(&rig, 1), (true, "lowers the priority by 49".into()));
}

#[test]
fn a_lowered_priority_waits_for_a_candidate_with_the_flows_and_leaves_an_operators_move() {
    let mut rig = rig(2, &[tracker(1, Effect::Lowers(60), None)], |_| {});
    rig.replicate = false;
    rig.kill_daemon(2);
    rig.start(2);
    rig.track(2, 1, Up);
    rig.run(ms(1000));
    rig.track(1, 1, Down);
    rig.run(ms(9000));
    assert_eq!(rig.actives(0), [1]);
    rig.run(ms(1100));
    assert_eq!(rig.actives(0), [2], "it does not wait for ever");
    rig.command(2, |e, now| e.switchover(now, 0, Some(1))).unwrap();
    rig.run(LONG);
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_node_does_not_preempt_before_its_trackers_have_spoken() {
    let mut rig = rig(2, &[tracker(1, Effect::Fault, None)], |c| c.groups[0].preempt = true);
    rig.kill(1);
    rig.run(ms(1000));
    rig.start(1);
    rig.run(LONG);
    assert_eq!(rig.actives(0), [2]);
    rig.track(1, 1, Up);
    rig.run(ms(1000));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_tracker_of_another_group_moves_nothing() {
    let other = TrackerConfig { groups: vec![7], ..tracker(1, Effect::Fault, None) };
    let mut rig = rig(2, &[other], |_| {});
    rig.track(1, 1, Down);
    rig.run(LONG);
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_fault_is_told_to_vrrp_if_no_other_node_is_there() {
    let mut rig = Rig::new(1, 1, |_, c| c.trackers = vec![tracker(1, Effect::Fault, Some(GRACE))]);
    rig.start(1);
    rig.run(ms(6000));
    assert_eq!(rig.actives(0), [1]);
    rig.track(1, 1, Down);
    rig.run(GRACE + SOON);
    assert_eq!(rig.actives(0), [] as [NodeId; 0]);
    assert_eq!(rig.node(1).adverts.last().map(|a| a.2), Some(0));
}

/// Whatever the shared trackers say: the group is never long without an owner, it comes to rest, and
/// then with a node than which none is better off.
#[test]
fn verdicts_in_any_order_leave_no_gap_and_come_to_rest() {
    const LIMIT: Duration = ms(100);
    let trackers = [
        tracker(1, Effect::Fault, Some(GRACE)),
        tracker(2, Effect::Fault, Some(GRACE)),
        tracker(3, Effect::Lowers(120), Some(GRACE)),
    ];
    for seed in 0..20 {
        let nodes = 2 + (seed % 2) as u8;
        let mut rig = rig(nodes, &trackers, move |c| c.groups[0].preempt = seed % 3 == 0);
        rig.rng = Rng(seed);
        let mut failing = vec![[false; 3]; usize::from(nodes)];
        let mut last_owned = rig.now;
        for _ in 0..25 {
            let (n, t) = (rig.rng.below(nodes.into()) as usize, rig.rng.below(3) as usize);
            failing[n][t] = !failing[n][t];
            rig.track(n as u8 + 1, t as u32 + 1, if failing[n][t] { Down } else { Up });
            let end = rig.now + ms(rig.rng.below(3000));
            while rig.step(end) {
                if !rig.actives(0).is_empty() {
                    last_owned = rig.now;
                }
                assert!(rig.now.since(last_owned) < LIMIT, "seed {seed}: no owner since {last_owned:?}");
            }
        }
        rig.run(ms(15_000));
        let before = takeovers(&rig);
        rig.run(LONG);
        assert_eq!(takeovers(&rig), before, "seed {seed}: it goes on moving");
        let [active] = rig.actives(0)[..] else { panic!("seed {seed}: {:?}", rig.actives(0)) };
        let troubles = |n: u8| failing[usize::from(n) - 1][..2].iter().filter(|&&f| f).count();
        let least = (1..=nodes).map(troubles).min();
        assert_eq!(Some(troubles(active)), least, "seed {seed}: fw{active} of {failing:?}");
    }
}

fn reload(rig: &mut Rig, n: NodeId, trackers: &[TrackerConfig]) {
    let groups = rig.election(n).config.groups.clone();
    rig.command(n, |e, now| e.reload(now, 2, groups, trackers.to_vec(), vec![])).expect("a good file");
}

#[test]
fn a_reload_keeps_what_is_known_of_a_tracker_whatever_its_place() {
    let shared = tracker(1, Effect::Fault, Some(GRACE));
    let mut rig = rig(2, std::slice::from_ref(&shared), |_| {});
    rig.track(1, 1, Down);
    rig.run(GRACE + SOON);
    assert_eq!((rig.actives(0), rig.role(1, 0)), (vec![2], Some(Role::Fault)));
    let then = rig.now;
    for n in [1, 2] {
        reload(&mut rig, n, &[tracker(7, Effect::Lowers(10), None), shared.clone()]);
    }
    run_without_a_gap(&mut rig, LONG);
    let told = rig.events(1, then);
    assert!(told.iter().all(|e| matches!(e, Event::ConfigDiffers { .. })), "{told:?}");
    assert_eq!(rig.role(1, 0), Some(Role::Fault), "it counts without a break");
    rig.track(1, 7, Down);
    rig.run(SOON);
    assert_eq!(priority(&rig, 1), 140, "the new one counts, too");
}

#[test]
fn a_tracker_that_a_reload_removes_counts_no_more_and_one_that_is_new_has_no_verdict() {
    let fault = tracker(1, Effect::Fault, None);
    let mut rig = rig(2, std::slice::from_ref(&fault), |_| {});
    rig.track(1, 1, Down);
    run_without_a_gap(&mut rig, SOON);
    assert_eq!(rig.role(1, 0), Some(Role::Fault));
    reload(&mut rig, 1, &[]);
    rig.run(SOON);
    assert_eq!(rig.role(1, 0), Some(Role::Backup), "nothing is left that forbids the role");
    reload(&mut rig, 1, &[fault]);
    rig.run(SOON);
    assert_eq!(rig.role(1, 0), Some(Role::Backup));
    assert_eq!(effect(&rig, 1), (false, "none yet".into()));
}

#[test]
fn a_reload_that_changes_the_effect_of_a_failing_tracker_is_heeded_at_once() {
    let mut rig = rig(2, &[tracker(1, Effect::Lowers(10), None)], |_| {});
    rig.track(1, 1, Down);
    rig.run(SOON);
    assert_eq!((rig.actives(0), priority(&rig, 1)), (vec![1], 140));
    reload(&mut rig, 1, &[tracker(1, Effect::Fault, None)]);
    run_without_a_gap(&mut rig, SOON);
    assert_eq!((rig.actives(0), rig.role(1, 0), priority(&rig, 1)), (vec![2], Some(Role::Fault), 150));
}
