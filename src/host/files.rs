//! Files that an agent sends: copied out of the session's outbox before anybody is told of them.
//!
//! What lies in the outbox was made by a container, so it is opened below a handle of the folder, following no link,
//! and only regular files of a bounded size are taken. A copy has the delivery's key in its name: a delivery that is
//! tried again finds the copies of the try before.
//!
//! Invariant: nothing outside `out/outbox/<row id>` is ever read.
//! Invariant: a copy is whole or not there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::base::ids::is_safe_name;
use crate::channels::{SentFile, SkippedFile};
use crate::session::SessionFolder;

/// Most files of one message: more belong into an archive.
pub const FILES_MAX: usize = 16;
/// The largest file, in bytes: what people send each other, not backups.
pub const FILE_MAX: u64 = 50 << 20;
/// Longest name of a copy in bytes; file systems take 255.
const NAME_MAX: usize = 200;

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The session's folder.
    pub session: PathBuf,
    /// messages_out.id.
    pub id: String,
    /// The names that the message gives.
    pub names: Vec<String>,
    /// Where to.
    pub into: PathBuf,
    /// The key of the delivery.
    pub key: String,
    /// Bytes that stay free on the disk.
    pub reserve: u64,
}

/// What became of each file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// The copies.
    pub files: Vec<SentFile>,
    /// The others.
    pub skipped: Vec<SkippedFile>,
}

/// Why one file was not copied.
enum Refused {
    /// It is none that can be sent; the message goes without it.
    Bad(String),
    /// It could be copied another time.
    NotNow(String),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::NotNow(error.to_string())
    }
}

impl Copy {
    /// Copies the files.
    ///
    /// # Errors
    /// Why it cannot be done now: the disk is full or fails. What was copied is found again by the next try.
    pub fn run(&self) -> Result<Copied, String> {
        let mut done = Copied::default();
        let failed = |error: &dyn std::fmt::Display| {
            format!("cannot copy files into {}: {error}", self.into.display())
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.into).map_err(|error| failed(&error))?;
        let folder = SessionFolder::nested(&self.session);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let out = rustix::fs::openat(CWD, folder.out_dir(), flags, Mode::empty())
            .map_err(|error| failed(&error))?;
        for (place, name) in self.names.iter().enumerate() {
            match self.one(&out, place, name) {
                Ok(file) => done.files.push(file),
                Err(Refused::Bad(reason)) => done.skipped.push(SkippedFile { name: name.clone(), reason }),
                Err(Refused::NotNow(why)) => return Err(failed(&why)),
            }
        }
        Ok(done)
    }

    fn one(&self, out: &OwnedFd, place: usize, name: &str) -> Result<SentFile, Refused> {
        if place >= FILES_MAX {
            return Err(Refused::Bad(format!("a message has at most {FILES_MAX} files")));
        }
        if !is_safe_name(name) || !is_safe_name(&self.id) {
            return Err(Refused::Bad("its name cannot be used".into()));
        }
        let path = self.into.join(copy_name(&self.key, place, name));
        let sent = |bytes| SentFile { name: name.to_owned(), path: path.clone(), bytes };
        // The try before has copied it; the agent may have changed or removed it since.
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => return Ok(sent(found.len())),
            _ => {}
        }
        let (source, size) = open(out, &self.id, name)?;
        self.see_space(size)?;
        let bytes = copy(source, &path)?;
        Ok(sent(bytes))
    }

    fn see_space(&self, size: u64) -> Result<(), Refused> {
        let stat = rustix::fs::statvfs(&self.into).map_err(io::Error::from)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if self.reserve > 0 && free < self.reserve.saturating_add(size) {
            let why = format!("{free} bytes are free, and {} are kept in reserve", self.reserve);
            return Err(Refused::NotNow(why));
        }
        Ok(())
    }
}

/// Opens a file of the outbox, and gives its size.
fn open(out: &OwnedFd, id: &str, name: &str) -> Result<(File, u64), Refused> {
    let path = Path::new("outbox").join(id).join(name);
    // Not blocking: a pipe that nobody writes to would be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = loop {
        match rustix::fs::openat2(out.as_fd(), &path, flags, Mode::empty(), within) {
            // A name on the way was changed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => break other,
        }
    };
    let file = opened.map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => Refused::Bad("there is no such file in the message's outbox".into()),
        Errno::LOOP | Errno::XDEV => Refused::Bad("it is a link, and links are not followed".into()),
        Errno::ACCESS | Errno::PERM | Errno::NXIO | Errno::NODEV => Refused::Bad("it cannot be read".into()),
        Errno::NOSYS => Refused::Bad("this kernel cannot open it safely: openat2 is missing".into()),
        other => Refused::NotNow(other.to_string()),
    })?;
    let stat = rustix::fs::fstat(&file).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Refused::Bad("it is no regular file".into()));
    }
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > FILE_MAX {
        return Err(too_large());
    }
    Ok((File::from(file), size))
}

fn too_large() -> Refused {
    Refused::Bad(format!("it is larger than {} MiB", FILE_MAX >> 20))
}

