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
use serde_json::{Value, json};
use slog::{Logger, crit, debug, error, info, warn};

use super::bodies::ArrivedBody;
use super::config::{AtStop, Config};
use super::control::Request;
use super::event::{Brought, Event};
use super::facts;
use super::operator::Question;
use super::perform::{Performer, RECOVER_ROOM};
use super::space::Space;
use super::stuck::{self, Verbs};
use super::texts::Texts;
use super::unchanged::Unchanged;
use super::{operator, status, takeover};
use crate::base::printable::one_line;
use crate::base::{At, Clock, EffectId, Ms, RecordNo, SessionNo};
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
use crate::machine::input::{Arrival, Ask, DeliveryFault, Exit, Input, Reading, Unreadable};
use crate::machine::state::{ComponentId, Life, Owner, Phase};
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

/// Time beyond two stop graces in which a stop has come to its end, also on a slow disk. The loop waits for agents once
/// and the runtime once more, each the grace and five seconds.
const STOP_MARGIN: Ms = Ms::secs(30);

/// How long a stop may take from when it was asked for.
pub fn stop_within(config: &Config) -> Ms {
    Ms(config.policy.stop_grace.0.0.saturating_mul(2).saturating_add(STOP_MARGIN.0))
}

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
    /// Sessions whose outbound.db was last met with a hot journal.
    hot: BTreeSet<SessionNo>,
    /// Sessions whose reading waits beside the loop; the next follows when it has been taken in.
    aside: BTreeSet<SessionNo>,
    /// Sessions with more rows than were read from a copy: the rest can only be read from another one.
    copied: BTreeSet<SessionNo>,
    texts: Texts,
    verbs: Verbs,
    started: Instant,
    stopping: Option<Instant>,
    /// What runs is left to the next daemon.
    leaving: bool,
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
        let verbs = Verbs::of(parts.performer.data.root(), &stuck::default_data());
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
            verbs,
            at_offset,
            held: VecDeque::new(),
            more: BTreeSet::new(),
            started: Instant::now(),
            hot: BTreeSet::new(),
            aside: BTreeSet::new(),
            copied: BTreeSet::new(),
            stopping: None,
            leaving: false,
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
        settled.iter().for_each(|&no| self.performer.forget_texts(self.machine.state(), no));
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
                && !self.more.contains(&no)
                && !self.aside.contains(&no);
            if quiet {
                self.performer.make_dormant(self.machine.state(), no);
                renew.remove(&no);
            }
        }
        for no in renew {
            if !self.performer.is_live(no) || self.aside.contains(&no) {
                continue;
            }
            let plan = self.performer.plan(self.machine.state(), no);
            if self.copied.contains(&no) && plan.room >= RECOVER_ROOM && self.may_read_copy(no) {
                self.recover(no, None);
            } else {
                self.performer.reactor.settled(no, plan);
            }
        }
        self.tell_stuck(touched);
    }

    /// Tells the clients of a chat that their messages are not worked on: once of each trouble, and again to whoever
    /// says something meanwhile.
    fn tell_stuck(&mut self, touched: &BTreeSet<ComponentId>) {
        let state = self.machine.state();
        let mut spoken = BTreeSet::new();
        let mut sessions = BTreeSet::new();
        for id in touched {
            match *id {
                ComponentId::Session(no) => drop(sessions.insert(no)),
                ComponentId::Inbound(no) => spoken.extend(state.inbound(no).map(|message| message.session)),
                _ => {}
            }
        }
        sessions.extend(&spoken);
        for no in sessions {
            let told = stuck::to_tell(state, no, &self.performer.ends);
            let is_news = self.performer.ends.is_news(no, told.as_ref().map(|told| told.mark));
            if let Some(told) = told.filter(|_| is_news || spoken.contains(&no)) {
                self.performer.tell_stuck(state, no, &told);
            }
        }
    }

    fn rotate(&mut self) {
        if !self.journal.is_due(self.config.journal.segment_bytes) || self.journal.is_rotating() {
            return;
        }
        let header = self.header();
        // A counter for each of the chunks that the components lie in; encoding them would cost milliseconds.
        let (parts, root) = (self.machine.state().to_parts(), self.recorder.root());
        let causes = self.recorder.causes().clone();
        debug!(self.log, "rotating the journal"; "first" => %header.first);
        self.journal.rotate(header, move || encode_snapshot(&parts, root, &causes));
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
            Event::Brought(brought) => self.brought(brought, inputs),
            Event::Found { result: Ok(ask), reply } => self.ask(ask, reply, inputs),
            // Whoever asked may have gone.
            Event::Found { result: Err(why), reply } => drop(reply.send(Err(why))),
            Event::Fetched { effect, result } => {
                self.performer.fetched(self.machine.state(), effect, result);
            }
            Event::Copied { effect, result } => self.performer.copied(effect, result),
            Event::Synced(Ok(_)) => self.release_held(),
            Event::Synced(Err(why)) => crit!(self.log, "the journal is not durable any more"; "why" => why),
            Event::Control { request, reply } => self.take_control(request, reply, inputs),
            Event::Stop(containers) => {
                if self.stopping.is_none() {
                    let wanted = containers.unwrap_or(self.config.runtime.at_stop);
                    self.leaving = self.performer.containers.adopts() && wanted == AtStop::Leave;
                    info!(self.log, "stopping"; "containers" => if self.leaving { "left" } else { "stopped" });
                    let grace = Duration::from(self.config.policy.stop_grace.0);
                    self.stopping = Some(Instant::now() + grace + SHUTDOWN_SLACK);
                    inputs.push(if self.leaving { Input::DetachAsked } else { Input::ShutdownAsked });
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
                if is_hot(&result) {
                    self.hot.insert(session);
                }
                let brought = Brought { session, look: None, result, copied: false, settled: None };
                self.brought(Box::new(brought), inputs);
            }
            ReactorEvent::Looked { session, ticket, heartbeat_changed, result } => {
                let is_look = matches!(self.machine.state().effects().get(&ticket), Some(Owner::Look(_)));
                // Nobody waits for it any more, as after a start that was withdrawn: its rows are news all the same.
                let is_waited_for = is_look || self.performer.is_scanning(ticket);
                let look = is_waited_for.then_some((ticket, heartbeat_changed));
                if look.is_none() && is_hot(&result) {
                    self.hot.insert(session);
                }
                let brought = Brought { session, look, result, copied: false, settled: None };
                self.brought(Box::new(brought), inputs);
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

    /// Takes in what was read, unless a copy must be read instead, or it is not known yet what of it was settled
    /// before.
    fn brought(&mut self, brought: Box<Brought>, inputs: &mut Vec<Input>) {
        let Brought { session, look, .. } = *brought;
        self.aside.remove(&session);
        // The scan after the watch and before the start.
        let scan = look.is_some_and(|(ticket, _)| self.performer.is_scanning(ticket));
        if is_hot(&brought.result) && !brought.copied && !scan && self.may_read_copy(session) {
            return self.recover(session, look);
        }
        if brought.settled.is_none() && self.may_be_settled(&brought) {
            self.aside.insert(session);
            return self.performer.check(self.machine.state(), brought);
        }
        if let Ok(reading) = &brought.result {
            self.hot.remove(&session);
            if brought.copied && reading.more {
                self.copied.insert(session);
            } else {
                self.copied.remove(&session);
            }
        }
        let reading = self.reading(*brought);
        match look {
            None => inputs.push(Input::OutboundRead { session, reading }),
            Some((effect, _)) if scan => {
                // What the scan cannot read the attempt would write over unseen, so such a start has failed; but for a
                // hot journal, which is what a killed runner leaves and the next one rolls back.
                let refusal = match &reading {
                    Reading::Unreadable { kind: Unreadable::HotJournal, .. } | Reading::Rows(_) => None,
                    Reading::Unreadable { detail, .. } => {
                        Some(format!("outbound.db cannot be read: {detail}"))
                    }
                };
                // First, so that a folder that is bad finds no attempt to be stopped.
                inputs.extend(self.performer.scanned(self.machine.state(), effect, refusal));
                inputs.push(Input::OutboundRead { session, reading });
            }
            Some((effect, heartbeat_changed)) => {
                let phase = self.machine.state().session(session).map(|known| &known.phase);
                let alive = phase.and_then(|phase| {
                    phase.alive().and_then(|attempt| self.performer.containers.is_alive(session, attempt))
                });
                inputs.push(Input::Looked { effect, session, heartbeat_changed, alive, reading });
            }
        }
    }

    fn recover(&mut self, session: SessionNo, look: Option<(EffectId, bool)>) {
        if self.performer.recover(self.machine.state(), session, look) {
            self.aside.insert(session);
        }
    }

    /// Whether rows of a reading may have been delivered long ago: when they are read from the beginning again.
    fn may_be_settled(&self, brought: &Brought) -> bool {
        let known = self.machine.state().session(brought.session);
        known.is_some_and(|known| {
            brought
                .result
                .as_ref()
                .is_ok_and(|reading| !reading.rows.is_empty() && (reading.rewound || known.cursor.is_none()))
        })
    }

    /// Whether nobody can be writing outbound.db any more, so that a copy of it and of its hot journal is whole:
    /// the attempt is gone, or nobody can tell because the runtime is away. Then SQLite's word holds, which calls
    /// a journal hot only when no writer holds its lock; of mounts that share no locks it means nothing.
    fn may_read_copy(&self, session: SessionNo) -> bool {
        let session = self.machine.state().session(session);
        session.is_some_and(|session| session.phase.alive().is_none())
            || (self.performer.containers.trouble().is_some() && self.performer.reactor.stats().local)
    }

    /// Facts for the machine; texts are kept for their delivery.
    fn reading(&mut self, brought: Brought) -> Reading {
        let Brought { session, result, settled, .. } = brought;
        let seed = self.performer.data.installation();
        let unreadable = result.as_ref().err().map(|error| (error.cause.to_string(), error.hint()));
        self.performer.ends.read(session, unreadable);
        if let Ok(reading) = &result {
            for complaint in &reading.complaints {
                warn!(self.log, "outbound.db: {}", complaint; "session" => %session);
            }
        }
        // Without it nobody can tell what was sent: better late than twice.
        if let Some(Err(error)) = settled {
            let kind = if error.is_locked() { Unreadable::Busy } else { Unreadable::Bad };
            let detail = format!("what was delivered cannot be looked up: {error}; {}", error.hint());
            return Reading::Unreadable { kind, detail };
        }
        if let Ok(reading) = &result {
            for row in &reading.rows {
                if let Row::Message(row) = row {
                    self.performer.bodies.keep(session, &row.id, &row.content);
                }
            }
        }
        let mut reading = facts::of_reading(self.machine.state(), session, result.as_ref(), seed);
        if let (Reading::Rows(rows), Some(Ok(settled))) = (&mut reading, settled) {
            for row in &mut rows.rows {
                row.settled = settled.contains(&row.id);
            }
        }
        reading
    }

    fn take_channel(&mut self, event: ChannelEvent) -> Option<Input> {
        match event {
            ChannelEvent::Up { channel, chat } => {
                let idempotent = self.performer.capabilities(channel).idempotent;
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
        let seed = self.performer.data.installation();
        let (facts, text) = facts::of_content(&it.content, seed);
        let line = self.is_asked(&it).then(|| facts::of_line(&text, seed));
        self.performer.bodies.arrived(it.channel, it.receipt, ArrivedBody { content: it.content, text });
        let arrival = Arrival {
            channel: it.channel.to_owned(),
            receipt: it.receipt,
            chat: it.chat,
            thread: it.thread,
            message_id: it.message_id,
            facts,
        };
        match (it.sent, line) {
            _ if self.space.seen().low => Input::ArrivalWithoutSpace(arrival),
            (Some(sent), line) => Input::MessageArrivedAt { arrival, line, sent },
            (None, Some(line)) => Input::PossibleAnswer { arrival, line },
            (None, None) => Input::MessageArrived(arrival),
        }
    }

    /// Whether a question of the arrival's chat is open or remembered.
    fn is_asked(&self, it: &Arrived) -> bool {
        let state = self.machine.state();
        let chat = (it.channel.to_owned(), it.chat.clone());
        let session = state.directory().chats.get(&chat);
        session.is_some_and(|&session| state.questions_of(session).next().is_some())
    }

    fn take_container(&mut self, event: ContainerEvent) -> Option<Input> {
        match event {
            ContainerEvent::Started { session, attempt } => {
                let known = self.machine.state().session(session);
                if known.is_none_or(|known| known.phase.alive() != Some(attempt)) {
                    // No runtime should do so; whatever it is, it must not work on the session beside another.
                    warn!(self.log, "an attempt that nobody expects was started, and is stopped";
                        "session" => %session, "attempt" => %attempt);
                    self.performer.containers.stop(session, attempt, self.config.policy.stop_grace.0);
                }
                let effect = self.performer.take_start(session, attempt)?;
                Some(Input::ContainerStarted { effect })
            }
            ContainerEvent::StartFailed { session, attempt, reason } => {
                let effect = self.performer.take_start(session, attempt)?;
                self.performer.ends.not_started(session, attempt, &reason);
                Some(Input::ContainerStartFailed { effect, reason })
            }
            ContainerEvent::Exited { session, attempt, exit } => {
                let exit = match exit {
                    containers::Exit::Code(code) => Exit::Code(code),
                    containers::Exit::Signal(signal) => Exit::Signal(signal),
                    containers::Exit::Unknown => Exit::Unknown,
                    containers::Exit::OutOfMemory => Exit::OutOfMemory,
                };
                self.performer.ends.exited(session, attempt, exit);
                Some(Input::ContainerExited { session, attempt, exit })
            }
            // Logged where it comes from: see [`super::event::container_sink`].
            ContainerEvent::Output { .. } => None,
            ContainerEvent::Notice { session, attempt, text } => {
                let name = self.machine.state().session(session).map(|known| known.name.to_string());
                warn!(self.log, "{}", one_line(&text); "session" => name.unwrap_or_default(), "attempt" => %attempt);
                None
            }
            ContainerEvent::Runtime { trouble: Some(why) } => {
                error!(self.log, "the runtime is away"; "why" => &why);
                // What had been written before is read now, without anybody's word that its writer is gone.
                for session in std::mem::take(&mut self.hot) {
                    if self.may_read_copy(session) {
                        self.recover(session, None);
                    }
                }
                Some(Input::RuntimeDown { reason: why })
            }
            ContainerEvent::Runtime { trouble: None } => {
                info!(self.log, "the runtime is back"; "runtime" => self.performer.containers.name());
                Some(Input::RuntimeUp)
            }
            // What runs is left to the next daemon.
            ContainerEvent::Listed { .. } if self.machine.state().core().life == Life::Closing => None,
            ContainerEvent::Listed { found } => {
                let containers = Arc::clone(&self.performer.containers);
                Some(takeover::settle(self.machine.state(), &*containers, found, &self.log))
            }
            ContainerEvent::Warning { text } => {
                warn!(self.log, "{}", text);
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
            Request::Status => Ok(status::status(state, &self.surroundings())),
            Request::SessionShow { session } => operator::find_session(state, &session)
                .map(|no| status::session(state, no, &self.surroundings())),
            Request::Shutdown { containers } => {
                self.take(Event::Stop(containers), inputs);
                Ok(json!({"within_ms": stop_within(&self.config).0}))
            }
            other => {
                match operator::question_of(state, &self.performer.data, self.performer.guard(), other) {
                    Ok(Question::Ask(ask)) => return self.ask(ask, reply, inputs),
                    Ok(Question::Search(search)) => return self.performer.search(search, reply),
                    Err(why) => Err(why),
                }
            }
        };
        // Whoever asked may have gone.
        drop(reply.send(answer));
    }

    fn ask(&mut self, ask: Ask, reply: Sender<Result<Value, String>>, inputs: &mut Vec<Input>) {
        let request = self.performer.remember(reply);
        inputs.push(Input::OperatorAsked { request, ask });
    }

    fn surroundings(&self) -> status::Surroundings<'_> {
        status::Surroundings {
            at: self.at(),
            uptime: self.started.elapsed(),
            build: &self.build,
            reactor: self.performer.reactor.stats(),
            runtime: self.performer.containers.name(),
            trouble: self.performer.containers.trouble(),
            journal_last: self.journal.last(),
            journal_synced: self.journal.synced_through(),
            space: &self.space,
            ends: &self.performer.ends,
            verbs: &self.verbs,
        }
    }

    /// Whether everything that was to end has ended, or its time is over.
    fn is_done(&self) -> bool {
        let Some(limit) = self.stopping else { return false };
        let state = self.machine.state();
        let quiet = state.core().life == Life::Closing
            && state.sessions().values().all(|session| match session.phase {
                // Nobody knows whether they are there.
                _ if state.is_unlisted() && session.phase.alive().is_some() => true,
                Phase::Starting { .. } | Phase::Stopping { .. } | Phase::Closing { .. } => false,
                Phase::Running { .. } => self.leaving,
                _ => true,
            })
            && state.effects().values().all(|owner| matches!(owner, Owner::Delivery(_) | Owner::Look(_)));
        quiet || Instant::now() >= limit
    }

    fn end(self) -> Result<(), Ended> {
        let Self { machine, performer, journal, log, config, leaving, .. } = self;
        performer.channels().for_each(|channel| channel.stop());
        if leaving {
            performer.containers.detach();
        } else {
            performer.containers.shutdown(config.policy.stop_grace.0);
        }
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

fn is_hot(result: &Result<host_side::Reading, host_side::Unreadable>) -> bool {
    matches!(result, Err(error) if matches!(error.cause, Cause::HotJournal))
}

#[cfg(test)]
mod tests;
