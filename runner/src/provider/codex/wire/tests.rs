//! The language, line by line, and against recordings of the real CLI: `fixtures/cassettes/codex/`.

use std::error::Error;
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;
use crate::prompt::Prompt;
use crate::provider::child::shown::{compare_recordings, shown};

fn thread_id() -> Uuid {
    Uuid::from_u128(1)
}

fn wire(id: Option<Uuid>) -> Wire {
    let thread = Thread { id, folder: "/agent".into(), effort: Some("low".into()), ..Thread::default() };
    Wire::new(thread, Uuid::from_u128(2), Ms::secs(60), || 1_000)
}

fn push(id: &str) -> Push {
    Push { id: id.into(), prompt: Prompt { text: format!("<message id=\"{id}\">"), triggers: Vec::new() } }
}

fn uuid(id: &str) -> String {
    Uuid::new_v5(&thread_id(), id.as_bytes()).to_string()
}

fn say(wire: &mut Wire, line: Value) -> Vec<String> {
    shown(&wire.line(&line.to_string()))
}

/// A new thread that is open, its first push said.
fn opened() -> Wire {
    let mut wire = wire(None);
    wire.open();
    assert_eq!(shown(&wire.push(push("a"))), Vec::<String>::new());
    assert_eq!(say(&mut wire, json!({"id": 1, "result": {}})), ["write initialized", "write thread/start"]);
    let opened = say(&mut wire, json!({"id": 2, "result": {"thread": {"id": thread_id().to_string()}}}));
    let init = format!("init {}", thread_id());
    assert_eq!(opened, [init.as_str(), "write turn/start <message id=\"a\">"]);
    wire
}

fn message(id: &str) -> Value {
    json!({"method": "item/started", "params": {"item": {"type": "userMessage", "clientId": uuid(id)}}})
}

fn completed(turn: Value) -> Value {
    json!({"method": "turn/completed", "params": {"turn": turn}})
}

fn said(text: &str) -> Value {
    json!({"method": "item/completed", "params": {"item": {"type": "agentMessage", "text": text}}})
}

