//! One live session's part of the schedule: what was heard of it, whether it may be read now, and what
//! follows from a finished read.
//!
//! Invariant: pure; time is an argument.
//! Invariant: from `Reading` a session goes to `Reported` or back to `Idle`, and from `Reported` only the
//! owner's settlement leads to `Idle`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::coalesce::{Marks, Urgency};
use super::hint::Hint;
use super::schedule::{Fate, HeartbeatAsk, HeartbeatJob, Job, Limits, Look, Place, ReadJob};
use super::source::{MAX_ROOM, Outcome, ReadPlan};
use super::stat::{FileMark, Signature};
use crate::base::SessionNo;

/// After the journal was closed, so long for its removal to be announced: an unlink takes 10 to 100 µs (floor
/// 1b).
pub(super) const REMOVAL_FOLLOWS: Duration = Duration::from_millis(2);
/// After the journal was written, so long for the end of the transaction: a commit takes 1 to 10 ms (floor
/// 1a).
pub(super) const COMMIT_FOLLOWS: Duration = Duration::from_millis(20);
/// First wait after a read found the file locked for 10 ms; doubles from there.
pub(super) const BUSY_FIRST: Duration = Duration::from_millis(5);
/// Longest of these waits.
pub(super) const BUSY_LONGEST: Duration = Duration::from_millis(100);
/// Longest wait once the lock was reported: whoever holds it so long must not occupy the pool.
pub(super) const BUSY_REPORTED: Duration = Duration::from_secs(1);
/// After so many tries in a row an event does not cut the wait short any more.
pub(super) const BUSY_DEAF: u32 = 20;
/// A read for rows waits until the session may have this many, so that a flood is not read row by row.
pub(super) const FEWEST_ROWS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not before its watch is in place.
    Unarmed,
    Idle,
    Reading {
        look: Option<Look>,
    },
    Reported,
}

/// How the session's writer ends its transactions, as far as was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    Unknown,
    /// It removes the journal (DELETE).
    Removes,
    /// It keeps it (TRUNCATE, PERSIST).
    Keeps,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    pub(super) since: Instant,
    pub(super) tries: u32,
    pub(super) retry_at: Instant,
    pub(super) reported: bool,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) epoch: u64,
    pub(super) place: Arc<Place>,
    pub(super) plan: ReadPlan,
    pub(super) phase: Phase,
    pub(super) marks: Marks,
    /// When the marks want to be read.
    pub(super) read_from: Option<Instant>,
    pub(super) announced: bool,
    pub(super) looks: VecDeque<Look>,
    pub(super) busy: Option<Busy>,
    /// A read took longer than its budget, and none has succeeded since.
    pub(super) slow: bool,
    pub(super) bucket: Bucket,
    /// Rows were left in the file that a plan with room must fetch.
    pub(super) left: bool,
    pub(super) habit: Habit,
    /// How many hints there were, to tell whether an event explains what a resync found.
    pub(super) hints: u64,
    /// The files as they were before the last read.
    pub(super) seen: Option<Signature>,
    pub(super) heartbeat: Option<FileMark>,
    pub(super) heartbeat_ask: Option<HeartbeatAsk>,
    pub(super) heartbeat_from: Instant,
    /// Somebody is in the middle of comparing the liveness file; two at once could report one touch twice.
    pub(super) comparing: bool,
    pub(super) queued: bool,
    pub(super) due: Option<Instant>,
}

impl Session {
    pub(super) fn new(
        epoch: u64,
        place: Arc<Place>,
        plan: ReadPlan,
        rows_per_second: u32,
        now: Instant,
    ) -> Self {
        Self {
            epoch,
            place,
            plan,
            phase: Phase::Unarmed,
            marks: Marks::default(),
            read_from: None,
            announced: false,
            looks: VecDeque::new(),
            busy: None,
            slow: false,
            bucket: Bucket::new(rows_per_second, MAX_ROOM, now),
            left: false,
            habit: Habit::Unknown,
            hints: 0,
            seen: None,
            heartbeat: None,
            heartbeat_ask: Some(HeartbeatAsk::Baseline),
            heartbeat_from: now,
            comparing: false,
            queued: false,
            due: None,
        }
    }

    pub(super) fn hint(&mut self, hint: Hint, now: Instant) {
        self.hints += 1;
        match hint {
            Hint::Committed => self.habit = Habit::Removes,
            // A writer with a journal was read at the end of its transaction already.
            Hint::Closed if self.habit != Habit::Unknown => return,
            _ => {}
        }
        let marks = Marks::of(hint);
        if marks.heartbeat {
            self.heard_heartbeat(now);
        }
        if marks.read != Urgency::None {
            self.announced = true;
            self.want_read(marks.read, now);
        }
    }

    /// A touch within the time of the last one is left to the next look, which does its own stat.
    pub(super) fn heard_heartbeat(&mut self, now: Instant) {
        if now >= self.heartbeat_from {
            self.heartbeat_ask = self.heartbeat_ask.or(Some(HeartbeatAsk::Report));
        }
    }

