//! The one place that changes how SQLite opens files: every file whose name begins with `outbound.db` is
//! opened non-blocking, without following a link, and only when it is a regular file; a `-wal` or `-shm`
//! never.
//!
//! Without it a FIFO named `outbound.db-journal` would hang the reader for ever. All other files are opened
//! as before.
//!
//! Invariant: the only unsafe code of the session layer is in this file.
//! Invariant: the hook allocates nothing, cannot panic, and closes only descriptors that are no regular file
//! (closing a second descriptor of a database would drop SQLite's locks).

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rusqlite::{Connection, ffi};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::session::layout::OUTBOUND_DB;

/// SQLite's shape of `open`.
type Open = unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int;

/// How the first attempt to put the hook in place ended.
static INSTALLED: OnceLock<Result<(), GuardError>> = OnceLock::new();
/// What SQLite called before. Set before the hook is, so that the hook always finds it.
static REAL_OPEN: OnceLock<Open> = OnceLock::new();

/// What was seen when the database itself was last opened by this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// Device and inode.
    pub(super) file: (u64, u64),
    /// Whether the header says that the file is in write-ahead mode.
    pub(super) wal: bool,
}

/// Why session files cannot be read safely by this build, or on this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// It would map a file into memory that the container can cut short.
    #[error("this program was built with SQLite's write-ahead log, which session files must never use")]
    WriteAheadLog,
    /// It has another way of opening files than was expected.
    #[error("SQLite's way of opening files cannot be guarded on this system")]
    NoHook,
}

impl GuardError {
    /// What may be done about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::WriteAheadLog => {
                "build it in its own folder, where .cargo/config.toml is found, or with \
                 LIBSQLITE3_FLAGS=-DSQLITE_OMIT_WAL"
            }
            Self::NoHook => "run it on Linux or macOS, with the SQLite that it brings",
        }
    }
}

thread_local! {
    static OPENED: Cell<Option<Opened>> = const { Cell::new(None) };
}

/// Forgets and returns what was seen at the last opening.
pub(super) fn take_opened() -> Option<Opened> {
    OPENED.take()
}

/// Puts our `open` into SQLite, once per process, after a look at how SQLite was built. Every reader does it; the
/// daemon does it first thing, before other threads use SQLite.
///
/// # Errors
/// See [`GuardError`]; the same each time.
pub fn install_guards() -> Result<(), GuardError> {
    *INSTALLED.get_or_init(|| {
        check_build(has_option(c"OMIT_WAL")).and_then(|()| install().ok_or(GuardError::NoHook))
    })
}

fn check_build(without_wal: bool) -> Result<(), GuardError> {
    if without_wal { Ok(()) } else { Err(GuardError::WriteAheadLog) }
}

/// Whether SQLite was built with this option, without its prefix.
fn has_option(name: &CStr) -> bool {
    // SAFETY: the argument is a C string, and the function only compares it with names that it knows.
    unsafe { ffi::sqlite3_compileoption_used(name.as_ptr()) != 0 }
}

fn install() -> Option<()> {
    // SAFETY: initialising is allowed at any time and is idempotent.
    if unsafe { ffi::sqlite3_initialize() } != ffi::SQLITE_OK {
        return None;
    }
    // SAFETY: a null name asks for the default file system layer, which lives as long as the process.
    let vfs = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()).as_mut() }?;
    let (get, set) = (vfs.xGetSystemCall?, vfs.xSetSystemCall?);
    // SAFETY: the layer is valid and the name is a C string.
    let real = unsafe { get(vfs, c"open".as_ptr()) }?;
    // SAFETY: SQLite documents the pointer under the name "open" as `int (*)(const char*, int, int)`.
    let real = unsafe { std::mem::transmute::<unsafe extern "C" fn(), Open>(real) };
    REAL_OPEN.set(real).ok()?;
    // SAFETY: as above, in the other direction; SQLite casts it back before it calls it.
    let ours = unsafe { std::mem::transmute::<Open, unsafe extern "C" fn()>(guarded_open) };
    // SAFETY: the layer is valid, the name a C string, and the function lives for ever. The store is one
    // word; a thread that opens a file at the same moment calls either function, and both are valid.
    (unsafe { set(vfs, c"open".as_ptr(), Some(ours)) } == ffi::SQLITE_OK).then_some(())
}

