//! What is known of sessions beside the machine's state, for people: how the last attempt ended, what it said last,
//! why outbound.db cannot be read. No decision is made from it, so it is neither recorded nor kept.
//!
//! What attempts write comes from the runtime's threads, without a way through the loop; the rest from the loop.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::base::{At, Attempt, SessionNo};
use crate::machine::input::Exit;

/// Lines kept of an attempt: an error and what led to it. More of them are in the log.
const LINES_KEPT: usize = 4;
/// Bytes kept of a line: enough for a reason with a path and a hint.
const LINE_KEPT: usize = 500;
/// Sessions of which something is kept, those of the oldest attempts go first: a few MiB at most.
const SESSIONS_KEPT: usize = 1_024;

/// How much a line of a runner matters, by the word that it begins with (docs/RUNNER.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Something cannot go on.
    Error,
    /// Something was refused, dropped or is late.
    Warn,
    /// Anything else.
    Plain,
}

/// The weight of a line.
pub fn weight(line: &str) -> Weight {
    match line.split_once(' ').map(|(word, _)| word) {
        Some("error") => Weight::Error,
        Some("warn") => Weight::Warn,
        _ => Weight::Plain,
    }
}

/// What is kept of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    attempt: Attempt,
    /// How it ended; none while it runs.
    how: Option<String>,
    lines: VecDeque<String>,
    /// The last line of weight `Error`.
    error: Option<String>,
    /// Why outbound.db cannot be read, and what may be done about it.
    unreadable: Option<(String, &'static str)>,
    /// The trouble that its chat was told of.
    told: Option<(At, u32)>,
}

/// What is kept of all sessions.
#[derive(Debug, Default)]
pub struct Ends {
    sessions: Mutex<Sessions>,
}

#[derive(Debug, Default)]
struct Sessions(BTreeMap<SessionNo, Known>);

impl Sessions {
    fn of(&mut self, session: SessionNo) -> &mut Known {
        if !self.0.contains_key(&session) && self.0.len() >= SESSIONS_KEPT {
            let oldest = self.0.iter().min_by_key(|(_, known)| known.attempt).map(|(&no, _)| no);
            oldest.map(|no| self.0.remove(&no));
        }
        self.0.entry(session).or_default()
    }

    fn of_attempt(&mut self, session: SessionNo, attempt: Attempt) -> Option<&mut Known> {
        let known = self.of(session);
        if attempt > known.attempt {
            *known =
                Known { attempt, unreadable: known.unreadable.take(), told: known.told, ..Known::default() };
        }
        // What an attempt of before says late does not describe the last one.
        (known.attempt == attempt).then_some(known)
    }
}

impl Ends {
    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Each change is whole before anything in it could panic.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attempt wrote a line.
    pub fn said(&self, session: SessionNo, attempt: Attempt, line: &str) {
        let line = cut(line);
        if line.trim().is_empty() {
            return;
        }
        let mut sessions = self.sessions();
        let Some(known) = sessions.of_attempt(session, attempt) else { return };
        if weight(&line) == Weight::Error {
            known.error = Some(line.clone());
        }
        if known.lines.len() >= LINES_KEPT {
            known.lines.pop_front();
        }
        known.lines.push_back(line);
    }

    /// An attempt ended.
    pub fn exited(&self, session: SessionNo, attempt: Attempt, exit: Exit) {
        if let Some(known) = self.sessions().of_attempt(session, attempt) {
            known.how = Some(format!("ended with {}", exit.describe()));
        }
    }

    /// An attempt could not be started.
    pub fn not_started(&self, session: SessionNo, attempt: Attempt, reason: &str) {
        if let Some(known) = self.sessions().of_attempt(session, attempt) {
            known.how = Some(format!("could not be started: {}", cut(reason)));
        }
    }

