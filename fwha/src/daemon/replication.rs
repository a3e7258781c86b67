//! The replication thread: flow events, sync sockets and the kernel's flow table around
//! [`fwha_proto::replication`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use fwha_common::flow::{Flow, FlowEvent, FlowId, FlowKey};
use fwha_common::{BUCKETS, MAX_GROUPS};
use fwha_proto::NodeId;
use fwha_proto::election::GroupId;
use fwha_proto::replication::{
    Buckets, BulkProgress, Event, Found, Lag, LinkStatus, Output, Ownership, Replication, Settings,
    SyncState, Unready, Warning,
};
use fwha_proto::seal::{KeyRing, OpenError};
use fwha_proto::time::Time;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::sync::{mpsc, oneshot};

use super::election;
use super::events::EventLog;
use super::kernel_diff::{KernelDiff, Next};
use super::mailbox::{Letters, Mailbox};
use super::names::Names;
use super::table::{Deletion, Table};
use crate::dataplane::Maps;
use crate::dataplane::events::Events;
use crate::dataplane::maps::FlowWalk;
use crate::socket::{Received, Refused, SyncSocket};
use crate::sys::clock::KernelClock;
use crate::sys::sched;

/// Beside others who want the processor, replication must keep up with what packets do, and they do not wait.
const NICE: i8 = -10;
/// After a turn in which something came in, what comes next gathers for this long: a turn costs more than an event or
/// a datagram, and changes share datagrams.
const GATHER: Duration = Duration::from_millis(1);
/// Flow events taken before datagrams have their turn.
const EVENT_BURST: usize = 4096;
/// Events that the largest ring holds, 64 MiB, each with a head of 8 bytes: so many are taken at most where all that were
/// told before are to be known. What is told meanwhile may go on without end.
const RING_EVENTS: usize = (64 << 20) / (size_of::<FlowEvent>() + 8);
/// Datagrams taken from one socket before the others have their turn, and before they are acknowledged. What some
/// hundreds hold takes longer to write into the kernel's table than a sender waits before it takes them for lost.
const DATAGRAM_BURST: usize = 32;
/// Map elements written with one system call.
const BATCH: usize = 512;
/// Elements of the kernel's table looked at in one turn while replica and table are compared.
const WALK_CHUNK: usize = 2048;
/// Between two snapshots for `status` and for the election.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(20);
/// From the end of a comparison to the beginning of the next at least: each walks the whole table, and its buckets are
/// neither sent as a whole nor proved equal to a peer's meanwhile.
const WALK_INTERVAL: Duration = Duration::from_secs(1);
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
    /// A sync link is another interface now: its socket.
    Opened(u8, SyncSocket),
    /// An operator wants everything sent to a peer, or asked for; `None` is all peers. The answer follows the
    /// next snapshot, which shows how far that is.
    Transfer {
        /// Which way.
        direction: Direction,
        /// With whom.
        peer: Option<NodeId>,
        /// How many buckets these are, by peer.
        reply: oneshot::Sender<Requested>,
    },
    /// An operator wants to know in which flows this node and a peer differ.
    Diff {
        /// The peer.
        peer: NodeId,
        /// Look also into buckets with equal digests.
        all: bool,
        /// Where what is found goes; one that nobody reads ends the comparison.
        found: mpsc::UnboundedSender<Found>,
        /// Whether it has begun.
        reply: oneshot::Sender<Result<(), DiffRefused>>,
    },
    /// An operator wants to know in which flows the replica and the kernel's table differ.
    DiffKernel {
        /// Where what is found goes; one that nobody reads ends the comparison.
        found: mpsc::UnboundedSender<Found>,
        /// Whether it has begun.
        reply: oneshot::Sender<Result<(), DiffRefused>>,
    },
    /// The config has changed.
    Reload {
        /// What it says now.
        settings: Settings,
        /// It chooses other flows.
        chosen: bool,
    },
    /// Hold these cluster keys from now on.
    Keys(KeyRing),
    /// The interface of a sync link has a carrier now, or has none.
    Carrier(u8, bool),
    /// End.
    Stop,
}

