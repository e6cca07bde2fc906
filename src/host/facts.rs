//! From what files and channels say to what the machine needs to know. Text goes in, facts come out.
//!
//! Invariant: pure; the same rows give the same facts.

use std::collections::BTreeMap;

use serde_json::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::base::{Attempt, MessageNo, Ms, RecordNo, SessionNo};
use crate::channels::content::Question;
use crate::machine::input::{
    Ack, AckFound, Due, Fact, Line, OutKind, OutRow, PendingRow, QuestionFacts, Reading, Rows, TextFacts,
    Tool, Unreadable,
};
use crate::machine::state::State;
use crate::session::host_side::{self, Cause, Row};
use crate::session::rows::{
    self, AckStatus, FACT_ATTEMPT, FACT_FAILED_PREFIX, FACT_PREFIX, FACT_RELEASE_PREFIX, FACT_WAIT,
    OutboundRow,
};
use crate::session::timestamp;

/// Longest reason of a runner that enters the journal, in characters.
const REASON_MAX: usize = 400;

/// What decisions need of a text. `seed` keys its digest, so that equal texts of two installations differ in it.
pub fn of_text(text: &str, seed: u64) -> TextFacts {
    let command = text
        .split_whitespace()
        .next()
        .filter(|word| word.starts_with('/') && word.len() > 1 && word.len() <= 64)
        .map(str::to_lowercase);
    TextFacts {
        bytes: u32::try_from(text.len()).unwrap_or(u32::MAX),
        attachments: 0,
        command,
        digest: xxh3_64_with_seed(text.as_bytes(), seed),
    }
}

/// What decisions need of an arrival's content (contract 11), and the text that they speak of.
pub fn of_content(content: &str, seed: u64) -> (TextFacts, String) {
    let json: Value = serde_json::from_str(content).unwrap_or(Value::Null);
    let text = json.get("text").and_then(Value::as_str).unwrap_or("");
    let attachments = json.get("attachments").and_then(Value::as_array).map_or(0, Vec::len);
    let attachments = u16::try_from(attachments).unwrap_or(u16::MAX);
    (TextFacts { attachments, ..of_text(text, seed) }, text.to_owned())
}

/// What a question is matched with: the first line of a text.
pub fn of_line(text: &str, seed: u64) -> Line {
    let line = text.trim_start().lines().next().unwrap_or_default().trim();
    // Only plain digits: what merely reads as a number ("+2") is a text.
    let number = line.bytes().all(|b| b.is_ascii_digit()).then(|| line.parse().ok()).flatten();
    Line { number, digest: of_label(line, seed) }
}

/// Keyed digest of a label: the same for what differs in case and in space around it.
fn of_label(label: &str, seed: u64) -> u64 {
    xxh3_64_with_seed(label.trim().to_lowercase().as_bytes(), seed)
}

fn of_question(json: &Value, seed: u64) -> OutKind {
    match Question::parse(json) {
        Ok(it) => OutKind::Question(QuestionFacts {
            labels: it.options.iter().map(|choice| of_label(&choice.label, seed)).collect(),
            question: it.id,
            timeout: it.timeout,
        }),
        Err(why) => OutKind::Malformed(why),
    }
}

/// What a row of messages_out is called; one without an id that can be read, by its place.
pub fn id_of(row: &Row) -> String {
    row.id().map_or_else(|| format!("row-{}", row.rowid()), str::to_owned)
}

/// One row of messages_out without its text.
pub fn of_row(row: &Row, seed: u64) -> OutRow {
    match row {
        Row::Message(row) => of_message(row, seed),
        Row::Malformed(malformed) => OutRow {
            rowid: malformed.rowid,
            id: id_of(row),
            kind: OutKind::Malformed(malformed.why.clone()),
            to: rows::Address::default(),
            in_reply_to: None,
            not_before: None,
            settled: false,
            files: false,
            digest: 0,
        },
    }
}

