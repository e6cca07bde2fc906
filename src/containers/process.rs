//! The process runtime: an attempt is a child process in a group of its own.
//!
//! All children are spawned from one thread that lives as long as the daemon, because the kernel sends the signal
//! of a parent's death when the spawning *thread* ends. Each attempt has a thread that starts, watches and ends
//! it.
//!
//! Invariant: `Command` stays plain (no `pre_exec`), so that a big daemon need not fork.
//! Invariant: `Exited` is reported only after a fresh open of the lock file could take its lock.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{ContainerEvent, Containers, Exit, Found, Sink, StartSpec, Stock, leftover, program, spec};
use crate::base::{Attempt, Ms, SessionName, SessionNo};

/// Most bytes of one stream that are read at one wake-up: what a pipe holds. A child that never stops writing must not
/// keep its thread from looking at what else happened.
const READ_MAX: usize = 64 << 10;
/// Bytes of a child's output in a second after which nothing is read until the second is over: a flood costs the child
/// its time, and the daemon no processor.
const BYTES_PER_SECOND: usize = 4 << 20;
/// The time in which lines and bytes are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// The wait before something that would not end is looked at again.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest line of a child's output that is passed on; the rest of it is dropped.
pub const LINE_MAX: usize = 8 * 1024;
/// Most lines of one child in a second that are passed on: a child must not fill the log.
pub const LINES_PER_SECOND: u32 = 200;
/// Starts that wait for the spawning thread: there are at most as many as slots, and spawning takes a millisecond.
const SPAWN_QUEUE: usize = 64;
/// How long output that was written before the end is still read after it.
const DRAIN_MAX: Duration = Duration::from_millis(200);

/// Passed on to every runner when the daemon has it: what the provider `mock` answers (docs/RUNNER.md).
const MOCK_REPLY: &str = "LAMPLIGHTER_MOCK_REPLY";
/// Tells a runner whose death is to be its own.
const PARENT: &str = "LAMPLIGHTER_PARENT";

/// A missing program, with what to do about it.
fn explain(missing: &program::Missing) -> String {
    format!("{missing}; set [runtime.process] command to a program that is there")
}

/// What an attempt is started as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The program through which it is started, with its arguments; empty when it is started directly.
    pub through: Vec<OsString>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

impl Launch {
    /// Directly.
    pub fn of(command: Vec<OsString>) -> Self {
        Self { through: Vec::new(), command }
    }
}

/// The runtime.
pub struct Processes {
    inner: Arc<Inner>,
}

struct Inner {
    launch: Launch,
    locks: PathBuf,
    sink: Sink,
    spawner: Sender<(Command, Sender<io::Result<Child>>)>,
    running: Mutex<BTreeMap<SessionNo, Running>>,
    /// Attempts of an earlier daemon that are being ended.
    ending: Mutex<BTreeSet<(SessionNo, Attempt)>>,
    ended: Condvar,
}

struct Running {
    attempt: Attempt,
    wake: Arc<OwnedFd>,
    stop: Option<Instant>,
    /// The stop was asked for and not yet passed on to the child.
    asked: bool,
}

impl Processes {
    /// Starts the runtime. `locks` is the folder of the sessions' lock files.
    ///
    /// # Errors
    /// When the spawning thread cannot be started.
    pub fn start(launch: Launch, locks: PathBuf, sink: Sink) -> io::Result<Self> {
        let (spawner, requests) = bounded(SPAWN_QUEUE);
        std::thread::Builder::new().name("spawner".into()).spawn(move || spawn_all(&requests))?;
        let running = Mutex::new(BTreeMap::new());
        let ending = Mutex::new(BTreeSet::new());
        let inner = Inner { launch, locks, sink, spawner, running, ending, ended: Condvar::new() };
        Ok(Self { inner: Arc::new(inner) })
    }
}

