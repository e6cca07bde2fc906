use std::io::{BufRead, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, mpsc};

use super::connection::{Connection, LineReader, Seen};
use super::interactive::{ERASE, Shared, follow};
use super::shown::HINT;
use super::*;
use crate::base::{Clock, Wall};
use crate::channels::chat::Chat;
use crate::channels::content::Content;
use crate::channels::protocol::LINE_MAX;
use crate::channels::{Arrived, Channel, ChannelEvent, Delivery, Settled};

/// A bound for turns that are to end; reaching it is a failure.
const LIMIT: u64 = 30;

struct Fixed;

impl Clock for Fixed {
    fn monotonic_micros(&self) -> i64 {
        0
    }
    fn wall(&self) -> Wall {
        Wall(0)
    }
}

/// The real channel, with a host that does to each event what the test says.
fn serve_all(folder: &Path, host: impl Fn(&Chat, ChannelEvent) + Send + 'static) -> PathBuf {
    let path = folder.join("chat.sock");
    let (send, events) = mpsc::channel();
    let send = Mutex::new(send);
    let sink: crate::channels::Sink = Arc::new(move |event| drop(send.lock().unwrap().send(event)));
    let chat = Chat::start(&path, Arc::new(Fixed), sink).unwrap();
    std::thread::spawn(move || events.into_iter().for_each(|event| host(&chat, event)));
    path
}

/// The same, for tests that only answer messages.
fn serve(folder: &Path, host: impl Fn(&Chat, Arrived) + Send + 'static) -> PathBuf {
    serve_all(folder, move |chat, event| {
        if let ChannelEvent::Arrived(arrived) = event {
            host(chat, arrived);
        }
    })
}

fn reply(chat: &Chat, ticket: u64, key: &str, text: &str) {
    let content = Content::text(text);
    chat.deliver(Delivery {
        ticket,
        key: key.into(),
        chat: "chat:main".into(),
        thread: None,
        content,
        files: Vec::new(),
        skipped: Vec::new(),
        in_reply_to: None,
    });
}

fn settle(chat: &Chat, id: &str, outcome: &'static str) {
    let reason = (outcome != "completed").then(|| "because".to_owned());
    chat.settled("chat:main", Settled { id: id.into(), outcome, reason });
}

/// Accepts, replies with what was said, and completes.
fn echo(chat: &Chat, it: &Arrived) {
    let content: serde_json::Value = serde_json::from_str(&it.content).unwrap();
    chat.accepted(it.receipt, false);
    reply(
        chat,
        it.receipt,
        &format!("k{}", it.receipt),
        &format!("re: {}", content["text"].as_str().unwrap()),
    );
    settle(chat, &it.message_id, "completed");
}

fn args(timeout: u64, json: bool) -> ChatArgs {
    ChatArgs { chat: "main".into(), timeout, json, text: Vec::new() }
}

fn once(socket: &Path, args: &ChatArgs, text: &str) -> (String, Result<(), ChatError>) {
    let mut out = Vec::new();
    let done = oneshot::once(args, socket, text, Output { to: &mut out, is_terminal: false });
    (String::from_utf8(out).unwrap(), done)
}

fn piped(socket: &Path, input: &'static [u8]) -> (String, Result<(), ChatError>) {
    let mut out = Vec::new();
    let to = Output { to: &mut out, is_terminal: false };
    let done = oneshot::lines(&args(LIMIT, false), socket, input, to);
    (String::from_utf8(out).unwrap(), done)
}

/// A daemon of one connection that says what the test says, after hello.
fn scripted(folder: &Path, script: impl FnOnce(&mut BufReader<UnixStream>) + Send + 'static) -> PathBuf {
    let path = folder.join("scripted.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let mut peer = BufReader::new(listener.accept().unwrap().0);
        heard(&mut peer);
        say(&mut peer, r#"{"type":"hello","protocol":1}"#);
        script(&mut peer);
    });
    path
}

