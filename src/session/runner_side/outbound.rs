//! The runner's own file: claims and acks, answers, state and facts.
//!
//! Invariant: every change is made in a transaction begun with `BEGIN IMMEDIATE`, so reading a maximum and
//! inserting after it cannot be torn apart by the tool server, which writes the same file.
//! Invariant: each transaction first compares the stored attempt with its own; an outlived runner changes
//! nothing.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use crate::base::Wall;
use crate::session::busy::Wait;
use crate::session::rows::{AckStatus, Address, FACT_ATTEMPT, NewOutbound, ToolInFlight};
use crate::session::{SessionFolder, schema, seq, timestamp};

/// Why outbound.db could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// Another attempt owns the file. The only thing left to do is to end.
    #[error("{path} belongs to attempt {found:?}, this is {expected:?}")]
    Fenced {
        /// The file.
        path: PathBuf,
        /// This runner's attempt.
        expected: String,
        /// The one that is stored.
        found: Option<String>,
    },
    /// Somebody held the lock for longer than is waited for: 5 s, or 100 ms by a [brief](OutboundWriter::brief) writer.
    #[error("{path} is locked by another process")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Anything else that SQLite reports.
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

impl OutboundError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => "a newer runner has taken over; end this one",
            Self::Busy { .. } => "end the process that holds the lock, or try again",
            Self::Storage { .. } => {
                "see that the disk has space; on the host, `session reset` starts a new file"
            }
        }
    }

    fn of(path: &Path, doing: &'static str, source: rusqlite::Error) -> Self {
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path: path.to_owned() },
            _ => Self::Storage { path: path.to_owned(), doing, source },
        }
    }
}

/// Where an answer was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The order of delivery.
    pub rowid: i64,
    /// The number that the agent sees; odd.
    pub seq: i64,
}

/// The handle that writes outbound.db.
#[derive(Debug)]
pub struct OutboundWriter {
    path: PathBuf,
    db: Connection,
    fence: Option<String>,
}

impl OutboundWriter {
    /// Opens the file, makes it or what it lacks, and rolls back what a killed runner left. With `fence`
    /// every transaction demands that the stored attempt is this text.
    ///
    /// # Errors
    /// [`OutboundError::Busy`] and [`OutboundError::Storage`].
    pub fn open(folder: &SessionFolder, fence: Option<String>) -> Result<Self, OutboundError> {
        let path = folder.outbound_db();
        let db = open(&path).map_err(|source| OutboundError::of(&path, "open the database", source))?;
        Ok(Self { path, db, fence })
    }

    /// A writer for a loop that has more to do than to wait: it is told of a lock within 100 ms.
    ///
    /// # Errors
    /// [`OutboundError::Storage`].
    pub fn brief(mut self) -> Result<Self, OutboundError> {
        let set = Wait::RunnerLoop.install(&mut self.db);
        set.map_err(|source| OutboundError::of(&self.path, "set how long locks are waited for", source))?;
        Ok(self)
    }

