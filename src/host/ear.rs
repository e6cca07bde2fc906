//! Listens for one change in a folder, to find out whether changes there are announced.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::reactor::hint::Change;
use crate::reactor::watch::{Notice, WatchError, WatchPort, notify_maker};

/// A second is far more than an event takes; where none has come by then, none will.
const EVENT_PATIENCE: Duration = Duration::from_secs(1);

/// Hears of the first change in a folder.
pub struct Ear {
    heard: mpsc::Receiver<Instant>,
    _watcher: Box<dyn WatchPort>,
}

impl Ear {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the folder cannot be watched.
    pub fn at(folder: &Path) -> Result<Self, WatchError> {
        let (told, heard) = mpsc::channel();
        let sink = Arc::new(move |notice: Notice<'_>| {
            let made = [Change::Created, Change::Written, Change::ClosedAfterWrite, Change::Touched];
            // What is removed is removed from here.
            if matches!(notice, Notice::Changed(_, change) if made.contains(&change)) {
                // Nobody waits any more once the first was heard.
                let _ = told.send(Instant::now());
            }
        });
        let mut watcher = notify_maker()(sink)?;
        watcher.watch(folder)?;
        Ok(Self { heard, _watcher: watcher })
    }

    /// When something was made or written there; none when nothing was within the patience.
    pub fn hear(&self) -> Option<Instant> {
        self.heard.recv_timeout(EVENT_PATIENCE).ok()
    }
}
