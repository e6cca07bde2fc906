//! The daemon in this process, with a platform and a wall clock that the run steers: for what no real platform does when
//! it is asked to.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lamplighter::base::{Clock, Disk, OsDisk, Wall};
use lamplighter::channels::{Arrived, Capabilities, Channel, ChannelEvent, Delivery, Fault, Settled};
use lamplighter::host::clock::OsClock;
use lamplighter::host::config::{Config, Overrides, RuntimeKind};
use lamplighter::host::control::Request;
use lamplighter::host::event::Event;
use lamplighter::host::folder::DataFolder;
use lamplighter::host::space;
use lamplighter::host::startup::{self, Ports};
use serde_json::Value;

use crate::support::{LIMIT, runner};

/// The platform's name in rows.
pub const POST: &str = "post";

/// A clock that can be set.
#[derive(Default)]
struct SetClock {
    shift: AtomicI64,
}

impl Clock for SetClock {
    fn monotonic_micros(&self) -> i64 {
        OsClock.monotonic_micros()
    }

    fn wall(&self) -> Wall {
        Wall(OsClock.wall().0 + self.shift.load(Ordering::SeqCst))
    }
}

/// A disk on which a running journal becomes durable only while nobody holds it.
#[derive(Default)]
pub struct HeldDisk {
    held: Mutex<bool>,
    changed: Condvar,
}

impl HeldDisk {
    /// From now on syncs wait, or wait no more.
    pub fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.changed.notify_all();
    }
}

impl Disk for HeldDisk {
    fn create(&self, op: &'static str, path: &Path) -> io::Result<File> {
        OsDisk.create(op, path)
    }

    fn write(&self, op: &'static str, file: &File, bytes: &[u8]) -> io::Result<()> {
        OsDisk.write(op, file, bytes)
    }

    fn sync(&self, op: &'static str, file: &File) -> io::Result<()> {
        if op == "JOURNAL:SYNC" {
            drop(self.changed.wait_while(self.held.lock().unwrap(), |held| *held).unwrap());
        }
        OsDisk.sync(op, file)
    }

    fn rename(&self, op: &'static str, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(op, from, to)
    }

    fn sync_dir(&self, op: &'static str, folder: &Path) -> io::Result<()> {
        OsDisk.sync_dir(op, folder)
    }

    fn remove(&self, op: &'static str, path: &Path) -> io::Result<()> {
        OsDisk.remove(op, path)
    }

    fn truncate(&self, op: &'static str, file: &File, len: u64) -> io::Result<()> {
        OsDisk.truncate(op, file, len)
    }
}

/// What the host says to the platform.
enum Heard {
    Deliver(Box<Delivery>),
    Accepted,
    Settled,
}

/// A platform that cannot drop repeats, and does what the run says.
struct Post {
    heard: Sender<Heard>,
}

impl Post {
    fn hear(&self, heard: Heard) {
        drop(self.heard.send(heard));
    }
}

impl Channel for Post {
    fn channel_type(&self) -> &'static str {
        POST
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn deliver(&self, delivery: Delivery) {
        self.hear(Heard::Deliver(Box::new(delivery)));
    }

    fn typing(&self, _: &str, _: bool) {}

    fn accepted(&self, _: u64, _: bool) {
        self.hear(Heard::Accepted);
    }

    fn refused(&self, _: u64, reason: &str) {
        panic!("an arrival was refused: {reason}");
    }

    fn settled(&self, _: &str, _: Settled) {
        self.hear(Heard::Settled);
    }

    fn stuck(&self, _: &str, _: &str, _: bool) {}

    fn stop(&self) {}
}

/// A running daemon.
pub struct Embedded {
    folder: tempfile::TempDir,
    events: Sender<Event>,
    heard: Receiver<Heard>,
    clock: Arc<SetClock>,
    thread: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Starts one with this configuration; the platform is up.
    pub fn start(config: &str) -> Self {
        Self::start_on(config, Arc::new(OsDisk))
    }

