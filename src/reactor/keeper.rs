//! The reactor's own thread: it keeps the watches in step with what the owner wants and with what happens to
//! the folders, and does the slow resync.
//!
//! Invariant: a session is armed (may be read) only after its watch is in place or known to be impossible, so
//! nothing written after the first scan goes unnoticed (design 9: create, watch, scan, start).
//! Invariant: the watcher is spoken to from this thread only, and never under the lock.
//! Invariant: a watch ends before its folder's is made again; one that died with its folder is made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::event::{ReactorEvent, Warning};
use super::resync::{Resync, SHORTEST_WAIT};
use super::schedule::{Found, Place};
use super::shared::{PROBE, Shared, Wish};
use super::silence::Silence;
use super::stat::{FolderId, Signature};
use super::watch::{WatchError, WatchPort, WatcherMaker};
use crate::base::SessionNo;

/// First wait before a folder that went away is looked for again; doubles from there.
const FOLDER_FIRST: Duration = Duration::from_millis(20);
/// Longest of these waits: somebody is restoring a backup, or it will not come back.
const FOLDER_LONGEST: Duration = Duration::from_secs(5);
/// Shortest time between two full looks: a container that floods its folder with events must not make the host read
/// all others without end.
const BETWEEN_FULL_LOOKS: Duration = Duration::from_secs(1);
/// After a limit was met, so long until watches are tried again.
const LIMIT_RETRY: Duration = Duration::from_secs(60);

/// A live session as this thread sees it.
struct Live {
    place: Arc<Place>,
    folder: PathBuf,
    /// The folder that is watched.
    id: Option<FolderId>,
    watched: bool,
}

struct Dormant {
    place: Arc<Place>,
    seen: Option<Signature>,
}

/// A change that no event had announced when it was found.
struct Suspect {
    no: SessionNo,
    found: Found,
    /// Whether a watch should have announced it.
    watched: bool,
}

/// When the watcher was last proved to live.
enum Probe {
    /// Touch it at this time.
    Next(Instant),
    /// Touched; it must have been seen by this time.
    Asked(Instant),
}

/// The thread's own state.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    maker: WatcherMaker,
    watcher: Option<Box<dyn WatchPort>>,
    live: BTreeMap<SessionNo, Live>,
    dormant: BTreeMap<SessionNo, Dormant>,
    resync: Resync,
    /// What the last resync found, to be counted unless an event still comes.
    suspects: Vec<Suspect>,
    silence: Silence,
    /// How many live sessions are watched.
    watches: usize,
    /// Live sessions whose folder is gone: how often it was looked for, and when to look again.
    lost: BTreeMap<SessionNo, (u32, Instant)>,
    /// Live sessions whose watch met a limit.
    unwatched: BTreeSet<SessionNo>,
    limit_retry: Option<Instant>,
    warned_limit: bool,
    warned_watcher: bool,
    probe: Probe,
    /// A probe was seen, of this watcher or of an older one.
    probe_works: bool,
    /// When to look at everything, after events were lost.
    full_look: Option<Instant>,
    /// When that was done last.
    looked: Option<Instant>,
}

impl Keeper {
    /// Makes and watches nothing yet.
    pub(super) fn new(shared: Arc<Shared>, maker: WatcherMaker) -> Self {
        let now = Instant::now();
        let resync = Resync::new(shared.config.resync_every, shared.config.mount.late(), now);
        Self {
            shared,
            maker,
            watcher: None,
            live: BTreeMap::new(),
            dormant: BTreeMap::new(),
            resync,
            suspects: Vec::new(),
            silence: Silence::default(),
            watches: 0,
            lost: BTreeMap::new(),
            unwatched: BTreeSet::new(),
            limit_retry: None,
            warned_limit: false,
            warned_watcher: false,
            probe: Probe::Next(now),
            probe_works: false,
            full_look: None,
            looked: None,
        }
    }

    /// What comes first: the watcher, before any session asks for a watch.
    fn begin(&mut self) {
        let mount = self.shared.config.mount;
        if !mount.is_local() {
            self.warn(Warning::NotLocal { mount });
        }
        self.make_watcher(Instant::now());
    }

