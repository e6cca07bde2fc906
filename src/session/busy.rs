//! How a connection waits for the other side's lock.
//!
//! SQLite's own handler sleeps 1 ms first and ever longer, which costs twenty times the floor when the lock
//! is about to be released (its usual state: the journal's removal is noticed before the unlock), and can
//! starve a reader. So: yield for a moment, then short sleeps of one length, then give up.
//!
//! Invariant: each wait ends by its bound; a handler never waits without one.

use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// For so long the thread only yields: most waits end within 100 µs.
const YIELD: Duration = Duration::from_micros(250);
/// One sleep after that; short, because the lock may be free for only a moment.
const NAP: Duration = Duration::from_micros(100);
/// One sleep of a wait that may last: after 20 ms nobody is about to unlock.
const LONG_NAP: Duration = Duration::from_millis(2);
/// After so long the naps become long.
const PATIENT: Duration = Duration::from_millis(20);

/// Who waits, and thereby how long at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The host reading outbound.db: 10 ms, then the next event or a short timer brings it back.
    HostRead,
    /// The host writing inbound.db: 250 ms, because a container may hold a read lock for ever (design 3).
    HostWrite,
    /// The runner's start and its tools, with its own file and with the host's: 5 s, as the contract has it; they
    /// have nothing else to do.
    Runner,
    /// The runner's loop: 100 ms. Most locks are gone by then; for the others it comes back, and meanwhile hears
    /// signals and touches the heartbeat.
    RunnerLoop,
}

impl Wait {
    /// The longest wait.
    pub(crate) const fn bound(self) -> Duration {
        match self {
            Self::HostRead => Duration::from_millis(10),
            Self::HostWrite => Duration::from_millis(250),
            Self::Runner => Duration::from_secs(5),
            Self::RunnerLoop => Duration::from_millis(100),
        }
    }

    /// Installs this wait on a connection, in place of SQLite's.
    pub(crate) fn install(self, db: &mut Connection) -> rusqlite::Result<()> {
        let mut since = Instant::now();
        db.busy_handler(Some(move |calls| {
            if calls == 0 {
                since = Instant::now();
            }
            let waited = since.elapsed();
            match waited {
                w if w >= self.bound() => return false,
                w if w < YIELD => thread::yield_now(),
                w if w < PATIENT => thread::sleep(NAP),
                _ => thread::sleep(LONG_NAP),
            }
            true
        }))
    }
}
