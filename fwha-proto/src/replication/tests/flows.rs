//! The way of a flow from its owner to the peers.

use super::*;

#[test]
fn what_the_owner_has_is_on_the_peer_within_milliseconds() {
    let mut rig = settled(|_| {});
    (0..100).for_each(|n| rig.create(1, n));
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
    let c = counters(&rig, 1);
    assert_eq!((c.created_sent, c.updated_sent, c.deleted_sent, c.retransmitted), (100, 34, 33, 0));
    let c = counters(&rig, 2);
    assert_eq!((c.created_received, c.updated_received, c.deleted_received), (100, 34, 33));
    assert_eq!((c.created_sent, c.updated_sent, c.deleted_sent), (0, 0, 0), "nothing is echoed");
    rig.converge(HEALED_WITHIN);
}

#[test]
fn the_lag_of_changes_is_known_and_a_bulk_is_no_change() {
    let mut rig = settled(|_| {});
    (0..100).for_each(|n| rig.create(1, n));
    rig.run(50 * MS);
    let _ = rig.node(1).replication.request_bulk(None);
    rig.run(50 * MS);
    let lag = |rig: &Rig| rig.nodes[0].replication.status(rig.now).next().unwrap().acknowledged.clone();
    assert_eq!((lag(&rig).total.count(), lag(&rig).recent(rig.now).count()), (100, 100));
    let worst = lag(&rig).total.per_mille(1000).unwrap();
    assert!(worst < 5 * MS, "1 ms until it is sent, 2 ms until it is acknowledged: {worst:?}");
    rig.cut = vec![(1, 2)];
    rig.update(1, 1);
    rig.run(300 * MS);
    rig.cut.clear();
    rig.converge(HEALED_WITHIN);
    assert_eq!(lag(&rig).total.count(), 101, "once, however often it was sent");
    assert!(lag(&rig).total.per_mille(1000).unwrap() > 300 * MS, "from the change on");
    rig.revive(2, true);
    rig.converge(HEALED_WITHIN);
    assert!(lag(&rig).total.count() >= 101, "of all sessions");
}

#[test]
fn a_received_flow_is_inherited_with_its_ages() {
    let mut rig = settled(|_| {});
    rig.create(1, 7);
    rig.run(5 * MS);
    let (theirs, ours) = (rig.nodes[0].kernel[&Rig::key(7)], rig.nodes[1].kernel[&Rig::key(7)]);
    assert_eq!(ours.flags() & fwha_common::flow::Flow::INHERITED, fwha_common::flow::Flow::INHERITED);
    assert_eq!((ours.id(), ours.version, ours.zones()), (theirs.id(), theirs.version, theirs.zones()));
    assert!(ours.created_ns().abs_diff(theirs.created_ns()) < 3_000_000, "to the millisecond");
    assert_eq!((ours.delta, theirs.delta), (1, 1));
    assert_eq!(ours.last_seen_ns(), 0, "never stays never");
}

#[test]
fn changes_of_one_flow_share_a_record_and_a_flow_that_ends_at_once_is_never_sent() {
    let mut rig = settled(|_| {});
    rig.create(1, 1);
    (0..10).for_each(|_| rig.update(1, 1));
    rig.create(1, 2);
    rig.delete(1, 2);
    rig.run(10 * MS);
    let c = counters(&rig, 1);
    assert_eq!((c.created_sent, c.updated_sent, c.deleted_sent), (1, 0, 0));
    assert_eq!((c.coalesced, c.cancelled), (10, 1));
    assert_eq!(rig.difference(), None);
}

#[test]
fn a_lost_datagram_is_answered_by_the_present_state() {
    let mut rig = settled(|_| {});
    rig.create(1, 1);
    rig.cut = vec![(1, 2)];
    rig.update(1, 1);
    rig.run(2 * MS);
    rig.cut.clear();
    rig.update(1, 1);
    let newest = rig.nodes[0].kernel[&Rig::key(1)].version;
    rig.run(2 * MS);
    assert_eq!(rig.node(2).kernel[&Rig::key(1)].version, newest, "without waiting for a timeout");
    rig.converge(HEALED_WITHIN);
    assert_eq!(counters(&rig, 2).rejected_old, 0);
}