fn heard(peer: &mut BufReader<UnixStream>) -> serde_json::Value {
    let mut line = String::new();
    peer.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn say(peer: &mut BufReader<UnixStream>, line: &str) {
    peer.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[test]
fn a_text_is_said_and_its_reply_printed_and_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (acknowledged, acknowledgements) = mpsc::channel();
    let socket = serve_all(folder.path(), move |chat, event| match event {
        ChannelEvent::Arrived(it) => echo(chat, &it),
        ChannelEvent::Delivered { platform_id, .. } => drop(acknowledged.send(platform_id)),
        _ => {}
    });
    let (out, done) = once(&socket, &args(LIMIT, false), "hello there");
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(out, "re: hello there\n");
    let key = acknowledgements.recv_timeout(Duration::from_secs(LIMIT)).unwrap();
    assert_eq!(key.as_deref(), Some("k0"));
}

#[test]
fn a_reply_that_comes_again_is_acknowledged_again_and_printed_once() {
    let folder = tempfile::tempdir().unwrap();
    let (send, acks) = mpsc::channel();
    let socket = scripted(folder.path(), move |peer| {
        let own = heard(peer)["id"].as_str().unwrap().to_owned();
        for text in ["first", "the same id again"] {
            say(peer, &format!(r#"{{"type":"message","id":"k","chat":"main","text":"{text}"}}"#));
            send.send(heard(peer)).unwrap();
        }
        say(peer, &format!(r#"{{"type":"settled","id":"{own}","outcome":"completed"}}"#));
    });
    let (out, done) = once(&socket, &args(LIMIT, false), "hello");
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(out, "first\n");
    let acks: Vec<_> = acks.iter().collect();
    assert_eq!(acks, vec![serde_json::json!({"type": "ack", "id": "k"}); 2]);
}

#[test]
fn lines_are_said_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| echo(chat, &it));
    let (out, done) = piped(&socket, b"one\n\n  \ntwo\r\nthree");
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(out, "re: one\nre: two\nre: three\n");
}

#[test]
fn the_first_line_that_fails_ends_the_input() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| {
        if it.content.contains("bad") {
            chat.accepted(it.receipt, false);
            settle(chat, &it.message_id, "failed");
        } else {
            echo(chat, &it);
        }
    });
    let (out, done) = piped(&socket, b"good\nbad\nnever said\n");
    assert!(matches!(done, Err(ChatError::TurnFailed { .. })), "{done:?}");
    assert_eq!(out, "re: good\n");
}

#[test]
fn a_reply_that_nobody_asked_for_is_acknowledged_while_the_input_is_silent() {
    let folder = tempfile::tempdir().unwrap();
    let (input, typist) = UnixStream::pair().unwrap();
    let socket = serve_all(folder.path(), move |chat, event| match event {
        ChannelEvent::Up { chat: Some(_), .. } => reply(chat, 7, "k7", "by the way"),
        // The input ends only now: had the client waited for it, neither would ever come.
        ChannelEvent::Delivered { ticket: 7, .. } => typist.shutdown(std::net::Shutdown::Both).unwrap(),
        _ => {}
    });
    let mut out = Vec::new();
    let to = Output { to: &mut out, is_terminal: false };
    let done = oneshot::lines(&args(LIMIT, false), &socket, BufReader::new(input), to);
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(out, b"by the way\n");
}

#[test]
fn a_failed_turn_is_an_error_with_outcome_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| {
        chat.accepted(it.receipt, false);
        settle(chat, "another", "completed");
        settle(chat, &it.message_id, "parked");
    });
    let error = once(&socket, &args(LIMIT, false), "hello").1.unwrap_err();
    assert_eq!(error.to_string(), "the turn ended as parked: because");
    assert!(error.hint().contains("lamplighter status"));
}

#[test]
fn a_refused_message_is_an_error_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| chat.refused(it.receipt, "no room"));
    let (_, done) = once(&socket, &args(LIMIT, false), "hello");
    assert!(matches!(done, Err(ChatError::Refused { reason }) if reason == "no room"));
}

#[test]
fn a_message_that_is_too_long_is_refused_before_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |_, _| panic!("it was sent"));
    let (_, done) = once(&socket, &args(LIMIT, false), &"x".repeat(LINE_MAX));
    assert!(matches!(done, Err(ChatError::Refused { .. })), "{done:?}");
}

