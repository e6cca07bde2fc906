//! Wake: from a due inbound message without a container to a running container.

use super::Step;
use super::effect::{Body, Cause, Effect, LookWhy, Refusal, StopReason};
use super::input::{Arrival, Line, Unreadable};
use super::policy::{INBOX_MAX, ROW_CONTENT_MAX};
use super::route;
use super::state::{FolderState, InState, Inbound, Life, Owner, Phase, Session, Stage, Wait};
use crate::base::ids::{base36, is_safe_name};
use crate::base::{At, Attempt, EffectId, MessageNo, RecordNo, SessionName, SessionNo, Wall};
use crate::session::rows::Address;

/// Message ids are part of paths (`inbox/<id>`) and of idempotency keys; longer ones are refused.
const MESSAGE_ID_MAX: usize = 200;

impl Step<'_> {
    /// A message came. `line` is what questions of its chat are matched with, where there are any; `sent` is when it
    /// was sent, where its channel knows that.
    pub(super) fn on_arrival(&mut self, it: Arrival, line: Option<Line>, sent: Option<Wall>) {
        let refuse =
            |reason| Effect::RefuseInbound { channel: it.channel.clone(), receipt: it.receipt, reason };
        if self.state.core().life != Life::Open {
            return self.tell(refuse(Refusal::ShuttingDown));
        }
        if !is_safe_name(&it.message_id) || it.message_id.len() > MESSAGE_ID_MAX {
            return self.tell(refuse(Refusal::BadId));
        }
        if it.facts.bytes > ROW_CONTENT_MAX {
            return self.tell(refuse(Refusal::TooLarge));
        }
        let chat = Address {
            channel_type: Some(it.channel.clone()),
            platform_id: Some(it.chat.clone()),
            thread_id: it.thread.clone(),
        };
        let session = match route::session_of(self.state.directory(), &it.channel, &it.chat) {
            Some(session) => session,
            None => match self.new_session(&chat) {
                Some(session) => session,
                None => {
                    return self
                        .tell(refuse(Refusal::NotWritten("the agent group has no valid folder".into())));
                }
            },
        };
        let waiting = self.state.session(session).map_or(0, |s| s.inbox.len());
        if waiting >= INBOX_MAX as usize {
            return self.tell(refuse(Refusal::TooMany(INBOX_MAX)));
        }
        if let Some(line) = line
            && self.take_answer(session, &chat, &it, &line)
        {
            return;
        }
        self.ensure_folder(session);
        let id = format!("{}:{}", it.message_id, self.state.directory().group);
        let body = Body::Arrived { channel: it.channel.clone(), receipt: it.receipt };
        let message = self.add_writing(session, id, chat, true, body);
        let at = sent.unwrap_or(self.state.wall());
        self.write_row(message, at);
    }

    /// Nothing new is taken that would have to be stored; its sender keeps it. What was taken goes on.
    pub(super) fn on_arrival_without_space(&mut self, it: Arrival) {
        let reason =
            if self.state.core().life == Life::Open { Refusal::NoSpace } else { Refusal::ShuttingDown };
        self.tell(Effect::RefuseInbound { channel: it.channel, receipt: it.receipt, reason });
    }

    /// Adds an inbound message and has its row written, with the time of now.
    pub(super) fn write_inbound(
        &mut self,
        session: SessionNo,
        id: String,
        origin: Address,
        trigger: bool,
        body: Body,
    ) {
        let message = self.add_writing(session, id, origin, trigger, body);
        let now = self.state.wall();
        self.write_row(message, now);
    }

    fn add_writing(
        &mut self,
        session: SessionNo,
        id: String,
        origin: Address,
        trigger: bool,
        body: Body,
    ) -> MessageNo {
        self.state.add_inbound(Inbound {
            session,
            id,
            seq: None,
            origin,
            trigger,
            tries: 0,
            suspect: false,
            state: InState::Writing { since: self.at, body },
            void: None,
            released: None,
            update: None,
        })
    }

    /// Has the row of a message that is in `Writing` written, as of a time.
    pub(super) fn write_row(&mut self, no: MessageNo, timestamp: Wall) {
        let Some(message) = self.state.inbound(no) else { return };
        let InState::Writing { body, .. } = &message.state else { return };
        let effect = Effect::WriteInbound {
            session: message.session,
            message: no,
            id: message.id.clone(),
            body: body.clone(),
            trigger: message.trigger,
            origin: message.origin.clone(),
            timestamp,
        };
        self.issue(Owner::Row(no), effect);
    }

    /// An id for something that the machine makes: contract 8's `<prefix>-<ms>-<r6>`.
    pub(super) fn made_id(&mut self, prefix: &str) -> String {
        let ms = self.state.wall().0.div_euclid(1_000);
        let index = self.made;
        self.made += 1;
        format!("{prefix}-{ms}-{}", base36(sixth(self.record, index), 6))
    }

    /// The id of a session that this record makes, of which there is one. It has more digits than contract 8's six,
    /// which nobody counts, and is as it is because the sessions of all journals are named by it.
    fn session_id(&self) -> String {
        let ms = self.state.wall().0.div_euclid(1_000);
        let unique = (self.record.0 << 8) | (self.effects.len() as u64 & 0xff);
        format!("sess-{ms}-{}", base36(unique, 6))
    }

    fn new_session(&mut self, chat: &Address) -> Option<SessionNo> {
        let (Some(channel), Some(platform)) = (chat.channel_type.clone(), chat.platform_id.clone()) else {
            return None;
        };
        let origin = Address { thread_id: None, ..chat.clone() };
        let name = SessionName::new(self.state.directory().group.clone(), self.session_id()).ok()?;
        let session = self.state.add_session(Session::new(name, origin, self.at));
        self.state.directory_mut().chats.insert((channel, platform), session);
        Some(session)
    }

    fn ensure_folder(&mut self, no: SessionNo) {
        let Some(session) = self.state.session(no) else { return };
        if session.folder != FolderState::Absent {
            return;
        }
        let (name, origin) = (session.name.clone(), session.origin.clone());
        let effect = self.issue(Owner::Folder(no), Effect::CreateSession { session: no, name, origin });
        if let Some(session) = self.state.session_mut(no) {
            session.folder = FolderState::Creating(effect);
        }
    }

    pub(super) fn on_inbound_written(&mut self, effect: EffectId, seq: i64, duplicate: bool) {
        let Some(Owner::Row(no)) = self.state.close(effect) else { return };
        let Some(message) = self.state.inbound_mut(no) else { return };
        let InState::Writing { body, .. } = message.state.clone() else { return };
        message.seq = Some(seq);
        message.state = InState::Queued { wait: Wait::Now };
        let (session, id, origin) = (message.session, message.id.clone(), message.origin.clone());
        match body {
            Body::Arrived { channel, receipt } => {
                self.tell(Effect::AcceptInbound { channel, receipt, duplicate });
            }
            Body::Answer { question, arrival, .. } => {
                self.note_answer(question);
                if duplicate {
                    let _ = self.state.remove_inbound(no);
                }
                return self.on_answer_written(session, &origin, arrival, duplicate);
            }
            Body::Note(_) => {}
        }
        // A row of that id was there: the machine either has it open under another number or is done with it.
        if duplicate {
            let _ = self.state.remove_inbound(no);
            let open = self.state.session(session).is_some_and(|s| {
                s.inbox.iter().any(|&other| self.state.inbound(other).is_some_and(|m| m.id == id))
            });
            if !open {
                self.tell_settled_duplicate(session, id);
            }
        }
    }

    pub(super) fn on_inbound_write_failed(&mut self, effect: EffectId, reason: String) {
        let Some(Owner::Row(no)) = self.state.close(effect) else { return };
        let Some(message) = self.state.remove_inbound(no) else { return };
        let InState::Writing { body, .. } = message.state else { return };
        let sender = match body {
            Body::Arrived { channel, receipt } => Some((channel, receipt)),
            Body::Answer { question, arrival, .. } => {
                self.on_answer_not_written(question);
                arrival.map(|it| (it.channel, it.receipt))
            }
            Body::Note(_) => None,
        };
        if let Some((channel, receipt)) = sender {
            let reason = Refusal::NotWritten(reason.clone());
            self.tell(Effect::RefuseInbound { channel, receipt, reason });
        }
        self.complain(
            Some(message.session),
            Cause::EffectFailed,
            format!("inbound row not written: {reason}"),
        );
    }

    /// Queues the session for a slot when it has work and nothing stands in the way; takes it out otherwise.
    pub(super) fn consider(&mut self, no: SessionNo) {
        let at = self.at;
        if let Some(session) = self.state.session_mut(no) {
            session.considered = at;
        }
        let wanted = self.state.core().life == Life::Open
            && self.state.session(no).is_some_and(|session| {
                matches!(session.phase, Phase::Stopped { .. })
                    && !session.held
                    && session.look.is_none()
                    && session.writes_open == 0
                    && session.folder == FolderState::Present
                    && self.has_due_work(session)
            });
        let queued = self.state.queue().contains(&no);
        if wanted && !queued {
            self.state.queue_mut().push_back(no);
        } else if !wanted && queued {
            self.state.queue_mut().retain(|&other| other != no);
        }
    }

    /// Whether a message that may wake the agent is due.
    pub(super) fn has_due_work(&self, session: &Session) -> bool {
        session.inbox.iter().filter_map(|&no| self.state.inbound(no)).any(|message| {
            message.trigger
                && match message.state {
                    InState::Queued { wait } => self.is_due(wait),
                    _ => false,
                }
        })
    }

    pub(super) fn is_due(&self, wait: Wait) -> bool {
        match self.state.due_at(wait) {
            Some(at) => at <= self.at,
            None => false,
        }
    }

    /// Starts what waits, first come first served; where no slot is free, an idle container is stopped for it. Nothing
    /// is tried while the runtime is away.
    pub(super) fn fill_slots(&mut self) {
        if self.state.is_runtime_away() {
            return;
        }
        let slots = self.state.policy().slots as usize;
        while self.state.alive().len() < slots {
            if self.state.queue().is_empty() {
                return;
            }
            let Some(no) = self.state.queue_mut().pop_front() else { return };
            self.start(no);
        }
        if !self.state.queue().is_empty() {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        let waiting = self.state.queue().len();
        let mut leaving = 0;
        let mut idle: Option<(At, SessionNo)> = None;
        for &no in self.state.alive() {
            let Some(session) = self.state.session(no) else { continue };
            let going = matches!(session.phase, Phase::Stopping { .. })
                || session.look.is_some_and(|l| l.why == LookWhy::BeforeStop(StopReason::MakeRoom));
            if going {
                leaving += 1;
            } else if matches!(session.phase, Phase::Running { .. })
                && session.look.is_none()
                && !self.has_claims(session)
                && !self.has_due_work(session)
                && self.state.asks_until(no).is_none()
            {
                let candidate = (session.idle_since, no);
                idle = Some(idle.map_or(candidate, |best| best.min(candidate)));
            }
        }
        if leaving < waiting
            && let Some((_, no)) = idle
        {
            self.look(no, LookWhy::BeforeStop(StopReason::MakeRoom));
        }
    }

    fn start(&mut self, no: SessionNo) {
        let Some(session) = self.state.session(no) else { return };
        let (attempt, at) = (Attempt(self.record.0), self.at);
        let origin = session.origin.clone();
        let effect = self.issue(Owner::Projection(no), Effect::ProjectDestinations { session: no, origin });
        self.state.set_phase(no, Phase::Starting { attempt, since: at, effect, stage: Stage::Projecting });
        if let Some(session) = self.state.session_mut(no) {
            session.last_sign = at;
            session.tool = None;
            session.wait_until = None;
            session.attempt_seen = false;
            session.progress = false;
        }
    }

    /// Destinations are in place: the container may start.
    pub(super) fn on_projected(&mut self, no: SessionNo, effect: EffectId, error: Option<String>) {
        let Some(session) = self.state.session(no) else { return };
        let Phase::Starting { attempt, since, effect: own, stage: Stage::Projecting } = session.phase else {
            return;
        };
        if own != effect {
            return;
        }
        if let Some(error) = error {
            return self.start_failed(no, format!("destinations not written: {error}"));
        }
        if self.state.is_runtime_away() {
            // It went meanwhile; the session waits for it with the others.
            return self.state.set_phase(no, Phase::Stopped { since: self.at });
        }
        let effect = self.issue(Owner::Start(no), Effect::StartContainer { session: no, attempt });
        self.state.set_phase(no, Phase::Starting { attempt, since, effect, stage: Stage::Launching });
    }

    pub(super) fn on_started(&mut self, effect: EffectId) {
        let Some(Owner::Start(no)) = self.state.close(effect) else { return };
        let Some(session) = self.state.session(no) else { return };
        let Phase::Starting { attempt, effect: own, .. } = session.phase else { return };
        if own != effect {
            return;
        }
        let at = self.at;
        self.state.set_phase(no, Phase::Running { attempt, since: at });
        if let Some(session) = self.state.session_mut(no) {
            session.last_sign = at;
            session.idle_since = at;
        }
    }

    pub(super) fn on_start_failed(&mut self, effect: EffectId, reason: String) {
        let Some(Owner::Start(no)) = self.state.close(effect) else { return };
        match self.state.session(no).map(|session| &session.phase) {
            // The session did not fail: it is started when the runtime is back.
            Some(&Phase::Starting { effect: own, .. }) if own == effect && self.state.is_runtime_away() => {
                self.state.set_phase(no, Phase::Stopped { since: self.at });
            }
            Some(&Phase::Starting { effect: own, .. }) if own == effect => self.start_failed(no, reason),
            // It was asked to stop while it was being started: it is stopped now.
            Some(Phase::Stopping { .. }) => self.set_aside(no, Phase::Stopped { since: self.at }),
            _ => {}
        }
    }

    pub(super) fn start_failed(&mut self, no: SessionNo, reason: String) {
        let at = self.at;
        self.set_aside(no, Phase::BackingOff { since: at });
        if let Some(session) = self.state.session_mut(no) {
            session.failures = session.failures.saturating_add(1);
        }
        self.complain(Some(no), Cause::StartFailed, reason);
    }
}

