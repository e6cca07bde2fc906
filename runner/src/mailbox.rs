//! Everything that can wake the runner's one loop, in one place.
//!
//! Invariant: bounded. Looks and stops are flags; at most [`MAX_EVENTS`] provider events wait, then the
//! provider does.
//! Invariant: events of a query that is over are refused at the door, so no stale news reaches the loop.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::provider::ProviderEvent;
use crate::script::Outcome;

/// Most provider events that wait for the loop. The loop takes microseconds for most and a commit for a few;
/// a provider that is faster than that must wait rather than fill the memory.
const MAX_EVENTS: usize = 64;

/// What woke the loop.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The open query's provider says something.
    Provider(ProviderEvent),
    /// The script of this task has ended.
    Script(String, Outcome),
    /// The runner is asked to end.
    Stop,
    /// Something may have changed in inbound.db.
    Look,
    /// The time that the loop waited for has come.
    Timeout,
}

/// The query is over: whoever posts for it should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the query is over")]
pub struct QueryOver;

#[derive(Debug, Default)]
struct State {
    query: u64,
    open: bool,
    events: VecDeque<ProviderEvent>,
    /// One script runs at a time.
    script: Option<(String, Outcome)>,
    stop: bool,
    look: bool,
}

/// The loop's inbox.
#[derive(Debug, Default)]
pub struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change below is one assignment or one push: a poster that panicked left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that inbound.db may have changed.
    pub fn look(&self) {
        self.state().look = true;
        self.changed.notify_all();
    }

    /// Asks the loop to end.
    pub fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    /// Says that a script has ended.
    pub fn script(&self, task: String, outcome: Outcome) {
        self.state().script = Some((task, outcome));
        self.changed.notify_all();
    }

    /// Begins a query: what is posted through the returned sink reaches the loop until the query is closed.
    pub fn open_query(self: &Arc<Self>) -> Sink {
        let mut state = self.state();
        state.query += 1;
        state.open = true;
        state.events.clear();
        Sink { mailbox: Arc::clone(self), query: state.query, heard: None }
    }

    /// Ends the query; events that wait are dropped, and whoever posts is told.
    pub fn close_query(&self) {
        let mut state = self.state();
        state.open = false;
        state.events.clear();
        self.changed.notify_all();
    }

    /// Waits for the next event, at most until `until`. Provider events come first, so that a result which is
    /// ready is taken before a stop.
    pub fn take(&self, until: Option<Instant>) -> Event {
        self.take_some(until, true)
    }

    /// As [`Mailbox::take`], but leaves provider events where they are: whoever has more of them waits.
    pub fn take_other(&self, until: Option<Instant>) -> Event {
        self.take_some(until, false)
    }

    fn take_some(&self, until: Option<Instant>, provider: bool) -> Event {
        let mut state = self.state();
        loop {
            if provider && let Some(event) = state.events.pop_front() {
                self.changed.notify_all();
                return Event::Provider(event);
            }
            if let Some((task, outcome)) = state.script.take() {
                return Event::Script(task, outcome);
            }
            if std::mem::take(&mut state.stop) {
                return Event::Stop;
            }
            if std::mem::take(&mut state.look) {
                return Event::Look;
            }
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Event::Timeout;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// The provider's end of the mailbox, for one query.
#[derive(Clone)]
pub struct Sink {
    mailbox: Arc<Mailbox>,
    query: u64,
    heard: Option<Hearer>,
}

/// Hears every event that is taken.
pub type Hearer = Arc<dyn Fn(&ProviderEvent) + Send + Sync>;

impl Sink {
    /// The same sink, with somebody who hears what is posted.
    pub fn heard_by(self, heard: Hearer) -> Self {
        Self { heard: Some(heard), ..self }
    }

    /// Posts an event; waits while [`MAX_EVENTS`] are waiting.
    ///
    /// # Errors
    /// [`QueryOver`] when nobody wants it any more.
    pub fn send(&self, event: ProviderEvent) -> Result<(), QueryOver> {
        let mut state = self.mailbox.state();
        loop {
            if !state.open || state.query != self.query {
                return Err(QueryOver);
            }
            if state.events.len() < MAX_EVENTS {
                if let Some(heard) = &self.heard {
                    heard(&event);
                }
                state.events.push_back(event);
                self.mailbox.changed.notify_all();
                return Ok(());
            }
            state = self.mailbox.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(5))
    }

    #[test]
    fn looks_coalesce_and_a_ready_result_comes_before_a_stop() {
        let mailbox = Arc::new(Mailbox::default());
        let sink = mailbox.open_query();
        mailbox.look();
        mailbox.look();
        mailbox.stop();
        assert_eq!(sink.send(ProviderEvent::Activity), Ok(()));
        assert_eq!(mailbox.take(soon()), Event::Provider(ProviderEvent::Activity));
        assert_eq!(mailbox.take(soon()), Event::Stop);
        assert_eq!(mailbox.take(soon()), Event::Look);
        assert_eq!(mailbox.take(Some(Instant::now())), Event::Timeout);
    }

    #[test]
    fn a_loop_that_cannot_go_on_hears_all_but_the_provider() {
        let mailbox = Arc::new(Mailbox::default());
        let sink = mailbox.open_query();
        assert_eq!(sink.send(ProviderEvent::Activity), Ok(()));
        mailbox.stop();
        assert_eq!(mailbox.take_other(soon()), Event::Stop);
        assert_eq!(mailbox.take_other(Some(Instant::now())), Event::Timeout);
        assert_eq!(mailbox.take(soon()), Event::Provider(ProviderEvent::Activity));
    }

    #[test]
    fn a_query_that_is_over_takes_no_events() {
        let mailbox = Arc::new(Mailbox::default());
        let old = mailbox.open_query();
        let new = mailbox.open_query();
        assert_eq!(old.send(ProviderEvent::Activity), Err(QueryOver));
        assert_eq!(new.send(ProviderEvent::Activity), Ok(()));
        mailbox.close_query();
        assert_eq!(new.send(ProviderEvent::Activity), Err(QueryOver));
        assert_eq!(mailbox.take(Some(Instant::now())), Event::Timeout);
    }

    #[test]
    fn a_provider_that_is_too_fast_waits_and_is_let_go_at_the_end() {
        let mailbox = Arc::new(Mailbox::default());
        let sink = mailbox.open_query();
        for _ in 0..MAX_EVENTS {
            assert_eq!(sink.send(ProviderEvent::Activity), Ok(()));
        }
        let waiting = std::thread::spawn(move || sink.send(ProviderEvent::Activity));
        mailbox.close_query();
        assert_eq!(waiting.join().ok(), Some(Err(QueryOver)));
    }
}
