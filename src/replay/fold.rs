//! Folds records through the machine and compares what they say with what it does.
//!
//! Invariant: nothing is sent, started or written; effects are looked at and dropped.
//! Invariant: a record is compared in the order effects, touched components, root; the first difference is
//! reported.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::path;
use super::report::{Class, Divergence, Report, bounded, component_name};
use crate::base::{At, EffectId, RecordNo, SessionNo};
use crate::journal::record::{DIGEST_SCHEMA, Outcome, Record, RecordError, decode_record};
use crate::journal::wire::causes::Causes;
use crate::journal::wire::digest::Digests;
use crate::journal::wire::snapshot::{Snapshot, SnapshotReader};
use crate::machine::effect::Effect;
use crate::machine::input::{Ask, Input};
use crate::machine::state::{ComponentId, Owner, State};
use crate::machine::{Machine, Turn, invariants};

/// All invariants and the root in full are checked so often, in records: often enough to find where something
/// went wrong, rarely enough not to show in the time that a replay takes.
pub const CHECK_EVERY: u64 = 4_096;

/// What a segment's header says, as far as replay asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFacts {
    /// The number that the segment is named by.
    pub first: RecordNo,
    /// The form of its records.
    pub record_schema: u32,
    /// How its digests were made.
    pub digest_schema: u32,
}

/// What one record did to the fold.
#[derive(Debug)]
pub struct Applied {
    /// The turn; none when the step panicked.
    pub turn: Option<Turn>,
    /// The first difference.
    pub divergence: Option<Box<Divergence>>,
}

/// A machine that is led through a journal, with what was found on the way. A clone is a place to come back to.
#[derive(Clone, Debug)]
pub struct Fold {
    machine: Machine,
    digests: Digests,
    /// As the last snapshot has them; kept up to date only by a fold that follows them.
    causes: Causes,
    follows_causes: bool,
    segment: SegmentFacts,
    /// The snapshot that is being read.
    snapshot: Option<SnapshotReader>,
    /// A snapshot was taken, so there is a state that records can be applied to.
    started: bool,
    /// A step panicked that should not have; the machine is in no state to go on.
    broken: bool,
    report: Report,
}

impl Default for Fold {
    fn default() -> Self {
        let machine = Machine::default();
        let segment = SegmentFacts { first: RecordNo(0), record_schema: 0, digest_schema: 0 };
        let digests = Digests::of(machine.state());
        Self {
            machine,
            digests,
            causes: Causes::default(),
            follows_causes: false,
            segment,
            snapshot: None,
            started: false,
            broken: false,
            report: Report::default(),
        }
    }
}

impl Fold {
    /// A fold that also follows what open messages go through.
    pub fn with_causes() -> Self {
        Self { follows_causes: true, ..Self::default() }
    }

    /// What open messages have been through: up to the last snapshot, or up to the last record in a fold that follows
    /// them.
    pub fn causes(&self) -> &Causes {
        &self.causes
    }

    /// The machine as it stands.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Whether a snapshot was read, so that there is a machine to speak of.
    pub fn has_started(&self) -> bool {
        self.started && self.snapshot.is_none()
    }

    /// Whether a step panicked that should not have; the machine must not be used.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// What was found so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Notes what follows the last whole frame.
    pub fn note_tail(&mut self, tail: String) {
        self.report.tail = Some(tail);
    }

    /// The machine, its digests, and what its open messages have been through: see [`causes`](Self::causes).
    pub fn into_parts(self) -> (Machine, Digests, Causes) {
        (self.machine, self.digests, self.causes)
    }

    /// The report, with a divergence if there was one.
    pub fn into_report(mut self, divergence: Option<Box<Divergence>>) -> Report {
        self.report.divergence = divergence.map(|found| *found);
        self.report
    }

    /// A segment begins: its snapshot comes next, then its records.
    pub fn segment(&mut self, facts: SegmentFacts) {
        self.segment = facts;
        self.snapshot = Some(SnapshotReader::default());
        self.report.segments += 1;
        if facts.digest_schema != DIGEST_SCHEMA {
            self.report.foreign_digests += 1;
        }
    }

