//! Plays a recording.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{Event, Line, VERSION};
use crate::mailbox::Sink;
use crate::provider::{
    ErrorClass, Opening, Provider, ProviderError, ProviderEvent, Push, Query, Setup, TurnError,
};

/// Most pushes that wait to be played.
const MAX_PUSHES: usize = 64;
/// Longest line. A result has at most a few MiB.
const MAX_LINE: u64 = 64 * 1024 * 1024;

/// The settings of the provider `cassette`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Where the recording is; relative to the agent's folder.
    file: PathBuf,
    /// Wait between events as long as the recorded provider did.
    #[serde(default)]
    timed: bool,
    /// A prompt that differs from the recorded one is an error.
    #[serde(default)]
    strict: bool,
}

/// A recording as read.
#[derive(Debug, Default)]
struct Tape {
    parts: Vec<Part>,
    native_commands: bool,
    follow_ups: bool,
}

/// One query of a recording.
#[derive(Clone, Debug)]
struct Part {
    continuation: Option<String>,
    lines: Vec<Line>,
}

/// A provider that says what another one has said.
#[derive(Debug)]
pub struct Cassette {
    tape: Tape,
    played: Vec<bool>,
    timed: bool,
    strict: bool,
}

impl Cassette {
    /// Reads its settings and the recording.
    ///
    /// # Errors
    /// [`ProviderError::Settings`], which names the file and the line.
    pub fn new(setup: &Setup) -> Result<Self, ProviderError> {
        let wrong = |key: &str, reason: String| ProviderError::Settings { key: key.to_owned(), reason };
        let settings = Settings::deserialize(&setup.settings)
            .map_err(|error| wrong("cassette", format!("{error}; for example {{\"file\": \"a.jsonl\"}}")))?;
        let path = setup.agent.join(&settings.file);
        let tape =
            read(&path).map_err(|reason| wrong("cassette.file", format!("{}: {reason}", path.display())))?;
        let played = vec![false; tape.parts.len()];
        Ok(Self { tape, played, timed: settings.timed, strict: settings.strict })
    }

    /// The first part that continues this conversation and was not played.
    fn next(&mut self, continuation: Option<&str>) -> Option<Part> {
        let fits = |(part, played): (&Part, &bool)| !played && part.continuation.as_deref() == continuation;
        let index = self.tape.parts.iter().zip(&self.played).position(fits)?;
        *self.played.get_mut(index)? = true;
        self.tape.parts.get(index).cloned()
    }
}

fn read(path: &Path) -> Result<Tape, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut tape = Tape::default();
    let mut reader = BufReader::new(file);
    for number in 1.. {
        let mut text = String::new();
        let mut line = std::io::Read::take(&mut reader, MAX_LINE);
        line.read_line(&mut text).map_err(|error| error.to_string())?;
        if text.is_empty() {
            break;
        }
        let line: Line = serde_json::from_str(&text).map_err(|error| format!("line {number}: {error}"))?;
        match (number, line, tape.parts.last_mut()) {
            (1, Line::Cassette { version: VERSION, native_commands, follow_ups }, _) => {
                (tape.native_commands, tape.follow_ups) = (native_commands, follow_ups);
            }
            (1, Line::Cassette { version, .. }, _) => {
                return Err(format!("it has version {version}, and this runner plays {VERSION}"));
            }
            (1, _, _) => return Err("its first line does not say that it is a cassette".to_owned()),
            (_, Line::Open { continuation }, _) => tape.parts.push(Part { continuation, lines: Vec::new() }),
            (_, Line::Cassette { .. }, _) | (_, _, None) => {
                return Err(format!("line {number}: it belongs to no query"));
            }
            (_, line, Some(part)) => part.lines.push(line),
        }
    }
    if tape.parts.is_empty() { Err("it holds no query".to_owned()) } else { Ok(tape) }
}

