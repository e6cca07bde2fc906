//! What a hostile agent may do to its outbound.db. Every case must end, with the right cause, and without
//! following, changing or waiting for anything.

use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};

use super::{ALL, Outcome, Session, cause, faults, ids, read_or_hang};
use crate::session::host_side::outbound::{Cause, Guard, Kind, OutboundReader, Owner, ReadAsk};

fn not_a_file(file: &str, kind: Kind) -> Option<Cause> {
    Some(Cause::NotAFile { file: file.into(), kind })
}

fn make_node(path: &Path, kind: FileType, device: u64) -> rustix::io::Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device)
}

#[test]
fn a_link_in_place_of_the_database_is_refused() -> Outcome {
    let session = Session::new()?;
    let elsewhere = session.root.join("elsewhere.db");
    fs::rename(session.folder.outbound_db(), &elsewhere)?;
    symlink(&elsewhere, session.folder.outbound_db())?;
    assert_eq!(cause(&session)?, not_a_file("outbound.db", Kind::Link));
    Ok(())
}

#[test]
fn a_pipe_a_folder_or_a_device_in_place_of_the_database_is_refused() -> Outcome {
    let session = Session::new()?;
    let path = session.folder.outbound_db();
    fs::remove_file(&path)?;
    make_node(&path, FileType::Fifo, 0)?;
    assert_eq!(cause(&session)?, not_a_file("outbound.db", Kind::Fifo));
    fs::remove_file(&path)?;
    fs::create_dir(&path)?;
    assert_eq!(cause(&session)?, not_a_file("outbound.db", Kind::Folder));
    fs::remove_dir(&path)?;
    // Only root may make a device; without one there is nothing to test.
    if make_node(&path, FileType::CharacterDevice, rustix::fs::makedev(1, 3)).is_ok() {
        assert_eq!(cause(&session)?, not_a_file("outbound.db", Kind::Device));
    }
    Ok(())
}

#[test]
fn a_pipe_a_link_or_a_folder_in_place_of_the_journal_ends_at_once() -> Outcome {
    let session = Session::new()?;
    let journal = session.folder.outbound_journal();
    make_node(&journal, FileType::Fifo, 0)?;
    assert_eq!(cause(&session)?, not_a_file("outbound.db-journal", Kind::Fifo));
    fs::remove_file(&journal)?;
    symlink("/dev/zero", &journal)?;
    assert_eq!(cause(&session)?, not_a_file("outbound.db-journal", Kind::Link));
    fs::remove_file(&journal)?;
    fs::create_dir(&journal)?;
    assert_eq!(cause(&session)?, not_a_file("outbound.db-journal", Kind::Folder));
    Ok(())
}

#[test]
fn a_pipe_put_in_place_of_the_journal_of_a_kept_connection_ends_at_once() -> Outcome {
    let session = Session::new()?;
    let mut reader = session.reader()?;
    reader.read(&ALL)?;
    make_node(&session.folder.outbound_journal(), FileType::Fifo, 0)?;
    let (_, reading) = read_or_hang(reader)?;
    assert_eq!(reading.err().map(|e| e.cause), not_a_file("outbound.db-journal", Kind::Fifo));
    Ok(())
}

#[test]
fn shared_memory_and_log_files_are_never_opened() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    for name in ["outbound.db-shm", "outbound.db-wal"] {
        let path = session.folder.out_dir().join(name);
        make_node(&path, FileType::Fifo, 0)?;
        super::super::install_guards()?;
        let opened = rusqlite::Connection::open(&path).and_then(|db| db.execute_batch("SELECT 1 FROM x"));
        assert!(opened.is_err(), "{name}");
    }
    assert_eq!(cause(&session)?, None);
    Ok(())
}

#[test]
fn a_file_of_a_stranger_is_refused_and_one_of_the_containers_user_is_read() -> Outcome {
    let session = Session::new()?;
    // Only root may give files away.
    if chown(session.folder.outbound_db(), Some(12_345), None).is_err() {
        return Ok(());
    }
    for (owner, expected) in [(54_321, Some(Cause::WrongOwner { found: 12_345 })), (12_345, None)] {
        let guard = Guard { owner: Owner::User(owner), ..Guard::default() };
        let reader = OutboundReader::new(Session::name()?, &session.folder, guard);
        let (_, reading) = read_or_hang(reader)?;
        assert_eq!(reading.err().map(|e| e.cause), expected);
    }
    Ok(())
}