    /// Takes one part of the segment's snapshot; the last one puts the machine into its state.
    ///
    /// # Errors
    /// When it cannot be read, and then there is no machine; or its root is wrong, or it is not the state in
    /// which the segment before ended.
    pub fn snapshot(&mut self, part: &[u8]) -> Result<(), Box<Divergence>> {
        let Some(mut reader) = self.snapshot.take() else {
            return Err(self.at_snapshot("snapshot", "one snapshot", "a second one", Class::DamagedRecord));
        };
        reader.take(self.segment.record_schema, part).map_err(|error| self.unreadable(&error))?;
        if !reader.is_complete() {
            self.snapshot = Some(reader);
            return Ok(());
        }
        let Snapshot { parts, root, causes } = reader.finish().map_err(|error| self.unreadable(&error))?;
        self.causes = causes;
        self.enter(State::from_parts(parts), root)
    }

    /// Puts the machine into the snapshot's state, also where something about it is wrong.
    fn enter(&mut self, state: State, root: u64) -> Result<(), Box<Divergence>> {
        let digests = Digests::of(&state);
        let before = self.started.then(|| (self.machine.state().core().record, self.digests.root()));
        self.machine = Machine::new(state);
        self.digests = digests;
        self.started = true;
        self.check_root(root)?;
        let found = self.digests.root();
        match before {
            Some((next, _)) if next != self.machine.state().core().record => self.report.gaps += 1,
            Some((_, end)) if end != found => {
                let (expected, actual) = (format!("{found:016x}"), format!("{end:016x}"));
                return Err(self.at_snapshot("snapshot.root", &expected, &actual, Class::InputMissing));
            }
            _ => {}
        }
        let wrong = invariants::check_all(self.machine.state());
        if wrong.is_empty() {
            return Ok(());
        }
        let wrong = wrong.join("; ");
        Err(self.at_snapshot("snapshot.invariants", "none broken", &wrong, Class::CodeChanged))
    }

    /// The snapshot's components have the root that it names.
    fn check_root(&self, root: u64) -> Result<(), Box<Divergence>> {
        let found = self.digests.root();
        if self.segment.digest_schema != DIGEST_SCHEMA || found == root {
            return Ok(());
        }
        let (expected, actual) = (format!("{root:016x}"), format!("{found:016x}"));
        Err(self.at_snapshot("snapshot.root", &expected, &actual, Class::DamagedRecord))
    }

    /// Reads a record from its frame.
    ///
    /// # Errors
    /// When it cannot be read, or is none that can stand here.
    pub fn read(&self, number: RecordNo, body: &[u8]) -> Result<Record, Box<Divergence>> {
        let at = self.machine.state().core().at;
        let differs = |field: &str, expected: &str, actual: &str, class| {
            let (field, session, input) = (field.to_owned(), None, "");
            let (expected, actual) = (bounded(expected), bounded(actual));
            Box::new(Divergence { record: number, at, session, input, field, expected, actual, class })
        };
        if !self.has_started() {
            return Err(differs(
                "snapshot",
                "a whole snapshot",
                "a record before its end",
                Class::DamagedRecord,
            ));
        }
        let record = decode_record(self.segment.record_schema, body)
            .map_err(|error| differs("record", "a readable record", &error.to_string(), class_of(&error)))?;
        if record.number != number {
            let found = record.number.to_string();
            return Err(differs("number", &number.to_string(), &found, Class::DamagedRecord));
        }
        Ok(record)
    }

