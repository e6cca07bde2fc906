//! Writes the prompt of a turn: a header, then the messages as elements, in groups by kind.
//!
//! Form and attribute order are NanoClaw's, so that an agent taught by its instructions reads them. Two differences:
//! the bodies of tasks, webhooks and the system and the kinds of attachments are escaped too, so that a payload cannot
//! pose as a message; and the path of an attachment is shown only when it lies in the workspace.
//!
//! Invariant: every text from outside passes through [`escape`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use lamplighter::base::Wall;
use lamplighter::session::Destination;
use serde::{Deserialize, Serialize};

use crate::address;
use crate::content::{Attachment, Body, Chat, Message};
use crate::json::Json;

/// What a provider is given for a turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The text for the agent.
    pub text: String,
    /// The messages that started the turn, oldest first, for providers that do not read the text.
    pub triggers: Vec<Trigger>,
}

/// A message that may start a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The name of where it came from; `None` when it has no address.
    pub from: Option<String>,
    /// What it says.
    pub text: String,
}

/// What goes into a prompt beside its messages.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// So many context messages were left out because there were too many.
    pub omitted: usize,
    /// What the scripts of tasks said, by message id.
    pub scripts: BTreeMap<String, Json>,
    /// Answers to questions whose tool had stopped waiting.
    pub late: Vec<LateAnswer>,
    /// The names of destinations that the agent was not told of yet.
    pub added: Vec<String>,
}

/// An answer that came after its question had timed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateAnswer {
    /// The question's title.
    pub title: String,
    /// The option that was chosen.
    pub answer: String,
}

/// Turns messages into prompts, in one time zone.
#[derive(Clone, Debug)]
pub struct Formatter {
    zone: TimeZone,
    zone_name: String,
}

/// The zone that `TZ` names, else the system's, else UTC. An unknown name is skipped.
pub fn zone(name: Option<&str>) -> TimeZone {
    let named = name.filter(|name| !name.is_empty()).and_then(|name| TimeZone::get(name).ok());
    let system = || TimeZone::try_system().ok().filter(|zone| zone.iana_name().is_some());
    named.or_else(system).unwrap_or(TimeZone::UTC)
}

impl Formatter {
    /// Times in [`zone`].
    pub fn for_zone(name: Option<&str>) -> Self {
        let zone = zone(name);
        let zone_name = zone.iana_name().unwrap_or("UTC").to_owned();
        Self { zone, zone_name }
    }

    /// Writes the prompt of these messages.
    pub fn prompt(&self, messages: &[&Message], extras: &Extras, destinations: &[Destination]) -> Prompt {
        let mut text = format!("<context timezone=\"{}\" />\n", escape(&self.zone_name));
        // Writing to a String does not fail, here and below.
        if extras.omitted > 0 {
            let _ = writeln!(text, "<omitted earlier_messages=\"{}\" />", extras.omitted);
        }
        for name in &extras.added {
            let _ = writeln!(text, "<new_destination name=\"{}\" />", escape(name));
        }
        for late in &extras.late {
            let (title, answer) = (escape(&late.title), escape(&late.answer));
            let _ = writeln!(text, "<late_answer question=\"{title}\">{answer}</late_answer>");
        }
        let mut chats = Vec::new();
        let mut tasks = Vec::new();
        let mut webhooks = Vec::new();
        let mut system = Vec::new();
        for message in messages {
            let from = address::origin(&message.row.address, destinations);
            match &message.body {
                Body::Chat(chat) => chats.push(self.chat(message, chat, from.as_deref())),
                Body::Task { prompt, .. } => {
                    let script = extras.scripts.get(&message.row.id);
                    tasks.push(self.task(message, prompt, script, from.as_deref()));
                }
                Body::Webhook { source, event, payload } => {
                    let about = [("source", source.as_str()), ("event", event.as_str())];
                    webhooks.push(element("webhook", from.as_deref(), about, payload));
                }
                Body::System { action, status, result } => {
                    let about = [("action", action.as_str()), ("status", status.as_str())];
                    system.push(element("system_response", from.as_deref(), about, result));
                }
            }
        }
        let chats = match chats.len() {
            0 | 1 => chats,
            _ => vec![format!("<messages>\n{}\n</messages>", chats.join("\n"))],
        };
        let groups: Vec<String> = chats.into_iter().chain(tasks).chain(webhooks).chain(system).collect();
        text.push_str(&groups.join("\n\n"));
        Prompt { text, triggers: triggers(messages, destinations) }
    }

