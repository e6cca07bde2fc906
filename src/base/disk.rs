//! The port to the file system for files that must survive a crash. Every call carries a label, so that a test
//! can fail exactly that one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Durable file operations. `op` names the call, for example `"JOURNAL:SYNC"`.
pub trait Disk: Send + Sync {
    /// Creates a file that must not exist yet, or empties one that does.
    ///
    /// # Errors
    /// As the operating system reports them.
    fn create(&self, op: &'static str, path: &Path) -> io::Result<File>;
    /// Writes all bytes at the file's position.
    ///
    /// # Errors
    /// As the operating system reports them.
    fn write(&self, op: &'static str, file: &File, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file's content durable (`fdatasync`).
    ///
    /// # Errors
    /// As the operating system reports them. After an error the content must be taken as not durable.
    fn sync(&self, op: &'static str, file: &File) -> io::Result<()>;
    /// Renames within one file system.
    ///
    /// # Errors
    /// As the operating system reports them.
    fn rename(&self, op: &'static str, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// As the operating system reports them.
    fn sync_dir(&self, op: &'static str, folder: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As the operating system reports them.
    fn remove(&self, op: &'static str, path: &Path) -> io::Result<()>;
    /// Cuts or extends a file.
    ///
    /// # Errors
    /// As the operating system reports them.
    fn truncate(&self, op: &'static str, file: &File, len: u64) -> io::Result<()>;
}

/// The real disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create(&self, _: &'static str, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    }

    fn write(&self, _: &'static str, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, _: &'static str, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, _: &'static str, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, _: &'static str, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn remove(&self, _: &'static str, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn truncate(&self, _: &'static str, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }
}

/// Replaces a file whole. After a crash a reader sees the old bytes or the new ones, never a mix, and the name
/// is durable too. Labels are `REPLACE:CREATE`, `REPLACE:WRITE`, `REPLACE:SYNC`, `REPLACE:RENAME`, `REPLACE:DIR`.
///
/// # Errors
/// As the operating system reports them; the old file is then still whole.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
    let name = path.file_name().ok_or_else(|| io::Error::other("a file needs a name"))?;
    let mut temp_name = std::ffi::OsString::from(".");
    temp_name.push(name);
    temp_name.push(".tmp");
    let temp = folder.join(temp_name);
    let file = disk.create("REPLACE:CREATE", &temp)?;
    disk.write("REPLACE:WRITE", &file, bytes)?;
    disk.sync("REPLACE:SYNC", &file)?;
    disk.rename("REPLACE:RENAME", &temp, path)?;
    disk.sync_dir("REPLACE:DIR", folder)
}
