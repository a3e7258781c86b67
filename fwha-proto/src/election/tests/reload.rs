//! Another cluster file while the cluster runs.

use super::*;
use crate::vrrp::packet::PRIORITY_RELEASE;

/// Gives a node the groups of the rig's file, changed.
fn reload(rig: &mut Rig, n: NodeId, hash: u64, change: impl Fn(&mut GroupConfig)) {
    let mut groups = rig.election(n).config.groups.clone();
    groups.iter_mut().for_each(change);
    let trackers = rig.election(n).config.trackers.clone();
    rig.command(n, |e, now| e.reload(now, hash, groups, trackers, vec![])).expect("a good file");
}

fn hears(rig: &mut Rig, n: NodeId) -> Vec<bool> {
    let now = rig.now;
    rig.election(n).status(now).groups[0].hears.clone()
}

/// A virtual router more, first in the list: the others have other places then.
fn one_more(g: &mut GroupConfig) {
    g.instances.insert(
        0,
        Instance { vrid: 99, addresses: vec![Ipv4Addr::new(10, 1, 1, 99).into()], ..g.instances[0].clone() },
    );
}

#[test]
fn virtual_routers_come_and_go_and_roles_and_terms_stay() {
    let mut rig = Rig::pair(1);
    rig.run(ms(5000));
    let then = rig.now;
    reload(&mut rig, 1, 2, one_more);
    let seen = rig.node(1).adverts.iter().filter(|(at, ..)| *at >= then).count();
    assert_eq!(seen, 1, "the new one speaks at once, and it alone");
    rig.run(ms(10_000));
    assert_eq!(rig.election(2).status(then).peers[0].other_config, Some(2));
    reload(&mut rig, 2, 2, one_more);
    rig.run(ms(1500));
    assert_eq!(hears(&mut rig, 2), [true; 3]);
    assert_eq!(rig.election(2).status(then).peers[0].other_config, None);
    let other_addresses = rig.counter(2, "vrrp_rx", "other_addresses");
    reload(&mut rig, 1, 3, |g| g.instances[1].addresses.push(Ipv4Addr::new(10, 1, 1, 98).into()));
    reload(&mut rig, 2, 3, |g| g.instances[1].addresses.push(Ipv4Addr::new(10, 1, 1, 98).into()));
    rig.run(ms(10_000));
    assert_eq!(rig.counter(2, "vrrp_rx", "other_addresses"), other_addresses, "it carries both");

    let before = rig.now;
    for node in [2, 1] {
        reload(&mut rig, node, 4, |g| drop(g.instances.remove(0)));
    }
    rig.run(ms(10_000));
    let released = |a: &&(Time, GroupId, u8)| a.0 >= before && a.2 == PRIORITY_RELEASE;
    assert_eq!(rig.node(1).adverts.iter().filter(released).count(), 1, "the one that is gone");
    assert_eq!(hears(&mut rig, 2), [true; 2]);
    for node in [1, 2] {
        let told: Vec<_> = rig
            .events(node, then)
            .into_iter()
            .filter(|e| !matches!(e, Event::ConfigDiffers { .. }))
            .collect();
        assert!(told.is_empty(), "{told:?}");
    }
    assert_eq!((rig.actives(0), &rig.node(1).takeovers.len()), (vec![1], &1));
    assert!(rig.node(1).announced.iter().all(|(at, _)| *at < then), "nobody is told of what stays");
}

#[test]
fn a_preferred_node_waits_until_both_have_the_same_file() {
    let mut rig = Rig::pair_with(1, |_, c| c.groups[0].preempt = true);
    rig.run(ms(2000));
    reload(&mut rig, 2, 2, |g| g.members = vec![(2, 200), (1, 100)]);
    rig.run(ms(30_000));
    assert_eq!(rig.actives(0), [1], "the group may have other addresses there");
    let now = rig.now;
    let because = rig.election(2).explain(now)[0].because.join("; ");
    assert!(because.contains("fw1 has another cluster file"), "{because}");
    reload(&mut rig, 1, 2, |g| g.members = vec![(2, 200), (1, 100)]);
    rig.run(ms(1000));
    assert_eq!(rig.actives(0), [2]);
}

