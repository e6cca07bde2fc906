//! A copy of a session's database as it stands, taken beside whoever writes it.
//!
//! Invariant: only called in a process that holds no other connection to the file, as commands do beside a daemon:
//! closing this one would drop the other's locks.

use std::path::Path;

use rusqlite::MAIN_DB;
use rusqlite::backup::Progress;

use super::cause::{Cause, Unreadable};
use super::checks::{self, Guard};
use super::reader;
use crate::base::SessionName;

/// Copies a database, inbound.db or outbound.db, to `to`, a file that is not there yet: one consistent state, through
/// SQLite's backup API. The original is opened for reading only; a hot journal is refused, not rolled back.
///
/// # Errors
/// [`Unreadable`], with the path of the original.
pub fn backup(session: &SessionName, from: &Path, to: &Path, guard: Guard) -> Result<(), Unreadable> {
    let copy = || -> Result<(), Cause> {
        let file = checks::look(from, &guard)?;
        let kept = reader::open(from, file, &guard)?;
        let wal = kept.wal;
        kept.db.backup(MAIN_DB, to, None::<fn(Progress)>).map_err(|error| Cause::of_sqlite(&error, from, wal))
    };
    copy().map_err(|cause| Unreadable { session: session.clone(), path: from.to_owned(), cause })
}
