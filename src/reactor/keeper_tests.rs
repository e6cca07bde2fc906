//! The reactor's thread by hand: real files, a fake watcher, and time as an argument.

use std::fs;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, unbounded};
use tempfile::TempDir;

use super::super::hint::Change;
use super::super::resync::NO_EVENTS_WAIT;
use super::super::schedule::Job;
use super::super::silence::SILENT_MAX;
use super::super::source::{Outcome, ReadPlan, SqliteSource};
use super::super::stat::Mount;
use super::super::tests::FakeWatcher;
use super::super::watch::Notice;
use super::super::{Config, Sink};
use super::*;
use crate::base::SessionName;
use crate::session::SessionFolder;

type Tested = Result<(), Box<dyn std::error::Error>>;

const ONE: SessionNo = SessionNo(1);
const TWO: SessionNo = SessionNo(2);
const PERIOD: Duration = Duration::from_secs(60);

/// A keeper whose time is the test's.
struct Driven {
    keeper: Keeper,
    shared: Arc<Shared>,
    fake: Arc<FakeWatcher>,
    told: Receiver<ReactorEvent>,
    // Its other end is the shared state's.
    _tokens: Receiver<()>,
    dir: TempDir,
    now: Instant,
    /// Whether the watcher reports the probe.
    probe_heard: bool,
}

impl Driven {
    fn new(mount: Mount) -> Result<Self, Box<dyn std::error::Error>> {
        Self::with(Config { mount, resync_every: PERIOD, ..Config::default() }, tempfile::tempdir()?)
    }

    /// The probe's folder is a real one, and what happens in it only the test tells.
    fn probed(probe_heard: bool) -> Result<Self, Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let probe = dir.path().join("probe");
        fs::create_dir(&probe)?;
        let config = Config { resync_every: PERIOD, probe_folder: Some(probe), ..Config::default() };
        Ok(Self { probe_heard, ..Self::with(config, dir)? })
    }

    fn with(config: Config, dir: TempDir) -> Result<Self, Box<dyn std::error::Error>> {
        let (sender, told) = unbounded();
        let sink: Sink = Arc::new(move |event| drop(sender.send(event)));
        let (token, tokens) = crossbeam_channel::bounded(1);
        let shared = Arc::new(Shared::new(config, Arc::new(SqliteSource::default()), sink, token));
        let fake = FakeWatcher::unlimited();
        let mut keeper = Keeper::new(Arc::clone(&shared), fake.maker());
        keeper.begin();
        Ok(Self { keeper, shared, fake, told, _tokens: tokens, dir, now: Instant::now(), probe_heard: false })
    }

    fn folder(&self, no: SessionNo) -> SessionFolder {
        SessionFolder::nested(self.dir.path().join(no.to_string()))
    }

    fn place(&self, no: SessionNo) -> Result<Arc<Place>, String> {
        Ok(Arc::new(Place { name: SessionName::new("g", no.to_string())?, folder: self.folder(no) }))
    }

    fn live(&mut self, no: SessionNo) -> Tested {
        fs::create_dir_all(self.folder(no).out_dir())?;
        fs::write(self.folder(no).outbound_db(), b"rows")?;
        let place = self.place(no)?;
        let mut state = self.shared.lock();
        state.schedule.live(no, Arc::clone(&place), ReadPlan::default(), self.now);
        state.wishes.insert(no, Wish::Live(place));
        drop(state);
        self.turn();
        Ok(())
    }

    fn dormant(&mut self, no: SessionNo) -> Tested {
        let place = self.place(no)?;
        let mut state = self.shared.lock();
        state.schedule.remove(no);
        state.wishes.insert(no, Wish::Dormant(place, None));
        drop(state);
        self.turn();
        Ok(())
    }

    /// One turn of the keeper now, and everything that the watcher and the pool would then do.
    fn turn(&mut self) {
        self.keeper.turn(self.now);
        if self.probe_heard && matches!(self.keeper.probe, Probe::Asked(_)) {
            self.shared.lock().probe_seen = true;
            self.keeper.turn(self.now);
        }
        let mut state = self.shared.lock();
        while let Some(job) = state.schedule.take(self.now) {
            match job {
                Job::Heartbeat(job) => drop(state.schedule.finish_heartbeat(&job, None, self.now)),
                Job::Read(job) => {
                    let seen = Signature::of_rows(&job.place.folder);
                    let done = Outcome::Done { rows: 0, more: false };
                    state.schedule.finish_read(&job, done, seen, None, self.now);
                    state.schedule.settled(job.session, ReadPlan::default(), self.now);
                }
            }
        }
    }

    /// Goes on to the next time at which the resync wants something, by way of all other wake-ups.
    fn resync(&mut self) -> Tested {
        let until = self.keeper.resync.next_wake().ok_or("nothing to visit")?;
        while self.now < until {
            self.step()?;
        }
        Ok(())
    }

    /// Goes on to the next wake-up.
    fn step(&mut self) -> Tested {
        self.now = self.now.max(self.keeper.next_wake().ok_or("nothing to wake up for")?);
        self.turn();
        Ok(())
    }

    /// Goes on until the session was visited, one resync after the other.
    fn visit_of(&mut self, no: SessionNo) -> Tested {
        let end = self.now + PERIOD * 2;
        while !self.keeper.suspects.iter().any(|suspect| suspect.no == no) {
            if self.now > end {
                return Err("its change was never found".into());
            }
            self.resync()?;
        }
        Ok(())
    }

    /// Changes the session's file without a word.
    fn write(&self, no: SessionNo) -> Tested {
        let path = self.folder(no).outbound_db();
        let longer = fs::metadata(&path)?.len() + 1;
        Ok(fs::File::options().write(true).open(path)?.set_len(longer)?)
    }

    /// A change that no event announces, found and judged.
    fn silent_change(&mut self, no: SessionNo) -> Tested {
        self.write(no)?;
        self.visit_of(no)?;
        self.resync()
    }

    fn hear(&self, no: SessionNo) -> Tested {
        let journal = self.folder(no).outbound_journal();
        Ok(self.fake.tell(Notice::Changed(&journal, Change::Removed))?)
    }

    fn warnings(&self) -> Vec<Warning> {
        let warnings = self.told.try_iter().filter_map(|event| match event {
            ReactorEvent::Warning(warning) => Some(warning),
            _ => None,
        });
        warnings.collect()
    }

    /// How long until the resync wakes the thread next.
    fn wait(&self) -> Option<Duration> {
        self.keeper.resync.next_wake().map(|at| at.saturating_duration_since(self.now))
    }
}

