//! Connections kept open between reads, least recently used first to go.
//!
//! Invariant: at most [`MOST`] are kept, and after a quiet minute at most [`USUAL`].
//! Invariant: nothing is closed in here; what must go is handed back, so that the caller closes it without a
//! lock.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Kept in quiet times: each costs 112 kB, and a read on a kept connection a tenth of one that opens (floor
/// 1b-ii).
pub const USUAL: usize = 64;
/// Kept while more sessions than that are read in turn; 28 MB.
pub const MOST: usize = 256;
/// A connection that was used so recently is not closed for [`USUAL`]'s sake: it is part of the load.
const BUSY_WITHIN: Duration = Duration::from_secs(1);
/// What lies beyond [`USUAL`] is closed when it was not used for so long.
pub const SHRINK_AFTER: Duration = Duration::from_secs(60);

/// Values by key with the time of their last use.
#[derive(Debug)]
pub struct Kept<K, V> {
    values: HashMap<K, (u64, Instant, V)>,
    /// Keys by the stamp of their last use; stamps only grow.
    order: BTreeMap<u64, K>,
    stamp: u64,
}

impl<K: Copy + Eq + Hash, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self { values: HashMap::new(), order: BTreeMap::new(), stamp: 0 }
    }
}

impl<K: Copy + Eq + Hash, V> Kept<K, V> {
    /// How many are kept.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Takes a value out, to be used or closed.
    pub fn take(&mut self, key: K) -> Option<V> {
        let (stamp, _, value) = self.values.remove(&key)?;
        self.order.remove(&stamp);
        Some(value)
    }

    /// Keeps a value and hands back what has to go for it.
    #[must_use = "what is handed back is to be closed without the lock"]
    pub fn put(&mut self, key: K, value: V, now: Instant) -> Vec<V> {
        let mut gone: Vec<V> = self.take(key).into_iter().collect();
        self.stamp += 1;
        self.order.insert(self.stamp, key);
        self.values.insert(key, (self.stamp, now, value));
        while self.values.len() > USUAL {
            let crowded = self.values.len() > MOST;
            match self.pop_oldest(|idle| crowded || idle >= BUSY_WITHIN, now) {
                Some(value) => gone.push(value),
                None => break,
            }
        }
        gone
    }

    /// Hands back what a quiet minute made superfluous.
    #[must_use = "what is handed back is to be closed without the lock"]
    pub fn shrink(&mut self, now: Instant) -> Vec<V> {
        let mut gone = Vec::new();
        while self.values.len() > USUAL {
            match self.pop_oldest(|idle| idle >= SHRINK_AFTER, now) {
                Some(value) => gone.push(value),
                None => break,
            }
        }
        gone
    }

    /// Hands back everything.
    #[must_use = "what is handed back is to be closed without the lock"]
    pub fn drain(&mut self) -> Vec<V> {
        self.order.clear();
        self.values.drain().map(|(_, (_, _, value))| value).collect()
    }

    /// When [`Kept::shrink`] will have something to do; `None` when nothing is superfluous.
    pub fn next_shrink(&self) -> Option<Instant> {
        if self.values.len() <= USUAL {
            return None;
        }
        let (_, key) = self.order.first_key_value()?;
        self.values.get(key).map(|(_, used, _)| *used + SHRINK_AFTER)
    }

    fn pop_oldest(&mut self, may_go: impl Fn(Duration) -> bool, now: Instant) -> Option<V> {
        let (_, key) = self.order.first_key_value()?;
        let key = *key;
        let (_, used, _) = self.values.get(&key)?;
        may_go(now.saturating_duration_since(*used)).then(|| self.take(key)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_quiet_times_the_least_recently_used_goes_first() {
        let start = Instant::now();
        let mut kept = Kept::default();
        for no in 0..USUAL {
            assert!(kept.put(no, no, start).is_empty());
        }
        let later = start + Duration::from_secs(5);
        let first = kept.take(0);
        assert_eq!(first, Some(0));
        assert!(kept.put(0, 0, later).is_empty());
        assert_eq!(kept.put(USUAL, USUAL, later), [1]);
        assert_eq!(kept.len(), USUAL);
    }

    #[test]
    fn under_load_more_are_kept_up_to_a_limit_and_a_quiet_minute_ends_that() {
        let start = Instant::now();
        let mut kept = Kept::default();
        let mut closed = 0;
        for no in 0..MOST + 10 {
            closed += kept.put(no, no, start).len();
        }
        assert_eq!((kept.len(), closed), (MOST, 10));
        assert_eq!(kept.next_shrink(), Some(start + SHRINK_AFTER));
        assert!(kept.shrink(start + Duration::from_secs(59)).is_empty());
        assert_eq!(kept.shrink(start + SHRINK_AFTER).len(), MOST - USUAL);
        assert_eq!(kept.next_shrink(), None);
    }

    #[test]
    fn what_is_drained_is_handed_back_and_kept_no_more() {
        let start = Instant::now();
        let mut kept = Kept::default();
        assert!(kept.put(1, 'a', start).is_empty() && kept.put(2, 'b', start).is_empty());
        let mut gone = kept.drain();
        gone.sort_unstable();
        assert_eq!(gone, ['a', 'b']);
        assert_eq!((kept.len(), kept.take(1)), (0, None));
        assert!(kept.put(1, 'c', start).is_empty());
        assert_eq!(kept.len(), 1);
    }

    #[test]
    fn a_second_value_under_the_same_key_hands_back_the_first() {
        let start = Instant::now();
        let mut kept = Kept::default();
        assert!(kept.put(1, 'a', start).is_empty());
        assert_eq!(kept.put(1, 'b', start), ['a']);
        assert_eq!(kept.len(), 1);
    }
}
