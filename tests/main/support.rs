//! A daemon of one's own and a client of its chat socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A bound for waiting on processes of a loaded machine; reaching it is a failure.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The daemon's program.
pub fn lamplighter() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_lamplighter"))
}

/// The runner's program.
pub fn runner() -> PathBuf {
    let path = std::env::var_os("LAMPLIGHTER_RUNNER")
        .map_or_else(|| lamplighter().with_file_name("lamplighter-runner"), PathBuf::from);
    assert!(path.is_file(), "no runner at {}; `cargo build -p lamplighter-runner` builds it", path.display());
    path
}

/// The segments of a journal's folder, in order.
pub fn segments(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = all.filter(|path| path.extension().is_some_and(|it| it == "ltj")).collect();
    found.sort();
    found
}

/// Starts a daemon's process on a data folder, with its log elsewhere.
pub fn spawn(data: &Path, log: &Path, flags: &[&str]) -> Child {
    spawn_with("process", &runner(), data, log, flags)
}

fn spawn_with(runtime: &str, runner: &Path, data: &Path, log: &Path, flags: &[&str]) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    Command::new(lamplighter())
        .args(["run", "--runtime", runtime])
        .args(flags)
        .arg("--data")
        .arg(data)
        .env("LAMPLIGHTER_RUNNER", runner)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Waits until `ready` says so, looking often: for what no event tells this process.
pub fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !ready() {
        assert!(Instant::now() < limit, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon on a data folder that is removed at the end.
pub struct Daemon {
    pub folder: tempfile::TempDir,
    child: Option<Child>,
    runtime: &'static str,
    runner: PathBuf,
}

impl Daemon {
    /// Starts a daemon with this configuration.
    pub fn start(config: &str) -> Self {
        Self::start_on("process", runner(), config)
    }

    /// Starts a daemon with another runtime and the runner for it.
    pub fn start_on(runtime: &'static str, runner: PathBuf, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lamplighter.toml"), config).unwrap();
        let mut daemon = Self { folder, child: None, runtime, runner };
        daemon.again();
        daemon
    }

    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.data().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.as_ref().unwrap().id()).unwrap()).unwrap()
    }

    /// Starts it again on the same folder and waits until it listens.
    pub fn again(&mut self) {
        let log = self.data().join("log");
        let child = spawn_with(self.runtime, &self.runner, self.data(), &log, &["--log-level", "debug"]);
        self.child = Some(child);
        let socket = self.data().join("run/chat.sock");
        let limit = Instant::now() + LIMIT;
        while UnixStream::connect(&socket).is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < limit, "the daemon did not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop and expects that it does, cleanly.
    pub fn stop(&mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let status = self.child.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// Waits until it ends by itself, and gives its exit code.
    #[cfg(feature = "sabotage")]
    pub fn ends(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let mut ended = None;
        until("it ends by itself", || {
            ended = child.try_wait().unwrap();
            ended.is_some()
        });
        ended.and_then(|status| status.code())
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The processes that hold a session's lock: its runner.
    pub fn runners(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let stdin = fs::read_link(entry.path().join("fd/0")).unwrap_or_default();
            if stdin.starts_with(self.data().join("run/sessions")) {
                found.extend(Pid::from_raw(pid));
            }
        }
        found
    }

    /// Runs a command of the daemon's program on this data folder.
    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(lamplighter())
            .args(args)
            .arg("--data")
            .arg(self.data())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The output of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{args:?}: {}\n{out}\n{err}\n{}", output.status, self.log());
        out
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// The journal must replay without a divergence.
    pub fn replays(&self) -> String {
        let journal = self.data().join("journal");
        let out = Command::new(lamplighter()).arg("replay").arg(&journal).output().unwrap();
        let said = text(&out.stdout);
        assert!(out.status.success() && said.contains(", 0 divergences"), "{said}{}", text(&out.stderr));
        said
    }

    pub fn client(&self, chat: &str) -> Client {
        Client::connect(self.data(), chat).expect("no connection")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            // What went wrong can be looked at, and replayed.
            self.folder.disable_cleanup(true);
            println!("kept: {}", self.folder.path().display());
        }
    }
}

/// What providers keep of the only session that was started.
pub fn only_state(data: &Path) -> PathBuf {
    let all = fs::read_dir(data.join("state/agent")).unwrap().map(|entry| entry.unwrap().path());
    let all: Vec<PathBuf> = all.collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A client of one chat.
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    pub fn connect(data: &Path, chat: &str) -> Option<Self> {
        let stream = UnixStream::connect(data.join("run/chat.sock")).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let mut client = Self { reader: BufReader::new(stream) };
        client.send(&json!({"type": "hello", "protocol": 1, "chat": chat, "receive": true}))?;
        let hello = client.line()?;
        (hello["type"] == "hello").then_some(client)
    }

    pub fn send(&mut self, line: &Value) -> Option<()> {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes()).ok()
    }

    pub fn say(&mut self, id: &str, text: &str) -> Option<()> {
        self.send(&json!({"type": "message", "id": id, "text": text}))
    }

    /// The next line; none when the daemon is gone. Replies are acknowledged.
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok()?;
        let value: Value = serde_json::from_str(&line).ok()?;
        if value["type"] == "message" {
            self.send(&json!({"type": "ack", "id": value["id"]}))?;
        }
        Some(value)
    }

    /// Lines until each of these messages is settled, which must be as completed; all replies among them, sorted.
    pub fn settle(&mut self, ids: &[&str]) -> Vec<String> {
        let mut replies = BTreeMap::new();
        let mut open: BTreeSet<&str> = ids.iter().copied().collect();
        while !open.is_empty() {
            let (settled, more) = self.upto("settled", "");
            assert_eq!(settled["outcome"], "completed", "{settled}");
            open.remove(settled["id"].as_str().unwrap());
            replies.extend(more);
        }
        let mut texts: Vec<String> = replies.into_values().collect();
        texts.sort();
        texts
    }

    /// Lines up to the one of this type for this id; replies among them by id.
    pub fn upto(&mut self, kind: &str, id: &str) -> (Value, BTreeMap<String, String>) {
        let mut replies = BTreeMap::new();
        loop {
            let line = self.line().unwrap_or_else(|| panic!("the daemon went away before {kind} of {id}"));
            if line["type"] == "message" {
                replies.insert(
                    line["id"].as_str().unwrap().to_owned(),
                    line["text"].as_str().unwrap().to_owned(),
                );
            }
            if line["type"] == kind && (id.is_empty() || line["id"] == id) {
                return (line, replies);
            }
        }
    }
}
