//! The sweeper: deletes flows that expired, and notices events that were lost.
//!
//! Only the owner of a flow expires it. The data plane treats an expired flow as absent at once;
//! the sweeper only takes its element away, so it has time: a whole pass over the table takes some
//! seconds and never more than a small share of a CPU.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};
use fwha_common::BUCKETS;
use fwha_common::flow::{Flow, FlowId, FlowKey, FlowState, TimeoutClass};
use fwha_common::group::Group;
use fwha_common::settings::{Counter, Timeouts};
use fwha_proto::election::GroupId;
use fwha_proto::replication::Buckets;

use super::mailbox::Mailbox;
use super::replication::{self, OwnedGroups};
use crate::dataplane::Maps;
use crate::dataplane::maps::FlowWalk;
use crate::sys::bpf::Write;
use crate::sys::clock::KernelClock;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// Between the beginnings of two passes over the table.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// Elements looked at in one turn: some 8 ms of a CPU when the table is cold.
const CHUNK: usize = 16_384;

/// Everything that the thread works with.
pub struct Thread {
    /// The data plane.
    pub maps: Arc<Maps>,
    /// Its clock.
    pub clock: KernelClock,
    /// The group of each bucket.
    pub bucket_group: [GroupId; BUCKETS],
    /// Groups that this node owns.
    pub owned: Arc<OwnedGroups>,
    /// Who tells the peers.
    pub replication: Mailbox<replication::Command>,
    /// Closed when the thread is to end.
    pub stop: Receiver<()>,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(self) -> Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new()
            .name("fwha-sweeper".into())
            .spawn(move || self.run())
            .context("cannot start the sweeper")
    }

    fn run(self) {
        let mut walk: Option<FlowWalk> = None;
        let mut pass_due = 0;
        let mut lost = self.maps.event_loss().unwrap_or_default();
        while self.stop.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
            self.watch_losses(&mut lost);
            let now_ns = self.clock.now_ns();
            if walk.is_none() && now_ns >= pass_due && self.owned.any() {
                walk = Some(FlowWalk::new(CHUNK));
                pass_due = now_ns + PASS_INTERVAL.as_nanos() as u64;
            }
            let Some(w) = &mut walk else { continue };
            match self.sweep(now_ns, w) {
                Ok(true) => {}
                Ok(false) => walk = None,
                Err(error) => {
                    tracing::warn!("cannot sweep expired flows: {error:#}");
                    walk = None;
                }
            }
        }
    }

    /// One turn of a pass. Whether the pass goes on.
    fn sweep(&self, now_ns: u64, walk: &mut FlowWalk) -> Result<bool> {
        let timeouts = self.maps.timeouts()?;
        let mut groups: Vec<Option<Group>> = Vec::new();
        for group in 0..=self.bucket_group.iter().copied().max().unwrap_or(0) {
            let owned = self.owned.get(group).then(|| self.maps.group(u32::from(group))).transpose()?;
            groups.push(owned.filter(|g| g.owned(now_ns)));
        }
        let Some((keys, flows)) = walk.next_chunk(self.maps.flows())? else { return Ok(false) };
        let mut expired: Vec<(FlowKey, FlowId)> = Vec::new();
        for (key, flow) in keys.iter().zip(flows) {
            let Some(group) = groups[usize::from(self.bucket_group[usize::from(flow.bucket)])] else {
                continue;
            };
            if expiry_ns(key, flow, group.since_ns, &timeouts) <= now_ns
                && self.take(key, flow, group.since_ns, now_ns, &timeouts)?
            {
                expired.push((*key, flow.id));
            }
        }
        if !expired.is_empty() {
            self.replication.send(replication::Command::Expired(expired));
        }
        Ok(true)
    }

    /// Takes an expired flow out of the table. Whether it was still that flow, and still expired:
    /// a packet may have begun it anew since it was looked at, and then it is put back.
    fn take(
        &self,
        key: &FlowKey,
        seen: &Flow,
        since_ns: u64,
        now_ns: u64,
        timeouts: &Timeouts,
    ) -> Result<bool> {
        let Some(flow) = self.maps.flows().take(key)? else { return Ok(false) };
        if flow.id == seen.id && expiry_ns(key, &flow, since_ns, timeouts) <= now_ns {
            return Ok(true);
        }
        // Between the two calls a third packet can have begun a flow of its own; it wins.
        match self.maps.flows().update(key, &flow, Write::New) {
            Ok(()) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn watch_losses(&self, before: &mut Vec<u64>) {
        let total = |counters: Vec<u64>| counters.get(Counter::EventsLost as usize).copied();
        let Some(total) = self.maps.counters().ok().and_then(total) else { return };
        if total == before.iter().sum::<u64>() {
            return;
        }
        let Ok(now) = self.maps.event_loss() else { return };
        let mut buckets = Buckets::EMPTY;
        for (bucket, count) in now.iter().enumerate() {
            if before.get(bucket) != Some(count) {
                buckets.insert(bucket as u8);
            }
        }
        *before = now;
        if !buckets.is_empty() {
            tracing::warn!("flow events of {} buckets were lost: comparing them", buckets.len());
            self.replication.send(replication::Command::Reconcile(buckets));
        }
    }
}

/// When a flow expires, in ns of the data plane's clock.
pub fn expiry_ns(key: &FlowKey, flow: &Flow, since_ns: u64, timeouts: &Timeouts) -> u64 {
    let state = FlowState::from_u8(flow.state as u8).unwrap_or(FlowState::None);
    flow.expires_ns(since_ns, timeouts.ns[TimeoutClass::of(key.proto) as usize][state as usize])
}
