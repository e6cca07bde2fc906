//! The writer: appends what the loop decided, makes it durable beside the loop, and rotates without holding
//! it.
//!
//! An append is one write into space that was prepared ahead. A thread of its own syncs what has arrived; the
//! loop never waits for it, except where the configuration or a durable-first effect says so.
//!
//! Rotation, and what a crash leaves after each step:
//! 1. A thread of its own syncs the old segment up to the snapshot, while the loop goes on appending to it
//!    and keeps what it appends. Left: the old segment alone.
//! 2. The thread encodes and writes the new segment's header and snapshot, and syncs file and folder. Left:
//!    also a new segment that is torn, or has no records. Recovery moves it away where the old one goes on
//!    further.
//! 3. When that is done, an append first writes the kept records to the new segment; from there on the loop
//!    writes to it alone. Left: two segments that overlap, either of them torn. Recovery takes the one that
//!    goes on further, for everything called durable by then is in it.
//! 4. The journal's thread syncs the old segment, then the new one; only now does the watermark rise past the
//!    switch, and the old segment is cut at the snapshot. Left: the overlap. Recovery cuts it.
//!
//! Old segments are dropped on the thread of step 2, when its segment is there; see [`super::retention`].
//!
//! Invariant: a failed write or sync is final. What a disk said it lost is never taken for written at the
//! next try.
//! Invariant: no segment is created before all records below its snapshot are durable.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::frame::{self, Kind};
use super::retention::Retention;
use super::segment::{self, Header};
use crate::base::{Disk, RecordNo};

/// Space prepared ahead: a sync of a file that does not grow costs three quarters of one that does
/// (measured).
const AHEAD: usize = 1 << 20;
/// Bytes kept while a rotation is under way. Beyond it the loop waits for the disk, as it would for any
/// write: a snapshot takes a fraction of a second, and this much takes the loop several.
const KEPT_MAX: usize = 16 << 20;
/// Kept bytes that the loop itself writes when it switches, well within the 2 ms that a rotation may hold it
/// (design 6). More than this is written by another thread first, while the loop goes on.
const SWITCH_MAX: usize = 256 << 10;

/// How hard the journal tries to survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// A thread syncs what has arrived; the loop never waits. A power cut loses at most some milliseconds.
    Group,
    /// Every append is synced before its effects are handed over.
    Always,
    /// Nothing is synced, except before durable-first effects.
    None,
}

/// Told of each record that became durable, from the journal's thread.
pub type OnSynced = Box<dyn Fn(Result<RecordNo, String>) + Send>;

/// Why the journal cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal cannot be written: {doing} {path}: {why}")]
pub struct JournalError {
    /// What was tried.
    pub doing: &'static str,
    /// The segment.
    pub path: PathBuf,
    /// What the system said.
    pub why: String,
    /// The file system, or somebody's share of it, is full.
    pub no_space: bool,
}

impl JournalError {
    fn new(doing: &'static str, path: PathBuf, error: &io::Error) -> Self {
        let no_space = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self { doing, path, why: error.to_string(), no_space }
    }

