//! Two times that are never mixed: `At`, the machine's monotonic time, and `Wall`, the calendar's.

use std::fmt;
use std::ops::{Add, Sub};

/// Machine time in microseconds. Follows the monotonic clock (it stands still in suspend) and is continued at
/// each start from the last record plus the downtime. All durations are measured with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At(pub i64);

/// Wall clock time: microseconds since 1970-01-01T00:00:00Z. Compared only with times in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub i64);

/// A duration in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ms(pub u64);

impl Ms {
    /// So many seconds.
    pub const fn secs(n: u64) -> Self {
        Self(n * 1_000)
    }

    /// So many minutes.
    pub const fn minutes(n: u64) -> Self {
        Self::secs(n * 60)
    }

    /// So many days.
    pub const fn days(n: u64) -> Self {
        Self::minutes(n * 24 * 60)
    }

    /// `self · 2^n`, at most `cap`; never overflows.
    #[must_use]
    pub fn doubled(self, n: u32, cap: Ms) -> Ms {
        let factor = 1u64.checked_shl(n).unwrap_or(u64::MAX);
        Ms(self.0.saturating_mul(factor)).min(cap)
    }

    /// In microseconds, at most `i64::MAX`.
    pub fn micros(self) -> i64 {
        i64::try_from(self.0.saturating_mul(1_000)).unwrap_or(i64::MAX)
    }
}

impl From<Ms> for std::time::Duration {
    fn from(ms: Ms) -> Self {
        Self::from_millis(ms.0)
    }
}

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms < 1_000 => write!(f, "{ms}ms"),
            ms if ms % 1_000 != 0 => write!(f, "{}.{:03}s", ms / 1_000, ms % 1_000),
            ms if ms < 120_000 => write!(f, "{}s", ms / 1_000),
            ms => write!(f, "{}m{:02}s", ms / 60_000, ms / 1_000 % 60),
        }
    }
}

impl Add<Ms> for At {
    type Output = At;
    fn add(self, span: Ms) -> At {
        At(self.0.saturating_add(span.micros()))
    }
}

impl Sub for At {
    type Output = Ms;
    /// The time from `earlier` to `self`, 0 when it lies after.
    fn sub(self, earlier: At) -> Ms {
        let micros = u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0);
        Ms(std::time::Duration::from_micros(micros).as_millis().try_into().unwrap_or(u64::MAX))
    }
}

impl Add<Ms> for Wall {
    type Output = Wall;
    fn add(self, span: Ms) -> Wall {
        Wall(self.0.saturating_add(span.micros()))
    }
}

impl fmt::Display for At {
    /// Hours, minutes, seconds and milliseconds, as golden transcripts show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0 / 1_000;
        write!(f, "{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000)
    }
}

/// The two clocks, so that tests can hold them.
pub trait Clock: Send + Sync {
    /// The monotonic clock in microseconds from an arbitrary origin; stands still in suspend.
    fn monotonic_micros(&self) -> i64;
    /// The wall clock.
    fn wall(&self) -> Wall;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_stops_at_its_cap_and_never_overflows() {
        assert_eq!(Ms::secs(5).doubled(3, Ms::minutes(5)), Ms::secs(40));
        assert_eq!(Ms::secs(1).doubled(500, Ms::minutes(5)), Ms::minutes(5));
    }

    #[test]
    fn a_span_between_two_times_is_never_negative() {
        assert_eq!(At(1_000_000) - At(2_000_000), Ms(0));
        assert_eq!(At(2_500_000) - At(500_000), Ms::secs(2));
    }
}
