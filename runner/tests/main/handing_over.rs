//! What was handed to an agent comes again as it was: after a crash, after an error, after another provider's turn.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::session::{Outcome, Session, said, until};

/// The ids of the pushes of a recording, in their order.
fn pushes(tape: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let lines: Vec<Value> =
        fs::read_to_string(tape)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(lines.iter().filter_map(|line| line["push"]["id"].as_str().map(str::to_owned)).collect())
}

fn mock(session: &Session, rules: &Value) -> Outcome {
    let config = json!({"provider": "mock", "mock": {"follow_ups": true, "rules": rules}});
    session.configure(&config.to_string())
}

#[test]
fn after_a_crash_each_push_is_made_again_under_its_own_id() -> Outcome {
    let session = Session::new("[]")?;
    mock(&session, &json!([{"pattern": "hang", "delay_ms": 600_000, "once": true}]))?;
    session.put(&[said("a", r#"{"text":"hang"}"#), said("b", r#"{"text":"two"}"#)])?;
    let tapes = [session.path("tape-1"), session.path("tape-2")];
    let mut runner = session.start_recording("1.1", &tapes[0])?;
    session.until_acked("b", "processing")?;
    session.put(&[said("c", r#"{"text":"three"}"#)])?;
    let both =
        || session.fact("pushes").filter(|fact| fact["pushes"].as_array().is_some_and(|all| all.len() == 2));
    until("both pushes are on record", both)?;
    runner.kill()?;
    runner.ended()?;
    session.put(&[said("d", r#"{"text":"four"}"#)])?;
    let _next = session.start_recording("1.2", &tapes[1])?;
    for id in ["a", "b", "c", "d"] {
        session.until_acked(id, "completed")?;
    }
    let before = pushes(&tapes[0])?;
    assert!(before[0].starts_with("batch-") && before[1..] == ["c"], "{before:?}");
    assert_eq!(pushes(&tapes[1])?, [&before[..], &["d".to_owned()]].concat());
    let texts: Vec<String> = session.answers().into_iter().map(|answer| answer.3).collect();
    let echo = |text: &str| format!(r#"{{"text":"echo: {text}"}}"#);
    assert_eq!(texts, ["hang", "two", "three", "four"].map(echo));
    until("nothing is kept of what was answered", || session.fact("pushes").is_none().then_some(()))
}

#[test]
fn a_push_is_on_record_before_it_is_made() -> Outcome {
    let session = Session::new("[]")?;
    mock(&session, &json!([{"pattern": "boom", "crash": 9, "once": true}]))?;
    session.put(&[said("a", r#"{"text":"boom"}"#)])?;
    let mut runner = session.start("1.1")?;
    assert_eq!(runner.ended()?.code(), Some(9));
    assert_eq!(session.fact("turn").map(|fact| fact["pushed"].clone()), Some(json!(["a"])));
    assert!(session.fact("pushes").is_some());
    Ok(())
}

#[test]
fn after_an_error_that_passes_nothing_is_mixed_anew() -> Outcome {
    let session = Session::new("[]")?;
    mock(&session, &json!([{"pattern": "busy", "delay_ms": 1_000, "error": "transient", "once": true}]))?;
    session.put(&[said("a", r#"{"text":"busy"}"#)])?;
    let tape = session.path("tape");
    let _runner = session.start_recording("1.1", &tape)?;
    session.until_acked("a", "processing")?;
    session.put(&[said("b", r#"{"text":"two"}"#)])?;
    until("both are given back", || session.fact("release.a").and(session.fact("release.b")))?;
    session.until_acked("a", "completed")?;
    session.until_acked("b", "completed")?;
    assert_eq!(pushes(&tape)?, ["a", "b", "a", "b"]);
    assert_eq!(session.answers().len(), 2);
    Ok(())
}

#[test]
fn each_provider_goes_on_with_its_own_conversation() -> Outcome {
    let session = Session::new("[]")?;
    let talk = |continuation: Option<&str>, text: &str| {
        let answer = format!("<message to=\"family\">{text}</message>");
        [
            json!({"open": {"continuation": continuation}}),
            json!({"push": {"ms": 0, "id": "m", "text": ""}}),
            json!({"event": {"ms": 0, "kind": "init", "continuation": "thread-of-the-cassette"}}),
            json!({"event": {"ms": 0, "kind": "result", "text": answer, "covers": ["m"]}}),
        ]
    };
    let head = json!({"cassette": {"version": 1, "native_commands": false, "follow_ups": true}});
    for (name, continuation) in [("first", None), ("second", Some("thread-of-the-cassette"))] {
        let lines: Vec<String> =
            [head.clone()].iter().chain(&talk(continuation, name)).map(Value::to_string).collect();
        fs::write(session.path(&format!("agent/{name}.jsonl")), lines.join("\n") + "\n")?;
    }
    let cassette =
        |name: &str| json!({"provider": "cassette", "cassette": {"file": format!("{name}.jsonl")}});
    let mock = json!({"provider": "mock", "mock": {"rules": []}});
    for (n, config) in [cassette("first"), mock.clone(), cassette("second"), mock].iter().enumerate() {
        session.configure(&config.to_string())?;
        let id = format!("m{n}");
        session.put(&[said(&id, r#"{"text":"x"}"#)])?;
        let mut runner = session.start(&format!("1.{n}"))?;
        session.until_acked(&id, "completed")?;
        runner.terminate()?;
        runner.ended()?;
    }
    let texts: Vec<String> = session.answers().into_iter().map(|answer| answer.3).collect();
    assert_eq!(
        texts,
        ["first", "echo: x", "second", "echo: x"].map(|text| format!(r#"{{"text":"{text}"}}"#))
    );
    assert_eq!(session.state("continuation:mock").as_deref(), Some("mock-2"), "its second turn");
    Ok(())
}
