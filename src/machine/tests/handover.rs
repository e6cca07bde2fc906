//! What a snapshot takes from the loop, and what it leaves to the steps after it.

use crate::base::{At, BootNo, Ms, SessionNo};
use crate::machine::Machine;
use crate::machine::input::{Arrival, Booted, Input, TextFacts};
use crate::machine::policy::Policy;

const SESSIONS: usize = 10_000;

fn arrival(n: usize, message: &str) -> Input {
    Input::MessageArrived(Arrival {
        channel: "chat".into(),
        receipt: 1,
        chat: format!("chat:{n}"),
        thread: None,
        message_id: format!("{message}-{n}"),
        facts: TextFacts::default(),
    })
}

fn step(machine: &mut Machine, input: Input) {
    let at = At(machine.state().core().at.0 + 1);
    drop(machine.step(at, input));
}

/// A machine that has a message open in each of [`SESSIONS`] sessions.
fn crowd() -> Machine {
    let mut machine = Machine::default();
    let booted = Booted {
        boot: BootNo(1),
        build: "test".into(),
        policy: Policy::default(),
        group: "agent".into(),
        offset: 1_700_000_000_000_000,
        downtime: Ms(0),
    };
    step(&mut machine, Input::Booted(booted));
    step(&mut machine, Input::ContainersFound { alive: Vec::new(), adoptable: false });
    (0..SESSIONS).for_each(|n| step(&mut machine, arrival(n, "first")));
    machine
}

#[test]
fn a_rotation_with_ten_thousand_sessions_does_not_hold_the_loop() {
    let mut machine = crowd();
    let parts = machine.state().to_parts();
    let (sessions, shared) = parts.sessions.shared_with(&machine.state().to_parts().sessions);
    assert_eq!(shared, sessions, "nothing is copied when a snapshot is taken");
    assert!(sessions <= SESSIONS / 16 + 1, "it costs a counter for every 16 sessions, not {sessions} in all");

    let touched = SessionNo(5_000);
    let before = parts.sessions[&touched].clone();
    step(&mut machine, arrival(4_999, "second"));
    let now = machine.state().to_parts();
    assert_eq!(now.sessions.shared_with(&parts.sessions), (sessions, sessions - 1));
    assert_eq!(parts.sessions[&touched], before, "the snapshot is of the moment at which it was taken");
    assert_ne!(now.sessions[&touched], before);
    for (what, (chunks, shared)) in [
        ("chats", now.directory.chats.shared_with(&parts.directory.chats)),
        ("inbound", now.inbound.shared_with(&parts.inbound)),
        ("outbound", now.outbound.shared_with(&parts.outbound)),
        ("destinations", now.destinations.shared_with(&parts.destinations)),
        ("effects", now.effects.shared_with(&parts.effects)),
    ] {
        assert!(chunks - shared <= 1, "one step copied {} of {chunks} chunks of {what}", chunks - shared);
    }
    assert!(now.directory.chats.len() == SESSIONS && now.inbound.len() == SESSIONS + 1);
}
