//! Who is elected when nodes start and join.

use super::*;

#[test]
fn two_nodes_that_start_together_elect_the_preferred_one_at_once() {
    for seed in 0..20 {
        let mut rig = Rig::new(2, seed, |_, _| {});
        rig.start(1);
        rig.start(2);
        let took = rig.run_until(ms(1000), |r| r.actives(0) == [1]).expect("one is elected");
        assert!(took < ms(200), "{took:?}");
        rig.run(ms(10_000));
        assert_eq!(rig.actives(0), [1]);
        assert_eq!(rig.node(1).takeovers.len() + rig.node(2).takeovers.len(), 1, "nothing flaps");
    }
}

#[test]
fn a_node_alone_waits_for_the_active_down_interval_then_serves() {
    let mut rig = Rig::new(2, 1, |_, _| {});
    rig.start(2);
    let took = rig.run_until(ms(10_000), |r| r.actives(0) == [2]).unwrap();
    // 3 s and a skew of (256 - 100) / 256 s.
    assert!(took >= ms(3609) && took < ms(3630), "{took:?}");
}

#[test]
fn a_node_that_joins_leaves_the_active_alone() {
    let mut rig = Rig::new(2, 1, |_, _| {});
    rig.start(2);
    rig.run(ms(5000));
    rig.start(1);
    rig.run(ms(20_000));
    assert_eq!(rig.actives(0), [2]);
    assert_eq!(rig.role(1, 0), Some(Role::Backup));
    assert_eq!(rig.node(1).takeovers, []);
}

#[test]
fn a_preferred_node_that_preempts_waits_until_it_is_in_sync() {
    let preempt = |_: NodeId, c: &mut Config| c.groups[0].preempt = true;
    let mut rig = Rig::new(2, 1, preempt);
    rig.replicate = false;
    rig.start(2);
    rig.run(ms(5000));
    rig.start(1);
    rig.run(ms(9000));
    assert_eq!(rig.actives(0), [2]);
    rig.command(1, |e, now| e.sync_status(now, 2, true, 7));
    rig.run(ms(5));
    assert_eq!(rig.actives(0), [1]);
    assert_eq!(rig.node(1).events.iter().filter(|(_, e)| matches!(e, Event::SplitBrain { .. })).count(), 0);
}

#[test]
fn a_preferred_node_preempts_unsynced_after_a_bounded_wait() {
    let mut rig = Rig::new(2, 1, |_, c| c.groups[0].preempt = true);
    rig.replicate = false;
    rig.start(2);
    rig.run(ms(5000));
    rig.start(1);
    let took = rig.run_until(ms(20_000), |r| r.actives(0) == [1]).unwrap();
    assert!(took >= ms(10_000) && took < ms(10_200), "{took:?}");
}

#[test]
fn a_preferred_node_that_preempts_with_a_delay_must_have_been_ready_for_that_long() {
    let delay = ms(30_000);
    let mut rig = Rig::new(2, 1, move |_, c| {
        (c.groups[0].preempt, c.groups[0].preempt_delay) = (true, delay);
    });
    rig.start(2);
    rig.run(ms(5000));
    rig.start(1);
    rig.run(ms(20_000));
    // A cable that comes and goes is what the delay is there for: it begins anew.
    rig.carrier(1, LAN, false);
    rig.run(ms(1000));
    rig.carrier(1, LAN, true);
    let took = rig.run_until(ms(60_000), |r| r.actives(0) == [1]).expect("in the end");
    assert!(took >= delay && took < delay + ms(200), "{took:?}");
    // A vacant group does not wait.
    rig.kill(1);
    rig.run(ms(1000));
    rig.start(1);
    rig.run(ms(1000));
    assert_eq!(rig.actives(0), [2]);
    rig.kill(2);
    let took = rig.run_until(ms(5000), |r| r.actives(0) == [1]).expect("the other is dead");
    assert!(took <= DEAD_LIMIT, "{took:?}");
}

#[test]
fn a_fresh_node_does_not_take_a_vacant_group_from_the_one_that_holds_the_flows() {
    let mut rig = Rig::pair(3);
    rig.run(ms(100));
    // The preferred node's daemon restarts at once and without its data plane.
    rig.kill(1);
    rig.start(1);
    rig.run(ms(500));
    assert_eq!(rig.actives(0), [2]);
}
