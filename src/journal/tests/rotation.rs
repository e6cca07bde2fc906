//! Rotations: that they hold nobody, and what a crash in the middle of one leaves.

use std::path::PathBuf;
use std::sync::mpsc;

use super::*;

/// A segment's bytes: header, snapshot, and the records from `first` to `last`.
fn bytes(first: u64, last: u64, synced: u64) -> Vec<u8> {
    let mut bytes = header(first).encode();
    frame::encode(Kind::Snapshot, RecordNo(first), b"state", &mut bytes);
    frame::encode(Kind::SnapshotEnd, RecordNo(first), &[], &mut bytes);
    (first..=last).for_each(|n| bytes.extend(record(n, synced.min(n - 1), 100)));
    bytes
}

fn names(folder: &Path) -> (PathBuf, PathBuf) {
    (folder.join(segment::file_name(RecordNo(1))), folder.join(segment::file_name(RecordNo(11))))
}

/// Some space that was prepared.
fn prepared(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend([0; 500]);
    bytes
}

#[test]
fn a_rotation_does_not_hold_appends_and_loses_nothing() {
    // The second size makes more than the loop may write when it switches, so another thread catches up
    // first.
    for size in [100, 60_000] {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
        for n in 1..=10 {
            journal.append(&record(n, 0, size), RecordNo(n)).unwrap();
        }
        let (go, wait) = mpsc::channel::<()>();
        journal.rotate(header(11), move || {
            wait.recv().unwrap();
            vec![vec![1; 1 << 20], vec![2; 1 << 20]]
        });
        // The snapshot is not even encoded yet, and appends go on and become durable.
        for n in 11..=20 {
            journal.append(&record(n, 0, size), RecordNo(n)).unwrap();
            assert!(journal.is_rotating());
        }
        journal.wait_synced(RecordNo(20)).unwrap();
        go.send(()).unwrap();
        let mut n = 20;
        while journal.is_rotating() {
            n += 1;
            journal.append(&record(n, 0, 10), RecordNo(n)).unwrap();
        }
        journal.close().unwrap();
        assert_eq!(records(folder.path()), (1..=n).collect::<Vec<_>>());
        let report = check::check(folder.path()).unwrap();
        let counts: Vec<_> = report.segments.iter().map(|it| (it.first.0, it.records)).collect();
        assert_eq!(counts, [(1, 10), (11, n - 10)], "the old one is cut at the snapshot");
        assert_eq!((report.records, report.first, report.last), (n, Some(RecordNo(1)), Some(RecordNo(n))));
        assert_eq!((report.damaged, report.torn), (0, 0));
    }
}

#[test]
fn a_segment_without_records_is_not_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
    journal.rotate(header(1), || vec![b"the same state".to_vec()]);
    assert!(!journal.is_rotating());
    journal.close().unwrap();
}

#[test]
fn a_segment_whose_snapshot_alone_is_too_large_goes_on_until_its_records_are_as_large() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::None).unwrap();
    let begun = journal.segment_bytes();
    journal.append(&record(1, 0, 10), RecordNo(1)).unwrap();
    assert!(!journal.is_due(1));
    journal.append(&record(2, 0, usize::try_from(begun).unwrap()), RecordNo(2)).unwrap();
    assert!(journal.is_due(1) && !journal.is_due(1 << 20));
    journal.close().unwrap();
}

#[test]
fn a_snapshot_that_panics_ends_the_journal_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Always).unwrap();
    journal.append(&record(1, 0, 10), RecordNo(1)).unwrap();
    journal.rotate(header(2), || panic!("injected"));
    let mut n = 1;
    let error = loop {
        n += 1;
        if let Err(error) = journal.append(&record(n, n - 1, 10), RecordNo(n)) {
            break error;
        }
    };
    assert!(error.to_string().contains("panicked"), "{error}");
    drop(journal);
    assert_eq!(recover(&OsDisk, folder.path()).unwrap().last, Some(RecordNo(n - 1)));
}

#[test]
fn a_callback_that_panics_leaves_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let tell = Box::new(|_| panic!("injected"));
    let mut journal =
        Journal::begin(Arc::new(OsDisk), folder.path(), &header(1), &[], Sync::Group, tell).unwrap();
    journal.append(&record(1, 0, 10), RecordNo(1)).unwrap();
    // Whether this one was durable before the panic is a race; the next one never will be.
    drop(journal.wait_synced(RecordNo(1)));
    if journal.append(&record(2, 0, 10), RecordNo(2)).is_ok() {
        assert!(journal.wait_synced(RecordNo(2)).is_err());
    }
}

