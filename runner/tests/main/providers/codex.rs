//! The provider codex with the real binary.

use std::fs;

use lamplighter_runner::provider::{ErrorClass, ProviderEvent};

use super::{Bench, Model, free_port, push};
use crate::session::Outcome;

fn waits_then(seconds: u32, reply: &str) -> String {
    format!(
        r#"PLAY[{{"tool":["exec_command",{{"cmd":"sleep {seconds}","yield_time_ms":60000}}]}},{{"say":"{reply}"}}]"#
    )
}

/// How often the conversation asks for a lost reply.
fn notices(model: &Model) -> Result<usize, Box<dyn std::error::Error>> {
    let last = model.requests()?.pop().ok_or("no request")?;
    Ok(last["body"]["input"].to_string().matches("kind=\\\"reply-lost\\\"").count())
}

#[test]
#[ignore = "needs the real codex"]
fn a_message_is_answered_and_its_conversation_goes_on_after_a_restart() -> Outcome {
    let (bench, model) = Bench::new("codex", "reply-and-resume")?;
    let mut talk = bench.talk(None, push("p1", r#"the sea is blue PLAY[{"say":"noted it"}]"#))?;
    assert_eq!(talk.answers(&["p1"])?, "noted it");
    let token = talk.continuation()?;
    assert!(talk.query.push(&push("p2", r#"PLAY[{"say":"still here"}]"#)));
    assert_eq!(talk.answers(&["p2"])?, "still here");
    talk.query.end();
    assert!(!talk.query.is_alive());
    let mut talk = bench.talk(Some(&token), push("p3", r#"PLAY[{"say":"back again"}]"#))?;
    assert_eq!(talk.answers(&["p3"])?, "back again");
    assert_eq!(talk.continuation()?, token);
    talk.query.end();
    let last = model.requests()?.pop().ok_or("no request")?.to_string();
    assert!(last.contains("the sea is blue") && last.contains("You are tested by p1."), "{last}");
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn tools_of_a_server_and_of_the_agent_are_told() -> Outcome {
    let (bench, _model) = Bench::new("codex", "tools")?;
    let script = r#"PLAY[{"tool":["mcp__notes/note",{"text":"kept"}]},{"tool":["exec_command",{"cmd":"echo a"}]},
        {"say":"both done"}]"#;
    let mut talk = bench.talk(None, push("p1", script))?;
    assert_eq!(talk.answers(&["p1"])?, "both done");
    assert_eq!(fs::read_to_string(bench.path("notes"))?, "kept\n");
    let names: Vec<&str> = talk
        .seen
        .iter()
        .filter_map(|event| match event {
            ProviderEvent::ToolStarted { name, .. } => Some(name.as_str()),
            ProviderEvent::ToolEnded { .. } => Some("ended"),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["mcp__notes__note", "ended", "shell", "ended"]);
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn a_follow_up_steers_the_running_turn() -> Outcome {
    let (bench, _model) = Bench::new("codex", "follow-up")?;
    let mut talk = bench.talk(None, push("p1", &waits_then(3, "both read")))?;
    talk.tool("shell")?;
    assert!(talk.query.push(&push("p2", "and this")));
    assert_eq!(talk.answers(&["p1", "p2"])?, "both read");
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn a_message_that_comes_while_text_streams_is_answered_in_the_same_turn() -> Outcome {
    let (bench, model) = Bench::new("codex", "slow-stream")?;
    let mut talk =
        bench.talk(None, push("p1", r#"PLAY[{"say":"one two three four five six","slow":0.4}]"#))?;
    talk.started("p1")?;
    model.until_asked("one two three")?;
    assert!(talk.query.push(&push("p2", r#"PLAY[{"say":"both"}]"#)));
    assert_eq!(talk.answers(&["p1", "p2"])?, "both");
    talk.query.end();
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn a_conversation_that_is_gone_is_called_invalid() -> Outcome {
    let (bench, _model) = Bench::new("codex", "unknown-session")?;
    let mut talk = bench.talk(Some("01a20af9-b545-7c93-b109-d7a686ef1c7b"), push("p1", "hello"))?;
    assert_eq!(talk.error()?.class, ErrorClass::SessionInvalid);
    talk.query.abort();
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn a_rate_limit_is_transient_and_the_same_push_is_answered_later() -> Outcome {
    let (bench, model) = Bench::new("codex", "rate-limit")?;
    let script = r#"PLAY[{"status":429,"times":1,"say":"at last"}]"#;
    let mut talk = bench.talk(None, push("p1", script))?;
    let error = talk.error()?;
    assert_eq!(
        (error.class, error.reason.as_str()),
        (ErrorClass::Transient, "the model service answers 429")
    );
    let token = talk.continuation()?;
    talk.query.abort();
    let mut talk = bench.talk(Some(&token), push("p1", script))?;
    assert_eq!(talk.answers(&["p1"])?, "at last");
    talk.query.end();
    assert_eq!(notices(&model)?, 1);
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn a_stream_that_always_breaks_is_announced_and_then_transient() -> Outcome {
    let (bench, _model) = Bench::new("codex", "server-error")?;
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"broken":true}]"#))?;
    // codex tries a broken stream again; this one breaks each time, so in the end the turn fails.
    let error = talk.error()?;
    assert_eq!(error.class, ErrorClass::Transient, "{error:?}");
    assert!(talk.retries() > 0, "{:#?}", talk.seen);
    talk.query.abort();
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn a_service_that_is_not_there_is_waited_for_and_given_up_in_time() -> Outcome {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let port = free_port()?;
    let bench = Bench::at("codex", "refused", root, port)?.with("turn_timeout_s", 30);
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"say":"you are back"}]"#))?;
    talk.until("a retry", |event| matches!(event, ProviderEvent::Retrying { .. }).then_some(()))?;
    let _model = Model::start(bench.root.path(), port)?;
    assert_eq!(talk.answers(&["p1"])?, "you are back");
    talk.query.end();
    bench.keep()?;

    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let bench = Bench::at("codex", "given-up", root, free_port()?)?.with("turn_timeout_s", 2);
    let mut talk = bench.talk(None, push("p1", "hello"))?;
    let error = talk.error()?;
    assert_eq!(error.class, ErrorClass::Transient, "{error:?}");
    assert!(!talk.query.is_alive());
    talk.query.abort();
    Ok(())
}

#[test]
#[ignore = "needs the real codex"]
fn what_the_service_refuses_for_good_is_permanent() -> Outcome {
    for (name, status, said) in [
        ("bad-request", 400, "the model service failed (invalid_request_error)"),
        ("unauthorized", 401, "the model service answers 401; check the credential"),
    ] {
        let (bench, _model) = Bench::new("codex", name)?;
        let mut talk = bench.talk(None, push("p1", &format!(r#"PLAY[{{"status":{status}}}]"#)))?;
        let error = talk.error()?;
        assert_eq!((error.class, error.reason.as_str()), (ErrorClass::Permanent, said));
        talk.query.abort();
        bench.keep()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs the real codex"]
fn after_a_kill_what_had_started_is_asked_for_and_what_had_not_is_said_again() -> Outcome {
    let (bench, model) = Bench::new("codex", "killed-in-mid-turn")?;
    let bench = bench.watched();
    let mut talk = bench.talk(None, push("p1", &waits_then(82, "never")))?;
    talk.tool("shell")?;
    let token = talk.continuation()?;
    assert!(talk.query.push(&push("p2", "queued")));
    // The start, the thread, p1, and then p2.
    bench.until_said("p2 is taken", |line| line["id"] == 4 && line["result"]["turn"].is_object())?;
    talk.query.abort();
    assert!(!talk.seen.contains(&ProviderEvent::Started { id: "p2".into() }));
    let mut talk = bench.talk(Some(&token), push("p1", "the same"))?;
    assert!(talk.query.push(&push("p2", "queued")));
    let mut covered = Vec::new();
    while covered.len() < 2 {
        covered.extend(talk.result()?.covers);
    }
    assert_eq!(covered, ["p1", "p2"]);
    talk.query.end();
    assert_eq!(notices(&model)?, 1);
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn a_reply_that_was_never_recorded_is_asked_for_once() -> Outcome {
    let (bench, model) = Bench::new("codex", "answered-but-lost")?;
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"say":"the answer"}]"#))?;
    assert_eq!(talk.answers(&["p1"])?, "the answer");
    let token = talk.continuation()?;
    talk.query.abort();
    let mut talk = bench.talk(Some(&token), push("p1", "the same"))?;
    talk.answers(&["p1"])?;
    talk.query.end();
    assert_eq!(notices(&model)?, 1);
    bench.keep()
}

#[test]
#[ignore = "needs the real codex"]
fn a_service_that_never_answers_is_given_up() -> Outcome {
    let (bench, _model) = Bench::new("codex", "hang")?;
    let bench = bench.with("turn_timeout_s", 3);
    let mut talk = bench.talk(None, push("p1", r#"PLAY[{"hang":true}]"#))?;
    let error = talk.error()?;
    assert_eq!(error.reason, "no sign of life from codex for 3s");
    assert_eq!(error.class, ErrorClass::Transient);
    talk.query.abort();
    assert!(!talk.query.is_alive());
    Ok(())
}
