//! The lane of one session's inbound.db: rows inserted and changed in the order in which the machine asked.
//!
//! Changes that stand next to each other are made in one transaction. A container can hold a read lock for ever: a
//! write waits a quarter of a second, then its lane is put aside; the machine hears of it after ten seconds.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use slog::{Logger, debug, warn};

use super::lanes::{Next, Worker};
use crate::base::{EffectId, SessionName, SessionNo, Wall};
use crate::machine::effect::InboundChange;
use crate::machine::input::Input;
use crate::machine::policy::INBOUND_LOCK_MAX;
use crate::session::SessionFolder;
use crate::session::host_side::{Change, InboundWriteError, InboundWriter, create};
use crate::session::rows::{Address, Delivered, Destination, InboundStatus, NewInbound, Target};
use crate::session::timestamp;

/// First wait after a failure; doubles up to [`AGAIN_MAX`].
const AGAIN_FIRST: Duration = Duration::from_millis(20);
/// The longest wait: a lock that is let go or a disk that has room again is found out about within it.
const AGAIN_MAX: Duration = Duration::from_secs(2);
/// Most changes in one transaction, so that the lock is never held for long.
const BATCH_MAX: usize = 64;

/// One thing to do.
#[derive(Debug)]
pub struct Job {
    /// Whose completion it is.
    pub effect: EffectId,
    /// The session's folder.
    pub folder: PathBuf,
    /// Its name.
    pub name: SessionName,
    /// What.
    pub work: Work,
}

/// What is to be done.
#[derive(Debug)]
pub enum Work {
    /// Build the folder with its routing.
    Create {
        /// The session's chat.
        origin: Address,
    },
    /// Insert a row if none of that id is there.
    Insert(Box<NewInbound>),
    /// Change a row.
    Update {
        /// messages_in.id.
        id: String,
        /// The change.
        change: InboundChange,
    },
    /// Record a delivery.
    Record {
        /// messages_out.id.
        id: String,
        /// Whether it arrived.
        delivered: bool,
        /// The platform's id.
        platform_id: Option<String>,
        /// When.
        at: Wall,
    },
    /// Replace destinations and routing.
    Project {
        /// The session's chat.
        origin: Address,
    },
}

/// How long a lane has been failing.
#[derive(Clone, Copy)]
struct Failing {
    since: Instant,
    wait: Duration,
}

/// Does the work of the lanes.
pub struct InboundLane {
    report: Arc<dyn Fn(Input) + Send + Sync>,
    log: Logger,
    failing: Mutex<BTreeMap<SessionNo, Failing>>,
}

impl InboundLane {
    /// Reports completions through `report`.
    pub fn new(report: Arc<dyn Fn(Input) + Send + Sync>, log: Logger) -> Self {
        Self { report, log, failing: Mutex::new(BTreeMap::new()) }
    }

    fn create(&self, job: &Job, origin: &Address) -> Result<(), String> {
        match create::create(&job.folder, None) {
            Ok(_) | Err(create::FolderError::Exists { .. }) => {}
            Err(error) => return Err(format!("{error}; {}", error.hint())),
        }
        let mut writer =
            InboundWriter::open(&SessionFolder::nested(&job.folder)).map_err(|e| e.to_string())?;
        writer.apply(&project(origin)).map(drop).map_err(|error| error.to_string())
    }

    /// Does the jobs at the front that the same open file serves.
    fn write(&self, jobs: &mut VecDeque<Job>) -> Result<(), InboundWriteError> {
        let Some(first) = jobs.front() else { return Ok(()) };
        let mut writer = InboundWriter::open(&SessionFolder::nested(&first.folder))?;
        loop {
            let mut changes = Vec::new();
            let mut batched = 0;
            for job in jobs.iter().take(BATCH_MAX) {
                match &job.work {
                    Work::Update { .. } | Work::Record { .. } | Work::Project { .. } => {
                        changes.extend(changes_of(&job.work));
                        batched += 1;
                    }
                    Work::Insert(_) | Work::Create { .. } => break,
                }
            }
            if batched > 0 {
                writer.apply(&changes)?;
                for job in jobs.drain(..batched) {
                    (self.report)(Input::EffectDone { effect: job.effect, error: None });
                }
                continue;
            }
            let Some(Job { effect, work: Work::Insert(row), .. }) = jobs.front() else { return Ok(()) };
            let done = writer.insert_if_absent(row)?;
            let written = Input::InboundWritten {
                effect: *effect,
                seq: done.seq.unwrap_or(0),
                duplicate: done.duplicate,
            };
            jobs.pop_front();
            (self.report)(written);
        }
    }

