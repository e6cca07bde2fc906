//! Start-up, in an order that a crash at any point cannot break: lock, boot number, journal, hot inbound journals,
//! what still runs, sessions as they are on disk, and only then channels.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Sender, unbounded};
use slog::{Logger, error, info, warn};

use super::asking::{self, Verdict};
use super::config::{Config, RuntimeKind, SyncMode};
use super::control::{ControlServer, Handler};
use super::daemon::{Daemon, Ended, Parts};
use super::ear::Ear;
use super::ends::Ends;
use super::event::{Event, container_sink};
use super::folder::{DataFolder, FolderError};
use super::found::{self, Found};
use super::perform::{Performer, guard, send};
use super::space::{self, Space};
use super::unchanged::Unchanged;
use super::{agent, doctor, takeover};
use crate::base::{At, BootNo, Clock, Disk, Ms, OsDisk, Private, RecordNo, SessionName, SessionNo, Wall};
use crate::channels;
use crate::containers::docker::body::NANOCLAW_RUNNER;
use crate::containers::docker::endpoint::{self, EndpointError};
use crate::containers::docker::settings::{Image, Settings};
use crate::containers::docker::{Docker, DockerError};
use crate::containers::process::{Launch, Processes};
use crate::containers::program::{self, Missing};
use crate::containers::{self, Containers, Stock};
use crate::journal::boot::{self, BootError};
use crate::journal::record::{RecordError, check_schemas};
use crate::journal::recovery::{self, RecoverError};
use crate::journal::retention::{Dropped, Keep, Retention};
use crate::journal::segment::Header;
use crate::journal::wire::causes::Causes;
use crate::journal::wire::digest::Digests;
use crate::journal::wire::recorder::Recorder;
use crate::journal::wire::snapshot::encode_snapshot;
use crate::journal::writer::{Journal, JournalError, Sync};
use crate::machine::Machine;
use crate::machine::input::{Booted, Input};
use crate::machine::state::{Source, State};
use crate::reactor::{self, Mount, Reactor, SqliteSource};
use crate::replay;
use crate::session::host_side::{GuardError, install_guards};

