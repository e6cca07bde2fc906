//! Replay of journals that the journal's writer has written.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Segment, Tape, place, tape};
use crate::base::{OsDisk, RecordNo};
use crate::journal::frame::{self, Kind};
use crate::journal::record::{decode_record, encode_record};
use crate::journal::segment::{self, FORMAT, Header, SegmentReader};
use crate::journal::writer::{Journal, Sync};
use crate::machine::MACHINE_VERSION;
use crate::replay::report::Class;
use crate::replay::segments::ReplayError;
use crate::replay::{Subject, load, state_at, verify, why};

pub(super) fn header(segment: &Segment) -> Header {
    Header {
        format: FORMAT,
        machine: MACHINE_VERSION,
        record_schema: segment.facts.record_schema,
        digest_schema: segment.facts.digest_schema,
        installation: 7,
        boot: segment.facts.first.boot(),
        first: segment.facts.first,
        build: "test".into(),
    }
}

pub(super) fn write(folder: &Path, segment: &Segment) -> PathBuf {
    let tell = Box::new(|_| ());
    let header = header(segment);
    let mut journal =
        Journal::begin(Arc::new(OsDisk), folder, &header, &segment.snapshot, Sync::Group, tell).unwrap();
    for (number, body) in &segment.records {
        let mut bytes = Vec::new();
        frame::encode(Kind::Record, *number, body, &mut bytes);
        journal.append(&bytes, *number).unwrap();
    }
    journal.close().unwrap();
    folder.join(segment::file_name(segment.facts.first))
}

fn written() -> (tempfile::TempDir, Tape, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let mut tape = tape();
    // As the daemon names them: a boot's segment by the boot's first record.
    tape.segments[0].facts.first = tape.segments[0].records[0].0;
    tape.segments[2].facts.first = tape.segments[2].records[0].0;
    let paths = tape.segments.iter().map(|segment| write(folder.path(), segment)).collect();
    (folder, tape, paths)
}

/// Where the frame of the n-th record begins.
fn offset(path: &Path, n: usize) -> usize {
    let mut reader = SegmentReader::open(path).unwrap();
    let mut seen = 0;
    loop {
        let frame = reader.next_frame().unwrap().unwrap();
        if frame.kind == Kind::Record {
            if seen == n {
                return usize::try_from(frame.offset).unwrap();
            }
            seen += 1;
        }
    }
}

#[test]
fn a_folder_that_the_writer_wrote_replays_without_a_divergence() {
    let (folder, tape, paths) = written();
    let report = verify(folder.path()).unwrap();
    assert_eq!(report.to_string(), "replay: 16 records, 0 divergences");
    assert_eq!((report.segments, report.gaps), (3, 0));
    assert_eq!(verify(&paths[1]).unwrap().records, tape.segments[1].records.len() as u64);

    let loaded = load(folder.path()).unwrap().unwrap();
    assert_eq!(loaded.divergence, None);
    assert_eq!(loaded.machine.state().to_parts(), tape.machine.state().to_parts());

    let last = state_at(folder.path(), None).unwrap();
    assert_eq!(last.state().to_parts(), tape.machine.state().to_parts());
    for (number, _) in &tape.segments[1].records {
        let state = state_at(folder.path(), Some(*number)).unwrap();
        assert_eq!(state.state().core().record, *number, "the state is the one before the record");
    }

    let lines = why(folder.path(), &Subject::Id("m1".into())).unwrap().lines;
    assert_eq!(lines.len(), 18);
    assert!(lines[2].to_string().contains("+4.000 ms  1.5       row written, seq 2"), "{}", lines[2]);
}

#[test]
fn one_flipped_byte_under_a_right_checksum_is_named_by_record_and_field() {
    let (folder, tape, paths) = written();
    let index = place(&tape.segments[1], "message-arrived");
    let (number, body) = &tape.segments[1].records[index];
    // The last byte of the record's body is the root's highest.
    let mut body = body.clone();
    *body.last_mut().unwrap() ^= 1;
    let mut bytes = Vec::new();
    frame::encode(Kind::Record, *number, &body, &mut bytes);
    let mut file = fs::read(&paths[1]).unwrap();
    let at = offset(&paths[1], index);
    file[at..at + bytes.len()].copy_from_slice(&bytes);
    fs::write(&paths[1], file).unwrap();
    let found = verify(folder.path()).unwrap().divergence.unwrap();
    assert_eq!((found.record, found.field.as_str()), (*number, "root"));
    assert_eq!(found.class, Class::DamagedRecord);
}

