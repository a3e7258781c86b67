//! Owners, former owners, and those between.

use super::*;

#[test]
fn a_former_owner_that_comes_back_learns_what_happened_since() {
    let mut rig = settled(|_| {});
    (0..64).for_each(|n| rig.create(1, n));
    rig.run(5 * MS);
    rig.kill(1);
    rig.promote(2, Rig::used());
    for n in 0..64 {
        match n % 4 {
            0 => rig.delete(2, n),
            1 => rig.update(2, n),
            2 => {
                rig.delete(2, n);
                rig.create(2, n);
            }
            _ => {}
        }
    }
    rig.run(3000 * MS);
    assert_eq!(state(&rig, 2), SyncState::Silent);
    rig.revive(1, false);
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(1).kernel.len(), 48);
    let c = counters(&rig, 2);
    assert_eq!((c.bulk_started, c.bulk_finished), (1, 1), "only what differed was sent");
    assert_eq!(c.bulk_records_sent, 32, "unchanged buckets were not");
}

#[test]
fn a_stale_owner_is_refused_until_it_knows() {
    let mut rig = settled(|_| {});
    rig.cut = vec![(1, 2), (2, 1)];
    rig.run(10 * MS);
    rig.promote(2, Rig::used());
    rig.run(LATE);
    rig.create(1, 1);
    rig.create(2, 17);
    rig.cut = vec![(2, 1)];
    rig.run(400 * MS);
    assert!(counters(&rig, 2).rejected_owned > 0);
    assert_eq!(rig.node(2).kernel.len(), 1, "only its own");
    rig.cut.clear();
    rig.run(1000 * MS);
    let now = rig.now;
    let refused = rig.node(1).replication.set_ownership(now, Buckets::one(1), Ownership::Owned { term: 1 });
    assert_eq!(refused, Buckets::one(1), "a higher term is known");
    rig.demote(1, Rig::used());
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(1).kernel.len(), 1, "its own flow was never anybody else's");
}

#[test]
fn what_a_former_owner_did_before_it_knew_is_not_lost() {
    let mut rig = settled(|_| {});
    // Changes 1, 2 and 5 are on their way when the other node gets the buckets.
    (1..=5).for_each(|n| rig.create(1, n));
    rig.run(100 * MS);
    let key = |n| Rig::key(n);
    for n in [1, 2, 5] {
        rig.update(1, n);
    }
    rig.promote(2, Rig::used());
    // There a packet of 1 is faster, 2 has none, and 5 ends.
    rig.update(2, 1);
    rig.delete(2, 5);
    // Until it knows, the former owner opens connections, and afterwards, as long as neighbours send to it.
    rig.create(1, 6);
    rig.run(MS);
    assert_eq!(rig.node(2).kernel.get(&key(6)), None);
    let late = |rig: &mut Rig, n| {
        let used = rig.node(1).owned;
        rig.node(1).owned = Rig::used();
        rig.create(1, n);
        rig.node(1).owned = used;
    };
    rig.demote(1, Rig::used());
    late(&mut rig, 7);
    rig.run(20 * MS);
    late(&mut rig, 8);
    rig.run(20 * MS);

    let flows = |rig: &Rig, id: NodeId| -> Vec<_> {
        (1..=8).map(|n| rig.nodes[usize::from(id) - 1].kernel.get(&key(n)).map(|f| f.version)).collect()
    };
    let version = |term, changes: usize| (0..changes).fold(0, |v, _| Flow::next_version(v, term));
    let (old, new) = (1, 2);
    let moved_on = Some(Flow::next_version(version(old, 1), new));
    let wanted = vec![
        moved_on,
        Some(version(old, 2)),
        Some(version(old, 1)),
        Some(version(old, 1)),
        None,
        Some(version(old, 1)),
        Some(version(old, 1)),
        Some(version(old, 1)),
    ];
    assert_eq!(flows(&rig, 2), wanted);
    rig.converge(HEALED_WITHIN);
    assert_eq!(flows(&rig, 1), wanted, "its predecessor has what it has");
    assert_eq!(counters(&rig, 2).stragglers, 4, "2, 6, 7, 8");

    // Long after, nobody listens any more.
    rig.run(LATE);
    late(&mut rig, 10);
    rig.run(100 * MS);
    assert_eq!(rig.node(2).kernel.get(&key(10)), None);
}

