//! The language, line by line, and against recordings of the real CLI: `fixtures/cassettes/claude/`.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;
use crate::prompt::Prompt;
use crate::provider::child::shown::{compare_recordings, shown};

fn wire() -> Wire {
    Wire::new(Uuid::from_u128(1), Uuid::from_u128(2), vec!["notes".into()], || 1_000)
}

fn push(id: &str) -> Push {
    Push { id: id.into(), prompt: Prompt { text: format!("<message id=\"{id}\">"), triggers: Vec::new() } }
}

/// The uuid that a push has in the conversation of [`wire`].
fn uuid(id: &str) -> String {
    Uuid::new_v5(&Uuid::from_u128(1), id.as_bytes()).to_string()
}

fn say(wire: &mut Wire, line: Value) -> Vec<String> {
    shown(&wire.line(&line.to_string()))
}

fn lifecycle(wire: &mut Wire, id: &str, state: &str) -> Vec<String> {
    say(wire, json!({"type": "command_lifecycle", "command_uuid": uuid(id), "state": state}))
}

fn init(wire: &mut Wire) -> Vec<String> {
    let servers = json!([{"name": "notes", "status": "connected"}]);
    say(
        wire,
        json!({"type": "system", "subtype": "init", "capabilities": [LIFECYCLE], "mcp_servers": servers}),
    )
}

fn result(ids: &[&str]) -> Value {
    let uuids: Vec<String> = ids.iter().map(|id| uuid(id)).collect();
    json!({"type": "result", "subtype": "success", "is_error": false, "result": "text",
        "origin": {"kind": "human"}, "user_message_uuids": uuids})
}

