//! The Docker runtime: an attempt is a container.
//!
//! Each attempt is a task on a small runtime of its own ([`life`]); one more task keeps the connection ([`follow`]): it
//! finds out what the engine is and what an earlier daemon left on it ([`connect`]), follows its events and compares
//! what the engine lists with what the tasks believe. News only wake a task, which then asks the engine: an event that
//! is lost, late or doubled changes nothing. What must go is ended beside all that ([`leftovers`]).
//!
//! Invariant: containers of another installation are never touched: every list is by the installation's label.
//! Invariant: `Exited` is reported once for an attempt, when the engine has said that its container does not run.
//! Invariant: an attempt is created only when every container of its session that was left over is gone.
//! Invariant: what cannot be done now and may be done later is a state with its reason, never the end of the daemon.

pub mod body;
mod commands;
mod connect;
pub mod endpoint;
pub mod engine;
mod follow;
pub mod image;
mod leftovers;
mod life;
mod lines;
pub mod owners;
pub mod probe;
pub mod settings;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, watch};

use self::body::{LABEL_ATTEMPT, LABEL_SESSION};
use self::connect::Current;
use self::engine::{Engine, EngineError, Listed, Patience};
use self::image::{ImageError, RunnerImage};
use self::leftovers::Leftover;
use self::owners::Owners;
use self::settings::{Image, Settings, User};
use super::{ContainerEvent, Containers, FileOwner, Found, Sink, StartSpec, Stock};
use crate::base::{Attempt, Ms, RecordNo, SessionName, SessionNo};

pub use self::commands::{Survey, images, make_image, remove_images, survey};

/// Threads of the small runtime: the engine does the work.
const THREADS: usize = 2;
/// Threads for file work: owners are changed, and runners read.
const BLOCKING_THREADS: usize = 4;
/// What a kill and its end may take beyond the grace.
const KILL_SLACK: Duration = Duration::from_secs(5);
/// Different warnings that are passed on: beyond, an engine talks in a loop.
const WARNINGS_MAX: usize = 64;

/// Why containers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The runner's image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The configured image is not there.
    #[error("the engine at {address} has no image {name:?}")]
    NoImage {
        /// Where the engine listens.
        address: String,
        /// The image.
        name: String,
        /// Whether it is NanoClaw's.
        theirs: bool,
    },
    /// The image is gone, and the runner that it was made of as well.
    #[error(
        "the runner {path} was replaced since the daemon started, and the image of the one before is gone"
    )]
    Replaced {
        /// The runner.
        path: PathBuf,
    },
    /// Which user the agents would be cannot be told.
    #[error("{0}")]
    Owners(String),
    /// No threads.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
}

impl DockerError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Engine(error) => error.hint(),
            Self::Image(error) => error.hint(),
            Self::NoImage { theirs: true, .. } => {
                "build it with NanoClaw's container/build.sh and name it as it is then"
            }
            Self::NoImage { .. } => {
                "build it with container/build.sh or pull it, or leave [runtime.docker] image out: then one is made of \
                 the runner"
            }
            Self::Replaced { .. } => "start the daemon again: it takes the new one",
            Self::Owners(_) => "see `lamplighter doctor`",
            Self::Threads(_) => "see the limits of this user",
        }
    }

    /// In words, with what may be done.
    fn reason(&self) -> String {
        format!("{self}; {}", self.hint())
    }
}

