//! The words for what the machine decides. Effects carry codes; people and agents read these texts.

use crate::base::Ms;
use crate::machine::effect::{AgentNote, DeliveryEnd, Denial, Notice, Outcome, Refusal, StopReason};
use crate::machine::policy::ROW_CONTENT_MAX;

/// What a chat is told.
pub fn notice(notice: &Notice) -> String {
    match notice {
        Notice::Parked { tries, .. } => format!(
            "Your message could not be processed: the agent ended unexpectedly {tries} times while working on it. \
             It was set aside; an operator can try it again."
        ),
        Notice::Failed { reason, .. } => format!("Your message could not be processed: {reason}"),
        Notice::TooLate { waited, .. } => format!(
            "That question is closed: it waited {} for an answer. What you chose was not passed on; say it in words \
             if it still matters.",
            span(*waited)
        ),
    }
}

/// A time as people say it.
fn span(ms: Ms) -> String {
    let of = |n: u64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    match ms.0 {
        ms if ms >= 7_200_000 => of(ms / 3_600_000, "hour"),
        ms if ms >= 120_000 => of(ms / 60_000, "minute"),
        ms => of(ms.div_ceil(1_000), "second"),
    }
}

/// What an agent is told.
pub fn agent_note(note: &AgentNote) -> String {
    match note {
        AgentNote::NotDelivered { id, end } => not_delivered(id, end),
        AgentNote::AndMore { count, id, end } => format!(
            "{count} more of your messages and requests did not get through than you were told of. Of the last: {}",
            not_delivered(id, end)
        ),
    }
}

fn not_delivered(id: &str, end: &DeliveryEnd) -> String {
    match end {
        DeliveryEnd::Failed(reason) => format!("Your message {id} was not delivered: {reason}"),
        DeliveryEnd::Denied(Denial::UnsupportedAction(action)) => {
            format!("Your request {id} was refused: this host does not do {action:?} yet.")
        }
        DeliveryEnd::Denied(denial) => format!("Your message {id} was not sent: {}", denied(denial)),
        DeliveryEnd::Expired => format!("Your message {id} was not delivered: nobody came to receive it."),
        DeliveryEnd::Unknown => format!(
            "Your message {id} may or may not have arrived: it was sent, and nothing was heard of it. Do not repeat it \
             without asking."
        ),
        DeliveryEnd::Dropped => format!("Your message {id} was dropped by an operator."),
        DeliveryEnd::ChannelDown => {
            format!(
                "Your message {id} was not delivered: its channel was down all the time that it was kept."
            )
        }
    }
}

fn denied(denial: &Denial) -> String {
    match denial {
        Denial::NoAddress => "it names no chat.".into(),
        Denial::NotADestination => "that chat is not one of your destinations.".into(),
        Denial::UnsupportedAction(action) => format!("this host does not do {action:?} yet."),
        Denial::Malformed(why) => format!("its content cannot be used: {why}"),
    }
}

/// Why an arrival was not taken, for its sender.
pub fn refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::ShuttingDown => "the host is stopping; send it again when it is back".into(),
        Refusal::BadId => {
            "its id cannot be used: 1 to 200 bytes without separators or control characters".into()
        }
        Refusal::NotWritten(why) => format!("it could not be stored: {why}"),
        Refusal::TooLarge => format!(
            "it is larger than a message may be, {} KiB; send it in parts or as a file",
            ROW_CONTENT_MAX >> 10
        ),
        Refusal::TooMany(n) => format!("{n} messages of this chat wait already; send it again later"),
        Refusal::NoSpace => {
            "the host's disk is almost full; send it again when its operator has made room".into()
        }
    }
}

/// How a turn ended, as a word and a reason.
pub fn outcome(outcome: &Outcome) -> (&'static str, Option<String>) {
    match outcome {
        Outcome::Completed => ("completed", None),
        Outcome::Failed(reason) => ("failed", Some(reason.clone())),
        Outcome::Parked(tries) => ("parked", Some(format!("the agent ended unexpectedly {tries} times"))),
        Outcome::Dropped => ("dropped", Some("an operator dropped it".into())),
        Outcome::Before => ("completed", Some("it was over before this repeat of it came".into())),
    }
}

/// Why a container is stopped, for logs and status.
pub fn stop(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Idle => "nothing to do",
        StopReason::MakeRoom => "idle, and another session needs its slot",
        StopReason::ClaimSilent => "no sign of life after taking a message",
        StopReason::Silent => "silent for too long in the middle of a turn",
        StopReason::HoldsLock => "holds a lock on inbound.db",
        StopReason::Unreadable => "its outbound.db cannot be read",
        StopReason::Operator => "an operator asked for it",
        StopReason::Shutdown => "the daemon stops",
        StopReason::Leftover => "left by an earlier daemon",
        StopReason::TooLarge => "its folder takes more room than it may, or cannot be measured",
    }
}
