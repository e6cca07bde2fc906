//! The image that is made where none is configured: the static runner and the folders that it needs, nothing else.
//!
//! Invariant: the same files make the same archive, byte for byte, so its digest names the image.
//! Invariant: a runner that needs libraries is refused before an engine sees it: in an empty root it would end with
//! "no such file", which misleads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use super::body::{HOME, WORKSPACE};

/// The repository of these images.
pub const REPOSITORY: &str = "lamplighter-runner";
/// The runner in the image.
const PROGRAM: &str = "lamplighter-runner";
/// Larger than any runner; what is larger is another file.
const RUNNER_MAX: u64 = 256 << 20;
/// Where a host has its certificates of authority: an agent CLI needs them, the runner does not.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Blocks of an archive.
const BLOCK: usize = 512;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no runner, or it cannot be read.
    #[error("cannot read the runner {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no program, or one for another system.
    #[error("{path} is no program for 64-bit Linux: {why}")]
    NoProgram {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// It needs libraries, which an empty image has not.
    #[error(
        "the runner {path} is dynamically linked (it asks for {loader}) and cannot run in an empty image"
    )]
    Dynamic {
        /// The file.
        path: PathBuf,
        /// The program that it asks for.
        loader: String,
    },
}

impl ImageError {
    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        "build a static one with scripts/runner-static, and put it beside the daemon or name it in [runtime.docker] \
         runner; or name an image in [runtime.docker] image"
    }
}

/// Whether an image of this name was made by a daemon: others in the repository are somebody else's.
pub fn is_made(name: &str) -> bool {
    let tag = name.strip_prefix(REPOSITORY).and_then(|rest| rest.strip_prefix(':'));
    tag.is_some_and(|tag| tag.len() == 32 && tag.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// An image in the making.
pub struct RunnerImage {
    /// Its tag: the digest of its files.
    pub tag: String,
    /// The digest of what the daemon itself puts there. The host's certificates are not part of it: new ones are no
    /// reason to end what runs.
    pub build: String,
    /// Its files, as a tar archive.
    pub files: Vec<u8>,
}

impl RunnerImage {
    /// Makes the image of a runner, in memory.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn of(path: &Path) -> Result<Self, ImageError> {
        let unreadable = |source| ImageError::Unreadable { path: path.to_owned(), source };
        let found = fs::metadata(path).map_err(unreadable)?;
        if !found.is_file() || found.len() > RUNNER_MAX {
            return Err(ImageError::NoProgram {
                path: path.to_owned(),
                why: "it is no file of a usual size",
            });
        }
        let runner = fs::read(path).map_err(unreadable)?;
        match loader(&runner) {
            Err(why) => return Err(ImageError::NoProgram { path: path.to_owned(), why }),
            Ok(Some(loader)) => return Err(ImageError::Dynamic { path: path.to_owned(), loader }),
            Ok(None) => {}
        }
        let files = archive(&runner, fs::read(CERTIFICATES).ok().as_deref());
        let tag = format!("{:032x}", xxh3_128(&files));
        let build = format!("{REPOSITORY}@{:032x}", xxh3_128(&archive(&runner, None)));
        Ok(Self { tag, build, files })
    }

    /// Its full name.
    pub fn name(&self) -> String {
        format!("{REPOSITORY}:{}", self.tag)
    }

    /// What the engine is told of it, as lines of a Dockerfile.
    pub fn changes() -> Vec<String> {
        vec![
            format!("ENTRYPOINT [\"/{PROGRAM}\"]"),
            format!("WORKDIR {WORKSPACE}"),
            format!("ENV SSL_CERT_FILE={CERTIFICATES}"),
            format!("LABEL org.opencontainers.image.version={}", env!("CARGO_PKG_VERSION")),
            "LABEL org.opencontainers.image.title=lamplighter-runner".to_owned(),
        ]
    }
}

fn archive(runner: &[u8], certificates: Option<&[u8]>) -> Vec<u8> {
    let mut tar = Vec::with_capacity(runner.len() + 64 * BLOCK + certificates.map_or(0, <[u8]>::len));
    let home = HOME.trim_start_matches('/');
    let workspace = WORKSPACE.trim_start_matches('/');
    // An engine gives what it mounts the rights of the folder below, whatever it was told (runc 1.1).
    for (folder, mode) in [("tmp", 0o1777), ("home", 0o755), (home, 0o700), (workspace, 0o755)] {
        entry(&mut tar, folder, mode, None);
    }
    entry(&mut tar, PROGRAM, 0o755, Some(runner));
    if let Some(certificates) = certificates {
        for folder in ["etc", "etc/ssl", "etc/ssl/certs"] {
            entry(&mut tar, folder, 0o755, None);
        }
        entry(&mut tar, CERTIFICATES.trim_start_matches('/'), 0o644, Some(certificates));
    }
    // Two empty blocks end an archive.
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

/// One file, or a folder where there is no content, in the format of POSIX (`ustar`); everything belongs to root.
fn entry(tar: &mut Vec<u8>, name: &str, mode: u32, content: Option<&[u8]>) {
    let mut header = [0u8; BLOCK];
    let mut put = |at: usize, text: &str| {
        for (place, byte) in header.iter_mut().skip(at).zip(text.bytes()) {
            *place = byte;
        }
    };
    put(0, name);
    if content.is_none() {
        put(name.len(), "/");
    }
    put(100, &format!("{mode:07o}\0"));
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.map_or(0, <[u8]>::len)));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, if content.is_none() { "5" } else { "0" });
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    for (place, byte) in header.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *place = byte;
    }
    tar.extend_from_slice(&header);
    if let Some(content) = content {
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
}

