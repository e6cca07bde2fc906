//! What a person meets who starts for the first time and gets something wrong: every mistake is told, with the way out,
//! where that person looks; and what others write cannot do harm where it is shown.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::support::{Daemon, lamplighter, runner, text, until};

const FAST: &str = "[policy]\nstart_backoff = \"20ms\"\nstart_backoff_max = \"200ms\"\n";

/// Runs a command on a data folder, with the runner of the tests.
fn run_on(data: &Path, args: &[&str]) -> Output {
    Command::new(lamplighter())
        .args(args)
        .arg("--data")
        .arg(data)
        .env("LAMPLIGHTER_RUNNER", runner())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn config(folder: &Path, text: &str) {
    fs::write(folder.join("lamplighter.toml"), text).unwrap();
}

#[test]
fn what_no_attempt_could_work_with_is_told_at_the_start_and_by_doctor() {
    let mock = |rule: &str| format!("[agent]\nmock = {{ rules = [{rule}] }}\n");
    for (wrong, part) in [
        ("[agent]\nprovider = \"nosuch\"\n", "\"nosuch\""),
        (&mock("{ pattern = \"(\", reply = \"x\" }"), "mock.rules"),
        (&mock("{ pattern = \".\", error = \"nonsense\" }"), "mock.rules"),
        ("[runtime.process]\ncommand = [\"no-such-program\"]\n", "\"no-such-program\""),
        ("[runtime.process]\ncommand = [\"/no/such\"]\n", "/no/such"),
        ("[agent]\nenv_file = \"nowhere.env\"\n", "/nowhere.env"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        config(folder.path(), wrong);
        let started = run_on(folder.path(), &["run"]);
        let (code, said) = (started.status.code(), text(&started.stderr));
        assert!(
            code == Some(2) && said.contains(part) && said.contains("hint: "),
            "{wrong}: {code:?} {said}"
        );
        let doctor = run_on(folder.path(), &["doctor"]);
        let (code, said) = (doctor.status.code(), text(&doctor.stdout));
        assert!(code == Some(1) && said.contains(part), "{wrong}: {code:?} {said}");
    }
}

#[test]
fn a_program_that_ends_at_once_is_told_to_whoever_waits_and_to_whoever_looks() {
    for (command, how) in [
        ("[\"true\"]", "ended with code 0 and said nothing"),
        (
            "[\"sh\", \"-c\", \"echo info; echo error no key for the service >&2; exit 3\"]",
            "ended with code 3; it said last: error no key for the service",
        ),
        ("[\"./appears-later\"]", "./appears-later"),
    ] {
        let daemon = Daemon::start(&format!("[runtime.process]\ncommand = {command}\n{FAST}"));
        let output = daemon.run(&["chat", "hello"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("the agent does not start") && said.contains(how), "{command}: {said}");
        assert!(said.contains("the message is kept") && said.contains("lamplighter status"), "{said}");
        let shown = daemon.ok(&["status"]);
        let verb = format!("--data {}", daemon.data().display());
        assert!(shown.contains(how) && shown.contains(&verb), "{shown}");
        assert!(daemon.ok(&["session", "show", "s1"]).contains(how));
        until("it is in the log", || {
            let log = daemon.log();
            log.contains(how) && (!how.contains("no key") || log.contains("ERRO error no key"))
        });
        // Whoever comes later hears it, too, and at once.
        let output = daemon.run(&["chat", "again"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    }
}

#[test]
fn a_session_that_is_held_is_told_to_its_chat() {
    let daemon = Daemon::start("");
    daemon.ok(&["chat", "hello"]);
    daemon.ok(&["session", "stop", "s1"]);
    let output = daemon.run(&["chat", "wait"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("an operator holds the session"), "{}", text(&output.stderr));
    let free = daemon.status()["sessions"][0]["free_with"].as_str().unwrap().to_owned();
    // As it is copied into a shell.
    let bin = lamplighter().parent().unwrap().to_owned();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    assert!(Command::new("sh").args(["-c", &free]).env("PATH", path).status().unwrap().success());
    assert_eq!(daemon.ok(&["chat", "again"]).lines().last(), Some("echo: again"));
}

#[test]
fn an_outbound_file_that_cannot_be_read_is_named_with_its_cause_and_hint() {
    let daemon = Daemon::start("");
    daemon.ok(&["chat", "hello"]);
    daemon.ok(&["session", "stop", "s1"]);
    until("it is stopped", || daemon.status()["sessions"][0]["state"] == "stopped");
    let name = daemon.status()["sessions"][0]["session"].as_str().unwrap().to_owned();
    let file = daemon.data().join("sessions").join(&name).join("out/outbound.db");
    let db = rusqlite::Connection::open(&file).unwrap();
    let is_wal: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).unwrap();
    drop(db);
    if is_wal != "wal" {
        // The bundled SQLite has none: what its header would say.
        let mut bytes = fs::read(&file).unwrap();
        bytes[18..20].copy_from_slice(&[2, 2]);
        fs::write(&file, bytes).unwrap();
    }
    daemon.ok(&["session", "start", "s1"]);
    let mut client = daemon.client("main");
    client.say("m1", "are you there?").unwrap();
    until("it is set apart", || daemon.status()["sessions"][0]["state"] == "quarantined");
    let shown = daemon.ok(&["status"]);
    assert!(shown.contains("it uses a write-ahead log") && shown.contains("journal_mode=DELETE"), "{shown}");
    let why = daemon.ok(&["why", "m1"]);
    assert!(!why.contains("(Bad)") && !shown.contains("(Bad)"), "{why}");
}

#[test]
fn ids_that_a_container_chose_do_no_harm_where_they_are_shown_and_pasted() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/main/hostile_ids.py");
    let daemon = Daemon::start(&format!("[runtime.process]\ncommand = [\"python3\", \"{script}\"]\n"));
    // Somebody who does not receive, so that the reply is held.
    let mut peer = BufReader::new(UnixStream::connect(daemon.data().join("run/chat.sock")).unwrap());
    let said = "{\"type\":\"hello\",\"protocol\":1,\"chat\":\"main\"}\n{\"type\":\"message\",\"id\":\"m1\",\"text\":\"hi\"}\n";
    peer.get_mut().write_all(said.as_bytes()).unwrap();
    let mut line = String::new();
    while !line.contains("accepted") {
        line.clear();
        assert_ne!(peer.read_line(&mut line).unwrap(), 0);
    }
    until("the reply is held", || !daemon.status()["held_destinations"].as_array().unwrap().is_empty());
    let harmless = |shown: String| {
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{shown:?}");
        assert!(!shown.lines().any(|line| line.starts_with("agent/forged")), "{shown}");
    };
    harmless(daemon.ok(&["status"]));
    harmless(daemon.ok(&["session", "show", "s1"]));
    harmless(daemon.ok(&["why", "m1"]));
    let held: Value = daemon.status()["held_destinations"][0].clone();
    assert!(held["head"].as_str().unwrap().contains("pwned"), "{held}");
    let free = held["free_with"].as_str().unwrap();
    assert!(free.starts_with("lamplighter message drop m") && !free.contains("pwned"), "{free}");
    let number = held["number"].as_str().unwrap();
    daemon.ok(&["message", "drop", number]);
    until("it is dropped", || daemon.status()["held_destinations"].as_array().unwrap().is_empty());
    assert!(!Path::new("pwned").exists() && !daemon.data().join("pwned").exists());
}

#[test]
fn a_folder_on_which_no_daemon_ran_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for init in [false, true] {
        if init {
            assert!(run_on(&data, &["init"]).status.success());
        }
        for command in [&["status"][..], &["session", "ls"], &["chat", "hello"], &["stop"]] {
            let output = run_on(&data, command);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(69), "{command:?}: {said}");
            assert!(said.contains("lamplighter run --data"), "{command:?}: {said}");
        }
    }
    for (json, hint) in [("{\"format\":9,\"installation\":\"1\"}", "a newer one"), ("nonsense", "backup")] {
        fs::write(data.join("lamplighter.json"), json).unwrap();
        for command in [&["status"][..], &["chat", "hello"]] {
            let output = run_on(&data, command);
            let said = text(&output.stderr);
            assert!(output.status.code() == Some(74) && said.contains(hint), "{command:?}: {said}");
        }
    }
}

#[test]
fn output_that_nobody_reads_is_success_and_a_full_disk_is_named() {
    for command in [&["completions", "bash"][..], &["doctor"], &["--help"]] {
        let folder = tempfile::tempdir().unwrap();
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let run = |out: Stdio| {
            let mut run = Command::new(lamplighter());
            run.args(command).env("LAMPLIGHTER_DATA", folder.path()).env("LAMPLIGHTER_RUNNER", runner());
            run.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).output().unwrap()
        };
        let output = run(full.into());
        let said = text(&output.stderr);
        assert!(!said.contains("panicked"), "{command:?}: {said}");
        if command != ["--help"] {
            assert!(
                output.status.code() == Some(74) && said.contains("No space left"),
                "{command:?}: {said}"
            );
        }
        let (nobody, end) = rustix::pipe::pipe().unwrap();
        drop(nobody);
        let output = run(end.into());
        assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_literal_reply_of_the_mock_is_asked_for_in_the_environment_of_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(lamplighter())
        .args(["run", "--data"])
        .arg(folder.path())
        .env("LAMPLIGHTER_RUNNER", runner())
        .env("LAMPLIGHTER_MOCK_REPLY", "fixed")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("it listens", || UnixStream::connect(folder.path().join("run/chat.sock")).is_ok());
    let output = run_on(folder.path(), &["chat", "hello"]);
    assert_eq!(text(&output.stdout), "fixed\n", "{}", text(&output.stderr));
    // As the kernel does it when the terminal is closed.
    let pid = rustix::process::Pid::from_child(&child);
    kill_process(pid, Signal::HUP).unwrap();
    assert!(child.wait().unwrap().success(), "it was not stopped cleanly");
    let check = run_on(folder.path(), &["journal", "check"]);
    assert!(text(&check.stdout).contains("whole"), "{}", text(&check.stdout));
}

#[test]
fn a_data_folder_that_others_can_enter_is_made_private() {
    let mut daemon = Daemon::start("");
    daemon.stop();
    fs::set_permissions(daemon.data(), fs::Permissions::from_mode(0o755)).unwrap();
    daemon.again();
    assert_eq!(fs::metadata(daemon.data()).unwrap().permissions().mode() & 0o777, 0o700);
}
