use std::sync::mpsc::{self, Receiver};

use super::*;
use crate::base::Wall;
use crate::channels::content::Content;
use crate::channels::{SentFile, SkippedFile};

/// A bound for waiting on threads of a loaded machine; reaching it is a failure.
const LIMIT: Duration = Duration::from_secs(30);

struct Fixed;

impl Clock for Fixed {
    fn monotonic_micros(&self) -> i64 {
        0
    }
    fn wall(&self) -> Wall {
        Wall(1_700_000_000_000_000)
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    chat: Chat,
    events: Receiver<ChannelEvent>,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let (send, events) = mpsc::channel();
    let send = Mutex::new(send);
    let sink: Sink = Arc::new(move |event| drop(lock(&send).send(event)));
    let chat = Chat::start(&folder.path().join("chat.sock"), Arc::new(Fixed), sink).unwrap();
    let it = Fixture { folder, chat, events };
    assert_eq!(it.next(), ChannelEvent::Up { channel: CHANNEL, chat: None });
    it
}

struct Peer {
    reader: BufReader<UnixStream>,
}

impl Peer {
    fn send(&mut self, line: &str) {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Fixture {
    fn next(&self) -> ChannelEvent {
        self.events.recv_timeout(LIMIT).expect("no event in time")
    }

    fn connect(&self) -> Peer {
        let stream = UnixStream::connect(self.folder.path().join("chat.sock")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Peer { reader: BufReader::new(stream) }
    }

    fn join(&self, name: &str) -> Peer {
        let mut peer = self.connect();
        peer.send(&format!(r#"{{"type":"hello","protocol":1,"chat":"{name}","receive":true}}"#));
        assert_eq!(peer.line(), r#"{"type":"hello","protocol":1}"#);
        let up = ChannelEvent::Up { channel: CHANNEL, chat: Some(format!("chat:{name}")) };
        assert_eq!(self.next(), up);
        peer
    }

    fn arrived(&self) -> Arrived {
        match self.next() {
            ChannelEvent::Arrived(arrived) => arrived,
            other => panic!("{other:?}"),
        }
    }

    fn deliver(&self, ticket: u64, chat: &str, text: &str) {
        self.chat.deliver(Delivery {
            ticket,
            key: format!("k{ticket}"),
            chat: format!("chat:{chat}"),
            thread: None,
            content: Content::text(text),
            files: Vec::new(),
            skipped: Vec::new(),
            in_reply_to: None,
        });
    }
}

#[test]
fn a_message_is_accepted_only_when_the_host_says_so() {
    let it = fixture();
    let mut peer = it.join("main");
    peer.send(r#"{"type":"message","id":"a1","text":"hi"}"#);
    let arrived = it.arrived();
    assert_eq!((arrived.chat.as_str(), arrived.message_id.as_str()), ("chat:main", "a1"));
    assert!(arrived.content.contains(r#""text":"hi""#), "{}", arrived.content);
    it.chat.accepted(arrived.receipt, true);
    assert_eq!(peer.line(), r#"{"type":"accepted","id":"a1","duplicate":true}"#);
    peer.send(r#"{"type":"message","text":"no id"}"#);
    let arrived = it.arrived();
    assert!(arrived.message_id.starts_with("cli-1700000000000-"), "{}", arrived.message_id);
    it.chat.refused(arrived.receipt, "no room");
    assert!(peer.line().contains("no room"));
}

#[test]
fn a_reply_is_delivered_when_a_client_acknowledges_it() {
    let it = fixture();
    let (mut one, mut other) = (it.join("main"), it.join("other"));
    it.deliver(1, "main", "hello");
    assert_eq!(one.line(), r#"{"type":"message","id":"k1","chat":"main","text":"hello"}"#);
    one.send(r#"{"type":"ack","id":"k1"}"#);
    assert_eq!(it.next(), ChannelEvent::Delivered { ticket: 1, platform_id: Some("k1".into()) });
    it.deliver(2, "other", "there");
    assert!(other.line().contains("there"));
    it.chat.settled("chat:main", Settled { id: "a1".into(), outcome: "completed", reason: None });
    assert_eq!(one.line(), r#"{"type":"settled","id":"a1","outcome":"completed"}"#);
}

#[test]
fn without_a_client_there_is_no_recipient_until_one_comes() {
    let it = fixture();
    it.deliver(1, "main", "hello");
    assert!(matches!(it.next(), ChannelEvent::Failed { ticket: 1, fault: Fault::NoRecipient, .. }));
    drop(it.join("main"));
}

#[test]
fn a_client_that_leaves_before_it_acknowledges_leaves_the_reply_without_recipient() {
    let it = fixture();
    let mut peer = it.join("main");
    it.deliver(1, "main", "hello");
    assert!(peer.line().contains("hello"));
    drop(peer);
    assert!(matches!(it.next(), ChannelEvent::Failed { ticket: 1, fault: Fault::NoRecipient, .. }));
}

#[test]
fn bad_lines_are_named_and_the_client_goes_on() {
    let it = fixture();
    let mut peer = it.connect();
    peer.send("nonsense");
    assert!(peer.line().contains("not a line of this protocol"));
    peer.send(r#"{"type":"message","text":"x"}"#);
    assert!(peer.line().contains("say hello first"));
    peer.send(r#"{"type":"hello","protocol":9,"chat":"main"}"#);
    assert!(peer.line().contains("protocol 1"));
    peer.send(r#"{"type":"hello","protocol":1,"chat":"../x"}"#);
    assert!(peer.line().contains("chat's name"));
    peer.send(r#"{"type":"hello","protocol":1,"chat":"main"}"#);
    assert!(peer.line().contains("hello"));
    peer.send(r#"{"type":"message","id":"a/b","text":"x"}"#);
    assert!(peer.line().contains("refused"));
    peer.send(r#"{"type":"ping"}"#);
    assert_eq!(peer.line(), r#"{"type":"pong"}"#);
}

#[test]
fn an_over_long_line_ends_the_client_with_a_reason() {
    let it = fixture();
    let mut peer = it.connect();
    let mut writes = peer.reader.get_ref().try_clone().unwrap();
    // Once the daemon has closed its end, the rest cannot be written: that is what is expected.
    let writer = std::thread::spawn(move || drop(writes.write_all(&vec![b'x'; LINE_MAX + 10])));
    assert!(peer.line().contains("at most"));
    drop(peer);
    writer.join().unwrap();
}

#[test]
fn a_client_that_sends_too_fast_is_held_back_and_loses_nothing() {
    let it = fixture();
    let peer = it.join("main");
    let mut writes = peer.reader.get_ref().try_clone().unwrap();
    let total = UNANSWERED_MAX as u64 * 3;
    let writer = std::thread::spawn(move || {
        for n in 0..total {
            writes
                .write_all(format!("{{\"type\":\"message\",\"id\":\"m{n}\",\"text\":\"x\"}}\n").as_bytes())
                .unwrap();
        }
    });
    for n in 0..UNANSWERED_MAX {
        assert_eq!(it.arrived().message_id, format!("m{n}"));
    }
    assert!(it.events.try_recv().is_err(), "more than the bound came without an answer");
    for n in 0..total {
        it.chat.accepted(n, false);
        if n + (UNANSWERED_MAX as u64) < total {
            assert_eq!(it.arrived().message_id, format!("m{}", n + UNANSWERED_MAX as u64));
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let it = fixture();
    let peer = it.join("main");
    let big = "x".repeat(1 << 19);
    for ticket in 0..32 {
        it.deliver(ticket, "main", &big);
    }
    for _ in 0..32 {
        assert!(matches!(it.next(), ChannelEvent::Failed { fault: Fault::NoRecipient, .. }));
    }
    drop(peer);
}

#[test]
fn every_form_has_a_line_whose_text_says_all_of_it() {
    let line = |content: &str| {
        let delivery = Delivery {
            ticket: 1,
            key: "k1".into(),
            chat: "chat:main".into(),
            thread: None,
            content: Content::parse(content).unwrap(),
            files: vec![SentFile { name: "a.txt".into(), path: "/d/files/main/k1-0-a.txt".into(), bytes: 3 }],
            skipped: vec![SkippedFile { name: "b".into(), reason: "it is a link".into() }],
            in_reply_to: None,
        };
        let line: serde_json::Value = serde_json::from_slice(&line_of(delivery).line()).unwrap();
        assert_eq!(line["files"], json!([{"name": "a.txt", "path": "/d/files/main/k1-0-a.txt", "bytes": 3}]));
        assert_eq!(line["skipped"], json!([{"name": "b", "reason": "it is a link"}]));
        line
    };
    let question = line(
        r#"{"type":"ask_question","questionId":"q","title":"T","question":"Q?","timeoutMs":500,"options":["A","B"]}"#,
    );
    assert_eq!(question["text"], "T\nQ?\n  1. A\n  2. B");
    let parts = json!({"id": "q", "title": "T", "question": "Q?", "options": ["A", "B"], "timeout_ms": 500});
    assert_eq!(question["question"], parts);
    let edit = line(r#"{"operation":"edit","messageId":"1.2.0","text":"new"}"#);
    assert_eq!((&edit["text"], &edit["edits"]), (&json!("1.2.0 now reads: new"), &json!("1.2.0")));
    let reaction = line(r#"{"operation":"reaction","messageId":"m1","emoji":"👍"}"#);
    assert_eq!((&reaction["text"], &reaction["reacts_to"]), (&json!("👍 on m1"), &json!("m1")));
    assert_eq!(line(r#"{"type":"card","fallbackText":"card"}"#)["text"], "card");
    let text = line(r#"{"text":"x"}"#);
    assert!(["question", "edits", "reacts_to"].iter().all(|key| text.get(key).is_none()), "{text}");
}

#[test]
fn stopping_ends_all_clients_and_removes_the_socket() {
    let it = fixture();
    let mut peer = it.join("main");
    let path = it.folder.path().join("chat.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    it.chat.stop();
    assert!(matches!(it.next(), ChannelEvent::Down { .. }));
    assert_eq!(peer.line(), "");
    assert!(!path.exists());
}

#[test]
fn a_client_that_does_not_read_does_not_hold_up_the_stop() {
    let it = fixture();
    let (mut idle, mut other) = (it.join("main"), it.join("other"));
    // More than the socket holds, and less than what it would be cut off for: its writer is stuck.
    let big = "x".repeat(1 << 19);
    for ticket in 0..6 {
        it.deliver(ticket, "main", &big);
    }
    it.deliver(6, "other", "the last word");
    let (done, stopped) = mpsc::channel();
    let Fixture { folder: _folder, chat, events } = it;
    std::thread::spawn(move || {
        chat.stop();
        done.send(()).unwrap();
    });
    stopped.recv_timeout(LIMIT).expect("it still waits for a client that does not read");
    assert!(other.line().contains("the last word"), "whoever reads gets what was written");
    let told: Vec<_> = events.try_iter().collect();
    let failed =
        |event: &&ChannelEvent| matches!(event, ChannelEvent::Failed { fault: Fault::NoRecipient, .. });
    assert_eq!(told.iter().filter(failed).count(), 7, "{told:?}");
    assert!(matches!(told.last(), Some(ChannelEvent::Down { .. })), "{told:?}");
    // Its end is closed, after what lay in the socket.
    let mut rest = Vec::new();
    idle.reader.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 6 << 19, "{}", rest.len());
}

#[test]
fn a_repeated_hello_is_no_news_and_changes_of_the_chat_are_bounded() {
    let it = fixture();
    let mut peer = it.join("main");
    let hello = r#"{"type":"hello","protocol":1,"chat":"main","receive":true}"#;
    for _ in 0..1_000 {
        peer.send(hello);
        assert_eq!(peer.line(), r#"{"type":"hello","protocol":1}"#);
    }
    assert!(it.events.try_recv().is_err(), "a repeat was told");
    let mut told = 0;
    let refused = (0..).find_map(|n| {
        peer.send(&format!(r#"{{"type":"hello","protocol":1,"chat":"c{n}","receive":true}}"#));
        let line = peer.line();
        told += 1;
        line.contains("error").then_some(line)
    });
    assert!(refused.unwrap().contains("connect again"));
    assert_eq!(told, HELLOS_MAX);
    assert_eq!(peer.line(), "", "it is cut off");
}

#[test]
fn only_who_was_given_a_reply_can_acknowledge_it() {
    let it = fixture();
    let (mut one, mut other) = (it.join("main"), it.join("other"));
    it.deliver(1, "main", "hello");
    one.line();
    other.send(r#"{"type":"ack","id":"k1"}"#);
    other.send(r#"{"type":"ping"}"#);
    assert_eq!(other.line(), r#"{"type":"pong"}"#);
    assert!(it.events.try_recv().is_err());
    one.send(r#"{"type":"ack","id":"k1"}"#);
    assert_eq!(it.next(), ChannelEvent::Delivered { ticket: 1, platform_id: Some("k1".into()) });
}

#[test]
fn the_clients_of_a_chat_are_told_why_nothing_goes_on() {
    let it = fixture();
    let (mut one, mut other) = (it.join("main"), it.join("other"));
    it.chat.stuck("chat:main", "no key", true);
    assert_eq!(one.line(), r#"{"type":"stuck","chat":"main","reason":"no key","hopeless":true}"#);
    other.send(r#"{"type":"ping"}"#);
    assert_eq!(other.line(), r#"{"type":"pong"}"#);
}

#[test]
fn a_client_that_is_cut_off_while_it_is_not_read_ends_at_once() {
    let it = fixture();
    let mut peer = it.join("main");
    for n in 0..=UNANSWERED_MAX {
        peer.send(&format!(r#"{{"type":"message","id":"a{n}","text":"hi"}}"#));
    }
    (0..UNANSWERED_MAX).for_each(|_| drop(it.arrived()));
    it.deliver(1, "main", "hello");
    lock(&it.chat.hub.state).waiting.values_mut().for_each(|waiting| waiting.until = Instant::now());
    // As its time would do.
    it.chat.hub.changed.notify_all();
    let failed = it.next();
    assert!(
        matches!(failed, ChannelEvent::Failed { ticket: 1, fault: Fault::NoRecipient, .. }),
        "{failed:?}"
    );
}