#[test]
fn a_turn_that_takes_too_long_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| chat.accepted(it.receipt, false));
    let (_, done) = once(&socket, &args(1, false), "hello");
    assert!(matches!(done, Err(ChatError::Timeout { seconds: 1 })), "{done:?}");
}

#[test]
fn a_daemon_that_does_not_answer_hello_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mute.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let (_, done) = once(&path, &args(1, false), "hello");
    assert!(matches!(done, Err(ChatError::Timeout { seconds: 1 })), "{done:?}");
}

#[test]
fn a_missing_daemon_is_named_with_the_way_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody.sock");
    let left = folder.path().join("left.sock");
    drop(UnixListener::bind(&left).unwrap());
    for socket in [path, left] {
        let error = once(&socket, &args(LIMIT, false), "hello").1.unwrap_err();
        assert_eq!(error.to_string(), format!("no daemon listens on {}", socket.display()));
        assert!(error.hint().contains("lamplighter run --data"));
    }
}

#[test]
fn a_bad_chat_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |_, _| ());
    let args = ChatArgs { chat: "../x".into(), ..args(LIMIT, false) };
    assert!(matches!(once(&socket, &args, "hello").1, Err(ChatError::Refused { .. })));
}

#[test]
fn a_connection_that_closes_before_the_end_of_the_turn_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let socket = scripted(folder.path(), |peer| drop(heard(peer)));
    assert!(matches!(once(&socket, &args(LIMIT, false), "hello").1, Err(ChatError::Lost)));
}

#[test]
fn an_endless_line_of_the_daemon_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let socket = scripted(folder.path(), |peer| {
        // Cut off when the client has read enough.
        drop(peer.get_mut().write_all(&vec![b'x'; LINE_MAX + 1]));
        drop(peer.read_to_end(&mut Vec::new()));
    });
    assert!(matches!(once(&socket, &args(LIMIT, false), "hello").1, Err(ChatError::Protocol(_))));
}

