//! Scans one segment to its end and past it: how far it is whole, what follows, and what its frames call
//! durable.
//!
//! A place without a whole frame does not end the scan. Frames behind it say what was durable, and how much
//! would be cut. A body may hold bytes that look like a frame (text comes from users), so behind such a place
//! a record counts only when its number could have been written there and calls nothing durable that is not
//! older than itself.
//!
//! Invariant: nothing is changed, and no more than a window of a few frames is held in memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::frame::{self, Bad, Frame, Kind, MAGIC};
use super::record::{BODY_MAX, synced_through};
use super::segment::{Header, SegmentError, SegmentReader};
use crate::base::RecordNo;

/// What is held of a file behind a bad place: the longest frame fits in twice over.
const WINDOW: usize = 3 * BODY_MAX;
/// No record's frame is shorter: magic, length, checksum, kind, number and `synced_through`.
const RECORD_MIN: u64 = 29;

/// Why a segment is not whole at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It does not begin with a whole header of its name.
    #[error("its header is not whole: {0}")]
    Header(&'static str),
    /// The state before its first record is not whole.
    #[error("its snapshot is not whole")]
    Snapshot,
    /// There is no whole frame.
    #[error("{0}")]
    Frame(Bad),
    /// A whole frame of another record stands here.
    #[error("record {found} stands here")]
    Gap {
        /// The record that stands here.
        found: RecordNo,
    },
    /// Nothing was written here, and something was behind it.
    #[error("nothing stands here, and something behind it")]
    Hole,
}

/// One segment, scanned.
#[derive(Debug)]
pub(super) struct Scan {
    pub path: PathBuf,
    /// The first record, as the file's name tells it.
    pub first: RecordNo,
    pub header: Option<Header>,
    /// The snapshot is whole.
    pub snapshot: bool,
    /// The last record in unbroken order; before the first, the number before it.
    pub last: RecordNo,
    pub records: u64,
    /// Where the unbroken order ends.
    pub end: u64,
    /// What is wrong there; none when nothing but zeros follows.
    pub trouble: Option<Trouble>,
    /// The highest `synced_through` of any whole record, also behind the end.
    pub synced: RecordNo,
    /// Whole records behind the end.
    pub beyond: u64,
    /// Bytes behind the end, without the zeros that were prepared.
    pub tail: u64,
    /// The file's length.
    pub len: u64,
    /// Where the record stands that was asked for, if it is in the unbroken order.
    pub at_wanted: Option<u64>,
}

impl Scan {
    /// Whether header and snapshot are whole, so that it can be replayed.
    pub fn is_begun(&self) -> bool {
        self.header.is_some() && self.snapshot
    }

    /// The number of the record that is missing where the unbroken order ends.
    pub fn missing(&self) -> RecordNo {
        after(self.last)
    }
}

/// The number after this one; a name on disk may hold the last one there is.
pub(super) fn after(no: RecordNo) -> RecordNo {
    RecordNo(no.0.saturating_add(1))
}

/// Scans the segment at `path`, whose name says that it begins with `first`. `wanted` is a record whose place
/// is asked for.
///
/// # Errors
/// When it cannot be read, or was written by a newer build.
pub(super) fn scan(path: &Path, first: RecordNo, wanted: Option<RecordNo>) -> Result<Scan, SegmentError> {
    let mut scan = Scan {
        path: path.to_owned(),
        first,
        header: None,
        snapshot: false,
        last: RecordNo(first.0.saturating_sub(1)),
        records: 0,
        end: 0,
        trouble: None,
        synced: RecordNo(0),
        beyond: 0,
        tail: 0,
        len: 0,
        at_wanted: None,
    };
    match SegmentReader::open(path) {
        Ok(reader) if reader.header().first != first => {
            scan.trouble = Some(Trouble::Header("it is that of another segment"));
        }
        Ok(mut reader) => {
            scan.header = Some(reader.header().clone());
            scan.trouble = in_order(&mut scan, &mut reader, wanted)?;
        }
        Err(SegmentError::NotASegment { why, .. }) => scan.trouble = Some(Trouble::Header(why)),
        Err(error) => return Err(error),
    }
    look_beyond(&mut scan).map_err(|source| SegmentError::Io { path: path.to_owned(), source })?;
    if scan.tail > 0 {
        scan.trouble.get_or_insert(Trouble::Hole);
    }
    Ok(scan)
}

