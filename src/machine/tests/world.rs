//! A small world around a machine: session folders, a channel and a runtime that answer effects at once, unless a
//! script tells them otherwise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base::{At, Attempt, BootNo, EffectId, Ms, SessionNo, Wall};
use crate::machine::effect::{Effect, InboundChange, LookWhy, Payload};
use crate::machine::input::*;
use crate::machine::policy::Policy;
use crate::machine::{Machine, invariants};
use crate::session::rows::Address;

/// How the channel answers the next deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Accepts,
    Fails(DeliveryFault),
    Silent,
}

/// One session folder, as the machine can come to know it.
#[derive(Default)]
pub struct Folder {
    pub rows: Vec<OutRow>,
    pub acks: BTreeMap<String, AckFound>,
    pub facts: Vec<WorldFact>,
    pub tool: Option<Tool>,
    pub heartbeat_changed: bool,
    pub unreadable: Option<Unreadable>,
    /// inbound.db cannot be read.
    pub inbound_unreadable: bool,
    pub inbound: BTreeMap<String, PendingRow>,
    pub delivered: Vec<String>,
    /// What was recorded of each row, first.
    pub recorded: BTreeMap<String, bool>,
    /// The keys with which each row was accepted by its channel.
    pub accepted: BTreeMap<String, BTreeSet<EffectId>>,
    /// The rows that were tried, and the greatest rowid of them at each destination.
    tried: BTreeSet<String>,
    last_tried: BTreeMap<Address, i64>,
    /// Its rows were replaced, so their numbers began anew.
    replaced: bool,
    /// How many files there were before this one.
    files: u32,
    /// The ids of all rows that were ever inserted: a row stays in the table when it is done.
    pub inserted: BTreeSet<String>,
    marks: u64,
}

/// A fact by message id, since the world does not know the machine's numbers.
#[derive(Clone)]
pub enum WorldFact {
    Attempt(Attempt),
    Wait(i64),
    Released { id: String, blameless: bool, mark: u64 },
    Failed { id: String, reason: String },
    Missed { id: String, not_before: Option<Wall>, mark: u64 },
}

pub struct World {
    pub machine: Machine,
    pub at: At,
    pub offset: i64,
    pub policy: Policy,
    pub channel: Channel,
    pub idempotent: bool,
    /// Whether the runtime can take over what an earlier daemon left.
    pub adopts: bool,
    pub starts_fail: bool,
    /// The runtime is away.
    pub away: bool,
    pub boot: u32,
    pub folders: BTreeMap<SessionNo, Folder>,
    pub running: BTreeMap<SessionNo, Attempt>,
    /// Containers that do not stop when they are asked to.
    pub stubborn: bool,
    /// Messages arrive while there is no space.
    pub space_low: bool,
    /// Rows cannot be written.
    pub writes_fail: bool,
    /// Ends of writes that are kept back.
    pub held_writes: Option<Vec<Input>>,
    /// News of these kinds is kept back: `start`, `look`, `delivery`.
    pub keeps: BTreeSet<String>,
    /// What was kept back, by kind.
    pub kept: BTreeMap<String, Vec<Input>>,
    pub log: Vec<String>,
    pending: VecDeque<Input>,
    receipts: u64,
}

pub const GROUP: &str = "agent";

impl World {
    pub fn new() -> Self {
        Self {
            machine: Machine::default(),
            at: At(0),
            offset: 1_700_000_000_000_000,
            policy: Policy::default(),
            channel: Channel::Accepts,
            idempotent: true,
            adopts: false,
            starts_fail: false,
            away: false,
            boot: 0,
            folders: BTreeMap::new(),
            running: BTreeMap::new(),
            stubborn: false,
            space_low: false,
            writes_fail: false,
            held_writes: None,
            keeps: BTreeSet::new(),
            kept: BTreeMap::new(),
            log: Vec::new(),
            pending: VecDeque::new(),
            receipts: 0,
        }
    }

