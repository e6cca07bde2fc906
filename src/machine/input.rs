//! Everything that can happen to the machine, in the past tense. Facts only: no message text.

use super::effect::LookWhy;
use super::policy::Policy;
use super::timers::TimerKey;
use crate::base::{Attempt, BootNo, EffectId, MessageNo, Ms, SessionName, SessionNo, Wall};
use crate::session::rows::Address;

/// One input. `Machine::step` takes it with the time at which it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The daemon started. First input of every boot.
    Booted(Booted),
    /// A session folder was found at start (or appeared): what its inbound.db says. Rows win over the journal.
    SessionFound(SessionFound),
    /// The runtime listed what still lives, once all sessions were found; where it was away then, when it is back.
    ContainersFound {
        /// Attempts that still live. They cannot be adopted by this runtime unless it says so.
        alive: Vec<(SessionNo, Attempt)>,
        /// Whether the runtime can take a living container over from the daemon before.
        adoptable: bool,
    },
    /// The wall clock was read at start or moved by more than a second.
    ClockSet {
        /// Wall clock minus machine time, in microseconds.
        offset: i64,
    },
    /// The configuration changed.
    PolicyChanged(Policy),
    /// A channel brought a message.
    MessageArrived(Arrival),
    /// An operator asked for something.
    OperatorAsked {
        /// Names the request; the answer carries it.
        request: u64,
        /// What is asked for.
        ask: Ask,
    },
    /// A `WriteInbound` ended: the row is on disk.
    InboundWritten {
        /// The effect that ended.
        effect: EffectId,
        /// The row's seq.
        seq: i64,
        /// A row of that id was there already, so nothing was written.
        duplicate: bool,
    },
    /// A `WriteInbound` could not be done.
    InboundWriteFailed {
        /// The effect that ended.
        effect: EffectId,
        /// Why, for the sender.
        reason: String,
    },
    /// A write to a session's inbound.db has waited for its lock for [`super::policy::INBOUND_LOCK_MAX`].
    InboundLocked {
        /// The session whose container holds the lock.
        session: SessionNo,
    },
    /// outbound.db was read after a hint.
    OutboundRead {
        /// Whose.
        session: SessionNo,
        /// What was found.
        reading: Reading,
    },
    /// A `Look` ended.
    Looked {
        /// The effect that ended.
        effect: EffectId,
        /// Whose.
        session: SessionNo,
        /// The heartbeat's mtime is not the one seen last.
        heartbeat_changed: bool,
        /// Whether the runtime says that the attempt lives; none when it does not know.
        alive: Option<bool>,
        /// What was found in outbound.db.
        reading: Reading,
    },
    /// The heartbeat's mtime changed. At most one of these per session every 5 s.
    HeartbeatSeen {
        /// Whose.
        session: SessionNo,
    },
    /// A `StartContainer` ended well.
    ContainerStarted {
        /// The effect that ended.
        effect: EffectId,
    },
    /// A `StartContainer` ended badly.
    ContainerStartFailed {
        /// The effect that ended.
        effect: EffectId,
        /// Why.
        reason: String,
    },
    /// A container's main process ended and nothing of it is left.
    ContainerExited {
        /// Whose.
        session: SessionNo,
        /// Which life of it.
        attempt: Attempt,
        /// How.
        exit: Exit,
    },
    /// A `Deliver` was accepted by its recipient.
    Delivered {
        /// The effect that ended.
        effect: EffectId,
        /// The platform's id of the message, if it has one.
        platform_id: Option<String>,
    },
    /// A `Deliver` did not succeed.
    DeliveryFailed {
        /// The effect that ended.
        effect: EffectId,
        /// What may be done about it.
        class: DeliveryFault,
        /// Why.
        reason: String,
        /// The channel asks to wait at least so long.
        retry_after: Option<Ms>,
    },
    /// A channel is up, or one of its chats has a recipient now.
    ChannelUp {
        /// The channel type.
        channel: String,
        /// The chat that has a recipient now; none for the channel as a whole.
        chat: Option<String>,
        /// The channel drops repeats of an idempotency key.
        idempotent: bool,
    },
    /// A channel went down.
    ChannelDown {
        /// The channel type.
        channel: String,
    },
    /// An effect that has nothing to tell ended.
    EffectDone {
        /// The effect that ended.
        effect: EffectId,
        /// Why it could not be done.
        error: Option<String>,
    },
    /// A timer's deadline has passed.
    TimerDue {
        /// Which.
        key: TimerKey,
        /// The deadline that it was set to; an older one fires nothing.
        deadline: crate::base::At,
    },
    /// The daemon was asked to stop, and its containers with it.
    ShutdownAsked,
    /// Sessions whose files are as they were when the daemon before ended; in place of their `SessionFound`.
    SessionsUnchanged {
        /// Which.
        sessions: Vec<SessionNo>,
    },
    /// A channel brought a message while the disk had less free space than is kept in reserve.
    ArrivalWithoutSpace(Arrival),
    /// A channel brought a message to a chat in which questions were asked.
    PossibleAnswer {
        /// The message.
        arrival: Arrival,
        /// What its first line may answer.
        line: Line,
    },
    /// The daemon was asked to stop and to leave its containers to the next one.
    DetachAsked,
    /// A session's `out/` takes more room than it may.
    FolderTooLarge {
        /// Which.
        session: SessionNo,
        /// How much there is, how much may be, and what to do.
        detail: String,
    },
    /// As `SessionFound`, of a session with more pending rows than are taken at once: those that are not named stand.
    SessionFoundInPart(SessionFound),
    /// A `Look` at inbound.db ended.
    InboundRead {
        /// The effect that ended.
        effect: EffectId,
        /// What it says.
        found: SessionFound,
        /// All pending rows are named.
        whole: bool,
    },
    /// A session's inbound.db turned out damaged while it was written.
    InboundUnwritable {
        /// Which.
        session: SessionNo,
        /// What is wrong and what to do, for people.
        detail: String,
    },
    /// A channel brought a message and knows when it was sent.
    MessageArrivedAt {
        /// The message.
        arrival: Arrival,
        /// What its first line may answer, where questions were asked in its chat.
        line: Option<Line>,
        /// When it was sent.
        sent: Wall,
    },
    /// The runtime as a whole is away: nothing can be started, stopped or heard of. In a boot before
    /// `ContainersFound`: what an earlier daemon left is not known until that comes.
    RuntimeDown {
        /// Why, and what to do.
        reason: String,
    },
    /// The runtime is back; after `ContainersFound` where that was owed.
    RuntimeUp,
}

