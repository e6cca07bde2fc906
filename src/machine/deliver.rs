//! Deliver: from a new outbound row to an accepted, refused, denied, expired or unknown delivery, on record.

use std::collections::BTreeSet;

use super::Step;
use super::effect::{AgentNote, Body, Cause, DeliveryEnd, Effect, Notice, Payload, backoff};
use super::input::{DeliveryFault, OutKind, OutRow};
use super::policy::{InDoubt, NOTES_OPEN_MAX};
use super::route;
use super::state::{
    Destination, Hold, InState, Inbound, Item, Life, OutState, Outbound, Owner, Session, Source,
};
use crate::base::{At, DestinationNo, EffectId, MessageNo, Ms, SessionNo};
use crate::session::rows::Address;

impl Step<'_> {
    /// Takes new rows of messages_out in rowid order.
    pub(super) fn take_outbound(&mut self, session: SessionNo, rows: Vec<OutRow>, rewound: bool) {
        if rewound {
            self.complain(
                Some(session),
                Cause::Rewound,
                "messages_out was replaced or cut; it is read from its beginning",
            );
            // What an answer would say stood in rows that are gone.
            self.drop_questions(session);
        }
        if rows.is_empty() {
            return;
        }
        let mut open = self.open_rows(session);
        for row in rows {
            self.take_row(session, row, rewound, &mut open);
        }
    }

    /// The ids of the rows of a session that are open.
    fn open_rows(&self, no: SessionNo) -> BTreeSet<String> {
        let outbox = self.state.session(no).into_iter().flat_map(|session| &session.outbox);
        outbox
            .filter_map(|&other| match &self.state.outbound(other)?.source {
                Source::Row { id, .. } => Some(id.clone()),
                Source::Notice(_) => None,
            })
            .collect()
    }

    fn take_row(&mut self, no: SessionNo, row: OutRow, rewound: bool, open: &mut BTreeSet<String>) {
        let at = self.at;
        let Some(session) = self.state.session(no) else { return };
        let behind = session.cursor.as_ref().is_some_and(|(rowid, _)| row.rowid <= *rowid);
        let known = (behind && !rewound) || row.settled || open.contains(&row.id);
        let target = route::target_of(session, &row);
        if let Some(session) = self.state.session_mut(no) {
            session.cursor = Some((row.rowid, row.id.clone()));
            session.idle_since = at;
        }
        if !known {
            open.insert(row.id.clone());
            self.add_row(no, row, target);
        }
    }

    fn add_row(&mut self, session: SessionNo, row: OutRow, target: Result<Address, super::effect::Denial>) {
        let wall = self.state.wall();
        let state = match row.not_before {
            Some(until) if until > wall => OutState::Scheduled { until },
            _ => OutState::Queued,
        };
        let scheduled = matches!(state, OutState::Scheduled { .. });
        let (to, denial) = match target {
            Ok(to) => (to, None),
            Err(denial) => (row.to.clone(), Some(denial)),
        };
        let asked = (row.rowid, row.id.clone());
        let source =
            Source::Row { rowid: row.rowid, id: row.id, in_reply_to: row.in_reply_to, files: row.files };
        let no = self.state.add_outbound(Outbound {
            session,
            to: to.clone(),
            source,
            state: OutState::Queued,
            tries: 0,
            seen: self.at,
            key: None,
        });
        if let Some(denial) = denial {
            return self.end_delivery(no, Err(DeliveryEnd::Denied(denial)));
        }
        if let OutKind::Question(facts) = row.kind {
            self.ask_question(no, session, to.clone(), asked, facts);
        }
        if scheduled {
            if let Some(message) = self.state.outbound_mut(no) {
                message.state = state;
            }
        } else {
            self.enqueue(session, &to, no);
        }
    }

    pub(super) fn enqueue(&mut self, session: SessionNo, to: &Address, no: MessageNo) {
        let destination = self.state.destination_at(session, to);
        if let Some(destination) = self.state.destination_mut(destination) {
            destination.queue.push_back(Item::Message(no));
        }
    }

    /// Says something to a chat in the host's own name; it is a delivery like any other.
    pub(super) fn notify(&mut self, session: SessionNo, to: &Address, notice: Notice) {
        let no = self.state.add_outbound(Outbound {
            session,
            to: to.clone(),
            source: Source::Notice(notice),
            state: OutState::Queued,
            tries: 0,
            seen: self.at,
            key: None,
        });
        self.enqueue(session, to, no);
    }

    /// Moves a destination on: ends of turns are told, its head is delivered when nothing holds it.
    pub(super) fn pump(&mut self, no: DestinationNo) {
        if self.state.core().life == Life::Booting {
            return;
        }
        loop {
            let Some(destination) = self.state.destination(no) else { return };
            let to = destination.to.clone();
            match destination.queue.front().cloned() {
                None => return self.state.remove_destination(no),
                Some(Item::Settled { id, outcome }) => {
                    self.tell(Effect::TellSettled { to, id, outcome });
                    if let Some(destination) = self.state.destination_mut(no) {
                        destination.queue.pop_front();
                    }
                }
                Some(Item::Message(message)) => {
                    if matches!(destination.hold, Hold::None | Hold::Trying { .. }) {
                        self.deliver(no, message, &to);
                    }
                    return;
                }
            }
        }
    }

    fn deliver(&mut self, destination: DestinationNo, no: MessageNo, to: &Address) {
        let Some(message) = self.state.outbound(no).filter(|m| m.state == OutState::Queued) else { return };
        let channel = to.channel_type.as_deref().unwrap_or_default();
        let Some(channel) = self.state.directory().channels.get(channel).copied().filter(|c| c.up) else {
            return self.set_hold(destination, Hold::ChannelDown { since: self.at });
        };
        let (session, number) = (message.session, message.tries.saturating_add(1));
        let key = message.key.unwrap_or_else(|| self.next_effect());
        let payload = match message.source.clone() {
            Source::Row { rowid, id, in_reply_to, .. } => Payload::Row { rowid, id, in_reply_to },
            Source::Notice(notice) => Payload::Notice(notice),
        };
        let idempotent = channel.idempotent;
        let effect =
            Effect::Deliver { session, message: no, to: to.clone(), payload, key, number, idempotent };
        let effect = self.issue(Owner::Delivery(no), effect);
        let since = self.at;
        if let Some(message) = self.state.outbound_mut(no) {
            message.tries = number;
            message.key = Some(key);
            message.state = OutState::Delivering { effect, since };
        }
        self.show_question(no, true);
    }

    /// Closes a delivery's effect and gives its message, unless this is late news.
    fn close_delivery(&mut self, effect: EffectId) -> Option<MessageNo> {
        let Some(Owner::Delivery(no)) = self.state.close(effect) else { return None };
        let state = &self.state.outbound(no)?.state;
        let current = matches!(*state, OutState::Delivering { effect: own, .. } if own == effect);
        current.then_some(no)
    }

    pub(super) fn on_delivered(&mut self, effect: EffectId, platform_id: Option<String>) {
        if let Some(no) = self.close_delivery(effect) {
            self.end_delivery(no, Ok(platform_id));
        }
    }

    pub(super) fn on_delivery_failed(
        &mut self,
        effect: EffectId,
        class: DeliveryFault,
        reason: String,
        retry_after: Option<Ms>,
    ) {
        let Some(no) = self.close_delivery(effect) else { return };
        self.delivery_failed(no, class, reason, retry_after);
    }

    /// Its effect is closed; what becomes of the message?
    fn delivery_failed(
        &mut self,
        no: MessageNo,
        class: DeliveryFault,
        reason: String,
        retry_after: Option<Ms>,
    ) {
        let Some(message) = self.state.outbound_mut(no) else { return };
        message.state = OutState::Queued;
        let (session, to, tries) = (message.session, message.to.clone(), message.tries);
        let Some(destination) = self.state.destination_no(session, &to) else { return };
        self.show_question(no, false);
        match class {
            DeliveryFault::Permanent => self.end_delivery(no, Err(DeliveryEnd::Failed(reason))),
            DeliveryFault::InDoubt if !self.may_repeat(&to) => {
                self.end_delivery(no, Err(DeliveryEnd::Unknown));
            }
            DeliveryFault::InDoubt => self.try_later(destination, no, DeliveryEnd::Unknown, None),
            DeliveryFault::Transient => {
                self.try_later(destination, no, DeliveryEnd::Failed(reason), retry_after);
            }
            DeliveryFault::NoRecipient => {
                if let Some(message) = self.state.outbound_mut(no) {
                    message.tries = tries.saturating_sub(1);
                }
                let since = match self.state.destination(destination).map(|it| it.hold) {
                    Some(Hold::Trying { first, nobody: true }) => first,
                    _ => self.at,
                };
                self.set_hold(destination, Hold::NoRecipient { since });
            }
        }
    }

    /// The head failed and may be tried again: after a back-off, unless it has failed for too long, which is counted
    /// from its first failure: what it waited for before, a recipient or its channel, was no failure.
    fn try_later(
        &mut self,
        destination: DestinationNo,
        no: MessageNo,
        end: DeliveryEnd,
        retry_after: Option<Ms>,
    ) {
        let policy = self.state.policy();
        let give_up = policy.delivery_give_up;
        let tries = self.state.outbound(no).map_or(1, |message| message.tries);
        let wait = backoff(policy.delivery_backoff, tries, policy.delivery_backoff_max);
        let first = match self.state.destination(destination).map(|it| it.hold) {
            Some(Hold::Trying { first, nobody: false }) => first,
            _ => self.at,
        };
        if self.at >= first + give_up {
            return self.end_delivery(no, Err(end));
        }
        let asked = retry_after.unwrap_or_default().min(give_up);
        let wait = spread(wait, no, tries).max(asked);
        self.set_hold(destination, Hold::Failing { since: self.at, wait, first });
    }

    fn set_hold(&mut self, no: DestinationNo, hold: Hold) {
        if let Some(destination) = self.state.destination_mut(no) {
            destination.hold = hold;
        }
    }

    /// Whether what may have arrived may be sent again: with its key where the channel drops repeats; otherwise
    /// policy decides.
    fn may_repeat(&self, to: &Address) -> bool {
        let channel = to.channel_type.as_deref().unwrap_or_default();
        let idempotent = self.state.directory().channels.get(channel).is_some_and(|c| c.idempotent);
        idempotent || self.state.policy().in_doubt == InDoubt::Resend
    }

    /// A delivery was begun by the daemon before and not heard of. It is sent again if it may be. Never recorded as
    /// success.
    pub(super) fn settle_doubt(&mut self, no: MessageNo) {
        let Some(message) = self.state.outbound_mut(no) else { return };
        // Still at the head of its queue, which is pumped when all is settled.
        message.state = OutState::Queued;
        let to = message.to.clone();
        if !self.may_repeat(&to) {
            self.end_delivery(no, Err(DeliveryEnd::Unknown));
        }
    }

    /// A delivery was not heard of in time: it is in doubt. What is heard later is late news.
    pub(super) fn on_delivery_overdue(&mut self, no: MessageNo) {
        let Some(message) = self.state.outbound(no) else { return };
        let OutState::Delivering { effect, .. } = message.state else { return };
        let session = message.session;
        self.state.close(effect);
        self.complain(Some(session), Cause::Overdue, format!("the delivery of {no} was not heard of"));
        self.delivery_failed(no, DeliveryFault::InDoubt, String::new(), None);
    }

    /// A delivery is over: it leaves its queue, its end is recorded, and the agent is told when it did not arrive.
    pub(super) fn end_delivery(&mut self, no: MessageNo, end: Result<Option<String>, DeliveryEnd>) {
        let Some(message) = self.state.outbound(no) else { return };
        let (session, to, source) = (message.session, message.to.clone(), message.source.clone());
        self.leave_queue(session, &to, no);
        if let Err(end) = &end {
            self.complain(Some(session), Cause::NotDelivered, format!("{no}: {}", end.name()));
        }
        let Source::Row { id, .. } = source else {
            let _ = self.state.remove_outbound(no);
            return;
        };
        let delivered = end.is_ok();
        // One that may have arrived may be answered.
        if end.as_ref().is_err_and(|end| *end != DeliveryEnd::Unknown) {
            self.drop_question(no);
        }
        let at = self.state.wall();
        let platform_id = end.as_ref().ok().cloned().flatten();
        let effect =
            Effect::RecordDelivery { session, message: no, id: id.clone(), delivered, platform_id, at };
        let effect = self.issue(Owner::Record(no), effect);
        if let Some(message) = self.state.outbound_mut(no) {
            message.state = OutState::Recording { effect, delivered };
        }
        if let Err(end) = end {
            self.tell_agent(session, id, end);
        }
    }

    /// Has a note written to the agent that a message of it did not arrive. An agent is told of so many one by one;
    /// what comes beyond them before it has read them is counted, so that no row of an agent costs more than itself.
    fn tell_agent(&mut self, session: SessionNo, id: String, end: DeliveryEnd) {
        let mut open = 0;
        let mut withheld = None;
        for (no, note) in self.state.notes_of(session) {
            match note.state {
                InState::Withheld { .. } => withheld = Some(no),
                _ => open += 1,
            }
            if withheld.is_some() || open > NOTES_OPEN_MAX {
                break;
            }
        }
        if let Some(no) = withheld
            && let Some(InState::Withheld { count, id: last, end: of_last }) =
                self.state.inbound_mut(no).map(|note| &mut note.state)
        {
            *count = count.saturating_add(1);
            (*last, *of_last) = (id, end);
            return;
        }
        let origin = route::note_origin(&self.state.directory().group);
        let note_id = self.made_id("sys");
        if open < NOTES_OPEN_MAX {
            let body = Body::Note(AgentNote::NotDelivered { id, end });
            return self.write_inbound(session, note_id, origin, false, body);
        }
        self.state.add_inbound(Inbound {
            session,
            id: note_id,
            seq: None,
            origin,
            trigger: false,
            tries: 0,
            suspect: false,
            state: InState::Withheld { count: 1, id, end },
            void: None,
            released: None,
            update: None,
        });
    }

    /// The agent has read what it was told: now it is told of what came beyond that.
    pub(super) fn release_note(&mut self, session: SessionNo) {
        let mut open = 0;
        let mut withheld = None;
        for (no, note) in self.state.notes_of(session) {
            match &note.state {
                InState::Withheld { count, id, end } => withheld = Some((no, *count, id, end)),
                _ => open += 1,
            }
            if open >= NOTES_OPEN_MAX {
                return;
            }
        }
        let Some((no, count, id, end)) = withheld else { return };
        let (id, end) = (id.clone(), end.clone());
        let note = match count {
            1 => AgentNote::NotDelivered { id, end },
            _ => AgentNote::AndMore { count, id, end },
        };
        let since = self.at;
        if let Some(message) = self.state.inbound_mut(no) {
            message.state = InState::Writing { since, body: Body::Note(note) };
        }
        let now = self.state.wall();
        self.write_row(no, now);
    }

    pub(super) fn leave_queue(&mut self, session: SessionNo, to: &Address, no: MessageNo) {
        let Some(destination) = self.state.destination_no(session, to) else { return };
        if let Some(destination) = self.state.destination_mut(destination) {
            let head = destination.queue.front() == Some(&Item::Message(no));
            destination.queue.retain(|item| *item != Item::Message(no));
            if head {
                destination.hold = Hold::None;
            }
        }
    }

    pub(super) fn on_recorded(&mut self, no: MessageNo, error: Option<String>) {
        let session = self.state.outbound(no).map(|message| message.session);
        let bad = session.and_then(|no| self.state.session(no)).is_some_and(Session::inbound_is_bad);
        if let (Some(session), Some(error), true) = (session, &error, bad) {
            // Recorded when inbound.db is whole.
            let detail = format!("delivery not recorded yet: {error}");
            return self.complain(Some(session), Cause::EffectFailed, detail);
        }
        let Some(message) = self.state.remove_outbound(no) else { return };
        if let Some(error) = error {
            self.complain(
                Some(message.session),
                Cause::EffectFailed,
                format!("delivery not recorded: {error}"),
            );
        }
        if let (Source::Row { id, files: true, .. }, OutState::Recording { delivered: true, .. }) =
            (message.source, message.state)
        {
            self.tell(Effect::DiscardOutbox { session: message.session, id });
        }
    }

    pub(super) fn on_channel_up(&mut self, channel: String, chat: Option<String>, idempotent: bool) {
        let known = self.state.directory().channels.get(&channel).copied().unwrap_or_default();
        let now = super::state::Channel { up: true, idempotent };
        if known != now {
            self.state.directory_mut().channels.insert(channel.clone(), now);
        }
        let waiting: Vec<(DestinationNo, Hold)> = self
            .state
            .destinations()
            .iter()
            .filter(|(_, d)| d.to.channel_type.as_deref() == Some(channel.as_str()))
            .filter(|(_, d)| chat.is_none() || d.to.platform_id == chat || is_down(d))
            .map(|(&no, d)| (no, d.hold))
            .collect();
        for (no, hold) in waiting {
            // Touched, and so pumped.
            match hold {
                Hold::NoRecipient { since } => self.set_hold(no, Hold::Trying { first: since, nobody: true }),
                Hold::ChannelDown { .. } => self.set_hold(no, Hold::None),
                _ => {}
            }
        }
    }

    pub(super) fn on_channel_down(&mut self, channel: &str) {
        if let Some(known) = self.state.directory_mut().channels.get_mut(channel) {
            known.up = false;
        }
    }

    /// A held destination's time has come.
    pub(super) fn on_destination_due(&mut self, no: DestinationNo) {
        let Some(destination) = self.state.destination(no) else { return };
        let hold = destination.hold;
        match hold {
            Hold::None | Hold::Trying { .. } => {}
            Hold::Retry { since: first, .. } | Hold::Failing { first, .. } => {
                self.set_hold(no, Hold::Trying { first, nobody: false });
            }
            Hold::NoRecipient { .. } | Hold::ChannelDown { .. } => {
                let Some(&Item::Message(head)) = destination.queue.front() else { return };
                let end = match hold {
                    Hold::ChannelDown { .. } => DeliveryEnd::ChannelDown,
                    _ => DeliveryEnd::Expired,
                };
                self.end_delivery(head, Err(end));
                // What stands in the way of this one stands in the way of the next, and since then.
                self.set_hold(no, hold);
            }
        }
    }

    /// A scheduled message's time has come.
    pub(super) fn on_deliver_after(&mut self, no: MessageNo) {
        let seen = self.at;
        let Some(message) = self.state.outbound_mut(no) else { return };
        message.state = OutState::Queued;
        message.seen = seen;
        let (session, to) = (message.session, message.to.clone());
        self.enqueue(session, &to, no);
    }
}

