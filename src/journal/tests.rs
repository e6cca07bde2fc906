//! The storage of the journal against torn tails, lost pages, failing disks and crashes in mid-rotation.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use super::frame::{self, Kind};
use super::recovery::{RecoverError, check, recover};
use super::segment::{self, FORMAT, Header, SegmentReader};
use super::writer::{Journal, Sync};
use crate::base::{BootNo, Disk, OsDisk, RecordNo};

fn header(first: u64) -> Header {
    Header {
        format: FORMAT,
        machine: 1,
        record_schema: 1,
        digest_schema: 1,
        installation: 7,
        boot: BootNo(1),
        first: RecordNo(first),
        build: "test".into(),
    }
}

/// A record's frame whose body says what was durable.
fn record(number: u64, synced: u64, size: usize) -> Vec<u8> {
    let mut body = synced.to_le_bytes().to_vec();
    body.extend((0..size).map(|n| (n as u8).wrapping_mul(31).wrapping_add(number as u8)));
    let mut out = Vec::new();
    frame::encode(Kind::Record, RecordNo(number), &body, &mut out);
    out
}

fn begin(folder: &Path, disk: Arc<dyn Disk>, mode: Sync) -> Result<Journal, super::writer::JournalError> {
    Journal::begin(disk, folder, &header(1), &[b"state".to_vec()], mode, Box::new(|_| ()))
}

/// The records of all segments in order, each once.
fn records(folder: &Path) -> Vec<u64> {
    let mut found: Vec<u64> = Vec::new();
    for (_, path) in segment::list(folder).unwrap() {
        let mut reader = SegmentReader::open(&path).unwrap();
        while let Ok(Some(frame)) = reader.next_frame() {
            if frame.kind == Kind::Record && found.last().is_none_or(|&last| frame.number.0 > last) {
                found.push(frame.number.0);
            }
        }
    }
    found
}

fn only(folder: &Path) -> std::path::PathBuf {
    segment::list(folder).unwrap().remove(0).1
}

#[test]
fn what_was_appended_is_read_again_and_the_segment_is_cut_to_length() {
    for mode in [Sync::Group, Sync::Always, Sync::None] {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = begin(folder.path(), Arc::new(OsDisk), mode).unwrap();
        for n in 1..=100 {
            journal.append(&record(n, 0, 200), RecordNo(n)).unwrap();
        }
        journal.wait_synced(RecordNo(100)).unwrap();
        assert_eq!(journal.synced_through(), RecordNo(100));
        let bytes = journal.segment_bytes();
        journal.close().unwrap();
        assert_eq!(fs::metadata(only(folder.path())).unwrap().len(), bytes);
        assert_eq!(records(folder.path()), (1..=100).collect::<Vec<_>>());
    }
}

/// A journal of a few records; where each record's frame ends.
fn small(folder: &Path, synced: impl Fn(u64) -> u64) -> (Vec<u8>, Vec<usize>) {
    let mut journal = begin(folder, Arc::new(OsDisk), Sync::Group).unwrap();
    let mut ends = vec![usize::try_from(journal.segment_bytes()).unwrap()];
    for n in 1..=5 {
        journal.append(&record(n, synced(n), 20 + 7 * n as usize), RecordNo(n)).unwrap();
        ends.push(usize::try_from(journal.segment_bytes()).unwrap());
    }
    journal.close().unwrap();
    (fs::read(only(folder)).unwrap(), ends)
}

#[test]
fn a_journal_torn_at_any_byte_keeps_every_whole_record() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, ends) = small(folder.path(), |_| 0);
    let path = only(folder.path());
    for cut in ends[0]..=bytes.len() {
        fs::write(&path, &bytes[..cut]).unwrap();
        let kept = ends.iter().filter(|&&end| end <= cut).count() - 1;
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert_eq!(recovered.last.map_or(0, |no| no.0), kept as u64, "cut at {cut}");
        assert_eq!(recovered.cut.is_some(), !ends.contains(&cut), "cut at {cut}");
        assert_eq!(records(folder.path()), (1..=kept as u64).collect::<Vec<_>>());
        assert!(recover(&OsDisk, folder.path()).unwrap().cut.is_none(), "recovery is done in one go");
    }
    // Torn within the header or the snapshot, before any record: the segment is set aside.
    for cut in 0..ends[0] {
        fs::write(&path, &bytes[..cut]).unwrap();
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert!(recovered.segments.is_empty() && recovered.abandoned.is_some(), "cut at {cut}");
    }
}

