//! The floor under the events: which sessions to `stat` when, so that every one is looked at once a period.
//!
//! Invariant: at most one wake-up a second, whatever the number of sessions (design 2, rule 3), but for live sessions
//! on a mount without events: while there are such, one every [`NO_EVENTS_WAIT`].
//! Invariant: every session that stays known is visited within one period and one wake-up.
//! Invariant: pure; time is an argument, nothing here touches a file.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::base::SessionNo;

/// The shortest time between two wake-ups: a daemon with nothing to do should not wake more often (design 2).
pub const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// The time between two looks at a live session on a mount without events: long enough that a hundred of them cost a
/// processor nothing to speak of, short enough for somebody who waits for an answer.
pub const NO_EVENTS_WAIT: Duration = Duration::from_millis(250);

/// The order in which sessions are visited.
#[derive(Debug)]
pub struct Resync {
    period: Duration,
    /// The time between two visits of those that no watch covers.
    uncovered_wait: Duration,
    sessions: BTreeSet<SessionNo>,
    /// Those that no watch covers: visited at every wake-up.
    uncovered: BTreeSet<SessionNo>,
    /// The session visited last; the next wake-up goes on behind it.
    cursor: Option<SessionNo>,
    /// What part of a visit is owed from earlier wake-ups, in sessions times nanoseconds of the period.
    owed: u128,
    last: Instant,
    next: Instant,
}

impl Resync {
    /// Nothing to visit yet. A period below [`SHORTEST_WAIT`] is raised to it. `uncovered_wait` is the time between two
    /// visits of sessions that no watch covers.
    pub fn new(period: Duration, uncovered_wait: Duration, now: Instant) -> Self {
        Self {
            period: period.max(SHORTEST_WAIT),
            uncovered_wait,
            sessions: BTreeSet::new(),
            uncovered: BTreeSet::new(),
            cursor: None,
            owed: 0,
            last: now,
            next: now,
        }
    }

    /// From now on sessions that no watch covers are visited so often: what the mount asks for was learned.
    pub fn set_uncovered_wait(&mut self, wait: Duration) {
        self.uncovered_wait = wait;
        self.plan_next();
    }

    /// From now on the session is visited.
    pub fn add(&mut self, session: SessionNo, now: Instant) {
        if self.is_idle() {
            self.last = now;
            self.owed = 0;
        }
        self.sessions.insert(session);
        self.plan_next();
    }

    /// Says whether a watch covers the session. Without one it is visited at every wake-up.
    pub fn cover(&mut self, session: SessionNo, covered: bool) {
        if covered {
            self.uncovered.remove(&session);
        } else if self.sessions.contains(&session) {
            self.uncovered.insert(session);
        }
        self.plan_next();
    }

    /// How many live sessions no watch covers.
    pub fn uncovered(&self) -> usize {
        self.uncovered.len()
    }

    /// When to call [`Resync::due`] next; `None` when there is nothing to visit.
    pub fn next_wake(&self) -> Option<Instant> {
        (!self.is_idle()).then_some(self.next)
    }

    /// The sessions to visit now. Empty before [`Resync::next_wake`].
    pub fn due(&mut self, now: Instant) -> Vec<SessionNo> {
        if self.is_idle() || now < self.next {
            return Vec::new();
        }
        let count = self.sessions.len();
        let passed = now.saturating_duration_since(self.last).min(self.period);
        self.owed += passed.as_nanos() * count as u128;
        let period = self.period.as_nanos();
        let share = usize::try_from(self.owed / period).unwrap_or(usize::MAX).min(count);
        self.owed %= period;
        self.last = now;
        let mut visit = self.uncovered.clone();
        visit.extend(self.advance(share));
        self.plan_next();
        visit.into_iter().collect()
    }

    /// The next `share` sessions behind the cursor, round and round.
    fn advance(&mut self, share: usize) -> Vec<SessionNo> {
        let behind = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.sessions.range((behind, Bound::Unbounded));
        let taken: Vec<SessionNo> = rest.chain(self.sessions.iter()).take(share).copied().collect();
        self.cursor = taken.last().copied().or(self.cursor);
        taken
    }

    fn is_idle(&self) -> bool {
        self.sessions.is_empty()
    }

    fn plan_next(&mut self) {
        let count = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX).max(1);
        let wait = match self.uncovered.is_empty() {
            true => (self.period / count).max(SHORTEST_WAIT),
            false => self.uncovered_wait,
        };
        self.next = self.last + wait;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(60);

    /// Runs the schedule for a while and notes the visits of each session in milliseconds.
    fn run(resync: &mut Resync, from: Instant, span: Duration) -> (usize, BTreeMap<SessionNo, Vec<u128>>) {
        let mut visits: BTreeMap<SessionNo, Vec<u128>> = BTreeMap::new();
        let mut wakes = 0;
        while let Some(at) = resync.next_wake().filter(|at| *at <= from + span) {
            wakes += 1;
            for session in resync.due(at) {
                visits.entry(session).or_default().push((at - from).as_millis());
            }
        }
        (wakes, visits)
    }

