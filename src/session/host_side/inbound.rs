//! The host's own file: new messages, their status, what was delivered, destinations and routing.
//!
//! Invariant: every change is made in a transaction begun with `BEGIN IMMEDIATE`; the number of a new row is
//! computed inside it (contract 6).
//! Invariant: `synchronous=EXTRA`: an accepted message survives a power cut. With FULL the removal of the
//! journal is not synced, and the transaction could be rolled back afterwards (design 3).
//! Invariant: no wait for a lock is longer than 250 ms; a container may hold a read lock for ever.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use super::changes::{self, Change, Inserted};
use crate::session::busy::Wait;
use crate::session::layout::journal_of;
use crate::session::rows::{Address, Delivered, InboundStatus, NewInbound};
use crate::session::{SessionFolder, schema};

/// Why inbound.db could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum InboundWriteError {
    /// Somebody, most likely the container, held a lock for more than 250 ms. Nothing was changed.
    #[error("{path} stayed locked for 250 ms while trying to {doing}")]
    Locked {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
    },
    /// Anything else that SQLite reports. Nothing was changed.
    #[error("cannot {doing} in {path}: {source}")]
    Storage {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl InboundWriteError {
    /// Whether trying again later may succeed without anybody doing anything.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    /// Whether the file is none that can be used, whatever is tried and however often.
    pub fn is_damage(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    }

    /// Whether it is the disk's or the system's trouble rather than the file's, so that it ends when there is room
    /// again or an operator has seen to it.
    pub fn may_pass(&self) -> bool {
        let of_system = [
            ErrorCode::DiskFull,
            ErrorCode::SystemIoFailure,
            ErrorCode::CannotOpen,
            ErrorCode::ReadOnly,
            ErrorCode::PermissionDenied,
            ErrorCode::OutOfMemory,
            ErrorCode::OperationInterrupted,
            ErrorCode::SchemaChanged,
        ];
        self.is_locked() || self.code().is_some_and(|code| of_system.contains(&code))
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Locked { .. } => None,
            Self::Storage { source, .. } => source.sqlite_error_code(),
        }
    }

    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "tried again later; if it lasts, end the container that holds the lock",
            Self::Storage { .. } if self.is_damage() => {
                "the file is damaged: mend it or put a copy back, then start the session"
            }
            Self::Storage { .. } => {
                "see that the disk has space and that the data folder is the daemon's own"
            }
        }
    }

    fn of(path: &Path, doing: &'static str, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked { path, doing },
            _ => Self::Storage { path, doing, source },
        }
    }
}

/// What the host needs of a pending row at its start. The content stays in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRow {
    /// For the next page.
    pub rowid: i64,
    /// Primary key.
    pub id: String,
    /// The number that the agent sees.
    pub seq: Option<i64>,
    /// `chat`, `chat-sdk`, `task`, `webhook` or `system`.
    pub kind: String,
    /// When it happened, as found.
    pub timestamp: String,
    /// Whether it may start a turn.
    pub trigger: bool,
    /// How often an attempt at it ended abnormally.
    pub tries: i64,
    /// Not due before this, as found.
    pub process_after: Option<String>,
    /// Cron expression.
    pub recurrence: Option<String>,
    /// Only for a container's first poll.
    pub on_wake: bool,
    /// Where an answer goes.
    pub address: Address,
}

/// The handle that writes inbound.db.
#[derive(Debug)]
pub struct InboundWriter {
    path: PathBuf,
    db: Connection,
    /// Whether the connection is set up for writing; one that only reads needs none of that.
    writes: bool,
}

impl InboundWriter {
    /// Opens the file, makes it or what it lacks, and rolls back what a killed host left.
    ///
    /// # Errors
    /// See [`InboundWriteError`].
    pub fn open(folder: &SessionFolder) -> Result<Self, InboundWriteError> {
        let path = folder.inbound_db();
        match open(&path) {
            Ok(db) => Ok(Self { path, db, writes: false }),
            Err(source) => Err(InboundWriteError::of(&path, "open the database", source)),
        }
    }

    /// Inserts a message unless its id is there: that is all of de-duplication.
    ///
    /// # Errors
    /// See [`InboundWriteError`].
    pub fn insert_if_absent(&mut self, message: &NewInbound) -> Result<Inserted, InboundWriteError> {
        self.transaction("insert a message", |db| changes::insert(db, message))
    }

