//! Reading in order: pages, the cursor, acks and facts, and rows behind a hot journal.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::{ALL, NOW, Outcome, Session, cause, ids, outbound};
use crate::session::host_side::outbound::{Cause, Cursor, Guard, OutboundReader, ReadAsk, recover};
use crate::session::rows::{AckStatus, Fact, ToolInFlight};
use crate::session::runner_side::{OutboundError, OutboundWriter};

#[test]
fn rows_come_in_order_and_in_pages_of_the_size_asked_for() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1", "o2", "o3", "o4", "o5"])?;
    let mut reader = session.reader()?;
    let mut cursor = None;
    let mut pages = Vec::new();
    loop {
        let reading = reader.read(&ReadAsk { cursor: cursor.as_ref(), max_rows: 2, ..ALL })?;
        assert!(!reading.rewound);
        pages.push(ids(&reading).join(" "));
        cursor = reading.cursor.clone();
        if !reading.more {
            break;
        }
    }
    assert_eq!(pages, ["o1 o2", "o3 o4", "o5"]);
    let empty = reader.read(&ReadAsk { cursor: cursor.as_ref(), ..ALL })?;
    assert!(empty.rows.is_empty() && !empty.more && !empty.rewound);
    assert_eq!(empty.cursor, cursor);
    session.answer(&["o6"])?;
    assert_eq!(ids(&reader.read(&ReadAsk { cursor: cursor.as_ref(), ..ALL })?), ["o6"]);
    Ok(())
}

#[test]
fn a_page_ends_at_its_bytes_but_always_holds_a_row() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1", "o2"])?;
    let reading = session.reader()?.read(&ReadAsk { max_bytes: 1, ..ALL })?;
    assert_eq!(ids(&reading), ["o1"]);
    assert!(reading.more);
    Ok(())
}

#[test]
fn a_place_that_carries_another_id_rewinds_to_the_first_row() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1", "o2", "o3"])?;
    let mut reader = session.reader()?;
    let cursor = reader.read(&ALL)?.cursor;
    let agent = session.agent()?;
    // The last two are rolled back or deleted, and their rowids are used again.
    agent.execute_batch("DELETE FROM messages_out WHERE id IN ('o2', 'o3')")?;
    session.answer(&["n2", "n3", "n4"])?;
    let reading = reader.read(&ReadAsk { cursor: cursor.as_ref(), ..ALL })?;
    assert!(reading.rewound);
    assert_eq!(ids(&reading), ["o1", "n2", "n3", "n4"]);
    assert_eq!(reading.cursor, Some(Cursor { rowid: 4, id: "n4".into() }));
    // The remembered row itself is gone and nothing follows it.
    agent.execute_batch("DELETE FROM messages_out")?;
    let reading = reader.read(&ReadAsk { cursor: reading.cursor.as_ref(), ..ALL })?;
    assert!(reading.rewound && reading.rows.is_empty());
    assert_eq!(reading.cursor, None);
    Ok(())
}

#[test]
fn acks_are_looked_up_by_id_and_facts_and_the_tool_come_whole() -> Outcome {
    let session = Session::new()?;
    let mut runner = OutboundWriter::open(&session.folder, None)?;
    let tool = ToolInFlight {
        name: "Bash".into(),
        declared_timeout_ms: Some(90_000),
        started_at: Some("2026-05-18T09:30:00.000Z".into()),
    };
    runner.transaction(NOW, |tx| {
        tx.claim(&["m1", "m2", "m3"])?;
        tx.ack("m1", AckStatus::Completed)?;
        tx.put_state("lamplighter.turn", r#"{"ids":["m2"]}"#)?;
        tx.put_state("continuation:mock", "secret")?;
        tx.set_tool(&tool)?;
        tx.insert(&outbound("o1"), 2)?;
        Ok::<_, OutboundError>(())
    })?;
    let asked = ["m1".to_owned(), "m2".to_owned(), "m9".to_owned()];
    let reading = session.reader()?.read(&ReadAsk { ids: &asked, ..ALL })?;
    let acks: Vec<_> = reading.acks.iter().map(|a| (a.message_id.as_str(), a.status)).collect();
    assert_eq!(acks, [("m1", AckStatus::Completed), ("m2", AckStatus::Processing)]);
    assert_eq!(reading.acks.first().map(|a| a.status_changed.as_str()), Some("2026-05-18 09:30:00"));
    let turn = Fact { key: "lamplighter.turn".into(), value: r#"{"ids":["m2"]}"#.into() };
    assert_eq!(reading.facts, [turn]);
    assert_eq!(reading.tool, Some(tool));
    assert!(reading.complaints.is_empty());
    Ok(())
}

#[test]
fn a_file_without_the_two_tables_that_a_runner_makes_is_read() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    session.agent()?.execute_batch("DROP TABLE session_state; DROP TABLE container_state")?;
    assert_eq!(ids(&session.reader()?.read(&ALL)?), ["o1"]);
    Ok(())
}

#[test]
fn one_row_is_read_again_only_when_place_and_id_agree() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1", "o2"])?;
    let mut reader = session.reader()?;
    assert_eq!(reader.read_body(2, "o2")?.as_ref().map(|row| row.rowid()), Some(2));
    assert_eq!(reader.read_body(1, "o2")?, None);
    assert_eq!(reader.read_body(3, "o3")?, None);
    Ok(())
}

