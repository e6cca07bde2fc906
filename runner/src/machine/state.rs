//! What the turn loop knows, when it has to be woken, and what it does when nothing else is to be decided: looks,
//! claims, scripts, facts, the heartbeat and the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lamplighter::base::{At, Wall};

use super::batch::{self, Choice, Held, MAX_ROWS, Row, Rules};
use super::handed::{Handed, Together};
use super::turn::Group;
use super::{
    ANNOUNCE_WITHIN, BEAT, BEAT_THROTTLE, Effect, Input, LOOK_AGAIN, Now, STOP_GRACE, Settings, Verdict,
};
use crate::facts::{Tool, Working};

/// What is being claimed.
#[derive(Clone, Debug, Default)]
struct Claiming {
    rows: Vec<Row>,
    again: Option<Together>,
    omitted: usize,
    scripts: Vec<Row>,
    command: Option<Row>,
}

/// The state of the turn loop between two inputs.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) settings: Settings,
    pub(super) held: Held,
    /// What was handed over together, also by runs before.
    pub(super) handed: Handed,
    /// The on-wake rows that the first look saw (contract 9); `None` before it.
    woken: Option<BTreeSet<String>>,
    /// inbound.db may hold something that was not looked at.
    pub(super) look_wanted: bool,
    look_out: bool,
    look_at: Option<At>,
    /// When the next row that waits for a time is due.
    due: Option<Wall>,
    claiming: Option<Claiming>,
    /// Claimed tasks whose scripts wait, and the one that runs.
    scripts: VecDeque<Row>,
    script: Option<Row>,
    /// Rows that the provider has or is to have, in the order of their pushes.
    pub(super) groups: Vec<Group>,
    /// A query is open.
    pub(super) query: bool,
    /// The open query takes nothing more.
    pub(super) closing: bool,
    /// The next query begins a fresh conversation.
    pub(super) fresh: bool,
    /// A fresh conversation was tried since the last answer.
    pub(super) fresh_tried: bool,
    pub(super) nudges: u64,
    pub(super) tools: BTreeMap<String, Tool>,
    pub(super) provider_wait: Option<(Wall, String)>,
    /// Since when the facts are not what the file says.
    pub(super) unannounced: Option<At>,
    touched: Option<At>,
    /// Until when an unfinished turn may finish, once a stop was asked for.
    pub(super) stop: Option<At>,
    exited: bool,
}

impl State {
    /// A loop that has seen nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            held: Held::default(),
            handed: Handed::default(),
            woken: None,
            look_wanted: false,
            look_out: false,
            look_at: None,
            due: None,
            claiming: None,
            scripts: VecDeque::new(),
            script: None,
            groups: Vec::new(),
            query: false,
            closing: false,
            fresh: false,
            fresh_tried: false,
            nudges: 0,
            tools: BTreeMap::new(),
            provider_wait: None,
            unannounced: None,
            touched: None,
            stop: None,
            exited: false,
        }
    }

    /// Until when a message that was given back is left alone.
    pub fn held_until(&self, id: &str, wall: Wall) -> Wall {
        self.held.until(id, wall)
    }

    /// The tools in flight.
    pub fn tools(&self) -> impl Iterator<Item = &Tool> {
        self.tools.values()
    }

    /// Until when the provider waits for its service, and why.
    pub fn provider_wait(&self) -> Option<&(Wall, String)> {
        self.provider_wait.as_ref()
    }

    /// Whether the runner was asked to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Whether rows that can start a turn would be claimed by a look now; else the context before them is not needed.
    pub fn takes(&self) -> bool {
        self.stop.is_none() && (self.groups.is_empty() || self.settings.follow_ups)
    }

    /// The fact about what was handed over together.
    pub fn handed(&self) -> Option<String> {
        self.handed.fact()
    }

    /// When the next [`Input::Tick`] is needed: by the monotonic clock, and by the calendar's.
    pub fn deadlines(&self) -> (Option<At>, Option<Wall>) {
        let beat = self.is_busy().then_some(()).and(self.touched).map(|at| at + BEAT);
        let facts = self.unannounced.map(|since| since + ANNOUNCE_WITHIN);
        let look = self.look_at.filter(|_| self.stop.is_none());
        let at = [look, facts, beat, self.stop].into_iter().flatten().min();
        (at, self.due.filter(|_| self.stop.is_none()))
    }

    /// Whether the provider has something to answer.
    pub(super) fn is_busy(&self) -> bool {
        self.groups.iter().any(|group| group.is_handed())
    }

    pub(super) fn as_working(&self) -> Working {
        let ids = |wanted: &dyn Fn(&Group) -> bool| -> Vec<String> {
            let groups = self.groups.iter().filter(|group| wanted(group));
            groups.flat_map(Group::all_rows).map(|row| row.id.clone()).collect()
        };
        let others = self.script.iter().chain(&self.scripts).map(|row| row.id.clone());
        let mut claimed = ids(&|_| true);
        claimed.extend(others);
        Working { claimed, pushed: ids(&Group::is_handed), started: ids(&|group| group.started) }
    }
}

