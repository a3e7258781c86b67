//! Two and more nodes, seeded faults, virtual time.

use std::sync::Arc;
use std::time::Duration;

use fwha_common::flow::{Flow, FlowId, FlowKey, FlowState};
use proptest::prelude::*;

use super::core::Core;
use super::entry::Entry;
use super::handover::{LATE, stays};
use super::inbox::{Inbox, Place};
use super::rig::{Faults, Rig, USED};
use super::wire::{Record, Writer};
use super::{
    Buckets, Difference, Event, Failure, Filter, Found, Kind, Options, Output, Ownership, Policy, Settings,
    Summary, SyncState, Unready, Warning,
};
use crate::NodeId;
use crate::seal::{Channel, ClusterKey, Identity, KeyRing, Opened, Purpose, cluster_id};
use crate::time::Time;

const MS: Duration = Duration::from_millis(1);
const HEALED_WITHIN: Duration = Duration::from_secs(20);

/// Node 1 owns everything and node 2 is in sync.
fn settled(options: fn(&mut Options)) -> Rig {
    let mut rig = Rig::new(2, 1, options);
    rig.promote(1, Rig::used());
    rig.run(500 * MS);
    assert!(rig.in_sync(), "{rig}");
    rig
}

fn counters(rig: &Rig, id: NodeId) -> super::Counters {
    *rig.nodes[usize::from(id) - 1].replication.status(rig.now).next().unwrap().counters
}

fn state(rig: &Rig, id: NodeId) -> SyncState {
    rig.nodes[usize::from(id) - 1].replication.sync_state(3 - id).unwrap()
}

// ---- The way of a flow -------------------------------------------------------------------------

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

// ---- Roles -------------------------------------------------------------------------------------

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
    let mut counters = super::Counters::default();
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

// ---- Bulk and digests --------------------------------------------------------------------------

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

// ---- What differs ------------------------------------------------------------------------------

/// All that a comparison finds, and its end.
fn diff(rig: &mut Rig, asker: NodeId, all: bool) -> (Vec<Difference>, Result<Summary, Failure>) {
    let (now, peer) = (rig.now, if asker == 1 { 2 } else { 1 });
    rig.node(asker).found.clear();
    rig.node(asker).replication.diff(now, peer, all).unwrap();
    let end = |f: &Found| !matches!(f, Found::Difference(_));
    rig.run_until(Duration::from_secs(60), "compared", |rig| {
        rig.nodes[usize::from(asker) - 1].found.iter().any(end)
    });
    let mut found = std::mem::take(&mut rig.node(asker).found);
    let end = match found.pop().unwrap() {
        Found::Done(summary) => Ok(summary),
        Found::Failed(failure) => Err(failure),
        Found::Difference(d) => rig.fail(format_args!("{d:?} after the end")),
    };
    let differences = found.into_iter().filter_map(|f| match f {
        Found::Difference(d) => Some(d),
        _ => None,
    });
    (differences.collect(), end)
}

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
    let mut bend = |n: u16, change: fn(&mut super::Entry)| {
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

// ---- Limits ------------------------------------------------------------------------------------

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

// ---- Strangers and garbage ---------------------------------------------------------------------

#[test]
fn strangers_are_refused_counted_and_named() {
    let mut rig = Rig::new(2, 1, |o| {
        if o.identity.node == 2 {
            o.keys = ClusterKey::new([8; 32]).into();
        }
    });
    rig.run(500 * MS);
    assert!(counters(&rig, 1).other_key > 3);
    let status = rig.nodes[0].replication.status(rig.now).next().unwrap();
    assert_eq!(status.state, SyncState::Down);
    assert!(status.refused.unwrap().to_string().starts_with("sealed with another cluster key"));
    let now = rig.now;
    rig.node(1).replication.datagram(now, 0, &mut [0; 100]);
    assert_eq!(rig.nodes[0].replication.counters().garbage, 1);
}

#[test]
fn what_does_not_fit_together_is_warned_about() {
    let mut rig = Rig::new(2, 1, |o| {
        if o.identity.node == 2 {
            o.config_hash = 5;
            o.rules_hash = 5;
            o.name = "fw7".into();
        }
    });
    rig.run(500 * MS);
    let warnings = rig.nodes[0].replication.status(rig.now).next().unwrap().warnings.to_vec();
    let name = Warning::NameDiffers { expected: "fw2".into(), theirs: "fw7".into() };
    assert_eq!(warnings, [Warning::ConfigDiffers, Warning::RulesDiffer, name]);
    let told = rig.node(1).events.iter().filter(|e| matches!(e, Event::Warning { .. })).count();
    assert_eq!(told, 3, "each once");
}

/// A peer that has the key and says what it likes.
fn babble(payloads: &[Vec<u8>]) {
    let mut rig = settled(|_| {});
    (0..20).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    let now = rig.now;
    let identity = Identity { cluster: cluster_id("edge"), node: 2, epoch: 99 };
    let mut evil = Channel::new(ClusterKey::new([7; 32]), Purpose::Replication, identity, 1);
    let target = &mut rig.node(1).replication;
    let mut to_target = vec![evil.hello()];
    for _ in 0..4 {
        for mut d in to_target.drain(..) {
            target.datagram(now, 0, &mut d);
        }
        while let Some(output) = target.poll() {
            if let Output::Transmit { mut datagram, .. } = output
                && let Ok(Opened::Hello { reply: true, .. }) = evil.open(&mut datagram)
            {
                to_target.push(evil.hello());
            }
        }
    }
    assert!(evil.is_open());
    for payload in payloads {
        target.datagram(now, 0, &mut evil.seal(payload).unwrap());
        target.tick(now);
        while target.poll().is_some() {}
    }
    assert!(target.len() <= 1000);
    assert_eq!((0..=255).map(|b| target.flows(b).count()).sum::<usize>(), target.len());
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..80),
        1 => prop::collection::vec(0..4u8, 0..80),
    ];
    (0..17u8, body).prop_map(|(kind, body)| {
        let mut record = vec![kind];
        record.extend_from_slice(&(body.len() as u16).to_le_bytes());
        record.extend_from_slice(&body);
        record
    })
}

fn numbered(seq: u64, floor: u64, records: &[Vec<u8>]) -> Vec<u8> {
    let mut w = Writer::new(vec![], usize::MAX, Time::ZERO);
    w.push(&Record::Sequence { seq, floor });
    w.push(&Record::Term(7));
    let mut payload = w.into_buf();
    records.iter().for_each(|r| payload.extend_from_slice(r));
    payload
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_payload_of_a_peer_breaks_a_node(
        raw in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..4),
        records in prop::collection::vec((1..2000u64, 0..2000u64, prop::collection::vec(record(), 0..8)), 1..24),
    ) {
        let numbered = records.iter().map(|(seq, back, r)| numbered(*seq, seq.saturating_sub(*back).max(1), r));
        babble(&raw.iter().cloned().chain(numbered).collect::<Vec<_>>());
    }
}

// ---- Storms ------------------------------------------------------------------------------------

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