    fn failed(&self, no: SessionNo, locked: bool, why: &str) -> Next {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = failing.entry(no).or_insert(Failing { since: Instant::now(), wait: AGAIN_FIRST });
        let wait = entry.wait;
        entry.wait = (entry.wait * 2).min(AGAIN_MAX);
        let tell = entry.since.elapsed() >= Duration::from(INBOUND_LOCK_MAX);
        if tell {
            // Told again after as long again, in case the first stop did not help.
            entry.since = Instant::now();
        }
        drop(failing);
        if tell {
            warn!(self.log, "inbound.db cannot be written"; "session" => %no, "why" => why);
            if locked {
                (self.report)(Input::InboundLocked { session: no });
            }
        } else {
            debug!(self.log, "inbound.db is tried again"; "session" => %no, "why" => why);
        }
        Next::Again(wait)
    }
}

impl Worker<SessionNo, Job> for InboundLane {
    fn work(&self, &no: &SessionNo, jobs: &mut VecDeque<Job>) -> Next {
        while let Some(job) = jobs.front() {
            if let Work::Create { origin } = &job.work {
                let error = self.create(job, origin).err();
                (self.report)(Input::EffectDone { effect: job.effect, error });
                jobs.pop_front();
                continue;
            }
            match self.write(jobs) {
                Ok(()) => {}
                Err(error) if error.is_locked() => return self.failed(no, true, &error.to_string()),
                Err(error) => {
                    // A message whose row cannot be written is given back to its sender at once: the sender waits.
                    if let Some(Job { effect, work: Work::Insert(_), .. }) = jobs.front() {
                        let reason = format!("{error}; {}", error.hint());
                        (self.report)(Input::InboundWriteFailed { effect: *effect, reason });
                        jobs.pop_front();
                        continue;
                    }
                    return self.failed(no, false, &error.to_string());
                }
            }
        }
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).remove(&no);
        Next::Done
    }
}

fn changes_of(work: &Work) -> Vec<Change> {
    match work {
        Work::Update { id, change } => vec![match change {
            InboundChange::Complete => Change::SetStatus { id: id.clone(), status: InboundStatus::Completed },
            InboundChange::Fail => Change::SetStatus { id: id.clone(), status: InboundStatus::Failed },
            InboundChange::Reschedule { tries, process_after } => {
                Change::Reschedule { id: id.clone(), tries: *tries, process_after: *process_after }
            }
        }],
        Work::Record { id, delivered, platform_id, at } => vec![Change::RecordDelivered(Delivered {
            message_out_id: id.clone(),
            platform_message_id: platform_id.clone(),
            delivered: *delivered,
            delivered_at: timestamp::sqlite(*at),
        })],
        Work::Project { origin } => project(origin),
        Work::Insert(_) | Work::Create { .. } => Vec::new(),
    }
}

/// What the agent may name, and where its answers go: its own chat (see `machine::route`).
fn project(origin: &Address) -> Vec<Change> {
    let destinations = origin.chat().map(|(channel, chat)| Destination {
        name: chat.strip_prefix(channel).and_then(|rest| rest.strip_prefix(':')).unwrap_or(chat).to_owned(),
        display_name: None,
        target: Target::Channel { channel_type: channel.to_owned(), platform_id: chat.to_owned() },
    });
    vec![Change::ReplaceDestinations(destinations.into_iter().collect()), Change::SetRouting(origin.clone())]
}
