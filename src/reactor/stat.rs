//! What the reactor learns about files without opening them: signatures by `stat`, and what kind of mount a
//! folder lies on.
//!
//! Invariant: no file is opened here. Opening and closing a database outside SQLite would drop SQLite's own
//! locks in this process (floor S4).
//! Invariant: no link is followed at the last component; a link under `out/` counts as no file.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, FsWord, Stat, StatxFlags};
use serde::{Deserialize, Serialize};

use super::resync::{NO_EVENTS_WAIT, SHORTEST_WAIT};
use crate::session::SessionFolder;

/// Which file it is, how long, and when it was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileMark {
    /// The device.
    pub dev: u64,
    /// The inode.
    pub ino: u64,
    /// The length in bytes.
    pub size: u64,
    /// When it was last written, nanoseconds since 1970; compared for equality only (design 5).
    pub modified_ns: i128,
}

impl FileMark {
    /// The mark of a regular file; `None` when there is none at that path or it cannot be looked at.
    pub fn of(path: &Path) -> Option<Self> {
        let stat = rustix::fs::lstat(path).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then(|| Self::from_stat(&stat))
    }

    #[allow(clippy::unnecessary_cast)] // the fields' types differ between architectures
    fn from_stat(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: i128::from(stat.st_mtime) * 1_000_000_000 + stat.st_mtime_nsec as i128,
        }
    }
}

/// Which folder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FolderId {
    dev: u64,
    ino: u64,
}

impl FolderId {
    /// The identity of the folder at that path; `None` when there is no folder (a link to one does not
    /// count).
    #[allow(clippy::unnecessary_cast)] // the fields' types differ between architectures
    pub fn of(path: &Path) -> Option<Self> {
        let stat = rustix::fs::lstat(path).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
            .then_some(Self { dev: stat.st_dev as u64, ino: stat.st_ino as u64 })
    }
}

/// What the files of a session looked like: enough to tell, without reading, that something may have been
/// written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signature {
    /// outbound.db.
    pub database: Option<FileMark>,
    /// Its journal, when there is one that is not empty.
    pub journal: Option<FileMark>,
    /// The liveness file.
    pub heartbeat: Option<FileMark>,
}

impl Signature {
    /// The signature of a session's `out/` now. Three `lstat` calls.
    pub fn of(folder: &SessionFolder) -> Self {
        Self { heartbeat: FileMark::of(&folder.heartbeat()), ..Self::of_rows(folder) }
    }

    /// The same, past what the kernel remembers of files that others change: network file systems and those of virtual
    /// machines keep times and lengths for seconds (nfs(5) on `acregmin`; statx(2)).
    pub fn fresh(folder: &SessionFolder) -> Self {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        for path in [folder.outbound_db(), folder.outbound_journal(), folder.heartbeat()] {
            // What it finds is remembered, and read below. A kernel without it has no such memory to speak of.
            let _ = rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS);
        }
        Self::of(folder)
    }

    /// The same without the liveness file.
    pub fn of_rows(folder: &SessionFolder) -> Self {
        Self {
            database: FileMark::of(&folder.outbound_db()),
            journal: FileMark::of(&folder.outbound_journal()).filter(|mark| mark.size > 0),
            heartbeat: None,
        }
    }

    /// Whether rows may have been written between two signatures.
    pub fn differs_in_rows(&self, other: &Self) -> bool {
        self.database != other.database || self.journal != other.journal
    }
}

/// On what a folder lies, as far as events and caches are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mount {
    /// A local file system: events arrive, kept connections see every write.
    Local,
    /// Another machine or the host of a virtual one may write here without an event or past the page cache
    /// (floor N13, S9).
    NotLocal {
        /// What `statfs` calls it.
        kind: &'static str,
    },
    /// It was tried: what a container changes here is not announced.
    NoEvents,
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::NotLocal { kind } => f.write_str(kind),
            Self::NoEvents => f.write_str("a mount where changes made in containers are not announced"),
        }
    }
}

/// Magic numbers of file systems that are not local, with the names that people know (linux/magic.h,
/// statfs(2)).
const NOT_LOCAL: [(u64, &str); 9] = [
    (0x6969, "nfs"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse or virtiofs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x517b, "smb"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "afs"),
    (0x786f_4256, "vboxsf"),
];

impl Mount {
    /// The mount that a folder lies on. A folder that cannot be asked counts as local: the watch will tell.
    pub fn of(folder: &Path) -> Self {
        rustix::fs::statfs(folder).map_or(Self::Local, |stat| Self::of_type(stat.f_type))
    }

    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)] // `FsWord` is signed and 32 bits wide on some
    fn of_type(f_type: FsWord) -> Self {
        let magic = (f_type as u64) & 0xffff_ffff;
        NOT_LOCAL
            .iter()
            .find(|(known, _)| *known == magic)
            .map_or(Self::Local, |(_, kind)| Self::NotLocal { kind })
    }

    /// Whether it is local.
    pub fn is_local(self) -> bool {
        self == Self::Local
    }

    /// How late a change is noticed of which no event tells, in a session that is live.
    pub fn late(self) -> Duration {
        if self.is_local() { SHORTEST_WAIT } else { NO_EVENTS_WAIT }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn mounts_of_other_machines_are_told_from_local_ones() {
        assert_eq!(Mount::of_type(0xef53), Mount::Local, "ext4");
        assert_eq!(Mount::of_type(0x0102_1994), Mount::Local, "tmpfs");
        for (magic, kind) in NOT_LOCAL {
            assert_eq!(Mount::of_type(magic as FsWord), Mount::NotLocal { kind });
        }
        assert_eq!(Mount::of(Path::new("/no/such/folder")), Mount::Local);
    }

    #[test]
    fn an_empty_journal_is_no_journal_and_a_link_is_no_file() -> Outcome {
        let dir = tempfile::tempdir()?;
        let folder = SessionFolder::nested(dir.path());
        fs::create_dir(folder.out_dir())?;
        fs::write(folder.outbound_db(), b"rows")?;
        fs::write(folder.outbound_journal(), b"")?;
        let before = Signature::of(&folder);
        assert!(before.database.is_some_and(|mark| mark.size == 4));
        assert_eq!(before.journal, None);
        fs::write(folder.outbound_journal(), b"x")?;
        assert!(Signature::of(&folder).differs_in_rows(&before));
        std::os::unix::fs::symlink("/etc/hostname", folder.heartbeat())?;
        assert_eq!(Signature::of(&folder).heartbeat, None);
        Ok(())
    }

    #[test]
    fn a_touch_of_the_liveness_file_changes_no_rows() -> Outcome {
        let dir = tempfile::tempdir()?;
        let folder = SessionFolder::nested(dir.path());
        fs::create_dir(folder.out_dir())?;
        let before = Signature::of(&folder);
        fs::write(folder.heartbeat(), b"")?;
        let after = Signature::of(&folder);
        assert_ne!(after, before);
        assert!(!after.differs_in_rows(&before));
        Ok(())
    }

    #[test]
    fn a_link_to_a_folder_is_no_folder() -> Outcome {
        let dir = tempfile::tempdir()?;
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link)?;
        assert!(FolderId::of(dir.path()).is_some());
        assert_eq!(FolderId::of(&link), None);
        Ok(())
    }
}
