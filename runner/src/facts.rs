//! What the runner tells the host beyond rows and acks: JSON values of `session_state` under keys
//! `lamplighter.*` (design 5). Pure.
//!
//! Invariant: a value has at most [`MAX_FACT_BYTES`] bytes, and there are at most [`MAX_FACTS`] keys.

use std::collections::{BTreeMap, BTreeSet};

use lamplighter::base::{Ms, Wall};
use lamplighter::session::rows::{
    FACT_FAILED_PREFIX, FACT_RELEASE_PREFIX, FACT_TASK_PREFIX, MAX_FACT_BYTES, MAX_FACTS,
};
use lamplighter::session::timestamp;
use serde_json::{Value, json};

/// Keys that are kept free for the facts that are not about one message (attempt, turn, pushes, tools, wait, late,
/// destinations) and for more of them in later versions.
const RESERVED: usize = 8;
/// Most facts about single messages. A batch is smaller ([`crate::machine::batch::MAX_ROWS`]), so that all of its
/// releases fit.
pub const MAX_OUTCOMES: usize = MAX_FACTS - RESERVED;
/// Longest reason in characters; at most four bytes each, six when escaped, well below a fact's size.
const MAX_REASON_CHARS: usize = 400;
/// Longest name of a tool in characters; sixteen of them fit a fact, escaped or not.
const MAX_TOOL_CHARS: usize = 24;

/// Facts about single messages begin with one of these.
const OUTCOMES: [&str; 3] = [FACT_RELEASE_PREFIX, FACT_FAILED_PREFIX, FACT_TASK_PREFIX];

/// The key of the fact that explains a released claim.
pub fn release_key(id: &str) -> String {
    format!("{FACT_RELEASE_PREFIX}{id}")
}

/// The key of the fact that explains a failed message.
pub fn failed_key(id: &str) -> String {
    format!("{FACT_FAILED_PREFIX}{id}")
}

/// The key of the fact that says what the script of a task decided.
pub fn task_key(id: &str) -> String {
    format!("{FACT_TASK_PREFIX}{id}")
}

/// What the script of a task decided: `woke`, `gated` or `broken`, and why.
pub fn task(outcome: &str, reason: Option<&str>, now: Wall) -> String {
    json!({"outcome": outcome, "reason": reason.map(cut), "at": timestamp::iso(now)}).to_string()
}

/// Why a claim was given back, and when the message may be tried again.
pub fn release(class: &str, reason: &str, not_before: Option<Wall>, now: Wall) -> String {
    let not_before = not_before.map(timestamp::iso);
    json!({"class": class, "reason": cut(reason), "not_before": not_before, "at": timestamp::iso(now)})
        .to_string()
}

/// Why a message failed for good.
pub fn failed(class: &str, reason: &str, now: Wall) -> String {
    json!({"class": class, "reason": cut(reason), "at": timestamp::iso(now)}).to_string()
}

/// The messages that are being worked on. `pushed` are with the provider, `started` have been taken up by the agent;
/// both are part of `claimed`, which is in the order of the turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Working {
    /// All claimed ids.
    pub claimed: Vec<String>,
    /// Those that the provider was given.
    pub pushed: Vec<String>,
    /// Those that the agent has taken up.
    pub started: Vec<String>,
}

impl Working {
    /// The fact `lamplighter.turn`. Ids that do not fit are counted in `more`; their claims stand in the table.
    pub fn fact(&self, now: Wall) -> String {
        self.measured(now, |id| json!(id).to_string().len())
    }

    /// The fact; `length` says how many bytes an id takes in it, and is asked about each id that fits and one more.
    fn measured(&self, now: Wall, mut length: impl FnMut(&str) -> usize) -> String {
        let [pushed, started] = [&self.pushed, &self.started]
            .map(|ids| ids.iter().map(String::as_str).collect::<BTreeSet<&str>>());
        let value = |claimed: &[&str], pushed: &[&str], started: &[&str]| {
            let more = self.claimed.len().saturating_sub(claimed.len());
            json!({
                "claimed": claimed, "pushed": pushed, "started": started, "more": more, "at": timestamp::iso(now),
            })
            .to_string()
        };
        let mut bytes = value(&[], &[], &[]).len();
        let mut named = Vec::new();
        for id in self.claimed.iter().map(String::as_str) {
            let lists = 1 + usize::from(pushed.contains(id)) + usize::from(started.contains(id));
            bytes += lists * (length(id) + 1);
            if bytes > MAX_FACT_BYTES {
                break;
            }
            named.push(id);
        }
        let of = |ids: &BTreeSet<&str>| -> Vec<&str> {
            named.iter().copied().filter(|id| ids.contains(id)).collect()
        };
        value(&named, &of(&pushed), &of(&started))
    }

