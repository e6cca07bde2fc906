//! The storage of the journal against torn tails, lost pages, failing disks and crashes in mid-rotation.

mod disk;
mod retention;
mod rotation;
mod tail;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::frame::{self, Kind};
use super::reader::{ReadError, read};
use super::recovery::{RecoverError, Standing, Verdict, judge, recover, repair, standing};
use super::segment::{self, FORMAT, Header};
use super::writer::{Journal, JournalError, Sync};
use super::{boot, check};
use crate::base::{Disk, OsDisk, RecordNo};

fn header(first: u64) -> Header {
    Header {
        format: FORMAT,
        machine: 1,
        record_schema: 1,
        digest_schema: 1,
        installation: 7,
        boot: RecordNo(first).boot(),
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

fn begin(folder: &Path, disk: Arc<dyn Disk>, mode: Sync) -> Result<Journal, JournalError> {
    Journal::begin(disk, folder, &header(1), &[b"state".to_vec()], mode, Box::new(|_| ()))
}

/// The records of all segments in order, each once.
fn records(folder: &Path) -> Vec<u64> {
    let mut found = Vec::new();
    read(folder, |_, frame| {
        if frame.kind == Kind::Record {
            found.push(frame.number.0);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

/// What a crash of the process leaves is recovered, goes on in another boot, and is whole then.
fn goes_on(folder: &Path, why: &str) {
    let boot = boot::raise(&OsDisk, folder).unwrap();
    let first = RecordNo::first_of(boot).0;
    let mut journal =
        Journal::begin(Arc::new(OsDisk), folder, &header(first), &[], Sync::Always, Box::new(|_| ()))
            .unwrap();
    for n in first..first + 3 {
        journal.append(&record(n, n - 1, 10), RecordNo(n)).unwrap();
    }
    journal.close().unwrap();
    let recovered = recover(&OsDisk, folder).unwrap();
    assert_eq!((recovered.last, recovered.cut), (Some(RecordNo(first + 2)), None), "{why}");
    let report = check::check(folder).unwrap();
    assert_eq!((report.damaged, report.torn), (0, 0), "{why}: {report:?}");
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

/// The decision tables, every row of them.
#[test]
fn what_becomes_of_a_place_depends_on_what_was_promised() {
    let mut table = String::new();
    for whole in [true, false] {
        for (relation, synced) in [("below", 2), ("at", 3), ("above", 4)] {
            let verdict = judge(whole, RecordNo(3), RecordNo(synced));
            table += &format!("whole={whole} synced {relation}: {verdict:?}\n");
        }
    }
    let golden = "\
whole=true synced below: Take
whole=true synced at: Take
whole=true synced above: Take
whole=false synced below: CutHere
whole=false synced at: Halt
whole=false synced above: Halt
";
    assert_eq!(table, golden);
    assert_eq!(judge(false, RecordNo(1), RecordNo(0)), Verdict::CutHere);
}

#[test]
fn what_becomes_of_the_newest_segment_depends_on_what_the_one_before_holds() {
    let mut table = String::new();
    for n in 0..8u8 {
        let (begun, longer, promised) = (n & 4 == 0, n & 2 != 0, n & 1 != 0);
        let standing: Standing = standing(begun, longer, promised);
        table += &format!("begun={begun} older_longer={longer} promised={promised}: {standing:?}\n");
    }
    let golden = "\
begun=true older_longer=false promised=false: Stands
begun=true older_longer=false promised=true: Stands
begun=true older_longer=true promised=false: Abandon
begun=true older_longer=true promised=true: Halt
begun=false older_longer=false promised=false: Abandon
begun=false older_longer=false promised=true: Halt
begun=false older_longer=true promised=false: Abandon
begun=false older_longer=true promised=true: Halt
";
    assert_eq!(table, golden);
}

#[test]
fn a_batch_that_does_not_go_on_where_the_journal_ends_is_refused_for_good() {
    let one = record(1, 0, 10);
    let cases =
        [(record(2, 0, 10), 2), (one.clone(), 2), (one[..one.len() - 1].to_vec(), 1), (vec![7; 40], 1)];
    for (frames, last) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
        let error = journal.append(&frames, RecordNo(last)).unwrap_err();
        assert_eq!(journal.append(&one, RecordNo(1)).unwrap_err(), error);
        drop(journal);
        assert_eq!(recover(&OsDisk, folder.path()).unwrap().last, None);
    }
}

#[test]
fn a_segment_is_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Always).unwrap();
    journal.append(&record(1, 0, 10), RecordNo(1)).unwrap();
    journal.close().unwrap();
    assert!(begin(folder.path(), Arc::new(OsDisk), Sync::Always).is_err());
    assert_eq!(records(folder.path()), [1]);
}

#[test]
fn a_reader_names_the_record_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = header(1).encode();
    frame::encode(Kind::SnapshotEnd, RecordNo(1), &[], &mut bytes);
    let place = bytes.len() + record(1, 0, 5).len();
    bytes.extend([record(1, 0, 5), record(3, 0, 5)].concat());
    fs::write(folder.path().join(segment::file_name(RecordNo(1))), bytes).unwrap();
    match read(folder.path(), |_, _| ControlFlow::Continue(())) {
        Err(ReadError::Gap { offset, expected, found, .. }) => {
            assert_eq!((offset, expected, found), (place as u64, RecordNo(2), RecordNo(3)));
        }
        other => panic!("{other:?}"),
    }
    // Recovery cuts a gap as it cuts a torn frame.
    assert_eq!(recover(&OsDisk, folder.path()).unwrap().last, Some(RecordNo(1)));
}
