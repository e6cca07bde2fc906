//! Deliver: from a new outbound row to an accepted, refused, denied, expired or unknown delivery, on record.

use super::Step;
use super::effect::{AgentNote, Body, Cause, DeliveryEnd, Effect, Notice, Payload, backoff};
use super::input::{DeliveryFault, OutRow};
use super::policy::InDoubt;
use super::route;
use super::state::{Hold, Item, Life, OutState, Outbound, Owner, Source};
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
        }
        for row in rows {
            self.take_row(session, row, rewound);
        }
    }

    fn take_row(&mut self, no: SessionNo, row: OutRow, rewound: bool) {
        let at = self.at;
        let Some(session) = self.state.session(no) else { return };
        let behind = session.cursor.as_ref().is_some_and(|(rowid, _)| row.rowid <= *rowid);
        let open = session.outbox.iter().any(|&other| {
            self.state
                .outbound(other)
                .is_some_and(|m| matches!(&m.source, Source::Row { id, .. } if *id == row.id))
        });
        let known = (behind && !rewound) || row.settled || open;
        let target = route::target_of(session, &row);
        if let Some(session) = self.state.session_mut(no) {
            session.cursor = Some((row.rowid, row.id.clone()));
            session.idle_since = at;
        }
        if !known {
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
                    self.drop_head(no);
                }
                Some(Item::Message(message)) => {
                    if destination.hold == Hold::None {
                        self.deliver(message, &to);
                    }
                    return;
                }
            }
        }
    }

    fn drop_head(&mut self, no: DestinationNo) {
        if let Some(destination) = self.state.destination_mut(no) {
            destination.queue.pop_front();
            destination.hold = Hold::None;
        }
    }

    fn deliver(&mut self, no: MessageNo, to: &Address) {
        let channel = to.channel_type.as_deref().unwrap_or_default();
        let Some(channel) = self.state.directory().channels.get(channel).copied().filter(|c| c.up) else {
            return;
        };
        let Some(message) = self.state.outbound(no).filter(|m| m.state == OutState::Queued) else { return };
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
        let Some(message) = self.state.outbound_mut(no) else { return };
        message.state = OutState::Queued;
        let (session, to, seen, tries) = (message.session, message.to.clone(), message.seen, message.tries);
        let policy = self.state.policy().clone();
        match class {
            DeliveryFault::Permanent => self.end_delivery(no, Err(DeliveryEnd::Failed(reason))),
            DeliveryFault::InDoubt => self.settle_doubt(no),
            DeliveryFault::Transient if self.at >= seen + policy.delivery_give_up => {
                self.end_delivery(no, Err(DeliveryEnd::Failed(reason)));
            }
            DeliveryFault::Transient => {
                let wait = backoff(policy.delivery_backoff, tries, policy.delivery_backoff_max);
                let wait = spread(wait, no, tries).max(retry_after.unwrap_or_default());
                self.hold(session, &to, Hold::Retry { since: self.at, wait });
            }
            DeliveryFault::NoRecipient => {
                if let Some(message) = self.state.outbound_mut(no) {
                    message.tries = tries.saturating_sub(1);
                }
                self.hold(session, &to, Hold::NoRecipient { since: self.at });
            }
        }
    }

    fn hold(&mut self, session: SessionNo, to: &Address, hold: Hold) {
        let no = self.state.destination_at(session, to);
        if let Some(destination) = self.state.destination_mut(no) {
            destination.hold = hold;
        }
    }

    /// A delivery was begun and not heard of. It is sent again with its key where the channel drops repeats;
    /// otherwise policy decides. Never recorded as success.
    pub(super) fn settle_doubt(&mut self, no: MessageNo) {
        let Some(message) = self.state.outbound_mut(no) else { return };
        message.state = OutState::Queued;
        let (session, to) = (message.session, message.to.clone());
        let channel = to.channel_type.as_deref().unwrap_or_default();
        let idempotent = self.state.directory().channels.get(channel).is_some_and(|c| c.idempotent);
        if idempotent || self.state.policy().in_doubt == InDoubt::Resend {
            // Still at the head of its queue; touching the destination has it pumped.
            self.hold(session, &to, Hold::None);
        } else {
            self.end_delivery(no, Err(DeliveryEnd::Unknown));
        }
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
        let at = self.state.wall();
        let platform_id = end.as_ref().ok().cloned().flatten();
        let effect =
            Effect::RecordDelivery { session, message: no, id: id.clone(), delivered, platform_id, at };
        let effect = self.issue(Owner::Record(no), effect);
        if let Some(message) = self.state.outbound_mut(no) {
            message.state = OutState::Recording { effect, delivered };
        }
        if let Err(end) = end {
            let note = AgentNote::NotDelivered { id, end };
            let origin = route::note_origin(&self.state.directory().group);
            let note_id = self.made_id("sys");
            self.write_inbound(session, note_id, origin, false, Body::Note(note));
        }
    }

    fn leave_queue(&mut self, session: SessionNo, to: &Address, no: MessageNo) {
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
        let waiting: Vec<(DestinationNo, bool)> = self
            .state
            .destinations()
            .iter()
            .filter(|(_, d)| d.to.channel_type.as_deref() == Some(channel.as_str()))
            .filter(|(_, d)| chat.is_none() || d.to.platform_id == chat)
            .map(|(&no, d)| (no, matches!(d.hold, Hold::NoRecipient { .. })))
            .collect();
        for (no, nobody) in waiting {
            // Touched, and so pumped.
            if let Some(destination) = self.state.destination_mut(no)
                && nobody
            {
                destination.hold = Hold::None;
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
        let Some(destination) = self.state.destination_mut(no) else { return };
        match destination.hold {
            Hold::None => {}
            Hold::Retry { .. } => destination.hold = Hold::None,
            Hold::NoRecipient { .. } => {
                if let Some(&Item::Message(head)) = destination.queue.front() {
                    self.end_delivery(head, Err(DeliveryEnd::Expired));
                }
            }
        }
    }

    /// A scheduled message's time has come.
    pub(super) fn on_deliver_after(&mut self, no: MessageNo) {
        let Some(message) = self.state.outbound_mut(no) else { return };
        message.state = OutState::Queued;
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
        }
    }
}

/// When a held destination is looked at again.
pub(super) fn hold_deadline(
    destination: &super::state::Destination,
    head_seen: Option<At>,
    keep: Ms,
) -> Option<At> {
    match destination.hold {
        Hold::None => None,
        Hold::Retry { since, wait } => Some(since + wait),
        Hold::NoRecipient { .. } => head_seen.map(|seen| seen + keep),
    }
}