    /// Runs until the state says stop.
    pub(super) fn run(mut self, token: &Receiver<()>) {
        self.begin();
        loop {
            let now = Instant::now();
            let wake = self.next_wake();
            let got = match wake {
                Some(at) => token.recv_timeout(at.saturating_duration_since(now)),
                None => token.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if got == Err(RecvTimeoutError::Disconnected) || self.shared.lock().stop {
                return self.leave_last_seen();
            }
            self.turn(Instant::now());
        }
    }

    fn leave_last_seen(&self) {
        let mut state = self.shared.lock();
        let live = self.live.keys().filter_map(|no| Some((*no, state.schedule.last_seen(*no)?)));
        let dormant = self.dormant.iter().filter_map(|(no, it)| Some((*no, it.seen?)));
        state.last_seen = live.chain(dormant).collect();
    }

    fn next_wake(&self) -> Option<Instant> {
        let lost = self.lost.values().map(|(_, at)| *at).min();
        let probe = match self.probe {
            Probe::Next(at) if self.probe_folder().is_some() => Some(at),
            Probe::Next(_) => None,
            Probe::Asked(at) => Some(at),
        };
        let wakes = [self.resync.next_wake(), lost, self.limit_retry, probe, self.full_look];
        wakes.into_iter().flatten().min()
    }

    fn turn(&mut self, now: Instant) {
        let (wishes, moved, lost) = {
            let mut state = self.shared.lock();
            let wishes = std::mem::take(&mut state.wishes);
            (wishes, std::mem::take(&mut state.moved_folders), std::mem::take(&mut state.lost))
        };
        for (no, wish) in wishes {
            self.grant(no, wish, now);
        }
        for no in moved {
            self.cover_again(no, now);
        }
        if lost {
            let earliest = self.looked.map_or(now, |at| now.max(at + BETWEEN_FULL_LOOKS));
            self.full_look.get_or_insert(earliest);
        }
        if self.full_look.is_some_and(|at| at <= now) {
            self.full_look = None;
            self.looked = Some(now);
            self.look_at_all(now);
        }
        self.find_lost_folders(now);
        self.retry_limit(now);
        self.prove_watcher(now);
        self.resync(now);
        let mut state = self.shared.lock();
        state.watches = self.watches;
        state.uncovered = self.live.len() - self.watches;
    }

    fn grant(&mut self, no: SessionNo, wish: Wish, now: Instant) {
        match wish {
            Wish::Live(place) => {
                self.dormant.remove(&no);
                if !self.live.get(&no).is_some_and(|live| live.place == place) {
                    self.uncover(no);
                    let folder = place.folder.out_dir().to_owned();
                    let live = Live { place, folder, id: None, watched: false };
                    self.live.insert(no, live);
                    self.resync.add(no, now);
                }
                self.cover(no, now);
            }
            Wish::Dormant(place, seen) => {
                self.uncover(no);
                self.dormant.insert(no, Dormant { place, seen });
                self.resync.add(no, now);
            }
        }
    }

    /// Ends the watch of a session that is live no more. A freed watch may serve another session.
    fn uncover(&mut self, no: SessionNo) {
        let Some(live) = self.live.remove(&no) else { return };
        self.unwatched.remove(&no);
        self.lost.remove(&no);
        self.resync.cover(no, true);
        if live.watched {
            self.watches -= 1;
            if let Some(watcher) = self.watcher.as_mut() {
                watcher.unwatch(&live.folder);
            }
            if self.limit_retry.is_some() {
                self.limit_retry = Some(Instant::now());
            }
        }
        self.forget_folder(no, &live.folder);
    }

    fn forget_folder(&self, no: SessionNo, folder: &std::path::Path) {
        let mut state = self.shared.lock();
        if state.folders.get(folder.as_os_str()) == Some(&no) {
            state.folders.remove(folder.as_os_str());
        }
    }

    /// Watches a live session's folder unless that is done, and lets it be scanned.
    fn cover(&mut self, no: SessionNo, now: Instant) {
        let Some(live) = self.live.get_mut(&no) else { return };
        if !live.watched {
            // Before the watch: an event may come before `watch` returns.
            self.shared.lock().folders.insert(live.folder.clone().into_os_string(), no);
            let outcome = watch(self.watcher.as_mut(), live);
            self.take_outcome(no, outcome, now);
        }
        self.say_covered(no);
        let Some(live) = self.live.get(&no) else { return };
        self.shared.lock().schedule.arm(no, &live.place, now);
        self.shared.work.notify_one();
    }

    /// Tells the resync whether the session's events can be relied on.
    fn say_covered(&mut self, no: SessionNo) {
        let Some(live) = self.live.get(&no) else { return };
        let covered = live.watched && self.shared.mount().is_local();
        // One whose folder is gone is looked for by itself.
        self.resync.cover(no, covered || self.lost.contains_key(&no));
    }

    fn take_outcome(&mut self, no: SessionNo, outcome: Result<FolderId, WatchError>, now: Instant) {
        let Some(live) = self.live.get_mut(&no) else { return };
        match outcome {
            Ok(id) => {
                live.id = Some(id);
                live.watched = true;
                self.watches += 1;
                self.lost.remove(&no);
                self.unwatched.remove(&no);
                if self.unwatched.is_empty() {
                    self.warned_limit = false;
                    self.limit_retry = None;
                }
            }
            Err(WatchError::Missing) => {
                let tries = self.lost.get(&no).map_or(0, |(tries, _)| tries.saturating_add(1));
                let wait = FOLDER_FIRST.saturating_mul(1 << tries.min(16)).min(FOLDER_LONGEST);
                self.lost.insert(no, (tries, now + wait));
                live.id = None;
                if tries == 0 {
                    self.shared.tell(ReactorEvent::FolderGone { session: no });
                }
            }
            Err(error) => self.not_watched(no, &error, now),
        }
    }

    fn not_watched(&mut self, no: SessionNo, error: &WatchError, now: Instant) {
        if let Some(live) = self.live.get_mut(&no) {
            // So that the resync can tell whether the folder is still the same one.
            live.id = FolderId::of(&live.folder);
        }
        self.lost.remove(&no);
        let new = self.unwatched.insert(no);
        self.limit_retry.get_or_insert(now + LIMIT_RETRY);
        match error {
            WatchError::NoWatchesLeft => {
                let warned = std::mem::replace(&mut self.warned_limit, true);
                if !warned {
                    self.warn(Warning::WatchLimit { session: no, late: self.shared.mount().late() });
                }
            }
            // Was said already, or will be when the watcher is replaced.
            WatchError::NoWatcher => {}
            WatchError::Dead => {
                self.shared.lock().probe_seen = false;
                self.probe = Probe::Asked(now + SHORTEST_WAIT);
            }
            _ if new => {
                let why = error.to_string();
                self.warn(Warning::NotWatched { session: no, why, late: self.shared.mount().late() });
            }
            _ => {}
        }
    }

    /// The folder went, moved or was made again: the old watch is worth nothing, whatever it still reports.
    fn cover_again(&mut self, no: SessionNo, now: Instant) {
        let Some(live) = self.live.get_mut(&no) else { return };
        if live.watched {
            live.watched = false;
            self.watches -= 1;
            if let Some(watcher) = self.watcher.as_mut() {
                watcher.unwatch(&live.folder);
            }
        }
        let kept = self.shared.lock().kept.take(no);
        drop(kept);
        self.cover(no, now);
    }

    fn find_lost_folders(&mut self, now: Instant) {
        let due = self.lost.iter().filter(|(_, (_, at))| *at <= now);
        let back: Vec<SessionNo> = due.map(|(no, _)| *no).collect();
        for no in back {
            self.search(no, now);
        }
    }

    /// Looks for a lost folder. Only its return is worth a scan.
    fn search(&mut self, no: SessionNo, now: Instant) {
        let Some(live) = self.live.get(&no) else { return };
        if FolderId::of(&live.folder).is_some() {
            self.cover(no, now);
        } else {
            self.take_outcome(no, Err(WatchError::Missing), now);
        }
    }

    fn retry_limit(&mut self, now: Instant) {
        if self.limit_retry.is_none_or(|at| at > now) {
            return;
        }
        self.limit_retry = (!self.unwatched.is_empty()).then_some(now + LIMIT_RETRY);
        if self.watcher.is_none() {
            self.make_watcher(now);
        }
        for no in self.unwatched.clone() {
            self.cover(no, now);
            if self.live.get(&no).is_some_and(|live| !live.watched) {
                break;
            }
        }
    }

    /// Events were lost: every live session is read, and every folder compared with the one that is watched.
    fn look_at_all(&mut self, now: Instant) {
        self.warn(Warning::EventsLost);
        {
            let mut state = self.shared.lock();
            state.counters.rescans += 1;
            state.schedule.hint_all(now);
        }
        self.shared.work.notify_all();
        let moved: Vec<SessionNo> = self
            .live
            .iter()
            .filter(|(no, live)| !self.lost.contains_key(no) && FolderId::of(&live.folder) != live.id)
            .map(|(no, _)| *no)
            .collect();
        for no in moved {
            self.cover_again(no, now);
        }
    }

    fn make_watcher(&mut self, now: Instant) {
        let shared = Arc::clone(&self.shared);
        match (self.maker)(Arc::new(move |notice| shared.notice(notice))) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.warned_watcher = false;
                self.watch_probe();
            }
            Err(error) => {
                self.limit_retry.get_or_insert(now + LIMIT_RETRY);
                if !std::mem::replace(&mut self.warned_watcher, true) {
                    self.warn(Warning::NoWatcher {
                        why: error.to_string(),
                        late: self.shared.mount().late(),
                    });
                }
            }
        }
        // The watch of the probe itself is proved at once; later replacements wait for their turn, so that a
        // probe which can never be seen does not lead to one new watcher after the other.
        let first = self.shared.lock().counters.watcher_restarts == 0;
        let every = self.shared.config.resync_every;
        self.probe = Probe::Next(if first { now } else { now + every });
    }

    /// Where to touch the probe, while there is a watcher to see it.
    fn probe_folder(&self) -> Option<&PathBuf> {
        self.watcher.as_ref().and(self.shared.config.probe_folder.as_ref())
    }

    fn watch_probe(&mut self) {
        if let (Some(watcher), Some(folder)) = (self.watcher.as_mut(), &self.shared.config.probe_folder) {
            // Without this watch the probe stays unseen, and the watcher is replaced: that is the right
            // outcome.
            let _ = watcher.watch(folder);
        }
    }

    fn prove_watcher(&mut self, now: Instant) {
        let every = self.shared.config.resync_every;
        match self.probe {
            Probe::Next(at) if at <= now => {
                let Some(file) = self.probe_folder().map(|folder| folder.join(PROBE)) else { return };
                self.shared.lock().probe_seen = false;
                // Where the touch itself fails (a full disk) nothing is proved, and nothing is held against
                // it.
                let touched = std::fs::write(file, b"").is_ok();
                self.probe = if touched {
                    Probe::Asked(now + self.shared.config.probe_patience)
                } else {
                    Probe::Next(now + every)
                };
            }
            Probe::Asked(_) if self.shared.lock().probe_seen => {
                self.probe = Probe::Next(now + every);
                self.probe_works = true;
                // The watcher lives and hears what this process does: it is the mount that is silent, if any.
                self.conclude();
            }
            Probe::Asked(at) if at <= now => self.replace_watcher(now),
            Probe::Next(_) | Probe::Asked(_) => {}
        }
    }

    fn replace_watcher(&mut self, now: Instant) {
        self.watcher = None;
        self.shared.lock().counters.watcher_restarts += 1;
        self.warn(Warning::WatcherReplaced);
        if self.probe_works {
            // What the dead watcher missed is not the mount's fault.
            self.silence.begin_anew();
            self.suspects.iter_mut().for_each(|suspect| suspect.watched = false);
        } else {
            // No watcher ever heard anything here, not even of this process.
            self.conclude();
        }
        self.make_watcher(now);
        self.watches = 0;
        for live in self.live.values_mut() {
            live.watched = false;
        }
        let all: Vec<SessionNo> = self.live.keys().copied().collect();
        for no in all {
            self.cover(no, now);
        }
    }

    fn resync(&mut self, now: Instant) {
        if self.resync.next_wake().is_none_or(|at| at > now) {
            return;
        }
        self.count_suspects();
        self.suspect_silence(now);
        for no in self.resync.due(now) {
            self.visit_live(no, now);
            self.visit_dormant(no);
        }
    }

    /// What the last visit found and no event has announced since.
    fn count_suspects(&mut self) {
        // Before the hints are looked at: an event in between counts next time.
        let heard = self.shared.row_events();
        let mut state = self.shared.lock();
        // The events of what was found may be among those that are known to be lost.
        let excused = state.lost || self.full_look.is_some();
        let mut silent = false;
        for Suspect { no, found, watched } in self.suspects.drain(..) {
            let unannounced = state.schedule.is_unannounced(no, found);
            state.counters.unannounced += u64::from(unannounced);
            silent |= unannounced && watched && !excused;
        }
        self.silence.judge(silent, heard);
    }

    /// Where silence is proved but for a dead watcher, that is asked first; the answer concludes.
    fn suspect_silence(&mut self, now: Instant) {
        if !self.is_silence_proved() {
            return;
        }
        match self.probe {
            _ if self.probe_folder().is_none() => self.conclude(),
            Probe::Next(_) => self.probe = Probe::Next(now),
            Probe::Asked(_) => {}
        }
    }

    fn is_silence_proved(&self) -> bool {
        self.shared.mount().is_local() && self.silence.is_proved(self.shared.row_events())
    }

    /// Treats the mount as one without events if it proved to be one.
    fn conclude(&mut self) {
        if !self.is_silence_proved() {
            return;
        }
        self.shared.fall_silent();
        let late = self.shared.mount().late();
        self.resync.set_uncovered_wait(late);
        let live: Vec<SessionNo> = self.live.keys().copied().collect();
        for no in live {
            self.say_covered(no);
        }
        self.warn(Warning::NoEvents { late });
    }

    fn visit_live(&mut self, no: SessionNo, now: Instant) {
        let Some(live) = self.live.get(&no).filter(|_| !self.lost.contains_key(&no)) else { return };
        if FolderId::of(&live.folder) != live.id {
            self.shared.lock().counters.unannounced += 1;
            self.cover_again(no, now);
            return;
        }
        let folder = &live.place.folder;
        let is_local = self.shared.mount().is_local();
        let watched = live.watched;
        let seen = if is_local { Signature::of(folder) } else { Signature::fresh(folder) };
        let found = self.shared.lock().schedule.compare(no, &seen, now);
        self.suspects.extend(found.map(|found| Suspect { no, found, watched }));
        self.shared.work.notify_one();
    }

    fn visit_dormant(&mut self, no: SessionNo) {
        let Some(dormant) = self.dormant.get_mut(&no) else { return };
        // Nobody is there whose life the third file could tell of.
        let found = Signature::of_rows(&dormant.place.folder);
        let changed = dormant.seen.is_some_and(|seen| seen.differs_in_rows(&found));
        dormant.seen = Some(found);
        if changed {
            self.shared.lock().counters.unannounced += 1;
            self.shared.tell(ReactorEvent::DormantChanged { session: no });
        }
    }

    fn warn(&self, warning: Warning) {
        self.shared.tell(ReactorEvent::Warning(warning));
    }
}

/// Watches a session's folder and says which one it is.
fn watch(watcher: Option<&mut Box<dyn WatchPort>>, live: &mut Live) -> Result<FolderId, WatchError> {
    if FolderId::of(&live.folder).is_none() {
        return Err(WatchError::Missing);
    }
    let Some(watcher) = watcher else { return Err(WatchError::NoWatcher) };
    watcher.watch(&live.folder)?;
    // Only now: a folder that was replaced before the watch was made is the watched one.
    match FolderId::of(&live.folder) {
        Some(id) => Ok(id),
        None => {
            watcher.unwatch(&live.folder);
            Err(WatchError::Missing)
        }
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
