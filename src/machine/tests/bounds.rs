//! What one agent, one chat or one record can make the machine hold and do.

use std::collections::BTreeSet;

use super::world::{World, chat};
use crate::base::{At, Ms, SessionNo, Wall};
use crate::machine::effect::{Body, Effect};
use crate::machine::input::*;
use crate::machine::policy::{NOTES_OPEN_MAX, ROWS_PER_SESSION};
use crate::machine::{Machine, Turn};

/// A machine that was booted and has one session with a message in it; nothing answers its effects.
fn machine() -> Machine {
    let mut world = World::new();
    world.boot(false);
    world.arrive("main", "m1");
    world.machine
}

fn step(machine: &mut Machine, input: Input) -> Turn {
    let at = At(machine.state().core().at.0 + 1);
    machine.step(at, input)
}

fn denied(first: i64) -> Input {
    let row = |rowid| OutRow {
        rowid,
        id: format!("r{rowid}"),
        kind: OutKind::System("self_mod".into()),
        to: chat("main"),
        in_reply_to: None,
        not_before: None,
        settled: false,
        files: false,
        digest: 0,
    };
    let rows = (first..first + i64::from(ROWS_PER_SESSION)).map(row).collect();
    let reading = Reading::Rows(Rows { rows, ..Rows::default() });
    Input::OutboundRead { session: SessionNo(1), reading }
}

/// The ids of the rows that a turn has written.
fn written(turn: &Turn) -> Vec<String> {
    let id = |effect: &Effect| match effect {
        Effect::WriteInbound { id, body: Body::Note(_), .. } => Some(id.clone()),
        _ => None,
    };
    turn.effects.iter().filter_map(id).collect()
}

/// Gives each write and record of a turn its end.
fn answer(machine: &mut Machine, turn: &Turn) {
    for (effect, it) in turn.effects().map(|(id, it)| (id, it.clone())).collect::<Vec<_>>() {
        match it {
            Effect::WriteInbound { .. } => {
                drop(step(machine, Input::InboundWritten { effect, seq: 2, duplicate: false }));
            }
            Effect::RecordDelivery { .. } => drop(step(machine, Input::EffectDone { effect, error: None })),
            _ => {}
        }
    }
}

#[test]
fn rows_that_are_denied_cost_a_bounded_number_of_notes() {
    let mut machine = machine();
    let mut effects = Vec::new();
    for burst in 0..50 {
        let turn = step(&mut machine, denied(1 + burst * i64::from(ROWS_PER_SESSION)));
        effects.push(turn.effects.len());
        answer(&mut machine, &turn);
        let session = machine.state().session(SessionNo(1)).unwrap();
        assert!(session.inbox.len() <= NOTES_OPEN_MAX + 2, "{} open messages", session.inbox.len());
    }
    // Each row is recorded, and what is beyond that does not grow with what came before.
    assert_eq!(effects[1..].iter().collect::<BTreeSet<_>>().len(), 1, "{effects:?}");
    assert!(effects[1] <= ROWS_PER_SESSION as usize + 2, "{effects:?}");
    let count = machine.state().notes_of(SessionNo(1)).find_map(|(_, note)| match note.state {
        crate::machine::state::InState::Withheld { count, .. } => Some(count),
        _ => None,
    });
    assert_eq!(count, Some(50 * ROWS_PER_SESSION - u32::try_from(NOTES_OPEN_MAX).unwrap()));
}

