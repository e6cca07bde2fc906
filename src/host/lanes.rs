//! Lanes: jobs of one key run one after another, those of different keys side by side on a small pool.
//!
//! Invariant: a lane is a queue, never a thread; a job that must wait puts its lane aside and frees its thread.
//! Invariant: within a lane, jobs run in the order in which they were handed over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a lane does after its worker was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The jobs given are done.
    Done,
    /// What is left of the jobs is to be tried again after this wait.
    Again(Duration),
}

/// What does the work.
pub trait Worker<K, J>: Send + Sync + 'static {
    /// Works on the jobs of a lane in order, taking what is done off the front. Never waits for long.
    fn work(&self, key: &K, jobs: &mut VecDeque<J>) -> Next;
}

struct Inner<K, J> {
    lanes: BTreeMap<K, VecDeque<J>>,
    ready: VecDeque<K>,
    waiting: BTreeSet<(Instant, K)>,
    busy: BTreeSet<K>,
    closing: bool,
}

struct Shared<K, J> {
    inner: Mutex<Inner<K, J>>,
    wake: Condvar,
}

/// The pool. Dropping it lets the jobs that were handed over finish, but not those that wait.
pub struct Lanes<K, J> {
    shared: Arc<Shared<K, J>>,
    threads: Vec<JoinHandle<()>>,
}

impl<K: Ord + Clone + Send + 'static, J: Send + 'static> Lanes<K, J> {
    /// Starts so many threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(threads: usize, worker: Arc<dyn Worker<K, J>>) -> std::io::Result<Self> {
        let inner = Inner {
            lanes: BTreeMap::new(),
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            busy: BTreeSet::new(),
            closing: false,
        };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), wake: Condvar::new() });
        let threads = (0..threads)
            .map(|n| {
                let (shared, worker) = (Arc::clone(&shared), Arc::clone(&worker));
                std::thread::Builder::new().name(format!("lane-{n}")).spawn(move || run(&shared, &*worker))
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self { shared, threads })
    }

    /// Hands a job over. The number of jobs is bounded by the machine: each is one of its open effects.
    pub fn push(&self, key: K, job: J) {
        let mut inner = lock(&self.shared.inner);
        let lane = inner.lanes.entry(key.clone()).or_default();
        lane.push_back(job);
        let first = lane.len() == 1;
        let waits = inner.waiting.iter().any(|(_, other)| *other == key);
        if first && !waits && !inner.busy.contains(&key) {
            inner.ready.push_back(key);
            self.shared.wake.notify_one();
        }
    }
}

impl<K, J> Drop for Lanes<K, J> {
    fn drop(&mut self) {
        lock(&self.shared.inner).closing = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so; the others must still be awaited.
            drop(thread.join());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run<K: Ord + Clone + 'static, J: 'static>(shared: &Shared<K, J>, worker: &dyn Worker<K, J>) {
    let mut inner = lock(&shared.inner);
    loop {
        let now = Instant::now();
        while let Some((at, key)) = inner.waiting.first().cloned() {
            if at > now {
                break;
            }
            inner.waiting.pop_first();
            inner.ready.push_back(key);
        }
        let Some(key) = inner.ready.pop_front() else {
            if inner.closing {
                return;
            }
            let next = inner.waiting.first().map(|(at, _)| at.saturating_duration_since(now));
            inner = match next {
                Some(wait) => shared.wake.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => shared.wake.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
            continue;
        };
        let mut jobs = inner.lanes.remove(&key).unwrap_or_default();
        inner.busy.insert(key.clone());
        drop(inner);
        let next = worker.work(&key, &mut jobs);
        inner = lock(&shared.inner);
        inner.busy.remove(&key);
        if let Some(later) = inner.lanes.remove(&key) {
            jobs.extend(later);
        }
        if jobs.is_empty() {
            continue;
        }
        inner.lanes.insert(key.clone(), jobs);
        match next {
            Next::Done => {
                inner.ready.push_back(key);
                shared.wake.notify_one();
            }
            Next::Again(wait) => {
                inner.waiting.insert((Instant::now() + wait, key));
                // Whoever waits without a time limit must take this one into account.
                shared.wake.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Log {
        out: Mutex<mpsc::Sender<(u8, u32)>>,
        refuse_first: Mutex<BTreeSet<(u8, u32)>>,
    }

    impl Worker<u8, u32> for Log {
        fn work(&self, key: &u8, jobs: &mut VecDeque<u32>) -> Next {
            while let Some(&job) = jobs.front() {
                if lock(&self.refuse_first).remove(&(*key, job)) {
                    return Next::Again(Duration::from_millis(5));
                }
                jobs.pop_front();
                lock(&self.out).send((*key, job)).unwrap();
            }
            Next::Done
        }
    }

    fn lanes(refuse: &[(u8, u32)]) -> (Lanes<u8, u32>, mpsc::Receiver<(u8, u32)>) {
        let (out, received) = mpsc::channel();
        let log = Log { out: Mutex::new(out), refuse_first: Mutex::new(refuse.iter().copied().collect()) };
        (Lanes::start(3, Arc::new(log)).unwrap(), received)
    }

    #[test]
    fn jobs_of_one_lane_keep_their_order_even_when_one_must_wait() {
        let (lanes, received) = lanes(&[(1, 3), (1, 7)]);
        for job in 0..20 {
            lanes.push(1, job);
            lanes.push(2, job);
        }
        let all: Vec<_> = received.iter().take(40).collect();
        for key in [1, 2] {
            let jobs: Vec<u32> = all.iter().filter(|(k, _)| *k == key).map(|(_, job)| *job).collect();
            assert_eq!(jobs, (0..20).collect::<Vec<_>>(), "lane {key}");
        }
    }

    #[test]
    fn what_was_handed_over_is_done_before_the_pool_ends() {
        let (lanes, received) = lanes(&[]);
        (0..100).for_each(|job| lanes.push((job % 7) as u8, job));
        drop(lanes);
        assert_eq!(received.iter().count(), 100);
    }
}
