//! The lock that a runner's whole process tree holds, and whoever still holds it.
//!
//! A child's standard input is an open file with a lock on it (`flock`). The lock belongs to the open file, so it is
//! held for as long as any process of the tree has it open, whoever its parent is, and the kernel lets go of it when
//! the last one ends. Two runners on one folder would be two writers on one file; this is what rules them out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use crate::base::{Attempt, RecordNo, SessionName};

/// How long holders may take to end after SIGTERM: a runner needs it to finish a commit.
const TERM_GRACE: Duration = Duration::from_secs(3);
/// How long the kernel may take to end them after SIGKILL before the start is given up (a process in an
/// uninterruptible wait on a dead mount does not end at all).
const KILL_GRACE: Duration = Duration::from_secs(5);
/// The wait between two tries to take the lock: there is no event for its release that could be awaited with a limit.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// Where a session's lock lies.
pub fn lock_path(folder: &Path, name: &SessionName) -> PathBuf {
    folder.join(format!("{}--{}.lock", name.group(), name.session()))
}

/// Opens the lock file anew and takes its lock. None when somebody holds it.
///
/// # Errors
/// As the operating system reports them.
pub fn try_take(path: &Path) -> io::Result<Option<File>> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes the lock, ending whoever holds it: first asked, then killed.
///
/// # Errors
/// When the holders do not end, or cannot be found.
pub fn take(path: &Path) -> io::Result<File> {
    let begun = Instant::now();
    let (mut asked, mut killed) = (false, false);
    loop {
        if let Some(file) = try_take(path)? {
            return Ok(file);
        }
        let elapsed = begun.elapsed();
        if !asked {
            signal_holders(path, Signal::TERM)?;
            asked = true;
        } else if elapsed > TERM_GRACE + KILL_GRACE {
            let holders = holders(path)?;
            return Err(io::Error::other(format!(
                "processes {holders:?} of an earlier attempt hold {} and do not end",
                path.display()
            )));
        } else if elapsed > TERM_GRACE && (!killed || elapsed > TERM_GRACE + KILL_GRACE / 2) {
            signal_holders(path, Signal::KILL)?;
            killed = true;
        }
        std::thread::sleep(TRY_EVERY);
    }
}

/// Kills whoever holds the lock and waits until it is free. For what outlived its own group's end.
///
/// # Errors
/// When the holders do not end.
pub fn clear(path: &Path) -> io::Result<()> {
    let begun = Instant::now();
    while try_take(path)?.is_none() {
        if begun.elapsed() > KILL_GRACE {
            return Err(io::Error::other(format!("{} stays held after SIGKILL", path.display())));
        }
        signal_holders(path, Signal::KILL)?;
        std::thread::sleep(TRY_EVERY);
    }
    Ok(())
}

/// Writes down whose the lock is, for the next daemon to find.
///
/// # Errors
/// As the operating system reports them.
pub fn sign(mut file: &File, name: &SessionName, attempt: Attempt) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(format!("{name} {attempt}\n").as_bytes())
}

/// All locks in a folder that somebody holds, with what is written in them.
///
/// # Errors
/// As the operating system reports them.
pub fn held(folder: &Path) -> io::Result<Vec<(SessionName, Option<Attempt>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "lock") || try_take(&path)?.is_some() {
            continue;
        }
        let mut text = String::new();
        // A lock file is one short line; more of it than that is not ours.
        File::open(&path)?.take(1_024).read_to_string(&mut text)?;
        let mut words = text.split_whitespace();
        let name = words.next().and_then(|name| name.parse().ok());
        let attempt = words.next().and_then(|no| no.parse::<RecordNo>().ok()).map(|no| Attempt(no.0));
        if let Some(name) = name {
            found.push((name, attempt));
        }
    }
    Ok(found)
}

fn signal_holders(path: &Path, signal: Signal) -> io::Result<()> {
    let own = rustix::process::getpid();
    for pid in holders(path)? {
        if pid != own {
            // It may have ended by itself since.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
    Ok(())
}

/// The processes that have this very file open. Those of other users cannot be looked into and are passed over; a
/// runner is never one of them, since the daemon started it.
fn holders(path: &Path) -> io::Result<Vec<Pid>> {
    let lock = fs::metadata(path)?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(open) = fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = open.flatten().any(|fd| {
            fs::metadata(fd.path()).is_ok_and(|it| it.ino() == lock.ino() && it.dev() == lock.dev())
        });
        if holds {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}