fn of_message(row: &OutboundRow, seed: u64) -> OutRow {
    let content: Option<Value> = serde_json::from_str(&row.content).ok().filter(Value::is_object);
    let kind = match (row.kind.as_str(), &content) {
        ("system", Some(content)) => {
            let action = content.get("action").and_then(Value::as_str).unwrap_or("");
            OutKind::System(action.chars().take(64).collect())
        }
        ("chat" | "chat-sdk", Some(content)) => {
            let asks = content.get("type").and_then(Value::as_str) == Some("ask_question");
            if asks { of_question(content, seed) } else { OutKind::Message }
        }
        (_, None) => OutKind::Malformed("its content is not a JSON object".into()),
        (other, Some(_)) => OutKind::Malformed(format!("unknown kind {other:?}")),
    };
    let files = content
        .as_ref()
        .and_then(|content| content.get("files"))
        .and_then(Value::as_array)
        .is_some_and(|files| !files.is_empty());
    OutRow {
        rowid: row.rowid,
        id: row.id.clone(),
        kind,
        to: row.address.clone(),
        in_reply_to: row.in_reply_to.clone(),
        not_before: row.deliver_after.as_deref().and_then(timestamp::parse),
        settled: false,
        files,
        digest: xxh3_64_with_seed(row.content.as_bytes(), seed),
    }
}

/// A pending row of messages_in.
pub fn of_pending(row: host_side::PendingRow) -> PendingRow {
    let due = match row.process_after.as_deref() {
        None => Due::Now,
        Some(text) => timestamp::parse(text).map_or(Due::Never, Due::At),
    };
    PendingRow {
        id: row.id,
        seq: row.seq,
        trigger: row.trigger,
        tries: u32::try_from(row.tries).unwrap_or(0),
        due,
        origin: row.address,
    }
}

/// A whole reading. Acks and facts are looked up among the messages that the machine holds open for the session, so
/// what the container writes about others never enters.
pub fn of_reading(
    state: &State,
    session: SessionNo,
    result: Result<&host_side::Reading, &host_side::Unreadable>,
    seed: u64,
) -> Reading {
    let reading = match result {
        Ok(reading) => reading,
        Err(error) => {
            let detail = format!("{error}; {}", error.hint());
            return Reading::Unreadable { kind: of_cause(&error.cause), detail };
        }
    };
    let open: Vec<_> = state
        .session(session)
        .map(|known| {
            known.inbox.iter().filter_map(|&no| Some((no, state.inbound(no)?.id.as_str()))).collect()
        })
        .unwrap_or_default();
    let numbers: BTreeMap<&str, MessageNo> = open.iter().map(|&(no, id)| (id, no)).collect();
    let number = |id: &str| numbers.get(id).copied();
    let found: BTreeMap<&str, &rows::Ack> =
        reading.acks.iter().map(|ack| (ack.message_id.as_str(), ack)).collect();
    let acks = open.iter().map(|&(no, id)| (no, found.get(id).copied().map(of_ack))).collect();
    let facts = reading.facts.iter().filter_map(|fact| of_fact(&fact.key, &fact.value, &number)).collect();
    let tool = reading.tool.as_ref().map(|tool| Tool {
        mark: xxh3_64(format!("{}\0{:?}", tool.name, tool.started_at).as_bytes()),
        declared: tool.declared_timeout_ms.map(Ms),
    });
    let rows = reading.rows.iter().map(|row| of_row(row, seed)).collect();
    Reading::Rows(Rows { rows, rewound: reading.rewound, more: reading.more, acks, facts, tool })
}

fn of_ack(ack: &rows::Ack) -> AckFound {
    let status = match ack.status {
        AckStatus::Processing => Ack::Processing,
        AckStatus::Completed => Ack::Completed,
        AckStatus::Failed => Ack::Failed,
    };
    AckFound { status, mark: xxh3_64(format!("{}\0{}", ack.rowid, ack.status_changed).as_bytes()) }
}

fn of_fact(key: &str, value: &str, number: &dyn Fn(&str) -> Option<MessageNo>) -> Option<Fact> {
    if key == FACT_ATTEMPT {
        let attempt: RecordNo = value.trim_matches('"').parse().ok()?;
        return Some(Fact::Attempt(Attempt(attempt.0)));
    }
    debug_assert!(key.starts_with(FACT_PREFIX));
    let json: Value = serde_json::from_str(value).ok()?;
    let text = |name: &str| json.get(name).and_then(Value::as_str);
    let reason = || text("reason").unwrap_or("no reason given").chars().take(REASON_MAX).collect::<String>();
    if key == FACT_WAIT {
        return Some(Fact::Wait { until: timestamp::parse(text("until")?)? });
    }
    if let Some(id) = key.strip_prefix(FACT_RELEASE_PREFIX) {
        let (message, reason, mark) = (number(id)?, reason(), xxh3_64(value.as_bytes()));
        let not_before = text("not_before").and_then(timestamp::parse);
        return Some(match text("class") {
            Some("transient") => Fact::Missed { message, reason, not_before, mark },
            class => {
                let blameless = class == Some("stopped");
                Fact::Released { message, blameless, reason, not_before, mark }
            }
        });
    }
    let id = key.strip_prefix(FACT_FAILED_PREFIX)?;
    Some(Fact::Failed { message: number(id)?, reason: reason() })
}

