//! What the whole daemon costs: a row's way to the client of the chat socket, the start, and doing nothing.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lamplighter::session::SessionFolder;
use serde_json::{Value, json};

use super::{
    ROUNDS, Runner, await_removal, floor_connection, insert_out, pair, pause, session, watch, writer,
};

/// Rows of each round: the daemon's bound is a sustained 200 rows a second for one session.
const ROWS: usize = 100;
/// Sessions that run at once; the bound of the configuration is 256.
const LIVE: usize = 200;

fn command(root: &Path) -> Command {
    let program = std::env::var_os("LAMPLIGHTER_BIN").expect("scripts/bench sets LAMPLIGHTER_BIN");
    let mut command = Command::new(program);
    command.args(["run", "--log-level", "warning", "--data"]).arg(root).stdin(Stdio::null());
    command
}

fn daemon(root: &Path, extra: &[&str]) -> Runner {
    Runner(command(root).args(extra).spawn().unwrap())
}

/// A daemon with another runtime and the runner for it.
pub fn daemon_with(root: &Path, runtime: &str, runner: &Path) -> Runner {
    Runner(command(root).args(["--runtime", runtime]).env("LAMPLIGHTER_RUNNER", runner).spawn().unwrap())
}

pub fn connect(root: &Path) -> UnixStream {
    let begun = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(root.join("run/chat.sock")) {
            return stream;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "the daemon did not start");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A client of one chat that acknowledges what it gets.
pub struct Client {
    lines: BufReader<UnixStream>,
    out: UnixStream,
}

impl Client {
    pub fn new(root: &Path, chat: &str) -> Self {
        let out = connect(root);
        let mut client = Self { lines: BufReader::new(out.try_clone().unwrap()), out };
        client.say(json!({"type": "hello", "protocol": 1, "chat": chat, "receive": true}));
        client.until("hello");
        client
    }

    pub fn say(&mut self, line: Value) {
        self.out.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub fn until(&mut self, kind: &str) -> (Instant, Value) {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the daemon hung up");
            let at = Instant::now();
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["type"] == kind {
                return (at, value);
            }
        }
    }
}

pub fn folders(root: &Path) -> Vec<PathBuf> {
    let agents = root.join("sessions");
    std::fs::read_dir(&agents)
        .unwrap()
        .flat_map(|agent| std::fs::read_dir(agent.unwrap().path()).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// The daemon: commit of an outbound row -> its line at the client. The floor does the same with one watch, one kept
/// connection and a socket pair, and keeps no record.
pub fn through(sessions: usize) {
    let root = tempfile::tempdir_in(".").unwrap();
    // A runner that does nothing: the rows are written here.
    let config = root.path().join("lamplighter.toml");
    let live = sessions.min(LIVE);
    std::fs::write(
        &config,
        format!(
            "[policy]\nslots = {live}\nidle_stop = \"1h\"\nclaim_silence = \"1h\"\nsilence_ceiling = \"2h\"\n\
             [runtime.process]\ncommand = [\"/bin/sleep\", \"infinity\"]\n"
        ),
    )
    .unwrap();
    (live..sessions).for_each(|n| drop(session(root.path(), &format!("sess-1-{n:06}"))));
    let config = config.to_string_lossy().into_owned();
    let _daemon = daemon(root.path(), &["--config", &config]);
    drop(connect(root.path()));
    let before = folders(root.path()).len();
    let mut client = Client::new(root.path(), "main");
    client.say(json!({"type": "message", "id": "m", "text": "hi"}));
    client.until("accepted");
    let own = folders(root.path());
    assert_eq!(own.len(), before + 1);
    for n in 1..live {
        let mut other = Client::new(root.path(), &format!("c{n}"));
        other.say(json!({"type": "message", "id": "m", "text": "hi"}));
        other.until("accepted");
    }
    let folder = newest_of(&own, root.path());
    let db = writer(&folder.outbound_db());

    let floor = session(root.path(), "floor");
    let floor_db = writer(&floor.outbound_db());
    let (mut far, near) = UnixStream::pair().unwrap();
    let mut near = BufReader::new(near);
    let path = floor.outbound_db();
    let fd = watch(floor.out_dir());
    let (gone, floor_gone) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let db = floor_connection(&path);
        let mut last = 0i64;
        let _gone = gone;
        loop {
            await_removal(&fd, "outbound.db-journal");
            let rows: Vec<(i64, String, String)> = db
                .prepare_cached("SELECT rowid, id, content FROM messages_out WHERE rowid > ?1 ORDER BY rowid")
                .unwrap()
                .query_map([last], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            for (rowid, id, content) in rows {
                last = rowid;
                let line = json!({"type": "message", "id": id, "text": content}).to_string() + "\n";
                if far.write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        }
    });
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    let mut n = 0;
    let mut line = String::new();
    // The first are read while the session's start is still being written down.
    std::thread::sleep(Duration::from_secs(2));
    for round in 0..=ROUNDS {
        for _ in 0..ROWS {
            n += 1;
            pause(n);
            std::thread::sleep(Duration::from_millis(5));
            insert_out(&db, n);
            let done = Instant::now();
            let (at, reply) = client.until("message");
            client.say(json!({"type": "ack", "id": reply["id"]}));
            if round > 0 {
                ours.push(at.saturating_duration_since(done));
            }
        }
        for _ in 0..ROWS {
            n += 1;
            pause(n);
            std::thread::sleep(Duration::from_millis(5));
            insert_out(&floor_db, n);
            let done = Instant::now();
            line.clear();
            assert!(near.read_line(&mut line).unwrap() > 0);
            floors.push(Instant::now().saturating_duration_since(done));
        }
    }
    assert!(matches!(floor_gone.try_recv(), Err(mpsc::TryRecvError::Empty)), "the floor program ended");
    pair(&format!("outbound commit -> client, {sessions} sessions"), &mut ours, &mut floors);
}

/// The session that was made last by the daemon.
fn newest_of(folders: &[PathBuf], root: &Path) -> SessionFolder {
    let newest = folders
        .iter()
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("sess-1-"))
        .max()
        .unwrap_or_else(|| panic!("no session in {}", root.display()));
    SessionFolder::nested(newest)
}

/// Time on a processor of all threads in nanoseconds (finer than the ticks of `stat`), and resident bytes.
fn usage(pid: u32) -> (u64, u64) {
    let spent = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| {
        let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    });
    let resident = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    (spent.sum(), pages * 4_096)
}

/// Starts over folders that the daemon has never seen, then over the same ones after a clean end; then it idles.
pub fn start_and_idle(sessions: usize) {
    const SECONDS: u64 = 60;
    let root = tempfile::tempdir_in(".").unwrap();
    (0..sessions).for_each(|n| drop(session(root.path(), &format!("sess-1-{n:06}"))));
    let begun = Instant::now();
    let mut first = daemon(root.path(), &[]);
    drop(connect(root.path()));
    println!(
        "{:<44} {:>9.0} ms",
        format!("first start, {sessions} sessions"),
        begun.elapsed().as_secs_f64() * 1e3
    );
    // A look that is open at the end is made again.
    std::thread::sleep(Duration::from_millis(2 * sessions as u64));
    stop(&mut first);
    let begun = Instant::now();
    let child = daemon(root.path(), &[]);
    drop(connect(root.path()));
    println!(
        "{:<44} {:>9.0} ms",
        format!("start again, {sessions} sessions"),
        begun.elapsed().as_secs_f64() * 1e3
    );
    // The looks of the start are over when its figures stand still.
    std::thread::sleep(Duration::from_secs(5));
    let (before, _) = usage(child.0.id());
    std::thread::sleep(Duration::from_secs(SECONDS));
    let (after, bytes) = usage(child.0.id());
    let share = (after - before) as f64 / (SECONDS as f64 * 1e9) * 100.0;
    println!("{:<44} {share:>9.4} %   (over {SECONDS} s)", format!("idle CPU, {sessions} dormant sessions"));
    println!(
        "{:<44} {:>9.1} MB",
        format!("resident memory, {sessions} dormant sessions"),
        bytes as f64 / 1e6
    );
}

/// Asks the daemon to end, and waits until it has.
pub fn stop(daemon: &mut Runner) {
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
}
