//! From a claimed group to its end: pushes, the provider's news, answers, nudges and errors.

use lamplighter::base::Wall;

use super::batch::{MAX_TRIES, Row};
use super::handed::{self, Together};
use super::state::Step;
use super::{Content, Effect, Input, Problem, Said, Spec, Verdict};
use crate::facts::Tool;
use crate::provider::{ErrorClass, TurnError};

/// How far a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not with the provider.
    Waiting,
    /// Offered to the open query, which has not said yet whether it takes it.
    Offered,
    /// With the provider.
    Pushed,
}

#[derive(Clone, Debug)]
enum Kind {
    Messages,
    Command,
    /// Asks again for what these groups were answered with.
    Nudge {
        parents: Vec<Group>,
        problem: Problem,
    },
}

/// Rows that go to the provider in one push.
#[derive(Clone, Debug)]
pub(super) struct Group {
    id: String,
    rows: Vec<Row>,
    /// How many context messages were left out.
    omitted: usize,
    kind: Kind,
    stage: Stage,
    pub(super) started: bool,
    /// Goes alone: its messages failed together with others.
    alone: bool,
}

impl Group {
    fn new(id: String, rows: Vec<Row>, kind: Kind) -> Self {
        Self { id, rows, omitted: 0, kind, stage: Stage::Waiting, started: false, alone: false }
    }

    /// A batch. Its id is made of the messages that start the turn, or is that of the push which they were before.
    pub(super) fn messages(rows: Vec<Row>, omitted: usize, again: Option<Together>) -> Self {
        let triggers = rows.iter().filter(|row| row.trigger).map(|row| row.id.as_str());
        let triggers: Vec<&str> = triggers.collect();
        let (id, omitted) = match again {
            Some(before) => (before.id(&triggers), before.omitted()),
            None => (handed::push_id(&triggers), omitted),
        };
        Self { omitted, ..Self::new(id, rows, Kind::Messages) }
    }

    pub(super) fn command(row: Row) -> Self {
        Self::new(row.id.clone(), vec![row], Kind::Command)
    }

    /// Whether the provider has it or is being asked to take it.
    pub(super) fn is_handed(&self) -> bool {
        self.stage != Stage::Waiting
    }

    fn parents(&self) -> &[Group] {
        match &self.kind {
            Kind::Nudge { parents, .. } => parents,
            _ => &[],
        }
    }

    /// Its rows and those that it asks again for.
    pub(super) fn all_rows(&self) -> Box<dyn Iterator<Item = &Row> + '_> {
        let parents = self.parents().iter().flat_map(Group::all_rows);
        Box::new(parents.chain(&self.rows))
    }

    /// The ids of its own rows.
    pub(super) fn ids(&self) -> Vec<&str> {
        self.rows.iter().map(|row| row.id.as_str()).collect()
    }

    /// The ids of those of its own rows that start the turn.
    pub(super) fn trigger_ids(&self) -> Vec<&str> {
        self.rows.iter().filter(|row| row.trigger).map(|row| row.id.as_str()).collect()
    }

    pub(super) fn into_all_rows(self) -> Vec<Row> {
        self.all_rows().cloned().collect()
    }

    fn triggers(&self) -> usize {
        self.all_rows().filter(|row| row.trigger).count()
    }

    fn spec(&self) -> Spec {
        let ids = || self.rows.iter().map(|row| row.id.clone());
        let content = match &self.kind {
            Kind::Messages => Content::Messages { ids: ids().collect(), omitted: self.omitted },
            Kind::Command => Content::Command { id: ids().next().unwrap_or_default() },
            Kind::Nudge { problem, .. } => Content::Nudge { problem: *problem },
        };
        Spec { id: self.id.clone(), content }
    }

    /// One group for each message that may start a turn, with the context before it.
    fn split(self) -> Vec<Group> {
        let mut groups = Vec::new();
        let mut rows = Vec::new();
        for row in self.into_all_rows() {
            let trigger = row.trigger;
            rows.push(row);
            if trigger {
                groups.push(Self { alone: true, ..Self::messages(std::mem::take(&mut rows), 0, None) });
            }
        }
        if let Some(last) = groups.last_mut() {
            last.rows.append(&mut rows);
        }
        groups
    }
}

