//! A disk that fails: each labelled call once, then a restart, which finds what was promised and goes on.

use std::fs::File;
use std::io;
use std::sync::{Mutex, mpsc};

use super::*;

/// Fails the n-th call of one label, and notes all labels in order.
pub(super) struct FailAt {
    label: &'static str,
    left: Mutex<u32>,
    seen: Mutex<Vec<&'static str>>,
}

impl FailAt {
    pub fn new(label: &'static str, left: u32) -> Arc<Self> {
        Arc::new(Self { label, left: Mutex::new(left), seen: Mutex::default() })
    }

    /// Whether the call was reached and failed.
    fn failed(&self) -> bool {
        *self.left.lock().unwrap() == u32::MAX
    }

    fn check(&self, op: &'static str) -> io::Result<()> {
        self.seen.lock().unwrap().push(op);
        let mut left = self.left.lock().unwrap();
        if op != self.label || *left == u32::MAX {
            return Ok(());
        }
        *left = left.wrapping_sub(1);
        if *left == u32::MAX { Err(io::Error::other("injected")) } else { Ok(()) }
    }
}

impl Disk for FailAt {
    fn create(&self, op: &'static str, path: &Path) -> io::Result<File> {
        self.check(op)?;
        OsDisk.create(op, path)
    }
    fn write(&self, op: &'static str, file: &File, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.check(op) {
            // As a full disk does it: half of it is there.
            OsDisk.write(op, file, &bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        OsDisk.write(op, file, bytes)
    }
    fn sync(&self, op: &'static str, file: &File) -> io::Result<()> {
        self.check(op)?;
        OsDisk.sync(op, file)
    }
    fn rename(&self, op: &'static str, from: &Path, to: &Path) -> io::Result<()> {
        self.check(op)?;
        OsDisk.rename(op, from, to)
    }
    fn sync_dir(&self, op: &'static str, folder: &Path) -> io::Result<()> {
        self.check(op)?;
        OsDisk.sync_dir(op, folder)
    }
    fn remove(&self, op: &'static str, path: &Path) -> io::Result<()> {
        self.check(op)?;
        OsDisk.remove(op, path)
    }
    fn truncate(&self, op: &'static str, file: &File, len: u64) -> io::Result<()> {
        self.check(op)?;
        OsDisk.truncate(op, file, len)
    }
}

/// A journal in use.
struct Driver {
    journal: Journal,
    promised: u64,
}

impl Driver {
    fn append(&mut self, size: usize) -> Result<(), JournalError> {
        let n = self.promised + 1;
        let frame = record(n, self.promised, size);
        if let Err(error) = self.journal.append(&frame, RecordNo(n)) {
            assert_eq!(self.journal.append(&frame, RecordNo(n)), Err(error.clone()), "a failure is final");
            return Err(error);
        }
        self.promised = n;
        Ok(())
    }

    /// Two rotations, with more appended meanwhile than the loop may write when it switches.
    fn run(&mut self) -> Result<(), JournalError> {
        for _ in 0..2 {
            (0..4).try_for_each(|_| self.append(50))?;
            let (go, wait) = mpsc::channel::<()>();
            self.journal.rotate(header(self.promised + 1), move || {
                let _ = wait.recv(); // ends when `go` is dropped
                vec![b"later state".to_vec()]
            });
            (0..5).try_for_each(|_| self.append(60_000))?;
            drop(go);
            while self.journal.is_rotating() {
                self.append(20)?;
            }
        }
        self.append(50)
    }
}

/// Appends and rotates until the disk fails; gives the last record that was called durable.
fn drive(folder: &Path, disk: Arc<dyn Disk>) -> u64 {
    let Ok(journal) = begin(folder, disk, Sync::Always) else { return 0 };
    let mut driver = Driver { journal, promised: 0 };
    if driver.run().is_ok() {
        // Whether the last cut succeeds makes no difference to what is durable.
        drop(driver.journal.close());
    }
    driver.promised
}

#[test]
fn a_disk_that_fails_anywhere_stops_the_journal_and_loses_nothing_that_was_promised() {
    let labels = [
        "JOURNAL:CREATE",
        "JOURNAL:SNAPSHOT",
        "JOURNAL:SNAPSHOT-SYNC",
        "JOURNAL:DIR",
        "JOURNAL:PREPARE",
        "JOURNAL:APPEND",
        "JOURNAL:SYNC",
        "JOURNAL:ROTATE-SYNC",
        "JOURNAL:CATCH-UP",
        "JOURNAL:SWITCH",
        "JOURNAL:SYNC-OLD",
        "JOURNAL:SEAL",
        "JOURNAL:SEAL-SYNC",
    ];
    let reached = FailAt::new("", 0);
    drive(tempfile::tempdir().unwrap().path(), reached.clone());
    for op in reached.seen.lock().unwrap().iter() {
        assert!(labels.contains(op), "{op} is never made to fail");
    }
    for label in labels {
        for left in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let disk = FailAt::new(label, left);
            let promised = drive(folder.path(), disk.clone());
            assert!(left > 0 || disk.failed(), "{label} is not reached");
            let recovered = recover(&OsDisk, folder.path()).unwrap();
            let last = recovered.last.map_or(0, |no| no.0);
            assert!(last >= promised, "{label} after {left}: {last} of {promised} promised records");
            assert_eq!(records(folder.path()), (1..=last).collect::<Vec<_>>(), "{label} after {left}");
            goes_on(folder.path(), label);
        }
    }
}

