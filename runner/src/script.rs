//! Scripts of tasks: run before the agent is asked, to decide whether it is (contract 11).
//!
//! Invariant: a script ends in its time with everything that it started, its output is bounded, and whatever goes
//! wrong with it means that the agent is not asked, with a reason.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::json::Json;

/// Longest output that is kept; more ends the script (contract 11).
const MAX_OUTPUT: usize = 1024 * 1024;
/// How long a script may take (contract 11).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the output may stay open after the end. All that could be found is dead by then: only a process that has
/// taken our mark out of its environment could still hold it.
const OUTPUT_AFTER_END: Duration = Duration::from_secs(1);
/// In the environment of a script and of all that it starts, which is how those are found that have left its group and
/// whose parents are gone.
const MARK: &str = "LAMPLIGHTER_SCRIPT";
/// So often at most the processes of a script are looked for: each time finds those that were started meanwhile.
const ROUNDS: usize = 8;

/// What a script decided.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The agent is to be asked, and told this.
    Wake(Option<Json>),
    /// There is nothing to do.
    Sleep,
    /// It did not decide; the agent is not asked.
    Broken(String),
}

/// A script that runs.
#[derive(Debug)]
pub struct Running {
    kill: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Ends the script soon; its outcome is reported all the same.
    pub fn kill(&self) {
        self.kill.store(true, Ordering::Release);
    }

    /// Whether it was asked to end.
    pub fn is_killed(&self) -> bool {
        self.kill.load(Ordering::Acquire)
    }

    /// Ends the script and waits until nothing of it is left, about a second at most.
    pub fn end(self) {
        self.kill();
        // Its thread reports all that may go wrong; one that panicked has said so.
        let _ = self.thread.join();
    }
}

/// Runs `script` with bash in `folder`, and reports its outcome once from another thread.
///
/// # Errors
/// When no thread can be started.
pub fn run(
    script: String,
    folder: PathBuf,
    timeout: Duration,
    report: impl FnOnce(Outcome) + Send + 'static,
) -> io::Result<Running> {
    let kill = Arc::new(AtomicBool::new(false));
    let killed = Arc::clone(&kill);
    let thread = std::thread::Builder::new().name("script".to_owned()).spawn(move || {
        let outcome = match execute(&script, &folder, timeout, &killed) {
            Ok(output) => decide(&output),
            Err(reason) => Outcome::Broken(reason),
        };
        report(outcome);
    })?;
    Ok(Running { kill, thread })
}

/// Runs it to its end and returns what it wrote to its standard output.
fn execute(script: &str, folder: &Path, timeout: Duration, kill: &AtomicBool) -> Result<Vec<u8>, String> {
    static STARTED: AtomicU64 = AtomicU64::new(0);
    // A file and not an argument: arguments are bounded and visible to every process.
    let file = script_file(script).map_err(|error| format!("the script cannot be written: {error}"))?;
    let mark = format!("{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
    let mut command = Command::new("bash");
    command.arg(format!("/dev/fd/{}", file.as_raw_fd())).env(MARK, &mark);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    if folder.is_dir() {
        command.current_dir(folder);
    }
    let mut child = command.spawn().map_err(|error| format!("bash cannot be started: {error}"))?;
    drop(file);
    let mut output = Output { pipe: child.stdout.take(), bytes: Vec::new() };
    let ended = wait(&mut child, &mut output, kill, timeout);
    // The script may have left others behind, and those hold its output open.
    kill_all(&child, &mark);
    if ended.is_err() {
        child.wait().ok();
    }
    output.drain(OUTPUT_AFTER_END);
    match ended?.code() {
        _ if output.is_too_long() => Err(too_long()),
        Some(0) => Ok(output.bytes),
        Some(code) => Err(format!("the script ended with code {code}")),
        None => Err("the script was ended by a signal".to_owned()),
    }
}

/// An open file without a name that holds the script. Children inherit it: bash opens it anew by its number, and
/// whoever else is started in this moment has no use for it.
fn script_file(script: &str) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("task-script", rustix::fs::MemfdFlags::empty())?;
    let mut file = File::from(fd);
    file.write_all(script.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Kills the script's group, and then whoever has left it.
fn kill_all(child: &Child, mark: &str) {
    // Both fail when nobody is left, which is what is wanted.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    for _ in 0..ROUNDS {
        let left = marked(mark);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The processes at work whose environment has the mark. A zombie has none any more.
fn marked(mark: &str) -> Vec<Pid> {
    let wanted = format!("{MARK}={mark}");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            // Those of other users cannot be read, and none of them is the script's.
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes()).then_some(pid)
        })
        .collect()
}