    /// Makes all changes in one transaction, in the order given. Returns for each how many rows it changed
    /// (for an insert: 0 when it is a duplicate).
    ///
    /// # Errors
    /// See [`InboundWriteError`].
    pub fn apply(&mut self, changes: &[Change]) -> Result<Vec<usize>, InboundWriteError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        self.transaction("apply changes", |db| {
            changes.iter().map(|change| changes::apply(db, change)).collect()
        })
    }

    /// A page of the pending rows that may wake the agent, of those that may not, or without `trigger` of both, in the
    /// order of insertion, from after `after` (0 for the first page).
    ///
    /// # Errors
    /// See [`InboundWriteError`].
    pub fn pending_page(
        &self,
        trigger: Option<bool>,
        after: i64,
        limit: usize,
    ) -> Result<Vec<PendingRow>, InboundWriteError> {
        self.read("list pending messages", |db| {
            db.prepare_cached(PENDING_PAGE)?
                .query_map(params![trigger, after, bound(limit)], pending_row)?
                .collect()
        })
    }

    /// One message with its content and status, as it would be inserted again; `None` when it is unknown.
    ///
    /// # Errors
    /// See [`InboundWriteError`].
    pub fn message(&self, id: &str) -> Result<Option<NewInbound>, InboundWriteError> {
        self.read("read a message", |db| {
            db.prepare_cached(
                "SELECT id, kind, timestamp, status, process_after, recurrence, series_id, trigger, \
                 channel_type, platform_id, thread_id, content, source_session_id, on_wake \
                 FROM messages_in WHERE id = ?1",
            )?
            .query_row([id], message_row)
            .optional()
        })
    }

    /// Which of these outbound messages are recorded, and as what.
    ///
    /// # Errors
    /// See [`InboundWriteError`].
    pub fn delivered<S: AsRef<str>>(&self, ids: &[S]) -> Result<Vec<Delivered>, InboundWriteError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read("look up deliveries", |db| {
            let mut statement = db.prepare_cached(
                "SELECT message_out_id, platform_message_id, status, delivered_at FROM delivered \
                 WHERE message_out_id = ?1",
            )?;
            let mut found = Vec::new();
            for id in ids {
                found.extend(statement.query_row([id.as_ref()], delivered_row).optional()?);
            }
            Ok(found)
        })
    }

    /// Where the session's own answers go; `None` when nobody has said it.
    ///
    /// # Errors
    /// See [`InboundWriteError`].
    pub fn routing(&self) -> Result<Option<Address>, InboundWriteError> {
        self.read("read the routing", |db| {
            db.prepare_cached(
                "SELECT channel_type, platform_id, thread_id FROM session_routing WHERE id = 1",
            )?
            .query_row([], |row| address(row, 0))
            .optional()
        })
    }

    fn read<T>(
        &self,
        doing: &'static str,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, InboundWriteError> {
        ask(&self.db).map_err(|source| InboundWriteError::of(&self.path, doing, source))
    }

    fn transaction<T>(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, InboundWriteError> {
        let db = &self.db;
        let ready = if self.writes { Ok(()) } else { set_up(db) };
        self.writes = ready.is_ok();
        let begun = ready.and_then(|()| db.execute_batch("BEGIN IMMEDIATE"));
        let done = begun.and_then(|()| work(db)).and_then(|value| {
            db.execute_batch("COMMIT")?;
            Ok(value)
        });
        if done.is_err() && !db.is_autocommit() {
            // The first error is the one to report; the next BEGIN would fail loudly if this one did.
            let _ = db.execute_batch("ROLLBACK");
        }
        done.map_err(|source| InboundWriteError::of(&self.path, doing, source))
    }
}

/// Rolls back what a killed host left in mid-commit: the first thing at a start, before any container runs.
/// Returns whether there was a journal.
///
/// # Errors
/// See [`InboundWriteError`].
pub fn heal(folder: &SessionFolder) -> Result<bool, InboundWriteError> {
    if !journal_of(&folder.inbound_db()).exists() {
        return Ok(false);
    }
    InboundWriter::open(folder).map(|_| true)
}