#[test]
fn preferences_change_in_place() {
    let mut rig = Rig::pair(1);
    let prefer_2 = |g: &mut GroupConfig| g.members = vec![(2, 200), (1, 100)];
    for node in [1, 2] {
        reload(&mut rig, node, 2, prefer_2);
    }
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1], "without preemption nothing moves");
    let now = rig.now;
    assert_eq!(rig.election(2).status(now).groups[0].priority, 200);
    for node in [1, 2] {
        reload(&mut rig, node, 3, |g| g.preempt = true);
    }
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [2]);
    rig.kill(2);
    rig.run(ms(5000));
    assert_eq!(rig.actives(0), [1]);
}

#[test]
fn a_shorter_interval_is_advertised_before_anybody_needs_it() {
    let mut rig = Rig::pair(1);
    for node in [1, 2] {
        reload(&mut rig, node, 2, |g| g.advert_interval_cs = 20);
    }
    rig.run(ms(500));
    let then = rig.now;
    rig.run(ms(2000));
    let adverts = rig.node(1).adverts.iter().filter(|(at, ..)| *at >= then).count();
    assert!((18..=22).contains(&adverts), "{adverts} of two virtual routers in 2 s");
    assert_eq!(hears(&mut rig, 2), [true; 2]);
}

#[test]
fn a_zone_counts_while_the_group_has_addresses_there() {
    let mut rig = Rig::pair(1);
    let without_lan = |g: &mut GroupConfig| g.instances.retain(|i| i.zone != 2);
    let instance = rig.election(1).config.groups[0].instances[1].clone();
    rig.carrier(2, LAN, false);
    rig.run(ms(100));
    assert_eq!(rig.role(2, 0), Some(Role::Fault));
    reload(&mut rig, 2, 2, without_lan);
    rig.run(ms(100));
    assert_eq!(rig.role(2, 0), Some(Role::Backup));
    reload(&mut rig, 2, 1, |g| g.instances.push(instance.clone()));
    rig.run(ms(100));
    assert_eq!(rig.role(2, 0), Some(Role::Fault));
}

#[test]
fn a_bad_file_changes_nothing() {
    let mut rig = Rig::pair(1);
    let mut groups = rig.election(1).config.groups.clone();
    groups[0].instances[0].vrid = 0;
    assert!(rig.command(1, |e, now| e.reload(now, 9, groups, vec![], vec![])).is_err());
    assert_eq!(
        (rig.election(1).config.config_hash, rig.election(1).config.groups[0].instances[0].vrid),
        (1, 61)
    );
}

#[test]
fn announcements_repeat_as_configured_and_are_refreshed_by_the_active_alone() {
    let seconds = |list: &[u64]| list.iter().map(|&s| ms(s * 1000)).collect();
    let mut rig = Rig::pair_with(1, move |_, c| {
        c.groups[0].announce = Announce { repeat: seconds(&[2]), refresh: None };
    });
    rig.run(ms(60_000));
    let took = rig.node(1).takeovers[0].0;
    let since = |rig: &Rig, n, from: Time| -> Vec<u64> {
        let times = rig.node(n).announced.iter().filter(|(at, _)| *at >= from);
        times.map(|(at, _)| at.since(from).as_millis() as u64 / 1000).collect()
    };
    assert_eq!(since(&rig, 1, took), [0, 2]);

    let then = rig.now;
    for n in [1, 2] {
        reload(&mut rig, n, 2, |g| g.announce.refresh = Some(ms(10_000)));
    }
    rig.run(ms(35_000));
    assert_eq!(since(&rig, 1, then), [10, 20, 30], "from now on, without a takeover");
    let moved = rig.now;
    rig.kill(1);
    rig.run(ms(25_000));
    assert_eq!(since(&rig, 2, then).len(), 4, "the Backup was silent before");
    assert_eq!(since(&rig, 2, moved), [0, 2, 12, 22]);
    let then = rig.now;
    reload(&mut rig, 2, 3, |g| g.announce.refresh = None);
    rig.run(ms(30_000));
    assert_eq!(since(&rig, 2, then), [0; 0]);
}
