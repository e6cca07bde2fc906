//! What must hold at all times. Those of touched components are checked after every step in debug builds, all of them
//! after every step in tests and now and then in replay.
//!
//! Every waiting state has a deadline, but for those that wait for a lane of the host's own: `Writing`, `Settling`,
//! `Recording`, `Creating` and a start that is `Projecting` (which has one besides). These have an open effect instead:
//! the lane of a session's inbound.db ends each of its jobs in exactly one input. What holds its head up is a lock,
//! whose container is ended after ten seconds; or damage, which ends all jobs of the lane at once and sets the session
//! apart; or a disk without room, about which an operator is warned and which no deadline would mend: a row that is not
//! written may not be taken for written. What waits for inbound.db to be mended has a deadline: the next look at it.
//! A withheld note waits for the agent to read those before it, as these do themselves: context wakes nobody.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{
    ComponentId, FolderState, Hold, InState, Item, OutState, Owner, Phase, Session, Source, Stage, State,
    Wait,
};
use super::timers::TimerKey;
use crate::base::{DestinationNo, EffectId, MessageNo, SessionNo};

/// Panics with what is wrong about the touched components, if anything is.
pub fn check_touched(state: &State, touched: &BTreeSet<ComponentId>) {
    let mut wrong = Vec::new();
    for &id in touched {
        match id {
            ComponentId::Session(no) => check_session(state, no, &mut wrong),
            ComponentId::Inbound(no) => check_inbound(state, no, &mut wrong),
            ComponentId::Outbound(no) => check_outbound(state, no, &mut wrong),
            ComponentId::Destination(no) => check_destination(state, no, &mut wrong),
            ComponentId::Question(no) => check_question(state, no, &mut wrong),
            _ => {}
        }
    }
    check_slots(state, &mut wrong);
    assert!(wrong.is_empty(), "invariant broken: {}", wrong.join("; "));
}

/// Everything that is wrong with a state; empty for a good one.
pub fn check_all(state: &State) -> Vec<String> {
    let mut wrong = Vec::new();
    state.sessions().keys().for_each(|&no| check_session(state, no, &mut wrong));
    state.inbounds().keys().for_each(|&no| check_inbound(state, no, &mut wrong));
    state.outbounds().keys().for_each(|&no| check_outbound(state, no, &mut wrong));
    state.destinations().keys().for_each(|&no| check_destination(state, no, &mut wrong));
    state.questions().keys().for_each(|&no| check_question(state, no, &mut wrong));
    check_slots(state, &mut wrong);
    for no in state.all_missed().keys().filter(|no| state.inbound(**no).is_none()) {
        wrong.push(format!("{no}: its service is missed, and it is not open"));
    }
    check_effects(state, &mut wrong);
    check_queues(state, &mut wrong);
    if !state.timers().is_consistent() {
        wrong.push("timers: the two maps differ".into());
    }
    wrong
}

fn check_session(state: &State, no: SessionNo, wrong: &mut Vec<String>) {
    let Some(session) = state.session(no) else { return };
    let mut expect = |ok: bool, what: &str| {
        if !ok {
            wrong.push(format!("{no}: {what}"));
        }
    };
    expect(session.phase.since() <= state.core().at, "its phase began in the future");
    expect(
        session.inbox.iter().all(|m| state.inbound(*m).is_some_and(|i| i.session == no)),
        "inbox names a stranger",
    );
    expect(
        session.outbox.iter().all(|m| state.outbound(*m).is_some_and(|o| o.session == no)),
        "outbox names a stranger",
    );
    let alive = session.phase.alive();
    expect(state.alive().contains(&no) == alive.is_some(), "the list of living attempts is wrong about it");
    for &message in &session.inbox {
        if let Some(InState::Claimed { attempt, .. }) = state.inbound(message).map(|m| &m.state) {
            let closing = matches!(session.phase, Phase::Closing { attempt: own, .. } if own == *attempt);
            expect(alive == Some(*attempt) || closing, "a claim by an attempt that is not there");
        }
    }
    if let Phase::Starting { effect, stage, .. } = session.phase {
        let owner = match stage {
            Stage::Projecting => Owner::Projection(no),
            Stage::Launching => Owner::Start(no),
        };
        // Before the runtime has said what runs, it is one of an earlier boot.
        let earlier = state.core().life == super::state::Life::Booting || state.is_unlisted();
        expect(earlier || state.effects().get(&effect) == Some(&owner), "its start is not an open effect");
    }
    if let Some(look) = session.look {
        expect(state.effects().get(&look.effect) == Some(&Owner::Look(no)), "its look is not an open effect");
    }
    let waits = match session.phase {
        // They wait for the runtime.
        Phase::Starting { .. } | Phase::Stopping { .. } if state.outage().is_some() => None,
        Phase::Starting { .. } | Phase::Stopping { .. } => Some(TimerKey::ContainerOverdue(no)),
        Phase::BackingOff { .. } => Some(TimerKey::StartBackoff(no)),
        Phase::Closing { .. } | Phase::Quarantined { .. } if session.look.is_some() => {
            Some(TimerKey::LookOverdue(no))
        }
        Phase::Closing { .. } | Phase::Quarantined { .. } if session.trouble.is_some() => {
            Some(TimerKey::LookAgain(no))
        }
        Phase::Closing { .. } | Phase::Quarantined { .. }
            if state.core().life == super::state::Life::Booting || session.folder != FolderState::Present =>
        {
            None
        }
        Phase::Closing { .. } | Phase::Quarantined { .. } => Some(TimerKey::LookOverdue(no)),
        Phase::Stopped { .. } | Phase::Running { .. } => None,
    };
    let rests = matches!(session.phase, Phase::Stopped { .. } | Phase::BackingOff { .. });
    expect(!(rests && session.inbound_is_bad()), "its inbound.db is bad and it is not kept apart");
    if let FolderState::Creating(effect) = session.folder {
        expect(
            state.effects().get(&effect) == Some(&Owner::Folder(no)),
            "its folder is built by no open effect",
        );
    }
    if let Some(key) = waits {
        expect(state.timers().deadline(key).is_some(), &format!("waits without a deadline ({})", key.name()));
    }
}

