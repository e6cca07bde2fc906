//! The provider claude with the real binary.

use std::fs;

use lamplighter_runner::provider::{ErrorClass, ProviderEvent};

use uuid::Uuid;

use super::{Bench, Model, Talk, free_port, push, raw};
use crate::session::Outcome;

/// A command of so many seconds that claude runs in the foreground.
fn wait_command(seconds: u32) -> String {
    format!("python3 -c 'import time; time.sleep({seconds})'")
}

fn waits_then(seconds: u32, reply: &str) -> String {
    let command = wait_command(seconds);
    format!(r#"PLAY[{{"tool":["Bash",{{"command":"{command}","timeout":90000}}]}},{{"say":"{reply}"}}]"#)
}

#[test]
#[ignore = "needs the real claude"]
fn a_message_is_answered_and_its_conversation_goes_on_after_a_restart() -> Outcome {
    let (bench, model) = Bench::new("claude", "reply-and-resume")?;
    let mut talk = bench.talk(None, push("p1", r#"the sea is blue PLAY[{"say":"noted it"}]"#))?;
    assert_eq!(talk.answers(&["p1"])?, "noted it");
    let token = talk.continuation()?;
    assert!(talk.seen.contains(&ProviderEvent::Started { id: "p1".into() }));
    assert!(talk.query.push(&push("p2", r#"PLAY[{"say":"still here"}]"#)));
    assert_eq!(talk.answers(&["p2"])?, "still here");
    talk.query.end();
    assert!(!talk.query.is_alive());

    let mut talk = bench.talk(Some(&token), push("p3", r#"PLAY[{"say":"back again"}]"#))?;
    assert_eq!(talk.answers(&["p3"])?, "back again");
    assert_eq!(talk.continuation()?, token);
    talk.query.end();
    let last = model.requests()?.pop().ok_or("no request")?.to_string();
    assert!(last.contains("the sea is blue") && last.contains("You are tested by p3."), "{last}");
    assert!(!last.contains("You are tested by p1."), "the instructions of the run before are still there");
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn tools_of_a_server_and_of_the_agent_are_told_with_their_deadlines() -> Outcome {
    let (bench, _model) = Bench::new("claude", "tools")?;
    let script = r#"PLAY[{"tool":[["mcp__notes__note",{"text":"kept"}],["Bash",{"command":"echo a","timeout":7000}]]},
        {"say":"both done"}]"#;
    let mut talk = bench.talk(None, push("p1", script))?;
    assert_eq!(talk.answers(&["p1"])?, "both done");
    assert_eq!(fs::read_to_string(bench.path("notes"))?, "kept\n");
    let tools: Vec<String> = talk
        .seen
        .iter()
        .filter_map(|event| match event {
            ProviderEvent::ToolStarted { name, timeout, .. } => {
                Some(timeout.map_or_else(|| name.clone(), |time| format!("{name} {time}")))
            }
            ProviderEvent::ToolEnded { .. } => Some("ended".to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(tools.iter().filter(|tool| *tool == "ended").count(), 2, "{tools:?}");
    assert!(
        tools.contains(&"mcp__notes__note".to_owned()) && tools.contains(&"Bash 7s".to_owned()),
        "{tools:?}"
    );
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_follow_up_is_folded_into_the_turn_whose_tool_works() -> Outcome {
    let (bench, _model) = Bench::new("claude", "follow-up")?;
    let mut talk = bench.talk(None, push("p1", &waits_then(3, "both read")))?;
    talk.tool("Bash")?;
    assert!(talk.query.push(&push("p2", "and this")));
    assert_eq!(talk.answers(&["p1", "p2"])?, "both read");
    assert!(talk.seen.contains(&ProviderEvent::Started { id: "p2".into() }));
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn messages_that_come_while_text_streams_get_a_turn_of_their_own() -> Outcome {
    let (bench, model) = Bench::new("claude", "slow-stream")?;
    let mut talk =
        bench.talk(None, push("p1", r#"PLAY[{"say":"one two three four five six","slow":0.3}]"#))?;
    talk.started("p1")?;
    model.until_asked("one two three")?;
    assert!(
        talk.query.push(&push("p2", "second")) && talk.query.push(&push("p3", r#"PLAY[{"say":"both"}]"#))
    );
    assert_eq!(talk.answers(&["p1"])?, "one two three four five six");
    assert_eq!(talk.answers(&["p2", "p3"])?, "both");
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_conversation_that_is_gone_is_called_invalid() -> Outcome {
    let (bench, _model) = Bench::new("claude", "unknown-session")?;
    let mut talk = bench.talk(Some("00000000-0000-4000-8000-000000000000"), push("p1", "hello"))?;
    assert_eq!(talk.error()?.class, ErrorClass::SessionInvalid);
    assert!(!talk.seen.iter().any(|event| matches!(event, ProviderEvent::Init { .. })));
    talk.query.abort();
    bench.keep()?;
    let Err(refused) = bench.talk(Some("no uuid"), push("p1", "hello")) else { return Err("started".into()) };
    assert!(refused.to_string().contains("no UUID"));
    Ok(())
}

#[test]
#[ignore = "needs the real claude"]
fn a_rate_limit_and_an_overload_are_announced_and_then_answered() -> Outcome {
    let (bench, _model) = Bench::new("claude", "rate-limit")?;
    let script = r#"PLAY[{"status":429,"times":2,"say":"at last","after":1}]"#;
    let mut talk = bench.talk(None, push("p1", script))?;
    assert_eq!(talk.answers(&["p1"])?, "at last");
    assert_eq!(talk.retries(), 2);
    for (id, status) in [("p2", 529), ("p3", 500)] {
        let script = format!(r#"PLAY[{{"status":{status},"times":1,"say":"after {status}"}}]"#);
        assert!(talk.query.push(&push(id, &script)));
        assert_eq!(talk.answers(&[id])?, format!("after {status}"));
    }
    assert_eq!(talk.retries(), 4);
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_service_that_is_not_there_is_waited_for() -> Outcome {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let port = free_port()?;
    let bench = Bench::at("claude", "refused", root, port)?;
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"say":"you are back"}]"#))?;
    let reason = talk.until("a retry", |event| match event {
        ProviderEvent::Retrying { reason, .. } => Some(reason.clone()),
        _ => None,
    })?;
    assert!(reason.contains("cannot be reached"), "{reason}");
    let _model = Model::start(bench.root.path(), port)?;
    assert_eq!(talk.answers(&["p1"])?, "you are back");
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn an_overload_that_lasts_is_transient_and_the_same_push_is_answered_later() -> Outcome {
    let (bench, model) = Bench::new("claude", "overloaded")?;
    let bench = bench.with("max_retries", 1);
    let script = r#"PLAY[{"status":529,"times":2,"say":"at last"}]"#;
    let mut talk = bench.talk(None, push("p1", script))?;
    let error = talk.error()?;
    assert_eq!(error.class, ErrorClass::Transient);
    assert_eq!(error.reason, "the model service answers 529 (overloaded_error)");
    let token = talk.continuation()?;
    assert!(!talk.query.is_alive());
    talk.query.abort();
    let mut talk = bench.talk(Some(&token), push("p1", script))?;
    assert_eq!(talk.answers(&["p1"])?, "at last");
    talk.query.end();
    assert_eq!(notices(&model)?, 1);
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn what_the_service_refuses_for_good_is_permanent() -> Outcome {
    for (name, status, said) in [
        ("bad-request", 400, "the model service answers 400 (invalid_request_error)"),
        ("no-such-model", 404, "the model service answers 404 (not_found_error); check the model's name"),
    ] {
        let (bench, _model) = Bench::new("claude", name)?;
        let mut talk = bench.talk(None, push("p1", &format!(r#"PLAY[{{"status":{status}}}]"#)))?;
        let error = talk.error()?;
        assert_eq!((error.class, error.reason.as_str()), (ErrorClass::Permanent, said));
        talk.query.abort();
        bench.keep()?;
    }
    Ok(())
}

/// Resumes with these pushes and waits until results have covered all of them, in whatever grouping.
fn resumed(bench: &Bench, token: &str, ids: &[&str]) -> Result<Talk, Box<dyn std::error::Error>> {
    let mut talk = bench.talk(Some(token), push(ids.first().ok_or("no push")?, "the same as before"))?;
    for id in ids.iter().skip(1) {
        assert!(talk.query.push(&push(id, "the same as before")));
    }
    let mut covered = Vec::new();
    while covered.len() < ids.len() {
        covered.extend(talk.result()?.covers);
    }
    covered.sort();
    assert_eq!(covered, ids);
    Ok(talk)
}

/// How often the conversation asks for a lost reply.
fn notices(model: &Model) -> Result<usize, Box<dyn std::error::Error>> {
    let last = model.requests()?.pop().ok_or("no request")?;
    Ok(last["body"]["messages"].to_string().matches("kind=\\\"reply-lost\\\"").count())
}

#[test]
#[ignore = "needs the real claude"]
fn a_message_that_was_queued_when_the_process_was_killed_is_said_again() -> Outcome {
    let (bench, model) = Bench::new("claude", "killed-while-queued")?;
    let bench = bench.watched();
    let mut talk = bench.talk(None, push("p1", &waits_then(80, "never")))?;
    talk.tool("Bash")?;
    let token = talk.continuation()?;
    assert!(talk.query.push(&push("p2", "queued")));
    let queued = Uuid::new_v5(&Uuid::try_parse(&token)?, b"p2").to_string();
    bench.until_said("p2 is queued", |line| line["state"] == "queued" && line["command_uuid"] == *queued)?;
    talk.query.abort();
    assert!(!talk.seen.contains(&ProviderEvent::Started { id: "p2".into() }));
    let mut talk = resumed(&bench, &token, &["p1", "p2"])?;
    talk.query.end();
    // The first had started: it is asked for once. The second had not: it is simply said.
    assert_eq!(notices(&model)?, 1);
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_message_whose_turn_was_killed_is_asked_for_once() -> Outcome {
    let (bench, model) = Bench::new("claude", "killed-in-mid-turn")?;
    let mut talk = bench.talk(None, push("p1", &waits_then(81, "never")))?;
    talk.tool("Bash")?;
    let token = talk.continuation()?;
    talk.query.abort();
    assert!(!talk.query.is_alive());
    let mut talk = resumed(&bench, &token, &["p1"])?;
    talk.query.end();
    assert_eq!(notices(&model)?, 1);
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_reply_that_was_never_recorded_is_asked_for_once() -> Outcome {
    let (bench, model) = Bench::new("claude", "answered-but-lost")?;
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"say":"the answer"}]"#))?;
    assert_eq!(talk.answers(&["p1"])?, "the answer");
    let token = talk.continuation()?;
    talk.query.abort();
    let mut talk = resumed(&bench, &token, &["p1"])?;
    // The next message is an ordinary one again.
    assert!(talk.query.push(&push("p2", r#"PLAY[{"say":"the next"}]"#)));
    assert_eq!(talk.answers(&["p2"])?, "the next");
    talk.query.end();
    assert_eq!(notices(&model)?, 1);
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_service_that_never_answers_is_given_up() -> Outcome {
    let (bench, _model) = Bench::new("claude", "hang")?;
    let bench = bench.with("turn_timeout_s", 3);
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"hang":true}]"#))?;
    let error = talk.error()?;
    assert_eq!(error.class, ErrorClass::Transient);
    assert_eq!(error.reason, "no sign of life from claude for 3s");
    assert!(!talk.query.is_alive());
    talk.query.abort();
    Ok(())
}

#[test]
#[ignore = "needs the real claude"]
fn commands_are_answered_by_the_cli_and_a_compaction_is_no_answer_by_itself() -> Outcome {
    let (bench, _model) = Bench::new("claude", "commands")?;
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"say":"hello"}]"#))?;
    assert_eq!(talk.answers(&["p1"])?, "hello");
    assert!(talk.query.push(&raw("p2", "/cost")));
    let cost = talk.answers(&["p2"])?;
    assert!(cost.to_lowercase().contains("cost"), "{cost}");
    assert!(talk.query.push(&raw("p3", "/compact")));
    let compacted = talk.answers(&["p3"])?;
    assert!(compacted.starts_with("The conversation is compacted: "), "{compacted}");
    let token = talk.continuation()?;
    assert!(talk.query.push(&raw("p4", "/clear")));
    talk.answers(&["p4"])?;
    assert!(talk.query.push(&push("p5", r#"PLAY[{"say":"anew"}]"#)));
    assert_eq!(talk.answers(&["p5"])?, "anew");
    assert_ne!(talk.continuation()?, token);
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_conversation_that_grows_is_compacted_without_a_result_of_its_own() -> Outcome {
    let (bench, _model) = Bench::new("claude", "auto-compaction")?;
    let bench = bench.with("auto_compact_window", 100_000);
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"say":"a little"}]"#))?;
    assert_eq!(talk.answers(&["p1"])?, "a little");
    for (id, script, said) in [
        ("p2", r#"PLAY[{"say":"more"}]"#, "more"),
        ("p3", r#"PLAY[{"say":"much","usage":[99000,900]}]"#, "much"),
        ("p4", r#"PLAY[{"say":"after it"}]"#, "after it"),
    ] {
        assert!(talk.query.push(&push(id, script)));
        assert_eq!(talk.answers(&[id])?, said);
    }
    let is_compaction = |event: &ProviderEvent| match event {
        ProviderEvent::Progress(said) => said.starts_with("The conversation is compacted"),
        _ => false,
    };
    assert!(talk.seen.iter().any(is_compaction), "{:#?}", talk.seen);
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn work_in_the_background_brings_a_turn_that_covers_nothing() -> Outcome {
    let (bench, _model) = Bench::new("claude", "background")?;
    let script = r#"PLAY[{"tool":["Bash",{"command":"sleep 1; echo over","run_in_background":true}]},{"say":"begun"}]"#;
    let mut talk = bench.talk(None, push("p1", script))?;
    assert_eq!(talk.answers(&["p1"])?, "begun");
    talk.answers(&[])?;
    assert!(talk.query.is_alive());
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_stream_that_breaks_off_is_made_good() -> Outcome {
    let (bench, _model) = Bench::new("claude", "cut-stream")?;
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"say":"whole all the same","cut":true}]"#))?;
    assert_eq!(talk.answers(&["p1"])?, "whole all the same");
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn a_flag_that_claude_does_not_know_is_permanent_and_said_in_its_words() -> Outcome {
    let (bench, _model) = Bench::new("claude", "bad-flag")?;
    let bench = bench.with("extra_args", vec!["--no-such-flag"]);
    let mut talk = bench.talk(None, push("p1", "hello"))?;
    let error = talk.error()?;
    assert_eq!(error.class, ErrorClass::Permanent, "{error:?}");
    assert!(error.reason.contains("--no-such-flag"), "{error:?}");
    Ok(())
}

#[test]
#[ignore = "needs the real claude"]
fn a_used_up_subscription_says_when_it_may_be_used_again() -> Outcome {
    let (mut bench, _model) = Bench::new("claude", "used-up")?;
    bench.credential = "CLAUDE_CODE_OAUTH_TOKEN";
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"limits":true}]"#))?;
    let error = talk.error()?;
    assert_eq!(error.class, ErrorClass::Transient, "{error:?}");
    let after = error.retry_after.ok_or("no time")?;
    assert!((3_000_000..=3_600_000).contains(&after.0), "{after}");
    talk.query.abort();
    bench.keep()
}

#[test]
#[ignore = "needs the real claude"]
fn an_agent_of_the_agent_is_told_by_its_tools_too() -> Outcome {
    let (bench, _model) = Bench::new("claude", "subagent")?;
    let inner = r#"PLAY[{\"tool\":[\"Bash\",{\"command\":\"echo inner\"}]},{\"say\":\"looked\"}]"#;
    let script = format!(
        r#"PLAY[{{"tool":["Agent",{{"description":"look","prompt":"{inner}","subagent_type":"general-purpose",
            "run_in_background":false}}]}},{{"say":"outer"}}]"#
    );
    let mut talk = bench.talk(None, push("p1", &script))?;
    assert_eq!(talk.answers(&["p1"])?, "outer");
    talk.query.end();
    let names: Vec<&str> = talk
        .seen
        .iter()
        .filter_map(|event| match event {
            ProviderEvent::ToolStarted { name, .. } => Some(name.as_str()),
            ProviderEvent::ToolEnded { .. } => Some("ended"),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["Agent", "Bash", "ended", "ended"]);
    bench.keep()
}
