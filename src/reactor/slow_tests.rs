//! Folders whose reads take longer than their budget, beside one that is read as usual: real files and a real watcher,
//! and a gate before each read of the slow ones, so that what is compared is order and never time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use rusqlite::Connection;

use super::source::OpenReader;
use super::tests::{Bench, Tested, events_only, from_start, name, ticket, write};
use super::*;
use crate::session::host_side::{Cause, Guard, Reading, Unreadable};

/// Sessions up to this number are slow.
const SLOW: u32 = 3;
const GOOD: SessionNo = SessionNo(9);

/// Lets a read of a slow session begin only with a token.
struct Gated {
    real: SqliteSource,
    tokens: Receiver<()>,
    entered: Arc<AtomicUsize>,
}

struct GatedReader {
    real: Box<dyn OpenReader>,
    gate: Option<(Receiver<()>, Arc<AtomicUsize>)>,
}

impl ReadSource for Gated {
    fn open(&self, session: &SessionName, folder: &SessionFolder) -> Box<dyn OpenReader> {
        let slow = (1..=SLOW).any(|no| name(SessionNo(no)).is_ok_and(|name| name == *session));
        let gate = slow.then(|| (self.tokens.clone(), Arc::clone(&self.entered)));
        Box::new(GatedReader { real: self.real.open(session, folder), gate })
    }
}

impl OpenReader for GatedReader {
    fn read(&mut self, plan: &ReadPlan) -> Result<Reading, Unreadable> {
        if let Some((tokens, entered)) = &self.gate {
            entered.fetch_add(1, Ordering::SeqCst);
            // The test has ended when nobody hands out tokens any more.
            let _ = tokens.recv();
        }
        self.real.read(plan)
    }
}

/// Without an index each look-up of an ack walks through the whole table.
fn make_slow(folder: &SessionFolder) -> rusqlite::Result<()> {
    Connection::open(folder.outbound_db())?.execute_batch(
        "DROP TABLE processing_ack;
         CREATE TABLE processing_ack (message_id TEXT, status TEXT, status_changed TEXT);
         WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 50000)
         INSERT INTO processing_ack SELECT 'm' || x, 'processing', 't' FROM n;",
    )
}

type Gates = (Bench, Sender<()>, Arc<AtomicUsize>);

fn gated() -> Result<Gates, Box<dyn std::error::Error>> {
    let (token, tokens) = unbounded();
    let entered = Arc::new(AtomicUsize::new(0));
    let guard = Guard { budget: Duration::from_millis(50), ..Guard::default() };
    let source = Gated { real: SqliteSource::new(move || guard), tokens, entered: Arc::clone(&entered) };
    let bench = Bench::with(events_only(), Arc::new(source), watch::notify_maker())?;
    Ok((bench, token, entered))
}

#[test]
fn slow_folders_hold_one_thread_and_everybody_else_is_read_meanwhile() -> Tested {
    let (bench, token, entered) = gated()?;
    let ids: Arc<[String]> = (0..100_000).map(|n| format!("x{n}")).collect();
    let plan = ReadPlan { ids, ..from_start() };
    for no in (1..=SLOW).map(SessionNo) {
        let folder = bench.folder(no)?;
        make_slow(&folder)?;
        token.send(())?;
        bench.reactor.live(no, name(no)?, &folder, plan.clone());
        let cause = bench.wait_for(|event| match event {
            ReactorEvent::Read { session, result: Err(error), .. } if session == no => Some(error.cause),
            _ => None,
        })?;
        assert_eq!(cause, Cause::Slow);
        bench.reactor.settled(no, plan.clone());
    }
    let scans = entered.load(Ordering::SeqCst);
    let folder = bench.folder(GOOD)?;
    bench.live(GOOD, &folder)?;
    let db = Connection::open(folder.outbound_db())?;
    for no in (1..=SLOW).map(SessionNo) {
        bench.reactor.look(no, ticket(no.0.into()))?;
    }
    // A read of one of them stands at the gate, and whatever is written elsewhere is read.
    for n in 0..20 {
        write(&db, &format!("m{n}"))?;
        bench.rows(GOOD, 1)?;
    }
    bench.until("read slowly", |_| entered.load(Ordering::SeqCst) > scans)?;
    write(&db, "last")?;
    bench.rows(GOOD, 1)?;
    assert_eq!(entered.load(Ordering::SeqCst), scans + 1, "one slow read is under way");
    // All of them get their turn.
    for _ in 1..=SLOW {
        token.send(())?;
        let cause = bench.wait_for(|event| match event {
            ReactorEvent::Looked { result: Err(error), .. } => Some(error.cause),
            _ => None,
        })?;
        assert_eq!(cause, Cause::Slow);
    }
    Ok(())
}
