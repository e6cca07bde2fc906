//! The loop: waits for one event, steps the machine, and does what it says.
//!
//! Invariant: effects are done in their order, but for the heartbeat's, which waits for nothing. A write that a lock
//! prevents is tried again before anything else is done; meanwhile the provider is not heard and waits, so that what is
//! to be done stays little.
//! Invariant: a host that is away, or a file of its that cannot be read, makes the runner wait, never end.

mod reading;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamplighter::base::{At, Wall};
use lamplighter::session::runner_side::OutboundError;
use lamplighter::session::{Address, InboundRow, SessionFolder};

use crate::addendum;
use crate::address::AGENT;
use crate::config::Config;
use crate::content::Message;
use crate::desk::{Desk, Facts, Fault, without};
use crate::dispatch::{self, Sender};
use crate::heartbeat;
use crate::json::Json;
use crate::launch::{RunError, wall_now};
use crate::log::Log;
use crate::machine::{Content, Effect, Handed, Input, Now, Settings, Spec, State};
use crate::mailbox::{Event, Mailbox};
use crate::prompt::{Extras, Formatter, LateAnswer, Prompt};
use crate::provider::{Answer, Opening, Provider, ProviderEvent, Push, Query};
use crate::script;
use crate::wake::policy::{Fingerprint, PollPolicy};
use crate::wake::watch::fingerprint;

/// Between two tries of a write that a lock prevents.
const RETRY: Duration = Duration::from_millis(250);
/// At most one log line about waiting in so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// Longest wait for a time of the calendar at once, so that a wall clock which was set makes a due time late by no
/// more.
const WALL_WAIT: Duration = Duration::from_secs(60);
/// A stop is not held up for longer than this by a lock: the claims then stand, and the host finds them.
const STOP_AT_MOST: Duration = Duration::from_secs(2);
/// What the loop works with.
pub struct Parts {
    /// The session's files.
    pub folder: SessionFolder,
    /// The agent's own folder.
    pub agent: PathBuf,
    /// What the host told.
    pub config: Config,
    /// Whether the host has numbered this start; it then counts tries itself.
    pub numbered: bool,
    /// What runs before have handed to their agent, and no answer has covered.
    pub handed: Handed,
    /// Where lines go.
    pub log: Log,
    /// What writes prompts.
    pub formatter: Formatter,
    /// Both files.
    pub desk: Desk,
    /// What wakes the loop.
    pub mailbox: Arc<Mailbox>,
    /// What makes answers.
    pub provider: Box<dyn Provider>,
}

/// The runner's state between two events.
pub struct Runner {
    folder: SessionFolder,
    agent: PathBuf,
    config: Config,
    log: Log,
    formatter: Formatter,
    desk: Desk,
    mailbox: Arc<Mailbox>,
    provider: Box<dyn Provider>,
    machine: State,
    begun: Instant,
    effects: VecDeque<Effect>,
    policy: PollPolicy,
    poll_at: Instant,
    /// Until when the effect at the head is not tried, because of a lock.
    retry_at: Option<Instant>,
    complained_at: Option<Instant>,
    stop_by: Option<Instant>,
    /// The usable rows of the last look, and the claimed ones.
    messages: BTreeMap<String, Message>,
    /// The rows of the system of the last look.
    system: BTreeMap<String, InboundRow>,
    /// What scripts said, by claimed task.
    scripts: BTreeMap<String, Json>,
    script: Option<script::Running>,
    query: Option<Box<dyn Query>>,
    answers: BTreeMap<u64, Option<String>>,
    last_answer: u64,
    /// The destinations that the open conversation was told of.
    told: BTreeSet<String>,
    /// What prompts that are not answered yet tell beside their messages, by the first of these.
    telling: BTreeMap<String, Telling>,
    /// The newest answer before the turn: what comes after it and is not ours was sent by a tool.
    rowid: i64,
}

/// What a prompt tells once. It is told when the prompt is answered; a prompt that fails has told nothing.
#[derive(Debug, Default)]
struct Telling {
    late: Vec<LateAnswer>,
    added: Vec<String>,
}

