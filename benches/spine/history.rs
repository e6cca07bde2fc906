//! What one event costs beside a short and a long history: a new row of a session that has said much, read by the
//! reader's kept connection. The floor asks for the row alone.

use std::path::Path;
use std::time::{Duration, Instant};

use lamplighter::base::SessionName;
use lamplighter::session::SessionFolder;
use lamplighter::session::host_side::{Cursor, Guard, OutboundReader, ReadAsk};
use rusqlite::Connection;

use super::{PER_ROUND, ROUNDS, floor_connection, insert_out, percentile, row, session, writer};

/// Rows that a session has said before, and messages that it has worked on.
const HISTORIES: [usize; 3] = [0, 1_000, 100_000];
/// Open messages whose acks are looked up in each read.
const OPEN: usize = 10;

struct Side {
    db: Connection,
    folder: SessionFolder,
    said: usize,
}

fn side(root: &Path, name: &str, history: usize) -> Side {
    let folder = session(root, name);
    let db = writer(&folder.outbound_db());
    db.execute_batch("BEGIN").unwrap();
    for n in 0..history {
        insert_out(&db, n);
        db.prepare_cached("INSERT INTO processing_ack VALUES (?1, 'completed', datetime('now'))")
            .unwrap()
            .execute([format!("i{n}")])
            .unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    Side { db, folder, said: history }
}

impl Side {
    fn say(&mut self) {
        insert_out(&self.db, self.said);
        self.said += 1;
    }
}

struct Pair {
    ours: Side,
    reader: OutboundReader,
    cursor: Option<Cursor>,
    floor: Side,
    kept: Connection,
    last: i64,
    times: [Vec<Duration>; 2],
}

pub fn history() {
    let root = tempfile::tempdir_in(".").unwrap();
    // No part of the path may be a link.
    let path = root.path().canonicalize().unwrap();
    let open: Vec<String> = (0..OPEN).map(|n| format!("open{n}")).collect();
    let mut pairs: Vec<Pair> = HISTORIES
        .iter()
        .map(|&history| {
            let ours = side(&path, &format!("ours{history}"), history);
            let floor = side(&path, &format!("floor{history}"), history);
            let name = SessionName::new("agent", format!("ours{history}")).unwrap();
            let reader = OutboundReader::new(name, &ours.folder, Guard::default());
            let kept = floor_connection(&floor.folder.outbound_db());
            let last = i64::try_from(history).unwrap();
            // Where a reader of all of it would stand.
            let cursor = history.checked_sub(1).map(|n| Cursor { rowid: last, id: format!("m{n}") });
            Pair { ours, reader, cursor, floor, kept, last, times: Default::default() }
        })
        .collect();
    // One event of each in turn, so that whatever disturbs the machine disturbs all of them.
    for n in 0..=ROUNDS * PER_ROUND {
        for it in &mut pairs {
            it.ours.say();
            let ask = ReadAsk { cursor: it.cursor.as_ref(), ids: &open, max_rows: 256, max_bytes: 1 << 18 };
            let begun = Instant::now();
            let reading = it.reader.read(&ask).unwrap();
            let ours = begun.elapsed();
            assert!(reading.rows.len() == 1 && !reading.rewound, "{} rows", reading.rows.len());
            it.cursor = reading.cursor;
            it.floor.say();
            let begun = Instant::now();
            let rows: Vec<(i64, String, String)> = it
                .kept
                .prepare_cached("SELECT rowid, id, content FROM messages_out WHERE rowid > ?1 ORDER BY rowid")
                .unwrap()
                .query_map([it.last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            let floor = begun.elapsed();
            assert_eq!(rows.len(), 1);
            it.last = rows[0].0;
            // The first of each opens its connection.
            if n > 0 {
                it.times[0].push(ours);
                it.times[1].push(floor);
            }
        }
    }
    let mut first = None;
    for (history, it) in HISTORIES.iter().zip(&mut pairs) {
        let [ours, floor] = &mut it.times;
        let (ours, floor) = (percentile(ours, 50), percentile(floor, 50));
        row(&format!("one event, {history} rows of history, p50"), ours, floor, "us");
        let (base, base_floor) = *first.get_or_insert((ours, floor));
        if *history > 0 {
            let name = format!("{history} rows of history / none");
            println!("{name:<44} {:>9.2}x   {:>9.2}x   (target 1.10)", ours / base, floor / base_floor);
        }
    }
}
