//! Whose the files are: which user an agent is, inside and as the host sees it, and giving it what it may write.
//!
//! Invariant: an agent is never root of this machine.
//! Invariant: follows no link below `out/`, the agent's folder or its state; what lies there was made by an agent.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::engine::About;
use super::settings::{Layout, User};
use super::state;
use crate::containers::StartSpec;
use crate::session::layout::{AGENT, CONTAINER_JSON, IN, INBOX, OUTBOUND_DB};

/// Deepest folder whose owner is changed.
const DEPTH_MAX: usize = 64;
/// Most entries of a folder tree whose owner is changed: beyond, somebody keeps a disk there, not a session.
const ENTRIES_MAX: usize = 200_000;
/// Rights of a mount point.
const FOLDER_MODE: u32 = 0o755;
/// The same for a file.
const FILE_MODE: u32 = 0o644;

/// Which user an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// In the container.
    pub inside: User,
    /// The owner of its files, as the host sees it. What [`decide`] says is what follows from the engine's words; a
    /// probe tells how it is.
    pub outside: User,
    /// Whether the daemon must give it its folders.
    pub give: bool,
    /// Whether only a probe can tell who it is outside.
    pub mapped: bool,
    /// How the engine is to map users, where it must be asked to.
    pub userns: Option<&'static str>,
}

impl Owners {
    /// With the user who made a file in a container, as it was found on this machine.
    ///
    /// # Errors
    /// When that is somebody whose files this daemon could not use; the text says what to do.
    pub fn proved(self, found: User) -> Result<Self, String> {
        if !self.give && found.uid != self.outside.uid {
            return Err(format!(
                "a file that user {} makes in a container belongs to user {} here, and not to user {}, as whom this \
                 daemon runs; use an engine of this user's own, one without userns-remap, or run the daemon as root",
                self.inside.uid, found.uid, self.outside.uid
            ));
        }
        Ok(Self { outside: found, ..self })
    }
}

/// Decides which user the agents are. `daemon` is who the daemon runs as, `agent_uid` the configured user.
pub fn decide(daemon: User, agent_uid: u32, about: &About) -> Owners {
    let root = User { uid: 0, gid: 0 };
    let agent = User { uid: agent_uid, gid: agent_uid };
    let own = Owners { inside: daemon, outside: daemon, give: false, mapped: false, userns: None };
    match (daemon.uid, about.is_rootless(), about.remaps_users()) {
        // Podman can be asked to leave its user as it is.
        (1.., true, _) if about.is_podman => Owners { userns: Some("keep-id"), ..own },
        // Root inside is the engine's user outside, who is ours.
        (_, true, _) => Owners { inside: root, ..own },
        (0, false, remaps) => Owners { inside: agent, outside: agent, give: true, mapped: remaps, ..own },
        // Where users are mapped, the agent is one of whom only the probe knows, and who cannot write what is ours.
        (_, false, remaps) => Owners { mapped: remaps, ..own },
    }
}

/// Makes the folders of an attempt fit to be mounted; only with no attempt of the session alive.
///
/// # Errors
/// As the operating system reports them, with the place.
pub fn prepare(spec: &StartSpec, owners: Owners, layout: &Layout) -> Result<(), String> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("cannot give {path} to the agent: {error}")
    };
    // A name of this attempt's own: what an earlier one moved stays, and cannot stand in the way of a later one.
    let aside = |name: &str| format!("{name}.{}.aside", spec.attempt);
    mount_point(&spec.out_dir, AGENT, FileType::Directory, &aside(AGENT)).map_err(at(&spec.out_dir))?;
    if *layout != Layout::Own {
        mount_point(&spec.agent_dir, CONTAINER_JSON, FileType::RegularFile, &aside(CONTAINER_JSON))
            .map_err(at(&spec.agent_dir))?;
    }
    state::prepare(spec, owners.give.then_some(owners.outside))?;
    if !owners.give {
        return Ok(());
    }
    readable(&spec.in_dir).map_err(at(&spec.in_dir))?;
    give(&spec.out_dir, Some(OUTBOUND_DB), owners.outside, &[IN, AGENT]).map_err(at(&spec.out_dir))?;
    give(&spec.agent_dir, None, owners.outside, &[]).map_err(at(&spec.agent_dir))
}

