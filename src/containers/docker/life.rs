//! The life of one attempt: created, started, watched, ended, removed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::body;
use super::engine::{EngineError, Output, State};
use super::lines::Lines;
use super::{DockerError, Shared, lock, owners};
use crate::base::{Attempt, SessionNo};
use crate::containers::{ContainerEvent, Exit, StartSpec};

/// The state is asked for again after so long when an order had no effect or no answer came: there is no event for
/// either.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The first wait before the state is asked for again when news came and yet it runs: an engine may tell of an end
/// before it says so when asked. Doubles.
const SETTLE_FIRST: Duration = Duration::from_millis(20);
/// How often it is asked so; about five seconds in all.
const SETTLE_TRIES: u32 = 8;
/// How long output that was written before the end is still read after it.
const DRAIN_MAX: Duration = Duration::from_millis(200);
/// Codes above this are signals, as an engine and every shell have them.
const SIGNAL_BASE: i64 = 128;
/// What the kernel kills with.
const KILL: i64 = 9;
/// The highest signal.
const SIGNAL_MAX: i64 = 64;

/// How a task is told things.
pub struct Told {
    /// When the attempt must have ended.
    pub stopped: watch::Receiver<Option<Instant>>,
    /// Something may have happened to the container.
    pub look: Arc<Notify>,
}

/// Whose life it is.
#[derive(Clone, Copy)]
pub struct Whose {
    /// The session.
    pub session: SessionNo,
    /// Its attempt.
    pub attempt: Attempt,
}

/// From the start to the end.
pub async fn whole(shared: Arc<Shared>, spec: StartSpec, told: Told) {
    let whose = Whose { session: spec.session, attempt: spec.attempt };
    let Whose { session, attempt } = whose;
    match begin(&shared, &spec).await {
        Ok(id) => {
            (shared.sink)(ContainerEvent::Started { session, attempt });
            rest_with(shared, whose, id, told, Output::All).await;
        }
        Err(reason) => {
            shared.forget(session);
            (shared.sink)(ContainerEvent::StartFailed { session, attempt, reason });
        }
    }
}

/// What is left of a life that an earlier daemon began.
pub async fn rest(shared: Arc<Shared>, whose: Whose, id: String, told: Told) {
    rest_with(shared, whose, id, told, Output::New).await;
}

async fn rest_with(shared: Arc<Shared>, whose: Whose, id: String, mut told: Told, output: Output) {
    let output = follow_output(&shared, whose, &id, output);
    let state = watch(&shared, &id, &mut told).await;
    if let Some(mut output) = output
        && tokio::time::timeout(DRAIN_MAX, &mut output).await.is_err()
    {
        output.abort();
    }
    let Whose { session, attempt } = whose;
    if state.is_some_and(|state| state.out_of_memory) {
        shared.tell_out_of_memory(session, attempt);
    }
    {
        let mut table = lock(&shared.table);
        table.removing.insert(id.clone());
        table.attempts.remove(&session);
    }
    (shared.sink)(ContainerEvent::Exited { session, attempt, exit: exit_of(state) });
    // It does not run any more. What cannot be removed now is tried again.
    let removed = shared.engine.remove(&id).await;
    if removed.is_err() {
        shared.give_up(id.clone(), None);
    }
    lock(&shared.table).removing.remove(&id);
    shared.changed.notify_all();
}

/// Creates and starts. The error is for people.
async fn begin(shared: &Arc<Shared>, spec: &StartSpec) -> Result<String, String> {
    if let Some(trouble) = &lock(&shared.table).trouble {
        return Err(trouble.clone());
    }
    match create_and_start(shared, spec).await {
        Ok(id) => Ok(id),
        Err(Failed::Docker(error)) => {
            if let DockerError::Engine(error) = &error {
                shared.doubt(error).await;
            }
            Err(error.reason())
        }
        Err(Failed::Folders(why)) => Err(why),
    }
}

