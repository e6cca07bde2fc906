//! Replay of segments that are kept in memory; [`disk`] reads real ones.

mod cursor;
mod disk;
mod fork;
mod retention;

use std::convert::Infallible;
use std::ops::ControlFlow;

use crate::base::{At, BootNo, EffectId, Ms, RecordNo, SessionNo};
use crate::journal::record::{DIGEST_SCHEMA, Outcome, RECORD_SCHEMA, Record, decode_record, encode_record};
use crate::journal::wire::causes::Causes;
use crate::journal::wire::digest::Digests;
use crate::journal::wire::recorder::Recorder;
use crate::journal::wire::snapshot::encode_snapshot;
use crate::machine::effect::{Effect, Refusal};
use crate::machine::input::*;
use crate::machine::policy::Policy;
use crate::machine::{Machine, Turn};
use crate::replay::fold::SegmentFacts;
use crate::replay::report::{Class, Report};
use crate::replay::{Load, Loaded, Piece, Source, Subject, load_source, verify_source, why_source};
use crate::session::rows::Address;

/// One segment in memory.
#[derive(Clone)]
struct Segment {
    facts: SegmentFacts,
    snapshot: Vec<Vec<u8>>,
    records: Vec<(RecordNo, Vec<u8>)>,
}

impl Segment {
    fn record(&self, index: usize) -> Record {
        decode_record(RECORD_SCHEMA, &self.records[index].1).unwrap()
    }

    fn replace(&mut self, index: usize, change: impl FnOnce(&mut Record)) {
        let mut record = self.record(index);
        change(&mut record);
        encode_record(&record, &mut self.records[index].1).unwrap();
    }
}

/// Segments in memory, read like those of a folder.
struct Memory(Vec<Segment>);

impl Source for Memory {
    type Error = Infallible;

