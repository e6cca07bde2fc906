//! Messages, files, edits, reactions and cards.

use lamplighter::session::{Address, ids};
use serde_json::{Value, json};

use super::arguments::{AddReaction, EditMessage, SendCard, SendFile, SendMessage};
use super::desk::{Desk, Feature, Target, row, said};
use super::{Done, Refusal, outbox};
use crate::dispatch::random;
use crate::launch::{epoch_ms, wall_now};

pub(super) fn send_message(desk: &mut Desk, call: SendMessage) -> Done {
    said(&call.text, "the text")?;
    let target = desk.target(call.to.as_deref())?;
    let seq = desk.send(&row(&target, "chat", &json!({ "text": call.text })))?;
    Ok(format!("Message sent to {} (id: {seq})", target.name))
}

pub(super) fn send_file(desk: &mut Desk, call: SendFile) -> Done {
    let target = desk.target(call.to.as_deref())?;
    desk.require(Feature::Files, &target.address)?;
    let id = ids::message(epoch_ms(wall_now()), random());
    let name = outbox::put(desk, &id, &call.path, call.filename.as_deref())?;
    let content = json!({ "text": call.text.unwrap_or_default(), "files": [&name] });
    let row = lamplighter::session::NewOutbound { id: id.clone(), ..row(&target, "chat", &content) };
    let sent = desk.send(&row);
    if sent.is_err() {
        outbox::discard(desk, &id, &name);
    }
    Ok(format!("File {name} sent to {} (id: {})", target.name, sent?))
}

pub(super) fn edit_message(desk: &mut Desk, call: EditMessage) -> Done {
    said(&call.text, "the text")?;
    let (message, address) = existing(desk, call.message_id)?;
    desk.require(Feature::Edits, &address)?;
    let content = json!({ "operation": "edit", "messageId": message, "text": call.text });
    let seq = desk.send(&row(&there(address), "chat", &content))?;
    Ok(format!("Edit of message {} sent (id: {seq})", call.message_id))
}

pub(super) fn add_reaction(desk: &mut Desk, call: AddReaction) -> Done {
    said(&call.emoji, "the emoji")?;
    let (message, address) = existing(desk, call.message_id)?;
    desk.require(Feature::Reactions, &address)?;
    let content = json!({ "operation": "reaction", "messageId": message, "emoji": call.emoji });
    let seq = desk.send(&row(&there(address), "chat", &content))?;
    Ok(format!("Reaction to message {} sent (id: {seq})", call.message_id))
}

pub(super) fn send_card(desk: &mut Desk, call: SendCard) -> Done {
    let target = desk.own_target("a card")?;
    desk.require(Feature::Cards, &target.address)?;
    let text = |key: &str| call.card.get(key).and_then(Value::as_str).unwrap_or_default().trim();
    let has_children =
        call.card.get("children").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if text("title").is_empty() && text("description").is_empty() && !has_children {
        return Err("the card is empty; give it a title, a description or children".into());
    }
    let content = json!({ "type": "card", "card": call.card, "fallbackText": call.fallback_text });
    let seq = desk.send(&row(&target, "chat-sdk", &content))?;
    Ok(format!("Card sent to {} (id: {seq})", target.name))
}

/// The platform's id and the place of the message with this number (contract 6).
fn existing(desk: &mut Desk, seq: i64) -> Result<(String, Address), Refusal> {
    if let Some(row) = desk.inbound.by_seq(seq)? {
        if row.address.chat().is_none() || ["task", "system"].contains(&row.kind.as_str()) {
            return Err(format!("{seq} is no message of a chat, so it has no edits and reactions").into());
        }
        return Ok((desk.platform_id(&row.id), row.address));
    }
    let Some((id, address)) = desk.outbound.by_seq(seq)? else {
        return Err(format!(
            "there is no message {seq}; ids are the numbers in prompts and of what was sent"
        )
        .into());
    };
    match desk.inbound.delivered(&id)? {
        None => Err(format!("message {seq} is not delivered yet; try again in a moment").into()),
        Some(done) if !done.delivered => Err(format!("message {seq} was not delivered").into()),
        Some(done) => match done.platform_message_id {
            Some(platform) => Ok((platform, address)),
            None => Err(format!("the platform gave message {seq} no id, so it cannot be changed").into()),
        },
    }
}

fn there(address: Address) -> Target {
    Target { address, name: String::new(), in_reply_to: None }
}
