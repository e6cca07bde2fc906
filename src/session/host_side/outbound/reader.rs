//! The reader: one kept connection, one read transaction per read, everything collected before it returns.
//!
//! Rows are read from a remembered pair (rowid, id). Rowids can be used again (a rollback, a replaced file),
//! so the row at the remembered place must still carry the remembered id; otherwise everything is read again.
//!
//! Invariant: no statement is open and no lock is held between two reads.
//! Invariant: the connection is on the file that the path names now; device and inode are compared before
//! each read.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::cause::{Cause, Unreadable};
use super::checks::{self, CheckError, Deadline, Guard, Tables};
use super::decode::{self, Row};
use super::syscalls;
use crate::base::SessionName;
use crate::session::SessionFolder;
use crate::session::busy::Wait;
use crate::session::rows::{
    Ack, AckStatus, FACT_PREFIX, Fact, MAX_FACT_BYTES, MAX_FACTS, MAX_FIELD_BYTES, ToolInFlight,
};

/// Most rows that one read returns: the machine holds no more of a session (design, rule 10).
pub const MAX_ROWS: usize = 256;
/// Most complaints of one read; more of them say nothing new.
const MAX_COMPLAINTS: usize = 8;

/// The last row that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Its place.
    pub rowid: i64,
    /// Its id; empty when the row had none that could be read.
    pub id: String,
}

/// What to read.
#[derive(Clone, Copy, Debug)]
pub struct ReadAsk<'a> {
    /// Read the rows after this one; `None` reads from the first.
    pub cursor: Option<&'a Cursor>,
    /// The inbound messages whose acks are wanted: those that the machine holds open.
    pub ids: &'a [String],
    /// Most rows, at most [`MAX_ROWS`].
    pub max_rows: usize,
    /// Most bytes of rows; one row is always returned, however long.
    pub max_bytes: usize,
}

/// What was read, all of it in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The rows in order of delivery.
    pub rows: Vec<Row>,
    /// Whether more rows wait.
    pub more: bool,
    /// The remembered row was gone: these rows begin at the first, drop by id what is known.
    pub rewound: bool,
    /// What to remember for the next read.
    pub cursor: Option<Cursor>,
    /// The acks of the ids asked for, as far as there are any.
    pub acks: Vec<Ack>,
    /// The tool in flight.
    pub tool: Option<ToolInFlight>,
    /// The facts, in the order of keys.
    pub facts: Vec<Fact>,
    /// What was left out because it does not fit the contract, in words; at most 8.
    pub complaints: Vec<String>,
}

impl Reading {
    fn complain(&mut self, what: impl FnOnce() -> String) {
        if self.complaints.len() < MAX_COMPLAINTS {
            self.complaints.push(what());
        }
    }
}

/// Either half of what can go wrong during a read.
enum Trouble {
    Cause(Cause),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Cause> for Trouble {
    fn from(cause: Cause) -> Self {
        Self::Cause(cause)
    }
}

impl From<CheckError> for Trouble {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Schema(what) => Self::Cause(Cause::UnexpectedSchema(what)),
            CheckError::Sqlite(error) => Self::Sqlite(error),
        }
    }
}

/// A connection and what it was opened on.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) db: Connection,
    file: (u64, u64),
    pub(super) wal: bool,
    deadline: Deadline,
    /// The schema's version when its tables were checked.
    checked: Option<(i64, Tables)>,
}

/// Reads the outbound.db of one session.
#[derive(Debug)]
pub struct OutboundReader {
    session: SessionName,
    path: PathBuf,
    guard: Guard,
    kept: Option<Kept>,
}

impl OutboundReader {
    /// A reader; nothing is opened before the first read. No part of the path may be a link: the data folder
    /// is made canonical once at the start. On mounts that are not local the caller closes it after each read
    /// (design 9).
    pub fn new(session: SessionName, folder: &SessionFolder, guard: Guard) -> Self {
        Self::at(session, folder.outbound_db(), guard)
    }