    fn read(&mut self, take: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>) -> Result<(), Infallible> {
        for segment in &self.0 {
            let snapshot = segment.snapshot.iter().map(|part| Piece::Snapshot(part));
            let records = segment.records.iter().map(|(number, body)| Piece::Record(*number, body));
            for piece in std::iter::once(Piece::Segment(segment.facts)).chain(snapshot).chain(records) {
                if take(piece).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn verify(segments: &[Segment]) -> Report {
    let Ok(report) = verify_source(&mut Memory(segments.to_vec()));
    report
}

fn load(segments: &[Segment]) -> Loaded {
    match load_source(&mut Memory(segments.to_vec())) {
        Ok(Load::Loaded(loaded)) => *loaded,
        Ok(other) => panic!("{other:?}"),
    }
}

/// A machine whose steps are recorded.
struct Tape {
    machine: Machine,
    recorder: Recorder,
    at: At,
    segments: Vec<Segment>,
}

impl Tape {
    fn new() -> Self {
        let machine = Machine::default();
        let recorder = Recorder::new(machine.state());
        let mut tape = Self { machine, recorder, at: At(0), segments: Vec::new() };
        tape.rotate();
        tape
    }

    fn rotate(&mut self) {
        let state = self.machine.state();
        let facts = SegmentFacts {
            first: state.core().record,
            record_schema: RECORD_SCHEMA,
            digest_schema: DIGEST_SCHEMA,
        };
        let snapshot = encode_snapshot(&state.to_parts(), self.recorder.root(), self.recorder.causes());
        self.segments.push(Segment { facts, snapshot, records: Vec::new() });
    }

    fn step(&mut self, input: Input) {
        let _ = self.turn(input);
    }

    fn turn(&mut self, input: Input) -> Turn {
        self.at = self.at + Ms(2);
        self.recorder.note(&self.machine, self.at, &input);
        let turn = self.machine.step(self.at, input);
        let body = self.recorder.record(&self.machine, &turn, RecordNo(0)).unwrap().to_vec();
        self.segments.last_mut().unwrap().records.push((turn.record, body));
        turn
    }

    /// Steps an input and gives the id of the effect of that name which it led to.
    fn ask(&mut self, input: Input, name: &str) -> EffectId {
        let turn = self.turn(input);
        let found = turn.effects().find(|(_, effect)| effect.name() == name).map(|(id, _)| id);
        found.unwrap_or_else(|| panic!("no {name} in {:?}", turn.effects))
    }

    fn boot(&mut self, boot: u32) {
        self.step(Input::Booted(Booted {
            boot: BootNo(boot),
            build: "test".into(),
            policy: Policy::default(),
            group: "main".into(),
            offset: 1_700_000_000_000_000,
            downtime: Ms(0),
        }));
        self.step(Input::ContainersFound { alive: Vec::new(), adoptable: false });
        self.step(Input::ChannelUp { channel: "chat".into(), chat: None, idempotent: true });
    }

    /// One message from its arrival to the record of its reply.
    fn conversation(&mut self) {
        let arrival = Arrival {
            channel: "chat".into(),
            receipt: 1,
            chat: "chat:a".into(),
            thread: None,
            message_id: "m1".into(),
            facts: TextFacts { bytes: 5, ..TextFacts::default() },
        };
        let turn = self.turn(Input::MessageArrived(arrival));
        let id = |index| EffectId { record: turn.record, index };
        self.step(Input::EffectDone { effect: id(0), error: None });
        let project = self
            .ask(Input::InboundWritten { effect: id(1), seq: 2, duplicate: false }, "project-destinations");
        let start = self.ask(Input::EffectDone { effect: project, error: None }, "start-container");
        self.step(Input::ContainerStarted { effect: start });
        self.claim_and_reply();
    }

    fn claim_and_reply(&mut self) {
        let session = SessionNo(1);
        let message = *self.machine.state().inbounds().keys().next().unwrap();
        let claimed = Rows {
            acks: vec![(message, Some(AckFound { status: Ack::Processing, mark: 1 }))],
            ..Rows::default()
        };
        self.step(Input::OutboundRead { session, reading: Reading::Rows(claimed) });
        let reply = OutRow {
            rowid: 1,
            id: "r1".into(),
            kind: OutKind::Message,
            to: Address::new("chat", "chat:a", None),
            in_reply_to: None,
            not_before: None,
            settled: false,
            files: false,
            digest: 9,
        };
        let done = Rows {
            rows: vec![reply],
            acks: vec![(message, Some(AckFound { status: Ack::Completed, mark: 2 }))],
            ..Rows::default()
        };
        let turn = self.turn(Input::OutboundRead { session, reading: Reading::Rows(done) });
        let find = |name: &str| turn.effects().find(|(_, e)| e.name() == name).map(|(id, _)| id).unwrap();
        let (update, deliver) = (find("update-inbound"), find("deliver"));
        let delivered = Input::Delivered { effect: deliver, platform_id: Some("p9".into()) };
        let record = self.ask(delivered, "record-delivery");
        self.step(Input::EffectDone { effect: update, error: None });
        self.step(Input::EffectDone { effect: record, error: None });
    }
}

/// Two boots, three segments, one conversation.
fn tape() -> Tape {
    let mut tape = Tape::new();
    tape.boot(1);
    tape.rotate();
    tape.conversation();
    tape.rotate();
    tape.boot(2);
    tape
}

/// Where a record with such an input is in a segment.
fn place(segment: &Segment, name: &str) -> usize {
    (0..segment.records.len()).find(|&index| segment.record(index).input.name() == name).unwrap()
}

#[test]
fn a_recorded_session_replays_without_a_divergence() {
    let tape = tape();
    let report = verify(&tape.segments);
    assert_eq!(report.divergence, None, "{report}");
    assert_eq!((report.records, report.segments, report.gaps), (16, 3, 0));
    assert_eq!(report.to_string(), "replay: 16 records, 0 divergences");
    assert!(tape.machine.state().inbounds().is_empty());
    assert!(tape.machine.state().outbounds().is_empty());
}

#[test]
fn a_changed_effect_is_named_with_its_record_and_place() {
    let mut segments = tape().segments;
    let index = place(&segments[1], "message-arrived");
    segments[1].replace(index, |record| {
        let Effect::WriteInbound { trigger, .. } = &mut record.effects[1] else { panic!("{record:?}") };
        *trigger = false;
    });
    let report = verify(&segments);
    let found = report.divergence.unwrap();
    let record = segments[1].records[index].0;
    assert_eq!((found.record, found.field.as_str()), (record, "effects[1](write-inbound).trigger"));
    assert_eq!((found.input, found.class), ("message-arrived", Class::CodeChanged));
    assert_eq!((found.expected.as_str(), found.actual.as_str()), ("false", "true"), "{found}");
}

#[test]
fn an_effect_too_many_or_too_few_is_a_divergence() {
    let mut segments = tape().segments;
    let index = place(&segments[1], "message-arrived");
    segments[1].replace(index, |record| {
        let reason = Refusal::BadId;
        record.effects.push(Effect::RefuseInbound { channel: "chat".into(), receipt: 1, reason });
    });
    let found = verify(&segments).divergence.unwrap();
    assert_eq!((found.field.as_str(), found.actual.as_str()), ("effects[2]", "none"));
}

#[test]
fn a_flipped_digest_contradicts_its_own_root_and_counts_as_damage() {
    let mut segments = tape().segments;
    let index = place(&segments[1], "container-started");
    segments[1].replace(index, |record| record.touched[1].1 ^= 1 << 17);
    let found = verify(&segments).divergence.unwrap();
    assert_eq!(found.record, segments[1].records[index].0);
    assert_eq!((found.field.as_str(), found.class), ("touched[Session(s1)]", Class::DamagedRecord));
    assert_eq!((found.session, found.input), (Some(SessionNo(1)), "container-started"));
}

#[test]
fn a_flipped_root_is_named() {
    let mut segments = tape().segments;
    segments[1].replace(2, |record| record.root ^= 1);
    let found = verify(&segments).divergence.unwrap();
    assert_eq!((found.field.as_str(), found.class), ("root", Class::DamagedRecord));
}

#[test]
fn a_digest_that_agrees_with_its_root_but_not_with_the_machine_is_changed_code() {
    let mut tape = Tape::new();
    tape.boot(1);
    // What a build would have recorded that counts sessions from 2: the digests agree with each other.
    let mut parts = tape.machine.state().to_parts();
    parts.core.next_session = 2;
    let other = crate::machine::state::State::from_parts(parts);
    let digests = Digests::of(&other);
    let last = tape.segments[0].records.len() - 1;
    let core = crate::machine::state::ComponentId::Core;
    let mut update = Digests::of(tape.machine.state());
    let digest = update.update(&other, &[core].into())[0].1;
    tape.segments[0].replace(last, |record| {
        record.touched.iter_mut().find(|(id, _)| *id == core).unwrap().1 = digest;
        record.root = digests.root();
    });
    let found = verify(&tape.segments).divergence.unwrap();
    assert_eq!((found.field.as_str(), found.class), ("touched[Core]", Class::CodeChanged));
    assert!(found.actual.contains("next_session: 1"), "{found}");
}

#[test]
fn a_missing_record_is_an_input_missing_at_the_next_one() {
    let mut segments = tape().segments;
    segments[1].records.remove(2);
    let found = verify(&segments).divergence.unwrap();
    assert_eq!((found.record, found.field.as_str()), (segments[1].records[2].0, "number"));
    assert_eq!(found.class, Class::InputMissing);
}

#[test]
fn a_snapshot_that_does_not_follow_on_the_segment_before_is_a_divergence() {
    let mut segments = tape().segments;
    let mut parts = Machine::default().state().to_parts();
    parts.core = tape().machine.state().core().clone();
    parts.core.record = segments[1].facts.first;
    let state = crate::machine::state::State::from_parts(parts);
    segments[1].snapshot = encode_snapshot(&state.to_parts(), Digests::of(&state).root(), &Causes::default());
    let found = verify(&segments).divergence.unwrap();
    assert_eq!((found.field.as_str(), found.class), ("snapshot.root", Class::InputMissing));
    assert_eq!(found.record, segments[1].facts.first);
}

#[test]
fn a_snapshot_whose_root_is_not_that_of_its_components_is_damaged() {
    let mut segments = tape().segments;
    segments[0].snapshot = encode_snapshot(&Machine::default().state().to_parts(), 5, &Causes::default());
    let found = verify(&segments).divergence.unwrap();
    assert_eq!((found.field.as_str(), found.class), ("snapshot.root", Class::DamagedRecord));
}

#[test]
fn each_segment_replays_on_its_own_and_a_dropped_one_is_only_counted() {
    let segments = tape().segments;
    for segment in &segments {
        assert_eq!(verify(std::slice::from_ref(segment)).divergence, None);
    }
    let report = verify(&[segments[0].clone(), segments[2].clone()]);
    assert_eq!((report.divergence, report.gaps), (None, 1));
}

#[test]
fn digests_of_another_schema_are_not_compared_and_the_report_says_so() {
    let mut segments = tape().segments;
    segments[1].facts.digest_schema = DIGEST_SCHEMA + 1;
    segments[1].replace(3, |record| record.touched[0].1 ^= 1);
    segments[1].replace(4, |record| record.root ^= 1);
    let report = verify(&segments);
    assert_eq!(report.divergence, None, "{report}");
    assert!(report.to_string().contains("digests were not compared in 1 of 3 segments"), "{report}");
}

#[test]
fn records_of_another_schema_are_a_divergence_of_that_class() {
    let mut segments = tape().segments;
    segments[1].facts.record_schema = RECORD_SCHEMA + 1;
    let found = verify(&segments).divergence.unwrap();
    assert_eq!(found.class, Class::Schema);
    assert!(found.actual.contains("schema 1"), "{found}");
}

#[test]
fn a_recorded_panic_that_does_not_come_again_is_changed_code() {
    let mut tape = Tape::new();
    tape.boot(1);
    let input = Input::ShutdownAsked;
    tape.recorder.note(&tape.machine, tape.at, &input);
    let (number, body) = tape.recorder.panicked(RecordNo(0)).unwrap();
    let body = body.to_vec();
    assert_eq!(decode_record(RECORD_SCHEMA, &body).unwrap().outcome, Outcome::Panicked);
    tape.segments[0].records.push((number, body));
    let found = verify(&tape.segments).divergence.unwrap();
    assert_eq!((found.record, found.field.as_str(), found.class), (number, "step", Class::CodeChanged));
    let loaded = load(&tape.segments);
    assert_eq!(loaded.machine.state().to_parts(), tape.machine.state().to_parts());
}

#[test]
fn a_load_ends_in_the_state_that_was_recorded() {
    let tape = tape();
    let loaded = load(&tape.segments[2..]);
    assert_eq!(loaded.divergence, None);
    assert_eq!(loaded.machine.state().to_parts(), tape.machine.state().to_parts());
    assert_eq!(loaded.digests.root(), tape.recorder.root());
    assert_eq!((loaded.last_at, loaded.records), (tape.at, 3));
    assert_eq!(loaded.last_record, tape.segments[2].records.last().map(|(number, _)| *number));
    assert_eq!(loaded.last_wall.0, tape.at.0 + 1_700_000_000_000_000);
}

#[test]
fn a_load_goes_on_after_a_difference_and_reports_it() {
    let tape = tape();
    let mut segments = tape.segments.clone();
    segments[1].replace(0, |record| record.effects.clear());
    let loaded = load(&segments);
    assert_eq!(loaded.divergence.map(|found| found.field), Some("effects[0]".into()));
    assert_eq!(loaded.machine.state().to_parts(), tape.machine.state().to_parts());
}

#[test]
fn a_segment_without_its_whole_snapshot_cannot_be_loaded() {
    let mut segment = tape().segments.remove(1);
    segment.snapshot.clear();
    assert!(matches!(load_source(&mut Memory(vec![segment.clone()])), Ok(Load::Unreadable(_))));
    segment.records.clear();
    assert!(matches!(load_source(&mut Memory(vec![segment])), Ok(Load::NoSnapshot)));
}

#[test]
fn a_snapshot_of_another_schema_is_not_taken_for_an_empty_journal() {
    let mut segment = tape().segments.remove(1);
    segment.facts.record_schema = RECORD_SCHEMA + 1;
    let Ok(Load::Unreadable(found)) = load_source(&mut Memory(vec![segment])) else { panic!("taken") };
    assert_eq!(found.class, Class::Schema);
}

#[test]
fn a_snapshot_with_a_wrong_root_is_loaded_and_reported() {
    let tape = tape();
    let mut segments = tape.segments[..1].to_vec();
    segments[0].snapshot = encode_snapshot(&Machine::default().state().to_parts(), 5, &Causes::default());
    let loaded = load(&segments);
    assert_eq!(loaded.divergence.map(|found| found.field), Some("snapshot.root".into()));
    assert_eq!(loaded.records, 3);
}

#[test]
fn the_timeline_of_a_message_leads_from_its_arrival_to_the_record_of_its_reply() {
    let segments = tape().segments;
    let Ok(why) = why_source(&mut Memory(segments.clone()), &Subject::Id("m1".into()));
    assert!(why.still.is_empty(), "{:?}", why.still);
    let lines = why.lines.clone();
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    let attempt = segments[1].records[2].0;
    assert_eq!(
        texts,
        [
            "arrived on chat from chat:a, 5 bytes",
            "to be written into s1 as m1",
            "row written, seq 2",
            "accepted: its sender may forget it",
            "woken: due, slot 1 of 16; destinations are written first",
            "queued, due now",
            "destinations written",
            &format!("start of attempt {attempt} asked for"),
            &format!("container of attempt {attempt} started"),
            &format!("claimed by attempt {attempt}"),
            "reply r1 read from outbound.db",
            "reply r1 handed to its channel, try 1",
            "completed",
            "reply r1 delivered as p9",
            "its chat is told: completed",
            "row changed: completed",
            "closed",
            "on record: reply r1 delivered",
        ],
        "{lines:#?}"
    );
    assert!(lines.windows(2).all(|pair| pair[1].at.0 - pair[0].at.0 == pair[1].since_previous));
    let session = "s1".to_owned();
    for subject in [Subject::Id("m1:main".into()), Subject::Seq { session, seq: 2 }] {
        let Ok(same) = why_source(&mut Memory(segments.clone()), &subject);
        assert_eq!(same, why, "{subject:?}");
    }
}

#[test]
fn a_rotation_between_a_deadline_and_its_timer_keeps_the_timer() {
    let mut tape = Tape::new();
    let wall = |tape: &Tape, ms: i64| crate::base::Wall(tape.at.0 + 1_700_000_000_000_000 + ms * 1_000);
    tape.step(Input::Booted(Booted {
        boot: BootNo(1),
        build: "test".into(),
        policy: Policy::default(),
        group: "main".into(),
        offset: 1_700_000_000_000_000,
        downtime: Ms(0),
    }));
    let row = PendingRow {
        id: "m1".into(),
        seq: Some(2),
        trigger: true,
        tries: 0,
        due: Due::At(wall(&tape, 100)),
        origin: Address::new("chat", "chat:a", None),
    };
    tape.step(Input::SessionFound(SessionFound {
        name: crate::base::SessionName::new("main", "sess-1-aaaaaa").unwrap(),
        origin: Address::new("chat", "chat:a", None),
        pending: vec![row],
        delivered: Vec::new(),
        unreadable: None,
    }));
    let look = {
        let id = tape.machine.state().sessions()[&SessionNo(1)].look.map(|look| look.effect);
        tape.step(Input::ContainersFound { alive: Vec::new(), adoptable: false });
        id.unwrap()
    };
    let session = SessionNo(1);
    let reading = Reading::Rows(Rows::default());
    tape.step(Input::Looked { effect: look, session, heartbeat_changed: false, alive: None, reading });
    let key = crate::machine::timers::TimerKey::MessageDue(session);
    let deadline = tape.machine.state().timers().deadline(key).unwrap();
    // Another input comes before the timer, and a rotation between the two: the deadline that has passed is part of
    // what the snapshot says.
    tape.at = deadline;
    tape.step(Input::ChannelUp { channel: "chat".into(), chat: None, idempotent: true });
    tape.rotate();
    let project = tape.ask(Input::TimerDue { key, deadline }, "project-destinations");
    tape.step(Input::EffectDone { effect: project, error: None });
    let report = verify(&tape.segments);
    assert_eq!(report.divergence, None, "{report}");
}

/// How fast replay is. `cargo test --release replay_rate -- --ignored --nocapture`; the aim is 500,000
/// records/s.
#[test]
#[ignore = "a measurement, and only in a release build one that means anything"]
fn replay_rate() {
    let mut tape = Tape::new();
    tape.boot(1);
    tape.conversation();
    for n in 0..200_000u64 {
        let reading =
            Reading::Rows(Rows { tool: Some(Tool { mark: n, declared: Some(Ms(9)) }), ..Rows::default() });
        match n % 2 {
            0 => tape.step(Input::HeartbeatSeen { session: SessionNo(1) }),
            _ => tape.step(Input::OutboundRead { session: SessionNo(1), reading }),
        }
    }
    let started = std::time::Instant::now();
    let report = verify(&tape.segments);
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(report.divergence, None);
    println!("{:.0} records/s", report.records as f64 / seconds);
}

/// A tape whose last record is a step that panicked: message numbers are used up, which only overflow checks see.
#[cfg(debug_assertions)]
fn panicking() -> (Tape, RecordNo) {
    let mut tape = Tape::new();
    tape.boot(1);
    let mut parts = tape.machine.state().to_parts();
    parts.core.next_message = u64::MAX;
    tape.machine = Machine::new(crate::machine::state::State::from_parts(parts));
    tape.recorder = Recorder::new(tape.machine.state());
    tape.segments.clear();
    tape.rotate();
    tape.step(Input::ChannelDown { channel: "chat".into() });
    let input = Input::MessageArrived(Arrival {
        channel: "chat".into(),
        receipt: 1,
        chat: "chat:a".into(),
        thread: None,
        message_id: "m1".into(),
        facts: TextFacts::default(),
    });
    tape.recorder.note(&tape.machine, tape.at, &input);
    let (number, body) = tape.recorder.panicked(RecordNo(0)).unwrap();
    let record = (number, body.to_vec());
    tape.segments[0].records.push(record);
    (tape, number)
}

#[test]
#[cfg(debug_assertions)]
fn a_step_that_panics_as_recorded_is_told_and_is_no_divergence() {
    let (tape, number) = panicking();
    let report = verify(&tape.segments);
    assert_eq!((report.divergence.as_ref(), report.panicked.as_slice()), (None, [number].as_slice()));
    assert!(report.to_string().contains(&format!("record {number}: step panicked, as recorded")), "{report}");
}

#[test]
#[cfg(debug_assertions)]
fn a_load_ends_before_an_input_that_the_machine_panics_over_now() {
    let (mut tape, number) = panicking();
    tape.segments[0].replace(1, |record| record.outcome = Outcome::Stepped);
    let found = verify(&tape.segments).divergence.unwrap();
    assert_eq!((found.record, found.field.as_str()), (number, "step"));
    assert!(found.actual.contains("overflow"), "{found}");
    let loaded = load(&tape.segments);
    assert_eq!(loaded.divergence.map(|found| found.record), Some(number));
    assert_eq!(loaded.machine.state().to_parts(), tape.machine.state().to_parts());
    assert_eq!(loaded.digests.root(), tape.recorder.root());
}
