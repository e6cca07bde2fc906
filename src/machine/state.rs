//! What the machine knows: a set of components, written only through accessors that mark what was touched.
//!
//! Invariant: live state only; what is finished leaves it.
//! Invariant: ordered maps only, keyed by number; names are looked up, never sorted by.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::effect::{Body, Cause, DeliveryEnd, LookWhy, Notice, Outcome, StopReason};
use super::input::{Exit, QuestionFacts, Unreadable};
use super::policy::Policy;
use super::shared_map::SharedMap;
use super::timers::Timers;
use crate::base::{
    At, Attempt, DestinationNo, EffectId, MessageNo, Ms, RecordNo, SessionName, SessionNo, Wall,
};
use crate::session::rows::Address;

/// One component of the state, the unit of digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ComponentId {
    /// Clock, counters and the stage of the daemon's life.
    Core,
    /// The policy.
    Policy,
    /// Chats, channels and the agent group.
    Directory,
    /// Who waits for a slot.
    Slots,
    /// One session.
    Session(SessionNo),
    /// One open inbound message.
    Inbound(MessageNo),
    /// One open outbound message.
    Outbound(MessageNo),
    /// One destination.
    Destination(DestinationNo),
    /// One open effect.
    Effect(EffectId),
    /// One question, by the number of the outbound message that asked it.
    Question(MessageNo),
    /// Complaints made about no session in particular.
    Complaints,
    /// That the runtime is away, or was until a moment ago.
    Runtime,
    /// That the service behind the agent was missed for one open inbound message.
    Missed(MessageNo),
}

/// The stage of the daemon's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Between `Booted` and `ContainersFound`, or `RuntimeDown` in its place: nothing is started or sent.
    Booting,
    /// Open for work.
    Open,
    /// Asked to stop: nothing new is taken or started.
    Closing,
}

/// Clock, counters and the stage of the daemon's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// The time of the last input.
    pub at: At,
    /// The number of the next record.
    pub record: RecordNo,
    /// Wall clock minus machine time, in microseconds.
    pub offset: i64,
    /// The stage.
    pub life: Life,
    /// The next session's number.
    pub next_session: u32,
    /// The next message's number.
    pub next_message: u64,
    /// The next destination's number.
    pub next_destination: u32,
}

/// Chats, channels and the agent group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// The agent group's folder, and its id on the wire.
    pub group: String,
    /// The session of each chat, by channel type and platform id.
    pub chats: SharedMap<(String, String), SessionNo>,
    /// The channels that were heard of.
    pub channels: BTreeMap<String, Channel>,
}

/// What is known of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// It takes deliveries.
    pub up: bool,
    /// It drops repeats of an idempotency key.
    pub idempotent: bool,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its folder.
    pub name: SessionName,
    /// Its chat.
    pub origin: Address,
    /// The state of its container.
    pub phase: Phase,
    /// Its open inbound messages, in order of arrival.
    pub inbox: BTreeSet<MessageNo>,
    /// Its open outbound messages that come from rows.
    pub outbox: BTreeSet<MessageNo>,
    /// The last row of messages_out that was seen.
    pub cursor: Option<(i64, String)>,
    /// Failed starts and unhealthy ends in a row.
    pub failures: u32,
    /// One of its files could not be read when it was last tried.
    pub trouble: Option<Trouble>,
    /// This attempt has completed something.
    pub progress: bool,
    /// The last time at which anything came from the attempt.
    pub last_sign: At,
    /// Since when it has nothing to do.
    pub idle_since: At,
    /// When it was last looked at for due work; what falls due later has a deadline.
    pub considered: At,
    /// The tool in flight: its mark, since when it was seen, how long it may take.
    pub tool: Option<ToolFlight>,
    /// The runner announced to wait until then.
    pub wait_until: Option<At>,
    /// The runner of this attempt has said its number, so the claims that stand are its own.
    pub attempt_seen: bool,
    /// The look that is under way.
    pub look: Option<LookOpen>,
    /// Changes to inbound.db under way that a start must wait for.
    pub writes_open: u32,
    /// The folder's creation is under way or did not succeed.
    pub folder: FolderState,
    /// An operator holds it stopped.
    pub held: bool,
    /// The chat is shown that the agent works.
    pub typing: bool,
    /// Complaints made: when last, and how many were kept back since.
    pub complaints: Complaints,
}

