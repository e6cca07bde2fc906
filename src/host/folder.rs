//! The data folder: its layout, the one place where its names are spelled, and the lock that keeps daemons apart.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::base::disk::replace;
use crate::base::ids::is_safe_name;
use crate::base::{Clock, OsDisk, SessionName};

/// The layout's version.
const FORMAT: u32 = 1;
/// Folders that are made when missing.
const FOLDERS: [&str; 8] =
    ["journal", "sessions", "groups", "state", "files", "run", "run/sessions", "run/recover"];

/// The data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFolder {
    root: PathBuf,
    installation: u64,
}

/// `lamplighter.json`
#[derive(Serialize, Deserialize)]
struct Identity {
    format: u32,
    installation: String,
}

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It belongs to somebody else.
    #[error("{path} belongs to user {owner}, not to you")]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It was made by a newer build.
    #[error("{path} has format {found}; this build reads up to {FORMAT}")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// `lamplighter.json` cannot be used.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Another daemon runs on it.
    #[error("another daemon runs on {path}{}", pid.map_or(String::new(), |pid| format!(" (process {pid})")))]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Its process id.
        pid: Option<u32>,
    },
    /// The operating system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FolderError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotOurs { .. } => "run as its owner, or name another folder with --data",
            Self::TooNew { .. } => "use the build that made it, or a newer one",
            Self::Damaged { .. } => {
                "restore it from a backup; it holds one line of JSON with format and installation"
            }
            Self::InUse { .. } => "stop it first, or name another folder with --data",
            Self::Io { .. } => "see that the folder exists, is yours and has space",
        }
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { doing, path, source }
}

impl DataFolder {
    /// Opens the folder for a daemon: makes what is missing, private to its owner.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn prepare(path: &Path, clock: &dyn Clock) -> Result<Self, FolderError> {
        make(path)?;
        // Once and for all: no-follow refuses a link anywhere in a path.
        let root = path.canonicalize().map_err(io_error("resolve", path))?;
        check_owner(&root)?;
        for name in FOLDERS {
            make(&root.join(name))?;
        }
        let file = root.join("lamplighter.json");
        if !file.exists() {
            let installation = new_installation(clock).map_err(io_error("name", &file))?;
            let identity = Identity { format: FORMAT, installation: format!("{installation:016x}") };
            let text = serde_json::to_string(&identity).unwrap_or_default() + "\n";
            replace(&OsDisk, &file, text.as_bytes()).map_err(io_error("write", &file))?;
        }
        Ok(Self { installation: read_identity(&file)?, root })
    }

    /// Opens a folder that is there, for a command that only looks.
    ///
    /// # Errors
    /// See [`FolderError`].
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let root = path.canonicalize().map_err(io_error("open the data folder", path))?;
        Ok(Self { installation: read_identity(&root.join("lamplighter.json"))?, root })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Names the installation; keys its digests.
    pub fn installation(&self) -> u64 {
        self.installation
    }

    /// The journal's folder.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// The folder of one session.
    pub fn session(&self, name: &SessionName) -> PathBuf {
        self.root.join("sessions").join(name.group()).join(name.session())
    }

    /// The working folder of an agent group.
    pub fn group(&self, folder: &str) -> PathBuf {
        self.root.join("groups").join(folder)
    }

    /// The lock files of the sessions.
    pub fn session_locks(&self) -> PathBuf {
        self.root.join("run/sessions")
    }

    /// Where copies with a hot journal are rolled back.
    pub fn recover(&self, name: &SessionName) -> PathBuf {
        self.root.join("run/recover").join(format!("{}--{}", name.group(), name.session()))
    }

    /// The folder in which the watcher is probed.
    pub fn probe(&self) -> PathBuf {
        self.root.join("run/probe")
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("run/control.sock")
    }

    /// The chat socket.
    pub fn chat_socket(&self) -> PathBuf {
        self.root.join("run/chat.sock")
    }

    /// The history of the interactive chat.
    pub fn chat_history(&self) -> PathBuf {
        self.root.join("run/chat.history")
    }

    /// Takes the lock that only one daemon can hold. It is let go of when the file is dropped or the process ends.
    ///
    /// # Errors
    /// [`FolderError::InUse`] with the other daemon's process id.
    pub fn lock(&self) -> Result<File, FolderError> {
        let path = self.root.join("run/lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // What stands there is only for the message.
                drop(file.take(32).read_to_string(&mut text));
                return Err(FolderError::InUse { path: self.root.clone(), pid: text.trim().parse().ok() });
            }
            Err(errno) => return Err(io_error("lock", &path)(errno.into())),
        }
        file.set_len(0)
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(io_error("write", &path))?;
        Ok(file)
    }

    /// What the session files looked like when the daemon ended.
    pub fn unchanged(&self) -> PathBuf {
        self.root.join("run/unchanged.json")
    }

    /// The names of all session folders, in no order that matters. Names that are not safe are passed over.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn session_names(&self) -> Result<Vec<SessionName>, FolderError> {
        let sessions = self.root.join("sessions");
        let mut names = Vec::new();
        for group in folders_in(&sessions)? {
            for session in folders_in(&sessions.join(&group))? {
                names.extend(SessionName::new(group.clone(), session));
            }
        }
        names.sort();
        Ok(names)
    }
}

