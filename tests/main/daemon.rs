//! The daemon as a person meets it: real processes, real files, real sockets.

use std::fs;
use std::process::Command;

use crate::support::{Daemon, lamplighter, runner, text, until};

const FAST: &str = "[policy]\nclaim_backoff = \"50ms\"\nstart_backoff = \"20ms\"\n";

fn mock(rules: &str, rest: &str) -> String {
    format!("[agent]\nmock = {{ rules = [{rules}] }}\n{rest}")
}

#[test]
fn a_message_is_answered_and_every_decision_replays() {
    let mut daemon = Daemon::start("");
    assert_eq!(daemon.ok(&["chat", "hello", "there"]), "echo: hello there\n");
    assert_eq!(daemon.ok(&["chat", "--chat", "office", "--timeout", "60", "hi"]), "echo: hi\n");
    let status = daemon.status();
    assert_eq!(status["slots"]["used"], 2, "{status}");
    assert_eq!(status["reactor"]["unannounced"], 0, "{status}");
    let shown = daemon.ok(&["status"]);
    assert!(shown.contains("chat:office") && shown.contains("running"), "{shown}");
    let name = status["sessions"][0]["session"].as_str().unwrap();
    assert!(daemon.ok(&["session", "show", name]).contains("chat:main"));
    assert!(daemon.ok(&["session", "ls"]).contains(name));
    daemon.stop();
    daemon.replays();
    assert!(daemon.ok(&["journal", "check"]).contains("whole"));
    assert!(daemon.ok(&["journal", "ls"]).contains("whole"));
    let tail = daemon.ok(&["journal", "tail", "-n", "500"]);
    assert!(tail.contains("message-arrived") && tail.contains("booted"), "{tail}");
    assert!(daemon.ok(&["journal", "show", "1.0"]).contains("Booted"));
}