    /// What may be done about it.
    pub fn hint(&self) -> String {
        let folder = self.path.parent().unwrap_or(&self.path).display();
        if self.no_space {
            return format!(
                "make room on the file system of {folder} and start again; nothing was done unrecorded, and \
                 limits.disk_reserve keeps room for the journal"
            );
        }
        format!(
            "see that {folder} is the daemon's own and that its disk is sound; nothing was done unrecorded"
        )
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The file that is appended to.
    file: Arc<File>,
    path: PathBuf,
    written: RecordNo,
    synced: RecordNo,
    /// Sync up to here even if the mode would not.
    wanted: RecordNo,
    /// Cut these here, once everything written so far is durable.
    seal: Vec<(Arc<File>, u64)>,
    /// The first failure; it stays.
    error: Option<JournalError>,
    closing: bool,
}

/// The journal, open for appending.
pub struct Journal {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    mode: Sync,
    /// Its position is `self.position`.
    file: Arc<File>,
    path: PathBuf,
    /// The open segment's first record, written or not.
    first: RecordNo,
    position: u64,
    /// Where the open segment's header and snapshot end.
    begun: u64,
    /// Zeros are written up to here.
    prepared: u64,
    zeros: Vec<u8>,
    last: RecordNo,
    rotation: Option<Rotation>,
    retention: Option<Arc<Retention>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Rotation {
    thread: JoinHandle<io::Result<Segment>>,
    first: RecordNo,
    /// Where the old segment is cut.
    cut: u64,
    /// Appended since, and not in the new segment yet.
    kept: Vec<u8>,
}

/// A segment that was made and is positioned at its end.
struct Segment {
    file: File,
    path: PathBuf,
    position: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a whole new segment without records and makes it durable.
fn create(disk: &dyn Disk, folder: &Path, header: &Header, snapshot: &[Vec<u8>]) -> io::Result<Segment> {
    let path = folder.join(segment::file_name(header.first));
    if path.try_exists()? {
        // A segment is never written over: boot numbers only rise, so this is another daemon's, or a mistake.
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a segment of this name"));
    }
    let bytes = segment::beginning(header, snapshot)?;
    let file = disk.create("JOURNAL:CREATE", &path)?;
    disk.write("JOURNAL:SNAPSHOT", &file, &bytes)?;
    disk.sync("JOURNAL:SNAPSHOT-SYNC", &file)?;
    disk.sync_dir("JOURNAL:DIR", folder)?;
    Ok(Segment { file, path, position: bytes.len() as u64 })
}

/// Whether these are whole frames whose records follow `before` without a gap and end with `last`. A batch
/// that is not would be a journal that recovery has to call damaged.
fn check_batch(mut frames: &[u8], mut before: RecordNo, last: RecordNo) -> io::Result<()> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    while !frames.is_empty() {
        let whole = frame::announced(frames).ok().and_then(|len| frames.split_at_checked(len));
        let Some((frame, rest)) = whole else { return refuse("the batch is not made of whole frames") };
        match frame::label(frame) {
            Some((Kind::Record, number)) if number == before.next() => before = number,
            Some((Kind::Body, _)) => {}
            _ => return refuse("the batch does not go on where the journal ends"),
        }
        frames = rest;
    }
    if before == last { Ok(()) } else { refuse("the batch does not end with the record that it names") }
}

impl Journal {
    /// Begins a segment with a snapshot of the state before its first record, durable before this returns.
    ///
    /// # Errors
    /// [`JournalError`]
    pub fn begin(
        disk: Arc<dyn Disk>,
        folder: &Path,
        header: &Header,
        snapshot: &[Vec<u8>],
        mode: Sync,
        on_synced: OnSynced,
    ) -> Result<Self, JournalError> {
        let path = folder.join(segment::file_name(header.first));
        let fail = |doing, error: &io::Error| JournalError::new(doing, path.clone(), error);
        let made = create(&*disk, folder, header, snapshot).map_err(|error| fail("create", &error))?;
        let (file, last) = (Arc::new(made.file), RecordNo(header.first.0.saturating_sub(1)));
        let state = State {
            file: Arc::clone(&file),
            path: made.path.clone(),
            written: last,
            synced: last,
            wanted: last,
            seal: Vec::new(),
            error: None,
            closing: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (thread_shared, thread_disk) = (Arc::clone(&shared), Arc::clone(&disk));
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || sync_all(&thread_shared, &*thread_disk, mode, &on_synced))
            .map_err(|error| fail("start the thread of", &error))?;
        Ok(Self {
            disk,
            folder: folder.to_owned(),
            mode,
            file,
            path: made.path,
            first: header.first,
            position: made.position,
            begun: made.position,
            prepared: made.position,
            zeros: vec![0; AHEAD],
            last,
            rotation: None,
            retention: None,
            shared,
            thread: Some(thread),
        })
    }

    /// Drops what is due of the segments before the open one, and from now on at each rotation.
    pub fn retain(&mut self, retention: Retention) {
        // The open segment was durable when it began, so none before it is needed.
        retention.pass(&*self.disk, &self.folder, self.first, None);
        self.retention = Some(Arc::new(retention));
    }

    /// Appends whole frames, whose records go on after [`Journal::last`] without a gap and end with `last`.
    /// When this returns, the kernel has them; in mode `Always` the disk has them too.
    ///
    /// # Errors
    /// [`JournalError`], final.
    pub fn append(&mut self, frames: &[u8], last: RecordNo) -> Result<(), JournalError> {
        if let Some(error) = &lock(&self.shared.state).error {
            return Err(error.clone());
        }
        check_batch(frames, self.last, last).map_err(|error| self.fail("append to", &error))?;
        self.finish_rotation(false)?;
        self.write("JOURNAL:APPEND", frames)?;
        self.last = last;
        lock(&self.shared.state).written = last;
        self.shared.changed.notify_all();
        if let Some(rotation) = &mut self.rotation {
            rotation.kept.extend(frames);
            if rotation.kept.len() > KEPT_MAX {
                self.finish_rotation(true)?;
            }
        }
        if self.mode == Sync::Always { self.wait_synced(last) } else { Ok(()) }
    }

