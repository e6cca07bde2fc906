//! The whole reactor, on real files with real writers where the kernel's part matters, and with a fake
//! watcher or source where a failure is wanted.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, unbounded};
use rusqlite::Connection;
use tempfile::TempDir;

use super::source::OpenReader;
use super::watch::{Notice, NoticeSink, WatchError, WatchPort};
use super::*;
use crate::base::RecordNo;
use crate::session::host_side::{Cause, Reading, Unreadable};
use crate::session::schema;

pub(super) type Tested = Result<(), Box<dyn std::error::Error>>;

const ONE: SessionNo = SessionNo(1);
/// Longest wait for something that must happen; a loaded machine needs a fraction of it.
const MUST: Duration = Duration::from_secs(20);
/// How long nothing must happen for it to count as not happening.
const MUST_NOT: Duration = Duration::from_millis(150);

pub(super) fn ticket(n: u64) -> EffectId {
    EffectId { record: RecordNo(n), index: 0 }
}

pub(super) fn name(no: SessionNo) -> Result<SessionName, String> {
    SessionName::new("group", no.to_string())
}

pub(super) fn from_start() -> ReadPlan {
    ReadPlan { room: 256, ..ReadPlan::default() }
}

/// Events only: the resync is too far away to help.
pub(super) fn events_only() -> Config {
    Config { resync_every: Duration::from_secs(3_600), ..Config::default() }
}

pub(super) struct Bench {
    pub(super) reactor: Reactor,
    events: Receiver<ReactorEvent>,
    dir: TempDir,
}

impl Bench {
    pub(super) fn with(
        config: Config,
        source: Arc<dyn ReadSource>,
        maker: WatcherMaker,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let (sender, events) = unbounded();
        // The test has ended when nobody receives any more.
        let sink: Sink = Arc::new(move |event| drop(sender.send(event)));
        let reactor = Reactor::start_with(config, source, sink, maker)?;
        Ok(Self { reactor, events, dir: tempfile::tempdir()? })
    }

    fn real(config: Config) -> Result<Self, Box<dyn std::error::Error>> {
        Self::with(config, Arc::new(SqliteSource::default()), watch::notify_maker())
    }

    /// A session's folder with an empty outbound.db.
    pub(super) fn folder(&self, no: SessionNo) -> Result<SessionFolder, Box<dyn std::error::Error>> {
        let folder = SessionFolder::nested(self.dir.path().join(no.to_string()));
        fs::create_dir_all(folder.out_dir())?;
        schema::prepare_outbound(&Connection::open(folder.outbound_db())?)?;
        Ok(folder)
    }

    /// Makes a session live and settles its first scan.
    pub(super) fn live(&self, no: SessionNo, folder: &SessionFolder) -> Tested {
        self.reactor.live(no, name(no)?, folder, from_start());
        let reading = self.next_reading(no)?;
        self.settle(no, &reading);
        Ok(())
    }

    fn settle(&self, no: SessionNo, reading: &Reading) {
        self.reactor.settled(no, ReadPlan { cursor: reading.cursor.clone(), ..from_start() });
    }

    /// The first event that `pick` wants; others are dropped.
    pub(super) fn wait_for<T>(&self, pick: impl Fn(ReactorEvent) -> Option<T>) -> Result<T, String> {
        let until = Instant::now() + MUST;
        while let Ok(event) = self.events.recv_deadline(until) {
            if let Some(found) = pick(event) {
                return Ok(found);
            }
        }
        Err(format!("nothing came; {:?}", self.reactor))
    }

    fn next_reading(&self, no: SessionNo) -> Result<Reading, String> {
        self.wait_for(|event| match event {
            ReactorEvent::Read { session, result: Ok(reading), .. } if session == no => Some(reading),
            _ => None,
        })
    }

    /// Reads and settles until so many rows came; returns their ids, and whether each read was announced.
    pub(super) fn rows(&self, no: SessionNo, count: usize) -> Result<(Vec<String>, Vec<bool>), String> {
        let (mut ids, mut announcements) = (Vec::new(), Vec::new());
        while ids.len() < count {
            let (reading, announced) = self.wait_for(|event| match event {
                ReactorEvent::Read { session, result: Ok(reading), announced } if session == no => {
                    Some((reading, announced))
                }
                _ => None,
            })?;
            ids.extend(reading.rows.iter().filter_map(|row| row.id().map(str::to_owned)));
            announcements.push(announced);
            self.settle(no, &reading);
        }
        Ok((ids, announcements))
    }

