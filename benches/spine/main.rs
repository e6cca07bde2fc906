//! What the spine costs, as ratios to a floor measured in the same run: `scripts/bench` builds and runs it.
//!
//! Rounds of the floor and of ours alternate, so that a noisy machine disturbs both alike.

mod cold;
mod daemon;
mod docker;
mod history;
mod runner;
mod saturation;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use lamplighter::base::{At, BootNo, EffectId, Ms, OsDisk, RecordNo, SessionName, SessionNo};
use lamplighter::journal::frame::{self, Kind};
use lamplighter::journal::record::{DIGEST_SCHEMA, RECORD_SCHEMA};
use lamplighter::journal::segment::{FORMAT, Header};
use lamplighter::journal::wire::causes::Causes;
use lamplighter::journal::wire::recorder::Recorder;
use lamplighter::journal::wire::snapshot::encode_snapshot;
use lamplighter::journal::writer::{Journal, Sync};
use lamplighter::machine::effect::Effect;
use lamplighter::machine::input::*;
use lamplighter::machine::policy::Policy;
use lamplighter::machine::{MACHINE_VERSION, Machine};
use lamplighter::reactor::{self, Reactor, ReactorEvent, ReadPlan, SqliteSource};
use lamplighter::session::SessionFolder;
use lamplighter::session::host_side::{create, install_guards};
use lamplighter::session::rows::Address;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::inotify;

const ROUNDS: usize = 6;
const PER_ROUND: usize = 300;

fn main() {
    if cold::is_floor_child() {
        return;
    }
    // `cargo test --benches` asks every bench whether it builds; measuring is another matter.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    install_guards().unwrap();
    println!("{:<44} {:>12} {:>12} {:>8}", "measure", "ours", "floor", "ratio");
    let parts: [(&str, fn()); 13] = [
        ("outbound", outbound_to_hand),
        ("through-1", || daemon::through(1)),
        ("through-1000", || daemon::through(1_000)),
        ("history", history::history),
        ("saturation", saturation::saturation),
        ("inbound", inbound_to_claim),
        ("runner", runner::cost),
        ("cold", cold::cold_start),
        ("docker", docker::cold_start),
        ("journal", journal_append),
        ("machine", machine_and_replay),
        ("idle-1000", || daemon::start_and_idle(1_000)),
        ("idle-10000", || daemon::start_and_idle(10_000)),
    ];
    // Names on the command line choose some of them.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|it| it == name) {
            part();
        }
    }
}

fn row(name: &str, ours: f64, floor: f64, unit: &str) {
    println!("{name:<44} {ours:>9.1} {unit:<2} {floor:>9.1} {unit:<2} {:>7.2}x", ours / floor);
}

/// The p-th hundredth, in microseconds.
fn percentile(samples: &mut [Duration], p: usize) -> f64 {
    samples.sort();
    samples[(samples.len() * p / 100).min(samples.len() - 1)].as_secs_f64() * 1e6
}

/// The p-th hundredth of figures that are no times.
fn percentile_of(samples: &mut [f64], p: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[(samples.len() * p / 100).min(samples.len() - 1)]
}

fn pair(name: &str, ours: &mut [Duration], floor: &mut [Duration]) {
    row(&format!("{name}, p50"), percentile(ours, 50), percentile(floor, 50), "us");
    row(&format!("{name}, p99"), percentile(ours, 99), percentile(floor, 99), "us");
}

fn session(root: &Path, name: &str) -> SessionFolder {
    create::create(&root.join("sessions/agent").join(name)).unwrap()
}

fn writer(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    db.busy_timeout(Duration::from_secs(5)).unwrap();
    db
}

/// A pause as agents make them: long enough that one commit is over before the next.
fn pause(n: usize) {
    std::thread::sleep(Duration::from_micros(400 + (n as u64 * 7_919) % 700));
}