/// What the daemon knows when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booted {
    /// This boot's number.
    pub boot: BootNo,
    /// The build that runs.
    pub build: String,
    /// The policy in force.
    pub policy: Policy,
    /// The agent group that all chats talk to.
    pub group: String,
    /// Wall clock minus machine time, in microseconds.
    pub offset: i64,
    /// How long no daemon ran, already part of `at`.
    pub downtime: Ms,
}

/// What a session folder's inbound.db says at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFound {
    /// Its folder.
    pub name: SessionName,
    /// Its `session_routing` row.
    pub origin: Address,
    /// All rows that are still `pending`, in seq order.
    pub pending: Vec<PendingRow>,
    /// Those of the machine's open outbound messages of this session that have a `delivered` row.
    pub delivered: Vec<MessageNo>,
    /// The folder's inbound.db could not be read; nothing above is known.
    pub unreadable: Option<String>,
}

/// One pending row of messages_in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRow {
    /// messages_in.id.
    pub id: String,
    /// messages_in.seq.
    pub seq: Option<i64>,
    /// May wake the agent.
    pub trigger: bool,
    /// Abnormal ends so far.
    pub tries: u32,
    /// process_after as an instant; none for now. An unreadable text counts as never due.
    pub due: Due,
    /// Where it came from.
    pub origin: Address,
}

/// When a pending row may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// At once.
    Now,
    /// Not before this instant.
    At(Wall),
    /// Never: its process_after cannot be read as a time.
    Never,
}

