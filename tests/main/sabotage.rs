//! What is wrong with a journal, or with the machine, is named: the record, the field, and the class.
//!
//! `fixtures/damaged` keeps a few of these journals; `cargo test --test main damage_journals_anew -- --ignored` makes them
//! anew.

#![cfg_attr(feature = "sabotage", allow(dead_code, unused_imports))] // Most of this is about the right build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lamplighter::journal::frame::Kind;
use lamplighter::journal::segment::SegmentReader;
use serde_json::Value;

use crate::support::{lamplighter, segments, text};

/// A frame of a segment: what it holds, the record that it belongs to, where it begins and ends.
struct Frame {
    kind: Kind,
    record: String,
    from: usize,
    to: usize,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The one segment of a recorded run.
fn segment(name: &str) -> PathBuf {
    segments(&fixtures().join("journals").join(name)).remove(0)
}

fn frames(path: &Path) -> Vec<Frame> {
    let mut reader = SegmentReader::open(path).unwrap();
    let mut found = Vec::new();
    loop {
        let (kind, record, from) = match reader.next_frame().unwrap() {
            Some(frame) => (frame.kind, frame.number.to_string(), frame.offset as usize),
            None => return found,
        };
        found.push(Frame { kind, record, from, to: reader.offset() as usize });
    }
}

fn replay(path: &Path) -> Output {
    Command::new(lamplighter()).args(["replay", "--json"]).arg(path).output().unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)))
}

/// The segment with some of its bytes changed, under its own name.
fn changed(from: &Path, change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(from.file_name().unwrap());
    let mut bytes = fs::read(from).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

const RUN: &str = "crash-in-mid-turn";

#[cfg(not(feature = "sabotage"))]
#[test]
fn a_flipped_byte_in_each_region_of_a_segment_is_named_by_its_class() {
    let from = segment(RUN);
    let frames = frames(&from);
    let records: Vec<&Frame> = frames.iter().filter(|it| it.kind == Kind::Record).collect();
    let snapshot = frames.iter().find(|it| it.kind == Kind::Snapshot).unwrap();
    let body = frames.iter().find(|it| it.kind == Kind::Body).expect("no text in the journal");
    let end = frames.iter().find(|it| it.kind == Kind::SnapshotEnd).unwrap();
    // Region, place, exit code and class; a header that is no header leaves nothing to replay.
    let magic = 0;
    let header = 20;
    for (region, place) in [("magic", magic), ("header", header)] {
        let (_folder, path) = changed(&from, |bytes| bytes[place] ^= 1);
        let output = replay(&path);
        assert_eq!(output.status.code(), Some(2), "{region}: {}", text(&output.stdout));
        assert!(
            text(&output.stderr).contains("is not a journal segment"),
            "{region}: {}",
            text(&output.stderr)
        );
    }
    let middle = records[records.len() / 2];
    let inside = |frame: &Frame| (frame.from, frame.from + 5, frame.from + 9, frame.from + 14, frame.to - 1);
    for (region, frame) in
        [("snapshot", snapshot), ("snapshot's end", end), ("text", body), ("record", middle)]
    {
        let (magic, length, checksum, number, last) = inside(frame);
        for place in [magic, length, checksum, number, last] {
            let (_folder, path) = changed(&from, |bytes| bytes[place] ^= 1);
            let output = replay(&path);
            let found = report(&output);
            assert_eq!(output.status.code(), Some(1), "{region} at {place}: {found}");
            assert_eq!(found["divergence"]["class"], "damaged record", "{region} at {place}: {found}");
            let said = found["divergence"]["replayed"].as_str().unwrap();
            assert!(said.contains(&format!("offset {}", frame.from)), "{region} at {place}: {said}");
        }
    }
    // The last record was never called durable: it may be missing, and is reported as a tail.
    let last = records[records.len() - 1];
    let (_folder, path) = changed(&from, |bytes| bytes[last.to - 1] ^= 1);
    let output = replay(&path);
    let found = report(&output);
    assert_eq!(output.status.code(), Some(0), "{found}");
    assert!(found["tail"].as_str().unwrap().contains("not durable yet"), "{found}");
    assert_eq!(found["records"], records.len() as u64 - 1);
}

#[cfg(not(feature = "sabotage"))]
#[test]
fn a_record_that_was_taken_out_is_missed_where_it_stood() {
    let from = segment(RUN);
    let frames = frames(&from);
    let records: Vec<&Frame> = frames.iter().filter(|it| it.kind == Kind::Record).collect();
    for n in [0, records.len() / 2, records.len() - 2] {
        let (_folder, path) = changed(&from, |bytes| drop(bytes.drain(records[n].from..records[n].to)));
        let output = replay(&path);
        let found = report(&output);
        assert_eq!(output.status.code(), Some(1), "{found}");
        let divergence = &found["divergence"];
        assert_eq!(divergence["class"], "input missing", "{found}");
        assert_eq!(divergence["record"], records[n + 1].record, "{found}");
        assert_eq!(divergence["field"], "number", "{found}");
        assert_eq!(found["records"], n as u64 + u64::from(divergence["input"] != ""), "{found}");
    }
}

/// What one wrong line of the machine does to a journal: the feature makes the wait after a crash 1 ms longer.
#[cfg(feature = "sabotage")]
#[test]
fn one_wrong_line_of_the_machine_is_named_by_record_and_field() {
    use lamplighter::journal::record::{RECORD_SCHEMA, decode_record};
    use lamplighter::machine::effect::{Effect, InboundChange};

    let from = segment(RUN);
    let mut reader = SegmentReader::open(&from).unwrap();
    let mut wrong = None;
    while let Some(frame) = reader.next_frame().unwrap() {
        if frame.kind != Kind::Record || wrong.is_some() {
            continue;
        }
        let record = decode_record(RECORD_SCHEMA, frame.body).unwrap();
        wrong = record.effects.iter().enumerate().find_map(|(index, effect)| match effect {
            Effect::UpdateInbound {
                change: InboundChange::Reschedule { process_after: Some(wall), .. },
                ..
            } => Some((record.number.to_string(), index, wall.0)),
            _ => None,
        });
    }
    let (record, index, wall) = wrong.expect("no message is rescheduled");
    let output = replay(&from);
    let found = report(&output);
    assert_eq!(output.status.code(), Some(1), "{found}");
    let divergence = &found["divergence"];
    assert_eq!(divergence["record"], record, "{found}");
    assert_eq!(divergence["class"], "code changed", "{found}");
    let field = divergence["field"].as_str().unwrap();
    assert!(field.starts_with(&format!("effects[{index}](update-inbound).change.process_after")), "{field}");
    let value = |side: &str| {
        divergence[side].as_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).to_owned()
    };
    assert_eq!(value("recorded"), wall.to_string(), "{found}");
    assert_eq!(value("replayed"), (wall + 1_000).to_string(), "{found}");
    // Where nothing is tried again nothing is different.
    assert_eq!(replay(&segment("duplicate-message")).status.code(), Some(0));
}

