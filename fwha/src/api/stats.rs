//! Counters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counters, a tree; those of `flows`, `drops` and `rules` live in the kernel and go on when a killed daemon is back.
/// For example `stats.drops.no_rule`, `stats.sync.peers.fw2.lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Flows and packets of the data plane.
    pub flows: StatSection,
    /// Replication.
    pub sync: StatSection,
    /// Sync links.
    pub link: StatSection,
    /// VRRP.
    pub vrrp: StatSection,
    /// Packets dropped, by reason.
    pub drops: StatSection,
    /// Flows admitted or dropped, by rule.
    pub rules: StatSection,
}

/// A part of [`Stats`].
pub type StatSection = BTreeMap<String, Stat>;

/// A counter, or more of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stat {
    /// A counter.
    Count(u64),
    /// Counters of one object, by name.
    Section(StatSection),
}

impl From<u64> for Stat {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl<K: Into<String>, V: Into<Stat>> FromIterator<(K, V)> for Stat {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        Self::Section(items.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}
