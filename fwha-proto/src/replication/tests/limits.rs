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