#[test]
fn a_flipped_byte_in_an_older_segment_is_damage_and_names_the_place() {
    let (folder, tape, paths) = written();
    let mut file = fs::read(&paths[1]).unwrap();
    let at = offset(&paths[1], 3);
    file[at + 40] ^= 1;
    fs::write(&paths[1], file).unwrap();
    let found = verify(folder.path()).unwrap().divergence.unwrap();
    assert_eq!((found.record, found.class), (tape.segments[1].records[2].0, Class::DamagedRecord));
    assert!(found.actual.contains(&format!("at offset {at}")), "{found}");
}

#[test]
fn a_torn_tail_of_the_newest_segment_is_no_divergence_unless_it_was_durable() {
    let (folder, mut tape, paths) = written();
    let file = fs::read(&paths[2]).unwrap();
    fs::write(&paths[2], &file[..file.len() - 5]).unwrap();
    let report = verify(folder.path()).unwrap();
    assert_eq!((report.divergence.as_ref(), report.records), (None, 15));
    assert!(report.to_string().contains("a tail that was not durable yet"), "{report}");
    assert_eq!(load(folder.path()).unwrap().unwrap().records, 2);

    // The last record says that the one before it was durable; that one is damaged.
    let segment = &mut tape.segments[2];
    let second = segment.records[1].0;
    segment.replace(2, |record| record.synced_through = second);
    fs::remove_file(&paths[2]).unwrap();
    let path = write(folder.path(), segment);
    let at = offset(&path, 1);
    let mut file = fs::read(&path).unwrap();
    file[at + 30] ^= 1;
    fs::write(&path, file).unwrap();
    let found = verify(folder.path()).unwrap().divergence.unwrap();
    assert_eq!(found.class, Class::DamagedRecord);
}

#[test]
fn segments_that_overlap_after_a_rotation_cut_short_are_read_once() {
    let (folder, tape, paths) = written();
    // The first segment was not cut yet: it has the second one's records too.
    let mut older = tape.segments[0].clone();
    older.records.extend(tape.segments[1].records.clone());
    fs::remove_file(&paths[0]).unwrap();
    write(folder.path(), &older);
    let report = verify(folder.path()).unwrap();
    assert_eq!((report.divergence, report.records, report.gaps), (None, 16, 0));
}

#[test]
fn a_newest_segment_without_its_snapshot_is_left_out_and_named() {
    let (folder, _, paths) = written();
    let file = fs::read(&paths[2]).unwrap();
    fs::write(&paths[2], &file[..60]).unwrap();
    let report = verify(folder.path()).unwrap();
    assert_eq!((report.divergence.as_ref(), report.records), (None, 13));
    assert!(report.to_string().contains("was begun and never used"), "{report}");
    assert_eq!(load(folder.path()).unwrap().unwrap().records, 10);
}

#[test]
fn a_folder_without_segments_is_an_error_for_verify_and_nothing_to_load() {
    let folder = tempfile::tempdir().unwrap();
    let error = verify(folder.path()).unwrap_err();
    assert!(matches!(error, ReplayError::Empty { .. }));
    assert!(error.hint().contains(".ltj"));
    assert!(load(folder.path()).unwrap().is_none());
    assert!(verify(&folder.path().join("none.ltj")).is_err());
}

#[test]
fn a_body_that_was_encoded_again_is_the_same_body() {
    let tape = tape();
    for (_, body) in tape.segments.iter().flat_map(|segment| &segment.records) {
        let record = decode_record(1, body).unwrap();
        let mut again = Vec::new();
        encode_record(&record, &mut again).unwrap();
        assert_eq!(&again, body);
        assert_eq!(record.synced_through, RecordNo(0));
    }
}