fn spawn_all(requests: &Receiver<(Command, Sender<io::Result<Child>>)>) {
    for (mut command, reply) in requests {
        // Whoever asked waits for the answer; if it is gone, the child was its and is killed by its lock's next
        // owner.
        drop(reply.send(command.spawn()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Containers for Processes {
    fn name(&self) -> &'static str {
        "process"
    }

    fn adopts(&self) -> bool {
        false
    }

    fn start(&self, spec: StartSpec) {
        let (session, attempt) = (spec.session, spec.attempt);
        let fail = |reason: String| {
            (self.inner.sink)(ContainerEvent::StartFailed { session, attempt, reason });
        };
        let wake = match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
            Ok(fd) => Arc::new(fd),
            Err(errno) => return fail(format!("cannot make an event descriptor: {errno}")),
        };
        {
            let mut running = lock(&self.inner.running);
            if let Some(other) = running.get(&session) {
                let reason = format!("attempt {} of this session still runs", other.attempt);
                drop(running);
                return fail(reason);
            }
            let entry = Running { attempt, wake: Arc::clone(&wake), stop: None, asked: false };
            running.insert(session, entry);
        }
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new().name(format!("attempt-{session}"));
        if let Err(error) = thread.spawn(move || inner.attempt(&spec, &wake)) {
            lock(&self.inner.running).remove(&session);
            fail(format!("cannot start a thread: {error}"));
        }
    }

    fn stop(&self, session: SessionNo, attempt: Attempt, grace: Ms) {
        let mut running = lock(&self.inner.running);
        match running.get_mut(&session) {
            Some(entry) if entry.attempt == attempt => {
                let deadline = Instant::now() + Duration::from(grace);
                entry.stop = Some(entry.stop.map_or(deadline, |earlier| earlier.min(deadline)));
                entry.asked = true;
                wake_up(&entry.wake);
            }
            _ => {
                drop(running);
                self.inner.stop_leftover(session, attempt);
            }
        }
    }

    fn is_alive(&self, session: SessionNo, attempt: Attempt) -> Option<bool> {
        Some(lock(&self.inner.running).get(&session).is_some_and(|entry| entry.attempt == attempt))
    }

    fn list(&self) -> io::Result<Stock> {
        let held = leftover::held(&self.inner.locks)?;
        Ok(Stock::Known(held.into_iter().map(|(name, attempt)| Found { name, attempt }).collect()))
    }

    fn discard(&self, name: &SessionName, _: Attempt) -> io::Result<()> {
        // Whichever attempt it is: whoever holds the lock could write.
        leftover::take(&leftover::lock_path(&self.inner.locks, name)).map(drop)
    }

    fn shutdown(&self, grace: Ms) {
        let deadline = Instant::now() + Duration::from(grace);
        let mut running = lock(&self.inner.running);
        for entry in running.values_mut() {
            entry.stop = Some(deadline);
            entry.asked = true;
            wake_up(&entry.wake);
        }
        let limit = deadline + DRAIN_MAX * 10;
        while !running.is_empty() {
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            running = self.inner.ended.wait_timeout(running, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn wake_up(fd: &OwnedFd) {
    // A full counter has woken it already.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

impl Inner {
    /// The whole life of one attempt.
    fn attempt(&self, spec: &StartSpec, wake: &OwnedFd) {
        let (session, attempt) = (spec.session, spec.attempt);
        let path = leftover::lock_path(&self.locks, &spec.name);
        let event = match self.spawn(spec, &path) {
            Err(reason) => ContainerEvent::StartFailed { session, attempt, reason },
            Ok((child, pidfd)) => {
                (self.sink)(ContainerEvent::Started { session, attempt });
                let exit = self.watch(spec, child, &pidfd, wake);
                self.until_nothing_is_left(session, attempt, AGAIN, || leftover::clear(&path));
                ContainerEvent::Exited { session, attempt, exit }
            }
        };
        lock(&self.running).remove(&session);
        self.ended.notify_all();
        (self.sink)(event);
    }

    /// Ends what is left of an attempt, however long it takes: until then its exit is not reported, and nothing of its
    /// session is started. It is told once.
    fn until_nothing_is_left(
        &self,
        session: SessionNo,
        attempt: Attempt,
        again: Duration,
        end: impl Fn() -> io::Result<()>,
    ) {
        let mut told = false;
        while let Err(error) = end() {
            if !std::mem::replace(&mut told, true) {
                let text = format!(
                    "something of this attempt is left, and its session waits until it has ended: {error}"
                );
                (self.sink)(ContainerEvent::Notice { session, attempt, text });
            }
            // There is no event for the end of a process that is no child of this one and has no lock in time.
            std::thread::sleep(again);
        }
    }

    fn spawn(&self, spec: &StartSpec, path: &std::path::Path) -> Result<(Child, OwnedFd), String> {
        let file =
            leftover::take(path).map_err(|error| format!("the session's lock cannot be taken: {error}"))?;
        leftover::sign(&file, &spec.name, spec.attempt)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        let command = self.command(spec, file)?;
        // Taking the lock may have lasted while a leftover ended.
        if lock(&self.running).get(&spec.session).is_some_and(|entry| entry.stop.is_some()) {
            return Err("it was asked to stop before it began".into());
        }
        let (reply, answer) = bounded(1);
        self.spawner.send((command, reply)).map_err(|_| "the spawning thread is gone".to_owned())?;
        let child = answer.recv().map_err(|_| "the spawning thread is gone".to_owned())?;
        let child = child.map_err(|error| self.explain(spec, &error))?;
        let pid = pid_of(&child);
        let pidfd = pid.ok_or_else(|| "the child has no process id".to_owned()).and_then(|pid| {
            pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|e| format!("cannot watch the child: {e}"))
        });
        match pidfd {
            Ok(pidfd) => Ok((child, pidfd)),
            Err(reason) => {
                end_group(&child, Signal::KILL);
                reap(child);
                Err(reason)
            }
        }
    }

    fn command(&self, spec: &StartSpec, stdin: File) -> Result<Command, String> {
        let Launch { through, command: own } = &self.launch;
        let name = own.first().ok_or("the runtime's command is empty")?;
        let mut env = spec::environment(spec, |name| std::env::var_os(name));
        if let Some(reply) = std::env::var_os(MOCK_REPLY) {
            env.entry(MOCK_REPLY.into()).or_insert(reply);
        }
        env.insert(PARENT.into(), std::process::id().to_string().into());
        if spec.out_dir.is_dir() {
            // What starts it could only say that something is missing in the middle of an attempt.
            let path = env.get(OsStr::new("PATH")).map(OsString::as_os_str);
            program::find(name, path, &spec.out_dir).map_err(|missing| explain(&missing))?;
        }
        let mut words = through.iter().chain(own);
        let mut command = Command::new(words.next().unwrap_or(name));
        command
            .args(words)
            .env_clear()
            .envs(env)
            .current_dir(&spec.out_dir)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Ok(command)
    }

    fn explain(&self, spec: &StartSpec, error: &io::Error) -> String {
        if error.kind() == io::ErrorKind::NotFound && !spec.out_dir.is_dir() {
            return format!("the session's folder {} is missing", spec.out_dir.display());
        }
        let program = self.launch.through.first().or(self.launch.command.first());
        let program = program.map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
        format!("{program:?} did not start: {error}")
    }

    /// Watches a child until it is gone, passing on its output and the requests to stop it.
    fn watch(&self, spec: &StartSpec, mut child: Child, pidfd: &OwnedFd, wake: &OwnedFd) -> Exit {
        let mut outputs = Outputs::of(&mut child);
        let mut killed = false;
        loop {
            let deadline = self.pass_on_stop(spec, &child, killed);
            if deadline.is_some_and(|at| at <= Instant::now()) && !killed {
                end_group(&child, Signal::KILL);
                killed = true;
                continue;
            }
            let timeout = deadline.filter(|_| !killed).map(|at| at.saturating_duration_since(Instant::now()));
            let ended = outputs.wait(pidfd, Some(wake), timeout, &mut |line| self.output(spec, line));
            if ended {
                break;
            }
        }
        // What is left of its group could still write.
        end_group(&child, Signal::KILL);
        let exit = reap(child);
        let limit = Instant::now() + DRAIN_MAX;
        outputs.drain(limit, &mut |line| self.output(spec, line));
        exit
    }

    /// Asks the child to stop when that was asked for, and says when it must be killed.
    fn pass_on_stop(&self, spec: &StartSpec, child: &Child, killed: bool) -> Option<Instant> {
        let mut running = lock(&self.running);
        let entry = running.get_mut(&spec.session)?;
        if std::mem::take(&mut entry.asked) && !killed {
            end_group(child, Signal::TERM);
        }
        entry.stop
    }

    fn output(&self, spec: &StartSpec, line: String) {
        (self.sink)(ContainerEvent::Output {
            session: spec.session,
            name: spec.name.clone(),
            attempt: spec.attempt,
            line,
        });
    }

    /// An attempt that this daemon did not start, or that is gone: whoever holds its lock is ended, and it is reported.
    fn stop_leftover(self: &Arc<Self>, session: SessionNo, attempt: Attempt) {
        if !lock(&self.ending).insert((session, attempt)) {
            // Asked for again: it is reported when it has ended.
            return;
        }
        let inner = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("leftover-{session}"));
        let spawned = thread.spawn(move || {
            inner.until_nothing_is_left(session, attempt, AGAIN, || {
                for (name, found) in leftover::held(&inner.locks)? {
                    if found == Some(attempt) {
                        leftover::take(&leftover::lock_path(&inner.locks, &name))?;
                    }
                }
                Ok(())
            });
            lock(&inner.ending).remove(&(session, attempt));
            (inner.sink)(ContainerEvent::Exited { session, attempt, exit: Exit::Unknown });
        });
        if let Err(error) = spawned {
            lock(&self.ending).remove(&(session, attempt));
            // The machine asks again when the stop is overdue.
            let text = format!("cannot look for what is left of this attempt: {error}");
            (self.sink)(ContainerEvent::Notice { session, attempt, text });
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

fn end_group(child: &Child, signal: Signal) {
    if let Some(pid) = pid_of(child) {
        // The group may be gone.
        let _ = kill_process_group(pid, signal);
    }
}

fn reap(mut child: Child) -> Exit {
    child.wait().map_or(Exit::Unknown, exit_of)
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

/// A child's two streams, read without blocking.
struct Outputs {
    streams: Vec<(Box<dyn Stream>, Vec<u8>, bool)>,
    window: Instant,
    lines: u32,
    bytes: usize,
    dropped: u64,
}

trait Stream: Read + AsFd + Send {}
impl<T: Read + AsFd + Send> Stream for T {}

impl Outputs {
    fn of(child: &mut Child) -> Self {
        let mut streams: Vec<(Box<dyn Stream>, Vec<u8>, bool)> = Vec::new();
        if let Some(out) = child.stdout.take() {
            streams.push((Box::new(out), Vec::new(), false));
        }
        if let Some(err) = child.stderr.take() {
            streams.push((Box::new(err), Vec::new(), false));
        }
        for (stream, ..) in &streams {
            // A stream that stays blocking would only be read when poll says that it has something.
            let _ = rustix::io::ioctl_fionbio(stream, true);
        }
        Self { streams, window: Instant::now(), lines: 0, bytes: 0, dropped: 0 }
    }

    /// Waits for output, a wake-up, the child's end or the timeout, and reads what there is, within a bound. True when
    /// the child ended.
    fn wait(
        &mut self,
        pidfd: &OwnedFd,
        wake: Option<&OwnedFd>,
        timeout: Option<Duration>,
        line: &mut dyn FnMut(String),
    ) -> bool {
        self.turn_window(line);
        let pause = self.pause();
        // Also to report at the end of a window what was dropped in it.
        let report = (self.dropped > 0).then(|| WINDOW.saturating_sub(self.window.elapsed()));
        let timeout = [timeout, pause, report].into_iter().flatten().min();
        let timeout = timeout.and_then(|wait| Timespec::try_from(wait).ok());
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        fds.extend(wake.map(|fd| PollFd::new(fd, PollFlags::IN)));
        if pause.is_none() {
            fds.extend(
                self.streams
                    .iter()
                    .map(|(stream, ..)| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)),
            );
        }
        // Interrupted or failed: the caller looks at everything again.
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return false;
        }
        let ended = !fds[0].revents().is_empty();
        if let Some(fd) = wake {
            let _ = rustix::io::read(fd, &mut [0u8; 8]);
        }
        if pause.is_none() {
            self.read_some(line);
        }
        ended
    }

    /// How long nothing is to be read; none when it may be.
    fn pause(&self) -> Option<Duration> {
        (self.bytes >= BYTES_PER_SECOND)
            .then(|| WINDOW.saturating_sub(self.window.elapsed()))
            .filter(|left| !left.is_zero())
    }

    /// Begins a new window when the last is over, and says what was dropped in that.
    fn turn_window(&mut self, line: &mut dyn FnMut(String)) {
        if self.window.elapsed() < WINDOW {
            return;
        }
        self.window = Instant::now();
        (self.lines, self.bytes) = (0, 0);
        self.report(line);
    }

    fn report(&mut self, line: &mut dyn FnMut(String)) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            line(format!("{dropped} lines were dropped: more than {LINES_PER_SECOND} a second"));
        }
    }

    /// Reads what was written before the end. A grandchild may hold the streams open, so this has a limit.
    fn drain(&mut self, limit: Instant, line: &mut dyn FnMut(String)) {
        while !self.streams.is_empty() {
            let left = limit.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut fds: Vec<PollFd<'_>> = self
                .streams
                .iter()
                .map(|(stream, ..)| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN))
                .collect();
            if left.is_zero() || poll(&mut fds, timeout.as_ref()).is_err() {
                break;
            }
            self.read_some(line);
        }
        for (_, rest, _) in std::mem::take(&mut self.streams) {
            if !rest.is_empty() {
                line(String::from_utf8_lossy(&rest).into_owned());
            }
        }
        self.report(line);
    }

    /// Reads from each stream, at most [`READ_MAX`] bytes: the rest at the next call.
    fn read_some(&mut self, line: &mut dyn FnMut(String)) {
        let mut chunk = [0u8; 4_096];
        let mut streams = std::mem::take(&mut self.streams);
        streams.retain_mut(|(stream, rest, skipping)| {
            let mut left = READ_MAX;
            while left > 0 {
                match stream.read(&mut chunk) {
                    Ok(0) => {
                        if !rest.is_empty() {
                            self.pass(std::mem::take(rest), line);
                        }
                        return false;
                    }
                    Ok(n) => {
                        left = left.saturating_sub(n);
                        self.bytes = self.bytes.saturating_add(n);
                        self.split(&chunk[..n], rest, skipping, line);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
                }
            }
            true
        });
        self.streams = streams;
    }

    fn split(&mut self, bytes: &[u8], rest: &mut Vec<u8>, skipping: &mut bool, line: &mut dyn FnMut(String)) {
        for &byte in bytes {
            if byte == b'\n' {
                if !std::mem::take(skipping) {
                    self.pass(std::mem::take(rest), line);
                }
                rest.clear();
            } else if rest.len() < LINE_MAX {
                rest.push(byte);
            } else if !*skipping {
                *skipping = true;
                self.pass(std::mem::take(rest), line);
            }
        }
    }

    fn pass(&mut self, bytes: Vec<u8>, line: &mut dyn FnMut(String)) {
        self.turn_window(line);
        self.lines = self.lines.saturating_add(1);
        if self.lines <= LINES_PER_SECOND {
            line(String::from_utf8_lossy(&bytes).into_owned());
        } else {
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests;