/// The script's standard output, as far as it was read.
struct Output {
    /// `None` once it has ended.
    pipe: Option<ChildStdout>,
    bytes: Vec<u8>,
}

impl Output {
    fn is_too_long(&self) -> bool {
        self.bytes.len() > MAX_OUTPUT
    }

    /// Waits for more of it, or for its end, at most for `time`, and takes what there is.
    fn read(&mut self, time: Duration) {
        let time = Timespec::try_from(time).ok();
        let Some(pipe) = &mut self.pipe else {
            // Nothing is polled, which only waits.
            let _ = poll(&mut [], time.as_ref());
            return;
        };
        let mut fds = [PollFd::new(pipe, PollFlags::IN)];
        if poll(&mut fds, time.as_ref()).is_ok_and(|ready| ready > 0) {
            let mut buffer = [0; 16 * 1024];
            match pipe.read(&mut buffer) {
                Ok(read) if read > 0 => self.bytes.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was read before an error is all that there is.
                Ok(_) | Err(_) => self.pipe = None,
            }
        }
    }

    /// Takes what is left of it, at most for `time`.
    fn drain(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while self.pipe.is_some() && !self.is_too_long() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.read(left);
        }
    }
}

fn too_long() -> String {
    format!("the script wrote more than {MAX_OUTPUT} bytes")
}

/// Waits for the end of the process, which a closed output announces; the reason when it does not come in time.
fn wait(
    child: &mut Child,
    output: &mut Output,
    kill: &AtomicBool,
    timeout: Duration,
) -> Result<ExitStatus, String> {
    let until = Instant::now() + timeout;
    // A script may close its output and go on, or end and leave it open; so its end is asked for as well.
    let mut between = Duration::from_millis(1);
    loop {
        if kill.load(Ordering::Acquire) {
            return Err("the runner was asked to stop".to_owned());
        }
        if output.is_too_long() {
            return Err(too_long());
        }
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(error) => return Err(format!("the script cannot be waited for: {error}")),
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("the script took longer than {} ms", timeout.as_millis()));
        }
        output.read(left.min(between));
        between = (between * 2).min(Duration::from_millis(50));
    }
}