#[test]
fn the_way_of_a_message_is_told_from_arrival_to_receipt() {
    // Slow enough that the claim is seen by itself; a faster turn may be read whole.
    let rule = "{ pattern = \".\", reply = \"echo: hello\", delay_ms = 300 }";
    let mut daemon = Daemon::start(&mock(rule, ""));
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    let (settled, replies) = client.upto("settled", "m1");
    assert_eq!(settled["outcome"], "completed");
    assert_eq!(replies.values().collect::<Vec<_>>(), ["echo: hello"]);
    daemon.stop();
    let way = daemon.ok(&["message", "show", "m1"]);
    for step in ["arrived", "accepted", "started", "claimed", "delivered", "completed"] {
        assert!(way.contains(step), "no {step} in\n{way}");
    }
    let output = daemon.run(&["message", "show", "nobody"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_message_is_found_by_its_text_unless_texts_are_not_kept() {
    let mut daemon = Daemon::start(&mock("{ pattern = \".\", reply = \"the answer is blue\" }", ""));
    let mut client = daemon.client("main");
    for (id, said) in [("m1", "which colour is the sky"), ("m2", "and the sea")] {
        client.say(id, said).unwrap();
        client.upto("settled", id);
    }
    drop(client);
    daemon.stop();
    assert_eq!(daemon.ok(&["why", "colour is"]), daemon.ok(&["why", "m1"]));
    assert!(daemon.ok(&["why", "m2"]).contains("\"the answer is blue\""), "{}", daemon.ok(&["why", "m2"]));
    let both = daemon.run(&["why", "is blue"]);
    let error = String::from_utf8(both.stderr).unwrap();
    assert_eq!(both.status.code(), Some(1), "{error}");
    assert!(error.contains(" m1") && error.contains(" m2"), "{error}");

    let mut silent = Daemon::start(&mock(
        "{ pattern = \".\", reply = \"the answer is blue\" }",
        "[journal]\nbodies = \"none\"\n",
    ));
    let mut client = silent.client("main");
    client.say("m1", "which colour is the sky").unwrap();
    client.upto("settled", "m1");
    drop(client);
    silent.stop();
    assert_eq!(silent.run(&["why", "colour is"]).status.code(), Some(1));
    for segment in fs::read_dir(silent.data().join("journal")).unwrap() {
        let path = segment.unwrap().path();
        if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            for word in ["colour", "s blue"] {
                assert!(!bytes.windows(6).any(|it| it == word.as_bytes()), "{word} in {}", path.display());
            }
        }
    }
    silent.replays();
}

#[test]
fn old_segments_are_dropped_and_what_they_told_is_named_as_gone() {
    let mut daemon = Daemon::start("[journal]\nsync = \"none\"\nsegment_bytes = 65536\nkeep_bytes = 65536\n");
    let mut held = daemon.client("held");
    held.say("m0", "hello").unwrap();
    held.upto("settled", "m0");
    daemon.ok(&["session", "stop", "s1"]);
    held.say("m1", "wait").unwrap();
    held.upto("accepted", "m1");
    assert!(daemon.ok(&["why", "m1"]).contains("arrived on chat"));

    let first = daemon.data().join("journal/0000000100000000.ltj");
    let mut client = daemon.client("main");
    for n in 0..500 {
        if !first.exists() {
            break;
        }
        client.say(&format!("n{n}"), "something to talk about").unwrap();
        client.upto("settled", &format!("n{n}"));
    }
    assert!(!first.exists(), "{}", daemon.ok(&["journal", "ls"]));
    until("it is told", || daemon.log().contains("dropped the oldest segments"));

    let way = daemon.ok(&["why", "m1"]);
    let mut lines = way.lines();
    let before = lines.next().unwrap_or_default();
    assert!(before.starts_with("before 1.") && before.ends_with(": dropped with older segments"), "{way}");
    // What the snapshot remembers of the time before comes first.
    let remembered = lines.by_ref().take_while(|line| line.contains("(as the snapshot remembers)")).count();
    assert!(remembered > 0 && way.contains("open in the snapshot"), "{way}");
    let output = daemon.run(&["why", "m0"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("records before 1.") && said.contains("were dropped"), "{said}");
    daemon.stop();
    daemon.replays();
    assert!(daemon.ok(&["journal", "check"]).contains("whole"));
}

#[test]
fn after_a_clean_end_only_sessions_that_changed_are_opened() {
    let mut daemon = Daemon::start("");
    daemon.ok(&["chat", "--chat", "one", "hi"]);
    daemon.ok(&["chat", "--chat", "two", "hi"]);
    let status = daemon.status();
    let session = status["sessions"][0].clone();
    let chat = session["chat"].as_str().unwrap_or_else(|| panic!("no chat in {session}")).to_owned();
    daemon.stop();
    // A boot in which nothing happens: a runner that is still at work when the daemon ends leaves files that nobody has
    // read in their last state.
    daemon.again();
    until("both were looked at", || {
        let tail = daemon.ok(&["journal", "tail", "-n", "500"]);
        let second: Vec<&str> = tail.lines().skip_while(|line| !line.contains(" 2.0 ")).collect();
        let found = |kind: &str| second.iter().filter(|line| line.contains(kind)).count();
        found("containers-found") == 1 && found("session-found") == found("looked")
    });
    daemon.stop();
    // Somebody else's row, written while nobody looked.
    let path =
        daemon.data().join("sessions").join(session["session"].as_str().unwrap()).join("out/outbound.db");
    let outbound = rusqlite::Connection::open(path).unwrap();
    outbound
        .execute(
            "INSERT INTO messages_out (id, seq, timestamp, kind, platform_id, channel_type, content) \
             VALUES ('late', 1001, datetime('now'), 'chat', ?1, 'chat', '{\"text\":\"found\"}')",
            [&chat],
        )
        .unwrap();
    drop(outbound);
    daemon.again();
    let mut client = daemon.client(chat.trim_start_matches("chat:"));
    assert_eq!(client.upto("message", "").0["text"], "found");
    daemon.stop();
    let tail = daemon.ok(&["journal", "tail", "-n", "500"]);
    let third = tail.lines().skip_while(|line| !line.contains(" 3.0 ")).collect::<Vec<_>>();
    let count = |kind: &str| third.iter().filter(|line| line.contains(kind)).count();
    assert_eq!((count("session-found"), count("sessions-unchanged")), (1, 1), "{tail}");
    // A daemon that is killed leaves nothing to trust.
    daemon.again();
    daemon.kill();
    daemon.again();
    daemon.stop();
    let tail = daemon.ok(&["journal", "tail", "-n", "500"]);
    let last = tail.lines().skip_while(|line| !line.contains(" 5.0 "));
    assert_eq!(last.filter(|line| line.contains("session-found")).count(), 2, "{tail}");
    daemon.replays();
}

#[test]
fn a_repeated_id_is_one_message_and_one_turn() {
    let daemon = Daemon::start("");
    let mut client = daemon.client("main");
    client.say("m1", "once").unwrap();
    client.upto("settled", "m1");
    client.say("m1", "once").unwrap();
    let (accepted, none) = client.upto("accepted", "m1");
    assert_eq!(accepted["duplicate"], true);
    let (_, more) = client.upto("settled", "m1");
    assert!(none.is_empty() && more.is_empty(), "{none:?} {more:?}");
}

#[test]
fn a_reply_waits_for_somebody_to_receive_it() {
    let daemon = Daemon::start(&mock("{ pattern = \".\", reply = \"late\", delay_ms = 300 }", ""));
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    client.upto("accepted", "m1");
    drop(client);
    until("the reply is held", || {
        daemon.status()["held_destinations"].as_array().is_some_and(|it| it.len() == 1)
    });
    let mut client = daemon.client("main");
    let (settled, replies) = client.upto("settled", "m1");
    assert_eq!(settled["outcome"], "completed");
    assert_eq!(replies.values().collect::<Vec<_>>(), ["late"]);
}

#[test]
fn a_reply_that_was_dropped_can_be_sent_again() {
    let daemon = Daemon::start(&mock("{ pattern = \".\", reply = \"late\", delay_ms = 300 }", ""));
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    client.upto("accepted", "m1");
    drop(client);
    let held = || daemon.status()["held_destinations"][0]["head"].as_str().map(str::to_owned);
    until("the reply is held", || held().is_some());
    let reply = held().unwrap();
    daemon.ok(&["message", "drop", &reply]);
    until("it is given up", || daemon.status()["messages"]["outbound_open"] == 0);
    let mut client = daemon.client("main");
    daemon.ok(&["message", "resend", &reply]);
    let (line, _) = client.upto("message", "");
    assert_eq!(line["text"], "late");
    let output = daemon.run(&["message", "resend", "nobody"]);
    assert!(text(&output.stderr).contains("no outbound message"), "{}", text(&output.stderr));
}

#[test]
fn a_stop_in_mid_turn_loses_nothing_and_answers_once() {
    let rules = "{ pattern = \"slow\", silence = true, once = true }";
    let mut daemon = Daemon::start(&mock(rules, FAST));
    let mut client = daemon.client("main");
    client.say("m1", "slow").unwrap();
    client.upto("typing", "");
    daemon.stop();
    assert!(daemon.runners().is_empty(), "a runner outlived its daemon");
    assert!(!daemon.log().contains("hot journal"));
    daemon.again();
    let mut client = daemon.client("main");
    client.say("m1", "slow").unwrap();
    let (settled, replies) = client.upto("settled", "m1");
    assert_eq!(settled["outcome"], "completed");
    assert_eq!(replies.values().collect::<Vec<_>>(), ["echo: slow"]);
    daemon.stop();
    daemon.replays();
}

#[test]
fn a_poison_message_is_parked_its_sender_told_and_can_be_tried_again() {
    let rules = "{ pattern = \"poison\", crash = 9 }";
    let policy = "[policy]\nclaim_backoff = \"20ms\"\nstart_backoff = \"10ms\"\nclaim_retries = 1\n";
    let mut daemon = Daemon::start(&mock(rules, policy));
    let mut client = daemon.client("main");
    client.say("m1", "poison").unwrap();
    let (settled, replies) = client.upto("settled", "m1");
    assert_eq!(settled["outcome"], "parked");
    assert!(replies.values().any(|text| text.contains("ended unexpectedly 2 times")), "{replies:?}");
    client.say("m2", "and this?").unwrap();
    let (settled, replies) = client.upto("settled", "m2");
    assert_eq!(settled["outcome"], "completed");
    assert!(replies.values().any(|text| text == "echo: and this?"));
    daemon.ok(&["message", "retry", "m1"]);
    let (settled, _) = client.upto("settled", "m1");
    assert_eq!(settled["outcome"], "parked");
    let output = daemon.run(&["message", "retry", "nobody"]);
    assert!(text(&output.stderr).contains("no inbound message"), "{}", text(&output.stderr));
    daemon.stop();
    daemon.replays();
}

#[test]
fn an_operator_holds_a_session_and_lets_it_go() {
    let daemon = Daemon::start("");
    daemon.ok(&["chat", "hello"]);
    daemon.ok(&["session", "stop", "s1"]);
    until("it is stopped", || daemon.status()["sessions"][0]["state"] == "stopped");
    let mut client = daemon.client("main");
    client.say("m1", "wait").unwrap();
    client.upto("accepted", "m1");
    assert_eq!(daemon.status()["sessions"][0]["stuck"], "held by an operator");
    daemon.ok(&["session", "start", "s1"]);
    client.upto("settled", "m1");
    let output = daemon.run(&["session", "stop", "nobody"]);
    assert!(text(&output.stderr).contains("there is no session"), "{}", text(&output.stderr));
}

#[test]
fn a_bad_outbound_file_sets_its_session_apart_and_a_reset_frees_it() {
    let daemon = Daemon::start("");
    daemon.ok(&["chat", "hello"]);
    daemon.ok(&["chat", "--chat", "other", "hello"]);
    let name = daemon.status()["sessions"][0]["session"].as_str().unwrap().to_owned();
    let file = daemon.data().join("sessions").join(&name).join("out/outbound.db");
    daemon.ok(&["session", "stop", &name]);
    until("it is stopped", || daemon.status()["sessions"][0]["state"] == "stopped");
    fs::write(&file, "not a database, whatever its name says. ".repeat(100)).unwrap();
    daemon.ok(&["session", "start", &name]);
    let mut client = daemon.client("main");
    client.say("m1", "still there?").unwrap();
    client.upto("accepted", "m1");
    until("it is quarantined", || daemon.status()["sessions"][0]["state"] == "quarantined");
    assert_eq!(daemon.ok(&["chat", "--chat", "other", "and you?"]), "echo: and you?\n");
    daemon.ok(&["session", "reset", &name]);
    let (settled, _) = client.upto("settled", "m1");
    assert_eq!(settled["outcome"], "completed");
    let kept = fs::read_dir(file.parent().unwrap()).unwrap().flatten();
    assert!(kept.into_iter().any(|it| it.file_name().to_string_lossy().ends_with(".aside")));
}

#[test]
fn a_second_daemon_is_refused_with_the_first_ones_process_id() {
    let daemon = Daemon::start("");
    let output = daemon.run(&["run"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains(&daemon.pid().as_raw_nonzero().to_string()), "{said}");
}

#[test]
fn what_is_wrong_with_the_configuration_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("lamplighter.toml"), "[agent]\nnmae = \"x\"\n").unwrap();
    let run = |args: &[&str]| {
        let output =
            Command::new(lamplighter()).args(args).arg("--data").arg(folder.path()).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = run(&["run"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("lamplighter.toml:2:1") && said.contains("did you mean \"name\"?"), "{said}");
    for (host, why) in
        [("ssh://somewhere", "neither unix:// nor tcp://"), ("tcp://far:2376", "without encryption")]
    {
        let text = format!("[runtime.docker]\nhost = \"{host}\"\n");
        fs::write(folder.path().join("lamplighter.toml"), text).unwrap();
        let (code, said) = run(&["run", "--runtime", "docker"]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
    fs::remove_file(folder.path().join("lamplighter.toml")).unwrap();
    let (code, said) = run(&["init"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(run(&["init"]).0, Some(1));
}

#[test]
fn without_an_engine_the_daemon_says_so_at_once_and_takes_messages_for_later() {
    let docker = "[runtime.docker]\nhost = \"unix:///nowhere/docker.sock\"\nimage = \"some:image\"\n";
    let mut daemon = Daemon::start_on("docker", runner(), docker);
    until("it is told", || daemon.log().contains("the runtime is away"));
    let log = daemon.log();
    for said in
        ["the runtime is away", "no engine answers at unix:///nowhere/docker.sock", "--runtime process"]
    {
        assert!(log.contains(said), "no {said:?} in\n{log}");
    }
    let mut client = daemon.client("main");
    client.say("m1", "later").unwrap();
    client.upto("accepted", "m1");
    let status = daemon.ok(&["status"]);
    assert!(status.contains("away ") && status.contains("--runtime process"), "{status}");
    until("it waits", || daemon.status()["sessions"][0]["stuck"] == "waits for the runtime, which is away");
    let why = daemon.ok(&["why", "m1"]);
    assert!(why.contains("the runtime is away since") && why.contains("no engine answers"), "{why}");
    // A second start without it is no different; what was taken is still there.
    daemon.stop();
    daemon.again();
    until("it waits", || daemon.status()["slots"]["waiting"] == 1);
    daemon.stop();
    assert_eq!(daemon.log().matches("the runtime is away").count(), 2, "once a start:\n{}", daemon.log());
    daemon.replays();
}

#[test]
fn without_a_daemon_commands_say_how_to_start_one() {
    let mut daemon = Daemon::start("");
    daemon.stop();
    for args in [&["status"][..], &["chat", "hello"], &["session", "ls"]] {
        let output = daemon.run(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{args:?}: {said}");
        assert!(said.contains("lamplighter run --data"), "{args:?}: {said}");
    }
}

#[test]
fn one_flipped_byte_in_what_was_durable_is_found() {
    let mut daemon = Daemon::start("[journal]\nsync = \"always\"\n");
    daemon.ok(&["chat", "hello"]);
    daemon.stop();
    let folder = daemon.data().join("journal");
    let path = fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|it| it.path())
        .find(|p| p.extension().is_some())
        .unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = Command::new(lamplighter()).arg("replay").arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("1 divergence"), "{}", text(&output.stdout));
    assert_eq!(daemon.run(&["journal", "check"]).status.code(), Some(1));
    let output = daemon.run(&["run"]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("damaged") && said.contains("offset"), "{said}");
    assert!(daemon.ok(&["journal", "repair"]).contains("lost: "));
    // The session files hold the messages, so the daemon goes on.
    daemon.again();
    assert_eq!(daemon.ok(&["chat", "hello again"]), "echo: hello again\n");
    daemon.stop();
    daemon.replays();
}
