//! The stepper as a program: on a terminal, and refused without one.

use std::process::Command;

use crate::support::lamplighter;

const JOURNAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/journals/demo.ltj");

#[test]
fn without_a_terminal_it_is_refused_and_says_what_to_use() {
    let out = Command::new(lamplighter()).args(["step", JOURNAL]).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("needs a terminal") && said.contains("state") && said.contains("why"), "{said}");
    assert!(out.stdout.is_empty());
}

#[test]
fn a_key_and_a_signal_end_it_and_the_terminal_is_given_back() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/main/step_terminal.py");
    for how in ["key", "SIGTERM", "SIGHUP", "closed"] {
        let out = Command::new("python3")
            .args([script, how])
            .arg(lamplighter())
            .args(["step", JOURNAL])
            .env("TERM", "xterm")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{how}: {} {said}", out.status);
    }
}