impl Runner {
    /// A runner that has not looked yet.
    pub fn new(parts: Parts) -> Self {
        let policy = PollPolicy::new(fingerprint(&parts.folder.inbound_db()).ok());
        let begun = Instant::now();
        let machine = State::new(Settings {
            max_triggers: parts.config.max_triggers,
            native_commands: parts.provider.native_commands(),
            follow_ups: parts.provider.follow_ups(),
            gives_up: !parts.numbered,
        });
        let mut runner = Self {
            folder: parts.folder,
            agent: parts.agent,
            config: parts.config,
            log: parts.log,
            formatter: parts.formatter,
            desk: parts.desk,
            mailbox: parts.mailbox,
            provider: parts.provider,
            machine,
            begun,
            effects: VecDeque::new(),
            poll_at: begun + policy.interval(),
            policy,
            retry_at: None,
            complained_at: None,
            stop_by: None,
            messages: BTreeMap::new(),
            system: BTreeMap::new(),
            scripts: BTreeMap::new(),
            script: None,
            query: None,
            answers: BTreeMap::new(),
            last_answer: 0,
            told: BTreeSet::new(),
            telling: BTreeMap::new(),
            rowid: 0,
        };
        runner.step(Input::Begun { handed: parts.handed });
        runner
    }

    /// Runs until asked to end.
    ///
    /// # Errors
    /// When outbound.db cannot be written or another runner has taken over.
    pub fn run(mut self) -> Result<(), RunError> {
        let done = self.run_loop();
        self.close_query(Query::abort);
        if let Some(script) = self.script.take() {
            script.end();
        }
        done
    }

    fn run_loop(&mut self) -> Result<(), RunError> {
        loop {
            if self.perform_all()? {
                self.log.info("ended as asked", &[]);
                return Ok(());
            }
            if self.stop_by.is_some_and(|by| Instant::now() >= by) {
                self.log.warn("ended as asked, with claims that a lock kept from being given back", &[]);
                return Ok(());
            }
            let until = Some(self.wake_at());
            let event = match self.effects.is_empty() {
                true => self.mailbox.take(until),
                // A lock: what the provider says is of no use before what it said last is written.
                false => self.mailbox.take_other(until),
            };
            if let Some(input) = self.input_of(event)? {
                self.step(input);
            }
            self.on_time();
        }
    }

    fn now(&self) -> Now {
        let since = i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        Now { at: At(since), wall: wall_now() }
    }

    fn step(&mut self, input: Input) {
        for effect in self.machine.step(self.now(), input) {
            match effect {
                // Of no use behind a lock, and no business of it.
                Effect::Touch { if_alive } => {
                    if !if_alive || self.query.as_ref().is_some_and(|query| query.is_alive()) {
                        self.touch();
                    }
                }
                // Writes the facts as they are then; one is enough.
                Effect::Announce if self.effects.contains(&Effect::Announce) => {}
                effect => self.effects.push_back(effect),
            }
        }
    }

    fn facts(&self, now: Wall) -> Facts {
        Facts::of(&self.machine, now)
    }

    fn stat(&self) -> Option<Fingerprint> {
        fingerprint(&self.folder.inbound_db()).ok()
    }

    /// The soonest of everything that waits for a time. The poll is always among them.
    fn wake_at(&self) -> Instant {
        let (at, wall) = self.machine.deadlines();
        let micros = |micros: i64| Duration::from_micros(u64::try_from(micros.max(0)).unwrap_or(0));
        let at = at.map(|at| self.begun + micros(at.0));
        let wall = wall.map(|due| Instant::now() + micros(due.0.saturating_sub(wall_now().0)).min(WALL_WAIT));
        [at, wall, self.retry_at, self.stop_by].into_iter().flatten().fold(self.poll_at, Instant::min)
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if now >= self.poll_at {
            let changed = self.policy.polled(self.stat());
            self.poll_at = now + self.policy.interval();
            if changed {
                self.step(Input::Changed);
            }
        }
        let (at, wall) = self.machine.deadlines();
        let time = self.now();
        if at.is_some_and(|at| at <= time.at) || wall.is_some_and(|wall| wall <= time.wall) {
            self.step(Input::Tick);
        }
        self.retry_at = self.retry_at.filter(|at| *at > now);
    }

    fn input_of(&mut self, event: Event) -> Result<Option<Input>, RunError> {
        Ok(match event {
            Event::Provider(event) => Some(self.news(event)?),
            // One that was killed decided nothing.
            Event::Script(id, outcome) => {
                let decides = self.script.as_ref().is_some_and(|script| !script.is_killed());
                decides.then(|| self.script_ended(id, outcome))
            }
            Event::Stop => {
                self.stop_by.get_or_insert_with(|| Instant::now() + STOP_AT_MOST);
                Some(Input::StopAsked)
            }
            Event::Look => {
                self.policy.announced(self.stat());
                self.poll_at = Instant::now() + self.policy.interval();
                Some(Input::Changed)
            }
            Event::Timeout => None,
        })
    }

