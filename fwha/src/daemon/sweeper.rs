//! The sweeper: deletes flows that expired, renews the filter of flows that there may be, notes whom flows were sent to, and
//! notices events that were lost.
//!
//! Only the owner of a flow expires it. The data plane treats an expired flow as absent at once;
//! the sweeper only takes its element away, so it has time: a whole pass over the table takes some
//! seconds and no more than a small share of a CPU, unless very many flows end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fwha_common::BUCKETS;
use fwha_common::flow::{Flow, FlowId, FlowKey};
use fwha_common::group::Group;
use fwha_common::settings::{Counter, Timeouts};
use fwha_common::sweep::Doomed;
use fwha_proto::election::GroupId;
use fwha_proto::replication::Buckets;
use tokio::sync::watch;

use super::limit::Limit;
use super::mailbox::Mailbox;
use super::neighbours::{self, InUse};
use super::replication::{self, OwnedGroups};
use crate::dataplane::bloom::Renewal;
use crate::dataplane::maps::FlowWalk;
use crate::dataplane::{FlowMap, Maps};
use crate::sys::clock::KernelClock;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(100);
/// Between two looks at the node's own flows.
const NODE_INTERVAL: Duration = Duration::from_secs(10);
/// Between the beginnings of two passes over the table.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// Between two turns of a pass.
const TURN_INTERVAL: Duration = Duration::from_millis(10);
/// Elements looked at in one turn: a millisecond of a CPU when the table is cold. If all have expired, peers are told
/// within some milliseconds; other changes wait behind that.
const CHUNK: usize = 2048;
/// Flows that nobody has answered looked at in one go, 256 bytes each.
const UNANSWERED: usize = 512;
/// Flows expired in one turn: with more than these, the next turn does not wait as long.
const MANY: usize = CHUNK / 16;
/// A flow goes so long after it expired, in ns: the programs' clock is behind by a tick of the kernel at most, and none of them
/// takes it for alive any more.
const SETTLED_NS: u64 = 20_000_000;

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
    /// Who tells the kernel which neighbours are in use.
    pub neighbours: watch::Sender<Arc<InUse>>,
    /// Lost events by bucket, as counted before the replication thread first read the table.
    pub lost: Vec<u64>,
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

    fn run(mut self) {
        let mut pass: Option<Pass> = None;
        let (mut pass_due, mut neighbours_due, mut node_due) = (0, 0, 0);
        let mut counted = false;
        let mut complaints = Limit::default();
        let mut lost = std::mem::take(&mut self.lost);
        let mut pause = INTERVAL;
        while self.stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            pause = INTERVAL;
            self.watch_losses(&mut lost, &mut complaints);
            let now_ns = self.clock.now_ns();
            if now_ns >= node_due {
                node_due = now_ns + NODE_INTERVAL.as_nanos() as u64;
                if let Err(error) = self.sweep_node(now_ns)
                    && let Some(held) = complaints.pass()
                {
                    tracing::warn!(held, "cannot sweep the node's own flows: {error:#}");
                }
            }
            if pass.is_none() && now_ns >= pass_due && self.owned.any() {
                pass_due = now_ns + PASS_INTERVAL.as_nanos() as u64;
                let in_use = (now_ns >= neighbours_due).then(InUse::default);
                if in_use.is_some() {
                    neighbours_due = now_ns + neighbours::INTERVAL.as_nanos() as u64;
                }
                match Pass::begin(&self.maps, now_ns, CHUNK) {
                    Ok(begun) => (pass, counted) = (Some(Pass { in_use, ..begun }), true),
                    Err(error) => cannot_count(&mut complaints, &error),
                }
            }
            if pass.is_none() && counted && !self.owned.any() {
                counted = false;
                if let Err(error) = Sources::forget(&self.maps) {
                    cannot_count(&mut complaints, &error);
                }
            }
            let Some(present) = &mut pass else { continue };
            pause = TURN_INTERVAL;
            let began = Instant::now();
            match self.sweep(now_ns, present) {
                // Where so much ends, more than a small share of a CPU is needed: half of one.
                Ok(Some(expired)) if expired >= MANY => pause = began.elapsed().min(TURN_INTERVAL),
                Ok(Some(_)) => {}
                Ok(None) => {
                    if let Some(Err(error)) = pass.take().map(|pass| pass.end(&self.maps)) {
                        cannot_count(&mut complaints, &error);
                    }
                }
                Err(error) => {
                    if let Some(held) = complaints.pass() {
                        tracing::warn!(held, "cannot sweep expired flows: {error:#}");
                    }
                    pass = None;
                }
            }
        }
    }

    /// One turn of a pass: how many flows had expired. `None` if the pass is over.
    fn sweep(&self, now_ns: u64, pass: &mut Pass) -> Result<Option<usize>> {
        let timeouts = self.maps.timeouts()?;
        let mut groups: Vec<Option<Group>> = Vec::new();
        for group in 0..=self.bucket_group.iter().copied().max().unwrap_or(0) {
            let owned = self.owned.get(group).then(|| self.maps.group(u32::from(group))).transpose()?;
            groups.push(owned.filter(|g| g.owned(now_ns)));
        }
        let Some((keys, flows)) = pass.walk.next_chunk(self.maps.flows())? else {
            if let Some(in_use) = pass.in_use.take() {
                self.tell_in_use(in_use, now_ns)?;
            }
            return Ok(None);
        };
        keys.iter().for_each(|key| pass.renewal.keep(key));
        let mut doomed: Vec<Doomed> = Vec::new();
        let mut expired: Vec<(FlowKey, FlowId)> = Vec::new();
        let mut buckets = Buckets::EMPTY;
        for (key, flow) in keys.iter().zip(flows) {
            let Some(group) = groups[usize::from(self.bucket_group[usize::from(flow.bucket)])] else {
                continue;
            };
            if expiry_ns(key, flow, group.since_ns, &timeouts).saturating_add(SETTLED_NS) > now_ns {
                pass.sources.count(key, flow);
                if let Some(in_use) = &mut pass.in_use {
                    in_use.note(flow, now_ns);
                }
                continue;
            }
            doomed.push(Doomed::new(*key, flow));
            expired.push((*key, flow.id()));
            buckets.insert(flow.bucket);
        }
        if doomed.is_empty() {
            return Ok(Some(0));
        }
        let gone = match self.maps.sweep(&doomed) {
            Ok(gone) => gone,
            Err(error) => {
                // Which of them are still there is not known now, and what is gone must be told, or the peers keep it for
                // ever.
                self.replication.send(replication::Command::Reconcile(buckets));
                return Err(error.into());
            }
        };
        let mut gone = gone.into_iter();
        expired.retain(|_| gone.next() == Some(true));
        let count = expired.len();
        if count > 0 {
            self.replication.send(replication::Command::Expired(expired));
        }
        Ok(Some(count))
    }

    /// Deletes the node's own flows that have expired, whoever is Active. New ones push out what was not used for longest, which
    /// may be an idle session, while there are expired ones.
    fn sweep_node(&self, now_ns: u64) -> Result<()> {
        self.maps.node_tables().iter().try_for_each(|table| self.sweep_node_table(table, now_ns))
    }

    fn sweep_node_table(&self, flows: &FlowMap, now_ns: u64) -> Result<()> {
        let timeouts = self.maps.timeouts()?;
        // One that an operator ended is there to say so.
        let over = |key: &FlowKey, flow: &Flow| {
            !flow.is_ended() && expiry_ns(key, flow, 0, &timeouts).saturating_add(SETTLED_NS) <= now_ns
        };
        let mut walk = FlowWalk::new(CHUNK);
        while let Some((keys, found)) = walk.next_chunk(flows)? {
            for (key, _) in keys.iter().zip(found).filter(|(key, flow)| over(key, flow)) {
                // Its ends may have begun anew since it was read.
                if flows.lookup(key)?.is_some_and(|flow| over(key, &flow)) {
                    flows.delete(key)?;
                }
            }
        }
        Ok(())
    }

    /// Hands on whom flows were sent to; also those that nobody has answered, for a stream one way stays one of them.
    fn tell_in_use(&self, mut in_use: InUse, now_ns: u64) -> Result<()> {
        self.maps.each_embryonic(UNANSWERED, |flows| {
            flows.for_each(|(_, flow)| in_use.note(flow, now_ns));
            true
        })?;
        self.neighbours.send_replace(Arc::new(in_use));
        Ok(())
    }

    fn watch_losses(&self, before: &mut Vec<u64>, complaints: &mut Limit) {
        let total = |counters: Vec<u64>| counters.get(Counter::EventsLost as usize).copied();
        let Some(total) = self.maps.counters().ok().and_then(total) else { return };
        if total == before.iter().sum::<u64>() {
            return;
        }
        let Ok(now) = self.maps.event_loss() else { return };
        let buckets = risen(before, &now);
        *before = now;
        if !buckets.is_empty() {
            if let Some(held) = complaints.pass() {
                let count = buckets.len();
                tracing::warn!(held, "flow events of {count} buckets were lost: comparing them");
            }
            self.replication.send(replication::Command::Reconcile(buckets));
        }
    }
}