    fn nothing(&self) -> Tested {
        match self.events.recv_timeout(MUST_NOT) {
            Ok(event) => Err(format!("unexpected: {event:?}").into()),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn until(&self, what: &str, reached: impl Fn(&Stats) -> bool) -> Tested {
        let until = Instant::now() + MUST;
        while !reached(&self.reactor.stats()) {
            if Instant::now() > until {
                return Err(format!("never {what}: {:?}", self.reactor).into());
            }
            thread::yield_now();
        }
        Ok(())
    }
}

pub(super) fn write(db: &Connection, id: &str) -> rusqlite::Result<()> {
    let next = "(SELECT coalesce(max(seq), -1) + 2 FROM messages_out)";
    let sql = format!(
        "INSERT INTO messages_out (id, seq, timestamp, kind, content) \
         VALUES (?1, {next}, 't', 'chat', '{{}}')"
    );
    db.execute(&sql, [id]).map(drop)
}

fn write_in_new_connection(folder: &SessionFolder, id: &str) -> rusqlite::Result<()> {
    write(&Connection::open(folder.outbound_db())?, id)
}

/// A watcher that watches nothing and tells what the test tells it to tell.
#[derive(Default)]
pub(super) struct FakeWatcher {
    watched: Mutex<BTreeSet<PathBuf>>,
    pub(super) limit: AtomicUsize,
    dead: AtomicBool,
    made: AtomicUsize,
    sink: Mutex<Option<NoticeSink>>,
}

struct FakePort(Arc<FakeWatcher>);

impl FakeWatcher {
    pub(super) fn unlimited() -> Arc<Self> {
        let fake = Self::default();
        fake.limit.store(usize::MAX, Ordering::SeqCst);
        Arc::new(fake)
    }

    pub(super) fn maker(self: &Arc<Self>) -> WatcherMaker {
        let fake = Arc::clone(self);
        Arc::new(move |sink| {
            fake.made.fetch_add(1, Ordering::SeqCst);
            *fake.sink.lock().map_err(|_| WatchError::Dead)? = Some(sink);
            Ok(Box::new(FakePort(Arc::clone(&fake))))
        })
    }

    pub(super) fn tell(&self, notice: Notice<'_>) -> Result<(), String> {
        let sink = self.sink.lock().map_err(|error| error.to_string())?.clone();
        sink.ok_or("no watcher was made")?(notice);
        Ok(())
    }
}

impl WatchPort for FakePort {
    fn watch(&mut self, folder: &Path) -> Result<(), WatchError> {
        if self.0.dead.swap(false, Ordering::SeqCst) {
            return Err(WatchError::Dead);
        }
        let mut watched = self.0.watched.lock().map_err(|_| WatchError::Dead)?;
        if watched.len() >= self.0.limit.load(Ordering::SeqCst) {
            return Err(WatchError::NoWatchesLeft);
        }
        watched.insert(folder.to_owned());
        Ok(())
    }

    fn unwatch(&mut self, folder: &Path) {
        if let Ok(mut watched) = self.0.watched.lock() {
            watched.remove(folder);
        }
    }
}

/// A source whose reads do what the test says: busy so often, or a panic, or an empty reading.
#[derive(Clone, Default)]
struct FakeSource {
    busy: Arc<AtomicUsize>,
    panics: Arc<AtomicUsize>,
    hot: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    /// Reads under way at the same moment, and the most there were.
    under_way: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct FakeReader(FakeSource, SessionName);

fn count_down(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl ReadSource for FakeSource {
    fn open(&self, session: &SessionName, _: &SessionFolder) -> Box<dyn OpenReader> {
        self.open.fetch_add(1, Ordering::SeqCst);
        Box::new(FakeReader(self.clone(), session.clone()))
    }
}

impl OpenReader for FakeReader {
    fn read(&mut self, plan: &ReadPlan) -> Result<Reading, Unreadable> {
        let fake = &self.0;
        let now = fake.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        fake.most.fetch_max(now, Ordering::SeqCst);
        thread::yield_now();
        fake.under_way.fetch_sub(1, Ordering::SeqCst);
        assert!(!count_down(&fake.panics), "a panic that the test wants");
        let fail = |cause| Err(Unreadable { session: self.1.clone(), path: PathBuf::from("/fake"), cause });
        if count_down(&fake.busy) {
            return fail(Cause::Busy);
        }
        if fake.hot.load(Ordering::SeqCst) {
            return fail(Cause::HotJournal);
        }
        Ok(Reading { cursor: plan.cursor.clone(), ..Reading::default() })
    }
}

impl Drop for FakeReader {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn commits_in_every_rollback_journal_mode_are_noticed_by_their_events() -> Tested {
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let bench = Bench::real(events_only())?;
        let folder = bench.folder(ONE)?;
        bench.live(ONE, &folder)?;
        let writer = Connection::open(folder.outbound_db())?;
        writer.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(()))?;
        for n in 0..5 {
            let id = format!("{mode}-{n}");
            write(&writer, &id)?;
            let (ids, announced) = bench.rows(ONE, 1)?;
            assert_eq!(ids, [id]);
            assert!(announced.iter().all(|announced| *announced), "{mode}");
        }
        assert_eq!(bench.reactor.stats().unannounced, 0);
    }
    Ok(())
}

#[test]
fn commits_of_a_runner_in_delete_mode_cost_about_one_read_each() -> Tested {
    const COMMITS: u64 = 60;
    let bench = Bench::real(events_only())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    let writer = Connection::open(folder.outbound_db())?;
    let before = bench.reactor.stats();
    for n in 0..COMMITS {
        write(&writer, &format!("m{n}"))?;
        bench.rows(ONE, 1)?;
    }
    let after = bench.reactor.stats();
    let (reads, busy) = (after.reads - before.reads, after.busy - before.busy);
    // Twice as many would mean that both the closing and the removal of the journal lead to a read.
    assert!(reads - busy <= COMMITS + COMMITS / 4, "{reads} reads, {busy} of them busy");
    Ok(())
}

#[test]
fn the_hosts_own_reads_are_no_events() -> Tested {
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        // Without kept connections each read opens and closes the files.
        let mount = Mount::NotLocal { kind: "tested" };
        for config in [events_only(), Config { mount, ..events_only() }] {
            let bench = Bench::real(config)?;
            let folder = bench.folder(ONE)?;
            let writer = Connection::open(folder.outbound_db())?;
            writer.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(()))?;
            write(&writer, "a")?;
            bench.live(ONE, &folder)?;
            for n in 0..5 {
                bench.reactor.look(ONE, ticket(n))?;
                let reading = bench.wait_for(|event| match event {
                    ReactorEvent::Looked { result: Ok(reading), .. } => Some(reading),
                    _ => None,
                })?;
                bench.settle(ONE, &reading);
            }
            bench.nothing()?;
        }
    }
    Ok(())
}

#[test]
fn a_writer_without_a_journal_file_is_noticed_when_it_closes() -> Tested {
    let bench = Bench::real(events_only())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    let writer = Connection::open(folder.outbound_db())?;
    writer.query_row("PRAGMA journal_mode=MEMORY", [], |_| Ok(()))?;
    write(&writer, "a")?;
    drop(writer);
    assert_eq!(bench.rows(ONE, 1)?.0, ["a"]);
    Ok(())
}

#[test]
fn a_real_overflow_of_the_kernels_queue_leads_to_a_full_look() -> Tested {
    let queue: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")?.trim().parse()?;
    if queue > 100_000 {
        // Filling such a queue would take longer than the test is worth.
        return Ok(());
    }
    let bench = Bench::real(events_only())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    // While the lock is held, the first hint stops the watcher's callback and nobody empties the queue.
    let held = bench.reactor.shared.lock();
    fs::write(folder.heartbeat(), b"")?;
    let other = folder.out_dir().join("other");
    for _ in 0..queue / 3 {
        fs::write(&other, b"x")?;
        fs::remove_file(&other)?;
    }
    drop(held);
    bench.wait_for(|event| matches!(event, ReactorEvent::Warning(Warning::EventsLost)).then_some(()))?;
    bench.next_reading(ONE)?;
    assert_eq!(bench.reactor.stats().rescans, 1);
    Ok(())
}

#[test]
fn a_database_replaced_by_a_rename_is_noticed_and_read() -> Tested {
    let bench = Bench::real(events_only())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    let aside = folder.out_dir().join("other.db");
    let other = Connection::open(&aside)?;
    schema::prepare_outbound(&other)?;
    write(&other, "from-the-other-file")?;
    drop(other);
    bench.nothing()?;
    fs::rename(&aside, folder.outbound_db())?;
    assert_eq!(bench.rows(ONE, 1)?.0, ["from-the-other-file"]);
    Ok(())
}

#[test]
fn a_folder_that_is_deleted_and_made_again_is_followed() -> Tested {
    let bench = Bench::real(events_only())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    fs::remove_dir_all(folder.out_dir())?;
    // The reads that fail meanwhile are settled, as an owner does.
    bench.wait_for(|event| match event {
        ReactorEvent::FolderGone { session } => Some(session),
        ReactorEvent::Read { session, .. } => {
            bench.reactor.settled(session, from_start());
            None
        }
        _ => None,
    })?;
    let again = bench.folder(ONE)?;
    write_in_new_connection(&again, "after")?;
    let settle_all = |event| match event {
        ReactorEvent::Read { session, result, .. } => {
            bench.reactor.settled(session, from_start());
            result.ok().filter(|reading| !reading.rows.is_empty())
        }
        _ => None,
    };
    assert_eq!(bench.wait_for(settle_all)?.rows[0].id(), Some("after"));
    bench.until("watched again", |stats| stats.watches == 1)?;
    write_in_new_connection(&again, "by event")?;
    let both = |reading: Reading| (reading.rows.len() == 2).then_some(());
    bench.wait_for(|event| settle_all(event).and_then(both))?;
    Ok(())
}

#[test]
fn a_folder_that_is_moved_away_and_replaced_is_followed_and_the_old_one_is_not() -> Tested {
    let bench = Bench::real(events_only())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    let old = folder.out_dir().with_file_name("old");
    fs::rename(folder.out_dir(), &old)?;
    bench.folder(ONE)?;
    write_in_new_connection(&folder, "new-1")?;
    let settle_all = |event| match event {
        ReactorEvent::Read { session, result, .. } => {
            bench.reactor.settled(session, from_start());
            result.ok().filter(|reading| !reading.rows.is_empty())
        }
        _ => None,
    };
    assert_eq!(bench.wait_for(settle_all)?.rows[0].id(), Some("new-1"));
    bench.until("watched again", |stats| stats.watches == 1)?;
    while bench.events.recv_timeout(MUST_NOT).is_ok_and(|event| settle_all(event).is_none_or(|_| true)) {}
    fs::write(old.join("outbound.db-journal"), b"x")?;
    fs::remove_file(old.join("outbound.db-journal"))?;
    bench.nothing()?;
    write_in_new_connection(&folder, "new-2")?;
    bench.wait_for(|event| settle_all(event).filter(|reading| reading.rows.len() == 2))?;
    Ok(())
}

#[test]
fn a_session_made_live_before_its_folder_exists_is_watched_when_it_comes() -> Tested {
    let bench = Bench::real(events_only())?;
    let folder = SessionFolder::nested(bench.dir.path().join(ONE.to_string()));
    bench.reactor.live(ONE, name(ONE)?, &folder, from_start());
    bench.wait_for(|event| matches!(event, ReactorEvent::FolderGone { session: ONE }).then_some(()))?;
    bench.folder(ONE)?;
    write_in_new_connection(&folder, "first")?;
    bench.wait_for(|event| match event {
        ReactorEvent::Read { result, .. } => {
            bench.reactor.settled(ONE, from_start());
            result.ok().filter(|reading| reading.rows.len() == 1)
        }
        _ => None,
    })?;
    Ok(())
}

#[test]
fn lost_events_lead_to_a_read_of_every_live_session() -> Tested {
    let fake = FakeWatcher::unlimited();
    let bench = Bench::with(events_only(), Arc::new(SqliteSource::default()), fake.maker())?;
    for no in 1..=5 {
        let folder = bench.folder(SessionNo(no))?;
        bench.live(SessionNo(no), &folder)?;
        write_in_new_connection(&folder, "unheard")?;
    }
    bench.nothing()?;
    fake.tell(Notice::Lost)?;
    bench.wait_for(|event| matches!(event, ReactorEvent::Warning(Warning::EventsLost)).then_some(()))?;
    let mut found = BTreeSet::new();
    while found.len() < 5 {
        found.insert(bench.wait_for(|event| match event {
            ReactorEvent::Read { session, result: Ok(reading), announced: true } => {
                (reading.rows.len() == 1).then_some(session)
            }
            _ => None,
        })?);
    }
    assert_eq!(bench.reactor.stats().rescans, 1);
    Ok(())
}

#[test]
fn a_flood_that_loses_events_again_and_again_does_not_make_the_host_read_without_end() -> Tested {
    let fake = FakeWatcher::unlimited();
    let bench = Bench::with(events_only(), Arc::new(FakeSource::default()), fake.maker())?;
    bench.live(ONE, &bench.folder(ONE)?)?;
    let start = Instant::now();
    fake.tell(Notice::Lost)?;
    while bench.reactor.stats().rescans < 2 {
        fake.tell(Notice::Lost)?;
        if start.elapsed() > MUST {
            return Err("the second look never came".into());
        }
        thread::yield_now();
    }
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    Ok(())
}

#[test]
fn past_the_watch_limit_sessions_are_looked_at_every_second_with_one_warning() -> Tested {
    let fake = FakeWatcher::unlimited();
    fake.limit.store(1, Ordering::SeqCst);
    let bench = Bench::with(events_only(), Arc::new(SqliteSource::default()), fake.maker())?;
    let third = SessionNo(3);
    let first = bench.folder(ONE)?;
    for no in 1..=3 {
        bench.reactor.live(SessionNo(no), name(SessionNo(no))?, &bench.folder(SessionNo(no))?, from_start());
    }
    let (mut scanned, mut warnings) = (0, Vec::new());
    while scanned < 3 {
        match bench.events.recv_timeout(MUST)? {
            ReactorEvent::Warning(warning) => warnings.push(warning.to_string()),
            ReactorEvent::Read { session, result: Ok(reading), .. } => {
                bench.settle(session, &reading);
                scanned += 1;
            }
            other => return Err(format!("{other:?}").into()),
        }
    }
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("sysctl fs.inotify.max_user_watches"), "{warnings:?}");
    bench.until("counted", |stats| (stats.watches, stats.uncovered) == (1, 2))?;
    write_in_new_connection(&SessionFolder::nested(bench.dir.path().join("s3")), "unwatched")?;
    let (ids, announced) = bench.rows(third, 1)?;
    assert_eq!((ids, announced), (vec!["unwatched".to_owned()], vec![false]));
    bench.until("counted as unannounced", |stats| stats.unannounced == 1)?;
    // A watch that becomes free is given to one of them at once.
    bench.reactor.dormant(ONE, name(ONE)?, &first, None);
    bench.until("one more watched", |stats| (stats.watches, stats.uncovered) == (1, 1))
}

