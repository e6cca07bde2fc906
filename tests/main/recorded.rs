//! Journals of real runs under `fixtures/journals`: each replays to the decisions on record, and what `why` says of its
//! message `m1` is kept beside it. `UPDATE=1` rewrites what `why` says; the journals themselves are made anew only on
//! purpose: `cargo test --test main record_journals_anew -- --ignored`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lamplighter::channels::Fault;
use rustix::process::{Signal, kill_process};

use crate::embedded::Embedded;
use crate::support::{Daemon, lamplighter, segments, text, until};

const FAST: &str = "[policy]\nclaim_backoff = \"50ms\"\nstart_backoff = \"20ms\"\nclaim_retries = 1\n";

/// A run of the daemon that ends with a journal.
type Scenario = (&'static str, fn() -> Daemon);

/// A run of the daemon in this process.
type EmbeddedScenario = (&'static str, fn() -> Embedded);

const EMBEDDED: [EmbeddedScenario; 4] = [
    ("channel-outage", channel_outage),
    ("clock-set-back", clock_set_back),
    ("delivery-in-doubt", delivery_in_doubt),
    ("delivery-refused", delivery_refused),
];

/// Name and run; `fixtures/README.md` says what each is about.
const SCENARIOS: [Scenario; 15] = [
    ("containers-that-fail", containers_that_fail),
    ("crash-in-mid-turn", crash_in_mid_turn),
    ("duplicate-message", duplicate_message),
    ("error-of-the-agent", error_of_the_agent),
    ("held-by-an-operator", held_by_an_operator),
    ("hot-journal", hot_journal),
    ("killed-with-a-container-running", killed_with_a_container_running),
    ("message-during-a-turn", message_during_a_turn),
    ("nobody-receives", nobody_receives),
    ("overflow-of-file-events", overflow_of_file_events),
    ("poison-message", poison_message),
    ("quarantine-and-reset", quarantine_and_reset),
    ("questions", questions),
    ("slots-full", slots_full),
    ("stopped-in-mid-turn", stopped_in_mid_turn),
];

fn mock(rules: &str) -> String {
    format!("[agent]\nmock = {{ rules = [{rules}] }}\n{FAST}")
}

fn asked(config: &str, upto: &str) -> Daemon {
    let daemon = Daemon::start(config);
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    client.upto(upto, if upto == "typing" { "" } else { "m1" });
    daemon
}

fn crash_in_mid_turn() -> Daemon {
    asked(&mock("{ pattern = \".\", crash = 3, once = true }"), "settled")
}

fn duplicate_message() -> Daemon {
    let daemon = asked(&mock(""), "settled");
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    client.upto("settled", "m1");
    daemon
}

fn error_of_the_agent() -> Daemon {
    asked(&mock("{ pattern = \".\", error = \"permanent\" }"), "settled")
}

fn containers_that_fail() -> Daemon {
    // It ends at once, again and again, as a runner does that cannot use its configuration.
    let config = format!("[runtime.process]\ncommand = [\"sh\", \"-c\", \"exit 78\"]\n{FAST}");
    let daemon = asked(&config, "accepted");
    until("it has failed twice", || {
        daemon.status()["sessions"][0]["stuck"] == "its container failed 2 times"
    });
    daemon
}

fn held_by_an_operator() -> Daemon {
    let daemon = Daemon::start(&mock(""));
    daemon.ok(&["chat", "hello"]);
    daemon.ok(&["session", "stop", "s1"]);
    until("it is stopped", || daemon.status()["sessions"][0]["state"] == "stopped");
    let mut client = daemon.client("main");
    client.say("m1", "wait").unwrap();
    client.upto("accepted", "m1");
    daemon
}

/// The program is killed in mid-transaction, with changed pages in the file already; the next one rolls back.
fn hot_journal() -> Daemon {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/main/killed_in_mid_transaction.py");
    let config = format!("[runtime.process]\ncommand = [\"python3\", {program:?}]\n{FAST}");
    asked(&config, "settled")
}

fn channel_outage() -> Embedded {
    let daemon = Embedded::start(&(mock("") + "delivery_backoff = \"50ms\"\n"));
    daemon.arrives();
    let first = daemon.delivery();
    daemon.failed(&first, Fault::Transient, "502 bad gateway");
    let second = daemon.delivery();
    daemon.down("the connection was closed");
    daemon.failed(&second, Fault::Transient, "not connected");
    daemon.up();
    let third = daemon.delivery();
    daemon.delivered(&third);
    daemon.settled();
    daemon
}

fn clock_set_back() -> Embedded {
    let rules = "{ pattern = \".\", crash = 3, once = true }";
    let config = format!("[agent]\nmock = {{ rules = [{rules}] }}\n[policy]\nclaim_backoff = \"500ms\"\n");
    let daemon = Embedded::start(&config);
    daemon.arrives();
    until("it has crashed", || {
        let path = daemon.data().join("journal");
        lamplighter::replay::walk::walk(&path, |_| std::ops::ControlFlow::Continue(())).is_ok()
            && said(&["why", "m1", "--journal"], &path).contains("queued again")
    });
    daemon.set_clock(-3_600);
    let delivery = daemon.delivery();
    daemon.delivered(&delivery);
    daemon.settled();
    daemon
}

fn delivery_in_doubt() -> Embedded {
    let daemon = Embedded::start(&mock(""));
    daemon.arrives();
    let delivery = daemon.delivery();
    daemon.failed(&delivery, Fault::InDoubt, "the connection was lost after the request was sent");
    daemon.settled();
    daemon
}

fn delivery_refused() -> Embedded {
    let daemon = Embedded::start(&mock(""));
    daemon.arrives();
    let delivery = daemon.delivery();
    daemon.failed(&delivery, Fault::Permanent, "403 the bot was removed from the chat");
    daemon.settled();
    daemon
}

fn killed_with_a_container_running() -> Daemon {
    let mut daemon = asked(&mock("{ pattern = \".\", silence = true, once = true }"), "typing");
    daemon.kill();
    daemon.again();
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    client.upto("settled", "m1");
    daemon
}

fn message_during_a_turn() -> Daemon {
    let daemon = Daemon::start(&mock("{ pattern = \"slow\", reply = \"done\", delay_ms = 300 }"));
    let mut client = daemon.client("main");
    client.say("m0", "slow").unwrap();
    client.upto("typing", "");
    client.say("m1", "and this").unwrap();
    client.upto("settled", "m1");
    daemon
}

fn nobody_receives() -> Daemon {
    let daemon = Daemon::start(&mock("{ pattern = \".\", reply = \"late\", delay_ms = 300 }"));
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    client.upto("accepted", "m1");
    drop(client);
    until("the reply is held", || {
        daemon.status()["held_destinations"].as_array().is_some_and(|it| it.len() == 1)
    });
    daemon
}

/// The daemon stands still while the runner answers and more happens in its folder than the kernel's queue holds.
fn overflow_of_file_events() -> Daemon {
    let daemon = asked(&mock("{ pattern = \".\", reply = \"done\", delay_ms = 500 }"), "typing");
    let session = daemon.status()["sessions"][0]["session"].as_str().unwrap().to_owned();
    let out = daemon.data().join("sessions").join(&session).join("out");
    let mut client = daemon.client("main");
    kill_process(daemon.pid(), Signal::STOP).unwrap();
    // Two files in turn: the kernel merges an event with the same one before it.
    for n in 0..12_000 {
        fs::write(out.join(if n % 2 == 0 { "one" } else { "two" }), "").unwrap();
    }
    let outbound = rusqlite::Connection::open(out.join("outbound.db")).unwrap();
    until("the runner has answered", || {
        let count = "SELECT count(*) FROM messages_out";
        outbound.query_row(count, [], |row| row.get::<_, i64>(0)).is_ok_and(|rows| rows == 1)
    });
    kill_process(daemon.pid(), Signal::CONT).unwrap();
    client.upto("settled", "m1");
    assert_ne!(daemon.status()["reactor"]["rescans"], 0, "{}", daemon.status());
    daemon
}

fn poison_message() -> Daemon {
    asked(&mock("{ pattern = \".\", crash = 9 }"), "settled")
}

fn quarantine_and_reset() -> Daemon {
    let daemon = Daemon::start(&mock(""));
    daemon.ok(&["chat", "hello"]);
    let name = daemon.status()["sessions"][0]["session"].as_str().unwrap().to_owned();
    daemon.ok(&["session", "stop", &name]);
    until("it is stopped", || daemon.status()["sessions"][0]["state"] == "stopped");
    let file = daemon.data().join("sessions").join(&name).join("out/outbound.db");
    fs::write(&file, "not a database, whatever its name says. ".repeat(100)).unwrap();
    daemon.ok(&["session", "start", &name]);
    let mut client = daemon.client("main");
    client.say("m1", "still there?").unwrap();
    client.upto("accepted", "m1");
    until("it is quarantined", || daemon.status()["sessions"][0]["state"] == "quarantined");
    daemon.ok(&["session", "reset", &name]);
    client.upto("settled", "m1");
    daemon
}

/// One question is answered by somebody after a restart, one too late, and a request is refused.
fn questions() -> Daemon {
    let mut daemon = crate::asking::daemon();
    let mut client = daemon.client("main");
    client.say("m0", "request schedule_task").unwrap();
    client.upto("settled", "m0");
    client.say("m1", "ask 60000").unwrap();
    while client.line().unwrap()["type"] != "message" {}
    until("it waits", || daemon.status()["sessions"][0]["questions"] == 1);
    daemon.stop();
    daemon.again();
    let mut client = daemon.client("main");
    client.say("m2", "2").unwrap();
    client.upto("settled", "m1");
    client.say("m3", "ask 200").unwrap();
    client.upto("settled", "m3");
    until("it is closed", || daemon.status()["sessions"][0]["questions"] == 0);
    client.say("m4", "soup").unwrap();
    client.upto("settled", "m4");
    daemon
}

fn slots_full() -> Daemon {
    let rules = "{ pattern = \"slow\", reply = \"done\", delay_ms = 500 }";
    let daemon = Daemon::start(&(mock(rules) + "slots = 1\n"));
    let mut first = daemon.client("first");
    first.say("m0", "slow").unwrap();
    first.upto("typing", "");
    let mut client = daemon.client("main");
    client.say("m1", "me too").unwrap();
    client.upto("settled", "m1");
    daemon
}

fn stopped_in_mid_turn() -> Daemon {
    let mut daemon = asked(&mock("{ pattern = \".\", silence = true, once = true }"), "typing");
    daemon.stop();
    daemon.again();
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    client.upto("settled", "m1");
    daemon
}

fn journals() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals")
}

#[test]
#[ignore = "makes the recorded journals anew"]
fn record_journals_anew() {
    // `ONLY` makes one of them.
    let wanted = |name: &str| std::env::var("ONLY").map_or(true, |only| only == name);
    for (name, run) in SCENARIOS.into_iter().filter(|(name, _)| wanted(name)) {
        let mut daemon = run();
        daemon.stop();
        keep(name, &daemon.data().join("journal"));
    }
    for (name, run) in EMBEDDED.into_iter().filter(|(name, _)| wanted(name)) {
        let mut daemon = run();
        daemon.settle_down();
        keep(name, &daemon.stop());
    }
}

fn keep(name: &str, journal: &Path) {
    let folder = journals().join(name);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).unwrap();
    for segment in segments(journal) {
        fs::copy(&segment, folder.join(segment.file_name().unwrap())).unwrap();
    }
}