/// A message as a channel brought it. Its body stays with the host, keyed by receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The channel type.
    pub channel: String,
    /// Names the arrival towards its channel until it is accepted or refused.
    pub receipt: u64,
    /// The chat's platform id.
    pub chat: String,
    /// The thread in it.
    pub thread: Option<String>,
    /// The platform's message id.
    pub message_id: String,
    /// What the decisions need of the text.
    pub facts: TextFacts,
}

/// What decisions need of a text, instead of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextFacts {
    /// Length in bytes.
    pub bytes: u32,
    /// Files that came with it.
    pub attachments: u16,
    /// Its slash command, lower-case, if it begins with one.
    pub command: Option<String>,
    /// Keyed digest of the body.
    pub digest: u64,
}

/// What a question is matched with: the first line of a text, trimmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The number that it is.
    pub number: Option<u32>,
    /// Keyed digest of it, in lower case.
    pub digest: u64,
}

/// What one read of outbound.db gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It could be read.
    Rows(Rows),
    /// It could not.
    Unreadable {
        /// What may be done about it.
        kind: Unreadable,
        /// What was wrong, for people.
        detail: String,
    },
}

/// What was read, all in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// New rows of messages_out in rowid order.
    pub rows: Vec<OutRow>,
    /// The remembered row was gone or had another id, so the table was read again from its beginning.
    pub rewound: bool,
    /// There are more rows than were read.
    pub more: bool,
    /// The ids that were looked up in processing_ack, with what was found.
    pub acks: Vec<(MessageNo, Option<AckFound>)>,
    /// Facts (`lamplighter.*`) that matter to the machine.
    pub facts: Vec<Fact>,
    /// The tool in flight.
    pub tool: Option<Tool>,
}

/// Why a session's files cannot be read, as far as decisions differ: outbound.db, but for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unreadable {
    /// Locked for longer than a read waits, or replaced while it was opened; passes by itself.
    Busy,
    /// A killed writer left a journal that only a writer can roll back.
    HotJournal,
    /// The file is missing.
    Missing,
    /// Damaged, hostile or of another format: an operator must look at it.
    Bad,
    /// A read takes longer than its budget. Once it may be the machine's load, again and again it is the file.
    Slow,
    /// Not outbound.db: inbound.db, the host's own file, cannot be read or written.
    Inbound,
}

/// One row of messages_out, without its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutRow {
    /// Its rowid, the order of delivery.
    pub rowid: i64,
    /// messages_out.id.
    pub id: String,
    /// What it is.
    pub kind: OutKind,
    /// Where it wants to go.
    pub to: Address,
    /// messages_out.in_reply_to.
    pub in_reply_to: Option<String>,
    /// deliver_after as an instant.
    pub not_before: Option<Wall>,
    /// It has a `delivered` row already (looked up when the table is read from its beginning).
    pub settled: bool,
    /// It names files in its outbox folder.
    pub files: bool,
    /// Keyed digest of its content.
    pub digest: u64,
}

/// What a row of messages_out is, as far as decisions differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutKind {
    /// Something to say to a chat.
    Message,
    /// A request to the host (contract 13), with its action.
    System(String),
    /// Content that cannot be used, with why.
    Malformed(String),
    /// A question to a chat (contract 12).
    Question(QuestionFacts),
}

/// What decisions need of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionFacts {
    /// Its questionId.
    pub question: String,
    /// Keyed digests of its options' labels, trimmed and in lower case.
    pub labels: Vec<u64>,
    /// How long it waits for an answer.
    pub timeout: Ms,
}

/// One row of processing_ack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckFound {
    /// Its status.
    pub status: Ack,
    /// Tells this claim from an earlier one: digest of its rowid and status_changed.
    pub mark: u64,
}

/// The statuses of processing_ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Claimed.
    Processing,
    /// Done.
    Completed,
    /// Given up by the runner, for good.
    Failed,
}

