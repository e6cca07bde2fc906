//! Replay: folds a journal through the machine and compares what is on record with what the machine does.
//!
//! [`verify`] answers whether a journal replays, [`load`] gives the machine in the state in which the journal ends,
//! [`state_at`] in the state before a record, and [`why`] tells the life of one message. All read the same pieces
//! ([`Piece`]) from segments ([`Source`]), one frame at a time.
//!
//! Invariant: nothing is sent, started or written; effects are compared and dropped.
//! Invariant: memory is bounded by one state and one frame, however long the journal is; a [`cursor`], which can go
//! back, keeps a bounded number of states and a few bytes for each record.

pub mod compare;
pub mod cursor;
pub mod export;
pub mod fixture;
pub mod fold;
pub mod fork;
pub mod path;
pub mod report;
pub mod segments;
pub mod timeline;
pub mod waits;
pub mod walk;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use crate::base::{At, RecordNo, Wall};
use crate::journal::body::said;
use crate::journal::wire::causes::Causes;
use crate::journal::wire::digest::Digests;
use crate::machine::Machine;
use crate::machine::input::{Input, Reading};
use crate::machine::state::State;
use fold::{Fold, SegmentFacts};
use report::{Class, Divergence, Report, bounded};
use segments::{ReplayError, Segments};
use timeline::{Line, Tracer};
use walk::{Step, Stop, fold_source, walk, walk_source};

/// Replays a segment, or all segments of a journal folder, and reports what it found, up to the first
/// divergence.
///
/// # Errors
/// When there is no segment, or one cannot be read.
pub fn verify(path: &Path) -> Result<Report, ReplayError> {
    verify_source(&mut Segments::open(path)?)
}

/// A source that tells how many bytes of it were read, for a bar that shows how far it is.
pub struct Watched<S, F> {
    /// The source.
    pub source: S,
    /// Told of the bytes of each piece.
    pub read: F,
}

impl<S: Source, F: FnMut(u64)> Source for Watched<S, F> {
    type Error = S::Error;

    fn read(&mut self, take: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>) -> Result<(), Self::Error> {
        let told = &mut self.read;
        self.source.read(&mut |piece| {
            if let Piece::Snapshot(bytes) | Piece::Body(bytes) | Piece::Record(_, bytes) = piece {
                told(bytes.len() as u64);
            }
            take(piece)
        })
    }
}

/// The state in which the journal of a folder ends; none when there is no segment with a whole snapshot. The
/// journal was recovered before.
///
/// # Errors
/// When a segment cannot be read, or the newest snapshot is in a form that this build cannot take.
pub fn load(folder: &Path) -> Result<Option<Loaded>, ReplayError> {
    // The newest segment has all that is needed; an older one only where its snapshot is not whole.
    for mut segment in Segments::newest_first(folder)? {
        match load_source(&mut segment)? {
            Load::Loaded(loaded) => return Ok(Some(*loaded)),
            Load::NoSnapshot => {}
            Load::Unreadable(found) => return Err(ReplayError::Snapshot { path: folder.to_owned(), found }),
        }
    }
    Ok(None)
}

/// What happened to an inbound message and what it waits for, from a segment or a journal folder.
///
/// # Errors
/// When there is no segment, or one cannot be read.
pub fn why(path: &Path, subject: &Subject) -> Result<Why, ReplayError> {
    let found = why_source(&mut Segments::open(path)?, subject)?;
    // A single segment begins where it begins; that says nothing about those before it.
    Ok(if path.is_dir() { found } else { Why { dropped: None, ..found } })
}

/// Which inbound message is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// By its platform's id or its row's.
    Id(String),
    /// By its place in a session, which is named by its folder's name, by group/name, or by its number.
    Seq {
        /// The session.
        session: String,
        /// messages_in.seq.
        seq: i64,
    },
}

/// What became of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// What happened, in order; empty when the journal does not know the message.
    pub lines: Vec<Line>,
    /// What it and its replies wait for where the journal ends; empty when all of it is over.
    pub still: Vec<String>,
    /// What came before the first segment, if there was anything.
    pub dropped: Option<Dropped>,
    /// The message was open where the first segment begins: what happened to it before is not told.
    pub since_snapshot: bool,
}

/// Where a journal begins whose older segments were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The first record that is there.
    pub before: RecordNo,
    /// The time of the last record before it.
    pub at: At,
}