fn names() -> Vec<&'static str> {
    let mut all: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
    all.extend(EMBEDDED.iter().map(|(name, _)| *name));
    all.sort_unstable();
    all
}

fn said(args: &[&str], journal: &Path) -> String {
    let output = Command::new(lamplighter()).args(args).arg(journal).output().unwrap();
    assert!(output.status.success(), "{args:?} {}: {}", journal.display(), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn recorded_journals_replay_and_why_tells_the_life_of_their_message() {
    for name in names() {
        let folder = journals().join(name);
        let replayed = said(&["replay"], &folder);
        assert!(replayed.ends_with(", 0 divergences\n"), "{name}: {replayed}");
        let why = said(&["why", "m1", "--journal"], &folder);
        let kept = folder.join("why.txt");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&kept, &why).unwrap();
        }
        assert_eq!(why, fs::read_to_string(&kept).unwrap_or_default(), "{name}; UPDATE=1 rewrites it");
    }
    // Whoever adds a folder adds its run, and its line in the README.
    let readme = fs::read_to_string(journals().join("../README.md")).unwrap();
    let folders = fs::read_dir(journals()).unwrap().map(Result::unwrap).filter(|it| it.path().is_dir());
    let mut found: Vec<String> = folders.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    found.sort();
    assert_eq!(found, names());
    assert!(found.iter().all(|name| readme.contains(&format!("`{name}`"))), "{found:?}");
}

