//! Agents that run as a process of their own and speak in lines of JSON: one thread holds the conversation.
//!
//! ```text
//!  runner's loop ─ push ─► inbox ─► driver ─ line ─► process
//!        ▲                   ▲        │                 │
//!        └───── events ──────┼────────┘                 │
//!                            └───────── lines, end ─────┘
//! ```
//!
//! What the lines mean is a [`Dialect`], which is pure.
//!
//! Invariant: `push` waits for nothing; `end` and `abort` wait for the process alone, never for the loop.
//! Invariant: when a query's value is dropped, nothing of its process is left.

mod inbox;
mod patience;
mod process;
mod settings;
#[cfg(test)]
pub mod shown;
pub mod words;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamplighter::base::Ms;
use serde_json::Value;

use super::{ErrorClass, ProviderEvent, Push, Query, TurnError};
use crate::mailbox::Sink;

pub use inbox::{Exit, Inbox, News};
pub use patience::{Patience, question_time};
pub use process::{Launch, Process};
pub use settings::Settings;

/// How long a process that was asked to end while idle may take: claude needs 1.5 s when it ends work in the
/// background.
const END_GRACE: Duration = Duration::from_secs(2);
/// How long a process that was told to end may take. Its tools are killed within some 30 ms of the signal; what
/// it does afterwards nobody needs. With the time that a turn has to finish it is well below the second after which
/// NanoClaw's host kills.
const ABORT_GRACE: Duration = Duration::from_millis(400);
/// How long the kernel may take for a killed process.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// Signs of life without words are passed on this often at most: streamed text comes in hundreds of pieces a
/// second.
const ACTIVITY_EVERY: Duration = Duration::from_millis(500);

/// What a dialect wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The runner hears this. After an error the query is over.
    Tell(ProviderEvent),
    /// The process hears this.
    Write(Value),
}

/// The language of an agent CLI, without any input or output: what is said to it, and what its lines mean.
pub trait Dialect: Send {
    /// The first words.
    fn open(&mut self) -> Vec<Effect>;

    /// A push came.
    fn push(&mut self, push: Push) -> Vec<Effect>;

    /// The process said a line. Whatever it says, this neither fails nor panics.
    fn line(&mut self, line: &str) -> Vec<Effect>;

    /// The process ended; `unsaid` pushes did not reach it.
    fn exited(&mut self, exit: &Exit, unsaid: usize) -> Vec<Effect>;

    /// Nothing was heard for this long though [`Dialect::is_waiting`]; the query ends.
    fn silent(&mut self, time: Ms) -> Vec<Effect>;

    /// Whether the process owes a sign of life: something is pushed and not answered.
    fn is_waiting(&self) -> bool;

    /// The tools in flight, each with the longest that it may take by its own declaration.
    fn tools(&self) -> Vec<Option<Ms>>;
}

/// The effects of a line, with one that tells of it when no other does: whatever is said is a sign of life.
pub fn with_a_sign_of_life(mut effects: Vec<Effect>) -> Vec<Effect> {
    if !effects.iter().any(|effect| matches!(effect, Effect::Tell(_))) {
        effects.push(Effect::Tell(ProviderEvent::Activity));
    }
    effects
}

/// Starts the process and the conversation.
///
/// # Errors
/// When it cannot be started.
pub fn start(
    launch: &Launch,
    dialect: Box<dyn Dialect>,
    first: &Push,
    patience: Patience,
    farewell: Option<Value>,
    sink: Sink,
) -> Result<Box<dyn Query>, TurnError> {
    let inbox = Arc::new(Inbox::default());
    inbox.push(first);
    let process = Process::spawn(launch, &inbox).map_err(|error| not_started(&launch.program, &error))?;
    let process = Arc::new(process);
    let failed = Arc::new(AtomicBool::new(false));
    let query = Conversation {
        process: Arc::clone(&process),
        inbox: Arc::clone(&inbox),
        failed: Arc::clone(&failed),
        farewell,
    };
    let mut driver = Driver { dialect, process, inbox, failed, patience, sink, told: None, over: false };
    let name = "agent".to_owned();
    std::thread::Builder::new()
        .name(name)
        .spawn(move || driver.run())
        .map_err(|error| TurnError::new(ErrorClass::Transient, format!("cannot start a thread: {error}")))?;
    Ok(Box::new(query))
}

fn not_started(program: &Path, error: &io::Error) -> TurnError {
    let class = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
            ErrorClass::Permanent
        }
        _ => ErrorClass::Transient,
    };
    TurnError::new(class, format!("cannot start {}: {error}", program.display()))
}

