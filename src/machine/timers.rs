//! Deadlines. They are derived from the state of what was touched, never set by hand, so that a change of policy or
//! of the wall clock moves them all.
//!
//! Invariant: a key has at most one deadline; both maps always agree.

use std::collections::BTreeMap;

use crate::base::{At, DestinationNo, MessageNo, SessionNo};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimerKey {
    /// The next message of this session falls due.
    MessageDue(SessionNo),
    /// A claim has gone without sign of life.
    ClaimSilence(SessionNo),
    /// A container with a claim was silent beyond the ceiling.
    Ceiling(SessionNo),
    /// A container is idle for its time.
    IdleStop(SessionNo),
    /// A container has run long enough to count as healthy.
    Healthy(SessionNo),
    /// A start or stop was not heard of.
    ContainerOverdue(SessionNo),
    /// The back-off of a session's container ends.
    StartBackoff(SessionNo),
    /// A quarantined session, or one whose closing look failed, is looked at again.
    LookAgain(SessionNo),
    /// A look was not heard of.
    LookOverdue(SessionNo),
    /// A held destination is tried again, or its head gives up.
    Destination(DestinationNo),
    /// An outbound message's `deliver_after`.
    DeliverAfter(MessageNo),
    /// A question has waited long enough for its answer, or was remembered long enough.
    Question(MessageNo),
    /// A delivery was not heard of.
    DeliveryOverdue(MessageNo),
    /// Complaints about this session were kept back and are to be told of.
    Withheld(SessionNo),
    /// Complaints about no session in particular were kept back and are to be told of.
    WithheldAtLarge,
    /// The runtime has been back for long enough.
    RuntimeSettled,
}

impl TimerKey {
    /// All keys of one session.
    pub fn of_session(session: SessionNo) -> [Self; 10] {
        [
            Self::MessageDue(session),
            Self::ClaimSilence(session),
            Self::Ceiling(session),
            Self::IdleStop(session),
            Self::Healthy(session),
            Self::ContainerOverdue(session),
            Self::StartBackoff(session),
            Self::LookAgain(session),
            Self::LookOverdue(session),
            Self::Withheld(session),
        ]
    }

    /// Why the machine wakes for it, for logs and transcripts.
    pub fn name(self) -> &'static str {
        match self {
            Self::MessageDue(_) => "message-due",
            Self::ClaimSilence(_) => "claim-silence",
            Self::Ceiling(_) => "silence-ceiling",
            Self::IdleStop(_) => "idle-stop",
            Self::Healthy(_) => "healthy",
            Self::ContainerOverdue(_) => "container-overdue",
            Self::StartBackoff(_) => "start-backoff",
            Self::LookAgain(_) => "look-again",
            Self::LookOverdue(_) => "look-overdue",
            Self::Destination(_) => "destination",
            Self::DeliverAfter(_) => "deliver-after",
            Self::Question(_) => "question",
            Self::DeliveryOverdue(_) => "delivery-overdue",
            Self::Withheld(_) | Self::WithheldAtLarge => "withheld-complaints",
            Self::RuntimeSettled => "runtime-settled",
        }
    }
}

/// The table of deadlines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    by_key: BTreeMap<TimerKey, At>,
    by_time: BTreeMap<(At, TimerKey), ()>,
}

impl Timers {
    /// Sets, moves or clears the deadline of a key.
    pub fn put(&mut self, key: TimerKey, deadline: Option<At>) {
        let old = match deadline {
            Some(at) => self.by_key.insert(key, at),
            None => self.by_key.remove(&key),
        };
        if old == deadline {
            return;
        }
        if let Some(at) = old {
            self.by_time.remove(&(at, key));
        }
        if let Some(at) = deadline {
            self.by_time.insert((at, key), ());
        }
    }

    /// The deadline of a key.
    pub fn deadline(&self, key: TimerKey) -> Option<At> {
        self.by_key.get(&key).copied()
    }

    /// The earliest deadline and what it is for.
    pub fn next(&self) -> Option<(At, TimerKey)> {
        self.by_time.keys().next().copied()
    }

    /// All deadlines in key order.
    pub fn iter(&self) -> impl Iterator<Item = (TimerKey, At)> + '_ {
        self.by_key.iter().map(|(&key, &at)| (key, at))
    }

    /// Whether both maps agree.
    pub fn is_consistent(&self) -> bool {
        self.by_key.len() == self.by_time.len()
            && self.by_key.iter().all(|(&key, &at)| self.by_time.contains_key(&(at, key)))
    }
}