fn insert_out(db: &Connection, n: usize) {
    db.prepare_cached(
        "INSERT INTO messages_out (id, seq, timestamp, kind, platform_id, channel_type, content) \
         VALUES (?1, ?2, datetime('now'), 'chat', 'chat:main', 'chat', ?3)",
    )
    .unwrap()
    .execute((format!("m{n}"), n as i64 * 2 + 1, format!("{{\"text\":\"{}\"}}", "x".repeat(250))))
    .unwrap();
}

/// The floor: inotify on the folder, a kept connection, a cached statement, a busy handler that yields.
fn floor_connection(path: &Path) -> Connection {
    let mut db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    db.busy_handler(Some(|n| {
        if n < 50 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
        n < 5_000
    }))
    .unwrap();
    db
}

/// Waits until a name that `wanted` knows was removed or written.
fn await_removal(fd: &std::os::fd::OwnedFd, wanted: &str) {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4_096];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    loop {
        let event = reader.next().unwrap();
        if event.file_name().is_some_and(|name| name.to_bytes() == wanted.as_bytes()) {
            return;
        }
    }
}

fn watch(folder: &Path) -> std::os::fd::OwnedFd {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&fd, folder, inotify::WatchFlags::DELETE).unwrap();
    fd
}

fn outbound_to_hand() {
    let root = tempfile::tempdir_in(".").unwrap();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let folder = session(root.path(), "ours");
    let db = writer(&folder.outbound_db());
    let (send, received) = mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let sink: reactor::Sink = Arc::new(move |event| {
        if let ReactorEvent::Read { result: Ok(reading), .. } = event {
            drop(send.lock().unwrap().send((Instant::now(), reading)));
        }
    });
    let mut config = reactor::Config::default();
    // A sustained 200 rows a second is a bound on sessions that misbehave; it is not what is measured here.
    config.limits.rows_per_second = 100_000;
    let reactor = Reactor::start(config, Arc::new(SqliteSource::default()), sink).unwrap();
    let no = SessionNo(1);
    let plan = ReadPlan { cursor: None, ids: Arc::from([]), room: 256 };
    drop(reactor.live(no, SessionName::new("agent", "ours").unwrap(), &folder, plan));
    let (_, first) = received.recv().unwrap();
    let mut cursor = first.cursor;
    reactor.settled(no, ReadPlan { cursor: cursor.clone(), ids: Arc::from([]), room: 256 });

    let other = session(root.path(), "floor");
    let other_db = writer(&other.outbound_db());
    let other_path = other.outbound_db();
    let fd = watch(other.out_dir());
    let (stamp, stamped) = mpsc::channel();
    std::thread::spawn(move || {
        let db = floor_connection(&other_path);
        let mut last = 0i64;
        loop {
            await_removal(&fd, "outbound.db-journal");
            let mut query = db
                .prepare_cached("SELECT rowid, id, content FROM messages_out WHERE rowid > ?1 ORDER BY rowid")
                .unwrap();
            let rows: Vec<(i64, String, String)> = query
                .query_map([last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            let now = Instant::now();
            if let Some((rowid, ..)) = rows.last() {
                last = *rowid;
                if stamp.send(now).is_err() {
                    return;
                }
            }
        }
    });
    let mut n = 0;
    for _ in 0..ROUNDS {
        for _ in 0..PER_ROUND {
            n += 1;
            pause(n);
            insert_out(&db, n);
            let done = Instant::now();
            let at = loop {
                let (at, reading) = received.recv().unwrap();
                let found = !reading.rows.is_empty();
                cursor = reading.cursor.or(cursor);
                reactor.settled(no, ReadPlan { cursor: cursor.clone(), ids: Arc::from([]), room: 256 });
                if found {
                    break at;
                }
            };
            ours.push(at.saturating_duration_since(done));
        }
        for _ in 0..PER_ROUND {
            n += 1;
            pause(n);
            insert_out(&other_db, n);
            let done = Instant::now();
            floor.push(stamped.recv().unwrap().saturating_duration_since(done));
        }
    }
    pair("outbound commit -> row in hand", &mut ours, &mut floor);
    let stats = reactor.stats();
    let reads = stats.reads as f64 / ours.len() as f64;
    println!("{:<44} {reads:>9.2}    {:>9.2}    (target 1.05)", "reads per commit", 1.0);
}

struct Runner(Child);

impl Drop for Runner {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn runner_path() -> PathBuf {
    PathBuf::from(std::env::var_os("LAMPLIGHTER_RUNNER").expect("scripts/bench sets LAMPLIGHTER_RUNNER"))
}

fn insert_in(db: &Connection, n: usize) {
    db.prepare_cached(
        "INSERT INTO messages_in (id, seq, kind, timestamp, status, trigger, platform_id, channel_type, content) \
         VALUES (?1, ?2, 'chat', '2026-01-01T00:00:00.000Z', 'pending', 1, 'chat:main', 'chat', '{\"text\":\"hi\"}')",
    )
    .unwrap()
    .execute((format!("i{n}"), n as i64 * 2))
    .unwrap();
}

/// As the host does once a turn is over: what stays pending would be looked at again each time.
fn complete_in(db: &Connection, n: usize) {
    db.prepare_cached("UPDATE messages_in SET status = 'completed' WHERE id = ?1")
        .unwrap()
        .execute([format!("i{n}")])
        .unwrap();
}

/// The claim is a commit too, so the floor commits one.
fn inbound_to_claim() {
    let root = tempfile::tempdir_in(".").unwrap();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let folder = session(root.path(), "ours");
    let db = writer(&folder.inbound_db());
    std::fs::create_dir(root.path().join("agent")).unwrap();
    std::fs::write(folder.container_json(), "{\"provider\":\"mock\"}").unwrap();
    let _runner = Runner(
        Command::new(runner_path())
            .env("LAMPLIGHTER_WORKSPACE", folder.out_dir())
            .env("LAMPLIGHTER_IN", folder.in_dir())
            .env("LAMPLIGHTER_AGENT", root.path().join("agent"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let own_watch = watch(folder.out_dir());
    let other = session(root.path(), "floor");
    let other_db = writer(&other.inbound_db());
    let (inbound, outbound, in_dir) = (other.inbound_db(), other.outbound_db(), other.in_dir().to_owned());
    std::thread::spawn(move || {
        let fd = watch(&in_dir);
        let db = floor_connection(&inbound);
        let out = writer(&outbound);
        loop {
            await_removal(&fd, "inbound.db-journal");
            let ids: Vec<String> = db
                .prepare_cached(
                    "SELECT id FROM messages_in WHERE status = 'pending' ORDER BY seq DESC LIMIT 1",
                )
                .unwrap()
                .query_map([], |row| row.get(0))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            for id in ids {
                out.prepare_cached(
                    "INSERT OR REPLACE INTO processing_ack VALUES (?1, 'processing', datetime('now'))",
                )
                .unwrap()
                .execute([id])
                .unwrap();
            }
        }
    });
    let floor_watch = watch(other.out_dir());
    let claimed = floor_connection(&folder.outbound_db());
    let floor_claimed = floor_connection(&other.outbound_db());
    let wait = |fd: &std::os::fd::OwnedFd, db: &Connection, n: usize| loop {
        await_removal(fd, "outbound.db-journal");
        let now = Instant::now();
        let found: i64 = db
            .prepare_cached("SELECT count(*) FROM processing_ack WHERE message_id = ?1")
            .unwrap()
            .query_row([format!("i{n}")], |row| row.get(0))
            .unwrap();
        if found > 0 {
            return now;
        }
    };
    let is_completed = |n: usize| -> bool {
        let mut query =
            claimed.prepare_cached("SELECT status FROM processing_ack WHERE message_id = ?1").unwrap();
        query.query_row([format!("i{n}")], |row| row.get::<_, String>(0)).unwrap() == "completed"
    };
    let mut n = 0;
    for round in 0..ROUNDS {
        for _ in 0..PER_ROUND / 2 {
            n += 1;
            std::thread::sleep(Duration::from_millis(8));
            insert_in(&db, n);
            let done = Instant::now();
            let at = wait(&own_watch, &claimed, n);
            // Its turn has commits of its own: they are over before the next one is measured.
            while !is_completed(n) {
                await_removal(&own_watch, "outbound.db-journal");
            }
            complete_in(&db, n);
            if round > 0 {
                ours.push(at.saturating_duration_since(done));
            }
        }
        for _ in 0..PER_ROUND / 2 {
            n += 1;
            std::thread::sleep(Duration::from_millis(8));
            insert_in(&other_db, n);
            let done = Instant::now();
            floor.push(wait(&floor_watch, &floor_claimed, n).saturating_duration_since(done));
            complete_in(&other_db, n);
        }
    }
    pair("inbound commit -> runner's claim committed", &mut ours, &mut floor);
}

fn header(first: RecordNo) -> Header {
    Header {
        format: FORMAT,
        machine: MACHINE_VERSION,
        record_schema: RECORD_SCHEMA,
        digest_schema: DIGEST_SCHEMA,
        installation: 1,
        boot: first.boot(),
        first,
        build: "bench".into(),
    }
}

fn journal_append() {
    let root = tempfile::tempdir_in(".").unwrap();
    let frames = |numbers: std::ops::Range<u64>| {
        let mut batch = Vec::new();
        numbers.for_each(|n| frame::encode(Kind::Record, RecordNo(n), &[7; 282], &mut batch));
        batch
    };
    let begin = |sync| {
        let folder = root.path().join(format!("{sync:?}"));
        std::fs::create_dir(&folder).unwrap();
        Journal::begin(Arc::new(OsDisk), &folder, &header(RecordNo(1)), &[], sync, Box::new(|_| ())).unwrap()
    };
    let plain = File::create(root.path().join("plain")).unwrap();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let mut journal = begin(Sync::None);
    for n in 1..20_000u64 {
        let batch = frames(n..n + 1);
        let at = Instant::now();
        journal.append(&batch, RecordNo(n)).unwrap();
        ours.push(at.elapsed());
        let at = Instant::now();
        (&plain).write_all(&batch).unwrap();
        floor.push(at.elapsed());
    }
    drop(journal);
    let (a, b) = (percentile(&mut ours, 50), percentile(&mut floor, 50));
    row("journal append, one record, p50", a, b, "us");
    let ready = File::create(root.path().join("ready")).unwrap();
    ready.write_all_at(&vec![0; 32 << 20], 0).unwrap();
    ready.sync_all().unwrap();
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let mut journal = begin(Sync::Always);
    for n in 1..400u64 {
        let group = frames(n * 64 - 63..n * 64 + 1);
        let at = Instant::now();
        journal.append(&group, RecordNo(n * 64)).unwrap();
        ours.push(at.elapsed());
        let at = Instant::now();
        ready.write_all_at(&group, n * group.len() as u64).unwrap();
        ready.sync_data().unwrap();
        floor.push(at.elapsed());
    }
    row(
        "durable group of 64 / one fdatasync, p50",
        percentile(&mut ours, 50),
        percentile(&mut floor, 50),
        "us",
    );
}

/// The inputs of one message's life, made as a host would make them.
struct Load {
    machine: Machine,
    at: At,
    steps: u64,
    chats: u64,
    tape: Option<(Recorder, Vec<u8>, RecordNo)>,
}

impl Load {
    fn step(&mut self, input: Input) -> Vec<(EffectId, Effect)> {
        self.at = At(self.at.0 + 50);
        if let Some((recorder, ..)) = &mut self.tape {
            recorder.note(&self.machine, self.at, &input);
        }
        let turn = self.machine.step(self.at, input);
        self.steps += 1;
        if let Some((recorder, bytes, last)) = &mut self.tape {
            let body = recorder.record(&self.machine, &turn, RecordNo(0)).unwrap();
            frame::encode(Kind::Record, turn.record, body, bytes);
            *last = turn.record;
        }
        turn.effects().map(|(id, effect)| (id, effect.clone())).collect()
    }

    fn drain(&mut self, effects: Vec<(EffectId, Effect)>) {
        let mut open = effects;
        while let Some((effect, it)) = open.pop() {
            let input = match it {
                Effect::WriteInbound { .. } => Input::InboundWritten { effect, seq: 2, duplicate: false },
                Effect::StartContainer { .. } => Input::ContainerStarted { effect },
                Effect::Deliver { .. } => Input::Delivered { effect, platform_id: None },
                Effect::CreateSession { .. }
                | Effect::UpdateInbound { .. }
                | Effect::RecordDelivery { .. }
                | Effect::ProjectDestinations { .. } => Input::EffectDone { effect, error: None },
                _ => continue,
            };
            open.extend(self.step(input));
        }
    }

    fn boot(&mut self) {
        let policy = Policy { slots: 200, ..Policy::default() };
        let booted = Booted {
            boot: BootNo(1),
            build: "bench".into(),
            policy,
            group: "agent".into(),
            offset: 1_700_000_000_000_000,
            downtime: Ms(0),
        };
        drop(self.step(Input::Booted(booted)));
        drop(self.step(Input::ContainersFound { alive: Vec::new(), adoptable: false }));
        drop(self.step(Input::ChannelUp { channel: "chat".into(), chat: None, idempotent: true }));
    }

    fn arrive(&mut self, n: u64) -> Vec<(EffectId, Effect)> {
        self.step(Input::MessageArrived(Arrival {
            channel: "chat".into(),
            receipt: n,
            chat: format!("chat:c{}", n % self.chats),
            thread: None,
            message_id: format!("m{n}"),
            facts: TextFacts::default(),
        }))
    }

    fn message(&mut self, n: u64) {
        let effects = self.arrive(n);
        self.answer(n, effects);
    }

    /// All that follows an arrival.
    fn answer(&mut self, n: u64, effects: Vec<(EffectId, Effect)>) {
        self.drain(effects);
        let chat = format!("chat:c{}", n % self.chats);
        let state = self.machine.state();
        let session = state.directory().chats[&("chat".to_owned(), chat.clone())];
        let message = *state.session(session).unwrap().inbox.iter().next_back().unwrap();
        let ack = |status, mark| vec![(message, Some(AckFound { status, mark }))];
        let claim = Rows { acks: ack(Ack::Processing, n), ..Rows::default() };
        let effects = self.step(Input::OutboundRead { session, reading: Reading::Rows(claim) });
        self.drain(effects);
        let row = OutRow {
            rowid: n as i64 + 1,
            id: format!("r{n}"),
            kind: OutKind::Message,
            to: Address::new("chat", chat, None),
            in_reply_to: None,
            not_before: None,
            settled: false,
            files: false,
            digest: n,
        };
        let done = Rows { rows: vec![row], acks: ack(Ack::Completed, n + 1), ..Rows::default() };
        let effects = self.step(Input::OutboundRead { session, reading: Reading::Rows(done) });
        self.drain(effects);
    }
}

/// How many inputs a turn of the daemon's loop takes at most.
const TURN: u64 = 256;

/// Larger than the caches of the machines that this is run on.
const BEYOND_CACHE: usize = 128 << 20;

/// What a rotation takes from the loop: the time until it goes on, and how much longer its next turn takes, in which
/// every input goes to another session. Always with a state that the caches no longer hold.
fn rotation() {
    let mut load = Load { machine: Machine::default(), at: At(0), steps: 0, tape: None, chats: 10_000 };
    load.boot();
    (0..load.chats).for_each(|n| load.message(n));
    let mut next = load.chats;
    let root = tempfile::tempdir_in(".").unwrap();
    let disk = Arc::new(OsDisk);
    let mut last = RecordNo(0);
    let mut journal =
        Journal::begin(disk, root.path(), &header(last.next()), &[], Sync::None, Box::new(|_| ())).unwrap();
    let mut append = |journal: &mut Journal| {
        last = last.next();
        let mut bytes = Vec::new();
        frame::encode(Kind::Record, last, &[7; 100], &mut bytes);
        journal.append(&bytes, last).unwrap();
        last
    };
    let mut cold = vec![0u64; BEYOND_CACHE / 8];
    let mut turn = |load: &mut Load| {
        // 39 apart, so that no two of a turn are neighbours.
        let chats: Vec<u64> = (0..TURN).map(|n| (next + n) * 39).collect();
        next += TURN;
        let begun = Instant::now();
        let arrived: Vec<_> = chats.into_iter().map(|n| (n, load.arrive(n))).collect();
        let took = begun.elapsed();
        arrived.into_iter().for_each(|(n, effects)| load.answer(n, effects));
        took
    };
    let (mut holds, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..50 {
        cold.iter_mut().for_each(|word| *word += 1);
        before.push(turn(&mut load));
        let last = append(&mut journal);
        cold.iter_mut().for_each(|word| *word += 1);
        let begun = Instant::now();
        let parts = load.machine.state().to_parts();
        journal.rotate(header(last.next()), move || encode_snapshot(&parts, 0, &Causes::default()));
        holds.push(begun.elapsed());
        after.push(turn(&mut load));
        while journal.is_rotating() {
            std::thread::sleep(Duration::from_millis(1));
            append(&mut journal);
        }
    }
    std::hint::black_box(cold);
    for (which, p) in [("p50", 50), ("max", 100)] {
        let name = format!("rotation holds the loop, 10,000 sessions, {which}");
        println!("{name:<44} {:>9.2} ms  (target 2)", percentile(&mut holds, p) / 1e3);
    }
    let (after, before) = (percentile(&mut after, 50), percentile(&mut before, 50));
    row("256 inputs after a rotation / before it, p50", after, before, "us");
}

fn machine_and_replay() {
    rotation();
    let mut load = Load { machine: Machine::default(), at: At(0), steps: 0, tape: None, chats: 100 };
    load.boot();
    let begun = Instant::now();
    (0..60_000).for_each(|n| load.message(n));
    let rate = load.steps as f64 / begun.elapsed().as_secs_f64();
    println!("{:<44} {:>9.0} /s  (target 1,000,000)", "machine steps", rate);

    let machine = Machine::default();
    let recorder = Recorder::new(machine.state());
    let snapshot = encode_snapshot(&machine.state().to_parts(), recorder.root(), recorder.causes());
    let first = RecordNo::first_of(BootNo(1));
    let mut load =
        Load { machine, at: At(0), steps: 0, tape: Some((recorder, Vec::new(), RecordNo(0))), chats: 100 };
    load.boot();
    let begun = Instant::now();
    (0..30_000).for_each(|n| load.message(n));
    let recorded = load.steps as f64 / begun.elapsed().as_secs_f64();
    println!("{:<44} {:>9.0} /s", "machine steps with their records made", recorded);
    let root = tempfile::tempdir_in(".").unwrap();
    let (_, bytes, last) = load.tape.take().unwrap();
    let mut journal = Journal::begin(
        Arc::new(OsDisk),
        root.path(),
        &header(first),
        &snapshot,
        Sync::None,
        Box::new(|_| ()),
    )
    .unwrap();
    journal.append(&bytes, last).unwrap();
    journal.close().unwrap();
    let begun = Instant::now();
    let report = lamplighter::replay::verify(root.path()).unwrap();
    assert!(report.is_clean(), "{report}");
    let rate = report.records as f64 / begun.elapsed().as_secs_f64();
    println!("{:<44} {:>9.0} /s  (target 500,000)", "replay, records", rate);
}