    /// outbound.db was read, or could not be: why, and what may be done about it.
    pub fn read(&self, session: SessionNo, unreadable: Option<(String, &'static str)>) {
        let mut sessions = self.sessions();
        match (sessions.0.get_mut(&session), unreadable) {
            (Some(known), unreadable) => known.unreadable = unreadable,
            (None, Some(unreadable)) => sessions.of(session).unreadable = Some(unreadable),
            (None, None) => {}
        }
    }

    /// How the last attempt ended and what it said last, in one sentence; none when nothing is known.
    pub fn last(&self, session: SessionNo) -> Option<String> {
        let sessions = self.sessions();
        let known = sessions.0.get(&session)?;
        let how = known.how.as_deref()?;
        Some(match known.error.as_ref().or(known.lines.back()) {
            Some(line) => format!("{how}; it said last: {line}"),
            None => format!("{how} and said nothing"),
        })
    }

    /// Why outbound.db cannot be read, and what may be done about it.
    pub fn unreadable(&self, session: SessionNo) -> Option<(String, &'static str)> {
        self.sessions().0.get(&session)?.unreadable.clone()
    }

    /// The same as JSON; null when nothing is known.
    pub fn json(&self, session: SessionNo) -> Value {
        let sessions = self.sessions();
        let Some(known) = sessions.0.get(&session).filter(|known| known.attempt != Attempt::default()) else {
            return Value::Null;
        };
        json!({"attempt": known.attempt.to_string(), "how": known.how, "said": known.lines})
    }

    /// Whether a chat is yet to be told of a trouble that began then and happened so often; it counts as told.
    pub fn is_news(&self, session: SessionNo, trouble: Option<(At, u32)>) -> bool {
        let mut sessions = self.sessions();
        if trouble.is_none() && !sessions.0.contains_key(&session) {
            return false;
        }
        let known = sessions.of(session);
        let is_news = trouble.is_some() && known.told != trouble;
        known.told = trouble;
        is_news
    }
}

fn cut(line: &str) -> String {
    let end = line.floor_char_boundary(LINE_KEPT);
    if end < line.len() { format!("{}…", &line[..end]) } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: SessionNo = SessionNo(1);

    #[test]
    fn the_last_error_is_told_and_else_the_last_line() {
        let ends = Ends::default();
        assert_eq!(ends.last(NO), None);
        ends.said(NO, Attempt(1), "info started version=1");
        assert_eq!(ends.last(NO), None, "it still runs");
        ends.exited(NO, Attempt(1), Exit::Code(0));
        assert_eq!(ends.last(NO).unwrap(), "ended with code 0; it said last: info started version=1");
        ends.said(NO, Attempt(2), "error ended reason=\"no key\"");
        ends.said(NO, Attempt(2), "bye");
        ends.exited(NO, Attempt(2), Exit::Code(78));
        let last = ends.last(NO).unwrap();
        assert_eq!(last, "ended with code 78; it said last: error ended reason=\"no key\"");
        ends.said(NO, Attempt(1), "late");
        assert_eq!(ends.json(NO)["said"], json!(["error ended reason=\"no key\"", "bye"]));
        ends.not_started(NO, Attempt(3), "no program \"x\"");
        let last = ends.last(NO).unwrap();
        assert_eq!(last, "could not be started: no program \"x\" and said nothing");
    }

    #[test]
    fn lines_and_sessions_are_bounded() {
        let ends = Ends::default();
        for n in 0..100 {
            ends.said(NO, Attempt(1), &format!("{n} {}", "é".repeat(10_000)));
        }
        let said = ends.json(NO)["said"].as_array().unwrap().clone();
        assert_eq!(said.len(), LINES_KEPT);
        assert!(said.iter().all(|line| line.as_str().unwrap().len() <= LINE_KEPT + 3));
        for n in 0..2_000u32 {
            ends.said(SessionNo(n), Attempt(u64::from(n) + 2), "x");
        }
        assert_eq!(ends.sessions().0.len(), SESSIONS_KEPT);
        assert!(!ends.json(SessionNo(1_999)).is_null() && ends.json(SessionNo(0)).is_null());
    }

    #[test]
    fn why_a_file_cannot_be_read_is_kept_until_it_can() {
        let ends = Ends::default();
        ends.read(NO, None);
        assert!(ends.sessions().0.is_empty());
        ends.read(NO, Some(("it uses a write-ahead log".into(), "set journal_mode=DELETE")));
        ends.said(NO, Attempt(1), "x");
        assert_eq!(
            ends.unreadable(NO),
            Some(("it uses a write-ahead log".into(), "set journal_mode=DELETE"))
        );
        ends.read(NO, None);
        assert_eq!(ends.unreadable(NO), None);
    }

    #[test]
    fn a_chat_is_told_of_each_trouble_once() {
        let ends = Ends::default();
        assert!(!ends.is_news(NO, None));
        assert!(ends.is_news(NO, Some((At(1), 1))) && !ends.is_news(NO, Some((At(1), 1))));
        assert!(ends.is_news(NO, Some((At(1), 2))) && !ends.is_news(NO, None));
        assert!(ends.is_news(NO, Some((At(1), 2))));
    }
}