fn of_cause(cause: &Cause) -> Unreadable {
    match cause {
        Cause::Busy | Cause::Replaced | Cause::OwnerNotKnown => Unreadable::Busy,
        Cause::Slow => Unreadable::Slow,
        Cause::HotJournal => Unreadable::HotJournal,
        Cause::Missing => Unreadable::Missing,
        Cause::NotAFile { .. }
        | Cause::WrongOwner { .. }
        | Cause::TooLarge { .. }
        | Cause::NotADatabase
        | Cause::Wal
        | Cause::SuperJournal
        | Cause::UnexpectedSchema(_)
        | Cause::Corrupt(_)
        | Cause::Io(_) => Unreadable::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &str, content: &str) -> Row {
        Row::Message(OutboundRow {
            rowid: 1,
            id: "m".into(),
            kind: kind.into(),
            content: content.into(),
            ..OutboundRow::default()
        })
    }

    #[test]
    fn rows_are_told_apart_by_kind_and_content() {
        let kind = |kind: &str, content: &str| of_row(&row(kind, content), 0).kind;
        assert_eq!(kind("chat", r#"{"text":"x"}"#), OutKind::Message);
        assert_eq!(kind("system", r#"{"action":"schedule_task"}"#), OutKind::System("schedule_task".into()));
        assert!(matches!(kind("chat", "null"), OutKind::Malformed(_)));
        assert!(matches!(kind("mail", "{}"), OutKind::Malformed(_)));
        assert!(of_row(&row("chat", r#"{"text":"","files":["a"]}"#), 0).files);
    }

    #[test]
    fn a_question_is_matched_by_number_and_by_label_in_any_case() {
        let content =
            r#"{"type":"ask_question","questionId":"q","options":[{"label":" Ja! ","value":"y"},"Nein"]}"#;
        let OutKind::Question(facts) = of_row(&row("chat-sdk", content), 7).kind else { panic!() };
        assert_eq!(facts.labels, [of_line("\n  JA!  \nand more", 7).digest, of_line("nein", 7).digest]);
        assert_ne!(facts.labels[0], of_line("ja!", 8).digest, "the key is part of it");
        let number = |text: &str| of_line(text, 7).number;
        assert_eq!(
            (number(" 2 \nbecause"), number("12"), number("+2"), number("")),
            (Some(2), Some(12), None, None)
        );
        let broken = r#"{"type":"ask_question","questionId":"q"}"#;
        assert!(matches!(of_row(&row("chat-sdk", broken), 7).kind, OutKind::Malformed(_)));
    }

    #[test]
    fn a_command_is_its_first_word_in_lower_case() {
        assert_eq!(of_text("  /Clear all", 0).command.as_deref(), Some("/clear"));
        assert_eq!(of_text("no /command", 0).command, None);
        assert_eq!(of_text("/", 0).command, None);
    }

    #[test]
    fn facts_about_unknown_messages_do_not_enter() {
        let none = |_: &str| None;
        assert_eq!(of_fact("lamplighter.release.m1", r#"{"class":"stopped"}"#, &none), None);
        let attempt = of_fact(FACT_ATTEMPT, "3.7", &none);
        assert_eq!(attempt, Some(Fact::Attempt(Attempt((3 << 32) | 7))));
        assert_eq!(of_fact("lamplighter.wait", "not json", &none), None);
    }

    #[test]
    fn only_a_service_that_is_away_and_a_stop_use_up_no_try() {
        let one = |_: &str| Some(MessageNo(1));
        let of = |class: &str| {
            let fact = format!(r#"{{"class":"{class}","reason":"r"}}"#);
            of_fact("lamplighter.release.m1", &fact, &one).unwrap()
        };
        assert!(matches!(of("transient"), Fact::Missed { .. }));
        assert!(matches!(of("stopped"), Fact::Released { blameless: true, .. }));
        for counted in ["crashed", "session-invalid", "what a later runner says"] {
            assert!(matches!(of(counted), Fact::Released { blameless: false, .. }), "{counted}");
        }
    }
}
