//! What is checked before a byte of outbound.db is believed: the file by a look that follows no link, the
//! connection's settings, and the tables' definitions.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::cause::{Cause, Kind};
use crate::session::schema::OUTBOUND_TABLES;

/// The tables that a read cannot do without; the other two are made by a runner at its start (contract 5).
const REQUIRED_TABLES: [&str; 2] = ["messages_out", "processing_ack"];
/// Longest value and statement that SQLite will handle here: twice the longest content.
const MAX_VALUE_BYTES: i32 = 2 * 1024 * 1024;
/// Most columns of a table; the contract's widest has 11.
const MAX_COLUMNS: i32 = 64;
/// Deepest expression that a generated column may have.
const MAX_EXPRESSION_DEPTH: i32 = 32;
/// Longest pattern of a LIKE in a generated column; matching time grows with it.
const MAX_PATTERN_BYTES: i32 = 64;
/// Pages that a connection keeps, in KiB: the working set of a cursor read, not more (design 9).
const CACHE_KIB: i32 = 64;
/// So many steps of SQLite's virtual machine lie between two looks at the clock; about 50 µs.
const STEPS_BETWEEN_LOOKS: i32 = 1_000;

/// Whose outbound.db must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Anybody's.
    Any,
    /// The container's user, who is this one, or the daemon's own: it makes the first file.
    User(u32),
    /// Nobody knows yet who the container's user is, so nothing is read.
    NotKnown,
}

/// What outbound.db must be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Whose it is.
    pub owner: Owner,
    /// The largest file that is read.
    pub max_bytes: u64,
    /// The longest time that one read may take, apart from up to 10 ms for the writer's lock.
    pub budget: Duration,
}

impl Default for Guard {
    /// Any owner; 1 GiB, the bound of the whole folder (design 5); 500 ms, five hundred times a usual read.
    fn default() -> Self {
        Self { owner: Owner::Any, max_bytes: 1 << 30, budget: Duration::from_millis(500) }
    }
}

/// Looks at a file without following a link and demands that it is a regular one of the right owner and size.
/// Returns its device and inode.
pub(super) fn look(path: &Path, guard: &Guard) -> Result<(u64, u64), Cause> {
    let found = stat(path)?;
    judge(path, &found, guard)?;
    Ok((found.st_dev, found.st_ino))
}

/// The judgement of [`look`] on a file already looked at.
pub(super) fn judge(path: &Path, found: &Stat, guard: &Guard) -> Result<(), Cause> {
    if let Some(kind) = Kind::of(FileType::from_raw_mode(found.st_mode)) {
        return Err(Cause::NotAFile { file: name_of(path), kind });
    }
    let own = rustix::process::geteuid().as_raw();
    match guard.owner {
        Owner::NotKnown => return Err(Cause::OwnerNotKnown),
        Owner::User(owner) if found.st_uid != owner && found.st_uid != own => {
            return Err(Cause::WrongOwner { found: found.st_uid });
        }
        Owner::User(_) | Owner::Any => {}
    }
    let bytes = u64::try_from(found.st_size).unwrap_or(u64::MAX);
    if bytes > guard.max_bytes {
        return Err(Cause::TooLarge { bytes, allowed: guard.max_bytes });
    }
    Ok(())
}

/// What a path is when it is no regular file; `None` when it is one.
pub(super) fn kind_of(path: &Path) -> Result<Option<Kind>, Cause> {
    Ok(Kind::of(FileType::from_raw_mode(stat(path)?.st_mode)))
}

fn stat(path: &Path) -> Result<Stat, Cause> {
    rustix::fs::lstat(path).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => Cause::Missing,
        other => Cause::Io(other.to_string()),
    })
}

/// The last part of a path, for messages.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// When the read in progress must end; shared with the progress handler of its connection.
#[derive(Clone, Debug)]
pub(super) struct Deadline {
    origin: Instant,
    ends: Arc<AtomicU64>,
}

impl Deadline {
    /// One that never ends until it is set.
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), ends: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// Ends the read so long from now.
    pub(super) fn set(&self, budget: Duration) {
        let ends = self.origin.elapsed().saturating_add(budget).as_micros();
        self.ends.store(u64::try_from(ends).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.origin.elapsed().as_micros() >= u128::from(self.ends.load(Ordering::Relaxed))
    }
}

/// Sets a connection up for a file that may be hostile.
pub(super) fn harden(db: &mut Connection, deadline: &Deadline) -> rusqlite::Result<()> {
    let deadline = deadline.clone();
    db.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || deadline.is_over()))?;
    for (limit, bound) in [
        (Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, MAX_VALUE_BYTES),
        (Limit::SQLITE_LIMIT_COLUMN, MAX_COLUMNS),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, MAX_EXPRESSION_DEPTH),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        db.set_limit(limit, bound)?;
    }
    for (setting, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
    ] {
        db.set_db_config(setting, on)?;
    }
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "cell_size_check", true)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.pragma_update(None, "cache_size", -CACHE_KIB)
}

/// Which of the two tables that may be missing are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// `session_state`.
    pub(super) session_state: bool,
    /// `container_state`.
    pub(super) container_state: bool,
}

/// Demands that every expected name is an ordinary table.
pub(super) fn check_tables(db: &Connection) -> Result<Tables, CheckError> {
    let mut statement = db.prepare_cached(
        "SELECT type, CASE WHEN octet_length(sql) < 65536 THEN sql END FROM sqlite_schema \
         WHERE lower(name) = ?1",
    )?;
    let mut present = |name: &str| -> Result<bool, CheckError> {
        // A trigger may bear the name of a table: every object of that name is looked at.
        let mut found = statement.query([name])?;
        let mut there = false;
        while let Some(row) = found.next()? {
            let kind: Option<String> = row.get(0)?;
            if kind.as_deref() != Some("table") {
                return Err(CheckError::Schema(format!("{name} is a {}", kind.unwrap_or_default())));
            }
            let sql: Option<String> = row.get(1)?;
            if sql.is_none_or(|sql| is_virtual(&sql)) {
                return Err(CheckError::Schema(format!("{name} is not an ordinary table")));
            }
            there = true;
        }
        Ok(there)
    };
    let [messages, acks, session_state, container_state] = OUTBOUND_TABLES;
    for (name, there) in REQUIRED_TABLES.into_iter().zip([present(messages)?, present(acks)?]) {
        if !there {
            return Err(CheckError::Schema(format!("{name} is missing")));
        }
    }
    Ok(Tables { session_state: present(session_state)?, container_state: present(container_state)? })
}

/// SQLite stores a definition with its first words normalised to `CREATE TABLE` or `CREATE VIRTUAL TABLE`.
fn is_virtual(sql: &str) -> bool {
    !sql.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("CREATE TABLE"))
}

/// Why [`check_tables`] refused.
#[derive(Debug)]
pub(super) enum CheckError {
    /// The tables are not those of the contract.
    Schema(String),
    /// They could not be read.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for CheckError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}