/// Complaints by cause: when one was made last, and how many were kept back since.
pub type Complaints = BTreeMap<Cause, (At, u32)>;

/// Whether a session's folder exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderState {
    /// It does.
    Present,
    /// It is being built.
    Creating(EffectId),
    /// It could not be built; the next arrival tries again.
    Absent,
}

/// A file of the session cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Since the last try.
    pub since: At,
    /// What is wrong.
    pub kind: Unreadable,
    /// Tries in a row that failed.
    pub failures: u32,
}

/// A tool in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolFlight {
    /// Tells this call from the one before.
    pub mark: u64,
    /// When it was first seen.
    pub since: At,
    /// How long it may take, as declared.
    pub declared: Ms,
}

/// A look under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookOpen {
    /// The effect.
    pub effect: EffectId,
    /// What for.
    pub why: LookWhy,
    /// Since when.
    pub since: At,
}

/// The state of a session's container. Each holds its own data and its `since`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// None runs.
    Stopped {
        /// Since when.
        since: At,
    },
    /// Being started.
    Starting {
        /// Which life.
        attempt: Attempt,
        /// Since when.
        since: At,
        /// The effect waited for.
        effect: EffectId,
        /// What is being done.
        stage: Stage,
    },
    /// Running.
    Running {
        /// Which life.
        attempt: Attempt,
        /// Since when.
        since: At,
    },
    /// Asked to stop.
    Stopping {
        /// Which life.
        attempt: Attempt,
        /// Since when.
        since: At,
        /// Why.
        reason: StopReason,
    },
    /// Gone; the look that closes the attempt has not succeeded yet.
    Closing {
        /// Which life.
        attempt: Attempt,
        /// Since when it is gone.
        since: At,
        /// How it ended.
        exit: Exit,
        /// Why it was stopped, if it was.
        reason: Option<StopReason>,
        /// When it was started.
        started: At,
    },
    /// Failed; waits before the next start.
    BackingOff {
        /// Since when.
        since: At,
    },
    /// Its folder cannot be read; looked at again with back-off.
    Quarantined {
        /// Since when.
        since: At,
        /// What is wrong.
        kind: Unreadable,
    },
}

/// What a start is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Destinations are written into inbound.db.
    Projecting,
    /// The runtime starts the container.
    Launching,
}

impl Phase {
    /// The attempt that lives, or may live.
    pub fn alive(&self) -> Option<Attempt> {
        match *self {
            Self::Starting { attempt, .. }
            | Self::Running { attempt, .. }
            | Self::Stopping { attempt, .. } => Some(attempt),
            _ => None,
        }
    }

    /// Its name, for people and transcripts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stopped { .. } => "stopped",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Stopping { .. } => "stopping",
            Self::Closing { .. } => "closing",
            Self::BackingOff { .. } => "backing-off",
            Self::Quarantined { .. } => "quarantined",
        }
    }

    /// Since when it is in this state.
    pub fn since(&self) -> At {
        match *self {
            Self::Stopped { since }
            | Self::Starting { since, .. }
            | Self::Running { since, .. }
            | Self::Stopping { since, .. }
            | Self::Closing { since, .. }
            | Self::BackingOff { since }
            | Self::Quarantined { since, .. } => since,
        }
    }
}

/// One open inbound message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Whose.
    pub session: SessionNo,
    /// messages_in.id.
    pub id: String,
    /// messages_in.seq, once it is on disk.
    pub seq: Option<i64>,
    /// Its reply address.
    pub origin: Address,
    /// May wake the agent.
    pub trigger: bool,
    /// Turns that it ended abnormally.
    pub tries: u32,
    /// It was in a batch that ended abnormally, and nobody knows which of them did it.
    pub suspect: bool,
    /// Where it stands.
    pub state: InState,
    /// The claim that was void when its attempt ended: the same mark does not count again.
    pub void: Option<u64>,
    /// The release that was taken last: the same mark does not count again.
    pub released: Option<u64>,
    /// The change to its row that is under way.
    pub update: Option<EffectId>,
}

