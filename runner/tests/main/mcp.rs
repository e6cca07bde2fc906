//! The tool server as a process, spoken to in its protocol, on real files.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::session::{Outcome, Row, Session, said, until};

/// A client of a few lines; killed when dropped.
pub struct Tools {
    child: Server,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    calls: i64,
}

impl Tools {
    /// Starts the server without a word to it.
    pub fn spawn(session: &Session, attempt: &str) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lamplighter-runner"))
            .arg("mcp")
            .env_clear()
            .env("LAMPLIGHTER_WORKSPACE", session.path("out"))
            .env("LAMPLIGHTER_IN", session.path("in"))
            .env("LAMPLIGHTER_AGENT", session.path("agent"))
            .env("LAMPLIGHTER_ATTEMPT", attempt)
            .env("TZ", "Europe/Berlin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take().ok_or("no stdin")?;
        let output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let child = Server(child);
        Ok(Self { child, input, output, calls: 0 })
    }

    pub fn start(session: &Session, attempt: &str) -> Result<Self, Box<dyn Error>> {
        let mut tools = Self::spawn(session, attempt)?;
        let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {},
                           "clientInfo": {"name": "test", "version": "1"}});
        let found = tools.request("initialize", &hello)?;
        assert_eq!(found["serverInfo"]["name"], "lamplighter");
        tools.write(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))?;
        Ok(tools)
    }

    fn write(&mut self, message: &Value) -> Outcome {
        writeln!(self.input, "{message}")?;
        Ok(self.input.flush()?)
    }

    pub fn begin(&mut self, method: &str, params: &Value) -> Result<i64, Box<dyn Error>> {
        self.calls += 1;
        let id = self.calls;
        self.write(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))?;
        Ok(id)
    }

    pub fn answer(&mut self, id: i64) -> Result<Value, Box<dyn Error>> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err("the tool server has ended".into());
            }
            let mut message: Value = serde_json::from_str(&line)?;
            if message["id"] == id {
                let error = message["error"].take();
                return if error.is_null() {
                    Ok(message["result"].take())
                } else {
                    Err(error.to_string().into())
                };
            }
        }
    }

    pub fn request(&mut self, method: &str, params: &Value) -> Result<Value, Box<dyn Error>> {
        let id = self.begin(method, params)?;
        self.answer(id)
    }

    /// Closes both ends, as a client that goes away.
    pub fn hang_up(self) -> Server {
        self.child
    }

    pub fn terminate(&self) -> Outcome {
        let pid = i32::try_from(self.child.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        Ok(rustix::process::kill_process(pid.ok_or("no process id")?, rustix::process::Signal::TERM)?)
    }

    pub fn try_wait(&mut self) -> Option<std::process::ExitStatus> {
        self.child.0.try_wait().ok()?
    }

    /// What a tool says; the reason as an error when it refuses.
    pub fn call(&mut self, tool: &str, arguments: Value) -> Result<Result<String, String>, Box<dyn Error>> {
        let result = self.request("tools/call", &json!({"name": tool, "arguments": arguments}))?;
        Ok(outcome(&result))
    }
}

