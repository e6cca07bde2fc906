//! What must hold of any input: the fuzz targets look for one that breaks it, and a plain test plays the corpus.

use std::collections::{BTreeMap, BTreeSet};

use lamplighter::base::Ms;
use lamplighter::session::InboundRow;
use lamplighter_runner::blocks;
use lamplighter_runner::content::{Body, Message};
use lamplighter_runner::json::Json;
use lamplighter_runner::prompt::{Extras, Formatter, Prompt};
use lamplighter_runner::provider::child::{Dialect, Effect, Exit};
use lamplighter_runner::provider::claude::wire::Wire;
use lamplighter_runner::provider::codex::wire::{Thread, Wire as CodexWire};
use lamplighter_runner::provider::{ProviderEvent, Push};
use uuid::Uuid;

const CLOSE: &str = "</message>";
const INTERNAL_CLOSE: &str = "</internal>";

/// The final text of an agent: blocks are slices of it, in order, and what is internal stays so.
pub fn blocks(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let parsed = blocks::parse(&text);
    let mut from = text.as_ptr() as usize;
    let end = from + text.len();
    for block in &parsed.blocks {
        assert!(!block.to.is_empty() && !block.to.contains('"'), "a name that no tag can have: {block:?}");
        assert!(!block.body.contains(CLOSE), "a body goes on behind its end: {block:?}");
        assert_eq!(block.body, block.body.trim(), "not trimmed");
        for part in [block.to, block.body] {
            let at = part.as_ptr() as usize;
            assert!(
                at >= from && at + part.len() <= end,
                "not a slice of the text, or out of order: {block:?}"
            );
            from = at + part.len();
        }
        let again = format!("<message to=\"{}\">{}</message>", block.to, block.body);
        assert_eq!(blocks::parse(&again).blocks, [*block], "not the same when written again");
    }
    let visible = text.chars().filter(|c| !c.is_whitespace()).count();
    assert!(parsed.bare_chars <= visible, "{} of {visible} stand outside", parsed.bare_chars);
    let inner = text.replace(INTERNAL_CLOSE, "");
    // What was cut out may have joined two halves to another closing tag.
    if !inner.contains(INTERNAL_CLOSE) {
        let hidden = format!("<internal>{inner}{INTERNAL_CLOSE}");
        let parsed = blocks::parse(&hidden);
        assert!(parsed.blocks.is_empty() && parsed.bare_chars == 0, "what is internal was sent: {parsed:?}");
    }
}

/// The content of a row of every kind: it is read or refused with a short reason, and in a prompt it opens no tag.
pub fn content(data: &[u8]) {
    let content = String::from_utf8_lossy(data);
    let formatter = Formatter::for_zone(Some("UTC"));
    // What a task's script said is shown as well, and is no less foreign.
    let said = Json::Text(content.clone().into_owned());
    let extras = Extras { scripts: BTreeMap::from([("m".to_owned(), said)]), ..Extras::default() };
    for kind in ["chat", "chat-sdk", "task", "webhook", "system", "telepathy"] {
        let row = InboundRow {
            id: "m".into(),
            seq: Some(2),
            kind: kind.into(),
            content: content.clone().into_owned(),
            timestamp: "2026-05-18T09:30:00.000Z".into(),
            trigger: true,
            ..InboundRow::default()
        };
        match Message::read(row) {
            Err(reason) => assert!(!reason.is_empty() && reason.chars().count() <= 200, "{reason}"),
            Ok(message) => {
                let quoted = matches!(&message.body, Body::Chat(chat) if chat.quoted.is_some());
                let prompt = formatter.prompt(&[&message], &extras, &[]).text;
                // The header, the element's two tags, and those of a quote.
                let tags = 3 + 2 * usize::from(quoted);
                assert_eq!(
                    prompt.matches('<').count(),
                    tags,
                    "a tag that the formatter did not write: {prompt}"
                );
            }
        }
    }
}