impl Inbound {
    /// Whether it is a note to the agent: context that comes from the agent's side. Said by what never changes of a
    /// message, so a row that was adopted counts too.
    pub fn is_note(&self) -> bool {
        !self.trigger && self.origin.channel_type.as_deref() == Some(super::route::AGENT_CHANNEL)
    }
}

/// Where an inbound message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InState {
    /// Its row is being written.
    Writing {
        /// Since when.
        since: At,
        /// Its text, and so whom to tell.
        body: Body,
    },
    /// On disk, to be taken.
    Queued {
        /// When.
        wait: Wait,
    },
    /// Taken by an attempt.
    Claimed {
        /// Which.
        attempt: Attempt,
        /// Since when.
        since: At,
        /// The claim's mark.
        mark: u64,
    },
    /// Over; its row is being brought up to date.
    Settling {
        /// How it ended.
        outcome: Outcome,
    },
    /// A note of what did not arrive beyond what the agent was told of: written when it has read what it was told.
    Withheld {
        /// How many messages.
        count: u32,
        /// messages_out.id of the last of them.
        id: String,
        /// What became of that one.
        end: DeliveryEnd,
    },
}

/// When a queued message may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// At once.
    Now,
    /// Not before this instant, as its row says.
    Until(Wall),
    /// After a back-off.
    Backoff {
        /// Since when.
        since: At,
        /// How long.
        wait: Ms,
    },
    /// When the suspect that is tried now is settled.
    Held {
        /// Since when.
        since: At,
    },
    /// Never, as its row says.
    Never,
    /// Until the service behind the agent may be had again.
    Missed {
        /// Since when.
        since: At,
        /// How long.
        wait: Ms,
    },
}

/// That the service behind the agent could not be had for an open inbound message. Its own count: it says nothing of
/// the message, and a service may be away for longer than a message that ends turns is borne with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The first time.
    pub first: At,
    /// How often.
    pub times: u32,
    /// What the runner said of it last.
    pub reason: String,
}

/// One open outbound message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Whose.
    pub session: SessionNo,
    /// Where to.
    pub to: Address,
    /// What.
    pub source: Source,
    /// Where it stands.
    pub state: OutState,
    /// Tries begun.
    pub tries: u32,
    /// When it was seen, or fell due.
    pub seen: At,
    /// The id of its first `Deliver`: the key of all its tries.
    pub key: Option<EffectId>,
}

/// What an outbound message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A row of messages_out.
    Row {
        /// Its rowid.
        rowid: i64,
        /// Its id.
        id: String,
        /// What it answers.
        in_reply_to: Option<String>,
        /// It has an outbox folder.
        files: bool,
    },
    /// Words of the host.
    Notice(Notice),
}

/// Where an outbound message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutState {
    /// Not due yet.
    Scheduled {
        /// When it is.
        until: Wall,
    },
    /// In its destination's queue.
    Queued,
    /// Being delivered.
    Delivering {
        /// The effect.
        effect: EffectId,
        /// Since when.
        since: At,
    },
    /// Over; the `delivered` row is being written.
    Recording {
        /// The effect.
        effect: EffectId,
        /// Arrived.
        delivered: bool,
    },
}

/// A destination: one chat and thread, as one session reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Whose.
    pub session: SessionNo,
    /// Where.
    pub to: Address,
    /// What is to go there, in order.
    pub queue: VecDeque<Item>,
    /// Why nothing goes there now.
    pub hold: Hold,
}

/// One place in a destination's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A message.
    Message(MessageNo),
    /// The turn of an inbound message ended here.
    Settled {
        /// messages_in.id.
        id: String,
        /// How.
        outcome: Outcome,
    },
}

