//! Recovery: what a crash can leave, and what is done about it before anything is appended.
//!
//! Let S be the highest `synced_through` in any whole frame. A bad frame above S was never promised to be
//! durable: the journal is cut there, and what follows is moved to `cut/`. A bad frame at or below S is
//! damage: nothing is changed, and an operator must look. Only the newest segment can have a tail that was
//! not durable; older ones are history, damage in them stops no start ([`super::check`] tells of it).
//!
//! A start or a rotation that was cut short leaves a newest segment that was never switched to: without a
//! whole header and snapshot, or without records that the segment before it has. It is moved to `cut/`,
//! unless anything says that more was promised than the segment before it holds. A rotation that was cut
//! short later leaves two segments that overlap; the older one is cut where the newer begins.
//!
//! Invariant: bytes that are not zero leave a segment only after a copy of them, or of the record in the
//! newer segment, is durable. Done again after a crash at any step, recovery comes to the same end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::check;
pub use super::check::Checked;
use super::scan::{Scan, Trouble, after, scan};
use super::segment::{self, SegmentError};
use crate::base::{Disk, RecordNo};

/// Where what was cut is kept.
pub const CUT: &str = "cut";
/// Segments of one name in `cut/`: more than one is rare, and a search for a free name must end.
const ABANDONED_MAX: u32 = 1_000;
/// Bytes copied at a time.
const COPY: usize = 1 << 16;

/// Why the journal cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Something that was durable is gone or changed.
    #[error(
        "the journal is damaged: {path} at offset {offset}, where record {number} belongs: {trouble}; \
         records up to {synced} were durable"
    )]
    Damage {
        /// The segment.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// The record that is missing there.
        number: RecordNo,
        /// The highest record that a whole frame calls durable.
        synced: RecordNo,
        /// What is wrong.
        trouble: Trouble,
    },
    /// A segment cannot be read.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The operating system refused.
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

impl RecoverError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Damage { .. } => {
                "`lamplighter journal repair` goes on from what is whole before it and keeps the damaged segment in \
                 journal/cut; the session files hold the messages, and the daemon adopts what is open in them"
            }
            Self::Segment(error) => error.hint(),
            Self::Io { .. } => "see that the journal folder is the daemon's own and that the disk has space",
        }
    }
}

/// What was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub path: PathBuf,
    /// Where it ends now.
    pub offset: u64,
    /// Bytes that were moved to `cut/`, without the zeros behind them.
    pub bytes: u64,
    /// Whole records among them.
    pub records: u64,
}

/// The journal after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The segments that hold, in order.
    pub segments: Vec<PathBuf>,
    /// The last record; none when there is none in any segment.
    pub last: Option<RecordNo>,
    /// What was cut off, if anything.
    pub cut: Option<Cut>,
    /// A segment that was never switched to, and moved away.
    pub abandoned: Option<PathBuf>,
}

/// What may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mend {
    /// What was never promised to be durable.
    Tail,
    /// Whatever is not whole: an operator asked for it.
    Damage,
}

/// What becomes of a place in the newest segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A whole frame.
    Take,
    /// Never promised to be durable.
    CutHere,
    /// Promised, and gone.
    Halt,
}

/// The rule of design 6 for the frame of record `number`.
pub(super) fn judge(whole: bool, number: RecordNo, synced: RecordNo) -> Verdict {
    match (whole, number <= synced) {
        (true, _) => Verdict::Take,
        (false, false) => Verdict::CutHere,
        (false, true) => Verdict::Halt,
    }
}

/// What becomes of the newest segment as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The journal ends in it.
    Stands,
    /// It was never switched to.
    Abandon,
    /// It was, and is not whole.
    Halt,
}

/// `begun`: its header and snapshot are whole. `older_longer`: the segment before it holds records that it
/// should have and lacks. `promised`: something says that it was switched to, or holds what the older one
/// does not and what was durable.
pub(super) fn standing(begun: bool, older_longer: bool, promised: bool) -> Standing {
    match (begun, older_longer, promised) {
        (true, false, _) => Standing::Stands,
        (true, true, false) | (false, _, false) => Standing::Abandon,
        (true, true, true) | (false, _, true) => Standing::Halt,
    }
}

fn stand(newest: &Scan, older: Option<&Scan>) -> Standing {
    let older_longer = older.is_some_and(|older| older.last >= newest.first && older.last > newest.last);
    let promised = if newest.is_begun() {
        older.is_some_and(|older| newest.synced > older.last)
    } else {
        // Records are written behind a durable snapshot only, and the older segment is cut behind durable
        // records only.
        newest.beyond > 0 || older.is_some_and(|older| is_sealed_at(older, newest.first))
    };
    standing(newest.is_begun(), older_longer, promised)
}

/// Whether a rotation to a segment that begins with `first` was finished: nothing is left of the prepared
/// space.
fn is_sealed_at(older: &Scan, first: RecordNo) -> bool {
    older.trouble.is_none() && older.len == older.end && older.records > 0 && older.missing() == first
}