fn cannot_count(complaints: &mut Limit, error: &anyhow::Error) {
    if let Some(held) = complaints.pass() {
        tracing::warn!(held, "cannot count the flows of sources: {error:#}");
    }
}

/// A pass over the table, and what is found out in it.
struct Pass {
    walk: FlowWalk,
    sources: Sources,
    renewal: Renewal,
    /// Nothing if they were noted a moment ago.
    in_use: Option<InUse>,
}

impl Pass {
    fn begin(maps: &Maps, now_ns: u64, chunk: usize) -> Result<Self> {
        let sources = Sources::wanted(maps, now_ns)?;
        // Before the walk, so that that sees what is put in until then.
        let renewal = maps.bloom().renew();
        Ok(Self { walk: FlowWalk::new(chunk), sources, renewal, in_use: None })
    }

    fn end(self, maps: &Maps) -> Result<()> {
        maps.bloom().finish(self.renewal);
        self.sources.tell(maps)
    }
}

/// How many flows each source has, counted in a pass. Nothing is counted while nobody limits it.
struct Sources {
    /// Those that began before the pass.
    counted: Option<HashMap<[u32; 4], u32>>,
    /// What the programs knew then. They count what comes meanwhile.
    before: HashMap<[u32; 4], u32>,
    begun_ns: u64,
}

