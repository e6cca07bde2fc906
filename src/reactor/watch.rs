//! The file-system watcher: the only file that names `notify`, and thin glue at that.
//!
//! Invariant: a folder is watched by itself, never recursively: a recursive watch loses the first files of a
//! new folder (floor N3), and what lies below `out/` is no hint.
//! Invariant: the callback hands over what it saw and returns; it never waits on a queue, never registers a
//! watch, and a panic in it stays in it (floor N5).
//! Invariant: `watch` and `unwatch` are called from the reactor's own thread only: each is a conversation
//! with the watcher's thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Config, ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::hint::Change;

/// What the watcher tells.
#[derive(Clone, Copy, Debug)]
pub enum Notice<'a> {
    /// Something happened to this path: a file in a watched folder, or the folder itself.
    Changed(&'a Path, Change),
    /// Events were lost, or the watcher had an error: anything may have happened.
    Lost,
}

/// Who is told. Called on the watcher's thread; must not block.
pub type NoticeSink = Arc<dyn Fn(Notice<'_>) + Send + Sync>;

/// Makes a watcher. Tests make other ones.
pub type WatcherMaker = Arc<dyn Fn(NoticeSink) -> Result<Box<dyn WatchPort>, WatchError> + Send + Sync>;

/// Why a folder, or anything, cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The user's watches are used up.
    #[error("the limit of file watches is reached; raise it with sysctl fs.inotify.max_user_watches")]
    NoWatchesLeft,
    /// The user's watcher instances, or the process's descriptors, are used up.
    #[error(
        "no watcher can be made ({0}); raise the limit with sysctl fs.inotify.max_user_instances or ulimit -n"
    )]
    NoInstancesLeft(io::Error),
    /// There is no such folder.
    #[error("the folder is missing")]
    Missing,
    /// There is no watcher; why was said when it could not be made.
    #[error("there is no watcher")]
    NoWatcher,
    /// The watcher's thread is gone.
    #[error("the watcher's thread has ended")]
    Dead,
    /// Anything else.
    #[error("the folder cannot be watched: {0}")]
    Other(String),
}

/// A watcher of folders.
pub trait WatchPort: Send {
    /// Watches one folder, not what lies below its folders.
    ///
    /// # Errors
    /// [`WatchError`].
    fn watch(&mut self, folder: &Path) -> Result<(), WatchError>;
    /// Ends the watch of a folder. A folder that is not watched is no error: the watch may have died with it.
    fn unwatch(&mut self, folder: &Path);
}

/// The real maker.
pub fn notify_maker() -> WatcherMaker {
    Arc::new(|sink| {
        let handler = move |event: notify::Result<Event>| {
            // A panic would end the watcher's thread without a word. The sink counts its own.
            let _ = catch_unwind(AssertUnwindSafe(|| pass_on(event, &*sink)));
        };
        let config = Config::default().with_follow_symlinks(false);
        let made = catch_unwind(AssertUnwindSafe(|| RecommendedWatcher::new(handler, config)));
        let watcher = made.map_err(|_| WatchError::Dead)?.map_err(|error| of_instance(&error))?;
        Ok(Box::new(NotifyPort { watcher: Some(watcher) }) as Box<dyn WatchPort>)
    })
}

fn pass_on(event: notify::Result<Event>, sink: &dyn Fn(Notice<'_>)) {
    let Ok(event) = event else { return sink(Notice::Lost) };
    if event.need_rescan() {
        return sink(Notice::Lost);
    }
    let Some(change) = change_of(event.kind) else { return };
    for path in &event.paths {
        sink(Notice::Changed(path, change));
    }
}

/// Most events end here: opening and reading say nothing, and of a rename both halves come by themselves.
fn change_of(kind: EventKind) -> Option<Change> {
    match kind {
        EventKind::Create(_) => Some(Change::Created),
        EventKind::Remove(_) => Some(Change::Removed),
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Change::ClosedAfterWrite),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(Change::Touched),
        EventKind::Modify(ModifyKind::Name(RenameMode::From)) => Some(Change::MovedFrom),
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Change::MovedTo),
        EventKind::Modify(ModifyKind::Name(_)) => None,
        EventKind::Modify(_) => Some(Change::Written),
        EventKind::Access(_) | EventKind::Any | EventKind::Other => None,
    }
}