/// The lines of a claude process, see [`lines`].
pub fn claude(data: &[u8]) {
    let session = Uuid::from_u128(7);
    let wire = Wire::new(session, Uuid::from_u128(8), vec!["nanoclaw".into()], || 1_780_000_000);
    lines(wire, session, &String::from_utf8_lossy(data));
}

/// The lines of a codex process, see [`lines`]. When the first is `resumed`, the thread was there before.
pub fn codex(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let session = Uuid::from_u128(7);
    let rest = text.strip_prefix("resumed\n");
    let thread = Thread { id: rest.map(|_| session), folder: "/agent".into(), ..Thread::default() };
    let wire = CodexWire::new(thread, Uuid::from_u128(8), Ms::minutes(10), || 1_780_000_000);
    lines(wire, session, rest.unwrap_or(&text));
}

/// The lines of an agent's process, while four messages are pushed at lines that say `push`, the first before all: each
/// push is covered at most once, a tool that ends had begun, every line is a sign of life, and after an error there is
/// silence. `$U0` in a line stands for the uuid that was said first, `$S` for the conversation's.
fn lines(mut wire: impl Dialect, session: Uuid, text: &str) {
    let mut heard = Heard::default();
    heard.take(wire.open());
    heard.push(&mut wire);
    for line in text.split('\n') {
        if line == "push" {
            heard.push(&mut wire);
            continue;
        }
        let mut line = line.replace("$S", &session.to_string());
        for (n, uuid) in heard.uuids.iter().enumerate() {
            line = line.replace(&format!("$U{n}"), uuid);
        }
        let was_over = heard.is_over;
        assert_eq!(heard.take(wire.line(&line)), !was_over, "no sign of life, or one after the end: {line}");
        assert!(wire.tools().len() >= heard.tools.len(), "a tool in flight has no bound");
    }
    assert!(!(wire.is_waiting() && heard.is_over), "waits after the end");
    heard.take(wire.exited(&Exit::default(), 0));
    heard.take(wire.exited(&Exit::default(), 0));
}

/// What was heard of a dialect so far.
#[derive(Default)]
struct Heard {
    pushed: usize,
    uuids: Vec<String>,
    open: BTreeSet<String>,
    tools: BTreeSet<String>,
    is_over: bool,
}

impl Heard {
    fn push(&mut self, wire: &mut impl Dialect) {
        if self.pushed >= 4 || self.is_over {
            return;
        }
        let id = format!("p{}", self.pushed);
        self.pushed += 1;
        self.open.insert(id.clone());
        let effects = wire.push(Push { id, prompt: Prompt { text: "hi".into(), ..Prompt::default() } });
        self.take(effects);
    }

    /// Returns whether the runner was told anything.
    fn take(&mut self, effects: Vec<Effect>) -> bool {
        let mut told = false;
        for effect in effects {
            let event = match effect {
                Effect::Tell(event) => event,
                Effect::Write(line) => {
                    let own = line["uuid"].as_str().or(line["params"]["clientUserMessageId"].as_str());
                    self.uuids.extend(own.map(str::to_owned).filter(|_| self.uuids.len() < 8));
                    continue;
                }
            };
            assert!(!self.is_over, "after the end: {event:?}");
            told = true;
            match event {
                ProviderEvent::Started { id } => assert!(self.open.contains(&id), "{id} is not open"),
                ProviderEvent::ToolStarted { id, .. } => {
                    assert!(self.tools.insert(id.clone()), "{id} runs already")
                }
                ProviderEvent::ToolEnded { id } => assert!(self.tools.remove(&id), "{id} had not begun"),
                ProviderEvent::Result(answer) => {
                    for id in answer.covers {
                        assert!(self.open.remove(&id), "{id} is covered twice, or was never pushed");
                    }
                }
                ProviderEvent::Retrying { reason, .. } => assert!(reason.chars().count() <= 300, "{reason}"),
                ProviderEvent::Error(error) => {
                    assert!(error.reason.chars().count() <= 300, "{}", error.reason);
                    self.is_over = true;
                }
                _ => {}
            }
        }
        told
    }
}
