//! The life of one inbound message as lines: what happened to it, by which rule, when, and how long after the line
//! before; and what it waits for where the journal ends.
//!
//! Everything is derived from inputs and effects that name the message or the attempt that works on it, and
//! from the message's own state; replies are rows that say they answer it, and rows of its session while it
//! was claimed.

use std::collections::BTreeMap;
use std::fmt;

use super::waits::{self, Waits};
use super::walk::Step;
use crate::base::{At, Attempt, EffectId, MessageNo, RecordNo, SessionNo};
use crate::journal::body::{Text, said};
use crate::journal::wire::causes::{Cause, Causes};
use crate::machine::effect::{
    AgentNote, Body, DeliveryEnd, Denial, Effect, InboundChange, Notice, Outcome, Payload,
};
use crate::machine::input::{Arrival, DeliveryFault, Exit, Input, OutRow, Reading, Rows, SessionFound};
use crate::machine::state::{Hold, InState, Inbound, OutState, Phase, QuestionState, Source, State, Wait};

/// One line of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The record that it comes from.
    pub record: RecordNo,
    /// When.
    pub at: At,
    /// Microseconds since the line before.
    pub since_previous: i64,
    /// What happened.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = format!("+{}.{:03} ms", self.since_previous / 1_000, self.since_previous % 1_000);
        write!(f, "{} {since:>14}  {:<9} {}", self.at, self.record.to_string(), self.text)
    }
}

/// Characters of a text that a line shows.
const TEXT_SHOWN: usize = 60;

fn fault_text(fault: DeliveryFault) -> &'static str {
    match fault {
        DeliveryFault::Transient => "for now",
        DeliveryFault::Permanent => "for good",
        DeliveryFault::NoRecipient => "nobody receives",
        DeliveryFault::InDoubt => "as far as is known",
    }
}

fn end_text(end: &DeliveryEnd) -> String {
    match end {
        DeliveryEnd::Failed(why) => format!("did not arrive: {why}"),
        DeliveryEnd::Denied(Denial::UnsupportedAction(action)) => {
            format!("was refused: this host does not do {action:?} yet")
        }
        DeliveryEnd::Denied(_) => "was not sent: it may not send there".to_owned(),
        DeliveryEnd::Expired => "did not arrive: nobody came to receive it".to_owned(),
        DeliveryEnd::Unknown => "may or may not have arrived".to_owned(),
        DeliveryEnd::Dropped => "was dropped by an operator".to_owned(),
        DeliveryEnd::ChannelDown => "did not arrive: its channel stayed down".to_owned(),
    }
}

/// The beginning of a text: of an outbound row's content, which is JSON, what it says.
fn shortened(text: &str) -> String {
    let said = said(text);
    let mut start: String = said.chars().take(TEXT_SHOWN).collect();
    if start.len() < said.len() {
        start.push('…');
    }
    start
}

