//! Retention: sealed segments are dropped by size and by age, the oldest first.
//!
//! Every segment begins with a snapshot, so what is left replays on its own. What was dropped needs no note of
//! its own: the oldest segment that is left tells it by its name and its snapshot.
//!
//! A segment is dropped by one unlink, and the folder is synced before the next one. Left by a crash at any
//! place: the journal without some of its oldest segments, never with a gap.
//!
//! Invariant: the open segment stays, and so does the one before it until everything that was promised of the
//! open one is durable.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::Kind;
use super::segment::{self, SegmentReader};
use super::wire::snapshot::read_core;
use crate::base::{Clock, Disk, Ms, RecordNo, Wall};

/// How much of the journal is kept. What either of the two gives up is dropped, so size wins over age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Sealed segments together are to have at most so many bytes.
    pub bytes: u64,
    /// Segments whose last record is older are dropped; none keeps them as long as there is room.
    pub age: Option<Ms>,
}

/// A sealed segment, as far as the decision asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Its first record.
    pub first: RecordNo,
    /// Its size.
    pub bytes: u64,
    /// When its last record was made; none when nobody knows, and then it is not dropped for its age.
    pub last_at: Option<Wall>,
}

/// How many of these segments, oldest first, are to be dropped now.
///
/// Age ends at the first segment that is young or of unknown age: a clock that was wrong for a while drops
/// nothing that lies behind records of the right time.
pub fn to_drop(sealed: &[Sealed], keep: Keep, now: Wall) -> usize {
    let is_old = |it: &&Sealed| keep.age.zip(it.last_at).is_some_and(|(age, last_at)| last_at + age < now);
    let by_age = sealed.iter().take_while(is_old).count();
    let mut total: u64 = sealed.iter().map(|it| it.bytes).fold(0, u64::saturating_add);
    let mut by_size = 0;
    for it in sealed {
        if total <= keep.bytes {
            break;
        }
        total = total.saturating_sub(it.bytes);
        by_size += 1;
    }
    by_age.max(by_size)
}

/// What was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first record that is left.
    pub before: RecordNo,
}

/// Why segments that are due could not be dropped.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {source}")]
pub struct DropError {
    /// What was tried.
    pub doing: &'static str,
    /// Where.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

fn error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DropError {
    let path = path.to_owned();
    move |source| DropError { doing, path, source }
}

/// Told what each pass dropped, or why it did not.
pub type OnDropped = Box<dyn Fn(Result<Dropped, DropError>) + Send + Sync>;

/// Drops what is due, at start and at each rotation.
pub struct Retention {
    /// How much is kept.
    pub keep: Keep,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Told of every pass.
    pub on_dropped: OnDropped,
}

impl Retention {
    /// One pass over the segments before `until`, whose segment is whole on disk. `sealing` is the size that the
    /// newest of them is about to be cut to; it stays in any case.
    pub(super) fn pass(&self, disk: &dyn Disk, folder: &Path, until: RecordNo, sealing: Option<u64>) {
        (self.on_dropped)(drop_due(disk, folder, until, sealing, self.keep, self.clock.wall()));
    }
}

/// Drops the segments before `until` that are due; see [`Retention`].
///
/// # Errors
/// See [`DropError`]; what was dropped before stays dropped.
pub fn drop_due(
    disk: &dyn Disk,
    folder: &Path,
    until: RecordNo,
    sealing: Option<u64>,
    keep: Keep,
    now: Wall,
) -> Result<Dropped, DropError> {
    let list = segment::list(folder).map_err(error("list", folder))?;
    let mut sealed: Vec<Sealed> = Vec::new();
    for (first, path) in list.iter().take_while(|(first, _)| *first < until) {
        let bytes = std::fs::metadata(path).map_err(error("look at", path))?.len();
        sealed.push(Sealed { first: *first, bytes, last_at: None });
    }
    find_ages(&mut sealed, &list, keep, now);
    let mut may = sealed.len();
    if let (Some(bytes), Some(newest)) = (sealing, sealed.last_mut()) {
        newest.bytes = bytes;
        may -= 1;
    }
    let due = to_drop(&sealed, keep, now).min(may);
    let mut dropped = Dropped::default();
    for (it, (_, path)) in sealed.iter().zip(&list).take(due) {
        match disk.remove("JOURNAL:DROP", path) {
            Ok(()) => {}
            // Somebody else removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error("remove", path)(source)),
        }
        // Before the next one goes: names that vanish in another order would leave a gap.
        disk.sync_dir("JOURNAL:DROP-DIR", folder).map_err(error("sync", folder))?;
        dropped.segments += 1;
        dropped.bytes += it.bytes;
    }
    dropped.before = list.get(due).map_or(until, |(first, _)| *first);
    Ok(dropped)
}

/// Finds when the last record of each segment was made, up to the first that is young.
///
/// The snapshot at the beginning of the next segment says it: it holds the machine's time after that record, and
/// the wall clock's offset as it was known then. That is one frame, where the record itself would cost a read of the
/// whole segment. The file's mtime says when it was cut or copied, which may be years later.
fn find_ages(sealed: &mut [Sealed], list: &[(RecordNo, PathBuf)], keep: Keep, now: Wall) {
    let Some(age) = keep.age else { return };
    for (it, (_, next)) in sealed.iter_mut().zip(list.iter().skip(1)) {
        it.last_at = ended_before(next);
        if it.last_at.is_none_or(|last_at| last_at + age >= now) {
            return;
        }
    }
}

/// The time of the last record before a segment; none when its snapshot cannot be read, or is that of a journal
/// that begins there.
fn ended_before(path: &Path) -> Option<Wall> {
    let mut reader = SegmentReader::open(path).ok()?;
    let schema = reader.header().record_schema;
    let frame = reader.next_frame().ok()??;
    let core = (frame.kind == Kind::Snapshot).then(|| read_core(schema, frame.body).ok())??;
    (core.record > RecordNo(0)).then(|| Wall(core.at.0.saturating_add(core.offset)))
}
