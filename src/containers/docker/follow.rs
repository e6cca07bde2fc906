//! Follows the engine: its events, and now and then everything that it lists.
//!
//! Events end at a restart of the engine and little of them is replayed, so the order is: subscribe, list, compare.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;

use super::body::LABEL_INSTALLATION;
use super::engine::{Engine, EngineError, News};
use super::{DockerError, Shared, Table, Taken, lock, whose};
use crate::base::SessionNo;
use crate::containers::ContainerEvent;

/// First and longest wait before the engine is tried again; doubles each time.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// The second comparison after a connection: by then the subscription is certainly in place.
const COMPARE_SOON: Duration = Duration::from_secs(1);
/// Events of so many seconds before the subscription are asked for; those that are known already change nothing.
const OVERLAP_SECS: i64 = 10;

/// Follows the engine for as long as the runtime lives.
pub async fn forever(shared: Arc<Shared>) {
    let mut wait = AGAIN_FIRST;
    loop {
        let begun = Instant::now();
        let error = match once(&shared).await {
            Ok(()) => DockerError::Engine(EngineError::Away {
                address: shared.engine.address().to_owned(),
                why: "it ended its events".into(),
            }),
            Err(error) => error,
        };
        shared.lost(error);
        if begun.elapsed() > AGAIN_MAX {
            wait = AGAIN_FIRST;
        }
        tokio::time::sleep(wait + jitter(wait)).await;
        wait = (wait * 2).min(AGAIN_MAX);
    }
}

/// Up to a quarter of it, by the clock's last digits: installations on one engine should not come back in step.
pub fn jitter(wait: Duration) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (wait / 4).mul_f64(f64::from(now.subsec_nanos() % 1_000) / 1_000.0)
}

/// One connection, until it ends.
async fn once(shared: &Arc<Shared>) -> Result<(), DockerError> {
    shared.connect().await?;
    if !shared.is_stock_taken() {
        let found = shared.take_stock().await?;
        shared.tell_stock(found);
    }
    let mut news = pin!(subscribe(&shared.engine, &shared.settings.installation)?);
    let (mut next, mut soon) = (Instant::now(), true);
    loop {
        tokio::select! {
            // The first poll sends the subscription.
            biased;
            event = news.next() => match event {
                Some(event) => shared.hear(event?),
                None => return Ok(()),
            },
            () = shared.again.notified() => next = Instant::now(),
            () = tokio::time::sleep_until(next.into()) => {
                shared.compare().await?;
                shared.back(&mut lock(&shared.table));
                shared.renew_image().await;
                let every = shared.engine.patience().compare;
                next = Instant::now() + if std::mem::take(&mut soon) { COMPARE_SOON.min(every) } else { every };
            }
        }
    }
}

fn subscribe(
    engine: &Engine,
    installation: &str,
) -> Result<impl futures_util::Stream<Item = Result<News, EngineError>>, EngineError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let since = i64::try_from(now.as_secs()).unwrap_or(0).saturating_sub(OVERLAP_SECS).max(0);
    engine.news(LABEL_INSTALLATION, installation, since)
}

impl Shared {
    fn hear(&self, news: News) {
        match news {
            News::Died { id } => {
                if let Some((_, slot)) = lock(&self.table).of(&id) {
                    slot.look.notify_one();
                }
            }
            News::OutOfMemory { id } => {
                let whose = lock(&self.table).of(&id).map(|(session, slot)| (session, slot.attempt));
                if let Some((session, attempt)) = whose {
                    self.tell_out_of_memory(session, attempt);
                }
            }
        }
    }

    /// Compares what the engine lists with what is believed. What nobody knows is ended beside this.
    async fn compare(self: &Arc<Self>) -> Result<(), EngineError> {
        let listed = self.listed().await?;
        let running: BTreeMap<&str, bool> = listed.iter().map(|it| (it.id.as_str(), it.running)).collect();
        let mut orphans = Vec::new();
        {
            let table = lock(&self.table);
            for slot in table.attempts.values() {
                let Some(id) = slot.id.as_deref() else { continue };
                if running.get(id) != Some(&true) {
                    // Its own task asks the engine: this list is older than the answer will be.
                    slot.look.notify_one();
                }
            }
            for it in &listed {
                let (name, attempt) = whose(it);
                let is_attempt = table.attempts.values().any(|slot| {
                    slot.id.as_deref() == Some(it.id.as_str())
                        || (Some(&slot.name) == name.as_ref() && Some(slot.attempt) == attempt)
                });
                let is_known = is_attempt
                    || table.found.values().any(|id| *id == it.id)
                    || table.removing.contains(&it.id)
                    || table.leftovers.contains_key(&it.id);
                if !is_known {
                    orphans.push((it.id.clone(), name));
                }
            }
        }
        for (id, name) in orphans {
            self.give_up(id, name);
        }
        Ok(())
    }

    /// The engine was lost, or is not to be used.
    fn lost(&self, error: DockerError) {
        let reason = error.reason();
        let mut table = lock(&self.table);
        match table.stock {
            Taken::Asked | Taken::Failed => {
                // Whoever waits for it tells the loop.
                table.trouble = Some(reason);
                table.stock = match error {
                    DockerError::Engine(_) => Taken::Failed,
                    other => Taken::Refused(other),
                };
                self.changed.notify_all();
            }
            _ => self.away(&mut table, reason),
        }
    }

    /// Asks whether the engine is there at all, after it gave no answer: what an attempt meets is told as an outage
    /// before it is told as a start that failed.
    pub async fn doubt(&self, error: &EngineError) {
        if matches!(error, EngineError::Away { .. }) && self.engine.ping().await.is_err() {
            self.away(&mut lock(&self.table), format!("{error}; {}", error.hint()));
            self.again.notify_one();
        }
    }

    /// It is away. Told under the lock: whoever sees the trouble is behind the news of it.
    fn away(&self, table: &mut Table, reason: String) {
        table.trouble = Some(reason.clone());
        self.changed.notify_all();
        if !std::mem::replace(&mut table.told_away, true) {
            (self.sink)(ContainerEvent::Runtime { trouble: Some(reason) });
        }
    }

    /// It can be used.
    pub fn back(&self, table: &mut Table) {
        table.trouble = None;
        self.changed.notify_all();
        if std::mem::take(&mut table.told_away) {
            (self.sink)(ContainerEvent::Runtime { trouble: None });
        }
    }
}

impl Table {
    /// The attempt that a container is.
    fn of(&self, id: &str) -> Option<(SessionNo, &super::Slot)> {
        let mut all = self.attempts.iter().map(|(&session, slot)| (session, slot));
        all.find(|(_, slot)| slot.id.as_deref() == Some(id))
    }
}
