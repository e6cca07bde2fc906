//! What has a duration: containers from their start to their end, turns from a claim to what became of it, deliveries
//! from the hand-over to the answer. All are read from the components that a step touched.
//!
//! Invariant: memory is bounded by what is open.

use std::collections::BTreeMap;

use crate::base::{At, Attempt, EffectId, MessageNo, RecordNo, SessionNo};
use crate::machine::effect::{Notice, Outcome};
use crate::machine::input::{Exit, Input};
use crate::machine::state::{ComponentId, InState, Inbound, OutState, Outbound, Phase, Source, Stage, State};
use crate::replay::timeline::{exit_text, outcome_text};
use crate::replay::waits::name_of;
use crate::replay::walk::Step;

/// What a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One life of a container.
    Container,
    /// One claim of a message.
    Turn,
    /// One try to deliver.
    Delivery,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Turn => "turn",
            Self::Delivery => "delivery",
        }
    }
}

/// A place in the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// The record.
    pub record: RecordNo,
    /// Its time.
    pub at: At,
}

/// A span that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its number in this journal, from 1.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Whose.
    pub session: SessionNo,
    /// What it is called.
    pub label: String,
    /// The message that it is about.
    pub message: Option<MessageNo>,
    /// The container's life that it is, or belongs to.
    pub attempt: Option<Attempt>,
    /// Where it begins; where the journal begins, for one that was open then.
    pub begin: Point,
    /// It was open where the journal begins.
    pub before: bool,
}

/// How a span ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Where.
    pub at: Point,
    /// In words.
    pub how: String,
    /// As it should.
    pub good: bool,
}

/// A message that came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number.
    pub no: MessageNo,
    /// Whose.
    pub session: SessionNo,
    /// Its row's id, or what it is.
    pub id: String,
    /// It is for the agent.
    pub inbound: bool,
    /// The inbound message that it answers.
    pub answers: Option<MessageNo>,
    /// Where it was seen first.
    pub seen: Point,
}

/// What the tracker tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A message came up.
    Message(Message),
    /// A span began.
    Begin(Span),
    /// A span ended; none where the journal ends before it.
    End(Span, Option<End>),
    /// The delivery of a reply succeeded: the delivery's span, and the message that was answered.
    Answered {
        /// The span of the delivery.
        delivery: Span,
        /// Which inbound message.
        inbound: MessageNo,
        /// Where.
        at: Point,
    },
}

/// Follows what is open through a journal.
#[derive(Debug, Default)]
pub struct Tracker {
    containers: BTreeMap<SessionNo, (Span, bool)>,
    turns: BTreeMap<MessageNo, (Span, u64)>,
    deliveries: BTreeMap<MessageNo, (Span, EffectId)>,
    messages: BTreeMap<MessageNo, Option<MessageNo>>,
    made: u64,
    now: Point,
    before: bool,
}

impl Tracker {
    /// Takes up what a snapshot holds open, and gives up what it does not.
    pub fn snapshot(&mut self, state: &State, out: &mut Vec<Mark>) {
        let core = state.core();
        self.now = Point { record: core.record, at: core.at.max(self.now.at) };
        self.before = true;
        let mut all: Vec<ComponentId> = state.sessions().keys().map(|no| ComponentId::Session(*no)).collect();
        all.extend(self.containers.keys().map(|no| ComponentId::Session(*no)));
        all.extend(state.inbounds().keys().chain(self.turns.keys()).map(|no| ComponentId::Inbound(*no)));
        let known = self.deliveries.keys();
        all.extend(state.outbounds().keys().chain(known).map(|no| ComponentId::Outbound(*no)));
        for id in all {
            self.touched(id, state, None, out);
        }
        self.before = false;
    }

    /// Tells what a step began and ended.
    pub fn step(&mut self, step: &Step<'_>, out: &mut Vec<Mark>) {
        self.now = Point { record: step.record, at: step.at.max(self.now.at) };
        for id in step.touched {
            self.touched(*id, step.state, Some(step.input), out);
        }
    }