#[test]
fn without_any_watcher_sessions_are_still_read_and_one_warning_says_so() -> Tested {
    let maker: WatcherMaker =
        Arc::new(|_| Err(WatchError::NoInstancesLeft(std::io::Error::from_raw_os_error(24))));
    let bench = Bench::with(events_only(), Arc::new(SqliteSource::default()), maker)?;
    for no in [SessionNo(1), SessionNo(2)] {
        bench.live(no, &bench.folder(no)?)?;
    }
    write_in_new_connection(&SessionFolder::nested(bench.dir.path().join("s2")), "a")?;
    bench.rows(SessionNo(2), 1)?;
    let others: Vec<_> = bench.events.try_iter().collect();
    assert!(others.is_empty(), "{others:?}");
    Ok(())
}

#[test]
fn a_resync_finds_and_counts_what_no_event_announced() -> Tested {
    let config = Config { resync_every: Duration::from_secs(1), ..Config::default() };
    let fake = FakeWatcher::unlimited();
    let bench = Bench::with(config, Arc::new(SqliteSource::default()), fake.maker())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    write_in_new_connection(&folder, "silent")?;
    let (ids, announced) = bench.rows(ONE, 1)?;
    assert_eq!((ids, announced), (vec!["silent".to_owned()], vec![false]));
    bench.until("counted", |stats| stats.unannounced == 1)
}

