//! Records as bytes. The only file that names the codec, so that it can be replaced: a segment names the
//! schema of its records, and [`decode_record`] is the one place where an older schema is brought up to date.
//!
//! Body of a record frame: `synced_through` (u64, little endian, so that recovery reads it without a
//! decoder), then number, at, outcome, input, effects, touched, root, each in the codec's form.
//!
//! Invariant: whatever the bytes, decoding gives a record or a typed error; it never panics and never takes
//! more memory than a small multiple of the body.

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

use super::wire::{Mirror, WireError};
use crate::base::{At, RecordNo};
use crate::machine::effect::Effect;
use crate::machine::input::Input;
use crate::machine::state::ComponentId;

/// The form of records and snapshots that this build writes. Raised when a change is more than a variant at the
/// end: see [`wire`](super::wire).
pub const RECORD_SCHEMA: u32 = 1;

/// How digests are made. Raised whenever a component's wire form changes at all; segments of another digest
/// schema are replayed with effects compared and digests not.
pub const DIGEST_SCHEMA: u32 = 1;

/// The largest body of one frame, in bytes. The widest step is a boot, which touches every component: about
/// 100,000 of them fit.
pub const BODY_MAX: usize = 4 << 20;

/// What decoding may claim. The codec counts numbers by their size in memory, up to eight bytes for one on
/// disk.
const CLAIM_MAX: usize = 8 * BODY_MAX;

/// Bytes of `synced_through` at the start of a body.
const SYNCED_BYTES: usize = size_of::<u64>();

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The machine took the input.
    Stepped,
    /// The machine panicked over it; the record has no effects and the state before it stands.
    Panicked,
}

/// One record of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub number: RecordNo,
    /// When the input was taken, in machine time.
    pub at: At,
    /// How the step ended.
    pub outcome: Outcome,
    /// What happened.
    pub input: Input,
    /// What was to be done about it.
    pub effects: Vec<Effect>,
    /// The components that may have changed, with their digests afterwards; 0 for one that is gone.
    pub touched: Vec<(ComponentId, u64)>,
    /// The digest of the whole state afterwards.
    pub root: u64,
    /// All records up to this one were durable when this one was made; 0 when none were.
    pub synced_through: RecordNo,
}

/// Why a record or a snapshot could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It was written by another version.
    #[error("its record schema is {found}; this build reads schema {RECORD_SCHEMA}")]
    Schema {
        /// The schema that the segment names.
        found: u32,
    },
    /// Its bytes do not hold what they should.
    #[error("{what} cannot be decoded: {why}")]
    Damaged {
        /// Which part.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It holds a value that cannot be.
    #[error(transparent)]
    Value(#[from] WireError),
    /// It does not fit into a frame.
    #[error("record {number} has {bytes} bytes, more than the {BODY_MAX} that a frame may have")]
    TooLarge {
        /// The record.
        number: RecordNo,
        /// The size of its body.
        bytes: usize,
    },
}

impl RecordError {
    /// The way out.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Schema { found } if *found > RECORD_SCHEMA => {
                "it was written by a newer lamplighter; upgrade, or use the build that its header names"
            }
            Self::Schema { .. } => "replay it with the build that its header names",
            Self::Damaged { .. } | Self::Value(_) => {
                "`lamplighter journal check` says how much of the file is whole; `journal repair` salvages it"
            }
            Self::TooLarge { .. } => {
                "one input touched too much at once; split the data folder's sessions over two daemons"
            }
        }
    }
}

/// A record that is about to be written, by reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft<'a> {
    pub number: RecordNo,
    pub at: At,
    pub outcome: Outcome,
    /// The input, already encoded: the step has consumed it.
    pub input: &'a [u8],
    pub effects: &'a [Effect],
    pub touched: &'a [(ComponentId, u64)],
    pub root: u64,
    pub synced_through: RecordNo,
}

/// Writes a record's body into `out`, which is cleared first.
///
/// # Errors
/// When it does not fit into a frame.
pub(crate) fn encode_draft(draft: &Draft<'_>, out: &mut Vec<u8>) -> Result<(), RecordError> {
    out.clear();
    out.extend_from_slice(&draft.synced_through.0.to_le_bytes());
    put(out, &(draft.number.to_wire(), draft.at.to_wire(), draft.outcome.to_wire()));
    out.extend_from_slice(draft.input);
    put(out, &Each(draft.effects));
    put(out, &Each(draft.touched));
    put(out, &draft.root);
    if out.len() > BODY_MAX {
        return Err(RecordError::TooLarge { number: draft.number, bytes: out.len() });
    }
    Ok(())
}

