//! The machine: a pure, deterministic state machine that decides everything the host does.
//!
//! `step(at, input)` takes one input and gives effects. The four stages of a message's life have a module each:
//! [`wake`], [`processing`], [`deliver`] and [`sweep`]; [`start`] settles what a boot finds, [`route`] decides who
//! may send what where, [`actions`] is what operators ask for.
//!
//! Invariant: no file, clock, thread, socket, randomness, environment or map with unstable order.
//! Invariant: `step` cannot fail; an input that is illegal now changes nothing and yields a `Complain`.
//! Invariant: message text never enters; inputs carry facts.

pub mod actions;
pub mod deliver;
pub mod effect;
pub mod input;
pub mod invariants;
pub mod policy;
pub mod processing;
pub mod route;
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
use state::{ComponentId, Owner, State};
use timers::TimerKey;

/// Raised whenever the same inputs may lead to other decisions than before; segments name it.
pub const MACHINE_VERSION: u32 = 1;

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
            .zip(0u16..)
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
        let mut step = Step { state: &mut self.state, effects: Vec::new(), record, at };
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
    record: RecordNo,
    at: At,
}

impl Step<'_> {
    fn take(&mut self, input: Input) {
        match input {
            Input::Booted(it) => self.on_booted(it),
            Input::SessionFound(it) => self.on_session_found(it),
            Input::SessionsUnchanged { sessions } => self.on_sessions_unchanged(&sessions),
            Input::ContainersFound { alive, adoptable } => self.on_containers_found(&alive, adoptable),
            Input::ClockSet { offset } => self.on_clock_set(offset),
            Input::PolicyChanged(policy) => self.on_policy_changed(policy),
            Input::MessageArrived(it) => self.on_arrival(it),
            Input::ArrivalWithoutSpace(it) => self.on_arrival_without_space(it),
            Input::OperatorAsked { request, ask } => self.on_asked(request, ask),
            Input::InboundWritten { effect, seq, duplicate } => {
                self.on_inbound_written(effect, seq, duplicate)
            }
            Input::InboundWriteFailed { effect, reason } => self.on_inbound_write_failed(effect, reason),
            Input::InboundLocked { session } => self.on_inbound_locked(session),
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
        // A step's effects are bounded by what it touches, at most some thousands at start.
        let index = u16::try_from(self.effects.len()).unwrap_or(u16::MAX);
        EffectId { record: self.record, index }
    }

    /// Complains, at most once per cause and session in [`COMPLAIN_EVERY`], with a count.
    fn complain(&mut self, session: Option<SessionNo>, cause: Cause, detail: impl Into<String>) {
        let at = self.at;
        let mut count = 1;
        if let Some(known) = session.and_then(|no| self.state.session_mut(no)) {
            let entry = known.complaints.entry(cause).or_insert((At(i64::MIN), 0));
            entry.1 = entry.1.saturating_add(1);
            if entry.0 != At(i64::MIN) && at < entry.0 + COMPLAIN_EVERY {
                return;
            }
            count = std::mem::take(&mut entry.1);
            entry.0 = at;
        }
        self.tell(Effect::Complain { session, cause, count, detail: detail.into() });
    }

    /// Complains that an input makes no sense now.
    fn illegal(&mut self, session: Option<SessionNo>, what: &str) {
        self.complain(session, Cause::IllegalInput, what);
    }
}
