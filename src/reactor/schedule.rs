//! Which session is read when: the pure part of the read pool.
//!
//! A session is read, its result is reported, and it rests until the owner has settled that result; what is
//! heard in the meantime is kept as marks and leads to one more read. Sessions that want a read queue up and
//! get it in turn; those whose reads took longer than their budget queue up behind all others, and have one thread
//! at most among them, until a read of theirs succeeds.
//!
//! Invariant: per session at most one read is under way or unsettled.
//! Invariant: every look that was asked for is answered once, or handed back when its session is given up.
//! Invariant: a session is in one of the queues at most once, so they are no longer than the number of sessions.
//! Invariant: no more than one read of slow sessions is under way.
//! Invariant: pure; time is an argument, nothing here touches a file.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::coalesce::Urgency;
use super::hint::Hint;
use super::per_session::{Habit, Phase, Session};
use super::source::{Outcome, ReadPlan};
use super::stat::{FileMark, Signature};
use crate::base::{EffectId, SessionName, SessionNo};
use crate::session::SessionFolder;

/// Most looks of a session that wait for their answer: the machine has one open at a time.
pub const MOST_LOOKS: usize = 4;

/// The bounds that a configuration may change.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows a session may bring per second, sustained (design 3).
    pub rows_per_second: u32,
    /// At most one heartbeat of a session is reported in this time (design 9).
    pub heartbeat_every: Duration,
    /// A look that meets a locked file is answered "busy" after this time: somebody waits for it.
    pub look_patience: Duration,
    /// Any other read that meets a locked file is reported after this time, and every time it has passed
    /// again.
    pub busy_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rows_per_second: 200,
            heartbeat_every: Duration::from_secs(5),
            look_patience: Duration::from_secs(2),
            busy_patience: Duration::from_secs(5),
        }
    }
}

/// Which session, and where it lies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: SessionName,
    pub(super) folder: SessionFolder,
}

/// One thing for a pool thread to do.
#[derive(Debug)]
pub(super) enum Job {
    Read(ReadJob),
    Heartbeat(HeartbeatJob),
}

/// Read a session's outbound.db.
#[derive(Debug)]
pub(super) struct ReadJob {
    pub(super) session: SessionNo,
    pub(super) epoch: u64,
    pub(super) place: Arc<Place>,
    /// With the room that the session may have now.
    pub(super) plan: ReadPlan,
    /// Whether an event or the owner wanted this read, and not the resync.
    pub(super) announced: bool,
    /// The look that it answers.
    pub(super) look: Option<Look>,
    pub(super) urgency: Urgency,
    /// It is the one read of slow sessions that is under way.
    pub(super) slow: bool,
}

/// Stat a session's liveness file.
#[derive(Debug)]
pub(super) struct HeartbeatJob {
    pub(super) session: SessionNo,
    pub(super) epoch: u64,
    pub(super) place: Arc<Place>,
    pub(super) ask: HeartbeatAsk,
}

/// A look that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) ticket: EffectId,
    pub(super) asked: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeartbeatAsk {
    /// Report a change.
    Report,
    /// Remember how the file is now.
    Baseline,
}

/// What becomes of a finished read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Report it; the session rests until it is settled.
    Report {
        /// For a look: whether the liveness file changed.
        heartbeat_changed: bool,
    },
    /// It will be tried again; nobody is told.
    Again,
    /// The session was given up meanwhile; the result is nobody's.
    Stale,
}

/// The schedule of all live sessions.
#[derive(Debug)]
pub(super) struct Schedule {
    limits: Limits,
    sessions: BTreeMap<SessionNo, Session>,
    queue: VecDeque<SessionNo>,
    /// Those that wait behind `queue`.
    slow_queue: VecDeque<SessionNo>,
    /// A slow session is being read, perhaps one that was given up meanwhile: it holds a thread all the same.
    slow_read: bool,
    due: BTreeSet<(Instant, SessionNo)>,
    epochs: u64,
}

/// What a resync found in a live session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The number of hints at that moment; if it is still the same later, no event announced the change.
    pub(super) hints: u64,
    pub(super) epoch: u64,
}

