//! How often to `stat` inbound.db beside the watch. Pure.
//!
//! File events do not cross every mount: on network and virtual machine shares they are late, partial or
//! never come, and no call tells in advance. So trust is earned: a short poll runs until an event has
//! announced a change that the poll had not seen, and comes back as soon as a poll finds a change that no
//! event announced.
//!
//! Invariant: there is always a next poll; the events alone are never relied on for ever.

use std::time::Duration;

/// Between two polls while the watch is not trusted: what a user hardly feels, at four `stat` a second.
pub const SHORT: Duration = Duration::from_millis(250);
/// Between two polls while it is: bounds the delay when events stop coming.
pub const LONG: Duration = Duration::from_secs(5);

/// What a `stat` tells about a file; `None` in its place means that it could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The file, so that a replaced one differs.
    pub inode: u64,
    /// In bytes.
    pub size: u64,
    /// Seconds and nanoseconds of the last change.
    pub modified: (i64, i64),
}

/// Whether the watch is trusted, and what was last seen.
#[derive(Clone, Debug, Default)]
pub struct PollPolicy {
    seen: Option<Fingerprint>,
    trusted: bool,
    /// A change was seen at the last poll. Times of files are coarse: a second one may hide behind the same
    /// stamp.
    unsettled: bool,
}

impl PollPolicy {
    /// Begins with what a first `stat` found; the watch is not trusted yet.
    pub fn new(seen: Option<Fingerprint>) -> Self {
        Self { seen, trusted: false, unsettled: false }
    }

    /// How long until the next poll.
    pub fn interval(&self) -> Duration {
        if self.trusted && !self.unsettled { LONG } else { SHORT }
    }

    /// Whether events are trusted to come.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// An event came, and this is what the file looks like now. The caller looks in any case.
    pub fn announced(&mut self, found: Option<Fingerprint>) {
        if found != self.seen {
            self.seen = found;
            self.trusted = true;
        }
    }

    /// A poll found this. Returns whether to look.
    pub fn polled(&mut self, found: Option<Fingerprint>) -> bool {
        let changed = found != self.seen;
        if changed {
            self.seen = found;
            self.trusted = false;
        }
        std::mem::replace(&mut self.unsettled, changed) || changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: i64) -> Option<Fingerprint> {
        Some(Fingerprint { inode: 1, size: 4096, modified: (n, 0) })
    }

    #[test]
    fn an_event_that_came_first_ends_the_short_poll() {
        let mut policy = PollPolicy::new(at(1));
        assert_eq!(policy.interval(), SHORT);
        policy.announced(at(2));
        assert!(policy.is_trusted());
        assert_eq!(policy.interval(), LONG);
        assert!(!policy.polled(at(2)), "nothing new");
        assert_eq!(policy.interval(), LONG);
    }

    #[test]
    fn an_event_about_nothing_new_earns_no_trust() {
        let mut policy = PollPolicy::new(at(1));
        policy.announced(at(1));
        assert_eq!(policy.interval(), SHORT);
    }

    #[test]
    fn a_change_that_only_the_poll_found_brings_the_short_poll_back() {
        let mut policy = PollPolicy::new(at(1));
        policy.announced(at(2));
        assert!(policy.polled(at(3)));
        assert!(!policy.is_trusted());
        assert_eq!(policy.interval(), SHORT);
        policy.announced(at(3));
        assert!(!policy.is_trusted(), "the event was late");
        policy.announced(at(4));
        assert!(policy.is_trusted());
    }

    #[test]
    fn after_a_change_the_next_poll_looks_once_more() {
        let mut policy = PollPolicy::new(at(1));
        assert!(policy.polled(at(2)));
        assert!(policy.polled(at(2)), "a second change may hide behind the same time");
        assert!(!policy.polled(at(2)));
    }

    #[test]
    fn a_file_that_vanishes_and_comes_back_is_looked_at() {
        let mut policy = PollPolicy::new(None);
        assert!(policy.polled(at(1)));
        assert!(policy.polled(None));
    }
}
