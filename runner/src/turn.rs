//! One turn from its claim to the one transaction that ends it.
//!
//! Invariant: the rows of a result, the acks it earns, the facts and the continuation are one transaction.
//! Invariant: a claim ends as completed, failed, or released with its reason; never by being forgotten.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use lamplighter::base::Wall;
use lamplighter::session::rows::{FACT_PREFIX, FACT_TOOLS, FACT_TURN, MAX_CONTENT_BYTES};
use lamplighter::session::runner_side::{
    InboundError, InboundReader, OutboundError, OutboundTx, OutboundWriter,
};
use lamplighter::session::{AckStatus, Address, Destination, InboundRow, NewOutbound, ids};
use serde_json::json;

use crate::address;
use crate::batch::{Held, MAX_TRIES};
use crate::blocks::{self, Block};
use crate::facts;
use crate::launch::epoch_ms;
use crate::log::Log;
use crate::provider::{ErrorClass, Query, TurnError};

/// Most messages that one result may send. The host takes at most 256 rows of a session at a time; a longer
/// result is an agent in a loop.
const MAX_BLOCKS: usize = 64;

/// Why a step of a turn could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Inbound(#[from] InboundError),
    #[error(transparent)]
    Outbound(#[from] OutboundError),
}

impl Fault {
    /// Whether waiting is all that can be done: the host's file is the host's to mend, and locks pass.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Inbound(_) | Self::Outbound(OutboundError::Busy { .. }))
    }
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With what the agent said.
    Result(Option<String>),
    /// With an error of the provider.
    Failed(TurnError),
    /// Because the runner was asked to end.
    Stopped,
}

/// A turn that is claimed.
pub(crate) struct Turn {
    /// Its rows, oldest first.
    pub(crate) rows: Vec<InboundRow>,
    /// Context rows that found no place in the prompt; they end with it.
    pub(crate) omitted: Vec<String>,
    /// The provider's side; `None` when it could not begin.
    pub(crate) query: Option<Box<dyn Query>>,
    /// The token that the provider gave in this turn.
    pub(crate) continuation: Option<String>,
    /// How it ended, while that is not on record.
    pub(crate) outcome: Option<Outcome>,
}

/// The files and what they are used with.
pub(crate) struct Desk<'a> {
    pub(crate) inbound: &'a mut InboundReader,
    pub(crate) outbound: &'a mut OutboundWriter,
    pub(crate) held: &'a mut Held,
    pub(crate) provider: &'a str,
    pub(crate) log: Log,
    pub(crate) now: Wall,
}

impl Turn {
    /// Puts an outcome on record.
    pub(crate) fn settle(&self, outcome: &Outcome, desk: &mut Desk<'_>) -> Result<(), Fault> {
        match outcome {
            Outcome::Result(text) => self.complete(text.as_deref(), desk),
            Outcome::Failed(error) => self.fail(error, desk),
            Outcome::Stopped => self.give_back(desk),
        }
    }

    fn complete(&self, text: Option<&str>, desk: &mut Desk<'_>) -> Result<(), Fault> {
        let (messages, max_seq) = match text {
            Some(text) => (self.answers(text, desk)?, desk.inbound.max_seq()?),
            None => {
                desk.log.warn("the result has no text; nothing is sent", &[]);
                (Vec::new(), 0)
            }
        };
        let continuation = self.continuation.as_deref().map(|token| (continuation_key(desk.provider), token));
        desk.outbound.transaction(desk.now, |tx| {
            for message in &messages {
                tx.insert(message, max_seq)?;
            }
            for id in self.rows.iter().map(|row| &row.id).chain(&self.omitted) {
                tx.ack(id, AckStatus::Completed)?;
            }
            if let Some((key, token)) = &continuation {
                tx.put_state(key, token)?;
            }
            end_of_turn(tx)
        })?;
        let (rows, sent) = (self.rows.len(), messages.len());
        desk.log
            .info("turn completed", &[("rows", &rows), ("sent", &sent), ("omitted", &self.omitted.len())]);
        Ok(())
    }

    /// The rows that a result's text asks for.
    fn answers(&self, text: &str, desk: &mut Desk<'_>) -> Result<Vec<NewOutbound>, Fault> {
        let parsed = blocks::parse(text);
        if parsed.blocks.is_empty() || parsed.bare_chars > 0 {
            let fields: [(&str, &dyn std::fmt::Display); 2] =
                [("blocks", &parsed.blocks.len()), ("chars", &parsed.bare_chars)];
            desk.log.info("text outside of blocks is not sent", &fields);
        }
        if parsed.blocks.len() > MAX_BLOCKS {
            let fields: [(&str, &dyn std::fmt::Display); 2] =
                [("blocks", &parsed.blocks.len()), ("most", &MAX_BLOCKS)];
            desk.log.warn("the result has too many messages; the last are not sent", &fields);
        }
        let destinations = desk.inbound.destinations()?;
        let mut messages = Vec::new();
        for block in parsed.blocks.iter().take(MAX_BLOCKS) {
            match destinations.iter().find(|destination| destination.name == block.to) {
                Some(_) if block.body.is_empty() => {
                    desk.log.warn("a message without text is not sent", &[("to", &shown(block.to))]);
                }
                Some(destination) => messages.push(self.answer(block, destination, desk)?),
                None => desk.log.warn(
                    "a message to an unknown destination is not sent",
                    &[("to", &shown(block.to)), ("known", &destinations.len())],
                ),
            }
        }
        Ok(messages)
    }

