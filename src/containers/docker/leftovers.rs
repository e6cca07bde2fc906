//! Containers that must go: of an earlier daemon, of another image, or known to nobody. Each is ended by a task of its
//! own, again and again with growing waits, until it is gone. One that does not go is said once, and stands in the way
//! of its own session only.

use std::sync::Arc;
use std::time::Duration;

use super::engine::EngineError;
use super::follow::jitter;
use super::{Shared, lock};
use crate::base::SessionName;

/// First and longest wait before a container that would not go is tried again; doubles each time.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// A container that must go.
pub struct Leftover {
    /// Whose next start waits for it; none when it is nobody's.
    session: Option<SessionName>,
    /// Whether it was tried.
    tried: bool,
}

impl Shared {
    /// Has a container ended, by its id or name. To be called where tasks can be spawned.
    pub fn give_up(self: &Arc<Self>, container: String, session: Option<SessionName>) {
        let leftover = Leftover { session, tried: false };
        if lock(&self.table).leftovers.insert(container.clone(), leftover).is_some() {
            // Its task is under way.
            return;
        }
        let shared = Arc::clone(self);
        drop(tokio::spawn(async move {
            let mut wait = AGAIN_FIRST;
            while let Err(error) = shared.end_leftover(&container).await {
                let short: String = container.chars().take(12).collect();
                // An engine that is away says so itself.
                if !error.is_outage() {
                    shared.warn(format!("a container that is left over does not go: {short}: {error}"));
                }
                tokio::time::sleep(wait + jitter(wait)).await;
                wait = (wait * 2).min(AGAIN_MAX);
                if !lock(&shared.table).leftovers.contains_key(&container) {
                    return;
                }
            }
        }));
    }

    /// One try.
    async fn end_leftover(&self, container: &str) -> Result<(), EngineError> {
        let grace = i32::try_from(self.settings.stop_grace.0.div_ceil(1_000)).unwrap_or(i32::MAX);
        let done = self.engine.end(container, grace).await;
        let mut table = lock(&self.table);
        if done.is_ok() {
            table.leftovers.remove(container);
        } else if let Some(leftover) = table.leftovers.get_mut(container) {
            leftover.tried = true;
        }
        drop(table);
        self.tried.notify_waiters();
        done
    }

    /// Waits until each was tried once, or for so long.
    pub async fn first_tries(&self, patience: Duration) {
        let all_tried = async {
            loop {
                let told = self.tried.notified();
                tokio::pin!(told);
                // From here on nothing is missed.
                told.as_mut().enable();
                if lock(&self.table).leftovers.values().all(|it| it.tried) {
                    return;
                }
                told.await;
            }
        };
        drop(tokio::time::timeout(patience, all_tried).await);
    }

    /// Ends what is left over of a session, all of it at once.
    ///
    /// # Errors
    /// When something of it does not go; it may still write.
    pub async fn clear(self: &Arc<Self>, name: &SessionName) -> Result<(), EngineError> {
        let own = |table: &super::Table| -> Vec<String> {
            let all = table.leftovers.iter().filter(|(_, it)| it.session.as_ref() == Some(name));
            all.map(|(container, _)| container.clone()).collect()
        };
        let containers = own(&lock(&self.table));
        let tries: Vec<_> = containers
            .into_iter()
            .map(|container| {
                let shared = Arc::clone(self);
                tokio::spawn(async move { shared.end_leftover(&container).await })
            })
            .collect();
        for tried in tries {
            // A task that panicked has ended nothing; what it was to end is still listed.
            if let Ok(done) = tried.await {
                done?;
            }
        }
        Ok(())
    }
}