#[test]
fn with_a_working_watcher_a_resync_finds_nothing() -> Tested {
    let config = Config { resync_every: Duration::from_secs(1), ..Config::default() };
    let bench = Bench::real(config)?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    let writer = Connection::open(folder.outbound_db())?;
    // Three resyncs; a commit every 20 ms stays within the allowance of rows.
    let end = Instant::now() + Duration::from_millis(3_200);
    let mut n = 0;
    while Instant::now() < end {
        n += 1;
        write(&writer, &format!("m{n}"))?;
        bench.rows(ONE, 1)?;
        if let Ok(ReactorEvent::Read { result: Ok(reading), .. }) =
            bench.events.recv_timeout(Duration::from_millis(20))
        {
            bench.settle(ONE, &reading);
        }
    }
    assert_eq!(bench.reactor.stats().unannounced, 0);
    Ok(())
}

#[test]
fn a_change_in_a_dormant_session_is_reported_once() -> Tested {
    let config = Config { resync_every: Duration::from_secs(1), ..Config::default() };
    let bench = Bench::real(config)?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    assert!(bench.reactor.dormant(ONE, name(ONE)?, &folder, Some(Signature::of(&folder))).is_empty());
    write_in_new_connection(&folder, "while dormant")?;
    bench.wait_for(|event| matches!(event, ReactorEvent::DormantChanged { session: ONE }).then_some(()))?;
    assert_eq!(bench.reactor.stats().unannounced, 1);
    assert_eq!(bench.reactor.look(ONE, ticket(1)), Err(Refused::NotLive(ONE)));
    assert!(bench.events.recv_timeout(Duration::from_millis(1_500)).is_err());
    bench.reactor.live(ONE, name(ONE)?, &folder, from_start());
    assert_eq!(bench.rows(ONE, 1)?.0, ["while dormant"]);
    Ok(())
}

