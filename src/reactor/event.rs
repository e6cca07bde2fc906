//! What the reactor tells its owner.

use std::time::Duration;

use super::stat::Mount;
use crate::base::{EffectId, SessionNo};
use crate::session::host_side::{Reading, Unreadable};

/// Something that the owner should know. Handed to the sink on one of the reactor's threads.
#[derive(Debug)]
pub enum ReactorEvent {
    /// A session was read because something hinted at a change. To be answered with `settled`. A locked file is tried
    /// on and on; after any other error the session is read again at the next hint or look, not by itself: when, is the
    /// owner's back-off.
    Read {
        /// The session.
        session: SessionNo,
        /// What was read, or why not. Busy is reported only when it has lasted.
        result: Result<Reading, Unreadable>,
        /// Whether an event or the owner led to this read; `false` when only the resync found the change.
        announced: bool,
    },
    /// A look that was asked for is done. To be answered with `settled`, as a read.
    Looked {
        /// The session.
        session: SessionNo,
        /// The effect that asked.
        ticket: EffectId,
        /// Whether the liveness file changed since it was last reported or taken for the baseline.
        heartbeat_changed: bool,
        /// What was read, or why not.
        result: Result<Reading, Unreadable>,
    },
    /// The liveness file was touched. At most one per session in the configured time.
    Heartbeat {
        /// The session.
        session: SessionNo,
    },
    /// The folder that was watched is gone. It is watched again when it comes back; reads fail until then.
    FolderGone {
        /// The session.
        session: SessionNo,
    },
    /// Somebody wrote rows of a dormant session. Reported once per change; nothing was read.
    DormantChanged {
        /// The session.
        session: SessionNo,
    },
    /// Something that an operator should know.
    Warning(Warning),
}

/// What an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// The watch limit is reached. Said once, until every session could be watched again.
    #[error(
        "cannot watch session {session} and perhaps others: the limit of file watches is reached; their changes \
         are noticed up to {:?} late; raise it with sysctl fs.inotify.max_user_watches",
        .late
    )]
    WatchLimit {
        /// The first session concerned.
        session: SessionNo,
        /// How late a change is noticed without a watch.
        late: Duration,
    },
    /// There is no watcher at all. Said once, until there is one.
    #[error("sessions are looked at every {:?} because nothing can be watched: {why}", .late)]
    NoWatcher {
        /// Why, with the way out.
        why: String,
        /// How late a change is noticed without a watch.
        late: Duration,
    },
    /// One folder cannot be watched.
    #[error("cannot watch session {session}: {why}; its changes are noticed up to {:?} late", .late)]
    NotWatched {
        /// The session.
        session: SessionNo,
        /// Why.
        why: String,
        /// How late a change is noticed without a watch.
        late: Duration,
    },
    /// Events were lost; everything is read again.
    #[error(
        "file events were lost, every live session is read again; if this repeats, raise sysctl \
         fs.inotify.max_queued_events"
    )]
    EventsLost,
    /// The watcher did not report a touch of its probe, or its thread ended; a new one was made.
    #[error("the file watcher was silent and has been replaced; every live session is read again")]
    WatcherReplaced,
    /// The data folder lies on a mount where events and caches cannot be trusted.
    #[error(
        "the data folder lies on {mount}: running sessions are looked at every {:?} besides being watched, and no \
         connection is kept; a local file system is faster",
        .mount.late()
    )]
    NotLocal {
        /// What it lies on.
        mount: Mount,
    },
    /// The mount counted as local, and its silence was learned from what the resync found. Said once.
    #[error(
        "changes in running sessions are found and no event announces them: sessions are looked at every {:?} besides \
         being watched, and no connection is kept, until the next start; put the data folder on a local file system \
         (lamplighter doctor tries it), not on a share of another machine or of a virtual machine's host",
        .late
    )]
    NoEvents {
        /// How late a change is noticed from now on.
        late: Duration,
    },
}
