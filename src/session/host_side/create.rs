//! Session folders: made whole, repaired before a start, and cleaned after a delivery.
//!
//! These are the only four cases in which the host writes below `out/` (design, rule 4). The agent may have
//! put anything there, so everything but the first is done relative to an open folder and follows no link.
//!
//! Invariant: a folder that exists is complete: it is built beside its place and renamed into it.
//! Invariant: nothing that is not a link is deleted to make room; it is renamed aside.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::base::Wall;
use crate::base::ids::is_safe_name;
use crate::session::busy::Wait;
use crate::session::layout::{IN, INBOUND_DB, INBOX, JOURNAL_SUFFIX, OUTBOUND_DB, OUTBOX};
use crate::session::{SessionFolder, schema};

/// Rights of the folders. The data folder above them is the daemon's alone; below it the container's user,
/// who may be another one, must get through.
const FOLDER_MODE: u32 = 0o755;
/// Rights of the databases: the container's user reads the host's one.
const FILE_MODE: u32 = 0o644;
/// The links that make our layout readable for NanoClaw's runner: name below `out/`, target relative to it.
const LINKS: [(&str, &str); 2] = [(INBOUND_DB, "in/inbound.db"), (INBOX, "in/inbox")];
/// Deepest folder that is emptied in an outbox; attachments lie at depth one.
const MAX_DEPTH: usize = 8;
/// Most entries that are removed for one message; a message has a few attachments.
const MAX_ENTRIES: usize = 4_096;

/// Why a session folder could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is one already.
    #[error("{path} exists already")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A database could not be made.
    #[error("cannot make the database {path}: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FolderError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Exists { .. } => "use the session that is there, or choose another name",
            Self::Database { .. } | Self::Io { .. } => {
                "see that the disk has space and that the data folder is the daemon's own"
            }
        }
    }

    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    fn os(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Io { doing, path: path.to_owned(), source: errno.into() }
    }
}

/// Builds the nested session folder `root` whole: both databases, the attachment folders, the mount point and
/// the links. It is complete and durable before it has its name. No part of the path may be a link: the data
/// folder is made canonical once at the start.
///
/// # Errors
/// [`FolderError`]. What was built half is removed at the next try.
pub fn create(root: &Path) -> Result<SessionFolder, FolderError> {
    if root.symlink_metadata().is_ok() {
        return Err(FolderError::Exists { path: root.to_owned() });
    }
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(FolderError::io("name the session", root)(io::ErrorKind::InvalidInput.into()));
    };
    make_parents(parent)?;
    let mut temp_name = std::ffi::OsString::from(".");
    temp_name.push(name);
    temp_name.push(".new");
    let temp = parent.join(temp_name);
    if temp.symlink_metadata().is_ok() {
        // Left by a crash; nobody but this function has ever seen it.
        fs::remove_dir_all(&temp).map_err(FolderError::io("remove", &temp))?;
    }
    build(&temp)?;
    fs::rename(&temp, root).map_err(FolderError::io("rename into place", root))?;
    sync_folder(parent)?;
    Ok(SessionFolder::nested(root))
}

fn make_parents(folder: &Path) -> Result<(), FolderError> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_parents(parent)?;
        make_folder(folder)?;
        sync_folder(parent)?;
    }
    Ok(())
}

fn build(temp: &Path) -> Result<(), FolderError> {
    let folder = SessionFolder::nested(temp);
    let mount_point = folder.out_dir().join(IN);
    let folders = [
        temp.to_owned(),
        folder.in_dir().to_owned(),
        folder.inbox_root(),
        folder.out_dir().to_owned(),
        folder.outbox_root(),
        mount_point,
    ];
    for path in &folders {
        make_folder(path)?;
    }
    make_database(&folder.inbound_db(), schema::prepare_inbound)?;
    make_database(&folder.outbound_db(), schema::prepare_outbound)?;
    for (name, target) in LINKS {
        let link = folder.out_dir().join(name);
        symlink(target, &link).map_err(FolderError::io("link", &link))?;
    }
    folders.iter().rev().try_for_each(|path| sync_folder(path))
}

fn make_folder(path: &Path) -> Result<(), FolderError> {
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(FolderError::io("make the folder", path)),
    }
}

/// SQLite syncs the file at the commit; its name is synced with its folder.
fn make_database(path: &Path, prepare: fn(&Connection) -> rusqlite::Result<()>) -> Result<(), FolderError> {
    let make = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut db = Connection::open_with_flags(path, flags)?;
        Wait::HostWrite.install(&mut db)?;
        db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        db.pragma_update(None, "synchronous", "EXTRA")?;
        prepare(&db)?;
        db.close().map_err(|(_, error)| error)
    };
    make().map_err(|source| FolderError::Database { path: path.to_owned(), source })?;
    fs::set_permissions(path, fs::Permissions::from_mode(FILE_MODE))
        .map_err(FolderError::io("set the rights of", path))
}

fn sync_folder(path: &Path) -> Result<(), FolderError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(FolderError::io("sync", path))
}

