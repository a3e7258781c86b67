//! What is different between two tables, and how.

use super::*;

#[test]
fn tables_in_sync_do_not_differ() {
    let mut rig = settled(|_| {});
    (0..800).for_each(|n| rig.create(1, n));
    rig.converge(HEALED_WITHIN);
    for asker in [1, 2] {
        let digests = Summary { buckets: 256, ..Summary::default() };
        assert_eq!(diff(&mut rig, asker, false), (vec![], Ok(digests)));
        let listed = Summary { buckets_listed: 256, flows_listed: 800, ..digests };
        assert_eq!(diff(&mut rig, asker, true), (vec![], Ok(listed)));
    }
}

#[test]
fn every_flow_that_differs_is_shown_with_how() {
    let mut rig = settled(|_| {});
    (0..800).for_each(|n| rig.create(1, n));
    rig.converge(HEALED_WITHIN);
    let now = rig.now;
    let replica = &mut rig.node(2).replication;
    // So that nothing heals meanwhile.
    replica.reconcile_begin(Buckets::ALL);
    let hidden = replica.get(&Rig::key(3)).unwrap();
    replica.core.forget(now, &Rig::key(3), &hidden.id());
    let mut bend = |n: u16, change: fn(&mut Entry)| {
        let table = &mut replica.core.table;
        let i = table.find(&Rig::key(n)).unwrap();
        let mut entry = table.at(i).entry;
        change(&mut entry);
        table.replace(i, entry);
    };
    bend(4, |e| e.version += 1);
    bend(5, |e| e.id.number += 1);
    bend(6, |e| e.state = fwha_common::flow::FlowState::TimeWait as u8);
    let entry = replica.core.table.at(replica.core.table.find(&Rig::key(7)).unwrap()).entry;
    replica.core.table.insert(Rig::key(9007), entry);

    let expected = |mirrored: bool| {
        let (here, there) =
            if mirrored { (Kind::OnlyThere, Kind::OnlyHere) } else { (Kind::OnlyHere, Kind::OnlyThere) };
        vec![(3, here), (4, Kind::Version), (5, Kind::Identity), (9007, there)]
    };
    for asker in [1, 2] {
        let (found, end) = diff(&mut rig, asker, false);
        let number = |key| (0..10_000).find(|&n| Rig::key(n) == key).unwrap();
        let mut kinds: Vec<_> = found.iter().map(|d| (number(d.key), d.kind())).collect();
        kinds.sort_by_key(|k| k.0);
        assert_eq!(kinds, expected(asker == 2));
        let summary = end.unwrap();
        assert_eq!((summary.differences, summary.buckets_listed, summary.in_flight), (4, 4, 0));
        let only_there = found.iter().find(|d| d.here.is_none()).unwrap();
        assert_eq!(only_there.there.unwrap().state, fwha_common::flow::FlowState::Established);
    }
    let (found, _) = diff(&mut rig, 1, true);
    let state: Vec<_> = found.iter().filter(|d| d.kind() == Kind::State).map(|d| d.key).collect();
    assert_eq!(state, [Rig::key(6)], "digests do not tell it");
}

#[test]
fn what_does_not_fit_into_the_peers_table_is_shown() {
    let mut rig = settled(|o| o.max_flows = if o.identity.node == 2 { 50 } else { 100 });
    (0..80).for_each(|n| rig.create(1, n));
    rig.run(10_000 * MS);
    let (found, end) = diff(&mut rig, 1, false);
    let real: Vec<_> = found.iter().filter(|d| !d.in_flight).collect();
    assert!(real.iter().all(|d| d.kind() == Kind::OnlyHere), "{found:?}");
    assert_eq!((real.len(), end.unwrap().differences), (30, 30));
}

#[test]
fn changes_on_their_way_are_no_differences() {
    let mut in_flight = 0;
    for seed in 0..20 {
        let mut rig = Rig::pair(seed);
        rig.promote(1, Rig::used());
        rig.run(300 * MS);
        (0..200).for_each(|n| rig.create(1, n));
        rig.faults = Faults { loss: 3, duplicate: 3, corrupt: 1, jitter: MS };
        let now = rig.now;
        let asker = 1 + (seed % 2) as NodeId;
        rig.node(asker).replication.diff(now, 3 - asker, seed % 3 == 0).unwrap();
        while !rig.node(asker).found.iter().any(|f| matches!(f, Found::Done(_))) {
            let n = rig.rng.below(400) as u16;
            match rig.rng.below(3) {
                0 => rig.create(1, n),
                1 => rig.update(1, n),
                _ => rig.delete(1, n),
            }
            rig.run(MS / 2);
        }
        let Some(&Found::Done(summary)) = rig.node(asker).found.last() else { panic!() };
        let told = std::mem::take(&mut rig.node(asker).found);
        assert_eq!(summary.differences, 0, "seed {seed}: {told:?}");
        in_flight += summary.in_flight;
        rig.converge(HEALED_WITHIN);
    }
    assert!(in_flight > 100, "{in_flight}");
}

#[test]
fn a_long_comparison_survives_losses_and_ends_with_its_peer() {
    let mut rig = settled(|o| o.max_flows = 20_000);
    (0..10_000).for_each(|n| rig.create(1, n));
    rig.converge(HEALED_WITHIN);
    rig.faults = Faults { loss: 10, duplicate: 10, corrupt: 2, jitter: 2 * MS };
    let (found, end) = diff(&mut rig, 2, true);
    assert_eq!((found, end.unwrap().flows_listed), (vec![], 10_000));
    rig.faults = Faults::default();
    rig.run(1000 * MS);
    let now = rig.now;
    rig.node(2).replication.diff(now, 1, true).unwrap();
    rig.run(5 * MS);
    rig.kill(1);
    rig.run(3000 * MS);
    assert_eq!(rig.node(2).found, [Found::Failed(Failure::Lost(SyncState::Silent))]);
    assert_eq!(rig.node(2).replication.diff(now, 1, true), Err(Unready::State(SyncState::Silent)));
}