#[test]
fn a_watcher_that_never_reports_is_found_out_after_three_and_live_sessions_are_visited_four_times_a_second()
-> Tested {
    let mut driven = Driven::new(Mount::Local)?;
    driven.live(ONE)?;
    driven.live(TWO)?;
    let reader = driven.shared.source.open(&driven.place(ONE)?.name, &driven.folder(ONE));
    assert!(driven.shared.lock().kept.put(ONE, reader, driven.now).is_empty());
    for n in 1..=SILENT_MAX {
        assert!(driven.shared.mount().is_local() && driven.warnings().is_empty(), "after {}", n - 1);
        assert_eq!(driven.keeper.resync.uncovered(), 0);
        driven.silent_change(ONE)?;
    }
    assert_eq!(driven.shared.mount(), Mount::NoEvents);
    let warnings = driven.warnings();
    assert_eq!(warnings, [Warning::NoEvents { late: NO_EVENTS_WAIT }]);
    assert!(warnings[0].to_string().contains("every 250ms") && warnings[0].to_string().contains("doctor"));
    {
        let state = driven.shared.lock();
        assert_eq!((state.kept.len(), state.closing.len(), state.counters.unannounced), (0, 1, 3));
    }
    assert_eq!((driven.keeper.resync.uncovered(), driven.wait()), (2, Some(NO_EVENTS_WAIT)));
    // From now on no change waits longer, and nothing more is said.
    for _ in 0..10 {
        let written = driven.now;
        driven.write(TWO)?;
        driven.visit_of(TWO)?;
        assert!(driven.now - written <= NO_EVENTS_WAIT);
    }
    assert!(driven.warnings().is_empty());
    // Sessions that come later are visited as often, and without a live one nobody is woken for them.
    driven.live(SessionNo(3))?;
    assert_eq!(driven.keeper.resync.uncovered(), 3);
    for no in [ONE, TWO, SessionNo(3)] {
        driven.dormant(no)?;
    }
    driven.resync()?;
    assert!(driven.wait() >= Some(SHORTEST_WAIT), "{:?}", driven.wait());
    Ok(())
}

