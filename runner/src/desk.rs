//! The files and what of them is kept in memory: rows that were read, rows that are claimed, the facts as written.
//!
//! Invariant: every change of outbound.db is one transaction that leaves the facts true.

use std::collections::{BTreeMap, BTreeSet};

use lamplighter::base::Wall;
use lamplighter::session::rows::{
    FACT_DESTINATIONS, FACT_LATE, FACT_PREFIX, FACT_PUSHES, FACT_TOOLS, FACT_TURN, FACT_WAIT, MAX_FACT_BYTES,
};
use lamplighter::session::runner_side::{
    InboundError, InboundReader, OutboundError, OutboundTx, OutboundWriter,
};
use lamplighter::session::{AckStatus, Destination, InboundRow, NewOutbound, ToolInFlight};
use serde_json::Value;

use crate::continuation;
use crate::facts::{self, Waiting};
use crate::log::Log;
use crate::machine::{State, Verdict};
use crate::prompt::LateAnswer;

/// Most late answers that wait for the next prompt.
const MAX_LATE: usize = 8;

/// Why a step could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// inbound.db.
    #[error(transparent)]
    Inbound(#[from] InboundError),
    /// outbound.db.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
}

impl Fault {
    /// Whether waiting is all that can be done: the host's file is the host's to mend, and locks pass.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Inbound(_) | Self::Outbound(OutboundError::Busy { .. }))
    }
}

/// The facts that the machine's state stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    turn: Option<String>,
    pushes: Option<String>,
    tools: Option<String>,
    tool: Option<ToolInFlight>,
    provider: Option<(Wall, String)>,
}

impl Facts {
    /// Reads them off the state.
    pub fn of(state: &State, now: Wall) -> Self {
        let working = state.working();
        let turn = (!working.claimed.is_empty()).then(|| working.fact(now));
        let mut tools = state.tools().peekable();
        // The one row of the contract names the tool that a host waits for longest.
        let tool = state.tools().max_by_key(|tool| tool.timeout);
        let tool = tool.map(|tool| ToolInFlight {
            name: tool.name.clone(),
            declared_timeout_ms: tool.timeout.map(|time| time.0),
            started_at: Some(lamplighter::session::timestamp::iso(tool.since)),
        });
        let tools = tools.peek().is_some().then(|| facts::tools(state.tools()));
        Self { turn, pushes: state.handed(), tools, tool, provider: state.provider_wait().cloned() }
    }

    /// Whether both say the same; when a fact was written does not matter.
    fn same_turn(&self, other: &Self) -> bool {
        let parts = |fact: &Option<String>| fact.as_deref().map(facts::Working::read);
        parts(&self.turn) == parts(&other.turn)
    }

    fn write(&self, before: &Self, now: Wall, tx: &OutboundTx<'_>) -> Result<(), OutboundError> {
        if !self.same_turn(before) {
            put(tx, FACT_TURN, self.turn.as_deref())?;
        }
        if self.pushes != before.pushes {
            put(tx, FACT_PUSHES, self.pushes.as_deref())?;
        }
        if self.tools != before.tools {
            put(tx, FACT_TOOLS, self.tools.as_deref())?;
        }
        if self.tool != before.tool {
            match &self.tool {
                Some(tool) => tx.set_tool(tool)?,
                None => tx.clear_tool()?,
            }
        }
        if self.provider != before.provider {
            let mut waiting = Waiting::read(tx.state(FACT_WAIT)?.as_deref());
            waiting.provider = self.provider.clone();
            put(tx, FACT_WAIT, waiting.fact(now).as_deref())?;
        }
        Ok(())
    }
}

fn put(tx: &OutboundTx<'_>, key: &str, value: Option<&str>) -> Result<(), OutboundError> {
    match value {
        Some(value) => tx.put_state(key, value),
        None => tx.delete_state(key).map(|_| ()),
    }
}

/// Both files, and what is known of them.
pub struct Desk {
    /// The host's file.
    pub inbound: InboundReader,
    /// Our own.
    pub outbound: OutboundWriter,
    /// Where lines go.
    pub log: Log,
    /// Whose continuation is kept.
    pub provider: String,
    /// Where names lead, as last read.
    pub destinations: Vec<Destination>,
    /// The greatest number in inbound.db, as last read.
    pub max_seq: i64,
    written: Facts,
    /// What scripts decided and is not on record yet.
    decided: Vec<(String, String)>,
    /// What the agent was told of and is not on record yet.
    told: Option<String>,
}