    /// Starts a daemon on what is there. Containers of the one before are gone unless `alive`.
    pub fn boot(&mut self, alive: bool) {
        self.boot += 1;
        self.pending.clear();
        self.input(Input::Booted(Booted {
            boot: BootNo(self.boot),
            build: "test".into(),
            policy: self.policy.clone(),
            group: GROUP.into(),
            offset: self.offset,
            downtime: Ms(0),
        }));
        let found: Vec<SessionNo> = self.folders.keys().copied().collect();
        for no in found {
            let Some(session) = self.machine.state().session(no) else { continue };
            let folder = &self.folders[&no];
            let delivered = session
                .outbox
                .iter()
                .copied()
                .filter(|m| {
                    self.machine.state().outbound(*m).is_some_and(|o| match &o.source {
                        crate::machine::state::Source::Row { id, .. } => folder.delivered.contains(id),
                        crate::machine::state::Source::Notice(_) => false,
                    })
                })
                .collect();
            let found = SessionFound { delivered, ..self.found(no).expect("it was looked up") };
            debug_assert_eq!(found.unreadable.is_some(), folder.inbound_unreadable);
            self.input(Input::SessionFound(found));
        }
        if !alive {
            self.running.clear();
        }
        match self.away {
            true => self.runtime_down(),
            false => self.runtime_lists(),
        }
        self.channel_up();
    }

    /// The runtime says what runs.
    pub fn runtime_lists(&mut self) {
        let alive = self.running.iter().map(|(&no, &attempt)| (no, attempt)).collect();
        self.input(Input::ContainersFound { alive, adoptable: self.adopts });
    }

    /// The runtime goes; what runs may go on.
    pub fn runtime_down(&mut self) {
        self.away = true;
        self.input(Input::RuntimeDown { reason: "no engine answers".into() });
    }

    /// The runtime is back.
    pub fn runtime_back(&mut self) {
        self.away = false;
        self.input(Input::RuntimeUp);
    }

    pub fn channel_up(&mut self) {
        self.input(Input::ChannelUp { channel: "chat".into(), chat: None, idempotent: self.idempotent });
    }

    /// Gives the machine one input and everything that follows at once.
    pub fn input(&mut self, input: Input) {
        self.pending.push_back(input);
        while let Some(input) = self.pending.pop_front() {
            let turn = self.machine.step(self.at, input);
            let wrong = invariants::check_all(self.machine.state());
            assert!(wrong.is_empty(), "{wrong:?}\nafter:\n{}", self.log.join("\n"));
            let effects: Vec<(EffectId, Effect)> = turn.effects().map(|(id, e)| (id, e.clone())).collect();
            for (id, effect) in effects {
                self.log.push(super::script::describe(&effect));
                self.perform(id, effect);
            }
        }
    }

    /// Lets time pass, firing timers as they fall due.
    pub fn wait(&mut self, until: At) {
        while let Some((deadline, key)) = self.machine.next_deadline().filter(|(at, _)| *at <= until) {
            self.at = self.at.max(deadline);
            self.log.push(format!("[{}] timer {}", self.at, super::script::timer(key)));
            self.input(Input::TimerDue { key, deadline });
        }
        self.at = until;
    }

    pub fn session_of(&self, chat: &str) -> Option<SessionNo> {
        self.machine.state().directory().chats.get(&("chat".to_owned(), format!("chat:{chat}"))).copied()
    }

    /// What a session's inbound.db says.
    fn found(&self, no: SessionNo) -> Option<SessionFound> {
        let (session, folder) = (self.machine.state().session(no)?, self.folders.get(&no)?);
        let name = session.name.clone();
        let (origin, delivered) = (Address::default(), Vec::new());
        if folder.inbound_unreadable {
            let unreadable = Some("test".into());
            return Some(SessionFound { name, origin, pending: Vec::new(), delivered, unreadable });
        }
        let mut pending: Vec<PendingRow> = folder.inbound.values().cloned().collect();
        pending.sort_by_key(|row| row.seq);
        let origin = session.origin.clone();
        Some(SessionFound { name, origin, pending, delivered, unreadable: None })
    }

