//! Performs deliveries and writes answers: what a row says is looked up where it stands, read once, and handed to its
//! channel with copies of its files. Nothing here waits.
//!
//! Invariant: what a channel cannot show never gets to it.

use serde_json::{Value, json};
use slog::warn;

use super::{Fetch, Performer, Side, send};
use crate::base::{EffectId, SessionNo};
use crate::channels::Delivery;
use crate::channels::content::{Content, Form};
use crate::host::event::Event;
use crate::host::files::{self, Copied};
use crate::host::inbound_lane::Work;
use crate::host::words;
use crate::machine::effect::{Body, Payload};
use crate::machine::input::{DeliveryFault, Input};
use crate::machine::state::State;
use crate::session::ids;
use crate::session::rows::{Address, NewInbound};

/// What waits for the text of a row of messages_out.
pub(super) enum Fetching {
    Delivery { session: SessionNo, id: String, delivery: Box<Delivery>, channel: &'static str },
    Answer { session: SessionNo, row: Box<NewInbound>, option: u16, user: String },
}

/// An answer that is to be written.
pub(super) struct Answer {
    /// messages_in.id.
    pub id: String,
    /// The question and the option.
    pub body: Body,
    /// May wake the agent.
    pub trigger: bool,
    /// The question's chat.
    pub origin: Address,
    /// When.
    pub at: String,
}

impl Performer {
    /// Hands a message to its recipient, as soon as what it says is known.
    pub(super) fn deliver(
        &mut self,
        state: &State,
        effect: EffectId,
        session: SessionNo,
        to: &Address,
        payload: Payload,
        key: EffectId,
    ) {
        let Some((channel, chat)) = to.chat() else {
            return self.not_delivered(effect, DeliveryFault::Permanent, "it names no chat".into());
        };
        let Some(&channel) = self.channels.get_key_value(channel).map(|(name, _)| name) else {
            let why = "the channel is not configured".into();
            return self.not_delivered(effect, DeliveryFault::Transient, why);
        };
        let mut delivery = Delivery {
            ticket: 0,
            key: key.to_string(),
            chat: chat.to_owned(),
            thread: to.thread_id.clone(),
            content: Content::text(""),
            files: Vec::new(),
            skipped: Vec::new(),
            in_reply_to: None,
        };
        let group = &state.directory().group;
        match payload {
            Payload::Notice(notice) => {
                delivery.content = Content::text(words::notice(&notice));
                self.hand_over(effect, delivery, channel);
            }
            Payload::Row { rowid, id, in_reply_to } => {
                delivery.in_reply_to = in_reply_to.map(|id| ids::platform_part(&id, group).to_owned());
                if let Some(content) = self.bodies.outbound(session, &id).map(str::to_owned) {
                    return self.compose(state, effect, session, &id, &content, delivery, channel);
                }
                let delivery = Box::new(delivery);
                let waiting = Fetching::Delivery { session, id: id.clone(), delivery, channel };
                self.fetch(state, effect, session, rowid, id, waiting);
            }
        }
    }

    /// Has a row's text read again.
    fn fetch(
        &mut self,
        state: &State,
        effect: EffectId,
        session: SessionNo,
        rowid: i64,
        id: String,
        waiting: Fetching,
    ) {
        let Some(known) = state.session(session) else {
            return self.not_fetched(effect, &waiting, "its session is gone".into(), false);
        };
        let (name, folder) = (known.name.clone(), self.data.session(&known.name));
        self.fetching.insert(effect, waiting);
        self.side.push(session, Side::Fetch { effect, job: Box::new(Fetch { name, folder, rowid, id }) });
    }

    /// The text of a row was read again.
    pub fn fetched(&mut self, state: &State, effect: EffectId, result: Result<String, (String, bool)>) {
        let Some(waiting) = self.fetching.remove(&effect) else { return };
        match (result, waiting) {
            (Ok(content), Fetching::Delivery { session, id, delivery, channel }) => {
                self.compose(state, effect, session, &id, &content, *delivery, channel);
            }
            (Ok(question), Fetching::Answer { session, row, option, user }) => {
                self.answered(state, effect, session, *row, answer_content(&question, option, &user));
            }
            (Err((reason, passing)), waiting) => self.not_fetched(effect, &waiting, reason, passing),
        }
    }

    fn not_fetched(&self, effect: EffectId, waiting: &Fetching, reason: String, passing: bool) {
        match waiting {
            Fetching::Delivery { .. } => {
                let class = if passing { DeliveryFault::Transient } else { DeliveryFault::Permanent };
                self.not_delivered(effect, class, reason);
            }
            Fetching::Answer { .. } => {
                let reason = format!("the question cannot be read: {reason}");
                send(&self.events, Event::Input(Input::InboundWriteFailed { effect, reason }));
            }
        }
    }

