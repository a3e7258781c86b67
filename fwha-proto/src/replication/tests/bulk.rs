//! Whole tables at once, and the proof that they are the same.

use super::*;

#[test]
fn a_fresh_peer_gets_everything_while_live_changes_go_first() {
    let mut rig = Rig::new(2, 1, |o| {
        o.max_flows = 20_000;
        o.bulk_bytes_per_s = 2_000_000;
    });
    rig.kill(2);
    rig.promote(1, Rig::used());
    (0..20_000).for_each(|n| rig.create(1, n));
    rig.run(100 * MS);
    rig.revive(2, true);
    let mut worst = Duration::ZERO;
    let mut bulk_seen = 0;
    for n in 0..300 {
        rig.update(1, n);
        rig.delete(1, 19_999 - n);
        rig.run(2 * MS);
        let status = rig.nodes[0].replication.status(rig.now).next().unwrap();
        worst = worst.max(status.lag);
        bulk_seen += usize::from(status.state == SyncState::Bulk && status.sending.is_some());
    }
    assert!(bulk_seen > 100, "a bulk at 2 MB/s takes about half a second");
    assert!(worst < 10 * MS, "live changes waited {worst:?}");
    rig.converge(HEALED_WITHIN);
    let c = counters(&rig, 1);
    assert_eq!((c.bulk_started, c.bulk_finished), (1, 1));
    let finished = |e: &&Event| matches!(e, Event::BulkReceived { peer: 1, swept: 0, .. });
    assert_eq!(rig.node(2).events.iter().filter(finished).count(), 1);
}

#[test]
fn a_bulk_is_no_faster_than_its_rate() {
    let mut rig = Rig::new(2, 1, |o| {
        o.max_flows = 20_000;
        o.bulk_bytes_per_s = 100_000;
    });
    rig.kill(2);
    rig.promote(1, Rig::used());
    (0..20_000).for_each(|n| rig.create(1, n));
    rig.run(100 * MS);
    rig.revive(2, true);
    rig.run(1000 * MS);
    // Some 60 bytes each, in datagrams that take what is earned in 14 ms.
    let sent = counters(&rig, 1).bulk_records_sent;
    assert!((500..4000).contains(&sent), "{sent}");
}

#[test]
fn an_operator_sends_or_asks_for_everything_and_sees_how_far_it_is() {
    let mut rig = settled(|o| {
        o.max_flows = 20_000;
        o.bulk_bytes_per_s = 2_000_000;
    });
    (0..5000).for_each(|n| rig.create(1, n));
    rig.run(500 * MS);
    let everything = Ok(usize::from(USED));
    for asker in [1, 2] {
        let now = rig.now;
        let requested = match &mut rig.node(asker).replication {
            owner if asker == 1 => owner.request_bulk(Some(2)),
            replica => replica.request_resync(now, None),
        };
        assert_eq!(requested, [(3 - asker, everything)]);
        let progress = |rig: &Rig, id: NodeId| {
            let status = rig.nodes[usize::from(id) - 1].replication.status(rig.now).next().unwrap();
            if id == 1 { status.sending } else { status.receiving }
        };
        assert_eq!(progress(&rig, asker).unwrap().buckets_left, usize::from(USED), "at once");
        rig.run(50 * MS);
        for id in [1, 2] {
            let p = progress(&rig, id).unwrap();
            assert_eq!(p.flows_total, 5000);
            assert!(p.flows_done > 500 && (1..usize::from(USED)).contains(&p.buckets_left), "{p:?}");
            let whole = p.elapsed + p.remaining().unwrap();
            assert!(whole > 60 * MS && whole < 400 * MS, "some 300 kB at 2 MB/s: {p:?}");
        }
        rig.converge(HEALED_WITHIN);
        assert_eq!((progress(&rig, 1), progress(&rig, 2)), (None, None));
    }
    assert_eq!(counters(&rig, 1).bulk_records_sent, 10_000);
}