impl Sources {
    fn wanted(maps: &Maps, now_ns: u64) -> Result<Self> {
        let limited = maps.limits()?.flows != 0;
        Ok(Self {
            counted: limited.then(HashMap::new),
            before: if limited { maps.flows_of_sources()? } else { HashMap::new() },
            begun_ns: now_ns,
        })
    }

    /// Of flows that are not this node's no source has any: should they be so again, they are counted anew.
    fn forget(maps: &Maps) -> Result<()> {
        Ok(maps.set_source_flows(HashMap::new(), &maps.flows_of_sources()?)?)
    }

    fn count(&mut self, key: &FlowKey, flow: &Flow) {
        if let Some(counts) = &mut self.counted
            && flow.created_ns() < self.begun_ns
        {
            *counts.entry(if flow.originator_is_b() { key.addr_b } else { key.addr_a }).or_default() += 1;
        }
    }

    fn tell(self, maps: &Maps) -> Result<()> {
        self.counted.map_or(Ok(()), |counted| Ok(maps.set_source_flows(counted, &self.before)?))
    }
}

/// The buckets whose counters have risen.
fn risen(before: &[u64], now: &[u64]) -> Buckets {
    let mut buckets = Buckets::EMPTY;
    for (bucket, count) in now.iter().enumerate() {
        if before.get(bucket) != Some(count) {
            buckets.insert(bucket as u8);
        }
    }
    buckets
}

