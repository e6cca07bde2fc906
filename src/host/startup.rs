//! Start-up, in an order that a crash at any point cannot break: lock, boot number, journal, hot inbound journals,
//! what still runs, sessions as they are on disk, and only then channels.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, unbounded};
use slog::{Logger, info, warn};

use super::config::{Config, RuntimeKind, SyncMode};
use super::control::{ControlServer, Handler};
use super::daemon::{Daemon, Ended, Parts};
use super::event::Event;
use super::folder::{DataFolder, FolderError};
use super::perform::{Performer, send};
use super::space::{self, Space};
use super::unchanged::Unchanged;
use super::{agent, facts, operator};
use crate::base::{At, BootNo, Clock, Ms, OsDisk, RecordNo, SessionName, SessionNo, Wall};
use crate::channels::Channel;
use crate::channels::chat::Chat;
use crate::containers::Containers;
use crate::containers::process::Processes;
use crate::journal::boot::{self, BootError};
use crate::journal::record::{RecordError, check_schemas};
use crate::journal::recovery::{self, RecoverError};
use crate::journal::retention::{Dropped, Keep, Retention};
use crate::journal::segment::Header;
use crate::journal::wire::digest::Digests;
use crate::journal::wire::recorder::Recorder;
use crate::journal::wire::snapshot::encode_snapshot;
use crate::journal::writer::{Journal, JournalError, Sync};
use crate::machine::Machine;
use crate::machine::input::{Booted, Input, PendingRow, SessionFound};
use crate::machine::state::{Source, State};
use crate::reactor::{self, Reactor, SqliteSource};
use crate::replay;
use crate::session::SessionFolder;
use crate::session::host_side::{InboundWriter, install_guards};
use crate::session::rows::Address;

