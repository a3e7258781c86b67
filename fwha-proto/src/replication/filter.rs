//! What is replicated: what the owner lets through, and what a peer is believed.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fwha_common::flow::{Flow, FlowId, FlowKey};

use super::buckets::Buckets;
use crate::time::Time;

/// What the configuration says about single flows.
pub trait Policy: Send + Sync {
    /// Whether a flow of this node's data plane is for the peers. The same at all times of a flow's
    /// life, and on all nodes.
    fn replicates(&self, key: &FlowKey, flow: &Flow) -> bool;

    /// Whether a flow that a peer sends is taken.
    fn admits(&self, key: &FlowKey, flow: &Flow) -> bool;
}

/// What a node filters.
#[derive(Clone)]
pub struct Filter {
    /// Flow by flow; `None` is all of them.
    pub policy: Option<Arc<dyn Policy>>,
    /// A new flow is for the peers when it is so old. What ends before costs nothing, and is lost with
    /// its owner.
    pub min_age: Duration,
    /// Flows that one peer may have in this node's table, of [`super::Options::max_flows`].
    pub peer_flows_max: usize,
    /// Bytes a second that one peer may send. What exceeds it is dropped as if it were lost on the way,
    /// so that the peer slows down.
    pub peer_bytes_per_s: u64,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            policy: None,
            min_age: Duration::ZERO,
            peer_flows_max: usize::MAX,
            peer_bytes_per_s: 250_000_000,
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("policy", &self.policy.is_some())
            .field("min_age", &self.min_age)
            .field("peer_flows_max", &self.peer_flows_max)
            .field("peer_bytes_per_s", &self.peer_bytes_per_s)
            .finish()
    }
}

/// Flows that are not old enough yet, in the state in which they were last seen.
#[derive(Default)]
pub(super) struct Young {
    flows: HashMap<FlowKey, Flow>,
    due: VecDeque<(Time, FlowKey, FlowId)>,
}

impl Young {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Keeps a flow until `due`, or its newer state if it is here.
    pub(super) fn keep(&mut self, due: Time, key: &FlowKey, flow: &Flow) {
        match self.flows.get_mut(key) {
            Some(known) if known.id() == flow.id() => {
                if flow.version > known.version {
                    *known = *flow;
                }
            }
            _ => {
                self.flows.insert(*key, *flow);
                self.due.push_back((due, *key, flow.id()));
            }
        }
    }

    /// The flow of this key.
    pub(super) fn get(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }

    /// Whether a flow is here.
    pub(super) fn knows(&self, key: &FlowKey, id: &FlowId) -> bool {
        self.flows.get(key).is_some_and(|flow| flow.id() == *id)
    }

    /// A flow has ended. Whether it was here.
    pub(super) fn forget(&mut self, key: &FlowKey, id: &FlowId) -> bool {
        let here = self.knows(key, id);
        if here {
            self.flows.remove(key);
            // Most end in the order in which they began.
            while self.due.front().is_some_and(|(_, key, id)| !self.is(key, id)) {
                self.due.pop_front();
            }
        }
        here
    }

    /// Takes all flows out.
    pub(super) fn drain(&mut self) -> Vec<(FlowKey, Flow)> {
        self.due.clear();
        self.flows.drain().collect()
    }

    /// Takes all flows of these buckets out.
    pub(super) fn take(&mut self, buckets: Buckets) -> Vec<(FlowKey, FlowId)> {
        let gone = self.flows.extract_if(|_, flow| buckets.contains(flow.bucket));
        gone.map(|(key, flow)| (key, flow.id())).collect()
    }

    fn is(&self, key: &FlowKey, id: &FlowId) -> bool {
        self.flows.get(key).is_some_and(|flow| flow.id() == *id)
    }

    /// When the next one is old enough.
    pub(super) fn next(&self) -> Time {
        self.due.front().map_or(Time::NEVER, |d| d.0)
    }

    /// The next flow that is old enough at `now`.
    pub(super) fn grown(&mut self, now: Time) -> Option<(FlowKey, Flow)> {
        while self.next() <= now {
            let (_, key, id) = self.due.pop_front()?;
            if self.is(&key, &id) {
                return Some((key, self.flows.remove(&key)?));
            }
        }
        None
    }
}

/// A limit on bytes: a bucket of one second's worth.
pub(super) struct Rate {
    per_s: u64,
    left: u64,
    at: Time,
}

impl Rate {
    pub(super) const fn new(per_s: u64) -> Self {
        Self { per_s, left: per_s, at: Time::ZERO }
    }

    /// Changes the limit.
    pub(super) fn set(&mut self, per_s: u64) {
        self.per_s = per_s;
        self.left = self.left.min(per_s);
    }

    /// Whether `bytes` more are within the limit.
    pub(super) fn take(&mut self, now: Time, bytes: u64) -> bool {
        let earned = u128::from(self.per_s) * now.since(self.at).as_nanos() / 1_000_000_000;
        if earned > 0 {
            self.left = self.left.saturating_add(u64::try_from(earned).unwrap_or(u64::MAX)).min(self.per_s);
            self.at = now;
        }
        let within = self.left >= bytes;
        self.left -= if within { bytes } else { 0 };
        within
    }
}
