//! Whole turns that were recorded with real agent CLIs, played again: the same rows in give the same rows out.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::session::{Outcome, Session, until};

fn play(tape: &Path) -> Outcome {
    let name = tape.display().to_string();
    let session = Session::new("[]")?;
    let settings = json!({"file": tape.canonicalize()?, "strict": true});
    let config = json!({"provider": "cassette", "assistantName": "Lu", "cassette": settings});
    session.configure(&config.to_string())?;
    let expected = fs::read_to_string(tape.with_extension("rows"))?;
    let inbound = fs::read_to_string(tape.with_extension("inbound"))?;
    let mut runner = session.start("1.1")?;
    // As they were put: each after those that an earlier push held were handed on, in the order of their numbers.
    for line in inbound.lines() {
        let row: Value = serde_json::from_str(line)?;
        session.put_value(&row)?;
        let id = row["id"].as_str().unwrap_or_default().to_owned();
        if row["trigger"] == true {
            until(&format!("{name}: {id} is taken"), || session.ack(&id)).inspect_err(|_| {
                eprintln!("{}", session.log("1.1"));
            })?;
            if row["alone"] == true {
                session.until_acked(&id, "completed")?;
            }
        }
    }
    for line in inbound.lines() {
        let row: Value = serde_json::from_str(line)?;
        let id = row["id"].as_str().unwrap_or_default().to_owned();
        let done =
            until(&format!("{name}: {id} is done"), || (session.ack(&id)? == "completed").then_some(()));
        done.inspect_err(|_| eprintln!("{}", session.log("1.1")))?;
    }
    let rows: Vec<String> = session.rows()?.iter().map(Value::to_string).collect();
    assert_eq!(rows.join("\n") + "\n", expected, "{name}");
    runner.terminate()?;
    assert_eq!(runner.ended()?.code(), Some(0), "{name}");
    Ok(())
}

#[test]
fn recorded_turns_give_the_rows_that_they_gave() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/cassettes/runner");
    let mut tapes: Vec<_> =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    tapes.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    tapes.sort();
    assert!(tapes.len() >= 10, "only {} recordings", tapes.len());
    tapes.iter().try_for_each(|tape| play(tape))
}

/// The ids of the pushes of a recording, in their order.
fn pushes(tape: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let text = fs::read_to_string(tape)?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(lines.iter().filter_map(|line| line["push"]["id"].as_str().map(str::to_owned)).collect())
}

/// Both runs of a session whose first runner was killed: each message is handed over again in the push that it was, and
/// answered once.
fn play_restart(before: &Path) -> Outcome {
    let name = before.display().to_string();
    let part = |what: &str| before.with_extension("").with_extension(what);
    let after = part("after.jsonl");
    let session = Session::new("[]")?;
    let configure = |tape: &Path| -> Outcome {
        let settings = json!({"file": tape.canonicalize()?, "strict": true});
        session.configure(
            &json!({"provider": "cassette", "assistantName": "Lu", "cassette": settings}).to_string(),
        )
    };
    configure(before)?;
    let mut runner = session.start("1.1")?;
    let inbound: Vec<Value> =
        fs::read_to_string(part("inbound"))?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    for row in &inbound {
        session.put_value(row)?;
        let id = row["id"].as_str().unwrap_or_default();
        let pushed = || session.fact("turn")?["pushed"].as_array()?.contains(&json!(id)).then_some(());
        until(&format!("{name}: {id} is handed over"), pushed)?;
    }
    until(&format!("{name}: the conversation is on record"), || session.state("continuation:cassette"))?;
    runner.kill()?;
    runner.ended()?;
    assert_eq!(session.answers().len(), 0, "{name}");
    configure(&after)?;
    let made = session.path("tape");
    let _next = session.start_recording("1.2", &made)?;
    for row in &inbound {
        session.until_acked(row["id"].as_str().unwrap_or_default(), "completed")?;
    }
    let rows: Vec<String> = session.rows()?.iter().map(Value::to_string).collect();
    assert_eq!(rows.join("\n") + "\n", fs::read_to_string(part("rows"))?, "{name}");
    assert_eq!(pushes(&made)?, pushes(&after)?, "{name}");
    assert_eq!(pushes(&made)?, pushes(before)?, "{name}");
    Ok(())
}

#[test]
fn recorded_restarts_lose_and_double_nothing() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/cassettes/restarts");
    let tapes: Vec<_> =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    let is_first = |path: &&std::path::PathBuf| path.to_string_lossy().ends_with(".before.jsonl");
    let tapes: Vec<_> = tapes.iter().filter(is_first).collect();
    assert!(tapes.len() >= 6, "only {} recordings", tapes.len());
    tapes.into_iter().try_for_each(|tape| play_restart(tape))
}
