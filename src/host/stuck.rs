//! What stands still and the command that frees it: one place for status, chats and logs.

use std::path::{Path, PathBuf};

use super::ends::Ends;
use crate::base::{At, SessionNo};
use crate::machine::input::Unreadable;
use crate::machine::state::{Phase, Session, State};
use crate::machine::timers::TimerKey;

/// Failed starts in a row after which nobody who waits is told to wait on: a passing trouble is over by then.
const HOPELESS_AFTER: u32 = 3;

/// Commands that can be pasted into a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verbs {
    /// What names the data folder; empty where that is the default.
    data: String,
}

impl Verbs {
    /// For a daemon of this data folder.
    pub fn of(data: &Path, default: &Path) -> Self {
        let is_default = default.canonicalize().is_ok_and(|default| default == data);
        let data =
            if is_default { String::new() } else { format!(" --data {}", quoted(&data.to_string_lossy())) };
        Self { data }
    }

    /// `lamplighter VERB WHAT`, with the data folder. `what` may come from anywhere.
    pub fn of_verb(&self, verb: &str, what: &str) -> String {
        format!("lamplighter {verb} {}{}", quoted(what), self.data)
    }
}

/// The data folder where none is named: the user's own place.
pub fn default_data() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    home.join(".local/share/lamplighter")
}

/// A text as one word of a shell. Nothing that is not plain stands outside of quotes, and control characters, which
/// quotes do not tame at a terminal, are replaced.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | ':' | '@' | '+' | ',' | '=')
    };
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        return text.to_owned();
    }
    let tame = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    format!("'{}'", text.chars().map(tame).collect::<String>().replace('\'', r"'\''"))
}

/// Why nothing goes on in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// In short.
    pub why: String,
    /// The command that frees it.
    pub free_with: String,
}

/// Why nothing goes on in a session, if nothing does.
pub fn of(state: &State, no: SessionNo, ends: &Ends, verbs: &Verbs) -> Option<Stuck> {
    let session = state.session(no)?;
    let name = session.name.to_string();
    let stuck = |why: String, verb: &str| Some(Stuck { why, free_with: verbs.of_verb(verb, &name) });
    if session.held {
        return stuck("held by an operator".into(), "session start");
    }
    let tried = session.trouble.map_or(1, |trouble| trouble.failures);
    if session.inbound_is_bad() {
        let start = verbs.of_verb("session start", &name);
        return Some(Stuck {
            why: format!("inbound.db cannot be used, tried {tried} times"),
            free_with: format!("mend inbound.db or put a copy back, then {start}"),
        });
    }
    let unreadable = |kind: Unreadable| {
        let cause = ends.unreadable(no).map_or_else(|| kind.describe().to_owned(), |(cause, _)| cause);
        format!("outbound.db cannot be read: {cause} (tried {tried} times)")
    };
    match (&session.phase, &session.trouble) {
        (Phase::Quarantined { kind, .. }, _) => stuck(unreadable(*kind), "session reset"),
        // The first failure is what a lock of a moment looks like.
        (phase, Some(trouble)) if trouble.failures > 1 => {
            let verb = if phase.alive().is_some() { "session stop" } else { "session reset" };
            stuck(unreadable(trouble.kind), verb)
        }
        (Phase::BackingOff { .. }, _) => {
            stuck(format!("its container failed {} times", session.failures), "session start")
        }
        _ => None,
    }
}

/// What the clients of a session's chat are told while their messages cannot be worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// In words.
    pub reason: String,
    /// No try that is planned is likely to help: whoever waits for an answer may stop waiting.
    pub hopeless: bool,
    /// Tells one such trouble from the next.
    pub mark: (At, u32),
}

/// What the clients of a session's chat are to know now; none when its messages are worked on, or wait for their turn.
pub fn to_tell(state: &State, no: SessionNo, ends: &Ends) -> Option<Told> {
    let session = state.session(no)?;
    if session.inbox.is_empty() {
        return None;
    }
    let mark = (session.phase.since(), session.failures);
    if session.held {
        let reason = "an operator holds the session stopped".into();
        return Some(Told { reason, hopeless: true, mark });
    }
    match session.phase {
        Phase::Quarantined { .. } => {
            let failures = session.trouble.map_or(1, |trouble| trouble.failures);
            let cause = ends
                .unreadable(no)
                .map_or_else(|| "outbound.db cannot be read".to_owned(), |(cause, _)| cause);
            let reason = format!("what the agent writes cannot be read: {cause}");
            Some(Told { reason, hopeless: failures >= HOPELESS_AFTER, mark: (mark.0, failures) })
        }
        // One that takes messages and ends in the middle of a turn starts well: its messages' own tries count.
        Phase::BackingOff { .. } if !has_begun(state, session) => {
            let last = ends.last(no).unwrap_or_else(|| "its container failed".into());
            let again =
                state.timers().deadline(TimerKey::StartBackoff(no)).map(|at| at - session.phase.since());
            let again = again.map(|wait| format!("; tried again after {wait}")).unwrap_or_default();
            let reason = format!(
                "the agent does not start, {} in a row: its container {last}{again}",
                session.failures
            );
            Some(Told { reason, hopeless: session.failures >= HOPELESS_AFTER, mark })
        }
        _ => None,
    }
}

fn has_begun(state: &State, session: &Session) -> bool {
    session.progress
        || session.inbox.iter().filter_map(|&no| state.inbound(no)).any(|message| message.tries > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pasted_stays_one_word() {
        assert_eq!(quoted("agent/sess-1-a"), "agent/sess-1-a");
        for hostile in
            ["$(id)", "a b", "`x`", "a;b", "'", "", "-rf", "~", "#m1", "a\nb", "*", "!!", "\u{1b}[2J"]
        {
            let shown = quoted(hostile);
            assert!(shown.starts_with('\'') && shown.ends_with('\''), "{shown}");
            assert!(!shown.contains(['\n', '\u{1b}']), "{shown}");
            // As a shell reads it.
            let script = format!("printf %s {shown}");
            let out = std::process::Command::new("sh").arg("-c").arg(&script).output().unwrap();
            let expected: String =
                hostile.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), expected);
        }
    }

    #[test]
    fn a_command_names_the_data_folder_unless_it_is_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let (data, other) = (folder.path().canonicalize().unwrap(), folder.path().join("other"));
        assert_eq!(Verbs::of(&data, &data).of_verb("session start", "g/s"), "lamplighter session start g/s");
        let expected = format!("lamplighter message drop m5 --data {}", data.display());
        assert_eq!(Verbs::of(&data, &other).of_verb("message drop", "m5"), expected);
        let odd = Verbs::of(Path::new("/my data"), &other).of_verb("session start", "g/it's");
        assert_eq!(odd, r"lamplighter session start 'g/it'\''s' --data '/my data'");
    }
}
