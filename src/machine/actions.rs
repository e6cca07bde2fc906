//! What operators ask for. Each is on record and answered once.

use super::Step;
use super::effect::{DeliveryEnd, Effect, LookWhy, Outcome, Reply, StopReason};
use super::input::{Ask, OutKind, OutRow, PendingRow};
use super::route;
use super::state::{InState, OutState, Outbound, Owner, Phase, Source, Wait};
use crate::base::{MessageNo, SessionNo};

impl Step<'_> {
    pub(super) fn on_asked(&mut self, request: u64, ask: Ask) {
        let reply = match ask {
            Ask::StopSession(no) => self.stop_session(no),
            Ask::StartSession(no) => self.start_session(no),
            Ask::ResetSession(no) => match self.reset_session(no, request) {
                // Answered when it is done.
                Ok(()) => return,
                Err(why) => Reply::No(why),
            },
            Ask::RetryMessage { session, row } => self.retry_message(session, row),
            Ask::DropMessage { session, id } => self.drop_message(session, &id),
            Ask::ResendMessage { session, row } => self.resend_message(session, row),
        };
        self.tell(Effect::Answer { request, reply });
    }

    fn stop_session(&mut self, no: SessionNo) -> Reply {
        let Some(session) = self.state.session_mut(no) else { return no_session() };
        session.held = true;
        if let Phase::Starting { attempt, .. } | Phase::Running { attempt, .. } = session.phase {
            self.begin_stop(no, attempt, StopReason::Operator);
        }
        Reply::Done
    }

    fn start_session(&mut self, no: SessionNo) -> Reply {
        let Some(session) = self.state.session_mut(no) else { return no_session() };
        session.held = false;
        session.failures = 0;
        match session.phase {
            Phase::BackingOff { .. } => self.state.set_phase(no, Phase::Stopped { since: self.at }),
            Phase::Quarantined { .. } if session.inbound_is_bad() => self.look(no, LookWhy::Inbound),
            Phase::Quarantined { .. } => self.look(no, LookWhy::Quarantine),
            _ => {}
        }
        Reply::Done
    }

    fn reset_session(&mut self, no: SessionNo, request: u64) -> Result<(), String> {
        let session = self.state.session(no).ok_or("there is no such session")?;
        if session.inbound_is_bad() {
            let way = "mend it or put a copy back, then start the session";
            return Err(format!(
                "it is inbound.db that cannot be used, which a reset leaves as it is; {way}"
            ));
        }
        if session.phase.alive().is_some()
            || matches!(session.phase, Phase::Closing { .. }) && session.trouble.is_none()
        {
            return Err("its container still runs; stop the session first".into());
        }
        if let Some(old) = session.look {
            self.state.close(old.effect);
        }
        self.issue(Owner::Reset(no, request), Effect::ResetOutbound { session: no });
        if let Some(session) = self.state.session_mut(no) {
            session.look = None;
            session.writes_open += 1;
        }
        Ok(())
    }

    /// A fresh outbound.db is in place: its rows and acks begin anew.
    pub(super) fn on_reset(&mut self, no: SessionNo, request: u64, error: Option<String>) {
        let at = self.at;
        if let Some(session) = self.state.session_mut(no) {
            session.writes_open = session.writes_open.saturating_sub(1);
        }
        if let Some(error) = error {
            return self.tell(Effect::Answer { request, reply: Reply::No(error) });
        }
        if let Some(session) = self.state.session_mut(no) {
            session.cursor = None;
            session.failures = 0;
            if !session.inbound_is_bad() {
                session.trouble = None;
            }
        }
        self.drop_questions(no);
        self.void_claims(no, false);
        self.set_aside(no, Phase::Stopped { since: at });
        self.tell(Effect::Answer { request, reply: Reply::Done });
    }

    fn find_inbound(&self, session: SessionNo, id: &str) -> Option<MessageNo> {
        let inbox = &self.state.session(session)?.inbox;
        inbox.iter().copied().find(|&no| self.state.inbound(no).is_some_and(|message| message.id == id))
    }

    fn find_outbound(&self, session: SessionNo, row_id: &str) -> Option<MessageNo> {
        let outbox = &self.state.session(session)?.outbox;
        outbox.iter().copied().find(|&no| {
            self.state
                .outbound(no)
                .is_some_and(|message| matches!(&message.source, Source::Row { id, .. } if id == row_id))
        })
    }

    fn retry_message(&mut self, session: SessionNo, row: PendingRow) -> Reply {
        if self.state.session(session).is_none() {
            return no_session();
        }
        let no = match self.find_inbound(session, &row.id) {
            Some(no) => no,
            None => self.adopt_row(session, row),
        };
        let Some(message) = self.state.inbound_mut(no) else { return no_session() };
        match message.state {
            InState::Queued { .. } => {}
            InState::Claimed { .. } => return Reply::No("it is being worked on".into()),
            InState::Writing { .. } | InState::Settling { .. } | InState::Withheld { .. } => {
                return Reply::No("its row is being written; ask again".into());
            }
        }
        message.state = InState::Queued { wait: Wait::Now };
        message.tries = 0;
        message.suspect = false;
        self.reschedule(no);
        Reply::Done
    }

    fn drop_message(&mut self, session: SessionNo, id: &str) -> Reply {
        if let Some(no) = self.find_inbound(session, id) {
            return match self.state.inbound(no).map(|message| &message.state) {
                Some(InState::Queued { .. }) => {
                    self.end_message(no, Outcome::Dropped);
                    Reply::Done
                }
                Some(InState::Claimed { .. }) => {
                    Reply::No("it is being worked on; stop the session first".into())
                }
                _ => Reply::No("it is over already".into()),
            };
        }
        let Some(no) = self.find_outbound(session, id) else {
            return Reply::No("no open message of this session has that id".into());
        };
        match self.state.outbound(no).map(|message| &message.state) {
            Some(OutState::Queued | OutState::Scheduled { .. }) => {
                self.end_delivery(no, Err(DeliveryEnd::Dropped));
                Reply::Done
            }
            Some(OutState::Delivering { .. }) => Reply::No("it is being delivered".into()),
            _ => Reply::No("it is over already".into()),
        }
    }

    fn resend_message(&mut self, no: SessionNo, row: OutRow) -> Reply {
        let Some(session) = self.state.session(no) else { return no_session() };
        if self.find_outbound(no, &row.id).is_some() {
            return Reply::No("it is still being delivered".into());
        }
        let to = match route::target_of(session, &row) {
            Ok(to) => to,
            Err(denial) => return Reply::No(format!("the agent may not send it: {denial:?}")),
        };
        let (asked, kind) = ((row.rowid, row.id.clone()), row.kind);
        let source =
            Source::Row { rowid: row.rowid, id: row.id, in_reply_to: row.in_reply_to, files: row.files };
        let message = self.state.add_outbound(Outbound {
            session: no,
            to: to.clone(),
            source,
            state: OutState::Queued,
            tries: 0,
            seen: self.at,
            key: None,
        });
        if let OutKind::Question(facts) = kind {
            self.ask_question(message, no, to.clone(), asked, facts);
        }
        self.enqueue(no, &to, message);
        Reply::Done
    }
}

fn no_session() -> Reply {
    Reply::No("there is no such session".into())
}
