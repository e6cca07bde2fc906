//! Why outbound.db could not be read, in words that lead to the next step.

use std::path::{Path, PathBuf};

use rusqlite::{ErrorCode, ffi};
use rustix::fs::FileType;

use super::checks;
use crate::base::SessionName;
use crate::session::layout::journal_of;

/// outbound.db of one session could not be read. No other session is concerned.
#[derive(Debug, thiserror::Error)]
#[error("session {session}: cannot read {path}: {cause}")]
pub struct Unreadable {
    /// The session.
    pub session: SessionName,
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub cause: Cause,
}

impl Unreadable {
    /// Whether the next read may succeed without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        self.cause.is_transient()
    }

    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        self.cause.hint()
    }
}

/// What lies where a regular file was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A folder.
    Folder,
    /// A socket.
    Socket,
    /// A character or block device, or something unknown.
    Device,
}

impl Kind {
    /// `None` for a regular file.
    pub(super) fn of(found: FileType) -> Option<Self> {
        match found {
            FileType::RegularFile => None,
            FileType::Symlink => Some(Self::Link),
            FileType::Fifo => Some(Self::Fifo),
            FileType::Directory => Some(Self::Folder),
            FileType::Socket => Some(Self::Socket),
            _ => Some(Self::Device),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Link => "a link",
            Self::Fifo => "a named pipe",
            Self::Folder => "a folder",
            Self::Socket => "a socket",
            Self::Device => "a device",
        }
    }
}

/// Why a read failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// There is no file.
    #[error("it is missing")]
    Missing,
    /// The file or its journal is not a regular file.
    #[error("{file} is {}", .kind.name())]
    NotAFile {
        /// The database's or the journal's file name.
        file: String,
        /// What it is.
        kind: Kind,
    },
    /// It belongs to a user who is neither the container's nor the daemon's.
    #[error("it belongs to user {found}")]
    WrongOwner {
        /// The owner's number.
        found: u32,
    },
    /// Whose it must be is not known yet.
    #[error("whose it must be is not known until the engine answers")]
    OwnerNotKnown,
    /// It is larger than allowed.
    #[error("it has {bytes} bytes, {allowed} are allowed")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        allowed: u64,
    },
    /// Its header is not SQLite's.
    #[error("it is not a database")]
    NotADatabase,
    /// It was switched to a write-ahead log.
    #[error("it uses a write-ahead log")]
    Wal,
    /// Its writer was killed in mid-commit, and only a writer may roll back.
    #[error("it has a hot journal")]
    HotJournal,
    /// The copied journal names other databases, which must not be touched.
    #[error("its journal names a super-journal")]
    SuperJournal,
    /// The writer holds the lock.
    #[error("it is locked")]
    Busy,
    /// The read took longer than its budget.
    #[error("reading it takes too long")]
    Slow,
    /// A table is missing, is not a table, or has other columns.
    #[error("its tables are not those of the contract: {0}")]
    UnexpectedSchema(String),
    /// SQLite found damage.
    #[error("it is damaged: {0}")]
    Corrupt(String),
    /// Another file took its place during the read.
    #[error("it was replaced while it was opened")]
    Replaced,
    /// Anything else that the system or SQLite reports.
    #[error("{0}")]
    Io(String),
}

impl Cause {
    /// Whether the next read may succeed without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy | Self::Replaced)
    }

    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Busy | Self::Replaced => "read again at the next event",
            Self::OwnerNotKnown => "it is read when the engine has answered",
            Self::HotJournal => "recover from a copy when the attempt has ended; the next runner rolls back",
            Self::Wal => "in the container, set journal_mode=DELETE; or `session reset`",
            Self::WrongOwner { .. } => "give the file back to the container's user; or `session reset`",
            Self::Slow => "retried with a back-off; `session reset` starts a new file if it lasts",
            Self::Io(_) => "see that the disk is sound and that the process may open more files",
            Self::Missing
            | Self::NotAFile { .. }
            | Self::TooLarge { .. }
            | Self::NotADatabase
            | Self::SuperJournal
            | Self::UnexpectedSchema(_)
            | Self::Corrupt(_) => "`session reset` moves the file aside and starts a new one",
        }
    }

    /// What an error of SQLite means for this file; `wal` is what its header said when it was opened.
    pub(super) fn of_sqlite(error: &rusqlite::Error, path: &Path, wal: bool) -> Self {
        let rusqlite::Error::SqliteFailure(failure, text) = error else {
            return Self::UnexpectedSchema(error.to_string());
        };
        let text = || text.clone().unwrap_or_else(|| failure.to_string());
        match (failure.extended_code, failure.code) {
            (ffi::SQLITE_READONLY_ROLLBACK, _) => hot_journal(path),
            (ffi::SQLITE_CANTOPEN_SYMLINK, _) => {
                cannot_open(path, "a folder in its path is a link; the data folder must be canonical".into())
            }
            (ffi::SQLITE_IOERR_SHORT_READ, _) => Self::Corrupt(text()),
            (_, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            (_, ErrorCode::OperationInterrupted) => Self::Slow,
            (_, ErrorCode::NotADatabase) if wal => Self::Wal,
            (_, ErrorCode::NotADatabase) => Self::NotADatabase,
            (_, ErrorCode::DatabaseCorrupt) => Self::Corrupt(text()),
            (_, ErrorCode::CannotOpen) => cannot_open(path, text()),
            (_, ErrorCode::Unknown | ErrorCode::TooBig | ErrorCode::AuthorizationForStatementDenied) => {
                Self::UnexpectedSchema(text())
            }
            _ => Self::Io(text()),
        }
    }
}

/// A journal that cannot be opened looks hot to SQLite; what it is decides.
fn hot_journal(path: &Path) -> Cause {
    match checks::kind_of(&journal_of(path)) {
        Ok(Some(kind)) => Cause::NotAFile { file: checks::name_of(&journal_of(path)), kind },
        // It was there a moment ago: its writer has finished.
        Err(Cause::Missing) => Cause::Busy,
        _ => Cause::HotJournal,
    }
}

fn cannot_open(path: &Path, text: String) -> Cause {
    match checks::kind_of(path) {
        Ok(Some(kind)) => Cause::NotAFile { file: checks::name_of(path), kind },
        Ok(None) => Cause::Io(text),
        Err(cause) => cause,
    }
}
