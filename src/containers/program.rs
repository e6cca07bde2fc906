//! Where a program is: what the kernel would run for a name, found before anything is started.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// Where programs are looked for when nothing says so, as `execvp` does it.
const PATH_DEFAULT: &str = "/bin:/usr/bin";

/// Why a program cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// There is none of that name.
    #[error("there is no program {name:?}{}", in_path(among.as_deref()))]
    NotThere {
        /// As it was named.
        name: String,
        /// Where it was looked for; none when the name is a path.
        among: Option<String>,
    },
    /// It is there and cannot be run by this user.
    #[error("{path} may not be executed")]
    NotExecutable {
        /// Where it is.
        path: PathBuf,
    },
}

fn in_path(among: Option<&str>) -> String {
    among.map(|path| format!(" in PATH ({path})")).unwrap_or_default()
}

/// Finds the program that a name stands for: a path as it is, seen from `folder`, and any other name in the folders of
/// `path` (the variable `PATH`).
///
/// # Errors
/// See [`Missing`].
pub fn find(name: &OsStr, path: Option<&OsStr>, folder: &Path) -> Result<PathBuf, Missing> {
    let shown = || name.to_string_lossy().into_owned();
    if name.as_bytes().contains(&b'/') {
        let whole = folder.join(name);
        return match look(&whole) {
            Ok(()) => Ok(whole),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(Missing::NotExecutable { path: whole })
            }
            Err(_) => Err(Missing::NotThere { name: whole.to_string_lossy().into_owned(), among: None }),
        };
    }
    let path = path.unwrap_or(OsStr::new(PATH_DEFAULT));
    let mut refused = None;
    for dir in std::env::split_paths(path) {
        let whole = folder.join(dir).join(name);
        match look(&whole) {
            Ok(()) => return Ok(whole),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                refused.get_or_insert(whole);
            }
            Err(_) => {}
        }
    }
    let among = Some(path.to_string_lossy().into_owned());
    Err(refused
        .map_or_else(|| Missing::NotThere { name: shown(), among }, |path| Missing::NotExecutable { path }))
}

fn look(path: &Path) -> io::Result<()> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(rustix::fs::access(path, Access::EXEC_OK)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_is_found_as_the_kernel_finds_it_and_what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for (name, mode) in [("there", 0o755), ("text", 0o644)] {
            std::fs::write(bin.join(name), "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = std::env::join_paths([Path::new("/nowhere"), &bin]).unwrap();
        let find = |name: &str| super::find(OsStr::new(name), Some(&path), folder.path());
        assert_eq!(find("there"), Ok(bin.join("there")));
        assert_eq!(find("bin/there"), Ok(folder.path().join("bin/there")));
        assert_eq!(find("text"), Err(Missing::NotExecutable { path: bin.join("text") }));
        assert_eq!(find("./bin"), Err(Missing::NotExecutable { path: folder.path().join("./bin") }));
        let missing = find("no-such-program").unwrap_err().to_string();
        assert!(
            missing.starts_with("there is no program \"no-such-program\" in PATH (/nowhere:"),
            "{missing}"
        );
        let missing = find("bin/other").unwrap_err().to_string();
        assert!(missing.contains("bin/other") && !missing.contains("PATH"), "{missing}");
        assert!(super::find(OsStr::new("sh"), None, folder.path()).is_ok());
    }
}