impl Schedule {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            queue: VecDeque::new(),
            slow_queue: VecDeque::new(),
            slow_read: false,
            due: BTreeSet::new(),
            epochs: 0,
        }
    }

    /// The session is live from now on. It is not read before [`Schedule::arm`]. When it was live at the same
    /// place already, only its plan is renewed, as by [`Schedule::settled`]; otherwise the open looks of the
    /// former life are handed back.
    pub(super) fn live(
        &mut self,
        no: SessionNo,
        place: Arc<Place>,
        plan: ReadPlan,
        now: Instant,
    ) -> (bool, Vec<EffectId>) {
        if self.sessions.get(&no).is_some_and(|session| session.place == place) {
            self.settled(no, plan, now);
            return (false, Vec::new());
        }
        let dropped = self.remove(no);
        self.epochs += 1;
        let session = Session::new(self.epochs, place, plan, self.limits.rows_per_second, now);
        self.sessions.insert(no, session);
        (true, dropped)
    }

    /// The watch of this place is in place, or known to be impossible: scan it. Means nothing to a session that was
    /// made live at another place meanwhile.
    pub(super) fn arm(&mut self, no: SessionNo, place: &Place, now: Instant) {
        let Some(session) = self.sessions.get_mut(&no).filter(|session| *session.place == *place) else {
            return;
        };
        if session.phase == Phase::Unarmed {
            session.phase = Phase::Idle;
        }
        session.announced = true;
        session.want_read(Urgency::Now, now);
        self.consider(no, now);
    }

    /// The session is live no more. Hands back the looks that were not answered.
    pub(super) fn remove(&mut self, no: SessionNo) -> Vec<EffectId> {
        let Some(session) = self.sessions.remove(&no) else { return Vec::new() };
        if let Some(at) = session.due {
            self.due.remove(&(at, no));
        }
        let under_way = match session.phase {
            Phase::Reading { look } => look,
            _ => None,
        };
        under_way.iter().chain(&session.looks).map(|look| look.ticket).collect()
    }

    /// What a live session's files looked like before its last read.
    pub(super) fn last_seen(&self, no: SessionNo) -> Option<Signature> {
        self.sessions.get(&no)?.seen
    }

    /// Whether the session is live.
    pub(super) fn is_live(&self, no: SessionNo) -> bool {
        self.sessions.contains_key(&no)
    }

    /// All live sessions.
    pub(super) fn live_sessions(&self) -> Vec<SessionNo> {
        self.sessions.keys().copied().collect()
    }

    /// An event came. Says whether a thread must be woken: something is ready, or due sooner than any thread
    /// knows.
    pub(super) fn hint(&mut self, no: SessionNo, hint: Hint, now: Instant) -> bool {
        let Some(session) = self.sessions.get_mut(&no) else { return false };
        session.hint(hint, now);
        let known = self.next_due();
        self.consider(no, now);
        let sooner = match (known, self.next_due()) {
            (Some(known), Some(next)) => next < known,
            (None, next) => next.is_some(),
            (Some(_), None) => false,
        };
        self.is_ready() || sooner
    }

    /// Events were lost: anything may have happened anywhere.
    pub(super) fn hint_all(&mut self, now: Instant) {
        for no in self.live_sessions() {
            if let Some(session) = self.sessions.get_mut(&no) {
                session.hints += 1;
                session.announced = true;
                session.want_read(Urgency::Now, now);
                session.heard_heartbeat(now);
            }
            self.consider(no, now);
        }
    }

    /// The owner has taken in the last result.
    pub(super) fn settled(&mut self, no: SessionNo, plan: ReadPlan, now: Instant) {
        let Some(session) = self.sessions.get_mut(&no) else { return };
        if session.phase == Phase::Reported {
            session.phase = Phase::Idle;
        }
        // An ack may have been written between the last read and the moment when its id was first asked for.
        let more = plan.asks_more_than(&session.plan) || (session.left && plan.room > 0);
        session.plan = plan;
        if more {
            session.left = false;
            session.announced = true;
            session.want_read(Urgency::Now, now);
        }
        self.consider(no, now);
    }

    /// Stat the heartbeat and read. `false` when the session is not live or too many looks are open already.
    pub(super) fn look(&mut self, no: SessionNo, ticket: EffectId, now: Instant) -> bool {
        let Some(session) = self.sessions.get_mut(&no) else { return false };
        if session.looks.len() >= MOST_LOOKS {
            return false;
        }
        session.looks.push_back(Look { ticket, asked: now });
        self.consider(no, now);
        true
    }

    /// Take the liveness file as it is now for the one to compare with.
    pub(super) fn baseline(&mut self, no: SessionNo, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&no) {
            session.heartbeat_ask = Some(HeartbeatAsk::Baseline);
        }
        self.consider(no, now);
    }

    /// Compares what a resync saw with what the last read knew; a difference leads to a read.
    pub(super) fn compare(&mut self, no: SessionNo, now_seen: &Signature, now: Instant) -> Option<Found> {
        let session = self.sessions.get_mut(&no)?;
        if now_seen.heartbeat != session.heartbeat {
            session.heard_heartbeat(now);
        }
        let resting = session.read_from.is_none() && matches!(session.phase, Phase::Idle | Phase::Reported);
        let differs = session.seen.is_some_and(|seen| seen.differs_in_rows(now_seen));
        let mut found = None;
        if resting && differs {
            session.want_read(Urgency::Now, now);
            // A journal with content: a transaction is on its way, and that alone makes the files differ.
            let ended = now_seen.journal.is_none() || session.habit == Habit::Keeps;
            found = ended.then_some(Found { hints: session.hints, epoch: session.epoch });
        }
        self.consider(no, now);
        found
    }

    /// Whether no event came since a resync found a change.
    pub(super) fn is_unannounced(&self, no: SessionNo, found: Found) -> bool {
        self.sessions
            .get(&no)
            .is_some_and(|session| session.epoch == found.epoch && session.hints == found.hints)
    }

    /// When [`Schedule::take`] may have something next, apart from what is ready.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether a session waits for a thread, and may have one.
    pub(super) fn is_ready(&self) -> bool {
        !self.queue.is_empty() || (!self.slow_read && !self.slow_queue.is_empty())
    }

    /// The next thing to do, sessions in turn, slow ones last.
    pub(super) fn take(&mut self, now: Instant) -> Option<Job> {
        while let Some((at, no)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, no));
            if let Some(session) = self.sessions.get_mut(&no) {
                session.due = None;
            }
            self.consider(no, now);
        }
        while let Some(no) = self.next_queued() {
            let Some(session) = self.sessions.get_mut(&no) else { continue };
            session.queued = false;
            let job = session.next_job(no, now);
            self.slow_read |= matches!(&job, Some(Job::Read(read)) if read.slow);
            self.consider(no, now);
            if job.is_some() {
                return job;
            }
        }
        None
    }

    fn next_queued(&mut self) -> Option<SessionNo> {
        let first = self.queue.pop_front();
        first.or_else(|| if self.slow_read { None } else { self.slow_queue.pop_front() })
    }

    /// A read ended. `seen` are the files as they were before it, `heartbeat` the liveness file when it was a
    /// look.
    pub(super) fn finish_read(
        &mut self,
        job: &ReadJob,
        outcome: Outcome,
        seen: Signature,
        heartbeat: Option<FileMark>,
        now: Instant,
    ) -> Fate {
        if job.slow {
            self.slow_read = false;
        }
        let Some(session) = self.sessions.get_mut(&job.session).filter(|s| s.epoch == job.epoch) else {
            return Fate::Stale;
        };
        let fate = session.finish_read(job, outcome, seen, heartbeat, &self.limits, now);
        self.consider(job.session, now);
        fate
    }

    /// The liveness file was looked at. Says whether to report it.
    pub(super) fn finish_heartbeat(
        &mut self,
        job: &HeartbeatJob,
        found: Option<FileMark>,
        now: Instant,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&job.session).filter(|s| s.epoch == job.epoch) else {
            return false;
        };
        session.comparing = false;
        let report = session.heartbeat_is(found) && job.ask == HeartbeatAsk::Report;
        if report {
            session.heartbeat_from = now + self.limits.heartbeat_every;
        }
        self.consider(job.session, now);
        report
    }

    /// Puts the session where it belongs now: into the queue, among those with a due time, or nowhere.
    fn consider(&mut self, no: SessionNo, now: Instant) {
        let Some(session) = self.sessions.get_mut(&no) else { return };
        if session.queued {
            return;
        }
        let wanted = session.wanted_at(now);
        let due = wanted.filter(|at| *at > now);
        if due != session.due {
            if let Some(old) = session.due {
                self.due.remove(&(old, no));
            }
            if let Some(new) = due {
                self.due.insert((new, no));
            }
            session.due = due;
        }
        if wanted.is_some() && due.is_none() {
            session.queued = true;
            if session.slow { self.slow_queue.push_back(no) } else { self.queue.push_back(no) }
        }
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