#[test]
fn nothing_more_is_read_before_a_reading_is_settled() -> Tested {
    let bench = Bench::real(events_only())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    write_in_new_connection(&folder, "a")?;
    let first = bench.next_reading(ONE)?;
    write_in_new_connection(&folder, "b")?;
    write_in_new_connection(&folder, "c")?;
    bench.nothing()?;
    bench.settle(ONE, &first);
    assert_eq!(bench.rows(ONE, 2)?.0, ["b", "c"]);
    Ok(())
}

#[test]
fn heartbeats_are_reported_and_limited_and_a_look_sees_those_between() -> Tested {
    let limits = Limits { heartbeat_every: Duration::from_secs(3_600), ..Limits::default() };
    let bench = Bench::real(Config { limits, ..events_only() })?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    let look = |n| -> Result<bool, Box<dyn std::error::Error>> {
        bench.reactor.look(ONE, ticket(n))?;
        let (changed, reading) = bench.wait_for(|event| match event {
            ReactorEvent::Looked { heartbeat_changed, result: Ok(reading), ticket: found, .. } => {
                (found == ticket(n)).then_some((heartbeat_changed, reading))
            }
            _ => None,
        })?;
        bench.settle(ONE, &reading);
        Ok(changed)
    };
    assert!(!look(1)?);
    fs::write(folder.heartbeat(), b"")?;
    bench.wait_for(|event| matches!(event, ReactorEvent::Heartbeat { session: ONE }).then_some(()))?;
    assert!(!look(2)?, "it was reported");
    let touch = |seconds| -> Tested {
        let at = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Ok(fs::File::options().write(true).open(folder.heartbeat())?.set_modified(at)?)
    };
    touch(1_000)?;
    bench.nothing()?;
    assert!(look(3)?, "a time that went backwards is a change too");
    touch(2_000)?;
    bench.reactor.baseline_heartbeat(ONE);
    assert!(!look(4)?);
    Ok(())
}

