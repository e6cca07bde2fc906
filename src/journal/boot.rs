//! The boot number: raised and made durable before the first step of a boot, never lowered, so that a lost
//! tail of the journal never leads to a number that was used before.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::base::disk::replace;
use crate::base::{BootNo, Disk};
use crate::journal::recovery::CUT;
use crate::journal::segment;

/// The file's name in the journal folder.
pub const FILE: &str = "boot";

/// Why there is no boot number.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file holds something else.
    #[error("{path} holds {found:?}, not a boot number")]
    Garbage {
        /// The file.
        path: PathBuf,
        /// What it holds, at most 40 characters.
        found: String,
    },
    /// There are no numbers left.
    #[error("{path}: boot numbers are used up")]
    UsedUp {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot read or write {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl BootError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Garbage { .. } => {
                "write a number into it that is higher than the first eight digits (hexadecimal) of every \
                 .ltj file"
            }
            Self::UsedUp { .. } => "begin a new data folder",
            Self::Io { .. } => "see that the journal folder is the daemon's own and that the disk has space",
        }
    }
}

/// Raises the boot number and gives the new one. A missing file is derived from the segments that are there.
///
/// # Errors
/// See [`BootError`].
pub fn raise(disk: &dyn Disk, folder: &Path) -> Result<BootNo, BootError> {
    let path = folder.join(FILE);
    let io = |source| BootError::Io { path: path.clone(), source };
    let stored = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u32>().map_err(|_| BootError::Garbage {
            path: path.clone(),
            found: text.trim().chars().take(40).collect(),
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(BootError::Garbage { path, found: "bytes that are no text".into() });
        }
        Err(source) => return Err(io(source)),
    };
    // A file that was restored from an old copy must not lower it either.
    let seen = highest_seen(folder).map_err(io)?;
    let next = stored.max(seen).checked_add(1).ok_or_else(|| BootError::UsedUp { path: path.clone() })?;
    replace(disk, &path, format!("{next}\n").as_bytes()).map_err(io)?;
    Ok(BootNo(next))
}

/// The highest boot that any segment names, also one that recovery moved away.
fn highest_seen(folder: &Path) -> io::Result<u32> {
    let mut highest = segment::list(folder)?.last().map_or(0, |(first, _)| first.boot().0);
    let kept = match fs::read_dir(folder.join(CUT)) {
        Ok(kept) => kept,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(highest),
        Err(error) => return Err(error),
    };
    for entry in kept {
        let name = entry?.file_name();
        // `<16 digits>.ltj.abandoned-<n>` and `<16 digits>-<offset>.tail`
        let hex = name.to_str().and_then(|name| name.get(..16));
        if let Some(first) = hex.and_then(|hex| segment::first_of(&format!("{hex}.{}", segment::EXTENSION))) {
            highest = highest.max(first.boot().0);
        }
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{OsDisk, RecordNo};

    #[test]
    fn the_number_only_rises() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(raise(&OsDisk, folder.path()).unwrap(), BootNo(1));
        assert_eq!(raise(&OsDisk, folder.path()).unwrap(), BootNo(2));
        let name = segment::file_name(RecordNo::first_of(BootNo(9)));
        fs::write(folder.path().join(name), b"x").unwrap();
        assert_eq!(raise(&OsDisk, folder.path()).unwrap(), BootNo(10));
        fs::remove_file(folder.path().join(FILE)).unwrap();
        assert_eq!(raise(&OsDisk, folder.path()).unwrap(), BootNo(10));
        // A segment that recovery moved away counts too, and an old copy of the file lowers nothing.
        fs::create_dir(folder.path().join(CUT)).unwrap();
        let name = segment::file_name(RecordNo::first_of(BootNo(20)));
        fs::write(folder.path().join(CUT).join(format!("{name}.abandoned-1")), b"x").unwrap();
        fs::write(folder.path().join(FILE), "3\n").unwrap();
        assert_eq!(raise(&OsDisk, folder.path()).unwrap(), BootNo(21));
    }

    #[test]
    fn garbage_is_named_and_left() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "none\n").unwrap();
        let error = raise(&OsDisk, folder.path()).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join(FILE)).unwrap(), "none\n");
        fs::write(folder.path().join(FILE), u32::MAX.to_string()).unwrap();
        assert!(matches!(raise(&OsDisk, folder.path()), Err(BootError::UsedUp { .. })));
    }
}