/// Copies to a file beside, which then takes the name.
fn copy(source: File, path: &Path) -> Result<u64, Refused> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}"));
    let attempt = || {
        let mut target =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        // It may grow while it is read.
        let bytes = io::copy(&mut source.take(FILE_MAX + 1), &mut target)?;
        // The original goes once the delivery is on record.
        target.sync_all()?;
        Ok::<u64, io::Error>(bytes)
    };
    let done = match attempt() {
        Ok(bytes) if bytes > FILE_MAX => Err(too_large()),
        Ok(bytes) => fs::rename(&beside, path).map(|()| bytes).map_err(Refused::from),
        Err(error) => Err(error.into()),
    };
    if done.is_err() {
        // What is left is written over by the next.
        drop(fs::remove_file(&beside));
    }
    done
}

/// A name that no other file of any delivery has, and that ends as the file's own does.
fn copy_name(key: &str, place: usize, name: &str) -> String {
    let prefix = format!("{key}-{place}-");
    let mut start = (prefix.len() + name.len()).saturating_sub(NAME_MAX).min(name.len());
    while !name.is_char_boundary(start) {
        start += 1;
    }
    format!("{prefix}{}", &name[start..])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Outbox {
        folder: tempfile::TempDir,
    }

    impl Outbox {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("s/out/outbox/r1")).unwrap();
            Self { folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join("s/out/outbox/r1").join(name)
        }

        fn copy(&self, names: &[&str]) -> Copy {
            Copy {
                session: self.folder.path().join("s"),
                id: "r1".into(),
                names: names.iter().map(|&name| name.to_owned()).collect(),
                into: self.folder.path().join("files/main"),
                key: "1.7.0".into(),
                reserve: 0,
            }
        }

        fn skipped(&self, names: &[&str]) -> Vec<String> {
            let done = self.copy(names).run().unwrap();
            assert_eq!(done.files, []);
            done.skipped.into_iter().map(|it| it.reason).collect()
        }
    }

    #[test]
    fn a_file_is_copied_once_under_the_key_of_its_delivery() {
        let outbox = Outbox::new();
        fs::write(outbox.path("a.txt"), "first").unwrap();
        let copy = outbox.copy(&["a.txt"]);
        let done = copy.run().unwrap();
        let path = outbox.folder.path().join("files/main/1.7.0-0-a.txt");
        assert_eq!(done.files, [SentFile { name: "a.txt".into(), path: path.clone(), bytes: 5 }]);
        fs::write(outbox.path("a.txt"), "changed since").unwrap();
        assert_eq!(copy.run().unwrap(), done);
        assert_eq!(fs::read_to_string(path).unwrap(), "first");
    }

    #[test]
    fn links_and_names_that_lead_elsewhere_are_skipped() {
        let outbox = Outbox::new();
        fs::write(outbox.folder.path().join("secret"), "x").unwrap();
        symlink(outbox.folder.path().join("secret"), outbox.path("link")).unwrap();
        symlink("../../../../secret", outbox.path("relative")).unwrap();
        let why = outbox.skipped(&["link", "relative", "../../../../secret", "..", "", "missing"]);
        assert!(why[0].contains("link") && why[1].contains("link"), "{why:?}");
        assert!(why[2..5].iter().all(|why| why.contains("name")), "{why:?}");
        assert!(why[5].contains("no such file"), "{why:?}");
    }

    #[test]
    fn an_outbox_that_is_a_link_is_not_entered() {
        let outbox = Outbox::new();
        let elsewhere = outbox.folder.path().join("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join("a"), "x").unwrap();
        fs::remove_dir(outbox.path("")).unwrap();
        symlink(&elsewhere, outbox.folder.path().join("s/out/outbox/r1")).unwrap();
        assert!(outbox.skipped(&["a"])[0].contains("link"));
    }

    #[test]
    fn what_is_no_regular_file_or_too_large_is_skipped() {
        let outbox = Outbox::new();
        fs::create_dir(outbox.path("folder")).unwrap();
        File::create(outbox.path("large")).unwrap().set_len(FILE_MAX + 1).unwrap();
        rustix::fs::mknodat(CWD, outbox.path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let why = outbox.skipped(&["folder", "large", "pipe"]);
        assert!(
            why[0].contains("regular") && why[1].contains("50 MiB") && why[2].contains("regular"),
            "{why:?}"
        );
    }

    #[test]
    fn a_message_has_a_bounded_number_of_files() {
        let outbox = Outbox::new();
        fs::write(outbox.path("a"), "x").unwrap();
        let done = outbox.copy(&["a"; FILES_MAX + 1]).run().unwrap();
        assert_eq!((done.files.len(), done.skipped.len()), (FILES_MAX, 1));
    }

    #[test]
    fn files_wait_for_room_on_the_disk() {
        let outbox = Outbox::new();
        fs::write(outbox.path("a"), "x").unwrap();
        let copy = Copy { reserve: u64::MAX, ..outbox.copy(&["a"]) };
        assert!(copy.run().unwrap_err().contains("reserve"));
    }

    #[test]
    fn long_names_keep_their_end() {
        let name = format!("{}.tar.gz", "ä".repeat(120));
        let made = copy_name("1.7.0", 0, &name);
        assert!(
            made.len() <= NAME_MAX && made.ends_with("ä.tar.gz") && made.starts_with("1.7.0-0-"),
            "{made}"
        );
    }
}
