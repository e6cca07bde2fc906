//! What reaches the thread that speaks with an agent's process: its lines, pushes for it, its end.
//!
//! Invariant: bounded. A process that says more than is taken waits in its own pipe; a push that does not fit is
//! refused.
//! Invariant: nothing is refused in silence: a push that was taken is handed out, or named with the end.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::provider::Push;

/// Most lines that wait. They are taken as fast as the runner's loop takes events.
const MAX_LINES: usize = 256;
/// Most bytes of waiting lines; one longer line may wait alone. A read image is a line of more than a MiB.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Most pushes that wait for the thread. The runner has far fewer in one query.
const MAX_PUSHES: usize = 64;

/// So much of the end of the standard error is told, in characters: with the words around it, what a reason may have.
const TOLD_CHARS: usize = 300;

/// How a process ended.
#[derive(Clone, Debug, Default)]
pub struct Exit {
    /// Unknown where somebody else has reaped the process.
    pub status: Option<ExitStatus>,
    /// The last of what it wrote to its standard error.
    pub stderr: String,
}

impl Exit {
    /// How it ended and what it wrote last, in brackets and behind them, for a sentence about it.
    pub fn told(&self) -> String {
        let how = self.status.map_or_else(|| "nobody knows how".to_owned(), |status| status.to_string());
        if self.stderr.is_empty() {
            return format!("({how})");
        }
        // The last words say why; warnings come before them.
        let start = self.stderr.char_indices().rev().nth(TOLD_CHARS - 1).map_or(0, |(at, _)| at);
        let cut = if start > 0 { "…" } else { "" };
        format!("({how}): {cut}{}", self.stderr.get(start..).unwrap_or_default().trim_start())
    }
}

/// What comes out.
#[derive(Debug)]
pub enum News {
    /// To be said to the process.
    Push(Push),
    /// What the process said.
    Line(String),
    /// It is gone, all its lines were taken, and nothing more comes; `pushes` did not reach it.
    Exited {
        /// How it ended.
        exit: Exit,
        /// Taken and never handed out.
        pushes: Vec<Push>,
    },
    /// The time that was waited for has come.
    Timeout,
    /// Nobody wants to hear more.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<String>,
    bytes: usize,
    pushes: VecDeque<Push>,
    exit: Option<Exit>,
    closed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked left at worst a line without its bytes counted.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line; waits while too much waits. After [`Inbox::close`] lines are dropped, so that a process which
    /// is asked to end never hangs in a full pipe.
    pub fn line(&self, line: String) {
        let mut state = self.state();
        let is_full = |state: &State| {
            let more = state.bytes.saturating_add(line.len());
            state.lines.len() >= MAX_LINES || (more > MAX_BYTES && !state.lines.is_empty())
        };
        while !state.closed && is_full(&state) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.closed {
            state.bytes += line.len();
            state.lines.push_back(line);
            self.changed.notify_all();
        }
    }

    /// Takes a push. Never waits; `false` when nobody would say it.
    pub fn push(&self, push: &Push) -> bool {
        let mut state = self.state();
        let taken = !state.closed && state.exit.is_none() && state.pushes.len() < MAX_PUSHES;
        if taken {
            state.pushes.push_back(push.clone());
            self.changed.notify_all();
        }
        taken
    }

    /// The process is gone.
    pub fn exited(&self, exit: Exit) {
        self.state().exit = Some(exit);
        self.changed.notify_all();
    }

    /// From here on nobody listens.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.lines.clear();
        state.bytes = 0;
        self.changed.notify_all();
    }

    /// What comes next, at most until `until`.
    pub fn next(&self, until: Option<Instant>) -> News {
        let mut state = self.state();
        loop {
            if state.closed {
                return News::Closed;
            }
            if state.exit.is_none()
                && let Some(push) = state.pushes.pop_front()
            {
                return News::Push(push);
            }
            if let Some(line) = state.lines.pop_front() {
                state.bytes = state.bytes.saturating_sub(line.len());
                self.changed.notify_all();
                return News::Line(line);
            }
            if let Some(exit) = state.exit.clone() {
                state.closed = true;
                return News::Exited { exit, pushes: state.pushes.drain(..).collect() };
            }
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return News::Timeout,
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn push(id: &str) -> Push {
        Push { id: id.to_owned(), ..Push::default() }
    }

    #[test]
    fn of_many_words_the_last_are_told() {
        let told = |stderr: &str| Exit { status: None, stderr: stderr.into() }.told();
        assert_eq!(told(""), "(nobody knows how)");
        assert_eq!(told("no key"), "(nobody knows how): no key");
        let words = format!("{}FATAL: the disk is full", "warning: old \u{e4}\n".repeat(60));
        let found = told(&words);
        assert!(
            found.starts_with("(nobody knows how): …") && found.ends_with("\nFATAL: the disk is full"),
            "{found}"
        );
        assert!(found.chars().count() <= TOLD_CHARS + 21, "{found}");
    }

    #[test]
    fn the_end_comes_after_all_lines_and_names_what_was_not_said() {
        let inbox = Inbox::default();
        inbox.line("a".into());
        inbox.exited(Exit::default());
        assert!(!inbox.push(&push("late")));
        assert!(matches!(inbox.next(None), News::Line(line) if line == "a"));
        assert!(matches!(inbox.next(None), News::Exited { pushes, .. } if pushes.is_empty()));
        assert!(matches!(inbox.next(None), News::Closed));

        let inbox = Inbox::default();
        assert!(inbox.push(&push("taken")));
        inbox.exited(Exit::default());
        assert!(matches!(inbox.next(None), News::Exited { pushes, .. } if pushes.len() == 1));
    }

    #[test]
    fn too_many_pushes_are_refused_and_a_long_line_waits_alone() {
        let inbox = Inbox::default();
        assert!((0..MAX_PUSHES).all(|_| inbox.push(&push("p"))));
        assert!(!inbox.push(&push("p")));
        inbox.line("x".repeat(MAX_BYTES + 1));
        assert!(matches!(inbox.next(None), News::Push(_)));
        assert!(matches!(inbox.next(Some(Instant::now())), News::Push(_)));
    }

    #[test]
    fn whoever_waits_to_hand_over_a_line_is_let_go_at_the_end() {
        let inbox = Arc::new(Inbox::default());
        for _ in 0..MAX_LINES {
            inbox.line("{}".into());
        }
        let waiting = std::thread::spawn({
            let inbox = Arc::clone(&inbox);
            move || inbox.line("{}".into())
        });
        inbox.close();
        assert!(waiting.join().is_ok());
    }
}