    /// A reader of a copy.
    pub(super) fn at(session: SessionName, path: PathBuf, guard: Guard) -> Self {
        Self { session, path, guard, kept: None }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a connection is kept; one costs about 112 kB.
    pub fn is_open(&self) -> bool {
        self.kept.is_some()
    }

    /// Closes the kept connection. The next read opens another one.
    pub fn close(&mut self) {
        self.kept = None;
    }

    /// Reads rows, acks, the tool in flight and the facts in one transaction.
    ///
    /// # Errors
    /// [`Unreadable`]. The connection is then closed, unless the file was merely locked.
    pub fn read(&mut self, ask: &ReadAsk<'_>) -> Result<Reading, Unreadable> {
        self.with(|db, tables| collect(db, tables, ask))
    }

    /// Reads one row again, for its content. `None` when the row at this place is another one or gone.
    ///
    /// # Errors
    /// As [`OutboundReader::read`].
    pub fn read_body(&mut self, rowid: i64, id: &str) -> Result<Option<Row>, Unreadable> {
        self.with(|db, _| {
            let row =
                guarded(|sql| db.prepare_cached(sql)?.query_row([rowid, 1], decode::decode).optional())?;
            Ok(row.filter(|row| row.rowid() == rowid && row.id() == Some(id)))
        })
    }

    /// The row of an id, wherever it stands.
    ///
    /// # Errors
    /// As [`OutboundReader::read`].
    pub fn find(&mut self, id: &str) -> Result<Option<Row>, Unreadable> {
        self.with(|db, _| {
            let mut place = db.prepare_cached("SELECT rowid FROM messages_out WHERE id = ?1 LIMIT 1")?;
            let Some(rowid) = place.query_row([id], |row| row.get::<_, i64>(0)).optional()? else {
                return Ok(None);
            };
            let row =
                guarded(|sql| db.prepare_cached(sql)?.query_row([rowid, 1], decode::decode).optional())?;
            Ok(row.filter(|row| row.rowid() == rowid && row.id() == Some(id)))
        })
    }

    /// Asks in a read transaction. A kept connection that fails is replaced once: the file may have changed
    /// below it.
    fn with<T>(
        &mut self,
        mut ask: impl FnMut(&Connection, Tables) -> Result<T, Trouble>,
    ) -> Result<T, Unreadable> {
        let was_kept = self.kept.is_some();
        let mut answer = self.attempt(&mut ask);
        if was_kept && matches!(&answer, Err(cause) if !matches!(cause, Cause::Busy | Cause::Slow)) {
            self.kept = None;
            answer = self.attempt(&mut ask);
        }
        answer.map_err(|cause| {
            if cause != Cause::Busy {
                self.kept = None;
            }
            Unreadable { session: self.session.clone(), path: self.path.clone(), cause }
        })
    }

    fn attempt<T>(
        &mut self,
        ask: &mut impl FnMut(&Connection, Tables) -> Result<T, Trouble>,
    ) -> Result<T, Cause> {
        let file = checks::look(&self.path, &self.guard)?;
        let kept = match self.kept.take().filter(|kept| kept.file == file) {
            Some(kept) => kept,
            None => open(&self.path, file, &self.guard)?,
        };
        let kept = self.kept.insert(kept);
        kept.deadline.set(self.guard.budget);
        let answer = in_transaction(kept, ask);
        answer.map_err(|trouble| match trouble {
            Trouble::Cause(cause) => cause,
            Trouble::Sqlite(error) => Cause::of_sqlite(&error, &self.path, kept.wal),
        })
    }
}

pub(super) fn open(path: &Path, file: (u64, u64), guard: &Guard) -> Result<Kept, Cause> {
    syscalls::install_guards().map_err(|error| Cause::Io(error.to_string()))?;
    syscalls::take_opened();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let opened = Connection::open_with_flags(path, flags);
    let seen = syscalls::take_opened();
    let wal = seen.is_some_and(|seen| seen.wal);
    let of = |error: rusqlite::Error| Cause::of_sqlite(&error, path, wal);
    let mut db = opened.map_err(of)?;
    // Between the look and the opening another file may have come; the hook saw the one that was opened.
    if seen.is_some_and(|seen| seen.file != file) || checks::look(path, guard)? != file {
        return Err(Cause::Replaced);
    }
    let deadline = Deadline::new();
    deadline.set(guard.budget);
    // Only memory is at stake: without it the reader works as well.
    syscalls::lookaside_off(&db);
    Wait::HostRead.install(&mut db).map_err(of)?;
    checks::harden(&mut db, &deadline).map_err(of)?;
    db.pragma_update(None, "query_only", true).map_err(of)?;
    Ok(Kept { db, file, wal, deadline, checked: None })
}

fn in_transaction<T>(
    kept: &mut Kept,
    ask: &mut impl FnMut(&Connection, Tables) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    let db = &kept.db;
    db.prepare_cached("BEGIN")?.execute([])?;
    let answer = checked_tables(db, &mut kept.checked).and_then(|tables| ask(db, tables));
    // Ending a read transaction cannot lose anything. Where even that fails the connection is given up.
    let ended = db.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
    let value = answer?;
    ended?;
    Ok(value)
}

/// The tables are looked at again only when the schema's version says that they changed; that is also when
/// SQLite itself reads them again.
fn checked_tables(db: &Connection, checked: &mut Option<(i64, Tables)>) -> Result<Tables, Trouble> {
    let version: i64 = db.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))?;
    if let Some((at, tables)) = checked
        && *at == version
    {
        return Ok(*tables);
    }
    let tables = checks::check_tables(db)?;
    *checked = Some((version, tables));
    Ok(tables)
}