    /// Steps a record's input and compares. The machine has moved on even where there is a divergence, unless
    /// it [is broken](Self::is_broken).
    pub fn apply(&mut self, record: Record) -> Applied {
        let Record { number, at, outcome, input, effects, touched, root, .. } = record;
        let recorded = Recorded { effects, touched, root };
        let place = Place {
            record: number,
            at,
            session: session_of(self.machine.state(), &input),
            input: input.name(),
        };
        let numbering = self.check_number(&place, &input);
        self.report.records += 1;
        if outcome == Outcome::Panicked {
            let again = self.panic_again(&place, input);
            return Applied { turn: None, divergence: numbering.or(again) };
        }
        let machine = &mut self.machine;
        let turn = match catch_unwind(AssertUnwindSafe(|| machine.step(at, input))) {
            Ok(turn) => turn,
            Err(panic) => {
                self.broken = true;
                let found = place.differs("step", "stepped", &panic_text(panic.as_ref()), Class::CodeChanged);
                return Applied { turn: None, divergence: Some(found) };
            }
        };
        self.digests.update(self.machine.state(), &turn.touched);
        if self.follows_causes {
            self.causes.note(self.machine.state(), &turn.touched, (number, place.at), place.input);
        }
        let divergence = numbering
            .or_else(|| self.compare(&place, &recorded, &turn))
            .or_else(|| self.check_now_and_then(&place));
        Applied { turn: Some(turn), divergence }
    }

    /// Ends the fold: all invariants once more.
    ///
    /// # Errors
    /// When one is broken.
    pub fn finish(&self) -> Result<(), Box<Divergence>> {
        let core = self.machine.state().core();
        let place = Place { record: core.record, at: core.at, session: None, input: "" };
        if !self.started {
            return Ok(());
        }
        self.check(&place).map_or(Ok(()), Err)
    }

    /// A record's number follows on the one before, or begins a boot.
    fn check_number(&self, place: &Place, input: &Input) -> Option<Box<Divergence>> {
        let expected = match input {
            Input::Booted(it) => RecordNo::first_of(it.boot),
            _ => self.machine.state().core().record,
        };
        if place.record == expected {
            return None;
        }
        let class = if place.record > expected { Class::InputMissing } else { Class::DamagedRecord };
        Some(place.differs("number", &place.record.to_string(), &expected.to_string(), class))
    }

    /// The step of this record panicked; it is tried on a copy, because the state before it stands.
    fn panic_again(&mut self, place: &Place, input: Input) -> Option<Box<Divergence>> {
        let mut trial = self.machine.clone();
        let at = place.at;
        match catch_unwind(AssertUnwindSafe(|| trial.step(at, input))) {
            Err(_) => {
                self.report.panicked.push(place.record);
                None
            }
            Ok(turn) => {
                let actual = format!("stepped, with effects {:?}", turn.effects);
                Some(place.differs("step", "panicked", &actual, Class::CodeChanged))
            }
        }
    }

    fn compare(&self, place: &Place, recorded: &Recorded, turn: &Turn) -> Option<Box<Divergence>> {
        if turn.at != place.at {
            let class = Class::DamagedRecord;
            return Some(place.differs("at", &format!("{:?}", place.at), &format!("{:?}", turn.at), class));
        }
        if let Some((index, expected, actual)) = first_difference(&recorded.effects, &turn.effects) {
            return Some(effect_difference(place, index, expected, actual));
        }
        if self.segment.digest_schema != DIGEST_SCHEMA {
            return None;
        }
        let own = self.digests.last();
        let digests = first_difference(&recorded.touched, own);
        if digests.is_none() && recorded.root == self.digests.root() {
            return None;
        }
        // The same components with other digests must give the recorded root; else the record contradicts
        // itself.
        let same_ids = recorded.touched.iter().map(|(id, _)| id).eq(own.iter().map(|(id, _)| id));
        let class = if same_ids && self.digests.root_with(&recorded.touched) != recorded.root {
            Class::DamagedRecord
        } else {
            Class::CodeChanged
        };
        let Some((_, expected, actual)) = digests else {
            let (expected, actual) =
                (format!("{:016x}", recorded.root), format!("{:016x}", self.digests.root()));
            return Some(place.differs("root", &expected, &actual, class));
        };
        Some(self.digest_difference(place, expected, actual, class))
    }

    fn digest_difference(
        &self,
        place: &Place,
        expected: Option<&(ComponentId, u64)>,
        actual: Option<&(ComponentId, u64)>,
        class: Class,
    ) -> Box<Divergence> {
        // Both lists are in the order of ids, so the smaller of the two is the one that the other lacks.
        let id = expected.into_iter().chain(actual).map(|(id, _)| *id).min().unwrap_or(ComponentId::Core);
        let of = |side: Option<&(ComponentId, u64)>| match side {
            Some((own, digest)) if *own == id => format!("{digest:016x}"),
            _ => "not touched".to_owned(),
        };
        let actual = format!("{} {}", of(actual), self.component_text(id));
        place.differs(&format!("touched[{}]", component_name(id)), &of(expected), &actual, class)
    }