struct NotifyPort {
    /// `None` only while being dropped.
    watcher: Option<RecommendedWatcher>,
}

impl NotifyPort {
    /// Runs one conversation with the watcher's thread, which panics when that thread is gone.
    fn converse<T>(
        &mut self,
        with: impl FnOnce(&mut RecommendedWatcher) -> notify::Result<T>,
    ) -> Result<T, WatchError> {
        let Some(watcher) = self.watcher.as_mut() else { return Err(WatchError::Dead) };
        match catch_unwind(AssertUnwindSafe(|| with(watcher))) {
            Ok(answer) => answer.map_err(|error| of_watch(&error)),
            Err(_) => Err(WatchError::Dead),
        }
    }
}

impl WatchPort for NotifyPort {
    fn watch(&mut self, folder: &Path) -> Result<(), WatchError> {
        self.converse(|watcher| watcher.watch(folder, RecursiveMode::NonRecursive))
    }

    fn unwatch(&mut self, folder: &Path) {
        // Not watched any more is what is wanted; a dead thread is noticed by the next watch and the probe.
        let _ = self.converse(|watcher| watcher.unwatch(folder));
    }
}

impl Drop for NotifyPort {
    fn drop(&mut self) {
        let watcher = self.watcher.take();
        // Dropping it talks to its thread and panics when that is gone; there is nothing left to do then.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(watcher)));
    }
}

fn of_watch(error: &notify::Error) -> WatchError {
    match &error.kind {
        ErrorKind::MaxFilesWatch => WatchError::NoWatchesLeft,
        ErrorKind::PathNotFound => WatchError::Missing,
        ErrorKind::Io(io) if io.kind() == io::ErrorKind::NotFound => WatchError::Missing,
        _ => WatchError::Other(error.to_string()),
    }
}

fn of_instance(error: &notify::Error) -> WatchError {
    match &error.kind {
        ErrorKind::Io(io) => match io.raw_os_error() {
            Some(code) => WatchError::NoInstancesLeft(io::Error::from_raw_os_error(code)),
            None => WatchError::Other(error.to_string()),
        },
        _ => WatchError::Other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, MetadataKind, RemoveKind};

    use super::*;

    #[test]
    fn opening_and_reading_are_no_changes() {
        for kind in [
            EventKind::Access(AccessKind::Open(AccessMode::Any)),
            EventKind::Access(AccessKind::Close(AccessMode::Read)),
            EventKind::Access(AccessKind::Read),
            EventKind::Any,
            EventKind::Other,
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)),
        ] {
            assert_eq!(change_of(kind), None, "{kind:?}");
        }
    }

    #[test]
    fn changes_keep_their_meaning() {
        for (kind, change) in [
            (EventKind::Create(CreateKind::File), Change::Created),
            (EventKind::Remove(RemoveKind::Folder), Change::Removed),
            (EventKind::Modify(ModifyKind::Data(DataChange::Any)), Change::Written),
            (EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)), Change::Touched),
            (EventKind::Modify(ModifyKind::Name(RenameMode::From)), Change::MovedFrom),
            (EventKind::Modify(ModifyKind::Name(RenameMode::To)), Change::MovedTo),
            (EventKind::Access(AccessKind::Close(AccessMode::Write)), Change::ClosedAfterWrite),
        ] {
            assert_eq!(change_of(kind), Some(change));
        }
    }

    #[test]
    fn a_lost_event_and_an_error_both_ask_for_a_full_look() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let lost = AtomicU32::new(0);
        let sink = |notice: Notice<'_>| {
            if matches!(notice, Notice::Lost) {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        };
        pass_on(Ok(Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan)), &sink);
        pass_on(Err(notify::Error::generic("x")), &sink);
        pass_on(Ok(Event::new(EventKind::Other)), &sink);
        assert_eq!(lost.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_used_up_limit_names_its_sysctl() {
        let error = of_watch(&notify::Error::new(ErrorKind::MaxFilesWatch));
        assert!(error.to_string().contains("fs.inotify.max_user_watches"));
        let error = of_instance(&notify::Error::io(io::Error::from_raw_os_error(24)));
        assert!(error.to_string().contains("fs.inotify.max_user_instances"));
    }
}