#[test]
fn events_that_come_later_do_not_make_a_silent_mount_a_local_one_again() -> Tested {
    let mut driven = Driven::new(Mount::Local)?;
    driven.live(ONE)?;
    for _ in 0..SILENT_MAX {
        driven.silent_change(ONE)?;
    }
    for _ in 0..20 {
        driven.write(ONE)?;
        driven.hear(ONE)?;
        driven.resync()?;
    }
    assert_eq!(driven.shared.mount(), Mount::NoEvents);
    assert_eq!(driven.warnings().len(), 1);
    Ok(())
}

#[test]
fn where_events_arrive_no_number_of_changes_makes_the_mount_silent() -> Tested {
    let mut driven = Driven::new(Mount::Local)?;
    driven.live(ONE)?;
    driven.live(TWO)?;
    for n in 0..300u32 {
        match n % 4 {
            // The resync is faster, and the event comes before that is judged.
            0 => {
                driven.write(ONE)?;
                driven.visit_of(ONE)?;
                driven.hear(ONE)?;
                driven.resync()?;
            }
            // So late that twice nothing was heard of a find.
            1 => {
                driven.silent_change(ONE)?;
                driven.silent_change(TWO)?;
                driven.hear(TWO)?;
            }
            // The event is faster.
            _ => {
                driven.write(ONE)?;
                driven.hear(ONE)?;
                driven.turn();
            }
        }
        assert!(driven.shared.mount().is_local(), "after {n} changes");
    }
    assert_eq!(driven.warnings(), []);
    assert_eq!(driven.keeper.resync.uncovered(), 0);
    Ok(())
}

#[test]
fn an_event_that_is_no_hint_is_an_event_all_the_same() -> Tested {
    let mut driven = Driven::new(Mount::Local)?;
    driven.live(ONE)?;
    // A writer without a journal that never closes the database: only its writes are announced.
    for _ in 0..10 {
        driven.write(ONE)?;
        driven.fake.tell(Notice::Changed(&driven.folder(ONE).outbound_db(), Change::Written))?;
        driven.visit_of(ONE)?;
        driven.resync()?;
    }
    assert_eq!(driven.shared.lock().counters.unannounced, 10);
    assert!(driven.shared.mount().is_local());
    Ok(())
}

#[test]
fn a_heartbeat_is_no_event_about_rows() -> Tested {
    let mut driven = Driven::new(Mount::Local)?;
    driven.live(ONE)?;
    driven.live(TWO)?;
    for _ in 0..SILENT_MAX {
        driven.fake.tell(Notice::Changed(&driven.folder(TWO).heartbeat(), Change::Touched))?;
        driven.silent_change(ONE)?;
    }
    assert_eq!(driven.shared.mount(), Mount::NoEvents);
    Ok(())
}

#[test]
fn sessions_that_met_a_watch_limit_prove_nothing_and_are_visited_once_a_second() -> Tested {
    let mut driven = Driven::new(Mount::Local)?;
    driven.fake.limit.store(0, Ordering::SeqCst);
    driven.live(ONE)?;
    for _ in 0..10 {
        driven.silent_change(ONE)?;
    }
    assert!(driven.shared.mount().is_local());
    assert_eq!((driven.keeper.resync.uncovered(), driven.wait()), (1, Some(SHORTEST_WAIT)));
    assert!(matches!(driven.warnings()[..], [Warning::WatchLimit { .. }]));
    Ok(())
}