/// Looks at the journal and mends what may be mended.
///
/// # Errors
/// See [`RecoverError`]; after `Damage` nothing was changed.
pub fn recover(disk: &dyn Disk, folder: &Path) -> Result<Recovered, RecoverError> {
    mend(disk, folder, Mend::Tail)
}

/// As [`recover`], and gives up everything from a damaged place on as well: what is whole before it becomes a new
/// segment of the same name, and the damaged one is kept in `cut/` as it is. Boot numbers are not touched, so no number
/// is used again.
///
/// # Errors
/// When a file cannot be read or written, or was written by a newer build; never `Damage`.
pub fn repair(disk: &dyn Disk, folder: &Path) -> Result<Recovered, RecoverError> {
    mend(disk, folder, Mend::Damage)
}

fn mend(disk: &dyn Disk, folder: &Path, mend: Mend) -> Result<Recovered, RecoverError> {
    let mut segments = segment::list(folder).map_err(|source| io_error("list", folder, source))?;
    let mut abandoned = None;
    let mut synced = RecordNo(0);
    while let Some((first, path)) = segments.last() {
        let newest = scan(path, *first, None)?;
        let older = overlapping(&segments, *first)?;
        synced = synced.max(newest.synced).max(older.as_ref().map_or(RecordNo(0), |older| older.synced));
        let may_abandon = match stand(&newest, older.as_ref()) {
            Standing::Stands => {
                let cut = settle(disk, folder, &newest, synced, mend)?;
                if let Some(older) = &older {
                    seal(disk, folder, older, newest.first)?;
                }
                let last = last_of(&newest, &segments)?;
                let segments = segments.into_iter().map(|(_, path)| path).collect();
                return Ok(Recovered { segments, last, cut, abandoned });
            }
            // A crash leaves one such segment at most.
            Standing::Abandon => abandoned.is_none() || mend == Mend::Damage,
            Standing::Halt => mend == Mend::Damage,
        };
        if !may_abandon {
            return Err(damage(&newest, synced));
        }
        // What it calls durable is in the segment before it, or was given up.
        if mend == Mend::Damage {
            synced = RecordNo(0);
        }
        abandoned = Some(move_away(disk, folder, path)?);
        segments.pop();
    }
    Ok(Recovered { segments: Vec::new(), last: None, cut: None, abandoned })
}

/// The segment before, if a rotation from it can have been cut short: only one of the same boot.
fn overlapping(segments: &[(RecordNo, PathBuf)], first: RecordNo) -> Result<Option<Scan>, RecoverError> {
    match segments {
        [.., (before, path), _] if before.boot() == first.boot() => {
            Ok(Some(scan(path, *before, Some(first))?))
        }
        _ => Ok(None),
    }
}

/// The last record of the journal: of an older segment, when the newest has none.
fn last_of(newest: &Scan, segments: &[(RecordNo, PathBuf)]) -> Result<Option<RecordNo>, RecoverError> {
    if newest.records > 0 {
        return Ok(Some(newest.last));
    }
    for (first, path) in segments.iter().rev().skip(1) {
        let older = scan(path, *first, None)?;
        if older.records > 0 {
            return Ok(Some(older.last));
        }
    }
    Ok(None)
}

/// Cuts the newest segment where it stops being whole, and makes the rest durable: what is built on it must
/// not outlive it.
fn settle(
    disk: &dyn Disk,
    folder: &Path,
    newest: &Scan,
    synced: RecordNo,
    mend: Mend,
) -> Result<Option<Cut>, RecoverError> {
    match (judge(newest.trouble.is_none(), newest.missing(), synced), mend) {
        (Verdict::Take, _) => {
            trim(disk, newest, newest.end)?;
            Ok(None)
        }
        (Verdict::CutHere, _) => Ok(Some(cut(disk, folder, newest, newest.end)?)),
        (Verdict::Halt, Mend::Damage) => Ok(Some(salvage(disk, folder, newest)?)),
        (Verdict::Halt, Mend::Tail) => Err(damage(newest, synced)),
    }
}

/// Finishes a rotation: the older segment ends where the newer one, whose records are durable by now, begins.
fn seal(disk: &dyn Disk, folder: &Path, older: &Scan, first: RecordNo) -> Result<(), RecoverError> {
    if after(older.last) < first {
        // Damaged history is left as it is.
        return Ok(());
    }
    let end = older.at_wanted.unwrap_or(older.end);
    if older.trouble.is_some() {
        cut(disk, folder, older, end)?;
        return Ok(());
    }
    trim(disk, older, end)
}

