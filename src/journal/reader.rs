//! Reads a journal folder from end to end, one frame at a time, each record once.
//!
//! Where a rotation left two segments that overlap, the older one ends where the newer one begins. Space that
//! was prepared and not used ends a segment. Within a boot record numbers have no gap; a new boot begins at
//! its own first number, whatever the boot before it lost.
//!
//! Invariant: nothing is changed, and no more than one frame is held in memory.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::frame::Kind;
use super::scan::after;
use super::segment::{self, FrameAt, Header, SegmentError, SegmentReader};
use crate::base::RecordNo;

/// Why a journal cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The folder cannot be listed.
    #[error("cannot list {path}: {source}")]
    List {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A segment cannot be read, or is damaged at a place; also where the newest has a tail that a crash
    /// left.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Records are missing.
    #[error("{path} has record {found} at offset {offset}, where record {expected} belongs")]
    Gap {
        /// The segment.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// The record that belongs there.
        expected: RecordNo,
        /// The record that stands there.
        found: RecordNo,
    },
}

impl ReadError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::List { .. } => "name the `journal` folder of a data folder",
            Self::Segment(error) => error.hint(),
            Self::Gap { .. } => "`lamplighter journal check` says what is whole",
        }
    }
}

/// Gives every frame of the journal in `folder` to `take`, oldest first, with the header of its segment,
/// until `take` breaks. A segment without records gives its snapshot all the same.
///
/// # Errors
/// See [`ReadError`]; everything before the place was given by then.
pub fn read(
    folder: &Path,
    mut take: impl FnMut(&Header, &FrameAt<'_>) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let list = segment::list(folder).map_err(|source| ReadError::List { path: folder.to_owned(), source })?;
    let mut last = None;
    for (n, (first, path)) in list.iter().enumerate() {
        let until = list.get(n + 1).map(|(next, _)| *next);
        let mut reader = SegmentReader::open(path)?;
        let header = reader.header().clone();
        if let Some(last) =
            last.filter(|last: &RecordNo| last.boot() == first.boot() && after(*last) < *first)
        {
            let (offset, expected) = (reader.offset(), after(last));
            return Err(ReadError::Gap { path: path.clone(), offset, expected, found: *first });
        }
        loop {
            let expected = after(reader.last());
            let Some(frame) = reader.next_frame()? else { break };
            if frame.kind == Kind::Record {
                if until.is_some_and(|until| frame.number >= until) {
                    break;
                }
                if frame.number != expected {
                    let (path, offset, found) = (path.clone(), frame.offset, frame.number);
                    return Err(ReadError::Gap { path, offset, expected, found });
                }
                last = Some(frame.number);
            }
            if take(&header, &frame).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}