#[test]
fn a_result_covers_the_pushes_that_it_lists_and_no_others() {
    let mut wire = wire();
    for id in ["a", "b", "c"] {
        wire.push(push(id));
    }
    assert_eq!(lifecycle(&mut wire, "a", "queued"), Vec::<String>::new());
    assert_eq!(lifecycle(&mut wire, "a", "started"), ["started a"]);
    assert_eq!(lifecycle(&mut wire, "a", "started"), Vec::<String>::new());
    assert_eq!(say(&mut wire, result(&["b", "a"])), [r#"result of ["a", "b"]: Some("text")"#]);
    assert!(wire.is_waiting());
    assert_eq!(say(&mut wire, result(&["c"])), [r#"result of ["c"]: Some("text")"#]);
    assert!(!wire.is_waiting());
}

#[test]
fn a_result_without_a_list_covers_what_has_started_unless_the_agent_began_by_itself() {
    let mut wire = wire();
    wire.push(push("a"));
    wire.push(push("b"));
    lifecycle(&mut wire, "a", "started");
    let mut line = result(&[]);
    let fields = line.as_object_mut();
    fields.and_then(|fields| fields.remove("user_message_uuids"));
    line["origin"] = json!({"kind": "task-notification"});
    assert_eq!(say(&mut wire, line.clone()), [r#"result of []: Some("text")"#]);
    line["origin"] = Value::Null;
    assert_eq!(say(&mut wire, line), [r#"result of ["a"]: Some("text")"#]);
}

#[test]
fn an_older_cli_without_states_says_by_repeating_a_message_that_it_has_begun() {
    let mut wire = wire();
    wire.push(push("a"));
    say(
        &mut wire,
        json!({"type": "system", "subtype": "init", "mcp_servers": [{"name": "notes", "status": "connected"}]}),
    );
    let replay = json!({"type": "user", "isReplay": true, "uuid": uuid("a"), "message": {"content": "x"}});
    assert_eq!(say(&mut wire, replay), ["started a"]);
}

#[test]
fn a_known_message_is_asked_for_once_and_its_reply_covers_it() {
    let mut wire = wire();
    wire.push(push("a"));
    let asked = lifecycle(&mut wire, "a", "completed");
    assert_eq!(asked, ["write user <notice kind=\"reply-lost\">"]);
    assert_eq!(lifecycle(&mut wire, "a", "completed"), Vec::<String>::new());
    say(&mut wire, json!({"type": "system", "subtype": "session_state_changed", "state": "idle"}));
    let again = wire.pushes.first().and_then(|push| push.again.clone());
    assert_ne!(again.as_deref(), Some(uuid("a").as_str()));
    let mut line = result(&[]);
    line["user_message_uuids"] = json!([again]);
    assert_eq!(say(&mut wire, line), [r#"result of ["a"]: Some("text")"#]);
}

#[test]
fn a_turn_that_goes_on_by_itself_is_heard_before_a_known_message_is_asked_for() {
    let mut covered = wire();
    init(&mut covered);
    covered.push(push("a"));
    assert_eq!(lifecycle(&mut covered, "a", "completed"), Vec::<String>::new());
    assert_eq!(say(&mut covered, result(&["a"])), [r#"result of ["a"]: Some("text")"#]);

    let mut other = wire();
    init(&mut other);
    other.push(push("a"));
    lifecycle(&mut other, "a", "completed");
    let said = say(&mut other, result(&[]));
    assert_eq!(said, [r#"result of []: Some("text")"#, "write user <notice kind=\"reply-lost\">"]);
}

#[test]
fn a_folded_message_may_be_completed_before_the_result_that_covers_it() {
    let mut wire = wire();
    wire.push(push("a"));
    lifecycle(&mut wire, "a", "started");
    init(&mut wire);
    wire.push(push("b"));
    lifecycle(&mut wire, "b", "started");
    assert_eq!(lifecycle(&mut wire, "b", "completed"), Vec::<String>::new());
    assert_eq!(say(&mut wire, result(&["a", "b"])), [r#"result of ["a", "b"]: Some("text")"#]);
}

#[test]
fn a_message_that_passed_without_a_result_is_asked_for_when_all_work_is_done() {
    let mut wire = wire();
    wire.push(push("a"));
    lifecycle(&mut wire, "a", "started");
    init(&mut wire);
    lifecycle(&mut wire, "a", "cancelled");
    let idle = json!({"type": "system", "subtype": "session_state_changed", "state": "idle"});
    assert_eq!(say(&mut wire, idle.clone()), ["write user <notice kind=\"reply-lost\">"]);
    assert_eq!(say(&mut wire, idle), Vec::<String>::new());
}

fn tool_use(id: &str, name: &str, timeout: Value, parent: Value) -> Value {
    let block = json!({"type": "tool_use", "id": id, "name": name, "input": {"timeout": timeout}});
    json!({"type": "assistant", "message": {"content": [block]}, "parent_tool_use_id": parent})
}

fn tool_result(id: &str) -> Value {
    json!({"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": id}]}})
}

#[test]
fn tools_are_told_apart_and_each_has_the_time_that_it_declares() {
    let mut wire = wire();
    wire.push(push("a"));
    assert!(wire.is_waiting());
    assert_eq!(say(&mut wire, tool_use("1", "Bash", json!(5000), Value::Null)), ["tool 1 Bash within 5s"]);
    assert_eq!(say(&mut wire, tool_use("2", "Agent", json!(5000), Value::Null)), ["tool 2 Agent"]);
    assert_eq!(say(&mut wire, tool_use("3", "Bash", json!("x"), json!("2"))), ["tool 3 Bash"]);
    assert_eq!(say(&mut wire, tool_use("1", "Bash", json!(5000), Value::Null)), Vec::<String>::new());
    assert_eq!((wire.is_waiting(), wire.tools()), (true, vec![Some(Ms(5_000)), None, None]));
    let ask = tool_use("4", "mcp__lamplighter__ask_user_question", json!(7200), Value::Null);
    assert_eq!(say(&mut wire, ask), ["tool 4 mcp__lamplighter__ask_user_question"]);
    assert_eq!(wire.tools().last(), Some(&Some(Ms::secs(7_200))));
    assert_eq!(say(&mut wire, tool_result("4")), ["tool 4 ended"]);
    assert_eq!(say(&mut wire, tool_result("1")), ["tool 1 ended"]);
    assert_eq!(say(&mut wire, tool_result("1")), Vec::<String>::new());
    // The turn ends; the agent that works in the background, and its tool, go on.
    assert_eq!(say(&mut wire, result(&["a"])), ["tool 2 ended", r#"result of ["a"]: Some("text")"#]);
    let ended = json!({"type": "system", "subtype": "task_notification", "tool_use_id": "2"});
    assert_eq!(say(&mut wire, ended), ["tool 3 ended"]);
}

#[test]
fn a_new_id_of_the_conversation_is_told_and_that_of_an_unknown_one_is_not() {
    let own = Uuid::from_u128(1).to_string();
    let other = Uuid::from_u128(7).to_string();
    let mut wire = wire();
    let gone =
        json!({"type": "result", "is_error": true, "session_id": own, "errors": ["No conversation found"]});
    let said = "error session-invalid: claude knows nothing of this conversation any more";
    assert_eq!(say(&mut wire, gone), [said]);

    let mut wire = self::wire();
    let running =
        json!({"type": "system", "subtype": "session_state_changed", "state": "running", "session_id": own});
    assert_eq!(say(&mut wire, running.clone()), [format!("init {own}")]);
    assert_eq!(say(&mut wire, running), Vec::<String>::new());
    let reset = json!({"type": "conversation_reset", "session_id": own, "new_conversation_id": other});
    assert_eq!(say(&mut wire, reset), Vec::<String>::new());
    let mut done = result(&[]);
    done["session_id"] = json!(other);
    assert_eq!(say(&mut wire, done), [format!("init {other}"), r#"result of []: Some("text")"#.into()]);
}

fn api_error(status: Value, kind: Value) -> Value {
    json!({"type": "result", "subtype": "success", "is_error": true, "api_error_status": status,
        "api_error_type": kind, "terminal_reason": "api_error", "result": "API Error: the secret is x"})
}

#[test]
fn errors_are_judged_by_flag_and_status_and_never_quote() {
    for (line, expected) in [
        (api_error(json!(529), Value::Null), "error transient: the model service answers 529"),
        (api_error(Value::Null, Value::Null), "error transient: the model service cannot be reached"),
        (
            api_error(json!(401), json!("authentication_error")),
            "error permanent: the model service answers 401 (authentication_error); check the credential",
        ),
        (
            json!({"type": "result", "is_error": true, "subtype": "error_max_turns", "errors": ["secret"]}),
            "error permanent: claude ended the turn with error_max_turns",
        ),
        (
            json!({"type": "result", "is_error": true, "subtype": "error_during_execution"}),
            "error transient: claude ended the turn with error_during_execution",
        ),
        (
            json!({"type": "result", "is_error": true, "startup_failure_reason": "bypass_root"}),
            "error permanent: claude refuses to start: bypass_root",
        ),
    ] {
        let mut wire = wire();
        wire.push(push("a"));
        assert_eq!(say(&mut wire, line), [expected]);
        assert_eq!(say(&mut wire, result(&["a"])), Vec::<String>::new());
        assert!(!wire.is_waiting());
    }
}

#[test]
fn a_used_up_window_says_when_it_opens_again() {
    let mut wire = wire();
    wire.push(push("a"));
    let info = json!({"status": "rejected", "resetsAt": 1_090, "rateLimitType": "five_hour"});
    assert_eq!(
        say(&mut wire, json!({"type": "rate_limit_event", "rate_limit_info": info})),
        Vec::<String>::new()
    );
    let said = say(&mut wire, api_error(json!(429), json!("rate_limit_error")));
    assert_eq!(said, ["error transient, after 90s: the model service answers 429 (rate_limit_error)"]);
}

#[test]
fn a_failed_turn_that_the_agent_began_by_itself_fails_no_message() {
    let mut wire = wire();
    wire.push(push("a"));
    let mut line = api_error(json!(500), Value::Null);
    line["origin"] = json!({"kind": "task-notification"});
    let said = "progress a turn that the agent began by itself failed: the model service answers 500";
    assert_eq!(say(&mut wire, line), [said]);
    assert!(wire.is_waiting());
}

#[test]
fn a_compaction_is_judged_by_its_own_word_and_ends_no_turn() {
    let mut wire = wire();
    wire.push(push("a"));
    let failed = json!({"type": "system", "subtype": "status", "compact_result": "failed",
        "compact_error": "too_few_groups"});
    assert_eq!(
        say(&mut wire, failed.clone()),
        ["progress the conversation could not be compacted (too_few_groups)"]
    );
    assert_eq!(say(&mut wire, result(&["a"])), [r#"result of ["a"]: Some("text")"#]);

    wire.push(push("b"));
    say(&mut wire, failed);
    let mut line = result(&["b"]);
    line["local_command"] = json!("compact");
    let said =
        "error permanent: the conversation could not be compacted: the model service cannot be reached";
    assert_eq!(say(&mut wire, line), [said]);
}

#[test]
fn a_question_of_the_cli_is_refused_rather_than_left_open() {
    let line = json!({"type": "control_request", "request_id": "7", "request": {"subtype": "can_use_tool"}});
    assert_eq!(say(&mut wire(), line), ["write control_response"]);
}

#[test]
fn a_tool_server_that_is_missing_is_told() {
    let mut wire = wire();
    let line =
        json!({"type": "system", "subtype": "init", "mcp_servers": [{"name": "notes", "status": "failed"}]});
    assert_eq!(say(&mut wire, line), ["progress the tool server \"notes\" is failed"]);
    let line = json!({"type": "system", "subtype": "init", "mcp_servers": []});
    assert_eq!(say(&mut wire, line), ["progress the tool server \"notes\" is not there"]);
}

#[test]
fn an_end_is_judged_by_the_last_words_and_by_what_is_open() {
    let exit = |stderr: &str| Exit { status: Some(ExitStatus::from_raw(256)), stderr: stderr.into() };
    let end = |pushes: &[&str], stderr: &str| {
        let mut wire = wire();
        for id in pushes {
            wire.push(push(id));
        }
        shown(&wire.exited(&exit(stderr), 0)).join("\n")
    };
    assert_eq!(end(&[], ""), "progress claude ended while idle (exit status: 1)");
    assert_eq!(end(&["a"], "killed"), "error crashed: claude ended in mid-turn (exit status: 1): killed");
    let said = "error: unknown option '--x'";
    assert_eq!(
        end(&["a"], said),
        format!("error permanent: claude ended in mid-turn (exit status: 1): {said}")
    );
    let said = "error session-invalid: claude knows nothing of this conversation any more";
    assert_eq!(end(&["a"], "No conversation found with session ID: 1"), said);
    assert_eq!(shown(&wire().exited(&exit(""), 1)).len(), 1);
}

#[test]
fn no_line_makes_it_fail() {
    let mut wire = wire();
    wire.push(push("a"));
    let result = json!({"type": "tool_result", "content": "x".repeat(1_300_000)});
    let long = json!({"type": "user", "message": {"content": [result]}});
    for line in [
        "",
        "{",
        "{}",
        "[]",
        "null",
        "7",
        "{\"type\":7}",
        "{\"type\":\"result\"",
        "{\"type\":\"assistant\",\"message\":7}",
        "{\"type\":\"assistant\",\"message\":{\"content\":[7,{\"type\":\"tool_use\"}]}}",
        "{\"type\":\"command_lifecycle\",\"command_uuid\":[]}",
        "{\"type\":\"system\",\"subtype\":\"init\",\"mcp_servers\":7}",
        "{\"type\":\"system\",\"subtype\":\"api_retry\",\"retry_delay_ms\":-1e300}",
        "{\"type\":\"control_request\"}",
        &"[".repeat(100_000),
        &long.to_string(),
    ] {
        wire.line(line);
    }
    assert!(wire.is_waiting());
}

/// What the language makes of a recording, as text.
fn replay(recording: &str) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    let mut wire = wire();
    let mut written = VecDeque::new();
    // The uuids of this process's own messages are random: here ours, there the recorded ones.
    let mut ours: Vec<(String, String)> = Vec::new();
    for line in recording.lines() {
        let line = ours.iter().fold(line.to_owned(), |line, (theirs, ours)| line.replace(theirs, ours));
        let mut line: Value = serde_json::from_str(&line)?;
        let effects = if let Some(start) = text(&line, "start") {
            let session = Uuid::try_parse(start)?;
            writeln!(out, "-- a process for {session}")?;
            wire = Wire::new(session, Uuid::nil(), vec!["notes".into()], || 0);
            Vec::new()
        } else if let Some(code) = line["exit"].as_i64() {
            let status = Some(ExitStatus::from_raw(i32::try_from(code)? << 8));
            wire.exited(&Exit { status, stderr: String::new() }, 0)
        } else if let Some(said) = line.get_mut("in").map(Value::take) {
            if text(&said, "type") != Some("user") {
                continue;
            }
            let uuid = text(&said, "uuid").unwrap_or_default().to_owned();
            let number =
                (1..10).find(|n| Uuid::new_v5(&wire.session, format!("p{n}").as_bytes()).to_string() == uuid);
            let Some(number) = number else {
                ours.push((
                    uuid,
                    written.pop_front().ok_or("the recording asks again, the language does not")?,
                ));
                continue;
            };
            let id = format!("p{number}");
            let prompt = text(&said["message"], "content").unwrap_or_default().to_owned();
            let effects = wire.push(Push { id, prompt: Prompt { text: prompt, triggers: Vec::new() } });
            assert_eq!(effects, [Effect::Write(said)]);
            effects
        } else {
            let effects = wire.line(&line["out"].to_string());
            written.extend(effects.iter().filter_map(|effect| match effect {
                Effect::Write(line) => text(line, "uuid").map(str::to_owned),
                Effect::Tell(_) => None,
            }));
            effects
        };
        for line in shown(&effects) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(out)
}

#[test]
fn each_recording_of_the_real_cli_means_what_is_written_beside_it() -> Result<(), Box<dyn Error>> {
    compare_recordings("claude", replay)
}
