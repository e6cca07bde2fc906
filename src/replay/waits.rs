//! What an open message waits for, and until when: read from the state alone, in words.

use crate::base::{At, MessageNo, SessionNo};
use crate::machine::state::{
    Destination, FolderState, Hold, InState, Item, OutState, Outbound, Phase, QuestionState, Session, Source,
    State, Wait,
};
use crate::machine::timers::TimerKey;

/// What something waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// For what, and the verb that ends the wait where there is one.
    pub what: String,
    /// The deadline at which the machine does something about it by itself.
    pub until: Option<At>,
}

impl Waits {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), until: None }
    }

    fn until(self, until: Option<At>) -> Self {
        Self { until, ..self }
    }
}

/// What an open inbound message waits for; none when it is not open.
pub fn of_inbound(state: &State, no: MessageNo) -> Option<Waits> {
    let message = state.inbound(no)?;
    let session = message.session;
    let timer = |key| state.timers().deadline(key);
    Some(match &message.state {
        InState::Writing { .. } => match state.session(session).map(|it| it.folder) {
            Some(FolderState::Present) | None => Waits::new("its row is being written"),
            Some(_) => Waits::new("its session's folder is being made"),
        },
        InState::Queued { wait: Wait::Now } => of_session(state, session).unwrap_or_else(|| {
            Waits::new("the container that runs has not claimed it yet").until(silence(state, session))
        }),
        InState::Queued { wait: wait @ Wait::Until(_) } => {
            Waits::new("its row says not before a time").until(state.due_at(*wait))
        }
        InState::Queued { wait: wait @ Wait::Backoff { .. } } => {
            let text = format!("try {} ended without a result", message.tries);
            Waits::new(text).until(state.due_at(*wait))
        }
        InState::Queued { wait: wait @ Wait::Missed { .. } } => {
            let missed = state.missed(no);
            let text =
                missed.map_or_else(String::new, |it| format!("try {} failed: {}", it.times, it.reason));
            Waits::new(text).until(state.due_at(*wait))
        }
        InState::Queued { wait: wait @ Wait::Held { .. } } => {
            let text = "another message of its batch is being tried alone, because one of them ended a turn";
            Waits::new(text).until(state.due_at(*wait))
        }
        InState::Queued { wait: Wait::Never } => {
            let text = format!(
                "its row's time cannot be read, so it is never due; `lamplighter message retry {}`",
                message.id
            );
            Waits::new(text)
        }
        InState::Claimed { attempt, .. } => {
            let tool = state.session(session).is_some_and(|it| it.tool.is_some());
            let doing = if tool { "runs a tool for it" } else { "works on it" };
            let until = timer(TimerKey::ClaimSilence(session)).or_else(|| timer(TimerKey::Ceiling(session)));
            Waits::new(format!("attempt {attempt} {doing}; without a sign of life it is stopped"))
                .until(until)
        }
        InState::Settling { .. } => Waits::new("its row is being brought up to date"),
        InState::Withheld { .. } => Waits::new("the agent has not read the notes before it"),
    })
}

fn silence(state: &State, session: SessionNo) -> Option<At> {
    state.timers().deadline(TimerKey::Ceiling(session))
}

