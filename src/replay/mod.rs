//! Replay: folds a journal through the machine and compares what is on record with what the machine does.
//!
//! [`verify`] answers whether a journal replays, [`load`] gives the machine in the state in which the journal ends,
//! [`state_at`] in the state before a record, and [`why`] tells the life of one message. All read the same pieces
//! ([`Piece`]) from segments ([`Source`]), one frame at a time.
//!
//! Invariant: nothing is sent, started or written; effects are compared and dropped.
//! Invariant: memory is bounded by one state and one frame, however long the journal is.

pub mod export;
pub mod fold;
pub mod path;
pub mod report;
pub mod segments;
pub mod timeline;
pub mod waits;
pub mod walk;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::path::Path;

use crate::base::{At, RecordNo, SessionName, SessionNo, Wall};
use crate::journal::record::Record;
use crate::journal::wire::digest::Digests;
use crate::machine::Machine;
use crate::machine::input::Input;
use crate::machine::state::State;
use fold::{Fold, SegmentFacts};
use report::{Class, Divergence, Report, bounded};
use segments::{ReplayError, Segments};
use timeline::{Line, Tracer};

/// Replays a segment, or all segments of a journal folder, and reports what it found, up to the first
/// divergence.
///
/// # Errors
/// When there is no segment, or one cannot be read.
pub fn verify(path: &Path) -> Result<Report, ReplayError> {
    verify_source(&mut Segments::open(path)?)
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
    why_source(&mut Segments::open(path)?, subject)
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
        None => Ok(fold.into_machine().0),
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
        Self { fold: Fold::default(), until, first: None, last: None }
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
        let (machine, digests) = self.fold.into_machine();
        let state = machine.state();
        let (last_at, last_wall) = (state.core().at, state.wall());
        let (last_record, divergence) = (self.last, self.first.map(|found| *found));
        let loaded = Loaded { machine, digests, last_at, last_wall, last_record, records, divergence };
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
    let Some(id) = id else { return Ok(Why::default()) };
    let mut tracer = Tracer::new(id);
    let fold = each_record(source, |fold, record| match record {
        Some(record) => tracer.record(fold, record),
        None => tracer.snapshot(fold),
    })?;
    let still = tracer.still(fold.machine().state());
    Ok(Why { lines: tracer.into_lines(), still })
}

/// The row id of the message with a seq in a session; the newest, should a folder have been made anew.
fn id_of_seq<S: Source>(source: &mut S, session: &str, seq: i64) -> Result<Option<String>, S::Error> {
    let is_named = |no: SessionNo, name: &SessionName| {
        name.to_string() == session || name.session() == session || no.to_string() == session
    };
    let mut found = None;
    let mut find = |state: &State| {
        for message in state.inbounds().values().filter(|it| it.seq == Some(seq)) {
            if state.session(message.session).is_some_and(|it| is_named(message.session, &it.name)) {
                found = Some(message.id.clone());
            }
        }
    };
    each_record(source, |fold, record| {
        let told = match &record {
            // What a row's seq is comes to be known in one of these.
            Some(record) => matches!(record.input, Input::InboundWritten { .. } | Input::SessionFound(_)),
            None => true,
        };
        if let Some(record) = record {
            let _ = fold.apply(record);
        }
        if told {
            find(fold.machine().state());
        }
    })?;
    Ok(found)
}

/// Gives each record to `take`, which applies it, and each whole snapshot as none; as far as the source can be read.
fn each_record<S: Source>(
    source: &mut S,
    mut take: impl FnMut(&mut Fold, Option<Record>),
) -> Result<Fold, S::Error> {
    let mut fold = Fold::default();
    source.read(&mut |piece| {
        let Piece::Record(number, body) = piece else {
            let going = advance(&mut fold, piece).is_ok();
            if going && matches!(piece, Piece::Snapshot(_)) && fold.has_started() {
                take(&mut fold, None);
            }
            return if going { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
        };
        match fold.read(number, body) {
            Ok(record) => take(&mut fold, Some(record)),
            Err(_) => return ControlFlow::Break(()),
        }
        if fold.is_broken() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(fold)
}