#[test]
fn what_another_node_owns_by_now_was_not_sent() {
    let mut rig = settled(|o| {
        o.max_flows = 20_000;
        o.bulk_bytes_per_s = 2_000_000;
    });
    (0..5000).for_each(|n| rig.create(1, n));
    rig.run(500 * MS);
    let finished = |rig: &Rig| [1, 2].map(|id| counters(rig, id).bulk_finished);
    let before = finished(&rig);
    let asked = rig.node(1).replication.request_bulk(Some(2));
    assert_eq!(asked, [(2, Ok(usize::from(USED)))]);
    rig.run(50 * MS);
    rig.promote(2, Rig::used());
    rig.demote(1, Rig::used());
    rig.run(20 * MS);
    // The new owner's own comes later.
    assert_eq!(finished(&rig), before);
    assert!(rig.node(1).events.iter().any(|e| matches!(e, Event::BulkCut { peer: 2, flows: 501.. })));
}

#[test]
fn what_cannot_be_sent_or_asked_for_is_refused_with_the_reason() {
    let mut rig = settled(|_| {});
    let now = rig.now;
    let nothing = [(2, Err(Unready::OwnsNothing))];
    assert_eq!(rig.node(1).replication.request_resync(now, None), nothing);
    assert_eq!(rig.node(2).replication.request_bulk(None), [(1, Err(Unready::OwnsNothing))]);
    rig.kill(2);
    rig.run(3000 * MS);
    assert_eq!(rig.node(1).replication.request_bulk(None), [(2, Err(Unready::State(SyncState::Silent)))]);
    rig.revive(1, false);
    assert_eq!(rig.node(1).replication.request_bulk(None), [(2, Err(Unready::State(SyncState::Down)))]);
}

#[test]
fn what_the_owner_does_not_mention_is_swept() {
    let mut rig = settled(|_| {});
    (0..50).for_each(|n| rig.create(1, n));
    rig.run(5 * MS);
    rig.cut = vec![(1, 2), (2, 1)];
    (0..25).for_each(|n| rig.delete(1, n));
    rig.run(5000 * MS);
    assert_eq!((state(&rig, 1), rig.node(2).kernel.len()), (SyncState::Silent, 50));
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(2).kernel.len(), 25);
    assert_eq!(counters(&rig, 2).swept, 25);
}

#[test]
fn a_difference_nobody_knows_of_is_found_and_heals_alone() {
    let mut rig = settled(|_| {});
    (0..160).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    let now = rig.now;
    // As if memory had failed on node 2.
    let flow = rig.node(2).kernel.remove(&Rig::key(3)).unwrap();
    rig.node(2).replication.local_delete(now, &Rig::key(3), &flow.id());
    rig.run(1500 * MS);
    assert_eq!(rig.difference(), None);
    assert_eq!(counters(&rig, 1).bulk_records_sent, 10, "one bucket of sixteen");
    assert!(rig.node(2).events.contains(&Event::Differs { peer: 1, buckets: 1 }));
    rig.converge(HEALED_WITHIN);
}

#[test]
fn lost_events_are_made_good_by_reconciliation() {
    let mut rig = settled(|_| {});
    (0..40).for_each(|n| rig.create(1, n));
    (0..20).for_each(|n| rig.change_unseen(1, n));
    rig.run(10 * MS);
    assert!(rig.difference().is_some());
    rig.reconcile(1);
    rig.converge(HEALED_WITHIN);
    let local = *rig.nodes[0].replication.counters();
    assert_eq!((local.reconciled, local.vanished), (10, 10));
}

#[test]
fn a_state_that_no_event_told_is_made_good_on_all_nodes() {
    let mut rig = Rig::new(3, 1, |_| {});
    rig.promote(1, Rig::used());
    rig.run(500 * MS);
    (0..40).for_each(|n| rig.create(1, n));
    rig.run(100 * MS);
    // The data plane could not give this change a version of its own, see `change` in fwha-ebpf.
    let changed = |rig: &mut Rig, id: NodeId, state| {
        let flow = rig.node(id).kernel.get_mut(&Rig::key(3)).unwrap();
        flow.word = Flow::with_state(flow.word, state);
    };
    changed(&mut rig, 1, FlowState::FinWait);
    assert!(rig.difference().is_some());
    rig.reconcile(1);
    rig.run(100 * MS);
    assert_eq!(rig.difference(), None);
    assert_eq!(rig.nodes[0].replication.counters().reconciled, 1);
    // Of a bucket of another owner the kernel map proves nothing.
    changed(&mut rig, 2, FlowState::Established);
    rig.reconcile(2);
    assert_eq!(rig.nodes[1].replication.counters().reconciled, 0);
    assert_eq!(rig.nodes[1].replication.get(&Rig::key(3)).unwrap().state(), FlowState::FinWait);
    changed(&mut rig, 2, FlowState::FinWait);
    rig.converge(HEALED_WITHIN);
}

