//! The whole runner with a real agent CLI: rows in, rows out, tools by its own server.
//!
//! Each run is recorded. With `RECORD=1` recording and rows are kept in `fixtures/cassettes/runner/`, where
//! `crate::cassettes` plays them without any CLI.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Bench, Model};
use crate::session::{Outcome, Row, Runner, Session, said, until};

/// A session whose agent is a real CLI.
struct Whole {
    session: Session,
    bench: Bench,
    model: Model,
}

impl Whole {
    fn new(provider: &'static str, name: &'static str) -> Result<Self, Box<dyn Error>> {
        let (bench, model) = Bench::new(provider, name)?;
        Self::with(bench, model)
    }

    fn with(bench: Bench, model: Model) -> Result<Self, Box<dyn Error>> {
        let provider = bench.provider;
        let session = Session::new("[]")?;
        let setup = bench.setup()?;
        let mut settings = setup.settings;
        settings["env"]["PATH"] = std::env::var("PATH")?.into();
        // The recording is that of the runner, not of the CLI.
        settings["command"] = bench.program()?.to_string_lossy().into();
        let config = json!({
            "provider": provider, "assistantName": "Lu", "model": setup.model, "effort": setup.effort,
            provider: settings,
        });
        session.configure(&config.to_string())?;
        Ok(Self { session, bench, model })
    }

    fn start(&self, attempt: &str) -> Result<Runner, Box<dyn Error>> {
        self.session.start_recording(attempt, &self.tape(attempt))
    }

    fn tape(&self, attempt: &str) -> PathBuf {
        self.session.path(&format!("tape-{attempt}.jsonl"))
    }

    fn put(&self, id: &str, text: &str) -> Outcome {
        self.session.put(&[said(id, &json!({ "text": text, "sender": "Ann" }).to_string())])
    }

    /// A message on which the agent works for a minute before it answers `done`.
    fn long_work(&self) -> String {
        let wait = match self.bench.provider {
            "claude" => json!({"tool": ["Bash", {"command": "python3 -c 'import time; time.sleep(60)'"}]}),
            _ => json!({"tool": ["exec_command", {"cmd": "sleep 60", "yield_time_ms": 60000}]}),
        };
        format!("SCRIPT-1 PLAY{}", json!([wait, {"say": "<message to=\"family\">done</message>"}]))
    }

    /// Waits until the tool of [`Whole::long_work`] runs and the CLI has it in its own record, which it writes a little
    /// later: before that, the CLI takes the message for one that it did not begin.
    fn until_at_work(&self) -> Outcome {
        until("the tool runs", || self.session.fact("tools"))?;
        let call = if self.bench.provider == "claude" { "\"tool_use\"" } else { "\"function_call\"" };
        until("the tool's call is in the CLI's record", || {
            is_in_a_file_below(&self.bench.path("home"), call).then_some(())
        })
    }

    fn last_request(&self) -> Result<String, Box<dyn Error>> {
        Ok(self.model.requests()?.pop().ok_or("no request")?["body"].to_string())
    }

