//! Performs effects: each is handed over to a lane, the reactor, the runtime or a channel. Nothing here waits.
//!
//! Invariant: an effect that completes is answered by exactly one event with its id, also when the part that it was
//! handed to refuses it or gives it up.

mod handing;
mod starting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;
use handing::{Answer, Fetching};
use serde_json::{Value, json};
use slog::{Logger, error, info, warn};
use starting::{Starts, WITHDRAWN, is_wanted};

use super::bodies::Bodies;
use super::config::Config;
use super::ends::Ends;
use super::event::{Brought, Event};
use super::files;
use super::folder::DataFolder;
use super::inbound_lane::{InboundLane, Job, Work};
use super::lanes::{Lanes, Next, Worker};
use super::lookups::{Check, Search, SearchJob, Searcher};
use super::quota::{MEASURE_EVERY, Quota};
use super::stuck::Told;
use super::{agent, words};
use crate::base::disk::replace;
use crate::base::printable::one_line;
use crate::base::{Attempt, Clock, EffectId, MessageNo, OsDisk, Private, SessionName, SessionNo};
use crate::channels::{Capabilities, Channel, Delivery, Settled};
use crate::containers::{Containers, FileOwner, StartSpec};
use crate::machine::effect::{Body, Cause, Effect, LookWhy, Reply, StopReason};
use crate::machine::input::{Input, Reading, Unreadable};
use crate::machine::policy::ROWS_PER_SESSION;
use crate::machine::state::{InState, Source, State};
use crate::reactor::{Reactor, ReadPlan, Signature};
use crate::session::host_side::{Cursor, Guard, OutboundReader, Owner, ReadAsk, Row, create, outbound};
use crate::session::rows::{Address, NewInbound};
use crate::session::{SessionFolder, ids, timestamp};

/// Threads that write inbound.db files. SQLite waits for the disk; more than this many waits at once do not help it.
const INBOUND_THREADS: usize = 4;
/// Threads for everything else that touches files: preparing starts, recovering, resetting, reading texts again.
const SIDE_THREADS: usize = 2;
/// Most bytes of rows that are read from one copy. Copying costs more than reading, so this is more than a read of the
/// original brings; what is left is read from the next copy, when there is room.
const RECOVER_BYTES: usize = 8 << 20;
/// Rows for which there must be room before another copy is made for what was left.
pub const RECOVER_ROOM: u32 = ROWS_PER_SESSION / 2;