/// Why a destination waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It does not.
    None,
    /// The head failed and is tried again. As journals of earlier builds have it; now it is `Failing`.
    Retry {
        /// Since when.
        since: At,
        /// How long.
        wait: Ms,
    },
    /// Nobody is there to receive the head.
    NoRecipient {
        /// Since when: the first time that it was tried in vain.
        since: At,
    },
    /// The head failed and is tried again.
    Failing {
        /// Since when.
        since: At,
        /// How long.
        wait: Ms,
        /// When it first failed.
        first: At,
    },
    /// The head is tried again. If it fails as before, that has lasted since then.
    Trying {
        /// Since when.
        first: At,
        /// It was for want of a recipient.
        nobody: bool,
    },
    /// The channel is down, or not there.
    ChannelDown {
        /// Since when.
        since: At,
    },
}

/// A question that an agent asked a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whose.
    pub session: SessionNo,
    /// The rowid of its row of messages_out.
    pub rowid: i64,
    /// messages_out.id.
    pub id: String,
    /// The chat that was asked.
    pub to: Address,
    /// What answers are matched with.
    pub facts: QuestionFacts,
    /// When it was asked.
    pub asked: At,
    /// Where it stands.
    pub state: QuestionState,
}

/// Where a question stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuestionState {
    /// Its chat has not seen it.
    Asked,
    /// Its chat can answer.
    Open,
    /// Answered.
    Answered {
        /// The platform's id of the message that did it.
        by: String,
        /// messages_in.id of the `question_response`.
        row: String,
        /// The option, from 0.
        option: u16,
        /// The row is on disk.
        on_disk: bool,
        /// Since when.
        since: At,
    },
    /// Nobody answered in time.
    Closed {
        /// Since when.
        since: At,
    },
}

/// The runtime is away, or was until a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Since when.
    pub since: At,
    /// Why, and what to do.
    pub reason: String,
    /// It was away at the start and has not said yet what an earlier daemon left: the attempts on record may live.
    pub unlisted: bool,
    /// When it came back; none while it is away.
    pub back: Option<At>,
}

/// What an open effect belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A session's folder.
    Folder(SessionNo),
    /// The row of an inbound message.
    Row(MessageNo),
    /// A change to the row of an inbound message.
    Update(MessageNo),
    /// A start's projection.
    Projection(SessionNo),
    /// A start.
    Start(SessionNo),
    /// A look.
    Look(SessionNo),
    /// A delivery.
    Delivery(MessageNo),
    /// The record of a delivery.
    Record(MessageNo),
    /// A reset, and the operator's request that asked for it.
    Reset(SessionNo, u64),
}

/// The components. Read through the fields' accessors, written only through the `_mut` ones.
#[derive(Clone, Debug)]
pub struct State {
    core: Core,
    policy: Policy,
    directory: Directory,
    /// Sessions that wait for a slot, first come first served.
    queue: VecDeque<SessionNo>,
    sessions: SharedMap<SessionNo, Session>,
    inbound: SharedMap<MessageNo, Inbound>,
    outbound: SharedMap<MessageNo, Outbound>,
    destinations: SharedMap<DestinationNo, Destination>,
    effects: SharedMap<EffectId, Owner>,
    questions: SharedMap<MessageNo, Question>,
    /// Made about no session in particular.
    complaints: Complaints,
    outage: Option<Outage>,
    missed: SharedMap<MessageNo, Missed>,
    /// Derived from the above, see [`Timers`].
    pub(super) timers: Timers,
    /// Derived: the destination of an address as a session reaches it.
    by_address: BTreeMap<(SessionNo, Address), DestinationNo>,
    /// Derived: the questions of a session.
    by_asker: BTreeSet<(SessionNo, MessageNo)>,
    /// Derived: the notes to the agent of a session.
    by_note: BTreeSet<(SessionNo, MessageNo)>,
    /// Derived: the number of a name.
    by_name: BTreeMap<SessionName, SessionNo>,
    /// Derived: the number of sessions with an attempt alive.
    alive: BTreeSet<SessionNo>,
    touched: BTreeSet<ComponentId>,
}

