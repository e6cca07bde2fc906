//! Frames: what a segment is made of.
//!
//! ```text
//! magic "LTF1" 4 | len u32 | crc32c u32 | kind u8 | record number u64 | body
//! ```
//! All numbers are little endian. `len` counts what follows the checksum; the checksum covers it.

use crate::base::RecordNo;
use crate::journal::record::BODY_MAX;

/// Begins every frame.
pub const MAGIC: [u8; 4] = *b"LTF1";
/// Bytes before the kind.
const HEAD: usize = 12;
/// Kind and record number.
const FIXED: usize = 9;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One record.
    Record = 1,
    /// A part of the state before the first record.
    Snapshot = 2,
    /// A message's text, addressed by digest.
    Body = 3,
    /// The snapshot before it is whole.
    SnapshotEnd = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Record, Self::Snapshot, Self::Body, Self::SnapshotEnd]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// One whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it holds.
    pub kind: Kind,
    /// The record it belongs to.
    pub number: RecordNo,
    /// Its content.
    pub body: &'a [u8],
    /// Its length on disk, head included.
    pub len: usize,
}

/// Why there is no whole frame at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Nothing was written here: space that was prepared, or the end of the file.
    #[error("nothing was written here")]
    End,
    /// The bytes do not begin a frame.
    #[error("no frame begins here")]
    NoMagic,
    /// The length cannot be.
    #[error("a frame of {0} bytes cannot be")]
    Length(u32),
    /// The file ends in the middle of it.
    #[error("the file ends in the middle of a frame")]
    Torn,
    /// The checksum is wrong.
    #[error("the checksum is wrong")]
    Checksum,
    /// The kind is unknown.
    #[error("frames of kind {0} are unknown")]
    UnknownKind(u8),
}

/// Appends a frame.
pub fn encode(kind: Kind, number: RecordNo, body: &[u8], out: &mut Vec<u8>) {
    debug_assert!(body.len() <= BODY_MAX);
    let start = out.len();
    out.extend(MAGIC);
    out.extend(u32::try_from(body.len() + FIXED).unwrap_or(u32::MAX).to_le_bytes());
    out.extend([0; 4]);
    out.push(kind as u8);
    out.extend(number.0.to_le_bytes());
    out.extend(body);
    let crc = crc32c::crc32c(&out[start + HEAD..]);
    out[start + 8..start + HEAD].copy_from_slice(&crc.to_le_bytes());
}

/// The length on disk that a frame's first bytes announce, if they can begin one.
///
/// # Errors
/// Why not. `Torn` when there are too few bytes to tell.
pub fn announced(bytes: &[u8]) -> Result<usize, Bad> {
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(if bytes.iter().all(|&byte| byte == 0) { Bad::End } else { Bad::Torn });
    };
    if *magic != MAGIC {
        return Err(if *magic == [0; 4] { Bad::End } else { Bad::NoMagic });
    }
    let len = rest.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)).ok_or(Bad::Torn)?;
    if (FIXED..=FIXED + BODY_MAX).contains(&(len as usize)) {
        Ok(HEAD + len as usize)
    } else {
        Err(Bad::Length(len))
    }
}

/// Kind and number of a whole frame, without a look at its checksum.
pub(super) fn label(frame: &[u8]) -> Option<(Kind, RecordNo)> {
    let (&kind, rest) = frame.get(HEAD..)?.split_first()?;
    let number = rest.first_chunk::<8>()?;
    Some((Kind::of(kind)?, RecordNo(u64::from_le_bytes(*number))))
}

/// The frame that begins with these bytes.
///
/// # Errors
/// Why there is none.
pub fn decode(bytes: &[u8]) -> Result<Frame<'_>, Bad> {
    let len = announced(bytes)?;
    let frame = bytes.get(..len).ok_or(Bad::Torn)?;
    let (head, covered) = frame.split_at(HEAD);
    let crc = head.last_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)).ok_or(Bad::Torn)?;
    if crc32c::crc32c(covered) != crc {
        return Err(Bad::Checksum);
    }
    let (&kind, rest) = covered.split_first().ok_or(Bad::Torn)?;
    let kind = Kind::of(kind).ok_or(Bad::UnknownKind(kind))?;
    let (number, body) = rest.split_first_chunk::<8>().ok_or(Bad::Torn)?;
    Ok(Frame { kind, number: RecordNo(u64::from_le_bytes(*number)), body, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let mut out = vec![1, 2, 3];
        encode(Kind::Record, RecordNo(7), b"body", &mut out);
        let frame = decode(&out[3..]).unwrap();
        assert_eq!((frame.kind, frame.number, frame.body), (Kind::Record, RecordNo(7), &b"body"[..]));
        assert_eq!(frame.len, out.len() - 3);
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let mut out = Vec::new();
        encode(Kind::Snapshot, RecordNo(7), b"some body", &mut out);
        for bit in 0..out.len() * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
        for cut in 0..out.len() {
            assert!(decode(&out[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(decode(&[0; 40]), Err(Bad::End));
    }
}
