//! How much room the `out/` folders of running agents take. Nothing in a kernel bounds a bind mount, so it is
//! measured now and then; an agent that takes more than it may is stopped, and not started again until there is
//! room.
//!
//! A thread of its own measures, for a folder may have very many files. What it finds reaches the machine as an
//! input, so it is on record.
//!
//! What is measured is what has a name: a file that was removed and is still open somewhere takes room that no
//! walk finds. It ends with the process that holds it, at the latest with its attempt, and the disk's reserve is
//! what there is against it.
//!
//! Invariant: follows no link; what lies in these folders was made by an agent.
//! Invariant: what cannot be measured counts as too large, for whoever closes a folder could hide anything in it.
//! Invariant: the thread sleeps while there is no folder to measure.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::base::SessionNo;

/// Shortest time between two rounds: what may be written in between is what the disk's reserve is for.
pub const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// The pause after a round, as a multiple of what the round took: folders with very many files must not keep a
/// processor busy.
const PAUSE_FACTOR: u32 = 20;
/// Most files of one folder: a file takes an inode, of which a file system has only so many.
const FILES_MAX: u64 = 500_000;
/// Deepest folder: each level takes an open file while it is measured.
const DEPTH_MAX: usize = 128;
/// `st_blocks` is in these, whatever the file system (stat(2)).
const BLOCK: u64 = 512;

/// Whom to tell that a session's folder is too large or cannot be measured, and in which words.
pub type Report = Box<dyn Fn(SessionNo, String) + Send>;

struct Shared {
    limit: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is measured: folders of sessions that run.
    watched: BTreeMap<SessionNo, PathBuf>,
    /// Those that were too large when they were measured last, or could not be measured.
    over: BTreeSet<SessionNo>,
}

/// Knows which folders are too large.
#[derive(Clone)]
pub struct Quota {
    shared: Arc<Shared>,
    /// Wakes the thread; dropped by all, it ends the thread.
    wake: Sender<()>,
}

impl Quota {
    /// Measures at most every so often. A limit of 0 is never exceeded.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(limit: u64, every: Duration, report: Report) -> io::Result<Self> {
        let shared = Arc::new(Shared { limit, state: Mutex::default() });
        // One token says "look at the state".
        let (wake, woken) = bounded(1);
        let measuring = Arc::clone(&shared);
        std::thread::Builder::new().name("quota".into()).spawn(move || {
            measuring.forever(&woken, every, &report);
        })?;
        Ok(Self { shared, wake })
    }

    /// From now on the folder is measured.
    pub fn watch(&self, session: SessionNo, out: &Path) {
        if self.shared.limit > 0 {
            self.shared.lock().watched.insert(session, out.to_owned());
            // Full: it has not looked yet and will see this too.
            let _ = self.wake.try_send(());
        }
    }

    /// The folder is measured no more.
    pub fn forget(&self, session: SessionNo) {
        self.shared.lock().watched.remove(&session);
    }

    /// Why the session must not be started: its folder was too large when it was measured last, and is so still. A
    /// folder that was not is not measured again, so a start costs nothing.
    pub fn refusal(&self, session: SessionNo, out: &Path) -> Option<String> {
        if !self.shared.lock().over.contains(&session) {
            return None;
        }
        let why = self.shared.judge(out);
        if why.is_none() {
            self.shared.lock().over.remove(&session);
        }
        why
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forever(&self, woken: &Receiver<()>, every: Duration, report: &Report) {
        let mut pause = every;
        loop {
            let got = if self.lock().watched.is_empty() {
                woken.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                wait_out(woken, pause)
            };
            if got == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            if got.is_ok() {
                continue;
            }
            let begun = Instant::now();
            let watched = self.lock().watched.clone();
            for (session, out) in watched {
                let Some(why) = self.judge(&out) else { continue };
                let mut state = self.lock();
                state.over.insert(session);
                // Told once; it is measured again when it is watched again.
                if state.watched.remove(&session).is_some() {
                    drop(state);
                    report(session, why);
                }
            }
            pause = every.max(begun.elapsed() * PAUSE_FACTOR);
        }
    }

    /// Why a folder is too large, or closed to whoever measures; none when it is neither, or gone or on a disk that
    /// fails: then others complain.
    fn judge(&self, out: &Path) -> Option<String> {
        let place = out.display();
        let measured = match measure(out, self.limit) {
            Ok(measured) => measured,
            Err(Errno::LOOP) => {
                return Some(format!(
                    "{place} has folders within folders, {DEPTH_MAX} deep; remove what nobody needs"
                ));
            }
            // The agent's doing: nothing else makes a folder that the daemon may not look into.
            Err(Errno::ACCESS | Errno::PERM) => {
                return Some(format!(
                    "{place} cannot be measured: a folder in it is closed to the daemon; open it (chmod -R u+rwX) or \
                     remove it"
                ));
            }
            Err(_) => return None,
        };
        if measured.files > FILES_MAX {
            return Some(format!("{place} has more than {FILES_MAX} files; remove what nobody needs"));
        }
        (measured.bytes > self.limit).then(|| {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            format!(
                "{place} takes more than {} MiB; remove what nobody needs there, or raise limits.out_max",
                mib(self.limit)
            )
        })
    }
}

/// Waits the whole time, whatever comes meanwhile.
fn wait_out(woken: &Receiver<()>, pause: Duration) -> Result<(), RecvTimeoutError> {
    let until = Instant::now() + pause;
    loop {
        match woken.recv_deadline(until) {
            Ok(()) => {}
            other => return other,
        }
    }
}

/// What a folder takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Measured {
    bytes: u64,
    files: u64,
}

