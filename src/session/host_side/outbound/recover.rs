//! Rows that a killed runner left behind a hot journal: they are read from a copy that is rolled back, never
//! by a recovery of the original, which belongs to the next runner (design 3).
//!
//! Invariant: only called when the attempt is gone and the kept connection is closed: opening and closing the
//! files here would drop the locks of a connection of this process.
//! Invariant: a journal that names a super-journal is refused: rolling it back would touch files that it
//! names.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::cause::{Cause, Unreadable};
use super::checks::{self, Deadline, Guard};
use super::reader::OutboundReader;
use crate::base::SessionName;
use crate::session::SessionFolder;
use crate::session::busy::Wait;
use crate::session::layout::{OUTBOUND_DB, journal_of};

/// What a journal's header and a super-journal record end with.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// Copies outbound.db and its journal into `into`, an empty folder or one that does not exist, rolls the copy
/// back, and returns a reader of it. The caller deletes the folder after reading, and after an error.
///
/// # Errors
/// [`Unreadable`], with the path of the original.
pub fn recover(
    session: &SessionName,
    folder: &SessionFolder,
    into: &Path,
    guard: Guard,
) -> Result<OutboundReader, Unreadable> {
    let original = folder.outbound_db();
    let copy = into.join(OUTBOUND_DB);
    let before = marks(&original);
    copy_both(&original, &copy, into, &guard)
        // Somebody writes after all: a copy of two moments is worth nothing.
        .and_then(|()| if marks(&original) == before { Ok(()) } else { Err(Cause::Busy) })
        .and_then(|()| roll_back(&copy, &guard))
        .map_err(|cause| Unreadable { session: session.clone(), path: original, cause })?;
    Ok(OutboundReader::at(session.clone(), copy, guard))
}

/// By which it is seen that a database or its journal was written or replaced.
fn marks(original: &Path) -> [Option<(u64, u64, i64, i64)>; 2] {
    [original.to_owned(), journal_of(original)].map(|path| {
        let found = fs::symlink_metadata(path).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    })
}

fn copy_both(original: &Path, copy: &Path, into: &Path, guard: &Guard) -> Result<(), Cause> {
    fs::create_dir_all(into).map_err(|error| io_cause(&error))?;
    copy_file(original, copy, guard)?;
    let journal = journal_of(original);
    match open_source(&journal, guard) {
        Err(Cause::Missing) => Ok(()),
        Err(cause) => Err(cause),
        Ok(mut source) => {
            if ends_in_super_journal(&mut source).map_err(|error| io_cause(&error))? {
                return Err(Cause::SuperJournal);
            }
            copy_open(source, &journal_of(copy), guard)
        }
    }
}

fn copy_file(from: &Path, to: &Path, guard: &Guard) -> Result<(), Cause> {
    copy_open(open_source(from, guard)?, to, guard)
}

/// Opens without following a link or waiting, and judges what was opened.
fn open_source(path: &Path, guard: &Guard) -> Result<File, Cause> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    // A look first: opening a device may have effects.
    checks::look(path, guard)?;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => Cause::Missing,
        other => Cause::Io(other.to_string()),
    })?;
    let found = rustix::fs::fstat(&fd).map_err(|errno| Cause::Io(errno.to_string()))?;
    checks::judge(path, &found, guard)?;
    Ok(File::from(fd))
}

fn ends_in_super_journal(journal: &mut File) -> io::Result<bool> {
    let tail = JOURNAL_MAGIC.len() as u64;
    let mut end = [0; JOURNAL_MAGIC.len()];
    let len = journal.metadata()?.len();
    if len >= tail {
        journal.seek(SeekFrom::Start(len - tail))?;
        journal.read_exact(&mut end)?;
        journal.seek(SeekFrom::Start(0))?;
    }
    Ok(end == JOURNAL_MAGIC)
}

fn copy_open(source: File, to: &Path, guard: &Guard) -> Result<(), Cause> {
    let mut target =
        File::options().write(true).create_new(true).open(to).map_err(|error| io_cause(&error))?;
    // The file may grow while it is copied; the bound holds all the same.
    let allowed = guard.max_bytes;
    let bytes = io::copy(&mut source.take(allowed.saturating_add(1)), &mut target)
        .and_then(|bytes| target.flush().map(|()| bytes))
        .map_err(|error| io_cause(&error))?;
    if bytes > allowed { Err(Cause::TooLarge { bytes, allowed }) } else { Ok(()) }
}

fn roll_back(copy: &Path, guard: &Guard) -> Result<(), Cause> {
    let of = |error: rusqlite::Error| Cause::of_sqlite(&error, copy, false);
    super::install_guards().map_err(|error| Cause::Io(error.to_string()))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let mut db = Connection::open_with_flags(copy, flags).map_err(of)?;
    let deadline = Deadline::new();
    deadline.set(guard.budget);
    Wait::HostRead.install(&mut db).map_err(of)?;
    // The first read of the schema rolls back; what the settings read comes after it or causes it.
    checks::harden(&mut db, &deadline).map_err(of)?;
    db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(of)
}

fn io_cause(error: &io::Error) -> Cause {
    Cause::Io(error.to_string())
}