/// The data plane owns a bucket as soon as the election has written so; the word of it comes to replication a moment later.
#[test]
fn a_former_owner_is_listened_to_whoever_tells_first_of_the_new_one() {
    let mut rig = settled(|_| {});
    rig.create(1, 1);
    rig.run(100 * MS);
    assert_eq!(Rig::bucket(1), Rig::bucket(17));
    let node = rig.node(2);
    (node.owned, node.term) = (Rig::used(), 2);
    rig.update(2, 1);
    let now = rig.now;
    let owned = Ownership::Owned { term: 2 };
    assert_eq!(rig.node(2).replication.set_ownership(now, Rig::used(), owned), Buckets::EMPTY);
    rig.create(1, 17);
    rig.demote(1, Rig::used());
    rig.converge(HEALED_WITHIN);
    assert!(rig.node(2).kernel.contains_key(&Rig::key(17)), "opened before the former owner knew");
    assert_eq!(counters(&rig, 2).stragglers, 1);
}

#[test]
fn a_connection_that_a_former_owner_sees_begin_again_just_after_it_ended_is_not_lost() {
    let mut rig = settled(|o| o.flush_after = Duration::ZERO);
    rig.promote(2, Rig::used());
    rig.create(1, 1);
    rig.run(MS / 2);
    assert_eq!(rig.node(2).kernel.len(), 1, "it is on its way when the buckets move");
    rig.delete(2, 1);
    rig.run(MS / 2);
    assert_eq!(rig.node(1).kernel.len(), 0);
    rig.create(1, 1);
    rig.run(MS / 2);
    rig.demote(1, Rig::used());
    assert_eq!(counters(&rig, 2).stragglers, 2);
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(2).kernel.len(), 1);
}

#[test]
fn of_two_flows_of_one_life_the_later_number_is_written_however_late_the_earlier_came() {
    // The clock of a replica knows of a flow's beginning only what the network left of its age.
    let flow = |node, number, created_ns| {
        let mut flow = Flow::of(FlowId { number, epoch: 1, node, zero: [0; 3] });
        flow.set_created_ns(created_ns);
        flow
    };
    let (earlier, later) = (flow(1, 5, 50 << 20), flow(1, 6, 40 << 20));
    assert_eq!((stays(&earlier, &later), stays(&later, &earlier)), (false, true));
    let others = flow(2, 1, 45 << 20);
    assert_eq!((stays(&earlier, &others), stays(&others, &earlier)), (true, false));
    let changed = Flow { version: 2, ..earlier };
    assert_eq!(
        (stays(&earlier, &changed), stays(&changed, &earlier), stays(&earlier, &earlier)),
        (false, true, true)
    );
}

#[test]
fn a_flow_that_ended_before_a_former_owners_word_of_it_was_read_does_not_stay_in_the_kernel() {
    let mut rig = settled(|_| {});
    rig.create(1, 1);
    rig.run(100 * MS);
    rig.promote(2, Rig::used());
    // The sweeper's word is on its way to the daemon, which reads the straggler first.
    let gone = rig.node(2).kernel.remove(&Rig::key(1)).unwrap();
    rig.update(1, 1);
    rig.demote(1, Rig::used());
    rig.run(20 * MS);
    assert_eq!((counters(&rig, 2).stragglers, rig.node(2).kernel.len()), (1, 1));
    let now = rig.now;
    rig.node(2).replication.local_delete(now, &Rig::key(1), &gone.id());
    rig.drain(2);
    assert_eq!(rig.node(2).kernel.len(), 0);
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(1).kernel.len(), 0);
}

#[test]
fn what_a_silent_peer_misses_goes_to_it_as_a_whole() {
    let mut rig = settled(|_| {});
    rig.create(1, 1);
    rig.create(1, 4);
    rig.run(1000 * MS);
    rig.cut = vec![(1, 2), (2, 1)];
    // One is on its way when the peer is given up, the other begins later.
    rig.create(1, 2);
    rig.run(3000 * MS);
    rig.create(1, 3);
    rig.run(100 * MS);
    assert_eq!(rig.node(1).replication.sync_state(2), Some(SyncState::Silent));
    rig.cut.clear();
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(2).kernel.len(), 4);
    assert_eq!(counters(&rig, 1).bulk_records_sent, 2, "of the other buckets nothing");
    assert_eq!(counters(&rig, 2).digest_differs, 0);
}

#[test]
fn flows_are_counted_by_where_they_began() {
    let mut rig = settled(|_| {});
    let counts = |rig: &mut Rig| [1, 2].map(|node| rig.node(node).replication.census());
    rig.create(1, 1);
    rig.create(1, 17);
    rig.run(100 * MS);
    assert_eq!(counts(&mut rig), [Some([2, 0]), Some([0, 2])]);
    rig.delete(1, 1);
    rig.run(100 * MS);
    assert_eq!(counts(&mut rig), [Some([1, 0]), Some([0, 1])]);
    rig.node(1).replication.reconcile_begin(Rig::used());
    assert_eq!(counts(&mut rig), [None, Some([0, 1])], "until the table has been read");
}