    pub fn arrive(&mut self, chat: &str, id: &str) {
        self.arrive_with(chat, id, 0);
    }

    /// A message of so many bytes arrives.
    pub fn arrive_with(&mut self, chat: &str, id: &str, bytes: u32) {
        let arrival = self.arrival(chat, id, TextFacts { bytes, ..TextFacts::default() });
        self.input(match self.space_low {
            true => Input::ArrivalWithoutSpace(arrival),
            false => Input::MessageArrived(arrival),
        });
    }

    fn arrival(&mut self, chat: &str, id: &str, facts: TextFacts) -> Arrival {
        self.receipts += 1;
        Arrival {
            channel: "chat".into(),
            receipt: self.receipts,
            chat: format!("chat:{chat}"),
            thread: None,
            message_id: id.into(),
            facts,
        }
    }

    /// Something is said where questions may have been asked. Digests are of the text as it stands.
    pub fn say(&mut self, chat: &str, id: &str, text: &str) {
        let arrival = self.arrival(chat, id, TextFacts::default());
        let line = Line { number: text.parse().ok(), digest: label(text) };
        self.input(Input::PossibleAnswer { arrival, line });
    }

    pub fn folder(&mut self, no: SessionNo) -> &mut Folder {
        self.folders.entry(no).or_default()
    }

    /// What a read of the session's outbound.db would give now.
    pub fn reading(&self, no: SessionNo) -> Reading {
        let (Some(session), Some(folder)) = (self.machine.state().session(no), self.folders.get(&no)) else {
            return Reading::Unreadable { kind: Unreadable::Missing, detail: "no folder".into() };
        };
        if let Some(kind) = folder.unreadable {
            return Reading::Unreadable { kind, detail: format!("{kind:?}") };
        }
        let known = match &session.cursor {
            Some((rowid, id)) => folder.rows.iter().any(|r| r.rowid == *rowid && r.id == *id),
            None => true,
        };
        let after = session.cursor.as_ref().filter(|_| known).map_or(0, |(rowid, _)| *rowid);
        let mut rows: Vec<OutRow> = folder.rows.iter().filter(|r| r.rowid > after).cloned().collect();
        if !known || session.cursor.is_none() {
            for row in &mut rows {
                row.settled = folder.delivered.contains(&row.id);
            }
        }
        let number = |id: &str| {
            session
                .inbox
                .iter()
                .copied()
                .find(|m| self.machine.state().inbound(*m).is_some_and(|i| i.id == id))
        };
        let acks = session
            .inbox
            .iter()
            .filter_map(|&m| Some((m, folder.acks.get(&self.machine.state().inbound(m)?.id).cloned())))
            .collect();
        let facts = folder
            .facts
            .iter()
            .filter_map(|fact| match fact {
                WorldFact::Attempt(attempt) => Some(Fact::Attempt(*attempt)),
                WorldFact::Wait(until) => Some(Fact::Wait { until: crate::base::Wall(*until) }),
                WorldFact::Released { id, blameless, mark } => Some(Fact::Released {
                    message: number(id)?,
                    blameless: *blameless,
                    reason: "test".into(),
                    not_before: None,
                    mark: *mark,
                }),
                WorldFact::Missed { id, not_before, mark } => Some(Fact::Missed {
                    message: number(id)?,
                    reason: "overloaded".into(),
                    not_before: *not_before,
                    mark: *mark,
                }),
                WorldFact::Failed { id, reason } => {
                    Some(Fact::Failed { message: number(id)?, reason: reason.clone() })
                }
            })
            .collect();
        Reading::Rows(Rows { rows, rewound: !known, more: false, acks, facts, tool: folder.tool })
    }

    pub fn read(&mut self, no: SessionNo) {
        let reading = self.reading(no);
        self.input(Input::OutboundRead { session: no, reading });
    }