/// The loader that a program asks for; none when it is static. Reads the program headers of an ELF file.
fn loader(program: &[u8]) -> Result<Option<String>, &'static str> {
    const INTERPRETER: u32 = 3;
    let cut = "its headers are cut short";
    let bytes = |at: usize, n: usize| at.checked_add(n).and_then(|end| program.get(at..end)).ok_or(cut);
    let number = |at: usize, n: usize| {
        bytes(at, n).map(|it| it.iter().rev().fold(0u64, |sum, &byte| (sum << 8) | u64::from(byte)))
    };
    if program.get(..4) != Some(b"\x7fELF".as_slice()) {
        return Err("it is no ELF file");
    }
    if bytes(4, 2)? != [2, 1] {
        return Err("it is not of 64 bits, lowest byte first");
    }
    let size = |value: u64| usize::try_from(value).map_err(|_| cut);
    let (table, step, count) = (size(number(32, 8)?)?, size(number(54, 2)?)?, size(number(56, 2)?)?);
    for n in 0..count {
        let header = step.checked_mul(n).and_then(|offset| table.checked_add(offset)).ok_or(cut)?;
        if number(header, 4)? == u64::from(INTERPRETER) {
            let field = |offset: usize| header.checked_add(offset).ok_or(cut);
            let (at, len) = (size(number(field(8)?, 8)?)?, size(number(field(32)?, 8)?)?);
            let name = bytes(at, len)?;
            return Ok(Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with one header of this kind.
    fn program(kind: u8) -> Vec<u8> {
        let mut elf = vec![0u8; 64 + 56 + 8];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = kind;
        elf[72] = 120;
        elf[96] = 8;
        elf[120..].copy_from_slice(b"/lib/ld\0");
        elf
    }

    #[test]
    fn a_runner_that_needs_libraries_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runner");
        fs::write(&path, program(3)).unwrap();
        let error = RunnerImage::of(&path).err().unwrap();
        assert!(error.to_string().contains("/lib/ld"), "{error}");
        assert!(error.hint().contains("runner-static"));
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(matches!(RunnerImage::of(&path), Err(ImageError::NoProgram { .. })));
        assert!(matches!(RunnerImage::of(folder.path()), Err(ImageError::NoProgram { .. })));
        assert!(matches!(RunnerImage::of(&path.join("x")), Err(ImageError::Unreadable { .. })));
    }

    #[test]
    fn only_what_a_daemon_made_is_its_own_to_remove() {
        assert!(is_made("lamplighter-runner:00112233445566778899aabbccddeeff"));
        for other in ["lamplighter-runner:static", "lamplighter-runner", "lamplighter-agent:latest", ""] {
            assert!(!is_made(other), "{other}");
        }
    }

    #[test]
    fn headers_that_are_cut_anywhere_are_an_error_and_no_panic() {
        let whole = program(3);
        for cut in 0..whole.len() {
            assert!(loader(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let mut wild = program(3);
        wild[32..40].fill(0xff);
        assert!(loader(&wild).is_err());
    }

    #[test]
    fn the_same_files_are_the_same_image_and_tar_can_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runner");
        fs::write(&path, program(1)).unwrap();
        let (one, two) = (RunnerImage::of(&path).unwrap(), RunnerImage::of(&path).unwrap());
        assert_eq!(one.tag, two.tag);
        let archive = folder.path().join("image.tar");
        fs::write(&archive, archive_without_certificates(&path)).unwrap();
        let listed = std::process::Command::new("tar").arg("-tvf").arg(&archive).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        for name in ["drwxrwxrwt 0/0", " tmp/", " home/agent/", " workspace/", "-rwxr-xr-x 0/0"] {
            assert!(listed.contains(name), "{name} in\n{listed}");
        }
    }

    fn archive_without_certificates(path: &Path) -> Vec<u8> {
        archive(&fs::read(path).unwrap(), None)
    }
}
