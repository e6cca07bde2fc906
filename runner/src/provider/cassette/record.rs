//! Writes what goes to and comes from another provider.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{Event, Line, VERSION};
use crate::log::Log;
use crate::mailbox::Sink;
use crate::provider::{Opening, Provider, ProviderEvent, Push, Query, TurnError};

/// A recording ends at this size: it is meant for minutes of work, not for months.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// Another provider, and the file that tells about it.
pub struct Recorder {
    inner: Box<dyn Provider>,
    tape: Arc<Mutex<Tape>>,
}

struct Tape {
    /// `None` once it could not be written any more.
    file: Option<File>,
    path: PathBuf,
    bytes: usize,
    begun: Instant,
    log: Log,
}

impl Recorder {
    /// Records `inner` into a new file, which only this user may read.
    ///
    /// # Errors
    /// When the file exists or cannot be made.
    pub fn new(inner: Box<dyn Provider>, path: &Path, log: Log) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut tape = Tape { file: Some(file), path: path.to_owned(), bytes: 0, begun: Instant::now(), log };
        let (native_commands, follow_ups) = (inner.native_commands(), inner.follow_ups());
        tape.write(&Line::Cassette { version: VERSION, native_commands, follow_ups });
        Ok(Self { inner, tape: Arc::new(Mutex::new(tape)) })
    }
}

impl Tape {
    fn ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn write(&mut self, line: &Line) {
        let Some(file) = &mut self.file else { return };
        // Texts and numbers always serialise.
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        self.bytes += text.len();
        let written = match self.bytes > MAX_BYTES {
            true => Err(io::Error::other("the recording is full")),
            false => file.write_all(&text),
        };
        if let Err(error) = written {
            self.file = None;
            self.log.warn("recording stopped", &[("file", &self.path.display()), ("reason", &error)]);
        }
    }
}

fn with(tape: &Mutex<Tape>, write: impl FnOnce(&mut Tape)) {
    // Each write is one line; a writer that panicked left at most one of them cut.
    write(&mut tape.lock().unwrap_or_else(PoisonError::into_inner));
}

fn push_line(tape: &Tape, push: &Push) -> Line {
    Line::Push { ms: tape.ms(), id: push.id.clone(), text: push.prompt.text.clone() }
}

impl Provider for Recorder {
    fn start(&mut self, opening: Opening, sink: Sink) -> Result<Box<dyn Query>, TurnError> {
        with(&self.tape, |tape| {
            tape.begun = Instant::now();
            tape.write(&Line::Open { continuation: opening.continuation.clone() });
            let line = push_line(tape, &opening.first);
            tape.write(&line);
        });
        let tape = Arc::clone(&self.tape);
        let heard = move |event: &ProviderEvent| {
            with(&tape, |tape| {
                let line = Line::Event { ms: tape.ms(), event: Event::from(event) };
                tape.write(&line);
            });
        };
        let started = self.inner.start(opening, sink.heard_by(Arc::new(heard)));
        if let Err(error) = &started {
            with(&self.tape, |tape| {
                let event = Event::from(&ProviderEvent::Error(error.clone()));
                let line = Line::Event { ms: tape.ms(), event };
                tape.write(&line);
            });
        }
        Ok(Box::new(Recorded { inner: started?, tape: Arc::clone(&self.tape) }))
    }

    fn follow_ups(&self) -> bool {
        self.inner.follow_ups()
    }

    fn native_commands(&self) -> bool {
        self.inner.native_commands()
    }
}

struct Recorded {
    inner: Box<dyn Query>,
    tape: Arc<Mutex<Tape>>,
}

impl Query for Recorded {
    fn push(&mut self, push: &Push) -> bool {
        // Before the push: its first event may come at once.
        with(&self.tape, |tape| {
            let line = push_line(tape, push);
            tape.write(&line);
        });
        self.inner.push(push)
    }

    fn is_alive(&self) -> bool {
        self.inner.is_alive()
    }

    fn end(&mut self) {
        self.inner.end();
    }

    fn abort(&mut self) {
        self.inner.abort();
    }
}
