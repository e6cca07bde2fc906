//! The status page as JSON: sessions, containers, queues, and beside each stuck thing the verb that frees it.

use std::time::Duration;

use serde_json::{Value, json};

use super::ends::Ends;
use super::space::Space;
use super::stuck::{self, Verbs};
use crate::base::{At, RecordNo, SessionNo};
use crate::machine::state::{Hold, InState, Item, OutState, QuestionState, Source, State, Wait};
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
    /// Why the runtime cannot be used now.
    pub trouble: Option<String>,
    /// The last record.
    pub journal_last: RecordNo,
    /// The last durable record.
    pub journal_synced: RecordNo,
    /// Free space on the disk.
    pub space: &'a Space,
    /// What is known of attempts and files beside the state.
    pub ends: &'a Ends,
    /// How commands are written.
    pub verbs: &'a Verbs,
}

/// Everything in short.
pub fn status(state: &State, around: &Surroundings<'_>) -> Value {
    let sessions: Vec<Value> = state.sessions().keys().map(|&no| brief(state, no, around)).collect();
    let destinations: Vec<Value> =
        state.destinations().values().filter_map(|it| destination(state, it, around)).collect();
    let reactor = around.reactor;
    let disk = around.space.seen();
    json!({
        "build": around.build,
        "uptime_s": around.uptime.as_secs(),
        "runtime": around.runtime,
        "runtime_trouble": around.trouble,
        "runtime_away_for": away_for(state, around.at),
        "runtime_unlisted": state.is_unlisted(),
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
            "events_trusted": reactor.local, "silence_learned": reactor.silent,
            "unannounced_late_ms": u64::try_from(reactor.late.as_millis()).unwrap_or(u64::MAX),
        },
    })
}

/// How long the runtime has been away, if it is.
fn away_for(state: &State, at: At) -> Option<String> {
    state.outage().filter(|outage| outage.back.is_none()).map(|outage| (at - outage.since).to_string())
}

fn brief(state: &State, no: SessionNo, around: &Surroundings<'_>) -> Value {
    let Some(session) = state.session(no) else { return Value::Null };
    let mut counts = [0u32; 3];
    for message in session.inbox.iter().filter_map(|m| state.inbound(*m)) {
        match message.state {
            InState::Queued { .. } | InState::Writing { .. } | InState::Withheld { .. } => counts[0] += 1,
            InState::Claimed { .. } => counts[1] += 1,
            InState::Settling { .. } => counts[2] += 1,
        }
    }
    let stuck = stuck::of(state, no, around.ends, around.verbs);
    json!({
        "number": no.to_string(),
        "session": session.name.to_string(),
        "chat": session.origin.platform_id,
        "state": session.phase.name(),
        "for": (around.at - session.phase.since()).to_string(),
        "attempt": session.phase.alive().map(|attempt| attempt.to_string()),
        "queued": counts[0],
        "claimed": counts[1],
        "settling": counts[2],
        "outbound": session.outbox.len(),
        "questions": state.open_questions(no).count(),
        "stuck": stuck.as_ref().map(|it| it.why.clone()).or_else(|| {
            let waits = state.is_runtime_away() && state.queue().contains(&no);
            waits.then(|| "waits for the runtime, which is away".to_owned())
        }),
        "free_with": stuck.as_ref().map(|it| &it.free_with),
        "last_attempt": around.ends.json(no),
        "last_end": around.ends.last(no),
        "hint": around.ends.unreadable(no).map(|(_, hint)| hint),
    })
}

fn destination(
    state: &State,
    it: &crate::machine::state::Destination,
    around: &Surroundings<'_>,
) -> Option<Value> {
    let (why, since) = match it.hold {
        Hold::None | Hold::Trying { .. } => return None,
        Hold::Retry { since, wait } => (format!("tried again after {wait}"), since),
        Hold::Failing { wait, first, .. } => (format!("failing, tried again after {wait}"), first),
        Hold::ChannelDown { since } => {
            let channel = it.to.channel_type.as_deref().unwrap_or_default();
            let why = match state.directory().channels.contains_key(channel) {
                true => {
                    format!("channel {channel} is down; the log says why, and it is tried when it is back")
                }
                false => format!("channel {channel} is not configured; it is tried when it is"),
            };
            (why, since)
        }
        Hold::NoRecipient { since } => ("nobody is there to receive it".to_owned(), since),
    };
    // By the machine's own number: a row's id is what its container likes.
    let head = match it.queue.front() {
        Some(Item::Message(no)) => state.outbound(*no).map(|message| (*no, message)),
        _ => None,
    };
    let (id, free) = match head {
        Some((no, message)) => match &message.source {
            Source::Row { id, .. } => {
                (Some(id.clone()), Some(around.verbs.of_verb("message drop", &no.to_string())))
            }
            Source::Notice(_) => (Some(format!("notice {no}")), None),
        },
        None => (None, None),
    };
    Some(json!({
        "chat": it.to.platform_id, "waiting": it.queue.len(), "why": why, "for": (around.at - since).to_string(),
        "head": id, "number": head.map(|(no, _)| no.to_string()), "free_with": free,
    }))
}

/// The questions of a session that wait for an answer.
fn questions(state: &State, no: SessionNo, at: At) -> Value {
    let open = state.open_questions(no).map(|(_, question)| {
        let shown = question.state == QuestionState::Open;
        json!({
            "id": question.id, "to": question.to.platform_id, "options": question.facts.labels.len(),
            "state": if shown { "waits for an answer" } else { "not shown yet" },
            "time": (question.deadline() - at).to_string(),
        })
    });
    open.collect::<Vec<Value>>().into()
}

/// One session in full.
pub fn session(state: &State, no: SessionNo, around: &Surroundings<'_>) -> Value {
    let Some(session) = state.session(no) else { return Value::Null };
    let at = around.at;
    let inbound: Vec<Value> = session
        .inbox
        .iter()
        .filter_map(|m| Some((m.to_string(), state.inbound(*m)?)))
        .map(|(number, message)| {
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
                InState::Withheld { count, .. } => {
                    (format!("{count} more, until the agent has read the notes before it"), None)
                }
            };
            json!({
                "number": number, "id": message.id, "seq": message.seq, "trigger": message.trigger, "state": stand,
                "time": until.map(|ms| ms.to_string()), "tries": message.tries,
            })
        })
        .collect();
    let outbound: Vec<Value> = session
        .outbox
        .iter()
        .filter_map(|m| Some((m.to_string(), state.outbound(*m)?)))
        .map(|(number, message)| {
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
            json!({
                "number": number, "id": id, "to": message.to.platform_id, "state": stand, "tries": message.tries,
            })
        })
        .collect();
    let mut whole = brief(state, no, around);
    if let Some(fields) = whole.as_object_mut() {
        fields.insert("failures".into(), session.failures.into());
        fields.insert("inbound".into(), inbound.into());
        fields.insert("outbound".into(), outbound.into());
        fields.insert("questions".into(), questions(state, no, at));
    }
    whole
}
