use std::sync::{Arc, Mutex, mpsc};

use super::*;
use crate::base::{Clock, Wall};
use crate::channels::chat::Chat;
use crate::channels::{Channel, ChannelEvent, Delivery, Settled};

struct Fixed;

impl Clock for Fixed {
    fn monotonic_micros(&self) -> i64 {
        0
    }
    fn wall(&self) -> Wall {
        Wall(0)
    }
}

/// The real channel, with a host that does to each arrival what the test says.
fn serve(folder: &Path, host: impl Fn(&Chat, crate::channels::Arrived) + Send + 'static) -> PathBuf {
    let path = folder.join("chat.sock");
    let (send, events) = mpsc::channel();
    let send = Mutex::new(send);
    let sink: crate::channels::Sink = Arc::new(move |event| drop(send.lock().unwrap().send(event)));
    let chat = Chat::start(&path, Arc::new(Fixed), sink).unwrap();
    std::thread::spawn(move || {
        for event in events {
            if let ChannelEvent::Arrived(arrived) = event {
                host(&chat, arrived);
            }
        }
    });
    path
}

fn reply(chat: &Chat, key: &str, text: &str) {
    let content = serde_json::json!({"text": text}).to_string();
    chat.deliver(Delivery {
        ticket: 1,
        key: key.into(),
        chat: "chat:main".into(),
        thread: None,
        content,
        in_reply_to: None,
    });
}

fn settle(chat: &Chat, id: &str, outcome: &'static str) {
    let reason = (outcome != "completed").then(|| "because".to_owned());
    chat.settled("chat:main", Settled { id: id.into(), outcome, reason });
}

fn args(timeout: Option<u64>) -> ChatArgs {
    ChatArgs { chat: "main".into(), timeout, json: false, text: Vec::new() }
}

fn talk(socket: &Path, args: &ChatArgs, input: &str) -> (String, Result<(), ChatError>) {
    let mut out = Vec::new();
    let mut connection = Connection::open(socket, &args.chat).unwrap();
    let done = each_line(&mut connection, args, &mut input.as_bytes(), &mut out);
    (String::from_utf8(out).unwrap(), done)
}

#[test]
fn lines_are_said_in_turn_and_replies_printed_once() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| {
        chat.accepted(it.receipt, false);
        reply(chat, &format!("k{}", it.receipt), &format!("reply to {}", it.content.contains("two")));
        reply(chat, &format!("k{}", it.receipt), "the same id again");
        settle(chat, &it.message_id, "completed");
    });
    let (out, done) = talk(&socket, &args(Some(30)), "one\n\ntwo\n");
    assert!(done.is_ok(), "{done:?}");
    assert_eq!(out, "reply to false\nreply to true\n");
}

#[test]
fn a_failed_turn_and_a_refused_message_are_errors_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| {
        if it.content.contains("refuse") {
            chat.refused(it.receipt, "no room");
        } else {
            chat.accepted(it.receipt, false);
            settle(chat, &it.message_id, "parked");
        }
    });
    let (_, done) = talk(&socket, &args(Some(30)), "refuse me\n");
    assert!(matches!(done, Err(ChatError::Refused { reason }) if reason == "no room"));
    let (_, done) = talk(&socket, &args(Some(30)), "fail me\n");
    assert_eq!(done.unwrap_err().to_string(), "the turn ended as parked: because");
}

#[test]
fn a_turn_that_takes_too_long_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = serve(folder.path(), |chat, it| chat.accepted(it.receipt, false));
    let (_, done) = talk(&socket, &args(Some(1)), "hello\n");
    assert!(matches!(done, Err(ChatError::Timeout { seconds: 1 })));
}

#[test]
fn a_missing_daemon_and_a_bad_chat_name_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nobody.sock");
    let error = Connection::open(&socket, "main").err().unwrap();
    assert!(error.to_string().contains("nobody.sock") && error.hint().contains("lamplighter run"));
    let socket = serve(folder.path(), |_, _| ());
    assert!(matches!(Connection::open(&socket, "../x"), Err(ChatError::Refused { .. })));
}