#[test]
fn updates_move_to_a_link_that_works_and_nothing_is_lost() {
    let mut rig = settled(|o| o.links = 2);
    let used = |rig: &Rig| {
        let status = rig.nodes[0].replication.status(rig.now).next().unwrap();
        status.links.iter().find(|l| l.used).unwrap().link
    };
    rig.run(3000 * MS);
    assert_eq!(used(&rig), 0, "the most preferred");
    rig.dead_links = vec![0];
    (0..100).for_each(|n| rig.create(1, n));
    rig.run(150 * MS);
    assert_eq!(rig.difference(), None, "a timeout is enough: no probe has failed yet");
    assert_eq!(used(&rig), 1);
    rig.run(1000 * MS);
    assert_eq!(state(&rig, 1), SyncState::InSync);
    let changed = rig.nodes[0].events.iter().filter(|e| matches!(e, Event::LinkChanged { .. })).count();
    assert_eq!(changed, 1);
    rig.dead_links = vec![1];
    (0..100).for_each(|n| rig.update(1, n));
    rig.run(500 * MS);
    assert_eq!(rig.difference(), None, "once the other link has answered a probe");
    assert_eq!(counters(&rig, 1).sessions, 1);
    rig.dead_links.clear();
    rig.converge(HEALED_WITHIN);
}

#[test]
fn while_no_link_works_those_that_are_tried_are_not_told_as_moves() {
    let mut rig = settled(|o| o.links = 2);
    let moves = |rig: &Rig| -> Vec<(u8, u8)> {
        let moved = |e: &Event| match *e {
            Event::LinkChanged { from, to, .. } => Some((from, to)),
            _ => None,
        };
        rig.nodes[0].events.iter().filter_map(moved).collect()
    };
    rig.run(3000 * MS);
    rig.dead_links = vec![0, 1];
    for n in 0..1000 {
        rig.create(1, n);
        rig.run(2 * MS);
    }
    let before = moves(&rig);
    assert!(before.len() < 5, "as long as it was not known of both: {before:?}");
    rig.dead_links = vec![0];
    rig.run(3000 * MS);
    rig.dead_links.clear();
    rig.run(10_000 * MS);
    let moves = moves(&rig);
    assert!(moves.len() <= before.len() + 3 && moves.last() == Some(&(1, 0)), "{moves:?}");
    assert!(
        moves.windows(2).all(|m| m[0].1 == m[1].0 && m[0].0 != m[0].1),
        "each from where it was: {moves:?}"
    );
    rig.converge(HEALED_WITHIN);
}

#[test]
fn a_new_key_reaches_the_nodes_one_by_one_and_the_session_goes_on() {
    let mut rig = settled(|_| {});
    let both = KeyRing::new(ClusterKey::new([9; 32]), Some(ClusterKey::new([7; 32])), None);
    for (n, id) in [1, 2].into_iter().enumerate() {
        rig.node(id).replication.set_keys(&both);
        rig.create(1, n as u16);
        rig.run(5 * MS);
        assert_eq!(rig.difference(), None);
        rig.run(1500 * MS);
        assert_eq!(rig.nodes[0].replication.status(rig.now).next().unwrap().renewing, n == 0);
    }
    for id in [1, 2] {
        rig.node(id).replication.set_keys(&ClusterKey::new([9; 32]).into());
    }
    rig.create(1, 7);
    rig.run(5 * MS);
    assert_eq!(rig.difference(), None);
    rig.converge(HEALED_WITHIN);
    let c = counters(&rig, 1);
    assert_eq!((c.sessions, c.lost, c.other_key), (1, 0, 0));
}

