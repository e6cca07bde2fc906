//! What is looked up in session files for the loop, beside it: which rows were settled before, and which session has
//! the message that an operator names.
//!
//! Invariant: a reading that waits here is not dropped for a lock of a moment: the lock is waited for as long as the
//! machine waits before it ends who holds it, and then the session is looked at again.
//! Invariant: a search is bounded in time whatever the files are like, and reads no history.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde_json::Value;

use super::event::{Brought, Event};
use super::facts;
use super::lanes::{Next, Worker};
use super::perform::send;
use crate::base::{SessionName, SessionNo};
use crate::machine::input::{Ask, Due, PendingRow};
use crate::machine::policy::INBOUND_LOCK_MAX;
use crate::session::SessionFolder;
use crate::session::host_side::{Guard, InboundWriteError, InboundWriter, OutboundReader};
use crate::session::rows::NewInbound;

/// First wait for a lock on inbound.db; doubles up to [`AGAIN_MAX`].
const AGAIN_FIRST: Duration = Duration::from_millis(20);
/// The longest of these waits.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// The longest search: twenty folders that take the whole budget of a read, or some ten thousand others.
const SEARCH_MAX: Duration = Duration::from_secs(10);

/// Which of these outbound messages have a `delivered` row.
///
/// # Errors
/// When inbound.db cannot be read.
pub fn delivered<S: AsRef<str>>(
    folder: &SessionFolder,
    ids: &[S],
) -> Result<BTreeSet<String>, InboundWriteError> {
    let rows = InboundWriter::open(folder)?.delivered(ids)?;
    Ok(rows.into_iter().map(|row| row.message_out_id).collect())
}

/// A reading of which nobody knows yet what was settled before.
pub struct Check {
    folder: PathBuf,
    brought: Box<Brought>,
    since: Instant,
    wait: Duration,
}

impl Check {
    /// Rows that are read from the beginning may have been delivered long ago: the `delivered` table of the session's
    /// folder knows.
    pub fn new(folder: PathBuf, brought: Box<Brought>) -> Self {
        Self { folder, brought, since: Instant::now(), wait: AGAIN_FIRST }
    }

    /// Looks once. Gives the reading back, or how long to wait for a lock.
    pub fn run(mut self) -> Result<Box<Brought>, (Self, Duration)> {
        let rows = self.brought.result.as_ref().map(|reading| reading.rows.as_slice()).unwrap_or_default();
        let ids: Vec<String> = rows.iter().map(facts::id_of).collect();
        let settled = match delivered(&SessionFolder::nested(&self.folder), &ids) {
            Err(error) if error.is_locked() && self.since.elapsed() < Duration::from(INBOUND_LOCK_MAX) => {
                let wait = self.wait;
                self.wait = (wait * 2).min(AGAIN_MAX);
                return Err((self, wait));
            }
            found => found,
        };
        self.brought.settled = Some(settled);
        Ok(self.brought)
    }
}

/// What an operator names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An inbound message that is to be tried again, by its own id or by the one that the group was appended to.
    Inbound([String; 2]),
    /// An outbound message that is to be delivered again.
    Outbound(String),
}

/// A search through all sessions.
#[derive(Clone, Debug)]
pub struct Search {
    /// For what.
    pub wanted: Wanted,
    /// The sessions in the order in which they are searched.
    pub places: Vec<(SessionNo, SessionName, PathBuf)>,
    /// Key of the digests.
    pub seed: u64,
    /// What every outbound.db must be like.
    pub guard: Guard,
}

impl Search {
    /// The question to the machine.
    ///
    /// # Errors
    /// When no session has the message, or time is up.
    pub fn run(&self, limit: Duration, ended: &AtomicBool) -> Result<Ask, String> {
        let until = Instant::now() + limit;
        let mut failed = 0;
        for (n, place) in self.places.iter().enumerate() {
            if ended.load(Ordering::Relaxed) {
                return Err("the daemon is stopping".into());
            }
            if Instant::now() >= until {
                let all = self.places.len();
                return Err(format!(
                    "looked for it in {n} of {all} sessions and found nothing in {} s; see in `lamplighter status` \
                     which sessions cannot be read",
                    limit.as_secs()
                ));
            }
            match self.look(place) {
                Ok(Some(ask)) => return Ok(ask),
                Ok(None) => {}
                // One that cannot be read now is not the one, or nothing can be done about the message now.
                Err(()) => failed += 1,
            }
        }
        let (direction, id) = match &self.wanted {
            Wanted::Inbound([id, _]) => ("inbound", id),
            Wanted::Outbound(id) => ("outbound", id),
        };
        let but = if failed > 0 {
            format!(" in any session but {failed} that cannot be read now")
        } else {
            String::new()
        };
        Err(format!("no {direction} message has the id {id:?}{but}"))
    }

    fn look(&self, (no, name, path): &(SessionNo, SessionName, PathBuf)) -> Result<Option<Ask>, ()> {
        let folder = SessionFolder::nested(path);
        match &self.wanted {
            Wanted::Inbound(ids) => {
                let writer = InboundWriter::open(&folder).map_err(drop)?;
                for id in ids {
                    if let Some(row) = writer.message(id).map_err(drop)? {
                        return Ok(Some(Ask::RetryMessage { session: *no, row: pending(row) }));
                    }
                }
                Ok(None)
            }
            Wanted::Outbound(id) => {
                let mut reader = OutboundReader::new(name.clone(), &folder, self.guard);
                let row = reader.find(id).map_err(drop)?;
                Ok(row.map(|row| Ask::ResendMessage { session: *no, row: facts::of_row(&row, self.seed) }))
            }
        }
    }
}

fn pending(row: NewInbound) -> PendingRow {
    PendingRow { id: row.id, seq: None, trigger: row.trigger, tries: 0, due: Due::Now, origin: row.address }
}

/// A search and whom it is for.
pub type SearchJob = (Search, Sender<Result<Value, String>>);

/// Searches, one after another: operators are few, and the sessions' own work must not wait for them.
pub struct Searcher {
    /// Where the findings go.
    pub events: Sender<Event>,
    /// The daemon ends: whoever waits is told so.
    pub ended: Arc<AtomicBool>,
}

impl Worker<(), SearchJob> for Searcher {
    fn work(&self, (): &(), jobs: &mut VecDeque<SearchJob>) -> Next {
        while let Some((search, reply)) = jobs.pop_front() {
            let result = search.run(SEARCH_MAX, &self.ended);
            send(&self.events, Event::Found { result, reply });
        }
        Next::Done
    }
}

#[cfg(test)]
mod tests;
