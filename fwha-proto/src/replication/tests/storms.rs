//! Faults of all kinds at once; then all heals, and every node knows the same.

use super::*;

/// Anything may happen to the network, the daemons and the roles; then it heals.
fn storm(rig: &mut Rig, steps: u64) {
    let nodes = rig.nodes.len() as NodeId;
    rig.promote(1, Rig::used());
    let faults = [
        Faults::default(),
        Faults { loss: 5, duplicate: 5, corrupt: 2, jitter: 3 * MS },
        Faults { loss: 50, duplicate: 20, corrupt: 10, jitter: 30 * MS },
    ];
    for _ in 0..steps {
        let any = 1 + rig.rng.below(nodes.into()) as NodeId;
        let n = rig.rng.below(64) as u16;
        let up = rig.node(any).up;
        match rig.rng.below(1000) {
            0..400 => (1..=nodes).for_each(|id| rig.create(id, n)),
            400..640 => (1..=nodes).for_each(|id| rig.update(id, n)),
            640..840 => (1..=nodes).for_each(|id| rig.delete(id, n)),
            840..850 => rig.change_unseen(any, n),
            850..920 => {
                let time = rig.rng.below(40) as u32;
                rig.run(time * MS);
            }
            920..940 => rig.faults = faults[rig.rng.below(3) as usize],
            940..950 => {
                let to = 1 + rig.rng.below(nodes.into()) as NodeId;
                rig.cut.push((any, to));
            }
            950..960 => rig.cut.clear(),
            960..972 if up => {
                // A takeover. The former owners learn of it now, or later.
                let buckets = if rig.rng.percent(50) { Rig::used() } else { (0..USED / 2).collect() };
                rig.promote(any, buckets);
                for other in (1..=nodes).filter(|&o| o != any) {
                    if rig.rng.percent(70) {
                        rig.demote(other, buckets);
                    }
                }
            }
            972..980 => rig.kill(any),
            980..990 if !up => {
                let rebooted = rig.rng.percent(50);
                rig.revive(any, rebooted);
            }
            990..993 if up => rig.restart_owner(any),
            993..996 if up => rig.reconcile(any),
            996 => rig.run(2500 * MS),
            997 => drop(rig.node(any).replication.request_bulk(None)),
            998 => {
                let now = rig.now;
                let _ = rig.node(any).replication.request_resync(now, None);
            }
            _ => {
                let now = rig.now;
                let peer = 1 + rig.rng.below(nodes.into()) as NodeId;
                // With itself, or with one that is gone, there is nothing to compare.
                let _ = rig.node(any).replication.diff(now, peer, peer == 1);
            }
        }
    }
    // The election does its work: every bucket has one owner that is up, in the highest term.
    for id in 1..=nodes {
        if !rig.node(id).up {
            rig.revive(id, true);
        }
    }
    let owner = 1 + rig.rng.below(nodes.into()) as NodeId;
    rig.promote(owner, Rig::used());
    for id in (1..=nodes).filter(|&id| id != owner) {
        rig.demote(id, Rig::used());
    }
    for id in 1..=nodes {
        if rig.node(id).blind {
            rig.reconcile(id);
        }
    }
    rig.converge(HEALED_WITHIN);
    if nodes == 2 && rig.rng.percent(20) {
        let (found, end) = diff(rig, owner, true);
        assert!(found.is_empty() && end.is_ok_and(|s| s.in_flight == 0), "{end:?} {found:?}");
    }
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

#[test]
fn five_nodes_survive_every_storm() {
    for seed in 0..100 {
        storm(&mut Rig::new(5, seed, |_| {}), 300);
    }
}

#[test]
fn small_queues_and_tables_survive_every_storm() {
    for seed in 0..500 {
        let options: fn(&mut Options) = |o| {
            o.queue_max = 4;
            o.max_flows = 40;
            o.mtu = 1280;
            o.bulk_bytes_per_s = 100_000;
        };
        storm(&mut Rig::new(2, seed, options), 300);
    }
}
