//! What becomes of messages, in one folder and one process.

use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::session::{Outcome, Row, Session, said, until};

#[test]
fn two_messages_are_one_turn_and_each_gets_its_answer() -> Outcome {
    let session = Session::new("[]")?;
    session.put(&[said("a", r#"{"text":"one","sender":"Ann"}"#), said("b", r#"{"text":"two"}"#)])?;
    let runner = session.start("1.1")?;
    session.until_acked("b", "completed")?;
    session.until_acked("a", "completed")?;
    let answer = |seq, text: &str| {
        (seq, Some("th-b".to_owned()), Some("b".to_owned()), format!(r#"{{"text":"echo: {text}"}}"#))
    };
    assert_eq!(session.answers(), [answer(5, "one"), answer(7, "two")]);
    assert_eq!(session.state("continuation:mock").as_deref(), Some("mock-1"));
    assert_eq!(session.fact("turn"), None);
    assert_eq!(session.state("lamplighter.attempt").as_deref(), Some("1.1"));
    assert!(session.path("out/.heartbeat").exists());
    let log = session.log("1.1");
    assert!(!log.contains("one") && !log.contains("Ann"), "text of a message in the log: {log}");
    drop(runner);
    Ok(())
}

#[test]
fn context_alone_never_starts_a_turn_cold_or_warm() -> Outcome {
    let session = Session::new("[]")?;
    let context = |id| Row { trigger: false, ..said(id, r#"{"text":"noise"}"#) };
    session.put(&[context("c1"), said("null1", "null")])?;
    let _runner = session.start("1.1")?;
    // The row that cannot be used shows that the runner has looked.
    session.until_acked("null1", "failed")?;
    assert_eq!((session.ack("c1"), session.answers().len()), (None, 0));
    session.put(&[said("a", r#"{"text":"hey"}"#)])?;
    session.until_acked("a", "completed")?;
    assert_eq!(session.ack("c1").as_deref(), Some("completed"), "it rode along");
    session.put(&[context("c2"), said("null2", "null")])?;
    session.until_acked("null2", "failed")?;
    assert_eq!(session.ack("c2"), None);
    assert_eq!(session.state("continuation:mock").as_deref(), Some("mock-1"), "one turn in all");
    Ok(())
}

#[test]
fn a_row_that_cannot_be_used_fails_alone() -> Outcome {
    let session = Session::new("[]")?;
    session.put(&[
        said("a", r#"{"text":"x"}"#),
        said("bad", r#"{"text":{"deep":1}}"#),
        said("c", "raw words"),
    ])?;
    let mut runner = session.start("1.1")?;
    for (id, status) in [("a", "completed"), ("bad", "failed"), ("c", "completed")] {
        session.until_acked(id, status)?;
    }
    let fact = session.fact("failed.bad").ok_or("no fact")?;
    assert_eq!((&fact["class"], &fact["reason"]), (&"input".into(), &"text is object, not text".into()));
    assert_eq!(session.answers().len(), 2);
    assert!(runner.is_alive());
    Ok(())
}

#[test]
fn a_message_that_comes_while_the_runner_is_warm_is_picked_up() -> Outcome {
    let session = Session::new(r#"[{"pattern":"slow","delay_ms":300,"reply":"done: $text"}]"#)?;
    let _runner = session.start("1.1")?;
    session.put(&[said("a", r#"{"text":"slow one"}"#)])?;
    session.until_acked("a", "processing")?;
    assert_eq!(session.fact("turn").map(|fact| fact["claimed"].clone()), Some(serde_json::json!(["a"])));
    session.put(&[said("b", r#"{"text":"in mid-turn"}"#)])?;
    session.until_acked("b", "completed")?;
    let texts: Vec<String> = session.answers().into_iter().map(|answer| answer.3).collect();
    assert_eq!(texts, [r#"{"text":"done: slow one"}"#, r#"{"text":"echo: in mid-turn"}"#]);
    Ok(())
}

#[test]
fn a_message_that_is_due_later_is_picked_up_then() -> Outcome {
    let session = Session::new("[]")?;
    let due: String =
        session.inbound()?.query_row("SELECT datetime('now', '+2 seconds')", [], |row| row.get(0))?;
    session.put(&[
        Row { due: Some(&due), ..said("later", r#"{"text":"x"}"#) },
        said("now", r#"{"text":"y"}"#),
    ])?;
    let _runner = session.start("1.1")?;
    session.until_acked("now", "completed")?;
    session.until_acked("later", "completed")?;
    let early: bool =
        session.inbound()?.query_row("SELECT datetime('now') < ?1", [&due], |row| row.get(0))?;
    assert!(!early);
    Ok(())
}

#[test]
fn a_crash_leaves_the_claim_and_the_next_start_clears_it() -> Outcome {
    let session = Session::new(r#"[{"pattern":"boom","crash":9,"once":true}]"#)?;
    session.put(&[said("a", r#"{"text":"boom"}"#)])?;
    let mut first = session.start("1.1")?;
    assert_eq!(first.ended()?.code(), Some(9));
    assert_eq!(session.ack("a").as_deref(), Some("processing"));
    assert!(session.fact("turn").is_some());
    let _second = session.start("1.2")?;
    session.until_acked("a", "completed")?;
    assert_eq!(session.answers().len(), 1);
    assert!(session.log("1.2").contains("dropped claims of an earlier run claims=1"));
    Ok(())
}

#[test]
fn a_stop_in_mid_turn_gives_the_messages_back_and_leaves_no_journal() -> Outcome {
    let session = Session::new(r#"[{"pattern":"hang","silence":true}]"#)?;
    session.put(&[said("a", r#"{"text":"hang"}"#)])?;
    let mut runner = session.start("1.1")?;
    session.until_acked("a", "processing")?;
    runner.terminate()?;
    assert_eq!(runner.ended()?.code(), Some(0), "{}", session.log("1.1"));
    assert!(!session.path("out/outbound.db-journal").exists());
    assert_eq!(session.ack("a"), None);
    let fact = session.fact("release.a").ok_or("no fact")?;
    assert_eq!((&fact["class"], &fact["reason"]), (&"stopped".into(), &"runner was asked to stop".into()));
    assert_eq!(session.fact("turn"), None);
    Ok(())
}

#[test]
fn a_stop_lets_a_turn_finish_that_is_about_to() -> Outcome {
    let session = Session::new("[]")?;
    let mut runner = session.start("1.1")?;
    session.put(&[said("a", r#"{"text":"x"}"#)])?;
    session.until_acked("a", "completed")?;
    runner.terminate()?;
    assert_eq!(runner.ended()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_silent_provider_moves_no_heartbeat() -> Outcome {
    let session = Session::new(r#"[{"pattern":"hang","silence":true}]"#)?;
    let mut runner = session.start("1.1")?;
    session.put(&[said("a", r#"{"text":"hang"}"#)])?;
    session.until_acked("a", "processing")?;
    let beat = session.path("out/.heartbeat");
    // The touch after the claim comes before this line.
    until("the turn has started", || session.log("1.1").contains("turn started").then_some(()))?;
    let old = SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::options().append(true).open(&beat)?.set_modified(old)?;
    // A change in the host's file wakes the loop, which must not count as a sign of life.
    session.put(&[said("b", r#"{"text":"x"}"#)])?;
    runner.terminate()?;
    runner.ended()?;
    let age = SystemTime::now().duration_since(std::fs::metadata(&beat)?.modified()?)?;
    assert!(age > Duration::from_secs(3000), "{age:?}");
    Ok(())
}

#[test]
fn a_runner_that_was_replaced_changes_nothing_and_ends_with_75() -> Outcome {
    let session = Session::new("[]")?;
    let mut runner = session.start("1.1")?;
    until("the runner has started", || session.log("1.1").contains("started").then_some(()))?;
    let later = "UPDATE session_state SET value = '1.2' WHERE key = 'lamplighter.attempt'";
    session.outbound()?.execute(later, [])?;
    session.put(&[said("a", r#"{"text":"x"}"#)])?;
    assert_eq!(runner.ended()?.code(), Some(75));
    assert_eq!((session.ack("a"), session.answers().len()), (None, 0));
    let mut late = session.start("1.1")?;
    assert_eq!(late.ended()?.code(), Some(75), "a late start of the earlier attempt");
    Ok(())
}

#[test]
fn a_transient_error_releases_and_a_permanent_one_fails() -> Outcome {
    let rules = r#"[{"pattern":"busy","error":"transient","retry_after_ms":60000},
                    {"pattern":"never","error":"permanent"}]"#;
    let session = Session::new(rules)?;
    let _runner = session.start("1.1")?;
    session.put(&[said("a", r#"{"text":"busy"}"#)])?;
    let fact = until("a is released", || session.fact("release.a"))?;
    assert_eq!(fact["class"], "transient");
    assert!(fact["not_before"].is_string());
    assert_eq!(session.ack("a"), None);
    session.put(&[said("b", r#"{"text":"never"}"#)])?;
    session.until_acked("b", "failed")?;
    assert_eq!(session.fact("failed.b").map(|fact| fact["class"].clone()), Some("permanent".into()));
    session.put(&[said("c", r#"{"text":"fine"}"#)])?;
    session.until_acked("c", "completed")?;
    assert_eq!(session.ack("a"), None, "it is held back and holds nobody back");
    assert_eq!(session.answers().len(), 1, "no error is sent as text");
    Ok(())
}

#[test]
fn a_tool_is_announced_while_it_runs() -> Outcome {
    let session = Session::new(r#"[{"pattern":"build","tool_ms":400,"reply":"built"}]"#)?;
    let _runner = session.start("1.1")?;
    session.put(&[said("a", r#"{"text":"build"}"#)])?;
    let tool = "SELECT current_tool || ' ' || tool_declared_timeout_ms FROM container_state";
    assert_eq!(until("the tool is announced", || session.out(tool))?, "Bash 400");
    session.until_acked("a", "completed")?;
    assert_eq!((session.out(tool), session.fact("tools")), (None, None));
    Ok(())
}

#[test]
fn blocks_go_where_they_say_and_unknown_names_nowhere() -> Outcome {
    let reply = r#"thinking <message to=\"nobody\">lost</message><message to=\"work\">for work</message>"#;
    let session = Session::new(&format!(r#"[{{"pattern":"go","reply":"{reply}"}}]"#))?;
    let work =
        "INSERT INTO destinations (name, type, channel_type, platform_id) VALUES ('work','channel','tg','8')";
    session.inbound()?.execute(work, [])?;
    session.put(&[
        Row { trigger: false, chat: "8", ..said("w", r#"{"text":"at work"}"#) },
        said("a", r#"{"text":"go"}"#),
    ])?;
    let _runner = session.start("1.1")?;
    session.until_acked("a", "completed")?;
    let answer = (5, Some("th-w".to_owned()), Some("w".to_owned()), r#"{"text":"for work"}"#.to_owned());
    assert_eq!(session.answers(), [answer]);
    assert!(session.log("1.1").contains("unknown destination is not sent to=nobody"));
    Ok(())
}

#[test]
fn a_host_that_comes_later_is_waited_for() -> Outcome {
    let session = Session::new("[]")?;
    std::fs::remove_file(session.path("in/inbound.db"))?;
    let mut runner = session.start("1.1")?;
    until("it waits", || session.log("1.1").contains("waiting").then_some(()))?;
    session.create_inbound()?;
    session.put(&[said("a", r#"{"text":"x"}"#)])?;
    session.until_acked("a", "completed")?;
    assert!(runner.is_alive());
    Ok(())
}

#[test]
fn a_host_that_was_killed_in_mid_commit_is_waited_for() -> Outcome {
    let session = Session::new("[]")?;
    let (db, journal) = (session.path("in/inbound.db"), session.path("in/inbound.db-journal"));
    session.put(&[said("a", r#"{"text":"x"}"#)])?;
    // What a kill leaves: a journal that must be rolled back before the file may be read.
    let writer = session.inbound()?;
    writer.execute_batch(
        "PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN IMMEDIATE;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
         INSERT INTO messages_in (id, kind, timestamp, content)
         SELECT 'x' || i, 'chat', 't', hex(zeroblob(500)) FROM n;",
    )?;
    let (torn, hot) = (std::fs::read(&db)?, std::fs::read(&journal)?);
    writer.execute_batch("ROLLBACK")?;
    drop(writer);
    std::fs::write(&journal, hot)?;
    std::fs::write(&db, torn)?;
    let mut runner = session.start("1.1")?;
    until("it waits", || session.log("1.1").contains("the host is away").then_some(()))?;
    assert!(runner.is_alive());
    assert!(session.path("in/inbound.db-journal").exists(), "the runner must not heal the host's file");
    // The host comes back and heals its file by opening it.
    session.inbound()?.query_row("SELECT count(*) FROM messages_in", [], |_| Ok(()))?;
    session.until_acked("a", "completed")?;
    Ok(())
}

#[test]
fn an_unknown_provider_ends_the_start_with_the_known_names() -> Outcome {
    let session = Session::new("[]")?;
    session.configure(r#"{"provider":"Oracle"}"#)?;
    let mut runner = session.start("1.1")?;
    assert_eq!(runner.ended()?.code(), Some(78));
    let log = session.log("1.1");
    assert!(log.contains("oracle") && log.contains("this runner knows: "), "{log}");
    Ok(())
}

#[test]
fn a_workspace_that_is_not_there_is_named() -> Outcome {
    let session = Session::new("[]")?;
    let command = Command::new(env!("CARGO_BIN_EXE_lamplighter-runner"))
        .arg("--workspace")
        .arg(session.path("nowhere"))
        .output()?;
    let said = String::from_utf8_lossy(&command.stderr).into_owned();
    assert_eq!(command.status.code(), Some(64));
    assert!(said.contains("nowhere is not a folder"), "{said}");
    Ok(())
}

#[test]
fn thousands_of_context_rows_hide_no_trigger_and_fill_no_fact() -> Outcome {
    let session = Session::new(r#"[{"pattern": "", "delay_ms": 300, "reply": "$prompt"}]"#)?;
    let ids: Vec<String> = (0..5_000).map(|n| format!("c{n}")).collect();
    let mut rows: Vec<Row<'_>> =
        ids.iter().map(|id| Row { trigger: false, ..said(id, r#"{"text":"noise"}"#) }).collect();
    rows.push(said("a", r#"{"text":"x"}"#));
    session.put(&rows)?;
    let _runner = session.start("1.1")?;
    let turn = until("the turn is on record", || session.fact("turn"))?;
    assert_eq!((turn["claimed"].as_array().map(Vec::len), &turn["more"]), (Some(48), &0.into()));
    session.until_acked("a", "completed")?;
    assert_eq!(session.ack("c0").as_deref(), Some("completed"));
    assert_eq!(session.ack("c4999").as_deref(), Some("completed"));
    let answers = session.answers();
    let [(.., prompt)] = answers.as_slice() else { return Err(format!("{answers:?}").into()) };
    assert_eq!(prompt.matches("noise").count(), 47, "{prompt}");
    assert!(prompt.contains("4953"), "{prompt}");
    Ok(())
}

#[test]
fn an_on_wake_row_is_for_the_first_poll_and_system_rows_never_reach_the_agent() -> Outcome {
    let session = Session::new("[]")?;
    let wake =
        |id: &str| session.inbound()?.execute("UPDATE messages_in SET on_wake = 1 WHERE id = ?1", [id]);
    session.put(&[
        said("first", r#"{"text":"x"}"#),
        said("answer", r#"{"text":"x"}"#),
        said("other", "{}"),
    ])?;
    wake("first")?;
    // The first is old and nobody waits for it; the second may still be waited for by a tool.
    session
        .inbound()?
        .execute("UPDATE messages_in SET kind = 'system' WHERE id IN ('answer', 'other')", [])?;
    let fresh = "UPDATE messages_in SET timestamp = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE id = 'other'";
    session.inbound()?.execute(fresh, [])?;
    let mut runner = session.start("1.1")?;
    session.until_acked("first", "completed")?;
    let late = "INSERT INTO messages_in (id, seq, kind, timestamp, content, on_wake, platform_id, \
                channel_type) VALUES ('late', 100, 'chat', '2026-05-18 09:30:00', '{}', 1, '7', 'tg')";
    session.inbound()?.execute(late, [])?;
    session.put(&[said("after", r#"{"text":"y"}"#)])?;
    session.until_acked("after", "completed")?;
    assert_eq!((session.ack("late"), session.ack("other")), (None, None));
    runner.terminate()?;
    runner.ended()?;
    let _next = session.start("1.2")?;
    session.until_acked("late", "completed")?;
    assert_eq!((session.ack("answer").as_deref(), session.ack("other")), (Some("completed"), None));
    Ok(())
}

#[test]
fn ten_triggers_at_most_make_a_prompt_and_the_oldest_go_first() -> Outcome {
    let session = Session::new("[]")?;
    let ids: Vec<String> = (10..35).map(|n| format!("m{n}")).collect();
    let texts: Vec<String> = ids.iter().map(|id| format!(r#"{{"text":"{id}"}}"#)).collect();
    let rows: Vec<Row<'_>> = ids.iter().zip(&texts).map(|(id, text)| said(id, text)).collect();
    session.put(&rows)?;
    let _runner = session.start("1.1")?;
    session.until_acked("m34", "completed")?;
    let sent: Vec<String> = session.answers().into_iter().map(|answer| answer.3).collect();
    let expected: Vec<String> = ids.iter().map(|id| format!(r#"{{"text":"echo: {id}"}}"#)).collect();
    assert_eq!(sent, expected);
    assert_eq!(session.state("continuation:mock").as_deref(), Some("mock-3"));
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_runner_whose_host_is_killed_gives_its_messages_back_and_ends() -> Outcome {
    let session = Session::new(r#"[{"pattern":"hang","silence":true}]"#)?;
    session.put(&[said("a", r#"{"text":"hang"}"#)])?;
    // The shell is the host: it stays the runner's parent until it is killed.
    let mut host = session.start_below_a_shell("1.1")?;
    session.until_acked("a", "processing")?;
    host.kill()?;
    until("the runner ends", || session.log("1.1").contains("ended as asked").then_some(()))?;
    assert_eq!(session.ack("a"), None);
    assert!(session.fact("release.a").is_some());
    Ok(())
}

#[test]
fn without_a_watch_the_poll_finds_messages() -> Outcome {
    let session = Session::new("[]")?;
    // No folder, no watch; the configuration is then the agent's.
    std::fs::rename(session.path("in/container.json"), session.path("agent/container.json"))?;
    std::fs::remove_dir_all(session.path("in"))?;
    let _runner = session.start("1.1")?;
    until("it polls", || session.log("1.1").contains("polling alone").then_some(()))?;
    std::fs::create_dir(session.path("in"))?;
    session.create_inbound()?;
    for id in ["a", "b"] {
        session.put(&[said(id, r#"{"text":"x"}"#)])?;
        session.until_acked(id, "completed")?;
    }
    Ok(())
}

#[test]
fn a_released_message_is_tried_again_even_when_the_host_does_nothing() -> Outcome {
    let session = Session::new(r#"[{"pattern":"busy","error":"transient","once":true}]"#)?;
    let _runner = session.start("1.1")?;
    session.put(&[said("a", r#"{"text":"busy"}"#)])?;
    let not_before = until("a is released", || session.fact("release.a"))?["not_before"].clone();
    session.until_acked("a", "completed")?;
    let early: bool = session.inbound()?.query_row(
        "SELECT strftime('%s', 'now') < strftime('%s', ?1)",
        [not_before.as_str()],
        |row| row.get(0),
    )?;
    assert!(!early, "not before {not_before}");
    assert_eq!(session.fact("release.a"), None, "a new claim takes the fact away");
    assert_eq!(session.answers().len(), 1);
    Ok(())
}

#[test]
fn a_destination_that_is_new_after_a_restart_is_announced_in_the_prompt() -> Outcome {
    let session = Session::new(r#"[{"pattern": "", "reply": "$prompt"}]"#)?;
    session.put(&[said("a", r#"{"text":"one"}"#)])?;
    let mut runner = session.start("1.1")?;
    session.until_acked("a", "completed")?;
    runner.terminate()?;
    runner.ended()?;
    let work = "INSERT INTO destinations (name, type, channel_type, platform_id) VALUES ('work', 'channel', 'tg', '8')";
    session.inbound()?.execute(work, [])?;
    session.put(&[said("b", r#"{"text":"two"}"#)])?;
    let _runner = session.start("1.2")?;
    session.until_acked("b", "completed")?;
    session.put(&[said("c", r#"{"text":"three"}"#)])?;
    session.until_acked("c", "completed")?;
    let announced: Vec<bool> =
        session.answers().iter().map(|(.., content)| content.contains("new_destination name")).collect();
    assert_eq!(announced, [false, true, false]);
    Ok(())
}
