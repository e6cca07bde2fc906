//! Whose the files of a container are on this machine, found by trying: a container makes one file, and its owner is
//! looked at. What an engine says of how it maps users is not enough: rootless engines, mapped users and virtual
//! machines each have their own ways.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::body::{self, Common, LABEL_INSTALLATION, LABEL_PROBE};
use super::engine::{Engine, EngineError};
use super::settings::User;

/// The file that is made.
pub const MARK: &str = "mark";
/// How long an image may take to make a file: one that is no runner may go on for ever.
const PROBE_MAX: Duration = Duration::from_secs(15);

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The folder.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// Where.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The image does not know the command `probe`.
    #[error(
        "the image {image} made no file when it was asked to (`lamplighter-runner probe`); it ended with {code}"
    )]
    NoMark {
        /// The image.
        image: String,
        /// Its exit code.
        code: i64,
    },
    /// Nor does it end.
    #[error("the image {image} did not end within {} s when it was asked to make a file", PROBE_MAX.as_secs())]
    Endless {
        /// The image.
        image: String,
    },
}

/// Has a container make a file in a folder that is made for it, and says whose that file is here. Folder and
/// container are removed, whatever comes of it. `ready` is called with the folder before the container is made.
///
/// # Errors
/// See [`ProbeError`].
pub async fn probe(
    engine: &Engine,
    common: &Common,
    folder: &Path,
    ready: impl FnOnce(&Path),
) -> Result<User, ProbeError> {
    let failed = |source| ProbeError::Folder { path: folder.display().to_string(), source };
    prepare(folder).map_err(failed)?;
    let made = Made(folder);
    ready(folder);
    let name = body::probe_name(&common.installation, std::process::id());
    let ended = run(engine, common, folder, &name).await;
    // By its name: one whose creation was answered too late is there all the same.
    let removed = engine.remove(&name).await;
    let owner = fs::symlink_metadata(folder.join(MARK));
    made.remove().map_err(failed)?;
    let code = ended?;
    removed?;
    match owner {
        Ok(found) => Ok(User { uid: found.uid(), gid: found.gid() }),
        Err(_) => Err(ProbeError::NoMark { image: common.name.clone(), code }),
    }
}

/// A folder that is removed at the latest when this is dropped. It is ours, so its file can be removed whoever
/// made it.
struct Made<'a>(&'a Path);

impl Made<'_> {
    fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(self.0)
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // Gone, or somebody has been told why it is not.
        drop(fs::remove_dir_all(self.0));
    }
}

/// Removes the containers of this kind that processes left behind that are gone, and says which.
///
/// # Errors
/// See [`EngineError`].
pub async fn remove_left(engine: &Engine, installation: &str) -> Result<Vec<String>, EngineError> {
    let mut removed = Vec::new();
    for it in engine.list(LABEL_INSTALLATION, installation).await? {
        let Some(process) = it.labels.get(LABEL_PROBE).and_then(|pid| pid.parse().ok()) else { continue };
        if is_gone(process) {
            engine.remove(&it.id).await?;
            removed.push(body::probe_name(installation, process));
        }
    }
    Ok(removed)
}

/// Whether there is no such process, or it is this one, which has begun nothing of the kind yet.
pub fn is_gone(process: u32) -> bool {
    let pid = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
    process == std::process::id()
        || pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

async fn run(engine: &Engine, common: &Common, folder: &Path, name: &str) -> Result<i64, ProbeError> {
    let process = std::process::id();
    // Left by one of the same process id.
    engine.remove(name).await?;
    let id = engine.create(name, &body::probe(common, folder, MARK, process)).await?.id;
    engine.start(&id).await?;
    match tokio::time::timeout(PROBE_MAX, engine.wait(&id)).await {
        Ok(code) => Ok(code?),
        Err(_) => Err(ProbeError::Endless { image: common.name.clone() }),
    }
}

/// Anybody may write there, whoever that turns out to be; the folder above lets nobody else in.
fn prepare(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::docker::endpoint;
    use crate::containers::docker::settings::{Confinement, Layout};

    #[test]
    fn an_engine_that_goes_in_the_middle_leaves_no_folder() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("probe");
        let nowhere = format!("unix://{}", root.path().join("docker.sock").display());
        let engine = Engine::new(endpoint::find(Some(&nowhere), &|_| None).unwrap());
        let common = Common {
            installation: "doctor-1".into(),
            build: "b".into(),
            name: "n".into(),
            image: "i".into(),
            layout: Layout::Own,
            user: User { uid: 1, gid: 1 },
            userns: None,
            confinement: Confinement::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut seen = false;
        let probed = runtime.block_on(probe(&engine, &common, &folder, |path| seen = path.is_dir()));
        assert!(seen && matches!(probed, Err(ProbeError::Engine(_))), "{probed:?}");
        assert!(!folder.exists());
    }

    #[test]
    fn a_process_that_runs_is_not_gone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(!is_gone(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_gone(child.id()) && is_gone(std::process::id()) && is_gone(0));
    }
}