/// Why an attempt does not run.
enum Failed {
    Docker(DockerError),
    Folders(String),
}

impl<T: Into<DockerError>> From<T> for Failed {
    fn from(error: T) -> Self {
        Self::Docker(error.into())
    }
}

async fn create_and_start(shared: &Arc<Shared>, spec: &StartSpec) -> Result<String, Failed> {
    shared.clear(&spec.name).await?;
    let (mut common, owners) = shared.common().await?;
    let (folders, layout) = (spec.clone(), common.layout.clone());
    let prepared = tokio::task::spawn_blocking(move || owners::prepare(&folders, owners, &layout)).await;
    prepared.map_err(|error| Failed::Folders(error.to_string()))?.map_err(Failed::Folders)?;
    let name = body::name(&common.installation, &spec.name, spec.attempt);
    let mut made = shared.engine.create(&name, &body::body(&common, spec)).await;
    if made.as_ref().is_err_and(EngineError::is_missing) {
        shared.forget_image(&common.image);
        common = shared.common().await?.0;
        made = shared.engine.create(&name, &body::body(&common, spec)).await;
    }
    let id = match made {
        Ok(made) => {
            for warning in made.warnings {
                shared.warn(format!("the engine warns of what it creates: {warning}"));
            }
            made.id
        }
        Err(error) => {
            if error.is_unsure() {
                // One that was created after all was not started, and is removed by its name, or when it is listed.
                shared.give_up(name, Some(spec.name.clone()));
            }
            return Err(error.into());
        }
    };
    if let Some(slot) = lock(&shared.table).attempts.get_mut(&spec.session) {
        slot.id = Some(id.clone());
    }
    match shared.engine.start(&id).await {
        Ok(()) => Ok(id),
        Err(error) => {
            if shared.engine.remove(&id).await.is_err() {
                shared.give_up(id, Some(spec.name.clone()));
            }
            Err(error.into())
        }
    }
}

/// Waits for the end, passing on the wish for it. None when the container vanished.
async fn watch(shared: &Shared, id: &str, told: &mut Told) -> Option<State> {
    let mut asked = false;
    let mut killed = false;
    // An end before anybody listened for it: ask once at the beginning.
    let mut ask = true;
    let mut again = None;
    let mut settling = SETTLE_TRIES;
    loop {
        if ask {
            match shared.engine.state(id).await {
                Ok(None) => return None,
                Ok(Some(state)) if !state.running => return Some(state),
                Ok(Some(_)) if settling < SETTLE_TRIES => {
                    again = Some(Instant::now() + SETTLE_FIRST * (1 << settling));
                    settling += 1;
                }
                Ok(Some(_)) => {}
                // It will be asked again when the engine is back.
                Err(_) => again = Some(Instant::now() + ASK_AGAIN),
            }
        }
        let limit = *told.stopped.borrow_and_update();
        if let Some(limit) = limit {
            let late = Instant::now() >= limit;
            if late && !killed {
                killed = shared.engine.signal(id, "SIGKILL").await.is_ok();
                again = Some(Instant::now() + ASK_AGAIN);
            } else if !asked && !late {
                asked = shared.engine.signal(id, "SIGTERM").await.is_ok();
                if !asked {
                    again = Some(Instant::now() + ASK_AGAIN);
                }
            } else if killed && again.is_none() {
                again = Some(Instant::now() + ASK_AGAIN);
            }
        }
        // A limit that has passed was acted upon above; what failed is tried again with `again`.
        let ahead = limit.filter(|at| *at > Instant::now());
        let timer = [ahead, again].into_iter().flatten().min();
        ask = tokio::select! {
            () = told.look.notified() => {
                settling = 0;
                true
            }
            changed = told.stopped.changed() => {
                if changed.is_err() {
                    // The slot is gone, and with it whoever could ask for anything.
                    return None;
                }
                false
            }
            () = until(timer) => again.take_if(|at| *at <= Instant::now()).is_some(),
        };
    }
}

