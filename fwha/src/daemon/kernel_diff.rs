//! Comparing the replica with the kernel's flow table, when an operator asks whether they agree.
//!
//! Packets change the table all the time, and what peers tell is on its way into it. So there are two looks: the second is
//! at the flows that differed, a moment later. What differs in the same way both times is a difference; and its bucket
//! is reconciled, as after lost events.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use fwha_common::BUCKETS;
use fwha_common::flow::FlowKey;
use fwha_proto::replication::{Buckets, Difference, Failure, Found, Replication, Summary};
use fwha_proto::time::Time;
use tokio::sync::mpsc;

use crate::dataplane::maps::{FlowMap, FlowWalk};

/// Between the two looks: an event, or what a peer told, is not under way for so long.
const SETTLE: Duration = Duration::from_millis(200);
/// Flows looked at in one turn.
const CHUNK: usize = 2048;
/// Differences that are remembered between the looks. Of more, only their number is told.
const SUSPECTS_MAX: usize = 100_000;

/// See the module.
pub(super) struct KernelDiff {
    found: mpsc::UnboundedSender<Found>,
    look: Look,
    suspects: HashMap<FlowKey, Difference>,
    summary: Summary,
    astray: Buckets,
}

/// How far it is.
enum Look {
    /// At every flow of the table: does the replica have it so?
    Table(FlowWalk),
    /// At every flow of a bucket in the replica: is it in the table?
    Replica(u8),
    Settling(Time),
    Again(Vec<Difference>),
}

/// What comes next.
pub(super) enum Next {
    /// Another turn, at once.
    Turn,
    /// Nothing until then.
    Wait,
    /// It is over; these buckets are to be reconciled.
    Done(Buckets),
}

impl KernelDiff {
    /// Begins a comparison that tells what it finds.
    pub(super) fn new(found: mpsc::UnboundedSender<Found>) -> Self {
        let summary =
            Summary { buckets: BUCKETS as u64, buckets_listed: BUCKETS as u64, ..Summary::default() };
        Self {
            found,
            look: Look::Table(FlowWalk::new(CHUNK)),
            suspects: HashMap::new(),
            summary,
            astray: Buckets::EMPTY,
        }
    }

    /// One turn. All that the machine had for the table is to be written before.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(super) fn turn(&mut self, now: Time, replication: &Replication, flows: &FlowMap) -> io::Result<Next> {
        if self.found.is_closed() {
            return Ok(Next::Done(Buckets::EMPTY));
        }
        match &mut self.look {
            Look::Table(walk) => match walk.next_chunk(flows)? {
                Some((keys, flows)) => {
                    self.summary.flows_listed += keys.len() as u64;
                    let differing = keys
                        .iter()
                        .zip(flows)
                        .filter_map(|(key, flow)| replication.differs(now, key, Some(flow)));
                    let differing: Vec<Difference> = differing.collect();
                    self.suspect(differing);
                }
                None => self.look = Look::Replica(0),
            },
            Look::Replica(bucket) => {
                let bucket = *bucket;
                let mut missing = Vec::new();
                for key in replication.keys(bucket) {
                    if flows.lookup(&key)?.is_none() {
                        missing.extend(replication.differs(now, &key, None));
                    }
                }
                self.suspect(missing);
                self.look = match bucket.checked_add(1) {
                    Some(next) => Look::Replica(next),
                    None => Look::Settling(now + SETTLE),
                };
            }
            Look::Settling(until) if now < *until => return Ok(Next::Wait),
            Look::Settling(_) => self.look = Look::Again(self.suspects.drain().map(|(_, d)| d).collect()),
            Look::Again(suspects) => {
                for before in suspects.drain(suspects.len().saturating_sub(CHUNK)..) {
                    let after = replication.differs(now, &before.key, flows.lookup(&before.key)?.as_ref());
                    let stays = after.filter(|after| after.same(&before));
                    if stays.is_some() {
                        self.summary.differences += 1;
                        self.astray.insert(before.bucket);
                    } else {
                        self.summary.in_flight += 1;
                    }
                    let told = stays.unwrap_or(Difference { in_flight: true, ..before });
                    // A client that hung up is noticed at the next turn.
                    let _ = self.found.send(Found::Difference(told));
                }
                if suspects.is_empty() {
                    let _ = self.found.send(Found::Done(self.summary));
                    return Ok(Next::Done(self.astray));
                }
            }
        }
        Ok(Next::Turn)
    }

    /// Tells that it came to no end.
    pub(super) fn fail(self) {
        let _ = self.found.send(Found::Failed(Failure::Unreadable));
    }

    fn suspect(&mut self, differing: Vec<Difference>) {
        for difference in differing {
            if self.suspects.len() < SUSPECTS_MAX {
                self.suspects.insert(difference.key, difference);
            } else {
                self.summary.untold += 1;
                self.astray.insert(difference.bucket);
            }
        }
    }
}
