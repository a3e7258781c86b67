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

fn owner(_: NodeId, c: &mut Config) {
    c.groups[0].members = vec![(1, 255), (2, 100)];
}

/// RFC 9568, 6.4.1, of an owner that has other members: it waits for an interval, not for three and a skew,
/// and only where nobody is heard.
#[test]
fn rule_6_4_1_the_owner_among_members_does_not_wait_for_the_active_down_interval() {
    let mut rig = Rig::new(2, 1, owner);
    rig.start(1);
    let took = rig.run_until(ms(10_000), |r| r.actives(0) == [1]).unwrap();
    assert!(took >= ms(1000) && took < ms(1020), "{took:?}");

    let mut rig = Rig::new(2, 1, owner);
    rig.start(2);
    let took = rig.run_until(ms(10_000), |r| r.actives(0) == [2]).unwrap();
    assert!(took >= ms(3609), "the other is no owner: {took:?}");
}

#[test]
fn rule_6_4_1_the_owner_leaves_an_active_member_alone_that_it_hears_on_any_way() {
    for sync in [true, false] {
        let mut rig = Rig::new(2, 1, owner);
        if !sync {
            rig.cut_both(Via::Sync(0));
        }
        rig.start(2);
        rig.run(ms(5000));
        rig.start(1);
        rig.run(ms(20_000));
        assert_eq!((rig.actives(0), rig.node(1).takeovers.len()), (vec![2], 0), "sync link: {sync}");
    }
}

/// RFC 9568, 6.1: Preempt_Mode is not for the owner of the addresses.
#[test]
fn rule_6_1_the_owner_preempts_whatever_the_mode_says() {
    for (priority, wins) in [(255, true), (254, false)] {
        let mut rig = Rig::new(1, 1, move |_, c| c.groups[0].members = vec![(1, priority)]);
        rig.start(1);
        rig.run(ms(5000));
        let src = IpAddr::from(zone_address(77, 1));
        let foreign = |rig: &mut Rig, priority| {
            for (zone, vrid) in [(1, 61), (2, 62)] {
                let addresses = vec![Ipv4Addr::new(10, zone, 1, 0).into()];
                let advert = Advert { vrid, priority, interval_cs: 100, addresses };
                rig.forge(1, zone, src, 255, advert.write(&Envelope::multicast(src), Checksum::Message));
            }
        };
        // Another owner of a greater address, against the rules, is the only one that it gives way to.
        foreign(&mut rig, 255);
        rig.run(ms(100));
        assert_eq!(rig.actives(0), []);
        for _ in 0..10 {
            foreign(&mut rig, 200);
            rig.run(ms(1000));
        }
        assert_eq!(rig.actives(0) == [1], wins, "{priority}");
    }
}

/// A rolling change of the file that puts a group before others: until all nodes have it, numbers do not mean the same.
#[test]
fn groups_are_known_by_their_names_where_files_number_them_otherwise() {
    let members = || vec![(1, 150), (2, 100)];
    let mut rig = Rig::new(2, 1, move |node, c| {
        let before: &[GroupId] = if node == 1 { &[0, 1] } else { &[2, 0, 1] };
        let numbered = before
            .iter()
            .zip(0..)
            .map(|(&name, number)| GroupConfig { group: number, ..group(name, members()) });
        (c.groups, c.config_hash) = (numbered.collect(), node.into());
    });
    rig.start(1);
    rig.run(ms(6000));
    let roles = |rig: &mut Rig, node, groups: &[GroupId]| -> Vec<Role> {
        let now = rig.now;
        let status = rig.election(node).status(now);
        groups.iter().map(|id| status.groups.iter().find(|g| g.group == *id).expect("a group").role).collect()
    };
    assert_eq!(roles(&mut rig, 1, &[0, 1]), [Role::Active; 2]);
    rig.start(2);
    rig.run(ms(10_000));
    assert_eq!(roles(&mut rig, 1, &[0, 1]), [Role::Active; 2]);
    assert_eq!(
        roles(&mut rig, 2, &[0, 1, 2]),
        [Role::Active, Role::Backup, Role::Backup],
        "only what nobody else has"
    );
    assert_eq!(rig.node(2).takeovers.len(), 1, "{:?}", rig.node(2).takeovers);
    rig.command(1, |e, now| e.switchover(now, 1, Some(2)).expect("an offer"));
    rig.run(ms(500));
    assert_eq!(roles(&mut rig, 1, &[0, 1]), [Role::Active, Role::Backup]);
    assert_eq!(roles(&mut rig, 2, &[0, 1, 2]), [Role::Active, Role::Backup, Role::Active]);
    rig.kill(1);
    rig.run_until(DEAD_LIMIT, |r| r.role(2, 1) == Some(Role::Active)).expect("a takeover");
}
