//! The liveness file: its changed mtime says that the runner or its provider is at work (contract 15).
//!
//! When it is touched is the turn machine's decision: at the start, after a claim, at news of the provider, and every
//! 15 s while a live provider owes an answer. What must not look alive is silent: a provider that is gone, or whose
//! watchdog has fired, is not alive.
//!
//! Invariant: never waits. The agent may write in this folder; whatever it puts in the file's place neither holds the
//! runner up nor is written through.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW, futimens};

/// Sets the file's times to now and makes the file when it is missing (a host deletes it before a start). A link, a
/// FIFO or whatever else stands in its place is taken away first.
///
/// # Errors
/// As the operating system reports them; a folder in its place stays, and is an error.
pub fn touch(path: &Path) -> io::Result<()> {
    let file = match open(path) {
        Err(_) if path.symlink_metadata().is_ok_and(|found| !found.is_file()) => {
            std::fs::remove_file(path)?;
            open(path)?
        }
        opened => opened?,
    };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    futimens(&file, &Timestamps { last_access: now, last_modification: now })?;
    Ok(())
}

/// Opens a regular file: not through a link, and without waiting for the other end of a FIFO.
fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let file = OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_touch_makes_the_file_and_then_moves_its_time() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(".heartbeat");
        touch(&path)?;
        let old = SystemTime::now() - Duration::from_secs(100);
        File::options().append(true).open(&path)?.set_modified(old)?;
        touch(&path)?;
        assert!(std::fs::metadata(&path)?.modified()? > old + Duration::from_secs(50));
        Ok(())
    }

    #[test]
    fn what_stands_in_its_place_is_replaced_without_waiting() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(".heartbeat");
        let target = folder.path().join("target");
        std::fs::write(&target, "kept")?;
        let old = SystemTime::now() - Duration::from_secs(100);
        File::options().append(true).open(&target)?.set_modified(old)?;
        std::os::unix::fs::symlink(&target, &path)?;
        touch(&path)?;
        assert!(path.symlink_metadata()?.is_file());
        assert_eq!(std::fs::metadata(&target)?.modified()?, old, "written through a link");

        let fifo =
            || rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0);
        std::fs::remove_file(&path)?;
        fifo()?;
        touch(&path)?;
        assert!(path.symlink_metadata()?.is_file());

        std::fs::remove_file(&path)?;
        fifo()?;
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let reader = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
        touch(&path)?;
        assert!(path.symlink_metadata()?.is_file());
        drop(reader);

        std::fs::remove_file(&path)?;
        std::fs::create_dir(&path)?;
        assert!(touch(&path).is_err());
        Ok(())
    }
}
