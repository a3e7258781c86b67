//! Complaints about what repeats thousands of times a second, at a rate that a log can bear.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two complaints about the same thing.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lets one complaint through at once and then one each `INTERVAL`.
#[derive(Debug, Default)]
pub struct Limit {
    last: Option<Instant>,
    held: u64,
}

impl Limit {
    /// Whether to complain now; if so, how many complaints were held back since the last one.
    pub fn pass(&mut self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + INTERVAL) {
            self.held += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held))
    }
}

/// One [`Limit`] for each of several things: what lasts of one does not silence another.
#[derive(Debug)]
pub struct Limits<T>(BTreeMap<T, Limit>);

impl<T> Default for Limits<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord> Limits<T> {
    /// As [`Limit::pass`], for this.
    pub fn pass(&mut self, thing: T) -> Option<u64> {
        self.0.entry(thing).or_default().pass()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_and_the_others_are_counted() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        assert_eq!(limit.pass_at(start), Some(0));
        for ms in 1..1000 {
            assert_eq!(limit.pass_at(start + Duration::from_millis(ms)), None);
        }
        assert_eq!(limit.pass_at(start + INTERVAL), Some(999));
        assert_eq!(limit.pass_at(start + INTERVAL * 2), Some(0));

        let mut limits = Limits::default();
        let mut said = [1, 2, 1, 2].map(|thing| limits.pass(thing));
        said.sort();
        assert_eq!(said, [None, None, Some(0), Some(0)]);
    }
}
