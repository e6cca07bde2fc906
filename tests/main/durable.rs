//! What the loop waits for and what it does not, with the real daemon on a disk and on files that the run holds.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lamplighter::journal::frame::Kind;
use lamplighter::journal::record::{RECORD_SCHEMA, decode_record};
use lamplighter::journal::segment::SegmentReader;
use lamplighter::machine::effect::Effect;
use rusqlite::Connection;

use crate::embedded::{Embedded, HeldDisk};
use crate::support::{Daemon, LIMIT, segments, until};

/// Whether a delivery is among what was written to the journal, durable or not.
fn is_decided(journal: &Path) -> bool {
    segments(journal).iter().any(|path| {
        let mut reader = SegmentReader::open(path).unwrap();
        while let Ok(Some(frame)) = reader.next_frame() {
            if frame.kind != Kind::Record {
                continue;
            }
            let record = decode_record(RECORD_SCHEMA, frame.body).unwrap();
            if record.effects.iter().any(|effect| matches!(effect, Effect::Deliver { .. })) {
                return true;
            }
        }
        false
    })
}

#[test]
fn a_delivery_that_cannot_be_repeated_waits_until_its_record_is_durable() {
    for sync in ["group", "none"] {
        let disk = Arc::new(HeldDisk::default());
        let mut daemon =
            Embedded::start_on(&format!("[journal]\nsync = \"{sync}\"\n"), Arc::clone(&disk) as _);
        disk.hold(true);
        daemon.arrives();
        let journal = daemon.data().join("journal");
        until("the delivery is decided and written", || is_decided(&journal));
        // The turn that wrote it is over when the loop answers.
        assert_eq!(daemon.status()["messages"]["outbound_open"], 1, "{sync}");
        assert!(!daemon.was_delivered(), "{sync}: it was sent before its record was durable");
        disk.hold(false);
        let delivery = daemon.delivery();
        daemon.delivered(&delivery);
        daemon.settled();
        daemon.stop();
    }
}

/// A connection that waits for a lock.
fn open(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.busy_timeout(LIMIT).unwrap();
    db
}

fn count(db: &Connection, table: &str) -> i64 {
    db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

/// Nobody writes again after the first reply, so what is missed here is missed for good.
#[test]
fn a_first_reply_is_delivered_although_inbound_db_is_locked_and_the_loop_goes_on_meanwhile() {
    let rule = "{ pattern = \".\", reply = \"late\", delay_ms = 500 }";
    let mut daemon = Embedded::start(&format!("[agent]\nmock = {{ rules = [{rule}] }}\n"));
    daemon.arrives();
    let session = daemon.session();
    let (inbound, outbound) = (open(&session.join("in/inbound.db")), open(&session.join("out/outbound.db")));
    until("the runner has claimed", || count(&outbound, "processing_ack") == 1);
    inbound.execute_batch("BEGIN EXCLUSIVE").unwrap();
    until("the reply is committed", || count(&outbound, "messages_out") == 1);
    // The reading has come to the loop when its reads stand still; none of its answers waits for the lock.
    let mut reads = 0;
    until("the reply was read", || {
        std::thread::sleep(Duration::from_millis(50));
        let now = daemon.status()["reactor"]["reads"].as_u64().unwrap();
        std::mem::replace(&mut reads, now) == now
    });
    assert!(!daemon.was_delivered(), "nobody can tell whether it was delivered before");
    inbound.execute_batch("COMMIT").unwrap();
    let delivery = daemon.delivery();
    assert_eq!(delivery.content.text, "late");
    daemon.delivered(&delivery);
    daemon.settled();
    daemon.stop();
}

/// No runner comes back to roll the journal back, so all of it is read from copies, one after the other as room is made.
#[test]
fn everything_that_was_committed_before_a_hot_journal_arrives_before_the_next_start() {
    const REPLIES: usize = 700;
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/main/says_much_and_dies.py");
    let daemon = Daemon::start(&format!(
        "[policy]\nstart_backoff = \"1h\"\nstart_backoff_max = \"1h\"\n\
         [runtime.process]\ncommand = [\"python3\", \"{}\", \"{REPLIES}\"]\n",
        program.display()
    ));
    let mut client = daemon.client("main");
    client.say("m1", "hello").unwrap();
    let mut heard = Vec::new();
    while heard.len() < REPLIES {
        let line = client.line().expect("no more replies in time");
        if line["type"] == "message" {
            heard.push(line["text"].as_str().unwrap().to_owned());
        }
    }
    let said: Vec<String> = (0..REPLIES).map(|n| format!("reply {n}")).collect();
    assert_eq!(heard, said);
    assert!(daemon.log().contains("left a hot journal"), "the journal was not hot:\n{}", daemon.log());
}
