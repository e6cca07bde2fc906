//! Killed without warning, again and again, under load: the daemon, its runners, and both at once. Every message that
//! was accepted is answered exactly once.

use std::collections::BTreeMap;
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

/// What one chat has seen.
#[derive(Default)]
struct Seen {
    accepted: BTreeMap<String, bool>,
    /// Texts by reply id: a repeat of an id is dropped, as the protocol says.
    replies: BTreeMap<String, String>,
}

/// Says one thing after the other in a chat, through every crash, until it is told to stop and all is settled.
fn talk(data: &std::path::Path, chat: &str, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut n = 0;
    let mut limit = None;
    while let Some(mut client) = reconnect(data, chat) {
        loop {
            let id = format!("{chat}-{n}");
            if stop.load(Ordering::SeqCst) && !seen.lock().unwrap().accepted.contains_key(&id) {
                return;
            }
            // Said again under the same id until the turn has ended: a repeat is the same message.
            if client.say(&id, &format!("text of {id}")).is_none() || !follow(&mut client, &id, seen) {
                break;
            }
            n += 1;
        }
        let limit = *limit.get_or_insert_with(|| Instant::now() + LIMIT * 10);
        assert!(Instant::now() < limit, "chat {chat} does not come to an end");
    }
    panic!("chat {chat}: the daemon did not come back");
}

fn reconnect(data: &std::path::Path, chat: &str) -> Option<Client> {
    let limit = Instant::now() + LIMIT;
    while Instant::now() < limit {
        if let Some(client) = Client::connect(data, chat) {
            return Some(client);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Follows a turn to its end. False when the daemon went away.
fn follow(client: &mut Client, id: &str, seen: &Mutex<Seen>) -> bool {
    while let Some(line) = client.line() {
        let of = line["id"].as_str().unwrap_or_default().to_owned();
        match line["type"].as_str().unwrap_or_default() {
            "accepted" => drop(seen.lock().unwrap().accepted.insert(of, true)),
            "refused" => {
                // The daemon is stopping: the same message again, later.
                return false;
            }
            "message" => {
                let text = line["text"].as_str().unwrap_or_default().to_owned();
                seen.lock().unwrap().replies.insert(of, text);
            }
            "settled" if of == id => {
                assert_eq!(line["outcome"], "completed", "{line}");
                // Its first copy may have been taken by the daemon that died, and its repeat not be answered yet.
                seen.lock().unwrap().accepted.insert(of, true);
                return true;
            }
            _ => {}
        }
    }
    false
}

/// `journal` is added to the section of that name, the last of the configuration.
fn crash(what: &str, journal: &str, mut kill: impl FnMut(&mut Daemon)) {
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
    for _ in 0..rounds() {
        std::thread::sleep(Duration::from_millis(50 + chance.below(400)));
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
            seen.accepted.keys().map(|id| format!("echo: text of {id}")).collect();
        expected.sort();
        assert_eq!(texts, expected.iter().collect::<Vec<_>>(), "{what}, chat {chat}:\n{}", daemon.log());
        total += texts.len();
    }
    assert!(total > 0, "{what}: nothing was said");
    assert!(!daemon.ok(&["journal", "check"]).contains("damaged"));
    let report = daemon.replays();
    println!("{what}: {} rounds, {total} messages answered once; {}", rounds(), report.trim());
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
    crash("daemon killed", "", kill_daemon);
}

#[test]
fn a_killed_runner_loses_no_message_and_answers_none_twice() {
    crash("runners killed", "", |daemon| kill_runners(daemon));
}

#[test]
fn both_killed_at_once_lose_no_message_and_answer_none_twice() {
    // Here old segments are dropped meanwhile; the others replay all that happened.
    crash("both killed", "keep_bytes = 65536\n", |daemon| {
        kill_runners(daemon);
        kill_daemon(daemon);
    });
}