/// What an effect that is under way is to the message.
enum Waiting {
    Write,
    Project,
    Start(Attempt),
    Update(&'static str),
    Deliver(String),
    Record(String),
}

/// Follows one message through a journal.
pub struct Tracer {
    /// As the channel or the row has it.
    id: String,
    /// messages_in.id, once it is known.
    row: Option<String>,
    receipt: Option<(String, u64)>,
    message: Option<MessageNo>,
    session: Option<SessionNo>,
    /// Where it stood after the last record; none before it is there and after it is gone.
    state: Option<InState>,
    /// It was there and is gone.
    closed: bool,
    /// Rows that count as replies, by their id.
    replies: Vec<String>,
    /// Where the questions among them stood after the last record.
    questions: BTreeMap<String, QuestionState>,
    waiting: BTreeMap<EffectId, Waiting>,
    /// What kept it from being worked on, and its replies from going, after the last record.
    kept_back: BTreeMap<String, String>,
    /// Wall clock minus machine time after the last record, in microseconds.
    offset: i64,
    /// The texts that the record at hand brings, by digest.
    texts: BTreeMap<u64, String>,
    lines: Vec<Line>,
}

impl Tracer {
    /// For a message by its platform's id or its row's.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            row: None,
            receipt: None,
            message: None,
            session: None,
            state: None,
            closed: false,
            replies: Vec::new(),
            questions: BTreeMap::new(),
            waiting: BTreeMap::new(),
            kept_back: BTreeMap::new(),
            offset: 0,
            texts: BTreeMap::new(),
            lines: Vec::new(),
        }
    }

    /// The lines, in order.
    pub fn into_lines(self) -> Vec<Line> {
        self.lines
    }

    /// Whether there is anything to tell yet.
    pub(super) fn has_begun(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Takes up a message that a snapshot holds open already, with the replies to it that are open too, and tells what
    /// the snapshot remembers of them.
    pub(super) fn snapshot(&mut self, state: &State, causes: &Causes) {
        if self.message.is_some() {
            return;
        }
        let Some((no, message)) = self.find(state) else { return };
        self.adopt(no, message.session, &message.id);
        self.state = Some(message.state.clone());
        let mut remembered: Vec<(Cause, String)> =
            causes.of(no).map(|cause| (*cause, "the message".to_owned())).collect();
        for (&reply, outbound) in state.outbounds() {
            let Source::Row { id, in_reply_to: Some(to), .. } = &outbound.source else { continue };
            if outbound.session == message.session && self.is_row(to) {
                self.replies.push(id.clone());
                remembered.extend(causes.of(reply).map(|cause| (*cause, format!("reply {id}"))));
            }
        }
        // Stable: what one record did stays in its order.
        remembered.sort_by_key(|(cause, _)| cause.record);
        for (Cause { record, at, input, left }, what) in remembered {
            self.line(record, at, format!("{input}: {what} {left} (as the snapshot remembers)"));
        }
        let core = state.core();
        self.line(core.record, core.at, format!("open in the snapshot as {no} of {}", message.session));
    }

    /// Notes a text that the next record brings.
    pub(super) fn text(&mut self, text: Text<'_>) {
        self.texts.insert(text.digest, shortened(text.text));
    }

    /// Writes down what one record says about the message.
    pub(super) fn step(&mut self, step: &Step<'_>) {
        self.input(step.record, step.at, step.input);
        self.effects(step);
        self.follow(step.record, step.at, step.state);
        self.follow_questions(step.record, step.at, step.state);
        self.offset = step.state.core().offset;
        self.keep_back(step.record, step.at, step.state);
        self.texts.clear();
    }

    /// The text of a digest as the end of a line, if the journal has it.
    fn quoted(&self, digest: u64) -> String {
        self.texts.get(&digest).map(|text| format!(": {text:?}")).unwrap_or_default()
    }

    fn line(&mut self, record: RecordNo, at: At, text: impl Into<String>) {
        let since_previous = self.lines.last().map_or(0, |line| at.0.saturating_sub(line.at.0).max(0));
        self.lines.push(Line { record, at, since_previous, text: text.into() });
    }

    fn is_row(&self, id: &str) -> bool {
        self.row.as_deref() == Some(id) || (self.row.is_none() && self.id == id)
    }

    fn find<'a>(&self, state: &'a State) -> Option<(MessageNo, &'a Inbound)> {
        let full = format!("{}:{}", self.id, state.directory().group);
        state.inbounds().iter().find(|(_, m)| m.id == self.id || m.id == full).map(|(&no, m)| (no, m))
    }

    fn adopt(&mut self, no: MessageNo, session: SessionNo, row: &str) {
        self.message = Some(no);
        self.session = Some(session);
        self.row = Some(row.to_owned());
        self.closed = false;
    }

    /// What the input itself says.
    fn input(&mut self, record: RecordNo, at: At, input: &Input) {
        match input {
            Input::MessageArrived(it)
            | Input::ArrivalWithoutSpace(it)
            | Input::PossibleAnswer { arrival: it, .. }
            | Input::MessageArrivedAt { arrival: it, .. } => self.arrived(record, at, it),
            Input::SessionFound(it)
            | Input::SessionFoundInPart(it)
            | Input::InboundRead { found: it, .. } => self.found(record, at, it),
            Input::OutboundRead { session, reading } | Input::Looked { session, reading, .. } => {
                if let (true, Reading::Rows(rows)) = (self.session == Some(*session), reading) {
                    self.rows(record, at, rows);
                }
            }
            Input::ContainerExited { session, attempt, exit } if self.is_open_in(*session) => {
                self.line(record, at, format!("container of attempt {attempt} gone ({})", exit_text(*exit)));
            }
            Input::FolderTooLarge { session, detail } if self.is_open_in(*session) => {
                self.line(record, at, detail.clone());
            }
            Input::RuntimeDown { reason } if self.message.is_some() && !self.closed => {
                self.line(record, at, format!("the runtime is away: {reason}"));
            }
            Input::RuntimeUp if self.message.is_some() && !self.closed => {
                self.line(record, at, "the runtime is back");
            }
            Input::ClockSet { offset } => {
                let moved = offset.saturating_sub(std::mem::replace(&mut self.offset, *offset)) / 1_000_000;
                if self.message.is_some() && !self.closed && moved != 0 {
                    let how = if moved > 0 { "forward" } else { "back" };
                    self.line(record, at, format!("the wall clock was set {how} by {} s", moved.abs()));
                }
            }
            Input::Booted(it) => {
                // Channels count their receipts anew.
                self.receipt = None;
                if self.message.is_some() && !self.closed {
                    self.waiting.clear();
                    self.line(record, at, format!("the daemon started again (boot {})", it.boot.0));
                }
            }
            other => {
                if let Some(text) = self.completion(other) {
                    self.line(record, at, text);
                }
            }
        }
    }

    /// What the end of an effect that was waited for says.
    fn completion(&mut self, input: &Input) -> Option<String> {
        Some(match input {
            Input::InboundWritten { effect, seq, duplicate } => {
                self.waiting.remove(effect)?;
                let text = if *duplicate { "a row of that id was there" } else { "row written" };
                format!("{text}, seq {seq}")
            }
            Input::InboundWriteFailed { effect, reason } => {
                self.waiting.remove(effect)?;
                format!("row not written: {reason}")
            }
            Input::ContainerStarted { effect } => match self.waiting.remove(effect)? {
                Waiting::Start(attempt) => format!("container of attempt {attempt} started"),
                _ => return None,
            },
            Input::ContainerStartFailed { effect, reason } => {
                self.waiting.remove(effect)?;
                format!("container did not start: {reason}")
            }
            Input::Delivered { effect, platform_id } => {
                let what = self.delivery(*effect)?;
                let id = platform_id.as_deref().map(|id| format!(" as {id}")).unwrap_or_default();
                format!("{what} delivered{id}")
            }
            Input::DeliveryFailed { effect, class, reason, .. } => {
                let what = self.delivery(*effect)?;
                format!("{what} not delivered, {}: {reason}", fault_text(*class))
            }
            Input::EffectDone { effect, error } => {
                let what = match self.waiting.remove(effect)? {
                    Waiting::Project => "destinations written".to_owned(),
                    Waiting::Update(what) => format!("row changed: {what}"),
                    Waiting::Record(what) => format!("on record: {what}"),
                    Waiting::Write | Waiting::Start(_) | Waiting::Deliver(_) => return None,
                };
                match error {
                    None => what,
                    Some(error) => format!("{what}: failed: {error}"),
                }
            }
            _ => return None,
        })
    }

    fn delivery(&mut self, effect: EffectId) -> Option<String> {
        match self.waiting.remove(&effect)? {
            Waiting::Deliver(what) => Some(what),
            _ => None,
        }
    }

    fn is_open_in(&self, session: SessionNo) -> bool {
        self.session == Some(session) && self.message.is_some() && !self.closed
    }

    fn arrived(&mut self, record: RecordNo, at: At, it: &Arrival) {
        let named = it.message_id == self.id
            || self.id.strip_prefix(it.message_id.as_str()).is_some_and(|rest| rest.starts_with(':'));
        if !named {
            return;
        }
        self.receipt = Some((it.channel.clone(), it.receipt));
        let text = self.quoted(it.facts.digest);
        let text = format!("arrived on {} from {}, {} bytes{text}", it.channel, it.chat, it.facts.bytes);
        self.line(record, at, text);
    }

    fn found(&mut self, record: RecordNo, at: At, it: &SessionFound) {
        let prefix = format!("{}:{}", self.id, it.name.group());
        if it.pending.iter().any(|row| row.id == self.id || row.id == prefix) {
            self.line(record, at, format!("found pending in {}", it.name));
        }
    }

    fn rows(&mut self, record: RecordNo, at: At, rows: &Rows) {
        for row in &rows.rows {
            if self.is_reply(row) && !self.replies.contains(&row.id) {
                self.replies.push(row.id.clone());
                let text = self.quoted(row.digest);
                self.line(record, at, format!("reply {} read from outbound.db{text}", row.id));
            }
        }
    }

    /// Says that it answers the message, or says nothing and comes while the message is claimed.
    fn is_reply(&self, row: &OutRow) -> bool {
        match &row.in_reply_to {
            Some(to) => self.is_row(to),
            None => matches!(self.state, Some(InState::Claimed { .. })),
        }
    }

    /// What the step asked for.
    fn effects(&mut self, step: &Step<'_>) {
        let (record, at, state) = (step.record, step.at, step.state);
        for (id, effect) in step.effects() {
            match effect {
                Effect::WriteInbound { message, session, id: row, body, .. } => {
                    self.written(id, *message, *session, row, body);
                    if let Body::Note(
                        AgentNote::NotDelivered { id: row, end } | AgentNote::AndMore { id: row, end, .. },
                    ) = body
                        && self.replies.contains(row)
                    {
                        let text = format!("the agent is told: reply {row} {}", end_text(end));
                        self.line(record, at, text);
                    }
                    if let Body::Answer { id: question, option, arrival: Some(it), .. } = body
                        && self.is_receipt(&it.channel, it.receipt)
                    {
                        let number = u32::from(*option) + 1;
                        self.line(record, at, format!("answers question {question} with option {number}"));
                    }
                }
                Effect::AcceptInbound { channel, receipt, .. } if self.is_receipt(channel, *receipt) => {
                    self.line(record, at, "accepted: its sender may forget it");
                }
                Effect::RefuseInbound { channel, receipt, reason } if self.is_receipt(channel, *receipt) => {
                    self.line(record, at, format!("refused: {reason:?}"));
                }
                Effect::ProjectDestinations { session, .. } if self.is_open_in(*session) => {
                    self.waiting.insert(id, Waiting::Project);
                    let (used, slots) = (state.alive().len(), state.policy().slots);
                    let text = format!("woken: due, slot {used} of {slots}; destinations are written first");
                    self.line(record, at, text);
                }
                Effect::StartContainer { session, attempt } if self.is_open_in(*session) => {
                    self.waiting.insert(id, Waiting::Start(*attempt));
                    self.line(record, at, format!("start of attempt {attempt} asked for"));
                }
                Effect::StopContainer { session, attempt, reason, .. } if self.is_open_in(*session) => {
                    self.line(record, at, format!("attempt {attempt} asked to stop: {}", reason.name()));
                }
                Effect::UpdateInbound { message, change, .. } if self.message == Some(*message) => {
                    self.waiting.insert(id, Waiting::Update(change_text(change)));
                }
                Effect::Deliver { session, payload, number, .. } if self.session == Some(*session) => {
                    if let Some(what) = self.payload(payload) {
                        self.line(record, at, format!("{what} handed to its channel, try {number}"));
                        self.waiting.insert(id, Waiting::Deliver(what));
                    }
                }
                Effect::RecordDelivery { session, id: row, delivered, .. }
                    if self.session == Some(*session) && self.replies.contains(row) =>
                {
                    let how = if *delivered { "delivered" } else { "failed" };
                    self.waiting.insert(id, Waiting::Record(format!("reply {row} {how}")));
                }
                Effect::TellSettled { id: row, outcome, .. } if self.is_row(row) || self.id == *row => {
                    self.line(record, at, format!("its chat is told: {}", outcome_text(outcome)));
                }
                _ => {}
            }
        }
    }

    fn is_receipt(&self, channel: &str, receipt: u64) -> bool {
        self.receipt.as_ref().is_some_and(|(own, no)| own == channel && *no == receipt)
    }

    fn written(&mut self, effect: EffectId, no: MessageNo, session: SessionNo, row: &str, body: &Body) {
        let own = match body {
            Body::Arrived { channel, receipt } => self.is_receipt(channel, *receipt),
            Body::Note(_) => self.is_row(row),
            Body::Answer { arrival, .. } => {
                arrival.as_ref().is_some_and(|it| self.is_receipt(&it.channel, it.receipt))
            }
        };
        // A repeat of a message that is open keeps its first number.
        if own && (self.message.is_none() || self.closed) {
            self.adopt(no, session, row);
        }
        if own {
            self.waiting.insert(effect, Waiting::Write);
        }
    }

    fn payload(&self, payload: &Payload) -> Option<String> {
        match payload {
            Payload::Row { id, .. } if self.replies.contains(id) => Some(format!("reply {id}")),
            Payload::Notice(
                Notice::Parked { id, .. } | Notice::Failed { id, .. } | Notice::TooLate { id, .. },
            ) if self.is_row(id) => Some("the host's notice".to_owned()),
            Payload::Row { .. } | Payload::Notice(_) => None,
        }
    }

    /// What keeps the message, or a reply to it, from going on; a line whenever that changes.
    fn keep_back(&mut self, record: RecordNo, at: At, state: &State) {
        for (what, waits) in self.waits(state) {
            // A wait that the machine is about to end is no reason, and neither is one that every message has.
            let why = match &waits {
                Some((waits, true)) => waits.what.clone(),
                _ => String::new(),
            };
            let before = self.kept_back.insert(what.clone(), why.clone()).unwrap_or_default();
            if !why.is_empty() && before != why {
                let until = until_text(waits.as_ref().and_then(|(waits, _)| waits.until));
                self.line(record, at, format!("{what} held back: {why}{until}"));
            }
        }
    }

    /// What the message and each of its replies waits for, and whether somebody must be told at once.
    fn waits(&self, state: &State) -> Vec<(String, Option<(Waits, bool)>)> {
        let mut all = Vec::new();
        if let (Some(no), Some(session), false) = (self.message, self.session, self.closed) {
            let due =
                state.inbound(no).is_some_and(|it| matches!(it.state, InState::Queued { wait: Wait::Now }));
            let blocked = state.queue().contains(&session)
                || state.session(session).is_some_and(|it| {
                    it.held || matches!(it.phase, Phase::BackingOff { .. } | Phase::Quarantined { .. })
                });
            let waits = waits::of_inbound(state, no).map(|waits| (waits, due && blocked));
            all.push(("the message".to_owned(), waits));
        }
        for (&no, message) in state.outbounds() {
            let id = waits::name_of(message);
            if self.session != Some(message.session) || !self.replies.iter().any(|reply| reply == id) {
                continue;
            }
            let destination = state.destination_no(message.session, &message.to);
            let hold = destination.and_then(|no| state.destination(no)).map_or(Hold::None, |it| it.hold);
            let up = message.to.chat().and_then(|(channel, _)| state.directory().channels.get(channel));
            let blocked = hold != Hold::None || !up.is_some_and(|it| it.up);
            let queued = matches!(message.state, OutState::Queued);
            let waits = waits::of_outbound(state, no).map(|waits| (waits, queued && blocked));
            all.push((format!("reply {id}"), waits));
        }
        for (no, question) in self.session.into_iter().flat_map(|session| state.open_questions(session)) {
            if self.replies.contains(&question.id) {
                let waits = waits::of_question(state, no).map(|waits| (waits, false));
                all.push((format!("question {}", question.id), waits));
            }
        }
        all
    }

    /// What the message and its open replies wait for now, in words; nothing when all of it is over.
    pub fn still(&self, state: &State) -> Vec<String> {
        let open = self.waits(state).into_iter().filter_map(|(what, waits)| Some((what, waits?.0)));
        open.map(|(what, waits)| format!("{what} waits: {}{}", waits.what, until_text(waits.until))).collect()
    }

    /// What became of the questions that its turn asked.
    fn follow_questions(&mut self, record: RecordNo, at: At, state: &State) {
        let Some(session) = self.session else { return };
        for (_, question) in state.questions_of(session) {
            if !self.replies.contains(&question.id)
                || self.questions.get(&question.id) == Some(&question.state)
            {
                continue;
            }
            let was = self.questions.insert(question.id.clone(), question.state.clone());
            let (id, options) = (&question.id, question.facts.labels.len());
            let text = match (&question.state, was) {
                (QuestionState::Asked | QuestionState::Open, None) => {
                    format!(
                        "reply {id} is a question with {options} options, open for {}",
                        question.facts.timeout
                    )
                }
                (QuestionState::Answered { by, option, on_disk: false, .. }, _) => {
                    format!("question {id} answered by {by} with option {}", u32::from(*option) + 1)
                }
                (QuestionState::Closed { .. }, _) => format!("question {id} closed: nobody answered in time"),
                _ => continue,
            };
            self.line(record, at, text);
        }
    }

    /// What became of the message's own state.
    fn follow(&mut self, record: RecordNo, at: At, state: &State) {
        if self.message.is_none()
            && let Some((no, message)) = self.find(state)
        {
            self.adopt(no, message.session, &message.id);
        }
        let Some(no) = self.message.filter(|_| !self.closed) else { return };
        let tries = state.inbound(no).map_or(0, |message| message.tries);
        let now = state.inbound(no).map(|message| &message.state);
        if now == self.state.as_ref() {
            return;
        }
        let before = self.state.take();
        self.state = now.cloned();
        match (before, now) {
            (Some(_), None) => {
                self.closed = true;
                self.line(record, at, "closed");
            }
            (_, Some(InState::Writing { .. })) => {
                let session = self.session.unwrap_or_default();
                self.line(record, at, format!("to be written into {session} as {no}"));
            }
            (_, Some(InState::Queued { wait })) => self.line(record, at, wait_text(*wait, tries)),
            (_, Some(InState::Claimed { attempt, .. })) => {
                self.line(record, at, format!("claimed by attempt {attempt}"));
            }
            // A note to the agent, which nobody asks after.
            (_, Some(InState::Withheld { .. })) => {}
            (_, Some(InState::Settling { outcome })) => self.line(record, at, outcome_text(outcome)),
            (None, None) => {}
        }
    }
}

