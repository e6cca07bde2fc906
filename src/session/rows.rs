//! The rows of both files as plain data. Times stay the text that was found, with helpers that read them.
//!
//! Invariant: no handle to a file in here; these types may be used by the pure layers.

use crate::base::{Ms, Wall};
use crate::session::timestamp;

/// Keys of `session_state` that are facts for the host begin with this (design 5).
pub const FACT_PREFIX: &str = "lamplighter.";
/// The fact that names the attempt which owns the file; checked in each write transaction.
pub const FACT_ATTEMPT: &str = "lamplighter.attempt";
/// The fact that names the messages of the running turn.
pub const FACT_TURN: &str = "lamplighter.turn";
/// The fact that says which messages were handed to the agent together, until an answer covers them.
pub const FACT_PUSHES: &str = "lamplighter.pushes";
/// The fact that names the tools in flight with their deadlines.
pub const FACT_TOOLS: &str = "lamplighter.tools";
/// The fact that names what the runner waits for.
pub const FACT_WAIT: &str = "lamplighter.wait";
/// Facts that explain a released claim: this prefix and the message id.
pub const FACT_RELEASE_PREFIX: &str = "lamplighter.release.";
/// Facts that explain a failed message: this prefix and the message id.
pub const FACT_FAILED_PREFIX: &str = "lamplighter.failed.";
/// Facts about what the script of a task decided: this prefix and the message id.
pub const FACT_TASK_PREFIX: &str = "lamplighter.task.";
/// The fact that holds answers to questions which came too late, until the agent is told.
pub const FACT_LATE: &str = "lamplighter.late";
/// The fact that names the destinations which the agent was told of in this conversation.
pub const FACT_DESTINATIONS: &str = "lamplighter.destinations";
/// Longest value of a fact in bytes; a JSON object of a few ids and times needs far less.
pub const MAX_FACT_BYTES: usize = 4 * 1024;
/// Most facts of one session; one per released or failed message of a batch, and the seven fixed ones.
pub const MAX_FACTS: usize = 64;
/// Longest content of a row in bytes: what policy allows for one message (design 5).
pub const MAX_CONTENT_BYTES: usize = 1024 * 1024;
/// How long a question waits for its answer when it does not say so itself (contract 12).
pub const QUESTION_WAIT: Ms = Ms::secs(300);
/// The longest that a question may wait (design 5): its container is kept, and its agent's turn open, all that time.
pub const MAX_QUESTION_WAIT: Ms = Ms::days(7);
/// Longest id, address part, kind or time in bytes; ids of platforms stay below 300.
pub const MAX_FIELD_BYTES: usize = 4 * 1024;

/// Whether people can choose an option by this label: it says something, on one line.
pub fn is_option_label(label: &str) -> bool {
    let label = label.trim();
    !label.is_empty() && label.lines().count() == 1
}

/// Where a message comes from or goes to. Every part may be missing in a row (contract 4.1, 5.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The channel's name, or `agent`.
    pub channel_type: Option<String>,
    /// The chat in that channel, or an agent group's id.
    pub platform_id: Option<String>,
    /// The thread in that chat.
    pub thread_id: Option<String>,
}

impl Address {
    /// An address with all that delivery needs.
    pub fn new(
        channel_type: impl Into<String>,
        platform_id: impl Into<String>,
        thread_id: Option<String>,
    ) -> Self {
        Self { channel_type: Some(channel_type.into()), platform_id: Some(platform_id.into()), thread_id }
    }

    /// Channel and chat, when both are there.
    pub fn chat(&self) -> Option<(&str, &str)> {
        Some((self.channel_type.as_deref()?, self.platform_id.as_deref()?))
    }
}

/// `messages_in.status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InboundStatus {
    /// To be worked on when due.
    Pending,
    /// Finished.
    Completed,
    /// Given up.
    Failed,
    /// A task that its owner paused, or a message that the host parked.
    Paused,
}

impl InboundStatus {
    /// The word in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Paused => "paused",
        }
    }

    /// The status that a word in the column names.
    pub fn from_column(text: &str) -> Option<Self> {
        [Self::Pending, Self::Completed, Self::Failed, Self::Paused].into_iter().find(|s| s.as_str() == text)
    }
}

/// One row of `messages_in` (contract 4.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboundRow {
    /// Primary key; also the name of the attachments' folder.
    pub id: String,
    /// The number that the agent sees.
    pub seq: Option<i64>,
    /// `chat`, `chat-sdk`, `task`, `webhook` or `system`.
    pub kind: String,
    /// When it happened, as found.
    pub timestamp: String,
    /// As found; see [`InboundStatus::from_column`].
    pub status: Option<String>,
    /// Not due before this, as found.
    pub process_after: Option<String>,
    /// Cron expression of a recurring task.
    pub recurrence: Option<String>,
    /// The first occurrence's id.
    pub series_id: Option<String>,
    /// How often an attempt at it ended abnormally.
    pub tries: i64,
    /// Whether it may start a turn; otherwise it is context only.
    pub trigger: bool,
    /// Where an answer goes.
    pub address: Address,
    /// JSON text (contract 11).
    pub content: String,
    /// For a message from another agent: the session to answer to.
    pub source_session_id: Option<String>,
    /// Only for a container's first poll.
    pub on_wake: bool,
}

impl InboundRow {
    /// When it happened.
    pub fn at(&self) -> Option<Wall> {
        timestamp::parse(&self.timestamp)
    }

    /// Whether it may be worked on now, by its due time alone.
    pub fn is_due(&self, now: Wall) -> bool {
        timestamp::is_due(self.process_after.as_deref(), now)
    }
}