/// Why a comparison does not begin.
#[derive(Clone, Copy, Debug)]
pub enum DiffRefused {
    /// The peer cannot be asked.
    Unready(Unready),
    /// Another one with this peer, or with the kernel's table, is going on.
    Running,
}

/// What became of a request, by peer: how many buckets it is about.
pub type Requested = Vec<(NodeId, Result<usize, Unready>)>;

/// Which way a bulk transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the peer.
    Sending,
    /// From the peer.
    Receiving,
}

/// A bulk transfer that has come to its end.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// When.
    pub at: Time,
    /// Flow records sent or received.
    pub flows: u64,
    /// Flows removed because the peer did not mention them.
    pub swept: u64,
    /// Time that it took.
    pub took: Duration,
}

/// Groups that this node owns, as the election thread set them just before it told the data plane. Those that a daemon
/// resumes are in it from the start.
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
    /// When it was made. An old one is the sign of a thread that hangs.
    pub at: Time,
    /// By peer.
    pub peers: BTreeMap<NodeId, PeerSnapshot>,
    /// Counters that belong to no peer.
    pub counters: Vec<(&'static str, u64)>,
    /// Flows in the replica.
    pub flows: usize,
    /// As [`Replication::census`].
    pub census: Option<[usize; 2]>,
    /// Owned flows that no peer which answers is known to hold as they are.
    pub at_risk: u64,
}

/// Replication with one peer.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    /// Where it stands.
    pub state: SyncState,
    /// Age of the oldest change that the peer has not acknowledged.
    pub lag: Duration,
    /// For how long it has been so.
    pub state_for: Duration,
    /// Changes queued for it.
    pub queued: usize,
    /// Datagrams in flight to it.
    pub in_flight: usize,
    /// How long changes took until it acknowledged them.
    pub acknowledged: Lag,
    /// Digests agree in both directions.
    pub digest_match: bool,
    /// What does not fit.
    pub warnings: Vec<Warning>,
    /// Why its datagrams are refused, if they are.
    pub refused: Option<OpenError>,
    /// It has not shown the newest cluster key yet.
    pub renewing: bool,
    /// The bulk transfers under way.
    pub bulk: BTreeMap<Direction, BulkProgress>,
    /// The last ones that have come to their end.
    pub finished: BTreeMap<Direction, Finished>,
    /// The sync links to it.
    pub links: Vec<LinkStatus>,
    /// Counters.
    pub counters: Vec<(&'static str, u64)>,
}

/// What was there to be taken in a turn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Taken {
    /// Nothing.
    None,
    /// Something, and no more.
    Some,
    /// As much as is taken at a time: there may be more.
    Burst,
}

/// Takes bursts until there is no more, or as much was taken as a ring holds.
fn take_ring(mut burst: impl FnMut() -> Taken) {
    for _ in 0..RING_EVENTS.div_ceil(EVENT_BURST) {
        if burst() != Taken::Burst {
            return;
        }
    }
}

impl PeerSnapshot {
    /// The number of this session: another one knows nothing of what was asked for in it.
    pub fn session(&self) -> u64 {
        self.counters.iter().find(|(name, _)| *name == "sessions").map_or(0, |(_, n)| *n)
    }
}

/// A comparison of replica and kernel table under way.
struct Comparison {
    walk: FlowWalk,
    buckets: Buckets,
    began: Time,
}

/// When the next comparison may begin after one: not before as much time has passed as it took. However large the table
/// is and however long events are lost, half of the time is left to prove and send its buckets.
fn next_comparison(began: Time, ended: Time) -> Time {
    ended + WALK_INTERVAL.max(ended.since(began))
}

