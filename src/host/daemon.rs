//! The loop: takes news as inputs, steps the machine, appends the records, and only then hands the effects over.
//!
//! Invariant: nothing is handed over before the write that records it; what would be seen outside if it were repeated
//! waits until that record is durable.
//! Invariant: the loop never waits for a disk, a container or a channel.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use serde_json::Value;
use slog::{Logger, crit, debug, error, info, o, warn};

use super::bodies::ArrivedBody;
use super::config::Config;
use super::control::Request;
use super::event::Event;
use super::facts;
use super::perform::{Performer, plan};
use super::space::Space;
use super::texts::Texts;
use super::unchanged::Unchanged;
use super::{operator, status};
use crate::base::{At, Clock, EffectId, RecordNo, SessionNo};
use crate::channels::{Arrived, ChannelEvent, Fault};
use crate::containers::{self, ContainerEvent};
use crate::journal::frame::{self, Kind};
use crate::journal::record::RecordError;
use crate::journal::segment::Header;
use crate::journal::wire::recorder::Recorder;
use crate::journal::wire::snapshot::encode_snapshot;
use crate::journal::writer::{Journal, JournalError};
use crate::machine::Machine;
use crate::machine::effect::Effect;
use crate::machine::input::{Arrival, DeliveryFault, Exit, Input, Reading, Unreadable};
use crate::machine::state::{ComponentId, Life, Phase};
use crate::reactor::{ReactorEvent, Signature, Warning};
use crate::session::host_side::{self, Cause, Row};

/// Most inputs in one turn: enough to share one write, few enough that the first effect does not wait long.
const TURN_MAX: usize = 256;
/// How far the wall clock may drift from the machine's idea of it before it is told.
const DRIFT_MAX: i64 = 1_000_000;
/// The longest sleep while a deadline is set: a jump of the wall clock moves deadlines, and nothing tells of one.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// Time beyond the stop grace in which everything must have ended at shutdown.
const SHUTDOWN_SLACK: Duration = Duration::from_secs(5);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The journal cannot go on, and nothing may be done that is not on record.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A record does not fit.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The machine panicked. The input is on record.
    #[error("the machine panicked at record {record}; look at it with `lamplighter replay {}`", journal.display())]
    Panicked {
        /// The record of the input.
        record: RecordNo,
        /// The journal folder.
        journal: PathBuf,
    },
}

/// The running host.
pub struct Daemon {
    /// What it decides with.
    pub machine: Machine,
    recorder: Recorder,
    journal: Journal,
    performer: Performer,
    space: Space,
    events: Receiver<Event>,
    clock: Arc<dyn Clock>,
    config: Arc<Config>,
    log: Logger,
    build: String,
    /// Machine time minus the monotonic clock.
    at_offset: i64,
    /// Effects that wait until the record that issued them is durable.
    held: VecDeque<(EffectId, Effect)>,
    /// Sessions with more rows than were read.
    more: BTreeSet<SessionNo>,
    texts: Texts,
    started: Instant,
    stopping: Option<Instant>,
}

/// What the daemon is put together from.
pub struct Parts {
    /// In the state in which the journal ended.
    pub machine: Machine,
    /// In step with it.
    pub recorder: Recorder,
    /// Open for appending.
    pub journal: Journal,
    /// The parts that effects go to.
    pub performer: Performer,
    /// Whether there is room for more.
    pub space: Space,
    /// Where their news come from.
    pub events: Receiver<Event>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The configuration.
    pub config: Arc<Config>,
    /// The log.
    pub log: Logger,
    /// The build's name.
    pub build: String,
    /// Machine time now.
    pub at: At,
}

impl Daemon {
    /// Puts the daemon together.
    pub fn new(parts: Parts) -> Self {
        let at_offset = parts.at.0 - parts.clock.monotonic_micros();
        let texts = Texts::new(parts.config.journal.bodies);
        Self {
            machine: parts.machine,
            recorder: parts.recorder,
            journal: parts.journal,
            performer: parts.performer,
            space: parts.space,
            events: parts.events,
            clock: parts.clock,
            config: parts.config,
            log: parts.log,
            build: parts.build,
            texts,
            at_offset,
            held: VecDeque::new(),
            more: BTreeSet::new(),
            started: Instant::now(),
            stopping: None,
        }
    }

    /// A session that is not watched is compared now and then, beginning with what was seen of it.
    pub fn compare_from_now_on(&mut self, no: SessionNo, seen: Option<Signature>) {
        if !self.performer.is_live(no) {
            self.performer.make_known(self.machine.state(), no, seen);
        }
    }