/// The machine in the state before record `at`, or in the state in which the journal ends.
///
/// # Errors
/// When there is no segment, or one cannot be read, or the journal does not replay up to there.
pub fn state_at(path: &Path, at: Option<RecordNo>) -> Result<Machine, StateError> {
    let mut fold = Fold::default();
    let mut found = None;
    Segments::open(path)?.read(&mut |piece| {
        if matches!(piece, Piece::Record(number, _) if at.is_some_and(|at| number >= at)) {
            return ControlFlow::Break(());
        }
        match advance(&mut fold, piece) {
            Ok(()) => ControlFlow::Continue(()),
            Err(divergence) => {
                found = Some(divergence);
                ControlFlow::Break(())
            }
        }
    })?;
    match found {
        Some(divergence) => Err(StateError::Diverged(divergence)),
        None if !fold.has_started() => Err(StateError::NoSnapshot),
        None => Ok(fold.into_parts().0),
    }
}

/// Why a state cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The journal cannot be read.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// This build decides differently on the way there, so it never was in that state.
    #[error("the journal does not replay up to there: {0}")]
    Diverged(Box<Divergence>),
    /// No segment begins with a whole snapshot.
    #[error("there is no whole snapshot to begin with")]
    NoSnapshot,
}

/// One piece of a journal, in the order in which it was written.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// A segment begins.
    Segment(SegmentFacts),
    /// A part of its snapshot.
    Snapshot(&'a [u8]),
    /// The body of a text's frame ([`journal::body`](crate::journal::body)).
    Body(&'a [u8]),
    /// The body of a record's frame.
    Record(RecordNo, &'a [u8]),
    /// A frame that is not whole although what follows it, or its place, says that it was durable.
    Damaged {
        /// The last record before it.
        after: RecordNo,
        /// Where it is and what is wrong, for people.
        why: &'a str,
    },
    /// The segment ends in a tail that was never durable; what it is, for people.
    Tail(&'a str),
}

/// Something that pieces can be read from: a segment, or a folder of them.
pub trait Source {
    /// Why it could not be read.
    type Error;

    /// Gives each piece to `take`, until there is none left or `take` breaks.
    ///
    /// # Errors
    /// When the medium cannot be read. Damage is a piece, not an error.
    fn read(&mut self, take: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>) -> Result<(), Self::Error>;
}

/// Replays all of a source and reports what it found, up to the first divergence.
///
/// # Errors
/// When the source cannot be read.
pub fn verify_source<S: Source>(source: &mut S) -> Result<Report, S::Error> {
    let mut fold = Fold::default();
    let mut found = None;
    source.read(&mut |piece| match advance(&mut fold, piece) {
        Ok(()) => ControlFlow::Continue(()),
        Err(divergence) => {
            found = Some(divergence);
            ControlFlow::Break(())
        }
    })?;
    let found = found.or_else(|| fold.finish().err());
    Ok(fold.into_report(found))
}

/// Gives one piece to a fold; the first difference is an error.
fn advance(fold: &mut Fold, piece: Piece<'_>) -> Result<(), Box<Divergence>> {
    match piece {
        Piece::Segment(facts) => {
            fold.segment(facts);
            Ok(())
        }
        Piece::Snapshot(part) => fold.snapshot(part),
        Piece::Record(number, body) => {
            let record = fold.read(number, body)?;
            fold.apply(record).divergence.map_or(Ok(()), Err)
        }
        Piece::Body(_) => Ok(()),
        Piece::Damaged { after, why } => Err(damaged(fold, after, why)),
        Piece::Tail(what) => {
            fold.note_tail(what.to_owned());
            Ok(())
        }
    }
}

fn damaged(fold: &Fold, after: RecordNo, why: &str) -> Box<Divergence> {
    Box::new(Divergence {
        record: after,
        at: fold.machine().state().core().at,
        session: None,
        input: "",
        field: "the frame after it".to_owned(),
        expected: "a whole frame".to_owned(),
        actual: bounded(why),
        class: Class::DamagedRecord,
    })
}

/// The state in which a journal ends.
#[derive(Debug)]
pub struct Loaded {
    /// The machine.
    pub machine: Machine,
    /// Its digests, for the recorder.
    pub digests: Digests,
    /// What its open messages have been through, for the recorder.
    pub causes: Causes,
    /// The time of its last input.
    pub last_at: At,
    /// The wall clock at that time, as far as the machine knew it.
    pub last_wall: Wall,
    /// The last record that was read; none when there is nothing but a snapshot.
    pub last_record: Option<RecordNo>,
    /// Records read.
    pub records: u64,
    /// The first difference. The state is what this build makes of the inputs; what it lacks, the session
    /// folders tell at start, because rows win over the journal.
    pub divergence: Option<Divergence>,
}

/// How the load of one segment ended.
#[derive(Debug)]
pub enum Load {
    /// There is a state.
    Loaded(Box<Loaded>),
    /// Its snapshot is not whole: it was begun and never used.
    NoSnapshot,
    /// Its snapshot is whole and cannot be taken.
    Unreadable(Box<Divergence>),
}

/// The state in which one segment ends.
///
/// A difference does not end the load: the machine goes on with what this build decides. A record that cannot
/// be read ends it, and so does an input that the machine panics over: the state before it counts.
///
/// # Errors
/// When the source cannot be read.
pub fn load_source<S: Source>(source: &mut S) -> Result<Load, S::Error> {
    let mut loader = Loader::up_to(None);
    source.read(&mut |piece| loader.take(piece))?;
    if loader.fold.is_broken() {
        // The step that panicked left the machine in no known state, so it is led up to that record once more.
        let (until, found) = (loader.last, loader.first);
        loader = Loader::up_to(until);
        loader.first = found;
        source.read(&mut |piece| loader.take(piece))?;
    }
    Ok(loader.finish())
}

struct Loader {
    fold: Fold,
    /// The record to stop before.
    until: Option<RecordNo>,
    /// The first divergence.
    first: Option<Box<Divergence>>,
    /// The last record that was applied, or that broke the machine.
    last: Option<RecordNo>,
}

impl Loader {
    fn up_to(until: Option<RecordNo>) -> Self {
        Self { fold: Fold::with_causes(), until, first: None, last: None }
    }

    fn take(&mut self, piece: Piece<'_>) -> ControlFlow<()> {
        let Piece::Record(number, body) = piece else {
            return match advance(&mut self.fold, piece) {
                Ok(()) => ControlFlow::Continue(()),
                // A snapshot that was taken stands, whatever else is wrong with it.
                Err(found) if self.fold.has_started() && matches!(piece, Piece::Snapshot(_)) => {
                    self.first.get_or_insert(found);
                    ControlFlow::Continue(())
                }
                Err(found) => self.stop(found),
            };
        };
        if self.until.is_some_and(|until| number >= until) {
            return ControlFlow::Break(());
        }
        let record = match self.fold.read(number, body) {
            Ok(record) => record,
            Err(found) => return self.stop(found),
        };
        self.last = Some(number);
        let divergence = self.fold.apply(record).divergence;
        self.first = self.first.take().or(divergence);
        if self.fold.is_broken() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn stop(&mut self, found: Box<Divergence>) -> ControlFlow<()> {
        self.first.get_or_insert(found);
        ControlFlow::Break(())
    }

    fn finish(self) -> Load {
        if !self.fold.has_started() {
            return self.first.map_or(Load::NoSnapshot, Load::Unreadable);
        }
        let records = self.fold.report().records;
        let (machine, digests, causes) = self.fold.into_parts();
        let state = machine.state();
        let (last_at, last_wall) = (state.core().at, state.wall());
        let (last_record, divergence) = (self.last, self.first.map(|found| *found));
        let loaded =
            Loaded { machine, digests, causes, last_at, last_wall, last_record, records, divergence };
        Load::Loaded(Box::new(loaded))
    }
}

/// What happened to an inbound message and what it waits for.
///
/// # Errors
/// When the source cannot be read.
pub fn why_source<S: Source>(source: &mut S, subject: &Subject) -> Result<Why, S::Error> {
    let id = match subject {
        Subject::Id(id) => Some(id.clone()),
        Subject::Seq { session, seq } => id_of_seq(source, session, *seq)?,
    };
    let dropped = dropped(source)?;
    let Some(id) = id else { return Ok(Why { dropped, ..Why::default() }) };
    let mut tracer = Tracer::new(id);
    let (mut since_snapshot, mut is_first) = (false, true);
    let fold = fold_source(source, |stop| {
        match stop {
            Stop::Snapshot(state, causes) => {
                tracer.snapshot(state, causes);
                since_snapshot |= is_first && tracer.has_begun();
                is_first = false;
            }
            Stop::Text(text) => tracer.text(text),
            Stop::Step(step) => tracer.step(&step),
            Stop::Tail(_) | Stop::Damaged(_) => {}
        }
        ControlFlow::Continue(())
    })?;
    let still = tracer.still(fold.machine().state());
    Ok(Why { lines: tracer.into_lines(), still, dropped, since_snapshot })
}

/// What came before the first segment. Its snapshot tells: a journal from its beginning begins with a machine that
/// has stepped nothing.
fn dropped<S: Source>(source: &mut S) -> Result<Option<Dropped>, S::Error> {
    let mut fold = Fold::default();
    let mut first = None;
    source.read(&mut |piece| {
        if let Piece::Segment(facts) = piece {
            first = first.or(Some(facts.first));
        }
        let going = advance(&mut fold, piece).is_ok() && !fold.has_started();
        if going { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let core = fold.machine().state().core();
    let has_past = fold.has_started() && core.record > RecordNo(0);
    Ok(first.filter(|_| has_past).map(|before| Dropped { before, at: core.at }))
}

/// The row id of the message with a seq in a session; the newest, should a folder have been made anew.
fn id_of_seq<S: Source>(source: &mut S, session: &str, seq: i64) -> Result<Option<String>, S::Error> {
    let mut found = None;
    let mut find = |state: &State| {
        for message in state.inbounds().values().filter(|it| it.seq == Some(seq)) {
            if state.is_named(message.session, session) {
                found = Some(message.id.clone());
            }
        }
    };
    walk_source(source, |stop| {
        match stop {
            Stop::Snapshot(state, _) => find(state),
            // What a row's seq is comes to be known in one of these.
            Stop::Step(Step {
                input: Input::InboundWritten { .. } | Input::SessionFound(_) | Input::SessionFoundInPart(_),
                state,
                ..
            }) => find(state),
            Stop::Step(_) | Stop::Text(_) | Stop::Tail(_) | Stop::Damaged(_) => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// A message whose text, or a reply to which, holds a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    /// The record that brings the text.
    pub record: RecordNo,
    /// When.
    pub at: At,
    /// The inbound message's id, as [`Subject::Id`] takes it.
    pub id: String,
    /// What the text says.
    pub text: String,
}

/// The inbound messages whose text, or a reply to which, holds `piece`, the newest `most` of them. A message without
/// its text in the journal is not found, nor is a reply that names no message.
///
/// # Errors
/// When there is no segment, or one cannot be read.
pub fn mentions(path: &Path, piece: &str, most: usize) -> Result<Vec<Mention>, ReplayError> {
    let mut found: Vec<Mention> = Vec::new();
    let mut texts: BTreeMap<u64, String> = BTreeMap::new();
    walk(path, |stop| {
        match stop {
            Stop::Text(text) => {
                let said = said(text.text);
                if said.contains(piece) {
                    texts.insert(text.digest, said.into_owned());
                }
            }
            Stop::Step(step) => {
                for (id, digest) in named_texts(step.input) {
                    let Some(text) = texts.remove(&digest) else { continue };
                    if let Some(id) = id {
                        found.retain(|it| !is_same(&it.id, &id));
                        found.push(Mention { record: step.record, at: step.at, id, text });
                    }
                }
                if found.len() > most {
                    found.drain(..found.len() - most);
                }
                texts.clear();
            }
            Stop::Snapshot(..) | Stop::Tail(_) | Stop::Damaged(_) => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Whether two ids are one message's: as the platform has it, and as its row has it with the agent group behind.
fn is_same(a: &str, b: &str) -> bool {
    let (long, short) = if a.len() > b.len() { (a, b) } else { (b, a) };
    long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// The digests of the texts that an input brings, with the inbound message that each is about.
fn named_texts(input: &Input) -> Vec<(Option<String>, u64)> {
    match input {
        Input::MessageArrived(it)
        | Input::PossibleAnswer { arrival: it, .. }
        | Input::MessageArrivedAt { arrival: it, .. } => {
            vec![(Some(it.message_id.clone()), it.facts.digest)]
        }
        Input::OutboundRead { reading: Reading::Rows(rows), .. }
        | Input::Looked { reading: Reading::Rows(rows), .. } => {
            rows.rows.iter().map(|row| (row.in_reply_to.clone(), row.digest)).collect()
        }
        _ => Vec::new(),
    }
}
