//! The reactor: notices what the runners write and reads it. File events of each live session's `out/` become
//! hints, hints become reads on a small pool, and readings go to the owner, who settles each one with a new
//! plan.
//!
//! ```text
//!  notify's thread       pool threads                      the reactor's thread
//!  watch ─▶ hint ──mark──▶ schedule ─▶ read ─▶ sink          watches, lost folders, resync, probe
//! ```
//!
//! Invariant: a hint only says "look". A lost, doubled or late event never changes the outcome; the resync
//! finds, one period later at most, what no event announced, and counts it (design 2, rule 3).
//! Invariant: nothing here waits for the owner, and no call of the owner waits for a file or a watcher.
//! Invariant: one session's trouble stays its own: sessions are read in turn, each at most once until
//! settled, and within its allowance of rows.
//! Invariant: [`watch`] is the only file that names the watcher's crate.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::base::{EffectId, SessionName, SessionNo};
use crate::session::SessionFolder;

mod bucket;
pub mod coalesce;
mod event;
pub mod hint;
mod keeper;
mod kept;
mod memory;
mod per_session;
mod pool;
pub mod resync;
mod schedule;
mod shared;
pub mod silence;
pub mod source;
pub mod stat;
pub mod watch;

pub use event::{ReactorEvent, Warning};
pub use schedule::{Limits, MOST_LOOKS};
pub use source::{ReadPlan, ReadSource, SqliteSource};
pub use stat::{FileMark, Mount, Signature};

use schedule::Place;
use shared::{Shared, State, Wish};
use watch::WatcherMaker;

/// Who is told of everything. Called on the reactor's threads: must not block, may call the reactor back.
pub type Sink = Arc<dyn Fn(ReactorEvent) + Send + Sync>;

/// How the reactor is to work.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads that read; at least one. Two, so that one slow session does not stop the others.
    pub threads: usize,
    /// Each known session is looked at once in this time; at least a second.
    pub resync_every: Duration,
    /// Bounds of single sessions.
    pub limits: Limits,
    /// What the data folder lies on, from [`Mount::of`].
    pub mount: Mount,
    /// A folder of the reactor's own, below `run/`, in which it touches a file to prove that the watcher
    /// lives. Made when missing. `None` proves nothing.
    pub probe_folder: Option<PathBuf>,
    /// So long the watcher has to report the probe.
    pub probe_patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threads: 2,
            resync_every: Duration::from_secs(60),
            limits: Limits::default(),
            mount: Mount::Local,
            probe_folder: None,
            // A hundred times what a loaded machine takes.
            probe_patience: Duration::from_secs(5),
        }
    }
}

/// Why a look was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Only live sessions are read.
    #[error("session {0} is not live; make it live before looking")]
    NotLive(SessionNo),
    /// The session has [`MOST_LOOKS`] open.
    #[error("session {0} has {MOST_LOOKS} looks open; settle its last reading first")]
    TooManyLooks(SessionNo),
}

/// Figures for the status page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Folders being watched.
    pub watches: usize,
    /// Live sessions that could not be watched; looked at every second instead, or as often as the mount asks for.
    pub uncovered: usize,
    /// Connections kept open.
    pub kept: usize,
    /// Whether the mount is local, and announces what containers change; if not, no connection is kept and live
    /// sessions are looked at all the time.
    pub local: bool,
    /// Whether that was learned only here: changes were found again and again, and no event came.
    pub silent: bool,
    /// How late a change is noticed, in a live session, of which no event tells.
    pub late: Duration,
    /// Changes that only the resync found.
    pub unannounced: u64,
    /// How often events were lost and everything was read again.
    pub rescans: u64,
    /// Reads.
    pub reads: u64,
    /// Reads that brought neither rows nor acks.
    pub empty_reads: u64,
    /// Reads that met a lock.
    pub busy: u64,
    /// Panics in the sink or while reading; each was caught.
    pub panics: u64,
    /// Watchers that were silent and had to be replaced.
    pub watcher_restarts: u64,
}