#[test]
fn no_two_things_that_are_made_have_the_same_id() {
    let mut machine = machine();
    let mut ids = BTreeSet::new();
    let mut made = 0;
    // All in the same millisecond; the agent reads its notes as they come.
    for burst in 0..40 {
        let turn = step(&mut machine, denied(1 + burst * i64::from(ROWS_PER_SESSION)));
        let written = written(&turn);
        made += written.len();
        ids.extend(written);
        answer(&mut machine, &turn);
        let completed = Some(AckFound { status: Ack::Completed, mark: 1 });
        let acks = machine.state().notes_of(SessionNo(1)).map(|(no, _)| (no, completed.clone())).collect();
        let reading = Reading::Rows(Rows { acks, ..Rows::default() });
        let turn = step(&mut machine, Input::OutboundRead { session: SessionNo(1), reading });
        for (effect, it) in turn.effects().map(|(id, it)| (id, it.clone())).collect::<Vec<_>>() {
            if let Effect::UpdateInbound { .. } = it {
                let turn = step(&mut machine, Input::EffectDone { effect, error: None });
                answer(&mut machine, &turn);
            }
        }
    }
    assert!(made > 300, "{made}");
    assert_eq!(ids.len(), made);
    for id in &ids {
        let (rest, six) = id.rsplit_once('-').unwrap();
        assert!(six.len() == 6 && rest.starts_with("sys-"), "{id}");
    }
}

#[test]
fn a_row_has_the_time_at_which_its_channel_says_that_it_was_sent() {
    let mut machine = machine();
    let arrival = Arrival {
        channel: "chat".into(),
        receipt: 7,
        chat: "chat:main".into(),
        thread: None,
        message_id: "m2".into(),
        facts: TextFacts::default(),
    };
    let time = |turn: &Turn| {
        turn.effects.iter().find_map(|effect| match effect {
            Effect::WriteInbound { timestamp, .. } => Some(*timestamp),
            _ => None,
        })
    };
    let sent = Wall(1_600_000_000_000_000);
    let turn = step(&mut machine, Input::MessageArrivedAt { arrival: arrival.clone(), line: None, sent });
    assert_eq!(time(&turn), Some(sent));
    let turn = step(&mut machine, Input::MessageArrived(Arrival { message_id: "m3".into(), ..arrival }));
    assert_eq!(time(&turn), Some(machine.state().wall()));
}

#[test]
fn a_boot_touches_nothing_that_merely_waits() {
    let mut world = World::new();
    world.boot(false);
    (0..200).for_each(|n| world.arrive("main", &format!("m{n}")));
    let booted = Booted {
        boot: crate::base::BootNo(2),
        build: "test".into(),
        policy: world.policy.clone(),
        group: super::world::GROUP.into(),
        offset: world.offset,
        downtime: Ms(0),
    };
    let turn = step(&mut world.machine, Input::Booted(booted));
    assert!(turn.touched.len() < 20, "{} components", turn.touched.len());
}

#[test]
fn what_a_page_of_many_rows_does_not_name_stands() {
    let mut world = World::new();
    world.boot(false);
    (0..3).for_each(|n| world.arrive("main", &format!("m{n}")));
    let session = world.machine.state().session(SessionNo(1)).unwrap().clone();
    let before = session.inbox.len();
    let found = SessionFound {
        name: session.name,
        origin: session.origin,
        pending: Vec::new(),
        delivered: Vec::new(),
        unreadable: None,
    };
    drop(step(&mut world.machine, Input::SessionFoundInPart(found.clone())));
    assert_eq!(world.machine.state().session(SessionNo(1)).unwrap().inbox.len(), before);
    drop(step(&mut world.machine, Input::SessionFound(found)));
    assert_eq!(world.machine.state().session(SessionNo(1)).unwrap().inbox.len(), 0);
}

#[test]
fn complaints_about_nobody_in_particular_are_bounded_and_all_are_told() {
    let mut machine = machine();
    let stray = || Input::InboundLocked { session: SessionNo(99) };
    let count = |turn: Turn| {
        let of = |effect: &Effect| match effect {
            Effect::Complain { session: None, count, .. } => *count,
            _ => 0,
        };
        (turn.effects.len(), turn.effects.iter().map(of).sum::<u32>())
    };
    assert_eq!(count(step(&mut machine, stray())), (1, 1));
    let (made, told) =
        (0..100).map(|_| count(step(&mut machine, stray()))).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    assert_eq!((made, told), (0, 0));
    let (deadline, key) = machine.next_deadline().unwrap();
    let turn = machine.step(deadline, Input::TimerDue { key, deadline });
    assert_eq!(count(turn), (1, 100));
    assert!(machine.next_deadline().is_none_or(|(_, next)| next != key));
}
