//! The loop: waits for one event, does what it asks for, and brings the turn one step on.
//!
//! Invariant: one turn at a time; the next look comes after the last turn is on record.
//! Invariant: a host that is away, or a file of its that cannot be read, makes the runner wait, never end.
//! Invariant: the heartbeat moves with claims and provider events only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lamplighter::base::Wall;
use lamplighter::session::rows::{FACT_PREFIX, FACT_TOOLS, FACT_TURN};
use lamplighter::session::runner_side::{InboundReader, OutboundError, OutboundWriter};
use lamplighter::session::{InboundRow, SessionFolder, ToolInFlight};

use crate::batch::{self, Choice, Held};
use crate::config::Config;
use crate::content::Message;
use crate::facts;
use crate::heartbeat;
use crate::launch::{RunError, wall_now};
use crate::log::Log;
use crate::mailbox::{Event, Mailbox};
use crate::prompt::{Formatter, Prompt};
use crate::provider::{Provider, ProviderEvent};
use crate::turn::{Desk, Fault, Outcome, Turn, Verdict, continuation_key};
use crate::wake::policy::{Fingerprint, PollPolicy};
use crate::wake::watch::fingerprint;

/// A turn that is about to be done may still finish after a stop was asked for. Short: NanoClaw's host kills
/// after one second, and the messages are given back whole.
const STOP_GRACE: Duration = Duration::from_millis(250);
/// Between two tries of something that a lock or an absent host prevents.
const RETRY: Duration = Duration::from_millis(250);
/// At most one log line about waiting in so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// So many pending rows are read at first: more than a turn can take.
const WINDOW: usize = 256;
/// And so many at most, when the first ones hold nothing that can start a turn. Bounds memory; such a backlog
/// is none that a host should make.
const WINDOW_MAX: usize = 65_536;

/// What the loop works with.
pub struct Parts {
    /// The session's files.
    pub folder: SessionFolder,
    /// What the host told.
    pub config: Config,
    /// Where lines go.
    pub log: Log,
    /// What writes prompts.
    pub formatter: Formatter,
    /// The host's file.
    pub inbound: InboundReader,
    /// Our own.
    pub outbound: OutboundWriter,
    /// What wakes the loop.
    pub mailbox: Arc<Mailbox>,
    /// What makes answers.
    pub provider: Box<dyn Provider>,
}

/// The runner's state between two events.
pub struct Runner {
    parts: Parts,
    policy: PollPolicy,
    poll_at: Instant,
    /// Whether inbound.db may hold something that was not looked at.
    dirty: bool,
    /// When the next message that waits for a time is due.
    due_at: Option<Wall>,
    /// Until when nothing is tried, because of a lock or an absent host.
    retry_at: Option<Instant>,
    complained_at: Option<Instant>,
    /// The on-wake rows that the first poll saw (contract 9); `None` before it.
    woken: Option<BTreeSet<String>>,
    held: Held,
    turn: Option<Turn>,
    /// Until when an unfinished turn may finish, once a stop was asked for.
    stop_at: Option<Instant>,
}

impl Runner {
    /// A runner that has not looked yet.
    pub fn new(parts: Parts) -> Self {
        let policy = PollPolicy::new(fingerprint(&parts.folder.inbound_db()).ok());
        let poll_at = Instant::now() + policy.interval();
        Self {
            parts,
            policy,
            poll_at,
            dirty: true,
            due_at: None,
            retry_at: None,
            complained_at: None,
            woken: None,
            held: Held::default(),
            turn: None,
            stop_at: None,
        }
    }

    /// Runs until asked to end.
    ///
    /// # Errors
    /// When outbound.db cannot be written or another runner has taken over.
    pub fn run(mut self) -> Result<(), RunError> {
        let done = self.run_loop();
        if let Some(turn) = &mut self.turn {
            self.parts.mailbox.close_turn();
            turn.query.iter_mut().for_each(|query| query.abort());
        }
        done
    }

