//! Providers: what turns a prompt into an answer. The runner knows them by this port alone.
//!
//! Invariant: a provider touches no session file. It posts events; the runner writes.
//! Invariant: a turn ends with exactly one `Result` or `Error`; what comes after is not taken.

mod mock;
mod rules;

use std::path::PathBuf;

use lamplighter::base::Ms;
use serde_json::Value;

use crate::mailbox::Sink;
use crate::prompt::Prompt;

pub use mock::Mock;
pub use rules::{Action, Rule, Rules};

/// The names that container.json may give.
pub const KNOWN: [&str; 1] = ["mock"];

/// What a provider says while it works. Each is a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderEvent {
    /// The conversation has begun; the token with which a later turn continues it.
    Init {
        /// Opaque to the runner.
        continuation: String,
    },
    /// Something happened that needs no more words.
    Activity,
    /// What it does at the moment, for the log's reader; never sent.
    Progress(String),
    /// A tool began.
    ToolStarted {
        /// As the agent names it.
        name: String,
        /// How long it may take by its own declaration.
        timeout: Option<Ms>,
    },
    /// The tool ended.
    ToolEnded,
    /// The turn is done. `None` when the agent said nothing.
    Result(Option<String>),
    /// The turn failed.
    Error(TurnError),
}

/// Why a turn failed, and thereby what becomes of its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnError {
    /// Whether another try can help.
    pub class: ErrorClass,
    /// In words, without any text of a message.
    pub reason: String,
    /// What the provider's service asked for.
    pub retry_after: Option<Ms>,
}

/// Whether another try can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Overload, network, rate limit: the messages are given back and tried again.
    Transient,
    /// Refused for good: the messages fail.
    Permanent,
}

impl ErrorClass {
    /// The word in facts and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Permanent => "permanent",
        }
    }
}

/// Makes answers. One turn at a time.
pub trait Provider: Send {
    /// Begins a turn. Returns at once; the events come through `sink`.
    ///
    /// # Errors
    /// When the turn cannot even begin.
    fn start(
        &mut self,
        prompt: Prompt,
        continuation: Option<String>,
        sink: Sink,
    ) -> Result<Box<dyn Query>, TurnError>;
}

/// A turn that was begun.
pub trait Query: Send {
    /// Hands a follow-up into the running turn. Returns whether it was taken; what is not stays for the next
    /// turn.
    fn push(&mut self, prompt: &Prompt) -> bool;
    /// Lets the provider go after its result. Waits until nothing of it runs any more.
    fn end(&mut self);
    /// Ends the turn without waiting for a result. Waits until nothing of it runs any more.
    fn abort(&mut self);
}

/// What a provider is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its own settings in container.json.
    pub settings: Value,
    /// Where it may keep what must outlive a crash of this session's runner.
    pub workspace: PathBuf,
    /// The literal answer that the environment asks for; only `mock` has one.
    pub mock_reply: Option<String>,
}

/// Why there is no provider.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Not one of [`KNOWN`].
    #[error("container.json names the provider {name:?}; this runner knows: {}", KNOWN.join(", "))]
    Unknown {
        /// The name found.
        name: String,
    },
    /// Its settings do not say what it needs.
    #[error("container.json: {key}: {reason}")]
    Settings {
        /// The place in the file.
        key: String,
        /// What is wrong there.
        reason: String,
    },
}

/// Makes the provider of a name.
///
/// # Errors
/// See [`ProviderError`].
pub fn make(name: &str, setup: Setup) -> Result<Box<dyn Provider>, ProviderError> {
    match name {
        "mock" => Ok(Box::new(Mock::new(setup)?)),
        _ => Err(ProviderError::Unknown { name: name.to_owned() }),
    }
}
