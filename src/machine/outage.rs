//! Outage: what becomes of everything while the runtime as a whole is away, and when it is back.
//!
//! While it is away nothing is started, and nothing is stopped for silence: nobody can tell who is silent and who is
//! gone. Messages are taken and delivered all the same. What ends with the runtime blames no message.

use super::Step;
use super::input::Exit;
use super::policy::RUNTIME_SETTLES;
use super::state::{Life, Outage, Phase, State};
use super::timers::TimerKey;
use crate::base::{At, SessionNo};

/// What an engine writes down for a container whose end it did not see.
const UNSEEN: i32 = 255;
/// What stops the containers of an engine that is stopped: asked to end, then killed.
const ASKED: i32 = 15;
const KILLED: i32 = 9;

impl State {
    /// Whether the runtime is away.
    pub fn is_runtime_away(&self) -> bool {
        self.outage().is_some_and(|outage| outage.back.is_none())
    }

    /// Whether it is not known yet what an earlier daemon left running.
    pub fn is_unlisted(&self) -> bool {
        self.outage().is_some_and(|outage| outage.unlisted)
    }

    pub(super) fn derive_outage_timer(&mut self) {
        let deadline = self.outage().and_then(|outage| outage.back).map(|back| back + RUNTIME_SETTLES);
        self.timers.put(TimerKey::RuntimeSettled, deadline);
    }
}

impl Step<'_> {
    pub(super) fn on_runtime_down(&mut self, reason: String) {
        let (since, unlisted) = (self.at, self.state.core().life == Life::Booting);
        match self.state.outage_mut() {
            // Another reason of the same outage.
            Some(outage) if outage.back.is_none() => outage.reason = reason,
            none_or_over => *none_or_over = Some(Outage { since, reason, unlisted, back: None }),
        }
        if unlisted {
            self.open_unlisted();
        }
    }

    /// Whoever waits is started, first come first served. What a session waited for after a failure may have been the
    /// runtime, so those waits are over; the failures stay counted until an attempt has proved healthy.
    pub(super) fn on_runtime_up(&mut self) {
        if !self.state.is_runtime_away() || self.state.is_unlisted() {
            return self.illegal(None, "the runtime is back and was not away, or has not said what runs");
        }
        let at = self.at;
        if let Some(outage) = self.state.outage_mut() {
            outage.back = Some(at);
        }
        let sessions = self.state.sessions().iter();
        let mut waiting: Vec<(At, SessionNo)> = sessions
            .filter_map(|(&no, session)| match session.phase {
                Phase::BackingOff { since } => Some((since, no)),
                _ => None,
            })
            .collect();
        waiting.sort_unstable();
        for (_, no) in waiting {
            self.state.set_phase(no, Phase::Stopped { since: at });
            self.consider(no);
        }
    }

    /// Whether an end may have come with that of the runtime, or of what it left behind: of an attempt that ran before
    /// it was back, and in no way that only the attempt itself ends in.
    pub(super) fn may_be_the_runtimes(&self, exit: Exit, started: At) -> bool {
        let before = self.state.outage().is_some_and(|it| it.back.is_none_or(|back| started < back));
        before && matches!(exit, Exit::Unknown | Exit::Code(0 | UNSEEN) | Exit::Signal(ASKED | KILLED))
    }
}
