//! The threads that read: each takes the next job of the schedule, does it without the lock, and reports.
//!
//! Invariant: no thread waits longer for one session than the reader's own bounds, some 10 ms for a lock.
//! Invariant: a panic while reading costs that read, not the thread; a reader that panicked is dropped.
//! Invariant: a reader that failed is closed before its result is reported.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use super::event::ReactorEvent;
use super::memory;
use super::schedule::{Fate, HeartbeatJob, Job, ReadJob};
use super::shared::{Shared, State};
use super::source::{OpenReader, Outcome};
use super::stat::{FileMark, Signature};
use crate::session::host_side::{Cause, Reading, Unreadable};

/// What a pool thread does until the reactor stops.
pub(super) fn run(shared: &Shared) {
    let mut state = shared.lock();
    // Closed by this thread since it last handed memory back.
    let mut closed = 0;
    while !state.stop {
        let now = Instant::now();
        if let Some(job) = state.schedule.take(now) {
            let reader = match &job {
                Job::Read(read) => state.kept.take(read.session),
                Job::Heartbeat(_) => None,
            };
            // A sleeper may not know of a time that became due after it fell asleep.
            let more = state.schedule.is_ready() || state.schedule.next_due().is_some();
            drop(state);
            if more {
                shared.work.notify_one();
            }
            match job {
                Job::Read(read) => closed += perform_read(shared, &read, reader),
                Job::Heartbeat(heartbeat) => perform_heartbeat(shared, &heartbeat),
            }
            state = shared.lock();
            continue;
        }
        let mut close = std::mem::take(&mut state.closing);
        close.extend(state.kept.shrink(now));
        if !close.is_empty() {
            drop(state);
            closed += close.len();
            drop(close);
            state = shared.lock();
            continue;
        }
        if closed >= memory::WORTH_IT {
            closed = 0;
            drop(state);
            memory::hand_back();
            state = shared.lock();
            continue;
        }
        state = wait(shared, state, now);
    }
}

fn wait<'a>(shared: &'a Shared, state: MutexGuard<'a, State>, now: Instant) -> MutexGuard<'a, State> {
    let wake = [state.schedule.next_due(), state.kept.next_shrink()].into_iter().flatten().min();
    match wake {
        None => shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(at) => {
            let span = at.saturating_duration_since(now);
            let waited = shared.work.wait_timeout(state, span);
            waited.unwrap_or_else(PoisonError::into_inner).0
        }
    }
}

/// Says how many connections it closed.
fn perform_read(shared: &Shared, job: &ReadJob, reader: Option<Box<dyn OpenReader>>) -> usize {
    let place = &job.place;
    // Before the read: what is written after this moment differs from it and is found by the resync at the
    // latest.
    let seen = Signature::of_rows(&place.folder);
    let heartbeat = job.look.and_then(|_| FileMark::of(&place.folder.heartbeat()));
    let mut reader = reader.unwrap_or_else(|| shared.source.open(&place.name, &place.folder));
    let read = catch_unwind(AssertUnwindSafe(|| reader.read(&job.plan)));
    let panicked = read.is_err();
    let result = read.unwrap_or_else(|_| {
        let cause = Cause::Io("the reader had an internal error; see the log for its message".into());
        Err(Unreadable { session: place.name.clone(), path: place.folder.outbound_db(), cause })
    });
    let outcome = Outcome::of(&result);
    let keep = !matches!(outcome, Outcome::Failed | Outcome::Slow) && shared.mount().is_local();
    let reader = keep.then_some(reader);

    let mut state = shared.lock();
    // Asked again: what was learned during the read holds for this connection too.
    let keep = shared.mount().is_local();
    let now = Instant::now();
    let fate = state.schedule.finish_read(job, outcome, seen, heartbeat, now);
    let gone = match reader {
        Some(reader) if keep && fate != Fate::Stale => state.kept.put(job.session, reader, now),
        other => other.into_iter().collect(),
    };
    count(&mut state, &result, outcome, panicked);
    let ready = state.schedule.is_ready();
    drop(state);
    if ready {
        shared.work.notify_one();
    }
    if let Fate::Report { heartbeat_changed } = fate {
        shared.tell(match job.look {
            Some(look) => {
                ReactorEvent::Looked { session: job.session, ticket: look.ticket, heartbeat_changed, result }
            }
            None => ReactorEvent::Read { session: job.session, result, announced: job.announced },
        });
    }
    gone.len()
}

fn count(state: &mut State, result: &Result<Reading, Unreadable>, outcome: Outcome, panicked: bool) {
    let counters = &mut state.counters;
    counters.reads += 1;
    counters.panics += u64::from(panicked);
    counters.busy += u64::from(outcome == Outcome::Busy);
    let empty = result.as_ref().is_ok_and(|reading| reading.rows.is_empty() && reading.acks.is_empty());
    counters.empty_reads += u64::from(empty);
}

fn perform_heartbeat(shared: &Shared, job: &HeartbeatJob) {
    let found = FileMark::of(&job.place.folder.heartbeat());
    let mut state = shared.lock();
    let report = state.schedule.finish_heartbeat(job, found, Instant::now());
    drop(state);
    if report {
        shared.tell(ReactorEvent::Heartbeat { session: job.session });
    }
}
