//! Exports of a journal: one JSON object per record, a trace for viewers of spans, and one page that shows a timeline.
//!
//! Invariant: reads through [`walk`] and writes to the output that it is given; nothing else is read or written.

pub mod fields;
pub mod html;
pub mod jsonl;
pub mod perfetto;
pub mod spans;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use super::segments::ReplayError;
use super::walk::{Step, Stop, walk};
use crate::base::SessionNo;
use crate::machine::state::{ComponentId, State};

/// The forms that a journal can be exported in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON object a line.
    Jsonl,
    /// Chrome's trace events, as Perfetto reads them.
    Perfetto,
    /// One page that needs nothing else.
    Html,
}

/// Why an export could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The journal cannot be read.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The output cannot be written.
    #[error("cannot write the export: {0}")]
    Write(#[from] io::Error),
    /// The journal knows no such session.
    #[error("the journal knows no session {0:?}")]
    NoSession(String),
}

/// Exports a segment or a journal folder; `session` keeps only what is about that session, which is named by
/// its folder's name, by group/name, or by its number.
///
/// # Errors
/// When the journal cannot be read, the output cannot be written, or there is no such session.
pub fn export(
    path: &Path,
    form: Form,
    session: Option<&str>,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let mut choice = Choice { session, seen: session.is_none() };
    match form {
        Form::Jsonl => jsonl::write(path, &mut choice, out)?,
        Form::Perfetto => perfetto::write(path, &mut choice, out)?,
        Form::Html => html::write(path, &mut choice, out)?,
    }
    match choice {
        Choice { session: Some(session), seen: false } => Err(ExportError::NoSession(session.to_owned())),
        _ => Ok(()),
    }
}

/// Which session is wanted, and whether it was seen.
#[derive(Debug)]
struct Choice<'a> {
    session: Option<&'a str>,
    seen: bool,
}

impl Choice<'_> {
    /// Whether what belongs to this session is wanted.
    fn wants(&mut self, state: &State, no: SessionNo) -> bool {
        let Some(text) = self.session else { return true };
        let wanted = state.is_named(no, text);
        self.seen |= wanted;
        wanted
    }

    /// Whether a record is wanted: it is about the session, or changed it.
    fn wants_step(&mut self, step: &Step<'_>) -> bool {
        if self.session.is_none() {
            return true;
        }
        let touched = step.touched.iter().filter_map(|id| match id {
            ComponentId::Session(no) => Some(*no),
            _ => None,
        });
        step.session.into_iter().chain(touched).any(|no| self.wants(step.state, no))
    }
}

/// Walks; the first error of `take` ends the walk.
fn walk_writing(path: &Path, mut take: impl FnMut(Stop<'_>) -> io::Result<()>) -> Result<(), ExportError> {
    let mut failed = None;
    walk(path, |stop| match take(stop) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}
