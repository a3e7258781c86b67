//! The replication thread: flow events, sync sockets and the kernel's flow table around
//! [`fwha_proto::replication`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use fwha_common::flow::{Flow, FlowId, FlowKey};
use fwha_common::{BUCKETS, MAX_GROUPS};
use fwha_proto::NodeId;
use fwha_proto::election::GroupId;
use fwha_proto::replication::{Buckets, Event, Output, Ownership, Replication, SyncState, Warning};
use fwha_proto::time::Time;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::election;
use super::events::EventLog;
use super::mailbox::{Letters, Mailbox};
use super::names::Names;
use crate::dataplane::Maps;
use crate::dataplane::events::Events;
use crate::dataplane::maps::FlowWalk;
use crate::socket::SyncSocket;
use crate::sys::bpf::Write;
use crate::sys::clock::KernelClock;

/// Flow events taken before datagrams have their turn.
const EVENT_BURST: usize = 4096;
/// Datagrams taken from one socket before the others have their turn.
const DATAGRAM_BURST: usize = 256;
/// Map elements written with one system call.
const BATCH: usize = 512;
/// Elements of the kernel's table looked at in one turn while replica and table are compared.
const WALK_CHUNK: usize = 2048;
/// Between two snapshots for `status` and for the election.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(20);
/// The longest datagram on a sync link.
const BUFFER_LEN: usize = 9216;

/// What other threads tell this one.
pub enum Command {
    /// This node owns a group's buckets now.
    Owned {
        /// The group.
        group: GroupId,
        /// Its term.
        term: u32,
    },
    /// It does not any more.
    Disowned {
        /// The group.
        group: GroupId,
    },
    /// Flows that were deleted from the kernel's table because they expired.
    Expired(Vec<(FlowKey, FlowId)>),
    /// Events of these buckets were lost: look at the kernel's table itself.
    Reconcile(Buckets),
    /// End.
    Stop,
}

/// Groups that this node owns, as the election thread set them just before it told the data plane.
#[derive(Default)]
pub struct OwnedGroups([AtomicBool; MAX_GROUPS]);

impl OwnedGroups {
    /// Says whether a group is owned.
    pub fn set(&self, group: GroupId, owned: bool) {
        if let Some(flag) = self.0.get(usize::from(group)) {
            flag.store(owned, Ordering::Release);
        }
    }

    /// Whether a group is owned.
    pub fn get(&self, group: GroupId) -> bool {
        self.0.get(usize::from(group)).is_some_and(|flag| flag.load(Ordering::Acquire))
    }

    /// Whether any is.
    pub fn any(&self) -> bool {
        self.0.iter().any(|flag| flag.load(Ordering::Acquire))
    }
}

/// What `status` and `stats` show of replication.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By peer.
    pub peers: BTreeMap<NodeId, PeerSnapshot>,
    /// Counters that belong to no peer.
    pub counters: Vec<(&'static str, u64)>,
    /// Flows in the replica.
    pub flows: usize,
}

/// Replication with one peer.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    /// Where it stands.
    pub state: SyncState,
    /// Age of the oldest change that the peer has not acknowledged.
    pub lag: Duration,
    /// Changes that it has not acknowledged: queued, and datagrams in flight.
    pub unacked: usize,
    /// Digests agree in both directions.
    pub digest_match: bool,
    /// What does not fit.
    pub warnings: Vec<Warning>,
    /// Why its datagrams are refused, if they are.
    pub refused: Option<String>,
    /// Counters.
    pub counters: Vec<(&'static str, u64)>,
}

/// Counters of what the kernel's table refused.
#[derive(Default)]
struct Applied {
    full: u64,
    failed: u64,
    written: u64,
    /// Buckets of flows that are in the replica but not in the kernel's table, since the last look.
    astray: Buckets,
}

