//! The two files as tools use them: where a message goes, what it answers, and the one transaction that writes it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use lamplighter::base::Wall;
use lamplighter::session::rows::{FACT_TURN, FACT_WAIT, MAX_CONTENT_BYTES};
use lamplighter::session::runner_side::{InboundReader, OutboundTx, OutboundWriter};
use lamplighter::session::{AckStatus, Address, Destination, InboundRow, NewOutbound, ids};
use serde_json::Value;

use super::Refusal;
use crate::address;
use crate::config::{self, Config};
use crate::dispatch::random;
use crate::facts::{Waiting, Working};
use crate::launch::{RunError, epoch_ms, opening_for, wall_now};
use crate::log::Log;
use crate::options::Options;
use crate::prompt;

/// What a channel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    Edits,
    Reactions,
    Files,
    Questions,
    Cards,
}

impl Feature {
    /// The word in container.json.
    fn word(self) -> &'static str {
        match self {
            Self::Edits => "edits",
            Self::Reactions => "reactions",
            Self::Files => "files",
            Self::Questions => "questions",
            Self::Cards => "cards",
        }
    }
}

/// Where a message goes and what it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Channel, chat and thread.
    pub(super) address: Address,
    /// As the agent may be told.
    pub(super) name: String,
    /// The inbound message that it answers.
    pub(super) in_reply_to: Option<String>,
}

/// Both files, and what does not change.
pub(super) struct Desk {
    pub(super) inbound: InboundReader,
    pub(super) outbound: OutboundWriter,
    /// The agent's folder.
    pub(super) agent: PathBuf,
    /// Where outbox and databases are.
    pub(super) workspace: PathBuf,
    /// `in/`.
    pub(super) inside: PathBuf,
    /// inbound.db, for those who wait for its changes.
    pub(super) inbound_db: PathBuf,
    /// Where files to send are put.
    pub(super) outbox: PathBuf,
    /// In which times without an offset are meant.
    pub(super) zone: TimeZone,
    agent_group_id: Option<String>,
    capabilities: Value,
    /// Open questions that this process has put on record and has to take off again.
    asked: BTreeSet<String>,
    /// Whether the process ends, so that nobody would hear what a tool did.
    closed: bool,
}

impl Desk {
    /// Opens both files. Every write is fenced by the attempt that the runner gave.
    pub(super) fn open(options: &Options, log: Log) -> Result<Self, RunError> {
        if !options.workspace.is_dir() {
            return Err(RunError::NoFolder(options.workspace.clone()));
        }
        let folder = &options.folder;
        let candidates = [folder.container_json(), options.agent.join("container.json")];
        let config = Config::load(&candidates, log);
        Ok(Self {
            inbound: InboundReader::new(folder, opening_for(folder.in_dir())),
            outbound: OutboundWriter::open(folder, options.attempt.clone())?,
            agent: options.agent.clone(),
            workspace: options.workspace.clone(),
            inside: folder.in_dir().to_owned(),
            inbound_db: folder.inbound_db(),
            outbox: folder.outbox_root(),
            zone: prompt::zone(options.zone.as_deref()),
            agent_group_id: config.agent_group_id,
            capabilities: config::capabilities(&candidates),
            asked: BTreeSet::new(),
            closed: false,
        })
    }

    /// Where a message to `to` goes; without a name, where this session's own answers go (contract 12.2).
    pub(super) fn target(&mut self, to: Option<&str>) -> Result<Target, Refusal> {
        let routing = self.routing()?;
        let destinations = self.inbound.destinations()?;
        let names = || destinations.iter().map(|known| known.name.as_str()).collect::<Vec<_>>().join(", ");
        let address = match (to.filter(|name| !name.is_empty()), routing) {
            (None, Some(routing)) => routing,
            (None, None) => match destinations.as_slice() {
                [] => return Err("there is no destination to send to yet".into()),
                [only] => chat_of(only),
                _ => {
                    return Err(
                        format!("there are several destinations; name one in `to`: {}", names()).into()
                    );
                }
            },
            (Some(name), routing) => {
                let known = destinations.iter().find(|known| known.name == name);
                let known = known.ok_or_else(|| match destinations.is_empty() {
                    true => format!("there is no destination {name:?}, and no other either"),
                    false => format!("there is no destination {name:?}; there are: {}", names()),
                })?;
                let address = chat_of(known);
                match routing.filter(|routing| routing.chat() == address.chat()) {
                    Some(routing) => routing,
                    None => address,
                }
            }
        };
        self.at(address, &destinations)
    }