    fn not_delivered(&self, effect: EffectId, class: DeliveryFault, reason: String) {
        send(&self.events, Event::Input(Input::DeliveryFailed { effect, class, reason, retry_after: None }));
    }

    /// Writes an answer, as soon as the words of its question are known.
    pub(super) fn write_answer(
        &mut self,
        state: &State,
        effect: EffectId,
        session: SessionNo,
        answer: Answer,
    ) {
        let Answer { id, body, trigger, origin, at } = answer;
        let Body::Answer { rowid, id: asked, option, arrival, .. } = body else { return };
        let said = arrival.and_then(|it| self.bodies.take_arrived(&it.channel, it.receipt));
        let user = said.map_or_else(String::new, |said| sender_of(&said.content));
        let mut row = NewInbound::new(id, "system", at, origin, String::new());
        row.trigger = trigger;
        match self.bodies.outbound(session, &asked).map(str::to_owned) {
            Some(question) => {
                self.answered(state, effect, session, row, answer_content(&question, option, &user))
            }
            None => {
                let waiting = Fetching::Answer { session, row: Box::new(row), option, user };
                self.fetch(state, effect, session, rowid, asked, waiting);
            }
        }
    }

    fn answered(
        &self,
        state: &State,
        effect: EffectId,
        session: SessionNo,
        mut row: NewInbound,
        content: Result<String, String>,
    ) {
        match content {
            Ok(content) => {
                row.content = content;
                self.write(state, session, effect, Work::Insert(Box::new(row)));
            }
            Err(reason) => send(&self.events, Event::Input(Input::InboundWriteFailed { effect, reason })),
        }
    }

    /// Reads what a row says. Its files are copied before it is handed over.
    #[allow(clippy::too_many_arguments)] // What one delivery is made of.
    fn compose(
        &mut self,
        state: &State,
        effect: EffectId,
        session: SessionNo,
        id: &str,
        content: &str,
        mut delivery: Delivery,
        channel: &'static str,
    ) {
        let can = self.channels.get(channel).map(|it| it.capabilities()).unwrap_or_default();
        let content = Content::parse(content).and_then(|content| match content.lacks(can) {
            Some(what) => Err(format!("the channel {channel} has no {what}")),
            None => Ok(content),
        });
        match content {
            Err(reason) => return self.not_delivered(effect, DeliveryFault::Permanent, reason),
            Ok(content) => delivery.content = content,
        }
        delivery.content.strip_group(&state.directory().group);
        let names = std::mem::take(&mut delivery.content.files);
        if names.is_empty() {
            return self.hand_over(effect, delivery, channel);
        }
        let job = files::Copy {
            session: self.folder(state, session),
            id: id.to_owned(),
            names,
            into: self.data.files(channel, &delivery.chat),
            key: delivery.key.clone(),
            reserve: self.config.limits.disk_reserve,
        };
        self.copying.insert(effect, (delivery, channel));
        self.side.push(session, Side::Copy { effect, job: Box::new(job) });
    }

    /// The files of a delivery were copied.
    pub fn copied(&mut self, effect: EffectId, result: Result<Copied, String>) {
        let Some((mut delivery, channel)) = self.copying.remove(&effect) else { return };
        match result {
            Ok(Copied { files, skipped }) => {
                for it in &skipped {
                    let (name, key) = (&it.name, &delivery.key);
                    warn!(self.log, "a file was not sent: {}", it.reason; "file" => name, "delivery" => key);
                }
                (delivery.files, delivery.skipped) = (files, skipped);
                self.hand_over(effect, delivery, channel);
            }
            Err(reason) => self.not_delivered(effect, DeliveryFault::Transient, reason),
        }
    }

    fn hand_over(&mut self, effect: EffectId, mut delivery: Delivery, channel: &'static str) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        delivery.ticket = ticket;
        self.tickets.insert(ticket, effect);
        self.on_channel(channel, |channel| channel.deliver(delivery));
    }
}

/// Who sent an arrival (contract 11).
fn sender_of(content: &str) -> String {
    let json: Value = serde_json::from_str(content).unwrap_or(Value::Null);
    json.get("senderId").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The `question_response` for an option (contract 11). Compact: runners look for its parts as text.
fn answer_content(question: &str, option: u16, user: &str) -> Result<String, String> {
    let Form::Question(question) = Content::parse(question)?.form else {
        return Err("its row is no question any more".into());
    };
    let choice =
        question.options.get(usize::from(option)).ok_or("its question has no such option any more")?;
    let response = json!({
        "type": "question_response", "questionId": question.id, "selectedOption": choice.value, "userId": user,
    });
    Ok(response.to_string())
}
