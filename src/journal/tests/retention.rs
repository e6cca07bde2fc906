//! Old segments go, the oldest first, and never leave a gap.

use std::sync::mpsc;

use super::disk::FailAt;
use super::*;
use crate::base::{Clock, Ms, Wall};
use crate::journal::retention::{DropError, Dropped, Keep, Retention, Sealed, drop_due, to_drop};

/// Segments of these sizes and last times in days, at day 100.
fn decide(segments: &[(u64, Option<i64>)], bytes: u64, days: Option<u64>) -> usize {
    let day = |n: i64| Wall(n * 86_400_000_000);
    let sealed: Vec<Sealed> = segments
        .iter()
        .zip(1..)
        .map(|(&(bytes, last), n)| Sealed { first: RecordNo(n), bytes, last_at: last.map(day) })
        .collect();
    to_drop(&sealed, Keep { bytes, age: days.map(Ms::days) }, day(100))
}

#[test]
fn the_oldest_go_by_size_and_by_age_and_size_wins() {
    let three = [(10, Some(60)), (10, Some(80)), (10, Some(99))];
    let cases: [(&str, usize, usize); 8] = [
        ("nothing there", decide(&[], 0, Some(1)), 0),
        ("all fits", decide(&three, 30, None), 0),
        ("one byte too many", decide(&three, 29, None), 1),
        ("too many, although all are young", decide(&three, 15, Some(90)), 2),
        ("old ones, although there is room", decide(&three, 30, Some(10)), 2),
        ("both, and age asks for less", decide(&three, 15, Some(30)), 2),
        ("both, and size asks for less", decide(&three, 25, Some(10)), 2),
        ("no room for any", decide(&three, 0, None), 3),
    ];
    for (what, found, expected) in cases {
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn age_ends_at_the_first_segment_that_is_young_or_of_unknown_age() {
    assert_eq!(decide(&[(1, Some(60)), (1, None), (1, Some(60))], 9, Some(30)), 1);
    assert_eq!(decide(&[(1, Some(60)), (1, Some(99)), (1, Some(60))], 9, Some(30)), 1);
    // The day itself is kept.
    assert_eq!(decide(&[(1, Some(70)), (1, Some(71))], 9, Some(30)), 0);
    assert_eq!(decide(&[(u64::MAX, None), (u64::MAX, None)], u64::MAX - 1, Some(30)), 1);
}

struct Still;

impl Clock for Still {
    fn monotonic_micros(&self) -> i64 {
        0
    }
    fn wall(&self) -> Wall {
        Wall(0)
    }
}

fn retention(bytes: u64, told: mpsc::Sender<Result<Dropped, String>>) -> Retention {
    let told = std::sync::Mutex::new(told);
    let on_dropped = move |it: Result<Dropped, DropError>| {
        drop(told.lock().unwrap().send(it.map_err(|error| error.to_string())))
    };
    Retention { keep: Keep { bytes, age: None }, clock: Arc::new(Still), on_dropped: Box::new(on_dropped) }
}

/// Appends ten records of about a hundred bytes, then rotates, so many times.
fn rotate_often(journal: &mut Journal, times: u64) -> u64 {
    let mut n = journal.last().0;
    let mut append = |journal: &mut Journal| {
        n += 1;
        journal.append(&record(n, n - 1, 100), RecordNo(n)).unwrap();
        n
    };
    for _ in 0..times {
        (0..9).for_each(|_| _ = append(journal));
        let last = append(journal);
        journal.rotate(header(last + 1), || vec![b"state".to_vec()]);
        while journal.is_rotating() {
            append(journal);
        }
    }
    append(journal)
}

fn firsts(folder: &Path) -> Vec<u64> {
    segment::list(folder).unwrap().into_iter().map(|(first, _)| first.0).collect()
}

#[test]
fn rotations_drop_what_does_not_fit_and_leave_a_whole_journal() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
    journal.retain(retention(4_000, tell));
    let last = rotate_often(&mut journal, 12);
    journal.close().unwrap();
    let dropped: u64 = told.try_iter().map(|it| it.unwrap().segments).sum();
    assert!(dropped >= 6, "{dropped}");
    let report = check::check(folder.path()).unwrap();
    assert_eq!((report.damaged, report.torn, report.segments.len() as u64), (0, 0, 13 - dropped));
    let first = report.first.unwrap().0;
    assert_eq!(records(folder.path()), (first..=last).collect::<Vec<_>>());
    // The one that was sealed last stays whatever its size, and counts.
    let sealed: u64 = report.segments.iter().rev().skip(1).map(|it| it.end).sum();
    assert!(sealed <= 4_000 || report.segments.len() == 2, "{report:?}");
    goes_on(folder.path(), "after old segments went");
}

#[test]
fn the_segment_that_was_sealed_last_stays_until_the_next_rotation_or_start() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel();
    let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
    journal.retain(retention(0, tell.clone()));
    rotate_often(&mut journal, 3);
    journal.close().unwrap();
    assert_eq!(firsts(folder.path()).len(), 2);
    let first = RecordNo::first_of(boot::raise(&OsDisk, folder.path()).unwrap());
    let mut journal =
        Journal::begin(Arc::new(OsDisk), folder.path(), &header(first.0), &[], Sync::Group, Box::new(|_| ()))
            .unwrap();
    journal.retain(retention(0, tell));
    journal.close().unwrap();
    assert_eq!(firsts(folder.path()), [first.0]);
    assert_eq!(told.try_iter().last().unwrap().unwrap().before, first);
}