    /// Where a question or a card goes, which cannot name a destination: this session's own chat, else the only one.
    pub(super) fn own_target(&mut self, what: &str) -> Result<Target, Refusal> {
        let destinations = self.inbound.destinations()?;
        let address = match (self.routing()?, destinations.as_slice()) {
            (Some(routing), _) => routing,
            (None, [only]) => chat_of(only),
            (None, several) => {
                let names = several.iter().map(|known| known.name.as_str()).collect::<Vec<_>>().join(", ");
                let names = if names.is_empty() { "none".to_owned() } else { names };
                return Err(format!(
                    "this session has no chat of its own to send {what} to; write to a destination with send_message \
                     (there are: {names})"
                )
                .into());
            }
        };
        self.at(address, &destinations)
    }

    /// This session's own chat, or nowhere: what the host does by itself needs no chat (contract 12.2).
    pub(super) fn own_address(&mut self) -> Result<Address, Refusal> {
        Ok(self.routing()?.unwrap_or_default())
    }

    fn routing(&mut self) -> Result<Option<Address>, Refusal> {
        Ok(self.inbound.session_routing()?.filter(|routing| routing.chat().is_some()))
    }

    /// An address with its name, and with what a message to it answers.
    fn at(&mut self, address: Address, destinations: &[Destination]) -> Result<Target, Refusal> {
        let name = address::origin(&address, destinations).unwrap_or_else(|| "this chat".to_owned());
        let answered = self.answered(&address)?;
        // A thread of a chat that is not this session's own is that of the message which is answered there.
        let thread = match (&address.thread_id, &answered) {
            (None, Some(row)) if row.address.chat() == address.chat() => row.address.thread_id.clone(),
            (thread, _) => thread.clone(),
        };
        let in_reply_to = answered.map(|row| row.id);
        Ok(Target { address: Address { thread_id: thread, ..address }, name, in_reply_to })
    }

    /// The message in work that an answer to this chat belongs to: the newest that came from there, of those that the
    /// agent has taken up if there is one; else the first.
    fn answered(&mut self, to: &Address) -> Result<Option<InboundRow>, Refusal> {
        let fact = self.outbound.state(FACT_TURN)?.unwrap_or_default();
        let working = Working::read(&fact);
        let mut rows = Vec::new();
        for id in &working.claimed {
            rows.extend(self.inbound.by_id(id)?);
        }
        let (started, others): (Vec<InboundRow>, Vec<InboundRow>) =
            rows.into_iter().partition(|row| working.started.contains(&row.id));
        let newest = |rows: &[InboundRow]| to.chat().and_then(|chat| address::newest_in(rows, chat)).cloned();
        let newest = newest(&started).or_else(|| newest(&others));
        Ok(newest.or_else(|| started.into_iter().chain(others).next()))
    }

    /// Whether the channel of this address can do that. One of which nothing is known can.
    pub(super) fn require(&self, feature: Feature, address: &Address) -> Result<(), Refusal> {
        let channel = address.channel_type.as_deref().unwrap_or_default();
        let Some(list) = self.capabilities.get(channel).and_then(Value::as_array) else { return Ok(()) };
        match list.iter().any(|word| word == feature.word()) {
            true => Ok(()),
            false => {
                Err(format!("the channel {channel} has no {}; use a plain message", feature.word()).into())
            }
        }
    }

    /// The platform's own id of an inbound message.
    pub(super) fn platform_id(&self, id: &str) -> String {
        match &self.agent_group_id {
            Some(group) => ids::platform_part(id, group).to_owned(),
            None => id.to_owned(),
        }
    }

