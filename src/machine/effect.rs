//! Everything that the machine can ask for, as verbs. Reasons are codes with parameters; words are chosen where
//! an effect is performed.

use super::policy::Policy;
use crate::base::{Attempt, EffectId, MessageNo, Ms, SessionName, SessionNo, Wall};
use crate::session::rows::Address;

/// One effect. Those that [`Effect::completes`] end in exactly one input that carries their id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Build the session's folder, if it is not there, with its routing. Inbound lane. Ends in `EffectDone`.
    CreateSession {
        /// Which.
        session: SessionNo,
        /// Its folder.
        name: SessionName,
        /// Its chat.
        origin: Address,
    },
    /// Insert a row into messages_in if none of that id is there. Inbound lane. Ends in `InboundWritten`.
    WriteInbound {
        /// Whose.
        session: SessionNo,
        /// The machine's number of it.
        message: MessageNo,
        /// messages_in.id.
        id: String,
        /// Its text.
        body: Body,
        /// May wake the agent.
        trigger: bool,
        /// Its reply address.
        origin: Address,
        /// Its time.
        timestamp: Wall,
    },
    /// Change a row of messages_in. Inbound lane. Ends in `EffectDone`.
    UpdateInbound {
        /// Whose.
        session: SessionNo,
        /// The machine's number of it.
        message: MessageNo,
        /// messages_in.id.
        id: String,
        /// The change.
        change: InboundChange,
    },
    /// Write the `delivered` row. Inbound lane. Ends in `EffectDone`.
    RecordDelivery {
        /// Whose.
        session: SessionNo,
        /// The machine's number of it.
        message: MessageNo,
        /// messages_out.id.
        id: String,
        /// Whether it arrived; everything else is `failed` on the wire.
        delivered: bool,
        /// The platform's id of it.
        platform_id: Option<String>,
        /// When.
        at: Wall,
    },
    /// Replace the session's destinations and routing by what the directory says. Inbound lane. Ends in `EffectDone`.
    ProjectDestinations {
        /// Whose.
        session: SessionNo,
        /// Its chat.
        origin: Address,
    },
    /// Tell the channel that the message is on disk.
    AcceptInbound {
        /// The channel type.
        channel: String,
        /// The arrival.
        receipt: u64,
        /// It was on disk before.
        duplicate: bool,
    },
    /// Tell the channel that the message was not taken.
    RefuseInbound {
        /// The channel type.
        channel: String,
        /// The arrival.
        receipt: u64,
        /// Why.
        reason: Refusal,
    },
    /// Start the session's container. Container lane. Ends in `ContainerStarted` or `ContainerStartFailed`.
    StartContainer {
        /// Whose.
        session: SessionNo,
        /// Which life of it.
        attempt: Attempt,
    },
    /// Ask the container to stop, and kill it after the grace. Its outcome is `ContainerExited`.
    StopContainer {
        /// Whose.
        session: SessionNo,
        /// Which life of it.
        attempt: Attempt,
        /// Why, for people.
        reason: StopReason,
        /// Time before it is killed.
        grace: Ms,
    },
    /// Look at the session: heartbeat, liveness, rows. Ends in `Looked`, but see [`LookWhy::Inbound`].
    Look {
        /// Whose.
        session: SessionNo,
        /// What for.
        why: LookWhy,
    },
    /// Hand a message to its recipient. Delivery lane. Ends in `Delivered` or `DeliveryFailed`.
    Deliver {
        /// Whose.
        session: SessionNo,
        /// The machine's number of it.
        message: MessageNo,
        /// Where to.
        to: Address,
        /// What.
        payload: Payload,
        /// The same for every try of one delivery: the id of its first `Deliver`.
        key: EffectId,
        /// Which try, from 1.
        number: u32,
        /// The channel drops repeats of the key, so nothing is lost by repeating it after a crash.
        idempotent: bool,
    },
    /// Remove the message's outbox folder. Best effort.
    DiscardOutbox {
        /// Whose.
        session: SessionNo,
        /// messages_out.id.
        id: String,
    },
    /// Show or hide that the agent works.
    SetTyping {
        /// The chat.
        to: Address,
        /// Works.
        on: bool,
    },
    /// Tell the chat that the turn of one of its messages ended; all replies to it were handed out before.
    TellSettled {
        /// The chat.
        to: Address,
        /// messages_in.id.
        id: String,
        /// How.
        outcome: Outcome,
    },
    /// Move outbound.db aside and build a fresh one. Container lane. Ends in `EffectDone`.
    ResetOutbound {
        /// Whose.
        session: SessionNo,
    },
    /// Answer an operator.
    Answer {
        /// The request.
        request: u64,
        /// The answer.
        reply: Reply,
    },
    /// Tell the operator that something was not as it should be.
    Complain {
        /// About whom.
        session: Option<SessionNo>,
        /// What.
        cause: Cause,
        /// How often since the last complaint of this cause about this session.
        count: u32,
        /// Details.
        detail: String,
    },
}

