//! Replay of a journal whose oldest segments were dropped while it was written.

use std::path::Path;
use std::sync::Arc;

use super::disk::header;
use super::*;
use crate::base::{Clock, OsDisk, Wall};
use crate::journal::frame::{self, Kind};
use crate::journal::retention::{Keep, Retention};
use crate::journal::segment;
use crate::journal::writer::{Journal, Sync};
use crate::replay::segments::Segments;
use crate::replay::{Dropped, Why, verify, why};

/// A wall clock that stands two days after everything on the tape.
struct Later;

impl Clock for Later {
    fn monotonic_micros(&self) -> i64 {
        0
    }
    fn wall(&self) -> Wall {
        Wall(1_700_000_000_000_000) + Ms::days(2)
    }
}

fn arrival(id: &str) -> Input {
    Input::MessageArrived(Arrival {
        channel: "chat".into(),
        receipt: 9,
        chat: "chat:b".into(),
        thread: None,
        message_id: id.into(),
        facts: TextFacts::default(),
    })
}

/// A journal with a message `m1` that is over, a message `open` that is not, and six rotations after them.
fn write(folder: &Path, keep: Keep) -> Tape {
    let mut tape = Tape::new();
    tape.segments[0].facts.first = RecordNo::first_of(BootNo(1));
    let first = header(&tape.segments[0]);
    let snapshot = tape.segments[0].snapshot.clone();
    let mut journal =
        Journal::begin(Arc::new(OsDisk), folder, &first, &snapshot, Sync::Group, Box::new(|_| ())).unwrap();
    journal.retain(Retention { keep, clock: Arc::new(Later), on_dropped: Box::new(|it| _ = it.unwrap()) });
    tape.boot(1);
    tape.conversation();
    tape.step(arrival("open"));
    let mut appended = 0;
    let mut append = |tape: &Tape, journal: &mut Journal| {
        let records = &tape.segments.last().unwrap().records;
        for (number, body) in &records[appended..] {
            let mut bytes = Vec::new();
            frame::encode(Kind::Record, *number, body, &mut bytes);
            journal.append(&bytes, *number).unwrap();
        }
        appended = records.len();
    };
    for _ in 0..6 {
        for _ in 0..20 {
            tape.step(Input::HeartbeatSeen { session: SessionNo(1) });
        }
        append(&tape, &mut journal);
        let parts = tape.machine.state().to_parts();
        let facts = SegmentFacts { first: parts.core.record, ..tape.segments[0].facts };
        let header = header(&Segment { facts, ..tape.segments[0].clone() });
        let (root, causes) = (tape.recorder.root(), tape.recorder.causes().clone());
        journal.rotate(header, move || encode_snapshot(&parts, root, &causes));
        while journal.is_rotating() {
            tape.step(Input::HeartbeatSeen { session: SessionNo(1) });
            append(&tape, &mut journal);
        }
    }
    journal.close().unwrap();
    tape
}

fn ask(folder: &Path, id: &str) -> Why {
    why(folder, &Subject::Id(id.into())).unwrap()
}

#[test]
fn what_is_left_replays_and_what_is_gone_is_named() {
    for keep in [Keep { bytes: 5_000, age: None }, Keep { bytes: u64::MAX, age: Some(Ms::days(1)) }] {
        let folder = tempfile::tempdir().unwrap();
        let tape = write(folder.path(), keep);
        let segments = segment::list(folder.path()).unwrap();
        assert!((2..=5).contains(&segments.len()), "{keep:?}: {segments:?}");
        let report = verify(folder.path()).unwrap();
        assert!(report.is_clean(), "{keep:?}: {report}");
        assert_eq!((report.segments, report.gaps), (segments.len() as u64, 0));
        let loaded = crate::replay::load(folder.path()).unwrap().unwrap();
        assert_eq!(loaded.machine.state().to_parts(), tape.machine.state().to_parts());
        assert_eq!(&loaded.causes, tape.recorder.causes());

        let before = segments[0].0;
        let found = ask(folder.path(), "m1");
        assert!(found.lines.is_empty());
        assert!(matches!(found.dropped, Some(Dropped { before: first, .. }) if first == before), "{found:?}");
        let found = ask(folder.path(), "open");
        assert!(found.since_snapshot);
        // The segments that had these records are gone.
        let said: Vec<&str> = found.lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(
            said[..2],
            [
                "message-arrived: the message being written (as the snapshot remembers)",
                "open in the snapshot as m3 of s2"
            ]
        );
        assert!(found.lines[0].record < before, "{found:?}");
        assert_eq!(found.dropped.unwrap().before, before);
        // A reader that listed the folder before the oldest went reads the rest.
        let mut listed = Segments::open(folder.path()).unwrap();
        std::fs::remove_file(&segments[0].1).unwrap();
        assert_eq!(verify_source(&mut listed).unwrap().segments, segments.len() as u64 - 1);
        // A segment by its name says nothing about those before it.
        assert_eq!(ask(&segments[1].1, "open").dropped, None);
    }
}

#[test]
fn a_journal_from_its_beginning_has_nothing_before_it() {
    let folder = tempfile::tempdir().unwrap();
    // Two days are not three.
    write(folder.path(), Keep { bytes: u64::MAX, age: Some(Ms::days(3)) });
    assert_eq!(segment::list(folder.path()).unwrap().len(), 7);
    for id in ["m1", "open", "nobody"] {
        let found = ask(folder.path(), id);
        assert_eq!((found.dropped, found.since_snapshot), (None, false), "{id}");
    }
}