/// Even ports are replicated; those from 20 on are admitted.
struct Even;

impl Policy for Even {
    fn replicates(&self, key: &FlowKey, _: &Flow) -> bool {
        key.ends(false).iter().all(|(_, port)| *port == 22 || port % 2 == 0)
    }

    fn admits(&self, key: &FlowKey, _: &Flow) -> bool {
        key.ends(false).iter().all(|(_, port)| *port >= 20)
    }
}

#[test]
fn only_what_was_chosen_is_replicated_and_both_sides_prove_that() {
    let mut rig = settled(|o| o.filter.policy = Some(Arc::new(Even)));
    (24..40).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    assert_eq!((rig.node(1).kernel.len(), rig.node(2).kernel.len()), (16, 8));
    assert!(rig.in_sync(), "{rig}");
    (24..40).for_each(|n| rig.update(1, n));
    rig.reconcile(1);
    rig.run(300 * MS);
    assert_eq!(rig.node(2).kernel.len(), 8);
    assert!(rig.in_sync(), "{rig}");
    rig.promote(2, Rig::used());
    rig.run(100 * MS);
    assert!(rig.node(1).stale);
    rig.demote(1, Rig::used());
    rig.reconcile(1);
    rig.run(300 * MS);
    assert_eq!((rig.node(1).kernel.len(), rig.node(2).kernel.len()), (8, 8));
    rig.converge(HEALED_WITHIN);
}

/// Node 1 owns 16 flows, of which node 2 has those 8 that are for the peers.
fn half_chosen() -> Rig {
    let mut rig = settled(|o| o.filter.policy = Some(Arc::new(Even)));
    (24..40).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    assert_eq!((rig.node(1).kernel.len(), rig.node(2).kernel.len()), (16, 8));
    rig
}

/// Does what a node has asked for.
fn look_again(rig: &mut Rig, node: NodeId) {
    assert!(std::mem::take(&mut rig.node(node).stale), "it asked for a comparison");
    rig.reconcile(node);
}

#[test]
fn a_daemon_that_restarts_within_its_lease_keeps_what_is_not_replicated() {
    let mut rig = half_chosen();
    rig.restart_owner(1);
    rig.drain(1);
    assert_eq!(rig.node(1).kernel.len(), 16);
    rig.run(1000 * MS);
    assert_eq!((rig.node(1).kernel.len(), rig.node(2).kernel.len()), (16, 8));
    assert!(rig.in_sync() && !rig.node(1).stale, "{rig}");
}

#[test]
fn what_is_not_replicated_is_deleted_as_soon_as_another_node_is_known_to_own_it_and_not_before() {
    // After a restart nobody has been heard yet.
    let mut rig = half_chosen();
    rig.kill(1);
    rig.promote(2, Rig::used());
    rig.revive(1, false);
    assert_eq!(rig.node(1).kernel.len(), 16, "it may be this node's own");
    rig.run(300 * MS);
    look_again(&mut rig, 1);
    assert_eq!(rig.node(1).kernel.len(), 8);
    rig.converge(HEALED_WITHIN);
    assert!(!rig.node(1).stale, "once");

    // Given up, and there is no other owner yet.
    let mut rig = half_chosen();
    rig.demote(1, Rig::used());
    look_again(&mut rig, 1);
    assert_eq!(rig.node(1).kernel.len(), 16, "nobody else has the buckets");
    rig.promote(2, Rig::used());
    rig.run(300 * MS);
    look_again(&mut rig, 1);
    assert_eq!(rig.node(1).kernel.len(), 8);
    rig.converge(HEALED_WITHIN);
}

