//! What a session's inbound.db says, for the machine: at start, and again when it could not be used.

use std::collections::BTreeSet;
use std::path::Path;

use super::facts;
use crate::base::{MessageNo, SessionName};
use crate::machine::input::{Input, PendingRow, SessionFound};
use crate::machine::policy::INBOX_MAX;
use crate::session::SessionFolder;
use crate::session::host_side::{self, InboundWriteError, InboundWriter};
use crate::session::rows::Address;

/// Pending rows read in one page.
const PAGE: usize = 1_000;
/// Pending rows of one session that the machine takes at once, those that may wake the agent first; the rest is adopted
/// when the daemon starts again. The same bound as for arrivals.
const PENDING_MAX: usize = INBOX_MAX as usize;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// For the machine.
    pub found: SessionFound,
    /// Whether all pending rows are in it.
    pub whole: bool,
}

impl Found {
    /// The input that tells of it at start.
    pub fn into_input(self) -> Input {
        match self.whole {
            true => Input::SessionFound(self.found),
            false => Input::SessionFoundInPart(self.found),
        }
    }

    /// That the file cannot be read.
    pub fn unreadable(name: &SessionName, why: String) -> Self {
        let found = SessionFound {
            name: name.clone(),
            origin: Address::default(),
            pending: Vec::new(),
            delivered: Vec::new(),
            unreadable: Some(why),
        };
        Self { found, whole: false }
    }
}

/// Reads one session's inbound.db. Opening it rolls back what a killed daemon left. `open` are the outbound rows of it
/// that the machine has open.
///
/// # Errors
/// When it is locked or cannot be read.
pub fn read(
    name: &SessionName,
    folder: &Path,
    open: &[(MessageNo, String)],
) -> Result<Found, InboundWriteError> {
    let writer = InboundWriter::open(&SessionFolder::nested(folder))?;
    let origin = writer.routing()?.unwrap_or_default();
    let (pending, whole) = pending(&writer)?;
    let ids: Vec<&str> = open.iter().map(|(_, id)| id.as_str()).collect();
    let done: BTreeSet<String> = writer.delivered(&ids)?.into_iter().map(|row| row.message_out_id).collect();
    let delivered = open.iter().filter(|(_, id)| done.contains(id)).map(|(no, _)| *no).collect();
    let found = SessionFound { name: name.clone(), origin, pending, delivered, unreadable: None };
    Ok(Found { found, whole })
}

/// The pending rows in the order of insertion, and whether these are all.
fn pending(writer: &InboundWriter) -> Result<(Vec<PendingRow>, bool), InboundWriteError> {
    let mut rows = Vec::new();
    // One query, where nearly always all of them fit.
    let whole = take(writer, None, &mut rows)?;
    if !whole {
        rows.clear();
        for trigger in [true, false] {
            take(writer, Some(trigger), &mut rows)?;
        }
        rows.sort_by_key(|row| row.rowid);
    }
    Ok((rows.into_iter().map(facts::of_pending).collect(), whole))
}

/// Adds pending rows up to [`PENDING_MAX`]. Returns whether these were all of them.
fn take(
    writer: &InboundWriter,
    trigger: Option<bool>,
    rows: &mut Vec<host_side::PendingRow>,
) -> Result<bool, InboundWriteError> {
    let mut after = 0;
    loop {
        let room = PENDING_MAX - rows.len();
        let asked = PAGE.min(room + 1);
        let page = writer.pending_page(trigger, after, asked)?;
        let Some(last) = page.last() else { return Ok(true) };
        after = last.rowid;
        let found = page.len();
        rows.extend(page.into_iter().take(room));
        if found > room {
            return Ok(false);
        }
        if found < asked {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::host_side::{Change, create};
    use crate::session::rows::NewInbound;

    fn session(triggers: usize, context: usize) -> (tempfile::TempDir, SessionName) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("s");
        create::create(&folder).unwrap();
        let mut writer = InboundWriter::open(&SessionFolder::nested(&folder)).unwrap();
        let row = |id: String, trigger| {
            let at = "2026-01-01T00:00:00.000Z".to_owned();
            let mut row = NewInbound::new(id, "chat", at, Address::default(), "{}");
            row.trigger = trigger;
            Change::Insert(row)
        };
        let context = (0..context).map(|n| row(format!("c{n}"), false));
        let changes: Vec<Change> = context.chain((0..triggers).map(|n| row(format!("t{n}"), true))).collect();
        writer.apply(&changes).unwrap();
        (dir, SessionName::new("g", "s").unwrap())
    }

    #[test]
    fn what_may_wake_the_agent_is_taken_before_what_only_rides_along() {
        let (dir, name) = session(PENDING_MAX - 1, 10);
        let Found { found, whole } = read(&name, &dir.path().join("s"), &[]).unwrap();
        assert!(!whole);
        assert_eq!(found.pending.len(), PENDING_MAX);
        assert_eq!(found.pending.iter().filter(|row| row.trigger).count(), PENDING_MAX - 1);
        let seqs: Vec<_> = found.pending.iter().map(|row| row.seq).collect();
        assert!(seqs.is_sorted(), "in the order in which they came");
    }

    #[test]
    fn all_are_taken_when_they_fit_to_the_last() {
        let (dir, name) = session(PENDING_MAX - 3, 3);
        let Found { found, whole } = read(&name, &dir.path().join("s"), &[]).unwrap();
        assert!(whole);
        assert_eq!(found.pending.len(), PENDING_MAX);
    }
}
