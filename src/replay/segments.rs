//! Reads the segments of a journal as pieces, without changing anything: also beside a daemon that is writing
//! them.
//!
//! Invariant: a record is read once. Where a rotation that was cut short left two segments that overlap, the
//! older one ends where the newer one begins.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::fold::SegmentFacts;
use super::report::Divergence;
use super::walk::{Stop, walk_source};
use super::{Piece, Source};
use crate::base::{RecordNo, Wall};
use crate::journal::frame::{self, Kind, MAGIC};
use crate::journal::record::synced_through;
use crate::journal::segment::{self, SegmentError, SegmentReader};

/// Why a journal cannot be replayed at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A segment cannot be read.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The path cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The newest snapshot is in a form that this build cannot take.
    #[error("the newest snapshot in {path} cannot be taken: {} ({})", found.actual, found.class)]
    Snapshot {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        found: Box<Divergence>,
    },
    /// There is nothing to replay.
    #[error("{path} holds no journal segment")]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

impl ReplayError {
    /// Whether a segment is not there any more.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Segment(SegmentError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
    }

    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Segment(error) => error.hint(),
            Self::Io { .. } => "see that the path is there and may be read",
            Self::Snapshot { .. } => {
                "start the build that wrote it, or move the journal folder aside: the session folders hold the \
                 messages, and the daemon adopts what is open in them"
            }
            Self::Empty { .. } => "name a file that ends in .ltj, or the `journal` folder of a data folder",
        }
    }
}

/// Segments in order.
#[derive(Clone, Debug)]
pub struct Segments {
    paths: Vec<PathBuf>,
    /// The last of them is the newest of its journal, the only one that may end in a tail.
    newest: bool,
    /// Set once it was found out how much of them there is to read: what is said of a newest one that is left out.
    settled: Option<Option<String>>,
}

impl Segments {
    /// The segment of this name, or all segments of this folder.
    ///
    /// # Errors
    /// When the path cannot be read or holds no segment.
    pub fn open(path: &Path) -> Result<Self, ReplayError> {
        if !path.is_dir() {
            return Ok(Self { paths: vec![path.to_owned()], newest: true, settled: None });
        }
        let paths = list(path)?;
        if paths.is_empty() {
            return Err(ReplayError::Empty { path: path.to_owned() });
        }
        Ok(Self { paths, newest: true, settled: None })
    }