#[test]
fn an_oversized_sparse_file_is_refused_by_its_size() -> Outcome {
    let session = Session::new()?;
    File::options().write(true).open(session.folder.outbound_db())?.set_len(1 << 40)?;
    assert_eq!(cause(&session)?, Some(Cause::TooLarge { bytes: 1 << 40, allowed: 1 << 30 }));
    Ok(())
}

#[test]
fn a_view_a_trigger_or_a_virtual_table_behind_an_expected_name_is_refused() -> Outcome {
    for (sql, what) in [
        (
            "ALTER TABLE messages_out RENAME TO real; CREATE VIEW messages_out AS SELECT * FROM real",
            "messages_out is a view",
        ),
        (
            "CREATE TRIGGER processing_ack AFTER INSERT ON messages_out BEGIN SELECT 1; END",
            "processing_ack is a trigger",
        ),
        (
            // Written into the schema: this build has no module that could make one.
            "DROP TABLE session_state; PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES \
             ('table', 'session_state', 'session_state', 0, 'CREATE VIRTUAL TABLE session_state USING fts5(k)')",
            "session_state is not an ordinary table",
        ),
        ("DROP TABLE processing_ack", "processing_ack is missing"),
    ] {
        let session = Session::new()?;
        session.agent()?.execute_batch(sql)?;
        assert_eq!(cause(&session)?, Some(Cause::UnexpectedSchema(what.into())), "{sql}");
    }
    Ok(())
}

#[test]
fn other_columns_are_named_and_other_tables_do_not_matter() -> Outcome {
    let session = Session::new()?;
    session.agent()?.execute_batch("CREATE TABLE mine (x); CREATE VIEW v AS SELECT * FROM mine")?;
    assert_eq!(cause(&session)?, None);
    session.agent()?.execute_batch("ALTER TABLE messages_out RENAME COLUMN content TO body")?;
    let Some(Cause::UnexpectedSchema(what)) = cause(&session)? else { return Err("no such cause".into()) };
    assert!(what.contains("content"), "{what}");
    Ok(())
}

#[test]
fn a_view_slipped_in_below_a_kept_connection_is_noticed() -> Outcome {
    let session = Session::new()?;
    let mut reader = session.reader()?;
    reader.read(&ALL)?;
    session.agent()?.execute_batch(
        "ALTER TABLE messages_out RENAME TO real; CREATE VIEW messages_out AS SELECT * FROM real",
    )?;
    let (_, reading) = read_or_hang(reader)?;
    assert!(matches!(reading.err().map(|e| e.cause), Some(Cause::UnexpectedSchema(_))));
    Ok(())
}

#[test]
fn a_query_that_the_agent_made_endless_is_ended_by_its_budget() -> Outcome {
    let session = Session::new()?;
    // Without an index each of the look-ups below walks through the whole table.
    session.agent()?.execute_batch(
        "DROP TABLE processing_ack;
         CREATE TABLE processing_ack (message_id TEXT, status TEXT, status_changed TEXT);
         WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000)
         INSERT INTO processing_ack SELECT 'm' || x, 'processing', 't' FROM n;",
    )?;
    let guard = Guard { budget: Duration::from_millis(50), ..Guard::default() };
    let mut reader = OutboundReader::new(Session::name()?, &session.folder, guard);
    let asked: Vec<String> = (0..10_000).map(|n| format!("x{n}")).collect();
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let reading = reader.read(&ReadAsk { ids: &asked, ..ALL });
        // The receiver is gone when the test has already failed.
        let _ = done.send(reading);
    });
    let reading = result.recv_timeout(Duration::from_secs(30))?;
    assert_eq!(reading.err().map(|e| e.cause), Some(Cause::Slow));
    Ok(())
}

