//! The runner's view of inbound.db: what is pending, where answers go, what was delivered.
//!
//! Invariant: read-only, memory mapping off, rows collected before anything else happens (an open statement
//! keeps a lock that stops the host).
//! Invariant: a lock, a hot journal or a missing file mean "the host is away". They are told apart from
//! damage, so that the runner waits and goes on with its turn (design 3).

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ffi};

use crate::base::Wall;
use crate::session::busy::Wait;
use crate::session::rows::{Address, Delivered, Destination, InboundRow, Target};
use crate::session::{SessionFolder, schema, timestamp};

/// When the connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Once, and again when the file was replaced. For local file systems: ten times cheaper.
    Kept,
    /// For every query. For mounts across a virtual machine's boundary, where a kept reader sees old pages.
    Fresh,
}

/// Why inbound.db could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InboundError {
    /// The host holds a lock, was killed in mid-commit, or has not made the file yet. It passes.
    #[error("the host is away from {path}: {source}")]
    HostAway {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file does not hold what the contract says.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl InboundError {
    /// Whether waiting is all that is needed.
    pub fn is_host_away(&self) -> bool {
        matches!(self, Self::HostAway { .. })
    }

    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::HostAway { .. } => "wait for the host; it heals its file when it starts",
            Self::Unreadable { .. } => "on the host, inspect the session folder",
        }
    }

    fn of(path: PathBuf, source: rusqlite::Error) -> Self {
        let away = match &source {
            rusqlite::Error::SqliteFailure(e, _) => {
                e.extended_code == ffi::SQLITE_READONLY_ROLLBACK
                    || matches!(
                        e.code,
                        ErrorCode::CannotOpen | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked
                    )
            }
            _ => false,
        };
        if away { Self::HostAway { path, source } } else { Self::Unreadable { path, source } }
    }
}

/// What a kept connection was opened on.
type FileId = (u64, u64);

/// A read-only handle on inbound.db.
#[derive(Debug)]
pub struct InboundReader {
    path: PathBuf,
    opening: Opening,
    kept: Option<(FileId, Connection)>,
    wait: Wait,
    rows_read: u64,
}

/// A pending row that is context only, without its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRow {
    /// Primary key.
    pub id: String,
    /// The number that the agent sees.
    pub seq: Option<i64>,
    /// Not due before this, as found.
    pub process_after: Option<String>,
    /// How often an attempt at it ended abnormally.
    pub tries: i64,
}

/// All columns of a row that every host has made; what may lack in old files is appended by [`columns`].
const COLUMNS: &str = "id, seq, kind, timestamp, status, process_after, recurrence, series_id, tries, \
                       trigger, platform_id, channel_type, thread_id, content, source_session_id";

/// What can start a turn, is of the system or is for a first poll, in the order of its numbers; `on_wake` says which
/// rows the last are.
pub(super) fn startable(on_wake: &str) -> String {
    format!(
        "status = 'pending' AND (trigger IS NOT 0 OR kind = 'system' OR {on_wake} <> 0) ORDER BY seq, rowid"
    )
}

/// What is context only, up to a number, in the order of the numbers.
pub(super) fn context(on_wake: &str) -> String {
    format!(
        "status = 'pending' AND trigger = 0 AND kind <> 'system' AND {on_wake} = 0 \
         AND (seq IS NULL OR seq <= ?1) ORDER BY seq, rowid"
    )
}

/// The newest row of a chat.
pub(super) const NEWEST_OF: &str = "channel_type = ?1 AND platform_id = ?2 ORDER BY seq DESC LIMIT 1";

impl InboundReader {
    /// A reader; nothing is opened before the first query.
    pub fn new(folder: &SessionFolder, opening: Opening) -> Self {
        Self { path: folder.inbound_db(), opening, kept: None, wait: Wait::Runner, rows_read: 0 }
    }

    /// A reader for a loop that has more to do than to wait: it is told of a lock within 100 ms.
    pub fn brief(self) -> Self {
        Self { wait: Wait::RunnerLoop, ..self }
    }