    /// Reads the fact; what cannot be read is empty.
    pub fn read(fact: &str) -> Self {
        let value: Value = serde_json::from_str(fact).unwrap_or_default();
        let ids = |key: &str| -> Vec<String> {
            let ids = value.get(key).and_then(Value::as_array);
            ids.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self { claimed: ids("claimed"), pushed: ids("pushed"), started: ids("started") }
    }
}

/// What the session waits for although nothing moves: the service behind the provider, and answers to questions.
/// Both the runner and its tools write it, each its own part, in one transaction with its reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Until when the provider waits before it tries again, and why.
    pub provider: Option<(Wall, String)>,
    /// Open questions by id, and until when each waits for its answer.
    pub questions: BTreeMap<String, Wall>,
}

impl Waiting {
    /// Most open questions that are named; an agent asks one after the other.
    const MAX_QUESTIONS: usize = 16;

    /// The fact `lamplighter.wait`; `None` when nothing is waited for. Its `until` is the latest of all.
    pub fn fact(&self, now: Wall) -> Option<String> {
        let questions: Vec<(&String, &Wall)> = self.questions.iter().take(Self::MAX_QUESTIONS).collect();
        let provider = self.provider.as_ref();
        let until =
            questions.iter().map(|(_, until)| **until).chain(provider.map(|(until, _)| *until)).max()?;
        let reason = match provider {
            Some((_, reason)) => cut(reason),
            None => "an answer to a question".to_owned(),
        };
        let provider =
            provider.map(|(until, reason)| json!({"until": timestamp::iso(*until), "reason": cut(reason)}));
        let questions: serde_json::Map<String, Value> = questions
            .into_iter()
            .map(|(id, until)| (id.clone(), Value::from(timestamp::iso(*until))))
            .collect();
        let fact = json!({
            "until": timestamp::iso(until), "reason": reason, "provider": provider, "questions": questions,
            "at": timestamp::iso(now),
        });
        Some(fact.to_string())
    }

    /// Reads the fact; what cannot be read is empty.
    pub fn read(fact: Option<&str>) -> Self {
        let value: Value = fact.and_then(|fact| serde_json::from_str(fact).ok()).unwrap_or_default();
        let time = |value: &Value| timestamp::parse(value.as_str()?);
        let provider = value.get("provider").and_then(|provider| {
            let reason = provider.get("reason").and_then(Value::as_str).unwrap_or_default();
            Some((time(provider.get("until")?)?, reason.to_owned()))
        });
        let questions = value.get("questions").and_then(Value::as_object);
        let questions =
            questions.into_iter().flatten().filter_map(|(id, until)| Some((id.clone(), time(until)?)));
        Self { provider, questions: questions.collect() }
    }
}

/// A tool in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// As the agent names it.
    pub name: String,
    /// How long it may take by its own declaration.
    pub timeout: Option<Ms>,
    /// When it began.
    pub since: Wall,
}

/// The fact `lamplighter.tools`: the tools in flight. At most sixteen are named; the first ones.
pub fn tools<'a>(tools: impl IntoIterator<Item = &'a Tool>) -> String {
    let tools = tools.into_iter().take(16).map(|tool| {
        let name: String = tool.name.chars().take(MAX_TOOL_CHARS).collect();
        json!({"name": name, "timeout_ms": tool.timeout.map(|time| time.0), "started_at": timestamp::iso(tool.since)})
    });
    json!({"tools": tools.collect::<Vec<Value>>()}).to_string()
}

fn cut(reason: &str) -> String {
    reason.chars().take(MAX_REASON_CHARS).collect()
}

/// Which of the existing facts must go so that `adding` more about single messages fit: the oldest ones.
pub fn to_prune(existing: &[(String, String)], adding: usize) -> Vec<&str> {
    let mut outcomes: Vec<(Option<Wall>, &str)> = existing
        .iter()
        .filter(|(key, _)| OUTCOMES.iter().any(|prefix| key.starts_with(prefix)))
        .map(|(key, value)| (written_at(value), key.as_str()))
        .collect();
    outcomes.sort_unstable();
    let surplus = (outcomes.len() + adding).saturating_sub(MAX_OUTCOMES);
    outcomes.into_iter().take(surplus).map(|(_, key)| key).collect()
}