pub fn outcome(result: &Value) -> Result<String, String> {
    let text = result["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    if result["isError"] == true { Err(text) } else { Ok(text) }
}

/// The server's process; killed when dropped.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A session whose runner has taken over and works on a message that never ends.
pub fn at_work() -> Result<(Session, crate::session::Runner), Box<dyn Error>> {
    let session = Session::new(r#"[{"pattern": "wait", "silence": true}]"#)?;
    let work = "INSERT INTO destinations (name, type, channel_type, platform_id) VALUES ('work', 'channel', 'tg', '8')";
    session.inbound()?.execute(work, [])?;
    let elsewhere = Row { chat: "8", ..said("other", r#"{"text":"wait"}"#) };
    session.put(&[said("first", r#"{"text":"wait"}"#), elsewhere])?;
    let runner = session.start("1.1")?;
    session.until_acked("other", "processing")?;
    Ok((session, runner))
}

pub fn newest(session: &Session) -> Result<(Value, Value), Box<dyn Error>> {
    let db = session.outbound()?;
    let sql = "SELECT kind, channel_type, platform_id, thread_id, in_reply_to, content, seq FROM messages_out \
               ORDER BY rowid DESC LIMIT 1";
    let (row, content): (Value, String) = db.query_row(sql, [], |row| {
        let text = |at: usize| row.get::<_, Option<String>>(at);
        let seq: i64 = row.get(6)?;
        let found = json!({"kind": text(0)?, "channel": text(1)?, "chat": text(2)?, "thread": text(3)?,
                           "in_reply_to": text(4)?, "odd": seq % 2 == 1});
        Ok((found, row.get(5)?))
    })?;
    Ok((row, serde_json::from_str(&content)?))
}

#[test]
fn the_tools_and_what_they_require_are_those_of_the_contract() -> Outcome {
    let session = Session::new("[]")?;
    let _runner = session.start("1.1")?;
    until("the attempt", || session.state("lamplighter.attempt"))?;
    let mut tools = Tools::start(&session, "1.1")?;
    let list = tools.request("tools/list", &json!({}))?;
    let mut lines: Vec<String> = list["tools"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|tool| {
            let words = |value: &Value| {
                let words = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                words.map(str::to_owned).collect::<Vec<_>>()
            };
            let schema = &tool["inputSchema"];
            let required = words(&schema["required"]);
            let keys = schema["properties"].as_object().into_iter().flatten().map(|(key, value)| {
                assert!(value["description"].is_string(), "{key} of {} has no description", tool["name"]);
                if required.contains(key) { format!("{key}*") } else { key.clone() }
            });
            let mut keys: Vec<String> = keys.collect();
            keys.sort();
            assert!(tool["description"].as_str().is_some_and(|text| text.len() > 20), "{}", tool["name"]);
            format!("{}({})", tool["name"].as_str().unwrap_or_default(), keys.join(", "))
        })
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "add_mcp_server(args, command*, env, name*)",
            "add_reaction(emoji*, messageId*)",
            "ask_user_question(options*, question*, timeout, title*)",
            "cancel_task(taskId*)",
            "create_agent(instructions, name*)",
            "edit_message(messageId*, text*)",
            "install_packages(apt, npm, reason)",
            "list_tasks(status)",
            "pause_task(taskId*)",
            "resume_task(taskId*)",
            "schedule_task(processAfter*, prompt*, recurrence, script)",
            "send_card(card*, fallbackText)",
            "send_file(filename, path*, text, to)",
            "send_message(text*, to)",
            "update_task(processAfter, prompt, recurrence, script, taskId*)",
        ]
    );
    Ok(())
}

#[test]
fn a_message_goes_where_it_is_asked_to_and_answers_what_came_from_there() -> Outcome {
    let (session, _runner) = at_work()?;
    let mut tools = Tools::start(&session, "1.1")?;
    for (to, chat, message) in [("family", "7", "first"), ("work", "8", "other")] {
        let sent = tools.call("send_message", json!({"to": to, "text": "hi"}))?;
        assert!(
            sent.as_ref().is_ok_and(|text| text.starts_with(&format!("Message sent to {to} (id: "))),
            "{sent:?}"
        );
        let (row, content) = newest(&session)?;
        let expected = json!({"kind": "chat", "channel": "tg", "chat": chat, "odd": true,
                              "thread": format!("th-{message}"), "in_reply_to": message});
        assert_eq!((row, content), (expected, json!({"text": "hi"})));
    }
    Ok(())
}

#[test]
fn a_message_in_mid_turn_answers_what_the_agent_has_taken_up() -> Outcome {
    let session = Session::new("[]")?;
    let config = json!({"provider": "mock", "mock": {"follow_ups": true, "rules": [
        {"pattern": "long", "delay_ms": 600_000},
    ]}});
    session.configure(&config.to_string())?;
    session.put(&[said("p1", r#"{"text":"long"}"#)])?;
    let _runner = session.start("1.1")?;
    until("the agent has taken it up", || {
        session.fact("turn").filter(|turn| turn["started"] == json!(["p1"]))
    })?;
    session.put(&[said("p2", r#"{"text":"queued"}"#)])?;
    until("the second is pushed", || {
        session.fact("turn").filter(|turn| turn["pushed"] == json!(["p1", "p2"]))
    })?;
    let mut tools = Tools::start(&session, "1.1")?;
    tools.call("send_message", json!({"to": "family", "text": "hi"}))?.map_err(std::io::Error::other)?;
    let (row, _) = newest(&session)?;
    assert_eq!((&row["in_reply_to"], &row["thread"]), (&json!("p1"), &json!("th-p1")));
    Ok(())
}

#[test]
fn what_cannot_be_done_is_said_with_the_way_out_and_changes_nothing() -> Outcome {
    let (session, _runner) = at_work()?;
    let mut tools = Tools::start(&session, "1.1")?;
    for (tool, arguments, reason) in [
        (
            "send_message",
            json!({"text": "x"}),
            "there are several destinations; name one in `to`: family, work",
        ),
        (
            "send_message",
            json!({"to": "nobody", "text": "x"}),
            "no destination \"nobody\"; there are: family, work",
        ),
        ("send_message", json!({"to": "work", "text": " "}), "the text is empty"),
        ("edit_message", json!({"messageId": 999, "text": "x"}), "there is no message 999"),
        ("add_reaction", json!({"messageId": 999, "emoji": "x"}), "there is no message 999"),
        ("schedule_task", json!({"prompt": "p", "processAfter": "soon"}), "\"soon\" is no time"),
        (
            "schedule_task",
            json!({"prompt": "p", "processAfter": "2030-01-01T00:00:00", "recurrence": "daily"}),
            "\"daily\" is no cron expression",
        ),
        ("update_task", json!({"taskId": "task-1"}), "nothing is to be changed"),
        ("cancel_task", json!({"taskId": "task-1"}), "there is no task \"task-1\""),
        ("list_tasks", json!({"status": "odd"}), "there is no status \"odd\""),
        ("install_packages", json!({}), "there are 0 packages"),
        ("install_packages", json!({"apt": ["git", "-y"]}), "\"-y\" is no name of a Debian package"),
        ("add_mcp_server", json!({"name": "lamplighter", "command": "x"}), "cannot be replaced"),
        ("create_agent", json!({"name": " "}), "the name is empty"),
        ("ask_user_question", json!({"title": "t", "question": "q", "options": []}), "there are 0 options"),
        (
            "ask_user_question",
            json!({"title": "t", "question": "q", "options": ["a"], "timeout": 0}),
            "the timeout is 0 s",
        ),
    ] {
        let refused = tools.call(tool, arguments)?;
        let said = refused.as_ref().err().cloned().unwrap_or_default();
        assert!(said.starts_with("Error: ") && said.contains(reason), "{tool}: {refused:?}");
    }
    assert_eq!(session.answers().len(), 0);
    Ok(())
}

#[test]
fn edits_and_reactions_name_the_message_as_the_platform_does() -> Outcome {
    let (session, _runner) = at_work()?;
    session.configure(
        r#"{"provider":"mock","agentGroupId":"ag-1","capabilities":{"tg":["edits","reactions"]}}"#,
    )?;
    let sql = "UPDATE messages_in SET id = 'p1:ag-1' WHERE id = 'first'";
    session.inbound()?.execute(sql, [])?;
    let mut tools = Tools::start(&session, "1.1")?;
    let seq: i64 =
        session.inbound()?.query_row("SELECT seq FROM messages_in WHERE id = 'p1:ag-1'", [], |r| r.get(0))?;
    assert!(tools.call("add_reaction", json!({"messageId": seq, "emoji": "👍"}))?.is_ok());
    let (row, content) = newest(&session)?;
    assert_eq!(content, json!({"operation": "reaction", "messageId": "p1", "emoji": "👍"}));
    assert_eq!((&row["chat"], &row["thread"]), (&json!("7"), &json!("th-first")));

    let sent = tools.call("send_message", json!({"to": "work", "text": "teh"}))??;
    let number: i64 = sent.trim_end_matches(')').rsplit(' ').next().unwrap_or_default().parse()?;
    let early = tools.call("edit_message", json!({"messageId": number, "text": "the"}))?;
    assert!(early.is_err_and(|why| why.contains("is not delivered yet")));
    let id = session.out(&format!("SELECT id FROM messages_out WHERE seq = {number}")).ok_or("no row")?;
    session.inbound()?.execute(
        "INSERT INTO delivered (message_out_id, platform_message_id, status, delivered_at) \
         VALUES (?1, 'plat-9', 'delivered', '2026-05-18 09:30:00')",
        [&id],
    )?;
    assert!(tools.call("edit_message", json!({"messageId": number, "text": "the"}))?.is_ok());
    let (_, content) = newest(&session)?;
    assert_eq!(content, json!({"operation": "edit", "messageId": "plat-9", "text": "the"}));
    Ok(())
}

#[test]
fn a_channel_that_lacks_a_feature_is_named_at_once() -> Outcome {
    let (session, _runner) = at_work()?;
    session.configure(r#"{"provider":"mock","capabilities":{"tg":["edits"]}}"#)?;
    let routing = "INSERT INTO session_routing (id, channel_type, platform_id) VALUES (1, 'tg', '7')";
    session.inbound()?.execute(routing, [])?;
    fs::write(session.path("agent/a.txt"), "x")?;
    let mut tools = Tools::start(&session, "1.1")?;
    for (tool, arguments, feature) in [
        ("send_file", json!({"path": "a.txt"}), "files"),
        ("send_card", json!({"card": {"title": "t"}}), "cards"),
        ("ask_user_question", json!({"title": "t", "question": "q", "options": ["a"]}), "questions"),
    ] {
        let refused = tools.call(tool, arguments)?;
        assert!(
            refused.is_err_and(|why| why.contains(&format!("the channel tg has no {feature}"))),
            "{tool}"
        );
    }
    assert_eq!(session.answers().len(), 0);
    Ok(())
}

#[test]
fn a_file_is_in_the_outbox_before_its_row_and_nothing_else_can_be_sent() -> Outcome {
    let (session, _runner) = at_work()?;
    fs::create_dir_all(session.path("agent/sub"))?;
    fs::write(session.path("agent/sub/a.txt"), "content")?;
    fs::write(session.path("secret"), "s")?;
    std::os::unix::fs::symlink(session.path("secret"), session.path("agent/link"))?;
    std::os::unix::fs::symlink(session.path(""), session.path("agent/up"))?;
    let fifo = session.path("agent/fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status()?.success());
    let large = fs::File::create(session.path("agent/large"))?;
    large.set_len(50 * 1024 * 1024 + 1)?;
    let mut tools = Tools::start(&session, "1.1")?;
    let out = session.path("out").display().to_string();
    for (path, reason) in [
        ("missing", "there is no file"),
        ("../secret", "is no plain path"),
        ("link", "leads through a link"),
        ("up/secret", "leads through a link"),
        ("fifo", "is no regular file"),
        ("sub", "is no regular file"),
        ("large", "at most 52428800 can be sent"),
        ("/etc/passwd", "is outside"),
        (&format!("{out}/outbound.db"), "belongs to the session"),
        (&format!("{out}/.heartbeat"), "belongs to the session"),
        ("", "is no name for a file"),
    ] {
        let refused = tools.call("send_file", json!({"to": "work", "path": path}))?;
        assert!(refused.as_ref().is_err_and(|why| why.contains(reason)), "{path}: {refused:?}");
    }
    assert_eq!(session.answers().len(), 0);
    let call = json!({"to": "work", "path": "sub/a.txt", "filename": "b.txt", "text": "look"});
    assert!(tools.call("send_file", call)?.is_ok());
    let (_, content) = newest(&session)?;
    assert_eq!(content, json!({"text": "look", "files": ["b.txt"]}));
    let id = session.out("SELECT id FROM messages_out").ok_or("no row")?;
    assert_eq!(fs::read_to_string(session.path(&format!("out/outbox/{id}/b.txt")))?, "content");
    assert_eq!(fs::read_dir(session.path("out/outbox"))?.count(), 1, "nothing is left of what was refused");
    Ok(())
}

#[test]
fn a_question_is_answered_or_times_out_or_is_not_delivered_or_cancelled() -> Outcome {
    let (session, _runner) = at_work()?;
    let routing = "INSERT INTO session_routing (id, channel_type, platform_id) VALUES (1, 'tg', '7')";
    session.inbound()?.execute(routing, [])?;
    let mut tools = Tools::start(&session, "1.1")?;
    let ask = |tools: &mut Tools, timeout: f64| {
        let options = json!(["Yes", {"label": "No", "value": "n"}]);
        let arguments = json!({"title": "T", "question": "Q?", "options": options, "timeout": timeout});
        tools.begin("tools/call", &json!({"name": "ask_user_question", "arguments": arguments}))
    };
    let waiting = || {
        let questions = session.fact("wait")?["questions"].as_object()?.clone();
        questions.keys().next().cloned()
    };
    let asked = ask(&mut tools, 60.0)?;
    let question = until("the question is on record as waiting", waiting)?;
    let (row, content) = newest(&session)?;
    assert_eq!((&row["kind"], &content["questionId"]), (&json!("chat-sdk"), &json!(question)));
    assert_eq!(content["options"][1], json!({"label": "No", "selectedLabel": "No", "value": "n"}));
    let put_answer = |question: &str| -> Outcome {
        let content = json!({"type": "question_response", "questionId": question, "selectedOption": "n"});
        let sql = "INSERT INTO messages_in (id, seq, kind, timestamp, content) VALUES \
                   ('qr-' || ?1, (SELECT max(seq) + 2 FROM messages_in), 'system', '2026-05-18T09:30:00.000Z', ?2)";
        session.inbound()?.execute(sql, [question, &content.to_string()])?;
        Ok(())
    };
    put_answer(&question)?;
    assert_eq!(outcome(&tools.answer(asked)?), Ok("n".to_owned()));
    assert_eq!(session.ack(&format!("qr-{question}")).as_deref(), Some("completed"));
    assert_eq!(session.fact("wait"), None);

    let asked = ask(&mut tools, 1.0)?;
    let late = until("the second question waits", waiting)?;
    let why = outcome(&tools.answer(asked)?).err().unwrap_or_default();
    assert!(why.contains("nobody answered within 1 s; an answer that comes later"), "{why}");
    assert_eq!(session.fact("wait"), None);
    put_answer(&late)?;
    session.until_acked(&format!("qr-{late}"), "completed")?;
    assert_eq!(session.fact("late"), Some(json!([{"title": "T", "answer": "n"}])));

    let asked = ask(&mut tools, 60.0)?;
    let lost = until("the third question waits", waiting)?;
    let sql = "INSERT INTO delivered (message_out_id, status, delivered_at) VALUES (?1, 'failed', '')";
    session.inbound()?.execute(sql, [&lost])?;
    let why = outcome(&tools.answer(asked)?).err().unwrap_or_default();
    assert!(why.contains("the question was not delivered"), "{why}");
    assert_eq!(session.fact("wait"), None);

    let asked = ask(&mut tools, 60.0)?;
    until("the fourth question waits", waiting)?;
    let cancel = json!({"requestId": asked, "reason": "enough"});
    tools.write(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancel}))?;
    until("nothing waits any more", || session.fact("wait").is_none().then_some(()))?;
    Ok(())
}

#[test]
fn tasks_are_requested_in_utc_and_listed_in_the_zone() -> Outcome {
    let (session, _runner) = at_work()?;
    let mut tools = Tools::start(&session, "1.1")?;
    let routing =
        "INSERT INTO session_routing (id, channel_type, platform_id, thread_id) VALUES (1, 'tg', '7', 't')";
    session.inbound()?.execute(routing, [])?;
    let call = json!({"prompt": "Water the plants", "processAfter": "2030-06-15T09:30:00", "recurrence": "30 9 * * *"});
    let said = tools.call("schedule_task", call)??;
    let (row, content) = newest(&session)?;
    let id = content["taskId"].as_str().unwrap_or_default().to_owned();
    assert_eq!(said, format!("Task {id} requested for 2030-06-15 09:30 CEST, again by \"30 9 * * *\""));
    assert_eq!(row["kind"], "system");
    assert_eq!(
        content,
        json!({"action": "schedule_task", "taskId": id, "prompt": "Water the plants", "script": null,
               "processAfter": "2030-06-15T07:30:00.000Z", "recurrence": "30 9 * * *",
               "platformId": "7", "channelType": "tg", "threadId": "t"})
    );
    assert_eq!(tools.call("list_tasks", json!({}))?, Ok("There are no tasks.".to_owned()));
    // Known by its request, although the host has not written it yet.
    assert!(tools.call("pause_task", json!({"taskId": id}))?.is_ok());
    let sql = "INSERT INTO messages_in (id, seq, kind, timestamp, status, process_after, recurrence, series_id, \
               content) VALUES (?1, 900, 'task', '2026-05-18 09:30:00', 'paused', \
               '2030-06-15T07:30:00.000Z', '30 9 * * *', ?1, \
               '{\"prompt\":\"Water\\nthe plants\"}')";
    session.inbound()?.execute(sql, [&id])?;
    let line = format!("{id}: paused, 2030-06-15 09:30 CEST, again by \"30 9 * * *\": Water the plants");
    assert_eq!(tools.call("list_tasks", json!({"status": "paused"}))?, Ok(line));
    assert_eq!(tools.call("list_tasks", json!({"status": "pending"}))?, Ok("There are no tasks.".to_owned()));
    let change = json!({"taskId": id, "recurrence": "", "script": ""});
    assert!(tools.call("update_task", change)?.is_ok());
    let (_, content) = newest(&session)?;
    assert_eq!(content, json!({"action": "update_task", "taskId": id, "recurrence": null, "script": null}));
    Ok(())
}

#[test]
fn a_tool_server_of_an_earlier_start_writes_nothing() -> Outcome {
    let (session, runner) = at_work()?;
    let mut tools = Tools::start(&session, "1.1")?;
    drop(runner);
    let _next = session.start("1.2")?;
    until("the next start", || (session.state("lamplighter.attempt")? == "1.2").then_some(()))?;
    let refused = tools.call("send_message", json!({"to": "work", "text": "x"}))?;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(session.answers().len(), 0);
    Ok(())
}
