//! Where readings come from: the port between the read pool and the outbound reader of the session layer.
//!
//! Invariant: a reader that returned anything but rows or "busy" is dropped before its result is reported, so
//! that whoever hears of a hot journal may copy the files: no descriptor of this process is open on them.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::base::SessionName;
use crate::session::SessionFolder;
use crate::session::host_side::{Cause, Cursor, Guard, OutboundReader, ReadAsk, Reading, Unreadable};

/// Most bytes of rows that one read returns. Everything that agents usually say fits, so that a burst of replies costs
/// one read; and the pool's threads hold less than half a MiB of texts besides a long row. A row may have 1 MiB: one
/// that exceeds the bound is returned alone, so no row is too long to be read and no larger bound is needed for it.
pub const MAX_READ_BYTES: usize = 256 * 1024;
/// Most rows of one session in the machine, and so of one read (design 2, rule 10).
pub const MAX_ROOM: u32 = 256;

/// What to read of a session next. The owner makes a new one from each result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadPlan {
    /// Rows after this one; `None` reads from the first.
    pub cursor: Option<Cursor>,
    /// The inbound messages whose acks are wanted, in ascending order.
    pub ids: Arc<[String]>,
    /// How many more rows the machine will take, at most [`MAX_ROOM`]. With 0 no rows are returned, acks and
    /// facts still are.
    pub room: u32,
}

impl ReadPlan {
    /// Whether this plan asks for an ack that the other one did not ask for.
    pub(super) fn asks_more_than(&self, other: &Self) -> bool {
        !Arc::ptr_eq(&self.ids, &other.ids) && has_more(&self.ids, &other.ids, String::cmp)
    }
}

/// Whether there is anything in `these` that is not in `those`; both in ascending order. Walks both once: it is
/// asked on the loop, of sessions with thousands of messages.
fn has_more<T>(these: &[T], those: &[T], compare: impl Fn(&T, &T) -> Ordering) -> bool {
    let mut rest = those.iter().peekable();
    for this in these {
        loop {
            match rest.peek().map(|that| compare(that, this)) {
                Some(Ordering::Less) => drop(rest.next()),
                Some(Ordering::Equal) => break,
                Some(Ordering::Greater) | None => return true,
            }
        }
    }
    false
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
pub struct SqliteSource {
    guard: Box<dyn Fn() -> Guard + Send + Sync>,
}

impl SqliteSource {
    /// `guard` says what every outbound.db must be like, each time that one is opened.
    pub fn new(guard: impl Fn() -> Guard + Send + Sync + 'static) -> Self {
        Self { guard: Box::new(guard) }
    }
}

impl Default for SqliteSource {
    fn default() -> Self {
        Self::new(Guard::default)
    }
}

impl ReadSource for SqliteSource {
    fn open(&self, session: &SessionName, folder: &SessionFolder) -> Box<dyn OpenReader> {
        Box::new(OutboundReader::new(session.clone(), folder, (self.guard)()))
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
    /// It took longer than its budget, so a thread was held for all of it.
    Slow,
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
            Err(unreadable) if unreadable.cause == Cause::Slow => Self::Slow,
            Err(_) => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn plan(ids: impl IntoIterator<Item = u32>) -> ReadPlan {
        ReadPlan { ids: ids.into_iter().map(|n| format!("{n:08}")).collect(), ..ReadPlan::default() }
    }

    #[test]
    fn a_plan_asks_for_more_when_any_id_is_new() {
        let all: Vec<u32> = (0..40).collect();
        assert!(!plan(all.clone()).asks_more_than(&plan(all.clone())));
        for new in 0..40 {
            let without = || all.iter().copied().filter(|n| *n != new);
            assert!(plan(all.clone()).asks_more_than(&plan(without())), "{new} is new");
            assert!(!plan(without()).asks_more_than(&plan(all.clone())), "{new} is gone");
        }
        assert!(plan([1]).asks_more_than(&plan([])));
        assert!(!plan([]).asks_more_than(&plan([1])));
    }

    #[test]
    fn comparing_two_plans_walks_each_of_them_once() {
        let compared = Cell::new(0);
        let count = |a: &u32, b: &u32| {
            compared.set(compared.get() + 1);
            a.cmp(b)
        };
        let (these, those): (Vec<u32>, Vec<u32>) = ((0..4_096).collect(), (0..8_192).collect());
        assert!(!has_more(&these, &those, count));
        assert!(compared.get() <= these.len() + those.len(), "{} comparisons", compared.get());
        compared.set(0);
        let odd: Vec<u32> = (0..8_192).filter(|n| n % 2 == 1).collect();
        assert!(!has_more(&odd, &those, count));
        assert!(compared.get() <= odd.len() + those.len(), "{} comparisons", compared.get());
    }
}