/// A fact that cannot be read counts as the oldest.
fn written_at(value: &str) -> Option<Wall> {
    let value: Value = serde_json::from_str(value).ok()?;
    timestamp::parse(value.get("at")?.as_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamplighter::session::rows::FACT_ATTEMPT;

    const NOW: Wall = Wall(1_779_096_600_250_000);

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn facts_have_their_documented_form() {
        assert_eq!(
            release("transient", "overloaded", Some(NOW), NOW),
            r#"{"at":"2026-05-18T09:30:00.250Z","class":"transient","#.to_owned()
                + r#""not_before":"2026-05-18T09:30:00.250Z","reason":"overloaded"}"#
        );
        let working = Working { claimed: words("a b"), pushed: words("a"), started: Vec::new() };
        assert_eq!(
            working.fact(NOW),
            r#"{"at":"2026-05-18T09:30:00.250Z","claimed":["a","b"],"more":0,"pushed":["a"],"started":[]}"#
        );
        assert_eq!(Working::read(&working.fact(NOW)), working);
        assert_eq!(Working::read("junk"), Working::default());
    }

    #[test]
    fn no_fact_outgrows_its_bound() {
        let long = "\u{1}".repeat(100_000);
        assert!(release("x", &long, None, NOW).len() <= MAX_FACT_BYTES);
        let tool = Tool { name: long.clone(), timeout: Some(Ms(1)), since: NOW };
        let text = tools(&vec![tool; 100]);
        assert!(text.len() <= MAX_FACT_BYTES, "{}", text.len());
        let claimed: Vec<String> = (0..48).map(|n| format!("{n}-{}", "x".repeat(300))).collect();
        let working = Working { pushed: claimed.clone(), started: claimed.clone(), claimed };
        let text = working.fact(NOW);
        assert!(text.len() <= MAX_FACT_BYTES && text.contains("0-x"), "{}", text.len());
        let working = Working { claimed: vec![long], ..Working::default() };
        assert!(working.fact(NOW).contains("\"more\":1"));
    }

    #[test]
    fn the_fact_of_thousands_of_rows_is_made_by_looking_at_those_that_fit() {
        let claimed: Vec<String> = (0..5_000).map(|n| format!("message-{n}")).collect();
        let working = Working { pushed: claimed.clone(), started: claimed[..2].to_vec(), claimed };
        let mut asked = 0;
        let text = working.measured(NOW, |id| {
            asked += 1;
            json!(id).to_string().len()
        });
        assert_eq!(text, working.fact(NOW));
        let read = Working::read(&text);
        assert_eq!(asked, read.claimed.len() + 1);
        assert!(text.len() <= MAX_FACT_BYTES && text.len() > MAX_FACT_BYTES - 64, "{}", text.len());
        assert_eq!((read.pushed.len(), read.started.len()), (read.claimed.len(), 2));
        assert!(text.contains(&format!("\"more\":{}", 5_000 - read.claimed.len())));
    }

    #[test]
    fn a_wait_is_as_long_as_its_longest_part() {
        let later = NOW + Ms::minutes(5);
        let mut waiting = Waiting { provider: Some((NOW, "overloaded".into())), questions: BTreeMap::new() };
        waiting.questions.insert("q1".into(), later);
        let fact = waiting.fact(NOW);
        assert_eq!(Waiting::read(fact.as_deref()), waiting);
        assert!(fact.is_some_and(|fact| fact.contains(&format!("\"until\":\"{}\"", timestamp::iso(later)))));
        assert_eq!(Waiting::default().fact(NOW), None);
        assert_eq!(Waiting::read(Some("[]")), Waiting::default());
    }

    #[test]
    fn the_oldest_facts_make_room_and_the_fixed_ones_stay() {
        let mut existing = vec![(FACT_ATTEMPT.to_owned(), "3.1".to_owned())];
        for n in 0..MAX_OUTCOMES {
            let at = Wall(NOW.0 + i64::try_from(n).unwrap_or(0) * 1_000_000);
            existing.push((failed_key(&format!("m{n}")), failed("input", "r", at)));
        }
        existing.push((release_key("odd"), "no json".to_owned()));
        assert_eq!(to_prune(&existing, 1), [release_key("odd"), failed_key("m0")]);
        assert!(to_prune(&existing[..3], 1).is_empty());
    }
}