fn damage(scan: &Scan, synced: RecordNo) -> RecoverError {
    RecoverError::Damage {
        path: scan.path.clone(),
        offset: scan.end,
        number: scan.missing(),
        synced,
        trouble: scan.trouble.unwrap_or(Trouble::Hole),
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> RecoverError {
    RecoverError::Io { doing, path: path.to_owned(), source }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn trim(disk: &dyn Disk, scan: &Scan, end: u64) -> Result<(), RecoverError> {
    let run = || -> io::Result<()> {
        let file = open(&scan.path)?;
        disk.sync("RECOVER:SYNC-WHOLE", &file)?;
        if scan.len > end {
            disk.truncate("RECOVER:TRIM", &file, end)?;
            disk.sync("RECOVER:SYNC-TRIM", &file)?;
        }
        Ok(())
    };
    run().map_err(|source| io_error("make durable", &scan.path, source))
}

fn cut(disk: &dyn Disk, folder: &Path, scan: &Scan, end: u64) -> Result<Cut, RecoverError> {
    let bytes = scan.end + scan.tail - end;
    let run = || -> io::Result<()> {
        let mut file = open(&scan.path)?;
        file.seek(SeekFrom::Start(end))?;
        let kept = cut_folder(disk, folder)?;
        let stem = scan.path.file_stem().unwrap_or_default().to_string_lossy();
        let copy = disk.create("RECOVER:KEEP", &kept.join(format!("{stem}-{end:016x}.tail")))?;
        let mut left = file.take(bytes);
        self::copy(disk, &mut left, &copy)?;
        disk.sync("RECOVER:SYNC", &copy)?;
        disk.sync_dir("RECOVER:DIR", &kept)?;
        // Only now is it safe to lose it here.
        let file = left.into_inner();
        disk.truncate("RECOVER:CUT", &file, end)?;
        disk.sync("RECOVER:DONE", &file)
    };
    run().map_err(|source| io_error("cut", &scan.path, source))?;
    Ok(Cut { path: scan.path.clone(), offset: end, bytes, records: scan.beyond })
}

/// Puts a new segment with what is whole in the place of a damaged one, which stays as it is in `cut/`.
fn salvage(disk: &dyn Disk, folder: &Path, scan: &Scan) -> Result<Cut, RecoverError> {
    let run = || -> io::Result<()> {
        let fresh = scan.path.with_extension("salvaged");
        // Of a repair that was cut short.
        let _ = fs::remove_file(&fresh);
        let target = disk.create("RECOVER:SALVAGE", &fresh)?;
        copy(disk, &mut File::open(&scan.path)?.take(scan.end), &target)?;
        disk.sync("RECOVER:SALVAGED", &target)?;
        let kept = cut_folder(disk, folder)?;
        let to = free_name(&kept, &scan.path, "damaged")?;
        // A second name first, so that there is no moment without the original.
        fs::hard_link(&scan.path, &to).or_else(|_| fs::copy(&scan.path, &to).map(|_| ()))?;
        disk.sync_dir("RECOVER:SYNC-KEPT", &kept)?;
        disk.rename("RECOVER:REPLACE", &fresh, &scan.path)?;
        disk.sync_dir("RECOVER:SYNC-FOLDER", folder)
    };
    run().map_err(|source| io_error("salvage", &scan.path, source))?;
    Ok(Cut { path: scan.path.clone(), offset: scan.end, bytes: scan.tail, records: scan.beyond })
}

fn copy(disk: &dyn Disk, from: &mut impl Read, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; COPY];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        disk.write("RECOVER:COPY", to, buffer.get(..n).unwrap_or_default())?;
    }
}

/// No number is used twice, but a folder may have been put back from a copy.
fn free_name(kept: &Path, path: &Path, why: &str) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut names = (1..=ABANDONED_MAX).map(|n| kept.join(format!("{name}.{why}-{n}")));
    names
        .find(|to| !to.exists())
        .ok_or_else(|| io::Error::other("too many segments of this name are in cut/"))
}

fn cut_folder(disk: &dyn Disk, folder: &Path) -> io::Result<PathBuf> {
    let kept = folder.join(CUT);
    fs::create_dir_all(&kept)?;
    disk.sync_dir("RECOVER:FOLDER", folder)?;
    Ok(kept)
}

fn move_away(disk: &dyn Disk, folder: &Path, path: &Path) -> Result<PathBuf, RecoverError> {
    let run = || -> io::Result<PathBuf> {
        let kept = cut_folder(disk, folder)?;
        let to = free_name(&kept, path, "abandoned")?;
        disk.rename("RECOVER:ABANDON", path, &to)?;
        disk.sync_dir("RECOVER:SYNC-KEPT", &kept)?;
        disk.sync_dir("RECOVER:SYNC-FOLDER", folder)?;
        Ok(to)
    };
    run().map_err(|source| io_error("move away", path, source))
}

/// Looks at every segment of a folder; the whole report is [`check::check`]'s.
///
/// # Errors
/// When the folder or a segment cannot be read at all.
pub fn check(folder: &Path) -> Result<Vec<Checked>, RecoverError> {
    Ok(check::check(folder)?.segments)
}
