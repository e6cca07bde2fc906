//! A walk over a journal: every record with what led to it and what it did, in order, one at a time.
//!
//! Invariant: memory is bounded by one state and one record.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use super::fold::{Fold, session_of};
use super::report::Divergence;
use super::segments::{ReplayError, Segments};
use super::{Piece, Source, advance};
use crate::base::{At, EffectId, RecordNo, SessionNo};
use crate::journal::body::{self, Text};
use crate::journal::wire::causes::Causes;
use crate::machine::effect::Effect;
use crate::machine::input::Input;
use crate::machine::state::{ComponentId, State};

/// One stop of a walk.
#[derive(Clone, Copy, Debug)]
pub enum Stop<'a> {
    /// A segment's snapshot was taken: the state before its first record, and what the open messages have been through.
    Snapshot(&'a State, &'a Causes),
    /// The text of a message, which the next record brings.
    Text(Text<'a>),
    /// A record was stepped.
    Step(Step<'a>),
    /// The journal ends in a tail that was never durable, as a crash leaves it; what it is, for people.
    Tail(&'a str),
    /// The journal cannot be walked on, for this reason.
    Damaged(&'a str),
}

/// One record, stepped.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Its number.
    pub record: RecordNo,
    /// When its input was taken, in machine time.
    pub at: At,
    /// What happened.
    pub input: &'a Input,
    /// The session that the input is about, as far as it can be told from input and state.
    pub session: Option<SessionNo>,
    /// What was asked for, as this build decides; see `divergence`.
    pub effects: &'a [Effect],
    /// The components that may have changed.
    pub touched: &'a BTreeSet<ComponentId>,
    /// The state afterwards.
    pub state: &'a State,
    /// The machine panicked over the input, then and now: there are no effects, and the state before it stands.
    pub panicked: bool,
    /// What this build decides differently from the record, if anything.
    pub divergence: Option<&'a Divergence>,
}

impl Step<'_> {
    /// The effects with their ids.
    pub fn effects(&self) -> impl Iterator<Item = (EffectId, &Effect)> {
        (0..).zip(self.effects).map(|(index, effect)| (EffectId { record: self.record, index }, effect))
    }
}

/// Walks over a segment or a journal folder until `take` breaks. A divergence does not end the walk: what follows is
/// what this build makes of the inputs.
///
/// # Errors
/// When there is no segment, or one cannot be read.
pub fn walk(path: &Path, take: impl FnMut(Stop<'_>) -> ControlFlow<()>) -> Result<(), ReplayError> {
    walk_source(&mut Segments::open(path)?, take)
}

/// Walks over a source until `take` breaks.
///
/// # Errors
/// When the source cannot be read.
pub fn walk_source<S: Source>(
    source: &mut S,
    take: impl FnMut(Stop<'_>) -> ControlFlow<()>,
) -> Result<(), S::Error> {
    fold_source(source, take).map(|_| ())
}

/// As [`walk_source`]; gives the fold as the walk left it.
pub(super) fn fold_source<S: Source>(
    source: &mut S,
    mut take: impl FnMut(Stop<'_>) -> ControlFlow<()>,
) -> Result<Fold, S::Error> {
    let mut fold = Fold::default();
    source.read(&mut |piece| give(&mut fold, piece, &mut take))?;
    Ok(fold)
}

/// Gives one piece to a fold and what comes of it to `take`.
pub(super) fn give(
    fold: &mut Fold,
    piece: Piece<'_>,
    take: &mut impl FnMut(Stop<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    match piece {
        Piece::Record(number, bytes) => step(fold, number, bytes, take),
        Piece::Body(bytes) => match body::decode(bytes) {
            Some(text) => take(Stop::Text(text)),
            None => ControlFlow::Continue(()),
        },
        Piece::Tail(what) => {
            let _: ControlFlow<()> = take(Stop::Tail(what));
            ControlFlow::Break(())
        }
        Piece::Segment(_) | Piece::Snapshot(_) | Piece::Damaged { .. } => {
            let led = advance(fold, piece);
            match (piece, led) {
                (Piece::Snapshot(_), _) if fold.has_started() => {
                    take(Stop::Snapshot(fold.machine().state(), fold.causes()))
                }
                (_, Ok(())) => ControlFlow::Continue(()),
                (_, Err(found)) => {
                    let _: ControlFlow<()> = take(Stop::Damaged(&found.to_string()));
                    ControlFlow::Break(())
                }
            }
        }
    }
}

fn step(
    fold: &mut Fold,
    number: RecordNo,
    bytes: &[u8],
    take: &mut impl FnMut(Stop<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let record = match fold.read(number, bytes) {
        Ok(record) => record,
        Err(found) => {
            let _: ControlFlow<()> = take(Stop::Damaged(&found.to_string()));
            return ControlFlow::Break(());
        }
    };
    let (at, input) = (record.at, record.input.clone());
    // Before the step: an input may end what names its session. After it: an input may begin one.
    let before = session_of(fold.machine().state(), &input);
    let applied = fold.apply(record);
    if fold.is_broken() {
        let why = applied.divergence.map_or_else(String::new, |found| found.to_string());
        let _: ControlFlow<()> = take(Stop::Damaged(&why));
        return ControlFlow::Break(());
    }
    let state = fold.machine().state();
    let nothing = BTreeSet::new();
    let (effects, touched) =
        applied.turn.as_ref().map_or((&[][..], &nothing), |turn| (&turn.effects[..], &turn.touched));
    take(Stop::Step(Step {
        record: number,
        at,
        input: &input,
        session: before.or_else(|| session_of(state, &input)),
        effects,
        touched,
        state,
        panicked: applied.turn.is_none(),
        divergence: applied.divergence.as_deref(),
    }))
}