#[test]
fn a_rotation_syncs_in_the_order_that_recovery_relies_on() {
    let disk = FailAt::new("", 0);
    drive(tempfile::tempdir().unwrap().path(), disk.clone());
    let seen = disk.seen.lock().unwrap();
    let place = |op, from: usize| from + seen[from..].iter().position(|&seen| seen == op).unwrap();
    let durable_before = place("JOURNAL:ROTATE-SYNC", 0);
    let made = place("JOURNAL:CREATE", durable_before);
    let switched = place("JOURNAL:SWITCH", place("JOURNAL:DIR", made));
    assert!(!seen[1..durable_before].contains(&"JOURNAL:CREATE"), "made before the old one was durable");
    let old = place("JOURNAL:SYNC-OLD", switched);
    assert!(place("JOURNAL:SEAL", 0) > place("JOURNAL:SYNC", old), "cut before the new one was durable");
}

/// Two segments that overlap; the newer one is torn behind more records than the older one has.
fn crashed(folder: &Path, newer_last: u64) {
    for (first, last) in [(1, 15), (11, newer_last)] {
        let mut bytes = header(first).encode();
        frame::encode(Kind::SnapshotEnd, RecordNo(first), &[], &mut bytes);
        (first..=last).for_each(|n| bytes.extend(record(n, 10.min(n - 1), 50)));
        bytes.extend(&record(last + 1, 10, 50)[..30]);
        bytes.extend([0; 100]);
        fs::write(folder.join(segment::file_name(RecordNo(first))), bytes).unwrap();
    }
}

#[test]
fn a_recovery_that_fails_anywhere_is_done_again_and_comes_to_the_same_end() {
    let mut reached = std::collections::BTreeSet::new();
    for newer_last in [10, 13, 15, 18] {
        let watched = tempfile::tempdir().unwrap();
        crashed(watched.path(), newer_last);
        let calls = FailAt::new("", 0);
        let expected = recover(&*calls, watched.path()).unwrap().last;
        let calls = calls.seen.lock().unwrap().clone();
        for (n, &label) in calls.iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            crashed(folder.path(), newer_last);
            let before = calls[..n].iter().filter(|&&op| op == label).count();
            let disk = FailAt::new(label, u32::try_from(before).unwrap());
            assert!(recover(&*disk, folder.path()).is_err(), "{label}");
            let recovered = recover(&OsDisk, folder.path()).unwrap();
            assert_eq!(recovered.last, expected, "{label}, newer to {newer_last}");
            goes_on(folder.path(), label);
            reached.insert(label);
        }
    }
    assert!(reached.len() >= 10, "only {reached:?} were made to fail");
}

#[test]
fn a_boot_number_is_never_lowered_by_a_disk_that_fails() {
    for label in ["REPLACE:CREATE", "REPLACE:WRITE", "REPLACE:SYNC", "REPLACE:RENAME", "REPLACE:DIR"] {
        let folder = tempfile::tempdir().unwrap();
        let first = boot::raise(&OsDisk, folder.path()).unwrap();
        assert!(boot::raise(&*FailAt::new(label, 0), folder.path()).is_err());
        assert!(boot::raise(&OsDisk, folder.path()).unwrap() > first, "{label}");
    }
}