/// Where the text of an inbound row comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The arrival of this receipt on this channel.
    Arrived {
        /// The channel type.
        channel: String,
        /// The arrival.
        receipt: u64,
    },
    /// A note of the host to the agent.
    Note(AgentNote),
    /// The answer to a question, as a `question_response` (contract 11). Its words stand in the question's row.
    Answer {
        /// The question.
        question: MessageNo,
        /// The rowid of its row.
        rowid: i64,
        /// messages_out.id of it.
        id: String,
        /// The option, from 0.
        option: u16,
        /// The arrival that chose it, until the daemon that took it has ended.
        arrival: Option<ArrivalRef>,
    },
}

/// An arrival that waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivalRef {
    /// The channel type.
    pub channel: String,
    /// The arrival.
    pub receipt: u64,
    /// The platform's message id.
    pub id: String,
}

/// What the host tells an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentNote {
    /// A message of the agent did not arrive.
    NotDelivered {
        /// messages_out.id.
        id: String,
        /// What became of it.
        end: DeliveryEnd,
    },
    /// More messages of the agent did not arrive than it was told of one by one.
    AndMore {
        /// How many.
        count: u32,
        /// messages_out.id of the last of them.
        id: String,
        /// What became of that one.
        end: DeliveryEnd,
    },
}

/// A change to a row of messages_in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundChange {
    /// It is done.
    Complete,
    /// It is given up.
    Fail,
    /// It waits again.
    Reschedule {
        /// Abnormal ends so far.
        tries: u32,
        /// Not before; none for at once.
        process_after: Option<Wall>,
    },
}

/// What is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A row of messages_out.
    Row {
        /// Its rowid.
        rowid: i64,
        /// Its id.
        id: String,
        /// What it answers.
        in_reply_to: Option<String>,
    },
    /// Words of the host.
    Notice(Notice),
}

/// What the host tells a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A message ended abnormally too often.
    Parked {
        /// messages_in.id.
        id: String,
        /// How often.
        tries: u32,
    },
    /// The agent gave a message up.
    Failed {
        /// messages_in.id.
        id: String,
        /// Why.
        reason: String,
    },
    /// An answer came after its question had waited for so long.
    TooLate {
        /// The platform's id of the answer.
        id: String,
        /// How long the question waited.
        waited: Ms,
    },
}

/// Why an arrival was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The daemon is stopping.
    ShuttingDown,
    /// Its id cannot name a row.
    BadId,
    /// It could not be written.
    NotWritten(String),
    /// It is larger than a row may be.
    TooLarge,
    /// So many messages of this chat wait already.
    TooMany(u32),
    /// The disk has less free space than is kept in reserve.
    NoSpace,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Nothing to do for the idle time.
    Idle,
    /// Idle, and another session needs its slot.
    MakeRoom,
    /// It held a claim and gave no sign of life.
    ClaimSilent,
    /// It was silent beyond the ceiling.
    Silent,
    /// It holds a lock on inbound.db.
    HoldsLock,
    /// Its outbound.db cannot be read.
    Unreadable,
    /// An operator asked for it.
    Operator,
    /// The daemon stops.
    Shutdown,
    /// It was left by an earlier daemon.
    Leftover,
    /// Its folder takes more room than it may.
    TooLarge,
}

impl StopReason {
    /// Whether the stop says something about the messages that were being worked on.
    pub fn blames(self) -> bool {
        matches!(self, Self::ClaimSilent | Self::Silent | Self::HoldsLock | Self::TooLarge)
    }
}

/// What a look is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookWhy {
    /// A container is to be stopped for this reason.
    BeforeStop(StopReason),
    /// A container is gone: what it left decides what comes next.
    AfterExit,
    /// A session was found at start or is to be read again.
    Found,
    /// A quarantined session is tried again.
    Quarantine,
    /// inbound.db could not be read or written: it is read again as at the start. Inbound lane. Ends in `InboundRead`.
    Inbound,
}