#[test]
fn json_prints_every_line_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let socket = scripted(folder.path(), |peer| {
        let own = heard(peer)["id"].as_str().unwrap().to_owned();
        say(peer, r#"{"type":"of a later daemon", "x":1}"#);
        say(peer, r#"{ "type":"message","id":"k","chat":"main","text":"hi" }"#);
        heard(peer);
        say(peer, &format!(r#"{{"type":"settled","id":"{own}","outcome":"completed"}}"#));
    });
    let (out, done) = once(&socket, &args(LIMIT, true), "hello");
    assert!(done.is_ok(), "{done:?}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert_eq!(lines[0], r#"{"type":"hello","protocol":1}"#);
    assert_eq!(lines[1], r#"{"type":"of a later daemon", "x":1}"#);
    assert_eq!(lines[2], r#"{ "type":"message","id":"k","chat":"main","text":"hi" }"#);
    assert!(lines[3].contains("settled"));
}

#[test]
fn output_that_nobody_reads_is_success_and_the_reply_is_not_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (send, rest) = mpsc::channel();
    let socket = scripted(folder.path(), move |peer| {
        heard(peer);
        say(peer, r#"{"type":"message","id":"k","chat":"main","text":"hi"}"#);
        let mut after = String::new();
        drop(peer.read_to_string(&mut after));
        drop(send.send(after));
    });
    let (mut out, nobody) = UnixStream::pair().unwrap();
    drop(nobody);
    let to = Output { to: &mut out, is_terminal: false };
    let done = oneshot::once(&args(LIMIT, false), &socket, "hello", to);
    assert!(unless_nobody_reads(done).is_ok());
    assert_eq!(rest.recv_timeout(Duration::from_secs(LIMIT)).unwrap(), "");
}

/// Follows a connection to its end and returns what was printed.
fn followed(reader: &mut LineReader, shared: &Shared) -> Vec<String> {
    let mut printed = Vec::new();
    let mut print = |text: String| {
        printed.push(text);
        Ok(())
    };
    follow(reader, shared, &mut Seen::default(), &mut print).unwrap();
    printed
}

#[test]
fn a_conversation_shows_replies_failures_and_that_work_begins() {
    let folder = tempfile::tempdir().unwrap();
    let socket = scripted(folder.path(), |peer| {
        for on in [true, true, false, true] {
            say(peer, &format!(r#"{{"type":"typing","chat":"main","on":{on}}}"#));
        }
        say(peer, r#"{"type":"message","id":"k","chat":"main","text":"a\u001b[2Jb\n"}"#);
        heard(peer);
        say(peer, r#"{"type":"settled","id":"x","outcome":"failed","reason":"no key"}"#);
        say(peer, r#"{"type":"settled","id":"y","outcome":"completed"}"#);
    });
    let Connection { mut reader, writer, .. } = Connection::open(&socket, "main", ANSWER_MAX).unwrap();
    let printed = followed(&mut reader, &Shared::new(writer, true));
    let works = "\x1b[2mmain is working\x1b[0m";
    let again = format!("{ERASE}{works}");
    let reply = format!("{ERASE}a\u{fffd}[2Jb");
    assert_eq!(printed, [works, &again, &reply, "[the turn ended as failed: no key]"]);
}

#[test]
fn what_the_client_says_itself_is_plain_where_no_colour_is_wanted_and_never_takes_a_typed_line_away() {
    let folder = tempfile::tempdir().unwrap();
    let (typed, go_on) = mpsc::channel();
    let socket = scripted(folder.path(), move |peer| {
        say(peer, r#"{"type":"typing","chat":"main","on":true}"#);
        go_on.recv().unwrap();
        say(peer, r#"{"type":"stuck","chat":"main","reason":"it does not\u001b start","hopeless":true}"#);
    });
    let Connection { mut reader, writer, .. } = Connection::open(&socket, "main", ANSWER_MAX).unwrap();
    let shared = Shared::new(writer, false);
    let mut printed = Vec::new();
    let mut print = |text: String| {
        if printed.is_empty() {
            shared.say("typed meanwhile").unwrap();
            typed.send(()).unwrap();
        }
        printed.push(text);
        Ok(())
    };
    follow(&mut reader, &shared, &mut Seen::default(), &mut print).unwrap();
    assert_eq!(printed, ["main is working", "[it does not\u{fffd} start]"]);
}

#[test]
fn an_agent_that_does_not_start_ends_the_wait_once_the_message_is_safe() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| {
        chat.stuck("chat:main", "no key, tried again", false);
        chat.stuck("chat:main", "no key", true);
        chat.accepted(it.receipt, false);
    });
    let error = once(&socket, &args(LIMIT, false), "hello").1.unwrap_err();
    assert_eq!(error.to_string(), "the message is kept, but not worked on: no key");
    assert!(error.hint().contains("lamplighter status"));
}

#[test]
fn a_reply_cannot_steer_the_terminal_and_reaches_a_program_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = "a\u{1b}]52;c;aGk=\u{7}b";
    let socket = serve(folder.path(), move |chat, it| {
        chat.accepted(it.receipt, false);
        reply(chat, it.receipt, &format!("k{}", it.receipt), hostile);
        settle(chat, &it.message_id, "completed");
    });
    for (is_terminal, expected) in
        [(true, "a\u{fffd}]52;c;aGk=\u{fffd}b\n".to_owned()), (false, format!("{hostile}\n"))]
    {
        let mut out = Vec::new();
        let to = Output { to: &mut out, is_terminal };
        oneshot::once(&args(LIMIT, false), &socket, "hello", to).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn an_empty_text_is_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    let args = ChatArgs { text: vec![String::new(), " ".into()], ..args(LIMIT, false) };
    // Before anything is connected to: nobody listens there.
    let done = run(&args, &folder.path().join("nobody.sock"), &folder.path().join("history"));
    assert!(matches!(done, Err(ChatError::NothingSaid)), "{done:?}");
}

#[test]
fn a_message_that_was_not_accepted_is_said_again_with_its_id() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (send, said) = mpsc::channel();
    let again = send.clone();
    let socket = scripted(first.path(), move |peer| {
        let (kept, lost) = (heard(peer), heard(peer));
        let id = kept["id"].as_str().unwrap();
        say(peer, &format!(r#"{{"type":"accepted","id":"{id}","duplicate":false}}"#));
        send.send(lost).unwrap();
    });
    let Connection { mut reader, writer, .. } = Connection::open(&socket, "main", ANSWER_MAX).unwrap();
    let shared = Shared::new(writer, true);
    shared.say("kept").unwrap();
    shared.say("lost").unwrap();
    assert_eq!(followed(&mut reader, &shared), [""; 0]);
    let socket = scripted(second.path(), move |peer| again.send(heard(peer)).unwrap());
    let Connection { writer, .. } = Connection::open(&socket, "main", ANSWER_MAX).unwrap();
    shared.renew(writer).unwrap();
    let limit = Duration::from_secs(LIMIT);
    let (lost, again) = (said.recv_timeout(limit).unwrap(), said.recv_timeout(limit).unwrap());
    assert_eq!(lost["text"], "lost");
    assert_eq!(lost, again);
}

#[test]
fn messages_for_a_daemon_that_is_away_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let socket = scripted(folder.path(), |_| ());
    let Connection { writer, .. } = Connection::open(&socket, "main", ANSWER_MAX).unwrap();
    let shared = Shared::new(writer, true);
    let refused = (0..1_000).find(|_| matches!(shared.say("x"), Err(ChatError::Refused { .. })));
    assert_eq!(refused, Some(64));
}

#[test]
fn the_ids_of_replies_are_remembered_within_a_bound() {
    let mut seen = Seen::default();
    (0..5_000).for_each(|n| seen.note(&n.to_string()));
    assert!(seen.has("4999") && seen.has("904") && !seen.has("903"));
}

#[test]
fn message_ids_are_sixteen_digits_and_differ() {
    let (one, two) = (new_id().unwrap(), new_id().unwrap());
    assert!(one.len() == 16 && one.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_ne!(one, two);
}

const QUESTION: &str = r#"{"type":"message","id":"q","chat":"main","text":"Which?\n  1. A\n  2. B","question":
    {"id":"q","title":"","question":"Which?","options":["A","B"],"timeout_ms":1000}}"#;

#[test]
fn the_next_line_of_the_input_answers_a_question_of_the_turn() {
    let folder = tempfile::tempdir().unwrap();
    let (send, said) = mpsc::channel();
    let socket = scripted(folder.path(), move |peer| {
        let own = heard(peer)["id"].as_str().unwrap().to_owned();
        say(peer, &QUESTION.replace('\n', ""));
        heard(peer);
        send.send(heard(peer)["text"].clone()).unwrap();
        say(peer, &format!(r#"{{"type":"settled","id":"{own}","outcome":"completed"}}"#));
        // Stays until the client has seen the end of its input.
        drop(peer.read_to_end(&mut Vec::new()));
    });
    let (out, done) = piped(&socket, b"ask me\n2\n");
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(out, "Which?\n  1. A\n  2. B\n");
    assert_eq!(said.recv().unwrap(), "2");
}

#[test]
fn files_are_named_with_size_and_place_and_what_was_not_sent_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let socket = scripted(folder.path(), move |peer| {
        let own = heard(peer)["id"].as_str().unwrap().to_owned();
        say(
            peer,
            &serde_json::json!({
                "type": "message", "id": "k", "chat": "main", "text": "",
                "files": [{"name": "a", "path": "/d/a", "bytes": 2048}],
                "skipped": [{"name": "b", "reason": "gone"}],
            })
            .to_string(),
        );
        heard(peer);
        say(peer, &format!(r#"{{"type":"settled","id":"{own}","outcome":"completed"}}"#));
    });
    let (out, done) = once(&socket, &args(LIMIT, false), "send");
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(out, "[file a, 2 KiB: /d/a]\n[file b was not sent: gone]\n");
}

#[test]
fn a_question_in_a_conversation_says_how_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let socket = scripted(folder.path(), |peer| {
        say(peer, &QUESTION.replace('\n', ""));
        heard(peer);
    });
    let Connection { mut reader, writer, .. } = Connection::open(&socket, "main", ANSWER_MAX).unwrap();
    let printed = followed(&mut reader, &Shared::new(writer, true));
    assert_eq!(printed, ["Which?\n  1. A\n  2. B".to_owned(), format!("\x1b[2m{HINT}\x1b[0m")]);
}
