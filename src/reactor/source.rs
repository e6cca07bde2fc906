//! Where readings come from: the port between the read pool and the outbound reader of the session layer.
//!
//! Invariant: a reader that returned anything but rows or "busy" is dropped before its result is reported, so
//! that whoever hears of a hot journal may copy the files: no descriptor of this process is open on them.

use std::sync::Arc;

use crate::base::SessionName;
use crate::session::SessionFolder;
use crate::session::host_side::{Cursor, Guard, OutboundReader, ReadAsk, Reading, Unreadable};

/// Most bytes of rows that one read returns: 256 KiB keep a read short, one longer row is returned alone.
pub const MAX_READ_BYTES: usize = 256 * 1024;
/// Most rows of one session in the machine, and so of one read (design 2, rule 10).
pub const MAX_ROOM: u32 = 256;

/// What to read of a session next. The owner makes a new one from each result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadPlan {
    /// Rows after this one; `None` reads from the first.
    pub cursor: Option<Cursor>,
    /// The inbound messages whose acks are wanted.
    pub ids: Arc<[String]>,
    /// How many more rows the machine will take, at most [`MAX_ROOM`]. With 0 no rows are returned, acks and
    /// facts still are.
    pub room: u32,
}

impl ReadPlan {
    /// Whether this plan asks for an ack that the other one did not ask for.
    pub(super) fn asks_more_than(&self, other: &Self) -> bool {
        !Arc::ptr_eq(&self.ids, &other.ids) && self.ids.iter().any(|id| !other.ids.contains(id))
    }
}

/// Opens readers.
pub trait ReadSource: Send + Sync {
    /// A reader of one session. Does not block; the first read opens the file.
    fn open(&self, session: &SessionName, folder: &SessionFolder) -> Box<dyn OpenReader>;
}

/// Reads one session. May be kept between reads and moved between threads.
pub trait OpenReader: Send {
    /// Reads what the plan asks for. Waits at most some 10 ms for a lock.
    ///
    /// # Errors
    /// As the outbound reader has them.
    fn read(&mut self, plan: &ReadPlan) -> Result<Reading, Unreadable>;
}

/// The real source.
#[derive(Clone, Copy, Debug, Default)]
pub struct SqliteSource {
    /// What every outbound.db must be like.
    pub guard: Guard,
}

impl ReadSource for SqliteSource {
    fn open(&self, session: &SessionName, folder: &SessionFolder) -> Box<dyn OpenReader> {
        Box::new(OutboundReader::new(session.clone(), folder, self.guard))
    }
}

impl OpenReader for OutboundReader {
    fn read(&mut self, plan: &ReadPlan) -> Result<Reading, Unreadable> {
        let ask = ReadAsk {
            cursor: plan.cursor.as_ref(),
            ids: &plan.ids,
            max_rows: plan.room.clamp(1, MAX_ROOM) as usize,
            max_bytes: MAX_READ_BYTES,
        };
        let mut reading = OutboundReader::read(self, &ask)?;
        if plan.room == 0 {
            withhold_rows(&mut reading, plan);
        }
        Ok(reading)
    }
}

/// Makes a reading one that saw no rows; the next one sees them.
fn withhold_rows(reading: &mut Reading, plan: &ReadPlan) {
    reading.more |= !reading.rows.is_empty();
    reading.rows.clear();
    reading.rewound = false;
    reading.cursor.clone_from(&plan.cursor);
}

/// What the schedule needs to know of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// So many rows were returned, and whether more wait.
    Done {
        /// Rows returned.
        rows: u32,
        /// Whether more wait in the file.
        more: bool,
    },
    /// The file is locked, or was replaced while it was opened: worth another try at once.
    Busy,
    /// Anything else.
    Failed,
}

impl Outcome {
    /// The outcome of a result.
    pub(super) fn of(result: &Result<Reading, Unreadable>) -> Self {
        match result {
            Ok(reading) => {
                Self::Done { rows: u32::try_from(reading.rows.len()).unwrap_or(u32::MAX), more: reading.more }
            }
            Err(unreadable) if unreadable.is_transient() => Self::Busy,
            Err(_) => Self::Failed,
        }
    }
}