/// How the turn of a message ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Completed,
    /// Given up by the agent.
    Failed(String),
    /// Given up by the host after so many tries.
    Parked(u32),
    /// Dropped by an operator.
    Dropped,
    /// It was over before this repeat of it came.
    Before,
}

/// How a delivery ended, other than well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryEnd {
    /// The channel refused it for good, or it failed for too long.
    Failed(String),
    /// The agent may not send there.
    Denied(Denial),
    /// No recipient came in time.
    Expired,
    /// It was begun and not heard of.
    Unknown,
    /// Dropped by an operator.
    Dropped,
    /// Its channel did not come up in time.
    ChannelDown,
}

/// Why an agent may not send something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The row names no chat.
    NoAddress,
    /// The chat is not one of the session's destinations.
    NotADestination,
    /// This host does not carry out that action.
    UnsupportedAction(String),
    /// The content cannot be used.
    Malformed(String),
}

/// The answer to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It was done, or set going.
    Done,
    /// There is no such thing, or nothing to do about it.
    No(String),
}

/// What the machine complains about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// An input that is illegal now.
    IllegalInput,
    /// A reading began again although nothing was said about it.
    Rewound,
    /// A session folder cannot be read.
    Unreadable,
    /// A container did not start.
    StartFailed,
    /// A container was stopped because it was stuck.
    Stuck,
    /// A container ended badly.
    Crashed,
    /// Something asked for was not heard of in time.
    Overdue,
    /// An effect could not be done.
    EffectFailed,
    /// A message was parked.
    Parked,
    /// A delivery ended without arriving.
    NotDelivered,
}

impl Effect {
    /// Whether it ends in an input that carries its id.
    pub fn completes(&self) -> bool {
        match self {
            Self::CreateSession { .. }
            | Self::WriteInbound { .. }
            | Self::UpdateInbound { .. }
            | Self::RecordDelivery { .. }
            | Self::ProjectDestinations { .. }
            | Self::StartContainer { .. }
            | Self::Look { .. }
            | Self::Deliver { .. }
            | Self::ResetOutbound { .. } => true,
            Self::AcceptInbound { .. }
            | Self::RefuseInbound { .. }
            | Self::StopContainer { .. }
            | Self::DiscardOutbox { .. }
            | Self::SetTyping { .. }
            | Self::TellSettled { .. }
            | Self::Answer { .. }
            | Self::Complain { .. } => false,
        }
    }

    /// Whether it must wait until the journal's record of it is durable: repeating it would be seen outside.
    pub fn durable_first(&self) -> bool {
        matches!(self, Self::Deliver { idempotent: false, .. })
    }

    /// Its name, for logs and transcripts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateSession { .. } => "create-session",
            Self::WriteInbound { .. } => "write-inbound",
            Self::UpdateInbound { .. } => "update-inbound",
            Self::RecordDelivery { .. } => "record-delivery",
            Self::ProjectDestinations { .. } => "project-destinations",
            Self::AcceptInbound { .. } => "accept-inbound",
            Self::RefuseInbound { .. } => "refuse-inbound",
            Self::StartContainer { .. } => "start-container",
            Self::StopContainer { .. } => "stop-container",
            Self::Look { .. } => "look",
            Self::Deliver { .. } => "deliver",
            Self::DiscardOutbox { .. } => "discard-outbox",
            Self::SetTyping { .. } => "set-typing",
            Self::TellSettled { .. } => "tell-settled",
            Self::ResetOutbound { .. } => "reset-outbound",
            Self::Answer { .. } => "answer",
            Self::Complain { .. } => "complain",
        }
    }
}

/// The wait before try `n` (from 1) of something, doubled from `first` to at most `cap`.
pub fn backoff(first: Ms, n: u32, cap: Ms) -> Ms {
    first.doubled(n.saturating_sub(1), cap)
}

/// The wait before a message that ended abnormally `tries` times is tried again.
pub fn claim_backoff(policy: &Policy, tries: u32) -> Ms {
    // Wrong on purpose in a build of its own, by a test that a replay names exactly the record and field.
    let first =
        if cfg!(feature = "sabotage") { Ms(policy.claim_backoff.0 + 1) } else { policy.claim_backoff };
    backoff(first, tries, Ms::days(1))
}