/// The sweeper finds that flow 1 has expired; then its key is used again, and the deletion takes the new flow. Node 1 hears of
/// the new flow and of the deletion in either order.
#[test]
fn a_flow_that_was_deleted_in_place_of_the_one_before_is_written_back() {
    let orders = [true, false].into_iter();
    for (event_first, min_age_ms) in orders.flat_map(|first| [(first, 0), (first, 50)]) {
        let mut rig = match min_age_ms {
            0 => settled(|_| {}),
            _ => settled(|options| options.filter.min_age = Duration::from_millis(50)),
        };
        rig.create(1, 1);
        rig.run(100 * MS);
        let (now, key) = (rig.now, Rig::key(1));
        let old = rig.node(1).kernel.remove(&key).unwrap();
        let tell = |rig: &mut Rig| rig.node(1).replication.local_delete(now, &key, &old.id());
        if !event_first {
            tell(&mut rig);
        }
        // Of the event: it is handled only after the deletion.
        rig.create_undrained(1, 1);
        let new = rig.node(1).kernel.remove(&key).unwrap();
        if event_first {
            tell(&mut rig);
        }
        rig.drain(1);
        assert_eq!(rig.node(1).kernel.get(&key).map(Flow::id), Some(new.id()), "{event_first} {min_age_ms}");
        rig.run(200 * MS);
        rig.converge(HEALED_WITHIN);
        assert_eq!(rig.node(2).kernel.get(&key).map(Flow::id), Some(new.id()));
        // One that is there stays as it is.
        rig.update(1, 1);
        let there = rig.node(1).kernel[&key];
        rig.node(1).replication.local_delete(now, &key, &old.id());
        rig.drain(1);
        assert_eq!(rig.node(1).kernel[&key], there);
    }
}

#[test]
fn a_replica_writes_again_what_the_kernel_map_has_missed() {
    let mut rig = settled(|_| {});
    (0..3).for_each(|n| rig.create(1, n));
    rig.run(10 * MS);
    let right = rig.node(2).kernel.clone();
    for flow in rig.node(2).kernel.values_mut() {
        flow.version -= 1;
    }
    rig.reconcile(2);
    assert_eq!(rig.node(2).kernel, right);
}

#[test]
fn what_a_peer_says_again_is_no_proof_that_the_kernel_map_has_it() {
    let mut rig = settled(|_| {});
    (0..3).for_each(|n| rig.create(1, n));
    rig.run(10 * MS);
    let right = rig.node(2).kernel.clone();
    let key = *right.keys().next().unwrap();
    // It had no room when it was told, and while the tables are compared it is told once more.
    rig.node(2).kernel.remove(&key);
    rig.node(2).replication.reconcile_begin(Buckets::ALL);
    let _ = rig.node(1).replication.request_bulk(None);
    rig.run(100 * MS);
    assert!(!rig.node(2).kernel.contains_key(&key), "it is not written twice");
    let (now, kernel) = (rig.now, rig.node(2).kernel.clone());
    for (key, flow) in &kernel {
        rig.node(2).replication.reconcile_seen(now, key, flow);
    }
    rig.node(2).replication.reconcile_end(now);
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(2).kernel, right);
}

#[test]
fn an_owner_proves_nothing_while_it_reconciles() {
    let mut rig = settled(|_| {});
    (0..40).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    let (now, kernel) = (rig.now, rig.node(1).kernel.clone());
    rig.restart_owner(1);
    // The walk has begun anew and takes long: an empty table must not be taken for the truth.
    rig.node(1).replication.reconcile_begin(Buckets::ALL);
    for key in kernel.keys() {
        let id = kernel[key].id();
        rig.node(1).replication.core.forget(now, key, &id);
    }
    let _ = rig.node(1).replication.request_bulk(None);
    rig.run(3000 * MS);
    assert_eq!(rig.node(2).kernel.len(), 40);
    assert_ne!(state(&rig, 1), SyncState::InSync);
}