/// Who the daemon runs as.
fn own_user() -> User {
    User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// Called with the folder in which a container then makes a file.
pub type Ready = Box<dyn Fn(&Path) + Send + Sync>;

/// The runtime.
pub struct Docker {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    engine: Engine,
    settings: Settings,
    /// Of the image that is made: its name at the start, and what decides whether a container of it is taken over.
    made: Option<(String, String)>,
    ready: Ready,
    sink: Sink,
    /// Held while it is settled what runs and as whom, so that it is done once.
    settling: tokio::sync::Mutex<()>,
    table: Mutex<Table>,
    /// The table changed in a way that somebody waits for.
    changed: Condvar,
    /// A container that is left over was tried to be ended.
    tried: Notify,
    /// Lists are to be compared now.
    again: Notify,
}

/// What is believed of the engine and its containers.
struct Table {
    attempts: BTreeMap<SessionNo, Slot>,
    /// Found running at the start, and neither taken over nor given up yet.
    found: BTreeMap<(SessionName, Attempt), String>,
    /// Containers by id or name that must be gone before their session gets another.
    leftovers: BTreeMap<String, Leftover>,
    /// Containers that ended and are being removed.
    removing: BTreeSet<String>,
    /// Why the engine cannot be used now.
    trouble: Option<String>,
    /// Whether the loop was told that it is away.
    told_away: bool,
    /// Whether the engine has ever answered.
    greeted: bool,
    stock: Taken,
    /// Who the agents are, as the engine's words have it.
    decided: Option<Owners>,
    /// Who they are, as far as is known; what was tried replaces what was decided.
    owners: Option<Owners>,
    /// Whether it was tried, and whether that told.
    tried: Option<bool>,
    /// Whose their files were when that was last known.
    last_owner: Option<User>,
    /// What containers are created of.
    image: Option<Current>,
    warned: BTreeSet<String>,
}

/// Whether it is known what an earlier daemon left.
enum Taken {
    /// It is being asked for.
    Asked,
    /// The engine could not be asked so far.
    Failed,
    /// It was, and the loop was not told yet.
    Found(Vec<Found>),
    /// This engine cannot be used.
    Refused(DockerError),
    /// The loop went on without it, and is to be told.
    Late,
    /// The loop was told.
    Told,
}

/// One attempt.
struct Slot {
    attempt: Attempt,
    name: SessionName,
    /// None until it is created.
    id: Option<String>,
    /// When it must have ended; none while nobody wants that.
    stop: watch::Sender<Option<Instant>>,
    /// Something may have happened to it.
    look: Arc<Notify>,
    /// It was said that it ran out of memory.
    starved: bool,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Docker {
    /// Begins to follow the engine, whether it answers or not. `ready` is called with the folder in which a container
    /// then makes a file, so that it is seen whose that is.
    ///
    /// # Errors
    /// Where that would not help: there are no threads, or the runner fits no image.
    pub fn start(settings: Settings, sink: Sink, ready: Ready) -> Result<Self, DockerError> {
        Self::start_with(settings, sink, ready, Patience::default())
    }

    fn start_with(
        settings: Settings,
        sink: Sink,
        ready: Ready,
        patience: Patience,
    ) -> Result<Self, DockerError> {
        let made = match &settings.image {
            Image::OfRunner(path) => {
                let image = RunnerImage::of(path)?;
                Some((image.name(), image.build))
            }
            Image::Named(_) => None,
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("docker")
            .enable_all()
            .build()
            .map_err(DockerError::Threads)?;
        let address = settings.endpoint.address.clone();
        let table = Table {
            attempts: BTreeMap::new(),
            found: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            removing: BTreeSet::new(),
            trouble: Some(format!("the engine at {address} has not answered yet; see `lamplighter doctor`")),
            told_away: false,
            greeted: false,
            stock: Taken::Asked,
            decided: None,
            owners: None,
            tried: None,
            last_owner: connect::last_owner(&settings.owner_file, &address),
            image: None,
            warned: BTreeSet::new(),
        };
        let shared = Arc::new(Shared {
            engine: Engine::with(settings.endpoint.clone(), patience),
            settings,
            made,
            ready,
            sink,
            settling: tokio::sync::Mutex::default(),
            table: Mutex::new(table),
            changed: Condvar::new(),
            tried: Notify::new(),
            again: Notify::new(),
        });
        drop(runtime.spawn(follow::forever(Arc::clone(&shared))));
        Ok(Self { shared, runtime: Some(runtime) })
    }

    /// Whether a container made a file, so that it was seen whose that is.
    pub fn is_owner_proved(&self) -> bool {
        lock(&self.shared.table).tried == Some(true)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            drop(runtime.spawn(task));
        }
    }

    fn give_up(&self, container: String, session: Option<SessionName>) {
        let Some(runtime) = &self.runtime else { return };
        let _in_it = runtime.enter();
        self.shared.give_up(container, session);
    }
}

impl Table {
    /// Makes room for an attempt; its task is told by what is returned.
    fn enter(
        &mut self,
        session: SessionNo,
        name: &SessionName,
        attempt: Attempt,
        id: Option<String>,
    ) -> Option<life::Told> {
        if self.attempts.contains_key(&session) {
            return None;
        }
        let (stop, stopped) = watch::channel(None);
        let look = Arc::new(Notify::new());
        let told = life::Told { stopped, look: Arc::clone(&look) };
        self.attempts.insert(session, Slot { attempt, name: name.clone(), id, stop, look, starved: false });
        Some(told)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Containers that still run are found by the next daemon.
            runtime.shutdown_background();
        }
    }
}

impl Containers for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn adopts(&self) -> bool {
        true
    }

    fn owner(&self) -> FileOwner {
        let table = lock(&self.shared.table);
        let known = table.owners.map(|it| it.outside).or(table.last_owner);
        known.map_or(FileOwner::NotKnown, |user| FileOwner::User(user.uid))
    }

    fn trouble(&self) -> Option<String> {
        lock(&self.shared.table).trouble.clone()
    }

    fn start(&self, spec: StartSpec) {
        let (session, attempt) = (spec.session, spec.attempt);
        let told = lock(&self.shared.table).enter(session, &spec.name, attempt, None);
        match told {
            Some(told) => self.spawn(life::whole(Arc::clone(&self.shared), spec, told)),
            None => {
                let reason = "an earlier attempt of this session still runs".to_owned();
                (self.shared.sink)(ContainerEvent::StartFailed { session, attempt, reason });
            }
        }
    }

    fn stop(&self, session: SessionNo, attempt: Attempt, grace: Ms) {
        let table = lock(&self.shared.table);
        match table.attempts.get(&session) {
            Some(slot) if slot.attempt == attempt => slot.stop_within(grace),
            _ => {
                drop(table);
                (self.shared.sink)(ContainerEvent::Exited { session, attempt, exit: super::Exit::Unknown });
            }
        }
    }

    fn is_alive(&self, session: SessionNo, attempt: Attempt) -> Option<bool> {
        let table = lock(&self.shared.table);
        let known = table.attempts.get(&session).is_some_and(|slot| slot.attempt == attempt);
        table.trouble.is_none().then_some(known)
    }

    fn list(&self) -> io::Result<Stock> {
        let begun = Instant::now();
        let mut table = lock(&self.shared.table);
        loop {
            match std::mem::replace(&mut table.stock, Taken::Late) {
                Taken::Found(found) => {
                    table.stock = Taken::Told;
                    return Ok(Stock::Known(found));
                }
                Taken::Refused(error) => return Err(io::Error::other(error)),
                // The loop was told once, and nothing of an earlier daemon is left.
                Taken::Told => {
                    table.stock = Taken::Told;
                    return Ok(Stock::Known(Vec::new()));
                }
                Taken::Failed | Taken::Late => break,
                Taken::Asked => {}
            }
            let patience = self.shared.engine.patience();
            let patience = if table.greeted { patience.first_stock } else { patience.first_answer };
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            table.stock = Taken::Asked;
            let waited = self.shared.changed.wait_timeout(table, left);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        table.told_away = true;
        Ok(Stock::Away(table.trouble.clone().unwrap_or_default()))
    }

    fn adopt(&self, session: SessionNo, name: &SessionName, attempt: Attempt) {
        // At once: in between, the container would be one that nobody knows.
        let mut table = lock(&self.shared.table);
        let Some(id) = table.found.remove(&(name.clone(), attempt)) else { return };
        let told = table.enter(session, name, attempt, Some(id.clone()));
        drop(table);
        match told {
            Some(told) => {
                let whose = life::Whose { session, attempt };
                self.spawn(life::rest(Arc::clone(&self.shared), whose, id, told));
            }
            None => self.give_up(id, Some(name.clone())),
        }
    }

    fn discard(&self, name: &SessionName, attempt: Attempt) -> std::io::Result<()> {
        let found = lock(&self.shared.table).found.remove(&(name.clone(), attempt));
        if let Some(id) = found {
            self.give_up(id, Some(name.clone()));
        }
        Ok(())
    }

    fn shutdown(&self, grace: Ms) {
        let table = lock(&self.shared.table);
        for slot in table.attempts.values() {
            slot.stop_within(grace);
        }
        let patience = Duration::from(grace) + KILL_SLACK;
        self.shared.wait(table, patience, |table| table.attempts.is_empty() && table.removing.is_empty());
    }

    fn detach(&self) {
        let table = lock(&self.shared.table);
        self.shared.wait(table, KILL_SLACK, |table| table.removing.is_empty());
    }
}

impl Slot {
    fn stop_within(&self, grace: Ms) {
        let limit = Instant::now() + Duration::from(grace);
        self.stop.send_modify(|stop| *stop = Some(stop.map_or(limit, |earlier| earlier.min(limit))));
    }
}

impl Shared {
    /// Waits until the table is as wanted, or for as long as the patience lasts; where the engine is away there is
    /// nothing to wait for.
    fn wait(&self, table: MutexGuard<'_, Table>, patience: Duration, wanted: impl Fn(&Table) -> bool) {
        let waited = self
            .changed
            .wait_timeout_while(table, patience, |table| !wanted(table) && table.trouble.is_none());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Passes a warning on, once.
    fn warn(&self, text: String) {
        let warned = &mut lock(&self.table).warned;
        if warned.len() < WARNINGS_MAX && warned.insert(text.clone()) {
            (self.sink)(ContainerEvent::Warning { text });
        }
    }
}

/// Whose a container is, by its labels.
fn whose(it: &Listed) -> (Option<SessionName>, Option<Attempt>) {
    let name = it.labels.get(LABEL_SESSION).and_then(|name| name.parse().ok());
    let attempt = it.labels.get(LABEL_ATTEMPT).and_then(|no| no.parse::<RecordNo>().ok());
    (name, attempt.map(|no| Attempt(no.0)))
}
