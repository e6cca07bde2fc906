//! Starts and stops that cross each other: a real loop, reactor and journal, a runtime that only takes notes, and
//! every piece of news taken when the test says so.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_channel::unbounded;

use super::*;
use crate::base::{Attempt, Ms, OsDisk, SessionName};
use crate::containers::{Containers, Sink, StartSpec, Stock};
use crate::host::clock::OsClock;
use crate::host::ends::Ends;
use crate::host::event::container_sink;
use crate::host::folder::DataFolder;
use crate::host::space;
use crate::journal::boot;
use crate::journal::writer::Sync;
use crate::machine::input::{Ask, Booted};
use crate::machine::state::Stage;
use crate::reactor::source::OpenReader;
use crate::reactor::{self, Reactor, ReadPlan, ReadSource, SqliteSource};
use crate::session::SessionFolder;
use crate::session::host_side::install_guards;

/// A bound for what a loaded machine may take; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(60);
/// The session of the test's only chat.
const ONE: SessionNo = SessionNo(1);

/// A runtime that starts nothing and keeps the contract.
struct Notes {
    sink: Sink,
    calls: Mutex<Vec<(&'static str, Attempt)>>,
    alive: Mutex<BTreeSet<(SessionNo, Attempt)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Containers for Notes {
    fn name(&self) -> &'static str {
        "notes"
    }

    fn adopts(&self) -> bool {
        false
    }

    fn start(&self, spec: StartSpec) {
        let (session, attempt) = (spec.session, spec.attempt);
        lock(&self.calls).push(("start", attempt));
        lock(&self.alive).insert((session, attempt));
        (self.sink)(ContainerEvent::Started { session, attempt });
    }

    fn stop(&self, session: SessionNo, attempt: Attempt, _: Ms) {
        lock(&self.calls).push(("stop", attempt));
        lock(&self.alive).remove(&(session, attempt));
        (self.sink)(ContainerEvent::Exited { session, attempt, exit: containers::Exit::Unknown });
    }

    fn is_alive(&self, session: SessionNo, attempt: Attempt) -> Option<bool> {
        Some(lock(&self.alive).contains(&(session, attempt)))
    }

    fn discard(&self, _: &SessionName, _: Attempt) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Stock> {
        Ok(Stock::Known(Vec::new()))
    }

    fn shutdown(&self, _: Ms) {}
}

/// Reads what is there, or fails as the test says.
#[derive(Clone, Default)]
struct Source(Arc<Mutex<Option<MakeCause>>>);

type MakeCause = fn() -> Cause;

struct Reader(Source, Box<dyn OpenReader>, SessionName);

impl ReadSource for Source {
    fn open(&self, session: &SessionName, folder: &SessionFolder) -> Box<dyn OpenReader> {
        let real = SqliteSource::default().open(session, folder);
        Box::new(Reader(self.clone(), real, session.clone()))
    }
}

impl OpenReader for Reader {
    fn read(&mut self, plan: &ReadPlan) -> Result<host_side::Reading, host_side::Unreadable> {
        let Some(cause) = *lock(&self.0.0) else { return self.1.read(plan) };
        Err(host_side::Unreadable { session: self.2.clone(), path: "/test".into(), cause: cause() })
    }
}

struct Bench {
    daemon: Daemon,
    runtime: Arc<Notes>,
    source: Source,
    /// The kinds of news that were taken.
    taken: Vec<&'static str>,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// A daemon that has booted, with one message of one chat on its way.
    fn new() -> Self {
        install_guards().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(OsClock);
        let data = DataFolder::prepare(folder.path(), &*clock).unwrap();
        let log = Logger::root(slog::Discard, slog::o!());
        let config = Arc::new(Config::default());
        let boot = boot::raise(&OsDisk, &data.journal()).unwrap();
        let (events, news) = unbounded();
        let ends = Arc::new(Ends::default());
        let runtime = Arc::new(Notes {
            sink: container_sink(events.clone(), log.clone(), Arc::clone(&ends)),
            calls: Mutex::default(),
            alive: Mutex::default(),
        });
        let source = Source::default();
        let told = events.clone();
        let sink = Arc::new(move |event| drop(told.send(Event::Reactor(event))));
        let settings = reactor::Config { probe_folder: Some(data.probe()), ..reactor::Config::default() };
        let reactor = Arc::new(Reactor::start(settings, Arc::new(source.clone()), sink).unwrap());
        let machine = Machine::default();
        let recorder = Recorder::new(machine.state());
        let journal = Journal::begin(
            Arc::new(OsDisk),
            &data.journal(),
            &Header::new(data.installation(), RecordNo::first_of(boot), "test"),
            &encode_snapshot(&machine.state().to_parts(), recorder.root(), recorder.causes()),
            Sync::None,
            Box::new(|_| {}),
        )
        .unwrap();
        let containers: Arc<dyn Containers> = runtime.clone();
        let performer = Performer::new(
            data.clone(),
            Arc::clone(&config),
            log.clone(),
            clock.clone(),
            events,
            reactor,
            containers,
            Vec::new(),
            ends,
        )
        .unwrap();
        let space = Space::start(space::Source::of(data.root()), 0, data.root(), log.clone()).unwrap();
        let offset = clock.wall().0;
        let daemon = Daemon::new(Parts {
            machine,
            recorder,
            journal,
            performer,
            space,
            events: news,
            clock,
            config: Arc::clone(&config),
            log,
            build: "test".into(),
            at: At(0),
        });
        let mut bench = Self { daemon, runtime, source, taken: Vec::new(), _folder: folder };
        bench.input(Input::Booted(Booted {
            boot,
            build: "test".into(),
            policy: config.policy.policy(),
            group: config.agent.folder.clone(),
            offset,
            downtime: Ms(0),
        }));
        bench.input(Input::ContainersFound { alive: Vec::new(), adoptable: false });
        bench.take(Event::Channel(ChannelEvent::Arrived(Arrived {
            channel: "chat",
            receipt: 1,
            chat: "chat:main".into(),
            thread: None,
            message_id: "m1".into(),
            content: r#"{"text":"hello"}"#.into(),
            sent: None,
        })));
        bench
    }