    fn write(&mut self, op: &'static str, bytes: &[u8]) -> Result<(), JournalError> {
        let end = self.position + bytes.len() as u64;
        if end > self.prepared {
            self.prepare(end).map_err(|error| self.fail("prepare space in", &error))?;
        }
        self.disk.write(op, &self.file, bytes).map_err(|error| self.fail("append to", &error))?;
        self.position = end;
        Ok(())
    }

    /// Writes zeros from where the next write ends. Zeros on disk, not a hole: a hole would have to be filled
    /// in at the sync.
    fn prepare(&mut self, from: u64) -> io::Result<()> {
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(from))?;
        self.disk.write("JOURNAL:PREPARE", file, &self.zeros)?;
        file.seek(SeekFrom::Start(self.position))?;
        self.prepared = from + self.zeros.len() as u64;
        Ok(())
    }

    /// Notes a failure, and gives the first one.
    fn fail(&self, doing: &'static str, error: &io::Error) -> JournalError {
        let error = JournalError::new(doing, self.path.clone(), error);
        let first = lock(&self.shared.state).error.get_or_insert(error).clone();
        self.shared.changed.notify_all();
        first
    }

    /// How much the open segment holds, in bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.position
    }

    /// The last record appended.
    pub fn last(&self) -> RecordNo {
        self.last
    }

    /// Everything up to here is durable.
    pub fn synced_through(&self) -> RecordNo {
        lock(&self.shared.state).synced
    }

    /// Asks that everything up to a record becomes durable whatever the mode; `on_synced` tells.
    pub fn want_synced(&self, record: RecordNo) {
        let mut state = lock(&self.shared.state);
        if record > state.wanted {
            state.wanted = record;
            self.shared.changed.notify_all();
        }
    }