    fn component_text(&self, id: ComponentId) -> String {
        let state = self.machine.state();
        match id {
            ComponentId::Core => format!("{:?}", state.core()),
            ComponentId::Policy => format!("{:?}", state.policy()),
            ComponentId::Directory => format!("{:?}", state.directory()),
            ComponentId::Slots => format!("{:?}", state.queue()),
            ComponentId::Session(no) => or_none(state.session(no)),
            ComponentId::Inbound(no) => or_none(state.inbound(no)),
            ComponentId::Outbound(no) => or_none(state.outbound(no)),
            ComponentId::Destination(no) => or_none(state.destination(no)),
            ComponentId::Effect(id) => or_none(state.effects().get(&id)),
            ComponentId::Question(no) => or_none(state.question(no)),
            ComponentId::Complaints => format!("{:?}", state.complaints()),
            ComponentId::Runtime => or_none(state.outage()),
            ComponentId::Missed(no) => or_none(state.missed(no)),
        }
    }

    fn check_now_and_then(&self, place: &Place) -> Option<Box<Divergence>> {
        if self.report.records.is_multiple_of(CHECK_EVERY) { self.check(place) } else { None }
    }

    fn check(&self, place: &Place) -> Option<Box<Divergence>> {
        let state = self.machine.state();
        let wrong = invariants::check_all(state);
        if !wrong.is_empty() {
            return Some(place.differs("invariants", "none broken", &wrong.join("; "), Class::CodeChanged));
        }
        let (kept, full) = (self.digests.root(), Digests::of(state).root());
        if kept != full {
            let what = "a component was changed and not named as touched";
            return Some(place.differs("root", "kept and full root agree", what, Class::CodeChanged));
        }
        None
    }

    fn unreadable(&self, error: &RecordError) -> Box<Divergence> {
        self.at_snapshot("snapshot", "a readable snapshot", &error.to_string(), class_of(error))
    }

    fn at_snapshot(&self, field: &str, expected: &str, actual: &str, class: Class) -> Box<Divergence> {
        let at = self.machine.state().core().at;
        let place = Place { record: self.segment.first, at, session: None, input: "" };
        place.differs(field, expected, actual, class)
    }
}

fn effect_difference(
    place: &Place,
    index: usize,
    expected: Option<&Effect>,
    actual: Option<&Effect>,
) -> Box<Divergence> {
    let field = format!("effects[{index}]");
    if let (Some(expected), Some(actual)) = (expected, actual)
        && let Some(found) = path::first_difference(expected, actual)
        && !found.path.is_empty()
    {
        let field = format!("{field}({}){}", expected.name(), found.path);
        return place.differs(&field, &found.expected, &found.actual, Class::CodeChanged);
    }
    place.differs(&field, &or_none(expected), &or_none(actual), Class::CodeChanged)
}

struct Recorded {
    effects: Vec<Effect>,
    touched: Vec<(ComponentId, u64)>,
    root: u64,
}

/// Where in the journal a comparison is made.
struct Place {
    record: RecordNo,
    at: At,
    session: Option<SessionNo>,
    input: &'static str,
}

impl Place {
    fn differs(&self, field: &str, expected: &str, actual: &str, class: Class) -> Box<Divergence> {
        Box::new(Divergence {
            record: self.record,
            at: self.at,
            session: self.session,
            input: self.input,
            field: field.to_owned(),
            expected: bounded(expected),
            actual: bounded(actual),
            class,
        })
    }
}

fn class_of(error: &RecordError) -> Class {
    match error {
        RecordError::Schema { .. } => Class::Schema,
        RecordError::Damaged { .. } | RecordError::Value(_) | RecordError::TooLarge { .. } => {
            Class::DamagedRecord
        }
    }
}

