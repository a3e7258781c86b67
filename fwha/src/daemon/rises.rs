//! Totals of what should not happen, and when each last rose: `status` warns of what goes on, not of what was once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fwha_proto::time::Time;

/// For how long after it last rose a total is worth a warning.
const MEMORY: Duration = Duration::from_secs(60);
/// Between two looks, if nobody else looks.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// See the module. Shared by threads.
#[derive(Debug, Default)]
pub struct Rises(Mutex<BTreeMap<&'static str, (u64, Option<Time>)>>);

impl Rises {
    /// Whether a total has risen in the last minute. What it was at the first look is of an earlier life of the daemon.
    pub fn lately(&self, now: Time, name: &'static str, total: u64) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, rose) = known.entry(name).or_insert((total, None));
        if total > *last {
            (*last, *rose) = (total, Some(now));
        }
        rose.is_some_and(|rose| now.since(rose) < MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_news_for_a_minute_after_it_rose() {
        let (rises, at) = (Rises::default(), Time::from_millis);
        assert!(!rises.lately(at(1000), "lost", 7), "before this life");
        assert!(rises.lately(at(2000), "lost", 8));
        assert!(!rises.lately(at(2000), "full", 0));
        assert!(rises.lately(at(61_999), "lost", 8));
        assert!(!rises.lately(at(62_000), "lost", 8));
        assert!(rises.lately(at(62_000), "full", 1));
    }
}