/// Measures a folder and all below it, as its blocks on the disk; stops when it is more than the limit.
fn measure(folder: &Path, limit: u64) -> Result<Measured, Errno> {
    let mut measured = Measured::default();
    let mut linked = BTreeSet::new();
    let handle = open(CWD, folder)?;
    below(handle.as_fd(), limit, 0, &mut measured, &mut linked)?;
    Ok(measured)
}

fn below(
    folder: BorrowedFd<'_>,
    limit: u64,
    depth: usize,
    sum: &mut Measured,
    linked: &mut BTreeSet<(u64, u64)>,
) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let found = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            // Gone meanwhile.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        sum.files += 1;
        if is_new(&found, linked) {
            sum.bytes =
                sum.bytes.saturating_add(u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(BLOCK));
        }
        if sum.bytes > limit || sum.files > FILES_MAX {
            return Ok(());
        }
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            match open(folder, name) {
                Ok(inner) => below(inner.as_fd(), limit, depth + 1, sum, linked)?,
                // Replaced or gone meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// A file with several names is one file.
#[allow(clippy::unnecessary_cast)] // the fields' types differ between architectures
fn is_new(found: &Stat, linked: &mut BTreeSet<(u64, u64)>) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
        || found.st_nlink <= 1
        || linked.insert((found.st_dev as u64, found.st_ino as u64))
}

fn open(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const ONE: SessionNo = SessionNo(1);

    fn shared(limit: u64) -> Shared {
        Shared { limit, state: Mutex::default() }
    }

    #[test]
    fn blocks_are_counted_once_and_no_link_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let (out, elsewhere) = (root.path().join("out"), root.path().join("elsewhere"));
        fs::create_dir_all(out.join("a/b")).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("big"), vec![1; 4 << 20]).unwrap();
        fs::write(out.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        let before = measure(&out, u64::MAX).unwrap();
        assert!((1 << 20..2 << 20).contains(&before.bytes), "{before:?}");
        symlink(&elsewhere, out.join("link")).unwrap();
        fs::hard_link(out.join("a/b/file"), out.join("a/again")).unwrap();
        let after = measure(&out, u64::MAX).unwrap();
        assert_eq!(after.files, before.files + 2);
        assert!(after.bytes < 2 << 20, "{after:?}");
        // A sparse file takes what it takes.
        fs::File::create(out.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert!(measure(&out, u64::MAX).unwrap().bytes < 2 << 20);
    }

    #[test]
    fn what_is_too_large_is_said_with_the_place_and_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), vec![1; 3 << 20]).unwrap();
        let why = shared(2 << 20).judge(root.path()).unwrap();
        assert!(why.contains(&root.path().display().to_string()) && why.contains("more than 2 MiB"), "{why}");
        assert!(why.contains("limits.out_max"), "{why}");
        assert_eq!(shared(8 << 20).judge(root.path()), None);
        assert_eq!(shared(8 << 20).judge(&root.path().join("none")), None);
        let mut deep = root.path().to_owned();
        deep.extend(std::iter::repeat_n("d", DEPTH_MAX + 2));
        fs::create_dir_all(&deep).unwrap();
        assert!(shared(8 << 20).judge(root.path()).unwrap().contains("folders within folders"));
    }

    /// Does something as a user who is not root, and is none of this folder's owner's business before.
    fn as_a_user<T: Send>(folder: &Path, work: impl FnOnce() -> T + Send) -> T {
        if !rustix::process::geteuid().is_root() {
            return work();
        }
        let (uid, gid) = (65_534, 65_534);
        std::os::unix::fs::chown(folder, Some(uid), Some(gid)).unwrap();
        // In Linux each thread has its own rights, and a thread that is no longer root's loses its capabilities.
        let work = || {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    #[test]
    fn a_folder_that_is_closed_to_the_daemon_hides_nothing() {
        let root = tempfile::tempdir().unwrap();
        as_a_user(root.path(), || {
            let shared = shared(8 << 20);
            let hiding = root.path().join("d");
            fs::create_dir(&hiding).unwrap();
            fs::write(hiding.join("file"), vec![1; 1 << 20]).unwrap();
            let close = |folder: &Path, mode| {
                fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
            };
            // Closed; one that only lists; one that does not even do that; and the folder itself.
            for (folder, mode) in
                [(&*hiding, 0o000), (&*hiding, 0o400), (&*hiding, 0o100), (root.path(), 0o000)]
            {
                close(folder, mode);
                let why = shared.judge(root.path()).unwrap_or_else(|| panic!("mode {mode:o} hides it"));
                assert!(why.contains("cannot be measured") && why.contains("chmod"), "{why}");
                close(folder, 0o700);
                assert_eq!(shared.judge(root.path()), None);
            }
        });
    }

    #[test]
    fn a_folder_is_reported_once_and_starts_are_refused_until_there_is_room() {
        let root = tempfile::tempdir().unwrap();
        let (told, heard) = crossbeam_channel::unbounded();
        let report = move |session, why| told.send((session, why)).unwrap();
        let quota = Quota::start(1 << 20, Duration::from_millis(5), Box::new(report)).unwrap();
        assert_eq!(quota.refusal(ONE, root.path()), None);
        let file = root.path().join("file");
        fs::write(&file, vec![1; 2 << 20]).unwrap();
        assert_eq!(quota.refusal(ONE, root.path()), None, "never measured");
        quota.watch(ONE, root.path());
        let (session, why) = heard.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(session, ONE);
        assert_eq!(quota.refusal(ONE, root.path()), Some(why));
        assert!(heard.try_recv().is_err(), "told twice");
        fs::remove_file(&file).unwrap();
        assert_eq!(quota.refusal(ONE, root.path()), None);
        fs::write(&file, vec![1; 2 << 20]).unwrap();
        quota.watch(ONE, root.path());
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)).unwrap().0, ONE);
        quota.forget(ONE);
    }
}
