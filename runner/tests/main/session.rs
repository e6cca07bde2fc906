//! A session folder and the runner's process in it.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lamplighter::session::schema;
use rusqlite::{Connection, OptionalExtension, params};
use tempfile::TempDir;

pub type Outcome = Result<(), Box<dyn Error>>;

/// Bounds every wait of a test; a machine under load needs a part of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `look` finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Box<dyn Error>> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("waited {PATIENCE:?} in vain: {what}").into())
}

/// A nested session folder with one destination, `family` (channel `tg`, chat `7`).
pub struct Session {
    pub root: TempDir,
}

/// A message as the test's host writes it.
pub struct Row<'a> {
    pub id: &'a str,
    pub content: &'a str,
    pub trigger: bool,
    pub due: Option<&'a str>,
    pub chat: &'a str,
}

/// A chat message of the chat `7`.
pub fn said<'a>(id: &'a str, content: &'a str) -> Row<'a> {
    Row { id, content, trigger: true, due: None, chat: "7" }
}

impl Session {
    pub fn new(rules: &str) -> Result<Self, Box<dyn Error>> {
        let session = Self { root: tempfile::tempdir()? };
        for folder in ["in", "out", "agent"] {
            fs::create_dir(session.root.path().join(folder))?;
        }
        session.configure(&format!(r#"{{"provider":"mock","mock":{{"rules":{rules}}}}}"#))?;
        session.create_inbound()?;
        Ok(session)
    }

    pub fn configure(&self, json: &str) -> Outcome {
        Ok(fs::write(self.path("in/container.json"), json)?)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn create_inbound(&self) -> Outcome {
        let db = self.inbound()?;
        schema::prepare_inbound(&db)?;
        db.execute(
            "INSERT INTO destinations (name, type, channel_type, platform_id) \
             VALUES ('family', 'channel', 'tg', '7')",
            [],
        )?;
        Ok(())
    }

    pub fn inbound(&self) -> rusqlite::Result<Connection> {
        Connection::open(self.path("in/inbound.db"))
    }

    pub fn outbound(&self) -> rusqlite::Result<Connection> {
        Connection::open(self.path("out/outbound.db"))
    }

    /// Writes all rows in one commit.
    pub fn put(&self, rows: &[Row<'_>]) -> Outcome {
        let mut db = self.inbound()?;
        let tx = db.transaction()?;
        for row in rows {
            let sql = "INSERT INTO messages_in (id, seq, kind, timestamp, process_after, series_id, trigger, \
                       platform_id, channel_type, thread_id, content) VALUES (?1, \
                       (SELECT coalesce(max(seq), 0) + 2 FROM messages_in), 'chat', \
                       '2026-05-18T09:30:00.000Z', ?2, ?1, ?3, ?4, 'tg', 'th-' || ?1, ?5)";
            tx.execute(sql, params![row.id, row.due, row.trigger, row.chat, row.content])?;
        }
        Ok(tx.commit()?)
    }

    pub fn start(&self, attempt: &str) -> Result<Runner, Box<dyn Error>> {
        self.spawn(Command::new(env!("CARGO_BIN_EXE_lamplighter-runner")), attempt)
    }

    /// Starts the runner with a recording of its provider.
    pub fn start_recording(&self, attempt: &str, tape: &Path) -> Result<Runner, Box<dyn Error>> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lamplighter-runner"));
        command.arg("--record").arg(tape);
        self.spawn(command, attempt)
    }

    /// Starts the runner as the child of a shell, and returns the shell.
    pub fn start_below_a_shell(&self, attempt: &str) -> Result<Runner, Box<dyn Error>> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "\"$0\" & wait", env!("CARGO_BIN_EXE_lamplighter-runner")]);
        self.spawn(shell, attempt)
    }

    /// Starts the runner as the first process of a namespace, and returns the process that made it.
    pub fn start_as_first_process(&self, attempt: &str) -> Result<Runner, Box<dyn Error>> {
        let mut unshare = Command::new("/usr/bin/unshare");
        unshare.args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_lamplighter-runner")]);
        self.spawn(unshare, attempt)
    }