    /// Waits until everything up to a record is durable.
    ///
    /// # Errors
    /// [`JournalError`], final.
    pub fn wait_synced(&self, record: RecordNo) -> Result<(), JournalError> {
        self.want_synced(record);
        let mut state = lock(&self.shared.state);
        while state.synced < record {
            if let Some(error) = &state.error {
                return Err(error.clone());
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Whether the open segment has reached a size. One whose snapshot alone is near that size goes on until its
    /// records are as large again: otherwise every turn would begin a segment.
    pub fn is_due(&self, bytes: u64) -> bool {
        self.position >= bytes && self.position >= self.begun.saturating_mul(2)
    }

    /// Whether a rotation is under way.
    pub fn is_rotating(&self) -> bool {
        self.rotation.is_some()
    }

    /// Begins a rotation: `snapshot` encodes the state as it is after the last record, on another thread.
    /// Does nothing while one is under way, or when the open segment has no record yet. The new segment's
    /// first record is the one after the last, whatever the header says.
    pub fn rotate(&mut self, header: Header, snapshot: impl FnOnce() -> Vec<Vec<u8>> + Send + 'static) {
        if self.rotation.is_some() || self.last < self.first {
            return;
        }
        let first = self.last.next();
        debug_assert_eq!(header.first, first, "the snapshot is of another state");
        let header = Header { first, ..header };
        let (disk, folder, old) = (Arc::clone(&self.disk), self.folder.clone(), Arc::clone(&self.file));
        let (retention, cut) = (self.retention.clone(), self.position);
        let thread = std::thread::Builder::new().name("rotation".into()).spawn(move || {
            disk.sync("JOURNAL:ROTATE-SYNC", &old)?;
            let made = create(&*disk, &folder, &header, &snapshot())?;
            if let Some(retention) = retention {
                // The old segment has all that the one before it has, durable since the sync above. It stays itself:
                // the new one may never be switched to.
                retention.pass(&*disk, &folder, header.first, Some(cut));
            }
            Ok(made)
        });
        // Without a thread the segment grows on, and the caller tries again.
        if let Ok(thread) = thread {
            self.rotation = Some(Rotation { thread, first, cut: self.position, kept: Vec::new() });
        }
    }

    /// Goes on with a rotation when its thread is ready, or waits for it.
    fn finish_rotation(&mut self, wait: bool) -> Result<(), JournalError> {
        if !self.rotation.as_ref().is_some_and(|rotation| wait || rotation.thread.is_finished()) {
            return Ok(());
        }
        let Some(Rotation { thread, first, cut, kept }) = self.rotation.take() else { return Ok(()) };
        let made = thread.join().unwrap_or_else(|_| Err(io::Error::other("the snapshot panicked")));
        let made = made.map_err(|error| self.fail("rotate", &error))?;
        if kept.len() <= SWITCH_MAX || wait {
            return self.switch(made, first, cut, &kept);
        }
        let disk = Arc::clone(&self.disk);
        let thread = std::thread::Builder::new()
            .name("rotation".into())
            .spawn(move || {
                disk.write("JOURNAL:CATCH-UP", &made.file, &kept)?;
                Ok(Segment { position: made.position + kept.len() as u64, ..made })
            })
            .map_err(|error| self.fail("rotate", &error))?;
        self.rotation = Some(Rotation { thread, first, cut, kept: Vec::new() });
        Ok(())
    }

    /// Goes on in the new segment.
    fn switch(&mut self, made: Segment, first: RecordNo, cut: u64, kept: &[u8]) -> Result<(), JournalError> {
        let old = std::mem::replace(&mut self.file, Arc::new(made.file));
        self.path = made.path;
        self.first = first;
        self.position = made.position;
        // What was caught up with on the thread counts as the beginning; that only puts the next rotation off.
        self.begun = made.position;
        self.prepared = made.position;
        self.write("JOURNAL:SWITCH", kept)?;
        let mut state = lock(&self.shared.state);
        state.file = Arc::clone(&self.file);
        state.path.clone_from(&self.path);
        state.seal.push((old, cut));
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Makes everything durable, cuts the segment to what it holds, and ends the thread.
    ///
    /// # Errors
    /// [`JournalError`]
    pub fn close(mut self) -> Result<(), JournalError> {
        self.finish_rotation(true)?;
        let last = self.last;
        self.wait_synced(last)?;
        self.disk
            .truncate("JOURNAL:SEAL", &self.file, self.position)
            .and_then(|()| self.disk.sync("JOURNAL:SEAL-SYNC", &self.file))
            .map_err(|error| self.fail("cut", &error))?;
        self.end_thread();
        match &lock(&self.shared.state).error {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn end_thread(&mut self) {
        lock(&self.shared.state).closing = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has set no watermark: nothing was promised.
            drop(thread.join());
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(rotation) = self.rotation.take() {
            // It would go on writing into a folder that someone may recover by then. What it made is left as
            // a crash leaves it.
            drop(rotation.thread.join());
        }
        self.end_thread();
    }
}

/// Notes that the syncing thread ended by a panic (in what it calls), so that nobody waits for it for ever.
struct Watched<'a>(&'a Shared);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = lock(&self.0.state);
            let path = state.path.clone();
            let why = io::Error::other("the thread that syncs it panicked");
            state.error.get_or_insert(JournalError::new("sync", path, &why));
            self.0.changed.notify_all();
        }
    }
}

fn sync_all(shared: &Shared, disk: &dyn Disk, mode: Sync, on_synced: &OnSynced) {
    let _watched = Watched(shared);
    let mut state = lock(&shared.state);
    loop {
        let target = if mode == Sync::None { state.wanted.min(state.written) } else { state.written };
        let due = state.error.is_none() && (target > state.synced || !state.seal.is_empty());
        if !due {
            if state.closing {
                return;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let (file, path, upto) = (Arc::clone(&state.file), state.path.clone(), state.written);
        let seal = std::mem::take(&mut state.seal);
        drop(state);
        let done = sync_once(disk, &file, &seal);
        state = lock(&shared.state);
        match done {
            Ok(()) => state.synced = state.synced.max(upto),
            Err(error) => {
                let error = JournalError::new("sync", path, &error);
                state.error.get_or_insert(error);
            }
        }
        let told = state.error.as_ref().map_or(Ok(state.synced), |error| Err(error.to_string()));
        shared.changed.notify_all();
        drop(state);
        on_synced(told);
        state = lock(&shared.state);
    }
}

/// The old segment first: the new one's records come after all of its own.
fn sync_once(disk: &dyn Disk, file: &File, seal: &[(Arc<File>, u64)]) -> io::Result<()> {
    for (old, _) in seal {
        disk.sync("JOURNAL:SYNC-OLD", old)?;
    }
    disk.sync("JOURNAL:SYNC", file)?;
    for (old, cut) in seal {
        disk.truncate("JOURNAL:SEAL", old, *cut)?;
        disk.sync("JOURNAL:SEAL-SYNC", old)?;
    }
    Ok(())
}
