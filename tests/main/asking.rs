//! Questions, files, cards, edits, reactions and requests: a Python program writes the rows, a real daemon takes them to a
//! real socket.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Client, Daemon};

/// Long enough that nobody waits for it in a test.
const LONG: &str = "ask 60000";

pub fn daemon() -> Daemon {
    daemon_with("")
}

fn daemon_with(config: &str) -> Daemon {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/main/asking_runner.py");
    Daemon::start(&format!("[runtime.process]\ncommand = [\"python3\", \"{script}\"]\n{config}"))
}

#[test]
fn a_redacted_piece_with_questions_replays_from_its_beginning_and_from_the_middle() {
    let journal = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/journals/questions");
    let temp = tempfile::tempdir().unwrap();
    let why = run(&["why", "m1", "--journal", journal]);
    let middle = why.lines().find(|line| line.contains("answered by m2")).unwrap();
    let middle = middle.split_whitespace().find(|word| word.starts_with("2.")).unwrap();
    for (n, from) in ["1.0", middle].into_iter().enumerate() {
        let folder = temp.path().join(n.to_string());
        let folder = folder.to_str().unwrap();
        run(&["fixture", "record", folder, "--all", "--redact", "--from", from, "--journal", journal]);
        let replayed = run(&["replay", folder]);
        assert!(replayed.contains(", 0 divergences"), "{replayed}");
        for segment in crate::support::segments(std::path::Path::new(folder)) {
            let bytes = fs::read(segment).unwrap();
            assert!(!bytes.windows(4).any(|it| it == b"q-m1"));
        }
    }
}

fn run(args: &[&str]) -> String {
    let output = std::process::Command::new(crate::support::lamplighter()).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", crate::support::text(&output.stderr));
    crate::support::text(&output.stdout)
}

/// The next line that is a reply.
fn reply(client: &mut Client) -> Value {
    loop {
        let line = client.line().expect("the daemon went away");
        if line["type"] == "message" {
            return line;
        }
    }
}

fn texts(client: &mut Client, id: &str) -> Vec<String> {
    let (settled, replies) = client.upto("settled", id);
    assert_eq!(settled["outcome"], "completed");
    replies.into_values().collect()
}

#[test]
fn a_question_is_shown_with_numbers_and_answered_by_one() {
    let mut daemon = daemon();
    let mut client = daemon.client("main");
    client.say("m1", LONG).unwrap();
    let question = reply(&mut client);
    assert_eq!(question["text"], "Lunch\nWhich?\n  1. Soup\n  2. Salad");
    assert_eq!(question["question"]["options"], json!(["Soup", "Salad"]));
    assert_eq!(daemon.status()["sessions"][0]["questions"], 1);
    let shown = daemon.ok(&["session", "show", "s1"]);
    assert!(shown.contains("q-m1 waits for an answer"), "{shown}");
    assert!(daemon.ok(&["status"]).contains("1 question waiting for an answer"));

    client.say("m2", " 2 \nthanks").unwrap();
    assert_eq!(client.upto("accepted", "m2").0["duplicate"], false);
    assert_eq!(texts(&mut client, "m2"), [""; 0]);
    let answer = format!("salad-2 by chat:{}", rustix::process::geteuid().as_raw());
    assert_eq!(texts(&mut client, "m1"), [answer]);
    assert_eq!(daemon.status()["sessions"][0]["questions"], 0);

    // The same message again is the same answer; the same words in another are a message.
    client.say("m2", "2").unwrap();
    assert_eq!(client.upto("accepted", "m2").0["duplicate"], true);
    client.say("m3", "2").unwrap();
    assert_eq!(texts(&mut client, "m3"), ["heard: 2"]);
    daemon.stop();
    let way = daemon.ok(&["why", "m1"]);
    assert!(way.contains("is a question with 2 options"), "{way}");
    assert!(way.contains("question q-m1 answered by m2 with option 2"), "{way}");
    let way = daemon.ok(&["why", "m2"]);
    assert!(way.contains("answers question q-m1 with option 2"), "{way}");
    daemon.replays();
}

#[test]
fn a_label_answers_after_the_daemon_was_killed_and_no_words_of_it_are_in_the_journal() {
    let mut daemon = daemon_with("[journal]\nbodies = \"none\"\n");
    let mut client = daemon.client("main");
    client.say("m1", LONG).unwrap();
    assert_eq!(reply(&mut client)["question"]["id"], "q-m1");
    drop(client);
    daemon.kill();
    daemon.again();
    let mut client = daemon.client("main");
    client.say("m2", "SALAD").unwrap();
    let answered = texts(&mut client, "m1");
    assert!(answered.iter().any(|text| text.starts_with("salad-2 by ")), "{answered:?}");
    daemon.stop();
    for segment in crate::support::segments(&daemon.data().join("journal")) {
        let bytes = fs::read(segment).unwrap().to_ascii_lowercase();
        assert!(!bytes.windows(5).any(|it| it == b"salad"));
    }
    daemon.replays();
}