/// The parts that effects are handed to.
pub struct Performer {
    /// The data folder.
    pub data: DataFolder,
    config: Arc<Config>,
    log: Logger,
    events: Sender<Event>,
    inbound: Lanes<SessionNo, Job>,
    side: Lanes<SessionNo, Side>,
    searches: Lanes<(), SearchJob>,
    /// Searches end, because the daemon does.
    ended: Arc<AtomicBool>,
    /// The reactor.
    pub reactor: Arc<Reactor>,
    quota: Quota,
    /// The runtime.
    pub containers: Arc<dyn Containers>,
    channels: BTreeMap<&'static str, Arc<dyn Channel>>,
    /// What is known of attempts and files beside the state.
    pub ends: Arc<Ends>,
    /// Texts on their way.
    pub bodies: Bodies,
    env: Vec<(String, Private<String>)>,
    tickets: BTreeMap<u64, EffectId>,
    next_ticket: u64,
    /// What waits for a row's text.
    fetching: BTreeMap<EffectId, Fetching>,
    /// Deliveries that wait for their files.
    copying: BTreeMap<EffectId, (Delivery, &'static str)>,
    starts: Starts,
    live: BTreeSet<SessionNo>,
    /// Of each live session, the messages whose acks were asked for last, and their ids.
    asked: BTreeMap<SessionNo, (Vec<MessageNo>, Arc<[String]>)>,
    answers: BTreeMap<u64, Sender<Result<Value, String>>>,
    next_request: u64,
}

/// Work beside the loop.
enum Side {
    Prepare { effect: EffectId, job: Box<Prepare> },
    Recover(Box<Recover>),
    Check(Box<Check>),
    Fetch { effect: EffectId, job: Box<Fetch> },
    Copy { effect: EffectId, job: Box<files::Copy> },
    Reset { effect: EffectId, folder: PathBuf },
    Discard { folder: PathBuf, id: String },
}

struct Prepare {
    spec: StartSpec,
    folder: PathBuf,
    channels: BTreeMap<&'static str, Vec<&'static str>>,
}

struct Recover {
    session: SessionNo,
    name: SessionName,
    folder: PathBuf,
    into: PathBuf,
    plan: ReadPlan,
    look: Option<(EffectId, bool)>,
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
    /// Knows whose every outbound.db must be.
    containers: Arc<dyn Containers>,
    quota: Quota,
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
        ends: Arc<Ends>,
    ) -> std::io::Result<Self> {
        let reports = events.clone();
        let report = Arc::new(move |input| send(&reports, Event::Input(input)));
        let inbound = Lanes::start(INBOUND_THREADS, Arc::new(InboundLane::new(report, log.clone())))?;
        let reports = events.clone();
        let quota = Quota::start(
            config.limits.out_max,
            MEASURE_EVERY,
            Box::new(move |session, detail| {
                send(&reports, Event::Input(Input::FolderTooLarge { session, detail }));
            }),
        )?;
        let worker = SideWorker {
            config: Arc::clone(&config),
            events: events.clone(),
            clock,
            log: log.clone(),
            containers: Arc::clone(&containers),
            quota: quota.clone(),
        };
        let side = Lanes::start(SIDE_THREADS, Arc::new(worker))?;
        let ended = Arc::new(AtomicBool::new(false));
        let searcher = Searcher { events: events.clone(), ended: Arc::clone(&ended) };
        let searches = Lanes::start(1, Arc::new(searcher))?;
        Ok(Self {
            data,
            config,
            log,
            events,
            inbound,
            side,
            searches,
            ended,
            reactor,
            quota,
            containers,
            channels: BTreeMap::new(),
            ends,
            bodies: Bodies::default(),
            env,
            tickets: BTreeMap::new(),
            next_ticket: 1,
            fetching: BTreeMap::new(),
            copying: BTreeMap::new(),
            starts: Starts::default(),
            live: BTreeSet::new(),
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_request: 1,
        })
    }

    /// Adds a channel.
    pub fn add_channel(&mut self, channel: Arc<dyn Channel>) {
        self.channels.insert(channel.channel_type(), channel);
    }

    /// Whether a channel drops repeats of a key. One that is not known sends nothing.
    pub fn is_idempotent(&self, channel: &str) -> bool {
        self.channels.get(channel).is_some_and(|channel| channel.capabilities().idempotent)
    }

    /// All channels.
    pub fn channels(&self) -> impl Iterator<Item = &Arc<dyn Channel>> {
        self.channels.values()
    }

    /// What a channel can do; nothing for one that is not there.
    pub fn capabilities(&self, name: &str) -> Capabilities {
        self.channels.get(name).map(|channel| channel.capabilities()).unwrap_or_default()
    }