    proptest! {
        #[test]
        fn every_session_is_visited_each_period_with_at_most_one_wake_up_a_second(count in 1u32..500) {
            let start = Instant::now();
            let mut resync = Resync::new(PERIOD, SHORTEST_WAIT, start);
            for no in 0..count {
                resync.add(SessionNo(no), start);
            }
            let (wakes, visits) = run(&mut resync, start, PERIOD * 5);
            prop_assert!(wakes <= 300);
            prop_assert_eq!(visits.len(), count as usize);
            for times in visits.values() {
                prop_assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= 62_000), "{:?}", times);
                prop_assert!((4..=6).contains(&times.len()));
            }
        }
    }

    #[test]
    fn the_visits_of_a_thousand_sessions_are_spread_evenly() {
        let start = Instant::now();
        let mut resync = Resync::new(PERIOD, SHORTEST_WAIT, start);
        for no in 0..1_000 {
            resync.add(SessionNo(no), start);
        }
        for second in 1..=60u64 {
            let visited = resync.due(start + Duration::from_secs(second)).len();
            assert!((16..=17).contains(&visited), "{visited} in second {second}");
        }
    }

    #[test]
    fn a_session_without_a_watch_is_visited_every_second() {
        let start = Instant::now();
        let mut resync = Resync::new(PERIOD, SHORTEST_WAIT, start);
        resync.add(SessionNo(1), start);
        resync.add(SessionNo(2), start);
        resync.cover(SessionNo(2), false);
        assert_eq!(resync.uncovered(), 1);
        let (_, visits) = run(&mut resync, start, Duration::from_secs(10));
        assert_eq!(visits.get(&SessionNo(2)).map(Vec::len), Some(10));
        resync.cover(SessionNo(2), true);
        assert!(resync.next_wake().is_some_and(|at| at > start + Duration::from_secs(20)));
    }

    #[test]
    fn on_a_mount_without_events_a_live_session_is_visited_four_times_a_second_and_others_as_before() {
        let start = Instant::now();
        let mut resync = Resync::new(PERIOD, NO_EVENTS_WAIT, start);
        for no in 0..60 {
            resync.add(SessionNo(no), start);
        }
        let (wakes, _) = run(&mut resync, start, PERIOD);
        assert!(wakes <= 60, "nobody is live: {wakes}");
        resync.cover(SessionNo(7), false);
        let (wakes, visits) = run(&mut resync, start + PERIOD, PERIOD);
        assert!((239..=241).contains(&wakes), "{wakes}");
        assert_eq!(visits[&SessionNo(7)].len(), wakes);
        for (no, times) in visits.iter().filter(|(no, _)| **no != SessionNo(7)) {
            assert!((1..=2).contains(&times.len()), "{no}: {times:?}");
        }
        resync.cover(SessionNo(7), true);
        let (wakes, _) = run(&mut resync, start + PERIOD * 2, PERIOD);
        assert!(wakes <= 61, "{wakes}");
    }

    proptest! {
        #[test]
        fn a_mount_found_to_be_silent_costs_its_live_sessions_four_visits_a_second_and_dormant_ones_none_more(
            live in 1u32..20,
            dormant in 0u32..200,
            first in 0u64..90_000,
        ) {
            let start = Instant::now();
            let mut resync = Resync::new(PERIOD, SHORTEST_WAIT, start);
            for no in 0..live + dormant {
                resync.add(SessionNo(no), start);
            }
            run(&mut resync, start, Duration::from_millis(first));
            // What was learned, at any moment between two wake-ups.
            let learned = start + Duration::from_millis(first);
            resync.set_uncovered_wait(NO_EVENTS_WAIT);
            for no in 0..live {
                resync.cover(SessionNo(no), false);
            }
            // Visited at once, if that is overdue by the new measure.
            resync.due(learned);
            let (wakes, visits) = run(&mut resync, learned, PERIOD * 2);
            prop_assert!((479..=481).contains(&wakes), "{}", wakes);
            for no in (0..live).map(SessionNo) {
                prop_assert!(visits[&no].windows(2).all(|pair| pair[1] - pair[0] <= NO_EVENTS_WAIT.as_millis()));
            }
            for no in (live..live + dormant).map(SessionNo) {
                let times = visits.get(&no).map_or(0, Vec::len);
                prop_assert!((1..=3).contains(&times), "{}: {}", no, times);
            }
            // With the last live one the frequent wake-ups end, also for those that are visited no more.
            for no in 0..live {
                resync.cover(SessionNo(no), true);
            }
            let quiet = learned + PERIOD * 2;
            let (wakes, visits) = run(&mut resync, quiet, PERIOD);
            prop_assert!(wakes <= 61, "{}", wakes);
            prop_assert!(visits.values().all(|times| times.len() <= 2));
        }

        #[test]
        fn a_session_that_only_met_a_watch_limit_is_visited_once_a_second(
            unwatched in 1u32..50,
            watched in 0u32..100,
        ) {
            let start = Instant::now();
            let mut resync = Resync::new(PERIOD, SHORTEST_WAIT, start);
            for no in 0..unwatched + watched {
                resync.add(SessionNo(no), start);
                resync.cover(SessionNo(no), no >= unwatched);
            }
            let (wakes, visits) = run(&mut resync, start, PERIOD);
            prop_assert_eq!(wakes, 60);
            for no in (0..unwatched).map(SessionNo) {
                prop_assert_eq!(visits[&no].len(), 60);
            }
        }
    }

    #[test]
    fn with_no_sessions_nothing_wakes_up() {
        let start = Instant::now();
        let mut resync = Resync::new(PERIOD, SHORTEST_WAIT, start);
        assert_eq!(resync.next_wake(), None);
        assert!(resync.due(start + PERIOD).is_empty());
    }
}