#[test]
fn a_turn_covers_the_messages_that_it_took_up_and_says_the_last_text() {
    let mut wire = opened();
    wire.push(push("b"));
    wire.push(push("c"));
    assert_eq!(say(&mut wire, message("a")), ["started a"]);
    assert_eq!(say(&mut wire, message("a")), Vec::<String>::new());
    say(&mut wire, said("on it"));
    assert_eq!(say(&mut wire, message("b")), ["started b"]);
    say(&mut wire, said("done"));
    let found = say(&mut wire, completed(json!({"id": "t", "status": "completed"})));
    assert_eq!(found, [r#"result of ["a", "b"]: Some("done")"#]);
    assert!(wire.is_waiting());
}

#[test]
fn a_message_that_came_too_late_for_its_turn_is_said_again() {
    let mut wire = opened();
    say(&mut wire, message("a"));
    wire.push(push("b"));
    say(&mut wire, json!({"id": 4, "result": {"turn": {"id": "t"}}}));
    let found = say(&mut wire, completed(json!({"id": "t", "status": "completed"})));
    assert_eq!(found, [r#"result of ["a"]: None"#, "write turn/start <message id=\"b\">"]);
}

#[test]
fn a_message_that_a_compaction_does_not_take_is_said_after_it() {
    let mut wire = opened();
    let info = json!({"codexErrorInfo": {"activeTurnNotSteerable": {"turnKind": "compact"}}});
    let refusal = json!({"id": 3, "error": {"code": -32600, "message": "x", "data": info}});
    assert_eq!(say(&mut wire, refusal), Vec::<String>::new());
    let found = say(&mut wire, completed(json!({"id": "t", "status": "completed"})));
    assert_eq!(found, ["write turn/start <message id=\"a\">"]);
}

#[test]
fn a_known_message_is_not_said_twice_but_its_reply_is_asked_for() {
    let mut wire = wire(Some(thread_id()));
    wire.open();
    wire.push(push("a"));
    wire.push(push("b"));
    assert_eq!(say(&mut wire, json!({"id": 1, "result": {}})), ["write initialized", "write thread/resume"]);
    let opened = say(&mut wire, json!({"id": 2, "result": {"thread": {"id": thread_id().to_string()}}}));
    assert_eq!(opened, [format!("init {}", thread_id()), "write thread/items/list".to_owned()]);
    let items = json!([{"item": {"type": "userMessage", "clientId": uuid("a")}}, {"item": 7}]);
    let asked = say(&mut wire, json!({"id": 3, "result": {"data": items}}));
    assert_eq!(
        asked,
        ["write turn/start <notice kind=\"reply-lost\">", "write turn/start <message id=\"b\">"]
    );
}

#[test]
fn the_items_of_the_newest_turn_are_asked_for_page_by_page_and_no_older_ones() {
    let mut wire = wire(Some(thread_id()));
    wire.open();
    wire.push(push("a"));
    say(&mut wire, json!({"id": 1, "result": {}}));
    say(&mut wire, json!({"id": 2, "result": {"thread": {"id": thread_id().to_string()}}}));
    let shell = json!({"item": {"type": "commandExecution"}, "turnId": "t2"});
    let first = json!({"data": [shell, shell], "nextCursor": "c1"});
    let asked = wire.line(&json!({"id": 3, "result": first}).to_string());
    let [Effect::Write(asked), ..] = asked.as_slice() else { panic!("{asked:?}") };
    let expected =
        json!({"threadId": thread_id().to_string(), "limit": 200, "sortDirection": "desc", "cursor": "c1"});
    assert_eq!((&asked["method"], &asked["params"]), (&json!("thread/items/list"), &expected));
    let own = json!({"item": {"type": "userMessage", "clientId": uuid("a")}, "turnId": "t2"});
    let older = json!({"item": {"type": "agentMessage"}, "turnId": "t1"});
    let last = json!({"data": [shell, own, older], "nextCursor": "c2"});
    assert_eq!(
        say(&mut wire, json!({"id": 4, "result": last})),
        ["write turn/start <notice kind=\"reply-lost\">"]
    );
}

#[test]
fn a_turn_without_an_end_of_its_items_holds_nothing_up_for_ever() {
    let mut wire = wire(Some(thread_id()));
    wire.open();
    wire.push(push("a"));
    say(&mut wire, json!({"id": 1, "result": {}}));
    say(&mut wire, json!({"id": 2, "result": {"thread": {"id": thread_id().to_string()}}}));
    let page = json!({"data": [{"item": {"type": "commandExecution"}, "turnId": "t"}], "nextCursor": "c"});
    let pages = (3..)
        .take_while(|id| say(&mut wire, json!({"id": id, "result": page})) == ["write thread/items/list"]);
    assert_eq!(pages.count() + 1, 50);
    assert_eq!(shown(&wire.push(push("b"))), ["write turn/start <message id=\"b\">"]);
}

#[test]
fn a_conversation_that_is_gone_is_invalid_and_another_refusal_is_not() {
    for (message, expected) in [
        (
            "no rollout found for thread id x",
            "error session-invalid: codex knows nothing of this conversation any more",
        ),
        (
            "thread x already has an active writer",
            "error transient: another codex process still has this conversation",
        ),
        ("secret", "error permanent: codex refuses the conversation (code -32600)"),
    ] {
        let mut wire = wire(Some(thread_id()));
        wire.open();
        say(&mut wire, json!({"id": 1, "result": {}}));
        let found = say(&mut wire, json!({"id": 2, "error": {"code": -32600, "message": message}}));
        assert_eq!(found, [expected]);
    }
}

#[test]
fn a_failed_turn_is_judged_by_its_code_and_never_quoted() {
    let status = |name: &str, status: u16| json!({name: {"httpStatusCode": status}});
    let quoted = r#"{"error":{"type":"invalid_request_error","message":"secret"}}"#;
    for (info, message, expected) in [
        (
            status("responseTooManyFailedAttempts", 429),
            "secret",
            "error transient: the model service answers 429",
        ),
        (
            status("httpConnectionFailed", 401),
            "secret",
            "error permanent: the model service answers 401; check the credential",
        ),
        (
            json!("internalServerError"),
            "secret",
            "error transient: the model service failed (internalServerError)",
        ),
        (
            json!("contextWindowExceeded"),
            "",
            "error permanent: the model service failed (contextWindowExceeded)",
        ),
        (json!("other"), quoted, "error permanent: the model service failed (invalid_request_error)"),
        (json!("other"), "secret", "error transient: the model service failed (other)"),
        (Value::Null, "", "error transient: the model service failed (other)"),
    ] {
        let mut wire = opened();
        let error = json!({"codexErrorInfo": info, "message": message});
        let found = say(&mut wire, completed(json!({"status": "failed", "error": error})));
        assert_eq!(found, [expected]);
    }
}

#[test]
fn a_used_up_limit_says_when_it_opens_again() {
    let mut wire = opened();
    let limits = json!({"primary": {"usedPercent": 100, "resetsAt": 1_090}, "secondary": {"usedPercent": 50,
        "resetsAt": 9_000}});
    say(&mut wire, json!({"method": "account/rateLimits/updated", "params": {"rateLimits": limits}}));
    let error = json!({"codexErrorInfo": "usageLimitExceeded"});
    let found = say(&mut wire, completed(json!({"status": "failed", "error": error})));
    assert_eq!(found, ["error transient, after 90s: the model service failed (usageLimitExceeded)"]);
}

#[test]
fn a_service_that_stays_away_is_given_up_though_codex_never_does() {
    let info = json!({"responseStreamDisconnected": {"httpStatusCode": null}});
    let retry = json!({"method": "error", "params": {"willRetry": true, "error": {"codexErrorInfo": info}}});
    let mut wire = opened();
    assert_eq!(say(&mut wire, retry.clone()), ["retrying in 0ms: the model service cannot be reached"]);
    wire.clock = || 1_059;
    assert_eq!(say(&mut wire, retry.clone()), ["retrying in 0ms: the model service cannot be reached"]);
    wire.clock = || 1_060;
    say(&mut wire, json!({"method": "turn/started", "params": {"turn": {"id": "t"}}}));
    let found = say(&mut wire, retry);
    let reason = "error transient: the model service cannot be reached; codex has tried in vain for 60s";
    assert_eq!(found, ["write turn/interrupt", reason]);
}

#[test]
fn tools_are_named_and_end_with_their_turn() {
    let mut wire = opened();
    let item = |kind: &str, item: Value| json!({"method": kind, "params": {"item": item}});
    let shell = json!({"type": "commandExecution", "id": "1"});
    let note = json!({"type": "mcpToolCall", "id": "2", "server": "notes", "tool": "note"});
    assert_eq!(say(&mut wire, item("item/started", shell.clone())), ["tool 1 shell"]);
    assert_eq!(say(&mut wire, item("item/started", note)), ["tool 2 mcp__notes__note"]);
    let ask = json!({"type": "mcpToolCall", "id": "3", "server": "lamplighter", "tool": "ask_user_question",
        "arguments": {"timeout": 7200}});
    let name = "mcp__lamplighter__ask_user_question";
    assert_eq!(say(&mut wire, item("item/started", ask.clone())), [format!("tool 3 {name}")]);
    assert_eq!((wire.is_waiting(), wire.tools()), (true, vec![None, None, Some(Ms::secs(7_200))]));
    assert_eq!(say(&mut wire, item("item/completed", ask)), ["tool 3 ended"]);
    assert_eq!(say(&mut wire, item("item/completed", shell)), ["tool 1 ended"]);
    let found = say(&mut wire, completed(json!({"status": "completed"})));
    assert_eq!(found, ["tool 2 ended"]);
}

#[test]
fn another_threads_turn_answers_nobody_and_a_request_is_refused() {
    let mut wire = opened();
    say(&mut wire, message("a"));
    let other =
        json!({"method": "turn/completed", "params": {"threadId": "x", "turn": {"status": "failed"}}});
    assert_eq!(say(&mut wire, other), Vec::<String>::new());
    assert_eq!(
        say(&mut wire, json!({"id": "q", "method": "item/tool/call", "params": {}})),
        ["write answer"]
    );
}

#[test]
fn no_line_makes_it_fail() {
    let mut wire = opened();
    for line in [
        "",
        "{",
        "{}",
        "[]",
        "{\"id\":3}",
        "{\"id\":-1,\"result\":7}",
        "{\"method\":7}",
        "{\"method\":\"turn/completed\"}",
        "{\"method\":\"item/started\",\"params\":{\"item\":7}}",
        "{\"method\":\"error\",\"params\":7}",
        "{\"method\":\"account/rateLimits/updated\",\"params\":{\"rateLimits\":[]}}",
    ] {
        wire.line(line);
    }
}

/// What the language makes of a recording, as text. What it says itself must be what was recorded.
fn replay(recording: &str) -> Result<String, Box<dyn Error>> {
    let lines: Vec<Value> = recording.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut out = String::new();
    let mut wire = wire(None);
    for (at, line) in lines.iter().enumerate() {
        let effects = if line.get("start").is_some() {
            let ours = lines.iter().skip(at + 1).take_while(|line| line.get("start").is_none());
            let resumed = ours.filter_map(|line| {
                line["in"]["params"]["threadId"].as_str().zip(text(&line["in"], "method"))
            });
            let id = resumed
                .filter(|(_, method)| *method == "thread/resume")
                .map(|(id, _)| Uuid::try_parse(id))
                .next();
            writeln!(out, "-- a process")?;
            wire = self::wire(id.transpose()?);
            wire.open()
        } else if let Some(code) = line["exit"].as_i64() {
            let status = Some(ExitStatus::from_raw(i32::try_from(code)? << 8));
            wire.exited(&Exit { status, stderr: String::new() }, 0)
        } else if text(&line["in"], "method") == Some("turn/start") {
            let said = line["in"]["params"]["input"][0]["text"].as_str().unwrap_or_default();
            let id = said
                .split_once("id=\"")
                .and_then(|(_, rest)| Some(rest.split_once('"')?.0))
                .ok_or("no id")?;
            let known = said.starts_with("<notice");
            let prompt = if known { format!("<message id=\"{id}\">") } else { said.to_owned() };
            let effects =
                wire.push(Push { id: id.to_owned(), prompt: Prompt { text: prompt, triggers: Vec::new() } });
            let [Effect::Write(written)] = effects.as_slice() else { return Err("it was not said".into()) };
            if known {
                // The uuids of notices are random: from here on the recorded one counts.
                let recorded = line["in"]["params"]["clientUserMessageId"].as_str().unwrap_or_default();
                wire.pushes
                    .iter_mut()
                    .filter(|push| push.push.id == id)
                    .for_each(|push| push.uuid = recorded.into());
            } else {
                assert_eq!(written["params"], line["in"]["params"]);
            }
            effects
        } else if line.get("in").is_some() {
            continue;
        } else {
            wire.line(&line["out"].to_string())
        };
        for line in shown(&effects) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(out)
}

#[test]
fn each_recording_of_the_real_cli_means_what_is_written_beside_it() -> Result<(), Box<dyn Error>> {
    compare_recordings("codex", replay)
}