/// A wait lengthened by up to a quarter, so that destinations that failed together do not come back together. The
/// share is derived from the message and the try: the machine has no chance in it.
fn spread(wait: Ms, no: MessageNo, tries: u32) -> Ms {
    let mixed = (no.0 ^ (u64::from(tries) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    Ms(wait.0.saturating_add(wait.0.saturating_mul(mixed) / 1_024))
}

impl DeliveryEnd {
    /// Its name, for people and transcripts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Failed(_) => "failed",
            Self::Denied(_) => "denied",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
            Self::Dropped => "dropped",
            Self::ChannelDown => "channel down",
        }
    }
}

/// Whether a destination waits for its channel.
fn is_down(destination: &Destination) -> bool {
    matches!(destination.hold, Hold::ChannelDown { .. })
}

/// When a held destination is looked at again. `head_seen` is when its head was there to be delivered.
pub(super) fn hold_deadline(destination: &Destination, head_seen: Option<At>, keep: Ms) -> Option<At> {
    match destination.hold {
        // A delivery under way has a deadline of its own.
        Hold::None | Hold::Trying { .. } => None,
        Hold::Retry { since, wait } | Hold::Failing { since, wait, .. } => Some(since + wait),
        // Each is kept for the whole time, also one that came when the wait was long.
        Hold::NoRecipient { since } | Hold::ChannelDown { since } => {
            head_seen.map(|seen| seen.max(since) + keep)
        }
    }
}