#[test]
fn changes_whose_events_are_known_to_be_lost_prove_nothing() -> Tested {
    let mut driven = Driven::new(Mount::Local)?;
    driven.live(ONE)?;
    for _ in 0..10 {
        driven.write(ONE)?;
        driven.visit_of(ONE)?;
        driven.fake.tell(Notice::Lost)?;
        driven.resync()?;
    }
    assert!(driven.shared.mount().is_local());
    assert!(driven.warnings().iter().all(|warning| *warning == Warning::EventsLost));
    // Nor do they begin the count anew.
    driven.silent_change(ONE)?;
    driven.silent_change(ONE)?;
    driven.fake.tell(Notice::Lost)?;
    driven.resync()?;
    driven.silent_change(ONE)?;
    assert_eq!(driven.shared.mount(), Mount::NoEvents);
    Ok(())
}

/// Silence is proved as far as the resync goes, and the probe that was asked because of it is not answered yet.
fn before_the_answer() -> Result<Driven, Box<dyn std::error::Error>> {
    let mut driven = Driven::probed(true)?;
    driven.live(ONE)?;
    for _ in 1..SILENT_MAX {
        driven.silent_change(ONE)?;
    }
    driven.write(ONE)?;
    driven.visit_of(ONE)?;
    driven.probe_heard = false;
    driven.resync()?;
    assert!(driven.keeper.is_silence_proved() && driven.shared.mount().is_local());
    driven.turn();
    assert!(matches!(driven.keeper.probe, Probe::Asked(_)) && driven.shared.mount().is_local());
    Ok(driven)
}

#[test]
fn a_watcher_that_lives_is_asked_before_the_mount_is_called_silent() -> Tested {
    let mut driven = before_the_answer()?;
    driven.probe_heard = true;
    driven.turn();
    assert_eq!(driven.shared.mount(), Mount::NoEvents);
    assert_eq!(driven.warnings(), [Warning::NoEvents { late: NO_EVENTS_WAIT }]);
    Ok(())
}

#[test]
fn an_event_that_comes_before_the_answer_acquits_the_mount() -> Tested {
    let mut driven = before_the_answer()?;
    driven.hear(ONE)?;
    driven.probe_heard = true;
    driven.turn();
    driven.resync()?;
    assert!(driven.shared.mount().is_local());
    assert_eq!(driven.warnings(), []);
    Ok(())
}

/// So many sessions that three are visited before a probe is given up.
const MANY: std::ops::Range<u32> = 0..40;

/// All of them change and a wake-up follows, again and again for some minutes, until something is reached.
fn change_all_until(driven: &mut Driven, reached: impl Fn(&Driven) -> bool) -> Tested {
    for _ in 0..200 {
        for no in MANY {
            driven.write(SessionNo(no))?;
        }
        driven.step()?;
        if reached(driven) {
            return Ok(());
        }
    }
    Err("never reached".into())
}

#[test]
fn a_watcher_that_died_is_replaced_and_the_mount_is_not_blamed() -> Tested {
    let mut driven = Driven::probed(true)?;
    for no in MANY {
        driven.live(SessionNo(no))?;
    }
    // From here on nothing is heard, not even the probe.
    driven.probe_heard = false;
    change_all_until(&mut driven, |driven| driven.keeper.is_silence_proved())?;
    change_all_until(&mut driven, |driven| driven.shared.lock().counters.watcher_restarts > 0)?;
    assert!(driven.shared.mount().is_local() && !driven.keeper.is_silence_proved());
    assert_eq!(driven.warnings(), [Warning::WatcherReplaced]);
    assert_eq!(driven.keeper.watches, MANY.len());
    // Should the mount be silent all the same, the new watcher's answer tells.
    driven.probe_heard = true;
    change_all_until(&mut driven, |driven| !driven.shared.mount().is_local())
}

#[test]
fn where_no_watcher_ever_heard_anything_the_mount_is_silent_too() -> Tested {
    let mut driven = Driven::probed(false)?;
    for no in MANY {
        driven.live(SessionNo(no))?;
    }
    change_all_until(&mut driven, |driven| !driven.shared.mount().is_local())?;
    while driven.shared.lock().counters.watcher_restarts < 4 {
        driven.step()?;
    }
    let said = driven.warnings().into_iter().filter(|it| matches!(it, Warning::NoEvents { .. })).count();
    assert_eq!(said, 1);
    Ok(())
}
