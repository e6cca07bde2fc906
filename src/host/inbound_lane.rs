//! The lane of one session's inbound.db: rows inserted and changed in the order in which the machine asked.
//!
//! Changes that stand next to each other are made in one transaction. A container can hold a read lock for ever: a
//! write waits a quarter of a second, then its lane is put aside; the machine hears of it after ten seconds.
//!
//! Invariant: every job ends in exactly one input. A change that can not be made now is tried again; meanwhile nobody
//! waits behind it in vain: of a damaged file all jobs end at once and the machine hears of that first, and for want of
//! room on the disk the senders of messages get them back.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use slog::{Logger, debug, warn};

use super::found::{self, Found};
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
    /// Say what the file says, as at the start.
    Read,
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

impl Job {
    /// The input that it ends in when it cannot be done.
    fn given_up(&self, reason: &str) -> Input {
        let effect = self.effect;
        match self.work {
            Work::Insert(_) => Input::InboundWriteFailed { effect, reason: reason.to_owned() },
            Work::Read => {
                let Found { found, whole } = Found::unreadable(&self.name, reason.to_owned());
                Input::InboundRead { effect, found, whole }
            }
            Work::Create { .. } | Work::Update { .. } | Work::Record { .. } | Work::Project { .. } => {
                Input::EffectDone { effect, error: Some(reason.to_owned()) }
            }
        }
    }
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
    /// How long a lane fails before somebody hears of it.
    patience: Duration,
}

impl InboundLane {
    /// Reports completions through `report`.
    pub fn new(report: Arc<dyn Fn(Input) + Send + Sync>, log: Logger) -> Self {
        Self { report, log, failing: Mutex::new(BTreeMap::new()), patience: INBOUND_LOCK_MAX.into() }
    }

    fn create(&self, job: &Job, origin: &Address) -> Result<(), String> {
        match create::create(&job.folder) {
            Ok(_) | Err(create::FolderError::Exists { .. }) => {}
            Err(error) => return Err(format!("{error}; {}", error.hint())),
        }
        let mut writer =
            InboundWriter::open(&SessionFolder::nested(&job.folder)).map_err(|e| e.to_string())?;
        writer.apply(&project(origin)).map(drop).map_err(|error| error.to_string())
    }

    /// What the file says; a file that cannot be used says that.
    fn read(&self, job: &Job) -> Result<Input, InboundWriteError> {
        let effect = job.effect;
        match found::read(&job.name, &job.folder, &[]) {
            Ok(Found { found, whole }) => Ok(Input::InboundRead { effect, found, whole }),
            Err(error) if error.is_locked() => Err(error),
            Err(error) => Ok(job.given_up(&format!("{error}; {}", error.hint()))),
        }
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
                    Work::Insert(_) | Work::Create { .. } | Work::Read => break,
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

    /// Whether it has failed for so long that somebody is to hear of it, and when it is tried again.
    fn failed(&self, no: SessionNo, locked: bool, why: &str) -> (bool, Next) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = failing.entry(no).or_insert(Failing { since: Instant::now(), wait: AGAIN_FIRST });
        let wait = entry.wait;
        entry.wait = (entry.wait * 2).min(AGAIN_MAX);
        let tell = entry.since.elapsed() >= self.patience;
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
        (tell, Next::Again(wait))
    }

