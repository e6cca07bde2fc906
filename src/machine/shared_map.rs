//! An ordered map whose copy shares its entries: a snapshot of the state costs a counter per chunk, and what a step
//! changes afterwards costs a copy of the chunk that it is in.
//!
//! Invariant: the entries, chunk after chunk, are in the order of their keys.
//! Invariant: a chunk is never empty but for a chunk that is alone, and two neighbours hold more than [`JOIN`] entries.
//! Invariant: the `from` of every chunk but the first is at most its first key and greater than all keys before it.

use std::ops::Index;
use std::sync::Arc;

/// The most entries of a chunk. A copy of the map touches one counter for so many entries, the first write to a chunk
/// after that copies so many: 16 keep both far below a millisecond with 10,000 sessions, the latter also when each of
/// the 256 inputs of a turn of the loop goes to another session.
const CHUNK: usize = 16;

/// Neighbours that hold no more than this together become one chunk. Half of [`CHUNK`], so that a chunk that was
/// split or joined takes some writes before it is joined or split again.
const JOIN: usize = CHUNK / 2;

/// An ordered map whose `clone` shares the entries until either side writes to them.
#[derive(Clone)]
pub struct SharedMap<K, V> {
    chunks: Vec<Chunk<K, V>>,
    len: usize,
}

#[derive(Clone)]
struct Chunk<K, V> {
    /// Tells which keys belong here without a look at the entries. Has no meaning in the first chunk.
    from: K,
    entries: Arc<Vec<(K, V)>>,
}

impl<K: Clone, V> Chunk<K, V> {
    /// A chunk of one entry, with the space of a full one: most maps grow at their end.
    fn of(key: K, value: V) -> Self {
        let from = key.clone();
        let mut entries = Vec::with_capacity(CHUNK);
        entries.push((key, value));
        Self { from, entries: Arc::new(entries) }
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let entries = &self.chunks.get(self.chunk_of(key))?.entries;
        let place = place_of(entries, key).ok()?;
        entries.get(place).map(|(_, value)| value)
    }

    /// Whether there is such a key.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { chunks: self.chunks.iter(), entries: [].iter() }
    }

    /// All keys in their order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The chunk that has a key, or that a key would go to.
    fn chunk_of(&self, key: &K) -> usize {
        self.chunks.get(1..).map_or(0, |rest| rest.partition_point(|chunk| chunk.from <= *key))
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.chunk_of(key);
        let entries = &mut self.chunks.get_mut(at)?.entries;
        let place = place_of(entries, key).ok()?;
        Arc::make_mut(entries).get_mut(place).map(|(_, value)| value)
    }

    /// Sets the value of a key, and gives the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.chunk_of(&key);
        let chunks = self.chunks.len();
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(Chunk::of(key, value));
            self.len += 1;
            return None;
        };
        let place = match place_of(&chunk.entries, &key) {
            Ok(place) => {
                let old = Arc::make_mut(&mut chunk.entries).get_mut(place);
                return old.map(|(_, old)| std::mem::replace(old, value));
            }
            Err(place) => place,
        };
        self.len += 1;
        if chunk.entries.len() < CHUNK {
            Arc::make_mut(&mut chunk.entries).insert(place, (key, value));
        } else if place == CHUNK && at + 1 == chunks {
            // Nothing moves where a map grows at its end, and its chunks stay full.
            self.chunks.insert(at + 1, Chunk::of(key, value));
        } else {
            let entries = Arc::make_mut(&mut chunk.entries);
            entries.insert(place, (key, value));
            let right = entries.split_off(JOIN);
            if let Some((from, _)) = right.first() {
                let right = Chunk { from: from.clone(), entries: Arc::new(right) };
                self.chunks.insert(at + 1, right);
            }
        }
        None
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.chunk_of(key);
        let entries = &mut self.chunks.get_mut(at)?.entries;
        let place = place_of(entries, key).ok()?;
        let entries = Arc::make_mut(entries);
        let (_, value) = entries.remove(place);
        self.len -= 1;
        if entries.is_empty() && self.chunks.len() > 1 {
            self.chunks.remove(at);
        } else {
            self.join(at);
        }
        if let Some(before) = at.checked_sub(1) {
            self.join(before);
        }
        Some(value)
    }

    /// Keeps the entries that `keep` says yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        *self = std::mem::take(self).into_iter().filter(|(key, value)| keep(key, value)).collect();
    }

    /// Makes one chunk of the one at `at` and the next, if they are small.
    fn join(&mut self, at: usize) {
        let held = |at: usize| self.chunks.get(at).map(|chunk| chunk.entries.len());
        if let (Some(left), Some(right)) = (held(at), held(at + 1))
            && left + right <= JOIN
        {
            let right = self.chunks.remove(at + 1);
            if let Some(left) = self.chunks.get_mut(at) {
                Arc::make_mut(&mut left.entries).extend(Arc::unwrap_or_clone(right.entries));
            }
        }
    }

    /// The numbers of chunks, and of those that are shared with `other`.
    #[cfg(test)]
    pub fn shared_with(&self, other: &Self) -> (usize, usize) {
        let is_shared =
            |mine: &&Chunk<K, V>| other.chunks.iter().any(|it| Arc::ptr_eq(&it.entries, &mine.entries));
        (self.chunks.len(), self.chunks.iter().filter(is_shared).count())
    }
}