/// When a flow expires, in ns of the data plane's clock.
pub fn expiry_ns(key: &FlowKey, flow: &Flow, since_ns: u64, timeouts: &Timeouts) -> u64 {
    flow.expires_ns(since_ns, timeouts.of(key.proto, flow, since_ns).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use fwha_common::flow::FlowState;
    use fwha_common::limit::Limits;

    use super::*;
    use crate::daemon::mailbox::mailbox;
    use crate::dataplane::Dataplane;
    use crate::sys::bpf::Write;
    use crate::testing::{Net, options, root};

    const SECOND: u64 = 1_000_000_000;

    /// A TCP flow in FIN-WAIT that was last seen at second `seen` of a time long ago.
    fn flow(number: u64, seen: u64) -> Flow {
        let mut flow = Flow::of(FlowId { number, epoch: 1, node: 1, zero: [0; 3] });
        flow.word = Flow::word(FlowState::FinWait, 0, [1, 2]);
        flow.ways[0].last_seen_ns = seen * SECOND;
        flow
    }

    fn key(n: u16) -> FlowKey {
        FlowKey { port_a: n, proto: 6, ..FlowKey::default() }
    }

    #[test]
    fn only_the_owner_expires_flows_and_not_before_its_time() {
        if !root() {
            return;
        }
        Net::new().with_bpffs(|| {
            let (dataplane, _events) = Dataplane::open(options(64)).unwrap();
            let maps = dataplane.maps();
            maps.set_timeouts(&Timeouts::KERNEL).unwrap();
            let (replication, told) = mailbox().unwrap();
            let (neighbours, in_use) = neighbours::channel();
            let (_go_on, stop) = std::sync::mpsc::channel();
            let clock = KernelClock::new().unwrap();
            let owned = Arc::new(OwnedGroups::default());
            let sweeper = Thread {
                maps: Arc::clone(&maps),
                clock,
                bucket_group: [0; BUCKETS],
                owned: Arc::clone(&owned),
                replication,
                neighbours,
                lost: Vec::new(),
                stop,
            };
            // FIN-WAIT lasts 120 s after the last packet.
            let now_ns = 1000 * SECOND;
            for (n, seen) in [(1, 879), (2, 881), (3, 999)] {
                maps.flows().update(&key(n), &flow(n.into(), seen), Write::Any).unwrap();
            }
            let left = || -> Vec<u16> {
                (1..=3).filter(|n| maps.flows().lookup(&key(*n)).unwrap().is_some()).collect()
            };
            let own = |role, since: u64, until: u64| {
                let (since_ns, lease_until_ns) = (since * SECOND, until * SECOND);
                maps.write_group(0, &Group { lease_until_ns, since_ns, role, term: 1 }).unwrap();
            };
            let pass = || {
                let mut pass = Pass::begin(&maps, now_ns, 64).unwrap();
                while sweeper.sweep(now_ns, &mut pass).unwrap().is_some() {}
                pass.end(&maps).unwrap();
                let mut expired = Vec::new();
                while let Some(replication::Command::Expired(flows)) = told.take() {
                    expired.extend(flows);
                }
                let left: Vec<u16> = left();
                (expired, left)
            };

            assert_eq!(pass(), (vec![], vec![1, 2, 3]), "a Backup never ages");
            owned.set(0, true);
            own(Group::ACTIVE, 0, 999);
            assert_eq!(pass(), (vec![], vec![1, 2, 3]), "nor does a node whose lease is over");
            own(Group::ACTIVE, 990, 1001);
            assert_eq!(pass(), (vec![], vec![1, 2, 3]), "inherited flows get a whole timeout");
            let source = key(1).addr_a;
            assert_eq!(maps.source_flows(&source).unwrap(), 0, "nobody limits them");
            maps.set_limits(&Limits { flows: 9, ..Limits::default() }).unwrap();
            own(Group::ACTIVE, 0, 1001);
            assert_eq!(pass(), (vec![(key(1), flow(1, 0).id())], vec![2, 3]));
            assert_eq!(maps.source_flows(&source).unwrap(), 2, "those that are left");
            let may_hold = || [1, 2, 3].map(|n| maps.bloom().may_hold(&key(n)));
            assert_eq!(may_hold(), [true; 3], "as the pass found them");
            pass();
            assert_eq!(may_hold(), [false, true, true]);
            // In the middle of a pass: what comes stays known, whether the walk has seen it or not.
            let renewal = maps.bloom().renew();
            maps.put_flow(&key(3), &flow(3, 999), Write::Any).unwrap();
            maps.bloom().finish(renewal);
            assert_eq!(may_hold(), [false, false, true]);
            pass();
            assert_eq!(may_hold(), [false, true, true], "and what was lost is found again");
            // By another key nothing is known until the next pass.
            maps.update_settings(|s| s.bucket_key = [7, 8]).unwrap();
            assert_eq!(may_hold(), [true; 3]);
            pass();
            assert_eq!(may_hold(), [false, true, true]);

            // Another one comes in the middle of a pass, behind the walk.
            let mut late = Pass::begin(&maps, now_ns, 64).unwrap();
            while sweeper.sweep(now_ns, &mut late).unwrap().is_some() {}
            let before = maps.flows_of_sources().unwrap();
            assert_eq!(before, HashMap::from([(source, 2)]));
            maps.set_source_flows(HashMap::from([(source, 3)]), &before).unwrap();
            late.end(&maps).unwrap();
            assert_eq!(maps.source_flows(&source).unwrap(), 3, "as the programs have counted");
            Sources::forget(&maps).unwrap();
            assert_eq!(maps.source_flows(&source).unwrap(), 0);
            pass();
            assert_eq!(maps.source_flows(&source).unwrap(), 2);
            // One that is not as it was seen stays: it has been seen again, or is another one.
            maps.flows().update(&key(4), &flow(44, 5), Write::Any).unwrap();
            let doomed = [(2, flow(2, 880)), (3, flow(33, 999)), (4, flow(44, 5)), (5, flow(5, 5))];
            let doomed = doomed.map(|(n, flow)| Doomed::new(key(n), &flow));
            assert_eq!(maps.sweep(&doomed).unwrap(), [false, false, true, false]);
            assert_eq!(left(), [2, 3]);
            assert_eq!(maps.flows().lookup(&key(4)).unwrap(), None);
            // Many of them are many orders, each with its own answer.
            let many: Vec<u16> = (100..150).collect();
            many.iter().for_each(|&n| maps.flows().update(&key(n), &flow(n.into(), 5), Write::Any).unwrap());
            let doomed: Vec<Doomed> = (0..600).map(|n| Doomed::new(key(n), &flow(n.into(), 5))).collect();
            let gone = maps.sweep(&doomed).unwrap();
            let gone: Vec<u16> = (0..600).filter(|&n| gone[usize::from(n)]).collect();
            assert_eq!((gone, left()), (many, vec![2, 3]));
            // The node's own, of a Backup too.
            own(Group::ACTIVE, 0, 0);
            for (n, seen) in [(1, 879), (2, 881)] {
                maps.node_tables()[usize::from(n % 2)]
                    .update(&key(n), &flow(n.into(), seen), Write::Any)
                    .unwrap();
            }
            sweeper.sweep_node(now_ns).unwrap();
            let there = [1, 2].map(|n| maps.node_flow(&key(n)).unwrap().is_some());
            assert_eq!(there, [false, true]);
            own(Group::ACTIVE, 0, 1001);
            // Whom flows were sent to is noted, answered or not.
            let sent = |n: u16, seen| {
                let mut flow = flow(n.into(), seen);
                (flow.ways[0].generation, flow.ways[0].out) = (1, n.into());
                flow
            };
            for (n, seen) in [(2, 990), (3, 950)] {
                maps.flows().update(&key(n), &sent(n, seen), Write::Any).unwrap();
            }
            maps.put_embryonic(31, &key(5), &sent(5, 990)).unwrap();
            let begun = Pass::begin(&maps, now_ns, 64).unwrap();
            let mut noting = Pass { in_use: Some(InUse::default()), ..begun };
            while sweeper.sweep(now_ns, &mut noting).unwrap().is_some() {}
            assert_eq!(in_use.borrow().stations, HashSet::from([(2, [0; 6]), (5, [0; 6])]));
            drop((sweeper, maps));
            dataplane.close().unwrap();
        });
    }

    #[test]
    fn a_counter_that_moved_names_its_bucket() {
        let mut now = vec![7; BUCKETS];
        assert!(risen(&vec![7; BUCKETS], &now).is_empty());
        (now[0], now[255]) = (8, 6);
        assert_eq!(risen(&vec![7; BUCKETS], &now).iter().collect::<Vec<_>>(), [0, 255]);
        assert_eq!(risen(&[], &now), Buckets::ALL, "nothing known is everything to look at");
    }
}