    /// Each segment of a folder on its own, the newest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn newest_first(folder: &Path) -> Result<Vec<Self>, ReplayError> {
        let alone = |(index, path)| Self { paths: vec![path], newest: index == 0, settled: None };
        Ok(list(folder)?.into_iter().rev().enumerate().map(alone).collect())
    }

    /// As [`Segments::open`]; with a time only those from the newest one on whose snapshot is of it or before, and all
    /// when none is.
    ///
    /// # Errors
    /// When the path cannot be read or holds no segment, or one cannot be read.
    pub fn open_since(path: &Path, wall: Option<Wall>) -> Result<Self, ReplayError> {
        let segments = Self::open(path)?;
        match wall {
            Some(wall) => segments.since(wall),
            None => Ok(segments),
        }
    }

    fn since(self, wall: Wall) -> Result<Self, ReplayError> {
        for from in (1..self.paths.len()).rev() {
            let mut alone = Self { paths: vec![self.paths[from].clone()], newest: false, settled: None };
            let mut begins = None;
            walk_source(&mut alone, |stop| {
                if let Stop::Snapshot(state, _) = stop {
                    begins = Some(state.wall());
                }
                ControlFlow::Break(())
            })?;
            if begins.is_some_and(|begins| begins <= wall) {
                return Ok(Self { paths: self.paths[from..].to_vec(), newest: self.newest, settled: None });
            }
        }
        Ok(self)
    }

    /// How much there is to read, in bytes; prepared space counts.
    ///
    /// # Errors
    /// When a file cannot be looked at.
    pub fn bytes(&self) -> Result<u64, ReplayError> {
        let len = |path: &PathBuf| {
            std::fs::metadata(path)
                .map(|it| it.len())
                .map_err(|source| ReplayError::Io { path: path.clone(), source })
        };
        self.paths.iter().map(len).sum()
    }

    /// The number of the installation that wrote the first of them.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn installation(&self) -> Result<u64, ReplayError> {
        let Some(first) = self.paths.first() else { return Ok(0) };
        Ok(SegmentReader::open(first)?.header().installation)
    }

    /// Finds out once how much there is to read, so that later reads are of the same segments and need not look again.
    pub(super) fn settled(mut self) -> Result<Self, ReplayError> {
        let (paths, unused) = self.standing()?;
        let len = paths.len();
        self.paths.truncate(len);
        self.settled = Some(unused);
        Ok(self)
    }

    /// How much of the segments there is to read: the newest may have been begun and never switched to.
    fn standing(&self) -> Result<(&[PathBuf], Option<String>), ReplayError> {
        if let Some(unused) = &self.settled {
            return Ok((&self.paths, unused.clone()));
        }
        let Some((last, before)) = self.paths.split_last() else { return Ok((&[], None)) };
        if before.is_empty() || has_snapshot(last)? {
            return Ok((&self.paths, None));
        }
        Ok((before, Some(format!("{} was begun and never used", last.display()))))
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, ReplayError> {
    let found =
        segment::list(folder).map_err(|source| ReplayError::Io { path: folder.to_owned(), source })?;
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Whether a segment's header and snapshot are whole.
fn has_snapshot(path: &Path) -> Result<bool, ReplayError> {
    let mut reader = match SegmentReader::open(path) {
        Ok(reader) => reader,
        Err(SegmentError::NotASegment { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) if frame.kind == Kind::SnapshotEnd => return Ok(true),
            Ok(Some(frame)) if frame.kind == Kind::Record => return Ok(false),
            Ok(Some(_)) => {}
            Ok(None) | Err(SegmentError::Damaged { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A place between two frames, to read on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Which segment.
    segment: usize,
    /// Where in it; none for its beginning.
    within: Option<Within>,
}

/// A place within a segment, behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Within {
    offset: u64,
    /// The last record before it.
    last: RecordNo,
    /// The highest record that is known to be durable.
    synced: RecordNo,
}

impl Source for Segments {
    type Error = ReplayError;

    fn read(&mut self, take: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>) -> Result<(), ReplayError> {
        self.read_from(Place::default(), &mut |_, piece| take(piece))
    }
}

impl Segments {
    /// Like [`Source::read`], from a place on that an earlier read gave; with each piece comes the place behind it.
    pub(super) fn read_from(
        &self,
        from: Place,
        take: &mut dyn FnMut(Place, Piece<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReplayError> {
        let (paths, unused) = self.standing()?;
        let mut begun = from.segment > 0 || from.within.is_some();
        for (index, path) in paths.iter().enumerate().skip(from.segment) {
            let next = paths.get(index + 1);
            let bounds = Bounds {
                from: from.within.filter(|_| index == from.segment),
                until: next.and_then(|path| segment::first_of(path.file_name()?.to_str()?)),
                may_have_tail: self.newest && next.is_none(),
            };
            let mut within =
                |within, piece: Piece<'_>| take(Place { segment: index, within: Some(within) }, piece);
            match read_segment(path, &bounds, &mut within) {
                // A daemon drops the oldest segments: it went since it was listed.
                Err(error) if !begun && next.is_some() && error.is_gone() => continue,
                Err(error) => return Err(error),
                Ok(flow) if flow.is_break() => return Ok(()),
                Ok(_) => begun = true,
            }
        }
        if let Some(unused) = unused {
            let _: ControlFlow<()> = take(from, Piece::Tail(&unused));
        }
        Ok(())
    }
}

/// How much of a segment is read, and how.
struct Bounds {
    /// The place to go on from; none for all of it.
    from: Option<Within>,
    /// The record before which it ends.
    until: Option<RecordNo>,
    may_have_tail: bool,
}

fn read_segment(
    path: &Path,
    bounds: &Bounds,
    take: &mut dyn FnMut(Within, Piece<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, ReplayError> {
    let &Bounds { from, until, may_have_tail } = bounds;
    let mut reader = SegmentReader::open(path)?;
    let mut synced = RecordNo(0);
    let mut flow = ControlFlow::Continue(());
    if let Some(from) = from {
        reader.resume(from.offset, from.last)?;
        synced = from.synced;
    } else {
        let header = reader.header();
        let facts = SegmentFacts {
            first: header.first,
            record_schema: header.record_schema,
            digest_schema: header.digest_schema,
        };
        flow = take(Within { offset: reader.offset(), last: reader.last(), synced }, Piece::Segment(facts));
    }
    while flow.is_continue() {
        let last = reader.last();
        flow = match reader.next_frame() {
            Ok(None) => break,
            Ok(Some(frame)) => {
                let offset = frame.offset + frame.len;
                let here = Within { offset, last, synced };
                match frame.kind {
                    Kind::Record | Kind::Body if until.is_some_and(|until| frame.number >= until) => break,
                    Kind::Record => {
                        synced = synced.max(synced_through(frame.body).unwrap_or_default());
                        let here = Within { offset, last: frame.number, synced };
                        take(here, Piece::Record(frame.number, frame.body))
                    }
                    Kind::Snapshot => take(here, Piece::Snapshot(frame.body)),
                    Kind::Body => take(here, Piece::Body(frame.body)),
                    Kind::SnapshotEnd => ControlFlow::Continue(()),
                }
            }
            Err(SegmentError::Damaged { path, offset, after, bad }) => {
                let beyond = synced_beyond(&path, offset)
                    .map_err(|source| ReplayError::Io { path: path.clone(), source })?;
                let why = format!("{} at offset {offset}, after record {after}: {bad}", path.display());
                // As recovery judges it: what was not promised to be durable may be missing.
                let tail = may_have_tail && after.next() > synced.max(beyond);
                let here = Within { offset, last: after, synced };
                let flow = match tail {
                    true => take(here, Piece::Tail(&format!("a tail that was not durable yet: {why}"))),
                    false => take(here, Piece::Damaged { after, why: &why }),
                };
                return Ok(flow);
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(flow)
}

/// The highest record that a whole frame behind a damaged place calls durable.
fn synced_beyond(path: &Path, offset: u64) -> io::Result<RecordNo> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    // Bounded by the size at which segments are rotated.
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    let (mut at, mut synced) = (0, RecordNo(0));
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        let Some(found) = tail.windows(MAGIC.len()).position(|window| window == MAGIC) else { break };
        at += found;
        match frame::decode(&tail[found..]) {
            Ok(frame) => {
                if frame.kind == Kind::Record {
                    synced = synced.max(synced_through(frame.body).unwrap_or_default());
                }
                at += frame.len;
            }
            Err(_) => at += 1,
        }
    }
    Ok(synced)
}
