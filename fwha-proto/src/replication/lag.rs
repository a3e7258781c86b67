//! How long changes take until a peer has acknowledged them.

use std::time::Duration;

use crate::time::Time;

/// Buckets of a power of two: what is told is at most an eighth too much.
const SHARE_BITS: u32 = 3;
const SHARES: usize = 1 << SHARE_BITS;
/// Microseconds from here on, over an hour, are all the same.
const MAX_BITS: u32 = 32;
const BUCKETS: usize = (MAX_BITS - SHARE_BITS + 1) as usize * SHARES;
/// What [`Lag::recent`] tells is at least so much of the past, and at most twice as much.
const WINDOW: Duration = Duration::from_secs(60);

/// Lengths of time, counted in log-linear buckets: some 2 kB for any number of them.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), sum_us: 0 }
    }
}

impl Histogram {
    fn record(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min((1 << MAX_BITS) - 1);
        self.counts[bucket(us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count += more;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together.
    pub const fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us)
    }

    /// How many are shorter than `2^bits` microseconds.
    pub fn below(&self, bits: u32) -> u64 {
        self.counts[..bucket(1 << bits.min(MAX_BITS - 1))].iter().sum()
    }

    /// The time that so many per mille of them do not exceed, rounded up to a bucket's end; `None` if there are none.
    pub fn per_mille(&self, share: u64) -> Option<Duration> {
        let count = self.count();
        let rank = (u128::from(count) * u128::from(share)).div_ceil(1000).max(1) as u64;
        let mut seen = 0;
        let at = self.counts.iter().position(|n| {
            seen += n;
            seen >= rank
        })?;
        Some(Duration::from_micros(end(at)))
    }
}

/// The bucket of a number of microseconds below `2^MAX_BITS`: itself as long as it is small, then its highest bits.
const fn bucket(us: u64) -> usize {
    let shift = (u64::BITS - us.leading_zeros()).saturating_sub(SHARE_BITS + 1);
    shift as usize * SHARES + (us >> shift) as usize
}

/// The first number of microseconds beyond a bucket.
const fn end(bucket: usize) -> u64 {
    let shift = (bucket / SHARES).saturating_sub(1);
    ((bucket - shift * SHARES + 1) << shift) as u64
}

/// The lag of changes: from the change to the acknowledgement.
#[derive(Clone, Debug, Default)]
pub struct Lag {
    /// Since the daemon started.
    pub total: Histogram,
    windows: [Histogram; 2],
    turn_at: Time,
}

impl Lag {
    pub(super) fn record(&mut self, now: Time, since: Time) {
        let lag = now.since(since);
        self.turn(now);
        self.total.record(lag);
        self.windows[0].record(lag);
    }

    fn turn(&mut self, now: Time) {
        if now < self.turn_at {
            return;
        }
        let old = std::mem::take(&mut self.windows[0]);
        // After a long rest the older window is no past worth telling either.
        self.windows[1] = if now < self.turn_at + WINDOW { old } else { Histogram::default() };
        self.turn_at = now + WINDOW;
    }

    /// That of the last one to two minutes.
    pub fn recent(&self, now: Time) -> Histogram {
        let mut recent = Histogram::default();
        for (window, until) in self.windows.iter().zip([self.turn_at + WINDOW, self.turn_at]) {
            if now < until {
                recent.add(window);
            }
        }
        recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_in_one_bucket_that_ends_soon_after_it() {
        let mut last = 0;
        for us in (0..5000).chain((0..32).map(|n| 1 << n)).chain([u64::from(u32::MAX)]) {
            let b = bucket(us);
            assert!(b < BUCKETS && end(b) > us, "{us} {b} {}", end(b));
            assert!(end(b) - us <= 1 + us / 8, "{us} {b} {}", end(b));
            assert!(b == 0 || end(b - 1) <= us, "{us}");
            last = last.max(b);
        }
        assert_eq!(last, BUCKETS - 1, "none is in vain");
    }

    #[test]
    fn a_share_of_them_does_not_exceed_what_it_says() {
        let mut h = Histogram::default();
        assert_eq!(h.per_mille(500), None);
        (1..=1000).for_each(|ms| h.record(Duration::from_millis(ms)));
        h.record(Duration::MAX);
        for (share, exact_ms) in [(1, 1), (500, 501), (990, 991)] {
            let told = h.per_mille(share).unwrap().as_millis() as u64;
            assert!((exact_ms..=exact_ms + 1 + exact_ms / 8).contains(&told), "{share}: {told}");
        }
        assert!(h.per_mille(1000).unwrap() > Duration::from_secs(3600));
        assert_eq!((h.count(), h.below(10), h.below(20), h.below(31)), (1001, 1, 1000, 1000));
    }

    #[test]
    fn what_is_told_of_late_is_a_minute_or_two_old() {
        let mut lag = Lag::default();
        let at = |s: u64| Time::ZERO + Duration::from_secs(1000 + s);
        let told = |lag: &Lag, s| (lag.recent(at(s)).count(), lag.total.count());
        lag.record(at(0), at(0));
        lag.record(at(50), at(49));
        assert_eq!(told(&lag, 55), (2, 2));
        lag.record(at(70), at(70));
        assert_eq!(told(&lag, 100), (3, 3));
        assert_eq!(told(&lag, 140), (1, 3), "nothing has happened since");
        lag.record(at(140), at(140));
        assert_eq!(told(&lag, 150), (2, 4));
        assert_eq!(told(&lag, 600), (0, 4));
    }
}