fn check_inbound(state: &State, no: MessageNo, wrong: &mut Vec<String>) {
    let Some(message) = state.inbound(no) else { return };
    if !state.session(message.session).is_some_and(|session| session.inbox.contains(&no)) {
        wrong.push(format!("{no}: not in its session's inbox"));
    }
    if state.outbound(no).is_some() {
        wrong.push(format!("{no}: both inbound and outbound"));
    }
    let at = state.core().at;
    if let InState::Queued { wait } = message.state
        && !matches!(wait, Wait::Never)
        && state.due_at(wait).is_some_and(|due| due > at)
        && state.timers().deadline(TimerKey::MessageDue(message.session)).is_none()
    {
        wrong.push(format!("{no}: waits without a deadline"));
    }
    let booting = state.core().life == super::state::Life::Booting;
    let session = state.session(message.session);
    // Its row is out of reach: it is brought up to date when the file is back.
    let out_of_reach = session.is_some_and(|it| it.inbound_is_bad() || it.folder != FolderState::Present);
    match &message.state {
        InState::Settling { .. } => {
            let open = message.update.and_then(|effect| state.effects().get(&effect));
            if !booting && !out_of_reach && open != Some(&Owner::Update(no)) {
                wrong.push(format!("{no}: is being settled by no open effect"));
            }
        }
        InState::Withheld { .. } => {
            let open = state.notes_of(message.session).count();
            if !message.is_note() || (!booting && open <= super::policy::NOTES_OPEN_MAX) {
                wrong.push(format!("{no}: withheld, and nothing is in its way"));
            }
        }
        // Its effect is looked for among all, see `check_effects`.
        InState::Writing { .. } => {}
        InState::Queued { .. } | InState::Claimed { .. } => {}
    }
}

fn check_outbound(state: &State, no: MessageNo, wrong: &mut Vec<String>) {
    let Some(message) = state.outbound(no) else { return };
    let booting = state.core().life == super::state::Life::Booting;
    match &message.state {
        OutState::Delivering { effect, .. } => {
            if !booting && state.effects().get(effect) != Some(&Owner::Delivery(no)) {
                wrong.push(format!("{no}: is being delivered by no open effect"));
            }
            if message.key.is_none() {
                wrong.push(format!("{no}: is being delivered without a key"));
            }
            if state.timers().deadline(TimerKey::DeliveryOverdue(no)).is_none() {
                wrong.push(format!("{no}: is being delivered without a deadline"));
            }
        }
        OutState::Recording { effect, .. } => {
            let out_of_reach = state.session(message.session).is_some_and(Session::inbound_is_bad);
            if !booting && !out_of_reach && state.effects().get(effect) != Some(&Owner::Record(no)) {
                wrong.push(format!("{no}: is being recorded by no open effect"));
            }
        }
        OutState::Scheduled { .. } => {
            if state.timers().deadline(TimerKey::DeliverAfter(no)).is_none() {
                wrong.push(format!("{no}: scheduled without a deadline"));
            }
        }
        OutState::Queued => {}
    }
    if let Source::Row { .. } = message.source
        && !state.session(message.session).is_some_and(|session| session.outbox.contains(&no))
    {
        wrong.push(format!("{no}: not in its session's outbox"));
    }
}