    fn input(&mut self, input: Input) {
        self.daemon.turn(&mut vec![input]).unwrap();
    }

    fn ask(&mut self, ask: Ask) {
        self.input(Input::OperatorAsked { request: 0, ask });
    }

    fn take(&mut self, event: Event) {
        self.taken.push(match &event {
            Event::Prepared { .. } => "prepared",
            Event::Reactor(ReactorEvent::Looked { .. }) => "looked",
            Event::Input(Input::ContainerStartFailed { .. }) => "start failed",
            _ => "other",
        });
        let mut inputs = Vec::new();
        self.daemon.take(event, &mut inputs);
        self.daemon.turn(&mut inputs).unwrap();
    }

    /// Takes one piece of news after the other until it is as wanted.
    fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let limit = Instant::now() + LIMIT;
        while !wanted(self) {
            let event = self.daemon.events.recv_deadline(limit);
            self.take(event.unwrap_or_else(|_| panic!("not in time: {what}; {:?}", self.phase())));
        }
    }

    fn phase(&self) -> Option<&Phase> {
        self.daemon.machine.state().session(ONE).map(|session| &session.phase)
    }

    /// The start that is under way, and its attempt.
    fn launching(&self) -> Option<(EffectId, Attempt)> {
        match self.phase() {
            Some(&Phase::Starting { attempt, effect, stage: Stage::Launching, .. }) => {
                Some((effect, attempt))
            }
            _ => None,
        }
    }

    fn is_scanning(&self) -> bool {
        self.launching().is_some_and(|(effect, _)| self.daemon.performer.is_scanning(effect))
    }

    fn is_running(&self) -> bool {
        matches!(self.phase(), Some(Phase::Running { .. }))
    }

    fn has(&self, kind: &str) -> bool {
        self.taken.contains(&kind)
    }

    fn calls(&self) -> Vec<(&'static str, Attempt)> {
        lock(&self.runtime.calls).clone()
    }

