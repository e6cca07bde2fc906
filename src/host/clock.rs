//! The real clocks.

use rustix::time::{ClockId, clock_gettime};

use crate::base::{Clock, Wall};

/// The operating system's clocks. On Linux `CLOCK_MONOTONIC` stands still in suspend.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsClock;

impl Clock for OsClock {
    fn monotonic_micros(&self) -> i64 {
        micros(ClockId::Monotonic)
    }

    fn wall(&self) -> Wall {
        Wall(micros(ClockId::Realtime))
    }
}

fn micros(id: ClockId) -> i64 {
    let time = clock_gettime(id);
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1_000)
}
