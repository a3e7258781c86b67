//! Two and more nodes, seeded faults, virtual time.

mod bulk;
mod differences;
mod flows;
mod limits;
mod roles;
mod storms;
mod strangers;

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
    Buckets, Counters, Difference, Event, Failure, Filter, Found, GroupOptions, Kind, Options, Output,
    Ownership, Policy, Settings, Summary, SyncState, Unready, Warning,
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

fn counters(rig: &Rig, id: NodeId) -> Counters {
    *rig.nodes[usize::from(id) - 1].replication.status(rig.now).next().unwrap().counters
}

fn state(rig: &Rig, id: NodeId) -> SyncState {
    rig.nodes[usize::from(id) - 1].replication.sync_state(3 - id).unwrap()
}

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