    /// The parts that effects go to.
    pub fn performer(&mut self) -> &mut Performer {
        &mut self.performer
    }

    fn at(&self) -> At {
        At(self.clock.monotonic_micros().saturating_add(self.at_offset))
    }

    /// Runs until it is asked to stop and everything has ended.
    ///
    /// # Errors
    /// See [`Ended`].
    pub fn run(mut self) -> Result<(), Ended> {
        let mut inputs = Vec::new();
        while !self.is_done() {
            self.gather(&mut inputs);
            self.turn(&mut inputs)?;
        }
        self.end()
    }

    /// Waits for news and turns them into inputs; timers that have fallen due are inputs too.
    fn gather(&mut self, inputs: &mut Vec<Input>) {
        let first = match self.wait() {
            Some(wait) => self.events.recv_timeout(wait).ok(),
            None => self.events.recv().ok(),
        };
        let mut event = first;
        while let Some(it) = event {
            self.take(it, inputs);
            if inputs.len() >= TURN_MAX {
                break;
            }
            event = self.events.try_recv().ok();
        }
        let drift = self.clock.wall().0 - self.at().0 - self.machine.state().core().offset;
        if drift.abs() > DRIFT_MAX {
            let offset = self.machine.state().core().offset + drift;
            info!(self.log, "the wall clock moved"; "seconds" => drift / 1_000_000);
            inputs.push(Input::ClockSet { offset });
        }
        if let Some((deadline, key)) =
            self.machine.next_deadline().filter(|(deadline, _)| *deadline <= self.at())
        {
            inputs.push(Input::TimerDue { key, deadline });
        }
    }

    /// How long to sleep; none for as long as it takes.
    fn wait(&self) -> Option<Duration> {
        let stop = self.stopping.map(|limit| limit.saturating_duration_since(Instant::now()));
        let deadline = self.machine.next_deadline().map(|(deadline, _)| {
            let micros = u64::try_from((deadline.0 - self.at().0).max(0)).unwrap_or(0);
            Duration::from_micros(micros).min(SLEEP_MAX)
        });
        [stop, deadline].into_iter().flatten().min()
    }

    /// One turn: steps, one write, then the effects.
    ///
    /// # Errors
    /// See [`Ended`].
    pub fn turn(&mut self, inputs: &mut Vec<Input>) -> Result<(), Ended> {
        if inputs.is_empty() {
            return Ok(());
        }
        let at = self.at();
        let synced = self.journal.synced_through();
        let mut frames = Vec::new();
        let mut effects: Vec<(EffectId, Effect)> = Vec::new();
        let mut touched = BTreeSet::new();
        let mut settled = BTreeSet::new();
        let mut last = self.journal.last();
        for input in inputs.drain(..) {
            if let Input::OutboundRead { session, .. } | Input::Looked { session, .. } = &input {
                settled.insert(*session);
            }
            if let Input::OutboundRead { session, reading } | Input::Looked { session, reading, .. } = &input
            {
                self.note_more(*session, reading);
            }
            self.recorder.note(&self.machine, at, &input);
            let number = self.machine.state().core().record;
            self.texts.encode(&self.performer.bodies, number, &input, &mut frames);
            let machine = &mut self.machine;
            let Ok(turn) = catch_unwind(AssertUnwindSafe(|| machine.step(at, input))) else {
                return Err(self.panicked(frames, synced));
            };
            let body = self.recorder.record(&self.machine, &turn, synced)?;
            frame::encode(Kind::Record, turn.record, body, &mut frames);
            last = turn.record;
            effects.extend(turn.effects().map(|(id, effect)| (id, effect.clone())));
            touched.extend(turn.touched);
        }
        self.journal.append(&frames, last)?;
        for (id, effect) in effects {
            if effect.durable_first() && id.record > self.journal.synced_through() {
                self.journal.want_synced(id.record);
                self.held.push_back((id, effect));
            } else {
                self.performer.perform(self.machine.state(), id, effect);
            }
        }
        self.release_held();
        self.follow(&touched, &settled);
        self.rotate();
        Ok(())
    }

