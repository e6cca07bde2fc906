//! Locks on outbound.db that another process holds: nothing is lost, and a stop is not held up.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::session::{Outcome, Row, Session, said, until};

/// More answers than the runner would keep in its memory.
const ANSWERS: usize = 100;

#[test]
fn what_an_agent_says_while_the_file_is_locked_is_sent_afterwards_all_of_it() -> Outcome {
    let session = Session::new("[]")?;
    let mut lines = vec![
        json!({"cassette": {"version": 1, "native_commands": true, "follow_ups": true}}),
        json!({"open": {"continuation": null}}),
        json!({"push": {"ms": 0, "id": "m", "text": ""}}),
        json!({"event": {"ms": 0, "kind": "started", "id": "m"}}),
    ];
    for n in 0..ANSWERS {
        let text = format!("<message to=\"family\">{n}</message>");
        lines.push(
            json!({"event": {"ms": 700, "kind": "tool_started", "id": "t", "name": "Bash", "timeout_ms": n}}),
        );
        lines.push(json!({"event": {"ms": 700, "kind": "result", "text": text, "covers": []}}));
    }
    lines.push(
        json!({"event": {"ms": 700, "kind": "result", "text": "the costs", "covers": ["m"], "local": true}}),
    );
    let tape: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(session.path("agent/tape.jsonl"), tape.join("\n") + "\n")?;
    let config = json!({"provider": "cassette", "cassette": {"file": "tape.jsonl", "timed": true}});
    session.configure(&config.to_string())?;
    session.put(&[said("a", r#"{"text":"/cost"}"#)])?;
    let mut runner = session.start("1.1")?;
    until("the turn has started", || session.log("1.1").contains("turn started").then_some(()))?;
    let other = session.outbound()?;
    other.execute_batch("BEGIN EXCLUSIVE")?;
    // A look is then what waits for the lock first.
    session.put(&[Row { trigger: false, ..said("c", r#"{"text":"noise"}"#) }])?;
    until("it waits", || session.log("1.1").contains("waiting").then_some(()))?;
    // The lock outlasts all answers; that they have come to the runner's door nothing says.
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(runner.is_alive());
    other.execute_batch("COMMIT")?;
    session.until_acked("a", "completed")?;
    let texts: Vec<String> = session.answers().into_iter().map(|answer| answer.3).collect();
    let all = (0..ANSWERS).map(|n| n.to_string()).chain(["the costs".to_owned()]);
    assert_eq!(texts, all.map(|text| json!({ "text": text }).to_string()).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_lock_does_not_hold_up_a_stop() -> Outcome {
    let session = Session::new(r#"[{"pattern":"hang","delay_ms":600000}]"#)?;
    session.put(&[said("a", r#"{"text":"hang"}"#)])?;
    let mut runner = session.start("1.1")?;
    until("the turn has started", || session.log("1.1").contains("turn started").then_some(()))?;
    let other = session.outbound()?;
    other.execute_batch("BEGIN EXCLUSIVE")?;
    // What it would write now it waits for; the five seconds of the contract would be the connection's own.
    session.put(&[said("b", r#"{"text":"two"}"#)])?;
    until("it waits", || session.log("1.1").contains("waiting").then_some(()))?;
    let asked = Instant::now();
    runner.terminate()?;
    assert_eq!(runner.ended()?.code(), Some(0), "{}", session.log("1.1"));
    let took = asked.elapsed();
    assert!(took < Duration::from_millis(4_500), "the stop took {took:?}");
    other.execute_batch("COMMIT")?;
    assert!(session.log("1.1").contains("claims that a lock kept"), "{}", session.log("1.1"));
    Ok(())
}