#[test]
fn any_subset_of_unsynced_pages_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
    let mut end_of = vec![journal.segment_bytes()];
    for n in 1..=24u64 {
        // From record 5 on, records say that 1 to 4 are durable.
        let synced = if n > 4 { 4 } else { 0 };
        journal.append(&record(n, synced, 1_500), RecordNo(n)).unwrap();
        end_of.push(journal.segment_bytes());
    }
    journal.close().unwrap();
    let path = only(folder.path());
    let bytes = fs::read(&path).unwrap();
    let first_page = usize::try_from(end_of[4]).unwrap().div_ceil(4_096);
    let pages = bytes.len().div_ceil(4_096) - first_page;
    assert!(pages >= 6, "only {pages} pages to lose");
    for lost in 0..(1u32 << pages) {
        let mut damaged = bytes.clone();
        for page in (0..pages).filter(|page| lost & (1 << page) != 0) {
            let from = (first_page + page) * 4_096;
            let to = (from + 4_096).min(damaged.len());
            damaged[from..to].fill(0);
        }
        fs::write(&path, &damaged).unwrap();
        let whole = (1..=24)
            .take_while(|&n| {
                let (from, to) = (end_of[n - 1] as usize, end_of[n] as usize);
                damaged[from..to] == bytes[from..to]
            })
            .count();
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert_eq!(recovered.last, Some(RecordNo(whole as u64)), "lost {lost:b}");
        assert!(whole >= 4);
    }
}

#[test]
fn damage_below_what_was_durable_stops_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, ends) = small(folder.path(), |n| n - 1);
    let path = only(folder.path());
    for broken in 1..=3usize {
        let mut damaged = bytes.clone();
        damaged[ends[broken - 1] + 15] ^= 1;
        fs::write(&path, &damaged).unwrap();
        match recover(&OsDisk, folder.path()) {
            Err(RecoverError::Damage { offset, after, synced, .. }) => {
                assert_eq!(
                    (offset, after, synced),
                    (ends[broken - 1] as u64, RecordNo(broken as u64 - 1), RecordNo(4))
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read(&path).unwrap(), damaged);
        let checked = check(folder.path()).unwrap();
        assert!(checked[0].trouble.as_ref().is_some_and(|t| t.contains("damaged")), "{checked:?}");
    }
    // The last record is above what any frame calls durable.
    let mut damaged = bytes.clone();
    damaged[ends[4] + 15] ^= 1;
    fs::write(&path, &damaged).unwrap();
    assert_eq!(recover(&OsDisk, folder.path()).unwrap().last, Some(RecordNo(4)));
}

/// The decision table: every row of it.
#[test]
fn the_verdict_depends_on_what_was_promised() {
    let folder = tempfile::tempdir().unwrap();
    for (promised, verdict) in [(0, true), (1, true), (2, true), (3, false), (4, false)] {
        let (mut bytes, ends) = small(folder.path(), |n| if n == 5 { promised } else { 0 });
        bytes[ends[2] + 15] ^= 1; // record 3
        fs::write(only(folder.path()), &bytes).unwrap();
        assert_eq!(recover(&OsDisk, folder.path()).is_ok(), verdict, "promised {promised}");
        fs::remove_file(only(folder.path())).unwrap();
    }
}

fn rotate(journal: &mut Journal, first: u64) {
    journal.rotate(header(first), || vec![b"later state".to_vec()]);
}

#[test]
fn a_rotation_does_not_hold_appends_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
    for n in 1..=10 {
        journal.append(&record(n, 0, 100), RecordNo(n)).unwrap();
    }
    let (go, wait) = mpsc::channel::<()>();
    journal.rotate(header(11), move || {
        wait.recv().unwrap();
        vec![vec![1; 1 << 20], vec![2; 1 << 20]]
    });
    // The snapshot is not even encoded yet, and appends go on.
    for n in 11..=20 {
        journal.append(&record(n, 0, 100), RecordNo(n)).unwrap();
        assert!(journal.is_rotating());
    }
    assert_eq!(recover(&OsDisk, folder.path()).unwrap().last, Some(RecordNo(20)));
    go.send(()).unwrap();
    let mut n = 20;
    while journal.is_rotating() {
        n += 1;
        journal.append(&record(n, 0, 100), RecordNo(n)).unwrap();
    }
    journal.close().unwrap();
    assert_eq!(records(folder.path()), (1..=n).collect::<Vec<_>>());
    let segments = segment::list(folder.path()).unwrap();
    assert_eq!(segments.iter().map(|(first, _)| first.0).collect::<Vec<_>>(), [1, 11]);
    let checked = check(folder.path()).unwrap();
    assert_eq!((checked[0].records, checked[1].records), (10, n - 10), "the old one is cut at the snapshot");
}

