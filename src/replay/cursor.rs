//! A cursor over a journal: goes to any record, also backwards, and shows it with the state before and after it.
//!
//! A journal can only be folded forwards. So the way through it leaves checkpoints, and going back folds on from the
//! nearest one. One pass at the start makes a small row for each record and the checkpoints.
//!
//! Invariant: memory is bounded by 24 bytes for each record and [`CHECKPOINTS_MAX`] states, and by fewer states where
//! they are large.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use super::Piece;
use super::advance;
use super::fold::Fold;
use super::report::Divergence;
use super::segments::{Place, ReplayError, Segments};
use super::walk::{self, Step, Stop};
use crate::base::{At, EffectId, RecordNo, SessionNo};
use crate::machine::effect::Effect;
use crate::machine::input::Input;
use crate::machine::state::{ComponentId, State};

/// The most checkpoints that one cursor keeps from its first pass.
pub const CHECKPOINTS_MAX: usize = 64;
/// The most components in all checkpoints of the first pass together; a component takes about a kilobyte.
const WEIGHT_MAX: usize = 400_000;
/// The first distance between checkpoints, in records; doubled whenever there are too many.
const SPACING: usize = 256;
/// A way back that is longer than this leaves checkpoints before its end, because the next step back is likely.
const NEAR: usize = 32;

/// One record, as the first pass saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub record: RecordNo,
    /// When its input was taken, in machine time.
    pub at: At,
    /// The input's name.
    pub input: &'static str,
    /// The session that the input is about, if it can be told.
    pub session: Option<SessionNo>,
    /// This build decides differently here.
    pub diverges: bool,
}

/// A row as it is kept.
struct Packed {
    record: RecordNo,
    at: At,
    session: u32,
    input: u8,
    diverges: bool,
}

const NO_SESSION: u32 = u32::MAX;

/// One record with all that belongs to it.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Its place among all records, from 0.
    pub index: usize,
    /// Its number.
    pub record: RecordNo,
    /// When its input was taken, in machine time.
    pub at: At,
    /// Time since the record before, in microseconds; 0 for the first.
    pub since_previous: i64,
    /// What happened.
    pub input: Input,
    /// The session that the input is about, if it can be told.
    pub session: Option<SessionNo>,
    /// The texts that the record brings, by their digests.
    pub texts: Vec<(u64, String)>,
    /// What was asked for, as this build decides.
    pub effects: Vec<Effect>,
    /// The components that may have changed.
    pub touched: BTreeSet<ComponentId>,
    /// The state before it.
    pub before: State,
    /// The state after it.
    pub after: State,
    /// What this build decides differently.
    pub divergence: Option<Divergence>,
}

impl Moment {
    /// The effects with their ids.
    pub fn effects(&self) -> impl Iterator<Item = (EffectId, &Effect)> {
        (0..).zip(&self.effects).map(|(index, effect)| (EffectId { record: self.record, index }, effect))
    }
}

/// A record on the way of a search.
#[derive(Debug)]
pub struct Passing<'a> {
    /// Its place among all records, from 0.
    pub index: usize,
    /// The record.
    pub step: Step<'a>,
    /// The texts that it brings.
    pub texts: &'a [(u64, String)],
}

/// What a search does after a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Pass,
    /// This is one.
    Hit,
    /// Gives up.
    Stop,
}

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// At the record of this place.
    At(usize),
    /// There is none.
    Nothing,
    /// It was given up.
    Stopped,
}

/// A state in the journal, to go on from.
#[derive(Clone)]
struct Checkpoint {
    /// The record that comes next.
    next: usize,
    place: Place,
    fold: Fold,
}

impl Checkpoint {
    fn weight(&self) -> usize {
        let state = self.fold.machine().state();
        8 + state.sessions().len()
            + state.inbounds().len()
            + state.outbounds().len()
            + state.destinations().len()
            + state.effects().len()
            + state.questions().len()
            + state.all_missed().len()
    }
}

/// A cursor over a segment or a journal folder.
pub struct Cursor {
    segments: Segments,
    rows: Vec<Packed>,
    /// The inputs' names that occur.
    names: Vec<&'static str>,
    /// From the first pass, in order; the first stands before everything.
    far: Vec<Checkpoint>,
    /// Before the end of the last long way back, in order.
    near: Vec<Checkpoint>,
    /// After the record that was shown last.
    here: Option<Checkpoint>,
    end: Option<String>,
}

