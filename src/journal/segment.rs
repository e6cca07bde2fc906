//! Segments: files of frames, named by their first record, each with a header and a snapshot before its
//! records.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::frame::{self, Bad, Kind};
use super::record::{BODY_MAX, DIGEST_SCHEMA, RECORD_SCHEMA};
use crate::base::{BootNo, RecordNo};
use crate::machine::MACHINE_VERSION;

/// Begins every segment.
const MAGIC: [u8; 4] = *b"LTJ1";
/// The layout of headers and frames. Records and digests have schemas of their own.
pub const FORMAT: u32 = 1;
/// Longest header: the build's name is short.
const HEADER_MAX: u32 = 4_096;
/// The ending of segment files.
pub const EXTENSION: &str = "ltj";

/// What a segment says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The layout of headers and frames.
    pub format: u32,
    /// The machine that decided.
    pub machine: u32,
    /// The form of records.
    pub record_schema: u32,
    /// How digests were made.
    pub digest_schema: u32,
    /// The installation that wrote it.
    pub installation: u64,
    /// The boot that wrote it.
    pub boot: BootNo,
    /// The number of its first record, written or not.
    pub first: RecordNo,
    /// The build that wrote it.
    pub build: String,
}

/// Why a segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The operating system refused.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The segment.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not begin with a whole header.
    #[error("{path} is not a journal segment: {why}")]
    NotASegment {
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// It was written by a newer build.
    #[error("{path} has format {found}; this build reads up to {FORMAT}")]
    TooNew {
        /// The segment.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A frame in it is damaged.
    #[error("{path} is damaged at offset {offset}, after record {after}: {bad}")]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// The last whole record before it.
        after: RecordNo,
        /// What is wrong.
        bad: Bad,
    },
}

impl SegmentError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "see that the file is there and may be read",
            Self::NotASegment { .. } => {
                "name a file that ends in .ltj, or a journal folder; of a segment whose header is damaged \
                 nothing can be told, the others replay without it"
            }
            Self::TooNew { .. } => "read it with the build that wrote it, or a newer one",
            Self::Damaged { .. } => {
                "keep a copy of the journal folder; `lamplighter journal check` says what is whole"
            }
        }
    }
}