    fn answered(&self, no: SessionNo) {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).remove(&no);
    }

    /// The file is none that can be used: the machine hears of it, and all jobs end.
    fn unusable(&self, no: SessionNo, jobs: &mut VecDeque<Job>, error: &InboundWriteError) {
        let detail = format!("{error}; {}", error.hint());
        (self.report)(Input::InboundUnwritable { session: no, detail: detail.clone() });
        jobs.drain(..).for_each(|job| (self.report)(job.given_up(&detail)));
        self.answered(no);
    }

    /// The messages that wait go back to their senders; what the machine asked to change stays.
    fn give_back(&self, jobs: &mut VecDeque<Job>, error: &InboundWriteError) {
        let reason = format!("{error}; {}", error.hint());
        for job in std::mem::take(jobs) {
            match job.work {
                Work::Insert(_) => (self.report)(job.given_up(&reason)),
                _ => jobs.push_back(job),
            }
        }
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
            let done = match &job.work {
                Work::Read => self.read(job).map(|input| {
                    jobs.pop_front();
                    (self.report)(input);
                }),
                _ => self.write(jobs),
            };
            let Err(error) = done else { continue };
            if error.is_locked() {
                return self.failed(no, true, &error.to_string()).1;
            }
            let inserts = matches!(jobs.front(), Some(Job { work: Work::Insert(_), .. }));
            if error.is_damage() || !(inserts || error.may_pass()) {
                self.unusable(no, jobs, &error);
                return Next::Done;
            }
            if inserts && let Some(job) = jobs.pop_front() {
                // A message whose row cannot be written is given back to its sender at once: the sender waits.
                (self.report)(job.given_up(&format!("{error}; {}", error.hint())));
                continue;
            }
            let (told, next) = self.failed(no, false, &error.to_string());
            if told {
                self.give_back(jobs, &error);
            }
            return next;
        }
        self.answered(no);
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
        Work::Insert(_) | Work::Create { .. } | Work::Read => Vec::new(),
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::base::RecordNo;
    use crate::host::lanes::Lanes;

    /// Long enough for any machine under any load.
    const DEADLINE: Duration = Duration::from_secs(60);
    const NO: SessionNo = SessionNo(1);

    struct Bench {
        _dir: tempfile::TempDir,
        folder: PathBuf,
        lanes: Lanes<SessionNo, Job>,
        heard: Receiver<Input>,
    }

    fn effect(n: u64) -> EffectId {
        EffectId { record: RecordNo(n), index: 0 }
    }

    impl Bench {
        fn new(patience: Duration) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("s");
            create::create(&folder).unwrap();
            InboundWriter::open(&SessionFolder::nested(&folder)).unwrap();
            let (tell, heard) = channel();
            let tell = Mutex::new(tell);
            let report = Arc::new(move |input| drop(tell.lock().unwrap().send(input)));
            let mut lane = InboundLane::new(report, Logger::root(slog::Discard, slog::o!()));
            lane.patience = patience;
            let lanes = Lanes::start(1, Arc::new(lane)).unwrap();
            Self { _dir: dir, folder, lanes, heard }
        }

        fn push(&self, n: u64, work: Work) {
            let name = SessionName::new("g", "s").unwrap();
            self.lanes.push(NO, Job { effect: effect(n), folder: self.folder.clone(), name, work });
        }

        fn next(&self) -> Input {
            self.heard.recv_timeout(DEADLINE).expect("nothing was heard of the lane")
        }

        fn database(&self) -> PathBuf {
            SessionFolder::nested(&self.folder).inbound_db()
        }
    }

    fn record(id: &str) -> Work {
        Work::Record { id: id.into(), delivered: true, platform_id: None, at: Wall(0) }
    }

    fn insert(id: &str) -> Work {
        let at = "2026-01-01T00:00:00.000Z".to_owned();
        Work::Insert(Box::new(NewInbound::new(id, "chat", at, Address::default(), "{}")))
    }

    #[test]
    fn a_read_lock_that_is_held_is_told_of_and_what_waited_is_done_when_it_is_gone() {
        let bench = Bench::new(Duration::from_millis(300));
        let holder = rusqlite::Connection::open(bench.database()).unwrap();
        holder.execute_batch("BEGIN; SELECT count(*) FROM messages_in").unwrap();
        bench.push(1, record("r1"));
        bench.push(2, insert("m1"));
        assert_eq!(bench.next(), Input::InboundLocked { session: NO });
        holder.execute_batch("ROLLBACK").unwrap();
        let mut ends = Vec::new();
        while ends.len() < 2 {
            match bench.next() {
                // Told again for as long as it lasted.
                Input::InboundLocked { .. } => {}
                end => ends.push(end),
            }
        }
        assert_eq!(ends[0], Input::EffectDone { effect: effect(1), error: None });
        assert!(matches!(ends[1], Input::InboundWritten { duplicate: false, .. }), "{ends:?}");
    }

    #[test]
    fn a_damaged_file_ends_all_that_waits_and_is_told_of_first() {
        let bench = Bench::new(DEADLINE);
        std::fs::write(bench.database(), "no database".repeat(1_000)).unwrap();
        let holder = bench.database();
        bench.push(1, record("r1"));
        let Input::InboundUnwritable { session: NO, detail } = bench.next() else { panic!("not told first") };
        assert!(detail.contains("put a copy back"), "{detail}");
        assert!(matches!(bench.next(), Input::EffectDone { error: Some(_), .. }));
        bench.push(2, insert("m1"));
        assert!(matches!(bench.next(), Input::InboundUnwritable { .. }));
        assert!(matches!(bench.next(), Input::InboundWriteFailed { .. }));
        bench.push(3, Work::Read);
        let Input::InboundRead { found, .. } = bench.next() else { panic!("not read") };
        assert!(found.unreadable.is_some());
        std::fs::remove_file(holder).unwrap();
        bench.push(4, insert("m1"));
        assert!(matches!(bench.next(), Input::InboundWritten { duplicate: false, .. }));
        bench.push(5, Work::Read);
        let Input::InboundRead { found, whole: true, .. } = bench.next() else { panic!("not read") };
        assert_eq!(found.pending.len(), 1);
    }
}