/// A fact that the runner wrote into session_state (design 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The attempt that writes.
    Attempt(Attempt),
    /// The runner waits for something it expects to end by then: a question, a provider's back-off.
    Wait {
        /// Until when.
        until: Wall,
    },
    /// A claim was given back.
    Released {
        /// Which message.
        message: MessageNo,
        /// Not its fault: the runner was asked to stop.
        blameless: bool,
        /// Why.
        reason: String,
        /// Not before this instant.
        not_before: Option<Wall>,
        /// Tells this release from an earlier one.
        mark: u64,
    },
    /// A message was given up.
    Failed {
        /// Which message.
        message: MessageNo,
        /// Why.
        reason: String,
    },
    /// A claim was given back because the service behind the agent could not be had.
    Missed {
        /// Which message.
        message: MessageNo,
        /// Why.
        reason: String,
        /// Not before this instant.
        not_before: Option<Wall>,
        /// Tells this release from an earlier one.
        mark: u64,
    },
}

/// A tool in flight (contract 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Tells this call from the one before it.
    pub mark: u64,
    /// How long it may take, as declared.
    pub declared: Option<Ms>,
}

/// How a container ended.
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

/// What may be done about a delivery that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryFault {
    /// Try again later.
    Transient,
    /// Never try again.
    Permanent,
    /// Nobody there to receive it yet.
    NoRecipient,
    /// It was begun and not heard of.
    InDoubt,
}

/// What an operator can ask for. Names were resolved and rows fetched by the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Stop the container and hold it stopped.
    StopSession(SessionNo),
    /// Lift the hold, the back-off and the quarantine.
    StartSession(SessionNo),
    /// Move a bad outbound.db aside and begin with a fresh one.
    ResetSession(SessionNo),
    /// Try an inbound message again from no tries.
    RetryMessage {
        /// Whose.
        session: SessionNo,
        /// The row as it stands.
        row: PendingRow,
    },
    /// Give a message up, in either direction.
    DropMessage {
        /// Whose.
        session: SessionNo,
        /// Its id.
        id: String,
    },
    /// Deliver an outbound row in a new delivery, whatever became of the last one.
    ResendMessage {
        /// Whose.
        session: SessionNo,
        /// The row.
        row: OutRow,
    },
}

impl Input {
    /// Its name, for logs and transcripts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Booted(_) => "booted",
            Self::SessionFound(_) => "session-found",
            Self::ContainersFound { .. } => "containers-found",
            Self::ClockSet { .. } => "clock-set",
            Self::PolicyChanged(_) => "policy-changed",
            Self::MessageArrived(_) => "message-arrived",
            Self::OperatorAsked { .. } => "operator-asked",
            Self::InboundWritten { .. } => "inbound-written",
            Self::InboundWriteFailed { .. } => "inbound-write-failed",
            Self::InboundLocked { .. } => "inbound-locked",
            Self::OutboundRead { .. } => "outbound-read",
            Self::Looked { .. } => "looked",
            Self::HeartbeatSeen { .. } => "heartbeat-seen",
            Self::ContainerStarted { .. } => "container-started",
            Self::ContainerStartFailed { .. } => "container-start-failed",
            Self::ContainerExited { .. } => "container-exited",
            Self::Delivered { .. } => "delivered",
            Self::DeliveryFailed { .. } => "delivery-failed",
            Self::ChannelUp { .. } => "channel-up",
            Self::ChannelDown { .. } => "channel-down",
            Self::EffectDone { .. } => "effect-done",
            Self::TimerDue { .. } => "timer-due",
            Self::ShutdownAsked => "shutdown-asked",
            Self::SessionsUnchanged { .. } => "sessions-unchanged",
            Self::ArrivalWithoutSpace(_) => "arrival-without-space",
            Self::PossibleAnswer { .. } => "possible-answer",
            Self::DetachAsked => "detach-asked",
            Self::FolderTooLarge { .. } => "folder-too-large",
            Self::SessionFoundInPart(_) => "session-found-in-part",
            Self::InboundRead { .. } => "inbound-read",
            Self::InboundUnwritable { .. } => "inbound-unwritable",
            Self::MessageArrivedAt { .. } => "message-arrived-at",
            Self::RuntimeDown { .. } => "runtime-down",
            Self::RuntimeUp => "runtime-up",
        }
    }
}

impl LookWhy {
    /// Whether this look closes an attempt.
    pub fn closes(self) -> bool {
        matches!(self, Self::AfterExit)
    }
}