/// The conversation's thread.
struct Driver {
    dialect: Box<dyn Dialect>,
    process: Arc<Process>,
    inbox: Arc<Inbox>,
    failed: Arc<AtomicBool>,
    patience: Patience,
    sink: Sink,
    /// When the runner heard the last sign of life.
    told: Option<Instant>,
    over: bool,
}

impl Driver {
    fn run(&mut self) {
        let mut heard = Instant::now();
        let opening = self.dialect.open();
        self.perform(opening);
        while !self.over {
            let patience = self.patience.with(self.dialect.tools());
            let until = self.dialect.is_waiting().then(|| heard + Duration::from(patience));
            let news = self.inbox.next(until);
            let was_waiting = self.dialect.is_waiting();
            let effects = match news {
                News::Closed => break,
                News::Push(push) => {
                    let effects = self.dialect.push(push);
                    if !was_waiting {
                        heard = Instant::now();
                    }
                    effects
                }
                News::Line(line) => {
                    heard = Instant::now();
                    self.dialect.line(&line)
                }
                News::Exited { exit, pushes } => {
                    self.over = true;
                    self.dialect.exited(&exit, pushes.len())
                }
                News::Timeout => self.dialect.silent(patience),
            };
            self.perform(effects);
        }
        self.inbox.close();
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Write(line) => {
                    if !self.process.write(&line) && self.process.is_running() && !self.over {
                        let reason = "the agent's process does not read what it is told";
                        self.tell(ProviderEvent::Error(TurnError::new(ErrorClass::Transient, reason)));
                    }
                }
                Effect::Tell(event) => self.tell(event),
            }
        }
    }

    fn tell(&mut self, event: ProviderEvent) {
        let is_activity = event == ProviderEvent::Activity;
        if is_activity && self.told.is_some_and(|told| told.elapsed() < ACTIVITY_EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        if matches!(event, ProviderEvent::Error(_)) {
            self.failed.store(true, Ordering::Release);
            self.over = true;
        }
        // Nobody listens any more: the query is over too.
        self.over |= self.sink.send(event).is_err();
    }
}

/// The runner's end of it.
struct Conversation {
    process: Arc<Process>,
    inbox: Arc<Inbox>,
    failed: Arc<AtomicBool>,
    farewell: Option<Value>,
}

impl Query for Conversation {
    fn push(&mut self, push: &Push) -> bool {
        self.is_alive() && self.inbox.push(push)
    }

    fn is_alive(&self) -> bool {
        !self.failed.load(Ordering::Acquire) && self.process.is_running()
    }

    fn end(&mut self) {
        self.inbox.close();
        if let Some(farewell) = &self.farewell {
            self.process.write(farewell);
        }
        self.process.close_input();
        if !self.process.wait(END_GRACE) {
            self.abort();
        }
    }

    fn abort(&mut self) {
        self.inbox.close();
        self.process.terminate();
        if !self.process.wait(ABORT_GRACE) {
            self.process.kill();
            self.process.wait(KILL_GRACE);
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if self.process.is_running() {
            self.abort();
        }
    }
}

/// Where an agent's executable is, or where it was looked for in vain: the settings' path, the environment's, the
/// name on PATH, and last a fixed path.
pub fn find_program(
    setting: Option<&str>,
    variable: (&str, Option<&str>),
    name: &str,
    search: Option<&str>,
    last: &str,
) -> Result<PathBuf, TurnError> {
    let mut looked = Vec::new();
    let given = setting.map(|path| (path, format!("the setting `command` ({path})")));
    let given = given.or_else(|| variable.1.map(|path| (path, format!("{} ({path})", variable.0))));
    if let Some((given, said)) = given {
        // What was asked for by name is used or missed, never replaced by another that happens to be there.
        if given.contains('/') {
            if Path::new(given).is_file() {
                return Ok(given.into());
            }
        } else if let Some(found) = on_path(given, search) {
            return Ok(found);
        }
        looked.push(said);
    } else {
        if let Some(found) = on_path(name, search) {
            return Ok(found);
        }
        if Path::new(last).is_file() {
            return Ok(last.into());
        }
        looked.extend([format!("`{name}` on PATH"), last.to_owned()]);
    }
    let reason = format!(
        "there is no {name} executable; looked for {}; install it in the image, or set {}",
        looked.join(" and "),
        variable.0
    );
    Err(TurnError::new(ErrorClass::Permanent, reason))
}

fn on_path(name: &str, search: Option<&str>) -> Option<PathBuf> {
    let folders = search.unwrap_or("").split(':').filter(|folder| !folder.is_empty());
    folders.map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// The wall clock: services name the end of a used-up window by the calendar.
pub fn epoch_seconds() -> i64 {
    crate::launch::wall_now().0 / 1_000_000
}

#[cfg(test)]
mod tests;
