//! A small world around a machine: session folders, a channel and a runtime that answer effects at once, unless a
//! script tells them otherwise.

use std::collections::{BTreeMap, VecDeque};

use crate::base::{At, Attempt, BootNo, EffectId, Ms, SessionNo};
use crate::machine::effect::{Effect, InboundChange};
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
    pub inbound: BTreeMap<String, PendingRow>,
    pub delivered: Vec<String>,
    marks: u64,
}

/// A fact by message id, since the world does not know the machine's numbers.
#[derive(Clone)]
pub enum WorldFact {
    Attempt(Attempt),
    Wait(i64),
    Released { id: String, blameless: bool, mark: u64 },
    Failed { id: String, reason: String },
}

pub struct World {
    pub machine: Machine,
    pub at: At,
    pub offset: i64,
    pub policy: Policy,
    pub channel: Channel,
    pub idempotent: bool,
    pub starts_fail: bool,
    pub boot: u32,
    pub folders: BTreeMap<SessionNo, Folder>,
    pub running: BTreeMap<SessionNo, Attempt>,
    /// Containers that do not stop when they are asked to.
    pub stubborn: bool,
    /// Messages arrive while there is no space.
    pub space_low: bool,
    /// Ends of writes that are kept back.
    pub held_writes: Option<Vec<Input>>,
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
            starts_fail: false,
            boot: 0,
            folders: BTreeMap::new(),
            running: BTreeMap::new(),
            stubborn: false,
            space_low: false,
            held_writes: None,
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
            let found = SessionFound {
                name: session.name.clone(),
                origin: session.origin.clone(),
                pending: folder.inbound.values().cloned().collect(),
                delivered,
                unreadable: None,
            };
            self.input(Input::SessionFound(found));
        }
        if !alive {
            self.running.clear();
        }
        let alive = self.running.iter().map(|(&no, &attempt)| (no, attempt)).collect();
        self.input(Input::ContainersFound { alive, adoptable: false });
        self.channel_up();
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

    pub fn arrive(&mut self, chat: &str, id: &str) {
        self.receipts += 1;
        let arrival = Arrival {
            channel: "chat".into(),
            receipt: self.receipts,
            chat: format!("chat:{chat}"),
            thread: None,
            message_id: id.into(),
            facts: TextFacts::default(),
        };
        self.input(match self.space_low {
            true => Input::ArrivalWithoutSpace(arrival),
            false => Input::MessageArrived(arrival),
        });
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
            Effect::WriteInbound { session, id, trigger, origin, .. } => {
                let inbound = &mut self.folder(session).inbound;
                let seq = 2 * (inbound.len() as i64 + 1);
                let duplicate = inbound.contains_key(&id);
                let row =
                    PendingRow { id: id.clone(), seq: Some(seq), trigger, tries: 0, due: Due::Now, origin };
                inbound.entry(id).or_insert(row);
                let written = Input::InboundWritten { effect, seq, duplicate };
                match &mut self.held_writes {
                    Some(held) => held.push(written),
                    None => self.pending.push_back(written),
                }
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
            Effect::RecordDelivery { session, id, .. } => {
                self.folder(session).delivered.push(id);
                self.pending.push_back(done);
            }
            Effect::ProjectDestinations { .. } | Effect::ResetOutbound { .. } => self.pending.push_back(done),
            Effect::StartContainer { session, attempt } => self.start(effect, session, attempt),
            Effect::StopContainer { session, attempt, .. }
                if !self.stubborn && self.running.get(&session) == Some(&attempt) =>
            {
                self.running.remove(&session);
                self.pending.push_back(Input::ContainerExited { session, attempt, exit: Exit::Code(0) });
            }
            Effect::Look { session, .. } => {
                let reading = self.reading(session);
                let alive = Some(self.running.contains_key(&session));
                let heartbeat_changed = std::mem::take(&mut self.folder(session).heartbeat_changed);
                self.pending.push_back(Input::Looked { effect, session, heartbeat_changed, alive, reading });
            }
            Effect::Deliver { .. } => match self.channel {
                Channel::Accepts => self.pending.push_back(Input::Delivered { effect, platform_id: None }),
                Channel::Fails(class) => self.pending.push_back(Input::DeliveryFailed {
                    effect,
                    class,
                    reason: "test".into(),
                    retry_after: None,
                }),
                Channel::Silent => {}
            },
            _ => {}
        }
    }

    fn start(&mut self, effect: EffectId, session: SessionNo, attempt: Attempt) {
        if self.starts_fail {
            let reason = "no such program".into();
            return self.pending.push_back(Input::ContainerStartFailed { effect, reason });
        }
        self.running.insert(session, attempt);
        self.pending.push_back(Input::ContainerStarted { effect });
    }
}

impl Folder {
    pub fn ack(&mut self, id: &str, status: Ack) {
        self.marks += 1;
        self.acks.insert(full(id), AckFound { status, mark: self.marks });
    }

    pub fn reply(&mut self, id: &str, to: Address) {
        let rowid = self.rows.last().map_or(1, |r| r.rowid + 1);
        self.rows.push(OutRow {
            rowid,
            id: id.into(),
            kind: OutKind::Message,
            to,
            in_reply_to: None,
            not_before: None,
            settled: false,
            files: false,
            digest: 0,
        });
    }

    pub fn release(&mut self, id: &str, blameless: bool) {
        self.marks += 1;
        self.acks.remove(&full(id));
        self.facts.push(WorldFact::Released { id: full(id), blameless, mark: self.marks });
    }
}

pub fn full(id: &str) -> String {
    format!("{id}:{GROUP}")
}

pub fn chat(name: &str) -> Address {
    Address { channel_type: Some("chat".into()), platform_id: Some(format!("chat:{name}")), thread_id: None }
}
