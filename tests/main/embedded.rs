//! The daemon in this process, with a platform and a wall clock that the run steers: for what no real platform does when
//! it is asked to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use lamplighter::base::{Clock, Wall};
use lamplighter::channels::{Arrived, Capabilities, Channel, ChannelEvent, Delivery, Fault, Settled};
use lamplighter::host::clock::OsClock;
use lamplighter::host::config::{Config, Overrides, RuntimeKind};
use lamplighter::host::event::Event;
use lamplighter::host::folder::DataFolder;
use lamplighter::host::startup;

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

/// What the host says to the platform.
enum Heard {
    Deliver(Delivery),
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
        self.hear(Heard::Deliver(delivery));
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
        let shared: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let mut started = startup::start(data, config, &log, shared, "0.1.0 (test)".into()).unwrap();
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
        self.send(ChannelEvent::Up { channel: POST, chat: None, idempotent: false });
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
            timestamp: self.clock.wall(),
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

    /// The next delivery.
    pub fn delivery(&self) -> Delivery {
        self.hear(|heard| match heard {
            Heard::Deliver(delivery) => Some(delivery),
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
        self.events.send(Event::Stop).unwrap();
        self.thread.take().unwrap().join().unwrap();
        self.data().join("journal")
    }

    /// Lets everything that is on its way be recorded: at most this much longer.
    pub fn settle_down(&self) {
        while self.heard.recv_timeout(Duration::from_millis(200)).is_ok() {}
    }
}