    fn run_loop(&mut self) -> Result<(), RunError> {
        loop {
            if self.advance()? {
                self.parts.log.info("ended as asked", &[]);
                return Ok(());
            }
            match self.parts.mailbox.take(Some(self.wake_at())) {
                Event::Provider(event) => self.on_provider(event)?,
                Event::Stop => self.stop_at = self.stop_at.or(Some(Instant::now() + STOP_GRACE)),
                Event::Look => {
                    self.dirty = true;
                    self.policy.announced(self.stat());
                    self.poll_at = Instant::now() + self.policy.interval();
                }
                Event::Timeout => {}
            }
            self.on_time();
        }
    }

    fn stat(&self) -> Option<Fingerprint> {
        fingerprint(&self.parts.folder.inbound_db()).ok()
    }

    /// The soonest of everything that waits for a time. The poll is always among them, so that a wall clock
    /// which was set makes a due time late by seconds at most.
    fn wake_at(&self) -> Instant {
        let due = self.due_at.filter(|_| self.turn.is_none()).map(|due| {
            let micros = due.0.saturating_sub(wall_now().0).max(0);
            Instant::now() + Duration::from_micros(u64::try_from(micros).unwrap_or(0)).min(COMPLAIN_EVERY)
        });
        [due, self.retry_at, self.stop_at].into_iter().flatten().fold(self.poll_at, Instant::min)
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if now >= self.poll_at {
            self.dirty |= self.policy.polled(self.stat());
            self.poll_at = now + self.policy.interval();
        }
        if self.turn.is_none() && self.due_at.is_some_and(|due| due <= wall_now()) {
            self.due_at = None;
            self.dirty = true;
        }
        self.retry_at = self.retry_at.filter(|at| *at > now);
    }

    /// Does what can be done now. Returns whether the runner has ended.
    fn advance(&mut self) -> Result<bool, RunError> {
        let grace_is_over = self.stop_at.is_some_and(|at| at <= Instant::now());
        if grace_is_over && let Some(turn) = &mut self.turn {
            turn.outcome = Some(match turn.outcome.take() {
                // It could not be put on record so far, so it counts as not done.
                None | Some(Outcome::Result(_) | Outcome::Stopped) => Outcome::Stopped,
                Some(failed) => failed,
            });
            self.retry_at = None;
        }
        let step = if self.retry_at.is_some() { Ok(()) } else { self.step() };
        match step {
            Ok(()) => {}
            Err(fault) if fault.passes() => self.wait_and_retry(&fault),
            Err(Fault::Outbound(error)) => return Err(error.into()),
            // All faults of inbound.db pass.
            Err(Fault::Inbound(_)) => {}
        }
        Ok(self.stop_at.is_some() && (self.turn.is_none() || grace_is_over))
    }

    fn wait_and_retry(&mut self, fault: &Fault) {
        let now = Instant::now();
        self.retry_at = Some(now + RETRY);
        if self.complained_at.is_none_or(|at| now >= at + COMPLAIN_EVERY) {
            self.complained_at = Some(now);
            self.parts.log.warn("waiting", &[("reason", fault)]);
        }
    }

    /// Ends and begins turns for as long as that needs no waiting.
    fn step(&mut self) -> Result<(), Fault> {
        loop {
            if self.turn.as_ref().is_some_and(|turn| turn.outcome.is_some()) {
                self.finish()?;
            }
            if self.turn.is_some() || self.stop_at.is_some() || !self.dirty {
                return Ok(());
            }
            self.dirty = false;
            let looked = self.look();
            self.dirty |= looked.is_err();
            looked?;
            self.complained_at = None;
        }
    }

    /// Puts the turn's outcome on record; the turn stays as it is when that fails.
    fn finish(&mut self) -> Result<(), Fault> {
        let Some(mut turn) = self.turn.take() else { return Ok(()) };
        self.parts.mailbox.close_turn();
        if let Some(mut query) = turn.query.take() {
            match turn.outcome {
                Some(Outcome::Stopped) => query.abort(),
                _ => query.end(),
            }
        }
        let outcome = turn.outcome.clone().unwrap_or(Outcome::Stopped);
        let settled = turn.settle(&outcome, &mut self.desk());
        if settled.is_err() {
            self.turn = Some(turn);
        }
        self.dirty = true;
        settled
    }