#[test]
fn an_answer_that_comes_too_late_is_no_message_and_other_words_are() {
    let mut daemon = daemon();
    let mut client = daemon.client("main");
    client.say("m1", "ask 300").unwrap();
    let replies = texts(&mut client, "m1");
    assert_eq!(replies.last().map(String::as_str), Some("no answer"), "{replies:?}");
    crate::support::until("it is closed", || daemon.status()["sessions"][0]["questions"] == 0);
    client.say("m2", "soup").unwrap();
    let told = texts(&mut client, "m2");
    assert!(told[0].starts_with("That question is closed: it waited 1 second"), "{told:?}");
    client.say("m3", "soup please").unwrap();
    assert_eq!(texts(&mut client, "m3"), ["heard: soup please"]);
    daemon.stop();
    let way = daemon.ok(&["why", "m1"]);
    assert!(way.contains("question q-m1 closed: nobody answered in time"), "{way}");
    daemon.replays();
}

#[test]
fn a_file_is_delivered_as_a_copy_and_links_are_not_followed() {
    let mut daemon = daemon();
    let mut client = daemon.client("main");
    client.say("m1", "files").unwrap();
    let sent = reply(&mut client);
    assert_eq!(sent["text"], "here");
    let files = sent["files"].as_array().unwrap();
    assert_eq!((files.len(), &files[0]["name"]), (1, &json!("report.txt")), "{sent}");
    let path = std::path::PathBuf::from(files[0]["path"].as_str().unwrap());
    let folder = daemon.data().canonicalize().unwrap().join("files/main");
    assert_eq!(path.parent(), Some(folder.as_path()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "the report\n");
    let skipped: Vec<&str> =
        sent["skipped"].as_array().unwrap().iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(skipped, ["link", "missing", "../x"], "{sent}");
    assert!(sent["skipped"][0]["reason"].as_str().unwrap().contains("link"), "{sent}");
    client.upto("settled", "m1");
    let outbox = daemon.data().join("sessions/agent");
    let session = fs::read_dir(outbox).unwrap().next().unwrap().unwrap().path();
    crate::support::until("the outbox is empty", || {
        fs::read_dir(session.join("out/outbox")).is_ok_and(|mut left| left.next().is_none())
    });
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    drop(client);
    let said = daemon.ok(&["chat", "--chat", "office", "files"]);
    assert!(said.starts_with("here\n[file report.txt, 11 bytes: /"), "{said}");
    assert!(said.contains("[file link was not sent: it is a link"), "{said}");
    daemon.stop();
    daemon.replays();
}

#[test]
fn cards_edits_and_reactions_are_lines_and_what_no_channel_shows_comes_back() {
    let mut daemon = daemon();
    let mut client = daemon.client("main");
    client.say("m1", "forms").unwrap();
    assert_eq!(reply(&mut client)["text"], "T\nGo: https://x.test/");
    let edit = reply(&mut client);
    assert_eq!((&edit["text"], &edit["edits"]), (&json!("m1 now reads: better"), &json!("m1")));
    let reaction = reply(&mut client);
    assert_eq!((&reaction["text"], &reaction["reacts_to"]), (&json!("+1 on m1"), &json!("m1")));
    client.upto("settled", "m1");
    client.say("m2", "notes").unwrap();
    let notes = texts(&mut client, "m2");
    assert!(notes[0].contains("nothing here shows content of type \"hologram\""), "{notes:?}");
    daemon.stop();
    daemon.replays();
}

#[test]
fn a_request_to_the_host_is_refused_by_name_and_the_agent_is_told() {
    let mut daemon = daemon();
    let mut client = daemon.client("main");
    client.say("m1", "request schedule_task").unwrap();
    client.upto("settled", "m1");
    client.say("m2", "notes").unwrap();
    let notes = texts(&mut client, "m2");
    assert_eq!(notes, ["Your request sys-m1 was refused: this host does not do \"schedule_task\" yet."]);
    client.say("m3", "capabilities").unwrap();
    let can: Value = serde_json::from_str(&texts(&mut client, "m3")[0]).unwrap();
    assert_eq!(can, json!({"chat": ["edits", "reactions", "files", "questions", "cards"]}));
    daemon.stop();
    let way = daemon.ok(&["why", "m1"]);
    assert!(way.contains("reply sys-m1 was refused: this host does not do \"schedule_task\" yet"), "{way}");
    daemon.replays();
}
