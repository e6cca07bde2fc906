//! A disk with little space: nothing new is accepted, what was accepted goes on, and it ends when there is room.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lamplighter::base::OsDisk;
use lamplighter::host::clock::OsClock;
use lamplighter::host::config::Config;
use lamplighter::host::event::Event;
use lamplighter::host::folder::DataFolder;
use lamplighter::host::perform::send;
use lamplighter::host::space::Source;
use lamplighter::host::startup::{Ports, Started, start_with};

use crate::support::{Client, Daemon, lamplighter, spawn, text, until};

/// The figure is made up; everything else is real.
#[test]
fn while_the_disk_is_low_messages_are_refused_and_replies_are_delivered() {
    let mut daemon = Daemon::start("");
    daemon.ok(&["chat", "hello"]);
    let session = daemon.status()["sessions"][0]["session"].as_str().unwrap().to_owned();
    daemon.stop();
    let path = daemon.data().join("sessions").join(session).join("out/outbound.db");
    let outbound = rusqlite::Connection::open(path).unwrap();
    outbound
        .execute(
            "INSERT INTO messages_out (id, seq, timestamp, kind, platform_id, channel_type, content) \
             VALUES ('late', 1001, datetime('now'), 'chat', 'chat:main', 'chat', '{\"text\":\"found\"}')",
            [],
        )
        .unwrap();
    drop(outbound);

    let figure = Arc::new(AtomicU64::new(1 << 20));
    let told = Arc::clone(&figure);
    let source =
        Source { free: Box::new(move || Ok(told.load(Ordering::SeqCst))), every: Duration::from_millis(10) };
    let mut config = Config::default();
    // Nothing here waits for an agent; one that ends at once is enough.
    config.runtime.process.command = Some(vec!["/bin/true".into()]);
    let data = DataFolder::prepare(daemon.data(), &OsClock).unwrap();
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let ports = Ports { clock: Arc::new(OsClock), disk: Arc::new(OsDisk), space: source };
    let Started { daemon: here, events, control, lock } =
        start_with(data, config, &log, "test".into(), ports).unwrap();
    let running = std::thread::spawn(move || here.run());

    let mut client = daemon.client("main");
    assert_eq!(client.upto("message", "").0["text"], "found", "deliveries go on");
    client.say("m1", "one more").unwrap();
    let refused = client.upto("refused", "m1").0;
    assert!(refused["reason"].as_str().unwrap().contains("disk is almost full"), "{refused}");
    let status = daemon.status();
    assert_eq!(
        (&status["disk"]["low"], &status["disk"]["free"]),
        (&true.into(), &(1 << 20).into()),
        "{status}"
    );
    let shown = daemon.ok(&["status"]);
    let way_out =
        format!("make room on the file system of {}", daemon.data().canonicalize().unwrap().display());
    assert!(
        shown.contains("disk       LOW: 1 MiB free, 64 MiB kept in reserve") && shown.contains(&way_out),
        "{shown}"
    );

    figure.store(1 << 30, Ordering::SeqCst);
    until("there is room again", || daemon.status()["disk"]["low"] == false);
    client.say("m1", "one more").unwrap();
    assert_eq!(client.upto("accepted", "m1").0["duplicate"], false);
    assert!(daemon.ok(&["status"]).contains("disk       1024 MiB free"));

    send(&events, Event::Stop(None));
    running.join().unwrap().unwrap();
    drop((control, lock));
    let way = daemon.ok(&["why", "m1"]);
    assert!(way.contains("refused: NoSpace") && way.contains("accepted"), "{way}");
    daemon.replays();
}

/// A file system of its own, gone at the end.
struct Small {
    root: tempfile::TempDir,
}

impl Small {
    /// None where this user may not mount.
    fn mount(mib: u32) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(root.path()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then_some(Self { root })
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// Writes until there are so many MiB left, or nothing at all.
    fn fill(&self, left_mib: u64) {
        let mut file = File::options().create(true).append(true).open(self.root.path().join("fill")).unwrap();
        let chunk = vec![1; 64 << 10];
        let free = || {
            let stat = rustix::fs::statvfs(self.root.path()).unwrap();
            stat.f_bavail * stat.f_frsize
        };
        while free() > left_mib << 20 && file.write_all(&chunk).is_ok() {}
    }

    fn clear(&self) {
        fs::remove_file(self.root.path().join("fill")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a child may still be on its way out.
        drop(Command::new("umount").arg("-l").arg(self.root.path()).status());
    }
}

/// A daemon whose log is elsewhere.
struct Apart(Child);

impl Apart {
    fn start(data: &Path, log: &Path, reserve_mib: u64) -> Self {
        fs::create_dir_all(data).unwrap();
        let config = format!("[limits]\ndisk_reserve = {}\n", reserve_mib << 20);
        fs::write(data.join("lamplighter.toml"), config).unwrap();
        let child = spawn(data, log, &[]);
        let socket = data.join("run/chat.sock");
        until("it listens", || UnixStream::connect(&socket).is_ok());
        Self(child)
    }

    fn end(&mut self) -> ExitStatus {
        until("it ended", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_disk_that_fills_up_is_told_and_heals_and_without_a_reserve_ends_the_daemon_with_a_hint() {
    let Some(small) = Small::mount(96) else {
        println!("SKIPPED: a full disk was not tried, because this user may not mount a tmpfs");
        return;
    };
    let (data, logs) = (small.data(), tempfile::tempdir().unwrap());
    let log = logs.path().join("log");
    let said = || fs::read_to_string(&log).unwrap();
    let mut daemon = Apart::start(&data, &log, 64);
    let mut client = Client::connect(&data, "main").unwrap();
    client.say("m1", "hello").unwrap();
    client.upto("settled", "m1");

    small.fill(30);
    until("it is seen", || said().contains("the disk is low"));
    client.say("m2", "hello").unwrap();
    client.upto("refused", "m2");
    small.clear();
    until("it is seen", || said().contains("there is room on the disk again"));
    client.say("m2", "hello").unwrap();
    client.upto("settled", "m2");
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon.0), rustix::process::Signal::TERM)
        .unwrap();
    assert!(daemon.end().success(), "{}", said());

    let mut daemon = Apart::start(&data, &log, 0);
    let mut client = Client::connect(&data, "main").unwrap();
    small.fill(0);
    // What was prepared ahead takes some; then there is none for the next record.
    for n in 0..100_000 {
        let id = format!("x{n}");
        let told = client.say(&id, "hello").and_then(|()| client.line());
        if told.is_none() {
            break;
        }
    }
    assert_eq!(daemon.end().code(), Some(74), "{}", said());
    let said = said();
    assert!(
        said.contains("the journal cannot be written") && said.contains("make room on the file system of"),
        "{said}"
    );

    // With room again it starts, and what was put on record replays.
    small.clear();
    let mut daemon = Apart::start(&data, &log, 8);
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon.0), rustix::process::Signal::TERM)
        .unwrap();
    assert!(daemon.end().success());
    let out = Command::new(lamplighter()).arg("replay").arg(data.join("journal")).output().unwrap();
    assert!(text(&out.stdout).contains(", 0 divergences"), "{}", text(&out.stdout));
}