/// Pending rows read in one page at start.
const PAGE: usize = 1_000;
/// Pending rows of one session that the machine takes at start; the rest is adopted when the daemon starts again. The
/// same bound as for arrivals.
const PENDING_MAX: usize = crate::machine::policy::INBOX_MAX as usize;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The boot number.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The journal cannot be continued.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The journal cannot be read.
    #[error(transparent)]
    Replay(#[from] replay::segments::ReplayError),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// This build cannot read all that builds before it wrote.
    #[error("this build has a gap among the journal's versions: {0}")]
    Schemas(#[from] RecordError),
    /// The agent's environment.
    #[error(transparent)]
    Env(#[from] agent::EnvError),
    /// The reactor.
    #[error(transparent)]
    Reactor(#[from] reactor::StartError),
    /// A runtime that this build does not have.
    #[error("this build has no docker runtime yet")]
    NoDocker,
    /// The runner is not where it is looked for.
    #[error("no runner at {path}")]
    NoRunner {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The loop ended at once.
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl StartError {
    /// What may be done about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Folder(error) => error.hint().into(),
            Self::Boot(error) => error.hint().into(),
            Self::Recover(error) => error.hint().into(),
            Self::Journal(error) | Self::Ended(Ended::Journal(error)) => error.hint(),
            Self::Replay(_) | Self::Ended(_) => {
                "see that the journal folder is the daemon's own and that the disk has space".into()
            }
            Self::Schemas(error) => error.hint().into(),
            Self::Env(_) => "write one KEY=VALUE a line".into(),
            Self::Reactor(_) => "raise the limit that it names".into(),
            Self::NoDocker => "use --runtime process".into(),
            Self::NoRunner { .. } => {
                "build it with `cargo build -p lamplighter-runner`, put it beside the daemon, or set [runtime.process] \
                 command"
                    .into()
            }
            Self::Io { .. } => "see that the data folder is yours and has space".into(),
        }
    }
}

fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Io { doing, source }
}

/// A daemon that has started.
pub struct Started {
    /// The loop, to be run.
    pub daemon: Daemon,
    /// Tells it to stop.
    pub events: Sender<Event>,
    /// Answers the commands; dropped before the folder's lock.
    pub control: ControlServer,
    /// Kept for as long as the daemon runs.
    pub lock: File,
}

/// Starts everything.
///
/// # Errors
/// See [`StartError`]; nothing was decided then.
pub fn start(
    data: DataFolder,
    config: Config,
    log: &Logger,
    clock: Arc<dyn Clock>,
    build: String,
) -> Result<Started, StartError> {
    let source = space::Source::of(data.root());
    start_with(data, config, log, clock, build, source)
}

/// As [`start`], with another source of what is known about free space.
///
/// # Errors
/// See [`start`].
pub fn start_with(
    data: DataFolder,
    config: Config,
    log: &Logger,
    clock: Arc<dyn Clock>,
    build: String,
    source: space::Source,
) -> Result<Started, StartError> {
    check_schemas()?;
    // Before any other thread uses SQLite.
    install_guards();
    let config = Arc::new(config);
    let env = agent::environment(&config.agent, &|name| std::env::var(name).ok())?;
    let lock = data.lock()?;
    let boot = boot::raise(&OsDisk, &data.journal())?;
    let (machine, digests, at, downtime) = load(&data, log, &*clock)?;
    let unchanged = Unchanged::take(&data, machine.state());

    let (events, news) = unbounded();
    let containers = runtime(&config, &data, &events)?;
    let reactor = start_reactor(&config, &data, &events)?;
    let mode = match config.journal.sync {
        SyncMode::Group => Sync::Group,
        SyncMode::Always => Sync::Always,
        SyncMode::None => Sync::None,
    };
    let recorder = Recorder::with(digests);
    let first = RecordNo::first_of(boot);
    let synced = events.clone();
    let mut journal = Journal::begin(
        Arc::new(OsDisk),
        &data.journal(),
        &Header::new(data.installation(), first, &build),
        &encode_snapshot(machine.state(), recorder.root()),
        mode,
        Box::new(move |told| send(&synced, Event::Synced(told))),
    )?;
    journal.retain(retention(&config, Arc::clone(&clock), log.clone()));
    let performer = Performer::new(
        data.clone(),
        Arc::clone(&config),
        log.clone(),
        Arc::clone(&clock),
        events.clone(),
        reactor,
        Arc::clone(&containers),
        env,
    )
    .map_err(io("start a thread"))?;
    let space = Space::start(source, config.limits.disk_reserve, data.root(), log.clone())
        .map_err(io("start a thread"))?;
    let mut daemon = Daemon::new(Parts {
        machine,
        recorder,
        journal,
        performer,
        space,
        events: news,
        clock: Arc::clone(&clock),
        config: Arc::clone(&config),
        log: log.clone(),
        build: build.clone(),
        at,
    });
    let offset = clock.wall().0 - at.0;
    boot_inputs(&mut daemon, &data, &config, log, boot, build, offset, downtime, &*containers, &unchanged)?;
    let control = start_control(&data, &events)?;
    let chat_events = events.clone();
    let sink = Arc::new(move |event| send(&chat_events, Event::Channel(event)));
    let chat = Chat::start(&data.chat_socket(), clock, sink).map_err(io("listen on the chat socket"))?;
    let chat: Arc<dyn Channel> = Arc::new(chat);
    daemon.performer().add_channel(chat);
    info!(log, "ready"; "data" => %data.root().display(), "boot" => boot.0, "runtime" => containers.name());
    Ok(Started { daemon, events, control, lock })
}

/// The machine as the journal left it, and machine time now.
fn load(
    data: &DataFolder,
    log: &Logger,
    clock: &dyn Clock,
) -> Result<(Machine, Digests, At, Ms), StartError> {
    let recovered = recovery::recover(&OsDisk, &data.journal())?;
    if let Some(cut) = &recovered.cut {
        warn!(log, "cut the journal's tail, which was not durable yet";
            "segment" => %cut.path.display(), "offset" => cut.offset, "bytes" => cut.bytes, "records" => cut.records);
    }
    if let Some(path) = &recovered.abandoned {
        warn!(log, "set a segment aside that was never switched to"; "path" => %path.display());
    }
    let Some(loaded) = replay::load(&data.journal())? else {
        let machine = Machine::default();
        let digests = Digests::of(machine.state());
        return Ok((machine, digests, At(0), Ms(0)));
    };
    if let Some(divergence) = &loaded.divergence {
        warn!(log, "the journal replays differently in this build; the session files decide"; "first" => %divergence);
    }
    let Wall(now) = clock.wall();
    // A clock that was set back in between makes no negative downtime.
    let downtime = Ms(u64::try_from((now - loaded.last_wall.0).max(0) / 1_000).unwrap_or(0));
    let at = loaded.last_at + downtime;
    Ok((loaded.machine, loaded.digests, at, downtime))
}

/// What of the journal is kept, and what is said about it.
fn retention(config: &Config, clock: Arc<dyn Clock>, log: Logger) -> Retention {
    let days = config.journal.keep_days;
    let keep = Keep { bytes: config.journal.keep_bytes, age: (days > 0).then(|| Ms::days(u64::from(days))) };
    // A folder that refuses does so at every rotation: once is enough, until it goes again.
    let warned = AtomicBool::new(false);
    let on_dropped = move |told| match told {
        Ok(Dropped { segments, bytes, before }) => {
            warned.store(false, Ordering::Relaxed);
            if segments > 0 {
                info!(log, "dropped the oldest segments of the journal";
                    "segments" => segments, "bytes" => bytes, "before" => %before);
            }
        }
        Err(error) => {
            if !warned.swap(true, Ordering::Relaxed) {
                warn!(log, "old segments of the journal stay, so it grows beyond journal.keep_bytes"; "why" => %error);
            }
        }
    };
    Retention { keep, clock, on_dropped: Box::new(on_dropped) }
}

fn runtime(
    config: &Config,
    data: &DataFolder,
    events: &Sender<Event>,
) -> Result<Arc<dyn Containers>, StartError> {
    match config.runtime.kind {
        RuntimeKind::Docker => Err(StartError::NoDocker),
        RuntimeKind::Process => {
            let command = process_command(config)?;
            let events = events.clone();
            let sink = Arc::new(move |event| send(&events, Event::Container(event)));
            let runtime =
                Processes::start(command, data.session_locks(), sink).map_err(io("start a thread"))?;
            Ok(Arc::new(runtime))
        }
    }
}

/// The program of an attempt: the runner beside the daemon, or what the configuration names, which then runs behind
/// `exec-child` so that it ends with the daemon.
fn process_command(config: &Config) -> Result<Vec<OsString>, StartError> {
    let own = std::env::current_exe().map_err(io("find the daemon's own program"))?;
    if let Some(command) = &config.runtime.process.command {
        let parent = std::process::id().to_string();
        let mut whole: Vec<OsString> = vec![own.into(), "exec-child".into(), parent.into(), "--".into()];
        whole.extend(command.iter().map(OsString::from));
        return Ok(whole);
    }
    let path = std::env::var_os("LAMPLIGHTER_RUNNER")
        .map_or_else(|| own.with_file_name("lamplighter-runner"), PathBuf::from);
    // The working folder of an attempt is its session's.
    let path = std::path::absolute(path).map_err(io("resolve the runner's path"))?;
    if path.is_file() { Ok(vec![path.into()]) } else { Err(StartError::NoRunner { path }) }
}

fn start_reactor(
    config: &Config,
    data: &DataFolder,
    events: &Sender<Event>,
) -> Result<Arc<Reactor>, StartError> {
    let settings = reactor::Config {
        resync_every: config.reactor.resync.0.into(),
        limits: reactor::Limits {
            heartbeat_every: config.reactor.heartbeat_every.0.into(),
            ..reactor::Limits::default()
        },
        mount: reactor::Mount::of(data.root()),
        probe_folder: Some(data.probe()),
        ..reactor::Config::default()
    };
    let events = events.clone();
    let sink = Arc::new(move |event| send(&events, Event::Reactor(event)));
    Ok(Arc::new(Reactor::start(settings, Arc::new(SqliteSource::default()), sink)?))
}

fn start_control(data: &DataFolder, events: &Sender<Event>) -> Result<ControlServer, StartError> {
    let events = events.clone();
    let handler: Handler = Arc::new(move |request| {
        let (reply, answer) = crossbeam_channel::bounded(1);
        send(&events, Event::Control { request, reply });
        answer.recv().unwrap_or_else(|_| Err("the daemon is stopping".into()))
    });
    ControlServer::start(&data.control_socket(), handler).map_err(io("listen on the control socket"))
}

/// The first inputs of a boot: what this daemon finds.
#[allow(clippy::too_many_arguments)] // One call, at the composition root.
fn boot_inputs(
    daemon: &mut Daemon,
    data: &DataFolder,
    config: &Config,
    log: &Logger,
    boot: BootNo,
    build: String,
    offset: i64,
    downtime: Ms,
    containers: &dyn Containers,
    unchanged: &Unchanged,
) -> Result<(), StartError> {
    let mut inputs = vec![Input::Booted(Booted {
        boot,
        build,
        policy: config.policy.policy(),
        group: config.agent.folder.clone(),
        offset,
        downtime,
    })];
    daemon.turn(&mut inputs)?;
    let mut changed = Vec::new();
    let mut marks = BTreeMap::new();
    for name in data.session_names()? {
        match unchanged.find(data, &name, daemon.machine.state()) {
            Some((no, mark)) => drop(marks.insert(no, mark)),
            None => changed.push(name),
        }
    }
    let kept: Vec<SessionNo> = marks.keys().copied().collect();
    inputs.extend(kept.chunks(PAGE).map(|page| Input::SessionsUnchanged { sessions: page.to_vec() }));
    daemon.turn(&mut inputs)?;
    for names in changed.chunks(PAGE) {
        inputs
            .extend(find_all(data, names, daemon.machine.state(), log).into_iter().map(Input::SessionFound));
        daemon.turn(&mut inputs)?;
    }
    let found = containers.list().map_err(io("list what still runs"))?;
    let state = daemon.machine.state();
    let alive = found
        .into_iter()
        .filter_map(|it| {
            warn!(log, "an attempt of an earlier daemon still runs"; "session" => %it.name);
            Some((state.session_no(&it.name)?, it.attempt?))
        })
        .collect();
    let known: Vec<_> = state.sessions().keys().copied().collect();
    inputs.push(Input::ContainersFound { alive, adoptable: containers.adopts() });
    daemon.turn(&mut inputs)?;
    for no in known {
        daemon.compare_from_now_on(no, marks.get(&no).copied());
    }
    Ok(())
}

/// [`find`] for each, on as many threads as there are processors.
fn find_all(data: &DataFolder, names: &[SessionName], state: &State, log: &Logger) -> Vec<SessionFound> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = names.len().div_ceil(threads).max(1);
    let look =
        |names: &[SessionName]| names.iter().map(|name| find(data, name, state, log)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let parts: Vec<_> = names.chunks(share).map(|part| scope.spawn(move || look(part))).collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, _>| {
            part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        parts.into_iter().flat_map(join).collect()
    })
}

/// One session as its inbound.db has it. Opening it rolls back what a killed daemon left.
fn find(data: &DataFolder, name: &SessionName, state: &State, log: &Logger) -> SessionFound {
    let read = || -> Result<SessionFound, String> {
        let folder = SessionFolder::nested(data.session(name));
        let writer = InboundWriter::open(&folder).map_err(|error| error.to_string())?;
        let origin = writer.routing().map_err(|error| error.to_string())?.unwrap_or_default();
        let mut pending: Vec<PendingRow> = Vec::new();
        let mut after = 0;
        loop {
            let page = writer.pending_page(after, PAGE).map_err(|error| error.to_string())?;
            let Some(last) = page.last() else { break };
            after = last.rowid;
            pending.extend(page.into_iter().map(facts::of_pending));
            if pending.len() >= PENDING_MAX {
                warn!(log, "more pending rows than are taken at once"; "session" => %name, "taken" => pending.len());
                break;
            }
        }
        let open = open_rows(state, name);
        let ids: Vec<&str> = open.iter().map(|(_, id)| id.as_str()).collect();
        let done: BTreeSet<String> =
            if ids.is_empty() { BTreeSet::new() } else { operator::delivered(data, name, &ids)? };
        let delivered = open.iter().filter(|(_, id)| done.contains(id)).map(|(no, _)| *no).collect();
        Ok(SessionFound { name: name.clone(), origin, pending, delivered, unreadable: None })
    };
    read().unwrap_or_else(|why| SessionFound {
        name: name.clone(),
        origin: Address::default(),
        pending: Vec::new(),
        delivered: Vec::new(),
        unreadable: Some(why),
    })
}

/// The machine's open outbound rows of a session.
fn open_rows(state: &State, name: &SessionName) -> Vec<(crate::base::MessageNo, String)> {
    let Some(session) = state.session_no(name).and_then(|no| state.session(no)) else { return Vec::new() };
    session
        .outbox
        .iter()
        .filter_map(|&no| match &state.outbound(no)?.source {
            Source::Row { id, .. } => Some((no, id.clone())),
            Source::Notice(_) => None,
        })
        .collect()
}