    /// Nothing runs, the machine knows it, and the session can be started.
    fn expect_over_and_start_again(mut self, stopped: Attempt) {
        assert!(matches!(self.phase(), Some(Phase::Stopped { .. })), "{:?}", self.phase());
        assert_eq!(self.calls(), []);
        let state = self.daemon.machine.state();
        assert!(
            !state.effects().values().any(|it| matches!(it, Owner::Start(_))),
            "a start is open for ever"
        );
        self.ask(Ask::StartSession(ONE));
        self.until("the next attempt runs", Self::is_running);
        let calls = self.calls();
        assert!(matches!(calls[..], [("start", next)] if next > stopped), "{calls:?} after {stopped}");
    }
}

#[test]
fn a_stop_while_a_start_is_prepared_leaves_nothing_that_runs() {
    let mut bench = Bench::new();
    bench.until("it is launched", |it| it.launching().is_some());
    let (_, attempt) = bench.launching().unwrap();
    bench.ask(Ask::StopSession(ONE));
    bench.until("both have come", |it| it.has("prepared") && it.has("start failed"));
    bench.expect_over_and_start_again(attempt);
}

#[test]
fn a_stop_while_a_start_waits_for_its_scan_leaves_nothing_that_runs() {
    let mut bench = Bench::new();
    bench.until("it is scanned", Bench::is_scanning);
    let (_, attempt) = bench.launching().unwrap();
    // The scan is done, and the loop has not heard of it.
    let scan = loop {
        match bench.daemon.events.recv_timeout(LIMIT).expect("no scan in time") {
            event @ Event::Reactor(ReactorEvent::Looked { .. }) => break event,
            other => bench.take(other),
        }
    };
    assert!(bench.is_scanning());
    bench.ask(Ask::StopSession(ONE));
    bench.until("it is answered", |it| it.has("start failed"));
    bench.take(scan);
    bench.expect_over_and_start_again(attempt);
}

#[test]
fn a_stop_after_the_hand_over_is_the_runtimes() {
    let mut bench = Bench::new();
    bench.until("it is handed over", |it| !it.calls().is_empty());
    let attempt =
        bench.launching().map(|(_, attempt)| attempt).expect("its start was taken before it was said");
    bench.ask(Ask::StopSession(ONE));
    bench.until("it is stopped", |it| matches!(it.phase(), Some(Phase::Stopped { .. })));
    assert_eq!(bench.calls(), [("start", attempt), ("stop", attempt)]);
    assert!(lock(&bench.runtime.alive).is_empty());
}

#[test]
fn an_attempt_that_nobody_expects_is_stopped() {
    let mut bench = Bench::new();
    bench.until("it runs", Bench::is_running);
    let stray = Attempt(u64::MAX);
    lock(&bench.runtime.alive).insert((ONE, stray));
    bench.take(Event::Container(ContainerEvent::Started { session: ONE, attempt: stray }));
    assert_eq!(bench.calls().last(), Some(&("stop", stray)));
    assert!(bench.is_running() && lock(&bench.runtime.alive).len() == 1);
}

#[test]
fn what_the_scan_cannot_read_no_attempt_is_started_on() {
    type Wanted = fn(&Phase) -> bool;
    let cases: [(MakeCause, Wanted); 2] = [
        (|| Cause::NotADatabase, |phase| matches!(phase, Phase::Quarantined { .. })),
        (|| Cause::Busy, |phase| matches!(phase, Phase::BackingOff { .. })),
    ];
    for (cause, wanted) in cases {
        let mut bench = Bench::new();
        bench.until("it is launched", |it| it.launching().is_some());
        *lock(&bench.source.0) = Some(cause);
        bench.until("it is given up", |it| it.phase().is_some_and(wanted));
        assert_eq!(bench.calls(), [], "{:?}", bench.phase());
        // Readable again: it is tried again by itself, or because somebody asks.
        *lock(&bench.source.0) = None;
        bench.ask(Ask::StartSession(ONE));
        bench.until("it runs", Bench::is_running);
    }
}

#[test]
fn a_hot_journal_is_the_next_attempts_to_roll_back() {
    let mut bench = Bench::new();
    bench.until("it is launched", |it| it.launching().is_some());
    *lock(&bench.source.0) = Some(|| Cause::HotJournal);
    bench.until("it runs", Bench::is_running);
    assert!(matches!(bench.calls()[..], [("start", _)]), "{:?}", bench.calls());
}