impl Step<'_> {
    /// Hands over what waits, in order.
    pub(super) fn advance_pushes(&mut self) {
        while let Some(index) = self.next_push() {
            let Some(group) = self.state.groups.get_mut(index) else { return };
            let push = group.spec();
            if matches!(group.kind, Kind::Messages) {
                self.state.handed.add(&group.ids(), &group.trigger_ids(), group.omitted);
                self.state.handed.goes_out(&group.ids());
            }
            // The facts are written before it goes out.
            self.state.unannounced = None;
            if self.state.query {
                group.stage = Stage::Offered;
                self.emit(Effect::Push(push));
            } else {
                group.stage = Stage::Pushed;
                self.state.query = true;
                self.state.closing = false;
                let fresh = std::mem::take(&mut self.state.fresh);
                self.emit(Effect::Start { fresh, push });
            }
        }
    }

    /// The group that can be handed over now.
    fn next_push(&mut self) -> Option<usize> {
        let index = self.state.groups.iter().position(|group| !group.is_handed())?;
        let group = self.state.groups.get(index)?;
        let others = self.state.groups.iter().any(Group::is_handed);
        let goes_alone = group.alone
            || matches!(group.kind, Kind::Command)
            || self.state.groups.iter().any(|other| other.is_handed() && other.alone);
        let nudge = matches!(group.kind, Kind::Nudge { .. });
        if others && (goes_alone || self.state.closing || !(self.state.settings.follow_ups || nudge)) {
            return None;
        }
        if self.state.closing && std::mem::take(&mut self.state.query) {
            self.state.closing = false;
            self.emit(Effect::EndQuery);
            // What its tools have waited for nobody waits for now.
            self.state.look_wanted = true;
        }
        Some(index)
    }

    pub(super) fn on_provider(&mut self, news: Input) {
        match news {
            Input::Pushed { id, taken } => return self.pushed(&id, taken),
            Input::Failed(error) => return self.failed(error),
            _ => {}
        }
        self.touch_for_news();
        if !matches!(news, Input::Retrying { .. }) && self.state.provider_wait.take().is_some() {
            self.mark();
        }
        match news {
            Input::Init { continuation } => self.emit(Effect::KeepContinuation { continuation }),
            Input::Started { id } => {
                if let Some(group) = self.state.groups.iter_mut().find(|group| group.id == id) {
                    group.started = true;
                    // Tools read what they answer; with one push alone they need not be told which.
                    match self.state.groups.iter().filter(|group| group.is_handed()).count() {
                        0 | 1 => self.mark(),
                        _ => self.announce_now(),
                    }
                }
            }
            Input::ToolStarted { id, name, timeout } => {
                self.state.tools.insert(id, Tool { name, timeout, since: self.now.wall });
                self.announce_now();
            }
            Input::ToolEnded { id } if self.state.tools.remove(&id).is_some() => self.announce_now(),
            Input::Retrying { reason, wait } => {
                self.state.provider_wait = Some((self.now.wall + wait, reason));
                self.announce_now();
            }
            Input::Answered { answer, covers, said } => self.answered(answer, &covers, said),
            _ => {}
        }
    }

    /// The facts have changed; they are written with the next transaction, or soon.
    fn mark(&mut self) {
        self.state.unannounced.get_or_insert(self.now.at);
    }

    /// The host judges by these: it must not wait for them.
    fn announce_now(&mut self) {
        self.state.unannounced = None;
        self.emit(Effect::Announce);
    }

    fn pushed(&mut self, id: &str, taken: bool) {
        let Some(index) = self.state.groups.iter().position(|group| group.id == id && group.is_handed())
        else {
            return;
        };
        if taken {
            if let Some(group) = self.state.groups.get_mut(index) {
                group.stage = Stage::Pushed;
            }
            return;
        }
        let mut group = self.state.groups.remove(index);
        if matches!(group.kind, Kind::Nudge { .. }) {
            // Nobody is left to ask; what was answered stays answered.
            return self.settle(None, vec![group], false);
        }
        group.stage = Stage::Waiting;
        self.state.groups.insert(index, group);
        self.state.closing = true;
    }

    fn answered(&mut self, answer: u64, covers: &[String], said: Said) {
        self.state.fresh_tried = false;
        let groups = std::mem::take(&mut self.state.groups);
        let (covered, rest): (Vec<Group>, Vec<Group>) =
            groups.into_iter().partition(|group| group.is_handed() && covers.contains(&group.id));
        self.state.groups = rest;
        if !self.state.is_busy() && !self.state.tools.is_empty() {
            // A tool that outlives its turn is none that the host has to wait for.
            self.state.tools.clear();
            self.mark();
        }
        if covered.is_empty() {
            let speaks = said.messages > 0;
            return match speaks {
                true => self.settle(Some(answer), covered, false),
                false => self.emit(Effect::Forget { answer }),
            };
        }
        if said.local_command && covered.iter().all(|group| matches!(group.kind, Kind::Command)) {
            return self.settle(Some(answer), covered, true);
        }
        let asked_again = covered.iter().any(|group| matches!(group.kind, Kind::Nudge { .. }));
        let problem = said.problem().filter(|_| !asked_again && self.state.stop.is_none());
        match problem {
            Some(problem) => {
                self.emit(Effect::Forget { answer });
                self.nudge(covered, problem);
            }
            None => self.settle(Some(answer), covered, false),
        }
    }

    /// Asks once for the same again in a form that can be sent.
    fn nudge(&mut self, parents: Vec<Group>, problem: Problem) {
        self.state.nudges += 1;
        let of = parents.first().map(|group| group.id.as_str()).unwrap_or_default();
        let id = format!("nudge-{}-{}\n{of}", self.now.wall.0, self.state.nudges);
        self.state.groups.insert(0, Group::new(id, Vec::new(), Kind::Nudge { parents, problem }));
    }

    fn settle(&mut self, answer: Option<u64>, groups: Vec<Group>, raw: bool) {
        let mut rows = Vec::new();
        let mut pending = groups;
        while !pending.is_empty() {
            for group in std::mem::take(&mut pending) {
                rows.extend(group.rows.into_iter().map(|row| row.id));
                if let Kind::Nudge { parents, .. } = group.kind {
                    pending.extend(parents);
                }
            }
        }
        self.state.handed.forget(&rows.iter().map(String::as_str).collect::<Vec<_>>());
        self.state.unannounced = None;
        self.state.look_wanted = true;
        self.emit(Effect::Settle { answer, rows, raw });
    }

    fn failed(&mut self, error: TurnError) {
        if std::mem::take(&mut self.state.query) {
            self.emit(Effect::AbortQuery);
        }
        self.state.closing = false;
        self.state.look_wanted = true;
        self.state.tools.clear();
        self.state.provider_wait = None;
        let groups = std::mem::take(&mut self.state.groups);
        let (mut handed, waiting): (Vec<Group>, Vec<Group>) = groups.into_iter().partition(Group::is_handed);
        self.state.groups = waiting;
        match error.class {
            ErrorClass::SessionInvalid if !self.state.fresh_tried => {
                self.state.fresh_tried = true;
                self.state.fresh = true;
                self.emit(Effect::DropContinuation);
                for group in &mut handed {
                    (group.stage, group.started) = (Stage::Waiting, false);
                }
                handed.append(&mut self.state.groups);
                self.state.groups = handed;
                let in_use = self.state.groups.iter().flat_map(Group::all_rows);
                let in_use: Vec<&str> = in_use.map(|row| row.id.as_str()).collect();
                self.state.handed.conversation_over(&in_use);
            }
            ErrorClass::Permanent if handed.iter().map(Group::triggers).sum::<usize>() > 1 => {
                for group in &handed {
                    let rows: Vec<&str> = group.all_rows().map(|row| row.id.as_str()).collect();
                    self.state.handed.forget(&rows);
                }
                let mut alone: Vec<Group> = handed.into_iter().flat_map(Group::split).collect();
                alone.append(&mut self.state.groups);
                self.state.groups = alone;
                self.mark();
            }
            _ => self.return_all(handed, &error),
        }
    }

    fn return_all(&mut self, groups: Vec<Group>, error: &TurnError) {
        let rows: Vec<Row> = groups.into_iter().flat_map(Group::into_all_rows).collect();
        let verdicts: Vec<Verdict> = rows.iter().map(|row| self.verdict(row, error)).collect();
        self.state.unannounced = None;
        if verdicts.iter().all(|verdict| verdict.failed) {
            self.state.handed.forget(&rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>());
        }
        if !verdicts.is_empty() {
            self.emit(Effect::Return { verdicts });
        }
    }

    fn verdict(&mut self, row: &Row, error: &TurnError) -> Verdict {
        let class = error.class.word();
        let tries = row.tries.max(self.state.held.tries(&row.id));
        let given_up = self.state.settings.gives_up && row.trigger && tries >= MAX_TRIES;
        let (failed, reason) = match error.class {
            ErrorClass::Permanent => (true, error.reason.clone()),
            _ if given_up => (true, format!("given up after {tries} more tries: {}", error.reason)),
            _ => (false, error.reason.clone()),
        };
        let not_before: Option<Wall> =
            (!failed).then(|| self.state.held.hold(&row.id, error.retry_after, self.now.wall));
        Verdict { id: row.id.clone(), failed, class, reason, not_before }
    }
}