/// Writes a record's body into `out`, which is cleared first.
///
/// # Errors
/// When it does not fit into a frame.
pub fn encode_record(record: &Record, out: &mut Vec<u8>) -> Result<(), RecordError> {
    let mut input = Vec::new();
    put(&mut input, &record.input.to_wire());
    let draft = Draft {
        number: record.number,
        at: record.at,
        outcome: record.outcome,
        input: &input,
        effects: &record.effects,
        touched: &record.touched,
        root: record.root,
        synced_through: record.synced_through,
    };
    encode_draft(&draft, out)
}

/// Reads a record from the body of its frame. `schema` is what the segment's header names.
///
/// # Errors
/// When the schema is not known, or the bytes do not hold a record of it.
pub fn decode_record(schema: u32, body: &[u8]) -> Result<Record, RecordError> {
    match upcast(schema)? {
        Schema::V1 => decode_v1(body),
    }
}

/// The schemas that can be read. An older one gets an arm in [`decode_record`] that reads its own wire types
/// and turns them into today's.
pub(crate) enum Schema {
    /// The first.
    V1,
}

/// Whether every schema from the first to the one that this build writes can be read. A start refuses a build with a
/// gap: it would write what a later start cannot lead on from.
///
/// # Errors
/// The first schema that cannot be read.
pub fn check_schemas() -> Result<(), RecordError> {
    (1..=RECORD_SCHEMA).try_for_each(|schema| upcast(schema).map(drop))
}

/// The choke point of versions: what `schema` is called here.
pub(crate) fn upcast(schema: u32) -> Result<Schema, RecordError> {
    match schema {
        1 => Ok(Schema::V1),
        found => Err(RecordError::Schema { found }),
    }
}

fn decode_v1(body: &[u8]) -> Result<Record, RecordError> {
    let synced = body.first_chunk::<SYNCED_BYTES>().ok_or_else(|| RecordError::Damaged {
        what: "a record",
        why: format!("{} bytes are too few", body.len()),
    })?;
    let mut rest = &body[SYNCED_BYTES..];
    let number = take(&mut rest, "a record's number")?;
    let at = take(&mut rest, "a record's time")?;
    let outcome = take(&mut rest, "a record's outcome")?;
    let input = take(&mut rest, "a record's input")?;
    let effects = take(&mut rest, "a record's effects")?;
    let touched = take(&mut rest, "a record's digests")?;
    let root = take(&mut rest, "a record's root")?;
    if !rest.is_empty() {
        return Err(RecordError::Damaged {
            what: "a record",
            why: format!("{} bytes are left over", rest.len()),
        });
    }
    let synced_through = RecordNo(u64::from_le_bytes(*synced));
    Ok(Record { number, at, outcome, input, effects, touched, root, synced_through })
}

/// `synced_through` of a record's body, without decoding the rest; none when the body is too short for one.
pub fn synced_through(body: &[u8]) -> Option<RecordNo> {
    body.first_chunk::<SYNCED_BYTES>().map(|bytes| RecordNo(u64::from_le_bytes(*bytes)))
}

/// Encodes each item as its wire form without a list of wire forms in between; decodes as a `Vec` of them.
struct Each<'a, T>(&'a [T]);

impl<T: Mirror> Serialize for Each<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(T::to_wire))
    }
}

/// Appends the codec's form of `value`.
pub(crate) fn put<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    // Memory takes every byte and all lengths are known beforehand, so the codec has no way to fail here.
    let done = bincode::serde::encode_into_std_write(value, out, codec());
    debug_assert!(done.is_ok(), "encoding into memory failed: {done:?}");
}

/// Takes one value off the front of `bytes`.
pub(crate) fn take<T: Mirror + 'static>(bytes: &mut &[u8], what: &'static str) -> Result<T, RecordError> {
    let wire = take_wire::<T::Wire<'static>>(bytes, what)?;
    Ok(T::from_wire(wire)?)
}

/// Takes one wire value off the front of `bytes`.
pub(crate) fn take_wire<W: DeserializeOwned>(
    bytes: &mut &[u8],
    what: &'static str,
) -> Result<W, RecordError> {
    let (wire, used) = bincode::serde::decode_from_slice::<W, _>(bytes, codec())
        .map_err(|error| RecordError::Damaged { what, why: error.to_string() })?;
    *bytes = bytes.get(used..).unwrap_or_default();
    Ok(wire)
}

fn codec() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<CLAIM_MAX>,
> {
    bincode::config::standard().with_limit::<CLAIM_MAX>()
}
