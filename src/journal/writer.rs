//! The writer: appends what the loop decided, makes it durable beside the loop, and rotates without holding it.
//!
//! An append is one write into space that was prepared ahead. A thread of its own syncs what has arrived; the
//! loop never waits for it, except where the configuration or a durable-first effect says so.
//!
//! Rotation: a thread writes the new segment's header and snapshot while the loop goes on appending to the old
//! one; what is appended meanwhile is kept as well. When the new segment is durable, the kept records are
//! appended to it, the loop
//! goes on there, and the old one is cut at the snapshot once the new one's records are durable. A crash in between
//! leaves two segments that overlap; recovery takes the newer only if it has all records of the older.
//!
//! Invariant: a failed write or sync is final. What a disk said it lost is never taken for written at the next try.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::frame::{self, Kind};
use super::segment::{self, Header};
use crate::base::{Disk, RecordNo};

/// Space prepared ahead: a sync of a file that does not grow costs three quarters of one that does (measured).
const AHEAD: u64 = 1 << 20;
/// Bytes kept while a rotation is under way. Beyond it the loop waits: a snapshot takes milliseconds, and this much
/// takes the loop seconds.
const KEPT_MAX: usize = 64 << 20;

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
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The file that is appended to, and others that must be durable before they are cut.
    file: Arc<File>,
    path: PathBuf,
    written: RecordNo,
    synced: RecordNo,
    /// Sync up to here even if the mode would not.
    wanted: RecordNo,
    /// Cut these once everything written so far is durable.
    seal: Vec<(File, PathBuf, u64)>,
    error: Option<JournalError>,
    closing: bool,
}

