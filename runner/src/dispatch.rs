//! From the text of an answer to the rows that it asks for (contract 12.1).
//!
//! Invariant: every block becomes a row or a line in the log; nothing is dropped without one.
//! Invariant: an inbound.db that cannot be read now does not hold an answer back: the rows of the turn say enough.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use lamplighter::base::Wall;
use lamplighter::session::rows::MAX_CONTENT_BYTES;
use lamplighter::session::runner_side::InboundReader;
use lamplighter::session::{Address, Destination, InboundRow, NewOutbound, ids};
use serde_json::json;

use crate::address;
use crate::blocks::{self, Block};
use crate::launch::epoch_ms;
use crate::log::Log;
use crate::machine::Said;

/// Most messages that one answer may send. The host takes at most 256 rows of a session at a time; a longer answer is
/// an agent in a loop.
const MAX_BLOCKS: usize = 64;

/// What decisions need of the text of an answer.
pub fn said(text: Option<&str>, destinations: &[Destination], by_tool: bool, local_command: bool) -> Said {
    let text = text.unwrap_or_default();
    let parsed = blocks::parse(text);
    let known = |block: &&Block<'_>| destinations.iter().any(|known| known.name == block.to);
    let messages = parsed.blocks.iter().filter(|block| known(block) && !block.body.is_empty()).count();
    let unknown = parsed.blocks.iter().filter(|block| !known(block)).count();
    // A block with nothing in it is no more than no text.
    let empty = text.trim().is_empty() || (messages + unknown == 0 && !parsed.blocks.is_empty());
    Said { messages, unknown, bare: parsed.bare_chars > 0, by_tool, empty, local_command }
}

/// With what answers are addressed.
pub struct Sender<'a> {
    /// The host's file, for threads of chats that are no part of the turn.
    pub inbound: &'a mut InboundReader,
    /// Where names lead.
    pub destinations: &'a [Destination],
    /// The rows that the answer covers, oldest first.
    pub rows: &'a [&'a InboundRow],
    /// The time of the rows that are made.
    pub now: Wall,
    /// Where lines go.
    pub log: Log,
}

impl Sender<'_> {
    /// The rows for the blocks of a text.
    pub fn blocks(&mut self, text: &str) -> Vec<NewOutbound> {
        let parsed = blocks::parse(text);
        if parsed.bare_chars > 0 {
            let fields: [(&str, &dyn std::fmt::Display); 2] =
                [("blocks", &parsed.blocks.len()), ("chars", &parsed.bare_chars)];
            self.log.info("text outside of blocks is not sent", &fields);
        }
        if parsed.blocks.len() > MAX_BLOCKS {
            let fields: [(&str, &dyn std::fmt::Display); 2] =
                [("blocks", &parsed.blocks.len()), ("most", &MAX_BLOCKS)];
            self.log.warn("the answer has too many messages; the last are not sent", &fields);
        }
        let destinations = self.destinations;
        let mut messages = Vec::new();
        for block in parsed.blocks.iter().take(MAX_BLOCKS) {
            match destinations.iter().find(|destination| destination.name == block.to) {
                Some(_) if block.body.is_empty() => {
                    self.log.warn("a message without text is not sent", &[("to", &shown(block.to))]);
                }
                Some(destination) => {
                    let chat = address::chat_of(&destination.target);
                    messages.push(self.answer(chat, block.body));
                }
                None => self.log.warn(
                    "a message to an unknown destination is not sent",
                    &[("to", &shown(block.to)), ("known", &destinations.len())],
                ),
            }
        }
        messages
    }

    fn answer(&mut self, chat: (&str, &str), text: &str) -> NewOutbound {
        let newest = address::newest_in(self.rows.iter().copied(), chat).cloned();
        let newest = newest.or_else(|| match self.inbound.newest_of(chat.0, chat.1) {
            Ok(found) => found,
            Err(error) => {
                self.log.warn("the thread of a chat is not known; sending without", &[("reason", &error)]);
                None
            }
        });
        let first = || self.rows.first().map(|row| row.id.clone());
        let (thread, in_reply_to) =
            newest.map_or_else(|| (None, first()), |row| (row.address.thread_id, Some(row.id)));
        message(Address::new(chat.0, chat.1, thread), in_reply_to, text, self.now)
    }
}

/// A row that answers `row` where it came from.
pub fn reply(row: &InboundRow, text: &str, now: Wall) -> NewOutbound {
    message(row.address.clone(), Some(row.id.clone()), text, now)
}

fn message(address: Address, in_reply_to: Option<String>, text: &str, now: Wall) -> NewOutbound {
    NewOutbound {
        id: ids::message(epoch_ms(now), random()),
        in_reply_to,
        deliver_after: None,
        kind: "chat".to_owned(),
        address,
        content: content(text),
    }
}

/// `{"text": …}`; a text that would make the row too large is cut, and says so.
fn content(body: &str) -> String {
    let whole = json!({ "text": body }).to_string();
    if whole.len() <= MAX_CONTENT_BYTES {
        return whole;
    }
    let mut end = body.len();
    loop {
        // A quarter less each time: escaping makes the row's size unlike the text's.
        end = body.floor_char_boundary(end - end / 4);
        let cut = body.get(..end).unwrap_or_default();
        let text = json!({ "text": format!("{cut}\n[cut: the message was too long]") }).to_string();
        if text.len() <= MAX_CONTENT_BYTES {
            return text;
        }
    }
}

/// A destination's name as the log may show it. It comes from the agent and could be anything.
fn shown(name: &str) -> &str {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    if name.len() <= 64 && name.chars().all(plain) { name } else { "[private]" }
}

/// A number for an id; ids need to differ, not to be secret.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamplighter::session::Target;

    #[test]
    fn a_text_that_is_too_long_is_cut_and_fits() {
        assert_eq!(content("a \"b\"\n"), r#"{"text":"a \"b\"\n"}"#);
        for long in ["ä".repeat(MAX_CONTENT_BYTES), "\u{1}".repeat(MAX_CONTENT_BYTES)] {
            let text = content(&long);
            assert!(text.len() <= MAX_CONTENT_BYTES && text.contains("[cut:"), "{}", text.len());
        }
    }

    #[test]
    fn a_name_is_shown_only_when_it_looks_like_one() {
        assert_eq!(shown("family"), "family");
        assert_eq!(shown("my secret plan"), "[private]");
        assert_eq!(shown(&"x".repeat(65)), "[private]");
    }

    #[test]
    fn an_answer_is_judged_by_what_of_it_can_be_sent() {
        let target = Target::Channel { channel_type: "tg".into(), platform_id: "7".into() };
        let known = [Destination { name: "a".into(), display_name: None, target }];
        let of = |text: &str| {
            let said = said(Some(text), &known, false, false);
            (said.messages, said.unknown, said.bare, said.empty)
        };
        assert_eq!(of("<message to=\"a\">x</message>"), (1, 0, false, false));
        assert_eq!(of("<message to=\"a\"> </message>"), (0, 0, false, true));
        assert_eq!(of("hm <message to=\"b\">x</message>"), (0, 1, true, false));
        assert_eq!(of("<internal>x</internal>"), (0, 0, false, false));
        assert_eq!(of(" \n"), (0, 0, false, true));
        let nothing = said(None, &known, true, true);
        assert_eq!(nothing, Said { by_tool: true, empty: true, local_command: true, ..Said::default() });
    }
}
