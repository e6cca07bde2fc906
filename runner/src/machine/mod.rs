//! The turn loop as a pure machine: `step(now, input) -> effects`.
//!
//! It knows rows by id and by the facts that decisions need ([`Row`]), never by their text. The loop around it reads
//! files, writes transactions and talks to the provider; whatever comes of that is an input again.
//!
//! ```text
//!  pending ──► claimed ──► (script) ──► pushed ──► started ──► covered by a result ──► completed
//!                 │                        │                                            failed
//!                 └────────────────────────┴── error, stop ──────────────────────────► released
//! ```
//!
//! Invariant: no clock, file, thread or chance in here; the same inputs give the same effects.
//! Invariant: a claimed row is in exactly one place (script, group) until an effect completes, fails or releases
//! it. A row that was handed to the agent is completed by the result that covers it, not before.
//! Invariant: context rows start no turn, whether the agent is warm or not.

pub mod batch;
pub mod handed;
mod state;
mod turn;

#[cfg(test)]
mod tests;

use lamplighter::base::{At, Ms, Wall};

use crate::facts::Working;
use crate::provider::TurnError;

pub use batch::{Form, Held, Row};
pub use handed::Handed;
pub use state::State;

/// A turn that is about to be done may still finish after a stop was asked for. Short: NanoClaw's host kills after one
/// second, and the messages are given back whole.
const STOP_GRACE: Ms = Ms(250);
/// Between two looks that failed, because the host is away or holds a lock.
const LOOK_AGAIN: Ms = Ms(250);
/// The heartbeat is touched so often while the provider works and says nothing. Well below the minute after which
/// NanoClaw's host takes a claim for stuck (contract 15).
const BEAT: Ms = Ms::secs(15);
/// At most one touch for news of the provider in so long.
const BEAT_THROTTLE: Ms = Ms::secs(1);
/// What changed in the facts but in nothing else is written after so long at the latest.
const ANNOUNCE_WITHIN: Ms = Ms(500);

/// The time of a step: `at` follows the monotonic clock and bounds waits; `wall` compares with times in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since the runner started.
    pub at: At,
    /// The calendar's.
    pub wall: Wall,
}

/// What does not change while the runner runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most triggers in one prompt, at least 1.
    pub max_triggers: usize,
    /// A text that begins with a slash is a command to the provider.
    pub native_commands: bool,
    /// The provider takes pushes while a turn runs.
    pub follow_ups: bool,
    /// A message that failed too often is given up here. For hosts that know nothing of releases; ours counts itself.
    pub gives_up: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The runner has taken over the folder.
    Begun {
        /// What runs before it have handed over, and no answer has covered.
        handed: Handed,
    },
    /// Something may have changed in inbound.db.
    Changed,
    /// The pending rows without any ack, oldest first, whether due or not. Context rows are left out when nothing is
    /// there that could take them along.
    Looked {
        /// See [`Row`].
        rows: Vec<Row>,
        /// Whether these are all but context rows.
        all: bool,
    },
    /// The host is away, or its file cannot be read at the moment.
    LookFailed,
    /// The claim is on record. Ids that are missing here had an ack already.
    Claimed {
        /// What is ours now.
        ids: Vec<String>,
    },
    /// The script of a task has ended.
    ScriptEnded {
        /// The task's message.
        id: String,
        /// Whether the agent is to be asked.
        wake: bool,
    },
    /// The provider was asked to take a push into its open query.
    Pushed {
        /// The push.
        id: String,
        /// Whether it did.
        taken: bool,
    },
    /// The provider shows a sign of life that needs nothing else.
    Activity,
    /// The provider's conversation goes by this token now.
    Init {
        /// Opaque.
        continuation: String,
    },
    /// The agent has taken up a push.
    Started {
        /// The push.
        id: String,
    },
    /// A tool began.
    ToolStarted {
        /// The tool call.
        id: String,
        /// The tool.
        name: String,
        /// Its declared time.
        timeout: Option<Ms>,
    },
    /// A tool ended.
    ToolEnded {
        /// The tool call.
        id: String,
    },
    /// The provider waits before it tries its service again.
    Retrying {
        /// Why.
        reason: String,
        /// How long.
        wait: Ms,
    },
    /// The agent has answered. The text is kept under `answer` by the loop.
    Answered {
        /// Names the text.
        answer: u64,
        /// The pushes that the turn took in.
        covers: Vec<String>,
        /// What the text holds.
        said: Said,
    },
    /// The query is over.
    Failed(TurnError),
    /// The runner is asked to end.
    StopAsked,
    /// Time has passed.
    Tick,
}