fn check_destination(state: &State, no: DestinationNo, wrong: &mut Vec<String>) {
    let Some(destination) = state.destination(no) else { return };
    let mut in_flight = 0;
    for (place, item) in destination.queue.iter().enumerate() {
        let Item::Message(message) = item else { continue };
        match state.outbound(*message).map(|m| &m.state) {
            Some(OutState::Queued) => {}
            Some(OutState::Delivering { .. }) => {
                in_flight += 1;
                if place != 0 {
                    wrong.push(format!("{no}: {message} is delivered before its turn"));
                }
            }
            other => wrong.push(format!("{no}: holds {message} which is {other:?}")),
        }
    }
    if in_flight > 1 {
        wrong.push(format!("{no}: {in_flight} deliveries in flight"));
    }
    let booting = state.core().life == super::state::Life::Booting;
    match destination.hold {
        Hold::None | Hold::Trying { .. } => {
            if !booting && in_flight == 0 {
                wrong.push(format!("{no}: nothing holds it, and its head does not go"));
            }
        }
        _ => {
            if !destination.queue.is_empty() && state.timers().deadline(TimerKey::Destination(no)).is_none() {
                wrong.push(format!("{no}: held without a deadline"));
            }
        }
    }
}

fn check_question(state: &State, no: MessageNo, wrong: &mut Vec<String>) {
    let Some(question) = state.question(no) else { return };
    if state.timers().deadline(TimerKey::Question(no)) != Some(question.deadline()) {
        wrong.push(format!("{no}: a question without its deadline"));
    }
    if !state.questions_of(question.session).any(|(own, _)| own == no) {
        wrong.push(format!("{no}: not among the questions of its session"));
    }
    if question.facts.labels.is_empty() {
        wrong.push(format!("{no}: a question that nothing answers"));
    }
    if state.questions_of(question.session).count() > super::policy::QUESTIONS_PER_SESSION {
        wrong.push(format!("{}: more questions than a session may have", question.session));
    }
}

fn check_slots(state: &State, wrong: &mut Vec<String>) {
    let (alive, slots) = (state.alive().len(), state.policy().slots as usize);
    // Containers that were running when the policy was tightened, or that an earlier daemon left, may exceed it.
    if state.is_unlisted() {
        return;
    }
    let excess = state.sessions().values().filter(|s| matches!(s.phase, Phase::Starting { .. })).count();
    if alive > slots && excess > 0 {
        wrong.push(format!("{alive} containers with {slots} slots, and one more is being started"));
    }
}

fn check_effects(state: &State, wrong: &mut Vec<String>) {
    let mut owners: BTreeMap<Owner, Vec<EffectId>> = BTreeMap::new();
    for (&effect, &owner) in state.effects() {
        owners.entry(owner).or_default().push(effect);
    }
    let booting = state.core().life == super::state::Life::Booting;
    for (&no, message) in state.inbounds() {
        let written = matches!(message.state, InState::Writing { .. });
        if written && !booting && !owners.contains_key(&Owner::Row(no)) {
            wrong.push(format!("{no}: is being written by no open effect"));
        }
    }
    for (owner, effects) in owners {
        // A row may be changed again before the first change is on disk; everything else has one effect at a time.
        if effects.len() > 1 && !matches!(owner, Owner::Update(_) | Owner::Start(_) | Owner::Projection(_)) {
            wrong.push(format!("{owner:?} has {} open effects", effects.len()));
        }
    }
    let updates: BTreeMap<SessionNo, u32> =
        state.effects().values().fold(BTreeMap::new(), |mut sum, owner| {
            let session = match owner {
                Owner::Update(no) => state.inbound(*no).map(|m| m.session),
                Owner::Reset(no, _) => Some(*no),
                _ => None,
            };
            if let Some(session) = session {
                *sum.entry(session).or_default() += 1;
            }
            sum
        });
    for (&no, session) in state.sessions() {
        let open = updates.get(&no).copied().unwrap_or(0);
        if session.writes_open != open {
            wrong.push(format!("{no}: counts {} open writes, there are {open}", session.writes_open));
        }
    }
}

/// Every outbound message that is queued stands in exactly one queue.
fn check_queues(state: &State, wrong: &mut Vec<String>) {
    let mut places: BTreeMap<MessageNo, u32> = BTreeMap::new();
    for destination in state.destinations().values() {
        for item in &destination.queue {
            if let Item::Message(no) = item {
                *places.entry(*no).or_default() += 1;
            }
        }
    }
    for (&no, message) in state.outbounds() {
        let expected = u32::from(matches!(message.state, OutState::Queued | OutState::Delivering { .. }));
        let found = places.get(&no).copied().unwrap_or(0);
        if found != expected {
            wrong.push(format!("{no}: stands in {found} queues, expected {expected} ({:?})", message.state));
        }
    }
}