impl Header {
    /// Of a segment that this build writes.
    pub fn new(installation: u64, first: RecordNo, build: &str) -> Self {
        Self {
            format: FORMAT,
            machine: MACHINE_VERSION,
            record_schema: RECORD_SCHEMA,
            digest_schema: DIGEST_SCHEMA,
            installation,
            boot: first.boot(),
            first,
            build: build.to_owned(),
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for number in [self.format, self.machine, self.record_schema, self.digest_schema] {
            body.extend(number.to_le_bytes());
        }
        body.extend(self.installation.to_le_bytes());
        body.extend(self.boot.0.to_le_bytes());
        body.extend(self.first.0.to_le_bytes());
        body.extend(self.build.bytes().take(1_024));
        let mut out = MAGIC.to_vec();
        out.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(crc32c::crc32c(&body).to_le_bytes());
        out.extend(body);
        out
    }

    fn read(path: &Path, file: &mut impl Read) -> Result<(Self, u64), SegmentError> {
        let io = |source| SegmentError::Io { path: path.to_owned(), source };
        let not = |why| SegmentError::NotASegment { path: path.to_owned(), why };
        let mut head = [0u8; 12];
        read_all(file, &mut head).map_err(io)?.ok_or_else(|| not("it is too short"))?;
        let (magic, rest) = head.split_at(4);
        let (len, crc) = rest.split_at(4);
        if magic != MAGIC {
            return Err(not("its first bytes are not those of a segment"));
        }
        let (len, crc) = (le32(len), le32(crc));
        if len > HEADER_MAX {
            return Err(not("its header is too long"));
        }
        let mut body = vec![0; len as usize];
        read_all(file, &mut body).map_err(io)?.ok_or_else(|| not("its header is cut off"))?;
        if crc32c::crc32c(&body) != crc {
            return Err(not("its header's checksum is wrong"));
        }
        let header = Self::decode(&body).ok_or_else(|| not("its header is too short"))?;
        if header.format > FORMAT {
            return Err(SegmentError::TooNew { path: path.to_owned(), found: header.format });
        }
        Ok((header, 12 + u64::from(len)))
    }

    fn decode(body: &[u8]) -> Option<Self> {
        Some(Self {
            format: le32(body.get(..4)?),
            machine: le32(body.get(4..8)?),
            record_schema: le32(body.get(8..12)?),
            digest_schema: le32(body.get(12..16)?),
            installation: le64(body.get(16..24)?),
            boot: BootNo(le32(body.get(24..28)?)),
            first: RecordNo(le64(body.get(28..36)?)),
            build: String::from_utf8_lossy(body.get(36..)?).into_owned(),
        })
    }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Fills the buffer; none when the file ends first.
fn read_all(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<Option<()>> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The bytes with which a segment begins: its header and the state before its first record.
///
/// # Errors
/// When a part of the snapshot does not fit into a frame.
pub fn beginning(header: &Header, snapshot: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let mut bytes = header.encode();
    for part in snapshot {
        if part.len() > BODY_MAX {
            return Err(io::Error::other("a part of the snapshot does not fit into a frame"));
        }
        frame::encode(Kind::Snapshot, header.first, part, &mut bytes);
    }
    frame::encode(Kind::SnapshotEnd, header.first, &[], &mut bytes);
    Ok(bytes)
}

/// Writes a whole segment, one frame after the other, to a file of its own: a copy, not a journal that goes on.
#[derive(Debug)]
pub struct SegmentFile {
    file: BufWriter<File>,
    frame: Vec<u8>,
}

impl SegmentFile {
    /// Begins it in a folder, under the name that its header asks for.
    ///
    /// # Errors
    /// When there is one of that name, or it cannot be written.
    pub fn create(folder: &Path, header: &Header, snapshot: &[Vec<u8>]) -> io::Result<Self> {
        let file = File::create_new(folder.join(file_name(header.first)))?;
        let mut file = BufWriter::new(file);
        file.write_all(&beginning(header, snapshot)?)?;
        Ok(Self { file, frame: Vec::new() })
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, kind: Kind, number: RecordNo, body: &[u8]) -> io::Result<()> {
        self.frame.clear();
        frame::encode(kind, number, body, &mut self.frame);
        self.file.write_all(&self.frame)
    }

    /// Ends it: it is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> io::Result<()> {
        self.file.into_inner()?.sync_all()
    }
}

/// The file name of the segment that begins with a record.
pub fn file_name(first: RecordNo) -> String {
    format!("{:016x}.{EXTENSION}", first.0)
}

/// The first record that a file name tells, if it is a segment's.
pub fn first_of(name: &str) -> Option<RecordNo> {
    let hex = name.strip_suffix(".ltj").filter(|hex| hex.len() == 16)?;
    let first = u64::from_str_radix(hex, 16).ok().map(RecordNo)?;
    // Signs and capitals would make two names of one.
    (file_name(first) == name).then_some(first)
}

/// The segments of a folder in order.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<(RecordNo, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(first) = entry.file_name().to_str().and_then(first_of) {
            found.push((first, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads the frames of one segment, one after the other.
pub struct SegmentReader {
    path: PathBuf,
    file: BufReader<File>,
    header: Header,
    offset: u64,
    /// The last record that was read; before the first, the number before it.
    last: RecordNo,
    buffer: Vec<u8>,
}

/// A frame as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct FrameAt<'a> {
    /// What it holds.
    pub kind: Kind,
    /// The record it belongs to.
    pub number: RecordNo,
    /// Its content.
    pub body: &'a [u8],
    /// Where it begins.
    pub offset: u64,
    /// Its length in the file.
    pub len: u64,
}

impl SegmentReader {
    /// Opens a segment and reads its header.
    ///
    /// # Errors
    /// See [`SegmentError`].
    pub fn open(path: &Path) -> Result<Self, SegmentError> {
        let file = File::open(path).map_err(|source| SegmentError::Io { path: path.to_owned(), source })?;
        let mut file = BufReader::with_capacity(1 << 16, file);
        let (header, offset) = Header::read(path, &mut file)?;
        let last = RecordNo(header.first.0.saturating_sub(1));
        Ok(Self { path: path.to_owned(), file, header, offset, last, buffer: Vec::new() })
    }

    /// What the segment says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next frame begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The last record that was read; before the first, the number before it.
    pub fn last(&self) -> RecordNo {
        self.last
    }

    /// Goes on at a place that [`offset`](Self::offset) gave, with the [`last`](Self::last) of that time.
    ///
    /// # Errors
    /// When the system cannot go there.
    pub fn resume(&mut self, offset: u64, last: RecordNo) -> Result<(), SegmentError> {
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|source| SegmentError::Io { path: self.path.clone(), source })?;
        (self.offset, self.last) = (offset, last);
        Ok(())
    }

    /// The next frame; none at the end of what was written.
    ///
    /// # Errors `Damaged` where something else than a whole frame or nothing stands; calling again gives the
    /// same error.
    pub fn next_frame(&mut self) -> Result<Option<FrameAt<'_>>, SegmentError> {
        let offset = self.offset;
        match self.fill() {
            Ok(()) => {}
            Err(ReadFault::Io(source)) => return Err(SegmentError::Io { path: self.path.clone(), source }),
            Err(ReadFault::Bad(Bad::End)) => return Ok(None),
            Err(ReadFault::Bad(bad)) => {
                let (path, after) = (self.path.clone(), self.last);
                return Err(SegmentError::Damaged { path, offset, after, bad });
            }
        }
        match frame::decode(&self.buffer) {
            Ok(frame) => {
                let len = frame.len as u64;
                self.offset += len;
                if frame.kind == Kind::Record {
                    self.last = frame.number;
                }
                Ok(Some(FrameAt { kind: frame.kind, number: frame.number, body: frame.body, offset, len }))
            }
            Err(bad) => {
                let (path, after) = (self.path.clone(), self.last);
                // So that the next call finds the same place.
                self.file
                    .seek(SeekFrom::Start(offset))
                    .map_err(|source| SegmentError::Io { path: path.clone(), source })?;
                Err(SegmentError::Damaged { path, offset, after, bad })
            }
        }
    }

    /// Reads the bytes of the next frame into the buffer.
    fn fill(&mut self) -> Result<(), ReadFault> {
        let mut head = [0u8; 8];
        let got = read_up_to(&mut self.file, &mut head)?;
        let rewind =
            |file: &mut BufReader<File>, n: usize| file.seek_relative(-(n as i64)).map_err(ReadFault::Io);
        match frame::announced(head.get(..got).unwrap_or_default()) {
            Err(bad) => {
                rewind(&mut self.file, got)?;
                Err(ReadFault::Bad(bad))
            }
            Ok(len) => {
                self.buffer.clear();
                self.buffer.extend(head);
                self.buffer.resize(len, 0);
                let rest = self.buffer.get_mut(8..).unwrap_or_default();
                let got = read_up_to(&mut self.file, rest)?;
                if got + 8 < len {
                    rewind(&mut self.file, got + 8)?;
                    return Err(ReadFault::Bad(Bad::Torn));
                }
                Ok(())
            }
        }
    }
}

enum ReadFault {
    Io(io::Error),
    Bad(Bad),
}

impl From<io::Error> for ReadFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_built_and_parsed_alike() {
        let first = RecordNo((3 << 32) | 17);
        assert_eq!(file_name(first), "0000000300000011.ltj");
        assert_eq!(first_of(&file_name(first)), Some(first));
        assert_eq!(first_of("boot"), None);
        assert_eq!(first_of("3.ltj"), None);
        assert_eq!(first_of("+000000300000011.ltj"), None);
        assert_eq!(first_of("000000030000001A.ltj"), None);
    }
}
