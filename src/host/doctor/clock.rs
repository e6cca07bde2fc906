//! The clock: set, and kept right by somebody?
//!
//! Due times and the timestamps of messages are by the wall clock. One that is wrong by years is bad; one that nobody
//! keeps right works, and drifts by seconds a day.

use std::time::{Duration, SystemTime};

use super::Finding;

/// The year before which no clock that is set can be: that of this build.
const BUILT_AFTER: Duration = Duration::from_secs(1_767_225_600);
const TOPIC: &str = "clock";

/// What is to be said about the clock.
pub fn examine() -> Finding {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    judge(since, follows_another())
}

fn judge(since: Duration, follows: Option<bool>) -> Finding {
    match follows {
        _ if since < BUILT_AFTER => Finding::bad(
            TOPIC,
            "the wall clock is before this build was made",
            "set it; due times and timestamps of messages depend on it",
        ),
        Some(false) => Finding::warning(
            TOPIC,
            "the kernel says that it is not synchronised: it may drift by seconds a day",
            "run a time service, such as systemd-timesyncd or chrony; where the machine is kept right from \
             outside, this says nothing",
        ),
        Some(true) => Finding::good(TOPIC, "synchronised"),
        None => Finding::good(TOPIC, "after this build was made"),
    }
}

/// Whether the kernel says that its clock follows another; none where it may not be asked, as in some containers.
fn follows_another() -> Option<bool> {
    // SAFETY: plain numbers, of which all zeros is a value: no mode, so that nothing is set.
    let mut found: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `timex`, which the kernel fills and does not keep.
    let state = unsafe { libc::adjtimex(&raw mut found) };
    (state >= 0).then_some(found.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::doctor::Grade;

    #[test]
    fn a_clock_that_drifts_is_a_note_and_one_that_was_never_set_is_an_error() {
        let now = BUILT_AFTER + Duration::from_secs(1);
        assert_eq!(judge(Duration::from_secs(1), Some(true)).grade, Grade::Bad);
        let note = judge(now, Some(false));
        assert!(note.grade == Grade::Warning && note.advice.contains("chrony"), "{note:?}");
        assert_eq!(judge(now, Some(true)).found, "synchronised");
        assert_eq!(judge(now, None).grade, Grade::Good);
        // Asking changes nothing and does not fail, whatever the answer.
        assert_eq!(follows_another(), follows_another());
    }
}
