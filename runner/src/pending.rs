//! Reads what is pending, so that a look costs what it finds and not what lies there.
//!
//! Context rows never start a turn, and a chat that nobody answers gathers them by the thousand. They are read when
//! something is there that takes them along, once, and without their texts: nearly all are over with that batch.
//!
//! Invariant: the rows come oldest first, and one that can start a turn is among them if there is one.

use lamplighter::session::InboundRow;
use lamplighter::session::runner_side::{ContextRow, InboundReader, OutboundWriter};

use crate::desk::Fault;

/// So many rows that are no context are read at first: more than a turn can take.
const WINDOW: usize = 256;
/// And so many at most, when the first ones hold nothing that can start a turn; also most context rows at once. Bounds
/// memory; such a backlog is none that a host should make.
const WINDOW_MAX: usize = 65_536;

/// A pending row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One that is no context, or is for a first poll.
    Whole(Box<InboundRow>),
    /// One that is context.
    Context(ContextRow),
}

impl Found {
    fn seq(&self) -> Option<i64> {
        match self {
            Self::Whole(row) => row.seq,
            Self::Context(row) => row.seq,
        }
    }
}

/// What is pending and has no ack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Oldest first.
    pub rows: Vec<Found>,
    /// Whether these are all but context rows.
    pub all: bool,
}

/// Reads what is pending. Context is read only when it `takes` a row that `can_start` a turn, and up to the last one.
///
/// # Errors
/// When one of the files is locked or cannot be read.
pub fn read(
    inbound: &mut InboundReader,
    outbound: &OutboundWriter,
    takes: bool,
    can_start: &dyn Fn(&InboundRow) -> bool,
) -> Result<Pending, Fault> {
    let mut limit = WINDOW;
    let rows = loop {
        let rows = unacked(outbound, |hidden| inbound.pending(limit, hidden))?;
        if rows.len() < limit || limit >= WINDOW_MAX || rows.iter().any(can_start) {
            break rows;
        }
        limit = limit.saturating_mul(4).min(WINDOW_MAX);
    };
    let all = rows.len() < limit;
    let last = rows.iter().rev().find(|row| can_start(row)).filter(|_| takes);
    let context = match last {
        Some(last) => unacked(outbound, |hidden| inbound.pending_context(last.seq, WINDOW_MAX, hidden))?,
        None => Vec::new(),
    };
    let mut rows: Vec<Found> = context
        .into_iter()
        .map(Found::Context)
        .chain(rows.into_iter().map(|row| Found::Whole(Box::new(row))))
        .collect();
    rows.sort_by_key(Found::seq);
    Ok(Pending { rows, all })
}

fn unacked<T>(
    outbound: &OutboundWriter,
    read: impl FnOnce(&mut dyn FnMut(&str) -> bool) -> Result<T, lamplighter::session::runner_side::InboundError>,
) -> Result<T, Fault> {
    let mut failed = None;
    let mut is_hidden = |id: &str| {
        outbound.is_acked(id).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            true
        })
    };
    let found = read(&mut is_hidden)?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamplighter::base::Wall;
    use lamplighter::session::SessionFolder;
    use lamplighter::session::schema;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn ids(pending: &Pending) -> Vec<&str> {
        fn id(found: &Found) -> &str {
            match found {
                Found::Whole(row) => &row.id,
                Found::Context(row) => &row.id,
            }
        }
        pending.rows.iter().map(id).collect()
    }

    #[test]
    fn thousands_of_context_rows_are_read_once_and_only_with_a_message_that_takes_them() -> Outcome {
        let root = tempfile::tempdir()?;
        let folder = SessionFolder::flat(root.path());
        let host = rusqlite::Connection::open(folder.inbound_db())?;
        schema::prepare_inbound(&host)?;
        let put = |from: i64, to: i64, trigger: i64| {
            host.execute(
                "WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2)
                 INSERT INTO messages_in (id, seq, kind, timestamp, content, trigger)
                 SELECT 'm' || i, 2 * i, 'chat', 't', '{}', ?3 FROM n",
                [from, to, trigger],
            )
        };
        put(1, 5_000, 0)?;
        let mut inbound =
            InboundReader::new(&folder, lamplighter::session::runner_side::Opening::Kept).brief();
        let mut outbound = OutboundWriter::open(&folder, None)?;
        let any = |_: &InboundRow| true;
        for n in 0..20 {
            put(5_001 + n, 5_001 + n, 0)?;
            assert_eq!(read(&mut inbound, &outbound, true, &any)?.rows.len(), 0);
        }
        assert_eq!(inbound.rows_read(), 0, "a look that finds nothing to do reads no row");
        put(5_021, 5_021, 1)?;
        put(5_022, 5_022, 0)?;
        assert_eq!(ids(&read(&mut inbound, &outbound, false, &any)?), ["m5021"]);
        let found = read(&mut inbound, &outbound, true, &any)?;
        assert_eq!((found.rows.len(), found.all), (5_021, true));
        assert_eq!((ids(&found).first(), ids(&found).last()), (Some(&"m1"), Some(&"m5021")));
        assert_eq!(inbound.rows_read(), 1 + 1 + 5_020);
        let claimed: Vec<String> = ids(&found).into_iter().map(str::to_owned).collect();
        outbound.transaction::<_, Fault>(Wall(0), |tx| Ok(tx.claim(&claimed)?))?;
        assert_eq!(ids(&read(&mut inbound, &outbound, true, &any)?), Vec::<&str>::new());
        Ok(())
    }

    #[test]
    fn rows_that_cannot_start_now_hide_none_that_can() -> Outcome {
        let root = tempfile::tempdir()?;
        let folder = SessionFolder::flat(root.path());
        let host = rusqlite::Connection::open(folder.inbound_db())?;
        schema::prepare_inbound(&host)?;
        host.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
             INSERT INTO messages_in (id, seq, kind, timestamp, content)
             SELECT 'm' || i, 2 * i, 'task', 't', '{}' FROM n",
            [],
        )?;
        let mut inbound = InboundReader::new(&folder, lamplighter::session::runner_side::Opening::Kept);
        let outbound = OutboundWriter::open(&folder, None)?;
        let found = read(&mut inbound, &outbound, true, &|row| row.id == "m500")?;
        assert!(ids(&found).contains(&"m500") && found.all);
        let found = read(&mut inbound, &outbound, true, &|row| row.id == "m2")?;
        assert_eq!((found.rows.len(), found.all), (WINDOW, false));
        Ok(())
    }
}
