//! Fixtures cut out of the journal of a real run: redacted ones, those of one session, and those written anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lamplighter::journal::frame::Kind;
use lamplighter::journal::record::{RECORD_SCHEMA, decode_record, encode_record};
use lamplighter::journal::segment::{SegmentFile, SegmentReader};
use lamplighter::machine::effect::Effect;

use crate::support::{Daemon, lamplighter, segments, text};

fn run(args: &[&str]) -> Output {
    Command::new(lamplighter()).args(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn bytes_of(folder: &Path) -> Vec<u8> {
    segments(folder).iter().flat_map(|path| fs::read(path).unwrap()).collect()
}

fn holds(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|it| it == word.as_bytes())
}

/// A run with a crash, two chats and words that are nowhere else, ended.
fn family() -> Daemon {
    let mut daemon = living_family();
    daemon.stop();
    daemon
}

/// The same, still running.
fn living_family() -> Daemon {
    let rules =
        "{ pattern = \"boom\", crash = 3, once = true }, { pattern = \".\", reply = \"zucchini soup\" }";
    let config = format!(
        "[agent]\nname = \"Gerlinde\"\nfolder = \"verwandte\"\nmock = {{ rules = [{rules}] }}\n\
         [policy]\nclaim_backoff = \"50ms\"\nstart_backoff = \"20ms\"\n"
    );
    let daemon = Daemon::start(&config);
    for (chat, id, said) in
        [("oma-kueche", "id-7777", "boom und secret-words"), ("tante-flur", "id-8888", "hortensien giessen")]
    {
        let mut client = daemon.client(chat);
        client.say(id, said).unwrap();
        client.upto("settled", id);
    }
    daemon
}

const OMA: [&str; 5] = ["oma-kueche", "kueche", "id-7777", "secret-words", "boom"];
const TANTE: [&str; 5] = ["tante-flur", "flur", "id-8888", "hortensien", "giessen"];
const SHARED: [&str; 3] = ["verwandte", "zucchini", "Gerlinde"];

#[test]
fn a_redacted_fixture_replays_to_the_same_decisions_and_holds_no_name_id_or_text() {
    let daemon = family();
    let journal = daemon.data().join("journal");
    let session = daemon.data().join("sessions/verwandte");
    let names: Vec<String> = fs::read_dir(session)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), 2);
    let into = tempfile::tempdir().unwrap();
    let fixture = into.path().join("shared");
    let told = daemon.ok(&["fixture", "record", "--all", "--redact", fixture.to_str().unwrap()]);
    assert!(told.contains("4 texts"), "{told}");

    let (old, new) = (bytes_of(&journal), bytes_of(&fixture));
    for word in OMA.iter().chain(&TANTE).chain(&SHARED).copied().chain(names.iter().map(String::as_str)) {
        // The agent's name is in no record; it must not come from elsewhere either.
        assert!(holds(&old, word) || word == "Gerlinde", "{word} is not in the journal");
        assert!(!holds(&new, word), "{word} is in the redacted fixture");
    }
    let replayed = ok(&["replay", fixture.to_str().unwrap()]);
    assert_eq!(replayed.lines().last(), Some(daemon.ok(&["replay", journal.to_str().unwrap()]).trim()));
    assert_eq!(effect_names(&journal), effect_names(&fixture));
    // A stranger can ask the same question.
    let why = ok(&["why", "x1", "--journal", fixture.to_str().unwrap()]);
    assert!(!why.is_empty());
    // The same in, the same out.
    let again = into.path().join("again");
    daemon.ok(&["fixture", "record", "--all", "--redact", again.to_str().unwrap()]);
    assert_eq!(new, bytes_of(&again));
}

/// For each record of a journal folder its time and the names of its effects.
fn effect_names(folder: &Path) -> Vec<(u64, i64, Vec<&'static str>)> {
    let mut all = Vec::new();
    for path in segments(folder) {
        let mut reader = SegmentReader::open(&path).unwrap();
        while let Some(frame) = reader.next_frame().unwrap() {
            if frame.kind == Kind::Record {
                let record = decode_record(RECORD_SCHEMA, frame.body).unwrap();
                all.push((record.number.0, record.at.0, record.effects.iter().map(Effect::name).collect()));
            }
        }
    }
    all
}