/// The reactor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread could not be made.
    #[error("cannot start a thread of the reactor: {0}; look at ulimit -u")]
    Thread(#[source] io::Error),
    /// The probe folder could not be made.
    #[error("cannot make {path}: {error}; the reactor needs it to prove that its watcher lives")]
    Probe {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// The running reactor. Dropping it stops its threads and waits for them.
pub struct Reactor {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Reactor {
    /// Starts the reactor with the real watcher. Nothing is watched yet. A watcher that cannot be made is a
    /// warning, not an error: sessions are then looked at every second.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config, source: Arc<dyn ReadSource>, sink: Sink) -> Result<Self, StartError> {
        Self::start_with(config, source, sink, watch::notify_maker())
    }

    /// [`Reactor::start`] with another watcher, for tests.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_with(
        mut config: Config,
        source: Arc<dyn ReadSource>,
        sink: Sink,
        maker: WatcherMaker,
    ) -> Result<Self, StartError> {
        if let Some(path) = config.probe_folder.take() {
            let made = std::fs::create_dir_all(&path).and_then(|()| std::path::absolute(&path));
            let folder = made.map_err(|error| StartError::Probe { path, error })?;
            config.probe_folder = Some(folder);
        }
        let count = config.threads.max(1);
        let (token, tokens) = crossbeam_channel::bounded(1);
        let shared = Arc::new(Shared::new(config, source, sink, token));
        // From here on, dropping `reactor` stops what was started.
        let mut reactor = Self { shared: Arc::clone(&shared), threads: Mutex::default() };
        for n in 0..count {
            let shared = Arc::clone(&shared);
            reactor.spawn(format!("read-{n}"), move || pool::run(&shared))?;
        }
        let keeper = keeper::Keeper::new(shared, maker);
        reactor.spawn("reactor".into(), move || keeper.run(&tokens))?;
        Ok(reactor)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread = thread::Builder::new().name(name).spawn(run).map_err(StartError::Thread)?;
        self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Watches a session, then scans it: a `Read` follows. A look that is asked for after this call is
    /// answered from after the watch, so a container may be started as soon as that look succeeded. For a
    /// session that is live at the same place already this only renews the plan and scans.
    ///
    /// Hands back the looks of a former life at another place that will not be answered.
    pub fn live(
        &self,
        session: SessionNo,
        name: SessionName,
        folder: &SessionFolder,
        plan: ReadPlan,
    ) -> Vec<EffectId> {
        let place = place(name, folder);
        let mut state = self.shared.lock();
        let (new, dropped) = state.schedule.live(session, Arc::clone(&place), plan, Instant::now());
        if new {
            close_later(&mut state, session);
        }
        self.wish(state, session, Wish::Live(place));
        dropped
    }

    /// Ends the watch; the session is only compared by `stat` once a period, beginning with `seen`; when that is
    /// `None`, with what its last read saw, or with its next visit when it was never read. A read under way is
    /// dropped. Hands back the looks that will not be answered.
    pub fn dormant(
        &self,
        session: SessionNo,
        name: SessionName,
        folder: &SessionFolder,
        seen: Option<Signature>,
    ) -> Vec<EffectId> {
        let seen = seen.or_else(|| self.shared.lock().schedule.last_seen(session));
        self.end(session, Wish::Dormant(place(name, folder), seen))
    }

    fn end(&self, session: SessionNo, wish: Wish) -> Vec<EffectId> {
        let mut state = self.shared.lock();
        let dropped = state.schedule.remove(session);
        close_later(&mut state, session);
        self.wish(state, session, wish);
        dropped
    }

    fn wish(&self, mut state: std::sync::MutexGuard<'_, State>, session: SessionNo, wish: Wish) {
        state.wishes.insert(session, wish);
        drop(state);
        self.shared.wake_keeper();
        self.shared.work.notify_one();
    }

    /// The owner has taken in the last `Read` or `Looked` of the session; the next one follows this plan.
    /// Also to be called when only the plan changed, for example when a message was written whose ack is
    /// wanted from now on.
    pub fn settled(&self, session: SessionNo, plan: ReadPlan) {
        self.shared.lock().schedule.settled(session, plan, Instant::now());
        self.shared.work.notify_one();
    }

    /// Stats the liveness file and reads, after an unsettled reading was settled: a `Looked` with this ticket
    /// follows.
    ///
    /// # Errors
    /// [`Refused`]; no `Looked` follows then.
    pub fn look(&self, session: SessionNo, ticket: EffectId) -> Result<(), Refused> {
        let mut state = self.shared.lock();
        if !state.schedule.is_live(session) {
            return Err(Refused::NotLive(session));
        }
        if !state.schedule.look(session, ticket, Instant::now()) {
            return Err(Refused::TooManyLooks(session));
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Takes the liveness file as it is for the one that later ones are compared with. For the start of an
    /// attempt: what an older one touched is no sign of life of the new one.
    pub fn baseline_heartbeat(&self, session: SessionNo) {
        self.shared.lock().schedule.baseline(session, Instant::now());
        self.shared.work.notify_one();
    }

    /// Figures for the status page.
    pub fn stats(&self) -> Stats {
        let state = self.shared.lock();
        let counters = state.counters;
        Stats {
            watches: state.watches,
            uncovered: state.uncovered,
            kept: state.kept.len(),
            local: self.shared.mount().is_local(),
            silent: self.shared.is_silent(),
            late: self.shared.mount().late(),
            unannounced: counters.unannounced,
            rescans: counters.rescans,
            reads: counters.reads,
            empty_reads: counters.empty_reads,
            busy: counters.busy,
            panics: counters.panics,
            watcher_restarts: counters.watcher_restarts,
        }
    }
}

impl Reactor {
    /// Stops the threads, waits for them, and says what the files of each session looked like when they were last
    /// read or compared: what has changed since then was not seen. Sessions that were never read are left out.
    pub fn stop(&self) -> BTreeMap<SessionNo, Signature> {
        self.join();
        std::mem::take(&mut self.shared.lock().last_seen)
    }

    fn join(&self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        self.shared.wake_keeper();
        let own = thread::current().id();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // The sink may hold the last reference, and a thread cannot wait for itself.
            if thread.thread().id() != own {
                // Its panic, if any, was already printed; there is nobody left to tell.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.join();
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Leaves the session's kept connection to a pool thread: closing one costs the owner's loop 50 µs.
fn close_later(state: &mut State, session: SessionNo) {
    let kept = state.kept.take(session);
    state.closing.extend(kept);
}

/// Events carry absolute paths without a trailing slash; so must the folder that they are looked up by.
fn place(name: SessionName, folder: &SessionFolder) -> Arc<Place> {
    let clean = |path: &Path| -> PathBuf {
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).components().collect()
    };
    let folder = SessionFolder::of_dirs(clean(folder.out_dir()), clean(folder.in_dir()));
    Arc::new(Place { name, folder })
}

#[cfg(test)]
mod slow_tests;
#[cfg(test)]
mod tests;