    /// Puts a panicked step on record, makes it durable, and ends.
    fn panicked(&mut self, mut frames: Vec<u8>, synced: RecordNo) -> Ended {
        let journal = self.performer.data.journal();
        let record = match self.recorder.panicked(synced) {
            Ok((record, body)) => {
                frame::encode(Kind::Record, record, body, &mut frames);
                record
            }
            Err(error) => return error.into(),
        };
        let durable = self.journal.append(&frames, record).and_then(|()| self.journal.wait_synced(record));
        match durable {
            Ok(()) => Ended::Panicked { record, journal },
            Err(error) => error.into(),
        }
    }

    fn release_held(&mut self) {
        let synced = self.journal.synced_through();
        while self.held.front().is_some_and(|(id, _)| id.record <= synced) {
            if let Some((id, effect)) = self.held.pop_front() {
                self.performer.perform(self.machine.state(), id, effect);
            }
        }
    }

    fn note_more(&mut self, session: SessionNo, reading: &Reading) {
        if let Reading::Rows(rows) = reading {
            if rows.more {
                self.more.insert(session);
            } else {
                self.more.remove(&session);
            }
        }
    }

    /// Keeps the reactor in step: what is watched, and what is to be read next.
    fn follow(&mut self, touched: &BTreeSet<ComponentId>, settled: &BTreeSet<SessionNo>) {
        let mut renew = settled.clone();
        let mut changed = settled.clone();
        for id in touched {
            match *id {
                ComponentId::Session(no) => {
                    changed.insert(no);
                }
                // A new message's ack is to be looked up from now on.
                ComponentId::Inbound(no) => {
                    renew.extend(self.machine.state().inbound(no).map(|message| message.session));
                }
                _ => {}
            }
        }
        // Room was made for rows that wait.
        renew.extend(self.more.iter().filter(|no| changed.contains(no)).copied());
        for no in changed {
            let Some(session) = self.machine.state().session(no) else { continue };
            let quiet = matches!(session.phase, Phase::Stopped { .. } | Phase::BackingOff { .. })
                && session.look.is_none()
                && !self.more.contains(&no);
            if quiet {
                self.performer.make_dormant(self.machine.state(), no);
                renew.remove(&no);
            }
        }
        for no in renew {
            if self.performer.is_live(no) {
                self.performer.reactor.settled(no, plan(self.machine.state(), no));
            }
        }
    }

    fn rotate(&mut self) {
        if !self.journal.is_due(self.config.journal.segment_bytes) || self.journal.is_rotating() {
            return;
        }
        let header = self.header();
        // The clone costs the loop microseconds a session; encoding it would cost ten times that.
        let (state, root) = (self.machine.state().clone(), self.recorder.root());
        debug!(self.log, "rotating the journal"; "first" => %header.first);
        self.journal.rotate(header, move || encode_snapshot(&state, root));
    }

    fn header(&self) -> Header {
        let first = self.machine.state().core().record;
        Header::new(self.performer.data.installation(), first, &self.build)
    }

    /// Turns one piece of news into inputs, or acts on it where it is none.
    fn take(&mut self, event: Event, inputs: &mut Vec<Input>) {
        match event {
            Event::Input(input) => inputs.push(input),
            Event::Reactor(event) => self.take_reactor(event, inputs),
            Event::Channel(event) => inputs.extend(self.take_channel(event)),
            Event::Container(event) => inputs.extend(self.take_container(event)),
            Event::Prepared { effect, session, result } => {
                self.performer.prepared(self.machine.state(), effect, session, result);
            }
            Event::Recovered { effect, session, heartbeat_changed, result } => {
                self.looked(effect, session, heartbeat_changed, result, false, inputs);
            }
            Event::Fetched { effect, result } => self.performer.fetched(effect, result),
            Event::Synced(Ok(_)) => self.release_held(),
            Event::Synced(Err(why)) => crit!(self.log, "the journal is not durable any more"; "why" => why),
            Event::Control { request, reply } => self.take_control(request, reply, inputs),
            Event::Stop => {
                if self.stopping.is_none() {
                    info!(self.log, "stopping");
                    let grace = Duration::from(self.config.policy.stop_grace.0);
                    self.stopping = Some(Instant::now() + grace + SHUTDOWN_SLACK);
                    inputs.push(Input::ShutdownAsked);
                }
            }
        }
    }