/// All components by value: what a snapshot carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Clock, counters and stage.
    pub core: Core,
    /// The policy.
    pub policy: Policy,
    /// The directory.
    pub directory: Directory,
    /// Sessions that wait for a slot.
    pub queue: VecDeque<SessionNo>,
    /// The sessions.
    pub sessions: SharedMap<SessionNo, Session>,
    /// The open inbound messages.
    pub inbound: SharedMap<MessageNo, Inbound>,
    /// The open outbound messages.
    pub outbound: SharedMap<MessageNo, Outbound>,
    /// The destinations.
    pub destinations: SharedMap<DestinationNo, Destination>,
    /// The open effects.
    pub effects: SharedMap<EffectId, Owner>,
    /// The questions, open and remembered.
    pub questions: SharedMap<MessageNo, Question>,
    /// Complaints made about no session in particular.
    pub complaints: Complaints,
    /// That the runtime is away, or was until a moment ago.
    pub outage: Option<Outage>,
    /// For which messages the service behind the agent was missed.
    pub missed: SharedMap<MessageNo, Missed>,
}

impl Default for State {
    fn default() -> Self {
        Self::from_parts(Parts {
            core: Core {
                at: At(0),
                record: RecordNo(0),
                offset: 0,
                life: Life::Booting,
                next_session: 1,
                next_message: 1,
                next_destination: 1,
            },
            policy: Policy::default(),
            directory: Directory::default(),
            queue: VecDeque::new(),
            sessions: SharedMap::default(),
            inbound: SharedMap::default(),
            outbound: SharedMap::default(),
            destinations: SharedMap::default(),
            effects: SharedMap::default(),
            questions: SharedMap::default(),
            complaints: Complaints::new(),
            outage: None,
            missed: SharedMap::default(),
        })
    }
}

impl State {
    /// Builds a state from its components; what is derived is derived anew.
    pub fn from_parts(parts: Parts) -> Self {
        let by_name = parts.sessions.iter().map(|(&no, s)| (s.name.clone(), no)).collect();
        let by_address = parts.destinations.iter().map(|(&no, d)| ((d.session, d.to.clone()), no)).collect();
        let alive =
            parts.sessions.iter().filter(|(_, s)| s.phase.alive().is_some()).map(|(&no, _)| no).collect();
        let by_asker = parts.questions.iter().map(|(&no, it)| (it.session, no)).collect();
        let by_note =
            parts.inbound.iter().filter(|(_, it)| it.is_note()).map(|(&no, it)| (it.session, no)).collect();
        let mut state = Self {
            core: parts.core,
            policy: parts.policy,
            directory: parts.directory,
            queue: parts.queue,
            sessions: parts.sessions,
            inbound: parts.inbound,
            outbound: parts.outbound,
            destinations: parts.destinations,
            effects: parts.effects,
            questions: parts.questions,
            complaints: parts.complaints,
            outage: parts.outage,
            missed: parts.missed,
            timers: Timers::default(),
            by_address,
            by_asker,
            by_note,
            by_name,
            alive,
            touched: BTreeSet::new(),
        };
        state.derive_all_timers();
        state
    }

    /// The components by value. Cheap, also for a loop that must not be held: what there are many of is shared with the
    /// state until either changes it.
    pub fn to_parts(&self) -> Parts {
        Parts {
            core: self.core.clone(),
            policy: self.policy.clone(),
            directory: self.directory.clone(),
            queue: self.queue.clone(),
            sessions: self.sessions.clone(),
            inbound: self.inbound.clone(),
            outbound: self.outbound.clone(),
            destinations: self.destinations.clone(),
            effects: self.effects.clone(),
            questions: self.questions.clone(),
            complaints: self.complaints.clone(),
            outage: self.outage.clone(),
            missed: self.missed.clone(),
        }
    }