/// A message makes the machine panic: nothing is done that is not on record, and the next start goes on.
#[cfg(feature = "sabotage")]
#[test]
fn after_a_panic_the_input_is_on_record_and_the_next_start_goes_on() {
    use lamplighter::journal::record::{Outcome, RECORD_SCHEMA, decode_record};
    use lamplighter::machine::input::Input;

    use crate::support::Daemon;

    let mut daemon = Daemon::start("");
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    client.upto("settled", "m1");
    client.say("m2", "/panic").unwrap();
    assert_eq!(daemon.ends(), Some(70), "{}", daemon.log());
    assert!(client.line().is_none_or(|line| line["type"] != "accepted"), "nobody may take it for accepted");
    let journal = daemon.data().canonicalize().unwrap().join("journal");
    let replay = format!("lamplighter replay {}", journal.display());
    assert!(daemon.log().contains(&replay), "{}", daemon.log());

    let mut reader = SegmentReader::open(segments(&journal).last().unwrap()).unwrap();
    let mut last = None;
    while let Ok(Some(frame)) = reader.next_frame() {
        if frame.kind == Kind::Record {
            last = Some(decode_record(RECORD_SCHEMA, frame.body).unwrap());
        }
    }
    let last = last.expect("there is no record");
    assert_eq!(last.outcome, Outcome::Panicked);
    assert!(matches!(&last.input, Input::MessageArrived(it) if it.message_id == "m2"), "{:?}", last.input);
    assert!(last.effects.is_empty());
    // The command that it names plays up to it, panics where the daemon did, and says so.
    let output = replay_of(&journal);
    let (said, shown) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.contains(", 0 divergences"), "{said}{shown}");
    assert!(shown.contains("sabotaged: a message asks for it"), "{shown}");

    daemon.again();
    let mut client = daemon.client("main");
    client.say("m3", "and now?").unwrap();
    assert_eq!(client.upto("settled", "m3").0["outcome"], "completed");
    daemon.stop();
}

#[cfg(feature = "sabotage")]
fn replay_of(journal: &Path) -> Output {
    Command::new(lamplighter()).arg("replay").arg(journal).output().unwrap()
}

/// Name, what is done to the segment, exit code and what is said.
type Damage = (&'static str, fn(&mut Vec<u8>, &[Frame]), i32, &'static str);

const DAMAGED: [Damage; 5] = [
    (
        "corrupt-header",
        |bytes, _| bytes[20] ^= 1,
        2,
        "is not a journal segment: its header's checksum is wrong",
    ),
    ("corrupt-snapshot", |bytes, frames| bytes[frames[0].to - 1] ^= 1, 1, "the checksum is wrong"),
    (
        "damaged-record",
        |bytes, frames| bytes[frames[frames.len() / 2].to - 1] ^= 1,
        1,
        "the checksum is wrong",
    ),
    ("damaged-gap", |bytes, frames| drop(bytes.drain(frames[6].from..frames[7].to)), 1, "input missing"),
    ("torn-tail", |bytes, frames| bytes.truncate(frames[frames.len() - 1].to - 3), 0, "not durable yet"),
];

#[test]
#[ignore = "makes the damaged journals anew"]
fn damage_journals_anew() {
    let from = segment(RUN);
    for (name, damage, ..) in DAMAGED {
        let mut bytes = fs::read(&from).unwrap();
        damage(&mut bytes, &frames(&from));
        let folder = fixtures().join("damaged").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(from.file_name().unwrap()), bytes).unwrap();
    }
}

#[cfg(not(feature = "sabotage"))]
#[test]
fn damaged_journals_are_refused_in_words_that_name_the_place_and_the_way_out() {
    for (name, _, code, said) in DAMAGED {
        let folder = fixtures().join("damaged").join(name);
        let output = Command::new(lamplighter()).arg("replay").arg(&folder).output().unwrap();
        let all = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{name}: {all}");
        assert!(all.contains(said), "{name}: {all}");
    }
}
