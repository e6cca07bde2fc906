//! What becomes of answers that cannot simply be sent: of commands, without blocks, without a word.

use serde_json::{Value, json};

use crate::session::{Outcome, Session, said, until};

#[test]
fn what_a_model_says_to_a_command_is_sent_by_its_blocks_alone() -> Outcome {
    let session = Session::new("[]")?;
    let text = "<internal>secret</internal>hm<message to=\"family\">shown</message>";
    let lines = [
        json!({"cassette": {"version": 1, "native_commands": true, "follow_ups": true}}),
        json!({"open": {"continuation": null}}),
        json!({"push": {"ms": 0, "id": "m", "text": "/my:skill x"}}),
        json!({"event": {"ms": 0, "kind": "result", "text": text, "covers": ["m"]}}),
    ];
    let tape: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(session.path("agent/tape.jsonl"), tape.join("\n") + "\n")?;
    let config = json!({"provider": "cassette", "cassette": {"file": "tape.jsonl", "strict": true}});
    session.configure(&config.to_string())?;
    session.put(&[said("a", r#"{"text":"/my:skill x"}"#)])?;
    let _runner = session.start("1.1")?;
    session.until_acked("a", "completed")?;
    let texts: Vec<String> = session.answers().into_iter().map(|answer| answer.3).collect();
    assert_eq!(texts, [r#"{"text":"shown"}"#], "{}", session.log("1.1"));
    Ok(())
}

/// How often the agent was asked again after a bare text, when its tools have written this row in its turn.
fn nudges_beside(kind: &str, channel: &str, content: &str) -> Result<usize, Box<dyn std::error::Error>> {
    let session = Session::new("[]")?;
    let rules = json!([{"pattern": "go", "tool_ms": 1_000, "raw": true, "reply": "bare"}]);
    session
        .configure(&json!({"provider": "mock", "mock": {"follow_ups": true, "rules": rules}}).to_string())?;
    session.put(&[said("a", r#"{"text":"go"}"#)])?;
    let _runner = session.start("1.1")?;
    until("the tool runs", || session.fact("tools"))?;
    let sql = "INSERT INTO messages_out (id, seq, timestamp, kind, channel_type, platform_id, content) \
               VALUES ('o1', 1, datetime('now'), ?1, ?2, '7', ?3)";
    session.outbound()?.execute(sql, [kind, channel, content])?;
    session.until_acked("a", "completed")?;
    Ok(session.log("1.1").matches("messages were handed on").count())
}

#[test]
fn only_what_a_chat_has_heard_by_a_tool_makes_up_for_a_bare_text() -> Outcome {
    let text = r#"{"text":"said by a tool"}"#;
    for (kind, channel, content, nudges) in [
        ("chat", "tg", text, 0),
        ("system", "tg", r#"{"action":"schedule_task"}"#, 1),
        ("chat", "tg", r#"{"operation":"reaction","messageId":"1","emoji":"x"}"#, 1),
        ("chat", "agent", text, 1),
    ] {
        assert_eq!(nudges_beside(kind, channel, content)?, nudges, "{kind} to {channel}: {content}");
    }
    Ok(())
}

#[test]
fn an_answer_without_a_word_is_asked_for_once() -> Outcome {
    let session = Session::new("[]")?;
    let rules = json!([
        {"pattern": "mute", "raw": true, "reply": ""},
        {"pattern": "was empty", "reply": "<message to=\"family\">after all</message>"},
    ]);
    session
        .configure(&json!({"provider": "mock", "mock": {"follow_ups": true, "rules": rules}}).to_string())?;
    let tape = session.path("tape");
    session.put(&[said("a", r#"{"text":"mute"}"#)])?;
    let _runner = session.start_recording("1.1", &tape)?;
    session.until_acked("a", "completed")?;
    let tape = std::fs::read_to_string(tape)?;
    assert_eq!(tape.matches("Your last answer was empty").count(), 1, "{tape}");
    let texts: Vec<String> = session.answers().into_iter().map(|answer| answer.3).collect();
    assert_eq!(texts, [r#"{"text":"after all"}"#], "{tape}");
    Ok(())
}
