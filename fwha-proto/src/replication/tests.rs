//! Two and more nodes, seeded faults, virtual time.

use std::time::Duration;

use super::rig::{Faults, Rig, USED};
use crate::NodeId;

const MS: Duration = Duration::from_millis(1);
const HEALED_WITHIN: Duration = Duration::from_secs(20);

#[test]
fn what_the_owner_has_is_on_the_peer_within_milliseconds() {
    let mut rig = Rig::pair(1);
    rig.promote(1, Rig::used());
    rig.run(500 * MS);
    assert!(rig.in_sync(), "{rig}");
    for n in 0..100 {
        rig.create(1, n);
    }
    rig.run(5 * MS);
    assert_eq!(rig.difference(), None);
    assert_eq!(rig.node(2).kernel.len(), 100);
    for n in 0..100 {
        match n % 3 {
            0 => rig.update(1, n),
            1 => rig.delete(1, n),
            _ => {}
        }
    }
    rig.run(5 * MS);
    assert_eq!(rig.difference(), None);
    assert_eq!(rig.node(2).kernel.len(), 67);
    rig.converge(HEALED_WITHIN);
}

/// Anything may happen to the network, the daemons and the roles; then it heals.
fn storm(rig: &mut Rig, steps: u64) {
    let nodes = rig.nodes.len() as u64;
    rig.promote(1, Rig::used());
    let faults = [
        Faults::default(),
        Faults { loss: 5, duplicate: 5, corrupt: 2, jitter: 3 * MS },
        Faults { loss: 50, duplicate: 20, corrupt: 10, jitter: 30 * MS },
    ];
    for _ in 0..steps {
        let any = 1 + rig.rng.below(nodes) as NodeId;
        let n = rig.rng.below(64) as u16;
        match rig.rng.below(1000) {
            0..400 => (1..=nodes as NodeId).for_each(|id| rig.create(id, n)),
            400..650 => (1..=nodes as NodeId).for_each(|id| rig.update(id, n)),
            650..850 => (1..=nodes as NodeId).for_each(|id| rig.delete(id, n)),
            850..920 => {
                let time = rig.rng.below(40) as u32;
                rig.run(time * MS);
            }
            920..940 => rig.faults = faults[rig.rng.below(3) as usize],
            940..950 => {
                let to = 1 + rig.rng.below(nodes) as NodeId;
                rig.cut.push((any, to));
            }
            950..960 => rig.cut.clear(),
            960..972 if rig.node(any).up => {
                // A takeover. The former owners learn of it now, later, or never.
                let buckets = if rig.rng.percent(50) { Rig::used() } else { (0..USED / 2).collect() };
                rig.promote(any, buckets);
                for other in (1..=nodes as NodeId).filter(|&o| o != any) {
                    if rig.rng.percent(70) {
                        rig.demote(other, buckets);
                    }
                }
            }
            972..980 => rig.kill(any),
            980..990 if !rig.node(any).up => {
                let rebooted = rig.rng.percent(50);
                rig.revive(any, rebooted);
            }
            990..994 if rig.node(any).up => rig.restart_owner(any),
            994..997 if rig.node(any).up => rig.reconcile(any),
            997 => rig.node(any).replication.request_bulk(None),
            998 => {
                let now = rig.now;
                rig.node(any).replication.request_resync(now, None);
            }
            _ => {}
        }
    }
    // The election does its work: every bucket has one owner that is up, in the highest term.
    for id in 1..=nodes as NodeId {
        if !rig.node(id).up {
            rig.revive(id, true);
        }
    }
    let owner = 1 + rig.rng.below(nodes) as NodeId;
    rig.promote(owner, Rig::used());
    for id in (1..=nodes as NodeId).filter(|&id| id != owner) {
        rig.demote(id, Rig::used());
    }
    rig.converge(HEALED_WITHIN);
}

#[test]
fn two_nodes_survive_every_storm() {
    for seed in 0..1500 {
        storm(&mut Rig::pair(seed), 300);
    }
}

#[test]
fn three_nodes_survive_every_storm() {
    for seed in 0..400 {
        storm(&mut Rig::new(3, seed, |_| {}), 300);
    }
}
