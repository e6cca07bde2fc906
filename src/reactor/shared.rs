//! What the threads of the reactor share: one lock around pure state, and two ways to wake somebody.
//!
//! Invariant: the lock is held for moments only: no file, no SQLite, no watcher call and no sink is reached
//! under it.
//! Invariant: everything in here is bounded by the number of sessions; hints are marks, not a queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;

use super::event::ReactorEvent;
use super::hint::{self, Change, Hint};
use super::kept::Kept;
use super::schedule::{Place, Schedule};
use super::source::{OpenReader, ReadSource};
use super::stat::{Mount, Signature};
use super::watch::Notice;
use super::{Config, Sink};
use crate::base::SessionNo;

/// The file in the probe folder whose change proves that the watcher lives.
pub(super) const PROBE: &str = "probe";

/// What the owner wants of a session; the last wish counts.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    /// Watch it.
    Live(Arc<Place>),
    /// Only stat it now and then.
    Dormant(Arc<Place>, Option<Signature>),
}

/// Counters that only grow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: u64,
    pub(super) empty_reads: u64,
    pub(super) busy: u64,
    pub(super) unannounced: u64,
    pub(super) rescans: u64,
    pub(super) panics: u64,
    pub(super) watcher_restarts: u64,
}

/// Everything under the lock.
pub(super) struct State {
    pub(super) schedule: Schedule,
    pub(super) kept: Kept<SessionNo, Box<dyn OpenReader>>,
    /// Readers to be closed by a pool thread, at most as many as were kept.
    pub(super) closing: Vec<Box<dyn OpenReader>>,
    pub(super) wishes: BTreeMap<SessionNo, Wish>,
    /// Live sessions whose folder went, moved or came back.
    pub(super) moved_folders: BTreeSet<SessionNo>,
    /// Which session a watched folder belongs to.
    pub(super) folders: HashMap<OsString, SessionNo>,
    /// Events were lost since the reactor's thread last looked.
    pub(super) lost: bool,
    /// The probe was seen since it was last touched.
    pub(super) probe_seen: bool,
    pub(super) watches: usize,
    pub(super) uncovered: usize,
    pub(super) counters: Counters,
    pub(super) stop: bool,
    /// What the sessions' files looked like when they were last read; filled when the reactor's thread ends.
    pub(super) last_seen: BTreeMap<SessionNo, Signature>,
}

/// What the threads share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes pool threads.
    pub(super) work: Condvar,
    /// Wakes the reactor's thread; holds one token at most, which says "look at the state".
    token: Sender<()>,
    sink: Sink,
    pub(super) source: Arc<dyn ReadSource>,
    pub(super) config: Config,
    /// It was learned that the mount announces nothing. Set under the lock and never taken back: events that come now
    /// and then are no promise, and going back and forth would cost more than four looks a second.
    silent: AtomicBool,
    /// Events about rows since the start, of any session, hints or not. Beside the lock: most of them are none.
    row_events: AtomicU64,
}

impl Shared {
    pub(super) fn new(config: Config, source: Arc<dyn ReadSource>, sink: Sink, token: Sender<()>) -> Self {
        let state = State {
            schedule: Schedule::new(config.limits),
            kept: Kept::default(),
            closing: Vec::new(),
            wishes: BTreeMap::new(),
            moved_folders: BTreeSet::new(),
            folders: HashMap::new(),
            lost: false,
            probe_seen: false,
            watches: 0,
            uncovered: 0,
            counters: Counters::default(),
            stop: false,
            last_seen: BTreeMap::new(),
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            token,
            sink,
            source,
            config,
            silent: AtomicBool::new(false),
            row_events: AtomicU64::new(0),
        }
    }

    /// What the data folder lies on, as far as is known by now. Who decides under the lock whether to keep a
    /// connection decides as [`Shared::fall_silent`] wants it.
    pub(super) fn mount(&self) -> Mount {
        if self.is_silent() { Mount::NoEvents } else { self.config.mount }
    }

    /// Whether it was learned that the mount announces nothing.
    pub(super) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
    }

    /// From now on the mount is one without events, and no connection is kept.
    pub(super) fn fall_silent(&self) {
        let mut state = self.lock();
        self.silent.store(true, Ordering::Release);
        let kept = state.kept.drain();
        state.closing.extend(kept);
        drop(state);
        self.work.notify_one();
    }

    /// Events about rows since the start.
    pub(super) fn row_events(&self) -> u64 {
        self.row_events.load(Ordering::Relaxed)
    }

    /// The state. A panic under the lock leaves it whole: every change in it is a single assignment or
    /// insertion after which the state is valid.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the reactor's thread that there is something in the state.
    pub(super) fn wake_keeper(&self) {
        // Full: it has not looked yet and will see this too. Disconnected: it has stopped.
        let _ = self.token.try_send(());
    }

    /// Tells the owner. A panic in its sink is counted and goes no further.
    pub(super) fn tell(&self, event: ReactorEvent) {
        if catch_unwind(AssertUnwindSafe(|| (self.sink)(event))).is_err() {
            self.lock().counters.panics += 1;
        }
    }

    /// The watcher's callback: filter, mark, wake. Never waits for anybody's work.
    pub(super) fn notice(&self, notice: Notice<'_>) {
        match notice {
            Notice::Changed(path, change) => self.changed(path, change),
            Notice::Lost => {
                self.lock().lost = true;
                self.wake_keeper();
            }
        }
    }

    fn changed(&self, path: &Path, change: Change) {
        let bytes = path.as_os_str().as_bytes();
        let Some(slash) = bytes.iter().rposition(|byte| *byte == b'/') else { return };
        let (folder, name) = (OsStr::from_bytes(&bytes[..slash]), &bytes[slash + 1..]);
        if hint::is_of_rows(name) {
            self.row_events.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(hint) = hint::of_file(name, change) {
            let mut state = self.lock();
            if let Some(no) = state.folders.get(folder).copied() {
                let wake = state.schedule.hint(no, hint, Instant::now());
                drop(state);
                if wake {
                    self.work.notify_one();
                }
            }
        } else if let Some(hint) = hint::of_folder(change) {
            self.folder_changed(path, hint);
        } else if name == PROBE.as_bytes() {
            self.probed(folder);
        }
    }

    fn folder_changed(&self, path: &Path, hint: Hint) {
        let mut state = self.lock();
        let Some(no) = state.folders.get(path.as_os_str()).copied() else { return };
        state.schedule.hint(no, hint, Instant::now());
        state.moved_folders.insert(no);
        drop(state);
        self.wake_keeper();
    }

    fn probed(&self, folder: &OsStr) {
        if self.config.probe_folder.as_ref().is_some_and(|probe| probe.as_os_str() == folder) {
            self.lock().probe_seen = true;
            self.wake_keeper();
        }
    }
}
