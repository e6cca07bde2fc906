//! Looks and claims: from rows of inbound.db to what the machine needs of them, and to the texts that are kept.

use std::collections::{BTreeMap, BTreeSet};

use lamplighter::base::Wall;
use lamplighter::session::{InboundRow, timestamp};

use super::Runner;
use crate::content::{Command, Message};
use crate::desk::{Fault, late_answer};
use crate::machine::{Effect, Form, Input, Row};
use crate::pending;

/// Rows of the system that are no answers to questions are left to their tools for so long.
const SYSTEM_PATIENCE: lamplighter::base::Ms = lamplighter::base::Ms::minutes(2);
impl Runner {
    /// Reads what is pending, and with it what an answer will need.
    pub(super) fn look(&mut self, now: Wall) -> Result<Input, Fault> {
        let read = self.read_pending(now).and_then(|found| {
            self.desk.destinations = self.desk.inbound.destinations()?;
            self.desk.max_seq = self.desk.inbound.max_seq()?;
            Ok((found, self.desk.open_questions()?))
        });
        let (found, questions) = match read {
            Ok(read) => read,
            Err(fault @ Fault::Inbound(_)) => {
                self.complain(&fault);
                return Ok(Input::LookFailed);
            }
            Err(fault) => return Err(fault),
        };
        self.complained_at = None;
        let held = self.machine.working().claimed;
        let to_settle = self.effects.iter().flat_map(|effect| match effect {
            Effect::Settle { rows, .. } => rows.as_slice(),
            _ => &[],
        });
        let needed: BTreeSet<&String> = held.iter().chain(to_settle).collect();
        self.messages.retain(|id, _| needed.contains(id));
        self.system.clear();
        let all = found.all;
        let row = |row| match row {
            pending::Found::Whole(row) => self.facts_of(*row, &questions, now),
            pending::Found::Context(row) => Row {
                due: due(row.process_after.as_deref()),
                trigger: false,
                on_wake: false,
                tries: u32::try_from(row.tries).unwrap_or(0),
                form: Form::Plain,
                id: row.id,
            },
        };
        Ok(Input::Looked { rows: found.rows.into_iter().map(row).collect(), all })
    }

    fn read_pending(&mut self, now: Wall) -> Result<pending::Pending, Fault> {
        let (machine, desk) = (&self.machine, &mut self.desk);
        let can_start = |row: &InboundRow| {
            row.trigger && row.kind != "system" && row.is_due(now) && machine.held_until(&row.id, now) <= now
        };
        pending::read(&mut desk.inbound, &desk.outbound, machine.takes(), &can_start)
    }

    /// Claims rows and fails others. The texts of context rows are read only now: few of many are needed.
    pub(super) fn claim(
        &mut self,
        ids: &[String],
        mut failed: Vec<(String, String)>,
        omitted: &[String],
        now: Wall,
    ) -> Result<Input, Fault> {
        let mut usable = Vec::new();
        for id in ids {
            if !self.messages.contains_key(id) {
                // One that is gone was the host's to take away.
                let Some(row) = self.desk.inbound.by_id(id)? else { continue };
                match Message::read(row) {
                    Ok(message) => drop(self.messages.insert(id.clone(), message)),
                    Err(reason) => {
                        failed.push((id.clone(), reason));
                        continue;
                    }
                }
            }
            usable.push(id.clone());
        }
        for (id, reason) in &failed {
            self.log.warn("a message cannot be used", &[("id", id), ("reason", reason)]);
        }
        if !omitted.is_empty() {
            self.log.info("context was left out of the prompt", &[("rows", &omitted.len())]);
        }
        let ids = self.desk.claim(&usable, &failed, omitted, self.facts(now), now)?;
        Ok(Input::Claimed { ids })
    }

    /// What the machine needs of a row; its text stays here.
    fn facts_of(&mut self, row: InboundRow, questions: &BTreeMap<String, Wall>, now: Wall) -> Row {
        let mut facts = Row {
            id: row.id.clone(),
            trigger: row.trigger,
            due: due(row.process_after.as_deref()),
            on_wake: row.on_wake,
            tries: u32::try_from(row.tries).unwrap_or(0),
            form: Form::Plain,
        };
        if row.kind == "system" {
            let until = match late_answer(&row) {
                Some((question, _)) => questions.get(&question).copied(),
                None => row.at().map(|at| at + SYSTEM_PATIENCE),
            };
            facts.due = until.filter(|until| *until > now);
            facts.form = if facts.due.is_some() { Form::Awaited } else { Form::Unclaimed };
            self.system.insert(row.id.clone(), row);
            return facts;
        }
        match Message::read(row) {
            Ok(message) => {
                facts.form = match message.command() {
                    Some(Command::Clear) => Form::Clear,
                    Some(Command::Provider) => Form::Command,
                    None if message.script().is_some() => Form::Script,
                    None => Form::Plain,
                };
                self.messages.insert(facts.id.clone(), message);
            }
            Err(reason) => facts.form = Form::Unusable(reason),
        }
        facts
    }
}

/// When a row may be worked on, as it says; `None` for a time that cannot be read.
fn due(process_after: Option<&str>) -> Option<Wall> {
    process_after.map_or(Some(Wall::default()), timestamp::parse)
}