impl Desk {
    /// A desk that knows nothing yet; of the facts of outbound.db there is none but `pushes`.
    pub fn new(
        inbound: InboundReader,
        outbound: OutboundWriter,
        provider: String,
        pushes: Option<String>,
        log: Log,
    ) -> Self {
        Self {
            inbound,
            outbound,
            log,
            provider,
            destinations: Vec::new(),
            max_seq: 0,
            written: Facts { pushes, ..Facts::default() },
            decided: Vec::new(),
            told: None,
        }
    }

    /// Does `work` and writes the facts, in one transaction. `outcomes` are the facts about single messages that
    /// `work` writes; the oldest ones make room for them.
    fn write<T>(
        &mut self,
        facts: Facts,
        now: Wall,
        outcomes: usize,
        work: impl FnOnce(&OutboundTx<'_>) -> Result<T, OutboundError>,
    ) -> Result<T, Fault> {
        let adding = outcomes + self.decided.len();
        let existing = if adding > 0 { self.outbound.states_with_prefix(FACT_PREFIX)? } else { Vec::new() };
        let surplus = facts::to_prune(&existing, adding);
        let (before, decided, told) = (&self.written, &self.decided, &self.told);
        let done = self.outbound.transaction(now, |tx| {
            for key in &surplus {
                tx.delete_state(key)?;
            }
            for (key, value) in decided {
                tx.put_state(key, value)?;
            }
            if let Some(told) = told {
                tx.put_state(FACT_DESTINATIONS, told)?;
            }
            let done = work(tx)?;
            facts.write(before, now, tx)?;
            Ok::<T, OutboundError>(done)
        })?;
        self.decided.clear();
        self.told = None;
        self.written = facts;
        Ok(done)
    }

    /// Notes what a script decided; it is written with the next transaction.
    pub fn note_script(&mut self, id: &str, outcome: &str, reason: Option<&str>, now: Wall) {
        self.decided.push((facts::task_key(id), facts::task(outcome, reason, now)));
    }

    /// Notes which destinations the agent was told of; it is written with the next transaction. So many that they do
    /// not fit a fact are all told again after a restart.
    pub fn note_told(&mut self, names: &BTreeSet<String>) {
        let names = serde_json::json!({ "names": names }).to_string();
        self.told = Some(names).filter(|names| names.len() <= MAX_FACT_BYTES);
    }

    /// The destinations that the agent was told of in the conversation that is kept; `None` when nobody noted them.
    ///
    /// # Errors
    /// When outbound.db is locked or cannot be read.
    pub fn told(&self) -> Result<Option<BTreeSet<String>>, Fault> {
        let fact = self.outbound.state(FACT_DESTINATIONS)?;
        let value: Option<Value> = fact.and_then(|fact| serde_json::from_str(&fact).ok());
        let names = value.as_ref().and_then(|value| value.get("names")?.as_array());
        Ok(names.map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
    }

    /// Writes the facts alone, if they have changed.
    pub fn announce(&mut self, facts: Facts, now: Wall) -> Result<(), Fault> {
        if facts == self.written && self.decided.is_empty() {
            return Ok(());
        }
        self.write(facts, now, 0, |_| Ok(()))
    }

    /// Claims rows, fails others, and completes `omitted` unread. Returns those that are ours now. The fact of the turn
    /// names them although the machine hears of it later.
    pub fn claim(
        &mut self,
        ids: &[String],
        failed: &[(String, String)],
        omitted: &[String],
        mut facts: Facts,
        now: Wall,
    ) -> Result<Vec<String>, Fault> {
        let mut working = facts.turn.as_deref().map(facts::Working::read).unwrap_or_default();
        working.claimed.extend_from_slice(ids);
        if !working.claimed.is_empty() {
            facts.turn = Some(working.fact(now));
        }
        self.write(facts, now, failed.len(), |tx| {
            for (id, reason) in failed {
                let verdict = Verdict {
                    id: id.clone(),
                    failed: true,
                    class: "input",
                    reason: reason.clone(),
                    not_before: None,
                };
                write_verdict(&verdict, now, tx)?;
            }
            for id in omitted {
                tx.ack(id, AckStatus::Completed)?;
            }
            let claimed = tx.claim(ids)?;
            for id in &claimed {
                tx.delete_state(&facts::release_key(id))?;
            }
            Ok(claimed)
        })
    }

    /// Writes messages and completes rows. `told` are the late answers that the prompts of these rows named.
    pub fn settle(
        &mut self,
        messages: &[NewOutbound],
        completed: &[String],
        told: &[LateAnswer],
        facts: Facts,
        now: Wall,
    ) -> Result<(), Fault> {
        let max_seq = self.max_seq;
        self.write(facts, now, 0, |tx| {
            for message in messages {
                tx.insert(message, max_seq)?;
            }
            for id in completed {
                tx.ack(id, AckStatus::Completed)?;
            }
            if !told.is_empty() {
                let left = without(read_late(tx.state(FACT_LATE)?.as_deref()), told);
                let left = (!left.is_empty()).then(|| serde_json::to_string(&left).unwrap_or_default());
                put(tx, FACT_LATE, left.as_deref())?;
            }
            Ok(())
        })
    }

    /// Gives rows back or fails them.
    pub fn give_back(&mut self, verdicts: &[Verdict], facts: Facts, now: Wall) -> Result<(), Fault> {
        self.write(facts, now, verdicts.len(), |tx| {
            verdicts.iter().try_for_each(|verdict| write_verdict(verdict, now, tx))
        })
    }

    /// Forgets the conversation, and with `said` completes the command that asked for it.
    pub fn clear(
        &mut self,
        said: Option<(&InboundRow, NewOutbound)>,
        facts: Facts,
        now: Wall,
    ) -> Result<(), Fault> {
        let (key, max_seq) = (continuation::key(&self.provider), self.max_seq);
        self.write(facts, now, 0, |tx| {
            tx.delete_state(&key)?;
            if let Some((row, answer)) = &said {
                tx.insert(answer, max_seq)?;
                tx.ack(&row.id, AckStatus::Completed)?;
            }
            Ok(())
        })
    }

    /// The conversation to continue.
    pub fn continuation(&self) -> Result<Option<String>, Fault> {
        Ok(self.outbound.state(&continuation::key(&self.provider))?)
    }

    /// Keeps the conversation's token.
    pub fn keep_continuation(&mut self, token: &str, facts: Facts, now: Wall) -> Result<(), Fault> {
        let key = continuation::key(&self.provider);
        if self.outbound.state(&key)?.as_deref() == Some(token) {
            return Ok(());
        }
        self.write(facts, now, 0, |tx| tx.put_state(&key, token))
    }

    /// Acknowledges a row of the system. The answer to a question is kept for the next prompt.
    pub fn consume(&mut self, row: &InboundRow, facts: Facts, now: Wall) -> Result<(), Fault> {
        let late = match late_answer(row) {
            None => None,
            Some((question, answer)) => {
                let title = self.outbound.content_of(&question)?;
                let title = title.and_then(|content| title_of(&content)).unwrap_or(question);
                Some(LateAnswer { title, answer })
            }
        };
        let is_late = late.is_some();
        let is_ours = self.write(facts, now, 0, |tx| {
            // The tool that waits may have taken it between the look and now.
            if tx.claim(&[&row.id])?.is_empty() {
                return Ok(false);
            }
            tx.ack(&row.id, AckStatus::Completed)?;
            let Some(late) = late else { return Ok(true) };
            let mut all = read_late(tx.state(FACT_LATE)?.as_deref());
            all.push(late);
            let surplus = all.len().saturating_sub(MAX_LATE);
            all.drain(..surplus);
            let mut text = serde_json::to_string(&all).unwrap_or_default();
            while text.len() > MAX_FACT_BYTES && !all.is_empty() {
                all.remove(0);
                text = serde_json::to_string(&all).unwrap_or_default();
            }
            tx.put_state(FACT_LATE, &text)?;
            Ok(true)
        })?;
        if !is_ours {
            return Ok(());
        }
        let what =
            if is_late { "an answer came after its question had timed out" } else { "nobody waits for it" };
        self.log.info("a row of the system is done with", &[("id", &row.id), ("reason", &what)]);
        Ok(())
    }

    /// The late answers that no prompt has told of.
    pub fn late(&self) -> Result<Vec<LateAnswer>, Fault> {
        Ok(read_late(self.outbound.state(FACT_LATE)?.as_deref()))
    }

    /// Takes every question off the record: the tools that wait for answers have ended with their query.
    ///
    /// # Errors
    /// When outbound.db is locked or cannot be written.
    pub fn end_questions(&mut self, facts: Facts, now: Wall) -> Result<(), Fault> {
        if self.open_questions()?.is_empty() {
            return Ok(());
        }
        self.write(facts, now, 0, |tx| {
            let mut waiting = Waiting::read(tx.state(FACT_WAIT)?.as_deref());
            waiting.questions.clear();
            put(tx, FACT_WAIT, waiting.fact(now).as_deref())
        })
    }

    /// The questions that a tool waits for, and until when.
    pub fn open_questions(&self) -> Result<BTreeMap<String, Wall>, Fault> {
        Ok(Waiting::read(self.outbound.state(FACT_WAIT)?.as_deref()).questions)
    }
}

fn write_verdict(verdict: &Verdict, now: Wall, tx: &OutboundTx<'_>) -> Result<(), OutboundError> {
    let Verdict { id, failed, class, reason, not_before } = verdict;
    if *failed {
        tx.ack(id, AckStatus::Failed)?;
        tx.delete_state(&facts::release_key(id))?;
        return tx.put_state(&facts::failed_key(id), &facts::failed(class, reason, now));
    }
    tx.release(id)?;
    tx.put_state(&facts::release_key(id), &facts::release(class, reason, *not_before, now))
}

/// What is left of late answers when these are taken out, each once.
pub fn without(mut late: Vec<LateAnswer>, told: &[LateAnswer]) -> Vec<LateAnswer> {
    for told in told {
        if let Some(at) = late.iter().position(|late| late == told) {
            late.remove(at);
        }
    }
    late
}

fn read_late(fact: Option<&str>) -> Vec<LateAnswer> {
    fact.and_then(|fact| serde_json::from_str(fact).ok()).unwrap_or_default()
}

/// Longest part of a late answer that is kept, in characters.
const MAX_LATE_CHARS: usize = 200;

fn short(text: &str) -> String {
    text.chars().take(MAX_LATE_CHARS).collect()
}

/// Question and answer of a row of the system that is one (contract 11).
pub fn late_answer(row: &InboundRow) -> Option<(String, String)> {
    let value: Value = serde_json::from_str(&row.content).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    (text("type")? == "question_response").then_some(())?;
    Some((text("questionId")?.to_owned(), short(text("selectedOption").unwrap_or_default())))
}

fn title_of(content: &str) -> Option<String> {
    let value: Value = serde_json::from_str(content).ok()?;
    value.get("title")?.as_str().map(short)
}

#[cfg(test)]
mod tests {
    use lamplighter::session::runner_side::Opening;
    use lamplighter::session::{SessionFolder, schema};

    use super::*;
    use crate::log::Level;

    #[test]
    fn an_answer_that_its_tool_has_taken_meanwhile_is_not_told_as_late()
    -> Result<(), Box<dyn std::error::Error>> {
        let root = tempfile::tempdir()?;
        let folder = SessionFolder::flat(root.path());
        schema::prepare_inbound(&rusqlite::Connection::open(folder.inbound_db())?)?;
        let inbound = InboundReader::new(&folder, Opening::Kept);
        let outbound = OutboundWriter::open(&folder, None)?;
        let mut desk = Desk::new(inbound, outbound, "mock".into(), None, Log::new(Level::Error));
        let answer = |id: &str| InboundRow {
            id: id.into(),
            kind: "system".into(),
            content: r#"{"type":"question_response","questionId":"q","selectedOption":"n"}"#.into(),
            ..InboundRow::default()
        };
        // The look found both; then the tool took the first.
        desk.outbound.transaction::<_, OutboundError>(Wall(0), |tx| tx.ack("a", AckStatus::Completed))?;
        desk.consume(&answer("a"), Facts::default(), Wall(0))?;
        assert_eq!(desk.late()?, []);
        desk.consume(&answer("b"), Facts::default(), Wall(0))?;
        assert_eq!(desk.late()?.len(), 1);
        assert!(desk.outbound.is_acked("b")?);
        Ok(())
    }
}