/// One step: the state, the time and the effects so far.
pub(super) struct Step<'a> {
    pub(super) state: &'a mut State,
    pub(super) now: Now,
    pub(super) effects: Vec<Effect>,
}

impl Step<'_> {
    pub(super) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn take(&mut self, input: Input) {
        match input {
            Input::Begun { handed } => {
                self.state.handed = handed;
                self.state.look_wanted = true;
                self.touch(false);
            }
            Input::Changed => self.state.look_wanted = true,
            Input::Looked { rows, all } => {
                self.state.look_out = false;
                self.looked(rows, all);
            }
            Input::LookFailed => {
                self.state.look_out = false;
                self.state.look_wanted = true;
                self.state.look_at = Some(self.now.at + LOOK_AGAIN);
            }
            Input::Claimed { ids } => self.claimed(&ids),
            Input::ScriptEnded { id, wake } => self.script_ended(&id, wake),
            Input::StopAsked => {
                let deadline = self.now.at + STOP_GRACE;
                if self.state.stop.is_none() {
                    self.state.stop = Some(deadline);
                    self.give_back_unbegun();
                }
            }
            Input::Tick => {}
            news => self.on_provider(news),
        }
    }

    /// Everything that follows from the state and the time alone.
    pub(super) fn advance(&mut self) {
        if self.state.exited {
            return;
        }
        if self.state.stop.is_some() {
            self.advance_stop();
        } else {
            self.advance_look();
            self.advance_scripts();
            self.advance_pushes();
        }
        if self.state.unannounced.is_some_and(|since| since + ANNOUNCE_WITHIN <= self.now.at) {
            self.announce();
        }
        if self.state.is_busy() && self.state.touched.is_none_or(|at| at + BEAT <= self.now.at) {
            self.touch(true);
        }
    }

    fn announce(&mut self) {
        self.state.unannounced = None;
        self.emit(Effect::Announce);
    }

    pub(super) fn touch(&mut self, if_alive: bool) {
        self.state.touched = Some(self.now.at);
        self.emit(Effect::Touch { if_alive });
    }

    /// A sign of life of the provider.
    pub(super) fn touch_for_news(&mut self) {
        if self.state.touched.is_none_or(|at| at + BEAT_THROTTLE <= self.now.at) {
            self.touch(false);
        }
    }

    fn advance_look(&mut self) {
        if self.state.due.is_some_and(|due| due <= self.now.wall) {
            self.state.due = None;
            self.state.look_wanted = true;
        }
        let waits = self.state.look_at.is_some_and(|at| at > self.now.at);
        if self.state.look_wanted && !self.state.look_out && !waits && self.state.claiming.is_none() {
            self.state.look_wanted = false;
            self.state.look_out = true;
            self.state.look_at = None;
            self.emit(Effect::Look);
        }
    }

    fn advance_scripts(&mut self) {
        if self.state.script.is_some() {
            return;
        }
        if let Some(row) = self.state.scripts.pop_front() {
            self.touch(false);
            self.emit(Effect::RunScript { id: row.id.clone() });
            self.state.script = Some(row);
        }
    }

    fn advance_stop(&mut self) {
        let deadline = self.state.stop.is_some_and(|deadline| deadline <= self.now.at);
        let idle = self.state.groups.is_empty() && self.state.claiming.is_none();
        if !(idle || deadline) {
            return;
        }
        // The messages first: a provider may take its time to end, and the host may not wait for it.
        let groups = std::mem::take(&mut self.state.groups);
        let how = if groups.is_empty() { Effect::EndQuery } else { Effect::AbortQuery };
        self.give_back_groups(groups, Vec::new());
        if std::mem::take(&mut self.state.query) {
            self.emit(how);
        }
        self.state.tools.clear();
        self.state.provider_wait = None;
        self.state.exited = true;
        self.emit(Effect::Exit);
    }

    /// What no agent has seen yet is given back at once.
    fn give_back_unbegun(&mut self) {
        let state = &mut *self.state;
        let mut rows = Vec::new();
        if let Some(script) = state.script.take() {
            rows.push(script);
            self.effects.push(Effect::KillScript);
        }
        rows.extend(state.scripts.drain(..));
        let (handed, waiting): (Vec<Group>, Vec<Group>) =
            std::mem::take(&mut state.groups).into_iter().partition(Group::is_handed);
        state.groups = handed;
        self.give_back_groups(waiting, rows);
    }

    /// Gives groups back, and other rows with them.
    fn give_back_groups(&mut self, groups: Vec<Group>, mut rows: Vec<Row>) {
        let of_groups: Vec<Row> = groups.into_iter().flat_map(Group::into_all_rows).collect();
        let ids: Vec<&str> = of_groups.iter().map(|row| row.id.as_str()).collect();
        self.state.handed.forget_unsent(&ids);
        rows.extend(of_groups);
        self.give_back(rows);
    }

    pub(super) fn give_back(&mut self, rows: Vec<Row>) {
        let verdict = |row: Row| Verdict {
            id: row.id,
            failed: false,
            class: "stopped",
            reason: "runner was asked to stop".to_owned(),
            not_before: None,
        };
        let verdicts: Vec<Verdict> = rows.into_iter().map(verdict).collect();
        if !verdicts.is_empty() {
            self.emit(Effect::Return { verdicts });
        }
    }

    fn looked(&mut self, mut rows: Vec<Row>, all: bool) {
        let state = &mut *self.state;
        let on_wake = rows.iter().filter(|row| row.on_wake).map(|row| row.id.clone());
        let woken = &*state.woken.get_or_insert_with(|| on_wake.collect());
        // The others are for the next runner.
        rows.retain(|row| !row.on_wake || woken.contains(&row.id));
        let ours = state.groups.iter().flat_map(Group::all_rows);
        let ours: Vec<&str> = ours.map(|row| row.id.as_str()).collect();
        if all {
            let scripts = state.scripts.iter().chain(&state.script).map(|row| row.id.as_str());
            let rows = rows.iter().filter(|row| row.due.is_some()).map(|row| row.id.as_str());
            let known: BTreeSet<&str> = rows.chain(ours.iter().copied()).chain(scripts).collect();
            state.held.retain(&known);
            state.handed.retain(known.into_iter());
        }
        if state.stop.is_some() {
            return;
        }
        let busy = !state.groups.is_empty();
        let handed = state.handed.without(&ours);
        let asked = state.scripts.len() + usize::from(state.script.is_some());
        let rules = Rules {
            max_triggers: state.settings.max_triggers,
            native_commands: state.settings.native_commands,
            follow_up: busy,
            handed: &handed,
            room: state.handed.room(asked).min(MAX_ROWS),
            room_for_scripts: &|rows| state.handed.room_for_singles(rows, asked),
        };
        let mut choice = batch::choose(rows, &state.held, rules, self.now.wall);
        state.due = choice.next_due;
        if busy && !state.settings.follow_ups {
            choice.rows.clear();
            choice.omitted.clear();
        }
        self.claim(choice);
    }

    fn claim(&mut self, choice: Choice) {
        let Choice { rows, again, omitted, command, mut scripts, unusable, unclaimed, .. } = choice;
        for id in unclaimed {
            self.emit(Effect::Consume { id });
        }
        if let Some(row) = command.as_ref().filter(|row| row.form == batch::Form::Clear) {
            if std::mem::take(&mut self.state.query) {
                self.emit(Effect::EndQuery);
            }
            self.state.closing = false;
            self.state.handed.conversation_over(&[]);
            self.emit(Effect::Clear { id: row.id.clone() });
            self.state.look_wanted = true;
            return;
        }
        if !self.state.scripts.is_empty() || self.state.script.is_some() {
            // One after the other; those that wait are better left to a host that may have another runner.
            scripts.clear();
        }
        let id = |row: &Row| row.id.clone();
        let ids: Vec<String> = rows.iter().chain(&scripts).chain(&command).map(id).collect();
        let failed: Vec<(String, String)> = unusable
            .into_iter()
            .filter_map(|row| match row.form {
                batch::Form::Unusable(reason) => Some((row.id, reason)),
                _ => None,
            })
            .collect();
        if ids.is_empty() && failed.is_empty() {
            return;
        }
        self.state.claiming = Some(Claiming { rows, again, omitted: omitted.len(), scripts, command });
        self.emit(Effect::Claim { ids, failed, omitted });
    }

    fn claimed(&mut self, ids: &[String]) {
        let Some(claiming) = self.state.claiming.take() else { return };
        // A tool may have acked one since the look; it is not ours any more.
        let claimed: BTreeSet<&String> = ids.iter().collect();
        let ours = |rows: Vec<Row>| -> Vec<Row> {
            rows.into_iter().filter(|row| claimed.contains(&row.id)).collect()
        };
        // There may be more than one batch can take.
        self.state.look_wanted = true;
        let (rows, scripts) = (ours(claiming.rows), ours(claiming.scripts));
        let command = claiming.command.filter(|row| claimed.contains(&row.id));
        if self.state.stop.is_some() {
            let all = rows.into_iter().chain(scripts).chain(command).collect();
            return self.give_back(all);
        }
        if !ids.is_empty() {
            self.touch(false);
        }
        self.state.scripts.extend(scripts);
        if let Some(row) = command {
            self.state.groups.push(Group::command(row));
        }
        if rows.iter().any(|row| row.trigger) {
            self.new_group(rows, claiming.omitted, claiming.again);
        } else {
            self.give_back(rows);
        }
    }

    fn new_group(&mut self, rows: Vec<Row>, omitted: usize, again: Option<Together>) {
        let group = Group::messages(rows, omitted, again);
        self.state.handed.add(&group.ids(), &group.trigger_ids(), omitted);
        self.state.groups.push(group);
    }

    fn script_ended(&mut self, id: &str, wake: bool) {
        let Some(row) = self.state.script.take_if(|row| row.id == id) else { return };
        self.touch(false);
        // Another look: what came meanwhile goes with it, and more scripts may wait.
        self.state.look_wanted = true;
        if wake {
            // A push of its own: what a script says is not kept, so a push with others could not be made again.
            self.new_group(vec![row], 0, None);
        } else {
            self.emit(Effect::Gate { id: row.id });
        }
    }
}
