//! Tests of the runner's handles.

use std::fs;

use rusqlite::Connection;
use tempfile::TempDir;

use super::{InboundReader, Opening, OutboundError, OutboundWriter};
use crate::base::Wall;
use crate::session::rows::{AckStatus, Address, FACT_ATTEMPT, NewOutbound, ToolInFlight};
use crate::session::{SessionFolder, schema};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// 2026-05-18T09:30:00Z.
const NOW: Wall = Wall(1_779_096_600_000_000);

/// A flat folder as NanoClaw's host makes it, with the connection that stands for that host.
fn flat() -> Result<(TempDir, SessionFolder, Connection), Box<dyn std::error::Error>> {
    let temp = TempDir::new()?;
    let folder = SessionFolder::flat(temp.path());
    let host = Connection::open(folder.inbound_db())?;
    schema::prepare_inbound(&host)?;
    Ok((temp, folder, host))
}

fn answer(id: &str) -> NewOutbound {
    NewOutbound {
        id: id.into(),
        in_reply_to: Some("m1".into()),
        deliver_after: None,
        kind: "chat".into(),
        address: Address::new("cli", "local", None),
        content: "{}".into(),
    }
}

fn pending(reader: &mut InboundReader, limit: usize, acked: &[&str]) -> Result<String, super::InboundError> {
    let rows = reader.pending(limit, &mut |id| acked.contains(&id))?;
    Ok(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>().join(" "))
}