fn collect(db: &Connection, tables: Tables, ask: &ReadAsk<'_>) -> Result<Reading, Trouble> {
    let mut reading = guarded(|sql| match ask.cursor {
        None => rows_from(db, sql, i64::MIN, None, ask),
        Some(cursor) => match rows_from(db, sql, cursor.rowid, Some(cursor), ask)? {
            Some(reading) => Ok(Some(reading)),
            None => Ok(rows_from(db, sql, i64::MIN, None, ask)?.map(|all| Reading { rewound: true, ..all })),
        },
    })?
    .unwrap_or_default();
    acks(db, ask.ids, &mut reading)?;
    if tables.container_state {
        tool(db, &mut reading)?;
    }
    if tables.session_state {
        facts(db, &mut reading)?;
    }
    Ok(reading)
}

/// Asks with the usual query, and with the guarded one when a value is too big for it.
fn guarded<T>(mut ask: impl FnMut(&str) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    match ask(&decode::ROWS_SQL) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::TooBig) => ask(&decode::GUARDED_ROWS_SQL),
        answer => answer,
    }
}

/// The rows from a place on. With a cursor the first must be the remembered one, which is not returned;
/// otherwise the answer is `None`.
fn rows_from(
    db: &Connection,
    sql: &str,
    from: i64,
    cursor: Option<&Cursor>,
    ask: &ReadAsk<'_>,
) -> rusqlite::Result<Option<Reading>> {
    let max_rows = ask.max_rows.clamp(1, MAX_ROWS);
    // One more for the remembered row, one more to know whether more wait.
    let limit = i64::try_from(max_rows + 2).unwrap_or(i64::MAX);
    let mut statement = db.prepare_cached(sql)?;
    let mut found = statement.query([from, limit])?;
    if let Some(cursor) = cursor {
        let first = found.next()?.map(decode::decode).transpose()?;
        let same = |row: &Row| row.rowid() == cursor.rowid && row.id().unwrap_or_default() == cursor.id;
        if !first.as_ref().is_some_and(same) {
            return Ok(None);
        }
    }
    let mut reading = Reading { cursor: cursor.cloned(), ..Reading::default() };
    let mut bytes = 0;
    while let Some(row) = found.next()? {
        let row = decode::decode(row)?;
        bytes += row.bytes();
        if reading.rows.len() == max_rows || (bytes > ask.max_bytes && !reading.rows.is_empty()) {
            reading.more = true;
            break;
        }
        reading.cursor = Some(Cursor { rowid: row.rowid(), id: row.id().unwrap_or_default().to_owned() });
        reading.rows.push(row);
    }
    Ok(Some(reading))
}