fn folders_in(path: &Path) -> Result<Vec<String>, FolderError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(io_error("list", path))? {
        let entry = entry.map_err(io_error("list", path))?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let Ok(name) = entry.file_name().into_string()
            && is_folder
            && is_safe_name(&name)
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    Ok(names)
}

fn make(path: &Path) -> Result<(), FolderError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))
}

fn check_owner(path: &Path) -> Result<(), FolderError> {
    let owner = fs::metadata(path).map_err(io_error("look at", path))?.uid();
    if owner == rustix::process::geteuid().as_raw() {
        Ok(())
    } else {
        Err(FolderError::NotOurs { path: path.to_owned(), owner })
    }
}

fn read_identity(path: &Path) -> Result<u64, FolderError> {
    let text = fs::read_to_string(path).map_err(io_error("read", path))?;
    let damaged = |why: String| FolderError::Damaged { path: path.to_owned(), why };
    let identity: Identity = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if identity.format > FORMAT {
        return Err(FolderError::TooNew { path: path.to_owned(), found: identity.format });
    }
    u64::from_str_radix(&identity.installation, 16).map_err(|error| damaged(error.to_string()))
}

fn new_installation(clock: &dyn Clock) -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    // A chance of zero would read as "none" somewhere one day.
    Ok((u64::from_le_bytes(bytes) ^ clock.wall().0.unsigned_abs()).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::clock::OsClock;

    #[test]
    fn a_folder_keeps_its_identity_and_one_daemon_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("data");
        let one = DataFolder::prepare(&path, &OsClock).unwrap();
        assert_eq!(DataFolder::prepare(&path, &OsClock).unwrap(), one);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let lock = one.lock().unwrap();
        let error = one.lock().unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        assert!(one.lock().is_ok());
    }

    #[test]
    fn an_identity_that_cannot_be_read_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let one = DataFolder::prepare(temp.path(), &OsClock).unwrap();
        fs::write(one.root().join("lamplighter.json"), r#"{"format":9,"installation":"1"}"#).unwrap();
        assert!(matches!(DataFolder::open(temp.path()), Err(FolderError::TooNew { found: 9, .. })));
        fs::write(one.root().join("lamplighter.json"), "{}").unwrap();
        assert!(matches!(DataFolder::prepare(temp.path(), &OsClock), Err(FolderError::Damaged { .. })));
    }

    #[test]
    fn session_folders_are_listed_and_others_passed_over() {
        let temp = tempfile::tempdir().unwrap();
        let one = DataFolder::prepare(temp.path(), &OsClock).unwrap();
        for name in ["g/s2", "g/s1", "g/.s3.new"] {
            fs::create_dir_all(one.root().join("sessions").join(name)).unwrap();
        }
        fs::write(one.root().join("sessions/g/file"), "").unwrap();
        let names: Vec<String> = one.session_names().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["g/s1", "g/s2"]);
    }
}