    pub fn exit(&mut self, no: SessionNo, exit: Exit) {
        if let Some(attempt) = self.running.remove(&no) {
            self.input(Input::ContainerExited { session: no, attempt, exit });
        }
    }

    fn perform(&mut self, effect: EffectId, it: Effect) {
        let done = Input::EffectDone { effect, error: None };
        match it {
            Effect::CreateSession { session, .. } => {
                self.folder(session);
                self.pending.push_back(done);
            }
            Effect::WriteInbound { session, .. } if self.writes_fail || self.is_bad(session) => {
                let reason = "test".into();
                self.pending.push_back(Input::InboundWriteFailed { effect, reason });
            }
            Effect::WriteInbound { session, id, trigger, origin, .. } => {
                let folder = self.folder(session);
                let seq = 2 * (folder.inserted.len() as i64 + 1);
                let duplicate = !folder.inserted.insert(id.clone());
                if !duplicate {
                    let row = PendingRow {
                        id: id.clone(),
                        seq: Some(seq),
                        trigger,
                        tries: 0,
                        due: Due::Now,
                        origin,
                    };
                    folder.inbound.insert(id, row);
                }
                let written = Input::InboundWritten { effect, seq, duplicate };
                match &mut self.held_writes {
                    Some(held) => held.push(written),
                    None => self.pending.push_back(written),
                }
            }
            Effect::UpdateInbound { session, .. }
            | Effect::RecordDelivery { session, .. }
            | Effect::ProjectDestinations { session, .. }
                if self.is_bad(session) =>
            {
                let detail = "test".into();
                self.pending.push_back(Input::InboundUnwritable { session, detail });
                self.pending.push_back(Input::EffectDone { effect, error: Some("test".into()) });
            }
            Effect::UpdateInbound { session, id, change, .. } => {
                let inbound = &mut self.folder(session).inbound;
                match change {
                    InboundChange::Complete | InboundChange::Fail => {
                        inbound.remove(&id);
                    }
                    InboundChange::Reschedule { tries, process_after } => {
                        if let Some(row) = inbound.get_mut(&id) {
                            row.tries = tries;
                            row.due = process_after.map_or(Due::Now, Due::At);
                        }
                    }
                }
                self.pending.push_back(done);
            }
            Effect::RecordDelivery { session, id, delivered, .. } => {
                let folder = self.folder(session);
                folder.recorded.entry(id.clone()).or_insert(delivered);
                folder.delivered.push(id);
                self.pending.push_back(done);
            }
            Effect::ProjectDestinations { .. } | Effect::ResetOutbound { .. } => self.pending.push_back(done),
            Effect::StartContainer { session, attempt } => self.start(effect, session, attempt),
            Effect::StopContainer { session, attempt, .. }
                if !self.stubborn && !self.away && self.running.get(&session) == Some(&attempt) =>
            {
                self.running.remove(&session);
                self.pending.push_back(Input::ContainerExited { session, attempt, exit: Exit::Code(0) });
            }
            Effect::Look { session, why: LookWhy::Inbound } => {
                let Some(found) = self.found(session) else { return };
                self.pending.push_back(Input::InboundRead { effect, found, whole: true });
            }
            Effect::Look { session, .. } => {
                let reading = self.reading(session);
                let alive = (!self.away).then(|| self.running.contains_key(&session));
                let heartbeat_changed = std::mem::take(&mut self.folder(session).heartbeat_changed);
                self.ended("look", Input::Looked { effect, session, heartbeat_changed, alive, reading });
            }
            Effect::Deliver { session, to, payload, key, .. } => {
                self.note_try(session, to, &payload, key);
                match self.channel {
                    Channel::Accepts => {
                        self.ended("delivery", Input::Delivered { effect, platform_id: None })
                    }
                    Channel::Fails(class) => self.pending.push_back(Input::DeliveryFailed {
                        effect,
                        class,
                        reason: "test".into(),
                        retry_after: None,
                    }),
                    Channel::Silent => {}
                }
            }
            _ => {}
        }
    }

