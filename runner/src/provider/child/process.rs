//! A child process that speaks in lines: its group, its three pipes, its end.
//!
//! Invariant: the process leads its own group, and the group is killed before its leader is reaped, so a number is
//! never signalled after it could mean somebody else.
//! Invariant: one thread writes to it and one reads from it; nobody else touches its pipes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde_json::Value;

use super::inbox::{Exit, Inbox};

/// Longest line that is read; longer ones are dropped. A Read of an image of 2.4 MB is a line of 1.3 MB, so this
/// leaves room for every file that such a tool takes.
const MAX_LINE: usize = 64 * 1024 * 1024;
/// How much of the end of its standard error is kept: a few lines, for an error's words.
const STDERR_TAIL: usize = 4 * 1024;
/// Most lines that wait to be written. A process that reads so little is not at work.
const MAX_WRITES: usize = 256;
/// How long its pipes may stay open after its end. Its group is dead by then; only a process that left the group
/// could still hold them.
const PIPES_AFTER_EXIT: Duration = Duration::from_secs(1);

/// What to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Added to the inherited environment; `None` takes a name out of it.
    pub env: Vec<(String, Option<String>)>,
    /// Where it works.
    pub folder: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    exited: bool,
    /// Pipes that were read to their end.
    drained: u8,
    stderr: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    pid: Pid,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment: a thread that panicked left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done`, at most for `time`. Returns whether it came.
    fn wait(&self, time: Duration, done: impl Fn(&State) -> bool) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state();
        while !done(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn drained(&self) {
        self.state().drained += 1;
        self.changed.notify_all();
    }
}

/// A running child, or what is left of it.
#[derive(Debug)]
pub struct Process {
    shared: Arc<Shared>,
    input: Mutex<Option<SyncSender<Vec<u8>>>>,
}

impl Process {
    /// Starts it. What it says, and its end, go to `inbox`.
    ///
    /// # Errors
    /// What the system says when there is no such program, or no room for it.
    pub fn spawn(launch: &Launch, inbox: &Arc<Inbox>) -> io::Result<Self> {
        let mut command = Command::new(&launch.program);
        command.args(&launch.args).current_dir(&launch.folder).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, value) in &launch.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command.spawn()?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pid = Pid::from_child(&child);
        let shared = Arc::new(Shared { pid, state: Mutex::default(), changed: Condvar::new() });
        let (sender, receiver) = sync_channel(MAX_WRITES);
        let process = Self { shared: Arc::clone(&shared), input: Mutex::new(Some(sender)) };
        let threads = || -> io::Result<()> {
            // First the one that reaps, so that whatever fails after it leaves no process behind.
            let (waiter, waiters_inbox) = (Arc::clone(&shared), Arc::clone(inbox));
            thread("agent-exit", move || wait_for_exit(child, &waiter, &waiters_inbox))?;
            if let Some(stdin) = stdin {
                thread("agent-input", move || write_all(stdin, &receiver))?;
            }
            if let Some(stdout) = stdout {
                let (shared, inbox) = (Arc::clone(&shared), Arc::clone(inbox));
                thread("agent-output", move || {
                    read_lines(stdout, &inbox);
                    shared.drained();
                })?;
            }
            if let Some(stderr) = stderr {
                let shared = Arc::clone(&shared);
                thread("agent-stderr", move || {
                    keep_tail(stderr, &shared);
                    shared.drained();
                })?;
            }
            Ok(())
        };
        threads().inspect_err(|_| process.kill())?;
        Ok(process)
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        !self.shared.state().exited
    }

    /// Has a line written. Never waits; `false` when the process reads nothing or its input is closed.
    pub fn write(&self, line: &Value) -> bool {
        let mut bytes = line.to_string().into_bytes();
        bytes.push(b'\n');
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.as_ref().is_some_and(|input| input.try_send(bytes).is_ok())
    }

    /// Closes its standard input, once everything that waits is written.
    pub fn close_input(&self) {
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Asks its group to end.
    pub fn terminate(&self) {
        let state = self.shared.state();
        if !state.exited {
            // Fails only when the whole group is gone, which is what is wanted.
            let _ = kill_process_group(self.shared.pid, Signal::TERM);
        }
    }

    /// Kills its group, and whatever of its descendants has left it: an agent's commands run in sessions of their
    /// own.
    pub fn kill(&self) {
        let state = self.shared.state();
        if !state.exited {
            let descendants = descendants(self.shared.pid);
            let _ = kill_process_group(self.shared.pid, Signal::KILL);
            for pid in descendants {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Waits for its end, at most for `time`. Returns whether it ended.
    pub fn wait(&self, time: Duration) -> bool {
        self.shared.wait(time, |state| state.exited)
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

fn wait_for_exit(mut child: Child, shared: &Shared, inbox: &Inbox) {
    // Sees the end and leaves the zombie, which keeps the group's number taken.
    let is_ours = loop {
        match waitid(WaitId::Pid(shared.pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            seen => break seen.is_ok(),
        }
    };
    let status = {
        let mut state = shared.state();
        if is_ours {
            let _ = kill_process_group(shared.pid, Signal::KILL);
        }
        // Fails where whoever reaps for process 1 was faster: then nobody knows how it ended.
        let status = child.wait().ok();
        state.exited = true;
        status
    };
    shared.changed.notify_all();
    shared.wait(PIPES_AFTER_EXIT, |state| state.drained >= 2);
    let stderr = String::from_utf8_lossy(&shared.state().stderr).trim().to_owned();
    inbox.exited(Exit { status, stderr });
}

fn write_all(mut stdin: ChildStdin, lines: &Receiver<Vec<u8>>) {
    while let Ok(line) = lines.recv() {
        // A process that has closed its input is ending: its end says the rest.
        if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read_lines(stdout: ChildStdout, inbox: &Inbox) {
    let mut reader = BufReader::with_capacity(64 * 1024, stdout);
    let mut line = Vec::new();
    loop {
        match read_line(&mut reader, &mut line, MAX_LINE) {
            Ok(false) | Err(_) => return,
            Ok(true) => {
                let bytes = std::mem::take(&mut line);
                if bytes.first() == Some(&b'{') {
                    let text = String::from_utf8(bytes);
                    inbox.line(text.unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()));
                }
            }
        }
    }
}

/// Reads the next line without its end. What is beyond `most` bytes is skipped, and the line is then empty. Returns
/// whether there was one.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, most: usize) -> io::Result<bool> {
    line.clear();
    let (mut any, mut too_long) = (false, false);
    loop {
        let bytes = match reader.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        too_long |= line.len() + part.len() > most;
        if too_long {
            *line = Vec::new();
        } else {
            line.extend_from_slice(part);
        }
        let taken = part.len() + usize::from(end.is_some());
        reader.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn keep_tail(mut stderr: impl Read, shared: &Shared) {
    let mut buffer = [0; 4096];
    loop {
        match stderr.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                let tail = &mut shared.state().stderr;
                tail.extend_from_slice(buffer.get(..read).unwrap_or_default());
                let excess = tail.len().saturating_sub(STDERR_TAIL);
                tail.drain(..excess);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The processes that descend from `root`, as /proc has them at the moment.
fn descendants(root: Pid) -> Vec<Pid> {
    let parents: Vec<(i32, i32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold anything; state and parent follow the last one.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = vec![root.as_raw_nonzero().get()];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = parents.iter().filter(|(pid, of)| *of == parent && !found.contains(pid));
        let children: Vec<i32> = children.map(|(pid, _)| *pid).collect();
        found.extend(children);
        next += 1;
    }
    found.into_iter().skip(1).filter_map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::super::inbox::News;
    use super::*;
    use std::error::Error;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Result<(Process, Arc<Inbox>), io::Error> {
        let inbox = Arc::new(Inbox::default());
        let launch = Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("GIVEN".into(), Some("yes".into())), ("HOME".into(), None)],
            folder: "/".into(),
        };
        Ok((Process::spawn(&launch, &inbox)?, inbox))
    }

    fn next(inbox: &Inbox) -> News {
        inbox.next(Some(Instant::now() + PATIENCE))
    }

    #[test]
    fn lines_go_in_and_out_and_the_end_brings_the_last_words() -> Result<(), Box<dyn Error>> {
        let script = "read line; echo noise; echo \"{$line $GIVEN$HOME\"; echo broken >&2; exit 3";
        let (process, inbox) = shell(script)?;
        assert!(process.write(&Value::from(7)));
        assert!(matches!(next(&inbox), News::Line(line) if line == "{7 yes"));
        let News::Exited { exit, .. } = next(&inbox) else { return Err("no end".into()) };
        assert_eq!(exit.status.and_then(|status| status.code()), Some(3));
        assert_eq!(exit.stderr, "broken");
        assert!(!process.is_running());
        Ok(())
    }

    #[test]
    fn a_kill_reaches_those_that_have_left_the_group() -> Result<(), Box<dyn Error>> {
        let script = "trap '' TERM; setsid sh -c 'echo \"{$$\"; exec sleep 300' & wait; wait";
        let (process, inbox) = shell(script)?;
        let News::Line(line) = next(&inbox) else { return Err("no line".into()) };
        let grandchild = Pid::from_raw(line.trim_start_matches('{').parse()?).ok_or("no pid")?;
        process.terminate();
        assert!(!process.wait(Duration::from_millis(100)));
        process.kill();
        assert!(process.wait(PATIENCE));
        let until = Instant::now() + PATIENCE;
        while rustix::process::test_kill_process(grandchild).is_ok() && is_at_work(grandchild) {
            assert!(Instant::now() < until, "the grandchild lives");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A zombie that init has yet to reap is as good as gone.
    fn is_at_work(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    }

    /// What the lines of `bytes` are, in the plainest words: cut at each end of a line, the ones beyond `most` empty.
    fn plain_lines(bytes: &[u8], most: usize) -> Vec<Vec<u8>> {
        let mut lines: Vec<Vec<u8>> = bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
        // What follows the last end is a line only when there is something.
        lines.pop_if(|last| last.is_empty());
        lines.into_iter().map(|line| if line.len() > most { Vec::new() } else { line }).collect()
    }

    proptest::proptest! {
        #[test]
        fn lines_are_the_same_in_whatever_pieces_they_come(
            bytes in proptest::collection::vec(proptest::sample::select(b"\n\0\xff{a".to_vec()), 0..200),
            most in 0..40_usize,
            piece in 1..20_usize,
        ) {
            let mut reader = BufReader::with_capacity(piece, io::Cursor::new(bytes.clone()));
            let (mut line, mut lines) = (Vec::new(), Vec::new());
            while read_line(&mut reader, &mut line, most)? {
                proptest::prop_assert!(line.len() <= most);
                lines.push(line.clone());
            }
            proptest::prop_assert_eq!(lines, plain_lines(&bytes, most));
        }
    }

    #[test]
    fn long_lines_and_bytes_of_any_kind_come_through() -> Result<(), Box<dyn Error>> {
        const LARGE: usize = 1_300_000;
        let script = format!(
            r"printf '{{'; head -c {LARGE} /dev/zero | tr '\0' x; printf '}}\nnot the agent\n{{\0\377}}\n{{no end'"
        );
        let (_process, inbox) = shell(&script)?;
        let mut lines = Vec::new();
        while let News::Line(line) = next(&inbox) {
            lines.push(line);
        }
        let expected =
            [format!("{{{}}}", "x".repeat(LARGE)), "{\0\u{fffd}}".to_owned(), "{no end".to_owned()];
        assert!(lines == expected, "{:?}", lines.iter().map(String::len).collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn a_line_beyond_the_bound_is_skipped_and_the_next_is_read() -> io::Result<()> {
        let mut reader = io::Cursor::new(b"12345\n12\nend".to_vec());
        let mut line = Vec::new();
        let mut lines = Vec::new();
        while read_line(&mut reader, &mut line, 4)? {
            lines.push(String::from_utf8_lossy(&line).into_owned());
        }
        assert_eq!(lines, ["", "12", "end"]);
        Ok(())
    }
}
