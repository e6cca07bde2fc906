//! The machine: a pure, deterministic state machine that decides everything the host does.
//!
//! `step(at, input)` takes one input and gives effects. The four stages of a message's life have a module each:
//! [`wake`], [`processing`], [`deliver`] and [`sweep`]; [`start`] settles what a boot finds, [`outage`] what becomes of
//! everything while the runtime is away, [`route`] decides who may send what where, [`question`] tells answers from
//! messages, [`actions`] is what operators ask for.
//!
//! Invariant: no file, clock, thread, socket, randomness, environment or map with unstable order.
//! Invariant: `step` cannot fail; an input that is illegal now changes nothing and yields a `Complain`.
//! Invariant: message text never enters; inputs carry facts.

pub mod actions;
pub mod deliver;
pub mod effect;
pub mod input;
pub mod invariants;
pub mod outage;
pub mod policy;
pub mod processing;
pub mod question;
pub mod route;
pub mod shared_map;
pub mod start;
pub mod state;
pub mod sweep;
pub mod timers;
pub mod wake;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::base::{At, EffectId, RecordNo, SessionNo};
use effect::{Cause, Effect};
use input::Input;
use policy::COMPLAIN_EVERY;
use state::{Complaints, ComponentId, Owner, State};
use timers::TimerKey;

/// Raised whenever the same inputs may lead to other decisions than before; segments name it.
pub const MACHINE_VERSION: u32 = 3;

/// The machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    state: State,
}

/// What one step did.
#[must_use = "effects that nobody performs are lost work"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The number of its record.
    pub record: RecordNo,
    /// When.
    pub at: At,
    /// What is to be done, in order. The n-th has the id (record, n).
    pub effects: Vec<Effect>,
    /// The components that may have changed.
    pub touched: BTreeSet<ComponentId>,
}

impl Turn {
    /// The effects with their ids.
    pub fn effects(&self) -> impl Iterator<Item = (EffectId, &Effect)> + '_ {
        self.effects
            .iter()
            .zip(0u32..)
            .map(|(effect, index)| (EffectId { record: self.record, index }, effect))
    }
}

impl Machine {
    /// A machine in a given state, as a snapshot holds it.
    pub fn new(state: State) -> Self {
        Self { state }
    }

    /// What it knows.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The earliest deadline and what it is for; without one, only an input can change anything.
    pub fn next_deadline(&self) -> Option<(At, TimerKey)> {
        self.state.timers().next()
    }

    /// Takes one input. Time never goes back: an earlier `at` counts as the time of the last input.
    pub fn step(&mut self, at: At, input: Input) -> Turn {
        let at = at.max(self.state.core().at);
        if let Input::Booted(booted) = &input {
            self.state.core_mut().record = RecordNo::first_of(booted.boot);
        }
        let core = self.state.core_mut();
        core.at = at;
        let record = core.record;
        core.record = record.next();
        let mut step = Step { state: &mut self.state, effects: Vec::new(), made: 0, record, at };
        step.take(input);
        step.settle();
        let effects = step.effects;
        self.state.derive_touched_timers();
        let touched = self.state.take_touched();
        let turn = Turn { record, at, effects, touched };
        #[cfg(debug_assertions)]
        invariants::check_touched(&self.state, &turn.touched);
        turn
    }
}

/// One step under way. The stage modules add its methods.
pub(crate) struct Step<'a> {
    state: &'a mut State,
    effects: Vec<Effect>,
    /// Ids that were made, see [`Step::made_id`].
    made: u64,
    record: RecordNo,
    at: At,
}