    /// Tells the clients of a session's chat what keeps their messages.
    pub fn tell_stuck(&self, state: &State, session: SessionNo, told: &Told) {
        let Some((channel, chat)) = state.session(session).and_then(|known| known.origin.chat()) else {
            return;
        };
        self.on_channel(channel, |channel| channel.stuck(chat, &told.reason, told.hopeless));
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
            Effect::WriteInbound {
                session,
                id,
                body: body @ Body::Answer { .. },
                trigger,
                origin,
                timestamp,
                ..
            } => {
                let answer = Answer { id, body, trigger, origin, at: timestamp::iso(timestamp) };
                self.write_answer(state, effect, session, answer);
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
                // Of one that became no row.
                let _ = self.bodies.take_arrived(&channel, receipt);
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
                match self.starts.withdraw(session, attempt) {
                    Some(effect) => self.start_failed(effect, WITHDRAWN.into()),
                    None => self.containers.stop(session, attempt, grace),
                }
            }
            Effect::Look { session, why: LookWhy::Inbound } => self.write(state, session, effect, Work::Read),
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
                let named = session.map(|no| name(state, no)).unwrap_or_default();
                let last = session.filter(|_| cause == Cause::Crashed).and_then(|no| self.ends.last(no));
                warn!(self.log, "{}", one_line(&detail); "session" => named, "cause" => ?cause, "count" => count,
                    "last" => last.unwrap_or_default());
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
            Body::Answer { .. } => return None,
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
        let Some(known) = state.session(session) else {
            return self.start_failed(effect, "the session is unknown".into());
        };
        if !is_wanted(state, effect, session, attempt) {
            return self.start_failed(effect, WITHDRAWN.into());
        }
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
            state_dir: self.data.state(&known.name),
            seed_dir: self.data.seed(&known.name),
            timezone: agent.timezone.clone(),
            env: self.env.clone(),
        };
        let channels = self.channels.iter().map(|(&name, it)| (name, it.capabilities().names())).collect();
        self.starts.begin(effect, session, attempt);
        self.side.push(session, Side::Prepare { effect, job: Box::new(Prepare { spec, folder, channels }) });
    }

    /// Everything is in place: watch, scan, and start when the scan is done.
    pub fn prepared(
        &mut self,
        state: &State,
        effect: EffectId,
        session: SessionNo,
        result: Result<StartSpec, String>,
    ) {
        // One that was withdrawn meanwhile was answered then.
        if !self.starts.is_preparing(effect) {
            return;
        }
        match result {
            Err(reason) => self.start_failed(effect, reason),
            Ok(spec) if !is_wanted(state, effect, session, spec.attempt) => {
                self.start_failed(effect, WITHDRAWN.into());
            }
            Ok(spec) => {
                self.make_live(state, session);
                self.reactor.baseline_heartbeat(session);
                match self.reactor.look(session, effect) {
                    Ok(()) => self.starts.scan(effect, spec),
                    Err(refused) => self.start_failed(effect, refused.to_string()),
                }
            }
        }
    }

    /// Whether a start waits for the scan with this ticket.
    pub fn is_scanning(&self, effect: EffectId) -> bool {
        self.starts.is_scanning(effect)
    }

    /// The scan after the watch is done: the runtime is asked to start the attempt, if the machine still wants that
    /// and nothing was found that speaks against it. Else what the machine is to hear.
    pub fn scanned(&mut self, state: &State, effect: EffectId, refusal: Option<String>) -> Option<Input> {
        let spec = self.starts.hand_over(effect)?;
        let withdrawn = || (!is_wanted(state, effect, spec.session, spec.attempt)).then(|| WITHDRAWN.into());
        if let Some(reason) = refusal.or_else(withdrawn) {
            self.gave_up(effect, &reason);
            return Some(Input::ContainerStartFailed { effect, reason });
        }
        self.containers.start(spec);
        None
    }

    fn start_failed(&mut self, effect: EffectId, reason: String) {
        self.gave_up(effect, &reason);
        send(&self.events, Event::Input(Input::ContainerStartFailed { effect, reason }));
    }

    fn gave_up(&mut self, effect: EffectId, reason: &str) {
        if let Some((session, attempt)) = self.starts.give_up(effect) {
            self.ends.not_started(session, attempt, reason);
        }
    }

    /// The runtime says that an attempt runs, or that it does not: the effect that this answers, once.
    pub fn take_start(&mut self, session: SessionNo, attempt: Attempt) -> Option<EffectId> {
        self.starts.answered(session, attempt)
    }

    /// Watches a session from now on.
    pub fn make_live(&mut self, state: &State, no: SessionNo) {
        let Some(session) = state.session(no) else { return };
        self.live.insert(no);
        let folder = SessionFolder::nested(self.data.session(&session.name));
        // Looks of a former life were answered by the machine's own timers.
        let plan = self.plan(state, no);
        let dropped = self.reactor.live(no, session.name.clone(), &folder, plan);
        self.not_looked(no, &dropped, "its folder is watched anew");
        self.quota.watch(no, folder.out_dir());
    }

    /// Ends the watch of a session that has nothing to be watched for.
    pub fn make_dormant(&mut self, state: &State, no: SessionNo) {
        if !self.live.remove(&no) {
            return;
        }
        self.quota.forget(no);
        self.asked.remove(&no);
        if let Some(session) = state.session(no) {
            let folder = SessionFolder::nested(self.data.session(&session.name));
            let dropped = self.reactor.dormant(no, session.name.clone(), &folder, None);
            self.not_looked(no, &dropped, "its folder is not watched any more");
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
            self.not_looked(session, &[effect], &refused.to_string());
        }
    }

    /// Looks that will not be made: each is answered, and the machine asks again.
    fn not_looked(&mut self, session: SessionNo, looks: &[EffectId], why: &str) {
        for &effect in looks {
            if self.starts.is_scanning(effect) {
                self.start_failed(effect, why.to_owned());
                continue;
            }
            let reading = Reading::Unreadable { kind: Unreadable::Busy, detail: why.to_owned() };
            let answer = Input::Looked { effect, session, heartbeat_changed: false, alive: None, reading };
            send(&self.events, Event::Input(answer));
        }
    }

    /// A read met a hot journal although the attempt is gone: what was committed is read from a copy. Says whether it
    /// is under way.
    pub fn recover(&mut self, state: &State, session: SessionNo, look: Option<(EffectId, bool)>) -> bool {
        let Some(known) = state.session(session) else {
            let looks: Vec<EffectId> = look.map(|(effect, _)| effect).into_iter().collect();
            self.not_looked(session, &looks, "the session is unknown");
            return false;
        };
        info!(self.log, "reading a copy: the last attempt left a hot journal"; "session" => %known.name);
        let job = Recover {
            session,
            name: known.name.clone(),
            folder: self.data.session(&known.name),
            into: self.data.recover(&known.name),
            plan: self.plan(state, session),
            look,
        };
        self.side.push(session, Side::Recover(Box::new(job)));
        true
    }

    /// It is to be looked up which rows of a reading were settled before; it comes back as an event.
    pub fn check(&self, state: &State, brought: Box<Brought>) {
        let session = brought.session;
        let check = Check::new(self.folder(state, session), brought);
        self.side.push(session, Side::Check(Box::new(check)));
    }

    /// A message is to be looked for; what was found comes back as an event.
    pub fn search(&self, search: Search, reply: Sender<Result<Value, String>>) {
        self.searches.push((), (search, reply));
    }

    /// What every outbound.db must be like.
    pub fn guard(&self) -> Guard {
        guard(&*self.containers)
    }

    /// What is to be read of a session next, from the machine's state. The list of ids is made anew only when it is
    /// another one.
    pub fn plan(&mut self, state: &State, session: SessionNo) -> ReadPlan {
        let Some(known) = state.session(session) else { return ReadPlan::default() };
        let cursor = known.cursor.clone().map(|(rowid, id)| Cursor { rowid, id });
        // An id that is asked for the first time leads to a read: that is to be when its row is known to be there.
        let open = |no: &MessageNo| {
            let message = state.inbound(*no)?;
            let on_disk = !matches!(message.state, InState::Writing { .. } | InState::Withheld { .. });
            on_disk.then_some((*no, message.id.as_str()))
        };
        let open = known.inbox.iter().filter_map(open);
        let asked = self.asked.get(&session);
        let ids =
            match asked.filter(|(numbers, _)| numbers.iter().copied().eq(open.clone().map(|(no, _)| no))) {
                Some((_, ids)) => Arc::clone(ids),
                None => {
                    let (numbers, mut ids): (Vec<MessageNo>, Vec<String>) =
                        open.map(|(no, id)| (no, id.to_owned())).unzip();
                    ids.sort_unstable();
                    let ids: Arc<[String]> = ids.into();
                    self.asked.insert(session, (numbers, Arc::clone(&ids)));
                    ids
                }
            };
        let taken = u32::try_from(known.outbox.len()).unwrap_or(u32::MAX);
        ReadPlan { cursor, ids, room: ROWS_PER_SESSION.saturating_sub(taken) }
    }

    /// Drops the texts of rows of a session that were read and became no delivery.
    pub fn forget_texts(&mut self, state: &State, session: SessionNo) {
        let outbox = state.session(session).into_iter().flat_map(|known| &known.outbox);
        let open: BTreeSet<&str> = outbox
            .filter_map(|&no| match &state.outbound(no)?.source {
                Source::Row { id, .. } => Some(id.as_str()),
                Source::Notice(_) => None,
            })
            .collect();
        self.bodies.retain(session, &open);
    }

    /// The effect of a delivery that ended.
    pub fn take_ticket(&mut self, ticket: u64) -> Option<EffectId> {
        self.tickets.remove(&ticket)
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

impl Drop for Performer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn name(state: &State, session: SessionNo) -> String {
    state.session(session).map_or_else(|| session.to_string(), |known| known.name.to_string())
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
                Side::Recover(job) => self.recover(&job),
                Side::Check(check) => match check.run() {
                    Ok(brought) => send(&self.events, Event::Brought(brought)),
                    Err((check, wait)) => {
                        jobs.push_front(Side::Check(Box::new(check)));
                        return Next::Again(wait);
                    }
                },
                Side::Fetch { effect, job } => {
                    let result = fetch(&job, guard(&*self.containers));
                    send(&self.events, Event::Fetched { effect, result });
                }
                Side::Copy { effect, job } => {
                    let result = job.run();
                    send(&self.events, Event::Copied { effect, result });
                }
                Side::Reset { effect, folder } => {
                    let folder = SessionFolder::nested(&folder);
                    let done = create::set_aside_outbound(&folder, self.clock.wall());
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
        let Prepare { spec, folder, channels } = job;
        let folder = SessionFolder::nested(&folder);
        let agent = &self.config.agent;
        if let Some(why) = self.quota.refusal(spec.session, &spec.out_dir) {
            return Err(why);
        }
        agent::prepare_folder(&spec.agent_dir, agent)
            .map_err(|error| format!("cannot prepare {}: {error}", spec.agent_dir.display()))?;
        let text = agent::container_json(agent, &channels);
        replace(&OsDisk, &folder.container_json(), text.as_bytes())
            .map_err(|error| format!("cannot write {}: {error}", folder.container_json().display()))?;
        let repaired = create::repair_links(&folder, self.clock.wall())
            .map_err(|error| format!("{error}; {}", error.hint()))?;
        if !repaired.is_empty() {
            warn!(self.log, "the agent had changed its folder"; "session" => %spec.name, "repaired" => ?repaired);
        }
        Ok(spec)
    }

    fn recover(&self, job: &Recover) {
        let folder = SessionFolder::nested(&job.folder);
        // Left by a daemon that was killed while it was here.
        drop(std::fs::remove_dir_all(&job.into));
        let result = outbound::recover(&job.name, &folder, &job.into, guard(&*self.containers)).and_then(
            |mut reader| {
                reader.read(&ReadAsk {
                    cursor: job.plan.cursor.as_ref(),
                    ids: &job.plan.ids,
                    max_rows: job.plan.room.max(1) as usize,
                    max_bytes: RECOVER_BYTES,
                })
            },
        );
        if let Err(error) = std::fs::remove_dir_all(&job.into) {
            error!(self.log, "cannot remove a recovered copy"; "path" => %job.into.display(), "error" => %error);
        }
        let brought = Brought { session: job.session, look: job.look, result, copied: true, settled: None };
        send(&self.events, Event::Brought(Box::new(brought)));
    }
}

/// What every outbound.db must be like, as far as is known now.
pub fn guard(containers: &dyn Containers) -> Guard {
    let owner = match containers.owner() {
        FileOwner::Any => Owner::Any,
        FileOwner::User(user) => Owner::User(user),
        FileOwner::NotKnown => Owner::NotKnown,
    };
    Guard { owner, ..Guard::default() }
}

fn fetch(job: &Fetch, guard: Guard) -> Result<String, (String, bool)> {
    let folder = SessionFolder::nested(&job.folder);
    let mut reader = OutboundReader::new(job.name.clone(), &folder, guard);
    match reader.read_body(job.rowid, &job.id) {
        Ok(Some(Row::Message(row))) => Ok(row.content),
        Ok(Some(Row::Malformed(row))) => Err((row.why, false)),
        Ok(None) => Err(("its row is gone from outbound.db".into(), false)),
        // A hot journal is rolled back by the next runner, and a bad file may be mended.
        Err(error) => Err((error.to_string(), true)),
    }
}