#[test]
fn wrong_types_nuls_and_huge_values_spoil_their_own_row_only() -> Outcome {
    let session = Session::new()?;
    session.agent()?.execute_batch(
        "DROP TABLE messages_out;
         CREATE TABLE messages_out (id, seq, in_reply_to, timestamp, deliver_after, recurrence, kind,
           platform_id, channel_type, thread_id, content);
         INSERT INTO messages_out (id, timestamp, kind, content) VALUES ('good', 't', 'chat', '{}');
         INSERT INTO messages_out (id, timestamp, kind, content) VALUES ('blob', 't', 'chat', x'00ff');
         INSERT INTO messages_out (id, timestamp, kind, content) VALUES ('int', 't', 'chat', 7);
         INSERT INTO messages_out (id, timestamp, kind, content) VALUES (NULL, 't', 'chat', '{}');
         INSERT INTO messages_out (id, timestamp, kind, content) VALUES ('', 't', 'chat', '{}');
         INSERT INTO messages_out (id, timestamp, kind, content)
           VALUES ('nul', 't', 'chat', 'a' || char(0) || 'b');
         INSERT INTO messages_out (id, timestamp, kind, content)
           VALUES ('bytes', 't', 'chat', CAST(x'61ff62' AS TEXT));
         INSERT INTO messages_out (id, timestamp, kind, content) VALUES ('none', 't', 'chat', NULL);
         INSERT INTO messages_out (id, timestamp, kind, content)
           VALUES ('big', 't', 'chat', zeroblob(2000000));
         INSERT INTO messages_out (id, timestamp, kind, content)
           VALUES ('huge', 't', 'chat', printf('%.*c', 9000000, 'x'));
         INSERT INTO messages_out (id, timestamp, kind, content)
           VALUES (printf('%.*c', 5000, 'i'), 't', 'chat', '{}');
         INSERT INTO messages_out (id, seq, timestamp, kind, content) VALUES ('seq', 'x', 't', 'chat', '{}');
         INSERT INTO messages_out (id, timestamp, kind, content) VALUES ('last', 't', 'chat', '{}');",
    )?;
    let mut reader = session.reader()?;
    let reading = reader.read(&ALL)?;
    assert_eq!(
        ids(&reading),
        ["good", "blob", "int", "?", "?", "nul", "bytes", "none", "big", "huge", "?", "seq", "last"]
    );
    assert_eq!(
        faults(&reading),
        [
            "",
            "content is not text",
            "content is not text",
            "id, timestamp, kind or content is NULL",
            "id is empty",
            "content contains NUL",
            "content is not UTF-8",
            "id, timestamp, kind or content is NULL",
            "content has 2000000 bytes, 1048576 are allowed",
            "content has 9000000 bytes, 1048576 are allowed",
            "id has 5000 bytes, 4096 are allowed",
            "seq is not a number",
            "",
        ]
    );
    // The cursor stands on a malformed row as well as on any other.
    let part = reader.read(&ReadAsk { max_rows: 4, ..ALL })?;
    let rest = reader.read(&ReadAsk { cursor: part.cursor.as_ref(), ..ALL })?;
    assert!(part.more && !rest.rewound);
    assert_eq!(rest.rows.len(), 9);
    Ok(())
}

#[test]
fn odd_acks_facts_and_tools_are_left_out_and_reported() -> Outcome {
    let session = Session::new()?;
    session.agent()?.execute_batch(
        "INSERT INTO processing_ack VALUES ('a', 'dancing', 't'), ('b', 'completed', x'00');
         INSERT INTO session_state VALUES ('lamplighter.big', printf('%.*c', 5000, 'x'), 't');
         INSERT INTO session_state VALUES ('lamplighter.ok', '{}', 't'), ('lamplighterx', 'no', 't');
         INSERT INTO container_state VALUES (1, x'00', NULL, NULL, 't');",
    )?;
    let asked = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
    let reading = session.reader()?.read(&ReadAsk { ids: &asked, ..ALL })?;
    assert_eq!(reading.acks.iter().map(|a| a.message_id.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(reading.facts.iter().map(|f| f.key.as_str()).collect::<Vec<_>>(), ["lamplighter.ok"]);
    assert_eq!(reading.tool, None);
    assert_eq!(reading.complaints.len(), 3);
    Ok(())
}

#[test]
fn facts_are_bounded_in_number() -> Outcome {
    let session = Session::new()?;
    session.agent()?.execute_batch(
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1000)
         INSERT INTO session_state SELECT 'lamplighter.' || x, '{}', 't' FROM n;",
    )?;
    let reading = session.reader()?.read(&ALL)?;
    assert_eq!(reading.facts.len(), 64);
    assert_eq!(reading.complaints.len(), 1);
    Ok(())
}

#[test]
fn half_a_file_an_empty_one_and_garbage_are_told_apart() -> Outcome {
    let session = Session::new()?;
    let path = session.folder.outbound_db();
    session.answer(&["o1"])?;
    let whole = fs::read(&path)?;
    fs::write(&path, whole.get(..whole.len() / 2).unwrap_or_default())?;
    assert!(matches!(cause(&session)?, Some(Cause::Corrupt(_))));
    fs::write(&path, b"")?;
    assert_eq!(cause(&session)?, Some(Cause::UnexpectedSchema("messages_out is missing".into())));
    fs::write(&path, vec![7; 8_192])?;
    assert_eq!(cause(&session)?, Some(Cause::NotADatabase));
    Ok(())
}

#[test]
fn every_damaged_byte_of_a_small_file_ends_in_rows_or_a_cause() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1", "o2", "o3"])?;
    let path = session.folder.outbound_db();
    let whole = fs::read(&path)?;
    for at in (0..whole.len()).step_by(61) {
        let mut bytes = whole.clone();
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 0xff;
        }
        fs::write(&path, &bytes)?;
        let (_, reading) = read_or_hang(session.reader()?)?;
        if let Ok(reading) = reading {
            assert!(reading.rows.len() <= 256, "byte {at}");
        }
    }
    Ok(())
}