    fn spawn(&self, mut command: Command, attempt: &str) -> Result<Runner, Box<dyn Error>> {
        let log = fs::File::create(self.path(&format!("log-{attempt}")))?;
        let child = command
            .env_clear()
            .env("LAMPLIGHTER_WORKSPACE", self.path("out"))
            .env("LAMPLIGHTER_IN", self.path("in"))
            .env("LAMPLIGHTER_AGENT", self.path("agent"))
            .env("LAMPLIGHTER_ATTEMPT", attempt)
            .env("TZ", "Europe/Berlin")
            .current_dir(self.path("out"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Runner { child })
    }

    pub fn log(&self, attempt: &str) -> String {
        fs::read_to_string(self.path(&format!("log-{attempt}"))).unwrap_or_default()
    }

    /// One text of outbound.db; `None` without a row or, at first, without the file or its tables.
    pub fn out(&self, sql: &str) -> Option<String> {
        if !self.path("out/outbound.db").exists() {
            return None;
        }
        let db = self.outbound().ok()?;
        db.query_row(sql, [], |row| row.get::<_, Option<String>>(0)).optional().ok()?.flatten()
    }

    pub fn ack(&self, id: &str) -> Option<String> {
        self.out(&format!("SELECT status FROM processing_ack WHERE message_id = '{id}'"))
    }

    pub fn fact(&self, key: &str) -> Option<serde_json::Value> {
        let text = self.out(&format!("SELECT value FROM session_state WHERE key = 'lamplighter.{key}'"))?;
        serde_json::from_str(&text).ok()
    }

    pub fn state(&self, key: &str) -> Option<String> {
        self.out(&format!("SELECT value FROM session_state WHERE key = '{key}'"))
    }

    /// The answers in the order of delivery: number, thread, what they answer, content.
    pub fn answers(&self) -> Vec<(i64, Option<String>, Option<String>, String)> {
        let read = || -> rusqlite::Result<_> {
            let db = self.outbound()?;
            let sql = "SELECT seq, thread_id, in_reply_to, content FROM messages_out ORDER BY rowid";
            db.prepare(sql)?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
                .collect()
        };
        read().unwrap_or_default()
    }

    /// The answers as JSON, without what differs between two runs.
    pub fn rows(&self) -> Result<Vec<serde_json::Value>, Box<dyn Error>> {
        let db = self.outbound()?;
        let sql = "SELECT kind, channel_type, platform_id, thread_id, in_reply_to, content FROM messages_out \
                   ORDER BY rowid";
        let mut statement = db.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            let text = |at: usize| row.get::<_, Option<String>>(at);
            Ok(serde_json::json!([text(0)?, text(1)?, text(2)?, text(3)?, text(4)?, text(5)?]))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The messages as JSON lines, for [`Session::put_value`].
    pub fn inbound_rows(&self) -> Result<Vec<String>, Box<dyn Error>> {
        let db = self.inbound()?;
        let mut statement = db.prepare("SELECT id, trigger, content FROM messages_in ORDER BY seq")?;
        let rows = statement.query_map([], |row| {
            let (id, trigger, content): (String, bool, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(serde_json::json!({"id": id, "trigger": trigger, "content": content}).to_string())
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Puts a row of [`Session::inbound_rows`].
    pub fn put_value(&self, row: &serde_json::Value) -> Outcome {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let (id, content) = (text("id"), text("content"));
        self.put(&[Row { trigger: row["trigger"] == true, ..said(&id, &content) }])
    }

    pub fn until_acked(&self, id: &str, status: &str) -> Outcome {
        let what = format!("{id} is {status}");
        until(&what, || (self.ack(id)? == status).then_some(()))
    }
}

/// The runner's process; killed when dropped.
pub struct Runner {
    child: Child,
}

impl Runner {
    pub fn terminate(&self) -> Outcome {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or("no process id")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) -> Outcome {
        Ok(self.child.kill()?)
    }

    /// Kills it with everything that it has started, as the end of a container does.
    pub fn kill_all(&mut self) -> Outcome {
        let root = i32::try_from(self.child.id())?;
        let mut tree = vec![root];
        // Parents are found before their children; those that come while this looks are found again.
        for _ in 0..8 {
            for entry in fs::read_dir("/proc")?.flatten() {
                let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                    continue;
                };
                let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
                let parent =
                    stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
                if parent.is_some_and(|parent: i32| tree.contains(&parent)) && !tree.contains(&pid) {
                    tree.push(pid);
                }
            }
        }
        for pid in tree.into_iter().filter_map(rustix::process::Pid::from_raw) {
            // One that is gone needs no end.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        self.ended().map(drop)
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn ended(&mut self) -> Result<ExitStatus, Box<dyn Error>> {
        until("the runner ends", || self.child.try_wait().ok()?)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