/// What is to be mounted below a folder of the agent's needs something of its kind there, and the agent may have put
/// something else, which is then found as `aside`.
fn mount_point(folder: &Path, name: &str, kind: FileType, aside: &str) -> io::Result<()> {
    let folder = open(CWD, folder)?;
    match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == kind => return Ok(()),
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => {
            rustix::fs::unlinkat(&folder, name, AtFlags::empty())?;
        }
        // Nothing that is no link is deleted to make room.
        Ok(_) => rustix::fs::renameat(&folder, name, &folder, aside)?,
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mode = Mode::from_raw_mode(if kind == FileType::Directory { FOLDER_MODE } else { FILE_MODE });
    let made = if kind == FileType::Directory {
        rustix::fs::mkdirat(&folder, name, mode)
    } else {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&folder, name, flags, mode).map(drop)
    };
    match made {
        // Another session of the group, which is started at the same time, was first.
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// The host's own files, whatever mask the daemon was started with: another user reads them.
fn readable(in_dir: &Path) -> io::Result<()> {
    for (path, mode) in
        [(in_dir.to_owned(), 0o755), (in_dir.join(INBOX), 0o755), (in_dir.join(CONTAINER_JSON), 0o644)]
    {
        match fs::metadata(&path) {
            Ok(found) if found.permissions().mode() & mode != mode => {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Gives a folder and all below it to a user, unless it and the file in it that tells are the user's already. What is
/// named in `except` is another mount.
pub(super) fn give(folder: &Path, tells: Option<&str>, to: User, except: &[&str]) -> io::Result<()> {
    let handle = open(CWD, folder)?;
    let own = |found: rustix::fs::Stat| found.st_uid == to.uid;
    let told = tells.map(|name| rustix::fs::statat(&handle, name, AtFlags::SYMLINK_NOFOLLOW));
    let is_given = own(rustix::fs::fstat(&handle)?)
        && match told {
            Some(Ok(found)) => own(found),
            Some(Err(Errno::NOENT)) | None => true,
            Some(Err(errno)) => return Err(errno.into()),
        };
    if is_given {
        return Ok(());
    }
    let mut left = ENTRIES_MAX;
    give_below(handle.as_fd(), to, except, 0, &mut left)?;
    // Last: cut short, it is done again.
    Ok(rustix::fs::fchown(&handle, Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)))?)
}

fn give_below(
    folder: BorrowedFd<'_>,
    to: User,
    except: &[&str],
    depth: usize,
    left: &mut usize,
) -> rustix::io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_excepted = depth == 0 && except.iter().any(|it| it.as_bytes() == name.to_bytes());
        if name == c"." || name == c".." || is_excepted {
            continue;
        }
        *left = left.checked_sub(1).ok_or(Errno::LOOP)?;
        let (uid, gid) = (Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)));
        match open_at(folder, name) {
            Ok(inner) => {
                give_below(inner.as_fd(), to, except, depth + 1, left)?;
                rustix::fs::fchown(&inner, uid, gid)?;
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

pub(super) fn open(at: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

pub(super) fn open_at(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Attempt, SessionName, SessionNo};
    use std::os::unix::fs::{MetadataExt, symlink};

    fn about(security: &[&str]) -> About {
        About { security: security.iter().map(|&it| it.to_owned()).collect(), ..About::default() }
    }

    #[test]
    fn an_agent_is_never_root_of_this_machine() {
        let (root, me) = (User { uid: 0, gid: 0 }, User { uid: 1_000, gid: 100 });
        let agent = User { uid: 10_001, gid: 10_001 };
        let of = |daemon, about: &About| {
            let it = decide(daemon, 10_001, about);
            (it.inside, it.outside, it.give, it.mapped, it.userns)
        };
        assert_eq!(of(root, &about(&["seccomp"])), (agent, agent, true, false, None));
        assert_eq!(of(me, &about(&["seccomp"])), (me, me, false, false, None));
        assert_eq!(of(me, &about(&["seccomp", "rootless"])), (root, me, false, false, None));
        let podman = About { is_podman: true, ..about(&["rootless"]) };
        assert_eq!(of(me, &podman), (me, me, false, false, Some("keep-id")));
        let podman = About { is_podman: true, ..about(&["seccomp"]) };
        assert_eq!(of(root, &podman), (agent, agent, true, false, None));
        assert_eq!(of(root, &about(&["userns"])), (agent, agent, true, true, None));
        assert_eq!(of(me, &about(&["userns"])), (me, me, false, true, None));
        // A probe has the last word.
        let mapped = User { uid: 110_001, gid: 110_001 };
        assert_eq!(decide(root, 10_001, &about(&["userns"])).proved(mapped).unwrap().outside, mapped);
        let refused = decide(me, 10_001, &about(&["userns"])).proved(mapped).unwrap_err();
        assert!(refused.contains("belongs to user 110001 here"), "{refused}");
    }

    fn spec(root: &Path) -> StartSpec {
        StartSpec {
            session: SessionNo(1),
            name: SessionName::new("g", "s").unwrap(),
            attempt: Attempt(1),
            out_dir: root.join("out"),
            in_dir: root.join("in"),
            agent_dir: root.join("agent"),
            state_dir: root.join("state/s"),
            seed_dir: root.join("state/seed"),
            timezone: "UTC".into(),
            env: Vec::new(),
        }
    }

    #[test]
    fn what_the_agent_put_in_the_way_of_the_mount_is_moved_and_no_link_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let mut spec = spec(root.path());
        for folder in ["out/in", "in", "agent", "elsewhere"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let owners = decide(User { uid: 1, gid: 1 }, 1, &about(&[]));
        symlink(root.path().join("elsewhere"), root.path().join("out/agent")).unwrap();
        prepare(&spec, owners, &Layout::Own).unwrap();
        assert!(root.path().join("out/agent").symlink_metadata().unwrap().is_dir());
        fs::remove_dir(root.path().join("out/agent")).unwrap();
        fs::write(root.path().join("out/agent"), "mine").unwrap();
        prepare(&spec, owners, &Layout::Own).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("out/agent.0.1.aside")).unwrap(), "mine");
        // NanoClaw's runner has its settings mounted over a file of the agent's folder.
        let file = root.path().join("agent").join(CONTAINER_JSON);
        assert!(!file.exists());
        symlink(root.path().join("elsewhere/new"), &file).unwrap();
        prepare(&spec, owners, &Layout::NanoClaw { checkout: None }).unwrap();
        assert!(file.symlink_metadata().unwrap().is_file() && !root.path().join("elsewhere/new").exists());
        // A file is as good a place as any, a folder is none.
        fs::write(&file, "from NanoClaw").unwrap();
        prepare(&spec, owners, &Layout::NanoClaw { checkout: None }).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "from NanoClaw");
        for attempt in [2, 3] {
            spec.attempt = Attempt(attempt);
            fs::remove_file(&file).unwrap();
            fs::create_dir_all(file.join("deep")).unwrap();
            prepare(&spec, owners, &Layout::NanoClaw { checkout: None }).unwrap();
            let aside = root.path().join(format!("agent/container.json.0.{attempt}.aside/deep"));
            assert!(file.is_file() && aside.is_dir(), "{}", aside.display());
        }
    }

    #[test]
    fn the_agent_gets_what_it_writes_and_nothing_else() {
        if !rustix::process::geteuid().is_root() {
            println!("NOT DONE: changing owners takes root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let spec = spec(root.path());
        for folder in ["out/in/deep", "out/outbox/m1", "in/inbox", "agent/sub", "elsewhere"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in
            ["out/outbound.db", "out/outbox/m1/f", "in/container.json", "elsewhere/secret", "out/in/deep/x"]
        {
            fs::write(root.path().join(file), "").unwrap();
        }
        fs::set_permissions(&spec.in_dir, fs::Permissions::from_mode(0o700)).unwrap();
        symlink(root.path().join("elsewhere"), root.path().join("out/link")).unwrap();
        let owners = decide(User { uid: 0, gid: 0 }, 10_001, &about(&[]));
        prepare(&spec, owners, &Layout::Own).unwrap();
        let owner = |name: &str| root.path().join(name).symlink_metadata().unwrap().uid();
        for given in [
            "out",
            "out/outbound.db",
            "out/outbox/m1/f",
            "out/link",
            "agent",
            "agent/sub",
            "state/s/claude",
            "state/s/codex",
        ] {
            assert_eq!(owner(given), 10_001, "{given}");
        }
        for kept in ["in", "in/container.json", "out/in", "out/in/deep/x", "elsewhere", "elsewhere/secret"] {
            assert_eq!(owner(kept), 0, "{kept}");
        }
        assert_eq!(fs::metadata(&spec.in_dir).unwrap().mode() & 0o777, 0o755);
        // A database that was put there since is given too.
        fs::remove_file(root.path().join("out/outbound.db")).unwrap();
        fs::write(root.path().join("out/outbound.db"), "").unwrap();
        prepare(&spec, owners, &Layout::Own).unwrap();
        assert_eq!(owner("out/outbound.db"), 10_001);
    }
}