    /// What the channel sees of a try. Rows of one destination are tried for the first time in their order.
    fn note_try(&mut self, session: SessionNo, to: Address, payload: &Payload, key: EffectId) {
        let Payload::Row { rowid, id, .. } = payload else { return };
        let accepts = self.channel == Channel::Accepts;
        let folder = self.folders.entry(session).or_default();
        if accepts {
            folder.accepted.entry(id.clone()).or_default().insert(key);
        }
        if folder.tried.insert(id.clone()) && !folder.replaced {
            let last = folder.last_tried.insert(to, *rowid);
            assert!(last < Some(*rowid), "{session}: row {rowid} after {last:?}\n{}", self.log.join("\n"));
        }
    }

    fn is_bad(&self, no: SessionNo) -> bool {
        self.folders.get(&no).is_some_and(|folder| folder.inbound_unreadable)
    }

    fn start(&mut self, effect: EffectId, session: SessionNo, attempt: Attempt) {
        if self.starts_fail || self.away {
            let reason = "no such program".into();
            return self.pending.push_back(Input::ContainerStartFailed { effect, reason });
        }
        self.running.insert(session, attempt);
        self.ended("start", Input::ContainerStarted { effect });
    }

    /// Something ended: the machine hears of it now, or when the script says so.
    fn ended(&mut self, kind: &str, news: Input) {
        match self.keeps.contains(kind) {
            true => self.kept.entry(kind.to_owned()).or_default().push(news),
            false => self.pending.push_back(news),
        }
    }
}

impl Folder {
    pub fn ack(&mut self, id: &str, status: Ack) {
        self.ack_row(full(id), status);
    }

    pub fn ack_row(&mut self, id: String, status: Ack) {
        self.marks += 1;
        self.acks.insert(id, AckFound { status, mark: self.marks });
    }

    pub fn reply(&mut self, id: &str, to: Address) {
        self.row(id, to, OutKind::Message);
    }

    pub fn ask(&mut self, id: &str, to: Address, timeout: Ms, labels: &[&str]) {
        let labels = labels.iter().map(|text| label(text)).collect();
        self.row(id, to, OutKind::Question(QuestionFacts { question: id.into(), labels, timeout }));
    }

    pub fn request(&mut self, id: &str, action: &str) {
        self.row(id, Address::default(), OutKind::System(action.into()));
    }

    /// Another file takes its place, with no rows.
    pub fn replace(&mut self) {
        self.rows.clear();
        self.replaced = true;
        self.files += 1;
    }

    /// An id for a row of this file. Ids are made by chance: no two files share one, nor so a place in them.
    pub fn own_id(&self, name: &str) -> String {
        match self.files {
            0 => name.to_owned(),
            n => format!("{name}f{n}"),
        }
    }

    fn row(&mut self, id: &str, to: Address, kind: OutKind) {
        let rowid = self.rows.last().map_or(1, |r| r.rowid + 1);
        self.rows.push(OutRow {
            rowid,
            id: id.into(),
            kind,
            to,
            in_reply_to: None,
            not_before: None,
            settled: false,
            files: false,
            digest: 0,
        });
    }

    pub fn miss(&mut self, id: &str, not_before: Option<Wall>) {
        self.marks += 1;
        self.acks.remove(&full(id));
        // A release says last what became of the message.
        self.facts.retain(|fact| !matches!(fact, WorldFact::Missed { id: known, .. } if *known == full(id)));
        self.facts.push(WorldFact::Missed { id: full(id), not_before, mark: self.marks });
    }

    pub fn release(&mut self, id: &str, blameless: bool) {
        self.marks += 1;
        self.acks.remove(&full(id));
        self.facts.push(WorldFact::Released { id: full(id), blameless, mark: self.marks });
    }
}

/// Stands for the keyed digest of a label.
fn label(text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

pub fn full(id: &str) -> String {
    format!("{id}:{GROUP}")
}

pub fn chat(name: &str) -> Address {
    Address { channel_type: Some("chat".into()), platform_id: Some(format!("chat:{name}")), thread_id: None }
}
