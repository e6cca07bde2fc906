//! Killed without warning, again and again, under load: the daemon, its runners, and both at once. Every message that
//! was accepted is answered exactly once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::support::{Client, Daemon, LIMIT};

const CONFIG: &str = "[policy]\nclaim_backoff = \"30ms\"\nstart_backoff = \"10ms\"\nstart_backoff_max = \"200ms\"\n\
                      claim_retries = 20\n[journal]\nsegment_bytes = 65536\n";
const CHATS: [&str; 3] = ["one", "two", "three"];

/// How often each is killed; `scripts/crash` does it fifty times.
fn rounds() -> u32 {
    std::env::var("CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5)
}

/// xorshift: a seed that is printed can be used again.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let seed = std::env::var("CRASH_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_nanos() as u64 | 1
        });
        println!("CRASH_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Messages of one chat that are on their way at once: several are claimed in one batch, and some lie between two.
const IN_FLIGHT: usize = 4;

/// What one chat has seen.
#[derive(Default)]
struct Seen {
    accepted: BTreeSet<String>,
    settled: BTreeSet<String>,
    /// Texts by reply id: a repeat of an id is dropped, as the protocol says.
    replies: BTreeMap<String, String>,
}

impl Seen {
    /// What is to be said again: it was said, and its turn has not ended.
    fn open<'a>(&self, said: &'a [String]) -> Vec<&'a String> {
        said.iter().filter(|id| !self.settled.contains(*id)).collect()
    }
}

/// Keeps some messages of a chat on their way, through every crash, until it is told to stop and all are settled.
fn talk(data: &Path, chat: &str, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut said: Vec<String> = Vec::new();
    let mut limit = None;
    while let Some(mut client) = reconnect(data, chat) {
        if converse(&mut client, chat, &mut said, stop, seen) {
            return;
        }
        let limit = *limit.get_or_insert_with(|| Instant::now() + LIMIT * 10);
        assert!(Instant::now() < limit, "chat {chat} does not come to an end");
    }
    panic!("chat {chat}: the daemon did not come back");
}

/// One connection. True when all is settled that was said, and nothing more is to be; false when the daemon went away.
fn converse(
    client: &mut Client,
    chat: &str,
    said: &mut Vec<String>,
    stop: &AtomicBool,
    seen: &Mutex<Seen>,
) -> bool {
    // Said again under the same ids until their turns have ended: a repeat is the same message.
    let again: Vec<String> = seen.lock().unwrap().open(said).into_iter().cloned().collect();
    for id in again {
        if client.say(&id, &format!("text of {id}")).is_none() {
            return false;
        }
    }
    loop {
        while !stop.load(Ordering::SeqCst) && seen.lock().unwrap().open(said).len() < IN_FLIGHT {
            let id = format!("{chat}-{}", said.len());
            said.push(id.clone());
            if client.say(&id, &format!("text of {id}")).is_none() {
                return false;
            }
        }
        if seen.lock().unwrap().open(said).is_empty() {
            return true;
        }
        if !hear(client, seen) {
            return false;
        }
    }
}