/// Where a chunk has a key, or where it would have it.
fn place_of<K: Ord, V>(entries: &[(K, V)], key: &K) -> Result<usize, usize> {
    entries.binary_search_by(|(own, _)| own.cmp(key))
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

/// Equal where the entries are, in whatever chunks.
impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other)
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord + std::fmt::Debug, V: std::fmt::Debug> std::fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// # Panics
/// Where there is no such key.
impl<K: Ord, V> Index<&K> for SharedMap<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("no such key in the map")
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        entries.into_iter().for_each(|(key, value)| drop(map.insert(key, value)));
        map
    }
}

impl<K: Clone, V: Clone> IntoIterator for SharedMap<K, V> {
    type Item = (K, V);
    type IntoIter = std::iter::Flatten<std::vec::IntoIter<Vec<(K, V)>>>;

    /// The entries by value, copied where they are shared.
    fn into_iter(self) -> Self::IntoIter {
        let owned = |chunk: Chunk<K, V>| Arc::unwrap_or_clone(chunk.entries);
        self.chunks.into_iter().map(owned).collect::<Vec<_>>().into_iter().flatten()
    }
}

impl<'a, K: Ord, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

/// The entries of a [`SharedMap`] in the order of their keys.
pub struct Iter<'a, K, V> {
    chunks: std::slice::Iter<'a, Chunk<K, V>>,
    entries: std::slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.entries.next() {
                return Some((key, value));
            }
            self.entries = self.chunks.next()?.entries.iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What the invariants at the top of the file say.
    fn is_sound<V>(map: &SharedMap<u16, V>) -> bool {
        let keys: Vec<u16> = map.keys().copied().collect();
        let froms = map.chunks.windows(2).all(|pair| {
            let [left, right] = pair else { return false };
            let (last, first) = (left.entries.last(), right.entries.first());
            last.is_some_and(|(key, _)| *key < right.from) && first.is_some_and(|(key, _)| right.from <= *key)
        });
        let sizes = map.chunks.iter().all(|chunk| chunk.entries.len() <= CHUNK)
            && map.chunks.windows(2).all(|pair| pair.iter().map(|it| it.entries.len()).sum::<usize>() > JOIN);
        keys.is_sorted() && keys.len() == map.len() && froms && sizes
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map_and_its_copies_stay_as_they_were(
            steps in prop::collection::vec((0u8..8, 0u16..200), 1..600),
        ) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut copies = Vec::new();
            // Runs of insertions and of removals, so that chunks are split and joined.
            for (n, (what, key)) in steps.into_iter().enumerate() {
                let removes = if n / 150 % 2 == 0 { 1 } else { 6 };
                match what {
                    7 if n % 4 == 0 => copies.push((map.clone(), model.clone())),
                    what if what < removes => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    6 => {
                        prop_assert_eq!(map.get(&key), model.get(&key));
                        map.get_mut(&key).into_iter().chain(model.get_mut(&key)).for_each(|value| *value += 1000);
                    }
                    _ => prop_assert_eq!(map.insert(key, n), model.insert(key, n)),
                }
                prop_assert!(is_sound(&map), "{:?}", map);
                prop_assert!(map.iter().eq(&model), "{:?}", map);
            }
            copies.push((map, model));
            for (map, model) in copies {
                prop_assert!(map.iter().eq(&model));
                prop_assert_eq!(format!("{map:?}"), format!("{model:?}"));
                prop_assert_eq!(&map, &model.clone().into_iter().collect());
                prop_assert!(map.into_iter().eq(model));
            }
        }
    }

    #[test]
    fn a_write_copies_one_chunk_and_only_while_it_is_shared() {
        let mut map: SharedMap<u16, u16> = (0..160).map(|n| (n, n)).collect();
        let copy = map.clone();
        assert_eq!(map.shared_with(&copy), (10, 10));
        *map.get_mut(&100).unwrap() = 7;
        *map.get_mut(&101).unwrap() = 7;
        assert_eq!(map.shared_with(&copy), (10, 9));
        assert_eq!(copy.get(&100), Some(&100));
        let own = Arc::as_ptr(&map.chunks[6].entries);
        *map.get_mut(&100).unwrap() = 8;
        assert_eq!(Arc::as_ptr(&map.chunks[6].entries), own);
    }

    #[test]
    fn a_look_for_what_is_not_there_copies_nothing() {
        let mut map: SharedMap<u16, u16> = (0..20).map(|n| (n * 2, n)).collect();
        let copy = map.clone();
        assert_eq!(map.get_mut(&3), None);
        assert_eq!(map.remove(&3), None);
        assert_eq!(map.shared_with(&copy), (2, 2));
    }
}