/// Opens a folder that must be a real one.
fn open_folder(at: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// Puts the links and the mount point below `out/` back where the agent removed or replaced them; only with
/// no attempt alive. What stood in the way and is no link is renamed to `<name>.<ms>.aside`. Returns the
/// names put back.
///
/// # Errors
/// [`FolderError::Io`].
pub fn repair_links(folder: &SessionFolder, now: Wall) -> Result<Vec<&'static str>, FolderError> {
    let path = folder.out_dir();
    let out = open_folder(CWD, path).map_err(FolderError::os("open", path))?;
    let mut repaired = Vec::new();
    if kind_at(&out, IN).map_err(FolderError::os("look at", path))? != Some(FileType::Directory) {
        make_room(&out, IN, now)
            .and_then(|()| rustix::fs::mkdirat(&out, IN, Mode::from_raw_mode(FOLDER_MODE)))
            .map_err(FolderError::os("put the mount point back in", path))?;
        repaired.push(IN);
    }
    for (name, target) in LINKS {
        let found = rustix::fs::readlinkat(&out, name, Vec::new());
        if found.is_ok_and(|found| found.as_bytes() == target.as_bytes()) {
            continue;
        }
        make_room(&out, name, now)
            .and_then(|()| rustix::fs::symlinkat(target, &out, name))
            .map_err(FolderError::os("put a link back in", path))?;
        repaired.push(name);
    }
    if !repaired.is_empty() {
        rustix::fs::fsync(&out).map_err(FolderError::os("sync", path))?;
    }
    Ok(repaired)
}

fn kind_at(folder: &OwnedFd, name: &str) -> rustix::io::Result<Option<FileType>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn make_room(folder: &OwnedFd, name: &str, now: Wall) -> rustix::io::Result<()> {
    match kind_at(folder, name)? {
        None => Ok(()),
        Some(FileType::Symlink) => rustix::fs::unlinkat(folder, name, AtFlags::empty()),
        Some(_) => rustix::fs::renameat(folder, name, folder, aside(name, now)),
    }
}

fn aside(name: &str, now: Wall) -> String {
    format!("{name}.{}.aside", now.0.max(0) / 1_000)
}

/// Moves a bad outbound.db and its journal aside and puts an empty one in its place; only with no attempt
/// alive. Returns the name of what was moved, `None` when there was nothing.
///
/// # Errors
/// [`FolderError`]. Doing it again after an error completes it.
pub fn set_aside_outbound(folder: &SessionFolder, now: Wall) -> Result<Option<String>, FolderError> {
    let path = folder.out_dir();
    let out = open_folder(CWD, path).map_err(FolderError::os("open", path))?;
    let moved = aside(OUTBOUND_DB, now);
    // The journal first: left beside a new database it would be rolled back into it.
    rename_if_there(&out, &format!("{OUTBOUND_DB}{JOURNAL_SUFFIX}"), &format!("{moved}{JOURNAL_SUFFIX}"))
        .map_err(FolderError::os("move the journal aside in", path))?;
    let had_one = rename_if_there(&out, OUTBOUND_DB, &moved)
        .map_err(FolderError::os("move the database aside in", path))?;
    // Built where the container cannot write, so that nothing can be planted in its way.
    let in_path = folder.in_dir();
    let temp_name = format!(".{OUTBOUND_DB}.new");
    let temp = in_path.join(&temp_name);
    for left in [temp.clone(), crate::session::layout::journal_of(&temp)] {
        match fs::remove_file(&left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FolderError::io("remove", &left)(error));
            }
            _ => {}
        }
    }
    make_database(&temp, schema::prepare_outbound)?;
    rustix::fs::renameat(CWD, &temp, &out, OUTBOUND_DB)
        .map_err(FolderError::os("put a new database into", path))?;
    rustix::fs::fsync(&out).map_err(FolderError::os("sync", path))?;
    sync_folder(in_path)?;
    Ok(had_one.then_some(moved))
}

fn rename_if_there(folder: &OwnedFd, from: &str, to: &str) -> rustix::io::Result<bool> {
    match rustix::fs::renameat(folder, from, folder, to) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes the attachments of a delivered message, as far as possible: what is left costs only space. Returns
/// whether the folder is gone. Follows no link and leaves what lies deeper or is more than bounds allow.
pub fn discard_outbox(folder: &SessionFolder, message_id: &str) -> bool {
    if !is_safe_name(message_id) {
        return false;
    }
    let discard = || {
        let out = open_folder(CWD, folder.out_dir())?;
        let outbox = open_folder(out.as_fd(), Path::new(OUTBOX))?;
        let mut left = MAX_ENTRIES;
        remove_tree(outbox.as_fd(), message_id.as_bytes(), 0, &mut left)
    };
    matches!(discard(), Ok(()) | Err(Errno::NOENT))
}

fn remove_tree(at: BorrowedFd<'_>, name: &[u8], depth: usize, left: &mut usize) -> rustix::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    if depth > MAX_DEPTH || *left == 0 {
        return Err(Errno::LOOP);
    }
    *left -= 1;
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    match rustix::fs::unlinkat(at, path, AtFlags::empty()) {
        // Linux says the first for a folder, POSIX the second.
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let folder = open_folder(at, path)?;
    // All names first: what readdir does while entries vanish is not defined. They are bounded by what is
    // left.
    let mut names = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() >= *left {
            return Err(Errno::LOOP);
        }
        names.push(name.to_vec());
    }
    for name in names {
        remove_tree(folder.as_fd(), &name, depth + 1, left)?;
    }
    rustix::fs::unlinkat(at, path, AtFlags::REMOVEDIR)
}
