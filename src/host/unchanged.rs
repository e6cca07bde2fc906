//! What the session files looked like when the daemon ended, so that the next start opens only those that have changed
//! since (design 6).
//!
//! Invariant: the file serves one start. It is removed before anything is decided, so a daemon that is killed leaves
//! none, and the start after it opens every session.
//! Invariant: a session is named only if nothing about it was open, and its files as they were *read*, not as they
//! were at the end: what was written in between is a difference.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::folder::DataFolder;
use crate::base::disk::replace;
use crate::base::{OsDisk, SessionName, SessionNo};
use crate::machine::state::{FolderState, Phase, State};
use crate::reactor::{FileMark, Signature};
use crate::session::SessionFolder;
use crate::session::layout::journal_of;

/// The files of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marks {
    inbound: FileMark,
    outbound: Option<FileMark>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    /// The machine's next record: another journal is another history.
    record: u64,
    sessions: BTreeMap<String, Marks>,
}

/// What the daemon before knew.
#[derive(Debug, Default)]
pub struct Unchanged(Saved);

impl Unchanged {
    /// Takes what the daemon before left, if it ended with the journal as it is now. A file that is missing or cannot
    /// be read means that every session is opened.
    pub fn take(data: &DataFolder, state: &State) -> Self {
        let path = data.unchanged();
        let saved = read(&path).unwrap_or_default();
        // If it stays, it names a record that is not the journal's last by the next start.
        drop(std::fs::remove_file(&path));
        Self(if saved.record == state.core().record.0 { saved } else { Saved::default() })
    }

    /// The session's number and its signature, if its files are as they were.
    pub fn find(
        &self,
        data: &DataFolder,
        name: &SessionName,
        state: &State,
    ) -> Option<(SessionNo, Signature)> {
        let marks = self.0.sessions.get(&name.to_string())?;
        let no = state.session_no(name)?;
        let folder = SessionFolder::nested(data.session(name));
        let now = marks_of(&folder, &Signature::of_rows(&folder))?;
        (now == *marks).then(|| (no, Signature { database: marks.outbound, ..Signature::default() }))
    }

    /// Leaves for the next start what was seen.
    ///
    /// # Errors
    /// As the operating system reports them.
    pub fn leave(
        data: &DataFolder,
        state: &State,
        seen: &BTreeMap<SessionNo, Signature>,
    ) -> std::io::Result<()> {
        let quiet = state.sessions().iter().filter(|(_, session)| {
            session.folder == FolderState::Present
                && matches!(session.phase, Phase::Stopped { .. })
                && session.look.is_none()
                && session.trouble.is_none()
                && session.writes_open == 0
        });
        let sessions = quiet.filter_map(|(no, session)| {
            let folder = SessionFolder::nested(data.session(&session.name));
            Some((session.name.to_string(), marks_of(&folder, seen.get(no)?)?))
        });
        let saved = Saved { record: state.core().record.0, sessions: sessions.collect() };
        let text = serde_json::to_vec(&saved)?;
        replace(&OsDisk, &data.unchanged(), &text)
    }
}

fn read(path: &Path) -> Option<Saved> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The marks of a session with these outbound files; none while a journal waits to be rolled back.
fn marks_of(folder: &SessionFolder, outbound: &Signature) -> Option<Marks> {
    let hot = FileMark::of(&journal_of(&folder.inbound_db())).is_some_and(|mark| mark.size > 0);
    if hot || outbound.journal.is_some() {
        return None;
    }
    Some(Marks { inbound: FileMark::of(&folder.inbound_db())?, outbound: outbound.database })
}