/// What keeps a session from working on what is due; none while a container runs.
pub fn of_session(state: &State, no: SessionNo) -> Option<Waits> {
    let session = state.session(no)?;
    let timer = |key| state.timers().deadline(key);
    if session.held {
        let verb = format!("lamplighter session start {}", session.name);
        return Some(Waits::new(format!("an operator holds the session stopped; `{verb}`")));
    }
    let runs = matches!(session.phase, Phase::Running { .. });
    if let Some(outage) = state.outage().filter(|outage| outage.back.is_none())
        && (!runs || outage.unlisted)
    {
        let known = if outage.unlisted { ", and what runs is not known yet" } else { "" };
        let text = format!("the runtime is away since {}{known}: {}", outage.since, outage.reason);
        return Some(Waits::new(text));
    }
    if let Some(place) = state.queue().iter().position(|it| *it == no) {
        let slots = state.policy().slots;
        return Some(Waits::new(format!(
            "all slots ({slots}) are used, and it is number {} in line",
            place + 1
        )));
    }
    Some(match &session.phase {
        Phase::Running { .. } => return None,
        Phase::Stopped { .. } => Waits::new("its container is about to be started"),
        Phase::Starting { attempt, .. } => Waits::new(format!("attempt {attempt} is being started"))
            .until(timer(TimerKey::ContainerOverdue(no))),
        Phase::Stopping { attempt, reason, .. } => {
            Waits::new(format!("attempt {attempt} is being stopped ({})", reason.name()))
                .until(timer(TimerKey::ContainerOverdue(no)))
        }
        Phase::Closing { attempt, .. } => Waits::new(format!("what attempt {attempt} left is being read")),
        Phase::BackingOff { .. } => backing_off(session).until(timer(TimerKey::StartBackoff(no))),
        Phase::Quarantined { .. } if session.inbound_is_bad() => {
            let verb = format!("lamplighter session start {}", session.name);
            Waits::new(format!("inbound.db cannot be used; mend it or put a copy back, then `{verb}`"))
                .until(timer(TimerKey::LookAgain(no)))
        }
        Phase::Quarantined { kind, .. } => {
            let verb = format!("lamplighter session reset {}", session.name);
            Waits::new(format!("outbound.db cannot be read: {}; `{verb}`", kind.describe()))
                .until(timer(TimerKey::LookAgain(no)))
        }
    })
}

fn backing_off(session: &Session) -> Waits {
    Waits::new(format!("containers failed, {} in a row", session.failures))
}

/// What an open outbound message waits for; none when it is not open.
pub fn of_outbound(state: &State, no: MessageNo) -> Option<Waits> {
    let message = state.outbound(no)?;
    Some(match message.state {
        OutState::Scheduled { until } => {
            Waits::new("its row says not before a time").until(Some(state.at_of(until)))
        }
        OutState::Delivering { .. } => Waits::new(format!("its channel takes it, try {}", message.tries)),
        OutState::Recording { .. } => Waits::new("its delivery is being written down"),
        OutState::Queued => {
            let number = state.destination_no(message.session, &message.to)?;
            let destination = state.destination(number)?;
            let until = state.timers().deadline(TimerKey::Destination(number));
            Waits::new(queued(state, destination, no, message)).until(until)
        }
    })
}

/// What an open question waits for; none when it is over.
pub fn of_question(state: &State, no: MessageNo) -> Option<Waits> {
    let question = state.question(no).filter(|question| question.is_open())?;
    let what = match question.state {
        QuestionState::Asked => "its chat to see it",
        _ => "an answer from its chat",
    };
    Some(Waits::new(what).until(Some(question.deadline())))
}

/// Why a queued message does not go.
fn queued(state: &State, destination: &Destination, no: MessageNo, message: &Outbound) -> String {
    let is_head = destination.queue.front() == Some(&Item::Message(no));
    let channel = message.to.chat().map(|(channel, _)| channel).unwrap_or_default();
    let up = state.directory().channels.get(channel).is_some_and(|it| it.up);
    match (is_head, destination.hold) {
        _ if !up => format!("channel {channel} is down"),
        (true, Hold::Retry { .. } | Hold::Failing { .. }) => {
            format!("{} tries failed, and it is tried again", message.tries)
        }
        (true, Hold::NoRecipient { .. }) => {
            "nobody receives in this chat; it is kept for whoever comes".to_owned()
        }
        (false, Hold::Retry { .. } | Hold::Failing { .. }) => {
            "an earlier message to this chat is being retried".to_owned()
        }
        (false, Hold::NoRecipient { .. }) => {
            "nobody receives in this chat, and an earlier message goes first".to_owned()
        }
        (true, Hold::None | Hold::Trying { .. } | Hold::ChannelDown { .. }) => {
            "it is about to be handed to its channel".to_owned()
        }
        (false, Hold::None | Hold::Trying { .. } | Hold::ChannelDown { .. }) => {
            "an earlier message to this chat goes first".to_owned()
        }
    }
}

/// The id under which people know an outbound message.
pub fn name_of(message: &Outbound) -> &str {
    match &message.source {
        Source::Row { id, .. } => id,
        Source::Notice(_) => "the host's notice",
    }
}
