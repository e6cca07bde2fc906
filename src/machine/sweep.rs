//! Sweep: what happens because time passes. Stuck claims, idle containers, retries, and the looks before each of them.

use super::Step;
use super::effect::{Cause, Effect, LookWhy, StopReason, backoff};
use super::input::{Exit, Reading, Unreadable};
use super::policy::{
    BUSY_FIRST, BUSY_MAX, CONTAINER_OVERDUE, LOOK_OVERDUE, QUARANTINE_FIRST, QUARANTINE_MAX,
};
use super::state::{
    ComponentId, InState, Item, Life, LookOpen, OutState, Owner, Phase, Session, State, Trouble, Wait,
};
use super::timers::TimerKey;
use crate::base::{At, Attempt, DestinationNo, EffectId, MessageNo, Ms, SessionNo};

impl State {
    /// The machine time at which a waiting message falls due; none for never.
    pub fn due_at(&self, wait: Wait) -> Option<At> {
        match wait {
            Wait::Now => Some(At(i64::MIN)),
            Wait::Until(wall) => Some(self.at_of(wall)),
            Wait::Backoff { since, wait } => Some(since + wait),
            Wait::Held { since } => Some(since + super::policy::HELD_FOR),
            Wait::Never => None,
        }
    }

    pub(super) fn derive_all_timers(&mut self) {
        let sessions: Vec<SessionNo> = self.sessions().keys().copied().collect();
        let destinations: Vec<DestinationNo> = self.destinations().keys().copied().collect();
        let messages: Vec<MessageNo> = self.outbounds().keys().copied().collect();
        sessions.into_iter().for_each(|no| self.derive_session_timers(no));
        destinations.into_iter().for_each(|no| self.derive_destination_timer(no));
        messages.into_iter().for_each(|no| self.derive_message_timer(no));
    }

    pub(super) fn derive_touched_timers(&mut self) {
        if self.touched().contains(&ComponentId::Policy) {
            return self.derive_all_timers();
        }
        let touched: Vec<ComponentId> = self.touched().iter().copied().collect();
        for id in touched {
            match id {
                ComponentId::Session(no) => self.derive_session_timers(no),
                ComponentId::Destination(no) => self.derive_destination_timer(no),
                ComponentId::Outbound(no) => self.derive_message_timer(no),
                _ => {}
            }
        }
    }

    fn derive_session_timers(&mut self, no: SessionNo) {
        for key in TimerKey::of_session(no) {
            let deadline = self.session(no).and_then(|session| self.session_deadline(session, key));
            self.timers.put(key, deadline);
        }
    }

    fn derive_destination_timer(&mut self, no: DestinationNo) {
        let deadline = self.destination(no).and_then(|destination| {
            let head = match destination.queue.front() {
                Some(Item::Message(message)) => self.outbound(*message).map(|m| m.seen),
                _ => None,
            };
            super::deliver::hold_deadline(destination, head, self.policy().no_recipient_keep)
        });
        self.timers.put(TimerKey::Destination(no), deadline);
    }

    fn derive_message_timer(&mut self, no: MessageNo) {
        let deadline = self.outbound(no).and_then(|message| match message.state {
            OutState::Scheduled { until } => Some(self.at_of(until)),
            _ => None,
        });
        self.timers.put(TimerKey::DeliverAfter(no), deadline);
    }

