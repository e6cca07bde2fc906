//! What would have happened otherwise: the rest of a journal's inputs again from one record on, under a change.
//!
//! Two machines go side by side from the same state: one takes the inputs as they are on record, the other one without
//! the dropped ones, with the edited ones, and under another policy. Effects have no doing here, so what an effect of
//! the second one leads to is what the same effect of the first one led to: the n-th write, start or delivery of the
//! same message or session. A recorded end of an effect that the second one has not asked for by then is left out and
//! counted; an effect of the second one without a recorded end stays open and is named. Timers fire by the second
//! machine's own deadlines.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use super::segments::ReplayError;
use super::walk::{Step, Stop, walk};
use super::{StateError, state_at};
use crate::base::{At, Attempt, EffectId, MessageNo, RecordNo, SessionNo};
use crate::journal::wire::Mirror;
use crate::machine::effect::Effect;
use crate::machine::input::{Ask, Fact, Input, Reading, Rows};
use crate::machine::policy::Policy;
use crate::machine::state::{ComponentId, Source, State};
use crate::machine::timers::TimerKey;
use crate::machine::{Machine, Turn};

/// Timers that may fire between two inputs; more is a machine that does not come to rest.
const TIMERS_MAX: usize = 10_000;

/// What is different in the fork.
pub struct Change<'a> {
    /// The record before which it begins.
    pub at: RecordNo,
    /// The policy in place of a recorded one; none for no change.
    pub policy: Option<&'a dyn Fn(&Policy) -> Policy>,
    /// Records whose inputs do not happen.
    pub drop: Vec<RecordNo>,
    /// Fields of inputs: record, path (`facts.bytes`, `rows.0.id`), value as JSON or text.
    pub edit: Vec<(RecordNo, String, String)>,
}

/// Both timelines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fork {
    /// From the first difference on, as many as were asked for.
    pub rows: Vec<Row>,
    /// Rows beyond them.
    pub more: u64,
    /// Inputs of the fork.
    pub inputs: u64,
    /// Recorded inputs that speak of something that the fork has not done.
    pub left_out: u64,
    /// Effects of the fork that nothing on record ends.
    pub open: Vec<String>,
    /// Where the journal could not be walked on.
    pub damaged: Option<String>,
}

/// What both do about one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// When.
    pub at: At,
    /// As recorded; none where only the fork has something.
    pub recorded: Option<Side>,
    /// In the fork; none where the input did not happen there.
    pub forked: Option<Side>,
}

/// One step of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its record.
    pub record: RecordNo,
    /// Its input.
    pub input: &'static str,
    /// What it would have done, by names that are the same in both.
    pub effects: Vec<String>,
}

impl Row {
    /// Whether both do the same.
    pub fn is_same(&self) -> bool {
        match (&self.recorded, &self.forked) {
            (Some(a), Some(b)) => a.input == b.input && a.effects == b.effects,
            _ => false,
        }
    }
}

/// Why there is no fork.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The journal cannot be read.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// There is no state to begin with.
    #[error(transparent)]
    State(#[from] StateError),
    /// An edit does not fit.
    #[error("record {record} ({input}) cannot be edited at {path:?}: {why}")]
    Edit {
        /// The record.
        record: RecordNo,
        /// Its input.
        input: &'static str,
        /// The field.
        path: String,
        /// Why not.
        why: String,
    },
    /// A record that was to be dropped or edited is not there.
    #[error("there is no record {0} at or behind the fork")]
    NoRecord(RecordNo),
}