impl Cursor {
    /// Opens a segment or a journal folder and passes over all of it once; `progress` hears of every record.
    ///
    /// # Errors
    /// When there is no segment, or one cannot be read.
    pub fn open(path: &Path, mut progress: impl FnMut(usize)) -> Result<Self, ReplayError> {
        let segments = Segments::open(path)?.settled()?;
        let start = Checkpoint { next: 0, place: Place::default(), fold: Fold::default() };
        let (mut rows, mut names): (Vec<Packed>, Vec<&'static str>) = Default::default();
        let mut far = Checkpoints { kept: vec![start.clone()], spacing: SPACING, weight: 0 };
        let end = run(
            &segments,
            start,
            &mut |passing| {
                let Step { record, at, session, input, divergence, .. } = passing.step;
                let name = input.name();
                let known = names.iter().position(|it| *it == name).unwrap_or_else(|| {
                    names.push(name);
                    names.len() - 1
                });
                rows.push(Packed {
                    record,
                    at,
                    session: session.map_or(NO_SESSION, |session| session.0),
                    input: u8::try_from(known).unwrap_or(u8::MAX),
                    diverges: divergence.is_some(),
                });
                progress(rows.len());
                ControlFlow::Continue(())
            },
            &mut |next, place, fold| far.offer(next, place, fold),
        )?
        .end;
        Ok(Self { segments, rows, names, far: far.kept, near: Vec::new(), here: None, end })
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Why the journal cannot be followed beyond its last row, if anything is there.
    pub fn end(&self) -> Option<&str> {
        self.end.as_deref()
    }

    /// The names of the inputs that occur, in order of appearance.
    pub fn inputs(&self) -> &[&'static str] {
        &self.names
    }

    /// The record at a place.
    pub fn row(&self, index: usize) -> Option<Row> {
        let row = self.rows.get(index)?;
        Some(Row {
            record: row.record,
            at: row.at,
            input: self.names.get(usize::from(row.input)).copied().unwrap_or("?"),
            session: (row.session != NO_SESSION).then_some(SessionNo(row.session)),
            diverges: row.diverges,
        })
    }

    /// The place of a record, or of the first one after it; none when all are before it.
    pub fn find(&self, record: RecordNo) -> Option<usize> {
        let index = match self.rows.binary_search_by_key(&record, |row| row.record) {
            Ok(index) | Err(index) => index,
        };
        (index < self.rows.len()).then_some(index)
    }

    /// Goes to a place and shows the record there; none when there is no such place, or the journal has lost it since.
    ///
    /// # Errors
    /// When a segment cannot be read any more.
    pub fn seek(&mut self, index: usize) -> Result<Option<Moment>, ReplayError> {
        if index >= self.rows.len() {
            return Ok(None);
        }
        let start = self.nearest(index);
        let way = index - start.next;
        let mut near = Vec::new();
        let mut before = (start.next == index).then(|| start.fold.machine().state().clone());
        let previous = index.checked_sub(1).and_then(|index| self.rows.get(index)).map(|row| row.at);
        let mut moment = None;
        let ran = run(
            &self.segments,
            start,
            &mut |passing| {
                if passing.index < index {
                    return ControlFlow::Continue(());
                }
                let step = passing.step;
                moment = Some(Moment {
                    index,
                    record: step.record,
                    at: step.at,
                    since_previous: previous.map_or(0, |at| step.at.0.saturating_sub(at.0)),
                    input: step.input.clone(),
                    session: step.session,
                    texts: passing.texts.to_vec(),
                    effects: step.effects.to_vec(),
                    touched: step.touched.clone(),
                    before: State::default(),
                    after: step.state.clone(),
                    divergence: step.divergence.cloned(),
                });
                ControlFlow::Break(())
            },
            &mut |next, place, fold| {
                if next == index {
                    before = Some(fold.machine().state().clone());
                }
                if let Some(place) =
                    place.filter(|_| way > NEAR && next <= index && (index - next).is_power_of_two())
                {
                    near.push(Checkpoint { next, place, fold: fold.clone() });
                }
            },
        )?;
        if way > NEAR {
            self.near = near;
        }
        self.here = ran.at;
        Ok(moment.map(|moment| Moment { before: before.unwrap_or_default(), ..moment }))
    }

    /// The first record from `from` on that is a hit.
    ///
    /// # Errors
    /// When a segment cannot be read any more.
    pub fn search(
        &mut self,
        from: usize,
        mut judge: impl FnMut(&Passing<'_>) -> Verdict,
    ) -> Result<Found, ReplayError> {
        let (len, mut found) = (self.rows.len(), Found::Nothing);
        if from >= len {
            return Ok(found);
        }
        let start = self.nearest(from);
        run(
            &self.segments,
            start,
            &mut |passing| {
                // A live daemon may have written more since.
                if passing.index >= len {
                    return ControlFlow::Break(());
                }
                if passing.index < from {
                    return ControlFlow::Continue(());
                }
                match judge(&passing) {
                    Verdict::Pass => return ControlFlow::Continue(()),
                    Verdict::Hit => found = Found::At(passing.index),
                    Verdict::Stop => found = Found::Stopped,
                }
                ControlFlow::Break(())
            },
            &mut |_, _, _| (),
        )?;
        Ok(found)
    }

    /// The last record before `before` that is a hit. Records are judged in order between two checkpoints, the last
    /// such stretch first.
    ///
    /// # Errors
    /// When a segment cannot be read any more.
    pub fn search_back(
        &mut self,
        before: usize,
        mut judge: impl FnMut(&Passing<'_>) -> Verdict,
    ) -> Result<Found, ReplayError> {
        let mut until = before.min(self.rows.len());
        let starts: Vec<&Checkpoint> = self.far.iter().filter(|it| it.next < until).collect();
        for start in starts.into_iter().rev() {
            let (mut found, next) = (Found::Nothing, start.next);
            run(
                &self.segments,
                start.clone(),
                &mut |passing| {
                    if passing.index >= until {
                        return ControlFlow::Break(());
                    }
                    match judge(&passing) {
                        Verdict::Pass => {}
                        Verdict::Hit => found = Found::At(passing.index),
                        Verdict::Stop => {
                            found = Found::Stopped;
                            return ControlFlow::Break(());
                        }
                    }
                    ControlFlow::Continue(())
                },
                &mut |_, _, _| (),
            )?;
            if found != Found::Nothing {
                return Ok(found);
            }
            until = next;
        }
        Ok(Found::Nothing)
    }

    /// The checkpoint with the shortest way to a place.
    fn nearest(&self, index: usize) -> Checkpoint {
        let all = self.far.iter().chain(&self.near).chain(&self.here);
        let found = all.filter(|it| it.next <= index).max_by_key(|it| it.next);
        // The first of the far ones stands before everything.
        found.cloned().unwrap_or_else(|| Checkpoint {
            next: 0,
            place: Place::default(),
            fold: Fold::default(),
        })
    }
}

/// The checkpoints of the first pass.
struct Checkpoints {
    kept: Vec<Checkpoint>,
    spacing: usize,
    weight: usize,
}

impl Checkpoints {
    fn offer(&mut self, next: usize, place: Option<Place>, fold: &Fold) {
        let Some(place) = place.filter(|_| next.is_multiple_of(self.spacing)) else { return };
        let checkpoint = Checkpoint { next, place, fold: fold.clone() };
        self.weight += checkpoint.weight();
        self.kept.push(checkpoint);
        while self.kept.len() > CHECKPOINTS_MAX || (self.weight > WEIGHT_MAX && self.kept.len() > 2) {
            self.spacing *= 2;
            let spacing = self.spacing;
            self.kept.retain(|it| it.next.is_multiple_of(spacing));
            self.weight = self.kept.iter().map(Checkpoint::weight).sum();
        }
    }
}

/// How a run ended.
struct Ran {
    /// After the last record that was stepped; none when the fold may not be used any more.
    at: Option<Checkpoint>,
    /// Why the journal could not be followed to its end.
    end: Option<String>,
}

/// Folds on from a checkpoint: gives each record to `take` until it breaks, and each state behind one to `mark` with
/// its place; also the state of a snapshot, without a place.
fn run(
    segments: &Segments,
    start: Checkpoint,
    take: &mut dyn FnMut(Passing<'_>) -> ControlFlow<()>,
    mark: &mut dyn FnMut(usize, Option<Place>, &Fold),
) -> Result<Ran, ReplayError> {
    let Checkpoint { mut next, place: from, mut fold } = start;
    let (mut texts, mut end, mut last) = (Vec::new(), None, from);
    // A snapshot that is not the state in which the segment before ended is shown at the record after it.
    let mut wrong_snapshot = None;
    segments.read_from(from, &mut |place, piece| {
        if matches!(piece, Piece::Snapshot(_)) {
            match advance(&mut fold, piece) {
                Ok(()) => {}
                Err(found) if fold.has_started() => wrong_snapshot = Some(found),
                Err(found) => {
                    end = Some(found.to_string());
                    return ControlFlow::Break(());
                }
            }
            if fold.has_started() {
                mark(next, None, &fold);
            }
            return ControlFlow::Continue(());
        }
        let (mut stepped, wrong) = (false, &mut wrong_snapshot);
        let flow = walk::give(&mut fold, piece, &mut |stop| match stop {
            Stop::Snapshot(..) => ControlFlow::Continue(()),
            Stop::Text(text) => {
                texts.push((text.digest, text.text.to_owned()));
                ControlFlow::Continue(())
            }
            Stop::Step(step) => {
                stepped = true;
                let found = wrong.take();
                let step = Step { divergence: step.divergence.or(found.as_deref()), ..step };
                take(Passing { index: next, step, texts: &texts })
            }
            Stop::Tail(why) | Stop::Damaged(why) => {
                end = Some(why.to_owned());
                ControlFlow::Break(())
            }
        });
        if stepped {
            (next, last) = (next + 1, place);
            texts.clear();
            mark(next, Some(place), &fold);
        }
        flow
    })?;
    // Between a segment's header and its first record there is no place to go on from; a run that broke stands
    // behind a record.
    let at = (end.is_none() && fold.has_started()).then_some(Checkpoint { next, place: last, fold });
    Ok(Ran { at, end })
}
