//! Performs effects: each is handed over to a lane, the reactor, the runtime or a channel. Nothing here waits.
//!
//! Invariant: an effect that completes is answered by exactly one event with its id.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::Sender;
use serde_json::{Value, json};
use slog::{Logger, error, info, warn};

use super::bodies::Bodies;
use super::config::Config;
use super::event::Event;
use super::folder::DataFolder;
use super::inbound_lane::{InboundLane, Job, Work};
use super::lanes::{Lanes, Next, Worker};
use super::{agent, words};
use crate::base::disk::replace;
use crate::base::{Attempt, Clock, EffectId, OsDisk, Private, SessionName, SessionNo};
use crate::channels::{Channel, Delivery, Settled};
use crate::containers::{Containers, StartSpec};
use crate::machine::effect::{Body, Effect, Payload, Reply, StopReason};
use crate::machine::input::{DeliveryFault, Input};
use crate::machine::state::{InState, State};
use crate::reactor::{Reactor, ReadPlan, Signature};
use crate::session::host_side::{Cursor, Guard, OutboundReader, ReadAsk, Row, create, outbound};
use crate::session::rows::{Address, NewInbound};
use crate::session::{SessionFolder, ids, timestamp};

/// Threads that write inbound.db files. SQLite waits for the disk; more than this many waits at once do not help it.
const INBOUND_THREADS: usize = 4;
/// Threads for everything else that touches files: preparing starts, recovering, resetting, reading texts again.
const SIDE_THREADS: usize = 2;
/// Rows and bytes of one read of a recovered copy.
const RECOVER_ROWS: usize = 256;
const RECOVER_BYTES: usize = 1 << 20;

