//! What providers keep of one session from one attempt to the next (`~/.claude`, `~/.codex`): made, seeded once, and
//! given to the agent.
//!
//! Each session has its own. What is in there tells an agent what to run (settings have hooks) and holds
//! everything that was said, so one chat's agent must neither write nor read another's.
//!
//! Invariant: a session's folder that is there has been seeded whole: it is built beside its place and renamed
//! into it.
//! Invariant: regular files and folders are copied and nothing else; no link is followed.

use std::ffi::CStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use super::body::STATE;
use super::owners::{give, open, open_at};
use super::settings::User;
use crate::containers::StartSpec;

/// Transcripts are nobody else's to read.
const FOLDER_MODE: u32 = 0o700;
/// The same for a file; whether its owner may run it is copied.
const FILE_MODE: u32 = 0o600;
/// Most files and folders of a seed: settings, commands and skills. More is a checkout that lies there by mistake.
const SEED_ENTRIES_MAX: usize = 4_096;
/// Most bytes of a seed: it is copied when a session is started for the first time, and stays with each.
const SEED_BYTES_MAX: u64 = 64 << 20;
/// Deepest folder of a seed: each level takes two open files.
const SEED_DEPTH_MAX: usize = 32;

/// Makes what is missing of a session's state, and gives it to the agent where it is somebody else's; only with no
/// attempt of the session alive.
///
/// # Errors
/// In words, with the place and the way out.
pub fn prepare(spec: &StartSpec, to: Option<User>) -> Result<(), String> {
    let (state, seed) = (&spec.state_dir, &spec.seed_dir);
    if state == seed {
        return Err(format!(
            "the session has the name of {}, where new sessions begin; rename it",
            seed.display()
        ));
    }
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("cannot make {path}: {error}")
    };
    if state.symlink_metadata().is_err() {
        build(state, seed, &failed)?;
    }
    for (name, _) in STATE {
        let folder = state.join(name);
        make(&folder).map_err(failed(&folder))?;
        if let Some(to) = to {
            // Each by itself: one that was just made is not the agent's, whoever the others belong to.
            give(&folder, None, to, &[])
                .map_err(|error| format!("cannot give {} to the agent: {error}", folder.display()))?;
        }
    }
    Ok(())
}

fn make(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn build<E: FnOnce(io::Error) -> String>(
    state: &Path,
    seed: &Path,
    failed: &dyn Fn(&Path) -> E,
) -> Result<(), String> {
    let (Some(above), Some(name)) = (state.parent(), state.file_name()) else {
        return Err(format!("{} is no folder of a session", state.display()));
    };
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(above).map_err(failed(above))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let new = above.join(hidden);
    match fs::remove_dir_all(&new) {
        // Left by a crash; nobody else has ever used it.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&new)(error)),
    }
    make(&new).map_err(failed(&new))?;
    if let Err(why) = sow(seed, &new) {
        // What was copied half is of no use; it would be removed by the next try.
        drop(fs::remove_dir_all(&new));
        return Err(why);
    }
    fs::rename(&new, state).map_err(failed(state))?;
    File::open(above).and_then(|folder| folder.sync_all()).map_err(failed(above))
}

/// Copies a seed, if there is one.
fn sow(seed: &Path, new: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: io::Error| format!("cannot copy {}: {error}", path.display());
    let from = match open(CWD, seed) {
        Ok(folder) => folder,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(seed, errno.into())),
    };
    let to = open(CWD, new).map_err(|errno| failed(new, errno.into()))?;
    let mut left = Left { entries: SEED_ENTRIES_MAX, bytes: SEED_BYTES_MAX };
    let known: Vec<&str> = STATE.iter().map(|(name, _)| *name).collect();
    let only = |name: &CStr| known.iter().any(|known| known.as_bytes() == name.to_bytes());
    for name in names(from.as_fd()).map_err(|error| failed(seed, error))? {
        if !only(&name) {
            let name = name.to_string_lossy();
            return Err(format!(
                "{} has {name:?}, of which nothing is mounted; a seed has {} and nothing else",
                seed.display(),
                known.join(", ")
            ));
        }
        copy(from.as_fd(), to.as_fd(), &name, &mut seed.join(name.to_string_lossy().as_ref()), 0, &mut left)?;
    }
    Ok(())
}

/// What may still be copied.
struct Left {
    entries: usize,
    bytes: u64,
}

fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if entry.file_name() == c"." || entry.file_name() == c".." {
            continue;
        }
        names.push(entry.file_name().to_owned());
        if names.len() > SEED_ENTRIES_MAX {
            break;
        }
    }
    Ok(names)
}

/// Copies one entry. `place` names it in errors and is as it was at the end.
fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    place: &mut PathBuf,
    depth: usize,
    left: &mut Left,
) -> Result<(), String> {
    let failed = |place: &Path| {
        let place = place.display().to_string();
        move |error: io::Error| format!("cannot copy {place}: {error}")
    };
    let os = |place: &Path| {
        let failed = failed(place);
        move |errno: rustix::io::Errno| failed(errno.into())
    };
    let small = "a seed is copied into each new session, so keep in it only what each one needs";
    left.entries = left.entries.checked_sub(1).filter(|_| depth <= SEED_DEPTH_MAX).ok_or_else(|| {
        format!(
            "{} is one too many: a seed has at most {SEED_ENTRIES_MAX} files, in folders {SEED_DEPTH_MAX} deep; \
             {small}",
            place.display()
        )
    })?;
    let found = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(os(place))?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {
            let inner = open_at(from, name).map_err(os(place))?;
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(FOLDER_MODE)).map_err(os(place))?;
            let made = open_at(to, name).map_err(os(place))?;
            for name in names(inner.as_fd()).map_err(failed(place))? {
                place.push(name.to_string_lossy().as_ref());
                copy(inner.as_fd(), made.as_fd(), &name, place, depth + 1, left)?;
                place.pop();
            }
            Ok(())
        }
        FileType::RegularFile => {
            // Should a pipe take its place meanwhile, nobody waits for it.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source = File::from(rustix::fs::openat(from, name, flags, Mode::empty()).map_err(os(place))?);
            let mode = Mode::from_raw_mode(FILE_MODE | (found.st_mode & 0o100));
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut made = File::from(rustix::fs::openat(to, name, flags, mode).map_err(os(place))?);
            let copied = io::copy(&mut source.take(left.bytes + 1), &mut made).map_err(failed(place))?;
            left.bytes = left.bytes.checked_sub(copied).ok_or_else(|| {
                let (place, mib) = (place.display(), SEED_BYTES_MAX >> 20);
                format!("with {place} the seed has more than {mib} MiB; {small}")
            })?;
            Ok(())
        }
        _ => Err(format!(
            "{} is neither a file nor a folder, and a seed has nothing else; put a copy in its place",
            place.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;
    use crate::base::{Attempt, SessionName, SessionNo};

    fn spec(root: &Path, session: &str) -> StartSpec {
        StartSpec {
            session: SessionNo(1),
            name: SessionName::new("g", session).unwrap(),
            attempt: Attempt(1),
            out_dir: root.join("out"),
            in_dir: root.join("in"),
            agent_dir: root.join("agent"),
            state_dir: root.join("state/g").join(session),
            seed_dir: root.join("state/g/seed"),
            timezone: "UTC".into(),
            env: Vec::new(),
        }
    }

    #[test]
    fn each_session_has_its_own_and_begins_with_the_seed_once() {
        let root = tempfile::tempdir().unwrap();
        let seed = root.path().join("state/g/seed/claude");
        fs::create_dir_all(seed.join("skills/a")).unwrap();
        fs::write(seed.join("settings.json"), "{}").unwrap();
        fs::write(seed.join("skills/a/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(seed.join("skills/a/run"), fs::Permissions::from_mode(0o755)).unwrap();
        let (one, two) = (spec(root.path(), "one"), spec(root.path(), "two"));
        prepare(&one, None).unwrap();
        let read = |it: &StartSpec, name: &str| fs::read_to_string(it.state_dir.join(name)).ok();
        assert_eq!(read(&one, "claude/settings.json").as_deref(), Some("{}"));
        let mode = |name: &str| fs::metadata(one.state_dir.join(name)).unwrap().mode() & 0o777;
        let modes =
            [mode("claude"), mode("codex"), mode("claude/settings.json"), mode("claude/skills/a/run")];
        assert_eq!(modes, [0o700, 0o700, 0o600, 0o700]);
        // Later changes on either side stay there.
        fs::write(one.state_dir.join("claude/settings.json"), "one's own").unwrap();
        fs::remove_dir_all(one.state_dir.join("claude/skills")).unwrap();
        fs::write(seed.join("settings.json"), "{\"new\": 1}").unwrap();
        prepare(&one, None).unwrap();
        prepare(&two, None).unwrap();
        assert_eq!(read(&one, "claude/settings.json").as_deref(), Some("one's own"));
        assert!(!one.state_dir.join("claude/skills").exists());
        assert_eq!(read(&two, "claude/settings.json").as_deref(), Some("{\"new\": 1}"));
        // Without a seed there is nothing in it.
        fs::remove_dir_all(root.path().join("state/g/seed")).unwrap();
        let three = spec(root.path(), "three");
        prepare(&three, None).unwrap();
        assert_eq!(fs::read_dir(three.state_dir.join("claude")).unwrap().count(), 0);
        assert!(prepare(&spec(root.path(), "seed"), None).unwrap_err().contains("rename it"));
    }

    #[test]
    fn what_is_no_file_in_a_seed_is_named_and_no_session_begins_with_half_of_it() {
        let root = tempfile::tempdir().unwrap();
        let seed = root.path().join("state/g/seed");
        fs::create_dir_all(seed.join("claude/deep")).unwrap();
        fs::write(root.path().join("secret"), "precious").unwrap();
        fs::write(seed.join("claude/settings.json"), "{}").unwrap();
        let one = spec(root.path(), "one");
        let refused = |place: &str| {
            let why = prepare(&one, None).unwrap_err();
            assert!(why.contains(place), "{why}");
            assert!(!one.state_dir.exists() && !root.path().join("state/g/.one.new").exists());
            why
        };
        symlink(root.path().join("secret"), seed.join("claude/deep/link")).unwrap();
        assert!(refused("claude/deep/link").contains("neither a file nor a folder"));
        fs::remove_file(seed.join("claude/deep/link")).unwrap();
        symlink(root.path(), seed.join("codex")).unwrap();
        refused("seed/codex");
        fs::remove_file(seed.join("codex")).unwrap();
        fs::write(seed.join("settings.json"), "{}").unwrap();
        assert!(refused("settings.json").contains("claude, codex"));
        fs::remove_file(seed.join("settings.json")).unwrap();
        let large = seed.join("claude/large");
        File::create(&large).unwrap().set_len(SEED_BYTES_MAX).unwrap();
        assert!(refused("claude").contains("more than 64 MiB"));
        fs::remove_file(&large).unwrap();
        for n in 0..SEED_ENTRIES_MAX {
            File::create(seed.join(format!("claude/deep/{n}"))).unwrap();
        }
        assert!(refused("claude/deep").contains("at most 4096 files"));
        fs::remove_dir_all(seed.join("claude/deep")).unwrap();
        let mut deep = seed.join("claude");
        deep.extend(std::iter::repeat_n("d", SEED_DEPTH_MAX + 2));
        fs::create_dir_all(&deep).unwrap();
        refused("d/d/d");
        fs::remove_dir_all(seed.join("claude/d")).unwrap();
        // What a crash left half is not taken for a session's.
        fs::create_dir_all(root.path().join("state/g/.one.new/claude/half")).unwrap();
        prepare(&one, None).unwrap();
        assert!(!one.state_dir.join("claude/half").exists());
        assert!(one.state_dir.join("claude/settings.json").exists());
    }

    #[test]
    fn a_folder_that_was_made_again_is_given_again() {
        if !rustix::process::geteuid().is_root() {
            println!("NOT DONE: changing owners takes root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("state/g/seed/codex")).unwrap();
        fs::write(root.path().join("state/g/seed/codex/config.toml"), "").unwrap();
        let one = spec(root.path(), "one");
        let to = User { uid: 10_001, gid: 10_001 };
        prepare(&one, Some(to)).unwrap();
        let owner = |name: &str| one.state_dir.join(name).symlink_metadata().unwrap().uid();
        assert_eq!(["claude", "codex", "codex/config.toml"].map(owner), [10_001; 3]);
        assert_eq!(one.state_dir.symlink_metadata().unwrap().uid(), 0, "of that nothing is mounted");
        // Whoever removes one of them, or restores it from a backup: the other tells nothing about it.
        fs::remove_dir_all(one.state_dir.join("claude")).unwrap();
        prepare(&one, Some(to)).unwrap();
        assert_eq!(owner("claude"), 10_001);
        fs::write(one.state_dir.join("codex/new"), "").unwrap();
        chown(one.state_dir.join("codex"), Some(0), Some(0)).unwrap();
        prepare(&one, Some(to)).unwrap();
        assert_eq!(["codex", "codex/new"].map(owner), [10_001; 2]);
    }
}
