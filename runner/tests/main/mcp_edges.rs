//! The tool server where things end, are aimed elsewhere, or are no longer there.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::mcp::{Tools, at_work, newest};
use crate::session::{Outcome, Session, until};

const OWN_CHAT: &str = "INSERT INTO session_routing (id, channel_type, platform_id) VALUES (1, 'tg', '7')";

/// Asks a question that waits for long, and returns its id.
fn ask(session: &Session, tools: &mut Tools) -> Result<String, Box<dyn std::error::Error>> {
    let arguments = json!({"title": "T", "question": "Q?", "options": ["a"], "timeout": 604_800});
    tools.begin("tools/call", &json!({"name": "ask_user_question", "arguments": arguments}))?;
    until("the question waits", || session.fact("wait")?["questions"].as_object()?.keys().next().cloned())
}

#[test]
fn a_question_waits_no_longer_than_its_client_and_its_server() -> Outcome {
    let (session, _runner) = at_work()?;
    session.inbound()?.execute(OWN_CHAT, [])?;
    let gone = || session.fact("wait").is_none().then_some(());
    let mut tools = Tools::start(&session, "1.1")?;
    ask(&session, &mut tools)?;
    let mut child = tools.hang_up();
    until("nothing waits once the client is gone", gone)?;
    let status = until("the server ends with its client", || child.0.try_wait().ok()?)?;
    assert!(status.success(), "{status}");

    let mut tools = Tools::start(&session, "1.1")?;
    ask(&session, &mut tools)?;
    tools.terminate()?;
    until("nothing waits once the server was told to end", gone)?;
    let status = until("the server ends when it is told to", || tools.try_wait())?;
    assert!(status.success(), "{status}");
    Ok(())
}

#[test]
fn every_open_question_is_on_record_and_one_more_is_refused() -> Outcome {
    let (session, _runner) = at_work()?;
    session.inbound()?.execute(OWN_CHAT, [])?;
    let mut tools = Tools::start(&session, "1.1")?;
    for _ in 0..16 {
        ask(&session, &mut tools)?;
    }
    let named = || Some(session.fact("wait")?["questions"].as_object()?.len());
    until("all are on record", || (named()? == 16).then_some(()))?;
    let rows = session.answers().len();
    let refused = tools
        .call("ask_user_question", json!({"title": "T", "question": "Q", "options": ["a"], "timeout": 5}))?;
    assert!(refused.as_ref().is_err_and(|why| why.contains("questions are open already")), "{refused:?}");
    assert_eq!((session.answers().len(), named()), (rows, Some(16)));
    Ok(())
}

#[test]
fn an_answer_comes_back_whole() -> Outcome {
    let (session, _runner) = at_work()?;
    session.inbound()?.execute(OWN_CHAT, [])?;
    let mut tools = Tools::start(&session, "1.1")?;
    let value = "v".repeat(1_000);
    let options = json!([{"label": "long", "value": value}]);
    let arguments = json!({"title": "T", "question": "Q?", "options": options});
    let asked = tools.begin("tools/call", &json!({"name": "ask_user_question", "arguments": arguments}))?;
    let question =
        until("it waits", || session.fact("wait")?["questions"].as_object()?.keys().next().cloned())?;
    let content = json!({"type": "question_response", "questionId": question, "selectedOption": value});
    let sql = "INSERT INTO messages_in (id, seq, kind, timestamp, content) VALUES \
               ('qr', (SELECT max(seq) + 2 FROM messages_in), 'system', '2026-05-18T09:30:00.000Z', ?1)";
    session.inbound()?.execute(sql, [content.to_string()])?;
    assert_eq!(crate::mcp::outcome(&tools.answer(asked)?), Ok(value));
    Ok(())
}