/// What the host inserts into `messages_in`; the number is given by the writer, tries are 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewInbound {
    /// Primary key. A second insert of the same id is recognised as a duplicate.
    pub id: String,
    /// `chat`, `chat-sdk`, `task`, `webhook` or `system`.
    pub kind: String,
    /// When it happened, in form A or B.
    pub timestamp: String,
    /// Usually pending.
    pub status: InboundStatus,
    /// Not due before this, in form A or B.
    pub process_after: Option<String>,
    /// Cron expression.
    pub recurrence: Option<String>,
    /// The first occurrence's id; `None` means its own.
    pub series_id: Option<String>,
    /// Whether it may start a turn.
    pub trigger: bool,
    /// Where an answer goes.
    pub address: Address,
    /// Compact JSON text (contract 11).
    pub content: String,
    /// For a message from another agent: the session to answer to.
    pub source_session_id: Option<String>,
    /// Only for a container's first poll.
    pub on_wake: bool,
}

impl NewInbound {
    /// A pending message that may start a turn.
    pub fn new(
        id: impl Into<String>,
        kind: impl Into<String>,
        timestamp: impl Into<String>,
        address: Address,
        content: impl Into<String>,
    ) -> Self {
        Self {
            id: id.into(),
            kind: kind.into(),
            timestamp: timestamp.into(),
            status: InboundStatus::Pending,
            process_after: None,
            recurrence: None,
            series_id: None,
            trigger: true,
            address,
            content: content.into(),
            source_session_id: None,
            on_wake: false,
        }
    }
}

/// One row of `messages_out` (contract 5.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboundRow {
    /// The order of delivery.
    pub rowid: i64,
    /// Primary key; also the name of the attachments' folder.
    pub id: String,
    /// The number that the agent sees.
    pub seq: Option<i64>,
    /// The inbound message that it answers.
    pub in_reply_to: Option<String>,
    /// When it was written, as found.
    pub timestamp: String,
    /// Not to be delivered before this, as found.
    pub deliver_after: Option<String>,
    /// `chat`, `chat-sdk` or `system`.
    pub kind: String,
    /// Where it goes.
    pub address: Address,
    /// JSON text (contract 12).
    pub content: String,
}

impl OutboundRow {
    /// When it was written.
    pub fn at(&self) -> Option<Wall> {
        timestamp::parse(&self.timestamp)
    }

    /// Whether it may be delivered now. A time that cannot be read holds nothing back: the row would be lost.
    pub fn is_due(&self, now: Wall) -> bool {
        self.deliver_after.as_deref().and_then(timestamp::parse).is_none_or(|due| due <= now)
    }
}

/// What the runner inserts into `messages_out`; number and time are given by the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOutbound {
    /// Primary key.
    pub id: String,
    /// The inbound message that it answers.
    pub in_reply_to: Option<String>,
    /// Not to be delivered before this.
    pub deliver_after: Option<Wall>,
    /// `chat`, `chat-sdk` or `system`.
    pub kind: String,
    /// Where it goes.
    pub address: Address,
    /// JSON text (contract 12).
    pub content: String,
}

/// `processing_ack.status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AckStatus {
    /// Claimed by the running attempt.
    Processing,
    /// Finished; final.
    Completed,
    /// Given up; final.
    Failed,
}

impl AckStatus {
    /// The word in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// The status that a word in the column names.
    pub fn from_column(text: &str) -> Option<Self> {
        [Self::Processing, Self::Completed, Self::Failed].into_iter().find(|s| s.as_str() == text)
    }
}

/// One row of `processing_ack` (contract 5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The inbound message.
    pub message_id: String,
    /// What became of it.
    pub status: AckStatus,
    /// Since when, as found.
    pub status_changed: String,
    /// The row's number; numbers are used again, so it identifies nothing by itself.
    pub rowid: i64,
}

/// The tool in flight, from `container_state` (contract 5.4, 14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolInFlight {
    /// Its name.
    pub name: String,
    /// How long it may take by its own declaration.
    pub declared_timeout_ms: Option<u64>,
    /// When it began, as found.
    pub started_at: Option<String>,
}

impl ToolInFlight {
    /// When it began.
    pub fn started(&self) -> Option<Wall> {
        self.started_at.as_deref().and_then(timestamp::parse)
    }
}

/// A row of `session_state` that the runner wrote for the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// Begins with [`FACT_PREFIX`].
    pub key: String,
    /// JSON, at most [`MAX_FACT_BYTES`].
    pub value: String,
}

/// What a destination's name stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A chat.
    Channel {
        /// The channel's name.
        channel_type: String,
        /// The chat in it.
        platform_id: String,
    },
    /// Another agent.
    Agent {
        /// Its group.
        agent_group_id: String,
    },
}

/// One row of `destinations` (contract 4.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The name that the agent uses.
    pub name: String,
    /// What people call it.
    pub display_name: Option<String>,
    /// What it stands for.
    pub target: Target,
}

/// One row of `delivered` (contract 4.2). Its presence means: never try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The outbound message.
    pub message_out_id: String,
    /// What the platform calls it.
    pub platform_message_id: Option<String>,
    /// Delivered, or not and never to be.
    pub delivered: bool,
    /// When, as found or to be written in form B.
    pub delivered_at: String,
}

impl Delivered {
    /// The word in the column: on the wire there are only two (design 5).
    pub fn status(&self) -> &'static str {
        if self.delivered { "delivered" } else { "failed" }
    }
}
