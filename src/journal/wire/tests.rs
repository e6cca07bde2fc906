use std::collections::BTreeSet;

use proptest::prelude::*;

use super::causes::Causes;
use super::digest::Digests;
use super::recorder::Recorder;
use super::snapshot::{PART_TARGET, Snapshot, SnapshotReader, encode_snapshot};
use super::{Mirror, effect, input};
use crate::base::{At, EffectId, RecordNo, SessionName};
use crate::journal::record::{
    Outcome, RECORD_SCHEMA, Record, RecordError, decode_record, encode_record, put, synced_through, take,
    take_wire,
};
use crate::machine::Machine;
use crate::machine::effect::Effect;
use crate::machine::input::{Arrival, Input};
use crate::machine::state::{
    ComponentId, Destination, Inbound, Missed, Outbound, Owner, Parts, Question, Session, State,
};

/// Encodes, decodes and compares every sample of a type; gives how many there were.
fn round_trip<T: Mirror + PartialEq + std::fmt::Debug + 'static>() -> usize {
    let all = T::samples();
    let mut bytes = Vec::new();
    all.iter().for_each(|value| put(&mut bytes, &value.to_wire()));
    let mut rest = bytes.as_slice();
    for value in &all {
        assert_eq!(take::<T>(&mut rest, "a sample").as_ref(), Ok(value));
    }
    assert!(rest.is_empty());
    all.len()
}

fn numbered<K, V, M: FromIterator<(K, V)>>(values: Vec<V>, key: impl Fn(u32) -> K) -> M {
    values.into_iter().zip(1..).map(|(value, no)| (key(no), value)).collect()
}

/// A state with every sample of every component. It is no state that the machine could get into.
fn crowded() -> Parts {
    use crate::base::{DestinationNo, MessageNo, SessionNo};
    Parts {
        core: Mirror::samples().remove(0),
        policy: Mirror::samples().remove(1),
        directory: Mirror::samples().remove(1),
        queue: [SessionNo(3), SessionNo(1)].into(),
        sessions: numbered(Session::samples(), SessionNo),
        inbound: numbered(Inbound::samples(), |no| MessageNo(no.into())),
        outbound: numbered(Outbound::samples(), |no| MessageNo(no.into())),
        destinations: numbered(Destination::samples(), DestinationNo),
        questions: numbered(Question::samples(), |no| MessageNo(no.into())),
        missed: numbered(Missed::samples(), |no| MessageNo(no.into())),
        effects: numbered(Owner::samples(), |no| EffectId { record: RecordNo(no.into()), index: 0 }),
        complaints: Mirror::samples().remove(1),
        outage: Mirror::samples().pop(),
    }
}

fn read_snapshot(parts: &[Vec<u8>]) -> Result<Snapshot, RecordError> {
    let mut reader = SnapshotReader::default();
    for part in parts {
        reader.take(RECORD_SCHEMA, part)?;
    }
    reader.finish()
}

fn record() -> Record {
    Record {
        number: RecordNo((3 << 32) + 7),
        at: At(-5),
        outcome: Outcome::Stepped,
        input: Input::samples().remove(1),
        effects: Effect::samples(),
        touched: ComponentId::samples().into_iter().zip(1u64 << 60..).collect(),
        root: u64::MAX - 3,
        synced_through: RecordNo((3 << 32) + 2),
    }
}

#[test]
fn every_variant_of_every_input_effect_and_component_survives_the_wire() {
    let names: BTreeSet<&str> = Input::samples().iter().map(Input::name).collect();
    assert_eq!(names.len(), 34, "{names:?}");
    let names: BTreeSet<&str> = Effect::samples().iter().map(Effect::name).collect();
    assert_eq!(names.len(), 17, "{names:?}");
    assert!(round_trip::<Input>() > 100);
    assert!(round_trip::<Effect>() > 60);
    assert_eq!(round_trip::<ComponentId>(), 4 + 3 + 4 + 4 + 3 + 4 + 4 + 2 + 4);
    round_trip::<Outcome>();
}

#[test]
fn a_state_survives_its_snapshot_in_however_many_parts() {
    let parts = crowded();
    let mut causes = Causes::default();
    causes.take(7, vec![(3 << 32, -5, 5, 0), (u64::MAX, i64::MAX, 10, 7)]).unwrap();
    let encoded = encode_snapshot(&parts, 77, &causes);
    assert_eq!(read_snapshot(&encoded), Ok(Snapshot { parts: parts.clone(), root: 77, causes }));

    let mut wide = parts;
    for no in 0..40_000 {
        wide.directory.chats.insert(("chat".into(), format!("{no:040}")), crate::base::SessionNo(no));
    }
    let encoded = encode_snapshot(&wide, 78, &Causes::default());
    assert!(encoded.len() >= 2);
    assert!(encoded.iter().all(|part| part.len() < 2 * PART_TARGET));
    assert_eq!(read_snapshot(&encoded), Ok(Snapshot { parts: wide, root: 78, causes: Causes::default() }));
}

#[test]
fn a_snapshot_without_its_head_or_its_end_is_damaged() {
    let encoded = encode_snapshot(&crowded(), 1, &Causes::default());
    let whole = encoded.concat();
    assert!(matches!(read_snapshot(&[]), Err(RecordError::Damaged { .. })));
    assert!(matches!(read_snapshot(&[whole[..whole.len() - 1].to_vec()]), Err(RecordError::Damaged { .. })));
    assert!(matches!(read_snapshot(&[whole.clone(), whole]), Err(RecordError::Damaged { .. })));
}