    /// The pending rows that can start a turn, are of the system or are for a first poll (contract 9), oldest first,
    /// at most `limit`. Rows whose time is still to come are among them; those with a time that cannot be read, which
    /// never comes, are not. `exclude` names the ids that have an ack of any status; they take no place in the limit.
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn pending(
        &mut self,
        limit: usize,
        exclude: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Vec<InboundRow>, InboundError> {
        let mut read = 0;
        let rows = self.query(|db| {
            let on_wake = on_wake(db)?;
            let sql = format!("SELECT {} FROM messages_in WHERE {}", columns(on_wake), startable(on_wake));
            let mut statement = db.prepare_cached(&sql)?;
            let mut found = statement.query([])?;
            let mut rows = Vec::new();
            while rows.len() < limit
                && let Some(row) = found.next()?
            {
                read += 1;
                let comes = timestamp::is_due(text(row, 5)?.as_deref(), Wall(i64::MAX));
                if comes && !exclude(&text(row, 0)?.unwrap_or_default()) {
                    rows.push(inbound_row(row)?);
                }
            }
            Ok(rows)
        });
        self.rows_read += read;
        rows
    }

    /// The pending rows that are context only, without their texts: those with a number of at most `up_to`, oldest
    /// first, at most `limit`. `exclude` and unreadable times as for [`InboundReader::pending`].
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn pending_context(
        &mut self,
        up_to: Option<i64>,
        limit: usize,
        exclude: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Vec<ContextRow>, InboundError> {
        let mut read = 0;
        let rows = self.query(|db| {
            let on_wake = on_wake(db)?;
            let sql =
                format!("SELECT id, seq, process_after, tries FROM messages_in WHERE {}", context(on_wake));
            let mut statement = db.prepare_cached(&sql)?;
            let mut found = statement.query([up_to])?;
            let mut rows = Vec::new();
            while rows.len() < limit
                && let Some(row) = found.next()?
            {
                read += 1;
                let (id, process_after) = (text(row, 0)?.unwrap_or_default(), text(row, 2)?);
                if timestamp::is_due(process_after.as_deref(), Wall(i64::MAX)) && !exclude(&id) {
                    let tries = row.get::<_, Option<i64>>(3)?.unwrap_or(0);
                    rows.push(ContextRow { id, seq: row.get(1)?, process_after, tries });
                }
            }
            Ok(rows)
        });
        self.rows_read += read;
        rows
    }

    /// How many rows [`InboundReader::pending`] and [`InboundReader::pending_context`] have gone through so far.
    pub fn rows_read(&self) -> u64 {
        self.rows_read
    }

    /// The pending rows of kind `system`, oldest first: answers to questions and to command requests, which
    /// are for tools and never for the agent (contract 11).
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn pending_system(&mut self) -> Result<Vec<InboundRow>, InboundError> {
        self.rows("status = 'pending' AND kind = 'system' ORDER BY seq, rowid", &[])
    }

    /// The tasks that are pending or paused, oldest first.
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn tasks(&mut self) -> Result<Vec<InboundRow>, InboundError> {
        self.rows("kind = 'task' AND status IN ('pending', 'paused') ORDER BY seq, rowid", &[])
    }

    /// One row by its id, in whatever status.
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn by_id(&mut self, id: &str) -> Result<Option<InboundRow>, InboundError> {
        Ok(self.rows("id = ?1", &[id])?.pop())
    }

    /// One row by the number that the agent sees, in whatever status.
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn by_seq(&mut self, seq: i64) -> Result<Option<InboundRow>, InboundError> {
        Ok(self.rows("seq = CAST(?1 AS INTEGER)", &[&seq.to_string()])?.pop())
    }

    /// The newest row of a chat, in whatever status: its thread and id address an answer (contract 12.1).
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn newest_of(
        &mut self,
        channel: &str,
        platform_id: &str,
    ) -> Result<Option<InboundRow>, InboundError> {
        Ok(self.rows(NEWEST_OF, &[channel, platform_id])?.pop())
    }

    /// The greatest number in the file, 0 when there is none; the runner's own numbers follow it (contract
    /// 6).
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn max_seq(&mut self) -> Result<i64, InboundError> {
        self.query(|db| {
            let max: Option<i64> =
                db.prepare_cached("SELECT max(seq) FROM messages_in")?.query_row([], |row| row.get(0))?;
            Ok(max.unwrap_or(0))
        })
    }

    /// The names that the agent may write to, in the order of names. Rows that name no target are left out.
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn destinations(&mut self) -> Result<Vec<Destination>, InboundError> {
        self.query(|db| {
            let mut statement = db.prepare_cached(
                "SELECT name, display_name, type, channel_type, platform_id, agent_group_id \
                 FROM destinations ORDER BY name",
            )?;
            let mut found = statement.query([])?;
            let mut all = Vec::new();
            while let Some(row) = found.next()? {
                if let Some(target) = target(text(row, 2)?, text(row, 3)?, text(row, 4)?, text(row, 5)?) {
                    let name = text(row, 0)?.unwrap_or_default();
                    all.push(Destination { name, display_name: text(row, 1)?, target });
                }
            }
            Ok(all)
        })
    }

    /// Where the session's own answers go. `None` without a row or, in old files, without the table.
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn session_routing(&mut self) -> Result<Option<Address>, InboundError> {
        self.query(|db| {
            if !schema::has_table(db, "session_routing")? {
                return Ok(None);
            }
            db.prepare_cached(
                "SELECT channel_type, platform_id, thread_id FROM session_routing WHERE id = 1",
            )?
            .query_row([], |row| address(row, 0, 1, 2))
            .optional()
        })
    }

    /// What became of an outbound message: edits and reactions need the platform's id.
    ///
    /// # Errors
    /// See [`InboundError`].
    pub fn delivered(&mut self, message_out_id: &str) -> Result<Option<Delivered>, InboundError> {
        self.query(|db| {
            db.prepare_cached(
                "SELECT message_out_id, platform_message_id, status, delivered_at FROM delivered \
                 WHERE message_out_id = ?1",
            )?
            .query_row([message_out_id], |row| {
                Ok(Delivered {
                    message_out_id: text(row, 0)?.unwrap_or_default(),
                    platform_message_id: text(row, 1)?,
                    delivered: text(row, 2)?.as_deref() == Some("delivered"),
                    delivered_at: text(row, 3)?.unwrap_or_default(),
                })
            })
            .optional()
        })
    }

    fn rows(&mut self, condition: &str, values: &[&str]) -> Result<Vec<InboundRow>, InboundError> {
        self.query(|db| {
            let sql = format!("SELECT {} FROM messages_in WHERE {condition}", columns(on_wake(db)?));
            db.prepare_cached(&sql)?.query_map(rusqlite::params_from_iter(values), inbound_row)?.collect()
        })
    }

    fn query<T>(&mut self, ask: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, InboundError> {
        let answer = match self.opening {
            Opening::Fresh => open(&self.path, self.wait).and_then(|db| ask(&db)),
            Opening::Kept => self.kept().and_then(ask),
        };
        answer.map_err(|source| {
            // Whatever is wrong, the next query starts with a new connection.
            self.kept = None;
            InboundError::of(self.path.clone(), source)
        })
    }

    fn kept(&mut self) -> rusqlite::Result<&Connection> {
        let file = std::fs::metadata(&self.path).ok().map(|found| (found.dev(), found.ino()));
        let reuse = self.kept.take().filter(|(opened_on, _)| Some(*opened_on) == file);
        let kept = match reuse {
            Some(kept) => kept,
            // A file replaced between the two calls is noticed at the next query.
            None => (file.unwrap_or_default(), open(&self.path, self.wait)?),
        };
        Ok(&self.kept.insert(kept).1)
    }
}

fn open(path: &std::path::Path, wait: Wait) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    wait.install(&mut db)?;
    db.pragma_update(None, "mmap_size", 0)?;
    Ok(db)
}

/// What says whether a row is for a first poll; a literal where old files have no such column.
fn on_wake(db: &Connection) -> rusqlite::Result<&'static str> {
    Ok(if schema::has_column(db, "messages_in", "on_wake")? { "coalesce(on_wake, 0)" } else { "0" })
}

fn columns(on_wake: &str) -> String {
    format!("{COLUMNS}, {on_wake}")
}

/// Text of whatever type the column has; a number is written out, bytes that are no text are replaced.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Integer(n) => Some(n.to_string()),
        ValueRef::Real(n) => Some(n.to_string()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
    })
}