async fn until(timer: Option<Instant>) {
    match timer {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn exit_of(state: Option<State>) -> Exit {
    let Some(state) = state else { return Exit::Unknown };
    let Some(code) = state.code else { return Exit::Unknown };
    match code - SIGNAL_BASE {
        // One of its other processes may be the one that was killed; then it ends as it likes.
        KILL if state.out_of_memory => Exit::OutOfMemory,
        signal @ 1..=SIGNAL_MAX => Exit::Signal(i32::try_from(signal).unwrap_or_default()),
        _ => i32::try_from(code).map_or(Exit::Unknown, Exit::Code),
    }
}

fn follow_output(shared: &Arc<Shared>, whose: Whose, id: &str, which: Output) -> Option<JoinHandle<()>> {
    let mut pieces = Box::pin(shared.engine.output(id, which).ok()?);
    let sink = Arc::clone(&shared.sink);
    let Whose { session, attempt } = whose;
    let name = lock(&shared.table).attempts.get(&session)?.name.clone();
    let say = move |lines: Vec<String>| {
        for line in lines {
            sink(ContainerEvent::Output { session, name: name.clone(), attempt, line });
        }
    };
    Some(tokio::spawn(async move {
        let mut lines = Lines::default();
        while let Some(piece) = pieces.next().await {
            say(lines.push(&piece, Instant::now()));
        }
        say(lines.end());
    }))
}

impl Shared {
    fn forget(&self, session: SessionNo) {
        lock(&self.table).attempts.remove(&session);
        self.changed.notify_all();
    }

    /// Says that an attempt ran out of memory, once: both an event and its end tell of it, and either may come alone.
    pub(super) fn tell_out_of_memory(&self, session: SessionNo, attempt: Attempt) {
        let mut table = lock(&self.table);
        let slot = table.attempts.get_mut(&session).filter(|slot| slot.attempt == attempt);
        let is_news = slot.is_some_and(|slot| !std::mem::replace(&mut slot.starved, true));
        drop(table);
        if is_news {
            let text = out_of_memory(self.settings.confinement.memory);
            (self.sink)(ContainerEvent::Notice { session, attempt, text });
        }
    }
}

/// What is said of a container that ran out of memory, of which it had so many bytes, or 0 for no limit of its own.
fn out_of_memory(limit: i64) -> String {
    match limit >> 20 {
        0 => "out of memory: killed by the kernel, with no limit of its own ([runtime.docker] memory_mib = 0), so the \
              machine had none left"
            .into(),
        mib => format!(
            "out of memory: killed by the kernel at {mib} MiB; give agents more with [runtime.docker] memory_mib"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_above_128_are_signals() {
        let of = |code| exit_of(Some(State { running: false, code, out_of_memory: false }));
        assert_eq!(of(Some(0)), Exit::Code(0));
        assert_eq!(of(Some(78)), Exit::Code(78));
        assert_eq!(of(Some(137)), Exit::Signal(9));
        assert_eq!(of(Some(143)), Exit::Signal(15));
        assert_eq!(of(Some(255)), Exit::Code(255));
        assert_eq!(of(None), Exit::Unknown);
        let starved = |code| exit_of(Some(State { running: false, code: Some(code), out_of_memory: true }));
        assert_eq!(starved(137), Exit::OutOfMemory);
        assert_eq!(starved(0), Exit::Code(0));
        assert_eq!(exit_of(None), Exit::Unknown);
    }

    #[test]
    fn a_kill_for_want_of_memory_names_the_limit_if_there_is_one() {
        assert!(out_of_memory(64 << 20).contains("at 64 MiB; give agents more"));
        let unlimited = out_of_memory(0);
        assert!(unlimited.contains("memory_mib = 0") && !unlimited.contains("0 MiB"), "{unlimited}");
    }
}