/// The first place at which two lists differ, with what each has there.
fn first_difference<'a, T: PartialEq>(
    expected: &'a [T],
    actual: &'a [T],
) -> Option<(usize, Option<&'a T>, Option<&'a T>)> {
    let same = expected.iter().zip(actual).take_while(|(a, b)| a == b).count();
    let (expected, actual) = (expected.get(same), actual.get(same));
    (expected.is_some() || actual.is_some()).then_some((same, expected, actual))
}

fn or_none<T: Debug>(value: Option<&T>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| format!("{value:?}"))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}

/// The session that an input is about, as the state before it tells.
pub(super) fn session_of(state: &State, input: &Input) -> Option<SessionNo> {
    match input {
        Input::InboundLocked { session }
        | Input::OutboundRead { session, .. }
        | Input::Looked { session, .. }
        | Input::HeartbeatSeen { session }
        | Input::FolderTooLarge { session, .. }
        | Input::InboundUnwritable { session, .. }
        | Input::ContainerExited { session, .. } => Some(*session),
        Input::InboundWritten { effect, .. }
        | Input::InboundWriteFailed { effect, .. }
        | Input::ContainerStarted { effect }
        | Input::ContainerStartFailed { effect, .. }
        | Input::Delivered { effect, .. }
        | Input::DeliveryFailed { effect, .. }
        | Input::InboundRead { effect, .. }
        | Input::EffectDone { effect, .. } => session_of_effect(state, *effect),
        Input::SessionFound(it) | Input::SessionFoundInPart(it) => state.session_no(&it.name),
        Input::MessageArrived(it)
        | Input::ArrivalWithoutSpace(it)
        | Input::PossibleAnswer { arrival: it, .. }
        | Input::MessageArrivedAt { arrival: it, .. } => {
            state.directory().chats.get(&(it.channel.clone(), it.chat.clone())).copied()
        }
        Input::OperatorAsked { ask, .. } => Some(match ask {
            Ask::StopSession(session)
            | Ask::StartSession(session)
            | Ask::ResetSession(session)
            | Ask::RetryMessage { session, .. }
            | Ask::DropMessage { session, .. }
            | Ask::ResendMessage { session, .. } => *session,
        }),
        Input::TimerDue { key, .. } => session_of_timer(state, *key),
        Input::Booted(_)
        | Input::ContainersFound { .. }
        | Input::ClockSet { .. }
        | Input::PolicyChanged(_)
        | Input::ChannelUp { .. }
        | Input::ChannelDown { .. }
        | Input::ShutdownAsked
        | Input::DetachAsked
        | Input::RuntimeDown { .. }
        | Input::RuntimeUp
        | Input::SessionsUnchanged { .. } => None,
    }
}

fn session_of_effect(state: &State, effect: EffectId) -> Option<SessionNo> {
    match *state.effects().get(&effect)? {
        Owner::Folder(no)
        | Owner::Projection(no)
        | Owner::Start(no)
        | Owner::Look(no)
        | Owner::Reset(no, _) => Some(no),
        Owner::Row(no) | Owner::Update(no) => state.inbound(no).map(|message| message.session),
        Owner::Delivery(no) | Owner::Record(no) => state.outbound(no).map(|message| message.session),
    }
}

fn session_of_timer(state: &State, key: crate::machine::timers::TimerKey) -> Option<SessionNo> {
    use crate::machine::timers::TimerKey as Key;
    match key {
        Key::MessageDue(no)
        | Key::ClaimSilence(no)
        | Key::Ceiling(no)
        | Key::IdleStop(no)
        | Key::Healthy(no)
        | Key::ContainerOverdue(no)
        | Key::StartBackoff(no)
        | Key::LookAgain(no)
        | Key::LookOverdue(no)
        | Key::Withheld(no) => Some(no),
        Key::Destination(no) => state.destination(no).map(|destination| destination.session),
        Key::DeliverAfter(no) | Key::DeliveryOverdue(no) => state.outbound(no).map(|message| message.session),
        Key::Question(no) => state.question(no).map(|question| question.session),
        Key::WithheldAtLarge => None,
        Key::RuntimeSettled => None,
    }
}
