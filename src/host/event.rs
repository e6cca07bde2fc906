//! Everything that can wake the loop.

use std::collections::BTreeSet;
use std::sync::Arc;

use crossbeam_channel::Sender;
use serde_json::Value;
use slog::{Logger, debug, error, o, warn};

use super::config::AtStop;
use super::control::Request;
use super::ends::{Ends, Weight, weight};
use super::files::Copied;
use crate::base::printable::one_line;
use crate::base::{EffectId, RecordNo, SessionNo};
use crate::channels::ChannelEvent;
use crate::containers::{self, ContainerEvent, StartSpec};
use crate::machine::input::{Ask, Input};
use crate::reactor::ReactorEvent;
use crate::session::host_side::{InboundWriteError, Reading, Unreadable};

/// A reading of an outbound.db on its way to the machine.
pub struct Brought {
    /// Whose.
    pub session: SessionNo,
    /// The look that it answers, if it is one, and whether the heartbeat had changed.
    pub look: Option<(EffectId, bool)>,
    /// What was found.
    pub result: Result<Reading, Unreadable>,
    /// It was read from a copy, because of a hot journal.
    pub copied: bool,
    /// Which of its rows are recorded in `delivered`; none while nobody has looked.
    pub settled: Option<Result<BTreeSet<String>, InboundWriteError>>,
}

/// One piece of news for the loop.
///
/// The queue of these has no limit of its own, so that nobody who has news ever waits for the loop, and yet it is
/// bounded, by whoever sends:
///
/// - `Prepared`, `Fetched`, `Copied` and most of `Input`: each is the end of an effect that is open in the machine, or
///   of a job that one of them gave. `Brought`: a session has one reading at a time.
/// - `Input::FolderTooLarge`: once for each session that is watched, until it is watched again.
/// - `Reactor`: one reading of a session is outstanding at a time, a heartbeat comes once in some seconds, and
///   warnings are said once until they are over.
/// - `Channel`: a channel has a bounded number of clients and of unanswered arrivals for each; other news of it
///   are the end of a delivery.
/// - `Container`: a few for each attempt (see [`containers::Containers`]). What containers write has no bound and
///   does not come here: [`container_sink`].
/// - `Control` and `Found`: one for each connection, whose asker waits; the socket has a bounded number of them.
/// - `Synced`: one for each sync of the journal, which this loop asks for. `Stop`: one for each signal.
pub enum Event {
    /// An effect ended, or something else that is an input as it stands.
    Input(Input),
    /// The reactor noticed something.
    Reactor(ReactorEvent),
    /// A channel brought something.
    Channel(ChannelEvent),
    /// A container did something.
    Container(ContainerEvent),
    /// Everything that a container needs is in place.
    Prepared {
        /// The start.
        effect: EffectId,
        /// Whose.
        session: SessionNo,
        /// What to start it with, or why not.
        result: Result<StartSpec, String>,
    },
    /// An outbound.db was read, or its copy, or it was looked up what of a reading was settled before.
    Brought(Box<Brought>),
    /// What an operator names was looked for.
    Found {
        /// What to ask the machine, or why there is nothing to ask.
        result: Result<Ask, String>,
        /// Where the answer goes.
        reply: Sender<Result<Value, String>>,
    },
    /// The text of an outbound row was read again.
    Fetched {
        /// The delivery, or the write of an answer.
        effect: EffectId,
        /// The text, or why there is none and whether it may come back.
        result: Result<String, (String, bool)>,
    },
    /// The files of an outbound message were copied.
    Copied {
        /// The delivery.
        effect: EffectId,
        /// The files, or why they cannot be copied now.
        result: Result<Copied, String>,
    },
    /// The journal is durable up to here, or failed.
    Synced(Result<RecordNo, String>),
    /// An operator asks.
    Control {
        /// What.
        request: Request,
        /// Where the answer goes.
        reply: Sender<Result<Value, String>>,
    },
    /// The daemon is to stop, and its containers as is said here or else in the configuration.
    Stop(Option<AtStop>),
}

/// News of containers go into the loop's queue. What they write goes straight into the log instead, and the last of it
/// to what is known of ends: an agent can write without an end, and the log drops and counts what is too much for it.
pub fn container_sink(events: Sender<Event>, log: Logger, ends: Arc<Ends>) -> containers::Sink {
    Arc::new(move |event| match event {
        ContainerEvent::Output { session, name, attempt, line } => {
            // Whoever reads the log does so at a terminal.
            let line = one_line(&line);
            ends.said(session, attempt, &line);
            let log = log.new(o!("session" => name.to_string(), "attempt" => attempt.to_string()));
            match weight(&line) {
                Weight::Error => error!(log, "{}", line),
                Weight::Warn => warn!(log, "{}", line),
                Weight::Plain => debug!(log, "{}", line),
            }
        }
        // When the loop is gone there is nobody left to tell.
        event => drop(events.send(Event::Container(event))),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use slog::Drain;

    use super::*;
    use crate::base::{Attempt, SessionName};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_container_writes_takes_no_place_in_the_loops_queue() {
        let (events, queue) = crossbeam_channel::unbounded();
        let written = Written::default();
        let drain = Mutex::new(slog_json::Json::default(written.clone())).ignore_res();
        let sink = container_sink(events, Logger::root(drain, o!()), Arc::default());
        let name = SessionName::new("g", "s").unwrap();
        for n in 0..10_000 {
            let line = format!("line {n}");
            let (session, name) = (SessionNo(1), name.clone());
            sink(ContainerEvent::Output { session, name, attempt: Attempt(1), line });
        }
        assert!(queue.is_empty(), "{} lines wait for the loop", queue.len());
        sink(ContainerEvent::Runtime { trouble: None });
        assert!(matches!(queue.try_recv(), Ok(Event::Container(ContainerEvent::Runtime { .. }))));
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(written.lines().count(), 10_000);
        let last = written.lines().last().unwrap();
        assert!(last.contains("line 9999") && last.contains("\"session\":\"g/s\""), "{last}");
    }
}