#[test]
fn a_fixture_of_one_session_keeps_its_words_and_databases_and_nothing_of_others() {
    // Beside the daemon that writes all of it.
    let mut daemon = living_family();
    let into = tempfile::tempdir().unwrap();
    let fixture = into.path().join("oma");
    let told = daemon.ok(&["fixture", "record", "--session", "s1", fixture.to_str().unwrap()]);
    let bytes = bytes_of(&fixture);
    for word in OMA.iter().chain(&SHARED[..2]) {
        assert!(holds(&bytes, word), "{word} is missing");
    }
    for word in TANTE {
        assert!(!holds(&bytes, word), "{word} of the other chat is there");
    }
    ok(&["replay", fixture.to_str().unwrap()]);
    let why = ok(&["why", "id-7777", "--journal", fixture.to_str().unwrap()]);
    let own = daemon.ok(&["why", "id-7777"]);
    let common = |why: &str| {
        why.lines().take_while(|line| !line.starts_with("now")).take(20).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(common(&why), common(&own));
    daemon.stop();

    let databases: Vec<&str> = told.lines().filter(|line| line.ends_with(".db")).collect();
    assert_eq!(databases.len(), 2, "{told}");
    for (path, table) in databases.iter().zip(["messages_in", "messages_out"]) {
        let db = rusqlite::Connection::open(path).unwrap();
        let rows: i64 = db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1, "{path}");
    }
    // Nothing is written over.
    let again = daemon.run(&["fixture", "record", "--session", "s1", fixture.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(74), "{}", text(&again.stderr));
    let unknown = daemon.run(&["fixture", "record", "--session", "s9", "unused"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown.stderr));
}

#[test]
fn a_range_of_records_stands_on_its_own() {
    let daemon = family();
    let into = tempfile::tempdir().unwrap();
    let fixture = into.path().join("range");
    let range = ["fixture", "record", "--all", "--from", "1.9", "--to", "1.20", fixture.to_str().unwrap()];
    assert!(daemon.ok(&range).contains("12 records in 1 segments"));
    assert!(ok(&["replay", fixture.to_str().unwrap()]).contains("12 records, 0 divergences"));
    // Without a text, and with the same decisions.
    let silent = into.path().join("silent");
    assert!(
        daemon
            .ok(&["fixture", "record", "--all", "--no-bodies", silent.to_str().unwrap()])
            .contains(" 0 texts")
    );
    assert!(
        !holds(&bytes_of(&silent), "zucchini")
            && holds(&bytes_of(&daemon.data().join("journal")), "zucchini")
    );
    assert_eq!(effect_names(&silent), effect_names(&daemon.data().join("journal")));
    let nothing = into.path().join("nothing");
    let beyond = ["fixture", "record", "--all", "--from", "7.0", nothing.to_str().unwrap()];
    assert_eq!(daemon.run(&beyond).status.code(), Some(2));
}

/// A copy of a segment in which one record asks for something else.
fn with_another_effect(from: &Path, folder: &Path) -> PathBuf {
    let mut reader = SegmentReader::open(from).unwrap();
    let header = reader.header().clone();
    let (mut snapshot, mut frames, mut done) = (Vec::new(), Vec::new(), false);
    while let Some(frame) = reader.next_frame().unwrap() {
        match frame.kind {
            Kind::Snapshot => snapshot.push(frame.body.to_vec()),
            Kind::SnapshotEnd => {}
            Kind::Body => frames.push((Kind::Body, frame.number, frame.body.to_vec())),
            Kind::Record => {
                let mut record = decode_record(RECORD_SCHEMA, frame.body).unwrap();
                for effect in &mut record.effects {
                    if let Effect::WriteInbound { trigger, .. } = effect {
                        *trigger = !*trigger;
                        done = true;
                    }
                }
                let mut body = Vec::new();
                encode_record(&record, &mut body).unwrap();
                frames.push((Kind::Record, frame.number, body));
            }
        }
    }
    assert!(done, "no such effect in {}", from.display());
    let mut file = SegmentFile::create(folder, &header, &snapshot).unwrap();
    for (kind, number, body) in frames {
        file.append(kind, number, &body).unwrap();
    }
    file.finish().unwrap();
    folder.join(from.file_name().unwrap())
}

#[test]
fn a_fixture_is_written_anew_only_when_that_is_meant_and_the_difference_was_shown() {
    let from = segments(Path::new("fixtures/journals/crash-in-mid-turn")).remove(0);
    let folder = tempfile::tempdir().unwrap();
    let path = with_another_effect(&from, folder.path());
    let before = fs::read(&path).unwrap();
    let folder = folder.path().to_str().unwrap();

    let check = run(&["upgrade-check", "--journal", folder]);
    let told = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(1), "{told}");
    assert!(told.contains("(write-inbound).trigger"), "{told}");
    assert!(told.contains("this build decides 1 of them otherwise"), "{told}");

    let refused = run(&["fixture", "accept", folder]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stdout).unwrap().contains("(write-inbound).trigger"));
    assert_eq!(fs::read(&path).unwrap(), before);

    assert!(ok(&["fixture", "accept", "--yes", folder]).contains("written anew"));
    assert!(ok(&["replay", folder]).contains("0 divergences"));
    assert!(ok(&["upgrade-check", "--journal", folder]).contains("decides all of them"));
    assert!(ok(&["fixture", "accept", folder]).contains("no difference"));
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
}

#[test]
fn what_is_compared_can_be_limited_to_the_last_days() {
    let daemon = family();
    let journal = daemon.data().join("journal");
    let journal = journal.to_str().unwrap();
    assert_eq!(ok(&["replay", "--since", "7d", journal]), ok(&["replay", journal]));
    assert!(daemon.ok(&["upgrade-check", "--since", "1h"]).contains("decides all of them"));
    assert_eq!(daemon.run(&["upgrade-check", "--since", "soon"]).status.code(), Some(2));
}