    pub(super) fn want_read(&mut self, urgency: Urgency, now: Instant) {
        self.marks = self.marks.with(Marks { read: urgency, ..Marks::default() });
        let wait = match (urgency, self.habit) {
            (Urgency::None, _) => return,
            (Urgency::Now, _) | (Urgency::Soon, Habit::Keeps) => Duration::ZERO,
            (Urgency::Soon, Habit::Unknown) => REMOVAL_FOLLOWS,
            // A writer that always removes its journal will do so now; an earlier time would only wake a
            // thread.
            (Urgency::Soon, Habit::Removes) | (Urgency::Late, _) => COMMIT_FOLLOWS,
        };
        let at = now + wait;
        self.read_from = Some(self.read_from.map_or(at, |held| held.min(at)));
        if wait.is_zero()
            && let Some(busy) = self.busy.as_mut().filter(|busy| busy.tries < BUSY_DEAF)
        {
            busy.retry_at = now;
        }
    }

    /// When something is to be done for this session; may lie in the past.
    pub(super) fn wanted_at(&self, now: Instant) -> Option<Instant> {
        let heartbeat = (self.heartbeat_ask.is_some() && !self.comparing).then_some(now);
        let read = self.read_at(now);
        [heartbeat, read].into_iter().flatten().min()
    }

    pub(super) fn read_at(&self, now: Instant) -> Option<Instant> {
        if self.phase != Phase::Idle {
            return None;
        }
        let looking = !self.looks.is_empty();
        if looking && self.comparing {
            return None;
        }
        let mut at = if looking { now } else { self.read_from? };
        if let Some(busy) = &self.busy {
            at = at.max(busy.retry_at);
        }
        if !looking && self.plan.room > 0 {
            at = at.max(self.bucket.ready_at(FEWEST_ROWS.min(self.plan.room), now));
        }
        Some(at)
    }

    pub(super) fn next_job(&mut self, no: SessionNo, now: Instant) -> Option<Job> {
        if !self.comparing
            && let Some(ask) = self.heartbeat_ask.take()
        {
            self.comparing = true;
            let place = Arc::clone(&self.place);
            return Some(Job::Heartbeat(HeartbeatJob { session: no, epoch: self.epoch, place, ask }));
        }
        if self.read_at(now)? > now {
            return None;
        }
        let look = self.looks.pop_front();
        self.comparing |= look.is_some();
        self.phase = Phase::Reading { look };
        self.read_from = None;
        let urgency = std::mem::take(&mut self.marks).read;
        let room = self.plan.room.min(MAX_ROOM).min(self.bucket.whole(now));
        Some(Job::Read(ReadJob {
            session: no,
            epoch: self.epoch,
            place: Arc::clone(&self.place),
            plan: ReadPlan { room, ..self.plan.clone() },
            announced: std::mem::take(&mut self.announced),
            look,
            urgency,
            slow: self.slow,
        }))
    }

    pub(super) fn finish_read(
        &mut self,
        job: &ReadJob,
        outcome: Outcome,
        seen: Signature,
        heartbeat: Option<FileMark>,
        limits: &Limits,
        now: Instant,
    ) -> Fate {
        self.comparing &= job.look.is_none();
        if outcome == Outcome::Busy && self.try_again(job, limits, now) {
            return Fate::Again;
        }
        self.phase = Phase::Reported;
        match outcome {
            Outcome::Busy => {}
            Outcome::Slow | Outcome::Failed => {
                self.busy = None;
                self.slow |= outcome == Outcome::Slow;
                self.seen = Some(seen);
            }
            Outcome::Done { rows, more } => {
                self.busy = None;
                self.slow = false;
                self.seen = Some(seen);
                self.bucket.spend(rows, now);
                self.left = more || job.plan.room == 0;
                if job.urgency == Urgency::Soon && rows > 0 {
                    self.habit = Habit::Keeps;
                }
            }
        }
        Fate::Report { heartbeat_changed: job.look.is_some() && self.heartbeat_is(heartbeat) }
    }

    /// After a read that met a lock: whether to try again without telling anybody.
    pub(super) fn try_again(&mut self, job: &ReadJob, limits: &Limits, now: Instant) -> bool {
        let mut busy = self.busy.unwrap_or(Busy { since: now, tries: 0, retry_at: now, reported: false });
        let longest = if busy.reported { BUSY_REPORTED } else { BUSY_LONGEST };
        let wait = BUSY_FIRST.saturating_mul(1 << busy.tries.min(10)).min(longest);
        busy.tries = busy.tries.saturating_add(1);
        busy.retry_at = now + wait;
        // What this read was to bring is still to be read, whoever asked.
        self.marks = self.marks.with(Marks { read: job.urgency.max(Urgency::Soon), ..Marks::default() });
        self.announced |= job.announced;
        self.read_from = Some(self.read_from.map_or(now, |held| held.min(now)));
        let again = match job.look {
            Some(look) => now.saturating_duration_since(look.asked) < limits.look_patience,
            None => now.saturating_duration_since(busy.since) < limits.busy_patience,
        };
        if again {
            self.phase = Phase::Idle;
            self.looks.extend(job.look);
            self.looks.rotate_right(usize::from(job.look.is_some()));
        } else if job.look.is_none() {
            busy.since = now;
            busy.reported = true;
        }
        self.busy = Some(busy);
        again
    }

    /// Remembers how the liveness file is; says whether it changed.
    pub(super) fn heartbeat_is(&mut self, found: Option<FileMark>) -> bool {
        let changed = found.is_some() && found != self.heartbeat;
        if found.is_some() {
            self.heartbeat = found;
        }
        changed
    }
}