#[test]
fn a_panic_in_the_owners_sink_stops_nothing() -> Tested {
    let (sender, events) = unbounded();
    let first = AtomicBool::new(true);
    let sink: Sink = Arc::new(move |event| {
        assert!(!first.swap(false, Ordering::SeqCst), "a panic that the test wants");
        drop(sender.send(event));
    });
    let reactor = Reactor::start(events_only(), Arc::new(SqliteSource::default()), sink)?;
    let bench = Bench { reactor, events, dir: tempfile::tempdir()? };
    let folder = bench.folder(ONE)?;
    bench.reactor.live(ONE, name(ONE)?, &folder, from_start());
    bench.until("panicked", |stats| stats.panics == 1)?;
    bench.reactor.settled(ONE, from_start());
    write_in_new_connection(&folder, "after")?;
    assert_eq!(bench.rows(ONE, 1)?.0, ["after"]);
    Ok(())
}

#[test]
fn a_panic_while_reading_is_reported_as_unreadable_and_the_thread_goes_on() -> Tested {
    let source = FakeSource::default();
    source.panics.store(3, Ordering::SeqCst);
    let bench = Bench::with(events_only(), Arc::new(source), FakeWatcher::unlimited().maker())?;
    let folder = bench.folder(ONE)?;
    bench.reactor.live(ONE, name(ONE)?, &folder, from_start());
    bench.wait_for(|event| matches!(event, ReactorEvent::Read { result: Err(_), .. }).then_some(()))?;
    for n in 0..3 {
        bench.reactor.settled(ONE, from_start());
        bench.reactor.look(ONE, ticket(n))?;
        let failed = bench.wait_for(|event| match event {
            ReactorEvent::Looked { result, .. } => Some(result.is_err()),
            _ => None,
        })?;
        assert_eq!(failed, n < 2);
    }
    assert_eq!(bench.reactor.stats().panics, 3);
    Ok(())
}

#[test]
fn a_file_locked_for_a_while_is_read_in_the_end_without_a_word() -> Tested {
    let source = FakeSource::default();
    source.busy.store(6, Ordering::SeqCst);
    let bench = Bench::with(events_only(), Arc::new(source), FakeWatcher::unlimited().maker())?;
    bench.live(ONE, &bench.folder(ONE)?)?;
    let stats = bench.reactor.stats();
    assert_eq!((stats.busy, stats.reads, stats.kept), (6, 7, 1));
    Ok(())
}

