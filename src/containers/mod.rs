//! Containers: the port through which a session's attempt is started, stopped and heard of, and its runtimes.
//!
//! Everything here is asynchronous to its caller: a call hands over, and what came of it is reported as an event.
//!
//! Invariant: at most one attempt of a session is started at a time, and `Exited` is reported only when nothing of
//! it is left that could still write.

pub mod exec_child;
pub mod leftover;
pub mod process;
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
        /// Which life of it.
        attempt: Attempt,
        /// The line, cut at [`process::LINE_MAX`].
        line: String,
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

/// A runtime.
pub trait Containers: Send + Sync {
    /// Its name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Whether what an earlier daemon left running can be taken over.
    fn adopts(&self) -> bool;

    /// Starts an attempt. Ends in `Started` (and later `Exited`) or `StartFailed`.
    fn start(&self, spec: StartSpec);

    /// Asks an attempt to stop, and kills it after the grace. Ends in `Exited`; an attempt that is not there is
    /// reported as exited too, since nobody else will.
    fn stop(&self, session: SessionNo, attempt: Attempt, grace: Ms);

    /// Whether an attempt lives; none when the runtime cannot tell.
    fn is_alive(&self, session: SessionNo, attempt: Attempt) -> Option<bool>;

    /// What an earlier daemon left running.
    ///
    /// # Errors
    /// When it cannot be found out; nothing may then be started.
    fn list(&self) -> std::io::Result<Vec<Found>>;

    /// Stops everything and waits for it, at most the grace and a little.
    fn shutdown(&self, grace: Ms);
}
