//! Any runner: a Python program that speaks the contract is driven by the daemon.

use crate::support::Daemon;

#[test]
fn a_program_of_sixty_lines_can_be_the_runner() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/main/foreign_runner.py");
    let mut daemon = Daemon::start(&format!("[runtime.process]\ncommand = [\"python3\", \"{script}\"]\n"));
    for text in ["one", "two", "three"] {
        assert_eq!(daemon.ok(&["chat", "--timeout", "60", text]), format!("python: {text}\n"));
    }
    daemon.stop();
    assert!(daemon.runners().is_empty(), "the program outlived its daemon");
    daemon.replays();
}

#[test]
fn a_foreign_program_ends_with_a_daemon_that_is_killed() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/main/foreign_runner.py");
    let mut daemon = Daemon::start(&format!("[runtime.process]\ncommand = [\"python3\", \"{script}\"]\n"));
    daemon.ok(&["chat", "hello"]);
    assert_eq!(daemon.runners().len(), 1);
    daemon.kill();
    crate::support::until("it has ended", || daemon.runners().is_empty());
}
