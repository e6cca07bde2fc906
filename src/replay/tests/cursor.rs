//! The cursor shows at every record what a walk shows there, whichever way it came.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::{Tape, disk};
use crate::base::{Ms, RecordNo};
use crate::machine::input::Input;
use crate::replay::cursor::{CHECKPOINTS_MAX, Cursor, Found, Moment, Verdict};
use crate::replay::walk::{Stop, walk};

/// What a walk shows at each record.
fn walked(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    walk(path, |stop| {
        if let Stop::Step(step) = stop {
            found.push(format!("{} {:?} {:?} {:?}", step.record, step.input, step.effects, step.state));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn told(moment: &Moment) -> String {
    format!("{} {:?} {:?} {:?}", moment.record, moment.input, moment.effects, moment.after)
}

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn a_recorded_journal_is_the_same_forwards_backwards_and_at_random() {
    assert!(fixtures().len() > 10);
    for path in fixtures() {
        let (walked, mut cursor) = (walked(&path), Cursor::open(&path, |_| ()).unwrap());
        assert_eq!(cursor.len(), walked.len(), "{}", path.display());
        let len = walked.len();
        let ways = (0..len).chain((0..len).rev()).chain((0..len).map(|n| n * 7 % len));
        for index in ways {
            let moment = cursor.seek(index).unwrap().unwrap();
            assert_eq!(told(&moment), walked[index], "{} at {index}", path.display());
            assert_eq!(cursor.row(index).unwrap().record, moment.record);
            assert_eq!(cursor.row(index).unwrap().input, moment.input.name());
            assert_eq!(cursor.find(moment.record), Some(index));
        }
        assert_eq!(cursor.end(), None);
        assert!(cursor.seek(len).unwrap().is_none() && cursor.row(len).is_none());
    }
}

#[test]
fn the_state_before_a_record_is_the_one_after_the_record_before_it() {
    let mut cursor = Cursor::open(&fixtures()[1], |_| ()).unwrap();
    for index in (1..cursor.len()).rev() {
        let later = cursor.seek(index).unwrap().unwrap();
        let earlier = cursor.seek(index - 1).unwrap().unwrap();
        assert_eq!(format!("{:?}", later.before), format!("{:?}", earlier.after), "at {index}");
        assert_eq!(later.since_previous, later.at.0 - earlier.at.0);
    }
}

/// A journal of two segments with so many records that checkpoints are thinned out.
fn long() -> (tempfile::TempDir, usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut tape = Tape::new();
    tape.boot(1);
    let count = 256 * CHECKPOINTS_MAX + 500;
    for n in 0..count {
        if n == count / 2 {
            tape.rotate();
        }
        tape.at = tape.at + Ms(1_000);
        let offset = 1_700_000_000_000_000 + i64::try_from(n).unwrap();
        tape.step(Input::ClockSet { offset });
    }
    tape.segments[0].facts.first = tape.segments[0].records[0].0;
    let records = tape.segments.iter().map(|segment| segment.records.len()).sum();
    for segment in &tape.segments {
        disk::write(folder.path(), segment);
    }
    (folder, records)
}

#[test]
fn a_long_journal_is_searched_both_ways_and_left_backwards() {
    let (folder, records) = long();
    let mut heard = 0;
    let mut cursor = Cursor::open(folder.path(), |n| heard = n).unwrap();
    assert_eq!((cursor.len(), heard), (records, records));
    let mut last = cursor.seek(records - 1).unwrap().unwrap();
    for index in (records - 40..records - 1).rev() {
        let moment = cursor.seek(index).unwrap().unwrap();
        assert_eq!(format!("{:?}", moment.after), format!("{:?}", last.before), "at {index}");
        last = moment;
    }
    let even = |n: usize| if n.is_multiple_of(2) { Verdict::Hit } else { Verdict::Pass };
    assert_eq!(
        cursor.search(records - 100, |it| even(it.index)).unwrap(),
        Found::At(records - 100 + records % 2)
    );
    assert_eq!(cursor.search_back(9_001, |it| even(it.index)).unwrap(), Found::At(9_000));
    let first = |n: usize| if n == 0 { Verdict::Hit } else { Verdict::Pass };
    assert_eq!(cursor.search_back(records, |it| first(it.index)).unwrap(), Found::At(0));
    assert_eq!(cursor.search_back(0, |it| first(it.index)).unwrap(), Found::Nothing);
    assert_eq!(cursor.search(1, |it| first(it.index)).unwrap(), Found::Nothing);
    assert_eq!(cursor.search(1, |_| Verdict::Stop).unwrap(), Found::Stopped);
    assert_eq!(cursor.find(RecordNo(0)), Some(0));
    assert_eq!(cursor.find(RecordNo(u64::MAX)), None);
}

#[test]
fn a_damaged_place_ends_the_way_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("demo.ltj");
    let mut bytes =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals/demo.ltj")).unwrap();
    let middle = bytes.len() * 3 / 4;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut cursor = Cursor::open(&path, |_| ()).unwrap();
    assert!(!cursor.is_empty());
    assert!(cursor.end().unwrap().contains("offset"), "{:?}", cursor.end());
    let last = cursor.len() - 1;
    assert_eq!(cursor.seek(last).unwrap().unwrap().index, last);
}
