//! Providers: what turns a prompt into an answer. The runner knows them by this port alone.
//!
//! Invariant: a provider touches no session file. It posts events; the runner writes.
//! Invariant: every push ends covered by one `Result`, or by the one `Error` that ends its query.

mod cassette;
pub mod child;
pub mod claude;
pub mod codex;
mod mock;
mod rules;

use std::collections::BTreeMap;
use std::path::PathBuf;

use lamplighter::base::Ms;
use serde_json::Value;

use crate::mailbox::Sink;
use crate::prompt::Prompt;

pub use cassette::{Cassette, Recorder};
pub use claude::Claude;
pub use codex::Codex;
pub use mock::Mock;
pub use rules::{Action, Rule, Rules};

/// The names that container.json may give.
pub const KNOWN: [&str; 4] = ["cassette", "claude", "codex", "mock"];

/// What a provider says while it works. Each is a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderEvent {
    /// The conversation has begun, or goes on under another token; a later query continues it with this one.
    Init {
        /// Opaque to the runner.
        continuation: String,
    },
    /// Something happened that needs no more words.
    Activity,
    /// What it does at the moment, for the log's reader; never sent.
    Progress(String),
    /// The agent has taken up a push: from here on it is in the conversation, whatever happens.
    Started {
        /// The push's id.
        id: String,
    },
    /// A tool began.
    ToolStarted {
        /// Unlike that of every other tool in flight.
        id: String,
        /// As the agent names it.
        name: String,
        /// How long it may take by its own declaration.
        timeout: Option<Ms>,
    },
    /// The tool ended.
    ToolEnded {
        /// The id that it began with.
        id: String,
    },
    /// The service behind the provider does not answer, and the provider tries again by itself after `wait`.
    Retrying {
        /// In words, without any text of a message.
        reason: String,
        /// Until the next try.
        wait: Ms,
    },
    /// The agent has answered.
    Result(Answer),
    /// The query is over, and so are all its pushes that no result has covered.
    Error(TurnError),
}

/// The end of one of the agent's turns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What the agent said last; `None` when it said nothing.
    pub text: Option<String>,
    /// The ids of the pushes that the turn took in; none when the agent started the turn by itself.
    pub covers: Vec<String>,
    /// The text is the output of a command that the CLI has run by itself: no model has said it.
    pub local_command: bool,
}

/// Why a query failed, and thereby what becomes of its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnError {
    /// Whether another try can help.
    pub class: ErrorClass,
    /// In words, without any text of a message.
    pub reason: String,
    /// What the provider's service asked for.
    pub retry_after: Option<Ms>,
}

impl TurnError {
    /// An error for which nothing asks for a certain wait.
    pub fn new(class: ErrorClass, reason: impl Into<String>) -> Self {
        Self { class, reason: reason.into(), retry_after: None }
    }
}

/// Whether another try can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Overload, network, rate limit: the messages are given back and tried again.
    Transient,
    /// Refused for good: the messages fail.
    Permanent,
    /// The provider knows nothing of the conversation: a fresh one is begun with the same messages.
    SessionInvalid,
    /// The agent's program ended by itself: the messages are given back and tried again, and the host counts the try,
    /// since it may be a message that ends it.
    Crashed,
}

impl ErrorClass {
    /// The word in facts and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Permanent => "permanent",
            Self::SessionInvalid => "session-invalid",
            Self::Crashed => "crashed",
        }
    }
}

/// What is handed to the agent in one piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Push {
    /// The same messages have the same id after a restart too, so that a provider which remembers ids can tell
    /// that it had them already. What the runner says by itself has an id that never comes again.
    pub id: String,
    /// What to say.
    pub prompt: Prompt,
}

/// How a query begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// The token of the conversation to continue; `None` begins one.
    pub continuation: Option<String>,
    /// What the agent is told about itself, its destinations and the form of its answers, beside its own
    /// instructions.
    pub instructions: String,
    /// The first push.
    pub first: Push,
}

/// Makes answers. One query at a time.
pub trait Provider: Send {
    /// Begins a query. Returns at once; the events come through `sink`.
    ///
    /// # Errors
    /// When the query cannot even begin.
    fn start(&mut self, opening: Opening, sink: Sink) -> Result<Box<dyn Query>, TurnError>;

    /// Whether a query takes pushes while a turn runs.
    fn follow_ups(&self) -> bool {
        true
    }

    /// Whether a text that begins with a slash is a command to it. Such a text is then pushed alone and raw.
    fn native_commands(&self) -> bool {
        false
    }
}

/// A conversation in progress: one process of an agent CLI, for example. It outlives its turns and takes pushes
/// until it ends or fails.
pub trait Query: Send {
    /// Hands over more: into the running turn, or for the next one. Never blocks. Returns whether it was taken;
    /// what is not stays for another query.
    fn push(&mut self, push: &Push) -> bool;

    /// Whether what makes the answers is there and at work: its process runs, its watchdog has not fired.
    fn is_alive(&self) -> bool;

    /// Lets the provider go after its last result. Waits, a few seconds at most, until nothing of it runs.
    fn end(&mut self);

    /// Ends the query at once, whatever it does. Waits, a few seconds at most, until nothing of it runs.
    fn abort(&mut self);
}

/// What a provider is made from.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Its own settings in container.json: the key that is named like the provider.
    pub settings: Value,
    /// Where it may keep what must outlive a crash of this session's runner (`out/`, `/workspace`).
    pub workspace: PathBuf,
    /// The agent's own folder: where it works.
    pub agent: PathBuf,
    /// The literal answer that the environment asks for; only `mock` has one.
    pub mock_reply: Option<String>,
    /// The model that container.json names.
    pub model: Option<String>,
    /// The effort that container.json names.
    pub effort: Option<String>,
    /// The tool servers, ours among them under its own name.
    pub mcp_servers: Vec<McpServer>,
}

/// A program that offers tools to the agent (Model Context Protocol, over its standard input and output).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct McpServer {
    /// What the agent knows it by.
    pub name: String,
    /// The program.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What is added to its environment.
    pub env: BTreeMap<String, String>,
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
        "cassette" => Ok(Box::new(Cassette::new(&setup)?)),
        "claude" => Ok(Box::new(Claude::new(setup)?)),
        "codex" => Ok(Box::new(Codex::new(setup)?)),
        "mock" => Ok(Box::new(Mock::new(setup)?)),
        _ => Err(ProviderError::Unknown { name: name.to_owned() }),
    }
}
