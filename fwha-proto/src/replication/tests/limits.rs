//! What grows, and to what.

use super::*;

#[test]
fn a_dead_peer_costs_nothing_that_grows() {
    let mut rig = settled(|o| {
        o.max_flows = 100_000;
        o.queue_max = 1000;
    });
    rig.kill(2);
    for n in 0..60_000u16 {
        rig.create(1, n);
        if n % 3 > 0 {
            rig.delete(1, n);
        }
        if n % 20 == 0 {
            rig.run(MS);
            let status = rig.nodes[0].replication.status(rig.now).next().unwrap();
            assert!(status.queued <= 1000 && status.unacked <= 512);
            assert!(rig.nodes[0].replication.core.table.dead() < 40_000);
        }
    }
    rig.run(1000 * MS);
    let status = rig.nodes[0].replication.status(rig.now).next().unwrap();
    assert_eq!((status.state, status.queued), (SyncState::Silent, 0));
    assert_eq!(rig.nodes[0].replication.core.table.dead(), 0);
    assert!(rig.node(1).events.contains(&Event::Overflow { peer: 2 }));
    rig.revive(2, true);
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(2).kernel.len(), 20_000);
}

#[test]
fn what_the_queue_had_no_room_for_is_at_risk_and_late_until_it_is_there() {
    let mut rig = settled(|o| {
        o.queue_max = 16;
        o.bulk_bytes_per_s = 1_000_000;
        o.max_flows = 10_000;
    });
    assert_eq!(rig.nodes[0].replication.at_risk(), 0);
    (0..2000).for_each(|n| rig.create(1, n));
    assert_eq!((counters(&rig, 1).overflow, rig.nodes[0].replication.at_risk()), (1984, 2000));
    rig.run(20 * MS);
    let status = rig.nodes[0].replication.status(rig.now).next().unwrap();
    assert_eq!((status.state, status.queued, status.lag), (SyncState::Bulk, 0, 20 * MS));
    let there = rig.node(2).kernel.len() as u64;
    assert!((50..1000).contains(&there), "1 MB/s are some 400 flows in 20 ms: {there}");
    assert!((2000 - there..2000).contains(&rig.nodes[0].replication.at_risk()));
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.nodes[0].replication.at_risk(), 0);
    // What an operator has sent once more is there already.
    let _ = rig.node(1).replication.request_bulk(None);
    let status = rig.nodes[0].replication.status(rig.now).next().unwrap();
    assert_eq!((status.state, status.lag), (SyncState::Bulk, Duration::ZERO));
    assert_eq!(rig.nodes[0].replication.at_risk(), 0);
}

#[test]
fn the_lag_of_a_silent_peer_is_that_of_the_oldest_change_it_has_missed() {
    let mut rig = settled(|_| {});
    let lag = |rig: &Rig| rig.nodes[0].replication.status(rig.now).next().unwrap().lag;
    rig.cut = vec![(1, 2), (2, 1)];
    rig.run(4000 * MS);
    assert_eq!((state(&rig, 1), lag(&rig)), (SyncState::Silent, Duration::ZERO), "it has missed nothing");
    rig.create(1, 1);
    rig.run(500 * MS);
    rig.create(1, 2);
    rig.run(500 * MS);
    assert_eq!(lag(&rig), 1000 * MS);
    rig.converge(HEALED_WITHIN);
    assert_eq!(lag(&rig), Duration::ZERO);
    rig.create(1, 3);
    rig.cut = vec![(1, 2), (2, 1)];
    rig.run(4000 * MS);
    assert_eq!((state(&rig, 1), lag(&rig)), (SyncState::Silent, 4000 * MS), "it was on its way");
    rig.converge(HEALED_WITHIN);
}

#[test]
fn deletions_that_are_too_many_to_be_kept_are_no_full_queue() {
    let mut rig = settled(|o| o.max_flows = 10_000);
    (0..5000).for_each(|n| rig.create(1, n));
    rig.run(500 * MS);
    (0..5000).for_each(|n| rig.delete(1, n));
    let c = counters(&rig, 1);
    assert!(c.deletions_dropped > 800, "{}", c.deletions_dropped);
    assert_eq!(c.overflow, 0);
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(2).kernel.len(), 0);
    assert!(!rig.node(1).events.contains(&Event::Overflow { peer: 2 }));
}

#[test]
fn what_only_a_node_holds_that_may_not_own_it_is_at_risk() {
    let mut rig = Rig::new(3, 1, |o| {
        let group = |buckets, members: &[NodeId]| GroupOptions { buckets, members: members.into() };
        o.groups = vec![group((0..8).collect(), &[1, 2]), group((8..16).collect(), &[3, 1])];
    });
    rig.promote(1, Rig::used());
    rig.run(500 * MS);
    (0..32).for_each(|n| rig.create(1, n));
    rig.run(500 * MS);
    assert_eq!(rig.nodes[0].replication.at_risk(), 0);
    rig.kill(2);
    rig.run(4000 * MS);
    assert_eq!(rig.nodes[0].replication.at_risk(), 16);
    rig.kill(3);
    rig.run(4000 * MS);
    assert_eq!(rig.nodes[0].replication.at_risk(), 32);
}

#[test]
fn a_full_table_refuses_counts_and_does_not_storm() {
    let mut rig = settled(|o| o.max_flows = if o.identity.node == 2 { 50 } else { 100 });
    (0..80).for_each(|n| rig.create(1, n));
    rig.run(10_000 * MS);
    assert_eq!(rig.node(2).kernel.len(), 50);
    let c = counters(&rig, 2);
    assert!(c.rejected_full >= 30);
    assert!(c.bulk_started < 16, "healing that does not help gets rarer: {}", c.bulk_started);
    assert_eq!(state(&rig, 2).max(state(&rig, 1)), SyncState::Diverged);
    let warning = Warning::CapacityDiffers { ours: 50, theirs: 100 };
    assert!(rig.node(2).events.contains(&Event::Warning { peer: 1, warning }));
    (0..40).for_each(|n| rig.delete(1, n));
    rig.converge(Duration::from_secs(120));
}

#[test]
fn a_flow_of_a_zone_that_is_not_configured_is_refused() {
    let mut rig = settled(|o| o.zones = if o.identity.node == 2 { vec![11] } else { vec![11, 12] });
    rig.create(1, 1);
    rig.run(100 * MS);
    assert!(counters(&rig, 2).rejected_zone > 0);
    assert!(rig.node(2).kernel.is_empty());
}

#[test]
fn replication_that_is_off_says_and_takes_nothing() {
    let mut rig = Rig::new(2, 1, |o| o.enabled = o.identity.node == 1);
    rig.promote(1, Rig::used());
    rig.promote(2, Buckets::one(200));
    rig.create(1, 1);
    rig.run(1000 * MS);
    assert_eq!((state(&rig, 1), state(&rig, 2)), (SyncState::Down, SyncState::Disabled));
    assert!(rig.node(2).kernel.is_empty());
    assert!(rig.nodes[1].replication.counters().disabled > 0);
    assert_eq!(counters(&rig, 2).datagrams_sent, 0);
    assert_eq!(rig.nodes[1].replication.next_timeout(), Time::NEVER);
}