/// Takes frames as long as each is the one that belongs there.
fn in_order(
    scan: &mut Scan,
    reader: &mut SegmentReader,
    wanted: Option<RecordNo>,
) -> Result<Option<Trouble>, SegmentError> {
    loop {
        scan.end = reader.offset();
        let frame = match reader.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) if scan.snapshot => return Ok(None),
            Ok(None) => return Ok(Some(Trouble::Snapshot)),
            Err(SegmentError::Damaged { bad, .. }) => return Ok(Some(Trouble::Frame(bad))),
            Err(error) => return Err(error),
        };
        match (frame.kind, scan.snapshot) {
            (Kind::Record, true) if frame.number == scan.missing() => {
                if wanted == Some(frame.number) {
                    scan.at_wanted = Some(frame.offset);
                }
                scan.synced = scan.synced.max(synced_through(frame.body).unwrap_or_default());
                scan.last = frame.number;
                scan.records += 1;
            }
            (Kind::Record, true) => return Ok(Some(Trouble::Gap { found: frame.number })),
            (Kind::Record, false) => return Ok(Some(Trouble::Snapshot)),
            (Kind::SnapshotEnd, _) => scan.snapshot = true,
            (Kind::Snapshot | Kind::Body, _) => {}
        }
    }
}

/// Looks for whole records behind the end.
fn look_beyond(scan: &mut Scan) -> io::Result<()> {
    let mut file = File::open(&scan.path)?;
    scan.len = file.metadata()?.len();
    file.seek(SeekFrom::Start(scan.end))?;
    // Where the window begins, counted from the end of the order.
    let (mut base, mut at) = (0u64, 0usize);
    let mut window = Vec::new();
    loop {
        window.drain(..at);
        base += at as u64;
        let fresh = window.len();
        (&mut file).take((WINDOW - fresh) as u64).read_to_end(&mut window)?;
        let is_last = window.len() < WINDOW;
        if let Some(n) = window.iter().skip(fresh).rposition(|&byte| byte != 0) {
            scan.tail = base + (fresh + n) as u64 + 1;
        }
        // Behind this, a frame may go on outside of the window.
        let sure = if is_last { window.len() } else { WINDOW - WINDOW / 2 };
        at = 0;
        while at < sure {
            let Some(found) = find(&window[at..sure.saturating_add(MAGIC.len() - 1).min(window.len())])
            else {
                at = sure;
                break;
            };
            at += found;
            at += record_at(scan, &window[at..]);
        }
        if is_last {
            return Ok(());
        }
        at = at.min(window.len());
    }
}

/// Counts the record that begins with these bytes, if one does. Gives how far to go on.
fn record_at(scan: &mut Scan, bytes: &[u8]) -> usize {
    match frame::decode(bytes) {
        Ok(frame) if frame.kind != Kind::Record => frame.len,
        Ok(frame) => match plausible(scan, &frame) {
            Some(synced) => {
                scan.beyond += 1;
                scan.synced = scan.synced.max(synced);
                frame.len
            }
            None => 1,
        },
        Err(_) => 1,
    }
}

/// What a record behind the end calls durable, if the record can have been written there.
fn plausible(scan: &Scan, frame: &Frame<'_>) -> Option<RecordNo> {
    let synced = synced_through(frame.body)?;
    let room = (scan.len - scan.end.min(scan.len)) / RECORD_MIN;
    let highest = RecordNo(scan.last.0.saturating_add(room).saturating_add(1));
    let fits =
        frame.number.boot() == scan.first.boot() && frame.number >= scan.first && frame.number <= highest;
    (fits && synced < frame.number).then_some(synced)
}

fn find(haystack: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(n) = haystack.get(from..)?.iter().position(|&byte| byte == MAGIC[0]) {
        if haystack.get(from + n..)?.starts_with(&MAGIC) {
            return Some(from + n);
        }
        from += n + 1;
    }
    None
}
