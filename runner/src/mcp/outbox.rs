//! Files on their way out: copied from where the agent may take them into the message's own folder.
//!
//! Invariant: nothing outside of the agent's own folders is ever opened, whatever links there are; what is opened is a
//! regular file of bounded size.
//! Invariant: where the opened file really lies decides whether it is the agent's, not the path that was given.
//! Invariant: the copy is on disk before the row that names it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use lamplighter::base::ids::is_safe_name;
use lamplighter::session::layout::{INBOUND_DB, OUTBOUND_DB};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fsync, mkdirat, openat, openat2, unlinkat};
use rustix::io::Errno;

use super::Refusal;
use super::desk::Desk;

/// Largest file that can be sent (design 5).
const MAX_BYTES: u64 = 50 * 1024 * 1024;
/// A folder to go on from, itself no link.
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies a file into the outbox of a message and returns the name that it has there.
pub(super) fn put(desk: &Desk, message: &str, path: &str, name: Option<&str>) -> Result<String, Refusal> {
    let name = safe_name(name, path)?;
    let source = open(desk, path)?;
    let copied = copy(&source, desk, message, &name);
    if copied.is_err() {
        discard(desk, message, &name);
    }
    copied.map_err(|error| Refusal::from(format!("{path:?} cannot be copied to the outbox: {error}")))?;
    Ok(name)
}

/// Removes what [`put`] made. The host removes what is left over, at worst.
pub(super) fn discard(desk: &Desk, message: &str, name: &str) {
    let Ok(outbox) = openat(CWD, &desk.outbox, FOLDER, Mode::empty()) else { return };
    if let Ok(folder) = openat(&outbox, message, FOLDER, Mode::empty()) {
        let _ = unlinkat(&folder, name, AtFlags::empty());
    }
    let _ = unlinkat(&outbox, message, AtFlags::REMOVEDIR);
}

fn copy(source: &File, desk: &Desk, message: &str, name: &str) -> io::Result<()> {
    let outbox = outbox(desk)?;
    mkdirat(&outbox, message, Mode::from_raw_mode(0o755))?;
    let folder = openat(&outbox, message, FOLDER, Mode::empty())?;
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut target = File::from(openat(&folder, name, create, Mode::from_raw_mode(0o644))?);
    let copied = io::copy(&mut source.take(MAX_BYTES + 1), &mut target)?;
    if copied > MAX_BYTES {
        return Err(io::Error::other(format!("it has grown above {MAX_BYTES} bytes")));
    }
    target.sync_all()?;
    // The name of the folder is on disk only with the folder above it.
    fsync(&folder)?;
    Ok(fsync(&outbox)?)
}

/// The outbox, made when it is missing. The agent may write beside it, so a link in its place is refused.
fn outbox(desk: &Desk) -> io::Result<OwnedFd> {
    if let Err(error) = fs::create_dir(&desk.outbox)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    Ok(openat(CWD, &desk.outbox, FOLDER, Mode::empty())?)
}

/// The name for the recipient (contract 17).
fn safe_name(name: Option<&str>, path: &str) -> Result<String, Refusal> {
    let name = match name.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default(),
    };
    match is_safe_name(name) {
        true => Ok(name.to_owned()),
        false => {
            Err(format!("{name:?} is no name for a file; give one in `filename`, without slashes").into())
        }
    }
}

/// Opens a file below one of the folders that the agent may send from.
fn open(desk: &Desk, path: &str) -> Result<File, Refusal> {
    let given = Path::new(path);
    let asked = if given.is_absolute() { given.to_owned() } else { desk.agent.join(given) };
    let roots = [&desk.agent, &desk.workspace, &PathBuf::from("/tmp")];
    // The longest first: the agent's folder may lie in the workspace.
    let below = |root: &&PathBuf| asked.strip_prefix(root).is_ok();
    let root = roots.into_iter().filter(below).max_by_key(|root| root.as_os_str().len());
    let own = "send files from your own folder or from /tmp";
    let root = root.ok_or_else(|| format!("{path:?} is outside of what you may send; {own}"))?;
    let inner = asked.strip_prefix(root).map_err(|_| format!("{path:?} is outside; {own}"))?;
    let is_plain = inner.components().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain || inner.as_os_str().is_empty() {
        return Err(format!("{path:?} is no plain path to a file; {own}").into());
    }
    let refused = || Refusal::from(format!("{path:?} belongs to the session and cannot be sent; {own}"));
    if is_private(desk, &asked) {
        return Err(refused());
    }
    let folder = openat(CWD, root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("{path:?} cannot be opened: {error}"))?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let file = openat2(&folder, inner, flags, Mode::empty(), resolve).map_err(|error| match error {
        Errno::NOENT => format!("there is no file {path:?}"),
        Errno::LOOP | Errno::XDEV => {
            format!("{path:?} leads through a link; copy the file itself and send that")
        }
        error => format!("{path:?} cannot be opened: {error}"),
    })?;
    let file = File::from(file);
    // The same folder may have two names, such as that of a mount or of a link above the root.
    let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if is_private(desk, &real.map_err(|error| format!("{path:?} cannot be looked at: {error}"))?) {
        return Err(refused());
    }
    let found = file.metadata().map_err(|error| format!("{path:?} cannot be looked at: {error}"))?;
    match (found.is_file(), found.len()) {
        (false, _) => Err(format!("{path:?} is no regular file").into()),
        (true, size) if size > MAX_BYTES => {
            Err(format!("{path:?} has {size} bytes; at most {MAX_BYTES} can be sent").into())
        }
        _ => Ok(file),
    }
}

/// Whether a path is the session's own and not the agent's: what the host wrote, the databases, the heartbeat, and the
/// runner's markers. In a flat layout both sides share one folder, and only the names tell them apart.
fn is_private(desk: &Desk, path: &Path) -> bool {
    let real = |folder: &Path| fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let below = |folder: &Path| path.starts_with(folder) || path.starts_with(real(folder));
    if below(&desk.agent) {
        return false;
    }
    if desk.inside != desk.workspace && below(&desk.inside) {
        return true;
    }
    let inner = path.strip_prefix(&desk.workspace).or_else(|_| path.strip_prefix(real(&desk.workspace)));
    let Ok(inner) = inner else { return false };
    let first = inner.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let first = first.unwrap_or_default();
    let is_lone = inner.components().count() == 1;
    ["in", "inbox"].contains(&first.as_str())
        || first.starts_with('.')
        || is_lone && [INBOUND_DB, OUTBOUND_DB].iter().any(|name| first.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_for_the_recipient_has_no_path_in_it() {
        assert_eq!(safe_name(None, "/a/b.txt"), Ok("b.txt".into()));
        assert_eq!(safe_name(Some("c.txt"), "/a/b.txt"), Ok("c.txt".into()));
        for bad in ["..", ".", "a/b", "a\\b", "a\0b"] {
            assert!(safe_name(Some(bad), "/a/b.txt").is_err(), "{bad:?}");
        }
        assert!(safe_name(None, "/a/..").is_err());
        assert!(safe_name(Some(&"x".repeat(300)), "a").is_err());
    }
}