    /// The deadline of one of a session's timers, from its state alone.
    pub(super) fn session_deadline(&self, session: &Session, key: TimerKey) -> Option<At> {
        let policy = self.policy();
        let running = match session.phase {
            Phase::Running { since, .. } => Some(since),
            _ => None,
        };
        match key {
            TimerKey::MessageDue(_) => self.next_due(session),
            TimerKey::ClaimSilence(_) => {
                running.filter(|_| session.look.is_none())?;
                let claim = self.silent_claim(session)?;
                Some(extended(session, claim + policy.claim_silence, policy.claim_silence))
            }
            TimerKey::Ceiling(_) => {
                running.filter(|_| session.look.is_none())?;
                self.first_claim(session)?;
                Some(extended(session, session.last_sign + policy.silence_ceiling, policy.claim_silence))
            }
            TimerKey::IdleStop(_) => {
                running.filter(|_| session.look.is_none() && self.first_claim(session).is_none())?;
                Some(session.idle_since + policy.idle_stop)
            }
            TimerKey::Healthy(_) => {
                running.filter(|_| session.failures > 0).map(|since| since + policy.healthy_after)
            }
            TimerKey::ContainerOverdue(_) => match session.phase {
                Phase::Starting { since, .. } => Some(since + CONTAINER_OVERDUE),
                Phase::Stopping { since, .. } => Some(since + policy.stop_grace + CONTAINER_OVERDUE),
                _ => None,
            },
            TimerKey::StartBackoff(_) => match session.phase {
                Phase::BackingOff { since } => {
                    Some(since + backoff(policy.start_backoff, session.failures, policy.start_backoff_max))
                }
                _ => None,
            },
            TimerKey::LookAgain(_) => {
                let trouble = session.trouble.filter(|_| session.look.is_none())?;
                Some(trouble.since + trouble.wait())
            }
            TimerKey::LookOverdue(_) => session.look.map(|look| look.since + LOOK_OVERDUE),
            TimerKey::Destination(_) | TimerKey::DeliverAfter(_) => None,
        }
    }

    /// When the next message that was not due when the session was last considered falls due.
    fn next_due(&self, session: &Session) -> Option<At> {
        session
            .inbox
            .iter()
            .filter_map(|&no| match self.inbound(no)?.state {
                InState::Queued { wait } => self.due_at(wait).filter(|&due| due > session.considered),
                _ => None,
            })
            .min()
    }

    fn first_claim(&self, session: &Session) -> Option<At> {
        session
            .inbox
            .iter()
            .filter_map(|&no| match self.inbound(no)?.state {
                InState::Claimed { since, .. } => Some(since),
                _ => None,
            })
            .min()
    }

    /// Since when the oldest claim stands that no sign of life has followed.
    fn silent_claim(&self, session: &Session) -> Option<At> {
        self.first_claim(session).filter(|&since| session.last_sign <= since)
    }
}

/// A liveness deadline, moved back by what the runner declared: a tool's own deadline, an announced wait.
fn extended(session: &Session, deadline: At, slack: Ms) -> At {
    let tool = session.tool.map(|tool| tool.since + tool.declared + slack);
    let wait = session.wait_until.map(|until| until + slack);
    deadline.max(tool.unwrap_or(deadline)).max(wait.unwrap_or(deadline))
}

impl Trouble {
    /// How long until the next try.
    pub fn wait(&self) -> Ms {
        match self.kind {
            Unreadable::Busy | Unreadable::HotJournal => backoff(BUSY_FIRST, self.failures, BUSY_MAX),
            Unreadable::Missing | Unreadable::Bad => backoff(QUARANTINE_FIRST, self.failures, QUARANTINE_MAX),
        }
    }
}