/// The parts that effects are handed to.
pub struct Performer {
    /// The data folder.
    pub data: DataFolder,
    config: Arc<Config>,
    log: Logger,
    events: Sender<Event>,
    inbound: Lanes<SessionNo, Job>,
    side: Lanes<SessionNo, Side>,
    /// The reactor.
    pub reactor: Arc<Reactor>,
    /// The runtime.
    pub containers: Arc<dyn Containers>,
    channels: BTreeMap<&'static str, Arc<dyn Channel>>,
    /// Texts on their way.
    pub bodies: Bodies,
    env: Vec<(String, Private<String>)>,
    tickets: BTreeMap<u64, (EffectId, Delivery, &'static str)>,
    next_ticket: u64,
    fetching: BTreeMap<EffectId, (Delivery, &'static str)>,
    /// Starts that wait for the scan after their watch.
    pub scanning: BTreeMap<EffectId, StartSpec>,
    starting: BTreeMap<(SessionNo, Attempt), EffectId>,
    live: BTreeSet<SessionNo>,
    answers: BTreeMap<u64, Sender<Result<Value, String>>>,
    next_request: u64,
}

/// Work beside the loop.
enum Side {
    Prepare { effect: EffectId, job: Box<Prepare> },
    Recover { effect: EffectId, job: Box<Recover> },
    Fetch { effect: EffectId, job: Box<Fetch> },
    Reset { effect: EffectId, folder: PathBuf },
    Discard { folder: PathBuf, id: String },
}

struct Prepare {
    spec: StartSpec,
    folder: PathBuf,
}

struct Recover {
    session: SessionNo,
    name: SessionName,
    folder: PathBuf,
    into: PathBuf,
    plan: ReadPlan,
    heartbeat_changed: bool,
}

struct Fetch {
    name: SessionName,
    folder: PathBuf,
    rowid: i64,
    id: String,
}

struct SideWorker {
    config: Arc<Config>,
    events: Sender<Event>,
    clock: Arc<dyn Clock>,
    log: Logger,
}

/// Sends an event to the loop; when the loop is gone there is nobody left to tell.
pub fn send(events: &Sender<Event>, event: Event) {
    drop(events.send(event));
}

impl Performer {
    /// Wires the parts together.
    ///
    /// # Errors
    /// When a thread cannot be started.
    #[allow(clippy::too_many_arguments)] // The composition root is where everything comes together.
    pub fn new(
        data: DataFolder,
        config: Arc<Config>,
        log: Logger,
        clock: Arc<dyn Clock>,
        events: Sender<Event>,
        reactor: Arc<Reactor>,
        containers: Arc<dyn Containers>,
        env: Vec<(String, Private<String>)>,
    ) -> std::io::Result<Self> {
        let reports = events.clone();
        let report = Arc::new(move |input| send(&reports, Event::Input(input)));
        let inbound = Lanes::start(INBOUND_THREADS, Arc::new(InboundLane::new(report, log.clone())))?;
        let worker =
            SideWorker { config: Arc::clone(&config), events: events.clone(), clock, log: log.clone() };
        let side = Lanes::start(SIDE_THREADS, Arc::new(worker))?;
        Ok(Self {
            data,
            config,
            log,
            events,
            inbound,
            side,
            reactor,
            containers,
            channels: BTreeMap::new(),
            bodies: Bodies::default(),
            env,
            tickets: BTreeMap::new(),
            next_ticket: 1,
            fetching: BTreeMap::new(),
            scanning: BTreeMap::new(),
            starting: BTreeMap::new(),
            live: BTreeSet::new(),
            answers: BTreeMap::new(),
            next_request: 1,
        })
    }

    /// Adds a channel.
    pub fn add_channel(&mut self, channel: Arc<dyn Channel>) {
        self.channels.insert(channel.channel_type(), channel);
    }

    /// All channels.
    pub fn channels(&self) -> impl Iterator<Item = &Arc<dyn Channel>> {
        self.channels.values()
    }

    /// Remembers who asked; the number names the request towards the machine.
    pub fn remember(&mut self, reply: Sender<Result<Value, String>>) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        self.answers.insert(request, reply);
        request
    }

    /// Performs one effect of a step that is on record.
    pub fn perform(&mut self, state: &State, effect: EffectId, it: Effect) {
        match it {
            Effect::CreateSession { session, origin, .. } => {
                self.write(state, session, effect, Work::Create { origin });
            }
            Effect::WriteInbound { session, id, body, trigger, origin, timestamp, .. } => {
                let at = timestamp::iso(timestamp);
                match self.row(id, body, trigger, origin, at) {
                    Some(row) => self.write(state, session, effect, Work::Insert(Box::new(row))),
                    None => {
                        let reason = "its text is gone".to_owned();
                        send(&self.events, Event::Input(Input::InboundWriteFailed { effect, reason }));
                    }
                }
            }
            Effect::UpdateInbound { session, id, change, .. } => {
                self.write(state, session, effect, Work::Update { id, change });
            }
            Effect::RecordDelivery { session, id, delivered, platform_id, at, .. } => {
                self.bodies.forget(session, &id);
                self.write(state, session, effect, Work::Record { id, delivered, platform_id, at });
            }
            Effect::ProjectDestinations { session, origin } => {
                self.write(state, session, effect, Work::Project { origin });
            }
            Effect::AcceptInbound { channel, receipt, duplicate } => {
                self.on_channel(&channel, |channel| channel.accepted(receipt, duplicate));
            }
            Effect::RefuseInbound { channel, receipt, reason } => {
                let _ = self.bodies.take_arrived(&channel, receipt);
                self.on_channel(&channel, |channel| channel.refused(receipt, &words::refusal(&reason)));
            }
            Effect::StartContainer { session, attempt } => self.start(state, effect, session, attempt),
            Effect::StopContainer { session, attempt, reason, grace } => {
                if reason != StopReason::Shutdown {
                    info!(self.log, "stopping"; "session" => name(state, session), "why" => words::stop(reason));
                }
                self.containers.stop(session, attempt, grace);
            }
            Effect::Look { session, .. } => self.look(state, effect, session),
            Effect::Deliver { session, to, payload, key, .. } => {
                self.deliver(state, effect, session, &to, payload, key);
            }
            Effect::DiscardOutbox { session, id } => {
                let folder = self.folder(state, session);
                self.side.push(session, Side::Discard { folder, id });
            }
            Effect::SetTyping { to, on } => {
                if let Some((channel, chat)) = to.chat() {
                    self.on_channel(channel, |channel| channel.typing(chat, on));
                }
            }
            Effect::TellSettled { to, id, outcome } => {
                let (word, reason) = words::outcome(&outcome);
                let group = &state.directory().group;
                let id = ids::platform_part(&id, group).to_owned();
                if let Some((channel, chat)) = to.chat() {
                    self.on_channel(channel, |c| c.settled(chat, Settled { id, outcome: word, reason }));
                }
            }
            Effect::ResetOutbound { session } => {
                let folder = self.folder(state, session);
                self.side.push(session, Side::Reset { effect, folder });
            }
            Effect::Answer { request, reply } => self.answer(request, reply),
            Effect::Complain { session, cause, count, detail } => {
                let session = session.map(|no| name(state, no)).unwrap_or_default();
                warn!(self.log, "{}", detail; "session" => session, "cause" => ?cause, "count" => count);
            }
        }
    }

    fn write(&self, state: &State, session: SessionNo, effect: EffectId, work: Work) {
        let Some(known) = state.session(session) else {
            let error = Some("the session is unknown".to_owned());
            return send(&self.events, Event::Input(Input::EffectDone { effect, error }));
        };
        let folder = self.data.session(&known.name);
        self.inbound.push(session, Job { effect, folder, name: known.name.clone(), work });
    }

    fn row(
        &mut self,
        id: String,
        body: Body,
        trigger: bool,
        origin: Address,
        at: String,
    ) -> Option<NewInbound> {
        let content = match body {
            Body::Arrived { channel, receipt } => self.bodies.take_arrived(&channel, receipt)?.content,
            Body::Note(note) => {
                json!({"text": words::agent_note(&note), "sender": "system", "senderId": "system"})
                    .to_string()
            }
        };
        let mut row = NewInbound::new(id, "chat", at, origin, content);
        row.trigger = trigger;
        Some(row)
    }

    fn on_channel(&self, name: &str, then: impl FnOnce(&Arc<dyn Channel>)) {
        // A channel of an earlier configuration: whoever waited there is gone.
        if let Some(channel) = self.channels.get(name) {
            then(channel);
        }
    }

    fn folder(&self, state: &State, session: SessionNo) -> PathBuf {
        state.session(session).map(|known| self.data.session(&known.name)).unwrap_or_default()
    }

    fn start(&mut self, state: &State, effect: EffectId, session: SessionNo, attempt: Attempt) {
        let Some(known) = state.session(session) else { return };
        let folder = self.data.session(&known.name);
        let paths = SessionFolder::nested(&folder);
        let agent = &self.config.agent;
        let spec = StartSpec {
            session,
            name: known.name.clone(),
            attempt,
            out_dir: paths.out_dir().to_owned(),
            in_dir: paths.in_dir().to_owned(),
            agent_dir: self.data.group(&agent.folder),
            timezone: agent.timezone.clone(),
            env: self.env.clone(),
        };
        self.starting.insert((session, attempt), effect);
        self.side.push(session, Side::Prepare { effect, job: Box::new(Prepare { spec, folder }) });
    }

    /// Everything is in place: watch, scan, and start when the scan is done.
    pub fn prepared(
        &mut self,
        state: &State,
        effect: EffectId,
        session: SessionNo,
        result: Result<StartSpec, String>,
    ) {
        match result {
            Err(reason) => self.start_failed(effect, reason),
            Ok(spec) => {
                self.make_live(state, session);
                self.reactor.baseline_heartbeat(session);
                match self.reactor.look(session, effect) {
                    Ok(()) => drop(self.scanning.insert(effect, spec)),
                    Err(refused) => self.start_failed(effect, refused.to_string()),
                }
            }
        }
    }

    fn start_failed(&mut self, effect: EffectId, reason: String) {
        self.starting.retain(|_, known| *known != effect);
        send(&self.events, Event::Input(Input::ContainerStartFailed { effect, reason }));
    }

    /// The effect that started an attempt, once.
    pub fn take_start(&mut self, session: SessionNo, attempt: Attempt) -> Option<EffectId> {
        self.starting.remove(&(session, attempt))
    }

    /// Watches a session from now on.
    pub fn make_live(&mut self, state: &State, no: SessionNo) {
        let Some(session) = state.session(no) else { return };
        self.live.insert(no);
        let folder = SessionFolder::nested(self.data.session(&session.name));
        // Looks of a former life were answered by the machine's own timers.
        drop(self.reactor.live(no, session.name.clone(), &folder, plan(state, no)));
    }

    /// Ends the watch of a session that has nothing to be watched for.
    pub fn make_dormant(&mut self, state: &State, no: SessionNo) {
        if !self.live.remove(&no) {
            return;
        }
        if let Some(session) = state.session(no) {
            let folder = SessionFolder::nested(self.data.session(&session.name));
            drop(self.reactor.dormant(no, session.name.clone(), &folder, None));
        }
    }

    /// Has a session compared now and then, without a watch.
    pub fn make_known(&self, state: &State, no: SessionNo, seen: Option<Signature>) {
        if let Some(session) = state.session(no) {
            let folder = SessionFolder::nested(self.data.session(&session.name));
            drop(self.reactor.dormant(no, session.name.clone(), &folder, seen));
        }
    }

    /// Whether a session is watched.
    pub fn is_live(&self, no: SessionNo) -> bool {
        self.live.contains(&no)
    }

    fn look(&mut self, state: &State, effect: EffectId, session: SessionNo) {
        if !self.live.contains(&session) {
            self.make_live(state, session);
        }
        if let Err(refused) = self.reactor.look(session, effect) {
            // The machine asks again when the answer is overdue.
            warn!(self.log, "{}", refused; "session" => name(state, session));
        }
    }

    /// A look met a hot journal although the attempt is gone: what was committed is read from a copy.
    pub fn recover(&mut self, state: &State, effect: EffectId, session: SessionNo, heartbeat_changed: bool) {
        let Some(known) = state.session(session) else { return };
        info!(self.log, "reading a copy: the last attempt left a hot journal"; "session" => %known.name);
        let job = Recover {
            session,
            name: known.name.clone(),
            folder: self.data.session(&known.name),
            into: self.data.recover(&known.name),
            plan: plan(state, session),
            heartbeat_changed,
        };
        self.side.push(session, Side::Recover { effect, job: Box::new(job) });
    }

    fn deliver(
        &mut self,
        state: &State,
        effect: EffectId,
        session: SessionNo,
        to: &Address,
        payload: Payload,
        key: EffectId,
    ) {
        let fail = |class, reason: &str| {
            let reason = reason.to_owned();
            send(
                &self.events,
                Event::Input(Input::DeliveryFailed { effect, class, reason, retry_after: None }),
            );
        };
        let Some((channel, chat)) = to.chat() else {
            return fail(DeliveryFault::Permanent, "it names no chat");
        };
        let Some(&channel) = self.channels.get_key_value(channel).map(|(name, _)| name) else {
            return fail(DeliveryFault::Transient, "the channel is not configured");
        };
        let mut delivery = Delivery {
            ticket: 0,
            key: key.to_string(),
            chat: chat.to_owned(),
            thread: to.thread_id.clone(),
            content: String::new(),
            in_reply_to: None,
        };
        let group = &state.directory().group;
        match payload {
            Payload::Notice(notice) => {
                delivery.content = json!({"text": words::notice(&notice)}).to_string();
                self.hand_over(effect, delivery, channel);
            }
            Payload::Row { rowid, id, in_reply_to } => {
                delivery.in_reply_to = in_reply_to.map(|id| ids::platform_part(&id, group).to_owned());
                if let Some(content) = self.bodies.outbound(session, &id) {
                    delivery.content = content.to_owned();
                    return self.hand_over(effect, delivery, channel);
                }
                let Some(known) = state.session(session) else {
                    return fail(DeliveryFault::Permanent, "its session is gone");
                };
                let (name, folder) = (known.name.clone(), self.data.session(&known.name));
                self.fetching.insert(effect, (delivery, channel));
                self.side
                    .push(session, Side::Fetch { effect, job: Box::new(Fetch { name, folder, rowid, id }) });
            }
        }
    }

    /// The text of a row was read again.
    pub fn fetched(&mut self, effect: EffectId, result: Result<String, (String, bool)>) {
        let Some((mut delivery, channel)) = self.fetching.remove(&effect) else { return };
        match result {
            Ok(content) => {
                delivery.content = content;
                self.hand_over(effect, delivery, channel);
            }
            Err((reason, passing)) => {
                let class = if passing { DeliveryFault::Transient } else { DeliveryFault::Permanent };
                send(
                    &self.events,
                    Event::Input(Input::DeliveryFailed { effect, class, reason, retry_after: None }),
                );
            }
        }
    }

    fn hand_over(&mut self, effect: EffectId, mut delivery: Delivery, channel: &'static str) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        delivery.ticket = ticket;
        self.tickets.insert(ticket, (effect, delivery.clone(), channel));
        self.on_channel(channel, |channel| channel.deliver(delivery));
    }

    /// The effect of a delivery that ended.
    pub fn take_ticket(&mut self, ticket: u64) -> Option<EffectId> {
        self.tickets.remove(&ticket).map(|(effect, ..)| effect)
    }

    fn answer(&mut self, request: u64, reply: Reply) {
        let Some(waiting) = self.answers.remove(&request) else { return };
        let answer = match reply {
            Reply::Done => Ok(json!({"done": true})),
            Reply::No(why) => Err(why),
        };
        // Whoever asked may have gone.
        drop(waiting.send(answer));
    }
}

fn name(state: &State, session: SessionNo) -> String {
    state.session(session).map_or_else(|| session.to_string(), |known| known.name.to_string())
}

/// What is to be read of a session next, from the machine's state.
pub fn plan(state: &State, session: SessionNo) -> ReadPlan {
    let Some(known) = state.session(session) else { return ReadPlan::default() };
    let cursor = known.cursor.clone().map(|(rowid, id)| Cursor { rowid, id });
    let ids: Vec<String> = known
        .inbox
        .iter()
        .filter_map(|no| state.inbound(*no))
        // An id that is asked for the first time leads to a read: that is to be when its row is known to be there.
        .filter(|message| !matches!(message.state, InState::Writing { .. }))
        .map(|message| message.id.clone())
        .collect();
    let open = u32::try_from(known.outbox.len()).unwrap_or(u32::MAX);
    let room = crate::machine::policy::ROWS_PER_SESSION.saturating_sub(open);
    ReadPlan { cursor, ids: ids.into(), room }
}

impl Worker<SessionNo, Side> for SideWorker {
    fn work(&self, _: &SessionNo, jobs: &mut VecDeque<Side>) -> Next {
        while let Some(job) = jobs.pop_front() {
            match job {
                Side::Prepare { effect, job } => {
                    let session = job.spec.session;
                    let result = self.prepare(*job);
                    send(&self.events, Event::Prepared { effect, session, result });
                }
                Side::Recover { effect, job } => self.recover(effect, &job),
                Side::Fetch { effect, job } => {
                    let result = fetch(&job);
                    send(&self.events, Event::Fetched { effect, result });
                }
                Side::Reset { effect, folder } => {
                    let folder = SessionFolder::nested(&folder);
                    let done = create::set_aside_outbound(&folder, None, self.clock.wall());
                    let error = done.err().map(|error| format!("{error}; {}", error.hint()));
                    send(&self.events, Event::Input(Input::EffectDone { effect, error }));
                }
                Side::Discard { folder, id } => {
                    // Best effort (design, rule 4c): what stays is removed with the session.
                    let _ = create::discard_outbox(&SessionFolder::nested(&folder), &id);
                }
            }
        }
        Next::Done
    }
}

impl SideWorker {
    fn prepare(&self, job: Prepare) -> Result<StartSpec, String> {
        let Prepare { spec, folder } = job;
        let folder = SessionFolder::nested(&folder);
        let agent = &self.config.agent;
        agent::prepare_folder(&spec.agent_dir, agent)
            .map_err(|error| format!("cannot prepare {}: {error}", spec.agent_dir.display()))?;
        let text = agent::container_json(agent);
        replace(&OsDisk, &folder.container_json(), text.as_bytes())
            .map_err(|error| format!("cannot write {}: {error}", folder.container_json().display()))?;
        let repaired = create::repair_links(&folder, self.clock.wall())
            .map_err(|error| format!("{error}; {}", error.hint()))?;
        if !repaired.is_empty() {
            warn!(self.log, "the agent had changed its folder"; "session" => %spec.name, "repaired" => ?repaired);
        }
        Ok(spec)
    }