impl Provider for Cassette {
    fn start(&mut self, opening: Opening, sink: Sink) -> Result<Box<dyn Query>, TurnError> {
        let Some(part) = self.next(opening.continuation.as_deref()) else {
            let reason = "no query of the cassette continues this conversation";
            return Err(TurnError::new(ErrorClass::Permanent, reason));
        };
        let (pushes, waiting) = sync_channel(MAX_PUSHES);
        // The channel is empty and has room.
        let _ = pushes.try_send(opening.first);
        let stop = Arc::new(Stop::default());
        let player = Player {
            part,
            waiting,
            stop: Arc::clone(&stop),
            sink,
            timed: self.timed,
            strict: self.strict,
            ids: BTreeMap::new(),
        };
        let thread = std::thread::Builder::new().name("cassette".to_owned()).spawn(move || player.run());
        let thread = thread.map_err(|error| {
            TurnError::new(ErrorClass::Transient, format!("cannot start a thread: {error}"))
        })?;
        Ok(Box::new(Playing { pushes: Some(pushes), stop, thread: Some(thread) }))
    }

    fn native_commands(&self) -> bool {
        self.tape.native_commands
    }

    fn follow_ups(&self) -> bool {
        self.tape.follow_ups
    }
}

/// Ends waits early.
#[derive(Debug, Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn ask(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until then. Returns whether it was asked to stop.
    fn wait(&self, until: Instant) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        while !*asked {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            asked = self.changed.wait_timeout(asked, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

struct Player {
    part: Part,
    waiting: Receiver<Push>,
    stop: Arc<Stop>,
    sink: Sink,
    timed: bool,
    strict: bool,
    /// From recorded ids to those of this run.
    ids: BTreeMap<String, String>,
}

impl Player {
    fn run(mut self) {
        if let Err(reason) = self.play() {
            let error = TurnError::new(ErrorClass::Permanent, reason);
            // Nobody is left to hear it, at worst.
            let _ = self.sink.send(ProviderEvent::Error(error));
        }
    }

    fn play(&mut self) -> Result<(), String> {
        let lines = std::mem::take(&mut self.part.lines);
        let mut begun = Instant::now();
        let mut from = 0;
        for line in lines {
            match line {
                Line::Push { ms, id, text } => {
                    let Ok(push) = self.waiting.recv() else { return Ok(()) };
                    if self.strict && push.prompt.text != text {
                        return Err(format!("the prompt differs from that of the recorded push {id:?}"));
                    }
                    self.ids.insert(id, push.id);
                    (begun, from) = (Instant::now(), ms);
                }
                Line::Event { ms, event } => {
                    let wait = Duration::from_millis(if self.timed { ms.saturating_sub(from) } else { 0 });
                    if self.stop.wait(begun + wait) || self.sink.send(self.of_this_run(event)).is_err() {
                        return Ok(());
                    }
                }
                Line::Cassette { .. } | Line::Open { .. } => {}
            }
        }
        match self.waiting.recv() {
            Ok(_) => Err("the cassette has no more turns".to_owned()),
            Err(_) => Ok(()),
        }
    }

    /// The event with the ids of this run's pushes.
    fn of_this_run(&self, event: Event) -> ProviderEvent {
        let known = |id: String| self.ids.get(&id).cloned().unwrap_or(id);
        match event {
            Event::Started { id } => ProviderEvent::Started { id: known(id) },
            Event::Result { text, covers, local } => {
                let covers = covers.into_iter().map(known).collect();
                Event::Result { text, covers, local }.into()
            }
            other => other.into(),
        }
    }
}

struct Playing {
    pushes: Option<SyncSender<Push>>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Query for Playing {
    fn push(&mut self, push: &Push) -> bool {
        let Some(pushes) = &self.pushes else { return false };
        match pushes.try_send(push.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn end(&mut self) {
        self.abort();
    }

    fn abort(&mut self) {
        self.stop.ask();
        self.pushes = None;
        if let Some(thread) = self.thread.take() {
            // A panic has printed itself; the query is over either way.
            let _ = thread.join();
        }
    }
}