#[test]
fn a_claim_after_which_there_would_be_no_successor_is_refused() {
    let mut rig = settled(|_| {});
    let own = |rig: &mut Rig, node, term| {
        let now = rig.now;
        rig.node(node).replication.set_ownership(now, Buckets::one(1), Ownership::Owned { term })
    };
    own(&mut rig, 2, u32::MAX);
    rig.run(400 * MS);
    assert!(counters(&rig, 1).rejected_term > 0);
    assert_eq!(own(&mut rig, 1, 2), Buckets::EMPTY);
}

#[test]
fn who_refuses_an_owner_in_a_lower_term_says_which_term_has_been() {
    let mut rig = settled(|_| {});
    let claim = |rig: &mut Rig, term| {
        let now = rig.now;
        rig.node(2).replication.set_ownership(now, Buckets::one(9), Ownership::Owned { term });
        rig.run(400 * MS);
        rig.node(1).replication.take_past_terms()
    };
    assert_eq!(claim(&mut rig, 5), []);
    // All but node 1 forget: its election has never heard of that term.
    rig.revive(2, true);
    assert_eq!(claim(&mut rig, 2), [(9, 5)]);
    assert_eq!(claim(&mut rig, 6), []);
}

#[test]
fn a_bucket_that_two_nodes_hold_is_in_sync_on_neither_until_the_election_has_answered() {
    let mut rig = settled(|_| {});
    let own = Rig::used();
    assert!(rig.in_sync(), "{rig}");
    rig.promote(2, own);
    rig.run(400 * MS);
    let claims = rig.node(1).replication.take_claims();
    let term = rig.node(2).term;
    assert_eq!(claims, own.iter().map(|bucket| (bucket, term)).collect::<Vec<_>>());
    assert_eq!(rig.node(1).replication.take_claims(), [], "once");
    // Node 1's election still holds them: what its data plane says counts for nobody.
    rig.create(1, 30);
    rig.run(400 * MS);
    assert_eq!(state(&rig, 1), SyncState::Verifying);
    rig.promote(1, own);
    rig.demote(2, own);
    rig.reconcile(1);
    rig.converge(HEALED_WITHIN);
    assert_eq!(rig.node(2).kernel.len(), rig.node(1).kernel.len());
}

#[test]
fn a_late_word_of_one_of_two_rivals_does_not_win() {
    let mut rig = Rig::new(3, 1, |_| {});
    let core = &mut rig.node(3).replication.core;
    let (mut one, mut other) = (Inbox::new(1, 1), Inbox::new(2, 1));
    let mut counters = Counters::default();
    let at = |seq| Place { seq, floor: 1, term: 1 };
    let id = FlowId { number: 7, epoch: 1, node: 1, zero: [0; 3] };
    let entry = |version| {
        let word = Flow::word(FlowState::Established, 0, [1, 2]);
        Entry::from_flow(&Rig::key(5), &Flow { word, bucket: 5, version, ..Flow::of(id) })
    };
    let version = |core: &Core| core.table.at(core.table.find(&Rig::key(5)).unwrap()).entry.version;
    one.take_flow(core, at(2), &Rig::key(5), entry(2), &mut counters);
    other.take_flow(core, at(1), &Rig::key(5), entry(2), &mut counters);
    one.take_flow(core, at(1), &Rig::key(5), entry(1), &mut counters);
    assert_eq!((version(core), core.owners[5].node), (2, 2), "nor is it the owner again");
    // The same when it has had its turn again.
    one.take_digests(core, at(4), vec![(5, 0)], &mut counters);
    one.take_flow(core, at(1), &Rig::key(5), entry(1), &mut counters);
    assert_eq!((version(core), core.owners[5].node), (2, 1));
    one.take_flow(core, at(3), &Rig::key(5), entry(3), &mut counters);
    assert_eq!(version(core), 3);
    assert_eq!((counters.rejected_stale, counters.rejected_old), (1, 1));
}

#[test]
fn two_owners_of_different_buckets_serve_each_other() {
    let mut rig = Rig::pair(3);
    rig.promote(1, (0..USED / 2).collect());
    rig.promote(2, (USED / 2..USED).collect());
    for n in 0..200 {
        rig.create(1 + (Rig::bucket(n) / (USED / 2)), n);
    }
    rig.converge(HEALED_WITHIN);
    assert_eq!((rig.node(1).kernel.len(), rig.node(2).kernel.len()), (200, 200));
}

#[test]
fn a_daemon_that_restarts_within_its_lease_sends_nothing_twice() {
    let mut rig = settled(|_| {});
    (0..100).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    rig.restart_owner(1);
    rig.converge(HEALED_WITHIN);
    let c = counters(&rig, 2);
    assert_eq!((c.created_received, c.bulk_started, c.swept), (100, 0, 0), "digests agreed");
}