impl Step<'_> {
    fn take(&mut self, input: Input) {
        // The feature is for tests alone: what follows a panic must be seen with the real program.
        if cfg!(feature = "sabotage")
            && matches!(&input, Input::MessageArrived(it) if it.facts.command.as_deref() == Some("/panic"))
        {
            panic!("sabotaged: a message asks for it");
        }
        match input {
            Input::Booted(it) => self.on_booted(it),
            Input::SessionFound(it) => self.on_session_found(it, true),
            Input::SessionFoundInPart(it) => self.on_session_found(it, false),
            Input::SessionsUnchanged { sessions } => self.on_sessions_unchanged(&sessions),
            Input::ContainersFound { alive, adoptable } => self.on_containers_found(&alive, adoptable),
            Input::ClockSet { offset } => self.on_clock_set(offset),
            Input::PolicyChanged(policy) => self.on_policy_changed(policy),
            Input::MessageArrived(it) => self.on_arrival(it, None, None),
            Input::PossibleAnswer { arrival, line } => self.on_arrival(arrival, Some(line), None),
            Input::MessageArrivedAt { arrival, line, sent } => self.on_arrival(arrival, line, Some(sent)),
            Input::ArrivalWithoutSpace(it) => self.on_arrival_without_space(it),
            Input::OperatorAsked { request, ask } => self.on_asked(request, ask),
            Input::InboundWritten { effect, seq, duplicate } => {
                self.on_inbound_written(effect, seq, duplicate)
            }
            Input::InboundWriteFailed { effect, reason } => self.on_inbound_write_failed(effect, reason),
            Input::InboundLocked { session } => self.on_inbound_locked(session),
            Input::InboundRead { effect, found, whole } => self.on_inbound_read(effect, found, whole),
            Input::InboundUnwritable { session, detail } => self.on_inbound_unwritable(session, detail),
            Input::OutboundRead { session, reading } => self.on_outbound_read(session, reading),
            Input::Looked { effect, session, heartbeat_changed, alive, reading } => {
                self.on_looked(effect, session, heartbeat_changed, alive, reading);
            }
            Input::HeartbeatSeen { session } => self.on_sign_of_life(session),
            Input::ContainerStarted { effect } => self.on_started(effect),
            Input::ContainerStartFailed { effect, reason } => self.on_start_failed(effect, reason),
            Input::ContainerExited { session, attempt, exit } => self.on_exited(session, attempt, exit),
            Input::Delivered { effect, platform_id } => self.on_delivered(effect, platform_id),
            Input::DeliveryFailed { effect, class, reason, retry_after } => {
                self.on_delivery_failed(effect, class, reason, retry_after);
            }
            Input::ChannelUp { channel, chat, idempotent } => self.on_channel_up(channel, chat, idempotent),
            Input::ChannelDown { channel } => self.on_channel_down(&channel),
            Input::EffectDone { effect, error } => self.on_effect_done(effect, error),
            Input::TimerDue { key, deadline } => self.on_timer(key, deadline),
            Input::ShutdownAsked => self.on_shutdown_asked(),
            Input::DetachAsked => self.on_detach_asked(),
            Input::FolderTooLarge { session, detail } => self.on_folder_too_large(session, detail),
            Input::RuntimeDown { reason } => self.on_runtime_down(reason),
            Input::RuntimeUp => self.on_runtime_up(),
        }
    }

    /// What follows from the state alone, for everything that this step touched: suspects are kept apart, work
    /// is queued for a slot, slots are filled, destinations are pumped, typing is shown.
    fn settle(&mut self) {
        let mut done = BTreeSet::new();
        // Pumping and waking touch only the destination and session at hand, and each is visited once, so this
        // ends; what was touched by a later visit is picked up by the next round.
        loop {
            let fresh: Vec<ComponentId> =
                self.state.touched().iter().filter(|id| !done.contains(*id)).copied().collect();
            if fresh.is_empty() {
                break;
            }
            for id in fresh {
                done.insert(id);
                match id {
                    ComponentId::Destination(no) => self.pump(no),
                    ComponentId::Session(no) => {
                        self.keep_suspects_apart(no);
                        self.release_note(no);
                        self.show_typing(no);
                        self.consider(no);
                    }
                    _ => {}
                }
            }
        }
        self.fill_slots();
    }

    /// Issues an effect that completes, and remembers whose it is.
    fn issue(&mut self, owner: Owner, effect: Effect) -> EffectId {
        debug_assert!(effect.completes());
        let id = self.next_effect();
        self.state.open(id, owner);
        self.effects.push(effect);
        id
    }

    /// Issues an effect that nobody hears of again.
    fn tell(&mut self, effect: Effect) {
        debug_assert!(!effect.completes());
        self.effects.push(effect);
    }

    /// The id that the next effect of this step will have.
    fn next_effect(&self) -> EffectId {
        // A record has room for some 100,000 effects, far fewer than the index counts; one that has more is refused
        // by its number.
        let index = u32::try_from(self.effects.len()).unwrap_or(u32::MAX);
        EffectId { record: self.record, index }
    }

    /// Complains, at most once per cause and session in [`COMPLAIN_EVERY`], with a count.
    fn complain(&mut self, session: Option<SessionNo>, cause: Cause, detail: impl Into<String>) {
        let at = self.at;
        let mut count = 1;
        if let Some(known) = self.complaints_mut(session) {
            let entry = known.entry(cause).or_insert((At(i64::MIN), 0));
            entry.1 = entry.1.saturating_add(1);
            if entry.0 != At(i64::MIN) && at < entry.0 + COMPLAIN_EVERY {
                return;
            }
            count = std::mem::take(&mut entry.1);
            entry.0 = at;
        }
        self.tell(Effect::Complain { session, cause, count, detail: detail.into() });
    }

    /// Complaints about a session that is not known are about none in particular.
    fn complaints_mut(&mut self, session: Option<SessionNo>) -> Option<&mut Complaints> {
        match session.filter(|&no| self.state.session(no).is_some()) {
            Some(no) => self.state.session_mut(no).map(|known| &mut known.complaints),
            None => Some(self.state.complaints_mut()),
        }
    }

    /// What was kept back and followed by nothing is told of after all.
    fn tell_withheld(&mut self, session: Option<SessionNo>) {
        let at = self.at;
        let Some(known) = self.complaints_mut(session) else { return };
        let mut due = Vec::new();
        for (&cause, entry) in known.iter_mut() {
            if entry.1 > 0 && entry.0 + COMPLAIN_EVERY <= at {
                due.push((cause, std::mem::take(&mut entry.1)));
                entry.0 = at;
            }
        }
        for (cause, count) in due {
            let detail = "more of the same since the last complaint of this kind".to_owned();
            self.tell(Effect::Complain { session, cause, count, detail });
        }
    }

    /// Complains that an input makes no sense now.
    fn illegal(&mut self, session: Option<SessionNo>, what: &str) {
        self.complain(session, Cause::IllegalInput, what);
    }
}