#[test]
fn a_database_switched_to_a_write_ahead_log_is_refused_with_the_way_out() -> Outcome {
    let session = Session::new()?;
    let path = session.folder.outbound_db();
    let mut reader = session.reader()?;
    reader.read(&ALL)?;
    let mut bytes = fs::read(&path)?;
    bytes.get_mut(18..20).ok_or("no header")?.fill(2);
    // The change counter too, as a writer would: a kept connection looks at it.
    bytes.get_mut(24..28).ok_or("no header")?.fill(9);
    fs::write(&path, &bytes)?;
    assert_eq!(cause(&session)?, Some(Cause::Wal));
    let (_, reading) = read_or_hang(reader)?;
    let error = reading.err().ok_or("it was read")?;
    assert_eq!(error.cause, Cause::Wal);
    assert!(error.hint().contains("journal_mode=DELETE"));
    Ok(())
}

#[test]
fn a_lock_held_for_ever_is_reported_as_busy_and_the_connection_is_kept() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    let mut reader = session.reader()?;
    reader.read(&ALL)?;
    let agent = session.agent()?;
    agent.execute_batch("BEGIN EXCLUSIVE")?;
    let (mut reader, reading) = read_or_hang(reader)?;
    let error = reading.err().ok_or("it was read")?;
    assert_eq!(error.cause, Cause::Busy);
    assert!(error.is_transient());
    assert!(reader.is_open());
    agent.execute_batch("COMMIT")?;
    assert_eq!(ids(&reader.read(&ALL)?), ["o1"]);
    Ok(())
}

#[test]
fn a_vanished_file_is_missing_and_a_replaced_one_is_read_anew() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    let mut reader = session.reader()?;
    let cursor = reader.read(&ALL)?.cursor;
    let other = Session::new()?;
    other.answer(&["p1", "p2"])?;
    fs::rename(other.folder.outbound_db(), session.folder.outbound_db())?;
    let reading = reader.read(&ReadAsk { cursor: cursor.as_ref(), ..ALL })?;
    assert!(reading.rewound);
    assert_eq!(ids(&reading), ["p1", "p2"]);
    fs::remove_file(session.folder.outbound_db())?;
    assert_eq!(cause(&session)?, Some(Cause::Missing));
    fs::remove_dir_all(&session.root)?;
    assert_eq!(cause(&session)?, Some(Cause::Missing));
    Ok(())
}

#[test]
fn reading_leaves_no_trace_in_the_folder() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    let list = || -> std::io::Result<Vec<_>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(session.folder.out_dir())? {
            let entry = entry?;
            all.push((entry.file_name(), entry.metadata()?.modified()?));
        }
        all.sort();
        Ok(all)
    };
    let before = list()?;
    let mut reader = session.reader()?;
    reader.read(&ALL)?;
    reader.read(&ALL)?;
    reader.close();
    assert_eq!(list()?, before);
    Ok(())
}

#[test]
fn a_link_among_the_folders_of_the_path_is_refused_and_named() -> Outcome {
    let session = Session::new()?;
    let alias = session.temp.path().canonicalize()?.join("alias");
    symlink(&session.root, &alias)?;
    let folder = crate::session::SessionFolder::nested(&alias);
    let (_, reading) = read_or_hang(OutboundReader::new(Session::name()?, &folder, Guard::default()))?;
    let Some(Cause::Io(what)) = reading.err().map(|e| e.cause) else { return Err("no such cause".into()) };
    assert!(what.contains("is a link"), "{what}");
    Ok(())
}
