//! The tables of both files, column for column as the contract has them (contract 4 and 5), the host's
//! additional indexes (design 3), and the lazy migration of folders that an older host or runner made
//! (contract 23).
//!
//! Invariant: only additions. A file made here is read by NanoClaw's code, and the reverse.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rusqlite::Connection;

/// The host's file (contract 4).
const INBOUND: &str = "
CREATE TABLE IF NOT EXISTS messages_in (
  id TEXT PRIMARY KEY,
  seq INTEGER UNIQUE,
  kind TEXT NOT NULL,
  timestamp TEXT NOT NULL,
  status TEXT DEFAULT 'pending',
  process_after TEXT,
  recurrence TEXT,
  series_id TEXT,
  tries INTEGER DEFAULT 0,
  trigger INTEGER NOT NULL DEFAULT 1,
  platform_id TEXT,
  channel_type TEXT,
  thread_id TEXT,
  content TEXT NOT NULL,
  source_session_id TEXT,
  on_wake INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS delivered (
  message_out_id TEXT PRIMARY KEY,
  platform_message_id TEXT,
  status TEXT NOT NULL DEFAULT 'delivered',
  delivered_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS destinations (
  name TEXT PRIMARY KEY,
  display_name TEXT,
  type TEXT NOT NULL,
  channel_type TEXT,
  platform_id TEXT,
  agent_group_id TEXT
);
CREATE TABLE IF NOT EXISTS session_routing (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  channel_type TEXT,
  platform_id TEXT,
  thread_id TEXT
);
";

/// Indexes of the host's file. The last two are ours: the pending query and the newest row of a chat.
const INBOUND_INDEXES: &str = "
CREATE INDEX IF NOT EXISTS idx_messages_in_series ON messages_in(series_id);
CREATE INDEX IF NOT EXISTS idx_messages_in_pending ON messages_in(seq) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS idx_messages_in_chat ON messages_in(channel_type, platform_id, seq);
";

/// The runner's file (contract 5).
const OUTBOUND: &str = "
CREATE TABLE IF NOT EXISTS messages_out (
  id TEXT PRIMARY KEY,
  seq INTEGER UNIQUE,
  in_reply_to TEXT,
  timestamp TEXT NOT NULL,
  deliver_after TEXT,
  recurrence TEXT,
  kind TEXT NOT NULL,
  platform_id TEXT,
  channel_type TEXT,
  thread_id TEXT,
  content TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS processing_ack (
  message_id TEXT PRIMARY KEY,
  status TEXT NOT NULL,
  status_changed TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS session_state (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  updated_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS container_state (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  current_tool TEXT,
  tool_declared_timeout_ms INTEGER,
  tool_started_at TEXT,
  updated_at TEXT NOT NULL
);
";

/// The columns that an older host did not make, each with what adds it.
const INBOUND_ADDED: [(&str, &str, &str); 6] = [
    (
        "messages_in",
        "series_id",
        "ALTER TABLE messages_in ADD COLUMN series_id TEXT; UPDATE messages_in SET series_id = id",
    ),
    ("messages_in", "trigger", "ALTER TABLE messages_in ADD COLUMN trigger INTEGER NOT NULL DEFAULT 1"),
    ("messages_in", "source_session_id", "ALTER TABLE messages_in ADD COLUMN source_session_id TEXT"),
    ("messages_in", "on_wake", "ALTER TABLE messages_in ADD COLUMN on_wake INTEGER NOT NULL DEFAULT 0"),
    ("delivered", "platform_message_id", "ALTER TABLE delivered ADD COLUMN platform_message_id TEXT"),
    ("delivered", "status", "ALTER TABLE delivered ADD COLUMN status TEXT NOT NULL DEFAULT 'delivered'"),
];

/// The one that an older runner did not make.
const OUTBOUND_ADDED: [(&str, &str, &str); 1] = [(
    "session_state",
    "updated_at",
    "ALTER TABLE session_state ADD COLUMN updated_at TEXT NOT NULL DEFAULT ''",
)];

/// The tables of the runner's file.
pub const OUTBOUND_TABLES: [&str; 4] = ["messages_out", "processing_ack", "session_state", "container_state"];

/// One side's file.
struct Side {
    tables: &'static str,
    indexes: &'static str,
    added: &'static [(&'static str, &'static str, &'static str)],
    /// The names of what a new file holds, each with the statement that SQLite keeps of it.
    made: OnceLock<BTreeMap<String, String>>,
}

static INBOUND_SIDE: Side =
    Side { tables: INBOUND, indexes: INBOUND_INDEXES, added: &INBOUND_ADDED, made: OnceLock::new() };
static OUTBOUND_SIDE: Side =
    Side { tables: OUTBOUND, indexes: "", added: &OUTBOUND_ADDED, made: OnceLock::new() };

/// Makes or completes the host's file, in one transaction; writes nothing when it is complete.
///
/// # Errors
/// As SQLite reports them.
pub fn prepare_inbound(db: &Connection) -> rusqlite::Result<()> {
    INBOUND_SIDE.prepare(db)
}

/// Makes or completes the runner's file, in one transaction; writes nothing when it is complete.
///
/// # Errors
/// As SQLite reports them.
pub fn prepare_outbound(db: &Connection) -> rusqlite::Result<()> {
    OUTBOUND_SIDE.prepare(db)
}

impl Side {
    fn prepare(&self, db: &Connection) -> rusqlite::Result<()> {
        if self.is_complete(db)? {
            return Ok(());
        }
        db.execute_batch("BEGIN IMMEDIATE")?;
        let done = self.complete(db).and_then(|()| db.execute_batch("COMMIT"));
        if done.is_err() && !db.is_autocommit() {
            // The first error is the one to report; closing the connection rolls back too.
            let _ = db.execute_batch("ROLLBACK");
        }
        done
    }

    /// With one query where the file was made by these statements, as nearly all are; an older one is looked at column
    /// by column.
    fn is_complete(&self, db: &Connection) -> rusqlite::Result<bool> {
        let made = self.made()?;
        let found = statements(db)?;
        if !made.keys().all(|name| found.contains_key(name)) {
            return Ok(false);
        }
        if made.iter().all(|(name, sql)| found.get(name) == Some(sql)) {
            return Ok(true);
        }
        for (table, column, _) in self.added {
            if !has_column(db, table, column)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn made(&self) -> rusqlite::Result<&BTreeMap<String, String>> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let db = Connection::open_in_memory()?;
        db.execute_batch(self.tables)?;
        db.execute_batch(self.indexes)?;
        let made = statements(&db)?;
        Ok(self.made.get_or_init(|| made))
    }

    fn complete(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute_batch(self.tables)?;
        for (table, column, sql) in self.added {
            if !has_column(db, table, column)? {
                db.execute_batch(sql)?;
            }
        }
        db.execute_batch(self.indexes)
    }
}

/// All tables and indexes that a statement made.
fn statements(db: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
    db.prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// Whether a table has a column.
///
/// # Errors
/// As SQLite reports them.
pub fn has_column(db: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2")?.exists([table, column])
}

/// Whether a table exists.
///
/// # Errors
/// As SQLite reports them.
pub fn has_table(db: &Connection, table: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1")?.exists([table])
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn columns(db: &Connection, table: &str) -> rusqlite::Result<String> {
        db.query_row("SELECT group_concat(name, ' ') FROM pragma_table_info(?1)", [table], |row| row.get(0))
    }

    #[test]
    fn fresh_files_have_the_columns_of_the_contract_in_its_order() -> Outcome {
        let db = Connection::open_in_memory()?;
        prepare_inbound(&db)?;
        prepare_outbound(&db)?;
        for (table, expected) in [
            (
                "messages_in",
                "id seq kind timestamp status process_after recurrence series_id tries trigger platform_id \
                 channel_type thread_id content source_session_id on_wake",
            ),
            ("delivered", "message_out_id platform_message_id status delivered_at"),
            ("destinations", "name display_name type channel_type platform_id agent_group_id"),
            ("session_routing", "id channel_type platform_id thread_id"),
            (
                "messages_out",
                "id seq in_reply_to timestamp deliver_after recurrence kind platform_id channel_type \
                 thread_id content",
            ),
            ("processing_ack", "message_id status status_changed"),
            ("session_state", "key value updated_at"),
            ("container_state", "id current_tool tool_declared_timeout_ms tool_started_at updated_at"),
        ] {
            assert_eq!(columns(&db, table)?, expected, "{table}");
        }
        Ok(())
    }

    #[test]
    fn an_old_inbound_file_gets_what_it_lacks_and_keeps_its_rows() -> Outcome {
        let db = Connection::open_in_memory()?;
        db.execute_batch(
            "CREATE TABLE messages_in (id TEXT PRIMARY KEY, seq INTEGER UNIQUE, kind TEXT NOT NULL,
               timestamp TEXT NOT NULL, status TEXT DEFAULT 'pending', process_after TEXT, recurrence TEXT,
               tries INTEGER DEFAULT 0, platform_id TEXT, channel_type TEXT, thread_id TEXT,
               content TEXT NOT NULL);
             CREATE TABLE delivered (message_out_id TEXT PRIMARY KEY, delivered_at TEXT NOT NULL);
             INSERT INTO messages_in (id, seq, kind, timestamp, content) VALUES ('a', 2, 'chat', 't', '{}');
             INSERT INTO delivered VALUES ('o', 't');",
        )?;
        prepare_inbound(&db)?;
        prepare_inbound(&db)?;
        let row: (String, i64, i64) =
            db.query_row("SELECT series_id, trigger, on_wake FROM messages_in", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        assert_eq!(row, ("a".into(), 1, 0));
        let status: String = db.query_row("SELECT status FROM delivered", [], |row| row.get(0))?;
        assert_eq!(status, "delivered");
        assert!(has_table(&db, "session_routing")?);
        Ok(())
    }

    #[test]
    fn an_old_outbound_file_gets_the_two_younger_tables() -> Outcome {
        let db = Connection::open_in_memory()?;
        db.execute_batch(
            "CREATE TABLE session_state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
             INSERT INTO session_state VALUES ('k', 'v');",
        )?;
        prepare_outbound(&db)?;
        let at: String = db.query_row("SELECT updated_at FROM session_state", [], |row| row.get(0))?;
        assert_eq!(at, "");
        assert!(has_table(&db, "container_state")?);
        Ok(())
    }
}