/// What decisions need of the text of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Blocks with a text to a destination that exists.
    pub messages: usize,
    /// Blocks to a destination that does not.
    pub unknown: usize,
    /// There is text outside of blocks and of internal parts.
    pub bare: bool,
    /// The agent has told a chat something by a tool since the turn began.
    pub by_tool: bool,
    /// There is nothing at all in it, not even a part for itself.
    pub empty: bool,
    /// It is the output of a command that the provider has run by itself; no agent has said it.
    pub local_command: bool,
}

impl Said {
    /// Why the agent is asked once more: nothing of what it said can be sent, and that may be a mistake.
    fn problem(&self) -> Option<Problem> {
        match self {
            Self { messages: 1.., .. } | Self { by_tool: true, .. } => None,
            Self { unknown: 1.., .. } => Some(Problem::Unknown),
            Self { bare: true, .. } => Some(Problem::Bare),
            Self { empty: true, .. } => Some(Problem::Empty),
            _ => None,
        }
    }
}

/// Why nothing of an answer was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is text outside of blocks, and nothing else.
    Bare,
    /// There is a block to a destination that does not exist.
    Unknown,
    /// There is nothing.
    Empty,
}

/// What is to be done, in this order, each before the next. Writes that a lock prevents are tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read the pending rows; answered by [`Input::Looked`] or [`Input::LookFailed`].
    Look,
    /// Claim these rows in one transaction, in which the others fail or are over; answered by [`Input::Claimed`].
    Claim {
        /// To be ours.
        ids: Vec<String>,
        /// Unusable rows, each with its reason.
        failed: Vec<(String, String)>,
        /// Context rows for which there is no place in the prompt: completed unread.
        omitted: Vec<String>,
    },
    /// Acknowledge a row of the system that no tool waits for: an answer that came too late, for example.
    Consume {
        /// The row.
        id: String,
    },
    /// Forget the conversation, say so to where the command came from and complete it.
    Clear {
        /// The command's row.
        id: String,
    },
    /// Run the script of a task; answered by [`Input::ScriptEnded`].
    RunScript {
        /// The task's message.
        id: String,
    },
    /// End the script that runs.
    KillScript,
    /// Complete a task whose script said that there is nothing to do.
    Gate {
        /// The task's message.
        id: String,
    },
    /// Begin a query with this push; its failure comes as [`Input::Failed`].
    Start {
        /// Begin a fresh conversation.
        fresh: bool,
        /// The first push.
        push: Spec,
    },
    /// Hand a push to the open query; answered by [`Input::Pushed`].
    Push(Spec),
    /// Let the query go.
    EndQuery,
    /// End the query at once.
    AbortQuery,
    /// Keep the token of the conversation.
    KeepContinuation {
        /// Opaque.
        continuation: String,
    },
    /// Forget the conversation: the provider does not know it any more.
    DropContinuation,
    /// Send what the answer holds and complete these rows, in one transaction.
    Settle {
        /// Names the text; `None` when there is nothing to send.
        answer: Option<u64>,
        /// The rows that it covers, oldest first; none when the agent spoke by itself.
        rows: Vec<String>,
        /// The text is the output of a command: it goes, as it is, to where the one row came from.
        raw: bool,
    },
    /// Forget the text of an answer.
    Forget {
        /// Names the text.
        answer: u64,
    },
    /// Give rows back, or fail them for good, with what was wrong.
    Return {
        /// One for each row.
        verdicts: Vec<Verdict>,
    },
    /// Write the facts about what is under way ([`State::working`], [`State::tools`], [`State::provider_wait`]).
    Announce,
    /// Touch the heartbeat; `if_alive` asks the query first.
    Touch {
        /// Only when the provider is there and at work.
        if_alive: bool,
    },
    /// End the process: all is on record.
    Exit,
}

/// What is handed to the provider in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// See [`crate::provider::Push::id`].
    pub id: String,
    /// Of what it is made.
    pub content: Content,
}

/// Of what a push is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Messages, oldest first.
    Messages {
        /// Their ids.
        ids: Vec<String>,
        /// How many context messages were left out.
        omitted: usize,
    },
    /// The text of one message, as it is.
    Command {
        /// Its id.
        id: String,
    },
    /// The agent is asked to say again, wrapped, what it said last.
    Nudge {
        /// What was wrong with it.
        problem: Problem,
    },
}

/// What becomes of a claim that earned no completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The row.
    pub id: String,
    /// Failed for good, or given back.
    pub failed: bool,
    /// One word for the kind of reason.
    pub class: &'static str,
    /// In words.
    pub reason: String,
    /// When it may be tried again.
    pub not_before: Option<Wall>,
}

impl State {
    /// Takes one input and says what is to be done.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut step = state::Step { state: self, now, effects: Vec::new() };
        step.take(input);
        step.advance();
        step.effects
    }

    /// The ids that are claimed, pushed and started, for the fact `lamplighter.turn`.
    pub fn working(&self) -> Working {
        self.as_working()
    }
}
