//! Containers: the port through which a session's attempt is started, stopped and heard of, and its runtimes.
//!
//! Everything here is asynchronous to its caller: a call hands over, and what came of it is reported as an event.
//!
//! Invariant: at most one attempt of a session is started at a time, and `Exited` is reported only when nothing of
//! it is left that could still write. [`Containers`] says what that asks of a runtime.

pub mod docker;
pub mod exec_child;
pub mod leftover;
pub mod process;
pub mod program;
pub mod spec;

use std::sync::Arc;

use crate::base::{Attempt, Ms, SessionName, SessionNo};
pub use spec::StartSpec;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody saw it.
    Unknown,
    /// The kernel killed it for want of memory.
    OutOfMemory,
}

/// News of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerEvent {
    /// It runs.
    Started {
        /// Whose.
        session: SessionNo,
        /// Which life of it.
        attempt: Attempt,
    },
    /// It could not be started.
    StartFailed {
        /// Whose.
        session: SessionNo,
        /// Which life of it.
        attempt: Attempt,
        /// Why, and what to do.
        reason: String,
    },
    /// It ended, and nothing of it is left.
    Exited {
        /// Whose.
        session: SessionNo,
        /// Which life of it.
        attempt: Attempt,
        /// How.
        exit: Exit,
    },
    /// It wrote a line to its standard output or error.
    Output {
        /// Whose.
        session: SessionNo,
        /// Its name: the line goes to the log, past the machine.
        name: SessionName,
        /// Which life of it.
        attempt: Attempt,
        /// The line, cut at [`process::LINE_MAX`].
        line: String,
    },
    /// Something happened to it that its operator should know, and that its end alone does not tell.
    Notice {
        /// Whose.
        session: SessionNo,
        /// Which life of it.
        attempt: Attempt,
        /// What, and what to do.
        text: String,
    },
    /// The runtime as a whole went, or is back.
    Runtime {
        /// Why nothing can be started or heard of now, and what to do; none when it is back.
        trouble: Option<String>,
    },
    /// What an earlier daemon left running, after [`Stock::Away`]: the runtime can tell now, and will say at once that
    /// it is back.
    Listed {
        /// All of it.
        found: Vec<Found>,
    },
    /// Something about the runtime that its operator should know; each is told once.
    Warning {
        /// What, and what to do.
        text: String,
    },
}

/// Where news go. Called from the runtime's threads; it must not block for long.
pub type Sink = Arc<dyn Fn(ContainerEvent) + Send + Sync>;

/// What an earlier daemon left running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The session it belongs to.
    pub name: SessionName,
    /// Its attempt, if that could be told.
    pub attempt: Option<Attempt>,
}

/// What is known of what an earlier daemon left running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stock {
    /// All of it.
    Known(Vec<Found>),
    /// The runtime is away; [`ContainerEvent::Listed`] follows when it is not.
    Away(
        /// Why, and what to do.
        String,
    ),
}

/// Whose the files of an attempt are, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOwner {
    /// Nobody's in particular.
    Any,
    /// This user's.
    User(u32),
    /// It is not known until the runtime can be asked.
    NotKnown,
}

/// A runtime.
///
/// Two writers on one session's files would destroy them, and an attempt that nobody knows of cannot be stopped. So a
/// runtime keeps this contract:
///
/// - Each call of [`start`](Self::start) is answered once: by `StartFailed`, after which nothing of the attempt
///   is left, or by `Started`, which is followed by `Exited` once. No `Started` comes after an `Exited`.
/// - A start of a session of which another attempt is known to the runtime, whichever, is answered by
///   `StartFailed`. What an earlier daemon left of the session is ended before anything is started.
/// - [`stop`](Self::stop) may come at any moment after `start` was called, before `Started` as well. Then the
///   attempt either does not begin (`StartFailed`) or begins and is ended (`Started`, `Exited`); it never goes
///   on. The host calls `start` only for an attempt that it has not asked to stop, so a runtime need not remember
///   stops for later starts.
/// - A stop of an attempt that the runtime does not know is answered by `Exited`, once nothing is left of it.
/// - Nothing is awaited in a call but a short lock: what takes longer is done elsewhere and reported through the
///   sink. The order of reports about one attempt is the order of what happened.
/// - `Output` may come at any time and in any number: the sink must bound what it keeps. Everything else is
///   bounded: two reports for each attempt, a `Notice` of each kind once for each attempt, and one `Runtime` at
///   each change.
pub trait Containers: Send + Sync {
    /// Its name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Whether what an earlier daemon left running can be taken over.
    fn adopts(&self) -> bool;

    /// Starts an attempt. Ends in `Started` (and later `Exited`) or `StartFailed`, also when it is stopped meanwhile.
    fn start(&self, spec: StartSpec);

    /// Asks an attempt to stop, and kills it after the grace. Ends in `Exited`, or for one that had not begun in
    /// `StartFailed`; an attempt that is not there is reported as exited too, since nobody else will.
    fn stop(&self, session: SessionNo, attempt: Attempt, grace: Ms);

    /// Whether an attempt lives; none when the runtime cannot tell.
    fn is_alive(&self, session: SessionNo, attempt: Attempt) -> Option<bool>;

    /// What an earlier daemon left running. Waits for a runtime that answers, at most a little.
    ///
    /// # Errors
    /// When it cannot be found out and waiting will not help; nothing may then be started.
    fn list(&self) -> std::io::Result<Stock>;

    /// Takes over an attempt that was found: its end is reported from now on.
    fn adopt(&self, _session: SessionNo, _name: &SessionName, _attempt: Attempt) {}

    /// Gives up an attempt that [`list`](Self::list) found and nobody expects: it is ended before its session is
    /// started again.
    ///
    /// # Errors
    /// When it is found at once that it does not end.
    fn discard(&self, name: &SessionName, attempt: Attempt) -> std::io::Result<()>;

    /// Whose an attempt's files are, as far as is known now.
    fn owner(&self) -> FileOwner {
        FileOwner::Any
    }

    /// Why nothing can be started or heard of now, and what to do; none when all is well.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Stops everything and waits for it, at most the grace and a little.
    fn shutdown(&self, grace: Ms);

    /// Leaves what runs to the next daemon, and waits for what is being removed, at most a little. Only where
    /// [`adopts`](Self::adopts) says that there is a way to find it again.
    fn detach(&self) {}
}