/// The data plane owns a bucket as soon as the election has written so; a letter of another group may have the ring read
/// before the one that tells of it.
#[test]
fn what_is_not_replicated_and_begins_before_the_word_of_a_takeover_stays() {
    let mut rig = half_chosen();
    let node = rig.node(2);
    (node.owned, node.term) = (Rig::used(), 2);
    rig.create(2, 41);
    rig.reconcile(2);
    assert_eq!(rig.node(2).kernel.len(), 9, "its version is of a later term than the owner that is known");
    let now = rig.now;
    let owned = Ownership::Owned { term: 2 };
    assert_eq!(rig.node(2).replication.set_ownership(now, Rig::used(), owned), Buckets::EMPTY);
    rig.demote(1, Rig::used());
    rig.run(300 * MS);
    look_again(&mut rig, 1);
    assert_eq!((rig.node(1).kernel.len(), rig.node(2).kernel.len()), (8, 9));
    assert!(rig.in_sync() && !rig.node(2).stale, "{rig}");
}

#[test]
fn a_flow_that_the_policy_does_not_admit_is_refused_and_shows_as_a_difference() {
    let mut rig = settled(|o| o.filter.policy = Some(Arc::new(Even)));
    [10, 12, 30].into_iter().for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    assert_eq!(rig.node(2).kernel.len(), 1);
    assert!(counters(&rig, 2).rejected_policy >= 2);
    assert_ne!(state(&rig, 1), SyncState::InSync);
    assert_ne!(state(&rig, 2), SyncState::InSync);
}

/// Reads another cluster file on a node.
fn reload(rig: &mut Rig, node: NodeId, hash: u64, chosen: bool, filter: Filter) {
    let now = rig.now;
    let settings = Settings { config_hash: hash, rules_hash: hash, bulk_bytes_per_s: 20_000_000, filter };
    rig.node(node).replication.reload(now, settings, chosen);
    rig.drain(node);
}

#[test]
fn another_choice_holds_for_flows_that_are_there() {
    let even = || Filter { policy: Some(Arc::new(Even)), ..Filter::default() };
    let mut rig = settled(|_| {});
    (24..40).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    assert_eq!(rig.node(2).kernel.len(), 16);
    let sessions = counters(&rig, 1).sessions;

    // The Backup first: nothing moves until the owner says so.
    for (node, left) in [(2, 16), (1, 8)] {
        reload(&mut rig, node, 7, true, even());
        if std::mem::take(&mut rig.node(node).stale) {
            rig.reconcile(node);
        }
        rig.run(300 * MS);
        assert_eq!((rig.node(1).kernel.len(), rig.node(2).kernel.len()), (16, left), "after node {node}");
    }
    assert!(rig.in_sync(), "{rig}");
    assert_eq!(counters(&rig, 1).sessions, sessions, "the session goes on");

    let mut rig = settled(|o| o.filter.policy = Some(Arc::new(Even)));
    (24..40).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    assert_eq!(rig.node(2).kernel.len(), 8);
    for node in [1, 2] {
        reload(&mut rig, node, 8, true, Filter::default());
        if std::mem::take(&mut rig.node(node).stale) {
            rig.reconcile(node);
        }
    }
    rig.run(300 * MS);
    assert_eq!(rig.node(2).kernel.len(), 16);
    rig.converge(HEALED_WITHIN);
}

#[test]
fn peers_hear_at_once_that_the_files_differ_and_that_they_do_not() {
    let warned = |rig: &mut Rig| {
        let now = rig.now;
        rig.nodes.iter().map(|n| n.replication.status(now).next().unwrap().warnings.len()).collect::<Vec<_>>()
    };
    let mut rig = settled(|_| {});
    reload(&mut rig, 1, 7, false, Filter::default());
    rig.run(50 * MS);
    assert_eq!(warned(&mut rig), [2, 2], "the file, and the rules in it");
    assert!(rig.in_sync() && !rig.node(1).stale, "{rig}");
    reload(&mut rig, 2, 7, false, Filter::default());
    rig.run(50 * MS);
    assert_eq!(warned(&mut rig), [0, 0]);
}