impl Step<'_> {
    /// Fires a timer, if it is set to just that deadline and that deadline has passed.
    pub(super) fn on_timer(&mut self, key: TimerKey, deadline: At) {
        if self.state.timers().deadline(key) != Some(deadline) || deadline > self.at {
            return;
        }
        match key {
            // Touching the session has it considered again.
            TimerKey::MessageDue(no) => {
                let _ = self.state.session_mut(no);
            }
            TimerKey::ClaimSilence(no) => self.look(no, LookWhy::BeforeStop(StopReason::ClaimSilent)),
            TimerKey::Ceiling(no) => self.look(no, LookWhy::BeforeStop(StopReason::Silent)),
            TimerKey::IdleStop(no) => self.look(no, LookWhy::BeforeStop(StopReason::Idle)),
            TimerKey::Healthy(no) => {
                if let Some(session) = self.state.session_mut(no) {
                    session.failures = 0;
                }
            }
            TimerKey::ContainerOverdue(no) => self.on_container_overdue(no),
            TimerKey::StartBackoff(no) => self.state.set_phase(no, Phase::Stopped { since: self.at }),
            TimerKey::LookAgain(no) => self.look_again(no),
            TimerKey::LookOverdue(no) => self.on_look_overdue(no),
            TimerKey::Destination(no) => self.on_destination_due(no),
            TimerKey::DeliverAfter(no) => self.on_deliver_after(no),
        }
    }

    /// Asks for a look. One at a time: a new one replaces the one under way, whose answer is then late news.
    pub(super) fn look(&mut self, no: SessionNo, why: LookWhy) {
        let since = self.at;
        let Some(old) = self.state.session(no).map(|session| session.look) else { return };
        if let Some(old) = old {
            self.state.close(old.effect);
        }
        let effect = self.issue(Owner::Look(no), Effect::Look { session: no, why });
        if let Some(session) = self.state.session_mut(no) {
            session.look = Some(LookOpen { effect, why, since });
        }
    }

    fn look_again(&mut self, no: SessionNo) {
        let why = match self.state.session(no).map(|session| &session.phase) {
            Some(Phase::Closing { .. }) => LookWhy::AfterExit,
            Some(Phase::Quarantined { .. }) => LookWhy::Quarantine,
            Some(_) => LookWhy::Found,
            None => return,
        };
        self.look(no, why);
    }

    fn on_look_overdue(&mut self, no: SessionNo) {
        let Some(open) = self.state.session(no).and_then(|session| session.look) else { return };
        self.complain(Some(no), Cause::Overdue, "a look was not answered; asked again");
        self.look(no, open.why);
    }

    fn on_container_overdue(&mut self, no: SessionNo) {
        self.complain(
            Some(no),
            Cause::Overdue,
            "a container did not start or stop in time; asked to stop again",
        );
        match self.state.session(no).and_then(|session| session.phase.alive()) {
            Some(attempt) => {
                let reason = StopReason::Unreadable;
                let reason = match self.state.session(no).map(|session| &session.phase) {
                    Some(Phase::Stopping { reason, .. }) => *reason,
                    _ => reason,
                };
                self.begin_stop(no, attempt, reason);
            }
            None => self.illegal(Some(no), "a container timer without a container"),
        }
    }

    /// Asks the container to stop. The caller has looked, or acts on somebody's word.
    pub(super) fn begin_stop(&mut self, no: SessionNo, attempt: Attempt, reason: StopReason) {
        let grace = self.state.policy().stop_grace;
        self.state.set_phase(no, Phase::Stopping { attempt, since: self.at, reason });
        self.tell(Effect::StopContainer { session: no, attempt, reason, grace });
    }

    pub(super) fn on_looked(
        &mut self,
        effect: EffectId,
        no: SessionNo,
        heartbeat_changed: bool,
        alive: Option<bool>,
        reading: Reading,
    ) {
        let Some(Owner::Look(owner)) = self.state.close(effect) else { return };
        let open = self.state.session(no).and_then(|session| session.look);
        let Some(open) = open.filter(|open| owner == no && open.effect == effect) else { return };
        if let Some(session) = self.state.session_mut(no) {
            session.look = None;
        }
        if heartbeat_changed {
            self.on_sign_of_life(no);
        }
        match reading {
            Reading::Rows(rows) => {
                if let Some(session) = self.state.session_mut(no) {
                    session.trouble = None;
                }
                self.take_rows(no, rows);
                self.after_look(no, open.why, alive);
            }
            Reading::Unreadable { kind, detail } => self.on_unreadable(no, kind, detail, Some(open.why)),
        }
    }

    fn after_look(&mut self, no: SessionNo, why: LookWhy, alive: Option<bool>) {
        match why {
            LookWhy::BeforeStop(reason) => self.stop_if_still(no, reason, alive),
            LookWhy::AfterExit => self.close_attempt(no),
            LookWhy::Found | LookWhy::Quarantine => {}
        }
    }

    /// The last look before a stop: does its reason still hold?
    fn stop_if_still(&mut self, no: SessionNo, reason: StopReason, alive: Option<bool>) {
        let Some(session) = self.state.session(no) else { return };
        let Phase::Running { attempt, .. } = session.phase else { return };
        let key = match reason {
            StopReason::ClaimSilent => Some(TimerKey::ClaimSilence(no)),
            StopReason::Silent => Some(TimerKey::Ceiling(no)),
            StopReason::Idle => Some(TimerKey::IdleStop(no)),
            _ => None,
        };
        let holds = match key {
            Some(key) => {
                self.state.session_deadline(session, key).is_some_and(|deadline| deadline <= self.at)
            }
            None if reason == StopReason::MakeRoom => {
                !self.has_claims(session) && !self.has_due_work(session)
            }
            None => true,
        };
        if !holds {
            return;
        }
        if alive == Some(false) {
            // Its exit is on its way and says more than a stop would.
            return;
        }
        if reason.blames() {
            self.complain(Some(no), Cause::Stuck, format!("container stopped: {}", reason.name()));
        }
        self.begin_stop(no, attempt, reason);
    }

    pub(super) fn on_exited(&mut self, no: SessionNo, attempt: Attempt, exit: Exit) {
        let Some(session) = self.state.session(no) else {
            return self.illegal(None, "an exit in an unknown session");
        };
        let (reason, started) = match session.phase {
            Phase::Starting { attempt: own, since, .. } | Phase::Running { attempt: own, since }
                if own == attempt =>
            {
                (None, since)
            }
            Phase::Stopping { attempt: own, since, reason } if own == attempt => (Some(reason), since),
            // News of an older attempt.
            _ => return,
        };
        self.gone(no, attempt, exit, reason, started);
    }

    /// An attempt is gone: what it left is read before anything else happens to the session.
    pub(super) fn gone(
        &mut self,
        no: SessionNo,
        attempt: Attempt,
        exit: Exit,
        reason: Option<StopReason>,
        started: At,
    ) {
        self.state.set_phase(no, Phase::Closing { attempt, since: self.at, exit, reason, started });
        self.look(no, LookWhy::AfterExit);
    }

    /// The look that closes an attempt succeeded.
    fn close_attempt(&mut self, no: SessionNo) {
        let Some(session) = self.state.session(no) else { return };
        let Phase::Closing { exit, reason, .. } = session.phase else { return };
        let (claims, progress) = (self.has_claims(session), session.progress);
        let crashed =
            reason.is_none() && matches!(exit, Exit::Code(1..) | Exit::Code(..=-1) | Exit::Signal(_));
        // An exit in mid-turn is an abnormal end of the turn whatever its code; one that nobody saw blames nobody.
        let abnormal = match reason {
            Some(reason) => reason.blames(),
            None => crashed || (claims && exit == Exit::Code(0)),
        };
        self.void_claims(no, abnormal);
        if let Some(session) = self.state.session_mut(no) {
            session.tool = None;
            session.wait_until = None;
            session.attempt_seen = false;
        }
        if crashed {
            self.complain(Some(no), Cause::Crashed, format!("container ended with {}", exit.describe()));
        }
        // A container that left by itself and did nothing must not be started again at once.
        let fruitless = reason.is_none() && exit != Exit::Unknown && !progress;
        if crashed || fruitless {
            if let Some(session) = self.state.session_mut(no) {
                session.failures = session.failures.saturating_add(1);
            }
            self.state.set_phase(no, Phase::BackingOff { since: self.at });
        } else {
            self.state.set_phase(no, Phase::Stopped { since: self.at });
        }
    }

    /// outbound.db could not be read. Busy passes; what is bad quarantines the session, and only it.
    pub(super) fn on_unreadable(
        &mut self,
        no: SessionNo,
        kind: Unreadable,
        detail: String,
        why: Option<LookWhy>,
    ) {
        let at = self.at;
        let passing = matches!(kind, Unreadable::Busy | Unreadable::HotJournal);
        let Some(session) = self.state.session_mut(no) else { return };
        if passing && why.is_none() {
            // The reader tries again by itself.
            return;
        }
        let failures = session.trouble.map_or(1, |trouble| trouble.failures.saturating_add(1));
        session.trouble = Some(Trouble { since: at, kind, failures });
        if passing {
            // What was to be stopped is stopped all the same: a container that keeps its file locked must not
            // become immortal by it.
            if let Some(LookWhy::BeforeStop(reason)) = why {
                self.stop_if_still(no, reason, None);
            }
            return;
        }
        self.complain(Some(no), Cause::Unreadable, detail);
        let Some(session) = self.state.session(no) else { return };
        match session.phase {
            Phase::Running { attempt, .. } | Phase::Starting { attempt, .. } => {
                self.begin_stop(no, attempt, StopReason::Unreadable);
            }
            Phase::Stopping { .. } => {}
            Phase::Quarantined { .. } => {}
            Phase::Closing { .. } => {
                // Nothing is blamed on a message that nobody can look up; acks are read before the next start.
                self.void_claims(no, false);
                self.state.set_phase(no, Phase::Quarantined { since: at, kind });
            }
            Phase::Stopped { .. } | Phase::BackingOff { .. } => {
                self.state.set_phase(no, Phase::Quarantined { since: at, kind });
            }
        }
    }

    /// outbound.db could be read.
    pub(super) fn readable_again(&mut self, no: SessionNo) {
        let Some(session) = self.state.session(no) else { return };
        let quarantined = matches!(session.phase, Phase::Quarantined { .. });
        let closing = matches!(session.phase, Phase::Closing { .. })
            && session.look.is_none()
            && session.trouble.is_some();
        if session.trouble.is_some()
            && let Some(session) = self.state.session_mut(no)
        {
            session.trouble = None;
        }
        if quarantined {
            self.state.set_phase(no, Phase::Stopped { since: self.at });
        } else if closing {
            // The look that failed is what would close the attempt; this reading was not it.
            self.look(no, LookWhy::AfterExit);
        }
    }

    pub(super) fn on_shutdown_asked(&mut self) {
        self.state.core_mut().life = Life::Closing;
        let alive: Vec<SessionNo> = self.state.alive().iter().copied().collect();
        for no in alive {
            let Some(session) = self.state.session(no) else { continue };
            if let Phase::Starting { attempt, .. } | Phase::Running { attempt, .. } = session.phase {
                self.begin_stop(no, attempt, StopReason::Shutdown);
            }
        }
        let queued: Vec<SessionNo> = self.state.queue().iter().copied().collect();
        for no in queued {
            self.consider(no);
        }
    }
}

impl StopReason {
    /// Its name, for people and transcripts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::MakeRoom => "make-room",
            Self::ClaimSilent => "claim-silent",
            Self::Silent => "silent",
            Self::HoldsLock => "holds a lock on inbound.db",
            Self::Unreadable => "unreadable",
            Self::Operator => "operator",
            Self::Shutdown => "shutdown",
            Self::Leftover => "leftover",
        }
    }
}

impl Exit {
    /// For people and transcripts.
    pub fn describe(self) -> String {
        match self {
            Self::Code(code) => format!("code {code}"),
            Self::Signal(signal) => format!("signal {signal}"),
            Self::Unknown => "unknown".into(),
        }
    }
}
