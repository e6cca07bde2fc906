//! Starts under way: of which attempt, and how far each has come.
//!
//! Invariant: an attempt is handed to the runtime only while the machine waits for just that start.
//! Invariant: each start is answered once: by the runtime from when it was handed over, and from here before that.

use std::collections::BTreeMap;

use crate::base::{Attempt, EffectId, SessionNo};
use crate::containers::StartSpec;
use crate::machine::state::{Phase, State};

/// Why an attempt that was stopped too early to begin did not begin.
pub const WITHDRAWN: &str = "it was asked to stop before it was started";

/// How far a start has come.
#[derive(Debug)]
enum Stage {
    /// Its folders are being prepared.
    Preparing,
    /// Its folder is watched, and what lies in it is being read.
    Scanning(Box<StartSpec>),
    /// The runtime has it.
    Handed,
}

#[derive(Debug)]
struct Start {
    session: SessionNo,
    attempt: Attempt,
    stage: Stage,
}

/// All starts that are not answered yet: at most one for each of the machine's slots, and one more for each attempt
/// that was asked to stop while the runtime had it.
#[derive(Debug, Default)]
pub struct Starts {
    open: BTreeMap<EffectId, Start>,
}

impl Starts {
    /// A start begins.
    pub fn begin(&mut self, effect: EffectId, session: SessionNo, attempt: Attempt) {
        self.open.insert(effect, Start { session, attempt, stage: Stage::Preparing });
    }

    /// Whether the start is known and its folders are being prepared.
    pub fn is_preparing(&self, effect: EffectId) -> bool {
        matches!(self.open.get(&effect), Some(Start { stage: Stage::Preparing, .. }))
    }

    /// Whether the start is known and waits for its scan.
    pub fn is_scanning(&self, effect: EffectId) -> bool {
        matches!(self.open.get(&effect), Some(Start { stage: Stage::Scanning(_), .. }))
    }

    /// It waits for its scan from now on.
    pub fn scan(&mut self, effect: EffectId, spec: StartSpec) {
        if let Some(start) = self.open.get_mut(&effect) {
            start.stage = Stage::Scanning(Box::new(spec));
        }
    }

    /// Its scan is done: from now on the runtime answers. None for one that waits for no scan.
    pub fn hand_over(&mut self, effect: EffectId) -> Option<StartSpec> {
        let start = self.open.get_mut(&effect)?;
        match std::mem::replace(&mut start.stage, Stage::Handed) {
            Stage::Scanning(spec) => Some(*spec),
            other => {
                start.stage = other;
                None
            }
        }
    }

    /// Forgets a start that the runtime has not heard of; whose it was.
    pub fn give_up(&mut self, effect: EffectId) -> Option<(SessionNo, Attempt)> {
        self.open.remove(&effect).map(|start| (start.session, start.attempt))
    }

    /// The attempt is to stop: the start that the runtime has not heard of, which is forgotten. None when there is no
    /// such; then it is the runtime's to stop it.
    pub fn withdraw(&mut self, session: SessionNo, attempt: Attempt) -> Option<EffectId> {
        let effect = self.find(session, attempt, |stage| !matches!(stage, Stage::Handed))?;
        self.open.remove(&effect);
        Some(effect)
    }

    /// The runtime has answered: the start that it was.
    pub fn answered(&mut self, session: SessionNo, attempt: Attempt) -> Option<EffectId> {
        let effect = self.find(session, attempt, |stage| matches!(stage, Stage::Handed))?;
        self.open.remove(&effect);
        Some(effect)
    }

    fn find(&self, session: SessionNo, attempt: Attempt, at: impl Fn(&Stage) -> bool) -> Option<EffectId> {
        let is = |it: &Start| it.session == session && it.attempt == attempt && at(&it.stage);
        self.open.iter().find(|(_, it)| is(it)).map(|(&effect, _)| effect)
    }
}

/// Whether the machine waits for just this start of just this attempt.
pub fn is_wanted(state: &State, effect: EffectId, session: SessionNo, attempt: Attempt) -> bool {
    state.session(session).is_some_and(|known| {
        matches!(known.phase, Phase::Starting { attempt: own, effect: asked, .. } if own == attempt && asked == effect)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{RecordNo, SessionName};

    const ONE: SessionNo = SessionNo(1);

    fn effect(n: u64) -> EffectId {
        EffectId { record: RecordNo(n), index: 0 }
    }

    fn spec(attempt: Attempt) -> StartSpec {
        StartSpec {
            session: ONE,
            name: SessionName::new("g", "s").unwrap(),
            attempt,
            out_dir: "/o".into(),
            in_dir: "/i".into(),
            agent_dir: "/a".into(),
            state_dir: "/s".into(),
            seed_dir: "/seed".into(),
            timezone: "UTC".into(),
            env: Vec::new(),
        }
    }

    #[test]
    fn a_start_is_withdrawn_until_the_runtime_has_it() {
        let mut starts = Starts::default();
        let (first, second) = (Attempt(7), Attempt(9));
        starts.begin(effect(1), ONE, first);
        assert!(starts.is_preparing(effect(1)) && !starts.is_scanning(effect(1)));
        assert_eq!(starts.withdraw(ONE, second), None);
        assert_eq!(starts.withdraw(ONE, first), Some(effect(1)));
        assert!(!starts.is_preparing(effect(1)) && starts.hand_over(effect(1)).is_none());

        starts.begin(effect(2), ONE, second);
        assert!(starts.hand_over(effect(2)).is_none() && starts.is_preparing(effect(2)));
        assert_eq!(starts.answered(ONE, second), None, "the runtime has not heard of it");
        starts.scan(effect(2), spec(second));
        assert!(starts.is_scanning(effect(2)));
        assert_eq!(starts.hand_over(effect(2)).map(|it| it.attempt), Some(second));
        assert!(starts.hand_over(effect(2)).is_none(), "handed over twice");
        assert_eq!(starts.withdraw(ONE, second), None, "the runtime has it");
        assert_eq!(starts.answered(ONE, second), Some(effect(2)));
        assert_eq!(starts.answered(ONE, second), None);
    }
}