/// Everything that the thread works with.
pub struct Thread {
    /// The machine.
    pub replication: Replication,
    /// A socket for each sync link.
    pub sockets: Vec<Arc<SyncSocket>>,
    /// Where datagrams to a peer go, by sync link and node.
    pub peers: BTreeMap<(u8, NodeId), SocketAddrV4>,
    /// Flow events of the data plane.
    pub flow_events: Events,
    /// What others tell it.
    pub letters: Letters<Command>,
    /// The election, which wants to know who is in sync.
    pub election: Mailbox<election::Command>,
    /// The data plane.
    pub maps: Arc<Maps>,
    /// The group of each bucket.
    pub bucket_group: [GroupId; BUCKETS],
    /// Groups that this node owns.
    pub owned: Arc<OwnedGroups>,
    /// The clock of the data plane.
    pub clock: KernelClock,
    /// Where events go.
    pub events: Arc<EventLog>,
    /// Names for texts.
    pub names: Arc<Names>,
    /// Where `status` looks.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The data plane has flows from an earlier run.
    pub adopted: bool,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(self) -> Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new()
            .name("fwha-sync".into())
            .spawn(move || self.run())
            .context("cannot start the replication thread")
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.clock.now_ns())
    }

    fn run(mut self) {
        let mut walk = None;
        let mut waiting = Buckets::EMPTY;
        let mut applied = Applied::default();
        let mut snapshot_due = Time::ZERO;
        let mut in_sync: BTreeMap<NodeId, bool> = BTreeMap::new();
        if self.adopted {
            self.replication.reconcile_begin(Buckets::ALL);
            walk = Some(FlowWalk::new(WALK_CHUNK));
        }
        loop {
            let busy = self.read_events() | self.read_sockets();
            self.letters.acknowledge();
            while let Some(command) = self.letters.take() {
                let now = self.now();
                match command {
                    Command::Owned { group, term } => {
                        let owned = Ownership::Owned { term };
                        self.replication.set_ownership(now, self.buckets(group), owned);
                    }
                    Command::Disowned { group } => {
                        // What the data plane did while it was the owner goes out as the owner's.
                        while self.read_events() {}
                        self.replication.set_ownership(now, self.buckets(group), Ownership::NotOwned);
                    }
                    Command::Expired(flows) => {
                        for (key, id) in flows {
                            self.replication.local_delete(now, &key, &id);
                        }
                    }
                    Command::Reconcile(buckets) => waiting = waiting | buckets,
                    Command::Stop => return,
                }
            }
            waiting = waiting | std::mem::take(&mut applied.astray);
            if self.replication.missed() && walk.is_none() {
                waiting = Buckets::ALL;
            }
            if walk.is_none() && !waiting.is_empty() {
                self.replication.reconcile_begin(std::mem::take(&mut waiting));
                walk = Some(FlowWalk::new(WALK_CHUNK));
            }
            let now = self.now();
            if let Some(w) = &mut walk
                && self.walk_on(now, w)
            {
                walk = None;
            }
            self.replication.tick(now);
            self.drain(&mut applied);
            if now >= snapshot_due {
                snapshot_due = now + SNAPSHOT_INTERVAL;
                self.publish(now, &applied, &mut in_sync);
            }
            if !busy && walk.is_none() {
                self.sleep(snapshot_due);
            }
        }
    }

    fn buckets(&self, group: GroupId) -> Buckets {
        let mut buckets = Buckets::EMPTY;
        for (bucket, _) in self.bucket_group.iter().enumerate().filter(|(_, g)| **g == group) {
            buckets.insert(bucket as u8);
        }
        buckets
    }

    fn sleep(&self, snapshot_due: Time) {
        let wait = self.replication.next_timeout().min(snapshot_due).since(self.now());
        let mut fds: Vec<PollFd<'_>> = [self.letters.as_fd(), self.flow_events.as_fd()]
            .into_iter()
            .chain(self.sockets.iter().map(|socket| socket.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // An error here (a signal) costs one more turn of the loop, nothing else.
        let _ = ppoll(&mut fds, Some(TimeSpec::from(wait)), None);
    }

    /// Whether there may be more.
    fn read_events(&mut self) -> bool {
        let now = Time::from_nanos(self.clock.now_ns());
        let replication = &mut self.replication;
        self.flow_events.drain(EVENT_BURST, |event| replication.local(now, event)) == EVENT_BURST
    }

    /// Whether there may be more.
    fn read_sockets(&mut self) -> bool {
        let mut buffer = [0; BUFFER_LEN];
        let mut more = false;
        for (link, socket) in self.sockets.iter().enumerate() {
            for n in 0..DATAGRAM_BURST {
                match socket.receive(&mut buffer) {
                    Ok(Some(datagram)) => {
                        let (len, now) = (datagram.payload.len(), Time::from_nanos(self.clock.now_ns()));
                        self.replication.datagram(now, link as u8, &mut buffer[..len]);
                        more |= n + 1 == DATAGRAM_BURST;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(link, "replication socket: {error}");
                        break;
                    }
                }
            }
        }
        more
    }

    /// One chunk of the comparison of replica and kernel table. Whether that was the last.
    fn walk_on(&mut self, now: Time, walk: &mut FlowWalk) -> bool {
        match walk.next_chunk(self.maps.flows()) {
            Ok(Some((keys, flows))) => {
                for (key, flow) in keys.iter().zip(flows) {
                    self.replication.reconcile_seen(now, key, flow);
                }
                false
            }
            Ok(None) => {
                self.replication.reconcile_end(now);
                true
            }
            Err(error) => {
                // An end now would declare flows dead that were only not seen. Begin anew.
                tracing::warn!("cannot walk the flow table: {error}");
                *walk = FlowWalk::new(WALK_CHUNK);
                false
            }
        }
    }

    fn drain(&mut self, applied: &mut Applied) {
        let mut puts: (Vec<FlowKey>, Vec<Flow>) = (Vec::new(), Vec::new());
        let mut deletes: Vec<FlowKey> = Vec::new();
        while let Some(output) = self.replication.poll() {
            match output {
                Output::Put(key, flow) => {
                    self.delete(&mut deletes, applied);
                    puts.0.push(key);
                    puts.1.push(flow);
                    if puts.0.len() == BATCH {
                        self.put(&mut puts, applied);
                    }
                }
                Output::Delete(key, _) => {
                    self.put(&mut puts, applied);
                    deletes.push(key);
                    if deletes.len() == BATCH {
                        self.delete(&mut deletes, applied);
                    }
                }
                Output::Transmit { peer, link, datagram } => self.transmit(peer, link, &datagram),
                Output::Event(event) => self.record(&event),
            }
        }
        self.put(&mut puts, applied);
        self.delete(&mut deletes, applied);
    }

    /// Writes flows of peers into the kernel's table. In a bucket that became ours a moment ago the
    /// data plane may have gone on already, so there a flow is only added, never overwritten.
    fn put(&self, puts: &mut (Vec<FlowKey>, Vec<Flow>), applied: &mut Applied) {
        let (keys, flows) = puts;
        if keys.is_empty() {
            return;
        }
        if self.owned.any() {
            for (key, flow) in keys.iter().zip(flows.iter()) {
                let ours = self.owned.get(self.bucket_group[usize::from(flow.bucket)]);
                let write = if ours { Write::New } else { Write::Any };
                match self.maps.flows().update(key, flow, write) {
                    Ok(()) => applied.written += 1,
                    Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                    Err(error) => {
                        let full = error.raw_os_error() == Some(libc::E2BIG);
                        *(if full { &mut applied.full } else { &mut applied.failed }) += 1;
                        applied.astray.insert(flow.bucket);
                    }
                }
            }
        } else {
            match self.maps.flows().update_batch(keys, flows) {
                Ok(written) => {
                    applied.written += written.done as u64;
                    applied.full += written.refused.len() as u64;
                    for at in written.refused {
                        applied.astray.insert(flows[at].bucket);
                    }
                }
                Err(error) => {
                    applied.failed += keys.len() as u64;
                    flows.iter().for_each(|flow| _ = applied.astray.insert(flow.bucket));
                    tracing::warn!("cannot write {} flows of a peer: {error}", keys.len());
                }
            }
        }
        keys.clear();
        flows.clear();
    }

    fn delete(&self, deletes: &mut Vec<FlowKey>, applied: &mut Applied) {
        if deletes.is_empty() {
            return;
        }
        if let Err(error) = self.maps.flows().delete_batch(deletes) {
            applied.failed += deletes.len() as u64;
            tracing::warn!("cannot delete {} flows of a peer: {error}", deletes.len());
        }
        deletes.clear();
    }

    fn transmit(&self, peer: NodeId, link: Option<u8>, datagram: &[u8]) {
        for (number, socket) in self.sockets.iter().enumerate() {
            let number = number as u8;
            if link.is_some_and(|l| l != number) {
                continue;
            }
            if let Some(to) = self.peers.get(&(number, peer))
                && let Err(error) = socket.send(*to, datagram)
                && error.kind() != io::ErrorKind::NetworkUnreachable
            {
                tracing::debug!(link = number, "cannot replicate: {error}");
            }
        }
    }

    fn publish(&self, now: Time, applied: &Applied, in_sync: &mut BTreeMap<NodeId, bool>) {
        let mut peers = BTreeMap::new();
        for status in self.replication.status(now) {
            let synced = status.state == SyncState::InSync;
            if in_sync.insert(status.peer, synced) != Some(synced) {
                let received = status.counters.datagrams_received;
                self.election.send(election::Command::SyncStatus {
                    peer: status.peer,
                    in_sync: synced,
                    applied: received,
                });
            }
            peers.insert(
                status.peer,
                PeerSnapshot {
                    state: status.state,
                    lag: status.lag,
                    unacked: status.queued + status.unacked,
                    digest_match: status.digest_match,
                    warnings: status.warnings.to_vec(),
                    refused: status.refused.map(|r| r.to_string()),
                    counters: status.counters.iter().collect(),
                },
            );
        }
        let mut counters: Vec<_> = self.replication.counters().iter().collect();
        counters.extend([
            ("applied", applied.written),
            ("apply_full", applied.full),
            ("apply_failed", applied.failed),
            ("events_malformed", self.flow_events.malformed()),
        ]);
        self.snapshot.store(Arc::new(Snapshot { peers, counters, flows: self.replication.len() }));
    }

    fn record(&self, event: &Event) {
        let names = &self.names;
        let (kind, text) = match event {
            Event::SessionOpened { peer, epoch } => {
                ("session", format!("replication with {} opened (epoch {epoch:016x})", names.node(*peer)))
            }
            Event::Warning { peer, warning } => ("warning", format!("{}: {warning}", names.node(*peer))),
            Event::State { peer, from, to } => (
                "sync",
                format!("replication with {}: {} -> {}", names.node(*peer), from.as_str(), to.as_str()),
            ),
            Event::BulkSendStarted { peer, buckets, flows } => {
                ("bulk", format!("sending {flows} flows in {buckets} buckets to {}", names.node(*peer)))
            }
            Event::BulkSent { peer, flows, took } => (
                "bulk",
                format!("sent {flows} flows to {} in {:.3} s", names.node(*peer), took.as_secs_f64()),
            ),
            Event::BulkReceiveStarted { peer, buckets, flows } => {
                ("bulk", format!("{} sends {flows} flows in {buckets} buckets", names.node(*peer)))
            }
            Event::BulkReceived { peer, flows, swept, took } => (
                "bulk",
                format!(
                    "received {flows} flows from {} in {:.3} s; {swept} that it does not have are gone",
                    names.node(*peer),
                    took.as_secs_f64()
                ),
            ),
            Event::Differs { peer, buckets } => (
                "differs",
                format!("{buckets} buckets differ from what {} has: asked for them", names.node(*peer)),
            ),
            Event::Overflow { peer } => (
                "overflow",
                format!("the queue to {} is full: whole buckets will be sent", names.node(*peer)),
            ),
        };
        self.events.record(self.now(), kind, None, text, Vec::new());
    }
}