/// "until" and the time, as far as there is one.
fn until_text(until: Option<At>) -> String {
    until.map(|at| format!(", until {at}")).unwrap_or_default()
}

pub(super) fn exit_text(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("code {code}"),
        Exit::Signal(signal) => format!("signal {signal}"),
        Exit::Unknown => "nobody saw how".to_owned(),
        Exit::OutOfMemory => "out of memory".to_owned(),
    }
}

fn change_text(change: &InboundChange) -> &'static str {
    match change {
        InboundChange::Complete => "completed",
        InboundChange::Fail => "failed",
        InboundChange::Reschedule { .. } => "waits again",
    }
}

pub(super) fn outcome_text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Completed => "completed".to_owned(),
        Outcome::Failed(reason) => format!("failed: {reason}"),
        Outcome::Parked(tries) => format!("parked after {tries} tries"),
        Outcome::Dropped => "dropped by an operator".to_owned(),
        Outcome::Before => "was over before".to_owned(),
    }
}

fn wait_text(wait: Wait, tries: u32) -> String {
    match wait {
        Wait::Now => "queued, due now".to_owned(),
        Wait::Until(_) => "queued until its own time".to_owned(),
        Wait::Backoff { wait, .. } => format!("queued again in {wait}: try {tries} ended without a result"),
        Wait::Missed { wait, .. } => {
            format!("queued again in {wait}: the service behind the agent could not be had")
        }
        Wait::Held { .. } => "held back while another message is tried alone".to_owned(),
        Wait::Never => "queued for ever: its time cannot be read".to_owned(),
    }
}