    fn news(&mut self, event: ProviderEvent) -> Result<Input, RunError> {
        Ok(match event {
            ProviderEvent::Init { continuation } => Input::Init { continuation },
            ProviderEvent::Activity => Input::Activity,
            ProviderEvent::Progress(text) => {
                self.log.debug("the provider makes progress", &[("chars", &text.chars().count())]);
                Input::Activity
            }
            ProviderEvent::Started { id } => Input::Started { id },
            ProviderEvent::ToolStarted { id, name, timeout } => Input::ToolStarted { id, name, timeout },
            ProviderEvent::ToolEnded { id } => Input::ToolEnded { id },
            ProviderEvent::Retrying { reason, wait } => {
                self.log.warn("the provider waits", &[("reason", &reason), ("for_ms", &wait.0)]);
                Input::Retrying { reason, wait }
            }
            ProviderEvent::Result(answer) => self.answered(answer)?,
            ProviderEvent::Error(error) => {
                self.log.warn("turn failed", &[("class", &error.class.word()), ("reason", &error.reason)]);
                Input::Failed(error)
            }
        })
    }

    fn answered(&mut self, answer: Answer) -> Result<Input, RunError> {
        let Answer { text, covers, local_command } = answer;
        let by_tool = match self.desk.outbound.spoken_to_after(self.rowid) {
            Ok(spoken_to) => spoken_to.iter().any(|address| self.is_heard_at(address)),
            // Busy: then a tool is writing, most likely.
            Err(OutboundError::Busy { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        let said = dispatch::said(text.as_deref(), &self.desk.destinations, by_tool, local_command);
        self.last_answer += 1;
        self.answers.insert(self.last_answer, text);
        Ok(Input::Answered { answer: self.last_answer, covers, said })
    }

    /// Whether what is said there counts as an answer: in a chat, or to the agent that asked.
    fn is_heard_at(&self, address: &Address) -> bool {
        address.channel_type.as_deref() != Some(AGENT)
            || self.machine.working().claimed.iter().any(|id| {
                self.messages.get(id).is_some_and(|message| message.row.address.chat() == address.chat())
            })
    }

    fn script_ended(&mut self, id: String, outcome: script::Outcome) -> Input {
        self.script = None;
        let now = wall_now();
        let (word, wake, reason) = match outcome {
            script::Outcome::Wake(data) => {
                if let Some(data) = data {
                    self.scripts.insert(id.clone(), data);
                }
                ("woke", true, None)
            }
            script::Outcome::Sleep => ("gated", false, None),
            script::Outcome::Broken(reason) => ("broken", false, Some(reason)),
        };
        let shown = reason.as_deref().unwrap_or("as its last line says");
        self.log
            .info("the script of a task has ended", &[("id", &id), ("outcome", &word), ("reason", &shown)]);
        self.desk.note_script(&id, word, reason.as_deref(), now);
        Input::ScriptEnded { id, wake }
    }

    /// Does what is to be done, as far as no lock prevents it. Returns whether the runner has ended.
    fn perform_all(&mut self) -> Result<bool, RunError> {
        while self.retry_at.is_none() {
            let Some(effect) = self.effects.front().cloned() else { return Ok(false) };
            if effect == Effect::Exit {
                return Ok(true);
            }
            match self.perform(effect) {
                Ok(answer) => {
                    self.effects.pop_front();
                    if let Some(input) = answer {
                        self.step(input);
                    }
                }
                Err(fault) if fault.passes() => {
                    self.retry_at = Some(Instant::now() + RETRY);
                    self.complain(&fault);
                }
                Err(Fault::Outbound(error)) => return Err(error.into()),
                // All faults of inbound.db pass.
                Err(Fault::Inbound(_)) => {}
            }
        }
        Ok(false)
    }

    fn complain(&mut self, fault: &Fault) {
        let now = Instant::now();
        if self.complained_at.is_none_or(|at| now >= at + COMPLAIN_EVERY) {
            self.complained_at = Some(now);
            self.log.warn("waiting", &[("reason", fault)]);
        }
    }

    fn perform(&mut self, effect: Effect) -> Result<Option<Input>, Fault> {
        let now = wall_now();
        match effect {
            Effect::Look => return Ok(Some(self.look(now)?)),
            Effect::Claim { ids, failed, omitted } => {
                return self.claim(&ids, failed, &omitted, now).map(Some);
            }
            Effect::Consume { id } => {
                if let Some(row) = self.system.get(&id) {
                    let facts = Facts::of(&self.machine, now);
                    self.desk.consume(row, facts, now)?;
                }
                self.system.remove(&id);
            }
            Effect::Clear { id } => self.clear(&id, now)?,
            Effect::RunScript { id } => return Ok(self.run_script(id)),
            Effect::KillScript => {
                if let Some(script) = &self.script {
                    script.kill();
                }
            }
            Effect::Gate { id } => {
                self.desk.settle(&[], std::slice::from_ref(&id), &[], self.facts(now), now)?;
                self.forget([&id]);
            }
            Effect::Start { fresh, push } => return self.start(fresh, &push),
            Effect::Push(push) => return self.push(push).map(Some),
            Effect::EndQuery => self.end_query(Query::end, now)?,
            Effect::AbortQuery => self.end_query(Query::abort, now)?,
            Effect::KeepContinuation { continuation } => {
                let facts = self.facts(now);
                self.desk.keep_continuation(&continuation, facts, now)?;
            }
            Effect::DropContinuation => {
                self.log.warn("the provider does not know the conversation; beginning a fresh one", &[]);
                let facts = self.facts(now);
                self.desk.clear(None, facts, now)?;
            }
            Effect::Settle { answer, rows, raw } => self.settle(answer, &rows, raw, now)?,
            Effect::Forget { answer } => {
                self.answers.remove(&answer);
            }
            Effect::Return { verdicts } => {
                let facts = self.facts(now);
                self.desk.give_back(&verdicts, facts, now)?;
                self.log.info("messages were given back or failed", &[("rows", &verdicts.len())]);
                self.forget(verdicts.iter().map(|verdict| &verdict.id));
            }
            Effect::Announce => {
                let facts = self.facts(now);
                self.desk.announce(facts, now)?;
            }
            // Done in `step`, and by the end of the loop.
            Effect::Touch { .. } | Effect::Exit => {}
        }
        Ok(None)
    }

    fn forget<'a>(&mut self, ids: impl IntoIterator<Item = &'a String>) {
        for id in ids {
            self.messages.remove(id);
            self.scripts.remove(id);
            self.telling.remove(id);
        }
    }

    fn touch(&self) {
        if let Err(error) = heartbeat::touch(&self.folder.heartbeat()) {
            self.log.warn("cannot touch the heartbeat", &[("reason", &error)]);
        }
    }

    fn clear(&mut self, id: &str, now: Wall) -> Result<(), Fault> {
        let facts = self.facts(now);
        let Some(message) = self.messages.get(id) else { return Ok(()) };
        let answer = dispatch::reply(&message.row, "Session cleared.", now);
        self.desk.clear(Some((&message.row, answer)), facts, now)?;
        self.log.info("the conversation was cleared", &[("id", &id)]);
        self.messages.remove(id);
        Ok(())
    }

    fn run_script(&mut self, id: String) -> Option<Input> {
        let text = self.messages.get(&id).and_then(|message| message.script().map(str::to_owned));
        let Some(text) = text else { return Some(Input::ScriptEnded { id, wake: true }) };
        let (mailbox, task) = (Arc::clone(&self.mailbox), id.clone());
        let report = move |outcome| mailbox.script(task, outcome);
        match script::run(text, self.agent.clone(), self.config.script_timeout, report) {
            Ok(running) => {
                self.script = Some(running);
                None
            }
            Err(error) => Some(
                self.script_ended(id, script::Outcome::Broken(format!("no thread for the script: {error}"))),
            ),
        }
    }

    fn start(&mut self, fresh: bool, spec: &Spec) -> Result<Option<Input>, Fault> {
        let continuation = if fresh { None } else { self.desk.continuation()? };
        let newest = self.desk.outbound.newest_rowid()?;
        // Some agents do not heed new instructions in an old conversation: there, prompts say what is new.
        let known = self.desk.destinations.iter().map(|known| known.name.clone()).collect();
        self.told = match continuation.is_some() {
            true => self.desk.told()?.unwrap_or(known),
            false => known,
        };
        self.telling.clear();
        let first = self.push_of(spec)?;
        let now = wall_now();
        self.desk.announce(self.facts(now), now)?;
        let name = self.config.assistant_name.as_deref();
        let instructions = addendum::instructions(name, &self.desk.destinations);
        self.rowid = newest;
        self.log.info(
            "turn started",
            &[("messages", &first.prompt.triggers.len()), ("fresh", &continuation.is_none())],
        );
        let sink = self.mailbox.open_query();
        match self.provider.start(Opening { continuation, instructions, first }, sink) {
            Ok(query) => {
                self.query = Some(query);
                Ok(None)
            }
            Err(error) => {
                self.mailbox.close_query();
                Ok(Some(Input::Failed(error)))
            }
        }
    }

    fn push(&mut self, spec: Spec) -> Result<Input, Fault> {
        if self.machine.working().started.is_empty() {
            self.rowid = self.desk.outbound.newest_rowid()?;
        }
        let push = self.push_of(&spec)?;
        let now = wall_now();
        self.desk.announce(self.facts(now), now)?;
        let taken = self.query.as_mut().is_some_and(|query| query.push(&push));
        self.log
            .info("messages were handed on", &[("messages", &push.prompt.triggers.len()), ("taken", &taken)]);
        Ok(Input::Pushed { id: spec.id, taken })
    }

    fn push_of(&mut self, spec: &Spec) -> Result<Push, Fault> {
        let prompt = match &spec.content {
            Content::Messages { ids, omitted } => self.prompt(ids, *omitted)?,
            Content::Command { id } => {
                let messages: Vec<&Message> = self.messages.get(id).into_iter().collect();
                let extras = Extras::default();
                let prompt = self.formatter.prompt(&messages, &extras, &self.desk.destinations);
                let text = messages.first().map_or("", |message| message.text()).trim().to_owned();
                Prompt { text, ..prompt }
            }
            Content::Nudge { problem } => {
                Prompt { text: addendum::nudge(*problem, &self.desk.destinations), triggers: Vec::new() }
            }
        };
        Ok(Push { id: spec.id.clone(), prompt })
    }

    fn prompt(&mut self, ids: &[String], omitted: usize) -> Result<Prompt, Fault> {
        let first = ids.first().cloned().unwrap_or_default();
        self.telling.remove(&first);
        let others = || self.telling.values();
        let told: Vec<LateAnswer> = others().flat_map(|telling| telling.late.iter().cloned()).collect();
        let late = without(self.desk.late()?, &told);
        let told: BTreeSet<&String> =
            self.told.iter().chain(others().flat_map(|telling| &telling.added)).collect();
        let names = self.desk.destinations.iter().map(|known| &known.name);
        let added: Vec<String> = names.filter(|name| !told.contains(name)).cloned().collect();
        self.telling.insert(first, Telling { late: late.clone(), added: added.clone() });
        let scripts = ids.iter().filter_map(|id| Some((id.clone(), self.scripts.get(id)?.clone()))).collect();
        let extras = Extras { omitted, scripts, late, added };
        let messages: Vec<&Message> = ids.iter().filter_map(|id| self.messages.get(id)).collect();
        Ok(self.formatter.prompt(&messages, &extras, &self.desk.destinations))
    }

    /// Ends the query, and with it the waits of its tools.
    fn end_query(&mut self, how: fn(&mut (dyn Query + 'static)), now: Wall) -> Result<(), Fault> {
        self.close_query(how);
        let facts = self.facts(now);
        self.desk.end_questions(facts, now)
    }

    fn close_query(&mut self, how: fn(&mut (dyn Query + 'static))) {
        self.mailbox.close_query();
        if let Some(mut query) = self.query.take() {
            how(query.as_mut());
        }
    }

    fn settle(&mut self, answer: Option<u64>, ids: &[String], raw: bool, now: Wall) -> Result<(), Fault> {
        let facts = self.facts(now);
        let text = answer.and_then(|answer| self.answers.get(&answer)).and_then(Option::as_deref);
        let rows: Vec<&InboundRow> =
            ids.iter().filter_map(|id| self.messages.get(id)).map(|message| &message.row).collect();
        let messages = match text.filter(|text| !text.trim().is_empty()) {
            None => {
                self.log.info("the answer has no text; nothing is sent", &[]);
                Vec::new()
            }
            Some(text) if raw => {
                rows.first().map(|row| dispatch::reply(row, text, now)).into_iter().collect()
            }
            Some(text) => {
                let (destinations, log) = (&self.desk.destinations, self.log);
                let inbound = &mut self.desk.inbound;
                Sender { inbound, destinations, rows: &rows, now, log }.blocks(text)
            }
        };
        let told: Vec<&Telling> = ids.iter().filter_map(|id| self.telling.get(id)).collect();
        let late: Vec<LateAnswer> = told.iter().flat_map(|telling| telling.late.iter().cloned()).collect();
        if !told.is_empty() {
            self.told.extend(told.iter().flat_map(|telling| telling.added.iter().cloned()));
            self.desk.note_told(&self.told);
        }
        self.desk.settle(&messages, ids, &late, facts, now)?;
        self.rowid = self.desk.outbound.newest_rowid()?;
        if let Some(answer) = answer {
            self.answers.remove(&answer);
        }
        let sent = messages.len();
        self.log.info("turn completed", &[("rows", &ids.len()), ("sent", &sent)]);
        self.forget(ids);
        Ok(())
    }
}