/// By name, since SQLite would rather go through the whole history by its rowids: what is pending is little beside it.
const PENDING_PAGE: &str = "SELECT rowid, id, seq, kind, timestamp, trigger, tries, process_after, recurrence, \
    on_wake, channel_type, platform_id, thread_id FROM messages_in INDEXED BY idx_messages_in_pending \
    WHERE status = 'pending' AND coalesce((trigger <> 0) = ?1, 1) AND rowid > ?2 ORDER BY rowid LIMIT ?3";

/// Statements that are kept prepared: all that this file has, so none is ever parsed twice.
const STATEMENTS: usize = 32;

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    Wait::HostWrite.install(&mut db)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    // Reads the schema, and thereby rolls back a hot journal.
    schema::prepare_inbound(&db)?;
    Ok(db)
}

/// What a commit must be: rolled back by a journal that is deleted, durable with the journal's removal, and not through
/// memory that is mapped. Reading maps nothing either: that is SQLite's own default.
fn set_up(db: &Connection) -> rusqlite::Result<()> {
    db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    db.pragma_update(None, "synchronous", "EXTRA")?;
    db.pragma_update(None, "mmap_size", 0)
}

fn bound(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn address(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Address> {
    Ok(Address {
        channel_type: row.get(first)?,
        platform_id: row.get(first + 1)?,
        thread_id: row.get(first + 2)?,
    })
}

fn pending_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<PendingRow> {
    Ok(PendingRow {
        rowid: row.get(0)?,
        id: row.get(1)?,
        seq: row.get(2)?,
        kind: row.get(3)?,
        timestamp: row.get(4)?,
        trigger: row.get(5)?,
        tries: row.get::<_, Option<i64>>(6)?.unwrap_or(0),
        process_after: row.get(7)?,
        recurrence: row.get(8)?,
        on_wake: row.get(9)?,
        address: address(row, 10)?,
    })
}

fn message_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<NewInbound> {
    let status: Option<String> = row.get(3)?;
    Ok(NewInbound {
        id: row.get(0)?,
        kind: row.get(1)?,
        timestamp: row.get(2)?,
        // A status that nobody knows is not worked on, which is what "failed" means.
        status: status.as_deref().and_then(InboundStatus::from_column).unwrap_or(InboundStatus::Failed),
        process_after: row.get(4)?,
        recurrence: row.get(5)?,
        series_id: row.get(6)?,
        trigger: row.get(7)?,
        address: address(row, 8)?,
        content: row.get(11)?,
        source_session_id: row.get(12)?,
        on_wake: row.get(13)?,
    })
}

fn delivered_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Delivered> {
    Ok(Delivered {
        message_out_id: row.get(0)?,
        platform_message_id: row.get(1)?,
        delivered: row.get::<_, String>(2)? == "delivered",
        delivered_at: row.get(3)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::host_side::create;

    type Tested = Result<(), Box<dyn std::error::Error>>;

    fn fresh() -> Result<(tempfile::TempDir, InboundWriter), Box<dyn std::error::Error>> {
        let temp = tempfile::tempdir()?;
        let path = temp.path().join("s");
        create::create(&path)?;
        let writer = InboundWriter::open(&SessionFolder::nested(&path))?;
        Ok((temp, writer))
    }

    #[test]
    fn a_commit_is_synced_with_the_removal_of_its_journal() -> Tested {
        let (_temp, mut writer) = fresh()?;
        writer.insert_if_absent(&NewInbound::new("a", "chat", "t", Address::default(), "{}"))?;
        let pragma =
            |name: &str| writer.db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, String>(0));
        let level: i64 = writer.db.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
        assert_eq!(level, 3, "3 is EXTRA");
        assert_eq!(pragma("journal_mode")?, "delete");
        Ok(())
    }

    #[test]
    fn pending_rows_are_found_by_their_index_however_long_the_history_is() -> Tested {
        let (_temp, writer) = fresh()?;
        let mut plan = writer.db.prepare(&format!("EXPLAIN QUERY PLAN {PENDING_PAGE}"))?;
        let steps: Vec<String> = plan.query_map([0, 0, 10], |row| row.get(3))?.collect::<Result<_, _>>()?;
        let first = steps.first().ok_or("no plan")?;
        assert!(first.contains("USING INDEX idx_messages_in_pending"), "{steps:?}");
        Ok(())
    }
}