#[test]
fn a_look_at_a_file_that_stays_locked_is_answered() -> Tested {
    let limits = Limits { look_patience: Duration::from_millis(50), ..Limits::default() };
    let source = FakeSource::default();
    let busy = Arc::clone(&source.busy);
    let config = Config { limits, ..events_only() };
    let bench = Bench::with(config, Arc::new(source), FakeWatcher::unlimited().maker())?;
    bench.live(ONE, &bench.folder(ONE)?)?;
    busy.store(usize::MAX, Ordering::SeqCst);
    bench.reactor.look(ONE, ticket(1))?;
    let cause = bench.wait_for(|event| match event {
        ReactorEvent::Looked { result: Err(unreadable), .. } => Some(unreadable.cause),
        _ => None,
    })?;
    assert_eq!(cause, Cause::Busy);
    Ok(())
}

#[test]
fn whoever_hears_of_a_hot_journal_finds_the_connection_closed() -> Tested {
    let source = FakeSource::default();
    let (hot, open) = (Arc::clone(&source.hot), Arc::clone(&source.open));
    let bench = Bench::with(events_only(), Arc::new(source), FakeWatcher::unlimited().maker())?;
    bench.live(ONE, &bench.folder(ONE)?)?;
    assert_eq!(open.load(Ordering::SeqCst), 1);
    hot.store(true, Ordering::SeqCst);
    bench.reactor.look(ONE, ticket(1))?;
    bench.wait_for(|event| matches!(event, ReactorEvent::Looked { result: Err(_), .. }).then_some(()))?;
    assert_eq!(open.load(Ordering::SeqCst), 0);
    Ok(())
}

#[test]
fn a_mount_that_is_not_local_keeps_no_connection_and_says_so() -> Tested {
    without_events(Mount::NotLocal { kind: "nfs" }, "nfs")
}

#[test]
fn a_mount_that_announces_nothing_of_containers_is_looked_at_instead() -> Tested {
    without_events(Mount::NoEvents, "not announced")
}

/// The watcher is mute and the resync an hour away: what is found is found by looking.
fn without_events(mount: Mount, said: &str) -> Tested {
    let source = FakeSource::default();
    let open = Arc::clone(&source.open);
    let config = Config { mount, ..events_only() };
    let bench = Bench::with(config, Arc::new(source), FakeWatcher::unlimited().maker())?;
    let folder = bench.folder(ONE)?;
    bench.reactor.live(ONE, name(ONE)?, &folder, from_start());
    let text = bench.wait_for(|event| match event {
        ReactorEvent::Warning(warning) => Some(warning.to_string()),
        _ => None,
    })?;
    assert!(text.contains(said) && text.contains("every 250ms"), "{text}");
    bench.next_reading(ONE)?;
    assert_eq!(open.load(Ordering::SeqCst), 0);
    bench.reactor.settled(ONE, from_start());
    write_in_new_connection(&folder, "no event")?;
    bench.next_reading(ONE)?;
    Ok(())
}

#[test]
fn a_mount_that_was_taken_for_a_local_one_is_found_out_and_then_looked_at_instead() -> Tested {
    let config = Config { resync_every: Duration::from_secs(1), ..Config::default() };
    let bench = Bench::with(config, Arc::new(SqliteSource::default()), FakeWatcher::unlimited().maker())?;
    let folder = bench.folder(ONE)?;
    bench.live(ONE, &folder)?;
    assert_eq!(bench.reactor.stats().kept, 1);
    for n in 1..=u64::from(silence::SILENT_MAX) {
        assert!(!bench.reactor.stats().silent);
        write_in_new_connection(&folder, &format!("silent-{n}"))?;
        assert_eq!(bench.rows(ONE, 1)?.1, [false]);
        bench.until("counted", |stats| stats.unannounced == n)?;
    }
    let late = bench.wait_for(|event| match event {
        ReactorEvent::Warning(Warning::NoEvents { late }) => Some(late),
        _ => None,
    })?;
    let stats = bench.reactor.stats();
    assert_eq!((late, stats.late), (resync::NO_EVENTS_WAIT, resync::NO_EVENTS_WAIT));
    assert!(stats.silent && !stats.local && stats.kept == 0 && stats.watches == 1, "{stats:?}");
    write_in_new_connection(&folder, "looked at")?;
    assert_eq!(bench.rows(ONE, 1)?.0, ["looked at"]);
    assert_eq!(bench.reactor.stats().kept, 0, "none is kept again");
    Ok(())
}