/// Sessions that one turn of the start takes.
const PAGE: usize = 1_000;

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
    /// SQLite is not as session files need it.
    #[error(transparent)]
    Guards(#[from] GuardError),
    /// The agent's environment.
    #[error(transparent)]
    Env(#[from] agent::EnvError),
    /// The reactor.
    #[error(transparent)]
    Reactor(#[from] reactor::StartError),
    /// The engine of containers.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// Where it listens.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// An image is configured, so none is made of the runner.
    #[error("runtime.docker.image names {name}, so no image is made of the runner")]
    OtherImage {
        /// The image.
        name: String,
    },
    /// What is named as a checkout of NanoClaw is none.
    #[error("runtime.docker.nanoclaw names no checkout of NanoClaw: there is no {path}")]
    NoCheckout {
        /// What is missing.
        path: PathBuf,
    },
    /// The runner is not where it is looked for.
    #[error("no runner at {path}")]
    NoRunner {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The program that the configuration names as a runner is not there.
    #[error("runtime.process.command: {0}")]
    NoProgram(#[from] Missing),
    /// The runner cannot do anything with what is configured for the agent.
    #[error("the runner does not take what is configured in [agent]: {reason}")]
    Agent {
        /// Its own words.
        reason: String,
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
    /// Whether it is for want of an engine that can be used.
    pub fn is_engine_away(&self) -> bool {
        matches!(self, Self::Docker(DockerError::Engine(_)))
    }

    /// What may be done about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Folder(error) => error.hint(),
            Self::Boot(error) => error.hint().into(),
            Self::Recover(error) => error.hint().into(),
            Self::Journal(error) | Self::Ended(Ended::Journal(error)) => error.hint(),
            Self::Replay(error) => error.hint().into(),
            Self::Ended(_) => {
                "see that the journal folder is the daemon's own and that the disk has space".into()
            }
            Self::Schemas(error) => error.hint().into(),
            Self::Guards(error) => error.hint().into(),
            Self::Env(_) => "write one KEY=VALUE a line".into(),
            Self::Reactor(_) => "raise the limit that it names".into(),
            Self::Docker(error) => error.hint().into(),
            Self::NoCheckout { .. } => {
                "name a checkout, or leave the key out where the image has the runner at /app/src".into()
            }
            Self::OtherImage { .. } => "build it with container/build.sh, or leave runtime.docker.image out".into(),
            Self::Endpoint(error) => error.hint().into(),
            Self::NoRunner { .. } => {
                "build it with `cargo build -p lamplighter-runner`, put it beside the daemon, or set [runtime.process] \
                 command"
                    .into()
            }
            Self::NoProgram(_) => "name a program that is there, with its whole path where it is not in PATH".into(),
            Self::Agent { .. } => "correct it in lamplighter.toml; docs/RUNNER.md has the settings of providers".into(),
            Self::Io { .. } => "see that the data folder is yours and has space".into(),
        }
    }
}

fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Io { doing, source }
}

/// An error with the place where it happened, which the system leaves out.
fn placed(path: &Path, error: std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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
    let space = space::Source::of(data.root());
    start_with(data, config, log, build, Ports { clock, disk: Arc::new(OsDisk), space })
}

/// What the daemon knows of the machine that it runs on.
pub struct Ports {
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The disk that the journal is written to.
    pub disk: Arc<dyn Disk>,
    /// How much of it is free.
    pub space: space::Source,
}

/// As [`start`], on other ports.
///
/// # Errors
/// See [`start`].
pub fn start_with(
    data: DataFolder,
    config: Config,
    log: &Logger,
    build: String,
    ports: Ports,
) -> Result<Started, StartError> {
    let Ports { clock, disk, space: source } = ports;
    check_schemas()?;
    // Before any other thread uses SQLite.
    install_guards()?;
    let config = Arc::new(config);
    let env = agent::environment(&config.agent, &|name| std::env::var(name).ok())?;
    let lock = data.lock()?;
    for path in doctor::remove_left(data.root()) {
        warn!(log, "removed a folder that a killed doctor had left"; "path" => %path.display());
    }
    check_agent(&config, &data, &env, log)?;
    let boot = boot::raise(&OsDisk, &data.journal())?;
    let Past { machine, digests, causes, at, downtime } = load(&data, log, &*clock)?;
    let unchanged = Unchanged::take(&data, machine.state());

    // Bounded by what each sender can have outstanding: see [`Event`].
    let (events, news) = unbounded();
    let ends = Arc::new(Ends::default());
    let (containers, mount, stock) =
        runtime(&config, &data, container_sink(events.clone(), log.clone(), Arc::clone(&ends)))?;
    let reactor = start_reactor(&config, &data, &events, &containers, mount)?;
    let mode = match config.journal.sync {
        SyncMode::Group => Sync::Group,
        SyncMode::Always => Sync::Always,
        SyncMode::None => Sync::None,
    };
    let recorder = Recorder::with(digests, causes);
    let first = RecordNo::first_of(boot);
    let synced = events.clone();
    let mut journal = Journal::begin(
        disk,
        &data.journal(),
        &Header::new(data.installation(), first, &build),
        &encode_snapshot(&machine.state().to_parts(), recorder.root(), recorder.causes()),
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
        ends,
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
    boot_inputs(
        &mut daemon,
        &data,
        &config,
        log,
        boot,
        build,
        offset,
        downtime,
        &*containers,
        stock,
        &unchanged,
    )?;
    let control = start_control(&data, &events)?;
    let news = events.clone();
    let sink = Arc::new(move |event| send(&news, Event::Channel(event)));
    let with = channels::Start { chat_socket: &data.chat_socket(), clock, sink };
    let started = channels::start_all(&with)
        .map_err(|(doing, source)| StartError::Io { doing, source: placed(&data.run(), source) })?;
    started.into_iter().for_each(|channel| daemon.performer().add_channel(channel));
    info!(log, "ready"; "data" => %data.root().display(), "boot" => boot.0, "runtime" => containers.name());
    Ok(Started { daemon, events, control, lock })
}

/// What the journal says of the time before this boot.
struct Past {
    machine: Machine,
    digests: Digests,
    causes: Causes,
    /// Machine time now.
    at: At,
    downtime: Ms,
}

/// The machine as the journal left it, and machine time now.
fn load(data: &DataFolder, log: &Logger, clock: &dyn Clock) -> Result<Past, StartError> {
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
        return Ok(Past { machine, digests, causes: Causes::default(), at: At(0), downtime: Ms(0) });
    };
    if let Some(divergence) = &loaded.divergence {
        warn!(log, "the journal replays differently in this build; the session files decide"; "first" => %divergence);
    }
    let Wall(now) = clock.wall();
    // A clock that was set back in between makes no negative downtime.
    let downtime = Ms(u64::try_from((now - loaded.last_wall.0).max(0) / 1_000).unwrap_or(0));
    let at = loaded.last_at + downtime;
    Ok(Past { machine: loaded.machine, digests: loaded.digests, causes: loaded.causes, at, downtime })
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
    sink: containers::Sink,
) -> Result<(Arc<dyn Containers>, Mount, Stock), StartError> {
    let mount = Mount::of(data.root());
    match config.runtime.kind {
        RuntimeKind::Docker => {
            let ear = Arc::new(Mutex::new(None));
            let listener = Arc::clone(&ear);
            let ready = move |folder: &Path| *lock(&listener) = Ear::at(folder).ok();
            let docker = Docker::start(docker_settings(config, data)?, sink, Box::new(ready))?;
            let stock = docker.list().map_err(|error| match error.downcast::<DockerError>() {
                Ok(error) => StartError::Docker(error),
                Err(error) => io("list what still runs")(error),
            })?;
            // What cannot be watched at all is told by the reactor, and what an engine that is away now would have told
            // is learned by it.
            let ear = lock(&ear).take().filter(|_| docker.is_owner_proved());
            let unheard = ear.is_some_and(|ear| ear.hear().is_none());
            let mount = if mount.is_local() && unheard { Mount::NoEvents } else { mount };
            Ok((Arc::new(docker), mount, stock))
        }
        RuntimeKind::Process => {
            let launch = process_launch(config)?;
            let runtime =
                Processes::start(launch, data.session_locks(), sink).map_err(io("start a thread"))?;
            let stock = runtime.list().map_err(io("list what still runs"))?;
            Ok((Arc::new(runtime), mount, stock))
        }
    }
}

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

fn docker_settings(config: &Config, data: &DataFolder) -> Result<Settings, StartError> {
    let docker = &config.runtime.docker;
    if let Some(path) = docker.nanoclaw.as_ref().map(|it| it.join(NANOCLAW_RUNNER))
        && !path.is_dir()
    {
        return Err(StartError::NoCheckout { path });
    }
    Ok(Settings {
        endpoint: endpoint::find(docker.host.as_deref(), &|name| std::env::var(name).ok())?,
        installation: format!("{:016x}", data.installation()),
        doctor: doctor::installation(data.root()),
        image: docker_image(config)?,
        layout: docker.layout(),
        agent_uid: config.agent.uid,
        confinement: docker.confinement(),
        probe_folder: data.owner_probe(),
        owner_file: data.agents_owner(),
        stop_grace: config.policy.stop_grace.0,
    })
}

/// The image that is configured, or the runner that one is made of.
pub(super) fn docker_image(config: &Config) -> Result<Image, StartError> {
    let docker = &config.runtime.docker;
    match (&docker.image, &docker.runner) {
        (Some(name), _) => Ok(Image::Named(name.clone())),
        (None, Some(path)) => Ok(Image::OfRunner(path.clone())),
        (None, None) => Ok(Image::OfRunner(own_runner()?)),
    }
}

/// The runner beside the daemon, or what the environment names.
fn own_runner() -> Result<PathBuf, StartError> {
    let own = std::env::current_exe().map_err(io("find the daemon's own program"))?;
    let path = std::env::var_os("LAMPLIGHTER_RUNNER")
        .map_or_else(|| own.with_file_name("lamplighter-runner"), PathBuf::from);
    // The working folder of an attempt is its session's.
    std::path::absolute(path).map_err(io("resolve the runner's path"))
}

/// The program of an attempt: the runner beside the daemon, or what the configuration names, which then runs behind
/// `exec-child` so that it ends with the daemon.
pub(super) fn process_launch(config: &Config) -> Result<Launch, StartError> {
    if let Some(command) = &config.runtime.process.command {
        let own = std::env::current_exe().map_err(io("find the daemon's own program"))?;
        let parent = std::process::id().to_string();
        let through = vec![own.into(), "exec-child".into(), parent.into(), "--".into()];
        return Ok(Launch { through, command: command.iter().map(OsString::from).collect() });
    }
    let path = own_runner()?;
    if path.is_file() { Ok(Launch::of(vec![path.into()])) } else { Err(StartError::NoRunner { path }) }
}

/// Finds the program that the configuration names as a runner, as an attempt will. A path that is not absolute is seen
/// from each session's folder, so it is only looked for then.
pub(super) fn find_command(
    command: &[String],
    env: &[(String, Private<String>)],
) -> Result<Option<PathBuf>, Missing> {
    let Some(name) = command.first() else { return Ok(None) };
    if name.contains('/') && !name.starts_with('/') {
        return Ok(None);
    }
    let set = env.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| OsString::from(&value.0));
    let path = set.or_else(|| std::env::var_os("PATH"));
    program::find(name.as_ref(), path.as_deref(), Path::new("/")).map(Some)
}

/// What every attempt would fail at is told now, in the runner's own words.
fn check_agent(
    config: &Config,
    data: &DataFolder,
    env: &[(String, Private<String>)],
    log: &Logger,
) -> Result<(), StartError> {
    if let (RuntimeKind::Process, Some(command)) = (config.runtime.kind, &config.runtime.process.command) {
        find_command(command, env)?;
    }
    let Some(runner) = runner_to_ask(config) else { return Ok(()) };
    match asking::check(&runner, &config.agent, &data.group(&config.agent.folder)) {
        Verdict::Taken => Ok(()),
        Verdict::Refused(reason) => Err(StartError::Agent { reason }),
        Verdict::Unknown(why) => {
            warn!(log, "the runner does not say whether it takes the agent's settings"; "why" => why);
            Ok(())
        }
    }
}

/// Our own runner, where attempts run it.
pub(super) fn runner_to_ask(config: &Config) -> Option<PathBuf> {
    let runtime = &config.runtime;
    let path = match runtime.kind {
        RuntimeKind::Process if runtime.process.command.is_none() => own_runner().ok()?,
        RuntimeKind::Docker if runtime.docker.image.is_none() => match &runtime.docker.runner {
            Some(path) => path.clone(),
            None => own_runner().ok()?,
        },
        _ => return None,
    };
    // Another program under LAMPLIGHTER_RUNNER would not know the question.
    let is_ours =
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lamplighter-runner"));
    (is_ours && path.is_file()).then_some(path)
}

fn start_reactor(
    config: &Config,
    data: &DataFolder,
    events: &Sender<Event>,
    containers: &Arc<dyn Containers>,
    mount: Mount,
) -> Result<Arc<Reactor>, StartError> {
    let settings = reactor::Config {
        resync_every: config.reactor.resync.0.into(),
        limits: reactor::Limits {
            heartbeat_every: config.reactor.heartbeat_every.0.into(),
            ..reactor::Limits::default()
        },
        mount,
        probe_folder: Some(data.probe()),
        ..reactor::Config::default()
    };
    let events = events.clone();
    let sink = Arc::new(move |event| send(&events, Event::Reactor(event)));
    let containers = Arc::clone(containers);
    let source = SqliteSource::new(move || guard(&*containers));
    Ok(Arc::new(Reactor::start(settings, Arc::new(source), sink)?))
}

fn start_control(data: &DataFolder, events: &Sender<Event>) -> Result<ControlServer, StartError> {
    let events = events.clone();
    let handler: Handler = Arc::new(move |request| {
        let (reply, answer) = crossbeam_channel::bounded(1);
        send(&events, Event::Control { request, reply });
        answer.recv().unwrap_or_else(|_| Err("the daemon is stopping".into()))
    });
    let socket = data.control_socket();
    ControlServer::start(&socket, handler)
        .map_err(|error| io("listen on the control socket")(placed(&socket, error)))
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
    stock: Stock,
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
        inputs.extend(find_all(data, names, daemon.machine.state(), log).into_iter().map(Found::into_input));
        daemon.turn(&mut inputs)?;
    }
    let state = daemon.machine.state();
    let known: Vec<_> = state.sessions().keys().copied().collect();
    inputs.push(match stock {
        Stock::Known(found) => takeover::settle(state, containers, found, log),
        Stock::Away(reason) => {
            error!(log, "the runtime is away"; "why" => &reason);
            Input::RuntimeDown { reason }
        }
    });
    daemon.turn(&mut inputs)?;
    for no in known {
        daemon.compare_from_now_on(no, marks.get(&no).copied());
    }
    Ok(())
}

/// [`find`] for each, on as many threads as there are processors.
fn find_all(data: &DataFolder, names: &[SessionName], state: &State, log: &Logger) -> Vec<Found> {
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
fn find(data: &DataFolder, name: &SessionName, state: &State, log: &Logger) -> Found {
    let found = found::read(name, &data.session(name), &open_rows(state, name))
        .unwrap_or_else(|error| Found::unreadable(name, format!("{error}; {}", error.hint())));
    if !found.whole && found.found.unreadable.is_none() {
        let taken = found.found.pending.len();
        warn!(log, "more pending rows than are taken at once"; "session" => %name, "taken" => taken);
    }
    found
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