    /// Keeps both runs of a session whose first runner was killed, the first without the answer that it lost, for
    /// `crate::cassettes`.
    fn keep_restart(&self) -> Outcome {
        if !self.bench.is_recording() {
            return Ok(());
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/cassettes/restarts");
        fs::create_dir_all(&folder)?;
        let path = |what: &str| folder.join(format!("{}-{}.{what}", self.bench.provider, self.bench.name));
        let before = fs::read_to_string(self.tape("1.1"))?;
        let before: Vec<&str> =
            before.lines().take_while(|line| !line.contains(r#""kind":"result""#)).collect();
        fs::write(path("before.jsonl"), before.join("\n") + "\n")?;
        fs::copy(self.tape("1.2"), path("after.jsonl"))?;
        let rows: Vec<String> = self.session.rows()?.iter().map(Value::to_string).collect();
        fs::write(path("rows"), rows.join("\n") + "\n")?;
        Ok(fs::write(path("inbound"), self.session.inbound_rows()?.join("\n") + "\n")?)
    }

    /// The rows that the runner wrote, without ids and times, for a comparison with a run from the recording.
    fn keep(&self, attempt: &str) -> Outcome {
        if !self.bench.is_recording() {
            return Ok(());
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/cassettes/runner");
        fs::create_dir_all(&folder)?;
        let name = format!("{}-{}", self.bench.provider, self.bench.name);
        fs::copy(self.tape(attempt), folder.join(format!("{name}.jsonl")))?;
        let rows: Vec<String> = self.session.rows()?.iter().map(Value::to_string).collect();
        fs::write(folder.join(format!("{name}.rows")), rows.join("\n") + "\n")?;
        fs::write(folder.join(format!("{name}.inbound")), self.session.inbound_rows()?.join("\n") + "\n")?;
        Ok(())
    }
}

/// Whether a file of JSON lines in this folder, or in one below it, holds these words.
fn is_in_a_file_below(folder: &Path, words: &str) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.into_iter().any(|path| match path.is_dir() {
        true => is_in_a_file_below(&path, words),
        false => {
            let is_lines = path.extension().is_some_and(|extension| extension == "jsonl");
            is_lines && fs::read_to_string(&path).is_ok_and(|text| text.contains(words))
        }
    })
}

fn texts(session: &Session) -> Vec<String> {
    let text = |content: &str| -> Option<String> {
        let content: Value = serde_json::from_str(content).ok()?;
        Some(content["text"].as_str()?.to_owned())
    };
    session.answers().iter().filter_map(|(.., content)| text(content)).collect()
}

/// Tests of every CLI: the module's name is the provider's.
macro_rules! for_each_cli {
    ($($provider:ident),*) => {$(
        mod $provider {
            use super::*;

            const PROVIDER: &str = stringify!($provider);

            #[test]
            #[ignore = "needs the real CLI"]
            fn two_turns_of_one_conversation() -> Outcome {
                let whole = Whole::new(PROVIDER, "two-turns")?;
                whole.put("m1", r#"PLAY[{"say":"<message to=\"family\">one</message>"}]"#)?;
                let mut runner = whole.start("1.1")?;
                whole.session.until_acked("m1", "completed")?;
                let token = whole.session.state(&format!("continuation:{PROVIDER}")).ok_or("no continuation")?;
                whole.put("m2", r#"PLAY[{"say":"<message to=\"family\">two</message>"}]"#)?;
                whole.session.until_acked("m2", "completed")?;
                assert_eq!(texts(&whole.session), ["one", "two"]);
                assert_eq!(whole.session.state(&format!("continuation:{PROVIDER}")), Some(token));
                assert_eq!((whole.session.fact("turn"), whole.session.fact("tools")), (None, None));
                runner.terminate()?;
                assert_eq!(runner.ended()?.code(), Some(0), "{}", whole.session.log("1.1"));
                whole.keep("1.1")
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn our_tools_are_called_and_know_what_they_answer() -> Outcome {
                let whole = Whole::new(PROVIDER, "tools")?;
                let tool = if PROVIDER == "claude" { "mcp__lamplighter__" } else { "mcp__lamplighter/" };
                let script = json!([
                    {"tool": [format!("{tool}send_message"), {"text": "from a tool", "to": "family"}]},
                    {"tool": [format!("{tool}send_message"), {"text": "x", "to": "nobody"}]},
                    {"say": "that is all"},
                ]);
                whole.put("m1", &format!("PLAY{script}"))?;
                let _runner = whole.start("1.1")?;
                whole.session.until_acked("m1", "completed")?;
                let answers = whole.session.answers();
                let [(seq, thread, reply, content)] = answers.as_slice() else {
                    return Err(format!("{answers:?}: {}", whole.session.log("1.1")).into());
                };
                assert_eq!((thread.as_deref(), reply.as_deref()), (Some("th-m1"), Some("m1")));
                assert_eq!((seq % 2, content.as_str()), (1, r#"{"text":"from a tool"}"#));
                Ok(())
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn a_follow_up_in_mid_turn() -> Outcome {
                let whole = Whole::new(PROVIDER, "follow-up")?;
                let wait = match PROVIDER {
                    "claude" => json!({"tool": ["Bash", {"command": "python3 -c 'import time; time.sleep(3)'"}]}),
                    _ => json!({"tool": ["exec_command", {"cmd": "sleep 3", "yield_time_ms": 60000}]}),
                };
                let script = json!([wait, {"say": "<message to=\"family\">both</message>"}]);
                whole.put("m1", &format!("PLAY{script}"))?;
                let _runner = whole.start("1.1")?;
                until("the tool runs", || whole.session.fact("tools"))?;
                whole.put("m2", "and this")?;
                let pushed = || {
                    let turn = whole.session.fact("turn")?;
                    turn["pushed"].as_array()?.contains(&json!("m2")).then_some(())
                };
                until("the second message is with the agent", pushed)?;
                assert_eq!(whole.session.ack("m2").as_deref(), Some("processing"));
                whole.session.until_acked("m1", "completed")?;
                whole.session.until_acked("m2", "completed")?;
                assert!(!whole.session.answers().is_empty());
                whole.keep("1.1")
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn text_without_a_block_is_asked_for_again() -> Outcome {
                let whole = Whole::new(PROVIDER, "nudge")?;
                whole.put("m1", r#"PLAY[{"say":"bare words"}]"#)?;
                let _runner = whole.start("1.1")?;
                whole.session.until_acked("m1", "completed")?;
                let log = whole.session.log("1.1");
                assert!(log.matches("handed on").count() == 1, "{log}");
                whole.keep("1.1")
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn clear_begins_another_conversation() -> Outcome {
                let whole = Whole::new(PROVIDER, "clear")?;
                let key = format!("continuation:{PROVIDER}");
                whole.put("m1", r#"PLAY[{"say":"<message to=\"family\">one</message>"}]"#)?;
                let _runner = whole.start("1.1")?;
                whole.session.until_acked("m1", "completed")?;
                let before = whole.session.state(&key);
                whole.put("m2", "/clear")?;
                whole.session.until_acked("m2", "completed")?;
                assert_eq!(whole.session.state(&key), None);
                whole.put("m3", r#"PLAY[{"say":"<message to=\"family\">two</message>"}]"#)?;
                whole.session.until_acked("m3", "completed")?;
                assert_eq!(texts(&whole.session), ["one", "Session cleared.", "two"]);
                assert_ne!(whole.session.state(&key), before);
                whole.keep("1.1")
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn killed_when_the_agent_had_begun() -> Outcome {
                let whole = Whole::new(PROVIDER, "started")?;
                whole.put("m1", &whole.long_work())?;
                let mut runner = whole.start("1.1")?;
                whole.until_at_work()?;
                runner.kill_all()?;
                let _next = whole.start("1.2")?;
                whole.session.until_acked("m1", "completed")?;
                assert_eq!(texts(&whole.session), ["done"], "{}", whole.session.log("1.2"));
                let asked = whole.last_request()?;
                // The reply is asked for, and the message is there once: nothing is done again.
                assert_eq!((asked.matches("reply-lost").count(), asked.matches("SCRIPT-1").count()), (1, 1), "{asked}");
                whole.keep_restart()
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn killed_when_a_message_was_queued() -> Outcome {
                let whole = Whole::new(PROVIDER, "queued")?;
                whole.put("m1", &whole.long_work())?;
                let mut runner = whole.start("1.1")?;
                whole.until_at_work()?;
                whole.put("m2", r#"SCRIPT-2 PLAY[{"say":"<message to=\"family\">two</message>"}]"#)?;
                let pushed = || {
                    let turn = whole.session.fact("turn")?;
                    turn["pushed"].as_array()?.contains(&json!("m2")).then_some(())
                };
                until("the second message is with the agent", pushed)?;
                runner.kill_all()?;

                let _next = whole.start("1.2")?;
                whole.session.until_acked("m1", "completed")?;

                whole.session.until_acked("m2", "completed")?;
                let mut texts = texts(&whole.session);
                texts.sort();
                assert_eq!(texts, ["done", "two"], "{}", whole.session.log("1.2"));
                let asked = whole.last_request()?;
                let count = |word: &str| asked.matches(word).count();
                assert_eq!((count("SCRIPT-1"), count("SCRIPT-2"), count("reply-lost")), (1, 1, 1), "{asked}");
                whole.keep_restart()
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn killed_when_the_answer_was_not_on_record() -> Outcome {
                let whole = Whole::new(PROVIDER, "answered")?;
                whole.put("m1", r#"SCRIPT-1 PLAY[{"delay":2,"say":"<message to=\"family\">one</message>"}]"#)?;
                let mut runner = whole.start("1.1")?;
                until("the agent has begun", || (whole.model.requests().ok()?.len() == 1).then_some(()))?;
                let key = format!("continuation:{PROVIDER}");
                until("the conversation is on record", || whole.session.state(&key))?;
                let other = whole.session.outbound()?;
                other.execute_batch("BEGIN EXCLUSIVE")?;
                until("the answer has come", || {
                    let tape = fs::read_to_string(whole.tape("1.1")).ok()?;
                    tape.contains(r#""kind":"result""#).then_some(())
                })?;
                runner.kill_all()?;
                other.execute_batch("COMMIT")?;
                assert_eq!(texts(&whole.session), Vec::<String>::new());
                let _next = whole.start("1.2")?;
                whole.session.until_acked("m1", "completed")?;
                assert_eq!(texts(&whole.session), ["one"], "{}", whole.session.log("1.2"));
                let asked = whole.last_request()?;
                assert_eq!((asked.matches("reply-lost").count(), asked.matches("SCRIPT-1").count()), (1, 1), "{asked}");
                whole.keep_restart()
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn a_conversation_that_nobody_knows_is_begun_again_in_silence() -> Outcome {
                let whole = Whole::new(PROVIDER, "stale")?;
                let first = whole.start("1.1")?;
                until("the attempt", || whole.session.state("lamplighter.attempt"))?;
                drop(first);
                let sql = "INSERT INTO session_state (key, value, updated_at) VALUES (?1, ?2, '')";
                let stale = "0192aaaa-0000-7000-8000-000000000000";
                whole.session.outbound()?.execute(sql, [&format!("continuation:{PROVIDER}"), stale])?;
                whole.put("m1", r#"PLAY[{"say":"<message to=\"family\">fresh</message>"}]"#)?;
                let _runner = whole.start("1.2")?;
                whole.session.until_acked("m1", "completed")?;
                assert_eq!(texts(&whole.session), ["fresh"]);
                assert_ne!(whole.session.state(&format!("continuation:{PROVIDER}")).as_deref(), Some(stale));
                Ok(())
            }

            #[test]
            #[ignore = "needs the real CLI"]
            fn context_goes_along_and_starts_nothing() -> Outcome {
                let whole = Whole::new(PROVIDER, "context")?;
                let text = r#"{"text":"the sea is blue","sender":"Bob"}"#;
                whole.session.put(&[Row { trigger: false, ..said("c1", text) }])?;
                whole.put("m1", r#"PLAY[{"say":"<message to=\"family\">ok</message>"}]"#)?;
                let _runner = whole.start("1.1")?;
                whole.session.until_acked("m1", "completed")?;
                assert_eq!(whole.session.ack("c1").as_deref(), Some("completed"));
                assert_eq!(texts(&whole.session), ["ok"]);
                whole.keep("1.1")
            }
        }
    )*};
}

for_each_cli!(claude, codex);

#[test]
#[ignore = "needs the real claude"]
fn claude_has_a_conversation_archived_before_it_makes_it_shorter() -> Outcome {
    let (bench, model) = Bench::new("claude", "archive")?;
    let whole = Whole::with(bench.with("auto_compact_window", 100_000), model)?;
    let _runner = whole.start("1.1")?;
    for (id, text) in [
        ("m1", r#"the sea is blue PLAY[{"say":"<message to=\"family\">noted it</message>"}]"#),
        ("m2", r#"PLAY[{"say":"<message to=\"family\">much</message>","usage":[99000,900]}]"#),
        ("m3", r#"PLAY[{"say":"<message to=\"family\">after it</message>"}]"#),
    ] {
        whole.put(id, text)?;
        whole.session.until_acked(id, "completed")?;
    }
    assert_eq!(texts(&whole.session), ["noted it", "much", "after it"]);
    let mut archives = Vec::new();
    for entry in fs::read_dir(whole.session.path("agent/conversations"))? {
        archives.push(fs::read_to_string(entry?.path())?);
    }
    let [archive] = archives.as_slice() else { return Err(format!("{archives:?}").into()) };
    assert!(archive.contains("the sea is blue") && archive.contains("noted it"), "{archive}");
    // What the hook says reaches whoever writes the summary.
    whole.model.until_asked("Keep in the summary, in their order and word for word")
}

#[test]
#[ignore = "needs the real claude"]
fn claude_waits_for_its_service_and_says_so() -> Outcome {
    let whole = Whole::new("claude", "rate-limit")?;
    let script =
        json!([{"status": 429, "times": 3, "after": 2, "say": "<message to=\"family\">at last</message>"}]);
    whole.put("m1", &format!("PLAY{script}"))?;
    let _runner = whole.start("1.1")?;
    let waiting = until("the wait is announced", || whole.session.fact("wait"))?;
    assert!(waiting["provider"]["reason"].is_string(), "{waiting}");
    whole.session.until_acked("m1", "completed")?;
    assert_eq!(texts(&whole.session), ["at last"]);
    assert_eq!(whole.session.fact("wait"), None);
    whole.keep("1.1")
}

#[test]
#[ignore = "needs the real claude"]
fn a_command_of_claude_is_answered_with_its_output() -> Outcome {
    let whole = Whole::new("claude", "command")?;
    whole.put("m1", r#"PLAY[{"say":"<message to=\"family\">one</message>"}]"#)?;
    let _runner = whole.start("1.1")?;
    whole.session.until_acked("m1", "completed")?;
    whole.put("m2", "/cost")?;
    whole.session.until_acked("m2", "completed")?;
    let texts = texts(&whole.session);
    assert_eq!(texts.len(), 2, "{texts:?}");
    whole.keep("1.1")
}
