//! What this build decides differently from a whole journal, not only where it first does.

use std::ops::ControlFlow;
use std::path::Path;

use super::report::{Class, Divergence};
use super::segments::{ReplayError, Segments};
use super::walk::{Stop, walk_source};
use crate::base::Wall;

/// All differences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Records compared.
    pub records: u64,
    /// The first records with other effects, as many as were asked for.
    pub first: Vec<Divergence>,
    /// Records with other effects.
    pub decisions: u64,
    /// Records with the same effects and a state of another digest. After other effects the state is another too.
    pub states: u64,
    /// Why the journal could not be read to its end.
    pub damaged: Option<String>,
}

impl Differences {
    /// Whether this build decides and remembers the same.
    pub fn is_clean(&self) -> bool {
        self.decisions == 0 && self.states == 0 && self.damaged.is_none()
    }
}

/// Compares all records from `since` on: from the newest segment that begins at or before it. `most` differences are
/// given one by one.
///
/// # Errors
/// When there is no segment, or one cannot be read.
pub fn differences(path: &Path, since: Option<Wall>, most: usize) -> Result<Differences, ReplayError> {
    let mut segments = Segments::open_since(path, since)?;
    let mut found = Differences::default();
    walk_source(&mut segments, |stop| {
        match stop {
            Stop::Step(step) => {
                found.records += 1;
                if let Some(divergence) = step.divergence {
                    count(&mut found, divergence, most);
                }
            }
            Stop::Damaged(why) => found.damaged = Some(why.to_owned()),
            Stop::Snapshot(..) | Stop::Text(_) | Stop::Tail(_) => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn count(found: &mut Differences, divergence: &Divergence, most: usize) {
    let of_state = divergence.class == Class::CodeChanged
        && (divergence.field.starts_with("touched") || divergence.field == "root");
    if of_state {
        found.states += 1;
        // The first of them is worth to be seen, while nothing else was.
        if found.first.is_empty() && found.states == 1 {
            found.first.push(divergence.clone());
        }
    } else {
        found.decisions += 1;
        if found.first.len() < most {
            found.first.push(divergence.clone());
        }
    }
}
