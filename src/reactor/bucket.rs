//! How many rows a session may bring now: a bucket that fills steadily up to a burst.
//!
//! Invariant: over any time t no more than `burst + rate · t` rows are spent, apart from what one read
//! returned beyond its allowance.

use std::time::{Duration, Instant};

/// One row in the bucket's unit.
const ROW: u64 = 1_000_000;

/// A token bucket in millionths of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    rate: u32,
    burst: u32,
    level: u64,
    at: Instant,
}

impl Bucket {
    /// A full bucket. A rate of 0 is taken for 1, or a session could stop for ever.
    pub(super) fn new(rate_per_second: u32, burst: u32, now: Instant) -> Self {
        Self { rate: rate_per_second.max(1), burst, level: u64::from(burst) * ROW, at: now }
    }

    fn level(&self, now: Instant) -> u64 {
        let micros = u64::try_from(now.saturating_duration_since(self.at).as_micros()).unwrap_or(u64::MAX);
        let grown = micros.saturating_mul(u64::from(self.rate));
        self.level.saturating_add(grown).min(u64::from(self.burst) * ROW)
    }

    /// Whole rows that may be read now.
    pub(super) fn whole(&self, now: Instant) -> u32 {
        u32::try_from(self.level(now) / ROW).unwrap_or(u32::MAX)
    }

    /// When there will be `rows`, at most the burst.
    pub(super) fn ready_at(&self, rows: u32, now: Instant) -> Instant {
        let wanted = u64::from(rows.min(self.burst)) * ROW;
        let missing = wanted.saturating_sub(self.level(now));
        now + Duration::from_micros(missing.div_ceil(u64::from(self.rate)))
    }

    /// So many rows were read.
    pub(super) fn spend(&mut self, rows: u32, now: Instant) {
        self.level = self.level(now).saturating_sub(u64::from(rows) * ROW);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(200, 256, start);
        assert_eq!(bucket.whole(start), 256);
        bucket.spend(256, start);
        assert_eq!(bucket.whole(start), 0);
        assert_eq!(bucket.ready_at(16, start), start + Duration::from_millis(80));
        assert_eq!(bucket.whole(start + Duration::from_secs(1)), 200);
        assert_eq!(bucket.whole(start + Duration::from_secs(100)), 256);
    }

    #[test]
    fn more_than_the_burst_is_never_waited_for() {
        let start = Instant::now();
        let bucket = Bucket::new(0, 10, start);
        assert_eq!(bucket.ready_at(1_000, start), start);
    }
}