    fn answer(
        &self,
        block: &Block<'_>,
        destination: &Destination,
        desk: &mut Desk<'_>,
    ) -> Result<NewOutbound, Fault> {
        let chat = address::chat_of(&destination.target);
        let newest = match address::newest_in(&self.rows, chat) {
            Some(row) => Some(row.clone()),
            None => desk.inbound.newest_of(chat.0, chat.1)?,
        };
        let first = || self.rows.first().map(|row| row.id.clone());
        let (thread, in_reply_to) =
            newest.map_or_else(|| (None, first()), |row| (row.address.thread_id, Some(row.id)));
        Ok(NewOutbound {
            id: ids::message(epoch_ms(desk.now), random()),
            in_reply_to,
            deliver_after: None,
            kind: "chat".to_owned(),
            address: Address::new(chat.0, chat.1, thread),
            content: content(block.body),
        })
    }

    fn fail(&self, error: &TurnError, desk: &mut Desk<'_>) -> Result<(), Fault> {
        let class = error.class.word();
        let mut verdicts = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let tries = u32::try_from(row.tries).unwrap_or(0).max(desk.held.tries(&row.id));
            let given_up = row.trigger && tries >= MAX_TRIES;
            verdicts.push(match error.class {
                ErrorClass::Permanent => Verdict::fail(&row.id, class, &error.reason, desk.now),
                ErrorClass::Transient if given_up => {
                    let reason = format!("given up after {tries} more tries: {}", error.reason);
                    Verdict::fail(&row.id, class, &reason, desk.now)
                }
                ErrorClass::Transient => {
                    // Held even when the transaction fails: the wait is then longer, never shorter.
                    let until = desk.held.hold(&row.id, error.retry_after, desk.now);
                    Verdict::release(&row.id, class, &error.reason, Some(until), desk.now)
                }
            });
        }
        record(&verdicts, desk)?;
        desk.log.warn("turn failed", &[("class", &class), ("rows", &self.rows.len())]);
        Ok(())
    }

    fn give_back(&self, desk: &mut Desk<'_>) -> Result<(), Fault> {
        let reason = "runner was asked to stop";
        let release = |row: &InboundRow| Verdict::release(&row.id, "stopped", reason, None, desk.now);
        let verdicts: Vec<Verdict> = self.rows.iter().map(release).collect();
        record(&verdicts, desk)?;
        desk.log.info("turn abandoned; its messages were given back", &[("rows", &self.rows.len())]);
        Ok(())
    }
}

/// What becomes of a claim that earned no completion.
pub(crate) struct Verdict {
    id: String,
    failed: bool,
    key: String,
    value: String,
}

impl Verdict {
    /// Failed for good.
    pub(crate) fn fail(id: &str, class: &str, reason: &str, now: Wall) -> Self {
        let (key, value) = (facts::failed_key(id), facts::failed(class, reason, now));
        Self { id: id.to_owned(), failed: true, key, value }
    }

    fn release(id: &str, class: &str, reason: &str, not_before: Option<Wall>, now: Wall) -> Self {
        let (key, value) = (facts::release_key(id), facts::release(class, reason, not_before, now));
        Self { id: id.to_owned(), failed: false, key, value }
    }

    /// Writes ack and fact.
    pub(crate) fn write(&self, tx: &OutboundTx<'_>) -> Result<(), OutboundError> {
        if self.failed {
            tx.ack(&self.id, AckStatus::Failed)?;
            tx.delete_state(&facts::release_key(&self.id))?;
        } else {
            tx.release(&self.id)?;
        }
        tx.put_state(&self.key, &self.value)
    }
}

/// Ends a turn with these verdicts.
fn record(verdicts: &[Verdict], desk: &mut Desk<'_>) -> Result<(), Fault> {
    let existing = desk.outbound.states_with_prefix(FACT_PREFIX)?;
    let surplus = facts::to_prune(&existing, verdicts.len());
    desk.outbound.transaction(desk.now, |tx| {
        for key in &surplus {
            tx.delete_state(key)?;
        }
        for verdict in verdicts {
            verdict.write(tx)?;
        }
        end_of_turn(tx)
    })?;
    Ok(())
}

fn end_of_turn(tx: &OutboundTx<'_>) -> Result<(), OutboundError> {
    tx.delete_state(FACT_TURN)?;
    if tx.delete_state(FACT_TOOLS)? {
        tx.clear_tool()?;
    }
    Ok(())
}

/// Where the token of a provider's conversation is kept (contract 14).
pub(crate) fn continuation_key(provider: &str) -> String {
    format!("continuation:{provider}")
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
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