#[test]
fn a_crash_in_mid_rotation_keeps_every_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
    for n in 1..=10 {
        journal.append(&record(n, 0, 100), RecordNo(n)).unwrap();
    }
    rotate(&mut journal, 11);
    for n in 11..=15 {
        journal.append(&record(n, 0, 100), RecordNo(n)).unwrap();
    }
    drop(journal);
    // Whatever was reached by the rotation: the newer segment torn at any byte.
    let newer = folder.path().join(segment::file_name(RecordNo(11)));
    let mut bytes = header(11).encode();
    frame::encode(Kind::Snapshot, RecordNo(11), b"later state", &mut bytes);
    frame::encode(Kind::SnapshotEnd, RecordNo(11), &[], &mut bytes);
    for n in 11..=15 {
        bytes.extend(record(n, 0, 100));
    }
    let older = folder.path().join(segment::file_name(RecordNo(1)));
    let before = {
        let mut whole = header(1).encode();
        frame::encode(Kind::Snapshot, RecordNo(1), b"state", &mut whole);
        frame::encode(Kind::SnapshotEnd, RecordNo(1), &[], &mut whole);
        (1..=15).for_each(|n| whole.extend(record(n, 0, 100)));
        whole
    };
    for cut in 0..=bytes.len() {
        fs::write(&older, &before).unwrap();
        fs::write(&newer, &bytes[..cut]).unwrap();
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert_eq!(recovered.last, Some(RecordNo(15)), "cut at {cut}");
        assert_eq!(recovered.abandoned.is_some(), cut < bytes.len(), "cut at {cut}");
        assert_eq!(records(folder.path()), (1..=15).collect::<Vec<_>>(), "cut at {cut}");
    }
}

/// Fails the n-th call of one label, and every later one.
struct FailAt {
    label: &'static str,
    left: Mutex<u32>,
}

impl FailAt {
    fn check(&self, op: &'static str) -> io::Result<()> {
        if op != self.label {
            return Ok(());
        }
        let mut left = self.left.lock().unwrap();
        if *left == 0 {
            return Err(io::Error::other("injected"));
        }
        *left -= 1;
        Ok(())
    }
}

impl Disk for FailAt {
    fn create(&self, op: &'static str, path: &Path) -> io::Result<File> {
        self.check(op)?;
        OsDisk.create(op, path)
    }
    fn write(&self, op: &'static str, file: &File, bytes: &[u8]) -> io::Result<()> {
        self.check(op)?;
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
    fn truncate(&self, op: &'static str, file: &File, len: u64) -> io::Result<()> {
        self.check(op)?;
        OsDisk.truncate(op, file, len)
    }
}

#[test]
fn a_disk_that_fails_anywhere_stops_the_journal_and_loses_nothing_that_was_promised() {
    let labels = [
        "JOURNAL:CREATE",
        "JOURNAL:SNAPSHOT",
        "JOURNAL:SNAPSHOT-SYNC",
        "JOURNAL:DIR",
        "JOURNAL:SYNC",
        "JOURNAL:SYNC-OLD",
        "JOURNAL:SEAL",
        "JOURNAL:SEAL-SYNC",
    ];
    for label in labels {
        for left in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let disk = Arc::new(FailAt { label, left: Mutex::new(left) });
            let promised = drive(folder.path(), disk);
            let recovered = recover(&OsDisk, folder.path()).unwrap();
            let last = recovered.last.map_or(0, |no| no.0);
            assert!(last >= promised, "{label} after {left}: {last} of {promised} promised records");
            assert_eq!(records(folder.path()), (1..=last).collect::<Vec<_>>(), "{label} after {left}");
        }
    }
}

/// Appends and rotates until the disk fails; gives the last record that was called durable.
fn drive(folder: &Path, disk: Arc<dyn Disk>) -> u64 {
    let Ok(mut journal) = begin(folder, disk, Sync::Always) else { return 0 };
    let mut promised = 0;
    for n in 1..=12 {
        if n == 5 || n == 9 {
            rotate(&mut journal, n);
        }
        if journal.append(&record(n, promised, 50), RecordNo(n)).is_err() {
            assert!(journal.append(&record(n, promised, 50), RecordNo(n)).is_err(), "a failure is final");
            return promised;
        }
        promised = n;
    }
    // Whether the last cut succeeds makes no difference to what is durable.
    drop(journal.close());
    promised
}
