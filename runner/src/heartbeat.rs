//! The liveness file: its changed mtime says that the provider gave a sign of life (contract 15).
//!
//! Invariant: touched after a claim and after each provider event, never by a timer; silence must show.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};

/// Sets the file's times to now and makes the file when it is missing (a host deletes it before a start).
///
/// # Errors
/// As the operating system reports them.
pub fn touch(path: &Path) -> io::Result<()> {
    // Not through a link: the agent may write in this folder, and the file it points to is not ours to
    // change.
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(no_follow).open(path)?;
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    futimens(&file, &Timestamps { last_access: now, last_modification: now })?;
    Ok(())
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
        std::fs::File::options().append(true).open(&path)?.set_modified(old)?;
        touch(&path)?;
        assert!(std::fs::metadata(&path)?.modified()? > old + Duration::from_secs(50));
        Ok(())
    }

    #[test]
    fn a_link_is_not_followed() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join(".heartbeat"))?;
        assert!(touch(&folder.path().join(".heartbeat")).is_err());
        Ok(())
    }
}