/// Everything that the thread works with.
pub struct Thread {
    /// The machine.
    pub replication: Replication,
    /// A socket for each sync link.
    pub sockets: Vec<SyncSocket>,
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
    /// Datagrams that the system refused to send.
    pub unsent: u64,
    /// What sockets have refused that are no more.
    pub refused: Refused,
    /// The data plane has flows from an earlier run.
    pub adopted: bool,
    /// Groups that it owned then and owns still, in their terms.
    pub resumed: BTreeMap<GroupId, u32>,
    /// The last bulk transfers that have come to their end.
    pub finished: BTreeMap<(NodeId, Direction), Finished>,
    /// The comparisons that are going on, and who wants to know.
    pub diffs: BTreeMap<NodeId, mpsc::UnboundedSender<Found>>,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn(self) -> Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new()
            .name("fwha-sync".into())
            .spawn(move || {
                if let Err(denied) = sched::set_nice(NICE) {
                    tracing::info!("replication has no larger share of a busy machine: {denied}");
                }
                self.run();
            })
            .context("cannot start the replication thread")
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.clock.now_ns())
    }

    fn run(mut self) {
        let mut table = Table::new(Arc::clone(&self.maps), self.bucket_group, Arc::clone(&self.owned));
        // What an earlier run left in the kernel is read before anything is said about it.
        let mut waiting = if self.adopted { Buckets::ALL } else { Buckets::EMPTY };
        let mut comparison = None;
        let mut comparison_due = Time::ZERO;
        let mut kernel_diff: Option<KernelDiff> = None;
        let mut snapshot_due = Time::ZERO;
        let mut in_sync: BTreeMap<NodeId, bool> = BTreeMap::new();
        let mut answers: Vec<(oneshot::Sender<Requested>, Requested)> = Vec::new();
        self.begin(&mut table);
        loop {
            let now = self.now();
            if comparison.is_none() && self.replication.missed() {
                waiting = Buckets::ALL;
            }
            if comparison.is_none() && !waiting.is_empty() && now >= comparison_due {
                let buckets = std::mem::take(&mut waiting);
                self.replication.reconcile_begin(buckets);
                comparison = Some(Comparison { walk: FlowWalk::new(WALK_CHUNK), buckets, began: now });
            }
            self.letters.acknowledge();
            while let Some(command) = self.letters.take() {
                let now = self.now();
                match command {
                    Command::Owned { group, term } => {
                        self.gain(now, &mut table, group, term);
                        snapshot_due = Time::ZERO;
                        // Of these flows the data plane knew better than another owner, who is none any more.
                        waiting = waiting | table.take_deferred().into_values().collect();
                    }
                    Command::Disowned { group } => {
                        // What the data plane did while it was the owner goes out as the owner's.
                        self.read_ring();
                        table.changed(now, group, false);
                        self.replication.set_ownership(now, self.buckets(group), Ownership::NotOwned);
                        snapshot_due = Time::ZERO;
                        // A new owner may have been heard before this one gave way.
                        for (key, bucket) in table.take_deferred() {
                            match self.replication.get(&key) {
                                Some(flow) => table.put(&[key], &[flow]),
                                // It has ended since, and the data plane's own of that key is nobody's.
                                None => _ = waiting.insert(bucket),
                            }
                        }
                    }
                    Command::Expired(flows) => {
                        // What the data plane told before, or it would bring them back.
                        self.read_ring();
                        self.replication.local_delete_batch(now, &flows);
                    }
                    Command::Reconcile(buckets) => waiting = waiting | buckets,
                    Command::Opened(link, socket) => self.reopen(link, socket),
                    Command::Transfer { direction, peer, reply } => {
                        let requested = match direction {
                            Direction::Sending => self.replication.request_bulk(peer),
                            Direction::Receiving => self.replication.request_resync(now, peer),
                        };
                        answers.push((reply, requested));
                        snapshot_due = Time::ZERO;
                    }
                    Command::Diff { peer, all, found, reply } => {
                        // A client that hung up needs no answer.
                        let _ = reply.send(self.begin_diff(now, peer, all, found));
                    }
                    Command::Reload { settings, chosen } => self.replication.reload(now, settings, chosen),
                    Command::DiffKernel { found, reply } => {
                        let begun = if kernel_diff.is_some() { Err(DiffRefused::Running) } else { Ok(()) };
                        if begun.is_ok() {
                            kernel_diff = Some(KernelDiff::new(found));
                        }
                        let _ = reply.send(begun);
                    }
                    Command::Keys(keys) => self.replication.set_keys(&keys),
                    Command::Carrier(link, carrier) => self.replication.carrier(link, carrier),
                    Command::Stop => return,
                }
            }
            // Behind the letters: what this node owns is known before its data plane tells what it did as the owner.
            let taken = [self.read_events(), self.read_sockets()];
            let by_group = |terms: Vec<(u8, u32)>| -> BTreeSet<_> {
                terms.into_iter().map(|(b, term)| (self.bucket_group[usize::from(b)], term)).collect()
            };
            for (group, term) in by_group(self.replication.take_past_terms()) {
                self.election.send(election::Command::PastTerm { group, term });
            }
            for (group, term) in by_group(self.replication.take_claims()) {
                self.election.send(election::Command::Claimed { group, term });
            }
            let now = self.now();
            let vanished = self.replication.counters().vanished;
            if let Some(c) = &mut comparison {
                // What peers told is in the table before it is looked at.
                self.drain(&mut table);
                match self.compare(now, &mut c.walk) {
                    Ok(true) => {}
                    Ok(false) => {
                        comparison_due = next_comparison(c.began, now);
                        comparison = None;
                        if self.replication.missed() && self.replication.counters().vanished > vanished {
                            // There is room now for what had none, until a peer fills it again.
                            comparison_due = now;
                        }
                    }
                    Err(error) => {
                        // An end now would declare flows dead that were only not seen.
                        tracing::warn!("cannot walk the flow table, will try again: {error}");
                        waiting = waiting | c.buckets;
                        comparison_due = next_comparison(c.began, now);
                        comparison = None;
                    }
                }
            }
            self.replication.tick(now);
            waiting = waiting | self.drain(&mut table) | table.take_astray();
            let mut looking = comparison.is_some();
            if !looking && let Some(mut diff) = kernel_diff.take() {
                match diff.turn(now, &self.replication, self.maps.flows()) {
                    Ok(Next::Done(astray)) => waiting = waiting | astray,
                    Ok(next) => {
                        looking = matches!(next, Next::Turn);
                        kernel_diff = Some(diff);
                    }
                    Err(error) => {
                        tracing::warn!("cannot compare the flow table with the replica: {error}");
                        diff.fail();
                    }
                }
            }
            if now >= snapshot_due {
                snapshot_due = now + SNAPSHOT_INTERVAL;
                self.publish(now, &table, &mut in_sync);
                for (reply, requested) in answers.drain(..) {
                    // A client that hung up needs no answer.
                    let _ = reply.send(requested);
                }
            }
            match taken.into_iter().max() {
                Some(Taken::Burst) => {}
                _ if looking => {}
                Some(Taken::Some) => self.gather(now + GATHER),
                _ => self.sleep(snapshot_due),
            }
        }
    }

    /// What comes before the first turn. What this node owns of an earlier run is known before anything of it is read: else
    /// it would be taken for another owner's.
    fn begin(&mut self, table: &mut Table) {
        if self.adopted {
            self.replication.reconcile_begin(Buckets::ALL);
        }
        let now = self.now();
        for (group, term) in std::mem::take(&mut self.resumed) {
            self.gain(now, table, group, term);
        }
        // The ring may tell of flows that are gone: the walk that finds that out begins behind it.
        self.read_ring();
    }

    /// This node owns a group.
    fn gain(&mut self, now: Time, table: &mut Table, group: GroupId, term: u32) {
        table.changed(now, group, true);
        let owned = Ownership::Owned { term };
        let refused = self.replication.set_ownership(now, self.buckets(group), owned);
        if let Some(term) = refused.iter().map(|b| self.replication.term(b)).max() {
            self.election.send(election::Command::PastTerm { group, term });
        }
    }

    /// Puts another socket on a sync link. What the one before has refused stays counted.
    fn reopen(&mut self, link: u8, socket: SyncSocket) {
        if let Some(place) = self.sockets.get_mut(usize::from(link)) {
            self.refused = self.refused + std::mem::replace(place, socket).refused();
        }
    }

    /// What all sockets have refused so far, those that are no more among them.
    fn refused(&self) -> Refused {
        self.sockets.iter().map(SyncSocket::refused).fold(self.refused, |sum, one| sum + one)
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
            .chain(self.sockets.iter().map(AsFd::as_fd))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // An error here (a signal) costs one more turn of the loop, nothing else.
        let _ = ppoll(&mut fds, Some(TimeSpec::from(wait)), None);
    }

    /// Sleeps until then, whatever comes in; but a letter wakes it.
    fn gather(&self, until: Time) {
        let wait = until.since(self.now());
        let _ = ppoll(
            &mut [PollFd::new(self.letters.as_fd(), PollFlags::POLLIN)],
            Some(TimeSpec::from(wait)),
            None,
        );
    }

    fn read_events(&mut self) -> Taken {
        let now = Time::from_nanos(self.clock.now_ns());
        let replication = &mut self.replication;
        match self.flow_events.drain(EVENT_BURST, |events| replication.local_batch(now, events)) {
            0 => Taken::None,
            EVENT_BURST => Taken::Burst,
            _ => Taken::Some,
        }
    }

    /// Takes all events that the ring holds now.
    fn read_ring(&mut self) {
        take_ring(|| self.read_events());
    }

    fn read_sockets(&mut self) -> Taken {
        let mut buffer = [0; BUFFER_LEN];
        let mut taken = Taken::None;
        for (link, socket) in self.sockets.iter().enumerate() {
            for n in 0..DATAGRAM_BURST {
                match socket.receive(&mut buffer) {
                    Ok(Received::Accepted(datagram)) => {
                        let (len, now) = (datagram.payload.len(), Time::from_nanos(self.clock.now_ns()));
                        self.replication.datagram(now, link as u8, &mut buffer[..len]);
                        taken = taken.max(Taken::Some);
                    }
                    Ok(Received::Refused) => {}
                    Ok(Received::Nothing) => break,
                    Err(error) => {
                        tracing::debug!(link, "replication socket: {error}");
                        break;
                    }
                }
                if n + 1 == DATAGRAM_BURST {
                    taken = Taken::Burst;
                }
            }
        }
        taken
    }

    /// One chunk of the comparison of replica and kernel table. Whether it goes on.
    fn compare(&mut self, now: Time, walk: &mut FlowWalk) -> io::Result<bool> {
        let Some((keys, flows)) = walk.next_chunk(self.maps.flows())? else {
            self.replication.reconcile_end(now);
            return Ok(false);
        };
        for (key, flow) in keys.iter().zip(flows) {
            self.replication.reconcile_seen(now, key, flow);
        }
        Ok(true)
    }

    fn begin_diff(
        &mut self,
        now: Time,
        peer: NodeId,
        all: bool,
        found: mpsc::UnboundedSender<Found>,
    ) -> Result<(), DiffRefused> {
        if self.diffs.get(&peer).is_some_and(|before| !before.is_closed()) {
            return Err(DiffRefused::Running);
        }
        self.replication.diff(now, peer, all).map_err(DiffRefused::Unready)?;
        self.diffs.insert(peer, found);
        Ok(())
    }

    /// Passes on what a comparison has found.
    fn tell(&mut self, peer: NodeId, found: Found) {
        let over = !matches!(found, Found::Difference(_));
        let heard = self.diffs.get(&peer).is_some_and(|to| to.send(found).is_ok());
        if !heard {
            self.replication.diff_stop(peer);
        }
        if over || !heard {
            self.diffs.remove(&peer);
        }
    }

    /// Does what the machine says. Buckets to compare with the kernel's table.
    fn drain(&mut self, table: &mut Table) -> Buckets {
        let mut astray = Buckets::EMPTY;
        let mut puts: (Vec<FlowKey>, Vec<Flow>) = (Vec::new(), Vec::new());
        let mut deletes: Vec<Deletion> = Vec::new();
        let put = |table: &mut Table, (keys, flows): &mut (Vec<FlowKey>, Vec<Flow>), least: usize| {
            if keys.len() >= least {
                table.put(keys, flows);
                keys.clear();
                flows.clear();
            }
        };
        let now = self.now();
        let delete = |table: &mut Table, flows: &mut Vec<Deletion>, least: usize| {
            if flows.len() >= least {
                table.delete(now, flows);
                flows.clear();
            }
        };
        while let Some(output) = self.replication.poll() {
            match output {
                Output::Put(key, flow) => {
                    delete(table, &mut deletes, 1);
                    puts.0.push(key);
                    puts.1.push(flow);
                    put(table, &mut puts, BATCH);
                }
                Output::Delete(key, id, version) => {
                    put(table, &mut puts, 1);
                    deletes.push(Deletion { key, id, version });
                    delete(table, &mut deletes, BATCH);
                }
                Output::Confirm(key, flow) => {
                    delete(table, &mut deletes, 1);
                    put(table, &mut puts, 1);
                    table.confirm(&key, &flow);
                }
                Output::Transmit { peer, link, datagram } => self.transmit(peer, link, &datagram),
                Output::Reconcile(buckets) => astray = astray | buckets,
                Output::Event(event) => self.record(&event),
                Output::Diff { peer, found } => self.tell(peer, found),
            }
        }
        put(table, &mut puts, 1);
        delete(table, &mut deletes, 1);
        astray
    }

    fn transmit(&mut self, peer: NodeId, link: Option<u8>, datagram: &[u8]) {
        for (number, socket) in self.sockets.iter().enumerate() {
            let number = number as u8;
            if link.is_some_and(|l| l != number) {
                continue;
            }
            let Some(to) = self.peers.get(&(number, peer)) else { continue };
            match socket.send(*to, datagram) {
                Ok(true) => {}
                // Lost here as it might be on the way: it is not acknowledged, and sent again.
                Ok(false) => self.unsent += 1,
                Err(error) => {
                    self.unsent += 1;
                    tracing::debug!(link = number, "cannot replicate: {error}");
                }
            }
        }
    }

    fn publish(&self, now: Time, table: &Table, in_sync: &mut BTreeMap<NodeId, bool>) {
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
                    state_for: status.state_for,
                    queued: status.queued,
                    in_flight: status.unacked,
                    acknowledged: status.acknowledged.clone(),
                    digest_match: status.digest_match,
                    warnings: status.warnings.to_vec(),
                    refused: status.refused,
                    renewing: status.renewing,
                    bulk: [(Direction::Sending, status.sending), (Direction::Receiving, status.receiving)]
                        .into_iter()
                        .filter_map(|(direction, progress)| Some((direction, progress?)))
                        .collect(),
                    finished: [Direction::Sending, Direction::Receiving]
                        .into_iter()
                        .filter_map(|d| Some((d, *self.finished.get(&(status.peer, d))?)))
                        .collect(),
                    links: status.links,
                    counters: status.counters.iter().collect(),
                },
            );
        }
        let refused = self.refused();
        let mut counters: Vec<_> = self.replication.counters().iter().collect();
        counters.extend([
            ("applied", table.written),
            ("apply_full", table.full),
            ("apply_failed", table.failed),
            ("restored", table.restored),
            ("events_malformed", self.flow_events.malformed()),
            ("unsent", self.unsent),
            ("refused_ttl", refused.ttl),
            ("refused_length", refused.length),
        ]);
        self.snapshot.store(Arc::new(Snapshot {
            at: now,
            peers,
            counters,
            flows: self.replication.len(),
            census: self.replication.census(),
            at_risk: self.replication.at_risk(),
        }));
    }

    fn record(&mut self, event: &Event) {
        let at = self.now();
        match *event {
            Event::BulkSent { peer, flows, took } => {
                self.finished.insert((peer, Direction::Sending), Finished { at, flows, swept: 0, took });
            }
            Event::BulkReceived { peer, flows, swept, took } => {
                self.finished.insert((peer, Direction::Receiving), Finished { at, flows, swept, took });
            }
            _ => {}
        }
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
            Event::BulkCut { peer, flows } => (
                "bulk",
                format!("sent {flows} flows to {}: the rest is not this node's any more", names.node(*peer)),
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
            Event::LinkChanged { peer, from, to } => (
                "link",
                format!(
                    "replication to {} takes {} instead of {}",
                    names.node(*peer),
                    names.link(*to),
                    names.link(*from)
                ),
            ),
            Event::Overflow { peer } => (
                "overflow",
                format!("the queue to {} is full: whole buckets will be sent", names.node(*peer)),
            ),
        };
        self.events.record(at, kind, None, text, Vec::new());
    }
}

#[cfg(test)]
mod tests;