    /// Clock, counters and stage.
    pub fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn core_mut(&mut self) -> &mut Core {
        self.touched.insert(ComponentId::Core);
        &mut self.core
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(super) fn policy_mut(&mut self) -> &mut Policy {
        self.touched.insert(ComponentId::Policy);
        &mut self.policy
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(super) fn directory_mut(&mut self) -> &mut Directory {
        self.touched.insert(ComponentId::Directory);
        &mut self.directory
    }

    /// Sessions that wait for a slot.
    pub fn queue(&self) -> &VecDeque<SessionNo> {
        &self.queue
    }

    pub(super) fn queue_mut(&mut self) -> &mut VecDeque<SessionNo> {
        self.touched.insert(ComponentId::Slots);
        &mut self.queue
    }

    /// All sessions.
    pub fn sessions(&self) -> &SharedMap<SessionNo, Session> {
        &self.sessions
    }

    /// One session.
    pub fn session(&self, no: SessionNo) -> Option<&Session> {
        self.sessions.get(&no)
    }

    /// The number of a session.
    pub fn session_no(&self, name: &SessionName) -> Option<SessionNo> {
        self.by_name.get(name).copied()
    }

    pub(super) fn session_mut(&mut self, no: SessionNo) -> Option<&mut Session> {
        self.touched.insert(ComponentId::Session(no));
        self.sessions.get_mut(&no)
    }

    pub(super) fn set_phase(&mut self, no: SessionNo, phase: Phase) {
        if phase.alive().is_some() {
            self.alive.insert(no);
        } else {
            self.alive.remove(&no);
        }
        if let Some(session) = self.session_mut(no) {
            session.phase = phase;
        }
    }

    pub(super) fn add_session(&mut self, session: Session) -> SessionNo {
        let core = self.core_mut();
        let no = SessionNo(core.next_session);
        core.next_session += 1;
        self.by_name.insert(session.name.clone(), no);
        self.sessions.insert(no, session);
        self.touched.insert(ComponentId::Session(no));
        no
    }

    /// Sessions with an attempt alive.
    pub fn alive(&self) -> &BTreeSet<SessionNo> {
        &self.alive
    }

    /// All open inbound messages.
    pub fn inbounds(&self) -> &SharedMap<MessageNo, Inbound> {
        &self.inbound
    }

    /// One open inbound message.
    pub fn inbound(&self, no: MessageNo) -> Option<&Inbound> {
        self.inbound.get(&no)
    }

    pub(super) fn inbound_mut(&mut self, no: MessageNo) -> Option<&mut Inbound> {
        let message = self.inbound.get_mut(&no)?;
        self.touched.insert(ComponentId::Inbound(no));
        self.touched.insert(ComponentId::Session(message.session));
        Some(message)
    }

    pub(super) fn add_inbound(&mut self, message: Inbound) -> MessageNo {
        let no = self.next_message();
        if let Some(session) = self.session_mut(message.session) {
            session.inbox.insert(no);
        }
        if message.is_note() {
            self.by_note.insert((message.session, no));
        }
        self.inbound.insert(no, message);
        self.touched.insert(ComponentId::Inbound(no));
        no
    }

    pub(super) fn remove_inbound(&mut self, no: MessageNo) -> Option<Inbound> {
        let message = self.inbound.remove(&no)?;
        self.by_note.remove(&(message.session, no));
        self.touched.insert(ComponentId::Inbound(no));
        if self.missed.remove(&no).is_some() {
            self.touched.insert(ComponentId::Missed(no));
        }
        if let Some(session) = self.session_mut(message.session) {
            session.inbox.remove(&no);
        }
        Some(message)
    }

    /// The open notes to the agent of a session, in order of appearance.
    pub fn notes_of(&self, session: SessionNo) -> impl Iterator<Item = (MessageNo, &Inbound)> {
        let range = (session, MessageNo(0))..=(session, MessageNo(u64::MAX));
        self.by_note.range(range).filter_map(|&(_, no)| Some((no, self.inbound.get(&no)?)))
    }

    /// For which messages the service behind the agent was missed.
    pub fn all_missed(&self) -> &SharedMap<MessageNo, Missed> {
        &self.missed
    }

    /// That the service was missed for this message.
    pub fn missed(&self, no: MessageNo) -> Option<&Missed> {
        self.missed.get(&no)
    }

    /// Counts one more time that the service was missed for an open message. Returns the first time and how often.
    pub(super) fn miss(&mut self, no: MessageNo, reason: &str) -> (At, u32) {
        let at = self.core.at;
        let mut missed =
            self.missed.get(&no).cloned().unwrap_or(Missed { first: at, times: 0, reason: String::new() });
        missed.times = missed.times.saturating_add(1);
        reason.clone_into(&mut missed.reason);
        let found = (missed.first, missed.times);
        self.touched.insert(ComponentId::Missed(no));
        self.missed.insert(no, missed);
        found
    }

    /// Whether the host has written a time into the row of a message, which the runner compares with the wall clock.
    pub fn row_has_time(&self, no: MessageNo) -> bool {
        self.missed.contains_key(&no) || self.inbound(no).is_some_and(|it| it.tries > 0 || it.suspect)
    }

    /// All open outbound messages.
    pub fn outbounds(&self) -> &SharedMap<MessageNo, Outbound> {
        &self.outbound
    }

    /// One open outbound message.
    pub fn outbound(&self, no: MessageNo) -> Option<&Outbound> {
        self.outbound.get(&no)
    }

    pub(super) fn outbound_mut(&mut self, no: MessageNo) -> Option<&mut Outbound> {
        let message = self.outbound.get_mut(&no)?;
        self.touched.insert(ComponentId::Outbound(no));
        Some(message)
    }

    pub(super) fn add_outbound(&mut self, message: Outbound) -> MessageNo {
        let no = self.next_message();
        if matches!(message.source, Source::Row { .. })
            && let Some(session) = self.session_mut(message.session)
        {
            session.outbox.insert(no);
        }
        self.outbound.insert(no, message);
        self.touched.insert(ComponentId::Outbound(no));
        no
    }

    pub(super) fn remove_outbound(&mut self, no: MessageNo) -> Option<Outbound> {
        let message = self.outbound.remove(&no)?;
        self.touched.insert(ComponentId::Outbound(no));
        if matches!(message.source, Source::Row { .. })
            && let Some(session) = self.session_mut(message.session)
        {
            session.outbox.remove(&no);
        }
        Some(message)
    }

    /// All destinations that have something to go there.
    pub fn destinations(&self) -> &SharedMap<DestinationNo, Destination> {
        &self.destinations
    }

    /// One destination.
    pub fn destination(&self, no: DestinationNo) -> Option<&Destination> {
        self.destinations.get(&no)
    }

    pub(super) fn destination_mut(&mut self, no: DestinationNo) -> Option<&mut Destination> {
        let destination = self.destinations.get_mut(&no)?;
        self.touched.insert(ComponentId::Destination(no));
        Some(destination)
    }

    /// The destination of an address as a session reaches it, if anything is to go there.
    pub fn destination_no(&self, session: SessionNo, to: &Address) -> Option<DestinationNo> {
        self.by_address.get(&(session, to.clone())).copied()
    }

    pub(super) fn destination_at(&mut self, session: SessionNo, to: &Address) -> DestinationNo {
        if let Some(no) = self.destination_no(session, to) {
            return no;
        }
        let core = self.core_mut();
        let no = DestinationNo(core.next_destination);
        core.next_destination += 1;
        self.by_address.insert((session, to.clone()), no);
        let destination = Destination { session, to: to.clone(), queue: VecDeque::new(), hold: Hold::None };
        self.destinations.insert(no, destination);
        self.touched.insert(ComponentId::Destination(no));
        no
    }

    pub(super) fn remove_destination(&mut self, no: DestinationNo) {
        if let Some(destination) = self.destinations.remove(&no) {
            self.by_address.remove(&(destination.session, destination.to));
            self.touched.insert(ComponentId::Destination(no));
        }
    }

    /// All open effects.
    pub fn effects(&self) -> &SharedMap<EffectId, Owner> {
        &self.effects
    }

    pub(super) fn open(&mut self, effect: EffectId, owner: Owner) {
        self.effects.insert(effect, owner);
        self.touched.insert(ComponentId::Effect(effect));
    }

    pub(super) fn close(&mut self, effect: EffectId) -> Option<Owner> {
        let owner = self.effects.remove(&effect)?;
        self.touched.insert(ComponentId::Effect(effect));
        Some(owner)
    }

    /// All questions, open and remembered.
    pub fn questions(&self) -> &SharedMap<MessageNo, Question> {
        &self.questions
    }

    /// One question, by the number of the outbound message that asked it.
    pub fn question(&self, no: MessageNo) -> Option<&Question> {
        self.questions.get(&no)
    }

    /// The questions of a session, in the order in which they were asked.
    pub fn questions_of(
        &self,
        session: SessionNo,
    ) -> impl DoubleEndedIterator<Item = (MessageNo, &Question)> {
        let range = (session, MessageNo(0))..=(session, MessageNo(u64::MAX));
        self.by_asker.range(range).filter_map(|(_, no)| Some((*no, self.questions.get(no)?)))
    }

    /// Touches the session too: whether it is idle depends on what it has asked.
    pub(super) fn question_mut(&mut self, no: MessageNo) -> Option<&mut Question> {
        let question = self.questions.get_mut(&no)?;
        self.touched.insert(ComponentId::Question(no));
        self.touched.insert(ComponentId::Session(question.session));
        Some(question)
    }

    pub(super) fn add_question(&mut self, no: MessageNo, question: Question) {
        self.touched.insert(ComponentId::Question(no));
        self.touched.insert(ComponentId::Session(question.session));
        self.by_asker.insert((question.session, no));
        self.questions.insert(no, question);
    }

    pub(super) fn remove_question(&mut self, no: MessageNo) {
        if let Some(question) = self.questions.remove(&no) {
            self.by_asker.remove(&(question.session, no));
            self.touched.insert(ComponentId::Question(no));
            self.touched.insert(ComponentId::Session(question.session));
        }
    }

    /// Complaints made about no session in particular.
    pub fn complaints(&self) -> &Complaints {
        &self.complaints
    }

    pub(super) fn complaints_mut(&mut self) -> &mut Complaints {
        self.touched.insert(ComponentId::Complaints);
        &mut self.complaints
    }

    /// That the runtime is away, or was until a moment ago.
    pub fn outage(&self) -> Option<&Outage> {
        self.outage.as_ref()
    }

    pub(super) fn outage_mut(&mut self) -> &mut Option<Outage> {
        self.touched.insert(ComponentId::Runtime);
        &mut self.outage
    }

    /// The deadlines.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// The wall clock at the time of the last input.
    pub fn wall(&self) -> Wall {
        Wall(self.core.at.0.saturating_add(self.core.offset))
    }

    /// The machine time at which the wall clock shows `wall`, as the offset stands.
    pub fn at_of(&self, wall: Wall) -> At {
        At(wall.0.saturating_sub(self.core.offset))
    }

    /// The wall time of a machine time, as the offset stands.
    pub fn wall_of(&self, at: At) -> Wall {
        Wall(at.0.saturating_add(self.core.offset))
    }

    /// Whether a person means this session by a text: its folder's name, group/name, or its number.
    pub fn is_named(&self, no: SessionNo, text: &str) -> bool {
        let by_name = |name: &SessionName| name.session() == text || name.to_string() == text;
        no.to_string() == text || self.session(no).is_some_and(|it| by_name(&it.name))
    }

    /// What was touched since the last call.
    pub(super) fn take_touched(&mut self) -> BTreeSet<ComponentId> {
        std::mem::take(&mut self.touched)
    }

    pub(super) fn touched(&self) -> &BTreeSet<ComponentId> {
        &self.touched
    }

    fn next_message(&mut self) -> MessageNo {
        let core = self.core_mut();
        let no = MessageNo(core.next_message);
        core.next_message += 1;
        no
    }
}
