use std::sync::mpsc::{self, Receiver};

use super::*;
use crate::base::Wall;

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
    assert_eq!(it.next(), ChannelEvent::Up { channel: CHANNEL, chat: None, idempotent: true });
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
        let up = ChannelEvent::Up { channel: CHANNEL, chat: Some(format!("chat:{name}")), idempotent: true };
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
            content: json!({"text": text}).to_string(),
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
fn what_the_channel_cannot_show_fails_for_good() {
    assert!(text_of(r#"{"operation":"edit","messageId":"1","text":"x"}"#).unwrap_err().contains("edit"));
    assert!(text_of(r#"{"type":"card"}"#).unwrap_err().contains("card"));
    assert!(text_of(r#"{"text":"x","files":["a"]}"#).is_err());
    assert!(text_of("{}").is_err());
    assert_eq!(text_of(r#"{"text":"x"}"#).as_deref(), Ok("x"));
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