#[test]
fn a_pass_that_is_cut_short_anywhere_leaves_no_gap_and_is_finished_by_the_next() {
    for label in ["JOURNAL:DROP", "JOURNAL:DROP-DIR"] {
        for left in 0..4 {
            let folder = tempfile::tempdir().unwrap();
            let mut journal = begin(folder.path(), Arc::new(OsDisk), Sync::Group).unwrap();
            let last = rotate_often(&mut journal, 6);
            journal.close().unwrap();
            let before = firsts(folder.path());
            let newest = RecordNo(*before.last().unwrap());
            let keep = Keep { bytes: 0, age: None };
            let disk = FailAt::new(label, left);
            let error = drop_due(&*disk, folder.path(), newest, Some(1), keep, Wall(0)).unwrap_err();
            assert!(error.to_string().contains("injected"), "{error}");
            let gone = left as usize + usize::from(label == "JOURNAL:DROP-DIR");
            assert_eq!(firsts(folder.path()), before[gone..], "{label} after {left}");
            assert_eq!(records(folder.path()), (before[gone]..=last).collect::<Vec<_>>());
            assert_eq!(recover(&OsDisk, folder.path()).unwrap().last, Some(RecordNo(last)));
            let done = drop_due(&OsDisk, folder.path(), newest, Some(1), keep, Wall(0)).unwrap();
            assert_eq!((done.segments, done.before.0), ((5 - gone) as u64, before[5]));
            goes_on(folder.path(), label);
        }
    }
}

#[test]
fn a_segment_that_cannot_be_removed_is_told_and_holds_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel();
    let mut journal = begin(folder.path(), FailAt::new("JOURNAL:DROP", 0), Sync::Group).unwrap();
    journal.retain(retention(0, tell));
    let last = rotate_often(&mut journal, 3);
    journal.close().unwrap();
    let told: Vec<_> = told.try_iter().collect();
    let failed: Vec<_> = told.iter().filter_map(|it| it.as_ref().err()).collect();
    assert!(failed.len() == 1 && failed[0].contains(".ltj") && failed[0].contains("injected"), "{told:?}");
    let first = firsts(folder.path())[0];
    assert_eq!(records(folder.path()), (first..=last).collect::<Vec<_>>());
}
