//! How many rows a second one reader thread brings when a thousand sessions write without a pause. The floor is raw
//! inotify with a kept connection for each of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use lamplighter::base::{SessionName, SessionNo};
use lamplighter::reactor::{self, Reactor, ReactorEvent, ReadPlan, SqliteSource};
use lamplighter::session::SessionFolder;
use rusqlite::Connection;
use rustix::fs::inotify;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{floor_connection, insert_out, percentile_of, row, session, writer};

const SESSIONS: u32 = 1_000;
/// Rows that each session writes in a round.
const EACH: usize = 2;
const ROUNDS: usize = 6;

/// Their writers. As agents do, they wait for the disk at each commit; on tmpfs there is nothing to wait for.
fn writers(folders: &[SessionFolder]) -> Vec<Connection> {
    folders.iter().map(|folder| writer(&folder.outbound_db())).collect()
}

fn write_all(writers: Vec<Connection>, from: usize) -> std::thread::JoinHandle<Vec<Connection>> {
    std::thread::spawn(move || {
        for n in from..from + EACH {
            writers.iter().for_each(|db| insert_out(db, n));
        }
        writers
    })
}

fn plan(cursor: Option<lamplighter::session::host_side::Cursor>) -> ReadPlan {
    ReadPlan { cursor, ids: Arc::from([]), room: 256 }
}

/// Counts rows as they come to hand; a number for each round.
fn floor(folders: &[SessionFolder]) -> mpsc::Receiver<usize> {
    let (rows, counted) = mpsc::channel();
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let mut first = None;
    for folder in folders {
        let id = inotify::add_watch(&fd, folder.out_dir(), inotify::WatchFlags::DELETE).unwrap();
        first.get_or_insert(id);
    }
    // The kernel counts them up from the first.
    let first = first.unwrap();
    let mut kept: Vec<(Connection, i64)> =
        folders.iter().map(|folder| (floor_connection(&folder.outbound_db()), 0)).collect();
    std::thread::spawn(move || {
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); 64 << 10];
        let mut reader = inotify::Reader::new(&fd, &mut buffer);
        let mut dirty = BTreeSet::new();
        loop {
            let event = reader.next().unwrap();
            if event.file_name().is_some_and(|name| name.to_bytes() == b"outbound.db-journal") {
                dirty.insert(usize::try_from(event.wd() - first).unwrap());
            }
            if !reader.is_buffer_empty() {
                continue;
            }
            for no in std::mem::take(&mut dirty) {
                let (db, last) = &mut kept[no];
                let found: Vec<(i64, String, String)> = db
                    .prepare_cached(
                        "SELECT rowid, id, content FROM messages_out WHERE rowid > ?1 ORDER BY rowid",
                    )
                    .unwrap()
                    .query_map([*last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                    .unwrap()
                    .map(Result::unwrap)
                    .collect();
                *last = found.last().map_or(*last, |(rowid, ..)| *rowid);
                if !found.is_empty() && rows.send(found.len()).is_err() {
                    return;
                }
            }
        }
    });
    counted
}

fn on(root: &Path, what: &str) {
    let made = |side: &str| -> Vec<SessionFolder> {
        (0..SESSIONS).map(|n| session(&root.join(side), &format!("s{n}"))).collect()
    };
    let (folders, others) = (made("ours"), made("floor"));
    let (send, received) = mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let sink: reactor::Sink = Arc::new(move |event| {
        if let ReactorEvent::Read { session, result: Ok(reading), .. } = event {
            drop(send.lock().unwrap().send((session, reading)));
        }
    });
    let mut config = reactor::Config { threads: 1, ..reactor::Config::default() };
    config.limits.rows_per_second = 1_000_000;
    let reactor = Reactor::start(config, Arc::new(SqliteSource::default()), sink).unwrap();
    for (folder, no) in folders.iter().zip(0..) {
        let name = SessionName::new("agent", format!("s{no}")).unwrap();
        drop(reactor.live(SessionNo(no), name, folder, plan(None)));
    }
    // The scan of each.
    for _ in 0..SESSIONS {
        let (no, reading) = received.recv().unwrap();
        reactor.settled(no, plan(reading.cursor));
    }
    let counted = floor(&others);
    let (mut own, mut other) = (writers(&folders), writers(&others));
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    let wanted = SESSIONS as usize * EACH;
    for round in 0..=ROUNDS {
        let mut left = wanted;
        let begun = Instant::now();
        let writing = write_all(own, round * EACH);
        while left > 0 {
            let (no, reading) = received.recv().unwrap();
            left -= reading.rows.len();
            reactor.settled(no, plan(reading.cursor));
        }
        let rate = wanted as f64 / begun.elapsed().as_secs_f64();
        own = writing.join().unwrap();
        let mut left = wanted;
        let begun = Instant::now();
        let writing = write_all(other, round * EACH);
        while left > 0 {
            left -= counted.recv().unwrap();
        }
        let floor = wanted as f64 / begun.elapsed().as_secs_f64();
        other = writing.join().unwrap();
        // The first opens files and grows them.
        if round > 0 {
            ours.push(rate);
            floors.push(floor);
        }
    }
    let name = format!("saturation, {SESSIONS} sessions, {what}, rows");
    row(&name, percentile_of(&mut ours, 50), percentile_of(&mut floors, 50), "/s");
}

pub fn saturation() {
    // A connection has a descriptor, and a journal another for a moment.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let disk = tempfile::tempdir_in(".").unwrap();
    on(&disk.path().canonicalize().unwrap(), "disk");
    drop(disk);
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        let folder = tempfile::tempdir_in(memory).unwrap();
        on(&folder.path().canonicalize().unwrap(), "tmpfs");
    }
}
