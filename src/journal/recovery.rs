//! Recovery: what a crash can leave, and what is done about it before anything is appended.
//!
//! Only the newest segment can have a tail that was not synced. Let S be the highest `synced_through` in any whole
//! frame. A bad frame above S was never promised to be durable: the journal is cut there, and what follows is moved to
//! `cut/`. A bad frame at or below S is damage: nothing is changed, and an operator must look.
//!
//! A rotation leaves two segments that overlap until the older one is cut at the newer one's snapshot. A newer segment
//! that is not whole, or that lacks records which the older one has, was never switched to: it is moved to `cut/`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::frame::{self, Kind, MAGIC};
use super::record::synced_through;
use super::segment::{self, SegmentError, SegmentReader};
use crate::base::{Disk, RecordNo};

/// Where what was cut is kept.
pub const CUT: &str = "cut";

/// Why the journal cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Something that was durable is gone or changed.
    #[error(
        "the journal is damaged: {path} at offset {offset}, after record {after}, which is not above the last record \
         known to be durable ({synced})"
    )]
    Damage {
        /// The segment.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// The last whole record before it.
        after: RecordNo,
        /// The highest record that a whole frame calls durable.
        synced: RecordNo,
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
                "keep a copy of the journal folder, then move the damaged segment and all newer ones away; the session \
                 files hold the messages, and the daemon adopts what is open in them"
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
    /// Bytes that were moved to `cut/`.
    pub bytes: u64,
    /// Whole records among them.
    pub records: u64,
}

/// The journal after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The segments that hold, in order.
    pub segments: Vec<PathBuf>,
    /// The last record.
    pub last: Option<RecordNo>,
    /// What was cut off, if anything.
    pub cut: Option<Cut>,
    /// A segment that was never switched to, and moved away.
    pub abandoned: Option<PathBuf>,
}

/// What becomes of a place without a whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// What was promised is all there.
    Cut,
    /// Something that was promised is gone.
    Halt,
}

fn judge(next: RecordNo, synced: RecordNo) -> Verdict {
    if next > synced { Verdict::Cut } else { Verdict::Halt }
}

/// One segment, scanned to its end.
struct Scan {
    header_first: RecordNo,
    /// Its snapshot is whole.
    snapshot: bool,
    /// The last whole record, in unbroken order.
    last: RecordNo,
    records: u64,
    /// Where the unbroken order ends, and whether anything but nothing follows.
    end: u64,
    bad: bool,
    /// The highest `synced_through` in any whole frame, also behind the end.
    synced: RecordNo,
    /// Whole records behind the end.
    beyond: u64,
}

/// Looks at the journal and mends what may be mended.
///
/// # Errors
/// See [`RecoverError`]; nothing was changed then.
pub fn recover(disk: &dyn Disk, folder: &Path) -> Result<Recovered, RecoverError> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| RecoverError::Io { doing, path, source }
    };
    let mut segments = segment::list(folder).map_err(io("list", folder))?;
    let mut abandoned = None;
    let mut newest = None;
    while let Some((_, path)) = segments.last().cloned() {
        let before =
            segments.len().checked_sub(2).and_then(|n| segments.get(n)).map(|(_, path)| path.clone());
        let scan = scan(&path);
        let stands = match &scan {
            Ok(scan) => scan.snapshot && !older_goes_on(before.as_deref(), scan)?,
            Err(SegmentError::NotASegment { .. }) => false,
            Err(_) => true,
        };
        if stands || abandoned.is_some() {
            newest = Some(scan?);
            break;
        }
        // A first segment without records can be lost: nothing was decided yet.
        let empty = scan.as_ref().map_or(true, |scan| scan.records == 0 && scan.beyond == 0);
        if before.is_none() && !empty {
            newest = Some(scan?);
            break;
        }
        abandoned = Some(move_away(disk, folder, &path)?);
        segments.pop();
    }
    let Some(scan) = newest else {
        return Ok(Recovered { segments: Vec::new(), last: None, cut: None, abandoned });
    };
    let paths: Vec<PathBuf> = segments.into_iter().map(|(_, path)| path).collect();
    let path = paths.last().cloned().unwrap_or_default();
    let last = (scan.records > 0).then_some(scan.last);
    if !scan.bad {
        return Ok(Recovered { segments: paths, last, cut: None, abandoned });
    }
    match judge(scan.last.next(), scan.synced) {
        Verdict::Halt => {
            Err(RecoverError::Damage { path, offset: scan.end, after: scan.last, synced: scan.synced })
        }
        Verdict::Cut => {
            let cut = cut(disk, folder, &path, &scan)?;
            Ok(Recovered { segments: paths, last, cut: Some(cut), abandoned })
        }
    }
}

