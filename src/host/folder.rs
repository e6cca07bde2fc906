//! The data folder: its layout, the one place where its names are spelled, and the lock that keeps daemons apart.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::stuck::quoted;
use crate::base::disk::replace;
use crate::base::ids::is_safe_name;
use crate::base::{Clock, OsDisk, SessionName};

/// The layout's version.
const FORMAT: u32 = 1;
/// Longest path of a Unix socket on every system that we know, without its end (`sun_path`).
const SOCKET_PATH_MAX: usize = 107;
/// The longest name of a socket below the data folder.
const LONGEST_SOCKET: &str = "run/control.sock";
/// What may lie in a data folder before the first start without making it anybody else's.
const BEFORE_FIRST: [&str; 2] = ["lamplighter.toml", "lost+found"];
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
    /// No daemon was started on it yet.
    #[error("no daemon has run on {path} yet")]
    NeverRun {
        /// The folder.
        path: PathBuf,
    },
    /// Its path is too long for the sockets in it.
    #[error(
        "the path {path} has {bytes} bytes, and its sockets would have more than the {SOCKET_PATH_MAX} that the \
         system allows"
    )]
    PathTooLong {
        /// The folder.
        path: PathBuf,
        /// The length of its path.
        bytes: usize,
    },
    /// Somebody holds its lock for longer than a stop takes.
    #[error("{} has not let go of {path} within {seconds} s", named(*pid))]
    StillHeld {
        /// The folder.
        path: PathBuf,
        /// The daemon's process id, where it is known.
        pid: Option<u32>,
        /// How long it was waited for.
        seconds: u64,
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

fn named(pid: Option<u32>) -> String {
    pid.map_or_else(|| "a process".into(), |pid| format!("process {pid}"))
}

impl FolderError {
    /// What may be done about it.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::NeverRun { path } => {
                return format!(
                    "start one with `lamplighter run --data {}`",
                    quoted(&path.to_string_lossy())
                );
            }
            Self::PathTooLong { .. } => {
                let most = SOCKET_PATH_MAX - LONGEST_SOCKET.len() - 1;
                return format!(
                    "name a folder with a path of at most {most} bytes with --data; a link is no help"
                );
            }
            Self::StillHeld { .. } => "see in its log what it waits for; kill -9 is safe, and loses nothing",
            Self::NotOurs { .. } => "run as its owner, or name another folder with --data",
            Self::TooNew { .. } => "use the build that made it, or a newer one",
            Self::Damaged { .. } => {
                "restore it from a backup; it holds one line of JSON with format and installation"
            }
            Self::InUse { .. } => "stop it first, or name another folder with --data",
            Self::Io { .. } => "see that the folder exists, is yours and has space",
        };
        hint.into()
    }

    /// Whether there was no daemon on it at any time: a first start would end the trouble.
    pub fn is_never_run(&self) -> bool {
        matches!(self, Self::NeverRun { .. })
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
        check_length(&root)?;
        make_private(&root)?;
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
        let absent = |error: io::Error, doing, at: &Path| match error.kind() {
            io::ErrorKind::NotFound => FolderError::NeverRun { path: path.to_owned() },
            _ => io_error(doing, at)(error),
        };
        let root = path.canonicalize().map_err(|error| absent(error, "open the data folder", path))?;
        check_length(&root)?;
        let file = root.join("lamplighter.json");
        fs::symlink_metadata(&file).map_err(|error| absent(error, "look at", &file))?;
        Ok(Self { installation: read_identity(&file)?, root })
    }

    /// The mode of the folder where others than its owner may enter it: the start makes it private unless other things
    /// than a daemon's lie in it.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn open_to_others(&self) -> Result<Option<u32>, FolderError> {
        let found = fs::metadata(&self.root).map_err(io_error("look at", &self.root))?;
        Ok(Some(found.mode() & 0o777).filter(|mode| mode & 0o077 != 0))
    }

    /// The process that holds the lock, as it wrote itself down; for messages only.
    pub fn holder(&self) -> Option<u32> {
        let file = File::open(self.root.join("run/lock")).ok()?;
        let mut text = String::new();
        file.take(32).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
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

    /// What the providers of a session keep. Each session has its own: what one chat's agent has read and written
    /// there is not for another's.
    pub fn state(&self, name: &SessionName) -> PathBuf {
        self.root.join("state").join(name.group()).join(name.session())
    }

    /// What an operator put there for the new sessions of the same group to begin with.
    pub fn seed(&self, name: &SessionName) -> PathBuf {
        self.root.join("state").join(name.group()).join("seed")
    }

    /// The lock files of the sessions.
    pub fn session_locks(&self) -> PathBuf {
        self.root.join("run/sessions")
    }

    /// Where copies with a hot journal are rolled back.
    pub fn recover(&self, name: &SessionName) -> PathBuf {
        self.root.join("run/recover").join(format!("{}--{}", name.group(), name.session()))
    }

    /// Where it is written down whose the agents' files are, for a start without the engine.
    pub fn agents_owner(&self) -> PathBuf {
        self.root.join("run/agents-owner")
    }

    /// The folder in which a container makes a file, so that it is seen whose that is.
    pub fn owner_probe(&self) -> PathBuf {
        self.root.join("run/owner")
    }

    /// The folder in which the watcher is probed.
    pub fn probe(&self) -> PathBuf {
        self.root.join("run/probe")
    }

    /// What only a running daemon needs: its sockets and locks.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
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
                return Err(FolderError::InUse { path: self.root.clone(), pid: self.holder() });
            }
            Err(errno) => return Err(io_error("lock", &path)(errno.into())),
        }
        file.set_len(0)
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(io_error("write", &path))?;
        Ok(file)
    }

    /// Waits until no daemon runs on it, for at most so long.
    ///
    /// # Errors
    /// [`FolderError::StillHeld`] when the time is over, else as the operating system reports them.
    pub fn wait_for_lock(&self, limit: Duration) -> Result<(), FolderError> {
        let path = self.root.join("run/lock");
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let (send, taken) = mpsc::sync_channel(1);
        // A lock cannot be waited for with a limit. The thread lasts as long as the process, which is about to end.
        std::thread::Builder::new()
            .name("wait-for-lock".into())
            .spawn(move || {
                let done = rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockShared));
                // When nobody waits any more the time is over.
                let _ = send.send(done);
            })
            .map_err(io_error("start a thread to lock", &path))?;
        match taken.recv_timeout(limit) {
            Ok(done) => done.map_err(|errno| io_error("lock", &path)(errno.into())),
            Err(_) => Err(FolderError::StillHeld {
                path: self.root.clone(),
                pid: self.holder(),
                seconds: limit.as_secs(),
            }),
        }
    }

    /// What the session files looked like when the daemon ended.
    pub fn unchanged(&self) -> PathBuf {
        self.root.join("run/unchanged.json")
    }

    /// Where the files that agents send to a chat are kept.
    pub fn files(&self, channel: &str, chat: &str) -> PathBuf {
        let name = chat.strip_prefix(channel).and_then(|rest| rest.strip_prefix(':')).unwrap_or(chat);
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if is_safe_name(name) && name.chars().all(plain) && !name.starts_with('.') {
            return self.root.join("files").join(name);
        }
        // Another platform's ids: any text becomes the name of a folder, and no two the same.
        let hash = xxhash_rust::xxh3::xxh3_64(format!("{channel}:{chat}").as_bytes());
        self.root.join("files").join(format!("{channel}-{hash:016x}"))
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

/// Takes the access of others away, where nothing but a daemon's own things lie: what is in it are other people's
/// messages. A folder of somebody's own that was named by mistake is left as it is.
fn make_private(root: &Path) -> Result<(), FolderError> {
    let found = fs::metadata(root).map_err(io_error("look at", root))?;
    if found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let mut is_ours = true;
    for entry in fs::read_dir(root).map_err(io_error("list", root))? {
        let name = entry.map_err(io_error("list", root))?.file_name();
        if name == "lamplighter.json" {
            is_ours = true;
            break;
        }
        is_ours &= BEFORE_FIRST.iter().any(|known| name == *known);
    }
    if is_ours {
        let private = fs::Permissions::from_mode(found.mode() & 0o700);
        fs::set_permissions(root, private).map_err(io_error("make private", root))?;
    }
    Ok(())
}

/// Before a socket's own error, which names neither the path nor the bound.
fn check_length(root: &Path) -> Result<(), FolderError> {
    let bytes = root.as_os_str().len();
    if bytes + 1 + LONGEST_SOCKET.len() > SOCKET_PATH_MAX {
        return Err(FolderError::PathTooLong { path: root.to_owned(), bytes });
    }
    Ok(())
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
    fn a_folder_without_a_daemon_yet_is_told_from_one_that_cannot_be_used() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("lamplighter.toml"), "").unwrap();
        for path in [temp.path().to_owned(), temp.path().join("nowhere")] {
            let error = DataFolder::open(&path).unwrap_err();
            assert!(error.is_never_run() && error.hint().contains("lamplighter run --data"), "{error}");
        }
        fs::write(temp.path().join("lamplighter.json"), "x").unwrap();
        assert!(matches!(DataFolder::open(temp.path()), Err(FolderError::Damaged { .. })));
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused_before_anything_is_made() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("x".repeat(90));
        for error in [DataFolder::prepare(&path, &OsClock).unwrap_err(), DataFolder::open(&path).unwrap_err()]
        {
            assert!(matches!(error, FolderError::PathTooLong { .. }), "{error}");
            assert!(error.hint().contains("at most 90 bytes"), "{}", error.hint());
        }
        assert!(fs::read_dir(&path).unwrap().next().is_none());
    }

    #[test]
    fn a_folder_that_others_can_enter_is_made_private_unless_it_holds_other_things() {
        let temp = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        for (name, other, expected) in [
            ("empty", None, 0o700),
            ("config", Some("lamplighter.toml"), 0o700),
            ("home", Some("photo.jpg"), 0o755),
        ] {
            let path = temp.path().join(name);
            fs::create_dir(&path).unwrap();
            other.into_iter().for_each(|other| fs::write(path.join(other), "").unwrap());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let data = DataFolder::prepare(&path, &OsClock).unwrap();
            assert_eq!(mode(&path), expected, "{name}");
            assert_eq!(data.open_to_others().unwrap(), Some(expected).filter(|it| it & 0o077 != 0));
        }
        // Ours by now.
        DataFolder::prepare(&temp.path().join("home"), &OsClock).unwrap();
        assert_eq!(mode(&temp.path().join("home")), 0o700);
    }

    #[test]
    fn waiting_for_the_lock_has_a_limit_and_names_who_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let one = DataFolder::prepare(temp.path(), &OsClock).unwrap();
        let lock = one.lock().unwrap();
        let error = one.wait_for_lock(Duration::from_millis(1)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("process {} has not let go", std::process::id())), "{error}");
        drop(lock);
        one.wait_for_lock(Duration::from_secs(30)).unwrap();
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
