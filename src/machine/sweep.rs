//! Sweep: what happens because time passes. Stuck claims, idle containers, retries, and the looks before each of them.

use super::Step;
use super::effect::{Cause, Effect, LookWhy, StopReason, backoff};
use super::input::{Exit, Reading, Unreadable};
use super::policy::{
    BUSY_FIRST, BUSY_MAX, COMPLAIN_EVERY, CONTAINER_OVERDUE, DELIVERY_OVERDUE, LOOK_OVERDUE,
    QUARANTINE_FIRST, QUARANTINE_MAX, SLOW_FIRST, SLOW_TRIES, TOOL_MAX, WAIT_MAX,
};
use super::state::{
    Complaints, ComponentId, InState, Item, Life, LookOpen, OutState, Owner, Phase, Session, State, Trouble,
    Wait,
};
use super::timers::TimerKey;
use crate::base::{At, Attempt, DestinationNo, EffectId, MessageNo, Ms, SessionNo};

impl State {
    /// The machine time at which a waiting message falls due; none for never.
    pub fn due_at(&self, wait: Wait) -> Option<At> {
        match wait {
            Wait::Now => Some(At(i64::MIN)),
            Wait::Until(wall) => Some(self.at_of(wall)),
            Wait::Backoff { since, wait } | Wait::Missed { since, wait } => Some(since + wait),
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
        let questions: Vec<MessageNo> = self.questions().keys().copied().collect();
        questions.into_iter().for_each(|no| self.derive_question_timer(no));
        self.timers.put(TimerKey::WithheldAtLarge, withheld_until(self.complaints()));
        self.derive_outage_timer();
    }

    pub(super) fn derive_touched_timers(&mut self) {
        // Both move the deadlines of everything.
        if [ComponentId::Policy, ComponentId::Runtime].iter().any(|id| self.touched().contains(id)) {
            return self.derive_all_timers();
        }
        let touched: Vec<ComponentId> = self.touched().iter().copied().collect();
        for id in touched {
            match id {
                ComponentId::Session(no) => self.derive_session_timers(no),
                ComponentId::Destination(no) => self.derive_destination_timer(no),
                ComponentId::Outbound(no) => self.derive_message_timer(no),
                ComponentId::Question(no) => self.derive_question_timer(no),
                ComponentId::Complaints => {
                    self.timers.put(TimerKey::WithheldAtLarge, withheld_until(self.complaints()));
                }
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
        let overdue = self.outbound(no).and_then(|message| match message.state {
            OutState::Delivering { since, .. } => Some(since + DELIVERY_OVERDUE),
            _ => None,
        });
        self.timers.put(TimerKey::DeliveryOverdue(no), overdue);
    }

    fn derive_question_timer(&mut self, no: MessageNo) {
        let deadline = self.question(no).map(super::state::Question::deadline);
        self.timers.put(TimerKey::Question(no), deadline);
    }

    /// The deadline of one of a session's timers, from its state alone.
    pub(super) fn session_deadline(&self, session: &Session, key: TimerKey) -> Option<At> {
        let policy = self.policy();
        let running = match session.phase {
            Phase::Running { since, .. } => Some(since),
            _ => None,
        };
        // Whoever is silent may not be there any more, and nothing can be stopped or asked for again.
        let judges = matches!(
            key,
            TimerKey::ClaimSilence(_)
                | TimerKey::Ceiling(_)
                | TimerKey::IdleStop(_)
                | TimerKey::ContainerOverdue(_)
        );
        if judges && self.outage().is_some() {
            return None;
        }
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
            TimerKey::IdleStop(no) => {
                running.filter(|_| session.look.is_none() && self.first_claim(session).is_none())?;
                Some(self.idle_until(no, session, session.idle_since + policy.idle_stop))
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
            TimerKey::Withheld(_) => withheld_until(&session.complaints),
            TimerKey::Destination(_)
            | TimerKey::DeliverAfter(_)
            | TimerKey::Question(_)
            | TimerKey::DeliveryOverdue(_)
            | TimerKey::WithheldAtLarge
            | TimerKey::RuntimeSettled => None,
        }
    }

    /// An idle container that somebody's answer or an announced wait may go on with is kept for it.
    fn idle_until(&self, no: SessionNo, session: &Session, idle: At) -> At {
        let wait = session.wait_until.map(|until| until.min(session.idle_since + WAIT_MAX));
        [self.asks_until(no), wait].into_iter().flatten().fold(idle, At::max)
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

/// When complaints that were kept back are told of, if nothing tells of them before.
fn withheld_until(complaints: &Complaints) -> Option<At> {
    complaints.values().filter(|(_, withheld)| *withheld > 0).map(|(last, _)| *last + COMPLAIN_EVERY).min()
}

/// A liveness deadline, moved back by what the runner declared: a tool's own deadline, an announced wait. Its word
/// counts for at most a day.
fn extended(session: &Session, deadline: At, slack: Ms) -> At {
    let tool = session.tool.map(|tool| tool.since + tool.declared.min(TOOL_MAX) + slack);
    let wait = session.wait_until.map(|until| until.min(session.last_sign + WAIT_MAX) + slack);
    deadline.max(tool.unwrap_or(deadline)).max(wait.unwrap_or(deadline))
}

impl Trouble {
    /// How long until the next try.
    pub fn wait(&self) -> Ms {
        match self.kind {
            Unreadable::Busy | Unreadable::HotJournal => backoff(BUSY_FIRST, self.failures, BUSY_MAX),
            Unreadable::Missing | Unreadable::Bad | Unreadable::Inbound => {
                backoff(QUARANTINE_FIRST, self.failures, QUARANTINE_MAX)
            }
            Unreadable::Slow => backoff(SLOW_FIRST, self.failures, QUARANTINE_MAX),
        }
    }

    /// Whether it may pass without anybody doing anything; what lasts sets the session apart.
    fn is_passing(&self) -> bool {
        match self.kind {
            Unreadable::Busy | Unreadable::HotJournal => true,
            Unreadable::Slow => self.failures < SLOW_TRIES,
            Unreadable::Missing | Unreadable::Bad | Unreadable::Inbound => false,
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
            TimerKey::Question(no) => self.on_question_due(no),
            TimerKey::DeliveryOverdue(no) => self.on_delivery_overdue(no),
            TimerKey::Withheld(no) => self.tell_withheld(Some(no)),
            TimerKey::WithheldAtLarge => self.tell_withheld(None),
            TimerKey::RuntimeSettled => *self.state.outage_mut() = None,
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
        let Some(session) = self.state.session(no) else { return };
        let why = match session.phase {
            _ if session.inbound_is_bad() => LookWhy::Inbound,
            Phase::Closing { .. } => LookWhy::AfterExit,
            Phase::Quarantined { .. } => LookWhy::Quarantine,
            _ => LookWhy::Found,
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

    /// Asks the container to stop. The caller has looked, or acts on somebody's word. Nobody can be asked before the
    /// runtime has said whether it is there; what is still to be stopped then is found again.
    pub(super) fn begin_stop(&mut self, no: SessionNo, attempt: Attempt, reason: StopReason) {
        if self.state.is_unlisted() {
            return;
        }
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
                if let Some(session) = self.state.session_mut(no).filter(|session| !session.inbound_is_bad())
                {
                    session.trouble = None;
                }
                self.take_rows(no, rows);
                self.after_look(no, open.why, alive);
            }
            Reading::Unreadable { kind, detail } => {
                self.on_unreadable(no, kind, detail, Some((open.why, alive)));
            }
        }
    }

    fn after_look(&mut self, no: SessionNo, why: LookWhy, alive: Option<bool>) {
        match why {
            LookWhy::BeforeStop(reason) => self.stop_if_still(no, reason, alive),
            LookWhy::AfterExit => self.close_attempt(no),
            LookWhy::Found | LookWhy::Quarantine | LookWhy::Inbound => {}
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
                !self.has_claims(session)
                    && !self.has_due_work(session)
                    && self.state.asks_until(no).is_none()
            }
            None => true,
        };
        if !holds {
            return;
        }
        if alive != Some(true) {
            // Its exit is on its way and says more than a stop would; or the runtime is away, and nobody can tell
            // whether it is silent or gone. That is on record by now or at once, and puts the deadline off.
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
        let exit = if self.may_be_the_runtimes(exit, started) { Exit::Unknown } else { exit };
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
        let crashed = reason.is_none()
            && matches!(exit, Exit::Code(1..) | Exit::Code(..=-1) | Exit::Signal(_) | Exit::OutOfMemory);
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
        if fruitless && !crashed && !claims {
            let text = format!("container ended with {} before it had done anything", exit.describe());
            self.complain(Some(no), Cause::Crashed, text);
        }
        if crashed || fruitless {
            if let Some(session) = self.state.session_mut(no) {
                session.failures = session.failures.saturating_add(1);
            }
            self.set_aside(no, Phase::BackingOff { since: self.at });
        } else {
            self.set_aside(no, Phase::Stopped { since: self.at });
        }
    }

    /// Nothing of the session runs any more: it goes to a phase of rest, and to quarantine while inbound.db is bad.
    pub(super) fn set_aside(&mut self, no: SessionNo, rest: Phase) {
        let bad = self.state.session(no).is_some_and(Session::inbound_is_bad);
        let kind = Unreadable::Inbound;
        self.state.set_phase(no, if bad { Phase::Quarantined { since: self.at, kind } } else { rest });
    }

    /// outbound.db could not be read. Busy passes; what is bad or slow again and again quarantines the session, and
    /// only it. Whoever read, and whatever the reason: the session has a deadline for the next look from here on, since
    /// nothing else need ever happen in a folder whose last change was not read.
    pub(super) fn on_unreadable(
        &mut self,
        no: SessionNo,
        kind: Unreadable,
        detail: String,
        why: Option<(LookWhy, Option<bool>)>,
    ) {
        let at = self.at;
        let Some(session) = self.state.session_mut(no) else { return };
        let failures = session.trouble.map_or(1, |trouble| trouble.failures.saturating_add(1));
        let trouble = Trouble { since: at, kind, failures };
        // What is wrong with inbound.db keeps the session apart already, and has its own way out.
        if !session.inbound_is_bad() {
            session.trouble = Some(trouble);
        }
        if trouble.is_passing() {
            // What was to be stopped is stopped all the same: a container that keeps its file locked must not
            // become immortal by it.
            if let Some((LookWhy::BeforeStop(reason), alive)) = why {
                self.stop_if_still(no, reason, alive);
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
        let Some(session) = self.state.session(no).filter(|session| !session.inbound_is_bad()) else {
            return;
        };
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

    /// Writing goes on for as long as it runs, so there is nothing to wait for.
    pub(super) fn on_folder_too_large(&mut self, no: SessionNo, detail: String) {
        let Some(session) = self.state.session(no) else {
            return self.illegal(Some(no), "the folder of a session that is not known");
        };
        if let Phase::Running { attempt, .. } | Phase::Starting { attempt, .. } = session.phase {
            self.complain(Some(no), Cause::Stuck, detail);
            self.begin_stop(no, attempt, StopReason::TooLarge);
        }
    }

    pub(super) fn on_shutdown_asked(&mut self) {
        self.close_for_work();
        // Where nobody knows what runs, it is left to the next boot.
        let alive: Vec<SessionNo> = self.state.alive().iter().copied().collect();
        for no in alive {
            let Some(session) = self.state.session(no) else { continue };
            if let Phase::Starting { attempt, .. } | Phase::Running { attempt, .. } = session.phase {
                self.begin_stop(no, attempt, StopReason::Shutdown);
            }
        }
    }

    /// What runs goes on, and the next boot finds it among what is alive; what is being started or stopped comes to
    /// its end first.
    pub(super) fn on_detach_asked(&mut self) {
        self.close_for_work();
    }

    /// Nothing is accepted and nothing started from now on.
    fn close_for_work(&mut self) {
        self.state.core_mut().life = Life::Closing;
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
            Self::TooLarge => "too-large",
        }
    }
}

impl Unreadable {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Busy => "it is locked",
            Self::HotJournal => "its writer was killed in the middle of a commit",
            Self::Missing => "it is missing",
            Self::Bad => "it is damaged, or not of the form that the contract asks for",
            Self::Slow => "a read takes longer than its time",
            Self::Inbound => "inbound.db, the host's own file, cannot be used",
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
            Self::OutOfMemory => "out of memory".into(),
        }
    }
}
