//! The status page as JSON: sessions, containers, queues, and beside each stuck thing the verb that frees it.

use std::time::Duration;

use serde_json::{Value, json};

use super::space::Space;
use crate::base::{At, RecordNo, SessionNo};
use crate::machine::state::{Hold, InState, Item, OutState, Phase, Session, Source, State, Wait};
use crate::reactor::Stats;

/// What is known beside the machine's state.
pub struct Surroundings<'a> {
    /// Machine time now.
    pub at: At,
    /// How long the daemon runs.
    pub uptime: Duration,
    /// The build.
    pub build: &'a str,
    /// The reactor's figures.
    pub reactor: Stats,
    /// The runtime's name.
    pub runtime: &'a str,
    /// The last record.
    pub journal_last: RecordNo,
    /// The last durable record.
    pub journal_synced: RecordNo,
    /// Free space on the disk.
    pub space: &'a Space,
}

/// Everything in short.
pub fn status(state: &State, around: &Surroundings<'_>) -> Value {
    let sessions: Vec<Value> = state.sessions().keys().map(|&no| brief(state, no, around.at)).collect();
    let destinations: Vec<Value> =
        state.destinations().values().filter_map(|it| destination(state, it, around.at)).collect();
    let reactor = around.reactor;
    let disk = around.space.seen();
    json!({
        "build": around.build,
        "uptime_s": around.uptime.as_secs(),
        "runtime": around.runtime,
        "journal": {"last": around.journal_last.to_string(), "synced": around.journal_synced.to_string()},
        "disk": {
            "free": disk.free, "reserve": around.space.reserve(), "low": disk.low,
            "free_with": disk.low.then(|| around.space.free_with()),
        },
        "slots": {"used": state.alive().len(), "of": state.policy().slots, "waiting": state.queue().len()},
        "messages": {"inbound_open": state.inbounds().len(), "outbound_open": state.outbounds().len()},
        "channels": state.directory().channels.iter()
            .map(|(name, channel)| json!({"channel": name, "up": channel.up})).collect::<Vec<_>>(),
        "sessions": sessions,
        "held_destinations": destinations,
        "reactor": {
            "watches": reactor.watches, "unwatched": reactor.uncovered, "reads": reactor.reads,
            "empty_reads": reactor.empty_reads, "busy": reactor.busy, "unannounced": reactor.unannounced,
            "rescans": reactor.rescans, "watcher_restarts": reactor.watcher_restarts,
        },
    })
}

fn brief(state: &State, no: SessionNo, at: At) -> Value {
    let Some(session) = state.session(no) else { return Value::Null };
    let mut counts = [0u32; 3];
    for message in session.inbox.iter().filter_map(|m| state.inbound(*m)) {
        match message.state {
            InState::Queued { .. } | InState::Writing { .. } => counts[0] += 1,
            InState::Claimed { .. } => counts[1] += 1,
            InState::Settling { .. } => counts[2] += 1,
        }
    }
    json!({
        "number": no.to_string(),
        "session": session.name.to_string(),
        "chat": session.origin.platform_id,
        "state": session.phase.name(),
        "for": (at - session.phase.since()).to_string(),
        "attempt": session.phase.alive().map(|attempt| attempt.to_string()),
        "queued": counts[0],
        "claimed": counts[1],
        "settling": counts[2],
        "outbound": session.outbox.len(),
        "stuck": stuck(session),
        "free_with": free_with(session),
    })
}

/// Why nothing goes on, if nothing does.
fn stuck(session: &Session) -> Option<String> {
    if session.held {
        return Some("held by an operator".into());
    }
    match (&session.phase, &session.trouble) {
        (Phase::Quarantined { .. }, Some(trouble)) => {
            Some(format!("outbound.db cannot be read ({:?}), tried {} times", trouble.kind, trouble.failures))
        }
        (Phase::Quarantined { kind, .. }, None) => Some(format!("outbound.db cannot be read ({kind:?})")),
        (Phase::BackingOff { .. }, _) => Some(format!("its container failed {} times", session.failures)),
        _ => None,
    }
}

fn free_with(session: &Session) -> Option<String> {
    let name = &session.name;
    match &session.phase {
        _ if session.held => Some(format!("lamplighter session start {name}")),
        Phase::Quarantined { .. } => Some(format!("lamplighter session reset {name}")),
        Phase::BackingOff { .. } => Some(format!("lamplighter session start {name}")),
        _ => None,
    }
}

fn destination(state: &State, it: &crate::machine::state::Destination, at: At) -> Option<Value> {
    let (why, since) = match it.hold {
        Hold::None => return None,
        Hold::Retry { since, wait } => (format!("tried again after {wait}"), since),
        Hold::NoRecipient { since } => ("nobody is there to receive it".to_owned(), since),
    };
    let head = it.queue.front().and_then(|item| match item {
        Item::Message(no) => state.outbound(*no).map(|message| match &message.source {
            Source::Row { id, .. } => id.clone(),
            Source::Notice(_) => format!("notice {no}"),
        }),
        Item::Settled { .. } => None,
    });
    let free = head.as_ref().map(|id| format!("lamplighter message drop {id}"));
    Some(json!({
        "chat": it.to.platform_id, "waiting": it.queue.len(), "why": why, "for": (at - since).to_string(),
        "head": head, "free_with": free,
    }))
}

/// One session in full.
pub fn session(state: &State, no: SessionNo, at: At) -> Value {
    let Some(session) = state.session(no) else { return Value::Null };
    let inbound: Vec<Value> = session
        .inbox
        .iter()
        .filter_map(|m| state.inbound(*m))
        .map(|message| {
            let (stand, until) = match &message.state {
                InState::Writing { .. } => ("writing".to_owned(), None),
                InState::Queued { wait: Wait::Now } => ("queued".to_owned(), None),
                InState::Queued { wait: Wait::Never } => ("never due".to_owned(), None),
                InState::Queued { wait: Wait::Held { .. } } => {
                    ("held until the message before it is settled".to_owned(), None)
                }
                InState::Queued { wait } => ("waits".to_owned(), state.due_at(*wait).map(|due| due - at)),
                InState::Claimed { attempt, since, .. } => {
                    (format!("claimed by {attempt}"), Some(at - *since))
                }
                InState::Settling { .. } => ("settling".to_owned(), None),
            };
            json!({
                "id": message.id, "seq": message.seq, "trigger": message.trigger, "state": stand,
                "time": until.map(|ms| ms.to_string()), "tries": message.tries,
            })
        })
        .collect();
    let outbound: Vec<Value> = session
        .outbox
        .iter()
        .filter_map(|m| state.outbound(*m))
        .map(|message| {
            let id = match &message.source {
                Source::Row { id, .. } => id.as_str(),
                Source::Notice(_) => "notice",
            };
            let stand = match message.state {
                OutState::Scheduled { .. } => "scheduled",
                OutState::Queued => "queued",
                OutState::Delivering { .. } => "delivering",
                OutState::Recording { .. } => "recording",
            };
            json!({"id": id, "to": message.to.platform_id, "state": stand, "tries": message.tries})
        })
        .collect();
    let mut whole = brief(state, no, at);
    if let Some(fields) = whole.as_object_mut() {
        fields.insert("failures".into(), session.failures.into());
        fields.insert("inbound".into(), inbound.into());
        fields.insert("outbound".into(), outbound.into());
    }
    whole
}