fn acks(db: &Connection, ids: &[String], reading: &mut Reading) -> Result<(), Trouble> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut statement = db.prepare_cached(
        "SELECT rowid, CASE WHEN octet_length(status) <= 64 THEN status END, \
         CASE WHEN octet_length(status_changed) <= 64 THEN status_changed END \
         FROM processing_ack WHERE message_id = ?1 LIMIT 1",
    )?;
    for id in ids {
        let mut found = statement.query([id])?;
        let Some(row) = found.next()? else { continue };
        let rowid = row.get(0)?;
        let status = decode::text(row.get_ref(1)?).ok().flatten();
        let Some(status) = status.as_deref().and_then(AckStatus::from_column) else {
            reading.complain(|| format!("the ack of {id} has no known status"));
            continue;
        };
        let status_changed = decode::text(row.get_ref(2)?).ok().flatten().unwrap_or_default();
        reading.acks.push(Ack { message_id: id.clone(), status, status_changed, rowid });
    }
    Ok(())
}

fn tool(db: &Connection, reading: &mut Reading) -> Result<(), Trouble> {
    let mut statement = db.prepare_cached(
        "SELECT CASE WHEN octet_length(current_tool) <= 4096 THEN current_tool END, \
         tool_declared_timeout_ms, \
         CASE WHEN octet_length(tool_started_at) <= 64 THEN tool_started_at END \
         FROM container_state WHERE id = 1",
    )?;
    let mut found = statement.query([])?;
    let Some(row) = found.next()? else { return Ok(()) };
    let Ok(name) = decode::text(row.get_ref(0)?) else {
        reading.complain(|| "the name of the tool in flight is not text".into());
        return Ok(());
    };
    let declared_timeout_ms = match row.get_ref(1)? {
        ValueRef::Integer(ms) => u64::try_from(ms).ok(),
        _ => None,
    };
    let started_at = decode::text(row.get_ref(2)?).ok().flatten();
    reading.tool = name.map(|name| ToolInFlight { name, declared_timeout_ms, started_at });
    Ok(())
}

/// '/' follows '.' in ASCII: the range holds exactly the keys with the prefix, and the key's index finds it.
static FACTS_SQL: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {}, {} FROM session_state WHERE key >= '{FACT_PREFIX}' AND key < 'lamplighter/' \
         ORDER BY key LIMIT {}",
        decode::bounded("key", MAX_FIELD_BYTES),
        decode::bounded("value", MAX_FACT_BYTES),
        MAX_FACTS + 1,
    )
});

fn facts(db: &Connection, reading: &mut Reading) -> Result<(), Trouble> {
    let mut statement = db.prepare_cached(&FACTS_SQL)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        if reading.facts.len() == MAX_FACTS {
            reading.complain(|| format!("there are more than {MAX_FACTS} facts"));
            break;
        }
        match (decode::text(row.get_ref(0)?), decode::text(row.get_ref(1)?)) {
            (Ok(Some(key)), Ok(Some(value))) => reading.facts.push(Fact { key, value }),
            (key, _) => {
                let key = key.ok().flatten().unwrap_or_default();
                reading.complain(|| format!("the fact {key:?} is too long or not text"));
            }
        }
    }
    Ok(())
}