/// Leaves what a runner leaves that is killed in mid-commit: pages of an open transaction in the file, and a
/// journal that undoes them. The files are copied while the transaction is open, so the copies have no living
/// writer.
fn leave_hot_journal(session: &Session) -> Outcome {
    let path = session.folder.outbound_db();
    let writer = Connection::open(&path)?;
    writer.execute_batch(
        "PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN IMMEDIATE;
         UPDATE messages_out SET content = 'torn';
         WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 500)
         INSERT INTO messages_out (id, timestamp, kind, content)
           SELECT 'lost' || x, 't', 'chat', printf('%.*c', 500, 'x') FROM n;",
    )?;
    let aside = session.temp.path().join("killed.db");
    let journal = session.folder.outbound_journal();
    assert!(journal.exists(), "the transaction did not reach the disk");
    let journal_bytes = fs::read(&journal)?;
    fs::copy(&path, &aside)?;
    drop(writer);
    fs::rename(&aside, &path)?;
    fs::write(&journal, journal_bytes)?;
    Ok(())
}

fn names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        all.push(entry?.file_name().to_string_lossy().into_owned());
    }
    all.sort();
    Ok(all)
}

#[test]
fn behind_a_hot_journal_rows_are_read_from_a_copy_and_the_original_stays() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1", "o2"])?;
    leave_hot_journal(&session)?;
    assert_eq!(cause(&session)?, Some(Cause::HotJournal));
    let before = (fs::read(session.folder.outbound_db())?, fs::read(session.folder.outbound_journal())?);

    let into = session.temp.path().canonicalize()?.join("recover");
    let mut copy = recover(&Session::name()?, &session.folder, &into, Guard::default())?;
    let reading = copy.read(&ALL)?;
    assert_eq!(ids(&reading), ["o1", "o2"]);
    assert!(super::faults(&reading).iter().all(|why| why.is_empty()));
    let after = (fs::read(session.folder.outbound_db())?, fs::read(session.folder.outbound_journal())?);
    assert_eq!(after, before);

    // The next runner rolls the original back, and the cursor of the copy holds there.
    session.answer(&["o3"])?;
    let rest = session.reader()?.read(&ReadAsk { cursor: reading.cursor.as_ref(), ..ALL })?;
    assert!(!rest.rewound);
    assert_eq!(ids(&rest), ["o3"]);
    Ok(())
}

#[test]
fn a_copy_without_a_journal_is_read_as_it_is() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    let into = session.temp.path().canonicalize()?.join("recover");
    let mut copy = recover(&Session::name()?, &session.folder, &into, Guard::default())?;
    assert_eq!(ids(&copy.read(&ALL)?), ["o1"]);
    assert_eq!(names(&into)?, ["outbound.db"]);
    Ok(())
}

#[test]
fn a_journal_that_names_a_super_journal_is_refused() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    leave_hot_journal(&session)?;
    let mut journal = fs::read(session.folder.outbound_journal())?;
    let magic = journal.get(..8).ok_or("no header")?.to_vec();
    journal.extend(b"/tmp/victim");
    journal.extend([0; 8]);
    journal.extend(magic);
    fs::write(session.folder.outbound_journal(), journal)?;
    let into = session.temp.path().canonicalize()?.join("recover");
    let refused = recover(&Session::name()?, &session.folder, &into, Guard::default());
    assert_eq!(refused.err().map(|e| e.cause), Some(Cause::SuperJournal));
    Ok(())
}

#[test]
fn what_is_copied_for_a_recovery_is_judged_like_what_is_read() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    leave_hot_journal(&session)?;
    let into = session.temp.path().canonicalize()?.join("recover");
    let small = Guard { max_bytes: 4_096, ..Guard::default() };
    let refused = recover(&Session::name()?, &session.folder, &into, small);
    assert!(matches!(refused.err().map(|e| e.cause), Some(Cause::TooLarge { .. })));
    fs::remove_file(session.folder.outbound_journal())?;
    std::os::unix::fs::symlink("/etc/passwd", session.folder.outbound_journal())?;
    fs::remove_dir_all(&into)?;
    let refused = recover(&Session::name()?, &session.folder, &into, Guard::default());
    assert!(matches!(refused.err().map(|e| e.cause), Some(Cause::NotAFile { .. })));
    Ok(())
}

#[test]
fn a_reader_sees_every_row_of_a_writer_that_never_pauses() -> Outcome {
    let session = Session::new()?;
    let mut runner = OutboundWriter::open(&session.folder, None)?;
    let writer = std::thread::spawn(move || {
        for n in 0..300 {
            runner.transaction(NOW, |tx| tx.insert(&outbound(&format!("o{n}")), 0))?;
        }
        Ok::<_, OutboundError>(())
    });
    let mut reader: OutboundReader = session.reader()?;
    let mut cursor: Option<Cursor> = None;
    let mut seen = 0;
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while seen < 300 && std::time::Instant::now() < give_up {
        match reader.read(&ReadAsk { cursor: cursor.as_ref(), ..ALL }) {
            Ok(reading) => {
                assert!(!reading.rewound);
                seen += reading.rows.len();
                cursor = reading.cursor;
            }
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    writer.join().map_err(|_| "the writer panicked")??;
    assert_eq!(seen, 300);
    Ok(())
}