#[test]
fn what_has_no_address_is_refused_without_naming_a_parameter_that_it_lacks() -> Outcome {
    let (session, _runner) = at_work()?;
    let mut tools = Tools::start(&session, "1.1")?;
    for (tool, arguments) in [
        ("ask_user_question", json!({"title": "t", "question": "q", "options": ["a"]})),
        ("send_card", json!({"card": {"title": "t"}})),
    ] {
        let refused = tools.call(tool, arguments)?.err().unwrap_or_default();
        assert!(
            refused.contains("no chat of its own") && refused.contains("send_message"),
            "{tool}: {refused}"
        );
    }
    assert_eq!(session.answers().len(), 0);
    // A task needs no chat: it comes back to the session (contract 12.2).
    let call = json!({"prompt": "p", "processAfter": "2030-01-01T00:00:00Z"});
    let said = tools.call("schedule_task", call)?;
    assert!(said.is_ok(), "{said:?}");
    let (row, content) = newest(&session)?;
    assert_eq!((&row["channel"], &row["chat"], &row["thread"]), (&Value::Null, &Value::Null, &Value::Null));
    assert_eq!((&content["channelType"], &content["platformId"]), (&Value::Null, &Value::Null));
    Ok(())
}

#[test]
fn a_task_that_is_over_is_no_task() -> Outcome {
    let (session, _runner) = at_work()?;
    let mut tools = Tools::start(&session, "1.1")?;
    let call = json!({"prompt": "p", "processAfter": "2030-01-01T00:00:00Z"});
    tools.call("schedule_task", call)??;
    let id = newest(&session)?.1["taskId"].as_str().unwrap_or_default().to_owned();
    let pause = |tools: &mut Tools| tools.call("pause_task", json!({ "taskId": id }));
    assert!(pause(&mut tools)?.is_ok(), "asked for a moment ago");
    let db = session.inbound()?;
    let task = "INSERT INTO messages_in (id, seq, kind, timestamp, status, process_after, series_id, content) \
                VALUES (?1, 900, 'task', '2026-05-18 09:30:00', 'pending', '2030-01-01T00:00:00.000Z', ?1, \
                '{\"prompt\":\"p\"}')";
    db.execute(task, [&id])?;
    let done = "INSERT INTO delivered (message_out_id, status, delivered_at) \
                VALUES (?1, 'delivered', '2026-05-18 09:30:00')";
    db.execute(done, [&id])?;
    assert!(pause(&mut tools)?.is_ok(), "the host has written it");
    db.execute("UPDATE messages_in SET status = 'completed' WHERE id = ?1", [&id])?;
    let refused = pause(&mut tools)?;
    assert!(refused.as_ref().is_err_and(|why| why.contains("there is no task")), "{refused:?}");
    let message = tools.call("send_message", json!({"to": "work", "text": "x"}))?;
    assert!(message.is_ok());
    let other = session.out("SELECT id FROM messages_out WHERE kind = 'chat'").ok_or("no row")?;
    let refused = tools.call("cancel_task", json!({ "taskId": other }))?;
    assert!(refused.is_err_and(|why| why.contains("there is no task")), "a message is no task");
    Ok(())
}

#[test]
fn the_hosts_side_is_never_sent_by_whatever_name() -> Outcome {
    let (session, _runner) = at_work()?;
    fs::create_dir_all(session.path("in/inbox/m1"))?;
    fs::write(session.path("in/inbox/m1/f"), "f")?;
    fs::write(session.path("agent/a.txt"), "a")?;
    let mut tools = Tools::start(&session, "1.1")?;
    // The test's folders lie below /tmp, from which files may be sent.
    for path in [
        "in/inbound.db",
        "in/container.json",
        "in/inbox/m1/f",
        "out/outbound.db-journal",
        "out/.lamplighter-x",
    ] {
        let path = session.path(path).display().to_string();
        let refused = tools.call("send_file", json!({"to": "work", "path": path}))?;
        assert!(
            refused.as_ref().is_err_and(|why| why.contains("belongs to the session")),
            "{path}: {refused:?}"
        );
    }
    for name in ["a\nb", "a\u{7f}"] {
        let refused = tools.call("send_file", json!({"to": "work", "path": "a.txt", "filename": name}))?;
        assert!(
            refused.as_ref().is_err_and(|why| why.contains("is no name for a file")),
            "{name:?}: {refused:?}"
        );
    }
    std::os::unix::fs::symlink(session.path("agent"), session.path("out/outbox"))?;
    let refused = tools.call("send_file", json!({"to": "work", "path": "a.txt"}))?;
    assert!(refused.as_ref().is_err_and(|why| why.contains("outbox")), "{refused:?}");
    assert_eq!(session.answers().len(), 0);
    assert_eq!(fs::read_dir(session.path("agent"))?.count(), 1, "nothing was written through the link");
    Ok(())
}