/// The last line that is not empty decides: an object with `wakeAgent`, and perhaps `data`.
fn decide(output: &[u8]) -> Outcome {
    let output = String::from_utf8_lossy(output);
    let Some(last) = output.lines().rev().map(str::trim).find(|line| !line.is_empty()) else {
        return Outcome::Broken("the script wrote nothing".to_owned());
    };
    let Some(object @ Json::Object(_)) = Json::parse(last) else {
        return Outcome::Broken("the script's last line is no JSON object".to_owned());
    };
    match object.get("wakeAgent") {
        Some(Json::Bool(true)) => {
            Outcome::Wake(object.get("data").filter(|data| **data != Json::Null).cloned())
        }
        Some(Json::Bool(false)) => Outcome::Sleep,
        _ => Outcome::Broken("the script's last line does not say wakeAgent: true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn outcome(script: &str, timeout: Duration) -> Result<Outcome, Box<dyn std::error::Error>> {
        let (send, receive) = mpsc::channel();
        let report = move |outcome| drop(send.send(outcome));
        let _running = run(script.to_owned(), PathBuf::from("/"), timeout, report)?;
        Ok(receive.recv_timeout(Duration::from_secs(20))?)
    }

    fn broken(script: &str, timeout: Duration) -> String {
        match outcome(script, timeout) {
            Ok(Outcome::Broken(reason)) => reason,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_last_line_decides() -> Result<(), Box<dyn std::error::Error>> {
        let yes = r#"echo noise; echo '{"wakeAgent":true,"data":{"n":1}}'; echo"#;
        assert_eq!(outcome(yes, DEFAULT_TIMEOUT)?, Outcome::Wake(Json::parse(r#"{"n":1}"#)));
        assert_eq!(outcome(r#"echo '{"wakeAgent":true}'"#, DEFAULT_TIMEOUT)?, Outcome::Wake(None));
        assert_eq!(outcome(r#"echo '{"wakeAgent":false}'"#, DEFAULT_TIMEOUT)?, Outcome::Sleep);
        Ok(())
    }

    #[test]
    fn whatever_goes_wrong_has_a_reason_and_does_not_wake() {
        let long = DEFAULT_TIMEOUT;
        assert_eq!(broken("true", long), "the script wrote nothing");
        assert_eq!(broken("echo hello", long), "the script's last line is no JSON object");
        let unsaid = "the script's last line does not say wakeAgent: true or false";
        assert_eq!(broken(r#"echo '{"wakeAgent":"yes"}'"#, long), unsaid);
        assert_eq!(broken(r#"echo '{"wakeAgent":true}'; exit 3"#, long), "the script ended with code 3");
        assert_eq!(broken("kill -9 $$", long), "the script was ended by a signal");
        let flood = "while :; do echo 0123456789012345678901234567890123456789; done";
        assert_eq!(broken(flood, long), "the script wrote more than 1048576 bytes");
    }

    #[test]
    fn a_script_that_takes_too_long_ends_with_all_that_it_started() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let note = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", note.display());
        let reason = broken(&script, Duration::from_millis(700));
        assert_eq!(reason, "the script took longer than 700 ms");
        let pid: i32 = std::fs::read_to_string(note)?.trim().parse().map_err(io::Error::other)?;
        let by = Instant::now() + Duration::from_secs(10);
        while lives(pid) && Instant::now() < by {
            std::thread::yield_now();
        }
        assert!(!lives(pid));
        Ok(())
    }

    /// Whether it is at work; a zombie is as good as gone.
    fn lives(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    #[test]
    fn what_has_left_the_script_holds_nothing_up_and_ends_with_it() -> Result<(), Box<dyn std::error::Error>>
    {
        let folder = tempfile::tempdir()?;
        let note = folder.path().join("pid");
        let script = format!(
            r#"setsid sh -c 'echo $$ > {0}; exec sleep 600' &
               while [ ! -s {0} ]; do sleep 0.01; done
               echo '{{"wakeAgent":true}}'"#,
            note.display()
        );
        let began = Instant::now();
        assert_eq!(outcome(&script, DEFAULT_TIMEOUT)?, Outcome::Wake(None));
        assert!(began.elapsed() < DEFAULT_TIMEOUT, "it was waited for");
        let pid: i32 = std::fs::read_to_string(note)?.trim().parse()?;
        let by = Instant::now() + Duration::from_secs(10);
        while lives(pid) && Instant::now() < by {
            std::thread::yield_now();
        }
        assert!(!lives(pid));
        Ok(())
    }

    #[test]
    fn what_hides_from_the_script_holds_its_end_up_for_a_moment_only()
    -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let note = folder.path().join("pid");
        let script = format!(
            r#"setsid env -i sh -c 'echo $$ > {0}; exec sleep 600' &
               while [ ! -s {0} ]; do sleep 0.01; done
               echo '{{"wakeAgent":false}}'"#,
            note.display()
        );
        let found = outcome(&script, DEFAULT_TIMEOUT);
        let pid: i32 = std::fs::read_to_string(note)?.trim().parse()?;
        kill_process(Pid::from_raw(pid).ok_or("no pid")?, Signal::KILL)?;
        assert_eq!(found?, Outcome::Sleep);
        Ok(())
    }

    #[test]
    fn a_running_script_can_be_ended() -> Result<(), Box<dyn std::error::Error>> {
        let (send, receive) = mpsc::channel();
        let report = move |outcome| drop(send.send(outcome));
        let running = run("sleep 600".to_owned(), PathBuf::from("/"), DEFAULT_TIMEOUT, report)?;
        running.kill();
        let outcome = receive.recv_timeout(Duration::from_secs(10))?;
        assert_eq!(outcome, Outcome::Broken("the runner was asked to stop".to_owned()));
        Ok(())
    }

    #[test]
    fn nothing_of_a_script_is_left_once_its_end_was_waited_for() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let note = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", note.display());
        let running = run(script, PathBuf::from("/"), DEFAULT_TIMEOUT, |_| ())?;
        let by = Instant::now() + Duration::from_secs(10);
        while !note.exists() && Instant::now() < by {
            std::thread::yield_now();
        }
        let pid: i32 = std::fs::read_to_string(note)?.trim().parse()?;
        assert!(!running.is_killed() && lives(pid));
        running.end();
        assert!(!lives(pid));
        Ok(())
    }
}