    fn desk(&mut self) -> Desk<'_> {
        Desk {
            inbound: &mut self.parts.inbound,
            outbound: &mut self.parts.outbound,
            held: &mut self.held,
            provider: &self.parts.config.provider,
            log: self.parts.log,
            now: wall_now(),
        }
    }

    /// Reads what is pending and begins a turn when something may start one.
    fn look(&mut self) -> Result<(), Fault> {
        let now = wall_now();
        let pending = self.pending(now)?;
        self.held.retain(&pending.iter().map(|row| row.id.as_str()).collect());
        let choice = batch::choose(pending, &self.held, self.parts.config.max_triggers, now);
        self.due_at = choice.next_due;
        if choice.rows.is_empty() { Ok(()) } else { self.begin(choice, now) }
    }

    /// The rows without any ack, due or not, oldest first; enough of them that one which can start a turn is
    /// among them if there is one.
    fn pending(&mut self, now: Wall) -> Result<Vec<InboundRow>, Fault> {
        let mut limit = WINDOW;
        loop {
            let mut failed = None;
            let outbound = &self.parts.outbound;
            let mut is_hidden = |id: &str| {
                outbound.is_acked(id).unwrap_or_else(|error| {
                    failed.get_or_insert(error);
                    true
                })
            };
            // At the end of time every row with a readable time is due; that is how the next due time is
            // found.
            let rows = self.parts.inbound.pending(Wall(i64::MAX), true, limit, &mut is_hidden)?;
            if let Some(error) = failed {
                return Err(error.into());
            }
            let can_start = |row: &InboundRow| {
                row.trigger && row.kind != "system" && row.is_due(now) && self.held.until(&row.id, now) <= now
            };
            if rows.len() < limit || limit >= WINDOW_MAX || rows.iter().any(can_start) {
                return Ok(self.without_late_wakes(rows));
            }
            limit = limit.saturating_mul(4).min(WINDOW_MAX);
        }
    }

    /// Leaves out on-wake rows that the first poll did not see: they are for the next runner.
    fn without_late_wakes(&mut self, mut rows: Vec<InboundRow>) -> Vec<InboundRow> {
        let on_wake = rows.iter().filter(|row| row.on_wake).map(|row| row.id.clone());
        let woken = &*self.woken.get_or_insert_with(|| on_wake.collect());
        rows.retain(|row| !row.on_wake || woken.contains(&row.id));
        rows
    }

    /// Claims the rows, fails those that can never be used, and starts the provider.
    fn begin(&mut self, choice: Choice, now: Wall) -> Result<(), Fault> {
        // All that can fail is read before anything is claimed.
        let destinations = self.parts.inbound.destinations()?;
        let continuation = self.parts.outbound.state(&continuation_key(&self.parts.config.provider))?;
        let mut messages = Vec::new();
        let mut unusable = Vec::new();
        for row in choice.rows {
            let id = row.id.clone();
            match Message::read(row) {
                Ok(message) => messages.push(message),
                Err(reason) => {
                    self.parts.log.warn("a message cannot be used", &[("id", &id), ("reason", &reason)]);
                    unusable.push(Verdict::fail(&id, "input", &reason, now));
                }
            }
        }
        let messages = self.claim(messages, &unusable, now)?;
        if messages.is_empty() {
            // Others may be waiting behind those that failed.
            self.dirty = true;
            return Ok(());
        }
        self.touch();
        let prompt = self.parts.formatter.prompt(&messages, choice.omitted.len(), &destinations);
        let rows = messages.into_iter().map(|message| message.row).collect();
        let turn = Turn { rows, omitted: choice.omitted, query: None, continuation: None, outcome: None };
        self.start(turn, prompt, continuation);
        Ok(())
    }

    /// Claims in one transaction with the failures. Returns what is claimed: nothing without a trigger.
    fn claim(
        &mut self,
        mut messages: Vec<Message>,
        unusable: &[Verdict],
        now: Wall,
    ) -> Result<Vec<Message>, OutboundError> {
        let has_trigger = |messages: &[Message]| messages.iter().any(|message| message.row.trigger);
        if !has_trigger(&messages) {
            messages.clear();
        }
        let existing = self.parts.outbound.states_with_prefix(FACT_PREFIX)?;
        let surplus = facts::to_prune(&existing, unusable.len());
        self.parts.outbound.transaction(now, |tx| {
            for key in &surplus {
                tx.delete_state(key)?;
            }
            for verdict in unusable {
                verdict.write(tx)?;
            }
            let ids: Vec<&str> = messages.iter().map(|message| message.row.id.as_str()).collect();
            let claimed: BTreeSet<String> = tx.claim(&ids)?.into_iter().collect();
            // A tool may have acked one since the look; it is not ours any more.
            messages.retain(|message| claimed.contains(&message.row.id));
            if !has_trigger(&messages) {
                for message in messages.drain(..) {
                    tx.release(&message.row.id)?;
                }
                return Ok(messages);
            }
            let ids: Vec<&str> = messages.iter().map(|message| message.row.id.as_str()).collect();
            for id in &ids {
                tx.delete_state(&facts::release_key(id))?;
            }
            tx.put_state(FACT_TURN, &facts::turn(&ids, now))?;
            Ok(messages)
        })
    }

    fn start(&mut self, mut turn: Turn, prompt: Prompt, continuation: Option<String>) {
        let (rows, triggers) = (turn.rows.len(), prompt.triggers.len());
        self.parts.log.info("turn started", &[("rows", &rows), ("triggers", &triggers)]);
        let sink = self.parts.mailbox.open_turn();
        match self.parts.provider.start(prompt, continuation, sink) {
            Ok(query) => turn.query = Some(query),
            Err(error) => turn.outcome = Some(Outcome::Failed(error)),
        }
        self.turn = Some(turn);
    }

    fn on_provider(&mut self, event: ProviderEvent) -> Result<(), RunError> {
        self.touch();
        let Some(turn) = &mut self.turn else { return Ok(()) };
        if turn.outcome.is_some() {
            return Ok(());
        }
        match event {
            ProviderEvent::Init { continuation } => turn.continuation = Some(continuation),
            ProviderEvent::Activity => {}
            ProviderEvent::Progress(text) => {
                self.parts.log.debug("the provider makes progress", &[("chars", &text.chars().count())]);
            }
            ProviderEvent::ToolStarted { name, timeout } => {
                self.announce_tool(Some((name, timeout.map(|time| time.0))))?;
            }
            ProviderEvent::ToolEnded => self.announce_tool(None)?,
            ProviderEvent::Result(text) => turn.outcome = Some(Outcome::Result(text)),
            ProviderEvent::Error(error) => turn.outcome = Some(Outcome::Failed(error)),
        }
        Ok(())
    }

    /// Tells the host which tool is in flight, or that none is.
    fn announce_tool(&mut self, tool: Option<(String, Option<u64>)>) -> Result<(), RunError> {
        let now = wall_now();
        let told: Result<(), OutboundError> = self.parts.outbound.transaction(now, |tx| match &tool {
            Some((name, timeout)) => {
                tx.put_state(FACT_TOOLS, &facts::tools(name, *timeout, now))?;
                let name = name.clone();
                tx.set_tool(&ToolInFlight { name, declared_timeout_ms: *timeout, started_at: None })
            }
            None => {
                tx.delete_state(FACT_TOOLS)?;
                tx.clear_tool()
            }
        });
        match told {
            Err(error @ OutboundError::Busy { .. }) => {
                // The tool runs all the same; the turn's end clears what is stored.
                self.parts.log.warn("cannot announce a tool", &[("reason", &error)]);
                Ok(())
            }
            told => told.map_err(RunError::from),
        }
    }

    fn touch(&self) {
        if let Err(error) = heartbeat::touch(&self.parts.folder.heartbeat()) {
            self.parts.log.warn("cannot touch the heartbeat", &[("reason", &error)]);
        }
    }
}
