//! Free space on the file system of the data folder: below the reserve nothing new is accepted, so that what was
//! accepted can be worked on, delivered and put on record.
//!
//! A thread of its own looks now and then, for a file system may take its time to answer; the loop only reads the
//! verdict.
//!
//! Invariant: the verdict reaches the machine with each arrival, as an input, so it is on record.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use slog::{Logger, info, warn};

/// How often it is looked: the reserve is what may be filled in between.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where the figure comes from.
pub struct Source {
    /// Gives the free bytes.
    pub free: Box<dyn Fn() -> io::Result<u64> + Send>,
    /// How often it is asked.
    pub every: Duration,
}

impl Source {
    /// The file system that holds a folder: what a process without privileges may still use.
    pub fn of(folder: &Path) -> Self {
        let folder = folder.to_owned();
        let free = move || {
            let stat = rustix::fs::statvfs(&folder)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        Self { free: Box::new(free), every: LOOK_EVERY }
    }
}

/// What was seen last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Free bytes; none when the file system did not tell.
    pub free: Option<u64>,
    /// Nothing new is accepted.
    pub low: bool,
}

struct Shared {
    seen: Mutex<Seen>,
    reserve: u64,
    folder: PathBuf,
    log: Logger,
}

/// Knows whether there is room.
pub struct Space {
    shared: Arc<Shared>,
    /// Dropped, it ends the thread. Nobody waits for that: the file system may hold it for ever.
    _alive: Sender<()>,
}

/// Whether the disk is low. Once it is, there must be an eighth more than the reserve: otherwise whatever is
/// written and removed at the edge would turn it on and off.
fn is_low(was_low: bool, free: u64, reserve: u64) -> bool {
    free < if was_low { reserve.saturating_add(reserve / 8) } else { reserve }
}

impl Space {
    /// Looks once, then now and then. A reserve of 0 is never missing.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(source: Source, reserve: u64, folder: &Path, log: Logger) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { seen: Mutex::default(), reserve, folder: folder.to_owned(), log: log.clone() });
        shared.look(&source, true);
        let (alive, ended) = bounded::<()>(0);
        let looking = Arc::clone(&shared);
        std::thread::Builder::new().name("space".into()).spawn(move || {
            while ended.recv_timeout(source.every) == Err(RecvTimeoutError::Timeout) {
                looking.look(&source, false);
            }
        })?;
        Ok(Self { shared, _alive: alive })
    }

    /// What was seen last.
    pub fn seen(&self) -> Seen {
        *self.shared.lock()
    }

    /// Bytes kept in reserve.
    pub fn reserve(&self) -> u64 {
        self.shared.reserve
    }

    /// What to do while the disk is low.
    pub fn free_with(&self) -> String {
        format!("make room on the file system of {}", self.shared.folder.display())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, source: &Source, is_first: bool) {
        let told = (source.free)();
        let before = *self.lock();
        let seen = match &told {
            Ok(free) => Seen { free: Some(*free), low: is_low(before.low, *free, self.reserve) },
            // The verdict stands until the file system tells again.
            Err(_) => Seen { free: None, low: before.low },
        };
        *self.lock() = seen;
        let (path, reserve) = (self.folder.display(), self.reserve);
        match told {
            Ok(free) if seen.low && !before.low => {
                warn!(self.log, "the disk is low: new messages are refused until there is room, deliveries go on";
                    "path" => %path, "free" => free, "reserve" => reserve);
            }
            Ok(free) if before.low && !seen.low => {
                info!(self.log, "there is room on the disk again: new messages are accepted";
                    "path" => %path, "free" => free, "reserve" => reserve);
            }
            // Told when it begins.
            Err(error) if before.free.is_some() || is_first => {
                warn!(self.log, "the file system does not tell its free space"; "path" => %path, "error" => %error);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_disk_needs_more_than_the_reserve_to_be_well_again() {
        assert!(!is_low(false, 64, 64) && is_low(false, 63, 64));
        assert!(is_low(true, 71, 64) && !is_low(true, 72, 64));
        assert!(!is_low(false, 0, 0) && !is_low(true, 0, 0), "0 turns it off");
        assert!(is_low(true, u64::MAX - 1, u64::MAX));
    }

    #[test]
    fn the_verdict_follows_the_figure_and_stands_while_there_is_none() {
        let figure = Arc::new(Mutex::new(Some(100)));
        let told = Arc::clone(&figure);
        let free = move || told.lock().unwrap().ok_or_else(|| io::Error::other("injected"));
        let source = Source { free: Box::new(free), every: Duration::from_millis(1) };
        let log = Logger::root(slog::Discard, slog::o!());
        let space = Space::start(source, 64, Path::new("/data"), log).unwrap();
        let upto = |free, low| {
            *figure.lock().unwrap() = free;
            while space.seen() != (Seen { free, low }) {
                std::thread::yield_now();
            }
        };
        assert_eq!(space.seen(), Seen { free: Some(100), low: false });
        upto(Some(10), true);
        upto(None, true);
        upto(Some(65), true);
        upto(Some(80), false);
        upto(None, false);
        assert!(space.free_with().contains("/data"));
    }

    #[test]
    fn a_real_file_system_tells_its_free_space() {
        let free = Source::of(Path::new("/")).free;
        assert!(free().unwrap() > 0);
        assert!((Source::of(Path::new("/nowhere/at/all")).free)().is_err());
    }
}