#[test]
fn a_file_whose_row_is_refused_leaves_no_copy() -> Outcome {
    let (session, _runner) = at_work()?;
    fs::write(session.path("agent/a.txt"), "a")?;
    let mut tools = Tools::start(&session, "0.9")?;
    let refused = tools.call("send_file", json!({"to": "work", "path": "a.txt"}))?;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(fs::read_dir(session.path("out/outbox"))?.count(), 0);
    Ok(())
}

#[test]
fn only_messages_are_reacted_to() -> Outcome {
    let (session, _runner) = at_work()?;
    let sql = "INSERT INTO messages_in (id, seq, kind, timestamp, channel_type, platform_id, content) VALUES \
               ('task-1', 902, 'task', '2026-05-18 09:30:00', 'tg', '7', '{\"prompt\":\"p\"}')";
    session.inbound()?.execute(sql, [])?;
    let mut tools = Tools::start(&session, "1.1")?;
    let refused = tools.call("add_reaction", json!({"messageId": 902, "emoji": "x"}))?;
    assert!(refused.as_ref().is_err_and(|why| why.contains("902 is no message of a chat")), "{refused:?}");
    Ok(())
}

#[test]
fn each_request_to_the_host_has_its_row() -> Outcome {
    let (session, _runner) = at_work()?;
    session.inbound()?.execute(OWN_CHAT, [])?;
    let mut tools = Tools::start(&session, "1.1")?;
    for (tool, arguments, kind, expected) in [
        (
            "send_card",
            json!({"card": {"title": "t"}, "fallbackText": "f"}),
            "chat-sdk",
            json!({"type": "card", "card": {"title": "t"}, "fallbackText": "f"}),
        ),
        (
            "create_agent",
            json!({"name": "helper"}),
            "system",
            json!({"action": "create_agent", "name": "helper", "instructions": null}),
        ),
        (
            "install_packages",
            json!({"apt": ["git"], "npm": ["@a/b"], "reason": "r"}),
            "system",
            json!({"action": "install_packages", "apt": ["git"], "npm": ["@a/b"], "reason": "r"}),
        ),
        (
            "add_mcp_server",
            json!({"name": "s", "command": "c", "args": ["-x"], "env": {"K": "v"}}),
            "system",
            json!({"action": "add_mcp_server", "name": "s", "command": "c", "args": ["-x"], "env": {"K": "v"}}),
        ),
    ] {
        let said = tools.call(tool, arguments)?;
        assert!(said.is_ok(), "{tool}: {said:?}");
        let (row, mut content) = newest(&session)?;
        if tool == "create_agent" {
            let id = content.as_object_mut().and_then(|content| content.remove("requestId"));
            assert!(id.is_some_and(|id| id.is_string()));
        }
        assert_eq!((&row["kind"], content), (&json!(kind), expected));
    }
    Ok(())
}

#[test]
fn arguments_of_the_wrong_form_are_an_error_that_the_agent_reads() -> Outcome {
    let (session, _runner) = at_work()?;
    let mut tools = Tools::start(&session, "1.1")?;
    for (tool, arguments, named) in [
        ("send_message", json!({}), "text"),
        ("edit_message", json!({"messageId": "seven", "text": "x"}), "seven"),
        ("add_mcp_server", json!({"name": "x", "command": 7}), "7"),
    ] {
        let refused = tools.call(tool, arguments)?.err().unwrap_or_default();
        assert!(refused.starts_with("Error: ") && refused.contains(named), "{tool}: {refused}");
    }
    Ok(())
}