    /// Starts one whose journal is on this disk.
    pub fn start_on(config: &str, disk: Arc<dyn Disk>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("lamplighter.toml"), config).unwrap();
        let env = |name: &str| (name == "LAMPLIGHTER_RUNNER").then(|| runner().display().to_string());
        let flags = Overrides { runtime: Some(RuntimeKind::Process), ..Overrides::default() };
        let mut config = Config::load(None, folder.path(), &env, &flags).unwrap();
        // Behind a program that this process is not: the runner itself ends with its input.
        assert!(
            std::env::var_os("LAMPLIGHTER_RUNNER").is_some(),
            "set LAMPLIGHTER_RUNNER to the runner's program"
        );
        config.runtime.process.command = None;
        let clock = Arc::new(SetClock::default());
        let data = DataFolder::prepare(folder.path(), &OsClock).unwrap();
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let ports = Ports { clock: Arc::clone(&clock) as _, disk, space: space::Source::of(data.root()) };
        let mut started = startup::start_with(data, config, &log, "0.1.0 (test)".into(), ports).unwrap();
        let (heard, hears) = unbounded();
        started.daemon.performer().add_channel(Arc::new(Post { heard }));
        let events = started.events.clone();
        let thread = std::thread::spawn(move || {
            let startup::Started { daemon, control, lock, .. } = started;
            daemon.run().unwrap();
            drop((control, lock));
        });
        let this = Self { folder, events, heard: hears, clock, thread: Some(thread) };
        this.up();
        this
    }

    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    fn send(&self, event: ChannelEvent) {
        self.events.send(Event::Channel(event)).unwrap();
    }

    pub fn up(&self) {
        self.send(ChannelEvent::Up { channel: POST, chat: None });
    }

    pub fn down(&self, reason: &str) {
        self.send(ChannelEvent::Down { channel: POST, reason: reason.into() });
    }

    /// The wall clock moves by so many seconds.
    pub fn set_clock(&self, seconds: i64) {
        self.clock.shift.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    /// A message of id `m1` comes; returns when its row is on disk.
    pub fn arrives(&self) {
        self.send(ChannelEvent::Arrived(Arrived {
            channel: POST,
            receipt: 1,
            chat: "post:grove-lane".into(),
            thread: None,
            message_id: "m1".into(),
            content: "{\"text\":\"is anybody in?\",\"sender\":\"Ann\",\"senderId\":\"post:ann\"}".into(),
            sent: Some(self.clock.wall()),
        }));
        self.hear(|heard| matches!(heard, Heard::Accepted).then_some(()));
    }

    fn hear<T>(&self, mut wanted: impl FnMut(Heard) -> Option<T>) -> T {
        loop {
            let heard = self.heard.recv_timeout(LIMIT).expect("the host said nothing in time");
            if let Some(found) = wanted(heard) {
                return found;
            }
        }
    }

    /// What the loop answers when asked for its status: everything that was on its way to it before is done then.
    pub fn status(&self) -> Value {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.events.send(Event::Control { request: Request::Status, reply }).unwrap();
        answer.recv_timeout(LIMIT).expect("the loop does not answer").unwrap()
    }

    /// Whether a delivery has come by now.
    pub fn was_delivered(&self) -> bool {
        self.heard.try_iter().any(|heard| matches!(heard, Heard::Deliver(_)))
    }

    /// The folder of the only session.
    pub fn session(&self) -> PathBuf {
        let status = self.status();
        self.data().join("sessions").join(status["sessions"][0]["session"].as_str().unwrap())
    }

    /// The next delivery.
    pub fn delivery(&self) -> Delivery {
        self.hear(|heard| match heard {
            Heard::Deliver(delivery) => Some(*delivery),
            Heard::Accepted | Heard::Settled => None,
        })
    }

    pub fn delivered(&self, delivery: &Delivery) {
        let platform_id = Some("letter-1".to_owned());
        self.send(ChannelEvent::Delivered { ticket: delivery.ticket, platform_id });
    }

    pub fn failed(&self, delivery: &Delivery, fault: Fault, reason: &str) {
        let (ticket, reason) = (delivery.ticket, reason.to_owned());
        self.send(ChannelEvent::Failed { ticket, fault, reason, retry_after: None });
    }

    /// The turn of the message has ended.
    pub fn settled(&self) {
        self.hear(|heard| matches!(heard, Heard::Settled).then_some(()));
    }

    /// Stops it and gives its journal's folder.
    pub fn stop(&mut self) -> PathBuf {
        self.events.send(Event::Stop(None)).unwrap();
        self.thread.take().unwrap().join().unwrap();
        self.data().join("journal")
    }

    /// Lets everything that is on its way be recorded: at most this much longer.
    pub fn settle_down(&self) {
        while self.heard.recv_timeout(Duration::from_millis(200)).is_ok() {}
    }
}
