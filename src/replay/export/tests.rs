//! Every recorded journal, in every form.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::html::write_bounded;
use super::{Choice, ExportError, Form, export};
use crate::base::{At, BootNo, EffectId, Ms, OsDisk, RecordNo, SessionNo};
use crate::journal::frame::{self, Kind};
use crate::journal::record::{DIGEST_SCHEMA, RECORD_SCHEMA};
use crate::journal::segment::{FORMAT, Header};
use crate::journal::wire::recorder::Recorder;
use crate::journal::wire::snapshot::encode_snapshot;
use crate::journal::writer::{Journal, Sync};
use crate::machine::effect::Effect;
use crate::machine::input::*;
use crate::machine::policy::Policy;
use crate::machine::{MACHINE_VERSION, Machine};
use crate::replay::verify;
use crate::session::rows::Address;

fn journals() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals");
    let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 13, "looked at only {} journals", all.len());
    all
}

fn exported(path: &Path, form: Form, session: Option<&str>) -> String {
    let mut out = Vec::new();
    export(path, form, session, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn journal(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals").join(name)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The data of a page, and the page without it.
fn data_of(page: &str) -> (Value, String) {
    let begin = "<script type=\"application/json\" id=\"data\">";
    let (before, rest) = page.split_once(begin).unwrap();
    let (data, after) = rest.split_once("</script>").unwrap();
    (serde_json::from_str(data).unwrap(), format!("{before}{after}"))
}

#[test]
fn every_record_is_one_line() {
    for path in journals() {
        let found = lines(&exported(&path, Form::Jsonl, None));
        let records: Vec<&Value> = found.iter().filter(|line| line.get("record").is_some()).collect();
        assert_eq!(records.len() as u64, verify(&path).unwrap().records, "{}", path.display());
        for line in &records {
            assert!(line["at_us"].is_i64() && line["input"].is_string() && line["effects"].is_array());
            assert!(line.get("divergence").is_none(), "{line}");
            let touched = line["touched"].as_array().unwrap();
            assert!(touched.iter().all(Value::is_string) && touched[0] == "Core", "{line}");
        }
    }
}

#[test]
fn a_line_names_what_it_is_about_as_other_commands_do() {
    let found = lines(&exported(&journal("crash-in-mid-turn"), Form::Jsonl, None));
    let line = |record: &str| found.iter().find(|line| line["record"] == record).unwrap();
    let arrival = line("1.4");
    assert_eq!((&arrival["input"], &arrival["at"]), (&"message-arrived".into(), &"00:00:00.004".into()));
    assert_eq!(arrival["details"]["message_id"], "m1");
    assert_eq!(arrival["session"]["number"], "s1");
    assert!(arrival["session"]["name"].as_str().unwrap().contains("/sess-"));
    let exited = line("1.13");
    assert_eq!(exited["details"]["exit"]["Code"], 3);
    assert_eq!(exited["details"]["attempt"], "1.6");
    let delivery =
        line("1.24")["effects"].as_array().unwrap().iter().find(|it| it["name"] == "deliver").unwrap();
    assert_eq!((&delivery["id"], &delivery["details"]["key"]), (&"1.24.2".into(), &"1.24.2".into()));
}

#[test]
fn one_session_can_be_chosen_and_an_unknown_one_is_an_error() {
    let path = journal("slots-full");
    let all = lines(&exported(&path, Form::Jsonl, None)).len();
    let own = lines(&exported(&path, Form::Jsonl, Some("s2")));
    assert!(!own.is_empty() && own.len() < all);
    let (data, _) = data_of(&exported(&path, Form::Html, Some("s2")));
    let records = own.iter().filter(|line| line.get("record").is_some()).count();
    assert_eq!(data["records"].as_array().unwrap().len(), records);
    assert!(data["spans"].as_array().unwrap().iter().all(|span| span[1] == 2));
    let trace: Value = serde_json::from_str(&exported(&path, Form::Perfetto, Some("s2"))).unwrap();
    check_trace(&trace, "slots-full, s2");
    for form in [Form::Jsonl, Form::Perfetto, Form::Html] {
        let found = export(&path, form, Some("s9"), &mut Vec::new());
        assert!(matches!(found, Err(ExportError::NoSession(name)) if name == "s9"));
    }
}

/// Begins and ends pair up, arrows have both ends, times never go back, lanes have names.
fn check_trace(trace: &Value, what: &str) -> BTreeMap<String, usize> {
    let (mut stacks, mut arrows) = (BTreeMap::<String, Vec<String>>::new(), BTreeMap::<u64, u32>::new());
    let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
    let mut counts = BTreeMap::new();
    let mut last = i64::MIN;
    for event in trace["traceEvents"].as_array().unwrap() {
        let phase = event["ph"].as_str().unwrap();
        *counts.entry(phase.to_owned()).or_default() += 1;
        let lane = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        if phase == "M" {
            named.insert((lane, event["name"].as_str().unwrap().to_owned()));
            continue;
        }
        used.insert(lane);
        let ts = event["ts"].as_i64().unwrap();
        assert!(ts >= last, "{what}: time goes back: {event}");
        last = ts;
        let name = event["name"].as_str().unwrap().to_owned();
        let key = match phase {
            "B" | "E" => format!("{lane:?}"),
            "b" | "e" => format!("{} {} {}", lane.0, event["cat"], event["id"]),
            _ => String::new(),
        };
        match phase {
            "B" | "b" => stacks.entry(key).or_default().push(name),
            "E" | "e" => assert_eq!(stacks.get_mut(&key).and_then(Vec::pop), Some(name), "{what}: {event}"),
            "s" => assert_eq!(arrows.insert(event["id"].as_u64().unwrap(), 1), None, "{what}: {event}"),
            "f" => assert_eq!(arrows.insert(event["id"].as_u64().unwrap(), 2), Some(1), "{what}: {event}"),
            "X" => assert_eq!(event["dur"], 1),
            "i" => assert!(event["s"].is_string()),
            other => panic!("{what}: unknown phase {other}"),
        }
    }
    assert!(stacks.values().all(Vec::is_empty), "{what}: not ended: {stacks:?}");
    assert!(arrows.values().all(|ends| *ends == 2), "{what}: arrows without an end: {arrows:?}");
    for (pid, tid) in used {
        assert!(named.contains(&((pid, 0), "process_name".into())), "{what}: process {pid} has no name");
        assert!(
            named.contains(&((pid, tid), "thread_name".into())),
            "{what}: thread {pid}/{tid} has no name"
        );
    }
    counts
}

#[test]
fn every_trace_is_well_formed() {
    let mut all = BTreeMap::<String, usize>::new();
    for path in journals() {
        let trace: Value = serde_json::from_str(&exported(&path, Form::Perfetto, None)).unwrap();
        let counts = check_trace(&trace, &path.display().to_string());
        assert_eq!(counts["i"] as u64, verify(&path).unwrap().records, "{}", path.display());
        for (phase, count) in counts {
            *all.entry(phase).or_default() += count;
        }
    }
    // What a rule above never saw, it did not check.
    for phase in ["B", "E", "b", "e", "s", "f", "X", "i", "M"] {
        assert!(all.get(phase).is_some_and(|count| *count > 10), "{phase}: {all:?}");
    }
}

#[test]
fn a_crash_is_two_containers_two_turns_and_one_answer() {
    let text = exported(&journal("crash-in-mid-turn"), Form::Perfetto, None);
    let trace: Value = serde_json::from_str(&text).unwrap();
    let counts = check_trace(&trace, "crash");
    // Two turns and one delivery, each with an outer span that names its track.
    assert_eq!((counts["B"], counts["b"], counts["s"]), (2, 6, 1));
    let events = trace["traceEvents"].as_array().unwrap();
    let how = |kind: &str, phase: &str| -> Vec<String> {
        let own = events.iter().filter(|it| it["cat"] == kind && it["ph"] == phase);
        own.filter_map(|it| Some(it["args"]["how"].as_str()?.to_owned())).collect()
    };
    assert_eq!(how("container", "E")[0], "gone (code 3)");
    assert_eq!(how("turn", "e"), ["ended without a result, queued again", "completed"]);
    assert!(how("delivery", "e")[0].starts_with("delivered as "));
}

#[test]
fn every_page_stands_alone_and_has_every_record() {
    for path in journals() {
        let page = exported(&path, Form::Html, None);
        let (data, rest) = data_of(&page);
        let records = data["records"].as_array().unwrap();
        assert_eq!(records.len() as u64, verify(&path).unwrap().records, "{}", path.display());
        assert_eq!(data["detailsEnd"], Value::Null);
        for outside in
            ["http:", "https:", "url(", "src=", "@import", "innerHTML", "@DATA@", "@STYLE@", "@SCRIPT@"]
        {
            assert!(!rest.contains(outside), "the page names {outside}");
        }
        let texts = data["texts"].as_array().unwrap().len() as u64;
        assert!(records.iter().all(|record| record[2].as_u64().unwrap() < texts));
        assert!(data["spans"].as_array().unwrap().iter().all(|span| span.as_array().unwrap().len() == 11));
    }
}

#[test]
fn a_page_with_bounds_says_what_is_left_out() {
    let path = journal("crash-in-mid-turn");
    let bounded = |records, details| {
        let mut out = Vec::new();
        let choice = &mut Choice { session: None, seen: true };
        write_bounded(&path, choice, &mut out, records, details).unwrap();
        data_of(&String::from_utf8(out).unwrap()).0
    };
    let few = bounded(10, u64::MAX);
    assert_eq!((few["records"].as_array().unwrap().len(), &few["recordsLeftOut"]), (10, &21.into()));
    let bare = bounded(100, 2_000);
    assert_eq!(bare["records"].as_array().unwrap().len(), 31);
    assert!(bare["detailsEnd"].is_string());
    assert_eq!(bare["records"][30][4], Value::Null);
}

/// A journal made by leading the machine, as a host would.
struct Made {
    machine: Machine,
    recorder: Recorder,
    at: At,
    frames: Vec<u8>,
    records: usize,
    last: RecordNo,
}

impl Made {
    fn step(&mut self, after: i64, input: Input) -> Vec<(EffectId, Effect)> {
        self.at = At(self.at.0 + after);
        self.recorder.note(&self.machine, self.at, &input);
        let turn = self.machine.step(self.at, input);
        let body = self.recorder.record(&self.machine, &turn, RecordNo(0)).unwrap();
        frame::encode(Kind::Record, turn.record, body, &mut self.frames);
        self.records += 1;
        self.last = turn.record;
        turn.effects().map(|(id, effect)| (id, effect.clone())).collect()
    }

    fn drain(&mut self, mut open: Vec<(EffectId, Effect)>) {
        while let Some((effect, it)) = open.pop() {
            let (after, input) = match it {
                Effect::WriteInbound { .. } => {
                    (900, Input::InboundWritten { effect, seq: 2, duplicate: false })
                }
                Effect::StartContainer { .. } => (180_000, Input::ContainerStarted { effect }),
                Effect::Deliver { .. } => (40_000, Input::Delivered { effect, platform_id: None }),
                Effect::CreateSession { .. }
                | Effect::UpdateInbound { .. }
                | Effect::RecordDelivery { .. }
                | Effect::ProjectDestinations { .. } => (700, Input::EffectDone { effect, error: None }),
                _ => continue,
            };
            let more = self.step(after, input);
            open.extend(more);
        }
    }

    fn message(&mut self, n: u64, chats: u64, text: &str) {
        let chat = format!("chat:c{}", n * 7 % chats);
        let body = crate::journal::body::Text { digest: n, text };
        let mut bytes = Vec::new();
        assert!(crate::journal::body::encode(body, &mut bytes));
        frame::encode(Kind::Body, self.last.next(), &bytes, &mut self.frames);
        let arrival = Arrival {
            channel: "chat".into(),
            receipt: n,
            chat: chat.clone(),
            thread: None,
            message_id: format!("m{n}"),
            facts: TextFacts { bytes: 20, digest: n, ..TextFacts::default() },
        };
        let effects = self.step(300_000, Input::MessageArrived(arrival));
        self.drain(effects);
        let state = self.machine.state();
        let session = state.directory().chats[&("chat".to_owned(), chat.clone())];
        let message = *state.session(session).unwrap().inbox.iter().next_back().unwrap();
        let ack = |status, mark| vec![(message, Some(AckFound { status, mark }))];
        let claim = Rows { acks: ack(Ack::Processing, n), ..Rows::default() };
        let effects = self.step(90_000, Input::OutboundRead { session, reading: Reading::Rows(claim) });
        self.drain(effects);
        let row = OutRow {
            rowid: i64::try_from(n).unwrap() + 1,
            id: format!("r{n}"),
            kind: OutKind::Message,
            to: Address::new("chat", &chat, None),
            in_reply_to: None,
            not_before: None,
            settled: false,
            files: false,
            digest: n,
        };
        let done = Rows { rows: vec![row], acks: ack(Ack::Completed, n + 1), ..Rows::default() };
        let effects = self.step(1_400_000, Input::OutboundRead { session, reading: Reading::Rows(done) });
        self.drain(effects);
    }

    /// A crash in a turn, told by the exit of the container.
    fn exit(&mut self, session: SessionNo, code: i32) {
        let attempt = self.machine.state().session(session).and_then(|it| it.phase.alive());
        if let Some(attempt) = attempt {
            let exit = Exit::Code(code);
            let effects = self.step(30_000, Input::ContainerExited { session, attempt, exit });
            let looks = effects.iter().find(|(_, it)| matches!(it, Effect::Look { .. })).map(|(id, _)| *id);
            self.drain(effects);
            if let Some(effect) = looks {
                let reading = Reading::Rows(Rows::default());
                let look =
                    Input::Looked { effect, session, heartbeat_changed: false, alive: Some(false), reading };
                let effects = self.step(2_000, look);
                self.drain(effects);
            }
        }
    }
}

fn make(folder: &Path, records: usize, text: &str) {
    let machine = Machine::default();
    let recorder = Recorder::new(machine.state());
    let snapshot = encode_snapshot(&machine.state().to_parts(), recorder.root(), recorder.causes());
    let (first, frames) = (RecordNo::first_of(BootNo(1)), Vec::new());
    let mut made = Made { machine, recorder, at: At(0), frames, records: 0, last: first };
    let booted = Booted {
        boot: BootNo(1),
        build: "test".into(),
        policy: Policy { slots: 200, ..Policy::default() },
        group: "main".into(),
        offset: 1_700_000_000_000_000,
        downtime: Ms(0),
    };
    made.step(0, Input::Booted(booted));
    made.step(100, Input::ContainersFound { alive: Vec::new(), adoptable: false });
    made.step(100, Input::ChannelUp { channel: "chat".into(), chat: None, idempotent: true });
    let mut n = 1;
    while made.records < records {
        made.message(n, 24, text);
        if n.is_multiple_of(17) {
            let sessions = made.machine.state().sessions().len() as u64;
            made.exit(SessionNo(u32::try_from(n % sessions).unwrap() + 1), i32::from(n.is_multiple_of(2)));
        }
        n += 1;
    }
    let header = Header {
        format: FORMAT,
        machine: MACHINE_VERSION,
        record_schema: RECORD_SCHEMA,
        digest_schema: DIGEST_SCHEMA,
        installation: 1,
        boot: BootNo(1),
        first,
        build: "test".into(),
    };
    let tell = Box::new(|_| ());
    let mut journal = Journal::begin(Arc::new(OsDisk), folder, &header, &snapshot, Sync::None, tell).unwrap();
    journal.append(&made.frames, made.last).unwrap();
    journal.close().unwrap();
}

#[test]
fn a_text_cannot_leave_the_data_of_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let text = "</script><script>alert(1)</script><!-- \u{2028} \"quoted\" \\ done";
    make(folder.path(), 40, text);
    let page = exported(folder.path(), Form::Html, None);
    let (data, rest) = data_of(&page);
    assert!(!rest.contains("alert(1)"));
    assert!(data["texts"].as_array().unwrap().iter().any(|it| it == text), "the text is there, whole");
    let found = lines(&exported(folder.path(), Form::Jsonl, None));
    assert!(found.iter().any(|line| line["text"] == text && line["digest"] == "0000000000000001"));
    let trace: Value = serde_json::from_str(&exported(folder.path(), Form::Perfetto, None)).unwrap();
    check_trace(&trace, "made");
}

/// For scripts/picture, and for looking at a long journal by hand: writes one of `LAMPLIGHTER_MAKE_RECORDS` records
/// into the folder `LAMPLIGHTER_MAKE_JOURNAL`.
#[test]
#[ignore = "writes a journal where it is told to"]
fn make_a_long_journal() {
    let folder =
        std::env::var_os("LAMPLIGHTER_MAKE_JOURNAL").expect("LAMPLIGHTER_MAKE_JOURNAL names a folder");
    let records = std::env::var("LAMPLIGHTER_MAKE_RECORDS").map_or(50_000, |text| text.parse().unwrap());
    make(Path::new(&folder), records, "What is the state of the house?");
}
