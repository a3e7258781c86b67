//! The kernel's flow table as replication writes it: what peers tell goes in, but never over what
//! this node's data plane has made of a flow since.
//!
//! While this node owns a bucket, its data plane and a peer's last words about it meet: around a
//! takeover, and when two owners find each other. The election does not wait for the replication
//! thread, so each such flow is looked at here. The same for a while after it has lost a bucket: its data plane goes on in
//! a planned move, and what it did is read later than it was done. In all other buckets nobody else writes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fwha_common::flow::{Flow, FlowId, FlowKey};
use fwha_common::{BUCKETS, MAX_GROUPS};
use fwha_proto::election::GroupId;
use fwha_proto::replication::{Buckets, stays};
use fwha_proto::time::Time;

use super::limit::Limit;
use super::replication::OwnedGroups;
use crate::dataplane::Maps;
use crate::sys::bpf::Write;

/// Flows that wait because the data plane had them in use; those of more are compared as buckets.
const DEFERRED_MAX: usize = 65_536;

/// For so long after a group was lost its flows may be the data plane's own, and not known here yet: it forwards for half
/// a second more, and its events are read in the next turn.
const OWN_FLOWS_FOR: Duration = Duration::from_secs(1);

/// A flow that a peer told to delete.
pub struct Deletion {
    /// Its key.
    pub key: FlowKey,
    /// Which of the flows of that key.
    pub id: FlowId,
    /// The version in which the replica had it.
    pub version: u64,
}

/// See the module.
pub struct Table {
    maps: Arc<Maps>,
    bucket_group: [GroupId; BUCKETS],
    owned: Arc<OwnedGroups>,
    /// Until when the data plane may make flows of each group.
    own_flows_until: [Time; MAX_GROUPS],
    /// With their buckets.
    deferred: HashMap<FlowKey, u8>,
    astray: Buckets,
    complaints: Limit,
    /// Flows written.
    pub written: u64,
    /// Flows for which the table had no room.
    pub full: u64,
    /// Flows of this node that were deleted in place of others, and written back.
    pub restored: u64,
    /// Flows that could not be written or deleted.
    pub failed: u64,
}

impl Table {
    /// The table of `maps`.
    pub fn new(maps: Arc<Maps>, bucket_group: [GroupId; BUCKETS], owned: Arc<OwnedGroups>) -> Self {
        Self {
            maps,
            bucket_group,
            owned,
            own_flows_until: [Time::ZERO; MAX_GROUPS],
            deferred: HashMap::new(),
            astray: Buckets::EMPTY,
            complaints: Limit::default(),
            written: 0,
            full: 0,
            restored: 0,
            failed: 0,
        }
    }

    fn ours(&self, bucket: u8) -> bool {
        self.owned.get(self.bucket_group[usize::from(bucket)])
    }

    /// A group is this node's, or not any more.
    pub fn changed(&mut self, now: Time, group: GroupId, owned: bool) {
        if let Some(until) = self.own_flows_until.get_mut(usize::from(group)) {
            *until = if owned { Time::NEVER } else { now + OWN_FLOWS_FOR };
        }
    }

    /// Writes flows of peers.
    pub fn put(&mut self, keys: &[FlowKey], flows: &[Flow]) {
        if self.owned.any() {
            for (key, flow) in keys.iter().zip(flows) {
                self.put_one(key, flow);
            }
            return;
        }
        match self.maps.put_flows(keys, flows) {
            Ok(written) => {
                self.written += written.done as u64;
                self.full += written.refused.len() as u64;
                for at in written.refused {
                    self.astray.insert(flows[at].bucket);
                }
            }
            Err(error) => {
                for flow in flows {
                    self.astray.insert(flow.bucket);
                }
                self.complain("write", keys.len(), &error);
            }
        }
    }

    fn put_one(&mut self, key: &FlowKey, flow: &Flow) {
        let result = if self.ours(flow.bucket) {
            self.put_behind(key, flow)
        } else {
            self.maps.put_flow(key, flow, Write::Any)
        };
        let Err(error) = result else {
            self.written += 1;
            return;
        };
        self.astray.insert(flow.bucket);
        if error.raw_os_error() == Some(libc::E2BIG) {
            self.full += 1;
        } else {
            self.complain("write", 1, &error);
        }
    }

