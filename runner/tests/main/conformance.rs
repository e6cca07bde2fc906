//! Our runner goes through the suite in `tests/conformance`, which any runner can be put through.

use std::process::{Command, Output};

use crate::session::Outcome;

const SUITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/conformance/run.py");

fn suite(options: &[&str], runner: &str) -> Result<Output, Box<dyn std::error::Error>> {
    let mut command = Command::new("python3");
    command.arg(SUITE).args(options).args(["--", runner]);
    for name in ["LAMPLIGHTER_WORKSPACE", "LAMPLIGHTER_IN", "LAMPLIGHTER_AGENT", "LAMPLIGHTER_ATTEMPT"] {
        command.env_remove(name);
    }
    Ok(command.output()?)
}

fn passes(options: &[&str], at_least: usize) -> Outcome {
    let done = suite(options, env!("CARGO_BIN_EXE_lamplighter-runner"))?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}{err}");
    let passed = out.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(passed >= at_least, "only {passed} cases ran: {out}");
    assert!(out.contains(" 0 failed, 0 skipped"), "{out}");
    Ok(())
}

#[test]
fn the_runner_keeps_the_contract() -> Outcome {
    passes(&[], 70)
}

#[test]
fn the_runner_keeps_the_contract_in_nanoclaws_layout() -> Outcome {
    passes(&["--flat", "--short"], 9)
}

#[test]
fn a_program_that_is_no_runner_fails() -> Outcome {
    let done = suite(&["--only", "an-unknown-provider", "--tap"], "true")?;
    let out = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(1), "{out}");
    assert!(out.contains("not ok 1 - an-unknown-provider") && out.contains("1 failed"), "{out}");
    Ok(())
}