    /// The journal ends: tells what is open still.
    pub fn finish(&mut self, out: &mut Vec<Mark>) {
        let containers = std::mem::take(&mut self.containers).into_values().map(|it| it.0);
        let turns = std::mem::take(&mut self.turns).into_values().map(|it| it.0);
        let deliveries = std::mem::take(&mut self.deliveries).into_values().map(|it| it.0);
        // The innermost first.
        out.extend(deliveries.chain(turns).chain(containers).map(|span| Mark::End(span, None)));
    }

    /// The last place that was seen.
    pub fn now(&self) -> Point {
        self.now
    }

    fn touched(&mut self, id: ComponentId, state: &State, input: Option<&Input>, out: &mut Vec<Mark>) {
        match id {
            ComponentId::Session(no) => self.container(no, state, input, out),
            ComponentId::Inbound(no) => self.inbound(no, state.inbound(no), out),
            ComponentId::Outbound(no) => self.outbound(no, state, input, out),
            _ => {}
        }
    }

    fn begin(&mut self, kind: Kind, session: SessionNo, label: String) -> Span {
        self.made += 1;
        let (begin, before) = (self.now, self.before);
        Span { id: self.made, kind, session, label, message: None, attempt: None, begin, before }
    }

    fn ended(&self, how: impl Into<String>, good: bool) -> Option<End> {
        Some(End { at: self.now, how: how.into(), good })
    }

    fn container(&mut self, no: SessionNo, state: &State, input: Option<&Input>, out: &mut Vec<Mark>) {
        let phase = state.session(no).map(|session| &session.phase);
        let lives = match phase {
            // Nothing was asked of the runtime yet.
            Some(Phase::Starting { stage: Stage::Projecting, .. }) | None => None,
            Some(phase) => phase.alive(),
        };
        if self.containers.get(&no).is_some_and(|(span, _)| span.attempt != lives)
            && let Some((span, stopped)) = self.containers.remove(&no)
        {
            let end = match input {
                Some(Input::ContainerExited { session, exit, .. }) if *session == no => {
                    let asked = if stopped { ", as asked" } else { "" };
                    let good = stopped || *exit == Exit::Code(0);
                    self.ended(format!("gone ({}{asked})", exit_text(*exit)), good)
                }
                Some(Input::ContainerStartFailed { reason, .. }) => {
                    self.ended(format!("did not start: {reason}"), false)
                }
                Some(other) => self.ended(format!("over with {}", other.name()), stopped),
                None => self.ended("over where a segment begins", true),
            };
            out.push(Mark::End(span, end));
        }
        if let (Some(attempt), false) = (lives, self.containers.contains_key(&no)) {
            let mut span = self.begin(Kind::Container, no, format!("attempt {attempt}"));
            span.attempt = Some(attempt);
            out.push(Mark::Begin(span.clone()));
            self.containers.insert(no, (span, false));
        }
        if let (Some(Phase::Stopping { .. }), Some(open)) = (phase, self.containers.get_mut(&no)) {
            open.1 = true;
        }
    }

    fn inbound(&mut self, no: MessageNo, message: Option<&Inbound>, out: &mut Vec<Mark>) {
        if let Some(it) = message
            && !self.messages.contains_key(&no)
        {
            self.messages.insert(no, None);
            let (id, seen) = (it.id.clone(), self.now);
            let message = Message { no, session: it.session, id, inbound: true, answers: None, seen };
            out.push(Mark::Message(message));
        }
        let claim = message.and_then(|it| match it.state {
            InState::Claimed { attempt, mark, .. } => Some((it, attempt, mark)),
            _ => None,
        });
        let same = |open: &(Span, u64)| {
            claim
                .as_ref()
                .is_some_and(|(_, attempt, mark)| open.0.attempt == Some(*attempt) && open.1 == *mark)
        };
        if self.turns.get(&no).is_some_and(|open| !same(open))
            && let Some((span, _)) = self.turns.remove(&no)
        {
            let end = match message.map(|it| &it.state) {
                Some(InState::Settling { outcome }) => {
                    self.ended(outcome_text(outcome), matches!(outcome, Outcome::Completed))
                }
                Some(InState::Queued { .. }) => self.ended("ended without a result, queued again", false),
                Some(InState::Claimed { .. }) => self.ended("claimed anew", false),
                Some(InState::Writing { .. } | InState::Withheld { .. }) | None => self.ended("closed", true),
            };
            out.push(Mark::End(span, end));
        }
        if let (Some((it, attempt, mark)), false) = (claim, self.turns.contains_key(&no)) {
            let mut span = self.begin(Kind::Turn, it.session, it.id.clone());
            (span.message, span.attempt) = (Some(no), Some(attempt));
            out.push(Mark::Begin(span.clone()));
            self.turns.insert(no, (span, mark));
        }
        if message.is_none() {
            self.messages.remove(&no);
        }
    }