    /// Does `work` in one transaction, which is committed when it returns `Ok` and rolled back otherwise.
    /// `now` is written wherever a row holds the time of its change.
    ///
    /// # Errors
    /// [`OutboundError::Fenced`] before any work; [`OutboundError::Busy`], [`OutboundError::Storage`]; what
    /// `work` returns.
    pub fn transaction<T, E: From<OutboundError>>(
        &mut self,
        now: Wall,
        work: impl FnOnce(&OutboundTx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.batch("begin a transaction", "BEGIN IMMEDIATE")?;
        let tx = OutboundTx { path: &self.path, db: &self.db, now };
        let done = tx.check_fence(self.fence.as_deref()).map_err(E::from).and_then(|()| work(&tx));
        let done = done.and_then(|value| {
            self.batch("commit", "COMMIT")?;
            Ok(value)
        });
        if done.is_err() && !self.db.is_autocommit() {
            // The first error is the one to report; the next BEGIN would fail loudly if this one did.
            let _ = self.db.execute_batch("ROLLBACK");
        }
        done
    }

    fn batch(&self, doing: &'static str, sql: &str) -> Result<(), OutboundError> {
        self.db.execute_batch(sql).map_err(|source| OutboundError::of(&self.path, doing, source))
    }

    /// Whether a message has an ack of any status; such a message is not worked on (contract 9).
    ///
    /// # Errors
    /// [`OutboundError::Busy`] and [`OutboundError::Storage`].
    pub fn is_acked(&self, message_id: &str) -> Result<bool, OutboundError> {
        self.read("look up an ack", |db| {
            db.prepare_cached("SELECT 1 FROM processing_ack WHERE message_id = ?1")?.exists([message_id])
        })
    }

    /// A value of `session_state`.
    ///
    /// # Errors
    /// [`OutboundError::Busy`] and [`OutboundError::Storage`].
    pub fn state(&self, key: &str) -> Result<Option<String>, OutboundError> {
        self.read("read a state", |db| state(db, key))
    }

    /// The keys and values of `session_state` whose key begins with `prefix`, in the order of keys.
    ///
    /// # Errors
    /// [`OutboundError::Busy`] and [`OutboundError::Storage`].
    pub fn states_with_prefix(&self, prefix: &str) -> Result<Vec<(String, String)>, OutboundError> {
        self.read("list states", |db| {
            db.prepare_cached(
                "SELECT key, value FROM session_state WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key",
            )?
            .query_map([prefix], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        })
    }

    /// Id and address of the answer with this number, for edits and reactions (contract 6).
    ///
    /// # Errors
    /// [`OutboundError::Busy`] and [`OutboundError::Storage`].
    pub fn by_seq(&self, seq: i64) -> Result<Option<(String, Address)>, OutboundError> {
        self.read("look up an answer", |db| {
            db.prepare_cached(
                "SELECT id, channel_type, platform_id, thread_id FROM messages_out WHERE seq = ?1",
            )?
            .query_row([seq], |row| {
                let address =
                    Address { channel_type: row.get(1)?, platform_id: row.get(2)?, thread_id: row.get(3)? };
                Ok((row.get(0)?, address))
            })
            .optional()
        })
    }

    /// The content of the answer with this id.
    ///
    /// # Errors
    /// [`OutboundError::Busy`] and [`OutboundError::Storage`].
    pub fn content_of(&self, id: &str) -> Result<Option<String>, OutboundError> {
        self.read("look up an answer", |db| {
            db.prepare_cached("SELECT content FROM messages_out WHERE id = ?1")?
                .query_row([id], |row| row.get(0))
                .optional()
        })
    }

    /// The greatest rowid of the answers, whoever wrote them; 0 when there is none.
    ///
    /// # Errors
    /// [`OutboundError::Busy`] and [`OutboundError::Storage`].
    pub fn newest_rowid(&self) -> Result<i64, OutboundError> {
        self.read("look for answers", |db| {
            db.prepare_cached("SELECT coalesce(max(rowid), 0) FROM messages_out")?
                .query_row([], |row| row.get(0))
        })
    }

    /// Where the answers after this rowid go that say something: edits, reactions and rows of the system do not.
    ///
    /// # Errors
    /// [`OutboundError::Busy`] and [`OutboundError::Storage`].
    pub fn spoken_to_after(&self, rowid: i64) -> Result<Vec<Address>, OutboundError> {
        self.read("look for answers", |db| {
            db.prepare_cached(
                "SELECT DISTINCT channel_type, platform_id FROM messages_out \
                 WHERE rowid > ?1 AND kind IN ('chat', 'chat-sdk') \
                 AND CASE WHEN json_valid(content) THEN json_extract(content, '$.operation') END IS NULL",
            )?
            .query_map([rowid], |row| {
                Ok(Address { channel_type: row.get(0)?, platform_id: row.get(1)?, thread_id: None })
            })?
            .collect()
        })
    }

    fn read<T>(
        &self,
        doing: &'static str,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, OutboundError> {
        ask(&self.db).map_err(|source| OutboundError::of(&self.path, doing, source))
    }
}

/// One transaction on outbound.db. Every method returns [`OutboundError`] when SQLite refuses.
#[derive(Debug)]
pub struct OutboundTx<'a> {
    path: &'a Path,
    db: &'a Connection,
    now: Wall,
}

impl OutboundTx<'_> {
    fn check_fence(&self, fence: Option<&str>) -> Result<(), OutboundError> {
        let Some(expected) = fence else { return Ok(()) };
        let found = self.state(FACT_ATTEMPT)?;
        if found.as_deref() == Some(expected) {
            return Ok(());
        }
        Err(OutboundError::Fenced { path: self.path.to_owned(), expected: expected.to_owned(), found })
    }

    fn execute(
        &self,
        doing: &'static str,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<usize, OutboundError> {
        self.db
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map_err(|source| OutboundError::of(self.path, doing, source))
    }