fn reconnect(data: &Path, chat: &str) -> Option<Client> {
    let limit = Instant::now() + LIMIT;
    while Instant::now() < limit {
        if let Some(client) = Client::connect(data, chat) {
            return Some(client);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Takes one line. False when the daemon went away, or is stopping.
fn hear(client: &mut Client, seen: &Mutex<Seen>) -> bool {
    let Some(line) = client.line() else { return false };
    let of = line["id"].as_str().unwrap_or_default().to_owned();
    let mut seen = seen.lock().unwrap();
    match line["type"].as_str().unwrap_or_default() {
        "accepted" => drop(seen.accepted.insert(of)),
        // The daemon is stopping: the same message again, later.
        "refused" => return false,
        "message" => {
            let text = line["text"].as_str().unwrap_or_default().to_owned();
            seen.replies.insert(of, text);
        }
        "settled" => {
            assert_eq!(line["outcome"], "completed", "{line}");
            // Its first copy may have been taken by the daemon that died, and its repeat not be answered yet.
            seen.accepted.insert(of.clone());
            seen.settled.insert(of);
        }
        _ => {}
    }
    true
}

/// How often daemons met a hot journal that a killed runner had left.
fn met_hot(daemon: &Daemon) -> usize {
    daemon.log().matches("left a hot journal").count()
}

/// In this many rounds a kill in mid-commit is met, or the rounds do not show what they are for.
const ROUNDS_WITH_HOT: u32 = 50;

/// `journal` is added to the section of that name, the last of the configuration.
fn crash(what: &str, journal: &str, kills_runners: bool, mut kill: impl FnMut(&mut Daemon)) {
    let mut chance = Chance::new();
    let mut daemon = Daemon::start(&format!("{CONFIG}{journal}"));
    let stop = Arc::new(AtomicBool::new(false));
    let seen: Vec<Arc<Mutex<Seen>>> = CHATS.iter().map(|_| Arc::default()).collect();
    let talkers: Vec<_> = CHATS
        .iter()
        .zip(&seen)
        .map(|(&chat, seen)| {
            let (data, stop, seen) = (daemon.data().to_owned(), Arc::clone(&stop), Arc::clone(seen));
            std::thread::spawn(move || talk(&data, chat, &stop, &seen))
        })
        .collect();
    for round in 0..rounds() {
        std::thread::sleep(Duration::from_millis(50 + chance.below(400)));
        if kills_runners && round % 2 == 0 {
            lurk(&daemon);
        }
        kill(&mut daemon);
    }
    stop.store(true, Ordering::SeqCst);
    for talker in talkers {
        if talker.join().is_err() {
            panic!("{what}: {}\n{}", daemon.ok(&["status"]), daemon.log());
        }
    }
    daemon.stop();
    let mut total = 0;
    for (chat, seen) in CHATS.iter().zip(&seen) {
        let seen = seen.lock().unwrap();
        let mut texts: Vec<&String> = seen.replies.values().collect();
        texts.sort();
        let mut expected: Vec<String> =
            seen.accepted.iter().map(|id| format!("echo: text of {id}")).collect();
        expected.sort();
        assert_eq!(texts, expected.iter().collect::<Vec<_>>(), "{what}, chat {chat}:\n{}", daemon.log());
        total += texts.len();
    }
    assert!(total > 0, "{what}: nothing was said");
    assert!(!daemon.ok(&["journal", "check"]).contains("damaged"));
    let report = daemon.replays();
    let hot = met_hot(&daemon);
    assert!(hot > 0 || !kills_runners || rounds() < ROUNDS_WITH_HOT, "{what}: no hot journal was met");
    println!(
        "{what}: {} rounds, {total} messages answered once, {hot} hot journals; {}",
        rounds(),
        report.trim()
    );
}

/// The folders of all sessions.
fn sessions(daemon: &Daemon) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(daemon.data().join("sessions/agent")) else { return Vec::new() };
    found.flatten().map(|entry| entry.path()).collect()
}

/// Waits until a runner is in the middle of a commit, for a moment at most: that is when a kill hurts.
fn lurk(daemon: &Daemon) {
    let sessions = sessions(daemon);
    let limit = Instant::now() + Duration::from_millis(200);
    let commits = |session: &PathBuf| session.join("out/outbound.db-journal").exists();
    while Instant::now() < limit && !sessions.iter().any(commits) {
        std::hint::spin_loop();
    }
}

/// Leaves what a daemon leaves that is killed in the middle of a commit to inbound.db: pages of it are in the file
/// already, and the journal holds what they were.
fn plant_hot(inbound: &Path) {
    let journal = inbound.with_file_name("inbound.db-journal");
    let aside = inbound.with_file_name("aside");
    let db = rusqlite::Connection::open(inbound).unwrap();
    db.execute_batch("PRAGMA cache_size = 2; BEGIN IMMEDIATE; CREATE TABLE planted (x);").unwrap();
    for n in 0..50 {
        db.execute("INSERT INTO planted VALUES (?1 || hex(zeroblob(2000)))", [n]).unwrap();
    }
    db.execute_batch("UPDATE messages_in SET content = 'planted'").unwrap();
    fs::copy(inbound, &aside).unwrap();
    let hot = fs::read(&journal).unwrap();
    assert!(hot.starts_with(b"\xd9\xd5\x05\xf9"), "its header is not written yet");
    drop(db);
    fs::rename(&aside, inbound).unwrap();
    fs::write(&journal, hot).unwrap();
}

/// What was planted is gone, and what it had overwritten is back.
fn is_healed(inbound: &Path) -> bool {
    let db = rusqlite::Connection::open(inbound).unwrap();
    let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    count("SELECT count(*) FROM sqlite_master WHERE name = 'planted'") == 0
        && count("SELECT count(*) FROM messages_in WHERE content = 'planted'") == 0
        && count("SELECT count(*) FROM messages_in") > 0
}

fn kill_daemon(daemon: &mut Daemon) {
    daemon.kill();
    daemon.again();
}

fn kill_runners(daemon: &Daemon) {
    for pid in daemon.runners() {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[test]
fn a_killed_daemon_loses_no_message_and_answers_none_twice() {
    let mut planted = None;
    crash("daemon killed", "", false, |daemon| {
        daemon.kill();
        // Once, as soon as there is a session with a row; the daemon heals it before it does anything else.
        let inbound = sessions(daemon).first().map(|session| session.join("in/inbound.db"));
        let plants = planted.is_none().then_some(inbound).flatten();
        plants.iter().for_each(|inbound| plant_hot(inbound));
        daemon.again();
        if let Some(inbound) = plants {
            assert!(is_healed(&inbound), "{}", daemon.log());
            planted = Some(inbound);
        }
    });
    assert!(planted.is_some(), "there was no session to plant a journal in");
}

#[test]
fn a_killed_runner_loses_no_message_and_answers_none_twice() {
    crash("runners killed", "", true, |daemon| kill_runners(daemon));
}

#[test]
fn both_killed_at_once_lose_no_message_and_answer_none_twice() {
    // Here old segments are dropped meanwhile; the others replay all that happened.
    crash("both killed", "keep_bytes = 65536\n", true, |daemon| {
        kill_runners(daemon);
        kill_daemon(daemon);
    });
}