#[test]
fn flows_that_wait_for_their_age_do_not_wait_for_one_that_is_not_asked_any_more() {
    let mut rig = settled(|o| o.filter.min_age = 1000 * MS);
    rig.create(1, 1);
    rig.run(100 * MS);
    assert_eq!((rig.node(2).kernel.len(), rig.node(1).replication.young()), (0, 1));
    reload(&mut rig, 1, 1, false, Filter::default());
    rig.run(50 * MS);
    assert_eq!((rig.node(2).kernel.len(), rig.node(1).replication.young()), (1, 0));
}

#[test]
fn a_flow_is_replicated_when_it_is_old_enough() {
    let mut rig = settled(|o| o.filter.min_age = 1000 * MS);
    rig.create(1, 1);
    rig.run(500 * MS);
    rig.create(1, 2);
    rig.update(1, 1);
    rig.reconcile(1);
    assert_eq!((rig.node(2).kernel.len(), rig.node(1).replication.young()), (0, 2));
    assert!(rig.in_sync(), "{rig}");
    rig.run(520 * MS);
    assert_eq!((rig.node(2).kernel.len(), rig.node(1).replication.young()), (1, 1));
    let newest = rig.nodes[0].kernel[&Rig::key(1)].version;
    assert_eq!(rig.node(2).kernel[&Rig::key(1)].version, newest);
    rig.delete(1, 2);
    rig.run(1000 * MS);
    assert_eq!(rig.node(1).replication.counters().ended_young, 1);
    assert_eq!(counters(&rig, 1).created_sent, 1);
    rig.converge(HEALED_WITHIN);
}

#[test]
fn flows_that_the_next_owner_was_not_told_of_are_gone_on_all_nodes() {
    let mut rig = settled(|o| o.filter.min_age = 1000 * MS);
    rig.create(1, 1);
    rig.run(100 * MS);
    rig.promote(2, Rig::used());
    rig.run(100 * MS);
    rig.run(3000 * MS);
    assert!(rig.nodes.iter().all(|n| n.replication.is_empty() && n.replication.young() == 0));
    assert!(rig.node(1).kernel.is_empty(), "nobody would ever end it");
}

#[test]
fn a_peer_has_its_share_of_the_table_and_of_the_link() {
    let mut rig = settled(|o| o.filter.peer_flows_max = 10);
    (0..20).for_each(|n| rig.create(1, n));
    rig.run(100 * MS);
    assert_eq!(rig.node(2).kernel.len(), 10);
    assert!(counters(&rig, 2).rejected_full >= 10);

    let mut rig = settled(|o| o.filter.peer_bytes_per_s = 20_000);
    (0..900).for_each(|n| rig.create(1, n));
    rig.run(500 * MS);
    assert!(rig.node(2).kernel.len() < 900);
    assert!(counters(&rig, 2).rate_limited > 0);
    rig.converge(HEALED_WITHIN);
}

#[test]
fn zones_are_known_by_name() {
    // Node 2 has the same zones in another order, and has not the third.
    let mut rig = settled(|o| {
        o.zones = if o.identity.node == 1 { vec![11, 12, 13] } else { vec![12, 11] };
    });
    rig.create(1, 1);
    rig.run(50 * MS);
    let zones = rig.nodes.iter().map(|n| n.kernel[&Rig::key(1)].zones()).collect::<Vec<_>>();
    assert_eq!(zones, [[1, 2], [2, 1]]);
    assert_eq!(rig.nodes[0].replication.digest(1), rig.nodes[1].replication.digest(1));
    assert!(rig.in_sync(), "{rig}");
    let warned = rig.nodes[1].replication.status(rig.now).next().unwrap().warnings.to_vec();
    assert_eq!(warned, [Warning::ZonesDiffer]);
    let flow = rig.node(1).kernel.get_mut(&Rig::key(1)).unwrap();
    flow.word = Flow::word(flow.state(), 0, [1, 3]);
    rig.update(1, 1);
    rig.run(50 * MS);
    assert!(counters(&rig, 2).rejected_zone > 0, "the third zone is not there");
}