/// Whether the segment before has records that this one should have and lacks.
fn older_goes_on(before: Option<&Path>, newer: &Scan) -> Result<bool, RecoverError> {
    let Some(before) = before else { return Ok(false) };
    match scan(before) {
        Ok(older) => Ok(older.records > 0 && older.last >= newer.header_first && older.last > newer.last),
        Err(SegmentError::NotASegment { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn scan(path: &Path) -> Result<Scan, SegmentError> {
    let mut reader = SegmentReader::open(path)?;
    let mut scan = Scan {
        header_first: reader.header().first,
        snapshot: false,
        last: reader.last(),
        records: 0,
        end: 0,
        bad: false,
        synced: RecordNo(0),
        beyond: 0,
    };
    loop {
        let expected = scan.last.next();
        match reader.next_frame() {
            Ok(Some(frame)) if frame.kind == Kind::Record && frame.number != expected => {
                // A gap: what follows belongs to a state that is not here.
                scan.end = frame.offset;
                scan.bad = true;
                break;
            }
            Ok(Some(frame)) => {
                if frame.kind == Kind::SnapshotEnd {
                    scan.snapshot = true;
                }
                if frame.kind == Kind::Record {
                    scan.last = frame.number;
                    scan.records += 1;
                    scan.synced = scan.synced.max(synced_through(frame.body).unwrap_or_default());
                }
            }
            Ok(None) => {
                scan.end = reader.offset();
                scan.bad = false;
                break;
            }
            Err(SegmentError::Damaged { offset, .. }) => {
                scan.end = offset;
                scan.bad = true;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    look_beyond(path, &mut scan).map_err(|source| SegmentError::Io { path: path.to_owned(), source })?;
    Ok(scan)
}

/// Looks for whole frames behind the end: they say what was durable, and how much is cut.
fn look_beyond(path: &Path, scan: &mut Scan) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(scan.end))?;
    // The unsynced tail is what a group commit can lag behind: some megabytes at the most. A damaged segment is
    // bounded by the size at which segments are rotated.
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    let mut at = 0;
    while let Some(found) = rest.get(at..).and_then(|tail| find(tail, &MAGIC)) {
        at += found;
        match frame::decode(&rest[at..]) {
            Ok(frame) => {
                if frame.kind == Kind::Record {
                    scan.beyond += 1;
                    scan.synced = scan.synced.max(synced_through(frame.body).unwrap_or_default());
                }
                at += frame.len;
                scan.bad = true;
            }
            Err(_) => at += 1,
        }
    }
    // Anything that is not nothing behind the end is a torn write, also where it begins with zeros.
    scan.bad |= rest.iter().any(|&byte| byte != 0);
    Ok(())
}

fn find(haystack: &[u8], needle: &[u8; 4]) -> Option<usize> {
    haystack.windows(4).position(|window| window == needle)
}

fn cut(disk: &dyn Disk, folder: &Path, path: &Path, scan: &Scan) -> Result<Cut, RecoverError> {
    let run = || -> io::Result<u64> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut rest = Vec::new();
        (&file).seek(SeekFrom::Start(scan.end))?;
        (&file).read_to_end(&mut rest)?;
        let kept = folder.join(CUT);
        fs::create_dir_all(&kept)?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let copy = disk.create("RECOVER:KEEP", &kept.join(format!("{stem}-{}.tail", scan.end)))?;
        disk.write("RECOVER:WRITE", &copy, &rest)?;
        disk.sync("RECOVER:SYNC", &copy)?;
        disk.sync_dir("RECOVER:DIR", &kept)?;
        // Only now is it safe to lose it here.
        disk.truncate("RECOVER:CUT", &file, scan.end)?;
        disk.sync("RECOVER:DONE", &file)?;
        Ok(rest.len() as u64)
    };
    let bytes = run().map_err(|source| RecoverError::Io { doing: "cut", path: path.to_owned(), source })?;
    Ok(Cut { path: path.to_owned(), offset: scan.end, bytes, records: scan.beyond })
}

fn move_away(disk: &dyn Disk, folder: &Path, path: &Path) -> Result<PathBuf, RecoverError> {
    let run = || -> io::Result<PathBuf> {
        let kept = folder.join(CUT);
        fs::create_dir_all(&kept)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut to = kept.join(format!("{name}.abandoned"));
        for n in 1.. {
            if !to.exists() {
                break;
            }
            to = kept.join(format!("{name}.abandoned-{n}"));
        }
        disk.rename("RECOVER:ABANDON", path, &to)?;
        disk.sync_dir("RECOVER:ABANDONED", folder)?;
        Ok(to)
    };
    run().map_err(|source| RecoverError::Io { doing: "move away", path: path.to_owned(), source })
}

/// What a journal folder holds, without changing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The segment.
    pub path: PathBuf,
    /// Its first record's number.
    pub first: RecordNo,
    /// Whole records in unbroken order.
    pub records: u64,
    /// The last of them.
    pub last: RecordNo,
    /// Where the unbroken order ends.
    pub end: u64,
    /// What is wrong there, if anything is.
    pub trouble: Option<String>,
}

/// Looks at every segment of a folder.
///
/// # Errors
/// When the folder or a segment cannot be read at all.
pub fn check(folder: &Path) -> Result<Vec<Checked>, RecoverError> {
    let segments = segment::list(folder).map_err(|source| RecoverError::Io {
        doing: "list",
        path: folder.to_owned(),
        source,
    })?;
    let newest = segments.len().saturating_sub(1);
    let mut checked = Vec::new();
    for (n, (first, path)) in segments.into_iter().enumerate() {
        let scan = match scan(&path) {
            Ok(scan) => scan,
            Err(error @ SegmentError::NotASegment { .. }) => {
                let trouble = Some(error.to_string());
                checked.push(Checked { path, first, records: 0, last: first, end: 0, trouble });
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let trouble = match (scan.bad, judge(scan.last.next(), scan.synced), n == newest) {
            (false, _, _) if !scan.snapshot => Some("its snapshot is not whole".into()),
            (false, _, _) => None,
            (true, Verdict::Cut, true) => Some(format!(
                "a tail that was not durable yet, with {} whole records; the next start cuts it off",
                scan.beyond
            )),
            (true, _, _) => Some(format!("damaged at offset {}, after record {}", scan.end, scan.last)),
        };
        checked.push(Checked { path, first, records: scan.records, last: scan.last, end: scan.end, trouble });
    }
    Ok(checked)
}