    fn chat(&self, message: &Message, chat: &Chat, from: Option<&str>) -> String {
        let mut out = String::from("<message");
        if let Some(seq) = message.row.seq {
            let _ = write!(out, " id=\"{seq}\"");
        }
        attribute(&mut out, "from", from);
        attribute(&mut out, "sender", Some(&chat.sender));
        attribute(&mut out, "time", Some(&self.time(message)));
        attribute(&mut out, "reply_to", chat.reply_to.as_deref());
        out.push('>');
        if let Some((sender, text)) = &chat.quoted {
            let (sender, text) = (escape(sender), escape(text));
            let _ = write!(out, "\n  <quoted_message from=\"{sender}\">{text}</quoted_message>\n");
        }
        out.push_str(&escape(&chat.text));
        for attachment in &chat.attachments {
            out.push('\n');
            out.push_str(&attachment_line(attachment));
        }
        out.push_str("</message>");
        out
    }

    fn task(&self, message: &Message, prompt: &str, script: Option<&Json>, from: Option<&str>) -> String {
        let mut out = String::from("<task");
        attribute(&mut out, "from", from);
        attribute(&mut out, "time", Some(&self.time(message)));
        out.push('>');
        if let Some(script) = script.filter(|script| script.is_truthy()) {
            let _ = write!(out, "Script output:\n{}\n\n", escape(&script.pretty()));
        }
        let _ = write!(out, "Instructions:\n{}</task>", escape(prompt));
        out
    }

    /// `Jun 15, 2026, 11:30 AM` in the zone; a time that cannot be read is shown as found.
    fn time(&self, message: &Message) -> String {
        let instant = message.row.at().and_then(|Wall(micros)| Timestamp::from_microsecond(micros).ok());
        instant.map_or_else(
            || message.row.timestamp.clone(),
            |instant| instant.to_zoned(self.zone.clone()).strftime("%b %-d, %Y, %-I:%M %p").to_string(),
        )
    }
}

fn triggers(messages: &[&Message], destinations: &[Destination]) -> Vec<Trigger> {
    let triggers = messages.iter().filter(|message| message.row.trigger);
    triggers
        .map(|message| Trigger {
            from: address::origin(&message.row.address, destinations),
            text: message.text().to_owned(),
        })
        .collect()
}

fn element(name: &str, from: Option<&str>, about: [(&str, &str); 2], body: &str) -> String {
    let mut out = format!("<{name}");
    attribute(&mut out, "from", from);
    for (key, value) in about {
        attribute(&mut out, key, Some(value));
    }
    let _ = write!(out, ">{}</{name}>", escape(body));
    out
}

fn attribute(out: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        let _ = write!(out, " {name}=\"{}\"", escape(value));
    }
}

fn attachment_line(attachment: &Attachment) -> String {
    let (kind, name) = (escape(&attachment.kind), escape(&attachment.name));
    match (&attachment.local_path, &attachment.url) {
        (Some(path), _) => format!("[{kind}: {name} — saved to /workspace/{}]", escape(path)),
        (None, Some(url)) => format!("[{kind}: {name} ({})]", escape(url)),
        (None, None) => format!("[{kind}: {name}]"),
    }
}

/// `&`, `<`, `>` and `"` as entities; the apostrophe stays.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;