    fn take_reactor(&mut self, event: ReactorEvent, inputs: &mut Vec<Input>) {
        match event {
            ReactorEvent::Read { session, result, announced } => {
                if !announced {
                    debug!(self.log, "a change was found that no event announced"; "session" => %session);
                }
                let reading = self.reading(session, &result);
                inputs.push(Input::OutboundRead { session, reading });
            }
            ReactorEvent::Looked { session, ticket, heartbeat_changed, result } => {
                if let Some(spec) = self.performer.scanning.remove(&ticket) {
                    // The scan after the watch and before the start.
                    let reading = self.reading(session, &result);
                    inputs.push(Input::OutboundRead { session, reading });
                    self.performer.containers.start(spec);
                } else {
                    self.looked(ticket, session, heartbeat_changed, result, true, inputs);
                }
            }
            ReactorEvent::Heartbeat { session } => inputs.push(Input::HeartbeatSeen { session }),
            ReactorEvent::FolderGone { session } => {
                warn!(self.log, "a session's folder is gone"; "session" => %session);
            }
            ReactorEvent::DormantChanged { session } => {
                // Somebody wrote although nothing of ours runs: read it once.
                self.performer.make_live(self.machine.state(), session);
            }
            ReactorEvent::Warning(warning) => match warning {
                Warning::EventsLost | Warning::WatcherReplaced => warn!(self.log, "{}", warning),
                other => error!(self.log, "{}", other),
            },
        }
    }

    fn looked(
        &mut self,
        effect: EffectId,
        session: SessionNo,
        heartbeat_changed: bool,
        result: Result<host_side::Reading, host_side::Unreadable>,
        may_recover: bool,
        inputs: &mut Vec<Input>,
    ) {
        let phase = self.machine.state().session(session).map(|known| &known.phase);
        let alive = phase.and_then(|phase| {
            phase.alive().and_then(|attempt| self.performer.containers.is_alive(session, attempt))
        });
        let gone = phase.is_some_and(|phase| phase.alive().is_none());
        let hot = matches!(&result, Err(error) if matches!(error.cause, Cause::HotJournal));
        if hot && gone && may_recover {
            return self.performer.recover(self.machine.state(), effect, session, heartbeat_changed);
        }
        let reading = self.reading(session, &result);
        inputs.push(Input::Looked { effect, session, heartbeat_changed, alive, reading });
    }

    /// Facts for the machine; texts are kept for their delivery.
    fn reading(
        &mut self,
        session: SessionNo,
        result: &Result<host_side::Reading, host_side::Unreadable>,
    ) -> Reading {
        let seed = self.performer.data.installation();
        if let Ok(reading) = result {
            for complaint in &reading.complaints {
                warn!(self.log, "outbound.db: {}", complaint; "session" => %session);
            }
            for row in &reading.rows {
                if let Row::Message(row) = row {
                    self.performer.bodies.keep(session, &row.id, &row.content);
                }
            }
        }
        let mut reading = facts::of_reading(self.machine.state(), session, result.as_ref(), seed);
        self.mark_settled(session, &mut reading);
        reading
    }

    /// Rows that are read from the beginning again may have been delivered long ago: the `delivered` table knows.
    fn mark_settled(&self, session: SessionNo, reading: &mut Reading) {
        let Reading::Rows(rows) = reading else { return };
        let Some(known) = self.machine.state().session(session) else { return };
        if rows.rows.is_empty() || (!rows.rewound && known.cursor.is_some()) {
            return;
        }
        let ids: Vec<&str> = rows.rows.iter().map(|row| row.id.as_str()).collect();
        match operator::delivered(&self.performer.data, &known.name, &ids) {
            Ok(done) => {
                for row in &mut rows.rows {
                    row.settled = done.contains(&row.id);
                }
            }
            Err(why) => {
                // Without it nobody can tell what was sent: better late than twice.
                let kind = Unreadable::Busy;
                *reading = Reading::Unreadable { kind, detail: format!("inbound.db cannot be read: {why}") };
            }
        }
    }

    fn take_channel(&mut self, event: ChannelEvent) -> Option<Input> {
        match event {
            ChannelEvent::Up { channel, chat, idempotent } => {
                Some(Input::ChannelUp { channel: channel.to_owned(), chat, idempotent })
            }
            ChannelEvent::Down { channel, reason } => {
                if self.stopping.is_none() {
                    error!(self.log, "a channel went down"; "channel" => channel, "why" => reason);
                }
                Some(Input::ChannelDown { channel: channel.to_owned() })
            }
            ChannelEvent::Arrived(it) => Some(self.arrived(it)),
            ChannelEvent::Delivered { ticket, platform_id } => {
                let effect = self.performer.take_ticket(ticket)?;
                Some(Input::Delivered { effect, platform_id })
            }
            ChannelEvent::Failed { ticket, fault, reason, retry_after } => {
                let effect = self.performer.take_ticket(ticket)?;
                let class = match fault {
                    Fault::Transient => DeliveryFault::Transient,
                    Fault::Permanent => DeliveryFault::Permanent,
                    Fault::NoRecipient => DeliveryFault::NoRecipient,
                    Fault::InDoubt => DeliveryFault::InDoubt,
                };
                Some(Input::DeliveryFailed { effect, class, reason, retry_after })
            }
        }
    }

