//! Whether the mount is silent: what the resync finds again and again while no event comes at all.
//!
//! Invariant: one event about any session's rows begins the count anew, so a mount where events arrive is never
//! called silent, however often a resync is faster than they are.
//! Invariant: pure; nothing here touches a file or a clock.

/// So many resyncs in a row must find what no event announced. One may be a moment in which the machine stood still,
/// two a coincidence; each more would only leave a silent mount's sessions waiting for another period.
pub const SILENT_MAX: u32 = 3;

/// The count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence {
    /// Resyncs in a row, up to [`SILENT_MAX`].
    times: u32,
    /// How many events there were when that was counted.
    heard: u64,
}

impl Silence {
    /// One resync was judged: whether it found something, in a session that is watched, that no event announced until
    /// now. `heard` is the number of events about rows since the start, of whatever session.
    pub fn judge(&mut self, unannounced: bool, heard: u64) {
        if heard != self.heard {
            *self = Self { times: 0, heard };
        } else if unannounced {
            self.times = (self.times + 1).min(SILENT_MAX);
        }
    }

    /// What was counted was the watcher's fault.
    pub fn begin_anew(&mut self) {
        self.times = 0;
    }

    /// Whether that was often enough, and nothing was heard since.
    pub fn is_proved(&self, heard: u64) -> bool {
        self.times >= SILENT_MAX && heard == self.heard
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_finds_in_a_row_are_silence_and_resyncs_that_find_nothing_do_not_matter() {
        let mut silence = Silence::default();
        for (found, proved) in [(true, false), (false, false), (true, false), (false, false), (true, true)] {
            silence.judge(found, 0);
            assert_eq!(silence.is_proved(0), proved);
        }
        assert!(!silence.is_proved(1), "an event came since");
        silence.begin_anew();
        assert!(!silence.is_proved(0));
    }

    proptest! {
        #[test]
        fn silence_is_proved_exactly_by_the_last_finds_without_an_event_in_between(
            steps in prop::collection::vec((any::<bool>(), 0u64..2), 1..200),
        ) {
            let (mut silence, mut heard, mut in_a_row) = (Silence::default(), 0, 0);
            for (found, events) in steps {
                heard += events;
                in_a_row = if events > 0 { 0 } else { in_a_row + u32::from(found) };
                silence.judge(found, heard);
                prop_assert_eq!(silence.is_proved(heard), in_a_row >= SILENT_MAX);
            }
        }
    }
}
