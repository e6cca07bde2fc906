//! What the runner tells the host beyond rows and acks: JSON values of `session_state` under keys
//! `lamplighter.*` (design 5). Pure.
//!
//! Invariant: a value has at most [`MAX_FACT_BYTES`] bytes, and there are at most [`MAX_FACTS`] keys.

use lamplighter::base::Wall;
use lamplighter::session::rows::{FACT_FAILED_PREFIX, FACT_RELEASE_PREFIX, MAX_FACT_BYTES, MAX_FACTS};
use lamplighter::session::timestamp;
use serde_json::{Value, json};

/// Keys that are kept free for the facts that are not about one message (attempt, turn, tools, wait) and for
/// more of them in later versions.
const RESERVED: usize = 8;
/// Most facts about single messages. A batch is smaller ([`crate::batch::MAX_ROWS`]), so that all of its
/// releases fit.
pub const MAX_OUTCOMES: usize = MAX_FACTS - RESERVED;
/// Longest reason in characters; at most four bytes each, six when escaped, well below a fact's size.
const MAX_REASON_CHARS: usize = 400;

/// The key of the fact that explains a released claim.
pub fn release_key(id: &str) -> String {
    format!("{FACT_RELEASE_PREFIX}{id}")
}

/// The key of the fact that explains a failed message.
pub fn failed_key(id: &str) -> String {
    format!("{FACT_FAILED_PREFIX}{id}")
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

/// The messages of the running turn. Ids that do not fit are counted in `more`; their claims stand in the
/// table.
pub fn turn(ids: &[&str], now: Wall) -> String {
    let mut named = ids;
    loop {
        let value = json!({
            "claimed": named, "more": ids.len() - named.len(), "at": timestamp::iso(now),
        });
        let text = value.to_string();
        match named.split_last() {
            Some((_, fewer)) if text.len() > MAX_FACT_BYTES => named = fewer,
            _ => return text,
        }
    }
}

/// The tool in flight and how long it may take by its own declaration.
pub fn tools(name: &str, timeout_ms: Option<u64>, now: Wall) -> String {
    let name: String = name.chars().take(MAX_REASON_CHARS).collect();
    let at = timestamp::iso(now);
    json!({"tools": [{"name": name, "timeout_ms": timeout_ms, "started_at": at}]}).to_string()
}

fn cut(reason: &str) -> String {
    reason.chars().take(MAX_REASON_CHARS).collect()
}

/// Which of the existing facts must go so that `adding` more about single messages fit: the oldest ones.
pub fn to_prune(existing: &[(String, String)], adding: usize) -> Vec<&str> {
    let mut outcomes: Vec<(Option<Wall>, &str)> = existing
        .iter()
        .filter(|(key, _)| key.starts_with(FACT_RELEASE_PREFIX) || key.starts_with(FACT_FAILED_PREFIX))
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

    #[test]
    fn facts_have_their_documented_form() {
        assert_eq!(
            release("transient", "overloaded", Some(NOW), NOW),
            r#"{"at":"2026-05-18T09:30:00.250Z","class":"transient","#.to_owned()
                + r#""not_before":"2026-05-18T09:30:00.250Z","reason":"overloaded"}"#
        );
        assert_eq!(
            turn(&["a", "b"], NOW),
            r#"{"at":"2026-05-18T09:30:00.250Z","claimed":["a","b"],"more":0}"#
        );
    }

    #[test]
    fn no_fact_outgrows_its_bound() {
        let long = "\u{1}".repeat(100_000);
        assert!(release("x", &long, None, NOW).len() <= MAX_FACT_BYTES);
        assert!(tools(&long, None, NOW).len() <= MAX_FACT_BYTES);
        let ids: Vec<String> = (0..48).map(|n| format!("{n}-{}", "x".repeat(300))).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let text = turn(&ids, NOW);
        assert!(text.len() <= MAX_FACT_BYTES && text.contains("0-x"), "{}", text.len());
        assert!(turn(&[&long], NOW).contains("\"more\":1"));
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
