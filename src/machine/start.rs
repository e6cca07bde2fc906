//! Start: what a boot finds is settled here. Open effects are settled by kind; rows win over the journal.

use std::collections::{BTreeMap, BTreeSet};

use super::Step;
use super::effect::{Body, Cause, Effect, InboundChange, LookWhy, StopReason};
use super::input::{Booted, Due, Exit, PendingRow, SessionFound, Unreadable};
use super::policy::Policy;
use super::route;
use super::state::{
    FolderState, InState, Inbound, Life, OutState, Outbound, Owner, Phase, Session, Source, Stage, Trouble,
    Wait,
};
use crate::base::{Attempt, EffectId, MessageNo, SessionNo};

impl Step<'_> {
    /// A new boot. Nothing is started or sent before `ContainersFound`, or `RuntimeDown` in its place.
    pub(super) fn on_booted(&mut self, it: Booted) {
        let core = self.state.core_mut();
        core.life = Life::Booting;
        core.offset = it.offset;
        if self.state.outage().is_some() {
            *self.state.outage_mut() = None;
        }
        *self.state.policy_mut() = it.policy;
        let directory = self.state.directory_mut();
        directory.group = it.group;
        for channel in directory.channels.values_mut() {
            channel.up = false;
        }
        let open: Vec<EffectId> = self.state.effects().keys().copied().collect();
        for effect in open {
            self.state.close(effect);
        }
        let sessions: Vec<SessionNo> = self.state.sessions().keys().copied().collect();
        for no in sessions {
            let Some(session) = self.state.session_mut(no) else { continue };
            session.look = None;
            session.typing = false;
            session.writes_open = 0;
            // Until it is found on disk.
            session.folder = FolderState::Absent;
        }
        // Only what is changed is touched: the record of a boot must not grow with what merely waits.
        let under_way = |message: &Inbound| {
            message.update.is_some()
                || matches!(&message.state, InState::Writing { body: Body::Answer { arrival, .. }, .. }
                    if arrival.is_some())
        };
        let messages: Vec<MessageNo> =
            self.state.inbounds().iter().filter(|(_, it)| under_way(it)).map(|(&no, _)| no).collect();
        for no in messages {
            if let Some(message) = self.state.inbound_mut(no) {
                message.update = None;
                // Its receipt was the channel's of the daemon before.
                if let InState::Writing { body: Body::Answer { arrival, .. }, .. } = &mut message.state {
                    *arrival = None;
                }
            }
        }
        self.state.queue_mut().clear();
    }

    /// A session's inbound.db as it stands. Unknown pending rows are adopted, rows that are no longer pending
    /// close their message where all that are were named (`whole`), a `delivered` row closes its delivery.
    pub(super) fn on_session_found(&mut self, it: SessionFound, whole: bool) {
        let no = match self.state.session_no(&it.name) {
            Some(no) => no,
            None => self.state.add_session(Session::new(it.name.clone(), it.origin.clone(), self.at)),
        };
        if let Some(session) = self.state.session_mut(no) {
            session.folder = FolderState::Present;
        }
        self.learn_chat(no, &it);
        if let Some(why) = it.unreadable {
            return self.inbound_is_unusable(no, format!("inbound.db cannot be read: {why}"));
        }
        self.forget_inbound_trouble(no);
        self.adopt_rows(no, it.pending, whole);
        for message in it.delivered {
            let Some(known) = self.state.outbound(message) else { continue };
            let (session, to) = (known.session, known.to.clone());
            self.close_recorded(session, &to, message);
        }
        if self.state.session(no).is_some_and(|session| session.phase.alive().is_none()) {
            self.look_at_outbound(no);
        }
    }

    fn look_at_outbound(&mut self, no: SessionNo) {
        let why = match self.state.session(no).map(|session| &session.phase) {
            Some(Phase::Closing { .. }) => LookWhy::AfterExit,
            Some(Phase::Quarantined { .. }) => LookWhy::Quarantine,
            _ => LookWhy::Found,
        };
        self.look(no, why);
    }

    /// inbound.db cannot be read or written. Without it nothing of the session can go on, and nobody but an operator
    /// can mend it; it is read again with back-off, and then its rows are adopted as at a start.
    fn inbound_is_unusable(&mut self, no: SessionNo, detail: String) {
        let (since, kind) = (self.at, Unreadable::Inbound);
        let Some(session) = self.state.session_mut(no) else { return };
        let before = session.trouble.filter(|trouble| trouble.kind == kind);
        let failures = before.map_or(1, |trouble| trouble.failures.saturating_add(1));
        session.trouble = Some(Trouble { since, kind, failures });
        let (phase, looked_at) = (session.phase.clone(), session.look.is_some());
        self.complain(Some(no), Cause::Unreadable, detail);
        let booting = self.state.core().life == Life::Booting;
        match phase {
            // What lives is known when all sessions were found.
            Phase::Starting { .. } | Phase::Running { .. } if booting => {}
            Phase::Starting { attempt, stage: Stage::Launching, .. } | Phase::Running { attempt, .. } => {
                self.begin_stop(no, attempt, StopReason::Unreadable);
            }
            // Gone when its last look has ended.
            Phase::Stopping { .. } => {}
            Phase::Closing { .. } if looked_at => {}
            Phase::Closing { .. } => {
                self.void_claims(no, false);
                self.state.set_phase(no, Phase::Quarantined { since, kind });
            }
            Phase::Quarantined { kind: known, .. } if known == kind => {}
            Phase::Starting { .. }
            | Phase::Quarantined { .. }
            | Phase::Stopped { .. }
            | Phase::BackingOff { .. } => self.state.set_phase(no, Phase::Quarantined { since, kind }),
        }
    }

    /// Writing found inbound.db damaged.
    pub(super) fn on_inbound_unwritable(&mut self, no: SessionNo, detail: String) {
        match self.state.session(no).map(Session::inbound_is_bad) {
            None => self.illegal(None, "the inbound.db of a session that is not known"),
            // It is known, and looked at by its own timer.
            Some(true) => self.complain(Some(no), Cause::Unreadable, detail),
            Some(false) => self.inbound_is_unusable(no, detail),
        }
    }

    /// A look at inbound.db ended.
    pub(super) fn on_inbound_read(&mut self, effect: EffectId, found: SessionFound, whole: bool) {
        let Some(Owner::Look(no)) = self.state.close(effect) else { return };
        let Some(session) = self.state.session_mut(no) else { return };
        if session.look.is_none_or(|look| look.effect != effect || look.why != LookWhy::Inbound) {
            return;
        }
        session.look = None;
        if let Some(why) = found.unreadable {
            return self.inbound_is_unusable(no, format!("inbound.db cannot be read: {why}"));
        }
        self.forget_inbound_trouble(no);
        self.learn_chat(no, &found);
        self.adopt_rows(no, found.pending, whole);
        self.write_what_failed(no);
        self.look_at_outbound(no);
    }

    fn forget_inbound_trouble(&mut self, no: SessionNo) {
        let Some(session) = self.state.session(no).filter(|session| session.inbound_is_bad()) else { return };
        let quarantined = matches!(session.phase, Phase::Quarantined { .. });
        if let Some(session) = self.state.session_mut(no) {
            session.trouble = None;
        }
        if quarantined {
            self.state.set_phase(no, Phase::Stopped { since: self.at });
        }
    }

    /// Makes the changes again that could not be made while inbound.db was bad.
    fn write_what_failed(&mut self, no: SessionNo) {
        let Some(session) = self.state.session(no) else { return };
        let (inbox, outbox) = (session.inbox.clone(), session.outbox.clone());
        for no in inbox {
            self.settle_row(no);
        }
        for no in outbox {
            if let Some(&OutState::Recording { effect, delivered }) =
                self.state.outbound(no).map(|it| &it.state)
                && !self.state.effects().contains_key(&effect)
            {
                self.record_again(no, delivered);
            }
        }
    }

    /// Nothing was written since the daemon before looked last, so what the journal says of these stands.
    pub(super) fn on_sessions_unchanged(&mut self, sessions: &[SessionNo]) {
        for &no in sessions {
            if let Some(session) = self.state.session_mut(no) {
                session.folder = FolderState::Present;
            }
        }
    }

    fn learn_chat(&mut self, no: SessionNo, it: &SessionFound) {
        if !route::is_chat(&it.origin) {
            return;
        }
        let (Some(channel), Some(chat)) = (it.origin.channel_type.clone(), it.origin.platform_id.clone())
        else {
            return;
        };
        if let Some(session) = self.state.session_mut(no) {
            session.origin = it.origin.clone();
        }
        // The chat's newest session keeps it: an older folder of the same chat is a copy or was set aside.
        if !self.state.directory().chats.contains_key(&(channel.clone(), chat.clone())) {
            self.state.directory_mut().chats.insert((channel, chat), no);
        }
    }

    fn adopt_rows(&mut self, no: SessionNo, pending: Vec<PendingRow>, whole: bool) {
        let mut known: BTreeMap<String, MessageNo> = BTreeMap::new();
        if let Some(session) = self.state.session(no) {
            for &message in &session.inbox {
                if let Some(open) = self.state.inbound(message) {
                    known.insert(open.id.clone(), message);
                }
            }
        }
        let mut seen = BTreeSet::new();
        for row in pending {
            match known.get(&row.id) {
                Some(&message) => {
                    seen.insert(message);
                    self.confirm_row(message, &row);
                }
                None => {
                    self.adopt_row(no, row);
                }
            }
        }
        if !whole {
            return;
        }
        for message in known.into_values().filter(|message| !seen.contains(message)) {
            let on_its_way = self.state.inbound(message).is_some_and(|m| {
                m.update.is_some() || matches!(m.state, InState::Writing { .. } | InState::Withheld { .. })
            });
            if !on_its_way {
                let _ = self.state.remove_inbound(message);
            }
        }
    }

    fn confirm_row(&mut self, no: MessageNo, row: &PendingRow) {
        let Some(message) = self.state.inbound_mut(no) else { return };
        message.seq = row.seq;
        let InState::Writing { body, .. } = &message.state else {
            // A time that should have been taken out of the row and was not: no runner takes it before that.
            if row.due != Due::Now && matches!(message.state, InState::Queued { wait: Wait::Now }) {
                self.settle_row(no);
            }
            return;
        };
        let question = match body {
            Body::Answer { question, .. } => Some(*question),
            Body::Arrived { .. } | Body::Note(_) => None,
        };
        // Written, but nobody heard of it; the sender was not told and may send it again: a duplicate then.
        message.state = InState::Queued { wait: Wait::Now };
        if let Some(question) = question {
            self.note_answer(question);
        }
    }

    /// Takes a row that the machine does not know.
    pub(super) fn adopt_row(&mut self, session: SessionNo, row: PendingRow) -> MessageNo {
        let wait = match row.due {
            Due::Now => Wait::Now,
            Due::At(wall) => Wait::Until(wall),
            Due::Never => Wait::Never,
        };
        self.state.add_inbound(Inbound {
            session,
            id: row.id,
            seq: row.seq,
            origin: row.origin,
            trigger: row.trigger,
            tries: row.tries,
            suspect: false,
            state: InState::Queued { wait },
            void: None,
            released: None,
            update: None,
        })
    }

    fn close_recorded(&mut self, session: SessionNo, to: &crate::session::rows::Address, no: MessageNo) {
        self.leave_queue(session, to, no);
        let _ = self.state.remove_outbound(no);
    }

    /// All sessions were found, and the runtime has said what still lives. Work begins, unless it began without the
    /// runtime.
    pub(super) fn on_containers_found(&mut self, alive: &[(SessionNo, Attempt)], adoptable: bool) {
        match self.state.core().life {
            Life::Booting => {
                self.state.core_mut().life = Life::Open;
                self.settle_phases(alive, adoptable);
                self.settle_rows();
            }
            Life::Open if self.state.is_unlisted() => {
                if let Some(outage) = self.state.outage_mut() {
                    outage.unlisted = false;
                }
                self.settle_phases(alive, adoptable);
            }
            // What runs is left to the next boot.
            Life::Closing if self.state.is_unlisted() => {}
            Life::Open | Life::Closing => self.illegal(None, "containers found after the start"),
        }
    }

    /// All sessions were found, and the runtime is away: work begins without it. The attempts on record may live, so
    /// they stay as they are until it says so, and what they write is delivered.
    pub(super) fn open_unlisted(&mut self) {
        self.state.core_mut().life = Life::Open;
        let unknown: Vec<SessionNo> = self.state.alive().iter().copied().collect();
        for no in unknown {
            if self.state.session(no).is_some_and(|s| s.folder == FolderState::Present) {
                self.look(no, LookWhy::Found);
            }
        }
        self.settle_rows();
    }

    fn settle_rows(&mut self) {
        self.settle_inbound();
        self.settle_outbound();
        let destinations: Vec<_> = self.state.destinations().keys().copied().collect();
        for no in destinations {
            // Touched, and so pumped.
            let _ = self.state.destination_mut(no);
        }
        let sessions: Vec<_> = self.state.sessions().keys().copied().collect();
        for no in sessions {
            let _ = self.state.session_mut(no);
        }
    }

    fn settle_phases(&mut self, alive: &[(SessionNo, Attempt)], adoptable: bool) {
        let before: Vec<(SessionNo, Attempt)> = self
            .state
            .alive()
            .iter()
            .filter_map(|&no| Some((no, self.state.session(no)?.phase.alive()?)))
            .collect();
        for (no, attempt) in before {
            let lives = alive.contains(&(no, attempt));
            let present = self.state.session(no).is_some_and(|s| s.folder == FolderState::Present);
            match (lives, adoptable) {
                (true, true) if self.state.session(no).is_some_and(Session::inbound_is_bad) => {
                    self.begin_stop(no, attempt, StopReason::Unreadable);
                }
                (true, true) => {
                    self.state.set_phase(no, Phase::Running { attempt, since: self.at });
                    self.look(no, LookWhy::Found);
                    if self.state.session(no).is_some_and(|session| session.held) {
                        self.begin_stop(no, attempt, StopReason::Operator);
                    }
                }
                (true, false) => self.begin_stop(no, attempt, StopReason::Leftover),
                (false, _) if present => self.gone(no, attempt, Exit::Unknown, None, self.at),
                (false, _) => self.set_aside(no, Phase::Stopped { since: self.at }),
            }
        }
    }

    /// Inbound rows: what was being written is known by now; changes are made again, they are idempotent.
    fn settle_inbound(&mut self) {
        let all: Vec<MessageNo> = self.state.inbounds().keys().copied().collect();
        for no in all {
            let Some(message) = self.state.inbound(no) else { continue };
            let present =
                self.state.session(message.session).is_some_and(|s| s.folder == FolderState::Present);
            match &message.state {
                // Not on disk: its sender was not told and will send it again.
                InState::Writing { body: Body::Arrived { .. }, .. } => {
                    let _ = self.state.remove_inbound(no);
                }
                InState::Writing { body: Body::Note(_) | Body::Answer { .. }, .. } => {
                    let now = self.state.wall();
                    self.write_row(no, now);
                }
                _ if !present => {}
                InState::Queued { wait: Wait::Backoff { .. } | Wait::Held { .. } | Wait::Missed { .. } }
                | InState::Settling { .. } => self.settle_row(no),
                InState::Queued { .. } | InState::Claimed { .. } | InState::Withheld { .. } => {}
            }
        }
    }

    /// Brings the row of a message up to date, unless that is under way.
    fn settle_row(&mut self, no: MessageNo) {
        let Some(message) = self.state.inbound(no).filter(|message| message.update.is_none()) else { return };
        match &message.state {
            InState::Settling { outcome } => {
                let change = match outcome {
                    super::effect::Outcome::Completed => InboundChange::Complete,
                    _ => InboundChange::Fail,
                };
                self.update_row(no, change);
            }
            InState::Queued { .. } if self.state.row_has_time(no) => self.reschedule(no),
            _ => {}
        }
    }

    /// Deliveries: those begun and not heard of are in doubt; records are made again, they are idempotent.
    fn settle_outbound(&mut self) {
        let all: Vec<(MessageNo, OutState)> =
            self.state.outbounds().iter().map(|(&no, m)| (no, m.state.clone())).collect();
        for (no, state) in all {
            match state {
                OutState::Delivering { .. } => self.settle_doubt(no),
                OutState::Recording { delivered, .. } => self.record_again(no, delivered),
                OutState::Scheduled { .. } | OutState::Queued => {}
            }
        }
    }

    fn record_again(&mut self, no: MessageNo, delivered: bool) {
        let Some(Outbound { session, source: Source::Row { id, .. }, .. }) = self.state.outbound(no).cloned()
        else {
            return;
        };
        let at = self.state.wall();
        let record = Effect::RecordDelivery { session, message: no, id, delivered, platform_id: None, at };
        let effect = self.issue(Owner::Record(no), record);
        if let Some(message) = self.state.outbound_mut(no) {
            message.state = OutState::Recording { effect, delivered };
        }
    }

    /// The wall clock moved: back-offs are durations, so the times in their rows are written anew.
    pub(super) fn on_clock_set(&mut self, offset: i64) {
        self.state.core_mut().offset = offset;
        let waiting: Vec<MessageNo> = self
            .state
            .inbounds()
            .iter()
            .filter(|(no, m)| self.state.row_has_time(**no) && matches!(m.state, InState::Queued { .. }))
            .map(|(&no, _)| no)
            .collect();
        for no in waiting {
            self.reschedule(no);
        }
        // Deadlines that come from rows move with the clock.
        let sessions: Vec<SessionNo> = self.state.sessions().keys().copied().collect();
        for no in sessions {
            let _ = self.state.session_mut(no);
        }
        let messages: Vec<MessageNo> = self.state.outbounds().keys().copied().collect();
        for no in messages {
            let _ = self.state.outbound_mut(no);
        }
    }

    pub(super) fn on_policy_changed(&mut self, policy: Policy) {
        *self.state.policy_mut() = policy;
    }

    /// An effect that has nothing to tell ended.
    pub(super) fn on_effect_done(&mut self, effect: EffectId, error: Option<String>) {
        match self.state.close(effect) {
            Some(Owner::Folder(no)) => self.on_folder_built(no, effect, error),
            Some(Owner::Update(no)) => self.on_updated(no, effect, error),
            Some(Owner::Projection(no)) => self.on_projected(no, effect, error),
            Some(Owner::Record(no)) => self.on_recorded(no, error),
            Some(Owner::Reset(no, request)) => self.on_reset(no, request, error),
            Some(Owner::Row(_) | Owner::Start(_) | Owner::Look(_) | Owner::Delivery(_)) => {
                self.illegal(None, "an effect ended in a way that is not its own");
            }
            // Late news.
            None => {}
        }
    }

    fn on_folder_built(&mut self, no: SessionNo, effect: EffectId, error: Option<String>) {
        let Some(session) = self.state.session_mut(no) else { return };
        if session.folder != FolderState::Creating(effect) {
            return;
        }
        session.folder = if error.is_none() { FolderState::Present } else { FolderState::Absent };
        if let Some(error) = error {
            self.complain(Some(no), Cause::EffectFailed, format!("session folder not built: {error}"));
        }
    }
}