/// What SQLite calls in place of `open`.
unsafe extern "C" fn guarded_open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    let Some(real) = REAL_OPEN.get() else { return refuse(Errno::NOSYS) };
    if path.is_null() {
        return refuse(Errno::FAULT);
    }
    // SAFETY: SQLite passes a C string that lives for the call.
    let name = file_name(unsafe { CStr::from_ptr(path) }.to_bytes());
    let Some(suffix) = name.strip_prefix(OUTBOUND_DB.as_bytes()) else {
        // SAFETY: the arguments are passed on as they came.
        return unsafe { real(path, flags, mode) };
    };
    if suffix == b"-wal" || suffix == b"-shm" {
        return refuse(Errno::ACCESS);
    }
    let careful = (OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY).bits() as c_int;
    // SAFETY: the path is as it came, and the flags added are plain bits of `open`.
    let fd = unsafe { real(path, flags | careful, mode) };
    if fd < 0 {
        return fd;
    }
    // SAFETY: the descriptor was opened just now and stays open until it is closed below or handed to SQLite.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    match rustix::fs::fstat(borrowed) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {
            if suffix.is_empty() {
                note(borrowed, (found.st_dev, found.st_ino));
            }
            fd
        }
        _ => {
            // SAFETY: nobody else knows the descriptor.
            unsafe { rustix::io::close(fd) };
            refuse(Errno::ACCESS)
        }
    }
}

/// Remembers what the file is. Its first bytes are read through the very descriptor that SQLite will use.
fn note(fd: BorrowedFd<'_>, file: (u64, u64)) {
    let mut header = [0u8; 20];
    let read = rustix::io::pread(fd, &mut header, 0).unwrap_or(0);
    let wal = read == header.len() && header.starts_with(b"SQLite format 3\0") && header[18..].contains(&2);
    // A thread that is ending has no cell any more; then nobody will ask.
    let _ = OPENED.try_with(|opened| opened.set(Some(Opened { file, wal })));
}

/// Switches a connection's lookaside memory off: 40 kB that a kept reader of a few small rows does not need.
pub(super) fn lookaside_off(db: &Connection) -> bool {
    let none = std::ptr::null_mut::<c_void>();
    // SAFETY: the handle is open for as long as `db` is borrowed; this option takes a pointer and two
    // numbers, and two zeros mean that no memory is used, so the pointer may be null.
    let code = unsafe {
        ffi::sqlite3_db_config(db.handle(), ffi::SQLITE_DBCONFIG_LOOKASIDE, none, 0 as c_int, 0 as c_int)
    };
    code == ffi::SQLITE_OK
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

/// Fails as `open` does: `errno` is set and the result is -1.
fn refuse(errno: Errno) -> c_int {
    // SAFETY: the C library returns the address of this thread's own `errno`.
    unsafe { *errno_location() = errno.raw_os_error() };
    -1
}

unsafe extern "C" {
    /// The address of this thread's `errno` in glibc and musl.
    #[cfg_attr(target_os = "linux", link_name = "__errno_location")]
    #[cfg_attr(target_os = "macos", link_name = "__error")]
    fn errno_location() -> *mut c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_part_of_a_path_counts() {
        assert_eq!(file_name(b"/a/outbound.db/x"), b"x");
        assert_eq!(file_name(b"outbound.db-journal"), b"outbound.db-journal");
        assert_eq!(file_name(b""), b"");
    }

    #[test]
    fn sqlite_is_built_without_the_write_ahead_log() -> rusqlite::Result<()> {
        let db = Connection::open_in_memory()?;
        let mut options =
            db.prepare("SELECT 1 FROM pragma_compile_options WHERE compile_options = 'OMIT_WAL'")?;
        assert!(options.exists([])?, "LIBSQLITE3_FLAGS of .cargo/config.toml did not reach the build");
        assert!(has_option(c"DEFAULT_MEMSTATUS=0") && !has_option(c"ENABLE_FTS5"), "nor did all of it");
        Ok(())
    }

    #[test]
    fn a_build_with_the_write_ahead_log_is_refused_with_the_way_out() {
        assert!(has_option(c"OMIT_WAL") && !has_option(c"OMIT_EVERYTHING"));
        assert_eq!(check_build(true), Ok(()));
        let refused = check_build(false).unwrap_err();
        assert_eq!(refused, GuardError::WriteAheadLog);
        assert!(refused.hint().contains("LIBSQLITE3_FLAGS=-DSQLITE_OMIT_WAL"), "{}", refused.hint());
    }

    #[test]
    fn the_hook_is_installed_once_and_stays() {
        assert_eq!(install_guards(), Ok(()));
        assert_eq!(install_guards(), Ok(()));
    }
}