#[test]
fn a_record_survives_the_wire_and_begins_with_what_is_synced() {
    let record = record();
    let mut body = Vec::new();
    assert_eq!(encode_record(&record, &mut body), Ok(()));
    assert_eq!(synced_through(&body), Some(record.synced_through));
    assert_eq!(decode_record(RECORD_SCHEMA, &body), Ok(record));
    body.push(0);
    assert!(matches!(decode_record(RECORD_SCHEMA, &body), Err(RecordError::Damaged { .. })));
}

#[test]
fn a_record_of_another_schema_is_refused_with_a_way_out() {
    let error = decode_record(RECORD_SCHEMA + 1, &[0; 40]).unwrap_err();
    assert_eq!(error, RecordError::Schema { found: RECORD_SCHEMA + 1 });
    assert!(error.hint().contains("upgrade"));
}

#[test]
fn a_record_that_fits_no_frame_is_refused_by_number() {
    let mut record = record();
    record.input = Input::ChannelDown { channel: "x".repeat(crate::journal::record::BODY_MAX) };
    let error = encode_record(&record, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().starts_with("record 3.7 has "), "{error}");
}

#[test]
fn a_session_name_that_could_leave_its_folder_is_refused_on_the_way_in() {
    let mut bytes = Vec::new();
    put(&mut bytes, &("main", "../../etc"));
    let error = take::<SessionName>(&mut bytes.as_slice(), "a name").unwrap_err();
    assert!(matches!(error, RecordError::Value(_)), "{error:?}");
}

/// The index of an effect had two bytes once; what was written then reads the same.
#[test]
fn an_effect_of_a_small_index_is_written_as_it_always_was() {
    for index in [0, 1, 250, 251, 255, 256, u16::MAX] {
        let (mut then, mut now) = (Vec::new(), Vec::new());
        put(&mut then, &(7u64, index));
        put(&mut now, &EffectId { record: RecordNo(7), index: index.into() }.to_wire());
        assert_eq!(then, now, "{index}");
    }
}

/// The encoding is a promise to files on disk: this fails when a variant or field is moved or removed.
#[test]
fn the_wire_encoding_of_all_samples_is_the_one_that_schema_1_was_born_with() {
    let mut bytes = Vec::new();
    Input::samples().iter().for_each(|it| put(&mut bytes, &it.to_wire()));
    Effect::samples().iter().for_each(|it| put(&mut bytes, &it.to_wire()));
    let state = State::from_parts(crowded());
    bytes.extend(encode_snapshot(&state.to_parts(), 1, &Causes::default()).concat());
    let found = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes));
    // A variant that is appended adds samples: take the new value, after a look at the change.
    assert_eq!(found, "a3c8e3d38d9046cb");
}

#[test]
fn digests_kept_step_by_step_are_those_computed_in_full() {
    let mut parts = crowded();
    let mut digests = Digests::of(&State::from_parts(parts.clone()));
    let before = digests.root();
    let gone = *parts.sessions.keys().next().unwrap();
    let changed = *parts.inbound.keys().nth(2).unwrap();
    parts.sessions.remove(&gone);
    parts.inbound.get_mut(&changed).unwrap().suspect ^= true;
    let touched = BTreeSet::from([ComponentId::Session(gone), ComponentId::Inbound(changed)]);
    let state = State::from_parts(parts);
    let update = digests.update(&state, &touched).to_vec();
    assert_eq!(update[0], (ComponentId::Session(gone), 0));
    assert_ne!(update[1].1, 0);
    assert_ne!(digests.root(), before);
    assert_eq!(digests.root(), Digests::of(&state).root());
    assert_eq!(digests.root_with(&update), digests.root());
}

#[test]
fn a_step_that_panicked_is_recorded_with_its_input_and_the_state_before_it() {
    let machine = Machine::default();
    let mut recorder = Recorder::new(machine.state());
    let input = Input::ShutdownAsked;
    recorder.note(&machine, At(9), &input);
    let (number, body) = recorder.panicked(RecordNo(0)).unwrap();
    let record = decode_record(RECORD_SCHEMA, body).unwrap();
    assert_eq!((record.number, record.outcome, record.at), (number, Outcome::Panicked, At(9)));
    assert_eq!(record.input, input);
    assert_eq!(record.root, Digests::of(machine.state()).root());
}

#[test]
fn no_message_text_has_a_place_in_an_arrival() {
    // The compiler checks it: whoever adds a field here decides whether it may be written to a journal.
    let Arrival { channel: _, receipt: _, chat: _, thread: _, message_id: _, facts: _ } =
        Arrival::samples().remove(0);
}

proptest! {
    #[test]
    fn bytes_that_are_no_record_give_an_error_and_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400)
    ) {
        let _ = decode_record(RECORD_SCHEMA, &bytes);
        let _ = SnapshotReader::default().take(RECORD_SCHEMA, &bytes);
        let _ = take_wire::<input::Input<'static>>(&mut bytes.as_slice(), "an input");
        let _ = take_wire::<effect::Effect<'static>>(&mut bytes.as_slice(), "an effect");
    }

    #[test]
    fn a_record_with_damaged_bytes_gives_an_error_or_a_record_and_no_panic(
        place in 0usize..2_000, flip in 1u8..
    ) {
        let mut body = Vec::new();
        encode_record(&record(), &mut body).unwrap();
        let place = place % body.len();
        body[place] ^= flip;
        let _ = decode_record(RECORD_SCHEMA, &body);
    }
}