    fn outbound(&mut self, no: MessageNo, state: &State, input: Option<&Input>, out: &mut Vec<Mark>) {
        let message = state.outbound(no);
        if let Some(it) = message
            && !self.messages.contains_key(&no)
        {
            let answers = answered(state, it);
            self.messages.insert(no, answers);
            let (id, seen) = (name_of(it).to_owned(), self.now);
            let message = Message { no, session: it.session, id, inbound: false, answers, seen };
            out.push(Mark::Message(message));
        }
        let under_way = message.and_then(|it| match it.state {
            OutState::Delivering { effect, .. } => Some((it, effect)),
            _ => None,
        });
        if self.deliveries.get(&no).is_some_and(|open| under_way.is_none_or(|(_, effect)| effect != open.1))
            && let Some((span, own)) = self.deliveries.remove(&no)
        {
            let at = self.now;
            let end = match input {
                Some(Input::Delivered { effect, platform_id }) if *effect == own => {
                    if let Some(inbound) = self.messages.get(&no).copied().flatten() {
                        out.push(Mark::Answered { delivery: span.clone(), inbound, at });
                    }
                    let id = platform_id.as_deref().map(|id| format!(" as {id}")).unwrap_or_default();
                    self.ended(format!("delivered{id}"), true)
                }
                Some(Input::DeliveryFailed { effect, class, reason, .. }) if *effect == own => {
                    self.ended(format!("not delivered ({class:?}): {reason}"), false)
                }
                Some(other) => self.ended(format!("over with {}", other.name()), false),
                None => self.ended("over where a segment begins", true),
            };
            out.push(Mark::End(span, end));
        }
        if let (Some((it, effect)), false) = (under_way, self.deliveries.contains_key(&no)) {
            let mut span = self.begin(Kind::Delivery, it.session, name_of(it).to_owned());
            span.message = Some(no);
            out.push(Mark::Begin(span.clone()));
            self.deliveries.insert(no, (span, effect));
        }
        if message.is_none() {
            self.messages.remove(&no);
        }
    }
}

/// The inbound message that an outbound one answers: the one that it names, or the only one that is claimed.
fn answered(state: &State, message: &Outbound) -> Option<MessageNo> {
    let own = state.session(message.session)?.inbox.iter().filter_map(|no| Some((*no, state.inbound(*no)?)));
    match &message.source {
        Source::Row { in_reply_to: Some(id), .. }
        | Source::Notice(Notice::Parked { id, .. } | Notice::Failed { id, .. }) => {
            own.into_iter().find(|(_, it)| it.id == *id).map(|(no, _)| no)
        }
        // What it answers became no message.
        Source::Notice(Notice::TooLate { .. }) => None,
        Source::Row { in_reply_to: None, .. } => {
            // What one reading both answers and completes is not claimed any more when this is asked.
            let at_work = |it: &Inbound| {
                let completed = InState::Settling { outcome: Outcome::Completed };
                matches!(it.state, InState::Claimed { .. }) || it.state == completed
            };
            let mut claimed = own.into_iter().filter(|(_, it)| at_work(it)).map(|(no, _)| no);
            let first = claimed.next()?;
            claimed.next().is_none().then_some(first)
        }
    }
}