    fn arrived(&mut self, it: Arrived) -> Input {
        let (facts, text) = facts::of_content(&it.content, self.performer.data.installation());
        self.performer.bodies.arrived(it.channel, it.receipt, ArrivedBody { content: it.content, text });
        let arrival = Arrival {
            channel: it.channel.to_owned(),
            receipt: it.receipt,
            chat: it.chat,
            thread: it.thread,
            message_id: it.message_id,
            facts,
        };
        if self.space.seen().low {
            Input::ArrivalWithoutSpace(arrival)
        } else {
            Input::MessageArrived(arrival)
        }
    }

    fn take_container(&mut self, event: ContainerEvent) -> Option<Input> {
        match event {
            ContainerEvent::Started { session, attempt } => {
                let effect = self.performer.take_start(session, attempt)?;
                Some(Input::ContainerStarted { effect })
            }
            ContainerEvent::StartFailed { session, attempt, reason } => {
                let effect = self.performer.take_start(session, attempt)?;
                Some(Input::ContainerStartFailed { effect, reason })
            }
            ContainerEvent::Exited { session, attempt, exit } => {
                let exit = match exit {
                    containers::Exit::Code(code) => Exit::Code(code),
                    containers::Exit::Signal(signal) => Exit::Signal(signal),
                    containers::Exit::Unknown => Exit::Unknown,
                };
                Some(Input::ContainerExited { session, attempt, exit })
            }
            ContainerEvent::Output { session, attempt, line } => {
                let name = self.machine.state().session(session).map(|known| known.name.to_string());
                let log =
                    self.log.new(o!("session" => name.unwrap_or_default(), "attempt" => attempt.to_string()));
                debug!(log, "{}", line);
                None
            }
        }
    }

    fn take_control(
        &mut self,
        request: Request,
        reply: Sender<Result<Value, String>>,
        inputs: &mut Vec<Input>,
    ) {
        let state = self.machine.state();
        let answer = match request {
            Request::Status => Ok(status::status(
                state,
                &status::Surroundings {
                    at: self.at(),
                    uptime: self.started.elapsed(),
                    build: &self.build,
                    reactor: self.performer.reactor.stats(),
                    runtime: self.performer.containers.name(),
                    journal_last: self.journal.last(),
                    journal_synced: self.journal.synced_through(),
                    space: &self.space,
                },
            )),
            Request::SessionShow { session } => {
                operator::find_session(state, &session).map(|no| status::session(state, no, self.at()))
            }
            Request::Shutdown => {
                self.take(Event::Stop, inputs);
                Ok(Value::Null)
            }
            other => match operator::ask_of(state, &self.performer.data, other) {
                Ok(ask) => {
                    let request = self.performer.remember(reply);
                    inputs.push(Input::OperatorAsked { request, ask });
                    return;
                }
                Err(why) => Err(why),
            },
        };
        // Whoever asked may have gone.
        drop(reply.send(answer));
    }

    /// Whether everything that was to end has ended, or its time is over.
    fn is_done(&self) -> bool {
        let Some(limit) = self.stopping else { return false };
        let state = self.machine.state();
        let quiet = state.core().life == Life::Closing
            && state.alive().is_empty()
            && state.sessions().values().all(|session| !matches!(session.phase, Phase::Closing { .. }))
            && state.effects().values().all(|owner| {
                matches!(
                    owner,
                    crate::machine::state::Owner::Delivery(_) | crate::machine::state::Owner::Look(_)
                )
            });
        quiet || Instant::now() >= limit
    }

    fn end(self) -> Result<(), Ended> {
        let Self { machine, performer, journal, log, config, .. } = self;
        performer.channels().for_each(|channel| channel.stop());
        performer.containers.shutdown(config.policy.stop_grace.0);
        let seen = performer.reactor.stop();
        let data = performer.data.clone();
        drop(performer);
        journal.close()?;
        if let Err(error) = Unchanged::leave(&data, machine.state(), &seen) {
            warn!(log, "the next start will open every session"; "error" => %error);
        }
        info!(log, "stopped");
        Ok(())
    }
}