#[test]
fn a_late_delete_does_not_touch_the_flow_that_took_its_key() {
    for seed in 0..100 {
        let mut rig = Rig::pair(seed);
        rig.promote(1, Rig::used());
        rig.create(1, 5);
        rig.run(200 * MS);
        rig.faults.jitter = 20 * MS;
        rig.delete(1, 5);
        rig.run(2 * MS);
        rig.create(1, 5);
        rig.run(50 * MS);
        assert_eq!(rig.difference(), None, "seed {seed}");
    }
}

#[test]
fn flows_that_no_peer_is_known_to_hold_are_at_risk() {
    let mut rig = settled(|_| {});
    let at_risk = |rig: &Rig| rig.nodes[0].replication.at_risk();
    (0..100).for_each(|n| rig.create(1, n));
    assert_eq!(at_risk(&rig), 100, "queued");
    rig.run(MS);
    assert_eq!(at_risk(&rig), 100, "in flight");
    rig.run(10 * MS);
    assert_eq!(at_risk(&rig), 0);
    rig.update(1, 5);
    assert_eq!(at_risk(&rig), 1);
    rig.run(300 * MS);
    rig.kill(2);
    rig.run(3000 * MS);
    assert_eq!(at_risk(&rig), 100, "nobody answers");
    rig.revive(2, true);
    rig.run_until(500 * MS, "a session", |rig| state(rig, 1) > SyncState::Handshake);
    assert_eq!(at_risk(&rig), 100, "nothing is proved yet");
    rig.converge(HEALED_WITHIN);
    assert_eq!((at_risk(&rig), rig.nodes[1].replication.at_risk()), (0, 0));
}

#[test]
fn a_key_that_was_used_again_and_is_free_now_is_free_on_the_peer() {
    let mut rig = settled(|_| {});
    rig.create(1, 5);
    rig.run(5 * MS);
    rig.create(1, 5);
    rig.delete(1, 5);
    rig.run(5 * MS);
    assert_eq!(rig.node(2).kernel.len(), 0, "the peer never heard of the flow that was deleted");
    assert_eq!(rig.difference(), None);
}

#[test]
fn a_flow_whose_key_an_inherited_one_has_just_left_is_known() {
    for us in (0..2000).step_by(50) {
        let mut rig = settled(|o| o.flush_after = Duration::ZERO);
        rig.run(Duration::from_micros(us));
        rig.create(1, 5);
        rig.run(Duration::from_micros(200));
        rig.promote(2, Rig::used());
        rig.delete(2, 5);
        rig.create(2, 5);
        if rig.node(2).stale {
            rig.reconcile(2);
        }
        assert_eq!(rig.node(2).replication.len(), 1, "{us} µs");
    }
}

#[test]
fn what_an_earlier_life_told_of_is_deleted_by_the_next() {
    let mut rig = settled(|_| {});
    rig.create(1, 5);
    rig.run(200 * MS);
    rig.restart_owner(1);
    rig.run(200 * MS);
    assert!(rig.in_sync(), "{rig}");
    rig.delete(1, 5);
    rig.run(5 * MS);
    assert_eq!(rig.node(2).kernel.len(), 0);
    assert_eq!(counters(&rig, 2).bulk_started, 0, "told, not found by digests");
}

#[test]
fn a_replica_that_changes_by_itself_is_in_sync_no_longer() {
    let mut rig = settled(|_| {});
    rig.create(1, 5);
    rig.run(200 * MS);
    assert_eq!(state(&rig, 2), SyncState::InSync);
    let (now, key) = (rig.now, Rig::key(5));
    let flow = rig.node(2).kernel.remove(&key).unwrap();
    rig.node(2).replication.local_delete(now, &key, &flow.id());
    assert_eq!(state(&rig, 2), SyncState::Verifying);
    rig.run(400 * MS);
    assert_eq!(rig.difference(), None, "without waiting for all digests");
}
