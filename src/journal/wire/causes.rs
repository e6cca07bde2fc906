//! What open messages have been through: of each, the records that touched it last. Snapshots carry them, so that
//! `why` tells of an open message also what happened before the oldest segment that is kept.
//!
//! Invariant: kept beside the state and never in it: nothing is decided by them, and no digest covers them.

use std::collections::{BTreeSet, VecDeque};

use super::WireError;
use crate::base::{At, MessageNo, RecordNo};
use crate::machine::shared_map::SharedMap;
use crate::machine::state::{ComponentId, InState, OutState, State};

/// Records that are kept of each open message: more than a message without trouble has in its life, and below half a
/// KiB.
pub const KEPT: usize = 16;

/// One record that touched a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The record.
    pub record: RecordNo,
    /// When its input was taken, in machine time.
    pub at: At,
    /// The name of its input.
    pub input: &'static str,
    /// Where the message stood after it.
    pub left: &'static str,
}

/// The last records that touched each open message, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Causes(SharedMap<MessageNo, VecDeque<Cause>>);

/// Names of inputs by their code on the wire. Append only.
const INPUTS: [&str; 34] = [
    "booted",
    "session-found",
    "containers-found",
    "clock-set",
    "policy-changed",
    "message-arrived",
    "operator-asked",
    "inbound-written",
    "inbound-write-failed",
    "inbound-locked",
    "outbound-read",
    "looked",
    "heartbeat-seen",
    "container-started",
    "container-start-failed",
    "container-exited",
    "delivered",
    "delivery-failed",
    "channel-up",
    "channel-down",
    "effect-done",
    "timer-due",
    "shutdown-asked",
    "detach-asked",
    "sessions-unchanged",
    "arrival-without-space",
    "possible-answer",
    "folder-too-large",
    "message-arrived-at",
    "session-found-in-part",
    "inbound-read",
    "inbound-unwritable",
    "runtime-down",
    "runtime-up",
];

/// Where a message can stand, by the code on the wire. Append only.
const PLACES: [&str; 9] = [
    "being written",
    "queued",
    "claimed",
    "settling",
    "scheduled",
    "queued to go",
    "on its way",
    "being recorded",
    "withheld",
];

/// A cause as a snapshot has it: record, time, and the codes of the input's name and of the place.
pub(super) type Wire = (u64, i64, u8, u8);

impl Causes {
    /// Notes what a step did to open messages: `state` is the one after it.
    pub fn note(
        &mut self,
        state: &State,
        touched: &BTreeSet<ComponentId>,
        (record, at): (RecordNo, At),
        input: &'static str,
    ) {
        for component in touched {
            let (no, left) = match *component {
                ComponentId::Inbound(no) => (no, state.inbound(no).map(|it| inbound_place(&it.state))),
                ComponentId::Outbound(no) => (no, state.outbound(no).map(|it| outbound_place(&it.state))),
                _ => continue,
            };
            match left {
                Some(left) => self.push(no, Cause { record, at, input, left }),
                None => drop(self.0.remove(&no)),
            }
        }
    }

    fn push(&mut self, no: MessageNo, cause: Cause) {
        if let Some(causes) = self.0.get_mut(&no) {
            if causes.len() == KEPT {
                causes.pop_front();
            }
            causes.push_back(cause);
        } else {
            self.0.insert(no, VecDeque::from([cause]));
        }
    }

    /// The last records that touched a message, oldest first; none for one that is not known.
    pub fn of(&self, no: MessageNo) -> impl Iterator<Item = &Cause> {
        self.0.get(&no).into_iter().flatten()
    }

    /// All messages with their causes in the form of a snapshot.
    pub(super) fn to_wire(&self) -> impl Iterator<Item = (u64, Vec<Wire>)> {
        self.0.iter().map(|(no, causes)| {
            let wire = causes
                .iter()
                .map(|it| (it.record.0, it.at.0, code_of(&INPUTS, it.input), code_of(&PLACES, it.left)));
            (no.0, wire.collect())
        })
    }

    /// Takes one message's causes out of a snapshot.
    pub(super) fn take(&mut self, no: u64, causes: Vec<Wire>) -> Result<(), WireError> {
        for (record, at, input, left) in causes {
            let cause = Cause {
                record: RecordNo(record),
                at: At(at),
                input: name_of(&INPUTS, input)?,
                left: name_of(&PLACES, left)?,
            };
            self.push(MessageNo(no), cause);
        }
        Ok(())
    }
}

fn inbound_place(state: &InState) -> &'static str {
    match state {
        InState::Writing { .. } => PLACES[0],
        InState::Queued { .. } => PLACES[1],
        InState::Claimed { .. } => PLACES[2],
        InState::Settling { .. } => PLACES[3],
        InState::Withheld { .. } => PLACES[8],
    }
}

fn outbound_place(state: &OutState) -> &'static str {
    match state {
        OutState::Scheduled { .. } => PLACES[4],
        OutState::Queued => PLACES[5],
        OutState::Delivering { .. } => PLACES[6],
        OutState::Recording { .. } => PLACES[7],
    }
}

/// The code of a name that this build gives; the test below keeps the lists whole.
fn code_of(names: &[&str], name: &str) -> u8 {
    let code = names.iter().position(|it| *it == name);
    debug_assert!(code.is_some(), "{name} has no code");
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn name_of(names: &[&'static str], code: u8) -> Result<&'static str, WireError> {
    names
        .get(usize::from(code))
        .copied()
        .ok_or_else(|| WireError { thing: "a message's cause", why: format!("no name has the code {code}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::wire::Mirror;
    use crate::machine::input::Input;

    #[test]
    fn every_input_has_a_code() {
        for input in Input::samples() {
            assert!(INPUTS.contains(&input.name()), "append {:?} to INPUTS", input.name());
        }
    }

    #[test]
    fn the_newest_are_kept_and_a_code_without_a_name_is_refused() {
        let mut causes = Causes::default();
        let wire = |n: u64| (n, 0, 10, 1);
        causes.take(7, (0..40).map(wire).collect()).unwrap();
        let kept: Vec<u64> = causes.of(MessageNo(7)).map(|it| it.record.0).collect();
        assert_eq!(kept, (24..40).collect::<Vec<u64>>());
        assert_eq!(causes.to_wire().collect::<Vec<_>>(), [(7, (24..40).map(wire).collect::<Vec<_>>())]);
        assert_eq!(causes.of(MessageNo(8)).count(), 0);
        for broken in [(0, 0, 200, 0), (0, 0, 0, 200)] {
            assert!(causes.take(9, vec![broken]).is_err());
        }
    }
}