/// A number of six digits to base 36 for the n-th thing that a record makes. No two are the same of one record, up to
/// 65,536 things, nor of 33,000 records in a row, which are more than a millisecond holds.
fn sixth(record: RecordNo, n: u64) -> u64 {
    const SPAN: u64 = 36u64.pow(6);
    let (low, high) = (n & 0xff, (n >> 8) & 0xff);
    let of_record = (record.0 << 8) % SPAN;
    (of_record + low + high * (SPAN / 256)) % SPAN
}

impl Session {
    /// Whether inbound.db cannot be read or written, so that nothing of the session can go on.
    pub fn inbound_is_bad(&self) -> bool {
        self.trouble.is_some_and(|trouble| trouble.kind == Unreadable::Inbound)
    }

    /// A session that was just heard of.
    pub fn new(name: SessionName, origin: Address, at: At) -> Self {
        Self {
            name,
            origin,
            phase: Phase::Stopped { since: at },
            inbox: Default::default(),
            outbox: Default::default(),
            cursor: None,
            failures: 0,
            trouble: None,
            progress: false,
            last_sign: at,
            idle_since: at,
            considered: at,
            tool: None,
            wait_until: None,
            attempt_seen: false,
            look: None,
            writes_open: 0,
            folder: FolderState::Absent,
            held: false,
            typing: false,
            complaints: Default::default(),
        }
    }
}