/// Replays a journal from `change.at` on, both ways; `most` rows are given.
///
/// # Errors
/// See [`ForkError`].
pub fn fork(path: &Path, change: &Change<'_>, most: usize) -> Result<Fork, ForkError> {
    let start = state_at(path, Some(change.at))?;
    let mut run = Run::new(start.state().clone(), change, most);
    if let Some(policy) = change.policy {
        run.set_policy(policy);
    }
    let mut failed = None;
    walk(path, |stop| {
        let done = match stop {
            Stop::Step(step) if step.record >= change.at => run.step(&step),
            Stop::Damaged(why) => {
                run.fork.damaged = Some(why.to_owned());
                Ok(())
            }
            Stop::Step(_) | Stop::Snapshot(..) | Stop::Text(_) | Stop::Tail(_) => Ok(()),
        };
        match done {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    match (failed, run.asked.first()) {
        (Some(error), _) => Err(error),
        (None, Some(record)) => Err(ForkError::NoRecord(*record)),
        (None, None) => Ok(run.finish()),
    }
}

/// What names the same thing in both machines.
type Key = String;

/// Names of a machine's things, kept also when they are gone.
#[derive(Default)]
struct Names {
    sessions: BTreeMap<SessionNo, Key>,
    messages: BTreeMap<MessageNo, Key>,
    session_nos: BTreeMap<Key, SessionNo>,
    message_nos: BTreeMap<Key, MessageNo>,
    /// The effects that end in an input: which of its kind each is, counted from where the two part.
    effects: BTreeMap<EffectId, (Key, u32)>,
    effect_ids: BTreeMap<(Key, u32), EffectId>,
    counts: BTreeMap<Key, u32>,
    attempts: BTreeMap<Attempt, (Key, u32)>,
    attempt_nos: BTreeMap<(Key, u32), Attempt>,
}

impl Names {
    fn of_state(state: &State) -> Self {
        let mut names = Self::default();
        state.sessions().keys().for_each(|no| names.look(state, ComponentId::Session(*no)));
        state.inbounds().keys().for_each(|no| names.look(state, ComponentId::Inbound(*no)));
        state.outbounds().keys().for_each(|no| names.look(state, ComponentId::Outbound(*no)));
        state.questions().keys().for_each(|no| names.look(state, ComponentId::Question(*no)));
        for id in state.effects().keys() {
            names.effects.insert(*id, (format!("{id}"), 0));
            names.effect_ids.insert((format!("{id}"), 0), *id);
        }
        for session in state.sessions().values() {
            if let Some(attempt) = session.phase.alive() {
                let key = (format!("{attempt}"), 0);
                names.attempts.insert(attempt, key.clone());
                names.attempt_nos.insert(key, attempt);
            }
        }
        names
    }

    fn session(&self, no: SessionNo) -> Key {
        self.sessions.get(&no).cloned().unwrap_or_else(|| no.to_string())
    }

    fn message(&self, no: MessageNo) -> Key {
        self.messages.get(&no).cloned().unwrap_or_else(|| no.to_string())
    }

    fn look(&mut self, state: &State, id: ComponentId) {
        match id {
            ComponentId::Session(no) => {
                if let Some(it) = state.session(no) {
                    let chat = it.origin.platform_id.clone().unwrap_or_else(|| it.name.to_string());
                    self.sessions.insert(no, chat.clone());
                    self.session_nos.insert(chat, no);
                }
            }
            ComponentId::Inbound(no) => {
                if let Some(it) = state.inbound(no) {
                    self.named(no, format!("{} of {}", it.id, self.session(it.session)));
                }
            }
            ComponentId::Outbound(no) => {
                if let Some(it) = state.outbound(no) {
                    let key = match &it.source {
                        Source::Row { id, .. } => format!("reply {id} of {}", self.session(it.session)),
                        Source::Notice(notice) => format!("{notice:?} of {}", self.session(it.session)),
                    };
                    self.named(no, key);
                }
            }
            // Outlives the message that asked it, and has its number and name.
            ComponentId::Question(no) => {
                if let Some(it) = state.question(no) {
                    self.named(no, format!("reply {} of {}", it.id, self.session(it.session)));
                }
            }
            _ => {}
        }
    }

    /// A message of that name; a repeat of one gets a name of its own.
    fn named(&mut self, no: MessageNo, name: Key) {
        if self.messages.contains_key(&no) {
            return;
        }
        let mut key = name.clone();
        let mut nth = 1;
        while self.message_nos.contains_key(&key) {
            nth += 1;
            key = format!("{name} ({nth})");
        }
        self.messages.insert(no, key.clone());
        self.message_nos.insert(key, no);
    }

    /// Takes in what a step did, and tells its effects by names.
    fn take<'e>(
        &mut self,
        state: &State,
        touched: impl Iterator<Item = ComponentId>,
        effects: impl Iterator<Item = (EffectId, &'e Effect)>,
    ) -> Vec<String> {
        let mut touched: Vec<ComponentId> = touched.collect();
        // Sessions first: the names of messages hold theirs.
        touched.sort();
        touched.into_iter().for_each(|id| self.look(state, id));
        effects.map(|(id, effect)| self.effect(id, effect)).collect()
    }

    fn effect(&mut self, id: EffectId, effect: &Effect) -> String {
        let (subject, details) = self.describe(effect);
        if effect.completes() {
            let key = format!("{} {subject}", effect.name());
            let count = self.counts.entry(key.clone()).or_insert(0);
            *count += 1;
            let key = (key, *count);
            if let Effect::StartContainer { attempt, .. } = effect {
                self.attempts.insert(*attempt, key.clone());
                self.attempt_nos.insert(key.clone(), *attempt);
            }
            self.effects.insert(id, key.clone());
            self.effect_ids.insert(key, id);
        }
        let details = if details.is_empty() { details } else { format!(" ({details})") };
        format!("{} {subject}{details}", effect.name())
    }

    /// What an effect is about, and what else there is to it, without a number of either machine.
    fn describe(&self, effect: &Effect) -> (String, String) {
        match effect {
            Effect::CreateSession { session, .. }
            | Effect::ProjectDestinations { session, .. }
            | Effect::StartContainer { session, .. }
            | Effect::ResetOutbound { session } => (self.session(*session), String::new()),
            Effect::WriteInbound { id, session, .. } => {
                (format!("{id} of {}", self.session(*session)), String::new())
            }
            Effect::UpdateInbound { message, change, .. } => (self.message(*message), format!("{change:?}")),
            Effect::RecordDelivery { message, delivered, .. } => {
                (self.message(*message), if *delivered { "delivered" } else { "failed" }.to_owned())
            }
            Effect::AcceptInbound { channel, receipt, .. } => (format!("{channel} {receipt}"), String::new()),
            Effect::RefuseInbound { channel, receipt, reason } => {
                (format!("{channel} {receipt}"), format!("{reason:?}"))
            }
            Effect::StopContainer { session, reason, .. } => {
                (self.session(*session), reason.name().to_owned())
            }
            Effect::Look { session, why } => (self.session(*session), format!("{why:?}")),
            Effect::Deliver { message, number, .. } => (self.message(*message), format!("try {number}")),
            Effect::DiscardOutbox { id, .. } => (id.clone(), String::new()),
            Effect::SetTyping { to, on } => {
                (to.platform_id.clone().unwrap_or_default(), if *on { "on" } else { "off" }.to_owned())
            }
            Effect::TellSettled { id, outcome, .. } => (id.clone(), format!("{outcome:?}")),
            Effect::Answer { request, reply } => (request.to_string(), format!("{reply:?}")),
            Effect::Complain { session, cause, .. } => {
                (session.map(|no| self.session(no)).unwrap_or_default(), format!("{cause:?}"))
            }
        }
    }
}

struct Run<'a> {
    change: &'a Change<'a>,
    recorded: Names,
    forked: Names,
    machine: Machine,
    /// The recorded machine's deadlines before the step at hand: what it fires itself, the fork fires with it.
    deadlines: BTreeMap<TimerKey, At>,
    /// Records to be dropped or edited that did not come yet.
    asked: Vec<RecordNo>,
    most: usize,
    fork: Fork,
}

impl<'a> Run<'a> {
    fn new(state: State, change: &'a Change<'a>, most: usize) -> Self {
        let mut asked: Vec<RecordNo> = change.drop.clone();
        asked.extend(change.edit.iter().map(|(record, ..)| *record));
        Self {
            change,
            recorded: Names::of_state(&state),
            forked: Names::of_state(&state),
            deadlines: state.timers().iter().collect(),
            machine: Machine::new(state),
            asked,
            most,
            fork: Fork::default(),
        }
    }

    /// The change of policy is an input of the fork's own.
    fn set_policy(&mut self, policy: &dyn Fn(&Policy) -> Policy) {
        let changed = policy(self.machine.state().policy());
        let at = self.machine.state().core().at;
        let side = self.take(at, Input::PolicyChanged(changed));
        self.row(Row { at, recorded: None, forked: Some(side) });
    }

    /// The fork steps an input.
    fn take(&mut self, at: At, input: Input) -> Side {
        let name = input.name();
        let turn: Turn = self.machine.step(at, input);
        self.fork.inputs += 1;
        let effects = self.forked.take(self.machine.state(), turn.touched.iter().copied(), turn.effects());
        Side { record: turn.record, input: name, effects }
    }

    fn row(&mut self, row: Row) {
        if self.fork.rows.is_empty() && row.is_same() {
            return;
        }
        if self.fork.rows.len() < self.most {
            self.fork.rows.push(row);
        } else {
            self.fork.more += 1;
        }
    }

    fn step(&mut self, step: &Step<'_>) -> Result<(), ForkError> {
        self.fire(step);
        self.asked.retain(|record| *record != step.record);
        let input = match self.change.drop.contains(&step.record) {
            true => None,
            false => Some(self.edited(step)?),
        };
        let recorded = Side {
            record: step.record,
            input: step.input.name(),
            effects: self.recorded.take(step.state, step.touched.iter().copied(), step.effects()),
        };
        let translated = input.and_then(|input| {
            let translated = self.translate(input);
            if translated.is_none() && !matches!(step.input, Input::TimerDue { .. }) {
                self.fork.left_out += 1;
            }
            translated
        });
        let forked = translated.map(|input| self.take(step.at, input));
        self.row(Row { at: step.at, recorded: Some(recorded), forked });
        self.deadlines = step.state.timers().iter().collect();
        Ok(())
    }

    /// Fires what is due in the fork and not in the recorded machine, which would fire it itself.
    fn fire(&mut self, step: &Step<'_>) {
        for _ in 0..TIMERS_MAX {
            let due = self
                .machine
                .state()
                .timers()
                .iter()
                .map(|(key, at)| (at, key))
                .filter(|(at, key)| *at <= step.at && self.recorded_deadline(*key) != Some(*at));
            let Some((deadline, key)) = due.min() else { return };
            let side = self.take(deadline, Input::TimerDue { key, deadline });
            self.row(Row { at: deadline, recorded: None, forked: Some(side) });
        }
    }

    /// The deadline that the recorded machine has for what a key of the fork means.
    fn recorded_deadline(&self, key: TimerKey) -> Option<At> {
        let session = |no| self.recorded.session_nos.get(&self.forked.session(no)).copied();
        let message = |no| self.recorded.message_nos.get(&self.forked.message(no)).copied();
        self.deadlines.get(&renamed(key, &session, &message)?).copied()
    }

    fn edited(&self, step: &Step<'_>) -> Result<Input, ForkError> {
        let mut input = step.input.clone();
        if let Some(policy) = self.change.policy {
            match &mut input {
                Input::Booted(it) => it.policy = policy(&it.policy),
                Input::PolicyChanged(it) => *it = policy(it),
                _ => {}
            }
        }
        for (record, path, value) in &self.change.edit {
            if *record == step.record {
                input = with_field(&input, path, value).map_err(|why| ForkError::Edit {
                    record: *record,
                    input: step.input.name(),
                    path: path.clone(),
                    why,
                })?;
            }
        }
        Ok(input)
    }

    fn session(&self, no: SessionNo) -> Option<SessionNo> {
        self.forked.session_nos.get(&self.recorded.session(no)).copied()
    }

    fn message(&self, no: MessageNo) -> Option<MessageNo> {
        self.forked.message_nos.get(&self.recorded.message(no)).copied()
    }

    /// The fork's effect that a recorded one stands for, if it is under way.
    fn effect(&self, id: EffectId) -> Option<EffectId> {
        let key = self.recorded.effects.get(&id)?;
        let id = self.forked.effect_ids.get(key)?;
        self.machine.state().effects().contains_key(id).then_some(*id)
    }

    fn attempt(&self, attempt: Attempt) -> Option<Attempt> {
        let key = self.recorded.attempts.get(&attempt)?;
        self.forked.attempt_nos.get(key).copied()
    }

    /// A recorded input in the fork's numbers; none where it speaks of what is not there.
    fn translate(&self, input: Input) -> Option<Input> {
        Some(match input {
            Input::Booted(_)
            | Input::ClockSet { .. }
            | Input::PolicyChanged(_)
            | Input::MessageArrived(_)
            | Input::ArrivalWithoutSpace(_)
            | Input::PossibleAnswer { .. }
            | Input::MessageArrivedAt { .. }
            | Input::ChannelUp { .. }
            | Input::ChannelDown { .. }
            | Input::ShutdownAsked
            | Input::DetachAsked
            | Input::RuntimeDown { .. }
            | Input::RuntimeUp => input,
            Input::SessionFound(mut it) => {
                it.delivered = it.delivered.iter().filter_map(|no| self.message(*no)).collect();
                Input::SessionFound(it)
            }
            Input::SessionFoundInPart(mut it) => {
                it.delivered = it.delivered.iter().filter_map(|no| self.message(*no)).collect();
                Input::SessionFoundInPart(it)
            }
            Input::InboundRead { effect, mut found, whole } => {
                found.delivered = found.delivered.iter().filter_map(|no| self.message(*no)).collect();
                Input::InboundRead { effect: self.effect(effect)?, found, whole }
            }
            Input::InboundUnwritable { session, detail } => {
                Input::InboundUnwritable { session: self.session(session)?, detail }
            }
            Input::ContainersFound { alive, adoptable } => {
                let here = |(no, attempt)| Some((self.session(no)?, self.attempt(attempt)?));
                Input::ContainersFound { alive: alive.into_iter().filter_map(here).collect(), adoptable }
            }
            Input::SessionsUnchanged { sessions } => Input::SessionsUnchanged {
                sessions: sessions.into_iter().filter_map(|no| self.session(no)).collect(),
            },
            Input::OperatorAsked { request, ask } => Input::OperatorAsked { request, ask: self.ask(ask)? },
            Input::InboundWritten { effect, seq, duplicate } => {
                Input::InboundWritten { effect: self.effect(effect)?, seq, duplicate }
            }
            Input::InboundWriteFailed { effect, reason } => {
                Input::InboundWriteFailed { effect: self.effect(effect)?, reason }
            }
            Input::InboundLocked { session } => Input::InboundLocked { session: self.session(session)? },
            Input::OutboundRead { session, reading } => {
                Input::OutboundRead { session: self.session(session)?, reading: self.reading(reading) }
            }
            Input::Looked { effect, session, heartbeat_changed, alive, reading } => Input::Looked {
                effect: self.effect(effect)?,
                session: self.session(session)?,
                heartbeat_changed,
                alive,
                reading: self.reading(reading),
            },
            Input::FolderTooLarge { session, detail } => {
                Input::FolderTooLarge { session: self.session(session)?, detail }
            }
            Input::HeartbeatSeen { session } => Input::HeartbeatSeen { session: self.session(session)? },
            Input::ContainerStarted { effect } => Input::ContainerStarted { effect: self.effect(effect)? },
            Input::ContainerStartFailed { effect, reason } => {
                Input::ContainerStartFailed { effect: self.effect(effect)?, reason }
            }
            Input::ContainerExited { session, attempt, exit } => {
                let (session, attempt) = (self.session(session)?, self.attempt(attempt)?);
                Input::ContainerExited { session, attempt, exit }
            }
            Input::Delivered { effect, platform_id } => {
                Input::Delivered { effect: self.effect(effect)?, platform_id }
            }
            Input::DeliveryFailed { effect, class, reason, retry_after } => {
                Input::DeliveryFailed { effect: self.effect(effect)?, class, reason, retry_after }
            }
            Input::EffectDone { effect, error } => Input::EffectDone { effect: self.effect(effect)?, error },
            Input::TimerDue { key, deadline } => {
                // One that was late on record as well fires nothing here either.
                let late = self.deadlines.get(&key) != Some(&deadline);
                let key = renamed(key, &|no| self.session(no), &|no| self.message(no))?;
                let own = self.machine.state().timers().deadline(key);
                return (late || own == Some(deadline)).then_some(Input::TimerDue { key, deadline });
            }
        })
    }

    fn ask(&self, ask: Ask) -> Option<Ask> {
        Some(match ask {
            Ask::StopSession(no) => Ask::StopSession(self.session(no)?),
            Ask::StartSession(no) => Ask::StartSession(self.session(no)?),
            Ask::ResetSession(no) => Ask::ResetSession(self.session(no)?),
            Ask::RetryMessage { session, row } => Ask::RetryMessage { session: self.session(session)?, row },
            Ask::DropMessage { session, id } => Ask::DropMessage { session: self.session(session)?, id },
            Ask::ResendMessage { session, row } => {
                Ask::ResendMessage { session: self.session(session)?, row }
            }
        })
    }

    /// Acks and facts of messages that the fork does not know are left out, as the host would not have looked for them.
    fn reading(&self, reading: Reading) -> Reading {
        let Reading::Rows(rows) = reading else { return reading };
        let acks =
            rows.acks.iter().filter_map(|(no, found)| Some((self.message(*no)?, found.clone()))).collect();
        let facts = rows.facts.iter().filter_map(|fact| self.fact(fact.clone())).collect();
        Reading::Rows(Rows { acks, facts, ..rows })
    }

    fn fact(&self, mut fact: Fact) -> Option<Fact> {
        match &mut fact {
            Fact::Attempt(attempt) => *attempt = self.attempt(*attempt)?,
            Fact::Released { message, .. } | Fact::Failed { message, .. } | Fact::Missed { message, .. } => {
                *message = self.message(*message)?
            }
            Fact::Wait { .. } => {}
        }
        Some(fact)
    }

    fn finish(mut self) -> Fork {
        let recorded = &self.recorded.effects;
        for id in self.machine.state().effects().keys() {
            if let Some((key, n)) = self.forked.effects.get(id) {
                let also = recorded.values().any(|own| own == &(key.clone(), *n));
                let nth = if *n > 1 { format!(", the {n}th of its kind") } else { String::new() };
                let why = if also { "" } else { ", which the recorded run never asked for" };
                self.fork.open.push(format!("{id} {key}{nth}{why}"));
            }
        }
        self.fork
    }
}

/// A timer's key with other numbers.
fn renamed(
    key: TimerKey,
    session: &dyn Fn(SessionNo) -> Option<SessionNo>,
    message: &dyn Fn(MessageNo) -> Option<MessageNo>,
) -> Option<TimerKey> {
    use TimerKey as Key;
    Some(match key {
        Key::MessageDue(no) => Key::MessageDue(session(no)?),
        Key::ClaimSilence(no) => Key::ClaimSilence(session(no)?),
        Key::Ceiling(no) => Key::Ceiling(session(no)?),
        Key::IdleStop(no) => Key::IdleStop(session(no)?),
        Key::Healthy(no) => Key::Healthy(session(no)?),
        Key::ContainerOverdue(no) => Key::ContainerOverdue(session(no)?),
        Key::StartBackoff(no) => Key::StartBackoff(session(no)?),
        Key::LookAgain(no) => Key::LookAgain(session(no)?),
        Key::LookOverdue(no) => Key::LookOverdue(session(no)?),
        // Destinations are numbered in the order of their first message, which a dropped input may change; then both
        // fire their own.
        Key::Destination(no) => Key::Destination(no),
        Key::DeliverAfter(no) => Key::DeliverAfter(message(no)?),
        Key::Question(no) => Key::Question(message(no)?),
        Key::DeliveryOverdue(no) => Key::DeliveryOverdue(message(no)?),
        Key::Withheld(no) => Key::Withheld(session(no)?),
        Key::WithheldAtLarge => Key::WithheldAtLarge,
        Key::RuntimeSettled => Key::RuntimeSettled,
    })
}

/// An input with one field set, by its names on the wire.
fn with_field(input: &Input, path: &str, value: &str) -> Result<Input, String> {
    let mut json = serde_json::to_value(input.to_wire()).map_err(|error| error.to_string())?;
    // The outermost name is the input's own.
    let mut place = json.as_object_mut().and_then(|it| it.values_mut().next()).ok_or("it has no fields")?;
    for name in path.split('.') {
        let known = match place {
            serde_json::Value::Object(fields) => fields.keys().cloned().collect::<Vec<_>>().join(", "),
            serde_json::Value::Array(items) => format!("0 to {}", items.len().saturating_sub(1)),
            _ => "no fields".to_owned(),
        };
        let next = match name.parse::<usize>() {
            Ok(index) if place.is_array() => place.get_mut(index),
            _ => place.get_mut(name),
        };
        place = next.ok_or_else(|| format!("there is no {name:?}; there is {known}"))?;
    }
    *place = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    let wire = serde_json::from_value(json).map_err(|error| error.to_string())?;
    Input::from_wire(wire).map_err(|error| error.to_string())
}