    /// Claims messages for this attempt and returns those that had no ack yet, in the order given.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn claim<S: AsRef<str>>(&self, ids: &[S]) -> Result<Vec<String>, OutboundError> {
        let changed = timestamp::sqlite(self.now);
        let mut claimed = Vec::with_capacity(ids.len());
        for id in ids {
            let id = id.as_ref();
            let sql = "INSERT INTO processing_ack (message_id, status, status_changed) \
                       VALUES (?1, 'processing', ?2) ON CONFLICT (message_id) DO NOTHING";
            if self.execute("claim a message", sql, params![id, changed])? > 0 {
                claimed.push(id.to_owned());
            }
        }
        Ok(claimed)
    }

    /// Writes what became of a message.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn ack(&self, id: &str, status: AckStatus) -> Result<(), OutboundError> {
        let sql = "INSERT INTO processing_ack (message_id, status, status_changed) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (message_id) DO UPDATE SET status = ?2, status_changed = ?3";
        self.execute(
            "acknowledge a message",
            sql,
            params![id, status.as_str(), timestamp::sqlite(self.now)],
        )?;
        Ok(())
    }

    /// Gives a claim back: deletes the row when it is still `processing`. Returns whether it was. The fact
    /// that says why belongs into the same transaction (design 5).
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn release(&self, id: &str) -> Result<bool, OutboundError> {
        let sql = "DELETE FROM processing_ack WHERE message_id = ?1 AND status = 'processing'";
        Ok(self.execute("release a claim", sql, [id])? > 0)
    }

    /// Deletes every claim and returns how many there were. Only at a runner's start (contract 9).
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn clear_stale_claims(&self) -> Result<usize, OutboundError> {
        self.execute("delete old claims", "DELETE FROM processing_ack WHERE status = 'processing'", [])
    }

    /// Appends an answer. `max_inbound_seq` is the reader's
    /// [`max_seq`](crate::session::runner_side::InboundReader::max_seq): the numbers of both files are
    /// disjoint.
    ///
    /// # Errors
    /// When SQLite refuses, above all when the id exists.
    pub fn insert(&self, message: &NewOutbound, max_inbound_seq: i64) -> Result<Inserted, OutboundError> {
        let max_outbound: Option<i64> = self
            .db
            .prepare_cached("SELECT max(seq) FROM messages_out")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(|source| OutboundError::of(self.path, "number an answer", source))?;
        let seq = seq::next_outbound(max_inbound_seq.max(max_outbound.unwrap_or(0)));
        let sql = "INSERT INTO messages_out (id, seq, in_reply_to, timestamp, deliver_after, kind, \
                   platform_id, channel_type, thread_id, content) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let values = params![
            message.id,
            seq,
            message.in_reply_to,
            timestamp::sqlite(self.now),
            message.deliver_after.map(timestamp::sqlite),
            message.kind,
            message.address.platform_id,
            message.address.channel_type,
            message.address.thread_id,
            message.content,
        ];
        self.execute("write an answer", sql, values)?;
        Ok(Inserted { rowid: self.db.last_insert_rowid(), seq })
    }

    /// A value of `session_state`.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn state(&self, key: &str) -> Result<Option<String>, OutboundError> {
        state(self.db, key).map_err(|source| OutboundError::of(self.path, "read a state", source))
    }

    /// Writes a value of `session_state`; a fact when the key begins with
    /// [`FACT_PREFIX`](crate::session::rows::FACT_PREFIX).
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn put_state(&self, key: &str, value: &str) -> Result<(), OutboundError> {
        let sql = "INSERT INTO session_state (key, value, updated_at) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (key) DO UPDATE SET value = ?2, updated_at = ?3";
        self.execute("write a state", sql, params![key, value, timestamp::iso(self.now)])?;
        Ok(())
    }

    /// Deletes a value of `session_state`. Returns whether there was one.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn delete_state(&self, key: &str) -> Result<bool, OutboundError> {
        Ok(self.execute("delete a state", "DELETE FROM session_state WHERE key = ?1", [key])? > 0)
    }

    /// Says which tool is in flight; without a `started_at` it began now.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn set_tool(&self, tool: &ToolInFlight) -> Result<(), OutboundError> {
        let now = timestamp::iso(self.now);
        let timeout = tool.declared_timeout_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
        self.container_state(Some(&tool.name), timeout, Some(tool.started_at.as_deref().unwrap_or(&now)))
    }

    /// Says that no tool is in flight.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub fn clear_tool(&self) -> Result<(), OutboundError> {
        self.container_state(None, None, None)
    }

    fn container_state(
        &self,
        tool: Option<&str>,
        timeout: Option<i64>,
        started: Option<&str>,
    ) -> Result<(), OutboundError> {
        let sql = "INSERT INTO container_state (id, current_tool, tool_declared_timeout_ms, tool_started_at, \
                   updated_at) VALUES (1, ?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE SET current_tool = ?1, \
                   tool_declared_timeout_ms = ?2, tool_started_at = ?3, updated_at = ?4";
        let values = params![tool, timeout, started, timestamp::iso(self.now)];
        self.execute("write the tool in flight", sql, values)?;
        Ok(())
    }
}

/// Statements that are kept prepared: all that this file has, so none is ever parsed twice.
const STATEMENTS: usize = 32;

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let mut db = Connection::open(path)?;
    Wait::Runner.install(&mut db)?;
    db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    schema::prepare_outbound(&db)?;
    Ok(db)
}

fn state(db: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    db.prepare_cached("SELECT value FROM session_state WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}
