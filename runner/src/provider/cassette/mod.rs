//! Recordings of providers: made from any of them, and played back as one.
//!
//! A cassette is a file of JSON lines: a header, then what happened in its order. `open` begins a query, `push` hands
//! something over, `event` is what the provider said. It holds the texts of prompts and answers.
//!
//! Invariant: what is played depends on the cassette and on the order of pushes alone.

mod play;
mod record;

use lamplighter::base::Ms;
use serde::{Deserialize, Serialize};

use super::{Answer, ErrorClass, ProviderEvent, TurnError};

pub use play::Cassette;
pub use record::Recorder;

/// The version of the format.
const VERSION: u32 = 1;

/// A line of a cassette.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first line.
    Cassette {
        /// The format's.
        version: u32,
        /// See [`Provider::native_commands`](super::Provider::native_commands) of the recorded one.
        native_commands: bool,
        /// See [`Provider::follow_ups`](super::Provider::follow_ups) of the recorded one.
        follow_ups: bool,
    },
    /// A query begins.
    Open {
        /// The token of the conversation that it continues.
        continuation: Option<String>,
    },
    /// Something was handed over.
    Push {
        /// Milliseconds since the query began.
        ms: u64,
        /// Its id.
        id: String,
        /// The prompt.
        text: String,
    },
    /// The provider said something.
    Event {
        /// Milliseconds since the query began.
        ms: u64,
        /// What.
        #[serde(flatten)]
        event: Event,
    },
}

/// A provider's event, as lines have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Event {
    Init {
        continuation: String,
    },
    Activity,
    Progress {
        text: String,
    },
    Started {
        id: String,
    },
    ToolStarted {
        id: String,
        name: String,
        timeout_ms: Option<u64>,
    },
    ToolEnded {
        id: String,
    },
    Retrying {
        reason: String,
        wait_ms: u64,
    },
    Result {
        text: Option<String>,
        covers: Vec<String>,
        /// See [`Answer::local_command`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        local: bool,
    },
    Error {
        class: Class,
        reason: String,
        retry_after_ms: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Class {
    Transient,
    Permanent,
    SessionInvalid,
    Crashed,
}

impl From<&ProviderEvent> for Event {
    fn from(event: &ProviderEvent) -> Self {
        match event.clone() {
            ProviderEvent::Init { continuation } => Self::Init { continuation },
            ProviderEvent::Activity => Self::Activity,
            ProviderEvent::Progress(text) => Self::Progress { text },
            ProviderEvent::Started { id } => Self::Started { id },
            ProviderEvent::ToolStarted { id, name, timeout } => {
                Self::ToolStarted { id, name, timeout_ms: timeout.map(|time| time.0) }
            }
            ProviderEvent::ToolEnded { id } => Self::ToolEnded { id },
            ProviderEvent::Retrying { reason, wait } => Self::Retrying { reason, wait_ms: wait.0 },
            ProviderEvent::Result(Answer { text, covers, local_command }) => {
                Self::Result { text, covers, local: local_command }
            }
            ProviderEvent::Error(TurnError { class, reason, retry_after }) => {
                let class = match class {
                    ErrorClass::Transient => Class::Transient,
                    ErrorClass::Permanent => Class::Permanent,
                    ErrorClass::SessionInvalid => Class::SessionInvalid,
                    ErrorClass::Crashed => Class::Crashed,
                };
                Self::Error { class, reason, retry_after_ms: retry_after.map(|time| time.0) }
            }
        }
    }
}

impl From<Event> for ProviderEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Init { continuation } => Self::Init { continuation },
            Event::Activity => Self::Activity,
            Event::Progress { text } => Self::Progress(text),
            Event::Started { id } => Self::Started { id },
            Event::ToolStarted { id, name, timeout_ms } => {
                Self::ToolStarted { id, name, timeout: timeout_ms.map(Ms) }
            }
            Event::ToolEnded { id } => Self::ToolEnded { id },
            Event::Retrying { reason, wait_ms } => Self::Retrying { reason, wait: Ms(wait_ms) },
            Event::Result { text, covers, local } => {
                Self::Result(Answer { text, covers, local_command: local })
            }
            Event::Error { class, reason, retry_after_ms } => {
                let class = match class {
                    Class::Transient => ErrorClass::Transient,
                    Class::Permanent => ErrorClass::Permanent,
                    Class::SessionInvalid => ErrorClass::SessionInvalid,
                    Class::Crashed => ErrorClass::Crashed,
                };
                Self::Error(TurnError { class, reason, retry_after: retry_after_ms.map(Ms) })
            }
        }
    }
}

#[cfg(test)]
mod tests;