#[test]
fn a_crash_before_the_switch_keeps_every_record_wherever_the_newer_segment_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let (older, newer) = names(folder.path());
    let (old, new) = (prepared(bytes(1, 15, 10)), bytes(11, 15, 10));
    for cut in 0..=new.len() {
        fs::write(&older, &old).unwrap();
        fs::write(&newer, &new[..cut]).unwrap();
        let recovered = recover(&OsDisk, folder.path()).unwrap();
        assert_eq!(recovered.last, Some(RecordNo(15)), "cut at {cut}");
        assert_eq!(recovered.abandoned.is_some(), cut < new.len(), "cut at {cut}");
        assert_eq!(records(folder.path()), (1..=15).collect::<Vec<_>>(), "cut at {cut}");
        let again = recover(&OsDisk, folder.path()).unwrap();
        assert_eq!(
            (again.last, again.cut, again.abandoned),
            (Some(RecordNo(15)), None, None),
            "cut at {cut}"
        );
        if recovered.abandoned.is_none() {
            assert_eq!(fs::read(&older).unwrap(), bytes(1, 10, 10), "the rotation is finished");
        }
    }
}

#[test]
fn of_two_torn_segments_that_overlap_the_one_that_goes_on_further_is_taken() {
    let frame = record(11, 10, 100).len();
    for old_last in 10..=15u64 {
        for new_last in 10..=18u64 {
            for torn in [0, 1, frame / 2] {
                let folder = tempfile::tempdir().unwrap();
                let (older, newer) = names(folder.path());
                // Records up to 10 are durable; each file ends within the frame behind its last whole record.
                let tear = |first, last| {
                    let whole = bytes(first, last, 10).len();
                    let mut bytes = bytes(first, last + 1, 10);
                    bytes.truncate(whole + torn);
                    prepared(bytes)
                };
                fs::write(&older, tear(1, old_last)).unwrap();
                fs::write(&newer, tear(11, new_last)).unwrap();
                let why = format!("older to {old_last}, newer to {new_last}, {torn} torn");
                let last = old_last.max(new_last);
                let recovered = recover(&OsDisk, folder.path()).unwrap();
                assert_eq!(recovered.last, Some(RecordNo(last)), "{why}");
                assert_eq!(recovered.abandoned.is_some(), old_last > new_last, "{why}");
                assert_eq!(records(folder.path()), (1..=last).collect::<Vec<_>>(), "{why}");
                goes_on(folder.path(), &why);
            }
        }
    }
}

#[test]
fn a_newer_segment_that_was_switched_to_is_never_set_aside() {
    let damaged_at = |n: usize| {
        let mut new = bytes(11, 15, 10);
        new[n] ^= 1;
        new
    };
    let snapshot = header(11).encode().len() + 20;
    let lost_all = vec![0; bytes(11, 15, 10).len()];
    // Records behind a broken beginning, or an older segment that was cut already, say that it was in use.
    for new in [damaged_at(5), damaged_at(14), damaged_at(snapshot), lost_all, Vec::new()] {
        let folder = tempfile::tempdir().unwrap();
        let (older, newer) = names(folder.path());
        fs::write(&older, bytes(1, 10, 9)).unwrap();
        fs::write(&newer, &new).unwrap();
        assert!(matches!(recover(&OsDisk, folder.path()), Err(RecoverError::Damage { .. })));
        assert_eq!(fs::read(&newer).unwrap(), new, "nothing is changed");
        assert_eq!(fs::read(&older).unwrap(), bytes(1, 10, 9), "nothing is changed");
        assert_eq!(repair(&OsDisk, folder.path()).unwrap().last, Some(RecordNo(10)));
        goes_on(folder.path(), "repaired");
    }
    // It calls durable what neither of them holds.
    let folder = tempfile::tempdir().unwrap();
    let (older, newer) = names(folder.path());
    let mut new = bytes(11, 11, 10);
    new.extend(record(15, 14, 100));
    fs::write(&older, prepared(bytes(1, 12, 10))).unwrap();
    fs::write(&newer, new).unwrap();
    match recover(&OsDisk, folder.path()) {
        Err(RecoverError::Damage { number, synced, .. }) => {
            assert_eq!((number, synced), (RecordNo(12), RecordNo(14)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn damage_in_history_stops_no_start_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (older, newer) = names(folder.path());
    let mut old = bytes(1, 10, 9);
    let middle = old.len() / 2;
    old[middle] ^= 1;
    fs::write(&older, &old).unwrap();
    fs::write(&newer, bytes(11, 15, 14)).unwrap();
    assert_eq!(recover(&OsDisk, folder.path()).unwrap().last, Some(RecordNo(15)));
    assert_eq!(fs::read(&older).unwrap(), old, "it is left as it is");
    assert_eq!(check::check(folder.path()).unwrap().damaged, 1);
}