fn address(row: &Row<'_>, channel: usize, platform: usize, thread: usize) -> rusqlite::Result<Address> {
    Ok(Address {
        channel_type: text(row, channel)?,
        platform_id: text(row, platform)?,
        thread_id: text(row, thread)?,
    })
}

fn target(
    kind: Option<String>,
    channel: Option<String>,
    platform: Option<String>,
    group: Option<String>,
) -> Option<Target> {
    match kind.as_deref()? {
        "channel" => Some(Target::Channel { channel_type: channel?, platform_id: platform? }),
        "agent" => Some(Target::Agent { agent_group_id: group? }),
        _ => None,
    }
}

fn inbound_row(row: &Row<'_>) -> rusqlite::Result<InboundRow> {
    Ok(InboundRow {
        id: text(row, 0)?.unwrap_or_default(),
        seq: row.get(1)?,
        kind: text(row, 2)?.unwrap_or_default(),
        timestamp: text(row, 3)?.unwrap_or_default(),
        status: text(row, 4)?,
        process_after: text(row, 5)?,
        recurrence: text(row, 6)?,
        series_id: text(row, 7)?,
        tries: row.get::<_, Option<i64>>(8)?.unwrap_or(0),
        trigger: row.get::<_, Option<i64>>(9)?.unwrap_or(1) != 0,
        address: address(row, 11, 10, 12)?,
        content: text(row, 13)?.unwrap_or_default(),
        source_session_id: text(row, 14)?,
        on_wake: row.get::<_, Option<i64>>(15)?.unwrap_or(0) != 0,
    })
}