#[test]
fn the_oldest_rows_come_first_and_acked_ones_take_no_place() -> Outcome {
    let (_temp, folder, host) = flat()?;
    host.execute_batch(
        "INSERT INTO messages_in (id, seq, kind, timestamp, content, status, process_after, on_wake, trigger)
           VALUES
           ('a', 2, 'chat', 't', '{}', 'pending', NULL, 0, 1),
           ('b', 4, 'chat', 't', '{}', 'completed', NULL, 0, 1),
           ('c', 6, 'chat', 't', '{}', 'pending', '2026-05-18T09:29:59.999Z', 0, 0),
           ('d', 8, 'task', 't', '{}', 'pending', '2026-05-18 09:30:00', 0, 1),
           ('e', 10, 'task', 't', '{}', 'pending', '2026-05-18T11:30:01+02:00', 0, 1),
           ('f', 12, 'task', 't', '{}', 'pending', 'tomorrow', 0, 1),
           ('g', 14, 'chat', 't', '{}', 'pending', NULL, 1, 1),
           ('h', 16, 'system', 't', '{}', 'pending', NULL, 0, 0),
           ('i', 18, 'chat', 't', '{}', 'pending', NULL, 0, 0),
           ('j', 20, 'chat', 't', '{}', 'pending', 'tomorrow', 0, 0);",
    )?;
    for opening in [Opening::Fresh, Opening::Kept] {
        let mut reader = InboundReader::new(&folder, opening);
        assert_eq!(pending(&mut reader, 10, &[])?, "a d e g h");
        assert_eq!(pending(&mut reader, 2, &["a"])?, "d e");
        let mut context = |up_to, limit, acked: &str| {
            let rows = reader.pending_context(Some(up_to), limit, &mut |id| id == acked)?;
            Ok::<_, super::InboundError>(rows.into_iter().map(|row| row.id).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(context(17, 10, "")?, "c");
        assert_eq!(context(20, 10, "")?, "c i");
        assert_eq!(context(20, 1, "c")?, "i");
        assert_eq!(reader.rows_read(), 6 + 3 + 1 + 3 + 2);
        assert_eq!(reader.max_seq()?, 20);
        assert_eq!(reader.by_seq(8)?.map(|row| row.id), Some("d".into()));
        assert_eq!(reader.tasks()?.len(), 3);
    }
    Ok(())
}

#[test]
fn only_answers_that_say_something_count_as_spoken() -> Outcome {
    let (_temp, folder, _host) = flat()?;
    let mut writer = OutboundWriter::open(&folder, None)?;
    let row = |id: &str, kind: &str, chat: &str, content: &str| NewOutbound {
        kind: kind.into(),
        address: Address::new("cli", chat, Some("t".into())),
        content: content.into(),
        ..answer(id)
    };
    let mut put = |rows: &[NewOutbound]| {
        writer.transaction(NOW, |tx| rows.iter().try_for_each(|row| tx.insert(row, 0).map(drop)))?;
        writer.spoken_to_after(1)
    };
    let silent = [
        row("o1", "chat", "before", r#"{"text":"x"}"#),
        row("o2", "system", "task", r#"{"action":"schedule_task"}"#),
        row("o3", "chat", "liked", r#"{"operation":"reaction","messageId":"1","emoji":"x"}"#),
        row("o4", "chat", "edited", r#"{"operation":"edit","messageId":"1","text":"x"}"#),
    ];
    assert_eq!(put(&silent)?, []);
    let spoken = [
        row("o5", "chat", "told", r#"{"text":"the \"operation\":1"}"#),
        row("o6", "chat-sdk", "asked", r#"{"type":"ask_question"}"#),
        row("o7", "chat", "odd", "no json"),
    ];
    let chats: Vec<_> = put(&spoken)?.into_iter().filter_map(|address| address.platform_id).collect();
    assert_eq!(chats, ["told", "asked", "odd"]);
    Ok(())
}

#[test]
fn an_old_file_without_on_wake_and_routing_is_read() -> Outcome {
    let (_temp, folder, host) = flat()?;
    host.execute_batch(
        "DROP TABLE session_routing; ALTER TABLE messages_in DROP COLUMN on_wake;
         INSERT INTO messages_in (id, seq, kind, timestamp, content) VALUES ('a', 2, 'chat', 't', '{}');",
    )?;
    let mut reader = InboundReader::new(&folder, Opening::Kept);
    assert_eq!(pending(&mut reader, 10, &[])?, "a");
    assert_eq!(reader.session_routing()?, None);
    Ok(())
}

#[test]
fn the_newest_row_of_a_chat_names_thread_and_message() -> Outcome {
    let (_temp, folder, host) = flat()?;
    host.execute_batch(
        "INSERT INTO messages_in (id, seq, kind, timestamp, content, status, channel_type, platform_id,
           thread_id)
         VALUES ('a', 2, 'chat', 't', '{}', 'completed', 'cli', 'local', 't1'),
                ('b', 4, 'chat', 't', '{}', 'completed', 'cli', 'local', 't2'),
                ('c', 6, 'chat', 't', '{}', 'pending', 'cli', 'other', 't3');",
    )?;
    let mut reader = InboundReader::new(&folder, Opening::Kept);
    let newest = reader.newest_of("cli", "local")?.ok_or("no row")?;
    assert_eq!((newest.id.as_str(), newest.address.thread_id.as_deref()), ("b", Some("t2")));
    assert_eq!(reader.newest_of("cli", "nobody")?, None);
    Ok(())
}

#[test]
fn a_missing_or_locked_file_means_that_the_host_is_away_and_damage_does_not() -> Outcome {
    let (_temp, folder, host) = flat()?;
    drop(host);
    let mut reader = InboundReader::new(&folder, Opening::Kept);
    assert_eq!(reader.max_seq()?, 0);
    let bytes = fs::read(folder.inbound_db())?;
    fs::remove_file(folder.inbound_db())?;
    assert!(reader.max_seq().is_err_and(|error| error.is_host_away()));
    fs::write(folder.inbound_db(), "not a database, but long enough to have a header. ".repeat(20))?;
    assert!(reader.max_seq().is_err_and(|error| !error.is_host_away()));
    fs::write(folder.inbound_db(), bytes)?;
    assert_eq!(reader.max_seq()?, 0);
    Ok(())
}

#[test]
fn a_missing_outbound_file_is_made_and_answers_are_numbered_odd_over_both_files() -> Outcome {
    let (_temp, folder, _host) = flat()?;
    let mut writer = OutboundWriter::open(&folder, None)?;
    let seqs = writer.transaction(NOW, |tx| {
        let first = tx.insert(&answer("o1"), 0)?.seq;
        let after_inbound = tx.insert(&answer("o2"), 8)?.seq;
        let after_own = tx.insert(&answer("o3"), 8)?.seq;
        Ok::<_, OutboundError>([first, after_inbound, after_own])
    })?;
    assert_eq!(seqs, [1, 9, 11]);
    assert_eq!(writer.by_seq(9)?, Some(("o2".into(), Address::new("cli", "local", None))));
    Ok(())
}

#[test]
fn a_claim_skips_what_is_acked_and_a_release_touches_only_claims() -> Outcome {
    let (_temp, folder, _host) = flat()?;
    let mut writer = OutboundWriter::open(&folder, None)?;
    writer.transaction(NOW, |tx| tx.ack("done", AckStatus::Completed))?;
    let claimed = writer.transaction(NOW, |tx| tx.claim(&["a", "done", "b"]))?;
    assert_eq!(claimed, ["a", "b"]);
    let released = writer.transaction(NOW, |tx| {
        tx.put_state("lamplighter.release.a", "{}")?;
        Ok::<_, OutboundError>([tx.release("a")?, tx.release("done")?, tx.release("x")?])
    })?;
    assert_eq!(released, [true, false, false]);
    assert!(!writer.is_acked("a")?);
    assert!(writer.is_acked("b")? && writer.is_acked("done")?);
    assert_eq!(writer.states_with_prefix("lamplighter.release.")?.len(), 1);
    Ok(())
}

#[test]
fn an_outlived_runner_is_fenced_and_changes_nothing() -> Outcome {
    let (_temp, folder, _host) = flat()?;
    let take_over = |attempt: &str| {
        let stale = OutboundWriter::open(&folder, None)?.transaction(NOW, |tx| {
            tx.put_state(FACT_ATTEMPT, attempt)?;
            tx.clear_stale_claims()
        })?;
        Ok::<_, OutboundError>((OutboundWriter::open(&folder, Some(attempt.to_owned()))?, stale))
    };
    let (mut old, _) = take_over("1.7")?;
    old.transaction(NOW, |tx| tx.claim(&["a"]))?;
    let (new, stale) = take_over("1.9")?;
    assert_eq!(stale, 1);
    let refused = old.transaction(NOW, |tx| tx.claim(&["b"]));
    assert!(
        matches!(refused, Err(OutboundError::Fenced { ref found, .. }) if found.as_deref() == Some("1.9"))
    );
    let mut tool_server = OutboundWriter::open(&folder, Some("1.9".into()))?;
    tool_server.transaction(NOW, |tx| tx.insert(&answer("o1"), 0))?;
    assert!(!new.is_acked("a")? && !new.is_acked("b")?);
    assert_eq!(new.state(FACT_ATTEMPT)?.as_deref(), Some("1.9"));
    Ok(())
}

#[test]
fn a_transaction_that_fails_leaves_nothing_and_the_next_one_works() -> Outcome {
    let (_temp, folder, _host) = flat()?;
    let mut writer = OutboundWriter::open(&folder, None)?;
    let failed = writer.transaction(NOW, |tx| {
        tx.claim(&["a"])?;
        tx.insert(&answer("o1"), 0)?;
        tx.insert(&answer("o1"), 0)
    });
    assert!(failed.is_err());
    assert!(!writer.is_acked("a")?);
    writer.transaction(NOW, |tx| tx.insert(&answer("o1"), 0))?;
    Ok(())
}

#[test]
fn state_and_tool_are_written_over_and_cleared() -> Outcome {
    let (_temp, folder, _host) = flat()?;
    let mut writer = OutboundWriter::open(&folder, None)?;
    let tool = ToolInFlight { name: "Bash".into(), declared_timeout_ms: Some(5_000), started_at: None };
    writer.transaction(NOW, |tx| {
        tx.put_state("continuation:mock", "one")?;
        tx.put_state("continuation:mock", "two")?;
        tx.set_tool(&tool)
    })?;
    assert_eq!(writer.state("continuation:mock")?.as_deref(), Some("two"));
    let gone = writer.transaction(NOW, |tx| {
        tx.clear_tool()?;
        Ok::<_, OutboundError>([tx.delete_state("continuation:mock")?, tx.delete_state("x")?])
    })?;
    assert_eq!(gone, [true, false]);
    assert_eq!(writer.state("continuation:mock")?, None);
    Ok(())
}

#[test]
fn what_a_host_indexes_is_found_by_its_indexes() -> Outcome {
    let db = Connection::open_in_memory()?;
    crate::session::schema::prepare_inbound(&db)?;
    for (condition, index) in [
        (super::inbound::startable("on_wake"), "SCAN messages_in USING INDEX idx_messages_in_pending"),
        (super::inbound::context("on_wake"), "SCAN messages_in USING INDEX idx_messages_in_pending"),
        (super::inbound::NEWEST_OF.to_owned(), "SEARCH messages_in USING INDEX idx_messages_in_chat"),
    ] {
        let mut plan =
            db.prepare(&format!("EXPLAIN QUERY PLAN SELECT content FROM messages_in WHERE {condition}"))?;
        let values = vec!["x"; plan.parameter_count()];
        let steps: Vec<String> = plan
            .query_map(rusqlite::params_from_iter(values), |row| row.get(3))?
            .collect::<Result<_, _>>()?;
        // No sorting beside it either.
        assert!(steps.len() == 1 && steps[0].starts_with(index), "{steps:?}");
    }
    Ok(())
}