    /// Writes a flow unless the data plane knows better. It may change the flow between the look
    /// and the write; that is one packet's step, which the flow's next packets take again.
    fn put_behind(&mut self, key: &FlowKey, flow: &Flow) -> io::Result<()> {
        match self.maps.put_flow(key, flow, Write::New) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            done => return done,
        }
        let behind = self.maps.flows().lookup(key)?.is_none_or(|there| !stays(&there, flow));
        if behind {
            self.maps.put_flow(key, flow, Write::Any)?;
        } else {
            self.defer(key, flow.bucket);
        }
        Ok(())
    }

    /// Writes a flow of this node back if there is none of its key any more.
    pub fn confirm(&mut self, key: &FlowKey, flow: &Flow) {
        match self.maps.put_flow(key, flow, Write::New) {
            Ok(()) => self.restored += 1,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => {
                self.astray.insert(flow.bucket);
                self.complain("write", 1, &error);
            }
        }
    }

    fn defer(&mut self, key: &FlowKey, bucket: u8) {
        if self.deferred.len() < DEFERRED_MAX {
            self.deferred.insert(*key, bucket);
        } else {
            self.astray.insert(bucket);
        }
    }

    /// Deletes flows of peers. In a bucket that is ours, or was a moment ago, another flow of the same key stays: the data
    /// plane has begun it since. In one that is ours one also stays that the data plane has gone on with.
    pub fn delete(&mut self, now: Time, flows: &[Deletion]) {
        let result = if self.owned.any() || self.own_flows_until.iter().any(|&until| now < until) {
            flows.iter().try_for_each(|deletion| self.delete_one(now, deletion))
        } else {
            let keys: Vec<FlowKey> = flows.iter().map(|deletion| deletion.key).collect();
            self.maps.flows().delete_batch(&keys).map(drop)
        };
        if let Err(error) = result {
            // Which buckets they are of, only the elements could tell.
            self.astray = Buckets::ALL;
            self.complain("delete", flows.len(), &error);
        }
    }

    fn delete_one(&mut self, now: Time, deletion: &Deletion) -> io::Result<()> {
        let Some(there) = self.maps.flows().lookup(&deletion.key)? else { return Ok(()) };
        let (ours, group) = (self.ours(there.bucket), self.bucket_group[usize::from(there.bucket)]);
        let own = ours || self.own_flows_until.get(usize::from(group)).is_some_and(|&until| now < until);
        if there.id() != deletion.id {
            if own {
                return Ok(());
            }
        } else if ours && there.version > deletion.version {
            self.defer(&deletion.key, there.bucket);
            return Ok(());
        }
        self.maps.flows().delete(&deletion.key).map(drop)
    }

    /// Flows that a peer spoke of while the data plane had them in use. To be asked for, and written
    /// as the replica has them, when buckets are not ours any more.
    pub fn take_deferred(&mut self) -> HashMap<FlowKey, u8> {
        std::mem::take(&mut self.deferred)
    }

    /// Buckets in which table and replica differ, because something failed. They are to be compared.
    pub fn take_astray(&mut self) -> Buckets {
        std::mem::take(&mut self.astray)
    }

    fn complain(&mut self, what: &str, count: usize, error: &io::Error) {
        self.failed += count as u64;
        if let Some(held) = self.complaints.pass() {
            tracing::warn!(held, "cannot {what} {count} flows of a peer, will compare tables: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Dataplane;
    use crate::testing::{Net, options, root};

    fn key(n: u16) -> FlowKey {
        FlowKey { port_a: n, proto: 6, ..FlowKey::default() }
    }

    fn flow(number: u64, version: u64) -> Flow {
        let id = FlowId { number, epoch: 1, node: 1, zero: [0; 3] };
        Flow { version, created: number as u32, ..Flow::of(id) }
    }

    fn deletion(n: u16, flow: Flow) -> Deletion {
        Deletion { key: key(n), id: flow.id(), version: flow.version }
    }

    fn with_table(test: impl FnOnce(&mut Table, &Maps, &OwnedGroups) + Send) {
        if !root() {
            return;
        }
        Net::new().with_bpffs(|| {
            let (dataplane, _events) = Dataplane::open(options(16)).unwrap();
            let (maps, owned) = (dataplane.maps(), Arc::new(OwnedGroups::default()));
            let mut table = Table::new(Arc::clone(&maps), [0; BUCKETS], Arc::clone(&owned));
            test(&mut table, &maps, &owned);
            drop((table, maps));
            dataplane.close().unwrap();
        });
    }

    #[test]
    fn a_peers_word_replaces_anything_in_a_bucket_that_is_not_ours() {
        with_table(|table, maps, _| {
            table.put(&[key(1)], &[flow(5, 9)]);
            table.put(&[key(1)], &[flow(4, 2)]);
            assert_eq!(maps.flows().lookup(&key(1)).unwrap(), Some(flow(4, 2)));
            table.delete(Time::ZERO, &[deletion(1, flow(4, 2))]);
            assert_eq!(maps.flows().lookup(&key(1)).unwrap(), None);
            assert_eq!((table.written, table.failed), (2, 0));
        });
    }

    #[test]
    fn a_late_word_does_not_undo_what_the_data_plane_did() {
        with_table(|table, maps, owned| {
            let kernel = |n| maps.flows().lookup(&key(n)).unwrap();
            owned.set(0, true);
            // Not there, an older version, an older flow: the peer's word still counts.
            for n in 1..=3 {
                table.put(&[key(n)], &[flow(5, 3)]);
                assert_eq!(kernel(n), Some(flow(5, 3)));
            }
            table.put(&[key(1), key(2)], &[flow(5, 4), flow(6, 1)]);
            assert_eq!((kernel(1), kernel(2)), (Some(flow(5, 4)), Some(flow(6, 1))));
            // Here the data plane has gone on: another version of the flow, and another flow.
            table.put(&[key(1), key(2)], &[flow(5, 2), flow(5, 9)]);
            table.delete(Time::ZERO, &[deletion(2, flow(5, 9))]);
            assert_eq!((kernel(1), kernel(2)), (Some(flow(5, 4)), Some(flow(6, 1))));
            table.delete(Time::ZERO, &[deletion(3, flow(5, 3))]);
            assert_eq!(kernel(3), None);
            // One that ended at the peer, and that the data plane has gone on with since.
            table.delete(Time::ZERO, &[deletion(1, flow(5, 3))]);
            assert_eq!(kernel(1), Some(flow(5, 4)));
            // Nor while it may still make flows that were not heard of yet.
            owned.set(0, false);
            table.changed(Time::ZERO, 0, false);
            table.delete(Time::ZERO, &[deletion(2, flow(5, 9))]);
            assert_eq!(kernel(2), Some(flow(6, 1)));
            table.delete(Time::ZERO + OWN_FLOWS_FOR, &[deletion(2, flow(5, 9))]);
            assert_eq!(kernel(2), None);
            owned.set(0, true);
            // What was not written is known, for when the bucket is given up.
            assert_eq!(table.take_deferred(), HashMap::from([(key(1), 0), (key(2), 0)]));
            owned.set(0, false);
            table.put(&[key(1)], &[flow(5, 2)]);
            assert_eq!(kernel(1), Some(flow(5, 2)));
        });
    }

    #[test]
    fn a_flow_that_was_deleted_in_place_of_another_is_written_back() {
        with_table(|table, maps, _| {
            table.confirm(&key(1), &flow(5, 1));
            assert_eq!(maps.flows().lookup(&key(1)).unwrap(), Some(flow(5, 1)));
            table.confirm(&key(1), &flow(4, 9));
            assert_eq!(maps.flows().lookup(&key(1)).unwrap(), Some(flow(5, 1)), "there is one");
            assert_eq!((table.restored, table.failed), (1, 0));
        });
    }

    #[test]
    fn a_full_table_is_counted_and_its_buckets_are_compared() {
        with_table(|table, _, owned| {
            let keys: Vec<FlowKey> = (0..20).map(key).collect();
            table.put(&keys, &[flow(1, 1); 20]);
            assert_eq!((table.written, table.full, table.failed), (16, 4, 0));
            owned.set(1, true);
            table.put(&keys, &[flow(1, 1); 20]);
            assert_eq!((table.written, table.full, table.failed), (32, 8, 0));
            assert_eq!(table.take_astray(), Buckets::one(0));
        });
    }
}