#[test]
fn a_silent_watcher_is_replaced_and_a_living_one_is_not() -> Tested {
    let probed = |bench: &Bench| Config {
        probe_folder: Some(bench.dir.path().join("probe")),
        probe_patience: Duration::from_millis(100),
        resync_every: Duration::from_secs(1),
        ..Config::default()
    };
    let place = Bench::real(events_only())?;
    let fake = FakeWatcher::unlimited();
    let silent = Bench::with(probed(&place), Arc::new(FakeSource::default()), fake.maker())?;
    silent
        .wait_for(|event| matches!(event, ReactorEvent::Warning(Warning::WatcherReplaced)).then_some(()))?;
    silent.until("made again", |_| fake.made.load(Ordering::SeqCst) >= 2)?;
    let config = Config { probe_patience: MUST, ..probed(&silent) };
    let living = Bench::real(config)?;
    assert!(living.events.recv_timeout(Duration::from_millis(1_500)).is_err());
    assert_eq!(living.reactor.stats().watcher_restarts, 0);
    Ok(())
}

#[test]
fn a_dead_watcher_is_replaced_and_everything_is_watched_again() -> Tested {
    let fake = FakeWatcher::unlimited();
    let bench = Bench::with(events_only(), Arc::new(FakeSource::default()), fake.maker())?;
    bench.live(ONE, &bench.folder(ONE)?)?;
    fake.dead.store(true, Ordering::SeqCst);
    bench.reactor.live(SessionNo(2), name(SessionNo(2))?, &bench.folder(SessionNo(2))?, from_start());
    bench.until("replaced", |stats| stats.watcher_restarts == 1 && stats.watches == 2)
}

#[test]
fn a_dormant_session_is_unwatched_and_may_be_live_again() -> Tested {
    let fake = FakeWatcher::unlimited();
    let bench = Bench::with(events_only(), Arc::new(FakeSource::default()), fake.maker())?;
    let folder = bench.folder(ONE)?;
    for _ in 0..2 {
        bench.live(ONE, &folder)?;
        bench.until("watched", |stats| stats.watches == 1 && stats.kept == 1)?;
        bench.reactor.dormant(ONE, name(ONE)?, &folder, None);
        bench.until("unwatched", |stats| stats.watches == 0 && stats.kept == 0)?;
    }
    let left = fake.watched.lock().map_err(|error| error.to_string())?.len();
    assert_eq!(left, 0);
    Ok(())
}

#[test]
fn many_sessions_are_read_by_few_threads_and_all_of_them() -> Tested {
    let source = FakeSource::default();
    let most = Arc::clone(&source.most);
    let bench = Bench::with(events_only(), Arc::new(source), FakeWatcher::unlimited().maker())?;
    let folder = bench.folder(ONE)?;
    for no in 0..300 {
        // One folder each, or they would share their watch.
        let own = SessionFolder::of_dirs(bench.dir.path().join(no.to_string()), folder.in_dir());
        fs::create_dir(own.out_dir())?;
        bench.reactor.live(SessionNo(no), name(SessionNo(no))?, &own, from_start());
    }
    let mut seen = BTreeSet::new();
    while seen.len() < 300 {
        seen.insert(bench.wait_for(|event| match event {
            ReactorEvent::Read { session, .. } => Some(session),
            _ => None,
        })?);
    }
    assert!(most.load(Ordering::SeqCst) <= 2);
    assert!(bench.reactor.stats().kept <= kept::MOST);
    Ok(())
}

#[test]
fn rows_are_withheld_without_room_and_come_with_it() -> Tested {
    let bench = Bench::real(events_only())?;
    let folder = bench.folder(ONE)?;
    write_in_new_connection(&folder, "waits")?;
    bench.reactor.live(ONE, name(ONE)?, &folder, ReadPlan::default());
    let reading = bench.next_reading(ONE)?;
    assert!(reading.rows.is_empty() && reading.more && reading.cursor.is_none());
    bench.reactor.settled(ONE, from_start());
    assert_eq!(bench.rows(ONE, 1)?.0, ["waits"]);
    Ok(())
}

#[test]
fn dropping_the_reactor_ends_its_threads() -> Tested {
    let fake = FakeWatcher::unlimited();
    let source = FakeSource::default();
    let open = Arc::clone(&source.open);
    let bench = Bench::with(events_only(), Arc::new(source), fake.maker())?;
    bench.live(ONE, &bench.folder(ONE)?)?;
    let Bench { reactor, events, dir: _dir } = bench;
    drop(reactor);
    assert_eq!(events.try_iter().count(), 0);
    *fake.sink.lock().map_err(|error| error.to_string())? = None;
    assert_eq!(open.load(Ordering::SeqCst), 0, "kept readers are closed");
    assert!(events.try_recv().is_err_and(|error| error.is_disconnected()), "nobody holds the sink");
    Ok(())
}