    /// Writes a row and returns its number, by which the other tools know it.
    pub(super) fn send(&mut self, row: &NewOutbound) -> Result<i64, Refusal> {
        self.write(row, |_| Ok(()))
    }

    /// Writes a row and whatever belongs to it in one transaction.
    pub(super) fn write(
        &mut self,
        row: &NewOutbound,
        also: impl FnOnce(&OutboundTx<'_>) -> Result<(), Refusal>,
    ) -> Result<i64, Refusal> {
        if self.closed {
            return Err("the tool server ends; nothing was done".into());
        }
        if row.content.len() > MAX_CONTENT_BYTES {
            return Err(
                format!("it is too long: at most {MAX_CONTENT_BYTES} bytes can be sent at once").into()
            );
        }
        let max_seq = self.inbound.max_seq()?;
        let seq = self.outbound.transaction(wall_now(), |tx| {
            let inserted = tx.insert(row, max_seq)?;
            also(tx)?;
            Ok::<i64, Refusal>(inserted.seq)
        })?;
        Ok(seq)
    }

    /// Writes a question, and the fact that it waits, in one transaction.
    pub(super) fn put_question(&mut self, row: &NewOutbound, now: Wall, until: Wall) -> Result<(), Refusal> {
        self.write(row, |tx| {
            let mut waiting = Waiting::read(tx.state(FACT_WAIT)?.as_deref());
            // Those of a server that was killed; the runner has taken their answers over.
            waiting.questions.retain(|_, until| *until > now);
            let open = waiting.questions.len();
            waiting.questions.insert(row.id.clone(), until);
            let fact = waiting.fact(now).unwrap_or_default();
            // A question that is not in the fact would lose its answer to the runner.
            if Waiting::read(Some(&fact)).questions.len() != waiting.questions.len() {
                return Err(
                    format!("{open} questions are open already; wait for the answer to one of them").into()
                );
            }
            Ok(tx.put_state(FACT_WAIT, &fact)?)
        })?;
        self.asked.insert(row.id.clone());
        Ok(())
    }

    /// Ends the wait for a question; with a row, that row is its answer and done with.
    pub(super) fn end_wait(&mut self, question: &str, answer: Option<&str>) -> Result<(), Refusal> {
        self.take_off(&BTreeSet::from([question.to_owned()]), answer)?;
        self.asked.remove(question);
        Ok(())
    }

    /// Ends every wait of this process, and whatever would begin later.
    pub(super) fn close(&mut self) -> Result<(), Refusal> {
        self.closed = true;
        let asked = std::mem::take(&mut self.asked);
        if asked.is_empty() { Ok(()) } else { self.take_off(&asked, None) }
    }

    fn take_off(&mut self, questions: &BTreeSet<String>, answer: Option<&str>) -> Result<(), Refusal> {
        let now = wall_now();
        self.outbound.transaction(now, |tx| {
            if let Some(id) = answer {
                tx.ack(id, AckStatus::Completed)?;
            }
            let mut waiting = Waiting::read(tx.state(FACT_WAIT)?.as_deref());
            waiting.questions.retain(|question, _| !questions.contains(question));
            match waiting.fact(now) {
                Some(fact) => tx.put_state(FACT_WAIT, &fact)?,
                None => drop(tx.delete_state(FACT_WAIT)?),
            }
            Ok(())
        })
    }
}

fn chat_of(destination: &Destination) -> Address {
    let (channel, chat) = address::chat_of(&destination.target);
    Address::new(channel, chat, None)
}

/// A row for a target.
pub(super) fn row(target: &Target, kind: &str, content: &Value) -> NewOutbound {
    NewOutbound {
        id: ids::message(epoch_ms(wall_now()), random()),
        in_reply_to: target.in_reply_to.clone(),
        deliver_after: None,
        kind: kind.to_owned(),
        address: target.address.clone(),
        content: content.to_string(),
    }
}

/// A text that must say something.
pub(super) fn said(text: &str, what: &str) -> Result<(), Refusal> {
    if text.trim().is_empty() { Err(format!("{what} is empty").into()) } else { Ok(()) }
}
