//! The watch on inbound.db. The only file that names notify.
//!
//! Invariant: the callback filters and sets a flag; it never blocks and never unwinds into the watcher.
//! Invariant: our own reads wake nobody: opening and closing are dropped, and so is every other file of the
//! folder (a flat one holds outbound.db too).

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use lamplighter::session::layout::{INBOUND_DB, journal_of};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::wake::policy::Fingerprint;

/// A running watch; dropped, it ends.
#[derive(Debug)]
pub struct Watch {
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Watches the folder in which `inbound_db` lies; where that is a link, the folder it points into. `announce` is
    /// called from another thread and must not block.
    ///
    /// # Errors
    /// When the system has no more watches, or the folder is missing. The poll alone will do then.
    pub fn start(inbound_db: &Path, announce: impl Fn() + Send + 'static) -> notify::Result<Self> {
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let seen = catch_unwind(AssertUnwindSafe(|| {
                if concerns_inbound(&event) {
                    announce();
                }
            }));
            // The panic's message is on stderr; the poll goes on finding what this missed.
            drop(seen);
        })?;
        watcher.watch(&folder_of(inbound_db), RecursiveMode::NonRecursive)?;
        Ok(Self { _watcher: watcher })
    }
}

fn folder_of(inbound_db: &Path) -> PathBuf {
    let real = std::fs::canonicalize(inbound_db);
    let real = real.as_deref().unwrap_or(inbound_db);
    real.parent().unwrap_or(Path::new(".")).to_owned()
}

fn concerns_inbound(event: &notify::Result<notify::Event>) -> bool {
    // An error of the watcher means that events may be missing: a look is the answer to that too.
    let Ok(event) = event else { return true };
    if event.need_rescan() {
        return true;
    }
    let journal = journal_of(Path::new(INBOUND_DB));
    !matches!(event.kind, EventKind::Access(_))
        && event.paths.iter().any(|path| {
            path.file_name().is_some_and(|name| name == OsStr::new(INBOUND_DB) || name == journal.as_os_str())
        })
}

/// What `stat` says about a file.
///
/// # Errors
/// As the operating system reports them.
pub fn fingerprint(path: &Path) -> io::Result<Fingerprint> {
    let found = std::fs::metadata(path)?;
    Ok(Fingerprint { inode: found.ino(), size: found.size(), modified: (found.mtime(), found.mtime_nsec()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::{Event, Mailbox};
    use notify::event::{AccessKind, AccessMode, CreateKind, RemoveKind};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn event(kind: EventKind, name: &str) -> notify::Result<notify::Event> {
        Ok(notify::Event::new(kind).add_path(Path::new("/s").join(name)))
    }

    #[test]
    fn only_changes_of_inbound_db_and_its_journal_count() {
        let removed = EventKind::Remove(RemoveKind::File);
        assert!(concerns_inbound(&event(removed, "inbound.db-journal")));
        assert!(concerns_inbound(&event(EventKind::Create(CreateKind::File), "inbound.db")));
        assert!(!concerns_inbound(&event(removed, "outbound.db-journal")));
        assert!(!concerns_inbound(&event(removed, "xinbound.db")));
        assert!(!concerns_inbound(&event(
            EventKind::Access(AccessKind::Open(AccessMode::Any)),
            "inbound.db"
        )));
        let rescan = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert!(concerns_inbound(&Ok(rescan)));
    }

    #[test]
    fn a_write_behind_a_link_is_seen() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("in"))?;
        let real = folder.path().join("in/inbound.db");
        std::fs::write(&real, "a")?;
        let link = folder.path().join("inbound.db");
        std::os::unix::fs::symlink("in/inbound.db", &link)?;
        let mailbox = Arc::new(Mailbox::default());
        let looking = Arc::clone(&mailbox);
        let _watch = Watch::start(&link, move || looking.look())?;
        std::fs::write(&real, "ab")?;
        let by = Instant::now() + Duration::from_secs(10);
        assert_eq!(mailbox.take(Some(by)), Event::Look);
        Ok(())
    }
}