#[test]
fn the_state_before_a_record_is_shown_and_a_record_that_is_not_there_is_the_end() {
    let folder = journals().join("poison-message");
    let said = |args: &[&str]| {
        let output = Command::new(lamplighter()).arg("state").arg(&folder).args(args).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, _) = said(&["--at", "1.10", "--session", "s1"]);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("before record 1.10 at ") && out.contains("\ninbound m1: "), "{out}");
    assert!(!out.contains("policy"), "{out}");
    let (code, out, _) = said(&[]);
    assert!(code == Some(0) && out.contains("\npolicy: ") && out.contains("\nsession s1: "), "{out}");
    let (code, _, error) = said(&["--session", "nobody"]);
    assert!(code == Some(1) && error.contains("no session \"nobody\""), "{error}");
    let (code, _, error) = said(&["--at", "first"]);
    assert!(code == Some(2) && error.contains("hint"), "{error}");
}

#[test]
fn a_message_is_found_by_its_number_and_one_that_is_unknown_is_named() {
    let folder = journals().join("crash-in-mid-turn");
    let by_id = said(&["why", "m1", "--journal"], &folder);
    assert_eq!(said(&["why", "2", "--session", "s1", "--journal"], &folder), by_id);
    let output = Command::new(lamplighter()).args(["why", "m9", "--journal"]).arg(&folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no inbound message \"m9\""));
    let args = ["why", "two", "--session", "s1", "--journal"];
    let output = Command::new(lamplighter()).args(args).arg(&folder).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn several_journals_are_replayed_in_one_go_and_one_that_is_none_is_refused() {
    let one = journals().join("slots-full");
    let two = journals().join("poison-message");
    let output = Command::new(lamplighter()).args(["replay", "--json"]).args([&one, &two]).output().unwrap();
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines.iter().all(|it| it["divergence"].is_null() && it["records"].as_u64() > Some(10)),
        "{lines:?}"
    );
    let output = Command::new(lamplighter()).arg("replay").arg(journals().join("none.ltj")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}