#[test]
fn numbers_are_odd_and_unique_under_two_writers() -> Outcome {
    let (session, _runner) = at_work()?;
    let mut servers = [Tools::start(&session, "1.1")?, Tools::start(&session, "1.1")?];
    for n in 0..20 {
        let call = json!({"name": "send_message", "arguments": {"to": "work", "text": format!("{n}")}});
        // Both are at it at the same time; answers to one client come in any order, so it has one call at a time.
        let asked = [servers[0].begin("tools/call", &call)?, servers[1].begin("tools/call", &call)?];
        for (tools, id) in servers.iter_mut().zip(asked) {
            let said = crate::mcp::outcome(&tools.answer(id)?);
            assert!(said.is_ok(), "{said:?}");
        }
    }
    let mut numbers: Vec<i64> = session.answers().iter().map(|row| row.0).collect();
    assert!(numbers.iter().all(|seq| seq % 2 == 1), "{numbers:?}");
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 40);
    Ok(())
}

#[test]
fn a_client_that_never_initializes_is_served_as_well() -> Outcome {
    let (session, _runner) = at_work()?;
    let mut tools = Tools::spawn(&session, "1.1")?;
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
                      "io.modelcontextprotocol/clientCapabilities": {},
                      "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"}});
    let call = json!({"name": "send_message", "arguments": {"to": "work", "text": "x"}, "_meta": meta});
    let result = tools.request("tools/call", &call)?;
    assert!(crate::mcp::outcome(&result).is_ok(), "{result}");
    Ok(())
}

/// Runs the hook; returns whether it exited with 0, and what it printed.
fn precompact(session: Option<&Session>, input: &str) -> Result<(bool, String), Box<dyn std::error::Error>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamplighter-runner"));
    command.arg("precompact").env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(session) = session {
        command
            .env("LAMPLIGHTER_WORKSPACE", session.path("out"))
            .env("LAMPLIGHTER_IN", session.path("in"))
            .env("LAMPLIGHTER_AGENT", session.path("agent"))
            .env("TZ", "Europe/Berlin");
    }
    let mut child = command.spawn()?;
    // Without an environment it ends before it has read anything.
    let _ = child.stdin.take().ok_or("no stdin")?.write_all(input.as_bytes());
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > Duration::from_secs(20) {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output()?;
    Ok((output.status.success(), String::from_utf8(output.stdout)?))
}

#[test]
fn the_hook_before_a_compaction_never_stops_it() -> Outcome {
    let session = Session::new("[]")?;
    assert!(precompact(None, "{}")?.0, "without an environment");
    let transcript = session.path("t.jsonl");
    fs::write(&transcript, "{\"type\":\"user\",\"message\":{\"content\":\"Buy milk\"}}\n")?;
    let input = |path: &std::path::Path| json!({"transcript_path": path, "trigger": "auto"}).to_string();
    let reminds = |printed: &(bool, String)| printed.0 && printed.1.contains("\"family\"");
    let archived = || fs::read_dir(session.path("agent/conversations")).map_or(0, Iterator::count);
    for odd in ["", "junk", "[]", "{\"transcript_path\":7}"] {
        assert!(reminds(&precompact(Some(&session), odd)?), "{odd:?}");
    }
    let fifo = session.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status()?.success());
    let link = session.path("link");
    std::os::unix::fs::symlink(&transcript, &link)?;
    for path in [&fifo, &link, &session.path("in"), &session.path("missing")] {
        assert!(reminds(&precompact(Some(&session), &input(path))?), "{}", path.display());
    }
    assert_eq!(archived(), 0);
    assert!(reminds(&precompact(Some(&session), &input(&transcript))?));
    assert_eq!(archived(), 1);
    fs::remove_dir_all(session.path("agent/conversations"))?;
    let elsewhere = session.path("elsewhere");
    fs::create_dir(&elsewhere)?;
    std::os::unix::fs::symlink(&elsewhere, session.path("agent/conversations"))?;
    assert!(reminds(&precompact(Some(&session), &input(&transcript))?));
    assert_eq!(fs::read_dir(&elsewhere)?.count(), 0, "nothing is written through a link");
    Ok(())
}