/// The journal, open for appending.
pub struct Journal {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    mode: Sync,
    file: Arc<File>,
    path: PathBuf,
    position: u64,
    prepared: u64,
    last: RecordNo,
    rotation: Option<Rotation>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Rotation {
    thread: JoinHandle<io::Result<(File, PathBuf, u64)>>,
    /// Where the old segment is cut.
    cut: u64,
    /// Appended since.
    kept: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a whole new segment without records and makes it durable. Gives the file and where records begin.
fn create(
    disk: &dyn Disk,
    folder: &Path,
    header: &Header,
    snapshot: &[Vec<u8>],
) -> io::Result<(File, PathBuf, u64)> {
    let mut bytes = header.encode();
    for part in snapshot {
        frame::encode(Kind::Snapshot, header.first, part, &mut bytes);
    }
    frame::encode(Kind::SnapshotEnd, header.first, &[], &mut bytes);
    let path = folder.join(segment::file_name(header.first));
    let file = disk.create("JOURNAL:CREATE", &path)?;
    disk.write("JOURNAL:SNAPSHOT", &file, &bytes)?;
    disk.sync("JOURNAL:SNAPSHOT-SYNC", &file)?;
    disk.sync_dir("JOURNAL:DIR", folder)?;
    Ok((file, path, bytes.len() as u64))
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
        let fail =
            |doing, error: io::Error| JournalError { doing, path: path.clone(), why: error.to_string() };
        let (file, path, position) =
            create(&*disk, folder, header, snapshot).map_err(|error| fail("create", error))?;
        let (file, last) = (Arc::new(file), RecordNo(header.first.0.saturating_sub(1)));
        let state = State {
            file: Arc::clone(&file),
            path: path.clone(),
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
            .map_err(|error| fail("start the thread of", error))?;
        let folder = folder.to_owned();
        let (rotation, thread) = (None, Some(thread));
        let prepared = position;
        Ok(Self { disk, folder, mode, file, path, position, prepared, last, rotation, shared, thread })
    }

    /// Appends whole frames; `last` is the record of the last one. When this returns, the kernel has them; in mode
    /// `Always` the disk has them too.
    ///
    /// # Errors
    /// [`JournalError`], final.
    pub fn append(&mut self, frames: &[u8], last: RecordNo) -> Result<(), JournalError> {
        if let Some(error) = &lock(&self.shared.state).error {
            return Err(error.clone());
        }
        self.finish_rotation(false)?;
        self.write(frames)?;
        self.last = last;
        if let Some(rotation) = &mut self.rotation {
            rotation.kept.extend(frames);
            if rotation.kept.len() > KEPT_MAX {
                self.finish_rotation(true)?;
            }
        }
        let mut state = lock(&self.shared.state);
        state.written = last;
        self.shared.changed.notify_all();
        drop(state);
        if self.mode == Sync::Always { self.wait_synced(last) } else { Ok(()) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let end = self.position + bytes.len() as u64;
        if end > self.prepared {
            // Prepared space is zeros on disk, not a hole: a hole would have to be filled in at the sync.
            let zeros = vec![0; usize::try_from(AHEAD).unwrap_or(0)];
            let from = end.max(self.prepared);
            self.file.write_all_at(&zeros, from).map_err(|error| self.fail("prepare space in", &error))?;
            self.prepared = from + AHEAD;
        }
        self.file.write_all_at(bytes, self.position).map_err(|error| self.fail("append to", &error))?;
        self.position = end;
        Ok(())
    }

    fn fail(&self, doing: &'static str, error: &io::Error) -> JournalError {
        let error = JournalError { doing, path: self.path.clone(), why: error.to_string() };
        lock(&self.shared.state).error = Some(error.clone());
        error
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

    /// Whether a rotation is under way.
    pub fn is_rotating(&self) -> bool {
        self.rotation.is_some()
    }

    /// Begins a rotation: `snapshot` encodes the state as it is after the last record, on another thread. Does nothing
    /// while one is under way.
    pub fn rotate(&mut self, header: Header, snapshot: impl FnOnce() -> Vec<Vec<u8>> + Send + 'static) {
        if self.rotation.is_some() {
            return;
        }
        let (disk, folder, cut) = (Arc::clone(&self.disk), self.folder.clone(), self.position);
        let thread = std::thread::Builder::new()
            .name("rotation".into())
            .spawn(move || create(&*disk, &folder, &header, &snapshot()));
        // Without a thread the segment grows on, and the next append tries again.
        if let Ok(thread) = thread {
            self.rotation = Some(Rotation { thread, cut, kept: Vec::new() });
        }
    }

    /// Switches to the new segment when it is ready, or waits for it.
    fn finish_rotation(&mut self, wait: bool) -> Result<(), JournalError> {
        if !self.rotation.as_ref().is_some_and(|rotation| wait || rotation.thread.is_finished()) {
            return Ok(());
        }
        let Some(rotation) = self.rotation.take() else { return Ok(()) };
        let made = rotation.thread.join().unwrap_or_else(|_| Err(io::Error::other("the snapshot panicked")));
        let (file, path, position) = made.map_err(|error| self.fail("rotate", &error))?;
        let old_file = std::mem::replace(&mut self.file, Arc::new(file));
        let old_path = std::mem::replace(&mut self.path, path.clone());
        self.position = position;
        self.prepared = position;
        self.write(&rotation.kept)?;
        let old = old_file.try_clone().map_err(|error| self.fail("keep open", &error))?;
        let mut state = lock(&self.shared.state);
        state.file = Arc::clone(&self.file);
        state.path = path;
        state.seal.push((old, old_path, rotation.cut));
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
        self.end_thread();
    }
}

fn sync_all(shared: &Shared, disk: &dyn Disk, mode: Sync, on_synced: &OnSynced) {
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
                state.error = Some(JournalError { doing: "sync", path, why: error.to_string() });
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
fn sync_once(disk: &dyn Disk, file: &File, seal: &[(File, PathBuf, u64)]) -> io::Result<()> {
    for (old, ..) in seal {
        disk.sync("JOURNAL:SYNC-OLD", old)?;
    }
    disk.sync("JOURNAL:SYNC", file)?;
    for (old, _, cut) in seal {
        disk.truncate("JOURNAL:SEAL", old, *cut)?;
        disk.sync("JOURNAL:SEAL-SYNC", old)?;
    }
    Ok(())
}
