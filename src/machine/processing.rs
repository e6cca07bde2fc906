//! Processing: from the runner's claim to its ack, and what becomes of messages whose turn ended badly.

use super::Step;
use super::effect::{Cause, Effect, InboundChange, LookWhy, Notice, Outcome, backoff, claim_backoff};
use super::input::{Ack, AckFound, Fact, Reading, Rows, Tool};
use super::policy::{HELD_FOR, MISSED_FOR, MISSED_MAX};
use super::route;
use super::state::{InState, Item, Owner, Phase, Session, ToolFlight, Wait};
use crate::base::{Attempt, EffectId, MessageNo, Ms, SessionNo, Wall};

impl Step<'_> {
    pub(super) fn on_outbound_read(&mut self, no: SessionNo, reading: Reading) {
        if self.state.session(no).is_none() {
            return self.illegal(None, "a reading of an unknown session");
        }
        match reading {
            Reading::Rows(rows) => self.take_rows(no, rows),
            Reading::Unreadable { kind, detail } => self.on_unreadable(no, kind, detail, None),
        }
    }

    /// Something came from the attempt.
    pub(super) fn on_sign_of_life(&mut self, no: SessionNo) {
        let at = self.at;
        match self.state.session_mut(no) {
            Some(session) => session.last_sign = at,
            None => self.illegal(None, "a heartbeat of an unknown session"),
        }
    }

    /// Takes a whole reading: facts, rows, acks. Rows come before acks, so that a reply is in its queue before its
    /// message counts as done.
    pub(super) fn take_rows(&mut self, no: SessionNo, rows: Rows) {
        self.readable_again(no);
        let alive = self.state.session(no).and_then(|session| session.phase.alive());
        let mut signs = !rows.rows.is_empty();
        for fact in &rows.facts {
            match *fact {
                Fact::Attempt(attempt) if Some(attempt) == alive => {
                    if let Some(session) = self.state.session_mut(no).filter(|s| !s.attempt_seen) {
                        session.attempt_seen = true;
                        signs = true;
                    }
                }
                _ => {}
            }
        }
        self.note_wait(no, &rows.facts);
        self.note_tool(no, rows.tool);
        self.take_outbound(no, rows.rows, rows.rewound);
        for (message, ack) in rows.acks {
            signs |= self.take_ack(no, message, ack, alive, &rows.facts);
        }
        if signs {
            self.on_sign_of_life(no);
        }
    }

    /// Each reading has all facts: without one, nothing is waited for any more.
    fn note_wait(&mut self, no: SessionNo, facts: &[Fact]) {
        let until = facts.iter().rev().find_map(|fact| match fact {
            Fact::Wait { until } => Some(self.state.at_of(*until)),
            _ => None,
        });
        if self.state.session(no).is_some_and(|session| session.wait_until != until)
            && let Some(session) = self.state.session_mut(no)
        {
            session.wait_until = until;
        }
    }

    fn note_tool(&mut self, no: SessionNo, tool: Option<Tool>) {
        let at = self.at;
        let Some(session) = self.state.session(no) else { return };
        let flight = tool.and_then(|tool| {
            let declared = tool.declared?;
            match session.tool {
                Some(known) if known.mark == tool.mark => Some(known),
                _ => Some(ToolFlight { mark: tool.mark, since: at, declared }),
            }
        });
        if flight != session.tool
            && let Some(session) = self.state.session_mut(no)
        {
            session.tool = flight;
        }
    }

    /// Takes what processing_ack says about one open message. Returns whether it is news from the attempt.
    fn take_ack(
        &mut self,
        session: SessionNo,
        no: MessageNo,
        ack: Option<AckFound>,
        alive: Option<Attempt>,
        facts: &[Fact],
    ) -> bool {
        let Some(message) = self.state.inbound(no).filter(|m| m.session == session) else { return false };
        match (ack, &message.state) {
            // The end of the write is on its way and has to be told first: its sender waits for that. The ack is looked
            // up again once the row is known to be there.
            (_, InState::Settling { .. } | InState::Writing { .. } | InState::Withheld { .. }) => false,
            (Some(AckFound { status: Ack::Completed, .. }), _) => {
                self.made_progress(session);
                self.end_message(no, Outcome::Completed);
                true
            }
            (Some(AckFound { status: Ack::Failed, .. }), _) => {
                self.made_progress(session);
                let reason = facts.iter().find_map(|fact| match fact {
                    Fact::Failed { message, reason } if *message == no => Some(reason.clone()),
                    _ => None,
                });
                self.end_message(no, Outcome::Failed(reason.unwrap_or_else(|| "no reason given".into())));
                true
            }
            (Some(AckFound { status: Ack::Processing, mark }), state) => {
                self.take_claim(session, no, mark, alive, &state.clone())
            }
            (None, InState::Claimed { .. } | InState::Queued { .. }) => self.take_absence(no, facts),
        }
    }

    fn take_claim(
        &mut self,
        session: SessionNo,
        no: MessageNo,
        mark: u64,
        alive: Option<Attempt>,
        state: &InState,
    ) -> bool {
        let own = self.state.session(session).is_some_and(|s| s.attempt_seen);
        let void = self.state.inbound(no).and_then(|m| m.void);
        if void == Some(mark) && !own {
            return false;
        }
        let Some(attempt) = alive else {
            // Left behind by an attempt that is gone: it does not count until it is written again.
            if let Some(message) = self.state.inbound_mut(no).filter(|m| m.void != Some(mark)) {
                message.void = Some(mark);
            }
            return false;
        };
        if matches!(*state, InState::Claimed { mark: known, attempt: by, .. } if known == mark && by == attempt)
        {
            return false;
        }
        let since = self.at;
        if let Some(message) = self.state.inbound_mut(no) {
            message.state = InState::Claimed { attempt, since, mark };
        }
        true
    }

    /// A message without ack row: given back, or its claim was removed by a runner that began anew.
    fn take_absence(&mut self, no: MessageNo, facts: &[Fact]) -> bool {
        let release = facts.iter().find_map(|fact| match fact {
            Fact::Released { message, mark, .. } | Fact::Missed { message, mark, .. } if *message == no => {
                Some((fact, *mark))
            }
            _ => None,
        });
        let Some(message) = self.state.inbound(no) else { return false };
        let claimed = matches!(message.state, InState::Claimed { .. });
        match release {
            Some((fact, mark)) if message.released != Some(mark) => {
                if let Some(message) = self.state.inbound_mut(no) {
                    message.released = Some(mark);
                    message.void = None;
                }
                match fact {
                    Fact::Released { blameless: false, not_before, .. } => self.try_again(no, *not_before),
                    Fact::Missed { reason, not_before, .. } => self.wait_for_service(no, reason, *not_before),
                    _ => self.requeue(no),
                }
                true
            }
            _ if claimed => {
                self.requeue(no);
                true
            }
            _ => {
                if message.void.is_some()
                    && let Some(message) = self.state.inbound_mut(no)
                {
                    message.void = None;
                }
                false
            }
        }
    }

    fn made_progress(&mut self, no: SessionNo) {
        if let Some(session) = self.state.session_mut(no) {
            session.progress = true;
            session.failures = 0;
        }
    }

    /// Back into the queue, at once and without a try counted.
    fn requeue(&mut self, no: MessageNo) {
        let at = self.at;
        let Some(message) = self.state.inbound_mut(no) else { return };
        message.state = InState::Queued { wait: Wait::Now };
        let session = message.session;
        let row_has_time = self.state.row_has_time(no);
        if let Some(session) = self.state.session_mut(session) {
            session.idle_since = at;
        }
        if row_has_time {
            self.reschedule(no);
        }
    }

    /// Counts an abnormal end of a turn against a message: it waits and is tried again, or is parked.
    fn try_again(&mut self, no: MessageNo, not_before: Option<Wall>) {
        let at = self.at;
        let Some(message) = self.state.inbound_mut(no) else { return };
        message.tries = message.tries.saturating_add(1);
        let (tries, session) = (message.tries, message.session);
        if tries > self.state.policy().claim_retries {
            self.complain(Some(session), Cause::Parked, format!("message {no} parked after {tries} tries"));
            return self.end_message(no, Outcome::Parked(tries));
        }
        let mut wait = claim_backoff(self.state.policy(), tries);
        if let Some(until) = not_before {
            // The runner's word may lengthen the wait, but not beyond a day.
            wait = wait.max(self.state.at_of(until) - at).min(Ms::days(1));
        }
        if let Some(message) = self.state.inbound_mut(no) {
            message.state = InState::Queued { wait: Wait::Backoff { since: at, wait } };
        }
        self.reschedule(no);
    }

    /// The service behind the agent could not be had: the message waits, and is given up when that has lasted too long.
    fn wait_for_service(&mut self, no: MessageNo, reason: &str, not_before: Option<Wall>) {
        let at = self.at;
        let (first, times) = self.state.miss(no, reason);
        if at - first >= MISSED_FOR {
            let session = self.state.inbound(no).map(|message| message.session);
            self.complain(session, Cause::Parked, format!("message {no} given up after a day: {reason}"));
            return self.end_message(no, Outcome::Failed(format!("{reason}; it was tried for a day")));
        }
        let mut wait = backoff(self.state.policy().claim_backoff, times, MISSED_MAX);
        if let Some(until) = not_before {
            // A used-up limit may open again much later, but a day is all that it is waited for.
            wait = wait.max(self.state.at_of(until) - at).min(MISSED_FOR);
        }
        if let Some(message) = self.state.inbound_mut(no) {
            message.state = InState::Queued { wait: Wait::Missed { since: at, wait } };
        }
        self.reschedule(no);
    }

    /// Writes a queued message's tries and next time into its row.
    pub(super) fn reschedule(&mut self, no: MessageNo) {
        let Some(message) = self.state.inbound(no) else { return };
        let InState::Queued { wait } = message.state else { return };
        let process_after = match wait {
            Wait::Now => None,
            Wait::Until(wall) => Some(wall),
            Wait::Backoff { since, wait } | Wait::Missed { since, wait } => {
                Some(self.state.wall_of(since + wait))
            }
            Wait::Held { since } => Some(self.state.wall_of(since + HELD_FOR)),
            Wait::Never => return,
        };
        let change = InboundChange::Reschedule { tries: message.tries, process_after };
        self.update_row(no, change);
    }

    pub(super) fn update_row(&mut self, no: MessageNo, change: InboundChange) {
        let Some(message) = self.state.inbound(no) else { return };
        let (session, id) = (message.session, message.id.clone());
        let effect =
            self.issue(Owner::Update(no), Effect::UpdateInbound { session, message: no, id, change });
        if let Some(message) = self.state.inbound_mut(no) {
            message.update = Some(effect);
        }
        if let Some(session) = self.state.session_mut(session) {
            session.writes_open += 1;
        }
    }

    pub(super) fn on_updated(&mut self, no: MessageNo, effect: EffectId, error: Option<String>) {
        let Some(message) = self.state.inbound_mut(no) else { return };
        let session = message.session;
        let last = message.update == Some(effect);
        if last {
            message.update = None;
        }
        let over = last && matches!(message.state, InState::Settling { .. });
        let bad = self.state.session(session).is_some_and(Session::inbound_is_bad);
        if let Some(session) = self.state.session_mut(session) {
            session.writes_open = session.writes_open.saturating_sub(1);
        }
        if let Some(error) = error {
            self.complain(Some(session), Cause::EffectFailed, format!("inbound row not changed: {error}"));
        }
        // Made again when inbound.db is whole.
        if over && !bad {
            let _ = self.state.remove_inbound(no);
        }
    }

    /// A message is over: its row is brought up to date, its sender is told, its chat sees the end of the turn.
    pub(super) fn end_message(&mut self, no: MessageNo, outcome: Outcome) {
        let at = self.at;
        let Some(message) = self.state.inbound_mut(no) else { return };
        message.state = InState::Settling { outcome: outcome.clone() };
        let (session, id, origin, trigger) =
            (message.session, message.id.clone(), message.origin.clone(), message.trigger);
        if let Some(session) = self.state.session_mut(session) {
            session.idle_since = at;
        }
        let change = match outcome {
            Outcome::Completed => InboundChange::Complete,
            _ => InboundChange::Fail,
        };
        self.update_row(no, change);
        // Nobody waits for the end of an answer: its sender was told when it was on disk.
        let is_answer = self.state.is_answer(session, &id);
        if !trigger || is_answer || !route::is_chat(&origin) {
            return;
        }
        match &outcome {
            Outcome::Parked(tries) => {
                self.notify(session, &origin, Notice::Parked { id: id.clone(), tries: *tries });
            }
            Outcome::Failed(reason) => {
                self.notify(session, &origin, Notice::Failed { id: id.clone(), reason: reason.clone() });
            }
            _ => {}
        }
        let destination = self.state.destination_at(session, &origin);
        if let Some(destination) = self.state.destination_mut(destination) {
            destination.queue.push_back(Item::Settled { id, outcome });
        }
    }

    /// The repeat of a message that is over: its chat may still wait for the end of the turn.
    pub(super) fn tell_settled_duplicate(&mut self, session: SessionNo, id: String) {
        let Some(origin) = self.state.session(session).map(|s| s.origin.clone()) else { return };
        let destination = self.state.destination_at(session, &origin);
        if let Some(destination) = self.state.destination_mut(destination) {
            destination.queue.push_back(Item::Settled { id, outcome: Outcome::Before });
        }
    }

    pub(super) fn has_claims(&self, session: &Session) -> bool {
        self.claims(session).next().is_some()
    }

    pub(super) fn claims<'s>(&'s self, session: &'s Session) -> impl Iterator<Item = MessageNo> + 's {
        session.inbox.iter().copied().filter(|&no| {
            self.state.inbound(no).is_some_and(|message| matches!(message.state, InState::Claimed { .. }))
        })
    }

    /// The attempt is gone and what it left was read: claims that stand are void, and whoever caused an abnormal
    /// end is tried again later. The rest of its batch is not punished: where nobody knows who it was, each is
    /// tried alone.
    pub(super) fn void_claims(&mut self, session: SessionNo, abnormal: bool) {
        let Some(known) = self.state.session(session) else { return };
        let claimed: Vec<MessageNo> = self.claims(known).collect();
        let offenders: Vec<MessageNo> = claimed
            .iter()
            .copied()
            .filter(|&no| self.state.inbound(no).is_some_and(|m| m.suspect || m.tries > 0))
            .collect();
        let culprit = match (abnormal, claimed.as_slice(), offenders.as_slice()) {
            (true, &[only], _) | (true, _, &[only]) => Some(only),
            _ => None,
        };
        for &no in &claimed {
            let Some(message) = self.state.inbound_mut(no) else { continue };
            if let InState::Claimed { mark, .. } = message.state {
                message.void = Some(mark);
            }
            message.suspect |= abnormal && culprit.is_none();
            if culprit == Some(no) {
                self.try_again(no, None);
            } else {
                self.requeue(no);
            }
        }
    }

    /// At most one suspect of a session may be taken at a time, so that a turn that ends abnormally says who did it.
    pub(super) fn keep_suspects_apart(&mut self, session: SessionNo) {
        let Some(known) = self.state.session(session) else { return };
        let (mut busy, mut loose, mut held) = (false, Vec::new(), Vec::new());
        for &no in &known.inbox {
            let Some(message) = self.state.inbound(no).filter(|m| m.suspect || m.tries > 0) else { continue };
            match message.state {
                InState::Claimed { .. } => busy = true,
                InState::Queued { wait: Wait::Held { .. } } => held.push(no),
                InState::Queued { wait } if self.is_due(wait) => loose.push(no),
                _ => {}
            }
        }
        let since = self.at;
        let keep = usize::from(!busy);
        for &no in loose.iter().skip(keep) {
            self.set_wait(no, Wait::Held { since });
        }
        if !busy
            && loose.is_empty()
            && let Some(&next) = held.first()
        {
            self.set_wait(next, Wait::Now);
        }
    }

    fn set_wait(&mut self, no: MessageNo, wait: Wait) {
        if let Some(message) = self.state.inbound_mut(no) {
            message.state = InState::Queued { wait };
        }
        self.reschedule(no);
    }

    /// Shows the chat that the agent works while it holds a claim of it.
    pub(super) fn show_typing(&mut self, no: SessionNo) {
        let Some(session) = self.state.session(no) else { return };
        let on = matches!(session.phase, Phase::Running { .. }) && self.has_claims(session);
        if on == session.typing || !route::is_chat(&session.origin) {
            return;
        }
        let to = session.origin.clone();
        if let Some(session) = self.state.session_mut(no) {
            session.typing = on;
        }
        self.tell(Effect::SetTyping { to, on });
    }

    /// An inbound write has waited for its lock too long: the container that holds it is ended.
    pub(super) fn on_inbound_locked(&mut self, no: SessionNo) {
        match self.state.session(no) {
            None => self.illegal(None, "a lock in an unknown session"),
            Some(session) if matches!(session.phase, Phase::Running { .. }) && session.look.is_none() => {
                self.look(no, LookWhy::BeforeStop(super::effect::StopReason::HoldsLock));
            }
            Some(_) => {}
        }
    }
}
