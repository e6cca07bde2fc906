//! What is told later, or waited for by somebody who may be gone: late answers, questions, new destinations, scripts.

use serde_json::json;

use crate::session::{Outcome, Session, said, until};

/// Makes a row of the system: the answer to a question.
fn put_answer(session: &Session, id: &str, question: &str, chosen: &str) -> Outcome {
    let content =
        json!({"type": "question_response", "questionId": question, "selectedOption": chosen}).to_string();
    let sql = "INSERT INTO messages_in (id, seq, kind, timestamp, platform_id, channel_type, content) VALUES (?1, \
               (SELECT coalesce(max(seq), 0) + 2 FROM messages_in), 'system', '2026-05-18T09:30:00.000Z', '7', 'tg', ?2)";
    session.inbound()?.execute(sql, [id, &content])?;
    Ok(())
}

/// Says that a tool waits for the answer to a question for so many seconds.
fn ask(session: &Session, question: &str, seconds: i64) -> Outcome {
    let sql = "INSERT INTO session_state (key, value, updated_at) VALUES ('lamplighter.wait', json_object('questions', \
               json_object(?1, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?2))), '') \
               ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    session.outbound()?.execute(sql, [question, &format!("+{seconds} seconds")])?;
    Ok(())
}

fn texts(session: &Session) -> Vec<String> {
    session.answers().into_iter().map(|answer| answer.3).collect()
}

#[test]
fn a_late_answer_that_comes_in_mid_turn_is_told_with_the_next_prompt() -> Outcome {
    let session = Session::new(
        r#"[{"pattern":"slow","delay_ms":1500,"reply":"$prompt"},{"pattern":"","reply":"$prompt"}]"#,
    )?;
    put_answer(&session, "r1", "q-1", "first choice")?;
    session.put(&[said("a", r#"{"text":"slow"}"#)])?;
    let _runner = session.start("1.1")?;
    session.until_acked("a", "processing")?;
    put_answer(&session, "r2", "q-2", "second choice")?;
    session.until_acked("r2", "completed")?;
    session.until_acked("a", "completed")?;
    session.put(&[said("b", r#"{"text":"next"}"#)])?;
    session.until_acked("b", "completed")?;
    let told: Vec<(bool, bool)> = texts(&session)
        .iter()
        .map(|text| (text.contains("first choice"), text.contains("second choice")))
        .collect();
    assert_eq!(told, [(true, false), (false, true)]);
    until("nothing is left to tell", || session.fact("late").is_none().then_some(()))
}

#[test]
fn the_answer_to_a_question_whose_asker_was_killed_is_taken_up_when_its_time_is_over() -> Outcome {
    let session = Session::new("[]")?;
    let _runner = session.start("1.1")?;
    until("it has taken over", || session.state("lamplighter.attempt"))?;
    ask(&session, "q-1", 3)?;
    put_answer(&session, "r1", "q-1", "yes")?;
    // No other message comes.
    session.until_acked("r1", "completed")
}

#[test]
fn a_question_does_not_outlive_the_query_whose_tool_has_asked() -> Outcome {
    let session =
        Session::new(r#"[{"pattern":"go","delay_ms":1000,"error":"transient","retry_after_ms":60000}]"#)?;
    session.put(&[said("a", r#"{"text":"go"}"#)])?;
    let _runner = session.start("1.1")?;
    session.until_acked("a", "processing")?;
    ask(&session, "q-1", 600_000)?;
    put_answer(&session, "r1", "q-1", "yes")?;
    session.until_acked("r1", "completed")?;
    assert!(session.fact("release.a").is_some(), "the query has failed");
    assert_eq!(session.fact("wait"), None);
    Ok(())
}

#[test]
fn a_new_destination_is_told_again_when_the_prompt_that_told_of_it_failed() -> Outcome {
    let session = Session::new(
        r#"[{"pattern": "two", "error": "transient", "once": true}, {"pattern": "", "reply": "$prompt"}]"#,
    )?;
    session.put(&[said("a", r#"{"text":"one"}"#)])?;
    let _runner = session.start("1.1")?;
    session.until_acked("a", "completed")?;
    let work = "INSERT INTO destinations (name, type, channel_type, platform_id) VALUES ('work', 'channel', 'tg', '8')";
    session.inbound()?.execute(work, [])?;
    session.put(&[said("b", r#"{"text":"two"}"#)])?;
    until("it is given back", || session.fact("release.b"))?;
    let told = session.fact("destinations").map(|fact| fact["names"].to_string()).unwrap_or_default();
    assert!(!told.contains("work"), "{told}");
    session.until_acked("b", "completed")?;
    assert!(
        texts(&session).last().is_some_and(|text| text.contains("new_destination name")),
        "{:?}",
        texts(&session)
    );
    until("it is noted", || session.fact("destinations")?["names"].to_string().contains("work").then_some(()))
}

#[test]
fn a_script_that_a_stop_ends_is_not_called_broken() -> Outcome {
    let session = Session::new(r#"[{"pattern":"hang","delay_ms":600000}]"#)?;
    let marker = session.path("script-runs");
    let script = format!("touch '{}'; sleep 600", marker.display());
    session.put(&[said("t", &json!({"prompt": "water", "script": script}).to_string())])?;
    session.inbound()?.execute("UPDATE messages_in SET kind = 'task'", [])?;
    session.put(&[said("a", r#"{"text":"hang"}"#)])?;
    let mut runner = session.start("1.1")?;
    until("the script runs", || marker.exists().then_some(()))?;
    session.until_acked("a", "processing")?;
    runner.terminate()?;
    runner.ended()?;
    assert_eq!((session.ack("t"), session.ack("a")), (None, None));
    assert!(session.fact("release.t").is_some());
    assert_eq!(session.fact("task.t"), None, "{}", session.log("1.1"));
    Ok(())
}