    fn recover(&self, effect: EffectId, job: &Recover) {
        let session = job.session;
        let folder = SessionFolder::nested(&job.folder);
        // Left by a daemon that was killed while it was here.
        drop(std::fs::remove_dir_all(&job.into));
        let read =
            outbound::recover(&job.name, &folder, &job.into, Guard::default()).and_then(|mut reader| {
                reader.read(&ReadAsk {
                    cursor: job.plan.cursor.as_ref(),
                    ids: &job.plan.ids,
                    max_rows: RECOVER_ROWS.min(job.plan.room.max(1) as usize),
                    max_bytes: RECOVER_BYTES,
                })
            });
        if let Err(error) = std::fs::remove_dir_all(&job.into) {
            error!(self.log, "cannot remove a recovered copy"; "path" => %job.into.display(), "error" => %error);
        }
        let heartbeat_changed = job.heartbeat_changed;
        send(&self.events, Event::Recovered { effect, session, heartbeat_changed, result: read });
    }
}

fn fetch(job: &Fetch) -> Result<String, (String, bool)> {
    let folder = SessionFolder::nested(&job.folder);
    let mut reader = OutboundReader::new(job.name.clone(), &folder, Guard::default());
    match reader.read_body(job.rowid, &job.id) {
        Ok(Some(Row::Message(row))) => Ok(row.content),
        Ok(Some(Row::Malformed(row))) => Err((row.why, false)),
        Ok(None) => Err(("its row is gone from outbound.db".into(), false)),
        // A hot journal is rolled back by the next runner, and a bad file may be mended.
        Err(error) => Err((error.to_string(), true)),
    }
}
